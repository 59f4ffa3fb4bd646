//! Pruning and sweeping.

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_conformance::is_full;
use audit_conformance::sampled::{self, Sampled};
use audit_core::tlog::merkle;
use audit_core::{
    AuditLog, Control, Event, EventId, Kind, LogStore, Lookup, Prune, Pruned, TenantScope,
    Timestamp,
};
use rusqlite::Connection;

use crate::fixture::{DAY, Fixture, basis, event, ids, scope, tenant};

async fn prune(fixture: &Fixture, scope: &TenantScope, before: Timestamp) -> Pruned {
    let prune = Prune::new(before, basis("retention"), fixture.act(scope));
    fixture.store().prune(scope, &prune).await.unwrap()
}

#[tokio::test]
async fn a_pruned_prefix_is_gone_and_explained() {
    let mut fixture = Fixture::new();
    let old = fixture.append(&scope(1), 300).await;
    let middle = fixture.pass(DAY);
    let new = fixture.append(&scope(1), 20).await;
    let hashes = fixture.leaf_hashes(&scope(1)).await;

    let dry = Prune::new(middle, basis("retention"), fixture.act(&scope(1))).dry_run(true);
    let would = fixture.store().prune(&scope(1), &dry).await.unwrap();
    assert_eq!(
        (would.below, would.entries, would.receipt),
        (300, 300, None)
    );
    assert_eq!(
        fixture.store().head(&scope(1)).await.unwrap().pruned_below,
        0
    );

    let done = prune(&fixture, &scope(1), middle).await;
    let by = done.receipt.as_ref().unwrap().seq;
    assert_eq!((done.below, done.entries, by), (300, 300, 320));
    let entry = fixture
        .store()
        .at(&scope(1), &[by])
        .await
        .unwrap()
        .pop()
        .unwrap();
    let control = Control::parse(Kind::Prune, entry.ctl.as_deref().unwrap()).unwrap();
    let expected = Control::Prune {
        below: 300,
        root: merkle::root(&hashes[..300]),
        before: middle,
        basis: basis("retention"),
    };
    assert_eq!(control, expected);

    // The same before the rows are gone, after, and after a restart.
    for step in 0..3 {
        let store = fixture.store();
        let found = store.get(&scope(1), &ids(&old)).await.unwrap();
        assert!(
            found.iter().all(|lookup| *lookup == Lookup::Pruned { by }),
            "step {step}"
        );
        let found = store.get(&scope(1), &ids(&new)).await.unwrap();
        assert!(found.into_iter().all(|lookup| lookup.into_entry().is_ok()));
        assert_eq!(store.read(&scope(1), 0, 1).await.unwrap()[0].seq, 300);
        assert!(store.at(&scope(1), &[0, 299]).await.unwrap().is_empty());
        assert_eq!(fixture.leaf_hashes(&scope(1)).await[..320], hashes);
        let (kept, counted) = fixture.counted_both_ways(&scope(1)).await;
        assert_eq!(kept, counted);
        match step {
            0 => fixture.sweep_all().await,
            _ => fixture.reopen(),
        }
    }
    assert_eq!(
        fixture.store().head(&scope(1)).await.unwrap().swept_below,
        300
    );

    // An id that was pruned is still taken, whatever is sent under it.
    let other = Event::create("invoice", "x").id(old[3].id);
    let event = fixture.prepare(tenant(1), other);
    let batch = audit_core::Batch::new(scope(1), vec![event]);
    let again = fixture
        .store()
        .append(&[batch])
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap();
    assert!(again[0].duplicate);
    assert_eq!((again[0].seq, again[0].leaf_hash), (3, old[3].leaf_hash));

    // Nothing more to prune: nothing is written.
    let size = fixture.store().head(&scope(1)).await.unwrap().size();
    let nothing = prune(&fixture, &scope(1), middle).await;
    assert_eq!(
        (nothing.below, nothing.entries, nothing.receipt),
        (300, 0, None)
    );
    assert_eq!(fixture.store().head(&scope(1)).await.unwrap().size(), size);
}

#[tokio::test]
async fn hashes_survive_a_tile_that_is_completed_after_a_prune_into_it() {
    let mut fixture = Fixture::new();
    let mut hashes = Vec::new();
    for round in 0..9 {
        let receipts = fixture.append(&scope(1), 97).await;
        hashes = [hashes, receipts.iter().map(|r| r.leaf_hash).collect()].concat();
        let now = fixture.pass(DAY);
        let done = prune(&fixture, &scope(1), now).await;
        hashes.push(done.receipt.unwrap().leaf_hash);
        fixture.sweep_all().await;
        if round % 3 == 0 {
            fixture.reopen();
        }
        assert_eq!(
            fixture.leaf_hashes(&scope(1)).await,
            hashes,
            "round {round}"
        );
        let head = fixture.store().head(&scope(1)).await.unwrap();
        assert_eq!(head.tree.root(), merkle::root(&hashes));
    }
    let conn = Connection::open(fixture.folder.path().join("audit.db")).unwrap();
    let count = |table: &str| -> i64 {
        conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get(0))
            .unwrap()
    };
    assert_eq!(count("entries"), 1, "the last prune's entry is left");
    assert!(count("kept_leaves") < 256);
}

