//! An inclusion proof that stands by itself: C2SP `tlog-proof`, a text of a position, the hashes
//! from the leaf to the root, and the checkpoint that has this root.
//!
//! What the leaf is, is not part of it: whoever verifies knows the entry and computes its hash.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::checkpoint::{Checkpoint, CheckpointFault, Opened, SIZE_END, decimal};
use crate::leaf::Hash;
use crate::merkle::{self, ProofFault};
use crate::note::{Note, NoteFault, VerifyingKey};

/// The file extension that the page recommends, without a dot.
pub const FILE_EXTENSION: &str = "tlog-proof";

/// The most hashes that a proof of inclusion or consistency has: one for each level of a tree of
/// fewer than 2⁶³ leaves.
pub const MAX_HASHES: usize = 63;

const HEADER: &str = "c2sp.org/tlog-proof@v1\n";

/// Why something is not a proof, or doesn't prove.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InclusionFault {
    /// The first line is another.
    #[error("a proof's first line is c2sp.org/tlog-proof@v1")]
    Header,
    /// The extra line isn't the base64 of at least one byte.
    #[error("a proof's extra data is the padded base64 of at least one byte")]
    Extra,
    /// There is no index line, or its number has leading zeros or is not below 2⁶³.
    #[error("a proof's index is a number below 2^63 without leading zeros")]
    Index,
    /// A line of the proof isn't the base64 of 32 bytes, or there are more than [`MAX_HASHES`].
    #[error("a proof's hashes are at most {MAX_HASHES} lines of the padded base64 of 32 bytes")]
    Hashes,
    /// There is no checkpoint after a blank line, or it isn't one, or not one by the log.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointFault),
    /// The hashes don't lead from the leaf to the checkpoint's root.
    #[error(transparent)]
    Inclusion(#[from] ProofFault),
}

impl From<NoteFault> for InclusionFault {
    fn from(fault: NoteFault) -> Self {
        Self::Checkpoint(fault.into())
    }
}

/// That some leaf stands at a position of a log whose head is signed. Until
/// [`verify`](Self::verify) has said so, nothing of it is known to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    extra: Option<Vec<u8>>,
    index: u64,
    hashes: Vec<Hash>,
    checkpoint: Note,
}

impl InclusionProof {
    /// The proof of a position, of the hashes that [`merkle::inclusion_proof`] makes for it and the
    /// checkpoint's size. Whether they fit is not checked.
    ///
    /// # Errors
    ///
    /// [`InclusionFault::Index`] from 2⁶³ on, [`InclusionFault::Hashes`] for more than
    /// [`MAX_HASHES`], [`InclusionFault::Checkpoint`] for a note with another text.
    pub fn new(index: u64, hashes: Vec<Hash>, checkpoint: Note) -> Result<Self, InclusionFault> {
        if index >= SIZE_END {
            return Err(InclusionFault::Index);
        }
        if hashes.len() > MAX_HASHES {
            return Err(InclusionFault::Hashes);
        }
        Checkpoint::parse(checkpoint.text())?;
        Ok(Self {
            extra: None,
            index,
            hashes,
            checkpoint,
        })
    }

    /// The same with extra data, which nothing vouches for.
    ///
    /// # Errors
    ///
    /// [`InclusionFault::Extra`] for no bytes: the page leaves the line out then.
    pub fn with_extra(self, extra: Vec<u8>) -> Result<Self, InclusionFault> {
        if extra.is_empty() {
            return Err(InclusionFault::Extra);
        }
        Ok(Self {
            extra: Some(extra),
            ..self
        })
    }

    /// Reads a proof (section *Format*); accepts only what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    ///
    /// All but [`InclusionFault::Inclusion`].
    pub fn parse(text: &str) -> Result<Self, InclusionFault> {
        let rest = text.strip_prefix(HEADER).ok_or(InclusionFault::Header)?;
        let (extra, rest) = match rest.strip_prefix("extra ") {
            Some(rest) => {
                let (extra, rest) = rest.split_once('\n').ok_or(InclusionFault::Extra)?;
                let extra = STANDARD.decode(extra).map_err(|_| InclusionFault::Extra)?;
                (Some(extra), rest)
            }
            None => (None, rest),
        };
        let index = || {
            let (index, rest) = rest.strip_prefix("index ")?.split_once('\n')?;
            Some((decimal(index)?, rest))
        };
        let (index, rest) = index().ok_or(InclusionFault::Index)?;
        let (hashes, checkpoint) = read_hashes(rest).ok_or(InclusionFault::Hashes)?;
        let proof = Self::new(index, hashes, Note::parse(checkpoint)?)?;
        match extra {
            Some(extra) => proof.with_extra(extra),
            None => Ok(proof),
        }
    }

    /// The text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::from(HEADER);
        if let Some(extra) = &self.extra {
            text.push_str(&format!("extra {}\n", STANDARD.encode(extra)));
        }
        text.push_str(&format!("index {}\n", self.index));
        write_hashes(&mut text, &self.hashes);
        text.push_str(&self.checkpoint.encode());
        text
    }

    /// Extra data, if there is any. It isn't signed.
    #[must_use]
    pub fn extra(&self) -> Option<&[u8]> {
        self.extra.as_deref()
    }

    /// The position, from 0.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// The hashes, from the leaf's sibling upwards.
    #[must_use]
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// The signed head.
    #[must_use]
    pub const fn checkpoint(&self) -> &Note {
        &self.checkpoint
    }

    /// Checks that the leaf of this hash stands at [`index`](Self::index) of a log that one of
    /// these keys signed for, and returns the log's head and who signed it (section *Verifying a
    /// tlog proof*). Which origin and how many cosignatures are asked for is the caller's policy.
    ///
    /// # Errors
    ///
    /// [`InclusionFault::Checkpoint`] as [`Checkpoint::open`] returns it, or
    /// [`InclusionFault::Inclusion`].
    pub fn verify(&self, leaf: &Hash, keys: &[VerifyingKey]) -> Result<Opened, InclusionFault> {
        let opened = Checkpoint::open(&self.checkpoint, keys)?;
        let head = &opened.checkpoint;
        merkle::verify_inclusion(leaf, self.index, head.size(), &self.hashes, &head.root())?;
        Ok(opened)
    }
}

impl fmt::Display for InclusionProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encode())
    }
}

impl FromStr for InclusionProof {
    type Err = InclusionFault;

    fn from_str(text: &str) -> Result<Self, InclusionFault> {
        Self::parse(text)
    }
}

/// Reads the lines of at most [`MAX_HASHES`] hashes up to a blank line; returns what follows it.
pub(crate) fn read_hashes(mut text: &str) -> Option<(Vec<Hash>, &str)> {
    let mut hashes = Vec::new();
    loop {
        let (line, rest) = text.split_once('\n')?;
        text = rest;
        if line.is_empty() {
            return Some((hashes, text));
        }
        if hashes.len() == MAX_HASHES {
            return None;
        }
        hashes.push(Hash::from_base64(line)?);
    }
}

/// Writes the hashes, a line each, and a blank line.
pub(crate) fn write_hashes(text: &mut String, hashes: &[Hash]) {
    for hash in hashes {
        text.push_str(&hash.to_base64());
        text.push('\n');
    }
    text.push('\n');
}
