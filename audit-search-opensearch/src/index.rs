//! The index itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use async_trait::async_trait;
use audit_core::{
    Control, Entry, Error, ErrorKind, Filter, Hits, Kind, LogStore, Order, Permission, Result,
    SearchIndex, SearchRequest, TenantId, TenantScope,
};
use futures_util::poll;
use futures_util::stream::{FuturesOrdered, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bulk::{Fate, Lines, Over};
use crate::client::Client;
use crate::document;
use crate::fault::{Fault, RETRY_AFTER, is_partial, moved};
use crate::generation::Generations;
use crate::options::{Layout, OpenSearchOptions};
use crate::progress::{self, Place, Progress};
use crate::query;

/// Bytes after which a request is sent: small clusters take no more than 10 MiB.
const REQUEST_BYTES: usize = 4 << 20;
/// Documents after which a request is sent.
const REQUEST_DOCUMENTS: usize = 1_000;
/// Requests that are on their way at once.
const IN_FLIGHT: usize = 2;
/// Documents after which others on this thread come first.
const YIELD: usize = 32;
/// Documents that are deleted in one request.
const DELETE: usize = 10_000;
/// Indexes that one request names.
const NAMED: usize = 40;
/// How often a tenant's progress is written anew when another process moved it.
const ATTEMPTS: usize = 5;

/// Full text in OpenSearch. Cheap to clone.
///
/// A value is fed by one indexer at a time (its clones are the same value); any number of values, in
/// this process and others, may feed the same indexes at once. What a value has been told of a
/// tenant's progress it remembers, and so it notices when an index was emptied, restored or replaced
/// under an indexer: the next [`index`](SearchIndex::index) then fails with a retryable error, and
/// the indexer goes on from what [`indexed_through`](SearchIndex::indexed_through) says.
///
/// When a call returns, searches find what it wrote; progress is written after that. A document that
/// the cluster refuses for what is in it doesn't hold up the others: it is indexed without its words
/// and is a hit of every search, which the reader of the log then checks. `prune` entries that are
/// indexed take what was pruned out of the index.
///
/// An erased word isn't found any more, but leaves the disk of the cluster only when it merges the
/// segment, with [`vacuum`](audit_core::Vacuum::vacuum) or with [`reindex`](Self::reindex).
///
/// Nothing is retried here: an error of kind [`Unavailable`](ErrorKind::Unavailable) says when it
/// may work, and what was written until then is passed over the next time.
#[derive(Clone)]
pub struct OpenSearchIndex {
    pub(crate) shared: Arc<Shared>,
    /// What the indexer was told of each tenant.
    told: Arc<Mutex<HashMap<TenantId, u64>>>,
    /// The only generation to work on, for the rebuild that makes it.
    target: Option<Arc<str>>,
}

pub(crate) struct Shared {
    pub(crate) client: Arc<Client>,
    pub(crate) generations: Generations,
}

impl fmt::Debug for OpenSearchIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenSearchIndex")
            .field("indexes", &self.shared.generations.all())
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// What the index says of each tenant's progress.
type Known = BTreeMap<TenantId, Option<Progress>>;

/// A tenant's progress as it was, and where it is to go.
struct Goal {
    /// All below is indexed.
    base: u64,
    was: Option<Progress>,
    to: u64,
}

#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    hits: FoundHits,
}

#[derive(Default, Deserialize)]
struct FoundHits {
    #[serde(default)]
    hits: Vec<FoundHit>,
}

#[derive(Deserialize)]
struct FoundHit {
    sort: [u64; 1],
}

#[derive(Deserialize)]
struct Documents {
    hits: DocumentHits,
}

#[derive(Deserialize)]
struct DocumentHits {
    hits: Vec<Document>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "_version")]
    version: u64,
}

impl OpenSearchIndex {
    /// An index that isn't connected yet: it asks nothing of the cluster until it is used, and makes
    /// its template and indexes when there is something to index.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when the authorities aren't certificates in PEM.
    pub fn open(options: OpenSearchOptions) -> Result<Self> {
        let client = Arc::new(Client::new(&options)?);
        Ok(Self {
            shared: Arc::new(Shared {
                generations: Generations::new(Arc::clone(&client), options),
                client,
            }),
            told: Arc::default(),
            target: None,
        })
    }

