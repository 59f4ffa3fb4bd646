//! Evidence: what an export gives to someone who trusts neither the log nor its operator.
//!
//! An evidence *stream* is NDJSON, a [`Record`] a line, told apart by their keys:
//!
//! 1. one `manifest`, what the export says of itself;
//! 2. `checkpoint` and `vkey` lines in any order: the checkpoint of the exported snapshot, the first
//!    over each change of keys or of the epoch, and the keys that the server knows;
//! 3. evidence lines and gaps, which together are every position of the log once and in order, with
//!    [marks](Mark) between them;
//! 4. one `end`, so that a stream that was cut is seen.
//!
//! Any JSON text of a record's shape counts: keys in any order, white space, escapes. What is
//! hashed are the strings in it, not their spelling. An evidence *folder* holds the same records in
//! files, listed by a [`FolderManifest`].
//!
//! [`Composer`] writes a stream and [`verify`](crate::verify) judges it; [`LeafData`] and
//! [`check_disclosure`] are the strict reading of what a leaf is made of.

use std::borrow::Cow;
use std::ops::Range;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::checkpoint::{Origin, SIZE_END};
use crate::control::{Control, ControlFault};
use crate::json;
use crate::leaf::{self, Group, Hash, Kind, MAX_LEAF_LEN, leaf_hash};
use crate::merkle::{Tree, subtrees};
use crate::time::Timestamp;

/// The version of this format.
pub const VERSION: u64 = 1;

/// A [`Composer`] writes a mark after so many positions: a line that was changed later and whose form
/// is still right is found within that many, up to the last mark.
pub const MARK_EVERY: u64 = 256;

/// The longest line that has to be read, in bytes. The longest that a log of version 1 writes is
/// about 5 MB: 65,535 bytes of leaf data and 256 KiB of raw JSON, where every byte needs an escape.
pub const MAX_LINE_LEN: usize = 32 << 20;

/// Why a line is not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineFault {
    /// Not one JSON object.
    #[error("not a JSON object")]
    Json,
    /// The keys are none of a record's, or not all of them, or one is repeated.
    #[error("its keys are not those of any record")]
    Keys,
    /// A value has the wrong type, or isn't in its only spelling where it has one.
    #[error("the value of {0} is not of its form")]
    Value(&'static str),
    /// A manifest of a version that isn't known here.
    #[error("version {0} is not known")]
    Version(u64),
}

/// A line of an evidence stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// What the export says of itself: the first line.
    Manifest(Manifest),
    /// A signed checkpoint of the log, as a note's text.
    Checkpoint(Cow<'a, str>),
    /// A key that the server knows, as a C2SP vkey. Nothing rests on its word alone.
    Vkey(Cow<'a, str>),
    /// An entry.
    Entry(EvidenceLine<'a>),
    /// Positions of which the bundle has no leaf data.
    Gap(Gap),
    /// The tree's root at this point of the stream.
    Mark(Mark),
    /// The last line.
    End(End),
}

/// What an export says of itself. Only what the log's own entries and its signed checkpoint bear
/// out counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose log it is.
    pub tenant_id: Uuid,
    /// The configured origin at the time of the export.
    pub origin: Origin,
    /// When the export was made, as the server says.
    pub created_at: Timestamp,
    /// The size of the snapshot.
    pub size: u64,
    /// The tree's root at that size.
    pub root: Hash,
    /// Which entries were asked for, as a JSON object; `None` for the whole log.
    pub filter: Option<String>,
    /// Which groups the export keeps back, in their order.
    pub withheld: Vec<Group>,
}

/// An entry as evidence: its leaf data, and the disclosures of the groups that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvidenceLine<'a> {
    /// The position, which is the leaf's index in the tree.
    pub seq: u64,
    /// The leaf data.
    pub leaf: Cow<'a, str>,
    /// The disclosure of each group, in [`Group`]'s order.
    pub disclosures: [Option<Cow<'a, str>>; 7],
}

impl EvidenceLine<'_> {
    /// The same with strings of its own.
    #[must_use]
    pub fn into_owned(self) -> EvidenceLine<'static> {
        EvidenceLine {
            seq: self.seq,
            leaf: Cow::Owned(self.leaf.into_owned()),
            disclosures: self
                .disclosures
                .map(|one| one.map(|text| Cow::Owned(text.into_owned()))),
        }
    }
}

/// A run of positions of which the bundle has no leaf data, and the hashes that stand for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first position.
    pub from: u64,
    /// The first position behind it; larger than `from`.
    pub to: u64,
    /// The roots of [`subtrees`] of the run, from left to right.
    pub hashes: Vec<Hash>,
}

/// The tree's root at a size, between two positions. It proves nothing: it makes a verifier keep
/// the root there, and helps to find the first wrong position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// How many positions were before it.
    pub size: u64,
    /// The root.
    pub root: Hash,
}

/// The last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// How many evidence lines there were.
    pub entries: u64,
    /// How many gaps there were.
    pub gaps: u64,
    /// [`head_digest`] of the lines before the first position, against damage.
    pub head: Hash,
}

