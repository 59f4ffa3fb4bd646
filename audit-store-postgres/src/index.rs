//! Full text in PostgreSQL, for those who run no OpenSearch.
//!
//! A table has a document for each entry: a `tsvector` of lexemes for its words, for its pairs of
//! neighbouring words and for each value that a filter can ask for, under one GIN index. It is derived
//! from the log and filled by the indexer; the log's own tables have no part in it.

mod document;

use std::sync::Arc;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use async_trait::async_trait;
use audit_core::rebuild::rebuild_in_place;
use audit_core::{
    Entry, Error, ErrorKind, Hits, LogStore, Order, Permission, Result, SearchIndex, SearchRequest,
    TenantId, TenantScope, TimeRange,
};
use chrono::{DateTime, Utc};
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::PgConnection;
use uuid::Uuid;

use crate::PostgresStore;
use crate::fault::from_sqlx;
use crate::pool::{Pools, Role, Tx, begin, begin_statement};
use crate::row;
use document::Lexemes;

/// Documents after which other tasks may run.
const YIELD: usize = 64;
/// Bytes of documents that go into one statement.
const PIECE: usize = 4 << 20;
/// Documents of a deleted tenant that one transaction removes.
const FORGOTTEN: i64 = 2_000;
/// So many positions are looked through before the index is asked: a word that is common is found
/// there, and for it the index would give, and sort, a large part of the tenant's log.
const NEAR: u64 = 2_000;

/// The hits of a GIN index come by a bitmap, and are sorted; other readers are kept from both.
const PLANNED: &str = "SET LOCAL enable_bitmapscan = on; SET LOCAL enable_sort = on; ";

/// Filters and full text in tables of the store's database;
/// [`PostgresStore::search_index`](crate::PostgresStore::search_index) gives it. Cheap to clone.
///
/// Any number of processes may fill one index. The tables `audit.index_progress` and
/// `audit.index_documents` may be emptied together at any time: each tenant's log is then indexed
/// again from its beginning, when it grows or an indexer starts. What is swept from a pruned log
/// leaves the index with it. What a removed document held leaves the disk when PostgreSQL vacuums the
/// table.
#[derive(Debug, Clone)]
pub struct PostgresIndex {
    pools: Pools,
}

impl PostgresIndex {
    pub(crate) fn new(store: &PostgresStore) -> Self {
        Self {
            pools: store.pools().clone(),
        }
    }

    async fn read(&self, tenant: TenantId) -> Result<Tx> {
        let start = begin_statement(Role::Reader, Some(tenant));
        begin(self.pools.pool(Role::Reader), format!("{start}{PLANNED}")).await
    }

    async fn write(&self) -> Result<Tx> {
        self.pools.begin(Role::Writer, None).await
    }

