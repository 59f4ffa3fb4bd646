//! How long appends wait while half of a log is pruned and swept: fills a log, prunes its older half,
//! and times an append after the other meanwhile.
//!
//! `cargo run --release -p benches --bin prune-wait -- --entries 1000000`
#![allow(clippy::print_stdout)] // its output is what it is for

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_core::{
    AuditLog, Basis, Batch, Event, LogStore, PreparedEvent, Recorder, SystemClock, TenantId,
    TenantScope,
};
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use benches::event;
use clap::Parser;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 1_000_000)]
    entries: u64,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let entries = Args::parse().entries;
    let folder = tempfile::tempdir()?;
    println!(
        "fsync of 4 KiB: {:?} (median of 200)",
        benches::fsync_time(folder.path())?
    );
    let store = Arc::new(SqliteStore::open(
        folder.path().join("audit.db"),
        SqliteOptions::new(),
    )?);
    let log = AuditLog::builder(Arc::clone(&store))
        .search(store.search_index())
        .build();
    let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;
    let scope = TenantScope::trusted(tenant, "prune-wait");

    let mut half = None;
    for first in (0..entries).step_by(500) {
        let events = (first..first + 500)
            .map(|n| PreparedEvent::new(tenant, Event::from_json(&event(n))?, &SystemClock, &[]))
            .collect::<Result<Vec<_>, _>>()?;
        let batch = Batch::new(scope.clone(), events).creating_tenant();
        for outcome in store.append(&[batch]).await? {
            let receipts = outcome?;
            if first >= entries / 2 && half.is_none() {
                half = receipts.first().map(|receipt| receipt.created_at);
            }
        }
    }
    let workers = log.start();
    while workers
        .status()
        .iter()
        .any(|w| w.name == "indexer" && w.lag != Some(0))
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let handle = log.tenant(scope.clone());
    let before = half.ok_or("nothing was filled")?;
    let basis: Basis = "retention".parse()?;
    let pruning = tokio::spawn({
        let handle = handle.clone();
        async move {
            let began = Instant::now();
            handle
                .prune(before, basis, None, false)
                .await
                .map(|pruned| (pruned, began.elapsed()))
        }
    });
    let recorder = log.recorder(tenant);
    let began = Instant::now();
    let mut waits = Vec::new();
    loop {
        let sent = Instant::now();
        recorder.record(Event::view("doc", "d").user("ann")).await?;
        waits.push(sent.elapsed());
        if pruning.is_finished() {
            let head = handle.head().await?;
            if head.pruned_below > 0 && head.swept_below >= head.pruned_below {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (pruned, took) = pruning.await??;
    waits.sort_unstable();
    println!(
        "pruned {} of {entries} in {took:.1?}, swept within {:.1?}",
        pruned.entries,
        began.elapsed()
    );
    println!(
        "{} appends meanwhile: median {:.1?}, p99 {:.1?}, longest {:.1?}",
        waits.len(),
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        waits[waits.len() - 1]
    );
    let counted: u64 = store
        .counters(&scope, i32::MIN..i32::MAX)
        .await?
        .iter()
        .map(|c| c.count)
        .sum();
    let head = handle.head().await?;
    println!(
        "counters {counted}, entries present {}",
        head.size() - head.pruned_below
    );
    workers.shutdown(Duration::from_secs(10)).await;
    Ok(())
}
