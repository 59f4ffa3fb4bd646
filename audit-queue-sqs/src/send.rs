//! Sends that wait together go together.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use audit_core::{Error, ErrorKind, Result, TenantId};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::api::{Api, BATCH};
use crate::message::Outgoing;

/// Messages that may wait for a lane before senders do.
const WAITING: usize = 512;
/// Their bytes, and those under way.
const WAITING_BYTES: usize = 32 << 20;

/// The lanes on which messages are sent, each one call at a time.
///
/// A lane takes what waits, up to a batch, and never waits for more. On a standard queue all lanes
/// take from one line. On a FIFO queue each has its own, and a tenant's messages are always on the
/// same one, so that they are sent in the order in which they came.
#[derive(Debug)]
pub(crate) struct Lanes {
    lines: Vec<mpsc::Sender<Item>>,
    room: Arc<Semaphore>,
}

struct Item {
    message: Outgoing,
    size: usize,
    /// Set when an earlier message of the same tenant and the same call wasn't sent: then this one
    /// must not overtake it. Only where order is kept.
    overtakes: Option<Arc<AtomicBool>>,
    answer: oneshot::Sender<Result<()>>,
    _room: OwnedSemaphorePermit,
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
                tokio::spawn(async move {
                    loop {
                        let batch = line.lock().await.take(batch_bytes).await;
                        if batch.is_empty() {
                            return;
                        }
                        send(&api, &url, batch).await;
                    }
                });
            }
        }
        Self {
            lines: senders,
            room: Arc::new(Semaphore::new(WAITING_BYTES)),
        }
    }

    /// Sends what is good of these, and answers each in its place.
    pub(crate) async fn send(
        &self,
        messages: Vec<(TenantId, Result<Outgoing>)>,
    ) -> Vec<Result<()>> {
        let ordered = self.lines.len() > 1;
        let mut flags: HashMap<TenantId, Arc<AtomicBool>> = HashMap::new();
        let mut answers = Vec::with_capacity(messages.len());
        for (tenant, message) in messages {
            let overtakes = ordered.then(|| Arc::clone(flags.entry(tenant).or_default()));
            answers.push(match message {
                Ok(message) => self.line_up(tenant, message, overtakes).await,
                Err(error) => Err(error),
            });
        }
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(match answer {
                Ok(answer) => answer.await.unwrap_or_else(|_| Err(gone())),
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
    ) -> Result<oneshot::Receiver<Result<()>>> {
        let size = message.size();
        let permits = u32::try_from(size.min(WAITING_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(permits);
        let (answer, receiver) = oneshot::channel();
        let item = Item {
            message,
            size,
            overtakes,
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

/// What waits for a lane.
struct Line {
    receiver: mpsc::Receiver<Item>,
    /// Taken already, and too large for the batch that was taken last.
    next: Option<Item>,
}

impl Line {
    /// The next batch; an empty one at the end.
    async fn take(&mut self, bytes: usize) -> Vec<Item> {
        let first = match self.next.take() {
            Some(item) => item,
            None => match self.receiver.recv().await {
                Some(item) => item,
                None => return Vec::new(),
            },
        };
        let mut total = first.size;
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(item) = self.receiver.try_recv()
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
}

async fn send(api: &Api, url: &str, batch: Vec<Item>) {
    let (held_back, batch): (Vec<Item>, Vec<Item>) = batch.into_iter().partition(|item| {
        let flag = item.overtakes.as_ref();
        flag.is_some_and(|flag| flag.load(Ordering::Acquire))
    });
    for item in held_back {
        let error = Error::new(
            ErrorKind::Unavailable,
            "not sent, because an earlier message of the tenant was not",
        );
        answer(item, Err(error));
    }
    let messages: Vec<&Outgoing> = batch.iter().map(|item| &item.message).collect();
    let outcomes = api.send(url, &messages).await;
    for (item, outcome) in batch.into_iter().zip(outcomes) {
        if let (Err(error), Some(flag)) = (&outcome, &item.overtakes)
            && error.is_retryable()
        {
            flag.store(true, Ordering::Release);
        }
        answer(item, outcome);
    }
}

fn answer(item: Item, outcome: Result<()>) {
    // Nobody may be waiting any more.
    drop(item.answer.send(outcome));
}
