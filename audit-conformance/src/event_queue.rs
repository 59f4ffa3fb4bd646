//! The contract of [`EventQueue`].

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use audit_core::{
    Clock as _, DeadLetter, Delivery, Error, ErrorKind, EventId, EventQueue, Message, MessageKind,
    QueueDepth, Redrive, SystemClock, TenantId, Verdict,
};
use tokio::time::Instant;

use crate::fixture::{By, DEADLINE, kind, tenant_id};

/// Opens a queue for a contract.
pub trait EventQueueHarness: Sized + Send + Sync + 'static {
    /// The queue, or a wrapper around one.
    type Queue: EventQueue;

    /// Opens a queue of this contract's own, empty.
    fn open() -> impl Future<Output = Self> + Send;

    /// The queue.
    fn queue(&self) -> &Self::Queue;

    /// Lets time pass for the queue. For one with a clock of a test's, move that clock.
    fn pass(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }

    /// Closes the queue as a crash would and opens it again; none when it keeps nothing, which a
    /// durable one may not say.
    fn reopen(self) -> impl Future<Output = Option<Self>> + Send {
        async { None }
    }
}

/// Longer than any contract takes.
const LONG: Duration = Duration::from_secs(300);
/// The shortest lease that every engine knows, and a little more than that.
const LEASE: Duration = Duration::from_secs(1);
const LEASE_OVER: Duration = Duration::from_millis(1_200);

fn message(tenant: TenantId, n: usize) -> Message {
    let kind = if n.is_multiple_of(2) {
        MessageKind::Ingest
    } else {
        MessageKind::Work
    };
    Message::new(
        tenant,
        kind,
        SystemClock.event_id(),
        format!("{{\"n\":{n},\"text\":\"a'b\\\\\"}}"),
    )
}

fn messages(n: usize) -> Vec<Message> {
    let tenants = [tenant_id(), tenant_id()];
    (0..n).map(|n| message(tenants[n % 2], n)).collect()
}

async fn send<Q: EventQueue>(queue: &Q, messages: &[Message]) {
    let outcomes = queue.send(messages).await.expect("outcomes");
    assert_eq!(outcomes.len(), messages.len());
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

/// Receives until there are `n`, under leases of `lease`.
async fn receive<Q: EventQueue>(queue: &Q, n: usize, lease: Duration) -> Vec<Delivery> {
    let deadline = Instant::now() + DEADLINE;
    let mut deliveries = Vec::new();
    while deliveries.len() < n {
        assert!(
            Instant::now() < deadline,
            "{} of {n} messages came",
            deliveries.len()
        );
        let wait = Duration::from_millis(500);
        let batch = queue
            .receive(n - deliveries.len(), wait, lease)
            .await
            .expect("deliveries");
        assert!(
            batch.len() <= n - deliveries.len(),
            "no more than were asked for"
        );
        deliveries.extend(batch);
    }
    deliveries
}

async fn assert_nothing_to_receive<Q: EventQueue>(queue: &Q) {
    let deliveries = queue
        .receive(10, Duration::ZERO, LONG)
        .await
        .expect("an answer");
    assert!(deliveries.is_empty(), "{deliveries:?}");
}

fn handles(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|d| d.handle.clone()).collect()
}

fn ids(deliveries: &[Delivery]) -> HashSet<EventId> {
    deliveries.iter().map(|d| d.message.id).collect()
}

fn assert_all_ok(outcomes: audit_core::Result<Vec<audit_core::Result<()>>>, n: usize) {
    let outcomes = outcomes.expect("outcomes");
    assert_eq!(outcomes.len(), n);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

/// Tenant, kind, id and body, each message once while its lease runs.
pub async fn what_is_sent_is_received_once_and_whole<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    let sent = messages(7);
    send(queue, &sent).await;
    let mut received = receive(queue, 7, LONG).await;
    assert!(received.iter().all(|d| d.attempts == 1));
    received.sort_by_key(|d| d.message.id);
    let mut expected = sent;
    expected.sort_by_key(|m| m.id);
    assert_eq!(
        received
            .iter()
            .map(|d| d.message.clone())
            .collect::<Vec<_>>(),
        expected
    );
    assert_eq!(
        handles(&received).into_iter().collect::<HashSet<_>>().len(),
        7
    );
    assert_nothing_to_receive(queue).await;
    assert!(queue.send(&[]).await.expect("outcomes").is_empty());
}

