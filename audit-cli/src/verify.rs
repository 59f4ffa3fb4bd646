//! `audit verify`.

use std::io;
use std::path::PathBuf;
use std::thread::available_parallelism;

use audit_tlog::verify::{Code, Cosigned, Options, Report, verify_blocks};
use audit_tlog::{Checkpoint, HeadOpening, InclusionProof, Note};
use indicatif::{ProgressBar, ProgressStyle};

use crate::archive;
use crate::args::VerifyArgs;
use crate::bundle;
use crate::failure::{Failure, Outcome};
use crate::present::Out;

/// How many holes and findings are shown to people; scripts get all that the report lists.
const SHOWN: usize = 20;

/// The longest file with a known checkpoint or head proof.
const MAX_KNOWN: u64 = 2 << 20;

pub(crate) fn run(mut out: Out, args: &VerifyArgs) -> Result<Outcome, Failure> {
    let Some(path) = &args.bundle else {
        return Err(Failure::Usage("there is no bundle to be verified".into()));
    };
    let known = Known::read(&args.known)?;
    if let Some(segments) = archive::segments(path)? {
        return archive::verify(out, args, path, &known, &segments);
    }
    if let Some(export) = known.exports.first() {
        return Err(Failure::Usage(format!(
            "{} is a folder: only an archive is compared with an export",
            export.display()
        )));
    }
    let options = Options {
        partial: args.partial,
        known: known.checkpoints,
        head_proofs: known.head_proofs,
        keys: args.key.clone(),
        witnesses: args.witness.clone(),
        ..Options::default()
    };
    let opened = bundle::open(path)?;
    let progress = if out.shows_progress() {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    if let Ok(style) = ProgressStyle::with_template(
        "{bar:30} {human_pos} of {human_len} entries, {per_sec}, {eta} left",
    ) {
        progress.set_style(style);
    }
    let workers = available_parallelism().map_or(1, usize::from);
    let verified = verify_blocks(opened.blocks, options, workers, |read| {
        progress.set_length(read.size);
        progress.set_position(read.positions);
    });
    progress.finish_and_clear();
    let mut report =
        verified.map_err(|e| Failure::Local(format!("{} can't be read", path.display()), e))?;
    for finding in opened.findings {
        report.add(finding);
    }
    report.warnings.extend(opened.warnings);
    let outcome = if report.is_verified() {
        Outcome::Complete
    } else {
        Outcome::Partial
    };
    let shown = if out.json {
        out.line(&report.to_json())
    } else {
        present(&mut out, &report)
    };
    match shown.and_then(|()| out.flush()) {
        // A reader that has seen enough doesn't change the verdict.
        Err(failure) if !failure.is_closed_pipe() => Err(failure),
        _ => Ok(outcome),
    }
}

/// What the caller has from elsewhere.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) checkpoints: Vec<Note>,
    pub(crate) head_proofs: Vec<InclusionProof>,
    /// The folders of exports.
    pub(crate) exports: Vec<PathBuf>,
}

/// How many entries the log of a checkpoint has.
pub(crate) fn size(note: &Note) -> Option<u64> {
    Some(Checkpoint::parse(note.text()).ok()?.size())
}

fn proved_size(proof: &InclusionProof) -> Option<u64> {
    Some(HeadOpening::of(proof).ok()?.size)
}

impl Known {
    /// The sizes of the heads, of checkpoints first.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = u64> {
        let proved = self.head_proofs.iter().filter_map(proved_size);
        self.checkpoints.iter().filter_map(size).chain(proved)
    }

    /// The heads that a log of so many entries can be compared with; without the exports.
    pub(crate) fn up_to(&self, size: u64) -> Self {
        let is_within = |of: Option<u64>| of.is_none_or(|of| of <= size);
        let mut known = Self {
            exports: Vec::new(),
            ..self.clone()
        };
        known.checkpoints.retain(|note| is_within(self::size(note)));
        known
            .head_proofs
            .retain(|proof| is_within(proved_size(proof)));
        known
    }

    /// Reads files, each with a checkpoint or a head proof. Folders are exports.
    fn read(paths: &[PathBuf]) -> Result<Self, Failure> {
        let mut known = Self::default();
        for path in paths {
            if path.is_dir() {
                known.exports.push(path.clone());
                continue;
            }
            let text = bundle::text(path, MAX_KNOWN)?;
            let unlike = |what: &str, fault: String| {
                let error = io::Error::new(io::ErrorKind::InvalidData, fault);
                Failure::Local(format!("{} is no {what}", path.display()), error)
            };
            if text.is_empty() {
                return Err(unlike("head", "it is empty".into()));
            }
            if text.starts_with("c2sp.org/tlog-proof") {
                let proof = InclusionProof::parse(&text)
                    .map_err(|fault| unlike("head proof", fault.to_string()))?;
                HeadOpening::of(&proof).map_err(|fault| unlike("head proof", fault.to_string()))?;
                known.head_proofs.push(proof);
            } else {
                let note =
                    Note::parse(&text).map_err(|fault| unlike("checkpoint", fault.to_string()))?;
                known.checkpoints.push(note);
            }
        }
        Ok(known)
    }
}

