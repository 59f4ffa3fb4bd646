//! Erasures that were asked for: a worker takes them on, and nothing escapes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use audit_core::memory::{MemoryIndex, MemoryOutbox, MemoryQueue, MemoryStore};
use audit_core::{
    AuditLog, AuditLogBuilder, Control, Entry, EntryErased, ErasureJob, ErasureRequest,
    ErasureState, ErrorKind, Event, EventId, EventQueue as _, Filter, Group, LogStore, Outbox as _,
    PageRequest, Permission, Query, Recorder as _, Redrive, SearchIndex as _, SearchRequest,
    Selection, TenantId, TenantLog, TenantScope, TenantStatus, TenantUpdate,
};
use futures_util::TryStreamExt as _;

use crate::faulty::Faulty;
use crate::workers::{Durable, tenant, until};

fn over(store: &Arc<Faulty>) -> AuditLogBuilder {
    AuditLog::builder(Arc::clone(&store.inner)).log_store(Arc::clone(store) as Arc<dyn LogStore>)
}

fn reader(log: &AuditLog, n: u128) -> TenantLog {
    log.tenant(TenantScope::trusted(tenant(n), "dpo"))
}

/// So many entries of Ann and Bob in turn.
async fn record(log: &AuditLog, tenant: TenantId, count: usize) -> Vec<EventId> {
    let mut ids = Vec::new();
    for n in 0..count {
        let user = if n % 2 == 0 { "ann" } else { "bob" };
        let event = Event::view("doc", format!("d{n}"))
            .user(user)
            .reason(format!("needle of {user}"));
        ids.push(log.recorder(tenant).record(event).await.unwrap().id);
    }
    ids
}

fn of(selection: Selection) -> ErasureRequest {
    ErasureRequest::new(selection, "gdpr-17".parse().unwrap()).reason("request 7")
}

async fn all(log: &TenantLog) -> Vec<Entry> {
    let entries = log.scan(&Filter::new()).await.unwrap();
    entries.try_collect().await.unwrap()
}

async fn done(log: &TenantLog, job: &ErasureJob) -> ErasureJob {
    until("the erasure is done", async || {
        log.erasure(job.id).await.unwrap().state == ErasureState::Done
    })
    .await;
    log.erasure(job.id).await.unwrap()
}

/// The positions that control entries say are erased, each once.
fn said_to_be_erased(entries: &[Entry]) -> Vec<u64> {
    let mut seqs = Vec::new();
    for ctl in entries.iter().filter_map(|entry| entry.ctl.as_deref()) {
        let kind = audit_core::Kind::Erase;
        if let Ok(Control::Erase { entries, .. }) = Control::parse(kind, ctl) {
            seqs.extend(entries.into_iter().flat_map(|(from, to)| from..=to));
        }
    }
    seqs.sort_unstable();
    seqs
}

