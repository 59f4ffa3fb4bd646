//! What can be said of a line by itself: its form, and the hashes of what is in it. Lines are checked
//! in any order and on any thread.

use uuid::Uuid;

use super::Code;
use crate::control::Control;
use crate::evidence::{
    End, EvidenceLine, Gap, LeafData, LineFault, Manifest, Mark, Record, check_disclosure,
};
use crate::leaf::{Group, Hash, leaf_hash};
use crate::time::Timestamp;

/// A line, checked by itself. [`Verifier::push`](super::Verifier::push) takes it.
#[derive(Debug)]
pub struct Checked(pub(super) Item);

#[derive(Debug)]
pub(super) enum Item {
    Manifest(Box<Manifest>),
    Checkpoint(String),
    Vkey(String),
    Entry(CheckedEntry),
    Gap(Gap),
    Mark(Mark),
    End(End),
    Fault(LineFault),
}

/// What is left of an evidence line: nothing that was disclosed.
#[derive(Debug)]
pub(super) struct CheckedEntry {
    pub(super) seq: u64,
    pub(super) leaf_hash: Hash,
    /// `None` when the leaf data is at fault.
    pub(super) leaf: Option<CheckedLeaf>,
    /// Which groups are disclosed, a bit each.
    pub(super) shown: u8,
    /// Which groups have a digest and no disclosure.
    pub(super) dark: u8,
    pub(super) faults: Vec<(Code, String)>,
}

#[derive(Debug)]
pub(super) struct CheckedLeaf {
    pub(super) tenant_id: Uuid,
    pub(super) id: Uuid,
    pub(super) created_at: Timestamp,
    pub(super) control: Option<Box<Control>>,
}

impl From<LeafData<'_>> for CheckedLeaf {
    fn from(leaf: LeafData<'_>) -> Self {
        Self {
            tenant_id: leaf.tenant_id,
            id: leaf.id,
            created_at: leaf.created_at,
            control: leaf.control.map(Box::new),
        }
    }
}

impl Checked {
    /// Checks a line, with or without its line break. The buffer is the caller's, so that many lines
    /// need one allocation; it keeps what was disclosed until it is used again.
    #[must_use]
    pub fn line(line: &[u8], buf: &mut Vec<u8>) -> Self {
        let record = std::str::from_utf8(line)
            .map_err(|_| LineFault::Json)
            .and_then(Record::parse);
        Self(match record {
            Err(fault) => Item::Fault(fault),
            Ok(record) => Self::item(record, buf),
        })
    }

    /// Checks a record.
    #[must_use]
    pub fn record(record: Record<'_>) -> Self {
        Self(Self::item(record, &mut Vec::new()))
    }

    fn item(record: Record<'_>, buf: &mut Vec<u8>) -> Item {
        match record {
            Record::Manifest(manifest) => Item::Manifest(Box::new(manifest)),
            Record::Checkpoint(note) => Item::Checkpoint(note.into_owned()),
            Record::Vkey(vkey) => Item::Vkey(vkey.into_owned()),
            Record::Entry(line) => Item::Entry(entry(&line, buf)),
            Record::Gap(gap) => Item::Gap(gap),
            Record::Mark(mark) => Item::Mark(mark),
            Record::End(end) => Item::End(end),
        }
    }
}

fn entry(line: &EvidenceLine<'_>, buf: &mut Vec<u8>) -> CheckedEntry {
    let mut checked = CheckedEntry {
        seq: line.seq,
        leaf_hash: leaf_hash(line.leaf.as_bytes()),
        leaf: None,
        shown: 0,
        dark: 0,
        faults: Vec::new(),
    };
    let leaf = match LeafData::parse(&line.leaf) {
        Ok(leaf) => leaf,
        Err(fault) => {
            let detail = format!("leaf data that the log doesn't write: {fault}");
            checked.faults.push((Code::Leaf, detail));
            return checked;
        }
    };
    for ((group, digest), disclosure) in Group::ALL
        .into_iter()
        .zip(leaf.digests)
        .zip(&line.disclosures)
    {
        let bit = 1 << group.index();
        let Some(text) = disclosure else {
            if digest.is_some() {
                checked.dark |= bit;
            }
            continue;
        };
        let fault = match (check_disclosure(buf, group, text), digest) {
            (Ok(found), Some(expected)) if found == expected => {
                checked.shown |= bit;
                continue;
            }
            (Ok(_), Some(_)) => (
                Code::Digest,
                format!("{group}: another disclosure than the leaf has the digest of"),
            ),
            (Ok(_), None) => (
                Code::Digest,
                format!("{group}: disclosed, although the leaf has no digest of it"),
            ),
            (Err(fault), _) => (Code::Disclosure, format!("{group}: {fault}")),
        };
        checked.faults.push(fault);
    }
    checked.leaf = Some(leaf.into());
    checked
}
