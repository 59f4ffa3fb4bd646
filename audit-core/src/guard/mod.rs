//! A place outside the database that remembers what was signed, so that an old copy of the database is
//! noticed before its signer signs another history.
//!
//! A [`Guard`] knows of each log the largest head that was ever signed, and the erasures below it. The
//! signer tells it before it publishes a checkpoint. When a process first comes to a log it compares the
//! two: where the guard knows more than the log, or has forgotten a log that was signed, nothing is
//! appended and nothing is signed until [`AuditLog::recover`](crate::AuditLog::recover) has erased again
//! what was erased, and begun a new epoch.
//!
//! It knows the largest head of the [deployment log](crate::deployment) as well. That log takes nothing
//! from anybody, so that only its own signing stops, until
//! [`AuditLog::recover_deployment`](crate::AuditLog::recover_deployment): a tenant's log rests on nothing
//! of it, and what is appended meanwhile is committed to later.

mod deployment;
mod folder;
mod recovery;
mod sentry;

use std::fmt::Debug;

use async_trait::async_trait;
use audit_tlog::{Hash, Timestamp};

use crate::error::{Error, ErrorKind, Result};
use crate::id::TenantId;

pub use deployment::DeploymentRecovery;
pub use folder::FolderGuard;
pub use recovery::Recovery;
pub(crate) use sentry::{Guarded, Sentry, present_epoch};

/// A head that was signed, or is about to be: a tenant's log's, or the deployment log's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardedHead {
    /// The epoch that it was signed in.
    pub epoch: u64,
    /// The number of entries, or leaves.
    pub size: u64,
    /// The root of the tree of that size.
    pub root: Hash,
}

impl GuardedHead {
    /// Its place in the order in which heads are signed: a later epoch's are larger, whatever their size.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.epoch, self.size)
    }
}

/// An `erase` entry of a log, which a restore of an older copy takes back with what it erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardedErasure {
    /// The entry's position.
    pub seq: u64,
    /// When the log accepted it.
    pub accepted_at: Timestamp,
    /// Its `ctl`.
    pub ctl: String,
}

/// What a [`Guard`] is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardAdvance {
    /// What it was last read to remember.
    pub known: Option<GuardedHead>,
    /// What it is to remember.
    pub to: GuardedHead,
    /// The `erase` entries that came in between, oldest first.
    pub erasures: Vec<GuardedErasure>,
}

impl GuardAdvance {
    /// From one head to another with no erasure between them.
    pub fn plain(known: Option<GuardedHead>, to: GuardedHead) -> Self {
        Self {
            known,
            to,
            erasures: Vec::new(),
        }
    }
}

/// What remembers the largest head of each log that was ever signed, outside the database: a folder on
/// another disk, an object store with conditional writes.
///
/// It never forgets and never goes back. A tenant's erasures are kept in the order in which they came,
/// those of earlier epochs too; one that comes again may be kept again.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Guard: Debug + Send + Sync + 'static {
    /// Where it is, for whoever has to find it: a path, an address. Without passwords.
    fn place(&self) -> String;

    /// What it remembers of a tenant's log. None of one that was never signed.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it can't be read, or what it holds is damaged.
    async fn head(&self, tenant: TenantId) -> Result<Option<GuardedHead>>;

    /// At most `limit` of a tenant's erasures, from the `from`th on, counted from 0. Empty behind the
    /// last, and of a tenant that it doesn't know.
    ///
    /// # Errors
    /// As [`head`](Self::head).
    async fn erasures(
        &self,
        tenant: TenantId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GuardedErasure>>;

    /// At most `limit` of the tenants that it knows, in the order of their ids, those behind `after`.
    ///
    /// # Errors
    /// As [`head`](Self::head).
    async fn tenants(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<TenantId>>;

    /// Remembers a head in place of the one that it was [known](GuardAdvance::known) to remember, and the
    /// erasures between them. Durable when it returns, the erasures no later than the head. To be told
    /// what it remembers already changes nothing.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) when it remembers another head than the known one, and for a
    /// smaller head than that; [`Conflict`](ErrorKind::Conflict) for one of the same size and epoch with
    /// another root. Nothing changes then. After [`Unavailable`](ErrorKind::Unavailable) it may
    /// remember either.
    async fn advance(&self, tenant: TenantId, advance: &GuardAdvance) -> Result<()>;

    /// What it remembers of the deployment log. None where that was never signed, or before guards learnt
    /// of it.
    ///
    /// # Errors
    /// As [`head`](Self::head).
    async fn deployment_head(&self) -> Result<Option<GuardedHead>>;

    /// Remembers a head of the deployment log in place of the one that it was `known` to remember, as
    /// [`advance`](Self::advance) does with a tenant's. That log has no erasures.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    async fn advance_deployment(&self, known: Option<GuardedHead>, to: GuardedHead) -> Result<()>;
}

/// The refusals of [`Guard::advance`], and of [`Guard::advance_deployment`] as an advance without
/// erasures, which every guard words alike, and whether there is anything to do: `present` is what it
/// remembers.
///
/// # Errors
/// See [`Guard::advance`].
pub fn admit_advance(present: Option<&GuardedHead>, advance: &GuardAdvance) -> Result<bool> {
    let to = &advance.to;
    let Some(present) = present else {
        return match advance.known {
            None => Ok(true),
            Some(_) => Err(moved()),
        };
    };
    if present == to {
        return Ok(false);
    }
    if present.place() == to.place() {
        return Err(Error::new(
            ErrorKind::Conflict,
            "the guard remembers a head of this size with another root",
        ));
    }
    if advance.known.as_ref() != Some(present) || to.place() < present.place() {
        return Err(moved());
    }
    Ok(true)
}

fn moved() -> Error {
    Error::new(
        ErrorKind::Refused,
        "the guard remembers another head than it was read to",
    )
}
