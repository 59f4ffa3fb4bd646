//! Accept events into Amazon SQS and append them later: the 202 of an HTTP API, in-process.
//!
//! Against a local server of the protocol, after `dev/services up` and `set -a; . .dev/env; set +a`:
//!
//! ```text
//! cargo run -p examples --example sqs
//! ```
#![allow(clippy::print_stdout)] // an example shows what it does

use std::sync::Arc;
use std::time::Duration;

use audit_core::{
    AuditLog, Event, EventQueue, Filter, MemoryStore, PageRequest, TenantId, TenantScope,
};
use audit_queue_sqs::{SqsOptions, SqsQueue};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // On AWS the URL is all: https://sqs.<region>.amazonaws.com/<account>/<name>. A name that ends in
    // .fifo makes each tenant's entries follow the order in which its events were accepted.
    let endpoint = std::env::var("AUDIT_SQS_ENDPOINT")
        .map_err(|_| "AUDIT_SQS_ENDPOINT is not set: where does SQS answer?")?;
    let url = format!("{endpoint}/000000000000/audit-example.fifo");
    let queue = Arc::new(SqsQueue::open(SqsOptions::new(url)?.region("us-east-1")).await?);
    queue.create().await?; // where it is missing, and its dead-letter queue

    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .queue(queue.clone())
        .build();
    let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;
    log.create_tenant(Some(tenant), "example").await?;
    let tenant = log.tenant(TenantScope::trusted(tenant, "example"));

    // Nothing is in the log yet: the queue has them, and whoever asks later asks by these ids.
    let events = (0..25).map(|n| Event::update("invoice", format!("inv-{n}")).user("ann"));
    let accepted = tenant
        .enqueue(events.collect())
        .await?
        .ok_or("the queue is not durable")?;
    println!("accepted: {}, {:?}", accepted.len(), queue.depth().await?);

    // Workers append them; here in this process, elsewhere in one of their own, any number at once.
    let workers = log.start();
    let drained = async {
        while tenant.head().await?.size() < accepted.len() as u64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, audit_core::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(30), drained).await??;
    workers.shutdown(Duration::from_secs(5)).await;

    let newest_first = tenant
        .list(&Filter::default(), &PageRequest::default())
        .await?;
    let appended: Vec<_> = newest_first.items.iter().rev().map(|e| e.id).collect();
    assert_eq!(appended, accepted);
    println!("appended: {}, in their order", appended.len());
    Ok(())
}
