//! A new index takes the old one's place while the log goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use audit_core::memory::MemoryStore;
use audit_core::{
    AuditLog, Basis, Event, LogStore, PageRequest, Recorder, SearchIndex, TenantStatus,
    TenantUpdate,
};
use audit_search_opensearch::{Layout, OpenSearchIndex};
use opensearch::http::Method;
use serde_json::json;

use crate::cluster::{Cluster, filter, find, request, scope, tenant, until};
use crate::proxy::{Act, Proxy};

const LAYOUTS: [Layout; 2] = [Layout::Shared, Layout::PerTenant];

async fn record(log: &AuditLog, owner: u128, n: u64) {
    let events = (0..n)
        .map(|n| Event::view("doc", format!("d{n}")).reason("needle"))
        .collect();
    log.recorder(tenant(owner))
        .record_all(events)
        .await
        .unwrap();
}

fn log(index: OpenSearchIndex) -> (AuditLog, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::new());
    let log = AuditLog::builder(store.clone())
        .search(Arc::new(index))
        .build();
    (log, store)
}

/// The concrete name behind the live alias.
async fn behind(cluster: &Cluster, owner: u128) -> String {
    let path = format!("/_alias/{}", cluster.live(tenant(owner)));
    let found = request(Method::Get, &path, None).await;
    let names: Vec<&String> = found.as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 1, "{found}");
    names[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn reindexing_while_writes_go_on_loses_nothing() {
    for layout in LAYOUTS {
        let cluster = Cluster::new(layout);
        let index = cluster.index();
        let (log, store) = log(index.another());
        let workers = log.start();
        record(&log, 1, 3_000).await;
        record(&log, 2, 10).await;
        until("the first are indexed", async || {
            index.indexed_through(&scope(1)).await.unwrap() == 3_000
                && index.indexed_through(&scope(2)).await.unwrap() == 10
        })
        .await;
        let old = behind(&cluster, 1).await;

        let done = AtomicBool::new(false);
        let writing = async {
            let mut recorded = 3_000_u64;
            while !done.load(Ordering::SeqCst) {
                record(&log, 1, 5).await;
                recorded += 5;
                until("the indexer follows", async || {
                    index.indexed_through(&scope(1)).await.unwrap() + 500 > recorded
                })
                .await;
            }
            recorded
        };
        let searching = async {
            let reader = log.tenant(scope(1));
            // No search fails, and none finds less than what was there in the beginning.
            let only_first = filter("needle").to_seq(3_000);
            let page = PageRequest::first().limit(1_000);
            while !done.load(Ordering::SeqCst) {
                let page = reader.list(&only_first, &page).await.unwrap();
                assert_eq!(page.items.len(), 1_000);
            }
        };
        let rebuilding = async {
            for _ in 0..3 {
                index.reindex(&*store).await.unwrap();
            }
            done.store(true, Ordering::SeqCst);
        };
        let (recorded, (), ()) = tokio::join!(writing, searching, rebuilding);
        assert!(recorded > 3_000);
        until("the rest is indexed", async || {
            index.indexed_through(&scope(1)).await.unwrap() == recorded
        })
        .await;
        assert_eq!(index.count(&scope(1), 0..u64::MAX).await.unwrap(), recorded);
        assert_eq!(index.count(&scope(2), 0..u64::MAX).await.unwrap(), 10);
        let new = behind(&cluster, 1).await;
        assert!(
            old.ends_with("-000001") && new.ends_with("-000004"),
            "{new}"
        );
        assert!(workers.shutdown(Duration::from_secs(5)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_the_last_moment_of_a_tenant_that_is_silent_since_are_in_the_new_index() {
    let (cluster, proxy) = (Cluster::new(Layout::Shared), Proxy::start().await);
    let (log, store) = log(cluster.index());
    record(&log, 1, 10).await;
    let index = OpenSearchIndex::open(cluster.options(&proxy.url)).unwrap();
    index.reindex(&*store).await.unwrap();
    // Just before the swap somebody records, and indexes into the old index.
    let (asked, mut asks) = tokio::sync::mpsc::channel::<std::sync::mpsc::Sender<()>>(1);
    proxy.rule(move |request| {
        if request.path == "/_aliases" {
            let (done, wait) = std::sync::mpsc::channel();
            if asked.try_send(done).is_ok() {
                tokio::task::block_in_place(|| wait.recv().ok());
            }
        }
        Act::Pass
    });
    let (rebuilt, logs) = (index.clone(), store.clone());
    let rebuilding = tokio::spawn(async move { rebuilt.reindex(&*logs).await });
    let resume = asks.recv().await.unwrap();
    record(&log, 1, 5).await;
    let entries = store.read(&scope(1), 10, 100).await.unwrap();
    cluster.index().index(&entries).await.unwrap();
    resume.send(()).unwrap();
    rebuilding.await.unwrap().unwrap();
    assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 15);
    assert_eq!(find(&index, 1, "needle").await.len(), 15);
}

#[tokio::test]
async fn a_rebuild_that_was_broken_off_changes_nothing_and_is_gone_on_with() {
    let (cluster, proxy) = (Cluster::new(Layout::Shared), Proxy::start().await);
    let index = OpenSearchIndex::open(cluster.options(&proxy.url)).unwrap();
    let (log, store) = log(index.another());
    record(&log, 1, 30).await;
    record(&log, 2, 30).await;
    index.reindex(&*store).await.unwrap();
    let old = behind(&cluster, 1).await;
    for failing in 0..100 {
        let mut request = 0;
        proxy.rule(move |_| {
            request += 1;
            match request == failing + 1 {
                true => Act::Answer(503, json!({"error": "away"})),
                false => Act::Pass,
            }
        });
        let outcome = index.reindex(&*store).await;
        proxy.pass();
        assert_eq!(find(&index, 1, "needle").await.len(), 30, "{failing}");
        assert_eq!(find(&index, 2, "needle").await.len(), 30, "{failing}");
        match outcome {
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
            Ok(()) => break,
        }
    }
    assert_ne!(behind(&cluster, 1).await, old);
}

#[tokio::test]
async fn what_was_erased_or_pruned_is_not_in_the_new_index() {
    for layout in LAYOUTS {
        let cluster = Cluster::new(layout);
        let index = cluster.index();
        let (log, store) = log(index.another());
        record(&log, 1, 20).await;
        index.reindex(&*store).await.unwrap();
        assert_eq!(find(&index, 1, "needle").await.len(), 20);
        let basis: Basis = "gdpr-17".parse().unwrap();
        let reader = log.tenant(scope(1));
        let some = store.at(&scope(1), &[4, 5]).await.unwrap();
        let ids = some.iter().map(|entry| entry.id).collect();
        reader.erase(ids, None, basis, None).await.unwrap();
        index.reindex(&*store).await.unwrap();
        assert_eq!(find(&index, 1, "needle").await.len(), 18);
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 21);
    }
}

#[tokio::test]
async fn a_tenant_that_cannot_be_read_is_left_out() {
    let cluster = Cluster::new(Layout::Shared);
    let index = cluster.index();
    let (log, store) = log(index.another());
    record(&log, 1, 3).await;
    record(&log, 2, 3).await;
    let update = TenantUpdate::default().status(TenantStatus::Suspended);
    log.update_tenant(tenant(1), update, "admin", None)
        .await
        .unwrap();
    index.reindex(&*store).await.unwrap();
    assert_eq!(find(&index, 1, "needle").await, [0; 0]);
    assert_eq!(find(&index, 2, "needle").await, [2, 1, 0]);
}

#[tokio::test]
async fn several_rebuilds_at_once_do_the_same_work() {
    let cluster = Cluster::new(Layout::Shared);
    let (log, store) = log(cluster.index());
    record(&log, 1, 500).await;
    let rebuilds: Vec<_> = (0..3)
        .map(|_| {
            let (index, store) = (cluster.index(), store.clone());
            tokio::spawn(async move { index.reindex(&*store).await })
        })
        .collect();
    let mut failures = 0;
    for rebuild in rebuilds {
        if let Err(error) = rebuild.await.unwrap() {
            assert!(error.is_retryable(), "{error:?}");
            failures += 1;
        }
    }
    assert!(failures < 3);
    let index = cluster.index();
    assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 500);
    assert_eq!(index.count(&scope(1), 0..1_000).await.unwrap(), 500);
    behind(&cluster, 1).await;
}
