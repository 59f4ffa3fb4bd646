//! One tenant's part of an archive: segments, of which each is an evidence folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::thread::available_parallelism;

use audit_tlog::folder::{CHECKPOINTS, MANIFEST, SegmentName};
use audit_tlog::verify::{Code, Cosigned, Explanation, Finding, Options, Report, verify_blocks};
use audit_tlog::{Checkpoint, HeadOpening, InclusionProof, Note, VerifyingKey};
use serde_json::json;
use uuid::Uuid;

use crate::args::VerifyArgs;
use crate::bundle::{self, unreadable};
use crate::failure::{Failure, Outcome};
use crate::present::Out;
use crate::verify::{self, Known};

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

/// What was found of the segments together.
#[derive(Default)]
struct Verdict {
    segments: u64,
    entries: u64,
    erased: u64,
    /// For each `erase` entry that explains anything, how many groups.
    erased_by: BTreeMap<u64, u64>,
    /// The first position.
    from: u64,
    /// The position behind the last.
    to: u64,
    tenant_id: Option<Uuid>,
    /// What was found of the one with the newest head.
    newest: Option<Report>,
    key_trusted: bool,
    /// The sizes of the checkpoints that a segment was compared with.
    compared: BTreeSet<u64>,
    /// Those of them that the caller knew.
    known: BTreeSet<u64>,
    /// What witnesses vouch for: of each the largest size.
    cosigned: Vec<Cosigned>,
    /// The segments that were read, and the sizes of their checkpoints.
    sizes: Vec<(SegmentName, u64)>,
    /// The sizes of checkpoints that a segment under a larger one continues.
    continued: BTreeSet<u64>,
    /// Each with the segment's name, where it is about one.
    findings: Vec<(String, Finding)>,
    findings_total: u64,
    warnings: Vec<String>,
}

impl Verdict {
    fn add(&mut self, segment: impl ToString, finding: Finding) {
        self.findings_total += 1;
        if self.findings.len() < LISTED {
            self.findings.push((segment.to_string(), finding));
        }
    }
}

/// Verifies the segments one after the other: each by itself, and that it has all of its positions; and
/// that the log of each is continued by another, up to the one with the newest head.
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
    for name in &whole {
        let is_newest = Some(name) == newest;
        segment(&mut verdict, args, folder, known, &heads, *name, is_newest);
    }
    continues(&mut verdict);
    let proved = known.head_proofs.iter().filter_map(proved_size);
    for size in known.checkpoints.iter().filter_map(size).chain(proved) {
        if verdict.compared.contains(&size) {
            verdict.known.insert(size);
        } else {
            verdict.warnings.push(format!(
                "the known head of size {size} was not compared: no segment reaches it, or it lies \
                 within a gap"
            ));
        }
    }
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
        true => out.line(&to_json(&verdict, args.partial)),
        false => present(&mut out, &verdict, args.partial),
    };
    match shown.and_then(|()| out.flush()) {
        // A reader that has seen enough doesn't change the verdict.
        Err(failure) if !failure.is_closed_pipe() => Err(failure),
        _ => Ok(outcome),
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

fn size(note: &Note) -> Option<u64> {
    Some(Checkpoint::parse(note.text()).ok()?.size())
}

fn proved_size(proof: &InclusionProof) -> Option<u64> {
    Some(HeadOpening::of(proof).ok()?.size)
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
    let is_within = |size: Option<u64>| size.is_none_or(|size| size <= manifest.size);
    let checkpoints = known
        .checkpoints
        .iter()
        .filter(|note| is_within(size(note)));
    let proofs = known.head_proofs.iter();
    let proofs = proofs.filter(|proof| is_within(proved_size(proof)));
    let others = others(heads, &path, name, manifest.size);
    let options = Options {
        partial: true,
        known: others.chain(checkpoints).cloned().collect(),
        head_proofs: proofs.cloned().collect(),
        keys: args.key.clone(),
        witnesses: args.witness.clone(),
        max_findings: LISTED,
        // As many as a segment can have.
        max_holes: usize::MAX,
    };
    let workers = available_parallelism().map_or(1, usize::from);
    let report = verify_blocks(opened.blocks, options, workers, |_| ());
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            unread(verdict, name, format!("the log can't be read: {error}"));
            return;
        }
    };
    for one in opened.findings.iter().chain(&report.findings) {
        // Any segment's head may be the one that a witness cosigned.
        if one.code != Code::Witness {
            verdict.add(name, one.clone());
        }
    }
    verdict.findings_total += report.findings_total - report.findings.len() as u64;
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
    }
    follow(verdict, args.partial, name, Some(&report));
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
        verdict.from = name.from;
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
        let gap = Finding::at(Code::Missing, Some(positions), detail);
        match is_partial {
            true => verdict.warnings.push(gap.to_string()),
            false => verdict.add("archive", gap),
        }
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

