//! What follows the log, and what leads to it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use audit_core::memory::{MemoryIndex, MemoryOutbox, MemoryQueue, MemoryStore};
use audit_core::{
    Act, AuditLog, Basis, Batch, Consumer, DeadLetter, Delivery, Entry, Erasure, Error, ErrorKind,
    Event, EventId, EventQueue, Fields, Filter, Hits, LogStore, Message, OffboardingStore as _,
    Outbox, PageRequest, PreparedEvent, Query, QueueDepth, Recorder, Redact, Redrive, Result,
    SearchIndex, SearchRequest, Sieve, TenantId, TenantScope, TenantStatus, TenantStore,
    TenantUpdate, Timestamp,
};
use uuid::Uuid;

use crate::faulty::Faulty;

pub(crate) fn tenant(n: u128) -> TenantId {
    TenantId::new(Uuid::from_u128(n))
}

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Keeps what it is given, and fails every third time.
#[derive(Debug, Default)]
struct Collector {
    seen: Mutex<BTreeMap<TenantId, Vec<u64>>>,
    calls: AtomicU32,
}

#[async_trait]
impl Consumer for Collector {
    fn name(&self) -> &str {
        "collector"
    }

    async fn consume(&self, tenant: TenantId, entries: &[Entry]) -> Result<()> {
        if self.calls.fetch_add(1, Ordering::SeqCst) % 3 == 1 {
            return Err(Error::new(ErrorKind::Unavailable, "not now"));
        }
        self.seen
            .lock()
            .unwrap()
            .entry(tenant)
            .or_default()
            .extend(entries.iter().map(|e| e.seq));
        Ok(())
    }
}

