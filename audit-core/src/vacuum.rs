//! What an engine leaves on disk of what was destroyed.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::error::Result;

/// An engine that can write its files anew.
///
/// What is erased or pruned is never shown again from the moment that its receipt was given. Engines
/// keep its bytes for longer: in rows that are dead, in pages that are free, in segments of an index
/// that were not merged yet.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Vacuum: Debug + Send + Sync + 'static {
    /// Writes the engine's files anew, without what was erased, pruned, acknowledged or removed
    /// before the call. Changes nothing that can be read, and takes as long as all that is kept takes
    /// to be written once; others may wait for it meanwhile. Safe to repeat, and to be killed.
    ///
    /// Returns what the engine keeps where this doesn't reach: each place with what takes the bytes out
    /// of it, for an operator to read. Empty when they are gone from all that is the engine's; copies
    /// that it knows nothing of, such as backups, are never named.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) when someone reads what would have to go, and
    /// [`StorageFull`](crate::ErrorKind::StorageFull) when there is no room for a second copy of a
    /// file or table.
    async fn vacuum(&self) -> Result<Vec<String>>;
}
