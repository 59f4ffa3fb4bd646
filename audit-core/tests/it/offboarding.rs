//! The end of a tenant, whatever fails on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::memory::{MemoryArchive, MemoryIndex, MemoryOutbox, MemoryQueue, MemoryStore};
use audit_core::tlog::checkpoint::{Checkpoint, Origin};
use audit_core::tlog::folder::{LOG_ZST, MANIFEST, SegmentName};
use audit_core::tlog::note::Note;
use audit_core::{
    ActionRetention, Archive, AuditLog, AuditLogBuilder, Clock as _, ErasureRequest, Error,
    ErrorKind, Event, EventId, EventQueue as _, Filter, LegalHold, LogStore as _, ManualClock,
    Message, MessageKind, OffboardingStore as _, Outbox as _, PageRequest, Permission, Principal,
    Query, Recorder as _, Result, Retention, Role, SearchIndex as _, Selection, Signer,
    SubscribeRequest, TenantId, TenantScope, TenantStatus, TenantStore as _, TenantUpdate,
    Timestamp, Tombstone, WorkerStatus, Workers,
};
use futures_util::StreamExt as _;
use uuid::Uuid;

use crate::archive::{ORIGIN, judged, key};
use crate::faulty::Faulty;

fn tenant(n: u128) -> TenantId {
    TenantId::new(Uuid::from_u128(n))
}

fn scope(n: u128) -> TenantScope {
    TenantScope::trusted(tenant(n), "test")
}

/// An archive whose next writes fail, so many of them, or the next one of which takes its time.
#[derive(Debug, Default)]
struct Failing {
    inner: MemoryArchive,
    failures: AtomicUsize,
    takes: Mutex<Option<(Arc<ManualClock>, i64)>>,
    /// What was written, in this order.
    written: Mutex<Vec<String>>,
}

#[async_trait]
impl Archive for Failing {
    async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        if let Some((clock, micros)) = self.takes.lock().unwrap().take() {
            clock.advance_micros(micros);
        }
        let fewer = |left: usize| left.checked_sub(1);
        let failures = &self.failures;
        match failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer) {
            Ok(_) => Err(Error::new(ErrorKind::Unavailable, "the bucket is away")),
            Err(_) => {
                self.written.lock().unwrap().push(path.to_owned());
                self.inner.put(path, bytes).await
            }
        }
    }

    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        self.inner.get(path).await
    }

    async fn list(&self, folder: &str, after: &str) -> Result<Vec<String>> {
        self.inner.list(folder, after).await
    }

    async fn remove(&self, path: &str) -> Result<()> {
        self.inner.remove(path).await
    }
}

/// What outlives a process.
struct Stage {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
    archive: Arc<Failing>,
    index: Arc<MemoryIndex>,
    queue: Arc<MemoryQueue>,
    outbox: Arc<MemoryOutbox>,
}

impl Stage {
    fn new() -> Self {
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let clock = Arc::new(ManualClock::new(start));
        Self {
            store: Arc::new(MemoryStore::with_clock(clock.clone())),
            clock,
            archive: Arc::default(),
            index: Arc::default(),
            queue: Arc::new(MemoryQueue::new()),
            outbox: Arc::default(),
        }
    }

    /// A process.
    fn log(&self) -> AuditLog {
        self.builder().build()
    }

    fn builder(&self) -> AuditLogBuilder {
        let signer = Signer::new(Origin::parse(ORIGIN).unwrap(), key());
        AuditLog::builder(self.store.clone())
            .clock(self.clock.clone())
            .signer(signer, self.store.clone())
            .archive(self.archive.clone())
            .search(self.index.clone())
            .queue(self.queue.clone())
            .outbox(self.outbox.clone())
    }

    async fn record(&self, log: &AuditLog, n: u128, events: usize) -> Vec<EventId> {
        let event = |n| {
            let event = Event::update("invoice", format!("inv-{n}")).user("ann");
            event.reason("marked words").after(&n)
        };
        let events = (0..events).map(event).collect();
        let receipts = log.recorder(tenant(n)).record_all(events).await;
        self.clock.advance_micros(1_000_000);
        receipts.unwrap().iter().map(|receipt| receipt.id).collect()
    }

