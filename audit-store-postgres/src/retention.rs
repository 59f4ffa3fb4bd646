//! Retention and legal holds, beside the logs: erasures and prunes look for them under the head's
//! lock.

use async_trait::async_trait;
use audit_core::retention::{
    LegalHold, Protection, Retained, Retention, RetentionStore, admit_hold, no_hold,
};
use audit_core::tlog::Timestamp;
use audit_core::{Batch, PreparedEvent, Result, TenantId, TenantScope, TenantStatus};
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_postgres::{PgConnection, PgRow};
use uuid::Uuid;

use crate::append::lock_head;
use crate::fault::from_sqlx;
use crate::head::unknown_tenant;
use crate::pool::{Role, to_its_end};
use crate::store::PostgresStore;
use crate::{TimeSource, row};

const HOLD: &str = "id, name, reason, placed_by, placed_at, released_at";

fn decode(r: &PgRow) -> Result<LegalHold> {
    let placed_at = row::time(row::get(r, 4)?)?;
    let mut hold = LegalHold::new(row::get(r, 0)?, row::get::<String>(r, 1)?, placed_at)
        .map_err(|_| row::bad("the legal hold's name"))?;
    hold.reason = row::get(r, 2)?;
    hold.placed_by = row::get(r, 3)?;
    hold.released_at = row::optional_time(r, 5)?;
    Ok(hold)
}

fn read(stored: Option<&str>) -> Result<Retention> {
    stored.map_or_else(|| Ok(Retention::default()), Retention::from_stored)
}

async fn retention(conn: &mut PgConnection, tenant: TenantId) -> Result<Retention> {
    let stored: Option<(String,)> =
        query_as("SELECT retention FROM audit.retention WHERE tenant_id = $1")
            .bind(tenant.into_uuid())
            .fetch_optional(conn)
            .await
            .map_err(from_sqlx)?;
    read(stored.as_ref().map(|(stored,)| stored.as_str()))
}

/// Refuses a tenant that is deleted or never was.
pub(crate) async fn exists(conn: &mut PgConnection, tenant: TenantId) -> Result<()> {
    let found = query("SELECT status FROM audit.heads WHERE tenant_id = $1")
        .bind(tenant.into_uuid())
        .fetch_optional(conn)
        .await
        .map_err(from_sqlx)?
        .ok_or_else(|| unknown_tenant(tenant))?;
    admit(row::name(&found, 0)?, tenant)
}

fn admit(status: TenantStatus, tenant: TenantId) -> Result<()> {
    match status {
        TenantStatus::Deleted => status.admit_read(tenant),
        _ => Ok(()),
    }
}

/// A change, to be told in the tenant's log.
#[derive(Debug, Clone)]
enum Change {
    Retention(Retention),
    Place(LegalHold),
    Release(Uuid, Timestamp),
}

impl PostgresStore {
    /// What stands in the way of destroying entries of the tenant that the transaction is within, and
    /// the time.
    pub(crate) async fn protection(
        &self,
        conn: &mut PgConnection,
    ) -> Result<(Protection, Timestamp)> {
        let found = query(
            "SELECT (SELECT retention FROM audit.tenant_retention), h.id, h.name, clock_timestamp(),
                 EXISTS (SELECT FROM audit.tenant_endings)
             FROM (SELECT 1) AS one LEFT JOIN (
                 SELECT id, name FROM audit.tenant_legal_holds WHERE released_at IS NULL
                 ORDER BY placed_at, id LIMIT 1
             ) h ON true",
        )
        .fetch_one(conn)
        .await
        .map_err(from_sqlx)?;
        let stored: Option<String> = row::get(&found, 0)?;
        let id: Option<Uuid> = row::get(&found, 1)?;
        let name: Option<String> = row::get(&found, 2)?;
        let now = match &self.options().time {
            TimeSource::Database => row::time(row::get(&found, 3)?)?,
            TimeSource::Clock(clock) => clock.now(),
        };
        let protection = Protection {
            hold: id.zip(name),
            minimum_days: read(stored.as_deref())?.minimum_days,
            is_ending: row::get(&found, 4)?,
        };
        Ok((protection, now))
    }

