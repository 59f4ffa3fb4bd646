//! Errors as RFC 9457 problem details: the one place where the log's errors become HTTP.
//!
//! Each kind of problem has a stable `type`, a URI reference relative to the server, under which the
//! server explains it: `GET /problems/conflict`. Clients tell problems apart by `type`, never by
//! `title` or `detail`.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::time::Duration;

use audit_core::{Error, ErrorKind, EventId, FieldFault};
use poem::http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use poem::http::{HeaderValue, StatusCode};
use poem::{IntoResponse, Response};
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, Object};

use audit_core::tlog::json::write_string;

/// The media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";

macro_rules! problems {
    ($($variant:ident = $name:literal, $status:literal, $title:literal, $about:literal;)*) => {
        /// The kinds of problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ProblemKind { $(#[doc = $about] $variant),* }

        impl ProblemKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The last part of its `type`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The HTTP status that it is answered with.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),* }
            }

            /// Its `title`.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),* }
            }

            /// What it means and what to do.
            pub const fn about(self) -> &'static str {
                match self { $(Self::$variant => $about),* }
            }
        }
    };
}

problems! {
    Malformed = "malformed", 400, "The request can't be read",
        "The body is not what its media type says, a parameter is unknown or has a value that it can't have, or a cursor belongs to another list. `errors` names the place. Nothing was stored.";
    TenantRequired = "tenant-required", 400, "No tenant is named",
        "The credential belongs to no tenant and the request names none. Send X-Tenant-Id.";
    Unauthorized = "unauthorized", 401, "A valid credential is needed",
        "There is no credential, or it is unknown, expired, revoked, or signed with another key or algorithm.";
    Forbidden = "forbidden", 403, "Not allowed",
        "The credential lacks the permission, or belongs to another tenant than the one that is named.";
    TenantUnknown = "tenant-unknown", 403, "The credential's tenant does not exist",
        "The tenant that the credential names was never created here.";
    TenantClosed = "tenant-closed", 403, "The tenant is closed",
        "An inactive tenant takes no writes, a suspended one nothing at all.";
    NotFound = "not-found", 404, "There is no such thing",
        "Nothing has this address within the tenant. What belongs to another tenant is not found either.";
    MethodNotAllowed = "method-not-allowed", 405, "The method is not allowed here",
        "The header Allow names the methods of this address.";
    NotAcceptable = "not-acceptable", 406, "None of the accepted media types is available",
        "Streams come as text/event-stream or over a WebSocket.";
    TooSlow = "too-slow", 408, "The request took too long to arrive",
        "Its head or its body was not complete in time, and nothing was stored. The connection is closed.";
    Conflict = "conflict", 409, "The id is taken by other content",
        "Final: a retry can't succeed. An event of this id and other content was recorded before, or the id of a tenant is taken.";
    Refused = "refused", 409, "Something protects it",
        "A setting, a hold or a consumer that is behind protects what was to be changed.";
    Pruned = "pruned", 410, "The entry was pruned",
        "The entry was in the log and was pruned. `seq` is the position of the control entry that says so.";
    TenantDeleted = "tenant-deleted", 410, "The tenant was deleted",
        "The id of a deleted tenant is refused for ever.";
    TooLarge = "too-large", 413, "The body is too large",
        "A single event has at most 1 MiB, a bulk at most 1,000 items and 16 MiB, both after inflation too.";
    UnsupportedMediaType = "unsupported-media-type", 415, "The media type or encoding is not supported",
        "Events are application/json, a bulk also application/x-ndjson; encodings are gzip, zstd and identity.";
    Invalid = "invalid", 422, "Fields are refused",
        "One or more fields break a rule; `errors` names all of them. Nothing was stored.";
    RateLimited = "rate-limited", 429, "Too many requests",
        "Retry-After says when to go on; RateLimit-Policy names the limit.";
    Internal = "internal", 500, "The server failed",
        "A bug, or an engine's answer that makes no sense. The request id finds it in the server's log. Recording again by the same id is safe.";
    Corrupt = "corrupt", 500, "A stored entry is not what was sealed",
        "The stored entry differs from the hash that it was sealed with. An operator must look at it.";
    Unavailable = "unavailable", 503, "A part is away",
        "The store or another part is away or too busy. Recording again by the same id is safe.";
    StorageFull = "storage-full", 503, "The storage is full",
        "Nothing of this request was stored.";
}

impl ProblemKind {
    /// Its `type`: a URI reference relative to the server.
    pub fn uri(self) -> String {
        format!("/problems/{}", self.name())
    }
}

