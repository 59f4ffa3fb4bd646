//! How a store is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use audit_core::Clock;

/// Where `created_at` comes from.
#[derive(Debug, Clone, Default)]
pub enum TimeSource {
    /// The clock of the database's host, read under the lock.
    #[default]
    Database,
    /// A clock of the caller's: for tests and benches only.
    Clock(Arc<dyn Clock>),
}

/// How a [`PostgresStore`](crate::PostgresStore) is opened.
///
/// An address is a URL, `postgres://user:password@host:port/database`. `?sslmode=verify-full` with
/// `sslrootcert=<file>`, or [`root_certificate`](Self::root_certificate), makes the connection secure
/// and checks the server's name; without `sslmode` TLS is used when the server has it, unchecked.
///
/// One address is enough: each transaction takes the role that it needs. With an address for each
/// purpose, each of a login that has one role, a fault in this program can't do what the login may
/// not.
#[derive(Clone)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// The address of everything that has no address of its own.
    pub url: String,
    /// The address for reads of one tenant.
    pub reader_url: Option<String>,
    /// The address for appends, and for what belongs to no tenant.
    pub writer_url: Option<String>,
    /// The address for erasing and pruning.
    pub maintainer_url: Option<String>,
    /// Certificates (PEM) of who vouches for the server; its name is then checked too.
    pub root_certificate: Option<PathBuf>,
    /// Where `created_at` comes from.
    pub time: TimeSource,
    /// The most connections that read at once.
    pub readers: u32,
    /// The most connections that append at once, and as many again for queue, outbox, index and
    /// tenants.
    pub writers: u32,
    /// The most connections that erase and prune at once.
    pub maintainers: u32,
    /// The most snapshots at once, each of which has a connection of its own.
    pub snapshots: usize,
    /// How long a call waits for a free connection before it is answered
    /// [`Unavailable`](audit_core::ErrorKind::Unavailable).
    pub acquire_timeout: Duration,
    /// How long a statement may take.
    pub statement_timeout: Duration,
    /// How long an append waits for the head of a tenant that another transaction holds.
    pub lock_timeout: Duration,
    /// How long a snapshot lives; its streams then end with a retryable error. While one lives, the
    /// database can't remove the old versions of any row.
    pub max_snapshot_age: Duration,
    /// What the connections are called in `pg_stat_activity`, followed by their purpose.
    pub application_name: String,
    /// Admits a login that no permission binds: a superuser, or one that bypasses row security.
    pub allow_superuser: bool,
}

impl std::fmt::Debug for PostgresOptions {
    /// Without the addresses, which have passwords in them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("application_name", &self.application_name)
            .field("readers", &self.readers)
            .field("writers", &self.writers)
            .field("maintainers", &self.maintainers)
            .finish_non_exhaustive()
    }
}

impl PostgresOptions {
    /// The defaults: the database's clock; 16 connections that read, 8 that append and 8 for queue,
    /// outbox, index and tenants, 2 that maintain and 4 for snapshots of at most 10 minutes; 10 s for
    /// a connection, 30 s for a statement, 5 s for a head; the name `audit`; no superuser.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            reader_url: None,
            writer_url: None,
            maintainer_url: None,
            root_certificate: None,
            time: TimeSource::Database,
            readers: 16,
            writers: 8,
            maintainers: 2,
            snapshots: 4,
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(5),
            max_snapshot_age: Duration::from_secs(600),
            application_name: "audit".into(),
            allow_superuser: false,
        }
    }

    /// Reads one tenant's log as this login.
    #[must_use]
    pub fn reader_url(mut self, url: impl Into<String>) -> Self {
        self.reader_url = Some(url.into());
        self
    }

    /// Appends as this login.
    #[must_use]
    pub fn writer_url(mut self, url: impl Into<String>) -> Self {
        self.writer_url = Some(url.into());
        self
    }

    /// Erases and prunes as this login.
    #[must_use]
    pub fn maintainer_url(mut self, url: impl Into<String>) -> Self {
        self.maintainer_url = Some(url.into());
        self
    }

    /// Connects only to servers for which a certificate in this file (PEM) vouches by name.
    #[must_use]
    pub fn root_certificate(mut self, file: impl AsRef<Path>) -> Self {
        self.root_certificate = Some(file.as_ref().to_owned());
        self
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

    /// The most connections that read, append and maintain at once; 0 is 1.
    #[must_use]
    pub fn connections(mut self, readers: u32, writers: u32, maintainers: u32) -> Self {
        self.readers = readers.max(1);
        self.writers = writers.max(1);
        self.maintainers = maintainers.max(1);
        self
    }

    /// How long a call waits for a free connection.
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// How long a statement may take.
    #[must_use]
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// How long an append waits for a head that another transaction holds.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// How long a snapshot lives.
    #[must_use]
    pub fn max_snapshot_age(mut self, age: Duration) -> Self {
        self.max_snapshot_age = age;
        self
    }

    /// What the connections are called.
    #[must_use]
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = name.into();
        self
    }

    /// Admits a superuser.
    #[must_use]
    pub fn allow_superuser(mut self, allow: bool) -> Self {
        self.allow_superuser = allow;
        self
    }
}
