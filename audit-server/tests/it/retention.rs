//! How long entries are kept, and legal holds.

use audit_core::{Event, Role, TenantId};
use serde_json::{Value, json};

use crate::service::{Answer, Service, in_seconds, send, token, until};

/// A tenant, and who administers it.
struct Kept {
    service: Service,
    tenant: TenantId,
    operator: String,
    tenant_admin: String,
}

impl Kept {
    async fn new() -> Self {
        let service = Service::start().await;
        let tenant = service.tenant("kept").await;
        Self {
            service,
            tenant,
            operator: token(Role::Admin, tenant),
            tenant_admin: token(Role::TenantAdmin, tenant),
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/v1/tenants/{}/{rest}", self.tenant)
    }

    async fn get(&self, rest: &str) -> Answer {
        send(self.service.get(&self.path(rest), &self.operator)).await
    }

    async fn set(&self, query: &str, body: &str) -> Answer {
        let request = self
            .service
            .http
            .put(self.service.url(&self.path(&format!("retention{query}"))))
            .bearer_auth(&self.operator)
            .header("content-type", "application/json")
            .body(body.to_owned());
        send(request).await
    }

    async fn place(&self, body: &str) -> Answer {
        let path = self.path("legal-holds");
        send(self.service.post(&path, &self.operator, body)).await
    }

    async fn release(&self, id: &str, query: &str) -> Answer {
        let path = self.path(&format!("legal-holds/{id}{query}"));
        let request = self.service.http.delete(self.service.url(&path));
        send(request.bearer_auth(&self.operator)).await
    }

    async fn prune(&self, body: Value) -> Answer {
        let body = body.to_string();
        send(
            self.service
                .post("/api/v1/prunes", &self.tenant_admin, body),
        )
        .await
    }

    /// The actions of the log's own entries, oldest first, as an export has them.
    async fn told(&self) -> Vec<Value> {
        let auditor = token(Role::Auditor, self.tenant);
        let path = "/api/v1/logs/export?format=ndjson&action=log.retention&action=log.hold";
        let answer = send(self.service.get(path, &auditor)).await.expect(200);
        let lines = answer.text.lines();
        lines.map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

#[tokio::test]
async fn a_retention_is_replaced_whole_and_told_in_the_log() {
    let kept = Kept::new().await;
    let none = json!({"keep_days": null, "minimum_days": null, "actions": []});
    assert_eq!(kept.get("retention").await.expect(200).json(), none);
    let body = r#"{"keep_days":3650,"minimum_days":30,"reason":"policy 12",
        "actions":[{"action":"session.start","days":90,"groups":["context","actor"]},
                   {"action":"page.view","days":7}]}"#;
    for _ in 0..2 {
        let set = kept.set("", body).await.expect(200).json();
        assert_eq!(set["dry_run"], false);
        assert_eq!(set.get("due"), None);
    }
    let read = kept.get("retention").await.expect(200).json();
    assert_eq!(
        (&read["keep_days"], &read["minimum_days"]),
        (&json!(3650), &json!(30))
    );
    let groups = json!(["actor", "context"]);
    let rule = json!({"action": "session.start", "days": 90, "groups": groups});
    assert_eq!(read["actions"][0], rule);
    assert_eq!(read["actions"][1]["groups"].as_array().unwrap().len(), 7);
    kept.set("", r#"{"minimum_days":30}"#).await.expect(200);
    let read = kept.get("retention").await.expect(200).json();
    assert_eq!(
        read,
        json!({"keep_days": null, "minimum_days": 30, "actions": []})
    );
    let told = kept.told().await;
    assert_eq!(told.len(), 2);
    assert_eq!(told[0]["user_id"], "tester");
    assert_eq!(told[0]["reason"], "policy 12");
    assert_eq!(told[0]["after_state"]["keep_days"], 3650);
}

#[tokio::test]
async fn every_fault_of_a_retention_is_answered_by_its_place() {
    let kept = Kept::new().await;
    for (body, place) in [
        (r#"{"keep_days":0}"#, "#/keep_days"),
        (r#"{"keep_days":5,"minimum_days":6}"#, "#/minimum_days"),
        (
            r#"{"actions":[{"action":"log.hold","days":5}]}"#,
            "#/actions",
        ),
        (r#"{"keep":5}"#, "#/keep"),
        (r#"{"reason":5}"#, "#/reason"),
    ] {
        kept.set("", body).await.problem(422, place);
    }
    let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(1_025));
    kept.set("", &long).await.problem(422, "#/reason");
    kept.set("?dry_run=perhaps", "{}")
        .await
        .problem(400, "dry_run");
    assert!(kept.told().await.is_empty());
}

#[tokio::test]
async fn a_dry_run_tells_what_is_due_and_changes_nothing() {
    let kept = Kept::new().await;
    kept.service
        .record(kept.tenant, Event::view("doc", "d").user("ann"))
        .await;
    let body = r#"{"keep_days":10,"actions":[{"action":"view","days":1}]}"#;
    let answer = kept.set("?dry_run=true", body).await.expect(200).json();
    assert_eq!(answer["dry_run"], true);
    let pruned = json!({"below": 0, "entries": 0});
    let due = json!({"pruned": pruned, "erased": [0], "refused": null});
    assert_eq!(answer["due"], due);
    let none = json!({"keep_days": null, "minimum_days": null, "actions": []});
    assert_eq!(kept.get("retention").await.json(), none);
    kept.place(r#"{"name":"Case 7/2026"}"#).await.expect(201);
    let answer = kept.set("?dry_run=true", body).await.expect(200).json();
    assert_eq!(answer["due"].get("pruned"), None);
    let refused = answer["due"]["refused"].as_str().unwrap();
    assert!(refused.contains("Case 7/2026"), "{refused}");
}

#[tokio::test]
async fn a_legal_hold_refuses_every_route_that_destroys_until_it_is_released() {
    let kept = Kept::new().await;
    let id = kept
        .service
        .record(kept.tenant, Event::view("doc", "d").user("ann"))
        .await;
    let body = r#"{"name":"Case \"7\"/2026","reason":"a court's order"}"#;
    let placed = kept.place(body).await.expect(201).json();
    let hold = placed["id"].as_str().unwrap();
    assert_eq!(placed["name"], "Case \"7\"/2026");
    assert_eq!(placed["placed_by"], "tester");
    assert_eq!(placed["released_at"], Value::Null);

    let service = &kept.service;
    let delete = |path: String| {
        let request = service.http.delete(service.url(&path));
        send(request.bearer_auth(&kept.tenant_admin))
    };
    let erase = |body: Value| {
        let body = body.to_string();
        send(service.post("/api/v1/erasures", &kept.tenant_admin, body))
    };
    let before = in_seconds(5).to_string();
    let refusals = [
        kept.prune(json!({"before": before})).await,
        kept.prune(json!({"before": before, "dry_run": true})).await,
        kept.prune(json!({"older_than_days": 1})).await,
        delete("/api/v1/logs/cleanup?older_than_days=1".into()).await,
        delete(format!("/api/v1/logs/cleanup/{id}")).await,
        erase(json!({"user_id": "ann"})).await,
        erase(json!({"user_id": "ann", "dry_run": true})).await,
        erase(json!({"ids": [id.to_string()], "dry_run": true})).await,
    ];
    for refusal in refusals {
        let problem = refusal.expect(409).json();
        assert_eq!(problem["type"], "/problems/refused");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(hold) && detail.contains("Case"), "{detail}");
    }
    assert_eq!(service.head(kept.tenant).await.pruned_below, 0);

    for _ in 0..2 {
        let released = kept.release(hold, "?reason=settled").await.expect(200);
        assert_ne!(released.json()["released_at"], Value::Null);
    }
    let erased = delete(format!("/api/v1/logs/cleanup/{id}"))
        .await
        .expect(200);
    assert_eq!(erased.json()["entries"], 1);
    let told = kept.told().await;
    let said: Vec<(&Value, &Value)> = told
        .iter()
        .map(|e| (&e["resource_id"], &e["reason"]))
        .collect();
    let (hold, order, settled) = (json!(hold), json!("a court's order"), json!("settled"));
    assert_eq!(said, [(&hold, &order), (&hold, &settled)]);
    kept.prune(json!({"before": before})).await.expect(201);
}

#[tokio::test]
async fn what_says_of_a_hold_and_a_retention_outlives_an_erasure() {
    let kept = Kept::new().await;
    let body = r#"{"keep_days":90,"reason":"contract"}"#;
    kept.set("", body).await.expect(200);
    let body = r#"{"name":"Case 7","reason":"an order"}"#;
    let placed = kept.place(body).await.expect(201).json();
    let hold = placed["id"].as_str().unwrap();
    kept.release(hold, "?reason=settled").await.expect(200);
    let told = kept.told().await;
    let ids: Vec<&Value> = told.iter().map(|entry| &entry["id"]).collect();
    let body = json!({"ids": ids}).to_string();
    let path = "/api/v1/erasures";
    let asked = kept.service.post(path, &kept.tenant_admin, body);
    let job = send(asked).await.expect(202).json();
    let path = format!("{path}/{}", job["id"].as_str().unwrap());
    until("the erasure is done", async || {
        let job = send(kept.service.get(&path, &kept.tenant_admin)).await;
        job.json()["state"] == "done"
    })
    .await;
    for (was, is) in told.iter().zip(kept.told().await) {
        assert_eq!(is["erased"], json!(["actor", "reason"]), "{is}");
        for field in ["resource_id", "before_state", "after_state", "metadata"] {
            assert_eq!(is[field], was[field]);
        }
    }
}

#[tokio::test]
async fn a_header_that_contradicts_the_path_is_refused() {
    let kept = Kept::new().await;
    let other = kept.service.tenant("other").await;
    let asked = |named: TenantId, token: &str| {
        let request = kept.service.get(&kept.path("retention"), token);
        send(request.header("x-tenant-id", named.to_string()))
    };
    asked(kept.tenant, &kept.operator).await.expect(200);
    asked(other, &kept.operator).await.problem(400, "tenant_id");
}

#[tokio::test]
async fn the_minimum_refuses_a_prune_and_names_the_latest_time() {
    let kept = Kept::new().await;
    kept.set("", r#"{"minimum_days":30}"#).await.expect(200);
    let refusal = kept.prune(json!({"older_than_days": 29})).await.expect(409);
    let detail = refusal.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("minimum_days is 30"), "{detail}");
    kept.prune(json!({"older_than_days": 31})).await.expect(200);
    kept.set("", "{}").await.expect(200);
    kept.prune(json!({"older_than_days": 29})).await.expect(200);
}

#[tokio::test]
async fn holds_are_listed_newest_first_and_refuse_what_they_must() {
    let kept = Kept::new().await;
    let mut placed = Vec::new();
    for n in 0..3 {
        let made = kept.place(&format!(r#"{{"name":"case {n}"}}"#)).await;
        placed.push(made.expect(201).json()["id"].as_str().unwrap().to_owned());
    }
    kept.release(&placed[1], "").await.expect(200);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = kept.get(&format!("legal-holds?limit=2{cursor}")).await;
        let page = page.expect(200).json();
        for hold in page["data"].as_array().unwrap() {
            seen.push(hold["id"].as_str().unwrap().to_owned());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    placed.reverse();
    assert_eq!(seen, placed);

    let taken = json!({"id": placed[0], "name": "again"}).to_string();
    kept.place(&taken).await.expect(409);
    kept.place("{}").await.problem(422, "#/name");
    kept.place(r#"{"name":"a\nb"}"#)
        .await
        .problem(422, "#/name");
    kept.place(r#"{"id":"x","name":"a"}"#)
        .await
        .problem(422, "#/id");
    kept.get("legal-holds?cursor=x")
        .await
        .problem(400, "cursor");
    let long = format!("?reason={}", "x".repeat(1_025));
    kept.release(&placed[0], &long).await.problem(400, "reason");
    let unknown = "00000000-0000-7000-8000-00000000dead";
    kept.release(unknown, "").await.expect(404);
}

#[tokio::test]
async fn only_admins_read_what_protects_a_tenants_log() {
    let kept = Kept::new().await;
    let own = kept.service.storage.log.create_tenant(None, "other").await;
    let other = own.unwrap().id;
    let stranger = token(Role::TenantAdmin, other);
    for rest in ["retention", "legal-holds"] {
        let path = kept.path(rest);
        send(kept.service.get(&path, &kept.operator))
            .await
            .expect(200);
        send(kept.service.get(&path, &kept.tenant_admin))
            .await
            .expect(403);
        send(kept.service.get(&path, &stranger)).await.expect(403);
        let unknown = format!("/api/v1/tenants/00000000-0000-7000-8000-00000000dead/{rest}");
        send(kept.service.get(&unknown, &kept.operator))
            .await
            .expect(404);
    }
}