#[tokio::test]
async fn an_erasure_takes_every_entry_of_a_user_and_no_other() {
    let store = Arc::new(Faulty::new());
    let index = Arc::new(MemoryIndex::new());
    let log = over(&store).search(index.clone()).build();
    record(&log, tenant(1), 1_300).await;
    let handle = reader(&log, 1);
    let request = of(Selection::user("ann"));
    let count = handle.count_erasure(&request).await.unwrap();
    assert_eq!((count.matching, count.erasable), (650, 650));
    let job = handle.request_erasure(request.clone()).await.unwrap();
    assert_eq!((job.below, job.end, job.next), (1_300, 1_300, 0));
    let later = Event::view("doc", "later").user("ann");
    log.recorder(tenant(1)).record(later).await.unwrap();
    // Each kind of failure, at many places.
    store.failing_erasures.store(4, Ordering::SeqCst);

    let workers = log.start();
    let job = done(&handle, &job).await;
    assert_eq!(job.entries, 650);
    assert_eq!(job.selection, None, "it names whom it was about");
    assert_eq!(job.last_error, None);
    let entries = all(&handle).await;
    let mut erased = Vec::new();
    for entry in &entries[..1_300] {
        match entry.seq % 2 {
            0 => assert_eq!(entry.erased, [Group::Actor, Group::Resource, Group::Reason]),
            _ => assert!(entry.erased.is_empty()),
        }
        if entry.seq % 2 == 0 {
            erased.push(entry.seq);
        }
    }
    assert_eq!(entries[1_300].fields.user_id.as_deref(), Some("ann"));
    assert_eq!(said_to_be_erased(&entries), erased);
    let control = &entries[1_301];
    assert_eq!(control.fields.user_id.as_deref(), Some("dpo"));
    assert_eq!(control.fields.reason.as_deref(), Some("request 7"));
    let count = handle.count_erasure(&request).await.unwrap();
    assert_eq!((count.matching, count.erasable), (1, 1), "the later one");

    let size = handle.head().await.unwrap().size();
    let scope = TenantScope::trusted(tenant(1), "test");
    until("all is indexed", async || {
        index.indexed_through(&scope).await.unwrap() == size
    })
    .await;
    let words = Filter::new().text(Query::parse("\"needle of ann\"").unwrap());
    let found = async || {
        let request = SearchRequest::new(words.clone(), 10);
        index.search(&scope, &request).await.unwrap().seqs
    };
    until("the index has forgotten", async || found().await.is_empty()).await;
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_erasure_goes_on_after_each_stop_where_it_was() {
    let store = Arc::new(Faulty::new());
    let log = over(&store).build();
    record(&log, tenant(1), 2_600).await;
    let handle = reader(&log, 1);
    let job = handle.request_erasure(of(Selection::user("bob"))).await;
    let job = job.unwrap();
    // As a process that is killed: whatever it is doing is cut off.
    for _ in 0..30 {
        let workers = over(&store).build().start();
        tokio::task::yield_now().await;
        drop(workers);
    }
    let workers = over(&store).build().start();
    assert_eq!(done(&handle, &job).await.entries, 1_300);
    let entries = all(&handle).await;
    for entry in &entries[..2_600] {
        assert_eq!(entry.erased.is_empty(), entry.seq % 2 == 0);
    }
    assert_eq!(said_to_be_erased(&entries).len(), 1_300);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_workers_at_once_erase_each_entry_once() {
    let store = Arc::new(Faulty::new());
    let log = over(&store).build();
    record(&log, tenant(1), 2_000).await;
    let handle = reader(&log, 1);
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(over(&store).build().start());
    }
    let request = of(Selection::matching(Filter::new().to_seq(1_500)));
    let job = handle.request_erasure(request).await.unwrap();
    assert_eq!(done(&handle, &job).await.entries, 1_500);
    let erased = said_to_be_erased(&all(&handle).await);
    assert_eq!(erased, (0..1_500).collect::<Vec<_>>());
    for workers in workers {
        workers.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn an_erasure_by_ids_takes_these_and_only_their_named_groups() {
    let log = AuditLog::builder(Arc::new(MemoryStore::new())).build();
    let ids = record(&log, tenant(1), 300).await;
    let handle = reader(&log, 1);
    let mut asked = ids[..250].to_vec();
    asked.push(ids[0]);
    asked.push(EventId::new(uuid::Uuid::from_u128(404)));
    let request = of(Selection::ids(asked)).groups(&[Group::Reason]);
    let count = handle.count_erasure(&request).await.unwrap();
    assert_eq!((count.matching, count.erasable), (250, 250));
    let workers = log.start();
    let job = handle.request_erasure(request.clone()).await.unwrap();
    assert_eq!((job.below, job.end), (300, 251));
    assert_eq!(done(&handle, &job).await.entries, 250);
    for entry in &all(&handle).await[..300] {
        assert_eq!(entry.fields.reason.is_none(), entry.seq < 250);
        assert!(entry.fields.user_id.is_some());
    }
    let count = handle.count_erasure(&request).await.unwrap();
    assert_eq!((count.matching, count.erasable), (250, 0));
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_damaged_entry_does_not_stop_an_erasure() {
    let store = Arc::new(Faulty::new());
    let log = over(&store).build();
    record(&log, tenant(1), 1_100).await;
    store.damaged.lock().unwrap().extend([0, 502]);
    let handle = reader(&log, 1);
    let workers = log.start();
    let job = handle.request_erasure(of(Selection::user("ann"))).await;
    assert_eq!(done(&handle, &job.unwrap()).await.entries, 550);
    for entry in &all(&handle).await[..1_100] {
        assert_eq!(entry.erased.is_empty(), entry.seq % 2 == 1);
    }
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_erasure_of_a_suspended_tenant_waits_and_holds_up_no_other() {
    let store = Arc::new(Faulty::new());
    let log = over(&store).build();
    let mut jobs = Vec::new();
    for n in 1..=3 {
        record(&log, tenant(n), 4).await;
        let handle = reader(&log, n);
        let job = handle.request_erasure(of(Selection::user("ann"))).await;
        jobs.push(job.unwrap());
    }
    let set = async |status| {
        let update = TenantUpdate::default().status(status);
        let update = log.update_tenant(tenant(1), update, "admin", None);
        update.await.unwrap();
    };
    set(TenantStatus::Suspended).await;
    store.unerasable.lock().unwrap().insert(tenant(2));
    let workers = log.start();
    assert_eq!(done(&reader(&log, 3), &jobs[2]).await.entries, 2);
    let failed = reader(&log, 2);
    until("its failure is told", async || {
        let job = failed.erasure(jobs[1].id).await.unwrap();
        job.last_error.is_some() && job.state == ErasureState::Running
    })
    .await;
    store.unerasable.lock().unwrap().clear();
    assert_eq!(done(&failed, &jobs[1]).await.last_error, None);
    let closed = reader(&log, 1).erasure(jobs[0].id).await.unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::TenantClosed);
    set(TenantStatus::Inactive).await;
    assert_eq!(done(&reader(&log, 1), &jobs[0]).await.entries, 2);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_waits_in_the_queue_is_erased_when_it_arrives() {
    let queue = Arc::new(Durable(MemoryQueue::new()));
    let store = Arc::new(Faulty::new());
    let log = over(&store).queue(queue.clone()).build();
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let handle = reader(&log, 1);
    let enqueue = async |user: &str| {
        let event = Event::view("doc", "d").user(user);
        handle.enqueue(vec![event]).await.unwrap().unwrap()[0]
    };
    let (before, by_id, other) = (
        enqueue("ann").await,
        enqueue("carol").await,
        enqueue("bob").await,
    );
    let mut jobs = Vec::new();
    for selection in [Selection::user("ann"), Selection::ids(vec![by_id])] {
        jobs.push(handle.request_erasure(of(selection)).await.unwrap());
    }
    let after = enqueue("ann").await;
    // Appended, and the erasing fails: as if the process had died in between.
    store.unerasable.lock().unwrap().insert(tenant(1));
    let workers = log.start();
    until("they are appended", async || {
        handle.head().await.unwrap().size() >= 4
    })
    .await;
    assert!(queue.depth().await.unwrap().leased + queue.depth().await.unwrap().waiting > 0);
    store.unerasable.lock().unwrap().clear();
    until("the queue is empty", async || {
        let depth = queue.depth().await.unwrap();
        depth.waiting + depth.leased == 0
    })
    .await;
    for (id, user) in [
        (before, None),
        (by_id, None),
        (other, Some("bob")),
        (after, Some("ann")),
    ] {
        let entry = handle.get(id).await.unwrap();
        assert_eq!(entry.fields.user_id.as_deref(), user);
        assert_eq!(entry.erased.is_empty(), user.is_some());
    }
    assert_eq!(queue.depth().await.unwrap().dead, 0);
    for job in &jobs {
        done(&handle, job).await;
    }
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_waits_in_the_outbox_is_erased_when_it_arrives() {
    let outbox = Arc::new(MemoryOutbox::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .outbox(outbox.clone())
        .build();
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let handle = reader(&log, 1);
    let push = |user: &str| {
        let event = Event::view("doc", "d").user(user);
        outbox.push(tenant(1), event).unwrap()
    };
    let (before, other) = (push("ann"), push("bob"));
    let job = handle.request_erasure(of(Selection::user("ann"))).await;
    let after = push("ann");
    let workers = log.start();
    until("they are relayed", async || {
        handle.get(after).await.is_ok() && handle.get(before).await.is_ok()
    })
    .await;
    until("the earlier one is erased", async || {
        let entry = handle.get(before).await.unwrap();
        entry.erased == [Group::Actor, Group::Resource]
    })
    .await;
    for (id, user) in [(other, "bob"), (after, "ann")] {
        let entry = handle.get(id).await.unwrap();
        assert_eq!(entry.fields.user_id.as_deref(), Some(user));
    }
    assert_eq!(done(&handle, &job.unwrap()).await.entries, 0);
    workers.shutdown(Duration::from_secs(5)).await;
}

/// A log whose tenant takes no events, so that what was accepted is given up; with its queue.
async fn closed() -> (AuditLog, Arc<Durable>) {
    let queue = Arc::new(Durable(MemoryQueue::new()));
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .queue(queue.clone())
        .build();
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    (log, queue)
}

async fn set_status(log: &AuditLog, status: TenantStatus) {
    let update = TenantUpdate::default().status(status);
    log.update_tenant(tenant(1), update, "admin", None)
        .await
        .unwrap();
}

async fn enqueue(log: &AuditLog, user: &str) -> EventId {
    let event = Event::view("doc", "d")
        .user(user)
        .reason(format!("of {user}"));
    let queued = reader(log, 1).enqueue(vec![event]).await;
    queued.unwrap().unwrap()[0]
}

async fn dead(queue: &Durable) -> Vec<EventId> {
    let letters = queue.dead_letters(10).await.unwrap();
    letters.iter().map(|letter| letter.message.id).collect()
}

#[tokio::test]
async fn a_dead_letter_is_erased_like_an_entry() {
    let (log, queue) = closed().await;
    let handle = reader(&log, 1);
    let ids = [
        enqueue(&log, "ann").await,
        enqueue(&log, "bob").await,
        enqueue(&log, "carol").await,
    ];
    set_status(&log, TenantStatus::Inactive).await;
    let workers = log.start();
    until("they are given up", async || dead(&queue).await.len() == 3).await;
    let job = handle
        .request_erasure(of(Selection::user("ann")))
        .await
        .unwrap();
    done(&handle, &job).await;
    assert_eq!(dead(&queue).await, ids[1..]);
    // Of an id that is in the log as well, with other content.
    let id = give_up_a_conflict(&log, &queue, "ann").await;
    let job = handle
        .request_erasure(of(Selection::ids(vec![id])))
        .await
        .unwrap();
    done(&handle, &job).await;
    assert_eq!(dead(&queue).await, ids[1..]);

    // Some groups of another.
    let request = of(Selection::ids(vec![ids[1]])).groups(&[Group::Actor, Group::Reason]);
    let job = handle.request_erasure(request).await.unwrap();
    done(&handle, &job).await;
    assert_eq!(dead(&queue).await, ids[1..]);
    // It would be another event without them: it stays, and loses them when it is sent again.
    set_status(&log, TenantStatus::Active).await;
    assert_eq!(queue.redrive(&Redrive::All).await.unwrap(), 2);
    until("they are appended", async || {
        handle.get(ids[1]).await.is_ok() && handle.get(ids[2]).await.is_ok()
    })
    .await;
    let [bob, carol] = [
        handle.get(ids[1]).await.unwrap(),
        handle.get(ids[2]).await.unwrap(),
    ];
    let entry = async || handle.get(ids[1]).await.unwrap();
    until("he is erased as he arrives", async || {
        entry().await.fields.user_id.is_none()
    })
    .await;
    let bob_now = entry().await;
    assert_eq!(bob_now.fields.reason, None);
    assert_eq!(
        bob_now.leaf_hash, bob.leaf_hash,
        "which groups it had stays"
    );
    assert_eq!(bob.fields.resource_id.as_deref(), Some("d"));
    assert_eq!(carol.fields.user_id.as_deref(), Some("carol"));
    assert_eq!(carol.fields.reason.as_deref(), Some("of carol"));
    workers.shutdown(Duration::from_secs(5)).await;
}

/// Has an event given up that is in conflict with an entry.
async fn give_up_a_conflict(log: &AuditLog, queue: &Durable, user: &str) -> EventId {
    set_status(log, TenantStatus::Active).await;
    let event = Event::view("doc", "d").user(user);
    let id = log.recorder(tenant(1)).record(event).await.unwrap().id;
    let other = Event::view("doc", "other").user(user).id(id);
    reader(log, 1).enqueue(vec![other]).await.unwrap().unwrap();
    until("it is given up", async || dead(queue).await.contains(&id)).await;
    id
}

#[tokio::test]
async fn what_is_given_up_behind_an_erasure_is_erased_too() {
    let (log, queue) = closed().await;
    let handle = reader(&log, 1);
    let (ann, bob) = (enqueue(&log, "ann").await, enqueue(&log, "bob").await);
    let job = handle
        .request_erasure(of(Selection::user("ann")))
        .await
        .unwrap();
    let later = enqueue(&log, "ann").await;
    set_status(&log, TenantStatus::Inactive).await;
    let workers = log.start();
    until(
        "the others are given up, and she is in neither place",
        async || {
            let depth = queue.depth().await.unwrap();
            depth.waiting + depth.leased == 0 && dead(&queue).await == [bob, later]
        },
    )
    .await;
    assert_eq!(
        handle.get(ann).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    done(&handle, &job).await;
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_hold_keeps_dead_letters_until_its_release() {
    let (log, queue) = closed().await;
    let handle = reader(&log, 1);
    let ann = enqueue(&log, "ann").await;
    let job = handle
        .request_erasure(of(Selection::user("ann")))
        .await
        .unwrap();
    set_status(&log, TenantStatus::Inactive).await;
    let hold = log
        .place_hold(tenant(1), None, "case", "admin", None)
        .await
        .unwrap();
    let workers = log.start();
    until("it waits for the hold", async || {
        let job = handle.erasure(job.id).await.unwrap();
        job.last_error.is_some_and(|error| error.contains("case"))
    })
    .await;
    until("it is given up", async || dead(&queue).await == [ann]).await;
    log.release_hold(tenant(1), hold.id, "admin", None)
        .await
        .unwrap();
    assert_eq!(done(&handle, &job).await.last_error, None);
    assert_eq!(dead(&queue).await, []);
    workers.shutdown(Duration::from_secs(5)).await;
}

/// An engine that counts deliveries buries by itself.
#[tokio::test(start_paused = true)]
async fn what_an_engine_gives_up_by_itself_is_found_within_the_hour() {
    let (log, queue) = closed().await;
    let handle = reader(&log, 1);
    enqueue(&log, "ann").await;
    let bob = enqueue(&log, "bob").await;
    let request = of(Selection::user("ann"));
    let deliveries = queue
        .receive(2, Duration::ZERO, Duration::from_secs(3_600))
        .await
        .unwrap();
    let workers = log.start();
    let job = handle.request_erasure(request).await.unwrap();
    while handle.erasure(job.id).await.unwrap().state == ErasureState::Running {
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    let letters: Vec<_> = deliveries
        .into_iter()
        .map(|d| (d.handle, "lapsed".to_owned()))
        .collect();
    for outcome in queue.bury(&letters).await.unwrap() {
        outcome.unwrap();
    }
    assert_eq!(dead(&queue).await.len(), 2);
    tokio::time::sleep(Duration::from_secs(3_610)).await;
    assert_eq!(dead(&queue).await, [bob]);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_parked_row_is_erased_like_an_entry() {
    let outbox = Arc::new(MemoryOutbox::new());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .outbox(outbox.clone())
        .build();
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let handle = reader(&log, 1);
    let id = |n: u128| EventId::new(uuid::Uuid::from_u128(n));
    let push = |n, text: &str| outbox.push_unchecked(tenant(1), id(n), text.to_owned());
    // None of them is an event that the log takes.
    push(1, r#"{"action_type":"VIEW","user_id":"ann","nonsense":1}"#);
    push(
        2,
        r#"{"action_type":"VIEW","user_id":"bob","reason":"why","nonsense":1}"#,
    );
    push(3, r#"{"user_id":"ann","reason":"#);
    push(4, r#"{"action_type":"SHRUG","user_id":"\u0061nn"}"#);
    let workers = log.start();
    let parked = async || {
        let rows = outbox.parked(10).await.unwrap();
        let rows = rows
            .into_iter()
            .map(|parked| (parked.row.id, parked.row.event));
        rows.collect::<Vec<_>>()
    };
    until("they are parked", async || parked().await.len() == 4).await;
    let job = handle
        .request_erasure(of(Selection::user("ann")))
        .await
        .unwrap();
    done(&handle, &job).await;
    // Whose the third is can't be read, but its id can be named.
    let left: Vec<_> = parked().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, [id(2), id(3)]);
    let job = handle
        .request_erasure(of(Selection::ids(vec![id(3)])))
        .await
        .unwrap();
    done(&handle, &job).await;
    let request = of(Selection::user("bob")).groups(&[Group::Reason]);
    let job = handle.request_erasure(request).await.unwrap();
    done(&handle, &job).await;
    // Without it, it would be another event.
    let whole = r#"{"action_type":"VIEW","user_id":"bob","reason":"why","nonsense":1}"#;
    assert_eq!(parked().await, [(id(2), whole.to_owned())]);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn who_erases_by_id_waits_for_it_without_a_worker() {
    let log = AuditLog::builder(Arc::new(MemoryStore::new())).build();
    let ids = record(&log, tenant(1), 250).await;
    let handle = reader(&log, 1);
    let basis = || "gdpr-17".parse().unwrap();
    let erased = handle
        .erase(ids[..201].to_vec(), None, basis(), None)
        .await
        .unwrap();
    assert_eq!(erased.entries, 201);
    let entries = all(&handle).await;
    assert_eq!(said_to_be_erased(&entries), (0..201).collect::<Vec<_>>());
    let receipts: Vec<u64> = erased.receipts.iter().map(|receipt| receipt.seq).collect();
    assert_eq!(receipts, (250..entries.len() as u64).collect::<Vec<_>>());
    assert_eq!(log.open_erasures().await.unwrap(), 0);
    let nothing = handle.erase(Vec::new(), None, basis(), None).await.unwrap();
    assert_eq!((nothing.entries, nothing.receipts.len()), (0, 0));

    let one = async |id| handle.erase_entry(id, basis(), Duration::ZERO).await;
    let EntryErased::Done(erased) = one(ids[249]).await.unwrap() else {
        panic!("nothing else has to be done");
    };
    assert_eq!((erased.entries, erased.receipts.len()), (1, 1));
    let EntryErased::Done(erased) = one(ids[249]).await.unwrap() else {
        panic!("nothing else has to be done");
    };
    assert_eq!((erased.entries, erased.receipts.len()), (0, 0));
    let unknown = one(EventId::new(uuid::Uuid::from_u128(404))).await;
    assert_eq!(unknown.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_erasure_is_refused_without_the_permission_or_a_condition() {
    let log = AuditLog::builder(Arc::new(MemoryStore::new())).build();
    record(&log, tenant(1), 2).await;
    let handle = reader(&log, 1);
    let request = of(Selection::user("ann"));
    let without = log.tenant(handle.scope().only(Permission::Read));
    let refused = without.request_erasure(request.clone()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Forbidden);
    let refused = without.count_erasure(&request).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Forbidden);
    // Whoever may erase need not be allowed to read, but is not told what entries hold then.
    let eraser = log.tenant(handle.scope().only(Permission::Erase));
    let job = eraser.request_erasure(request.clone()).await.unwrap();
    let refused = eraser.count_erasure(&request).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Forbidden);
    assert_eq!(handle.count_erasure(&request).await.unwrap().matching, 1);
    let all = handle.list(&Filter::new(), &PageRequest::first()).await;
    let ids = all.unwrap().items.iter().map(|entry| entry.id).collect();
    let by_id = of(Selection::ids(ids));
    assert_eq!(eraser.count_erasure(&by_id).await.unwrap().matching, 2);
    let foreign = reader(&log, 1).erasure(job.id).await.unwrap();
    assert_eq!(foreign, job);
    for (selection, field) in [
        (Selection::matching(Filter::new()), "filter"),
        (Selection::ids(Vec::new()), "ids"),
    ] {
        let error = handle.request_erasure(of(selection)).await.unwrap_err();
        assert_eq!(error.fields()[0].field, field);
    }
    let long = of(Selection::user("ann")).reason("x".repeat(1_025));
    let error = handle.request_erasure(long).await.unwrap_err();
    assert_eq!(error.fields()[0].field, "reason");
    let page = handle.list(&Filter::new(), &PageRequest::first()).await;
    assert_eq!(page.unwrap().items.len(), 2, "nothing was erased");
}
