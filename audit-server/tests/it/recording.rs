//! Recording: receipts, repeats, bulks, preferences.

use audit_core::Role;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

use crate::service::{Answer, Service, event, send, token};

const ID: &str = "0190a000-0000-7000-8000-000000000001";

fn with_id(id: &str, resource: &str) -> String {
    format!(
        r#"{{"id":"{id}","action_type":"VIEW","resource_type":"doc","resource_id":"{resource}"}}"#
    )
}

async fn setup() -> (Service, audit_core::TenantId, String) {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::User, tenant);
    (service, tenant, token)
}

#[tokio::test]
async fn a_repeat_is_answered_with_the_first_receipt_and_other_content_is_a_conflict() {
    let (service, tenant, token) = setup().await;
    let record = async |body: String| send(service.post("/api/v1/logs", &token, body)).await;
    let first = record(with_id(ID, "a")).await.expect(201);
    assert_eq!(first.header("location"), format!("/api/v1/logs/{ID}"));
    let recorded = first.json();
    assert_eq!(recorded["resource_id"], "a");
    assert_eq!(recorded["receipt"]["duplicate"], false);
    let repeat = record(with_id(ID, "a")).await.expect(200).json();
    assert_eq!(repeat["duplicate"], true);
    assert_eq!(repeat["receipt"]["seq"], recorded["seq"]);
    assert_eq!(repeat["receipt"]["leaf_hash"], recorded["leaf_hash"]);
    assert!(
        repeat.get("resource_id").is_none(),
        "a writer may not read the entry"
    );
    let conflict = record(with_id(ID, "b")).await.expect(409);
    assert_eq!(conflict.json()["type"], "/problems/conflict");
    assert_eq!(conflict.json()["id"], ID);
    assert_eq!(service.head(tenant).await.size(), 2);
    let read = send(service.get(first.header("location"), &token))
        .await
        .expect(200)
        .json();
    assert_eq!(read["leaf_hash"], recorded["leaf_hash"]);
}

