//! What is left on disk of a person who was erased.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use audit_conformance::person::{self, PERSON};
use audit_conformance::sized;
use audit_core::{AuditLog, EventId, LogStore, SearchIndex, Vacuum as _};
use audit_store_sqlite::rusqlite::Connection;

use crate::fixture::{Fixture, basis, eventually, scope, tenant};

/// Whether the vocabulary of the index has the person. A page holds a word without what it shares
/// with the word before it, so that a look for bytes may miss it.
fn in_vocabulary(folder: &Path) -> bool {
    let index = Connection::open(folder.join("audit.index.db")).unwrap();
    index
        .execute_batch("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab (main, words, row)")
        .unwrap();
    index
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM vocabulary WHERE term = ?1)",
            [PERSON],
            |r| r.get(0),
        )
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erased_person_is_in_no_file_after_vacuum() {
    let fixture = Fixture::new();
    let folder = fixture.folder.path();
    let store = Arc::new(fixture.store().clone());
    let log = AuditLog::builder(Arc::clone(&store))
        .queue(Arc::new(store.queue().unwrap()))
        .search(store.search_index())
        .build();
    let workers = log.start();
    let reader = log.tenant(scope(1));
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let mut ids: Vec<EventId> = Vec::new();
    for chunk in 0..sized(1_000_000) / 1_000 {
        let events = (0..1_000).map(|n| match n % 100 {
            0 => person::event(n, PERSON),
            _ => person::event(n, "ann"),
        });
        let receipts = reader.record_all(events.collect()).await.unwrap();
        ids.extend(receipts.iter().step_by(100).map(|r| r.id));
        assert_eq!(receipts[0].seq, chunk as u64 * 1_000);
    }
    // Through the queue, whose file it leaves when it is worked off.
    let queued = reader
        .enqueue(vec![person::event(0, PERSON)])
        .await
        .unwrap();
    ids.extend(queued.expect("the queue is durable"));
    let size = sized(1_000_000) as u64 + 1;
    eventually("the queued one is there", async || {
        store.head(&scope(1)).await.unwrap().size() == size
    })
    .await;
    let is_indexed = async || {
        let size = store.head(&scope(1)).await.unwrap().size();
        store
            .search_index()
            .indexed_through(&scope(1))
            .await
            .unwrap()
            == size
    };
    eventually("all is indexed", is_indexed).await;
    assert!(
        person::files_with(folder)
            .unwrap()
            .contains(&folder.join("audit.db"))
    );
    assert!(in_vocabulary(folder));

    let basis = basis("gdpr-17");
    for some in ids.chunks(500) {
        let erased = reader.erase(some.to_vec(), None, basis.clone(), None).await;
        assert_eq!(erased.unwrap().entries, some.len() as u64);
    }
    eventually("the erasures are indexed", is_indexed).await;
    for _ in 0..2 {
        store.vacuum().await.unwrap();
    }
    assert_eq!(
        person::files_with(folder).unwrap(),
        [""; 0].map(PathBuf::from)
    );
    assert!(!in_vocabulary(folder));
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    let size = store.head(&scope(1)).await.unwrap().size();
    let left = store.read(&scope(1), 0, 200).await.unwrap();
    assert_eq!(left.len(), 200.min(size as usize));
    assert_eq!(left[0].erased.len(), 7);
    assert_eq!(left[1].fields.user_id.as_deref(), Some("ann"));
}
