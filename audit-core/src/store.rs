//! The log store: the truth that everything else is derived from.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use audit_tlog::{Basis, Control, Group, Hash, Timestamp};
use futures_util::stream::BoxStream;

use crate::checkpoint::{EpochStart, Fence, KeyChange, admit_signer};
use crate::decorate::{Wraps, decorate_log_store};
use crate::entry::{Entry, Evidence, Receipt, StoredEntry};
use crate::erasure::ErasureStep;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{ActionType, Outcome, Severity};
use crate::filter::Filter;
use crate::id::{EventId, TenantId};
use crate::page::{Page, PageRequest};
use crate::prepare::{Act, Batch, PreparedEvent};
use crate::retention::days_before;
use crate::scope::TenantScope;
use crate::seal::Head;

/// What [`LogStore::get`] finds under an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The entry.
    Found(Box<Entry>),
    /// It was there, and was pruned, as the control entry at position `by` says.
    Pruned {
        /// The control entry's `seq`.
        by: u64,
    },
    /// This tenant never had it.
    Missing,
}

impl Lookup {
    /// The entry, or the error that a caller is shown.
    ///
    /// # Errors
    /// [`ErrorKind::Pruned`], [`ErrorKind::NotFound`].
    pub fn into_entry(self) -> Result<Entry> {
        match self {
            Self::Found(entry) => Ok(*entry),
            Self::Pruned { by } => {
                Err(Error::new(ErrorKind::Pruned, "the entry was pruned").with_position(by))
            }
            Self::Missing => Err(Error::new(ErrorKind::NotFound, "there is no such entry")),
        }
    }
}