/// Where a fault lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A JSON pointer as a URI fragment (RFC 6901 §6) into the body.
    Pointer(String),
    /// A query or path parameter, or a header.
    Parameter(Cow<'static, str>),
    /// A line of an NDJSON body, from 1, and a pointer within it.
    Line(usize, String),
}

/// One fault that a problem names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    place: Place,
    detail: String,
}

/// A problem to be answered.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: ProblemKind,
    detail: String,
    faults: Vec<Fault>,
    seq: Option<u64>,
    event: Option<EventId>,
    retry_after: Option<Duration>,
    allow: Option<Box<str>>,
}

impl Problem {
    /// A problem of a kind; `detail` is a sentence about this occurrence.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            faults: Vec::new(),
            seq: None,
            event: None,
            retry_after: None,
            allow: None,
        }
    }

    /// A refused query parameter, path parameter or header.
    pub fn parameter(name: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        let name = name.into();
        let mut problem = Self::new(
            ProblemKind::Malformed,
            format!("the parameter {name} is refused"),
        );
        problem.faults.push(Fault {
            place: Place::Parameter(name),
            detail: detail.into(),
        });
        problem
    }

    /// A body that can't be read at all.
    pub fn body(detail: impl Into<String>) -> Self {
        let mut problem = Self::new(ProblemKind::Malformed, "the body can't be read");
        problem.faults.push(Fault {
            place: Place::Pointer("#".into()),
            detail: detail.into(),
        });
        problem
    }

    /// A refused field of the body.
    pub fn field(name: &str, detail: impl Into<String>) -> Self {
        let mut problem = Self::new(ProblemKind::Invalid, "fields are refused");
        problem.faults.push(Fault {
            place: Place::Pointer(pointer(None, name)),
            detail: detail.into(),
        });
        problem
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Names the methods that are allowed.
    #[must_use]
    pub fn allow(mut self, methods: String) -> Self {
        self.allow = Some(methods.into());
        self
    }

    /// Adds the faults of another problem of the same kind.
    pub fn absorb(&mut self, other: Self) {
        self.faults.extend(other.faults);
    }

    /// Whether it names any place.
    pub fn names_places(&self) -> bool {
        !self.faults.is_empty()
    }

    /// The faults as those of the fields of an object that is the field `name` of the body.
    #[must_use]
    pub fn within(mut self, name: &str) -> Self {
        for fault in &mut self.faults {
            if let Place::Pointer(inner) = &mut fault.place {
                *inner = format!("{}{}", pointer(None, name), inner.trim_start_matches('#'));
            }
        }
        self
    }

    /// The faults as those of query parameters.
    #[must_use]
    pub fn of_parameters(mut self) -> Self {
        for fault in &mut self.faults {
            if let Place::Pointer(pointer) = &fault.place {
                let name = pointer.trim_start_matches("#/").to_owned();
                fault.place = Place::Parameter(name.into());
            }
        }
        if self.kind == ProblemKind::Invalid {
            self.kind = ProblemKind::Malformed;
        }
        self
    }

    /// The faults as those of the lines of an NDJSON body: `lines[i]` is the line of item `i`.
    #[must_use]
    pub fn of_lines(mut self, lines: &[usize]) -> Self {
        for fault in &mut self.faults {
            if let Place::Pointer(pointer) = &fault.place {
                let path = pointer.trim_start_matches("#/");
                let (index, rest) = path.split_once('/').unwrap_or((path, ""));
                if let Some(line) = index.parse().ok().and_then(|i: usize| lines.get(i)) {
                    let within = if rest.is_empty() {
                        "#".into()
                    } else {
                        format!("#/{rest}")
                    };
                    fault.place = Place::Line(*line, within);
                }
            }
        }
        self
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.kind.status()
    }

    /// The kind.
    pub fn kind(&self) -> ProblemKind {
        self.kind
    }

    /// Appends its JSON form.
    pub fn write_json(&self, out: &mut String) {
        put!(
            out,
            "{{\"type\":\"{}\",\"title\":\"{}\",\"status\":{},\"detail\":",
            self.kind.uri(),
            self.kind.title(),
            self.status()
        );
        write_string(out, &self.detail);
        if let Some(seq) = self.seq {
            put!(out, ",\"seq\":{seq}");
        }
        if let Some(id) = self.event {
            put!(out, ",\"id\":\"{id}\"");
        }
        if !self.faults.is_empty() {
            out.push_str(",\"errors\":[");
            for (i, fault) in self.faults.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                match &fault.place {
                    Place::Pointer(pointer) => {
                        out.push_str("{\"pointer\":");
                        write_string(out, pointer);
                    }
                    Place::Parameter(name) => {
                        out.push_str("{\"parameter\":");
                        write_string(out, name);
                    }
                    Place::Line(line, pointer) => {
                        put!(out, "{{\"line\":{line},\"pointer\":");
                        write_string(out, pointer);
                    }
                }
                out.push_str(",\"detail\":");
                write_string(out, &fault.detail);
                out.push('}');
            }
            out.push(']');
        }
        out.push('}');
    }
}

