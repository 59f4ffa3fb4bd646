//! Capture in the caller's own SQLite file and transaction.
//!
//! ```
//! use audit_core::{Event, SystemClock, TenantId};
//! use audit_store_sqlite::{outbox, rusqlite};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;
//! let mut conn = rusqlite::Connection::open_in_memory()?;
//! outbox::create_table(&conn)?;
//! conn.execute_batch("CREATE TABLE invoices (id TEXT, state TEXT)")?;
//!
//! let tx = conn.transaction()?;
//! tx.execute("INSERT INTO invoices VALUES ('inv-1', 'approved')", [])?;
//! outbox::record_in(&tx, tenant, Event::update("invoice", "inv-1").user("ann"), &SystemClock)?;
//! tx.commit()?;
//! # Ok(())
//! # }
//! ```
//!
//! A relay takes the rows from a [`SqliteOutbox`] on the same file and appends them to the log.
//!
//! The connection is that of [`rusqlite`] as this crate names it: an application
//! that has another version of it uses the one here, or puts its rows in with SQL, as
//! [`create_table`] says.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::queue::removed;
use audit_core::{
    Clock, Event, EventId, Outbox, OutboxRow, ParkedRow, PreparedEvent, Redrive, Result, Sieve,
    TenantId,
};
use rusqlite::{Connection, OpenFlags, Row, params};

use crate::fault::{from_sqlite, gone};
use crate::row;

/// Numbers are never used again, so that saying twice that a row is done can't remove another. A row
/// that the relay couldn't read would stand before all later ones: it is refused where it is made.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS audit_outbox (
    n           INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant      BLOB    NOT NULL CHECK (typeof(tenant) = 'blob' AND length(tenant) = 16),
    id          BLOB    NOT NULL CHECK (typeof(id) = 'blob' AND length(id) = 16),
    recorded_at INTEGER NOT NULL CHECK (typeof(recorded_at) = 'integer'
                    AND recorded_at BETWEEN 0 AND 253402300799999999),
    event       TEXT    NOT NULL CHECK (typeof(event) = 'text')
);
CREATE TABLE IF NOT EXISTS audit_outbox_parked (
    n           INTEGER PRIMARY KEY,
    tenant      BLOB    NOT NULL,
    id          BLOB    NOT NULL,
    recorded_at INTEGER NOT NULL,
    event       TEXT    NOT NULL,
    reason      TEXT    NOT NULL
);
";

/// Parked rows that a sieve is shown at once, and about their bytes.
const SIFTED: i64 = 100;
const SIFTED_BYTES: usize = 8 << 20;

/// Creates the outbox's tables in the caller's database, where they are not there yet:
/// `audit_outbox (n, tenant, id, recorded_at, event)` and `audit_outbox_parked`, with a `reason`
/// more. `tenant` and `id` are UUIDs as 16 bytes, `recorded_at` microseconds since 1970, `event` the
/// JSON that a client would send, with the same id.
///
/// # Errors
/// What the engine refuses.
pub fn create_table(conn: &Connection) -> Result<()> {
    conn.execute_batch(TABLES).map_err(from_sqlite)
}

/// Records an event in the caller's transaction: one row more, which exists when the transaction
/// commits, and not otherwise. Returns the event's id.
///
/// A [`Transaction`](rusqlite::Transaction) is passed as `&tx`; a plain connection commits at once.
///
/// # Errors
/// [`Invalid`](audit_core::ErrorKind::Invalid) with every bad field, before anything is written: the caller's transaction
/// can go on. Otherwise what the engine refuses.
pub fn record_in(
    conn: &Connection,
    tenant: TenantId,
    event: Event,
    clock: &dyn Clock,
) -> Result<EventId> {
    let id = PreparedEvent::new(tenant, event.clone(), clock, &[])?.id();
    conn.prepare_cached(
        "INSERT INTO audit_outbox (tenant, id, recorded_at, event) VALUES (?1, ?2, ?3, ?4)",
    )
    .and_then(|mut statement| {
        statement.execute(params![
            tenant.as_uuid().as_bytes(),
            id.as_uuid().as_bytes(),
            clock.now().as_micros(),
            event.id(id).to_json()
        ])
    })
    .map_err(|error| from_sqlite(error).with_event_id(id))?;
    Ok(id)
}

/// The outbox in a caller's SQLite file, for the relay. Cheap to clone.
///
/// It has one connection of its own, whose transactions are short; it waits up to 5 s for the
/// caller's. It never checkpoints: that stays with the connections of the file's owner.
#[derive(Debug, Clone)]
pub struct SqliteOutbox {
    conn: Arc<Mutex<Connection>>,
}