    async fn tombstone(&self, n: u128) -> Option<Tombstone> {
        self.store.tombstone(tenant(n)).await.unwrap()
    }

    async fn ended(&self, n: u128) -> Tombstone {
        eventually(async || self.tombstone(n).await).await
    }

    /// Deletes a tenant as the worker would, and does nothing of what comes behind that.
    async fn delete(&self, log: &AuditLog, n: u128) -> Tombstone {
        log.end_tenant(tenant(n), "admin", None, false)
            .await
            .unwrap();
        let head = self.store.head(&scope(n)).await.unwrap();
        let tombstone = Tombstone::of(&head, self.clock.now());
        self.store.end(&tombstone).await.unwrap();
        tombstone
    }

    /// The lease of a process that was killed runs out.
    fn forget_signer(&self) {
        self.clock.advance_micros(60_000_000);
    }

    /// How many entries the archive has of a tenant, each segment verified by itself; all of them are
    /// there once.
    async fn archived(&self, n: u128) -> u64 {
        let mut files: BTreeMap<SegmentName, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
        let folder = tenant(n).to_string();
        for path in self.archive.inner.list(&folder, "").await.unwrap() {
            let mut parts = path.splitn(3, '/').skip(1);
            let name = SegmentName::parse(parts.next().unwrap()).unwrap();
            let bytes = self.archive.inner.get(&path).await.unwrap().unwrap();
            let file = parts.next().unwrap().to_owned();
            files.entry(name).or_default().insert(file, bytes);
        }
        files.retain(|_, files| files.contains_key(MANIFEST));
        let mut next = 0;
        for (name, files) in &files {
            let report = judged(tenant(n), files, Vec::new());
            assert!(report.is_verified(), "{name}: {:#?}", report.findings);
            assert_eq!(report.withheld_within(&name.positions()), None);
            assert_eq!(name.from, next);
            next = name.to;
        }
        next
    }

    /// How many segments it has of a tenant, written to their ends or not.
    async fn folders(&self, n: u128) -> usize {
        let folder = tenant(n).to_string();
        let paths = self.archive.inner.list(&folder, "").await.unwrap();
        let names = paths.iter().map(|path| path.split('/').nth(1));
        names.collect::<BTreeSet<_>>().len()
    }

    async fn is_indexed(&self, n: u128) -> bool {
        !self
            .index
            .held(&scope(n), 0..1_000)
            .await
            .unwrap()
            .is_empty()
    }
}

/// Until the condition holds.
async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap()
}

fn worker(workers: &Workers) -> WorkerStatus {
    let mut all = workers.status().into_iter();
    all.find(|status| status.name == "offboarding").unwrap()
}

/// Asks for the end of the first tenant, and places a hold that keeps it there.
async fn end_held(log: &AuditLog) -> LegalHold {
    log.end_tenant(tenant(1), "admin", None, true)
        .await
        .unwrap();
    let held = log.place_hold(tenant(1), None, "case 7", "counsel", None);
    held.await.unwrap()
}

async fn kill(workers: Workers, log: AuditLog) {
    workers.shutdown(Duration::ZERO).await;
    drop(log);
}

