//! Control entries that destroy nothing.

use audit_core::{Batch, Declaration, Receipt, Result, TenantScope, only_receipt};
use sqlx_core::query::query;

use crate::append::lock_head;
use crate::checkpoints::signer;
use crate::fault::from_sqlx;
use crate::head::unknown_tenant;
use crate::pool::Role;
use crate::row;
use crate::store::PostgresStore;

impl PostgresStore {
    pub(crate) async fn declare_entry(
        &self,
        scope: &TenantScope,
        declaration: &Declaration,
    ) -> Result<Receipt> {
        self.attempt(|| self.try_declare(scope, declaration)).await
    }

    async fn try_declare(&self, scope: &TenantScope, declaration: &Declaration) -> Result<Receipt> {
        let tenant = scope.tenant();
        let patience = self.options().lock_timeout;
        let mut tx = self
            .begin_append(Role::Writer, Some(tenant), patience)
            .await?;
        let (status, head) = lock_head(&mut tx, tenant)
            .await?
            .ok_or_else(|| unknown_tenant(tenant))?;
        status.admit_read(tenant)?;
        declaration.admit(signer(&mut tx).await?.map(|lease| lease.fence))?;
        let control = Batch::new(scope.clone(), vec![declaration.prepare(tenant)]);
        let sealed = self.seal_all(&mut tx, &[(head, vec![&control])]).await?;
        let months = sealed.months.clone();
        let receipt = only_receipt(sealed.into_receipts()?)?;
        if !receipt.duplicate {
            declaration.admit_at(receipt.seq)?;
        }
        if let Some(start) = declaration.epoch_start(receipt.seq) {
            query("INSERT INTO audit.epochs VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(tenant.into_uuid())
                .bind(row::signed(start.seq))
                .bind(row::signed(start.epoch))
                .execute(&mut *tx)
                .await
                .map_err(from_sqlx)?;
        }
        if let Some(change) = declaration.key_change(receipt.seq) {
            query("INSERT INTO audit.key_changes VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
                .bind(tenant.into_uuid())
                .bind(row::signed(change.seq))
                .bind(&change.old)
                .bind(&change.new)
                .execute(&mut *tx)
                .await
                .map_err(from_sqlx)?;
        }
        tx.commit().await.map_err(from_sqlx)?;
        self.months().extend(months);
        Ok(receipt)
    }
}
