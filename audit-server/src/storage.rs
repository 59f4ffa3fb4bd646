//! The parts behind the log, as the settings name them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_archive::{ObjectArchive, ObjectOptions};
use audit_core::{
    Archive, AuditLog, AuditLogBuilder, CheckpointStore, CredentialStore, DeploymentStore, Error,
    ErrorKind, EventQueue, Guard, MemoryIndex, MemoryQueue, MemoryStore, Result, SearchIndex,
    Signer, TenantFilter, TenantId, TenantScope, TenantStatus, Vacuum, Workers,
};
use audit_store_postgres::{PostgresOptions, PostgresStore};
use audit_store_sqlite::{SqliteOptions, SqliteStore};

use crate::config::{Postgres, QueueUrl, SearchUrl, Settings, StoreUrl};
use crate::signing;
use crate::witness::HttpWitness;

/// The log and the credentials beside it.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The log.
    pub log: AuditLog,
    /// API keys and tickets.
    pub credentials: Arc<dyn CredentialStore>,
    /// What remembers what was signed; none where nothing is.
    pub guard: Option<Arc<dyn Guard>>,
    /// What keeps things on disk.
    pub engines: Vec<Arc<dyn Vacuum>>,
}

impl Storage {
    /// Opens what the settings name; `signer` signs the heads, once the workers run, has the settings'
    /// witnesses cosign, and their guard watches over it. SQLite's files are made where there are none; a database has to be
    /// [migrated](migrate) before.
    ///
    /// # Errors
    /// What the parts answer, with the cause.
    pub async fn open(settings: &Settings, signer: Option<Signer>) -> Result<Self> {
        Self::with(settings, Proving::new(settings, signer)?).await
    }

    async fn with(settings: &Settings, proving: Proving) -> Result<Self> {
        let queue = other_queue(settings).await?;
        let mut engines = Vec::new();
        let search = other_index(settings)?.map(|(index, engine)| {
            engines.push(engine);
            index
        });
        match &settings.store {
            StoreUrl::Memory => {
                let store = Arc::new(MemoryStore::new());
                let log = AuditLog::builder(Arc::clone(&store))
                    .queue(queue.unwrap_or_else(|| Arc::new(MemoryQueue::new())))
                    .search(search.unwrap_or_else(|| Arc::new(MemoryIndex::new())));
                Ok(Self {
                    guard: proving.guard.clone(),
                    log: proving.of(log, &store).build(),
                    credentials: store,
                    engines,
                })
            }
            StoreUrl::Sqlite(path) => {
                let path = path.clone();
                let opened = tokio::task::spawn_blocking(move || {
                    Self::sqlite(&path, queue, search, proving)
                });
                let mut storage = opened.await.map_err(|e| {
                    Error::new(ErrorKind::Internal, "opening the store panicked").with_source(e)
                })??;
                storage.engines.append(&mut engines);
                Ok(storage)
            }
            StoreUrl::Postgres(postgres) => {
                let options = postgres_options(postgres, settings.ca_file.as_deref());
                let store = Arc::new(PostgresStore::connect(options).await?);
                let log = AuditLog::builder(Arc::clone(&store))
                    .queue(queue.unwrap_or_else(|| Arc::new(store.queue())))
                    .search(search.unwrap_or_else(|| Arc::new(store.search_index())))
                    .outbox(Arc::new(store.outbox()));
                engines.push(store.clone());
                Ok(Self {
                    guard: proving.guard.clone(),
                    log: proving.of(log, &store).build(),
                    credentials: store,
                    engines,
                })
            }
        }
    }

    /// It blocks.
    fn sqlite(
        path: &Path,
        queue: Option<Arc<dyn EventQueue>>,
        search: Option<Arc<dyn SearchIndex>>,
        proving: Proving,
    ) -> Result<Self> {
        let store = Arc::new(open_when_free(path)?);
        let queue = match queue {
            Some(queue) => queue,
            None => Arc::new(store.queue()?),
        };
        let log = AuditLog::builder(Arc::clone(&store))
            .queue(queue)
            .search(search.unwrap_or_else(|| store.search_index()));
        Ok(Self {
            guard: proving.guard.clone(),
            log: proving.of(log, &store).build(),
            engines: vec![store.clone()],
            credentials: store,
        })
    }
}

/// Who signs and who cosigns, what watches over it, and where entries go before they are pruned.
#[derive(Default)]
struct Proving {
    signer: Option<Signer>,
    witnesses: Vec<HttpWitness>,
    every: Duration,
    guard: Option<Arc<dyn Guard>>,
    archive: Option<Arc<dyn Archive>>,
}

