//! Writing the tables anew, without what was destroyed.

use std::time::Duration;

use async_trait::async_trait;
use audit_core::{Error, ErrorKind, Result, Vacuum};
use sqlx_core::connection::Connection as _;
use sqlx_core::executor::Executor as _;
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::PgConnection;
use tokio::time::Instant;

use crate::fault::from_sqlx;
use crate::pool::{Role, to_its_end};
use crate::store::PostgresStore;

/// How often it is asked whether somebody may still see what was destroyed.
const POLL: Duration = Duration::from_millis(250);
/// For how long they are waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether a row that was dead when a transaction began, `$1`, is kept for somebody: a transaction that
/// is older, prepared ones too, or a replica that says what it reads. VACUUM shows a snapshot, and keeps
/// nothing for it. What belongs to no database may be a replica's sender.
const IS_KEPT: &str = "
    SELECT EXISTS (
        SELECT FROM pg_stat_activity a
        WHERE (a.datname = current_database() OR a.datname IS NULL)
            AND greatest(age(a.backend_xid), age(a.backend_xmin)) > age($1::xid8::xid)
            AND a.pid <> pg_backend_pid()
            AND a.pid NOT IN (SELECT v.pid FROM pg_stat_progress_vacuum v)
    ) OR EXISTS (
        SELECT FROM pg_prepared_xacts p
        WHERE p.database = current_database() AND age(p.transaction) > age($1::xid8::xid)
    ) OR EXISTS (
        SELECT FROM pg_replication_slots s WHERE age(s.xmin) > age($1::xid8::xid)
    )";

/// Whether the catalogue keeps such a row for somebody who decodes the write-ahead log.
const IS_DECODED: &str = "
    SELECT EXISTS (
        SELECT FROM pg_replication_slots s WHERE age(s.catalog_xmin) > age($1::xid8::xid)
    )";

const STATISTICS: &str = "pg_catalog.pg_statistic";

/// What is never reached.
const WAL: &str = "PostgreSQL's write-ahead log (pg_wal), until the server has written over it or removed it, \
    and what archives and replicas have of it";
/// What only its owner reaches.
const OLD_STATISTICS: &str = "old rows of PostgreSQL's pg_statistic, which may hold values that were \
    frequent, until the database's owner or a superuser runs VACUUM FULL pg_statistic";
/// What this was never run on.
const CHUNKS: &str = "the chunks of the hypertable audit.events, until each is written anew";

/// One table after the other, each in a transaction that others wait for, reads too: appends when it
/// is this month's partition; then the catalogue with the values that the planner knows as frequent,
/// where the login owns the database. Each needs the room of a second copy of it.
///
/// Transactions that are older than the call, and replicas that ask for it, may still see what was
/// destroyed, and the engine keeps it for them: they are waited for, two minutes at most.
///
/// What it doesn't reach, and names: the write-ahead log until the server has written over it; old rows
/// of `pg_statistic`, where the login isn't the database's owner; the chunks of a hypertable.
#[async_trait]
impl Vacuum for PostgresStore {
    async fn vacuum(&self) -> Result<Vec<String>> {
        let store = self.clone();
        to_its_end(async move { store.write_anew().await }).await
    }
}

impl PostgresStore {
    async fn write_anew(&self) -> Result<Vec<String>> {
        self.wait_for_readers().await?;
        self.rewrite_tables().await?;
        let mut left = vec![WAL];
        if !self.rewrite_statistics().await? {
            left.push(OLD_STATISTICS);
        }
        let mut tx = self.pools().begin(Role::Maintainer, None).await?;
        let (is_hypertable,): (bool,) =
            query_as("SELECT relkind = 'r' FROM pg_class WHERE oid = 'audit.events'::regclass")
                .fetch_one(&mut *tx)
                .await
                .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        if is_hypertable {
            left.push(CHUNKS);
        }
        Ok(left.into_iter().map(str::to_owned).collect())
    }

    /// Waits until nobody is left who may see what is dead by now. Returns the transaction since which.
    async fn wait_for_readers(&self) -> Result<String> {
        let pools = self.pools();
        let mut tx = pools.begin(Role::Maintainer, None).await?;
        let (now,): (String,) = query_as("SELECT pg_current_xact_id()::text")
            .fetch_one(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut tx = pools.begin(Role::Maintainer, None).await?;
            let is_kept = holds(IS_KEPT, &now, &mut tx).await?;
            tx.commit().await.map_err(from_sqlx)?;
            if !is_kept {
                return Ok(now);
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "an older transaction, or a replica, keeps what was destroyed: it can go when that \
                     has ended (pg_stat_activity, pg_prepared_xacts, pg_replication_slots)",
                )
                .with_retry_after(PATIENCE));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn rewrite_tables(&self) -> Result<()> {
        let mut tx = self.pools().begin(Role::Maintainer, None).await?;
        let tables: Vec<(String,)> = query_as("SELECT * FROM audit.tables()")
            .fetch_all(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        for (table,) in tables {
            tracing::info!(table, "writes the table anew");
            let mut tx = self.pools().begin(Role::Maintainer, None).await?;
            tx.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '60s'")
                .await
                .map_err(from_sqlx)?;
            query("SELECT audit.rewrite_table($1)")
                .bind(&table)
                .execute(&mut *tx)
                .await
                .map_err(from_sqlx)?;
            tx.commit().await.map_err(from_sqlx)?;
        }
        Ok(())
    }

    /// Writes the catalogue anew whose rows the tables' new statistics have replaced. Says whether it
    /// holds these no more: the server passes over it, with no more than a warning, for a login that is
    /// not the database's owner.
    async fn rewrite_statistics(&self) -> Result<bool> {
        let replaced = self.wait_for_readers().await?;
        let pool = self.pools().pool(Role::Maintainer);
        // As the login itself, and not in a transaction; nobody else is to have these settings.
        let mut login = pool.acquire().await.map_err(from_sqlx)?.detach();
        for setting in ["SET statement_timeout = 0", "SET lock_timeout = '60s'"] {
            login.execute(setting).await.map_err(from_sqlx)?;
        }
        let before = file_of(STATISTICS, &mut login).await?;
        let rewrite = format!("VACUUM (FULL) {STATISTICS}");
        login.execute(&*rewrite).await.map_err(from_sqlx)?;
        let is_new = file_of(STATISTICS, &mut login).await? != before;
        let is_decoded = holds(IS_DECODED, &replaced, &mut login).await?;
        login.close().await.map_err(from_sqlx)?;
        Ok(is_new && !is_decoded)
    }
}

/// Whether a question has a yes for a transaction.
async fn holds(question: &'static str, transaction: &str, on: &mut PgConnection) -> Result<bool> {
    query_scalar(question)
        .bind(transaction)
        .fetch_one(on)
        .await
        .map_err(from_sqlx)
}

/// The file of a table, which is another one when it was written anew.
async fn file_of(table: &str, on: &mut PgConnection) -> Result<Option<String>> {
    query_scalar("SELECT pg_relation_filenode($1::regclass)::text")
        .bind(table)
        .fetch_one(on)
        .await
        .map_err(from_sqlx)
}
