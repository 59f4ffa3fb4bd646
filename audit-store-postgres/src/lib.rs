//! The PostgreSQL backend: a log store, tenants, credentials, an outbox, a durable queue and a text
//! index in a database, which any number of processes may use at once. TimescaleDB too: where its
//! extension is installed before [`migrate`], the events are a hypertable.
//!
//! Everything lies in the schema `audit`. No role but its owner can read or change the events:
//!
//! - `audit_writer` adds entries. It can change or delete none, nor make a log shorter.
//! - `audit_reader` sees, through views, the rows of the tenant that its transaction named, and
//!   without one none. This second check guards against faults in this program, not against SQL
//!   injection: whoever runs SQL of their own as this role can name any tenant.
//! - `audit_maintainer` adds entries too, and erases and prunes through functions that do nothing
//!   else. It keeps the erasures that were asked for, which name whom they are about until they are
//!   done.
//! - `audit_owner` owns all of it, and nobody logs in as it.
//!
//! Roles belong to the whole cluster: two databases of one cluster that each hold a log share these
//! four. Give each its own logins, and let each connect to one database only.

mod append;
mod checkpoints;
mod copy;
mod credentials;
mod declare;
mod deployment;
mod erase;
mod erasures;
mod fault;
mod head;
mod index;
mod list;
mod migrate;
mod offboarding;
mod options;
pub mod outbox;
mod pool;
mod prune;
mod queue;
mod retention;
mod row;
mod snapshot;
mod store;
mod tenants;
mod vacuum;

pub use index::PostgresIndex;
pub use migrate::{login_statements, migrate};
pub use options::{PostgresOptions, TimeSource};
pub use outbox::PostgresOutbox;
pub use queue::PostgresQueue;
pub use store::PostgresStore;