    /// The same indexes for another indexer: a value of its own.
    #[must_use]
    pub fn another(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            told: Arc::default(),
            target: self.target.clone(),
        }
    }

    pub(crate) fn on(&self, generation: Arc<str>) -> Self {
        Self {
            target: Some(generation),
            ..self.another()
        }
    }

    /// Whether the cluster answers.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it doesn't.
    pub async fn ping(&self) -> Result<()> {
        self.shared.client.get("/").await?.ok()
    }

    /// How many entries of the scope's tenant are indexed in a range of positions: what a reconciler
    /// compares with the log. 0 when there is no index. Needs `read`.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden), and [`Unavailable`](ErrorKind::Unavailable) when the
    /// cluster doesn't answer.
    pub async fn count(&self, scope: &TenantScope, seqs: Range<u64>) -> Result<u64> {
        #[derive(Deserialize)]
        struct Counted {
            count: u64,
            #[serde(rename = "_shards")]
            shards: Shards,
        }
        scope.require(Permission::Read)?;
        let tenant = scope.tenant();
        let filter = Filter::new().from_seq(seqs.start);
        let body = &json!({ "query": query::positions(tenant, &filter, seqs.end) });
        let counted = self
            .read(tenant, |place| async move {
                let path = format!("/{}/_count", place.index);
                let routing = tenant.to_string();
                let query = [("routing", routing.as_str())];
                let query = if place.routed { &query[..] } else { &[] };
                let answer = self.shared.client.post(&path, query, body).await?;
                if answer.is_missing_index() {
                    return Ok(None);
                }
                let counted: Counted = answer.json()?;
                counted.shards.all()?;
                Ok(Some(counted.count))
            })
            .await?;
        Ok(counted.unwrap_or(0))
    }

    /// Deletes the documents of the scope's tenant below a position, which was pruned. Safe to repeat.
    /// Needs `cleanup`. Indexing the `prune` entry does the same.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden), and [`Unavailable`](ErrorKind::Unavailable), with some of
    /// them deleted, when the cluster doesn't answer.
    pub async fn drop_below(&self, scope: &TenantScope, below: u64) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        let tenant = scope.tenant();
        self.read(tenant, |place| async move {
            self.delete(&place, tenant, below).await
        })
        .await
        .map(|_| ())
    }

    fn told(&self) -> MutexGuard<'_, HashMap<TenantId, u64>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, index: Arc<str>) -> Place {
        let routed = self.shared.generations.layout() == Layout::Shared;
        Place { index, routed }
    }

    async fn find(&self, live: &str) -> Result<Option<Place>> {
        let index = match &self.target {
            Some(target) => Some(Arc::clone(target)),
            None => self.shared.generations.find(live).await?,
        };
        Ok(index.map(|index| self.place(index)))
    }

    async fn find_or_make(&self, live: &str) -> Result<Place> {
        let index = match &self.target {
            Some(target) => Arc::clone(target),
            None => self.shared.generations.find_or_make(live).await?,
        };
        Ok(self.place(index))
    }

    /// Does something with the generation in use, and again when that was replaced. None when
    /// there is no index.
    async fn read<T, F>(&self, tenant: TenantId, f: impl Fn(Place) -> F) -> Result<Option<T>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let live = self.shared.generations.live(tenant);
        let mut failed: Option<(Arc<str>, Error)> = None;
        for _ in 0..ATTEMPTS {
            let Some(place) = self.find(&live).await? else {
                return Ok(None);
            };
            match failed {
                Some((index, error)) if index == place.index => return Err(error),
                _ => failed = None,
            }
            let index = Arc::clone(&place.index);
            match f(place).await {
                Ok(Some(answer)) => return Ok(Some(answer)),
                Ok(None) => {}
                // An index that is being deleted fails in many ways.
                Err(error) if error.is_retryable() => failed = Some((index, error)),
                Err(error) => return Err(error),
            }
            self.shared.generations.forget(&live);
        }
        Err(failed.map_or_else(moved, |(_, error)| error))
    }

    /// Has the cluster asked for the generations of these tenants, after a failure.
    fn look_again(&self, tenants: &BTreeSet<TenantId>) {
        for tenant in tenants {
            let live = self.shared.generations.live(*tenant);
            self.shared.generations.forget(&live);
        }
    }

    async fn feed(&self, tenants: &BTreeSet<TenantId>, entries: &[Entry]) -> Result<()> {
        let (places, known) = match self.progress(tenants).await? {
            Some(progress) => progress,
            None => {
                // Replaced since the last call: nothing is lost by looking again.
                self.look_again(tenants);
                self.progress(tenants).await?.ok_or_else(moved)?
            }
        };
        let mut goals: BTreeMap<TenantId, Goal> = BTreeMap::new();
        let mut new = Vec::with_capacity(entries.len());
        for entry in entries {
            let was = known.get(&entry.tenant_id).copied().flatten();
            let base = was.map_or(0, |was| was.through);
            if entry.seq < base {
                continue;
            }
            let goal = goals.entry(entry.tenant_id).or_insert(Goal {
                base,
                was,
                to: base,
            });
            if goal.to == base && entry.seq > base {
                self.check_gap(entry.tenant_id, base)?;
            }
            goal.to = entry.seq + 1;
            new.push(entry);
        }
        let mut failed = None;
        for (entry, outcome) in new
            .iter()
            .zip(self.put(&places, &new, Over::Earlier).await?)
        {
            // What comes before the first failure is in the index.
            if let (Err(error), Some(goal)) = (outcome, goals.get_mut(&entry.tenant_id)) {
                goal.to = goal.to.min(entry.seq);
                failed.get_or_insert(blame(error, entry.tenant_id));
            }
        }
        for entry in new.iter().filter(|entry| entry.kind == Kind::Prune) {
            if let (Some(Control::Prune { below, .. }), Some(place)) =
                (entry.control(), places.get(&entry.tenant_id))
            {
                self.delete(place, entry.tenant_id, below)
                    .await?
                    .ok_or_else(moved)?;
            }
        }
        goals.retain(|_, goal| goal.to > goal.base);
        self.advance(&places, goals).await?;
        failed.map_or(Ok(()), Err)
    }

    /// Where tenants' documents are, and how far they are. None when a generation is gone.
    async fn progress(
        &self,
        tenants: &BTreeSet<TenantId>,
    ) -> Result<Option<(BTreeMap<TenantId, Place>, Known)>> {
        let mut places = BTreeMap::new();
        for tenant in tenants {
            let live = self.shared.generations.live(*tenant);
            let place = self.find_or_make(&live).await;
            places.insert(*tenant, place.map_err(|error| blame(error, *tenant))?);
        }
        let known = progress::of_all(&self.shared.client, &places).await?;
        Ok(known.map(|known| (places, known)))
    }

    /// A gap was pruned, unless the index has lost what this indexer saw in it.
    fn check_gap(&self, tenant: TenantId, through: u64) -> Result<()> {
        let mut told = self.told();
        if told.get(&tenant).is_some_and(|told| *told > through) {
            told.insert(tenant, through);
            return Err(moved().with_tenant(tenant));
        }
        Ok(())
    }

    async fn put_current(&self, tenant: TenantId, current: &[Entry], over: Over) -> Result<()> {
        let live = self.shared.generations.live(tenant);
        let Some(place) = self.find(&live).await? else {
            return Ok(());
        };
        let entries: Vec<&Entry> = current.iter().collect();
        let outcomes = self.put(&[(tenant, place)].into(), &entries, over).await?;
        outcomes.into_iter().collect()
    }

    /// Deletes whatever documents there are of these positions, whoever made them. None when the
    /// generation is gone.
    async fn take_out(&self, place: &Place, tenant: TenantId, seqs: &[u64]) -> Result<Option<()>> {
        let client = &self.shared.client;
        let path = format!("/{}/_search", place.index);
        let routing = tenant.to_string();
        let mut query = vec![("allow_partial_search_results", "false")];
        if place.routed {
            query.push(("routing", &routing));
        }
        for part in seqs.chunks(REQUEST_DOCUMENTS) {
            let body = query::documents(tenant, part);
            let answer = client.post(&path, &query, &body).await?;
            if answer.is_missing_index() {
                return Ok(None);
            }
            let mut lines = Lines::default();
            for document in answer.json::<Documents>()?.hits.hits {
                lines.delete(place, tenant, &document.id, document.version);
            }
            for fate in lines.send(client).await? {
                match fate {
                    // A later version is a writer's who knows better.
                    Fate::Done | Fate::Conflict => {}
                    Fate::Moved => return Ok(None),
                    Fate::Refused(kind) => return Err(Fault::new(400, kind).into_error(None)),
                    Fate::Later(kind) => return Err(Fault::new(503, kind).into_error(None)),
                }
            }
        }
        self.refresh(&[(tenant, place.clone())].into()).await?;
        Ok(Some(()))
    }

    /// Writes documents, and makes them found. An outcome for each.
    async fn put(
        &self,
        places: &BTreeMap<TenantId, Place>,
        entries: &[&Entry],
        over: Over,
    ) -> Result<Vec<Result<()>>> {
        let client = &self.shared.client;
        let mut fates = Vec::with_capacity(entries.len());
        let mut in_flight = FuturesOrdered::new();
        let mut rest = entries;
        loop {
            while in_flight.len() < IN_FLIGHT && !rest.is_empty() {
                in_flight.push_back(render(places, &mut rest, over).await.send(client));
                // Sets out now: the next request is made while the cluster is busy with this one.
                if let Poll::Ready(Some(sent)) = poll!(in_flight.next()) {
                    fates.extend(sent?);
                }
            }
            match in_flight.next().await {
                Some(sent) => fates.extend(sent?),
                None => break,
            }
        }
        self.put_refused(places, entries, &mut fates, over).await?;
        let mut missing = self.missing(places, entries, &fates).await?;
        let outcomes = fates
            .into_iter()
            .enumerate()
            .map(|(at, fate)| match fate {
                Fate::Done => Ok(()),
                Fate::Conflict if missing.remove(&at) => Err(Error::new(
                    ErrorKind::Unavailable,
                    "a document was deleted a moment ago and can't come back yet",
                )
                .with_retry_after(RETRY_AFTER)),
                Fate::Conflict => Ok(()),
                Fate::Moved => Err(moved()),
                Fate::Refused(kind) => Err(Fault::new(400, kind).into_error(None)),
                Fate::Later(kind) => Err(Fault::new(503, kind).into_error(None)),
            })
            .collect();
        self.refresh(places).await?;
        Ok(outcomes)
    }

    /// Writes what the cluster refuses once more, without what it may refuse.
    async fn put_refused(
        &self,
        places: &BTreeMap<TenantId, Place>,
        entries: &[&Entry],
        fates: &mut [Fate],
        over: Over,
    ) -> Result<()> {
        let mut refused = Vec::new();
        let mut lines = Lines::default();
        for (at, (fate, entry)) in fates.iter().zip(entries).enumerate() {
            if let (Fate::Refused(kind), Some(place)) = (fate, places.get(&entry.tenant_id)) {
                tracing::warn!(
                    tenant = %entry.tenant_id,
                    seq = entry.seq,
                    reason = kind.as_deref().unwrap_or("none"),
                    "OpenSearch refuses a document; every search will check the entry instead",
                );
                lines.unindexed(place, entry, over);
                refused.push(at);
            }
        }
        let again = lines.send(&self.shared.client).await?;
        for (at, fate) in refused.into_iter().zip(again) {
            fates[at] = fate;
        }
        Ok(())
    }

    /// Which of the conflicts are with documents that aren't there: deleted ones keep their version
    /// for a while.
    async fn missing(
        &self,
        places: &BTreeMap<TenantId, Place>,
        entries: &[&Entry],
        fates: &[Fate],
    ) -> Result<BTreeSet<usize>> {
        let conflicts: Vec<usize> = fates
            .iter()
            .enumerate()
            .filter(|(_, fate)| **fate == Fate::Conflict)
            .map(|(at, _)| at)
            .collect();
        let mut missing = BTreeSet::new();
        for part in conflicts.chunks(REQUEST_DOCUMENTS) {
            let documents = part.iter().filter_map(|at| {
                let entry = entries[*at];
                let id = document::id(entry.tenant_id, entry.seq);
                Some((id, entry.tenant_id, places.get(&entry.tenant_id)?))
            });
            let exist = progress::exist(&self.shared.client, documents).await?;
            let absent = part.iter().zip(exist).filter(|(_, exists)| !exists);
            missing.extend(absent.map(|(at, _)| *at));
        }
        Ok(missing)
    }

    /// Makes all that was written found. A flag on the writes wouldn't do: where all of them are
    /// conflicts OpenSearch passes it over, and an earlier call may have ended before this.
    async fn refresh(&self, places: &BTreeMap<TenantId, Place>) -> Result<()> {
        #[derive(Deserialize)]
        struct Refreshed {
            #[serde(rename = "_shards")]
            shards: Shards,
        }
        let names: BTreeSet<&str> = places.values().map(|place| &*place.index).collect();
        let names: Vec<&str> = names.into_iter().collect();
        for part in names.chunks(NAMED) {
            let path = format!("/{}/_refresh", part.join(","));
            let answer = self.shared.client.post(&path, &[], &Value::Null).await?;
            if answer.is_missing_index() {
                return Err(moved());
            }
            answer.json::<Refreshed>()?.shards.all()?;
        }
        Ok(())
    }

    /// Writes how far tenants are, unless the index was replaced under this.
    async fn advance(
        &self,
        places: &BTreeMap<TenantId, Place>,
        mut goals: BTreeMap<TenantId, Goal>,
    ) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let mut lines = Lines::default();
            for (tenant, goal) in &goals {
                let place = places.get(tenant).ok_or_else(moved)?;
                lines.progress(place, *tenant, goal.to, goal.was);
            }
            let fates = lines.send(&self.shared.client).await?;
            let mut conflicts = BTreeMap::new();
            for ((tenant, goal), fate) in goals.into_iter().zip(fates) {
                match fate {
                    Fate::Done => {
                        self.told().insert(tenant, goal.to);
                    }
                    Fate::Conflict => {
                        conflicts.insert(tenant, goal);
                    }
                    Fate::Moved => return Err(moved()),
                    Fate::Refused(kind) => {
                        return Err(blame(Fault::new(400, kind).into_error(None), tenant));
                    }
                    Fate::Later(kind) => {
                        return Err(blame(Fault::new(503, kind).into_error(None), tenant));
                    }
                }
            }
            if conflicts.is_empty() {
                return Ok(());
            }
            // Another process was faster, or the index lost what was read of it.
            let theirs = places
                .iter()
                .filter(|(tenant, _)| conflicts.contains_key(tenant))
                .map(|(tenant, place)| (*tenant, place.clone()))
                .collect();
            let now = progress::of_all(&self.shared.client, &theirs)
                .await?
                .ok_or_else(moved)?;
            goals = BTreeMap::new();
            for (tenant, mut goal) in conflicts {
                match now.get(&tenant).copied().flatten() {
                    Some(now) if now.through >= goal.to => {
                        self.told().insert(tenant, now.through);
                    }
                    Some(now) if now.through >= goal.base => {
                        goal.was = Some(now);
                        goals.insert(tenant, goal);
                    }
                    _ => return Err(moved().with_tenant(tenant)),
                }
            }
            if goals.is_empty() {
                return Ok(());
            }
        }
        Err(moved())
    }

    /// Deletes below a position. None when the generation is gone.
    async fn delete(&self, place: &Place, tenant: TenantId, below: u64) -> Result<Option<()>> {
        let found = query::positions(tenant, &Filter::new(), below);
        self.delete_found(place, tenant, found).await
    }

    /// Deletes what a query finds of a tenant. None when the generation is gone.
    async fn delete_found(
        &self,
        place: &Place,
        tenant: TenantId,
        found: Value,
    ) -> Result<Option<()>> {
        #[derive(Deserialize)]
        struct Deleted {
            total: usize,
            deleted: usize,
            #[serde(default)]
            failures: Vec<Value>,
            timed_out: bool,
        }
        let body = json!({ "query": found });
        let path = format!("/{}/_delete_by_query", place.index);
        let (routing, most) = (tenant.to_string(), DELETE.to_string());
        let mut query = vec![
            ("conflicts", "proceed"),
            ("refresh", "true"),
            ("max_docs", most.as_str()),
        ];
        if place.routed {
            query.push(("routing", &routing));
        }
        loop {
            let answer = self.shared.client.post(&path, &query, &body).await?;
            if answer.is_missing_index() {
                return Ok(None);
            }
            let step: Deleted = answer.json()?;
            if !step.failures.is_empty() || step.timed_out || step.deleted < step.total.min(1) {
                return Err(Fault::new(503, None).into_error(None));
            }
            if step.total == step.deleted && step.total < DELETE {
                return Ok(Some(()));
            }
        }
    }

    /// The hits in one generation, none when it is gone.
    async fn search_in(
        &self,
        place: &Place,
        tenant: TenantId,
        request: &SearchRequest,
    ) -> Result<Option<Hits>> {
        let client = &self.shared.client;
        let Some(progress) = progress::of(client, place, tenant).await? else {
            return Ok(None);
        };
        let through = progress.map_or(0, |progress| progress.through);
        if through == 0 {
            return Ok(Some(Hits::default()));
        }
        self.hits(place, tenant, request, through).await
    }

    /// The hits below a position in one generation, none when it is gone.
    async fn hits(
        &self,
        place: &Place,
        tenant: TenantId,
        request: &SearchRequest,
        through: u64,
    ) -> Result<Option<Hits>> {
        let client = &self.shared.client;
        let path = format!("/{}/_search", place.index);
        let routing = tenant.to_string();
        let mut query = vec![
            // Too few hits would be taken for all.
            ("allow_partial_search_results", "false"),
            ("filter_path", "hits.hits.sort"),
        ];
        if place.routed {
            query.push(("routing", &routing));
        }
        let body = query::search(tenant, request, through);
        let answer = client.post(&path, &query, &body).await?;
        if answer.is_missing_index() {
            return Ok(None);
        }
        let found: Found = answer.json()?;
        let mut seqs: Vec<u64> = found.hits.hits.iter().map(|hit| hit.sort[0]).collect();
        let limit = request.limit.min(query::MAX_HITS);
        let more = seqs.len() > limit;
        seqs.truncate(limit);
        // Nobody but this program writes documents; should somebody have, an entry is shown once.
        seqs.dedup();
        Ok(Some(Hits::new(seqs, more, through)))
    }
}

