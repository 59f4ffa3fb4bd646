//! The facade: one handle to record, read and follow every tenant's log.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use audit_tlog::{Basis, Timestamp};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;

use crate::archive::{Archive, ArchiveStatus, Archiver, CONSUMER, ERASURES, MAX_ENTRIES, Wanted};
use crate::authorize::{AccessRequest, ByClaims, Decision, TenantAuthorizer};
use crate::checkpoint::{CheckpointStore, Signer};
use crate::clock::{Clock, SystemClock};
use crate::consumer::Consumer;
use crate::deployment::{Deployment, DeploymentStore, Witness};
use crate::entry::{Entry, Receipt};
use crate::erasure::{ErasureCount, ErasureJob, ErasureRequest, ErasureStore, Selection};
use crate::error::{Error, ErrorKind, FieldFault, Result};
use crate::event::Event;
use crate::evidence::{TiledLog, not_yet};
use crate::filter::Filter;
use crate::group_commit::GroupCommit;
use crate::guard::{Guard, Guarded, Sentry};
use crate::id::{ErasureId, EventId, TenantId};
use crate::ingest::{Accepted, seal_message};
use crate::offboarding::{OffboardingStore, admit_own, admit_removal};
use crate::outbox::Outbox;
use crate::page::{Order, Page, PageRequest, Sort};
use crate::prepare::{Act, Batch, PreparedEvent, Redact};
use crate::queue::EventQueue;
use crate::recorder::Recorder;
use crate::retention::{RetentionStore, retention_basis};
use crate::scope::{Permission, Permissions, Principal, TenantScope};
use crate::seal::Head;
use crate::search::{SearchIndex, SearchRequest};
use crate::signing::Signing;
use crate::stats::{Stats, StatsRequest};
use crate::store::{Erasure, LogStore, Lookup, Prune, PruneBound, Pruned, Snapshot, loses};
use crate::subscribe::{Bell, SubscribeRequest, Subscription, subscribe};
use crate::tenant::{Tenant, TenantSecret, TenantStatus, TenantStore, TenantUpdate};
use crate::worker::Workers;

/// How long a tenant's row is trusted. The store checks the status itself on each call, so this only
/// delays how soon a change made by another process shows in *how* a call is refused.
const TENANT_TTL: Duration = Duration::from_secs(1);
/// How often retention is looked after.
const RETENTION_EVERY: Duration = Duration::from_secs(3600);
/// How often the deployment log is signed.
const DEPLOYMENT_EVERY: Duration = Duration::from_secs(3600);
/// Tenants that are remembered.
const TENANT_CACHE: usize = 10_000;

/// The audit log: cheap to clone, one for each process.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> audit_core::Result<()> {
/// use std::sync::Arc;
/// use audit_core::{AuditLog, Event, Filter, PageRequest, Recorder, TenantId, TenantScope};
/// use audit_core::memory::MemoryStore;
///
/// let log = AuditLog::builder(Arc::new(MemoryStore::new())).build();
/// let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse().expect("a UUID");
///
/// let receipt = log.recorder(tenant).record(Event::update("invoice", "inv-1").user("ann")).await?;
/// assert_eq!(receipt.seq, 0);
///
/// let reader = log.tenant(TenantScope::trusted(tenant, "example"));
/// let page = reader.list(&Filter::new().user("ann"), &PageRequest::first()).await?;
/// assert_eq!(page.items.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AuditLog {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Arc<dyn LogStore>,
    pub(crate) tenants: Arc<dyn TenantStore>,
    pub(crate) erasures: Arc<dyn ErasureStore>,
    pub(crate) queue: Option<Arc<dyn EventQueue>>,
    pub(crate) search: Option<Arc<dyn SearchIndex>>,
    pub(crate) outbox: Option<Arc<dyn Outbox>>,
    pub(crate) authorizer: Arc<dyn TenantAuthorizer>,
    pub(crate) consumers: Vec<Arc<dyn Consumer>>,
    pub(crate) redactors: Vec<Arc<dyn Redact>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) bell: Bell,
    pub(crate) signing: Option<Arc<Signing>>,
    pub(crate) deployment: Option<Arc<Deployment>>,
    pub(crate) sentry: Option<Arc<Sentry>>,
    pub(crate) retention: Arc<dyn RetentionStore>,
    pub(crate) offboarding: Arc<dyn OffboardingStore>,
    pub(crate) retention_every: Duration,
    pub(crate) archive: Option<Archiver>,
    /// Erasures whose steps their callers take: the eraser passes over them.
    pub(crate) pursued: Mutex<HashSet<ErasureId>>,
    cache: Mutex<HashMap<TenantId, Known>>,
}

/// What is remembered of a tenant.
#[derive(Debug, Clone)]
struct Known {
    at: Instant,
    tenant: Arc<Tenant>,
    /// Whether its end was asked for.
    is_ending: bool,
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditLog")
            .field("store", &self.inner.store)
            .finish_non_exhaustive()
    }
}

/// Puts an [`AuditLog`] together.
#[derive(Debug)]
pub struct AuditLogBuilder {
    store: Arc<dyn LogStore>,
    tenants: Arc<dyn TenantStore>,
    erasures: Arc<dyn ErasureStore>,
    queue: Option<Arc<dyn EventQueue>>,
    search: Option<Arc<dyn SearchIndex>>,
    outbox: Option<Arc<dyn Outbox>>,
    authorizer: Arc<dyn TenantAuthorizer>,
    consumers: Vec<Arc<dyn Consumer>>,
    redactors: Vec<Arc<dyn Redact>>,
    clock: Arc<dyn Clock>,
    signing: Option<(Signer, Arc<dyn CheckpointStore>)>,
    deployment: Option<Arc<dyn DeploymentStore>>,
    witnesses: Vec<Arc<dyn Witness>>,
    deployment_every: Duration,
    guard: Option<(Arc<dyn Guard>, Arc<dyn CheckpointStore>)>,
    retention: Arc<dyn RetentionStore>,
    offboarding: Arc<dyn OffboardingStore>,
    retention_every: Duration,
    archive: Option<Arc<dyn Archive>>,
    segment_entries: u64,
}

