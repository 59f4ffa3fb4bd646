use audit_core::tlog::merkle;
use audit_core::{
    ActionType, Control, Erasure, ErrorKind, Event, Filter, Kind, LogStore, Lookup, PageRequest,
    Prune, Pruned, Receipt, TenantId, Timestamp,
};

use super::LogStoreHarness;
use crate::fixture::{
    act, append, basis, event, events, everything, kind, listed, new_tenant, trusted,
};

/// Appends entry by entry, each accepted a second after the last where the clock can be moved.
async fn spread<H: LogStoreHarness>(harness: &H, tenant: TenantId, n: usize) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    for n in 0..n {
        receipts.extend(append(harness.store(), tenant, vec![event(n)]).await);
        if let Some(clock) = harness.clock() {
            clock.advance_micros(1_000_000);
        }
    }
    receipts
}

fn prune(tenant: TenantId, before: Timestamp) -> Prune {
    Prune::new(before, basis("retention"), act(tenant))
}

async fn pruned(store: &dyn LogStore, tenant: TenantId, before: Timestamp) -> Pruned {
    store
        .prune(&trusted(tenant), &prune(tenant, before))
        .await
        .expect("pruned")
}

/// The first position that was accepted at or after a time.
fn first_at(receipts: &[Receipt], before: Timestamp) -> u64 {
    receipts
        .iter()
        .take_while(|r| r.created_at < before)
        .count() as u64
}

/// Exact to the entry: what was accepted before the bound goes, nothing else does.
pub async fn a_prune_takes_exactly_the_prefix<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let receipts = spread(&harness, tenant, 8).await;
    let before = receipts[5].created_at;
    let below = first_at(&receipts, before);
    assert!(below > 0, "the clock moved between appends");
    let answer = pruned(store, tenant, before).await;
    assert_eq!((answer.below, answer.entries), (below, below));
    let by = answer.receipt.expect("a control entry").seq;
    assert_eq!(by, 8);

    let left: Vec<u64> = (below..=by).collect();
    assert_eq!(listed(store, tenant, &Filter::new()).await, left);
    assert_eq!(
        listed(store, tenant, &Filter::new().to_seq(below)).await,
        Vec::<u64>::new()
    );
    let by_time = PageRequest::first().sort(audit_core::Sort::OccurredAt);
    let page = store
        .list(&scope, &Filter::new(), &by_time)
        .await
        .expect("a page");
    assert_eq!(page.items.len(), left.len());
    let seqs = |entries: &[audit_core::Entry]| entries.iter().map(|e| e.seq).collect::<Vec<_>>();
    assert_eq!(seqs(&everything(store, tenant).await), left);
    assert_eq!(seqs(&store.read(&scope, 0, 100).await.expect("read")), left);
    let at: Vec<u64> = (0..=by).collect();
    assert_eq!(seqs(&store.at(&scope, &at).await.expect("verified")), left);
    for receipt in &receipts {
        let found = store
            .get(&scope, &[receipt.id])
            .await
            .expect("verified")
            .remove(0);
        match found {
            Lookup::Found(entry) => assert!(receipt.seq >= below && entry.seq == receipt.seq),
            other => assert_eq!((other, receipt.seq < below), (Lookup::Pruned { by }, true)),
        }
    }
    // The tree keeps every leaf.
    let head = store.head(&scope).await.expect("a head");
    assert_eq!(
        (head.size(), head.pruned_below, head.pruned_by),
        (9, below, Some(by))
    );
    let hashes = store.hashes(&scope, 0, 0..9).await.expect("hashes");
    assert_eq!(hashes[0], receipts[0].leaf_hash);
    assert_eq!(merkle::root(&hashes), head.tree.root());

    // A later prune goes on from there, and takes the first one's explanation with it.
    if let Some(clock) = harness.clock() {
        clock.advance_micros(1);
    }
    let again = pruned(store, tenant, Timestamp::MAX).await;
    assert_eq!((again.below, again.entries), (9, 9 - below));
    let found = store
        .get(&scope, &[receipts[0].id])
        .await
        .expect("an answer")
        .remove(0);
    assert_eq!(found, Lookup::Pruned { by: 9 });
}

