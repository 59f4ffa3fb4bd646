//! What is left on disk of a person who was erased.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use audit_conformance::person::{self, Person};
use audit_conformance::sized;
use audit_core::{
    AuditLog, ErasureRequest, ErasureState, LogStore, Lookup, SearchIndex, Selection, Vacuum as _,
};
use audit_store_sqlite::rusqlite::Connection;

use crate::fixture::{Fixture, basis, eventually, scope, tenant};

/// The databases in a folder that have the person, each with its write-ahead log.
fn databases_with(person: &Person, folder: &Path) -> BTreeSet<String> {
    let found = person.files_with(folder).unwrap();
    let names = found.iter().map(|path| path.to_str().unwrap());
    names.map(|name| name.replace("-wal", "")).collect()
}

/// Whether the vocabulary of the index has the person. A page holds a word without what it shares
/// with the word before it, so that a look for bytes may miss it.
fn in_vocabulary(person: &Person, folder: &Path) -> bool {
    let index = Connection::open(folder.join("audit.index.db")).unwrap();
    index
        .execute_batch("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab (main, words, row)")
        .unwrap();
    index
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM vocabulary WHERE term = ?1)",
            [person.name()],
            |r| r.get(0),
        )
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erased_person_is_in_no_file_after_vacuum() {
    let fixture = Fixture::new();
    let (folder, person) = (fixture.folder.path(), Person::random());
    let store = Arc::new(fixture.store().clone());
    let log = AuditLog::builder(Arc::clone(&store))
        .queue(Arc::new(store.queue().unwrap()))
        .search(store.search_index())
        .build();
    let workers = log.start();
    let reader = log.tenant(scope(1));
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let mut size = 0;
    for _ in 0..sized(1_000_000) / 1_000 {
        let events = (0..1_000).map(|n| match n % 100 {
            0 => person::event(n, person.name()),
            _ => person::event(n, "ann"),
        });
        let receipts = reader.record_all(events.collect()).await.unwrap();
        assert_eq!(receipts[0].seq, size);
        size += 1_000;
    }
    let is_indexed = async || {
        let size = store.head(&scope(1)).await.unwrap().size();
        let index = store.search_index();
        index.indexed_through(&scope(1)).await.unwrap() == size
    };
    eventually("all is indexed", is_indexed).await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    // These wait in the queue, since nobody works it off.
    let queued = (0..10).map(|n| person::event(n, person.name())).collect();
    let queued = reader.enqueue(queued).await.unwrap().expect("durable");
    assert_eq!(
        databases_with(&person, folder),
        ["audit.db", "audit.index.db", "audit.queue.db"]
            .map(str::to_owned)
            .into(),
    );
    assert!(in_vocabulary(&person, folder));

    let request = ErasureRequest::new(Selection::user(person.name()), basis("gdpr-17"));
    let job = reader.request_erasure(request).await.unwrap();
    let workers = log.start();
    eventually("the erasure is done", async || {
        reader.erasure(job.id).await.unwrap().state == ErasureState::Done
    })
    .await;
    eventually("the queued ones arrive, and are erased", async || {
        let arrived = store.get(&scope(1), &queued).await.unwrap();
        let is_erased =
            |found: &Lookup| matches!(found, Lookup::Found(entry) if entry.erased.len() == 7);
        arrived.len() == 10 && arrived.iter().all(is_erased)
    })
    .await;
    eventually("the erasures are indexed", is_indexed).await;
    for _ in 0..2 {
        assert_eq!(store.vacuum().await.unwrap(), [""; 0]);
    }
    assert_eq!(databases_with(&person, folder), BTreeSet::new());
    assert!(!in_vocabulary(&person, folder));
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    let left = store.read(&scope(1), 0, 200).await.unwrap();
    assert_eq!(left.len(), 200);
    assert_eq!(left[0].erased.len(), 7);
    assert_eq!(left[1].fields.user_id.as_deref(), Some("ann"));
}
