//! Gives each consumer every tenant's log, from its cursor on.

use std::sync::Arc;

use super::followed::Followed;
use super::{POLL, Worker, is_closed, pause_after};
use crate::consumer::Consumer;
use crate::error::Result;
use crate::id::TenantId;
use crate::scope::TenantScope;

/// Entries that a consumer is given at once, at most.
const CONSUME: usize = 1_000;

pub(super) async fn run(mut worker: Worker, consumer: Arc<dyn Consumer>) {
    let mut followed = Followed::default();
    let mut failures = 0;
    loop {
        worker.bell.borrow_and_update();
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
            match consume(&worker, &*consumer, &mut followed, tenant).await {
                Ok(position) => followed.reached(tenant, position),
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
        let more = followed.due().next().is_some();
        if worker.stop.is_cancelled() || (!more && !worker.rest(POLL).await) {
            return;
        }
    }
}

/// Gives a consumer the next entries of one tenant. Returns the position that it has reached.
async fn consume(
    worker: &Worker,
    consumer: &dyn Consumer,
    followed: &mut Followed,
    tenant: TenantId,
) -> Result<u64> {
    let store = &worker.log.store;
    let cursor = match followed.cursor(tenant) {
        Some(cursor) => cursor,
        None => {
            let cursor = store.cursor(tenant, consumer.name()).await?;
            // Makes the consumer known to prunes from its first sight of the tenant on.
            store
                .advance(tenant, consumer.name(), consumer.is_required(), cursor)
                .await?;
            cursor
        }
    };
    followed.set_cursor(tenant, cursor);
    let scope = TenantScope::trusted(tenant, consumer.name());
    let entries = store.read(&scope, cursor, CONSUME).await?;
    let Some(last) = entries.last() else {
        return Ok(u64::MAX);
    };
    let next = last.seq + 1;
    consumer.consume(tenant, &entries).await?;
    store
        .advance(tenant, consumer.name(), consumer.is_required(), next)
        .await?;
    followed.set_cursor(tenant, next);
    Ok(next)
}
