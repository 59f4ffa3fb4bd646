//! How a store is opened.

use std::sync::Arc;
use std::time::Duration;

use audit_core::tlog::Timestamp;
use audit_core::{Clock, SystemClock};

/// Where `created_at` comes from.
#[derive(Debug, Clone, Default)]
pub enum TimeSource {
    /// The clock of the database's own host, read in the transaction.
    #[default]
    Database,
    /// A clock of the caller's: for tests and benches only.
    Clock(Arc<dyn Clock>),
}

impl TimeSource {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock().now()
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        match self {
            Self::Database => &SystemClock,
            Self::Clock(clock) => clock.as_ref(),
        }
    }
}

/// How a [`SqliteStore`](crate::SqliteStore) is opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SqliteOptions {
    /// Where `created_at` comes from.
    pub time: TimeSource,
    /// How many connections read at once, at least 1.
    pub readers: usize,
    /// How long a snapshot lives; its streams then end with a retryable error. While one lives, the
    /// write-ahead log can't be emptied.
    pub max_snapshot_age: Duration,
    /// The most pages of 4 KiB that the log's file may have; then appends are answered
    /// [`StorageFull`](audit_core::ErrorKind::StorageFull). None leaves it to the disk.
    pub max_pages: Option<u64>,
    /// Opens for reading only, beside the process that writes. Every write is refused.
    pub read_only: bool,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            time: TimeSource::Database,
            readers: 4,
            max_snapshot_age: Duration::from_secs(600),
            max_pages: None,
            read_only: false,
        }
    }
}

impl SqliteOptions {
    /// The defaults: the host's clock, 4 readers, snapshots of 10 minutes, no limit on pages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the time from there.
    #[must_use]
    pub fn time(mut self, time: TimeSource) -> Self {
        self.time = time;
        self
    }

    /// Takes times, and the secrets of tenants that an append creates, from a clock: for tests and
    /// benches only.
    #[must_use]
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        self.time(TimeSource::Clock(clock))
    }

    /// How many connections read at once; 0 is 1.
    #[must_use]
    pub fn readers(mut self, readers: usize) -> Self {
        self.readers = readers.max(1);
        self
    }

    /// How long a snapshot lives.
    #[must_use]
    pub fn max_snapshot_age(mut self, age: Duration) -> Self {
        self.max_snapshot_age = age;
        self
    }

    /// The most pages of 4 KiB that the log's file may have.
    #[must_use]
    pub fn max_pages(mut self, pages: u64) -> Self {
        self.max_pages = Some(pages);
        self
    }

    /// Opens for reading only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
}