impl Proving {
    fn new(settings: &Settings, signer: Option<Signer>) -> Result<Self> {
        let witnesses = settings.witnesses.iter().map(HttpWitness::new);
        Ok(Self {
            guard: signing::guard(settings, signer.is_some())?,
            signer,
            witnesses: witnesses.collect::<Result<_>>()?,
            every: settings.deployment_every,
            archive: archive(settings)?,
        })
    }

    /// The log with what it proves, kept in its store.
    fn of<S: CheckpointStore + DeploymentStore>(
        self,
        mut log: AuditLogBuilder,
        store: &Arc<S>,
    ) -> AuditLogBuilder {
        if let Some(archive) = self.archive {
            log = log.archive(archive);
        }
        if let Some(guard) = self.guard {
            log = log.guard(guard, Arc::clone(store) as Arc<dyn CheckpointStore>);
        }
        let Some(signer) = self.signer else {
            return log;
        };
        let log = log
            .signer(signer, Arc::clone(store) as Arc<dyn CheckpointStore>)
            .deployment(Arc::clone(store) as Arc<dyn DeploymentStore>)
            .deployment_every(self.every);
        let witnesses = self.witnesses.into_iter();
        witnesses.fold(log, |log, witness| log.witness(Arc::new(witness)))
    }
}

/// Where entries go before they are pruned.
fn archive(settings: &Settings) -> Result<Option<Arc<dyn Archive>>> {
    let Some(url) = &settings.archive_url else {
        return Ok(None);
    };
    let unusable = |error: Error| {
        Error::new(error.kind(), "AUDIT_ARCHIVE_URL can't be used").with_source(error)
    };
    let mut options = ObjectOptions::new(url).map_err(unusable)?;
    if let Some(file) = &settings.ca_file {
        options = options.ca_file(file);
    }
    let opened = ObjectArchive::open_with(&options).map_err(unusable)?;
    Ok(Some(Arc::new(opened)))
}

/// How long a start waits for the process before it to let go of the file: one that was killed may
/// still be ending.
const HANDOVER: Duration = Duration::from_secs(3);

fn open_when_free(path: &Path) -> Result<SqliteStore> {
    let began = Instant::now();
    loop {
        match SqliteStore::open(path, SqliteOptions::new()) {
            Err(error) if error.kind() == ErrorKind::Unavailable && began.elapsed() < HANDOVER => {
                std::thread::sleep(Duration::from_millis(50));
            }
            outcome => return outcome,
        }
    }
}

/// Brings the store up to date, and makes the queues that are missing. Safe to repeat, and for
/// several processes at once.
///
/// # Errors
/// What the parts answer, with the cause.
pub async fn migrate(settings: &Settings) -> Result<()> {
    if let StoreUrl::Postgres(postgres) = &settings.store {
        let options = postgres_options(postgres, settings.ca_file.as_deref());
        audit_store_postgres::migrate(&options).await?;
    }
    make_queues(settings).await?;
    // It adds nothing to a log: whoever does is the one who needs a guard.
    let storage = Storage::with(settings, Proving::default()).await?;
    storage.log.log_store().ping().await
}

/// Takes out of the engines' files what was erased or pruned before the call. Erasures that were asked
/// for are carried out first, what waits in queue and outbox is appended, the index is let catch up, and
/// rows that were pruned are removed: by this process, where no other does.
///
/// Returns where it doesn't reach, each place with what takes the bytes out of it, for an operator.
///
/// # Errors
/// What the parts answer, with the cause; [`ErrorKind::Unavailable`] when an erasure or the index
/// doesn't go on for a minute, with the reason.
pub async fn vacuum(settings: &Settings) -> Result<Vec<String>> {
    let storage = Storage::open(settings, None).await?;
    let workers = storage.log.start();
    let settled = storage.settle(&workers).await;
    workers.shutdown(Duration::from_secs(10)).await;
    let mut left = settled?;
    for engine in &storage.engines {
        left.extend(engine.vacuum().await?);
    }
    Ok(left)
}

/// Tenants that are looked at in one go, and rows of the outbox.
const PAGE: usize = 1_000;
/// How long something may stand still before it is given up.
const STANDSTILL: Duration = Duration::from_secs(60);
/// So many closed tenants are named.
const NAMED: usize = 10;

impl Storage {
    /// Waits until what was asked for is erased, what was accepted is appended, what is in the log now is
    /// indexed, and what is pruned is gone. Returns what may hold something of it still.
    async fn settle(&self, workers: &Workers) -> Result<Vec<String>> {
        let mut erasing = Progress::default();
        while let left = self.log.open_erasures().await?
            && left > 0
        {
            if !erasing.goes_on(left).await {
                return Err(standstill("an erasure waits", "eraser", workers));
            }
        }
        let mut kept = self.drain().await?;
        // What was given up meanwhile, by an engine perhaps.
        self.log.sift().await?;
        while self.log.log_store().sweep().await? {}
        if let Some(index) = self.log.search() {
            kept.extend(self.catch_up(&**index, workers).await?);
        }
        Ok(kept)
    }

