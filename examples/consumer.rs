//! Follow every tenant's log: a consumer that keeps a count of refused logins for each user.
#![allow(clippy::print_stdout)] // an example shows what it does

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::memory::MemoryStore;
use audit_core::{
    ActionType, AuditLog, Consumer, Entry, Event, Outcome, Recorder, Result, TenantId,
};
use tokio::sync::watch;

#[derive(Debug, Default)]
struct RefusedLogins {
    counts: Mutex<BTreeMap<String, u32>>,
    seen: watch::Sender<u64>,
}

#[async_trait]
impl Consumer for RefusedLogins {
    fn name(&self) -> &str {
        "refused-logins"
    }

    // A repeated batch would count twice; a consumer that minds keeps the position with its data.
    async fn consume(&self, _: TenantId, entries: &[Entry]) -> Result<()> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            let fields = &entry.fields;
            if fields.action_type == ActionType::Login && fields.outcome == Outcome::Denied {
                *counts
                    .entry(fields.user_id.clone().unwrap_or_default())
                    .or_default() += 1;
            }
            self.seen.send_replace(entry.seq + 1);
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let refused = Arc::new(RefusedLogins::default());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .consumer(refused.clone())
        .build();
    let workers = log.start();

    let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;
    let recorder = log.recorder(tenant);
    for outcome in [Outcome::Denied, Outcome::Denied, Outcome::Success] {
        recorder
            .record(Event::login("session", "web").user("ann").outcome(outcome))
            .await?;
    }

    let mut seen = refused.seen.subscribe();
    tokio::time::timeout(Duration::from_secs(10), seen.wait_for(|seen| *seen == 3)).await??;
    let counts = refused
        .counts
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    println!("{counts:?}");
    assert_eq!(counts.get("ann"), Some(&2));
    workers.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
