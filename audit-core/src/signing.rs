//! Signing in this process: the key, where checkpoints go, and whether it is this one's turn.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_tlog::checkpoint::Checkpoint;
use audit_tlog::note::Note;
use audit_tlog::{Timestamp, merkle};

use crate::checkpoint::{CheckpointStore, Fence, SignedCheckpoint, Signer};
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::roots_of;
use crate::scope::TenantScope;
use crate::seal::Head;
use crate::store::LogStore;

#[derive(Debug)]
pub(crate) struct Signing {
    signer: Signer,
    checkpoints: Arc<dyn CheckpointStore>,
    /// Tells this process from others.
    holder: String,
    fence: Mutex<Option<Fence>>,
}

impl Signing {
    pub(crate) fn new(
        signer: Signer,
        checkpoints: Arc<dyn CheckpointStore>,
        holder: String,
    ) -> Self {
        Self {
            signer,
            checkpoints,
            holder,
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

    /// Signs a head and keeps the checkpoint; one of this size that is there already is taken.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the head is no continuation of the newest checkpoint;
    /// [`ErrorKind::Unavailable`] when the log's newest checkpoint bears another key's signature: a
    /// change of keys is an entry of the log, and not something that happens by itself.
    pub(crate) async fn publish(
        &self,
        store: &dyn LogStore,
        fence: Fence,
        head: &Head,
        now: Timestamp,
    ) -> Result<SignedCheckpoint> {
        let scope = TenantScope::trusted(head.tenant, "signer");
        if let Some(latest) = self.checkpoints.latest(&scope).await? {
            self.check(head, &latest)?;
            if latest.size == head.size() {
                return Ok(latest);
            }
            continues(store, &scope, head, &latest).await?;
        }
        let checkpoint = self.signer.sign(head, now)?;
        self.checkpoints
            .publish(fence, head.tenant, &checkpoint)
            .await?;
        Ok(checkpoint)
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
        let key = self.signer.verifying_key(head.tenant)?;
        let is_ours = Note::parse(&latest.note)
            .is_ok_and(|note| Checkpoint::open(&note, std::slice::from_ref(&key)).is_ok());
        if is_ours {
            return Ok(());
        }
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