impl AuditLogBuilder {
    /// Reads and writes through this log store, a decorated one, instead of the builder's own. It
    /// must end at the same database, where the tenants and the erasures are.
    #[must_use]
    pub fn log_store(mut self, store: Arc<dyn LogStore>) -> Self {
        self.store = store;
        self
    }

    /// The queue for events that are acknowledged before they are appended. None by default.
    #[must_use]
    pub fn queue(mut self, queue: Arc<dyn EventQueue>) -> Self {
        self.queue = Some(queue);
        self
    }

    /// The full-text index. Without one, `q` scans, which is exact and slow.
    #[must_use]
    pub fn search(mut self, search: Arc<dyn SearchIndex>) -> Self {
        self.search = Some(search);
        self
    }

    /// The outbox that the relay drains. None by default.
    #[must_use]
    pub fn outbox(mut self, outbox: Arc<dyn Outbox>) -> Self {
        self.outbox = Some(outbox);
        self
    }

    /// Who decides about access. [`ByClaims`] by default.
    #[must_use]
    pub fn authorizer(mut self, authorizer: Arc<dyn TenantAuthorizer>) -> Self {
        self.authorizer = authorizer;
        self
    }

    /// Adds a consumer, which runs once the workers are started.
    #[must_use]
    pub fn consumer(mut self, consumer: Arc<dyn Consumer>) -> Self {
        self.consumers.push(consumer);
        self
    }

    /// Adds a redactor. They run in the order in which they were added.
    #[must_use]
    pub fn redact(mut self, redactor: Arc<dyn Redact>) -> Self {
        self.redactors.push(redactor);
        self
    }

    /// Where ids, seeds and the time of acceptance come from. The system's by default.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Signs the heads of the logs that have grown, once the workers are started, and keeps the
    /// checkpoints there. None by default: then there are no proofs either.
    #[must_use]
    pub fn signer(mut self, signer: Signer, checkpoints: Arc<dyn CheckpointStore>) -> Self {
        self.signing = Some((signer, checkpoints));
        self
    }

    /// Keeps the [deployment log](crate::deployment) there, once the workers are started and where the
    /// [signer](Self::signer) is: without one, nothing is kept. None by default.
    #[must_use]
    pub fn deployment(mut self, store: Arc<dyn DeploymentStore>) -> Self {
        self.deployment = Some(store);
        self
    }

    /// Adds a witness, which is asked to cosign the deployment log's head. Without a deployment log, none
    /// is asked.
    #[must_use]
    pub fn witness(mut self, witness: Arc<dyn Witness>) -> Self {
        self.witnesses.push(witness);
        self
    }

    /// How often the deployment log takes in what has grown and is signed. An hour by default.
    #[must_use]
    pub fn deployment_every(mut self, period: Duration) -> Self {
        self.deployment_every = period;
        self
    }

    /// What remembers outside the database what was signed. Where it knows more than a log, or nothing of
    /// one that was signed, that log takes nothing more and is not signed until it was
    /// [recovered](AuditLog::recover): calls that add to it fail with
    /// [`Unavailable`](ErrorKind::Unavailable), with a [`signer`](Self::signer) and without. A
    /// [deployment log](Self::deployment) of which it knows more is only not signed, until it was
    /// [recovered](AuditLog::recover_deployment): the tenants' logs go on. `checkpoints` is where the log's
    /// checkpoints are kept, whoever signs them. None by default: then nothing notices that an old copy of
    /// the database was restored.
    #[must_use]
    pub fn guard(mut self, guard: Arc<dyn Guard>, checkpoints: Arc<dyn CheckpointStore>) -> Self {
        self.guard = Some((guard, checkpoints));
        self
    }

    /// How often entries are looked for that are older than their tenant keeps them. An hour by
    /// default.
    #[must_use]
    pub fn retention_every(mut self, period: Duration) -> Self {
        self.retention_every = period;
        self
    }

    /// Archives what is pruned before it goes: see [`archive`](crate::archive). None by default.
    ///
    /// It needs a [`signer`](Self::signer): without one there is no evidence to archive, and prunes are
    /// refused. A log of which something was archived is from then on pruned no further than its
    /// archive reaches, by a process without the archive too.
    #[must_use]
    pub fn archive(mut self, archive: Arc<dyn Archive>) -> Self {
        self.archive = Some(archive);
        self
    }

    /// The most entries of a segment in the [archive](Self::archive), which is about what one prune holds in
    /// memory: from 1 to [`MAX_ENTRIES`], which it is by default.
    #[must_use]
    pub fn segment_entries(mut self, entries: u64) -> Self {
        self.segment_entries = entries;
        self
    }

    /// The log. Nothing runs before the first call, or [`AuditLog::start`].
    pub fn build(self) -> AuditLog {
        let holder = self.clock.event_id().to_string();
        let clock = Arc::clone(&self.clock);
        let mut store: Arc<dyn LogStore> = Arc::new(GroupCommit::new(self.store));
        let mut sentry = None;
        if let Some((guard, kept)) = self.guard {
            let own = Arc::new(Sentry::new(guard, kept, Arc::clone(&store)));
            store = Arc::new(Guarded::new(Arc::clone(&own)));
            sentry = Some(own);
        }
        let signing = self.signing.map(|(signer, kept)| {
            Arc::new(Signing::new(signer, kept, holder, clock, sentry.clone()))
        });
        let (witnesses, every) = (self.witnesses, self.deployment_every);
        let deployment = self.deployment.map(|store| {
            Arc::new(Deployment {
                store,
                witnesses,
                every,
            })
        });
        AuditLog {
            inner: Arc::new(Inner {
                store,
                tenants: self.tenants,
                erasures: self.erasures,
                queue: self.queue,
                search: self.search,
                outbox: self.outbox,
                authorizer: self.authorizer,
                consumers: self.consumers,
                redactors: self.redactors,
                clock: self.clock,
                bell: Bell::default(),
                signing,
                deployment,
                sentry,
                retention: self.retention,
                offboarding: self.offboarding,
                retention_every: self.retention_every,
                archive: self
                    .archive
                    .map(|archive| Archiver::new(archive, self.segment_entries)),
                pursued: Mutex::default(),
                cache: Mutex::default(),
            }),
        }
    }
}

