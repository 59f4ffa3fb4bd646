//! The tamper-evident log as pure functions: no I/O, no clock, no randomness.
//!
//! - [`leaf`] is what is hashed of an entry: format v1 of leaf data, its groups and disclosures;
//! - [`groups`] writes the values of the groups that are objects;
//! - [`control`] is what the log's own entries say about what is gone or has changed;
//! - [`merkle`] is the tree of RFC 6962, its proofs and their verification;
//! - [`note`] signs texts, [`checkpoint`] is a log's signed head and how logs are named;
//! - [`proof`] puts an inclusion proof and a checkpoint into one text, [`tile`] the tree and the
//!   entries into files that never change;
//! - [`deployment`] is the one log of a deployment, which commits to the heads of all tenants' logs;
//! - [`evidence`] is what an export gives to an auditor, [`folder`] the same in files, [`verify`] judges
//!   it;
//! - [`witness`] is the protocol between a log and those who cosign its head;
//! - [`json`] and [`time`] hold JSON and timestamps to one strict reading.
//!
//! The store, the server and an auditor's verifier share this crate, so that they can't disagree on
//! a byte.

pub mod checkpoint;
pub mod control;
pub mod deployment;
pub mod evidence;
pub mod folder;
pub mod groups;
pub mod json;
pub mod leaf;
pub mod merkle;
pub mod note;
pub mod proof;
pub mod tile;
pub mod time;
#[cfg(audit_unhashed)]
pub mod unhashed;
pub mod verify;
pub mod witness;

pub use checkpoint::{Checkpoint, CheckpointFault, Opened, Origin, OriginFault};
pub use control::{Basis, Control, ControlFault, Vkey};
pub use deployment::{
    HeadFault, HeadOpening, HeadPolicy, OpeningFault, WitnessedHead, verify_head,
};
pub use groups::{Actor, Context, Related, Resource};
pub use leaf::{Group, Hash, Kind, Leaf, Salt, Seed, UnknownName};
pub use merkle::{ProofFault, Tree};
pub use note::{Cosigner, Note, NoteFault, Signature, SigningKey, Verified, VerifyingKey};
pub use proof::{InclusionFault, InclusionProof};
pub use tile::{Tile, TileEdge, TileFault, TileReader};
pub use time::{TimeFault, Timestamp};
pub use witness::{AddCheckpoint, Refusal, WitnessedLog};
