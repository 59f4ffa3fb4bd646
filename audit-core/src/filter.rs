//! Which entries a read asks for.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use audit_tlog::{Group, Timestamp, json};

use crate::entry::Entry;
use crate::error::{Error, ErrorKind, FieldFault, Result};
use crate::event::{ActionType, Fields, Outcome, Severity, print_ip};
use crate::text::Query;

/// A half-open range of time: `from` is in it, `to` is not. Either end may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeRange {
    /// The first instant in it.
    pub from: Option<Timestamp>,
    /// The first instant behind it.
    pub to: Option<Timestamp>,
}

impl TimeRange {
    /// Whether `at` lies in it.
    pub fn contains(&self, at: Timestamp) -> bool {
        self.from.is_none_or(|from| at >= from) && self.to.is_none_or(|to| at < to)
    }

    /// Whether both ends are open.
    pub fn is_unbounded(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }
}

/// The conditions of a read. All that are set must hold; several values of one mean any of them.
///
/// The default asks for everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Filter {
    /// The actor.
    pub user_id: Vec<String>,
    /// The session.
    pub session_id: Vec<String>,
    /// The coarse operation.
    pub action_type: Vec<ActionType>,
    /// The fine name, whole.
    pub action: Vec<String>,
    /// The resource's type.
    pub resource_type: Vec<String>,
    /// The resource's id.
    pub resource_id: Vec<String>,
    /// The id of a related resource.
    pub related_id: Vec<String>,
    /// How much attention.
    pub severity: Vec<Severity>,
    /// How it ended.
    pub outcome: Vec<Outcome>,
    /// From where.
    pub ip_address: Vec<IpAddr>,
    /// The request.
    pub request_id: Vec<String>,
    /// The trace.
    pub trace_id: Vec<String>,
    /// When it happened.
    pub occurred: TimeRange,
    /// When the log accepted it.
    pub created: TimeRange,
    /// The first position.
    pub from_seq: Option<u64>,
    /// The first position behind.
    pub to_seq: Option<u64>,
    /// Full text.
    pub q: Option<Query>,
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident => $field:ident: $type:ty),* $(,)?) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(mut self, value: impl Into<$type>) -> Self {
            self.$field.push(value.into());
            self
        })*
    };
}

/// One indexable condition: a field of which one value must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which field.
    pub field: FilterField,
    /// The values, as text; any of them matches. Never empty.
    pub values: Vec<String>,
}

/// The fields that a filter compares for equality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // the event's fields, by name
pub enum FilterField {
    UserId = 1,
    SessionId = 2,
    ActionType = 3,
    Action = 4,
    ResourceType = 5,
    ResourceId = 6,
    RelatedId = 7,
    Severity = 8,
    Outcome = 9,
    IpAddress = 10,
    RequestId = 11,
    TraceId = 12,
}

impl FilterField {
    /// The group that the field belongs to; none of what can't be erased.
    pub const fn group(self) -> Option<Group> {
        match self {
            Self::UserId => Some(Group::Actor),
            Self::ResourceType | Self::ResourceId | Self::RelatedId => Some(Group::Resource),
            Self::SessionId | Self::IpAddress | Self::RequestId | Self::TraceId => {
                Some(Group::Context)
            }
            Self::ActionType | Self::Action | Self::Severity | Self::Outcome => None,
        }
    }

    /// The event's field, by its name; of `related_id`, the filter's.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UserId => "user_id",
            Self::SessionId => "session_id",
            Self::ActionType => "action_type",
            Self::Action => "action",
            Self::ResourceType => "resource_type",
            Self::ResourceId => "resource_id",
            Self::RelatedId => "related_id",
            Self::Severity => "severity",
            Self::Outcome => "outcome",
            Self::IpAddress => "ip_address",
            Self::RequestId => "request_id",
            Self::TraceId => "trace_id",
        }
    }
}