impl<'a> Record<'a> {
    /// Reads a line, with or without its line break.
    ///
    /// # Errors
    ///
    /// See [`LineFault`]. Leaf data, disclosures, notes and keys are not looked into.
    pub fn parse(line: &'a str) -> Result<Self, LineFault> {
        // Nearly every line is an entry as it was written here.
        match as_written(line) {
            Some(entry) => Ok(Self::Entry(entry)),
            None => Self::parse_any(line),
        }
    }

    /// Reads a line in any spelling.
    fn parse_any(line: &'a str) -> Result<Self, LineFault> {
        let members = json::members(line).map_err(|_| LineFault::Json)?;
        let fields = Fields(&members);
        let first = members.first().ok_or(LineFault::Keys)?;
        match (members.len(), first.name.as_ref()) {
            (1, "manifest") => Manifest::read(first.raw).map(Self::Manifest),
            (1, "checkpoint") => fields.text("checkpoint").map(Self::Checkpoint),
            (1, "vkey") => fields.text("vkey").map(Self::Vkey),
            (1, "end") => {
                let members = json::members(first.raw).map_err(|_| LineFault::Value("end"))?;
                let fields = Fields(&members);
                fields.count(3)?;
                Ok(Self::End(End {
                    entries: fields.number("entries")?,
                    gaps: fields.number("gaps")?,
                    head: fields.hash("head")?,
                }))
            }
            (2, _) => Ok(Self::Mark(Mark {
                size: fields.number("size")?,
                root: fields.hash("root")?,
            })),
            (3, "seq" | "leaf" | "disclosures") => Ok(Self::Entry(EvidenceLine {
                seq: fields.number("seq")?,
                leaf: fields.text("leaf")?,
                disclosures: disclosures(fields.raw("disclosures")?)?,
            })),
            (3, _) => {
                let hashes = json::items(fields.raw("hashes")?)
                    .map_err(|_| LineFault::Value("hashes"))?
                    .into_iter()
                    .map(|raw| hash(raw).ok_or(LineFault::Value("hashes")))
                    .collect::<Result<_, _>>()?;
                Ok(Self::Gap(Gap {
                    from: fields.number("from")?,
                    to: fields.number("to")?,
                    hashes,
                }))
            }
            _ => Err(LineFault::Keys),
        }
    }

    /// Appends the record as one line without its line break.
    pub fn write(&self, out: &mut String) {
        match self {
            Self::Manifest(manifest) => {
                out.push_str("{\"manifest\":{");
                manifest.write_members(out);
                out.push_str("}}");
            }
            Self::Checkpoint(note) => {
                out.push_str("{\"checkpoint\":");
                json::write_string(out, note);
                out.push('}');
            }
            Self::Vkey(vkey) => {
                out.push_str("{\"vkey\":");
                json::write_string(out, vkey);
                out.push('}');
            }
            Self::Entry(line) => {
                out.push_str("{\"seq\":");
                out.push_str(&line.seq.to_string());
                out.push_str(",\"leaf\":");
                json::write_string(out, &line.leaf);
                out.push_str(",\"disclosures\":");
                write_list(out, &line.disclosures, |out, one| match one {
                    Some(text) => json::write_string(out, text),
                    None => out.push_str("null"),
                });
                out.push('}');
            }
            Self::Gap(gap) => {
                out.push_str(&format!(
                    "{{\"from\":{},\"to\":{},\"hashes\":",
                    gap.from, gap.to
                ));
                write_list(out, &gap.hashes, |out, hash| {
                    json::write_string(out, &hash.to_base64());
                });
                out.push('}');
            }
            Self::Mark(Mark { size, root }) => {
                let root = root.to_base64();
                out.push_str(&format!("{{\"size\":{size},\"root\":\"{root}\"}}"));
            }
            Self::End(End {
                entries,
                gaps,
                head,
            }) => {
                let head = head.to_base64();
                out.push_str(&format!(
                    "{{\"end\":{{\"entries\":{entries},\"gaps\":{gaps},\"head\":\"{head}\"}}}}"
                ));
            }
        }
    }

    /// The record as one line without its line break.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut line = String::new();
        self.write(&mut line);
        line
    }
}

impl Manifest {
    fn read(raw: &str) -> Result<Self, LineFault> {
        let members = json::members(raw).map_err(|_| LineFault::Value("manifest"))?;
        Fields(&members).count(8)?;
        Self::of(&Fields(&members))
    }

