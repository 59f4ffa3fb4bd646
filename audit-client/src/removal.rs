//! Removing what must not be kept: pruning a log's prefix, erasing an entry.

use audit_core::{EventId, Result, Timestamp};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::tenants::json;
use crate::transport::{Call, Repeat, parse};

/// Up to when a prefix is pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneBound {
    /// What was accepted before this time.
    Before(Timestamp),
    /// What was accepted more than so many days ago.
    OlderThanDays(u32),
}

/// Which prefix of the log is to be pruned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PruneRequest {
    /// Up to when.
    pub bound: PruneBound,
    /// Only say what would go.
    pub dry_run: bool,
    /// Why, for the log's own entry.
    pub reason: Option<String>,
}

impl PruneRequest {
    /// Prunes up to this bound.
    pub fn new(bound: PruneBound) -> Self {
        Self {
            bound,
            dry_run: false,
            reason: None,
        }
    }

    /// Only says what would go.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Says why.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }
}

/// What was pruned, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PruneReport {
    /// The control entry that says so; none of a dry run, and when nothing was left to prune.
    #[serde(default)]
    pub id: Option<EventId>,
    /// The first position that is left.
    pub below: u64,
    /// How many entries went, or would go.
    pub entries: u64,
    /// Whether nothing was done.
    pub dry_run: bool,
}

/// What was erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ErasureReport {
    /// How many entries lost content; 0 when it was gone already.
    pub entries: u64,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    older_than_days: Option<u32>,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl Client {
    /// Prunes a prefix of the log. A repeat finds nothing left to prune.
    ///
    /// # Errors
    /// [`Refused`](audit_core::ErrorKind::Refused) when something protects it.
    pub async fn prune(&self, request: &PruneRequest) -> Result<PruneReport> {
        let (before, older_than_days) = match request.bound {
            PruneBound::Before(at) => (Some(at.to_string()), None),
            PruneBound::OlderThanDays(days) => (None, Some(days)),
        };
        let body = json(&Body {
            before,
            older_than_days,
            dry_run: request.dry_run,
            reason: request.reason.as_deref(),
        })?;
        let call = Call::new(Method::POST, "api/v1/prunes").json(body);
        parse(&self.answer(&call).await?.body)
    }

    /// Destroys all groups of one entry; its leaf stays, so every proof still holds. A repeat finds
    /// nothing left to erase.
    ///
    /// # Errors
    /// [`NotFound`](audit_core::ErrorKind::NotFound), [`Pruned`](audit_core::ErrorKind::Pruned).
    pub async fn erase(&self, id: EventId) -> Result<ErasureReport> {
        let call =
            Call::new(Method::DELETE, format!("api/v1/logs/cleanup/{id}")).repeat(Repeat::Safe);
        parse(&self.answer(&call).await?.body)
    }
}