fn to_json(verdict: &Verdict, is_partial: bool) -> String {
    let newest = verdict.newest.as_ref();
    let findings = verdict.findings.iter().map(|(segment, finding)| {
        json!({
            "segment": segment,
            "code": finding.code.as_str(),
            "from": finding.positions.map(|(from, _)| from),
            "to": finding.positions.map(|(_, to)| to),
            "line": finding.line,
            "file": finding.file,
            "detail": finding.detail,
        })
    });
    json!({
        "verified": verdict.findings_total == 0,
        "tenant_id": verdict.tenant_id.map(|id| id.to_string()),
        "origin": newest.and_then(|newest| newest.origin.as_deref()),
        "from": verdict.from,
        "to": verdict.to,
        "segments": verdict.segments,
        "entries": verdict.entries,
        "groups_erased": verdict.erased,
        "erased_by": verdict
            .erased_by
            .iter()
            .map(|(seq, groups)| json!({"seq": seq, "groups": groups}))
            .collect::<Vec<_>>(),
        "size": newest.map(|newest| newest.size),
        "root": newest.and_then(|newest| newest.root).map(|root| root.to_base64()),
        "signed_by": newest.and_then(|newest| newest.signed_by.as_deref()),
        "key_trusted": verdict.key_trusted && newest.is_some(),
        "partial": is_partial,
        "compared": verdict.compared,
        "known": verdict.known,
        "cosigned": verdict
            .cosigned
            .iter()
            .map(|one| json!({"witness": one.witness, "time": one.time, "size": one.size}))
            .collect::<Vec<_>>(),
        "findings": findings.collect::<Vec<_>>(),
        "findings_total": verdict.findings_total,
        "warnings": verdict.warnings,
    })
    .to_string()
}

fn present(out: &mut Out, verdict: &Verdict, is_partial: bool) -> Result<(), Failure> {
    if out.quiet {
        return present_findings(out, verdict, "");
    }
    let mut line = match verdict.findings_total {
        0 => format!(
            "Verified: positions {} to {} are in the archive, in {} segments",
            verdict.from,
            verdict.to.saturating_sub(1),
            verdict.segments
        ),
        1 => "NOT VERIFIED: 1 finding".to_owned(),
        n => format!("NOT VERIFIED: {n} findings"),
    };
    if verdict.findings_total == 0 {
        if is_partial {
            line.push_str(", not necessarily all that were archived");
        }
        if !verdict.key_trusted {
            line.push_str("; signed by a key that only the archive names");
        }
        match verdict.known.last() {
            Some(size) => line.push_str(&format!(
                "; of a log that reaches at least up to size {size}"
            )),
            None => line.push_str("; a last segment that was removed can't be seen"),
        }
    }
    out.text(&line)?;
    if let Some(newest) = &verdict.newest {
        if let (Some(tenant), Some(origin)) = (newest.tenant_id, &newest.origin) {
            out.text(&format!("Log {origin} of tenant {tenant}"))?;
        }
        if let Some(root) = newest.root {
            let root = root.to_base64();
            out.text(&format!(
                "Root {root} at size {}, of the newest head",
                newest.size
            ))?;
        }
        if let Some(key) = &newest.signed_by {
            out.text(&format!("Signed by {key}"))?;
        }
        verify::present_known(out, &verdict.cosigned, &verdict.known)?;
    }
    let row = |name: &str, count: u64| vec![name.to_owned(), count.to_string()];
    let mut rows = vec![row("entries in the archive", verdict.entries)];
    if verdict.erased > 0 {
        rows.push(row("groups erased", verdict.erased));
        for (seq, groups) in verdict.erased_by.iter().take(LISTED) {
            rows.push(row(&format!("  erased by seq {seq}"), *groups));
        }
        let more = verdict.erased_by.len().saturating_sub(LISTED);
        if more > 0 {
            rows.push(row(
                "  entries that erased, and are not listed",
                more as u64,
            ));
        }
    }
    out.line("")?;
    out.table(&[], rows)?;
    if !verdict.findings.is_empty() {
        out.line("")?;
        out.text("Findings:")?;
        present_findings(out, verdict, "  ")?;
    }
    if !verdict.warnings.is_empty() {
        out.line("")?;
        for warning in &verdict.warnings {
            out.text(&format!("Note: {warning}"))?;
        }
    }
    Ok(())
}

fn present_findings(out: &mut Out, verdict: &Verdict, indent: &str) -> Result<(), Failure> {
    for (segment, finding) in &verdict.findings {
        out.text(&format!("{indent}{segment}: {finding}"))?;
    }
    let more = verdict.findings_total - verdict.findings.len() as u64;
    if more > 0 {
        out.text(&format!("{indent}and {more} more"))?;
    }
    Ok(())
}
