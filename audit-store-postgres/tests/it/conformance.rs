//! The contracts of the log store, its tenants and its credentials.

use std::sync::Arc;

use audit_conformance::{
    CheckpointStoreHarness, CredentialStoreHarness, ErasureStoreHarness, FailedWritesHarness,
    LogStoreHarness, OffboardingStoreHarness,
};
use audit_core::ManualClock;
use audit_store_postgres::PostgresStore;
use sqlx_core::executor::Executor as _;

use crate::fixture::{Database, shared};

struct Shared {
    clock: Arc<ManualClock>,
    store: PostgresStore,
}

impl Shared {
    async fn with(clock: Arc<ManualClock>) -> Self {
        let options = shared().await.clock(clock.clone());
        let store = PostgresStore::connect(options).await.unwrap();
        Self { clock, store }
    }
}

impl LogStoreHarness for Shared {
    type Store = PostgresStore;
    type Tenants = PostgresStore;

    async fn open() -> Self {
        Self::with(audit_conformance::clock()).await
    }

    fn store(&self) -> &PostgresStore {
        &self.store
    }

    fn tenants(&self) -> &PostgresStore {
        &self.store
    }

    fn clock(&self) -> Option<Arc<ManualClock>> {
        Some(self.clock.clone())
    }

    /// As another process: nothing of the first one is left.
    async fn reopen(self) -> Option<Self> {
        Some(Self::with(self.clock).await)
    }
}

impl CredentialStoreHarness for Shared {
    type Store = PostgresStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &PostgresStore {
        &self.store
    }
}

/// A database of its own: there is one signer in each.
impl CheckpointStoreHarness for Database {
    type Store = PostgresStore;

    async fn open() -> Self {
        Self::open().await
    }

    fn store(&self) -> &PostgresStore {
        &self.store
    }

    fn clock(&self) -> Arc<ManualClock> {
        self.clock.clone()
    }
}

impl FailedWritesHarness for Database {
    type Store = PostgresStore;

    async fn open() -> Self {
        Self::open().await
    }

    fn store(&self) -> Arc<PostgresStore> {
        Arc::new(self.store.clone())
    }

    fn clock(&self) -> Arc<ManualClock> {
        self.clock.clone()
    }

    async fn reopen(self) -> Self {
        Self::reopen(self).await
    }

    async fn refuse_tiles(&self, refuses: bool) -> bool {
        let sql = match refuses {
            true => {
                "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN RAISE EXCEPTION ''no tiles today''; END';
                 CREATE TRIGGER refused BEFORE INSERT ON audit.subtrees
                 FOR EACH ROW EXECUTE FUNCTION public.refuse()"
            }
            false => "DROP TRIGGER refused ON audit.subtrees",
        };
        self.connect().await.execute(sql).await.unwrap();
        true
    }
}

impl ErasureStoreHarness for Shared {
    type Store = PostgresStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &PostgresStore {
        &self.store
    }
}

impl OffboardingStoreHarness for Shared {
    type Store = PostgresStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &PostgresStore {
        &self.store
    }

    async fn reopen(self) -> Option<Self> {
        <Self as LogStoreHarness>::reopen(self).await
    }
}

mod offboarding_store {
    audit_conformance::offboarding_store!(super::Shared);
}

mod erasure_store {
    audit_conformance::erasure_store!(super::Shared);
}

mod checkpoint_store {
    audit_conformance::checkpoint_store!(crate::fixture::Database);
}

mod deployment_store {
    audit_conformance::deployment_store!(crate::fixture::Database);
}

mod log_store {
    audit_conformance::log_store!(super::Shared);
}

mod retention_store {
    audit_conformance::retention_store!(super::Shared);
}

mod tenant_store {
    audit_conformance::tenant_store!(super::Shared);
}

mod credential_store {
    audit_conformance::credential_store!(super::Shared);
}

mod failed_writes {
    audit_conformance::failed_writes!(crate::fixture::Database);
}
