//! What a verification found.

use std::cmp::Reverse;
use std::fmt;
use std::ops::Range;

use serde::Serialize;
use serde::ser::{SerializeStruct as _, Serializer};
use serde_json::{Value, json};
use uuid::Uuid;

use super::holes::Erase;
use crate::control::Basis;
use crate::leaf::{Group, Hash};
use crate::note::VerifyingKey;
use crate::time::Timestamp;

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// What kind of finding it is. The texts stay: scripts compare them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[doc = $doc])+ $name,)+ }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

codes! {
    /// The first line isn't a manifest.
    Manifest = "manifest",
    /// A line is not a record, or stands at the wrong place of the stream.
    Line = "line",
    /// The stream ends too early.
    Cut = "cut",
    /// The lines before the first position, or their number, are not those that the end line tells.
    Damaged = "damaged",
    /// A file of a folder is missing, or not the one that its manifest lists.
    File = "file",
    /// The export says that it is not the whole log, which was demanded.
    Partial = "partial",
    /// Leaf data is not that of version 1.
    Leaf = "leaf",
    /// Leaf data doesn't have the hash that the tree has at its position.
    LeafHash = "leaf_hash",
    /// A disclosure is not in its only spelling, or not of the group at whose place it stands.
    Disclosure = "disclosure",
    /// A disclosure is not the one that the leaf has the digest of.
    Digest = "digest",
    /// Positions are missing from the stream.
    Missing = "missing",
    /// A position comes again, or after a later one.
    Order = "order",
    /// The hashes of a gap are not as many as its range has subtrees.
    Gap = "gap",
    /// An id comes again.
    RepeatedId = "repeated_id",
    /// An entry was accepted before the one before it.
    Time = "time",
    /// An entry of another tenant.
    Tenant = "tenant",
    /// The entries lead to another root than a signed checkpoint's.
    Root = "root",
    /// A mark has another root than the entries lead to, although a signed checkpoint agrees with
    /// these.
    Mark = "mark",
    /// A checkpoint is not one of this log's, or there is none of the snapshot.
    Checkpoint = "checkpoint",
    /// A checkpoint is not signed by the key that the log had at its size.
    Signature = "signature",
    /// The keys that the caller trusts are none of this log's.
    ForeignKey = "foreign_key",
    /// A `key` entry doesn't fit the log's key and name at that position.
    KeyEntry = "key_entry",
    /// No checkpoint over a `key` entry is signed by the old key.
    KeyUnsigned = "key_unsigned",
    /// An `epoch` entry doesn't fit its position.
    EpochEntry = "epoch_entry",
    /// A `prune` entry doesn't fit its position or the prunes before it.
    PruneEntry = "prune_entry",
    /// The tree had another root at the size that a `prune` entry names, or the stream doesn't say
    /// which.
    PruneRoot = "prune_root",
    /// An `erase` entry names positions that are not below its own.
    EraseEntry = "erase_entry",
    /// A group that an `erase` entry names is still shown.
    ErasedShown = "erased_shown",
    /// A group below the largest prune is still shown.
    PrunedShown = "pruned_shown",
    /// A group or an entry is gone, and nothing says why.
    Unexplained = "unexplained",
    /// The log is not a continuation of a known checkpoint's.
    Known = "known",
    /// The log is smaller than a known checkpoint's: its tail was cut off, or it was rolled back, by a
    /// restore that its own `epoch` entry tells of perhaps.
    Rollback = "rollback",
    /// A head proof doesn't prove, or is another tenant's.
    HeadProof = "head_proof",
    /// The witness cosigned neither the checkpoint nor a head proof that was compared.
    Witness = "witness",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that doesn't hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind it is.
    pub code: Code,
    /// The first and the last position that it concerns, where it concerns positions. With more than
    /// one, something is wrong at one of them at least.
    pub positions: Option<(u64, u64)>,
    /// The line of the stream, from 1, where it concerns one.
    pub line: Option<u64>,
    /// The file of a folder, where it concerns one.
    pub file: Option<String>,
    /// What doesn't hold, in a few words for people.
    pub detail: String,
}

impl Finding {
    /// A finding about positions, from the first to the last, or about none in particular; of no line and
    /// no file.
    #[must_use]
    pub const fn at(code: Code, positions: Option<(u64, u64)>, detail: String) -> Self {
        Self {
            code,
            positions,
            line: None,
            file: None,
            detail,
        }
    }

    /// The finding for scripts, one JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        json!(self).to_string()
    }
}

/// For scripts: `code`, `from`, `to`, `line`, `file` and `detail`, of which all but the first and the last
/// may be null.
impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Finding", 6)?;
        fields.serialize_field("code", self.code.as_str())?;
        fields.serialize_field("from", &self.positions.map(|(from, _)| from))?;
        fields.serialize_field("to", &self.positions.map(|(_, to)| to))?;
        fields.serialize_field("line", &self.line)?;
        fields.serialize_field("file", &self.file)?;
        fields.serialize_field("detail", &self.detail)?;
        fields.end()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.positions {
            Some((from, to)) if from == to => write!(f, "position {from}: ")?,
            Some((from, to)) => write!(f, "positions {from} to {to}: ")?,
            None => {}
        }
        match (&self.file, self.line) {
            (Some(file), _) => write!(f, "{file}: ")?,
            (None, Some(line)) if self.positions.is_none() => write!(f, "line {line}: ")?,
            _ => {}
        }
        write!(f, "{} ({})", self.detail, self.code)
    }
}

