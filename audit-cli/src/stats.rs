//! `audit stats`.

use audit_client::{Client, Stats};
use audit_core::{GroupBy, Interval, StatsRequest, TimeRange};

use crate::args::{GroupByArg, IntervalArg, StatsArgs};
use crate::failure::{Failure, Outcome};
use crate::present::Out;

pub(crate) async fn run(
    client: &Client,
    mut out: Out,
    args: StatsArgs,
) -> Result<Outcome, Failure> {
    let mut request = StatsRequest::new().created(TimeRange {
        from: args.from,
        to: args.to,
    });
    request.group_by = args.group_by.map(|group_by| match group_by {
        GroupByArg::ActionType => GroupBy::ActionType,
        GroupByArg::Severity => GroupBy::Severity,
        GroupByArg::Outcome => GroupBy::Outcome,
    });
    request.interval = args.interval.map(|interval| match interval {
        IntervalArg::Day => Interval::Day,
        IntervalArg::Week => Interval::Week,
        IntervalArg::Month => Interval::Month,
    });
    request.days().map_err(|e| Failure::Usage(e.to_string()))?;
    let stats = client.stats(&request).await?;
    if out.json {
        out.value(&stats)?;
        out.flush()?;
        return Ok(Outcome::Complete);
    }
    if args.group_by.is_some() || args.interval.is_some() {
        return split(out, &args, &stats);
    }
    out.text(&format!(
        "{} entries, {} pruned",
        stats.total_logs, stats.pruned
    ))?;
    for counts in [&stats.by_action, &stats.by_severity, &stats.by_outcome] {
        let rows: Vec<_> = counts
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(key, count)| vec![key.clone(), count.to_string()])
            .collect();
        if !rows.is_empty() {
            out.line("")?;
            out.table(&[], rows)?;
        }
    }
    let days: Vec<_> = stats
        .last_7_days
        .iter()
        .map(|day| vec![day.date.clone(), day.count.to_string()])
        .collect();
    out.line("")?;
    out.table(&["DAY", "ENTRIES"], days)?;
    out.flush()?;
    Ok(Outcome::Complete)
}

/// The counts as they were asked to be split, and nothing else.
fn split(mut out: Out, args: &StatsArgs, stats: &Stats) -> Result<Outcome, Failure> {
    let by = args.group_by.map(|group_by| match group_by {
        GroupByArg::ActionType => "ACTION TYPE",
        GroupByArg::Severity => "SEVERITY",
        GroupByArg::Outcome => "OUTCOME",
    });
    let from = args.interval.map(|_| "FROM");
    let head: Vec<&str> = from.into_iter().chain(by).chain(["ENTRIES"]).collect();
    let cell = |text: &Option<String>| text.clone().unwrap_or_default();
    let rows = stats.buckets.iter().map(|bucket| {
        let start = from.map(|_| cell(&bucket.start));
        let key = by.map(|_| cell(&bucket.key));
        let cells = start.into_iter().chain(key);
        cells.chain([bucket.count.to_string()]).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        out.hint("nothing matches");
    }
    out.table(&head, rows)?;
    out.flush()?;
    Ok(Outcome::Complete)
}
