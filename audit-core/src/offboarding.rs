//! The end of a tenant: its evidence goes to the archive, everything of it goes, and a tombstone stays.
//!
//! An end is asked for ([`AuditLog::end_tenant`]) and carried out by a worker (`offboarding`), in steps each of
//! which may be killed: the log takes no more and is archived, then the tenant is deleted in one
//! transaction ([`OffboardingStore::end`]), then its rows go in [`LogStore::sweep`](crate::LogStore::sweep) and
//! its documents out of the search index ([`SearchIndex::forget`](crate::SearchIndex::forget)).

use std::fmt::Debug;

use async_trait::async_trait;
use audit_tlog::{Hash, Timestamp};

use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::id::TenantId;
use crate::log::AuditLog;
use crate::prepare::PreparedEvent;
use crate::retention::Protection;
use crate::seal::Head;
use crate::tenant::{TenantStatus, TenantUpdate};

/// An end that was asked for and is not carried out yet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ending {
    /// The tenant.
    pub tenant: TenantId,
    /// Who asked.
    pub subject: String,
    /// Why.
    pub reason: Option<String>,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// Whether what is left of the log is archived first.
    pub is_archived: bool,
    /// Whether the log's heads are signed: then only a process that signs carries it out.
    pub is_signed: bool,
}

impl Ending {
    /// An end whose evidence is archived first, of a log whose heads are signed.
    pub fn new(
        tenant: TenantId,
        subject: impl Into<String>,
        reason: Option<String>,
        requested_at: Timestamp,
    ) -> Self {
        Self {
            tenant,
            subject: subject.into(),
            reason,
            requested_at,
            is_archived: true,
            is_signed: true,
        }
    }

    /// Whether what is left of the log is archived first.
    #[must_use]
    pub fn archived(mut self, is_archived: bool) -> Self {
        self.is_archived = is_archived;
        self
    }

    /// Whether the log's heads are signed.
    #[must_use]
    pub fn signed(mut self, is_signed: bool) -> Self {
        self.is_signed = is_signed;
        self
    }
}

/// What stays of a deleted tenant for ever. Nothing of it is personal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tombstone {
    /// The tenant.
    pub tenant: TenantId,
    /// Under which name its checkpoints were signed; none of a log whose heads were not.
    pub origin: Option<String>,
    /// How many entries its log had.
    pub size: u64,
    /// The root of the tree over all of them.
    pub root: Hash,
    /// The last checkpoint, of this size, as a signed note; none of a log whose heads were not signed.
    pub checkpoint: Option<String>,
    /// When it was deleted.
    pub ended_at: Timestamp,
    /// Whether its rows are gone. Said by the store.
    pub is_swept: bool,
    /// How many events went with it that were accepted and never appended: those that waited in the store's
    /// own queue or outbox when its rows went, or had been put aside there. One that was appended and had not
    /// left the queue counts too. It grows until the tombstone is [swept](Self::is_swept); none of tenants that
    /// were deleted before this was counted. Said by the store.
    pub unappended: Option<u64>,
}

impl Tombstone {
    /// That of a log with this head, whose heads were not signed.
    pub fn of(head: &Head, ended_at: Timestamp) -> Self {
        Self::new(head.tenant, head.size(), head.tree.root(), ended_at)
    }

    /// That of a log of so many entries, whose heads were not signed, for a store that reads it.
    pub const fn new(tenant: TenantId, size: u64, root: Hash, ended_at: Timestamp) -> Self {
        Self {
            tenant,
            origin: None,
            size,
            root,
            checkpoint: None,
            ended_at,
            is_swept: false,
            unappended: Some(0),
        }
    }

    /// With the last checkpoint, and the name that signed it.
    #[must_use]
    pub fn signed(mut self, origin: impl Into<String>, checkpoint: impl Into<String>) -> Self {
        self.origin = Some(origin.into());
        self.checkpoint = Some(checkpoint.into());
        self
    }
}