#[tokio::test]
async fn a_consumer_sees_every_entry_of_every_tenant_in_order() {
    let collector = Arc::new(Collector::default());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .consumer(collector.clone())
        .build();
    for n in 0..30 {
        log.recorder(tenant(n % 3))
            .record(Event::view("doc", "d"))
            .await
            .unwrap();
    }
    let workers = log.start();
    for n in 0..30 {
        log.recorder(tenant(n % 3))
            .record(Event::view("doc", "d"))
            .await
            .unwrap();
    }
    until("the consumer has seen all", async || {
        collector
            .seen
            .lock()
            .unwrap()
            .values()
            .map(Vec::len)
            .sum::<usize>()
            == 60
    })
    .await;
    for seqs in collector.seen.lock().unwrap().values() {
        assert_eq!(*seqs, (0..20).collect::<Vec<_>>());
    }
    assert!(workers.is_healthy());
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn the_indexer_makes_text_searchable_and_forgets_what_is_erased() {
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .search(Arc::new(MemoryIndex::new()))
        .build();
    let workers = log.start();
    let event = Event::view("doc", "d").reason("needle in a haystack");
    let id = log.recorder(tenant(1)).record(event).await.unwrap().id;
    log.recorder(tenant(2))
        .record(Event::view("doc", "d").reason("needle"))
        .await
        .unwrap();
    let reader = log.tenant(TenantScope::trusted(tenant(1), "test"));
    let filter = Filter::new().text(Query::parse("needle").unwrap());
    until("the needle is found", async || {
        reader
            .list(&filter, &PageRequest::first())
            .await
            .unwrap()
            .items
            .len()
            == 1
    })
    .await;
    let basis: Basis = "gdpr-17".parse().unwrap();
    assert_eq!(
        reader
            .erase(vec![id], None, basis, None)
            .await
            .unwrap()
            .entries,
        1
    );
    let page = reader.list(&filter, &PageRequest::first()).await.unwrap();
    assert!(
        page.items.is_empty(),
        "what the index says is checked against the entry"
    );
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_is_erased_on_its_way_to_the_index_does_not_arrive() {
    let store = Arc::new(Faulty::new());
    let index = Arc::new(MemoryIndex::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .search(index.clone())
        .build();
    let recorder = log.recorder(tenant(1));
    let event = Event::view("doc", "d").reason("needle");
    let id = recorder.record(event).await.unwrap().id;
    recorder.record(Event::view("doc", "d")).await.unwrap();
    let scope = TenantScope::trusted(tenant(1), "test");
    let act = Act::new(&scope, None, log.clock().clone()).unwrap();
    let erasure = Erasure::new(vec![id], "gdpr-17".parse().unwrap(), act);
    *store.erases_after_read.lock().unwrap() = Some((scope.clone(), erasure));
    let workers = log.start();
    until("all is indexed", async || {
        index.indexed_through(&scope).await.unwrap() == 3
    })
    .await;
    let needle = Filter::new().text(Query::parse("needle").unwrap());
    let hits = index.search(&scope, &SearchRequest::new(needle, 10)).await;
    assert!(hits.unwrap().seqs.is_empty());
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_log_that_cannot_be_read_does_not_hold_up_the_index_of_others() {
    let store = Arc::new(Faulty::new());
    let index = Arc::new(MemoryIndex::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .search(index.clone())
        .build();
    for n in 1..=3 {
        let recorder = log.recorder(tenant(n));
        recorder.record(Event::view("doc", "d")).await.unwrap();
    }
    store.unreadable.lock().unwrap().insert(tenant(1));
    let workers = log.start();
    let through = async |n| {
        let scope = TenantScope::trusted(tenant(n), "test");
        index.indexed_through(&scope).await.unwrap()
    };
    until("the others are indexed", async || {
        through(2).await == 1 && through(3).await == 1
    })
    .await;
    until("it is told", async || {
        let status = workers.status();
        status.iter().any(|w| w.last_error.is_some())
    })
    .await;
    store.unreadable.lock().unwrap().clear();
    until("it is indexed, too", async || through(1).await == 1).await;
    workers.shutdown(Duration::from_secs(5)).await;
}

/// A queue in memory that says it is durable.
#[derive(Debug)]
pub(crate) struct Durable(pub(crate) MemoryQueue);

#[async_trait]
impl EventQueue for Durable {
    fn is_durable(&self) -> bool {
        true
    }
    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        self.0.send(messages).await
    }
    async fn receive(&self, max: usize, wait: Duration, lease: Duration) -> Result<Vec<Delivery>> {
        self.0.receive(max, wait, lease).await
    }
    async fn ack(&self, handles: &[String]) -> Result<Vec<Result<()>>> {
        self.0.ack(handles).await
    }
    async fn retry(&self, handles: &[String], delay: Duration) -> Result<Vec<Result<()>>> {
        self.0.retry(handles, delay).await
    }
    async fn extend(&self, handles: &[String], lease: Duration) -> Result<Vec<Result<()>>> {
        self.0.extend(handles, lease).await
    }
    async fn bury(&self, letters: &[(String, String)]) -> Result<Vec<Result<()>>> {
        self.0.bury(letters).await
    }
    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        self.0.dead_letters(limit).await
    }
    async fn redrive(&self, letters: &Redrive<String>) -> Result<u64> {
        self.0.redrive(letters).await
    }
    async fn sift(&self, sieve: Arc<dyn Sieve<DeadLetter>>) -> Result<u64> {
        self.0.sift(sieve).await
    }
    async fn depth(&self) -> Result<QueueDepth> {
        self.0.depth().await
    }
}

#[derive(Debug)]
struct MaskReason;

impl Redact for MaskReason {
    fn redact(&self, _: TenantId, fields: &mut Fields) {
        fields.reason = fields.reason.take().map(|_| "***".into());
    }
}

#[tokio::test]
async fn queued_events_are_appended_once_redacted_and_in_their_senders_name() {
    let queue = Arc::new(Durable(MemoryQueue::new()));
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .queue(queue.clone())
        .redact(Arc::new(MaskReason))
        .build();
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let handle = log.tenant(TenantScope::trusted(tenant(1), "ann"));
    let event = Event::view("doc", "d").reason("secret");
    let ids = handle.enqueue(vec![event.clone()]).await.unwrap().unwrap();
    // The same message twice, and one that this log did not write.
    handle
        .enqueue(vec![event.id(ids[0])])
        .await
        .unwrap()
        .unwrap();
    let mut forged = queue
        .receive(1, Duration::ZERO, Duration::ZERO)
        .await
        .unwrap()[0]
        .message
        .clone();
    forged.body = forged
        .body
        .replace("\"v\":1", "\"v\":1,\"x\":1")
        .replace("subject\":\"", "subject\":\"AAAA");
    queue.send(&[forged]).await.unwrap();

    let workers = log.start();
    until("the queue is empty", async || {
        let depth = queue.depth().await.unwrap();
        depth.waiting + depth.leased == 0
    })
    .await;
    let entry = handle.get(ids[0]).await.unwrap();
    assert_eq!(entry.fields.reason.as_deref(), Some("***"));
    assert_eq!(handle.head().await.unwrap().size(), 1, "the event once");
    until("the forged message is counted", async || {
        workers
            .status()
            .iter()
            .any(|w| w.name == "ingest" && w.dropped == 1)
    })
    .await;
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_queued_event_that_the_log_refuses_becomes_a_dead_letter() {
    let queue = Arc::new(Durable(MemoryQueue::new()));
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .queue(queue.clone())
        .build();
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let handle = log.tenant(TenantScope::trusted(tenant(1), "ann"));
    let ids = handle
        .enqueue(vec![Event::view("doc", "d")])
        .await
        .unwrap()
        .unwrap();
    let close = TenantUpdate::default().status(TenantStatus::Inactive);
    log.update_tenant(tenant(1), close, "admin", None)
        .await
        .unwrap();
    let workers = log.start();
    until("it is given up", async || {
        queue.depth().await.unwrap().dead == 1
    })
    .await;
    let letters = queue.dead_letters(10).await.unwrap();
    assert_eq!(letters[0].message.id, ids[0]);
    assert!(
        letters[0].reason.contains("inactive"),
        "{}",
        letters[0].reason
    );

    let open = TenantUpdate::default().status(TenantStatus::Active);
    log.update_tenant(tenant(1), open, "admin", None)
        .await
        .unwrap();
    assert_eq!(queue.redrive(&Redrive::All).await.unwrap(), 1);
    until("it is appended", async || handle.get(ids[0]).await.is_ok()).await;
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_queue_that_is_not_durable_takes_no_events() {
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .queue(Arc::new(MemoryQueue::new()))
        .build();
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let handle = log.tenant(TenantScope::trusted(tenant(1), "ann"));
    assert_eq!(
        handle.enqueue(vec![Event::view("doc", "d")]).await.unwrap(),
        None
    );
}

#[tokio::test]
async fn the_relay_appends_the_outbox_and_parks_what_the_log_refuses() {
    let outbox = Arc::new(MemoryOutbox::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .outbox(outbox.clone())
        .build();
    outbox
        .push(tenant(1), Event::view("doc", "d").user("ann"))
        .unwrap();
    let refused = Event::view("doc", "").to_json();
    outbox.push_unchecked(tenant(1), EventId::new(Uuid::from_u128(7)), refused);
    let other = Event::view("doc", "d").id(EventId::new(Uuid::from_u128(8)));
    outbox.push_unchecked(tenant(1), EventId::new(Uuid::from_u128(9)), other.to_json());
    let workers = log.start();
    until("the outbox is drained", async || {
        outbox.take(10, &[]).await.unwrap().is_empty()
    })
    .await;
    let reader = log.tenant(TenantScope::trusted(tenant(1), "test"));
    let page = reader
        .list(&Filter::new(), &PageRequest::first())
        .await
        .unwrap();
    assert_eq!(page.items.len(), 1);
    let parked = outbox.parked(10).await.unwrap();
    assert_eq!(parked.len(), 2);
    for (parked, field) in parked.iter().zip(["resource_id", "id"]) {
        assert!(parked.reason.contains(field), "{}", parked.reason);
    }
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_prune_waits_for_a_required_consumer_that_has_not_come_to_the_tenant_yet() {
    let collector = Arc::new(Collector::default());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .consumer(collector)
        .build();
    log.recorder(tenant(1))
        .record(Event::view("doc", "d"))
        .await
        .unwrap();
    let handle = log.tenant(TenantScope::trusted(tenant(1), "test"));
    let basis: Basis = "retention".parse().unwrap();
    let pruned = handle
        .prune(Timestamp::MAX, basis, None, false)
        .await
        .unwrap();
    assert_eq!((pruned.entries, pruned.receipt), (0, None));
}

#[tokio::test]
async fn what_a_store_refuses_for_its_own_reasons_makes_no_dead_letter() {
    let store = Arc::new(Faulty::new());
    let queue = Arc::new(Durable(MemoryQueue::new()));
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .queue(queue.clone())
        .build();
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    store
        .inner
        .append(&[Batch::new(TenantScope::trusted(tenant(1), "test"), vec![]).creating_tenant()])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let handle = log.tenant(TenantScope::trusted(tenant(1), "ann"));
    let ids = handle
        .enqueue(vec![Event::view("doc", "d")])
        .await
        .unwrap()
        .unwrap();
    store.poison.lock().unwrap().insert(ids[0]);
    let workers = log.start();
    until("it is tried again", async || {
        store.appends.load(Ordering::SeqCst) >= 2
    })
    .await;
    assert_eq!(queue.depth().await.unwrap().dead, 0);
    store.poison.lock().unwrap().clear();
    until("it is appended", async || handle.get(ids[0]).await.is_ok()).await;
    workers.shutdown(Duration::from_secs(5)).await;
}

/// An index that can be lost.
#[derive(Debug, Default)]
struct Losable(Mutex<Arc<MemoryIndex>>);

impl Losable {
    fn index_now(&self) -> Arc<MemoryIndex> {
        Arc::clone(&self.0.lock().unwrap())
    }
}

#[async_trait]
impl SearchIndex for Losable {
    async fn index(&self, entries: &[Entry]) -> Result<()> {
        self.index_now().index(entries).await
    }
    async fn search(&self, scope: &TenantScope, request: &SearchRequest) -> Result<Hits> {
        self.index_now().search(scope, request).await
    }
    async fn remove(&self, scope: &TenantScope, current: &[Entry]) -> Result<()> {
        self.index_now().remove(scope, current).await
    }
    async fn indexed_through(&self, scope: &TenantScope) -> Result<u64> {
        self.index_now().indexed_through(scope).await
    }
    async fn held(&self, scope: &TenantScope, seqs: Range<u64>) -> Result<Vec<u64>> {
        self.index_now().held(scope, seqs).await
    }
    async fn mend(&self, scope: &TenantScope, missing: &[Entry], surplus: &[u64]) -> Result<()> {
        self.index_now().mend(scope, missing, surplus).await
    }
    async fn forget(&self, scope: &TenantScope) -> Result<()> {
        self.index_now().forget(scope).await
    }
    async fn rebuild(&self, store: &Arc<dyn LogStore>) -> Result<()> {
        self.index_now().rebuild(store).await
    }
}

#[tokio::test]
async fn an_index_that_is_emptied_is_filled_again_although_nothing_is_appended() {
    let index = Arc::new(Losable::default());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .search(index.clone())
        .build();
    for n in 1..=2 {
        let recorder = log.recorder(tenant(n));
        recorder.record(Event::view("doc", "d")).await.unwrap();
    }
    let workers = log.start();
    let is_whole = async || {
        let mut through = 0;
        for n in 1..=2 {
            let scope = TenantScope::trusted(tenant(n), "test");
            through += index.indexed_through(&scope).await.unwrap();
        }
        through == 2
    };
    until("it is filled", is_whole).await;
    *index.0.lock().unwrap() = Arc::default();
    until("it is filled again", is_whole).await;
    assert!(losses(&workers) > 0);
    workers.shutdown(Duration::from_secs(5)).await;
}

/// How often the index lost entries, as the indexer has counted it.
fn losses(workers: &audit_core::Workers) -> u64 {
    let mut statuses = workers.status().into_iter();
    let indexer = statuses.find(|w| w.name == "indexer");
    indexer.and_then(|w| w.losses).unwrap()
}

/// Nor does it have the index asked for what it has of all others.
#[tokio::test]
async fn that_a_tenant_was_deleted_is_no_loss_of_the_index() {
    let index = Arc::new(Picky::default());
    let store = Arc::new(MemoryStore::new());
    let log = AuditLog::builder(store.clone())
        .search(index.clone())
        .build();
    for n in 1..=2 {
        let recorder = log.recorder(tenant(n));
        recorder.record(Event::view("doc", "d")).await.unwrap();
    }
    let workers = log.start();
    let held = async |n| {
        let scope = TenantScope::trusted(tenant(n), "test");
        index.held(&scope, 0..10).await.unwrap().len()
    };
    until("all is indexed", async || {
        held(1).await + held(2).await == 2
    })
    .await;
    log.end_tenant(tenant(1), "admin", None, false)
        .await
        .unwrap();
    until("it is deleted and swept", async || {
        let tombstone = store.tombstone(tenant(1)).await.unwrap();
        tombstone.is_some_and(|tombstone| tombstone.is_swept) && held(1).await == 0
    })
    .await;
    // The indexer asks by turns.
    let asked = || {
        let asked = index.asked.lock().unwrap();
        asked.iter().filter(|asked| **asked == tenant(2)).count()
    };
    let before = asked();
    until("the turn has come to all", async || asked() > before + 4).await;
    assert_eq!(losses(&workers), 0);
    assert_eq!(error_of(&workers, "indexer"), None);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_change_of_nothing_still_checks_its_reason() {
    let log = AuditLog::builder(Arc::new(MemoryStore::new())).build();
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let reason = Some("r".repeat(1_025));
    let refused = log
        .update_tenant(tenant(1), TenantUpdate::default(), "admin", reason)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}

/// An index some of whose tenants fail, by name or without one.
#[derive(Debug, Default)]
struct Picky {
    inner: MemoryIndex,
    refused: Mutex<BTreeMap<TenantId, ErrorKind>>,
    /// Whether errors say whose they are.
    names: bool,
    away: AtomicBool,
    calls: AtomicU32,
    /// Calls that take out what was erased.
    removals: AtomicU32,
    /// Whose entry the first one of each batch was.
    given: Mutex<Vec<TenantId>>,
    /// Of whom it was asked how far it is.
    asked: Mutex<Vec<TenantId>>,
}

impl Picky {
    fn check(&self, tenants: impl IntoIterator<Item = TenantId>) -> Result<()> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "the engine is away"));
        }
        let refused = self.refused.lock().unwrap();
        let mut tenants = tenants.into_iter();
        match tenants.find_map(|tenant| refused.get(&tenant).map(|kind| (tenant, *kind))) {
            Some((tenant, kind)) => {
                let error = Error::new(kind, "its shard is red");
                Err(match self.names {
                    true => error.with_tenant(tenant),
                    false => error,
                })
            }
            None => Ok(()),
        }
    }

    fn scoped(&self, scope: &TenantScope) -> Result<()> {
        self.check([scope.tenant()])
    }
}

#[async_trait]
impl SearchIndex for Picky {
    async fn index(&self, entries: &[Entry]) -> Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let first = entries.first().map(|entry| entry.tenant_id);
        self.given.lock().unwrap().extend(first);
        self.check(entries.iter().map(|entry| entry.tenant_id))?;
        self.inner.index(entries).await
    }
    async fn search(&self, scope: &TenantScope, request: &SearchRequest) -> Result<Hits> {
        self.inner.search(scope, request).await
    }
    async fn remove(&self, scope: &TenantScope, current: &[Entry]) -> Result<()> {
        self.scoped(scope)?;
        self.removals.fetch_add(1, Ordering::SeqCst);
        self.inner.remove(scope, current).await
    }
    async fn indexed_through(&self, scope: &TenantScope) -> Result<u64> {
        self.asked.lock().unwrap().push(scope.tenant());
        if self.away.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "the engine is away"));
        }
        self.inner.indexed_through(scope).await
    }
    async fn held(&self, scope: &TenantScope, seqs: Range<u64>) -> Result<Vec<u64>> {
        self.inner.held(scope, seqs).await
    }
    async fn mend(&self, scope: &TenantScope, missing: &[Entry], surplus: &[u64]) -> Result<()> {
        self.inner.mend(scope, missing, surplus).await
    }
    async fn forget(&self, scope: &TenantScope) -> Result<()> {
        self.inner.forget(scope).await
    }
    async fn rebuild(&self, store: &Arc<dyn LogStore>) -> Result<()> {
        self.inner.rebuild(store).await
    }
}

