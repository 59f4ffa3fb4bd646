use std::sync::Arc;

use audit_conformance::{
    ArchiveHarness, CheckpointStoreHarness, CredentialStoreHarness, ErasureStoreHarness,
    EventQueueHarness, FailedWritesHarness, LogStoreHarness, OffboardingStoreHarness,
    OutboxHarness, SearchIndexHarness, TenantAuthorizerHarness,
};
use audit_core::{
    ByClaims, ByMembership, ByPolicy, Decision, EventId, ManualClock, MemoryArchive, MemoryIndex,
    MemoryOutbox, MemoryQueue, MemoryStore, Principal, Role, TenantId,
};

struct Store(MemoryStore, Arc<ManualClock>);

impl LogStoreHarness for Store {
    type Store = MemoryStore;
    type Tenants = MemoryStore;

    async fn open() -> Self {
        let clock = audit_conformance::clock();
        Self(MemoryStore::with_clock(clock.clone()), clock)
    }

    fn store(&self) -> &MemoryStore {
        &self.0
    }

    fn tenants(&self) -> &MemoryStore {
        &self.0
    }

    fn clock(&self) -> Option<Arc<ManualClock>> {
        Some(self.1.clone())
    }
}

impl CredentialStoreHarness for Store {
    type Store = MemoryStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &MemoryStore {
        &self.0
    }
}

impl CheckpointStoreHarness for Store {
    type Store = MemoryStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &MemoryStore {
        &self.0
    }

    fn clock(&self) -> Arc<ManualClock> {
        self.1.clone()
    }
}

struct Shared(Arc<MemoryStore>, Arc<ManualClock>);

impl FailedWritesHarness for Shared {
    type Store = MemoryStore;

    async fn open() -> Self {
        let clock = audit_conformance::clock();
        Self(Arc::new(MemoryStore::with_clock(clock.clone())), clock)
    }

    fn store(&self) -> Arc<MemoryStore> {
        self.0.clone()
    }

    fn clock(&self) -> Arc<ManualClock> {
        self.1.clone()
    }

    async fn reopen(self) -> Self {
        self
    }

    async fn refuse_tiles(&self, _: bool) -> bool {
        false
    }
}

impl ErasureStoreHarness for Store {
    type Store = MemoryStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &MemoryStore {
        &self.0
    }
}

impl OffboardingStoreHarness for Store {
    type Store = MemoryStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &MemoryStore {
        &self.0
    }
}

mod offboarding_store {
    audit_conformance::offboarding_store!(super::Store);
}

mod erasure_store {
    audit_conformance::erasure_store!(super::Store);
}

mod checkpoint_store {
    audit_conformance::checkpoint_store!(super::Store);
}

mod deployment_store {
    audit_conformance::deployment_store!(super::Store);
}

mod log_store {
    audit_conformance::log_store!(super::Store);
}

mod retention_store {
    audit_conformance::retention_store!(super::Store);
}

mod tenant_store {
    audit_conformance::tenant_store!(super::Store);
}

mod credential_store {
    audit_conformance::credential_store!(super::Store);
}

struct SystemTime(MemoryStore);

impl LogStoreHarness for SystemTime {
    type Store = MemoryStore;
    type Tenants = MemoryStore;

    async fn open() -> Self {
        Self(MemoryStore::new())
    }

    fn store(&self) -> &MemoryStore {
        &self.0
    }

    fn tenants(&self) -> &MemoryStore {
        &self.0
    }
}

mod log_store_on_the_systems_clock {
    audit_conformance::log_store!(super::SystemTime);
}

struct Queue(MemoryQueue);

impl EventQueueHarness for Queue {
    type Queue = MemoryQueue;

    async fn open() -> Self {
        Self(MemoryQueue::new())
    }

    fn queue(&self) -> &MemoryQueue {
        &self.0
    }
}

mod event_queue {
    audit_conformance::event_queue!(super::Queue);
}

struct Index(MemoryIndex);

impl SearchIndexHarness for Index {
    type Index = MemoryIndex;

    async fn open() -> Self {
        Self(MemoryIndex::new())
    }

    fn index(&self) -> &MemoryIndex {
        &self.0
    }
}

mod search_index {
    audit_conformance::search_index!(super::Index);
}

struct Outbox(MemoryOutbox);

impl OutboxHarness for Outbox {
    type Outbox = MemoryOutbox;

    async fn open() -> Self {
        Self(MemoryOutbox::new())
    }

    fn outbox(&self) -> &MemoryOutbox {
        &self.0
    }

    async fn leave(&self, tenant: TenantId, id: EventId, event: &str) {
        self.0.push_unchecked(tenant, id, event.to_owned());
    }
}

mod outbox {
    audit_conformance::outbox!(super::Outbox);
}

struct Claims(ByClaims);

impl TenantAuthorizerHarness for Claims {
    type Authorizer = ByClaims;

    async fn open() -> Self {
        Self(ByClaims)
    }

    fn authorizer(&self) -> &ByClaims {
        &self.0
    }

    async fn admit(&self, subject: &str, tenant: TenantId, role: Role) -> Principal {
        Principal::new(subject, tenant, role.permissions())
    }
}

mod by_claims {
    audit_conformance::tenant_authorizer!(super::Claims);
}

struct Membership(ByMembership);

impl TenantAuthorizerHarness for Membership {
    type Authorizer = ByMembership;

    async fn open() -> Self {
        Self(ByMembership::new())
    }

    fn authorizer(&self) -> &ByMembership {
        &self.0
    }

    async fn admit(&self, subject: &str, tenant: TenantId, role: Role) -> Principal {
        self.0.add(tenant, subject, role);
        // The credential names another tenant, and would allow everything there.
        Principal::new(
            subject,
            TenantId::new(Default::default()),
            Role::Admin.permissions(),
        )
    }
}

mod by_membership {
    audit_conformance::tenant_authorizer!(super::Membership);
}

struct Policy(ByPolicy);

impl TenantAuthorizerHarness for Policy {
    type Authorizer = ByPolicy;

    async fn open() -> Self {
        Self(ByPolicy::new(|request| {
            let own = request.principal.tenant == Some(request.tenant);
            if own
                && request
                    .principal
                    .permissions
                    .contains_all(request.permissions)
            {
                Decision::Allow
            } else {
                Decision::deny("not in this house")
            }
        }))
    }

    fn authorizer(&self) -> &ByPolicy {
        &self.0
    }

    async fn admit(&self, subject: &str, tenant: TenantId, role: Role) -> Principal {
        Principal::new(subject, tenant, role.permissions())
    }
}

mod by_policy {
    audit_conformance::tenant_authorizer!(super::Policy);
}

struct Archived(Arc<MemoryArchive>);

impl ArchiveHarness for Archived {
    type Archive = MemoryArchive;

    async fn open() -> Self {
        Self(Arc::new(MemoryArchive::new()))
    }

    fn archive(&self) -> Arc<MemoryArchive> {
        self.0.clone()
    }
}

mod archive {
    audit_conformance::archive!(super::Archived);
}

mod failed_writes {
    audit_conformance::failed_writes!(super::Shared);
}
