//! The server over HTTP: a real one, on a port of its own, with engines of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]
// The drivers of the engines nest their futures deeply.
#![recursion_limit = "256"]

#[cfg(feature = "s3")]
mod archive;
mod caching;
mod child;
mod concurrency;
mod crash;
mod deployment;
mod document;
mod erasures;
mod everywhere;
mod evidence;
mod exports;
mod gateway;
mod guard;
mod index_faults;
mod input;
mod lost_key;
mod matrix;
mod offboarding;
mod other_tools;
mod process;
mod queue_bulk;
#[cfg(feature = "sqs")]
mod queue_faults;
mod recording;
mod retention;
mod service;
mod slow;
mod stack;
mod stream_resume;
mod streams;
mod tokens;
