//! The log's file: its tables, and the settings that every connection to it has.

use std::path::Path;
use std::time::Duration;

use audit_core::{Error, ErrorKind, Result};
use rusqlite::{Connection, OpenFlags};

use crate::fault::from_sqlite;
use crate::private::make_private;

/// The version of the tables below, in `meta`. A file of a newer one is refused.
pub(crate) const VERSION: i64 = 1 + STEPS.len() as i64;

/// Earlier engines can corrupt a WAL database when two connections write or checkpoint at once.
pub(crate) const SAFE_ENGINE: i32 = 3_051_003;

/// How long a connection waits for another's lock.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Positions in one tile, and in one bundle (C2SP tlog-tiles).
pub(crate) const TILE: u64 = 256;

/// Times are microseconds since 1970. `entries` stands in commit order; its small columns come
/// first, so that a pass over them doesn't read the pages of large states.
const TABLES: &str = "
CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value ANY  NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tenants (
    no         INTEGER PRIMARY KEY,
    id         BLOB    NOT NULL UNIQUE,
    name       TEXT    NOT NULL,
    status     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    secret     BLOB    NOT NULL
) STRICT;

CREATE TABLE heads (
    tenant       INTEGER PRIMARY KEY,
    size         INTEGER NOT NULL,
    peaks        BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,
    pruned_below INTEGER NOT NULL,
    pruned_by    INTEGER,
    swept_below  INTEGER NOT NULL,
    last_n       INTEGER NOT NULL
) STRICT;
CREATE INDEX heads_unswept ON heads (tenant) WHERE swept_below < pruned_below;

CREATE TABLE entries (
    n                 INTEGER PRIMARY KEY,
    tenant            INTEGER NOT NULL,
    seq               INTEGER NOT NULL,
    created_at        INTEGER NOT NULL,
    occurred_at       INTEGER NOT NULL,
    action_type       TEXT    NOT NULL,
    severity          TEXT    NOT NULL,
    outcome           TEXT    NOT NULL,
    kind              TEXT    NOT NULL,
    leaf_hash         BLOB    NOT NULL,
    id                BLOB    NOT NULL,
    opening           BLOB    NOT NULL,
    action            TEXT    NOT NULL,
    ctl               TEXT,
    user_id           TEXT,
    actor_type        TEXT,
    actor_name        TEXT,
    on_behalf_of      TEXT,
    resource_type     TEXT,
    resource_id       TEXT,
    resource_name     TEXT,
    related_resources TEXT,
    session_id        TEXT,
    request_id        TEXT,
    trace_id          TEXT,
    user_agent        TEXT,
    ip_address        BLOB,
    reason            TEXT,
    before_state      TEXT,
    after_state       TEXT,
    metadata          TEXT,
    UNIQUE (tenant, seq)
) STRICT;

