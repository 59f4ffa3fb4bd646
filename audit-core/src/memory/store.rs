//! The log store, tenants and credentials in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use audit_tlog::{Control, Hash, HeadOpening, Kind, Timestamp, merkle};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use uuid::Uuid;

use crate::checkpoint::{
    CheckpointStore, EpochStart, Fence, KeyChange, Lease, SignedCheckpoint, admit_checkpoint,
};
use crate::clock::{Clock, SystemClock};
use crate::credential::{ApiKey, CredentialStore, KeyPlace, SecretHash, Ticket};
use crate::deployment::{
    DeploymentStore, TenantHead, Uncommitted, admit_commit, all_of, edge_of, grow, is_uncommitted,
};
use crate::entry::{Entry, Evidence, Opening, Receipt, StoredEntry};
use crate::erasure::{
    ErasureJob, ErasureMark, ErasureState, ErasureStore, LATE_MICROS, admit_erasure, taken_erasure,
};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{ActionType, Outcome, Severity};
use crate::filter::Filter;
use crate::id::{ErasureId, EventId, TenantId};
use crate::offboarding::{
    Ending, OffboardingStore, Tombstone, admit_end, admit_ending, admit_removal, admit_update,
};
use crate::page::{Order, Page, PageRequest, Sort};
use crate::prepare::{Batch, PreparedEvent};
use crate::retention::{
    LegalHold, Protection, Retained, Retention, RetentionStore, admit_hold, no_hold,
};
use crate::scope::{Permission, TenantScope};
use crate::seal::{Head, Known, Row, only_receipt, seal};
use crate::store::{
    Counter, Declaration, Erased, Erasure, Grown, LogStore, Lookup, Mark, Prune, Pruned, Snapshot,
    Tally, plan_erasure,
};
use crate::tenant::{Tenant, TenantFilter, TenantSecret, TenantStatus, TenantStore, TenantUpdate};

/// Rows that one [`LogStore::sweep`] removes at most.
const SWEEP_STEP: u64 = 1_000;

/// A log store with its tenants and credentials, in memory.
///
/// "Durable" means here: until it is dropped. Lists scan the tenant's log, so it suits logs of some
/// ten thousand entries.
#[derive(Debug)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    logs: BTreeMap<TenantId, Log>,
    /// Counts appends over all tenants.
    mark: u64,
    keys: HashMap<SecretHash, ApiKey>,
    tickets: HashMap<SecretHash, Ticket>,
    signer: Option<Lease>,
    deployment: DeploymentLog,
}

/// The log over all tenants' heads.
#[derive(Debug, Clone, Default)]
struct DeploymentLog {
    openings: Vec<HeadOpening>,
    /// By level, the hashes of complete subtrees of 256^level leaves.
    hashes: Vec<Vec<Hash>>,
    /// In the order in which they were published.
    checkpoints: Vec<SignedCheckpoint>,
    /// By tenant, the position of its last leaf.
    last: HashMap<TenantId, usize>,
}

impl DeploymentLog {
    fn hashes(&self, level: u8, range: &Range<u64>) -> Result<Vec<Hash>> {
        let hashes = self.hashes.get(usize::from(level));
        let found = within(hashes.map_or(&[], Vec::as_slice), range);
        all_of(found.to_vec(), range)
    }
}

/// The part of a range that is there.
fn within<'a, T>(all: &'a [T], range: &Range<u64>) -> &'a [T] {
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(all.len());
    let (start, end) = (place(range.start), place(range.end));
    all.get(start..end).unwrap_or_default()
}

/// One tenant with its log.
#[derive(Debug, Clone)]
struct Log {
    tenant: Tenant,
    head: Head,
    /// By position; none once it was swept.
    rows: Vec<Option<Arc<StoredEntry>>>,
    hashes: Vec<Hash>,
    /// Leaf data that outlives a prune.
    kept: BTreeMap<u64, (Kind, String)>,
    checkpoints: BTreeMap<u64, SignedCheckpoint>,
    key_changes: Vec<KeyChange>,
    epochs: Vec<EpochStart>,
    ids: HashMap<EventId, Known>,
    counters: BTreeMap<(i32, ActionType, Severity, Outcome), u64>,
    cursors: HashMap<String, Cursor>,
    retention: Retention,
    /// Those that were placed first come first.
    holds: Vec<LegalHold>,
    erasures: BTreeMap<ErasureId, ErasureJob>,
    /// By mark and job: when that was asked for.
    marks: BTreeMap<(ErasureMark, ErasureId), Timestamp>,
    /// The mark of the last append.
    grown_at: u64,
    ending: Option<Ending>,
    grave: Option<Grave>,
}

/// What is left of a deleted tenant, and of what it left.
#[derive(Debug, Clone)]
struct Grave {
    tombstone: Tombstone,
    is_swept: bool,
    is_settled: bool,
}

impl Grave {
    /// Queue and outbox are other stores: nothing of them goes with the tenant.
    fn told(&self) -> Tombstone {
        let mut tombstone = self.tombstone.clone();
        tombstone.is_swept = self.is_swept;
        tombstone.unappended = Some(0);
        tombstone
    }
}

