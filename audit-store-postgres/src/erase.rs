//! Erasure: groups of entries destroyed in place, and the control entries that say so.

use audit_core::{
    Batch, Erased, Erasure, Error, ErrorKind, Opening, Result, StoredEntry, TenantScope,
    plan_erasure,
};
use sqlx_core::query::query;
use sqlx_postgres::PgConnection;
use uuid::Uuid;

use crate::append::lock_head;
use crate::erasures::{admit_step, take_step};
use crate::fault::from_sqlx;
use crate::head::unknown_tenant;
use crate::pool::Role;
use crate::row;
use crate::store::PostgresStore;

impl PostgresStore {
    pub(crate) async fn erase_entries(
        &self,
        scope: &TenantScope,
        erasure: &Erasure,
    ) -> Result<Erased> {
        self.attempt(|| self.try_erase(scope, erasure)).await
    }

    async fn try_erase(&self, scope: &TenantScope, erasure: &Erasure) -> Result<Erased> {
        let tenant = scope.tenant();
        let patience = self.options().lock_timeout;
        let mut tx = self
            .begin_append(Role::Maintainer, Some(tenant), patience)
            .await?;
        let (status, head) = lock_head(&mut tx, tenant)
            .await?
            .ok_or_else(|| unknown_tenant(tenant))?;
        status.admit_read(tenant)?;
        let (protection, now) = self.protection(&mut tx).await?;
        protection.admit_erasure(tenant, erasure)?;
        erasure.admit_pruned(head.pruned_below)?;
        let Some(below) = admit_step(&mut tx, tenant, erasure).await? else {
            return Ok(Erased::default());
        };

        let ids: Vec<Uuid> = erasure.ids.iter().map(|id| id.into_uuid()).collect();
        let sql = format!(
            "SELECT DISTINCT ON (e.seq) e.*
             FROM unnest($1::uuid[]) AS w (id)
             CROSS JOIN LATERAL (
                 SELECT seq, created_at FROM audit.tenant_ids WHERE id = w.id OFFSET 0
             ) i
             CROSS JOIN LATERAL (
                 SELECT {} FROM audit.tenant_events
                 WHERE created_at = i.created_at AND seq = i.seq AND i.seq >= $2 AND i.seq < $3
                 OFFSET 0
             ) e
             ORDER BY e.seq",
            row::COLUMNS
        );
        let found = query(&sql)
            .bind(&ids)
            .bind(row::signed(head.pruned_below))
            .bind(row::signed(below))
            .fetch_all(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        let targets = found
            .iter()
            .map(|r| row::stored_entry(r, 0, tenant))
            .collect::<Result<Vec<_>>>()?;

        let plan = plan_erasure(tenant, targets, erasure, head.pruned_below, now);
        let entries = plan.entries();
        take_step(&mut tx, erasure, entries).await?;
        if plan.controls.is_empty() {
            if erasure.step.is_some() {
                tx.commit().await.map_err(from_sqlx)?;
            }
            return Ok(Erased::default());
        }
        if !plan.changed.is_empty() {
            rewrite(&mut tx, tenant.into_uuid(), &plan.changed).await?;
        }
        let controls = Batch::new(scope.clone(), plan.controls);
        let sealed = self.seal_all(&mut tx, &[(head, vec![&controls])]).await?;
        let months = sealed.months.clone();
        let receipts = sealed.into_receipts()?;
        tx.commit().await.map_err(from_sqlx)?;
        self.months().extend(months);
        Ok(Erased::new(entries, receipts))
    }
}

/// Writes erased entries over their rows, and forgets what repeats of their ids were compared by.
async fn rewrite(conn: &mut PgConnection, tenant: Uuid, changed: &[StoredEntry]) -> Result<()> {
    let mut seqs = Vec::with_capacity(changed.len());
    let mut times = Vec::with_capacity(changed.len());
    let mut openings = Vec::with_capacity(changed.len());
    let mut groups = Vec::with_capacity(changed.len());
    for stored in changed {
        seqs.push(row::signed(stored.entry.seq));
        times.push(row::instant(stored.entry.created_at));
        openings.push(stored.opening.to_bytes());
        groups.push(gone(&stored.opening)?);
    }
    query("SELECT audit.erase_entries($1, $2, $3, $4, $5)")
        .bind(tenant)
        .bind(&seqs)
        .bind(&times)
        .bind(&openings)
        .bind(&groups)
        .execute(conn)
        .await
        .map(drop)
        .map_err(from_sqlx)
}

/// The groups that an opening no longer opens, a bit for each.
fn gone(opening: &Opening) -> Result<i32> {
    let Opening::Salts { digests, salts } = opening else {
        return Err(Error::new(
            ErrorKind::Internal,
            "an erased entry has its seed",
        ));
    };
    let gone = digests
        .iter()
        .zip(salts.iter())
        .enumerate()
        .filter(|(_, (digest, salt))| digest.is_some() && salt.is_none())
        .fold(0, |bits, (group, _)| bits | 1 << group);
    Ok(gone)
}