impl AuditLog {
    /// Begins with a store, which keeps logs, tenants and their ends, erasures, and what protects them.
    pub fn builder<S>(store: Arc<S>) -> AuditLogBuilder
    where
        S: LogStore + TenantStore + RetentionStore + ErasureStore + OffboardingStore,
    {
        AuditLogBuilder {
            store: store.clone(),
            tenants: store.clone(),
            retention: store.clone(),
            offboarding: store.clone(),
            retention_every: RETENTION_EVERY,
            archive: None,
            segment_entries: MAX_ENTRIES,
            erasures: store,
            queue: None,
            search: None,
            outbox: None,
            authorizer: Arc::new(ByClaims),
            consumers: Vec::new(),
            redactors: Vec::new(),
            clock: Arc::new(SystemClock),
            signing: None,
            deployment: None,
            witnesses: Vec::new(),
            deployment_every: DEPLOYMENT_EVERY,
            guard: None,
        }
    }

    /// Asks the authorizer, and mints the scope in which the principal may do `permissions`.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden), [`UnknownTenant`](ErrorKind::UnknownTenant),
    /// [`TenantClosed`](ErrorKind::TenantClosed) when it is suspended,
    /// [`TenantDeleted`](ErrorKind::TenantDeleted) when it was deleted, and to a principal that doesn't act
    /// across tenants when its end was asked for. The authorizer is asked first, so that only those
    /// whom it allows learn a tenant's status.
    pub async fn authorize(
        &self,
        principal: &Principal,
        tenant: TenantId,
        permissions: impl Into<Permissions> + Send,
    ) -> Result<TenantScope> {
        let permissions = permissions.into();
        let known = self.inner.known(tenant).await;
        let status = match &known {
            Ok(known) => known.tenant.status,
            Err(error) if error.kind() == ErrorKind::UnknownTenant => TenantStatus::Active,
            Err(error) => return Err(error.clone()),
        };
        let request = AccessRequest::new(principal.clone(), tenant, status, permissions);
        match self.inner.authorizer.authorize(&request).await? {
            Decision::Allow => {}
            Decision::Deny { reason } => {
                tracing::debug!(subject = principal.subject, %tenant, reason, "access denied");
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    "not allowed in this tenant",
                ));
            }
        }
        let known = known?;
        known.tenant.status.admit_read(tenant)?;
        admit_own(tenant, known.is_ending && !principal.across_tenants)?;
        Ok(TenantScope::granted(
            tenant,
            &principal.subject,
            permissions,
        ))
    }

    /// What everyone may read of a tenant's log, where the tenant says so. One that isn't there, isn't
    /// public, is suspended, is about to be deleted or was is refused alike.
    ///
    /// # Errors
    /// [`UnknownTenant`](ErrorKind::UnknownTenant); what the store answers.
    pub async fn public_log(&self, tenant: TenantId) -> Result<TiledLog> {
        let known = self.inner.known(tenant).await?;
        let is_open = known.tenant.status.admit_read(tenant).is_ok() && !known.is_ending;
        if !known.tenant.public_log || !is_open {
            return Err(no_tenant(tenant));
        }
        let scope = TenantScope::trusted(tenant, "public log").only(Permission::Read);
        Ok(self.tenant(scope).tiled())
    }

    /// Writes into a tenant's log, and nothing else: an embedder has authorized its request already.
    /// A tenant that doesn't exist is created with the first event.
    pub fn recorder(&self, tenant: TenantId) -> TenantRecorder {
        TenantRecorder {
            log: self.clone(),
            scope: TenantScope::trusted(tenant, "recorder").only(Permission::Record),
        }
    }

    /// Everything that a scope allows in its tenant.
    pub fn tenant(&self, scope: TenantScope) -> TenantLog {
        TenantLog {
            log: self.clone(),
            scope,
        }
    }

    /// The log store.
    pub fn log_store(&self) -> &Arc<dyn LogStore> {
        &self.inner.store
    }

    /// The tenants.
    pub fn tenants(&self) -> &Arc<dyn TenantStore> {
        &self.inner.tenants
    }

    /// Takes what was erased out of what the queue and the outbox gave up: what an engine gave up by itself, or a
    /// process that ended behind it, is found so. The workers do it when they start and every hour.
    ///
    /// # Errors
    /// What the store, the queue and the outbox answer.
    pub async fn sift(&self) -> Result<()> {
        crate::worker::sift(&self.inner).await
    }

    /// How many positions and ids are left of the erasures that were asked for, of all tenants that
    /// aren't closed: of each tenant's oldest one. 0 when there are none.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn open_erasures(&self) -> Result<u64> {
        let (mut after, mut left) = (None, 0);
        loop {
            let jobs = self.inner.erasures.open_erasures(after, 1_000).await?;
            left += jobs
                .iter()
                .map(|job| 1 + job.end.saturating_sub(job.next))
                .sum::<u64>();
            match jobs.last() {
                Some(last) => after = Some(last.tenant),
                None => return Ok(left),
            }
        }
    }

    /// What was archived since the process started; none without an archive.
    pub fn archived(&self) -> Option<ArchiveStatus> {
        self.inner.archive.as_ref().map(Archiver::status)
    }

    /// How many of the logs that this process has come to are stopped by the
    /// [guard](AuditLogBuilder::guard). The deployment log counts as one where this process signs.
    pub fn stopped_by_guard(&self) -> usize {
        let sentry = self.inner.sentry.as_ref();
        sentry.map_or(0, |sentry| sentry.stopped())
    }

    /// The queue.
    pub fn queue(&self) -> Option<&Arc<dyn EventQueue>> {
        self.inner.queue.as_ref()
    }

    /// The full-text index.
    pub fn search(&self) -> Option<&Arc<dyn SearchIndex>> {
        self.inner.search.as_ref()
    }

    /// The outbox.
    pub fn outbox(&self) -> Option<&Arc<dyn Outbox>> {
        self.inner.outbox.as_ref()
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// Creates a tenant, whose log is empty. The id is made (UUIDv7) when none is given.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a bad name, [`Conflict`](ErrorKind::Conflict) when the id
    /// is taken, [`TenantDeleted`](ErrorKind::TenantDeleted) when it was a deleted tenant's.
    pub async fn create_tenant(&self, id: Option<TenantId>, name: &str) -> Result<Tenant> {
        self.make_tenant(id, name, false).await
    }

    /// Creates a tenant whose log's checkpoints, key and tiles everyone may read.
    ///
    /// # Errors
    /// As for [`create_tenant`](Self::create_tenant).
    pub async fn create_public_tenant(&self, id: Option<TenantId>, name: &str) -> Result<Tenant> {
        self.make_tenant(id, name, true).await
    }

    async fn make_tenant(
        &self,
        id: Option<TenantId>,
        name: &str,
        public_log: bool,
    ) -> Result<Tenant> {
        let clock = &self.inner.clock;
        let id = id.unwrap_or_else(|| TenantId::new(clock.event_id().into_uuid()));
        let secret = TenantSecret::new(clock.secret());
        let mut tenant = Tenant::new(id, name, clock.now(), secret)?;
        tenant.public_log = public_log;
        self.inner.tenants.create_tenant(&tenant).await?;
        Ok(tenant)
    }

    /// Changes a tenant and records that in its log, in one transaction. A change of nothing records
    /// nothing.
    ///
    /// # Errors
    /// [`UnknownTenant`](ErrorKind::UnknownTenant), [`TenantDeleted`](ErrorKind::TenantDeleted),
    /// [`Invalid`](ErrorKind::Invalid) for a bad name, a reason that is too long, or the status
    /// `deleted`, which is not set this way.
    pub async fn update_tenant(
        &self,
        id: TenantId,
        update: TenantUpdate,
        subject: &str,
        reason: Option<String>,
    ) -> Result<Tenant> {
        if let Some(name) = &update.name {
            Tenant::check_name(name)?;
        }
        if update.status == Some(TenantStatus::Deleted) {
            return Err(Error::field(
                "status",
                "a tenant is not deleted by its status",
            ));
        }
        let change = serde_json::json!({
            "name_changed": update.name.is_some(),
            "status": update.status.map(TenantStatus::as_str),
            "public_log": update.public_log,
        });
        let event = Event::update("tenant", id.to_string()).metadata(&change);
        let event = self.admin_event(id, event, "log.tenant", subject, reason)?;
        if update == TenantUpdate::default() {
            return Ok(Tenant::clone(&*self.cached(id).await?));
        }
        self.inner.admit(id).await?;
        let tenant = self
            .inner
            .tenants
            .update_tenant(id, &update, &event)
            .await?;
        self.inner.forget_cached(id);
        self.inner.bell.ring(id);
        Ok(tenant)
    }

    /// What is recorded about a change of a tenant or of what is set for it.
    pub(crate) fn admin_event(
        &self,
        tenant: TenantId,
        event: Event,
        action: &str,
        subject: &str,
        reason: Option<String>,
    ) -> Result<PreparedEvent> {
        let subject: String = subject
            .chars()
            .take(crate::event::limits::USER_ID)
            .collect();
        let mut event = event.action(action).user(subject);
        event.reserved_action = true;
        if let Some(reason) = reason {
            event = event.reason(reason);
        }
        PreparedEvent::new(tenant, event, &*self.inner.clock, &[])
    }

    /// Starts the workers: the indexer and the reconciler of its index, the consumers, the ingest
    /// worker, the outbox relay, the eraser, retention, the one that ends tenants and the sweeper, each where
    /// there is something for it to do.
    ///
    /// Call it once for each process that should do this work, within a tokio runtime. Without it,
    /// everything can be recorded and read, but nothing follows the log.
    pub fn start(&self) -> Workers {
        Workers::start(Arc::clone(&self.inner))
    }

    async fn cached(&self, id: TenantId) -> Result<Arc<Tenant>> {
        self.inner.cached_tenant(id).await
    }

    /// Appends one batch and wakes those who follow.
    async fn commit(&self, batch: Batch) -> Result<Vec<Receipt>> {
        let mut outcomes = self.commit_each(vec![batch]).await?;
        outcomes.pop().unwrap_or_else(|| Ok(Vec::new()))
    }

    async fn commit_each(&self, batches: Vec<Batch>) -> Result<Vec<Result<Vec<Receipt>>>> {
        self.inner.commit(&batches).await
    }
}

