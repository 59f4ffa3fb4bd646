//! The index's file: its tables, how it is opened, and when it is made anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_core::{Clock, Error, ErrorKind, Result, SystemClock};
use rusqlite::{Connection, OpenFlags, OptionalExtension, ffi::ErrorCode};

use super::view::doc;
use crate::fault::from_sqlite;
use crate::private::make_private;

/// The version of the tables and of what stands in them, in `user_version`. There is no migration:
/// a file of another one is replaced.
const VERSION: i64 = 1;

/// A tenant's log is indexed from `first` (0, or where a prune ended) up to `through`. `superseded` holds the documents
/// of entries that lost groups before they were indexed. Numbers of documents are the tenant's
/// shifted by 40, and the seq.
///
/// The settings of FTS5 were measured at 200,000 documents of 1 KB: together with pages of 8 KiB they
/// are 1.6 times as fast as the defaults. A larger memory table costs more in cache misses than it
/// saves in merges. Merging begins at 16 segments of a level, a little with each write; at 64 a level
/// would be merged at once, in one long transaction.
const TABLES: &str = "
CREATE TABLE secret (key BLOB NOT NULL) STRICT;

CREATE TABLE tenants (
    no      INTEGER PRIMARY KEY,
    id      BLOB    NOT NULL UNIQUE,
    first   INTEGER NOT NULL,
    through INTEGER NOT NULL
) STRICT;

