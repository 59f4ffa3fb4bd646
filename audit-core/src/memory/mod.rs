//! Backends in memory: for the tests of code that records, and for trying things out.
//!
//! They pass the same contracts as the durable ones, and forget everything when they are dropped.

mod archive;
mod guard;
mod index;
mod outbox;
mod queue;
mod store;

pub use archive::MemoryArchive;
pub use guard::MemoryGuard;
pub use index::MemoryIndex;
pub use outbox::MemoryOutbox;
pub use queue::MemoryQueue;
pub use store::MemoryStore;
