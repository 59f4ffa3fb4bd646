//! The filters that lists, exports and streams share.

use std::net::IpAddr;
use std::str::FromStr;

use audit_core::{
    ActionType, Filter, Order, Outcome, PageRequest, Query, Severity, Sort, TimeRange,
};

use crate::query::{Parameter, Parameters, Reader};

/// Why a text is no address.
#[derive(Debug, thiserror::Error)]
#[error("not an IPv4 or IPv6 address (no prefix, no zone)")]
struct NotAnAddress;

struct Address(IpAddr);

impl FromStr for Address {
    type Err = NotAnAddress;
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        text.parse().map(Self).map_err(|_| NotAnAddress)
    }
}

fn names<T: Copy>(values: &[T], name: fn(T) -> &'static str) -> Vec<&'static str> {
    values.iter().copied().map(name).collect()
}

fn document() -> Vec<Parameter> {
    vec![
        Parameter::text("user_id", "The actor.").repeated(),
        Parameter::text("session_id", "The session.").repeated(),
        Parameter::choice(
            "action_type",
            &names(ActionType::ALL, ActionType::as_str),
            "The coarse operation.",
        )
        .repeated(),
        Parameter::text("action", "The fine name, whole.").repeated(),
        Parameter::choice(
            "outcome",
            &names(Outcome::ALL, Outcome::as_str),
            "How it ended.",
        )
        .repeated(),
        Parameter::choice(
            "severity",
            &names(Severity::ALL, Severity::as_str),
            "How much attention it deserves.",
        )
        .repeated(),
        Parameter::text("resource_type", "The resource's type.").repeated(),
        Parameter::text("resource_id", "The resource's id.").repeated(),
        Parameter::text("related_id", "The id of a related resource.").repeated(),
        Parameter::text("ip_address", "From where; IPv4 or IPv6.").repeated(),
        Parameter::text("request_id", "The request of the application.").repeated(),
        Parameter::text("trace_id", "The trace.").repeated(),
        Parameter::format("from", "date-time", "Happened at this time or later."),
        Parameter::format("to", "date-time", "Happened before this time."),
        Parameter::format(
            "created_from",
            "date-time",
            "Accepted at this time or later.",
        ),
        Parameter::format("created_to", "date-time", "Accepted before this time."),
        Parameter::number("from_seq", 0, None, "At this position or later."),
        Parameter::text(
            "q",
            "Full text: all words must occur; \"…\" is a phrase. With it, results go by `seq`.",
        ),
    ]
}

fn read(reader: &mut Reader<'_>) -> Filter {
    let mut filter = Filter::new();
    filter.user_id = reader.every("user_id");
    filter.session_id = reader.every("session_id");
    filter.action_type = reader.every("action_type");
    filter.action = reader.every("action");
    filter.outcome = reader.every("outcome");
    filter.severity = reader.every("severity");
    filter.resource_type = reader.every("resource_type");
    filter.resource_id = reader.every("resource_id");
    filter.related_id = reader.every("related_id");
    filter.ip_address = reader
        .every::<Address>("ip_address")
        .into_iter()
        .map(|a| a.0)
        .collect();
    filter.request_id = reader.every("request_id");
    filter.trace_id = reader.every("trace_id");
    filter.occurred = TimeRange {
        from: reader.time("from"),
        to: reader.time("to"),
    };
    filter.created = TimeRange {
        from: reader.time("created_from"),
        to: reader.time("created_to"),
    };
    filter.from_seq = reader.number("from_seq", 0..=MAX_SEQ);
    if let Some(text) = reader.text("q") {
        match Query::parse(&text) {
            Ok(query) => filter.q = Some(query),
            Err(error) => {
                let detail = error
                    .fields()
                    .first()
                    .map_or_else(|| error.message().to_owned(), |fault| fault.detail.clone());
                reader.fault("q", detail);
            }
        }
    }
    filter
}

/// Positions are below 2⁵³, so that every JSON library reads them.
pub(crate) const MAX_SEQ: u64 = (1 << 53) - 1;

impl Parameters for Filter {
    fn list() -> Vec<Parameter> {
        document()
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        read(reader)
    }
}

/// Which page of a list is asked for.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) filter: Filter,
    pub(crate) page: PageRequest,
    pub(crate) cursor: Option<String>,
}

struct BySort(Sort);
struct ByOrder(Order);

/// A name that is not one of a parameter's values.
#[derive(Debug, thiserror::Error)]
#[error("one of {0} is expected")]
pub(crate) struct NotAChoice(&'static str);

impl FromStr for BySort {
    type Err = NotAChoice;
    fn from_str(text: &str) -> Result<Self, NotAChoice> {
        match text {
            "seq" => Ok(Self(Sort::Seq)),
            "occurred_at" => Ok(Self(Sort::OccurredAt)),
            _ => Err(NotAChoice("seq, occurred_at")),
        }
    }
}

impl FromStr for ByOrder {
    type Err = NotAChoice;
    fn from_str(text: &str) -> Result<Self, NotAChoice> {
        match text {
            "desc" => Ok(Self(Order::Descending)),
            "asc" => Ok(Self(Order::Ascending)),
            _ => Err(NotAChoice("desc, asc")),
        }
    }
}

/// The size of a page.
pub(crate) fn limit_parameter() -> Parameter {
    Parameter::number(
        "limit",
        1,
        Some(PageRequest::MAX_LIMIT as u64),
        "The most items of a page; 50 when absent.",
    )
}

impl Parameters for Listing {
    fn list() -> Vec<Parameter> {
        let mut list = document();
        list.extend([
            Parameter::choice("sort", &["seq", "occurred_at"], "By position, the default, or by time."),
            Parameter::choice("order", &["desc", "asc"], "Newest first, the default, or oldest first."),
            limit_parameter(),
            Parameter::text(
                "cursor",
                "`next_cursor` of the page before. The other parameters are repeated with it; `limit` may change.",
            ),
        ]);
        list
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        let filter = read(reader);
        let mut page = PageRequest::first();
        if let Some(sort) = reader.parsed::<BySort>("sort") {
            page.sort = sort.0;
        }
        if let Some(order) = reader.parsed::<ByOrder>("order") {
            page.order = order.0;
        }
        page = page.limit(read_limit(reader));
        if filter.q.is_some() && page.sort != Sort::Seq {
            reader.fault("sort", "with q, results go by seq");
        }
        Self {
            filter,
            page,
            cursor: reader.text("cursor"),
        }
    }
}

/// Reads the size of a page.
pub(crate) fn read_limit(reader: &mut Reader<'_>) -> usize {
    reader
        .number("limit", 1..=PageRequest::MAX_LIMIT as u64)
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(PageRequest::DEFAULT_LIMIT)
}

/// No parameters but those that every tenant route has.
impl Parameters for () {
    fn list() -> Vec<Parameter> {
        Vec::new()
    }

    fn read(_: &mut Reader<'_>) -> Self {}
}
