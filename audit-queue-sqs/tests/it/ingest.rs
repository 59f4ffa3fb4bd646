//! Events through the queue into a log.

use std::sync::Arc;
use std::time::Duration;

use audit_core::{
    AuditLog, Event, EventId, EventQueue, LogStore as _, MemoryStore, TenantId, TenantScope,
    Workers,
};
use audit_queue_sqs::SqsQueue;
use aws_sdk_sqs::types::MessageAttributeValue;

use crate::fixture::{
    BOTH, make, message, new_queue, new_url, options, options_of, raw, tenant, until,
};
use crate::proxy::{Fault, Proxy};

fn log(store: &Arc<MemoryStore>, queue: SqsQueue) -> (AuditLog, Arc<SqsQueue>) {
    let queue = Arc::new(queue);
    let log = AuditLog::builder(store.clone())
        .queue(Arc::clone(&queue) as Arc<dyn EventQueue>)
        .build();
    (log, queue)
}

async fn enqueue(log: &AuditLog, tenant: TenantId, n: usize) -> EventId {
    let tenant = log.tenant(TenantScope::trusted(tenant, "test"));
    let event = Event::view("doc", n.to_string());
    tenant.enqueue(vec![event]).await.unwrap().unwrap()[0]
}

async fn entries(store: &MemoryStore, tenant: TenantId) -> Vec<EventId> {
    let scope = TenantScope::trusted(tenant, "test");
    let entries = store.read(&scope, 0, 1_000).await.unwrap();
    entries.into_iter().map(|entry| entry.id).collect()
}

fn dropped(workers: &Workers) -> u64 {
    workers.status().iter().map(|status| status.dropped).sum()
}

fn string(value: &str) -> MessageAttributeValue {
    MessageAttributeValue::builder()
        .data_type("String")
        .string_value(value)
        .build()
        .unwrap()
}

#[tokio::test]
async fn what_the_log_did_not_enqueue_is_dropped_and_counted() {
    let url = new_url(false);
    let queue = make(options_of(&url)).await;
    let store = Arc::new(MemoryStore::new());
    let (log, queue) = log(&store, queue);
    let t = tenant(1);
    log.create_tenant(Some(t), "one").await.unwrap();
    let genuine = enqueue(&log, t, 0).await;

    // Without a MAC, with a wrong one, with the genuine message's under another id; and without what
    // every message has.
    let stolen = queue
        .receive(1, Duration::from_secs(5), Duration::from_secs(1))
        .await
        .unwrap()
        .remove(0);
    let forged = [
        r#"{"v":1,"event":"e30=","subject":"","accepted_at":"2026-11-24T03:00:00.000000Z"}"#,
        r#"{"v":1,"event":"e30=","subject":"","accepted_at":"2026-11-24T03:00:00.000000Z","mac":"AAAA"}"#,
        &*stolen.message.body,
    ];
    let sqs = raw().await;
    for body in forged {
        sqs.send_message()
            .queue_url(&url)
            .message_body(body)
            .message_attributes("tenant", string(&t.to_string()))
            .message_attributes("kind", string("ingest"))
            .message_attributes("id", string(&message(t, 0).id.to_string()))
            .send()
            .await
            .unwrap();
    }
    sqs.send_message()
        .queue_url(&url)
        .message_body("{}")
        .send()
        .await
        .unwrap();

    let workers = log.start();
    until("all are settled", async || {
        let depth = queue.depth().await.unwrap();
        depth.waiting + depth.leased + depth.dead == 0
    })
    .await;
    assert_eq!(entries(&store, t).await, [genuine]);
    assert_eq!(queue.dropped(), 1);
    assert_eq!(dropped(&workers), forged.len() as u64 + 1);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn two_workers_drain_a_fifo_queue_and_keep_each_tenants_order() {
    let (queue_options, queue) = new_queue(true).await;
    let store = Arc::new(MemoryStore::new());
    let (one, _) = log(&store, queue);
    let (other, _) = log(&store, SqsQueue::open(queue_options).await.unwrap());
    let mut accepted = Vec::new();
    for t in 1..=3 {
        one.create_tenant(Some(tenant(t)), "t").await.unwrap();
        accepted.push(Vec::new());
    }
    let workers = [one.start(), other.start()];
    for n in 0..40 {
        for t in 1..=3 {
            let log = if n % 2 == 0 { &one } else { &other };
            accepted[t - 1].push(enqueue(log, tenant(t), n).await);
        }
    }
    for (t, accepted) in (1..=3).zip(&accepted) {
        until("all are appended", async || {
            entries(&store, tenant(t)).await.len() >= accepted.len()
        })
        .await;
        assert_eq!(&entries(&store, tenant(t)).await, accepted);
    }
    for workers in workers {
        workers.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn every_message_delivered_twice_is_appended_once() {
    let proxy = Proxy::start(|call| match (&*call.operation, call.nth) {
        ("SendMessageBatch", _) => Fault::Twice,
        // The worker's first answers are lost on their way.
        ("DeleteMessageBatch", 0) => Fault::Items(vec![0], "InternalError", false),
        _ => Fault::None,
    })
    .await;
    for fifo in BOTH {
        let queue = make(options(fifo).endpoint(&proxy.endpoint)).await;
        let store = Arc::new(MemoryStore::new());
        let (log, queue) = log(&store, queue);
        let t = tenant(1);
        log.create_tenant(Some(t), "one").await.unwrap();
        let mut accepted = Vec::new();
        for n in 0..20 {
            accepted.push(enqueue(&log, t, n).await);
        }
        let workers = log.start();
        until("all are appended, and the queue is empty", async || {
            let depth = queue.depth().await.unwrap();
            depth.waiting == 0 && entries(&store, t).await.len() == accepted.len()
        })
        .await;
        let mut stored = entries(&store, t).await;
        stored.sort_unstable();
        accepted.sort_unstable();
        assert_eq!(stored, accepted);
        workers.shutdown(Duration::from_secs(5)).await;
    }
}
