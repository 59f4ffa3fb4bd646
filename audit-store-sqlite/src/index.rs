//! The index file: every order of the log but its own.
//!
//! One full-text table (FTS5, without content) holds a document for each entry: its words, and a
//! token for each value that a filter can ask for. A filter, a full-text query or both at once are
//! then one expression over posting lists that FTS5 intersects by skipping, and an entry's document
//! is taken out whole by its number, though nobody knows any more what stood in it. Beside it are
//! the times of each entry, the order of `occurred_at`, and the span of `occurred_at` in each zone of
//! 1,024 positions, by which a range of time skips the zones that it doesn't touch.
//!
//! A document's number is the tenant's number in this file, shifted by 40, and the entry's `seq`:
//! hits of a tenant are one range of numbers, in the order of the log.

mod document;
mod file;
mod view;
mod writer;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use async_trait::async_trait;
use audit_core::rebuild::rebuild_in_place;
use audit_core::{
    Entry, Error, ErrorKind, Hits, LogStore, Order, Permission, Result, SearchIndex, SearchRequest,
    TenantId, TenantScope,
};
use rusqlite::Connection;

use crate::fault::{from_sqlite, gone};
pub(crate) use file::remove_unless_of;
pub(crate) use view::View;
use writer::Writer;

/// Readers that may be open at once; further ones wait.
const READERS: usize = 4;
/// Entries that are handed to the writer's thread at once.
const CHUNK: usize = 512;

/// Filters, `occurred_at` and full text in a SQLite file of their own. Cheap to clone.
///
/// The file may be deleted while nothing has it open: it is derived from the log and is filled again
/// from position 0. A file that is damaged, or that another version of this program made, is
/// replaced by an empty one. What a removed document held leaves the file's pages only when FTS5
/// merges the segment that it stood in, when the file is rebuilt, or by the store's
/// [`vacuum`](audit_core::Vacuum).
#[derive(Debug, Clone)]
pub struct SqliteIndex {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    readers: Pool,
    writer: Option<Writer>,
}

impl SqliteIndex {
    /// Opens the file, or makes it. With `read_only` nothing is made or changed: a file that isn't
    /// there, or is not to be used, is an index that holds nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] and [`ErrorKind::StorageFull`] when the file can't be read or made.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let writer = match read_only {
            true => None,
            false => Some(Writer::start(file::open_writer(&path)?)?),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                readers: Pool::new(path),
                writer,
            }),
        })
    }

    /// Runs `f` on one moment of the index, as seen by one tenant. Blocks: for threads that may.
    pub(crate) fn view<T>(
        &self,
        tenant: TenantId,
        f: impl FnOnce(&View<'_>) -> Result<T>,
    ) -> Result<T> {
        self.shared.readers.with(|conn| {
            let moment = conn.unchecked_transaction().map_err(from_sqlite)?;
            f(&View::new(&moment, tenant)?)
        })
    }

    /// Has the file, which turned out to be damaged, replaced when it is opened the next time.
    pub(crate) fn condemn(&self) {
        if let Some(writer) = &self.shared.writer {
            writer.condemn();
        }
    }

    /// Takes out at most `limit` entries (at least 1) of a tenant below a position, which was pruned,
    /// and waits no longer for those that it hasn't got. Returns whether there are more. Safe to
    /// repeat.
    ///
    /// # Errors
    /// What the engine refuses.
    pub async fn drop_below(&self, tenant: TenantId, below: u64, limit: usize) -> Result<bool> {
        self.writer()?.drop_below(tenant, below, limit.max(1)).await
    }

    /// Takes out all that it holds of a tenant, piece by piece. Safe to repeat.
    pub(crate) async fn drop_tenant(&self, tenant: TenantId) -> Result<()> {
        while self.writer()?.drop_tenant(tenant, CHUNK).await? {}
        Ok(())
    }

    pub(crate) async fn vacuum(&self) -> Result<()> {
        self.writer()?.vacuum().await
    }

    fn writer(&self) -> Result<&Writer> {
        self.shared
            .writer
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Refused, "the index was opened for reading only"))
    }

    /// A view on a thread that may block.
    async fn off_runtime<T: Send + 'static>(
        &self,
        tenant: TenantId,
        f: impl FnOnce(&View<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.view(tenant, f))
            .await
            .map_err(|_| gone())?
    }
}

