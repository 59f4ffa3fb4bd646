//! The index against a real OpenSearch, whose address is in `AUDIT_TEST_OPENSEARCH_URL`.

// Helpers fail as the tests that call them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod cluster;
mod conformance;
mod faults;
mod isolation;
mod log;
mod outage;
mod proxy;
mod rate;
mod reindex;
mod tls;
mod words;
