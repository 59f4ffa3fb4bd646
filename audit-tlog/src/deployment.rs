//! The deployment log: one log whose leaves commit to the heads of all tenants' logs, so that one
//! witness vouches for all of them and learns about none.
//!
//! A leaf is the ASCII text
//!
//! ```text
//! {"v":1,"commitment":"<base64url without padding of 32 bytes>"}
//! ```
//!
//! and the commitment is SHA-256 over these 96 bytes, every part of which has a fixed length:
//!
//! ```text
//! "audit-log/v1/deployment/" (24) ‖ salt (16) ‖ tenant id (16) ‖ size (8, big-endian) ‖ root (32)
//! ```
//!
//! The tenant id is in the order of its hexadecimal digits (RFC 9562 §4). The salt is random, drawn
//! anew for each leaf: it hides which tenant a leaf is of, and whether a head is the same as before.
//! A tenant is given the [`HeadOpening`], with which it checks that its head is in the log. Leaves
//! are hashed as RFC 6962 says and are entries of a `tlog-tiles` log like any other.
//!
//! A *head proof* is a C2SP `tlog-proof` of such a leaf whose extra data is the JSON of the opening:
//! one text that [`verify_head`] checks offline.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::checkpoint::{Checkpoint, SIZE_END};
use crate::json;
use crate::leaf::{Hash, Salt, leaf_hash};
use crate::note::VerifyingKey;
use crate::proof::{InclusionFault, InclusionProof};

const DOMAIN: &[u8] = b"audit-log/v1/deployment/";

/// Not an opening, or not the one of this leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpeningFault {
    /// Not the JSON text of an opening in its only spelling.
    #[error("not an opening of a deployment log's leaf")]
    Shape,
    /// The leaf is another's, or no deployment log's at all.
    #[error("the leaf does not commit to this head")]
    OtherLeaf,
}

/// Why a head proof doesn't prove.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadFault {
    /// The extra data isn't an opening.
    #[error(transparent)]
    Opening(#[from] OpeningFault),
    /// The text is no proof, the log did not sign, or the leaf isn't in it.
    #[error(transparent)]
    Proof(#[from] InclusionFault),
    /// Fewer witnesses cosigned than were asked for.
    #[error("{found} of the known witnesses cosigned, and {least} have to")]
    Witnesses {
        /// How many did.
        found: usize,
        /// How many were asked for.
        least: usize,
    },
}

/// A tenant's head that is in the deployment log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessedHead {
    /// The tenant's head.
    pub opening: HeadOpening,
    /// The position of its leaf.
    pub index: u64,
    /// The deployment log's head.
    pub checkpoint: Checkpoint,
    /// The witnesses that cosigned that head, with the time that each states, in seconds since the
    /// epoch: by then the tenant's head was there.
    pub cosigned: Vec<(VerifyingKey, u64)>,
}

/// Whom somebody trusts who checks a head proof. The keys are named, so that a witness's is never taken
/// for the log's.
#[derive(Clone, Copy, Debug)]
pub struct HeadPolicy<'a> {
    /// The keys of the deployment log, of which one has to have signed.
    pub log: &'a [VerifyingKey],
    /// The witnesses whose cosignatures count.
    pub witnesses: &'a [VerifyingKey],
    /// How many of them have to have cosigned; 0 asks for none.
    pub least: usize,
}

/// Checks a head proof: that its opening is that of its leaf, that the leaf stands in a log that one of
/// the log's keys signed for, and that at least so many of the witnesses cosigned. Whether the opening is of
/// the expected tenant, and its head the expected one, is for the caller to compare.
///
/// # Errors
///
/// Any [`HeadFault`]. A signature in the name of the log's key or of a known witness's that isn't
/// theirs is one, however many others there are.
pub fn verify_head(
    proof: &InclusionProof,
    policy: &HeadPolicy<'_>,
) -> Result<WitnessedHead, HeadFault> {
    let HeadPolicy {
        log,
        witnesses,
        least,
    } = *policy;
    let opening = HeadOpening::of(proof)?;
    let keys = [log, witnesses].concat();
    let opened = proof.verify(&opening.leaf_hash(), &keys)?;
    // A key of the log's that was configured as a witness states no time.
    let cosigned: Vec<_> = opened
        .cosigners()
        .map(|(key, time)| (key.clone(), time))
        .collect();
    let found = cosigned.len();
    if found < least {
        return Err(HeadFault::Witnesses { found, least });
    }
    Ok(WitnessedHead {
        opening,
        index: proof.index(),
        checkpoint: opened.checkpoint,
        cosigned,
    })
}

