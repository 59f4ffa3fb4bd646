//! The server over HTTP: a real one, on a port of its own, with SQLite in a folder of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod child;
mod concurrency;
mod crash;
mod document;
mod exports;
mod input;
mod matrix;
mod process;
mod recording;
mod service;
mod stream_resume;
mod streams;
mod tokens;
