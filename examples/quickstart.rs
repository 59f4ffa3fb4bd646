//! Record an event in an embedded log, read it back, and check what the receipt says.
#![allow(clippy::print_stdout)] // an example shows what it does

use std::sync::Arc;

use audit_core::tlog::merkle;
use audit_core::{AuditLog, Event, Filter, PageRequest, Recorder, TenantId, TenantScope};
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let store = Arc::new(SqliteStore::open(
        folder.path().join("audit.db"),
        SqliteOptions::new(),
    )?);
    let log = AuditLog::builder(store).build();
    let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;

    let receipt = log
        .recorder(tenant)
        .record(
            Event::update("invoice", "inv-1")
                .action("invoice.approve")
                .user("ann")
                .before(&json!({"state": "draft"}))
                .after(&json!({"state": "approved"}))
                .reason("quarterly close"),
        )
        .await?;
    println!(
        "recorded at seq {} under root {}",
        receipt.seq,
        receipt.root.to_base64()
    );

    let reader = log.tenant(TenantScope::trusted(tenant, "quickstart"));
    let page = reader
        .list(&Filter::new().user("ann"), &PageRequest::first())
        .await?;
    for entry in &page.items {
        println!("{}", entry.to_json());
    }

    // A log of one entry has that entry's hash as its root.
    assert_eq!(merkle::root(&[receipt.leaf_hash]), receipt.root);
    assert_eq!(page.items.len(), 1);
    Ok(())
}
