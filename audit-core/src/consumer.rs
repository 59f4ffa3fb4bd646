//! Consumers: code that follows every tenant's log with a cursor.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::entry::Entry;
use crate::error::Result;
use crate::id::TenantId;

/// Something that follows the log: a webhook, an archive, a projection.
///
/// Each tenant's entries arrive in the order of their positions, without a gap. Delivery is at least
/// once: the cursor moves after [`consume`](Self::consume) has returned, so that a crash between the
/// two repeats a batch. Positions make repeats easy to tell.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Consumer: Debug + Send + Sync + 'static {
    /// Its name, under which its cursors are kept: change it, and it starts from the beginning.
    fn name(&self) -> &str;

    /// Whether pruning waits for it. True unless an implementation says otherwise.
    fn is_required(&self) -> bool {
        true
    }

    /// Takes the next entries of one tenant; never empty.
    ///
    /// # Errors
    /// Any error makes the same entries come again later, with a growing pause. Other tenants'
    /// entries go on.
    async fn consume(&self, tenant: TenantId, entries: &[Entry]) -> Result<()>;
}
