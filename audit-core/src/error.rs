//! The one error type.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::id::{EventId, TenantId};

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the terms that a caller acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The text is not what it should be at all: not JSON, not a cursor. Nothing was stored.
    Malformed,
    /// One or more fields are refused; [`Error::fields`] names them. Nothing was stored.
    Invalid,
    /// The id is taken by an event with other content. Final: a retry can't succeed.
    Conflict,
    /// There is no such thing within this tenant.
    NotFound,
    /// It was there, and was pruned; [`Error::position`] is the `seq` of the control entry that says so.
    Pruned,
    /// The scope lacks the permission.
    Forbidden,
    /// The tenant does not exist.
    UnknownTenant,
    /// The tenant's status refuses this: inactive ones take no writes, suspended ones nothing.
    TenantClosed,
    /// The tenant was deleted; its id is refused for ever.
    TenantDeleted,
    /// Something that is configured or protected refuses it: a hold, a required consumer behind.
    Refused,
    /// A part is away or too busy, or its clock is behind. [`Error::is_retryable`] is true.
    Unavailable,
    /// The storage is full, and nothing of this call was stored.
    StorageFull,
    /// A stored entry differs from the hash it was sealed with.
    Corrupt,
    /// A bug or an engine's answer that makes no sense.
    Internal,
}

/// One refused field, parameter or body.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldFault {
    /// Position in the list that was sent, from 0; none for a single event.
    pub index: Option<usize>,
    /// The field's name; `body` where the text is not one JSON object.
    pub field: Cow<'static, str>,
    /// What is wrong, with the limit where there is one.
    pub detail: String,
}

impl FieldFault {
    /// A fault of `field` in a single event.
    pub fn new(field: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self {
            index: None,
            field: field.into(),
            detail: detail.into(),
        }
    }

    /// The same fault at position `index` of a list.
    #[must_use]
    pub fn at(mut self, index: usize) -> Self {
        self.index = Some(index);
        self
    }
}

impl fmt::Display for FieldFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, "[{index}] ")?;
        }
        write!(f, "{}: {}", self.field, self.detail)
    }
}

/// The error of every trait and method here. Cheap to clone: one failed commit reaches many waiters.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    fields: Vec<FieldFault>,
    retry_after: Option<Duration>,
    event_id: Option<EventId>,
    tenant: Option<TenantId>,
    position: Option<u64>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` is one clause in lower case without the cause, which is
    /// [`with_source`](Self::with_source)'s.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            fields: Vec::new(),
            retry_after: None,
            event_id: None,
            tenant: None,
            position: None,
            source: None,
        }))
    }

    /// Refused fields. An empty list still is an error of kind [`ErrorKind::Invalid`].
    pub fn invalid(fields: Vec<FieldFault>) -> Self {
        let mut error = Self::new(ErrorKind::Invalid, "refused");
        error.inner().fields = fields;
        error
    }

    /// One refused field.
    pub fn field(field: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::invalid(vec![FieldFault::new(field, detail)])
    }

    /// The stored entry at `seq` is not what was sealed.
    pub fn corrupt(tenant: TenantId, seq: u64) -> Self {
        let mut error = Self::new(
            ErrorKind::Corrupt,
            "the stored entry differs from the hash it was sealed with",
        );
        error.inner().tenant = Some(tenant);
        error.inner().position = Some(seq);
        error
    }

    fn inner(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.0)
    }

    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.inner().kind = kind;
        self
    }

    /// Names the refused fields, for an error of another kind than [`ErrorKind::Invalid`] too.
    #[must_use]
    pub fn with_fields(mut self, fields: Vec<FieldFault>) -> Self {
        self.inner().fields = fields;
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.inner().source = Some(Arc::new(source));
        self
    }

    /// Says when a retry may work.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.inner().retry_after = Some(after);
        self
    }

    /// Names the event, so that an unknown outcome can be retried by its id.
    #[must_use]
    pub fn with_event_id(mut self, id: EventId) -> Self {
        self.inner().event_id = Some(id);
        self
    }

    /// Names a position in the tenant's log.
    #[must_use]
    pub fn with_position(mut self, seq: u64) -> Self {
        self.inner().position = Some(seq);
        self
    }

    /// Names the tenant.
    #[must_use]
    pub fn with_tenant(mut self, tenant: TenantId) -> Self {
        self.inner().tenant = Some(tenant);
        self
    }

    /// Gives the refused fields their position in a list.
    #[must_use]
    pub fn at_index(mut self, index: usize) -> Self {
        for fault in &mut self.inner().fields {
            fault.index = Some(index);
        }
        self
    }

    /// Takes the position in a list from the refused fields.
    pub(crate) fn without_index(mut self) -> Self {
        for fault in &mut self.inner().fields {
            fault.index = None;
        }
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later. Recording again by the same id is always safe.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unavailable | ErrorKind::StorageFull)
    }

    /// When a retry may work, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The refused fields; empty unless the kind is [`ErrorKind::Invalid`] or [`ErrorKind::Malformed`].
    pub fn fields(&self) -> &[FieldFault] {
        &self.0.fields
    }

    /// The event that this is about.
    pub fn event_id(&self) -> Option<EventId> {
        self.0.event_id
    }

    /// The tenant that this is about.
    pub fn tenant(&self) -> Option<TenantId> {
        self.0.tenant
    }

    /// The position in the tenant's log that this is about.
    pub fn position(&self) -> Option<u64> {
        self.0.position
    }

    /// The message without fields and cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        for (i, fault) in self.0.fields.iter().enumerate() {
            write!(f, "{}{fault}", if i == 0 { ": " } else { "; " })?;
        }
        if let (Some(tenant), Some(seq)) = (self.0.tenant, self.0.position) {
            write!(f, " (tenant {tenant}, seq {seq})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Error");
        s.field("kind", &self.0.kind)
            .field("message", &self.0.message);
        if !self.0.fields.is_empty() {
            s.field("fields", &self.0.fields);
        }
        if let Some(source) = &self.0.source {
            s.field("source", source);
        }
        s.finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|s| s as &(dyn StdError + 'static))
    }
}
