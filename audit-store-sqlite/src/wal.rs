//! Emptying the write-ahead log: what was destroyed must leave it too, and it must not grow for ever.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use audit_core::{Error, ErrorKind, Result};
use rusqlite::Connection;

use crate::fault::from_sqlite;
use crate::schema::BUSY_TIMEOUT;

/// Beyond this size it is emptied. Under readers that never pause, it isn't begun anew by itself.
const LARGE: u64 = 64 << 20;

/// How long the writer waits for readers to let go of it.
const PATIENCE: Duration = Duration::from_millis(10);

/// How long it goes on before it tries again.
const RETRY: Duration = Duration::from_millis(500);

/// The state of one database's write-ahead log, as the writer knows it.
#[derive(Debug)]
pub(crate) struct Wal {
    path: PathBuf,
    /// Something that was destroyed is in it, or may be: a process that was killed says nothing.
    unclean: bool,
    tried: Option<Instant>,
}

impl Wal {
    pub(crate) fn new(conn: &Connection) -> Self {
        let path = format!("{}-wal", conn.path().unwrap_or_default());
        Self {
            path: path.into(),
            unclean: true,
            tried: None,
        }
    }

    /// Says that something was destroyed, and takes it out at once unless a reader needs it.
    pub(crate) fn purge(&mut self, conn: &Connection) {
        self.unclean = true;
        self.empty(conn);
    }

    /// Tries again what readers prevented, and keeps the log from growing.
    pub(crate) fn tidy(&mut self, conn: &Connection) {
        let is_large = || std::fs::metadata(&self.path).is_ok_and(|file| file.len() > LARGE);
        if self.tried.is_none_or(|at| at.elapsed() > RETRY) && (self.unclean || is_large()) {
            self.empty(conn);
        }
    }

    /// Takes out all that is in it.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when a reader needs it for longer than the busy timeout.
    pub(crate) fn drain(&mut self, conn: &Connection) -> Result<()> {
        let busy: i64 = conn
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0))
            .map_err(from_sqlite)?;
        if busy != 0 {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "a reader holds the write-ahead log: end its export or try again",
            ));
        }
        self.unclean = false;
        Ok(())
    }

    fn empty(&mut self, conn: &Connection) {
        self.tried = Some(Instant::now());
        let emptied = conn.busy_timeout(PATIENCE).and_then(|()| {
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| {
                r.get::<_, i64>(0)
            })
        });
        match emptied {
            Ok(0) => self.unclean = false,
            Ok(_) => tracing::debug!("a reader holds the write-ahead log"),
            Err(error) => tracing::warn!(%error, "the write-ahead log was not emptied"),
        }
        if let Err(error) = conn.busy_timeout(BUSY_TIMEOUT) {
            tracing::warn!(%error, "the busy timeout was not restored");
        }
    }
}
