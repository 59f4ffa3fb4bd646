//! The event: who did what to which resource, when, from where, with what outcome, and what changed.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use audit_tlog::groups::{Actor, Context, Related, Resource};
use audit_tlog::{Group, Timestamp, json as text};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, FieldFault, Result};
use crate::id::{EventId, TenantId};
use crate::json::Json;

/// A text that is none of an enumeration's values. Values are exact: case counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of {0}")]
pub struct NotAValue(pub(crate) &'static str);

macro_rules! vocabulary {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),* }

        impl $name {
            /// Every value, in the order of their definition.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            const CHOICES: &str = concat!($($text, " "),*);

            /// The value as it stands in JSON, SQL and CSV.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl FromStr for $name {
            type Err = NotAValue;
            fn from_str(text: &str) -> Result<Self, NotAValue> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(NotAValue(Self::CHOICES.trim_ascii())),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

vocabulary! {
    /// The coarse operation.
    ActionType {
        /// Something came to be.
        Create = "CREATE",
        /// Something changed.
        Update = "UPDATE",
        /// Something was removed.
        Delete = "DELETE",
        /// Something was read.
        View = "VIEW",
        /// A session began.
        Login = "LOGIN",
        /// A session ended.
        Logout = "LOGOUT",
        /// A right was given.
        Grant = "GRANT",
        /// A right was taken.
        Revoke = "REVOKE",
        /// Something ran.
        Execute = "EXECUTE",
        /// Data left.
        Export = "EXPORT",
        /// None of these.
        Other = "OTHER",
    }
}

vocabulary! {
    /// How the operation ended. Never inferred from the severity.
    Outcome {
        /// It was done.
        Success = "success",
        /// It was tried and failed.
        Failure = "failure",
        /// It was not allowed.
        Denied = "denied",
        /// Nobody knows.
        Unknown = "unknown",
    }
}

vocabulary! {
    /// How much attention it deserves.
    Severity {
        /// Everyday.
        Info = "INFO",
        /// Worth a look.
        Warning = "WARNING",
        /// Something is wrong.
        Error = "ERROR",
        /// Somebody must act.
        Critical = "CRITICAL",
    }
}

vocabulary! {
    /// What kind of actor it was.
    ActorType {
        /// A person.
        User = "user",
        /// Another service.
        Service = "service",
        /// The system itself, a scheduled job.
        System = "system",
        /// Software that acts for somebody.
        Agent = "agent",
        /// Nobody knows who.
        Anonymous = "anonymous",
    }
}

/// The limits of a single event, in Unicode scalar values unless another unit is named.
pub mod limits {
    /// `action`: 1 to this many of `A-Z a-z 0-9 . _ : / -`.
    pub const ACTION: usize = 160;
    /// `user_id`.
    pub const USER_ID: usize = 256;
    /// `actor_name`.
    pub const ACTOR_NAME: usize = 256;
    /// `on_behalf_of`.
    pub const ON_BEHALF_OF: usize = 256;
    /// `resource_type`.
    pub const RESOURCE_TYPE: usize = 128;
    /// `resource_id`.
    pub const RESOURCE_ID: usize = 512;
    /// `resource_name`.
    pub const RESOURCE_NAME: usize = 512;
    /// `related_resources`: items.
    pub const RELATED_RESOURCES: usize = 16;
    /// `session_id`.
    pub const SESSION_ID: usize = 256;
    /// `request_id`.
    pub const REQUEST_ID: usize = 256;
    /// `trace_id`.
    pub const TRACE_ID: usize = 64;
    /// `user_agent`.
    pub const USER_AGENT: usize = 1024;
    /// `reason`.
    pub const REASON: usize = 1024;
    /// `before_state`, `after_state` and `metadata` together, in UTF-8 bytes.
    pub const RAW_JSON_BYTES: usize = crate::json::Json::MAX_BYTES;
    /// `before_state`, `after_state`, `metadata`: open objects and arrays within the value.
    pub const RAW_JSON_DEPTH: usize = audit_tlog::json::MAX_DEPTH;
}

/// Another target of the operation ("user U was added to group G").
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RelatedResource {
    /// Its type, at most [`limits::RESOURCE_TYPE`] characters, not empty.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its id, at most [`limits::RESOURCE_ID`] characters, not empty.
    pub id: String,
    /// Its name, at most [`limits::RESOURCE_NAME`] characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl RelatedResource {
    /// A target without a name.
    pub fn new(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            id: id.into(),
            name: None,
        }
    }

    /// Gives it a name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
}

