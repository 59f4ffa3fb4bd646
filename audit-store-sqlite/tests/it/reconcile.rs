//! What the index file loses is found missing, and put right.

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_core::text::Query;
use audit_core::{AuditLog, Event, Filter, PageRequest, Recorder, SearchIndex};
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use rusqlite::Connection;

use crate::fixture::{scope, tenant};

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_is_lost_of_the_index_file_is_found_missing_and_put_right() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.db");
    let store = Arc::new(SqliteStore::open(&file, SqliteOptions::new()).unwrap());
    let index = store.search_index();
    let log = AuditLog::builder(store).search(index.clone()).build();
    let events = (0..50).map(|n| Event::view("doc", format!("d{n}")).reason("needle"));
    let recorder = log.recorder(tenant(1));
    recorder.record_all(events.collect()).await.unwrap();
    let workers = log.start();
    let reconciler = || {
        let mut statuses = workers.status().into_iter();
        statuses.find(|status| status.name == "reconciler").unwrap()
    };
    let held = async || index.held(&scope(1), 0..100).await.unwrap().len();
    until("all is indexed", async || held().await == 50).await;
    let damage = Connection::open(folder.path().join("audit.index.db")).unwrap();
    damage.busy_timeout(Duration::from_secs(5)).unwrap();
    damage
        .execute_batch(
            "DELETE FROM documents WHERE doc & 63 IN (3, 4);
             DELETE FROM words WHERE rowid & 63 IN (4, 5);
             DELETE FROM occurred WHERE seq = 6;
             INSERT INTO documents SELECT doc + 40, occurred_at, created_at
             FROM documents WHERE doc & 63 = 40;
             INSERT INTO words (rowid, text) SELECT doc, 'needle' FROM documents WHERE doc & 127 = 80;
             INSERT INTO occurred SELECT doc >> 40, occurred_at, 80 FROM documents
             WHERE doc & 127 = 80;",
        )
        .unwrap();
    until("it is put right", async || {
        let status = reconciler();
        status.repaired == 5 && status.difference == Some(0)
    })
    .await;
    assert_eq!(held().await, 50);
    let reader = log.tenant(scope(1));
    let needle = Filter::new().text(Query::parse("needle").unwrap());
    let page = PageRequest::first().limit(100);
    assert_eq!(reader.list(&needle, &page).await.unwrap().items.len(), 50);
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}
