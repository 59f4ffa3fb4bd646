//! Evidence as a folder, see [`audit_tlog::folder`], as a file with a stream, or on standard input.

pub(crate) mod writer;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;

use audit_tlog::Note;
use audit_tlog::evidence::{FolderManifest, MAX_LINE_LEN, Manifest};
use audit_tlog::folder::{self, CHECKPOINT, CHECKPOINTS, LOG_ZST, MANIFEST};
use audit_tlog::verify::Finding;

use crate::failure::Failure;

/// How much is read at a time.
const BLOCK: usize = 256 * 1024;
/// The longest small file: a note at its longest.
const MAX_SMALL: u64 = 2 << 20;
/// The longest list of files.
const MAX_MANIFEST: u64 = 64 << 20;

/// An opened bundle.
pub(crate) struct Opened {
    /// The stream's records, in blocks of whole lines.
    pub(crate) blocks: Blocks,
    /// What is wrong with the folder.
    pub(crate) findings: Vec<Finding>,
    /// What is remarkable about it.
    pub(crate) warnings: Vec<String>,
    /// What a folder's manifest says of it.
    pub(crate) manifest: Option<Manifest>,
    /// The length of what is still to be read, where it is known.
    pub(crate) bytes: Option<u64>,
}

/// Opens a folder, a file with a stream, or standard input.
pub(crate) fn open(path: &Path) -> Result<Opened, Failure> {
    if path == Path::new("-") {
        return Ok(Opened::of(Blocks::new(
            Vec::new(),
            Box::new(io::stdin()),
            false,
        )?));
    }
    let metadata = fs::metadata(path).map_err(|e| unreadable(path, e))?;
    if metadata.is_dir() {
        return open_folder(path);
    }
    let file = File::open(path).map_err(|e| unreadable(path, e))?;
    let packed = path.extension().is_some_and(|extension| extension == "zst");
    let mut opened = Opened::of(Blocks::new(Vec::new(), Box::new(file), packed)?);
    opened.bytes = (!packed).then_some(metadata.len());
    Ok(opened)
}

impl Opened {
    fn of(blocks: Blocks) -> Self {
        Self {
            blocks,
            findings: Vec::new(),
            warnings: Vec::new(),
            manifest: None,
            bytes: None,
        }
    }
}

fn open_folder(path: &Path) -> Result<Opened, Failure> {
    let at = path.join(MANIFEST);
    let text = text(&at, MAX_MANIFEST)?;
    let listing = FolderManifest::parse(&text).map_err(|fault| {
        unreadable(
            &at,
            io::Error::new(io::ErrorKind::InvalidData, fault.to_string()),
        )
    })?;
    let mut warnings = Vec::new();
    let read = |name: &str| self::text(&path.join(name), MAX_SMALL);
    let opened = folder::open(&listing, read);
    for name in present(path)? {
        if !opened.lists(&name) {
            warnings.push(format!(
                "{name} is not in the manifest, and was not looked at"
            ));
        }
    }
    let Some(file) = opened.log else {
        let missing = io::Error::new(io::ErrorKind::NotFound, "the manifest lists no log");
        return Err(unreadable(&at, missing));
    };
    let at = path.join(&file.name);
    let log = File::open(&at).map_err(|e| unreadable(&at, e))?;
    let length = log.metadata().map_err(|e| unreadable(&at, e))?.len();
    if length != file.bytes {
        // Its strings are judged, not their spelling.
        warnings.push(format!(
            "{} has {length} bytes, the manifest says {}: it was written again or changed",
            file.name, file.bytes
        ));
    }
    let packed = file.name == LOG_ZST;
    Ok(Opened {
        blocks: Blocks::new(opened.head.into_bytes(), Box::new(log), packed)?,
        findings: opened.findings,
        warnings,
        manifest: Some(listing.manifest),
        bytes: (!packed).then_some(length),
    })
}

/// The files of a folder, as a manifest names them.
fn present(path: &Path) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for (within, prefix) in [
        (path.to_owned(), ""),
        (path.join(CHECKPOINTS), "checkpoints/"),
    ] {
        if !within.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&within).map_err(|e| unreadable(&within, e))? {
            let entry = entry.map_err(|e| unreadable(&within, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != CHECKPOINTS || !prefix.is_empty() {
                names.push(format!("{prefix}{name}"));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// A small text file.
pub(crate) fn text(path: &Path, limit: u64) -> Result<String, Failure> {
    let read = || {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file"));
        }
        let mut text = String::new();
        file.take(limit + 1).read_to_string(&mut text)?;
        if text.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too long"));
        }
        Ok(text)
    };
    read().map_err(|e| unreadable(path, e))
}

/// The checkpoint of a folder, if it can be read.
pub(crate) fn checkpoint(path: &Path) -> Option<Note> {
    let text = text(&path.join(CHECKPOINT), MAX_SMALL).ok()?;
    Note::parse(&text).ok()
}

pub(crate) fn unreadable(path: &Path, error: io::Error) -> Failure {
    Failure::Local(format!("{} can't be read", path.display()), error)
}

/// Reads whole lines, some 256 KiB at a time.
pub(crate) struct Blocks {
    next: Option<Vec<u8>>,
    from: Option<Box<dyn Read + Send>>,
    rest: Vec<u8>,
}

impl Blocks {
    fn new(head: Vec<u8>, from: Box<dyn Read + Send>, packed: bool) -> Result<Self, Failure> {
        let from: Box<dyn Read + Send> = if packed {
            let decoder = zstd::Decoder::new(BufReader::new(from));
            Box::new(decoder.map_err(|e| Failure::Local("zstd can't be read".into(), e))?)
        } else {
            from
        };
        Ok(Self {
            next: (!head.is_empty()).then_some(head),
            from: Some(from),
            rest: Vec::new(),
        })
    }

    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(head) = self.next.take() {
            return Ok(Some(head));
        }
        while let Some(from) = &mut self.from {
            let before = self.rest.len();
            self.rest.reserve(BLOCK);
            let read = from.take(BLOCK as u64).read_to_end(&mut self.rest)?;
            if read == 0 {
                self.from = None;
                break;
            }
            let end = self.rest[before..].iter().rposition(|b| *b == b'\n');
            if let Some(end) = end {
                let rest = self.rest.split_off(before + end + 1);
                return Ok(Some(std::mem::replace(&mut self.rest, rest)));
            }
            if self.rest.len() > MAX_LINE_LEN {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a line is too long",
                ));
            }
        }
        let rest = std::mem::take(&mut self.rest);
        Ok((!rest.is_empty()).then_some(rest))
    }
}

impl Iterator for Blocks {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read().transpose();
        if matches!(read, Some(Err(_))) {
            // What comes behind an error is of no use.
            (self.from, self.rest) = (None, Vec::new());
        }
        read
    }
}