/// A JSON pointer to a field, as a URI fragment; `body` is the whole.
fn pointer(index: Option<usize>, field: &str) -> String {
    let mut out = String::from("#");
    if let Some(index) = index {
        put!(out, "/{index}");
    }
    if field != "body" {
        out.push('/');
        for c in field.chars() {
            match c {
                '~' => out.push_str("~0"),
                '/' => out.push_str("~1"),
                c => out.push(c),
            }
        }
    }
    out
}

impl From<&FieldFault> for Fault {
    fn from(fault: &FieldFault) -> Self {
        Self {
            place: Place::Pointer(pointer(fault.index, &fault.field)),
            detail: fault.detail.clone(),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Malformed => ProblemKind::Malformed,
            ErrorKind::Invalid => ProblemKind::Invalid,
            ErrorKind::Conflict => ProblemKind::Conflict,
            ErrorKind::NotFound => ProblemKind::NotFound,
            ErrorKind::Pruned => ProblemKind::Pruned,
            ErrorKind::Forbidden => ProblemKind::Forbidden,
            ErrorKind::UnknownTenant => ProblemKind::TenantUnknown,
            ErrorKind::TenantClosed => ProblemKind::TenantClosed,
            ErrorKind::TenantDeleted => ProblemKind::TenantDeleted,
            ErrorKind::Refused => ProblemKind::Refused,
            ErrorKind::Unavailable => ProblemKind::Unavailable,
            ErrorKind::StorageFull => ProblemKind::StorageFull,
            ErrorKind::Corrupt => ProblemKind::Corrupt,
            _ => ProblemKind::Internal,
        };
        // What went wrong inside is for the server's log, not for the caller.
        let detail = match kind {
            ProblemKind::Internal | ProblemKind::Corrupt => {
                tracing::error!(error = %error, cause = ?error, "a request failed");
                kind.title().to_owned()
            }
            ProblemKind::Unavailable | ProblemKind::StorageFull => {
                tracing::warn!(error = %error, cause = ?error, "a request found a part away");
                // Says which part, and never holds the cause.
                error.message().to_owned()
            }
            ProblemKind::Invalid if !error.fields().is_empty() => "fields are refused".to_owned(),
            ProblemKind::Malformed if !error.fields().is_empty() => {
                "the request can't be read".to_owned()
            }
            _ => error.message().to_owned(),
        };
        Self {
            kind,
            detail,
            faults: error.fields().iter().map(Fault::from).collect(),
            seq: (kind == ProblemKind::Pruned)
                .then(|| error.position())
                .flatten(),
            // The id of a refused event is of no use: nothing was stored under it.
            event: error
                .event_id()
                .filter(|_| !matches!(kind, ProblemKind::Invalid | ProblemKind::Malformed)),
            retry_after: error
                .retry_after()
                .or((kind.status() == 503).then_some(Duration::from_secs(1))),
            allow: None,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = String::with_capacity(256);
        self.write_json(&mut body);
        let status =
            StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::builder().status(status).body(body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(after) = self.retry_after {
            let seconds = after.as_millis().div_ceil(1000).max(1);
            headers.insert(
                RETRY_AFTER,
                HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)),
            );
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::REQUEST_TIMEOUT {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(allow) = self.allow.and_then(|a| HeaderValue::from_str(&a).ok()) {
            headers.insert(ALLOW, allow);
        }
        response
    }
}

impl From<Problem> for poem::Error {
    fn from(problem: Problem) -> Self {
        Self::from_response(problem.into_response())
    }
}

/// Which statuses a group of routes refuses with.
pub trait Statuses: Send + Sync + 'static {
    /// The statuses, ascending.
    const STATUSES: &'static [u16];
}

/// What every tenant route may refuse with.
#[derive(Debug)]
pub struct Reading;
impl Statuses for Reading {
    const STATUSES: &'static [u16] = &[400, 401, 403, 404, 410, 429, 500, 503];
}

/// What a route with a body may refuse with.
#[derive(Debug)]
pub struct Writing;
impl Statuses for Writing {
    const STATUSES: &'static [u16] = &[
        400, 401, 403, 404, 408, 409, 410, 413, 415, 422, 429, 500, 503,
    ];
}

