//! A log held in memory, whose roots and proofs come from its leaves and from no tile.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;

use audit_tlog::leaf::leaf_hash;
use audit_tlog::merkle::{consistency_proof, inclusion_proof, subtree_root};
use audit_tlog::tile::{Content, encode_entries};
use audit_tlog::{Checkpoint, Hash, Note, SigningKey, Tile, TileEdge};

pub(crate) const ORIGIN: &str = "logs.example.com/audit/0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3";

/// A key whose secret is the same byte 32 times.
pub(crate) fn key(name: &str, secret: u8) -> SigningKey {
    SigningKey::from_seed(name, &[secret; 32]).unwrap()
}

pub(crate) struct Log {
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) leaves: Vec<Hash>,
}

impl Log {
    pub(crate) fn of(size: u64) -> Self {
        // Lengths differ, and the first entry is empty.
        let entries: Vec<_> = (0..size)
            .map(|i| format!("{i} ").repeat((i % 7) as usize).into_bytes())
            .collect();
        Self::with(entries)
    }

    pub(crate) fn with(entries: Vec<Vec<u8>>) -> Self {
        let leaves = entries.iter().map(|entry| leaf_hash(entry)).collect();
        Self { entries, leaves }
    }

    pub(crate) fn node(&self, range: Range<u64>) -> Hash {
        subtree_root(&self.leaves[range.start as usize..range.end as usize])
    }

    pub(crate) fn root(&self, size: u64) -> Hash {
        self.node(0..size)
    }

    pub(crate) fn inclusion(&self, index: u64, size: u64) -> Vec<Hash> {
        let node = |range| Ok::<_, Infallible>(self.node(range));
        inclusion_proof(index, size, node).unwrap()
    }

    pub(crate) fn consistency(&self, old: u64, new: u64) -> Vec<Hash> {
        let node = |range| Ok::<_, Infallible>(self.node(range));
        consistency_proof(old, new, node).unwrap()
    }

    /// The signed head at a size.
    pub(crate) fn checkpoint(&self, size: u64, keys: &[&SigningKey]) -> Note {
        let checkpoint = Checkpoint::new(keys[0].name(), size, self.root(size)).unwrap();
        checkpoint.sign(keys).unwrap()
    }

    /// Every tile of hashes, full or partial at one of these ascending sizes, made by appending.
    pub(crate) fn hash_tiles(&self, sizes: &[u64]) -> BTreeMap<Tile, Vec<u8>> {
        let mut tiles = BTreeMap::new();
        let mut edge = TileEdge::new();
        for &size in sizes {
            for leaf in &self.leaves[edge.size() as usize..size as usize] {
                tiles.extend(edge.push(*leaf));
            }
            tiles.extend(edge.partial());
        }
        tiles
    }

    /// Every tile of entries at a size.
    pub(crate) fn entry_tiles(&self, size: u64) -> BTreeMap<Tile, Vec<u8>> {
        Tile::added(Content::Entries, 0, size)
            .map(|tile| {
                let leaves = tile.leaves();
                let entries = &self.entries[leaves.start as usize..leaves.end as usize];
                (tile, encode_entries(entries).unwrap())
            })
            .collect()
    }
}