    /// Removes some of a tenant's documents, and its progress with the last one; false when there are no
    /// more. Who writes documents of the tenant is waited for.
    async fn forget_some(&self, tenant: TenantId) -> Result<bool> {
        let mut transaction = self.write().await?;
        query("SELECT FROM audit.index_progress WHERE tenant_id = $1 FOR UPDATE")
            .bind(tenant.into_uuid())
            .execute(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        let removed = query(
            "DELETE FROM audit.index_documents WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM audit.index_documents WHERE tenant_id = $1 LIMIT $2))",
        )
        .bind(tenant.into_uuid())
        .bind(FORGOTTEN)
        .execute(&mut *transaction)
        .await
        .map_err(from_sqlx)?;
        let more = removed.rows_affected() > 0;
        if !more {
            query("DELETE FROM audit.index_progress WHERE tenant_id = $1")
                .bind(tenant.into_uuid())
                .execute(&mut *transaction)
                .await
                .map_err(from_sqlx)?;
        }
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(more)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SearchIndex for PostgresIndex {
    /// All in one transaction.
    async fn index(&self, entries: &[Entry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let tenants: BTreeSet<TenantId> = entries.iter().map(|entry| entry.tenant_id).collect();
        let mut transaction = self.write().await?;
        let mut progress = lock(&mut transaction, &tenants).await?;
        let mut documents = Documents::default();
        for (i, entry) in entries.iter().enumerate() {
            if i % YIELD == YIELD - 1 {
                tokio::task::yield_now().await;
            }
            let progress = progress
                .get_mut(&entry.tenant_id)
                .ok_or_else(|| emptied().with_tenant(entry.tenant_id))?;
            // What is here already is passed over, unless it lost something: another process may
            // have indexed it as it was before that.
            if entry.seq < progress.through {
                if entry.erased.is_empty() {
                    continue;
                }
            } else {
                progress.reach(entry.seq)?;
            }
            // Pruned since it was read: whoever sweeps it waits for this transaction, or was before it.
            if progress.begins.is_some_and(|begins| entry.seq < begins) {
                continue;
            }
            documents.add(entry);
            if documents.bytes >= PIECE {
                documents.write(&mut transaction).await?;
            }
        }
        documents.write(&mut transaction).await?;
        let (tenants, through): (Vec<Uuid>, Vec<i64>) = progress
            .iter()
            .map(|(tenant, progress)| (tenant.into_uuid(), row::signed(progress.through)))
            .unzip();
        query(
            "UPDATE audit.index_progress p SET through = reached.through
             FROM unnest($1::uuid[], $2::bigint[]) AS reached (tenant_id, through)
             WHERE p.tenant_id = reached.tenant_id AND p.through < reached.through",
        )
        .bind(tenants)
        .bind(through)
        .execute(&mut *transaction)
        .await
        .map_err(from_sqlx)?;
        transaction.commit().await.map_err(from_sqlx)
    }

    async fn search(&self, scope: &TenantScope, request: &SearchRequest) -> Result<Hits> {
        scope.require(Permission::Read)?;
        let mut transaction = self.read(scope.tenant()).await?;
        let through = through(&mut transaction).await?;
        let hits = Search::new(scope.tenant(), request, through)
            .run(&mut transaction)
            .await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(hits)
    }

    /// Of positions that aren't indexed yet, too: an indexer that read them before they lost something
    /// may still be on its way.
    async fn remove(&self, scope: &TenantScope, current: &[Entry]) -> Result<()> {
        scope.require(Permission::Erase)?;
        let tenant = scope.tenant();
        scope.admit(current)?;
        if current.is_empty() {
            return Ok(());
        }
        let mut transaction = self.write().await?;
        if !lock(&mut transaction, &BTreeSet::from([tenant]))
            .await?
            .is_empty()
        {
            write_all(&mut transaction, current).await?;
        }
        transaction.commit().await.map_err(from_sqlx)
    }

    async fn indexed_through(&self, scope: &TenantScope) -> Result<u64> {
        scope.require(Permission::Read)?;
        let mut transaction = self.read(scope.tenant()).await?;
        let through = through(&mut transaction).await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(through)
    }

    async fn held(&self, scope: &TenantScope, seqs: Range<u64>) -> Result<Vec<u64>> {
        scope.require(Permission::Read)?;
        let mut transaction = self.read(scope.tenant()).await?;
        let held: Vec<i64> = query_scalar(
            "SELECT seq FROM audit.tenant_index_documents WHERE seq >= $1 AND seq < $2 ORDER BY seq",
        )
        .bind(row::signed(seqs.start))
        .bind(row::signed(seqs.end))
        .fetch_all(&mut *transaction)
        .await
        .map_err(from_sqlx)?;
        transaction.commit().await.map_err(from_sqlx)?;
        held.into_iter().map(row::unsigned).collect()
    }

    async fn mend(&self, scope: &TenantScope, missing: &[Entry], surplus: &[u64]) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        let tenant = scope.tenant();
        scope.admit(missing)?;
        if missing.is_empty() && surplus.is_empty() {
            return Ok(());
        }
        let mut transaction = self.write().await?;
        if lock(&mut transaction, &BTreeSet::from([tenant]))
            .await?
            .is_empty()
        {
            return Ok(());
        }
        let surplus: Vec<i64> = surplus.iter().map(|seq| row::signed(*seq)).collect();
        query("DELETE FROM audit.index_documents WHERE tenant_id = $1 AND seq = ANY ($2)")
            .bind(tenant.into_uuid())
            .bind(surplus)
            .execute(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        write_all(&mut transaction, missing).await?;
        transaction.commit().await.map_err(from_sqlx)
    }

    /// Piece by piece, each in a transaction of its own.
    async fn forget(&self, scope: &TenantScope) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        while self.forget_some(scope.tenant()).await? {}
        Ok(())
    }

    /// Document by document, in place.
    async fn rebuild(&self, store: &Arc<dyn LogStore>) -> Result<()> {
        rebuild_in_place(self, &**store).await
    }
}

/// Writes documents of these entries.
async fn write_all(connection: &mut PgConnection, entries: &[Entry]) -> Result<()> {
    let mut documents = Documents::default();
    for (i, entry) in entries.iter().enumerate() {
        if i % YIELD == YIELD - 1 {
            tokio::task::yield_now().await;
        }
        documents.add(entry);
        if documents.bytes >= PIECE {
            documents.write(connection).await?;
        }
    }
    documents.write(connection).await
}

async fn through(connection: &mut PgConnection) -> Result<u64> {
    let through: Option<i64> = query_scalar("SELECT through FROM audit.tenant_index_progress")
        .fetch_optional(connection)
        .await
        .map_err(from_sqlx)?;
    through.map_or(Ok(0), row::unsigned)
}

/// How far a tenant's log is indexed.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    through: u64,
    /// Where the log begins, as its head says; none of a tenant that has no log here.
    begins: Option<u64>,
}

impl Progress {
    /// Goes on behind an entry. What lies before it and isn't here was pruned; or else the index was
    /// emptied while somebody filled it, who then has to begin again.
    fn reach(&mut self, seq: u64) -> Result<()> {
        if seq > self.through && self.begins.is_some_and(|begins| seq > begins) {
            return Err(emptied());
        }
        self.through = seq + 1;
        Ok(())
    }
}

fn emptied() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the index was emptied, and is to be filled from its beginning",
    )
}

