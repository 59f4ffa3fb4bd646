//! Log, queue, outbox and index together, with the workers of two processes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use audit_core::text::Query;
use audit_core::{
    AuditLog, Erasure, Event, Filter, LogStore as _, PageRequest, Recorder as _, SearchIndex as _,
    SystemClock, Workers,
};
use audit_store_postgres::outbox;
use sqlx_core::executor::Executor as _;

use crate::fixture::{Database, basis, eventually, scope, tenant};

/// A process with everything in one database.
async fn process(database: &Database) -> (AuditLog, Workers) {
    let store = Arc::new(database.named("process").await);
    let log = AuditLog::builder(store.clone())
        .queue(Arc::new(store.queue()))
        .outbox(Arc::new(store.outbox()))
        .search(Arc::new(store.search_index()))
        .build();
    let workers = log.start();
    (log, workers)
}

async fn found(log: &AuditLog, q: &str) -> usize {
    let filter = Filter::new().text(Query::parse(q).unwrap());
    let page = PageRequest::first().limit(1_000);
    let found = log.tenant(scope(1)).list(&filter, &page).await.unwrap();
    found.items.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_recorded_in_any_way_is_stored_once_found_and_forgotten_when_erased() {
    let database = Database::open().await;
    let (log, workers) = process(&database).await;
    let (other, other_workers) = process(&database).await;
    let event =
        |n: usize| Event::update("invoice", format!("inv-{n}")).reason(format!("secret w{n}"));
    let first = log.recorder(tenant(1)).record(event(0)).await.unwrap();
    let mut ids = BTreeSet::from([first.id]);
    let mut caller = database.connect().await;
    for n in (1..100).step_by(3) {
        ids.insert(other.recorder(tenant(1)).record(event(n)).await.unwrap().id);
        let recorded = outbox::record_in(&mut caller, tenant(1), event(n + 1), &SystemClock).await;
        ids.insert(recorded.unwrap());
        let accepted = log
            .tenant(scope(1))
            .enqueue(vec![event(n + 2)])
            .await
            .unwrap();
        ids.extend(accepted.expect("the queue is durable"));
    }
    assert_eq!(ids.len(), 100);
    eventually("all is found", async || found(&log, "secret").await == 100).await;
    let stored = database.store.read(&scope(1), 0, 1_000).await.unwrap();
    assert_eq!(stored.iter().map(|e| e.id).collect::<BTreeSet<_>>(), ids);
    assert_eq!(stored.len(), 100);
    for n in [0, 49, 99] {
        assert_eq!(found(&other, &format!("w{n}")).await, 1, "{n}");
        assert_eq!(found(&other, &format!("\"secret w{n}\"")).await, 1, "{n}");
    }

    let erasure = Erasure::new(vec![first.id], basis("gdpr-17"), database.act(&scope(1)));
    log.log_store().erase(&scope(1), &erasure).await.unwrap();
    let index = database.store.search_index();
    let hits = async |q: &str| {
        let filter = Filter::new().text(Query::parse(q).unwrap());
        let request = audit_core::SearchRequest::new(filter, 1_000);
        let hits = audit_core::SearchIndex::search(&index, &scope(1), &request).await;
        hits.unwrap().seqs.len()
    };
    eventually("the index forgot it", async || hits("w0").await == 0).await;
    assert_eq!(hits("secret").await, 99);
    for workers in [workers, other_workers] {
        assert!(workers.is_healthy(), "{:?}", workers.status());
        assert!(workers.shutdown(Duration::from_secs(10)).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_lost_of_the_text_index_is_found_missing_and_put_right() {
    let database = Database::open().await;
    let (log, workers) = process(&database).await;
    let events = (0..50).map(|n| Event::view("doc", format!("d{n}")).reason("needle"));
    let recorder = log.recorder(tenant(1));
    recorder.record_all(events.collect()).await.unwrap();
    eventually("all is found", async || found(&log, "needle").await == 50).await;
    let reconciler = || {
        let mut statuses = workers.status().into_iter();
        statuses.find(|status| status.name == "reconciler").unwrap()
    };
    let mut owner = database.connect().await;
    // One that is gone, and one of a position that the log doesn't have.
    owner
        .execute(
            "DELETE FROM audit.index_documents WHERE seq IN (3, 4, 49);
             INSERT INTO audit.index_documents
             SELECT tenant_id, 70, created_at, occurred_at, erased, words
             FROM audit.index_documents WHERE seq = 5",
        )
        .await
        .unwrap();
    eventually("it is put right", async || {
        let status = reconciler();
        status.repaired == 4 && status.difference == Some(0)
    })
    .await;
    let index = database.store.search_index();
    let held = index.held(&scope(1), 0..100).await.unwrap();
    assert_eq!(held, (0..50).collect::<Vec<_>>());
    assert_eq!(found(&log, "needle").await, 50);
    workers.shutdown(Duration::from_secs(5)).await;
}
