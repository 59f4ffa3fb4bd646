//! `GET /logs/stats`.

use std::sync::Arc;

use audit_core::tlog::json::write_string;
use audit_core::{GroupBy, Interval, Permission, Stats, StatsRequest, TimeRange, Timestamp};
use poem_openapi::{ApiResponse, OpenApi};

use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Problem, Reading, Refused};
use crate::query::{Parameter, Parameters, Params, Reader};

/// Statistics.
pub(crate) struct StatsApi(pub(crate) Arc<App>);

#[derive(ApiResponse)]
pub(crate) enum StatsAnswer {
    /// The statistics.
    #[oai(status = 200)]
    Statistics(JsonBody<schema::Statistics>),
}

impl Parameters for StatsRequest {
    fn list() -> Vec<Parameter> {
        vec![
            Parameter::text(
                "from",
                "Accepted on this UTC day or later: `2026-11-24`, or its midnight.",
            ),
            Parameter::text(
                "to",
                "Accepted before this UTC day: `2026-11-25`, or its midnight.",
            ),
            Parameter::choice(
                "group_by",
                &["action_type", "severity", "outcome"],
                "Splits the buckets by this field.",
            ),
            Parameter::choice(
                "interval",
                &["day", "week", "month"],
                "Makes buckets of this length.",
            ),
        ]
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        let range = TimeRange {
            from: day(reader, "from"),
            to: day(reader, "to"),
        };
        let mut request = Self::new().created(range);
        if let Some(group_by) = reader.parsed::<GroupBy>("group_by") {
            request = request.group_by(group_by);
        }
        if let Some(interval) = reader.parsed::<Interval>("interval") {
            request = request.interval(interval);
        }
        request
    }
}

/// A day, `2026-11-24`, or an instant, which the log demands to be a midnight.
fn day(reader: &mut Reader<'_>, name: &'static str) -> Option<Timestamp> {
    let text = reader.text(name)?;
    let midnight = if text.len() == 10 {
        format!("{text}T00:00:00Z")
    } else {
        text
    };
    match Timestamp::parse(&midnight) {
        Ok(at) => Some(at),
        Err(e) => {
            reader.fault(name, e.to_string());
            None
        }
    }
}

#[OpenApi(prefix_path = "/api/v1")]
impl StatsApi {
    /// Count entries
    ///
    /// Needs `read`. From counters that every append keeps: exact, and independent of the log's
    /// size. Days are UTC days of `created_at`. Control and erased entries count, pruned ones don't.
    #[oai(
        path = "/logs/stats",
        method = "get",
        operation_id = "stats",
        tag = "Tag::Logs"
    )]
    async fn stats(
        &self,
        caller: Caller,
        asked: Params<StatsRequest>,
    ) -> Result<StatsAnswer, Refused<Reading>> {
        let log = self.0.gate.enter(&caller, Permission::Read, &[]).await?;
        let stats = log
            .stats(&asked.0)
            .await
            .map_err(|e| Problem::from(e).of_parameters())?;
        let wants_buckets = asked.0.group_by.is_some() || asked.0.interval.is_some();
        Ok(StatsAnswer::Statistics(JsonBody::new(print(
            &stats,
            wants_buckets,
        ))))
    }
}

fn print(stats: &Stats, buckets: bool) -> String {
    let mut out = String::with_capacity(1024);
    put!(
        out,
        "{{\"total_logs\":{},\"pruned\":{}",
        stats.total,
        stats.pruned
    );
    counts(
        &mut out,
        "by_action",
        stats.by_action.iter().map(|(k, n)| (k.as_str(), *n)),
    );
    counts(
        &mut out,
        "by_severity",
        stats.by_severity.iter().map(|(k, n)| (k.as_str(), *n)),
    );
    counts(
        &mut out,
        "by_outcome",
        stats.by_outcome.iter().map(|(k, n)| (k.as_str(), *n)),
    );
    out.push_str(",\"last_7_days\":[");
    for (i, (day, count)) in stats.last_7_days.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        let start = Timestamp::day_start(*day)
            .unwrap_or(Timestamp::MIN)
            .to_string();
        let date = start.get(..10).unwrap_or_default();
        put!(out, "{{\"date\":\"{date}\",\"count\":{count}}}");
    }
    out.push(']');
    if buckets {
        out.push_str(",\"buckets\":[");
        for (i, bucket) in stats.buckets.iter().enumerate() {
            out.push_str(if i > 0 { ",{" } else { "{" });
            if let Some(start) = bucket.start {
                put!(out, "\"start\":\"{start}\",");
            }
            if let Some(key) = bucket.key {
                out.push_str("\"key\":");
                write_string(&mut out, key);
                out.push(',');
            }
            put!(out, "\"count\":{}}}", bucket.count);
        }
        out.push(']');
    }
    out.push('}');
    out
}

fn counts<'a>(out: &mut String, name: &str, counts: impl Iterator<Item = (&'a str, u64)>) {
    put!(out, ",\"{name}\":{{");
    for (i, (key, count)) in counts.enumerate() {
        if i > 0 {
            out.push(',');
        }
        put!(out, "\"{key}\":{count}");
    }
    out.push('}');
}
