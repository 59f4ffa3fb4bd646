//! Appends what waits in the queue.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::eraser::erase_late;
use super::{Worker, aside, is_own_fault, pause_after};
use crate::error::{Error, ErrorKind, Result};
use crate::id::TenantId;
use crate::ingest::open_message;
use crate::prepare::{Batch, PreparedEvent};
use crate::queue::{DeadLetter, Delivery, EventQueue, MessageKind};
use crate::scope::TenantScope;
use crate::tenant::TenantStatus;

/// Messages that are appended at once.
const INGEST: usize = 100;
/// For how long a received message is hidden from other workers.
const LEASE: Duration = Duration::from_secs(20);
/// How often the queue is asked how much waits in it: to count that, some read all of it.
const DEPTH: Duration = Duration::from_secs(10);

pub(super) async fn run(worker: Worker, queue: Arc<dyn EventQueue>) {
    let mut failures = 0;
    let mut dropped = queue.dropped();
    let mut asked: Option<Instant> = None;
    while !worker.stop.is_cancelled() {
        let received = tokio::select! {
            () = worker.stop.cancelled() => return,
            received = queue.receive(INGEST, Duration::from_secs(1), LEASE) => received,
        };
        // What the queue removed by itself, which no log can have sent.
        let removed = queue.dropped().saturating_sub(dropped);
        if removed > 0 {
            dropped += removed;
            worker.desk.edit(&worker.name, |s| s.dropped += removed);
        }
        let outcome = match received {
            Ok(deliveries) if deliveries.is_empty() => Ok(()),
            Ok(deliveries) => ingest_all(&worker, &*queue, deliveries).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => {
                failures = 0;
                worker.worked();
                if asked.is_none_or(|asked| asked.elapsed() >= DEPTH) {
                    asked = Some(Instant::now());
                    if let Ok(depth) = queue.depth().await {
                        worker.lag(depth.waiting + depth.leased);
                    }
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

/// What becomes of a delivery.
enum Fate {
    Done,
    Dead(String),
    Later(Error),
}

/// How often a message is tried whose failure may be the store's and not its own.
const MAX_ATTEMPTS: u32 = 100;

async fn ingest_all(
    worker: &Worker,
    queue: &dyn EventQueue,
    deliveries: Vec<Delivery>,
) -> Result<()> {
    let handles: Vec<String> = deliveries.iter().map(|d| d.handle.clone()).collect();
    let work = append_all(worker, &deliveries);
    let fates = holding(queue, &handles, work).await;
    let (mut done, mut later, mut dead) = (Vec::new(), Vec::new(), Vec::new());
    let mut letters = Vec::new();
    let (mut attempts, mut postponed) = (1, None);
    for (delivery, decided) in deliveries.into_iter().zip(fates) {
        match decided {
            Fate::Done => done.push(delivery.handle),
            Fate::Dead(reason) => {
                let (handle, now) = (delivery.handle, worker.log.clock.now());
                letters.push(DeadLetter::new(&*handle, delivery.message, &*reason, now));
                dead.push((handle, reason));
            }
            Fate::Later(error) => {
                attempts = attempts.max(delivery.attempts);
                later.push(delivery.handle);
                postponed.get_or_insert(error);
            }
        }
    }
    // What could not be settled is delivered again when its lease ends.
    let mut settled = Vec::new();
    let went_on = !done.is_empty() || !dead.is_empty();
    if !done.is_empty() {
        settled.extend(queue.ack(&done).await?);
    }
    if !dead.is_empty() {
        settled.extend(queue.bury(&dead).await?);
    }
    if !later.is_empty() {
        settled.extend(queue.retry(&later, pause_after(attempts)).await?);
    }
    // An erasure that was asked for in between may have looked before they were there.
    if aside::is_erased(&worker.log, &letters).await? {
        aside::sift(&worker.log).await?;
    }
    match postponed {
        // Nothing goes on: the worker pauses, rather than use up the deliveries of all that waits.
        Some(error) if !went_on => Err(error),
        _ => settled.into_iter().collect(),
    }
}

/// Opens what was delivered, appends it, and says what becomes of each.
async fn append_all(worker: &Worker, deliveries: &[Delivery]) -> Vec<Fate> {
    let mut fates = Vec::with_capacity(deliveries.len());
    let mut batches = Vec::new();
    // What follows a message that comes again comes again too, so that a tenant's order is kept.
    let mut waiting: HashMap<TenantId, Error> = HashMap::new();
    for delivery in deliveries {
        if let Some(error) = waiting.get(&delivery.message.tenant) {
            fates.push(Some(Fate::Later(error.clone())));
            continue;
        }
        match open(worker, delivery).await {
            Ok(Opened::Batch(batch)) => {
                batches.push(batch);
                fates.push(None);
            }
            Ok(Opened::Foreign) => {
                tracing::warn!(tenant = %delivery.message.tenant, id = %delivery.message.id,
                    "dropped a message that this log did not write");
                worker.desk.edit(&worker.name, |s| s.dropped += 1);
                fates.push(Some(Fate::Done));
            }
            Err(error) => {
                let fate = fate(Err(error), delivery.attempts);
                if let Fate::Later(error) = &fate {
                    waiting.insert(delivery.message.tenant, error.clone());
                }
                fates.push(Some(fate));
            }
        }
    }
    // An unknown outcome is every message's own: all of them come again, which their ids make
    // harmless.
    let mut outcomes = match worker.log.commit(&batches).await {
        Ok(outcomes) => outcomes
            .into_iter()
            .map(|o| o.map(|_| ()))
            .collect::<Vec<_>>(),
        Err(error) => batches.iter().map(|_| Err(error.clone())).collect(),
    };
    erase_late(&worker.log, &batches, &mut outcomes).await;
    let mut outcomes = outcomes.into_iter();
    fates
        .into_iter()
        .zip(deliveries)
        .map(|(decided, delivery)| {
            decided.unwrap_or_else(|| {
                let missing = || {
                    Err(Error::new(
                        ErrorKind::Internal,
                        "the store answered fewer batches than it was given",
                    ))
                };
                fate(outcomes.next().unwrap_or_else(missing), delivery.attempts)
            })
        })
        .collect()
}

/// Does the work, and extends the leases of what it is about for as long as it takes.
async fn holding<T>(
    queue: &dyn EventQueue,
    handles: &[String],
    work: impl Future<Output = T>,
) -> T {
    let extending = async {
        loop {
            tokio::time::sleep(LEASE / 2).await;
            // A lease that ends has its message delivered again, which its id makes harmless.
            match queue.extend(handles, LEASE).await {
                Ok(outcomes) => {
                    let lost = outcomes.iter().filter(|o| o.is_err()).count();
                    tracing::debug!(leases = handles.len(), lost, "extended the leases");
                }
                Err(error) => tracing::debug!(%error, "the leases were not extended"),
            }
        }
    };
    tokio::select! {
        done = work => done,
        never = extending => never,
    }
}

fn fate(outcome: Result<()>, attempts: u32) -> Fate {
    match outcome {
        Ok(()) => Fate::Done,
        Err(error) if is_own_fault(&error) => Fate::Dead(error.to_string()),
        Err(error) if error.is_retryable() || attempts < MAX_ATTEMPTS => Fate::Later(error),
        Err(error) => Fate::Dead(error.to_string()),
    }
}

enum Opened {
    Batch(Batch),
    Foreign,
}

async fn open(worker: &Worker, delivery: &Delivery) -> Result<Opened> {
    let message = &delivery.message;
    if message.kind != MessageKind::Ingest {
        return Err(Error::new(
            ErrorKind::Malformed,
            "no worker here does this kind of work",
        ));
    }
    let tenant = worker.log.cached_tenant(message.tenant).await?;
    // Its secret is gone: whether this log wrote the message can't be told any more.
    if tenant.status == TenantStatus::Deleted {
        tenant.status.admit_write(tenant.id)?;
    }
    let accepted = match open_message(&tenant.secret, message) {
        Ok(accepted) => accepted,
        Err(error) if error.kind() == ErrorKind::Forbidden => return Ok(Opened::Foreign),
        Err(error) => return Err(error),
    };
    // Redacted before it was queued, so not again.
    let prepared = PreparedEvent::new(message.tenant, accepted.event, &*worker.log.clock, &[])?
        .accepted_at(accepted.accepted_at);
    let scope = TenantScope::granted(
        message.tenant,
        &accepted.subject,
        crate::Permission::Record.into(),
    );
    Ok(Opened::Batch(Batch::new(scope, vec![prepared])))
}
