//! What prunes leave, partitions that go with them, and snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use audit_conformance::sampled::{self, Sampled};
use audit_conformance::{is_full, sized};
use audit_core::tlog::leaf::leaf_hash;
use audit_core::{
    AuditLog, Batch, Clock as _, Entry, ErrorKind, Event, EventId, Filter, LogStore, Prune,
    SearchIndex, Timestamp, Vacuum as _,
};
use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::PgConnection;

use crate::fixture::{Database, basis, eventually, scope, tenant, until_one_waits};

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

/// Appends entries of pages, each with 200,011 bytes of metadata.
async fn append_large(database: &Database, n: usize) {
    let large = BTreeMap::from([("text", "x".repeat(200_000))]);
    let events = (0..n).map(|i| {
        let event = Event::view("page", format!("p-{i}")).metadata(&large);
        database.prepare(tenant(1), event)
    });
    let batch = Batch::new(scope(1), events.collect());
    let outcomes = database.store.append(&[batch]).await.unwrap();
    assert!(outcomes[0].is_ok(), "{outcomes:?}");
}

/// Small ones let a scan ask for many at once, of which it then takes few: two scans at once, on one
/// connection, see nothing of what the other left unread.
#[tokio::test]
async fn a_scan_gives_large_entries_between_small_ones_once_and_whole() {
    let database = Database::open().await;
    for _ in 0..2 {
        database.append(&scope(1), 3_000).await;
        append_large(&database, 60).await;
    }
    database.append(&scope(1), 10).await;
    let snapshot = database.store.snapshot(&scope(1)).await.unwrap();
    let (all, pages) = (Filter::new(), Filter::new().resource_type("page"));
    let (all, pages) = tokio::join!(snapshot.scan(&all), snapshot.scan(&pages));
    let scan = async |scan: BoxStream<'static, audit_core::Result<Entry>>| -> Vec<(u64, usize)> {
        scan.map_ok(|entry| (entry.seq, entry.fields.raw_len()))
            .try_collect()
            .await
            .unwrap()
    };
    let (all, pages) = tokio::join!(scan(all.unwrap()), scan(pages.unwrap()));
    let seqs: Vec<u64> = all.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(seqs, (0..6_130).collect::<Vec<_>>());
    let is_large = |seq: &u64| (3_000..3_060).contains(seq) || (6_060..6_120).contains(seq);
    let expected: Vec<_> = (0..6_130)
        .filter(is_large)
        .map(|seq| (seq, 200_011))
        .collect();
    assert_eq!(pages, expected);
    let large_of_all: Vec<_> = all.into_iter().filter(|(seq, _)| is_large(seq)).collect();
    assert_eq!(large_of_all, expected);
}

