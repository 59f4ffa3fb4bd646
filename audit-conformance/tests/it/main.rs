//! Every contract, on the backends in memory and on every wrapper of a log store.
#![allow(missing_docs)]

mod memory;
mod wrappers;
