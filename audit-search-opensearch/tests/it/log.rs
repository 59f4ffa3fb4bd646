//! With the workers of a log, from recording to searching.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use audit_conformance::person::{self, Person};
use audit_core::memory::MemoryStore;
use audit_core::{
    AuditLog, Basis, Clock, Event, PageRequest, Recorder, SearchIndex as _, SystemClock, Timestamp,
    Vacuum as _,
};
use audit_search_opensearch::Layout;

use crate::cluster::{Cluster, filter, find, scope, tenant, until};

#[tokio::test]
async fn what_is_recorded_is_found_what_is_erased_or_pruned_leaves_the_index() {
    for layout in [Layout::Shared, Layout::PerTenant] {
        let cluster = Cluster::new(layout);
        let index = cluster.index();
        let log = AuditLog::builder(Arc::new(MemoryStore::new()))
            .search(Arc::new(index.another()))
            .build();
        let workers = log.start();
        let mut ids = Vec::new();
        for n in 0..6 {
            let event = Event::view("doc", format!("d{n}")).reason("needle in a haystack");
            ids.push(log.recorder(tenant(1)).record(event).await.unwrap().id);
        }
        let reader = log.tenant(scope(1));
        let listed = async |q: &str| {
            let page = reader
                .list(&filter(q), &PageRequest::first())
                .await
                .unwrap();
            page.items.len()
        };
        until("the needles are found", async || {
            listed("needle").await == 6
        })
        .await;
        let basis: Basis = "gdpr-17".parse().unwrap();
        reader
            .erase(ids[1..3].to_vec(), None, basis.clone(), None)
            .await
            .unwrap();
        until("the index has forgotten", async || {
            find(&index, 1, "needle").await == [5, 4, 3, 0]
        })
        .await;
        // All that is there now, so up to the `erase` entry.
        let now = SystemClock.now().as_micros() + 1;
        reader
            .prune(Timestamp::from_micros(now).unwrap(), basis, None, false)
            .await
            .unwrap();
        until("the pruned documents are gone", async || {
            index.count(&scope(1), 0..7).await.unwrap() == 0
        })
        .await;
        let event = Event::view("doc", "d9").reason("needle");
        log.recorder(tenant(1)).record(event).await.unwrap();
        until("it goes on", async || listed("needle").await == 1).await;
        assert!(workers.shutdown(Duration::from_secs(5)).await);
    }
}

#[tokio::test]
async fn an_erased_person_is_in_no_term_source_or_file_after_vacuum() {
    for layout in [Layout::Shared, Layout::PerTenant] {
        let cluster = Cluster::new(layout);
        let (index, person) = (cluster.index(), Person::random());
        let log = AuditLog::builder(Arc::new(MemoryStore::new()))
            .search(Arc::new(index.another()))
            .build();
        let workers = log.start();
        let mut ids = Vec::new();
        for n in 0..20 {
            let who = if n % 2 == 0 { person.name() } else { "ann" };
            let event = person::event(n, who);
            ids.push(log.recorder(tenant(1)).record(event).await.unwrap().id);
        }
        until("all is indexed", async || {
            index.indexed_through(&scope(1)).await.unwrap() == 20
        })
        .await;
        // Each field of which the index has terms.
        let fields = [
            "related_id",
            "request_id",
            "resource_id",
            "session_id",
            "text",
            "trace_id",
            "user_id",
        ];
        assert_eq!(
            cluster.terms_with(&person).await,
            fields.map(str::to_owned).into()
        );
        assert!(!cluster.files_with(&person).await.is_empty());
        // A source has how far the index is, and never more.
        let shows = |sources: &[String]| sources.iter().any(|s| person.is_in(s.as_bytes()));
        let sources = cluster.sources().await;
        assert!(sources.len() > 20, "{sources:?}");
        assert!(!shows(&sources), "{sources:?}");

        let erased = ids.iter().copied().step_by(2).collect();
        let basis: Basis = "gdpr-17".parse().unwrap();
        let reader = log.tenant(scope(1));
        reader.erase(erased, None, basis, None).await.unwrap();
        until("the erasure is indexed", async || {
            index.indexed_through(&scope(1)).await.unwrap() == 21
        })
        .await;
        assert!(cluster.removed_documents().await > 0);
        assert_eq!(cluster.terms_with(&person).await.len(), fields.len());
        for _ in 0..2 {
            assert_eq!(index.vacuum().await.unwrap(), [""; 0]);
        }
        assert_eq!(cluster.removed_documents().await, 0);
        assert_eq!(cluster.terms_with(&person).await, BTreeSet::new());
        assert_eq!(cluster.files_with(&person).await, BTreeSet::new());
        let sources = cluster.sources().await;
        assert!(!shows(&sources), "{sources:?}");
        assert!(find(&index, 1, person.name()).await.is_empty());
        assert_eq!(index.count(&scope(1), 0..21).await.unwrap(), 21);
        assert!(workers.shutdown(Duration::from_secs(5)).await);
    }
}
