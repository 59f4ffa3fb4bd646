//! Tiles, against C2SP's examples, the tree made of its leaves alone, and another implementation.

use std::cell::Cell;
use std::collections::BTreeMap;

use audit_tlog::leaf::leaf_hash;
use audit_tlog::merkle::{root, subtree_root};
use audit_tlog::tile::{
    Content, FULL_WIDTH, MAX_LEVEL, encode_entries, encode_hashes, parse_entries, parse_hashes,
};
use audit_tlog::{Hash, Tile, TileEdge, TileFault, TileReader};
use proptest::prelude::*;

use crate::log::Log;

#[derive(Debug, PartialEq)]
enum ReadFault {
    Tile(TileFault),
    Missing(Tile),
}

impl From<TileFault> for ReadFault {
    fn from(fault: TileFault) -> Self {
        Self::Tile(fault)
    }
}

fn reader_of(
    size: u64,
    tiles: &BTreeMap<Tile, Vec<u8>>,
) -> TileReader<impl FnMut(Tile) -> Result<Vec<u8>, ReadFault>> {
    TileReader::new(size, |tile| {
        tiles.get(&tile).cloned().ok_or(ReadFault::Missing(tile))
    })
}

/// Leaves that differ, without entries.
fn leaves(size: u64) -> Vec<Hash> {
    (0..size).map(|i| leaf_hash(&i.to_be_bytes())).collect()
}

fn log_of(leaves: Vec<Hash>) -> Log {
    Log {
        entries: Vec::new(),
        leaves,
    }
}

/// C2SP `tlog-tiles`, section *Merkle Tree*, and other sizes of index.
#[test]
fn paths_are_those_of_the_page() {
    let hashes = Content::Hashes;
    for (content, index, width, path) in [
        (hashes(0), 1_234_067, 256, "tile/0/x001/x234/067"),
        (hashes(0), 0, 256, "tile/0/000"),
        (hashes(0), 273, 112, "tile/0/273.p/112"),
        (hashes(1), 0, 1, "tile/1/000.p/1"),
        (hashes(2), 999, 255, "tile/2/999.p/255"),
        (hashes(0), 1000, 256, "tile/0/x001/000"),
        (hashes(0), 1_000_000, 7, "tile/0/x001/x000/000.p/7"),
        (hashes(7), 0, 127, "tile/7/000.p/127"),
        (Content::Entries, 0, 256, "tile/entries/000"),
        (
            Content::Entries,
            1_234_067,
            5,
            "tile/entries/x001/x234/067.p/5",
        ),
    ] {
        let tile = Tile::new(content, index, width).unwrap();
        assert_eq!(tile.path(), path);
        assert_eq!(Tile::parse(path), Ok(tile));
    }
}

#[test]
fn other_spellings_of_paths_are_refused() {
    for path in [
        "",
        "tile",
        "tile/0",
        "tile/0/",
        "/tile/0/000",
        "tile/0/000/",
        "tile/00/000",
        "tile/+0/000",
        "tile/8/000",
        "tile/63/000",
        "tile/64/000",
        "tile/data/000",
        "tile/8/0/000",
        "tile/0/0",
        "tile/0/00",
        "tile/0/0000",
        "tile/0/x000",
        "tile/0/x000/000",
        "tile/0/001/000",
        "tile/0/x1/000",
        "tile/0/X001/000",
        "tile/0/xx001/000",
        "tile/0/+01",
        "tile/0/x001/x000",
        "tile/0/-01",
        "tile/0/000.p",
        "tile/0/000.p/",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/1/",
        "tile/0/000.p/1.p/1",
        "tile/0/000.p1",
        "tile/0/../000",
        "tile/0/000 ",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
        "tile/7/000",
    ] {
        assert_eq!(Tile::parse(path), Err(TileFault::Path), "{path}");
    }
}