/// An append-only log for each tenant.
///
/// The contract is executable: `audit-conformance` runs it on every backend and every wrapper. In
/// short: a receipt is given only for what is durable; positions are gap-free; an id is taken once;
/// no method reads or writes outside its scope's tenant, and each begins with
/// [`TenantScope::require`]. Reads refuse a tenant that is suspended, deleted or unknown, and so do
/// [`erase`](Self::erase), [`prune`](Self::prune) and [`declare`](Self::declare), which an inactive
/// one's log still takes.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait LogStore: Debug + Send + Sync + 'static {
    /// Appends batches, each whole or not at all, with a result for each in order.
    ///
    /// Seals with [`seal`](crate::seal()) under the lock of each tenant's head. Needs
    /// [`Permission::Record`](crate::Permission::Record). The tenant's status is checked under the
    /// lock; control entries come only through [`erase`](Self::erase), [`prune`](Self::prune) and
    /// [`declare`](Self::declare).
    /// When this returns, everything that has a receipt is durable.
    ///
    /// # Errors
    /// The outer one: nothing is known of any batch; recording again by the same ids is safe. The
    /// inner ones, of a single batch: [`Conflict`](ErrorKind::Conflict),
    /// [`Forbidden`](ErrorKind::Forbidden), [`UnknownTenant`](ErrorKind::UnknownTenant),
    /// [`TenantClosed`](ErrorKind::TenantClosed), [`TenantDeleted`](ErrorKind::TenantDeleted), and
    /// what [`seal`](crate::seal()) refuses.
    async fn append(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>>;

    /// Looks ids up, with an answer for each in order. Needs `read`.
    ///
    /// # Errors
    /// [`Corrupt`](ErrorKind::Corrupt) when a stored entry differs from its hash.
    async fn get(&self, scope: &TenantScope, ids: &[EventId]) -> Result<Vec<Lookup>>;

    /// The entries at these positions, in the order asked for; those that are pruned or were never
    /// written are left out. Needs `read`; verifies as [`get`](Self::get) does.
    async fn at(&self, scope: &TenantScope, seqs: &[u64]) -> Result<Vec<Entry>>;

    /// One page of the entries that match. Needs `read`; verifies as [`get`](Self::get) does.
    ///
    /// Everything that has a receipt is found, however far an index lags. `q` is evaluated on the
    /// entries themselves, which is exact and slow; [`TenantLog::list`](crate::TenantLog::list)
    /// goes through the index.
    async fn list(
        &self,
        scope: &TenantScope,
        filter: &Filter,
        page: &PageRequest,
    ) -> Result<Page<Entry>>;

    /// At most `limit` entries from position `from` on, for consumers and streams; fewer when they are
    /// large, and empty only when there is nothing yet. Starts at the first entry left when `from` is pruned. Needs `stream`. Leaves
    /// are not recomputed.
    async fn read(&self, scope: &TenantScope, from: u64, limit: usize) -> Result<Vec<Entry>>;

    /// One snapshot of the tenant's log, which every export uses. Needs `export`.
    ///
    /// It has a maximum age; its streams then end with a retryable error.
    async fn snapshot(&self, scope: &TenantScope) -> Result<Box<dyn Snapshot>>;

    /// The counters of these days (UTC, days since 1970), in any order. Needs `read`.
    ///
    /// They count control and erased entries, and not pruned ones.
    async fn counters(&self, scope: &TenantScope, days: Range<i32>) -> Result<Vec<Counter>>;

    /// The head. An empty log has one. Needs `read`.
    async fn head(&self, scope: &TenantScope) -> Result<Head>;

    /// Hashes of complete subtrees of 256^`level` leaves: for level 0 the leaf hashes at these
    /// positions, pruned ones too. Needs `read`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the range reaches beyond the tree.
    async fn hashes(&self, scope: &TenantScope, level: u8, range: Range<u64>) -> Result<Vec<Hash>>;

    /// Leaf data by position, of the positions in `range` that still have any, in order: of entries
    /// that are left, and of pruned ones whose leaf data is kept. That is, of the bundle of 256 that
    /// a prune ended in, and of entries that say that the key or the epoch changed. Needs `read`.
    ///
    /// It is given as it is stored: what outlives a prune is compared with the tree wherever it is shown.
    async fn leaves(&self, scope: &TenantScope, range: Range<u64>) -> Result<Vec<(u64, String)>>;

    /// Destroys groups of entries and writes the control entries that say so, in one transaction.
    /// Needs `erase`.
    ///
    /// Ids that the tenant never had, or that are pruned, are passed over, and so is what was erased
    /// before, and what is younger than [`older_than_days`](Erasure::older_than_days) by the store's
    /// clock; with nothing left to erase nothing is written.
    ///
    /// Of pruned entries it names the positions that [`archived`](Erasure::archived) tells, and passes
    /// over what is not pruned: no row changes for them. Whoever keeps the archive follows the control
    /// entries.
    ///
    /// What the log says of itself outlives it: an event of an action that begins with `log.` loses
    /// actor, context and reason at most. Which hold was placed and what was set stays.
    ///
    /// With a [`step`](Erasure::step) it moves the job in the same transaction, also when nothing is
    /// left to erase, passes over entries at the job's `below` and later, and forgets the selection
    /// when the job is done. It does nothing at all when the job isn't where the step begins: another
    /// worker was faster.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) while a legal hold is open, whatever is asked for, and
    /// [`unless_ending`](Erasure::unless_ending) of a tenant whose end was asked for;
    /// [`Unavailable`](ErrorKind::Unavailable) when the log is pruned below another position than
    /// [`pruned_below`](Erasure::pruned_below).
    async fn erase(&self, scope: &TenantScope, erasure: &Erasure) -> Result<Erased>;

    /// Prunes the prefix that was accepted before a time, and writes the control entry that says so.
    /// Needs `cleanup`.
    ///
    /// It is logical and short: rows go afterwards, in [`sweep`](Self::sweep). It never goes past the
    /// cursor of a required consumer. With nothing to prune nothing is written.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when something was erased since
    /// [`unless_erased_since`](Prune::unless_erased_since);
    /// [`Refused`](ErrorKind::Refused), in a dry run too, while a legal hold is open, of a tenant whose end was
    /// asked for, and when [`bound`](Prune::bound) allows what is younger than the tenant's
    /// [`minimum_days`](crate::Retention::minimum_days), by the store's clock. All as
    /// [`Protection`](crate::retention::Protection) says, which is looked for under the lock.
    async fn prune(&self, scope: &TenantScope, prune: &Prune) -> Result<Pruned>;

    /// Writes a control entry that says something of the log itself, for its signer. Needs `cleanup`.
    /// An entry of the declaration's id that is there already is the same one, as with
    /// [`append`](Self::append). A change of the key is one of the
    /// [`key_changes`](crate::CheckpointStore::key_changes) from then on, an epoch one of the
    /// [`epochs`](crate::CheckpointStore::epochs).
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) when another signer has taken over, and for an epoch when the log
    /// has another size than the entry says; nothing is stored then.
    /// [`Conflict`](ErrorKind::Conflict) when the id is taken by an entry with other content.
    async fn declare(&self, scope: &TenantScope, declaration: &Declaration) -> Result<Receipt>;

    /// One short step of removing what is pruned, and all that a
    /// [deleted](crate::OffboardingStore::end) tenant left, of any tenant; true when there is more to do.
    /// Safe to repeat, to interrupt and to run beside appends, which it makes wait for 100 ms at
    /// most.
    async fn sweep(&self) -> Result<bool>;

    /// Tenants whose logs grew after `since`, with their sizes. May repeat a tenant, never misses
    /// one: consumers start from this.
    async fn grown_since(&self, since: Mark) -> Result<Grown>;

    /// The position from which `consumer` goes on in a tenant; 0 at first.
    async fn cursor(&self, tenant: TenantId, consumer: &str) -> Result<u64>;

    /// Moves a consumer's cursor, forwards only; a smaller position is ignored. `required` makes
    /// [`prune`](Self::prune) wait for it.
    async fn advance(
        &self,
        tenant: TenantId,
        consumer: &str,
        required: bool,
        position: u64,
    ) -> Result<()>;

    /// Whether the store answers.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it doesn't.
    async fn ping(&self) -> Result<()>;
}

