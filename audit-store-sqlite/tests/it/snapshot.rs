//! Snapshots.

use std::time::Duration;

use audit_core::{Filter, LogStore, Prune};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::fixture::{DAY, Fixture, basis, scope};

#[tokio::test]
async fn a_snapshot_shows_one_moment() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 700).await;
    let now = fixture.pass(DAY);
    let snapshot = fixture.store().snapshot(&scope(1)).await.unwrap();
    let mut early = snapshot.scan(&Filter::new()).await.unwrap();
    let first = early.next().await.unwrap().unwrap();

    fixture.append(&scope(1), 5).await;
    let prune = Prune::new(now, basis("retention"), fixture.act(&scope(1)));
    fixture.store().prune(&scope(1), &prune).await.unwrap();
    fixture.sweep_all().await;

    assert_eq!(snapshot.head().size(), 700);
    let late: Vec<_> = snapshot
        .scan(&Filter::new())
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    let mut rest: Vec<_> = early.try_collect().await.unwrap();
    rest.insert(0, first);
    assert_eq!(rest, late);
    assert_eq!(
        late.iter().map(|e| e.seq).collect::<Vec<_>>(),
        (0..700).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn scans_of_one_snapshot_may_be_interleaved_and_filtered() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 1_000).await;
    let snapshot = fixture.store().snapshot(&scope(1)).await.unwrap();
    let filter = Filter::new().user("user-7").from_seq(10).to_seq(900);
    let all = snapshot.scan(&Filter::new().from_seq(1)).await.unwrap();
    let all_again = snapshot.scan(&Filter::new()).await.unwrap();
    let some = snapshot.scan(&filter).await.unwrap();
    let pairs: Vec<_> = all.zip(all_again).collect().await;
    assert_eq!(pairs.len(), 999);
    assert!(
        pairs
            .iter()
            .all(|(a, b)| a.as_ref().unwrap().seq == b.as_ref().unwrap().seq + 1)
    );
    let some: Vec<_> = some.try_collect().await.unwrap();
    let expected = pairs
        .iter()
        .map(|(a, _)| a.as_ref().unwrap())
        .filter(|entry| filter.matches(entry));
    assert!(!some.is_empty());
    assert!(some.iter().eq(expected));
}

#[tokio::test]
async fn a_snapshot_that_is_too_old_ends_with_a_retryable_error() {
    let fixture = Fixture::with(|options| options.max_snapshot_age(Duration::ZERO));
    fixture.append(&scope(1), 1_000).await;
    let snapshot = fixture.store().snapshot(&scope(1)).await.unwrap();
    let error = match snapshot.scan(&Filter::new()).await {
        Err(error) => error,
        Ok(stream) => stream.try_collect::<Vec<_>>().await.unwrap_err(),
    };
    assert!(error.is_retryable());
}