#[derive(Debug, Clone, Default)]
struct Cursor {
    position: u64,
    required: bool,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store on the system's clock.
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// An empty store on a clock that a test may control.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            state: Mutex::default(),
        }
    }

    /// A store with what this one has now, as a backup of it would have: nothing that happens to one
    /// shows in the other. They share the clock.
    #[must_use]
    pub fn backup(&self) -> Self {
        Self {
            clock: Arc::clone(&self.clock),
            state: Mutex::new(self.lock().clone()),
        }
    }

    // A panic of another thread leaves the state whole: each change below is made after everything
    // that can fail.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn log(&self, tenant: TenantId) -> Result<&Log> {
        self.logs.get(&tenant).ok_or_else(|| unknown_tenant(tenant))
    }

    fn log_mut(&mut self, tenant: TenantId) -> Result<&mut Log> {
        self.logs
            .get_mut(&tenant)
            .ok_or_else(|| unknown_tenant(tenant))
    }

    /// The logs of the tenants behind one, in the order of their ids.
    fn logs_behind(&self, after: Option<TenantId>) -> impl Iterator<Item = (&TenantId, &Log)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.logs.range((from, Bound::Unbounded))
    }

    /// The log for a read within the scope.
    fn open(&self, scope: &TenantScope, permission: Permission) -> Result<&Log> {
        scope.require(permission)?;
        let log = self.log(scope.tenant())?;
        log.tenant.status.admit_read(scope.tenant())?;
        Ok(log)
    }

    fn next_mark(&mut self) -> u64 {
        self.mark += 1;
        self.mark
    }
}

fn unknown_tenant(tenant: TenantId) -> Error {
    Error::new(ErrorKind::UnknownTenant, "there is no such tenant").with_tenant(tenant)
}

impl Log {
    fn new(tenant: Tenant) -> Self {
        Self {
            head: Head::empty(tenant.id),
            tenant,
            rows: Vec::new(),
            hashes: Vec::new(),
            kept: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            key_changes: Vec::new(),
            epochs: Vec::new(),
            ids: HashMap::new(),
            counters: BTreeMap::new(),
            cursors: HashMap::new(),
            retention: Retention::default(),
            holds: Vec::new(),
            erasures: BTreeMap::new(),
            marks: BTreeMap::new(),
            grown_at: 0,
            ending: None,
            grave: None,
        }
    }

    /// Whether there is something to sweep.
    fn is_unswept(&self) -> bool {
        let is_left = self.grave.as_ref().is_some_and(|grave| !grave.is_swept);
        is_left || self.head.swept_below < self.head.pruned_below
    }

    /// Removes what is left of a deleted tenant, but for its tombstone; false of another one.
    fn sweep_deleted(&mut self) -> bool {
        let Some(mut grave) = self.grave.take() else {
            return false;
        };
        grave.is_swept = true;
        *self = Self {
            grave: Some(grave),
            ..Self::new(self.tenant.clone())
        };
        true
    }

    /// What is known of the batches' ids. What is pruned can't be compared with any more.
    fn known(&self, batches: &[&Batch]) -> HashMap<EventId, Known> {
        let ids = batches
            .iter()
            .flat_map(|batch| batch.events())
            .map(PreparedEvent::id);
        ids.filter_map(|id| {
            let mut known = *self.ids.get(&id)?;
            if known.seq < self.head.pruned_below {
                known.content = None;
            }
            Some((id, known))
        })
        .collect()
    }

    /// Appends batches of this tenant. On an outer error nothing is changed.
    fn append(
        &mut self,
        batches: &[&Batch],
        now: Timestamp,
        mark: u64,
    ) -> Result<Vec<Result<Vec<Receipt>>>> {
        let sealing = seal(batches, &self.head, now, &self.known(batches))?;
        if !sealing.rows.is_empty() {
            self.grown_at = mark;
        }
        let mut tally = Tally::default();
        for row in &sealing.rows {
            let fields = row.event.fields();
            tally.add(
                row.created_at.utc_day(),
                fields.action_type,
                fields.severity,
                fields.outcome,
            );
            self.hashes.push(row.leaf_hash);
            self.ids.insert(
                row.event.id(),
                Known {
                    seq: row.seq,
                    created_at: row.created_at,
                    leaf_hash: row.leaf_hash,
                    content: Some(row.event.content()),
                },
            );
            self.rows
                .push(Some(Arc::new(stored(self.head.tenant, row))));
        }
        for counter in tally.counters() {
            let key = (
                counter.day,
                counter.action_type,
                counter.severity,
                counter.outcome,
            );
            *self.counters.entry(key).or_default() += counter.count;
        }
        self.head = sealing.head;
        Ok(sealing.outcomes)
    }

    /// Appends an administrator's event, whatever the tenant's status.
    fn tell(&mut self, event: &PreparedEvent, now: Timestamp, mark: u64) -> Result<()> {
        let scope = TenantScope::trusted(self.tenant.id, "tenants");
        let batch = Batch::new(scope, vec![event.clone()]);
        self.append_own(&batch, now, mark).map(drop)
    }

    /// Appends a batch of the log's own, with its receipts.
    fn append_own(&mut self, batch: &Batch, now: Timestamp, mark: u64) -> Result<Vec<Receipt>> {
        let mut receipts = Vec::new();
        for outcome in self.append(&[batch], now, mark)? {
            receipts.extend(outcome?);
        }
        Ok(receipts)
    }

    /// Refuses what is asked of a deleted tenant.
    fn exists(&self) -> Result<()> {
        match self.tenant.status {
            TenantStatus::Deleted => self.tenant.status.admit_read(self.tenant.id),
            _ => Ok(()),
        }
    }

    fn protection(&self) -> Protection {
        let mut open = self.holds.iter().filter(|hold| hold.is_open());
        Protection {
            hold: open.next().map(|hold| (hold.id, hold.name.clone())),
            minimum_days: self.retention.minimum_days,
            is_ending: self.ending.is_some(),
        }
    }

    /// The row at a position, unless it is pruned or was never written.
    fn row(&self, seq: u64) -> Option<&Arc<StoredEntry>> {
        if seq < self.head.pruned_below {
            return None;
        }
        self.rows.get(usize::try_from(seq).ok()?)?.as_ref()
    }

    /// The rows that are left, from a position on.
    fn rows_from(&self, from: u64) -> impl DoubleEndedIterator<Item = &Arc<StoredEntry>> {
        let from = usize::try_from(from.max(self.head.pruned_below)).unwrap_or(usize::MAX);
        self.rows.get(from..).unwrap_or_default().iter().flatten()
    }

