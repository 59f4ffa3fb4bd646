//! The contract of [`DeploymentStore`].

use std::time::Duration;

use audit_core::tlog::{HeadOpening, Salt, merkle};
use audit_core::{
    CheckpointStore as _, Clock as _, DeploymentStore, ErrorKind, Fence, Hash, LogStore as _,
    Permissions, SignedCheckpoint, TenantHead, TenantId, TenantStatus, Timestamp,
};

use crate::checkpoint_store::CheckpointStoreHarness;
use crate::fixture::{append, events, kind, new_tenant, set_status, tenant_id, time, trusted};

const TTL: Duration = Duration::from_secs(15);

/// The fence of the one signer.
async fn signer<H: CheckpointStoreHarness>(harness: &H) -> Fence {
    let fence = harness.store().lease("one", TTL).await.expect("a lease");
    fence.expect("the only signer")
}

/// A tenant with a signed checkpoint of so many entries.
async fn signed<H: CheckpointStoreHarness>(harness: &H, fence: Fence, n: usize) -> TenantHead {
    let store = harness.store();
    let tenant = new_tenant(store).await;
    grown(harness, fence, tenant, n).await
}

/// The tenant's log grows, and its new head is signed.
async fn grown<H: CheckpointStoreHarness>(
    harness: &H,
    fence: Fence,
    tenant: TenantId,
    n: usize,
) -> TenantHead {
    let store = harness.store();
    append(store, tenant, events(n)).await;
    let head = store.head(&trusted(tenant)).await.expect("a head");
    let (size, root) = (head.size(), head.tree.root());
    let checkpoint = SignedCheckpoint::new(size, root, "a note\n".into(), harness.clock().now());
    store
        .publish(fence, tenant, &checkpoint)
        .await
        .expect("published");
    TenantHead { tenant, size, root }
}

/// An opening of a head whose salt is told by a number.
fn salted(head: &TenantHead, n: u16) -> HeadOpening {
    let mut salt = [0; 16];
    salt[..2].copy_from_slice(&n.to_be_bytes());
    head.salted(Salt(salt))
}

/// All heads that are not committed to, asked for in pages of this size.
async fn uncommitted(store: &dyn DeploymentStore, limit: usize) -> Vec<TenantHead> {
    let (mut after, mut heads) = (None, Vec::new());
    loop {
        let found = store.uncommitted_heads(after, limit).await.expect("heads");
        assert!(found.heads.len() <= limit);
        heads.extend(found.heads);
        after = found.next;
        if after.is_none() {
            return heads;
        }
    }
}

/// In pages of any size, by the ids of the tenants; one without a checkpoint has none.
pub async fn heads_that_are_not_committed_to_are_told_in_pages<H: CheckpointStoreHarness>()
where
    H::Store: DeploymentStore,
{
    let harness = H::open().await;
    let (store, fence) = (harness.store(), signer(&harness).await);
    let mut heads = Vec::new();
    for n in 1..=5 {
        heads.push(signed(&harness, fence, n).await);
        append(store, new_tenant(store).await, events(1)).await;
    }
    heads.sort_by_key(|head| head.tenant);
    for limit in [1, 2, 3, 9, 10, 11, 1_000] {
        assert_eq!(uncommitted(store, limit).await, heads, "{limit}");
    }
    // Whoever is closed by now had that head.
    set_status(store, heads[2].tenant, TenantStatus::Suspended).await;
    assert_eq!(uncommitted(store, 3).await, heads);
}

/// Until it grows and that is signed; growth alone is none.
pub async fn a_head_that_was_committed_to_is_not_told_again<H: CheckpointStoreHarness>()
where
    H::Store: DeploymentStore,
{
    let harness = H::open().await;
    let (store, fence) = (harness.store(), signer(&harness).await);
    let idle = signed(&harness, fence, 3).await;
    let busy = signed(&harness, fence, 2).await;
    let openings = [salted(&busy, 1), salted(&idle, 2)];
    store
        .commit_heads(fence, 0, &openings)
        .await
        .expect("committed");
    assert_eq!(uncommitted(store, 10).await, []);
    append(store, idle.tenant, events(1)).await;
    assert_eq!(uncommitted(store, 10).await, []);
    let later = grown(&harness, fence, busy.tenant, 4).await;
    assert_eq!(uncommitted(store, 10).await, [later]);
    store
        .commit_heads(fence, 2, &[salted(&later, 3)])
        .await
        .expect("committed");
    assert_eq!(uncommitted(store, 10).await, []);
}