impl Inner {
    /// Who archives; none where nothing of a tenant is archived.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where something was, by another process.
    pub(crate) async fn archiver(&self, tenant: TenantId) -> Result<Option<&Archiver>> {
        match &self.archive {
            None if self.store.cursor(tenant, CONSUMER).await? > 0 => Err(not_yet(
                "the log has an archive, which this process was not given",
            )),
            archiver => Ok(archiver.as_ref()),
        }
    }

    pub(crate) async fn cached_tenant(&self, id: TenantId) -> Result<Arc<Tenant>> {
        Ok(self.known(id).await?.tenant)
    }

    async fn known(&self, id: TenantId) -> Result<Known> {
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = cache.get(&id)
                && known.at.elapsed() < TENANT_TTL
            {
                return Ok(known.clone());
            }
        }
        let tenant = self
            .tenants
            .tenant(id)
            .await?
            .ok_or_else(|| no_tenant(id))?;
        // Whose end was asked for is inactive.
        let is_ending = match tenant.status {
            TenantStatus::Inactive => self.offboarding.ending(id).await?.is_some(),
            _ => false,
        };
        let known = Known {
            at: Instant::now(),
            tenant: Arc::new(tenant),
            is_ending,
        };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= TENANT_CACHE {
            cache.retain(|_, known| known.at.elapsed() < TENANT_TTL);
            if cache.len() >= TENANT_CACHE {
                cache.clear();
            }
        }
        cache.insert(id, known.clone());
        Ok(known)
    }

    /// A tenant's row has changed.
    pub(crate) fn forget_cached(&self, id: TenantId) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.remove(&id);
    }

    /// Refuses what would add to a log that the guard stops, otherwise than through the log store.
    pub(crate) async fn admit(&self, tenant: TenantId) -> Result<()> {
        match &self.sentry {
            Some(sentry) => sentry.admit(tenant).await,
            None => Ok(()),
        }
    }

    pub(crate) async fn commit(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>> {
        let outcomes = self.store.append(batches).await?;
        for (batch, outcome) in batches.iter().zip(&outcomes) {
            if outcome.is_ok() {
                self.bell.ring(batch.tenant());
            }
        }
        Ok(outcomes)
    }
}

