//! `audit prune` and `audit erase`.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use audit_client::{Client, ErasureState, ErasureStatus, PruneBound, PruneRequest};
use audit_core::{ErasureCount, ErasureRequest, EventId, Selection};
use audit_tlog::Basis;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::args::{EraseArgs, PruneArgs};
use crate::failure::{Failure, Outcome};
use crate::present::Out;

/// How long it waits before it asks again how an erasure goes, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

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
    if !args.dry_run && !args.yes {
        let asked = client
            .prune(&PruneRequest::new(bound).dry_run(true))
            .await?;
        let question = format!(
            "{} to remove. Remove them for good? [y/N] ",
            entries(asked.entries)
        );
        if asked.entries > 0 && !agreed(&question).await? {
            out.hint("nothing was removed");
            return Ok(Outcome::Partial);
        }
    }
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
    mut args: EraseArgs,
) -> Result<Outcome, Failure> {
    let mut ids = args.entries;
    ids.append(&mut args.id);
    let filter = args.filter.filter().map_err(Failure::Usage)?;
    let is_plain = args.groups.is_empty() && args.basis.is_none() && args.reason.is_none();
    if let [id] = ids[..]
        && is_plain
        && filter.is_empty()
        && !args.dry_run
        && !args.no_wait
    {
        return erase_entry(client, out, id).await;
    }
    let by_id = !ids.is_empty();
    let selection = match (by_id, filter.is_empty()) {
        (true, true) => Selection::ids(ids),
        (false, false) => Selection::matching(filter),
        (true, false) => {
            return Err(Failure::Usage("an id stands beside a filter".into()));
        }
        (false, true) => {
            return Err(Failure::Usage(
                "an id, --user-id or another filter is needed".into(),
            ));
        }
    };
    let basis = match args.basis {
        Some(basis) => basis,
        None => Basis::parse("request").map_err(|e| Failure::Usage(e.to_string()))?,
    };
    let mut request = ErasureRequest::new(selection, basis);
    if !args.groups.is_empty() {
        request = request.groups(&args.groups);
    }
    request.reason = args.reason;
    request.check().map_err(|e| Failure::Usage(e.to_string()))?;
    if args.dry_run {
        let count = client.count_erasure(&request).await?;
        if out.json {
            out.value(&Counted {
                dry_run: true,
                matching: count.matching,
                erasable: count.erasable,
            })?;
        } else {
            out.text(&format!("{}, none was erased", told(&count)))?;
        }
        out.flush()?;
        return Ok(Outcome::Complete);
    }
    if !by_id && !args.yes {
        let count = client.count_erasure(&request).await?;
        if !agreed(&format!("{}. Erase them for good? [y/N] ", told(&count))).await? {
            out.hint("nothing was erased");
            return Ok(Outcome::Partial);
        }
    }
    let mut status = client.erase(&request).await?;
    if !args.no_wait {
        status = wait(client, &out, status).await?;
    }
    if out.json {
        out.value(&status)?;
    } else if args.no_wait {
        out.text(&format!("erasure {} has begun", status.id))?;
    } else if status.entries == 0 {
        out.text("nothing was left to erase")?;
    } else {
        out.text(&format!("erased {}", entries(status.entries)))?;
    }
    out.flush()?;
    Ok(Outcome::Complete)
}

/// One entry: what was never there is an error.
async fn erase_entry(client: &Client, mut out: Out, id: EventId) -> Result<Outcome, Failure> {
    let mut report = client.erase_entry(id).await?;
    // Done with what is in the log, which hasn't the entry.
    let mut may_come = false;
    if let Some(running) = report.running.take() {
        may_come = running.state == ErasureState::Done;
        report.entries = wait(client, &out, running).await?.entries;
    }
    if out.json {
        out.value(&report)?;
    } else if may_come {
        out.text("it is not in the log; if it still comes, it is erased then")?;
    } else if report.entries == 0 {
        out.text("nothing was left to erase")?;
    } else {
        out.text("erased")?;
    }
    out.flush()?;
    Ok(Outcome::Complete)
}

#[derive(Serialize)]
struct Counted {
    dry_run: bool,
    matching: u64,
    erasable: u64,
}

fn entries(n: u64) -> String {
    match n {
        1 => "1 entry".into(),
        n => format!("{n} entries"),
    }
}

fn told(count: &ErasureCount) -> String {
    let erasable = count.erasable;
    format!(
        "{}, {erasable} with something to erase",
        entries(count.matching)
    )
}

/// Asks on the terminal.
pub(crate) async fn agreed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "--yes is needed where nobody can be asked".into(),
        ));
    }
    let mut terminal = io::stderr();
    terminal
        .write_all(question.as_bytes())
        .and_then(|()| terminal.flush())
        .map_err(|e| Failure::Local("the terminal".into(), e))?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    let answer = match answer.await {
        Ok(line) => line.map_err(|e| Failure::Local("standard input".into(), e))?,
        Err(_) => return Ok(false),
    };
    let answer = answer.trim().to_ascii_lowercase();
    Ok(matches!(&*answer, "y" | "yes"))
}

/// Asks how it goes until it is done.
async fn wait(
    client: &Client,
    out: &Out,
    mut status: ErasureStatus,
) -> Result<ErasureStatus, Failure> {
    let progress = match out.shows_progress() {
        true => ProgressBar::new(status.end),
        false => ProgressBar::hidden(),
    };
    let mut pause = FIRST_PAUSE;
    let mut told = None;
    while status.state == ErasureState::Running {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
        status = match client.erasure(status.id).await {
            Ok(status) => status,
            Err(error) => {
                let going = format!("erasure {} goes on without being watched", status.id);
                return Err(Failure::Halted(going, error));
            }
        };
        progress.set_position(status.next);
        if status.last_error.is_some() && status.last_error != told {
            told.clone_from(&status.last_error);
            let error = told.as_deref().unwrap_or_default();
            progress.suspend(|| out.hint(&format!("the server tries again: {error}")));
        }
    }
    progress.finish_and_clear();
    Ok(status)
}
