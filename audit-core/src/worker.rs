//! The workers: what follows the log, drains queue and outbox, and sweeps what was pruned.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_tlog::{Control, Kind};
use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::consumer::Consumer;
use crate::entry::Entry;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::id::TenantId;
use crate::ingest::open_message;
use crate::log::Inner;
use crate::outbox::{Outbox, OutboxRow};
use crate::prepare::{Batch, PreparedEvent};
use crate::queue::{Delivery, EventQueue, MessageKind};
use crate::scope::TenantScope;
use crate::search::SearchIndex;
use crate::store::{LogStore, Mark};

/// How often a worker looks for what another process did.
const POLL: Duration = Duration::from_millis(100);
/// How often the sweeper looks when nothing woke it.
const SWEEP_POLL: Duration = Duration::from_secs(5);
/// Entries that a consumer is given at once, at most.
const CONSUME: usize = 1_000;
/// Entries that are read from one tenant at once for the index.
const READ: usize = 2_000;
/// A batch of this many says that the log is busy: the indexer then lets entries gather, since few
/// large batches cost less than many small ones.
const BUSY: usize = 64;
/// For how long it lets them gather.
const GATHER: Duration = Duration::from_millis(250);
/// Entries that are indexed at once, at most.
const INDEX: usize = 5_000;
/// Bytes, roughly, that are indexed at once, at most.
const INDEX_BYTES: usize = 4 * 1024 * 1024;
/// Messages that are appended at once.
const INGEST: usize = 100;
/// For how long a received message is hidden from other workers.
const LEASE: Duration = Duration::from_secs(20);
/// Outbox rows that are relayed at once.
const RELAY: usize = 500;
/// The longest pause after failures.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How a worker is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its name.
    pub name: String,
    /// Whether it runs; a worker that died is started anew only by a new process.
    pub running: bool,
    /// Entries or messages that it is behind, where that is known.
    pub lag: Option<u64>,
    /// What it last failed with, until it succeeds again.
    pub last_error: Option<String>,
    /// Messages that it dropped because this log had not written them.
    pub dropped: u64,
}

#[derive(Debug)]
struct Desk {
    statuses: Mutex<BTreeMap<String, WorkerStatus>>,
    failed: watch::Sender<Option<String>>,
}

impl Desk {
    fn edit(&self, name: &str, edit: impl FnOnce(&mut WorkerStatus)) {
        let mut statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        let status = statuses
            .entry(name.to_owned())
            .or_insert_with(|| WorkerStatus {
                name: name.to_owned(),
                running: true,
                lag: None,
                last_error: None,
                dropped: 0,
            });
        edit(status);
    }

    fn lag(&self, name: &str, lag: u64) {
        self.edit(name, |s| s.lag = Some(lag));
    }

    fn worked(&self, name: &str) {
        self.edit(name, |s| s.last_error = None);
    }

    fn failed(&self, name: &str, error: &Error) {
        tracing::warn!(worker = name, error = %error, "the worker failed and will try again");
        self.edit(name, |s| s.last_error = Some(error.to_string()));
    }
}

/// The running workers. Dropping it stops them without waiting.
#[derive(Debug)]
pub struct Workers {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    desk: Arc<Desk>,
}

impl Workers {
    pub(crate) fn start(log: Arc<Inner>) -> Self {
        let mut workers = Self {
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            desk: Arc::new(Desk {
                statuses: Mutex::default(),
                failed: watch::Sender::new(None),
            }),
        };
        for consumer in log.consumers.clone() {
            let context = workers.context(&log, format!("consumer {}", consumer.name()));
            workers.spawn(context.name.clone(), follow(context, consumer));
        }
        if let Some(index) = log.search.clone() {
            let context = workers.context(&log, "indexer".into());
            workers.spawn(context.name.clone(), feed_index(context, index));
        }
        if let Some(queue) = log.queue.clone() {
            let context = workers.context(&log, "ingest".into());
            workers.spawn(context.name.clone(), ingest(context, queue));
        }
        if let Some(outbox) = log.outbox.clone() {
            let context = workers.context(&log, "relay".into());
            workers.spawn(context.name.clone(), relay(context, outbox));
        }
        let context = workers.context(&log, "sweeper".into());
        workers.spawn(context.name.clone(), sweep(context));
        workers
    }

