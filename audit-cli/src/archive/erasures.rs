//! What was erased of a log, and which segments of its archive show it nevertheless.
//!
//! A segment that was written behind an erasure has the entry that says so, and is held to it when it is
//! verified by itself. An older copy of it has not, and is as good a part of the log as it was: what tells of it is
//! the entry where others have it, in a segment of later positions, in another one that lost something by
//! the same entry, or in an export.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use audit_tlog::Group;
use audit_tlog::evidence::{EvidenceLine, Record};
use audit_tlog::folder::SegmentName;
use audit_tlog::verify::{Code, Erase, Finding};

use crate::bundle;

/// The `erase` entries of a log that are known, and which segments have them.
#[derive(Default)]
pub(super) struct Erasures {
    /// By their positions.
    known: BTreeMap<u64, Erase>,
    /// Each segment, with the positions of those that it has.
    segments: Vec<(SegmentName, BTreeSet<u64>)>,
}

impl Erasures {
    /// Takes entries of the log.
    pub(super) fn add(&mut self, erases: Vec<Erase>) {
        self.known
            .extend(erases.into_iter().map(|erase| (erase.seq, erase)));
    }

    /// Takes those that a segment has.
    pub(super) fn add_of(&mut self, name: SegmentName, erases: Vec<Erase>) {
        let own = erases.iter().map(|erase| erase.seq).collect();
        self.segments.push((name, own));
        self.add(erases);
    }

    /// What each segment shows although an entry that it doesn't have says that it was erased. Only
    /// segments of which there is such an entry are read again.
    pub(super) fn judge(&self, folder: &Path) -> Vec<(SegmentName, Finding)> {
        let mut findings = Vec::new();
        for (name, own) in &self.segments {
            let others = self.known.values();
            let others = others.filter(|erase| !own.contains(&erase.seq));
            let others: Vec<&Erase> = others
                .filter(|erase| erase.touches(&name.positions()))
                .collect();
            if others.is_empty() {
                continue;
            }
            let shown = shown(&folder.join(name.to_string()), &others);
            findings.extend(shown.into_iter().map(|finding| (*name, finding)));
        }
        findings
    }
}

/// A run of positions that show the same although the same entry says that it was erased.
struct Run {
    from: u64,
    to: u64,
    groups: Vec<Group>,
    by: u64,
}

impl From<Run> for Finding {
    fn from(run: Run) -> Self {
        let groups: Vec<&str> = run.groups.iter().map(|group| group.as_str()).collect();
        let detail = format!(
            "{} shown, although seq {} says it was erased",
            groups.join(", "),
            run.by
        );
        Self::at(Code::ErasedShown, Some((run.from, run.to)), detail)
    }
}

/// What a segment shows of what these entries name.
fn shown(path: &Path, erases: &[&Erase]) -> Vec<Finding> {
    let changed = |why: String| {
        let detail = format!("it was read once, and can't be read again: {why}");
        vec![Finding::at(Code::File, None, detail)]
    };
    let opened = match bundle::open(path) {
        Ok(opened) => opened,
        Err(failure) => return changed(failure.to_string()),
    };
    let mut runs = Vec::<Run>::new();
    for block in opened.blocks {
        let block = match block {
            Ok(block) => block,
            Err(error) => return changed(error.to_string()),
        };
        let lines = block.split(|byte| *byte == b'\n');
        let lines = lines.filter_map(|line| std::str::from_utf8(line).ok());
        for line in lines {
            // What is no line was told when it was verified.
            if let Ok(Record::Entry(line)) = Record::parse(line) {
                note(&mut runs, &line, erases);
            }
        }
    }
    runs.into_iter().map(Finding::from).collect()
}

/// Adds what an entry shows. The first entry that names a group is the one that erased it.
fn note(runs: &mut Vec<Run>, line: &EvidenceLine<'_>, erases: &[&Erase]) {
    let mut groups = Group::ALL.to_vec();
    groups.retain(|group| line.disclosures[group.index()].is_some());
    for erase in erases {
        let is_named = |group: &Group| erase.names(*group, line.seq);
        let (named, left) = groups.into_iter().partition(is_named);
        groups = left;
        if named.is_empty() {
            continue;
        }
        // Of one position there are no more runs than groups.
        let mut last = runs.iter_mut().rev().take(Group::ALL.len());
        let same =
            last.find(|run| run.to + 1 == line.seq && run.by == erase.seq && run.groups == named);
        match same {
            Some(run) => run.to = line.seq,
            None => runs.push(Run {
                from: line.seq,
                to: line.seq,
                groups: named,
                by: erase.seq,
            }),
        }
    }
}
