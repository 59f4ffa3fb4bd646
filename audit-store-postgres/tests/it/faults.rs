//! What the log goes through with its database: restarts under load, and clocks that are set back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use audit_conformance::sized;
use audit_core::{Batch, ErrorKind, GroupCommit, LogStore, Receipt, SystemClock, Timestamp};
use audit_store_postgres::PostgresStore;
use tokio::time::Instant;

use crate::engine::Engine;
use crate::fixture::{event, eventually, prepare, scope, tenant};

const WRITERS: usize = 4;

fn batch(first: usize, n: usize) -> Batch {
    let events = (first..first + n).map(|i| prepare(&SystemClock, tenant(1), event(i)));
    Batch::new(scope(1), events.collect()).creating_tenant()
}

/// Records by the same ids until there is a receipt, as a caller does who was told to try again.
async fn append(store: &dyn LogStore, batch: Batch) -> Vec<Receipt> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let batches = [batch];
    loop {
        let error = match store.append(&batches).await {
            Ok(mut outcomes) => match outcomes.pop().unwrap() {
                Ok(receipts) => return receipts,
                Err(error) => error,
            },
            Err(error) => error,
        };
        assert!(error.is_retryable(), "{error:?}");
        assert!(Instant::now() < deadline, "never again: {error:?}");
        tokio::task::yield_now().await;
    }
}

/// That the log holds exactly what these receipts say, without a gap, and hashes to its root.
async fn check(store: &PostgresStore, receipts: &[Receipt]) {
    let head = store.head(&scope(1)).await.unwrap();
    assert_eq!(head.size(), receipts.len() as u64, "lost or duplicated");
    let leaves = store.hashes(&scope(1), 0, 0..head.size()).await.unwrap();
    assert_eq!(audit_core::tlog::merkle::root(&leaves), head.tree.root());
    let mut by_seq = receipts.to_vec();
    by_seq.sort_by_key(|receipt| receipt.seq);
    let seqs: Vec<u64> = by_seq.iter().map(|receipt| receipt.seq).collect();
    assert!(seqs.iter().copied().eq(0..head.size()), "{seqs:?}");
    let stored = store.at(&scope(1), &seqs).await.unwrap();
    assert_eq!(stored.len(), by_seq.len());
    let mut before = Timestamp::MIN;
    for (entry, receipt) in stored.iter().zip(&by_seq) {
        assert_eq!(
            (entry.id, entry.created_at),
            (receipt.id, receipt.created_at)
        );
        assert_eq!(leaves[receipt.seq as usize], receipt.leaf_hash);
        assert!(
            entry.created_at >= before,
            "created_at fell at {}",
            entry.seq
        );
        before = entry.created_at;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_restarted_at_once_under_load_loses_and_repeats_nothing() {
    let mut engine = Engine::start().await;
    let store = PostgresStore::connect(engine.options()).await.unwrap();
    let restarts = sized(20);
    let done = Arc::new(AtomicUsize::new(0));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let grouped: Arc<dyn LogStore> = Arc::new(GroupCommit::new(Arc::new(store.clone())));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (store, done, stopped) = (grouped.clone(), done.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut receipts = Vec::new();
                while !*stopped.borrow() {
                    receipts.extend(append(&*store, batch(receipts.len(), 3)).await);
                    done.fetch_add(1, Ordering::SeqCst);
                }
                receipts
            })
        })
        .collect();
    let more = || {
        let wanted = done.load(Ordering::SeqCst) + 10 * WRITERS;
        let done = done.clone();
        async move {
            eventually("the writers go on", || async {
                done.load(Ordering::SeqCst) >= wanted
            })
            .await;
        }
    };
    for _ in 0..restarts {
        more().await;
        engine.restart_immediately().await;
    }
    more().await;
    stop.send(true).unwrap();
    let mut receipts = Vec::new();
    for writer in writers {
        receipts.extend(writer.await.unwrap());
    }
    check(&store, &receipts).await;
}

#[tokio::test]
async fn a_database_clock_set_back_by_3_seconds_lets_appends_go_on_and_times_not_fall() {
    let engine = Engine::start().await;
    let store = PostgresStore::connect(engine.options()).await.unwrap();
    let mut receipts = append(&store, batch(0, 3)).await;
    engine.set_clock_back(3);
    for i in 1..5 {
        let mut outcomes = store.append(&[batch(3 * i, 3)]).await.unwrap();
        let later = outcomes.pop().unwrap().unwrap();
        // The server's clock is behind the head, whose time is taken.
        assert_eq!(later[0].created_at, receipts[0].created_at);
        receipts.extend(later);
    }
    check(&store, &receipts).await;
}

#[tokio::test]
async fn a_database_clock_set_back_by_10_seconds_is_named_and_nothing_is_lost_once_it_caught_up() {
    let engine = Engine::start().await;
    let store = PostgresStore::connect(engine.options()).await.unwrap();
    let mut receipts = append(&store, batch(0, 3)).await;
    engine.set_clock_back(10);
    let next = batch(3, 3);
    let refused = store.append(std::slice::from_ref(&next)).await.unwrap();
    let error = refused.into_iter().next().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("clock"), "{error}");
    assert!(error.retry_after().is_some());
    assert_eq!(store.head(&scope(1)).await.unwrap().size(), 3);
    // Its own pace brings it near the head; the rest of the way needn't be waited for.
    engine.set_clock_back(4);
    receipts.extend(append(&store, next).await);
    engine.set_clock_back(0);
    receipts.extend(append(&store, batch(6, 3)).await);
    check(&store, &receipts).await;
}
