//! How fast messages go through; run by name: `cargo test -p audit-queue-sqs -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::Duration;

use audit_core::EventQueue as _;
use tokio::time::Instant;

use crate::fixture::{BOTH, all_ok, handles, message, new_queue, send, tenant};

/// Callers that each send one message at a time.
const SENDERS: usize = 64;
const EACH: usize = 200;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn messages_a_second() {
    for fifo in BOTH {
        let (_, queue) = new_queue(fifo).await;
        let queue = Arc::new(queue);
        let padding = "x".repeat(800);
        let began = Instant::now();
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                let (queue, padding) = (Arc::clone(&queue), padding.clone());
                tokio::spawn(async move {
                    for n in 0..EACH {
                        let mut message = message(tenant(sender), n);
                        message.body = format!("{{\"n\":{n},\"event\":\"{padding}\"}}");
                        send(&queue, &[message]).await;
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.await.unwrap();
        }
        let total = SENDERS * EACH;
        let sent = began.elapsed();
        let began = Instant::now();
        let receivers: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move {
                    let mut received = 0;
                    loop {
                        let (wait, lease) = (Duration::ZERO, Duration::from_secs(60));
                        let some = queue.receive(100, wait, lease).await.unwrap();
                        if some.is_empty() {
                            return received;
                        }
                        received += some.len();
                        all_ok(queue.ack(&handles(&some)).await);
                    }
                })
            })
            .collect();
        let mut received = 0;
        for receiver in receivers {
            received += receiver.await.unwrap();
        }
        let rate = |n: usize, time: Duration| n as f64 / time.as_secs_f64();
        println!(
            "{}: {total} messages of 800 bytes, {SENDERS} senders: {:.0}/s sent; 2 receivers: {received} at {:.0}/s",
            if fifo { "FIFO" } else { "standard" },
            rate(total, sent),
            rate(received, began.elapsed()),
        );
    }
}