    fn of(fields: &Fields<'_, '_>) -> Result<Self, LineFault> {
        let version = fields.number("version")?;
        if version != VERSION {
            return Err(LineFault::Version(version));
        }
        let tenant = fields.text("tenant_id")?;
        let created_at = fields.text("created_at")?;
        let filter = match fields.raw("filter")? {
            "null" => None,
            raw if raw.starts_with('{') && json::check(raw, json::MAX_DEPTH).is_ok() => {
                Some(raw.to_owned())
            }
            _ => return Err(LineFault::Value("filter")),
        };
        let withheld = json::items(fields.raw("withheld")?)
            .map_err(|_| LineFault::Value("withheld"))?
            .into_iter()
            .map(|raw| json::string(raw).ok()?.parse().ok())
            .collect::<Option<Vec<Group>>>()
            .filter(|groups| groups.is_sorted_by(|a, b| a < b))
            .ok_or(LineFault::Value("withheld"))?;
        Ok(Self {
            tenant_id: uuid(&tenant).ok_or(LineFault::Value("tenant_id"))?,
            origin: Origin::parse(&fields.text("origin")?)
                .map_err(|_| LineFault::Value("origin"))?,
            created_at: time(&created_at).ok_or(LineFault::Value("created_at"))?,
            size: fields.number("size")?,
            root: fields.hash("root")?,
            filter,
            withheld,
        })
    }

    fn write_members(&self, out: &mut String) {
        out.push_str(&format!(
            "\"version\":{VERSION},\"tenant_id\":\"{}\",\"origin\":\"{}\",\"created_at\":\"{}\",\
             \"size\":{},\"root\":\"{}\",\"filter\":",
            self.tenant_id.as_hyphenated(),
            self.origin,
            self.created_at,
            self.size,
            self.root.to_base64()
        ));
        json::write_compact_line(out, self.filter.as_deref().unwrap_or("null"));
        out.push_str(",\"withheld\":");
        write_list(out, &self.withheld, |out, group| {
            json::write_string(out, group.as_str());
        });
    }
}

/// One file of a folder, as its manifest lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// The path within the folder, with `/` between its parts.
    pub name: String,
    /// The length in bytes.
    pub bytes: u64,
    /// The SHA-256 of its bytes.
    pub sha256: Hash,
}

/// `manifest.json` of an evidence folder: the manifest, and the files beside it.
///
/// The list and the digest over it guard against damage. Nobody signs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderManifest {
    /// What the export says of itself.
    pub manifest: Manifest,
    /// Every other file.
    pub files: Vec<ListedFile>,
}

impl FolderManifest {
    /// Reads `manifest.json`: one JSON object of the manifest's keys, `files`, and `sha256`, which is
    /// the digest of what [`encode`](Self::encode) writes before it.
    ///
    /// # Errors
    ///
    /// See [`LineFault`]; `sha256` is named when the digest is another.
    pub fn parse(text: &str) -> Result<Self, LineFault> {
        let members = json::members(text).map_err(|_| LineFault::Json)?;
        let fields = Fields(&members);
        fields.count(10)?;
        let manifest = Manifest::of(&fields)?;
        let files = json::items(fields.raw("files")?)
            .map_err(|_| LineFault::Value("files"))?
            .into_iter()
            .map(|raw| {
                let members = json::members(raw).map_err(|_| LineFault::Value("files"))?;
                let fields = Fields(&members);
                fields.count(3)?;
                Ok(ListedFile {
                    name: fields.text("name")?.into_owned(),
                    bytes: fields.number("bytes")?,
                    sha256: Hash::from_hex(&fields.text("sha256")?)
                        .ok_or(LineFault::Value("files"))?,
                })
            })
            .collect::<Result<_, _>>()?;
        let read = Self { manifest, files };
        let digest = fields.text("sha256")?;
        if digest != sha256(read.listing().as_bytes()).to_hex() {
            return Err(LineFault::Value("sha256"));
        }
        Ok(read)
    }

    /// The file's text, one line with its line break.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = self.listing();
        let digest = sha256(text.as_bytes());
        text.push_str(&format!(",\"sha256\":\"{digest}\"}}\n"));
        text
    }

    fn listing(&self) -> String {
        let mut text = String::from("{");
        self.manifest.write_members(&mut text);
        text.push_str(",\"files\":");
        write_list(&mut text, &self.files, |out, file| {
            out.push_str("{\"name\":");
            json::write_string(out, &file.name);
            out.push_str(&format!(
                ",\"bytes\":{},\"sha256\":\"{}\"}}",
                file.bytes, file.sha256
            ));
        });
        text
    }
}

/// The digest of what stands before the first position, which [`End`] repeats: SHA-256 of the lines
/// of the manifest, the checkpoints and the keys, as [`Record::write`] spells them, sorted, each with
/// a line break.
#[must_use]
pub fn head_digest(mut lines: Vec<String>) -> Hash {
    lines.sort_unstable();
    let mut digest = Sha256::new();
    for line in lines {
        digest.update(line);
        digest.update(b"\n");
    }
    Hash(digest.finalize().into())
}

/// Why a [`Composer`] didn't take something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ComposeFault {
    /// A position that isn't the next one, or not below the manifest's size.
    #[error("position {found} where {expected} is next, of {size}")]
    Position {
        /// The next position.
        expected: u64,
        /// The one that came.
        found: u64,
        /// The manifest's size.
        size: u64,
    },
    /// A gap is empty, or has as many hashes as another range.
    #[error("the hashes of a gap are not those of its range")]
    Gap,
    /// Checkpoints and keys come before the first position.
    #[error("checkpoints and keys come before the first position")]
    Late,
}

