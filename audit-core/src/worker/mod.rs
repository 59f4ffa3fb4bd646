//! The workers: what follows the log, drains queue and outbox, compares the index with the log, signs
//! heads and keeps the log over them, looks after retention, erases what was asked for, in the archive too,
//! ends tenants, and sweeps what was pruned.

mod archive;
mod aside;
mod consumer;
mod deployment;
mod eraser;
mod followed;
mod indexer;
mod ingest;
mod offboarding;
mod reconciler;
mod relay;
mod retention;
mod signer;
mod sweeper;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_tlog::Timestamp;
use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::archive::ERASURES;
use crate::error::{Error, ErrorKind};
use crate::log::Inner;
pub(crate) use aside::sift;
pub use deployment::{DeploymentStatus, WitnessStatus};
pub(crate) use eraser::step as erasure_step;
pub use indexer::remove_erased;

/// How often a worker looks for what another process did.
const POLL: Duration = Duration::from_millis(100);
/// The longest pause after failures.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How a worker is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its name.
    pub name: String,
    /// Whether it runs; a worker that died is started anew only by a new process.
    pub running: bool,
    /// Entries or messages that it is behind, where that is known.
    pub lag: Option<u64>,
    /// What it last failed with, until it succeeds again: with everything, or for one tenant, which
    /// is then passed over for a while.
    pub last_error: Option<String>,
    /// Messages that it or its queue dropped because this log had not written them.
    pub dropped: u64,
    /// Entries that the index lacks, or has too many of, as the reconciler last saw them; none until
    /// it has been through all logs once.
    pub difference: Option<u64>,
    /// Entries that the reconciler has put right since it started.
    pub repaired: u64,
    /// How often the index had lost what the indexer had given it, and was asked for what it has of all logs;
    /// none of the other workers.
    pub losses: Option<u64>,
    /// What retention has done; none of the other workers.
    pub retention: Option<RetentionStatus>,
    /// What the deployment log has come to; none of the other workers, and of processes that don't sign.
    pub deployment: Option<DeploymentStatus>,
    /// What went with deleted tenants; none of the other workers.
    pub offboarding: Option<OffboardingStatus>,
}

/// What the worker that ends tenants has found since it started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OffboardingStatus {
    /// Events that were accepted and never appended, and went with a deleted tenant: see
    /// [`Tombstone::unappended`](crate::Tombstone::unappended). Each is counted when nothing is left of its
    /// tenant.
    pub unappended: u64,
}

/// What the worker that looks after retention has done since it started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RetentionStatus {
    /// When it was last through all tenants.
    pub last_run: Option<Timestamp>,
    /// Entries that were pruned.
    pub pruned: u64,
    /// Entries that lost groups.
    pub erased: u64,
    /// Tenants with settings that make entries go, and an open hold.
    pub held: u64,
}

#[derive(Debug)]
struct Desk {
    statuses: Mutex<BTreeMap<String, WorkerStatus>>,
    failed: watch::Sender<Option<String>>,
}

impl Desk {
    fn edit(&self, name: &str, edit: impl FnOnce(&mut WorkerStatus)) {
        let mut statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        let status = statuses
            .entry(name.to_owned())
            .or_insert_with(|| WorkerStatus {
                name: name.to_owned(),
                running: true,
                lag: None,
                last_error: None,
                dropped: 0,
                difference: None,
                repaired: 0,
                losses: None,
                retention: None,
                deployment: None,
                offboarding: None,
            });
        edit(status);
    }

    fn lag_of(&self, name: &str) -> u64 {
        let statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        statuses.get(name).and_then(|s| s.lag).unwrap_or(0)
    }
}

/// The running workers. Dropping it stops them without waiting.
#[derive(Debug)]
pub struct Workers {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    desk: Arc<Desk>,
}

