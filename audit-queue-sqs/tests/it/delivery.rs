//! Leases, lost ones, and messages that come twice.

use std::collections::HashMap;
use std::time::Duration;

use audit_core::{EventId, EventQueue as _, Message, QueueDepth};
use audit_queue_sqs::SqsQueue;

use crate::fixture::{
    BOTH, LONG, NONE, all_ok, handles, ids, make, message, new_queue, options, receive, send,
    tenant,
};
use crate::proxy::{Fault, Proxy};

const LEASE: Duration = Duration::from_secs(1);
/// For as long as this a receiver waits for what must not come, longer than a lease.
const WATCH: Duration = Duration::from_secs(2);

#[tokio::test]
async fn visibility_is_extended_while_a_message_is_held() {
    for fifo in BOTH {
        let (options, queue) = new_queue(fifo).await;
        let other = SqsQueue::open(options).await.unwrap();
        send(&queue, &[message(tenant(0), 0)]).await;
        let held = receive(&queue, 1, LEASE).await;
        for _ in 0..2 {
            let longer = WATCH + LEASE;
            all_ok(queue.extend(&handles(&held), longer).await);
            let none = other.receive(1, WATCH, LONG).await.unwrap();
            assert!(none.is_empty(), "{none:?}");
        }
        all_ok(queue.ack(&handles(&held)).await);
        assert_eq!(queue.depth().await.unwrap(), QueueDepth::default());
    }
}

#[tokio::test]
async fn a_lost_lease_is_no_error_and_harms_nobody() {
    for fifo in BOTH {
        let (options, queue) = new_queue(fifo).await;
        let other = SqsQueue::open(options).await.unwrap();
        send(&queue, &[message(tenant(0), 0)]).await;
        let slow = receive(&queue, 1, LEASE).await;
        let new = receive(&other, 1, LONG).await;
        assert_eq!(ids(&new), ids(&slow));
        assert_eq!(new[0].attempts, 2);
        let mut lost = handles(&slow);
        lost.push("nonsense".into());
        let letters: Vec<_> = lost
            .iter()
            .map(|h| (h.clone(), "late".to_owned()))
            .collect();
        all_ok(queue.extend(&lost, NONE).await);
        all_ok(queue.retry(&lost, NONE).await);
        all_ok(queue.bury(&letters).await);
        all_ok(queue.ack(&lost).await);
        let QueueDepth { leased, dead, .. } = queue.depth().await.unwrap();
        assert_eq!((leased, dead), (1, 0), "the new lease holds");
        all_ok(other.ack(&handles(&new)).await);
        assert_eq!(queue.depth().await.unwrap(), QueueDepth::default());
    }
}

#[tokio::test]
async fn every_message_delivered_twice_is_received_and_settled_twice() {
    let proxy = Proxy::start(|call| match &*call.operation {
        "SendMessageBatch" => Fault::Twice,
        _ => Fault::None,
    })
    .await;
    for fifo in BOTH {
        let queue = make(options(fifo).endpoint(&proxy.endpoint)).await;
        let messages: Vec<Message> = (0..25).map(|n| message(tenant(n), n)).collect();
        send(&queue, &messages).await;
        // A FIFO queue knows each by its deduplication id.
        let times = if fifo { 1 } else { 2 };
        let received = receive(&queue, times * 25, LONG).await;
        let mut counts: HashMap<EventId, usize> = HashMap::new();
        for id in ids(&received) {
            *counts.entry(id).or_default() += 1;
        }
        assert_eq!(counts.len(), 25);
        assert!(counts.values().all(|count| *count == times));
        all_ok(queue.ack(&handles(&received)).await);
        all_ok(queue.ack(&handles(&received)).await);
        assert_eq!(queue.depth().await.unwrap(), QueueDepth::default());
    }
}

#[tokio::test]
async fn an_idle_queue_is_asked_once_and_a_busy_one_by_several_receives() {
    let proxy = Proxy::start(|_| Fault::None).await;
    let queue = make(options(false).endpoint(&proxy.endpoint)).await;
    assert!(queue.receive(100, NONE, LONG).await.unwrap().is_empty());
    assert_eq!(proxy.calls("ReceiveMessage"), 1);
    let messages: Vec<Message> = (0..100).map(|n| message(tenant(n), n)).collect();
    send(&queue, &messages).await;
    let received = queue.receive(95, NONE, LONG).await.unwrap();
    assert_eq!(received.len(), 95);
    assert_eq!(proxy.calls("ReceiveMessage"), 1 + 10);
}