/// Keeps others from writing documents of these tenants, and says how far each is. Nothing is said of a
/// deleted tenant that is out of the index, and of one that isn't yet its log begins nowhere.
async fn lock(
    connection: &mut PgConnection,
    tenants: &BTreeSet<TenantId>,
) -> Result<BTreeMap<TenantId, Progress>> {
    let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.into_uuid()).collect();
    // In the order of their ids, both times: no two indexers wait for each other.
    query(
        "INSERT INTO audit.index_progress (tenant_id, through)
         SELECT tenant_id, 0 FROM unnest($1::uuid[]) AS t (tenant_id)
         WHERE NOT EXISTS (
             SELECT FROM audit.heads h WHERE h.tenant_id = t.tenant_id AND h.status = 'deleted'
         )
         ORDER BY tenant_id
         ON CONFLICT (tenant_id) DO NOTHING",
    )
    .bind(&ids)
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    let progress: Vec<(Uuid, i64)> = query_as(
        "SELECT tenant_id, through FROM audit.index_progress WHERE tenant_id = ANY ($1)
         ORDER BY tenant_id FOR UPDATE",
    )
    .bind(&ids)
    .fetch_all(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    // Read behind the lock, so that a prune that somebody else has met is met here.
    let begins: Vec<(Uuid, i64)> = query_as(
        "SELECT tenant_id, CASE WHEN status = 'deleted' THEN $2 ELSE pruned_below END
         FROM audit.heads WHERE tenant_id = ANY ($1)",
    )
    .bind(&ids)
    .bind(i64::MAX)
    .fetch_all(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    let begins: BTreeMap<Uuid, i64> = begins.into_iter().collect();
    progress
        .into_iter()
        .map(|(tenant, through)| {
            let begins = begins.get(&tenant).copied();
            let progress = Progress {
                through: row::unsigned(through)?,
                begins: begins.map(row::unsigned).transpose()?,
            };
            Ok((TenantId::new(tenant), progress))
        })
        .collect()
}

/// Documents on their way into the table, by column.
#[derive(Default)]
struct Documents {
    lexemes: Option<(TenantId, Lexemes)>,
    tenants: Vec<Uuid>,
    seqs: Vec<i64>,
    created: Vec<DateTime<Utc>>,
    occurred: Vec<DateTime<Utc>>,
    erased: Vec<i16>,
    words: Vec<String>,
    bytes: usize,
}

impl Documents {
    fn add(&mut self, entry: &Entry) {
        let tenant = entry.tenant_id;
        let lexemes = match self.lexemes.take().filter(|(known, _)| *known == tenant) {
            Some((_, lexemes)) => lexemes,
            None => Lexemes::new(tenant),
        };
        let words = lexemes.document(&entry.fields);
        self.lexemes = Some((tenant, lexemes));
        self.bytes += words.len();
        self.tenants.push(tenant.into_uuid());
        self.seqs.push(row::signed(entry.seq));
        self.created.push(row::instant(entry.created_at));
        self.occurred.push(row::instant(entry.occurred_at));
        self.erased.push(document::erased(entry));
        self.words.push(words);
    }

    /// Writes them, and empties the list. Erasures only grow, so a document of an entry that had lost
    /// less gives way to one that had lost more, whichever comes first.
    async fn write(&mut self, connection: &mut PgConnection) -> Result<()> {
        let documents = std::mem::take(self);
        if documents.seqs.is_empty() {
            return Ok(());
        }
        query(
            "INSERT INTO audit.index_documents AS d
                 (tenant_id, seq, created_at, occurred_at, erased, words)
             SELECT tenant_id, seq, created_at, occurred_at, erased, words::tsvector
             FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::timestamptz[],
                         $5::smallint[], $6::text[])
                 AS n (tenant_id, seq, created_at, occurred_at, erased, words)
             ON CONFLICT (tenant_id, seq) DO UPDATE
             SET erased = excluded.erased, words = excluded.words
             WHERE excluded.erased & d.erased = d.erased",
        )
        .bind(documents.tenants)
        .bind(documents.seqs)
        .bind(documents.created)
        .bind(documents.occurred)
        .bind(documents.erased)
        .bind(documents.words)
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(from_sqlx)
    }
}

