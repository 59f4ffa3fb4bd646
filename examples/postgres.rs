//! An embedded log on PostgreSQL: migrate, record, read back. The address is that of a login with
//! `CREATEROLE` that owns the database and is no superuser:
//!
//! ```sh
//! AUDIT_STORE_URL=postgres://audit:…@localhost/audit cargo run -p examples --example postgres
//! ```
#![allow(clippy::print_stdout)] // an example shows what it does

use std::sync::Arc;
use std::time::Duration;

use audit_core::{AuditLog, Event, Filter, PageRequest, Recorder as _, TenantScope};
use audit_store_postgres::{PostgresOptions, PostgresStore, migrate};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("AUDIT_STORE_URL")?;
    let options = PostgresOptions::new(url);
    // Safe to repeat, and for several processes at once.
    migrate(&options).await?;
    let store = Arc::new(PostgresStore::connect(options).await?);

    // The whole of it in one database: the log, its queue, its full text and its outbox.
    let log = AuditLog::builder(Arc::clone(&store))
        .queue(Arc::new(store.queue()))
        .search(Arc::new(store.search_index()))
        .outbox(Arc::new(store.outbox()))
        .build();
    // They fill the full text, and append what waits in queue and outbox.
    let workers = log.start();

    let tenant = log.create_tenant(None, "Example Ltd").await?.id;
    let receipt = log
        .recorder(tenant)
        .record(
            Event::update("invoice", "inv-1")
                .action("invoice.approve")
                .user("ann")
                .before(&json!({"state": "draft"}))
                .after(&json!({"state": "approved"})),
        )
        .await?;
    println!("recorded at seq {}", receipt.seq);

    let reader = log.tenant(TenantScope::trusted(tenant, "example"));
    let page = reader
        .list(&Filter::new().user("ann"), &PageRequest::first())
        .await?;
    for entry in &page.items {
        println!("{}", entry.to_json());
    }
    assert_eq!(page.items.len(), 1);
    workers.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
