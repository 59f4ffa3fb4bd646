use audit_core::{
    Clock as _, Erasure, Filter, LogStore as _, Lookup, Prune, SystemClock, Timestamp,
};

use super::LogStoreHarness;
use crate::fixture::{act, append, basis, event, events, everything, new_tenant, scan, trusted};

/// An answer for each id, repeated and unknown ones too.
pub async fn ids_are_looked_up_in_the_order_asked_for<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let receipts = append(store, tenant, events(4)).await;
    let unknown = SystemClock.event_id();
    let asked = [receipts[2].id, unknown, receipts[0].id, receipts[2].id];
    let found = store.get(&trusted(tenant), &asked).await.expect("answers");
    let seqs: Vec<Option<u64>> = found
        .iter()
        .map(|lookup| match lookup {
            Lookup::Found(entry) => Some(entry.seq),
            Lookup::Missing => None,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seqs, [Some(2), None, Some(0), Some(2)]);
    assert!(
        store
            .get(&trusted(tenant), &[])
            .await
            .expect("none")
            .is_empty()
    );
}

/// Positions that were never written are left out.
pub async fn positions_are_read_in_the_order_asked_for<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    append(store, tenant, events(4)).await;
    let asked = [3, 0, 99, u64::MAX, 2];
    let found = store.at(&trusted(tenant), &asked).await.expect("entries");
    assert_eq!(found.iter().map(|e| e.seq).collect::<Vec<_>>(), [3, 0, 2]);
    assert!(
        store
            .at(&trusted(tenant), &[])
            .await
            .expect("none")
            .is_empty()
    );
}

/// A consumer goes on where it stopped, and gets nothing while there is nothing.
pub async fn reading_starts_at_a_position_and_ends_at_the_head<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    assert!(store.read(&scope, 0, 10).await.expect("none").is_empty());
    append(store, tenant, events(5)).await;
    for (from, limit, expected) in [
        (0, 2, vec![0, 1]),
        (2, 2, vec![2, 3]),
        (4, 2, vec![4]),
        (5, 2, vec![]),
        (0, 9, (0..5).collect()),
    ] {
        let read = store.read(&scope, from, limit).await.expect("entries");
        assert_eq!(
            read.iter().map(|e| e.seq).collect::<Vec<u64>>(),
            expected,
            "from {from}"
        );
    }
    append(store, tenant, events(1)).await;
    let read = store.read(&scope, 5, 10).await.expect("entries");
    assert_eq!(read.iter().map(|e| e.seq).collect::<Vec<u64>>(), [5]);
}

/// Neither appends nor erasures nor prunes after it show in a snapshot.
pub async fn a_snapshot_is_one_moment<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let receipts = append(store, tenant, events(5)).await;
    let head = store.head(&scope).await.expect("a head");
    let before = everything(store, tenant).await;
    let snapshot = store.snapshot(&scope).await.expect("a snapshot");
    append(store, tenant, events(3)).await;
    let erasure = Erasure::new(vec![receipts[1].id], basis("gdpr-17"), act(tenant));
    store.erase(&scope, &erasure).await.expect("erased");
    assert_eq!(*snapshot.head(), head);
    assert_eq!(scan(&*snapshot, &Filter::new()).await, before);
    store
        .prune(
            &scope,
            &Prune::new(Timestamp::MAX, basis("retention"), act(tenant)),
        )
        .await
        .expect("pruned");
    assert_eq!(scan(&*snapshot, &Filter::new()).await, before);
    drop(snapshot);
    // Five and three, and what explains the erasure, are below the prune that is left.
    assert_eq!(
        everything(store, tenant)
            .await
            .iter()
            .map(|e| e.seq)
            .collect::<Vec<_>>(),
        [9]
    );
}

/// A scan gives what matches, oldest first.
pub async fn a_scan_filters_and_goes_oldest_first<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let events = (0..20)
        .map(|n| event(n).user(["ann", "bob"][n % 2]))
        .collect();
    append(store, tenant, events).await;
    let snapshot = store.snapshot(&trusted(tenant)).await.expect("a snapshot");
    let seqs = |entries: Vec<audit_core::Entry>| entries.iter().map(|e| e.seq).collect::<Vec<_>>();
    let bob = seqs(scan(&*snapshot, &Filter::new().user("bob")).await);
    assert_eq!(bob, (0..20).filter(|n| n % 2 == 1).collect::<Vec<_>>());
    let range = seqs(scan(&*snapshot, &Filter::new().from_seq(3).to_seq(6)).await);
    assert_eq!(range, [3, 4, 5]);
    assert!(
        scan(&*snapshot, &Filter::new().user("nobody"))
            .await
            .is_empty()
    );
}
