//! Signed checkpoints: who signs them, and where they are kept.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use audit_tlog::checkpoint::{Checkpoint, FIRST_EPOCH, Origin};
use audit_tlog::note::{Note, SigningKey, VerifyingKey};
use audit_tlog::{Hash, Timestamp};

use crate::error::{Error, ErrorKind, Result};
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
        }
    }

    /// The first over a change of keys: it is never dropped for a larger one.
    #[must_use]
    pub fn handover(mut self, is_handover: bool) -> Self {
        self.is_handover = is_handover;
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
    if signer != Some(fence) {
        return Err(Error::new(
            ErrorKind::Refused,
            "another signer has taken over",
        ));
    }
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

/// Signs heads: one key pair under each tenant's name.
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
    /// `key` entry says so in each, and the first checkpoint over it bears both signatures. The earlier
    /// key is needed until that was done in every log, and never again.
    #[must_use]
    pub fn succeeding(mut self, origin: Origin, key: SigningKey) -> Self {
        self.earlier.push((origin, key));
        self
    }

    /// The configured origin.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    fn key(&self, tenant: TenantId) -> Result<SigningKey> {
        named(&self.key, &self.origin, tenant)
    }

    /// The earlier key that signed a checkpoint of a tenant.
    pub(crate) fn earlier(&self, tenant: TenantId, note: &Note) -> Result<Option<SigningKey>> {
        for (origin, key) in &self.earlier {
            let key = named(key, origin, tenant)?;
            if Checkpoint::open(note, std::slice::from_ref(key.verifying_key())).is_ok() {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// The key that a tenant's checkpoints are verified with.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the origin can't be a key's name.
    pub fn verifying_key(&self, tenant: TenantId) -> Result<VerifyingKey> {
        Ok(self.key(tenant)?.verifying_key().clone())
    }

    /// Signs a head.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the origin can't be a key's name.
    pub fn sign(&self, head: &Head, now: Timestamp) -> Result<SignedCheckpoint> {
        self.sign_with(head, None, now)
    }

    /// Signs a head; with an earlier key too, under the present name, over a change of keys.
    pub(crate) fn sign_with(
        &self,
        head: &Head,
        earlier: Option<&SigningKey>,
        now: Timestamp,
    ) -> Result<SignedCheckpoint> {
        let key = self.key(head.tenant)?;
        let earlier = earlier.map(|earlier| earlier.renamed(key.name()));
        let earlier = earlier.transpose().map_err(unsigned)?;
        let mut keys = vec![&key];
        // With nothing changed but the name, it is the same key.
        keys.extend(
            earlier
                .as_ref()
                .filter(|e| e.verifying_key() != key.verifying_key()),
        );
        let root = head.tree.root();
        let note = Checkpoint::new(key.name(), head.size(), root)
            .and_then(|checkpoint| checkpoint.sign(&keys))
            .map_err(unsigned)?;
        let signed = SignedCheckpoint::new(head.size(), root, note.encode(), now);
        Ok(signed.handover(earlier.is_some()))
    }
}

fn named(key: &SigningKey, origin: &Origin, tenant: TenantId) -> Result<SigningKey> {
    let name = origin.for_tenant(tenant.into_uuid(), FIRST_EPOCH);
    key.renamed(&name).map_err(unsigned)
}

fn unsigned(fault: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "the checkpoint can't be signed").with_source(fault)
}