/// Writes an evidence stream, line by line, and computes the tree on the way. Lines end in a line
/// break and are appended to the text that the caller hands in, which may be emptied between calls.
#[derive(Debug)]
pub struct Composer {
    size: u64,
    tree: Tree,
    marked: u64,
    head: Vec<String>,
    entries: u64,
    gaps: u64,
}

impl Composer {
    /// Begins a stream.
    pub fn new(manifest: &Manifest, out: &mut String) -> Self {
        let mut composer = Self {
            size: manifest.size,
            tree: Tree::new(),
            marked: 0,
            head: Vec::new(),
            entries: 0,
            gaps: 0,
        };
        composer.head(&Record::Manifest(manifest.clone()), out);
        composer
    }

    /// Writes a signed checkpoint.
    ///
    /// # Errors
    ///
    /// [`ComposeFault::Late`].
    pub fn checkpoint(&mut self, note: &str, out: &mut String) -> Result<(), ComposeFault> {
        self.early()?;
        self.head(&Record::Checkpoint(Cow::Borrowed(note)), out);
        Ok(())
    }

    /// Writes a key.
    ///
    /// # Errors
    ///
    /// [`ComposeFault::Late`].
    pub fn vkey(&mut self, vkey: &str, out: &mut String) -> Result<(), ComposeFault> {
        self.early()?;
        self.head(&Record::Vkey(Cow::Borrowed(vkey)), out);
        Ok(())
    }

    /// Writes an entry, and a mark where one is due.
    ///
    /// # Errors
    ///
    /// [`ComposeFault::Position`].
    pub fn entry(&mut self, line: EvidenceLine<'_>, out: &mut String) -> Result<(), ComposeFault> {
        let hash = leaf_hash(line.leaf.as_bytes());
        self.sealed_entry(line, hash, out)
    }

    /// Writes an entry of which the log has kept the leaf hash. The marks are computed of these, so
    /// that a verifier finds one that was changed since between two of them.
    ///
    /// # Errors
    ///
    /// [`ComposeFault::Position`].
    pub fn sealed_entry(
        &mut self,
        line: EvidenceLine<'_>,
        hash: Hash,
        out: &mut String,
    ) -> Result<(), ComposeFault> {
        self.next(line.seq, 1)?;
        self.tree.push(hash);
        self.entries += 1;
        write_line(&Record::Entry(line), out);
        if self.tree.size().is_multiple_of(MARK_EVERY) {
            self.mark(out);
        }
        Ok(())
    }

    /// Writes a gap. `hashes` are the roots of the range's [`subtrees`].
    ///
    /// A root that a verifier has to compare is not known within a gap: cut the range there and
    /// write a [`mark`](Self::mark) between the parts.
    ///
    /// # Errors
    ///
    /// [`ComposeFault::Position`] or [`ComposeFault::Gap`].
    pub fn gap(
        &mut self,
        range: Range<u64>,
        hashes: Vec<Hash>,
        out: &mut String,
    ) -> Result<(), ComposeFault> {
        let len = range
            .end
            .checked_sub(range.start)
            .filter(|len| *len > 0)
            .ok_or(ComposeFault::Gap)?;
        self.next(range.start, len)?;
        if !grow(&mut self.tree, range.clone(), &hashes) {
            return Err(ComposeFault::Gap);
        }
        self.gaps += 1;
        let gap = Gap {
            from: range.start,
            to: range.end,
            hashes,
        };
        write_line(&Record::Gap(gap), out);
        Ok(())
    }

    /// Writes the root at this point; nothing where one was just written, or before the first
    /// position. The `below` of each prune that the stream has needs one.
    pub fn mark(&mut self, out: &mut String) {
        let size = self.tree.size();
        if size > self.marked {
            self.marked = size;
            let root = self.tree.root();
            write_line(&Record::Mark(Mark { size, root }), out);
        }
    }

    /// The tree of what was written so far.
    #[must_use]
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Ends the stream, whatever root its positions lead to: evidence of a log that was altered is
    /// what a verifier finds the alteration in.
    ///
    /// # Errors
    ///
    /// [`ComposeFault::Position`] when positions are missing; then nothing is written.
    pub fn finish(self, out: &mut String) -> Result<(), ComposeFault> {
        if self.tree.size() != self.size {
            return Err(ComposeFault::Position {
                expected: self.tree.size(),
                found: self.size,
                size: self.size,
            });
        }
        let end = End {
            entries: self.entries,
            gaps: self.gaps,
            head: head_digest(self.head),
        };
        write_line(&Record::End(end), out);
        Ok(())
    }

    fn early(&self) -> Result<(), ComposeFault> {
        if self.tree.size() == 0 {
            Ok(())
        } else {
            Err(ComposeFault::Late)
        }
    }