/// A search that is going on.
struct Search<'r> {
    request: &'r SearchRequest,
    words: Option<String>,
    lower: u64,
    upper: u64,
    through: u64,
}

impl<'r> Search<'r> {
    fn new(tenant: TenantId, request: &'r SearchRequest, through: u64) -> Self {
        let filter = &request.filter;
        let mut lower = filter.from_seq.unwrap_or(0);
        let mut upper = filter.to_seq.unwrap_or(u64::MAX).min(through);
        match (request.after, request.order) {
            (Some(after), Order::Ascending) => lower = lower.max(after.saturating_add(1)),
            (Some(after), Order::Descending) => upper = upper.min(after),
            (None, _) => {}
        }
        Self {
            request,
            words: Lexemes::new(tenant).query(filter),
            lower,
            upper,
            through,
        }
    }

    async fn run(&self, connection: &mut PgConnection) -> Result<Hits> {
        // One more than asked for, to know whether there is another.
        let wanted = self.request.limit.saturating_add(1);
        let (near, far) = self.cut();
        let mut seqs = self.near(connection, near, wanted).await?;
        if seqs.len() < wanted && far.0 < far.1 {
            let rest = self.far(connection, far, wanted - seqs.len()).await?;
            seqs.extend(rest);
        }
        let more = seqs.len() == wanted;
        seqs.truncate(self.request.limit);
        Ok(Hits::new(seqs, more, self.through))
    }

    /// The positions that come first in the order asked for, and the others.
    fn cut(&self) -> ((u64, u64), (u64, u64)) {
        let (lower, upper) = (self.lower, self.upper.max(self.lower));
        if self.words.is_none() {
            return ((lower, upper), (upper, upper));
        }
        match self.request.order {
            Order::Ascending => {
                let middle = lower.saturating_add(NEAR).min(upper);
                ((lower, middle), (middle, upper))
            }
            Order::Descending => {
                let middle = upper.saturating_sub(NEAR).max(lower);
                ((middle, upper), (lower, middle))
            }
        }
    }

