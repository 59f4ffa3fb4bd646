//! Signed checkpoints, in the log's file.

use std::time::Duration;

use async_trait::async_trait;
use audit_core::checkpoint::{Lease, admit_checkpoint};
use audit_core::tlog::{Hash, Timestamp};
use audit_core::{
    CheckpointStore, Clock as _, EpochStart, Fence, KeyChange, Permission, Result,
    SignedCheckpoint, SystemClock, TenantId, TenantScope,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::fault::from_sqlite;
use crate::reader::readable_tenant;
use crate::retention::existing_tenant;
use crate::store::SqliteStore;
use crate::{TimeSource, row};

const COLUMNS: &str = "size, root, note, signed_at, handover";

fn decode(r: &Row<'_>) -> rusqlite::Result<SignedCheckpoint> {
    Ok(SignedCheckpoint::new(
        row::position(r, 0)?,
        row::hash(r, 1)?,
        r.get(2)?,
        row::time(r, 3)?,
    )
    .handover(r.get(4)?))
}

impl SqliteStore {
    fn now(&self) -> Timestamp {
        match self.time() {
            TimeSource::Database => SystemClock.now(),
            TimeSource::Clock(clock) => clock.now(),
        }
    }

    /// The checkpoint that a condition and an order select.
    async fn checkpoint(
        &self,
        scope: &TenantScope,
        size: u64,
        order: &'static str,
    ) -> Result<Option<SignedCheckpoint>> {
        scope.require(Permission::Read)?;
        let tenant = scope.tenant();
        self.read(move |reader| {
            let conn = reader.conn.transaction().map_err(from_sqlite)?;
            let no = readable_tenant(&conn, tenant)?;
            conn.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM checkpoints WHERE tenant = ?1 AND size >= ?2
                 ORDER BY size {order} LIMIT 1"
            ))
            .and_then(|mut statement| {
                let size = i64::try_from(size).unwrap_or(i64::MAX);
                statement.query_row(params![no, size], decode).optional()
            })
            .map_err(|e| from_sqlite(e).with_tenant(tenant))
        })
        .await
    }
}

pub(crate) fn signer(conn: &Connection) -> Result<Option<Lease>> {
    conn.prepare_cached("SELECT holder, fence, until FROM signer")
        .and_then(|mut statement| {
            statement
                .query_row([], |r| {
                    Ok(Lease {
                        holder: r.get(0)?,
                        fence: Fence(row::position(r, 1)?),
                        until: row::time(r, 2)?,
                    })
                })
                .optional()
        })
        .map_err(from_sqlite)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CheckpointStore for SqliteStore {
    async fn lease(&self, holder: &str, ttl: Duration) -> Result<Option<Fence>> {
        let holder = holder.to_owned();
        let now = self.now();
        self.write(move |conn| {
            let Some(lease) = Lease::taken(signer(conn)?.as_ref(), &holder, now, ttl) else {
                return Ok(None);
            };
            conn.prepare_cached("INSERT OR REPLACE INTO signer VALUES (1, ?1, ?2, ?3)")
                .and_then(|mut statement| {
                    let (fence, until) = (lease.fence.0 as i64, lease.until.as_micros());
                    statement.execute(params![lease.holder, fence, until])
                })
                .map_err(from_sqlite)?;
            Ok(Some(lease.fence))
        })
        .await
    }

    async fn publish(
        &self,
        fence: Fence,
        tenant: TenantId,
        checkpoint: &SignedCheckpoint,
    ) -> Result<()> {
        let checkpoint = checkpoint.clone();
        self.write(move |conn| {
            let no = existing_tenant(conn, tenant)?;
            let (size, known) = conn
                .prepare_cached(
                    "SELECT (SELECT size FROM heads WHERE tenant = ?1),
                        (SELECT root FROM checkpoints WHERE tenant = ?1 AND size = ?2)",
                )
                .and_then(|mut statement| {
                    statement.query_row(params![no, checkpoint.size as i64], |r| {
                        let size: Option<i64> = r.get(0)?;
                        let known = row::optional_bytes(r, 1)?.map(Hash);
                        Ok((size.unwrap_or(0).unsigned_abs(), known))
                    })
                })
                .map_err(from_sqlite)?;
            let signer = signer(conn)?.map(|lease| lease.fence);
            admit_checkpoint(&checkpoint, fence, signer, size, known)?;
            conn.prepare_cached(
                "DELETE FROM checkpoints
                 WHERE tenant = ?1 AND signed_at >= ?3 AND signed_at < ?4 AND NOT handover AND size =
                    (SELECT max(size) FROM checkpoints WHERE tenant = ?1 AND size < ?2)",
            )
            .and_then(|mut statement| {
                let hour = checkpoint.hour();
                let next = hour + SignedCheckpoint::HOUR;
                statement.execute(params![no, checkpoint.size as i64, hour, next])
            })
            .and_then(|_| {
                conn.prepare_cached("INSERT OR IGNORE INTO checkpoints VALUES (?1, ?2, ?3, ?4, ?5, ?6)")
            })
            .and_then(|mut statement| {
                statement.execute(params![
                    no,
                    checkpoint.size as i64,
                    checkpoint.root.as_bytes(),
                    checkpoint.note,
                    checkpoint.signed_at.as_micros(),
                    checkpoint.is_handover
                ])
            })
            .map(drop)
            .map_err(from_sqlite)
        })
        .await
    }

    async fn latest(&self, scope: &TenantScope) -> Result<Option<SignedCheckpoint>> {
        self.checkpoint(scope, 0, "DESC").await
    }

    async fn covering(&self, scope: &TenantScope, size: u64) -> Result<Option<SignedCheckpoint>> {
        self.checkpoint(scope, size, "ASC").await
    }

    async fn key_changes(&self, scope: &TenantScope) -> Result<Vec<KeyChange>> {
        scope.require(Permission::Read)?;
        let tenant = scope.tenant();
        self.read(move |reader| {
            let conn = reader.conn.transaction().map_err(from_sqlite)?;
            let no = readable_tenant(&conn, tenant)?;
            conn.prepare_cached(
                "SELECT seq, old_vkey, new_vkey FROM key_changes WHERE tenant = ?1 ORDER BY seq",
            )
            .and_then(|mut statement| {
                let changes = statement.query_map([no], |r| {
                    let seq = row::position(r, 0)?;
                    Ok(KeyChange {
                        seq,
                        old: row::about(tenant, seq, r.get(1))?,
                        new: row::about(tenant, seq, r.get(2))?,
                    })
                })?;
                changes.collect()
            })
            .map_err(|e| from_sqlite(e).with_tenant(tenant))
        })
        .await
    }

    async fn epochs(&self, scope: &TenantScope) -> Result<Vec<EpochStart>> {
        scope.require(Permission::Read)?;
        let tenant = scope.tenant();
        self.read(move |reader| {
            let conn = reader.conn.transaction().map_err(from_sqlite)?;
            let no = readable_tenant(&conn, tenant)?;
            conn.prepare_cached("SELECT seq, epoch FROM epochs WHERE tenant = ?1 ORDER BY seq")
                .and_then(|mut statement| {
                    let epochs = statement.query_map([no], |r| {
                        let seq = row::position(r, 0)?;
                        let epoch = row::about(tenant, seq, row::position(r, 1))?;
                        Ok(EpochStart { seq, epoch })
                    })?;
                    epochs.collect()
                })
                .map_err(|e| from_sqlite(e).with_tenant(tenant))
        })
        .await
    }
}