/// A place in the order of all tenants' appends, opaque to callers. The default is the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mark(pub u64);

/// The answer of [`LogStore::grown_since`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Grown {
    /// The tenants, with the sizes of their logs.
    pub tenants: Vec<(TenantId, u64)>,
    /// What to ask for next.
    pub mark: Mark,
}

impl Grown {
    /// An answer, for a third-party store.
    pub fn new(tenants: Vec<(TenantId, u64)>, mark: Mark) -> Self {
        Self { tenants, mark }
    }
}

/// A tenant's log as of one moment.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Snapshot: Debug + Send + Sync {
    /// The head at that moment.
    fn head(&self) -> &Head;

    /// The entries that match, oldest first. Leaves are not recomputed: a verifier does that.
    async fn scan(&self, filter: &Filter) -> Result<BoxStream<'static, Result<Entry>>>;

    /// The entries that match and are left, oldest first, with what proves them. The cost is that of
    /// the positions which the filter allows.
    async fn evidence(&self, filter: &Filter) -> Result<BoxStream<'static, Result<Evidence>>>;
}

/// A count of entries with the same day, operation, severity and outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counter {
    /// The UTC day of `created_at`, in days since 1970-01-01.
    pub day: i32,
    /// The operation.
    pub action_type: ActionType,
    /// The severity.
    pub severity: Severity,
    /// The outcome.
    pub outcome: Outcome,
    /// How many.
    pub count: u64,
}

/// Adds rows up to what an append or a prune changes in the counters.
#[derive(Debug, Clone, Default)]
pub struct Tally(BTreeMap<(i32, ActionType, Severity, Outcome), u64>);

impl Tally {
    /// Counts one entry.
    pub fn add(&mut self, day: i32, action_type: ActionType, severity: Severity, outcome: Outcome) {
        *self
            .0
            .entry((day, action_type, severity, outcome))
            .or_default() += 1;
    }

    /// The counts, by day.
    pub fn counters(&self) -> impl Iterator<Item = Counter> + '_ {
        self.0
            .iter()
            .map(|(&(day, action_type, severity, outcome), &count)| Counter {
                day,
                action_type,
                severity,
                outcome,
                count,
            })
    }
}

/// What [`LogStore::erase`] is asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Erasure {
    /// The entries.
    pub ids: Vec<EventId>,
    /// The groups, in the leaf format's order; all by default.
    pub groups: Vec<Group>,
    /// On what grounds.
    pub basis: Basis,
    /// Who asked, and why. Never repeats whom it is about: the control entry stays.
    pub act: Act,
    /// The step of an [`ErasureJob`](crate::ErasureJob) that this is.
    pub step: Option<ErasureStep>,
    /// Only what was accepted more than so many days ago, by the store's clock. Says nothing of
    /// [`archived`](Self::archived).
    pub older_than_days: Option<u32>,
    /// Pruned positions, and which of the [`groups`](Self::groups) their archived copies lose.
    pub archived: Vec<(u64, Vec<Group>)>,
    /// Below which position the log was pruned when all this was selected.
    pub pruned_below: Option<u64>,
    /// Whether it is refused of a tenant whose end was asked for.
    pub unless_ending: bool,
}

