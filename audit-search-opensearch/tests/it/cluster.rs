//! A part of the cluster that is one test's own, and entries to put there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use audit_conformance::person::Person;
use audit_core::text::Query;
use audit_core::{
    Clock, Entry, Event, EventId, Filter, PreparedEvent, SearchIndex, SearchRequest, SystemClock,
    TenantId, TenantScope, Timestamp,
};
use audit_search_opensearch::{Layout, OpenSearchIndex, OpenSearchOptions};
use opensearch::http::Method;
use opensearch::http::headers::HeaderMap;
use opensearch::http::transport::Transport;
use serde_json::{Value, json};
use uuid::Uuid;

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// What `dev/services` says of a service.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run dev/services up, then set -a; . .dev/env; set +a")
    })
}

pub(crate) fn url() -> String {
    variable("AUDIT_TEST_OPENSEARCH_URL")
}

/// Names that no other test has. What is made under them is deleted in the end.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) prefix: String,
    pub(crate) layout: Layout,
}

impl Cluster {
    pub(crate) fn new(layout: Layout) -> Self {
        let random = Uuid::from_slice(&SystemClock.secret()[..16]).unwrap();
        Self {
            prefix: format!("test-{}", random.simple()),
            layout,
        }
    }

    pub(crate) fn options(&self, url: &str) -> OpenSearchOptions {
        OpenSearchOptions::new(url)
            .unwrap()
            .prefix(&self.prefix)
            .unwrap()
            .layout(self.layout)
            .replicas(0)
    }

    /// An index value of its own each time.
    pub(crate) fn index(&self) -> OpenSearchIndex {
        OpenSearchIndex::open(self.options(&url())).unwrap()
    }

    /// The alias that leads to a tenant's index.
    pub(crate) fn live(&self, tenant: TenantId) -> String {
        match self.layout {
            Layout::PerTenant => format!("{}-v1-{tenant}", self.prefix),
            _ => format!("{}-v1", self.prefix),
        }
    }

    /// The value of a parameter `routing`, with which a tenant's documents are written.
    pub(crate) fn routing(&self, tenant: TenantId) -> String {
        match self.layout {
            Layout::PerTenant => String::new(),
            _ => format!("routing={tenant}"),
        }
    }

    /// Documents that were removed or replaced, and still stand in a segment.
    pub(crate) async fn removed_documents(&self) -> u64 {
        let path = format!("/{}-v1-*/_segments", self.prefix);
        let answer = request(Method::Get, &path, None).await;
        let mut removed = 0;
        for index in answer["indices"].as_object().unwrap().values() {
            for copies in index["shards"].as_object().unwrap().values() {
                for segments in copies.as_array().unwrap() {
                    for segment in segments["segments"].as_object().unwrap().values() {
                        removed += segment["deleted_docs"].as_u64().unwrap();
                    }
                }
            }
        }
        removed
    }

    /// The fields whose terms have the person, in any document that a segment holds: a removed one's, too.
    pub(crate) async fn terms_with(&self, person: &Person) -> BTreeSet<String> {
        let all = format!("/{}-v1-*", self.prefix);
        let mappings = request(Method::Get, &format!("{all}/_mapping"), None).await;
        let mut fields = BTreeSet::new();
        for index in mappings.as_object().unwrap().values() {
            let properties = index["mappings"]["properties"].as_object().unwrap();
            let has_terms = |field: &Value| field["type"] == "keyword" || field["type"] == "text";
            let properties = properties.iter().filter(|(_, field)| has_terms(field));
            fields.extend(properties.map(|(name, _)| name.clone()));
        }
        let mut found = BTreeSet::new();
        // Goes through the dictionary, and names terms by the whole name.
        let part = format!(".*{}.*", &person.name()[8..]);
        let path = format!("{all}/_validate/query?explain=true&rewrite=true&all_shards=true");
        for field in fields {
            let terms = json!({ "value": part, "rewrite": "top_terms_10" });
            let query = json!({ "query": { "regexp": { field.as_str(): terms } } });
            let answer = request(Method::Post, &path, Some(query)).await;
            assert_eq!(answer["_shards"]["failed"], 0, "{answer}");
            assert_eq!(answer["valid"], true, "{answer}");
            if answer.to_string().contains(person.name()) {
                found.insert(field);
            }
        }
        found
    }

