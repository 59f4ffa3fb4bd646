//! Ends tenants whose end was asked for: archives what is left of their logs, deletes them, and takes them
//! out of the search index.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use audit_tlog::Timestamp;

use super::followed::Paused;
use super::{POLL, Worker, is_closed, pause_after};
use crate::archive::CONSUMER;
use crate::error::Result;
use crate::evidence::not_yet;
use crate::id::TenantId;
use crate::log::{AuditLog, TenantLog};
use crate::offboarding::{Ending, OffboardingStore, Tombstone, no_archive};
use crate::scope::TenantScope;

/// How often it looks when nothing woke it.
const OFFBOARDING_POLL: Duration = Duration::from_secs(5);
/// Tenants that are read at once.
const TENANTS: usize = 100;
/// How long after its end a tenant is taken out of the index once more: whoever read its log before may
/// have been slow to index it.
const SETTLED_MICROS: i64 = 60 * 1_000_000;

pub(super) async fn run(mut worker: Worker, store: Arc<dyn OffboardingStore>) {
    let log = AuditLog {
        inner: Arc::clone(&worker.log),
    };
    let mut offboarding = Offboarding {
        log,
        store,
        paused: Paused::default(),
        forgotten: HashSet::new(),
    };
    let mut failures = 0;
    loop {
        worker.bell.borrow_and_update();
        match offboarding.round(&worker).await {
            Ok(has_turn) => {
                failures = 0;
                if offboarding.paused.is_empty() {
                    worker.worked();
                }
                let is_idle = has_turn && offboarding.paused.is_empty();
                let poll = if is_idle { OFFBOARDING_POLL } else { POLL };
                if !worker.pause(POLL).await || !worker.rest(poll).await {
                    return;
                }
            }
            Err(error) => {
                worker.failed(&error);
                failures += 1;
                if !worker.pause(pause_after(failures)).await {
                    return;
                }
            }
        }
    }
}

struct Offboarding {
    log: AuditLog,
    store: Arc<dyn OffboardingStore>,
    paused: Paused,
    /// Deleted tenants that this process has taken out of the index once.
    forgotten: HashSet<TenantId>,
}

impl Offboarding {
    /// Goes over all ends and all tombstones that aren't settled. A tenant that fails is passed over for a
    /// while. False when it is another process's turn.
    async fn round(&mut self, worker: &Worker) -> Result<bool> {
        // One process at a time: it is the only one that surely has a checkpoint.
        let signing = self.log.inner.signing.as_ref();
        if signing.is_some_and(|signing| signing.fence().is_none()) {
            self.paused.forgive_all();
            return Ok(false);
        }
        let mut seen = HashSet::new();
        let (mut after, mut left) = (None, 0);
        loop {
            let some = self.store.open_endings(after, TENANTS).await?;
            after = some.last().map(|ending| ending.tenant);
            for ending in &some {
                if worker.stop.is_cancelled() {
                    return Ok(true);
                }
                left += 1;
                seen.insert(ending.tenant);
                // One without a signer would leave a tombstone without a checkpoint.
                let is_anothers = ending.is_signed && self.log.inner.signing.is_none();
                if is_anothers || self.paused.passes_over(ending.tenant) {
                    continue;
                }
                let ended = self.carry_out(ending).await;
                left -= u64::from(ended.is_ok());
                self.note(worker, ending.tenant, ended);
            }
            if some.len() < TENANTS {
                break;
            }
        }
        self.settle_all(worker, &mut seen).await?;
        // Another process may have ended what failed here.
        for tenant in self.paused.due() {
            if !seen.contains(&tenant) {
                self.paused.forgive(tenant);
            }
        }
        worker.lag(left);
        Ok(true)
    }

    fn note(&mut self, worker: &Worker, tenant: TenantId, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.paused.forgive(tenant),
            // Another process was faster.
            Err(error) if is_closed(&error) => self.paused.forgive(tenant),
            Err(error) => {
                worker.failed(&error.with_tenant(tenant));
                self.paused.fail(tenant);
            }
        }
    }

    async fn carry_out(&self, ending: &Ending) -> Result<()> {
        let (inner, tenant) = (&self.log.inner, ending.tenant);
        let log = self.log.tenant(TenantScope::trusted(tenant, CONSUMER));
        let archiver = inner.archiver(tenant).await?;
        if let Some(archiver) = archiver {
            // What was archived before outlives the log that says what is erased of it.
            archiver.follow(&log).await?;
        }
        let mut tombstone = self.tombstone(&log).await?;
        if ending.is_archived {
            let archiver = archiver.ok_or_else(|| no_archive(tenant))?;
            let mut at = 0;
            while at < tombstone.size {
                let archived = archiver.archive(&log, at, tombstone.size).await?;
                if archived.below <= at {
                    return Err(not_yet("the log is not archived to its end"));
                }
                at = archived.below;
            }
        }
        // What is erased from here on makes the log longer than the tombstone says.
        if let Some(archiver) = archiver
            && !archiver.has_followed(&log).await?
        {
            return Err(not_yet("what was erased has not left the archive yet"));
        }
        // Archiving takes its time, and what settles it counts from the end.
        tombstone.ended_at = inner.clock.now();
        self.store.end(&tombstone).await?;
        tracing::info!(%tenant, size = tombstone.size, "the tenant was deleted");
        inner.forget_cached(tenant);
        inner.bell.ring(tenant);
        Ok(())
    }

    /// What will be left, with a checkpoint that covers the whole log.
    async fn tombstone(&self, log: &TenantLog) -> Result<Tombstone> {
        let now = self.log.inner.clock.now();
        if self.log.inner.signing.is_none() {
            return Ok(Tombstone::of(&log.head().await?, now));
        }
        let (snapshot, checkpoint) = log.signed_snapshot().await?;
        let origin = log.verifying_key().await?.name().to_owned();
        Ok(Tombstone::of(snapshot.head(), now).signed(origin, checkpoint.note))
    }

    /// Takes deleted tenants out of the index: at once, and once more when nobody is left who indexes
    /// them.
    async fn settle_all(&mut self, worker: &Worker, seen: &mut HashSet<TenantId>) -> Result<()> {
        let mut after = None;
        let mut unsettled = HashSet::new();
        loop {
            let some = self.store.unsettled(after, TENANTS).await?;
            after = some.last().map(|tombstone| tombstone.tenant);
            for tombstone in &some {
                let tenant = tombstone.tenant;
                unsettled.insert(tenant);
                seen.insert(tenant);
                if worker.stop.is_cancelled() {
                    return Ok(());
                }
                if self.paused.passes_over(tenant) {
                    continue;
                }
                let settled = self.settle(tombstone).await;
                self.note(worker, tenant, settled);
            }
            if some.len() < TENANTS {
                break;
            }
        }
        self.forgotten.retain(|tenant| unsettled.contains(tenant));
        Ok(())
    }

    async fn settle(&mut self, tombstone: &Tombstone) -> Result<()> {
        let tenant = tombstone.tenant;
        let is_last = is_settled(tombstone, self.log.inner.clock.now());
        if (is_last || !self.forgotten.contains(&tenant))
            && let Some(index) = &self.log.inner.search
        {
            let scope = TenantScope::trusted(tenant, "offboarding");
            index.forget(&scope).await?;
        }
        self.forgotten.insert(tenant);
        match is_last {
            true => self.store.settle(tenant).await,
            false => Ok(()),
        }
    }
}

fn is_settled(tombstone: &Tombstone, now: Timestamp) -> bool {
    now.as_micros()
        .saturating_sub(tombstone.ended_at.as_micros())
        >= SETTLED_MICROS
}
