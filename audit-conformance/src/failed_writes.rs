//! What a write leaves that failed: one of which nothing was stored, and one that was stored and answered
//! with an error, each with the process killed behind it.
//!
//! Every checkpoint that a store ever accepted is one of the log's own heads, also those that it has
//! dropped since, and no two of one size have different roots. Tiles are written in the transaction that
//! adds entries: they agree with the leaves, whatever fails.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::tlog::checkpoint::{Checkpoint, Origin};
use audit_core::tlog::leaf::leaf_hash;
use audit_core::tlog::merkle;
use audit_core::tlog::note::{Note, SigningKey, VerifyingKey};
use audit_core::tlog::tile::FULL_WIDTH;
use audit_core::tlog::verify::{Options, verify_lines};
use audit_core::{
    AuditLog, Batch, CheckpointStore, Clock as _, Control, Counter, Declaration, Entry, EpochStart,
    Erased, Erasure, Error, ErrorKind, EventId, EvidenceRequest, Fence, Filter, Grown, Hash, Head,
    KeyChange, LogStore, Lookup, ManualClock, Mark, MemoryStore, Page, PageRequest, Prune, Pruned,
    Receipt, Recorder as _, Result, SignedCheckpoint, Signer, Snapshot, SystemClock, TenantId,
    TenantScope, TenantStore, Workers,
};
use futures_util::TryStreamExt as _;
use tokio::time::Instant;

use crate::fixture::{
    DEADLINE, act, append, basis, batch, events, everything, key_change, new_tenant, tenant_id,
    trusted, try_append,
};
use crate::size::is_full;

/// Longer than a signer's lease.
const PAST_THE_LEASE: i64 = 16_000_000;

/// Opens a store for the contract, whose process can be killed.
pub trait FailedWritesHarness: Sized + Send + Sync + 'static {
    /// The store.
    type Store: LogStore + CheckpointStore + TenantStore;

    /// Opens a store of the contract's own: it has one signer.
    fn open() -> impl Future<Output = Self> + Send;

    /// The store, shared with the process that is killed.
    fn store(&self) -> Arc<Self::Store>;

    /// Its clock.
    fn clock(&self) -> Arc<ManualClock>;

    /// Closes the store as a crash would, and opens it again. One in memory stays as it is: nobody but
    /// its signer is killed.
    fn reopen(self) -> impl Future<Output = Self> + Send;

    /// Makes the engine itself refuse each tile that is written from now on, or take them again. False
    /// when the store has no tiles beside its leaves; then the contract passes unchecked.
    fn refuse_tiles(&self, refuses: bool) -> impl Future<Output = bool> + Send;
}

/// The method that fails once, and whether it has stored everything by then.
type Fault = (&'static str, bool);

/// Whatever a store accepted as a checkpoint, from all processes.
type Published = Arc<Mutex<Vec<SignedCheckpoint>>>;

/// A store of which one write fails.
#[derive(Debug)]
struct Failing<S> {
    inner: Arc<S>,
    fault: Mutex<Option<Fault>>,
    /// Whether the write has failed, and what it stores is stored.
    has_failed: AtomicBool,
    published: Published,
}

impl<S> Failing<S> {
    fn new(inner: Arc<S>, fault: Option<Fault>, published: &Published) -> Self {
        Self {
            inner,
            fault: Mutex::new(fault),
            has_failed: AtomicBool::new(false),
            published: Arc::clone(published),
        }
    }

    fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }

    async fn write<T>(
        &self,
        name: &'static str,
        write: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let fault = {
            let mut fault = self.fault.lock().expect("nobody panicked");
            fault.take_if(|(failing, _)| *failing == name)
        };
        match fault {
            None => return write.await,
            Some((_, false)) => {}
            Some((_, true)) => drop(write.await?),
        }
        self.has_failed.store(true, Ordering::SeqCst);
        Err(Error::new(ErrorKind::Unavailable, "no answer"))
    }
}

#[async_trait]
impl<S: CheckpointStore> CheckpointStore for Failing<S> {
    async fn lease(&self, holder: &str, ttl: Duration) -> Result<Option<Fence>> {
        self.write("lease", self.inner.lease(holder, ttl)).await
    }

    async fn publish(
        &self,
        fence: Fence,
        tenant: TenantId,
        checkpoint: &SignedCheckpoint,
    ) -> Result<()> {
        let publish = async {
            self.inner.publish(fence, tenant, checkpoint).await?;
            let mut published = self.published.lock().expect("nobody panicked");
            published.push(checkpoint.clone());
            Ok(())
        };
        self.write("publish", publish).await
    }

