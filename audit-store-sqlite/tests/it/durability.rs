//! What was acknowledged stays, and one process writes.

use audit_core::{
    ApiKey, Batch, Clock as _, CredentialStore, Erasure, ErrorKind, Event, EventQueue as _,
    LogStore, Message, MessageKind, Role, TenantStore, Ticket, Timestamp,
};
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use futures_util::FutureExt as _;
use uuid::Uuid;

use crate::fixture::{Fixture, basis, ids, scope, tenant};

#[tokio::test]
async fn reopening_keeps_everything() {
    let mut fixture = Fixture::new();
    let receipts = fixture.append(&scope(1), 300).await;
    fixture
        .store()
        .advance(tenant(1), "hooks", true, 7)
        .await
        .unwrap();
    let key = ApiKey::new(
        Uuid::from_u128(9),
        tenant(1),
        "ci",
        Role::Writer,
        Timestamp::MIN,
    );
    fixture
        .store()
        .add_key(&scope(1), &key, &[7; 32])
        .await
        .unwrap();
    let ticket = Ticket::new(tenant(1), "ann", Timestamp::MAX);
    fixture
        .store()
        .put_ticket(&[8; 32], &ticket, Timestamp::MIN)
        .await
        .unwrap();
    let before = fixture.store().head(&scope(1)).await.unwrap();
    let entries = fixture.store().read(&scope(1), 0, 1_000).await.unwrap();
    let owner = fixture.store().tenant(tenant(1)).await.unwrap().unwrap();

    fixture.reopen();

    let store = fixture.store();
    assert_eq!(store.head(&scope(1)).await.unwrap(), before);
    assert_eq!(store.read(&scope(1), 0, 1_000).await.unwrap(), entries);
    assert_eq!(store.cursor(tenant(1), "hooks").await.unwrap(), 7);
    assert_eq!(store.find_key(&[7; 32]).await.unwrap(), Some(key));
    assert_eq!(
        store.take_ticket(&[8; 32], Timestamp::MIN).await.unwrap(),
        Some(ticket)
    );
    assert_eq!(
        store.take_ticket(&[8; 32], Timestamp::MIN).await.unwrap(),
        None
    );
    assert_eq!(store.tenant(tenant(1)).await.unwrap(), Some(owner));
    let found = store.get(&scope(1), &ids(&receipts)).await.unwrap();
    for (lookup, entry) in found.into_iter().zip(entries) {
        assert_eq!(lookup.into_entry().unwrap(), entry);
    }
    // The tree goes on where it was.
    let next = fixture.append(&scope(1), 300).await;
    assert_eq!(next[0].seq, 300);
    assert_eq!(
        next[0].root,
        audit_core::tlog::merkle::root(&fixture.leaf_hashes(&scope(1)).await)
    );
}

#[tokio::test]
async fn a_full_storage_is_said_and_loses_nothing() {
    let mut fixture = Fixture::with(|options| options.max_pages(150));
    let mut acknowledged = Vec::new();
    let error = loop {
        match fixture.try_append(&scope(1), 20).await {
            Ok(receipts) => acknowledged.extend(receipts),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert!(error.is_retryable());
    assert!(!acknowledged.is_empty());
    let found = fixture
        .store()
        .get(&scope(1), &ids(&acknowledged))
        .await
        .unwrap();
    assert!(found.into_iter().all(|lookup| lookup.into_entry().is_ok()));
    let head = fixture.store().head(&scope(1)).await.unwrap();
    assert_eq!(head.size(), acknowledged.len() as u64);

    // There is space again.
    fixture.reopen();
    let receipts = fixture.append(&scope(1), 20).await;
    assert_eq!(receipts[0].seq, acknowledged.len() as u64);
    let hashes = fixture.leaf_hashes(&scope(1)).await;
    assert_eq!(receipts[0].root, audit_core::tlog::merkle::root(&hashes));
}

#[tokio::test]
async fn a_second_writer_is_told_who_the_first_is() {
    let fixture = Fixture::new();
    let path = fixture.folder.path().join("audit.db");
    let error = SqliteStore::open(&path, SqliteOptions::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.message().contains(&std::process::id().to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn a_reader_beside_the_writer_sees_what_is_committed_and_writes_nothing() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 3).await;
    let path = fixture.folder.path().join("audit.db");
    let reader = SqliteStore::open(&path, SqliteOptions::new().read_only()).unwrap();
    assert_eq!(reader.read(&scope(1), 0, 10).await.unwrap().len(), 3);
    fixture.append(&scope(1), 2).await;
    assert_eq!(reader.read(&scope(1), 0, 10).await.unwrap().len(), 5);
    let error = reader
        .append(&[fixture.batch(&scope(1), 1)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn the_last_handle_finishes_what_was_begun_and_releases_the_lock() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 1).await;
    let batches = [fixture.batch(&scope(1), 2)];
    let options = fixture.options();
    drop(fixture.store().append(&batches).now_or_never());
    let folder = fixture.close();
    let path = folder.path().join("audit.db");
    assert!(
        !folder.path().join("audit.db-wal").exists(),
        "the write-ahead log is emptied"
    );
    let store = SqliteStore::open(path, options).unwrap();
    assert_eq!(store.head(&scope(1)).await.unwrap().size(), 3);
}

#[tokio::test]
async fn the_queue_lies_beside_the_log() {
    let fixture = Fixture::new();
    let queue = fixture.store().queue().unwrap();
    let id = fixture.clock.event_id();
    let message = Message::new(tenant(1), MessageKind::Work, id, "{}".into());
    for sent in queue.send(&[message]).await.unwrap() {
        sent.unwrap();
    }
    assert_eq!(
        fixture
            .store()
            .queue()
            .unwrap()
            .depth()
            .await
            .unwrap()
            .waiting,
        1
    );
    assert!(fixture.folder.path().join("audit.queue.db").exists());
}

/// The files in a folder that hold a text.
fn files_with(folder: &std::path::Path, text: &str) -> Vec<std::ffi::OsString> {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap());
    files
        .filter(|file| {
            let bytes = std::fs::read(file.path()).unwrap();
            bytes.windows(text.len()).any(|w| w == text.as_bytes())
        })
        .map(|file| file.file_name())
        .collect()
}

#[tokio::test]
async fn what_was_erased_leaves_the_files_even_when_the_process_was_killed() {
    let fixture = Fixture::new();
    let event = Event::view("doc", "d").reason("unmentionable");
    let event = fixture.prepare(tenant(1), event);
    let id = event.id();
    let batch = Batch::new(scope(1), vec![event]).creating_tenant();
    fixture.store().append(&[batch]).await.unwrap();
    // A reader keeps the write-ahead log from being emptied.
    let reader = rusqlite::Connection::open(fixture.folder.path().join("audit.db")).unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM entries")
        .unwrap();
    let erasure = Erasure::new(vec![id], basis("gdpr-17"), fixture.act(&scope(1)));
    fixture.store().erase(&scope(1), &erasure).await.unwrap();

    let left = tempfile::tempdir().unwrap();
    for name in ["audit.db", "audit.db-wal"] {
        std::fs::copy(fixture.folder.path().join(name), left.path().join(name)).unwrap();
    }
    assert!(!files_with(left.path(), "unmentionable").is_empty());
    let store = SqliteStore::open(left.path().join("audit.db"), fixture.options()).unwrap();
    store
        .append(&[fixture.batch(&scope(1), 1)])
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap();
    // What comes after it waits until the writer has tidied up.
    store.sweep().await.unwrap();
    assert!(files_with(left.path(), "unmentionable").is_empty());
}
