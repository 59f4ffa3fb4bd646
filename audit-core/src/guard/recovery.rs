//! Going on after a restore: what was erased is erased again, and a new epoch begins.

use std::sync::Arc;
use std::time::Duration;

use audit_tlog::{Basis, Control, Group, Kind};

use crate::checkpoint::Fence;
use crate::entry::{Entry, Receipt};
use crate::error::{Error, ErrorKind, Result};
use crate::guard::sentry::{Breach, present_epoch};
use crate::guard::{GuardedErasure, GuardedHead, Sentry};
use crate::id::{EventId, TenantId};
use crate::log::AuditLog;
use crate::prepare::Act;
use crate::scope::TenantScope;
use crate::signing::{Signing, not_signed};
use crate::store::{Erasure, is_of_the_log, personal};

/// How long a recovery keeps others from signing: a step of it takes less.
const LEASE: Duration = Duration::from_secs(60);
/// Erasures that are asked for at once.
const PAGE: usize = 100;
/// Entries that lose something in one transaction at most.
const STEP: usize = 500;

/// What a [recovery](AuditLog::recover) did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// Whose log it is.
    pub tenant: TenantId,
    /// The head that the guard knows; none when it knew nothing.
    pub guarded: Option<GuardedHead>,
    /// How many entries the log had before.
    pub size: u64,
    /// How many entries lost groups that had been erased before.
    pub erased: u64,
    /// The epoch that begins.
    pub epoch: u64,
    /// The entry that says so. None of a dry run, and where the database has no such tenant: then it has
    /// to be created first, and the recovery repeated.
    pub receipt: Option<Receipt>,
    /// Whether the database has the tenant.
    pub has_tenant: bool,
}

impl Recovery {
    /// How many entries whose head was signed the log doesn't have, at least: those between its size and
    /// the one that the guard knows. 0 when that is smaller, or not known.
    pub fn lost(&self) -> u64 {
        let known = self.guarded.map_or(0, |guarded| guarded.size);
        known.saturating_sub(self.size)
    }
}

impl AuditLog {
    /// Lets a log go on that the [guard](crate::AuditLogBuilder::guard) stops: erases again what the guard
    /// knows to have been erased, then writes the entry that begins a new epoch, under whose name the signer
    /// goes on. None when nothing stops it. A dry run says what it would do, and changes nothing.
    ///
    /// Erased again are entries that the log had before the erasure: what was recorded at the same
    /// positions after a restore is another entry, and stays. A call that was cut short is repeated as
    /// it is: what was done is not done again. Nothing else may sign meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without a signer or a guard; [`ErrorKind::Unavailable`] when another
    /// process signs; [`ErrorKind::Refused`] when a legal hold refuses an erasure, until it is released,
    /// and when the log grew meanwhile; what the guard and the store answer.
    pub async fn recover(&self, tenant: TenantId, dry_run: bool) -> Result<Option<Recovery>> {
        let signing = self.inner.signing.as_ref().ok_or_else(not_signed)?;
        let sentry = self.inner.sentry.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "the logs have no guard to recover from",
            )
        })?;
        let Some(breach) = sentry.compare(tenant).await? else {
            return Ok(None);
        };
        let begun = Begun {
            log: self,
            signing,
            sentry,
            scope: TenantScope::trusted(tenant, "recover"),
            guarded: match breach {
                Breach::Missing => None,
                Breach::Ahead(guarded) => Some(guarded),
            },
        };
        if dry_run {
            return begun.dry_run().await.map(Some);
        }
        let recovered = begun.run().await;
        give_back(signing).await;
        sentry.forget(tenant);
        self.inner.bell.ring(tenant);
        recovered.map(Some)
    }
}

/// Takes the signer's lease for a recovery.
pub(super) async fn take_over(signing: &Signing) -> Result<Fence> {
    signing.take_lease(LEASE).await?;
    signing.fence().ok_or_else(|| {
        let message = "another process signs, or ended less than 15 seconds ago: stop the servers";
        Error::new(ErrorKind::Unavailable, message).with_retry_after(Duration::from_secs(15))
    })
}

/// Ends the lease: the signer need not wait until it does by itself.
pub(super) async fn give_back(signing: &Signing) {
    if signing.fence().is_some()
        && let Err(error) = signing.take_lease(Duration::ZERO).await
    {
        tracing::warn!(%error, "the signer has to wait until the recovery's lease ends");
    }
}

/// A recovery under way.
struct Begun<'a> {
    log: &'a AuditLog,
    signing: &'a Signing,
    sentry: &'a Sentry,
    scope: TenantScope,
    guarded: Option<GuardedHead>,
}

