//! Statements that the engine refuses, and callers that go away.

use audit_core::{Batch, Error, ErrorKind, Event, LogStore};
use futures_util::FutureExt as _;
use rusqlite::Connection;

use crate::fixture::{Fixture, scope, tenant};

/// Makes the engine refuse rows of one user, as it would a value that validation missed.
fn refuse_poison(fixture: &Fixture) {
    let conn = Connection::open(fixture.folder.path().join("audit.db")).unwrap();
    conn.execute_batch(
        "CREATE TRIGGER poison BEFORE INSERT ON entries WHEN NEW.user_id = 'poison'
         BEGIN SELECT RAISE(ABORT, 'poison'); END",
    )
    .unwrap();
}

fn poison(fixture: &Fixture) -> Batch {
    let good = fixture.prepare(tenant(1), Event::view("page", "1"));
    let bad = fixture.prepare(tenant(1), Event::view("page", "2").user("poison"));
    Batch::new(scope(1), vec![good, bad])
}

#[tokio::test]
async fn a_row_that_the_engine_refuses_fails_only_its_own_batch() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 1).await;
    refuse_poison(&fixture);
    let batches = [
        fixture.batch(&scope(1), 2),
        poison(&fixture),
        fixture.batch(&scope(2), 3),
    ];
    let outcomes = fixture.store().append(&batches).await.unwrap();
    let kinds: Vec<_> = outcomes
        .iter()
        .map(|o| o.as_ref().err().map(Error::kind))
        .collect();
    assert_eq!(kinds, [None, Some(ErrorKind::Internal), None]);
    let sizes = [scope(1), scope(2)].map(|scope| {
        let store = fixture.store().clone();
        async move { store.head(&scope).await.unwrap().size() }
    });
    assert_eq!(futures_util::future::join_all(sizes).await, [3, 3]);
    let alone = fixture.store().append(&[poison(&fixture)]).await.unwrap();
    assert_eq!(alone[0].as_ref().unwrap_err().kind(), ErrorKind::Internal);
    // Whatever was rolled back left nothing behind in memory.
    let receipts = fixture.append(&scope(1), 1).await;
    let hashes = fixture.leaf_hashes(&scope(1)).await;
    assert_eq!(receipts[0].root, audit_core::tlog::merkle::root(&hashes));
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_cancel_its_append() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 1).await;
    let batches = [fixture.batch(&scope(1), 2)];
    // Polled once, it is on its way; then it is dropped.
    let answered = fixture.store().append(&batches).now_or_never();
    assert!(answered.is_none() || answered.unwrap().is_ok());
    let receipts = fixture.append(&scope(1), 1).await;
    assert_eq!(receipts[0].seq, 3);
}
