//! Erasures that were asked for, beside the logs.

use async_trait::async_trait;
use audit_core::erasure::{LATE_MICROS, admit_erasure, taken_erasure};
use audit_core::offboarding::admit_removal;
use audit_core::tlog::{Basis, Timestamp};
use audit_core::{
    Erasure, ErasureId, ErasureJob, ErasureMark, ErasureState, ErasureStore, Permission, Result,
    Selection, TenantId, TenantScope,
};
use sqlx_core::query::query;
use sqlx_postgres::{PgConnection, PgRow};
use uuid::Uuid;

use crate::append::lock_head;
use crate::fault::from_sqlx;
use crate::head::unknown_tenant;
use crate::offboarding::ending;
use crate::pool::{Role, to_its_end};
use crate::row;
use crate::store::PostgresStore;

const COLUMNS: &str = "e.id, e.tenant_id, e.selection, e.groups, e.basis, e.subject, e.reason, \
    e.requested_at, e.below, e.next, e.end_at, e.entries, e.done, e.last_error";

fn decode(r: &PgRow) -> Result<ErasureJob> {
    let selection = row::get::<Option<&str>>(r, 2)?;
    Ok(ErasureJob {
        id: row::get::<Uuid>(r, 0).map(ErasureId::new)?,
        tenant: row::tenant_id(r, 1)?,
        // One that can't be read holds up no other: the worker says so of this job alone.
        selection: selection.and_then(|text| Selection::from_json(text).ok()),
        groups: ErasureJob::parse_groups(row::get(r, 3)?)?,
        basis: row::name::<Basis>(r, 4)?,
        subject: row::get(r, 5)?,
        reason: row::get(r, 6)?,
        requested_at: row::time(row::get(r, 7)?)?,
        below: row::position(r, 8)?,
        next: row::position(r, 9)?,
        end: row::position(r, 10)?,
        entries: row::position(r, 11)?,
        state: match row::get(r, 12)? {
            false => ErasureState::Running,
            true => ErasureState::Done,
        },
        last_error: row::get(r, 13)?,
    })
}

/// The position from which on entries are not the subject of the job that the erasure is a step of;
/// none when the job isn't where the step begins. The caller holds the head's lock.
pub(crate) async fn admit_step(
    conn: &mut PgConnection,
    tenant: TenantId,
    erasure: &Erasure,
) -> Result<Option<u64>> {
    let Some(step) = &erasure.step else {
        return Ok(Some(u64::MAX));
    };
    let found = query(
        "SELECT below FROM audit.erasures
         WHERE id = $1 AND tenant_id = $2 AND next = $3 AND NOT done",
    )
    .bind(step.id.into_uuid())
    .bind(tenant.into_uuid())
    .bind(row::signed(step.from))
    .fetch_optional(conn)
    .await
    .map_err(from_sqlx)?;
    found.map(|r| row::position(&r, 0)).transpose()
}

/// Moves the job that the erasure is a step of, and forgets whom it is about when it is done.
pub(crate) async fn take_step(
    conn: &mut PgConnection,
    erasure: &Erasure,
    entries: u64,
) -> Result<()> {
    let Some(step) = &erasure.step else {
        return Ok(());
    };
    query(
        "UPDATE audit.erasures SET next = $2, entries = entries + $3, done = $4, last_error = NULL,
             selection = CASE WHEN $4 THEN NULL ELSE selection END
         WHERE id = $1",
    )
    .bind(step.id.into_uuid())
    .bind(row::signed(step.next))
    .bind(row::signed(entries))
    .bind(step.done)
    .execute(conn)
    .await
    .map(drop)
    .map_err(from_sqlx)
}