    async fn latest(&self, scope: &TenantScope) -> Result<Option<SignedCheckpoint>> {
        self.inner.latest(scope).await
    }

    async fn covering(&self, scope: &TenantScope, size: u64) -> Result<Option<SignedCheckpoint>> {
        self.inner.covering(scope, size).await
    }

    async fn key_changes(&self, scope: &TenantScope) -> Result<Vec<KeyChange>> {
        self.inner.key_changes(scope).await
    }

    async fn epochs(&self, scope: &TenantScope) -> Result<Vec<EpochStart>> {
        self.inner.epochs(scope).await
    }
}

#[async_trait]
impl<S: LogStore> LogStore for Failing<S> {
    async fn append(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>> {
        self.write("append", self.inner.append(batches)).await
    }

    async fn get(&self, scope: &TenantScope, ids: &[EventId]) -> Result<Vec<Lookup>> {
        self.inner.get(scope, ids).await
    }

    async fn at(&self, scope: &TenantScope, seqs: &[u64]) -> Result<Vec<Entry>> {
        self.inner.at(scope, seqs).await
    }

    async fn list(
        &self,
        scope: &TenantScope,
        filter: &Filter,
        page: &PageRequest,
    ) -> Result<Page<Entry>> {
        self.inner.list(scope, filter, page).await
    }

    async fn read(&self, scope: &TenantScope, from: u64, limit: usize) -> Result<Vec<Entry>> {
        self.inner.read(scope, from, limit).await
    }

    async fn snapshot(&self, scope: &TenantScope) -> Result<Box<dyn Snapshot>> {
        self.inner.snapshot(scope).await
    }

    async fn counters(&self, scope: &TenantScope, days: Range<i32>) -> Result<Vec<Counter>> {
        self.inner.counters(scope, days).await
    }

    async fn head(&self, scope: &TenantScope) -> Result<Head> {
        self.inner.head(scope).await
    }

    async fn hashes(&self, scope: &TenantScope, level: u8, range: Range<u64>) -> Result<Vec<Hash>> {
        self.inner.hashes(scope, level, range).await
    }

    async fn leaves(&self, scope: &TenantScope, range: Range<u64>) -> Result<Vec<(u64, String)>> {
        self.inner.leaves(scope, range).await
    }

    async fn erase(&self, scope: &TenantScope, erasure: &Erasure) -> Result<Erased> {
        self.write("erase", self.inner.erase(scope, erasure)).await
    }

    async fn declare(&self, scope: &TenantScope, declaration: &Declaration) -> Result<Receipt> {
        self.write("declare", self.inner.declare(scope, declaration))
            .await
    }

    async fn prune(&self, scope: &TenantScope, prune: &Prune) -> Result<Pruned> {
        self.write("prune", self.inner.prune(scope, prune)).await
    }

    async fn sweep(&self) -> Result<bool> {
        self.inner.sweep().await
    }

    async fn grown_since(&self, since: Mark) -> Result<Grown> {
        self.inner.grown_since(since).await
    }

    async fn cursor(&self, tenant: TenantId, consumer: &str) -> Result<u64> {
        self.inner.cursor(tenant, consumer).await
    }

    async fn advance(
        &self,
        tenant: TenantId,
        consumer: &str,
        required: bool,
        position: u64,
    ) -> Result<()> {
        self.inner
            .advance(tenant, consumer, required, position)
            .await
    }

    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }
}

fn origin() -> Origin {
    Origin::parse("audit.example/log").expect("an origin")
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed("audit", &[n; 32]).expect("a key")
}

