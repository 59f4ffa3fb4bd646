//! Evidence as a folder.
//!
//! | file | what is in it |
//! |---|---|
//! | `manifest.json` | what the export says of itself, and the other files with their digests |
//! | `checkpoint` | the signed checkpoint of the snapshot |
//! | `checkpoints/<size>` | earlier checkpoints: the first over each change of keys and epoch |
//! | `keys` | the keys that the server knows, a vkey a line |
//! | `log.ndjson` | evidence lines, gaps and marks, and the end line; or `log.ndjson.zst` |

pub(crate) mod writer;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;

use audit_tlog::Hash;
use audit_tlog::evidence::{FolderManifest, MAX_LINE_LEN, Record};
use audit_tlog::verify::{Code, Finding, MAX_HEAD_BYTES, MAX_HEAD_LINES};
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;

const MANIFEST: &str = "manifest.json";
const CHECKPOINT: &str = "checkpoint";
const CHECKPOINTS: &str = "checkpoints";
const KEYS: &str = "keys";
const LOG: &str = "log.ndjson";
const LOG_ZST: &str = "log.ndjson.zst";

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
        return folder(path);
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
            bytes: None,
        }
    }
}

fn folder(path: &Path) -> Result<Opened, Failure> {
    let at = path.join(MANIFEST);
    let text = text(&at, MAX_MANIFEST)?;
    let listing = FolderManifest::parse(&text).map_err(|fault| {
        unreadable(
            &at,
            io::Error::new(io::ErrorKind::InvalidData, fault.to_string()),
        )
    })?;
    let mut findings = Vec::new();
    let mut warnings = Vec::new();
    let mut add = |file: &str, detail: &str| {
        findings.push(Finding {
            code: Code::File,
            positions: None,
            line: None,
            file: Some(file.to_owned()),
            detail: detail.to_owned(),
        });
    };
    let mut head = vec![Record::Manifest(listing.manifest.clone()).encode()];
    let mut head_bytes = 0;
    let mut full = false;
    let mut log = None;
    let mut listed = HashSet::from([MANIFEST]);
    for file in &listing.files {
        let name = file.name.as_str();
        if !listed.insert(name) {
            add(name, "listed twice");
            continue;
        }
        if name == LOG || name == LOG_ZST {
            if log.replace(file).is_some() {
                add(name, "there is more than one log");
            }
            continue;
        }
        let earlier = name
            .strip_prefix("checkpoints/")
            .is_some_and(|size| size.parse::<u64>().is_ok_and(|n| n.to_string() == size));
        if !earlier && name != CHECKPOINT && name != KEYS {
            add(name, "no file of a bundle");
            continue;
        }
        if head.len() > MAX_HEAD_LINES || head_bytes > MAX_HEAD_BYTES {
            if !full {
                add(
                    name,
                    "from here on there are more checkpoints and keys than a bundle may have",
                );
            }
            full = true;
            continue;
        }
        let before = head.len();
        let text = match self::text(&path.join(name), MAX_SMALL) {
            Ok(text) => text,
            Err(error) => {
                add(name, &error.to_string());
                continue;
            }
        };
        if text.len() as u64 != file.bytes || digest(text.as_bytes()) != file.sha256 {
            add(name, "not the file that the manifest lists");
        }
        if name == KEYS {
            head.extend(text.lines().map(|vkey| Record::Vkey(vkey.into()).encode()));
        } else {
            head.push(Record::Checkpoint(text.into()).encode());
        }
        head_bytes += head[before..].iter().map(String::len).sum::<usize>();
    }
    for name in present(path)? {
        if !listed.contains(name.as_str()) {
            warnings.push(format!(
                "{name} is not in the manifest, and was not looked at"
            ));
        }
    }
    let Some(file) = log else {
        let missing = io::Error::new(io::ErrorKind::NotFound, "the manifest lists no log");
        return Err(unreadable(&at, missing));
    };
    let at = path.join(&file.name);
    let opened = File::open(&at).map_err(|e| unreadable(&at, e))?;
    let length = opened.metadata().map_err(|e| unreadable(&at, e))?.len();
    if length != file.bytes {
        // Its strings are judged, not their spelling.
        warnings.push(format!(
            "{} has {length} bytes, the manifest says {}: it was written again or changed",
            file.name, file.bytes
        ));
    }
    let packed = file.name == LOG_ZST;
    let mut head = head.join("\n");
    head.push('\n');
    Ok(Opened {
        blocks: Blocks::new(head.into_bytes(), Box::new(opened), packed)?,
        findings,
        warnings,
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

fn unreadable(path: &Path, error: io::Error) -> Failure {
    Failure::Local(format!("{} can't be read", path.display()), error)
}

fn digest(bytes: &[u8]) -> Hash {
    Hash(Sha256::digest(bytes).into())
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
