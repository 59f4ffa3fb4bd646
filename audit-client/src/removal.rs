//! Removing what must not be kept: pruning a log's prefix, erasing entries.

use audit_core::{
    ErasureCount, ErasureId, ErasureRequest, Error, ErrorKind, EventId, Result, Selection,
    Timestamp,
};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

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
    /// The erasure, when the server goes on with it behind its answer: [`Client::erasure`] tells how far it
    /// is, and `entries` is what it has come to so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<ErasureStatus>,
}

/// How far an erasure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErasureState {
    /// A worker of the server is at it, or will be.
    Running,
    /// All that was selected is erased.
    Done,
}

/// An erasure that was asked for, and how far it is. It never says whom it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ErasureStatus {
    /// Its id.
    pub id: ErasureId,
    /// How far it is.
    pub state: ErasureState,
    /// When it was asked for, RFC 3339.
    pub requested_at: String,
    /// The log's size then: entries at this position and later are not touched.
    pub below: u64,
    /// Where it goes on: a position of the log, or how many of the ids it is through with.
    pub next: u64,
    /// Where `next` ends.
    pub end: u64,
    /// How many entries lost content so far.
    pub entries: u64,
    /// The groups that are destroyed.
    pub groups: Vec<String>,
    /// On what grounds.
    pub basis: String,
    /// Who asked.
    pub user_id: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it last failed with; the server tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

#[derive(Deserialize)]
struct Counted {
    matching: u64,
    erasable: u64,
}

#[derive(Serialize)]
struct ErasureBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<&'a [EventId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<Box<RawValue>>,
    groups: Vec<&'static str>,
    basis: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    dry_run: bool,
}

impl<'a> ErasureBody<'a> {
    fn json(request: &'a ErasureRequest, dry_run: bool) -> Result<String> {
        let (ids, filter) = match &request.selection {
            Selection::Ids(ids) => (Some(ids.as_slice()), None),
            Selection::Matching(filter) => (None, Some(filter.to_json())),
            _ => (None, None),
        };
        let raw = filter.map(RawValue::from_string).transpose();
        json(&Self {
            ids,
            filter: raw.map_err(|e| {
                Error::new(ErrorKind::Internal, "a filter can't be written").with_source(e)
            })?,
            groups: request.groups.iter().map(|g| g.as_str()).collect(),
            basis: request.basis.as_str(),
            reason: request.reason.as_deref(),
            dry_run,
        })
    }
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
    /// nothing left to erase. What takes the server longer than its answer may goes on behind it.
    ///
    /// # Errors
    /// [`NotFound`](audit_core::ErrorKind::NotFound), [`Pruned`](audit_core::ErrorKind::Pruned);
    /// [`Refused`](audit_core::ErrorKind::Refused) while a legal hold is open.
    pub async fn erase_entry(&self, id: EventId) -> Result<ErasureReport> {
        let call =
            Call::new(Method::DELETE, format!("api/v1/logs/cleanup/{id}")).repeat(Repeat::Safe);
        let answer = self.answer(&call).await?;
        if answer.status != StatusCode::ACCEPTED {
            return parse(&answer.body);
        }
        let running: ErasureStatus = parse(&answer.body)?;
        Ok(ErasureReport {
            entries: running.entries,
            running: Some(running),
        })
    }

    /// Asks for an erasure, which the server carries out step by step: [`erasure`](Self::erasure)
    /// tells how far it is. What it selects and has erased before is passed over.
    ///
    /// # Errors
    /// [`Invalid`](audit_core::ErrorKind::Invalid) with the bad field.
    pub async fn erase(&self, request: &ErasureRequest) -> Result<ErasureStatus> {
        request.check()?;
        let body = ErasureBody::json(request, false)?;
        let call = Call::new(Method::POST, "api/v1/erasures").json(body);
        parse(&self.answer(&call).await?.body)
    }

    /// What an erasure would do, without doing it.
    ///
    /// # Errors
    /// As [`erase`](Self::erase).
    pub async fn count_erasure(&self, request: &ErasureRequest) -> Result<ErasureCount> {
        request.check()?;
        let body = ErasureBody::json(request, true)?;
        let call = Call::new(Method::POST, "api/v1/erasures")
            .json(body)
            .repeat(Repeat::Safe);
        let counted: Counted = parse(&self.answer(&call).await?.body)?;
        Ok(ErasureCount::new(counted.matching, counted.erasable))
    }

    /// How far an erasure is.
    ///
    /// # Errors
    /// [`NotFound`](audit_core::ErrorKind::NotFound).
    pub async fn erasure(&self, id: ErasureId) -> Result<ErasureStatus> {
        let call = Call::new(Method::GET, format!("api/v1/erasures/{id}"));
        parse(&self.answer(&call).await?.body)
    }
}
