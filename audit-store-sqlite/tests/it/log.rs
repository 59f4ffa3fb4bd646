//! The log itself: hashes, statuses, erasure, counters.

use std::time::{Duration, Instant};

use audit_core::tlog::merkle;
use audit_core::{
    Batch, Erasure, ErrorKind, Event, Filter, Group, LogStore, Mark, TenantStatus, TenantStore,
    TenantUpdate,
};
use futures_util::StreamExt as _;
use rusqlite::Connection;

use crate::fixture::{DAY, Fixture, basis, event, ids, scope, tenant};

#[tokio::test]
async fn the_root_is_that_of_the_leaf_hashes() {
    let fixture = Fixture::new();
    for n in [1, 254, 1, 1, 300, 3] {
        let receipts = fixture.append(&scope(1), n).await;
        let hashes = fixture.leaf_hashes(&scope(1)).await;
        let last = receipts.last().unwrap();
        assert_eq!(last.tree_size, hashes.len() as u64);
        assert_eq!(last.root, merkle::root(&hashes));
    }
    let hashes = fixture.leaf_hashes(&scope(1)).await;
    let tiles = fixture.store().hashes(&scope(1), 1, 0..2).await.unwrap();
    assert_eq!(
        tiles,
        [
            merkle::root(&hashes[..256]),
            merkle::root(&hashes[256..512])
        ]
    );
    assert_eq!(
        fixture
            .store()
            .hashes(&scope(1), 0, 250..260)
            .await
            .unwrap(),
        hashes[250..260]
    );
    for (level, range) in [(0, 0..561), (1, 0..3), (2, 0..1), (9, 0..1)] {
        let error = fixture
            .store()
            .hashes(&scope(1), level, range)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn hashes_of_the_third_level_follow_from_the_tiles() {
    let fixture = Fixture::new();
    // Small events, since there are many.
    let size = 65_536 + 700;
    let mut sent = 0;
    while sent < size {
        let n = 2_000.min(size - sent);
        let events = (0..n)
            .map(|i| fixture.prepare(tenant(1), Event::view("page", format!("{i}"))))
            .collect();
        let batch = Batch::new(scope(1), events).creating_tenant();
        fixture
            .store()
            .append(&[batch])
            .await
            .unwrap()
            .pop()
            .unwrap()
            .unwrap();
        sent += n;
    }
    let hashes = fixture.leaf_hashes(&scope(1)).await;
    let top = fixture.store().hashes(&scope(1), 2, 0..1).await.unwrap();
    assert_eq!(top, [merkle::root(&hashes[..65_536])]);
    let head = fixture.store().head(&scope(1)).await.unwrap();
    assert_eq!(head.tree.root(), merkle::root(&hashes));
}

#[tokio::test]
async fn a_status_refuses_what_it_says() {
    let fixture = Fixture::new();
    let receipts = fixture.append(&scope(1), 1).await;
    let cases = [
        (TenantStatus::Inactive, Some(ErrorKind::TenantClosed), None),
        (
            TenantStatus::Suspended,
            Some(ErrorKind::TenantClosed),
            Some(ErrorKind::TenantClosed),
        ),
        (TenantStatus::Active, None, None),
        (
            TenantStatus::Deleted,
            Some(ErrorKind::TenantDeleted),
            Some(ErrorKind::TenantDeleted),
        ),
    ];
    for (status, write, read) in cases {
        let event = Event::update("tenant", "1").action("tenant.status");
        let event = fixture.prepare(tenant(1), event);
        let update = TenantUpdate::default().status(status);
        let changed = fixture
            .store()
            .update_tenant(tenant(1), &update, &event)
            .await
            .unwrap();
        assert_eq!(changed.status, status);
        let wrote = fixture.try_append(&scope(1), 1).await.map_err(|e| e.kind());
        assert_eq!(wrote.err(), write, "{status}");
        let got = fixture
            .store()
            .get(&scope(1), &ids(&receipts))
            .await
            .map_err(|e| e.kind());
        assert_eq!(got.err(), read, "{status}");
    }
    let again = fixture.prepare(tenant(1), event(0));
    let revive = TenantUpdate::default().status(TenantStatus::Active);
    let error = fixture
        .store()
        .update_tenant(tenant(1), &revive, &again)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TenantDeleted);
    let taken = fixture.store().tenant(tenant(1)).await.unwrap().unwrap();
    let error = fixture.store().create_tenant(&taken).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TenantDeleted);
}

