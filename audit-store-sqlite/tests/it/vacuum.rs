//! What is left on disk of a person who was erased.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use audit_core::{AuditLog, Event, EventId, LogStore, SearchIndex, Vacuum as _};
use audit_store_sqlite::rusqlite::Connection;

use crate::fixture::{Fixture, basis, eventually, scope, sized, tenant};

/// Whoever is erased, in every group.
const PERSON: &str = "q7xk2mz9wd4vbn8rt5ycp3lh";

fn event(n: usize, who: &str) -> Event {
    Event::update("account", format!("{who}-{n}"))
        .user(who)
        .session_id(who)
        .reason(format!("asked by {who}"))
        .before(&[who])
        .after(&[who, "changed"])
        .metadata(&[("by", who)])
}

/// The files that have the person's bytes.
fn files_with(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        if bytes.windows(PERSON.len()).any(|w| w == PERSON.as_bytes()) {
            found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

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
    let person = log.tenant(scope(1));
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let mut ids: Vec<EventId> = Vec::new();
    for chunk in 0..sized(1_000_000) / 1_000 {
        let events = (0..1_000).map(|n| match n % 100 {
            0 => event(n, PERSON),
            _ => event(n, "ann"),
        });
        let receipts = person.record_all(events.collect()).await.unwrap();
        ids.extend(receipts.iter().step_by(100).map(|r| r.id));
        assert_eq!(receipts[0].seq, chunk as u64 * 1_000);
    }
    // Through the queue, whose file it leaves when it is worked off.
    let queued = person.enqueue(vec![event(0, PERSON)]).await.unwrap();
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
    assert!(files_with(folder).contains(&"audit.db".to_owned()));
    assert!(in_vocabulary(folder));

    let basis = basis("gdpr-17");
    for some in ids.chunks(500) {
        let erased = person.erase(some.to_vec(), None, basis.clone(), None).await;
        assert_eq!(erased.unwrap().entries, some.len() as u64);
    }
    eventually("the erasures are indexed", is_indexed).await;
    for _ in 0..2 {
        store.vacuum().await.unwrap();
    }
    assert_eq!(files_with(folder), [""; 0]);
    assert!(!in_vocabulary(folder));
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    let size = store.head(&scope(1)).await.unwrap().size();
    let left = store.read(&scope(1), 0, 200).await.unwrap();
    assert_eq!(left.len(), 200.min(size as usize));
    assert_eq!(left[0].erased.len(), 7);
    assert_eq!(left[1].fields.user_id.as_deref(), Some("ann"));
}