fn no_tenant(id: TenantId) -> Error {
    Error::new(ErrorKind::UnknownTenant, "there is no such tenant").with_tenant(id)
}

/// Writes into one tenant's log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TenantRecorder {
    log: AuditLog,
    scope: TenantScope,
}

#[async_trait]
impl Recorder for TenantRecorder {
    async fn record(&self, event: Event) -> Result<Receipt> {
        let mut receipts = self.record_all(vec![event]).await.map_err(without_index)?;
        receipts.pop().ok_or_else(no_receipt)
    }

    async fn record_all(&self, events: Vec<Event>) -> Result<Vec<Receipt>> {
        let handle = TenantLog {
            log: self.log.clone(),
            scope: self.scope.clone(),
        };
        let prepared = handle.prepare_all(events)?;
        let id = (prepared.len() == 1).then(|| prepared[0].id());
        let batch = Batch::new(self.scope.clone(), prepared).creating_tenant();
        self.log.commit(batch).await.map_err(|e| with_id(e, id))
    }
}

fn with_id(error: Error, id: Option<EventId>) -> Error {
    match id {
        Some(id) if error.event_id().is_none() => error.with_event_id(id),
        _ => error,
    }
}

fn without_index(error: Error) -> Error {
    error.without_index()
}

fn no_receipt() -> Error {
    Error::new(ErrorKind::Internal, "the store gave no receipt")
}

/// One tenant's log, within a scope. No method takes a tenant, so none can be given the wrong one.
#[derive(Debug, Clone)]
pub struct TenantLog {
    pub(crate) log: AuditLog,
    pub(crate) scope: TenantScope,
}

impl TenantLog {
    /// The scope.
    pub fn scope(&self) -> &TenantScope {
        &self.scope
    }

    /// Validates, redacts and hashes an event: all that needs no lock.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) with every bad field.
    pub fn prepare(&self, event: Event) -> Result<PreparedEvent> {
        let inner = &self.log.inner;
        PreparedEvent::new(self.scope.tenant(), event, &*inner.clock, &inner.redactors)
    }

    /// Prepares events.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) with every bad field of every event, each with its index.
    pub fn prepare_all(&self, events: Vec<Event>) -> Result<Vec<PreparedEvent>> {
        let mut prepared = Vec::with_capacity(events.len());
        let mut faults: Vec<FieldFault> = Vec::new();
        for (index, event) in events.into_iter().enumerate() {
            match self.prepare(event) {
                Ok(event) => prepared.push(event),
                Err(error) if error.fields().is_empty() => return Err(error),
                Err(error) => {
                    faults.extend(error.fields().iter().cloned().map(|f| f.at(index)));
                }
            }
        }
        if faults.is_empty() {
            Ok(prepared)
        } else {
            Err(Error::invalid(faults))
        }
    }

    /// Records one event. Needs `record`.
    ///
    /// # Errors
    /// As [`Recorder::record`].
    pub async fn record(&self, event: Event) -> Result<Receipt> {
        let prepared = self.prepare(event)?;
        let id = prepared.id();
        let batch = Batch::new(self.scope.clone(), vec![prepared]);
        let mut receipts = self
            .log
            .commit(batch)
            .await
            .map_err(|e| with_id(e, Some(id)))?;
        receipts.pop().ok_or_else(no_receipt)
    }

    /// Records events whole or not at all. Needs `record`.
    ///
    /// # Errors
    /// As [`Recorder::record_all`].
    pub async fn record_all(&self, events: Vec<Event>) -> Result<Vec<Receipt>> {
        let prepared = self.prepare_all(events)?;
        self.log
            .commit(Batch::new(self.scope.clone(), prepared))
            .await
    }

    /// Records events each by itself, with a result for each in order. Needs `record`.
    pub async fn record_each(&self, events: Vec<Event>) -> Vec<Result<Receipt>> {
        let prepared: Vec<_> = events
            .into_iter()
            .map(|event| self.prepare(event))
            .collect();
        self.append_each(prepared).await
    }

    /// Appends prepared events each by itself; those that could not be prepared keep their error.
    pub async fn append_each(&self, events: Vec<Result<PreparedEvent>>) -> Vec<Result<Receipt>> {
        let mut results = Vec::with_capacity(events.len());
        let mut batches = Vec::with_capacity(events.len());
        for event in events {
            match event {
                Ok(event) => {
                    results.push(None);
                    batches.push(Batch::new(self.scope.clone(), vec![event]));
                }
                Err(error) => results.push(Some(Err(error))),
            }
        }
        let ids: Vec<EventId> = batches.iter().map(|b| b.events()[0].id()).collect();
        let mut outcomes = match self.log.commit_each(batches).await {
            Ok(outcomes) => outcomes,
            Err(error) => ids.iter().map(|_| Err(error.clone())).collect(),
        }
        .into_iter()
        .zip(ids);
        results
            .into_iter()
            .map(|result| {
                result.unwrap_or_else(|| match outcomes.next() {
                    Some((Ok(mut receipts), _)) => receipts.pop().ok_or_else(no_receipt),
                    Some((Err(error), id)) => Err(with_id(error, Some(id))),
                    None => Err(no_receipt()),
                })
            })
            .collect()
    }

