//! Behaviour of the crate's public functions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod checkpoint;
mod control;
mod deployment;
mod evidence;
mod json;
mod log;
mod merkle;
mod monitor;
mod note;
mod other_tools;
mod proof;
mod sample;
mod tile;
mod time;
mod vectors;
mod verify;
mod witness;
