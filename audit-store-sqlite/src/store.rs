//! The store's handle, and its reads.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use audit_core::tlog::Hash;
use audit_core::{
    Batch, Counter, Declaration, Entry, Erased, Erasure, Error, ErrorKind, EventId, Filter, Grown,
    Head, LogStore, Lookup, Mark, Page, PageRequest, Permission, Prune, Pruned, Receipt, Result,
    Snapshot, TenantId, TenantScope,
};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::fault::from_sqlite;
use crate::lock::WriterLock;
use crate::reader::{Reader, Readers, readable_tenant};
use crate::retention::existing_tenant;
use crate::snapshot::SqliteSnapshot;
use crate::writer::{Writer, WriterHandle};
use crate::{
    SqliteIndex, SqliteOptions, SqliteQueue, TimeSource, head, index, list, prune, row, schema,
};

/// No further entry joins a read that has so much raw JSON.
const READ_BYTES: usize = 16 << 20;

/// Up to this many new rows, the tenants that grew are read from the rows, beyond from the heads.
const FEW_ROWS: u64 = 2_000;

/// A log store in a SQLite file, with its tenants and credentials, an index and a queue beside it.
/// Cheap to clone; the last clone closes the file.
///
/// ```
/// use audit_core::{Batch, Event, LogStore, PreparedEvent, SystemClock, TenantId, TenantScope};
/// use audit_store_sqlite::{SqliteOptions, SqliteStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> audit_core::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("audit.db");
/// let store = SqliteStore::open(path, SqliteOptions::new())?;
/// let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse().unwrap();
/// let scope = TenantScope::trusted(tenant, "example");
///
/// let event = Event::update("invoice", "inv-1").user("ann");
/// let event = PreparedEvent::new(tenant, event, &SystemClock, &[])?;
/// let batch = Batch::new(scope.clone(), vec![event]).creating_tenant();
/// for outcome in store.append(&[batch]).await? {
///     assert_eq!(outcome?[0].seq, 0);
/// }
/// assert_eq!(store.head(&scope).await?.size(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

/// Fields are dropped in this order: the writer's connection closes last and empties the
/// write-ahead log, then the lock is released.
#[derive(Debug)]
struct Inner {
    path: PathBuf,
    options: SqliteOptions,
    index: Arc<SqliteIndex>,
    /// Up to where each tenant's pruned entries were taken out of the index by this process.
    unindexed: Mutex<HashMap<TenantId, u64>>,
    queue: Mutex<Option<SqliteQueue>>,
    readers: Readers,
    writer: Option<WriterHandle>,
    _lock: Option<WriterLock>,
}

impl SqliteStore {
    /// Opens the log in the file `path`, and creates it when there is none, with its index beside it
    /// as `<stem>.index.db`. The folder must exist. Blocks for as long as the files take to open.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when another process, which it names, writes the file, or when it
    /// can't be opened; [`ErrorKind::Refused`] when a newer program made it.
    pub fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let index = path.with_extension("index.db");
        let (writer, lock) = if options.read_only {
            schema::open_reader(&path)?;
            (None, None)
        } else {
            let lock = WriterLock::take(&path)?;
            let conn = schema::open_writer(&path, options.max_pages)?;
            index::remove_unless_of(&index, &conn)?;
            (
                Some(WriterHandle::new(Writer::new(conn, options.time.clone()))),
                Some(lock),
            )
        };
        let index = SqliteIndex::open(index, options.read_only)?;
        let readers = Readers::new(path.clone(), options.readers);
        let inner = Inner {
            path,
            options,
            index: Arc::new(index),
            unindexed: Mutex::default(),
            queue: Mutex::default(),
            readers,
            writer,
            _lock: lock,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The index beside the log: filters and full text.
    pub fn search_index(&self) -> Arc<SqliteIndex> {
        Arc::clone(&self.inner.index)
    }

    /// The durable queue beside the log, in `<stem>.queue.db`. The first call opens the file, and
    /// blocks for as long as that takes.
    ///
    /// # Errors
    /// Those of [`SqliteQueue::open`]; [`ErrorKind::Refused`] when the store was opened for reading
    /// only.
    pub fn queue(&self) -> Result<SqliteQueue> {
        self.writer()?;
        let mut queue = self
            .inner
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = &*queue {
            return Ok(queue.clone());
        }
        let path = self.inner.path.with_extension("queue.db");
        let opened = match &self.inner.options.time {
            TimeSource::Database => SqliteQueue::open(path),
            TimeSource::Clock(clock) => SqliteQueue::with_clock(path, Arc::clone(clock)),
        }?;
        Ok(queue.insert(opened).clone())
    }

    /// The queue beside the log, unless there is no file of it.
    pub(crate) fn existing_queue(&self) -> Result<Option<SqliteQueue>> {
        match self.inner.path.with_extension("queue.db").exists() {
            true => self.queue().map(Some),
            false => Ok(None),
        }
    }

    pub(crate) fn time(&self) -> &TimeSource {
        &self.inner.options.time
    }

    /// Runs `f` on a connection that only reads.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Reader) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.inner.readers.read(f).await
    }

