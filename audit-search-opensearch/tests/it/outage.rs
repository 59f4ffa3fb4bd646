//! OpenSearch is away, is wiped, loses documents behind everybody's back, and is fed by several: in the
//! end the index equals the log, entry by entry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use audit_conformance::sized;
use audit_core::memory::MemoryStore;
use audit_core::{
    AuditLog, Event, LogStore, Recorder, SearchIndex, TenantId, WorkerStatus, Workers,
};
use audit_search_opensearch::{Layout, OpenSearchIndex};
use opensearch::http::Method;
use serde_json::json;

use crate::cluster::{Cluster, request, scope, tenant, until};
use crate::proxy::{Act, Proxy};

/// How long the index may take to equal the log again.
const WITHIN: Duration = Duration::from_secs(60);

/// How an index differs from the logs of tenants 1 to n.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    /// Entries of the log that the index has no document of.
    lost: u64,
    /// Documents beyond one for each entry, and documents of no entry.
    duplicated: u64,
    /// Entries that a search for their own words doesn't give, or gives for other words.
    different: u64,
}

const EQUAL: Figures = Figures {
    lost: 0,
    duplicated: 0,
    different: 0,
};

async fn compare(cluster: &Cluster, store: &MemoryStore, owners: u128) -> Figures {
    let index = cluster.index();
    let mut figures = Figures {
        lost: 0,
        duplicated: 0,
        different: 0,
    };
    for owner in 1..=owners {
        let size = store.head(&scope(owner)).await.unwrap().size();
        // Documents may be of positions that no entry has.
        let count = index.count(&scope(owner), 0..u64::MAX).await.unwrap();
        let (mut held, mut from) = (0, 0);
        while from < size {
            let to = (from + 2_000).min(size);
            held += index.held(&scope(owner), from..to).await.unwrap().len() as u64;
            from = to;
        }
        figures.lost += size - held;
        figures.duplicated += count - held.min(count);
        let step = (size / 20).max(1) as usize;
        for seq in (0..size).step_by(step) {
            let found = crate::cluster::find(&index, owner, &format!("n{seq}")).await;
            figures.different += u64::from(found != [seq]);
        }
    }
    figures
}