/// The control entry gives the bound that was asked for, and the tree's root at that size.
pub async fn a_prune_is_explained_by_a_control_entry<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let receipts = spread(&harness, tenant, 6).await;
    let bound = receipts[4].created_at;
    let answer = pruned(store, tenant, bound).await;
    let receipt = answer.receipt.expect("a control entry");
    let entry = store
        .get(&scope, &[receipt.id])
        .await
        .expect("verified")
        .remove(0)
        .into_entry()
        .unwrap();
    assert_eq!(
        (entry.kind, entry.fields.action.as_str()),
        (Kind::Prune, "log.prune")
    );
    assert_eq!(entry.fields.action_type, ActionType::Other);
    assert_eq!(entry.fields.reason.as_deref(), Some("request 7"));
    let hashes = store
        .hashes(&scope, 0, 0..answer.below)
        .await
        .expect("hashes");
    let said =
        Control::parse(Kind::Prune, entry.ctl.as_deref().expect("a ctl")).expect("a control");
    let expected = Control::Prune {
        below: answer.below,
        root: merkle::root(&hashes),
        before: bound,
        basis: basis("retention"),
    };
    assert_eq!(said, expected);
}

/// An id is taken for ever, and compared for as long as its content is there.
pub async fn pruned_ids_stay_duplicates<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let first = append(store, tenant, events(3)).await;
    pruned(store, tenant, Timestamp::MAX).await;
    for swept in [false, true] {
        if swept {
            while store.sweep().await.expect("swept") {}
        }
        for (receipt, repeat) in [
            (&first[0], event(0)),
            (&first[1], Event::view("d", "other")),
        ] {
            let again = append(store, tenant, vec![repeat.id(receipt.id)])
                .await
                .remove(0);
            assert!(again.duplicate);
            assert_eq!(
                (again.seq, again.leaf_hash, again.created_at),
                (receipt.seq, receipt.leaf_hash, receipt.created_at)
            );
        }
    }
    assert_eq!(
        store.head(&trusted(tenant)).await.expect("a head").size(),
        4
    );
}

/// What a required consumer has not seen yet stays.
pub async fn a_required_consumer_bounds_a_prune<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    append(store, tenant, events(6)).await;
    store
        .advance(tenant, "optional", false, 1)
        .await
        .expect("advanced");
    store
        .advance(tenant, "archive", true, 2)
        .await
        .expect("advanced");
    store
        .advance(tenant, "webhook", true, 4)
        .await
        .expect("advanced");
    let answer = pruned(store, tenant, Timestamp::MAX).await;
    assert_eq!((answer.below, answer.entries), (2, 2));
    assert_eq!(pruned(store, tenant, Timestamp::MAX).await.receipt, None);
    store
        .advance(tenant, "archive", true, 5)
        .await
        .expect("advanced");
    assert_eq!(pruned(store, tenant, Timestamp::MAX).await.below, 4);
    assert_eq!(
        store.read(&trusted(tenant), 0, 1).await.expect("read")[0].seq,
        4
    );
}

/// And takes nothing then: what was archived before an erasure must not be all that is left.
pub async fn a_prune_can_be_refused_for_an_erasure_that_came_since<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let receipts = append(store, tenant, events(6)).await;
    let archived = prune(tenant, Timestamp::MAX).unless_erased_since(6);
    append(store, tenant, events(1)).await;
    let erasure = Erasure::new(vec![receipts[2].id], basis("gdpr-17"), act(tenant));
    store.erase(&scope, &erasure).await.expect("erased");
    append(store, tenant, events(1)).await;
    let head = store.head(&scope).await.expect("a head");
    let refused = store.prune(&scope, &archived).await;
    assert_eq!(kind(refused), Some(ErrorKind::Unavailable));
    assert_eq!(store.head(&scope).await.expect("a head"), head);
    let looked = prune(tenant, Timestamp::MAX).unless_erased_since(head.size());
    let answer = store.prune(&scope, &looked).await.expect("pruned");
    assert_eq!(answer.below, head.size());
}

