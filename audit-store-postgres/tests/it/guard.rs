//! A database that was set back, beside a guard that was not.

use std::sync::Arc;
use std::time::Duration;

use audit_core::tlog::HeadOpening;
use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::note::{Note, SigningKey};
use audit_core::tlog::verify::{Options, verify_lines};
use audit_core::{
    AuditLog, CheckpointStore as _, DeploymentStore as _, ErrorKind, Event, EvidenceRequest,
    Guard as _, LogStore as _, MemoryGuard, Recorder as _, SignedCheckpoint, Signer,
};
use audit_store_postgres::PostgresStore;
use futures_util::TryStreamExt as _;

use crate::fixture::{Bare, Database, basis, eventually, scope, tenant};

async fn process(database: &Bare, guard: &Arc<MemoryGuard>) -> (AuditLog, Arc<PostgresStore>) {
    let store = PostgresStore::connect(database.options()).await.unwrap();
    let store = Arc::new(store);
    let origin = Origin::parse("audit.example/log").unwrap();
    let key = SigningKey::from_seed("audit", &[7; 32]).unwrap();
    let log = AuditLog::builder(store.clone())
        .signer(Signer::new(origin, key), store.clone())
        .deployment(store.clone())
        .deployment_every(Duration::from_millis(50))
        .guard(guard.clone(), store.clone())
        .build();
    (log, store)
}

async fn record(log: &AuditLog, n: usize) {
    let event = |n: usize| Event::update("invoice", format!("inv-{n}")).user("ann");
    let events = (0..n).map(event).collect();
    log.recorder(tenant(1)).record_all(events).await.unwrap();
}

/// Lets the workers run until the head is signed, and in the deployment log.
async fn signed(log: &AuditLog, store: &PostgresStore) -> SignedCheckpoint {
    let workers = log.start();
    let reader = log.tenant(scope(1));
    eventually("the head is signed and proved", async || {
        let size = store.head(&scope(1)).await.unwrap().size();
        let latest = store.latest(&scope(1)).await.unwrap();
        let proof = reader.head_proof().await.ok();
        let proved = proof.map(|proof| HeadOpening::of(&proof).unwrap().size);
        latest.is_some_and(|latest| latest.size == size) && proved == Some(size)
    })
    .await;
    assert!(workers.shutdown(Duration::from_secs(10)).await);
    store.latest(&scope(1)).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_set_back_is_stopped_and_recovered() {
    let database = Database::open().await;
    let guard = Arc::new(MemoryGuard::new());
    let (log, store) = process(&database, &guard).await;
    record(&log, 30).await;
    let then = signed(&log, &store).await;
    drop((log, store));
    let restored = database.backup().await;
    let (log, store) = process(&database, &guard).await;
    record(&log, 10).await;
    let erased = store.at(&scope(1), &[3, 35]).await.unwrap();
    let ids = erased.iter().map(|entry| entry.id).collect();
    let reader = log.tenant(scope(1));
    reader
        .erase(ids, None, basis("gdpr-17"), None)
        .await
        .unwrap();
    assert_eq!(signed(&log, &store).await.size, 41);

    let (log, store) = process(&restored, &guard).await;
    let stopped = log.recorder(tenant(1)).record(Event::view("a", "b")).await;
    let error = stopped.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("tlog recover"), "{error}");
    let recovery = log.recover(tenant(1), false).await.unwrap().unwrap();
    assert_eq!(
        (recovery.lost(), recovery.erased, recovery.epoch),
        (11, 1, 2)
    );
    assert_eq!(log.recover(tenant(1), false).await.unwrap(), None);
    let again = store.at(&scope(1), &[3]).await.unwrap();
    assert_eq!(again[0].fields.user_id, None);
    let recovery = log.recover_deployment(false).await.unwrap().unwrap();
    assert_eq!((recovery.size, recovery.lost(), recovery.epoch), (1, 1, 2));
    assert_eq!(log.recover_deployment(false).await.unwrap(), None);
    record(&log, 20).await;
    signed(&log, &store).await;
    let newest = store.latest_deployment().await.unwrap().unwrap();
    assert!(newest.note.starts_with("audit.example/log/e2/deployment\n"));
    let known = guard.deployment_head().await.unwrap().unwrap();
    assert_eq!((known.epoch, known.size, known.root), (2, 2, newest.root));
    let workers = log.start();
    let reader = log.tenant(scope(1));
    let text = reader.evidence(EvidenceRequest::new()).await.unwrap();
    let text: String = text.try_collect().await.unwrap();
    assert!(workers.shutdown(Duration::from_secs(10)).await);
    let options = Options {
        known: vec![Note::parse(&then.note).unwrap()],
        ..Options::default()
    };
    let report = verify_lines(text.lines(), options);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert_eq!((report.known, report.epochs.len()), (vec![30], 1));
}
