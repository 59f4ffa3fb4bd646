//! One tenant's part of an archive: segments, of which each is an evidence folder.

mod beside;
mod erasures;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::thread::available_parallelism;

use audit_tlog::folder::{CHECKPOINTS, MANIFEST, SegmentName};
use audit_tlog::verify::{Code, Cosigned, Explanation, Finding, Options, Report, verify_blocks};
use audit_tlog::{Note, VerifyingKey};
use uuid::Uuid;

use crate::args::VerifyArgs;
use crate::bundle::{self, unreadable};
use crate::failure::{Failure, Outcome};
use crate::present::Out;
use crate::verify::{Known, size};
use verdict::Verdict;

/// How many findings, and entries that explain what is erased, are listed; all are counted.
const LISTED: usize = 100;

/// The folders of a tenant's part of an archive that are named as segments; none when it is no such
/// folder.
pub(crate) fn segments(path: &Path) -> Result<Option<BTreeSet<SegmentName>>, Failure> {
    if !path.is_dir() || path.join(MANIFEST).exists() {
        return Ok(None);
    }
    let mut names = BTreeSet::new();
    let mut tenants = 0;
    for entry in fs::read_dir(path).map_err(|e| unreadable(path, e))? {
        let entry = entry.map_err(|e| unreadable(path, e))?;
        let name = entry.file_name();
        let name = name.to_str();
        names.extend(name.and_then(SegmentName::parse));
        tenants += usize::from(name.is_some_and(|name| Uuid::try_parse(name).is_ok()));
    }
    if names.is_empty() && tenants > 0 {
        let what = format!(
            "{} is an archive: name a tenant's folder in it",
            path.display()
        );
        let error = io::Error::new(io::ErrorKind::IsADirectory, "it has one for each tenant");
        return Err(Failure::Local(what, error));
    }
    Ok((!names.is_empty()).then_some(names))
}

/// Verifies the segments one after the other: each by itself, and that it has all of its positions; that
/// the log of each is continued by another, up to the one with the newest head; and that none shows what an
/// entry of the log, in whichever of them or in an export beside, says was erased.
pub(crate) fn verify(
    mut out: Out,
    args: &VerifyArgs,
    folder: &Path,
    known: &Known,
    names: &BTreeSet<SegmentName>,
) -> Result<Outcome, Failure> {
    let mut verdict = Verdict {
        key_trusted: true,
        ..Verdict::default()
    };
    let mut whole = Vec::new();
    for name in names {
        match folder.join(name.to_string()).join(MANIFEST).exists() {
            true => whole.push(*name),
            false => verdict.warnings.push(format!(
                "{name} has no manifest: writing it was not ended, and it is no segment"
            )),
        }
    }
    let heads: BTreeMap<SegmentName, Note> = whole
        .iter()
        .filter_map(|name| Some((*name, bundle::checkpoint(&folder.join(name.to_string()))?)))
        .collect();
    // Of equal ones the last.
    let newest = whole
        .iter()
        .max_by_key(|name| heads.get(name).and_then(size));
    let mut compared = known.clone();
    let exported = known.exports.iter();
    let exported = exported.filter_map(|path| bundle::checkpoint(path));
    compared.checkpoints.extend(exported);
    for name in &whole {
        let is_newest = Some(name) == newest;
        segment(
            &mut verdict,
            args,
            folder,
            &compared,
            &heads,
            *name,
            is_newest,
        );
    }
    continues(&mut verdict);
    let newest = newest.and_then(|name| heads.get(name));
    for path in &known.exports {
        beside::export(&mut verdict, args, known, newest, path)?;
    }
    for (name, finding) in verdict.erasures.judge(folder) {
        verdict.add(name, finding);
    }
    reaches(&mut verdict, args.partial, known);
    witnessed(&mut verdict, &args.witness);
    if whole.is_empty() {
        let detail = "none of its segments was written to the end".to_owned();
        verdict.add("archive", Finding::at(Code::Missing, None, detail));
    }
    let outcome = match verdict.findings_total {
        0 => Outcome::Complete,
        _ => Outcome::Partial,
    };
    let shown = match out.json {
        true => out.line(&verdict.to_json(args.partial)),
        false => verdict.present(&mut out, args.partial),
    };
    match shown.and_then(|()| out.flush()) {
        // A reader that has seen enough doesn't change the verdict.
        Err(failure) if !failure.is_closed_pipe() => Err(failure),
        _ => Ok(outcome),
    }
}