    /// Rows in the order of the tenants' ids: `?1` is the tenant that they come behind, NULL at first, `?2`
    /// how many there are at most.
    pub(crate) async fn read_behind<T: Send + 'static>(
        &self,
        sql: String,
        after: Option<TenantId>,
        limit: usize,
        decode: fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.read(move |reader| {
            let after = after.map(|id| id.as_uuid().into_bytes());
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            reader
                .conn
                .prepare_cached(&sql)
                .and_then(|mut statement| {
                    let rows = statement.query_map(params![after, limit], decode)?;
                    rows.collect()
                })
                .map_err(from_sqlite)
        })
        .await
    }

    /// Runs `f` in a transaction of its own on the writer's thread, and commits when it is `Ok`.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.writer()?
            .run(move |writer: &mut Writer| writer.transact(|conn, _| f(conn)))
            .await
    }

    pub(crate) fn writer(&self) -> Result<&WriterHandle> {
        self.inner
            .writer
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Refused, "the store was opened for reading only"))
    }

    /// Reads one tenant's log in one read transaction, so that the head and the rows agree.
    async fn read_log<T: Send + 'static>(
        &self,
        scope: &TenantScope,
        permission: Permission,
        f: impl FnOnce(&Connection, i64, &Head) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        scope.require(permission)?;
        let tenant = scope.tenant();
        self.read(move |reader| {
            let conn = reader.conn.transaction().map_err(from_sqlite)?;
            let no = readable_tenant(&conn, tenant)?;
            let head = head::head(&conn, no, tenant)?;
            f(&conn, no, &head)
        })
        .await
    }
}

fn entry_at(conn: &Connection, no: i64, tenant: TenantId, seq: u64) -> Result<Option<Entry>> {
    let mut statement = conn
        .prepare_cached(&format!(
            "SELECT {} FROM entries WHERE tenant = ?1 AND seq = ?2",
            row::COLUMNS
        ))
        .map_err(from_sqlite)?;
    let stored = statement
        .query_row(params![no, seq as i64], |r| row::stored_entry(r, tenant))
        .optional()
        .map_err(from_sqlite)?;
    stored.map(|stored| stored.verify()).transpose()
}

/// The leaf data of entries that are left.
fn present_leaves(
    conn: &Connection,
    no: i64,
    tenant: TenantId,
    range: Range<u64>,
) -> Result<Vec<(u64, String)>> {
    conn.prepare_cached(&format!(
        "SELECT {} FROM entries WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3 ORDER BY seq",
        row::COLUMNS
    ))
    .and_then(|mut statement| {
        statement
            .query_map(params![no, range.start as i64, range.end as i64], |r| {
                let stored = row::stored_entry(r, tenant)?;
                Ok((stored.entry.seq, stored.leaf_data()))
            })?
            .collect()
    })
    .map_err(from_sqlite)
}