#[tokio::test]
async fn raw_json_comes_back_byte_for_byte() {
    let (service, _, token) = setup().await;
    let metadata = r#"{"b":1e2,"a":9007199254740993,"s":"\u00e9","z":[1.0,-0]}"#;
    let body = format!(
        r#"{{"action_type":"VIEW","resource_type":"d","resource_id":"r","metadata":{metadata}}}"#
    );
    let answer = send(service.post("/api/v1/logs", &token, body))
        .await
        .expect(201);
    assert!(
        answer.text.contains(&format!(r#""metadata":{metadata}"#)),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn an_idempotency_key_stands_for_the_id() {
    let (service, tenant, token) = setup().await;
    let record = async |key: &str, path: &str, body: String| {
        send(
            service
                .post(path, &token, body)
                .header("Idempotency-Key", key),
        )
        .await
    };
    let first = record("k-1", "/api/v1/logs", event("a"))
        .await
        .expect(201)
        .json();
    let bare = record("\"k-1\"", "/api/v1/logs", event("a"))
        .await
        .expect(200)
        .json();
    assert_eq!(first["id"], bare["id"]);
    record("k-1", "/api/v1/logs", event("b")).await.expect(409);
    // An id in the body counts instead.
    let own = record("k-1", "/api/v1/logs", with_id(ID, "c"))
        .await
        .expect(201)
        .json();
    assert_eq!(own["id"], ID);
    let items = format!("[{},{}]", event("x"), event("y"));
    let bulk = record("k-2", "/api/v1/logs/bulk", items.clone())
        .await
        .expect(201)
        .json();
    let again = record("k-2", "/api/v1/logs/bulk", items)
        .await
        .expect(201)
        .json();
    assert_eq!(
        bulk["results"][1]["receipt"]["id"],
        again["results"][1]["receipt"]["id"]
    );
    assert_eq!(again["results"][1]["status"], 200);
    assert_eq!(service.head(tenant).await.size(), 5);
    let long = "k".repeat(256);
    record(&long, "/api/v1/logs", event("a"))
        .await
        .problem(400, "Idempotency-Key");
}

#[tokio::test]
async fn a_bulk_is_stored_whole_or_not_at_all() {
    let (service, tenant, token) = setup().await;
    let bulk = async |items: &[String]| {
        let body = format!("[{}]", items.join(","));
        send(service.post("/api/v1/logs/bulk", &token, body)).await
    };
    let bad = r#"{"action_type":"VIEW","resource_type":"d","resource_id":"r","ip_address":"x"}"#;
    let answer = bulk(&[event("a"), bad.into(), event("b"), bad.into()]).await;
    answer.problem(422, "#/1/ip_address");
    answer.problem(422, "#/3/ip_address");
    assert_eq!(service.head(tenant).await.size(), 1);
    let good = bulk(&[event("a"), event("b")]).await.expect(201).json();
    let results = good["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    assert_eq!(results[1]["index"], 1);
    assert_eq!(results[1]["receipt"]["seq"], 2);
    // The same id twice with the same content is one entry; with another, nothing is stored.
    let twice = bulk(&[with_id(ID, "a"), with_id(ID, "a")])
        .await
        .expect(201)
        .json();
    assert_eq!(twice["results"][1]["status"], 200);
    bulk(&[event("c"), with_id(ID, "other")]).await.expect(409);
    assert_eq!(service.head(tenant).await.size(), 4);
    assert_eq!(bulk(&[]).await.expect(201).json(), json!({"results": []}));
}

#[tokio::test]
async fn a_lenient_bulk_stores_each_item_by_itself() {
    let (service, tenant, token) = setup().await;
    send(service.post("/api/v1/logs", &token, with_id(ID, "a")))
        .await
        .expect(201);
    let bad = r#"{"action_type":"VIEW","resource_type":"d"}"#;
    let lines = [
        event("x"),
        bad.to_owned(),
        with_id(ID, "other"),
        with_id(ID, "a"),
        "{".into(),
    ];
    let request = service
        .post("/api/v1/logs/bulk", &token, lines.join("\n"))
        .header("content-type", "application/x-ndjson")
        .header("prefer", "handling=lenient");
    // reqwest adds headers: the first content type has to go.
    let mut request = request.build().unwrap();
    request
        .headers_mut()
        .insert("content-type", "application/x-ndjson".parse().unwrap());
    let answer = Answer::of(service.http.execute(request).await.unwrap())
        .await
        .expect(207);
    assert_eq!(answer.header("preference-applied"), "handling=lenient");
    let results = answer.json()["results"].as_array().unwrap().clone();
    let statuses: Vec<&Value> = results.iter().map(|r| &r["status"]).collect();
    assert_eq!(statuses, [201, 422, 409, 200, 400]);
    assert_eq!(results[1]["error"]["errors"][0]["line"], 2);
    assert_eq!(service.head(tenant).await.size(), 3);
}

#[tokio::test]
async fn respond_async_promises_and_keeps() {
    let (service, _, token) = setup().await;
    let request = service.post("/api/v1/logs", &token, event("later"));
    let answer = send(request.header("prefer", "respond-async"))
        .await
        .expect(202);
    assert_eq!(answer.header("preference-applied"), "respond-async");
    let accepted = answer.json();
    let url = accepted["status_url"].as_str().unwrap();
    assert_eq!(answer.header("location"), url);
    let items = format!("[{},{}]", event("b1"), event("b2"));
    let request = service.post("/api/v1/logs/bulk", &token, items);
    let bulk = send(request.header("prefer", "respond-async"))
        .await
        .expect(202)
        .json();
    let last = bulk["results"][1]["status_url"]
        .as_str()
        .unwrap()
        .to_owned();
    for url in [url, &last] {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = send(service.get(url, &token)).await;
            if answer.status == 200 {
                break;
            }
            assert_eq!(answer.status, 404);
            assert!(Instant::now() < deadline, "{url} never came");
            tokio::task::yield_now().await;
        }
    }
    // A bad event is refused at once, and not by a worker later.
    let request = service.post("/api/v1/logs", &token, r#"{"action_type":"VIEW"}"#);
    send(request.header("prefer", "respond-async"))
        .await
        .problem(422, "#/resource_id");
}

#[tokio::test]
async fn a_queue_that_forgets_is_not_promised_on() {
    let service = Service::with(&[("AUDIT_QUEUE_URL", "memory:")]).await;
    let token = token(Role::User, service.tenant("t").await);
    let request = service.post("/api/v1/logs", &token, event("now"));
    let answer = send(request.header("prefer", "respond-async"))
        .await
        .expect(201);
    assert_eq!(answer.header("preference-applied"), "");
}

#[tokio::test]
async fn tenants_are_created_when_first_used_where_that_is_allowed() {
    let service = Service::with(&[("AUDIT_AUTO_CREATE_TENANTS", "true")]).await;
    let tenant: audit_core::TenantId = ID.parse().unwrap();
    let token = token(Role::User, tenant);
    send(service.post("/api/v1/logs", &token, event("a")))
        .await
        .expect(201);
    assert_eq!(service.head(tenant).await.size(), 1);
}

#[tokio::test]
async fn a_principal_that_asks_too_often_is_told_when_to_go_on() {
    let service = Service::with(&[("AUDIT_RATE_LIMIT", "1")]).await;
    let tenant = service.tenant("t").await;
    let token = token(Role::User, tenant);
    let mut limited = None;
    for _ in 0..10 {
        let answer = send(service.get("/api/v1/logs", &token)).await;
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
        assert!(
            answer.header("ratelimit").starts_with("\"principal\";r="),
            "{answer:?}"
        );
    }
    let limited = limited.expect("a limit of 1/s with a burst of 2 ends within 10 requests");
    assert!(limited.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert!(limited.header("ratelimit-policy").contains("q=2"));
    assert_eq!(limited.json()["type"], "/problems/rate-limited");
}

#[tokio::test]
async fn dead_letters_are_shown_without_content_and_can_be_tried_again() {
    use audit_core::{Message, MessageKind};
    let (service, tenant, _) = setup().await;
    let admin = token(Role::Admin, tenant);
    let queue = service.storage.log.queue().unwrap();
    // Made by hand: a message that nobody works on, so that it can be buried here.
    let id = ID.parse().unwrap();
    let message = Message::new(tenant, MessageKind::Work, id, "{\"secret\":1}".into());
    queue.send(&[message]).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let letters = loop {
        let received = queue
            .receive(10, Duration::ZERO, Duration::from_secs(60))
            .await
            .unwrap();
        for delivery in received {
            queue
                .bury(&[(delivery.handle, "for a test".into())])
                .await
                .unwrap();
        }
        let answer = send(service.get("/api/v1/admin/dead-letters", &admin))
            .await
            .expect(200);
        if answer.text.contains(ID) {
            break answer;
        }
        assert!(
            Instant::now() < deadline,
            "the letter never came: {}",
            answer.text
        );
        tokio::task::yield_now().await;
    };
    assert!(!letters.text.contains("secret"), "{}", letters.text);
    let letter = letters.json()["data"][0].clone();
    assert_eq!(letter["source"], "queue");
    let body = json!({"source": "queue", "handles": [letter["handle"]]}).to_string();
    let answer = send(service.post("/api/v1/admin/dead-letters/redrive", &admin, body)).await;
    assert_eq!(answer.expect(200).json()["redriven"], 1);
    let body = r#"{"handles":["x"]}"#;
    let answer = send(service.post("/api/v1/admin/dead-letters/redrive", &admin, body)).await;
    answer.problem(422, "#/source");
}

#[tokio::test]
async fn a_failure_says_by_which_id_to_retry() {
    let service = Service::on_pages(200).await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Writer, tenant);
    let state = "x".repeat(200 * 1024);
    let body = event("large").replace('}', &format!(",\"after_state\":\"{state}\"}}"));
    for _ in 0..20 {
        let answer = send(service.post("/api/v1/logs", &token, body.clone())).await;
        if answer.status == 201 {
            continue;
        }
        assert_eq!(answer.status, 503, "{}", answer.text);
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        assert!(id.parse::<audit_core::EventId>().is_ok(), "{id}");
        return;
    }
    panic!("the file did not fill up");
}
