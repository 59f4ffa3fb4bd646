//! The contract of [`TenantAuthorizer`].

use std::future::Future;

use audit_core::{
    AccessRequest, Decision, Permission, Permissions, Principal, Role, TenantAuthorizer, TenantId,
    TenantStatus,
};

use crate::fixture::tenant_id;

/// Opens an authorizer for a contract.
pub trait TenantAuthorizerHarness: Sized + Send + Sync + 'static {
    /// The authorizer, or a wrapper around one.
    type Authorizer: TenantAuthorizer;

    /// Opens an authorizer.
    fn open() -> impl Future<Output = Self> + Send;

    /// The authorizer.
    fn authorizer(&self) -> &Self::Authorizer;

    /// Gives `subject` a role in a tenant, and returns the principal that its credential makes.
    fn admit(
        &self,
        subject: &str,
        tenant: TenantId,
        role: Role,
    ) -> impl Future<Output = Principal> + Send;
}

async fn allows<H: TenantAuthorizerHarness>(
    harness: &H,
    principal: &Principal,
    tenant: TenantId,
    permissions: impl Into<Permissions>,
) -> bool {
    let request = AccessRequest::new(
        principal.clone(),
        tenant,
        TenantStatus::Active,
        permissions.into(),
    );
    let decision = harness
        .authorizer()
        .authorize(&request)
        .await
        .expect("a decision");
    decision == Decision::Allow
}

const ROLES: [Role; 4] = [Role::Writer, Role::Auditor, Role::User, Role::TenantAdmin];

/// Every role within a tenant, every permission.
pub async fn a_role_grants_its_permissions_and_no_others<H: TenantAuthorizerHarness>() {
    let harness = H::open().await;
    let tenant = tenant_id();
    for role in ROLES {
        let principal = harness.admit(role.as_str(), tenant, role).await;
        for permission in Permission::ALL {
            let expected = role.permissions().contains(permission);
            let allowed = allows(&harness, &principal, tenant, permission).await;
            assert_eq!(allowed, expected, "{role} asks for {permission:?}");
        }
    }
}

/// One permission that is lacking is enough to refuse.
pub async fn all_that_is_asked_for_must_be_granted<H: TenantAuthorizerHarness>() {
    let harness = H::open().await;
    let tenant = tenant_id();
    let principal = harness.admit("ann", tenant, Role::User).await;
    assert!(allows(&harness, &principal, tenant, Role::User.permissions()).await);
    let more = Role::User.permissions().union(Permission::Erase.into());
    assert!(!allows(&harness, &principal, tenant, more).await);
}

/// Whatever its subject may do.
pub async fn a_credential_limits_its_bearer<H: TenantAuthorizerHarness>() {
    let harness = H::open().await;
    let tenant = tenant_id();
    let mut principal = harness.admit("ann", tenant, Role::TenantAdmin).await;
    principal.permissions = Permission::Read.into();
    assert!(allows(&harness, &principal, tenant, Permission::Read).await);
    assert!(!allows(&harness, &principal, tenant, Permission::Record).await);
}

/// A right in one tenant is none in the next.
pub async fn another_tenant_is_refused<H: TenantAuthorizerHarness>() {
    let harness = H::open().await;
    let (own, other) = (tenant_id(), tenant_id());
    for role in ROLES {
        let principal = harness.admit(role.as_str(), own, role).await;
        for permission in role.permissions().iter() {
            assert!(
                !allows(&harness, &principal, other, permission).await,
                "{role}"
            );
        }
    }
}
