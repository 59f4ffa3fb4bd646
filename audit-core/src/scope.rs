//! Who may do what in which tenant: principals, permissions, and the scope that carries them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::entry::Entry;
use crate::error::{Error, ErrorKind, Result};
use crate::event::NotAValue;
use crate::id::TenantId;

/// One thing that a caller may do within a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Permission {
    /// Append events.
    Record,
    /// Read entries, statistics and proofs.
    Read,
    /// Export entries.
    Export,
    /// Follow the log.
    Stream,
    /// Prune a prefix of the log.
    Cleanup,
    /// Destroy groups of entries.
    Erase,
    /// Make and revoke API keys.
    Keys,
    /// Administer tenants, queues and indexes.
    Admin,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 8] = [
        Self::Record,
        Self::Read,
        Self::Export,
        Self::Stream,
        Self::Cleanup,
        Self::Erase,
        Self::Keys,
        Self::Admin,
    ];

    /// Its name, as in a `scope` claim behind `audit:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Read => "read",
            Self::Export => "export",
            Self::Stream => "stream",
            Self::Cleanup => "cleanup",
            Self::Erase => "erase",
            Self::Keys => "keys",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Permission {
    type Err = NotAValue;
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        Self::ALL
            .into_iter()
            .find(|p| p.as_str() == text)
            .ok_or(NotAValue(
                "record read export stream cleanup erase keys admin",
            ))
    }
}

/// A set of permissions. The default is the empty set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Permissions(u16);

impl Permissions {
    /// No permission.
    pub const NONE: Self = Self(0);
    /// Every permission.
    pub const ALL: Self = Self::of(&Permission::ALL);

    /// The set of these.
    pub const fn of(list: &[Permission]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < list.len() {
            bits |= 1 << list[i] as u16;
            i += 1;
        }
        Self(bits)
    }

    /// Whether it holds this one.
    pub const fn contains(self, permission: Permission) -> bool {
        self.0 & (1 << permission as u16) != 0
    }

    /// Whether it holds all of these.
    pub const fn contains_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both hold.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What either holds.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its members.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL
            .into_iter()
            .filter(move |p| self.contains(*p))
    }

    /// The form of a `scope` claim (RFC 8693 §4.2), `audit:read audit:export`.
    pub fn to_scope(self) -> String {
        self.iter()
            .map(|p| format!("audit:{}", p.as_str()))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Reads a `scope` claim; tokens that are not `audit:` and a permission are others' and ignored.
    pub fn from_scope(scope: &str) -> Self {
        scope
            .split(' ')
            .filter_map(|token| token.strip_prefix("audit:"))
            .filter_map(|name| name.parse().ok())
            .fold(Self::NONE, |set, p| set.union(Self::of(&[p])))
    }
}

impl From<Permission> for Permissions {
    fn from(permission: Permission) -> Self {
        Self::of(&[permission])
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A named set of permissions, as a token's `role` claim and an API key carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Records.
    Writer,
    /// Reads, exports, streams.
    Auditor,
    /// Both.
    User,
    /// Those, and cleanup, erase, keys.
    TenantAdmin,
    /// All, across tenants.
    Admin,
}

impl Role {
    /// Every role, from the least to the most.
    pub const ALL: [Self; 5] = [
        Self::Writer,
        Self::Auditor,
        Self::User,
        Self::TenantAdmin,
        Self::Admin,
    ];

    /// Its name in claims.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Auditor => "auditor",
            Self::User => "user",
            Self::TenantAdmin => "tenant_admin",
            Self::Admin => "admin",
        }
    }

    /// What it may do.
    pub const fn permissions(self) -> Permissions {
        use Permission::{Cleanup, Erase, Export, Keys, Read, Record, Stream};
        match self {
            Self::Writer => Permissions::of(&[Record]),
            Self::Auditor => Permissions::of(&[Read, Export, Stream]),
            Self::User => Permissions::of(&[Record, Read, Export, Stream]),
            Self::TenantAdmin => {
                Permissions::of(&[Record, Read, Export, Stream, Cleanup, Erase, Keys])
            }
            Self::Admin => Permissions::ALL,
        }
    }
}

