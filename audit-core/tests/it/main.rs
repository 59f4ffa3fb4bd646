//! Integration tests of `audit-core`.
#![allow(missing_docs, clippy::expect_used, clippy::unwrap_used)] // a test fails by panicking

mod archive;
mod deployment;
mod deployment_guard;
mod erasures;
mod evidence;
mod faulty;
mod group_commit;
mod guard;
mod offboarding;
mod retention;
mod sealing;
mod signer;
mod subscribe;
mod vectors;
mod workers;