impl Erasure {
    /// Erases all groups of these entries.
    pub fn new(ids: Vec<EventId>, basis: Basis, act: Act) -> Self {
        Self {
            ids,
            groups: Group::ALL.to_vec(),
            basis,
            act,
            step: None,
            older_than_days: None,
            archived: Vec::new(),
            pruned_below: None,
            unless_ending: false,
        }
    }

    /// Erases nothing of a tenant whose end was asked for. What was begun before that goes on: the end waits
    /// for it.
    #[must_use]
    pub fn unless_ending(mut self) -> Self {
        self.unless_ending = true;
        self
    }

    /// Says of pruned positions that their archived copies lose these groups, too.
    #[must_use]
    pub fn archived(mut self, archived: Vec<(u64, Vec<Group>)>) -> Self {
        self.archived = archived;
        self
    }

    /// Erases only while the log is pruned below this position and no further: what is pruned later is
    /// not passed over, but refused, to be selected again.
    #[must_use]
    pub fn pruned_below(mut self, position: u64) -> Self {
        self.pruned_below = Some(position);
        self
    }

    /// The refusal because of [`pruned_below`](Self::pruned_below), for every store, which knows under
    /// the head's lock below which position the log is pruned.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it is another one.
    pub fn admit_pruned(&self, below: u64) -> Result<()> {
        match self.pruned_below.is_some_and(|known| known != below) {
            true => Err(Error::new(
                ErrorKind::Unavailable,
                "the log was pruned since the entries were selected",
            )),
            false => Ok(()),
        }
    }

    /// Passes over what was accepted less than so many days ago, by the store's clock.
    #[must_use]
    pub fn older_than_days(mut self, days: u32) -> Self {
        self.older_than_days = Some(days);
        self
    }

    /// Erases only these groups.
    #[must_use]
    pub fn groups(mut self, groups: &[Group]) -> Self {
        self.groups = Group::ordered(groups);
        self
    }

    /// Takes a step of a job.
    #[must_use]
    pub fn step(mut self, step: ErasureStep) -> Self {
        self.step = Some(step);
        self
    }
}

/// The answer of [`LogStore::erase`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Erased {
    /// How many entries lost something, archived copies of pruned ones among them.
    pub entries: u64,
    /// The control entries that say so.
    pub receipts: Vec<Receipt>,
}

impl Erased {
    /// An answer, for a third-party store.
    pub fn new(entries: u64, receipts: Vec<Receipt>) -> Self {
        Self { entries, receipts }
    }
}

/// What an erasure does, worked out by [`plan_erasure`].
#[derive(Debug)]
pub struct ErasurePlan {
    /// The entries that lose something, changed.
    pub changed: Vec<StoredEntry>,
    /// How many pruned ones are named, whose archived copies lose something.
    pub archived: u64,
    /// The control entries that say so, one for each set of groups and each thousand ranges.
    pub controls: Vec<PreparedEvent>,
}

impl ErasurePlan {
    /// How many entries lose something.
    pub fn entries(&self) -> u64 {
        self.changed.len() as u64 + self.archived
    }
}

/// Whether an entry is an event that the log says of itself: that a tenant, its retention or a hold
/// changed.
pub(crate) fn is_of_the_log(entry: &Entry) -> bool {
    !entry.kind.is_control() && entry.fields.action.starts_with("log.")
}

/// The groups that such an event may lose.
pub(crate) fn personal(groups: &[Group]) -> Vec<Group> {
    const PERSONAL: [Group; 3] = [Group::Actor, Group::Context, Group::Reason];
    let personal = PERSONAL.into_iter().filter(|group| groups.contains(group));
    personal.collect()
}

/// Those of the groups that an entry would lose.
pub(crate) fn loses(entry: &Entry, groups: &[Group]) -> Vec<Group> {
    let mut groups = match is_of_the_log(entry) {
        true => personal(groups),
        false => groups.to_vec(),
    };
    groups.retain(|group| entry.fields.has_any_of(&[*group]));
    groups
}