    /// The position below which everything was accepted before `before` and is needed by no
    /// consumer, whatever the one of the name `but_for` needs.
    fn prunable_below(&self, before: Timestamp, but_for: Option<&str>) -> u64 {
        let accepted = self
            .rows_from(0)
            .find(|row| row.entry.created_at >= before)
            .map_or(self.head.size(), |row| row.entry.seq);
        let needed = self
            .cursors
            .iter()
            .filter(|(name, c)| c.required && but_for != Some(name))
            .map(|(_, c)| c.position)
            .min();
        accepted
            .min(needed.unwrap_or(u64::MAX))
            .max(self.head.pruned_below)
    }
}

fn stored(tenant: TenantId, row: &Row<'_>) -> StoredEntry {
    let mut entry = Entry::new(
        tenant,
        row.event.id(),
        row.seq,
        row.created_at,
        row.event.fields().clone(),
    );
    entry.occurred_at = row.occurred_at;
    entry.kind = row.event.kind();
    entry.ctl = row.event.ctl().map(str::to_owned);
    entry.leaf_hash = row.leaf_hash;
    StoredEntry {
        entry,
        opening: Opening::Seed(row.event.seed().clone()),
    }
}

fn shown(row: &Arc<StoredEntry>) -> Entry {
    StoredEntry::clone(row).into_entry()
}

