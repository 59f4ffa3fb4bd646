//! Signed checkpoints: who signs them, and where they are kept.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use audit_tlog::checkpoint::{Checkpoint, Origin};
use audit_tlog::note::{SigningKey, VerifyingKey};
use audit_tlog::{Hash, Timestamp};

use crate::error::{Error, ErrorKind, Result};
use crate::guard::GuardedHead;
use crate::id::TenantId;
use crate::scope::TenantScope;
use crate::seal::Head;

/// A signed head of a tenant's log: a C2SP tlog-checkpoint in a C2SP signed note.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SignedCheckpoint {
    /// The number of entries that it covers.
    pub size: u64,
    /// The root of the tree of that size.
    pub root: Hash,
    /// The note, with its signatures.
    pub note: String,
    /// When it was signed, by the signer's clock.
    pub signed_at: Timestamp,
    /// Whether it is the first over a change of keys, which both keys sign.
    pub is_handover: bool,
    /// Whether the guard knew of it before it was kept. Told of the deployment log's only.
    pub is_guarded: bool,
}

impl SignedCheckpoint {
    /// A checkpoint, for a third-party store.
    pub fn new(size: u64, root: Hash, note: String, signed_at: Timestamp) -> Self {
        Self {
            size,
            root,
            note,
            signed_at,
            is_handover: false,
            is_guarded: false,
        }
    }

    /// The first over a change of keys: it is never dropped for a larger one.
    #[must_use]
    pub fn handover(mut self, is_handover: bool) -> Self {
        self.is_handover = is_handover;
        self
    }

    /// The guard knew of it before: a guard that knows of no head of the deployment log has lost it then.
    #[must_use]
    pub fn guarded(mut self, is_guarded: bool) -> Self {
        self.is_guarded = is_guarded;
        self
    }

    /// The beginning of the UTC hour in which it was signed, in microseconds: of each hour a store
    /// keeps the largest checkpoint only, and those [over a change of keys](Self::is_handover).
    pub fn hour(&self) -> i64 {
        self.signed_at.as_micros().div_euclid(Self::HOUR) * Self::HOUR
    }

    /// An hour, in microseconds.
    pub const HOUR: i64 = 3_600_000_000;
}

/// An entry of a log that says that its key changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// The entry's position.
    pub seq: u64,
    /// The verifier key before.
    pub old: String,
    /// The verifier key from here on.
    pub new: String,
}

/// An entry of a log that says that it was continued after a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochStart {
    /// The entry's position.
    pub seq: u64,
    /// The epoch that begins with it.
    pub epoch: u64,
}

/// That its bearer is the signer. A later signer's is larger, and makes earlier ones void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

/// Where signed checkpoints are kept, and the lease that makes one process the signer.
///
/// There are never two of one size with different roots, and none that is larger than the log.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait CheckpointStore: Debug + Send + Sync + 'static {
    /// Makes `holder` the signer for `ttl` from now on, by the store's clock, or for `ttl` longer when
    /// it is already; its fence stays the same then. None while another one's lease lasts.
    async fn lease(&self, holder: &str, ttl: Duration) -> Result<Option<Fence>>;

    /// Keeps a checkpoint of a tenant, and drops smaller ones that were signed in the same hour, but
    /// for those [over a change of keys](SignedCheckpoint::is_handover). Of one that it has already it
    /// keeps the first.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) when another signer has taken over, or the log is smaller than
    /// the checkpoint; [`Conflict`](ErrorKind::Conflict) when there is one of this size with another
    /// root. Nothing is kept then.
    async fn publish(
        &self,
        fence: Fence,
        tenant: TenantId,
        checkpoint: &SignedCheckpoint,
    ) -> Result<()>;

    /// The largest checkpoint. Needs `read`.
    async fn latest(&self, scope: &TenantScope) -> Result<Option<SignedCheckpoint>>;

    /// The smallest checkpoint that covers so many entries at least. Needs `read`.
    async fn covering(&self, scope: &TenantScope, size: u64) -> Result<Option<SignedCheckpoint>>;

    /// The changes of the key that the log declares, oldest first, of entries that were pruned too.
    /// Needs `read`.
    async fn key_changes(&self, scope: &TenantScope) -> Result<Vec<KeyChange>>;

    /// The epochs that the log declares, oldest first, of entries that were pruned too. None of a log in
    /// its first epoch, which no entry begins. Needs `read`.
    async fn epochs(&self, scope: &TenantScope) -> Result<Vec<EpochStart>>;
}

/// Who signs, and for how long: what a store keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The signer.
    pub holder: String,
    /// Its fence.
    pub fence: Fence,
    /// When another one may take over.
    pub until: Timestamp,
}

impl Lease {
    /// What [`CheckpointStore::lease`] decides for `holder`, for every store: the lease to be kept in
    /// place of the `present` one, or none while that one is another's and lasts. The first fence
    /// is 1.
    pub fn taken(
        present: Option<&Self>,
        holder: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Option<Self> {
        let fence = match present {
            Some(own) if own.holder == holder => own.fence,
            Some(other) if other.until > now => return None,
            Some(other) => Fence(other.fence.0 + 1),
            None => Fence(1),
        };
        let ttl = i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX);
        let until = now.as_micros().saturating_add(ttl);
        Some(Self {
            holder: holder.to_owned(),
            fence,
            until: Timestamp::saturating_from_micros(until),
        })
    }
}

/// Refuses a signer that another one took over from.
pub(crate) fn admit_signer(fence: Fence, signer: Option<Fence>) -> Result<()> {
    if signer == Some(fence) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Refused,
        "another signer has taken over",
    ))
}