/// The leaf data of a commitment.
#[must_use]
pub fn leaf_data(commitment: &Hash) -> String {
    let commitment = commitment.to_base64url();
    format!("{{\"v\":1,\"commitment\":\"{commitment}\"}}")
}

/// What a leaf of the deployment log commits to: a tenant's head, and the salt that hides it. It is
/// for the tenant, and not secret from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadOpening {
    /// 16 random bytes, the caller's draw, for this leaf alone.
    pub salt: Salt,
    /// Whose log.
    pub tenant: Uuid,
    /// The log's size, below 2⁶³.
    pub size: u64,
    /// The log's root at that size.
    pub root: Hash,
}

impl HeadOpening {
    /// The commitment.
    #[must_use]
    pub fn commitment(&self) -> Hash {
        Hash(
            Sha256::new()
                .chain_update(DOMAIN)
                .chain_update(self.salt.as_bytes())
                .chain_update(self.tenant.as_bytes())
                .chain_update(self.size.to_be_bytes())
                .chain_update(self.root.as_bytes())
                .finalize()
                .into(),
        )
    }

    /// The leaf data.
    #[must_use]
    pub fn leaf_data(&self) -> String {
        leaf_data(&self.commitment())
    }

    /// The hash of the leaf.
    #[must_use]
    pub fn leaf_hash(&self) -> Hash {
        leaf_hash(self.leaf_data().as_bytes())
    }

    /// Checks that leaf data commits to this head.
    ///
    /// # Errors
    ///
    /// [`OpeningFault::OtherLeaf`].
    pub fn check(&self, leaf_data: &[u8]) -> Result<(), OpeningFault> {
        if self.leaf_data().as_bytes() == leaf_data {
            Ok(())
        } else {
            Err(OpeningFault::OtherLeaf)
        }
    }

    /// The opening as JSON, to hand to the tenant:
    /// `{"v":1,"salt":"<base64url without padding>","tenant_id":"…","size":n,"root":"<base64>"}`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let salt = URL_SAFE_NO_PAD.encode(self.salt.as_bytes());
        let (tenant, size, root) = (self.tenant, self.size, self.root.to_base64());
        format!(
            "{{\"v\":1,\"salt\":\"{salt}\",\"tenant_id\":\"{tenant}\",\"size\":{size},\"root\":\"{root}\"}}"
        )
    }

    /// The opening that a head proof has. Whether it is that of the proof's leaf, [`verify_head`] says.
    ///
    /// # Errors
    ///
    /// [`OpeningFault::Shape`].
    pub fn of(proof: &InclusionProof) -> Result<Self, OpeningFault> {
        let extra = proof.extra().and_then(|extra| str::from_utf8(extra).ok());
        Self::parse(extra.ok_or(OpeningFault::Shape)?)
    }

    /// Reads an opening; accepts only what [`to_json`](Self::to_json) writes.
    ///
    /// # Errors
    ///
    /// [`OpeningFault::Shape`], also for a size of 2⁶³ or more.
    pub fn parse(text: &str) -> Result<Self, OpeningFault> {
        let read = || {
            let members = json::members(text).ok()?;
            let [_, salt, tenant, size, root] = members.as_slice() else {
                return None;
            };
            let string = |raw| json::string(raw).ok();
            let salt = URL_SAFE_NO_PAD.decode(&*string(salt.raw)?).ok()?;
            let opening = Self {
                salt: Salt::from_slice(&salt)?,
                tenant: Uuid::try_parse(&string(tenant.raw)?).ok()?,
                size: size.raw.parse().ok().filter(|size| *size < SIZE_END)?,
                root: Hash::from_base64(&string(root.raw)?)?,
            };
            // Names, order and white space, and other spellings of the values.
            (opening.to_json() == text).then_some(opening)
        };
        read().ok_or(OpeningFault::Shape)
    }
}
