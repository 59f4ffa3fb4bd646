//! Erasures that were asked for, in the log's file.

use async_trait::async_trait;
use audit_core::erasure::{LATE_MICROS, admit_erasure, taken_erasure};
use audit_core::offboarding::admit_removal;
use audit_core::tlog::{Basis, Timestamp};
use audit_core::{
    Erasure, ErasureId, ErasureJob, ErasureMark, ErasureState, ErasureStore, Permission, Result,
    Selection, TenantId, TenantScope,
};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use crate::fault::from_sqlite;
use crate::offboarding::ending;
use crate::reader::{readable_tenant, tenant_no, unknown_tenant};
use crate::row;
use crate::store::SqliteStore;

const COLUMNS: &str = "e.id, t.id, e.selection, e.groups, e.basis, e.subject, e.reason, \
    e.requested_at, e.below, e.next, e.end_at, e.entries, e.done, e.last_error";

fn decode(r: &Row<'_>) -> rusqlite::Result<ErasureJob> {
    let selection: Option<String> = r.get(2)?;
    let groups: String = r.get(3)?;
    Ok(ErasureJob {
        id: row::bytes(r, 0).map(|b| ErasureId::new(Uuid::from_bytes(b)))?,
        tenant: row::tenant_id(r, 1)?,
        // One that can't be read holds up no other: the worker says so of this job alone.
        selection: selection.and_then(|text| Selection::from_json(&text).ok()),
        groups: ErasureJob::parse_groups(&groups).map_err(|e| row::bad(3, Type::Text, e))?,
        basis: row::name::<Basis>(r, 4)?,
        subject: r.get(5)?,
        reason: r.get(6)?,
        requested_at: row::time(r, 7)?,
        below: row::position(r, 8)?,
        next: row::position(r, 9)?,
        end: row::position(r, 10)?,
        entries: row::position(r, 11)?,
        state: match r.get(12)? {
            false => ErasureState::Running,
            true => ErasureState::Done,
        },
        last_error: r.get(13)?,
    })
}

