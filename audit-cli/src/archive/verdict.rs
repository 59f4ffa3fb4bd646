//! What was found of an archive, and how it is shown.

use std::collections::{BTreeMap, BTreeSet};

use audit_tlog::folder::SegmentName;
use audit_tlog::verify::{Code, Cosigned, Finding, Report};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::LISTED;
use super::erasures::Erasures;
use crate::failure::Failure;
use crate::present::Out;
use crate::verify;

/// A finding, and what it is about: a segment by its name, the archive, or an export beside it.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    segment: String,
    #[serde(flatten)]
    finding: Finding,
}

/// What was found of the segments together.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) segments: u64,
    pub(super) entries: u64,
    pub(super) erased: u64,
    /// For each `erase` entry that explains anything, how many groups.
    pub(super) erased_by: BTreeMap<u64, u64>,
    /// The first position.
    pub(super) from: u64,
    /// The position behind the last.
    pub(super) to: u64,
    /// Up to where each position from the first one on was read, here or in an export beside: whatever
    /// entries below say was erased is known.
    pub(super) read_to: u64,
    pub(super) erasures: Erasures,
    pub(super) tenant_id: Option<Uuid>,
    /// What was found of the one with the newest head.
    pub(super) newest: Option<Report>,
    pub(super) key_trusted: bool,
    /// The largest size of a head, here or in an export beside.
    pub(super) reach: u64,
    /// The sizes of the checkpoints that a segment was compared with.
    pub(super) compared: BTreeSet<u64>,
    /// Those of them that the caller knew.
    pub(super) known: BTreeSet<u64>,
    /// Those that the caller knew and nothing was compared with.
    pub(super) not_compared: BTreeSet<u64>,
    /// What witnesses vouch for: of each the largest size.
    pub(super) cosigned: Vec<Cosigned>,
    /// The segments that were read, and the sizes of their checkpoints.
    pub(super) sizes: Vec<(SegmentName, u64)>,
    /// The sizes of checkpoints that a segment under a larger one continues.
    pub(super) continued: BTreeSet<u64>,
    pub(super) findings: Vec<Found>,
    pub(super) findings_total: u64,
    pub(super) warnings: Vec<String>,
}

impl Verdict {
    pub(super) fn add(&mut self, segment: impl ToString, finding: Finding) {
        self.findings_total += 1;
        if self.findings.len() < LISTED {
            let segment = segment.to_string();
            self.findings.push(Found { segment, finding });
        }
    }

    /// Adds what was found of a segment's or an export's files, and of what they hold.
    pub(super) fn add_all(&mut self, segment: impl ToString, files: &[Finding], report: &Report) {
        for one in files.iter().chain(&report.findings) {
            // Any segment's head may be the one that a witness cosigned.
            if one.code != Code::Witness {
                self.add(segment.to_string(), one.clone());
            }
        }
        self.findings_total += report.findings_total - report.findings.len() as u64;
    }

    fn has(&self, code: Code) -> bool {
        self.findings.iter().any(|one| one.finding.code == code)
    }

    /// The verdict for scripts, one JSON object.
    pub(super) fn to_json(&self, is_partial: bool) -> String {
        let newest = self.newest.as_ref();
        json!({
            "verified": self.findings_total == 0,
            "tenant_id": self.tenant_id.map(|id| id.to_string()),
            "origin": newest.and_then(|newest| newest.origin.as_deref()),
            "from": self.from,
            "to": self.to,
            "segments": self.segments,
            "entries": self.entries,
            "groups_erased": self.erased,
            "erased_by": self
                .erased_by
                .iter()
                .map(|(seq, groups)| json!({"seq": seq, "groups": groups}))
                .collect::<Vec<_>>(),
            "erasures_below": self.read_to,
            "size": newest.map(|newest| newest.size),
            "root": newest.and_then(|newest| newest.root).map(|root| root.to_base64()),
            "signed_by": newest.and_then(|newest| newest.signed_by.as_deref()),
            "key_trusted": self.key_trusted && newest.is_some(),
            "partial": is_partial,
            "compared": self.compared,
            "known": self.known,
            "not_compared": self.not_compared,
            "cosigned": self.cosigned,
            "findings": self.findings,
            "findings_total": self.findings_total,
            "warnings": self.warnings,
        })
        .to_string()
    }

    /// The verdict, and up to where it reaches.
    fn first_line(&self, is_partial: bool) -> String {
        match self.findings_total {
            0 => {}
            1 => return "NOT VERIFIED: 1 finding".to_owned(),
            n => return format!("NOT VERIFIED: {n} findings"),
        }
        let mut line = format!(
            "Verified: positions {} to {} are in the archive, in {} segments",
            self.from,
            self.to.saturating_sub(1),
            self.segments
        );
        if is_partial {
            line.push_str(", not necessarily all that were archived");
        }
        if !self.key_trusted {
            line.push_str("; signed by a key that only the archive names");
        }
        match self.known.last() {
            Some(size) => line.push_str(&format!(
                "; of a log that reaches at least up to size {size}"
            )),
            None => line.push_str("; a last segment that was removed can't be seen"),
        }
        for size in &self.not_compared {
            line.push_str(&format!(
                "; NOT compared with the known head of size {size}"
            ));
        }
        line.push_str(&format!(
            "; shows nothing that was erased up to size {}, and what was erased later can't be seen",
            self.read_to
        ));
        line
    }

    /// Shows the verdict to people.
    pub(super) fn present(&self, out: &mut Out, is_partial: bool) -> Result<(), Failure> {
        if out.quiet {
            return self.list_findings(out, "");
        }
        out.text(&self.first_line(is_partial))?;
        if let Some(newest) = &self.newest {
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
            verify::present_known(out, &self.cosigned, &self.known)?;
        }
        out.line("")?;
        out.table(&[], self.rows())?;
        self.present_findings(out)?;
        if !self.warnings.is_empty() {
            out.line("")?;
            for warning in &self.warnings {
                out.text(&format!("Note: {warning}"))?;
            }
        }
        Ok(())
    }

    /// What was counted.
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |name: &str, count: u64| vec![name.to_owned(), count.to_string()];
        let mut rows = vec![row("entries in the archive", self.entries)];
        if self.erased > 0 {
            rows.push(row("groups erased", self.erased));
            for (seq, groups) in self.erased_by.iter().take(LISTED) {
                rows.push(row(&format!("  erased by seq {seq}"), *groups));
            }
            let more = self.erased_by.len().saturating_sub(LISTED);
            if more > 0 {
                rows.push(row(
                    "  entries that erased, and are not listed",
                    more as u64,
                ));
            }
        }
        rows
    }

    fn list_findings(&self, out: &mut Out, indent: &str) -> Result<(), Failure> {
        for Found { segment, finding } in &self.findings {
            out.text(&format!("{indent}{segment}: {finding}"))?;
        }
        let more = self.findings_total - self.findings.len() as u64;
        if more > 0 {
            out.text(&format!("{indent}and {more} more"))?;
        }
        Ok(())
    }

    fn present_findings(&self, out: &mut Out) -> Result<(), Failure> {
        if self.findings.is_empty() {
            return Ok(());
        }
        out.line("")?;
        out.text("Findings:")?;
        self.list_findings(out, "  ")?;
        if self.has(Code::ErasedShown) {
            out.text(
                "  An archive that an erasure has not left yet looks like that, too: verify again \
                 when it is done",
            )?;
        }
        if self.has(Code::Rollback) {
            out.text(
                "  An archive of a log that goes on looks like that, too: give an export of the log \
                 beside it, as --known",
            )?;
        }
        Ok(())
    }
}