    /// Waits until queue and outbox are empty, or get no emptier: what was accepted before an erasure is
    /// erased when it is appended. Returns what is left there.
    async fn drain(&self) -> Result<Vec<String>> {
        let mut kept = Vec::new();
        if let Some(queue) = self.log.queue() {
            let mut ingesting = Progress::default();
            while let depth = queue.depth().await?
                && depth.waiting + depth.leased > 0
            {
                let left = depth.waiting + depth.leased;
                if !ingesting.goes_on(left).await {
                    kept.push(format!(
                        "the queue: {left} events that wait, each until it is appended"
                    ));
                    break;
                }
            }
        }
        if let Some(outbox) = self.log.outbox() {
            let mut relaying = Progress::default();
            while let left = outbox.take(PAGE, &[]).await?.len() as u64
                && left > 0
            {
                if !relaying.goes_on(left).await {
                    let more = if left < PAGE as u64 { "" } else { " or more" };
                    kept.push(format!(
                        "the outbox: {left}{more} rows, each until it is appended"
                    ));
                    break;
                }
            }
        }
        Ok(kept)
    }

    /// Waits until the index has followed each log to its end. Returns the tenants, if there are any,
    /// that nobody can read now, the eraser and the indexer neither.
    async fn catch_up(&self, index: &dyn SearchIndex, workers: &Workers) -> Result<Option<String>> {
        let (mut after, mut closed) = (None, Vec::new());
        loop {
            let some = self.log.tenants();
            let some = some.tenants(&TenantFilter::all(), after, PAGE).await?;
            for tenant in &some {
                let id = tenant.id;
                if tenant.status == TenantStatus::Deleted {
                    continue;
                }
                if tenant.status.admit_read(id).is_err() {
                    closed.push(id);
                    continue;
                }
                let scope = TenantScope::trusted(id, "vacuum");
                let size = self.log.log_store().head(&scope).await?.size();
                let mut indexing = Progress::default();
                while let through = index.indexed_through(&scope).await?
                    && through < size
                {
                    if !indexing.goes_on(size - through).await {
                        let what = "the index doesn't catch up";
                        return Err(standstill(what, "indexer", workers));
                    }
                }
            }
            after = some.last().map(|tenant| tenant.id);
            if some.len() < PAGE {
                return Ok(told(&closed));
            }
        }
    }
}

/// What is said of tenants that can't be read.
fn told(closed: &[TenantId]) -> Option<String> {
    let named: Vec<String> = closed.iter().take(NAMED).map(TenantId::to_string).collect();
    let more = match closed.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!closed.is_empty()).then(|| {
        format!(
            "what an erasure has still to take from suspended tenants, or the index of theirs, until they \
             are opened: {}{more}",
            named.join(", ")
        )
    })
}

fn standstill(what: &str, worker: &str, workers: &Workers) -> Error {
    let status = workers.status();
    let worker = status.into_iter().find(|status| status.name == worker);
    let reason = worker.and_then(|worker| worker.last_error);
    let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
    Error::new(ErrorKind::Unavailable, format!("{what}{reason}"))
}

/// Whether something that is waited for goes on.
struct Progress {
    left: u64,
    since: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            left: u64::MAX,
            since: Instant::now(),
        }
    }
}

