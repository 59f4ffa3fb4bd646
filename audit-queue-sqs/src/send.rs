//! Sends that wait together go together.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use audit_core::{Error, ErrorKind, Result, TenantId};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::api::{Api, BATCH};
use crate::message::Outgoing;

/// Messages that may wait for a lane before senders do.
const WAITING: usize = 512;
/// Their bytes, and those under way.
const WAITING_BYTES: usize = 32 << 20;

/// For how long a lane lets a batch fill while other calls are under way.
const GATHER: Duration = Duration::from_millis(3);

/// The lanes on which messages are sent, each one call at a time.
///
/// A lane takes what waits, up to a batch. While no call is under way it never waits for more, so that
/// a single message goes at once; else it does for a moment, since senders that were answered together
/// send again together, and ten calls of one message cost ten times as much as one of ten. On a
/// standard queue all lanes take from one line. On a FIFO queue each has its own, and a tenant's messages are always on the
/// same one, so that they are sent in the order in which they came.
#[derive(Debug)]
pub(crate) struct Lanes {
    lines: Vec<mpsc::Sender<Item>>,
    room: Arc<Semaphore>,
    ordered: bool,
}

struct Item {
    message: Outgoing,
    size: usize,
    /// Set when an earlier message of the same tenant and the same call wasn't sent: then this one
    /// must not overtake it. Only where order is kept.
    overtakes: Option<Arc<AtomicBool>>,
    /// When the sender gives up waiting for its turn.
    turn: Instant,
    answer: oneshot::Sender<Result<()>>,
    _room: OwnedSemaphorePermit,
}

impl Item {
    fn is_held_back(&self) -> bool {
        let flag = self.overtakes.as_ref();
        flag.is_some_and(|flag| flag.load(Ordering::Acquire))
    }

    /// Answers, and holds back what follows it when it may be sent again.
    fn settle(self, outcome: Result<()>) {
        if let (Err(error), Some(flag)) = (&outcome, &self.overtakes)
            && error.is_retryable()
        {
            flag.store(true, Ordering::Release);
        }
        // Nobody may be waiting any more.
        drop(self.answer.send(outcome));
    }
}

impl Lanes {
    /// Starts `lanes` tasks, which end when this is dropped and what waits has been sent.
    pub(crate) fn start(
        api: &Api,
        url: &Arc<str>,
        lanes: usize,
        batch_bytes: usize,
        fifo: bool,
    ) -> Self {
        let mut senders = Vec::new();
        let mut line = None;
        let calls = Arc::new(AtomicUsize::new(0));
        for _ in 0..lanes {
            if fifo || line.is_none() {
                let (sender, receiver) = mpsc::channel(WAITING);
                senders.push(sender);
                line = Some(Arc::new(Mutex::new(Line {
                    receiver,
                    next: None,
                })));
            }
            if let Some(line) = &line {
                let (api, url, line) = (api.clone(), Arc::clone(url), Arc::clone(line));
                let calls = Arc::clone(&calls);
                tokio::spawn(async move {
                    loop {
                        let batch = line.lock().await.take(batch_bytes, &calls).await;
                        if batch.is_empty() {
                            return;
                        }
                        calls.fetch_add(1, Ordering::Relaxed);
                        send(&api, &url, batch).await;
                        calls.fetch_sub(1, Ordering::Relaxed);
                    }
                });
            }
        }
        Self {
            lines: senders,
            room: Arc::new(Semaphore::new(WAITING_BYTES)),
            ordered: fifo,
        }
    }

