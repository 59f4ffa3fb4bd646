//! Tiles: a log's tree and entries as files that never change, C2SP `tlog-tiles`.
//!
//! [`Tile`] names one (its path and what it spans), the functions below it encode and read what it
//! holds, [`TileEdge`] makes the tiles of a log that grows and [`TileReader`] finds the hashes of
//! proofs in them. Trees have fewer than 2⁶³ leaves; the page's levels above 7, which no such tree
//! has, are refused.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::checkpoint::{SIZE_END, decimal};
use crate::leaf::{Hash, MAX_LEAF_LEN};
use crate::merkle::{self, Tree, join_peaks, range_peaks, subtree_root};

/// How many hashes or entries a full tile has.
pub const FULL_WIDTH: u16 = 256;

/// The highest level that a tree of fewer than 2⁶³ leaves has tiles on.
pub const MAX_LEVEL: u8 = 7;

/// How many tiles a [`TileReader`] keeps, 8 kB each.
const KEPT_TILES: usize = 64;

/// Why something is not a tile's path or content, or not to be had from tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TileFault {
    /// Not the path of a tile that a tree can have, in its only spelling.
    #[error("not a tile's path")]
    Path,
    /// The content has another number of hashes or entries than its tile's width, or ends within
    /// one.
    #[error("a tile of width {0} has other content")]
    Content(u16),
    /// An entry is longer than [`MAX_LEAF_LEN`].
    #[error("an entry has at most {MAX_LEAF_LEN} bytes")]
    EntryLength,
    /// The range isn't one of a proof in the tree, or reaches beyond its size.
    #[error("the tree has no node over these leaves")]
    Node,
}

/// What a tile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// Hashes of the tree on a level: at 0 those of leaves, above it the roots of the full tiles
    /// one level below.
    Hashes(u8),
    /// Entries, that is, leaf data.
    Entries,
}

impl Content {
    /// The level on whose grid the tile lies; entries have that of leaf hashes.
    const fn level(self) -> u8 {
        match self {
            Self::Hashes(level) => level,
            Self::Entries => 0,
        }
    }
}

/// One tile's name: what it holds, its index within its level, and its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    content: Content,
    index: u64,
    width: u16,
}

impl Tile {
    /// The tile of this index and width, 1 to [`FULL_WIDTH`]. `None` for another width, a level
    /// above [`MAX_LEVEL`], or a tile beyond every tree.
    #[must_use]
    pub fn new(content: Content, index: u64, width: u16) -> Option<Self> {
        let level = content.level();
        if level > MAX_LEVEL || !(1..=FULL_WIDTH).contains(&width) {
            return None;
        }
        let end = index
            .checked_mul(u64::from(FULL_WIDTH))?
            .checked_add(u64::from(width))?;
        (end <= (SIZE_END - 1) >> (8 * level)).then_some(Self {
            content,
            index,
            width,
        })
    }

    /// The tile of this index in a tree of this size, full or partial; `None` where the tree has
    /// none.
    #[must_use]
    pub fn at(content: Content, index: u64, size: u64) -> Option<Self> {
        let level = content.level();
        if level > MAX_LEVEL {
            return None;
        }
        let items = size >> (8 * level);
        let left = items.checked_sub(index.checked_mul(u64::from(FULL_WIDTH))?)?;
        let width = u16::try_from(left).map_or(FULL_WIDTH, |left| left.min(FULL_WIDTH));
        Self::new(content, index, width)
    }

    /// The tiles with this content that a tree of size `new` has and one of size `old` has not, in
    /// their order; with `old` 0 all of them. A tile that is partial at both sizes is among them
    /// when it grew. None unless `old < new`.
    pub fn added(content: Content, old: u64, new: u64) -> impl Iterator<Item = Self> {
        let shift = 8 * content.level().min(MAX_LEVEL);
        let width = u64::from(FULL_WIDTH);
        let (old_items, new_items) = (old >> shift, new >> shift);
        // Nothing that was there already is made again: without growth the range is empty.
        let indices = if old_items < new_items {
            old_items / width..new_items.div_ceil(width)
        } else {
            0..0
        };
        indices.filter_map(move |index| Self::at(content, index, new))
    }

