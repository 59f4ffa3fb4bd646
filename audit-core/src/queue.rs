//! Work that waits: events on their way to the log, and jobs for a tenant.

use std::fmt::{self, Debug};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use audit_tlog::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{EventId, TenantId};

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MessageKind {
    /// An event to be appended.
    Ingest,
    /// A job for a tenant.
    Work,
}

impl MessageKind {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Work => "work",
        }
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Ingest, Self::Work]
            .into_iter()
            .find(|k| k.as_str() == name)
    }
}

/// A message of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The tenant: a message attribute, and the group where a queue keeps order by group.
    pub tenant: TenantId,
    /// What it is.
    pub kind: MessageKind,
    /// What it is about: a message of the same id is harmless to deliver again.
    pub id: EventId,
    /// ASCII JSON, at most [`Message::MAX_BODY`] bytes, authenticated by whoever made it.
    pub body: String,
}

impl Message {
    /// The most bytes of a body.
    pub const MAX_BODY: usize = 768 * 1024;

    /// A message.
    pub fn new(tenant: TenantId, kind: MessageKind, id: EventId, body: String) -> Self {
        Self {
            tenant,
            kind,
            id,
            body,
        }
    }

    /// Whether a queue may take it.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) naming `body`, and the event, when it is too long.
    pub fn check(&self) -> Result<()> {
        match self.body.len() {
            0..=Self::MAX_BODY => Ok(()),
            bytes => {
                let detail = format!("has {bytes} bytes, more than {}", Self::MAX_BODY);
                Err(Error::field("body", detail).with_event_id(self.id))
            }
        }
    }
}

/// A message that was received and is to be acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// What to acknowledge it by, for the length of its lease.
    pub handle: String,
    /// The message.
    pub message: Message,
    /// How often it was delivered, this time included.
    pub attempts: u32,
}

impl Delivery {
    /// A delivery, for a third-party queue.
    pub fn new(handle: impl Into<String>, message: Message, attempts: u32) -> Self {
        Self {
            handle: handle.into(),
            message,
            attempts,
        }
    }
}

/// The handle that a queue in a table gives: which row, and which of its deliveries, so that a handle
/// whose lease was lost names nothing any more. Its text is `<row>.<attempts>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowHandle {
    /// The row's number, which is never used again.
    pub row: i64,
    /// How often the message had been delivered, that time included.
    pub attempts: u32,
}

impl fmt::Display for RowHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.row, self.attempts)
    }
}

impl FromStr for RowHandle {
    type Err = Error;

    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) naming `handle` for any other text.
    fn from_str(text: &str) -> Result<Self> {
        text.split_once('.')
            .and_then(|(row, attempts)| {
                Some(Self {
                    row: row.parse().ok()?,
                    attempts: attempts.parse().ok()?,
                })
            })
            .ok_or_else(|| Error::field("handle", "not one that this queue gave"))
    }
}

/// A message that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// What to redrive it by.
    pub handle: String,
    /// The message.
    pub message: Message,
    /// Why it was given up.
    pub reason: String,
    /// When it was given up.
    pub died_at: Timestamp,
}

impl DeadLetter {
    /// A dead letter, for a third-party queue.
    pub fn new(
        handle: impl Into<String>,
        message: Message,
        reason: impl Into<String>,
        died_at: Timestamp,
    ) -> Self {
        Self {
            handle: handle.into(),
            message,
            reason: reason.into(),
            died_at,
        }
    }
}

/// Which dead letters or parked rows are sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redrive<T> {
    /// All of them.
    All,
    /// These; what is not among them is passed over.
    Only(Vec<T>),
}

impl<T: PartialEq> Redrive<T> {
    /// Whether this one is named.
    pub fn names(&self, item: &T) -> bool {
        match self {
            Self::All => true,
            Self::Only(items) => items.contains(item),
        }
    }
}

/// What becomes of a dead letter, or of a parked row, that a [`Sieve`] was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays as it is.
    Keep,
    /// It goes, with all that it held.
    Remove,
}

/// Judges what was given up: [`DeadLetter`]s for [`EventQueue::sift`],
/// [`ParkedRow`](crate::ParkedRow)s for [`Outbox::sift`](crate::Outbox::sift).
#[async_trait]
pub trait Sieve<T>: Debug + Send + Sync {
    /// A verdict for each, in order.
    ///
    /// # Errors
    /// Whatever keeps it from telling: then nothing of these is changed.
    async fn judge(&self, items: &[T]) -> Result<Vec<Verdict>>;
}

