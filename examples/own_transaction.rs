//! Record in the application's own SQLite transaction: the event is logged exactly when the
//! application's change is committed.
#![allow(clippy::print_stdout)] // an example shows what it does

use std::sync::Arc;
use std::time::Duration;

use audit_core::{AuditLog, Event, Filter, PageRequest, SystemClock, TenantId, TenantScope};
use audit_store_sqlite::outbox::{self, SqliteOutbox};
use audit_store_sqlite::{SqliteOptions, SqliteStore, rusqlite};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;

    // The application's own database.
    let path = folder.path().join("app.db");
    let mut app = rusqlite::Connection::open(&path)?;
    app.execute_batch("CREATE TABLE invoices (id TEXT PRIMARY KEY, state TEXT NOT NULL)")?;
    outbox::create_table(&app)?;

    // The log, with a relay from that outbox.
    let store = Arc::new(SqliteStore::open(
        folder.path().join("audit.db"),
        SqliteOptions::new(),
    )?);
    let log = AuditLog::builder(store)
        .outbox(Arc::new(SqliteOutbox::open(&path)?))
        .build();
    let workers = log.start();
    let reader = log.tenant(TenantScope::trusted(tenant, "example"));

    // Committed: change and event, or neither.
    let transaction = app.transaction()?;
    transaction.execute("INSERT INTO invoices VALUES ('inv-1', 'approved')", [])?;
    let event = Event::update("invoice", "inv-1")
        .action("invoice.approve")
        .user("ann");
    let id = outbox::record_in(&transaction, tenant, event, &SystemClock)?;
    transaction.commit()?;

    // Rolled back: neither.
    let transaction = app.transaction()?;
    transaction.execute("INSERT INTO invoices VALUES ('inv-2', 'approved')", [])?;
    outbox::record_in(
        &transaction,
        tenant,
        Event::update("invoice", "inv-2"),
        &SystemClock,
    )?;
    transaction.rollback()?;

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