#[tokio::test]
async fn erased_content_is_gone_from_the_files_and_the_leaf_stays() {
    let fixture = Fixture::new();
    let secret = "hunter2-hunter2-hunter2";
    let noisy = event(1)
        .user(secret)
        .reason(secret)
        .metadata(&serde_json::json!({"k": secret}));
    let event = fixture.prepare(tenant(1), noisy);
    let id = event.id();
    let batch = Batch::new(scope(1), vec![event]).creating_tenant();
    fixture.append(&scope(1), 3).await;
    fixture
        .store()
        .append(std::slice::from_ref(&batch))
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap();
    let before = fixture.leaf_hashes(&scope(1)).await;

    let erasure = Erasure::new(vec![id, id], basis("gdpr-17"), fixture.act(&scope(1)));
    let erased = fixture.store().erase(&scope(1), &erasure).await.unwrap();
    assert_eq!((erased.entries, erased.receipts.len()), (1, 1));
    assert_eq!(erased.receipts[0].seq, 4);

    let entry = fixture
        .store()
        .get(&scope(1), &[id])
        .await
        .unwrap()
        .pop()
        .unwrap()
        .into_entry()
        .unwrap();
    assert_eq!(entry.fields.user_id, None);
    assert!(entry.erased.contains(&Group::Metadata));
    assert_eq!(fixture.leaf_hashes(&scope(1)).await[..4], before);
    for file in std::fs::read_dir(fixture.folder.path()).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let found = bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "{} still has it", path.display());
    }

    // What was erased can't be compared with, and isn't erased twice.
    let again = fixture
        .store()
        .append(&[batch])
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap();
    assert!(again[0].duplicate);
    let nothing = fixture.store().erase(&scope(1), &erasure).await.unwrap();
    assert_eq!((nothing.entries, nothing.receipts.len()), (0, 0));
}

#[tokio::test]
async fn counters_are_a_count_over_the_rows() {
    let fixture = Fixture::new();
    let mut all = Vec::new();
    for round in 0..6 {
        all.extend(fixture.append(&scope(1), 40 + round * 17).await);
        fixture.append(&scope(2), 3).await;
        let middle = fixture.pass(DAY / 2);
        let some: Vec<_> = all.iter().step_by(7).map(|r| r.id).collect();
        let erasure =
            Erasure::new(some, basis("gdpr-17"), fixture.act(&scope(1))).groups(&[Group::Actor]);
        fixture.store().erase(&scope(1), &erasure).await.unwrap();
        if round % 2 == 1 {
            let before = audit_core::Timestamp::from_micros(middle.as_micros() - DAY).unwrap();
            let prune = audit_core::Prune::new(before, basis("retention"), fixture.act(&scope(1)));
            fixture.store().prune(&scope(1), &prune).await.unwrap();
        }
        for tenant in [1, 2] {
            let (kept, counted) = fixture.counted_both_ways(&scope(tenant)).await;
            assert_eq!(kept, counted, "tenant {tenant}, round {round}");
        }
        fixture.store().sweep().await.unwrap();
    }
}

#[tokio::test]
async fn a_changed_row_is_corrupt_wherever_it_is_read() {
    let fixture = Fixture::new();
    let receipts = fixture.append(&scope(1), 3).await;
    let conn = Connection::open(fixture.folder.path().join("audit.db")).unwrap();
    conn.execute(
        "UPDATE entries SET user_id = 'someone else' WHERE seq = 1",
        [],
    )
    .unwrap();
    let store = fixture.store();
    let errors = [
        store.get(&scope(1), &[receipts[1].id]).await.unwrap_err(),
        store.at(&scope(1), &[0, 1]).await.unwrap_err(),
        store
            .list(&scope(1), &Default::default(), &Default::default())
            .await
            .unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!(
            (error.tenant(), error.position()),
            (Some(tenant(1)), Some(1))
        );
    }
}