/// The refusals of [`CheckpointStore::publish`], which every store words alike.
///
/// # Errors
/// See [`CheckpointStore::publish`]. `signer` is the present fence, `size` the log's, `known` the root
/// of the checkpoint of the same size that there is.
pub fn admit_checkpoint(
    checkpoint: &SignedCheckpoint,
    fence: Fence,
    signer: Option<Fence>,
    size: u64,
    known: Option<Hash>,
) -> Result<()> {
    admit_signer(fence, signer)?;
    if checkpoint.size > size {
        return Err(Error::new(
            ErrorKind::Refused,
            "the checkpoint is larger than the log",
        ));
    }
    if known.is_some_and(|root| root != checkpoint.root) {
        return Err(Error::new(
            ErrorKind::Conflict,
            "there is a checkpoint of this size with another root",
        ));
    }
    Ok(())
}

/// Signs heads: one key pair under each tenant's name, which tells the log's epoch from its second on.
#[derive(Debug)]
pub struct Signer {
    origin: Origin,
    key: SigningKey,
    earlier: Vec<(Origin, SigningKey)>,
}

impl Signer {
    /// A signer with this key, whose own name doesn't matter: it signs under `origin` followed by
    /// each tenant's id.
    pub fn new(origin: Origin, key: SigningKey) -> Self {
        Self {
            origin,
            key,
            earlier: Vec::new(),
        }
    }

    /// Takes over logs whose heads were signed with an earlier key, or under an earlier origin: a
    /// `key` entry says so in each, and the checkpoint right behind it bears both signatures. The
    /// earlier key is needed until that was done in every log, and never again.
    #[must_use]
    pub fn succeeding(mut self, origin: Origin, key: SigningKey) -> Self {
        self.earlier.push((origin, key));
        self
    }

    /// The configured origin.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn key(&self, tenant: TenantId, epoch: u64) -> Result<SigningKey> {
        named(&self.key, &self.origin, tenant, epoch)
    }

    /// The keys that a tenant's checkpoints of an epoch may be signed with, the present one first. They
    /// come in the same order for every epoch.
    pub(crate) fn keys(&self, tenant: TenantId, epoch: u64) -> Result<Vec<SigningKey>> {
        let earlier = self.earlier.iter();
        let earlier = earlier.map(|(origin, key)| named(key, origin, tenant, epoch));
        let present = self.key(tenant, epoch);
        std::iter::once(present).chain(earlier).collect()
    }

    /// The key that a tenant's checkpoints of an epoch are verified with.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the origin can't be a key's name.
    pub fn verifying_key(&self, tenant: TenantId, epoch: u64) -> Result<VerifyingKey> {
        Ok(self.key(tenant, epoch)?.verifying_key().clone())
    }

    /// Signs a head of an epoch.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the origin can't be a key's name.
    pub fn sign(&self, head: &Head, epoch: u64, now: Timestamp) -> Result<SignedCheckpoint> {
        let key = self.key(head.tenant, epoch)?;
        sign(head.size(), head.tree.root(), &[&key], now)
    }

    /// The key that the deployment log's checkpoints of an epoch are verified with.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the origin can't be a key's name.
    pub fn deployment_key(&self, epoch: u64) -> Result<VerifyingKey> {
        let key = self.key.renamed(&self.origin.for_deployment(epoch));
        Ok(key.map_err(unsigned)?.verifying_key().clone())
    }

    /// Signs a head of the deployment log: with the present key and with the
    /// [earlier ones](Self::succeeding), under the present name in the head's epoch, so that whoever
    /// knows one of them goes on verifying while the key changes.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the origin can't be a key's name.
    pub fn sign_deployment(&self, head: &GuardedHead, now: Timestamp) -> Result<SignedCheckpoint> {
        let name = self.origin.for_deployment(head.epoch);
        let earlier = self.earlier.iter().map(|(_, key)| key);
        let mut keys: Vec<SigningKey> = Vec::new();
        for key in std::iter::once(&self.key).chain(earlier) {
            let key = key.renamed(&name).map_err(unsigned)?;
            if keys
                .iter()
                .all(|k| k.verifying_key() != key.verifying_key())
            {
                keys.push(key);
            }
        }
        let keys: Vec<&SigningKey> = keys.iter().collect();
        sign(head.size, head.root, &keys, now)
    }

    /// Signs the head behind an entry that says that the key changed, with both keys and under the
    /// new one's name.
    pub(crate) fn sign_handover(
        size: u64,
        root: Hash,
        (old, new): &(SigningKey, SigningKey),
        now: Timestamp,
    ) -> Result<SignedCheckpoint> {
        let old = old.renamed(new.name()).map_err(unsigned)?;
        let mut keys = vec![new];
        // With nothing changed but the name, it is the same key.
        keys.extend((old.verifying_key() != new.verifying_key()).then_some(&old));
        Ok(sign(size, root, &keys, now)?.handover(true))
    }
}

fn sign(size: u64, root: Hash, keys: &[&SigningKey], now: Timestamp) -> Result<SignedCheckpoint> {
    let name = keys.first().map_or("", |key| key.name());
    let note = Checkpoint::new(name, size, root)
        .and_then(|checkpoint| checkpoint.sign(keys))
        .map_err(unsigned)?;
    Ok(SignedCheckpoint::new(size, root, note.encode(), now))
}

fn named(key: &SigningKey, origin: &Origin, tenant: TenantId, epoch: u64) -> Result<SigningKey> {
    let name = origin.for_tenant(tenant.into_uuid(), epoch);
    key.renamed(&name).map_err(unsigned)
}

fn unsigned(fault: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "the checkpoint can't be signed").with_source(fault)
}