impl FromStr for Role {
    type Err = NotAValue;
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        Self::ALL
            .into_iter()
            .find(|r| r.as_str() == text)
            .ok_or(NotAValue("writer auditor user tenant_admin admin"))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who asks: what authentication found out, before any decision.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Principal {
    /// The subject: a user, a service, a key's id.
    pub subject: String,
    /// The tenant that its credential belongs to.
    pub tenant: Option<TenantId>,
    /// What its credential carries. An authorizer may grant less, never more.
    pub permissions: Permissions,
    /// Whether its credential may act in tenants other than its own.
    pub across_tenants: bool,
}

impl Principal {
    /// A principal of one tenant.
    pub fn new(subject: impl Into<String>, tenant: TenantId, permissions: Permissions) -> Self {
        Self {
            subject: subject.into(),
            tenant: Some(tenant),
            permissions,
            across_tenants: false,
        }
    }

    /// A principal that may act in any tenant.
    pub fn across_tenants(subject: impl Into<String>, permissions: Permissions) -> Self {
        Self {
            subject: subject.into(),
            tenant: None,
            permissions,
            across_tenants: true,
        }
    }
}

/// The right to act in one tenant: the only way to any data.
///
/// Its fields are private and it is neither `Default` nor `Deserialize`: it comes from
/// [`AuditLog::authorize`](crate::AuditLog::authorize), or from [`trusted`](Self::trusted), the one
/// escape. [`only`](Self::only) narrows it; nothing widens it.
#[derive(Clone, PartialEq, Eq)]
pub struct TenantScope {
    tenant: TenantId,
    subject: Arc<str>,
    permissions: Permissions,
}

impl TenantScope {
    pub(crate) fn granted(tenant: TenantId, subject: &str, permissions: Permissions) -> Self {
        Self {
            tenant,
            subject: subject.into(),
            permissions,
        }
    }

    /// Every permission in a tenant, without asking anyone: for workers, tests, and code that has
    /// authorized its caller already. `component` names who took it.
    pub fn trusted(tenant: TenantId, component: &str) -> Self {
        Self {
            tenant,
            subject: component.into(),
            permissions: Permissions::ALL,
        }
    }

    /// The tenant.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Who acts.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What it may do.
    pub fn permissions(&self) -> Permissions {
        self.permissions
    }

    /// The same scope with no more than `permissions`.
    #[must_use]
    pub fn only(&self, permissions: impl Into<Permissions>) -> Self {
        Self {
            tenant: self.tenant,
            subject: Arc::clone(&self.subject),
            permissions: self.permissions.intersection(permissions.into()),
        }
    }

    /// Every store method begins with this.
    ///
    /// # Errors
    /// [`ErrorKind::Forbidden`] when the scope lacks the permission.
    pub fn require(&self, permission: Permission) -> Result<()> {
        if self.permissions.contains(permission) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Forbidden,
            format!("the permission {} is needed", permission.as_str()),
        ))
    }

    /// Whoever is given entries for the scope's tenant begins with this.
    ///
    /// # Errors
    /// [`ErrorKind::Forbidden`] when one of them is another tenant's.
    pub fn admit(&self, entries: &[Entry]) -> Result<()> {
        if entries.iter().all(|entry| entry.tenant_id == self.tenant) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Forbidden,
            "an entry is another tenant's",
        ))
    }
}

impl fmt::Debug for TenantScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantScope")
            .field("tenant", &self.tenant)
            .field("subject", &self.subject)
            .field("permissions", &self.permissions)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_only_narrows() {
        let tenant = TenantId::new(uuid::Uuid::from_u128(1));
        let reader = TenantScope::trusted(tenant, "test").only(Permission::Read);
        assert!(reader.require(Permission::Read).is_ok());
        assert_eq!(
            reader.require(Permission::Record).unwrap_err().kind(),
            ErrorKind::Forbidden
        );
        let again = reader.only(Permissions::ALL);
        assert_eq!(again.permissions(), Permission::Read.into());
    }

    #[test]
    fn scope_claims_are_read_and_written() {
        let set = Permissions::from_scope("openid audit:read audit:export audit:nope");
        assert_eq!(
            set,
            Permissions::of(&[Permission::Read, Permission::Export])
        );
        assert_eq!(set.to_scope(), "audit:read audit:export");
    }
}