/// Positions are below 2⁵³.
fn signed(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

fn insert(conn: &Connection, no: i64, job: &ErasureJob) -> rusqlite::Result<usize> {
    conn.prepare_cached(
        "INSERT OR IGNORE INTO erasures (id, tenant, selection, groups, basis, subject, reason,
            requested_at, below, next, end_at, entries, done)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?
    .execute(params![
        job.id.as_uuid().as_bytes(),
        no,
        job.selection.as_ref().map(Selection::to_json),
        job.group_names(),
        job.basis.as_str(),
        job.subject,
        job.reason,
        job.requested_at.as_micros(),
        signed(job.below),
        signed(job.next),
        signed(job.end),
        signed(job.entries),
        job.state == ErasureState::Done,
    ])
}

fn insert_marks(
    conn: &Connection,
    no: i64,
    job: &ErasureJob,
    marks: &[ErasureMark],
) -> rusqlite::Result<()> {
    let asked = job.requested_at.as_micros();
    conn.execute(
        "DELETE FROM erasure_marks WHERE tenant = ?1 AND requested_at < ?2",
        params![no, asked - LATE_MICROS],
    )?;
    let mut insert = conn.prepare_cached("INSERT INTO erasure_marks VALUES (?1, ?2, ?3, ?4)")?;
    for mark in marks {
        let id = job.id.as_uuid().as_bytes();
        insert.execute(params![no, mark.as_bytes(), id, asked])?;
    }
    Ok(())
}

/// The position from which on entries are not the subject of the job that the erasure is a step of;
/// none when the job isn't where the step begins.
pub(crate) fn admit_step(conn: &Connection, no: i64, erasure: &Erasure) -> Result<Option<u64>> {
    let Some(step) = &erasure.step else {
        return Ok(Some(u64::MAX));
    };
    conn.prepare_cached(
        "SELECT below FROM erasures WHERE id = ?1 AND tenant = ?2 AND next = ?3 AND done = 0",
    )
    .and_then(|mut statement| {
        let id = step.id.as_uuid().as_bytes();
        statement
            .query_row(params![id, no, signed(step.from)], |r| row::position(r, 0))
            .optional()
    })
    .map_err(from_sqlite)
}

/// Moves the job that the erasure is a step of, and forgets whom it is about when it is done.
pub(crate) fn take_step(conn: &Connection, erasure: &Erasure, entries: u64) -> Result<()> {
    let Some(step) = &erasure.step else {
        return Ok(());
    };
    conn.prepare_cached(
        "UPDATE erasures SET next = ?2, entries = entries + ?3, done = ?4, last_error = NULL,
            selection = CASE WHEN ?4 THEN NULL ELSE selection END
         WHERE id = ?1",
    )
    .and_then(|mut statement| {
        let id = step.id.as_uuid().as_bytes();
        statement.execute(params![id, signed(step.next), signed(entries), step.done])
    })
    .map(drop)
    .map_err(from_sqlite)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ErasureStore for SqliteStore {
    async fn begin_erasure(
        &self,
        scope: &TenantScope,
        job: &ErasureJob,
        marks: &[ErasureMark],
    ) -> Result<ErasureJob> {
        admit_erasure(scope, job)?;
        let (job, marks) = (job.clone(), marks.to_vec());
        self.write(move |conn| {
            let no = readable_tenant(conn, job.tenant)?;
            admit_removal(job.tenant, ending(conn, no)?.is_some())?;
            let size = conn
                .prepare_cached("SELECT size FROM heads WHERE tenant = ?1")
                .and_then(|mut head| head.query_row([no], |r| row::position(r, 0)).optional())
                .map_err(from_sqlite)?;
            let job = job.begun_at(size.unwrap_or(0));
            if insert(conn, no, &job).map_err(from_sqlite)? == 0 {
                return Err(taken_erasure(&job));
            }
            insert_marks(conn, no, &job, &marks).map_err(from_sqlite)?;
            Ok(job)
        })
        .await
    }

    async fn find_erasure(&self, scope: &TenantScope, id: ErasureId) -> Result<Option<ErasureJob>> {
        scope.require(Permission::Erase)?;
        let tenant = scope.tenant();
        self.read(move |reader| {
            let conn = reader.conn.transaction().map_err(from_sqlite)?;
            let no = readable_tenant(&conn, tenant)?;
            conn.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM erasures e JOIN tenants t ON t.no = e.tenant
                 WHERE e.id = ?1 AND e.tenant = ?2"
            ))
            .and_then(|mut statement| {
                let id = id.as_uuid().as_bytes();
                statement.query_row(params![id, no], decode).optional()
            })
            .map_err(from_sqlite)
        })
        .await
    }

    async fn open_erasures(
        &self,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Vec<ErasureJob>> {
        self.read(move |reader| {
            // No id is shorter than the empty one.
            let after = after.map_or(Vec::new(), |t| t.as_uuid().as_bytes().to_vec());
            reader
                .conn
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM erasures e JOIN tenants t ON t.no = e.tenant
                     WHERE e.done = 0 AND t.status IN ('active', 'inactive') AND t.id > ?1
                        AND e.id = (SELECT min(id) FROM erasures o
                            WHERE o.tenant = e.tenant AND o.done = 0)
                     ORDER BY t.id LIMIT ?2"
                ))
                .and_then(|mut statement| {
                    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                    statement
                        .query_map(params![after, limit], decode)?
                        .collect::<rusqlite::Result<_>>()
                })
                .map_err(from_sqlite)
        })
        .await
    }

    async fn note_erasure(&self, tenant: TenantId, id: ErasureId, error: &str) -> Result<()> {
        let error = error.to_owned();
        self.write(move |conn| {
            let (no, _) = tenant_no(conn, tenant)?.ok_or_else(|| unknown_tenant(tenant))?;
            conn.prepare_cached(
                "UPDATE erasures SET last_error = ?3 WHERE id = ?1 AND tenant = ?2 AND done = 0",
            )
            .and_then(|mut statement| {
                statement.execute(params![id.as_uuid().as_bytes(), no, error])
            })
            .map(drop)
            .map_err(from_sqlite)
        })
        .await
    }

    async fn marked_erasures(
        &self,
        tenant: TenantId,
        marks: &[ErasureMark],
        since: Timestamp,
    ) -> Result<Vec<(ErasureMark, ErasureJob)>> {
        let marks = marks.to_vec();
        self.read(move |reader| {
            let conn = reader.conn.transaction().map_err(from_sqlite)?;
            let Some((no, _)) = tenant_no(&conn, tenant)? else {
                return Ok(Vec::new());
            };
            let mut statement = conn
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM erasure_marks m JOIN erasures e ON e.id = m.erasure
                     JOIN tenants t ON t.no = e.tenant
                     WHERE m.tenant = ?1 AND m.mark = ?2 AND m.requested_at >= ?3"
                ))
                .map_err(from_sqlite)?;
            let mut found = Vec::new();
            for mark in marks {
                let wanted = params![no, mark.as_bytes(), since.as_micros()];
                let jobs = statement.query_map(wanted, decode).map_err(from_sqlite)?;
                for job in jobs {
                    found.push((mark, job.map_err(from_sqlite)?));
                }
            }
            Ok(found)
        })
        .await
    }
}
