//! Full text in OpenSearch: the log stays in its store, the index follows it and can be lost.
//!
//! Against a local cluster, after `dev/services up` and `set -a; . .dev/env; set +a`:
//!
//! ```text
//! cargo run -p examples --example opensearch
//! ```
#![allow(clippy::print_stdout)] // an example shows what it does

use std::sync::Arc;
use std::time::Duration;

use audit_core::memory::MemoryStore;
use audit_core::{
    AuditLog, Event, Filter, PageRequest, Query, Recorder, SearchIndex, TenantId, TenantScope,
};
use audit_search_opensearch::{OpenSearchIndex, OpenSearchOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("AUDIT_SEARCH_URL")
        .map_err(|_| "AUDIT_SEARCH_URL is not set: where does OpenSearch answer?")?;
    // An index for this run only; a deployment keeps the default, `audit`.
    let prefix = format!("example-{}", std::process::id());
    let options = OpenSearchOptions::new(&url)?.prefix(prefix)?.replicas(0);
    let index = OpenSearchIndex::open(options)?;
    index.ping().await?;

    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .search(Arc::new(index.clone()))
        .build();
    // The indexer feeds the index, and the reconciler compares it with the log.
    let workers = log.start();

    let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;
    let recorder = log.recorder(tenant);
    for (n, reason) in ["quarterly close", "typing error", "quarterly audit"]
        .into_iter()
        .enumerate()
    {
        let event = Event::update("invoice", format!("inv-{n}"))
            .user("ann")
            .reason(reason);
        recorder.record(event).await?;
    }

    let scope = TenantScope::trusted(tenant, "example");
    let indexed = async {
        while index.indexed_through(&scope).await? < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok::<(), audit_core::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(30), indexed).await??;

    let quarterly = Filter::new().text(Query::parse("quarterly")?);
    let page = log
        .tenant(scope.clone())
        .list(&quarterly, &PageRequest::first())
        .await?;
    for entry in &page.items {
        println!(
            "{} {}",
            entry.seq,
            entry.fields.reason.as_deref().unwrap_or("-")
        );
    }
    assert_eq!(page.items.len(), 2);

    // Into a new index, which takes the old one's place, while everything goes on.
    index.rebuild(log.log_store()).await?;
    assert_eq!(index.count(&scope, 0..10).await?, 3);
    workers.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
