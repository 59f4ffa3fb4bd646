//! A witness of our own: it cosigns the deployment log's head, and so says when it stood there.
//!
//! `cargo run -p examples --example witness` cosigns for a log in the same process, and ends.
//! `… --example witness -- serve <folder> <address> <vkey of a log>…` serves: its key is made in the folder at
//! the first start, and printed for `AUDIT_WITNESSES`. Keep the folder: a witness that forgets what it cosigned
//! proves nothing.
#![allow(clippy::print_stdout)] // an example shows what it does

mod service;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use audit_core::memory::MemoryStore;
use audit_core::tlog::checkpoint::{FIRST_EPOCH, Origin};
use audit_core::tlog::note::{Cosigner, SigningKey, VerifyingKey};
use audit_core::tlog::witness::AddCheckpoint;
use audit_core::tlog::{HeadPolicy, verify_head};
use audit_core::{
    AuditLog, Clock as _, Event, Recorder as _, Signer, SystemClock, TenantId, TenantScope,
    WitnessAnswer,
};
use poem::Server;
use poem::listener::TcpListener;
use service::{Failure, Witness};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => cosign_once().await,
        ["serve", folder, address, logs @ ..] if !logs.is_empty() => {
            serve(Path::new(folder), address, logs).await
        }
        _ => Err("serve <folder> <address> <vkey of a log>… is expected, or nothing".into()),
    }
}

async fn serve(folder: &Path, address: &str, logs: &[&str]) -> Outcome<()> {
    let logs = logs.iter().map(|vkey| VerifyingKey::parse(vkey));
    let logs = logs.collect::<Result<Vec<_>, _>>()?;
    fs::create_dir_all(folder)?;
    let witness = Witness::new(key(folder)?, logs, folder);
    println!("{} http://{address}", witness.key());
    Server::new(TcpListener::bind(address.to_owned()))
        .run(witness.routes())
        .await?;
    Ok(())
}

/// The key in the folder, made when there is none.
fn key(folder: &Path) -> Outcome<Cosigner> {
    let path = folder.join("key");
    if !path.exists() {
        let key = SigningKey::from_seed("witness.example.com/w1", &SystemClock.secret())?;
        fs::write(&path, key.encode())?;
    }
    Ok(SigningKey::parse(fs::read_to_string(path)?.trim())?.into())
}

/// The witness as the log asks it, without HTTP between them.
#[derive(Debug)]
struct Nearby(Arc<Witness>);

#[async_trait]
impl audit_core::Witness for Nearby {
    fn key(&self) -> &VerifyingKey {
        self.0.key()
    }

    async fn add_checkpoint(&self, request: &AddCheckpoint) -> audit_core::Result<WitnessAnswer> {
        match self.0.add_checkpoint(&request.encode()) {
            Ok(line) => Ok(WitnessAnswer::Cosigned(line)),
            Err(Failure::Refused(audit_core::tlog::Refusal::Conflict(size))) => {
                Ok(WitnessAnswer::Conflict(size))
            }
            Err(Failure::Refused(refusal)) => Ok(WitnessAnswer::Refused {
                status: refusal.status(),
                detail: refusal.to_string(),
            }),
            Err(Failure::Unkept(error)) => Err(audit_core::Error::new(
                audit_core::ErrorKind::Unavailable,
                error.to_string(),
            )),
        }
    }
}

async fn cosign_once() -> Outcome<()> {
    let signer = Signer::new(
        Origin::parse("audit.example.com/log")?,
        SigningKey::from_seed("audit", &SystemClock.secret())?,
    );
    let folder = tempfile::tempdir()?;
    let witness = Witness::new(
        key(folder.path())?,
        vec![signer.deployment_key(FIRST_EPOCH)?],
        folder.path(),
    );

    let store = Arc::new(MemoryStore::new());
    let log = AuditLog::builder(Arc::clone(&store))
        .signer(signer, store.clone())
        .deployment(store)
        .witness(Arc::new(Nearby(Arc::clone(&witness))))
        // An hour, in production.
        .deployment_every(Duration::from_secs(1))
        .build();
    let workers = log.start();

    let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;
    let event = Event::update("invoice", "inv-1").user("ann");
    log.recorder(tenant).record(event).await?;

    let reader = log.tenant(TenantScope::trusted(tenant, "example"));
    let proof = loop {
        match reader.head_proof().await {
            Ok(proof) => break proof,
            Err(error) if error.is_retryable() => {
                tokio::time::sleep(Duration::from_millis(100)).await
            }
            Err(error) => return Err(error.into()),
        }
    };
    // Whoever has the proof, the two keys and nothing else:
    let witnesses = [witness.key().clone()];
    let policy = HeadPolicy {
        log: &[reader.deployment_key().await?],
        witnesses: &witnesses,
        least: 1,
    };
    let head = verify_head(&proof, &policy)?;
    println!(
        "the head of {} entries was there at {}",
        head.opening.size, head.cosigned[0].1
    );
    workers.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