    /// What it holds.
    #[must_use]
    pub const fn content(&self) -> Content {
        self.content
    }

    /// Its place within its level, from 0.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// How many hashes or entries it has.
    #[must_use]
    pub const fn width(&self) -> u16 {
        self.width
    }

    /// Whether it has [`FULL_WIDTH`] of them, so that it stays as it is while the log grows.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.width == FULL_WIDTH
    }

    /// The positions of the leaves that it spans.
    #[must_use]
    pub fn leaves(&self) -> Range<u64> {
        let shift = 8 * self.content.level();
        let start = self.index * u64::from(FULL_WIDTH);
        start << shift..(start + u64::from(self.width)) << shift
    }

    /// The path below the log's prefix: `tile/<level>/<index>` or `tile/entries/<index>`, with
    /// `.p/<width>` when it is partial; the index in groups of three digits, such as
    /// `x001/x234/067`.
    #[must_use]
    pub fn path(&self) -> String {
        let mut path = match self.content {
            Content::Hashes(level) => format!("tile/{level}"),
            Content::Entries => String::from("tile/entries"),
        };
        let digits = self.index.to_string();
        let groups = digits.len().div_ceil(3);
        let digits = format!("{digits:0>width$}", width = 3 * groups);
        for (group, start) in (0..digits.len()).step_by(3).enumerate() {
            path.push_str(if group + 1 < groups { "/x" } else { "/" });
            path.push_str(&digits[start..start + 3]);
        }
        if !self.is_full() {
            path.push_str(&format!(".p/{}", self.width));
        }
        path
    }

    /// Reads a path; accepts only what [`path`](Self::path) writes.
    ///
    /// # Errors
    ///
    /// [`TileFault::Path`].
    pub fn parse(path: &str) -> Result<Self, TileFault> {
        let read = || {
            let (content, rest) = path.strip_prefix("tile/")?.split_once('/')?;
            let content = match content {
                "entries" => Content::Entries,
                level => Content::Hashes(decimal(level)?.try_into().ok()?),
            };
            let (index, width) = match rest.split_once(".p/") {
                Some((index, width)) => (index, decimal(width)?.try_into().ok()?),
                None => (rest, FULL_WIDTH),
            };
            let index = index
                .split('/')
                .map(|group| group.strip_prefix('x').unwrap_or(group))
                .collect::<String>();
            // Digits only: the spelling is compared below.
            let index = index.parse().ok()?;
            let tile = Self::new(content, index, width)?;
            (tile.path() == path).then_some(tile)
        };
        read().ok_or(TileFault::Path)
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.path())
    }
}

impl FromStr for Tile {
    type Err = TileFault;

    fn from_str(path: &str) -> Result<Self, TileFault> {
        Self::parse(path)
    }
}

/// The content of a tile of hashes: 32 bytes each, one after the other.
#[must_use]
pub fn encode_hashes(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// Reads the content of a tile of hashes of this width.
///
/// # Errors
///
/// [`TileFault::Content`] for another number of bytes than 32 for each.
pub fn parse_hashes(bytes: &[u8], width: u16) -> Result<Vec<Hash>, TileFault> {
    match bytes.as_chunks::<32>() {
        (hashes, []) if hashes.len() == usize::from(width) => {
            Ok(hashes.iter().copied().map(Hash).collect())
        }
        _ => Err(TileFault::Content(width)),
    }
}

/// The content of a tile of entries: before each leaf data its length, as 2 bytes big-endian.
///
/// # Errors
///
/// [`TileFault::EntryLength`].
pub fn encode_entries<I>(entries: I) -> Result<Vec<u8>, TileFault>
where
    I: IntoIterator,
    I::Item: AsRef<[u8]>,
{
    let mut bytes = Vec::new();
    for entry in entries {
        let entry = entry.as_ref();
        let length = u16::try_from(entry.len()).map_err(|_| TileFault::EntryLength)?;
        bytes.extend(length.to_be_bytes());
        bytes.extend(entry);
    }
    Ok(bytes)
}

/// Reads the content of a tile of entries of this width. Their hashes are not compared with the
/// tree's.
///
/// # Errors
///
/// [`TileFault::Content`] for more or fewer entries, or bytes that end within one.
pub fn parse_entries(mut bytes: &[u8], width: u16) -> Result<Vec<&[u8]>, TileFault> {
    let mut entries = Vec::with_capacity(usize::from(width.min(FULL_WIDTH)));
    for _ in 0..width {
        let read = || {
            let (length, rest) = bytes.split_first_chunk::<2>()?;
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
        };
        let (entry, rest) = read().ok_or(TileFault::Content(width))?;
        entries.push(entry);
        bytes = rest;
    }
    if bytes.is_empty() {
        Ok(entries)
    } else {
        Err(TileFault::Content(width))
    }
}

/// The tiles of hashes of a log that grows, of which only the partial ones are kept: fewer than 256
/// hashes on each level. The same leaves give the same tiles, in whatever steps they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TileEdge {
    size: u64,
    /// On each level the hashes that don't fill a tile yet.
    levels: Vec<Vec<Hash>>,
}

