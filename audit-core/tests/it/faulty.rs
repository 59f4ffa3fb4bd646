//! A log store that fails on command, around one in memory.

use std::collections::HashSet;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::memory::MemoryStore;
use audit_core::tlog::HeadOpening;
use audit_core::{
    Batch, CheckpointStore, Counter, Declaration, DeploymentStore, Entry, EpochStart, Erased,
    Erasure, Error, ErrorKind, EventId, Evidence, Fence, Filter, Grown, Hash, Head, KeyChange,
    LogStore, Lookup, Mark, Page, PageRequest, Prune, Pruned, Receipt, Result, SignedCheckpoint,
    Snapshot, TenantId, TenantScope, Uncommitted,
};
use futures_util::stream::BoxStream;

/// Fails an append as a whole when it holds a poisonous event, or so many times with a retryable
/// error; counts appends.
#[derive(Debug)]
pub(crate) struct Faulty {
    pub(crate) inner: Arc<MemoryStore>,
    pub(crate) poison: Mutex<HashSet<EventId>>,
    pub(crate) unavailable: AtomicU64,
    /// Fails after having stored.
    pub(crate) lost_answers: AtomicU64,
    pub(crate) appends: AtomicU64,
    /// Tenants whose rows can't be read.
    pub(crate) unreadable: Mutex<HashSet<TenantId>>,
    /// Positions whose entries differ from their hashes.
    pub(crate) damaged: Mutex<HashSet<u64>>,
    /// Positions whose leaf data is another by itself.
    pub(crate) altered_leaves: Mutex<HashSet<u64>>,
    /// Erasures that fail in turn: before anything is erased, and after everything is.
    pub(crate) failing_erasures: AtomicU64,
    /// Tenants of which nothing is erased now.
    pub(crate) unerasable: Mutex<HashSet<TenantId>>,
    /// Tenants of which nothing is appended now.
    pub(crate) busy: Mutex<HashSet<TenantId>>,
    /// A write of the signer that fails once, and whether it is stored nevertheless.
    pub(crate) once: Mutex<Option<(&'static str, bool)>>,
    /// Checkpoints of the deployment log that were stored.
    pub(crate) deployed: Mutex<Vec<SignedCheckpoint>>,
    /// Who asked for the signer's lease last.
    pub(crate) holder: Mutex<String>,
    /// Happens behind the first read.
    pub(crate) erases_after_read: Mutex<Option<(TenantScope, Erasure)>>,
    /// After so many reads of its evidence a snapshot has expired.
    pub(crate) snapshots_live: Mutex<Option<usize>>,
}

#[derive(Debug)]
struct Expiring {
    inner: Box<dyn Snapshot>,
    left: Mutex<Option<usize>>,
}

#[async_trait]
impl Snapshot for Expiring {
    fn head(&self) -> &Head {
        self.inner.head()
    }

    async fn scan(&self, filter: &Filter) -> Result<BoxStream<'static, Result<Entry>>> {
        self.inner.scan(filter).await
    }

    async fn evidence(&self, filter: &Filter) -> Result<BoxStream<'static, Result<Evidence>>> {
        if let Some(left) = &mut *self.left.lock().unwrap() {
            let expired = || Error::new(ErrorKind::Unavailable, "the snapshot has expired");
            *left = left.checked_sub(1).ok_or_else(expired)?;
        }
        self.inner.evidence(filter).await
    }
}

impl Faulty {
    pub(crate) fn new() -> Self {
        Self::around(MemoryStore::new())
    }

    pub(crate) fn around(store: impl Into<Arc<MemoryStore>>) -> Self {
        Self {
            inner: store.into(),
            poison: Mutex::default(),
            unavailable: AtomicU64::new(0),
            lost_answers: AtomicU64::new(0),
            appends: AtomicU64::new(0),
            unreadable: Mutex::default(),
            damaged: Mutex::default(),
            altered_leaves: Mutex::default(),
            failing_erasures: AtomicU64::new(0),
            unerasable: Mutex::default(),
            busy: Mutex::default(),
            once: Mutex::default(),
            deployed: Mutex::default(),
            holder: Mutex::default(),
            erases_after_read: Mutex::default(),
            snapshots_live: Mutex::default(),
        }
    }
}

impl Faulty {
    /// Does a write of the signer, which may be the one that fails.
    async fn write<T>(
        &self,
        name: &'static str,
        write: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let fails = self.once.lock().unwrap().take_if(|(this, _)| *this == name);
        if fails.is_none_or(|(_, stored)| stored) {
            let done = write.await;
            if fails.is_none() {
                return done;
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "no answer"))
    }

