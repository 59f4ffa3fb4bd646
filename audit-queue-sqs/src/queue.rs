//! The queue.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::{
    DeadLetter, Delivery, Error, EventQueue, Message, QueueDepth, Redrive, Result, Sieve,
};
use aws_sdk_sqs::types::{Message as Received, QueueAttributeName};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

use crate::api::{Api, BATCH, LONGEST_LEASE, LONGEST_WAIT, Receive, cut};
use crate::create::create;
use crate::dead::DeadLetters;
use crate::facts::Pair;
use crate::fault::from_call;
use crate::held::Held;
use crate::message::{Outgoing, ROOM, attempts, read};
use crate::options::SqsOptions;
use crate::send::{Lanes, no_turn};

/// The most messages of one call of `receive`.
const MAX_RECEIVED: usize = 1_000;
/// No further receive joins a call when those so far lead one to expect this many bytes of bodies.
const MAX_BYTES: usize = 8 << 20;

/// A queue on Amazon SQS, with its dead-letter queue.
///
/// Messages of sends that wait at the same time go to SQS together, up to ten and up to
/// [`SqsOptions::batch_bytes`]. On a FIFO queue each tenant's are sent in the order in which `send`
/// was called, and delivered in the order in which they were sent; a message that is given back
/// holds up those of its tenant behind it until it is settled, but for the up to nine that were
/// delivered together with it. On a standard queue they come in any order, and now and then twice.
///
/// A handle is SQS's receipt handle, and good in any process, save for
/// [`bury`](EventQueue::bury): only the process that received a message has it still.
pub struct SqsQueue {
    options: SqsOptions,
    url: Arc<str>,
    fifo: bool,
    api: Api,
    known: OnceCell<Known>,
    /// Once the queue keeps messages for long enough.
    trusted: OnceCell<()>,
    lanes: OnceLock<Lanes>,
    held: Mutex<Held>,
    dropped: AtomicU64,
}

/// What has to be asked of the queue before it is used.
#[derive(Debug)]
struct Known {
    /// The most bytes of a message, and of a dead letter.
    message_bytes: usize,
    letter_bytes: usize,
    dead: DeadLetters,
}

impl fmt::Debug for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsQueue")
            .field("url", &self.url)
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

impl SqsQueue {
    /// Makes a client of the queue, and doesn't talk to SQS yet: a server starts while it is away.
    ///
    /// # Errors
    /// [`Refused`](audit_core::ErrorKind::Refused) when no region is known, or for a file of
    /// certificates that can't be used.
    pub async fn open(options: SqsOptions) -> Result<Self> {
        Ok(Self {
            api: Api::open(&options).await?,
            url: Arc::from(options.url.as_str()),
            fifo: options.is_fifo(),
            options,
            known: OnceCell::new(),
            trusted: OnceCell::new(),
            lanes: OnceLock::new(),
            held: Mutex::default(),
            dropped: AtomicU64::new(0),
        })
    }

    /// Makes the queue and its dead-letter queue where they are missing, and gives the queue a
    /// redrive policy where it has none. What is there already is left as it is; doing it twice, or
    /// in two processes at once, is harmless.
    ///
    /// A new queue keeps messages for 14 days, is encrypted with SQS's own key, and is a FIFO queue
    /// where the name ends in `.fifo`: with high throughput, so that its limits count by tenant. The
    /// dead-letter queue of `audit` is `audit-dead`, that of `audit.fifo` is `audit-dead.fifo`.
    ///
    /// # Errors
    /// [`Unavailable`](audit_core::ErrorKind::Unavailable), with SQS's code where it answered.
    pub async fn create(&self) -> Result<()> {
        create(&self.api, &self.options).await
    }

    /// Asks whether the queue is there and can be used.
    ///
    /// # Errors
    /// [`Unavailable`](audit_core::ErrorKind::Unavailable) when SQS can't be reached, when the queue
    /// is missing, has no dead-letter queue, or keeps messages for too short a time. The message says
    /// which, and what to do about it.
    pub async fn check(&self) -> Result<()> {
        self.depth().await?;
        self.trust().await
    }

    async fn known(&self) -> Result<&Known> {
        self.known
            .get_or_try_init(|| async {
                let pair = Pair::ask(&self.api, &self.options).await?;
                pair.warn(&self.url);
                Ok(Known {
                    message_bytes: pair.queue.message_bytes.min(pair.dead.message_bytes),
                    letter_bytes: pair.dead.message_bytes,
                    dead: DeadLetters::new(self.api.clone(), Arc::from(pair.dead_url)),
                })
            })
            .await
    }

