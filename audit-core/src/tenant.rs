//! Tenants, and where they are kept.

use std::fmt;

use async_trait::async_trait;
use audit_tlog::Timestamp;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, FieldFault, Result};
use crate::event::NotAValue;
use crate::id::{EventId, TenantId};
use crate::prepare::PreparedEvent;

/// Whether a tenant's log may be written and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TenantStatus {
    /// Everything works.
    Active,
    /// Writes are refused, reads work.
    Inactive,
    /// Everything is refused.
    Suspended,
    /// A tombstone, for ever.
    Deleted,
}

impl TenantStatus {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Active, Self::Inactive, Self::Suspended, Self::Deleted];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Suspended => "suspended",
            Self::Deleted => "deleted",
        }
    }

    /// Refuses a write unless the tenant is active. `append` checks this under the head lock.
    ///
    /// # Errors
    /// [`ErrorKind::TenantClosed`] or [`ErrorKind::TenantDeleted`].
    pub fn admit_write(self, tenant: TenantId) -> Result<()> {
        match self {
            Self::Active => Ok(()),
            Self::Inactive => Err(Error::new(
                ErrorKind::TenantClosed,
                "the tenant is inactive: its log takes no writes",
            )
            .with_tenant(tenant)),
            other => other.admit_read(tenant),
        }
    }

    /// Refuses a read when the tenant is suspended or deleted.
    ///
    /// # Errors
    /// [`ErrorKind::TenantClosed`] or [`ErrorKind::TenantDeleted`].
    pub fn admit_read(self, tenant: TenantId) -> Result<()> {
        let (kind, message) = match self {
            Self::Active | Self::Inactive => return Ok(()),
            Self::Suspended => (ErrorKind::TenantClosed, "the tenant is suspended"),
            Self::Deleted => (ErrorKind::TenantDeleted, "the tenant was deleted"),
        };
        Err(Error::new(kind, message).with_tenant(tenant))
    }
}

impl std::str::FromStr for TenantStatus {
    type Err = NotAValue;
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or(NotAValue("active inactive suspended deleted"))
    }
}

impl fmt::Display for TenantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A tenant's 32 secret bytes: the root of the keys for its cursors, idempotency keys and queue
/// messages. It never leaves the process but to the store.
#[derive(Clone, PartialEq, Eq)]
pub struct TenantSecret([u8; 32]);

impl TenantSecret {
    /// That of a deleted tenant, of which nothing is derived any more.
    pub const NONE: Self = Self([0; 32]);

    /// Wraps the bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the store.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key for one purpose: HMAC-SHA-256 of the purpose's name under the secret.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        self.mac(purpose.as_bytes())
    }

    fn mac(&self, message: &[u8]) -> [u8; 32] {
        #[allow(clippy::expect_used)] // HMAC takes keys of any length
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0).expect("any key length");
        mac.update(message);
        mac.finalize().into_bytes().into()
    }

    /// The event id for an `Idempotency-Key`: the UUIDv8 (RFC 9562 §5.8) of an HMAC over the key and
    /// the event's index in its bulk. Keyed, because an id can't be erased and keys may be e-mails.
    pub fn idempotent_id(&self, key: &str, index: u64) -> EventId {
        let mut message = b"audit-log/v1/idempotency-key".to_vec();
        message.extend((key.len() as u64).to_be_bytes());
        message.extend(key.as_bytes());
        message.extend(index.to_be_bytes());
        let mac = self.mac(&message);
        let mut sixteen = [0; 16];
        sixteen.copy_from_slice(&mac[..16]);
        EventId::new(Uuid::new_v8(sixteen))
    }
}

impl fmt::Debug for TenantSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantSecret(…)")
    }
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its name, 1 to [`Tenant::MAX_NAME`] characters; need not be unique.
    pub name: String,
    /// Its status.
    pub status: TenantStatus,
    /// When it was created.
    pub created_at: Timestamp,
    /// Its secret.
    pub secret: TenantSecret,
    /// Whether everyone may read its log's checkpoints, key and tiles ([`TiledLog`](crate::TiledLog)):
    /// false for a new tenant.
    pub public_log: bool,
}

