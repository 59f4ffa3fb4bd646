//! API keys of a tenant.

use std::fmt;

use audit_core::{Result, Role, TenantId, Timestamp};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::client::Client;
use crate::tenants::json;
use crate::transport::{Call, Repeat, parse};

/// An API key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ApiKey {
    /// Its id.
    pub id: Uuid,
    /// The tenant that it belongs to.
    pub tenant_id: TenantId,
    /// What it is for.
    pub name: String,
    /// Its role.
    pub role: String,
    /// What it may do: permissions as in a token's `scope`.
    pub scope: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// From when on it is refused; none never.
    #[serde(default)]
    pub expires_at: Option<String>,
    /// When it was last used, to about a minute; none never.
    #[serde(default)]
    pub last_used_at: Option<String>,
}

/// A key that was just made: the only time that its secret is shown. `Debug` doesn't show it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct IssuedKey {
    /// The key.
    #[serde(flatten)]
    pub key: ApiKey,
    /// Its secret, to be used as a token.
    #[serde(rename = "key")]
    pub secret: String,
}

impl fmt::Debug for IssuedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedKey")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// What key is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewKey {
    /// What it is for, at most 256 characters.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// From when on it is refused; none never.
    pub expires_at: Option<Timestamp>,
}

impl NewKey {
    /// A key that never expires.
    pub fn new(name: impl Into<String>, role: Role) -> Self {
        Self {
            name: name.into(),
            role,
            expires_at: None,
        }
    }

    /// Is refused from this time on.
    #[must_use]
    pub fn expires_at(mut self, at: Timestamp) -> Self {
        self.expires_at = Some(at);
        self
    }
}

#[derive(Serialize)]
struct Create<'a> {
    name: &'a str,
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

/// One page of keys, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct KeyPage {
    /// The keys.
    #[serde(rename = "data")]
    pub items: Vec<ApiKey>,
    /// Where the next page begins; none at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

impl Client {
    /// Makes a key. It is not repeated after a cut connection: list the keys then.
    ///
    /// # Errors
    /// [`Forbidden`](audit_core::ErrorKind::Forbidden) for a role that may do more than the caller.
    pub async fn create_key(&self, key: &NewKey) -> Result<IssuedKey> {
        let body = json(&Create {
            name: &key.name,
            role: key.role.as_str(),
            expires_at: key.expires_at.map(|at| at.to_string()),
        })?;
        parse(
            &self
                .answer(&Call::new(Method::POST, "api/v1/api-keys").json(body))
                .await?
                .body,
        )
    }

    /// One page of the tenant's keys; `cursor` is the page before's.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn keys(&self, cursor: Option<&str>) -> Result<KeyPage> {
        let query = cursor.map(|cursor| ("cursor", cursor.to_owned()));
        let call = Call::new(Method::GET, "api/v1/api-keys").query(query.into_iter().collect());
        parse(&self.answer(&call).await?.body)
    }

    /// All keys of the tenant, page by page. The stream ends after the first error.
    pub fn all_keys(&self) -> BoxStream<'static, Result<ApiKey>> {
        let client = self.clone();
        let pages = stream::unfold(Some(None::<String>), move |cursor| {
            let client = client.clone();
            async move {
                match client.keys(cursor?.as_deref()).await {
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

    /// Revokes a key.
    ///
    /// # Errors
    /// [`NotFound`](audit_core::ErrorKind::NotFound) when the tenant has none of this id.
    pub async fn revoke_key(&self, id: Uuid) -> Result<()> {
        let call =
            Call::new(Method::DELETE, format!("api/v1/api-keys/{id}")).repeat(Repeat::IfNotDone);
        self.answer(&call).await.map(|_| ())
    }
}
