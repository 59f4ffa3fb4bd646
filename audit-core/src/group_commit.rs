//! Group commit: one append for all that wait.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::decorate::{Wraps, decorate_log_store};
use crate::entry::Receipt;
use crate::error::{Error, ErrorKind, Result};
use crate::prepare::Batch;
use crate::store::LogStore;

/// A log store that appends for all waiting callers at once.
///
/// Appends run in a task of their own: a caller that goes away does not cancel a commit. Nothing
/// waits for company: what has come in while others were under way goes into the next append. When the
/// joint append fails for good, it is cut in halves until the failure is alone with its own batch.
pub struct GroupCommit {
    inner: Arc<dyn LogStore>,
    sender: Mutex<Option<mpsc::Sender<Request>>>,
    budget: Arc<Semaphore>,
}

/// The most events that are appended at once, unless a single call has more.
const MAX_EVENTS: usize = 1_000;
/// The most bytes, roughly, that are appended at once, unless a single call has more.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Appends that are under way at once: while the store commits one, the next is at its door.
const UNDER_WAY: usize = 2;
/// Events that must wait for an append to begin beside another one. With fewer, waiting makes one
/// append of two, which costs less: two appends of one tenant take turns at its head anyway.
const MANY: usize = 250;
/// Calls that wait.
const MAX_WAITING: usize = 4_096;
/// KiB of events that wait or are under way; further callers wait for room.
const BUDGET_KIB: usize = 64 * 1024;

type Outcome = Result<Vec<Result<Vec<Receipt>>>>;

struct Request {
    batches: Vec<Batch>,
    reply: oneshot::Sender<Outcome>,
    _room: OwnedSemaphorePermit,
}

impl GroupCommit {
    /// Wraps a store. Nothing is spawned before the first append.
    pub fn new(inner: Arc<dyn LogStore>) -> Self {
        Self {
            inner,
            sender: Mutex::new(None),
            budget: Arc::new(Semaphore::new(BUDGET_KIB)),
        }
    }

    /// The channel to the task, which is spawned on first use, and again when the runtime that it
    /// ran on is gone.
    fn sender(&self) -> mpsc::Sender<Request> {
        let mut slot = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = slot.as_ref().filter(|s| !s.is_closed()) {
            return sender.clone();
        }
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        tokio::spawn(run(Arc::clone(&self.inner), receiver));
        slot.insert(sender).clone()
    }
}

impl fmt::Debug for GroupCommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCommit")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// What goes into the next append.
#[derive(Default)]
struct Group {
    requests: Vec<Request>,
    events: usize,
    bytes: usize,
}

impl Group {
    /// Takes a request, or gives it back when it doesn't fit any more.
    fn take(&mut self, request: Request) -> Option<Request> {
        let (events, bytes) = size(&request);
        let fits = self.events + events <= MAX_EVENTS && self.bytes + bytes <= MAX_BYTES;
        if !fits && !self.requests.is_empty() {
            return Some(request);
        }
        self.events += events;
        self.bytes += bytes;
        self.requests.push(request);
        None
    }
}

async fn run(store: Arc<dyn LogStore>, mut requests: mpsc::Receiver<Request>) {
    let mut appends = JoinSet::new();
    let mut group = Group::default();
    // What no longer fits into the group.
    let mut held: Option<Request> = None;
    let mut closed = false;
    loop {
        while held.is_none()
            && let Ok(request) = requests.try_recv()
        {
            held = group.take(request);
        }
        let is_due = match appends.len() {
            0 => !group.requests.is_empty(),
            UNDER_WAY.. => false,
            _ => held.is_some() || group.events >= MANY,
        };
        if is_due {
            let requests = std::mem::take(&mut group).requests;
            let store = Arc::clone(&store);
            appends.spawn(async move { append(&*store, requests).await });
            if let Some(request) = held.take() {
                held = group.take(request);
            }
            continue;
        }
        if closed && appends.is_empty() {
            return;
        }
        tokio::select! {
            // One that panicked has told its callers by their replies, which are gone.
            _ = appends.join_next(), if !appends.is_empty() => {}
            request = requests.recv(), if held.is_none() && !closed => match request {
                Some(request) => held = group.take(request),
                None => closed = true,
            }
        }
    }
}

fn size(request: &Request) -> (usize, usize) {
    request.batches.iter().fold((0, 0), |(events, bytes), b| {
        (events + b.events().len(), bytes + b.size_hint())
    })
}

async fn append(store: &dyn LogStore, group: Vec<Request>) {
    let mut groups = vec![group];
    while let Some(mut group) = groups.pop() {
        let batches: Vec<Batch> = group
            .iter()
            .flat_map(|r| r.batches.iter().cloned())
            .collect();
        match store.append(&batches).await {
            Ok(outcomes) if outcomes.len() == batches.len() => {
                let mut outcomes = outcomes.into_iter();
                for request in group {
                    let own: Vec<_> = outcomes.by_ref().take(request.batches.len()).collect();
                    // A caller that went away needs no answer.
                    drop(request.reply.send(Ok(own)));
                }
            }
            Ok(_) => {
                for request in group {
                    drop(request.reply.send(Err(miscounted())));
                }
            }
            Err(error) if error.is_retryable() || batches.len() == 1 => {
                for request in group {
                    drop(request.reply.send(Err(error.clone())));
                }
            }
            Err(_) if group.len() == 1 => {
                let outcome = append_apart(store, &batches).await;
                for request in group {
                    drop(request.reply.send(outcome.clone()));
                }
            }
            Err(_) => {
                let second = group.split_off(group.len() / 2);
                groups.push(second);
                groups.push(group);
            }
        }
    }
}

/// Appends the batches of one caller, which together failed for good, in halves.
async fn append_apart(store: &dyn LogStore, batches: &[Batch]) -> Outcome {
    let mut outcomes = Vec::with_capacity(batches.len());
    let (first, second) = batches.split_at(batches.len() / 2);
    // The next ones on top.
    let mut parts = vec![second, first];
    while let Some(part) = parts.pop() {
        match store.append(part).await {
            Ok(own) if own.len() == part.len() => outcomes.extend(own),
            Ok(_) => return Err(miscounted()),
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) if part.len() == 1 => outcomes.push(Err(error)),
            Err(_) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
        }
    }
    Ok(outcomes)
}

fn miscounted() -> Error {
    Error::new(
        ErrorKind::Internal,
        "the store answered another number of batches than it was given",
    )
}

impl Wraps for GroupCommit {
    type Store = dyn LogStore;

    fn wrapped(&self) -> &dyn LogStore {
        &*self.inner
    }

    async fn append_around(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let kib = batches.iter().map(Batch::size_hint).sum::<usize>() / 1024 + 1;
        let kib = u32::try_from(kib.min(BUDGET_KIB)).unwrap_or(u32::MAX);
        let gone = || Error::new(ErrorKind::Unavailable, "the log is shutting down");
        let room = Arc::clone(&self.budget)
            .acquire_many_owned(kib)
            .await
            .map_err(|_| gone())?;
        let (reply, answer) = oneshot::channel();
        let request = Request {
            batches: batches.to_vec(),
            reply,
            _room: room,
        };
        self.sender().send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

decorate_log_store!([] GroupCommit);
