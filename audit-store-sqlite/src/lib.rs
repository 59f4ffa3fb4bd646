//! The embedded backend: a log store, tenants, credentials, a durable queue, an outbox and indexes
//! in SQLite files, in the process that uses them.
//!
//! - `audit.db` is the log, and the truth: WAL, `synchronous=FULL`, `secure_delete`. One thread
//!   writes it, committing everything that waits in one transaction; readers have threads and
//!   connections of their own.
//! - `audit.index.db` beside it holds every other order (filters, full text). It may be deleted at
//!   any time: it is rebuilt from the log.
//! - `audit.queue.db` holds messages that wait, once the queue is used.
//! - `audit.db.lock` makes one process the writer. Others may read, with
//!   [`SqliteOptions::read_only`].
//!
//! Keep the files on a local disk: WAL does not work over a network file system.

mod append;
mod checkpoints;
mod credentials;
mod declare;
mod deployment;
mod erase;
mod erasures;
mod fault;
mod head;
mod index;
mod list;
mod lock;
mod offboarding;
mod options;
pub mod outbox;
mod private;
mod prune;
mod queue;
mod reader;
mod retention;
mod row;
mod schema;
mod snapshot;
mod store;
mod tenants;
mod vacuum;
mod wal;
mod writer;

pub use index::SqliteIndex;
pub use options::{SqliteOptions, TimeSource};
pub use outbox::SqliteOutbox;
pub use queue::SqliteQueue;
pub use rusqlite;
pub use store::SqliteStore;
