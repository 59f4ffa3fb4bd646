//! Retention and legal holds, in the log's file: erasures and prunes look for them in their own
//! transactions.

use async_trait::async_trait;
use audit_core::retention::{
    LegalHold, Protection, Retained, Retention, RetentionStore, admit_hold, no_hold,
};
use audit_core::tlog::Timestamp;
use audit_core::{Batch, PreparedEvent, Result, TenantId, TenantScope, TenantStatus};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use crate::fault::from_sqlite;
use crate::offboarding::ending;
use crate::reader::{tenant_no, unknown_tenant};
use crate::row;
use crate::store::SqliteStore;
use crate::writer::{Ledger, Writer};

const HOLD: &str = "id, name, reason, placed_by, placed_at, released_at";

fn decode(r: &Row<'_>) -> rusqlite::Result<LegalHold> {
    let name: String = r.get(1)?;
    let mut hold = LegalHold::new(Uuid::from_bytes(row::bytes(r, 0)?), name, row::time(r, 4)?)
        .map_err(|e| row::bad(1, Type::Text, e))?;
    hold.reason = r.get(2)?;
    hold.placed_by = r.get(3)?;
    hold.released_at = row::optional_time(r, 5)?;
    Ok(hold)
}

/// The number of a tenant that is not deleted.
pub(crate) fn existing_tenant(conn: &Connection, tenant: TenantId) -> Result<i64> {
    let (no, status) = tenant_no(conn, tenant)?.ok_or_else(|| unknown_tenant(tenant))?;
    if status == TenantStatus::Deleted {
        status.admit_read(tenant)?;
    }
    Ok(no)
}

fn retention(conn: &Connection, no: i64) -> Result<Retention> {
    let stored: Option<String> = conn
        .prepare_cached("SELECT retention FROM retention WHERE tenant = ?1")
        .and_then(|mut statement| statement.query_row([no], |r| r.get(0)).optional())
        .map_err(from_sqlite)?;
    match stored {
        Some(stored) => Retention::from_stored(&stored),
        None => Ok(Retention::default()),
    }
}

/// What stands in the way of destroying the tenant's entries.
pub(crate) fn protection(conn: &Connection, no: i64) -> Result<Protection> {
    let hold = conn
        .prepare_cached(
            "SELECT id, name FROM legal_holds WHERE tenant = ?1 AND released_at IS NULL
             ORDER BY placed_at, id LIMIT 1",
        )
        .and_then(|mut statement| {
            statement
                .query_row([no], |r| {
                    Ok((Uuid::from_bytes(row::bytes(r, 0)?), r.get(1)?))
                })
                .optional()
        })
        .map_err(from_sqlite)?;
    Ok(Protection {
        hold,
        minimum_days: retention(conn, no)?.minimum_days,
        is_ending: ending(conn, no)?.is_some(),
    })
}

fn hold(conn: &Connection, no: i64, id: Uuid) -> Result<Option<LegalHold>> {
    conn.prepare_cached(&format!(
        "SELECT {HOLD} FROM legal_holds WHERE tenant = ?1 AND id = ?2"
    ))
    .and_then(|mut statement| {
        statement
            .query_row(params![no, id.as_bytes()], decode)
            .optional()
    })
    .map_err(from_sqlite)
}

