//! The deployment log: one log that commits to the heads of all tenants' logs, and the witnesses that
//! cosign its head.
//!
//! Its format is [`audit_tlog::deployment`]'s. Whoever signs the tenants' heads keeps this log too,
//! under the same lease: once in a period it appends a leaf for each tenant whose newest checkpoint is
//! larger than the head that was committed to last, signs the log's own head, whether it grew or not,
//! and asks the witnesses to cosign it. What an idle tenant costs is nothing.
//!
//! Where there is a [guard](crate::guard), it learns of each head before a witness or anybody else does. A
//! log that doesn't continue what the guard knows is not signed until
//! [`AuditLog::recover_deployment`](crate::AuditLog::recover_deployment) has begun a new epoch of it: the
//! same tree under another name. The tenants' logs go on meanwhile: nothing of them rests on this one.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use audit_tlog::checkpoint::{Checkpoint, FIRST_EPOCH, Origin};
use audit_tlog::leaf::Salt;
use audit_tlog::merkle::{self, subtree_root, subtrees};
use audit_tlog::note::{Note, VerifyingKey};
use audit_tlog::proof::InclusionProof;
use audit_tlog::tile::{self, Content, FULL_WIDTH, Tile, TileEdge, TileFault, parse_hashes};
use audit_tlog::witness::AddCheckpoint;
use audit_tlog::{Hash, HeadOpening};

use crate::checkpoint::{Fence, SignedCheckpoint, admit_signer};
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::run_of;
use crate::id::TenantId;
use crate::log::TenantLog;
use crate::scope::{Permission, TenantScope};
use crate::signing::{Signing, not_signed};

/// A head of a tenant's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantHead {
    /// Whose.
    pub tenant: TenantId,
    /// How many entries the log has; at least 1.
    pub size: u64,
    /// Its root.
    pub root: Hash,
}

impl TenantHead {
    /// What is committed to, with a salt of its own.
    pub fn salted(&self, salt: Salt) -> HeadOpening {
        HeadOpening {
            salt,
            tenant: self.tenant.into_uuid(),
            size: self.size,
            root: self.root,
        }
    }
}

/// The answer of [`DeploymentStore::uncommitted_heads`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uncommitted {
    /// Heads that the log doesn't commit to yet, by the ids of their tenants.
    pub heads: Vec<TenantHead>,
    /// The last tenant that was looked at; none when there are no more.
    pub next: Option<TenantId>,
}

/// Where the deployment log is kept.
///
/// It only grows: what was committed to stays, and so does every checkpoint. There are never two
/// checkpoints of one size with different roots, and none that is larger than the log.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait DeploymentStore: Debug + Send + Sync + 'static {
    /// Of the next `limit` tenants behind `after`, by their ids and whatever their status, the newest
    /// signed checkpoint of those where it is larger than the head that was committed to last. The heads
    /// are in the order of the ids; none of them is an empty log's.
    async fn uncommitted_heads(&self, after: Option<TenantId>, limit: usize)
    -> Result<Uncommitted>;

    /// Appends a leaf for each opening, in this order, to the log of `size` leaves: all of them or none.
    /// That the heads are the tenants', and none smaller than one that was committed to, is for the caller
    /// to see to. No openings are no change.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) when another signer has taken over;
    /// [`Conflict`](ErrorKind::Conflict) when the log has another size;
    /// [`UnknownTenant`](ErrorKind::UnknownTenant). Nothing is appended then.
    async fn commit_heads(&self, fence: Fence, size: u64, openings: &[HeadOpening]) -> Result<()>;

    /// How many leaves the log has.
    async fn deployment_size(&self) -> Result<u64>;

    /// Hashes of complete subtrees of 256^`level` leaves, as
    /// [`LogStore::hashes`](crate::LogStore::hashes) has them of a tenant's log.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the range reaches beyond the log.
    async fn deployment_hashes(&self, level: u8, range: Range<u64>) -> Result<Vec<Hash>>;

    /// The commitments of leaves, in their order.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the range reaches beyond the log.
    async fn commitments(&self, range: Range<u64>) -> Result<Vec<Hash>>;

    /// The last of the first `below` leaves that is of this tenant: its position, and what it commits
    /// to. None when there is none. Needs `read`.
    async fn head_opening(
        &self,
        scope: &TenantScope,
        below: u64,
    ) -> Result<Option<(u64, HeadOpening)>>;

    /// Keeps a checkpoint of the deployment log beside those that there are: one of a new size, or one of
    /// the newest's size that was signed or cosigned anew. Of an empty log, too: a new epoch may begin
    /// with that.
    ///
    /// # Errors
    /// As [`CheckpointStore::publish`](crate::CheckpointStore::publish). Nothing is kept then.
    async fn publish_deployment(&self, fence: Fence, checkpoint: &SignedCheckpoint) -> Result<()>;

    /// The largest checkpoint of the deployment log, and of those the one that was published last. None
    /// at first.
    async fn latest_deployment(&self) -> Result<Option<SignedCheckpoint>>;
}