    /// Lets the lease of a signer that was killed end.
    pub(crate) async fn lease_ends(&self) {
        let holder = self.holder.lock().unwrap().clone();
        self.inner.lease(&holder, Duration::ZERO).await.unwrap();
    }

    async fn append_each(
        &self,
        batches: &[Batch],
        busy: &HashSet<TenantId>,
    ) -> Result<Vec<Result<Vec<Receipt>>>> {
        let mut outcomes = Vec::new();
        for batch in batches {
            match busy.contains(&batch.tenant()) {
                true => outcomes.push(Err(Error::new(ErrorKind::Unavailable, "its head is held"))),
                false => {
                    let outcome = self.inner.append(std::slice::from_ref(batch)).await?;
                    outcomes.extend(outcome);
                }
            }
        }
        Ok(outcomes)
    }
}

#[async_trait]
impl CheckpointStore for Faulty {
    async fn lease(&self, holder: &str, ttl: Duration) -> Result<Option<Fence>> {
        holder.clone_into(&mut self.holder.lock().unwrap());
        self.write("lease", self.inner.lease(holder, ttl)).await
    }

    async fn publish(
        &self,
        fence: Fence,
        tenant: TenantId,
        checkpoint: &SignedCheckpoint,
    ) -> Result<()> {
        self.write("publish", self.inner.publish(fence, tenant, checkpoint))
            .await
    }

    async fn latest(&self, scope: &TenantScope) -> Result<Option<SignedCheckpoint>> {
        self.inner.latest(scope).await
    }

    async fn covering(&self, scope: &TenantScope, size: u64) -> Result<Option<SignedCheckpoint>> {
        self.inner.covering(scope, size).await
    }

    async fn key_changes(&self, scope: &TenantScope) -> Result<Vec<KeyChange>> {
        self.inner.key_changes(scope).await
    }

    async fn epochs(&self, scope: &TenantScope) -> Result<Vec<EpochStart>> {
        self.inner.epochs(scope).await
    }
}