#[tokio::test]
async fn a_tenant_ends_with_its_evidence_in_the_archive() {
    let stage = Stage::new();
    let log = stage.log();
    stage.record(&log, 1, 20).await;
    stage.record(&log, 2, 5).await;
    let workers = log.start();
    eventually(async || stage.is_indexed(1).await.then_some(())).await;
    let reason = Some("contract 7 ended".to_owned());
    let asked = log.end_tenant(tenant(1), "admin", reason, true).await;
    let asked = asked.unwrap();
    let again = log.end_tenant(tenant(1), "other", None, false).await;
    assert!(again.is_err() || again.is_ok_and(|again| again == asked));

    let tombstone = stage.ended(1).await;
    assert_eq!(tombstone.size, 21);
    let note = Note::parse(tombstone.checkpoint.as_ref().unwrap()).unwrap();
    let checkpoint = Checkpoint::parse(note.text()).unwrap();
    assert_eq!((checkpoint.size(), checkpoint.root()), (21, tombstone.root));
    assert_eq!(tombstone.origin.as_deref(), Some(checkpoint.origin()));
    assert_eq!(stage.archived(1).await, 21);
    eventually(async || (!stage.is_indexed(1).await).then_some(())).await;
    assert_eq!(stage.archived(2).await, 0);
    assert!(stage.is_indexed(2).await);
    assert_eq!(stage.store.head(&scope(2)).await.unwrap().size(), 5);
    let refused = log.end_tenant(tenant(1), "admin", None, true).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TenantDeleted);
    assert_eq!(log.ending(tenant(1)).await.unwrap(), None);
    // What the log said of its end is in the archive.
    let segment = stage.archive.inner.list(&tenant(1).to_string(), "").await;
    let segment = segment.unwrap();
    let path = segment.iter().find(|path| path.ends_with(LOG_ZST)).unwrap();
    let packed = stage.archive.inner.get(path).await.unwrap().unwrap();
    let text = String::from_utf8(zstd::decode_all(packed.as_slice()).unwrap()).unwrap();
    assert!(text.contains("log.tenant"));

    // Nothing is left of it to look after, a minute later.
    stage.clock.advance_micros(61_000_000);
    log.end_tenant(tenant(2), "admin", None, false)
        .await
        .unwrap();
    stage.ended(2).await;
    assert_eq!(stage.archived(2).await, 0);
    eventually(async || {
        let unsettled = stage.store.unsettled(None, 10).await.unwrap();
        let left: BTreeSet<TenantId> = unsettled.iter().map(|t| t.tenant).collect();
        (!left.contains(&tenant(1))).then_some(())
    })
    .await;
    assert_eq!(worker(&workers).last_error, None);
}

#[tokio::test]
async fn without_an_archive_a_tenant_ends_only_when_its_evidence_may_go() {
    let stage = Stage::new();
    let log = AuditLog::builder(stage.store.clone())
        .clock(stage.clock.clone())
        .build();
    stage.record(&log, 1, 3).await;
    let refused = log.end_tenant(tenant(1), "admin", None, true).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(stage.store.head(&scope(1)).await.unwrap().size(), 3);
    let workers = log.start();
    log.end_tenant(tenant(1), "admin", None, false)
        .await
        .unwrap();
    let tombstone = stage.ended(1).await;
    assert_eq!((tombstone.size, tombstone.checkpoint), (4, None));
    assert_eq!(worker(&workers).last_error, None);
}

/// As `audit-server vacuum` is.
#[tokio::test]
async fn a_process_without_a_signer_leaves_the_end_of_a_signed_log_to_one_with_it() {
    let stage = Stage::new();
    let log = stage.log();
    stage.record(&log, 1, 3).await;
    log.end_tenant(tenant(1), "admin", None, false)
        .await
        .unwrap();
    let other = AuditLog::builder(stage.store.clone())
        .clock(stage.clock.clone())
        .build();
    let workers = other.start();
    eventually(async || (worker(&workers).lag == Some(1)).then_some(())).await;
    assert_eq!(stage.tombstone(1).await, None);
    assert_eq!(worker(&workers).last_error, None);
    let _workers = log.start();
    assert!(stage.ended(1).await.checkpoint.is_some());
}

#[tokio::test]
async fn a_log_that_can_not_be_archived_stays_whole_until_it_can() {
    let stage = Stage::new();
    let log = stage.log();
    stage.record(&log, 1, 20).await;
    stage.archive.failures.store(3, Ordering::SeqCst);
    let workers = log.start();
    log.end_tenant(tenant(1), "admin", None, true)
        .await
        .unwrap();
    let told = eventually(async || worker(&workers).last_error).await;
    assert!(told.contains("the bucket is away"), "{told}");
    assert_eq!(stage.ended(1).await.size, 21);
    assert_eq!(stage.archived(1).await, 21);
    eventually(async || worker(&workers).last_error.is_none().then_some(())).await;
    eventually(async || (worker(&workers).lag == Some(0)).then_some(())).await;
}