    /// Appends prepared events whole or not at all. Each new one comes back as the entry that it
    /// became, a repeat without one. Needs `record`.
    ///
    /// # Errors
    /// As [`Recorder::record_all`].
    pub async fn append(
        &self,
        events: Vec<PreparedEvent>,
    ) -> Result<Vec<(Receipt, Option<Entry>)>> {
        let batch = Batch::new(self.scope.clone(), events);
        let receipts = self.log.commit(batch.clone()).await?;
        Ok(receipts
            .into_iter()
            .zip(batch.events())
            .map(|(receipt, event)| {
                let entry = (!receipt.duplicate)
                    .then(|| Entry::sealed(self.scope.tenant(), event, &receipt));
                (receipt, entry)
            })
            .collect())
    }

    /// Hands events to the queue, from which a worker appends them. Needs `record`.
    ///
    /// Their ids are the answer: the promise is the queue's durability, and not a receipt. None when
    /// there is no durable queue; then nothing was queued, and the caller records instead.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) with every bad field, what a closed tenant answers, and the
    /// queue's own errors. An error may leave some of several events queued; sending them again is
    /// harmless.
    pub async fn enqueue(&self, events: Vec<Event>) -> Result<Option<Vec<EventId>>> {
        self.scope.require(Permission::Record)?;
        if !self.log.queue().is_some_and(|queue| queue.is_durable()) {
            return Ok(None);
        }
        let prepared = self.prepare_all(events)?;
        match self.enqueue_each(&prepared).await? {
            Some(outcomes) => outcomes.into_iter().collect::<Result<_>>().map(Some),
            None => Ok(None),
        }
    }

    /// Hands prepared events to the queue, with a result for each in order: its id, or why the queue
    /// doesn't have it. Needs `record`. None when there is no durable queue; then nothing was queued.
    ///
    /// An error that is not [retryable](Error::is_retryable) is the queue's refusal of this event, for
    /// one that it has no room for: the log may take it still. After another one the queue may have
    /// it; to send it again under its id is harmless.
    ///
    /// # Errors
    /// What a closed tenant answers, and the queue's own errors when nothing is known of any event.
    pub async fn enqueue_each(
        &self,
        prepared: &[PreparedEvent],
    ) -> Result<Option<Vec<Result<EventId>>>> {
        self.scope.require(Permission::Record)?;
        let inner = &self.log.inner;
        let Some(queue) = inner.queue.as_ref().filter(|q| q.is_durable()) else {
            return Ok(None);
        };
        let tenant = inner.cached_tenant(self.scope.tenant()).await?;
        tenant.status.admit_write(tenant.id)?;
        let accepted_at = inner.clock.now();
        let messages: Vec<_> = prepared
            .iter()
            .map(|event| {
                let accepted = Accepted {
                    event: event.to_event(),
                    subject: self.scope.subject().to_owned(),
                    accepted_at,
                };
                seal_message(tenant.id, &tenant.secret, event.id(), &accepted)
            })
            .collect();
        let mut outcomes = queue.send(&messages).await?.into_iter();
        let outcome = |event: &PreparedEvent| match outcomes.next() {
            Some(Ok(())) => Ok(event.id()),
            Some(Err(error)) => Err(with_id(error, Some(event.id()))),
            None => Err(Error::new(
                ErrorKind::Unavailable,
                "the queue answered fewer messages than it was given",
            )
            .with_event_id(event.id())),
        };
        Ok(Some(prepared.iter().map(outcome).collect()))
    }

    /// One entry. Needs `read`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`Pruned`](ErrorKind::Pruned),
    /// [`Corrupt`](ErrorKind::Corrupt).
    pub async fn get(&self, id: EventId) -> Result<Entry> {
        let mut found = self.log.inner.store.get(&self.scope, &[id]).await?;
        match found.pop() {
            Some(lookup) => lookup.into_entry(),
            None => Err(Error::new(ErrorKind::NotFound, "there is no such entry")),
        }
    }

    /// One page of the entries that match. Needs `read`. With full text and an index, the page says
    /// how far the index is.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) naming `sort` for full text by another order than `seq`.
    pub async fn list(&self, filter: &Filter, page: &PageRequest) -> Result<Page<Entry>> {
        match (&self.log.inner.search, &filter.q) {
            (Some(search), Some(_)) => {
                self.scope.require(Permission::Read)?;
                if page.sort != Sort::Seq {
                    return Err(Error::field("sort", "with q, results go by seq"));
                }
                self.search(&**search, filter, page).await
            }
            _ => self.log.inner.store.list(&self.scope, filter, page).await,
        }
    }

    /// Asks the index for positions, reads the entries from the store within the scope, and shows
    /// only those that match as they are now.
    async fn search(
        &self,
        index: &dyn SearchIndex,
        filter: &Filter,
        page: &PageRequest,
    ) -> Result<Page<Entry>> {
        let limit = page.limit.clamp(1, PageRequest::MAX_LIMIT);
        let mut items: Vec<Entry> = Vec::with_capacity(limit);
        let mut after = page.after.map(|p| p.seq);
        let mut indexed_through;
        // One more than the page, to know whether there is another.
        let wanted = limit + 1;
        loop {
            let request = SearchRequest::new(filter.clone(), wanted - items.len())
                .order(page.order)
                .after(after);
            let hits = index.search(&self.scope, &request).await?;
            indexed_through = hits.indexed_through;
            after = hits.seqs.last().copied().or(after);
            let entries = self.log.inner.store.at(&self.scope, &hits.seqs).await?;
            items.extend(entries.into_iter().filter(|entry| filter.matches(entry)));
            if items.len() >= wanted || !hits.more || hits.seqs.is_empty() {
                break;
            }
        }
        let more = items.len() >= wanted;
        items.truncate(limit);
        let next = match page.order {
            Order::Descending if !more => None,
            _ => items.last().map(Entry::position).or(page.after),
        };
        let mut page = Page::new(items, next);
        page.indexed_through = Some(indexed_through);
        Ok(page)
    }

