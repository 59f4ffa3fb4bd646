//! How many events a second one file takes, gives back in a scan and removes again.
//!
//! `cargo run --release -p audit-store-sqlite --example throughput -- [rows]`

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)] // a measurement

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_core::{
    Act, Basis, Batch, Clock as _, Event, Filter, LogStore, PreparedEvent, Prune, SystemClock,
    TenantId, TenantScope,
};
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use futures_util::StreamExt as _;
use uuid::Uuid;

fn scope(n: usize) -> TenantScope {
    TenantScope::trusted(TenantId::new(Uuid::from_u128(n as u128)), "throughput")
}

/// About 1 KB as it is stored.
fn event(i: usize) -> Event {
    let state = serde_json::json!({
        "number": i, "state": "approved", "lines": [1, 2, 3], "note": "x".repeat(220),
    });
    Event::update("invoice", format!("inv-{}", i % 10_000))
        .action("invoice.approve")
        .user(format!("user-{}", i % 500))
        .actor_name("Ann O'Neil")
        .session_id(format!("session-{}", i / 20))
        .request_id(format!("request-{i}"))
        .user_agent("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
        .ip_address([10, 8, (i >> 8) as u8, i as u8].into())
        .before(&state)
        .after(&state)
}

fn batch(scope: &TenantScope, from: usize, n: usize) -> Batch {
    let prepare =
        |i| PreparedEvent::new(scope.tenant(), event(i), &SystemClock, &[]).expect("valid");
    Batch::new(scope.clone(), (from..from + n).map(prepare).collect()).creating_tenant()
}

fn report(what: &str, rows: usize, took: Duration) {
    println!(
        "{what}: {rows} rows in {took:.2?}, {:.0}/s",
        rows as f64 / took.as_secs_f64()
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let rows: usize = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(100_000);
    let folder = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
    let path = folder.path().join("audit.db");
    let store = SqliteStore::open(path, SqliteOptions::new()).unwrap();

    // Prepared beforehand: this measures the store.
    let batches: Vec<Batch> = (0..rows / 500)
        .map(|b| batch(&scope(1), b * 500, 500))
        .collect();
    let start = Instant::now();
    for batch in &batches {
        store
            .append(std::slice::from_ref(batch))
            .await
            .unwrap()
            .pop()
            .unwrap()
            .unwrap();
    }
    report(
        "commits of 500, one tenant",
        rows / 500 * 500,
        start.elapsed(),
    );
    drop(batches);

    let tenants = 1_000;
    let calls: Vec<Vec<Batch>> = (0..rows / 4 / 500)
        .map(|c| {
            (0..500)
                .map(|i| batch(&scope(2 + (c * 500 + i) % tenants), i, 1))
                .collect()
        })
        .collect();
    let start = Instant::now();
    for call in &calls {
        store
            .append(call)
            .await
            .unwrap()
            .into_iter()
            .for_each(|o| drop(o.unwrap()));
    }
    report(
        "commits of 500, 1,000 tenants",
        calls.len() * 500,
        start.elapsed(),
    );

    let singles: Vec<Batch> = (0..rows / 4).map(|i| batch(&scope(1), i, 1)).collect();
    let n = singles.len();
    let start = Instant::now();
    futures_util::stream::iter(singles)
        .map(|batch| {
            let store = &store;
            async move {
                store
                    .append(&[batch])
                    .await
                    .unwrap()
                    .pop()
                    .unwrap()
                    .unwrap()
            }
        })
        .buffer_unordered(64)
        .for_each(|_| async {})
        .await;
    report("single events, 64 at once", n, start.elapsed());

    let snapshot = store.snapshot(&scope(1)).await.unwrap();
    let start = Instant::now();
    let entries = snapshot.scan(&Filter::new()).await.unwrap();
    let scanned = entries
        .fold(0, |n, entry| async move { n + usize::from(entry.is_ok()) })
        .await;
    report("scan", scanned, start.elapsed());
    drop(snapshot);

    let act = Act::new(&scope(1), None, Arc::new(SystemClock)).unwrap();
    let basis = Basis::parse("retention").unwrap();
    let prune = Prune::new(SystemClock.now(), basis, act);
    let start = Instant::now();
    let pruned = store.prune(&scope(1), &prune).await.unwrap();
    report("prune", pruned.entries as usize, start.elapsed());

    // Appends go on beside the sweep, one at a time.
    let (start, mut swept) = (Instant::now(), Duration::ZERO);
    let mut waits = Vec::new();
    let sweep = async {
        while store.sweep().await.unwrap() {}
        swept = start.elapsed();
    };
    let appends = async {
        for i in 0..1_000 {
            let batch = batch(&scope(1), i, 1);
            let start = Instant::now();
            store
                .append(&[batch])
                .await
                .unwrap()
                .pop()
                .unwrap()
                .unwrap();
            waits.push(start.elapsed());
        }
    };
    futures_util::join!(sweep, appends);
    report("sweep", pruned.entries as usize, swept);
    waits.sort();
    println!(
        "appends meanwhile: median {:.2?}, longest {:.2?}",
        waits[500], waits[999]
    );
}
