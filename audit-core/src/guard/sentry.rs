//! Comparing logs with the guard, and stopping those that may not go on.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use audit_tlog::Kind;
use audit_tlog::checkpoint::FIRST_EPOCH;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::checkpoint::{CheckpointStore, EpochStart, SignedCheckpoint};
use crate::decorate::{Wraps, decorate_log_store};
use crate::entry::Receipt;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::root_of;
use crate::filter::Filter;
use crate::guard::{Guard, GuardAdvance, GuardedErasure, GuardedHead};
use crate::id::TenantId;
use crate::page::PageRequest;
use crate::prepare::Batch;
use crate::scope::TenantScope;
use crate::seal::Head;
use crate::store::LogStore;
use crate::worker::is_closed;

/// How long a log that was stopped stays so before it is compared again.
const AGAIN: Duration = Duration::from_secs(5);
/// Logs that are compared at once.
const TURNS: usize = 8;

/// Why a log may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breach {
    /// It was signed, and the guard knows nothing of that.
    Missing,
    /// The guard knows a head that the log doesn't continue.
    Ahead(GuardedHead),
}

/// What came of the comparisons.
#[derive(Debug, Default)]
struct Verdicts {
    admitted: HashSet<TenantId>,
    /// Why, and when that was seen.
    stopped: HashMap<TenantId, (Error, Instant)>,
}

/// Compares each log with the guard when this process first comes to it, and remembers the outcome: what
/// is appended later costs a look into a map.
#[derive(Debug)]
pub(crate) struct Sentry {
    guard: Arc<dyn Guard>,
    checkpoints: Arc<dyn CheckpointStore>,
    /// The store behind the sentry.
    store: Arc<dyn LogStore>,
    verdicts: RwLock<Verdicts>,
    turns: Semaphore,
    /// Whether the deployment log may not be signed, as the process that signs saw it last.
    pub(super) deployment_stopped: AtomicBool,
}

impl Sentry {
    pub(crate) fn new(
        guard: Arc<dyn Guard>,
        checkpoints: Arc<dyn CheckpointStore>,
        store: Arc<dyn LogStore>,
    ) -> Self {
        Self {
            guard,
            checkpoints,
            store,
            verdicts: RwLock::default(),
            turns: Semaphore::new(TURNS),
            deployment_stopped: AtomicBool::new(false),
        }
    }

    pub(crate) fn guard(&self) -> &dyn Guard {
        &*self.guard
    }

    /// The store, which stops nothing.
    pub(crate) fn store(&self) -> &Arc<dyn LogStore> {
        &self.store
    }