impl Filter {
    /// Everything.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Entries of this actor, too.
        user => user_id: String,
        /// Entries of this session, too.
        session => session_id: String,
        /// Entries of this coarse operation, too.
        action_type => action_type: ActionType,
        /// Entries of this fine name, too.
        action => action: String,
        /// Entries on resources of this type, too.
        resource_type => resource_type: String,
        /// Entries on this resource, too.
        resource_id => resource_id: String,
        /// Entries with this related resource, too.
        related_id => related_id: String,
        /// Entries of this severity, too.
        severity => severity: Severity,
        /// Entries with this outcome, too.
        outcome => outcome: Outcome,
        /// Entries from this address, too.
        ip_address => ip_address: IpAddr,
        /// Entries of this request, too.
        request => request_id: String,
        /// Entries of this trace, too.
        trace => trace_id: String,
    }

    /// Entries that happened within the range.
    #[must_use]
    pub fn occurred(mut self, range: TimeRange) -> Self {
        self.occurred = range;
        self
    }

    /// Entries that the log accepted within the range.
    #[must_use]
    pub fn created(mut self, range: TimeRange) -> Self {
        self.created = range;
        self
    }

    /// Entries at this position and later.
    #[must_use]
    pub fn from_seq(mut self, seq: u64) -> Self {
        self.from_seq = Some(seq);
        self
    }

    /// Entries before this position.
    #[must_use]
    pub fn to_seq(mut self, seq: u64) -> Self {
        self.to_seq = Some(seq);
        self
    }

    /// Entries in which the query finds its words.
    #[must_use]
    pub fn text(mut self, q: Query) -> Self {
        self.q = Some(q);
        self
    }

    /// Whether it asks for everything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The conditions that are set as one JSON object, for people to read: each field with the list
    /// of its values, times as RFC 3339, `q` as it was written.
    pub fn to_json(&self) -> String {
        let mut out = String::from("{");
        let mut member = |name: &str, value: &str| {
            if out.len() > 1 {
                out.push(',');
            }
            json::write_string(&mut out, name);
            out.push(':');
            out.push_str(value);
        };
        let quoted = |text: &str| {
            let mut out = String::new();
            json::write_string(&mut out, text);
            out
        };
        for condition in self.conditions() {
            let values: Vec<String> = condition.values.iter().map(|v| quoted(v)).collect();
            member(condition.field.as_str(), &format!("[{}]", values.join(",")));
        }
        let times = [
            ("from", self.occurred.from),
            ("to", self.occurred.to),
            ("created_from", self.created.from),
            ("created_to", self.created.to),
        ];
        for (name, at) in times {
            if let Some(at) = at {
                member(name, &quoted(&at.to_string()));
            }
        }
        for (name, seq) in [("from_seq", self.from_seq), ("to_seq", self.to_seq)] {
            if let Some(seq) = seq {
                member(name, &seq.to_string());
            }
        }
        if let Some(q) = &self.q {
            member("q", &quoted(q.as_str()));
        }
        out.push('}');
        out
    }

    /// Reads the conditions of a filter from one JSON object, as [`to_json`](Self::to_json) writes
    /// it; null is the same as absent.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with every bad member, by its name; [`ErrorKind::Malformed`] when it is
    /// not one JSON object.
    pub fn from_json(text: &str) -> Result<Self> {
        let not_an_object = || Error::new(ErrorKind::Malformed, "not one JSON object");
        let members = json::members(text).map_err(|_| not_an_object())?;
        let mut filter = Self::new();
        let mut faults = Vec::new();
        for member in members.iter().filter(|member| member.raw != "null") {
            if let Err(detail) = filter.read_member(&member.name, member.raw) {
                faults.push(FieldFault::new(member.name.clone().into_owned(), detail));
            }
        }
        match faults.is_empty() {
            true => Ok(filter),
            false => Err(Error::invalid(faults)),
        }
    }

    fn read_member(&mut self, name: &str, raw: &str) -> Result<(), String> {
        match name {
            "user_id" => self.user_id = values(raw)?,
            "session_id" => self.session_id = values(raw)?,
            "action_type" => self.action_type = values(raw)?,
            "action" => self.action = values(raw)?,
            "resource_type" => self.resource_type = values(raw)?,
            "resource_id" => self.resource_id = values(raw)?,
            "related_id" => self.related_id = values(raw)?,
            "severity" => self.severity = values(raw)?,
            "outcome" => self.outcome = values(raw)?,
            "ip_address" => self.ip_address = values(raw)?,
            "request_id" => self.request_id = values(raw)?,
            "trace_id" => self.trace_id = values(raw)?,
            "from" => self.occurred.from = Some(time(raw)?),
            "to" => self.occurred.to = Some(time(raw)?),
            "created_from" => self.created.from = Some(time(raw)?),
            "created_to" => self.created.to = Some(time(raw)?),
            "from_seq" => self.from_seq = Some(position(raw)?),
            "to_seq" => self.to_seq = Some(position(raw)?),
            "q" => self.q = Some(query(raw)?),
            _ => return Err("not a condition of a filter".into()),
        }
        Ok(())
    }

    /// The equality conditions, in the order of [`FilterField`].
    pub fn conditions(&self) -> Vec<Condition> {
        fn texts<T>(values: &[T], text: impl Fn(&T) -> String) -> Vec<String> {
            values.iter().map(text).collect()
        }
        let all = [
            (FilterField::UserId, self.user_id.clone()),
            (FilterField::SessionId, self.session_id.clone()),
            (
                FilterField::ActionType,
                texts(&self.action_type, |v| v.as_str().into()),
            ),
            (FilterField::Action, self.action.clone()),
            (FilterField::ResourceType, self.resource_type.clone()),
            (FilterField::ResourceId, self.resource_id.clone()),
            (FilterField::RelatedId, self.related_id.clone()),
            (
                FilterField::Severity,
                texts(&self.severity, |v| v.as_str().into()),
            ),
            (
                FilterField::Outcome,
                texts(&self.outcome, |v| v.as_str().into()),
            ),
            (
                FilterField::IpAddress,
                texts(&self.ip_address, |v| print_ip(v.to_canonical())),
            ),
            (FilterField::RequestId, self.request_id.clone()),
            (FilterField::TraceId, self.trace_id.clone()),
        ];
        all.into_iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(field, values)| Condition { field, values })
            .collect()
    }

    /// Whether the entry satisfies every condition, full text included. Whatever an index says, a
    /// reader is shown only what this says of the stored entry.
    pub fn matches(&self, entry: &Entry) -> bool {
        fn any<T: PartialEq<U>, U>(wanted: &[T], value: Option<&U>) -> bool {
            wanted.is_empty() || value.is_some_and(|v| wanted.iter().any(|w| w == v))
        }
        let f = &entry.fields;
        self.from_seq.is_none_or(|from| entry.seq >= from)
            && self.to_seq.is_none_or(|to| entry.seq < to)
            && self.occurred.contains(entry.occurred_at)
            && self.created.contains(entry.created_at)
            && any(&self.user_id, f.user_id.as_ref())
            && any(&self.session_id, f.session_id.as_ref())
            && any(&self.action_type, Some(&f.action_type))
            && any(&self.action, Some(&f.action))
            && any(&self.resource_type, f.resource_type.as_ref())
            && any(&self.resource_id, f.resource_id.as_ref())
            && (self.related_id.is_empty()
                || f.related_resources
                    .iter()
                    .any(|r| self.related_id.contains(&r.id)))
            && any(&self.severity, Some(&f.severity))
            && any(&self.outcome, Some(&f.outcome))
            && (self.ip_address.is_empty()
                || f.ip_address.is_some_and(|ip| {
                    self.ip_address
                        .iter()
                        .any(|wanted| wanted.to_canonical() == ip)
                }))
            && any(&self.request_id, f.request_id.as_ref())
            && any(&self.trace_id, f.trace_id.as_ref())
            && self.q.as_ref().is_none_or(|q| q.matches(f))
    }
}

