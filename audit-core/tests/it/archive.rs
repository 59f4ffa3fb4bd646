//! Nothing is pruned that isn't archived first, whatever fails on the way.

mod erasing;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::archive::CONSUMER;
use audit_core::memory::{MemoryArchive, MemoryGuard, MemoryStore};
use audit_core::retention::Retention;
use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::evidence::FolderManifest;
use audit_core::tlog::folder::{self, LOG_ZST, MANIFEST, SegmentName};
use audit_core::tlog::note::{Note, SigningKey};
use audit_core::tlog::verify::{Options, Report, verify_lines};
use audit_core::{
    Archive, AuditLog, Basis, CheckpointStore as _, Clock as _, Error, ErrorKind, Event, EventId,
    EvidenceRequest, Group, LogStore as _, ManualClock, Recorder as _, Result, Signer, TenantId,
    TenantLog, TenantScope, Timestamp, Workers,
};
use tokio::sync::Notify;
use uuid::Uuid;

pub(crate) const ORIGIN: &str = "audit.example/log";
const DAY: i64 = 86_400_000_000;

fn tenant() -> TenantId {
    TenantId::new(Uuid::from_u128(9))
}

pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed(ORIGIN, &[7; 32]).unwrap()
}

fn basis() -> Basis {
    Basis::parse("retention").unwrap()
}

/// How a call of the archive goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing is done, and an error answered.
    Fails,
    /// It is done, and an error answered.
    LosesItsAnswer,
    /// The process is killed before it.
    DiesBefore,
    /// The process is killed behind it.
    DiesAfter,
    /// It waits until something else was done.
    Waits,
    /// What is read is cut.
    Cuts,
    /// A byte of what is read is another.
    Alters,
}

/// An archive of which one call goes wrong.
#[derive(Debug, Default)]
struct Faulty {
    inner: Arc<MemoryArchive>,
    calls: AtomicU64,
    fault: Mutex<Option<(u64, Mode)>>,
    /// It waits before the manifest that is put behind so many others.
    manifest: Mutex<Option<usize>>,
    died: Notify,
    go: Notify,
}

impl Faulty {
    /// The same objects, as another process has them.
    fn of(inner: &Arc<MemoryArchive>) -> Self {
        Self {
            inner: Arc::clone(inner),
            ..Self::default()
        }
    }

    async fn wait(&self) {
        self.died.notify_one();
        self.go.notified().await;
    }

    fn next_fault(&self, call: u64, mode: Mode) {
        self.calls.store(0, Ordering::SeqCst);
        *self.fault.lock().unwrap() = Some((call, mode));
    }

    /// Whether the fault has happened; it doesn't any more.
    fn take_fault(&self) -> bool {
        self.fault.lock().unwrap().take().is_none()
    }

    /// The fault of this call, if it is one that happens before or behind it.
    fn take(&self, call: u64) -> Option<Mode> {
        let mut fault = self.fault.lock().unwrap();
        let due = |(at, mode): &mut (u64, Mode)| {
            *at == call && !matches!(mode, Mode::Cuts | Mode::Alters)
        };
        fault.take_if(due).map(|(_, mode)| mode)
    }

    async fn call<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mode = self.take(self.calls.fetch_add(1, Ordering::SeqCst));
        let Some(mode) = mode else {
            return work.await;
        };
        if mode == Mode::Waits {
            self.wait().await;
            return work.await;
        }
        if matches!(mode, Mode::LosesItsAnswer | Mode::DiesAfter) {
            work.await?;
        }
        if matches!(mode, Mode::DiesBefore | Mode::DiesAfter) {
            self.died.notify_one();
            return std::future::pending().await;
        }
        Err(Error::new(ErrorKind::Unavailable, "no answer"))
    }
}