#[tokio::test]
async fn no_tenant_reads_anothers_log() {
    let fixture = Fixture::new();
    let receipts = fixture.append(&scope(1), 5).await;
    fixture.append(&scope(2), 1).await;
    let store = fixture.store();
    let found = store.get(&scope(2), &ids(&receipts)).await.unwrap();
    assert!(
        found
            .iter()
            .all(|lookup| *lookup == audit_core::Lookup::Missing)
    );
    assert!(store.at(&scope(2), &[1, 2, 3]).await.unwrap().is_empty());
    let erasure = Erasure::new(ids(&receipts), basis("gdpr-17"), fixture.act(&scope(2)));
    assert_eq!(store.erase(&scope(2), &erasure).await.unwrap().entries, 0);
    let error = store.head(&scope(3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownTenant);
}

#[tokio::test]
async fn every_growth_is_told() {
    let fixture = Fixture::new();
    let start = fixture.store().grown_since(Mark::default()).await.unwrap();
    assert!(start.tenants.is_empty());
    fixture.append(&scope(1), 5).await;
    fixture.append(&scope(2), 6).await;
    let grown = fixture.store().grown_since(start.mark).await.unwrap();
    assert_eq!(grown.tenants, [(tenant(1), 5), (tenant(2), 6)]);
    fixture.append(&scope(2), 2_500).await;
    let many = fixture.store().grown_since(grown.mark).await.unwrap();
    assert_eq!(many.tenants, [(tenant(2), 2_506)]);
    let none = fixture.store().grown_since(many.mark).await.unwrap();
    assert_eq!((none.tenants, none.mark), (Vec::new(), many.mark));
}

#[tokio::test]
async fn what_a_reader_kept_in_the_write_ahead_log_goes_when_it_lets_go() {
    let fixture = Fixture::new();
    let secret = "hunter2-hunter2-hunter2";
    let event = fixture.prepare(tenant(1), event(1).user(secret));
    let id = event.id();
    let batch = Batch::new(scope(1), vec![event]).creating_tenant();
    fixture
        .store()
        .append(&[batch])
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap();
    let snapshot = fixture.store().snapshot(&scope(1)).await.unwrap();
    let erasure = Erasure::new(vec![id], basis("gdpr-17"), fixture.act(&scope(1)));
    fixture.store().erase(&scope(1), &erasure).await.unwrap();
    // In the log's file instead when the write-ahead log was emptied before the snapshot.
    let holds = || {
        ["audit.db", "audit.db-wal"].iter().any(|name| {
            let bytes = std::fs::read(fixture.folder.path().join(name)).unwrap();
            bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes())
        })
    };
    assert!(holds(), "the snapshot still reads it");
    drop(snapshot);
    let deadline = Instant::now() + Duration::from_secs(20);
    while holds() {
        assert!(Instant::now() < deadline, "still there");
        fixture.store().sweep().await.unwrap();
    }
}

#[tokio::test]
async fn a_read_of_large_entries_is_bounded_by_bytes() {
    let fixture = Fixture::new();
    let large = "x".repeat(250_000);
    for _ in 0..10 {
        let events = (0..10)
            .map(|_| {
                let event = Event::view("doc", "d").metadata(&large);
                fixture.prepare(tenant(1), event)
            })
            .collect();
        let batch = Batch::new(scope(1), events).creating_tenant();
        fixture.store().append(&[batch]).await.unwrap();
    }
    let (mut next, mut reads) = (0, 0);
    while next < 100 {
        let entries = fixture.store().read(&scope(1), next, 1_000).await.unwrap();
        assert_eq!(entries[0].seq, next);
        next = entries.last().unwrap().seq + 1;
        reads += 1;
    }
    assert_eq!(reads, 2);
    let snapshot = fixture.store().snapshot(&scope(1)).await.unwrap();
    let scanned: Vec<u64> = snapshot
        .scan(&Filter::new())
        .await
        .unwrap()
        .map(|entry| entry.unwrap().seq)
        .collect()
        .await;
    assert_eq!(scanned, (0..100).collect::<Vec<_>>());
}