#[tokio::test]
async fn entries_that_are_erased_apart_from_each_other_leave_the_index_in_few_calls() {
    let index = Arc::new(Picky::default());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .search(index.clone())
        .build();
    let mut erased = Vec::new();
    for n in 0..200 {
        let user = if n % 2 == 0 { "ann" } else { "bob" };
        let event = Event::view("doc", "d").user(user);
        let receipt = log.recorder(tenant(1)).record(event).await.unwrap();
        if n % 2 == 0 {
            erased.push(receipt.id);
        }
    }
    let workers = log.start();
    let scope = TenantScope::trusted(tenant(1), "test");
    let through = async || index.inner.indexed_through(&scope).await.unwrap();
    until("all are indexed", async || through().await == 200).await;
    let basis = "gdpr-17".parse().unwrap();
    let reader = log.tenant(scope.clone());
    reader.erase(erased, None, basis, None).await.unwrap();
    until("the erasure is indexed", async || through().await == 201).await;
    let hundred = SearchRequest::new(Filter::new().user("ann"), 100);
    assert_eq!(index.search(&scope, &hundred).await.unwrap().seqs, [0; 0]);
    // Of 64 entries each.
    assert_eq!(index.removals.load(Ordering::SeqCst), 2);
    workers.shutdown(Duration::from_secs(5)).await;
}

