//! Statistics, from the counters that the append transaction keeps.

use std::collections::BTreeMap;

use audit_tlog::Timestamp;
use chrono::{Datelike, NaiveDate};

use crate::error::{Error, FieldFault, Result};
use crate::event::{ActionType, NotAValue, Outcome, Severity};
use crate::filter::TimeRange;
use crate::store::Counter;

/// By which field the buckets are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupBy {
    /// The coarse operation.
    ActionType,
    /// The severity.
    Severity,
    /// The outcome.
    Outcome,
}

impl GroupBy {
    fn key(self, counter: &Counter) -> &'static str {
        match self {
            Self::ActionType => counter.action_type.as_str(),
            Self::Severity => counter.severity.as_str(),
            Self::Outcome => counter.outcome.as_str(),
        }
    }
}

impl std::str::FromStr for GroupBy {
    type Err = NotAValue;
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        match text {
            "action_type" => Ok(Self::ActionType),
            "severity" => Ok(Self::Severity),
            "outcome" => Ok(Self::Outcome),
            _ => Err(NotAValue("action_type severity outcome")),
        }
    }
}

/// How long the buckets are, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Interval {
    /// A day.
    Day,
    /// A week, from Monday (ISO 8601).
    Week,
    /// A calendar month.
    Month,
}

impl Interval {
    fn start(self, day: i32) -> i32 {
        match self {
            Self::Day => day,
            // 1970-01-01 was a Thursday, three days after a Monday.
            Self::Week => day - (day + 3).rem_euclid(7),
            Self::Month => NaiveDate::from_epoch_days(day)
                .map_or(day, |date| day - i32::try_from(date.day0()).unwrap_or(0)),
        }
    }
}

impl std::str::FromStr for Interval {
    type Err = NotAValue;
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        match text {
            "day" => Ok(Self::Day),
            "week" => Ok(Self::Week),
            "month" => Ok(Self::Month),
            _ => Err(NotAValue("day week month")),
        }
    }
}

/// What statistics are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StatsRequest {
    /// Of entries accepted in this range, whose ends are whole UTC days.
    pub created: TimeRange,
    /// Split the buckets by this.
    pub group_by: Option<GroupBy>,
    /// Make buckets of this length.
    pub interval: Option<Interval>,
}

impl StatsRequest {
    /// Of everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of entries accepted in this range, whose ends are whole UTC days.
    #[must_use]
    pub fn created(mut self, range: TimeRange) -> Self {
        self.created = range;
        self
    }

    /// Splits the buckets.
    #[must_use]
    pub fn group_by(mut self, group_by: GroupBy) -> Self {
        self.group_by = Some(group_by);
        self
    }

    /// Makes buckets of this length.
    #[must_use]
    pub fn interval(mut self, interval: Interval) -> Self {
        self.interval = Some(interval);
        self
    }

    /// The days that it asks for.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) naming `from` or `to` when it is not midnight UTC.
    pub fn days(&self) -> Result<std::ops::Range<i32>> {
        let whole = |name: &'static str, at: Option<Timestamp>| match at {
            Some(at) if Timestamp::day_start(at.utc_day()) != Some(at) => {
                Err(Error::invalid(vec![FieldFault::new(
                    name,
                    "statistics are kept by UTC day: midnight (T00:00:00Z) is expected",
                )]))
            }
            at => Ok(at.map(Timestamp::utc_day)),
        };
        let from = whole("from", self.created.from)?.unwrap_or(i32::MIN);
        let to = whole("to", self.created.to)?.unwrap_or(i32::MAX);
        Ok(from..to)
    }
}

/// A count within the statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bucket {
    /// The start of the interval, where one was asked for.
    pub start: Option<Timestamp>,
    /// The value of the field that it was split by.
    pub key: Option<&'static str>,
    /// How many entries.
    pub count: u64,
}

/// Statistics over the entries that are present. Control and erased entries count, pruned ones don't.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// All entries in the range.
    pub total: u64,
    /// Entries of the whole log that were pruned.
    pub pruned: u64,
    /// By operation; what has none is left out.
    pub by_action: BTreeMap<ActionType, u64>,
    /// By severity; what has none is left out.
    pub by_severity: BTreeMap<Severity, u64>,
    /// By outcome; what has none is left out.
    pub by_outcome: BTreeMap<Outcome, u64>,
    /// The last seven UTC days, today last, whatever the range: day since 1970-01-01 and count.
    pub last_7_days: Vec<(i32, u64)>,
    /// What `group_by` and `interval` asked for, by start and key; empty when neither was.
    pub buckets: Vec<Bucket>,
}

impl Stats {
    /// Adds counters up. `counters` hold the requested days, `recent` the last seven.
    pub(crate) fn of(
        request: &StatsRequest,
        counters: &[Counter],
        recent: &[Counter],
        pruned: u64,
        today: i32,
    ) -> Self {
        let mut stats = Self {
            pruned,
            ..Self::default()
        };
        let mut buckets: BTreeMap<(Option<i32>, Option<&'static str>), u64> = BTreeMap::new();
        for counter in counters {
            stats.total += counter.count;
            *stats.by_action.entry(counter.action_type).or_default() += counter.count;
            *stats.by_severity.entry(counter.severity).or_default() += counter.count;
            *stats.by_outcome.entry(counter.outcome).or_default() += counter.count;
            if request.group_by.is_some() || request.interval.is_some() {
                let start = request.interval.map(|i| i.start(counter.day));
                let key = request.group_by.map(|g| g.key(counter));
                *buckets.entry((start, key)).or_default() += counter.count;
            }
        }
        stats.last_7_days = (today - 6..=today)
            .map(|day| {
                (
                    day,
                    recent
                        .iter()
                        .filter(|c| c.day == day)
                        .map(|c| c.count)
                        .sum(),
                )
            })
            .collect();
        stats.buckets = buckets
            .into_iter()
            .map(|((start, key), count)| Bucket {
                start: start.and_then(Timestamp::day_start),
                key,
                count,
            })
            .collect();
        stats
    }
}