fn look_up(conn: &Connection, no: i64, head: &Head, id: EventId) -> Result<Lookup> {
    let known = conn
        .prepare_cached("SELECT seq, created_at, leaf_hash FROM ids WHERE tenant = ?1 AND id = ?2")
        .and_then(|mut statement| {
            statement
                .query_row(params![no, id.as_uuid().as_bytes()], |r| {
                    let entry = row::time(r, 1).and_then(|at| Ok((at, row::hash(r, 2)?)));
                    Ok((row::position(r, 0)?, entry))
                })
                .optional()
        })
        .map_err(|e| from_sqlite(e).with_tenant(head.tenant))?;
    match (known, head.pruned_by) {
        (None, _) => Ok(Lookup::Missing),
        (Some((seq, ..)), Some(by)) if seq < head.pruned_below => Ok(Lookup::Pruned { by }),
        (Some((seq, entry)), _) => {
            let corrupt = || Error::corrupt(head.tenant, seq);
            let (created_at, leaf_hash) = entry.map_err(|e| corrupt().with_source(e))?;
            let found = entry_at(conn, no, head.tenant, seq)?.filter(|entry| {
                (entry.id, entry.created_at, entry.leaf_hash) == (id, created_at, leaf_hash)
            });
            match found {
                Some(entry) => Ok(Lookup::Found(Box::new(entry))),
                None => Err(corrupt()),
            }
        }
    }
}

/// Entries that one step takes out of the index.
const UNINDEX: usize = 500;

/// How long a step goes on to further tenants.
const UNINDEX_STEP: Duration = Duration::from_millis(50);