/// Why something is not in the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// The `erase` entry at this position says so.
    Erased(u64),
    /// The `prune` entry at this position says so.
    Pruned(u64),
    /// The export says that it keeps it back, and the caller allows that.
    Withheld,
    /// Nothing explains it.
    Unexplained,
}

impl Explanation {
    /// The explanation's name, without the position.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Erased(_) => "erased",
            Self::Pruned(_) => "pruned",
            Self::Withheld => "withheld",
            Self::Unexplained => "unexplained",
        }
    }

    /// The position of the entry that explains it.
    #[must_use]
    pub const fn by(self) -> Option<u64> {
        match self {
            Self::Erased(seq) | Self::Pruned(seq) => Some(seq),
            Self::Withheld | Self::Unexplained => None,
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Erased(seq) => write!(f, "erased by seq {seq}"),
            Self::Pruned(seq) => write!(f, "pruned by seq {seq}"),
            Self::Withheld => f.write_str("withheld by this export"),
            Self::Unexplained => f.write_str("UNEXPLAINED"),
        }
    }
}

/// A run of positions at which the same is absent for the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The first position.
    pub from: u64,
    /// The last position.
    pub to: u64,
    /// Which groups are absent; empty where whole entries are.
    pub groups: Vec<Group>,
    /// Why.
    pub why: Explanation,
}

/// How many groups of the entries in the bundle are there, or why not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// Disclosed, and as the leaf says.
    pub shown: u64,
    /// The entry never had them.
    pub never: u64,
    /// Erased.
    pub erased: u64,
    /// Gone with a prune; only leaf data is left.
    pub pruned: u64,
    /// Withheld by the export.
    pub withheld: u64,
    /// Absent without a reason.
    pub unexplained: u64,
}

/// How many entries of the log the bundle has no leaf data of, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryCounts {
    /// Gone with a prune.
    pub pruned: u64,
    /// Withheld by the export.
    pub withheld: u64,
    /// Absent without a reason.
    pub unexplained: u64,
}

/// From an `epoch` entry on the log was continued after a restore, under another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Its number, larger than those before.
    pub epoch: u64,
    /// The entry's position, which is the size that was continued from.
    pub seq: u64,
    /// Why.
    pub basis: Basis,
}

/// A cosignature that was asked for and holds. Scripts see its fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cosigned {
    /// The witness's key name.
    pub witness: String,
    /// When it cosigned, in seconds since the epoch.
    pub time: u64,
    /// The size that the log had then at least, and up to which it is what it was.
    pub size: u64,
}

impl Cosigned {
    pub(super) fn by(witness: &VerifyingKey, time: u64, size: u64) -> Self {
        Self {
            witness: witness.name().to_owned(),
            time,
            size,
        }
    }

