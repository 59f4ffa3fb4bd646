//! Erasures over HTTP: asked for, followed, and carried through whatever happens to the server.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use audit_conformance::is_full;
use audit_core::tlog::evidence::Record;
use audit_core::tlog::leaf::{self, open_disclosure};
use audit_core::tlog::note::VerifyingKey;
use audit_core::tlog::proof::InclusionProof;
use audit_core::tlog::verify::{Options, verify_lines};
use audit_core::{Event, Role};
use serde_json::{Value, json};

use crate::child::{Server, sized};
use crate::service::{Answer, Service, send, token};
use crate::stack::Stack;

/// No base64 has an @ in it, so that a hash is never taken for her.
const ANN: &str = "ann@example.com";
const DEADLINE: Duration = Duration::from_secs(120);

/// Asks until the answer satisfies a condition.
pub(crate) async fn until(
    ask: impl Fn() -> reqwest::RequestBuilder,
    what: &str,
    holds: impl Fn(&Answer) -> bool,
) -> Answer {
    // Of the full sizes an index alone takes minutes.
    let deadline = Instant::now() + if is_full() { 10 * DEADLINE } else { DEADLINE };
    loop {
        // A server that was killed answers nothing for a while.
        if let Ok(response) = ask().send().await {
            let answer = Answer::of(response).await;
            if holds(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{what}: {answer:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn is_done(answer: &Answer) -> bool {
    answer.status == 200 && answer.json()["state"] == "done"
}

#[tokio::test]
async fn everything_of_a_user_is_erased_and_found_no_more() {
    let service = Service::start().await;
    let tenant = service.tenant("acme").await;
    let admin = token(Role::TenantAdmin, tenant);
    let mut ids = Vec::new();
    for n in 0..30 {
        let user = if n % 3 == 0 { ANN } else { "bob" };
        let event = Event::view("doc", format!("d{n}"))
            .user(user)
            .reason(format!("seen by {user}"));
        ids.push(service.record(tenant, event).await);
    }
    let search = || service.get("/api/v1/logs?q=seen+ann", &admin);
    let count = |answer: &Answer| answer.json()["data"].as_array().map_or(0, Vec::len);
    until(search, "they are indexed", |answer| count(answer) == 10).await;

    let dry = json!({"user_id": ANN, "dry_run": true}).to_string();
    let dry = send(service.post("/api/v1/erasures", &admin, dry)).await;
    assert_eq!(
        dry.expect(200).json(),
        json!({"dry_run": true, "matching": 10, "erasable": 10})
    );
    let body = json!({"user_id": ANN, "basis": "gdpr-17", "reason": "request 7"}).to_string();
    let begun = send(service.post("/api/v1/erasures", &admin, body.as_str()))
        .await
        .expect(202);
    let place = begun.header("location").to_owned();
    assert_eq!(begun.json()["state"], "running");
    assert_eq!(
        place,
        format!("/api/v1/erasures/{}", begun.json()["id"].as_str().unwrap())
    );
    let done = until(|| service.get(&place, &admin), "it is done", is_done).await;
    assert!(!done.text.contains(ANN), "{}", done.text);
    let job = done.json();
    // The tenant's creation is no entry.
    let size = job["below"].as_u64().unwrap();
    assert_eq!(job["entries"], 10);
    assert_eq!((&job["next"], &job["end"]), (&job["below"], &job["below"]));
    assert_eq!(job["basis"], "gdpr-17");
    assert_eq!(job["reason"], "request 7");
    assert_eq!(job["groups"].as_array().unwrap().len(), 7);
    assert!(job.get("last_error").is_none());

    for (n, id) in ids.iter().enumerate() {
        let entry = send(service.get(&format!("/api/v1/logs/{id}"), &admin)).await;
        let entry = entry.expect(200).json();
        match n % 3 {
            0 => assert_eq!(entry["erased"], json!(["actor", "resource", "reason"])),
            _ => assert_eq!(entry["user_id"], "bob"),
        }
    }
    let by_user = service.get("/api/v1/logs?user_id=ann%40example.com", &admin);
    assert_eq!(count(&send(by_user).await.expect(200)), 0);
    until(search, "the index has forgotten", |answer| {
        count(answer) == 0 && answer.json()["indexed_through"].as_u64() > Some(size)
    })
    .await;
    let export = "/api/v1/logs/export?format=ndjson";
    let export = send(service.get(export, &admin)).await.expect(200);
    assert!(!export.text.contains(ANN), "{}", export.text);
    let again = send(service.post("/api/v1/erasures", &admin, body))
        .await
        .expect(202);
    let again = again.header("location").to_owned();
    let again = until(|| service.get(&again, &admin), "it is done", is_done).await;
    assert_eq!(again.json()["entries"], 0);
}

#[tokio::test]
async fn an_erasure_by_filter_takes_only_the_groups_that_are_named() {
    let service = Service::start().await;
    let tenant = service.tenant("acme").await;
    let admin = token(Role::TenantAdmin, tenant);
    let mut ids = Vec::new();
    for n in 0..4 {
        let event = Event::view("doc", format!("d{n}"))
            .user(format!("user-{n}"))
            .session_id("s")
            .reason("why");
        ids.push(service.record(tenant, event).await);
    }
    let body = json!({
        "filter": {"user_id": ["user-1", "user-2"], "action_type": ["VIEW"], "q": null},
        "groups": ["reason", "context"],
    });
    let begun = send(service.post("/api/v1/erasures", &admin, body.to_string())).await;
    let place = begun.expect(202).header("location").to_owned();
    let done = until(|| service.get(&place, &admin), "it is done", is_done).await;
    assert_eq!(done.json()["entries"], 2);
    assert_eq!(done.json()["groups"], json!(["context", "reason"]));
    for (n, id) in ids.iter().enumerate() {
        let entry = send(service.get(&format!("/api/v1/logs/{id}"), &admin)).await;
        let entry = entry.expect(200).json();
        assert_eq!(entry["user_id"], format!("user-{n}"));
        let erased = (n == 1 || n == 2).then(|| json!(["context", "reason"]));
        assert_eq!(entry.get("erased"), erased.as_ref());
    }
}

#[tokio::test]
async fn each_fault_of_an_erasure_names_its_field() {
    let service = Service::start().await;
    let tenant = service.tenant("acme").await;
    let admin = token(Role::TenantAdmin, tenant);
    let id = service.record(tenant, Event::view("doc", "d")).await;
    let many = vec![id.to_string(); 2];
    for (body, place) in [
        (json!({}), "#/ids"),
        (json!({"ids": []}), "#/ids"),
        (json!({"ids": ["x"]}), "#/ids"),
        (json!({"ids": "x"}), "#/ids"),
        (json!({"ids": many, "user_id": "ann"}), "#/user_id"),
        (json!({"user_id": "ann", "filter": {}}), "#/filter"),
        (json!({"user_id": 7}), "#/user_id"),
        (json!({"filter": {}}), "#/filter"),
        (json!({"filter": {"q": null}}), "#/filter"),
        (json!({"filter": []}), "#/filter"),
        (json!({"filter": {"user": ["a"]}}), "#/filter/user"),
        (json!({"filter": {"user_id": "ann"}}), "#/filter/user_id"),
        (
            json!({"filter": {"severity": ["LOUD"]}}),
            "#/filter/severity",
        ),
        (json!({"filter": {"from": "now"}}), "#/filter/from"),
        (json!({"user_id": "a", "groups": []}), "#/groups"),
        (json!({"user_id": "a", "groups": ["body"]}), "#/groups"),
        (json!({"user_id": "a", "basis": "Because"}), "#/basis"),
        (
            json!({"user_id": "a", "reason": "x".repeat(1_025)}),
            "#/reason",
        ),
        (json!({"user_id": "a", "dry_run": 1}), "#/dry_run"),
        (json!({"user": "a"}), "#/user"),
    ] {
        let answer = send(service.post("/api/v1/erasures", &admin, body.to_string())).await;
        answer.problem(422, place);
    }
    let nowhere = "/api/v1/erasures/00000000-0000-7000-8000-00000000dead";
    send(service.get(nowhere, &admin)).await.expect(404);
    let entry = send(service.get(&format!("/api/v1/logs/{id}"), &admin)).await;
    assert!(entry.expect(200).json().get("erased").is_none());
}

impl Service {
    async fn erase_entry(&self, id: impl std::fmt::Display, token: &str) -> Answer {
        let path = self.url(&format!("/api/v1/logs/cleanup/{id}"));
        send(self.http.delete(path).bearer_auth(token)).await
    }

    /// Erases one entry, and waits for the end behind the answer where that comes first. Returns how many
    /// lost something.
    async fn erase_to_the_end(&self, id: impl std::fmt::Display, token: &str) -> Value {
        let mut answer = self.erase_entry(id, token).await;
        if answer.status == 202 {
            let place = answer.header("location").to_owned();
            answer = until(|| self.get(&place, token), "it is done", is_done).await;
        }
        answer.expect(200).json()["entries"].clone()
    }

    /// Accepts an event that is to be appended later, and returns its id.
    async fn enqueue(&self, token: &str, user: &str) -> String {
        let event = json!({
            "action_type": "VIEW", "resource_type": "doc", "resource_id": "d", "user_id": user,
        });
        let queued = self.post("/api/v1/logs", token, event.to_string());
        let queued = send(queued.header("prefer", "respond-async")).await;
        queued.expect(202).json()["id"].as_str().unwrap().to_owned()
    }

    async fn entry(&self, id: impl std::fmt::Display, token: &str) -> Answer {
        send(self.get(&format!("/api/v1/logs/{id}"), token)).await
    }
}

const GROUPS: [&str; 2] = ["actor", "resource"];

#[tokio::test]
async fn one_entry_is_erased_and_a_repeat_finds_nothing_left() {
    let service = Service::start().await;
    let (tenant, other) = (service.tenant("acme").await, service.tenant("other").await);
    let admin = token(Role::TenantAdmin, tenant);
    let id = service
        .record(tenant, Event::view("doc", "d").user(ANN))
        .await;
    // Another tenant's id is as unknown as one that never was.
    let stranger = token(Role::TenantAdmin, other);
    for unknown in [
        id.to_string(),
        "0190a000-0000-7000-8000-00000000dead".to_owned(),
    ] {
        for _ in 0..2 {
            let unknown = service.erase_entry(&unknown, &stranger).await.expect(404);
            assert_eq!(unknown.json()["type"], "/problems/not-found");
        }
    }
    let entry = service.entry(id, &admin).await.expect(200).json();
    assert_eq!(entry["user_id"], ANN);

    let size = service.head(tenant).await.size();
    let erased = service.erase_entry(id, &admin).await.expect(200).json();
    assert_eq!(erased["entries"], 1);
    assert_eq!(erased["receipts"].as_array().unwrap().len(), 1);
    assert_eq!(erased["receipts"][0]["seq"], size);
    let entry = service.entry(id, &admin).await.expect(200).json();
    assert_eq!(entry["erased"], json!(GROUPS));
    let again = service.erase_entry(id, &admin).await.expect(200).json();
    assert_eq!(again, json!({"entries": 0, "receipts": []}));
    assert_eq!(service.head(tenant).await.size(), size + 1);
}

#[tokio::test]
async fn one_entry_that_was_accepted_and_is_still_queued_is_erased_when_it_arrives() {
    let service = Service::with(&[("AUDIT_ROLES", "api")]).await;
    let tenant = service.tenant("acme").await;
    let admin = token(Role::TenantAdmin, tenant);
    let id = service.enqueue(&admin, ANN).await;
    service.entry(&id, &admin).await.expect(404);
    let begun = service.erase_entry(&id, &admin).await.expect(202);
    let place = begun.header("location").to_owned();
    let told = send(service.get(&place, &admin)).await.expect(200);
    assert!(
        !told.text.contains(ANN) && !told.text.contains(&id),
        "{}",
        told.text
    );
    let later = service.enqueue(&admin, ANN).await;

    let workers = service.storage.log.start();
    let path = format!("/api/v1/logs/{id}");
    let has_lost = |answer: &Answer| answer.status == 200 && answer.json().get("erased").is_some();
    let entry = until(|| service.get(&path, &admin), "it is erased", has_lost).await;
    assert!(!entry.text.contains(ANN), "{}", entry.text);
    assert_eq!(entry.json()["erased"], json!(GROUPS));
    let path = format!("/api/v1/logs/{later}");
    let is_there = |answer: &Answer| answer.status == 200;
    let entry = until(|| service.get(&path, &admin), "it is appended", is_there).await;
    assert_eq!(entry.json()["user_id"], ANN, "accepted behind the request");

    // Now that something works the queue off, the answer waits for it.
    let id = service.enqueue(&admin, ANN).await;
    let erased = service.erase_entry(&id, &admin).await.expect(200).json();
    assert_eq!(erased["entries"], 1);
    assert_eq!(erased["receipts"].as_array().unwrap().len(), 1);
    let entry = service.entry(&id, &admin).await.expect(200).json();
    assert_eq!(entry["erased"], json!(GROUPS));
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_was_given_up_is_erased_like_an_entry() {
    let service = Service::with(&[("AUDIT_ROLES", "api")]).await;
    let tenant = service.tenant("acme").await;
    let (admin, operator) = (token(Role::TenantAdmin, tenant), token(Role::Admin, None));
    service.enqueue(&admin, ANN).await;
    let his = service.enqueue(&admin, "bob").await;
    let closed = service.url(&format!("/api/v1/tenants/{tenant}"));
    let closed = service.http.patch(closed).bearer_auth(&operator);
    let closed = closed.header("content-type", "application/json");
    send(closed.body(json!({"status": "inactive"}).to_string()))
        .await
        .expect(200);
    let workers = service.storage.log.start();
    let letters = || service.get("/api/v1/admin/dead-letters", &operator);
    let ids = |answer: &Answer| {
        let letters = answer.json()["data"].as_array().unwrap().clone();
        letters
            .into_iter()
            .map(|letter| letter["id"].clone())
            .collect::<Vec<_>>()
    };
    until(letters, "they are given up", |answer| {
        ids(answer).len() == 2
    })
    .await;
    let body = json!({"user_id": ANN}).to_string();
    let begun = send(service.post("/api/v1/erasures", &admin, body))
        .await
        .expect(202);
    let place = begun.header("location").to_owned();
    until(|| service.get(&place, &admin), "it is done", is_done).await;
    until(letters, "his is left", |answer| ids(answer) == [json!(his)]).await;
    workers.shutdown(Duration::from_secs(5)).await;
}

/// What every object below a folder holds, also within what is packed there.
fn held(folder: &std::path::Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(held(&path));
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        if path.extension().is_some_and(|ext| ext == "zst") {
            bytes = zstd::decode_all(bytes.as_slice()).unwrap();
        }
        for line in String::from_utf8(bytes).unwrap().lines() {
            all.push(line.to_owned());
            if let Ok(Record::Entry(line)) = Record::parse(line) {
                let shown = line.disclosures.iter().flatten();
                all.extend(shown.map(|one| open_disclosure(one).unwrap().value));
            }
        }
    }
    all
}

#[tokio::test]
async fn one_entry_that_is_pruned_is_erased_in_the_archive() {
    let archive = tempfile::tempdir().unwrap();
    let url = format!("file://{}", archive.path().display());
    let service = Service::with(&[("AUDIT_ARCHIVE_URL", &url)]).await;
    let tenant = service.tenant("acme").await;
    let (admin, operator) = (token(Role::TenantAdmin, tenant), token(Role::Admin, None));
    let id = service
        .record(tenant, Event::view("doc", "d").user(ANN))
        .await;
    let prune = json!({"before": "2999-01-01T00:00:00Z"}).to_string();
    send(service.post("/api/v1/prunes", &admin, prune))
        .await
        .expect(201);
    service.entry(id, &admin).await.expect(410);
    let shows_her = || held(archive.path()).iter().any(|text| text.contains(ANN));
    assert!(shows_her());

    let holds = format!("/api/v1/tenants/{tenant}/legal-holds");
    let hold = service.post(&holds, &operator, json!({"name": "Case 7"}).to_string());
    let hold = send(hold).await.expect(201).json();
    let refused = service.erase_entry(id, &admin).await.expect(409).json();
    assert_eq!(refused["type"], "/problems/refused");
    assert!(shows_her());
    let hold = service.url(&format!("{holds}/{}", hold["id"].as_str().unwrap()));
    send(service.http.delete(hold).bearer_auth(&operator))
        .await
        .expect(200);

    assert_eq!(service.erase_to_the_end(id, &admin).await, 1);
    assert!(!shows_her());
    assert_eq!(service.erase_to_the_end(id, &admin).await, 0);
    service.entry(id, &admin).await.expect(410);
}

#[tokio::test]
async fn one_entry_that_is_pruned_and_nowhere_archived_is_gone() {
    let service = Service::start().await;
    let tenant = service.tenant("acme").await;
    let admin = token(Role::TenantAdmin, tenant);
    let id = service
        .record(tenant, Event::view("doc", "d").user(ANN))
        .await;
    let prune = json!({"before": "2999-01-01T00:00:00Z"}).to_string();
    send(service.post("/api/v1/prunes", &admin, prune))
        .await
        .expect(201);
    for _ in 0..2 {
        let gone = service.erase_entry(id, &admin).await.expect(410);
        assert_eq!(gone.json()["type"], "/problems/pruned");
    }
}

pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    pub(crate) fn of(server: &Server) -> Self {
        Self {
            http: server.client(),
            base: server.url.clone(),
        }
    }

    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{path}", self.base))
    }

    fn delete(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.delete(format!("{}{path}", self.base))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http
            .post(format!("{}{path}", self.base))
            .header("content-type", "application/json")
            .body(body.to_string())
    }
}

/// The tenant of a first start's token.
pub(crate) async fn own_tenant(client: &Client) -> String {
    let event = json!({"action_type": "VIEW", "resource_type": "doc", "resource_id": "first"});
    let made = send(client.post("/api/v1/logs", &event)).await.expect(201);
    made.json()["tenant_id"].as_str().unwrap().to_owned()
}

/// Asks without a pause until an erasure has gone on from there, and returns how far it is.
async fn moved(client: &Client, place: &str, from: u64) -> Value {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = send(client.get(place)).await.expect(200).json();
        if answer["state"] == "done" || answer["next"].as_u64() > Some(from) {
            return answer;
        }
        assert!(Instant::now() < deadline, "it doesn't go on: {answer}");
        tokio::task::yield_now().await;
    }
}

/// Records so many entries of Ann's, and as many of Bob's between them. Returns the proofs of hers by
/// their ids.
async fn record_and_prove(client: &Client, entries: u64) -> HashMap<String, InclusionProof> {
    let mut proofs = HashMap::new();
    for bulk in 0..entries.div_ceil(500) {
        let event = |n: u64| {
            let user = if n.is_multiple_of(2) { ANN } else { "bob" };
            json!({
                "action_type": "UPDATE", "resource_type": "doc", "resource_id": n.to_string(),
                "user_id": user, "reason": format!("seen by {user}"), "metadata": {"n": n},
            })
        };
        let bulk: Vec<Value> = (bulk * 1_000..(bulk + 1) * 1_000).map(event).collect();
        let stored = send(client.post("/api/v1/logs/bulk", &Value::from(bulk))).await;
        let stored = stored.expect(201).json();
        for result in stored["results"].as_array().unwrap().iter().step_by(2) {
            let id = result["receipt"]["id"].as_str().unwrap().to_owned();
            let path = format!("/api/v1/logs/{id}/proof");
            let ready = |answer: &Answer| answer.status == 200;
            let proof = until(|| client.get(&path), "it is proved", ready).await;
            proofs.insert(id, InclusionProof::parse(&proof.text).unwrap());
        }
    }
    proofs
}

async fn exported(client: &Client) -> Vec<Value> {
    let export = send(client.get("/api/v1/logs/export?format=ndjson")).await;
    let export = export.expect(200).text;
    let lines = export
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// How many of Ann's entries are erased: each as a whole, or not at all, and none of another's.
fn erased_of(hers: &HashMap<String, InclusionProof>, all: &[Value]) -> u64 {
    let mut erased = 0;
    for entry in all {
        let is_hers = hers.contains_key(entry["id"].as_str().unwrap());
        match entry.get("erased") {
            None => assert_eq!(entry["user_id"] == ANN, is_hers, "{entry}"),
            Some(groups) => {
                assert!(is_hers, "{entry}");
                assert_eq!(*groups, json!(["actor", "resource", "reason", "metadata"]));
                erased += 1;
            }
        }
    }
    erased
}

async fn assert_verified(client: &Client) {
    let evidence = "/api/v1/logs/export?format=evidence";
    let ready = |answer: &Answer| answer.status == 200;
    let evidence = until(|| client.get(evidence), "there is a checkpoint", ready).await;
    let report = verify_lines(evidence.text.lines(), Options::default());
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// Behind every kill each entry is whole or erased, as many as the erasure says, and the log verifies; none
/// of another user's is touched, and what was proved before is still proved.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_erasure_survives_kill_9_and_so_do_the_proofs() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::make().await;
    let mut server = Server::start_on(folder.path(), stack.engines()).await;
    let client = Client::of(&server);
    let tenant = own_tenant(&client).await;
    let holds = format!("/api/v1/tenants/{tenant}/legal-holds");
    let key = send(client.get(&format!("/api/v1/tlog/{tenant}/key"))).await;
    let key = VerifyingKey::parse(key.text.trim_end()).unwrap();
    // Steps of 500: some of the kills hit between the first and the last.
    let entries = sized(10_000).max(3_000);
    let enough = sized(50).min(10).div_ceil(2);
    let (mut proofs, mut kills, mut rounds) = (HashMap::new(), 0, 0);
    while kills < enough {
        rounds += 1;
        assert!(rounds <= 10, "{kills} kills hit an erasure under way");
        proofs.extend(record_and_prove(&client, entries).await);
        let before = proofs.len() as u64 - entries;
        let body = json!({"user_id": ANN, "basis": "gdpr-17"});
        let begun = send(client.post("/api/v1/erasures", &body)).await;
        let place = begun.expect(202).header("location").to_owned();
        let mut next = 0;
        while moved(&client, &place, next).await["state"] == "running" {
            // Nothing goes on in a process that only serves.
            server
                .kill_and_restart_with(&[("AUDIT_ROLES", "api")])
                .await;
            let job = send(client.get(&place)).await.expect(200).json();
            next = job["next"].as_u64().unwrap();
            kills += u64::from(0 < next && Some(next) < job["end"].as_u64());
            let erased = erased_of(&proofs, &exported(&client).await);
            assert_eq!(erased, before + job["entries"].as_u64().unwrap(), "{job}");
            // Nor while there is a hold, in a process that signs what the kill left.
            let hold = json!({"name": "to look at it"});
            let hold = send(client.post(&holds, &hold)).await.expect(201).json();
            server.kill_and_restart().await;
            assert_verified(&client).await;
            let job = send(client.get(&place)).await.expect(200).json();
            assert_eq!(job["next"].as_u64(), Some(next));
            let hold = format!("{holds}/{}", hold["id"].as_str().unwrap());
            send(client.delete(&hold)).await.expect(200);
        }
        let done = send(client.get(&place)).await.expect(200).json();
        assert_eq!(done["entries"], entries);
    }
    println!("{kills} kills of {rounds} erasures were under way");

    let all = exported(&client).await;
    assert_eq!(erased_of(&proofs, &all), proofs.len() as u64);
    let bobs = all.iter().filter(|entry| entry["user_id"] == "bob").count();
    assert_eq!(bobs, proofs.len());
    let mut proved = 0;
    for entry in &all {
        let Some(proof) = proofs.get(entry["id"].as_str().unwrap()) else {
            continue;
        };
        let leaf = leaf::Hash::from_base64(entry["leaf_hash"].as_str().unwrap()).unwrap();
        proof.verify(&leaf, std::slice::from_ref(&key)).unwrap();
        proved += 1;
    }
    assert_eq!(proved, proofs.len());
    assert_verified(&client).await;
    let words = "/api/v1/logs?q=seen+ann";
    let none = |answer: &Answer| {
        let page = answer.json();
        let size = all.last().unwrap()["seq"].as_u64().unwrap();
        page["data"] == json!([]) && page["indexed_through"].as_u64() > Some(size)
    };
    until(|| client.get(words), "the index has forgotten", none).await;
    server.stop();
}

/// Neither a queue nor a crash keeps what was accepted before.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_queued_before_an_erasure_is_erased_when_it_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::make().await;
    let mut engines = stack.engines();
    engines.push(("AUDIT_ROLES", "api".into()));
    let server = Server::start_on(folder.path(), engines).await;
    let client = Client::of(&server);
    own_tenant(&client).await;
    let enqueue = async |user: &str| {
        let event = json!({
            "action_type": "VIEW", "resource_type": "doc", "resource_id": "d", "user_id": user,
        });
        let queued = client
            .post("/api/v1/logs", &event)
            .header("prefer", "respond-async");
        let queued = send(queued).await.expect(202).json();
        queued["id"].as_str().unwrap().to_owned()
    };
    let (before, other) = (enqueue(ANN).await, enqueue("bob").await);
    let body = json!({"user_id": ANN});
    send(client.post("/api/v1/erasures", &body))
        .await
        .expect(202);
    let after = enqueue(ANN).await;
    drop(server);

    let server = Server::start_on(folder.path(), stack.engines()).await;
    let client = Client::of(&server);
    let path = |id: &str| format!("/api/v1/logs/{id}");
    let erased = |answer: &Answer| answer.status == 200 && answer.json().get("erased").is_some();
    let entry = until(|| client.get(&path(&before)), "it is erased", erased).await;
    assert!(!entry.text.contains(ANN), "{}", entry.text);
    for (id, user) in [(other, "bob"), (after, ANN)] {
        let is_there = |answer: &Answer| answer.status == 200;
        let entry = until(|| client.get(&path(&id)), "it is appended", is_there).await;
        assert_eq!(entry.json()["user_id"], user);
    }
    server.stop();
}