impl Progress {
    /// Waits a moment, unless there was never less of it for too long.
    async fn goes_on(&mut self, left: u64) -> bool {
        if left < self.left {
            (self.left, self.since) = (left, Instant::now());
        }
        if self.since.elapsed() > STANDSTILL {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        true
    }
}

/// The SQL that makes a login for each purpose in PostgreSQL.
pub fn login_statements() -> String {
    audit_store_postgres::login_statements()
}

fn postgres_options(postgres: &Postgres, ca_file: Option<&Path>) -> PostgresOptions {
    let mut options =
        PostgresOptions::new(postgres.url.reveal()).allow_superuser(postgres.allow_superuser);
    options.snapshots = crate::api::export::MAX_EXPORTS;
    if let Some(url) = &postgres.reader_url {
        options = options.reader_url(url.reveal());
    }
    if let Some(url) = &postgres.writer_url {
        options = options.writer_url(url.reveal());
    }
    if let Some(url) = &postgres.maintainer_url {
        options = options.maintainer_url(url.reveal());
    }
    if let Some(file) = ca_file {
        options = options.root_certificate(file);
    }
    options
}

/// The queue, when it isn't the store's own.
async fn other_queue(settings: &Settings) -> Result<Option<Arc<dyn EventQueue>>> {
    match &settings.queue {
        QueueUrl::Store => Ok(None),
        QueueUrl::Memory => Ok(Some(Arc::new(MemoryQueue::new()))),
        QueueUrl::Sqs { url, endpoint } => {
            sqs::open(url, endpoint.as_deref(), settings.ca_file.clone())
                .await
                .map(Some)
        }
    }
}

/// Makes the queues that are missing.
///
/// # Errors
/// What the queue's server answers.
pub async fn make_queues(settings: &Settings) -> Result<()> {
    match &settings.queue {
        QueueUrl::Store | QueueUrl::Memory => Ok(()),
        QueueUrl::Sqs { url, endpoint } => {
            sqs::make(url, endpoint.as_deref(), settings.ca_file.clone()).await
        }
    }
}

/// An index, and itself as what keeps things on disk.
type Index = (Arc<dyn SearchIndex>, Arc<dyn Vacuum>);

/// The index, when it isn't the store's own.
fn other_index(settings: &Settings) -> Result<Option<Index>> {
    match &settings.search {
        SearchUrl::Store => Ok(None),
        SearchUrl::OpenSearch {
            url,
            prefix,
            per_tenant,
        } => opensearch::open(
            url.reveal(),
            prefix.as_deref(),
            *per_tenant,
            settings.ca_file.as_deref(),
        )
        .map(Some),
    }
}

#[cfg(feature = "sqs")]
mod sqs {
    use audit_queue_sqs::{SqsOptions, SqsQueue};

    use super::{Arc, EventQueue, PathBuf, Result};

    async fn queue(
        url: &str,
        endpoint: Option<&str>,
        ca_file: Option<PathBuf>,
    ) -> Result<SqsQueue> {
        let mut options = SqsOptions::new(url)?;
        if let Some(endpoint) = endpoint {
            options = options.endpoint(endpoint);
        }
        if let Some(file) = ca_file {
            options = options.ca_file(file);
        }
        SqsQueue::open(options).await
    }

    pub(super) async fn open(
        url: &str,
        endpoint: Option<&str>,
        ca_file: Option<PathBuf>,
    ) -> Result<Arc<dyn EventQueue>> {
        Ok(Arc::new(queue(url, endpoint, ca_file).await?))
    }

    pub(super) async fn make(
        url: &str,
        endpoint: Option<&str>,
        ca_file: Option<PathBuf>,
    ) -> Result<()> {
        queue(url, endpoint, ca_file).await?.create().await
    }
}

/// The settings refuse what this build doesn't have; whoever sets them by hand is told here.
#[cfg(not(feature = "sqs"))]
mod sqs {
    use super::{Arc, Error, ErrorKind, EventQueue, PathBuf, Result};

    fn refusal() -> Error {
        Error::new(ErrorKind::Refused, "this build has no SQS")
    }

    pub(super) async fn open(
        _: &str,
        _: Option<&str>,
        _: Option<PathBuf>,
    ) -> Result<Arc<dyn EventQueue>> {
        Err(refusal())
    }

    pub(super) async fn make(_: &str, _: Option<&str>, _: Option<PathBuf>) -> Result<()> {
        Err(refusal())
    }
}

#[cfg(feature = "opensearch")]
mod opensearch {
    use audit_search_opensearch::{Layout, OpenSearchIndex, OpenSearchOptions};

    use super::{Arc, Index, Path, Result};

    pub(super) fn open(
        url: &str,
        prefix: Option<&str>,
        per_tenant: bool,
        ca_file: Option<&Path>,
    ) -> Result<Index> {
        let mut options = OpenSearchOptions::new(url)?;
        if let Some(prefix) = prefix {
            options = options.prefix(prefix)?;
        }
        if per_tenant {
            options = options.layout(Layout::PerTenant);
        }
        if let Some(file) = ca_file {
            options = options.ca_file(file)?;
        }
        let index = Arc::new(OpenSearchIndex::open(options)?);
        Ok((index.clone(), index))
    }
}

/// The settings refuse what this build doesn't have; whoever sets them by hand is told here.
#[cfg(not(feature = "opensearch"))]
mod opensearch {
    use super::{Error, ErrorKind, Index, Path, Result};

    pub(super) fn open(_: &str, _: Option<&str>, _: bool, _: Option<&Path>) -> Result<Index> {
        Err(Error::new(
            ErrorKind::Refused,
            "this build has no OpenSearch",
        ))
    }
}