/// Which of these a sieve removes, by what each is named, for every queue and outbox.
///
/// # Errors
/// The sieve's; [`ErrorKind::Internal`] when there are more or fewer verdicts, or names, than items: then
/// nothing may be removed.
pub async fn removed<T, N>(sieve: &dyn Sieve<T>, items: &[T], names: Vec<N>) -> Result<Vec<N>> {
    let verdicts = sieve.judge(items).await?;
    if verdicts.len() != items.len() || names.len() != items.len() {
        return Err(Error::new(
            ErrorKind::Internal,
            "there are not as many verdicts and names as items",
        ));
    }
    let named = names.into_iter().zip(verdicts);
    Ok(named
        .filter_map(|(name, verdict)| (verdict == Verdict::Remove).then_some(name))
        .collect())
}

/// How much is waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueDepth {
    /// Messages that may be received, or will be later.
    pub waiting: u64,
    /// Messages under a lease.
    pub leased: u64,
    /// Dead letters.
    pub dead: u64,
}

/// A queue with leases, redelivery and dead letters.
///
/// Delivery is at least once and in no particular order, unless an implementation says more. Batches
/// in, a result for each item out, in order; an outer error means that nothing is known. A batch may
/// be larger than an engine's own limit: implementations cut it by count and bytes.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait EventQueue: Debug + Send + Sync + 'static {
    /// Whether what was sent survives a crash of this process and of the engine. Only then may a
    /// caller be told that its event was accepted.
    fn is_durable(&self) -> bool;

    /// Sends messages. Sending a message of the same tenant, kind and id again is harmless: it may
    /// be delivered twice.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for an item whose body is too long.
    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>>;

    /// Receives at most `max` messages, waiting up to `wait` for the first. Each is hidden from
    /// others for `lease`, then delivered again. An implementation clamps all three to what its
    /// engine can do.
    async fn receive(&self, max: usize, wait: Duration, lease: Duration) -> Result<Vec<Delivery>>;

    /// Removes messages that are done with. A handle whose lease was lost is no error.
    async fn ack(&self, handles: &[String]) -> Result<Vec<Result<()>>>;

    /// Gives messages back, to be delivered again after `delay`.
    async fn retry(&self, handles: &[String], delay: Duration) -> Result<Vec<Result<()>>>;

    /// Hides messages for `lease` from now on, since the work on them goes on. A handle whose lease
    /// was lost is no error: somebody else may have the message.
    ///
    /// The default can't, and says so item by item: such a message is delivered again when its first
    /// lease ends, which is harmless. A wrapper must pass this on.
    async fn extend(&self, handles: &[String], lease: Duration) -> Result<Vec<Result<()>>> {
        let _ = lease;
        let error = || Error::new(ErrorKind::Refused, "this queue extends no leases");
        Ok(handles.iter().map(|_| Err(error())).collect())
    }

    /// Makes dead letters of messages that can never succeed, each with its reason.
    async fn bury(&self, letters: &[(String, String)]) -> Result<Vec<Result<()>>>;

    /// The dead letters, oldest first, at most `limit`.
    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>>;

    /// Sends dead letters again, named by their handles. Returns how many.
    async fn redrive(&self, letters: &Redrive<String>) -> Result<u64>;

    /// Shows the sieve every dead letter, of all tenants and in parts of bounded size, and does with each
    /// what it says. Returns how many it removed.
    ///
    /// What is given up or redriven meanwhile may be passed over. A repeat begins anew.
    ///
    /// # Errors
    /// The sieve's, and the engine's; what was done before stays done.
    async fn sift(&self, sieve: Arc<dyn Sieve<DeadLetter>>) -> Result<u64>;

    /// How many messages this process has removed from the queue because no log can have sent them:
    /// those without a tenant, kind or id. The log's worker shows them with those that it drops
    /// itself.
    ///
    /// The default is none, for a queue that only the log can write to. A wrapper must pass this on.
    fn dropped(&self) -> u64 {
        0
    }

    /// How much is waiting.
    async fn depth(&self) -> Result<QueueDepth>;
}
