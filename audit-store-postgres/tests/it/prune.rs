//! What prunes leave, partitions that go with them, and snapshots.

use std::time::Duration;

use audit_core::tlog::leaf::leaf_hash;
use audit_core::{Clock as _, ErrorKind, Filter, LogStore, Prune, SearchIndex, Timestamp};
use futures_util::TryStreamExt as _;
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;

use crate::fixture::{Database, basis, scope, tenant, until_one_waits};

async fn partitions(database: &Database) -> Vec<String> {
    let mut admin = database.connect().await;
    query_scalar(
        "SELECT relname::text FROM pg_inherits JOIN pg_class ON oid = inhrelid
         WHERE inhparent = 'audit.events'::regclass AND relname < 'events_2022' ORDER BY 1",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap()
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

#[tokio::test]
async fn a_partition_goes_when_every_tenant_in_it_is_pruned_past_its_end() {
    let database = Database::open().await;
    for time in [
        "2021-01-10T00:00:00Z",
        "2021-02-10T00:00:00Z",
        "2021-03-10T00:00:00Z",
    ] {
        database.clock.set(at(time));
        for n in [1, 2] {
            database.append(&scope(n), 2).await;
        }
    }
    let all = [
        "events_202101",
        "events_202102",
        "events_202103",
        "events_202104",
    ];
    let prune = |n, before: &str| {
        let scope = scope(n);
        let prune = Prune::new(at(before), basis("retention"), database.act(&scope));
        let store = database.store.clone();
        async move { store.prune(&scope, &prune).await.unwrap().below }
    };
    assert_eq!(prune(1, "2021-03-01T00:00:00Z").await, 4);
    database.sweep_all().await;
    assert_eq!(
        partitions(&database).await,
        all,
        "the other tenant is in them"
    );
    assert_eq!(prune(2, "2021-02-05T00:00:00Z").await, 2);
    database.sweep_all().await;
    assert_eq!(partitions(&database).await, all[1..]);
    assert_eq!(prune(2, "2021-03-01T00:00:00Z").await, 4);
    database.sweep_all().await;
    assert_eq!(partitions(&database).await, all[2..]);
    for n in [1, 2] {
        let left = database.store.read(&scope(n), 0, 100).await.unwrap();
        assert!(left.iter().map(|entry| entry.seq).all(|seq| seq >= 4) && left.len() >= 3);
        assert_eq!(
            database
                .store
                .hashes(&scope(n), 0, 0..7)
                .await
                .unwrap()
                .len(),
            7
        );
    }
}

#[tokio::test]
async fn leaf_data_of_the_straddling_bundle_outlives_a_prune() {
    let database = Database::open().await;
    database.append(&scope(1), 600).await;
    let bound = database.clock.now();
    database
        .clock
        .set(Timestamp::from_micros(bound.as_micros() + 1).unwrap());
    database.append(&scope(1), 10).await;
    let hashes = database.store.hashes(&scope(1), 0, 0..610).await.unwrap();
    let prune = Prune::new(
        database.clock.now(),
        basis("retention"),
        database.act(&scope(1)),
    );
    assert_eq!(
        database.store.prune(&scope(1), &prune).await.unwrap().below,
        600
    );
    database.sweep_all().await;
    let kept = database.store.leaves(&scope(1), 0..600).await.unwrap();
    assert_eq!(
        kept.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(),
        (512..600).collect::<Vec<_>>()
    );
    for (seq, data) in kept {
        assert_eq!(leaf_hash(data.as_bytes()), hashes[seq as usize], "{seq}");
    }
}

#[tokio::test]
async fn a_snapshot_ends_at_its_age_with_a_retryable_error() {
    let age = Duration::from_millis(500);
    let database = Database::with(|options| options.max_snapshot_age(age)).await;
    database.append(&scope(1), 5).await;
    let snapshot = database.store.snapshot(&scope(1)).await.unwrap();
    let scan = snapshot.scan(&Filter::new()).await.unwrap();
    let entries: Vec<_> = scan.try_collect().await.unwrap();
    assert_eq!(entries.len(), 5);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let error = match snapshot.scan(&Filter::new()).await {
            Ok(scan) => scan.try_collect::<Vec<_>>().await.err(),
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            break;
        }
        assert!(tokio::time::Instant::now() < deadline);
    }
}

#[tokio::test]
async fn as_many_snapshots_as_are_allowed_are_open_at_once() {
    let database = Database::with(|mut options| {
        options.snapshots = 1;
        options
    })
    .await;
    database.append(&scope(1), 1).await;
    let first = database.store.snapshot(&scope(1)).await.unwrap();
    let refused = database.store.snapshot(&scope(1)).await.unwrap_err();
    assert!(refused.is_retryable());
    drop(first);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while database.store.snapshot(&scope(1)).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_scan_of_many_entries_gives_each_once() {
    let database = Database::open().await;
    for _ in 0..5 {
        database.append(&scope(1), 700).await;
    }
    let snapshot = database.store.snapshot(&scope(1)).await.unwrap();
    database.append(&scope(1), 10).await;
    let all = Filter::new();
    let (one, two) = tokio::join!(snapshot.scan(&all), snapshot.scan(&all));
    for scan in [one.unwrap(), two.unwrap()] {
        let seqs: Vec<u64> = scan.map_ok(|entry| entry.seq).try_collect().await.unwrap();
        assert_eq!(seqs, (0..3_500).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_partition_that_is_being_read_is_not_waited_for_again_and_again() {
    let database = Database::open().await;
    database.append(&scope(1), 1).await;
    let mut admin = database.connect().await;
    admin
        .execute(
            "CREATE SEQUENCE public.tries;
             CREATE OR REPLACE FUNCTION audit.drop_pruned_partition() RETURNS boolean
             LANGUAGE sql SECURITY DEFINER
             AS 'SELECT CASE WHEN nextval(''public.tries'') > 0 THEN NULL::boolean END';
             GRANT ALL ON SEQUENCE public.tries TO audit_maintainer, audit_owner",
        )
        .await
        .unwrap();
    for _ in 0..30 {
        database.store.sweep().await.unwrap();
    }
    let tries: i64 = query_scalar("SELECT last_value FROM public.tries")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    // The first while is a second, and doubles.
    assert!((1..=6).contains(&tries), "{tries}");
}

#[tokio::test]
async fn an_indexer_that_read_entries_before_their_prune_writes_no_documents_of_them_after_it() {
    let database = Database::open().await;
    let index = database.store.search_index();
    database.append(&scope(1), 10).await;
    let read = database.store.read(&scope(1), 0, 100).await.unwrap();
    let bound = Timestamp::from_micros(database.clock.now().as_micros() + 1).unwrap();
    database.clock.set(bound);
    database.append(&scope(1), 3).await;
    let prune = Prune::new(bound, basis("retention"), database.act(&scope(1)));
    let pruned = database.store.prune(&scope(1), &prune).await.unwrap();
    assert_eq!(pruned.below, 10);
    database.sweep_all().await;
    index.index(&read).await.unwrap();
    let mut admin = database.connect().await;
    let documents: i64 = query_scalar("SELECT count(*) FROM audit.index_documents")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert_eq!(documents, 0);
    let rest = database.store.read(&scope(1), 10, 100).await.unwrap();
    index.index(&rest).await.unwrap();
    let through = index.indexed_through(&scope(1)).await.unwrap();
    assert_eq!(through, 10 + rest.len() as u64);
}

#[tokio::test]
async fn a_sweep_waits_for_an_indexer_that_begins_with_the_tenant_and_removes_what_it_wrote() {
    let database = Database::open().await;
    database.append(&scope(1), 10).await;
    let bound = Timestamp::from_micros(database.clock.now().as_micros() + 1).unwrap();
    database.clock.set(bound);
    database.append(&scope(1), 3).await;
    let mut indexer = database.connect().await;
    let tenant = tenant(1);
    indexer
        .execute(&*format!(
            "BEGIN;
             INSERT INTO audit.index_progress (tenant_id, through) VALUES ('{tenant}', 0);
             INSERT INTO audit.index_documents
             VALUES ('{tenant}', 3, now(), now(), 0, 'w'), ('{tenant}', 11, now(), now(), 0, 'w')"
        ))
        .await
        .unwrap();
    let prune = Prune::new(bound, basis("retention"), database.act(&scope(1)));
    database.store.prune(&scope(1), &prune).await.unwrap();
    let store = database.store.clone();
    let sweeping = tokio::spawn(async move { store.sweep().await });
    let mut admin = database.connect().await;
    until_one_waits(&mut admin).await;
    indexer.execute("COMMIT").await.unwrap();
    sweeping.await.unwrap().unwrap();
    database.sweep_all().await;
    let left: Vec<i64> = query_scalar("SELECT seq FROM audit.index_documents")
        .fetch_all(&mut admin)
        .await
        .unwrap();
    assert_eq!(left, [11]);
}
