//! Changes of the segments of an archive.

use std::collections::BTreeMap;

use audit_core::tlog::evidence::{FolderManifest, Record};
use audit_core::tlog::folder::{self, LOG_ZST, MANIFEST, SegmentName};
use audit_core::tlog::verify::{Code, Finding};

use super::bundle::{EQUAL, entries, entry, is_at, is_equal};
use super::trial::{Files, Trial};
use super::{TamperingHarness, Times, Verdict};
use crate::random::Random;

/// A kind of change.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// One byte of a file.
    Byte,
    /// One byte of the log's file.
    ByteOfLog,
    /// A file goes.
    Dropped,
    /// A file is the one that another segment has under its name.
    OfAnother,
    /// An entry goes from the log, or takes another one's place, or has a disclosure of another.
    Rewritten,
}

pub(super) const KINDS: &[Times<Kind>] = &[
    (Kind::Byte, 40, 300),
    (Kind::ByteOfLog, 30, 300),
    (Kind::Dropped, 8, 40),
    (Kind::OfAnother, 8, 40),
    (Kind::Rewritten, 20, 100),
];

/// What is found of a segment.
struct Judged {
    findings: Vec<Finding>,
    /// What the log's file held.
    text: String,
}

/// Why a segment can't be judged: the file that can't be read.
struct Unreadable(&'static str);

impl<H: TamperingHarness> Trial<H> {
    /// Judges a segment by its files alone, as the part of a log that it is. That it has all positions of
    /// its name, and what segments say of each other, is for who verifies an archive.
    fn judge_segment(&self, files: &Files) -> Result<Judged, Unreadable> {
        let text = |name: &str| {
            let bytes = files.get(name).cloned().ok_or("not there")?;
            String::from_utf8(bytes).map_err(|_| "not a text")
        };
        let manifest = text(MANIFEST).map_err(|_| Unreadable(MANIFEST))?;
        let manifest = FolderManifest::parse(&manifest).map_err(|_| Unreadable(MANIFEST))?;
        let opened = folder::open(&manifest, text);
        let packed = files.get(LOG_ZST).ok_or(Unreadable(LOG_ZST))?;
        let log = zstd::decode_all(packed.as_slice()).map_err(|_| Unreadable(LOG_ZST))?;
        let head = opened.head.lines().map(str::as_bytes);
        let log_lines = log.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let lines: Vec<&[u8]> = head.chain(log_lines).collect();
        let report = self.judge_part(&lines);
        let mut findings = opened.findings;
        findings.extend(report.findings.iter().cloned());
        Ok(Judged {
            findings,
            text: String::from_utf8_lossy(&log).into_owned(),
        })
    }

    /// Makes a change of a segment, and judges it.
    pub(super) fn change_segment(
        &self,
        segments: &BTreeMap<SegmentName, Files>,
        kind: Kind,
        random: &mut Random,
    ) -> Verdict {
        let mut pick = || {
            let n = random.below(segments.len() as u64) as usize;
            segments.iter().nth(n).expect("a segment")
        };
        let ((name, untouched), (other, others)) = (pick(), pick());
        let before = match self.judge_segment(untouched) {
            Ok(before) if before.findings.is_empty() => before,
            Ok(before) => return Verdict::Wrong(format!("a false alarm: {:#?}", before.findings)),
            Err(Unreadable(file)) => return Verdict::Wrong(format!("{file} can't be read")),
        };
        let n = random.below(untouched.len() as u64) as usize;
        let picked = untouched.keys().nth(n).expect("a file").clone();
        let (mut files, mut file) = (untouched.clone(), picked);
        let mut seqs = Vec::new();
        match kind {
            Kind::Byte | Kind::ByteOfLog => {
                if matches!(kind, Kind::ByteOfLog) {
                    LOG_ZST.clone_into(&mut file);
                }
                let bytes = files.get_mut(&file).expect("a file");
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 + random.below(255) as u8;
            }
            Kind::Dropped => drop(files.remove(&file)),
            Kind::OfAnother => {
                let Some(bytes) = others.get(&file).filter(|bytes| **bytes != files[&file]) else {
                    return Verdict::None;
                };
                files.insert(file.clone(), bytes.clone());
            }
            Kind::Rewritten => {
                let lines: Vec<&str> = before.text.lines().collect();
                let entries = entries(&lines);
                let mut pick = || entries[random.below(entries.len() as u64) as usize];
                let (i, j) = (pick(), pick());
                let (mut one, two) = (entry(lines[i]), entry(lines[j]));
                seqs = vec![one.seq, two.seq];
                let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
                if i == j {
                    lines.remove(i);
                } else {
                    let group = random.below(8) as usize;
                    match one.disclosures.get_mut(group) {
                        Some(one) if *one == two.disclosures[group] => return Verdict::None,
                        // A part may withhold any: of an archive's own positions that is a finding of who
                        // verifies the archive.
                        Some(_) if two.disclosures[group].is_none() => return Verdict::None,
                        Some(one) => one.clone_from(&two.disclosures[group]),
                        None => one.leaf = two.leaf,
                    }
                    lines[i] = Record::Entry(one).encode();
                }
                LOG_ZST.clone_into(&mut file);
                let text = lines.join("\n");
                let packed = zstd::encode_all(text.as_bytes(), zstd::DEFAULT_COMPRESSION_LEVEL);
                files.insert(file.clone(), packed.expect("packed"));
            }
        }
        match self.judge_segment(&files) {
            Err(Unreadable(told)) if told == file => Verdict::Found(format!("{told} unreadable")),
            Err(Unreadable(told)) => Verdict::Wrong(format!("{told} is told instead of {file}")),
            Ok(after) if after.findings.is_empty() => {
                let same = is_equal(after.text.as_bytes(), before.text.as_bytes());
                match same && file == LOG_ZST {
                    true => Verdict::Apart(EQUAL),
                    false => Verdict::Wrong(format!("{file} of {name}, {other}: not found")),
                }
            }
            Ok(after) => {
                let is_told = |finding: &Finding| {
                    let is_placed = finding.line.is_some() || finding.positions.is_some();
                    finding.file.as_ref() == Some(&file)
                        || (file == LOG_ZST && is_placed)
                        // The log's end tells what the small files were: which of them was changed, it
                        // can't tell.
                        || finding.code == Code::Damaged
                        // Another manifest lists other files, or tells otherwise of the log.
                        || (file == MANIFEST
                            && (is_placed || finding.file.is_some() || finding.code == Code::Manifest))
                };
                let first = &after.findings[0];
                let is_there = seqs.is_empty() || seqs.iter().any(|seq| is_at(first, None, *seq));
                match is_there && after.findings.iter().any(is_told) {
                    true => Verdict::Found(format!("finding {}", first.code)),
                    false => Verdict::Wrong(format!("{file}: {:#?}", after.findings)),
                }
            }
        }
    }
}
