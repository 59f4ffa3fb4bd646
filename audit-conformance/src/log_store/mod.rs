//! The contract of [`LogStore`].

use std::future::Future;
use std::sync::Arc;

use audit_core::{LogStore, ManualClock, RetentionStore, TenantStore};

mod append;
mod consume;
mod erase;
mod hold;
mod list;
mod model;
mod prune;
mod read;
mod scope;
mod tree;

pub use append::*;
pub use consume::*;
pub use erase::*;
pub use hold::*;
pub use list::*;
pub use model::*;
pub use prune::*;
pub use read::*;
pub use scope::*;
pub use tree::*;

/// Opens a log store for a contract.
pub trait LogStoreHarness: Sized + Send + Sync + 'static {
    /// The store, or a wrapper around one.
    type Store: LogStore;

    /// Where its tenants are kept, with what protects their logs: for most stores, the store itself.
    type Tenants: TenantStore + RetentionStore;

    /// Opens a store. It may hold other contracts' tenants.
    fn open() -> impl Future<Output = Self> + Send;

    /// The store.
    fn store(&self) -> &Self::Store;

    /// The tenants of that very store.
    fn tenants(&self) -> &Self::Tenants;

    /// The store's clock, when it takes its time from one that a test may move. Without it,
    /// contracts about a clock that goes wrong pass unchecked.
    fn clock(&self) -> Option<Arc<ManualClock>> {
        None
    }

    /// Closes the store as a crash would and opens it again; none when it keeps nothing. Then
    /// contracts about durability pass unchecked.
    fn reopen(self) -> impl Future<Output = Option<Self>> + Send {
        async { None }
    }
}
