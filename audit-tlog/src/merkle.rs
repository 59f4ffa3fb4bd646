//! The Merkle tree of RFC 6962 §2.1, and its proofs.
//!
//! `MTH` is that section's Merkle Tree Hash. A log never holds its tree in memory: [`Tree`] keeps
//! only the roots of the perfect subtrees that a size is made of, and a proof is first a list of
//! leaf ranges ([`inclusion_nodes`], [`consistency_nodes`]) whose hashes the caller finds, in
//! stored tiles for instance. Verification follows RFC 9162 §2.1.3.2 and §2.1.4.2, which gives the
//! same proofs their algorithms.

use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::leaf::{Hash, node_hash};

/// Why a proof doesn't hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofFault {
    /// The position is not below the size.
    #[error("the position is not in the tree")]
    BadIndex,
    /// The older tree is larger than the newer one.
    #[error("the older tree is larger than the newer")]
    BadSize,
    /// The proof doesn't have as many hashes as the sizes ask for.
    #[error("the proof has the wrong number of hashes")]
    BadLength,
    /// The proof leads to another root, of the older or of the newer tree.
    #[error("the proof leads to another root")]
    RootMismatch,
}

/// A tree that grows: its size, and the roots of the perfect subtrees that it is made of, one for
/// each bit that is set in the size, the largest (leftmost) first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    peaks: Vec<Hash>,
}

impl Tree {
    /// The empty tree.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            size: 0,
            peaks: Vec::new(),
        }
    }

    /// How many leaves it has.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf, given its [`leaf_hash`](crate::leaf::leaf_hash).
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        // Each trailing one of the size is a subtree that the new leaf completes a pair with.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.peaks.push(node);
        self.size += 1;
    }

    /// Appends a run of leaves of which only the root is known: `1 << level` of them, at a size that
    /// is a multiple of their number, so that they are a perfect subtree of the grown tree
    /// ([`subtrees`] lists such runs). `false`, and nothing is appended, at any other size, for a
    /// level of 63 and more, or where the tree would have 2⁶³ leaves.
    pub fn push_subtree(&mut self, level: u32, root: Hash) -> bool {
        if level >= 63 || self.size.trailing_zeros() < level {
            return false;
        }
        let grown = self.size + (1 << level);
        if grown >= 1 << 63 {
            return false;
        }
        let mut node = root;
        for _ in 0..(self.size >> level).trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.peaks.push(node);
        self.size = grown;
        true
    }

    /// The root, `MTH` of all leaves; SHA-256 of nothing when there are none.
    #[must_use]
    pub fn root(&self) -> Hash {
        join_peaks(&self.peaks)
    }

    /// The roots of the perfect subtrees, the largest first; [`root_ranges`] says of which leaves.
    #[must_use]
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// The tree of a size and its [`peaks`](Self::peaks). `None` when their number is not that of
    /// the bits set in the size, or the size is 2⁶³ or more.
    #[must_use]
    pub fn from_parts(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        let fits = size.count_ones() as usize == peaks.len() && size < 1 << 63;
        fits.then_some(Self { size, peaks })
    }

    /// The [`peaks`](Self::peaks), 32 bytes each, one after the other.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.peaks.iter().flat_map(|peak| peak.0).collect()
    }

    /// The tree of a size and what [`to_bytes`](Self::to_bytes) wrote; `None` as for
    /// [`from_parts`](Self::from_parts).
    #[must_use]
    pub fn from_bytes(size: u64, bytes: &[u8]) -> Option<Self> {
        let (peaks, []) = bytes.as_chunks::<32>() else {
            return None;
        };
        Self::from_parts(size, peaks.iter().copied().map(Hash).collect())
    }
}

impl Extend<Hash> for Tree {
    fn extend<I: IntoIterator<Item = Hash>>(&mut self, leaves: I) {
        leaves.into_iter().for_each(|leaf| self.push(leaf));
    }
}

impl FromIterator<Hash> for Tree {
    fn from_iter<I: IntoIterator<Item = Hash>>(leaves: I) -> Self {
        let mut tree = Self::new();
        tree.extend(leaves);
        tree
    }
}

