use std::collections::HashMap;
use std::sync::Arc;

use audit_core::{
    Counter, Erasure, LogStore, Mark, Prune, Tally, TenantId, TenantStatus, Timestamp,
};
use tokio::time::Instant;

use super::LogStoreHarness;
use crate::fixture::{
    DEADLINE, act, append, basis, events, everything, new_tenant, set_status, trusted, varied,
};

async fn assert_counted(store: &dyn LogStore, tenant: TenantId) {
    let mut tally = Tally::default();
    for entry in everything(store, tenant).await {
        let f = &entry.fields;
        tally.add(
            entry.created_at.utc_day(),
            f.action_type,
            f.severity,
            f.outcome,
        );
    }
    let recount: Vec<Counter> = tally.counters().collect();
    let all = i32::MIN..i32::MAX;
    let mut counters = store
        .counters(&trusted(tenant), all)
        .await
        .expect("counters");
    counters.retain(|c| c.count > 0);
    counters.sort_unstable();
    assert_eq!(counters, recount);
}

/// Through appends, repeats, conflicts, erasures and prunes, over midnight.
pub async fn counters_equal_a_recount<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let mut first = Vec::new();
    for n in 0..12 {
        let receipts = append(store, tenant, vec![varied(n), varied(n + 1)]).await;
        first.push(receipts[0].clone());
        if let Some(clock) = harness.clock() {
            clock.advance_micros(6 * 3_600 * 1_000_000);
        }
    }
    assert_counted(store, tenant).await;
    append(store, tenant, vec![varied(0).id(first[0].id)]).await;
    let conflicting = crate::fixture::batch(tenant, vec![varied(3), varied(1).id(first[0].id)]);
    store
        .append(&[conflicting])
        .await
        .expect("outcomes")
        .remove(0)
        .expect_err("a conflict");
    assert_counted(store, tenant).await;
    let erasure = Erasure::new(vec![first[3].id], basis("gdpr-17"), act(tenant));
    store
        .erase(&trusted(tenant), &erasure)
        .await
        .expect("erased");
    assert_counted(store, tenant).await;
    let prune = Prune::new(first[7].created_at, basis("retention"), act(tenant));
    store.prune(&trusted(tenant), &prune).await.expect("pruned");
    assert_counted(store, tenant).await;
    while store.sweep().await.expect("swept") {}
    assert_counted(store, tenant).await;

    // Only the days that were asked for.
    let day = first[9].created_at.utc_day();
    let counters = store
        .counters(&trusted(tenant), day..day + 1)
        .await
        .expect("counters");
    assert!(!counters.is_empty() && counters.iter().all(|c| c.day == day));
    assert!(
        store
            .counters(&trusted(tenant), day..day)
            .await
            .expect("none")
            .is_empty()
    );
}

/// Whoever goes from mark to mark while others append sees every tenant at its last size.
pub async fn grown_since_never_misses_an_append<H: LogStoreHarness>() {
    let harness = Arc::new(H::open().await);
    let mut tenants = Vec::new();
    for _ in 0..4 {
        tenants.push(new_tenant(harness.tenants()).await);
    }
    let mut mark = harness
        .store()
        .grown_since(Mark::default())
        .await
        .expect("grown")
        .mark;
    let appenders: Vec<_> = tenants
        .iter()
        .cycle()
        .take(8)
        .map(|&tenant| {
            let harness = harness.clone();
            tokio::spawn(async move {
                for _ in 0..15 {
                    append(harness.store(), tenant, events(2)).await;
                }
            })
        })
        .collect();
    let mut seen: HashMap<TenantId, u64> = HashMap::new();
    let deadline = Instant::now() + DEADLINE;
    while tenants.iter().any(|tenant| seen.get(tenant) != Some(&60)) {
        assert!(Instant::now() < deadline, "missed an append: {seen:?}");
        let grown = harness.store().grown_since(mark).await.expect("grown");
        assert!(grown.mark >= mark, "marks go forwards");
        mark = grown.mark;
        for (tenant, size) in grown.tenants {
            let last = seen.entry(tenant).or_default();
            *last = size.max(*last);
        }
        tokio::task::yield_now().await;
    }
    for appender in appenders {
        appender.await.expect("an appender");
    }
    // From the beginning, everything; acts on the log and on the tenant are growth too.
    let store = harness.store();
    let all = store
        .grown_since(Mark::default())
        .await
        .expect("grown")
        .tenants;
    for tenant in &tenants {
        assert!(all.contains(&(*tenant, 60)));
    }
    let mark = store
        .grown_since(Mark::default())
        .await
        .expect("grown")
        .mark;
    let prune = Prune::new(Timestamp::MAX, basis("retention"), act(tenants[0]));
    store
        .prune(&trusted(tenants[0]), &prune)
        .await
        .expect("pruned");
    set_status(harness.tenants(), tenants[1], TenantStatus::Inactive).await;
    let grown = store.grown_since(mark).await.expect("grown").tenants;
    assert!(
        grown.contains(&(tenants[0], 61)) && grown.contains(&(tenants[1], 61)),
        "{grown:?}"
    );
}

/// A late worker can't take a consumer back.
pub async fn cursors_only_go_forwards<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, other) = (
        new_tenant(harness.tenants()).await,
        new_tenant(harness.tenants()).await,
    );
    append(store, tenant, events(5)).await;
    assert_eq!(store.cursor(tenant, "archive").await.expect("a cursor"), 0);
    for (position, expected) in [(3, 3), (1, 3), (3, 3), (5, 5), (0, 5)] {
        store
            .advance(tenant, "archive", false, position)
            .await
            .expect("advanced");
        assert_eq!(
            store.cursor(tenant, "archive").await.expect("a cursor"),
            expected
        );
    }
    assert_eq!(store.cursor(tenant, "webhook").await.expect("a cursor"), 0);
    assert_eq!(store.cursor(other, "archive").await.expect("a cursor"), 0);
}

/// Growth is told after every append, whatever size the log has reached with it: 256 leaves complete
/// a tile, and a store that writes one then must not lose its place.
pub async fn grown_since_tells_growth_at_every_size<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenants = [
        new_tenant(harness.tenants()).await,
        new_tenant(harness.tenants()).await,
    ];
    // The other tenant's log makes the order of all appends run ahead of this one's positions.
    append(store, tenants[0], events(300)).await;
    let mut mark = store
        .grown_since(Mark::default())
        .await
        .expect("grown")
        .mark;
    for size in [254, 1, 1, 1, 254, 1, 1, 1] {
        append(store, tenants[1], events(size)).await;
        let grown = store.grown_since(mark).await.expect("grown");
        let told = grown
            .tenants
            .iter()
            .any(|(tenant, _)| *tenant == tenants[1]);
        assert!(told, "an append of {size} was not told");
        mark = grown.mark;
    }
}