/// The validated content of an event, and of an entry as it is read. After an erasure the fields of
/// the groups that are gone are absent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fields {
    /// The coarse operation.
    pub action_type: ActionType,
    /// The fine name, `noun.verb` by convention. It can't be erased: no personal data belongs in it.
    pub action: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How much attention it deserves.
    pub severity: Severity,
    /// The actor.
    pub user_id: Option<String>,
    /// What kind of actor.
    pub actor_type: Option<ActorType>,
    /// The actor's display name.
    pub actor_name: Option<String>,
    /// The impersonated or delegating principal.
    pub on_behalf_of: Option<String>,
    /// What was acted on: its type. Required of clients; absent once erased.
    pub resource_type: Option<String>,
    /// What was acted on: its id. Required of clients; absent once erased.
    pub resource_id: Option<String>,
    /// What was acted on: its name.
    pub resource_name: Option<String>,
    /// The other targets, in the order sent. Empty is absent.
    pub related_resources: Vec<RelatedResource>,
    /// The session.
    pub session_id: Option<String>,
    /// The request.
    pub request_id: Option<String>,
    /// The trace, W3C's by convention, unchecked.
    pub trace_id: Option<String>,
    /// The user agent.
    pub user_agent: Option<String>,
    /// From where. IPv4-mapped IPv6 addresses are IPv4.
    pub ip_address: Option<IpAddr>,
    /// Why.
    pub reason: Option<String>,
    /// The resource before.
    pub before_state: Option<Json>,
    /// The resource after.
    pub after_state: Option<Json>,
    /// Anything else.
    pub metadata: Option<Json>,
}

impl Fields {
    /// The bytes of its raw JSON: what may be large in an entry.
    pub fn raw_len(&self) -> usize {
        [&self.before_state, &self.after_state, &self.metadata]
            .into_iter()
            .flatten()
            .map(|json| json.as_str().len())
            .sum()
    }

    /// Fields with the defaults filled in: `action` is the action type in lower case, the outcome
    /// `success`, the severity `INFO`, all else absent.
    pub fn new(action_type: ActionType) -> Self {
        Self {
            action_type,
            action: action_type.as_str().to_ascii_lowercase(),
            outcome: Outcome::Success,
            severity: Severity::Info,
            user_id: None,
            actor_type: None,
            actor_name: None,
            on_behalf_of: None,
            resource_type: None,
            resource_id: None,
            resource_name: None,
            related_resources: Vec::new(),
            session_id: None,
            request_id: None,
            trace_id: None,
            user_agent: None,
            ip_address: None,
            reason: None,
            before_state: None,
            after_state: None,
            metadata: None,
        }
    }

    /// Whether anything is in one of these groups.
    pub(crate) fn has_any_of(&self, groups: &[Group]) -> bool {
        let mut groups = groups.iter();
        groups.any(|group| self.group_value(*group).is_some())
    }

    /// The value text of a group as the leaf format hashes it; none when nothing is in it.
    pub fn group_value(&self, group: Group) -> Option<String> {
        match group {
            Group::Actor => Actor {
                user_id: self.user_id.as_deref(),
                actor_type: self.actor_type.map(ActorType::as_str),
                actor_name: self.actor_name.as_deref(),
                on_behalf_of: self.on_behalf_of.as_deref(),
            }
            .value(),
            Group::Resource => {
                let related: Vec<Related<'_>> = self
                    .related_resources
                    .iter()
                    .map(|r| Related {
                        kind: &r.kind,
                        id: &r.id,
                        name: r.name.as_deref(),
                    })
                    .collect();
                Resource {
                    resource_type: self.resource_type.as_deref(),
                    resource_id: self.resource_id.as_deref(),
                    resource_name: self.resource_name.as_deref(),
                    related: &related,
                }
                .value()
            }
            Group::Context => {
                let ip = self.ip_address.map(print_ip);
                Context {
                    session_id: self.session_id.as_deref(),
                    request_id: self.request_id.as_deref(),
                    trace_id: self.trace_id.as_deref(),
                    user_agent: self.user_agent.as_deref(),
                    ip_address: ip.as_deref(),
                }
                .value()
            }
            Group::Reason => self.reason.as_deref().map(|reason| {
                let mut out = String::with_capacity(reason.len() + 2);
                text::write_string(&mut out, reason);
                out
            }),
            Group::BeforeState => self.before_state.as_ref().map(|j| j.as_str().to_owned()),
            Group::AfterState => self.after_state.as_ref().map(|j| j.as_str().to_owned()),
            Group::Metadata => self.metadata.as_ref().map(|j| j.as_str().to_owned()),
        }
    }

