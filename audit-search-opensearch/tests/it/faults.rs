//! OpenSearch fails, in whole and in part.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use audit_core::{Error, ErrorKind, Group, SearchIndex, SearchRequest};
use audit_search_opensearch::{Layout, OpenSearchIndex};
use opensearch::http::Method;
use serde_json::json;
use tokio::net::TcpListener;

use crate::cluster::{Cluster, entries, filter, find, request, scope, tenant};
use crate::proxy::{Act, Proxy};

const LAYOUTS: [Layout; 2] = [Layout::Shared, Layout::PerTenant];

fn assert_retryable(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.is_retryable() && error.retry_after().is_some());
}

/// Of the documents with this name, the next one fails.
fn fail_once(proxy: &Proxy, id: String, status: u16, kind: &'static str) {
    let mut done = false;
    proxy.rule(move |request| {
        let at = request.written().iter().position(|written| *written == id);
        match at {
            Some(at) if !done => {
                done = true;
                Act::FailWrite(at, status, kind)
            }
            _ => Act::Pass,
        }
    });
}

#[tokio::test]
async fn a_write_that_fails_leaves_the_others_and_is_written_again() {
    for layout in LAYOUTS {
        let (cluster, proxy) = (Cluster::new(layout), Proxy::start().await);
        let index = OpenSearchIndex::open(cluster.options(&proxy.url)).unwrap();
        let mut all = entries(1, 0..20, "common");
        all.extend(entries(2, 0..20, "common"));
        let id = format!("{}-7", tenant(1));
        fail_once(&proxy, id, 429, "opensearch_rejected_execution_exception");
        assert_retryable(&index.index(&all).await.unwrap_err());
        // All before it is vouched for, and the other tenant has lost nothing.
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 7);
        assert_eq!(index.indexed_through(&scope(2)).await.unwrap(), 20);
        assert_eq!(index.count(&scope(1), 0..100).await.unwrap(), 19);
        assert_eq!(find(&index, 1, "common").await.len(), 7);
        index.index(&all).await.unwrap();
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 20);
        assert_eq!(find(&index, 1, "common").await.len(), 20);
    }
}