/// C2SP `tlog-tiles`, section *Partial Tiles*.
#[test]
fn a_tree_of_70_000_has_the_tiles_of_the_page() {
    let tiles = |level| Tile::added(Content::Hashes(level), 0, 70_000).collect::<Vec<_>>();
    let widths = |level| tiles(level).iter().map(Tile::width).collect::<Vec<_>>();
    let mut zero = vec![FULL_WIDTH; 273];
    zero.push(112);
    assert_eq!(widths(0), zero);
    assert_eq!(widths(1), [FULL_WIDTH, 17]);
    assert_eq!(widths(2), [1]);
    assert_eq!(widths(3), [0; 0]);
    let entries: Vec<_> = Tile::added(Content::Entries, 0, 70_000).collect();
    assert_eq!(entries.len(), 274);
    assert_eq!(entries[273].leaves(), 69_888..70_000);
    assert_eq!(tiles(1)[1].leaves(), 65_536..65_536 + 17 * 256);

    let of_256: Vec<_> = (0..=MAX_LEVEL)
        .flat_map(|level| Tile::added(Content::Hashes(level), 0, 256))
        .map(|tile| tile.path())
        .collect();
    assert_eq!(of_256, ["tile/0/000", "tile/1/000.p/1"]);
}

#[test]
fn tiles_beyond_every_tree_are_refused() {
    let none = |content, index, width| assert_eq!(Tile::new(content, index, width), None);
    none(Content::Hashes(8), 0, 1);
    none(Content::Hashes(0), 0, 0);
    none(Content::Hashes(0), 0, 257);
    none(Content::Hashes(0), u64::MAX, 1);
    none(Content::Hashes(0), (1 << 55) - 1, 256);
    none(Content::Hashes(7), 0, 128);
    none(Content::Entries, 1 << 56, 1);
    assert!(Tile::new(Content::Hashes(0), (1 << 55) - 1, 255).is_some());
    assert!(Tile::new(Content::Hashes(7), 0, 127).is_some());
    assert_eq!(Tile::at(Content::Entries, u64::MAX, 5), None);
    assert_eq!(Tile::at(Content::Entries, 1, 256), None);
    assert_eq!(Tile::at(Content::Hashes(200), 0, 256), None);
    assert_eq!(Tile::added(Content::Hashes(0), 5, 5).count(), 0);
    assert_eq!(Tile::added(Content::Hashes(0), 6, 5).count(), 0);
    assert_eq!(Tile::added(Content::Hashes(200), 0, 300).count(), 0);
}

#[test]
fn contents_of_another_width_are_refused() {
    let hashes = leaves(3);
    let bytes = encode_hashes(&hashes);
    assert_eq!(bytes.len(), 96);
    assert_eq!(parse_hashes(&bytes, 3), Ok(hashes));
    for (bytes, width) in [(&bytes[..], 2), (&bytes, 4), (&bytes[..95], 3), (&[], 1)] {
        assert_eq!(parse_hashes(bytes, width), Err(TileFault::Content(width)));
    }

    let bytes = encode_entries(["", "ab", "c"]).unwrap();
    assert_eq!(bytes, b"\0\0\0\x02ab\0\x01c");
    let entries: [&[u8]; 3] = [b"", b"ab", b"c"];
    assert_eq!(parse_entries(&bytes, 3).unwrap(), entries);
    for (bytes, width) in [
        (&bytes[..], 2),
        (&bytes, 4),
        (&bytes[..8], 3),
        (&bytes[..7], 3),
        (&[0], 1),
        (&[], 1),
    ] {
        assert_eq!(parse_entries(bytes, width), Err(TileFault::Content(width)));
    }
    let longest = vec![b'x'; 65_535];
    let bytes = encode_entries([&longest]).unwrap();
    assert_eq!(parse_entries(&bytes, 1).unwrap(), [&longest]);
    assert_eq!(encode_entries([[0; 65_536]]), Err(TileFault::EntryLength));
}