/// What verifies the tenant's checkpoints by the `n`th key.
fn verifying_key(tenant: TenantId, n: u8) -> VerifyingKey {
    let name = origin().for_tenant(tenant.into_uuid(), 1);
    let named = key(n).renamed(&name).expect("a name");
    named.verifying_key().clone()
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited for too long: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One process after the other on one store.
struct Process<S> {
    store: Arc<Failing<S>>,
    tenant: TenantId,
    log: AuditLog,
    workers: Workers,
}

impl<S: LogStore + CheckpointStore> Process<S> {
    fn start<H: FailedWritesHarness<Store = S>>(
        harness: &H,
        tenant: TenantId,
        signer: Signer,
        fault: Option<Fault>,
        published: &Published,
    ) -> Self {
        let store = Arc::new(Failing::new(harness.store(), fault, published));
        // What it has beside the log and its checkpoints is of no matter here.
        let log = AuditLog::builder(Arc::new(MemoryStore::with_clock(harness.clock())))
            .log_store(store.clone())
            .clock(harness.clock())
            .signer(signer, store.clone())
            .build();
        let workers = log.start();
        Self {
            store,
            tenant,
            log,
            workers,
        }
    }

    async fn record(&self, n: usize) {
        let recorder = self.log.recorder(self.tenant);
        recorder.record_all(events(n)).await.expect("recorded");
    }

    /// Waits for the `n`th key's checkpoint of the newest head.
    async fn is_signed(&self, n: u8) {
        let (scope, key) = (trusted(self.tenant), verifying_key(self.tenant, n));
        until("the head is signed", async || {
            let latest = self.store.latest(&scope).await.expect("an answer");
            let size = self.store.head(&scope).await.expect("a head").size();
            latest.is_some_and(|latest| latest.size == size && is_by(&latest, &key))
        })
        .await;
    }

    /// What is exported verifies, for whoever knows the first key.
    async fn is_verified(&self, case: &str) {
        let reader = self.log.tenant(trusted(self.tenant));
        let lines = reader.evidence(EvidenceRequest::new()).await;
        let text: String = lines
            .expect("a stream")
            .try_collect()
            .await
            .expect("an export");
        let options = Options {
            keys: vec![verifying_key(self.tenant, 1)],
            ..Options::default()
        };
        let report = verify_lines(text.lines(), options);
        assert!(report.is_verified(), "{case}: {:#?}", report.findings);
        assert!(report.key_trusted, "{case}");
    }

    async fn end(self) {
        assert!(self.workers.shutdown(DEADLINE).await);
    }
}

/// Whether a checkpoint is signed by a key, and says what it is kept with.
fn is_by(checkpoint: &SignedCheckpoint, key: &VerifyingKey) -> bool {
    let note = Note::parse(&checkpoint.note).expect("a note");
    Checkpoint::open(&note, std::slice::from_ref(key)).is_ok_and(|opened| {
        let head = opened.checkpoint;
        (head.size(), head.root()) == (checkpoint.size, checkpoint.root)
    })
}

/// Each write of the signer fails once as not stored and once as stored, in an ordinary round and in one
/// that changes the key, and the process is killed behind it.
pub async fn no_failed_write_of_the_signer_leaves_two_heads_of_one_size_or_one_that_the_log_lacks<
    H: FailedWritesHarness,
>() {
    for write in ["lease", "publish", "declare"] {
        for stored in [false, true] {
            for changes_key in [false, true] {
                // Nothing else is declared.
                if changes_key || write != "declare" {
                    fail_while_signing::<H>((write, stored), changes_key).await;
                }
            }
        }
    }
}

async fn fail_while_signing<H: FailedWritesHarness>(fault: Fault, changes_key: bool) {
    let case = format!("{fault:?}, key changes: {changes_key}");
    let (mut harness, tenant) = (H::open().await, tenant_id());
    let published = Published::default();
    let first = Signer::new(origin(), key(1));
    let process = Process::start(&harness, tenant, first, None, &published);
    process.record(7).await;
    process.is_signed(1).await;
    process.end().await;

    let signer = || match changes_key {
        true => Signer::new(origin(), key(2)).succeeding(origin(), key(1)),
        false => Signer::new(origin(), key(1)),
    };
    let process = Process::start(&harness, tenant, signer(), Some(fault), &published);
    process.record(4).await;
    until(&case, async || process.store.has_failed()).await;
    // Killed.
    drop(process);
    harness = harness.reopen().await;
    harness.clock().advance_micros(PAST_THE_LEASE);

    let process = Process::start(&harness, tenant, signer(), None, &published);
    process.record(3).await;
    process.is_signed(if changes_key { 2 } else { 1 }).await;
    process.is_verified(&case).await;
    process.end().await;

    let store = harness.store();
    let entries = everything(&*store, tenant).await;
    let changes = entries.iter().filter_map(|entry| entry.control());
    let changes = changes.filter(|control| matches!(control, Control::Key { .. }));
    assert_eq!(changes.count(), usize::from(changes_key), "{case}");
    every_head_is_the_logs(&*store, tenant, &published, &case).await;
}

/// Of a log of which nothing was pruned: all that was ever published, and all that is kept.
async fn every_head_is_the_logs<S: LogStore + CheckpointStore>(
    store: &S,
    tenant: TenantId,
    published: &Published,
    case: &str,
) {
    let scope = trusted(tenant);
    let size = store.head(&scope).await.expect("a head").size();
    let leaves = store.leaves(&scope, 0..size).await.expect("leaf data");
    let leaves = leaves.iter().map(|(_, data)| leaf_hash(data.as_bytes()));
    let leaves: Vec<Hash> = leaves.collect();
    assert_eq!(leaves.len() as u64, size, "{case}");
    let published = published.lock().expect("nobody panicked").clone();
    let keys = [1, 2].map(|n| verifying_key(tenant, n));
    let mut roots = BTreeMap::new();
    for checkpoint in &published {
        let (size, root) = (checkpoint.size, checkpoint.root);
        assert_eq!(*roots.entry(size).or_insert(root), root, "{case}: {size}");
        assert_eq!(merkle::root(&leaves[..size as usize]), root, "{case}");
        assert!(keys.iter().any(|key| is_by(checkpoint, key)), "{case}");
    }
    let mut next = 0;
    while let Some(kept) = store.covering(&scope, next).await.expect("an answer") {
        assert!(published.contains(&kept), "{case}: {kept:?}");
        next = kept.size + 1;
    }
    assert_eq!(next, size + 1, "{case}: the newest head is kept");
}

/// What adds entries, and completes a tile by it.
enum Write {
    Append(Batch),
    Erase(Erasure),
    Prune(Prune),
    Declare(Declaration),
}

impl Write {
    fn name(&self) -> &'static str {
        match self {
            Self::Append(_) => "append",
            Self::Erase(_) => "erase",
            Self::Prune(_) => "prune",
            Self::Declare(_) => "declare",
        }
    }

    /// How many entries it adds.
    fn entries(&self) -> u64 {
        match self {
            Self::Append(batch) => batch.events().len() as u64,
            Self::Erase(_) | Self::Prune(_) | Self::Declare(_) => 1,
        }
    }

    async fn make(&self, store: &impl LogStore, tenant: TenantId) -> Result<()> {
        let scope = trusted(tenant);
        match self {
            Self::Append(batch) => try_append(store, batch).await.map(drop),
            Self::Erase(erasure) => store.erase(&scope, erasure).await.map(drop),
            Self::Prune(prune) => store.prune(&scope, prune).await.map(drop),
            Self::Declare(declaration) => store.declare(&scope, declaration).await.map(drop),
        }
    }
}