/// Where ends and tombstones are kept: in the log store's own database, since they change the tenant's
/// status under the head's lock.
///
/// A tenant that is deleted refuses [`begin_ending`](Self::begin_ending) and [`end`](Self::end) with
/// [`TenantDeleted`](ErrorKind::TenantDeleted), one that never was with
/// [`UnknownTenant`](ErrorKind::UnknownTenant).
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait OffboardingStore: Debug + Send + Sync + 'static {
    /// Keeps an end that is asked for, makes the tenant inactive, whatever its status was, and appends
    /// `event`, which says so, in one transaction. From then on its status doesn't change but to deleted:
    /// [`update_tenant`](crate::TenantStore::update_tenant) refuses that. Returns the end that is kept: of one
    /// that was asked for before that one, and nothing is appended.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) while a legal hold is open.
    async fn begin_ending(&self, ending: &Ending, event: &PreparedEvent) -> Result<Ending>;

    /// The end of a tenant that is asked for and not carried out; none of a deleted tenant.
    async fn ending(&self, tenant: TenantId) -> Result<Option<Ending>>;

    /// Ends that are asked for and not carried out, in the order of the tenants' ids, behind `after`, at
    /// most `limit`.
    async fn open_endings(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Ending>>;

    /// Deletes a tenant whose end was asked for, in one transaction under the head's lock: keeps the
    /// tombstone, but for what the store says of it, forgets the ending, and the tenant's name, secret and API
    /// keys. Its name is its id from then on, its secret [none](crate::TenantSecret::NONE). Its rows go
    /// afterwards, in [`sweep`](crate::LogStore::sweep).
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when the log has another head than the tombstone says: it grew
    /// since it was archived; and while an erasure runs, which may have to reach the archive.
    /// [`Refused`](ErrorKind::Refused) while a legal hold is open, and when nobody asked for it.
    async fn end(&self, tombstone: &Tombstone) -> Result<()>;

    /// What is left of a deleted tenant; none of any other.
    async fn tombstone(&self, tenant: TenantId) -> Result<Option<Tombstone>>;

    /// Tombstones that are not [settled](Self::settle), in the order of the tenants' ids, behind `after`, at
    /// most `limit`: outside the store something of them may be left.
    async fn unsettled(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Tombstone>>;

    /// Says that nothing of a deleted tenant is left outside the store. Safe to repeat; of a tenant that is
    /// not deleted it says nothing.
    async fn settle(&self, tenant: TenantId) -> Result<()>;
}

/// The refusals of [`OffboardingStore::begin_ending`] under the head's lock, which every store words alike.
/// `kept` is the end that was asked for before; then that is the answer, and nothing is done.
///
/// # Errors
/// See [`OffboardingStore::begin_ending`].
pub fn admit_ending(
    tenant: TenantId,
    status: TenantStatus,
    kept: Option<Ending>,
    protection: &Protection,
) -> Result<Option<Ending>> {
    refuse_deleted(tenant, status)?;
    if kept.is_none() {
        protection.admit_end(tenant)?;
    }
    Ok(kept)
}

/// The refusals of [`OffboardingStore::end`] under the head's lock, which every store words alike. An
/// erasure is running when it was begun and is not done.
///
/// # Errors
/// See [`OffboardingStore::end`].
pub fn admit_end(
    tombstone: &Tombstone,
    status: TenantStatus,
    kept: Option<&Ending>,
    head: &Head,
    protection: &Protection,
    is_erasing: bool,
) -> Result<()> {
    let tenant = tombstone.tenant;
    refuse_deleted(tenant, status)?;
    if kept.is_none() {
        let message = "nobody asked for the tenant's end";
        return Err(Error::new(ErrorKind::Refused, message).with_tenant(tenant));
    }
    protection.admit_end(tenant)?;
    if is_erasing {
        let message = "an erasure of the tenant's is still running";
        return Err(Error::new(ErrorKind::Unavailable, message).with_tenant(tenant));
    }
    if (head.size(), head.tree.root()) != (tombstone.size, tombstone.root) {
        let message = "the log has grown since it was archived";
        return Err(Error::new(ErrorKind::Unavailable, message).with_tenant(tenant));
    }
    Ok(())
}

/// Refuses another status of a tenant whose end was asked for, as every store does.
///
/// # Errors
/// [`ErrorKind::Refused`].
pub fn admit_update(tenant: TenantId, is_ending: bool, update: &TenantUpdate) -> Result<()> {
    if is_ending && update.status.is_some() {
        let message = "the tenant is about to be deleted: its status doesn't change any more";
        return Err(Error::new(ErrorKind::Refused, message).with_tenant(tenant));
    }
    Ok(())
}

/// Refuses to begin an erasure or a prune of a tenant whose end was asked for, as every store does: the log
/// would grow, and be archived again, for what goes with the tenant.
///
/// # Errors
/// [`ErrorKind::Refused`].
pub fn admit_removal(tenant: TenantId, is_ending: bool) -> Result<()> {
    if is_ending {
        let message = "the tenant is about to be deleted: no further erasure or prune is begun";
        return Err(Error::new(ErrorKind::Refused, message).with_tenant(tenant));
    }
    Ok(())
}

/// Refuses a tenant whose end was asked for to its own credentials, as if it were deleted already.
///
/// # Errors
/// [`ErrorKind::TenantDeleted`].
pub(crate) fn admit_own(tenant: TenantId, is_ending: bool) -> Result<()> {
    if is_ending {
        let message = "the tenant is about to be deleted: it is closed to its own credentials";
        return Err(Error::new(ErrorKind::TenantDeleted, message).with_tenant(tenant));
    }
    Ok(())
}

/// The refusal to archive a log where nothing is archived.
pub(crate) fn no_archive(tenant: TenantId) -> Error {
    let message = "there is no archive to keep the tenant's evidence in";
    Error::new(ErrorKind::Refused, message).with_tenant(tenant)
}

/// Refuses what is asked of a deleted tenant.
fn refuse_deleted(tenant: TenantId, status: TenantStatus) -> Result<()> {
    match status {
        TenantStatus::Deleted => status.admit_read(tenant),
        _ => Ok(()),
    }
}

impl AuditLog {
    /// Asks for the end of a tenant, which a worker carries out: its log takes no more from now on; what is
    /// left of it is [archived](crate::archive), when `archive` says so; then everything of the tenant goes
    /// but its [tombstone](Self::tombstone), and its id is refused for ever. It can't be taken back. Asking again
    /// changes and records nothing; the answer is the first one.
    ///
    /// From then on the tenant answers to its own credentials as a deleted one does; who acts across tenants
    /// may read it until it is deleted.
    ///
    /// What was accepted before, and waits in a queue or an outbox still, is not appended any more, nor
    /// archived: what comes out of them is refused and put aside with the reason, and what of that lies in the
    /// store's own queue or outbox goes with the tenant, counted in its [tombstone](Tombstone::unappended). Drain
    /// them first where that may not be lost.
    ///
    /// # Errors
    /// [`UnknownTenant`](ErrorKind::UnknownTenant), [`TenantDeleted`](ErrorKind::TenantDeleted);
    /// [`Refused`](ErrorKind::Refused) while a legal hold is open, and with `archive` where there is no archive or
    /// this process has no signer; [`Invalid`](ErrorKind::Invalid) for a reason that is too long.
    pub async fn end_tenant(
        &self,
        id: TenantId,
        subject: &str,
        reason: Option<String>,
        archive: bool,
    ) -> Result<Ending> {
        let inner = &self.inner;
        let change = serde_json::json!({
            "name_changed": false,
            "status": TenantStatus::Inactive.as_str(),
            "public_log": null,
            "ending": true,
        });
        let event = Event::update("tenant", id.to_string()).metadata(&change);
        let event = self.admin_event(id, event, "log.tenant", subject, reason.clone())?;
        if archive && inner.archive.is_none() {
            return Err(no_archive(id));
        }
        if archive && inner.signing.is_none() {
            let message = "without a signer there is no evidence to archive";
            return Err(Error::new(ErrorKind::Refused, message).with_tenant(id));
        }
        inner.admit(id).await?;
        let ending = Ending::new(id, subject, reason, inner.clock.now())
            .archived(archive)
            .signed(inner.signing.is_some());
        let ending = inner.offboarding.begin_ending(&ending, &event).await?;
        inner.forget_cached(id);
        inner.bell.ring(id);
        Ok(ending)
    }

    /// The end of a tenant that is asked for and not carried out yet.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn ending(&self, id: TenantId) -> Result<Option<Ending>> {
        self.inner.offboarding.ending(id).await
    }

    /// What is left of a deleted tenant; none of any other.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn tombstone(&self, id: TenantId) -> Result<Option<Tombstone>> {
        self.inner.offboarding.tombstone(id).await
    }
}
