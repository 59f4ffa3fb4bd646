//! Tenants, for administrators.

use audit_core::{Result, TenantFilter, TenantId, TenantStatus, TenantUpdate};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use reqwest::Method;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::client::Client;
use crate::transport::{Call, Repeat, parse};

/// A tenant as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its name; need not be unique.
    pub name: String,
    /// Its status.
    #[serde(serialize_with = "write_status", deserialize_with = "read_status")]
    pub status: TenantStatus,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// Whether its log's checkpoints, key and tiles are served without a credential; false from a server
    /// that doesn't know of it.
    #[serde(default)]
    pub public_log: bool,
    /// That it is about to be deleted; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<TenantEnding>,
    /// What is left of it, of a deleted one; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<Tombstone>,
}

/// The end of a tenant that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TenantEnding {
    /// When it was asked for, RFC 3339.
    pub requested_at: String,
    /// Whether what is left of the log is archived first.
    pub archived: bool,
}

/// What is left of a deleted tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tombstone {
    /// When it was deleted, RFC 3339.
    pub ended_at: String,
    /// How many entries its log had.
    pub size: u64,
    /// The root of the tree over all of them, base64.
    pub root: String,
    /// Under which name its checkpoints were signed.
    pub origin: Option<String>,
    /// The last checkpoint, which covers the whole log: a C2SP signed note.
    pub checkpoint: Option<String>,
    /// How many events went with it that had been accepted and were never appended; none until its rows are
    /// gone, where nobody counted, and from a server that doesn't know of it.
    #[serde(default)]
    pub unappended: Option<u64>,
}

/// One page of tenants, in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct TenantPage {
    /// The tenants.
    #[serde(rename = "data")]
    pub items: Vec<Tenant>,
    /// Where the next page begins; none at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn write_status<S: Serializer>(status: &TenantStatus, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(status.as_str())
}

fn read_status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TenantStatus, D::Error> {
    String::deserialize(deserializer)?
        .parse()
        .map_err(de::Error::custom)
}

#[derive(Serialize)]
struct Create<'a> {
    id: TenantId,
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    public_log: bool,
}

#[derive(Serialize)]
struct Change<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_log: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl Client {
    /// Creates a tenant. Its id is made here when none is given.
    ///
    /// # Errors
    /// [`Conflict`](audit_core::ErrorKind::Conflict) when the id is taken,
    /// [`TenantDeleted`](audit_core::ErrorKind::TenantDeleted) when it was a deleted tenant's.
    pub async fn create_tenant(&self, id: Option<TenantId>, name: &str) -> Result<Tenant> {
        self.make_tenant(id, name, false).await
    }

    /// Creates a tenant whose log's checkpoints, key and tiles are served without a credential.
    ///
    /// # Errors
    /// As for [`create_tenant`](Self::create_tenant).
    pub async fn create_public_tenant(&self, id: Option<TenantId>, name: &str) -> Result<Tenant> {
        self.make_tenant(id, name, true).await
    }

    async fn make_tenant(
        &self,
        id: Option<TenantId>,
        name: &str,
        public_log: bool,
    ) -> Result<Tenant> {
        let id = id.unwrap_or_else(|| self.shared.clock.event_id().into_uuid().into());
        let body = json(&Create {
            id,
            name,
            public_log,
        })?;
        parse(
            &self
                .answer(&Call::new(Method::POST, "api/v1/tenants").json(body))
                .await?
                .body,
        )
    }

    /// One tenant.
    ///
    /// # Errors
    /// [`NotFound`](audit_core::ErrorKind::NotFound) when there is none.
    pub async fn get_tenant(&self, id: TenantId) -> Result<Tenant> {
        parse(
            &self
                .answer(&Call::new(Method::GET, format!("api/v1/tenants/{id}")))
                .await?
                .body,
        )
    }

    /// One page of tenants; `cursor` is the page before's.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn tenants(&self, filter: &TenantFilter, cursor: Option<&str>) -> Result<TenantPage> {
        let mut query = Vec::new();
        if let Some(name) = &filter.name {
            query.push(("name", name.clone()));
        }
        if let Some(status) = filter.status {
            query.push(("status", status.to_string()));
        }
        if let Some(cursor) = cursor {
            query.push(("cursor", cursor.to_owned()));
        }
        parse(
            &self
                .answer(&Call::new(Method::GET, "api/v1/tenants").query(query))
                .await?
                .body,
        )
    }

    /// All tenants that the filter shows, page by page. The stream ends after the first error.
    pub fn all_tenants(&self, filter: TenantFilter) -> BoxStream<'static, Result<Tenant>> {
        let client = self.clone();
        let pages = stream::unfold(Some(None::<String>), move |cursor| {
            let client = client.clone();
            let filter = filter.clone();
            async move {
                match client.tenants(&filter, cursor?.as_deref()).await {
                    Ok(page) => {
                        let next = page.next_cursor.map(Some);
                        Some((page.items.into_iter().map(Ok).collect::<Vec<_>>(), next))
                    }
                    Err(error) => Some((vec![Err(error)], None)),
                }
            }
        });
        pages.flat_map(stream::iter).boxed()
    }

    /// Changes a tenant; its log says so, with the reason.
    ///
    /// # Errors
    /// [`NotFound`](audit_core::ErrorKind::NotFound) when there is none.
    pub async fn update_tenant(
        &self,
        id: TenantId,
        update: &TenantUpdate,
        reason: Option<&str>,
    ) -> Result<Tenant> {
        let body = json(&Change {
            name: update.name.as_deref(),
            status: update.status.map(TenantStatus::as_str),
            public_log: update.public_log,
            reason,
        })?;
        let call = Call::new(Method::PATCH, format!("api/v1/tenants/{id}"))
            .repeat(Repeat::IfNotDone)
            .json(body);
        parse(&self.answer(&call).await?.body)
    }

    /// Asks for the end of a tenant, which goes on without the caller: [`get_tenant`](Self::get_tenant)
    /// shows when it is done. Its log takes no more, its evidence is archived when `archive` says so, and
    /// everything of it goes but a tombstone. It can't be taken back. Asking again changes nothing.
    ///
    /// # Errors
    /// [`NotFound`](audit_core::ErrorKind::NotFound) when there is none;
    /// [`Refused`](audit_core::ErrorKind::Refused) while a legal hold is open, and with `archive` when the
    /// server has none.
    pub async fn end_tenant(
        &self,
        id: TenantId,
        archive: bool,
        reason: Option<&str>,
    ) -> Result<Tenant> {
        let mut query = Vec::new();
        if !archive {
            query.push(("archive", "none".to_owned()));
        }
        if let Some(reason) = reason {
            query.push(("reason", reason.to_owned()));
        }
        let call = Call::new(Method::DELETE, format!("api/v1/tenants/{id}")).query(query);
        parse(&self.answer(&call).await?.body)
    }
}

pub(crate) fn json<T: Serialize>(body: &T) -> Result<String> {
    serde_json::to_string(body).map_err(|e| {
        audit_core::Error::new(
            audit_core::ErrorKind::Internal,
            "a request can't be written",
        )
        .with_source(e)
    })
}