    /// Whether a log may go on.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`], naming the guard, when it may not, and when that can't be told; what
    /// the store answers.
    pub(crate) async fn admit(&self, tenant: TenantId) -> Result<()> {
        if let Some(known) = self.known(tenant) {
            return known;
        }
        // It is never closed: without a turn, one compares all the same.
        let _turn = self.turns.acquire().await.ok();
        if let Some(known) = self.known(tenant) {
            return known;
        }
        match self.compare(tenant).await {
            Ok(breach) => self.note(tenant, breach),
            // The store refuses it by itself, and lets it be opened again.
            Err(error) if is_closed(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn known(&self, tenant: TenantId) -> Option<Result<()>> {
        let verdicts = self.verdicts.read().unwrap_or_else(PoisonError::into_inner);
        if verdicts.admitted.contains(&tenant) {
            return Some(Ok(()));
        }
        let (error, at) = verdicts.stopped.get(&tenant)?;
        (at.elapsed() < AGAIN).then(|| Err(error.clone()))
    }

    /// Remembers what came of a comparison.
    fn note(&self, tenant: TenantId, breach: Option<Breach>) -> Result<()> {
        let error = breach.map(|breach| self.stop(tenant, breach));
        let mut verdicts = self
            .verdicts
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match &error {
            Some(error) => {
                verdicts.admitted.remove(&tenant);
                let seen = (error.clone(), Instant::now());
                verdicts.stopped.insert(tenant, seen);
            }
            None => {
                verdicts.stopped.remove(&tenant);
                verdicts.admitted.insert(tenant);
            }
        }
        error.map_or(Ok(()), Err)
    }

    /// Compares it again when it is next asked for.
    pub(crate) fn forget(&self, tenant: TenantId) {
        let mut verdicts = self
            .verdicts
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        verdicts.admitted.remove(&tenant);
        verdicts.stopped.remove(&tenant);
    }

    /// How many of the logs that this process came to may not go on, the deployment log among them.
    pub(crate) fn stopped(&self) -> usize {
        let deployment = self.deployment_stopped.load(Ordering::Relaxed);
        let verdicts = self.verdicts.read().unwrap_or_else(PoisonError::into_inner);
        verdicts.stopped.len() + usize::from(deployment)
    }

    fn stop(&self, tenant: TenantId, breach: Breach) -> Error {
        let place = self.guard.place();
        let knows = match breach {
            Breach::Missing => "knows nothing of this log, whose heads were signed".to_owned(),
            Breach::Ahead(head) => format!(
                "knows a signed head of {} entries that this log doesn't continue",
                head.size
            ),
        };
        let message = format!(
            "the guard ({place}) {knows}: an old copy was restored, or the guard lost; nothing is \
             appended or signed until `audit-server tlog recover` was run"
        );
        Error::new(ErrorKind::Unavailable, message)
            .with_tenant(tenant)
            .with_retry_after(Duration::from_secs(60))
    }

    /// Compares a log with the guard, as both are now.
    pub(crate) async fn compare(&self, tenant: TenantId) -> Result<Option<Breach>> {
        let scope = TenantScope::trusted(tenant, "guard");
        // In this order: what was published meanwhile is known to the guard, and what the guard knows
        // is in the log.
        let latest = match self.checkpoints.latest(&scope).await {
            Ok(latest) => latest,
            Err(error) if error.kind() == ErrorKind::UnknownTenant => None,
            Err(error) => return Err(error),
        };
        let guarded = self.guard.head(tenant).await?;
        let epochs = match self.checkpoints.epochs(&scope).await {
            Err(error) if error.kind() == ErrorKind::UnknownTenant => {
                return Ok(guarded.map(Breach::Ahead));
            }
            epochs => epochs?,
        };
        let head = self.store.head(&scope).await?;
        self.judge(&scope, &head, latest.as_ref(), &epochs, guarded)
            .await
    }

    /// Looks whether a log may still go on, when its head is about to be signed: what is given is what the
    /// log has, and `latest` is continued by the head. Returns what the guard knows.
    pub(crate) async fn pass(
        &self,
        scope: &TenantScope,
        head: &Head,
        latest: Option<&SignedCheckpoint>,
        epochs: &[EpochStart],
    ) -> Result<Option<GuardedHead>> {
        let guarded = self.guard.head(scope.tenant()).await?;
        let is_latest = guarded.is_some_and(|guarded| {
            guarded.epoch == present_epoch(epochs)
                && latest.is_some_and(|l| (l.size, l.root) == (guarded.size, guarded.root))
        });
        let breach = if is_latest {
            None
        } else if guarded.is_some_and(|guarded| guarded.size > head.size()) {
            // The head may be one of a while ago.
            let head = self.store.head(scope).await?;
            self.judge(scope, &head, latest, epochs, guarded).await?
        } else {
            self.judge(scope, head, latest, epochs, guarded).await?
        };
        self.note(scope.tenant(), breach)?;
        Ok(guarded)
    }

    async fn judge(
        &self,
        scope: &TenantScope,
        head: &Head,
        latest: Option<&SignedCheckpoint>,
        epochs: &[EpochStart],
        guarded: Option<GuardedHead>,
    ) -> Result<Option<Breach>> {
        let epoch = present_epoch(epochs);
        let Some(guarded) = guarded else {
            // With an epoch begun and nothing signed in it, it was recovered already.
            let signed = latest
                .is_some_and(|latest| epochs.last().is_none_or(|start| latest.size > start.seq));
            return Ok(signed.then_some(Breach::Missing));
        };
        let is_continued = match guarded.epoch.cmp(&epoch) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal => {
                guarded.size <= head.size()
                    && root_of(&*self.store, scope, 0..guarded.size).await? == guarded.root
            }
        };
        Ok((!is_continued).then_some(Breach::Ahead(guarded)))
    }

    /// Tells the guard of a head that is about to be published, and of the erasures since the one that it
    /// [knows](Self::pass). Nothing, when it knows a larger one.
    pub(crate) async fn advance(
        &self,
        scope: &TenantScope,
        mut known: Option<GuardedHead>,
        head: GuardedHead,
    ) -> Result<()> {
        if known.is_some_and(|known| known.place() >= head.place()) {
            return Ok(());
        }
        // What was erased before an epoch began was erased in it again, or never was in the guard.
        let in_epoch = known.filter(|known| known.epoch == head.epoch);
        let mut from = in_epoch.map_or(0, |known| known.size);
        loop {
            let erasures = self.erasures(scope, from, head.size).await?;
            // With more of them to come, by way of a head that the log had in between.
            let to = match erasures.last() {
                Some(last) if erasures.len() == PageRequest::MAX_LIMIT => GuardedHead {
                    epoch: head.epoch,
                    size: last.seq + 1,
                    root: root_of(&*self.store, scope, 0..last.seq + 1).await?,
                },
                _ => head,
            };
            let advance = GuardAdvance {
                known,
                to,
                erasures,
            };
            self.guard.advance(scope.tenant(), &advance).await?;
            if to.size >= head.size {
                return Ok(());
            }
            (known, from) = (Some(to), to.size);
        }
    }

    /// The first `erase` entries of these positions that are left, a page of them at most.
    async fn erasures(
        &self,
        scope: &TenantScope,
        from: u64,
        to: u64,
    ) -> Result<Vec<GuardedErasure>> {
        let mut filter = Filter::new().action("log.erase").from_seq(from);
        filter.to_seq = Some(to);
        let page = PageRequest::first()
            .ascending()
            .limit(PageRequest::MAX_LIMIT);
        let found = self.store.list(scope, &filter, &page).await?.items;
        let erasures = found.into_iter().filter_map(|entry| {
            let ctl = entry.ctl.filter(|_| entry.kind == Kind::Erase)?;
            Some(GuardedErasure {
                seq: entry.seq,
                accepted_at: entry.created_at,
                ctl,
            })
        });
        Ok(erasures.collect())
    }
}

/// The epoch that a log is in.
pub(crate) fn present_epoch(epochs: &[EpochStart]) -> u64 {
    epochs.last().map_or(FIRST_EPOCH, |start| start.epoch)
}

/// A log store that adds nothing to logs that may not go on.
#[derive(Debug)]
pub(crate) struct Guarded {
    inner: Arc<dyn LogStore>,
    sentry: Arc<Sentry>,
}

impl Guarded {
    pub(crate) fn new(sentry: Arc<Sentry>) -> Self {
        Self {
            inner: Arc::clone(sentry.store()),
            sentry,
        }
    }
}

impl Wraps for Guarded {
    type Store = dyn LogStore;

    fn wrapped(&self) -> &dyn LogStore {
        &*self.inner
    }

    async fn append_around(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>> {
        let mut refusals: HashMap<TenantId, Error> = HashMap::new();
        let mut last = None;
        for batch in batches {
            let tenant = batch.tenant();
            if last != Some(tenant)
                && !refusals.contains_key(&tenant)
                && let Err(error) = self.sentry.admit(tenant).await
            {
                refusals.insert(tenant, error);
            }
            last = Some(tenant);
        }
        if refusals.is_empty() {
            return self.inner.append(batches).await;
        }
        let refused = |batch: &Batch| refusals.get(&batch.tenant()).cloned();
        let admitted = batches.iter().filter(|batch| refused(batch).is_none());
        let admitted: Vec<Batch> = admitted.cloned().collect();
        let mut outcomes = self.inner.append(&admitted).await?.into_iter();
        let outcome = |batch: &Batch| match refused(batch) {
            Some(error) => Err(error),
            None => outcomes
                .next()
                .unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "a batch has no outcome"))),
        };
        Ok(batches.iter().map(outcome).collect())
    }

    async fn writing_around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        tenant: TenantId,
        _: &'static str,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        self.sentry.admit(tenant).await?;
        call().await
    }
}

decorate_log_store!([] Guarded);
