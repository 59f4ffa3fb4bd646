//! Deciding what a principal may do in a tenant.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;

use crate::error::Result;
use crate::id::TenantId;
use crate::scope::{Permissions, Principal, Role};
use crate::tenant::TenantStatus;

/// What an authorizer is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccessRequest {
    /// Who asks.
    pub principal: Principal,
    /// In which tenant.
    pub tenant: TenantId,
    /// The tenant's status.
    pub status: TenantStatus,
    /// What for. All of it must be granted.
    pub permissions: Permissions,
}

impl AccessRequest {
    /// A question.
    pub fn new(
        principal: Principal,
        tenant: TenantId,
        status: TenantStatus,
        permissions: Permissions,
    ) -> Self {
        Self {
            principal,
            tenant,
            status,
            permissions,
        }
    }
}

/// An authorizer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Everything that was asked for.
    Allow,
    /// No. The reason goes to the log of the server, and not to the caller.
    Deny {
        /// Why.
        reason: String,
    },
}

impl Decision {
    /// A refusal.
    pub fn deny(reason: impl Into<String>) -> Self {
        Self::Deny {
            reason: reason.into(),
        }
    }
}

/// Decides whether a principal may act in a tenant.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait TenantAuthorizer: Debug + Send + Sync + 'static {
    /// Answers one question. An error is not a refusal: the caller is told that a part is away.
    async fn authorize(&self, request: &AccessRequest) -> Result<Decision>;
}

/// Grants what the credential carries, in the credential's own tenant, or in any where it may act
/// across tenants.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByClaims;

#[async_trait]
impl TenantAuthorizer for ByClaims {
    async fn authorize(&self, request: &AccessRequest) -> Result<Decision> {
        let AccessRequest {
            principal,
            tenant,
            permissions,
            ..
        } = request;
        if !principal.across_tenants && principal.tenant != Some(*tenant) {
            return Ok(Decision::deny("the credential belongs to another tenant"));
        }
        if !principal.permissions.contains_all(*permissions) {
            return Ok(Decision::deny("the credential lacks a permission"));
        }
        Ok(Decision::Allow)
    }
}

/// Grants by memberships: who has which role in which tenant, whatever tenant the credential names.
/// A credential still limits what its bearer may do.
#[derive(Debug, Default)]
pub struct ByMembership {
    members: RwLock<HashMap<(TenantId, String), Role>>,
}

impl ByMembership {
    /// Nobody is a member of anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a subject a member, or changes its role.
    pub fn add(&self, tenant: TenantId, subject: impl Into<String>, role: Role) {
        self.members
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((tenant, subject.into()), role);
    }

    /// Ends a membership. Nothing happens when there is none.
    pub fn remove(&self, tenant: TenantId, subject: &str) {
        self.members
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(tenant, subject.to_owned()));
    }
}

#[async_trait]
impl TenantAuthorizer for ByMembership {
    async fn authorize(&self, request: &AccessRequest) -> Result<Decision> {
        let key = (request.tenant, request.principal.subject.clone());
        let role = self
            .members
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .copied();
        let Some(role) = role else {
            return Ok(Decision::deny("not a member of the tenant"));
        };
        let granted = role
            .permissions()
            .intersection(request.principal.permissions);
        if granted.contains_all(request.permissions) {
            Ok(Decision::Allow)
        } else {
            Ok(Decision::deny("the role in the tenant lacks a permission"))
        }
    }
}

/// Grants by a closure of the caller's.
///
/// ```
/// use audit_core::{ByPolicy, Decision, Permission};
///
/// let office_hours = ByPolicy::new(|request| {
///     if request.permissions.contains(Permission::Export) {
///         Decision::deny("exports need a ticket")
///     } else {
///         Decision::Allow
///     }
/// });
/// # let _ = office_hours;
/// ```
pub struct ByPolicy(Box<dyn Fn(&AccessRequest) -> Decision + Send + Sync>);

impl ByPolicy {
    /// Asks `policy`.
    pub fn new(policy: impl Fn(&AccessRequest) -> Decision + Send + Sync + 'static) -> Self {
        Self(Box::new(policy))
    }
}

impl Debug for ByPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByPolicy")
    }
}

#[async_trait]
impl TenantAuthorizer for ByPolicy {
    async fn authorize(&self, request: &AccessRequest) -> Result<Decision> {
        Ok((self.0)(request))
    }
}
