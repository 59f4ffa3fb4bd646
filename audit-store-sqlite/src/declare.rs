//! Control entries that destroy nothing.

use audit_core::{Batch, Declaration, Error, ErrorKind, Receipt, Result, TenantScope};

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
            let mut receipts = Vec::new();
            for outcome in ledger.seal(conn, tenant, ledger.time.now(), &[&control])? {
                receipts.extend(outcome?);
            }
            receipts
                .pop()
                .ok_or_else(|| Error::new(ErrorKind::Internal, "the declaration has no receipt"))
        })
    }
}