CREATE TABLE documents (
    doc         INTEGER PRIMARY KEY,
    occurred_at INTEGER NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE occurred (
    tenant      INTEGER NOT NULL,
    occurred_at INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    PRIMARY KEY (tenant, occurred_at, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE zones (
    tenant INTEGER NOT NULL,
    zone   INTEGER NOT NULL,
    first  INTEGER NOT NULL,
    last   INTEGER NOT NULL,
    PRIMARY KEY (tenant, zone)
) STRICT, WITHOUT ROWID;

CREATE TABLE superseded (
    doc  INTEGER PRIMARY KEY,
    text TEXT NOT NULL
) STRICT;

CREATE VIRTUAL TABLE words USING fts5(
    text, content = '', contentless_delete = 1, tokenize = 'ascii'
);
INSERT INTO words (words, rank) VALUES ('pgsz', 8120);
INSERT INTO words (words, rank) VALUES ('hashsize', 8388608);
INSERT INTO words (words, rank) VALUES ('automerge', 16);
INSERT INTO words (words, rank) VALUES ('crisismerge', 64);
";

/// Opens the writer's connection. A file that is damaged, or of another version, is replaced.
pub(super) fn open_writer(path: &Path) -> Result<Connection> {
    match existing(path) {
        Ok(Some(connection)) => return Ok(connection),
        Ok(None) => {}
        Err(error) if is_damage(&error) => {
            tracing::warn!(path = %path.display(), "the index is damaged and is built again");
        }
        Err(error) => return Err(from_sqlite(error)),
    }
    remove(path)?;
    make_private(path)?;
    create(path).map_err(from_sqlite)
}

/// Removes a file that was made from another log than this one, or from a later state of it: a log
/// that was restored from a backup, or begun anew, has other entries at positions that the file says
/// it holds. The file must not be open.
///
/// A log never gets shorter by itself, and what it lost in a crash was never in the index.
pub(crate) fn remove_unless_of(path: &Path, log: &Connection) -> Result<()> {
    let index = match existing(path) {
        Ok(Some(index)) => index,
        // Whoever opens it makes it anew.
        Ok(None) => return Ok(()),
        Err(error) if is_damage(&error) => return Ok(()),
        Err(error) => return Err(from_sqlite(error)),
    };
    match is_of(&index, log) {
        Ok(true) => return Ok(()),
        Ok(false) => {
            tracing::warn!(path = %path.display(), "the index is another log's and is built again");
        }
        Err(error) if is_damage(&error) => {}
        Err(error) => return Err(from_sqlite(error)),
    }
    drop(index);
    remove(path)
}

/// Whether the log has the last entry that the index holds of each tenant that is not deleted, by its time.
fn is_of(index: &Connection, log: &Connection) -> rusqlite::Result<bool> {
    let mut tenants = index.prepare("SELECT no, id, through FROM tenants WHERE through > 0")?;
    let mut indexed = index.prepare("SELECT created_at FROM documents WHERE doc = ?1")?;
    let mut size = log.prepare(
        "SELECT t.no, h.size FROM tenants t JOIN heads h ON h.tenant = t.no WHERE t.id = ?1",
    )?;
    let mut deleted = log.prepare("SELECT 1 FROM tenants WHERE id = ?1 AND status = 'deleted'")?;
    let mut stored =
        log.prepare("SELECT created_at FROM entries WHERE tenant = ?1 AND seq = ?2")?;
    let mut rows = tenants.query([])?;
    while let Some(row) = rows.next()? {
        let (number, id): (i64, [u8; 16]) = (row.get(0)?, row.get(1)?);
        let through = row.get::<_, i64>(2)?;
        let log = size
            .query_row([id], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
            .optional()?;
        // Its documents are on their way out.
        if deleted.exists([id])? {
            continue;
        }
        let Some((tenant, _)) = log.filter(|(_, size)| *size >= through) else {
            return Ok(false);
        };
        let last = through - 1;
        let indexed: Option<i64> = indexed
            .query_row([doc(number, last.unsigned_abs())], |row| row.get(0))
            .optional()?;
        let stored: Option<i64> = stored
            .query_row([tenant, last], |row| row.get(0))
            .optional()?;
        // What is pruned may be missing on either side.
        if indexed.zip(stored).is_some_and(|(a, b)| a != b) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens a connection that only reads; none when there is no file that can be used.
pub(super) fn open_reader(path: &Path) -> Result<Option<Connection>> {
    if !path.exists() {
        return Ok(None);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok((version(&connection)? == VERSION).then_some(connection))
    };
    match open() {
        Ok(connection) => Ok(connection),
        Err(error) if is_damage(&error) => Ok(None),
        Err(error) => Err(from_sqlite(error)),
    }
}

/// An index that holds nothing.
pub(super) fn empty() -> Result<Connection> {
    let connection = Connection::open_in_memory().map_err(from_sqlite)?;
    fill(&connection).map_err(from_sqlite)?;
    Ok(connection)
}

/// Has the file replaced when it is opened the next time.
pub(super) fn condemn(connection: &Connection) {
    if let Err(error) = connection.pragma_update(None, "user_version", VERSION + 1) {
        tracing::warn!(%error, "the index is damaged, and can't be marked so: delete its file");
    }
}

fn existing(path: &Path) -> rusqlite::Result<Option<Connection>> {
    if !path.exists() {
        return Ok(None);
    }
    let connection = Connection::open(path)?;
    if version(&connection)? != VERSION {
        return Ok(None);
    }
    settle(&connection)?;
    // Touches each table that a batch begins with.
    connection.query_row("SELECT key FROM secret", [], |row| {
        row.get::<_, [u8; 16]>(0)
    })?;
    connection.query_row("SELECT max(first), max(through) FROM tenants", [], |_| {
        Ok(())
    })?;
    connection.query_row(
        "SELECT count(*) FROM words WHERE words MATCH 'none'",
        [],
        |_| Ok(()),
    )?;
    Ok(Some(connection))
}

fn create(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "page_size", 8192)?;
    settle(&connection)?;
    fill(&connection)?;
    Ok(connection)
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(32);
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = NORMAL;
         PRAGMA cache_size = -8000;
         PRAGMA wal_autocheckpoint = 2000;",
    )
}

fn fill(connection: &Connection) -> rusqlite::Result<()> {
    let key = &SystemClock.secret()[..16];
    let tables = connection.unchecked_transaction()?;
    tables.execute_batch(TABLES)?;
    tables.execute("INSERT INTO secret VALUES (?1)", [key])?;
    tables.pragma_update(None, "user_version", VERSION)?;
    tables.commit()
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
    ) || matches!(error, rusqlite::Error::QueryReturnedNoRows)
}

fn remove(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(PathBuf::from(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(
                    Error::new(ErrorKind::Unavailable, "the index can't be replaced")
                        .with_source(error),
                );
            }
            _ => {}
        }
    }
    Ok(())
}