/// Each write that adds entries, and so writes tiles, fails once as not stored and once as stored, and the
/// process is killed behind it; then it is made again. With `AUDIT_TEST_FULL=1` the tile above is completed
/// as well.
pub async fn a_failed_write_of_entries_leaves_tiles_that_agree_with_the_leaves<
    H: FailedWritesHarness,
>() {
    let mut harness = H::open().await;
    for name in ["append", "erase", "prune", "declare"] {
        for stored in [false, true] {
            harness = fail_while_adding(harness, name, stored).await;
        }
    }
}

/// A log that lacks so many entries to the end of a tile, and the ids of its newest ones.
async fn log_before_the_end_of_a_tile<S: LogStore + TenantStore>(
    store: &S,
    tiles: u64,
    lacks: u64,
) -> (TenantId, Vec<EventId>) {
    let tenant = new_tenant(store).await;
    let (mut left, mut ids) = (tiles * u64::from(FULL_WIDTH) - lacks, Vec::new());
    while left > 0 {
        let some = left.min(1_000);
        let receipts = append(store, tenant, events(some as usize)).await;
        ids = receipts.iter().map(|receipt| receipt.id).collect();
        left -= some;
    }
    (tenant, ids)
}

async fn fail_while_adding<H: FailedWritesHarness>(harness: H, name: &str, stored: bool) -> H {
    let (store, clock) = (harness.store(), harness.clock());
    let is_append = name == "append";
    let tiles = match is_append && is_full() {
        true => u64::from(FULL_WIDTH),
        false => 1,
    };
    let lacks = if is_append { 6 } else { 1 };
    let (tenant, ids) = log_before_the_end_of_a_tile(&*store, tiles, lacks).await;
    let before = tiles * u64::from(FULL_WIDTH) - lacks;
    clock.advance_micros(1);
    let bound = clock.now();
    clock.advance_micros(1);
    let write = match name {
        "append" => Write::Append(batch(tenant, events(20))),
        "erase" => Write::Erase(Erasure::new(
            ids[..3].to_vec(),
            basis("gdpr-17"),
            act(tenant),
        )),
        "prune" => Write::Prune(Prune::new(bound, basis("retention"), act(tenant))),
        _ => {
            let fence = store.lease("one", Duration::from_secs(15)).await;
            let fence = fence.expect("a lease").expect("the only signer");
            Write::Declare(key_change(tenant, fence, SystemClock.event_id()))
        }
    };
    let case = format!("{name}, stored: {stored}");
    let fault = Some((write.name(), stored));
    let failing = Failing::new(Arc::clone(&store), fault, &Published::default());
    let failed = write.make(&failing, tenant).await;
    assert!(failed.is_err() && failing.has_failed(), "{case}");
    // Killed.
    drop((failing, store));
    let mut harness = harness.reopen().await;

    let after = before + write.entries();
    let size = tiles_agree(&*harness.store(), tenant, &case).await;
    assert_eq!(size, if stored { after } else { before }, "{case}");
    let again = write.make(&*harness.store(), tenant).await;
    again.unwrap_or_else(|error| panic!("{case}: {error}"));
    let size = tiles_agree(&*harness.store(), tenant, &case).await;
    assert_eq!(size, after, "{case}");
    append(&*harness.store(), tenant, events(300)).await;
    tiles_agree(&*harness.store(), tenant, &case).await;
    harness = harness.reopen().await;
    let size = tiles_agree(&*harness.store(), tenant, &case).await;
    assert_eq!(size, after + 300, "{case}");
    harness
}