/// It never comes again.
pub async fn an_acknowledged_message_is_gone<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    send(queue, &messages(3)).await;
    let received = receive(queue, 3, LEASE).await;
    assert_all_ok(queue.ack(&handles(&received)).await, 3);
    harness.pass(LEASE_OVER).await;
    assert_nothing_to_receive(queue).await;
    assert_eq!(queue.depth().await.expect("a depth"), QueueDepth::default());
    assert!(queue.ack(&[]).await.expect("outcomes").is_empty());
}

/// A worker that dies loses nothing.
pub async fn a_lease_hides_a_message_and_its_end_brings_it_back<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    send(queue, &messages(2)).await;
    let first = receive(queue, 2, LEASE).await;
    assert_nothing_to_receive(queue).await;
    let depth = queue.depth().await.expect("a depth");
    assert_eq!((depth.waiting, depth.leased, depth.dead), (0, 2, 0));
    harness.pass(LEASE_OVER).await;
    let again = receive(queue, 2, LONG).await;
    assert_eq!(ids(&again), ids(&first));
    assert!(again.iter().all(|d| d.attempts == 2));
    assert_all_ok(queue.ack(&handles(&again)).await, 2);
    assert_eq!(queue.depth().await.expect("a depth"), QueueDepth::default());
}

/// While the work goes on; and whoever is done with it may still say so.
pub async fn an_extended_lease_hides_a_message_longer<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    send(queue, &messages(2)).await;
    let received = receive(queue, 2, LEASE).await;
    assert_all_ok(queue.extend(&handles(&received), LONG).await, 2);
    harness.pass(LEASE_OVER).await;
    assert_nothing_to_receive(queue).await;
    let depth = queue.depth().await.expect("a depth");
    assert_eq!((depth.waiting, depth.leased), (0, 2));
    assert_all_ok(queue.ack(&handles(&received)).await, 2);
    assert_all_ok(queue.extend(&handles(&received), LONG).await, 2);
    assert_eq!(queue.depth().await.expect("a depth"), QueueDepth::default());
    assert!(queue.extend(&[], LONG).await.expect("outcomes").is_empty());
}

/// Before its lease ends.
pub async fn a_message_given_back_is_delivered_again<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    send(queue, &messages(2)).await;
    let first = receive(queue, 2, LONG).await;
    assert_all_ok(queue.retry(&handles(&first), Duration::ZERO).await, 2);
    let depth = queue.depth().await.expect("a depth");
    assert_eq!((depth.waiting, depth.leased), (2, 0));
    let again = receive(queue, 2, LONG).await;
    assert_eq!(ids(&again), ids(&first));
    assert!(again.iter().all(|d| d.attempts == 2));
}

/// Not before its time.
pub async fn a_delayed_retry_comes_later<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    send(queue, &messages(1)).await;
    let first = receive(queue, 1, LONG).await;
    assert_all_ok(queue.retry(&handles(&first), LEASE).await, 1);
    assert_nothing_to_receive(queue).await;
    harness.pass(LEASE_OVER).await;
    assert_eq!(ids(&receive(queue, 1, LONG).await), ids(&first));
}