#[async_trait]
impl DeploymentStore for Faulty {
    async fn uncommitted_heads(
        &self,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Uncommitted> {
        self.inner.uncommitted_heads(after, limit).await
    }

    async fn commit_heads(&self, fence: Fence, size: u64, openings: &[HeadOpening]) -> Result<()> {
        let commit = self.inner.commit_heads(fence, size, openings);
        self.write("commit_heads", commit).await
    }

    async fn deployment_size(&self) -> Result<u64> {
        self.inner.deployment_size().await
    }

    async fn deployment_hashes(&self, level: u8, range: Range<u64>) -> Result<Vec<Hash>> {
        self.inner.deployment_hashes(level, range).await
    }

    async fn commitments(&self, range: Range<u64>) -> Result<Vec<Hash>> {
        self.inner.commitments(range).await
    }

    async fn head_opening(
        &self,
        scope: &TenantScope,
        below: u64,
    ) -> Result<Option<(u64, HeadOpening)>> {
        self.inner.head_opening(scope, below).await
    }

    async fn publish_deployment(&self, fence: Fence, checkpoint: &SignedCheckpoint) -> Result<()> {
        let publish = async {
            self.inner.publish_deployment(fence, checkpoint).await?;
            self.deployed.lock().unwrap().push(checkpoint.clone());
            Ok(())
        };
        self.write("publish_deployment", publish).await
    }

    async fn latest_deployment(&self) -> Result<Option<SignedCheckpoint>> {
        self.inner.latest_deployment().await
    }
}

fn take(counter: &AtomicU64) -> bool {
    counter
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
        .is_ok()
}

#[async_trait]
impl LogStore for Faulty {
    async fn append(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        if take(&self.unavailable) {
            return Err(Error::new(ErrorKind::Unavailable, "away"));
        }
        let poisonous = {
            let poison = self.poison.lock().unwrap();
            batches
                .iter()
                .flat_map(|b| b.events())
                .any(|e| poison.contains(&e.id()))
        };
        if poisonous {
            return Err(Error::new(
                ErrorKind::Internal,
                "the engine chokes on this value",
            ));
        }
        let busy = self.busy.lock().unwrap().clone();
        let outcome = match busy {
            busy if busy.is_empty() => self.inner.append(batches).await,
            busy => self.append_each(batches, &busy).await,
        };
        if take(&self.lost_answers) {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the connection broke at the commit",
            ));
        }
        // Lets other callers come in meanwhile, as a commit on a disk does.
        tokio::task::yield_now().await;
        outcome
    }

    async fn get(&self, scope: &TenantScope, ids: &[EventId]) -> Result<Vec<Lookup>> {
        self.inner.get(scope, ids).await
    }

    async fn at(&self, scope: &TenantScope, seqs: &[u64]) -> Result<Vec<Entry>> {
        let damaged = {
            let damaged = self.damaged.lock().unwrap();
            seqs.iter().find(|seq| damaged.contains(seq)).copied()
        };
        match damaged {
            Some(seq) => Err(Error::corrupt(scope.tenant(), seq)),
            None => self.inner.at(scope, seqs).await,
        }
    }

    async fn list(&self, scope: &TenantScope, f: &Filter, p: &PageRequest) -> Result<Page<Entry>> {
        let page = self.inner.list(scope, f, p).await?;
        let damaged = self.damaged.lock().unwrap();
        match page.items.iter().find(|entry| damaged.contains(&entry.seq)) {
            Some(entry) => Err(Error::corrupt(scope.tenant(), entry.seq)),
            None => Ok(page),
        }
    }

    async fn read(&self, scope: &TenantScope, from: u64, limit: usize) -> Result<Vec<Entry>> {
        if self.unreadable.lock().unwrap().contains(&scope.tenant()) {
            return Err(Error::corrupt(scope.tenant(), from));
        }
        let entries = self.inner.read(scope, from, limit).await;
        let erasure = self.erases_after_read.lock().unwrap().take();
        if let Some((scope, erasure)) = erasure {
            self.inner.erase(&scope, &erasure).await?;
        }
        entries
    }

    async fn snapshot(&self, scope: &TenantScope) -> Result<Box<dyn Snapshot>> {
        let inner = self.inner.snapshot(scope).await?;
        let left = Mutex::new(*self.snapshots_live.lock().unwrap());
        Ok(Box::new(Expiring { inner, left }))
    }

    async fn counters(&self, scope: &TenantScope, days: Range<i32>) -> Result<Vec<Counter>> {
        self.inner.counters(scope, days).await
    }

    async fn head(&self, scope: &TenantScope) -> Result<Head> {
        self.inner.head(scope).await
    }

    async fn hashes(&self, scope: &TenantScope, level: u8, range: Range<u64>) -> Result<Vec<Hash>> {
        self.inner.hashes(scope, level, range).await
    }

    async fn leaves(
        &self,
        scope: &TenantScope,
        range: std::ops::Range<u64>,
    ) -> Result<Vec<(u64, String)>> {
        let mut leaves = self.inner.leaves(scope, range).await?;
        let altered = self.altered_leaves.lock().unwrap();
        for (seq, leaf) in &mut leaves {
            if altered.contains(seq) {
                leaf.push(' ');
            }
        }
        Ok(leaves)
    }

    async fn erase(&self, scope: &TenantScope, erasure: &Erasure) -> Result<Erased> {
        let away = || Error::new(ErrorKind::Unavailable, "away");
        if self.unerasable.lock().unwrap().contains(&scope.tenant()) {
            return Err(away());
        }
        let turn = self.failing_erasures.load(Ordering::SeqCst);
        let fails = take(&self.failing_erasures);
        if fails && turn.is_multiple_of(2) {
            return Err(away());
        }
        let erased = self.inner.erase(scope, erasure).await;
        if fails { Err(away()) } else { erased }
    }

    async fn declare(&self, scope: &TenantScope, declaration: &Declaration) -> Result<Receipt> {
        self.write("declare", self.inner.declare(scope, declaration))
            .await
    }

    async fn prune(&self, scope: &TenantScope, prune: &Prune) -> Result<Pruned> {
        self.inner.prune(scope, prune).await
    }

    async fn sweep(&self) -> Result<bool> {
        self.inner.sweep().await
    }

    async fn grown_since(&self, since: Mark) -> Result<Grown> {
        self.inner.grown_since(since).await
    }

    async fn cursor(&self, tenant: TenantId, consumer: &str) -> Result<u64> {
        self.inner.cursor(tenant, consumer).await
    }

    async fn advance(&self, t: TenantId, c: &str, required: bool, position: u64) -> Result<()> {
        self.inner.advance(t, c, required, position).await
    }

    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }
}
