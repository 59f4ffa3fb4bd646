//! A store in a folder of its own, and events for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_core::tlog::Hash;
use audit_core::{
    Act, ActionType, Basis, Batch, Clock, Counter, Event, EventId, LogStore, ManualClock, Outcome,
    PreparedEvent, Receipt, Result, Severity, TenantId, TenantScope, Timestamp,
};
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) const DAY: i64 = 86_400_000_000;

pub(crate) struct Fixture {
    pub(crate) folder: TempDir,
    pub(crate) clock: Arc<ManualClock>,
    store: Option<SqliteStore>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|options| options)
    }

    pub(crate) fn with(set: impl FnOnce(SqliteOptions) -> SqliteOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let start = Timestamp::parse("2026-11-24T03:00:00Z").unwrap();
        let clock = Arc::new(ManualClock::new(start));
        let options = set(SqliteOptions::new().clock(clock.clone()));
        let store = Some(SqliteStore::open(folder.path().join("audit.db"), options).unwrap());
        Self {
            folder,
            clock,
            store,
        }
    }

    pub(crate) fn store(&self) -> &SqliteStore {
        self.store.as_ref().unwrap()
    }

    pub(crate) fn options(&self) -> SqliteOptions {
        SqliteOptions::new().clock(self.clock.clone())
    }

    /// Closes the store and leaves its files.
    pub(crate) fn close(self) -> TempDir {
        self.folder
    }

    pub(crate) fn reopen(&mut self) {
        self.reopen_after(|_| ());
    }

    /// Does something to the folder while the store is closed.
    pub(crate) fn reopen_after(&mut self, meanwhile: impl FnOnce(&Path)) {
        self.store = None;
        meanwhile(self.folder.path());
        let path = self.folder.path().join("audit.db");
        self.store = Some(SqliteStore::open(path, self.options()).unwrap());
    }

    pub(crate) fn prepare(&self, tenant: TenantId, event: Event) -> PreparedEvent {
        PreparedEvent::new(tenant, event, self.clock.as_ref(), &[]).unwrap()
    }

    /// A batch of `n` different events, which creates its tenant.
    pub(crate) fn batch(&self, scope: &TenantScope, n: usize) -> Batch {
        let events = (0..n)
            .map(|i| self.prepare(scope.tenant(), event(i)))
            .collect();
        Batch::new(scope.clone(), events).creating_tenant()
    }

    pub(crate) async fn append(&self, scope: &TenantScope, n: usize) -> Vec<Receipt> {
        self.try_append(scope, n).await.unwrap()
    }

    pub(crate) async fn try_append(&self, scope: &TenantScope, n: usize) -> Result<Vec<Receipt>> {
        let batch = self.batch(scope, n);
        self.store().append(&[batch]).await?.pop().unwrap()
    }

    pub(crate) fn act(&self, scope: &TenantScope) -> Act {
        Act::new(scope, Some("asked for".into()), self.clock.clone()).unwrap()
    }

    pub(crate) fn pass(&self, micros: i64) -> Timestamp {
        self.clock.advance_micros(micros);
        self.clock.now()
    }

    pub(crate) async fn leaf_hashes(&self, scope: &TenantScope) -> Vec<Hash> {
        let size = self.store().head(scope).await.unwrap().size();
        self.store().hashes(scope, 0, 0..size).await.unwrap()
    }

    /// The counters, and what a count over the entries that are left makes of them.
    pub(crate) async fn counted_both_ways(
        &self,
        scope: &TenantScope,
    ) -> (BTreeMap<Key, u64>, BTreeMap<Key, u64>) {
        let kept = self
            .store()
            .counters(scope, i32::MIN..i32::MAX)
            .await
            .unwrap();
        let mut counted = BTreeMap::new();
        for entry in self.store().read(scope, 0, usize::MAX).await.unwrap() {
            let f = entry.fields;
            let key = (
                entry.created_at.utc_day(),
                f.action_type,
                f.severity,
                f.outcome,
            );
            *counted.entry(key).or_default() += 1;
        }
        (kept.into_iter().map(key_and_count).collect(), counted)
    }

    pub(crate) async fn sweep_all(&self) {
        while self.store().sweep().await.unwrap() {}
    }
}

pub(crate) type Key = (i32, ActionType, Severity, Outcome);

fn key_and_count(c: Counter) -> (Key, u64) {
    ((c.day, c.action_type, c.severity, c.outcome), c.count)
}

pub(crate) fn tenant(n: u128) -> TenantId {
    TenantId::new(Uuid::from_u128(n))
}

pub(crate) fn scope(n: u128) -> TenantScope {
    TenantScope::trusted(tenant(n), "test")
}

pub(crate) fn ids(receipts: &[Receipt]) -> Vec<EventId> {
    receipts.iter().map(|receipt| receipt.id).collect()
}

pub(crate) fn basis(text: &str) -> Basis {
    Basis::parse(text).unwrap()
}

pub(crate) fn event(i: usize) -> Event {
    let at = |choices: usize| (i.wrapping_mul(2_654_435_761) >> 7) % choices;
    Event::new(ActionType::ALL[at(11)], "invoice", format!("inv-{i}"))
        .severity(Severity::ALL[at(4)])
        .outcome(Outcome::ALL[at(3)])
        .user(format!("user-{}", at(50)))
        .actor_name("Ann Ö. O'Neil")
        .session_id(format!("s-{}", i / 10))
        .ip_address(if i.is_multiple_of(2) {
            [10, 8, 8, at(250) as u8].into()
        } else {
            std::net::Ipv6Addr::from(i as u128 + (0x2001_0db8_u128 << 96)).into()
        })
        .related(audit_core::RelatedResource::new("group", format!("g-{i}")).named("\"Group\""))
        .before(&serde_json::json!({"n": i, "text": "vorher"}))
        .metadata(&serde_json::json!([i, null, {"k": 1.5}]))
        .reason("quarterly close")
}

/// Waits on a condition.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited for too long: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