fn verified(row: &Arc<StoredEntry>) -> Result<Entry> {
    StoredEntry::clone(row).verify()
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LogStore for MemoryStore {
    async fn append(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>> {
        let mut state = self.lock();
        let now = self.clock.now();
        let mut outcomes: Vec<Option<Result<Vec<Receipt>>>> = Vec::with_capacity(batches.len());
        let mut by_tenant: BTreeMap<TenantId, Vec<usize>> = BTreeMap::new();
        for (i, batch) in batches.iter().enumerate() {
            let refusal = self.admit(&mut state, batch, now).err();
            if refusal.is_none() {
                by_tenant.entry(batch.tenant()).or_default().push(i);
            }
            outcomes.push(refusal.map(Err));
        }
        for (tenant, places) in by_tenant {
            let mark = state.next_mark();
            let log = state.log_mut(tenant)?;
            let own: Vec<&Batch> = places.iter().map(|&i| &batches[i]).collect();
            match log.append(&own, now, mark) {
                Ok(results) => {
                    for (i, result) in places.into_iter().zip(results) {
                        outcomes[i] = Some(result);
                    }
                }
                Err(error) => {
                    for i in places {
                        outcomes[i] = Some(Err(error.clone()));
                    }
                }
            }
        }
        outcomes
            .into_iter()
            .map(|outcome| {
                outcome.ok_or_else(|| Error::new(ErrorKind::Internal, "a batch has no outcome"))
            })
            .collect()
    }

    async fn get(&self, scope: &TenantScope, ids: &[EventId]) -> Result<Vec<Lookup>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Read)?;
        ids.iter()
            .map(|id| {
                let Some(known) = log.ids.get(id) else {
                    return Ok(Lookup::Missing);
                };
                match (log.row(known.seq), log.head.pruned_by) {
                    (Some(row), _) => Ok(Lookup::Found(Box::new(verified(row)?))),
                    (None, Some(by)) => Ok(Lookup::Pruned { by }),
                    (None, None) => Err(Error::corrupt(log.tenant.id, known.seq)),
                }
            })
            .collect()
    }

    async fn at(&self, scope: &TenantScope, seqs: &[u64]) -> Result<Vec<Entry>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Read)?;
        seqs.iter()
            .filter_map(|&seq| log.row(seq))
            .map(verified)
            .collect()
    }

    async fn list(
        &self,
        scope: &TenantScope,
        filter: &Filter,
        page: &PageRequest,
    ) -> Result<Page<Entry>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Read)?;
        let key = |row: &StoredEntry| match page.sort {
            Sort::Seq => (row.entry.seq, 0),
            Sort::OccurredAt => (
                row.entry.occurred_at.as_micros().unsigned_abs(),
                row.entry.seq,
            ),
        };
        let mut rows: Vec<&Arc<StoredEntry>> =
            log.rows_from(filter.from_seq.unwrap_or(0)).collect();
        if page.sort == Sort::OccurredAt {
            rows.sort_by_key(|row| key(row));
        }
        if page.order == Order::Descending {
            rows.reverse();
        }
        let after = page.after.map(|after| match page.sort {
            Sort::Seq => (after.seq, 0),
            Sort::OccurredAt => (after.occurred_at.as_micros().unsigned_abs(), after.seq),
        });
        let behind = |row: &StoredEntry| match (after, page.order) {
            (None, _) => true,
            (Some(after), Order::Ascending) => key(row) > after,
            (Some(after), Order::Descending) => key(row) < after,
        };
        let mut items = Vec::new();
        let mut more = false;
        let limit = page.limit.clamp(1, PageRequest::MAX_LIMIT);
        for row in rows.into_iter().filter(|row| behind(row)) {
            if !filter.matches(&row.entry) {
                continue;
            }
            if items.len() == limit {
                more = true;
                break;
            }
            items.push(verified(row)?);
        }
        let last = items.last().map(Entry::position);
        let next = match page.order {
            Order::Ascending => last.or(page.after),
            Order::Descending => last.filter(|_| more),
        };
        Ok(Page::new(items, next))
    }

    async fn read(&self, scope: &TenantScope, from: u64, limit: usize) -> Result<Vec<Entry>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Stream)?;
        Ok(log.rows_from(from).take(limit).map(shown).collect())
    }

    async fn snapshot(&self, scope: &TenantScope) -> Result<Box<dyn Snapshot>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Export)?;
        Ok(Box::new(MemorySnapshot {
            head: log.head.clone(),
            rows: log.rows_from(0).cloned().collect(),
        }))
    }

    async fn counters(&self, scope: &TenantScope, days: Range<i32>) -> Result<Vec<Counter>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Read)?;
        Ok(log
            .counters
            .iter()
            .filter(|((day, ..), count)| days.contains(day) && **count > 0)
            .map(|(&(day, action_type, severity, outcome), &count)| Counter {
                day,
                action_type,
                severity,
                outcome,
                count,
            })
            .collect())
    }

    async fn head(&self, scope: &TenantScope) -> Result<Head> {
        Ok(self.lock().open(scope, Permission::Read)?.head.clone())
    }

    async fn hashes(&self, scope: &TenantScope, level: u8, range: Range<u64>) -> Result<Vec<Hash>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Read)?;
        // A width that doesn't fit is larger than any tree.
        let width = 256_usize.checked_pow(level.into());
        let complete = width.map_or(0, |width| log.hashes.len() / width);
        let beyond = || Error::new(ErrorKind::NotFound, "the range reaches beyond the tree");
        let end = usize::try_from(range.end)
            .ok()
            .filter(|end| *end <= complete)
            .ok_or_else(beyond)?;
        let start = usize::try_from(range.start).map_err(|_| beyond())?.min(end);
        let width = width.unwrap_or(1);
        Ok(log.hashes[start * width..end * width]
            .chunks(width)
            .map(merkle::subtree_root)
            .collect())
    }

    async fn leaves(&self, scope: &TenantScope, range: Range<u64>) -> Result<Vec<(u64, String)>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Read)?;
        let mut leaves: BTreeMap<u64, String> = log
            .kept
            .iter()
            .filter(|(seq, _)| range.contains(seq))
            .map(|(seq, (_, leaf))| (*seq, leaf.clone()))
            .collect();
        let rows = log.rows_from(range.start);
        leaves.extend(
            rows.take_while(|row| row.entry.seq < range.end)
                .map(|row| (row.entry.seq, row.leaf_data())),
        );
        Ok(leaves.into_iter().collect())
    }

    async fn erase(&self, scope: &TenantScope, erasure: &Erasure) -> Result<Erased> {
        scope.require(Permission::Erase)?;
        let mut state = self.lock();
        let now = self.clock.now();
        let mark = state.next_mark();
        let log = state.log_mut(scope.tenant())?;
        log.tenant.status.admit_read(scope.tenant())?;
        log.protection().admit_erasure(scope.tenant(), erasure)?;
        let pruned_below = log.head.pruned_below;
        erasure.admit_pruned(pruned_below)?;
        let mut below = u64::MAX;
        if let Some(step) = &erasure.step {
            match log.erasures.get(&step.id) {
                Some(job) if job.admits(step) => below = job.below,
                _ => return Ok(Erased::default()),
            }
        }
        let ids: HashSet<&EventId> = erasure.ids.iter().collect();
        let targets = ids
            .into_iter()
            .filter_map(|id| log.ids.get(id))
            .filter(|known| known.seq < below)
            .filter_map(|known| log.row(known.seq))
            .map(|row| StoredEntry::clone(row))
            .collect();
        let plan = plan_erasure(scope.tenant(), targets, erasure, pruned_below, now);
        let entries = plan.entries();
        let mut receipts = Vec::new();
        if !plan.controls.is_empty() {
            let controls = Batch::new(scope.clone(), plan.controls);
            receipts = log.append_own(&controls, now, mark)?;
        }
        if let Some(step) = &erasure.step
            && let Some(job) = log.erasures.get_mut(&step.id)
        {
            job.advance(step, entries);
        }
        for changed in plan.changed {
            if let Some(known) = log.ids.get_mut(&changed.entry.id) {
                known.content = None;
            }
            let place = changed.entry.seq as usize;
            log.rows[place] = Some(Arc::new(changed));
        }
        Ok(Erased::new(entries, receipts))
    }

    async fn declare(&self, scope: &TenantScope, declaration: &Declaration) -> Result<Receipt> {
        scope.require(Permission::Cleanup)?;
        let tenant = scope.tenant();
        let mut state = self.lock();
        let now = self.clock.now();
        let mark = state.next_mark();
        let signer = state.signer.as_ref().map(|lease| lease.fence);
        let log = state.log_mut(tenant)?;
        log.tenant.status.admit_read(tenant)?;
        declaration.admit(signer)?;
        if !log.ids.contains_key(&declaration.id()) {
            declaration.admit_at(log.head.size())?;
        }
        let control = Batch::new(scope.clone(), vec![declaration.prepare(tenant)]);
        let receipt = only_receipt(log.append_own(&control, now, mark)?)?;
        if !receipt.duplicate {
            log.key_changes.extend(declaration.key_change(receipt.seq));
            log.epochs.extend(declaration.epoch_start(receipt.seq));
        }
        Ok(receipt)
    }

    async fn prune(&self, scope: &TenantScope, prune: &Prune) -> Result<Pruned> {
        scope.require(Permission::Cleanup)?;
        let mut state = self.lock();
        let now = self.clock.now();
        let mark = state.next_mark();
        let log = state.log_mut(scope.tenant())?;
        log.tenant.status.admit_read(scope.tenant())?;
        let before = log.protection().admit_prune(scope.tenant(), prune, now)?;
        let was = log.head.pruned_below;
        let below = log.prunable_below(before, prune.but_for);
        let below = below.min(prune.below_at_most).max(was);
        if below == was || prune.dry_run {
            return Ok(Pruned::new(below, below - was, None));
        }
        if let Some(since) = prune.unless_erased_since {
            let mut later = log.rows_from(since);
            prune.admit_erasure(later.any(|row| row.entry.kind == Kind::Erase))?;
        }
        let control = Control::Prune {
            below,
            root: merkle::root(&log.hashes[..below as usize]),
            before,
            basis: prune.basis.clone(),
        };
        let event = prune.act.prepare(scope.tenant(), &control);
        let batch = Batch::new(scope.clone(), vec![event]);
        let receipt = log.append_own(&batch, now, mark)?.pop();
        let Log {
            rows,
            counters,
            kept,
            ..
        } = log;
        let bundle = below / 256 * 256;
        let outlives = |seq, kind| seq >= bundle || matches!(kind, Kind::Key | Kind::Epoch);
        kept.retain(|seq, (kind, _)| outlives(*seq, *kind));
        for row in rows[was as usize..below as usize].iter().flatten() {
            if outlives(row.entry.seq, row.entry.kind) {
                kept.insert(row.entry.seq, (row.entry.kind, row.leaf_data()));
            }
            let f = &row.entry.fields;
            let day = row.entry.created_at.utc_day();
            if let Some(n) = counters.get_mut(&(day, f.action_type, f.severity, f.outcome)) {
                *n = n.saturating_sub(1);
            }
        }
        log.head.pruned_below = below;
        log.head.pruned_by = receipt.as_ref().map(|r| r.seq);
        Ok(Pruned::new(below, below - was, receipt))
    }

    async fn sweep(&self) -> Result<bool> {
        let mut state = self.lock();
        if let Some(log) = state.logs.values_mut().find(|log| log.is_unswept())
            && !log.sweep_deleted()
        {
            let from = log.head.swept_below;
            let to = log.head.pruned_below.min(from + SWEEP_STEP);
            for row in &mut log.rows[from as usize..to as usize] {
                if let Some(row) = row.take()
                    && let Some(known) = log.ids.get_mut(&row.entry.id)
                {
                    known.content = None;
                }
            }
            log.head.swept_below = to;
        }
        Ok(state.logs.values().any(Log::is_unswept))
    }

    async fn grown_since(&self, since: Mark) -> Result<Grown> {
        let state = self.lock();
        let tenants = state
            .logs
            .iter()
            .filter(|(_, log)| log.grown_at > since.0)
            .map(|(id, log)| (*id, log.head.size()))
            .collect();
        Ok(Grown::new(tenants, Mark(state.mark)))
    }

    async fn cursor(&self, tenant: TenantId, consumer: &str) -> Result<u64> {
        let state = self.lock();
        let cursor = state
            .logs
            .get(&tenant)
            .and_then(|log| log.cursors.get(consumer));
        Ok(cursor.map_or(0, |c| c.position))
    }

    async fn advance(
        &self,
        tenant: TenantId,
        consumer: &str,
        required: bool,
        position: u64,
    ) -> Result<()> {
        let mut state = self.lock();
        let log = state.log_mut(tenant)?;
        log.exists()?;
        let cursor = log.cursors.entry(consumer.to_owned()).or_default();
        cursor.position = cursor.position.max(position);
        cursor.required = required;
        Ok(())
    }

    async fn ping(&self) -> Result<()> {
        Ok(())
    }
}

