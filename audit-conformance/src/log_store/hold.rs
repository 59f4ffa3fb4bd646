use std::sync::Arc;

use audit_core::{
    Erasure, Error, ErrorKind, LogStore, Prune, Retention, RetentionStore as _, TenantId, Timestamp,
};

use super::LogStoreHarness;
use crate::fixture::{
    act, append, basis, event, events, everything, hold, kind, new_tenant, release, said,
    seconds_after, trusted,
};

fn erasure(tenant: TenantId, ids: Vec<audit_core::EventId>) -> Erasure {
    Erasure::new(ids, basis("gdpr-17"), act(tenant))
}

fn prune(tenant: TenantId, before: Timestamp) -> Prune {
    Prune::new(before, basis("retention"), act(tenant))
}

/// A refusal, which must name what refuses.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, names: &[&str]) {
    let error = result.expect_err("a refusal");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    for name in names {
        assert!(error.message().contains(name), "{error} names {name}");
    }
}

/// Also a dry run, and also when there is nothing to destroy; the refusal names the hold. When it is
/// released, both go on.
pub async fn a_legal_hold_refuses_erasures_and_prunes<H: LogStoreHarness>() {
    let harness = H::open().await;
    let (store, tenants) = (harness.store(), harness.tenants());
    let tenant = new_tenant(tenants).await;
    let scope = trusted(tenant);
    let receipts = append(store, tenant, events(3)).await;
    let first = hold(tenants, tenant, "case 7/2026").await;
    let second = hold(tenants, tenant, "another").await;
    let before = everything(store, tenant).await;

    let prune_all = prune(tenant, Timestamp::MAX);
    let erasure = erasure(tenant, vec![receipts[1].id]);
    let id = first.id.to_string();
    let names = [first.name.as_str(), &id];
    refused(store.erase(&scope, &erasure).await, &names);
    refused(store.prune(&scope, &prune_all).await, &names);
    let dry_run = prune_all.clone().dry_run(true);
    refused(store.prune(&scope, &dry_run).await, &names);
    refused(
        store.prune(&scope, &prune(tenant, Timestamp::MIN)).await,
        &names,
    );
    let nothing = Erasure::new(Vec::new(), basis("gdpr-17"), act(tenant));
    refused(store.erase(&scope, &nothing).await, &names);
    assert_eq!(everything(store, tenant).await, before);
    // Appends go on.
    append(store, tenant, vec![event(9)]).await;

    // Each of them holds.
    release(tenants, tenant, &first).await;
    refused(store.erase(&scope, &erasure).await, &["another"]);
    refused(store.prune(&scope, &prune_all).await, &["another"]);
    release(tenants, tenant, &second).await;
    let erased = store.erase(&scope, &erasure).await.expect("erased");
    assert_eq!(erased.entries, 1);
    let pruned = store.prune(&scope, &prune_all).await.expect("pruned");
    assert_eq!(pruned.entries, 9);
}

/// A hold is one tenant's.
pub async fn a_hold_of_one_tenant_leaves_others_alone<H: LogStoreHarness>() {
    let harness = H::open().await;
    let (store, tenants) = (harness.store(), harness.tenants());
    let (held, other) = (new_tenant(tenants).await, new_tenant(tenants).await);
    hold(tenants, held, "case 7").await;
    let retention = Retention::forever().minimum_days(30);
    let set = tenants.set_retention(held, &retention, &said(held)).await;
    assert!(set.expect("set"));
    let receipts = append(store, other, events(2)).await;
    let erasure = erasure(other, vec![receipts[0].id]);
    let erased = store.erase(&trusted(other), &erasure).await;
    assert_eq!(erased.expect("erased").entries, 1);
    let pruned = store
        .prune(&trusted(other), &prune(other, Timestamp::MAX))
        .await;
    assert_eq!(pruned.expect("pruned").entries, 3);
}

/// It is gone for every reader already; only its room is given back.
pub async fn what_was_pruned_before_a_hold_is_swept<H: LogStoreHarness>() {
    let harness = H::open().await;
    let (store, tenants) = (harness.store(), harness.tenants());
    let tenant = new_tenant(tenants).await;
    append(store, tenant, events(5)).await;
    let pruned = store
        .prune(&trusted(tenant), &prune(tenant, Timestamp::MAX))
        .await;
    assert_eq!(pruned.expect("pruned").below, 5);
    hold(tenants, tenant, "case 7").await;
    let deadline = std::time::Instant::now() + crate::fixture::DEADLINE;
    // Contracts that share the database sweep, too.
    while store
        .head(&trusted(tenant))
        .await
        .expect("a head")
        .swept_below
        < 5
    {
        store.sweep().await.expect("a step");
        assert!(std::time::Instant::now() < deadline, "it is not swept");
    }
}