#[tokio::test]
async fn a_reader_that_takes_its_time_between_large_entries_is_not_cut_off() {
    let timeout = Duration::from_secs(2);
    let database = Database::with(|options| options.statement_timeout(timeout)).await;
    database.append(&scope(1), 500).await;
    for _ in 0..10 {
        append_large(&database, 20).await;
    }
    let snapshot = database.store.snapshot(&scope(1)).await.unwrap();
    let mut scan = snapshot.scan(&Filter::new()).await.unwrap();
    for seq in 0..700 {
        if seq == 500 {
            // The reader's slowness is what is tested; the server's timer is no condition to wait on.
            tokio::time::sleep(timeout + timeout / 2).await;
        }
        assert_eq!(scan.try_next().await.unwrap().unwrap().seq, seq);
    }
    assert!(scan.try_next().await.unwrap().is_none());
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

async fn bytes(admin: &mut PgConnection, of: &str) -> i64 {
    let sql = format!("SELECT {of}");
    query_scalar(&sql).fetch_one(admin).await.unwrap()
}

/// Entries of a tenant, by the thousand; some of their ids.
async fn fill(database: &Database, n: u128, entries: usize) -> Vec<EventId> {
    let mut some = Vec::new();
    for _ in 0..entries / 1_000 {
        let receipts = database.append(&scope(n), 1_000).await;
        some.extend(receipts.iter().step_by(entries / 50).map(|r| r.id));
    }
    some
}

/// 10,000 of 20,000 entries, 100,000 of 200,000 with `AUDIT_TEST_FULL=1`. What stays of a pruned one is its
/// id and its leaf hash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_a_log_is_pruned_with_its_partition_and_the_other_half_is_proved() {
    let half = sized(100_000);
    let database = Database::open().await;
    let store = Arc::new(database.store.clone());
    let builder = AuditLog::builder(store.clone()).clock(database.clock.clone());
    let log = sampled::signed(builder, store);
    database.clock.set(at("2021-01-10T00:00:00Z"));
    fill(&database, 1, half).await;
    database.clock.set(at("2021-02-10T00:00:00Z"));
    let sample = fill(&database, 1, half).await;
    let workers = log.start();
    let sampled = Sampled::of(&log, tenant(1), sample).await;

    let mut admin = database.connect().await;
    let whole = "pg_database_size(current_database())";
    let before = bytes(&mut admin, whole).await;
    let month = bytes(&mut admin, "pg_total_relation_size('audit.events_202101')").await;
    let bound = at("2021-02-01T00:00:00Z");
    let prune = Prune::new(bound, basis("retention"), database.act(&scope(1)));
    let pruned = database.store.prune(&scope(1), &prune).await.unwrap();
    let expected = (half as u64, half as u64);
    assert_eq!((pruned.below, pruned.entries), expected);
    eventually("the partition is gone", async || {
        database.sweep_all().await;
        let left = partitions(&database).await;
        !left.contains(&"events_202101".to_owned())
    })
    .await;
    let after = bytes(&mut admin, whole).await;
    println!(
        "{half} of {} pruned: {before} bytes before, {after} after",
        2 * half
    );
    // The rows of `ids` have second versions, without what repeats are compared by.
    assert!(before - after > month / 2, "{before} {after} {month}");
    sampled.still_hold(&log).await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

/// The partition stays as large as it is. The server's vacuum makes room in it, which later entries take; to
/// give it back, all of the partition is written anew.
#[tokio::test]
async fn a_prune_within_a_partition_makes_room_for_what_comes_and_a_rewrite_gives_it_back() {
    let entries = if is_full() { 100_000 } else { 4_000 };
    let database = Database::open().await;
    database.clock.set(at("2021-01-10T00:00:00Z"));
    // By turns, so that no page holds entries of one tenant alone.
    for _ in 0..entries / 100 {
        for n in [1, 2] {
            database.append(&scope(n), 100).await;
        }
    }
    let mut admin = database.connect().await;
    let size = "pg_total_relation_size('audit.events_202101')";
    // What the server's own vacuum does once enough rows are gone; by hand, so that no moment is left to it.
    let never = "ALTER TABLE audit.events_202101 SET (autovacuum_enabled = off)";
    admin.execute(never).await.unwrap();
    let full = bytes(&mut admin, size).await;
    database.clock.set(at("2021-01-20T00:00:00Z"));
    let bound = database.clock.now();
    let prune = Prune::new(bound, basis("retention"), database.act(&scope(1)));
    let pruned = database.store.prune(&scope(1), &prune).await.unwrap();
    assert_eq!(pruned.entries, entries as u64);
    database.sweep_all().await;
    let swept = bytes(&mut admin, size).await;
    assert!(swept >= full, "{swept} of {full}");

    admin.execute("VACUUM audit.events_202101").await.unwrap();
    let vacuumed = bytes(&mut admin, size).await;
    for _ in 0..entries / 100 {
        database.append(&scope(1), 100).await;
    }
    let refilled = bytes(&mut admin, size).await;
    let bound = at("2021-01-21T00:00:00Z");
    database.clock.set(bound);
    let prune = Prune::new(bound, basis("retention"), database.act(&scope(1)));
    database.store.prune(&scope(1), &prune).await.unwrap();
    database.sweep_all().await;
    // Rows that somebody's transaction may still see, the server's own vacuum's perhaps, stay.
    let mut rewritten = full;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    // Of as many entries as are left.
    while rewritten * 100 > full * 65 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{rewritten} of {full}"
        );
        database.store.vacuum().await.unwrap();
        rewritten = bytes(&mut admin, size).await;
    }
    println!(
        "{entries} of {} in a partition: {full} bytes, swept {swept}, vacuumed {vacuumed}, as many again \
         {refilled}, one tenant pruned again and rewritten {rewritten}",
        2 * entries
    );
    // Without the room it would be half as large again; indexes make room in whole pages only.
    assert!(refilled * 100 < full * 135, "{refilled} of {full}");
}