/// Whether the heads that the caller knows were compared. An archive that ends before one of them doesn't
/// show what the log had then.
fn reaches(verdict: &mut Verdict, is_partial: bool, known: &Known) {
    for size in known.sizes() {
        if verdict.compared.contains(&size) {
            verdict.known.insert(size);
            continue;
        }
        verdict.not_compared.insert(size);
        let reach = verdict.reach;
        if size > reach && !is_partial {
            let detail = format!(
                "the log had {size} entries when the known head was signed, and the archive's newest \
                 head has {reach}"
            );
            let positions = Some((reach, size - 1));
            verdict.add("archive", Finding::at(Code::Rollback, positions, detail));
        } else {
            verdict.warnings.push(format!(
                "the known head of size {size} was not compared: no segment reaches it, or it lies \
                 within a gap"
            ));
        }
    }
}

/// Keeps of each witness the widest of its cosignatures in any segment.
fn witnessed(verdict: &mut Verdict, witnesses: &[VerifyingKey]) {
    let found = std::mem::take(&mut verdict.cosigned);
    for witness in witnesses {
        let own = found.iter().filter(|one| one.witness == witness.name());
        match Cosigned::widest(own) {
            Some(widest) => verdict.cosigned.push(widest.clone()),
            None => {
                let name = witness.name();
                let detail = format!(
                    "{name} cosigned no segment's head and no head proof that was compared"
                );
                verdict.add("archive", Finding::at(Code::Witness, None, detail));
            }
        }
    }
}

/// The checkpoints of other segments that one has to be compared with: those that it lists, which are
/// of its size, or beside it.
fn others<'a>(
    heads: &'a BTreeMap<SegmentName, Note>,
    path: &Path,
    name: SegmentName,
    size: u64,
) -> impl Iterator<Item = &'a Note> {
    let mut seen = BTreeSet::new();
    let lists = |at: u64| path.join(CHECKPOINTS).join(at.to_string()).exists();
    let others = heads.iter().filter(move |(other, _)| **other != name);
    let others = others.filter_map(move |(other, note)| {
        let at = self::size(note).filter(|at| *at <= size)?;
        let is_beside = other.to == name.from || other.from == name.to;
        (at == size || is_beside || lists(at)).then_some(note)
    });
    others.filter(move |note| seen.insert(note.text().to_owned()))
}

/// Verifies the next segment.
fn segment(
    verdict: &mut Verdict,
    args: &VerifyArgs,
    folder: &Path,
    known: &Known,
    heads: &BTreeMap<SegmentName, Note>,
    name: SegmentName,
    is_newest: bool,
) {
    let path = folder.join(name.to_string());
    let opened = match bundle::open(&path) {
        Ok(opened) => opened,
        Err(failure) => {
            unread(verdict, name, failure.to_string());
            return;
        }
    };
    let Some(manifest) = opened.manifest else {
        unread(verdict, name, "no evidence folder".to_owned());
        return;
    };
    let known = known.up_to(manifest.size);
    let others = others(heads, &path, name, manifest.size);
    let options = Options {
        partial: true,
        known: others.cloned().chain(known.checkpoints).collect(),
        head_proofs: known.head_proofs,
        keys: args.key.clone(),
        witnesses: args.witness.clone(),
        max_findings: LISTED,
        // As many as a segment can have.
        max_holes: usize::MAX,
    };
    let workers = available_parallelism().map_or(1, usize::from);
    let report = verify_blocks(opened.blocks, options, workers, |_| ());
    let mut report = match report {
        Ok(report) => report,
        Err(error) => {
            unread(verdict, name, format!("the log can't be read: {error}"));
            return;
        }
    };
    verdict.add_all(name, &opened.findings, &report);
    verdict.cosigned.extend(report.cosigned.iter().cloned());

    let filter = name.filter();
    if manifest.filter.as_deref() != Some(filter.as_str()) {
        let told = manifest.filter.unwrap_or_else(|| "a whole log".to_owned());
        let detail = format!("its folder is named otherwise than its manifest tells, {told}");
        verdict.add(name, Finding::at(Code::Manifest, None, detail));
    } else if let Some(hole) = report.withheld_within(&name.positions()) {
        let positions = (hole.from.max(name.from), hole.to.min(name.to - 1));
        let detail = "not in the segment".to_owned();
        verdict.add(name, Finding::at(Code::Missing, Some(positions), detail));
    }
    let named = folder.file_name().and_then(|name| name.to_str());
    let named = named.and_then(|name| Uuid::try_parse(name).ok());
    let first = verdict.tenant_id;
    if named.or(first).is_some_and(|id| id != manifest.tenant_id) {
        let detail = format!("of the tenant {}", manifest.tenant_id);
        verdict.add(name, Finding::at(Code::Tenant, None, detail));
    } else {
        let erases = std::mem::take(&mut report.erases);
        verdict.erasures.add_of(name, erases);
    }
    follow(verdict, args.partial, name, Some(&report));
    verdict.reach = verdict.reach.max(manifest.size);
    verdict.sizes.push((name, manifest.size));
    let earlier = report.known.iter().filter(|at| **at < manifest.size);
    verdict.continued.extend(earlier);
    verdict.compared.extend(&report.known);
    verdict.erased += report.groups.erased;
    for (seq, groups) in &report.erased_by {
        *verdict.erased_by.entry(*seq).or_default() += groups;
    }
    verdict.key_trusted &= report.key_trusted;
    verdict
        .warnings
        .extend(opened.warnings.iter().map(|text| format!("{name}: {text}")));
    verdict.tenant_id = verdict.tenant_id.or(report.tenant_id);
    if is_newest {
        verdict.newest = Some(report);
    }
}