/// What would go if one of the required consumers had seen everything.
pub async fn a_dry_run_can_leave_a_required_consumer_out<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    append(store, tenant, events(6)).await;
    for (consumer, position) in [("archive", 2), ("webhook", 4)] {
        let advanced = store.advance(tenant, consumer, true, position).await;
        advanced.expect("advanced");
    }
    for (consumer, below) in [("archive", 4), ("webhook", 2), ("another", 2)] {
        let dry = prune(tenant, Timestamp::MAX).but_for(consumer);
        let answer = store
            .prune(&trusted(tenant), &dry)
            .await
            .expect("a dry run");
        assert_eq!((answer.below, answer.receipt), (below, None), "{consumer}");
    }
    assert_eq!(pruned(store, tenant, Timestamp::MAX).await.below, 2);
}

/// It says what would go.
pub async fn a_dry_run_of_a_prune_changes_nothing<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let receipts = spread(&harness, tenant, 5).await;
    let bound = receipts[3].created_at;
    let before = everything(store, tenant).await;
    let head = store.head(&trusted(tenant)).await.expect("a head");
    let dry = prune(tenant, bound).dry_run(true);
    let said = store
        .prune(&trusted(tenant), &dry)
        .await
        .expect("an answer");
    let below = first_at(&receipts, bound);
    assert_eq!(
        (said.below, said.entries, said.receipt),
        (below, below, None)
    );
    assert_eq!(everything(store, tenant).await, before);
    assert_eq!(store.head(&trusted(tenant)).await.expect("a head"), head);
    assert_eq!(pruned(store, tenant, bound).await.entries, said.entries);
}

/// No control entry for nothing.
pub async fn a_prune_of_nothing_writes_nothing<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let nothing = pruned(store, tenant, Timestamp::MAX).await;
    assert_eq!(
        (nothing.below, nothing.entries, nothing.receipt),
        (0, 0, None)
    );
    let receipts = append(store, tenant, events(2)).await;
    let nothing = pruned(store, tenant, receipts[0].created_at).await;
    assert_eq!(
        (nothing.below, nothing.entries, nothing.receipt),
        (0, 0, None)
    );
    assert_eq!(
        store.head(&trusted(tenant)).await.expect("a head").size(),
        2
    );
}

/// The rows go in steps; what is left, and what is known of what went, stays.
pub async fn sweeping_to_the_end_keeps_everything_else_readable<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let receipts = append(store, tenant, events(300)).await;
    store
        .advance(tenant, "archive", true, 270)
        .await
        .expect("advanced");
    assert_eq!(pruned(store, tenant, Timestamp::MAX).await.below, 270);
    let before = everything(store, tenant).await;
    let mut steps = 0;
    while store.sweep().await.expect("swept") {
        steps += 1;
        assert!(steps < 10_000, "a sweep ends");
        assert_eq!(append(store, tenant, events(1)).await.len(), 1);
        let read = store.read(&scope, 0, 1).await.expect("read");
        assert_eq!(read[0].seq, 270);
    }
    assert!(
        !store.sweep().await.expect("swept"),
        "there is nothing more to do"
    );
    let after = everything(store, tenant).await;
    assert_eq!(after[..before.len()], before);
    let seqs: Vec<u64> = before.iter().map(|e| e.seq).collect();
    assert_eq!(store.at(&scope, &seqs).await.expect("verified"), before);
    let head = store.head(&scope).await.expect("a head");
    let hashes = store
        .hashes(&scope, 0, 0..head.size())
        .await
        .expect("hashes");
    assert_eq!(merkle::root(&hashes), head.tree.root());
    assert_eq!(hashes[7], receipts[7].leaf_hash);
    assert_eq!(
        store.hashes(&scope, 1, 0..1).await.expect("hashes"),
        [merkle::root(&hashes[..256])]
    );
    let found = store
        .get(&scope, &[receipts[7].id])
        .await
        .expect("an answer")
        .remove(0);
    assert_eq!(found, Lookup::Pruned { by: 300 });
}