/// Every tile is what C2SP's formula says, and is the same in whatever steps the log grew.
#[test]
fn tiles_are_the_same_however_the_log_grew() {
    let sizes = [1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537];
    let log = log_of(leaves(65_537));
    let tiles = log.hash_tiles(&sizes);
    for (tile, bytes) in &tiles {
        let Content::Hashes(level) = tile.content() else {
            panic!("{tile}")
        };
        let count = 256_usize.pow(u32::from(level));
        let leaves = tile.leaves();
        let expected: Vec<_> = log.leaves[leaves.start as usize..leaves.end as usize]
            .chunks(count)
            .map(subtree_root)
            .collect();
        assert_eq!(parse_hashes(bytes, tile.width()), Ok(expected), "{tile}");
    }
    let mut named = Vec::new();
    for size in sizes {
        let of_size = (0..=MAX_LEVEL)
            .flat_map(|level| Tile::added(Content::Hashes(level), 0, size))
            .collect::<Vec<_>>();
        assert!(of_size.iter().all(|tile| tiles.contains_key(tile)));
        named.extend(of_size);
        assert_eq!(reader_of(size, &tiles).root(), Ok(log.root(size)), "{size}");

        // A writer that begins again at this size goes on as the one that never stopped.
        let fetch = |tile| tiles.get(&tile).cloned().ok_or(ReadFault::Missing(tile));
        let mut edge = TileEdge::resume(size, fetch).unwrap();
        assert_eq!(edge.tree().root(), log.root(size));
        for leaf in log.leaves.iter().skip(size as usize).take(1000) {
            for (tile, bytes) in edge.push(*leaf) {
                assert_eq!(tiles[&tile], bytes);
            }
        }
        let upto = &log.leaves[..edge.size() as usize];
        assert_eq!(edge.tree().root(), root(upto));
    }
    named.sort();
    named.dedup();
    assert!(named.iter().eq(tiles.keys()));
    assert_eq!(TileEdge::new().partial().count(), 0);
    assert_eq!(
        TileEdge::resume(1 << 63, |tile| Err(ReadFault::Missing(tile))),
        Err(ReadFault::Tile(TileFault::Node))
    );
}

#[test]
fn proofs_from_tiles_are_those_from_leaves() {
    let sizes = [
        1, 2, 3, 255, 256, 257, 511, 513, 1000, 65_535, 65_536, 65_537,
    ];
    let log = log_of(leaves(65_537));
    let tiles = log.hash_tiles(&sizes);
    for size in sizes {
        let mut reader = reader_of(size, &tiles);
        let indices = [
            0,
            1,
            254,
            255,
            256,
            257,
            size / 2,
            size.saturating_sub(2),
            size - 1,
        ];
        for index in indices.into_iter().filter(|index| *index < size) {
            let proof = reader.inclusion_proof(index).unwrap();
            assert_eq!(proof, log.inclusion(index, size), "{index} in {size}");
        }
        for old in sizes.into_iter().filter(|old| *old <= size) {
            let proof = reader.consistency_proof(old).unwrap();
            assert_eq!(proof, log.consistency(old, size), "{old} to {size}");
            assert_eq!(reader.node(0..old), Ok(log.root(old)));
        }
    }
}

#[test]
fn a_proof_fetches_each_of_its_tiles_once() {
    let log = log_of(leaves(65_537));
    let tiles = log.hash_tiles(&[65_537]);
    let fetched = Cell::new(0);
    let mut reader = TileReader::new(65_537, |tile| {
        fetched.set(fetched.get() + 1);
        tiles.get(&tile).cloned().ok_or(ReadFault::Missing(tile))
    });
    reader.inclusion_proof(300).unwrap();
    // Its own tile, the one above it, and level 0's last, partial one, which holds the last leaf.
    assert_eq!(fetched.get(), 3);
    reader.inclusion_proof(301).unwrap();
    assert_eq!(fetched.get(), 3);
}

#[test]
fn ranges_that_no_tree_has_are_refused() {
    let log = Log::of(10);
    let tiles = log.hash_tiles(&[10]);
    let mut reader = reader_of(10, &tiles);
    let node = Err(ReadFault::Tile(TileFault::Node));
    assert_eq!(reader.node(1..3), node);
    assert_eq!(reader.node(8..11), node);
    #[allow(clippy::reversed_empty_ranges, reason = "one of the wrong ranges")]
    {
        assert_eq!(reader.node(5..4), node);
    }
    assert_eq!(reader.node(8..10), Ok(log.node(8..10)));
    assert_eq!(reader.inclusion_proof(10), Ok(Vec::new()));

    let tile = Tile::at(Content::Hashes(0), 0, 10).unwrap();
    let missing = BTreeMap::new();
    assert_eq!(
        reader_of(10, &missing).root(),
        Err(ReadFault::Missing(tile))
    );
    let short = BTreeMap::from([(tile, vec![0; 9 * 32])]);
    assert_eq!(
        reader_of(10, &short).root(),
        Err(ReadFault::Tile(TileFault::Content(10)))
    );
}

/// How the other implementation names a tile: with its height, and entries as data.
fn theirs(tile: Tile) -> tlog_tiles::Tile {
    let path = tile.path().replacen("tile/", "tile/8/", 1);
    let path = path.replacen("tile/8/entries/", "tile/8/data/", 1);
    tlog_tiles::Tile::from_path(&path).unwrap()
}