/// Whether the log of each segment is that of the one with the newest head. Where what was erased was
/// taken from one, its head is newer than that of the next.
fn continues(verdict: &mut Verdict) {
    let newest = verdict.sizes.iter().map(|(_, size)| *size).max();
    let mut before = 0;
    for (name, size) in std::mem::take(&mut verdict.sizes) {
        if Some(size) != newest && !verdict.continued.contains(&size) {
            if size < before {
                let detail = "it is of a shorter log than the segment before it".to_owned();
                verdict.add(name, Finding::at(Code::Rollback, None, detail));
            } else {
                verdict.warnings.push(format!(
                    "{name}: that another segment continues it could not be shown"
                ));
            }
        }
        before = size;
    }
}

/// A segment that can't be read has none of its positions; the next one's follow it all the same.
fn unread(verdict: &mut Verdict, name: SegmentName, detail: String) {
    let positions = Some((name.from, name.to - 1));
    verdict.add(name, Finding::at(Code::File, positions, detail));
    follow(verdict, true, name, None);
}

/// Whether a segment's positions follow those of the segments before it.
fn follow(verdict: &mut Verdict, is_partial: bool, name: SegmentName, report: Option<&Report>) {
    let is_first = verdict.segments == 0;
    let expected = verdict.to;
    if is_first {
        (verdict.from, verdict.read_to) = (name.from, name.from);
    }
    if report.is_some() && name.from <= verdict.read_to {
        verdict.read_to = verdict.read_to.max(name.to);
    }
    if name.from > expected {
        let positions = (expected, name.from - 1);
        let holes = report.iter().flat_map(|report| &report.holes);
        let pruned = holes.into_iter().find_map(|hole| match hole.why {
            Explanation::Pruned(seq) if hole.from <= expected && is_first => Some(seq),
            _ => None,
        });
        let mut detail = "no segment has them".to_owned();
        if let Some(seq) = pruned {
            detail.push_str(&format!("; they were pruned by seq {seq}"));
        }
        missing(verdict, is_partial, positions, detail);
    }
    if name.from < expected {
        let to = name.to.min(expected) - 1;
        verdict.warnings.push(format!(
            "{name}: positions {} to {to} are in another segment too",
            name.from
        ));
    }
    verdict.segments += 1;
    verdict.entries += name.to.saturating_sub(name.from.max(expected));
    verdict.to = verdict.to.max(name.to);
}

/// Positions that are nowhere: a finding, unless that was accepted.
fn missing(verdict: &mut Verdict, is_partial: bool, positions: (u64, u64), detail: String) {
    let gap = Finding::at(Code::Missing, Some(positions), detail);
    match is_partial {
        true => verdict.warnings.push(gap.to_string()),
        false => verdict.add("archive", gap),
    }
}