#[tokio::test]
async fn progress_is_not_written_before_the_entries_are() {
    let (cluster, proxy) = (Cluster::new(Layout::Shared), Proxy::start().await);
    let index = OpenSearchIndex::open(cluster.options(&proxy.url)).unwrap();
    let all = entries(1, 0..10, "common");
    index.index(&all[..3]).await.unwrap();
    // Each request of the call in turn is answered with a failure, or done and not answered.
    for cut in [false, true] {
        for failing in 0.. {
            let count = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&count);
            proxy.rule(
                move |_| match (counted.fetch_add(1, Ordering::SeqCst) == failing, cut) {
                    (true, false) => Act::Answer(503, json!({"error": {"type": "busy"}})),
                    (true, true) => Act::Cut,
                    (false, _) => Act::Pass,
                },
            );
            let outcome = index.index(&all).await;
            proxy.pass();
            let through = index.indexed_through(&scope(1)).await.unwrap();
            assert_eq!(
                find(&index, 1, "common").await.len() as u64,
                through,
                "the {failing}th request fails"
            );
            match outcome {
                Err(error) => assert_retryable(&error),
                Ok(()) => {
                    assert_eq!(through, 10);
                    assert!(failing > 0);
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn the_time_that_the_server_names_is_passed_on() {
    let (cluster, proxy) = (Cluster::new(Layout::Shared), Proxy::start().await);
    let index = OpenSearchIndex::open(cluster.options(&proxy.url)).unwrap();
    for status in [429, 503] {
        proxy.rule(move |_| Act::Answer(status, json!({"error": "later"})));
        for error in [
            index.index(&entries(1, 0..1, "x")).await.unwrap_err(),
            index.indexed_through(&scope(1)).await.unwrap_err(),
        ] {
            assert_retryable(&error);
            assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        }
    }
}

#[tokio::test]
async fn a_document_that_is_refused_does_not_hold_up_the_others_and_is_a_hit_of_every_search() {
    for layout in LAYOUTS {
        let cluster = Cluster::new(layout);
        let index = cluster.index();
        index.index(&entries(1, 0..1, "common")).await.unwrap();
        // A cluster whose operator has its own ideas.
        let pipeline = format!("/_ingest/pipeline/{}", cluster.prefix);
        let script = "if (ctx.text != null && ctx.text.contains('poison')) \
                      { throw new IllegalArgumentException('no'); }";
        let body = json!({"processors": [{"script": {"source": script}}]});
        request(Method::Put, &pipeline, Some(body)).await;
        let settings = format!("/{}/_settings", cluster.live(tenant(1)));
        let body = json!({"index.default_pipeline": cluster.prefix});
        request(Method::Put, &settings, Some(body)).await;

        let mut all = entries(1, 0..10, "common");
        all[4].fields_mut().reason = Some("poison".into());
        index.index(&all).await.unwrap();
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 10);
        assert_eq!(find(&index, 1, "common").await.len(), 10);
        assert_eq!(find(&index, 1, "poison").await, [4]);
        assert_eq!(find(&index, 1, "nowhere").await, [4]);
        // What is left of it is taken, once the reason for the refusal is erased.
        all[4].fields_mut().clear(Group::Reason);
        all[4].erased = vec![Group::Reason];
        index.remove(&scope(1), &all[4..5]).await.unwrap();
        assert_eq!(find(&index, 1, "nowhere").await, [0; 0]);
        assert_eq!(find(&index, 1, "n4").await, [4]);
        request(
            Method::Put,
            &settings,
            Some(json!({"index.default_pipeline": null})),
        )
        .await;
        request(Method::Delete, &pipeline, None).await;
    }
}

#[tokio::test]
async fn a_wiped_index_says_zero_and_is_filled_again() {
    for layout in LAYOUTS {
        let cluster = Cluster::new(layout);
        let index = cluster.index();
        let all = entries(1, 0..20, "common");
        index.index(&all[..10]).await.unwrap();
        cluster.wipe().await;
        let request = SearchRequest::new(filter("common"), 10);
        let hits = index.search(&scope(1), &request).await.unwrap();
        assert_eq!((hits.seqs.len(), hits.indexed_through), (0, 0));
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 0);
        index.remove(&scope(1), &all[..1]).await.unwrap();
        index.index(&all).await.unwrap();
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 20);
        assert_eq!(find(&index, 1, "common").await.len(), 20);
    }
}

#[tokio::test]
async fn an_indexer_whose_index_was_wiped_is_told_before_it_leaves_a_gap() {
    for layout in LAYOUTS {
        let cluster = Cluster::new(layout);
        let (index, other) = (cluster.index(), cluster.index());
        let all = entries(1, 0..30, "common");
        index.index(&all[..10]).await.unwrap();
        cluster.wipe().await;
        // A reader learns of it first.
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 0);
        assert_retryable(&index.index(&all[10..20]).await.unwrap_err());
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 0);
        // The same when another process has begun to fill it.
        other.index(&all[..20]).await.unwrap();
        index.index(&all[20..25]).await.unwrap();
        cluster.wipe().await;
        other.index(&all[..5]).await.unwrap();
        assert_retryable(&index.index(&all[25..]).await.unwrap_err());
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 5);
        index.index(&all[5..]).await.unwrap();
        assert_eq!(find(&index, 1, "common").await.len(), 30);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_wiped_during_a_write_gets_no_progress_from_it() {
    let (cluster, proxy) = (Cluster::new(Layout::Shared), Proxy::start().await);
    let index = OpenSearchIndex::open(cluster.options(&proxy.url)).unwrap();
    let all = entries(1, 0..20, "common");
    index.index(&all[..10]).await.unwrap();
    // Another process empties and fills it between this one's entries and its progress.
    let (sender, mut bulks) = tokio::sync::mpsc::channel::<std::sync::mpsc::Sender<()>>(1);
    proxy.rule(move |request| {
        if request.path.contains("/_refresh") {
            let (done, wait) = std::sync::mpsc::channel();
            if sender.try_send(done).is_ok() {
                // The proxy's own thread may wait: the test has several.
                tokio::task::block_in_place(|| wait.recv().ok());
            }
        }
        Act::Pass
    });
    let writes = index.clone();
    let later = all[10..].to_vec();
    let writing = tokio::spawn(async move { writes.index(&later).await });
    let resume = bulks.recv().await.unwrap();
    cluster.wipe().await;
    cluster.index().index(&all[..10]).await.unwrap();
    resume.send(()).unwrap();
    assert_retryable(&writing.await.unwrap().unwrap_err());
    proxy.pass();
    assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 10);
    index.index(&all[10..]).await.unwrap();
    assert_eq!(find(&index, 1, "common").await.len(), 20);
}