    fn head(&mut self, record: &Record<'_>, out: &mut String) {
        let line = record.encode();
        out.push_str(&line);
        out.push('\n');
        self.head.push(line);
    }

    fn next(&self, position: u64, len: u64) -> Result<(), ComposeFault> {
        let expected = self.tree.size();
        if position == expected && self.size - expected >= len {
            Ok(())
        } else {
            Err(ComposeFault::Position {
                expected,
                found: position,
                size: self.size,
            })
        }
    }
}

/// Appends the leaves of a gap. `false` when the hashes aren't as many as its subtrees, or the gap
/// doesn't begin where the tree ends; the tree is then of no use.
pub(crate) fn grow(tree: &mut Tree, range: Range<u64>, hashes: &[Hash]) -> bool {
    if range.start != tree.size() || range.end >= SIZE_END {
        return false;
    }
    let subtrees = subtrees(range);
    subtrees.len() == hashes.len()
        && subtrees
            .into_iter()
            .zip(hashes)
            .all(|(run, root)| tree.push_subtree((run.end - run.start).ilog2(), *root))
}

/// Why leaf data is not that of version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeafFault {
    /// Longer than [`MAX_LEAF_LEN`].
    #[error("longer than {MAX_LEAF_LEN} bytes")]
    TooLong,
    /// Not the format's keys in their order, without white space.
    #[error("not the keys of leaf data in their order, without white space")]
    Shape,
    /// A value isn't one of those that its key may have, or not in its only spelling.
    #[error("the value of {0} is not of its form")]
    Value(&'static str),
    /// A control entry's content is at fault.
    #[error("ctl: {0}")]
    Control(#[from] ControlFault),
}

/// Leaf data, read back. What [`parse`](Self::parse) accepts is what [`Leaf::encode`](crate::Leaf)
/// writes for these values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafData<'a> {
    /// What the entry is.
    pub kind: Kind,
    /// The tenant whose log it is in.
    pub tenant_id: Uuid,
    /// The entry's identity.
    pub id: Uuid,
    /// When the log accepted it.
    pub created_at: Timestamp,
    /// When it happened, as the client says.
    pub occurred_at: Timestamp,
    /// The coarse operation.
    pub action_type: &'a str,
    /// The fine name.
    pub action: &'a str,
    /// How it ended.
    pub outcome: &'a str,
    /// How much it matters.
    pub severity: &'a str,
    /// A control entry's own content.
    pub control: Option<Control>,
    /// The digest of each group.
    pub digests: [Option<Hash>; 7],
}

impl<'a> LeafData<'a> {
    /// Reads leaf data strictly: its keys in their order, every value in its only spelling and one
    /// that the log admits. The length of `action` is not checked, since limits may be raised.
    ///
    /// # Errors
    ///
    /// See [`LeafFault`].
    pub fn parse(text: &'a str) -> Result<Self, LeafFault> {
        if text.len() > MAX_LEAF_LEN {
            return Err(LeafFault::TooLong);
        }
        let mut rest = text;
        let rest = &mut rest;
        let kind: Kind = value(rest, "{\"v\":1,\"kind\":\"")?
            .parse()
            .map_err(|_| LeafFault::Value("kind"))?;
        let tenant_id = value(rest, "\",\"tenant_id\":\"")?;
        let tenant_id = uuid(tenant_id).ok_or(LeafFault::Value("tenant_id"))?;
        let id = uuid(value(rest, "\",\"id\":\"")?).ok_or(LeafFault::Value("id"))?;
        let created_at = value(rest, "\",\"created_at\":\"")?;
        let created_at = time(created_at).ok_or(LeafFault::Value("created_at"))?;
        let occurred_at = value(rest, "\",\"occurred_at\":\"")?;
        let occurred_at = time(occurred_at).ok_or(LeafFault::Value("occurred_at"))?;
        let action_type = value(rest, "\",\"action_type\":\"")?;
        let action = value(rest, "\",\"action\":\"")?;
        let outcome = value(rest, "\",\"outcome\":\"")?;
        let severity = value(rest, "\",\"severity\":\"")?;
        take(rest, "\"")?;

        let control = match rest.strip_prefix(",\"ctl\":") {
            Some(after) if kind.is_control() => {
                // The last one is the format's own: digests have no quotes in them.
                let (ctl, sd) = after.rsplit_once(",\"sd\":").ok_or(LeafFault::Shape)?;
                *rest = sd;
                Some(Control::parse(kind, ctl)?)
            }
            None if !kind.is_control() => {
                take(rest, ",\"sd\":")?;
                None
            }
            _ => return Err(LeafFault::Value("ctl")),
        };
        let mut digests = [None; 7];
        for (i, digest) in digests.iter_mut().enumerate() {
            take(rest, if i == 0 { "[" } else { "," })?;
            if let Some(after) = rest.strip_prefix("null") {
                *rest = after;
            } else {
                let text = value(rest, "\"")?;
                *digest = Some(Hash::from_base64url(text).ok_or(LeafFault::Value("sd"))?);
                take(rest, "\"")?;
            }
        }
        if *rest != "]}" {
            return Err(LeafFault::Shape);
        }

        let leaf = Self {
            kind,
            tenant_id,
            id,
            created_at,
            occurred_at,
            action_type,
            action,
            outcome,
            severity,
            control,
            digests,
        };
        leaf.check_words()?;
        Ok(leaf)
    }