/// As those of a log that is so large that archiving it takes longer than one lives.
#[tokio::test]
async fn snapshots_that_expire_hold_up_no_end_and_leave_nothing_twice() {
    for segments in [1, 3, 20] {
        let stage = Stage::new();
        let store = Faulty::around(stage.store.clone());
        *store.snapshots_live.lock().unwrap() = Some(segments);
        let builder = stage.builder().log_store(Arc::new(store));
        let log = builder.segment_entries(10).build();
        stage.record(&log, 1, 300).await;
        let workers = log.start();
        log.end_tenant(tenant(1), "admin", None, true)
            .await
            .unwrap();
        assert_eq!(stage.ended(1).await.size, 301);
        assert_eq!(stage.archived(1).await, 301);
        assert_eq!(stage.folders(1).await, 31);
        assert_eq!(log.archived().unwrap().segments, 31);
        assert_eq!(worker(&workers).last_error, None);
    }
}

#[tokio::test]
async fn the_next_try_goes_on_behind_what_lies_in_the_archive() {
    let stage = Stage::new();
    let log = stage.builder().segment_entries(10).build();
    stage.record(&log, 1, 300).await;
    let held = end_held(&log).await;
    let workers = log.start();
    eventually(async || worker(&workers).last_error).await;
    assert_eq!(stage.archived(1).await, 302);
    assert_eq!(log.archived().unwrap().segments, 31);
    // One is damaged meanwhile.
    let folder = tenant(1).to_string();
    let paths = stage.archive.inner.list(&folder, "").await.unwrap();
    let damaged = paths.iter().filter(|path| path.ends_with(LOG_ZST)).nth(7);
    let damaged = stage.archive.inner.put(damaged.unwrap(), b"?".to_vec());
    damaged.await.unwrap();
    log.release_hold(tenant(1), held.id, "counsel", None)
        .await
        .unwrap();
    assert_eq!(stage.ended(1).await.size, 303);
    // That one, and the entry that came behind the others.
    assert_eq!(stage.archived(1).await, 303);
    assert_eq!(stage.folders(1).await, 32);
    assert_eq!(log.archived().unwrap().segments, 33);
}

/// The first process dies when all is archived and the tenant is not deleted: a hold keeps it there.
#[tokio::test]
async fn a_process_killed_before_the_end_leaves_it_to_the_next_one() {
    let stage = Stage::new();
    let log = stage.log();
    stage.record(&log, 1, 20).await;
    let held = end_held(&log).await;
    let workers = log.start();
    let told = eventually(async || worker(&workers).last_error).await;
    assert!(told.contains("case 7"), "{told}");
    assert_eq!(stage.archived(1).await, 22);
    assert_eq!(stage.tombstone(1).await, None);
    kill(workers, log).await;
    stage.forget_signer();

    let log = stage.log();
    let released = log.release_hold(tenant(1), held.id, "counsel", None);
    released.await.unwrap();
    let _workers = log.start();
    assert_eq!(stage.ended(1).await.size, 23);
    assert_eq!(stage.archived(1).await, 23);
}

/// The first process dies when the tenant is deleted, and has neither swept nor looked at the index.
#[tokio::test]
async fn a_process_killed_behind_the_end_leaves_its_rows_to_the_next_one() {
    let stage = Stage::new();
    let log = stage.log();
    let ids = stage.record(&log, 1, 20).await;
    let all = stage.store.read(&scope(1), 0, 100).await.unwrap();
    stage.index.index(&all).await.unwrap();
    let tombstone = stage.delete(&log, 1).await;
    drop(log);
    assert!(stage.is_indexed(1).await);

    let log = stage.log();
    let _workers = log.start();
    eventually(async || (!stage.is_indexed(1).await).then_some(())).await;
    eventually(async || (!stage.store.sweep().await.unwrap()).then_some(())).await;
    let refused = log.tenant(scope(1)).get(ids[0]).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TenantDeleted);
    let left = stage.ended(1).await;
    assert_eq!((left.is_swept, left.unappended), (true, Some(0)));
    assert_eq!((left.size, left.root), (tombstone.size, tombstone.root));
}

