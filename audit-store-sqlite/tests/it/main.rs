//! The store in files of its own, in a folder that goes away with the test.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests

mod concurrency;
mod conformance;
mod durability;
mod engine;
mod evidence;
mod faults;
mod fixture;
mod idle;
mod list;
mod log;
mod offboarding;
mod outbox;
mod prune;
mod queue;
mod reconcile;
mod search;
mod snapshot;
mod tampering;
mod vacuum;
