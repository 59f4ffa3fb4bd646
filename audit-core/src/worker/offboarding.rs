//! Ends tenants whose end was asked for: archives what is left of their logs, deletes them, and takes them
//! out of the search index. They take turns: nobody waits for all of another one's log.

use std::collections::{HashMap, HashSet};
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
        begun: HashMap::new(),
        forgotten: HashSet::new(),
    };
    worker.desk.edit(&worker.name, |s| {
        s.offboarding.get_or_insert_default();
    });
    let mut failures = 0;
    loop {
        worker.bell.borrow_and_update();
        match offboarding.round(&worker).await {
            Ok(round) => {
                failures = 0;
                if offboarding.paused.is_empty() {
                    worker.worked();
                }
                if round == Round::GoesOn {
                    if worker.stop.is_cancelled() {
                        return;
                    }
                    tokio::task::yield_now().await;
                    continue;
                }
                let is_idle = round == Round::Rests && offboarding.paused.is_empty();
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
    /// Ends that had a turn and go on with the next one.
    begun: HashMap<TenantId, Begun>,
    /// Deleted tenants that this process has taken out of the index once.
    forgotten: HashSet<TenantId>,
}

/// What an end has come to.
struct Begun {
    /// What will be left.
    tombstone: Tombstone,
    /// What is below this position is archived.
    at: u64,
}

/// What a round found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// It is another process that ends tenants.
    NotOurs,
    /// Some end takes another turn at once.
    GoesOn,
    /// Nothing goes on by itself.
    Rests,
}

impl Offboarding {
    /// One turn of each end, and all tombstones that aren't settled. A tenant that fails is passed over for a
    /// while.
    async fn round(&mut self, worker: &Worker) -> Result<Round> {
        // One process at a time: it is the only one that surely has a checkpoint.
        let signing = self.log.inner.signing.as_ref();
        if signing.is_some_and(|signing| signing.fence().is_none()) {
            self.paused.forgive_all();
            self.begun.clear();
            return Ok(Round::NotOurs);
        }
        let mut seen = HashSet::new();
        let (mut after, mut left, mut found) = (None, 0, Round::Rests);
        loop {
            let some = self.store.open_endings(after, TENANTS).await?;
            after = some.last().map(|ending| ending.tenant);
            for ending in &some {
                if worker.stop.is_cancelled() {
                    return Ok(Round::Rests);
                }
                left += 1;
                seen.insert(ending.tenant);
                // One without a signer would leave a tombstone without a checkpoint.
                let is_anothers = ending.is_signed && self.log.inner.signing.is_none();
                if is_anothers || self.paused.passes_over(ending.tenant) {
                    continue;
                }
                let ended = self.turn(ending).await;
                match &ended {
                    Ok(true) => left -= 1,
                    Ok(false) => found = Round::GoesOn,
                    Err(_) => {}
                }
                self.note(worker, ending.tenant, ended.map(drop));
            }
            if some.len() < TENANTS {
                break;
            }
        }
        self.begun.retain(|tenant, _| seen.contains(tenant));
        self.settle_all(worker, &mut seen).await?;
        // Another process may have ended what failed here.
        for tenant in self.paused.due() {
            if !seen.contains(&tenant) {
                self.paused.forgive(tenant);
            }
        }
        worker.lag(left);
        Ok(found)
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

    /// Archives some more of a log, as much at once as a prune does, and ends its tenant when all of it is
    /// archived; false when it isn't. What fails begins anew, and finds what was archived.
    async fn turn(&mut self, ending: &Ending) -> Result<bool> {
        let tenant = ending.tenant;
        let begun = self.begun.remove(&tenant);
        let inner = &self.log.inner;
        let log = self.log.tenant(TenantScope::trusted(tenant, CONSUMER));
        let archiver = inner.archiver(tenant).await?;
        let Begun { mut tombstone, at } = match begun {
            Some(begun) => begun,
            None => {
                if let Some(archiver) = archiver {
                    // What was archived before outlives the log that says what is erased of it.
                    archiver.follow(&log).await?;
                }
                let tombstone = self.tombstone(&log).await?;
                Begun { tombstone, at: 0 }
            }
        };
        if ending.is_archived && at < tombstone.size {
            let archiver = archiver.ok_or_else(|| no_archive(tenant))?;
            let archived = archiver.archive(&log, at, tombstone.size).await?;
            if archived.below <= at {
                return Err(not_yet("the log is not archived to its end"));
            }
            let at = archived.below;
            if at < tombstone.size {
                self.begun.insert(tenant, Begun { tombstone, at });
                return Ok(false);
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
        Ok(true)
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
                let settled = self.settle(worker, tombstone).await;
                self.note(worker, tenant, settled);
            }
            if some.len() < TENANTS {
                break;
            }
        }
        self.forgotten.retain(|tenant| unsettled.contains(tenant));
        Ok(())
    }

    async fn settle(&mut self, worker: &Worker, tombstone: &Tombstone) -> Result<()> {
        let tenant = tombstone.tenant;
        // Before its rows are gone it isn't known what went with them.
        let is_last = tombstone.is_swept && is_settled(tombstone, self.log.inner.clock.now());
        if (is_last || !self.forgotten.contains(&tenant))
            && let Some(index) = &self.log.inner.search
        {
            let scope = TenantScope::trusted(tenant, "offboarding");
            index.forget(&scope).await?;
        }
        self.forgotten.insert(tenant);
        if !is_last {
            return Ok(());
        }
        self.store.settle(tenant).await?;
        if let Some(events) = tombstone.unappended.filter(|events| *events > 0) {
            tracing::warn!(%tenant, events,
                "events that were accepted and never appended went with the deleted tenant");
            worker.desk.edit(&worker.name, |s| {
                s.offboarding.get_or_insert_default().unappended += events;
            });
        }
        Ok(())
    }
}

fn is_settled(tombstone: &Tombstone, now: Timestamp) -> bool {
    now.as_micros()
        .saturating_sub(tombstone.ended_at.as_micros())
        >= SETTLED_MICROS
}
