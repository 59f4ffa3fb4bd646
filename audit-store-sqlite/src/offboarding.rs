//! Ends of tenants and their tombstones, in the log's file, and the steps that remove what a deleted tenant
//! left.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use audit_core::offboarding::{admit_end, admit_ending};
use audit_core::{
    Ending, OffboardingStore, PreparedEvent, Result, TenantId, TenantSecret, TenantStatus,
    Tombstone,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::fault::from_sqlite;
use crate::reader::{tenant_no, unknown_tenant};
use crate::retention::protection;
use crate::store::SqliteStore;
use crate::writer::{Ledger, Writer};
use crate::{head, row};

/// How long one step may hold the writer.
const STEP: Duration = Duration::from_millis(20);

/// Rows that one step removes at most: its commit takes time, too.
const STEP_ROWS: usize = 500;

/// Rows that are removed between two looks at the clock.
const LOOK_ROWS: usize = 100;

/// Where a tenant has rows under its number, and what tells them apart; the head comes last. What the
/// deployment log committed to stays: it says no more than the tombstone.
const TABLES: [(&str, &str); 14] = [
    ("entries", "seq"),
    ("ids", "id"),
    ("counters", "day, action_type, severity, outcome"),
    ("tiles", "level, idx"),
    ("kept_leaves", "seq"),
    ("cursors", "consumer"),
    ("checkpoints", "size"),
    ("key_changes", "seq"),
    ("epochs", "seq"),
    ("retention", "tenant"),
    ("legal_holds", "id"),
    ("erasures", "id"),
    ("erasure_marks", "mark, erasure"),
    ("heads", "tenant"),
];

const ENDING: &str = "t.id, e.subject, e.reason, e.requested_at, e.archived, e.signed";

fn decode_ending(r: &Row<'_>) -> rusqlite::Result<Ending> {
    let (subject, reason): (String, Option<String>) = (r.get(1)?, r.get(2)?);
    let ending = Ending::new(row::tenant_id(r, 0)?, subject, reason, row::time(r, 3)?);
    Ok(ending.archived(r.get(4)?).signed(r.get(5)?))
}

const TOMBSTONE: &str =
    "t.id, s.origin, s.size, s.root, s.checkpoint, s.ended_at, s.swept, s.unappended";

fn decode_tombstone(r: &Row<'_>) -> rusqlite::Result<Tombstone> {
    let (size, root) = (row::position(r, 2)?, row::hash(r, 3)?);
    let mut tombstone = Tombstone::new(row::tenant_id(r, 0)?, size, root, row::time(r, 5)?);
    tombstone.origin = r.get(1)?;
    tombstone.checkpoint = r.get(4)?;
    tombstone.is_swept = r.get(6)?;
    tombstone.unappended = row::optional_position(r, 7)?;
    Ok(tombstone)
}

/// The end of a tenant that was asked for.
pub(crate) fn ending(conn: &Connection, no: i64) -> Result<Option<Ending>> {
    conn.prepare_cached(&format!(
        "SELECT {ENDING} FROM endings e JOIN tenants t ON t.no = e.tenant WHERE e.tenant = ?1"
    ))
    .and_then(|mut statement| statement.query_row([no], decode_ending).optional())
    .map_err(from_sqlite)
}

impl Ledger<'_> {
    fn begin_ending(
        &mut self,
        conn: &Connection,
        asked: &Ending,
        event: PreparedEvent,
    ) -> Result<Ending> {
        let id = asked.tenant;
        let (no, status) = tenant_no(conn, id)?.ok_or_else(|| unknown_tenant(id))?;
        let kept = admit_ending(id, status, ending(conn, no)?, &protection(conn, no)?)?;
        if let Some(kept) = kept {
            return Ok(kept);
        }
        self.tell(conn, id, event)?;
        conn.execute(
            "INSERT INTO endings (tenant, subject, reason, requested_at, archived, signed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                no,
                asked.subject,
                asked.reason,
                asked.requested_at.as_micros(),
                asked.is_archived,
                asked.is_signed
            ],
        )
        .and_then(|_| {
            let status = TenantStatus::Inactive;
            if let Some(sealer) = self.remembered().get_mut(&id) {
                sealer.status = status;
            }
            conn.execute(
                "UPDATE tenants SET status = ?2 WHERE no = ?1",
                params![no, status.as_str()],
            )
        })
        .map_err(from_sqlite)?;
        Ok(asked.clone())
    }

    fn end(&mut self, conn: &Connection, tombstone: &Tombstone) -> Result<()> {
        let id = tombstone.tenant;
        let (no, status) = tenant_no(conn, id)?.ok_or_else(|| unknown_tenant(id))?;
        let (kept, head) = (ending(conn, no)?, head::head(conn, no, id)?);
        admit_end(
            tombstone,
            status,
            kept.as_ref(),
            &head,
            &protection(conn, no)?,
            is_erasing(conn, no).map_err(from_sqlite)?,
        )?;
        self.remembered().remove(&id);
        bury(conn, no, tombstone).map_err(from_sqlite)
    }

    /// Removes some of what a deleted tenant left; false when nothing was there any more.
    fn remove_deleted(&mut self, conn: &Connection, no: i64, tenant: TenantId) -> Result<bool> {
        let newest = newest_row(conn).map_err(from_sqlite)?;
        let removed = remove_rows(conn, no, tenant).map_err(from_sqlite)?;
        keep_place(conn, newest).map_err(from_sqlite)?;
        Ok(removed > 0)
    }
}

