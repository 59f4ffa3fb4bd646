//! The signer: signs the heads of logs that have grown, while it holds the lease.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::followed::Followed;
use super::{Worker, is_closed, pause_after};
use crate::checkpoint::Fence;
use crate::error::Result;
use crate::id::TenantId;
use crate::scope::TenantScope;
use crate::signing::Signing;

/// How long a signer that has died keeps others from signing.
const LEASE: Duration = Duration::from_secs(15);
/// How often the lease is renewed, or asked for.
const RENEW: Duration = Duration::from_secs(5);
/// How often each tenant's head is signed at most.
const EVERY: Duration = Duration::from_secs(1);
/// How often the signer looks for what has grown.
const POLL: Duration = Duration::from_millis(250);
/// Heads that are signed in one round at most.
const BUDGET: usize = 25;

pub(super) async fn run(worker: Worker, signing: Arc<Signing>) {
    let mut followed = Followed::default();
    let mut recent: HashMap<TenantId, Instant> = HashMap::new();
    let mut turn = None;
    let mut renew_at = Instant::now();
    let mut failures = 0;
    loop {
        let round = async {
            if Instant::now() >= renew_at {
                signing.take_lease(LEASE).await?;
                renew_at = Instant::now() + RENEW;
            }
            match signing.fence() {
                Some(fence) => {
                    followed.look(&*worker.log.store).await?;
                    Ok(Some(fence))
                }
                None => Ok(None),
            }
        };
        let pause = match round.await {
            Err(error) => {
                worker.failed(&error);
                failures += 1;
                pause_after(failures)
            }
            Ok(fence) => {
                failures = 0;
                if let Some(fence) = fence {
                    turn =
                        sign_due(&worker, &signing, fence, &mut followed, &mut recent, turn).await;
                }
                POLL
            }
        };
        if !worker.pause(pause).await {
            // The next one need not wait for the lease to end.
            if let Err(error) = signing.take_lease(Duration::ZERO).await {
                worker.failed(&error);
            }
            return;
        }
    }
}

/// Signs the heads of those that have grown, and were not signed a moment ago, by turns: from the one
/// after `turn` on. Returns the last one that had its turn.
async fn sign_due(
    worker: &Worker,
    signing: &Signing,
    fence: Fence,
    followed: &mut Followed,
    recent: &mut HashMap<TenantId, Instant>,
    turn: Option<TenantId>,
) -> Option<TenantId> {
    recent.retain(|_, at| at.elapsed() < EVERY);
    let due = followed.due().filter(|t| !recent.contains_key(t));
    // In the order of their ids.
    let mut due: Vec<TenantId> = due.collect();
    let behind = due.partition_point(|tenant| Some(*tenant) <= turn);
    due.rotate_left(behind);
    due.truncate(BUDGET);
    let mut last = turn;
    for tenant in due {
        if worker.stop.is_cancelled() {
            return last;
        }
        last = Some(tenant);
        match sign(worker, signing, fence, tenant).await {
            Ok(size) => {
                recent.insert(tenant, Instant::now());
                followed.set_cursor(tenant, size);
                followed.reached(tenant, size);
            }
            Err(error) if is_closed(&error) => followed.ended(tenant),
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
    last
}

/// Signs a tenant's head, unless that was done. Returns the size that is signed, which may be smaller
/// where the key changed.
async fn sign(worker: &Worker, signing: &Signing, fence: Fence, tenant: TenantId) -> Result<u64> {
    let scope = TenantScope::trusted(tenant, "signer");
    let store = &*worker.log.store;
    let head = store.head(&scope).await?;
    // An empty log has nothing to sign yet.
    if head.size() == 0 {
        return Ok(0);
    }
    let now = worker.log.clock.now();
    Ok(signing.publish(store, fence, &head, now).await?.size)
}