    /// Sets the fields of a group from its canonical value, as [`group_value`](Self::group_value) writes
    /// it. None, and fields that are set in part, for any other text.
    pub(crate) fn set_group(&mut self, group: Group, value: &str) -> Option<()> {
        let string = |raw: &str| Some(text::string(raw).ok()?.into_owned());
        match group {
            Group::Reason => self.reason = Some(string(value)?),
            Group::BeforeState => self.before_state = Some(Json::from_stored(value)),
            Group::AfterState => self.after_state = Some(Json::from_stored(value)),
            Group::Metadata => self.metadata = Some(Json::from_stored(value)),
            Group::Actor | Group::Resource | Group::Context => {
                for member in text::members(value).ok()? {
                    let raw = member.raw;
                    match (group, &*member.name) {
                        (Group::Actor, "user_id") => self.user_id = Some(string(raw)?),
                        (Group::Actor, "actor_type") => {
                            self.actor_type = Some(string(raw)?.parse().ok()?);
                        }
                        (Group::Actor, "actor_name") => self.actor_name = Some(string(raw)?),
                        (Group::Actor, "on_behalf_of") => self.on_behalf_of = Some(string(raw)?),
                        (Group::Resource, "resource_type") => {
                            self.resource_type = Some(string(raw)?);
                        }
                        (Group::Resource, "resource_id") => self.resource_id = Some(string(raw)?),
                        (Group::Resource, "resource_name") => {
                            self.resource_name = Some(string(raw)?);
                        }
                        (Group::Resource, "related_resources") => {
                            self.related_resources = Self::parse_related(raw).ok()?;
                        }
                        (Group::Context, "session_id") => self.session_id = Some(string(raw)?),
                        (Group::Context, "request_id") => self.request_id = Some(string(raw)?),
                        (Group::Context, "trace_id") => self.trace_id = Some(string(raw)?),
                        (Group::Context, "user_agent") => self.user_agent = Some(string(raw)?),
                        (Group::Context, "ip_address") => {
                            self.ip_address = Some(parse_ip(&string(raw)?)?);
                        }
                        _ => return None,
                    }
                }
            }
        }
        Some(())
    }

    /// The group that a field of this name is in; none of what can't be erased.
    pub(crate) fn group_of(name: &str) -> Option<Group> {
        Some(match name {
            "user_id" | "actor_type" | "actor_name" | "on_behalf_of" => Group::Actor,
            "resource_type" | "resource_id" | "resource_name" | "related_resources" => {
                Group::Resource
            }
            "session_id" | "request_id" | "trace_id" | "user_agent" | "ip_address" => {
                Group::Context
            }
            "reason" => Group::Reason,
            "before_state" => Group::BeforeState,
            "after_state" => Group::AfterState,
            "metadata" => Group::Metadata,
            _ => return None,
        })
    }

    /// Clears the fields of a group.
    pub fn clear(&mut self, group: Group) {
        match group {
            Group::Actor => {
                self.user_id = None;
                self.actor_type = None;
                self.actor_name = None;
                self.on_behalf_of = None;
            }
            Group::Resource => {
                self.resource_type = None;
                self.resource_id = None;
                self.resource_name = None;
                self.related_resources = Vec::new();
            }
            Group::Context => {
                self.session_id = None;
                self.request_id = None;
                self.trace_id = None;
                self.user_agent = None;
                self.ip_address = None;
            }
            Group::Reason => self.reason = None,
            Group::BeforeState => self.before_state = None,
            Group::AfterState => self.after_state = None,
            Group::Metadata => self.metadata = None,
        }
    }

