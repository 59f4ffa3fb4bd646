//! Behaviour of the crate's public functions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod control;
mod json;
mod merkle;
mod time;
mod vectors;
