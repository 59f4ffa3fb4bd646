//! The search index is rebuilt on request, and put right by itself.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use audit_core::memory::MemoryIndex;
use audit_core::{
    AuditLog, Entry, Event, Hits, LogStore, Result, Role, SearchIndex, SearchRequest, TenantScope,
};
use serde_json::Value;

use crate::service::{Service, send, token, until};

#[tokio::test]
async fn the_index_is_rebuilt_on_request_while_recording_and_searching_go_on() {
    let service = Service::start().await;
    let home = service.tenant("home").await;
    let admin = token(Role::Admin, home);
    for n in 0..30 {
        let event = Event::view("doc", format!("d{n}")).reason("needle");
        service.record(home, event).await;
    }
    let found = async || {
        let path = "/api/v1/logs?q=needle&limit=100";
        let answer = send(service.get(path, &token(Role::User, home))).await;
        answer.expect(200).json()["data"].as_array().unwrap().len()
    };
    until("all are found", async || found().await == 30).await;
    let asked = async || {
        let answer = send(service.get("/api/v1/admin/reindex", &admin)).await;
        answer.expect(200).json()
    };
    assert_eq!(asked().await["status"], "none");

    let start = async || {
        let answer = send(service.post("/api/v1/admin/reindex", &admin, "")).await;
        let answer = answer.expect(202);
        assert_eq!(answer.header("location"), "/api/v1/admin/reindex");
        answer.json()
    };
    let (first, again) = tokio::join!(start(), start());
    // The second one asked for nothing more, unless the first was done by then.
    let running: Vec<&Value> = [&first, &again].into_iter().collect();
    assert!(
        running
            .iter()
            .all(|it| it["status"] == "running" || it["status"] == "done")
    );
    service
        .record(home, Event::view("doc", "d30").reason("needle"))
        .await;
    until("it is done", async || asked().await["status"] == "done").await;
    let done = asked().await;
    assert!(done["finished_at"].as_str() >= done["started_at"].as_str());
    assert!(done["error"].is_null());
    until("all are found, too", async || found().await == 31).await;
    let index = service.storage.log.search().unwrap();
    let scope = TenantScope::trusted(home, "test");
    let held = index.held(&scope, 0..100).await.unwrap();
    let size = service.head(home).await.size();
    assert_eq!(held, (0..size).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_the_index_lost_is_told_in_the_metrics_and_comes_back() {
    let service = Service::start().await;
    let home = service.tenant("home").await;
    for n in 0..30 {
        let event = Event::view("doc", format!("d{n}")).reason("needle");
        service.record(home, event).await;
    }
    let index = service.storage.log.search().unwrap();
    let scope = TenantScope::trusted(home, "test");
    let size = service.head(home).await.size();
    until("all are indexed", async || {
        index.indexed_through(&scope).await.unwrap() == size
    })
    .await;
    index.mend(&scope, &[], &[7, 8]).await.unwrap();
    let metric = async |name: &str| {
        let page = send(service.http.get(service.url("/metrics")))
            .await
            .expect(200);
        let mut lines = page.text.lines();
        lines.find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
    };
    // Servers of other tests in this process share the metrics.
    until("it is put right", async || {
        index.held(&scope, 0..100).await.unwrap().len() as u64 == size
    })
    .await;
    until("the metrics tell", async || {
        metric("audit_index_difference ").await.is_some()
            && metric("audit_index_repaired_total ")
                .await
                .is_some_and(|n| n >= 2.0)
    })
    .await;
}

/// An index whose rebuild panics.
#[derive(Debug, Default)]
struct Panics(MemoryIndex);

#[async_trait]
impl SearchIndex for Panics {
    async fn index(&self, entries: &[Entry]) -> Result<()> {
        self.0.index(entries).await
    }
    async fn search(&self, scope: &TenantScope, request: &SearchRequest) -> Result<Hits> {
        self.0.search(scope, request).await
    }
    async fn remove(&self, scope: &TenantScope, current: &[Entry]) -> Result<()> {
        self.0.remove(scope, current).await
    }
    async fn indexed_through(&self, scope: &TenantScope) -> Result<u64> {
        self.0.indexed_through(scope).await
    }
    async fn held(&self, scope: &TenantScope, seqs: Range<u64>) -> Result<Vec<u64>> {
        self.0.held(scope, seqs).await
    }
    async fn mend(&self, scope: &TenantScope, missing: &[Entry], surplus: &[u64]) -> Result<()> {
        self.0.mend(scope, missing, surplus).await
    }
    async fn forget(&self, scope: &TenantScope) -> Result<()> {
        self.0.forget(scope).await
    }
    async fn rebuild(&self, _: &Arc<dyn LogStore>) -> Result<()> {
        panic!("asked for by the test");
    }
}

#[tokio::test]
async fn a_rebuild_that_panics_has_failed_and_may_be_asked_for_again() {
    let service = Service::on_log(|store| {
        let builder = AuditLog::builder(store);
        builder.search(Arc::new(Panics::default())).build()
    })
    .await;
    let admin = token(Role::Admin, service.tenant("home").await);
    for _ in 0..2 {
        let answer = send(service.post("/api/v1/admin/reindex", &admin, "")).await;
        answer.expect(202);
        until("it has failed", async || {
            let answer = send(service.get("/api/v1/admin/reindex", &admin)).await;
            answer.expect(200).json()["status"] == "failed"
        })
        .await;
    }
}
