//! What OpenSearch's errors mean to a caller.

use std::time::Duration;

use audit_core::{Error, ErrorKind};
use serde::Deserialize;

/// When to try again, where the server doesn't say.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An answer that isn't what was asked for. It names no value: reasons quote documents.
#[derive(Debug, thiserror::Error)]
#[error("status {status} ({})", .kind.as_deref().unwrap_or("no type"))]
pub(crate) struct Fault {
    status: u16,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    error: Option<Cause>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Cause {
    Structured {
        #[serde(rename = "type")]
        kind: Option<String>,
        #[serde(default)]
        root_cause: Vec<RootCause>,
    },
    Text(#[allow(dead_code)] String),
}

#[derive(Deserialize)]
struct RootCause {
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl Fault {
    pub(crate) fn new(status: u16, kind: Option<String>) -> Self {
        Self { status, kind }
    }

    pub(crate) fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn read(status: u16, body: &[u8]) -> Self {
        let cause = serde_json::from_slice::<Body>(body)
            .ok()
            .and_then(|body| body.error);
        let kind = match cause {
            Some(Cause::Structured {
                kind,
                mut root_cause,
            }) => root_cause.pop().and_then(|root| root.kind).or(kind),
            Some(Cause::Text(_)) | None => None,
        };
        Self { status, kind }
    }

    /// Whether an index or alias isn't there.
    pub(crate) fn is_missing_index(&self) -> bool {
        let kind = self.kind.as_deref();
        matches!(
            kind,
            Some("index_not_found_exception" | "aliases_not_found_exception")
        )
    }

    pub(crate) fn is_taken(&self) -> bool {
        let kind = self.kind.as_deref();
        matches!(
            kind,
            Some("resource_already_exists_exception" | "invalid_index_name_exception")
        )
    }

    /// The error that a caller is shown.
    pub(crate) fn into_error(self, retry_after: Option<Duration>) -> Error {
        let (kind, message) = match self.status {
            401 | 403 => (
                ErrorKind::Unavailable,
                "OpenSearch refuses the credentials, or the index is blocked",
            ),
            408 | 429 | 500.. => (ErrorKind::Unavailable, "OpenSearch is away or too busy"),
            _ => (ErrorKind::Internal, "OpenSearch refused a request"),
        };
        let error = Error::new(kind, message).with_source(self);
        match kind {
            ErrorKind::Unavailable => error.with_retry_after(retry_after.unwrap_or(RETRY_AFTER)),
            _ => error,
        }
    }
}

/// Whether the error came from one index or shard, of a cluster that otherwise answers: it is red, is
/// blocked, can't be made any more, or refused one document.
pub(crate) fn is_partial(error: &Error) -> bool {
    let fault = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Fault>());
    fault.is_some_and(|fault| {
        let kind = fault.kind.as_deref();
        // Of a queue that is full, a breaker that is open, or a master that is away all indexes have
        // their part.
        !matches!(
            kind,
            None | Some(
                "circuit_breaking_exception"
                    | "cluster_manager_not_discovered_exception"
                    | "master_not_discovered_exception"
                    | "opensearch_security_exception"
                    | "security_exception"
            )
        ) && fault.status != 401
    })
}

/// OpenSearch couldn't be reached, or didn't answer to the end.
pub(crate) fn away(error: opensearch::Error) -> Error {
    let message = match error.is_timeout() {
        true => "OpenSearch did not answer in time",
        false => "OpenSearch can't be reached",
    };
    Error::new(ErrorKind::Unavailable, message)
        .with_source(error)
        .with_retry_after(RETRY_AFTER)
}

/// The index that this worked on is not the one in use any more: it was swapped, or deleted.
pub(crate) fn moved() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the search index was replaced meanwhile: ask again how far it is",
    )
    .with_retry_after(Duration::from_millis(100))
}

/// An answer that can't be read.
pub(crate) fn nonsense(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Internal, "OpenSearch's answer makes no sense").with_source(error)
}