    fn context(&self, log: &Arc<Inner>, name: String) -> Worker {
        Worker {
            log: Arc::clone(log),
            bell: log.bell.any(),
            stop: self.stop.clone(),
            desk: Arc::clone(&self.desk),
            name,
        }
    }

    fn spawn(&mut self, name: String, work: impl Future<Output = ()> + Send + 'static) {
        self.desk.edit(&name, |_| ());
        let (desk, stop) = (Arc::clone(&self.desk), self.stop.clone());
        self.tasks.spawn(async move {
            let outcome = std::panic::AssertUnwindSafe(work).catch_unwind().await;
            desk.edit(&name, |s| s.running = false);
            if outcome.is_err() || !stop.is_cancelled() {
                tracing::error!(worker = name, "the worker died");
                desk.failed.send_replace(Some(name));
            }
        });
    }

    /// Waits for a worker to die, and names it. A worker that only fails goes on trying.
    pub async fn failed(&self) -> String {
        let mut failed = self.desk.failed.subscribe();
        loop {
            if let Some(name) = failed.borrow_and_update().clone() {
                return name;
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether all of them run.
    pub fn is_healthy(&self) -> bool {
        self.status().iter().all(|s| s.running)
    }

    /// How each is doing, by name.
    pub fn status(&self) -> Vec<WorkerStatus> {
        let statuses = self
            .desk
            .statuses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        statuses.values().cloned().collect()
    }

    /// Lets each finish what it has begun, for at most `grace`. Returns whether all did. What was
    /// cut off is done again after the next start.
    pub async fn shutdown(mut self, grace: Duration) -> bool {
        self.stop.cancel();
        let drained = tokio::time::timeout(grace, async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await
        .is_ok();
        self.tasks.abort_all();
        drained
    }
}

struct Worker {
    log: Arc<Inner>,
    bell: watch::Receiver<()>,
    stop: CancellationToken,
    desk: Arc<Desk>,
    name: String,
}

impl Worker {
    /// Waits for an append, for `pause`, or for the end. False at the end.
    async fn rest(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
            _ = self.bell.changed() => true,
        }
    }

    /// Waits for `pause`, whatever is appended. False at the end.
    async fn pause(&self, pause: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

/// A pause that doubles with each failure in a row, from 100 ms to [`MAX_PAUSE`].
fn pause_after(failures: u32) -> Duration {
    Duration::from_millis(100)
        .saturating_mul(1 << failures.min(9))
        .min(MAX_PAUSE)
}

/// A closed or deleted tenant's log can't be read now; whatever opens it again makes it grow, and
/// that brings it back. For whatever follows the logs.
pub fn is_closed(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::TenantClosed | ErrorKind::TenantDeleted | ErrorKind::UnknownTenant
    )
}

/// The tenants that have grown and were not followed to their end yet.
#[derive(Default)]
struct Followed {
    mark: Mark,
    sizes: BTreeMap<TenantId, u64>,
    paused: HashMap<TenantId, (u32, Instant)>,
}

impl Followed {
    /// Asks which tenants grew. One that is told again, and was followed that far, is passed over.
    async fn look(&mut self, worker: &Worker, cursors: &HashMap<TenantId, u64>) -> Result<()> {
        let grown = worker.log.store.grown_since(self.mark).await?;
        self.mark = grown.mark;
        let news = grown
            .tenants
            .into_iter()
            .filter(|(tenant, size)| cursors.get(tenant).is_none_or(|cursor| cursor < size));
        self.sizes.extend(news);
        Ok(())
    }

    fn due(&self) -> Vec<(TenantId, u64)> {
        let now = Instant::now();
        self.sizes
            .iter()
            .filter(|(tenant, _)| {
                self.paused
                    .get(tenant)
                    .is_none_or(|(_, until)| *until <= now)
            })
            .map(|(tenant, size)| (*tenant, *size))
            .collect()
    }

    fn fail(&mut self, tenant: TenantId) {
        let failures = self.paused.get(&tenant).map_or(0, |(n, _)| *n);
        self.paused.insert(
            tenant,
            (failures + 1, Instant::now() + pause_after(failures)),
        );
    }

    fn reached(&mut self, tenant: TenantId, position: u64) {
        self.paused.remove(&tenant);
        if self
            .sizes
            .get(&tenant)
            .is_some_and(|size| position >= *size)
        {
            self.sizes.remove(&tenant);
        }
    }
}

async fn follow(mut worker: Worker, consumer: Arc<dyn Consumer>) {
    let mut followed = Followed::default();
    let mut cursors: HashMap<TenantId, u64> = HashMap::new();
    let mut failures = 0;
    loop {
        worker.bell.borrow_and_update();
        if let Err(error) = followed.look(&worker, &cursors).await {
            worker.desk.failed(&worker.name, &error);
            failures += 1;
            if !worker.pause(pause_after(failures)).await {
                return;
            }
            continue;
        }
        failures = 0;
        let mut lag = 0;
        for (tenant, size) in followed.due() {
            if worker.stop.is_cancelled() {
                return;
            }
            match consume(&worker, &*consumer, &mut cursors, tenant).await {
                Ok(position) => {
                    worker.desk.worked(&worker.name);
                    followed.reached(tenant, position);
                    lag += size.saturating_sub(position);
                }
                Err(error) if is_closed(&error) => followed.reached(tenant, u64::MAX),
                Err(error) => {
                    worker.desk.failed(&worker.name, &error);
                    followed.fail(tenant);
                    lag += size.saturating_sub(cursors.get(&tenant).copied().unwrap_or(0));
                }
            }
        }
        worker.desk.lag(&worker.name, lag);
        let more = !followed.due().is_empty();
        if worker.stop.is_cancelled() || (!more && !worker.rest(POLL).await) {
            return;
        }
    }
}

/// Gives a consumer the next entries of one tenant. Returns the position that it has reached.
async fn consume(
    worker: &Worker,
    consumer: &dyn Consumer,
    cursors: &mut HashMap<TenantId, u64>,
    tenant: TenantId,
) -> Result<u64> {
    let store = &worker.log.store;
    let cursor = match cursors.get(&tenant) {
        Some(cursor) => *cursor,
        None => {
            let cursor = store.cursor(tenant, consumer.name()).await?;
            // Makes the consumer known to prunes from its first sight of the tenant on.
            store
                .advance(tenant, consumer.name(), consumer.is_required(), cursor)
                .await?;
            cursor
        }
    };
    cursors.insert(tenant, cursor);
    let scope = TenantScope::trusted(tenant, consumer.name());
    let entries = store.read(&scope, cursor, CONSUME).await?;
    let Some(last) = entries.last() else {
        return Ok(u64::MAX);
    };
    let next = last.seq + 1;
    consumer.consume(tenant, &entries).await?;
    store
        .advance(tenant, consumer.name(), consumer.is_required(), next)
        .await?;
    cursors.insert(tenant, next);
    Ok(next)
}

async fn feed_index(mut worker: Worker, index: Arc<dyn SearchIndex>) {
    let mut followed = Followed::default();
    let mut cursors: HashMap<TenantId, u64> = HashMap::new();
    let mut failures: u32 = 0;
    let mut check = Check::new();
    loop {
        worker.bell.borrow_and_update();
        let outcome = index_once(&worker, &*index, &mut followed, &mut cursors).await;
        let busy = match outcome {
            Ok(indexed) => {
                failures = 0;
                if followed.paused.is_empty() {
                    worker.desk.worked(&worker.name);
                }
                indexed >= BUSY
            }
            Err(error) => {
                worker.desk.failed(&worker.name, &error);
                // Whatever the index says now is where it goes on, in tenants at rest as well: it
                // may have been emptied.
                cursors.clear();
                followed.mark = Mark::default();
                failures += 1;
                if !worker.pause(pause_after(failures)).await {
                    return;
                }
                continue;
            }
        };
        if worker.stop.is_cancelled() {
            return;
        }
        if let Err(error) = check.next(&*index, &mut followed, &mut cursors).await {
            worker.desk.failed(&worker.name, &error);
            failures += 1;
            if !worker.pause(pause_after(failures)).await {
                return;
            }
            continue;
        }
        let more = !followed.due().is_empty();
        let goes_on = match (more, busy) {
            (true, _) => true,
            (false, true) => worker.pause(GATHER).await,
            (false, false) => worker.rest(POLL).await,
        };
        if !goes_on {
            return;
        }
    }
}

/// Asks the index, one tenant a second, whether it still has what it was given: it may have been
/// emptied while nothing was appended.
struct Check {
    last: Option<TenantId>,
    at: Instant,
}

impl Check {
    fn new() -> Self {
        Self {
            last: None,
            at: Instant::now(),
        }
    }

    async fn next(
        &mut self,
        index: &dyn SearchIndex,
        followed: &mut Followed,
        cursors: &mut HashMap<TenantId, u64>,
    ) -> Result<()> {
        if self.at.elapsed() < Duration::from_secs(1) {
            return Ok(());
        }
        self.at = Instant::now();
        let after = self.last;
        let next = cursors.keys().filter(|t| Some(**t) > after).min().copied();
        let Some(tenant) = next.or_else(|| cursors.keys().min().copied()) else {
            return Ok(());
        };
        self.last = Some(tenant);
        let through = match index
            .indexed_through(&TenantScope::trusted(tenant, "indexer"))
            .await
        {
            Ok(through) => through,
            Err(error) if is_closed(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Some(cursor) = cursors.get_mut(&tenant)
            && through < *cursor
        {
            tracing::warn!(%tenant, through, given = *cursor, "the index lost entries: it is given them again");
            followed.sizes.entry(tenant).or_insert(*cursor);
            *cursor = through;
        }
        Ok(())
    }
}

/// Merges the next entries, of as many tenants as have grown, in one call to the index, and returns
/// how many. A tenant whose log can't be read, now or ever, doesn't hold up the others.
async fn index_once(
    worker: &Worker,
    index: &dyn SearchIndex,
    followed: &mut Followed,
    cursors: &mut HashMap<TenantId, u64>,
) -> Result<usize> {
    followed.look(worker, cursors).await?;
    let behind = |(tenant, size): (&TenantId, &u64)| {
        size.saturating_sub(cursors.get(tenant).copied().unwrap_or(0))
    };
    worker
        .desk
        .lag(&worker.name, followed.sizes.iter().map(behind).sum());
    let mut merged = Merged::default();
    let mut reached: Vec<(TenantId, u64)> = Vec::new();
    for (tenant, _) in followed.due() {
        let (entries, bytes) = (merged.entries.len(), merged.bytes);
        match read_ahead(worker, index, tenant, cursors.get(&tenant), &mut merged).await {
            Ok(Reached::Position(cursor)) => reached.push((tenant, cursor)),
            Ok(Reached::End(cursor)) => {
                reached.push((tenant, cursor));
                followed.reached(tenant, u64::MAX);
            }
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => {
                merged.entries.truncate(entries);
                merged.bytes = bytes;
                cursors.remove(&tenant);
                if is_closed(&error) {
                    followed.reached(tenant, u64::MAX);
                } else {
                    worker.desk.failed(&worker.name, &error);
                    followed.fail(tenant);
                }
            }
        }
        if merged.is_full() {
            break;
        }
    }
    if !merged.entries.is_empty() {
        index.index(&merged.entries).await?;
    }
    for (tenant, cursor) in reached {
        cursors.insert(tenant, cursor);
        followed.reached(tenant, cursor);
    }
    Ok(merged.entries.len())
}

/// Entries on their way to the index, each tenant's in one run.
#[derive(Default)]
struct Merged {
    entries: Vec<Entry>,
    bytes: usize,
}

impl Merged {
    fn is_full(&self) -> bool {
        self.entries.len() >= INDEX || self.bytes >= INDEX_BYTES
    }
}

/// How far a tenant's log was read.
enum Reached {
    Position(u64),
    End(u64),
}

/// Reads what comes next in a tenant's log, until there is enough.
async fn read_ahead(
    worker: &Worker,
    index: &dyn SearchIndex,
    tenant: TenantId,
    cursor: Option<&u64>,
    merged: &mut Merged,
) -> Result<Reached> {
    let scope = TenantScope::trusted(tenant, "indexer");
    let mut cursor = match cursor {
        Some(cursor) => *cursor,
        None => index.indexed_through(&scope).await?,
    };
    let start = merged.entries.len();
    loop {
        let entries = worker.log.store.read(&scope, cursor, READ).await?;
        let Some(last) = entries.last() else {
            return Ok(Reached::End(cursor));
        };
        let earlier = &mut merged.entries[start..];
        remove_erased(&*worker.log.store, index, &scope, cursor, &entries, earlier).await?;
        cursor = last.seq + 1;
        merged.bytes += entries.iter().map(weight).sum::<usize>();
        merged.entries.extend(entries);
        if merged.is_full() {
            return Ok(Reached::Position(cursor));
        }
    }
}

fn weight(entry: &Entry) -> usize {
    let f = &entry.fields;
    512 + [&f.before_state, &f.after_state, &f.metadata]
        .into_iter()
        .flatten()
        .map(|j| j.as_str().len())
        .sum::<usize>()
}

/// What an `erase` entry names and the index had before goes from it first, and from the `earlier`
/// entries that are still on their way to it: those that are read together with that entry were
/// erased when they were read. For whatever feeds an index: `entries` come next in the scope's log,
/// and `indexed` is the position up to which (exclusive) the index was given it or will be.
///
/// # Errors
/// What the store and the index answer; some may be removed by then, and it is safe to repeat.
pub async fn remove_erased(
    store: &dyn LogStore,
    index: &dyn SearchIndex,
    scope: &TenantScope,
    indexed: u64,
    entries: &[Entry],
    earlier: &mut [Entry],
) -> Result<()> {
    for entry in entries.iter().filter(|e| e.kind == Kind::Erase) {
        let Some(Ok(Control::Erase {
            entries: ranges, ..
        })) = entry
            .ctl
            .as_deref()
            .map(|ctl| Control::parse(entry.kind, ctl))
        else {
            continue;
        };
        for (from, to) in ranges {
            let mut next = from;
            while next <= to && next < indexed {
                let end = (to + 1).min(indexed).min(next + READ as u64);
                let seqs: Vec<u64> = (next..end).collect();
                let current = store.at(scope, &seqs).await?;
                index.remove(scope, &current).await?;
                for entry in current {
                    if let Ok(at) = earlier.binary_search_by_key(&entry.seq, |e| e.seq) {
                        earlier[at] = entry;
                    }
                }
                next = end;
            }
        }
    }
    Ok(())
}

async fn ingest(worker: Worker, queue: Arc<dyn EventQueue>) {
    let mut failures = 0;
    while !worker.stop.is_cancelled() {
        let received = tokio::select! {
            () = worker.stop.cancelled() => return,
            received = queue.receive(INGEST, Duration::from_secs(1), LEASE) => received,
        };
        let outcome = match received {
            Ok(deliveries) if deliveries.is_empty() => Ok(()),
            Ok(deliveries) => ingest_all(&worker, &*queue, deliveries).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => {
                failures = 0;
                worker.desk.worked(&worker.name);
                if let Ok(depth) = queue.depth().await {
                    worker.desk.lag(&worker.name, depth.waiting + depth.leased);
                }
            }
            Err(error) => {
                worker.desk.failed(&worker.name, &error);
                failures += 1;
                if !worker.pause(pause_after(failures)).await {
                    return;
                }
            }
        }
    }
}

/// What becomes of a delivery.
enum Fate {
    Done,
    Dead(String),
    Later(Error),
}

/// How often a message is tried whose failure may be the store's and not its own.
const MAX_ATTEMPTS: u32 = 100;

/// Whether the failure is the event's own: no store, however well, will ever take it. Other failures
/// that are final, a missing right or a fault within, may be the store's, and would make dead letters
/// of everything.
fn is_own_fault(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Malformed
            | ErrorKind::Invalid
            | ErrorKind::Conflict
            | ErrorKind::Forbidden
            | ErrorKind::UnknownTenant
            | ErrorKind::TenantClosed
            | ErrorKind::TenantDeleted
    )
}

async fn ingest_all(
    worker: &Worker,
    queue: &dyn EventQueue,
    deliveries: Vec<Delivery>,
) -> Result<()> {
    let handles: Vec<String> = deliveries.iter().map(|d| d.handle.clone()).collect();
    let work = append_all(worker, &deliveries);
    let fates = holding(queue, &handles, work).await;
    let (mut done, mut later, mut dead) = (Vec::new(), Vec::new(), Vec::new());
    let (mut attempts, mut postponed) = (1, None);
    for (delivery, decided) in deliveries.into_iter().zip(fates) {
        match decided {
            Fate::Done => done.push(delivery.handle),
            Fate::Dead(reason) => dead.push((delivery.handle, reason)),
            Fate::Later(error) => {
                attempts = attempts.max(delivery.attempts);
                later.push(delivery.handle);
                postponed.get_or_insert(error);
            }
        }
    }
    // What could not be settled is delivered again when its lease ends.
    let mut settled = Vec::new();
    let went_on = !done.is_empty() || !dead.is_empty();
    if !done.is_empty() {
        settled.extend(queue.ack(&done).await?);
    }
    if !dead.is_empty() {
        settled.extend(queue.bury(&dead).await?);
    }
    if !later.is_empty() {
        settled.extend(queue.retry(&later, pause_after(attempts)).await?);
    }
    match postponed {
        // Nothing goes on: the worker pauses, rather than use up the deliveries of all that waits.
        Some(error) if !went_on => Err(error),
        _ => settled.into_iter().collect(),
    }
}

/// Opens what was delivered, appends it, and says what becomes of each.
async fn append_all(worker: &Worker, deliveries: &[Delivery]) -> Vec<Fate> {
    let mut fates = Vec::with_capacity(deliveries.len());
    let mut batches = Vec::new();
    // What follows a message that comes again comes again too, so that a tenant's order is kept.
    let mut waiting: HashMap<TenantId, Error> = HashMap::new();
    for delivery in deliveries {
        if let Some(error) = waiting.get(&delivery.message.tenant) {
            fates.push(Some(Fate::Later(error.clone())));
            continue;
        }
        match open(worker, delivery).await {
            Ok(Opened::Batch(batch)) => {
                batches.push(batch);
                fates.push(None);
            }
            Ok(Opened::Foreign) => {
                tracing::warn!(tenant = %delivery.message.tenant, id = %delivery.message.id,
                    "dropped a message that this log did not write");
                worker.desk.edit(&worker.name, |s| s.dropped += 1);
                fates.push(Some(Fate::Done));
            }
            Err(error) => {
                let fate = fate(Err(error), delivery.attempts);
                if let Fate::Later(error) = &fate {
                    waiting.insert(delivery.message.tenant, error.clone());
                }
                fates.push(Some(fate));
            }
        }
    }
    // An unknown outcome is every message's own: all of them come again, which their ids make
    // harmless.
    let mut outcomes = match worker.log.commit(&batches).await {
        Ok(outcomes) => outcomes
            .into_iter()
            .map(|o| o.map(|_| ()))
            .collect::<Vec<_>>(),
        Err(error) => batches.iter().map(|_| Err(error.clone())).collect(),
    }
    .into_iter();
    fates
        .into_iter()
        .zip(deliveries)
        .map(|(decided, delivery)| {
            decided.unwrap_or_else(|| {
                let missing = || {
                    Err(Error::new(
                        ErrorKind::Internal,
                        "the store answered fewer batches than it was given",
                    ))
                };
                fate(outcomes.next().unwrap_or_else(missing), delivery.attempts)
            })
        })
        .collect()
}

/// Does the work, and extends the leases of what it is about for as long as it takes.
async fn holding<T>(
    queue: &dyn EventQueue,
    handles: &[String],
    work: impl Future<Output = T>,
) -> T {
    let extending = async {
        loop {
            tokio::time::sleep(LEASE / 2).await;
            // A lease that ends has its message delivered again, which its id makes harmless.
            match queue.extend(handles, LEASE).await {
                Ok(outcomes) => {
                    let lost = outcomes.iter().filter(|o| o.is_err()).count();
                    tracing::debug!(leases = handles.len(), lost, "extended the leases");
                }
                Err(error) => tracing::debug!(%error, "the leases were not extended"),
            }
        }
    };
    tokio::select! {
        done = work => done,
        never = extending => never,
    }
}

fn fate(outcome: Result<()>, attempts: u32) -> Fate {
    match outcome {
        Ok(()) => Fate::Done,
        Err(error) if is_own_fault(&error) => Fate::Dead(error.to_string()),
        Err(error) if error.is_retryable() || attempts < MAX_ATTEMPTS => Fate::Later(error),
        Err(error) => Fate::Dead(error.to_string()),
    }
}

enum Opened {
    Batch(Batch),
    Foreign,
}

async fn open(worker: &Worker, delivery: &Delivery) -> Result<Opened> {
    let message = &delivery.message;
    if message.kind != MessageKind::Ingest {
        return Err(Error::new(
            ErrorKind::Malformed,
            "no worker here does this kind of work",
        ));
    }
    let tenant = worker.log.cached_tenant(message.tenant).await?;
    let accepted = match open_message(&tenant.secret, message) {
        Ok(accepted) => accepted,
        Err(error) if error.kind() == ErrorKind::Forbidden => return Ok(Opened::Foreign),
        Err(error) => return Err(error),
    };
    // Redacted before it was queued, so not again.
    let prepared = PreparedEvent::new(message.tenant, accepted.event, &*worker.log.clock, &[])?
        .accepted_at(accepted.accepted_at);
    let scope = TenantScope::granted(
        message.tenant,
        &accepted.subject,
        crate::Permission::Record.into(),
    );
    Ok(Opened::Batch(Batch::new(scope, vec![prepared])))
}

async fn relay(mut worker: Worker, outbox: Arc<dyn Outbox>) {
    let mut failures = 0;
    loop {
        worker.bell.borrow_and_update();
        match relay_once(&worker, &*outbox).await {
            Ok(relayed) => {
                failures = 0;
                worker.desk.worked(&worker.name);
                if relayed == RELAY && !worker.stop.is_cancelled() {
                    continue;
                }
                if worker.stop.is_cancelled() || !worker.rest(POLL).await {
                    return;
                }
            }
            Err(error) => {
                worker.desk.failed(&worker.name, &error);
                failures += 1;
                if !worker.pause(pause_after(failures)).await {
                    return;
                }
            }
        }
    }
}

async fn relay_once(worker: &Worker, outbox: &dyn Outbox) -> Result<usize> {
    let rows = outbox.take(RELAY).await?;
    let taken = rows.len();
    worker.desk.lag(&worker.name, taken as u64);
    let mut batches = Vec::with_capacity(taken);
    let mut relayed = Vec::with_capacity(taken);
    for row in rows {
        match prepare_row(worker, &row) {
            Ok(prepared) => {
                let scope = TenantScope::trusted(row.tenant, "outbox relay");
                batches.push(Batch::new(scope, vec![prepared]).creating_tenant());
                relayed.push(row.row);
            }
            Err(error) => outbox.park(row.row, &error.to_string()).await?,
        }
    }
    let outcomes = worker.log.commit(&batches).await?;
    let mut done = Vec::with_capacity(relayed.len());
    let mut unavailable = None;
    // Where nothing at all is taken, the fault is more likely the store's than each row's.
    let takes_some = outcomes.iter().any(Result::is_ok);
    for (row, outcome) in relayed.into_iter().zip(outcomes) {
        match outcome {
            Ok(_) => done.push(row),
            Err(error) if error.is_retryable() => unavailable = Some(error),
            Err(error) if !takes_some && !is_own_fault(&error) => unavailable = Some(error),
            Err(error) => outbox.park(row, &error.to_string()).await?,
        }
    }
    outbox.done(&done).await?;
    match unavailable {
        Some(error) => Err(error),
        None => Ok(taken),
    }
}

fn prepare_row(worker: &Worker, row: &OutboxRow) -> Result<PreparedEvent> {
    let event = Event::from_json(&row.event)?;
    if event.given_id().is_some_and(|id| id != row.id) {
        return Err(Error::field("id", "differs from the outbox row's"));
    }
    let event = event.id(row.id);
    let log = &worker.log;
    let prepared = PreparedEvent::new(row.tenant, event, &*log.clock, &log.redactors)?;
    Ok(prepared.accepted_at(row.recorded_at))
}

async fn sweep(mut worker: Worker) {
    let mut failures = 0;
    loop {
        worker.bell.borrow_and_update();
        match worker.log.store.sweep().await {
            Ok(true) => {
                failures = 0;
                worker.desk.worked(&worker.name);
                tokio::task::yield_now().await;
                if worker.stop.is_cancelled() {
                    return;
                }
            }
            Ok(false) => {
                failures = 0;
                worker.desk.worked(&worker.name);
                if !worker.pause(POLL).await || !worker.rest(SWEEP_POLL).await {
                    return;
                }
            }
            Err(error) => {
                worker.desk.failed(&worker.name, &error);
                failures += 1;
                if !worker.pause(pause_after(failures)).await {
                    return;
                }
            }
        }
    }
}