/// The leaf data of what is left hashes to the leaves, and these to each complete subtree and to the head.
/// Returns the log's size.
async fn tiles_agree<S: LogStore>(store: &S, tenant: TenantId, case: &str) -> u64 {
    let scope = trusted(tenant);
    let head = store.head(&scope).await.expect("a head");
    let size = head.size();
    let hashes = store.hashes(&scope, 0, 0..size).await.expect("hashes");
    let leaves = store.leaves(&scope, 0..size).await.expect("leaf data");
    assert!(leaves.len() as u64 >= size - head.pruned_below, "{case}");
    for (seq, data) in leaves {
        let leaf = leaf_hash(data.as_bytes());
        assert_eq!(leaf, hashes[seq as usize], "{case}: {seq}");
    }
    for level in 1.. {
        let width = usize::from(FULL_WIDTH).pow(u32::from(level));
        let expected: Vec<Hash> = hashes.chunks_exact(width).map(merkle::root).collect();
        let complete = expected.len() as u64;
        let found = store.hashes(&scope, level, 0..complete).await;
        assert_eq!(found.expect("hashes"), expected, "{case}: level {level}");
        if expected.is_empty() {
            break;
        }
    }
    assert_eq!(head.tree.root(), merkle::root(&hashes), "{case}");
    size
}

/// And what the process knows of the log is what is stored: without being opened again it goes on.
pub async fn a_tile_that_the_engine_refuses_leaves_nothing_of_its_append<H: FailedWritesHarness>() {
    const CASE: &str = "refused tiles";
    let mut harness = H::open().await;
    let store = harness.store();
    let (tenant, _) = log_before_the_end_of_a_tile(&*store, 1, 6).await;
    if !harness.refuse_tiles(true).await {
        return;
    }
    let refused = batch(tenant, events(20));
    for _ in 0..2 {
        assert!(try_append(&*store, &refused).await.is_err());
        assert_eq!(tiles_agree(&*store, tenant, CASE).await, 250);
    }
    // What completes none is taken meanwhile.
    append(&*store, tenant, events(3)).await;
    assert!(try_append(&*store, &refused).await.is_err());
    assert!(harness.refuse_tiles(false).await);
    let receipts = try_append(&*store, &refused).await.expect("appended");
    assert!(receipts.iter().all(|receipt| !receipt.duplicate));
    assert_eq!(tiles_agree(&*store, tenant, CASE).await, 273);
    append(&*store, tenant, events(300)).await;
    assert_eq!(tiles_agree(&*store, tenant, CASE).await, 573);
    drop(store);
    harness = harness.reopen().await;
    let size = tiles_agree(&*harness.store(), tenant, CASE).await;
    assert_eq!(size, 573);
}
