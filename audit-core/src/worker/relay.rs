//! Appends what callers left in the outbox.

use std::collections::HashSet;
use std::sync::Arc;

use super::eraser::erase_late;
use super::followed::Paused;
use super::{POLL, Worker, aside, is_own_fault, pause_after};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::id::TenantId;
use crate::outbox::{Outbox, OutboxRow, ParkedRow};
use crate::prepare::{Batch, PreparedEvent};
use crate::scope::TenantScope;

/// Outbox rows that are relayed at once.
const RELAY: usize = 500;

pub(super) async fn run(mut worker: Worker, outbox: Arc<dyn Outbox>) {
    let mut failures = 0;
    let mut paused = Paused::default();
    loop {
        worker.bell.borrow_and_update();
        match relay(&worker, &*outbox, &mut paused).await {
            Ok(relayed) => {
                failures = 0;
                if paused.is_empty() {
                    worker.worked();
                }
                if relayed == RELAY && !worker.stop.is_cancelled() {
                    continue;
                }
                if worker.stop.is_cancelled() || !worker.rest(POLL).await {
                    return;
                }
            }
            Err(error) => {
                worker.failed(&error);
                failures += 1;
                if !worker.pause(pause_after(failures)).await {
                    return;
                }
            }
        }
    }
}

/// Takes the next rows and appends them, and returns how many it took. A tenant whose rows can't be
/// appended now is passed over for a while.
async fn relay(worker: &Worker, outbox: &dyn Outbox, paused: &mut Paused) -> Result<usize> {
    let passed_over = paused.now();
    let due = paused.due();
    let rows = outbox.take(RELAY, &passed_over).await?;
    let taken = rows.len();
    worker.lag(taken as u64);
    if taken < RELAY {
        // Others may have relayed, or parked, what failed here.
        let present: HashSet<TenantId> = rows.iter().map(|row| row.tenant).collect();
        for tenant in due.into_iter().filter(|tenant| !present.contains(tenant)) {
            paused.forgive(tenant);
        }
    }
    let mut batches = Vec::with_capacity(taken);
    let mut relayed = Vec::with_capacity(taken);
    let mut parked = Vec::new();
    for row in rows {
        match prepare_row(worker, &row) {
            Ok(prepared) => {
                let scope = TenantScope::trusted(row.tenant, "outbox relay");
                batches.push(Batch::new(scope, vec![prepared]).creating_tenant());
                relayed.push(row);
            }
            Err(error) => parked.push(ParkedRow::new(row, error.to_string())),
        }
    }
    let mut outcomes = worker.log.commit(&batches).await?;
    erase_late(&worker.log, &batches, &mut outcomes).await;
    let mut done = Vec::with_capacity(relayed.len());
    let mut unavailable: Option<Error> = None;
    let mut failed = HashSet::new();
    // Where nothing at all is taken, the fault is more likely the store's than each row's.
    let takes_some = outcomes.iter().any(Result::is_ok);
    for (row, outcome) in relayed.into_iter().zip(outcomes) {
        match outcome {
            Ok(_) => {
                done.push(row.row);
                if !failed.contains(&row.tenant) {
                    paused.forgive(row.tenant);
                }
            }
            Err(error) if error.is_retryable() || (!takes_some && !is_own_fault(&error)) => {
                if failed.insert(row.tenant) {
                    paused.fail(row.tenant);
                }
                unavailable.get_or_insert(error);
            }
            Err(error) => parked.push(ParkedRow::new(row, error.to_string())),
        }
    }
    outbox.done(&done).await?;
    for refused in &parked {
        outbox.park(refused.row.row, &refused.reason).await?;
    }
    // An erasure that was asked for in between may have looked before they were there.
    if aside::is_erased(&worker.log, &parked).await? {
        aside::sift(&worker.log).await?;
    }
    if let Some(error) = unavailable {
        worker.failed(&error);
    }
    Ok(taken)
}

fn prepare_row(worker: &Worker, row: &OutboxRow) -> Result<PreparedEvent> {
    let event = Event::from_json(&row.event)?;
    if event.given_id().is_some_and(|id| id != row.id) {
        return Err(Error::field("id", "differs from the outbox row's"));
    }
    let event = event.id(row.id);
    let log = &worker.log;
    let prepared = PreparedEvent::new(row.tenant, event, &*log.clock, &log.redactors)?;
    Ok(prepared.accepted_at(row.recorded_at))
}
