//! A log's files, verified by crates that share no line with the project: `signed_note` and `tlog_tiles`.
//!
//! `cargo run -p examples --example verify_with_crates -- <folder>`: the folder has `keys`, `checkpoint`,
//! `tile/…` and `tile/entries/…` as docs/evidence.md fetches them, and may have `inclusion/….tlog-proof`.
#![allow(clippy::print_stdout)] // an example shows what it does

use std::fs;
use std::path::PathBuf;

use signed_note::{Note, StandardVerifier, Verifier, VerifierList};
use tlog_tiles::{
    Error, Hash, HashReader as _, Tile, TileHashReader, TileReader, check_record, record_hash,
    stored_hash_index, tree_hash,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// C2SP's tiles have 2⁸ hashes.
const HEIGHT: u8 = 8;
const FULL_WIDTH: u64 = 1 << HEIGHT;

fn main() -> Outcome<()> {
    let folder = std::env::args()
        .nth(1)
        .ok_or("the folder of a log's files is expected")?;
    let folder = Folder(folder.into());
    let keys = fs::read_to_string(folder.0.join("keys"))?;
    let keys = keys.split_whitespace().map(|vkey| {
        let key: Box<dyn Verifier> = Box::new(StandardVerifier::new(vkey)?);
        Ok(key)
    });
    let keys = VerifierList::new(keys.collect::<Outcome<Vec<_>>>()?);

    let (size, root) = head(&fs::read(folder.0.join("checkpoint"))?, &keys)?;
    let tree = TileHashReader::new(size, root, &folder);
    if tree_hash(size, &tree)? != root {
        return Err("the tiles have another root than the checkpoint".into());
    }
    println!("the checkpoint of {size} entries is signed, and the tiles have its root");

    let leaves = folder.leaves(size)?;
    let stored: Vec<u64> = (0..size).map(|n| stored_hash_index(0, n)).collect();
    if tree.read_hashes(&stored)? != leaves {
        return Err("an entry has another hash than its leaf".into());
    }
    println!("each entry is the one that the tree has at its position");

    for proof in folder.proofs()? {
        let text = fs::read_to_string(&proof)?;
        let (path, note) = text.split_once("\n\n").ok_or("no blank line")?;
        let mut lines = path
            .lines()
            .skip(1)
            .skip_while(|line| line.starts_with("extra "));
        let index = lines.next().and_then(|line| line.strip_prefix("index "));
        let index: u64 = index.ok_or("no index")?.parse()?;
        let hashes = lines.map(Hash::parse_hash).collect::<Result<_, _>>()?;
        let (size, root) = head(note.as_bytes(), &keys)?;
        let leaf = leaves.get(usize::try_from(index)?).ok_or("not an entry")?;
        check_record(&hashes, size, root, index, *leaf)?;
        println!("{} proves entry {index}", proof.display());
    }
    Ok(())
}

/// The size and the root of a checkpoint that the log's key signed.
fn head(note: &[u8], keys: &VerifierList) -> Outcome<(u64, Hash)> {
    let note = Note::from_bytes(note)?;
    let (signed, _) = note.verify(keys)?;
    let text = std::str::from_utf8(note.text())?;
    let mut lines = text.lines();
    let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
        return Err("a checkpoint has three lines".into());
    };
    if signed.iter().all(|signature| signature.name() != origin) {
        return Err(format!("no key named {origin} signed").into());
    }
    Ok((size.parse()?, Hash::parse_hash(root)?))
}

struct Folder(PathBuf);

impl Folder {
    fn read(&self, tile: &Tile) -> std::io::Result<Vec<u8>> {
        // The height goes without saying, and entries have another name.
        let path = tile.path().replacen("tile/8/", "tile/", 1);
        fs::read(self.0.join(path.replacen("tile/data/", "tile/entries/", 1)))
    }

    /// The hash of each entry.
    fn leaves(&self, size: u64) -> Outcome<Vec<Hash>> {
        let mut leaves = Vec::new();
        for start in (0..size).step_by(1 << HEIGHT) {
            let width = u32::try_from((size - start).min(FULL_WIDTH))?;
            let bundle = Tile::new(HEIGHT, 0, start / FULL_WIDTH, width, true);
            let bytes = self.read(&bundle)?;
            let mut rest = &bytes[..];
            while let Some((length, entry)) = rest.split_first_chunk() {
                let length = usize::from(u16::from_be_bytes(*length));
                let (entry, behind) = entry.split_at_checked(length).ok_or("it is cut off")?;
                leaves.push(record_hash(entry));
                rest = behind;
            }
        }
        Ok(leaves)
    }

    fn proofs(&self) -> std::io::Result<Vec<PathBuf>> {
        match fs::read_dir(self.0.join("inclusion")) {
            Ok(files) => files.map(|file| Ok(file?.path())).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

impl TileReader for Folder {
    fn height(&self) -> u8 {
        HEIGHT
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
        let read = tiles.iter().map(|tile| self.read(tile));
        let all: std::io::Result<_> = read.collect();
        all.map_err(|error| Error::InvalidInput(error.to_string()))
    }

    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}