    /// Looks through these positions one by one, until there are enough hits.
    async fn near(
        &self,
        connection: &mut PgConnection,
        seqs: (u64, u64),
        limit: usize,
    ) -> Result<Vec<u64>> {
        // OFFSET 0 keeps the conditions out of the inner query, and with them the choice of an index.
        let sql = match self.request.order {
            Order::Ascending => {
                "SELECT seq FROM (
                     SELECT seq, created_at, occurred_at, words FROM audit.tenant_index_documents
                     WHERE seq >= $1 AND seq < $2 ORDER BY seq OFFSET 0
                 ) AS near
                 WHERE ($3::text IS NULL OR words @@ $3::text::tsquery)
                   AND ($4::timestamptz IS NULL OR occurred_at >= $4)
                   AND ($5::timestamptz IS NULL OR occurred_at < $5)
                   AND ($6::timestamptz IS NULL OR created_at >= $6)
                   AND ($7::timestamptz IS NULL OR created_at < $7)
                 ORDER BY seq LIMIT $8"
            }
            Order::Descending => {
                "SELECT seq FROM (
                     SELECT seq, created_at, occurred_at, words FROM audit.tenant_index_documents
                     WHERE seq >= $1 AND seq < $2 ORDER BY seq DESC OFFSET 0
                 ) AS near
                 WHERE ($3::text IS NULL OR words @@ $3::text::tsquery)
                   AND ($4::timestamptz IS NULL OR occurred_at >= $4)
                   AND ($5::timestamptz IS NULL OR occurred_at < $5)
                   AND ($6::timestamptz IS NULL OR created_at >= $6)
                   AND ($7::timestamptz IS NULL OR created_at < $7)
                 ORDER BY seq DESC LIMIT $8"
            }
        };
        self.fetch(connection, sql, seqs, limit).await
    }

    /// Asks the index for all hits within these positions, and sorts them.
    async fn far(
        &self,
        connection: &mut PgConnection,
        seqs: (u64, u64),
        limit: usize,
    ) -> Result<Vec<u64>> {
        // The limit stays outside: with it the engine would hope to find enough hits by walking
        // through the positions, and walk through all of them for a word that is rare.
        let sql = match self.request.order {
            Order::Ascending => {
                "WITH hits AS MATERIALIZED (
                     SELECT seq FROM audit.tenant_index_documents
                     WHERE words @@ $3::text::tsquery AND seq >= $1 AND seq < $2
                       AND ($4::timestamptz IS NULL OR occurred_at >= $4)
                       AND ($5::timestamptz IS NULL OR occurred_at < $5)
                       AND ($6::timestamptz IS NULL OR created_at >= $6)
                       AND ($7::timestamptz IS NULL OR created_at < $7)
                 )
                 SELECT seq FROM hits ORDER BY seq LIMIT $8"
            }
            Order::Descending => {
                "WITH hits AS MATERIALIZED (
                     SELECT seq FROM audit.tenant_index_documents
                     WHERE words @@ $3::text::tsquery AND seq >= $1 AND seq < $2
                       AND ($4::timestamptz IS NULL OR occurred_at >= $4)
                       AND ($5::timestamptz IS NULL OR occurred_at < $5)
                       AND ($6::timestamptz IS NULL OR created_at >= $6)
                       AND ($7::timestamptz IS NULL OR created_at < $7)
                 )
                 SELECT seq FROM hits ORDER BY seq DESC LIMIT $8"
            }
        };
        self.fetch(connection, sql, seqs, limit).await
    }

    async fn fetch(
        &self,
        connection: &mut PgConnection,
        sql: &'static str,
        seqs: (u64, u64),
        limit: usize,
    ) -> Result<Vec<u64>> {
        let bounds = |range: TimeRange| (range.from.map(row::instant), range.to.map(row::instant));
        let (occurred_from, occurred_to) = bounds(self.request.filter.occurred);
        let (created_from, created_to) = bounds(self.request.filter.created);
        let seqs: Vec<i64> = query_scalar(sql)
            .bind(row::signed(seqs.0))
            .bind(row::signed(seqs.1))
            .bind(self.words.as_deref())
            .bind(occurred_from)
            .bind(occurred_to)
            .bind(created_from)
            .bind(created_to)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            // Planned for these very words each time: what is a good plan depends on them.
            .persistent(false)
            .fetch_all(connection)
            .await
            .map_err(from_sqlx)?;
        seqs.into_iter().map(row::unsigned).collect()
    }
}