#[async_trait]
impl Archive for Faulty {
    async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let is_due = path.ends_with(MANIFEST) && {
            let mut left = self.manifest.lock().unwrap();
            let was = *left;
            *left = was.and_then(|left| left.checked_sub(1));
            was == Some(0)
        };
        if is_due {
            self.wait().await;
        }
        self.call(self.inner.put(path, bytes)).await
    }

    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let call = self.calls.load(Ordering::SeqCst);
        let mut found = self.call(self.inner.get(path)).await?;
        let mut fault = self.fault.lock().unwrap();
        if let Some(bytes) = &mut found
            && let Some((_, mode)) = fault.take_if(|(at, _)| *at == call)
        {
            match mode {
                Mode::Cuts => bytes.truncate(bytes.len() / 2),
                _ => *bytes.last_mut().unwrap() ^= 1,
            }
        }
        Ok(found)
    }

    async fn list(&self, folder: &str, after: &str) -> Result<Vec<String>> {
        self.call(self.inner.list(folder, after)).await
    }

    async fn remove(&self, path: &str) -> Result<()> {
        self.call(self.inner.remove(path)).await
    }
}

struct Stage {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
    archive: Arc<Faulty>,
    log: AuditLog,
    _workers: Option<Workers>,
}

impl Stage {
    fn new() -> Self {
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let clock = Arc::new(ManualClock::new(start));
        let store = Arc::new(MemoryStore::with_clock(clock.clone()));
        Self::of(clock, store, Arc::default())
    }

    fn of(clock: Arc<ManualClock>, store: Arc<MemoryStore>, archive: Arc<Faulty>) -> Self {
        let log = AuditLog::builder(store.clone())
            .clock(clock.clone())
            .retention_every(Duration::from_millis(100))
            .signer(
                Signer::new(Origin::parse(ORIGIN).unwrap(), key()),
                store.clone(),
            )
            .archive(archive.clone())
            .build();
        Self {
            clock,
            store,
            archive,
            log,
            _workers: None,
        }
    }

    /// Another process at the same log and archive. The log's head is signed, as it is now.
    async fn other(&self) -> Self {
        let signed = self.reader().evidence(EvidenceRequest::default()).await;
        drop(signed.unwrap());
        let archive = Arc::new(Faulty::of(&self.archive.inner));
        Self::of(self.clock.clone(), self.store.clone(), archive)
    }

    /// A log of so many entries, of which the head is signed.
    async fn signed(n: usize) -> (Self, Vec<EventId>) {
        let mut stage = Self::new();
        let ids = stage.record(n).await;
        stage._workers = Some(stage.log.start());
        let reader = stage.reader();
        eventually(async || reader.checkpoint().await.unwrap()).await;
        (stage, ids)
    }

    fn reader(&self) -> TenantLog {
        self.log.tenant(TenantScope::trusted(tenant(), "test"))
    }

    async fn record(&self, n: usize) -> Vec<EventId> {
        let event = |n| {
            Event::update("invoice", format!("inv-{n}"))
                .user("ann")
                .reason("as agreed")
                .after(&n)
        };
        let events = (0..n).map(event).collect();
        let receipts = self.log.recorder(tenant()).record_all(events).await;
        self.clock.advance_micros(1_000_000);
        receipts.unwrap().iter().map(|receipt| receipt.id).collect()
    }

    async fn try_prune(&self) -> Result<u64> {
        let now = self.clock.now();
        let pruned = self.reader().prune(now, basis(), None, false).await?;
        Ok(pruned.below)
    }

    async fn prune(&self) -> u64 {
        self.try_prune().await.unwrap()
    }

    async fn pruned_below(&self) -> u64 {
        self.reader().head().await.unwrap().pruned_below
    }

    /// The files of the segments that were written to the end.
    async fn files(&self) -> Vec<(SegmentName, BTreeMap<String, Vec<u8>>)> {
        let mut files: BTreeMap<SegmentName, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
        let folder = tenant().to_string();
        for path in self.archive.inner.list(&folder, "").await.unwrap() {
            let mut parts = path.splitn(3, '/').skip(1);
            let name = SegmentName::parse(parts.next().unwrap()).unwrap();
            let bytes = self.archive.inner.get(&path).await.unwrap().unwrap();
            let file = parts.next().unwrap().to_owned();
            files.entry(name).or_default().insert(file, bytes);
        }
        let whole = files
            .into_iter()
            .filter(|(_, files)| files.contains_key(MANIFEST));
        whole.collect()
    }

    /// The segments, each verified by itself from the archive alone.
    async fn segments(&self) -> Vec<(SegmentName, Report)> {
        let files = self.files().await.into_iter();
        files
            .map(|(name, files)| (name, judged(tenant(), &files, Vec::new())))
            .collect()
    }