impl Begun<'_> {
    async fn dry_run(&self) -> Result<Recovery> {
        let mut recovery = self.found().await?;
        if recovery.has_tenant {
            recovery.erased = self.erase(recovery.size, true).await?;
        }
        Ok(recovery)
    }

    async fn run(&self) -> Result<Recovery> {
        let mut recovery = self.found().await?;
        if !recovery.has_tenant {
            return Ok(recovery);
        }
        take_over(self.signing).await?;
        recovery.erased = self.erase(recovery.size, false).await?;
        // That took its time: whoever has taken over since is told by the fence.
        let fence = take_over(self.signing).await?;
        let store = &**self.sentry.store();
        let head = store.head(&self.scope).await?;
        let receipt = self
            .signing
            .begin_epoch(store, &self.scope, fence, recovery.epoch, &head)
            .await?;
        recovery.receipt = Some(receipt);
        Ok(recovery)
    }

    /// What there is to recover.
    async fn found(&self) -> Result<Recovery> {
        let store = self.sentry.store();
        let (size, epoch, has_tenant) = match store.head(&self.scope).await {
            Ok(head) => {
                let epochs = self.signing.checkpoints().epochs(&self.scope).await?;
                (head.size(), present_epoch(&epochs), true)
            }
            Err(error) if error.kind() == ErrorKind::UnknownTenant => (0, 0, false),
            Err(error) => return Err(error),
        };
        let known = self.guarded.map_or(0, |guarded| guarded.epoch);
        Ok(Recovery {
            tenant: self.scope.tenant(),
            guarded: self.guarded,
            size,
            erased: 0,
            // Of a name that nothing was signed under.
            epoch: epoch.max(known) + 1,
            receipt: None,
            has_tenant,
        })
    }

    /// Erases again what the guard knows to have been erased, of the entries below `size`. Returns how many
    /// lost something.
    async fn erase(&self, size: u64, dry_run: bool) -> Result<u64> {
        let guard = self.sentry.guard();
        let (mut from, mut erased) = (0, 0);
        loop {
            let known = guard.erasures(self.scope.tenant(), from, PAGE).await?;
            if known.is_empty() {
                return Ok(erased);
            }
            from += known.len() as u64;
            for erasure in &known {
                erased += self.erase_again(erasure, size, dry_run).await?;
            }
        }
    }

    async fn erase_again(&self, known: &GuardedErasure, size: u64, dry_run: bool) -> Result<u64> {
        let parsed = Control::parse(Kind::Erase, &known.ctl);
        let Ok(Control::Erase {
            groups,
            entries,
            basis,
        }) = parsed
        else {
            let message = "the guard holds an erasure that can't be read";
            return Err(Error::new(ErrorKind::Unavailable, message));
        };
        let by = known.seq;
        let of_the_log = match by < size {
            true => self.entries(&[by]).await?.pop(),
            false => None,
        };
        // With its entry the log kept what it did.
        let kept = |entry: Entry| {
            entry.created_at == known.accepted_at && entry.ctl.as_ref() == Some(&known.ctl)
        };
        if of_the_log.is_some_and(kept) {
            return Ok(0);
        }
        let ranges = entries.iter().map(|&(from, to)| from..size.min(to + 1));
        let positions: Vec<u64> = ranges.flatten().collect();
        let mut erased = 0;
        for step in positions.chunks(STEP) {
            let entries = self.entries(step).await?;
            // What was recorded after the erasure stands at these positions since a restore.
            let earlier = |entry: &&Entry| entry.created_at <= known.accepted_at;
            let entries = entries.iter().filter(earlier);
            if dry_run {
                erased += entries.filter(|entry| has_any(entry, &groups)).count() as u64;
                continue;
            }
            let ids = entries.map(|entry| entry.id).collect();
            let erasure = self.erasure(ids, by, basis.clone())?.groups(&groups);
            let store = self.sentry.store();
            erased += store.erase(&self.scope, &erasure).await?.entries;
        }
        Ok(erased)
    }

    /// The entries at these positions; where one is damaged, as they stand.
    async fn entries(&self, positions: &[u64]) -> Result<Vec<Entry>> {
        let store = self.sentry.store();
        match store.at(&self.scope, positions).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            entries => return entries,
        }
        let mut entries = Vec::with_capacity(positions.len());
        for position in positions {
            let found = store.read(&self.scope, *position, 1).await?;
            entries.extend(found.into_iter().filter(|entry| entry.seq == *position));
        }
        Ok(entries)
    }

    fn erasure(&self, ids: Vec<EventId>, by: u64, basis: Basis) -> Result<Erasure> {
        let reason = format!("erased again after a restore, as by the lost entry {by}");
        let clock = Arc::clone(&self.log.inner.clock);
        let act = Act::new(&self.scope, Some(reason), clock)?.by_system();
        Ok(Erasure::new(ids, basis, act))
    }
}

/// Whether an erasure of these groups takes anything from an entry.
fn has_any(entry: &Entry, groups: &[Group]) -> bool {
    match is_of_the_log(entry) {
        true => entry.fields.has_any_of(&personal(groups)),
        false => entry.fields.has_any_of(groups),
    }
}
