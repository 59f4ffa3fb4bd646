//! `audit-server tlog recover`: lets the logs go on that the guard stops.

use audit_core::{DeploymentRecovery, Error, ErrorKind, Recovery, Result, TenantFilter, TenantId};

use crate::storage::Storage;

/// Tenants that are looked at in one go.
const TENANTS: usize = 1_000;

/// What came of it, of all logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Logs that go on, or, in a dry run, would.
    pub logs: u64,
    /// Logs that don't.
    pub failed: u64,
}

/// Recovers one tenant's log, or every log that the guard stops and the deployment log, and tells of each
/// in a line. What can't be recovered is told too, and holds up no other.
///
/// # Errors
/// [`ErrorKind::NotFound`] when the logs have no guard; what the guard or the store answers when it is
/// asked which logs there are.
pub async fn recover(
    storage: &Storage,
    only: Option<TenantId>,
    dry_run: bool,
    mut tell: impl FnMut(&str),
) -> Result<Recovered> {
    let guard = storage.guard.as_ref().ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            "the logs have no guard: nothing is signed, or AUDIT_TLOG_GUARD is not set",
        )
    })?;
    let mut outcome = Recovered::default();
    if let Some(tenant) = only {
        one(storage, tenant, dry_run, &mut outcome, &mut tell).await;
        return Ok(outcome);
    }
    let mut after = None;
    loop {
        let known = guard.tenants(after, TENANTS).await?;
        for tenant in &known {
            one(storage, *tenant, dry_run, &mut outcome, &mut tell).await;
        }
        after = known.last().copied();
        if known.len() < TENANTS {
            break;
        }
    }
    // Those that it knows nothing of, although their heads were signed.
    let (every, mut after) = (TenantFilter::all(), None);
    loop {
        let tenants = storage
            .log
            .tenants()
            .tenants(&every, after, TENANTS)
            .await?;
        for tenant in &tenants {
            // One whose file can't be read was told of above.
            if let Ok(None) = guard.head(tenant.id).await {
                one(storage, tenant.id, dry_run, &mut outcome, &mut tell).await;
            }
        }
        after = tenants.last().map(|tenant| tenant.id);
        if tenants.len() < TENANTS {
            break;
        }
    }
    deployment(storage, dry_run, &mut outcome, &mut tell).await;
    Ok(outcome)
}

async fn deployment(
    storage: &Storage,
    dry_run: bool,
    outcome: &mut Recovered,
    tell: &mut impl FnMut(&str),
) {
    match storage.log.recover_deployment(dry_run).await {
        Ok(None) => {}
        Ok(Some(recovery)) => {
            outcome.logs += 1;
            tell(&line_of_deployment(&recovery, dry_run));
        }
        Err(error) => {
            outcome.failed += 1;
            tell(&format!("the deployment log: NOT recovered: {error}"));
        }
    }
}

async fn one(
    storage: &Storage,
    tenant: TenantId,
    dry_run: bool,
    outcome: &mut Recovered,
    tell: &mut impl FnMut(&str),
) {
    match storage.log.recover(tenant, dry_run).await {
        Ok(None) => {}
        Ok(Some(recovery)) => {
            let goes_on = recovery.has_tenant;
            outcome.logs += u64::from(goes_on);
            outcome.failed += u64::from(!goes_on);
            tell(&line(&recovery));
        }
        Err(error) => match error.kind() {
            // Nothing of it can be read, nor written.
            ErrorKind::TenantDeleted => {}
            ErrorKind::TenantClosed => {
                tell(&format!(
                    "{tenant}: suspended, and passed over: open it and repeat this"
                ));
            }
            _ => {
                outcome.failed += 1;
                tell(&format!("{tenant}: NOT recovered: {error}"));
            }
        },
    }
}

/// What was done to a log, or would be, for people.
fn line(recovery: &Recovery) -> String {
    let tenant = recovery.tenant;
    let mut line = match recovery.guarded {
        Some(guarded) if !recovery.has_tenant => {
            return format!(
                "{tenant}: NOT recovered: the database doesn't have this tenant, of which a head of {} \
                 entries was signed: create it with this id, and repeat this",
                guarded.size
            );
        }
        None => format!("{tenant}: the guard knew nothing of it"),
        Some(guarded) if recovery.lost() == 0 => format!(
            "{tenant}: the log doesn't continue the head of {} entries that was signed",
            guarded.size
        ),
        Some(guarded) => format!(
            "{tenant}: {} entries are lost, positions {} to {}",
            recovery.lost(),
            recovery.size,
            guarded.size - 1
        ),
    };
    let (erased, epoch) = (recovery.erased, recovery.epoch);
    match &recovery.receipt {
        Some(receipt) => put!(
            line,
            "; {erased} entries erased again; epoch {epoch} begins at position {}",
            receipt.seq
        ),
        None => put!(
            line,
            "; {erased} entries to be erased again; epoch {epoch} would begin"
        ),
    }
    line
}

/// What was done to the deployment log, or would be, for people.
fn line_of_deployment(recovery: &DeploymentRecovery, dry_run: bool) -> String {
    let found = match recovery.guarded {
        None => "the guard knew nothing of it".to_owned(),
        Some(guarded) if recovery.lost() == 0 => format!(
            "it doesn't continue the head of {} leaves that was signed",
            guarded.size
        ),
        Some(guarded) => format!(
            "{} leaves are lost, positions {} to {}",
            recovery.lost(),
            recovery.size,
            guarded.size - 1
        ),
    };
    let begins = match dry_run {
        true => "would begin",
        false => "begins",
    };
    let (epoch, key) = (recovery.epoch, &recovery.key);
    format!("the deployment log: {found}; epoch {epoch} {begins}; the key for its witnesses: {key}")
}
