//! API keys and stream tickets, and where they are kept.

use std::fmt::{self, Debug};
use std::str::FromStr;

use async_trait::async_trait;
use audit_tlog::Timestamp;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::id::TenantId;
use crate::scope::{Permissions, Principal, Role, TenantScope};

/// An API key without its secret, of which only a SHA-256 is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApiKey {
    /// Its id.
    pub id: Uuid,
    /// The tenant that it belongs to.
    pub tenant: TenantId,
    /// What it is for, in its maker's words, at most 256 characters.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// What it may do: a subset of its maker's permissions.
    pub permissions: Permissions,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to about a minute.
    pub last_used_at: Option<Timestamp>,
}

impl ApiKey {
    /// A key that never expires, with all the permissions of its role.
    pub fn new(
        id: Uuid,
        tenant: TenantId,
        name: impl Into<String>,
        role: Role,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            tenant,
            name: name.into(),
            role,
            permissions: role.permissions(),
            created_at,
            expires_at: None,
            last_used_at: None,
        }
    }

    /// Where it stands in its tenant's list.
    pub fn place(&self) -> KeyPlace {
        KeyPlace {
            created_at: self.created_at,
            id: self.id,
        }
    }

    /// Who asks with it.
    pub fn principal(&self) -> Principal {
        let mut principal = Principal::new(
            format!("api-key:{}", self.id),
            self.tenant,
            self.permissions,
        );
        principal.across_tenants = self.role == Role::Admin;
        principal
    }
}

/// Where a key stands in its tenant's list, oldest first; keys made in the same microsecond by id. Its
/// text is `<microseconds>.<id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyPlace {
    /// When the key was made.
    pub created_at: Timestamp,
    /// Its id.
    pub id: Uuid,
}

impl fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.created_at.as_micros(), self.id)
    }
}

impl FromStr for KeyPlace {
    type Err = Error;

    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) naming `cursor` for any other text.
    fn from_str(text: &str) -> Result<Self> {
        text.split_once('.')
            .and_then(|(micros, id)| {
                Some(Self {
                    created_at: Timestamp::from_micros(micros.parse().ok()?)?,
                    id: id.parse().ok()?,
                })
            })
            .ok_or_else(|| Error::field("cursor", "not one of this list"))
    }
}

/// The SHA-256 of a secret: what a store looks credentials up by.
pub type SecretHash = [u8; 32];

/// A one-use right to open a stream, for clients that can't send a header.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ticket {
    /// In which tenant.
    pub tenant: TenantId,
    /// In whose name.
    pub subject: String,
    /// From when on it is refused.
    pub expires_at: Timestamp,
    /// When the credential that it was made with expires: the stream ends then.
    pub session_expires_at: Option<Timestamp>,
}

impl Ticket {
    /// A ticket.
    pub fn new(tenant: TenantId, subject: impl Into<String>, expires_at: Timestamp) -> Self {
        Self {
            tenant,
            subject: subject.into(),
            expires_at,
            session_expires_at: None,
        }
    }
}

/// Where API keys and tickets are kept.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait CredentialStore: Debug + Send + Sync + 'static {
    /// Adds a key to the scope's tenant, which needs [`Permission::Keys`](crate::Permission::Keys).
    ///
    /// # Errors
    /// [`Forbidden`](crate::ErrorKind::Forbidden), also when the key is another tenant's.
    async fn add_key(&self, scope: &TenantScope, key: &ApiKey, secret: &SecretHash) -> Result<()>;

    /// The key with this secret, of whichever tenant: this is how a caller is authenticated. Revoked
    /// ones are gone; expired ones are returned.
    async fn find_key(&self, secret: &SecretHash) -> Result<Option<ApiKey>>;

    /// The tenant's keys behind `after`, oldest first, at most `limit`. Needs
    /// [`Permission::Keys`](crate::Permission::Keys).
    async fn keys(
        &self,
        scope: &TenantScope,
        after: Option<KeyPlace>,
        limit: usize,
    ) -> Result<Vec<ApiKey>>;

    /// Revokes a key of the tenant; false when it has none of that id.
    async fn revoke_key(&self, scope: &TenantScope, id: Uuid) -> Result<bool>;

    /// Notes that a key was used. Callers do this at most once a minute for each key.
    async fn touch_key(&self, id: Uuid, at: Timestamp) -> Result<()>;

    /// Keeps a ticket until it is taken or expires. Expired ones are removed on the way.
    async fn put_ticket(&self, secret: &SecretHash, ticket: &Ticket, now: Timestamp) -> Result<()>;

    /// Takes a ticket: of any number of callers one gets it. None when it is unknown, was taken, or
    /// has expired by `now`.
    async fn take_ticket(&self, secret: &SecretHash, now: Timestamp) -> Result<Option<Ticket>>;
}
