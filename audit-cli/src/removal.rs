//! `audit prune` and `audit erase`.

use audit_client::{Client, PruneBound, PruneRequest};

use crate::args::{EraseArgs, PruneArgs};
use crate::failure::{Failure, Outcome};
use crate::present::Out;

pub(crate) async fn prune(
    client: &Client,
    mut out: Out,
    args: PruneArgs,
) -> Result<Outcome, Failure> {
    let bound = match (args.bound.before, args.bound.older_than_days) {
        (Some(at), _) => PruneBound::Before(at),
        (None, Some(days)) => PruneBound::OlderThanDays(days),
        (None, None) => {
            return Err(Failure::Usage(
                "--before or --older-than-days is needed".into(),
            ));
        }
    };
    let mut request = PruneRequest::new(bound).dry_run(args.dry_run);
    request.reason = args.reason;
    let report = client.prune(&request).await?;
    if out.json {
        out.value(&report)?;
    } else {
        let done = if report.dry_run {
            "would be pruned"
        } else {
            "pruned"
        };
        let by = report
            .id
            .map(|id| format!("; entry {id} says so"))
            .unwrap_or_default();
        out.text(&format!(
            "{} entries {done}, all before {}{by}",
            report.entries, report.below
        ))?;
    }
    out.flush()?;
    Ok(Outcome::Complete)
}

pub(crate) async fn erase(
    client: &Client,
    mut out: Out,
    args: EraseArgs,
) -> Result<Outcome, Failure> {
    let report = client.erase(args.id).await?;
    if out.json {
        out.value(&report)?;
    } else if report.entries == 0 {
        out.text("nothing was left to erase")?;
    } else {
        out.text("erased")?;
    }
    out.flush()?;
    Ok(Outcome::Complete)
}