fn present(out: &mut Out, report: &Report) -> Result<(), Failure> {
    if out.quiet {
        return present_findings(out, report, "");
    }
    out.text(&first_line(report))?;
    if let (Some(tenant), Some(origin)) = (report.tenant_id, &report.origin) {
        out.text(&format!("Log {origin} of tenant {tenant}"))?;
    }
    if let Some(root) = report.root {
        out.text(&format!(
            "Root {} at size {}",
            root.to_base64(),
            report.size
        ))?;
    }
    if let Some(key) = &report.signed_by {
        out.text(&format!("Signed by {key}"))?;
    }
    present_known(out, &report.cosigned, &report.known)?;
    for one in &report.epochs {
        out.text(&format!(
            "Epoch {} since position {}, where the log was continued ({}): what was signed behind it \
             before is gone",
            one.epoch, one.seq, one.basis
        ))?;
    }
    let row = |name: &str, count: u64| vec![name.to_owned(), count.to_string()];
    let (absent, groups) = (report.absent, report.groups);
    let mut rows = vec![row("entries in the bundle", report.entries)];
    for (name, count) in [
        ("entries pruned", absent.pruned),
        ("entries withheld", absent.withheld),
        ("entries UNEXPLAINED", absent.unexplained),
        ("groups shown", groups.shown),
        ("groups that the events don't have", groups.never),
        ("groups erased", groups.erased),
        ("groups pruned", groups.pruned),
        ("groups withheld", groups.withheld),
        ("groups UNEXPLAINED", groups.unexplained),
    ] {
        if count > 0 {
            rows.push(row(name, count));
        }
    }
    out.line("")?;
    out.table(&[], rows)?;
    if !report.holes.is_empty() {
        out.line("")?;
        out.text("Holes:")?;
        for hole in report.holes.iter().take(SHOWN) {
            let at = if hole.from == hole.to {
                format!("position {}", hole.from)
            } else {
                format!("positions {} to {}", hole.from, hole.to)
            };
            let names: Vec<_> = hole.groups.iter().map(|group| group.as_str()).collect();
            let what = if names.is_empty() {
                "whole entries".to_owned()
            } else {
                names.join(", ")
            };
            out.text(&format!("  {at}: {what}: {}", hole.why))?;
        }
        more(out, report.holes_total, report.holes.len(), "  ")?;
    }
    if !report.findings.is_empty() {
        out.line("")?;
        out.text("Findings:")?;
        present_findings(out, report, "  ")?;
        if report.findings.iter().any(|one| one.code == Code::Rollback) {
            out.text(
                "  An export that was made before the known head looks like that, too: export again",
            )?;
        }
    }
    if !report.warnings.is_empty() {
        out.line("")?;
        for warning in &report.warnings {
            out.text(&format!("Note: {warning}"))?;
        }
    }
    Ok(())
}

fn present_findings(out: &mut Out, report: &Report, indent: &str) -> Result<(), Failure> {
    for finding in report.findings.iter().take(SHOWN) {
        out.text(&format!("{indent}{finding}"))?;
    }
    more(out, report.findings_total, report.findings.len(), indent)
}

fn more(out: &mut Out, total: u64, listed: usize, indent: &str) -> Result<(), Failure> {
    let shown = listed.min(SHOWN) as u64;
    if total > shown {
        let more = total - shown;
        out.text(&format!("{indent}and {more} more (--json lists more)"))?;
    }
    Ok(())
}

/// What was compared: who vouches for the log, and which heads it continues.
pub(crate) fn present_known<'s>(
    out: &mut Out,
    witnesses: &[Cosigned],
    known: impl IntoIterator<Item = &'s u64>,
) -> Result<(), Failure> {
    for one in witnesses {
        let at = cosigned(one.time);
        let size = one.size;
        out.text(&format!(
            "Cosigned by {} at {at}, up to size {size}",
            one.witness
        ))?;
    }
    for size in known {
        out.text(&format!("Continues the known head of size {size}"))?;
    }
    Ok(())
}

/// The time of a cosignature, which is in seconds since the epoch.
fn cosigned(seconds: u64) -> String {
    let at = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| seconds.checked_mul(1_000_000))
        .and_then(audit_core::Timestamp::from_micros);
    at.map_or_else(|| format!("{seconds} s"), crate::present::second)
}

/// The verdict, and up to where it reaches.
fn first_line(report: &Report) -> String {
    if !report.is_verified() {
        let n = report.findings_total;
        let findings = if n == 1 { "finding" } else { "findings" };
        return format!("NOT VERIFIED: {n} {findings}");
    }
    let reach = match report.span {
        Some((_, (seq, at))) if seq + 1 == report.size => {
            format!("up to size {}, accepted {at}", report.size)
        }
        Some((_, (seq, at))) => format!(
            "up to size {} (the last entry shown is {seq}, accepted {at})",
            report.size
        ),
        None => format!("up to size {}", report.size),
    };
    let mut line = format!("Verified {reach}");
    if report.partial {
        line.push_str(", not necessarily the whole log");
    }
    if !report.key_trusted {
        line.push_str("; signed by a key that only the bundle names");
    }
    let (known, cosigned_at) = (report.known_size(), report.cosigned_at());
    match known {
        // Of a part nothing is complete, but the log has to be as long.
        Some(size) if report.partial => {
            line.push_str(&format!(
                "; of a log that reaches at least up to size {size}"
            ));
        }
        Some(size) => line.push_str(&format!("; complete at least up to size {size}")),
        None => {}
    }
    if let Some(at) = cosigned_at {
        if let Some(size) = report.cosigned_size().filter(|size| *size < report.size) {
            line.push_str(&format!("; up to size {size} as of {}", cosigned(at)));
        } else {
            line.push_str(&format!("; as of {}", cosigned(at)));
        }
    }
    for size in &report.known_in_gap {
        line.push_str(&format!(
            "; not compared with the known head of size {size}"
        ));
    }
    if known.is_none() && cosigned_at.is_none() {
        line.push_str("; a tail that was cut off behind it can't be seen (--known finds it)");
    }
    line
}
