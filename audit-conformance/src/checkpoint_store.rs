//! The contract of [`CheckpointStore`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use audit_core::{
    CheckpointStore, Clock as _, ErrorKind, Fence, Hash, LogStore, ManualClock, Permissions,
    SignedCheckpoint, TenantId, TenantScope, TenantStore, Timestamp,
};

use crate::fixture::{append, events, kind, new_tenant, seconds_after, time, trusted};

const TTL: Duration = Duration::from_secs(15);

/// Opens a checkpoint store for a contract.
pub trait CheckpointStoreHarness: Sized + Send + Sync + 'static {
    /// The store of logs and checkpoints, or a wrapper around one.
    type Store: CheckpointStore + LogStore + TenantStore;

    /// Opens a store of this contract's own: it has one signer.
    fn open() -> impl Future<Output = Self> + Send;

    /// The store.
    fn store(&self) -> &Self::Store;

    /// Its clock.
    fn clock(&self) -> Arc<ManualClock>;
}

fn checkpoint(size: u64, signed_at: Timestamp) -> SignedCheckpoint {
    let root = Hash([size as u8; 32]);
    SignedCheckpoint::new(size, root, format!("a note of {size}\n"), signed_at)
}

/// A log of so many entries, and the fence of its signer.
async fn signed_log<H: CheckpointStoreHarness>(harness: &H, n: usize) -> (TenantId, Fence) {
    let store = harness.store();
    let tenant = new_tenant(store).await;
    append(store, tenant, events(n)).await;
    let fence = store.lease("one", TTL).await.expect("a lease");
    (tenant, fence.expect("the only signer"))
}

/// And its fence makes an earlier one void.
pub async fn there_is_one_signer_at_a_time<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, first) = signed_log(&harness, 3).await;
    let scope = trusted(tenant);
    assert_eq!(store.lease("two", TTL).await.expect("an answer"), None);
    assert_eq!(store.lease("one", TTL).await.expect("renewed"), Some(first));
    harness.clock().advance_micros(16_000_000);
    let second = store.lease("two", TTL).await.expect("a lease");
    let second = second.expect("the first one's has ended");
    assert!(second > first);
    assert_eq!(store.lease("one", TTL).await.expect("an answer"), None);
    let now = harness.clock().now();
    let late = store.publish(first, tenant, &checkpoint(3, now)).await;
    assert_eq!(kind(late), Some(ErrorKind::Refused));
    assert_eq!(store.latest(&scope).await.expect("an answer"), None);
    store
        .publish(second, tenant, &checkpoint(3, now))
        .await
        .expect("published");
}

/// With every byte of the note.
pub async fn a_checkpoint_is_read_as_it_was_published<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, fence) = signed_log(&harness, 5).await;
    let scope = trusted(tenant);
    assert_eq!(store.latest(&scope).await.expect("an answer"), None);
    let mut published = checkpoint(5, time("2026-11-24T03:00:00.123456Z"));
    published.note = "audit.example/log\n5\nAAAA\n\n\u{2014} audit.example/log AAAA\n".into();
    for _ in 0..2 {
        store
            .publish(fence, tenant, &published)
            .await
            .expect("published");
    }
    assert_eq!(
        store.latest(&scope).await.expect("an answer"),
        Some(published)
    );
}

/// A log has one root at each size.
pub async fn a_checkpoint_of_another_root_is_a_conflict<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, fence) = signed_log(&harness, 5).await;
    let first = checkpoint(4, harness.clock().now());
    store
        .publish(fence, tenant, &first)
        .await
        .expect("published");
    let mut other = first.clone();
    other.root = Hash([99; 32]);
    let refused = store.publish(fence, tenant, &other).await;
    assert_eq!(kind(refused), Some(ErrorKind::Conflict));
    let latest = store.latest(&trusted(tenant)).await.expect("an answer");
    assert_eq!(latest, Some(first));
}

/// A head that the log doesn't hold is not published.
pub async fn a_checkpoint_is_never_larger_than_the_log<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, fence) = signed_log(&harness, 5).await;
    let larger = checkpoint(6, harness.clock().now());
    let refused = store.publish(fence, tenant, &larger).await;
    assert_eq!(kind(refused), Some(ErrorKind::Refused));
    let latest = store.latest(&trusted(tenant)).await.expect("an answer");
    assert_eq!(latest, None);
}

/// Smaller ones of the same hour go; those of other hours stay.
pub async fn of_each_hour_the_largest_checkpoint_stays<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, fence) = signed_log(&harness, 9).await;
    let scope = trusted(tenant);
    let start = time("2026-11-24T03:00:00Z");
    // Sizes, and minutes after the start.
    for (size, minutes) in [(1, 0), (2, 30), (3, 59), (4, 60), (6, 61), (8, 121)] {
        let at = seconds_after(start, minutes * 60);
        store
            .publish(fence, tenant, &checkpoint(size, at))
            .await
            .expect("published");
    }
    for (asked, found) in [(0, 3), (3, 3), (4, 6), (6, 6), (7, 8), (8, 8)] {
        let covering = store.covering(&scope, asked).await.expect("an answer");
        assert_eq!(covering.map(|c| c.size), Some(found), "{asked}");
    }
    assert_eq!(store.covering(&scope, 9).await.expect("an answer"), None);
    let latest = store.latest(&scope).await.expect("an answer");
    assert_eq!(latest.map(|c| c.size), Some(8));
}

/// While those before and behind it in the hour go as ever.
pub async fn a_checkpoint_over_a_change_of_keys_is_never_dropped<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, fence) = signed_log(&harness, 9).await;
    let scope = trusted(tenant);
    let start = time("2026-11-24T03:00:00Z");
    for size in 1..=6 {
        let at = seconds_after(start, size as i64);
        let over = checkpoint(size, at).handover(size % 3 == 0);
        store
            .publish(fence, tenant, &over)
            .await
            .expect("published");
    }
    let mut found = Vec::new();
    while let Some(next) = store
        .covering(&scope, found.last().map_or(0, |(size, _)| size + 1))
        .await
        .expect("an answer")
    {
        found.push((next.size, next.is_handover));
    }
    assert_eq!(found, [(3, true), (6, true)]);
}

/// Nor without the permission.
pub async fn no_tenant_reads_anothers_checkpoints<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, fence) = signed_log(&harness, 2).await;
    let other = new_tenant(store).await;
    append(store, other, events(2)).await;
    store
        .publish(fence, tenant, &checkpoint(2, harness.clock().now()))
        .await
        .expect("published");
    let scope = trusted(other);
    assert_eq!(store.latest(&scope).await.expect("an answer"), None);
    assert_eq!(store.covering(&scope, 0).await.expect("an answer"), None);
    let nothing: TenantScope = trusted(tenant).only(Permissions::NONE);
    let forbidden = Some(ErrorKind::Forbidden);
    assert_eq!(kind(store.latest(&nothing).await), forbidden);
    assert_eq!(kind(store.covering(&nothing, 0).await), forbidden);
}
