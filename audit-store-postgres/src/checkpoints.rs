//! Signed checkpoints, beside the logs.

use std::time::Duration;

use async_trait::async_trait;
use audit_core::checkpoint::{Lease, admit_checkpoint};
use audit_core::tlog::Hash;
use audit_core::{
    CheckpointStore, EpochStart, Fence, KeyChange, Permission, Result, SignedCheckpoint, TenantId,
    TenantScope, TenantStatus,
};
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_postgres::{PgConnection, PgRow};

use crate::fault::from_sqlx;
use crate::head::unknown_tenant;
use crate::pool::{Role, to_its_end};
use crate::store::PostgresStore;
use crate::{TimeSource, row};

fn decode(r: &PgRow) -> Result<SignedCheckpoint> {
    Ok(SignedCheckpoint::new(
        row::position(r, 0)?,
        row::hash(r, 1)?,
        row::get(r, 2)?,
        row::time(row::get(r, 3)?)?,
    )
    .handover(row::get(r, 4)?))
}

/// Who signs, whose row is locked until the transaction ends.
pub(crate) async fn signer(conn: &mut PgConnection) -> Result<Option<Lease>> {
    let found: Option<(String, i64, row::Micros)> =
        query_as("SELECT holder, fence, until FROM audit.signer FOR UPDATE")
            .fetch_optional(conn)
            .await
            .map_err(from_sqlx)?;
    found
        .map(|(holder, fence, until)| {
            Ok(Lease {
                holder,
                fence: Fence(row::unsigned(fence)?),
                until: row::time(until)?,
            })
        })
        .transpose()
}

impl PostgresStore {
    async fn take_lease(&self, holder: &str, ttl: Duration) -> Result<Option<Fence>> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let (now,): (row::Micros,) = query_as("SELECT clock_timestamp()")
            .fetch_one(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        let now = match &self.options().time {
            TimeSource::Database => row::time(now)?,
            TimeSource::Clock(clock) => clock.now(),
        };
        let present = signer(&mut tx).await?;
        let Some(lease) = Lease::taken(present.as_ref(), holder, now, ttl) else {
            return Ok(None);
        };
        // Of two that are the first, one finds the other's row and gets nothing.
        let taken = query(
            "INSERT INTO audit.signer AS s (holder, fence, until) VALUES ($1, $2, $3)
             ON CONFLICT (one) DO UPDATE
             SET holder = excluded.holder, fence = excluded.fence, until = excluded.until
             WHERE s.holder = excluded.holder OR s.until <= $4",
        )
        .bind(&lease.holder)
        .bind(row::signed(lease.fence.0))
        .bind(row::instant(lease.until))
        .bind(row::instant(now))
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        Ok((taken.rows_affected() == 1).then_some(lease.fence))
    }

    async fn keep(
        &self,
        fence: Fence,
        tenant: TenantId,
        checkpoint: &SignedCheckpoint,
    ) -> Result<()> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let signer = signer(&mut tx).await?.map(|lease| lease.fence);
        let found = query(
            "SELECT h.size, c.root, h.status FROM audit.heads h
             LEFT JOIN audit.checkpoints c ON c.tenant_id = h.tenant_id AND c.size = $2
             WHERE h.tenant_id = $1",
        )
        .bind(tenant.into_uuid())
        .bind(row::signed(checkpoint.size))
        .fetch_optional(&mut *tx)
        .await
        .map_err(from_sqlx)?
        .ok_or_else(|| unknown_tenant(tenant))?;
        if let TenantStatus::Deleted = row::name(&found, 2)? {
            TenantStatus::Deleted.admit_read(tenant)?;
        }
        let known = row::optional_bytes(&found, 1)?.map(Hash);
        admit_checkpoint(checkpoint, fence, signer, row::position(&found, 0)?, known)?;
        query(
            "INSERT INTO audit.checkpoints (tenant_id, size, root, note, signed_at, handover)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .bind(tenant.into_uuid())
        .bind(row::signed(checkpoint.size))
        .bind(checkpoint.root.as_bytes().as_slice())
        .bind(&checkpoint.note)
        .bind(row::instant(checkpoint.signed_at))
        .bind(checkpoint.is_handover)
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        query("SELECT audit.thin_checkpoints($1, $2)")
            .bind(tenant.into_uuid())
            .bind(row::signed(checkpoint.size))
            .execute(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)
    }

    /// The first checkpoint in an order, of those that cover so many entries.
    async fn checkpoint(
        &self,
        scope: &TenantScope,
        size: u64,
        order: &'static str,
    ) -> Result<Option<SignedCheckpoint>> {
        let (mut tx, _) = self.begin_read(scope, Permission::Read).await?;
        let sql = format!(
            "SELECT size, root, note, signed_at, handover FROM audit.tenant_checkpoints
             WHERE size >= $1 ORDER BY size {order} LIMIT 1"
        );
        let found = query(&sql)
            .bind(row::signed(size))
            .fetch_optional(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        let found = found.as_ref().map(decode).transpose();
        found.map_err(|e| e.with_tenant(scope.tenant()))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CheckpointStore for PostgresStore {
    async fn lease(&self, holder: &str, ttl: Duration) -> Result<Option<Fence>> {
        let (store, holder) = (self.clone(), holder.to_owned());
        to_its_end(async move { store.take_lease(&holder, ttl).await }).await
    }

    async fn publish(
        &self,
        fence: Fence,
        tenant: TenantId,
        checkpoint: &SignedCheckpoint,
    ) -> Result<()> {
        let (store, checkpoint) = (self.clone(), checkpoint.clone());
        to_its_end(async move { store.keep(fence, tenant, &checkpoint).await }).await
    }

    async fn latest(&self, scope: &TenantScope) -> Result<Option<SignedCheckpoint>> {
        self.checkpoint(scope, 0, "DESC").await
    }

    async fn covering(&self, scope: &TenantScope, size: u64) -> Result<Option<SignedCheckpoint>> {
        self.checkpoint(scope, size, "ASC").await
    }

    async fn key_changes(&self, scope: &TenantScope) -> Result<Vec<KeyChange>> {
        let (mut tx, _) = self.begin_read(scope, Permission::Read).await?;
        let found =
            query("SELECT seq, old_vkey, new_vkey FROM audit.tenant_key_changes ORDER BY seq")
                .fetch_all(&mut *tx)
                .await
                .map_err(from_sqlx)?;
        let decode = |r: &PgRow| {
            let seq = row::position(r, 0)?;
            Ok(KeyChange {
                seq,
                old: row::get(r, 1).map_err(|e| e.with_position(seq))?,
                new: row::get(r, 2).map_err(|e| e.with_position(seq))?,
            })
        };
        let found: Result<_> = found.iter().map(decode).collect();
        found.map_err(|e| e.with_tenant(scope.tenant()))
    }

    async fn epochs(&self, scope: &TenantScope) -> Result<Vec<EpochStart>> {
        let (mut tx, _) = self.begin_read(scope, Permission::Read).await?;
        let found = query("SELECT seq, epoch FROM audit.tenant_epochs ORDER BY seq")
            .fetch_all(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        let decode = |r: &PgRow| {
            let seq = row::position(r, 0)?;
            let epoch = row::position(r, 1).map_err(|e| e.with_position(seq))?;
            Ok(EpochStart { seq, epoch })
        };
        let found: Result<_> = found.iter().map(decode).collect();
        found.map_err(|e| e.with_tenant(scope.tenant()))
    }
}