impl TileEdge {
    /// That of the empty log.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            size: 0,
            levels: Vec::new(),
        }
    }

    /// That of a log of this size, from its partial tiles, whose content is asked of `fetch`, at
    /// most one for each level.
    ///
    /// # Errors
    ///
    /// The first that `fetch` returns, [`TileFault::Content`] when it isn't of the tile's width,
    /// [`TileFault::Node`] for a size of 2⁶³ or more.
    pub fn resume<E: From<TileFault>>(
        size: u64,
        mut fetch: impl FnMut(Tile) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        if size >= SIZE_END {
            return Err(TileFault::Node.into());
        }
        let mut levels = Vec::new();
        for level in 0..=MAX_LEVEL {
            let content = Content::Hashes(level);
            let items = size >> (8 * level);
            if items == 0 {
                break;
            }
            levels.push(
                match Tile::at(content, items / u64::from(FULL_WIDTH), size) {
                    Some(tile) => parse_hashes(&fetch(tile)?, tile.width())?,
                    None => Vec::new(),
                },
            );
        }
        Ok(Self { size, levels })
    }

    /// How many leaves the log has.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf, given its [`leaf_hash`](crate::leaf::leaf_hash). Returns the tiles that are
    /// full now, with their content: mostly none, else one and those above that it fills.
    pub fn push(&mut self, leaf: Hash) -> Vec<(Tile, Vec<u8>)> {
        let mut filled = Vec::new();
        let mut node = leaf;
        for level in 0..=MAX_LEVEL {
            if self.levels.len() == usize::from(level) {
                self.levels.push(Vec::new());
            }
            let hashes = &mut self.levels[usize::from(level)];
            hashes.push(node);
            if hashes.len() < usize::from(FULL_WIDTH) {
                break;
            }
            let hashes = std::mem::take(hashes);
            node = subtree_root(&hashes);
            let index = self.size >> (8 * (level + 1));
            if let Some(tile) = Tile::new(Content::Hashes(level), index, FULL_WIDTH) {
                filled.push((tile, encode_hashes(&hashes)));
            }
        }
        self.size += 1;
        filled
    }

    /// The partial tiles at this size, with their content: those that have to be served once a
    /// checkpoint of this size is.
    pub fn partial(&self) -> impl Iterator<Item = (Tile, Vec<u8>)> {
        (0..).zip(&self.levels).filter_map(|(level, hashes)| {
            let index = (self.size >> (8 * level)) / u64::from(FULL_WIDTH);
            let tile = Tile::new(Content::Hashes(level), index, hashes.len() as u16)?;
            Some((tile, encode_hashes(hashes)))
        })
    }

    /// The tree at this size.
    #[must_use]
    pub fn tree(&self) -> Tree {
        let tops = self.levels.iter().rev();
        let peaks =
            tops.flat_map(|hashes| hashes.iter().copied().collect::<Tree>().peaks().to_vec());
        Tree::from_parts(self.size, peaks.collect()).unwrap_or_default()
    }
}