/// A log of many segments doesn't keep the others waiting.
#[tokio::test]
async fn tenants_end_by_turns() {
    let stage = Stage::new();
    let log = stage.builder().segment_entries(10).build();
    for (n, events) in [(1, 400), (2, 10), (3, 100)] {
        stage.record(&log, n, events).await;
        log.end_tenant(tenant(n), "admin", None, true)
            .await
            .unwrap();
    }
    let workers = log.start();
    for (n, size) in [(1, 401), (2, 11), (3, 101)] {
        assert_eq!(stage.ended(n).await.size, size);
        assert_eq!(stage.archived(n).await, size);
    }
    let written = stage.archive.written.lock().unwrap().clone();
    let last = |n| {
        let folder = tenant(n).to_string();
        written.iter().rposition(|path| path.starts_with(&folder))
    };
    assert!(last(2) < last(3), "{written:#?}");
    assert!(last(3) < last(1), "{written:#?}");
    assert_eq!(log.archived().unwrap().segments, 41 + 2 + 11);
    assert_eq!(worker(&workers).last_error, None);
    eventually(async || (worker(&workers).lag == Some(0)).then_some(())).await;
}

/// As if it were deleted already; who acts across tenants reads it until then.
#[tokio::test]
async fn a_tenant_that_is_about_to_be_deleted_is_closed_to_its_own_credentials() {
    for before in [TenantStatus::Active, TenantStatus::Suspended] {
        let stage = Stage::new();
        let log = stage.log();
        let ids = stage.record(&log, 1, 3).await;
        let update = TenantUpdate::default().status(before);
        let update = log.update_tenant(tenant(1), update.public_log(true), "admin", None);
        update.await.unwrap();
        let all = Role::Admin.permissions();
        let own = Principal::new("ann", tenant(1), all);
        let operator = Principal::across_tenants("op", all);
        let enter = async |who: &Principal| log.authorize(who, tenant(1), Permission::Read).await;
        assert_eq!(enter(&own).await.is_ok(), before == TenantStatus::Active);
        log.end_tenant(tenant(1), "admin", None, true)
            .await
            .unwrap();
        let refused = enter(&own).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TenantDeleted);
        let public = log.public_log(tenant(1)).await.err();
        assert_eq!(public.unwrap().kind(), ErrorKind::UnknownTenant);
        let scope = enter(&operator).await.unwrap();
        assert_eq!(log.tenant(scope).get(ids[0]).await.unwrap().id, ids[0]);
        assert!(log.ending(tenant(1)).await.unwrap().is_some());
    }
}

/// Whoever asks for it: the log would grow, and its end begin anew.
#[tokio::test]
async fn nothing_is_erased_or_pruned_of_a_tenant_that_is_about_to_be_deleted() {
    let stage = Stage::new();
    let log = stage
        .builder()
        .retention_every(Duration::from_millis(10))
        .build();
    let rule = ActionRetention::new("update", 1);
    let keeps = Retention::forever().keep_days(2).action(rule);
    for n in 1..=2 {
        log.create_tenant(Some(tenant(n)), "acme").await.unwrap();
        let set = log.set_retention(tenant(n), &keeps, "admin", None);
        set.await.unwrap();
        stage.record(&log, n, 3).await;
    }
    let ids = stage.record(&log, 1, 3).await;
    log.end_tenant(tenant(1), "admin", None, true)
        .await
        .unwrap();
    stage.clock.advance_micros(3 * 86_400_000_000);
    let size = stage.store.head(&scope(1)).await.unwrap().size();
    let (ending, now) = (log.tenant(scope(1)), stage.clock.now());
    let basis = || "gdpr-17".parse().unwrap();
    let request = ErasureRequest::new(Selection::ids(ids.clone()), basis());
    let erased = ending.erase(ids, None, basis(), None).await;
    let refusals = [
        erased.unwrap_err(),
        ending.request_erasure(request.clone()).await.unwrap_err(),
        ending.count_erasure(&request).await.unwrap_err(),
        ending.prune(now, basis(), None, false).await.unwrap_err(),
        ending.prune(now, basis(), None, true).await.unwrap_err(),
    ];
    for refused in refusals {
        assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
        let message = refused.message();
        assert!(message.contains("about to be deleted"), "{message}");
    }
    let due = log.retention_due(tenant(1), &keeps).await.unwrap();
    assert!(due.refused.unwrap().contains("about to be deleted"));
    let workers = log.start();
    eventually(async || {
        let other = stage.store.head(&scope(2)).await.unwrap();
        (other.pruned_below > 0).then_some(())
    })
    .await;
    assert_eq!(stage.ended(1).await.size, size);
    let mut statuses = workers.status().into_iter();
    let retention = statuses.find(|status| status.name == "retention").unwrap();
    assert_eq!(retention.last_error, None);
    assert_eq!(retention.retention.unwrap().held, 0);
}