    /// The tenant's secret, from which the keys of its cursors and idempotency keys are derived.
    ///
    /// # Errors
    /// [`UnknownTenant`](ErrorKind::UnknownTenant).
    pub async fn cursor_secret(&self) -> Result<TenantSecret> {
        Ok(self.log.cached(self.scope.tenant()).await?.secret.clone())
    }

    /// Statistics. Needs `read`.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) when the range is not of whole UTC days.
    pub async fn stats(&self, request: &StatsRequest) -> Result<Stats> {
        let inner = &self.log.inner;
        let days = request.days()?;
        let today = inner.clock.now().utc_day();
        let counters = inner.store.counters(&self.scope, days).await?;
        let recent = inner
            .store
            .counters(&self.scope, today - 6..today + 1)
            .await?;
        let head = inner.store.head(&self.scope).await?;
        Ok(Stats::of(
            request,
            &counters,
            &recent,
            head.pruned_below,
            today,
        ))
    }

    /// The head. Needs `read`.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn head(&self) -> Result<Head> {
        self.log.inner.store.head(&self.scope).await
    }

    /// A snapshot of the log. Needs `export`.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        self.log.inner.store.snapshot(&self.scope).await
    }

    /// Every entry that matches, oldest first, from one snapshot and in constant memory. Needs
    /// `export`.
    ///
    /// # Errors
    /// What the store answers; a snapshot that grows too old ends the stream with a retryable error.
    pub async fn scan(&self, filter: &Filter) -> Result<BoxStream<'static, Result<Entry>>> {
        self.snapshot().await?.scan(filter).await
    }

    /// Follows the log. Needs `stream`.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn subscribe(&self, request: SubscribeRequest) -> Result<Subscription> {
        let inner = &self.log.inner;
        subscribe(
            Arc::clone(&inner.store),
            &inner.bell,
            self.scope.clone(),
            request,
        )
        .await
    }

    /// Asks for an erasure, which a worker takes on in steps: what is selected and is in the log now,
    /// and, where the selection is ids or users alone, what was accepted before now and is still on
    /// its way through a queue or an outbox. Entries recorded later are not its subject. Needs `erase`.
    ///
    /// When this returns, the job is durable; what it selects is kept until it is done.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) with the bad field, [`Refused`](ErrorKind::Refused) while a legal
    /// hold is open or when the tenant's end was asked for, and what a closed tenant answers. A hold that is
    /// placed later makes the job wait until it is released.
    pub async fn request_erasure(&self, request: ErasureRequest) -> Result<ErasureJob> {
        let begun = self.begin_erasure(self.new_erasure_id(), request).await?;
        self.log.inner.bell.ring(self.scope.tenant());
        Ok(begun)
    }

    pub(crate) fn new_erasure_id(&self) -> ErasureId {
        ErasureId::new(self.log.inner.clock.event_id().into_uuid())
    }

    /// [`request_erasure`](Self::request_erasure), without waking the workers.
    pub(crate) async fn begin_erasure(
        &self,
        id: ErasureId,
        request: ErasureRequest,
    ) -> Result<ErasureJob> {
        self.scope.require(Permission::Erase)?;
        request.check()?;
        let inner = &self.log.inner;
        let clock = Arc::clone(&inner.clock);
        // Only to check the reason.
        Act::new(&self.scope, request.reason.clone(), clock)?;
        if let Some(refusal) = self.hold_refusal().await? {
            return Err(refusal);
        }
        let tenant = inner.cached_tenant(self.scope.tenant()).await?;
        let marks = request.selection.marks(&tenant.secret);
        let job = ErasureJob::new(id, &self.scope, request, inner.clock.now());
        inner
            .erasures
            .begin_erasure(&self.scope, &job, &marks)
            .await
    }

    /// What an open hold answers to an erasure. Needs `erase`.
    pub(crate) async fn hold_refusal(&self) -> Result<Option<Error>> {
        let inner = &self.log.inner;
        let act = Act::new(&self.scope, None, Arc::clone(&inner.clock))?;
        // Of nothing: a hold refuses that too, and nothing else does.
        let nothing = Erasure::new(Vec::new(), retention_basis()?, act);
        match inner.store.erase(&self.scope, &nothing).await {
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::Refused => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    /// What refuses to begin an erasure or a prune: an open hold, or that the tenant's end was asked for.
    /// Needs `erase`.
    pub(crate) async fn removal_refusal(&self) -> Result<Option<Error>> {
        if let Some(refusal) = self.hold_refusal().await? {
            return Ok(Some(refusal));
        }
        let tenant = self.scope.tenant();
        let ending = self.log.ending(tenant).await?;
        Ok(admit_removal(tenant, ending.is_some()).err())
    }

    /// An erasure that was asked for. Needs `erase`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), and what a closed tenant answers.
    pub async fn erasure(&self, id: ErasureId) -> Result<ErasureJob> {
        let found = self
            .log
            .inner
            .erasures
            .find_erasure(&self.scope, id)
            .await?;
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such erasure"))
    }

    /// What an erasure would do, without doing it. Needs `erase`, and `read` too where entries are
    /// selected by what they hold: the count tells that. Reads every entry that is selected, and of an
    /// archive all segments that may have some.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) with the bad field, [`Refused`](ErrorKind::Refused) while a legal
    /// hold is open or when the tenant's end was asked for, and what the store answers.
    pub async fn count_erasure(&self, request: &ErasureRequest) -> Result<ErasureCount> {
        self.scope.require(Permission::Erase)?;
        if matches!(request.selection, Selection::Matching(_)) {
            self.scope.require(Permission::Read)?;
        }
        request.check()?;
        if let Some(refusal) = self.removal_refusal().await? {
            return Err(refusal);
        }
        let store = &self.log.inner.store;
        // Whoever may destroy may know how much.
        let scope = TenantScope::granted(
            self.scope.tenant(),
            self.scope.subject(),
            Permissions::of(&[Permission::Read, Permission::Export]),
        );
        let mut count = ErasureCount::default();
        let mut add = |erasable| {
            count.matching += 1;
            count.erasable += u64::from(erasable);
        };
        let loses_something = |entry: &Entry| !loses(entry, &request.groups).is_empty();
        let (wanted, pruned) = match &request.selection {
            Selection::Matching(filter) => {
                let snapshot = store.snapshot(&scope).await?;
                let mut entries = snapshot.scan(filter).await?;
                while let Some(entry) = entries.next().await {
                    add(loses_something(&entry?));
                }
                let from = filter.from_seq.unwrap_or(0);
                let below = snapshot.head().pruned_below;
                let to = filter.to_seq.map_or(below, |to| to.min(below));
                (Wanted::Matching(filter.clone()), from..to)
            }
            Selection::Ids(ids) => {
                let mut pruned = HashSet::new();
                for id in ids {
                    match store.get(&scope, std::slice::from_ref(id)).await {
                        Ok(found) => {
                            for lookup in found {
                                match lookup {
                                    Lookup::Found(entry) => add(loses_something(&entry)),
                                    Lookup::Pruned { .. } => drop(pruned.insert(*id)),
                                    Lookup::Missing => {}
                                }
                            }
                        }
                        // It is there, and can be erased all the same.
                        Err(error) if error.kind() == ErrorKind::Corrupt => add(true),
                        Err(error) => return Err(error),
                    }
                }
                let below = match pruned.is_empty() {
                    true => 0,
                    false => store.head(&scope).await?.pruned_below,
                };
                (Wanted::Ids(pruned), 0..below)
            }
        };
        if let Some(archiver) = &self.log.inner.archive {
            let trusted = TenantScope::trusted(self.scope.tenant(), ERASURES);
            let log = self.log.tenant(trusted);
            let found = archiver.search_all(&log, pruned, wanted, &request.groups);
            for (_, lost) in found.await? {
                add(!lost.is_empty());
            }
        }
        Ok(count)
    }

    /// Takes from the archive what was erased of entries that are in it, which a worker of the process
    /// that signs does by itself. Needs `erase`. Returns the position up to which the log's erasures
    /// have left the archive; without an archive that is 0.
    ///
    /// # Errors
    /// What store and archive answer; [`Refused`](ErrorKind::Refused) while a legal hold is open, and
    /// [`NotFound`](ErrorKind::NotFound) without a signer, when something would go. A repeat goes on where
    /// it failed.
    pub async fn erase_in_archive(&self) -> Result<u64> {
        self.scope.require(Permission::Erase)?;
        let Some(archiver) = &self.log.inner.archive else {
            return Ok(0);
        };
        let scope = TenantScope::trusted(self.scope.tenant(), ERASURES);
        archiver.follow(&self.log.tenant(scope)).await
    }

    /// Prunes what was accepted before a time. Needs `cleanup`. Never goes past what a required
    /// consumer of this log has still to see.
    ///
    /// With an [`archive`](crate::archive) it first archives what would go: eight segments at most. Where
    /// more is due, it prunes what is archived, and a repeat goes on from there.
    ///
    /// # Errors
    /// What store and archive answer, [`Unavailable`](ErrorKind::Unavailable) also while an erasure is
    /// still being carried into the archive; nothing is pruned then. [`Refused`](ErrorKind::Refused) when the
    /// tenant's end was asked for, and with an archive of a log without a signer.
    pub async fn prune(
        &self,
        before: Timestamp,
        basis: Basis,
        reason: Option<String>,
        dry_run: bool,
    ) -> Result<Pruned> {
        let bound = PruneBound::Before(before);
        self.prune_bounded(bound, basis, reason, dry_run).await
    }

    /// As [`prune`](Self::prune), by a time or by an age, which the store's clock tells.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn prune_bounded(
        &self,
        bound: PruneBound,
        basis: Basis,
        reason: Option<String>,
        dry_run: bool,
    ) -> Result<Pruned> {
        self.scope.require(Permission::Cleanup)?;
        let act = Act::new(&self.scope, reason, Arc::clone(&self.log.inner.clock))?;
        self.prune_by(Prune::bounded(bound, basis, act).dry_run(dry_run))
            .await
    }

    pub(crate) async fn prune_by(&self, prune: Prune) -> Result<Pruned> {
        Ok(self.prune_part(prune).await?.0)
    }

    /// Also tells whether archiving stopped short of what was due.
    pub(crate) async fn prune_part(&self, mut prune: Prune) -> Result<(Pruned, bool)> {
        let inner = &self.log.inner;
        let tenant = self.scope.tenant();
        // A consumer that has not come to this tenant yet holds the prune up all the same.
        for consumer in inner.consumers.iter().filter(|c| c.is_required()) {
            let position = inner.store.cursor(tenant, consumer.name()).await?;
            inner
                .store
                .advance(tenant, consumer.name(), true, position)
                .await?;
        }
        let mut due_below = 0;
        if let Some(archiver) = &inner.archive {
            let log = self.log.tenant(TenantScope::trusted(tenant, CONSUMER));
            for consumer in [CONSUMER, ERASURES] {
                let position = inner.store.cursor(tenant, consumer).await?;
                inner
                    .store
                    .advance(tenant, consumer, true, position)
                    .await?;
            }
            // An `erase` entry has to be there until the archive has followed it.
            match archiver.follow_for_prune(&log, prune.dry_run).await {
                Err(_) if prune.dry_run => {}
                followed => followed?,
            }
            // Refuses what a hold or a minimum protects before anything is archived.
            let due = prune.clone().but_for(CONSUMER);
            let due = inner.store.prune(&self.scope, &due).await?;
            if prune.dry_run || due.entries == 0 {
                return Ok((due, false));
            }
            if inner.signing.is_none() {
                return Err(Error::new(
                    ErrorKind::Refused,
                    "without a signer there is no evidence to archive, and nothing is pruned",
                ));
            }
            let archived = archiver.archive(&log, 0, due.below).await?;
            prune = prune
                .unless_erased_since(archived.looked)
                .below_at_most(archived.below);
            due_below = due.below;
        }
        let pruned = inner.store.prune(&self.scope, &prune).await?;
        inner.bell.ring(tenant);
        let is_short = pruned.entries > 0 && pruned.below < due_below;
        Ok((pruned, is_short))
    }
}