impl SqliteOutbox {
    /// Opens the caller's file, which must be there, and creates the tables where they are not.
    ///
    /// # Errors
    /// [`Unavailable`](audit_core::ErrorKind::Unavailable) when the file isn't there or can't be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags).map_err(from_sqlite)?;
        conn.busy_timeout(Duration::from_secs(5))
            .map_err(from_sqlite)?;
        conn.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA secure_delete = ON;")
            .map_err(from_sqlite)?;
        create_table(&conn)?;
        Ok(Self {
            conn: Arc::new(Mutex::new(conn)),
        })
    }

    /// The oldest parked rows behind a number: at most so many that a sieve may be shown them at once.
    async fn parked_behind(&self, n: i64) -> Result<Vec<ParkedRow>> {
        self.run(move |conn| {
            let mut select = conn.prepare_cached(
                "SELECT n, tenant, id, event, recorded_at, reason FROM audit_outbox_parked
                 WHERE n > ?1 ORDER BY n LIMIT ?2",
            )?;
            let mut rows = select.query([n, SIFTED])?;
            let (mut parked, mut bytes) = (Vec::new(), 0);
            while bytes < SIFTED_BYTES
                && let Some(row) = rows.next()?
            {
                let row = parked_row(row)?;
                bytes += row.row.event.len();
                parked.push(row);
            }
            Ok(parked)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let conn = Arc::clone(&self.conn);
        tokio::task::spawn_blocking(move || {
            // A panic elsewhere rolled its transaction back when it dropped it.
            let conn = conn.lock().unwrap_or_else(PoisonError::into_inner);
            f(&conn).map_err(from_sqlite)
        })
        .await
        .map_err(|_| gone())?
    }
}

#[async_trait]
impl Outbox for SqliteOutbox {
    /// Rows that are passed over are read through.
    async fn take(&self, limit: usize, passing_over: &[TenantId]) -> Result<Vec<OutboxRow>> {
        let passing_over: Vec<Vec<u8>> = passing_over
            .iter()
            .map(|tenant| tenant.as_uuid().as_bytes().to_vec())
            .collect();
        self.run(move |conn| {
            let mut statement = conn.prepare_cached(
                "SELECT n, tenant, id, event, recorded_at FROM audit_outbox ORDER BY n",
            )?;
            let mut rows = statement.query([])?;
            let mut taken = Vec::new();
            while taken.len() < limit
                && let Some(row) = rows.next()?
            {
                let tenant = row.get_ref(1)?.as_blob()?;
                if !passing_over.iter().any(|passed| passed == tenant) {
                    taken.push(outbox_row(row)?);
                }
            }
            Ok(taken)
        })
        .await
    }

    async fn done(&self, rows: &[i64]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let rows = rows.to_vec();
        self.run(move |conn| {
            let tx = immediate(conn)?;
            let mut delete = tx.prepare_cached("DELETE FROM audit_outbox WHERE n = ?1")?;
            for row in rows {
                delete.execute([row])?;
            }
            drop(delete);
            tx.commit()
        })
        .await
    }

    /// A row that is parked already, or done, is passed over.
    async fn park(&self, row: i64, reason: &str) -> Result<()> {
        let reason = reason.to_owned();
        self.run(move |conn| {
            let tx = immediate(conn)?;
            tx.execute(
                "INSERT INTO audit_outbox_parked
                 SELECT n, tenant, id, recorded_at, event, ?2 FROM audit_outbox WHERE n = ?1",
                params![row, reason],
            )?;
            tx.execute("DELETE FROM audit_outbox WHERE n = ?1", [row])?;
            tx.commit()
        })
        .await
    }

    async fn parked(&self, limit: usize) -> Result<Vec<ParkedRow>> {
        self.run(move |conn| {
            conn.prepare_cached(
                "SELECT n, tenant, id, event, recorded_at, reason FROM audit_outbox_parked
                 ORDER BY n LIMIT ?1",
            )?
            .query_map([bound(limit)], parked_row)?
            .collect()
        })
        .await
    }

    /// They keep their numbers, and so come before all that was recorded later.
    async fn redrive(&self, rows: &Redrive<i64>) -> Result<u64> {
        let rows = rows.clone();
        self.run(move |conn| {
            let tx = immediate(conn)?;
            let named = match rows {
                Redrive::Only(named) => named,
                Redrive::All => tx
                    .prepare("SELECT n FROM audit_outbox_parked ORDER BY n")?
                    .query_map([], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?,
            };
            let mut count = 0;
            for n in named {
                count += tx.execute(
                    "INSERT INTO audit_outbox (n, tenant, id, recorded_at, event)
                     SELECT n, tenant, id, recorded_at, event FROM audit_outbox_parked
                     WHERE n = ?1",
                    [n],
                )?;
                tx.execute("DELETE FROM audit_outbox_parked WHERE n = ?1", [n])?;
            }
            tx.commit()?;
            Ok(count as u64)
        })
        .await
    }

    async fn sift(&self, sieve: Arc<dyn Sieve<ParkedRow>>) -> Result<u64> {
        let (mut behind, mut count) = (0, 0);
        loop {
            let rows = self.parked_behind(behind).await?;
            let Some(last) = rows.last() else {
                return Ok(count);
            };
            behind = last.row.row;
            let numbers = rows.iter().map(|parked| parked.row.row).collect();
            let gone = removed(&*sieve, &rows, numbers).await?;
            count += self
                .run(move |conn| {
                    let tx = immediate(conn)?;
                    let mut count = 0;
                    for n in gone {
                        count += tx.execute("DELETE FROM audit_outbox_parked WHERE n = ?1", [n])?;
                    }
                    tx.commit()?;
                    Ok(count as u64)
                })
                .await?;
        }
    }
}

fn immediate(conn: &Connection) -> rusqlite::Result<rusqlite::Transaction<'_>> {
    rusqlite::Transaction::new_unchecked(conn, rusqlite::TransactionBehavior::Immediate)
}

fn bound(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Reads n, tenant, id, event and recorded_at.
fn outbox_row(row: &Row<'_>) -> rusqlite::Result<OutboxRow> {
    Ok(OutboxRow::new(
        row.get(0)?,
        row::tenant_id(row, 1)?,
        row::event_id(row, 2)?,
        row.get(3)?,
        row::time(row, 4)?,
    ))
}

/// Reads a row's columns, and its reason.
fn parked_row(row: &Row<'_>) -> rusqlite::Result<ParkedRow> {
    Ok(ParkedRow::new(outbox_row(row)?, row.get::<_, String>(5)?))
}