    /// The sources of all documents that the indexes hold now.
    pub(crate) async fn sources(&self) -> Vec<String> {
        let path = format!("/{}-v1-*/_search?scroll=1m", self.prefix);
        let all = json!({ "size": 1_000, "sort": ["_doc"] });
        let mut answer = request(Method::Post, &path, Some(all)).await;
        let mut sources = Vec::new();
        loop {
            let hits = answer["hits"]["hits"].as_array().unwrap();
            sources.extend(hits.iter().map(|hit| hit["_source"].to_string()));
            let scroll = answer["_scroll_id"].clone();
            let path = "/_search/scroll";
            if hits.is_empty() {
                // It would keep segments.
                let scroll = json!({ "scroll_id": [scroll] });
                request(Method::Delete, path, Some(scroll)).await;
                return sources;
            }
            let scroll = json!({ "scroll": "1m", "scroll_id": scroll });
            answer = request(Method::Post, path, Some(scroll)).await;
        }
    }

    /// The files of the indexes that have the person, on this machine's disk.
    pub(crate) async fn files_with(&self, person: &Person) -> BTreeSet<PathBuf> {
        let nodes = request(Method::Get, "/_nodes/stats/fs", None).await;
        let node = nodes["nodes"].as_object().unwrap().values().next().unwrap();
        let folder = Path::new(node["fs"]["data"][0]["path"].as_str().unwrap()).join("indices");
        let path = format!("/{}-v1-*/_settings", self.prefix);
        let settings = request(Method::Get, &path, None).await;
        let mut found = BTreeSet::new();
        for index in settings.as_object().unwrap().values() {
            let index = index["settings"]["index"]["uuid"].as_str().unwrap();
            let folder = folder.join(index);
            assert!(
                folder.is_dir(),
                "{} isn't on this machine",
                folder.display()
            );
            found.extend(person.files_with(&folder).unwrap());
        }
        found
    }

    pub(crate) async fn wipe(&self) {
        request(Method::Delete, &self.all(), None).await;
    }

    fn all(&self) -> String {
        format!("/{}-v1-*?ignore_unavailable=true", self.prefix)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let (all, template) = (self.all(), format!("/_index_template/{}-v1", self.prefix));
        let cleaner = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                send(Method::Delete, &all, None).await;
                send(Method::Delete, &template, None).await;
            });
        });
        if cleaner.join().is_err() {
            eprintln!("{} is left in OpenSearch", self.prefix);
        }
    }
}

async fn send(method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let transport = Transport::single_node(&url()).unwrap();
    let body = body.map(|body| body.to_string());
    let response = transport
        .send(method, path, HeaderMap::new(), None::<&()>, body, None)
        .await
        .expect("OpenSearch answers: run dev/services up");
    let status = response.status_code().as_u16();
    (status, response.json().await.unwrap())
}

/// Speaks to OpenSearch behind the index's back; it must say yes.
pub(crate) async fn request(method: Method, path: &str, body: Option<Value>) -> Value {
    let (status, answer) = send(method, path, body).await;
    assert!(status < 300, "{method:?} {path}: {answer}");
    answer
}

pub(crate) fn tenant(n: u128) -> TenantId {
    TenantId::new(Uuid::from_u128(n))
}

pub(crate) fn scope(n: u128) -> TenantScope {
    TenantScope::trusted(tenant(n), "test")
}

/// The entry of an event at a position.
pub(crate) fn entry(owner: u128, seq: u64, event: Event) -> Entry {
    let event = PreparedEvent::new(tenant(owner), event, &SystemClock, &[]).unwrap();
    let start = Timestamp::parse("2026-11-24T03:00:00Z").unwrap();
    let at = Timestamp::from_micros(start.as_micros() + seq as i64 * 1_000_000).unwrap();
    let id = EventId::new(Uuid::from_u128(u128::from(seq) + 1));
    Entry::new(tenant(owner), id, seq, at, event.fields().clone())
}

/// Entries that have this reason, and a word of their own, `n` and their position.
pub(crate) fn entries(owner: u128, seqs: std::ops::Range<u64>, reason: &str) -> Vec<Entry> {
    seqs.map(|seq| {
        let event = Event::view("doc", format!("n{seq}")).reason(reason);
        entry(owner, seq, event)
    })
    .collect()
}

pub(crate) fn filter(q: &str) -> Filter {
    Filter::new().text(Query::parse(q).unwrap())
}

/// The positions that the index gives, newest first.
pub(crate) async fn find(index: &OpenSearchIndex, owner: u128, q: &str) -> Vec<u64> {
    let request = SearchRequest::new(filter(q), 1_000);
    index.search(&scope(owner), &request).await.unwrap().seqs
}

/// Waits until it holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