    /// Of cosignatures of one witness that of the largest size, and of those the earliest; `None` of none.
    #[must_use]
    pub fn widest<'a>(of: impl IntoIterator<Item = &'a Self>) -> Option<&'a Self> {
        of.into_iter()
            .max_by_key(|one| (one.size, Reverse(one.time)))
    }
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whose log it is; `None` when there is no manifest.
    pub tenant_id: Option<Uuid>,
    /// The log's name.
    pub origin: Option<String>,
    /// The size of the snapshot, as the signed checkpoint has it.
    pub size: u64,
    /// The root at that size.
    pub root: Option<Hash>,
    /// The vkey that signed the checkpoint of the snapshot.
    pub signed_by: Option<String>,
    /// Whether that key is one that the caller trusts, or follows from one.
    pub key_trusted: bool,
    /// When the first and the last entry in the bundle were accepted, and at which positions.
    pub span: Option<((u64, Timestamp), (u64, Timestamp))>,
    /// How many entries the bundle has.
    pub entries: u64,
    /// Entries that it doesn't have.
    pub absent: EntryCounts,
    /// The groups of the entries that it has.
    pub groups: GroupCounts,
    /// For each `erase` entry that explains anything, how many groups.
    pub erased_by: Vec<(u64, u64)>,
    /// The `erase` entries in the bundle, oldest first, as far as they stand below a signed head that the
    /// entries lead to: what the log itself says, whatever else is wrong with the bundle.
    pub erases: Vec<Erase>,
    /// Below which position the log was pruned; 0 when it wasn't.
    pub pruned_below: u64,
    /// Where the log was continued after a restore, oldest first.
    pub epochs: Vec<Epoch>,
    /// What is absent, in the order of positions; as many as were asked for.
    pub holes: Vec<Hole>,
    /// How many holes there are in all.
    pub holes_total: u64,
    /// Whether the caller allowed an export that isn't the whole log.
    pub partial: bool,
    /// The sizes of the known checkpoints and head proofs that the log continues.
    pub known: Vec<u64>,
    /// The sizes of those that can't be compared, since they lie within a gap.
    pub known_in_gap: Vec<u64>,
    /// The cosignatures that were asked for, one of each witness.
    pub cosigned: Vec<Cosigned>,
    /// What doesn't hold: first of lines, in their order, then of the log as a whole, holes without an
    /// explanation last and the lowest positions first. As many as were asked for.
    pub findings: Vec<Finding>,
    /// How many findings there are in all.
    pub findings_total: u64,
    /// What the reader should know although everything holds.
    pub warnings: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_verified(&self) -> bool {
        self.findings_total == 0
    }

    /// The size of the largest known checkpoint or head proof that the log continues: up to there nothing
    /// was cut off. `None` when none was compared.
    #[must_use]
    pub fn known_size(&self) -> Option<u64> {
        self.known.iter().copied().max()
    }

    /// When all witnesses that were asked for had cosigned, in seconds since the epoch, by the latest of
    /// their times: up to [`cosigned_size`](Self::cosigned_size) the log was then what it is. `None` when
    /// none was asked for.
    #[must_use]
    pub fn cosigned_at(&self) -> Option<u64> {
        self.cosigned.iter().map(|one| one.time).max()
    }

    /// Up to which size all witnesses that were asked for vouch. `None` when none was asked for.
    #[must_use]
    pub fn cosigned_size(&self) -> Option<u64> {
        self.cosigned.iter().map(|one| one.size).min()
    }

    /// The first hole at these positions that no entry of the log explains: a segment of an archive has
    /// none, whatever its export says that it keeps back. Only holes that are listed are looked at.
    #[must_use]
    pub fn withheld_within(&self, positions: &Range<u64>) -> Option<&Hole> {
        self.holes.iter().find(|hole| {
            hole.why.by().is_none() && hole.from < positions.end && hole.to >= positions.start
        })
    }

    /// Adds a finding that is not about the stream, such as one about a file.
    pub fn add(&mut self, finding: Finding) {
        self.findings_total += 1;
        self.findings.push(finding);
    }

    /// The report for scripts, one JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        let positioned = |(seq, at): (u64, Timestamp)| json!({"seq": seq, "at": at.to_string()});
        let holes = self.holes.iter().map(|hole| {
            let groups = hole.groups.iter().map(|group| group.as_str());
            json!({
                "from": hole.from,
                "to": hole.to,
                "groups": if hole.groups.is_empty() { Value::Null } else { groups.collect() },
                "why": hole.why.as_str(),
                "by": hole.why.by(),
            })
        });
        json!({
            "verified": self.is_verified(),
            "tenant_id": self.tenant_id.map(|id| id.to_string()),
            "origin": self.origin,
            "size": self.size,
            "root": self.root.map(|root| root.to_base64()),
            "signed_by": self.signed_by,
            "key_trusted": self.key_trusted,
            "first": self.span.map(|(first, _)| positioned(first)),
            "last": self.span.map(|(_, last)| positioned(last)),
            "entries": {
                "present": self.entries,
                "pruned": self.absent.pruned,
                "withheld": self.absent.withheld,
                "unexplained": self.absent.unexplained,
            },
            "groups": {
                "shown": self.groups.shown,
                "never": self.groups.never,
                "erased": self.groups.erased,
                "pruned": self.groups.pruned,
                "withheld": self.groups.withheld,
                "unexplained": self.groups.unexplained,
            },
            "erased_by": self
                .erased_by
                .iter()
                .map(|(seq, groups)| json!({"seq": seq, "groups": groups}))
                .collect::<Vec<_>>(),
            "epochs": self
                .epochs
                .iter()
                .map(|one| json!({
                    "epoch": one.epoch,
                    "seq": one.seq,
                    "basis": one.basis.as_str(),
                }))
                .collect::<Vec<_>>(),
            "holes": holes.collect::<Vec<_>>(),
            "holes_total": self.holes_total,
            "partial": self.partial,
            "known": self.known,
            "known_in_gap": self.known_in_gap,
            "cosigned": self.cosigned,
            "known_size": self.known_size(),
            "cosigned_at": self.cosigned_at(),
            "cosigned_size": self.cosigned_size(),
            "findings": self.findings,
            "findings_total": self.findings_total,
            "warnings": self.warnings,
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_read_the_same_fields_of_every_finding_and_cosignature() {
        let mut finding = Finding::at(Code::Known, Some((3, 5)), "not so".into());
        assert_eq!(
            finding.to_json(),
            r#"{"code":"known","detail":"not so","file":null,"from":3,"line":null,"to":5}"#
        );
        (finding.positions, finding.line) = (None, Some(7));
        finding.file = Some("keys".into());
        assert_eq!(
            finding.to_json(),
            r#"{"code":"known","detail":"not so","file":"keys","from":null,"line":7,"to":null}"#
        );
        let cosigned = Cosigned {
            witness: "witness.example.com/w1".into(),
            time: 1,
            size: 2,
        };
        assert_eq!(
            json!(cosigned).to_string(),
            r#"{"size":2,"time":1,"witness":"witness.example.com/w1"}"#
        );
    }
}