/// The root of a log of these leaf hashes; SHA-256 of nothing for none.
#[must_use]
pub fn root(leaves: &[Hash]) -> Hash {
    subtree_root(leaves)
}

/// `MTH` of any run of leaf hashes, such as a range that a proof asks for.
#[must_use]
pub fn subtree_root(leaves: &[Hash]) -> Hash {
    leaves.iter().copied().collect::<Tree>().root()
}

/// `MTH` of the leaves of adjacent perfect subtrees, given their roots, the largest first:
/// [`root_ranges`] or [`range_peaks`] says which. SHA-256 of nothing for none.
#[must_use]
pub fn join_peaks(peaks: &[Hash]) -> Hash {
    let Some((last, rest)) = peaks.split_last() else {
        return Hash(Sha256::digest([]).into());
    };
    rest.iter()
        .rfold(*last, |right, left| node_hash(left, &right))
}

/// The perfect subtrees that a tree of this size is made of, as ranges of leaves, the largest
/// first; none for size 0.
#[must_use]
pub fn root_ranges(size: u64) -> Vec<Range<u64>> {
    range_peaks(0..size)
}

/// The perfect subtrees that one of a proof's ranges is made of, the largest first; their roots,
/// joined by [`join_peaks`], give the range's hash. Only the last range to the right of a tree is
/// made of more than one.
#[must_use]
pub fn range_peaks(range: Range<u64>) -> Vec<Range<u64>> {
    let mut peaks = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let end = start + (1 << (range.end - start).ilog2());
        peaks.push(start..end);
        start = end;
    }
    peaks
}

/// The perfect subtrees that any range of leaves is made of, from left to right, each the largest
/// that begins there; what [`Tree::push_subtree`] takes one after the other. At most two of each
/// size; none for an empty range.
#[must_use]
pub fn subtrees(range: Range<u64>) -> Vec<Range<u64>> {
    let mut subtrees = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let level = (range.end - start).ilog2().min(start.trailing_zeros());
        let end = start + (1 << level);
        subtrees.push(start..end);
        start = end;
    }
    subtrees
}

/// The perfect subtrees that a tree of this size is made of, the largest first, each as a run of
/// complete tiles' roots: the level, and which of the roots of 256^level leaves (at level 0 the leaf
/// hashes) lie below it. What a log that keeps those roots reads an earlier tree's peaks from.
#[must_use]
pub fn peak_runs(size: u64) -> Vec<(u8, Range<u64>)> {
    root_ranges(size)
        .into_iter()
        .map(|leaves| {
            // A subtree of 2^bits leaves is a run of roots of the highest level that fits it.
            let bits = (leaves.end - leaves.start).ilog2();
            let level = bits / 8;
            let run = leaves.start >> (8 * level)..leaves.end >> (8 * level);
            (level as u8, run)
        })
        .collect()
}

/// The inclusion proof of a position (`PATH` of RFC 6962 §2.1.1) as the ranges of leaves whose
/// `MTH` are its hashes, from the leaf upwards. `None` unless `index < size`; empty for a tree of
/// one leaf.
#[must_use]
pub fn inclusion_nodes(index: u64, size: u64) -> Option<Vec<Range<u64>>> {
    if index >= size {
        return None;
    }
    let mut nodes = Vec::new();
    let (mut start, mut end) = (0, size);
    while end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            nodes.push(middle..end);
            end = middle;
        } else {
            nodes.push(start..middle);
            start = middle;
        }
    }
    nodes.reverse();
    Some(nodes)
}

/// The consistency proof between two sizes (`PROOF` of RFC 6962 §2.1.2) as the ranges of leaves
/// whose `MTH` are its hashes, in the RFC's order. `None` unless `old <= new`. Empty when they are
/// equal, and for `old` 0, which the RFC leaves open: every tree continues the empty one.
#[must_use]
pub fn consistency_nodes(old: u64, new: u64) -> Option<Vec<Range<u64>>> {
    if old > new {
        return None;
    }
    let mut nodes = Vec::new();
    if old == 0 {
        return Some(nodes);
    }
    let (mut start, mut end) = (0, new);
    while end != old {
        let middle = start + split(end - start);
        if old <= middle {
            nodes.push(middle..end);
            end = middle;
        } else {
            nodes.push(start..middle);
            start = middle;
        }
    }
    // The old tree's own root isn't sent: the verifier has it.
    if start != 0 {
        nodes.push(start..end);
    }
    nodes.reverse();
    Some(nodes)
}