    /// Whether the queue keeps events for long enough; asked again until it does.
    async fn trust(&self) -> Result<()> {
        self.trusted
            .get_or_try_init(|| async {
                let pair = Pair::ask(&self.api, &self.options).await?;
                pair.check_retention(&self.url)
            })
            .await
            .copied()
    }

    fn lanes(&self) -> &Lanes {
        self.lanes.get_or_init(|| {
            let (lanes, bytes) = (self.options.sends, self.options.batch_bytes);
            Lanes::start(&self.api, &self.url, lanes, bytes, self.fifo)
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call.
    async fn receive_some(&self, max: usize, wait: u64, lease: u64) -> Result<Vec<Received>> {
        let attempt = self.fifo.then(|| self.options.clock.event_id().to_string());
        let receive = Receive {
            max,
            wait,
            lease,
            attempt,
        };
        self.api.receive(&self.url, &receive).await
    }

    /// Keeps what was received, and removes what this crate can't have sent.
    async fn take(&self, received: Vec<Received>, lease: u64) -> Vec<Delivery> {
        let mut deliveries = Vec::with_capacity(received.len());
        let mut held = Vec::with_capacity(received.len());
        let mut foreign = Vec::new();
        for received in received {
            let Some(receipt) = received.receipt_handle().map(str::to_owned) else {
                continue;
            };
            match read(&received) {
                Some(message) => {
                    let id = received.message_id().unwrap_or(&receipt).to_owned();
                    held.push((receipt.clone(), id, message.clone()));
                    deliveries.push(Delivery::new(receipt, message, attempts(&received)));
                }
                None => {
                    tracing::warn!(
                        queue = &*self.url,
                        message = received.message_id(),
                        "dropped a message that has no tenant, kind or id"
                    );
                    foreign.push(receipt);
                }
            }
        }
        self.held().add(held, lease);
        // One that could not be removed comes again, and is counted then.
        let removed = self.api.delete(&self.url, &foreign).await;
        let removed = removed.iter().filter(|outcome| outcome.is_ok()).count();
        self.dropped.fetch_add(removed as u64, Ordering::Relaxed);
        deliveries
    }

    async fn counts(&self, url: &str) -> Result<(u64, u64)> {
        let answer = self
            .api
            .client()
            .get_queue_attributes()
            .queue_url(url)
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessages)
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessagesDelayed)
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessagesNotVisible)
            .send()
            .await
            .map_err(|error| from_call("GetQueueAttributes", url, error))?;
        let count = |name: QueueAttributeName| -> u64 {
            answer
                .attributes()
                .and_then(|attributes| attributes.get(&name))
                .and_then(|count| count.parse().ok())
                .unwrap_or(0)
        };
        Ok((
            count(QueueAttributeName::ApproximateNumberOfMessages)
                + count(QueueAttributeName::ApproximateNumberOfMessagesDelayed),
            count(QueueAttributeName::ApproximateNumberOfMessagesNotVisible),
        ))
    }
}