    /// That all positions below this one are in segments that verify, more than once perhaps.
    async fn assert_kept(&self, below: u64) {
        let mut next = 0;
        for (name, report) in self.segments().await {
            assert!(report.is_verified(), "{name}: {:#?}", report.findings);
            assert_eq!(report.withheld_within(&name.positions()), None);
            assert!(name.from <= next, "{name} behind {next}");
            next = next.max(name.to);
        }
        assert!(next >= below, "{next}");
    }

    /// That the segments are all positions below this one, once and in order.
    async fn assert_archived(&self, below: u64) {
        let segments = self.segments().await;
        let mut next = 0;
        for (name, report) in &segments {
            assert!(report.is_verified(), "{name}: {:#?}", report.findings);
            assert!(report.key_trusted);
            assert_eq!(report.withheld_within(&name.positions()), None);
            assert_eq!(name.from, next);
            next = name.to;
        }
        assert_eq!(next, below);
    }
}

/// The verdict on a segment of a tenant's by itself, from its files.
pub(crate) fn judged(
    tenant: TenantId,
    files: &BTreeMap<String, Vec<u8>>,
    known: Vec<Note>,
) -> Report {
    let text = |name: &str| String::from_utf8(files[name].clone()).unwrap();
    let listing = FolderManifest::parse(&text(MANIFEST)).unwrap();
    let opened = folder::open(&listing, |name| Ok::<_, Error>(text(name)));
    assert!(opened.findings.is_empty());
    let log = zstd::decode_all(files[LOG_ZST].as_slice()).unwrap();
    let log = String::from_utf8(log).unwrap();
    let name = Origin::parse(ORIGIN).unwrap();
    let name = name.for_tenant(tenant.into_uuid(), 1);
    let options = Options {
        partial: true,
        keys: vec![key().renamed(&name).unwrap().verifying_key().clone()],
        known,
        ..Options::default()
    };
    verify_lines(opened.head.lines().chain(log.lines()), options)
}

/// Until the condition holds.
async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn what_is_pruned_is_archived_first_and_verified_from_there() {
    let (stage, ids) = Stage::signed(300).await;
    let reader = stage.reader();
    let erased = reader.erase(
        ids[5..9].to_vec(),
        Some(vec![Group::Actor, Group::Reason]),
        basis(),
        None,
    );
    erased.await.unwrap();
    stage.clock.advance_micros(1_000_000);
    assert_eq!(stage.prune().await, 301);
    stage.assert_archived(301).await;
    // The segment has what explains the holes, and holds nothing of what was erased.
    let segments = stage.segments().await;
    assert_eq!(segments[0].1.groups.erased, 8);
    assert_eq!(segments[0].1.groups.unexplained, 0);

    // The next one continues it, over the prune's own entry.
    stage.record(10).await;
    assert_eq!(stage.prune().await, 312);
    stage.assert_archived(312).await;
    let status = stage.log.archived().unwrap();
    assert_eq!(
        (status.segments, status.entries, status.failures),
        (2, 312, 0)
    );
    assert_eq!(stage.segments().await[1].1.absent.pruned, 301);
}

#[tokio::test]
async fn a_dry_run_says_what_would_go_and_archives_nothing() {
    let (stage, _) = Stage::signed(20).await;
    let now = stage.clock.now();
    let dry = stage
        .reader()
        .prune(now, basis(), None, true)
        .await
        .unwrap();
    assert_eq!((dry.below, dry.entries, dry.receipt), (20, 20, None));
    assert_eq!(stage.segments().await.len(), 0);
    assert_eq!(stage.pruned_below().await, 0);
}