impl MemoryStore {
    /// Checks a batch's right to be appended, and creates its tenant when it may.
    fn admit(&self, state: &mut State, batch: &Batch, now: Timestamp) -> Result<()> {
        batch.scope().require(Permission::Record)?;
        if let Some(control) = batch
            .events()
            .iter()
            .find(|event| event.kind().is_control())
        {
            return Err(Error::new(
                ErrorKind::Refused,
                "control entries are written by the acts that they explain",
            )
            .with_event_id(control.id()));
        }
        let id = batch.tenant();
        if batch.creates_tenant() && !state.logs.contains_key(&id) {
            let secret = TenantSecret::new(self.clock.secret());
            let tenant = Tenant::new(id, id.to_string(), now, secret)?;
            state.logs.insert(id, Log::new(tenant));
        }
        state.log(id)?.tenant.status.admit_write(id)
    }
}

#[derive(Debug)]
struct MemorySnapshot {
    head: Head,
    rows: Vec<Arc<StoredEntry>>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Snapshot for MemorySnapshot {
    fn head(&self) -> &Head {
        &self.head
    }

    async fn scan(&self, filter: &Filter) -> Result<BoxStream<'static, Result<Entry>>> {
        let filter = filter.clone();
        let rows = self.rows.clone().into_iter();
        let entries = rows
            .filter(move |row| filter.matches(&row.entry))
            .map(|row| Ok(shown(&row)));
        Ok(stream::iter(entries).boxed())
    }

