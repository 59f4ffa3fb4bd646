//! Indexing in OpenSearch and searching there: `cargo bench -p benches --bench opensearch`, with the
//! cluster's address in `AUDIT_TEST_OPENSEARCH_URL`.

#![allow(clippy::expect_used, missing_docs)] // a benchmark that can't set up measures nothing

use std::sync::Arc;
use std::time::Duration;

use audit_core::memory::MemoryStore;
use audit_core::{
    Batch, Clock as _, Entry, Event, Filter, LogStore, PreparedEvent, Query, SearchIndex,
    SearchRequest, SystemClock, TenantScope,
};
use audit_search_opensearch::{Layout, OpenSearchIndex, OpenSearchOptions};
use benches::{event, tenant};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;

/// A value of its own, on indexes that nothing else uses.
fn index(layout: Layout) -> (OpenSearchIndex, String) {
    let url = std::env::var("AUDIT_TEST_OPENSEARCH_URL")
        .expect("AUDIT_TEST_OPENSEARCH_URL is set: run dev/services up");
    let prefix = format!("bench-{}", SystemClock.event_id());
    let options = OpenSearchOptions::new(&url)
        .and_then(|options| options.prefix(&prefix))
        .expect("an address")
        .layout(layout)
        .replicas(0);
    let index = OpenSearchIndex::open(options).expect("an index");
    (index, prefix)
}

/// The logs of so many tenants, of this size together, in the order in which an indexer gives them.
async fn logs(tenants: u64, size: u64) -> Vec<Entry> {
    let store = Arc::new(MemoryStore::new());
    let mut all = Vec::new();
    for n in 1..=tenants {
        let scope = TenantScope::trusted(tenant(n), "bench");
        for from in (0..size / tenants).step_by(500) {
            let events = (from..(from + 500).min(size / tenants)).map(|n| {
                let event = Event::from_json(&event(n)).expect("a valid event");
                PreparedEvent::new(scope.tenant(), event, &SystemClock, &[]).expect("valid")
            });
            let batch = Batch::new(scope.clone(), events.collect()).creating_tenant();
            let outcomes = store.append(&[batch]).await.expect("appended");
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        }
        let mut from = 0;
        loop {
            let entries = store.read(&scope, from, 2_000).await.expect("entries");
            let Some(last) = entries.last() else { break };
            from = last.seq + 1;
            all.extend(entries);
        }
    }
    all
}

/// Batches of 5,000 entries of about 1 KB, as the indexer makes them when it has much to do. Each
/// sample fills an empty index with 20,000.
fn indexing(c: &mut Criterion) {
    const SIZE: u64 = 20_000;
    let runtime = Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("opensearch/index");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs(5))
        .throughput(Throughput::Elements(SIZE));
    for (layout, name, tenants) in [
        (Layout::Shared, "shared", 1),
        (Layout::Shared, "shared", 100),
        (Layout::PerTenant, "per tenant", 10),
    ] {
        let entries = runtime.block_on(logs(tenants, SIZE));
        group.bench_function(BenchmarkId::new(name, tenants), |b| {
            b.iter_custom(|rounds| {
                runtime.block_on(async {
                    let mut took = Duration::ZERO;
                    for _ in 0..rounds {
                        let (index, prefix) = index(layout);
                        let began = std::time::Instant::now();
                        for batch in entries.chunks(5_000) {
                            index.index(batch).await.expect("indexed");
                        }
                        took += began.elapsed();
                        remove(&prefix).await;
                    }
                    took
                })
            });
        });
    }
    group.finish();
}

/// The first 50 hits of a phrase that is in each of 20,000 entries.
fn searching(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (index, prefix) = index(Layout::Shared);
    let entries = runtime.block_on(logs(1, 20_000));
    runtime.block_on(async {
        for batch in entries.chunks(5_000) {
            index.index(batch).await.expect("indexed");
        }
    });
    let scope = TenantScope::trusted(tenant(1), "bench");
    let query = Query::parse("invoice").expect("a query");
    let request = SearchRequest::new(Filter::new().text(query), 50);
    c.bench_function("opensearch/search", |b| {
        b.iter(|| {
            let hits = runtime.block_on(index.search(&scope, &request));
            assert_eq!(hits.expect("hits").seqs.len(), 50);
        });
    });
    runtime.block_on(remove(&prefix));
}

/// Deletes what was made for a measurement.
async fn remove(prefix: &str) {
    let url = std::env::var("AUDIT_TEST_OPENSEARCH_URL").expect("it was set");
    let host = url
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    for path in [
        format!("/{prefix}-v1-*?ignore_unavailable=true"),
        format!("/_index_template/{prefix}-v1"),
    ] {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(&host)
            .await
            .expect("OpenSearch answers");
        let request =
            format!("DELETE {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let sent = stream.write_all(request.as_bytes()).await;
        sent.expect("the request is sent");
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        read.expect("the answer is read");
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{path} is not deleted");
    }
}

criterion_group!(benches, indexing, searching);
criterion_main!(benches);
