//! Examples, one file each beside this one: `cargo run -p examples --example quickstart`.

/// The code of the README is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub mod readme {}
