//! Prunes and erases what is older than its tenant keeps it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use audit_tlog::Timestamp;

use super::{Worker, is_closed, pause_after};
use crate::error::{ErrorKind, Result};
use crate::id::{EventId, TenantId};
use crate::log::{AuditLog, TenantLog};
use crate::page::PageRequest;
use crate::prepare::Act;
use crate::retention::{ActionRetention, Retained, retention_basis, retention_scope};
use crate::store::{Erasure, Prune};

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
}

/// A tenant whose turn comes again.
struct Turn {
    log: TenantLog,
    rules: VecDeque<ActionRetention>,
}

impl Keeper {
    /// Whether all went well; what failed for one tenant is told, and holds up no other.
    async fn round(&mut self) -> Result<bool> {
        let now = self.worker.log.clock.now();
        let tenants = self.tenants().await?;
        let rules: HashSet<(TenantId, &ActionRetention)> = tenants
            .iter()
            .flat_map(|t| t.retention.actions.iter().map(|rule| (t.tenant, rule)))
            .collect();
        self.done
            .retain(|(tenant, rule), _| rules.contains(&(*tenant, rule)));
        let (mut held, mut is_well) = (BTreeSet::new(), true);
        let mut turns = VecDeque::new();
        for retained in tenants {
            if self.worker.stop.is_cancelled() {
                return Ok(true);
            }
            let tenant = retained.tenant;
            match self.prune(retained, now).await {
                Ok(Some(turn)) => turns.push_back(turn),
                Ok(None) => {
                    held.insert(tenant);
                }
                Err(error) if error.kind() == ErrorKind::Refused => {
                    held.insert(tenant);
                }
                Err(error) if is_closed(&error) => {}
                Err(error) => {
                    self.worker.failed(&error);
                    is_well = false;
                }
            }
        }
        while let Some(mut turn) = turns.pop_front() {
            if self.worker.stop.is_cancelled() {
                return Ok(true);
            }
            match self.erase(&mut turn, now).await {
                Ok(true) => turns.push_back(turn),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::Refused => {
                    held.insert(turn.log.scope().tenant());
                }
                Err(error) if is_closed(&error) => {}
                Err(error) => {
                    self.worker.failed(&error);
                    is_well = false;
                }
            }
            tokio::task::yield_now().await;
        }
        self.worker.desk.edit(&self.worker.name, |s| {
            let status = s.retention.get_or_insert_default();
            status.last_run = Some(now);
            status.held = held.len() as u64;
        });
        Ok(is_well)
    }

    /// The tenants whose entries go by themselves.
    async fn tenants(&self) -> Result<Vec<Retained>> {
        let mut tenants: Vec<Retained> = Vec::new();
        let mut after = None;
        loop {
            let some = self.worker.log.retention.retained(after, TENANTS).await?;
            after = some.last().map(|retained| retained.tenant);
            let is_last = some.len() < TENANTS;
            tenants.extend(some.into_iter().filter(|t| t.retention.removes()));
            if is_last {
                return Ok(tenants);
            }
        }
    }

    /// Prunes, and says what there may be to erase; none when a hold forbids both.
    async fn prune(&self, retained: Retained, now: Timestamp) -> Result<Option<Turn>> {
        // The store refuses it anyway; this spares it the question.
        if retained.is_held {
            return Ok(None);
        }
        let log = AuditLog {
            inner: Arc::clone(&self.worker.log),
        };
        let log = log.tenant(retention_scope(retained.tenant));
        if let Some(before) = retained.retention.prunes_before(now) {
            let prune = Prune::new(before, retention_basis()?, self.act(&log)?);
            let pruned = log.prune_by(prune).await?;
            if pruned.entries > 0 {
                tracing::info!(tenant = %retained.tenant, entries = pruned.entries,
                    below = pruned.below, "entries were older than they are kept");
            }
            self.worker.desk.edit(&self.worker.name, |s| {
                s.retention.get_or_insert_default().pruned += pruned.entries;
            });
        }
        Ok(Some(Turn {
            log,
            rules: retained.retention.actions.into(),
        }))
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
        let page = PageRequest::first().ascending().limit(BATCH);
        let page = store
            .list(scope, &rule.due(now).from_seq(from), &page)
            .await?;
        let Some(last) = page.items.last() else {
            turn.rules.pop_front();
            return Ok(true);
        };
        let due = page
            .items
            .iter()
            .filter(|e| e.fields.has_any_of(&rule.groups));
        let ids: Vec<EventId> = due.map(|entry| entry.id).collect();
        if !ids.is_empty() {
            let erasure = Erasure::new(ids, retention_basis()?, self.act(&turn.log)?);
            let erased = store.erase(scope, &erasure.groups(&rule.groups)).await?;
            self.worker.log.bell.ring(scope.tenant());
            self.worker.desk.edit(&self.worker.name, |s| {
                s.retention.get_or_insert_default().erased += erased.entries;
            });
        }
        self.done.insert(place, last.seq + 1);
        Ok(true)
    }
}