    /// Writes the fields as JSON members, each preceded by a comma, in the order of the event's
    /// table; absent ones are left out. This is the form of responses, of streams and of the
    /// canonical request; `raw` writes raw JSON.
    pub(crate) fn write_members(&self, out: &mut String, raw: fn(&mut String, &str)) {
        text_member(out, "action_type", Some(self.action_type.as_str()));
        text_member(out, "action", Some(&self.action));
        text_member(out, "outcome", Some(self.outcome.as_str()));
        text_member(out, "severity", Some(self.severity.as_str()));
        text_member(out, "user_id", self.user_id.as_deref());
        text_member(out, "actor_type", self.actor_type.map(ActorType::as_str));
        text_member(out, "actor_name", self.actor_name.as_deref());
        text_member(out, "on_behalf_of", self.on_behalf_of.as_deref());
        text_member(out, "resource_type", self.resource_type.as_deref());
        text_member(out, "resource_id", self.resource_id.as_deref());
        text_member(out, "resource_name", self.resource_name.as_deref());
        if !self.related_resources.is_empty() {
            out.push_str(",\"related_resources\":");
            self.write_related(out);
        }
        text_member(out, "session_id", self.session_id.as_deref());
        text_member(out, "request_id", self.request_id.as_deref());
        text_member(out, "trace_id", self.trace_id.as_deref());
        text_member(out, "user_agent", self.user_agent.as_deref());
        text_member(out, "ip_address", self.ip_address.map(print_ip).as_deref());
        text_member(out, "reason", self.reason.as_deref());
        let states = [
            ("before_state", &self.before_state),
            ("after_state", &self.after_state),
            ("metadata", &self.metadata),
        ];
        for (name, value) in states {
            if let Some(value) = value {
                out.push_str(",\"");
                out.push_str(name);
                out.push_str("\":");
                raw(out, value.as_str());
            }
        }
    }

    /// Writes `related_resources` as the JSON array that the leaf format, the API and stores use.
    pub fn write_related(&self, out: &mut String) {
        out.push('[');
        for (i, related) in self.related_resources.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            out.push_str("{\"type\":");
            text::write_string(out, &related.kind);
            out.push_str(",\"id\":");
            text::write_string(out, &related.id);
            if let Some(name) = &related.name {
                out.push_str(",\"name\":");
                text::write_string(out, name);
            }
            out.push('}');
        }
        out.push(']');
    }

    /// Reads what [`write_related`](Self::write_related) wrote.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for any other text.
    pub fn parse_related(stored: &str) -> Result<Vec<RelatedResource>> {
        let mut faults = Vec::new();
        let related = parse_related(stored, &mut faults);
        if faults.is_empty() {
            Ok(related)
        } else {
            Err(Error::new(
                ErrorKind::Corrupt,
                "stored related_resources can't be read",
            ))
        }
    }

    /// Checks every limit and refusal, and adds a fault for each that is broken.
    pub(crate) fn validate(&self, reserved_action: bool, faults: &mut Vec<FieldFault>) {
        check_action(&self.action, reserved_action, faults);
        let texts = [
            ("user_id", self.user_id.as_deref(), limits::USER_ID),
            ("actor_name", self.actor_name.as_deref(), limits::ACTOR_NAME),
            (
                "on_behalf_of",
                self.on_behalf_of.as_deref(),
                limits::ON_BEHALF_OF,
            ),
            (
                "resource_type",
                self.resource_type.as_deref(),
                limits::RESOURCE_TYPE,
            ),
            (
                "resource_id",
                self.resource_id.as_deref(),
                limits::RESOURCE_ID,
            ),
            (
                "resource_name",
                self.resource_name.as_deref(),
                limits::RESOURCE_NAME,
            ),
            ("session_id", self.session_id.as_deref(), limits::SESSION_ID),
            ("request_id", self.request_id.as_deref(), limits::REQUEST_ID),
            ("trace_id", self.trace_id.as_deref(), limits::TRACE_ID),
            ("user_agent", self.user_agent.as_deref(), limits::USER_AGENT),
            ("reason", self.reason.as_deref(), limits::REASON),
        ];
        for (name, value, limit) in texts {
            if let Some(value) = value {
                check_text(name, value, limit, faults);
            }
        }
        for (name, value) in [
            ("resource_type", &self.resource_type),
            ("resource_id", &self.resource_id),
        ] {
            if value.as_deref().is_none_or(str::is_empty) {
                faults.push(FieldFault::new(name, "required, and not empty"));
            }
        }
        if self.related_resources.len() > limits::RELATED_RESOURCES {
            faults.push(FieldFault::new(
                "related_resources",
                format!("more than {} items", limits::RELATED_RESOURCES),
            ));
        }
        for related in &self.related_resources {
            for (name, value, limit, required) in [
                (
                    "type",
                    Some(related.kind.as_str()),
                    limits::RESOURCE_TYPE,
                    true,
                ),
                ("id", Some(related.id.as_str()), limits::RESOURCE_ID, true),
                (
                    "name",
                    related.name.as_deref(),
                    limits::RESOURCE_NAME,
                    false,
                ),
            ] {
                let Some(value) = value else { continue };
                if let Some(fault) = text_fault(value, limit) {
                    faults.push(FieldFault::new(
                        "related_resources",
                        format!("{name}: {fault}"),
                    ));
                } else if required && value.is_empty() {
                    faults.push(FieldFault::new(
                        "related_resources",
                        "type and id are required, and not empty",
                    ));
                }
            }
        }
        let bytes = self.raw_len();
        if bytes > limits::RAW_JSON_BYTES {
            faults.push(FieldFault::new(
                "metadata",
                format!(
                    "before_state, after_state and metadata together have {bytes} bytes, more than {}",
                    limits::RAW_JSON_BYTES
                ),
            ));
        }
    }
}

