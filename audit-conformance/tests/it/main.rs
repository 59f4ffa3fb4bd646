//! Every contract, on the backends in memory and on every wrapper of a log store.
#![allow(missing_docs, clippy::unwrap_used)] // a test fails by panicking

mod guard;
mod memory;
mod person;
mod wrappers;
