//! Integration tests of `audit-archive`.
#![allow(missing_docs, clippy::expect_used, clippy::unwrap_used)] // a test fails by panicking

mod folder;
#[cfg(feature = "s3")]
mod guard;
#[cfg(feature = "s3")]
mod s3;