/// By the one signer, behind the size that it knows, of tenants that there are.
pub async fn heads_are_committed_to_all_or_none<H: CheckpointStoreHarness>()
where
    H::Store: DeploymentStore,
{
    let harness = H::open().await;
    let (store, fence) = (harness.store(), signer(&harness).await);
    let head = signed(&harness, fence, 3).await;
    let nobodys = TenantHead {
        tenant: tenant_id(),
        ..head
    };
    let good = salted(&head, 1);
    let commit = async |fence, size, openings: &[HeadOpening]| {
        let outcome = store.commit_heads(fence, size, openings).await;
        kind(outcome)
    };
    let with_nobodys = [good, salted(&nobodys, 2)];
    let unknown = Some(ErrorKind::UnknownTenant);
    assert_eq!(commit(fence, 0, &with_nobodys).await, unknown);
    let conflict = Some(ErrorKind::Conflict);
    assert_eq!(commit(fence, 1, &[good]).await, conflict);
    let refused = Some(ErrorKind::Refused);
    assert_eq!(commit(Fence(fence.0 + 1), 0, &[good]).await, refused);
    assert_eq!(store.deployment_size().await.expect("a size"), 0);
    assert_eq!(commit(fence, 0, &[]).await, None);
    assert_eq!(commit(fence, 0, &[good]).await, None);
    // It was stored, and the caller didn't learn it.
    assert_eq!(commit(fence, 0, &[good]).await, conflict);
    harness.clock().advance_micros(16_000_000);
    let second = store.lease("two", TTL).await.expect("a lease");
    let second = second.expect("the first one's has ended");
    let again = salted(&grown(&harness, second, head.tenant, 1).await, 3);
    assert_eq!(commit(fence, 1, &[again]).await, refused);
    assert_eq!(commit(second, 1, &[again]).await, None);
    assert_eq!(store.deployment_size().await.expect("a size"), 2);
}

/// In whatever steps they came; and beyond them there is nothing.
pub async fn the_tree_is_that_of_the_leaves<H: CheckpointStoreHarness>()
where
    H::Store: DeploymentStore,
{
    let harness = H::open().await;
    let (store, fence) = (harness.store(), signer(&harness).await);
    let head = signed(&harness, fence, 3).await;
    let all: Vec<HeadOpening> = (0..700).map(|n| salted(&head, n)).collect();
    let mut size = 0;
    for end in [1, 2, 255, 256, 258, 600, 700] {
        let some = &all[size as usize..end];
        store
            .commit_heads(fence, size, some)
            .await
            .expect("committed");
        size = end as u64;
        assert_eq!(store.deployment_size().await.expect("a size"), size);
    }
    let leaves: Vec<Hash> = all.iter().map(HeadOpening::leaf_hash).collect();
    let hashes = async |level, range| store.deployment_hashes(level, range).await;
    assert_eq!(hashes(0, 0..700).await.expect("hashes"), leaves);
    assert_eq!(hashes(0, 250..260).await.expect("hashes"), leaves[250..260]);
    assert_eq!(hashes(0, 700..700).await.expect("none"), []);
    let tiles = [
        merkle::root(&leaves[..256]),
        merkle::root(&leaves[256..512]),
    ];
    assert_eq!(hashes(1, 0..2).await.expect("hashes"), tiles);
    let commitments: Vec<Hash> = all.iter().map(HeadOpening::commitment).collect();
    let found = store.commitments(254..258).await.expect("commitments");
    assert_eq!(found, commitments[254..258]);
    let missing = Some(ErrorKind::NotFound);
    for (level, range) in [
        (0, 699..701),
        (1, 1..3),
        (2, 0..1),
        (9, 0..1),
        (0, u64::MAX - 1..u64::MAX),
    ] {
        assert_eq!(
            kind(hashes(level, range.clone()).await),
            missing,
            "{level} {range:?}"
        );
    }
    assert_eq!(kind(store.commitments(699..701).await), missing);
}

/// The last one below a size: a checkpoint may cover less than the log.
pub async fn the_newest_opening_of_a_tenant_is_found<H: CheckpointStoreHarness>()
where
    H::Store: DeploymentStore,
{
    let harness = H::open().await;
    let (store, fence) = (harness.store(), signer(&harness).await);
    let first = signed(&harness, fence, 3).await;
    let other = salted(&signed(&harness, fence, 2).await, 2);
    let first_opening = salted(&first, 1);
    let later = salted(&grown(&harness, fence, first.tenant, 1).await, 3);
    store
        .commit_heads(fence, 0, &[other, first_opening, later])
        .await
        .expect("committed");
    let scope = trusted(first.tenant);
    for (below, found) in [
        (0, None),
        (1, None),
        (2, Some((1, first_opening))),
        (3, Some((2, later))),
        (u64::MAX, Some((2, later))),
    ] {
        let opening = store.head_opening(&scope, below).await.expect("an answer");
        assert_eq!(opening, found, "{below}");
    }
}