#[tokio::test]
async fn whatever_call_fails_nothing_is_pruned_and_the_next_try_succeeds() {
    let modes = [Mode::Fails, Mode::LosesItsAnswer, Mode::Cuts, Mode::Alters];
    for mode in modes {
        let mut failed = 0;
        for call in 0.. {
            let (stage, ids) = Stage::signed(30).await;
            stage.prune().await;
            let later = stage.record(10).await;
            stage.archive.next_fault(call, mode);
            let outcome = stage.try_prune().await;
            if !stage.archive.take_fault() {
                let is_read = matches!(mode, Mode::Cuts | Mode::Alters);
                if is_read && stage.archive.calls.load(Ordering::SeqCst) > call {
                    // Nothing was read with this call.
                    assert_eq!(outcome.unwrap(), 41);
                    continue;
                }
                break;
            }
            match outcome {
                // What a damaged earlier checkpoint, or a segment that could not be removed, costs.
                Ok(below) => assert_eq!(below, 41, "{mode:?} {call}"),
                Err(error) => {
                    failed += 1;
                    assert!(error.is_retryable() || error.kind() == ErrorKind::Corrupt);
                    assert_eq!(stage.pruned_below().await, 30, "{mode:?} {call}");
                    stage.reader().get(later[0]).await.unwrap();
                    assert_eq!(stage.try_prune().await.unwrap(), 41);
                }
            }
            let gone = stage.reader().get(ids[0]).await.unwrap_err();
            assert_eq!(gone.kind(), ErrorKind::Pruned);
            stage.assert_archived(41).await;
        }
        assert!(failed >= 4, "{mode:?}: {failed}");
    }
}

#[tokio::test]
async fn a_kill_leaves_entries_unpruned_or_archived_and_pruned() {
    for mode in [Mode::DiesBefore, Mode::DiesAfter] {
        let mut died = 0;
        for call in 0.. {
            let (stage, _) = Stage::signed(30).await;
            stage.prune().await;
            stage.record(10).await;
            // What a try before left behind is removed by the next, which may be killed over it, too.
            stage.archive.next_fault(9, Mode::Fails);
            stage.try_prune().await.unwrap_err();
            stage.archive.next_fault(call, mode);
            let killed = tokio::select! {
                outcome = stage.try_prune() => { outcome.unwrap(); false }
                () = stage.archive.died.notified() => true,
            };
            if !killed {
                break;
            }
            died += 1;
            assert_eq!(stage.pruned_below().await, 30, "{mode:?} {call}");
            assert_eq!(stage.try_prune().await.unwrap(), 41);
            stage.assert_archived(41).await;
        }
        assert!(died > 10, "{mode:?}: {died}");
    }
}

#[tokio::test]
async fn an_archive_is_pruned_up_to_by_processes_without_it_too() {
    let (stage, _) = Stage::signed(10).await;
    stage.prune().await;
    stage.record(10).await;
    let other = AuditLog::builder(stage.store.clone())
        .clock(stage.clock.clone())
        .build();
    let other = other.tenant(TenantScope::trusted(tenant(), "test"));
    let now = stage.clock.now();
    let pruned = other.prune(now, basis(), None, false).await.unwrap();
    assert_eq!((pruned.below, pruned.entries), (10, 0));
    assert_eq!(stage.store.cursor(tenant(), CONSUMER).await.unwrap(), 10);
}

#[tokio::test]
async fn without_a_signer_nothing_is_pruned_that_would_have_to_be_archived() {
    let store = Arc::new(MemoryStore::new());
    let log = AuditLog::builder(store)
        .archive(Arc::new(MemoryArchive::new()))
        .build();
    let recorder = log.recorder(tenant());
    recorder.record(Event::view("page", "1")).await.unwrap();
    let reader = log.tenant(TenantScope::trusted(tenant(), "test"));
    let refused = reader.prune(Timestamp::MAX, basis(), None, false).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.to_string().contains("signer"));
    assert_eq!(reader.head().await.unwrap().pruned_below, 0);
}

#[tokio::test]
async fn a_legal_hold_refuses_before_anything_is_archived() {
    let (stage, _) = Stage::signed(10).await;
    let name = "Smith v. Jones";
    let placed = stage.log.place_hold(tenant(), None, name, "admin", None);
    placed.await.unwrap();
    stage.archive.next_fault(0, Mode::Fails);
    let refused = stage.try_prune().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.to_string().contains(name), "{refused}");
    // Not even asked.
    assert!(!stage.archive.take_fault());
}