    /// Makes a change to its end, even when the caller goes away. Whether it changed anything, and the
    /// hold that is there then.
    async fn change(
        &self,
        tenant: TenantId,
        change: Change,
        event: &PreparedEvent,
    ) -> Result<(bool, Option<LegalHold>)> {
        let (store, event) = (self.clone(), event.clone());
        to_its_end(async move {
            store
                .attempt(|| store.try_change(tenant, &change, &event))
                .await
        })
        .await
    }

    async fn try_change(
        &self,
        tenant: TenantId,
        change: &Change,
        event: &PreparedEvent,
    ) -> Result<(bool, Option<LegalHold>)> {
        let patience = self.options().lock_timeout;
        let mut tx = self.begin_append(Role::Maintainer, None, patience).await?;
        let (status, head) = lock_head(&mut tx, tenant)
            .await?
            .ok_or_else(|| unknown_tenant(tenant))?;
        admit(status, tenant)?;
        let hold = match change {
            Change::Retention(wanted) if retention(&mut tx, tenant).await? == *wanted => {
                return Ok((false, None));
            }
            Change::Retention(wanted) => {
                set(&mut tx, tenant, wanted).await?;
                None
            }
            Change::Place(hold) => {
                place(&mut tx, tenant, hold).await?;
                None
            }
            Change::Release(id, at) => {
                let (changed, hold) = release(&mut tx, tenant, *id, *at).await?;
                if !changed {
                    return Ok((false, Some(hold)));
                }
                Some(hold)
            }
        };
        let scope = TenantScope::trusted(tenant, "tenants");
        let batch = Batch::new(scope, vec![event.clone()]);
        let sealed = self.seal_all(&mut tx, &[(head, vec![&batch])]).await?;
        let months = sealed.months.clone();
        sealed.into_receipts()?;
        tx.commit().await.map_err(from_sqlx)?;
        self.months().extend(months);
        Ok((true, hold))
    }
}

async fn set(conn: &mut PgConnection, tenant: TenantId, wanted: &Retention) -> Result<()> {
    let change = if wanted.is_empty() {
        query("DELETE FROM audit.retention WHERE tenant_id = $1").bind(tenant.into_uuid())
    } else {
        query(
            "INSERT INTO audit.retention (tenant_id, retention) VALUES ($1, $2)
             ON CONFLICT (tenant_id) DO UPDATE SET retention = excluded.retention",
        )
        .bind(tenant.into_uuid())
        .bind(wanted.to_json())
    };
    change.execute(conn).await.map(drop).map_err(from_sqlx)
}