/// Whoever asks, and in a dry run too; the refusal names the setting and the latest time. An erasure
/// is not bound by it.
pub async fn nothing_younger_than_the_minimum_is_pruned<H: LogStoreHarness>() {
    let harness = H::open().await;
    let (store, tenants) = (harness.store(), harness.tenants());
    let tenant = new_tenant(tenants).await;
    let scope = trusted(tenant);
    let receipts = append(store, tenant, events(2)).await;
    let retention = Retention::forever().minimum_days(2);
    let set = tenants
        .set_retention(tenant, &retention, &said(tenant))
        .await;
    assert!(set.expect("set"));
    let accepted = receipts[1].created_at;
    let wanted = prune(tenant, seconds_after(accepted, 1));
    refused(store.prune(&scope, &wanted).await, &["minimum_days is 2"]);
    let dry_run = wanted.clone().dry_run(true);
    refused(store.prune(&scope, &dry_run).await, &["minimum_days is 2"]);
    let erased = store
        .erase(&scope, &erasure(tenant, vec![receipts[0].id]))
        .await;
    assert_eq!(erased.expect("erased").entries, 1);

    let Some(clock) = harness.clock() else { return };
    let now = audit_core::Clock::now(&*clock);
    let latest = seconds_after(now, -2 * 86_400);
    let later = Timestamp::from_micros(latest.as_micros() + 1).expect("in range");
    let refusal = store.prune(&scope, &prune(tenant, later)).await;
    refused(refusal, &[&latest.to_string()]);
    let allowed = store.prune(&scope, &prune(tenant, latest)).await;
    assert_eq!(allowed.expect("an answer").entries, 0);
    clock.advance_micros(2 * 86_400 * 1_000_000 + 1_000_000);
    let pruned = store.prune(&scope, &wanted).await.expect("pruned");
    assert!(pruned.entries >= 2, "{pruned:?}");
}

/// Never half: whatever went, went before the hold was there, and its explanation stands before the
/// hold's event.
pub async fn a_hold_comes_before_an_erasure_or_a_prune_or_after_it<H: LogStoreHarness>() {
    let harness = Arc::new(H::open().await);
    for round in 0..6 {
        let tenant = new_tenant(harness.tenants()).await;
        let receipts = append(harness.store(), tenant, events(4)).await;
        let placed = {
            let harness = harness.clone();
            tokio::spawn(async move { hold(harness.tenants(), tenant, "case 7").await })
        };
        let erased = {
            let (harness, id) = (harness.clone(), receipts[3].id);
            tokio::spawn(async move {
                let erasure = erasure(tenant, vec![id]);
                harness.store().erase(&trusted(tenant), &erasure).await
            })
        };
        let pruned = {
            let (harness, before) = (harness.clone(), receipts[0].created_at);
            tokio::spawn(async move {
                let prune = prune(tenant, seconds_after(before, round % 2));
                harness.store().prune(&trusted(tenant), &prune).await
            })
        };
        placed.await.expect("a holder");
        let erased = erased.await.expect("an eraser");
        let pruned = pruned.await.expect("a pruner");
        let entries = everything(harness.store(), tenant).await;
        let held_at = entries
            .iter()
            .find(|entry| entry.fields.reason.as_deref() == Some("asked to"))
            .map(|entry| entry.seq);
        for outcome in [
            erased.map(|e| e.receipts),
            pruned.map(|p| p.receipt.into_iter().collect()),
        ] {
            match outcome {
                // A prune that came later than the hold can't have taken its event.
                Ok(receipts) => assert!(receipts.iter().all(|r| Some(r.seq) < held_at)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Refused, "{error}"),
            }
        }
        let after = harness
            .store()
            .erase(&trusted(tenant), &erasure(tenant, vec![receipts[3].id]))
            .await;
        assert_eq!(kind(after), Some(ErrorKind::Refused));
    }
}
