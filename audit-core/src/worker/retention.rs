//! Prunes and erases what is older than its tenant keeps it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use audit_tlog::Timestamp;

use super::{Worker, is_closed, pause_after};
use crate::entry::Entry;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::id::{EventId, TenantId};
use crate::log::{AuditLog, TenantLog};
use crate::page::PageRequest;
use crate::prepare::Act;
use crate::retention::{ActionRetention, Retained, Retention, retention_basis, retention_scope};
use crate::scope::TenantScope;
use crate::store::{Erasure, LogStore, Prune};

/// Tenants that are asked for at a time.
const TENANTS: usize = 500;
/// What failed for one tenant is tried again after this part of a period: each round asks for all.
const SOONER: u32 = 12;
/// Entries that one erasure is asked for.
const BATCH: usize = 500;

/// Once in each period it goes over the tenants that have a retention: prunes, then erases by turns, a
/// batch of each tenant at a time. Several processes may do it at once: each finds less to do.
pub(super) async fn run(worker: Worker) {
    let mut keeper = Keeper {
        worker,
        done: HashMap::new(),
        passed_over: false,
    };
    let mut failures = 0;
    loop {
        let every = keeper.worker.log.retention_every;
        let pause = match keeper.round().await {
            Ok(true) => {
                keeper.worker.worked();
                failures = 0;
                every
            }
            Ok(false) => {
                failures = 0;
                every / SOONER
            }
            Err(error) => {
                keeper.worker.failed(&error);
                failures += 1;
                pause_after(failures).min(every)
            }
        };
        if !keeper.worker.pause(pause).await {
            return;
        }
    }
}

struct Keeper {
    worker: Worker,
    /// Of each rule, the position below which it has nothing left to do.
    done: HashMap<(TenantId, ActionRetention), u64>,
    /// In this round something was not pruned that another process archives, or this one soon.
    passed_over: bool,
}

/// A tenant whose turn comes again.
struct Turn {
    log: TenantLog,
    /// As it was when the turns began.
    retention: Retention,
    /// Until nothing is left to prune.
    keep_days: Option<u32>,
    /// A prune stopped short.
    goes_on: bool,
    rules: VecDeque<ActionRetention>,
    /// The store took less of the first rule's last batch than it was asked for.
    fell_short: bool,
}

impl Turn {
    fn next_rule(&mut self) {
        self.rules.pop_front();
        self.fell_short = false;
    }
}

/// Entries that match, and the position behind what was looked through; none at the end.
struct Share {
    entries: Vec<Entry>,
    next: u64,
}

impl Keeper {
    /// Whether all went well; what failed for one tenant is told, and holds up no other.
    async fn round(&mut self) -> Result<bool> {
        let now = self.worker.log.clock.now();
        let tenants = self.tenants().await?;
        let rules: HashSet<(TenantId, &ActionRetention)> = tenants
            .iter()
            .filter_map(|t| Some((t.tenant, t.retention.as_ref().ok()?)))
            .flat_map(|(tenant, retention)| {
                let rules = retention.actions.iter();
                rules.map(move |rule| (tenant, rule))
            })
            .collect();
        self.done
            .retain(|(tenant, rule), _| rules.contains(&(*tenant, rule)));
        self.passed_over = false;
        let (mut held, mut is_well) = (BTreeSet::new(), true);
        let mut turns = VecDeque::new();
        for retained in tenants {
            if self.worker.stop.is_cancelled() {
                return Ok(true);
            }
            let tenant = retained.tenant;
            // The store refuses it anyway; this spares it the question.
            if retained.is_held {
                held.insert(tenant);
                continue;
            }
            let retention = match retained.retention {
                Ok(retention) => retention,
                Err(error) => {
                    self.worker.failed(&error.with_tenant(tenant));
                    is_well = false;
                    continue;
                }
            };
            let log = AuditLog {
                inner: Arc::clone(&self.worker.log),
            };
            turns.push_back(Turn {
                log: log.tenant(retention_scope(tenant)),
                keep_days: retention.keep_days,
                goes_on: false,
                rules: retention.actions.clone().into(),
                retention,
                fell_short: false,
            });
        }
        while let Some(mut turn) = turns.pop_front() {
            if self.worker.stop.is_cancelled() {
                return Ok(true);
            }
            match self.step(&mut turn, now).await {
                Ok(true) => turns.push_back(turn),
                Ok(false) => {}
                Err(error) if is_closed(&error) => {}
                // Its end was asked for meanwhile: the next round passes it over.
                Err(error) if self.is_ending(&turn.log, &error).await => {}
                Err(error) if self.is_held(&turn.log, &error).await => {
                    held.insert(turn.log.scope().tenant());
                }
                Err(error) => {
                    self.worker.failed(&error);
                    is_well = false;
                    // The rules don't depend on a prune, nor on each other.
                    if turn.keep_days.take().is_none() {
                        turn.next_rule();
                    }
                    turns.push_back(turn);
                }
            }
            tokio::task::yield_now().await;
        }
        self.worker.desk.edit(&self.worker.name, |s| {
            let status = s.retention.get_or_insert_default();
            status.last_run = Some(now);
            status.held = held.len() as u64;
        });
        Ok(is_well && !self.passed_over)
    }

    /// The tenants whose entries go by themselves.
    async fn tenants(&self) -> Result<Vec<Retained>> {
        let mut tenants: Vec<Retained> = Vec::new();
        let mut after = None;
        loop {
            let some = self.worker.log.retention.retained(after, TENANTS).await?;
            after = some.last().map(|retained| retained.tenant);
            let is_last = some.len() < TENANTS;
            let removes = |t: &Retained| t.retention.as_ref().map_or(true, Retention::removes);
            tenants.extend(some.into_iter().filter(removes));
            if is_last {
                return Ok(tenants);
            }
        }
    }