fn text_member(out: &mut String, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        out.push_str(",\"");
        out.push_str(name);
        out.push_str("\":");
        text::write_string(out, value);
    }
}

/// RFC 5952, IPv6 always in hexadecimal.
pub(crate) fn print_ip(ip: IpAddr) -> String {
    // The standard library follows RFC 5952 §4, and gives a dotted tail only to IPv4-mapped
    // addresses, which are IPv4 here already.
    ip.to_string()
}

/// Reads an address: no prefix, no zone, no leading zeros; an IPv4-mapped one becomes IPv4.
pub(crate) fn parse_ip(value: &str) -> Option<IpAddr> {
    value.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

pub(crate) fn text_fault(value: &str, limit: usize) -> Option<String> {
    // A text has at most as many characters as bytes, so most are never counted.
    if value.len() > limit && value.chars().count() > limit {
        return Some(format!("longer than {limit} characters"));
    }
    if value.as_bytes().contains(&0) {
        return Some(text::Fault::Nul.to_string());
    }
    None
}

fn check_text(name: &'static str, value: &str, limit: usize, faults: &mut Vec<FieldFault>) {
    if let Some(fault) = text_fault(value, limit) {
        faults.push(FieldFault::new(name, fault));
    }
}

pub(crate) fn check_action(action: &str, reserved: bool, faults: &mut Vec<FieldFault>) {
    let admitted = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    if action.is_empty() || action.len() > limits::ACTION || !action.bytes().all(admitted) {
        faults.push(FieldFault::new(
            "action",
            format!("1 to {} of A-Z a-z 0-9 . _ : / -", limits::ACTION),
        ));
    } else if !reserved && action.starts_with("log.") {
        faults.push(FieldFault::new(
            "action",
            "names that begin with log. are the log's own",
        ));
    }
}

/// An event that is about to be recorded, built fluently or read from JSON.
///
/// Nothing fails until it is recorded; then every bad field is reported at once.
///
/// ```
/// use audit_core::{Event, Severity};
///
/// let event = Event::update("invoice", "inv-1")
///     .action("invoice.approve")
///     .user("ann")
///     .severity(Severity::Warning)
///     .after(&serde_json::json!({"state": "approved"}))
///     .reason("quarterly close");
/// # let _ = event;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub(crate) id: Option<EventId>,
    pub(crate) tenant_id: Option<TenantId>,
    pub(crate) occurred_at: Option<Timestamp>,
    pub(crate) action_is_default: bool,
    pub(crate) fields: Fields,
    pub(crate) faults: Vec<FieldFault>,
    pub(crate) reserved_action: bool,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $variant:ident),* $(,)?) => {
        $($(#[$doc])*
        pub fn $name(resource_type: impl Into<String>, resource_id: impl Into<String>) -> Self {
            Self::new(ActionType::$variant, resource_type, resource_id)
        })*
    };
}

impl Event {
    /// An event of `action_type` on one resource.
    pub fn new(
        action_type: ActionType,
        resource_type: impl Into<String>,
        resource_id: impl Into<String>,
    ) -> Self {
        let mut fields = Fields::new(action_type);
        fields.resource_type = Some(resource_type.into());
        fields.resource_id = Some(resource_id.into());
        Self {
            id: None,
            tenant_id: None,
            occurred_at: None,
            action_is_default: true,
            fields,
            faults: Vec::new(),
            reserved_action: false,
        }
    }