#[tokio::test]
async fn a_minute_behind_its_end_a_tenant_leaves_the_index_once_more_however_long_archiving_took() {
    let stage = Stage::new();
    let log = stage.log();
    stage.record(&log, 1, 20).await;
    let all = stage.store.read(&scope(1), 0, 100).await.unwrap();
    *stage.archive.takes.lock().unwrap() = Some((stage.clock.clone(), 120_000_000));
    let _workers = log.start();
    log.end_tenant(tenant(1), "admin", None, true)
        .await
        .unwrap();
    let tombstone = stage.ended(1).await;
    assert_eq!(tombstone.ended_at, stage.clock.now());
    // Behind the end of others it has looked at the tombstone twice.
    for n in 2..4 {
        stage.record(&log, n, 1).await;
        log.end_tenant(tenant(n), "admin", None, false)
            .await
            .unwrap();
        stage.ended(n).await;
    }
    let unsettled = stage.store.unsettled(None, 10).await.unwrap();
    assert_eq!(unsettled.len(), 3);
    // An indexer that had read them before.
    stage.index.index(&all).await.unwrap();
    stage.clock.advance_micros(60_000_000);
    eventually(async || (!stage.is_indexed(1).await).then_some(())).await;
    eventually(async || {
        let unsettled = stage.store.unsettled(None, 10).await.unwrap();
        unsettled.is_empty().then_some(())
    })
    .await;
}

/// A message in the queue, a row in the outbox: for ever, and with the reason.
#[tokio::test]
async fn what_comes_late_is_refused_and_put_aside() {
    let stage = Stage::new();
    let log = stage.log();
    stage.record(&log, 1, 3).await;
    stage.delete(&log, 1).await;
    while stage.store.sweep().await.unwrap() {}
    let id = stage.clock.event_id();
    let message = Message::new(tenant(1), MessageKind::Ingest, id, "{}".into());
    let sent = stage.queue.send(&[message]).await.unwrap();
    sent.into_iter().collect::<Result<()>>().unwrap();
    stage
        .outbox
        .push(tenant(1), Event::view("doc", "e"))
        .unwrap();

    let log = stage.log();
    let _workers = log.start();
    let dead = eventually(async || stage.queue.dead_letters(10).await.unwrap().pop()).await;
    assert!(dead.reason.contains("was deleted"), "{}", dead.reason);
    assert_eq!(dead.message.tenant, tenant(1));
    let parked = eventually(async || stage.outbox.parked(10).await.unwrap().pop()).await;
    assert!(parked.reason.contains("was deleted"), "{}", parked.reason);
    let row = stage.store.tenant(tenant(1)).await.unwrap().unwrap();
    assert_eq!(row.status, TenantStatus::Deleted);
}

#[tokio::test]
async fn a_subscription_ends_with_its_tenant() {
    let stage = Stage::new();
    let log = stage.log();
    stage.record(&log, 1, 3).await;
    let reader = log.tenant(scope(1));
    let mut subscription = reader.subscribe(SubscribeRequest::new()).await.unwrap();
    let _workers = log.start();
    log.end_tenant(tenant(1), "admin", None, true)
        .await
        .unwrap();
    stage.ended(1).await;
    let ended = eventually(async || subscription.next().await.unwrap().err()).await;
    assert_eq!(ended.kind(), ErrorKind::TenantDeleted);
    let filter = Filter::new().text(Query::parse("marked").unwrap());
    let found = reader.list(&filter, &PageRequest::first()).await;
    assert_eq!(found.unwrap_err().kind(), ErrorKind::TenantDeleted);
}