    /// Whether a refusal is a hold's: a minimum refuses, too, and is a failure here.
    async fn is_held(&self, log: &TenantLog, error: &Error) -> bool {
        error.kind() == ErrorKind::Refused && matches!(log.hold_refusal().await, Ok(Some(_)))
    }

    async fn is_ending(&self, log: &TenantLog, error: &Error) -> bool {
        let store = &self.worker.log.offboarding;
        error.kind() == ErrorKind::Refused
            && matches!(store.ending(log.scope().tenant()).await, Ok(Some(_)))
    }

    /// Prunes, and when nothing is left to prune, erases; false when nothing is left at all.
    async fn step(&mut self, turn: &mut Turn, now: Timestamp) -> Result<bool> {
        let Some(days) = turn.keep_days else {
            return self.erase(turn, now).await;
        };
        let is_ready = self.may_archive();
        self.passed_over |= !is_ready;
        // What was set meanwhile counts from the next round on.
        if turn.goes_on {
            let tenant = turn.log.scope().tenant();
            let now_set = self.worker.log.retention.retention(tenant).await?;
            if now_set != turn.retention {
                return Ok(false);
            }
        }
        turn.goes_on = is_ready && self.prune(&turn.log, days).await?;
        if !turn.goes_on {
            turn.keep_days = None;
        }
        Ok(true)
    }

    /// Whether this process signs, where what is pruned is archived: only the signer has a checkpoint
    /// of a log that grows all the time.
    fn may_archive(&self) -> bool {
        let log = &self.worker.log;
        let signs = || log.signing.as_ref().is_none_or(|s| s.fence().is_some());
        log.archive.is_none() || signs()
    }

    /// By the store's clock: one of this process that is ahead destroys nothing early. Whether more was
    /// due: with an archive one prune takes no more than a request may wait for. What falls due
    /// meanwhile waits for the next round.
    async fn prune(&self, log: &TenantLog, days: u32) -> Result<bool> {
        let prune = Prune::older_than_days(days, retention_basis()?, self.act(log)?);
        let (pruned, is_short) = log.prune_part(prune).await?;
        if pruned.entries > 0 {
            tracing::info!(tenant = %log.scope().tenant(), entries = pruned.entries,
                below = pruned.below, "entries were older than they are kept");
        }
        self.worker.desk.edit(&self.worker.name, |s| {
            s.retention.get_or_insert_default().pruned += pruned.entries;
        });
        Ok(is_short)
    }

    fn act(&self, log: &TenantLog) -> Result<Act> {
        let clock = Arc::clone(&self.worker.log.clock);
        Ok(Act::new(log.scope(), None, clock)?.by_system())
    }

    /// Erases one batch of the first rule; false when no rule has anything left.
    async fn erase(&mut self, turn: &mut Turn, now: Timestamp) -> Result<bool> {
        let Some(rule) = turn.rules.front() else {
            return Ok(false);
        };
        let store = &self.worker.log.store;
        let scope = turn.log.scope();
        let place = (scope.tenant(), rule.clone());
        let from = self.done.get(&place).copied().unwrap_or(0);
        let filter = rule.due(now).from_seq(from);
        let share = match share_by_list(&**store, scope, &filter).await {
            // One damaged entry doesn't stop a rule: it is matched as it stands.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                share_by_read(&**store, scope, &filter, from).await?
            }
            share => share?,
        };
        let Some(share) = share else {
            turn.next_rule();
            return Ok(true);
        };
        let entries = share.entries.iter();
        let due = entries.filter(|entry| entry.fields.has_any_of(&rule.groups));
        let ids: Vec<EventId> = due.map(|entry| entry.id).collect();
        if !ids.is_empty() {
            let asked = ids.len() as u64;
            let erasure = Erasure::new(ids, retention_basis()?, self.act(&turn.log)?)
                .groups(&rule.groups)
                .older_than_days(rule.days)
                .unless_ending();
            let erased = store.erase(scope, &erasure).await?;
            self.worker.log.bell.ring(scope.tenant());
            self.worker.desk.edit(&self.worker.name, |s| {
                s.retention.get_or_insert_default().erased += erased.entries;
            });
            // Another process was faster, or the store's clock is behind this one's. What is still there
            // after another look waits for the next round.
            if erased.entries < asked {
                match turn.fell_short {
                    true => turn.next_rule(),
                    false => turn.fell_short = true,
                }
                return Ok(true);
            }
        }
        turn.fell_short = false;
        self.done.insert(place, share.next);
        Ok(true)
    }
}

async fn share_by_list(
    store: &dyn LogStore,
    scope: &TenantScope,
    filter: &Filter,
) -> Result<Option<Share>> {
    let page = PageRequest::first().ascending().limit(BATCH);
    let entries = store.list(scope, filter, &page).await?.items;
    let next = entries.last().map(|last| last.seq + 1);
    Ok(next.map(|next| Share { entries, next }))
}

/// As [`share_by_list`], entry by entry and without recomputing leaves.
async fn share_by_read(
    store: &dyn LogStore,
    scope: &TenantScope,
    filter: &Filter,
    from: u64,
) -> Result<Option<Share>> {
    let mut entries = store.read(scope, from, BATCH).await?;
    if let Some(to) = filter.created.to {
        entries.retain(|entry| entry.created_at < to);
    }
    let next = entries.last().map(|last| last.seq + 1);
    entries.retain(|entry| filter.matches(entry));
    Ok(next.map(|next| Share { entries, next }))
}