    constructors! {
        /// Something came to be.
        create => Create,
        /// Something changed.
        update => Update,
        /// Something was removed.
        delete => Delete,
        /// Something was read.
        view => View,
        /// A session began.
        login => Login,
        /// A session ended.
        logout => Logout,
        /// A right was given.
        grant => Grant,
        /// A right was taken.
        revoke => Revoke,
        /// Something ran.
        execute => Execute,
        /// Data left.
        export => Export,
        /// None of these.
        other => Other,
    }

    /// The identity and idempotency key. Made (UUIDv7) when not given.
    #[must_use]
    pub fn id(mut self, id: EventId) -> Self {
        self.id = Some(id);
        self
    }

    /// When it happened. The time of acceptance when not given.
    #[must_use]
    pub fn occurred_at(mut self, at: Timestamp) -> Self {
        self.occurred_at = Some(at);
        self
    }

    /// The fine name, 1 to [`limits::ACTION`] of `A-Z a-z 0-9 . _ : / -`; `noun.verb` by convention.
    ///
    /// It can't be erased: no personal data belongs in it. `log.` at its start is the log's own.
    #[must_use]
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.fields.action = action.into();
        self.action_is_default = false;
        self
    }

    /// How it ended; `success` when not given.
    #[must_use]
    pub fn outcome(mut self, outcome: Outcome) -> Self {
        self.fields.outcome = outcome;
        self
    }

    /// How much attention it deserves; `INFO` when not given.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.fields.severity = severity;
        self
    }

    /// The actor.
    #[must_use]
    pub fn user(mut self, user_id: impl Into<String>) -> Self {
        self.fields.user_id = Some(user_id.into());
        self
    }

    /// What kind of actor; `user` when a user is set.
    #[must_use]
    pub fn actor_type(mut self, actor_type: ActorType) -> Self {
        self.fields.actor_type = Some(actor_type);
        self
    }

    /// The actor's display name.
    #[must_use]
    pub fn actor_name(mut self, name: impl Into<String>) -> Self {
        self.fields.actor_name = Some(name.into());
        self
    }

    /// The impersonated or delegating principal.
    #[must_use]
    pub fn on_behalf_of(mut self, principal: impl Into<String>) -> Self {
        self.fields.on_behalf_of = Some(principal.into());
        self
    }

    /// The resource's name.
    #[must_use]
    pub fn resource_name(mut self, name: impl Into<String>) -> Self {
        self.fields.resource_name = Some(name.into());
        self
    }

    /// Adds another target; at most [`limits::RELATED_RESOURCES`], order kept.
    #[must_use]
    pub fn related(mut self, resource: RelatedResource) -> Self {
        self.fields.related_resources.push(resource);
        self
    }

    /// The session.
    #[must_use]
    pub fn session_id(mut self, id: impl Into<String>) -> Self {
        self.fields.session_id = Some(id.into());
        self
    }

    /// The request.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.fields.request_id = Some(id.into());
        self
    }

    /// The trace.
    #[must_use]
    pub fn trace_id(mut self, id: impl Into<String>) -> Self {
        self.fields.trace_id = Some(id.into());
        self
    }

    /// The user agent.
    #[must_use]
    pub fn user_agent(mut self, agent: impl Into<String>) -> Self {
        self.fields.user_agent = Some(agent.into());
        self
    }

    /// From where. An IPv4-mapped IPv6 address becomes IPv4.
    #[must_use]
    pub fn ip_address(mut self, ip: IpAddr) -> Self {
        self.fields.ip_address = Some(ip.to_canonical());
        self
    }

    /// Why.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.fields.reason = Some(reason.into());
        self
    }

    /// The resource before, serialised now; a value that JSON can't hold is reported on recording.
    #[must_use]
    pub fn before<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        self.fields.before_state = self.raw("before_state", value);
        self
    }

    /// The resource after, serialised now; a value that JSON can't hold is reported on recording.
    #[must_use]
    pub fn after<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        self.fields.after_state = self.raw("after_state", value);
        self
    }

    /// Anything else, serialised now; a value that JSON can't hold is reported on recording.
    #[must_use]
    pub fn metadata<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        self.fields.metadata = self.raw("metadata", value);
        self
    }

    fn raw<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Option<Json> {
        match Json::from_value(value) {
            // An explicit null is the same as absent.
            Ok(json) => (!json.is_null()).then_some(json),
            Err(fault) => {
                self.faults.push(FieldFault::new(name, fault.to_string()));
                None
            }
        }
    }

    /// The id that it was given.
    pub fn given_id(&self) -> Option<EventId> {
        self.id
    }

    /// The tenant that it names.
    pub fn given_tenant_id(&self) -> Option<TenantId> {
        self.tenant_id
    }

    /// Checks it as recording does, for a caller that sends it elsewhere. The tenant is not looked at.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with every bad field.
    pub fn check(&self) -> Result<()> {
        let mut faults = self.faults.clone();
        self.fields.validate(self.reserved_action, &mut faults);
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Error::invalid(faults))
        }
    }

    /// Reads one event as a client sends it: one RFC 8259 object with the event's fields.
    ///
    /// An explicit `null` is the same as an absent field. Raw JSON is kept byte for byte.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] naming `body` where the text is not one JSON object, else
    /// [`ErrorKind::Invalid`] with every fault of the body: limits, unknown names and names that are
    /// not the client's to send, duplicate keys, NUL and lone surrogates.
    pub fn from_json(body: &str) -> Result<Self> {
        crate::parse::event(body)
    }

    /// Writes the event as a client would send it: the inverse of [`from_json`](Self::from_json).
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(512);
        out.push('{');
        let mut first = true;
        let mut member = |name: &str, value: String| {
            if !std::mem::take(&mut first) {
                out.push(',');
            }
            out.push('"');
            out.push_str(name);
            out.push_str("\":\"");
            out.push_str(&value);
            out.push('"');
        };
        if let Some(id) = self.id {
            member("id", id.to_string());
        }
        if let Some(tenant) = self.tenant_id {
            member("tenant_id", tenant.to_string());
        }
        if let Some(at) = self.occurred_at {
            member("occurred_at", at.to_string());
        }
        let mut members = String::with_capacity(512);
        self.fields
            .write_members(&mut members, |out, raw| out.push_str(raw));
        out.push_str(if first { &members[1..] } else { &members });
        out.push('}');
        out
    }
}