/// Whether an erasure of the tenant's is not done.
fn is_erasing(conn: &Connection, no: i64) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM erasures WHERE tenant = ?1 AND done = 0)")?
        .query_row([no], |r| r.get(0))
}

fn bury(conn: &Connection, no: i64, tombstone: &Tombstone) -> rusqlite::Result<()> {
    let id = tombstone.tenant;
    conn.execute(
        "INSERT INTO tombstones
            (tenant, origin, size, root, checkpoint, ended_at, swept, settled, unappended)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, 0, 0)",
        params![
            no,
            tombstone.origin,
            tombstone.size as i64,
            tombstone.root.as_bytes(),
            tombstone.checkpoint,
            tombstone.ended_at.as_micros()
        ],
    )?;
    conn.execute(
        "UPDATE tenants SET name = ?2, status = ?3, secret = ?4, public_log = 0 WHERE no = ?1",
        params![
            no,
            id.to_string(),
            TenantStatus::Deleted.as_str(),
            TenantSecret::NONE.as_bytes()
        ],
    )?;
    conn.execute("DELETE FROM endings WHERE tenant = ?1", [no])?;
    for table in ["api_keys", "tickets"] {
        let id = id.as_uuid().as_bytes();
        conn.execute(&format!("DELETE FROM {table} WHERE tenant = ?1"), [id])?;
    }
    Ok(())
}

/// At most one step's rows. Returns how many.
fn remove_rows(conn: &Connection, no: i64, tenant: TenantId) -> rusqlite::Result<usize> {
    let start = Instant::now();
    let mut removed = 0;
    for (table, key) in TABLES {
        let mut delete = conn.prepare_cached(&format!(
            "DELETE FROM {table} WHERE tenant = ?1
             AND ({key}) IN (SELECT {key} FROM {table} WHERE tenant = ?1 LIMIT ?2)"
        ))?;
        loop {
            let some = delete.execute(params![no, LOOK_ROWS as i64])?;
            removed += some;
            if removed >= STEP_ROWS || start.elapsed() >= STEP {
                return Ok(removed.max(1));
            }
            if some < LOOK_ROWS {
                break;
            }
        }
    }
    // A key or a ticket that was made while the tenant was deleted.
    for table in ["api_keys", "tickets"] {
        let id = tenant.as_uuid().as_bytes();
        removed += conn.execute(&format!("DELETE FROM {table} WHERE tenant = ?1"), [id])?;
    }
    Ok(removed)
}

fn newest_row(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("SELECT coalesce(max(n), 0) FROM entries")?
        .query_row([], |r| r.get(0))
}

/// Rows are numbered in the order of their commits, and consumers go on behind the largest number that
/// they have seen: where the newest row was removed, an empty one of no tenant keeps its number from being
/// given out again.
fn keep_place(conn: &Connection, newest: i64) -> rusqlite::Result<()> {
    if newest_row(conn)? < newest {
        conn.execute(
            "INSERT INTO entries (n, tenant, seq, created_at, occurred_at, action_type, severity,
                outcome, kind, leaf_hash, id, opening, action)
             VALUES (?1, 0, ?1, 0, 0, '', '', '', '', x'', x'', x'', '')",
            [newest],
        )?;
    }
    conn.execute(
        "DELETE FROM entries WHERE tenant = 0 AND n < (SELECT max(n) FROM entries)",
        [],
    )
    .map(drop)
}

/// A deleted tenant that left something.
fn unswept(conn: &Connection) -> rusqlite::Result<Option<(i64, TenantId)>> {
    conn.prepare_cached(
        "SELECT t.no, t.id FROM tombstones s JOIN tenants t ON t.no = s.tenant
         WHERE s.swept = 0 ORDER BY s.tenant LIMIT 1",
    )?
    .query_row([], |r| Ok((r.get(0)?, row::tenant_id(r, 1)?)))
    .optional()
}

