//! Statistics.

use std::collections::BTreeMap;

use audit_core::stats::{GroupBy, Interval, StatsRequest};
use audit_core::{Error, Result};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::transport::{Call, parse};

/// Statistics over the entries that are present.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// All entries in the range.
    pub total_logs: u64,
    /// Entries of the whole log that were pruned.
    #[serde(default)]
    pub pruned: u64,
    /// By operation; what has none may be left out.
    #[serde(default)]
    pub by_action: BTreeMap<String, u64>,
    /// By severity; what has none may be left out.
    #[serde(default)]
    pub by_severity: BTreeMap<String, u64>,
    /// By outcome; what has none may be left out.
    #[serde(default)]
    pub by_outcome: BTreeMap<String, u64>,
    /// The last seven UTC days, today last.
    #[serde(default)]
    pub last_7_days: Vec<DayCount>,
    /// What `group_by` and `interval` asked for.
    #[serde(default)]
    pub buckets: Vec<Bucket>,
}

/// A day's entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DayCount {
    /// The UTC day, `2026-11-24`.
    pub date: String,
    /// How many entries.
    pub count: u64,
}

/// A count within the statistics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Bucket {
    /// The start of the interval, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// The value of the field that it was split by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How many entries.
    pub count: u64,
}

impl Client {
    /// Statistics, exact and independent of the log's size.
    ///
    /// # Errors
    /// [`Invalid`](audit_core::ErrorKind::Invalid) naming `from` or `to` when it is not midnight UTC.
    pub async fn stats(&self, request: &StatsRequest) -> Result<Stats> {
        request.days()?;
        let mut query = Vec::new();
        for (name, at) in [("from", request.created.from), ("to", request.created.to)] {
            if let Some(at) = at {
                query.push((name, at.to_string()));
            }
        }
        if let Some(group_by) = request.group_by {
            let name = match group_by {
                GroupBy::ActionType => "action_type",
                GroupBy::Severity => "severity",
                GroupBy::Outcome => "outcome",
                _ => return Err(Error::field("group_by", "this client doesn't know it")),
            };
            query.push(("group_by", name.into()));
        }
        if let Some(interval) = request.interval {
            let name = match interval {
                Interval::Day => "day",
                Interval::Week => "week",
                Interval::Month => "month",
                _ => return Err(Error::field("interval", "this client doesn't know it")),
            };
            query.push(("interval", name.into()));
        }
        parse(
            &self
                .answer(&Call::new(Method::GET, "api/v1/logs/stats").query(query))
                .await?
                .body,
        )
    }
}