impl SqliteStore {
    /// One step of taking pruned entries out of the index; true when there is more to do.
    async fn sweep_index(&self) -> Result<bool> {
        let start = Instant::now();
        let pruned = self
            .read(|reader| {
                reader
                    .conn
                    .prepare_cached(
                        "SELECT t.id, h.pruned_below FROM heads h JOIN tenants t ON t.no = h.tenant
                         WHERE h.pruned_below > 0",
                    )
                    .and_then(|mut statement| {
                        statement
                            .query_map([], |r| Ok((row::tenant_id(r, 0)?, row::position(r, 1)?)))?
                            .collect::<rusqlite::Result<Vec<_>>>()
                    })
                    .map_err(from_sqlite)
            })
            .await?;
        let unindexed = || {
            self.inner
                .unindexed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        for (tenant, below) in pruned {
            if unindexed().get(&tenant).is_some_and(|done| *done >= below) {
                continue;
            }
            if start.elapsed() > UNINDEX_STEP
                || self.inner.index.drop_below(tenant, below, UNINDEX).await?
            {
                return Ok(true);
            }
            unindexed().insert(tenant, below);
        }
        Ok(false)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LogStore for SqliteStore {
    async fn append(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        self.writer()?.append(batches.to_vec()).await
    }

    async fn get(&self, scope: &TenantScope, ids: &[EventId]) -> Result<Vec<Lookup>> {
        let ids = ids.to_vec();
        self.read_log(scope, Permission::Read, move |conn, no, head| {
            ids.into_iter()
                .map(|id| look_up(conn, no, head, id))
                .collect()
        })
        .await
    }

    async fn at(&self, scope: &TenantScope, seqs: &[u64]) -> Result<Vec<Entry>> {
        let seqs = seqs.to_vec();
        self.read_log(scope, Permission::Read, move |conn, no, head| {
            seqs.into_iter()
                .filter(|seq| (head.pruned_below..head.size()).contains(seq))
                .filter_map(|seq| entry_at(conn, no, head.tenant, seq).transpose())
                .collect()
        })
        .await
    }

    async fn list(
        &self,
        scope: &TenantScope,
        filter: &Filter,
        page: &PageRequest,
    ) -> Result<Page<Entry>> {
        let (filter, page, index) = (filter.clone(), *page, self.search_index());
        self.read_log(scope, Permission::Read, move |conn, no, head| {
            let found = list::list(conn, &index, head.tenant, no, head, &filter, &page)?;
            let items = found
                .items
                .into_iter()
                .map(|stored| stored.verify())
                .collect::<Result<_>>()?;
            let mut page = Page::new(items, found.next);
            page.indexed_through = found.indexed_through;
            Ok(page)
        })
        .await
    }

    async fn read(&self, scope: &TenantScope, from: u64, limit: usize) -> Result<Vec<Entry>> {
        self.read_log(scope, Permission::Stream, move |conn, no, head| {
            let from = from.max(head.pruned_below);
            if from >= head.size() {
                return Ok(Vec::new());
            }
            let mut statement = conn
                .prepare_cached(&format!(
                    "SELECT {} FROM entries WHERE tenant = ?1 AND seq >= ?2 ORDER BY seq LIMIT ?3",
                    row::COLUMNS
                ))
                .map_err(from_sqlite)?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut rows = statement
                .query(params![no, from as i64, limit])
                .map_err(from_sqlite)?;
            let mut entries = Vec::new();
            let mut bytes = 0;
            while bytes < READ_BYTES
                && let Some(row) = rows.next().map_err(from_sqlite)?
            {
                let stored = row::stored_entry(row, head.tenant).map_err(from_sqlite)?;
                bytes += stored.entry.fields.raw_len();
                entries.push(stored.into_entry());
            }
            Ok(entries)
        })
        .await
    }

    async fn snapshot(&self, scope: &TenantScope) -> Result<Box<dyn Snapshot>> {
        scope.require(Permission::Export)?;
        let path = self.inner.path.clone();
        let open = move || {
            Ok(Reader {
                conn: schema::open_reader(&path)?,
            })
        };
        let max_age = self.inner.options.max_snapshot_age;
        Ok(Box::new(
            SqliteSnapshot::take(open, scope.tenant(), max_age).await?,
        ))
    }

    async fn counters(&self, scope: &TenantScope, days: Range<i32>) -> Result<Vec<Counter>> {
        self.read_log(scope, Permission::Read, move |conn, no, _| {
            conn.prepare_cached(
                "SELECT day, action_type, severity, outcome, count FROM counters
                 WHERE tenant = ?1 AND day >= ?2 AND day < ?3",
            )
            .and_then(|mut statement| {
                statement
                    .query_map(params![no, days.start, days.end], |r| {
                        Ok(Counter {
                            day: r.get(0)?,
                            action_type: row::name(r, 1)?,
                            severity: row::name(r, 2)?,
                            outcome: row::name(r, 3)?,
                            count: row::position(r, 4)?,
                        })
                    })?
                    .collect()
            })
            .map_err(from_sqlite)
        })
        .await
    }

    async fn head(&self, scope: &TenantScope) -> Result<Head> {
        self.read_log(scope, Permission::Read, |_, _, head| Ok(head.clone()))
            .await
    }

    async fn hashes(&self, scope: &TenantScope, level: u8, range: Range<u64>) -> Result<Vec<Hash>> {
        self.read_log(scope, Permission::Read, move |conn, no, head| {
            head::hashes(conn, no, head.tenant, head.size(), level, range)
        })
        .await
    }

    async fn leaves(&self, scope: &TenantScope, range: Range<u64>) -> Result<Vec<(u64, String)>> {
        self.read_log(scope, Permission::Read, move |conn, no, head| {
            let present = range.start.max(head.pruned_below)..range.end.min(head.size());
            let mut leaves = prune::kept_leaves(conn, no, head.tenant, range)?;
            leaves.extend(present_leaves(conn, no, head.tenant, present)?);
            Ok(leaves)
        })
        .await
    }

    async fn erase(&self, scope: &TenantScope, erasure: &Erasure) -> Result<Erased> {
        scope.require(Permission::Erase)?;
        let (scope, erasure) = (scope.clone(), erasure.clone());
        self.writer()?
            .run(move |writer: &mut Writer| writer.erase(&scope, &erasure))
            .await
    }

    async fn declare(&self, scope: &TenantScope, declaration: &Declaration) -> Result<Receipt> {
        scope.require(Permission::Cleanup)?;
        let (scope, declaration) = (scope.clone(), declaration.clone());
        self.writer()?
            .run(move |writer: &mut Writer| writer.declare(&scope, &declaration))
            .await
    }

    async fn prune(&self, scope: &TenantScope, prune: &Prune) -> Result<Pruned> {
        scope.require(Permission::Cleanup)?;
        self.prune_prefix(scope, prune).await
    }

    async fn sweep(&self) -> Result<bool> {
        let more = self
            .writer()?
            .run(|writer: &mut Writer| writer.sweep())
            .await?;
        Ok(more || self.sweep_deleted().await? || self.sweep_index().await?)
    }

    async fn grown_since(&self, since: Mark) -> Result<Grown> {
        self.read(move |reader| {
            let conn = reader.conn.transaction().map_err(from_sqlite)?;
            grown_since(&conn, since).map_err(from_sqlite)
        })
        .await
    }

    async fn cursor(&self, tenant: TenantId, consumer: &str) -> Result<u64> {
        let consumer = consumer.to_owned();
        self.read(move |reader| {
            let position = reader
                .conn
                .prepare_cached(
                    "SELECT position FROM cursors
                     WHERE tenant = (SELECT no FROM tenants WHERE id = ?1) AND consumer = ?2",
                )
                .and_then(|mut statement| {
                    let tenant = tenant.as_uuid().as_bytes();
                    statement
                        .query_row(params![tenant, consumer], |r| row::position(r, 0))
                        .optional()
                })
                .map_err(from_sqlite)?;
            Ok(position.unwrap_or(0))
        })
        .await
    }

    async fn advance(
        &self,
        tenant: TenantId,
        consumer: &str,
        required: bool,
        position: u64,
    ) -> Result<()> {
        let consumer = consumer.to_owned();
        self.write(move |conn| {
            let no = existing_tenant(conn, tenant)?;
            conn.prepare_cached(
                "INSERT INTO cursors (tenant, consumer, required, position)
                 VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET required = excluded.required,
                    position = max(position, excluded.position)",
            )
            .and_then(|mut statement| {
                let position = i64::try_from(position).unwrap_or(i64::MAX);
                statement.execute(params![no, consumer, required, position])
            })
            .map(drop)
            .map_err(from_sqlite)
        })
        .await
    }

    async fn ping(&self) -> Result<()> {
        self.read(|reader| {
            reader
                .conn
                .query_row("SELECT 1", [], |_| Ok(()))
                .map_err(from_sqlite)
        })
        .await
    }
}

/// The mark is the number of the newest row: rows are numbered as they are committed.
fn grown_since(conn: &Connection, since: Mark) -> rusqlite::Result<Grown> {
    let top = conn
        .prepare_cached("SELECT coalesce(max(n), 0) FROM entries")?
        .query_row([], |r| row::position(r, 0))?;
    if top <= since.0 {
        return Ok(Grown::new(Vec::new(), since));
    }
    let mut statement = if top - since.0 <= FEW_ROWS {
        conn.prepare_cached(
            "SELECT t.id, h.size FROM heads h JOIN tenants t ON t.no = h.tenant
             WHERE h.tenant IN (SELECT tenant FROM entries WHERE n > ?1)",
        )?
    } else {
        conn.prepare_cached(
            "SELECT t.id, h.size FROM heads h JOIN tenants t ON t.no = h.tenant
             WHERE h.last_n > ?1",
        )?
    };
    let since = i64::try_from(since.0).unwrap_or(i64::MAX);
    let tenants = statement
        .query_map([since], |r| {
            Ok((row::tenant_id(r, 0)?, row::position(r, 1)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Grown::new(tenants, Mark(top)))
}
