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
    /// The segment is named as if it had one entry more.
    Renamed,
}

pub(super) const KINDS: &[Times<Kind>] = &[
    (Kind::Byte, 40, 300),
    (Kind::ByteOfLog, 30, 300),
    (Kind::Dropped, 8, 40),
    (Kind::OfAnother, 8, 40),
    (Kind::Rewritten, 20, 100),
    (Kind::Renamed, 2, 2),
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
    /// Judges a segment by its files alone, as who verifies an archive does.
    fn judge_segment(&self, name: SegmentName, files: &Files) -> Result<Judged, Unreadable> {
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
        let is_named = manifest.manifest.filter == Some(name.filter());
        if !is_named || report.withheld_within(&name.positions()).is_some() {
            let positions = Some((name.from, name.to - 1));
            let detail = "not the positions that it is named by".to_owned();
            findings.push(Finding::at(Code::Missing, positions, detail));
        }
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
        let before = match self.judge_segment(*name, untouched) {
            Ok(before) if before.findings.is_empty() => before,
            Ok(before) => return Verdict::Wrong(format!("a false alarm: {:#?}", before.findings)),
            Err(Unreadable(file)) => return Verdict::Wrong(format!("{file} can't be read")),
        };
        let n = random.below(untouched.len() as u64) as usize;
        let picked = untouched.keys().nth(n).expect("a file").clone();
        let (mut name, mut files, mut file) = (*name, untouched.clone(), picked);
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
            Kind::Renamed => name.to += 1,
        }
        // Then it is the folder that is wrong.
        let is_renamed = matches!(kind, Kind::Renamed);
        match self.judge_segment(name, &files) {
            Err(Unreadable(told)) if told == file => Verdict::Found,
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
                        // Another manifest lists other files, and is of another segment.
                        || file == MANIFEST
                        || is_renamed
                };
                let first = &after.findings[0];
                let is_there = seqs.is_empty() || seqs.iter().any(|seq| is_at(first, None, *seq));
                match is_there && after.findings.iter().any(is_told) {
                    true => Verdict::Found,
                    false => Verdict::Wrong(format!("{file}: {:#?}", after.findings)),
                }
            }
        }
    }
}