    fn check_words(&self) -> Result<(), LeafFault> {
        const ACTION_TYPES: [&str; 11] = [
            "CREATE", "UPDATE", "DELETE", "VIEW", "LOGIN", "LOGOUT", "GRANT", "REVOKE", "EXECUTE",
            "EXPORT", "OTHER",
        ];
        const OUTCOMES: [&str; 4] = ["success", "failure", "denied", "unknown"];
        const SEVERITIES: [&str; 4] = ["INFO", "WARNING", "ERROR", "CRITICAL"];
        let admitted = |b| matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b':' | b'/' | b'-');
        let own = || self.action.strip_prefix("log.") == Some(self.kind.as_str());
        if !ACTION_TYPES.contains(&self.action_type)
            || (self.kind.is_control() && self.action_type != "OTHER")
        {
            Err(LeafFault::Value("action_type"))
        } else if self.action.is_empty()
            || !self.action.bytes().all(admitted)
            || (self.kind.is_control() && !own())
        {
            Err(LeafFault::Value("action"))
        } else if !OUTCOMES.contains(&self.outcome) {
            Err(LeafFault::Value("outcome"))
        } else if !SEVERITIES.contains(&self.severity) {
            Err(LeafFault::Value("severity"))
        } else {
            Ok(())
        }
    }
}

/// Why a disclosure doesn't count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DisclosureFault {
    /// Not the disclosure that the log writes for its parts.
    #[error("not a disclosure in its only spelling")]
    Form,
    /// The disclosure names another group than the one at whose place it stands.
    #[error("a disclosure of {0}")]
    Place(Group),
    /// The value isn't its group's canonical text, or is empty.
    #[error("the value is not the canonical text of its group")]
    Value,
}

/// Checks that a text is a disclosure of this group in its only spelling, and returns its digest.
/// Lengths are not checked, since limits may be raised. The buffer is the caller's, so that many
/// checks need one allocation; it keeps the group's value in the clear until it is used again.
///
/// # Errors
///
/// See [`DisclosureFault`].
pub fn check_disclosure(
    buf: &mut Vec<u8>,
    group: Group,
    text: &str,
) -> Result<Hash, DisclosureFault> {
    let (_, named, value) = leaf::disclosed_parts(buf, text).ok_or(DisclosureFault::Form)?;
    let keys: &[&str] = match group {
        Group::Actor => &["user_id", "actor_type", "actor_name", "on_behalf_of"],
        Group::Resource => &[
            "resource_type",
            "resource_id",
            "resource_name",
            "related_resources",
        ],
        Group::Context => &[
            "session_id",
            "request_id",
            "trace_id",
            "user_agent",
            "ip_address",
        ],
        Group::Reason | Group::BeforeState | Group::AfterState | Group::Metadata => &[],
    };
    // Most objects are of strings without escapes, and need no other look.
    if named == group && is_plain_object(value, keys) {
        return Ok(sha256(text.as_bytes()));
    }
    if !leaf::is_value(value) {
        return Err(DisclosureFault::Form);
    }
    if named != group {
        return Err(DisclosureFault::Place(named));
    }
    let canonical = match group {
        Group::Actor | Group::Resource | Group::Context => is_object(value, keys),
        Group::Reason => is_string(value),
        // Raw JSON is kept as it was sent.
        Group::BeforeState | Group::AfterState | Group::Metadata => true,
    };
    if canonical {
        Ok(sha256(text.as_bytes()))
    } else {
        Err(DisclosureFault::Value)
    }
}

fn sha256(bytes: &[u8]) -> Hash {
    Hash(Sha256::digest(bytes).into())
}

/// Whether a text is an object of some of these keys in their order, at least one, without white space,
/// and all its values are strings without escapes. Whatever is one is what [`is_object`] admits; what
/// isn't may be.
fn is_plain_object(text: &str, keys: &[&str]) -> bool {
    let mut keys = keys.iter();
    let mut rest = text;
    let mut before = "{\"";
    while let Some(member) = rest.strip_prefix(before) {
        let Some((name, after)) = json::take_plain(member) else {
            return false;
        };
        let value = after.strip_prefix(":\"").and_then(json::take_plain);
        let Some((value, after)) = value else {
            return false;
        };
        let canonical = match name {
            "related_resources" => false,
            "ip_address" => is_address_text(value),
            _ => true,
        };
        if !canonical || !keys.any(|key| *key == name) {
            return false;
        }
        rest = after;
        before = ",\"";
    }
    before != "{\"" && rest == "}"
}