/// Whole seconds, rounded up: a lease is no shorter than was asked for.
fn seconds(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_add(u64::from(duration.subsec_nanos() > 0))
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl EventQueue for SqsQueue {
    fn is_durable(&self) -> bool {
        true
    }

    /// On a FIFO queue a message of a call is not sent when an earlier one of the same tenant failed
    /// in a batch before, so that it doesn't overtake it. Within a batch of ten SQS itself may take a
    /// later one of those and not an earlier.
    ///
    /// It is answered within twice [`SqsOptions::timeout`]: what waited that long for its turn was not
    /// sent, and what was under way may have been.
    ///
    /// # Errors
    /// [`Invalid`](audit_core::ErrorKind::Invalid) naming `body` for an item that is empty, not
    /// ASCII, or longer than the queue takes. [`Unavailable`](audit_core::ErrorKind::Unavailable)
    /// for one that may be sent again, and for all while the queue keeps messages for too short a
    /// time.
    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let turn = Instant::now() + self.options.timeout;
        let ready = async {
            let known = self.known().await?;
            self.trust().await.map(|()| known.message_bytes)
        };
        let most = timeout_at(turn, ready)
            .await
            .unwrap_or_else(|_| Err(no_turn()))?;
        let outgoing = messages
            .iter()
            .map(|message| (message.tenant, fit(message, most, self.fifo)))
            .collect();
        let outcomes = self
            .lanes()
            .send(outgoing, turn, turn + self.options.timeout)
            .await;
        Ok(messages
            .iter()
            .zip(outcomes)
            .map(|(message, outcome)| outcome.map_err(|error| error.with_event_id(message.id)))
            .collect())
    }

    /// `max` is at most 1,000. The wait is at most 20 s, the lease at most 12 hours and at least a
    /// second; both are whole seconds, rounded up. An empty answer costs one call, however much was
    /// asked for.
    async fn receive(&self, max: usize, wait: Duration, lease: Duration) -> Result<Vec<Delivery>> {
        let max = max.min(MAX_RECEIVED);
        if max == 0 {
            return Ok(Vec::new());
        }
        let wait = seconds(wait).min(LONGEST_WAIT);
        let lease = seconds(lease).clamp(1, LONGEST_LEASE);
        let mut received = self.receive_some(max.min(BATCH), wait, lease).await?;
        // A full answer says that there may be more.
        if received.len() == BATCH && max > BATCH {
            let bytes: usize = received.iter().filter_map(|r| r.body()).map(str::len).sum();
            let calls = (max / BATCH - 1).min(MAX_BYTES / bytes.max(1));
            let rest = max % BATCH;
            let sizes = (0..calls)
                .map(|_| BATCH)
                .chain((rest > 0 && bytes < MAX_BYTES).then_some(rest));
            let calls: Vec<_> = sizes
                .map(|size| self.receive_some(size, 0, lease).boxed())
                .collect();
            let mut more = stream::iter(calls).buffer_unordered(self.options.receives);
            while let Some(some) = more.next().await {
                match some {
                    Ok(some) => received.extend(some),
                    // What was received counts; a fault that lasts is the next call's answer.
                    Err(error) => tracing::debug!(%error, "a further receive failed"),
                }
            }
        }
        Ok(self.take(received, lease).await)
    }

    async fn ack(&self, handles: &[String]) -> Result<Vec<Result<()>>> {
        let outcomes = self.api.delete(&self.url, handles).await;
        let mut held = self.held();
        for (handle, outcome) in handles.iter().zip(&outcomes) {
            if outcome.is_ok() {
                held.remove(handle);
            }
        }
        drop(held);
        Ok(outcomes)
    }

    /// The delay is in whole seconds, rounded up, and ends at the latest 12 hours after the message
    /// was received.
    async fn retry(&self, handles: &[String], delay: Duration) -> Result<Vec<Result<()>>> {
        let delay = seconds(delay).min(LONGEST_LEASE);
        let given_back: Vec<_> = {
            let mut held = self.held();
            let back = |handle: &String| (handle.clone(), held.give_back(handle, delay));
            handles.iter().map(back).collect()
        };
        Ok(self.api.hide(&self.url, &given_back).await)
    }

    /// The lease is in whole seconds, rounded up, and ends at the latest 12 hours after the message
    /// was received.
    async fn extend(&self, handles: &[String], lease: Duration) -> Result<Vec<Result<()>>> {
        let lease = seconds(lease).clamp(1, LONGEST_LEASE);
        let extended: Vec<_> = {
            let mut held = self.held();
            let longer = |handle: &String| (handle.clone(), held.extend(handle, lease));
            handles.iter().map(longer).collect()
        };
        Ok(self.api.hide(&self.url, &extended).await)
    }

    /// The message goes to the dead-letter queue and is then removed: a crash in between leaves it in
    /// both. Of a message whose lease was lost nothing happens: it is delivered again. A reason is
    /// cut at 1,000 characters, and at what the dead-letter queue takes; those that SQS refuses are
    /// replaced.
    async fn bury(&self, letters: &[(String, String)]) -> Result<Vec<Result<()>>> {
        if letters.is_empty() {
            return Ok(Vec::new());
        }
        let known = self.known().await?;
        let dead = &known.dead.url;
        let died_at = self.options.clock.now();
        let mut outcomes: Vec<Result<()>> = vec![Ok(()); letters.len()];
        let mut places = Vec::new();
        let mut outgoing = Vec::new();
        for (place, (handle, reason)) in letters.iter().enumerate() {
            if let Some(lease) = self.held().get(handle) {
                places.push(place);
                outgoing.push(Outgoing::dead(
                    &lease.message,
                    &lease.id,
                    self.fifo,
                    reason,
                    died_at,
                    known.letter_bytes,
                ));
            }
        }
        let mut sent = Vec::with_capacity(outgoing.len());
        for batch in cut(&outgoing, self.options.batch_bytes) {
            sent.extend(self.api.send(dead, &batch).await);
        }
        let mut done = Vec::new();
        for (place, outcome) in places.into_iter().zip(sent) {
            match outcome {
                Ok(()) => done.push(place),
                error => outcomes[place] = error,
            }
        }
        let handles: Vec<String> = done.iter().map(|i| letters[*i].0.clone()).collect();
        for (place, outcome) in done.into_iter().zip(self.ack(&handles).await?) {
            outcomes[place] = outcome;
        }
        Ok(outcomes)
    }

    /// The oldest of up to 1,000 letters, or of as many as `limit` says, up to 10,000: SQS has no
    /// way to look at messages but to receive them, and they are given back after. While somebody
    /// else looks, or after a crash for a minute, they don't show. A letter that SQS moved from a
    /// FIFO queue by itself shows only when it is among its tenant's first ten such.
    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        self.known().await?.dead.oldest(limit).await
    }

    /// Each is sent to the queue and then removed: an error or a crash in between leaves it in both.
    /// What dies after this has begun is left alone.
    async fn redrive(&self, letters: &Redrive<String>) -> Result<u64> {
        let dead = &self.known().await?.dead;
        let now = self.options.clock.now();
        let bytes = self.options.batch_bytes;
        dead.redrive(&self.url, letters, now, self.fifo, bytes)
            .await
    }

    /// What another process looks at in the same minute is passed over, and of the letters that SQS moved from a
    /// FIFO queue by itself those that don't [show](EventQueue::dead_letters).
    async fn sift(&self, sieve: Arc<dyn Sieve<DeadLetter>>) -> Result<u64> {
        self.known().await?.dead.sift(&*sieve).await
    }

    /// Those without a tenant, kind or id.
    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// What SQS says, and AWS says only roughly, and up to a minute late. Of messages that wait for
    /// the end of a delay only those that this process gave back are told from leased ones.
    async fn depth(&self) -> Result<QueueDepth> {
        let dead = &self.known().await?.dead.url;
        let (queue, dead) = futures_util::join!(self.counts(&self.url), self.counts(dead));
        let ((ready, hidden), (dead, looked_at)) = (queue?, dead?);
        let delayed = self.held().delayed().min(hidden);
        Ok(QueueDepth {
            waiting: ready + delayed,
            leased: hidden - delayed,
            dead: dead + looked_at,
        })
    }
}