/// With its reason and its message, oldest first, until somebody redrives it.
pub async fn a_buried_message_is_a_dead_letter<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    let sent = messages(3);
    for message in &sent {
        send(queue, std::slice::from_ref(message)).await;
        let received = receive(queue, 1, LEASE).await;
        let letter = (
            received[0].handle.clone(),
            format!("no such tenant: {}", message.tenant),
        );
        assert_all_ok(queue.bury(&[letter]).await, 1);
    }
    harness.pass(LEASE_OVER).await;
    assert_nothing_to_receive(queue).await;
    let dead = queue.dead_letters(10).await.expect("dead letters");
    assert_eq!(
        dead.iter().map(|d| d.message.clone()).collect::<Vec<_>>(),
        sent
    );
    for letter in &dead {
        assert_eq!(
            letter.reason,
            format!("no such tenant: {}", letter.message.tenant)
        );
    }
    assert_eq!(
        queue.dead_letters(2).await.expect("dead letters"),
        dead[..2]
    );
    let depth = queue.depth().await.expect("a depth");
    assert_eq!((depth.waiting, depth.leased, depth.dead), (0, 0, 3));
}

/// The ones that are named, or all.
pub async fn dead_letters_are_redriven<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    send(queue, &messages(4)).await;
    let received = receive(queue, 4, LONG).await;
    let letters: Vec<_> = handles(&received)
        .into_iter()
        .map(|h| (h, "bad".to_owned()))
        .collect();
    assert_all_ok(queue.bury(&letters).await, 4);
    let dead = queue.dead_letters(10).await.expect("dead letters");
    let one = vec![dead[1].handle.clone()];
    assert_eq!(
        queue.redrive(&Redrive::Only(one)).await.expect("redriven"),
        1
    );
    let again = receive(queue, 1, LONG).await;
    assert_eq!(again[0].message, dead[1].message);
    // Done with, or a queue that keeps the order of each tenant would hold back what follows it.
    assert_all_ok(queue.ack(&handles(&again)).await, 1);
    assert_eq!(
        queue
            .redrive(&Redrive::Only(vec!["unknown".into()]))
            .await
            .expect("redriven"),
        0
    );
    assert_eq!(
        queue
            .redrive(&Redrive::Only(vec![]))
            .await
            .expect("redriven"),
        0
    );
    assert_eq!(queue.redrive(&Redrive::All).await.expect("redriven"), 3);
    assert!(
        queue
            .dead_letters(10)
            .await
            .expect("dead letters")
            .is_empty()
    );
    let rest = receive(queue, 3, LONG).await;
    assert_eq!(
        rest.len() + again.len(),
        ids(&rest).union(&ids(&again)).count()
    );
    assert_eq!(queue.redrive(&Redrive::All).await.expect("redriven"), 0);
}

/// Removed or left alone, as the sieve says.
pub async fn dead_letters_are_sifted<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    let sent: Vec<Message> = (0..4).map(|n| message(tenant_id(), n)).collect();
    bury_all(queue, &sent).await;
    let removed = sent[0].id;
    // What is shown, but for the handles.
    let kept = |letters: Vec<DeadLetter>| {
        let letters = letters.into_iter().filter(|l| l.message.id != removed);
        let mut told: Vec<_> = letters.map(|l| (l.message, l.reason, l.died_at)).collect();
        told.sort_by_key(|(message, ..)| message.id);
        told
    };
    let before = kept(queue.dead_letters(10).await.expect("dead letters"));
    let sieve = By::new(move |id| match id == removed {
        true => Ok(Verdict::Remove),
        false => Ok(Verdict::Keep),
    });
    assert_eq!(queue.sift(sieve).await.expect("sifted"), 1);
    let after = queue.dead_letters(10).await.expect("dead letters");
    assert_eq!((after.len(), kept(after)), (3, before));
    let none = By::new(|_| Ok(Verdict::Keep));
    assert_eq!(queue.sift(none.clone()).await.expect("sifted"), 0);
    let shown: HashSet<EventId> = none.shown.lock().expect("no panic").drain(..).collect();
    assert_eq!(shown, sent[1..].iter().map(|message| message.id).collect());
    assert_eq!(queue.redrive(&Redrive::All).await.expect("redriven"), 3);
    let again = receive(queue, 3, LONG).await;
    assert_eq!(ids(&again), shown);
    assert_eq!(queue.sift(none).await.expect("sifted"), 0);
}

