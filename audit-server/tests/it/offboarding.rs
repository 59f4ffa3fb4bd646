//! The end of a tenant.

use audit_core::{Event, Role, TenantId};
use serde_json::Value;

use crate::service::{Answer, Service, event, send, token, until};

/// A tenant that is to end, and who asks for it.
struct Leaving {
    service: Service,
    tenant: TenantId,
    operator: String,
    own: String,
}

impl Leaving {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let service = Service::with(settings).await;
        let tenant = service.tenant("leaving").await;
        Self {
            service,
            tenant,
            operator: token(Role::Admin, None),
            own: token(Role::TenantAdmin, tenant),
        }
    }

    fn path(&self) -> String {
        format!("/api/v1/tenants/{}", self.tenant)
    }

    async fn end(&self, token: &str, query: &str) -> Answer {
        let url = self.service.url(&format!("{}{query}", self.path()));
        send(self.service.http.delete(url).bearer_auth(token)).await
    }

    async fn shown(&self) -> Value {
        let answer = send(self.service.get(&self.path(), &self.operator)).await;
        answer.expect(200).json()
    }

    /// The tenant once it is deleted, and its rows are gone.
    async fn ended(&self) -> Value {
        let is_swept = async || self.shown().await["tombstone"]["unappended"].is_u64();
        until("the tenant is deleted and swept", is_swept).await;
        self.shown().await
    }
}

