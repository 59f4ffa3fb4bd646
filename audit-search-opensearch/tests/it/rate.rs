//! How fast entries are indexed. Not a check: run it by name, on a quiet machine, in a release build
//! when the figure is to be published.

use std::time::Instant;

use audit_core::{Entry, Event, SearchIndex};
use audit_search_opensearch::Layout;
use serde_json::json;

use crate::cluster::{Cluster, entry, find};

/// About 1 KB of JSON.
fn event(seq: u64) -> Event {
    let state = |version: u64| {
        json!({
            "version": version,
            "status": if version.is_multiple_of(2) { "draft" } else { "approved" },
            "amount": format!("{}.{:02}", seq * 7 % 10_000, seq % 100),
            "customer": {"id": format!("c-{}", seq % 997), "city": "Berlin", "vip": false},
            "lines": [{"sku": format!("sku-{}", seq % 5_003), "n": seq % 9}],
        })
    };
    Event::update("invoice", format!("inv-{}", seq % 20_011))
        .action("invoice.approve")
        .user(format!("user-{}", seq % 501))
        .actor_name("Ann Example")
        .session_id(format!("session-{}", seq % 10_007))
        .request_id(format!("req-{seq}"))
        .user_agent("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
        .ip_address([10, 8, (seq % 256) as u8, (seq % 251) as u8].into())
        .reason("Quarterly close of the books, approved by the finance team")
        .before(&state(seq))
        .after(&state(seq + 1))
        .metadata(&json!({"source": "billing", "region": "eu-central-1", "host": format!("app-{}", seq % 12)}))
}

async fn measure(layout: Layout, tenants: u128, size: u64, batch: usize) {
    let cluster = Cluster::new(layout);
    let index = cluster.index();
    let per_tenant = size / tenants as u64;
    let mut all: Vec<Entry> = Vec::with_capacity(size as usize);
    for seq in 0..per_tenant {
        for owner in 1..=tenants {
            all.push(entry(owner, seq, event(seq)));
        }
    }
    let bytes: usize = all.iter().map(|entry| entry.to_json().len()).sum();
    let start = Instant::now();
    let mut longest = 0.0_f64;
    for part in all.chunks(batch) {
        let start = Instant::now();
        index.index(part).await.unwrap();
        longest = longest.max(start.elapsed().as_secs_f64());
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{layout:?}, tenants: {tenants}, batches of {batch}: {:.0} entries/s, {} bytes each, longest call {longest:.3} s",
        all.len() as f64 / seconds,
        bytes / all.len(),
    );
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(
            find(&index, 1, "\"finance team\" approved").await.len(),
            1_000.min(per_tenant as usize)
        );
    }
    println!(
        "  search of 1,000 hits: {:.1} ms",
        start.elapsed().as_secs_f64() * 10.0
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn indexing_rate() {
    measure(Layout::Shared, 1, 5_000, 5_000).await; // the server warms up
    for batch in [64, 1_000, 5_000] {
        measure(Layout::Shared, 1, 40_000, batch).await;
    }
    measure(Layout::Shared, 100, 40_000, 5_000).await;
    measure(Layout::PerTenant, 1, 40_000, 5_000).await;
    measure(Layout::PerTenant, 20, 40_000, 5_000).await;
}