/// Whether a tenant's newest checkpoint is to be committed to, which every store decides alike:
/// `committed` is the size of the head that was last.
pub fn is_uncommitted(newest: u64, committed: Option<u64>) -> bool {
    newest > committed.unwrap_or(0)
}

/// The refusals of [`DeploymentStore::commit_heads`], which every store words alike.
///
/// # Errors
/// See [`DeploymentStore::commit_heads`]. `signer` is the present fence, `size` the log's, `expected`
/// the caller's.
pub fn admit_commit(fence: Fence, signer: Option<Fence>, size: u64, expected: u64) -> Result<()> {
    admit_signer(fence, signer)?;
    if size == expected {
        return Ok(());
    }
    let message = format!("the deployment log has {size} leaves, not {expected}");
    Err(Error::new(ErrorKind::Conflict, message))
}

/// All hashes that were asked for.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) when a store found fewer than the range has.
pub fn all_of(found: Vec<Hash>, range: &Range<u64>) -> Result<Vec<Hash>> {
    if found.len() as u64 == range.end.saturating_sub(range.start) {
        return Ok(found);
    }
    let message = "the range reaches beyond the deployment log";
    Err(Error::new(ErrorKind::NotFound, message))
}

/// The hashes that [`grow`] needs of a log of this size: of each level those behind its last complete
/// tile, which are fewer than 256.
pub fn edge_of(size: u64) -> Vec<(u8, Range<u64>)> {
    let width = u64::from(FULL_WIDTH);
    let items = std::iter::successors(Some(size), |items| Some(items / width));
    let levels = (0..).zip(items.take_while(|items| *items > 0));
    levels
        .map(|(level, items)| (level, items / width * width..items))
        .collect()
}

/// What a log grows by: the hashes of complete subtrees of 256^level leaves, each with its level and
/// place, at level 0 those of the leaves.
///
/// `edge` are the hashes of [`edge_of`] the log's size, in that order.
///
/// # Errors
/// [`Corrupt`](ErrorKind::Corrupt) when they aren't as many.
pub fn grow(
    size: u64,
    edge: &[Vec<Hash>],
    openings: &[HeadOpening],
) -> Result<Vec<(u8, u64, Hash)>> {
    let kept = |tile: Tile| {
        let hashes = match tile.content() {
            Content::Hashes(level) => edge.get(usize::from(level)),
            Content::Entries => None,
        };
        Ok::<_, TileFault>(tile::encode_hashes(hashes.ok_or(TileFault::Node)?))
    };
    let mut edge = TileEdge::resume(size, kept).map_err(broken)?;
    let mut added = Vec::with_capacity(openings.len());
    for opening in openings {
        let leaf = opening.leaf_hash();
        added.push((0, edge.size(), leaf));
        for (full, content) in edge.push(leaf) {
            let hashes = parse_hashes(&content, full.width()).map_err(broken)?;
            if let Content::Hashes(level) = full.content() {
                added.push((level + 1, full.index(), subtree_root(&hashes)));
            }
        }
    }
    Ok(added)
}

fn broken(fault: impl std::error::Error + Send + Sync + 'static) -> Error {
    let message = "the deployment log is not what was signed";
    Error::new(ErrorKind::Corrupt, message).with_source(fault)
}