#[tokio::test]
async fn a_required_consumer_holds_a_prune_back() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 50).await;
    let now = fixture.pass(DAY);
    fixture
        .store()
        .advance(tenant(1), "hooks", true, 10)
        .await
        .unwrap();
    fixture
        .store()
        .advance(tenant(1), "cache", false, 2)
        .await
        .unwrap();
    assert_eq!(prune(&fixture, &scope(1), now).await.below, 10);
    fixture
        .store()
        .advance(tenant(1), "hooks", true, 5)
        .await
        .unwrap();
    assert_eq!(
        fixture.store().cursor(tenant(1), "hooks").await.unwrap(),
        10
    );
    fixture
        .store()
        .advance(tenant(1), "hooks", true, 40)
        .await
        .unwrap();
    let done = prune(&fixture, &scope(1), now).await;
    assert_eq!((done.below, done.entries), (40, 30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prunes_appends_and_sweeps_go_on_at_once() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 200).await;
    let mut bounds = Vec::new();
    for _ in 0..4 {
        bounds.push(fixture.pass(DAY));
        fixture.append(&scope(1), 50).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for before in bounds {
        let store = fixture.store().clone();
        let prune = Prune::new(before, basis("retention"), fixture.act(&scope(1)));
        tasks.spawn(async move { store.prune(&scope(1), &prune).await.unwrap().entries });
    }
    let batches: Vec<_> = (0..20).map(|_| fixture.batch(&scope(1), 9)).collect();
    let store = fixture.store().clone();
    let appends = tokio::spawn(async move {
        for batch in batches {
            store
                .append(&[batch])
                .await
                .unwrap()
                .pop()
                .unwrap()
                .unwrap();
            store.sweep().await.unwrap();
        }
    });
    let pruned: u64 = tasks.join_all().await.into_iter().sum();
    appends.await.unwrap();
    let head = fixture.store().head(&scope(1)).await.unwrap();
    assert_eq!((pruned, head.pruned_below), (350, 350));
    let (kept, counted) = fixture.counted_both_ways(&scope(1)).await;
    assert_eq!(kept, counted);
}

#[tokio::test]
async fn swept_pages_go_back_to_the_file_system() {
    let fixture = Fixture::new();
    for _ in 0..10 {
        fixture.append(&scope(1), 500).await;
    }
    let path = fixture.folder.path().join("audit.db");
    let now = fixture.pass(DAY);
    prune(&fixture, &scope(1), now).await;
    // Once the write-ahead log is emptied, the file has its size.
    fixture.sweep_all().await;
    let after = std::fs::metadata(&path).unwrap().len();
    assert!(after < 3 << 20, "{after} bytes are left");
}

/// 20,000 of 40,000 entries, 500,000 of 1,000,000 with `AUDIT_TEST_FULL=1`. What stays of a pruned one is
/// its id and its leaf hash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_a_log_is_pruned_its_space_is_given_back_and_the_other_half_is_proved() {
    /// Free pages that stay, which what is appended next fills.
    const SPARE: u64 = 1 << 20;
    let half = if is_full() { 500_000 } else { 20_000 };
    let fixture = Fixture::new();
    let store = Arc::new(fixture.store().clone());
    let builder = AuditLog::builder(store.clone()).clock(fixture.clock.clone());
    let log = sampled::signed(builder, store.clone());
    let workers = log.start();
    let reader = log.tenant(scope(1));
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let fill = async || {
        let mut some: Vec<EventId> = Vec::new();
        for from in (0..half).step_by(1_000) {
            let events = (from..from + 1_000).map(event).collect();
            let receipts = reader.record_all(events).await.unwrap();
            some.extend(receipts.iter().step_by(half / 100).map(|r| r.id));
        }
        some
    };
    fill().await;
    let middle = fixture.pass(DAY);
    let sample = fill().await;
    let sampled = Sampled::of(&log, tenant(1), sample).await;

    let path = fixture.folder.path().join("audit.db");
    let conn = Connection::open(&path).unwrap();
    let pragma = |name| -> u64 {
        let value = conn.pragma_query_value(None, name, |r| r.get::<_, i64>(0));
        value.unwrap().unsigned_abs()
    };
    // Also of what is in the write-ahead log still.
    let before = pragma("page_count") * pragma("page_size");
    let pruned = reader.prune(middle, basis("retention"), None, false).await;
    let pruned = pruned.unwrap();
    let expected = (half as u64, half as u64);
    assert_eq!((pruned.below, pruned.entries), expected);
    let length = || std::fs::metadata(&path).unwrap().len();
    let deadline = Instant::now() + Duration::from_secs(120);
    // Of entries as small as these, ids are about a quarter.
    while length() > before * 3 / 4 + SPARE {
        assert!(Instant::now() < deadline, "{} of {before}", length());
        fixture.sweep_all().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "{half} of {} pruned: {before} bytes before, {} after",
        2 * half,
        length()
    );
    sampled.still_hold(&log).await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}