/// Nor without the permission, nor of a closed tenant.
pub async fn no_tenant_reads_anothers_opening<H: CheckpointStoreHarness>()
where
    H::Store: DeploymentStore,
{
    let harness = H::open().await;
    let (store, fence) = (harness.store(), signer(&harness).await);
    let head = signed(&harness, fence, 3).await;
    let other = new_tenant(store).await;
    store
        .commit_heads(fence, 0, &[salted(&head, 1)])
        .await
        .expect("committed");
    let foreign = store.head_opening(&trusted(other), 1).await;
    assert_eq!(foreign.expect("an answer"), None);
    let nothing = trusted(head.tenant).only(Permissions::NONE);
    let forbidden = Some(ErrorKind::Forbidden);
    assert_eq!(kind(store.head_opening(&nothing, 1).await), forbidden);
    set_status(store, head.tenant, TenantStatus::Suspended).await;
    let closed = store.head_opening(&trusted(head.tenant), 1).await;
    assert_eq!(kind(closed), Some(ErrorKind::TenantClosed));
}

fn checkpoint(size: u64, note: &str, signed_at: Timestamp) -> SignedCheckpoint {
    SignedCheckpoint::new(size, Hash([size as u8; 32]), note.to_owned(), signed_at)
}

/// A log of so many leaves.
async fn leaves<H: CheckpointStoreHarness>(harness: &H, fence: Fence, n: u16)
where
    H::Store: DeploymentStore,
{
    let head = signed(harness, fence, 1).await;
    let openings: Vec<_> = (0..n).map(|n| salted(&head, n)).collect();
    let store = harness.store();
    store
        .commit_heads(fence, 0, &openings)
        .await
        .expect("committed");
}

/// With every byte of the note, and whether the guard knew of it; one of the same size that came later was
/// signed or cosigned anew. The first may be an empty log's.
pub async fn the_newest_deployment_checkpoint_is_the_largest_that_came_last<
    H: CheckpointStoreHarness,
>()
where
    H::Store: DeploymentStore,
{
    let harness = H::open().await;
    let (store, fence) = (harness.store(), signer(&harness).await);
    leaves(&harness, fence, 5).await;
    assert_eq!(store.latest_deployment().await.expect("an answer"), None);
    let at = time("2026-11-24T03:00:00.123456Z");
    for (size, note, newest) in [
        (0, "of a log without a leaf\n", None),
        (
            3,
            "audit.example/log\n3\nAAAA\n\n\u{2014} audit.example/log AAAA\n",
            None,
        ),
        (3, "cosigned\n", None),
        (5, "larger\n", None),
        (5, "an hour later\n", None),
        (5, "an hour later\n", None),
        // Late, and of no use.
        (4, "smaller\n", Some(5)),
    ] {
        let published = checkpoint(size, note, at).guarded(size != 3);
        store
            .publish_deployment(fence, &published)
            .await
            .expect("published");
        let latest = store.latest_deployment().await.expect("an answer");
        match newest {
            None => assert_eq!(latest, Some(published)),
            Some(size) => assert_eq!(latest.map(|latest| latest.size), Some(size)),
        }
    }
}

/// Another root of a size, more leaves than there are, or one by another signer: nothing is kept.
pub async fn a_deployment_checkpoint_that_the_log_lacks_is_refused<H: CheckpointStoreHarness>()
where
    H::Store: DeploymentStore,
{
    let harness = H::open().await;
    let (store, fence) = (harness.store(), signer(&harness).await);
    leaves(&harness, fence, 5).await;
    let first = checkpoint(4, "a note\n", harness.clock().now());
    store
        .publish_deployment(fence, &first)
        .await
        .expect("published");
    let other_root = SignedCheckpoint::new(4, Hash([99; 32]), first.note.clone(), first.signed_at);
    let larger = checkpoint(6, "a note\n", first.signed_at);
    let elsewhere = Fence(fence.0 + 1);
    for (fence, checkpoint, expected) in [
        (fence, &other_root, ErrorKind::Conflict),
        (fence, &larger, ErrorKind::Refused),
        (elsewhere, &first, ErrorKind::Refused),
    ] {
        let outcome = store.publish_deployment(fence, checkpoint).await;
        assert_eq!(kind(outcome), Some(expected));
    }
    let latest = store.latest_deployment().await.expect("an answer");
    assert_eq!(latest, Some(first));
}
