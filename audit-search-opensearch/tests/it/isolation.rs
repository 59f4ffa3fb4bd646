//! One tenant's words are not another's.

use std::sync::Arc;

use audit_core::memory::MemoryStore;
use audit_core::{AuditLog, Event, PageRequest, Recorder, SearchIndex};
use audit_search_opensearch::Layout;
use opensearch::http::Method;
use serde_json::json;

use crate::cluster::{Cluster, entries, filter, find, request, scope, tenant, until};

#[tokio::test]
async fn tenants_with_the_same_words_find_their_own() {
    for layout in [Layout::Shared, Layout::PerTenant] {
        let cluster = Cluster::new(layout);
        let index = cluster.index();
        let mut all = entries(1, 0..3, "same words");
        all.extend(entries(2, 0..8, "same words"));
        index.index(&all).await.unwrap();
        assert_eq!(find(&index, 1, "\"same words\"").await, [2, 1, 0]);
        assert_eq!(find(&index, 2, "\"same words\"").await.len(), 8);
        assert_eq!(find(&index, 3, "\"same words\"").await, [0; 0]);
        for (owner, n) in [(1, 3), (2, 8), (3, 0)] {
            assert_eq!(index.count(&scope(owner), 0..100).await.unwrap(), n);
        }
        index.drop_below(&scope(2), 8).await.unwrap();
        assert_eq!(find(&index, 1, "\"same words\"").await, [2, 1, 0]);
        assert_eq!(find(&index, 2, "\"same words\"").await, [0; 0]);
    }
}

#[tokio::test]
async fn forged_documents_show_nobody_anything() {
    for layout in [Layout::Shared, Layout::PerTenant] {
        let cluster = Cluster::new(layout);
        let index = Arc::new(cluster.index());
        let log = AuditLog::builder(Arc::new(MemoryStore::new()))
            .search(index.clone())
            .build();
        for owner in [1, 2] {
            let recorder = log.recorder(tenant(owner));
            for n in 0..4 {
                let event = Event::view("doc", format!("d{n}")).reason(format!("tenant{owner}"));
                recorder.record(event).await.unwrap();
            }
        }
        let workers = log.start();
        until("both are indexed", async || {
            let mut through = [0; 2];
            for owner in [1, 2] {
                let scope = scope(owner);
                through[owner as usize - 1] = index.indexed_through(&scope).await.unwrap();
            }
            through == [4, 4]
        })
        .await;
        // Where tenant 1's searches look: documents of tenant 2, of tenant 1 with words and positions
        // that aren't its own, and one more of an entry that is there.
        let forged = [
            (2, 1, "tenant1 tenant2", "a"),
            (1, 2, "tenant2", "b"),
            (1, 99, "tenant1 tenant2", "c"),
            (1, 3, "tenant1", "d"),
        ];
        for (owner, seq, text, id) in forged {
            let (live, routing) = (cluster.live(tenant(1)), cluster.routing(tenant(1)));
            let path = format!("/{live}/_doc/{id}?refresh=true&{routing}");
            let body = json!({"tenant": tenant(owner), "seq": seq, "text": [text]});
            request(Method::Put, &path, Some(body)).await;
        }
        for (owner, q, expected) in [
            (1, "tenant1", 4),
            (1, "tenant2", 0),
            (2, "tenant2", 4),
            (2, "tenant1", 0),
        ] {
            let reader = log.tenant(scope(owner));
            let page = reader
                .list(&filter(q), &PageRequest::first())
                .await
                .unwrap();
            let mut seqs: Vec<u64> = page.items.iter().map(|entry| entry.seq).collect();
            seqs.dedup();
            assert_eq!((seqs.len(), page.items.len()), (expected, expected), "{q}");
            assert!(page.items.iter().all(|e| e.tenant_id == tenant(owner)));
        }
        drop(workers);
    }
}