    async fn evidence(&self, filter: &Filter) -> Result<BoxStream<'static, Result<Evidence>>> {
        let filter = filter.clone();
        let rows = self.rows.clone().into_iter();
        let rows = rows.filter(move |row| filter.matches(&row.entry));
        let evidence = rows.map(|row| Ok(StoredEntry::clone(&row).into_evidence()));
        Ok(stream::iter(evidence).boxed())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ErasureStore for MemoryStore {
    async fn begin_erasure(
        &self,
        scope: &TenantScope,
        job: &ErasureJob,
        marks: &[ErasureMark],
    ) -> Result<ErasureJob> {
        admit_erasure(scope, job)?;
        let mut state = self.lock();
        let log = state.log_mut(scope.tenant())?;
        log.tenant.status.admit_read(scope.tenant())?;
        admit_removal(scope.tenant(), log.ending.is_some())?;
        if log.erasures.contains_key(&job.id) {
            return Err(taken_erasure(job));
        }
        let asked = job.requested_at;
        let oldest = Timestamp::saturating_from_micros(asked.as_micros() - LATE_MICROS);
        log.marks.retain(|_, asked| *asked >= oldest);
        log.marks
            .extend(marks.iter().map(|mark| ((*mark, job.id), asked)));
        let job = job.clone().begun_at(log.head.size());
        log.erasures.insert(job.id, job.clone());
        Ok(job)
    }

    async fn find_erasure(&self, scope: &TenantScope, id: ErasureId) -> Result<Option<ErasureJob>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Erase)?;
        Ok(log.erasures.get(&id).cloned())
    }

    async fn open_erasures(
        &self,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Vec<ErasureJob>> {
        let state = self.lock();
        Ok(state
            .logs_behind(after)
            .filter(|(id, log)| log.tenant.status.admit_read(**id).is_ok())
            .filter_map(|(_, log)| {
                let mut jobs = log.erasures.values();
                jobs.find(|job| job.state == ErasureState::Running)
            })
            .take(limit)
            .cloned()
            .collect())
    }

    async fn note_erasure(&self, tenant: TenantId, id: ErasureId, error: &str) -> Result<()> {
        let mut state = self.lock();
        let job = state.log_mut(tenant)?.erasures.get_mut(&id);
        if let Some(job) = job.filter(|job| job.state == ErasureState::Running) {
            job.last_error = Some(error.to_owned());
        }
        Ok(())
    }

    async fn marked_erasures(
        &self,
        tenant: TenantId,
        marks: &[ErasureMark],
        since: Timestamp,
    ) -> Result<Vec<(ErasureMark, ErasureJob)>> {
        let state = self.lock();
        let Some(log) = state.logs.get(&tenant) else {
            return Ok(Vec::new());
        };
        let marks: HashSet<&ErasureMark> = marks.iter().collect();
        let marked = log
            .marks
            .iter()
            .filter(|((mark, _), asked)| marks.contains(mark) && **asked >= since)
            .filter_map(|((mark, id), _)| Some((*mark, log.erasures.get(id)?.clone())));
        Ok(marked.collect())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CheckpointStore for MemoryStore {
    async fn lease(&self, holder: &str, ttl: Duration) -> Result<Option<Fence>> {
        let mut state = self.lock();
        let taken = Lease::taken(state.signer.as_ref(), holder, self.clock.now(), ttl);
        let fence = taken.as_ref().map(|lease| lease.fence);
        state.signer = taken.or(state.signer.take());
        Ok(fence)
    }

    async fn publish(
        &self,
        fence: Fence,
        tenant: TenantId,
        checkpoint: &SignedCheckpoint,
    ) -> Result<()> {
        let mut state = self.lock();
        let signer = state.signer.as_ref().map(|lease| lease.fence);
        let log = state.log_mut(tenant)?;
        log.exists()?;
        let known = log
            .checkpoints
            .get(&checkpoint.size)
            .map(|known| known.root);
        admit_checkpoint(checkpoint, fence, signer, log.head.size(), known)?;
        let hour = checkpoint.hour();
        log.checkpoints
            .retain(|size, old| *size >= checkpoint.size || old.hour() != hour || old.is_handover);
        log.checkpoints
            .entry(checkpoint.size)
            .or_insert_with(|| checkpoint.clone());
        Ok(())
    }

    async fn latest(&self, scope: &TenantScope) -> Result<Option<SignedCheckpoint>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Read)?;
        Ok(log.checkpoints.values().next_back().cloned())
    }

    async fn covering(&self, scope: &TenantScope, size: u64) -> Result<Option<SignedCheckpoint>> {
        let state = self.lock();
        let log = state.open(scope, Permission::Read)?;
        Ok(log.checkpoints.range(size..).next().map(|(_, c)| c.clone()))
    }

    async fn key_changes(&self, scope: &TenantScope) -> Result<Vec<KeyChange>> {
        let state = self.lock();
        Ok(state.open(scope, Permission::Read)?.key_changes.clone())
    }

    async fn epochs(&self, scope: &TenantScope) -> Result<Vec<EpochStart>> {
        let state = self.lock();
        Ok(state.open(scope, Permission::Read)?.epochs.clone())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DeploymentStore for MemoryStore {
    async fn uncommitted_heads(
        &self,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Uncommitted> {
        let state = self.lock();
        let mut uncommitted = Uncommitted::default();
        for (n, (tenant, log)) in state.logs_behind(after).enumerate() {
            if n == limit {
                break;
            }
            uncommitted.next = (n + 1 == limit).then_some(*tenant);
            let Some(newest) = log.checkpoints.values().next_back() else {
                continue;
            };
            let last = state.deployment.last.get(tenant);
            let committed = last.map(|last| state.deployment.openings[*last].size);
            if is_uncommitted(newest.size, committed) {
                uncommitted.heads.push(TenantHead {
                    tenant: *tenant,
                    size: newest.size,
                    root: newest.root,
                });
            }
        }
        Ok(uncommitted)
    }

    async fn commit_heads(&self, fence: Fence, size: u64, openings: &[HeadOpening]) -> Result<()> {
        let mut state = self.lock();
        let signer = state.signer.as_ref().map(|lease| lease.fence);
        admit_commit(fence, signer, state.deployment.openings.len() as u64, size)?;
        for opening in openings {
            state.log(TenantId::new(opening.tenant))?;
        }
        let log = &mut state.deployment;
        let edge = edge_of(size);
        let edge = edge.iter().map(|(level, range)| log.hashes(*level, range));
        let edge = edge.collect::<Result<Vec<_>>>()?;
        for (level, _, hash) in grow(size, &edge, openings)? {
            let level = usize::from(level);
            if log.hashes.len() == level {
                log.hashes.push(Vec::new());
            }
            log.hashes[level].push(hash);
        }
        for opening in openings {
            log.last
                .insert(TenantId::new(opening.tenant), log.openings.len());
            log.openings.push(*opening);
        }
        Ok(())
    }

    async fn deployment_size(&self) -> Result<u64> {
        Ok(self.lock().deployment.openings.len() as u64)
    }

    async fn deployment_hashes(&self, level: u8, range: Range<u64>) -> Result<Vec<Hash>> {
        self.lock().deployment.hashes(level, &range)
    }

    async fn commitments(&self, range: Range<u64>) -> Result<Vec<Hash>> {
        let state = self.lock();
        let found = within(&state.deployment.openings, &range).iter();
        all_of(found.map(HeadOpening::commitment).collect(), &range)
    }

    async fn head_opening(
        &self,
        scope: &TenantScope,
        below: u64,
    ) -> Result<Option<(u64, HeadOpening)>> {
        let state = self.lock();
        state.open(scope, Permission::Read)?;
        let tenant = scope.tenant().into_uuid();
        let openings = within(&state.deployment.openings, &(0..below));
        let last = openings
            .iter()
            .rposition(|opening| opening.tenant == tenant);
        Ok(last.map(|index| (index as u64, openings[index])))
    }

    async fn publish_deployment(&self, fence: Fence, checkpoint: &SignedCheckpoint) -> Result<()> {
        let mut state = self.lock();
        let signer = state.signer.as_ref().map(|lease| lease.fence);
        let log = &mut state.deployment;
        let known = log.checkpoints.iter().find(|c| c.size == checkpoint.size);
        let known = known.map(|known| known.root);
        admit_checkpoint(checkpoint, fence, signer, log.openings.len() as u64, known)?;
        log.checkpoints.push(checkpoint.clone());
        Ok(())
    }

    async fn latest_deployment(&self) -> Result<Option<SignedCheckpoint>> {
        let state = self.lock();
        // The last of those of one size.
        let largest = state.deployment.checkpoints.iter().max_by_key(|c| c.size);
        Ok(largest.cloned())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl TenantStore for MemoryStore {
    async fn create_tenant(&self, tenant: &Tenant) -> Result<()> {
        let mut state = self.lock();
        if let Some(log) = state.logs.get(&tenant.id) {
            let (kind, message) = match log.tenant.status {
                TenantStatus::Deleted => {
                    (ErrorKind::TenantDeleted, "the id was a deleted tenant's")
                }
                _ => (ErrorKind::Conflict, "the id is another tenant's"),
            };
            return Err(Error::new(kind, message).with_tenant(tenant.id));
        }
        state.logs.insert(tenant.id, Log::new(tenant.clone()));
        Ok(())
    }

    async fn tenant(&self, id: TenantId) -> Result<Option<Tenant>> {
        Ok(self.lock().logs.get(&id).map(|log| log.tenant.clone()))
    }

    async fn tenants(
        &self,
        filter: &TenantFilter,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Vec<Tenant>> {
        let state = self.lock();
        let tenants = state.logs_behind(after).map(|(_, log)| &log.tenant);
        Ok(tenants
            .filter(|tenant| filter.matches(tenant))
            .take(limit)
            .cloned()
            .collect())
    }

    async fn update_tenant(
        &self,
        id: TenantId,
        update: &TenantUpdate,
        event: &PreparedEvent,
    ) -> Result<Tenant> {
        if let Some(name) = &update.name {
            Tenant::check_name(name)?;
        }
        let mut state = self.lock();
        let now = self.clock.now();
        let mark = state.next_mark();
        let log = state.log_mut(id)?;
        log.exists()?;
        admit_update(id, log.ending.is_some(), update)?;
        log.protection().admit_update(id, update)?;
        log.tell(event, now, mark)?;
        update.apply(&mut log.tenant);
        Ok(log.tenant.clone())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RetentionStore for MemoryStore {
    async fn retention(&self, tenant: TenantId) -> Result<Retention> {
        let state = self.lock();
        let log = state.log(tenant)?;
        log.exists()?;
        Ok(log.retention.clone())
    }

    async fn set_retention(
        &self,
        tenant: TenantId,
        retention: &Retention,
        event: &PreparedEvent,
    ) -> Result<bool> {
        retention.check()?;
        let mut state = self.lock();
        let now = self.clock.now();
        let mark = state.next_mark();
        let log = state.log_mut(tenant)?;
        log.exists()?;
        if log.retention == *retention {
            return Ok(false);
        }
        log.tell(event, now, mark)?;
        log.retention = retention.clone();
        Ok(true)
    }

    async fn retained(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Retained>> {
        let state = self.lock();
        let logs = state.logs_behind(after);
        let stays = |log: &Log| log.exists().is_ok() && log.ending.is_none();
        let set = logs.filter(|(_, log)| !log.retention.is_empty() && stays(log));
        Ok(set
            .take(limit)
            .map(|(id, log)| Retained {
                tenant: *id,
                retention: Ok(log.retention.clone()),
                is_held: log.protection().hold.is_some(),
            })
            .collect())
    }

    async fn holds(
        &self,
        tenant: TenantId,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<LegalHold>> {
        let state = self.lock();
        let log = state.log(tenant)?;
        log.exists()?;
        let mut holds: Vec<&LegalHold> = log.holds.iter().collect();
        holds.sort_by_key(|hold| std::cmp::Reverse((hold.placed_at, hold.id)));
        let start = match after {
            None => 0,
            Some(after) => holds
                .iter()
                .position(|hold| hold.id == after)
                .map_or(holds.len(), |place| place + 1),
        };
        Ok(holds[start..]
            .iter()
            .take(limit)
            .map(|h| (*h).clone())
            .collect())
    }

    async fn place_hold(
        &self,
        tenant: TenantId,
        hold: &LegalHold,
        event: &PreparedEvent,
    ) -> Result<()> {
        let mut state = self.lock();
        let now = self.clock.now();
        let mark = state.next_mark();
        let log = state.log_mut(tenant)?;
        log.exists()?;
        let open = log.holds.iter().filter(|hold| hold.is_open()).count();
        let is_known = log.holds.iter().any(|known| known.id == hold.id);
        admit_hold(tenant, open, is_known)?;
        log.tell(event, now, mark)?;
        log.holds.push(hold.clone());
        log.holds.sort_by_key(|hold| (hold.placed_at, hold.id));
        Ok(())
    }

    async fn release_hold(
        &self,
        tenant: TenantId,
        id: Uuid,
        at: Timestamp,
        event: &PreparedEvent,
    ) -> Result<LegalHold> {
        let mut state = self.lock();
        let now = self.clock.now();
        let mark = state.next_mark();
        let log = state.log_mut(tenant)?;
        log.exists()?;
        let place = log.holds.iter().position(|hold| hold.id == id);
        let place = place.ok_or_else(|| no_hold(tenant))?;
        if log.holds[place].is_open() {
            log.tell(event, now, mark)?;
            log.holds[place].released_at = Some(at);
        }
        Ok(log.holds[place].clone())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl OffboardingStore for MemoryStore {
    async fn begin_ending(&self, ending: &Ending, event: &PreparedEvent) -> Result<Ending> {
        let mut state = self.lock();
        let now = self.clock.now();
        let mark = state.next_mark();
        let log = state.log_mut(ending.tenant)?;
        let (status, kept) = (log.tenant.status, log.ending.clone());
        let kept = admit_ending(ending.tenant, status, kept, &log.protection())?;
        if let Some(kept) = kept {
            return Ok(kept);
        }
        log.tell(event, now, mark)?;
        log.tenant.status = TenantStatus::Inactive;
        log.ending = Some(ending.clone());
        Ok(ending.clone())
    }

    async fn ending(&self, tenant: TenantId) -> Result<Option<Ending>> {
        let state = self.lock();
        Ok(state.logs.get(&tenant).and_then(|log| log.ending.clone()))
    }

    async fn open_endings(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Ending>> {
        let state = self.lock();
        let logs = state.logs_behind(after);
        let endings = logs.filter_map(|(_, log)| log.ending.clone());
        Ok(endings.take(limit).collect())
    }

    async fn end(&self, tombstone: &Tombstone) -> Result<()> {
        let id = tombstone.tenant;
        let mut state = self.lock();
        let log = state.log_mut(id)?;
        let (status, kept) = (log.tenant.status, log.ending.as_ref());
        let mut jobs = log.erasures.values();
        let is_erasing = jobs.any(|job| job.state == ErasureState::Running);
        let protection = log.protection();
        admit_end(tombstone, status, kept, &log.head, &protection, is_erasing)?;
        log.tenant.status = TenantStatus::Deleted;
        log.tenant.name = id.to_string();
        log.tenant.secret = TenantSecret::NONE;
        log.tenant.public_log = false;
        log.ending = None;
        log.grave = Some(Grave {
            tombstone: tombstone.clone(),
            is_swept: false,
            is_settled: false,
        });
        state.keys.retain(|_, key| key.tenant != id);
        state.tickets.retain(|_, ticket| ticket.tenant != id);
        Ok(())
    }

    async fn tombstone(&self, tenant: TenantId) -> Result<Option<Tombstone>> {
        let state = self.lock();
        let grave = state.logs.get(&tenant).and_then(|log| log.grave.as_ref());
        Ok(grave.map(Grave::told))
    }

    async fn unsettled(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Tombstone>> {
        let state = self.lock();
        let logs = state.logs_behind(after);
        let graves = logs.filter_map(|(_, log)| log.grave.as_ref());
        let unsettled = graves.filter(|grave| !grave.is_settled);
        Ok(unsettled.map(Grave::told).take(limit).collect())
    }

    async fn settle(&self, tenant: TenantId) -> Result<()> {
        let mut state = self.lock();
        let log = state.logs.get_mut(&tenant);
        if let Some(grave) = log.and_then(|log| log.grave.as_mut()) {
            grave.is_settled = true;
        }
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CredentialStore for MemoryStore {
    async fn add_key(&self, scope: &TenantScope, key: &ApiKey, secret: &SecretHash) -> Result<()> {
        scope.require(Permission::Keys)?;
        if key.tenant != scope.tenant() {
            return Err(Error::new(
                ErrorKind::Forbidden,
                "the key is another tenant's",
            ));
        }
        let mut state = self.lock();
        state.log(scope.tenant())?.exists()?;
        if state.keys.contains_key(secret) || state.keys.values().any(|k| k.id == key.id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                "there is such a key already",
            ));
        }
        state.keys.insert(*secret, key.clone());
        Ok(())
    }

    async fn find_key(&self, secret: &SecretHash) -> Result<Option<ApiKey>> {
        Ok(self.lock().keys.get(secret).cloned())
    }

    async fn keys(
        &self,
        scope: &TenantScope,
        after: Option<KeyPlace>,
        limit: usize,
    ) -> Result<Vec<ApiKey>> {
        scope.require(Permission::Keys)?;
        let state = self.lock();
        let mut keys: Vec<ApiKey> = state
            .keys
            .values()
            .filter(|k| k.tenant == scope.tenant() && after.is_none_or(|after| k.place() > after))
            .cloned()
            .collect();
        keys.sort_by_key(ApiKey::place);
        keys.truncate(limit);
        Ok(keys)
    }

    async fn revoke_key(&self, scope: &TenantScope, id: Uuid) -> Result<bool> {
        scope.require(Permission::Keys)?;
        let mut state = self.lock();
        let before = state.keys.len();
        state
            .keys
            .retain(|_, key| key.id != id || key.tenant != scope.tenant());
        Ok(state.keys.len() < before)
    }

    async fn touch_key(&self, id: Uuid, at: Timestamp) -> Result<()> {
        let mut state = self.lock();
        if let Some(key) = state.keys.values_mut().find(|key| key.id == id) {
            key.last_used_at = key.last_used_at.max(Some(at));
        }
        Ok(())
    }

    async fn put_ticket(&self, secret: &SecretHash, ticket: &Ticket, now: Timestamp) -> Result<()> {
        let mut state = self.lock();
        state.tickets.retain(|_, ticket| ticket.expires_at > now);
        state.tickets.insert(*secret, ticket.clone());
        Ok(())
    }

    async fn take_ticket(&self, secret: &SecretHash, now: Timestamp) -> Result<Option<Ticket>> {
        Ok(self
            .lock()
            .tickets
            .remove(secret)
            .filter(|ticket| ticket.expires_at > now))
    }
}
