//! The protocol between a log and those who cosign its head: C2SP `tlog-witness`, section
//! *add-checkpoint*, without the HTTP around it.
//!
//! A log sends an [`AddCheckpoint`]. A witness finds the [`WitnessedLog`] of its
//! [`origin`](AddCheckpoint::origin), [decides](decide), stores the new head in the same transaction
//! that it read the old one in, and answers with its [cosignature](crate::note::Cosigner::cosign) or
//! with the [`Refusal`]'s status and body. The log takes the lines of witnesses that it knows with
//! [`accept_cosignatures`].

use sha2::{Digest, Sha256};

use crate::checkpoint::{Checkpoint, CheckpointFault, SIZE_END, decimal};
use crate::leaf::Hash;
use crate::merkle::{self, join_peaks};
use crate::note::{Algorithm, Note, NoteFault, Signature, VerifyingKey};
use crate::proof::{MAX_HASHES, read_hashes, write_hashes};

/// The content type of the body that tells a size, with status 409.
pub const SIZE_CONTENT_TYPE: &str = "text/x.tlog.size";

/// Why a text isn't the body of an `add-checkpoint` request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestFault {
    /// The first line isn't `old`, a space and a number below 2⁶³ without leading zeros.
    #[error("the first line is old and a size")]
    OldSize,
    /// A line of the proof isn't the base64 of 32 bytes, there are more than [`MAX_HASHES`], or no
    /// blank line ends them.
    #[error("the proof is at most {MAX_HASHES} lines of the padded base64 of 32 bytes")]
    Hashes,
    /// What follows isn't a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointFault),
}

impl From<NoteFault> for RequestFault {
    fn from(fault: NoteFault) -> Self {
        Self::Checkpoint(fault.into())
    }
}

/// What a log asks of a witness: to cosign a checkpoint that continues the last one it cosigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddCheckpoint {
    old: u64,
    proof: Vec<Hash>,
    note: Note,
    checkpoint: Checkpoint,
}

impl AddCheckpoint {
    /// The request for a checkpoint after one of size `old` (0 for the first), with the consistency
    /// proof that [`merkle::consistency_proof`] makes.
    ///
    /// # Errors
    ///
    /// [`RequestFault::OldSize`] from 2⁶³ on, [`RequestFault::Hashes`] for more than
    /// [`MAX_HASHES`], [`RequestFault::Checkpoint`] for a note with another text.
    pub fn new(old: u64, proof: Vec<Hash>, checkpoint: Note) -> Result<Self, RequestFault> {
        if old >= SIZE_END {
            return Err(RequestFault::OldSize);
        }
        if proof.len() > MAX_HASHES {
            return Err(RequestFault::Hashes);
        }
        Ok(Self {
            old,
            proof,
            checkpoint: Checkpoint::parse(checkpoint.text())?,
            note: checkpoint,
        })
    }

    /// Reads a request's body; accepts only what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    ///
    /// Any [`RequestFault`]; a witness answers all of them with 400.
    pub fn parse(body: &str) -> Result<Self, RequestFault> {
        let old = || {
            let (old, rest) = body.strip_prefix("old ")?.split_once('\n')?;
            Some((decimal(old)?, rest))
        };
        let (old, rest) = old().ok_or(RequestFault::OldSize)?;
        let (proof, checkpoint) = read_hashes(rest).ok_or(RequestFault::Hashes)?;
        Self::new(old, proof, Note::parse(checkpoint)?)
    }

    /// The request's body.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut body = format!("old {}\n", self.old);
        write_hashes(&mut body, &self.proof);
        body.push_str(&self.note.encode());
        body
    }

    /// The size of the checkpoint that the witness is thought to have cosigned last.
    #[must_use]
    pub const fn old(&self) -> u64 {
        self.old
    }

    /// The consistency proof from there.
    #[must_use]
    pub fn proof(&self) -> &[Hash] {
        &self.proof
    }

    /// The checkpoint with its signatures.
    #[must_use]
    pub const fn note(&self) -> &Note {
        &self.note
    }

    /// The log's name, as the request has it: nothing is verified yet.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.checkpoint.origin()
    }
}

/// What a witness knows of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessedLog {
    /// The log's name.
    pub origin: String,
    /// The keys it signs with.
    pub keys: Vec<VerifyingKey>,
    /// The size of the checkpoint that was cosigned last, 0 before the first.
    pub size: u64,
    /// The root of that checkpoint; that of the empty tree before the first.
    pub root: Hash,
}

impl WitnessedLog {
    /// A log of which nothing was cosigned yet.
    #[must_use]
    pub fn new(origin: &str, keys: Vec<VerifyingKey>) -> Self {
        Self {
            origin: origin.to_owned(),
            keys,
            size: 0,
            root: join_peaks(&[]),
        }
    }
}