impl SqliteStore {
    /// One step of removing what deleted tenants left, in the three files; true when there is more to do.
    pub(crate) async fn sweep_deleted(&self) -> Result<bool> {
        let found = self
            .read(|reader| unswept(&reader.conn).map_err(from_sqlite))
            .await?;
        let Some((no, tenant)) = found else {
            return Ok(false);
        };
        let removed = self
            .writer()?
            .run(move |writer: &mut Writer| {
                writer.transact(|conn, ledger| ledger.remove_deleted(conn, no, tenant))
            })
            .await?;
        if removed {
            return Ok(true);
        }
        self.search_index().drop_tenant(tenant).await?;
        if let Some(queue) = self.existing_queue()? {
            // Kept before they go: a step that is killed between finds fewer.
            let unappended = queue.count(tenant).await?;
            self.note_unappended(no, unappended).await?;
            let removed = queue.forget(tenant).await?;
            self.note_unappended(no, removed).await?;
        }
        self.writer()?
            .run(move |writer: &mut Writer| {
                writer.transact(|conn, _| {
                    conn.execute("UPDATE tombstones SET swept = 1 WHERE tenant = ?1", [no])
                        .map_err(from_sqlite)
                })?;
                writer.wal.purge(&writer.conn);
                Ok(true)
            })
            .await
    }

    /// Says that so many of a deleted tenant's messages were in the queue, when it was not known yet.
    async fn note_unappended(&self, no: i64, messages: usize) -> Result<()> {
        self.write(move |conn| {
            conn.execute(
                "UPDATE tombstones SET unappended = ?2 WHERE tenant = ?1 AND unappended < ?2",
                params![no, messages as i64],
            )
            .map(drop)
            .map_err(from_sqlite)
        })
        .await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl OffboardingStore for SqliteStore {
    async fn begin_ending(&self, ending: &Ending, event: &PreparedEvent) -> Result<Ending> {
        let (ending, event) = (ending.clone(), event.clone());
        self.writer()?
            .run(move |writer: &mut Writer| {
                writer.transact(|conn, ledger| ledger.begin_ending(conn, &ending, event))
            })
            .await
    }

    async fn ending(&self, tenant: TenantId) -> Result<Option<Ending>> {
        self.read(move |reader| match tenant_no(&reader.conn, tenant)? {
            Some((no, _)) => ending(&reader.conn, no),
            None => Ok(None),
        })
        .await
    }

    async fn open_endings(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Ending>> {
        let sql = format!(
            "SELECT {ENDING} FROM endings e JOIN tenants t ON t.no = e.tenant
             WHERE ?1 IS NULL OR t.id > ?1 ORDER BY t.id LIMIT ?2"
        );
        self.read_behind(sql, after, limit, decode_ending).await
    }

    async fn end(&self, tombstone: &Tombstone) -> Result<()> {
        let tombstone = tombstone.clone();
        self.writer()?
            .run(move |writer: &mut Writer| {
                writer.transact(|conn, ledger| ledger.end(conn, &tombstone))
            })
            .await
    }

    async fn tombstone(&self, tenant: TenantId) -> Result<Option<Tombstone>> {
        self.read(move |reader| {
            reader
                .conn
                .prepare_cached(&format!(
                    "SELECT {TOMBSTONE} FROM tombstones s JOIN tenants t ON t.no = s.tenant
                     WHERE t.id = ?1"
                ))
                .and_then(|mut statement| {
                    let id = tenant.as_uuid().as_bytes();
                    statement.query_row([id], decode_tombstone).optional()
                })
                .map_err(from_sqlite)
        })
        .await
    }

    async fn unsettled(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Tombstone>> {
        let sql = format!(
            "SELECT {TOMBSTONE} FROM tombstones s JOIN tenants t ON t.no = s.tenant
             WHERE s.settled = 0 AND (?1 IS NULL OR t.id > ?1) ORDER BY t.id LIMIT ?2"
        );
        self.read_behind(sql, after, limit, decode_tombstone).await
    }

    async fn settle(&self, tenant: TenantId) -> Result<()> {
        self.write(move |conn| {
            conn.execute(
                "UPDATE tombstones SET settled = 1
                 WHERE tenant = (SELECT no FROM tenants WHERE id = ?1)",
                [tenant.as_uuid().as_bytes()],
            )
            .map(drop)
            .map_err(from_sqlite)
        })
        .await
    }
}
