//! Recording: the one interface of in-process and hosted use.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::entry::Receipt;
use crate::error::Result;
use crate::event::Event;

/// Writes events into one tenant's log: in-process through
/// [`AuditLog::recorder`](crate::AuditLog::recorder), over HTTP through the client crate.
///
/// Recording an event again under its id is safe. An event without an id is given one; when its
/// outcome is unknown, [`Error::event_id`](crate::Error::event_id) names it for the retry.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Recorder: Debug + Send + Sync + 'static {
    /// Records one event. When this returns a receipt, the event is durable.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) with every bad field,
    /// [`Conflict`](crate::ErrorKind::Conflict) when the id was used for another event, and what the
    /// store answers.
    async fn record(&self, event: Event) -> Result<Receipt>;

    /// Records events whole or not at all, in order. An empty list is answered with no receipts.
    ///
    /// # Errors
    /// As [`record`](Self::record); bad fields carry the index of their event.
    async fn record_all(&self, events: Vec<Event>) -> Result<Vec<Receipt>>;
}