async fn equals(cluster: &Cluster, store: &MemoryStore, owners: u128) -> Duration {
    let began = Instant::now();
    loop {
        let index = cluster.index();
        let mut behind = 0;
        for owner in 1..=owners {
            let size = store.head(&scope(owner)).await.unwrap().size();
            let through = index.indexed_through(&scope(owner)).await;
            behind += size - through.unwrap_or(0).min(size);
        }
        if behind == 0 && compare(cluster, store, owners).await == EQUAL {
            return began.elapsed();
        }
        assert!(
            began.elapsed() < WITHIN,
            "{behind} entries behind, {:?}",
            compare(cluster, store, owners).await
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Entry n has the word `n` and its position.
async fn record(log: &AuditLog, owner: u128, seqs: std::ops::Range<u64>) {
    let events = seqs.map(|seq| Event::view("doc", format!("n{seq}")).reason("common"));
    let recorder = log.recorder(tenant(owner));
    recorder.record_all(events.collect()).await.unwrap();
}

fn worker(workers: &Workers, name: &str) -> WorkerStatus {
    let mut statuses = workers.status().into_iter();
    statuses.find(|status| status.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn opensearch_away_and_then_wiped_loses_nothing_of_the_index() {
    for layout in [Layout::Shared, Layout::PerTenant] {
        let (cluster, proxy) = (Cluster::new(layout), Proxy::start().await);
        let store = Arc::new(MemoryStore::new());
        let index = OpenSearchIndex::open(cluster.options(&proxy.url)).unwrap();
        let log = AuditLog::builder(store.clone())
            .search(Arc::new(index))
            .build();
        let workers = log.start();
        for owner in 1..=3 {
            record(&log, owner, 0..500).await;
        }
        equals(&cluster, &store, 3).await;

        // Away: each request's connection is cut, while writers go on.
        proxy.rule(|_| Act::Refuse);
        let away = Duration::from_secs(sized(60) as u64);
        let began = Instant::now();
        let mut size = 500;
        while began.elapsed() < away {
            for owner in 1..=3 {
                record(&log, owner, size..size + 10).await;
            }
            size += 10;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(worker(&workers, "indexer").last_error.is_some());
        proxy.pass();
        let caught_up = equals(&cluster, &store, 3).await;

        // Wiped, while nothing more is written.
        cluster.wipe().await;
        let refilled = equals(&cluster, &store, 3).await;
        println!(
            "{layout:?}: away for {away:?} and wiped, {} entries: lost 0, duplicated 0, \
             different 0; equal {caught_up:.1?} after its return, {refilled:.1?} after the wipe",
            3 * size
        );
        until("no error is left", async || {
            worker(&workers, "indexer").last_error.is_none()
        })
        .await;
        assert!(workers.shutdown(Duration::from_secs(5)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_failures_of_bulk_lose_and_double_nothing() {
    let (cluster, proxy) = (Cluster::new(Layout::Shared), Proxy::start().await);
    let store = Arc::new(MemoryStore::new());
    let index = OpenSearchIndex::open(cluster.options(&proxy.url)).unwrap();
    let log = AuditLog::builder(store.clone())
        .search(Arc::new(index))
        .build();
    // Every 50th write fails.
    let (writes, failures) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&failures);
    proxy.rule(move |request| {
        let written = request.written().len() as u64;
        let nth = writes.fetch_add(written, Ordering::SeqCst);
        let at = 49 - nth % 50;
        if at >= written {
            return Act::Pass;
        }
        counted.fetch_add(1, Ordering::SeqCst);
        let kind = "opensearch_rejected_execution_exception";
        Act::FailWrite(at as usize, 429, kind)
    });
    let workers = log.start();
    let size = sized(5_000) as u64;
    for from in (0..size).step_by(20) {
        for owner in 1..=3 {
            record(&log, owner, from..from + 20).await;
        }
    }
    until("writes have failed", async || {
        failures.load(Ordering::SeqCst) >= 5
    })
    .await;
    // The last ones go through, so that there is an end.
    proxy.pass();
    let equal = equals(&cluster, &store, 3).await;
    println!(
        "{} writes of _bulk failed, {} entries: lost 0, duplicated 0, different 0; equal \
         {equal:.1?} later",
        failures.load(Ordering::SeqCst),
        3 * size
    );
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_and_two_workers_at_once_lose_and_double_nothing() {
    let cluster = Cluster::new(Layout::Shared);
    let store = Arc::new(MemoryStore::new());
    let log = || {
        AuditLog::builder(store.clone())
            .search(Arc::new(cluster.index()))
            .build()
    };
    let (one, two) = (log(), log());
    let workers = [one.start(), two.start()];
    let rounds = sized(500);
    let size = AtomicU64::new(0);
    let record_all = async |log: &AuditLog| {
        for _ in 0..rounds {
            for owner in 1..=3 {
                let events = (0..10).map(|_| Event::view("doc", "d").reason("common"));
                let recorder = log.recorder(tenant(owner));
                recorder.record_all(events.collect()).await.unwrap();
            }
            size.fetch_add(30, Ordering::SeqCst);
        }
    };
    tokio::join!(record_all(&one), record_all(&two));
    let index = cluster.index();
    let sum = size.load(Ordering::SeqCst);
    until("the index has all", async || {
        let mut through = 0;
        for owner in 1..=3 {
            through += index.indexed_through(&scope(owner)).await.unwrap();
        }
        through == sum
    })
    .await;
    let mut counts = BTreeMap::new();
    for owner in 1..=3 {
        let count = index.count(&scope(owner), 0..u64::MAX).await.unwrap();
        counts.insert(owner, count);
    }
    assert_eq!(counts.values().sum::<u64>(), sum, "{counts:?}");
    println!("two servers, two workers, {sum} entries: lost 0, duplicated 0");
    for workers in workers {
        assert!(workers.shutdown(Duration::from_secs(5)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_were_deleted_or_forged_behind_the_index_are_put_right() {
    for layout in [Layout::Shared, Layout::PerTenant] {
        let cluster = Cluster::new(layout);
        let store = Arc::new(MemoryStore::new());
        let log = AuditLog::builder(store.clone())
            .search(Arc::new(cluster.index()))
            .build();
        let workers = log.start();
        for owner in [1, 2] {
            record(&log, owner, 0..2_300).await;
        }
        equals(&cluster, &store, 2).await;
        let live = cluster.live(tenant(2));
        // What is deleted may come back at once.
        let settings = json!({"index.gc_deletes": "0s"});
        let path = format!("/{live}/_settings");
        request(Method::Put, &path, Some(settings)).await;
        let damage = json!({"query": {"bool": {"filter": [
            {"term": {"tenant": tenant(2)}},
            {"terms": {"seq": [3, 4, 1_999, 2_000, 2_299]}},
        ]}}});
        let path = format!("/{live}/_delete_by_query?refresh=true");
        request(Method::Post, &path, Some(damage)).await;
        // Of a position that the log doesn't have yet.
        let forged = json!({"tenant": tenant(2), "seq": 2_302, "text": ["forged"]});
        let id = format!("{}-2302", tenant(2));
        let routing = cluster.routing(tenant(2));
        let path = format!("/{live}/_doc/{id}?refresh=true&{routing}");
        request(Method::Put, &path, Some(forged)).await;
        until("the difference is seen", async || {
            worker(&workers, "reconciler")
                .difference
                .is_some_and(|n| n > 0)
        })
        .await;
        until("the difference is gone", async || {
            let status = worker(&workers, "reconciler");
            status.difference == Some(0) && status.repaired >= 6
        })
        .await;
        record(&log, 2, 2_300..2_310).await;
        equals(&cluster, &store, 2).await;
        assert!(workers.shutdown(Duration::from_secs(5)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_its_own_that_is_refused_holds_up_no_other_tenant() {
    let cluster = Cluster::new(Layout::PerTenant);
    let store = Arc::new(MemoryStore::new());
    let log = AuditLog::builder(store.clone())
        .search(Arc::new(cluster.index()))
        .build();
    let workers = log.start();
    for owner in 1..=4 {
        record(&log, owner, 0..10).await;
    }
    equals(&cluster, &store, 4).await;
    // One is blocked, as a disk that is full does; one is closed.
    let blocked = |on: bool| json!({"index.blocks.write": on});
    let settings = format!("/{}/_settings", cluster.live(tenant(1)));
    request(Method::Put, &settings, Some(blocked(true))).await;
    request(
        Method::Post,
        &format!("/{}/_close", cluster.live(tenant(2))),
        None,
    )
    .await;
    let index = cluster.index();
    let through = async |owner| index.indexed_through(&scope(owner)).await.unwrap_or(0);
    for size in [20, 30, 40] {
        for owner in 1..=4 {
            record(&log, owner, size - 10..size).await;
        }
        until("the others are indexed", async || {
            through(3).await == size && through(4).await == size
        })
        .await;
    }
    assert_eq!(through(1).await, 10);
    assert!(worker(&workers, "indexer").last_error.is_some());
    request(Method::Put, &settings, Some(blocked(false))).await;
    request(
        Method::Post,
        &format!("/{}/_open", cluster.live(tenant(2))),
        None,
    )
    .await;
    equals(&cluster, &store, 4).await;
    until("no error is left", async || {
        worker(&workers, "indexer").last_error.is_none()
    })
    .await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tenants_documents_are_dropped() {
    use audit_core::{PreparedEvent, SystemClock, TenantStatus, TenantStore, TenantUpdate};
    for layout in [Layout::Shared, Layout::PerTenant] {
        let cluster = Cluster::new(layout);
        let store = Arc::new(MemoryStore::new());
        let log = AuditLog::builder(store.clone())
            .search(Arc::new(cluster.index()))
            .build();
        let workers = log.start();
        for owner in [1, 2] {
            record(&log, owner, 0..50).await;
            let id: TenantId = tenant(owner);
            drop(log.create_tenant(Some(id), "one").await);
        }
        equals(&cluster, &store, 2).await;
        let delete = TenantUpdate::default().status(TenantStatus::Deleted);
        let event = Event::update("tenant", "1").user("admin");
        let event = PreparedEvent::new(tenant(1), event, &SystemClock, &[]).unwrap();
        store
            .update_tenant(tenant(1), &delete, &event)
            .await
            .unwrap();
        let index = cluster.index();
        until("its documents are gone", async || {
            index.count(&scope(1), 0..u64::MAX).await.unwrap() == 0
        })
        .await;
        assert_eq!(index.count(&scope(2), 0..u64::MAX).await.unwrap(), 50);
        assert!(workers.shutdown(Duration::from_secs(5)).await);
    }
}