struct Served<'a>(&'a BTreeMap<Tile, Vec<u8>>);

impl tlog_tiles::TileReader for Served<'_> {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[tlog_tiles::Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        let ours = |tile: &tlog_tiles::Tile| {
            let path = tile.path().replacen("tile/8/", "tile/", 1);
            self.0.get(&Tile::parse(&path).ok()?).cloned()
        };
        let found: Option<Vec<_>> = tiles.iter().map(ours).collect();
        found.ok_or(tlog_tiles::Error::InvalidTile)
    }

    fn save_tiles(&self, _: &[tlog_tiles::Tile], _: &[Vec<u8>]) {}
}

#[test]
fn another_implementation_reads_the_tiles_and_makes_the_same_proofs() {
    let sizes = [1, 255, 256, 257, 700, 65_537];
    let log = log_of(leaves(65_537));
    let tiles = log.hash_tiles(&sizes);
    let served = Served(&tiles);
    let hash = |hash: &Hash| tlog_tiles::Hash(*hash.as_bytes());
    for size in sizes {
        let root = hash(&log.root(size));
        let reader = tlog_tiles::TileHashReader::new(size, root, &served);
        assert_eq!(tlog_tiles::tree_hash(size, &reader).unwrap(), root);
        for index in [0, size / 3, size - 1] {
            let ours: Vec<_> = log.inclusion(index, size).iter().map(hash).collect();
            assert_eq!(
                tlog_tiles::prove_record(size, index, &reader).unwrap(),
                ours
            );
            let leaf = hash(&log.leaves[index as usize]);
            tlog_tiles::check_record(&ours, size, root, index, leaf).unwrap();
        }
        for old in sizes.into_iter().filter(|old| *old <= size) {
            let ours: Vec<_> = log.consistency(old, size).iter().map(hash).collect();
            assert_eq!(tlog_tiles::prove_tree(size, old, &reader).unwrap(), ours);
            let old_root = hash(&log.root(old));
            tlog_tiles::check_tree(&ours, size, root, old, old_root).unwrap();
        }
    }
    let mut changed = tiles.clone();
    let (_, bytes) = changed.iter_mut().next().unwrap();
    bytes[0] ^= 1;
    let served = Served(&changed);
    let root = hash(&log.root(1));
    let reader = tlog_tiles::TileHashReader::new(1, root, &served);
    assert!(tlog_tiles::HashReader::read_hashes(&reader, &[0]).is_err());
}

proptest! {
    #[test]
    fn growth_adds_the_tiles_that_another_implementation_names(
        old in 0u64..200_000,
        grown in 0u64..200_000,
    ) {
        let new = old + grown;
        let ours: Vec<_> = (0..=MAX_LEVEL)
            .flat_map(|level| Tile::added(Content::Hashes(level), old, new))
            .map(theirs)
            .collect();
        prop_assert_eq!(ours, tlog_tiles::Tile::new_tiles(8, old, new));
    }

    #[test]
    fn paths_read_back(level in 0..=MAX_LEVEL, index in 0u64..1 << 56, width in 1u16..=256) {
        let level_end = 1u64 << (55 - 8 * (level.min(6)));
        for content in [Content::Hashes(level), Content::Entries] {
            if let Some(tile) = Tile::new(content, index % level_end, width) {
                prop_assert_eq!(Tile::parse(&tile.path()), Ok(tile));
                prop_assert_eq!(theirs(tile).level_index(), tile.index());
                let end = tile.leaves().end;
                let at_end = Tile::at(content, tile.index(), end);
                prop_assert_eq!(at_end, Some(tile));
            }
        }
    }

    #[test]
    fn no_path_makes_the_reader_panic(path in "tile/[0-9e]{1,3}/[x0-9./p]{0,30}|.*") {
        if let Ok(tile) = Tile::parse(&path) {
            prop_assert_eq!(tile.path(), path);
        }
    }

    #[test]
    fn entries_read_back(entries in proptest::collection::vec(any::<Vec<u8>>(), 1..20)) {
        let bytes = encode_entries(&entries).unwrap();
        prop_assert_eq!(parse_entries(&bytes, entries.len() as u16).unwrap(), entries);
    }
}
