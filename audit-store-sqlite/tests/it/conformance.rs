//! The contracts of the traits, run on files.

use std::sync::Arc;
use std::time::Duration;

use audit_conformance::{
    CheckpointStoreHarness, CredentialStoreHarness, ErasureStoreHarness, FailedWritesHarness,
    LogStoreHarness, OffboardingStoreHarness,
};
use audit_core::ManualClock;
use audit_store_sqlite::rusqlite::Connection;
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use tempfile::TempDir;

pub(crate) struct Files {
    pub(crate) folder: TempDir,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: SqliteStore,
}

impl Files {
    fn open_in(folder: TempDir, clock: Arc<ManualClock>) -> Self {
        let options = SqliteOptions::new().clock(clock.clone());
        let store = SqliteStore::open(folder.path().join("audit.db"), options).unwrap();
        Self {
            folder,
            clock,
            store,
        }
    }
}

impl LogStoreHarness for Files {
    type Store = SqliteStore;
    type Tenants = SqliteStore;

    async fn open() -> Self {
        Self::open_in(tempfile::tempdir().unwrap(), audit_conformance::clock())
    }

    fn store(&self) -> &SqliteStore {
        &self.store
    }

    fn tenants(&self) -> &SqliteStore {
        &self.store
    }

    fn clock(&self) -> Option<Arc<ManualClock>> {
        Some(self.clock.clone())
    }

    /// On a copy of the files as a crash would leave them: nothing is closed or checkpointed.
    async fn reopen(self) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(self.folder.path()).unwrap() {
            let file = file.unwrap();
            // The memory shared by connections: its contents don't outlive a crash.
            if !file.file_name().to_string_lossy().ends_with("-shm") {
                std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
            }
        }
        Some(Self::open_in(folder, self.clock.clone()))
    }
}

impl CredentialStoreHarness for Files {
    type Store = SqliteStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &SqliteStore {
        &self.store
    }
}

impl CheckpointStoreHarness for Files {
    type Store = SqliteStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &SqliteStore {
        &self.store
    }

    fn clock(&self) -> Arc<ManualClock> {
        self.clock.clone()
    }
}

impl FailedWritesHarness for Files {
    type Store = SqliteStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> Arc<SqliteStore> {
        Arc::new(self.store.clone())
    }

    fn clock(&self) -> Arc<ManualClock> {
        self.clock.clone()
    }

    async fn reopen(self) -> Self {
        <Self as LogStoreHarness>::reopen(self).await.unwrap()
    }

    async fn refuse_tiles(&self, refuses: bool) -> bool {
        let conn = Connection::open(self.folder.path().join("audit.db")).unwrap();
        conn.busy_timeout(Duration::from_secs(20)).unwrap();
        // Only the store's writer does this.
        conn.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        let sql = match refuses {
            true => {
                "CREATE TRIGGER refused BEFORE INSERT ON tiles
                 BEGIN SELECT RAISE(ABORT, 'no tiles today'); END"
            }
            false => "DROP TRIGGER refused",
        };
        conn.execute_batch(sql).unwrap();
        true
    }
}

impl ErasureStoreHarness for Files {
    type Store = SqliteStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &SqliteStore {
        &self.store
    }
}

impl OffboardingStoreHarness for Files {
    type Store = SqliteStore;

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &SqliteStore {
        &self.store
    }

    async fn reopen(self) -> Option<Self> {
        <Self as LogStoreHarness>::reopen(self).await
    }
}

mod offboarding_store {
    audit_conformance::offboarding_store!(super::Files);
}

mod erasure_store {
    audit_conformance::erasure_store!(super::Files);
}

mod checkpoint_store {
    audit_conformance::checkpoint_store!(super::Files);
}

mod deployment_store {
    audit_conformance::deployment_store!(super::Files);
}

mod log_store {
    audit_conformance::log_store!(super::Files);
}

mod retention_store {
    audit_conformance::retention_store!(super::Files);
}

mod tenant_store {
    audit_conformance::tenant_store!(super::Files);
}

mod credential_store {
    audit_conformance::credential_store!(super::Files);
}

mod failed_writes {
    audit_conformance::failed_writes!(super::Files);
}
