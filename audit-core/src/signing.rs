//! Signing in this process: the key, where checkpoints go, and whether it is this one's turn.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_tlog::checkpoint::Checkpoint;
use audit_tlog::note::{Note, SigningKey};
use audit_tlog::{Timestamp, merkle};

use crate::checkpoint::{CheckpointStore, Fence, KeyChange, SignedCheckpoint, Signer};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{root_of, roots_of};
use crate::id::TenantId;
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

    /// Signs a head and keeps the checkpoint; one of this size that is there already is taken. Where the
    /// log has another key so far, that is changed first: then what is signed is the head behind the
    /// entry that says so.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the head is no continuation of the newest checkpoint, or that one is
    /// not what was signed; [`ErrorKind::Unavailable`] when the log's key is not known here, and for a
    /// head below a change of keys.
    pub(crate) async fn publish(
        &self,
        store: &dyn LogStore,
        fence: Fence,
        head: &Head,
        now: Timestamp,
    ) -> Result<SignedCheckpoint> {
        let scope = TenantScope::trusted(head.tenant, "signer");
        let latest = self.checkpoints.latest(&scope).await?;
        let mut changes = self.checkpoints.key_changes(&scope).await?;
        if let Some(latest) = &latest {
            continues(store, &scope, head, latest).await?;
        }
        let mut standing = self.standing(head.tenant, &changes, latest.as_ref())?;
        if let Standing::Earlier(old) = &standing {
            changes.push(self.change_key(store, &scope, fence, old).await?);
            standing = self.standing(head.tenant, &changes, latest.as_ref())?;
        }
        let checkpoint = match standing {
            Standing::HandsOver { at, keys } => {
                let root = root_of(store, &scope, 0..at + 1).await?;
                Signer::sign_handover(at + 1, root, &keys, now)?
            }
            Standing::Earlier(_) => {
                return Err(Error::new(ErrorKind::Internal, "the change leads nowhere"));
            }
            Standing::Ours => match latest {
                Some(latest) if latest.size == head.size() => return Ok(latest),
                _ if changes.last().is_some_and(|last| head.size() <= last.seq) => {
                    let message = "the key has changed behind this head";
                    return Err(Error::new(ErrorKind::Unavailable, message)
                        .with_retry_after(Duration::ZERO));
                }
                _ => self.signer.sign(head, now)?,
            },
        };
        self.checkpoints
            .publish(fence, head.tenant, &checkpoint)
            .await?;
        Ok(checkpoint)
    }

    /// Writes the entry that says that the key changes to the present one.
    async fn change_key(
        &self,
        store: &dyn LogStore,
        scope: &TenantScope,
        fence: Fence,
        old: &SigningKey,
    ) -> Result<KeyChange> {
        let act = Act::new(scope, None, Arc::clone(&self.clock))?.by_system();
        let old = old.verifying_key().encode();
        let new = self.signer.verifying_key(scope.tenant())?.encode();
        let id = self.clock.event_id();
        let declaration = Declaration::key(fence, id, old.clone(), new.clone(), act)?;
        let seq = store.declare(scope, &declaration).await?.seq;
        Ok(KeyChange { seq, old, new })
    }

    /// Whose the log is, by its own entries and its newest checkpoint.
    fn standing(
        &self,
        tenant: TenantId,
        changes: &[KeyChange],
        latest: Option<&SignedCheckpoint>,
    ) -> Result<Standing> {
        let keys = self.signer.keys(tenant)?;
        let named = |vkey: &str| {
            let found = keys.iter().find(|k| k.verifying_key().encode() == vkey);
            found.cloned().ok_or_else(|| {
                let message = format!("the log's key is {vkey}, which is not known here");
                Error::new(ErrorKind::Unavailable, message).with_tenant(tenant)
            })
        };
        if let Some(last) = changes.last() {
            let new = named(&last.new)?;
            return match latest.filter(|latest| latest.size > last.seq) {
                Some(over) if is_signed(over, &new) => self.standing_of(tenant, new),
                Some(over) => Err(Error::corrupt(tenant, over.size)),
                None => Ok(Standing::HandsOver {
                    at: last.seq,
                    keys: Box::new((named(&last.old)?, new)),
                }),
            };
        }
        let Some(latest) = latest else {
            return Ok(Standing::Ours);
        };
        match keys.into_iter().find(|key| is_signed(latest, key)) {
            Some(key) => self.standing_of(tenant, key),
            None => Err(self.not_ours(tenant)?),
        }
    }

    fn not_ours(&self, tenant: TenantId) -> Result<Error> {
        let key = self.signer.verifying_key(tenant)?;
        let message = format!("the log's checkpoints are signed by another key than {key}");
        Ok(Error::new(ErrorKind::Unavailable, message).with_tenant(tenant))
    }

    fn standing_of(&self, tenant: TenantId, key: SigningKey) -> Result<Standing> {
        match *key.verifying_key() == self.signer.verifying_key(tenant)? {
            true => Ok(Standing::Ours),
            false => Ok(Standing::Earlier(Box::new(key))),
        }
    }

    /// Whether the present key signed a checkpoint, and just this one.
    pub(crate) fn is_ours(&self, tenant: TenantId, checkpoint: &SignedCheckpoint) -> Result<bool> {
        Ok(is_signed(checkpoint, &self.signer.key(tenant)?))
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
        match self.is_ours(head.tenant, latest)? {
            true => Ok(()),
            false => Err(self.not_ours(head.tenant)?),
        }
    }
}

/// Whose a log is.
enum Standing {
    /// The present key's.
    Ours,
    /// An earlier key's, which has to be changed.
    Earlier(Box<SigningKey>),
    /// An entry says that the key changed, and no checkpoint covers it yet.
    HandsOver {
        at: u64,
        keys: Box<(SigningKey, SigningKey)>,
    },
}

/// Whether a key signed a checkpoint, of the size and root that it is kept with.
fn is_signed(checkpoint: &SignedCheckpoint, key: &SigningKey) -> bool {
    let Ok(note) = Note::parse(&checkpoint.note) else {
        return false;
    };
    Checkpoint::open(&note, std::slice::from_ref(key.verifying_key())).is_ok_and(|opened| {
        opened.checkpoint.size() == checkpoint.size && opened.checkpoint.root() == checkpoint.root
    })
}

/// Checks that of a head and a checkpoint the larger continues the smaller (RFC 6962 §2.1.2). The head
/// may be an earlier one of the log, which itself is never smaller than a checkpoint.
async fn continues(
    store: &dyn LogStore,
    scope: &TenantScope,
    head: &Head,
    latest: &SignedCheckpoint,
) -> Result<()> {
    if latest.size > head.size() && latest.size > store.head(scope).await?.size() {
        let message = "the log is smaller than its newest checkpoint";
        return Err(Error::new(ErrorKind::Corrupt, message).with_tenant(head.tenant));
    }
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
