//! An evidence folder: the records of an evidence stream in files. Nothing here reads or writes any.
//!
//! | file | what is in it |
//! |---|---|
//! | `manifest.json` | what the export says of itself, and the other files with their digests |
//! | `checkpoint` | the signed checkpoint of the snapshot |
//! | `checkpoints/<size>` | earlier checkpoints: the first over each change of keys and epoch; in an archive the one of the segment before |
//! | `keys` | the keys that the server knows, a vkey a line |
//! | `log.ndjson` | evidence lines, gaps and marks, and the end line; or `log.ndjson.zst` |
//!
//! A [`Splitter`] turns a stream into these files, [`open`] turns them into a stream again.
//!
//! An *archive* has a folder for each tenant, named by its id, and in it one evidence folder for each
//! [segment](SegmentName) of the log.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::checkpoint::Checkpoint;
use crate::evidence::{FolderManifest, ListedFile, Manifest, Record};
use crate::leaf::Hash;
use crate::note::Note;
use crate::verify::{Code, Finding, MAX_HEAD_BYTES, MAX_HEAD_LINES};

/// The file that lists the others.
pub const MANIFEST: &str = "manifest.json";
/// The file of the snapshot's checkpoint.
pub const CHECKPOINT: &str = "checkpoint";
/// The folder of earlier checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
/// The file of the keys.
pub const KEYS: &str = "keys";
/// The file of everything else.
pub const LOG: &str = "log.ndjson";
/// The same, packed with zstd.
pub const LOG_ZST: &str = "log.ndjson.zst";

/// Why a stream can't be turned into a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitFault {
    /// A line is no record.
    #[error("a line is no evidence")]
    Line,
    /// There are lines behind the end line.
    #[error("there are lines behind the end line")]
    Behind,
    /// A checkpoint can't be read.
    #[error("a checkpoint is none")]
    Checkpoint,
    /// The stream ends without its end line.
    #[error("it was cut")]
    Cut,
    /// The stream has no manifest.
    #[error("it has no manifest")]
    Manifest,
}

/// Tells which file of a folder each line of an evidence stream belongs to, and keeps the small ones.
#[derive(Debug, Default)]
pub struct Splitter {
    manifest: Option<Manifest>,
    /// Checkpoints by their size.
    checkpoints: BTreeMap<u64, String>,
    keys: String,
    ended: bool,
}