/// Names the tenant, whose shard or index the cluster can't serve while it serves others.
fn blame(error: Error, tenant: TenantId) -> Error {
    match is_partial(&error) {
        true => error.with_tenant(tenant),
        false => error,
    }
}

#[derive(Deserialize)]
pub(crate) struct Shards {
    failed: u32,
}

impl Shards {
    pub(crate) fn all(&self) -> Result<()> {
        match self.failed {
            0 => Ok(()),
            _ => Err(Fault::new(503, None).into_error(None)),
        }
    }
}

/// Makes the next request, of as many entries as it may have.
async fn render(places: &BTreeMap<TenantId, Place>, rest: &mut &[&Entry], over: Over) -> Lines {
    let mut lines = Lines::default();
    while let Some((entry, behind)) = rest.split_first() {
        if lines.writes() >= REQUEST_DOCUMENTS || lines.bytes() >= REQUEST_BYTES {
            break;
        }
        if let Some(place) = places.get(&entry.tenant_id) {
            lines.entry(place, entry, over);
        }
        *rest = behind;
        if lines.writes() % YIELD == 0 {
            tokio::task::yield_now().await;
        }
    }
    lines
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SearchIndex for OpenSearchIndex {
    /// A call that fails has written a prefix of each tenant's entries, and says so in
    /// `indexed_through`.
    async fn index(&self, entries: &[Entry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let tenants: BTreeSet<TenantId> = entries.iter().map(|entry| entry.tenant_id).collect();
        let outcome = self.feed(&tenants, entries).await;
        outcome.inspect_err(|_| self.look_again(&tenants))
    }

    /// At most 9,999 hits at once, whatever the limit.
    async fn search(&self, scope: &TenantScope, request: &SearchRequest) -> Result<Hits> {
        scope.require(Permission::Read)?;
        let tenant = scope.tenant();
        let hits = self
            .read(tenant, |place| async move {
                self.search_in(&place, tenant, request).await
            })
            .await?;
        Ok(hits.unwrap_or_default())
    }

    /// Needs `erase`. Entries of positions that aren't indexed yet are written already, and take the
    /// place of what comes later.
    async fn remove(&self, scope: &TenantScope, current: &[Entry]) -> Result<()> {
        scope.require(Permission::Erase)?;
        let tenant = scope.tenant();
        scope.admit(current)?;
        if current.is_empty() {
            return Ok(());
        }
        let outcome = self.put_current(tenant, current, Over::Earlier).await;
        outcome
            .inspect_err(|_| self.look_again(&[tenant].into()))
            .map_err(|error| blame(error, tenant))
    }

    async fn indexed_through(&self, scope: &TenantScope) -> Result<u64> {
        scope.require(Permission::Read)?;
        let tenant = scope.tenant();
        let progress = self
            .read(tenant, |place| async move {
                progress::of(&self.shared.client, &place, tenant).await
            })
            .await
            .map_err(|error| blame(error, tenant))?;
        let through = progress.flatten().map_or(0, |progress| progress.through);
        // Readers ask too, so this only ever counts up: an indexer is told of a loss by an error.
        let mut told = self.told();
        let known = told.entry(tenant).or_insert(through);
        *known = through.max(*known);
        Ok(through)
    }

    async fn held(&self, scope: &TenantScope, seqs: Range<u64>) -> Result<Vec<u64>> {
        scope.require(Permission::Read)?;
        let tenant = scope.tenant();
        let limit = usize::try_from(seqs.end.saturating_sub(seqs.start)).unwrap_or(usize::MAX);
        let filter = Filter::new().from_seq(seqs.start).to_seq(seqs.end);
        let request = &SearchRequest::new(filter, limit).order(Order::Ascending);
        let hits = self
            .read(tenant, |place| async move {
                self.hits(&place, tenant, request, u64::MAX).await
            })
            .await
            .map_err(|error| blame(error, tenant))?;
        Ok(hits.unwrap_or_default().seqs)
    }

    /// A document that the cluster has just deleted can't come back for a minute
    /// (`index.gc_deletes`), save one that was taken out here: a retryable error says so.
    async fn mend(&self, scope: &TenantScope, missing: &[Entry], surplus: &[u64]) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        let tenant = scope.tenant();
        scope.admit(missing)?;
        if !surplus.is_empty() {
            self.read(tenant, |place| async move {
                self.take_out(&place, tenant, surplus).await
            })
            .await
            .map_err(|error| blame(error, tenant))?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        let outcome = self.put_current(tenant, missing, Over::Same).await;
        outcome
            .inspect_err(|_| self.look_again(&[tenant].into()))
            .map_err(|error| blame(error, tenant))
    }

    /// With the index, of a tenant that has one of its own.
    async fn forget(&self, scope: &TenantScope) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        let tenant = scope.tenant();
        let generations = &self.shared.generations;
        let forgotten = match generations.layout() {
            Layout::PerTenant => generations.remove(&generations.live(tenant)).await,
            Layout::Shared => {
                let all = query::all_of(tenant);
                let removed = self.read(tenant, |place| {
                    let all = all.clone();
                    async move { self.delete_found(&place, tenant, all).await }
                });
                removed.await.map(drop)
            }
        };
        self.told().remove(&tenant);
        forgotten.map_err(|error| blame(error, tenant))
    }

    /// As [`reindex`](Self::reindex) does.
    async fn rebuild(&self, store: &Arc<dyn LogStore>) -> Result<()> {
        self.reindex(&**store).await
    }
}