impl Tenant {
    /// The most characters of a name.
    pub const MAX_NAME: usize = 256;

    /// An active tenant.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] naming `name` when it is empty, longer than [`Self::MAX_NAME`]
    /// characters or holds a control character.
    pub fn new(
        id: TenantId,
        name: impl Into<String>,
        created_at: Timestamp,
        secret: TenantSecret,
    ) -> Result<Self> {
        let name = name.into();
        Self::check_name(&name)?;
        Ok(Self {
            id,
            name,
            status: TenantStatus::Active,
            created_at,
            secret,
            public_log: false,
        })
    }

    /// Checks a name.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn check_name(name: &str) -> Result<()> {
        check_name(name, Self::MAX_NAME)
    }
}

/// Checks the name of something that isn't an event's: of a tenant, of a legal hold.
pub(crate) fn check_name(name: &str, most: usize) -> Result<()> {
    let detail = if name.is_empty() {
        "required, and not empty".into()
    } else if name.chars().count() > most {
        format!("longer than {most} characters")
    } else if name.chars().any(char::is_control) {
        "holds a control character".into()
    } else {
        return Ok(());
    };
    Err(Error::invalid(vec![FieldFault::new("name", detail)]))
}

/// Which tenants a list asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TenantFilter {
    /// Of exactly this name.
    pub name: Option<String>,
    /// Of this status.
    pub status: Option<TenantStatus>,
}

impl TenantFilter {
    /// All tenants.
    pub fn all() -> Self {
        Self::default()
    }

    /// Tenants of exactly this name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Tenants of this status.
    #[must_use]
    pub fn status(mut self, status: TenantStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Whether it asks for this tenant.
    pub fn matches(&self, tenant: &Tenant) -> bool {
        self.name.as_ref().is_none_or(|n| *n == tenant.name)
            && self.status.is_none_or(|s| s == tenant.status)
    }
}

/// What of a tenant is changed. What is none stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TenantUpdate {
    /// A new name.
    pub name: Option<String>,
    /// A new status; a deleted tenant's never changes.
    pub status: Option<TenantStatus>,
    /// Whether everyone may read its log's checkpoints, key and tiles.
    pub public_log: Option<bool>,
}

impl TenantUpdate {
    /// Changes the name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Changes the status.
    #[must_use]
    pub fn status(mut self, status: TenantStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Opens the log's checkpoints, key and tiles to everyone, or closes them.
    #[must_use]
    pub fn public_log(mut self, public: bool) -> Self {
        self.public_log = Some(public);
        self
    }

    /// Makes the changes, for a store.
    pub fn apply(&self, tenant: &mut Tenant) {
        if let Some(name) = &self.name {
            tenant.name.clone_from(name);
        }
        if let Some(status) = self.status {
            tenant.status = status;
        }
        if let Some(public) = self.public_log {
            tenant.public_log = public;
        }
    }
}

/// Where tenants are kept: in the log store's own database, since `append` checks their status under
/// the head lock.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait TenantStore: fmt::Debug + Send + Sync + 'static {
    /// Creates a tenant.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when the id is taken, [`ErrorKind::TenantDeleted`] when it was a
    /// deleted tenant's.
    async fn create_tenant(&self, tenant: &Tenant) -> Result<()>;

    /// One tenant, of any status; none when there never was one.
    async fn tenant(&self, id: TenantId) -> Result<Option<Tenant>>;

    /// Tenants in the order of their ids, behind `after`, at most `limit`.
    async fn tenants(
        &self,
        filter: &TenantFilter,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Vec<Tenant>>;

    /// Changes a tenant and appends `event`, which says so, to its log, in one transaction and
    /// whatever the status is before and after.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownTenant`], [`ErrorKind::TenantDeleted`]; [`ErrorKind::Refused`] for the status of a
    /// tenant whose [end](crate::OffboardingStore::begin_ending) was asked for.
    async fn update_tenant(
        &self,
        id: TenantId,
        update: &TenantUpdate,
        event: &PreparedEvent,
    ) -> Result<Tenant>;
}