#[async_trait]
impl SearchIndex for SqliteIndex {
    /// All in one transaction. A caller that goes away in the middle leaves a prefix of the entries
    /// indexed.
    async fn index(&self, entries: &[Entry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let (chunks, done) = self.writer()?.begin().await?;
        for chunk in entries.chunks(CHUNK) {
            if chunks.send(chunk.to_vec()).await.is_err() {
                break; // The writer gave up, and says why.
            }
            // Copying takes a while: others on this thread come first.
            tokio::task::yield_now().await;
        }
        drop(chunks);
        done.await.map_err(|_| gone())?
    }

    async fn search(&self, scope: &TenantScope, request: &SearchRequest) -> Result<Hits> {
        scope.require(Permission::Read)?;
        let request = request.clone();
        self.off_runtime(scope.tenant(), move |view| search(view, &request))
            .await
    }

    async fn remove(&self, scope: &TenantScope, current: &[Entry]) -> Result<()> {
        scope.admit(current)?;
        if current.is_empty() {
            return Ok(());
        }
        self.writer()?
            .remove(scope.tenant(), current.to_vec())
            .await
    }

    async fn indexed_through(&self, scope: &TenantScope) -> Result<u64> {
        scope.require(Permission::Read)?;
        self.off_runtime(scope.tenant(), |view| Ok(view.through()))
            .await
    }

    async fn held(&self, scope: &TenantScope, seqs: Range<u64>) -> Result<Vec<u64>> {
        scope.require(Permission::Read)?;
        self.off_runtime(scope.tenant(), move |view| view.held(seqs))
            .await
    }

    async fn mend(&self, scope: &TenantScope, missing: &[Entry], surplus: &[u64]) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        scope.admit(missing)?;
        if missing.is_empty() && surplus.is_empty() {
            return Ok(());
        }
        self.writer()?
            .mend(scope.tenant(), missing.to_vec(), surplus.to_vec())
            .await
    }

    async fn forget(&self, scope: &TenantScope) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        self.drop_tenant(scope.tenant()).await
    }

    /// Document by document, in place.
    async fn rebuild(&self, store: &Arc<dyn LogStore>) -> Result<()> {
        rebuild_in_place(self, &**store).await
    }
}

fn search(view: &View<'_>, request: &SearchRequest) -> Result<Hits> {
    let filter = &request.filter;
    let mut lower = filter.from_seq.unwrap_or(0);
    let mut upper = filter.to_seq.unwrap_or(u64::MAX).min(view.through());
    match (request.after, request.order) {
        (Some(after), Order::Ascending) => lower = lower.max(after.saturating_add(1)),
        (Some(after), Order::Descending) => upper = upper.min(after),
        (None, _) => {}
    }
    if let Some(from) = filter.created.from {
        lower = lower.max(view.accepted_since(from)?);
    }
    if let Some(to) = filter.created.to {
        upper = upper.min(view.accepted_since(to)?);
    }
    let mut seqs = Vec::new();
    let mut more = false;
    view.each_hit(filter, lower..upper, request.order, &mut |found| {
        more = seqs.len() == request.limit;
        if !more {
            seqs.push(found.seq);
        }
        Ok(!more)
    })?;
    Ok(Hits::new(seqs, more, view.through()))
}

/// Connections that only read. A reader that isn't back yet is waited for.
#[derive(Debug)]
struct Pool {
    path: PathBuf,
    state: Mutex<Idle>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Idle {
    connections: Vec<Connection>,
    out: usize,
}

impl Pool {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            state: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let mut taken = self.take()?;
        match &taken.connection {
            Some(connection) => f(connection),
            // Held for this call only: the file may be there, and good, the next time.
            None => f(taken.connection.insert(file::empty()?)),
        }
        .inspect_err(|_| taken.sound = false)
    }

    fn take(&self) -> Result<Taken<'_>> {
        let mut idle = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while idle.out == READERS {
            idle = self
                .returned
                .wait(idle)
                .unwrap_or_else(PoisonError::into_inner);
        }
        idle.out += 1;
        let connection = idle.connections.pop();
        drop(idle);
        let mut taken = Taken {
            pool: self,
            connection,
            sound: true,
        };
        if taken.connection.is_none() {
            taken.connection = file::open_reader(&self.path)?;
            taken.sound = taken.connection.is_some();
        }
        Ok(taken)
    }
}

struct Taken<'p> {
    pool: &'p Pool,
    connection: Option<Connection>,
    /// Whether the connection may be used again.
    sound: bool,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut idle = self
            .pool
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        idle.out -= 1;
        if self.sound && !std::thread::panicking() {
            idle.connections.extend(self.connection.take());
        }
        drop(idle);
        self.pool.returned.notify_one();
    }
}
