//! Group commit and retry, over a store that fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use audit_core::{
    Batch, ErrorKind, Event, EventId, GroupCommit, LogStore, PreparedEvent, Retry, SystemClock,
    TenantId, TenantScope,
};
use uuid::Uuid;

use crate::faulty::Faulty;

fn tenant() -> TenantId {
    TenantId::new(Uuid::from_u128(1))
}

fn batch(n: u128, reason: &str) -> Batch {
    let event = Event::view("doc", "d")
        .id(EventId::new(Uuid::from_u128(n)))
        .reason(reason);
    let event = PreparedEvent::new(tenant(), event, &SystemClock, &[]).unwrap();
    Batch::new(TenantScope::trusted(tenant(), "test"), vec![event]).creating_tenant()
}

#[tokio::test]
async fn waiting_appends_go_together() {
    let store = Arc::new(Faulty::new());
    let group = Arc::new(GroupCommit::new(store.clone()));
    let mut tasks = Vec::new();
    for n in 0..200 {
        let group = Arc::clone(&group);
        tasks.push(tokio::spawn(
            async move { group.append(&[batch(n, "r")]).await },
        ));
    }
    let mut seqs = Vec::new();
    for task in tasks {
        let outcome = task.await.unwrap().unwrap().pop().unwrap().unwrap();
        seqs.push(outcome[0].seq);
    }
    seqs.sort_unstable();
    assert_eq!(seqs, (0..200).collect::<Vec<_>>());
    assert!(
        store.appends.load(Ordering::SeqCst) < 20,
        "200 appends in a few groups"
    );
}

#[tokio::test]
async fn a_permanent_failure_reaches_only_its_own_caller() {
    let store = Arc::new(Faulty::new());
    let group = Arc::new(GroupCommit::new(store.clone()));
    store
        .poison
        .lock()
        .unwrap()
        .insert(EventId::new(Uuid::from_u128(37)));
    let mut tasks = Vec::new();
    for n in 0..64 {
        let group = Arc::clone(&group);
        tasks.push((
            n,
            tokio::spawn(async move { group.append(&[batch(n, "r")]).await }),
        ));
    }
    for (n, task) in tasks {
        let outcome = task.await.unwrap();
        if n == 37 {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Internal);
        } else {
            assert!(outcome.unwrap()[0].is_ok(), "{n}");
        }
    }
}

#[tokio::test]
async fn a_conflict_leaves_its_neighbours_stored() {
    let group = Arc::new(GroupCommit::new(Arc::new(Faulty::new())));
    group.append(&[batch(5, "first")]).await.unwrap()[0]
        .as_ref()
        .unwrap();
    let mut tasks = Vec::new();
    for n in 0..10 {
        let group = Arc::clone(&group);
        tasks.push((
            n,
            tokio::spawn(async move { group.append(&[batch(n, "other")]).await }),
        ));
    }
    for (n, task) in tasks {
        let outcome = task.await.unwrap().unwrap().pop().unwrap();
        match n {
            5 => assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Conflict),
            _ => assert!(outcome.is_ok()),
        }
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_nothing() {
    let store = Arc::new(Faulty::new());
    let group = Arc::new(GroupCommit::new(store.clone()));
    let mut tasks = Vec::new();
    for n in 0..50 {
        let group = Arc::clone(&group);
        tasks.push(tokio::spawn(
            async move { group.append(&[batch(n, "r")]).await },
        ));
    }
    tokio::task::yield_now().await;
    for task in tasks.iter().step_by(2) {
        task.abort();
    }
    for task in tasks.into_iter().skip(1).step_by(2) {
        assert!(task.await.unwrap().unwrap()[0].is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_lost_at_the_commit_is_retried_by_id() {
    let store = Arc::new(Faulty::new());
    let retry = Retry::new(store.clone()).pause(Duration::from_millis(1));
    store.lost_answers.store(1, Ordering::SeqCst);
    store.unavailable.store(1, Ordering::SeqCst);
    let receipt = retry.append(&[batch(1, "r")]).await.unwrap()[0]
        .as_ref()
        .unwrap()[0]
        .clone();
    assert!(receipt.duplicate, "it had been stored the first time");
    assert_eq!(receipt.tree_size, 1);
    assert_eq!(store.appends.load(Ordering::SeqCst), 3);

    store.unavailable.store(100, Ordering::SeqCst);
    let error = retry.append(&[batch(2, "r")]).await.unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(
        store.unavailable.load(Ordering::SeqCst),
        96,
        "four attempts"
    );
}

#[tokio::test]
async fn a_permanent_failure_reaches_only_its_own_batch() {
    let store = Arc::new(Faulty::new());
    let group = GroupCommit::new(store.clone());
    for n in [3, 6] {
        let id = EventId::new(Uuid::from_u128(n));
        store.poison.lock().unwrap().insert(id);
    }
    let batches: Vec<Batch> = (0..9).map(|n| batch(n, "r")).collect();
    let outcomes = group.append(&batches).await.unwrap();
    assert_eq!(outcomes.len(), 9);
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match n {
            3 | 6 => assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Internal),
            _ => assert_eq!(outcome.unwrap()[0].id, batches[n].events()[0].id()),
        }
    }
}
