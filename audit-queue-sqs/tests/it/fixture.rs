//! Queues of a test's own, and messages.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use audit_core::{
    Clock as _, Delivery, EventId, EventQueue as _, Message, MessageKind, SystemClock, TenantId,
};
use audit_queue_sqs::{SqsOptions, SqsQueue};
use tokio::time::Instant;
use uuid::Uuid;

pub(crate) const NONE: Duration = Duration::ZERO;
/// Longer than any test takes.
pub(crate) const LONG: Duration = Duration::from_secs(300);
/// Within which everything must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const BOTH: [bool; 2] = [false, true];

pub(crate) fn environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `dev/services up`, then `set -a; . .dev/env; set +a`")
    })
}

pub(crate) fn endpoint() -> String {
    environment("AUDIT_TEST_SQS_ENDPOINT")
}

/// The URL of a queue that no other test has.
pub(crate) fn new_url(fifo: bool) -> String {
    let name = SystemClock.event_id();
    let suffix = if fifo { ".fifo" } else { "" };
    format!("{}/000000000000/it-{name}{suffix}", endpoint())
}

pub(crate) fn options(fifo: bool) -> SqsOptions {
    options_of(&new_url(fifo))
}

pub(crate) fn options_of(url: &str) -> SqsOptions {
    // Patient, for a machine that is busy with other tests.
    SqsOptions::new(url)
        .unwrap()
        .region("us-east-1")
        .timeout(DEADLINE)
}

/// Opens the queue, and makes it.
pub(crate) async fn make(options: SqsOptions) -> SqsQueue {
    let queue = SqsQueue::open(options).await.unwrap();
    queue
        .create()
        .await
        .expect("SQS answers: is it running? `dev/services up` starts it");
    queue
}

/// Its options, and the queue.
pub(crate) async fn new_queue(fifo: bool) -> (SqsOptions, SqsQueue) {
    let options = options(fifo);
    (options.clone(), make(options).await)
}

pub(crate) fn tenant(n: usize) -> TenantId {
    TenantId::new(Uuid::from_u128(0x1000 + n as u128))
}

pub(crate) fn message(tenant: TenantId, n: usize) -> Message {
    let id = SystemClock.event_id();
    Message::new(tenant, MessageKind::Ingest, id, format!("{{\"n\":{n}}}"))
}

/// The number that [`message`] put into the body.
pub(crate) fn number(message: &Message) -> usize {
    let digits: String = message.body.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<EventId> {
    deliveries.iter().map(|d| d.message.id).collect()
}

pub(crate) fn handles(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|d| d.handle.clone()).collect()
}

pub(crate) fn all_ok(outcomes: audit_core::Result<Vec<audit_core::Result<()>>>) {
    for outcome in outcomes.unwrap() {
        outcome.unwrap();
    }
}

pub(crate) async fn send(queue: &SqsQueue, messages: &[Message]) {
    all_ok(queue.send(messages).await);
}

/// Receives until there are `n`.
pub(crate) async fn receive(queue: &SqsQueue, n: usize, lease: Duration) -> Vec<Delivery> {
    let deadline = Instant::now() + DEADLINE;
    let mut deliveries = Vec::new();
    while deliveries.len() < n {
        assert!(Instant::now() < deadline, "{} of {n}", deliveries.len());
        let wait = Duration::from_secs(1);
        deliveries.extend(
            queue
                .receive(n - deliveries.len(), wait, lease)
                .await
                .unwrap(),
        );
    }
    deliveries
}

/// Asks until the answer is yes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, ask: impl Fn() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !ask().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

/// A client of the protocol without this crate.
pub(crate) async fn raw() -> aws_sdk_sqs::Client {
    let config = aws_config::defaults(aws_config::BehaviorVersion::latest())
        .endpoint_url(endpoint())
        .region(aws_config::Region::new("us-east-1"))
        .load()
        .await;
    aws_sdk_sqs::Client::new(&config)
}

/// Removes a queue and its dead-letter queue at the end, since the server keeps all in memory.
pub(crate) struct Removed(pub(crate) String);

impl Drop for Removed {
    fn drop(&mut self) {
        let dead = match self.0.strip_suffix(".fifo") {
            Some(url) => format!("{url}-dead.fifo"),
            None => format!("{}-dead", self.0),
        };
        let address = endpoint().replace("http://", "");
        for url in [&self.0, &dead] {
            let body = format!("{{\"QueueUrl\":\"{url}\"}}");
            let request = format!(
                "POST / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nX-Amz-Target: AmazonSQS.DeleteQueue\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            // A server that is gone has no queue either.
            if let Ok(mut server) = TcpStream::connect(&address) {
                drop(server.write_all(request.as_bytes()));
                drop(server.read_to_end(&mut Vec::new()));
            }
        }
    }
}