/// The inclusion proof of a position: [`inclusion_nodes`], each hash asked of `node`, which gets a
/// range of leaves and returns its `MTH`.
///
/// When `index` is not below `size` there is no proof; `node` isn't asked, and the result is empty,
/// which [`verify_inclusion`] refuses for such a position.
///
/// # Errors
///
/// The first that `node` returns.
pub fn inclusion_proof<E>(
    index: u64,
    size: u64,
    node: impl FnMut(Range<u64>) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    inclusion_nodes(index, size)
        .unwrap_or_default()
        .into_iter()
        .map(node)
        .collect()
}

/// The consistency proof between two sizes: [`consistency_nodes`], each hash asked of `node`, which
/// gets a range of leaves and returns its `MTH`.
///
/// When `old` is above `new` there is no proof; `node` isn't asked, and the result is empty, which
/// [`verify_consistency`] refuses for such sizes.
///
/// # Errors
///
/// The first that `node` returns.
pub fn consistency_proof<E>(
    old: u64,
    new: u64,
    node: impl FnMut(Range<u64>) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    consistency_nodes(old, new)
        .unwrap_or_default()
        .into_iter()
        .map(node)
        .collect()
}

/// Checks that a leaf hash stands at a position of the tree with this size and root (RFC 9162
/// §2.1.3.2).
///
/// # Errors
///
/// [`ProofFault::BadIndex`], [`ProofFault::BadLength`] or [`ProofFault::RootMismatch`].
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofFault> {
    if index >= size {
        return Err(ProofFault::BadIndex);
    }
    let (mut node, mut last) = (index, size - 1);
    let mut computed = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(ProofFault::BadLength);
        }
        if node & 1 == 1 || node == last {
            computed = node_hash(sibling, &computed);
            // The last node of a level may have no sibling there, nor on the levels above.
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            computed = node_hash(&computed, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        Err(ProofFault::BadLength)
    } else if computed == *root {
        Ok(())
    } else {
        Err(ProofFault::RootMismatch)
    }
}

/// Checks that the tree with the newer size and root continues the one with the older size and root
/// (RFC 9162 §2.1.4.2). For equal sizes and for the older size 0 the proof is empty and the roots
/// alone decide, that of size 0 being SHA-256 of nothing.
///
/// # Errors
///
/// [`ProofFault::BadSize`], [`ProofFault::BadLength`] or [`ProofFault::RootMismatch`].
pub fn verify_consistency(
    old_size: u64,
    old_root: &Hash,
    new_size: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofFault> {
    if old_size > new_size {
        return Err(ProofFault::BadSize);
    }
    let empty = join_peaks(&[]);
    for (size, root) in [(old_size, old_root), (new_size, new_root)] {
        if size == 0 && *root != empty {
            return Err(ProofFault::RootMismatch);
        }
    }
    if old_size == 0 || old_size == new_size {
        return if !proof.is_empty() {
            Err(ProofFault::BadLength)
        } else if old_size == new_size && old_root != new_root {
            Err(ProofFault::RootMismatch)
        } else {
            Ok(())
        };
    }

    // A power of two is one perfect subtree: its root begins the proof, and isn't sent.
    let (first, rest) = if old_size.is_power_of_two() {
        (old_root, proof)
    } else {
        proof.split_first().ok_or(ProofFault::BadLength)?
    };
    let skipped = (old_size - 1).trailing_ones();
    let (mut node, mut last) = ((old_size - 1) >> skipped, (new_size - 1) >> skipped);
    let (mut old, mut new) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return Err(ProofFault::BadLength);
        }
        if node & 1 == 1 || node == last {
            old = node_hash(sibling, &old);
            new = node_hash(sibling, &new);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new = node_hash(&new, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        Err(ProofFault::BadLength)
    } else if old == *old_root && new == *new_root {
        Ok(())
    } else {
        Err(ProofFault::RootMismatch)
    }
}

/// Where RFC 6962 splits `n > 1` leaves: the largest power of two below `n`.
const fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}
