//! The queue against a real server of the protocol, whose address is in the environment.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests

mod away;
mod conformance;
mod dead;
mod delivery;
mod faults;
mod fixture;
mod ingest;
mod order;
mod proxy;
mod throughput;
mod tls;