impl Ledger<'_> {
    /// Appends an administrator's event, whatever the tenant's status.
    pub(crate) fn tell(
        &mut self,
        conn: &Connection,
        tenant: TenantId,
        event: PreparedEvent,
    ) -> Result<()> {
        let batch = Batch::new(TenantScope::trusted(tenant, "tenants"), vec![event]);
        self.seal_own(conn, &batch).map(drop)
    }

    fn set_retention(
        &mut self,
        conn: &Connection,
        tenant: TenantId,
        wanted: &Retention,
        event: PreparedEvent,
    ) -> Result<bool> {
        let no = existing_tenant(conn, tenant)?;
        if retention(conn, no)? == *wanted {
            return Ok(false);
        }
        self.tell(conn, tenant, event)?;
        if wanted.is_empty() {
            conn.execute("DELETE FROM retention WHERE tenant = ?1", [no])
        } else {
            conn.execute(
                "INSERT OR REPLACE INTO retention (tenant, retention) VALUES (?1, ?2)",
                params![no, wanted.to_json()],
            )
        }
        .map_err(from_sqlite)?;
        Ok(true)
    }

    fn place_hold(
        &mut self,
        conn: &Connection,
        tenant: TenantId,
        placed: &LegalHold,
        event: PreparedEvent,
    ) -> Result<()> {
        let no = existing_tenant(conn, tenant)?;
        let open = conn
            .query_row(
                "SELECT count(*) FROM legal_holds WHERE tenant = ?1 AND released_at IS NULL",
                [no],
                |r| row::position(r, 0),
            )
            .map_err(from_sqlite)?;
        let is_known = hold(conn, no, placed.id)?.is_some();
        admit_hold(tenant, open as usize, is_known)?;
        self.tell(conn, tenant, event)?;
        conn.execute(
            "INSERT INTO legal_holds (tenant, id, name, reason, placed_by, placed_at, released_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                no,
                placed.id.as_bytes(),
                placed.name,
                placed.reason,
                placed.placed_by,
                placed.placed_at.as_micros(),
                placed.released_at.map(Timestamp::as_micros),
            ],
        )
        .map(drop)
        .map_err(from_sqlite)
    }

    fn release_hold(
        &mut self,
        conn: &Connection,
        tenant: TenantId,
        id: Uuid,
        at: Timestamp,
        event: PreparedEvent,
    ) -> Result<LegalHold> {
        let no = existing_tenant(conn, tenant)?;
        let mut found = hold(conn, no, id)?.ok_or_else(|| no_hold(tenant))?;
        if !found.is_open() {
            return Ok(found);
        }
        self.tell(conn, tenant, event)?;
        conn.execute(
            "UPDATE legal_holds SET released_at = ?3 WHERE tenant = ?1 AND id = ?2",
            params![no, id.as_bytes(), at.as_micros()],
        )
        .map_err(from_sqlite)?;
        found.released_at = Some(at);
        Ok(found)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RetentionStore for SqliteStore {
    async fn retention(&self, tenant: TenantId) -> Result<Retention> {
        self.read(move |reader| {
            let conn = reader.conn.transaction().map_err(from_sqlite)?;
            let no = existing_tenant(&conn, tenant)?;
            retention(&conn, no)
        })
        .await
    }

    async fn set_retention(
        &self,
        tenant: TenantId,
        retention: &Retention,
        event: &PreparedEvent,
    ) -> Result<bool> {
        retention.check()?;
        let (retention, event) = (retention.clone(), event.clone());
        self.writer()?
            .run(move |writer: &mut Writer| {
                writer
                    .transact(|conn, ledger| ledger.set_retention(conn, tenant, &retention, event))
            })
            .await
    }

    async fn retained(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Retained>> {
        self.read(move |reader| {
            let found: Vec<(TenantId, String, bool)> = reader
                .conn
                .prepare_cached(
                    "SELECT t.id, r.retention, EXISTS (
                         SELECT 1 FROM legal_holds h
                         WHERE h.tenant = r.tenant AND h.released_at IS NULL)
                     FROM retention r JOIN tenants t ON t.no = r.tenant
                     WHERE (?1 IS NULL OR t.id > ?1) AND t.status <> 'deleted'
                         AND NOT EXISTS (SELECT 1 FROM endings e WHERE e.tenant = r.tenant)
                     ORDER BY t.id LIMIT ?2",
                )
                .and_then(|mut statement| {
                    let after = after.map(|id| id.as_uuid().into_bytes());
                    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                    statement
                        .query_map(params![after, limit], |r| {
                            Ok((row::tenant_id(r, 0)?, r.get(1)?, r.get(2)?))
                        })?
                        .collect()
                })
                .map_err(from_sqlite)?;
            let retained = found.into_iter().map(|(tenant, stored, is_held)| Retained {
                tenant,
                retention: Retention::from_stored(&stored),
                is_held,
            });
            Ok(retained.collect())
        })
        .await
    }

    async fn holds(
        &self,
        tenant: TenantId,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<LegalHold>> {
        self.read(move |reader| {
            let conn = reader.conn.transaction().map_err(from_sqlite)?;
            let no = existing_tenant(&conn, tenant)?;
            conn.prepare_cached(&format!(
                "SELECT {HOLD} FROM legal_holds
                 WHERE tenant = ?1 AND (?2 IS NULL OR (placed_at, id) < (
                     SELECT placed_at, id FROM legal_holds WHERE tenant = ?1 AND id = ?2))
                 ORDER BY placed_at DESC, id DESC LIMIT ?3"
            ))
            .and_then(|mut statement| {
                let after = after.map(Uuid::into_bytes);
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                statement
                    .query_map(params![no, after, limit], decode)?
                    .collect()
            })
            .map_err(from_sqlite)
        })
        .await
    }

    async fn place_hold(
        &self,
        tenant: TenantId,
        hold: &LegalHold,
        event: &PreparedEvent,
    ) -> Result<()> {
        let (hold, event) = (hold.clone(), event.clone());
        self.writer()?
            .run(move |writer: &mut Writer| {
                writer.transact(|conn, ledger| ledger.place_hold(conn, tenant, &hold, event))
            })
            .await
    }

    async fn release_hold(
        &self,
        tenant: TenantId,
        id: Uuid,
        at: Timestamp,
        event: &PreparedEvent,
    ) -> Result<LegalHold> {
        let event = event.clone();
        self.writer()?
            .run(move |writer: &mut Writer| {
                writer.transact(|conn, ledger| ledger.release_hold(conn, tenant, id, at, event))
            })
            .await
    }
}
