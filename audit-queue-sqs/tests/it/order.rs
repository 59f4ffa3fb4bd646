//! What a FIFO queue promises: the order of each tenant's sends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use audit_core::{Delivery, EventQueue as _, Message, TenantId};
use audit_queue_sqs::SqsQueue;
use tokio::time::Instant;

use crate::fixture::{
    DEADLINE, LONG, NONE, all_ok, handles, make, message, new_queue, number, options, receive,
    send, tenant,
};
use crate::proxy::{Fault, Proxy};

/// The numbers of each tenant's messages as they come, each batch acknowledged before the next.
async fn drain(queue: &SqsQueue, n: usize) -> HashMap<TenantId, Vec<usize>> {
    let mut numbers: HashMap<TenantId, Vec<usize>> = HashMap::new();
    let mut left = n;
    let deadline = Instant::now() + DEADLINE;
    while left > 0 {
        assert!(Instant::now() < deadline, "{left} of {n} are missing");
        let some = queue
            .receive(100, Duration::from_secs(1), LONG)
            .await
            .unwrap();
        left -= some.len();
        for delivery in &some {
            let own = numbers.entry(delivery.message.tenant).or_default();
            own.push(number(&delivery.message));
        }
        all_ok(queue.ack(&handles(&some)).await);
    }
    numbers
}

fn numbers(deliveries: &[Delivery]) -> Vec<usize> {
    deliveries.iter().map(|d| number(&d.message)).collect()
}

#[tokio::test]
async fn a_fifo_queue_keeps_each_tenants_order_across_batches() {
    let (_, queue) = new_queue(true).await;
    let messages: Vec<Message> = (0..120).map(|n| message(tenant(n % 3), n)).collect();
    for part in messages.chunks(50) {
        send(&queue, part).await;
    }
    let numbers = drain(&queue, 120).await;
    for t in 0..3 {
        let expected: Vec<usize> = (t..120).step_by(3).collect();
        assert_eq!(numbers[&tenant(t)], expected);
    }
}

#[tokio::test]
async fn a_fifo_queue_keeps_the_order_of_calls_while_many_tenants_send() {
    let (_, queue) = new_queue(true).await;
    let queue = Arc::new(queue);
    let senders: Vec<_> = (0..12)
        .map(|t| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move {
                for n in 0..25 {
                    send(&queue, &[message(tenant(t), n)]).await;
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    let numbers = drain(&queue, 12 * 25).await;
    for t in 0..12 {
        assert_eq!(numbers[&tenant(t)], (0..25).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_fifo_queue_keeps_the_order_of_messages_that_are_given_back() {
    let (_, queue) = new_queue(true).await;
    let messages: Vec<Message> = (0..14).map(|n| message(tenant(0), n)).collect();
    send(&queue, &messages).await;
    let first = receive(&queue, 10, LONG).await;
    assert_eq!(numbers(&first), (0..10).collect::<Vec<_>>());
    // What follows waits while these are being worked on.
    let none = queue.receive(10, NONE, LONG).await.unwrap();
    assert!(none.is_empty(), "{none:?}");
    all_ok(queue.ack(&handles(&first[..4])).await);
    let delay = Duration::from_secs(1);
    all_ok(queue.retry(&handles(&first[4..]), delay).await);
    let rest = drain(&queue, 10).await;
    assert_eq!(rest[&tenant(0)], (4..14).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_answer_that_is_lost_neither_repeats_nor_reorders_messages_on_fifo() {
    let proxy = Proxy::start(|call| match (&*call.operation, call.nth) {
        ("SendMessageBatch", 0 | 2) => Fault::AnswerLost,
        _ => Fault::None,
    })
    .await;
    let queue = make(options(true).endpoint(&proxy.endpoint)).await;
    let messages: Vec<Message> = (0..30).map(|n| message(tenant(0), n)).collect();
    send(&queue, &messages).await;
    assert_eq!(proxy.calls("SendMessageBatch"), 5);
    let numbers = drain(&queue, 30).await;
    assert_eq!(numbers[&tenant(0)], (0..30).collect::<Vec<_>>());
    assert!(queue.receive(10, NONE, LONG).await.unwrap().is_empty());
}

#[tokio::test]
async fn on_fifo_no_message_overtakes_one_of_its_tenant_that_was_not_sent() {
    for sends in [1, 8] {
        let proxy = Proxy::start(|call| match (&*call.operation, call.nth) {
            // All tries of the first batch.
            ("SendMessageBatch", 0..3) => Fault::Whole(503, "ServiceUnavailable"),
            _ => Fault::None,
        })
        .await;
        let options = options(true).sends_in_flight(sends);
        fail_and_send_again(&make(options.endpoint(&proxy.endpoint)).await, 30).await;
    }
}

#[tokio::test]
async fn on_fifo_no_half_of_a_refused_batch_overtakes_one_that_was_not_sent() {
    let proxy = Proxy::start(|call| match (&*call.operation, call.nth) {
        ("SendMessageBatch", 0) => Fault::Whole(400, "BatchRequestTooLong"),
        // All tries of the first half.
        ("SendMessageBatch", 1..4) => Fault::Whole(503, "ServiceUnavailable"),
        _ => Fault::None,
    })
    .await;
    fail_and_send_again(&make(options(true).endpoint(&proxy.endpoint)).await, 10).await;
}

/// None of a first call is sent, all of a second are, and they come in their order.
async fn fail_and_send_again(queue: &SqsQueue, n: usize) {
    let messages: Vec<Message> = (0..n).map(|n| message(tenant(0), n)).collect();
    let outcomes = queue.send(&messages).await.unwrap();
    for (outcome, message) in outcomes.iter().zip(&messages) {
        let error = outcome.as_ref().unwrap_err();
        assert!(error.is_retryable());
        assert_eq!(error.event_id(), Some(message.id));
    }
    send(queue, &messages).await;
    let numbers = drain(queue, n).await;
    assert_eq!(numbers[&tenant(0)], (0..n).collect::<Vec<_>>());
}
