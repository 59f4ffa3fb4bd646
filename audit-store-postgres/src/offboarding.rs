//! Ends of tenants, and their tombstones. The functions that keep an end, and that delete a tenant and what
//! it left, belong to the owner.

use async_trait::async_trait;
use audit_core::offboarding::{admit_end, admit_ending};
use audit_core::tlog::Hash;
use audit_core::{
    Batch, Ending, OffboardingStore, PreparedEvent, Result, TenantId, TenantScope, Tombstone,
};
use sqlx_core::query::query;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::{PgConnection, PgRow};

use crate::append::lock_head;
use crate::fault::from_sqlx;
use crate::head::unknown_tenant;
use crate::pool::{Role, to_its_end};
use crate::row;
use crate::store::PostgresStore;

const ENDING: &str = "SELECT tenant_id, subject, reason, requested_at, archived, signed
    FROM audit.endings";

fn decode_ending(r: &PgRow) -> Result<Ending> {
    let (subject, reason) = (row::get::<String>(r, 1)?, row::get::<Option<String>>(r, 2)?);
    let requested_at = row::time(row::get(r, 3)?)?;
    let ending = Ending::new(row::tenant_id(r, 0)?, subject, reason, requested_at);
    Ok(ending.archived(row::get(r, 4)?).signed(row::get(r, 5)?))
}

const TOMBSTONE: &str =
    "SELECT tenant_id, origin, size, root, checkpoint, ended_at, swept, unappended
    FROM audit.tombstones";

fn decode_tombstone(r: &PgRow) -> Result<Tombstone> {
    let (size, root): (u64, Hash) = (row::position(r, 2)?, row::hash(r, 3)?);
    let ended_at = row::time(row::get(r, 5)?)?;
    let mut tombstone = Tombstone::new(row::tenant_id(r, 0)?, size, root, ended_at);
    tombstone.origin = row::get(r, 1)?;
    tombstone.checkpoint = row::get(r, 4)?;
    tombstone.is_swept = row::get(r, 6)?;
    let unappended: Option<i64> = row::get(r, 7)?;
    tombstone.unappended = unappended.map(row::unsigned).transpose()?;
    Ok(tombstone)
}

/// The end of a tenant that was asked for.
pub(crate) async fn ending(conn: &mut PgConnection, tenant: TenantId) -> Result<Option<Ending>> {
    let found = query(&format!("{ENDING} WHERE tenant_id = $1"))
        .bind(tenant.into_uuid())
        .fetch_optional(conn)
        .await
        .map_err(from_sqlx)?;
    found.as_ref().map(decode_ending).transpose()
}

/// Whether an erasure of the tenant's is not done.
async fn is_erasing(conn: &mut PgConnection, tenant: TenantId) -> Result<bool> {
    query_scalar("SELECT EXISTS (SELECT FROM audit.erasures WHERE tenant_id = $1 AND NOT done)")
        .bind(tenant.into_uuid())
        .fetch_one(conn)
        .await
        .map_err(from_sqlx)
}

impl PostgresStore {
    async fn try_begin_ending(&self, asked: &Ending, event: &PreparedEvent) -> Result<Ending> {
        let id = asked.tenant;
        let patience = self.options().lock_timeout;
        let mut tx = self
            .begin_append(Role::Maintainer, Some(id), patience)
            .await?;
        let (status, head) = lock_head(&mut tx, id)
            .await?
            .ok_or_else(|| unknown_tenant(id))?;
        let kept = ending(&mut tx, id).await?;
        let (protection, _) = self.protection(&mut tx).await?;
        if let Some(kept) = admit_ending(id, status, kept, &protection)? {
            return Ok(kept);
        }
        let batch = Batch::new(TenantScope::trusted(id, "tenants"), vec![event.clone()]);
        let sealed = self.seal_all(&mut tx, &[(head, vec![&batch])]).await?;
        let months = sealed.months.clone();
        sealed.into_receipts()?;
        query("SELECT audit.begin_ending($1, $2, $3, $4, $5, $6)")
            .bind(id.into_uuid())
            .bind(&asked.subject)
            .bind(&asked.reason)
            .bind(row::instant(asked.requested_at))
            .bind(asked.is_archived)
            .bind(asked.is_signed)
            .execute(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        self.months().extend(months);
        Ok(asked.clone())
    }

    async fn try_end(&self, tombstone: &Tombstone) -> Result<()> {
        let id = tombstone.tenant;
        let patience = self.options().lock_timeout;
        let mut tx = self
            .begin_append(Role::Maintainer, Some(id), patience)
            .await?;
        let (status, head) = lock_head(&mut tx, id)
            .await?
            .ok_or_else(|| unknown_tenant(id))?;
        let kept = ending(&mut tx, id).await?;
        let (protection, _) = self.protection(&mut tx).await?;
        let is_erasing = is_erasing(&mut tx, id).await?;
        admit_end(
            tombstone,
            status,
            kept.as_ref(),
            &head,
            &protection,
            is_erasing,
        )?;
        query("SELECT audit.end_tenant($1, $2, $3, $4, $5, $6)")
            .bind(id.into_uuid())
            .bind(&tombstone.origin)
            .bind(row::signed(tombstone.size))
            .bind(tombstone.root.as_bytes().as_slice())
            .bind(&tombstone.checkpoint)
            .bind(row::instant(tombstone.ended_at))
            .execute(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        self.drops().look();
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl OffboardingStore for PostgresStore {
    async fn begin_ending(&self, ending: &Ending, event: &PreparedEvent) -> Result<Ending> {
        let (store, ending, event) = (self.clone(), ending.clone(), event.clone());
        to_its_end(async move {
            store
                .attempt(|| store.try_begin_ending(&ending, &event))
                .await
        })
        .await
    }

    async fn ending(&self, tenant: TenantId) -> Result<Option<Ending>> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        ending(&mut tx, tenant).await
    }

    async fn open_endings(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Ending>> {
        let sql = format!(
            "{ENDING} WHERE $1::uuid IS NULL OR tenant_id > $1 ORDER BY tenant_id LIMIT $2"
        );
        let found = self.rows_behind(Role::Writer, &sql, after, limit).await?;
        found.iter().map(decode_ending).collect()
    }

    async fn end(&self, tombstone: &Tombstone) -> Result<()> {
        let (store, tombstone) = (self.clone(), tombstone.clone());
        to_its_end(async move { store.attempt(|| store.try_end(&tombstone)).await }).await
    }

    async fn tombstone(&self, tenant: TenantId) -> Result<Option<Tombstone>> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let found = query(&format!("{TOMBSTONE} WHERE tenant_id = $1"))
            .bind(tenant.into_uuid())
            .fetch_optional(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        found.as_ref().map(decode_tombstone).transpose()
    }

    async fn unsettled(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Tombstone>> {
        let sql = format!(
            "{TOMBSTONE} WHERE NOT settled AND ($1::uuid IS NULL OR tenant_id > $1)
             ORDER BY tenant_id LIMIT $2"
        );
        let found = self.rows_behind(Role::Writer, &sql, after, limit).await?;
        found.iter().map(decode_tombstone).collect()
    }

    async fn settle(&self, tenant: TenantId) -> Result<()> {
        let mut tx = self.pools().begin(Role::Maintainer, None).await?;
        query("UPDATE audit.tombstones SET settled = true WHERE tenant_id = $1")
            .bind(tenant.into_uuid())
            .execute(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)
    }
}