/// Finds hashes of a tree of one size in its tiles.
///
/// What it returns is as good as what it is given: a proof made of it has to be verified against a
/// root that is known otherwise, and so does [`root`](Self::root). It keeps some of the tiles that
/// it fetched, at most half a megabyte.
#[derive(Debug)]
pub struct TileReader<F> {
    size: u64,
    fetch: F,
    tiles: BTreeMap<Tile, Vec<Hash>>,
}

impl<F, E> TileReader<F>
where
    F: FnMut(Tile) -> Result<Vec<u8>, E>,
    E: From<TileFault>,
{
    /// Reads a tree of this size. `fetch` gets a tile of hashes that such a tree has, with its width
    /// at this size, and returns its content. Where the full tile is there in place of a partial
    /// one, `fetch` cuts it to the width.
    #[must_use]
    pub const fn new(size: u64, fetch: F) -> Self {
        Self {
            size,
            fetch,
            tiles: BTreeMap::new(),
        }
    }

    /// `MTH` of a range of leaves, as [`merkle::inclusion_nodes`] and [`merkle::consistency_nodes`]
    /// ask for, or of all leaves below an older size.
    ///
    /// # Errors
    ///
    /// The first that `fetch` returns, [`TileFault::Content`] when it isn't of the tile's width,
    /// [`TileFault::Node`] for other ranges and beyond the size.
    pub fn node(&mut self, range: Range<u64>) -> Result<Hash, E> {
        if range.start > range.end || range.end > self.size {
            return Err(TileFault::Node.into());
        }
        let peaks = range_peaks(range)
            .into_iter()
            .map(|subtree| self.subtree(subtree))
            .collect::<Result<Vec<_>, E>>()?;
        Ok(join_peaks(&peaks))
    }

    /// The root of a perfect subtree, from the one tile that has it.
    fn subtree(&mut self, leaves: Range<u64>) -> Result<Hash, E> {
        let count = leaves.end - leaves.start;
        if !leaves.start.is_multiple_of(count) {
            return Err(TileFault::Node.into());
        }
        // Of the levels whose hashes make up the subtree, the highest: fewest hashes to join.
        let level = (count.ilog2() / 8) as u8;
        let run = leaves.start >> (8 * level)..leaves.end >> (8 * level);
        let width = u64::from(FULL_WIDTH);
        let tile = Tile::at(Content::Hashes(level), run.start / width, self.size)
            .ok_or(TileFault::Node)?;
        let first = (run.start % width) as usize;
        let hashes = self.hashes(tile)?;
        // A run of less than a tile's width that is aligned to its own length lies in one tile.
        let run = hashes.get(first..first + (run.end - run.start) as usize);
        Ok(subtree_root(run.ok_or(TileFault::Node)?))
    }

    fn hashes(&mut self, tile: Tile) -> Result<&[Hash], E> {
        if !self.tiles.contains_key(&tile) {
            let hashes = parse_hashes(&(self.fetch)(tile)?, tile.width())?;
            if self.tiles.len() == KEPT_TILES {
                self.tiles.clear();
            }
            self.tiles.insert(tile, hashes);
        }
        Ok(&self.tiles[&tile])
    }

    /// The root of the tree.
    ///
    /// # Errors
    ///
    /// As for [`node`](Self::node).
    pub fn root(&mut self) -> Result<Hash, E> {
        self.node(0..self.size)
    }

    /// The inclusion proof of a position, as [`merkle::inclusion_proof`] makes it.
    ///
    /// # Errors
    ///
    /// As for [`node`](Self::node).
    pub fn inclusion_proof(&mut self, index: u64) -> Result<Vec<Hash>, E> {
        merkle::inclusion_proof(index, self.size, |range| self.node(range))
    }

    /// The consistency proof from an older size, as [`merkle::consistency_proof`] makes it.
    ///
    /// # Errors
    ///
    /// As for [`node`](Self::node).
    pub fn consistency_proof(&mut self, old: u64) -> Result<Vec<Hash>, E> {
        merkle::consistency_proof(old, self.size, |range| self.node(range))
    }
}