impl PostgresStore {
    async fn keep_erasure(&self, job: ErasureJob, marks: &[ErasureMark]) -> Result<ErasureJob> {
        let tenant = job.tenant;
        let patience = self.options().lock_timeout;
        let mut tx = self
            .begin_append(Role::Maintainer, Some(tenant), patience)
            .await?;
        let (status, head) = lock_head(&mut tx, tenant)
            .await?
            .ok_or_else(|| unknown_tenant(tenant))?;
        status.admit_read(tenant)?;
        admit_removal(tenant, ending(&mut tx, tenant).await?.is_some())?;
        let job = job.begun_at(head.size());
        let kept = query(
            "INSERT INTO audit.erasures (id, tenant_id, selection, groups, basis, subject, reason,
                 requested_at, below, next, end_at, entries, done)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
             ON CONFLICT DO NOTHING",
        )
        .bind(job.id.into_uuid())
        .bind(tenant.into_uuid())
        .bind(job.selection.as_ref().map(Selection::to_json))
        .bind(job.group_names())
        .bind(job.basis.as_str())
        .bind(&job.subject)
        .bind(&job.reason)
        .bind(row::instant(job.requested_at))
        .bind(row::signed(job.below))
        .bind(row::signed(job.next))
        .bind(row::signed(job.end))
        .bind(row::signed(job.entries))
        .bind(job.state == ErasureState::Done)
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        if kept.rows_affected() == 0 {
            return Err(taken_erasure(&job));
        }
        let oldest = job.requested_at.as_micros() - LATE_MICROS;
        query("DELETE FROM audit.erasure_marks WHERE tenant_id = $1 AND requested_at < $2")
            .bind(tenant.into_uuid())
            .bind(row::instant(Timestamp::saturating_from_micros(oldest)))
            .execute(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        query(
            "INSERT INTO audit.erasure_marks (tenant_id, mark, erasure, requested_at)
             SELECT $1, mark, $3, $4 FROM unnest($2::bytea[]) AS m (mark)",
        )
        .bind(tenant.into_uuid())
        .bind(bytes_of(marks))
        .bind(job.id.into_uuid())
        .bind(row::instant(job.requested_at))
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        Ok(job)
    }

    async fn note(&self, tenant: TenantId, id: ErasureId, error: &str) -> Result<()> {
        let mut tx = self.pools().begin(Role::Maintainer, Some(tenant)).await?;
        query(
            "UPDATE audit.erasures SET last_error = $3
             WHERE id = $1 AND tenant_id = $2 AND NOT done",
        )
        .bind(id.into_uuid())
        .bind(tenant.into_uuid())
        .bind(error)
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)
    }
}

fn bytes_of(marks: &[ErasureMark]) -> Vec<Vec<u8>> {
    marks.iter().map(|mark| mark.as_bytes().to_vec()).collect()
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ErasureStore for PostgresStore {
    async fn begin_erasure(
        &self,
        scope: &TenantScope,
        job: &ErasureJob,
        marks: &[ErasureMark],
    ) -> Result<ErasureJob> {
        admit_erasure(scope, job)?;
        let (store, job, marks) = (self.clone(), job.clone(), marks.to_vec());
        to_its_end(async move { store.keep_erasure(job, &marks).await }).await
    }

    async fn find_erasure(&self, scope: &TenantScope, id: ErasureId) -> Result<Option<ErasureJob>> {
        let (mut tx, _) = self.begin_read(scope, Permission::Erase).await?;
        let sql = format!("SELECT {COLUMNS} FROM audit.tenant_erasures e WHERE e.id = $1");
        let found = query(&sql)
            .bind(id.into_uuid())
            .fetch_optional(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        found.as_ref().map(decode).transpose()
    }

    async fn open_erasures(
        &self,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Vec<ErasureJob>> {
        let sql = format!(
            "SELECT DISTINCT ON (e.tenant_id) {COLUMNS}
             FROM audit.erasures e JOIN audit.heads h USING (tenant_id)
             WHERE NOT e.done AND h.status IN ('active', 'inactive')
                 AND ($1::uuid IS NULL OR e.tenant_id > $1)
             ORDER BY e.tenant_id, e.id LIMIT $2"
        );
        let found = self.rows_behind(Role::Maintainer, &sql, after, limit);
        found.await?.iter().map(decode).collect()
    }

    async fn note_erasure(&self, tenant: TenantId, id: ErasureId, error: &str) -> Result<()> {
        let (store, error) = (self.clone(), error.to_owned());
        to_its_end(async move { store.note(tenant, id, &error).await }).await
    }

    async fn marked_erasures(
        &self,
        tenant: TenantId,
        marks: &[ErasureMark],
        since: Timestamp,
    ) -> Result<Vec<(ErasureMark, ErasureJob)>> {
        let mut tx = self.pools().begin(Role::Maintainer, Some(tenant)).await?;
        let sql = format!(
            "SELECT {COLUMNS}, m.mark
             FROM audit.erasure_marks m JOIN audit.erasures e ON e.id = m.erasure
             WHERE m.tenant_id = $1 AND m.mark = ANY ($2) AND m.requested_at >= $3"
        );
        let found = query(&sql)
            .bind(tenant.into_uuid())
            .bind(bytes_of(marks))
            .bind(row::instant(since))
            .fetch_all(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        let marked = |r| Ok((row::bytes(r, 14).map(ErasureMark::new)?, decode(r)?));
        found.iter().map(marked).collect()
    }
}
