//! The parts behind the log, as the settings name them.

use std::path::Path;
use std::sync::Arc;

use audit_core::{AuditLog, CredentialStore, MemoryIndex, MemoryQueue, MemoryStore};
use audit_store_sqlite::{SqliteOptions, SqliteStore};

use crate::config::{QueueUrl, StoreUrl};

/// The log and the credentials beside it.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The log.
    pub log: AuditLog,
    /// API keys and tickets.
    pub credentials: Arc<dyn CredentialStore>,
}

impl Storage {
    /// Opens what the settings name. Files are made where there are none. It blocks.
    ///
    /// # Errors
    /// What the store answers, with the cause.
    pub fn open(store: &StoreUrl, queue: QueueUrl) -> audit_core::Result<Self> {
        match store {
            StoreUrl::Memory => Ok(Self::in_memory()),
            StoreUrl::Sqlite(path) => Self::sqlite(path, queue),
        }
    }

    /// Everything in memory: gone with the process.
    pub fn in_memory() -> Self {
        let store = Arc::new(MemoryStore::new());
        let log = AuditLog::builder(Arc::clone(&store))
            .queue(Arc::new(MemoryQueue::new()))
            .search(Arc::new(MemoryIndex::new()))
            .build();
        Self {
            log,
            credentials: store,
        }
    }

    fn sqlite(path: &Path, queue: QueueUrl) -> audit_core::Result<Self> {
        let store = Arc::new(SqliteStore::open(path, SqliteOptions::new())?);
        let builder = AuditLog::builder(Arc::clone(&store)).search(store.search_index());
        let builder = match queue {
            QueueUrl::Store => builder.queue(Arc::new(store.queue()?)),
            QueueUrl::Memory => builder.queue(Arc::new(MemoryQueue::new())),
        };
        Ok(Self {
            log: builder.build(),
            credentials: store,
        })
    }
}