/// However many they are; and a sieve that fails leaves them as they are.
pub async fn every_dead_letter_is_sifted<H: EventQueueHarness>() {
    const LETTERS: usize = 230;
    let harness = H::open().await;
    let queue = harness.queue();
    // Of as many tenants: an engine that keeps the order of each may hold back what comes later.
    let sent: Vec<Message> = (0..LETTERS).map(|n| message(tenant_id(), n)).collect();
    bury_all(queue, &sent).await;
    let failing = By::new(|_| Err(Error::new(ErrorKind::Unavailable, "not now")));
    assert_eq!(
        kind(queue.sift(failing).await),
        Some(ErrorKind::Unavailable)
    );
    let all: HashSet<EventId> = sent.iter().map(|message| message.id).collect();
    let sieve = By::new(|_| Ok(Verdict::Remove));
    let count = queue.sift(sieve.clone()).await.expect("sifted");
    assert_eq!(count, LETTERS as u64);
    let shown = std::mem::take(&mut *sieve.shown.lock().expect("no panic"));
    assert_eq!(shown.len(), LETTERS);
    assert_eq!(shown.into_iter().collect::<HashSet<_>>(), all);
    assert!(queue.dead_letters(10).await.expect("none").is_empty());
}

async fn bury_all<Q: EventQueue>(queue: &Q, sent: &[Message]) {
    send(queue, sent).await;
    let received = receive(queue, sent.len(), LONG).await;
    let letter = |handle| (handle, "bad".to_owned());
    let letters: Vec<_> = handles(&received).into_iter().map(letter).collect();
    assert_all_ok(queue.bury(&letters).await, sent.len());
}

/// The others of the batch are sent.
pub async fn a_body_that_is_too_long_fails_alone<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    let mut batch = messages(3);
    batch[1].body = "x".repeat(Message::MAX_BODY + 1);
    let outcomes = queue.send(&batch).await.expect("outcomes");
    let kinds: Vec<_> = outcomes.into_iter().map(kind).collect();
    assert_eq!(kinds, [None, Some(ErrorKind::Invalid), None]);
    assert_eq!(
        ids(&receive(queue, 2, LONG).await),
        [batch[0].id, batch[2].id].into()
    );
    assert_nothing_to_receive(queue).await;
    batch[1].body = "x".repeat(Message::MAX_BODY);
    send(queue, &batch[1..2]).await;
    assert_eq!(
        receive(queue, 1, LONG).await[0].message.body.len(),
        Message::MAX_BODY
    );
}

/// A worker can poll, and shut down.
pub async fn an_empty_queue_answers_within_the_wait<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    let start = Instant::now();
    assert!(
        queue
            .receive(10, Duration::from_millis(50), LONG)
            .await
            .expect("none")
            .is_empty()
    );
    assert!(start.elapsed() < DEADLINE);
    assert!(queue.dead_letters(10).await.expect("none").is_empty());
    assert_eq!(queue.depth().await.expect("a depth"), QueueDepth::default());
}

/// What is sent while somebody waits is received by that very call, or the next.
pub async fn a_waiting_receiver_is_woken<H: EventQueueHarness>() {
    let harness = Arc::new(H::open().await);
    let receiver = {
        let harness = harness.clone();
        tokio::spawn(async move { receive(harness.queue(), 1, LONG).await })
    };
    tokio::task::yield_now().await;
    let sent = messages(1);
    send(harness.queue(), &sent).await;
    assert_eq!(receiver.await.expect("a receiver")[0].message, sent[0]);
}

/// Who was too slow does no harm: another has the message now.
pub async fn a_lost_handle_is_no_error<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    send(queue, &messages(1)).await;
    let slow = receive(queue, 1, LEASE).await;
    harness.pass(LEASE_OVER).await;
    let other = receive(queue, 1, LONG).await;
    assert_all_ok(queue.retry(&handles(&slow), Duration::ZERO).await, 1);
    assert_nothing_to_receive(queue).await;
    assert_all_ok(queue.ack(&handles(&other)).await, 1);
    assert_all_ok(queue.ack(&handles(&other)).await, 1);
    assert_all_ok(queue.ack(&handles(&slow)).await, 1);
    assert_eq!(queue.depth().await.expect("a depth"), QueueDepth::default());
}