/// Hands out the values by which an entry is found, field by field: what an index stores.
pub fn each_value(fields: &Fields, mut each: impl FnMut(FilterField, &str)) {
    let texts = [
        (FilterField::UserId, &fields.user_id),
        (FilterField::SessionId, &fields.session_id),
        (FilterField::ResourceType, &fields.resource_type),
        (FilterField::ResourceId, &fields.resource_id),
        (FilterField::RequestId, &fields.request_id),
        (FilterField::TraceId, &fields.trace_id),
    ];
    for (field, value) in texts {
        if let Some(value) = value {
            each(field, value);
        }
    }
    each(FilterField::ActionType, fields.action_type.as_str());
    each(FilterField::Action, &fields.action);
    each(FilterField::Severity, fields.severity.as_str());
    each(FilterField::Outcome, fields.outcome.as_str());
    for related in &fields.related_resources {
        each(FilterField::RelatedId, &related.id);
    }
    if let Some(ip) = fields.ip_address {
        each(FilterField::IpAddress, &print_ip(ip));
    }
}

fn string(raw: &str) -> Result<String, String> {
    if !raw.starts_with('"') {
        return Err("a string is expected".into());
    }
    let text = json::string(raw).map_err(|f| f.to_string())?;
    Ok(text.into_owned())
}

fn values<T: FromStr>(raw: &str) -> Result<Vec<T>, String>
where
    T::Err: fmt::Display,
{
    let items = json::items(raw).map_err(|_| "a list of strings is expected")?;
    if items.is_empty() {
        return Err("at least one value is expected".into());
    }
    let parse = |raw| string(raw)?.parse().map_err(|e: T::Err| e.to_string());
    items.into_iter().map(parse).collect()
}

fn time(raw: &str) -> Result<Timestamp, String> {
    Timestamp::parse(&string(raw)?).map_err(|e| e.to_string())
}

fn position(raw: &str) -> Result<u64, String> {
    // Positions are below 2⁵³.
    let n = raw.parse::<u64>().ok().filter(|n| *n < 1 << 53);
    n.ok_or_else(|| "a position is expected".into())
}

fn query(raw: &str) -> Result<Query, String> {
    Query::parse(&string(raw)?).map_err(|error| {
        let fault = error.fields().first();
        fault.map_or_else(|| error.message().to_owned(), |f| f.detail.clone())
    })
}