/// Somebody who cosigns the deployment log's head once it is shown to continue what they cosigned last:
/// C2SP `tlog-witness`.
#[async_trait]
pub trait Witness: Debug + Send + Sync + 'static {
    /// Whose cosignatures it answers with. The key's name tells it from others.
    fn key(&self) -> &VerifyingKey;

    /// Asks for a cosignature. A caller gives up after some seconds, so that the answer may be lost: a
    /// repeat is harmless.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it is away or what it answers can't be read.
    async fn add_checkpoint(&self, request: &AddCheckpoint) -> Result<WitnessAnswer>;
}

/// What a witness answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WitnessAnswer {
    /// Signature lines.
    Cosigned(String),
    /// The last checkpoint that it cosigned has this size (409).
    Conflict(u64),
    /// It doesn't cosign.
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says about it.
        detail: String,
    },
}

/// The deployment log of this process.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) store: Arc<dyn DeploymentStore>,
    pub(crate) witnesses: Vec<Arc<dyn Witness>>,
    /// How often it is signed.
    pub(crate) every: Duration,
}

impl Deployment {
    /// The `MTH` of a range that a proof asks for, or of all leaves of a size.
    pub(crate) async fn root_of(&self, range: Range<u64>) -> Result<Hash> {
        let mut peaks = Vec::new();
        for subtree in subtrees(range) {
            let (level, run) = run_of(&subtree);
            let hashes = self.store.deployment_hashes(level, run).await?;
            peaks.push(subtree_root(&hashes));
        }
        Ok(merkle::join_peaks(&peaks))
    }

    /// The hashes of a proof.
    pub(crate) async fn roots_of(&self, nodes: Option<Vec<Range<u64>>>) -> Result<Vec<Hash>> {
        let mut hashes = Vec::new();
        for range in nodes.unwrap_or_default() {
            hashes.push(self.root_of(range).await?);
        }
        Ok(hashes)
    }

    /// Checks that the log of this size and root continues its newest checkpoint (RFC 6962 §2.1.2).
    ///
    /// # Errors
    /// [`Corrupt`](ErrorKind::Corrupt) when it doesn't.
    pub(crate) async fn continues(
        &self,
        newest: &SignedCheckpoint,
        size: u64,
        root: &Hash,
    ) -> Result<()> {
        let nodes = merkle::consistency_nodes(newest.size, size);
        let proof = self.roots_of(nodes).await?;
        merkle::verify_consistency(newest.size, &newest.root, size, root, &proof).map_err(|fault| {
            let message = "the deployment log doesn't continue its newest checkpoint";
            Error::new(ErrorKind::Corrupt, message).with_source(fault)
        })
    }
}

/// The epoch that the log is in: the name under its newest checkpoint tells it, whatever its origin was.
///
/// # Errors
/// [`Corrupt`](ErrorKind::Corrupt) when the checkpoint is no deployment log's.
pub(crate) fn epoch_of(newest: Option<&SignedCheckpoint>) -> Result<u64> {
    let Some(newest) = newest else {
        return Ok(FIRST_EPOCH);
    };
    let note = note_of(newest)?;
    let head = Checkpoint::parse(note.text()).map_err(broken)?;
    let (_, epoch) = Origin::of_deployment(head.origin()).ok_or_else(|| {
        let message = "the deployment log's newest checkpoint has another log's name";
        Error::new(ErrorKind::Corrupt, message)
    })?;
    Ok(epoch)
}

/// A checkpoint's note.
///
/// # Errors
/// [`Corrupt`](ErrorKind::Corrupt) for any other text.
pub(crate) fn note_of(checkpoint: &SignedCheckpoint) -> Result<Note> {
    Note::parse(&checkpoint.note).map_err(broken)
}

/// A newly signed checkpoint with the cosignatures of these witnesses under the same text before it.
pub(crate) fn with_cosignatures(
    signed: &Note,
    before: Option<&Note>,
    witnesses: &[&VerifyingKey],
) -> Result<Note> {
    let mut note = signed.clone();
    let same = before.filter(|before| before.text() == signed.text());
    for line in same.iter().flat_map(|before| before.signatures()) {
        if witnesses.iter().any(|key| key.is_named_in(line)) {
            note.add(line.clone()).map_err(broken)?;
        }
    }
    Ok(note)
}

