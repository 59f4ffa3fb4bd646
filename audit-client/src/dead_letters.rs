//! What the queue and the outbox gave up, for administrators.

use audit_core::{EventId, Result, TenantId};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::tenants::json;
use crate::transport::{Call, parse};

/// Where a message was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Source {
    /// The queue.
    Queue,
    /// The outbox.
    Outbox,
}

/// A message that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Where.
    pub source: Source,
    /// What to redrive it by.
    pub handle: String,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The event that it is about.
    pub id: EventId,
    /// Why it was given up.
    pub reason: String,
    /// When, RFC 3339.
    pub at: String,
}

#[derive(Deserialize)]
struct Listed {
    data: Vec<DeadLetter>,
}

#[derive(Serialize)]
struct Which<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handles: Option<&'a [String]>,
}

#[derive(Deserialize)]
struct Redriven {
    redriven: u64,
}

impl Client {
    /// The dead letters, oldest first.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        let answer = self
            .answer(&Call::new(Method::GET, "api/v1/admin/dead-letters"))
            .await?;
        parse::<Listed>(&answer.body).map(|listed| listed.data)
    }

    /// Sends dead letters again: all of them, those of a source, or those of a source that are named
    /// by handle. Returns how many.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn redrive(&self, source: Option<Source>, handles: Option<&[String]>) -> Result<u64> {
        let call = Call::new(Method::POST, "api/v1/admin/dead-letters/redrive")
            .json(json(&Which { source, handles })?);
        parse::<Redriven>(&self.answer(&call).await?.body).map(|r| r.redriven)
    }
}