fn error_of(workers: &audit_core::Workers, name: &str) -> Option<String> {
    let mut statuses = workers.status().into_iter();
    statuses.find(|w| w.name == name).and_then(|w| w.last_error)
}

#[tokio::test]
async fn an_index_that_fails_for_some_tenants_goes_on_for_the_others() {
    // More of them than are taken for a failure of everything, before and between the others.
    const BAD: u128 = 40;
    for (kind, names) in [
        (ErrorKind::Unavailable, true),
        (ErrorKind::Internal, true),
        (ErrorKind::Internal, false),
    ] {
        let index = Arc::new(Picky {
            names,
            ..Picky::default()
        });
        let log = AuditLog::builder(Arc::new(MemoryStore::new()))
            .search(index.clone())
            .build();
        let is_bad = |n: &u128| *n < BAD && n.is_multiple_of(2);
        for n in 0..60 {
            if is_bad(&n) {
                index.refused.lock().unwrap().insert(tenant(n), kind);
            }
            let recorder = log.recorder(tenant(n));
            recorder.record(Event::view("doc", "d")).await.unwrap();
        }
        let workers = log.start();
        let through = async |n| {
            let scope = TenantScope::trusted(tenant(n), "test");
            index.inner.indexed_through(&scope).await.unwrap()
        };
        until("the others are indexed", async || {
            let mut all = true;
            for n in (0..60).filter(|n| !is_bad(n)) {
                all = all && through(n).await == 1;
            }
            all
        })
        .await;
        assert!(error_of(&workers, "indexer").unwrap().contains("red"));
        // They go on without a pause, too.
        for size in 2..6 {
            let recorder = log.recorder(tenant(59));
            recorder.record(Event::view("doc", "d")).await.unwrap();
            until("the next is indexed", async || through(59).await == size).await;
        }
        index.refused.lock().unwrap().clear();
        until("all are indexed", async || {
            let mut all = true;
            for n in 0..60 {
                all = all && through(n).await >= 1;
            }
            all
        })
        .await;
        until("nothing is told any more", async || {
            error_of(&workers, "indexer").is_none()
        })
        .await;
        workers.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn an_index_that_is_away_is_asked_less_and_less_and_filled_when_it_is_back() {
    let index = Arc::new(Picky::default());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .search(index.clone())
        .build();
    index.away.store(true, Ordering::SeqCst);
    for n in 0..50 {
        let recorder = log.recorder(tenant(n));
        recorder.record(Event::view("doc", "d")).await.unwrap();
    }
    let workers = log.start();
    until("it is told", async || {
        error_of(&workers, "indexer").is_some_and(|error| error.contains("away"))
    })
    .await;
    let before = index.calls.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let asked = index.calls.load(Ordering::SeqCst) - before;
    assert!(asked < 10, "{asked} calls");
    index.away.store(false, Ordering::SeqCst);
    until("all are indexed", async || {
        let mut through = 0;
        for n in 0..50 {
            let scope = TenantScope::trusted(tenant(n), "test");
            through += index.inner.indexed_through(&scope).await.unwrap();
        }
        through == 50
    })
    .await;
    workers.shutdown(Duration::from_secs(5)).await;
}

fn reconciler(workers: &audit_core::Workers) -> audit_core::WorkerStatus {
    let mut statuses = workers.status().into_iter();
    statuses.find(|w| w.name == "reconciler").unwrap()
}

#[tokio::test]
async fn the_reconciler_finds_what_the_index_lacks_or_has_too_much_and_puts_it_right() {
    let index = Arc::new(MemoryIndex::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .search(index.clone())
        .build();
    for n in [1, 2] {
        let events = (0..5_000).map(|_| Event::view("doc", "d")).collect();
        log.recorder(tenant(n)).record_all(events).await.unwrap();
    }
    let scope = TenantScope::trusted(tenant(2), "test");
    let workers = log.start();
    until("all is compared", async || {
        reconciler(&workers).difference == Some(0)
            && index.indexed_through(&scope).await.unwrap() == 5_000
    })
    .await;
    let lost = [0, 1_999, 2_000, 4_000, 4_999];
    index.mend(&scope, &[], &lost).await.unwrap();
    until("the difference is seen", async || {
        reconciler(&workers).difference.is_some_and(|n| n > 0)
    })
    .await;
    until("the difference is gone", async || {
        let status = reconciler(&workers);
        status.difference == Some(0) && status.repaired == 5
    })
    .await;
    let mut held = 0;
    for from in [0, 2_000, 4_000] {
        held += index.held(&scope, from..from + 2_000).await.unwrap().len();
    }
    assert_eq!(held, 5_000);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_was_pruned_is_no_difference() {
    let index = Arc::new(MemoryIndex::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .search(index.clone())
        .build();
    let events = (0..50).map(|_| Event::view("doc", "d")).collect();
    log.recorder(tenant(1)).record_all(events).await.unwrap();
    let scope = TenantScope::trusted(tenant(1), "test");
    let workers = log.start();
    until("all is indexed", async || {
        index.indexed_through(&scope).await.unwrap() == 50
    })
    .await;
    let basis: Basis = "retention".parse().unwrap();
    let reader = log.tenant(scope.clone());
    let pruned = reader.prune(Timestamp::MAX, basis, None, false).await;
    assert_eq!(pruned.unwrap().entries, 50);
    until("what was pruned is taken out", async || {
        index.held(&scope, 0..100).await.unwrap() == [50]
    })
    .await;
    until("all is compared", async || {
        reconciler(&workers).difference == Some(0)
    })
    .await;
    assert_eq!(reconciler(&workers).repaired, 0);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_tenant_whose_rows_cannot_be_appended_now_does_not_hold_up_the_outbox_of_others() {
    let outbox = Arc::new(MemoryOutbox::new());
    let store = Arc::new(Faulty::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .outbox(outbox.clone())
        .build();
    store.busy.lock().unwrap().insert(tenant(1));
    // More than a relay takes at once.
    for n in 0..1_200 {
        let event = Event::view("doc", format!("d{n}"));
        outbox.push(tenant(1), event).unwrap();
    }
    for n in 0..700 {
        outbox
            .push(tenant(2), Event::view("doc", format!("d{n}")))
            .unwrap();
    }
    let workers = log.start();
    until("the others' rows are appended", async || {
        outbox.take(1, &[tenant(1)]).await.unwrap().is_empty()
    })
    .await;
    assert_eq!(outbox.take(2_000, &[]).await.unwrap().len(), 1_200);
    until("it is told", async || error_of(&workers, "relay").is_some()).await;
    store.busy.lock().unwrap().clear();
    until("the outbox is drained", async || {
        outbox.take(1, &[]).await.unwrap().is_empty()
    })
    .await;
    until("nothing is told any more", async || {
        error_of(&workers, "relay").is_none()
    })
    .await;
    assert!(outbox.parked(10).await.unwrap().is_empty());
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_deleted_tenants_entries_leave_the_index() {
    let index = Arc::new(MemoryIndex::new());
    let store = Arc::new(MemoryStore::new());
    let log = AuditLog::builder(store.clone())
        .search(index.clone())
        .build();
    for n in [1, 2] {
        log.create_tenant(Some(tenant(n)), "one").await.unwrap();
        let events = (0..2_500).map(|_| Event::view("doc", "d")).collect();
        log.recorder(tenant(n)).record_all(events).await.unwrap();
    }
    let held = async |n| {
        let scope = TenantScope::trusted(tenant(n), "test");
        index.held(&scope, 0..10_000).await.unwrap().len()
    };
    let workers = log.start();
    until("all is indexed", async || {
        held(1).await == 2_500 && held(2).await == 2_500
    })
    .await;
    let delete = TenantUpdate::default().status(TenantStatus::Deleted);
    let event = Event::update("tenant", "1").user("admin");
    let event = PreparedEvent::new(tenant(1), event, &**log.clock(), &[]).unwrap();
    let deleted = store.update_tenant(tenant(1), &delete, &event).await;
    assert_eq!(deleted.unwrap().status, TenantStatus::Deleted);
    until("its entries are gone", async || held(1).await == 0).await;
    assert_eq!(held(2).await, 2_500);
    until("all is compared", async || {
        reconciler(&workers).difference == Some(0)
    })
    .await;
    assert_eq!(reconciler(&workers).repaired, 0);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_tenant_with_a_long_log_does_not_keep_the_index_of_others_waiting() {
    let index = Arc::new(Picky::default());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .search(index.clone())
        .build();
    for _ in 0..4 {
        let events = (0..5_000).map(|_| Event::view("doc", "d")).collect();
        log.recorder(tenant(1)).record_all(events).await.unwrap();
    }
    log.recorder(tenant(2))
        .record(Event::view("doc", "d"))
        .await
        .unwrap();
    let workers = log.start();
    let scope = TenantScope::trusted(tenant(1), "test");
    until("all is indexed", async || {
        index.inner.indexed_through(&scope).await.unwrap() == 20_000
    })
    .await;
    let given = index.given.lock().unwrap().clone();
    let turn = given.iter().position(|first| *first == tenant(2));
    assert!(turn.is_some_and(|turn| turn <= 1), "{given:?}");
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_damaged_entry_does_not_keep_the_index_of_others_from_being_put_right() {
    let store = Arc::new(Faulty::new());
    let index = Arc::new(MemoryIndex::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .search(index.clone())
        .build();
    let events = (0..300).map(|_| Event::view("doc", "d").reason("needle"));
    let recorder = log.recorder(tenant(1));
    let receipts = recorder.record_all(events.collect()).await.unwrap();
    let scope = TenantScope::trusted(tenant(1), "test");
    let workers = log.start();
    until("all is indexed", async || {
        index.indexed_through(&scope).await.unwrap() == 300
    })
    .await;
    store.damaged.lock().unwrap().insert(70);
    index.mend(&scope, &[], &[10, 70, 71, 200]).await.unwrap();
    let left = (0..300).filter(|seq| *seq != 70).collect::<Vec<u64>>();
    until(
        "the others are put right, and the damaged one is told",
        async || {
            let status = reconciler(&workers);
            index.held(&scope, 0..300).await.unwrap() == left
                && (status.difference, status.repaired) == (Some(1), 3)
        },
    )
    .await;

    // Erased, it leaves the index, and what follows is indexed.
    store.damaged.lock().unwrap().insert(100);
    let act = Act::new(&scope, None, log.clock().clone()).unwrap();
    let ids = [99, 100, 101].map(|at: usize| receipts[at].id).to_vec();
    let erasure = Erasure::new(ids, "gdpr-17".parse().unwrap(), act);
    log.log_store().erase(&scope, &erasure).await.unwrap();
    recorder.record(Event::view("doc", "d")).await.unwrap();
    until("it is followed", async || {
        index.indexed_through(&scope).await.unwrap() == 302
    })
    .await;
    let needle = Filter::new().text(Query::parse("needle").unwrap());
    let hits = index
        .search(&scope, &SearchRequest::new(needle, 1_000))
        .await;
    let hits = hits.unwrap().seqs;
    assert_eq!(hits.len(), 296);
    assert!(!hits.iter().any(|seq| (99..=101).contains(seq)));

    // A rebuild leaves it out, too.
    index.rebuild(log.log_store()).await.unwrap();
    let held = index.held(&scope, 0..302).await.unwrap();
    assert_eq!(held.len(), 300);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_is_erased_of_a_damaged_entry_on_its_way_to_the_index_does_not_arrive() {
    let store = Arc::new(Faulty::new());
    let index = Arc::new(MemoryIndex::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .search(index.clone())
        .build();
    let recorder = log.recorder(tenant(1));
    let event = Event::view("doc", "d").reason("needle");
    let id = recorder.record(event).await.unwrap().id;
    recorder.record(Event::view("doc", "d")).await.unwrap();
    let scope = TenantScope::trusted(tenant(1), "test");
    let act = Act::new(&scope, None, log.clock().clone()).unwrap();
    let erasure = Erasure::new(vec![id], "gdpr-17".parse().unwrap(), act);
    store.damaged.lock().unwrap().insert(0);
    *store.erases_after_read.lock().unwrap() = Some((scope.clone(), erasure));
    let workers = log.start();
    until("all is indexed", async || {
        index.indexed_through(&scope).await.unwrap() == 3
    })
    .await;
    let needle = Filter::new().text(Query::parse("needle").unwrap());
    let hits = index.search(&scope, &SearchRequest::new(needle, 10)).await;
    assert!(hits.unwrap().seqs.is_empty());
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_difference_is_not_told_before_all_logs_are_compared() {
    let index = Arc::new(MemoryIndex::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .search(index.clone())
        .build();
    for n in 1..=10 {
        let recorder = log.recorder(tenant(n));
        recorder.record(Event::view("doc", "d")).await.unwrap();
    }
    let began = std::time::Instant::now();
    let workers = log.start();
    until("it is told", async || {
        reconciler(&workers).difference == Some(0)
    })
    .await;
    // A tenth of a second lies between two steps.
    assert!(began.elapsed() >= Duration::from_millis(900));
    workers.shutdown(Duration::from_secs(5)).await;
}
