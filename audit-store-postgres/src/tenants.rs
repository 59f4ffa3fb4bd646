//! Tenants: their rows, and the event that says that one changed. The status is in the head, under
//! whose lock appends check it.

use async_trait::async_trait;
use audit_core::offboarding::admit_update;
use audit_core::tenant::{Tenant, TenantFilter, TenantSecret, TenantStatus, TenantUpdate};
use audit_core::{
    Batch, Clock as _, Error, ErrorKind, PreparedEvent, Result, SystemClock, TenantId, TenantScope,
    TenantStore,
};
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_postgres::{PgConnection, PgRow};

use crate::append::lock_head;
use crate::fault::from_sqlx;
use crate::head::unknown_tenant;
use crate::offboarding::ending;
use crate::pool::{Role, to_its_end};
use crate::store::PostgresStore;
use crate::{TimeSource, row};

const SELECT: &str = "SELECT t.tenant_id, t.name, h.status, t.created_at, t.secret, t.public_log
    FROM audit.tenants t JOIN audit.heads h ON h.tenant_id = t.tenant_id";

fn decode(r: &PgRow) -> Result<Tenant> {
    let secret = TenantSecret::new(row::bytes(r, 4)?);
    let created_at = row::time(row::get(r, 3)?)?;
    let mut tenant = Tenant::new(
        row::tenant_id(r, 0)?,
        row::get::<String>(r, 1)?,
        created_at,
        secret,
    )
    .map_err(|_| row::bad("the tenant's name"))?;
    tenant.status = row::name(r, 2)?;
    tenant.public_log = row::get(r, 5)?;
    Ok(tenant)
}

/// Creates a tenant whose name is its id, unless another transaction does, which is waited for; false
/// then.
pub(crate) async fn create_unnamed(
    conn: &mut PgConnection,
    tenant: TenantId,
    time: &TimeSource,
) -> Result<bool> {
    let (created_at, secret) = match time {
        TimeSource::Database => (None, SystemClock.secret()),
        TimeSource::Clock(clock) => (Some(row::instant(clock.now())), clock.secret()),
    };
    query(
        "WITH head AS (
             INSERT INTO audit.heads (tenant_id) VALUES ($1)
             ON CONFLICT (tenant_id) DO NOTHING RETURNING tenant_id
         )
         INSERT INTO audit.tenants (tenant_id, name, created_at, secret)
         SELECT tenant_id, $2, coalesce($3, clock_timestamp()), $4 FROM head",
    )
    .bind(tenant.into_uuid())
    .bind(tenant.to_string())
    .bind(created_at)
    .bind(secret.as_slice())
    .execute(conn)
    .await
    .map(|done| done.rows_affected() == 1)
    .map_err(from_sqlx)
}

async fn find(conn: &mut PgConnection, id: TenantId) -> Result<Option<Tenant>> {
    let found = query(&format!("{SELECT} WHERE t.tenant_id = $1"))
        .bind(id.into_uuid())
        .fetch_optional(conn)
        .await
        .map_err(from_sqlx)?;
    found.as_ref().map(decode).transpose()
}

impl PostgresStore {
    async fn try_update_tenant(
        &self,
        id: TenantId,
        update: &TenantUpdate,
        event: &PreparedEvent,
    ) -> Result<Tenant> {
        // What doesn't change, its secret too, is not for the role that changes the rest.
        let mut tenant = self.tenant(id).await?.ok_or_else(|| unknown_tenant(id))?;
        let patience = self.options().lock_timeout;
        let mut tx = self
            .begin_append(Role::Maintainer, Some(id), patience)
            .await?;
        let (status, head) = lock_head(&mut tx, id)
            .await?
            .ok_or_else(|| unknown_tenant(id))?;
        if status == TenantStatus::Deleted {
            status.admit_read(id)?;
        }
        admit_update(id, ending(&mut tx, id).await?.is_some(), update)?;
        let (protection, _) = self.protection(&mut tx).await?;
        protection.admit_update(id, update)?;
        let batch = Batch::new(TenantScope::trusted(id, "tenants"), vec![event.clone()]);
        let sealed = self.seal_all(&mut tx, &[(head, vec![&batch])]).await?;
        let months = sealed.months.clone();
        sealed.into_receipts()?;
        let present: (String, bool) = query_as(
            "SELECT present_name, present_public_log FROM audit.update_tenant($1, $2, $3, $4)",
        )
        .bind(id.into_uuid())
        .bind(&update.name)
        .bind(update.public_log)
        .bind(update.status.map(TenantStatus::as_str))
        .fetch_one(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        (tenant.name, tenant.public_log) = present;
        tenant.status = update.status.unwrap_or(status);
        tx.commit().await.map_err(from_sqlx)?;
        self.months().extend(months);
        Ok(tenant)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl TenantStore for PostgresStore {
    async fn create_tenant(&self, tenant: &Tenant) -> Result<()> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let created = query(
            "WITH head AS (
                 INSERT INTO audit.heads (tenant_id, status) VALUES ($1, $2)
                 ON CONFLICT (tenant_id) DO NOTHING RETURNING tenant_id
             )
             INSERT INTO audit.tenants (tenant_id, name, created_at, secret, public_log)
             SELECT tenant_id, $3, $4, $5, $6 FROM head",
        )
        .bind(tenant.id.into_uuid())
        .bind(tenant.status.as_str())
        .bind(&tenant.name)
        .bind(row::instant(tenant.created_at))
        .bind(tenant.secret.as_bytes().as_slice())
        .bind(tenant.public_log)
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        if created.rows_affected() == 1 {
            return tx.commit().await.map_err(from_sqlx);
        }
        let (status,): (String,) = query_as("SELECT status FROM audit.heads WHERE tenant_id = $1")
            .bind(tenant.id.into_uuid())
            .fetch_one(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        let (kind, message) = match status.parse() {
            Ok(TenantStatus::Deleted) => {
                (ErrorKind::TenantDeleted, "the id was a deleted tenant's")
            }
            _ => (ErrorKind::Conflict, "the id is another tenant's"),
        };
        Err(Error::new(kind, message).with_tenant(tenant.id))
    }

    async fn tenant(&self, id: TenantId) -> Result<Option<Tenant>> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        find(&mut tx, id).await
    }

    async fn tenants(
        &self,
        filter: &TenantFilter,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Vec<Tenant>> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let sql = format!(
            "{SELECT}
             WHERE ($1::uuid IS NULL OR t.tenant_id > $1) AND ($2::text IS NULL OR t.name = $2)
                 AND ($3::text IS NULL OR h.status = $3)
             ORDER BY t.tenant_id LIMIT $4"
        );
        let found = query(&sql)
            .bind(after.map(TenantId::into_uuid))
            .bind(&filter.name)
            .bind(filter.status.map(TenantStatus::as_str))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        found.iter().map(decode).collect()
    }

    async fn update_tenant(
        &self,
        id: TenantId,
        update: &TenantUpdate,
        event: &PreparedEvent,
    ) -> Result<Tenant> {
        if let Some(name) = &update.name {
            Tenant::check_name(name)?;
        }
        let (store, update, event) = (self.clone(), update.clone(), event.clone());
        to_its_end(async move {
            store
                .attempt(|| store.try_update_tenant(id, &update, &event))
                .await
        })
        .await
    }
}
