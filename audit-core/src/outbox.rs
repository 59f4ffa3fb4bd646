//! Capture in the caller's own transaction: an outbox in the caller's database, drained by a relay.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use audit_tlog::Timestamp;

use crate::error::Result;
use crate::id::{EventId, TenantId};
use crate::queue::{Redrive, Sieve};

/// An event that a caller's transaction left in its outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxRow {
    /// Its place in the outbox; also the order within a tenant.
    pub row: i64,
    /// The tenant that it was recorded for.
    pub tenant: TenantId,
    /// The event's id, which makes relaying it twice harmless.
    pub id: EventId,
    /// The event, as a client would send it.
    pub event: String,
    /// When it was recorded.
    pub recorded_at: Timestamp,
}

impl OutboxRow {
    /// A row, for a third-party outbox.
    pub fn new(
        row: i64,
        tenant: TenantId,
        id: EventId,
        event: String,
        recorded_at: Timestamp,
    ) -> Self {
        Self {
            row,
            tenant,
            id,
            event,
            recorded_at,
        }
    }
}

/// A row that the log refused after the caller's commit, with the reason. It is never dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedRow {
    /// The row.
    pub row: OutboxRow,
    /// Why the log refused it.
    pub reason: String,
}

impl ParkedRow {
    /// A parked row, for a third-party outbox.
    pub fn new(row: OutboxRow, reason: impl Into<String>) -> Self {
        Self {
            row,
            reason: reason.into(),
        }
    }
}

/// An outbox table in the caller's database.
///
/// The relay takes rows, appends them, and says that they are done. A crash between the last two
/// makes it append them again, which their ids make harmless.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Outbox: Debug + Send + Sync + 'static {
    /// The oldest rows that are neither done nor parked, at most `limit`, of all tenants but those
    /// that are passed over: their rows can't be appended now, however many there are, and hold up
    /// nobody else's. They stay.
    async fn take(&self, limit: usize, passing_over: &[TenantId]) -> Result<Vec<OutboxRow>>;

    /// Removes rows that are in the log.
    async fn done(&self, rows: &[i64]) -> Result<()>;

    /// Puts a row aside that the log refuses for good, with the reason.
    async fn park(&self, row: i64, reason: &str) -> Result<()>;

    /// The parked rows, oldest first, at most `limit`.
    async fn parked(&self, limit: usize) -> Result<Vec<ParkedRow>>;

    /// Lets the relay try parked rows again. Returns how many.
    async fn redrive(&self, rows: &Redrive<i64>) -> Result<u64>;

    /// Shows the sieve every parked row, of all tenants and in parts of bounded size, and does with each what
    /// it says. Returns how many it removed.
    ///
    /// What is parked or redriven meanwhile may be passed over. A repeat begins anew.
    ///
    /// # Errors
    /// The sieve's, and the engine's; what was done before stays done.
    async fn sift(&self, sieve: Arc<dyn Sieve<ParkedRow>>) -> Result<u64>;
}