pub(crate) fn parse_related(raw: &str, faults: &mut Vec<FieldFault>) -> Vec<RelatedResource> {
    let mut fault = |detail: String| faults.push(FieldFault::new("related_resources", detail));
    if !raw.starts_with('[') {
        fault("an array is expected".into());
        return Vec::new();
    }
    let items = match text::items(raw) {
        Ok(items) => items,
        Err(e) => {
            fault(e.to_string());
            return Vec::new();
        }
    };
    if items.len() > limits::RELATED_RESOURCES {
        fault(format!("more than {} items", limits::RELATED_RESOURCES));
        return Vec::new();
    }
    let mut related = Vec::with_capacity(items.len());
    for item in items {
        let members = match text::members(item) {
            Ok(members) => members,
            Err(text::Fault::Syntax) => {
                fault("each item is an object with type, id and an optional name".into());
                continue;
            }
            Err(e) => {
                fault(e.to_string());
                continue;
            }
        };
        let (mut kind, mut id, mut name) = (None, None, None);
        let mut seen = [false; 3];
        let mut sound = true;
        for member in &members {
            let (slot, i) = match &*member.name {
                "type" => (&mut kind, 0),
                "id" => (&mut id, 1),
                "name" => (&mut name, 2),
                other => {
                    fault(format!("{other:?} is not a key that a client may send"));
                    sound = false;
                    continue;
                }
            };
            if std::mem::replace(&mut seen[i], true) {
                fault(text::Fault::DuplicateKey.to_string());
                sound = false;
            }
            if member.raw == "null" {
                continue;
            }
            if !member.raw.starts_with('"') {
                fault(format!("{}: a string is expected", member.name));
                sound = false;
                continue;
            }
            match text::string(member.raw) {
                Ok(value) => *slot = Some(value.into_owned()),
                Err(e) => {
                    fault(format!("{}: {e}", member.name));
                    sound = false;
                }
            }
        }
        if !sound {
            continue;
        }
        match (kind, id) {
            (Some(kind), Some(id)) => related.push(RelatedResource { kind, id, name }),
            _ => fault("type and id are required, and not empty".into()),
        }
    }
    related
}