/// Works an erasure out: every store does this under the head lock and writes the outcome in the
/// same transaction. `targets` are the entries that were asked for, in any order; `now` is the
/// store's time, and the log is pruned below `pruned_below`.
pub fn plan_erasure(
    tenant: TenantId,
    targets: Vec<StoredEntry>,
    erasure: &Erasure,
    pruned_below: u64,
    now: Timestamp,
) -> ErasurePlan {
    let mut by_groups: BTreeMap<Vec<Group>, Vec<u64>> = BTreeMap::new();
    let mut changed = Vec::new();
    let before = erasure.older_than_days.map(|days| days_before(now, days));
    for mut target in targets {
        if before.is_some_and(|before| target.entry.created_at >= before) {
            continue;
        }
        let gone = if is_of_the_log(&target.entry) {
            target.erase(&personal(&erasure.groups))
        } else {
            target.erase(&erasure.groups)
        };
        if !gone.is_empty() {
            by_groups.entry(gone).or_default().push(target.entry.seq);
            changed.push(target);
        }
    }
    let mut archived = BTreeMap::new();
    for (seq, groups) in &erasure.archived {
        let mut gone = Group::ordered(groups);
        gone.retain(|group| erasure.groups.contains(group));
        if *seq < pruned_below && !gone.is_empty() {
            archived.insert(*seq, gone);
        }
    }
    let named = archived.len() as u64;
    for (seq, gone) in archived {
        by_groups.entry(gone).or_default().push(seq);
    }
    let mut controls = Vec::new();
    for (groups, mut seqs) in by_groups {
        seqs.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for seq in seqs {
            match ranges.last_mut() {
                Some((_, to)) if *to + 1 >= seq => *to = seq,
                _ => ranges.push((seq, seq)),
            }
        }
        for entries in ranges.chunks(audit_tlog::control::MAX_RANGES) {
            let control = Control::Erase {
                groups: groups.clone(),
                entries: entries.to_vec(),
                basis: erasure.basis.clone(),
            };
            controls.push(erasure.act.prepare(tenant, &control));
        }
    }
    ErasurePlan {
        changed,
        archived: named,
        controls,
    }
}

/// What [`LogStore::declare`] is asked for.
#[derive(Debug, Clone)]
pub struct Declaration {
    fence: Fence,
    id: EventId,
    control: Control,
    act: Act,
}

impl Declaration {
    /// That heads are signed with another key from here on, or under another name. `old` and `new`
    /// are verifier keys (C2SP signed-note).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when one is none.
    pub fn key(fence: Fence, id: EventId, old: String, new: String, act: Act) -> Result<Self> {
        let control = Control::Key { old, new };
        control
            .check()
            .map_err(|fault| Error::field("key", fault.to_string()))?;
        Ok(Self {
            fence,
            id,
            control,
            act,
        })
    }

    /// That the log is continued after a restore, from this head: the entry comes to stand right behind
    /// it, and later heads are signed under the name of the epoch.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an epoch below 2, which is the first that an entry begins.
    pub fn epoch(
        fence: Fence,
        id: EventId,
        epoch: u64,
        head: &Head,
        basis: Basis,
        act: Act,
    ) -> Result<Self> {
        let control = Control::Epoch {
            epoch,
            size: head.size(),
            root: head.tree.root(),
            basis,
        };
        control
            .check()
            .map_err(|fault| Error::field("epoch", fault.to_string()))?;
        Ok(Self {
            fence,
            id,
            control,
            act,
        })
    }