#[tokio::test]
async fn a_tenant_ends_with_its_evidence_in_the_archive_and_its_id_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let archive = format!("file://{}/archive", folder.path().display());
    let leaving = Leaving::new(&[("AUDIT_ARCHIVE_URL", &archive)]).await;
    let Leaving { service, own, .. } = &leaving;
    let (tenant, other) = (leaving.tenant, service.tenant("staying").await);
    for n in 0..5 {
        for tenant in [tenant, other] {
            let event = Event::view("doc", format!("d{n}")).user("ann");
            service.record(tenant, event).await;
        }
    }
    let body = r#"{"name":"k","role":"writer"}"#;
    let made = send(service.post("/api/v1/api-keys", own, body)).await;
    let key = made.expect(201).json()["key"].as_str().unwrap().to_owned();

    leaving.end(own, "").await.expect(403);
    leaving
        .end(&leaving.operator, "?archive=some")
        .await
        .problem(400, "archive");
    let holds = format!("{}/legal-holds", leaving.path());
    let held = send(service.post(&holds, &leaving.operator, r#"{"name":"case 7"}"#)).await;
    let held = held.expect(201).json()["id"].as_str().unwrap().to_owned();
    let refused = leaving.end(&leaving.operator, "").await.expect(409).text;
    assert!(refused.contains("case 7"), "{refused}");
    assert_eq!(leaving.shown().await["status"], "active");
    let release = service.url(&format!("{holds}/{held}"));
    let release = service.http.delete(release).bearer_auth(&leaving.operator);
    send(release).await.expect(200);

    let asked = leaving.end(&leaving.operator, "?reason=contract+7").await;
    assert!([200, 202].contains(&asked.status), "{}", asked.text);
    if asked.status == 202 && asked.json()["ending"].is_object() {
        assert_eq!(asked.json()["ending"]["archived"], true);
        assert_eq!(asked.json()["status"], "inactive");
    }
    let ended = leaving.ended().await;
    // Its first entry and five more, two of the hold, and that of its end.
    let tombstone = &ended["tombstone"];
    assert_eq!(tombstone["size"], 9);
    let checkpoint = tombstone["checkpoint"].as_str().unwrap();
    let mut lines = checkpoint.lines();
    assert_eq!(lines.next(), tombstone["origin"].as_str());
    assert_eq!(lines.next(), Some("9"));
    assert_eq!(lines.next(), tombstone["root"].as_str());
    assert_eq!(ended["status"], "deleted");
    assert_eq!(tombstone["unappended"], 0);
    assert_eq!(ended["name"], tenant.to_string());
    assert_eq!(ended.get("ending"), None);
    let segments = std::fs::read_dir(folder.path().join("archive").join(tenant.to_string()));
    assert!(segments.unwrap().next().is_some());

    let again = leaving.end(&leaving.operator, "").await.expect(200);
    assert_eq!(again.json(), ended);
    let create = format!(r#"{{"id":"{tenant}","name":"again"}}"#);
    let patch = service.http.patch(service.url(&leaving.path()));
    let patch = patch.bearer_auth(&leaving.operator);
    let patch = patch.header("content-type", "application/json");
    for request in [
        service.post("/api/v1/logs", own, event("late")),
        service.get("/api/v1/logs", own),
        service.get("/api/v1/logs/stream", own),
        service.post("/api/v1/tenants", &leaving.operator, create),
        patch.body(r#"{"status":"active"}"#),
    ] {
        let gone = send(request).await.expect(410).json();
        assert_eq!(gone["type"], "/problems/tenant-deleted");
    }
    send(service.get("/api/v1/logs", &key)).await.expect(401);
    let path = "/api/v1/tenants?status=deleted";
    let listed = send(service.get(path, &leaving.operator)).await;
    let listed = listed.expect(200).json();
    let is_listed = |t: &Value| t["id"] == tenant.to_string();
    assert!(listed["data"].as_array().unwrap().iter().any(is_listed));

    let auditor = token(Role::Auditor, other);
    let entries = send(service.get("/api/v1/logs", &auditor)).await;
    let entries = entries.expect(200).json();
    assert_eq!(entries["data"].as_array().unwrap().len(), 6);
    let index = service.storage.log.search().unwrap();
    let scope = audit_core::TenantScope::trusted(tenant, "test");
    until("nothing of it is indexed", async || {
        index.held(&scope, 0..100).await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn without_an_archive_a_tenant_ends_only_when_its_evidence_may_go() {
    let leaving = Leaving::new(&[]).await;
    let refused = leaving.end(&leaving.operator, "").await.expect(409).json();
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("AUDIT_ARCHIVE_URL"), "{detail}");
    assert!(detail.contains("archive=none"), "{detail}");
    let shown = leaving.shown().await;
    assert_eq!(
        (&shown["status"], shown.get("ending")),
        (&"active".into(), None)
    );
    let long = format!("?archive=none&reason={}", "x".repeat(1_025));
    leaving
        .end(&leaving.operator, &long)
        .await
        .problem(400, "reason");
    let asked = leaving.end(&leaving.operator, "?archive=none").await;
    assert!([200, 202].contains(&asked.status), "{}", asked.text);
    assert_eq!(leaving.ended().await["tombstone"]["size"], 2);
    let unknown = TenantId::new(uuid::Uuid::from_u128(9));
    let url = leaving.service.url(&format!("/api/v1/tenants/{unknown}"));
    let request = leaving.service.http.delete(url);
    send(request.bearer_auth(&leaving.operator))
        .await
        .expect(404);
}

/// What its own credentials follow ends when the end is asked for, and not only with the tenant.
#[tokio::test]
async fn a_tenants_own_streams_end_when_its_end_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive");
    let url = format!("file://{}", path.display());
    let leaving = Leaving::new(&[("AUDIT_ARCHIVE_URL", &url)]).await;
    // An archive that is away, which the end waits for.
    if path.exists() {
        std::fs::remove_dir_all(&path).unwrap();
    }
    std::fs::write(&path, "no folder").unwrap();
    let service = &leaving.service;
    let stream = "/api/v1/logs/stream";
    let own = service.get(stream, &leaving.own).send().await.unwrap();
    assert_eq!(own.status(), 200);
    leaving.end(&leaving.operator, "").await.expect(202);
    let followed = tokio::time::timeout(std::time::Duration::from_secs(20), own.text());
    let followed = followed.await.unwrap().unwrap();
    assert!(followed.contains(r#""code":4403"#), "{followed}");
    assert!(leaving.shown().await["ending"].is_object());
    send(service.get(stream, &leaving.own)).await.expect(410);
}

/// They are counted, and the operator is told.
#[tokio::test]
async fn accepted_events_that_go_with_a_tenant_are_counted() {
    let store = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/audit.db", store.path().display());
    let leaving = Leaving::new(&[("AUDIT_STORE_URL", &url)]).await;
    let queue = leaving.service.storage.log.queue().unwrap();
    // Nobody does this kind of work: a dead letter.
    let id = audit_core::Clock::event_id(&audit_core::SystemClock);
    let message = audit_core::Message::new(
        leaving.tenant,
        audit_core::MessageKind::Work,
        id,
        "{}".to_owned(),
    );
    queue.send(&[message]).await.unwrap();
    until("it is a dead letter", async || {
        queue.depth().await.unwrap().dead == 1
    })
    .await;
    leaving.end(&leaving.operator, "?archive=none").await;
    assert_eq!(leaving.ended().await["tombstone"]["unappended"], 1);
}