/// What the deployment log proves, and the log itself.
impl TenantLog {
    fn deployment(&self) -> Result<(&Deployment, &Signing)> {
        let inner = &self.log.inner;
        let both = inner.deployment.as_deref().zip(inner.signing.as_deref());
        both.ok_or_else(not_signed)
    }

    /// The proof that a head of this log is in the deployment log, under that one's newest checkpoint,
    /// with the cosignatures that it has: the newest head that is, for
    /// [`verify_head`](audit_tlog::verify_head). Needs `read`.
    ///
    /// Another tenant's can't be asked for, and doesn't show which of the leaves are this one's.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) while no head of this log is in it: the next one is within
    /// an hour after the log has grown. [`NotFound`](ErrorKind::NotFound) without a deployment log; what
    /// the store answers.
    pub async fn head_proof(&self) -> Result<InclusionProof> {
        let (deployment, _) = self.deployment()?;
        self.scope.require(Permission::Read)?;
        let store = &deployment.store;
        let not_yet = || {
            let message = "no head of this log is in the deployment log yet";
            Error::new(ErrorKind::Unavailable, message).with_retry_after(Duration::from_secs(60))
        };
        let latest = store.latest_deployment().await?.ok_or_else(not_yet)?;
        let found = store.head_opening(&self.scope, latest.size).await?;
        let (index, opening) = found.ok_or_else(not_yet)?;
        let nodes = merkle::inclusion_nodes(index, latest.size);
        let hashes = deployment.roots_of(nodes).await?;
        InclusionProof::new(index, hashes, note_of(&latest)?)
            .and_then(|proof| proof.with_extra(opening.to_json().into_bytes()))
            .map_err(broken)
    }

    /// The deployment log's newest checkpoint, with its cosignatures; none before the first. Needs `read`,
    /// of any tenant: the log tells how many heads were committed to, and not whose.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) without a deployment log; what the store answers.
    pub async fn deployment_checkpoint(&self) -> Result<Option<SignedCheckpoint>> {
        let (deployment, _) = self.deployment()?;
        self.scope.require(Permission::Read)?;
        deployment.store.latest_deployment().await
    }

    /// The key that verifies the deployment log's checkpoints, under the name of the epoch that it is in.
    /// Needs no permission: it is public.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) without a deployment log; what the store answers.
    pub async fn deployment_key(&self) -> Result<VerifyingKey> {
        let (deployment, signing) = self.deployment()?;
        let newest = deployment.store.latest_deployment().await?;
        signing.signer().deployment_key(epoch_of(newest.as_ref())?)
    }

    /// A tile of the deployment log, as C2SP tlog-tiles serves it, below its newest checkpoint. Needs
    /// `read`, of any tenant.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the checkpoint isn't so large, and without a deployment log;
    /// what the store answers.
    pub async fn deployment_tile(&self, wanted: &Tile) -> Result<Vec<u8>> {
        let (deployment, _) = self.deployment()?;
        self.scope.require(Permission::Read)?;
        let store = &deployment.store;
        let none = || Error::new(ErrorKind::NotFound, "the deployment log has no such tile");
        // What no checkpoint covers yet is nobody's to rely on.
        let size = store
            .latest_deployment()
            .await?
            .map_or(0, |latest| latest.size);
        let there = Tile::at(wanted.content(), wanted.index(), size);
        if there.is_none_or(|there| there.width() < wanted.width()) {
            return Err(none());
        }
        let start = wanted.index() * u64::from(FULL_WIDTH);
        let range = start..start + u64::from(wanted.width());
        match wanted.content() {
            Content::Hashes(level) => {
                let hashes = store.deployment_hashes(level, range).await?;
                Ok(tile::encode_hashes(&hashes))
            }
            Content::Entries => {
                let commitments = store.commitments(range).await?;
                let leaves = commitments.iter().map(audit_tlog::deployment::leaf_data);
                tile::encode_entries(leaves).map_err(broken)
            }
        }
    }
}
