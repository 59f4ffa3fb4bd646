//! The event queue on Amazon SQS, or on any server that speaks its protocol.
//!
//! A queue and its dead-letter queue carry the messages of all tenants. Which kind it is, its name
//! says: one that ends in `.fifo` keeps the order of each tenant's messages, a standard one promises
//! none. Either delivers at least once; an event's id makes a repeat harmless.
//!
//! ```no_run
//! # async fn example() -> audit_core::Result<()> {
//! use std::sync::Arc;
//! use audit_core::{AuditLog, MemoryStore};
//! use audit_queue_sqs::{SqsOptions, SqsQueue};
//!
//! let url = "https://sqs.eu-central-1.amazonaws.com/123456789012/audit.fifo";
//! let queue = SqsQueue::open(SqsOptions::new(url)?).await?;
//! queue.create().await?; // where it is missing, and its dead-letter queue
//! let log = AuditLog::builder(Arc::new(MemoryStore::new()))
//!     .queue(Arc::new(queue))
//!     .build();
//! # Ok(())
//! # }
//! ```
//!
//! # What a message looks like
//!
//! The body is the message's own: ASCII, since SQS refuses some characters that an event may hold.
//! The message attributes `tenant`, `kind` and `id` say whose it is and what. On a FIFO queue the
//! group is the tenant, and the deduplication id is a hash of id and body. A message without these
//! attributes was not sent by this crate: it is removed and counted, and the log's worker shows the
//! count. Whether a message with them was written by the log, the log itself checks: each one carries
//! a MAC.
//!
//! # Limits
//!
//! A call to SQS takes ten messages. A message may have 1 MiB with its attributes, and so may a call;
//! a queue's own `MaximumMessageSize`, which older queues may have at 256 KiB, is asked for and kept
//! to, and so is its dead-letter queue's: the lower one counts, less 256 bytes for what a dead letter
//! has besides. At most 120,000 messages are under a lease at a time.
//!
//! SQS keeps a message for 14 days at most, and forgets it then. Nothing is sent to a queue that keeps
//! messages for less than a day, or for longer than its dead-letter queue does: SQS counts from when a
//! message was first sent, so that a dead letter could be gone before anybody sees it. The error says
//! which it is and how to change it. Below SQS's own default of four days a warning is logged.

mod api;
mod create;
mod dead;
mod facts;
mod fault;
mod held;
mod message;
mod options;
mod queue;
mod send;

pub use options::SqsOptions;
pub use queue::SqsQueue;