/// Whether valid JSON is an object of some of these keys in their order, at least one, without white
/// space, and its values are canonical.
fn is_object(text: &str, keys: &[&str]) -> bool {
    let Ok(members) = json::members_of(text) else {
        return false;
    };
    let mut keys = keys.iter();
    let mut length = 1;
    for member in &members {
        let known = keys.any(|key| member.name == *key);
        let canonical = match member.name.as_ref() {
            "related_resources" => is_list(member.raw),
            "ip_address" => is_address(member.raw),
            _ => is_string(member.raw),
        };
        if !known || !canonical {
            return false;
        }
        // Two quotes, colon, and comma or brace. What is longer has white space or escapes in it.
        length += member.name.len() + member.raw.len() + 4;
    }
    !members.is_empty() && length == text.len()
}

/// Whether a text is a list of related resources, at least one, without white space.
fn is_list(text: &str) -> bool {
    let Ok(items) = json::items(text) else {
        return false;
    };
    let length = items.iter().map(|item| item.len() + 1).sum::<usize>() + 1;
    let named = |item: &str| item.starts_with("{\"type\":") && item.contains(",\"id\":");
    !items.is_empty()
        && length == text.len()
        && items
            .iter()
            .all(|item| named(item) && is_object(item, &["type", "id", "name"]))
}

/// Whether a text is a string escaped as [`json::write_string`] does it.
fn is_string(text: &str) -> bool {
    match json::string(text) {
        Ok(Cow::Borrowed(_)) => true,
        Ok(Cow::Owned(decoded)) => {
            let mut written = String::new();
            json::write_string(&mut written, &decoded);
            written == text
        }
        Err(_) => false,
    }
}

/// Whether a text is a string that holds an address as RFC 5952 prints it, IPv6 in hexadecimal.
fn is_address(text: &str) -> bool {
    matches!(json::string(text), Ok(Cow::Borrowed(text)) if is_address_text(text))
}

fn is_address_text(text: &str) -> bool {
    let address = text.parse::<std::net::IpAddr>();
    address.is_ok_and(|address| address.to_canonical() == address && address.to_string() == text)
}

/// The members of an object, by name.
struct Fields<'m, 'a>(&'m [json::Member<'a>]);

impl<'a> Fields<'_, 'a> {
    fn count(&self, count: usize) -> Result<(), LineFault> {
        if self.0.len() == count {
            Ok(())
        } else {
            Err(LineFault::Keys)
        }
    }

    /// The value of a key that stands here once. With [`count`](Self::count), when as many keys are
    /// asked for as there are, there is no other.
    fn raw(&self, name: &str) -> Result<&'a str, LineFault> {
        let mut values = self.0.iter().filter(|member| member.name == name);
        match (values.next(), values.next()) {
            (Some(member), None) => Ok(member.raw),
            _ => Err(LineFault::Keys),
        }
    }

    fn text(&self, name: &'static str) -> Result<Cow<'a, str>, LineFault> {
        json::string(self.raw(name)?).map_err(|_| LineFault::Value(name))
    }

    fn number(&self, name: &'static str) -> Result<u64, LineFault> {
        number(self.raw(name)?).ok_or(LineFault::Value(name))
    }

    fn hash(&self, name: &'static str) -> Result<Hash, LineFault> {
        hash(self.raw(name)?).ok_or(LineFault::Value(name))
    }
}

fn hash(raw: &str) -> Option<Hash> {
    Hash::from_base64(&json::string(raw).ok()?)
}

fn disclosures(raw: &str) -> Result<[Option<Cow<'_, str>>; 7], LineFault> {
    const FAULT: LineFault = LineFault::Value("disclosures");
    let items = json::items(raw).map_err(|_| FAULT)?;
    if items.len() != 7 {
        return Err(FAULT);
    }
    let mut disclosures = [const { None }; 7];
    for (disclosure, raw) in disclosures.iter_mut().zip(items) {
        if raw != "null" {
            *disclosure = Some(json::string(raw).map_err(|_| FAULT)?);
        }
    }
    Ok(disclosures)
}

/// An evidence line in the spelling that [`Record::write`] gives it, read in one pass; `None` for every
/// other text, which is for [`Record::parse_any`] to judge.
fn as_written(line: &str) -> Option<EvidenceLine<'_>> {
    let line = line.strip_suffix('\n').unwrap_or(line);
    let rest = line.strip_prefix("{\"seq\":")?;
    let (digits, rest) = rest.split_once(',')?;
    let (leaf, rest) = json::take_string(rest.strip_prefix("\"leaf\":")?)?;
    let mut rest = rest.strip_prefix(",\"disclosures\":")?;
    let mut disclosures = [const { None }; 7];
    for (i, disclosure) in disclosures.iter_mut().enumerate() {
        rest = rest.strip_prefix(if i == 0 { '[' } else { ',' })?;
        rest = match rest.strip_prefix("null") {
            Some(after) => after,
            None => {
                let (text, after) = json::take_string(rest)?;
                *disclosure = Some(text);
                after
            }
        };
    }
    let seq = (rest == "]}").then(|| number(digits))??;
    Some(EvidenceLine {
        seq,
        leaf,
        disclosures,
    })
}

