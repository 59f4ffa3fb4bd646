//! The contract of [`CheckpointStore`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use audit_core::{
    CheckpointStore, Clock as _, Control, EpochStart, ErrorKind, Event, EventId, Fence, Filter,
    Hash, KeyChange, Kind, LogStore, ManualClock, Permission, Permissions, Prune, SignedCheckpoint,
    TenantId, TenantScope, TenantStatus, TenantStore, Timestamp,
};

use crate::fixture::{
    act, append, basis, batch, epoch, event, events, everything, key_change, kind, listed,
    new_tenant, seconds_after, set_status, tenant_id, time, trusted, try_append,
};

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

/// However often it is made; the log goes on behind it, and other logs don't know.
pub async fn a_declaration_is_one_control_entry_and_a_change_of_keys<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, fence) = signed_log(&harness, 2).await;
    let other = new_tenant(store).await;
    append(store, other, events(1)).await;
    let (scope, id) = (trusted(tenant), EventId::new(tenant_id().into_uuid()));
    assert_eq!(store.key_changes(&scope).await.expect("an answer"), []);
    let declaration = key_change(tenant, fence, id);
    let first = store.declare(&scope, &declaration).await.expect("declared");
    assert_eq!((first.id, first.seq, first.duplicate), (id, 2, false));
    let again = key_change(tenant, fence, id);
    let again = store.declare(&scope, &again).await;
    let again = again.expect("declared before");
    assert!(again.duplicate);
    assert_eq!((again.seq, again.leaf_hash), (2, first.leaf_hash));
    assert_eq!(append(store, tenant, vec![event(9)]).await[0].seq, 3);
    let found = listed(store, tenant, &Filter::new().action("log.key")).await;
    assert_eq!(found, [2]);
    let entry = &everything(store, tenant).await[2];
    assert_eq!(entry.kind, Kind::Key);
    let Some(Control::Key { old, new }) = entry.control() else {
        panic!("{entry:?}")
    };
    let changes = store.key_changes(&scope).await.expect("an answer");
    assert_eq!(changes, [KeyChange { seq: 2, old, new }]);
    let foreign = trusted(other);
    assert_eq!(everything(store, other).await.len(), 1);
    assert_eq!(store.key_changes(&foreign).await.expect("an answer"), []);
    // Pruned or not.
    let prune = Prune::new(Timestamp::MAX, basis("retention"), act(tenant));
    store.prune(&scope, &prune).await.expect("pruned");
    while store.sweep().await.expect("swept") {}
    assert_eq!(store.key_changes(&scope).await.expect("an answer"), changes);
}

/// Known for ever, in its own log only, and standing right behind the head that it continues.
pub async fn an_epoch_begins_right_behind_the_head_that_it_names<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, fence) = signed_log(&harness, 2).await;
    let other = new_tenant(store).await;
    append(store, other, events(1)).await;
    let scope = trusted(tenant);
    assert_eq!(store.epochs(&scope).await.expect("an answer"), []);
    let root = store.head(&scope).await.expect("a head").tree.root();
    // One that the log grew over.
    let late = epoch(store, tenant, fence, 2).await;
    append(store, tenant, vec![event(7)]).await;
    let refused = store.declare(&scope, &late).await;
    assert_eq!(kind(refused), Some(ErrorKind::Refused));
    assert_eq!(everything(store, tenant).await.len(), 3);
    assert_eq!(store.epochs(&scope).await.expect("an answer"), []);

    let declaration = epoch(store, tenant, fence, 2).await;
    for repeated in [false, true] {
        let receipt = store.declare(&scope, &declaration).await.expect("declared");
        assert_eq!((receipt.seq, receipt.duplicate), (3, repeated));
        append(store, tenant, vec![event(8 + usize::from(repeated))]).await;
    }
    let entry = &everything(store, tenant).await[3];
    let Some(Control::Epoch {
        epoch: number,
        size,
        root: continued,
        ..
    }) = entry.control()
    else {
        panic!("{entry:?}")
    };
    assert_eq!((number, size), (2, 3));
    assert_ne!(continued, root);
    let second = epoch(store, tenant, fence, 5).await;
    store.declare(&scope, &second).await.expect("declared");
    let epochs = [(3, 2), (6, 5)].map(|(seq, epoch)| EpochStart { seq, epoch });
    assert_eq!(store.epochs(&scope).await.expect("an answer"), epochs);
    assert_eq!(store.key_changes(&scope).await.expect("an answer"), []);
    assert_eq!(store.epochs(&trusted(other)).await.expect("an answer"), []);
    let nothing: TenantScope = trusted(tenant).only(Permissions::NONE);
    let forbidden = store.epochs(&nothing).await;
    assert_eq!(kind(forbidden), Some(ErrorKind::Forbidden));
    // Pruned or not.
    let prune = Prune::new(Timestamp::MAX, basis("retention"), act(tenant));
    store.prune(&scope, &prune).await.expect("pruned");
    while store.sweep().await.expect("swept") {}
    assert_eq!(store.epochs(&scope).await.expect("an answer"), epochs);
}

/// And nothing of it is stored.
pub async fn a_declaration_under_a_taken_id_is_a_conflict<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, fence) = signed_log(&harness, 0).await;
    let id = EventId::new(tenant_id().into_uuid());
    let taken = batch(tenant, vec![Event::view("a", "b").id(id)]);
    try_append(store, &taken).await.expect("appended");
    let declaration = key_change(tenant, fence, id);
    let refused = store.declare(&trusted(tenant), &declaration).await;
    assert_eq!(kind(refused), Some(ErrorKind::Conflict));
    assert_eq!(everything(store, tenant).await.len(), 1);
    let changes = store.key_changes(&trusted(tenant)).await;
    assert_eq!(changes.expect("an answer"), []);
}

/// Not one that another took over from, and not without the permission.
pub async fn only_the_signer_declares<H: CheckpointStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, fence) = signed_log(&harness, 1).await;
    let declaration = || key_change(tenant, fence, EventId::new(tenant_id().into_uuid()));
    let left: Vec<_> = Permission::ALL
        .into_iter()
        .filter(|p| *p != Permission::Cleanup)
        .collect();
    let without = trusted(tenant).only(Permissions::of(&left));
    let refused = store.declare(&without, &declaration()).await;
    assert_eq!(kind(refused), Some(ErrorKind::Forbidden));
    harness.clock().advance_micros(16_000_000);
    let taken = store.lease("two", TTL).await.expect("a lease");
    assert!(taken.is_some());
    let late = store.declare(&trusted(tenant), &declaration()).await;
    assert_eq!(kind(late), Some(ErrorKind::Refused));
    set_status(store, tenant, TenantStatus::Suspended).await;
    let closed = store.declare(&trusted(tenant), &declaration()).await;
    assert_eq!(kind(closed), Some(ErrorKind::TenantClosed));
    set_status(store, tenant, TenantStatus::Active).await;
    assert!(
        listed(store, tenant, &Filter::new().action("log.key"))
            .await
            .is_empty()
    );
}