async fn place(conn: &mut PgConnection, tenant: TenantId, hold: &LegalHold) -> Result<()> {
    let (open, is_known): (i64, bool) = query_as(
        "SELECT count(*) FILTER (WHERE released_at IS NULL), coalesce(bool_or(id = $2), false)
         FROM audit.legal_holds WHERE tenant_id = $1",
    )
    .bind(tenant.into_uuid())
    .bind(hold.id)
    .fetch_one(&mut *conn)
    .await
    .map_err(from_sqlx)?;
    admit_hold(tenant, row::unsigned(open)? as usize, is_known)?;
    query(
        "INSERT INTO audit.legal_holds
             (tenant_id, id, name, reason, placed_by, placed_at, released_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(tenant.into_uuid())
    .bind(hold.id)
    .bind(&hold.name)
    .bind(&hold.reason)
    .bind(&hold.placed_by)
    .bind(row::instant(hold.placed_at))
    .bind(hold.released_at.map(row::instant))
    .execute(conn)
    .await
    .map(drop)
    .map_err(from_sqlx)
}

/// Whether it was open, and the hold as it is now.
async fn release(
    conn: &mut PgConnection,
    tenant: TenantId,
    id: Uuid,
    at: Timestamp,
) -> Result<(bool, LegalHold)> {
    let sql = format!("SELECT {HOLD} FROM audit.legal_holds WHERE tenant_id = $1 AND id = $2");
    let found = query(&sql)
        .bind(tenant.into_uuid())
        .bind(id)
        .fetch_optional(&mut *conn)
        .await
        .map_err(from_sqlx)?
        .ok_or_else(|| no_hold(tenant))?;
    let mut hold = decode(&found)?;
    if !hold.is_open() {
        return Ok((false, hold));
    }
    query("UPDATE audit.legal_holds SET released_at = $3 WHERE tenant_id = $1 AND id = $2")
        .bind(tenant.into_uuid())
        .bind(id)
        .bind(row::instant(at))
        .execute(conn)
        .await
        .map_err(from_sqlx)?;
    hold.released_at = Some(at);
    Ok((true, hold))
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RetentionStore for PostgresStore {
    async fn retention(&self, tenant: TenantId) -> Result<Retention> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        exists(&mut tx, tenant).await?;
        retention(&mut tx, tenant).await
    }

    async fn set_retention(
        &self,
        tenant: TenantId,
        retention: &Retention,
        event: &PreparedEvent,
    ) -> Result<bool> {
        retention.check()?;
        let change = Change::Retention(retention.clone());
        let (changed, _) = self.change(tenant, change, event).await?;
        Ok(changed)
    }

    async fn retained(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Retained>> {
        let sql = "SELECT r.tenant_id, r.retention, EXISTS (
                 SELECT FROM audit.legal_holds l
                 WHERE l.tenant_id = r.tenant_id AND l.released_at IS NULL)
             FROM audit.retention r JOIN audit.heads h ON h.tenant_id = r.tenant_id
             WHERE ($1::uuid IS NULL OR r.tenant_id > $1) AND h.status <> 'deleted'
                 AND NOT EXISTS (SELECT FROM audit.endings e WHERE e.tenant_id = r.tenant_id)
             ORDER BY r.tenant_id LIMIT $2";
        let found = self.rows_behind(Role::Writer, sql, after, limit).await?;
        found
            .iter()
            .map(|r| {
                Ok(Retained {
                    tenant: row::tenant_id(r, 0)?,
                    retention: row::get::<String>(r, 1).and_then(|stored| read(Some(&stored))),
                    is_held: row::get(r, 2)?,
                })
            })
            .collect()
    }

    async fn holds(
        &self,
        tenant: TenantId,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<LegalHold>> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        exists(&mut tx, tenant).await?;
        let sql = format!(
            "SELECT {HOLD} FROM audit.legal_holds
             WHERE tenant_id = $1 AND ($2::uuid IS NULL OR (placed_at, id) < (
                 SELECT placed_at, id FROM audit.legal_holds WHERE tenant_id = $1 AND id = $2))
             ORDER BY placed_at DESC, id DESC LIMIT $3"
        );
        let found = query(&sql)
            .bind(tenant.into_uuid())
            .bind(after)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        found.iter().map(decode).collect()
    }

    async fn place_hold(
        &self,
        tenant: TenantId,
        hold: &LegalHold,
        event: &PreparedEvent,
    ) -> Result<()> {
        let change = Change::Place(hold.clone());
        self.change(tenant, change, event).await.map(drop)
    }

    async fn release_hold(
        &self,
        tenant: TenantId,
        id: Uuid,
        at: Timestamp,
        event: &PreparedEvent,
    ) -> Result<LegalHold> {
        let change = Change::Release(id, at);
        let (_, hold) = self.change(tenant, change, event).await?;
        hold.ok_or_else(|| no_hold(tenant))
    }
}
