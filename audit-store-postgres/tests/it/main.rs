//! On a real server, whose address is in `AUDIT_TEST_POSTGRES_URL`.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests

mod append;
mod conformance;
mod connect;
mod cut;
mod decorated;
mod engine;
mod faults;
mod fixture;
mod guard;
mod idle;
mod index;
mod migrate;
mod offboarding;
mod outbox;
mod plans;
mod prune;
mod queue;
mod roles;
mod tampering;
mod vacuum;
mod workers;