/// The message as it is sent, if the queue may take it.
fn fit(message: &Message, most: usize, fifo: bool) -> Result<Outgoing> {
    message.check()?;
    let refuse = |detail: String| Error::field("body", detail).with_event_id(message.id);
    if message.body.is_empty() || !message.body.is_ascii() {
        return Err(refuse("must be ASCII text, and not empty".into()));
    }
    let outgoing = Outgoing::new(message, fifo);
    match (outgoing.size(), most.saturating_sub(ROOM)) {
        (bytes, most) if bytes > most => Err(refuse(format!(
            "has {bytes} bytes with its attributes, and the queue takes {most}"
        ))),
        _ => Ok(outgoing),
    }
}

#[cfg(test)]
mod tests {
    use audit_core::{ErrorKind, MessageKind};

    use super::*;

    #[test]
    fn a_message_that_the_queue_would_not_take_is_refused_before() {
        let id = "0190a000-0000-7000-8000-000000000001";
        let message = |body: String| {
            let (tenant, id) = (id.parse().unwrap(), id.parse().unwrap());
            Message::new(tenant, MessageKind::Ingest, id, body)
        };
        let overhead = Outgoing::new(&message(String::new()), true).size();
        let takes = 256 * 1024;
        let most = takes - ROOM;
        fit(&message("x".repeat(most - overhead)), takes, true).unwrap();
        for body in [
            "x".repeat(most - overhead + 1),
            "x".repeat(Message::MAX_BODY + 1),
            String::new(),
            "é".into(),
        ] {
            let error = fit(&message(body), takes, true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert_eq!(error.fields()[0].field, "body");
            assert!(error.event_id().is_some());
        }
    }
}