impl Workers {
    pub(crate) fn start(log: Arc<Inner>) -> Self {
        let mut workers = Self {
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            desk: Arc::new(Desk {
                statuses: Mutex::default(),
                failed: watch::Sender::new(None),
            }),
        };
        for consumer in log.consumers.clone() {
            let context = workers.context(&log, format!("consumer {}", consumer.name()));
            workers.spawn(context.name.clone(), consumer::run(context, consumer));
        }
        if let Some(index) = log.search.clone() {
            let context = workers.context(&log, indexer::NAME.into());
            let work = indexer::run(context, Arc::clone(&index));
            workers.spawn(indexer::NAME.into(), work);
            let context = workers.context(&log, "reconciler".into());
            workers.spawn(context.name.clone(), reconciler::run(context, index));
        }
        if let Some(queue) = log.queue.clone() {
            let context = workers.context(&log, "ingest".into());
            workers.spawn(context.name.clone(), ingest::run(context, queue));
        }
        if let Some(outbox) = log.outbox.clone() {
            let context = workers.context(&log, "relay".into());
            workers.spawn(context.name.clone(), relay::run(context, outbox));
        }
        if let Some(signing) = log.signing.clone() {
            let context = workers.context(&log, "signer".into());
            workers.spawn(context.name.clone(), signer::run(context, signing));
        }
        if let (Some(signing), Some(deployment)) = (log.signing.clone(), log.deployment.clone()) {
            let context = workers.context(&log, "deployment".into());
            let work = deployment::run(context, signing, deployment);
            workers.spawn("deployment".into(), work);
        }
        if log.archive.is_some() && log.signing.is_some() {
            let context = workers.context(&log, ERASURES.into());
            workers.spawn(context.name.clone(), archive::run(context));
        }
        let context = workers.context(&log, "retention".into());
        workers.spawn(context.name.clone(), retention::run(context));
        let context = workers.context(&log, "eraser".into());
        let work = eraser::run(context, Arc::clone(&log.erasures));
        workers.spawn("eraser".into(), work);
        let context = workers.context(&log, "offboarding".into());
        let work = offboarding::run(context, Arc::clone(&log.offboarding));
        workers.spawn("offboarding".into(), work);
        let context = workers.context(&log, "sweeper".into());
        workers.spawn(context.name.clone(), sweeper::run(context));
        workers
    }

    fn context(&self, log: &Arc<Inner>, name: String) -> Worker {
        Worker {
            log: Arc::clone(log),
            bell: log.bell.any(),
            stop: self.stop.clone(),
            desk: Arc::clone(&self.desk),
            name,
        }
    }

    fn spawn(&mut self, name: String, work: impl Future<Output = ()> + Send + 'static) {
        self.desk.edit(&name, |_| ());
        let (desk, stop) = (Arc::clone(&self.desk), self.stop.clone());
        self.tasks.spawn(async move {
            let outcome = std::panic::AssertUnwindSafe(work).catch_unwind().await;
            desk.edit(&name, |s| s.running = false);
            if outcome.is_err() || !stop.is_cancelled() {
                tracing::error!(worker = name, "the worker died");
                desk.failed.send_replace(Some(name));
            }
        });
    }

    /// Waits for a worker to die, and names it. A worker that only fails goes on trying.
    pub async fn failed(&self) -> String {
        let mut failed = self.desk.failed.subscribe();
        loop {
            if let Some(name) = failed.borrow_and_update().clone() {
                return name;
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether all of them run.
    pub fn is_healthy(&self) -> bool {
        self.status().iter().all(|s| s.running)
    }

    /// How each is doing, by name.
    pub fn status(&self) -> Vec<WorkerStatus> {
        let statuses = self
            .desk
            .statuses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        statuses.values().cloned().collect()
    }

    /// Lets each finish what it has begun, for at most `grace`. Returns whether all did. What was
    /// cut off is done again after the next start.
    pub async fn shutdown(mut self, grace: Duration) -> bool {
        self.stop.cancel();
        let drained = tokio::time::timeout(grace, async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await
        .is_ok();
        self.tasks.abort_all();
        drained
    }
}

/// What a worker works with.
struct Worker {
    log: Arc<Inner>,
    bell: watch::Receiver<()>,
    stop: CancellationToken,
    desk: Arc<Desk>,
    name: String,
}

impl Worker {
    /// Waits for an append, for `pause`, or for the end. False at the end.
    async fn rest(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
            _ = self.bell.changed() => true,
        }
    }

    /// Waits for `pause`, whatever is appended. False at the end.
    async fn pause(&self, pause: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }

    fn lag(&self, lag: u64) {
        self.desk.edit(&self.name, |s| s.lag = Some(lag));
    }

    fn worked(&self) {
        self.desk.edit(&self.name, |s| s.last_error = None);
    }

    fn failed(&self, error: &Error) {
        tracing::warn!(worker = self.name, error = %error, "the worker failed and will try again");
        self.desk
            .edit(&self.name, |s| s.last_error = Some(error.to_string()));
    }
}

/// A pause that doubles with each failure in a row, from 100 ms to [`MAX_PAUSE`].
fn pause_after(failures: u32) -> Duration {
    Duration::from_millis(100)
        .saturating_mul(1 << failures.min(9))
        .min(MAX_PAUSE)
}

/// A closed or deleted tenant's log can't be read now; whatever opens it again makes it grow, and
/// that brings it back. For whatever follows the logs.
pub fn is_closed(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::TenantClosed | ErrorKind::TenantDeleted | ErrorKind::UnknownTenant
    )
}

/// Whether the failure is the event's own: no store, however well, will ever take it. Other failures
/// that are final, a missing right or a fault within, may be the store's, and would make dead letters
/// of everything.
fn is_own_fault(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Malformed
            | ErrorKind::Invalid
            | ErrorKind::Conflict
            | ErrorKind::Forbidden
            | ErrorKind::UnknownTenant
            | ErrorKind::TenantClosed
            | ErrorKind::TenantDeleted
    )
}
