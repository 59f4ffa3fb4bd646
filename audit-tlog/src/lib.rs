//! The tamper-evident log as pure functions: no I/O, no clock, no randomness.
//!
//! - [`leaf`] is what is hashed of an entry: format v1 of leaf data, its groups and disclosures;
//! - [`groups`] writes the values of the groups that are objects;
//! - [`control`] is what the log's own entries say about what is gone or has changed;
//! - [`merkle`] is the tree of RFC 6962, its proofs and their verification;
//! - [`json`] and [`time`] hold JSON and timestamps to one strict reading.
//!
//! The store, the server and an auditor's verifier share this crate, so that they can't disagree on
//! a byte.

pub mod control;
pub mod groups;
pub mod json;
pub mod leaf;
pub mod merkle;
pub mod time;

pub use control::{Basis, Control, ControlFault, Vkey};
pub use groups::{Actor, Context, Related, Resource};
pub use leaf::{Group, Hash, Kind, Leaf, Salt, Seed, UnknownName};
pub use merkle::{ProofFault, Tree};
pub use time::{TimeFault, Timestamp};