impl Splitter {
    /// Takes the next line, with or without its line break. Whether it belongs to the log's file,
    /// which is the caller's to write; the others come with [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// [`SplitFault::Line`], [`SplitFault::Behind`], [`SplitFault::Checkpoint`].
    pub fn line(&mut self, line: &[u8]) -> Result<bool, SplitFault> {
        let record = std::str::from_utf8(line)
            .ok()
            .and_then(|line| Record::parse(line).ok())
            .ok_or(SplitFault::Line)?;
        if self.ended {
            return Err(SplitFault::Behind);
        }
        match record {
            Record::Manifest(manifest) => self.manifest = Some(manifest),
            Record::Vkey(vkey) => {
                self.keys.push_str(&vkey);
                self.keys.push('\n');
            }
            Record::Checkpoint(note) => {
                let size = Note::parse(&note)
                    .ok()
                    .and_then(|note| Checkpoint::parse(note.text()).ok())
                    .map(|checkpoint| checkpoint.size())
                    .ok_or(SplitFault::Checkpoint)?;
                self.checkpoints.insert(size, note.into_owned());
            }
            record => {
                self.ended = matches!(record, Record::End(_));
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the end line came.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// The small files by name, and the manifest that lists them behind the log's file.
    ///
    /// # Errors
    ///
    /// [`SplitFault::Cut`], [`SplitFault::Manifest`].
    pub fn finish(
        self,
        log: ListedFile,
    ) -> Result<(FolderManifest, Vec<(String, String)>), SplitFault> {
        if !self.ended {
            return Err(SplitFault::Cut);
        }
        let manifest = self.manifest.ok_or(SplitFault::Manifest)?;
        let mut small = vec![(KEYS.to_owned(), self.keys)];
        for (size, note) in self.checkpoints {
            let name = if size == manifest.size {
                CHECKPOINT.to_owned()
            } else {
                format!("{CHECKPOINTS}/{size}")
            };
            small.push((name, note));
        }
        let listed = small
            .iter()
            .map(|(name, text)| listed(name, text.as_bytes()));
        let files = std::iter::once(log).chain(listed).collect();
        Ok((FolderManifest { manifest, files }, small))
    }
}

/// A file as a manifest lists it.
#[must_use]
pub fn listed(name: &str, bytes: &[u8]) -> ListedFile {
    ListedFile {
        name: name.to_owned(),
        bytes: bytes.len() as u64,
        sha256: Hash(Sha256::digest(bytes).into()),
    }
}

/// A folder whose manifest and small files were read.
#[derive(Debug)]
pub struct Opened {
    /// The lines before the first position; those of the log's file follow.
    pub head: String,
    /// What is wrong with the files.
    pub findings: Vec<Finding>,
    /// The log's file, where the manifest lists one.
    pub log: Option<ListedFile>,
    names: HashSet<String>,
}

impl Opened {
    /// Whether the manifest lists a file of this name, or it is the manifest's own.
    #[must_use]
    pub fn lists(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

/// Reads a folder's small files with `read`, up to what a bundle may have. The log's file is not
/// looked at.
pub fn open<E: std::fmt::Display>(
    listing: &FolderManifest,
    mut read: impl FnMut(&str) -> Result<String, E>,
) -> Opened {
    let mut findings = Vec::new();
    let mut add = |file: &str, detail: &str| findings.push(file_finding(file, detail));
    let mut head = vec![Record::Manifest(listing.manifest.clone()).encode()];
    let mut head_bytes = 0;
    let mut full = false;
    let mut log: Option<ListedFile> = None;
    let mut names = HashSet::from([MANIFEST.to_owned()]);
    for file in &listing.files {
        let name = file.name.as_str();
        if !names.insert(name.to_owned()) {
            add(name, "listed twice");
            continue;
        }
        if name == LOG || name == LOG_ZST {
            if log.replace(file.clone()).is_some() {
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
        let text = match read(name) {
            Ok(text) => text,
            Err(error) => {
                add(name, &error.to_string());
                continue;
            }
        };
        if listed(name, text.as_bytes()) != *file {
            add(name, "not the file that the manifest lists");
        }
        if name == KEYS {
            head.extend(text.lines().map(|vkey| Record::Vkey(vkey.into()).encode()));
        } else {
            head.push(Record::Checkpoint(text.into()).encode());
        }
        head_bytes += head[before..].iter().map(String::len).sum::<usize>();
    }
    let mut head = head.join("\n");
    head.push('\n');
    Opened {
        head,
        findings,
        log,
        names,
    }
}

/// A finding about a file of a folder.
#[must_use]
pub fn file_finding(file: &str, detail: &str) -> Finding {
    Finding {
        code: Code::File,
        positions: None,
        line: None,
        file: Some(file.to_owned()),
        detail: detail.to_owned(),
    }
}

/// The name of a segment of an archive: `<from>-<to>-<id>`, the positions it has, as 16 digits each, the
/// last one exclusive, and a UUID of its own. What is archived once more gets another name, so that
/// nothing that was checked is ever written again.
///
/// They are ordered by their positions, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The first position.
    pub from: u64,
    /// The position behind the last.
    pub to: u64,
    /// What tells it from other segments of the same positions.
    pub id: Uuid,
}

impl SegmentName {
    /// Reads a name in its only spelling.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (from, rest) = text.split_once('-')?;
        let (to, id) = rest.split_once('-')?;
        let name = Self {
            from: from.parse().ok()?,
            to: to.parse().ok()?,
            id: Uuid::try_parse(id).ok()?,
        };
        (name.from < name.to && name.to_string() == text).then_some(name)
    }

    /// Its positions.
    #[must_use]
    pub const fn positions(&self) -> Range<u64> {
        self.from..self.to
    }

    /// The filter that the manifest of such a segment has.
    #[must_use]
    pub fn filter(&self) -> String {
        format!("{{\"from_seq\":{},\"to_seq\":{}}}", self.from, self.to)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:016}-{:016}-{}",
            self.from,
            self.to,
            self.id.as_hyphenated()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segments_name_has_one_spelling_and_the_order_of_its_positions() {
        let name = SegmentName {
            from: 9,
            to: 1_000,
            id: Uuid::from_u128(7),
        };
        let text = name.to_string();
        assert_eq!(
            text,
            "0000000000000009-0000000000001000-00000000-0000-0000-0000-000000000007"
        );
        assert_eq!(SegmentName::parse(&text), Some(name));
        let later = SegmentName { from: 10, ..name };
        assert!(later > name && later.to_string() > text);
        let other = [
            text.replacen('0', "", 1),
            text.to_uppercase().replace("00007", "0000A"),
            format!("{text}x"),
            text.replacen("1000-", "0009-", 1),
            String::new(),
        ];
        for other in other {
            assert_eq!(SegmentName::parse(&other), None, "{other}");
        }
    }
}
