//! The hosted audit log from Rust, with the recording interface of in-process use.
//!
//! [`Client`] implements [`Recorder`](audit_core::Recorder), so code that records needs not know
//! whether the log lies in its own process or behind HTTP. Every event gets its id before the first
//! attempt: what is sent again after a cut connection is stored once.
//!
//! ```no_run
//! use audit_client::Client;
//! use audit_core::{Event, Recorder as _};
//!
//! # async fn example() -> audit_core::Result<()> {
//! let log = Client::builder("http://127.0.0.1:8000").token("…").build()?;
//! let receipt = log.record(Event::update("invoice", "inv-1").user("ann")).await?;
//! println!("{} is entry {}", receipt.id, receipt.seq);
//! # Ok(())
//! # }
//! ```
//!
//! Errors are [`audit_core::Error`]: what the server refuses keeps its kind and the names of the
//! fields, see [`problem`].

pub mod client;
pub mod dead_letters;
pub mod evidence;
pub mod export;
pub mod keys;
pub mod list;
pub mod problem;
mod record;
pub mod removal;
pub mod retention;
pub mod retry;
mod sse;
pub mod stats;
pub mod stream;
pub mod tenants;
mod transport;
pub mod tree;

pub use client::{Builder, Client, Health};
pub use dead_letters::{DeadLetter, Source};
pub use export::{Export, ExportFormat};
pub use keys::{ApiKey, IssuedKey, KeyPage, NewKey};
pub use list::{EntryPage, ListRequest};
pub use removal::{
    ErasureReport, ErasureState, ErasureStatus, PruneBound, PruneReport, PruneRequest,
};
pub use retention::{LegalHold, LegalHoldPage, RetentionDue};
pub use retry::Retry;
pub use stats::{Bucket, DayCount, Stats};
pub use stream::{StreamRequest, Subscription};
pub use tenants::{Tenant, TenantEnding, TenantPage, Tombstone};
pub use tree::LogTree;
