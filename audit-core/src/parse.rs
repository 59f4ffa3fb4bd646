//! An event's JSON body, read name by name so that all its faults are reported at once.
//!
//! Going through serde's derive would stop at the first fault, and `flatten` or `untagged` would lose
//! the raw text of the three JSON fields.

use std::str::FromStr;

use audit_tlog::Timestamp;
use audit_tlog::json::{self as text, Fault};

use crate::error::{Error, ErrorKind, FieldFault, Result};
use crate::event::{ActionType, Event, Fields, parse_ip, parse_related};
use crate::json::Json;

pub(crate) fn event(body: &str) -> Result<Event> {
    let members = text::members(body).map_err(|fault| {
        let mut detail = fault.to_string();
        if fault == Fault::Syntax {
            detail = match serde_json::from_str::<serde::de::IgnoredAny>(body) {
                Err(e) => format!("not one JSON object: {e}"),
                Ok(_) => "not one JSON object".into(),
            };
        }
        malformed(FieldFault::new("body", detail))
    })?;

    let mut faults = Vec::new();
    let mut read = Reader {
        members: &members,
        faults: &mut faults,
        used: vec![false; members.len()],
    };

    let id = read.parsed("id");
    let tenant_id = read.parsed("tenant_id");
    let occurred_at = read.parsed::<Time>("occurred_at").map(|t| t.0);
    let action_type = read.parsed::<ActionType>("action_type");
    let missing = action_type.is_none() && !read.faults.iter().any(|f| f.field == "action_type");
    if missing {
        read.faults.push(FieldFault::new("action_type", "required"));
    }
    let mut fields = Fields::new(action_type.unwrap_or(ActionType::Other));
    let mut action_is_default = true;
    if let Some(action) = read.string("action") {
        fields.action = action;
        action_is_default = false;
    }
    if let Some(outcome) = read.parsed("outcome") {
        fields.outcome = outcome;
    }
    if let Some(severity) = read.parsed("severity") {
        fields.severity = severity;
    }
    fields.user_id = read.string("user_id");
    fields.actor_type = read.parsed("actor_type");
    fields.actor_name = read.string("actor_name");
    fields.on_behalf_of = read.string("on_behalf_of");
    fields.resource_type = read.string("resource_type");
    fields.resource_id = read.string("resource_id");
    fields.resource_name = read.string("resource_name");
    if let Some(raw) = read.take("related_resources") {
        fields.related_resources = parse_related(raw, read.faults);
    }
    fields.session_id = read.string("session_id");
    fields.request_id = read.string("request_id");
    fields.trace_id = read.string("trace_id");
    fields.user_agent = read.string("user_agent");
    fields.ip_address = read.parsed::<Address>("ip_address").map(|a| a.0);
    fields.reason = read.string("reason");
    fields.before_state = read.raw("before_state");
    fields.after_state = read.raw("after_state");
    fields.metadata = read.raw("metadata");

    let used = read.used;
    for (member, used) in members.iter().zip(used) {
        if !used {
            faults.push(FieldFault::new(
                member.name.clone().into_owned(),
                "not a field that a client may send",
            ));
        }
    }
    let broken: Vec<String> = faults
        .iter()
        .map(|f| f.field.clone().into_owned())
        .collect();
    let mut limits = Vec::new();
    fields.validate(false, &mut limits);
    // A field that could not be read is not also reported as missing.
    faults.extend(
        limits
            .into_iter()
            .filter(|f| !broken.iter().any(|b| *b == f.field)),
    );
    if !faults.is_empty() {
        return Err(Error::invalid(faults));
    }
    Ok(Event {
        id,
        tenant_id,
        occurred_at,
        action_is_default,
        fields,
        faults: Vec::new(),
        reserved_action: false,
    })
}

fn malformed(fault: FieldFault) -> Error {
    Error::invalid(vec![fault]).with_kind(ErrorKind::Malformed)
}

struct Reader<'a, 'b> {
    members: &'b [text::Member<'a>],
    faults: &'b mut Vec<FieldFault>,
    used: Vec<bool>,
}

impl<'a> Reader<'a, '_> {
    /// The raw text of a field; none when it is absent or null.
    fn take(&mut self, name: &'static str) -> Option<&'a str> {
        let mut raw = None;
        for (member, used) in self.members.iter().zip(&mut self.used) {
            if member.name == name {
                *used = true;
                if raw.replace(member.raw).is_some() {
                    self.faults
                        .push(FieldFault::new(name, Fault::DuplicateKey.to_string()));
                    return None;
                }
            }
        }
        raw.filter(|raw| *raw != "null")
    }

    fn string(&mut self, name: &'static str) -> Option<String> {
        let raw = self.take(name)?;
        if !raw.starts_with('"') {
            self.faults
                .push(FieldFault::new(name, "a string is expected"));
            return None;
        }
        match text::string(raw) {
            Ok(value) => Some(value.into_owned()),
            Err(fault) => {
                self.faults.push(FieldFault::new(name, fault.to_string()));
                None
            }
        }
    }

    fn parsed<T: FromStr>(&mut self, name: &'static str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let value = self.string(name)?;
        match value.parse() {
            Ok(parsed) => Some(parsed),
            Err(e) => {
                self.faults.push(FieldFault::new(name, e.to_string()));
                None
            }
        }
    }

    fn raw(&mut self, name: &'static str) -> Option<Json> {
        let raw = self.take(name)?;
        match text::admit(raw, text::MAX_DEPTH) {
            Ok(()) => Some(Json::from_stored(raw)),
            Err(fault) => {
                self.faults.push(FieldFault::new(name, fault.to_string()));
                None
            }
        }
    }
}

struct Time(Timestamp);

impl FromStr for Time {
    type Err = audit_tlog::TimeFault;
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Timestamp::parse(value).map(Self)
    }
}

struct Address(std::net::IpAddr);

impl FromStr for Address {
    type Err = &'static str;
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        parse_ip(value)
            .map(Self)
            .ok_or("not an IPv4 or IPv6 address (no prefix, no zone, no leading zeros)")
    }
}