#[tokio::test]
async fn documents_that_were_just_deleted_are_not_taken_for_indexed_ones() {
    let cluster = Cluster::new(Layout::Shared);
    let index = cluster.index();
    let all = entries(1, 0..5, "common");
    index.index(&all).await.unwrap();
    // By an operator; their versions live on for a minute.
    let refresh = format!("/{}/_refresh", cluster.live(tenant(1)));
    request(Method::Post, &refresh, None).await;
    let path = format!("/{}/_delete_by_query?refresh=true", cluster.live(tenant(1)));
    let body = json!({"query": {"match_all": {}}});
    request(Method::Post, &path, Some(body)).await;
    assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 0);
    assert_retryable(&index.index(&all).await.unwrap_err());
    assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 0);
    let settings = format!("/{}/_settings", cluster.live(tenant(1)));
    request(
        Method::Put,
        &settings,
        Some(json!({"index.gc_deletes": "0s"})),
    )
    .await;
    crate::cluster::until("the versions are forgotten", async || {
        index.index(&all).await.is_ok()
    })
    .await;
    assert_eq!(find(&index, 1, "common").await.len(), 5);
}

#[tokio::test]
async fn what_was_read_before_an_erasure_never_replaces_what_was_read_after_it() {
    let cluster = Cluster::new(Layout::Shared);
    let (index, slow) = (cluster.index(), cluster.index());
    let all = entries(1, 0..10, "secret");
    index.index(&all[..5]).await.unwrap();
    let mut left = all[3..8].to_vec();
    for entry in &mut left {
        entry.fields_mut().clear(Group::Reason);
        entry.erased = vec![Group::Reason];
    }
    // Also of those that come to the index only later.
    index.remove(&scope(1), &left).await.unwrap();
    slow.index(&all).await.unwrap();
    assert_eq!(find(&index, 1, "secret").await, [9, 8, 2, 1, 0]);
    assert_eq!(find(&index, 1, "n7").await, [7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_indexers_of_one_log_lose_nothing() {
    let cluster = Arc::new(Cluster::new(Layout::Shared));
    let all = Arc::new(entries(1, 0..600, "common"));
    let indexers: Vec<_> = (1..=3_usize)
        .map(|n| {
            let (index, all) = (cluster.index(), Arc::clone(&all));
            tokio::spawn(async move {
                let size = all.len() as u64;
                loop {
                    let from = index.indexed_through(&scope(1)).await.unwrap();
                    if from == size {
                        return;
                    }
                    let to = (from + 7 * n as u64).min(size);
                    let outcome = index.index(&all[from as usize..to as usize]).await;
                    if let Err(error) = outcome {
                        assert_retryable(&error);
                    }
                }
            })
        })
        .collect();
    for indexer in indexers {
        indexer.await.unwrap();
    }
    assert_eq!(cluster.index().count(&scope(1), 0..600).await.unwrap(), 600);
}

#[tokio::test]
async fn a_cluster_that_is_away_is_told_in_time() {
    // Nobody listens, and somebody who never answers.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silence = format!("http://{}", mute.local_addr().unwrap());
    for url in [nobody, silence] {
        let options = Cluster::new(Layout::Shared)
            .options(&url)
            .timeout(Duration::from_millis(300));
        let index = OpenSearchIndex::open(options).unwrap();
        let request = SearchRequest::new(filter("common"), 10);
        let start = Instant::now();
        let all = entries(1, 0..3, "common");
        for error in [
            index.search(&scope(1), &request).await.unwrap_err(),
            index.index(&all).await.unwrap_err(),
            index.indexed_through(&scope(1)).await.unwrap_err(),
            index.remove(&scope(1), &all).await.unwrap_err(),
            index.ping().await.unwrap_err(),
        ] {
            assert_retryable(&error);
        }
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{:?}",
            start.elapsed()
        );
    }
}