#[tokio::test]
async fn what_was_erased_after_a_try_is_not_in_the_archive() {
    let (stage, ids) = Stage::signed(20).await;
    let reader = stage.reader();
    // The manifest is there, and its answer was lost.
    stage.archive.next_fault(4, Mode::LosesItsAnswer);
    stage.try_prune().await.unwrap_err();
    let segments = stage.segments().await;
    assert_eq!((segments.len(), segments[0].1.groups.erased), (1, 0));
    let erased = reader.erase(vec![ids[3]], None, basis(), None).await;
    erased.unwrap();
    stage.clock.advance_micros(1_000_000);
    assert_eq!(stage.try_prune().await.unwrap(), 21);
    stage.assert_archived(21).await;
    assert_eq!(stage.segments().await[0].1.groups.erased, 4);
}

#[tokio::test]
async fn what_is_erased_while_it_is_archived_is_archived_anew() {
    let (stage, ids) = Stage::signed(20).await;
    stage.archive.next_fault(4, Mode::Waits);
    let reader = stage.reader();
    let erases = async {
        stage.archive.died.notified().await;
        let erased = reader.erase(vec![ids[3]], None, basis(), None).await;
        stage.archive.go.notify_one();
        erased.unwrap()
    };
    let (refused, _) = tokio::join!(stage.try_prune(), erases);
    assert!(refused.unwrap_err().is_retryable());
    assert_eq!(stage.pruned_below().await, 0);
    // What was erased isn't left in the archive, nor may others prune up to it.
    assert_eq!(stage.segments().await.len(), 0);
    assert_eq!(stage.store.cursor(tenant(), CONSUMER).await.unwrap(), 0);
    assert_eq!(stage.try_prune().await.unwrap(), 20);
    stage.assert_archived(20).await;
    assert_eq!(stage.segments().await[0].1.groups.erased, 4);
}

/// At each call in turn an entry is erased, and the call behind it fails.
#[tokio::test]
async fn what_a_failed_try_has_put_in_place_of_another_is_not_taken_back() {
    let mut replaced = 0;
    for call in 0.. {
        let (mut stage, ids) = Stage::signed(20).await;
        stage._workers = None;
        // A try before left a segment, of which the answer was lost.
        stage.archive.next_fault(4, Mode::LosesItsAnswer);
        stage.try_prune().await.unwrap_err();
        let left = stage.segments().await[0].0;
        stage.archive.next_fault(call, Mode::Waits);
        let reader = stage.reader();
        let mut tried = pin!(stage.try_prune());
        let waits = tokio::select! {
            outcome = &mut tried => { outcome.unwrap(); false }
            () = stage.archive.died.notified() => true,
        };
        if !waits {
            break;
        }
        let erased = reader.erase(vec![ids[3]], None, basis(), None).await;
        erased.unwrap();
        stage.archive.next_fault(0, Mode::Fails);
        stage.archive.go.notify_one();
        let has_failed = tried.await.is_err();
        stage.archive.take_fault();
        stage.assert_kept(20).await;
        let is_left = stage.segments().await.iter().any(|(name, _)| *name == left);
        replaced += u64::from(has_failed && !is_left);
        stage.clock.advance_micros(1_000_000);
        reader.erase_in_archive().await.unwrap();
        let below = stage.prune().await;
        stage.assert_archived(below).await;
        let segments = stage.segments().await;
        let erased = segments.iter().map(|(_, report)| report.groups.erased);
        assert_eq!(erased.sum::<u64>(), 4, "{call}");
    }
    assert!(replaced > 0);
}

#[tokio::test]
async fn a_log_that_doesnt_continue_its_archive_is_neither_archived_nor_pruned() {
    for later in [5, 500] {
        // The archive of a log of which an older copy was restored, and then grew in another way.
        let (lost, _) = Stage::signed(300).await;
        lost.prune().await;
        let (stage, ids) = Stage::signed(20).await;
        let folder = tenant().to_string();
        for path in lost.archive.inner.list(&folder, "").await.unwrap() {
            let bytes = lost.archive.inner.get(&path).await.unwrap().unwrap();
            stage.archive.inner.put(&path, bytes).await.unwrap();
        }
        stage.record(later).await;
        let refused = stage.try_prune().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        assert!(refused.to_string().contains("continue"), "{refused}");
        stage.reader().get(ids[0]).await.unwrap();
        // What was archived of the lost one is still there.
        stage.assert_archived(300).await;
    }
}

