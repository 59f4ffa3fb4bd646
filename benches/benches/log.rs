//! Leaf hashing, appends, lists and scans on the embedded store: `cargo bench -p benches`.

#![allow(clippy::expect_used, missing_docs)] // a benchmark that can't set up measures nothing

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use audit_core::{
    AuditLog, Batch, Event, Filter, LogStore, PageRequest, PreparedEvent, SystemClock, TenantScope,
};
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use benches::{RARE_USER, event, prepared, tenant};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::StreamExt;
use tokio::runtime::Runtime;

fn hashing(c: &mut Criterion) {
    let mut group = c.benchmark_group("leaf");
    let text = event(1);
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse", |b| {
        b.iter(|| Event::from_json(black_box(&text)).expect("a valid event"));
    });
    let parsed = Event::from_json(&text).expect("a valid event");
    group.bench_function("prepare", |b| {
        b.iter_batched(
            || parsed.clone(),
            |event| PreparedEvent::new(tenant(1), event, &SystemClock, &[]).expect("valid"),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn append(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("append");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    let n = AtomicU64::new(0);
    for tenants in [1_u64, 1_000] {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(folder.path().join("audit.db"), SqliteOptions::new())
            .expect("a store");
        for size in [1_u64, 64, 500] {
            group.throughput(Throughput::Elements(size));
            group.bench_function(BenchmarkId::new(format!("{tenants} tenants"), size), |b| {
                b.iter_batched(
                    || {
                        let first = n.fetch_add(size, Ordering::Relaxed);
                        let mut batches: Vec<Batch> = Vec::new();
                        if tenants == 1 {
                            let events = (first..first + size).map(|i| prepared(tenant(1), i));
                            let scope = TenantScope::trusted(tenant(1), "bench");
                            batches.push(Batch::new(scope, events.collect()).creating_tenant());
                        } else {
                            for i in first..first + size {
                                let tenant = tenant(i % tenants);
                                let scope = TenantScope::trusted(tenant, "bench");
                                let events = vec![prepared(tenant, i)];
                                batches.push(Batch::new(scope, events).creating_tenant());
                            }
                        }
                        batches
                    },
                    |batches| {
                        runtime.block_on(store.append(&batches)).expect("appended");
                        batches
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

fn read(c: &mut Criterion) {
    const ENTRIES: u64 = 100_000;
    let runtime = Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let store = Arc::new(
        SqliteStore::open(folder.path().join("audit.db"), SqliteOptions::new()).expect("a store"),
    );
    let scope = TenantScope::trusted(tenant(1), "bench");
    let log = AuditLog::builder(Arc::clone(&store))
        .search(store.search_index())
        .build();
    runtime.block_on(async {
        for first in (0..ENTRIES).step_by(500) {
            let events = (first..first + 500)
                .map(|i| prepared(tenant(1), i))
                .collect();
            let batch = Batch::new(scope.clone(), events).creating_tenant();
            store.append(&[batch]).await.expect("appended");
        }
        let workers = log.start();
        while workers
            .status()
            .iter()
            .any(|w| w.name == "indexer" && w.lag != Some(0))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        workers.shutdown(Duration::from_secs(10)).await;
    });
    let reader = log.tenant(scope);

    let mut group = c.benchmark_group("list");
    let filters = [
        ("first page", Filter::new()),
        ("user with a hit", Filter::new().user(RARE_USER)),
    ];
    for (name, filter) in filters {
        group.bench_function(name, |b| {
            b.iter(|| {
                runtime
                    .block_on(reader.list(&filter, &PageRequest::first()))
                    .expect("a page")
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("export");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(ENTRIES));
    group.bench_function("scan", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let mut entries = reader.scan(&Filter::new()).await.expect("a stream");
                let mut count = 0;
                while let Some(entry) = entries.next().await {
                    black_box(entry.expect("an entry"));
                    count += 1;
                }
                assert_eq!(count, ENTRIES);
            });
        });
    });
    group.finish();
}

criterion_group!(benches, hashing, append, read);
criterion_main!(benches);
