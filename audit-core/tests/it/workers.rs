//! What follows the log, and what leads to it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use audit_core::memory::{MemoryIndex, MemoryOutbox, MemoryQueue, MemoryStore};
use audit_core::{
    Act, AuditLog, Basis, Batch, Consumer, DeadLetter, Delivery, Entry, Erasure, Error, ErrorKind,
    Event, EventId, EventQueue, Fields, Filter, Hits, LogStore, Message, Outbox, PageRequest,
    Query, QueueDepth, Recorder, Redact, Redrive, Result, SearchIndex, SearchRequest, TenantId,
    TenantScope, TenantStatus, TenantUpdate, Timestamp,
};
use uuid::Uuid;

use crate::faulty::Faulty;

fn tenant(n: u128) -> TenantId {
    TenantId::new(Uuid::from_u128(n))
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
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
struct Durable(MemoryQueue);

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
        outbox.take(10).await.unwrap().is_empty()
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
