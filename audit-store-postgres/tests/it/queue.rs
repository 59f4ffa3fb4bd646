//! The durable queue.

use std::collections::BTreeSet;
use std::time::Duration;

use audit_core::{ErrorKind, EventId, EventQueue, Message, MessageKind};
use audit_store_postgres::PostgresQueue;
use uuid::Uuid;

use crate::fixture::{Database, tenant};

const NONE: Duration = Duration::ZERO;
const WAIT: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_secs(300);
/// Over at once.
const INSTANT: Duration = Duration::from_millis(1);

struct Fixture {
    database: Database,
    queue: PostgresQueue,
}

impl Fixture {
    async fn new() -> Self {
        let database = Database::open().await;
        let queue = database.store.queue();
        Self { database, queue }
    }

    /// The queue as another process has it.
    async fn another(&self) -> PostgresQueue {
        self.database.again().await.queue()
    }

    async fn send(&self, range: std::ops::Range<u128>) {
        let messages: Vec<Message> = range.map(message).collect();
        for answer in self.queue.send(&messages).await.unwrap() {
            answer.unwrap();
        }
    }

    async fn take(&self, max: usize, lease: Duration) -> Vec<(String, u128, u32)> {
        let deliveries = self.queue.receive(max, WAIT, lease).await.unwrap();
        deliveries
            .into_iter()
            .map(|d| (d.handle, number(&d.message), d.attempts))
            .collect()
    }

    async fn depth(&self) -> (u64, u64, u64) {
        let depth = self.queue.depth().await.unwrap();
        (depth.waiting, depth.leased, depth.dead)
    }
}

fn message(n: u128) -> Message {
    let id = EventId::new(Uuid::from_u128(n));
    Message::new(
        tenant(n % 3),
        MessageKind::Ingest,
        id,
        format!("{{\"n\":{n}}}"),
    )
}

fn number(message: &Message) -> u128 {
    message.id.as_uuid().as_u128()
}

fn numbers(taken: &[(String, u128, u32)]) -> Vec<u128> {
    taken.iter().map(|(_, n, _)| *n).collect()
}

impl audit_conformance::EventQueueHarness for Fixture {
    type Queue = PostgresQueue;

    async fn open() -> Self {
        Self::new().await
    }

    fn queue(&self) -> &PostgresQueue {
        &self.queue
    }

    async fn reopen(self) -> Option<Self> {
        let queue = self.another().await;
        let database = self.database;
        Some(Self { database, queue })
    }
}

mod contract {
    audit_conformance::event_queue!(super::Fixture);
}