    /// Sends what is good of these, and answers each in its place. What has no turn by `turn` is not
    /// sent, and what has no answer by `end` may have been.
    pub(crate) async fn send(
        &self,
        messages: Vec<(TenantId, Result<Outgoing>)>,
        turn: Instant,
        end: Instant,
    ) -> Vec<Result<()>> {
        let mut flags: HashMap<TenantId, Arc<AtomicBool>> = HashMap::new();
        let mut answers = Vec::with_capacity(messages.len());
        for (tenant, message) in messages {
            let overtakes = self
                .ordered
                .then(|| Arc::clone(flags.entry(tenant).or_default()));
            answers.push(match message {
                Ok(message) => {
                    let lined_up = self.line_up(tenant, message, overtakes, turn);
                    timeout_at(turn, lined_up)
                        .await
                        .unwrap_or_else(|_| Err(no_turn()))
                }
                Err(error) => Err(error),
            });
        }
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(match answer {
                Ok(answer) => match timeout_at(end, answer).await {
                    Ok(answer) => answer.unwrap_or_else(|_| Err(gone())),
                    Err(_) => Err(unknown()),
                },
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    async fn line_up(
        &self,
        tenant: TenantId,
        message: Outgoing,
        overtakes: Option<Arc<AtomicBool>>,
        turn: Instant,
    ) -> Result<oneshot::Receiver<Result<()>>> {
        let size = message.size();
        let permits = u32::try_from(size.min(WAITING_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(permits);
        let (answer, receiver) = oneshot::channel();
        let item = Item {
            message,
            size,
            overtakes,
            turn,
            answer,
            _room: room.await.map_err(|_| gone())?,
        };
        let line = &self.lines[lane_of(tenant, self.lines.len())];
        line.send(item).await.map_err(|_| gone())?;
        Ok(receiver)
    }
}

fn lane_of(tenant: TenantId, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    tenant.hash(&mut hasher);
    (hasher.finish() % lanes as u64) as usize
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "the queue was closed meanwhile")
}

pub(crate) fn no_turn() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "not sent: too many messages wait for SQS, which is slow or away",
    )
}

fn unknown() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "SQS did not answer in time; the message may have been sent",
    )
}

/// What waits for a lane.
struct Line {
    receiver: mpsc::Receiver<Item>,
    /// Taken already, and too large for the batch that was taken last.
    next: Option<Item>,
}

impl Line {
    /// The next batch, which may fill for a moment while there are calls under way; an empty one at
    /// the end.
    async fn take(&mut self, bytes: usize, calls: &AtomicUsize) -> Vec<Item> {
        let first = match self.next.take() {
            Some(item) => item,
            None => match self.receiver.recv().await {
                Some(item) => item,
                None => return Vec::new(),
            },
        };
        let mut total = first.size;
        let mut batch = vec![first];
        let gathered = match calls.load(Ordering::Relaxed) {
            0 => None,
            _ => Some(Instant::now() + GATHER),
        };
        while batch.len() < BATCH
            && let Some(item) = self.more(gathered).await
        {
            total += item.size;
            if total > bytes {
                self.next = Some(item);
                break;
            }
            batch.push(item);
        }
        batch
    }

    /// One more, if there is one, or there is one until then.
    async fn more(&mut self, until: Option<Instant>) -> Option<Item> {
        match (self.receiver.try_recv(), until) {
            (Ok(item), _) => Some(item),
            (Err(_), None) => None,
            (Err(_), Some(until)) => timeout_at(until, self.receiver.recv()).await.ok().flatten(),
        }
    }
}

async fn send(api: &Api, url: &str, batch: Vec<Item>) {
    let now = Instant::now();
    let mut sending = Vec::with_capacity(batch.len());
    for item in batch {
        if item.is_held_back() {
            let error = Error::new(
                ErrorKind::Unavailable,
                "not sent, because an earlier message of the tenant was not",
            );
            item.settle(Err(error));
        } else if item.turn <= now || item.answer.is_closed() {
            item.settle(Err(no_turn()));
        } else {
            sending.push(item);
        }
    }
    let messages: Vec<&Outgoing> = sending.iter().map(|item| &item.message).collect();
    let outcomes = api.send(url, &messages).await;
    for (item, outcome) in sending.into_iter().zip(outcomes) {
        item.settle(outcome);
    }
}
