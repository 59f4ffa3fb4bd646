//! The store's handle, and its reads.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use audit_core::tlog::Hash;
use audit_core::{
    Batch, Counter, Declaration, Entry, Erased, Erasure, Error, ErrorKind, EventId, Filter, Grown,
    Head, LogStore, Lookup, Mark, Page, PageRequest, Permission, Prune, Pruned, Receipt, Result,
    Snapshot, StoredEntry, TenantId, TenantScope,
};
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_postgres::{PgPool, PgRow};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::fault::{at_start, from_sqlx};
use crate::head::{self, readable_head, unknown_tenant};
use crate::list::{self, CountedBy, Window};
use crate::pool::{Pools, Role, Tx, to_its_end};
use crate::prune::Drops;
use crate::retention::exists;
use crate::snapshot::PostgresSnapshot;
use crate::{PostgresIndex, PostgresOptions, PostgresOutbox, PostgresQueue, migrate, prune, row};

/// No further entry joins a read that has so much raw JSON.
const READ_BYTES: usize = 16 << 20;

/// The most entries that one read holds at once, whatever it is asked for.
const READ_ENTRIES: usize = 10_000;

/// A log store in a PostgreSQL database, with its tenants and credentials. Cheap to clone; any number
/// of them, in any number of processes, may use one database.
///
/// ```no_run
/// use audit_core::{Batch, Event, LogStore, PreparedEvent, SystemClock, TenantId, TenantScope};
/// use audit_store_postgres::{PostgresOptions, PostgresStore, migrate};
///
/// # async fn example() -> audit_core::Result<()> {
/// let options = PostgresOptions::new("postgres://audit@localhost/audit");
/// migrate(&options).await?;
/// let store = PostgresStore::connect(options).await?;
/// let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse().unwrap();
/// let scope = TenantScope::trusted(tenant, "example");
///
/// let event = Event::update("invoice", "inv-1").user("ann");
/// let event = PreparedEvent::new(tenant, event, &SystemClock, &[])?;
/// let batch = Batch::new(scope.clone(), vec![event]).creating_tenant();
/// for outcome in store.append(&[batch]).await? {
///     assert_eq!(outcome?[0].seq, 0);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PostgresStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: PostgresOptions,
    pools: Pools,
    /// Months of which there is a partition, as far as this process knows.
    months: Mutex<BTreeSet<i32>>,
    drops: Mutex<Drops>,
    snapshots: Arc<Semaphore>,
}

impl PostgresStore {
    /// Rows in the order of the tenants' ids: `$1` is the tenant that they come behind, NULL at first, `$2`
    /// how many there are at most.
    pub(crate) async fn rows_behind(
        &self,
        role: Role,
        sql: &str,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Vec<PgRow>> {
        let mut tx = self.pools().begin(role, None).await?;
        query(sql)
            .bind(after.map(TenantId::into_uuid))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *tx)
            .await
            .map_err(from_sqlx)
    }

    /// Connects to a migrated database, and checks the server, the schema and each login.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when the server is older than 15, the schema another one than this
    /// program's, a login is a superuser or lacks a role, or an address can't be read;
    /// [`ErrorKind::Unavailable`] when the database is away.
    pub async fn connect(options: PostgresOptions) -> Result<Self> {
        Self::open(options).await.map_err(at_start)
    }

