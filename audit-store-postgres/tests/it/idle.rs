//! What tenants cost that record nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use audit_conformance::IdleHarness;
use audit_core::{AuditLog, AuditLogBuilder};
use audit_store_postgres::PostgresStore;
use sqlx_core::executor::Executor as _;
use sqlx_core::query_as::query_as;

use crate::fixture::Database;

impl IdleHarness for Database {
    type Store = PostgresStore;

    async fn open() -> Self {
        Self::open().await
    }

    fn store(&self) -> &PostgresStore {
        &self.store
    }

    fn builder(&self) -> AuditLogBuilder {
        AuditLog::builder(Arc::new(self.store.clone()))
            .queue(Arc::new(self.store.queue()))
            .outbox(Arc::new(self.store.outbox()))
            .search(Arc::new(self.store.search_index()))
    }

    /// By triggers of the superuser on every table of the schema, partitions among them.
    async fn count_writes(&self) {
        let mut admin = self.connect().await;
        admin
            .execute(
                "CREATE TABLE public.written (name text NOT NULL);
                 CREATE FUNCTION public.count_write() RETURNS trigger
                 LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
                 'BEGIN INSERT INTO public.written VALUES (TG_TABLE_NAME); RETURN NULL; END';
                 DO $$
                 DECLARE relation regclass;
                 BEGIN
                     FOR relation IN SELECT oid FROM pg_class
                         WHERE relnamespace = 'audit'::regnamespace AND relkind IN ('r', 'p')
                            AND NOT relispartition
                     LOOP
                         EXECUTE format('CREATE TRIGGER counted AFTER INSERT OR UPDATE OR DELETE ON %s
                             FOR EACH ROW EXECUTE FUNCTION public.count_write()', relation);
                     END LOOP;
                 END $$",
            )
            .await
            .unwrap();
    }

    async fn writes(&self) -> BTreeMap<String, u64> {
        let rows: Vec<(String, i64)> =
            query_as("SELECT name, count(*) FROM public.written GROUP BY name")
                .fetch_all(&mut self.connect().await)
                .await
                .unwrap();
        let rows = rows.into_iter();
        rows.map(|(name, n)| (name, n.unsigned_abs())).collect()
    }
}

audit_conformance::idle!(Database);