#[tokio::test]
async fn messages_come_in_the_order_in_which_they_were_sent() {
    let fixture = Fixture::new().await;
    fixture.send(0..6).await;
    fixture.send(6..10).await;
    let first = fixture.take(4, LEASE).await;
    assert_eq!(numbers(&first), [0, 1, 2, 3]);
    assert_eq!(fixture.depth().await, (6, 4, 0));
    let rest = fixture.take(1_000, LEASE).await;
    assert_eq!(numbers(&rest), [4, 5, 6, 7, 8, 9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_message_is_given_to_two_receivers_at_once() {
    let fixture = Fixture::new().await;
    fixture.send(0..400).await;
    let other = fixture.another().await;
    let receivers = (0..8).map(|i| {
        let queue = [&fixture.queue, &other][i % 2].clone();
        tokio::spawn(async move {
            let mut got = Vec::new();
            loop {
                let some = queue.receive(7, NONE, LEASE).await.unwrap();
                if some.is_empty() {
                    return got;
                }
                got.extend(some.iter().map(|d| number(&d.message)));
            }
        })
    });
    let mut all = Vec::new();
    for receiver in receivers.collect::<Vec<_>>() {
        all.extend(receiver.await.unwrap());
    }
    all.sort_unstable();
    assert_eq!(all, (0..400).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_receiver_that_waits_finds_what_another_process_sends() {
    let fixture = Fixture::new().await;
    let other = fixture.another().await;
    let queue = fixture.queue.clone();
    let waiting = tokio::spawn(async move { queue.receive(1, WAIT, LEASE).await.unwrap().len() });
    tokio::task::yield_now().await;
    other.send(&[message(1)]).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 1);
}

#[tokio::test]
async fn a_message_over_which_workers_die_becomes_a_dead_letter() {
    let fixture = Fixture::new().await;
    let queue = fixture.queue.clone().max_lapses(3);
    fixture.send(0..1).await;
    for attempt in 1..=3 {
        let taken = queue.receive(1, WAIT, INSTANT).await.unwrap();
        assert_eq!(taken[0].attempts, attempt);
    }
    // Nobody is given it once more.
    let deadline = tokio::time::Instant::now() + WAIT;
    while fixture.depth().await != (0, 0, 1) {
        assert!(tokio::time::Instant::now() < deadline);
        assert!(queue.receive(1, NONE, LEASE).await.unwrap().is_empty());
    }
    let dead = queue.dead_letters(10).await.unwrap();
    assert_eq!(dead[0].message, message(0));
    assert_eq!(dead[0].reason, "its lease ran out 3 times");
    assert_eq!(queue.redrive(&audit_core::Redrive::All).await.unwrap(), 1);
    assert_eq!(queue.receive(1, WAIT, LEASE).await.unwrap()[0].attempts, 1);
}

#[tokio::test]
async fn a_message_that_is_given_back_is_never_given_up() {
    let fixture = Fixture::new().await;
    let queue = fixture.queue.clone().max_lapses(1);
    fixture.send(0..1).await;
    for attempt in 1..=5 {
        let taken = queue.receive(1, WAIT, LEASE).await.unwrap();
        assert_eq!(taken[0].attempts, attempt);
        queue.retry(&[taken[0].handle.clone()], NONE).await.unwrap();
    }
    assert_eq!(fixture.depth().await, (1, 0, 0));
}

#[tokio::test]
async fn handles_that_are_none_fail_alone() {
    let fixture = Fixture::new().await;
    fixture.send(0..2).await;
    let taken = fixture.take(2, LEASE).await;
    let handles = [taken[0].0.clone(), "nonsense".into(), taken[1].0.clone()];
    let kinds = |answers: Vec<audit_core::Result<()>>| -> Vec<Option<ErrorKind>> {
        answers
            .into_iter()
            .map(|answer| answer.err().map(|e| e.kind()))
            .collect()
    };
    let expected = [None, Some(ErrorKind::Invalid), None];
    assert_eq!(
        kinds(fixture.queue.extend(&handles, LEASE).await.unwrap()),
        expected
    );
    assert_eq!(
        kinds(fixture.queue.retry(&handles, NONE).await.unwrap()),
        expected
    );
    assert_eq!(fixture.depth().await, (2, 0, 0));
    let taken = fixture.take(2, LEASE).await;
    let letters: Vec<_> = [&taken[0].0, "nonsense", &taken[1].0]
        .into_iter()
        .map(|handle| (handle.to_owned(), format!("bad \0 {handle}")))
        .collect();
    assert_eq!(kinds(fixture.queue.bury(&letters).await.unwrap()), expected);
    let reasons: BTreeSet<String> = fixture
        .queue
        .dead_letters(10)
        .await
        .unwrap()
        .into_iter()
        .map(|letter| letter.reason)
        .collect();
    let expected: BTreeSet<String> = [&letters[0], &letters[2]]
        .map(|(_, reason)| reason.replace('\0', "\u{FFFD}"))
        .into();
    assert_eq!(reasons, expected);
}

#[tokio::test]
async fn a_body_with_a_nul_is_refused_without_its_neighbours() {
    let fixture = Fixture::new().await;
    let mut bad = message(1);
    bad.body = "\0".into();
    let answers = fixture.queue.send(&[message(0), bad]).await.unwrap();
    assert_eq!(answers[1].as_ref().unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(numbers(&fixture.take(10, LEASE).await), [0]);
}

#[tokio::test]
async fn a_delivery_is_bounded_by_bytes_and_has_one_message_at_least() {
    let fixture = Fixture::new().await;
    let messages: Vec<Message> = (0..20)
        .map(|n| {
            let mut message = message(n);
            message.body = "x".repeat(Message::MAX_BODY);
            message
        })
        .collect();
    for answer in fixture.queue.send(&messages).await.unwrap() {
        answer.unwrap();
    }
    let mut all = Vec::new();
    while all.len() < 20 {
        let taken = fixture.take(100, LEASE).await;
        assert!((1..=11).contains(&taken.len()), "{}", taken.len());
        all.extend(numbers(&taken));
    }
    assert_eq!(all, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn settling_the_same_messages_twice_at_once_is_no_deadlock() {
    let fixture = Fixture::new().await;
    for _ in 0..5 {
        fixture.send(0..100).await;
        let mut handles: Vec<String> = fixture
            .take(100, LEASE)
            .await
            .into_iter()
            .map(|(handle, _, _)| handle)
            .collect();
        let forwards = handles.clone();
        handles.reverse();
        let other = fixture.another().await;
        let (one, two) = tokio::join!(fixture.queue.ack(&forwards), other.ack(&handles));
        one.unwrap();
        two.unwrap();
        assert_eq!(fixture.depth().await, (0, 0, 0));
    }
}
