//! Exports.

use audit_core::{Event, Role};

use crate::service::{Service, send, token};

#[tokio::test]
async fn csv_has_the_fields_in_order_and_no_formulas() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Auditor, tenant);
    let event = Event::update("doc", "=1+1")
        .user("@ann")
        .reason("a \"quoted\", text\nof two lines")
        .after(&serde_json::json!(-5))
        .related(audit_core::RelatedResource::new("group", "g"));
    service.record(tenant, event).await;
    let answer = send(service.get("/api/v1/logs/export?user_id=@ann", &token))
        .await
        .expect(200);
    assert_eq!(answer.header("content-type"), "text/csv");
    let disposition = answer.header("content-disposition");
    assert!(
        disposition.starts_with("attachment; filename=\"audit-"),
        "{disposition}"
    );
    assert!(disposition.ends_with("Z.csv\""), "{disposition}");
    let mut reader = csv::Reader::from_reader(answer.text.as_bytes());
    let header = reader.headers().unwrap().clone();
    assert_eq!(header.iter().next().unwrap(), "id");
    assert_eq!(header.iter().next_back().unwrap(), "erased");
    let row = reader.records().next().unwrap().unwrap();
    let cell = |name: &str| {
        row.get(header.iter().position(|h| h == name).unwrap())
            .unwrap()
    };
    assert_eq!(cell("resource_id"), "'=1+1");
    assert_eq!(cell("user_id"), "'@ann");
    assert_eq!(cell("after_state"), "'-5");
    assert_eq!(cell("reason"), "a \"quoted\", text\nof two lines");
    assert_eq!(cell("related_resources"), r#"[{"type":"group","id":"g"}]"#);
    assert_eq!(reader.records().count(), 0);
}

#[tokio::test]
async fn an_export_goes_on_from_a_position_and_names_what_was_erased() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let admin = token(Role::TenantAdmin, tenant);
    let mut ids = Vec::new();
    for n in 0..300 {
        ids.push(
            service
                .record(tenant, Event::view("doc", format!("{n}")).user("ann"))
                .await,
        );
    }
    let path = format!("/api/v1/logs/cleanup/{}", ids[10]);
    let erased = send(service.http.delete(service.url(&path)).bearer_auth(&admin))
        .await
        .expect(200);
    assert_eq!(erased.json()["entries"], 1);
    let again = send(service.http.delete(service.url(&path)).bearer_auth(&admin))
        .await
        .expect(200);
    assert_eq!(again.json()["entries"], 0);
    let all = send(service.get("/api/v1/logs/export?format=ndjson", &admin))
        .await
        .expect(200);
    let lines: Vec<serde_json::Value> = all
        .text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 302);
    assert!(lines.iter().enumerate().all(|(n, line)| line["seq"] == n));
    assert!(lines[11].get("user_id").is_none());
    assert_eq!(lines[11]["erased"][0], "actor");
    let rest = send(service.get("/api/v1/logs/export?format=ndjson&from_seq=200", &admin)).await;
    assert_eq!(
        rest.text,
        all.text.split_inclusive('\n').skip(200).collect::<String>()
    );
    let csv = send(service.get("/api/v1/logs/export?from_seq=200", &admin))
        .await
        .expect(200);
    assert_eq!(
        csv::Reader::from_reader(csv.text.as_bytes())
            .records()
            .count(),
        102
    );
}

#[tokio::test]
async fn a_pruned_entry_is_gone_for_good_and_says_by_what() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let admin = token(Role::TenantAdmin, tenant);
    let id = service.record(tenant, Event::view("doc", "1")).await;
    let body = r#"{"before":"2999-01-01T00:00:00Z","dry_run":true}"#;
    let dry = send(service.post("/api/v1/prunes", &admin, body))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&dry["entries"], &dry["id"]),
        (&2.into(), &serde_json::Value::Null)
    );
    let body = r#"{"before":"2999-01-01T00:00:00Z","basis":"retention","reason":"old"}"#;
    let done = send(service.post("/api/v1/prunes", &admin, body))
        .await
        .expect(201);
    assert_eq!(done.json()["entries"], 2);
    let prune = send(service.get(done.header("location"), &admin))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&prune["below"], &prune["basis"]),
        (&2.into(), &"retention".into())
    );
    assert_eq!(prune["reason"], "old");
    let gone = send(service.get(&format!("/api/v1/logs/{id}"), &admin))
        .await
        .expect(410)
        .json();
    assert_eq!(gone["type"], "/problems/pruned");
    assert_eq!(gone["seq"], prune["seq"]);
    let not_a_prune = service.record(tenant, Event::view("doc", "2")).await;
    send(service.get(&format!("/api/v1/prunes/{not_a_prune}"), &admin))
        .await
        .expect(404);
    let stats = send(service.get("/api/v1/logs/stats", &admin))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&stats["total_logs"], &stats["pruned"]),
        (&2.into(), &2.into())
    );
}

#[tokio::test]
async fn a_tenant_runs_four_exports_at_once_and_no_other_tenant_notices() {
    let service = Service::start().await;
    let (tenant, other) = (service.tenant("t").await, service.tenant("u").await);
    // More than the buffers of two sockets hold.
    let state = serde_json::json!("x".repeat(200 * 1024));
    for _ in 0..100 {
        service
            .record(tenant, Event::view("doc", "large").after(&state))
            .await;
    }
    let auditor = token(Role::Auditor, tenant);
    let export = || service.get("/api/v1/logs/export", &auditor);
    let mut running = Vec::new();
    for _ in 0..4 {
        let response = export().send().await.unwrap();
        assert_eq!(response.status(), 200);
        running.push(response);
    }
    let refused = send(export()).await.expect(429);
    assert_eq!(refused.header("retry-after"), "5");
    let elsewhere = token(Role::Auditor, other);
    send(service.get("/api/v1/logs/export", &elsewhere))
        .await
        .expect(200);
    // One that is cut makes room.
    running.pop();
    let room = async { while export().send().await.unwrap().status() != 200 {} };
    tokio::time::timeout(std::time::Duration::from_secs(20), room)
        .await
        .unwrap();
}