/// An engine's own limits are the queue's to know.
pub async fn large_batches_are_cut_by_the_queue<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    // Of as many tenants: an engine that keeps the order of each may hold back what comes later.
    let mut sent: Vec<Message> = (0..120).map(|n| message(tenant_id(), n)).collect();
    for message in sent.iter_mut().step_by(40) {
        message.body = "y".repeat(200_000);
    }
    send(queue, &sent).await;
    let received = receive(queue, 120, LONG).await;
    assert_eq!(ids(&received), sent.iter().map(|m| m.id).collect());
    assert_all_ok(queue.retry(&handles(&received), Duration::ZERO).await, 120);
    let received = receive(queue, 120, LONG).await;
    assert_all_ok(queue.ack(&handles(&received)).await, 120);
    assert_nothing_to_receive(queue).await;
}

/// Each message goes to one of them.
pub async fn concurrent_receivers_share_the_messages<H: EventQueueHarness>() {
    let harness = Arc::new(H::open().await);
    let sent = messages(60);
    send(harness.queue(), &sent).await;
    let receivers: Vec<_> = (0..6)
        .map(|_| {
            let harness = harness.clone();
            tokio::spawn(async move {
                let mut own = Vec::new();
                loop {
                    let wait = Duration::from_millis(100);
                    let some = harness
                        .queue()
                        .receive(4, wait, LONG)
                        .await
                        .expect("deliveries");
                    if some.is_empty() {
                        return own;
                    }
                    assert_all_ok(harness.queue().ack(&handles(&some)).await, some.len());
                    own.extend(some.into_iter().map(|d| d.message.id));
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    for receiver in receivers {
        all.extend(receiver.await.expect("a receiver"));
    }
    assert_eq!(all.len(), 60);
    assert_eq!(
        all.into_iter().collect::<HashSet<_>>(),
        sent.iter().map(|m| m.id).collect()
    );
}

/// Messages, leases' ends and dead letters alike.
pub async fn a_durable_queue_survives_a_reopen<H: EventQueueHarness>() {
    let harness = H::open().await;
    let durable = harness.queue().is_durable();
    let sent = messages(3);
    send(harness.queue(), &sent).await;
    let received = receive(harness.queue(), 2, LEASE).await;
    let letter = (received[0].handle.clone(), "bad".to_owned());
    assert_all_ok(harness.queue().bury(&[letter]).await, 1);
    let Some(harness) = harness.reopen().await else {
        assert!(!durable, "a durable queue can be opened again");
        return;
    };
    let dead = harness
        .queue()
        .dead_letters(10)
        .await
        .expect("dead letters");
    assert_eq!(dead.len(), 1);
    harness.pass(LEASE_OVER).await;
    let mut left = ids(&receive(harness.queue(), 2, LONG).await);
    left.insert(dead[0].message.id);
    assert_eq!(left, sent.iter().map(|m| m.id).collect());
}

/// Whatever a caller says, an engine knows what it can do.
pub async fn waits_leases_and_delays_are_clamped<H: EventQueueHarness>() {
    let harness = H::open().await;
    let queue = harness.queue();
    send(queue, &messages(1)).await;
    let received = queue
        .receive(1, Duration::MAX, Duration::MAX)
        .await
        .expect("a delivery");
    let handles: Vec<String> = received.into_iter().map(|d| d.handle).collect();
    assert_eq!(handles.len(), 1);
    let given_back = queue
        .retry(&handles, Duration::MAX)
        .await
        .expect("outcomes");
    assert!(given_back.iter().all(Result::is_ok), "{given_back:?}");
    assert_eq!(queue.depth().await.expect("a depth").waiting, 1);
}