/// What a stream may refuse with.
#[derive(Debug)]
pub struct Streaming;
impl Statuses for Streaming {
    const STATUSES: &'static [u16] = &[400, 401, 403, 404, 406, 410, 429, 500, 503];
}

/// What a route without a credential may refuse with: a query, where it knows none.
#[derive(Debug)]
pub struct Probing;
impl Statuses for Probing {
    const STATUSES: &'static [u16] = &[400];
}

/// A problem as the answer of a route that documents the statuses of `S`.
#[derive(Debug)]
pub struct Refused<S>(Problem, PhantomData<S>);

impl<S, P: Into<Problem>> From<P> for Refused<S> {
    fn from(problem: P) -> Self {
        Self(problem.into(), PhantomData)
    }
}

impl<S> From<Refused<S>> for poem::Error {
    fn from(refused: Refused<S>) -> Self {
        refused.0.into()
    }
}

impl<S: Statuses> ApiResponse for Refused<S> {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: S::STATUSES.iter().map(|status| refusal(*status)).collect(),
        }
    }

    fn register(registry: &mut Registry) {
        ProblemDetails::register(registry);
    }
}

/// The documentation of one refusal.
pub(crate) fn refusal(status: u16) -> MetaResponse {
    let description = match status {
        400 => "The request can't be read",
        401 => "A valid credential is needed",
        403 => "Not allowed",
        404 => "There is no such thing within the tenant",
        406 => "None of the accepted media types is available",
        409 => "A conflict; final",
        410 => "The entry was pruned, or the tenant was deleted",
        413 => "The body is too large",
        415 => "The media type or encoding is not supported",
        422 => "Fields are refused",
        429 => "Too many requests",
        500 => "The server failed",
        _ => "A part is away",
    };
    MetaResponse {
        description,
        status: Some(status),
        status_range: None,
        content: vec![MetaMediaType {
            content_type: MEDIA_TYPE,
            schema: MetaSchemaRef::Reference(ProblemDetails::name().into_owned()),
        }],
        headers: Vec::new(),
    }
}

/// Problem details (RFC 9457).
#[derive(Debug, Object)]
#[oai(rename = "Problem")]
pub struct ProblemDetails {
    /// Which kind of problem, `/problems/<name>`; stable.
    #[oai(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This occurrence in words.
    pub detail: String,
    /// Of a pruned entry: the position of the control entry that says so.
    #[oai(skip_serializing_if_is_none)]
    pub seq: Option<u64>,
    /// The event that it is about: which one conflicts, or by which id to try again.
    #[oai(skip_serializing_if_is_none)]
    pub id: Option<uuid::Uuid>,
    /// The places of the request that are refused.
    #[oai(skip_serializing_if_is_none)]
    pub errors: Option<Vec<ProblemPlace>>,
}

/// A place of the request that is refused. One of `pointer`, `parameter` or `line` is present.
#[derive(Debug, Object)]
pub struct ProblemPlace {
    /// A JSON pointer into the body, as a URI fragment: `#/17/ip_address`.
    #[oai(skip_serializing_if_is_none)]
    pub pointer: Option<String>,
    /// A query or path parameter, or a header.
    #[oai(skip_serializing_if_is_none)]
    pub parameter: Option<String>,
    /// A line of an NDJSON body, from 1; `pointer` is then within the line.
    #[oai(skip_serializing_if_is_none)]
    pub line: Option<u64>,
    /// What is wrong.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(problem: &Problem) -> String {
        let mut out = String::new();
        problem.write_json(&mut out);
        out
    }

    #[test]
    fn faults_name_their_place() {
        let error = Error::invalid(vec![FieldFault::new("ip_address", "no").at(17)]);
        let problem = Problem::from(error);
        assert!(json(&problem).contains(r##""pointer":"#/17/ip_address""##));
        let lines: Vec<usize> = (0..20).map(|i| i * 2 + 1).collect();
        assert!(
            json(&problem.of_lines(&lines)).contains(r##""line":35,"pointer":"#/ip_address""##)
        );
        let odd = Problem::from(Error::field("a/b~c", "no"));
        assert!(json(&odd).contains(r##""pointer":"#/a~1b~0c""##));
    }

    #[test]
    fn inner_causes_stay_inside() {
        let error = Error::new(ErrorKind::Internal, "table events has no column x");
        assert!(!json(&Problem::from(error)).contains("column"));
    }
}