#[tokio::test]
async fn retention_leaves_archiving_to_the_process_that_signs() {
    let stage = Stage::new();
    stage.record(5).await;
    let kept = Retention::forever().keep_days(30);
    let set = stage.log.set_retention(tenant(), &kept, "admin", None);
    set.await.unwrap();
    stage.clock.advance_micros(31 * DAY);
    let month = Duration::from_secs(30 * 86_400);
    stage.store.lease("another process", month).await.unwrap();
    let workers = stage.log.start();
    let retention = || {
        let status = workers.status();
        status
            .into_iter()
            .find(|one| one.name == "retention")
            .unwrap()
    };
    eventually(async || retention().retention?.last_run).await;
    assert_eq!(stage.pruned_below().await, 0);
    assert_eq!(retention().last_error, None);
    stage.clock.advance_micros(30 * DAY);
    let below = eventually(async || match stage.pruned_below().await {
        0 => None,
        below => Some(below),
    });
    assert_eq!(below.await, 6);
    stage.assert_archived(6).await;
}

#[tokio::test]
async fn retention_archives_what_it_prunes() {
    let (stage, _) = Stage::signed(50).await;
    let kept = Retention::forever().keep_days(30);
    let set = stage.log.set_retention(tenant(), &kept, "admin", None);
    set.await.unwrap();
    stage.clock.advance_micros(31 * DAY);
    let below = eventually(async || match stage.pruned_below().await {
        0 => None,
        below => Some(below),
    })
    .await;
    assert_eq!(below, 51);
    stage.assert_archived(51).await;
}

#[tokio::test]
async fn a_log_whose_epoch_changed_is_archived_and_pruned_on_both_sides_of_it() {
    let (mut stage, _) = Stage::signed(20).await;
    stage.prune().await;
    stage.record(5).await;
    let workers = stage._workers.take().unwrap();
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    // A guard that knows nothing of a signed log stops it, until it is recovered in another epoch.
    stage.clock.advance_micros(DAY);
    stage.log = AuditLog::builder(stage.store.clone())
        .clock(stage.clock.clone())
        .signer(
            Signer::new(Origin::parse(ORIGIN).unwrap(), key()),
            stage.store.clone(),
        )
        .guard(Arc::new(MemoryGuard::default()), stage.store.clone())
        .archive(stage.archive.clone())
        .build();
    let recovered = stage.log.recover(tenant(), false).await.unwrap().unwrap();
    assert_eq!(recovered.epoch, 2);
    let begun = recovered.receipt.unwrap().seq;
    stage.clock.advance_micros(DAY);
    stage._workers = Some(stage.log.start());
    // The epoch's entry is above the first of these segments, and below the second.
    let before = stage.clock.now().as_micros() - DAY - DAY / 2;
    let before = Timestamp::from_micros(before).unwrap();
    let pruned = stage.reader().prune(before, basis(), None, false).await;
    assert_eq!(pruned.unwrap().below, begun);
    stage.record(5).await;
    assert!(stage.prune().await > begun + 1);
    stage.record(5).await;
    let below = stage.prune().await;
    stage.assert_archived(below).await;
}

#[tokio::test]
async fn a_segment_of_an_earlier_try_does_not_outlive_a_prune_that_ends_within_it() {
    let (stage, _) = Stage::signed(10).await;
    let between = stage.clock.now();
    let ids = stage.record(20).await;
    // The segment is whole, and its answer was lost.
    stage.archive.next_fault(4, Mode::LosesItsAnswer);
    stage.try_prune().await.unwrap_err();
    assert_eq!(stage.segments().await.len(), 1);
    let reader = stage.reader();
    let pruned = reader.prune(between, basis(), None, false).await.unwrap();
    assert_eq!(pruned.below, 10);
    let names: Vec<_> = stage.segments().await.into_iter().map(|(n, _)| n).collect();
    assert_eq!(
        names.iter().map(|n| (n.from, n.to)).collect::<Vec<_>>(),
        [(0, 10), (10, 30)]
    );
    let erased = reader.erase(vec![ids[3]], None, basis(), None).await;
    erased.unwrap();
    stage.clock.advance_micros(1_000_000);
    let below = stage.prune().await;
    // Once each, and without what was erased.
    stage.assert_archived(below).await;
    let segments = stage.segments().await;
    let erased = segments.iter().map(|(_, report)| report.groups.erased);
    assert_eq!(erased.max(), Some(4));
}
