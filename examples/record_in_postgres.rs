//! Record in the application's own PostgreSQL transaction: the event is logged exactly when the
//! application's change is committed. The address is as for the example `postgres`. Nobody may call the
//! function `audit.record` until a superuser, or the role `audit_owner`, has said so, once:
//!
//! ```sql
//! GRANT USAGE ON SCHEMA audit TO audit;
//! GRANT EXECUTE ON FUNCTION audit.record(uuid, text) TO audit;
//! ```
//!
//! ```sh
//! AUDIT_STORE_URL=postgres://audit:…@localhost/audit \
//!     cargo run -p examples --example record_in_postgres
//! ```
//!
//! Any other driver calls the function `audit.record` to the same end; `record_in_postgres.py` does it
//! from Python.
#![allow(clippy::print_stdout)] // an example shows what it does

use std::sync::Arc;
use std::time::Duration;

use audit_core::{AuditLog, Event, Filter, PageRequest, SystemClock, TenantScope};
use audit_store_postgres::{PostgresOptions, PostgresStore, migrate, outbox};
use sqlx_core::connection::Connection as _;
use sqlx_core::query::query;
use sqlx_postgres::PgConnection;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("AUDIT_STORE_URL")?;
    let options = PostgresOptions::new(url.clone());
    migrate(&options).await?;
    let store = Arc::new(PostgresStore::connect(options).await?);
    let log = AuditLog::builder(Arc::clone(&store))
        .outbox(Arc::new(store.outbox()))
        .build();
    // The relay is among them; it may as well run in audit-server.
    let workers = log.start();
    let tenant = log.create_tenant(None, "Example Ltd").await?.id;
    let reader = log.tenant(TenantScope::trusted(tenant, "example"));

    // The application's own connection, and a table that is gone with it. An application has a login of
    // its own.
    let mut app = PgConnection::connect(&url).await?;
    query("CREATE TEMPORARY TABLE invoices (id text PRIMARY KEY, state text NOT NULL)")
        .execute(&mut app)
        .await?;

    // Committed: change and event, or neither.
    let mut transaction = app.begin().await?;
    query("INSERT INTO invoices VALUES ('inv-1', 'approved')")
        .execute(&mut *transaction)
        .await?;
    let event = Event::update("invoice", "inv-1")
        .action("invoice.approve")
        .user("ann");
    let id = outbox::record_in(&mut transaction, tenant, event, &SystemClock).await?;
    transaction.commit().await?;

    // Rolled back: neither.
    let mut transaction = app.begin().await?;
    query("INSERT INTO invoices VALUES ('inv-2', 'approved')")
        .execute(&mut *transaction)
        .await?;
    let event = Event::update("invoice", "inv-2");
    outbox::record_in(&mut transaction, tenant, event, &SystemClock).await?;
    transaction.rollback().await?;

    // The relay looks a few times a second.
    let entry = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match reader.get(id).await {
                Ok(entry) => break entry,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await?;
    println!("{}", entry.to_json());

    let page = reader.list(&Filter::new(), &PageRequest::first()).await?;
    assert_eq!(page.items.len(), 1);
    workers.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
