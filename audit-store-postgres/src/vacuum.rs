//! Writing the tables anew, without what was destroyed.

use async_trait::async_trait;
use audit_core::{Result, Vacuum};
use sqlx_core::executor::Executor as _;
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;

use crate::fault::from_sqlx;
use crate::pool::{Role, to_its_end};
use crate::store::PostgresStore;

/// One table after the other, each in a transaction that others wait for, reads too: appends when it
/// is this month's partition. Each needs the room of a second copy of it. A row that an open
/// transaction of the server could still see stays.
///
/// What it can't reach: the write-ahead log until the server has written over it, the most frequent
/// values in old rows of `pg_statistic` (`VACUUM FULL pg_statistic`, as a superuser), the chunks of a
/// hypertable, replicas and backups.
#[async_trait]
impl Vacuum for PostgresStore {
    async fn vacuum(&self) -> Result<()> {
        let store = self.clone();
        to_its_end(async move { store.rewrite_tables().await }).await
    }
}

impl PostgresStore {
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
}