/// A number below [`SIZE_END`]. JSON has no leading zeros.
fn number(raw: &str) -> Option<u64> {
    let digits = raw.bytes().all(|b| b.is_ascii_digit());
    let leads = raw.len() > 1 && raw.starts_with('0');
    let number = if digits && !leads {
        raw.parse().ok()
    } else {
        None
    };
    number.filter(|number| *number < SIZE_END)
}

/// A UUID in lower case with hyphens.
fn uuid(text: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(text).ok()?;
    let mut buf = Uuid::encode_buffer();
    let written: &str = uuid.as_hyphenated().encode_lower(&mut buf);
    (written == text).then_some(uuid)
}

/// A time in the log's spelling, which has six decimals and `Z`.
fn time(text: &str) -> Option<Timestamp> {
    let spelling = text.len() == 27 && text.as_bytes()[10] == b'T' && text.ends_with('Z');
    let time = Timestamp::parse(text).ok()?;
    spelling.then_some(time)
}

/// Goes past a text that has to come next.
fn take(rest: &mut &str, text: &str) -> Result<(), LeafFault> {
    *rest = rest.strip_prefix(text).ok_or(LeafFault::Shape)?;
    Ok(())
}

/// Goes past a text that has to come next, and takes what follows up to a quote, which stays.
fn value<'a>(rest: &mut &'a str, before: &str) -> Result<&'a str, LeafFault> {
    take(rest, before)?;
    let end = memchr::memchr(b'"', rest.as_bytes()).ok_or(LeafFault::Shape)?;
    let (value, after) = rest.split_at(end);
    *rest = after;
    Ok(value)
}

fn write_list<T>(out: &mut String, items: &[T], write: impl Fn(&mut String, &T)) {
    out.push('[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write(out, item);
    }
    out.push(']');
}

fn write_line(record: &Record<'_>, out: &mut String) {
    record.write(out);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_alike_as_it_was_written_and_in_any_spelling() {
        let text = |text: &'static str| Some(Cow::Borrowed(text));
        let line = Record::Entry(EvidenceLine {
            seq: 1_207,
            leaf: Cow::Borrowed("{\"v\":1,\"a\":\"\u{1f}\\\u{e9}\u{10ffff}\"}"),
            disclosures: [text("WyJ"), None, text(""), None, None, text("x\ny"), None],
        });
        let written = line.encode();
        assert_eq!(Record::Entry(as_written(&written).unwrap()), line);
        assert_eq!(Record::parse(&format!("{written}\n")), Ok(line));

        // Whatever a byte is changed to, taken out or put in: the fast reading gives what the other does,
        // or leaves the line to it.
        let mut taken = 0;
        let mut compare = |bytes: Vec<u8>| {
            let Ok(text) = std::str::from_utf8(&bytes) else {
                return;
            };
            if let Some(entry) = as_written(text) {
                taken += 1;
                assert_eq!(Record::parse_any(text), Ok(Record::Entry(entry)), "{text}");
            }
        };
        for at in 0..written.len() {
            for byte in 0..=u8::MAX {
                let mut changed = written.clone().into_bytes();
                changed[at] = byte;
                compare(changed);
                let mut longer = written.clone().into_bytes();
                longer.insert(at, byte);
                compare(longer);
            }
            let mut shorter = written.clone().into_bytes();
            shorter.remove(at);
            compare(shorter);
        }
        assert!(taken > 1_000, "{taken}");
    }

    #[test]
    fn what_is_taken_as_a_plain_object_is_one_that_is_admitted() {
        let keys = &["a", "ip_address", "related_resources"];
        let (mut taken, mut refused) = (0, 0);
        for value in [
            "{\"a\":\"x y\",\"ip_address\":\"10.0.0.1\"}",
            "{\"ip_address\":\"::ffff:10.0.0.1\"}",
            "{\"ip_address\":\"2001:db8::1\"}",
            "{\"a\":\"\u{e9}\\u0000\"}",
            "{\"a\":\"\",\"related_resources\":\"\"}",
            "{\"a\":\"\",\"a\":\"\"}",
            "{\"\":\"\"}",
            "{}",
        ] {
            let mut compare = |bytes: Vec<u8>| {
                let Ok(text) = std::str::from_utf8(&bytes) else {
                    return;
                };
                if is_plain_object(text, keys) {
                    taken += 1;
                    assert!(leaf::is_value(text) && is_object(text, keys), "{text}");
                } else {
                    refused += 1;
                }
            };
            for at in 0..value.len() {
                for byte in 0..=u8::MAX {
                    let mut changed = value.as_bytes().to_vec();
                    changed[at] = byte;
                    compare(changed);
                    let mut longer = value.as_bytes().to_vec();
                    longer.insert(at, byte);
                    compare(longer);
                }
                let mut shorter = value.as_bytes().to_vec();
                shorter.remove(at);
                compare(shorter);
            }
        }
        assert!(taken > 1_000 && refused > 1_000, "{taken}, {refused}");
    }
}