    /// The entry's id.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// Refuses an epoch at another position than the head that it continues has, as every store does
    /// with an entry that is new, before it is kept.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`].
    pub fn admit_at(&self, seq: u64) -> Result<()> {
        match &self.control {
            Control::Epoch { size, .. } if *size != seq => Err(Error::new(
                ErrorKind::Refused,
                format!("the log has {seq} entries, and not {size}, which were to be continued"),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses a signer that another one took over from, as every store does in the transaction that
    /// declares. `signer` is the present fence.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`].
    pub fn admit(&self, signer: Option<Fence>) -> Result<()> {
        admit_signer(self.fence, signer)
    }

    /// What is kept beside the log of an entry at a position.
    pub fn key_change(&self, seq: u64) -> Option<KeyChange> {
        match &self.control {
            Control::Key { old, new } => Some(KeyChange {
                seq,
                old: old.clone(),
                new: new.clone(),
            }),
            _ => None,
        }
    }

    /// What is kept beside the log of an entry at a position.
    pub fn epoch_start(&self, seq: u64) -> Option<EpochStart> {
        match &self.control {
            Control::Epoch { epoch, .. } => Some(EpochStart { seq, epoch: *epoch }),
            _ => None,
        }
    }

    /// The prepared control entry, for the store to append.
    pub fn prepare(&self, tenant: TenantId) -> PreparedEvent {
        self.act.prepare_as(tenant, &self.control, self.id)
    }
}

/// Which entries a prune takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneBound {
    /// Those accepted before this.
    Before(Timestamp),
    /// Those accepted more than so many days of 24 hours ago, by the store's clock.
    OlderThanDays(u32),
}

impl PruneBound {
    /// The time before which entries go, were it `now`.
    pub fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Before(time) => time,
            Self::OlderThanDays(days) => days_before(now, days),
        }
    }
}

/// What [`LogStore::prune`] is asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Prune {
    /// What goes.
    pub bound: PruneBound,
    /// On what grounds.
    pub basis: Basis,
    /// Who asked, and why.
    pub act: Act,
    /// Only says what would go.
    pub dry_run: bool,
    /// Of a dry run: what would go under other settings, whatever the tenant's
    /// [`minimum_days`](crate::Retention::minimum_days) is now.
    pub under_other_settings: bool,
    /// Of a dry run: what would go if the required consumer of this name had seen everything.
    pub but_for: Option<&'static str>,
    /// Prunes only when no `erase` entry stands at this position or behind it.
    pub unless_erased_since: Option<u64>,
    /// Nothing at this position or behind it goes.
    pub below_at_most: u64,
}

impl Prune {
    /// Prunes what was accepted before `before`.
    pub fn new(before: Timestamp, basis: Basis, act: Act) -> Self {
        Self::bounded(PruneBound::Before(before), basis, act)
    }

    /// Prunes what was accepted more than so many days ago, by the store's clock.
    pub fn older_than_days(days: u32, basis: Basis, act: Act) -> Self {
        Self::bounded(PruneBound::OlderThanDays(days), basis, act)
    }

    pub(crate) fn bounded(bound: PruneBound, basis: Basis, act: Act) -> Self {
        Self {
            bound,
            basis,
            act,
            dry_run: false,
            under_other_settings: false,
            but_for: None,
            unless_erased_since: None,
            below_at_most: u64::MAX,
        }
    }

    /// Only says what would go under other settings.
    #[must_use]
    pub(crate) fn under_other_settings(mut self) -> Self {
        self.dry_run = true;
        self.under_other_settings = true;
        self
    }

    /// Only says what would go if the required consumer of this name had seen everything.
    #[must_use]
    pub fn but_for(mut self, consumer: &'static str) -> Self {
        self.dry_run = true;
        self.but_for = Some(consumer);
        self
    }

    /// Prunes only when no `erase` entry stands at this position or behind it.
    #[must_use]
    pub fn unless_erased_since(mut self, position: u64) -> Self {
        self.unless_erased_since = Some(position);
        self
    }

    /// Prunes nothing at this position or behind it.
    #[must_use]
    pub(crate) fn below_at_most(mut self, position: u64) -> Self {
        self.below_at_most = position;
        self
    }

    /// The refusal of a prune because of [`unless_erased_since`](Self::unless_erased_since), for every
    /// store, which looks for the entry under the head's lock.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when there is such an entry.
    pub fn admit_erasure(&self, is_erased: bool) -> Result<()> {
        match is_erased {
            true => Err(Error::new(
                ErrorKind::Unavailable,
                "entries were erased since they were archived",
            )),
            false => Ok(()),
        }
    }

    /// Only says what would go.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }
}

/// The answer of [`LogStore::prune`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Pruned {
    /// Entries below this position are gone.
    pub below: u64,
    /// How many went with this prune.
    pub entries: u64,
    /// The control entry that says so; none when nothing went, and of a dry run.
    pub receipt: Option<Receipt>,
}

impl Pruned {
    /// An answer, for a third-party store.
    pub fn new(below: u64, entries: u64, receipt: Option<Receipt>) -> Self {
        Self {
            below,
            entries,
            receipt,
        }
    }
}

impl<S: LogStore + ?Sized> Wraps for Arc<S> {
    type Store = S;

    fn wrapped(&self) -> &S {
        self
    }
}

decorate_log_store!([S: LogStore + ?Sized] Arc<S>);