CREATE TABLE ids (
    tenant      INTEGER NOT NULL,
    id          BLOB    NOT NULL,
    seq         INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    leaf_hash   BLOB    NOT NULL,
    content_key BLOB,
    content_tag BLOB,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE counters (
    tenant      INTEGER NOT NULL,
    day         INTEGER NOT NULL,
    action_type TEXT    NOT NULL,
    severity    TEXT    NOT NULL,
    outcome     TEXT    NOT NULL,
    count       INTEGER NOT NULL,
    PRIMARY KEY (tenant, day, action_type, severity, outcome)
) STRICT, WITHOUT ROWID;

-- Hashes of complete subtrees of 256^level leaves, 256 to a row, and the root over them, which is
-- the next level's hash.
CREATE TABLE tiles (
    tenant INTEGER NOT NULL,
    level  INTEGER NOT NULL,
    idx    INTEGER NOT NULL,
    root   BLOB    NOT NULL,
    hashes BLOB    NOT NULL,
    PRIMARY KEY (tenant, level, idx)
) STRICT;

-- Leaf data that outlives a prune: of the bundle that straddles it, and of entries that are never
-- pruned.
CREATE TABLE kept_leaves (
    tenant    INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    leaf_hash BLOB    NOT NULL,
    leaf_data TEXT    NOT NULL,
    PRIMARY KEY (tenant, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE cursors (
    tenant   INTEGER NOT NULL,
    consumer TEXT    NOT NULL,
    required INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (tenant, consumer)
) STRICT, WITHOUT ROWID;

CREATE TABLE api_keys (
    id           BLOB    NOT NULL PRIMARY KEY,
    tenant       BLOB    NOT NULL,
    secret       BLOB    NOT NULL UNIQUE,
    name         TEXT    NOT NULL,
    role         TEXT    NOT NULL,
    permissions  TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER
) STRICT;
CREATE INDEX api_keys_tenant ON api_keys (tenant);

CREATE TABLE tickets (
    secret             BLOB    NOT NULL PRIMARY KEY,
    tenant             BLOB    NOT NULL,
    subject            TEXT    NOT NULL,
    expires_at         INTEGER NOT NULL,
    session_expires_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX tickets_expires_at ON tickets (expires_at);
";

/// What version 3 added.
const HANDOVERS: &str = "
ALTER TABLE checkpoints ADD COLUMN handover INTEGER NOT NULL DEFAULT 0;

CREATE TABLE key_changes (
    tenant   INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    old_vkey TEXT    NOT NULL,
    new_vkey TEXT    NOT NULL,
    PRIMARY KEY (tenant, seq)
) STRICT, WITHOUT ROWID;
";

/// What version 2 added.
const CHECKPOINTS: &str = "
CREATE TABLE checkpoints (
    tenant    INTEGER NOT NULL,
    size      INTEGER NOT NULL,
    root      BLOB    NOT NULL,
    note      TEXT    NOT NULL,
    signed_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, size)
) STRICT, WITHOUT ROWID;

-- One row once somebody signs. The fence counts the holders.
CREATE TABLE signer (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    holder TEXT    NOT NULL,
    fence  INTEGER NOT NULL,
    until  INTEGER NOT NULL
) STRICT;
";

/// What version 4 added.
const RETENTION: &str = "
-- JSON.
CREATE TABLE retention (
    tenant    INTEGER PRIMARY KEY,
    retention TEXT    NOT NULL
) STRICT;

CREATE TABLE legal_holds (
    tenant      INTEGER NOT NULL,
    id          BLOB    NOT NULL,
    name        TEXT    NOT NULL,
    reason      TEXT,
    placed_by   TEXT,
    placed_at   INTEGER NOT NULL,
    released_at INTEGER,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX legal_holds_open ON legal_holds (tenant, placed_at, id) WHERE released_at IS NULL;
";

/// What version 5 added. `selection` is forgotten when the erasure is done; the marks are keyed hashes
/// of what it was about.
const ERASURES: &str = "
CREATE TABLE erasures (
    id           BLOB    NOT NULL PRIMARY KEY,
    tenant       INTEGER NOT NULL,
    selection    TEXT,
    groups       TEXT    NOT NULL,
    basis        TEXT    NOT NULL,
    subject      TEXT    NOT NULL,
    reason       TEXT,
    requested_at INTEGER NOT NULL,
    below        INTEGER NOT NULL,
    next         INTEGER NOT NULL,
    end_at       INTEGER NOT NULL,
    entries      INTEGER NOT NULL,
    done         INTEGER NOT NULL,
    last_error   TEXT
) STRICT;
CREATE INDEX erasures_open ON erasures (tenant, id) WHERE done = 0;

CREATE TABLE erasure_marks (
    tenant       INTEGER NOT NULL,
    mark         BLOB    NOT NULL,
    erasure      BLOB    NOT NULL,
    requested_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, mark, erasure)
) STRICT, WITHOUT ROWID;
";

/// What version 6 added: the log over all tenants' heads.
const DEPLOYMENT: &str = "
CREATE TABLE deployment_leaves (
    idx    INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    size   INTEGER NOT NULL,
    root   BLOB    NOT NULL,
    salt   BLOB    NOT NULL
) STRICT;
CREATE INDEX deployment_leaves_tenant ON deployment_leaves (tenant, idx);

-- Hashes of complete subtrees of 256^level leaves.
CREATE TABLE deployment_hashes (
    level INTEGER NOT NULL,
    idx   INTEGER NOT NULL,
    hash  BLOB    NOT NULL,
    PRIMARY KEY (level, idx)
) STRICT, WITHOUT ROWID;

CREATE TABLE deployment_checkpoints (
    n         INTEGER PRIMARY KEY,
    size      INTEGER NOT NULL,
    root      BLOB    NOT NULL,
    note      TEXT    NOT NULL,
    signed_at INTEGER NOT NULL
) STRICT;
CREATE INDEX deployment_checkpoints_size ON deployment_checkpoints (size, n);
";

/// What version 7 added: epochs.
const EPOCHS: &str = "
CREATE TABLE epochs (
    tenant INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    epoch  INTEGER NOT NULL,
    PRIMARY KEY (tenant, seq)
) STRICT, WITHOUT ROWID;
";

/// What version 8 added: whether everyone may read a tenant's checkpoints, key and tiles.
const PUBLIC_LOGS: &str = "
ALTER TABLE tenants ADD COLUMN public_log INTEGER NOT NULL DEFAULT 0;
";

/// What version 9 added: ends of tenants that were asked for, and what is left of deleted ones. Of those that
/// aren't swept the log's file has rows still; those that aren't settled may have left something elsewhere.
const OFFBOARDING: &str = "
CREATE TABLE endings (
    tenant       INTEGER PRIMARY KEY,
    subject      TEXT    NOT NULL,
    reason       TEXT,
    requested_at INTEGER NOT NULL,
    archived     INTEGER NOT NULL,
    signed       INTEGER NOT NULL
) STRICT;

CREATE TABLE tombstones (
    tenant     INTEGER PRIMARY KEY,
    origin     TEXT,
    size       INTEGER NOT NULL,
    root       BLOB    NOT NULL,
    checkpoint TEXT,
    ended_at   INTEGER NOT NULL,
    swept      INTEGER NOT NULL,
    settled    INTEGER NOT NULL
) STRICT;
CREATE INDEX tombstones_unswept ON tombstones (tenant) WHERE swept = 0;
CREATE INDEX tombstones_unsettled ON tombstones (tenant) WHERE settled = 0;
";

/// What version 10 added: whether the guard knew of a checkpoint before it was kept.
const GUARDED: &str = "
ALTER TABLE deployment_checkpoints ADD COLUMN guarded INTEGER NOT NULL DEFAULT 0;
";

/// What version 11 added: how many accepted events went with a tenant, never appended; none of tenants that
/// were deleted before.
const UNAPPENDED: &str = "
ALTER TABLE tombstones ADD COLUMN unappended INTEGER;
";

/// What has to be run after [`TABLES`], which are of version 1, once each and in this order.
const STEPS: [&str; 10] = [
    CHECKPOINTS,
    HANDOVERS,
    RETENTION,
    ERASURES,
    DEPLOYMENT,
    EPOCHS,
    PUBLIC_LOGS,
    OFFBOARDING,
    GUARDED,
    UNAPPENDED,
];

/// Opens the writer's connection, and creates the tables in a new file.
pub(crate) fn open_writer(path: &Path, max_pages: Option<u64>) -> Result<Connection> {
    if rusqlite::version_number() < SAFE_ENGINE {
        tracing::warn!(
            version = rusqlite::version(),
            "SQLite before 3.51.3 can corrupt a database that several connections use"
        );
    }
    make_private(path)?;
    let conn = Connection::open(path).map_err(from_sqlite)?;
    settle(&conn)?;
    // Both must come before the first table: they shape the file.
    conn.execute_batch(
        "PRAGMA auto_vacuum = INCREMENTAL;
         PRAGMA secure_delete = ON;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 2000;
         PRAGMA journal_size_limit = 67108864;",
    )
    .map_err(from_sqlite)?;
    if let Some(pages) = max_pages {
        conn.pragma_update(None, "max_page_count", pages as i64)
            .map_err(from_sqlite)?;
    }
    if !has_tables(&conn)? {
        conn.execute_batch(&format!(
            "BEGIN IMMEDIATE; {TABLES} {}
             INSERT INTO meta VALUES ('schema_version', {VERSION}); COMMIT;",
            STEPS.concat()
        ))
        .map_err(from_sqlite)?;
    }
    let present = check_version(&conn)?;
    for (version, step) in (2..).zip(STEPS).filter(|(version, _)| *version > present) {
        conn.execute_batch(&format!(
            "BEGIN IMMEDIATE; {step}
             UPDATE meta SET value = {version} WHERE key = 'schema_version'; COMMIT;",
        ))
        .map_err(from_sqlite)?;
    }
    // Whoever signed here before is gone: this process has the writer's lock.
    conn.execute("UPDATE signer SET until = 0", [])
        .map_err(from_sqlite)?;
    Ok(conn)
}

/// Opens a connection that only reads, and never checkpoints.
pub(crate) fn open_reader(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(from_sqlite)?;
    settle(&conn)?;
    conn.execute_batch("PRAGMA query_only = ON; PRAGMA wal_autocheckpoint = 0;")
        .map_err(from_sqlite)?;
    if !has_tables(&conn)? {
        return Err(Error::new(
            ErrorKind::Unavailable,
            "the file holds no log yet",
        ));
    }
    if check_version(&conn)? < VERSION {
        return Err(Error::new(
            ErrorKind::Unavailable,
            "the file is of an older version of this program: open it for writing once",
        ));
    }
    Ok(conn)
}

fn settle(conn: &Connection) -> Result<()> {
    conn.busy_timeout(BUSY_TIMEOUT).map_err(from_sqlite)?;
    conn.set_prepared_statement_cache_capacity(128);
    Ok(())
}

fn has_tables(conn: &Connection) -> Result<bool> {
    conn.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE name = 'meta'",
        [],
        |r| r.get::<_, i64>(0),
    )
    .map(|n| n > 0)
    .map_err(from_sqlite)
}

fn check_version(conn: &Connection) -> Result<i64> {
    let version: i64 = conn
        .query_row(
            "SELECT value FROM meta WHERE key = 'schema_version'",
            [],
            |r| r.get(0),
        )
        .map_err(from_sqlite)?;
    if version > VERSION {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the file has schema version {version}, this program knows up to {VERSION}: use a newer program"
            ),
        ));
    }
    Ok(version)
}
