//! Control entries that destroy nothing.

use audit_core::{Batch, Declaration, Receipt, Result, TenantScope, only_receipt};
use rusqlite::params;

use crate::checkpoints::signer;
use crate::fault::from_sqlite;
use crate::reader::unknown_tenant;
use crate::writer::Writer;

impl Writer {
    pub(crate) fn declare(
        &mut self,
        scope: &TenantScope,
        declaration: &Declaration,
    ) -> Result<Receipt> {
        let tenant = scope.tenant();
        let control = Batch::new(scope.clone(), vec![declaration.prepare(tenant)]);
        self.transact(|conn, ledger| {
            let sealer = ledger
                .sealer(conn, tenant)?
                .ok_or_else(|| unknown_tenant(tenant))?;
            sealer.status.admit_read(tenant)?;
            let no = sealer.no;
            declaration.admit(signer(conn)?.map(|lease| lease.fence))?;
            let receipt = only_receipt(ledger.seal_own(conn, &control)?)?;
            if !receipt.duplicate {
                declaration.admit_at(receipt.seq)?;
            }
            if let Some(start) = declaration.epoch_start(receipt.seq) {
                conn.prepare_cached("INSERT OR IGNORE INTO epochs VALUES (?1, ?2, ?3)")
                    .and_then(|mut statement| {
                        statement.execute(params![no, start.seq as i64, start.epoch as i64])
                    })
                    .map_err(from_sqlite)?;
            }
            if let Some(change) = declaration.key_change(receipt.seq) {
                conn.prepare_cached("INSERT OR IGNORE INTO key_changes VALUES (?1, ?2, ?3, ?4)")
                    .and_then(|mut statement| {
                        let seq = change.seq as i64;
                        statement.execute(params![no, seq, change.old, change.new])
                    })
                    .map_err(from_sqlite)?;
            }
            Ok(receipt)
        })
    }
}