    async fn open(options: PostgresOptions) -> Result<Self> {
        let pools = Pools::open(&options).await?;
        let mut tx = pools.begin(Role::Writer, None).await?;
        let (version,): (i32,) = query_as("SELECT coalesce(max(version), 0) FROM audit.migrations")
            .fetch_one(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        migrate::check_schema(version, true)?;
        let inner = Inner {
            snapshots: Arc::new(Semaphore::new(options.snapshots.max(1))),
            options,
            pools,
            months: Mutex::default(),
            drops: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Closes all connections, and waits until those in use are given back.
    pub async fn close(&self) {
        self.inner.pools.close().await;
    }

    /// The text index in the same database.
    pub fn search_index(&self) -> PostgresIndex {
        PostgresIndex::new(self)
    }

    /// The durable queue in the same database.
    pub fn queue(&self) -> PostgresQueue {
        PostgresQueue::new(self)
    }

    /// The outbox in the same database.
    pub fn outbox(&self) -> PostgresOutbox {
        PostgresOutbox::new(self)
    }

    pub(crate) fn options(&self) -> &PostgresOptions {
        &self.inner.options
    }

    pub(crate) fn pools(&self) -> &Pools {
        &self.inner.pools
    }

    /// The connections of what belongs to no tenant's log, as the login.
    pub(crate) fn writer_pool(&self) -> &PgPool {
        self.pools().pool(Role::Writer)
    }

    pub(crate) fn months(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.inner
            .months
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn drops(&self) -> MutexGuard<'_, Drops> {
        self.inner
            .drops
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a read of a tenant's log, of one moment, with the head as of it. The transaction ends
    /// when it is dropped.
    pub(crate) async fn begin_read(
        &self,
        scope: &TenantScope,
        permission: Permission,
    ) -> Result<(Tx, Head)> {
        scope.require(permission)?;
        let tenant = scope.tenant();
        let mut tx = self.pools().begin(Role::Reader, Some(tenant)).await?;
        let head = readable_head(&mut tx, tenant).await?;
        Ok((tx, head))
    }
}

/// Rows in the order of what was asked for, whose place is their first column.
fn in_order(rows: &[PgRow]) -> Result<Vec<&PgRow>> {
    let mut placed = rows
        .iter()
        .map(|r| Ok((row::get::<i64>(r, 0)?, r)))
        .collect::<Result<Vec<_>>>()?;
    placed.sort_unstable_by_key(|(place, _)| *place);
    Ok(placed.into_iter().map(|(_, r)| r).collect())
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LogStore for PostgresStore {
    async fn append(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>> {
        let (store, batches) = (self.clone(), batches.to_vec());
        to_its_end(async move { store.append_all(&batches).await }).await
    }

    async fn get(&self, scope: &TenantScope, ids: &[EventId]) -> Result<Vec<Lookup>> {
        let (mut tx, head) = self.begin_read(scope, Permission::Read).await?;
        let ids: Vec<Uuid> = ids.iter().map(|id| id.into_uuid()).collect();
        let sql = format!(
            "SELECT w.n, i.seq, i.leaf_hash, e.*
             FROM unnest($1::uuid[]) WITH ORDINALITY AS w (id, n)
             LEFT JOIN LATERAL (
                 SELECT seq, created_at, leaf_hash FROM audit.tenant_ids WHERE id = w.id OFFSET 0
             ) i ON true
             LEFT JOIN LATERAL (
                 SELECT {} FROM audit.tenant_events
                 WHERE created_at = i.created_at AND seq = i.seq AND i.seq >= $2 OFFSET 0
             ) e ON true",
            row::COLUMNS
        );
        let found = query(&sql)
            .bind(&ids)
            .bind(row::signed(head.pruned_below))
            .fetch_all(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        in_order(&found)?
            .into_iter()
            .zip(ids)
            .map(|(r, id)| {
                let seq = row::get::<Option<i64>>(r, 1)?.map(row::unsigned);
                let Some(seq) = seq.transpose().map_err(|e| e.with_tenant(head.tenant))? else {
                    return Ok(Lookup::Missing);
                };
                if let Some(by) = head.pruned_by.filter(|_| seq < head.pruned_below) {
                    return Ok(Lookup::Pruned { by });
                }
                let corrupt = || Error::corrupt(head.tenant, seq);
                if row::get::<Option<i64>>(r, 3)?.is_none() {
                    return Err(corrupt());
                }
                let entry = row::stored_entry(r, 3, head.tenant)?.verify()?;
                let known = row::hash(r, 2).map_err(|e| corrupt().with_source(e))?;
                match (entry.id.into_uuid(), entry.leaf_hash) == (id, known) {
                    true => Ok(Lookup::Found(Box::new(entry))),
                    false => Err(corrupt()),
                }
            })
            .collect()
    }

    async fn at(&self, scope: &TenantScope, seqs: &[u64]) -> Result<Vec<Entry>> {
        let (mut tx, head) = self.begin_read(scope, Permission::Read).await?;
        let seqs: Vec<i64> = seqs
            .iter()
            .filter(|seq| (head.pruned_below..head.size()).contains(seq))
            .map(|seq| row::signed(*seq))
            .collect();
        let sql = format!(
            "SELECT w.n, e.*
             FROM unnest($1::bigint[]) WITH ORDINALITY AS w (seq, n)
             CROSS JOIN LATERAL (
                 SELECT created_at FROM audit.tenant_ids WHERE seq = w.seq OFFSET 0
             ) i
             CROSS JOIN LATERAL (
                 SELECT {} FROM audit.tenant_events
                 WHERE created_at = i.created_at AND seq = w.seq OFFSET 0
             ) e",
            row::COLUMNS
        );
        let found = query(&sql)
            .bind(&seqs)
            .fetch_all(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        in_order(&found)?
            .into_iter()
            .map(|r| row::stored_entry(r, 1, head.tenant)?.verify())
            .collect()
    }

    async fn list(
        &self,
        scope: &TenantScope,
        filter: &Filter,
        page: &PageRequest,
    ) -> Result<Page<Entry>> {
        let (mut tx, head) = self.begin_read(scope, Permission::Read).await?;
        let found = list::list(&mut tx, &head, filter, page).await?;
        let items = found
            .items
            .into_iter()
            .map(|stored| stored.verify())
            .collect::<Result<_>>()?;
        Ok(Page::new(items, found.next))
    }

    async fn read(&self, scope: &TenantScope, from: u64, limit: usize) -> Result<Vec<Entry>> {
        let (mut tx, head) = self.begin_read(scope, Permission::Stream).await?;
        let window = Window {
            seqs: from.max(head.pruned_below)..head.size(),
            entries: limit.min(READ_ENTRIES),
            bytes: READ_BYTES,
            counted_by: CountedBy::Server,
        };
        let found = list::window(&mut tx, &head, &Filter::new(), window).await?;
        let entries = found.into_entries();
        entries
            .map(|stored| stored.map(StoredEntry::into_entry))
            .collect()
    }

    async fn snapshot(&self, scope: &TenantScope) -> Result<Box<dyn Snapshot>> {
        scope.require(Permission::Export)?;
        let permit = Arc::clone(&self.inner.snapshots)
            .try_acquire_owned()
            .map_err(|_| {
                Error::new(
                    ErrorKind::Unavailable,
                    "as many snapshots as may be are open",
                )
            })?;
        let snapshot = PostgresSnapshot::take(self.options(), scope.tenant(), permit).await?;
        Ok(Box::new(snapshot))
    }

    async fn counters(&self, scope: &TenantScope, days: Range<i32>) -> Result<Vec<Counter>> {
        let (mut tx, _) = self.begin_read(scope, Permission::Read).await?;
        let found = query(
            "SELECT day, action_type, severity, outcome, count FROM audit.tenant_counters
             WHERE day >= $1 AND day < $2",
        )
        .bind(days.start)
        .bind(days.end)
        .fetch_all(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        found.iter().map(prune::decode_counter).collect()
    }

    async fn head(&self, scope: &TenantScope) -> Result<Head> {
        let (_, head) = self.begin_read(scope, Permission::Read).await?;
        Ok(head)
    }

    async fn hashes(&self, scope: &TenantScope, level: u8, range: Range<u64>) -> Result<Vec<Hash>> {
        let (mut tx, head) = self.begin_read(scope, Permission::Read).await?;
        head::hashes(&mut tx, &head, level, range).await
    }

    async fn leaves(&self, scope: &TenantScope, range: Range<u64>) -> Result<Vec<(u64, String)>> {
        let (mut tx, head) = self.begin_read(scope, Permission::Read).await?;
        let kept: Vec<(i64, String)> = query_as(
            "SELECT seq, leaf_data FROM audit.tenant_kept_leaves
             WHERE seq >= $1 AND seq < $2 ORDER BY seq",
        )
        .bind(row::signed(range.start))
        .bind(row::signed(range.end))
        .fetch_all(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        let mut leaves = kept
            .into_iter()
            .map(|(seq, data)| Ok((row::unsigned(seq)?, data)))
            .collect::<Result<Vec<_>>>()?;
        let mut seqs = range.start.max(head.pruned_below)..range.end.min(head.size());
        while !seqs.is_empty() {
            let window = Window {
                seqs: seqs.clone(),
                entries: READ_ENTRIES,
                bytes: READ_BYTES,
                counted_by: CountedBy::Server,
            };
            let found = list::window(&mut tx, &head, &Filter::new(), window).await?;
            seqs.start = found.next()?;
            for stored in found.into_entries() {
                let stored = stored?;
                leaves.push((stored.entry.seq, stored.leaf_data()));
            }
        }
        Ok(leaves)
    }

    async fn erase(&self, scope: &TenantScope, erasure: &Erasure) -> Result<Erased> {
        scope.require(Permission::Erase)?;
        let (store, scope, erasure) = (self.clone(), scope.clone(), erasure.clone());
        to_its_end(async move { store.erase_entries(&scope, &erasure).await }).await
    }

    async fn declare(&self, scope: &TenantScope, declaration: &Declaration) -> Result<Receipt> {
        scope.require(Permission::Cleanup)?;
        let (store, scope, declaration) = (self.clone(), scope.clone(), declaration.clone());
        to_its_end(async move { store.declare_entry(&scope, &declaration).await }).await
    }

    async fn prune(&self, scope: &TenantScope, prune: &Prune) -> Result<Pruned> {
        scope.require(Permission::Cleanup)?;
        let (store, scope, prune) = (self.clone(), scope.clone(), prune.clone());
        to_its_end(async move { store.prune_prefix(&scope, &prune).await }).await
    }

    async fn sweep(&self) -> Result<bool> {
        let store = self.clone();
        to_its_end(async move { store.sweep_step().await }).await
    }

    /// The mark is the oldest transaction that still runs: whatever it or a later one appends has
    /// its number or a larger one, however late it commits. While a transaction of the cluster stays
    /// open that has written anything, tenants that grew since it began are told again and again.
    async fn grown_since(&self, since: Mark) -> Result<Grown> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let found = query(
            "SELECT NULL, NULL, pg_snapshot_xmin(pg_current_snapshot())::text::bigint
             UNION ALL
             SELECT tenant_id, size, NULL
             FROM (
                 SELECT CASE
                     WHEN pg_snapshot_xmin(pg_current_snapshot()) < greatest($1, 1)::text::xid8
                     THEN 0 ELSE $1 END OFFSET 0
             ) AS since (mark), audit.heads
             -- A database that was put back to an earlier state counts from there again.
             WHERE changed >= greatest(since.mark, 1)::text::xid8 AND era >= since.mark >> 8",
        )
        .bind(row::signed(since.0))
        .fetch_all(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        let mut grown = Grown::new(Vec::with_capacity(found.len()), since);
        for r in &found {
            match row::get::<Option<Uuid>>(r, 0)? {
                Some(tenant) => {
                    let size = row::position(r, 1)?;
                    grown.tenants.push((TenantId::new(tenant), size));
                }
                None => grown.mark = Mark(row::position(r, 2)?),
            }
        }
        Ok(grown)
    }

    async fn cursor(&self, tenant: TenantId, consumer: &str) -> Result<u64> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let position: Option<(i64,)> =
            query_as("SELECT position FROM audit.cursors WHERE tenant_id = $1 AND consumer = $2")
                .bind(tenant.into_uuid())
                .bind(consumer)
                .fetch_optional(&mut *tx)
                .await
                .map_err(from_sqlx)?;
        position.map_or(Ok(0), |(position,)| row::unsigned(position))
    }

    async fn advance(
        &self,
        tenant: TenantId,
        consumer: &str,
        required: bool,
        position: u64,
    ) -> Result<()> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        exists(&mut tx, tenant).await?;
        let done = query(
            "INSERT INTO audit.cursors AS c (tenant_id, consumer, required, position)
             SELECT tenant_id, $2, $3, $4 FROM audit.tenants WHERE tenant_id = $1
             ON CONFLICT (tenant_id, consumer) DO UPDATE SET required = excluded.required,
                 position = greatest(c.position, excluded.position)",
        )
        .bind(tenant.into_uuid())
        .bind(consumer)
        .bind(required)
        .bind(row::signed(position))
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        if done.rows_affected() == 0 {
            return Err(unknown_tenant(tenant));
        }
        tx.commit().await.map_err(from_sqlx)
    }

    async fn ping(&self) -> Result<()> {
        for role in [Role::Writer, Role::Reader] {
            query("SELECT 1")
                .execute(self.pools().pool(role))
                .await
                .map_err(from_sqlx)?;
        }
        Ok(())
    }
}
