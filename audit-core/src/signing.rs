//! Signing in this process: the key, where checkpoints go, and whether it is this one's turn.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_tlog::checkpoint::Checkpoint;
use audit_tlog::note::{Note, SigningKey, VerifyingKey};
use audit_tlog::{Basis, Timestamp, merkle};

use crate::checkpoint::{CheckpointStore, EpochStart, Fence, KeyChange, SignedCheckpoint, Signer};
use crate::clock::Clock;
use crate::entry::Receipt;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{check_change, check_epoch, each_control_entry, root_of, roots_of};
use crate::filter::Filter;
use crate::guard::{GuardedHead, Sentry, present_epoch};
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
    sentry: Option<Arc<Sentry>>,
}

impl Signing {
    pub(crate) fn new(
        signer: Signer,
        checkpoints: Arc<dyn CheckpointStore>,
        holder: String,
        clock: Arc<dyn Clock>,
        sentry: Option<Arc<Sentry>>,
    ) -> Self {
        Self {
            signer,
            checkpoints,
            holder,
            clock,
            fence: Mutex::new(None),
            sentry,
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
    /// entry that says so. The guard, where there is one, learns of it first.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the head is no continuation of the newest checkpoint, or that one is
    /// not what was signed; [`ErrorKind::Unavailable`] when the guard stops the log or can't be told, when
    /// the log's key is not known here, and for a head below a change of keys or of the epoch.
    pub(crate) async fn publish(
        &self,
        store: &dyn LogStore,
        fence: Fence,
        head: &Head,
        now: Timestamp,
    ) -> Result<SignedCheckpoint> {
        let scope = TenantScope::trusted(head.tenant, "signer");
        let latest = self.checkpoints.latest(&scope).await?;
        let mut course = self.course(&scope).await?;
        if let Some(latest) = &latest {
            continues(store, &scope, head, latest).await?;
        }
        let mut guarded = None;
        if let Some(sentry) = &self.sentry {
            guarded = sentry
                .pass(&scope, head, latest.as_ref(), &course.epochs)
                .await?;
        }
        let mut standing = match self.standing(head.tenant, &course, latest.as_ref()) {
            Ok(standing) => standing,
            Err(error) => return Err(self.explained(store, &scope, error).await),
        };
        if let Standing::Earlier(old) = &standing {
            let change = self
                .change_key(store, &scope, fence, old, course.epoch())
                .await?;
            course.changes.push(change);
            standing = self.standing(head.tenant, &course, latest.as_ref())?;
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
                _ if course.last().is_some_and(|last| head.size() <= last) => {
                    let message = "the key or the epoch has changed behind this head";
                    return Err(Error::new(ErrorKind::Unavailable, message)
                        .with_retry_after(Duration::ZERO));
                }
                _ => self.signer.sign(head, course.epoch(), now)?,
            },
        };
        if let Some(sentry) = &self.sentry {
            let signed = GuardedHead {
                epoch: course.epoch(),
                size: checkpoint.size,
                root: checkpoint.root,
            };
            sentry.advance(&scope, guarded, signed).await?;
        }
        self.checkpoints
            .publish(fence, head.tenant, &checkpoint)
            .await?;
        Ok(checkpoint)
    }

    /// What a log says of its keys and epochs.
    async fn course(&self, scope: &TenantScope) -> Result<Course> {
        Ok(Course {
            changes: self.checkpoints.key_changes(scope).await?,
            epochs: self.checkpoints.epochs(scope).await?,
        })
    }

    /// The key that verifies the checkpoints of a log as it is now.
    pub(crate) async fn verifying_key(&self, tenant: TenantId) -> Result<VerifyingKey> {
        let scope = TenantScope::trusted(tenant, "signer");
        let epoch = self.course(&scope).await?.epoch();
        self.signer.verifying_key(tenant, epoch)
    }

    /// Writes the entry that says that a log is continued after a restore, from this head.
    pub(crate) async fn begin_epoch(
        &self,
        store: &dyn LogStore,
        scope: &TenantScope,
        fence: Fence,
        epoch: u64,
        head: &Head,
    ) -> Result<Receipt> {
        let act = Act::new(scope, None, Arc::clone(&self.clock))?.by_system();
        let basis = Basis::parse("restore")
            .map_err(|fault| Error::new(ErrorKind::Internal, "no basis").with_source(fault))?;
        let id = self.clock.event_id();
        let declaration = Declaration::epoch(fence, id, epoch, head, basis, act)?;
        store.declare(scope, &declaration).await
    }

    /// Writes the entry that says that the key changes to the present one.
    async fn change_key(
        &self,
        store: &dyn LogStore,
        scope: &TenantScope,
        fence: Fence,
        old: &SigningKey,
        epoch: u64,
    ) -> Result<KeyChange> {
        let act = Act::new(scope, None, Arc::clone(&self.clock))?.by_system();
        let old = old.verifying_key().encode();
        let new = self.signer.verifying_key(scope.tenant(), epoch)?.encode();
        let id = self.clock.event_id();
        let declaration = Declaration::key(fence, id, old.clone(), new.clone(), act)?;
        let seq = store.declare(scope, &declaration).await?.seq;
        Ok(KeyChange { seq, old, new })
    }

    /// Whose the log is, by its own entries and its newest checkpoint.
    fn standing(
        &self,
        tenant: TenantId,
        course: &Course,
        latest: Option<&SignedCheckpoint>,
    ) -> Result<Standing> {
        let keys_at = |epoch| self.signer.keys(tenant, epoch);
        // The place among the keys is the same in each epoch, their names are not.
        let present = keys_at(course.epoch())?;
        if let Some(last) = course.changes.last() {
            let keys = keys_at(course.epoch_at(last.seq))?;
            let place_of = |vkey: &str| {
                let mut keys = keys.iter();
                keys.position(|key| key.verifying_key().encode() == vkey)
                    .ok_or_else(|| {
                        let message = format!("the log's key is {vkey}, which is not known here");
                        Error::new(ErrorKind::Unavailable, message).with_tenant(tenant)
                    })
            };
            let new = place_of(&last.new)?;
            return match latest.filter(|latest| latest.size > last.seq) {
                Some(over) if is_signed(over, &keys_at(course.epoch_at(over.size))?[new]) => {
                    self.standing_of(tenant, course, present[new].clone())
                }
                Some(over) => Err(Error::corrupt(tenant, over.size)),
                None => {
                    let old = present[place_of(&last.old)?].clone();
                    Ok(Standing::HandsOver {
                        // Under the name of an epoch that has ended nothing is signed any more.
                        at: course.last().unwrap_or(last.seq),
                        keys: Box::new((old, present[new].clone())),
                    })
                }
            };
        }
        let Some(latest) = latest else {
            return Ok(Standing::Ours);
        };
        let keys = keys_at(course.epoch_at(latest.size))?;
        match keys.iter().position(|key| is_signed(latest, key)) {
            Some(place) => self.standing_of(tenant, course, present[place].clone()),
            None => Err(self.not_ours(tenant, course.epoch_at(latest.size))?),
        }
    }

    fn not_ours(&self, tenant: TenantId, epoch: u64) -> Result<Error> {
        let key = self.signer.verifying_key(tenant, epoch)?;
        let message = format!("the log's checkpoints are signed by another key than {key}");
        Ok(Error::new(ErrorKind::Unavailable, message).with_tenant(tenant))
    }

    fn standing_of(&self, tenant: TenantId, course: &Course, key: SigningKey) -> Result<Standing> {
        match *key.verifying_key() == self.signer.verifying_key(tenant, course.epoch())? {
            true => Ok(Standing::Ours),
            false => Ok(Standing::Earlier(Box::new(key))),
        }
    }

    /// Whether the present key signed a checkpoint, and just this one.
    pub(crate) async fn is_ours(
        &self,
        tenant: TenantId,
        checkpoint: &SignedCheckpoint,
    ) -> Result<bool> {
        let scope = TenantScope::trusted(tenant, "signer");
        let epoch = self.course(&scope).await?.epoch_at(checkpoint.size);
        Ok(is_signed(checkpoint, &self.signer.key(tenant, epoch)?))
    }

    /// Checks that a checkpoint of the log was signed by this key and, where it is of the head's size,
    /// has its root.
    ///
    /// # Errors
    /// See [`publish`](Self::publish).
    pub(crate) async fn check(
        &self,
        store: &dyn LogStore,
        head: &Head,
        latest: &SignedCheckpoint,
    ) -> Result<()> {
        if latest.size == head.size() && latest.root != head.tree.root() {
            return Err(Error::corrupt(head.tenant, head.size()));
        }
        if self.is_ours(head.tenant, latest).await? {
            return Ok(());
        }
        let scope = TenantScope::trusted(head.tenant, "signer");
        let epoch = self.course(&scope).await?.epoch_at(latest.size);
        let error = self.not_ours(head.tenant, epoch)?;
        Err(self.explained(store, &scope, error).await)
    }

    /// What is wrong where the log's key seems to be none that is known here: what is kept beside the log
    /// of its keys and epochs may not be what its entries say.
    async fn explained(&self, store: &dyn LogStore, scope: &TenantScope, error: Error) -> Error {
        match self.check_course(store, scope).await {
            Err(wrong) if wrong.kind() == ErrorKind::Corrupt => wrong,
            _ => error,
        }
    }

    /// Checks that what is kept beside the log of its keys and epochs is what its entries say.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] with the position of the first entry that says otherwise.
    async fn check_course(&self, store: &dyn LogStore, scope: &TenantScope) -> Result<()> {
        let course = self.course(scope).await?;
        for change in &course.changes {
            check_change(store, scope, change).await?;
        }
        for start in &course.epochs {
            check_epoch(store, scope, start).await?;
        }
        let mut said = Vec::new();
        let filter = Filter::new().action("log.key").action("log.epoch");
        each_control_entry(store, scope, &filter, |entry| said.push(entry.seq)).await?;
        // Read once more behind the entries, with which it is written.
        let course = self.course(scope).await?;
        let changes = course.changes.iter().map(|change| change.seq);
        let kept: Vec<u64> = changes
            .chain(course.epochs.iter().map(|start| start.seq))
            .collect();
        match said.iter().find(|seq| !kept.contains(seq)) {
            None => Ok(()),
            Some(seq) => Err(Error::corrupt(scope.tenant(), *seq)),
        }
    }
}

/// What a log's own entries say of its keys and its epochs, each oldest first.
struct Course {
    changes: Vec<KeyChange>,
    epochs: Vec<EpochStart>,
}

impl Course {
    /// The epoch that the log is in.
    fn epoch(&self) -> u64 {
        present_epoch(&self.epochs)
    }

    /// The epoch in which the log had this size, and the entry at this position stands.
    fn epoch_at(&self, size: u64) -> u64 {
        let begun = self.epochs.partition_point(|start| start.seq < size);
        present_epoch(&self.epochs[..begun])
    }

    /// The position of the last of these entries.
    fn last(&self) -> Option<u64> {
        let change = self.changes.last().map(|change| change.seq);
        change.max(self.epochs.last().map(|start| start.seq))
    }
}

/// Whose a log is.
enum Standing {
    /// The present key's.
    Ours,
    /// An earlier key's, which has to be changed.
    Earlier(Box<SigningKey>),
    /// An entry says that the key changed, and no checkpoint covers it yet: the first one lies right
    /// behind the entry at this position.
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
