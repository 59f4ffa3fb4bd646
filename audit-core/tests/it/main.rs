//! Integration tests of `audit-core`.
#![allow(missing_docs, clippy::expect_used)] // a test fails by panicking

mod faulty;
mod group_commit;
mod subscribe;
mod vectors;
mod workers;
