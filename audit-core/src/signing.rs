//! Signing in this process: the key, where checkpoints go, and whether it is this one's turn.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_tlog::checkpoint::Checkpoint;
use audit_tlog::note::{self, Note, SigningKey};
use audit_tlog::{Control, Timestamp, merkle};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::checkpoint::{CheckpointStore, Fence, SignedCheckpoint, Signer};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::roots_of;
use crate::filter::Filter;
use crate::id::{EventId, TenantId};
use crate::page::PageRequest;
use crate::prepare::Act;
use crate::scope::TenantScope;
use crate::seal::Head;
use crate::store::{Declaration, LogStore};

#[derive(Debug)]
pub(crate) struct Signing {
    signer: Signer,
    checkpoints: Arc<dyn CheckpointStore>,
    /// Tells this process from others.
    holder: String,
    clock: Arc<dyn Clock>,
    fence: Mutex<Option<Fence>>,
}

impl Signing {
    pub(crate) fn new(
        signer: Signer,
        checkpoints: Arc<dyn CheckpointStore>,
        holder: String,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            signer,
            checkpoints,
            holder,
            clock,
            fence: Mutex::new(None),
        }
    }

    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }

    pub(crate) fn checkpoints(&self) -> &dyn CheckpointStore {
        &*self.checkpoints
    }

    /// The fence under which this process signs, while it does.
    pub(crate) fn fence(&self) -> Option<Fence> {
        *self.fence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes or renews the lease, or learns that another process has it.
    pub(crate) async fn take_lease(&self, ttl: Duration) -> Result<()> {
        let lease = self.checkpoints.lease(&self.holder, ttl).await;
        let fence = lease.as_ref().ok().copied().flatten();
        *self.fence.lock().unwrap_or_else(PoisonError::into_inner) = fence;
        lease.map(drop)
    }

    /// Signs a head and keeps the checkpoint; one of this size that is there already is taken. Where an
    /// earlier key signed so far, what is signed is the head behind the entry that says that the key
    /// changed.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the head is no continuation of the newest checkpoint;
    /// [`ErrorKind::Unavailable`] when the log's newest checkpoint bears the signature of a key that
    /// is not known here, and for a head below a change of keys.
    pub(crate) async fn publish(
        &self,
        store: &dyn LogStore,
        fence: Fence,
        head: &Head,
        now: Timestamp,
    ) -> Result<SignedCheckpoint> {
        let scope = TenantScope::trusted(head.tenant, "signer");
        let mut checkpoint = None;
        if let Some(latest) = self.checkpoints.latest(&scope).await? {
            if let Some(earlier) = self.earlier(head.tenant, &latest)? {
                let head = self.change_key(store, &scope, &latest, &earlier).await?;
                continues(store, &scope, &head, &latest).await?;
                checkpoint = Some(self.signer.sign_with(&head, Some(&earlier), now)?);
            } else {
                self.check(head, &latest)?;
                if latest.size == head.size() {
                    return Ok(latest);
                }
                continues(store, &scope, head, &latest).await?;
                let covering = self.checkpoints.covering(&scope, head.size()).await?;
                if covering.is_some_and(|covering| covering.is_handover) {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "the key has changed behind this head",
                    )
                    .with_retry_after(Duration::ZERO));
                }
            }
        }
        let checkpoint = match checkpoint {
            Some(checkpoint) => checkpoint,
            None => self.signer.sign(head, now)?,
        };
        self.checkpoints
            .publish(fence, head.tenant, &checkpoint)
            .await?;
        Ok(checkpoint)
    }

    /// The earlier key that signed a checkpoint which the present one didn't.
    fn earlier(&self, tenant: TenantId, latest: &SignedCheckpoint) -> Result<Option<SigningKey>> {
        if self.is_ours(tenant, latest)? {
            return Ok(None);
        }
        match Note::parse(&latest.note) {
            Ok(note) => self.signer.earlier(tenant, &note),
            Err(_) => Ok(None),
        }
    }

    /// Writes the entry that says that the key changes, unless it is there, and returns the head behind
    /// it.
    async fn change_key(
        &self,
        store: &dyn LogStore,
        scope: &TenantScope,
        latest: &SignedCheckpoint,
        earlier: &SigningKey,
    ) -> Result<Head> {
        let tenant = scope.tenant();
        let old = earlier.verifying_key().encode();
        let new = self.signer.verifying_key(tenant)?.encode();
        // One that was begun with a third key has to be ended with it.
        let begun = Filter::new().action("log.key").from_seq(latest.size);
        let page = PageRequest::first().limit(1);
        if let Some(entry) = store.list(scope, &begun, &page).await?.items.first()
            && let Some(Control::Key { new: begun, .. }) = entry.control()
            && begun != new
        {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("the log has begun to change its key to {begun}"),
            )
            .with_tenant(tenant));
        }
        // Two signers, or one that was killed in between, write one entry; nobody else knows its id.
        let about = format!("audit-log/v1/key\n{}\n{old}\n{new}\n", latest.size);
        let secret = note::sign(&about, &[earlier]).map_err(|fault| {
            Error::new(ErrorKind::Internal, "the change of keys can't be signed").with_source(fault)
        })?;
        let mut sixteen = [0; 16];
        sixteen.copy_from_slice(&Sha256::digest(secret.encode())[..16]);
        let id = EventId::new(Uuid::new_v8(sixteen));
        let act = Act::new(scope, None, Arc::clone(&self.clock))?;
        store
            .declare(scope, &Declaration::key(id, old, new, act)?)
            .await?;
        store.head(scope).await
    }

    /// Whether the present key signed a checkpoint.
    pub(crate) fn is_ours(&self, tenant: TenantId, checkpoint: &SignedCheckpoint) -> Result<bool> {
        let key = self.signer.verifying_key(tenant)?;
        Ok(Note::parse(&checkpoint.note)
            .is_ok_and(|note| Checkpoint::open(&note, std::slice::from_ref(&key)).is_ok()))
    }

    /// Checks that a checkpoint of the log was signed by this key and, where it is of the head's size,
    /// has its root.
    ///
    /// # Errors
    /// See [`publish`](Self::publish).
    pub(crate) fn check(&self, head: &Head, latest: &SignedCheckpoint) -> Result<()> {
        if latest.size == head.size() && latest.root != head.tree.root() {
            return Err(Error::corrupt(head.tenant, head.size()));
        }
        if self.is_ours(head.tenant, latest)? {
            return Ok(());
        }
        let key = self.signer.verifying_key(head.tenant)?;
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("the log's checkpoints are signed by another key than {key}"),
        )
        .with_tenant(head.tenant))
    }
}

/// Checks that of a head and a checkpoint the larger continues the smaller (RFC 6962 §2.1.2).
async fn continues(
    store: &dyn LogStore,
    scope: &TenantScope,
    head: &Head,
    latest: &SignedCheckpoint,
) -> Result<()> {
    let mut ends = [(head.size(), head.tree.root()), (latest.size, latest.root)];
    ends.sort_unstable_by_key(|(size, _)| *size);
    let [(old, old_root), (new, new_root)] = ends;
    let nodes = merkle::consistency_nodes(old, new);
    let proof = roots_of(store, scope, nodes).await?;
    merkle::verify_consistency(old, &old_root, new, &new_root, &proof).map_err(|fault| {
        Error::corrupt(head.tenant, latest.size.min(head.size())).with_source(fault)
    })
}

pub(crate) fn not_signed() -> Error {
    Error::new(
        ErrorKind::NotFound,
        "this log's heads are not signed: no signer is configured",
    )
}
