//! Takes from the archive what is erased of entries that are in it.

use std::time::Duration;

use super::followed::Followed;
use super::{Worker, is_closed, pause_after};
use crate::archive::ERASURES;
use crate::error::{ErrorKind, Result};
use crate::id::TenantId;
use crate::log::AuditLog;
use crate::scope::TenantScope;

/// The pause between two looks. Each asks about every log that has grown, and few of them lost anything.
const REST: Duration = Duration::from_secs(1);

/// Follows the logs while this process signs: only the signer has a checkpoint of a log that grows all the
/// time.
pub(super) async fn run(worker: Worker) {
    let mut followed = Followed::default();
    let mut failures = 0;
    loop {
        let signing = worker.log.signing.as_ref();
        if signing.is_none_or(|signing| signing.fence().is_none()) {
            if !worker.pause(REST).await {
                return;
            }
            continue;
        }
        if let Err(error) = followed.look(&*worker.log.store).await {
            worker.failed(&error);
            failures += 1;
            if !worker.pause(pause_after(failures)).await {
                return;
            }
            continue;
        }
        failures = 0;
        let due: Vec<TenantId> = followed.due().collect();
        for tenant in due {
            if worker.stop.is_cancelled() {
                return;
            }
            match follow(&worker, tenant).await {
                Ok(position) => {
                    followed.set_cursor(tenant, position);
                    followed.reached(tenant, position);
                }
                Err(error) if is_closed(&error) => followed.ended(tenant),
                // A hold, which is no failure.
                Err(error) if error.kind() == ErrorKind::Refused => followed.fail(tenant),
                Err(error) => {
                    worker.failed(&error);
                    followed.fail(tenant);
                }
            }
        }
        if followed.paused.is_empty() {
            worker.worked();
        }
        worker.lag(followed.lag());
        if !worker.pause(REST).await {
            return;
        }
    }
}

/// Carries one tenant's erasures into the archive. Returns the position that it has reached.
async fn follow(worker: &Worker, tenant: TenantId) -> Result<u64> {
    let log = AuditLog {
        inner: worker.log.clone(),
    };
    let log = log.tenant(TenantScope::trusted(tenant, ERASURES));
    log.erase_in_archive().await
}
