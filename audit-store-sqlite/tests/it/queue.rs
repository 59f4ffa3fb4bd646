//! The durable queue.

use std::sync::Arc;
use std::time::Duration;

use audit_core::{
    ErrorKind, EventId, EventQueue, ManualClock, Message, MessageKind, QueueDepth, Redrive,
    Timestamp,
};
use audit_store_sqlite::SqliteQueue;
use tempfile::TempDir;
use uuid::Uuid;

use crate::fixture::tenant;

const NONE: Duration = Duration::ZERO;
const LEASE: Duration = Duration::from_secs(30);

struct Fixture {
    folder: TempDir,
    clock: Arc<ManualClock>,
    queue: Option<SqliteQueue>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(
            Timestamp::parse("2026-11-24T03:00:00Z").unwrap(),
        ));
        let mut this = Self {
            folder,
            clock,
            queue: None,
        };
        this.reopen();
        this
    }

    fn reopen(&mut self) {
        self.queue = None;
        self.queue = Some(self.another());
    }

    fn another(&self) -> SqliteQueue {
        let path = self.folder.path().join("audit.queue.db");
        SqliteQueue::with_clock(path, self.clock.clone()).unwrap()
    }

    fn queue(&self) -> &SqliteQueue {
        self.queue.as_ref().unwrap()
    }

    async fn send(&self, range: std::ops::Range<u128>) {
        let messages: Vec<Message> = range.map(message).collect();
        for answer in self.queue().send(&messages).await.unwrap() {
            answer.unwrap();
        }
    }

    async fn take(&self, max: usize) -> Vec<(String, u128, u32)> {
        let deliveries = self.queue().receive(max, NONE, LEASE).await.unwrap();
        deliveries
            .into_iter()
            .map(|d| (d.handle, number(&d.message), d.attempts))
            .collect()
    }

    async fn numbers(&self) -> Vec<u128> {
        self.take(1_000)
            .await
            .into_iter()
            .map(|(_, n, _)| n)
            .collect()
    }

    async fn depth(&self) -> (u64, u64, u64) {
        let QueueDepth {
            waiting,
            leased,
            dead,
        } = self.queue().depth().await.unwrap();
        (waiting, leased, dead)
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

#[tokio::test]
async fn messages_come_in_the_order_in_which_they_were_sent() {
    let fixture = Fixture::new();
    fixture.send(0..10).await;
    assert_eq!(fixture.depth().await, (10, 0, 0));
    let first = fixture.queue().receive(4, NONE, LEASE).await.unwrap();
    let messages: Vec<Message> = first.iter().map(|d| d.message.clone()).collect();
    assert_eq!(messages, (0..4).map(message).collect::<Vec<_>>());
    assert_eq!(fixture.depth().await, (6, 4, 0));
    assert_eq!(fixture.numbers().await, (4..10).collect::<Vec<_>>());
    assert_eq!(fixture.numbers().await, [0; 0]);
}

#[tokio::test]
async fn a_message_comes_again_when_its_lease_runs_out_and_old_handles_do_nothing() {
    let fixture = Fixture::new();
    fixture.send(0..3).await;
    let first = fixture.take(2).await;
    fixture.clock.advance_micros(29_999_999);
    assert_eq!(fixture.numbers().await, [2]);
    fixture.clock.advance_micros(1);
    assert_eq!(fixture.depth().await, (2, 1, 0));
    let again = fixture.take(10).await;
    assert_eq!(
        again
            .iter()
            .map(|(_, n, attempts)| (*n, *attempts))
            .collect::<Vec<_>>(),
        [(0, 2), (1, 2)]
    );
    let old = [first[0].0.clone(), "nonsense".into()];
    let answers = fixture.queue().ack(&old).await.unwrap();
    answers[0].as_ref().unwrap();
    assert_eq!(answers[1].as_ref().unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(fixture.depth().await, (0, 3, 0));
    let new: Vec<String> = again.into_iter().map(|(handle, _, _)| handle).collect();
    for _ in 0..2 {
        fixture
            .queue()
            .ack(&new)
            .await
            .unwrap()
            .into_iter()
            .for_each(|answer| answer.unwrap());
        assert_eq!(fixture.depth().await, (0, 1, 0));
    }
}

#[tokio::test]
async fn a_message_that_is_given_back_comes_after_its_delay() {
    let fixture = Fixture::new();
    fixture.send(0..2).await;
    let taken = fixture.take(2).await;
    fixture
        .queue()
        .retry(&[taken[0].0.clone()], Duration::from_secs(5))
        .await
        .unwrap();
    fixture
        .queue()
        .retry(&[taken[1].0.clone()], NONE)
        .await
        .unwrap();
    assert_eq!(fixture.depth().await, (2, 0, 0));
    assert_eq!(fixture.numbers().await, [1]);
    fixture.clock.advance_micros(5_000_000);
    assert_eq!(fixture.numbers().await, [0]);
}

#[tokio::test]
async fn dead_letters_are_kept_with_their_reason_until_they_are_sent_again() {
    let mut fixture = Fixture::new();
    fixture.send(0..4).await;
    let letters: Vec<(String, String)> = fixture
        .take(4)
        .await
        .into_iter()
        .map(|(handle, n, _)| (handle, format!("reason {n}")))
        .collect();
    fixture.queue().bury(&letters[..3]).await.unwrap();
    fixture.queue().bury(&letters[..1]).await.unwrap();
    assert_eq!(fixture.depth().await, (0, 1, 3));
    fixture.reopen();
    let dead = fixture.queue().dead_letters(2).await.unwrap();
    assert_eq!(
        dead.iter()
            .map(|d| (number(&d.message), &*d.reason))
            .collect::<Vec<_>>(),
        [(0, "reason 0"), (1, "reason 1")]
    );
    assert_eq!(
        dead[0].died_at,
        audit_core::Clock::now(fixture.clock.as_ref())
    );
    let named = Redrive::Only(vec![dead[1].handle.clone(), "none".into(), "77".into()]);
    assert_eq!(fixture.queue().redrive(&named).await.unwrap(), 1);
    assert_eq!(
        fixture
            .take(9)
            .await
            .iter()
            .map(|(_, n, a)| (*n, *a))
            .collect::<Vec<_>>(),
        [(1, 1)]
    );
    assert_eq!(fixture.queue().redrive(&Redrive::All).await.unwrap(), 2);
    assert_eq!(fixture.numbers().await, [0, 2]);
    assert_eq!(fixture.depth().await, (0, 4, 0));
}

#[tokio::test]
async fn what_was_sent_is_there_after_a_restart() {
    let mut fixture = Fixture::new();
    assert!(fixture.queue().is_durable());
    fixture.send(0..5).await;
    fixture.take(1).await;
    fixture.reopen();
    assert_eq!(fixture.depth().await, (4, 1, 0));
    assert_eq!(fixture.numbers().await, [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_without_its_neighbours() {
    let fixture = Fixture::new();
    let mut long = message(1);
    long.body = "x".repeat(Message::MAX_BODY + 1);
    let mut longest = message(2);
    longest.body = "x".repeat(Message::MAX_BODY);
    let answers = fixture
        .queue()
        .send(&[message(0), long, longest])
        .await
        .unwrap();
    assert_eq!(answers[1].as_ref().unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(fixture.numbers().await, [0, 2]);
    assert!(fixture.queue().send(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_receiver_that_waits_is_woken_by_this_process_and_finds_what_another_sends() {
    let fixture = Fixture::new();
    let other = fixture.another();
    for sender in [fixture.queue().clone(), other] {
        let queue = fixture.queue().clone();
        let waiting = tokio::spawn(async move {
            queue
                .receive(1, Duration::from_secs(20), LEASE)
                .await
                .unwrap()
                .len()
        });
        tokio::task::yield_now().await;
        sender.send(&[message(1)]).await.unwrap();
        assert_eq!(waiting.await.unwrap(), 1);
    }
}

#[tokio::test]
async fn no_message_is_given_to_two_receivers_at_once() {
    let fixture = Fixture::new();
    fixture.send(0..400).await;
    let receivers = (0..8).map(|i| {
        let queue = if i % 2 == 0 {
            fixture.queue().clone()
        } else {
            fixture.another()
        };
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

impl audit_conformance::EventQueueHarness for Fixture {
    type Queue = SqliteQueue;

    async fn open() -> Self {
        Self::new()
    }

    fn queue(&self) -> &SqliteQueue {
        self.queue.as_ref().unwrap()
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance_micros(time.as_micros() as i64);
    }

    async fn reopen(mut self) -> Option<Self> {
        Fixture::reopen(&mut self);
        Some(self)
    }
}

mod contract {
    audit_conformance::event_queue!(super::Fixture);
}
