//! Integration tests of `audit-core`.
#![allow(missing_docs)]

mod vectors;