/// Why a witness doesn't cosign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The body isn't a request.
    #[error(transparent)]
    Malformed(#[from] RequestFault),
    /// The witness isn't configured for a log of this name.
    #[error("unknown log")]
    UnknownLog,
    /// No key of the log signed, or a signature in a key's name isn't that key's.
    #[error("not signed by the log")]
    Unsigned,
    /// The old size is above the checkpoint's.
    #[error("the old size is above the checkpoint's")]
    Shrunk,
    /// The last checkpoint that was cosigned has another size than the request's old one: this one.
    #[error("the last cosigned checkpoint has size {0}")]
    Conflict(u64),
    /// The proof doesn't show that the checkpoint continues the last one, or the root of a tree of
    /// the same size, or of the empty tree, is another.
    #[error("not shown to continue the last cosigned checkpoint")]
    Inconsistent,
}

impl Refusal {
    /// The HTTP status that the page asks for.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Shrunk => 400,
            Self::Unsigned => 403,
            Self::UnknownLog => 404,
            Self::Conflict(_) => 409,
            Self::Inconsistent => 422,
        }
    }

    /// The response's body: of a conflict the size alone, as [`SIZE_CONTENT_TYPE`]; else a sentence
    /// for people.
    #[must_use]
    pub fn body(&self) -> String {
        match self {
            Self::Conflict(size) => format!("{size}\n"),
            other => format!("{other}\n"),
        }
    }
}

/// Reads the size out of a [`Refusal::Conflict`]'s body; `None` for any other text.
#[must_use]
pub fn parse_conflict(body: &str) -> Option<u64> {
    decimal(body.strip_suffix('\n')?).filter(|size| *size < SIZE_END)
}

/// Whether a witness cosigns: `log` is what it knows of the log with the request's
/// [`origin`](AddCheckpoint::origin), if any. On success it stores the size and root of the
/// checkpoint that is returned as the log's last, before it answers; reading and storing are one
/// step, so that no other request comes between.
///
/// A repeat of the last checkpoint is consistent with itself and is cosigned again.
///
/// # Errors
///
/// The first [`Refusal`] in the page's order: 404, 403, 400, 409, 422.
pub fn decide<'a>(
    request: &'a AddCheckpoint,
    log: Option<&WitnessedLog>,
) -> Result<&'a Checkpoint, Refusal> {
    let checkpoint = &request.checkpoint;
    let log = log
        .filter(|log| log.origin == checkpoint.origin())
        .ok_or(Refusal::UnknownLog)?;
    let signers = request
        .note
        .verify(&log.keys)
        .map_err(|_| Refusal::Unsigned)?;
    // A cosigner's key that was configured by mistake doesn't speak for the log.
    let by_log = |algorithm| algorithm == Algorithm::Ed25519;
    if !signers.iter().any(|signer| by_log(signer.key.algorithm())) {
        return Err(Refusal::Unsigned);
    }
    if request.old > checkpoint.size() {
        return Err(Refusal::Shrunk);
    }
    if request.old != log.size {
        return Err(Refusal::Conflict(log.size));
    }
    let (size, root) = (checkpoint.size(), checkpoint.root());
    merkle::verify_consistency(log.size, &log.root, size, &root, &request.proof)
        .map_err(|_| Refusal::Inconsistent)?;
    Ok(checkpoint)
}

/// Takes the cosignatures of known witnesses out of a witness's answer, to be
/// [added](Note::add) to the checkpoint. Lines of unknown keys are ignored.
///
/// # Errors
///
/// [`NoteFault::SignatureLine`] or [`NoteFault::Name`] for an answer that isn't signature lines,
/// [`NoteFault::BadSignature`] for one of a known witness that isn't its own,
/// [`NoteFault::Time`] for one that tells no time, [`NoteFault::NoKnownKey`] when none is left.
pub fn accept_cosignatures(
    checkpoint: &Note,
    answer: &str,
    witnesses: &[VerifyingKey],
) -> Result<Vec<Signature>, NoteFault> {
    let lines = answer
        .split_inclusive('\n')
        .map(Signature::parse)
        .collect::<Result<Vec<_>, _>>()?;
    let mut accepted = Vec::new();
    for line in lines {
        match checkpoint.with_only(line.clone()).verify(witnesses) {
            Ok(signers) if signers.iter().all(|signer| signer.time > Some(0)) => {
                accepted.push(line);
            }
            Ok(_) => return Err(NoteFault::Time),
            Err(NoteFault::NoKnownKey) => {}
            Err(fault) => return Err(fault),
        }
    }
    if accepted.is_empty() {
        Err(NoteFault::NoKnownKey)
    } else {
        Ok(accepted)
    }
}

/// Where a witness serves the last checkpoint of a log that it cosigned, below its monitoring
/// prefix: `<SHA-256 of the origin, hexadecimal>/checkpoint` (section *Monitor Retrieval
/// Mechanism*).
#[must_use]
pub fn monitoring_path(origin: &str) -> String {
    let hash = Hash(Sha256::digest(origin).into());
    format!("{hash}/checkpoint")
}
