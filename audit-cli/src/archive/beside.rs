//! An export of the log beside its archive: it says what was erased and pruned that the archive can't know of.

use std::path::Path;
use std::thread::available_parallelism;

use audit_tlog::Note;
use audit_tlog::verify::{Code, Finding, Options, verify_blocks};

use super::verdict::Verdict;
use super::{LISTED, missing};
use crate::args::VerifyArgs;
use crate::bundle::{self, unreadable};
use crate::failure::Failure;
use crate::verify::{Known, size};

/// Verifies an export behind the segments. It counts when it is of the same log: it has the `newest` head of
/// a segment, or a segment was compared with its own.
pub(super) fn export(
    verdict: &mut Verdict,
    args: &VerifyArgs,
    known: &Known,
    newest: Option<&Note>,
    path: &Path,
) -> Result<(), Failure> {
    let opened = bundle::open(path)?;
    let exported = opened.manifest.map_or(0, |manifest| manifest.size);
    let newest = newest.filter(|note| size(note).is_some_and(|size| size <= exported));
    let mut known = known.up_to(exported);
    known.checkpoints.extend(newest.cloned());
    let options = Options {
        partial: true,
        known: known.checkpoints,
        head_proofs: known.head_proofs,
        keys: args.key.clone(),
        witnesses: args.witness.clone(),
        max_findings: LISTED,
        ..Options::default()
    };
    let workers = available_parallelism().map_or(1, usize::from);
    let report = verify_blocks(opened.blocks, options, workers, |_| ());
    let report = report.map_err(|error| unreadable(path, error))?;
    let shown = path.display().to_string();
    verdict.add_all(&shown, &opened.findings, &report);
    let warnings = opened.warnings.iter();
    let warnings = warnings.map(|text| format!("{shown}: {text}"));
    verdict.warnings.extend(warnings);
    if let (Some(tenant), Some(other)) = (verdict.tenant_id, report.tenant_id)
        && tenant != other
    {
        let detail = format!("of the tenant {other}");
        verdict.add(&shown, Finding::at(Code::Tenant, None, detail));
        return Ok(());
    }
    verdict.erasures.add(report.erases);
    let (ended, pruned) = (verdict.to, report.pruned_below);
    if pruned > ended {
        let detail = "no segment has them, and the export says that they were pruned".to_owned();
        missing(verdict, args.partial, (ended, pruned - 1), detail);
    }

    let continues_newest = newest
        .and_then(size)
        .is_some_and(|size| report.known.contains(&size));
    if !continues_newest && !verdict.compared.contains(&exported) {
        verdict.not_compared.insert(exported);
        verdict.warnings.push(format!(
            "{shown}: that it is of the archive's log could not be shown"
        ));
        return Ok(());
    }
    verdict.compared.extend(&report.known);
    verdict.compared.insert(exported);
    verdict.known.insert(exported);
    verdict.reach = verdict.reach.max(exported);
    verdict.cosigned.extend(report.cosigned);
    let is_whole = report.absent.withheld + report.absent.unexplained == 0;
    if is_whole && pruned <= verdict.read_to {
        verdict.read_to = verdict.read_to.max(exported);
    }
    Ok(())
}
