//! Bad input: refused with the place named, and nothing stored.

use std::io::Write as _;

use audit_core::{Role, TenantId};

use crate::service::{Answer, Service, event, send, token};

struct Case {
    service: Service,
    tenant: TenantId,
    token: String,
}

impl Case {
    async fn new() -> Self {
        let service = Service::start().await;
        let tenant = service.tenant("input").await;
        Self {
            service,
            tenant,
            token: token(Role::TenantAdmin, tenant),
        }
    }

    async fn post(&self, body: impl Into<String>) -> Answer {
        send(self.service.post("/api/v1/logs", &self.token, body)).await
    }

    async fn bytes(&self, path: &str, media: &str, encoding: &str, body: Vec<u8>) -> Answer {
        let request = self
            .service
            .http
            .post(self.service.url(path))
            .bearer_auth(&self.token)
            .header("content-type", media);
        let request = match encoding {
            "" => request,
            encoding => request.header("content-encoding", encoding),
        };
        send(request.body(body)).await
    }

    async fn size(&self) -> u64 {
        self.service.head(self.tenant).await.size()
    }
}

fn with(members: &str) -> String {
    format!(r#"{{"action_type":"VIEW","resource_type":"doc","resource_id":"d",{members}}}"#)
}

#[tokio::test]
async fn limits_hold_at_their_edges() {
    let case = Case::new().await;
    let fields = [
        ("user_id", 256),
        ("action", 160),
        ("trace_id", 64),
        ("user_agent", 1024),
        ("resource_name", 512),
        ("reason", 1024),
    ];
    for (field, limit) in fields {
        for length in [limit - 1, limit] {
            // A character is a scalar value, however many bytes it has.
            let c = if field == "action" { "x" } else { "ü" };
            case.post(with(&format!(r#""{field}":"{}""#, c.repeat(length))))
                .await
                .expect(201);
        }
        let before = case.size().await;
        let long = with(&format!(r#""{field}":"{}""#, "x".repeat(limit + 1)));
        case.post(long).await.problem(422, &format!("#/{field}"));
        assert_eq!(case.size().await, before);
    }
    let raw = |bytes: usize| with(&format!(r#""metadata":"{}""#, "x".repeat(bytes - 2)));
    case.post(raw(256 * 1024)).await.expect(201);
    case.post(raw(256 * 1024 + 1))
        .await
        .problem(422, "#/metadata");
    let deep = |depth: usize| {
        with(&format!(
            r#""metadata":{}{}"#,
            "[".repeat(depth),
            "]".repeat(depth)
        ))
    };
    case.post(deep(60)).await.expect(201);
    case.post(deep(61)).await.problem(422, "#/metadata");
}

#[tokio::test]
async fn what_is_not_one_sound_event_is_refused_and_named() {
    let case = Case::new().await;
    let before = case.size().await;
    let cases = [
        ("", 400, "#"),
        ("{", 400, "#"),
        ("[]", 400, "#"),
        ("null", 400, "#"),
        ("{} {}", 400, "#"),
        (r#"{"action_type":"VIEW"}"#, 422, "#/resource_type"),
        (&with(r#""ip_address":"10.0.0.0/8""#), 422, "#/ip_address"),
        (&with(r#""ip_address":"010.0.0.1""#), 422, "#/ip_address"),
        (
            &with(r#""occurred_at":"2026-02-30T00:00:00Z""#),
            422,
            "#/occurred_at",
        ),
        (&with(r#""severity":"info""#), 422, "#/severity"),
        (&with(r#""seq":1"#), 422, "#/seq"),
        (&with(r#""usr_id":"ann""#), 422, "#/usr_id"),
        (&with(r#""usr_id":null"#), 422, "#/usr_id"),
        (&with(r#""action":"log.prune""#), 422, "#/action"),
        (&with(r#""user_id":"a\u0000b""#), 422, "#/user_id"),
        (&with(r#""user_id":"\ud800""#), 422, "#/user_id"),
        (&with(r#""metadata":{"a":"\u0000"}"#), 422, "#/metadata"),
        (&with(r#""metadata":{"a":1,"\u0061":2}"#), 422, "#/metadata"),
        (&with(r#""user_id":"a","user_id":"b""#), 422, "#/user_id"),
        (
            &with(r#""id":"0190a000000070008000000000000001""#),
            422,
            "#/id",
        ),
        (
            &with(r#""related_resources":[{"type":"a"}]"#),
            422,
            "#/related_resources",
        ),
    ];
    for (body, status, place) in cases {
        case.post(body).await.problem(status, place);
    }
    let bytes =
        [&b"{\"action_type\":\"VIEW\",\"resource_type\":\"a\",\"resource_id\":\"\xff\"}"[..]];
    for body in bytes {
        let answer = case
            .bytes("/api/v1/logs", "application/json", "", body.to_vec())
            .await;
        answer.problem(400, "#");
    }
    let text = case
        .bytes("/api/v1/logs", "text/plain", "", event("d").into())
        .await;
    assert_eq!(
        text.expect(415).json()["type"],
        "/problems/unsupported-media-type"
    );
    assert_eq!(case.size().await, before);
}

#[tokio::test]
async fn every_fault_of_a_body_is_named_at_once() {
    let case = Case::new().await;
    let body = r#"{"action_type":"LOOK","resource_type":"","ip_address":"x","nope":1}"#;
    let answer = case.post(body).await;
    for place in [
        "#/action_type",
        "#/resource_type",
        "#/resource_id",
        "#/ip_address",
        "#/nope",
    ] {
        answer.problem(422, place);
    }
}

#[tokio::test]
async fn large_bodies_and_bombs_are_refused() {
    let case = Case::new().await;
    let before = case.size().await;
    let large = with(&format!(r#""metadata":"{}""#, "x".repeat(10 * 1024 * 1024)));
    assert_eq!(case.post(large.clone()).await.status, 413);
    // Without a Content-Length the size is only known on the way.
    let stream = futures_util::stream::iter(
        large
            .as_bytes()
            .chunks(64 * 1024)
            .map(|c| Ok::<_, std::io::Error>(c.to_vec()))
            .collect::<Vec<_>>(),
    );
    let request = case
        .service
        .http
        .post(case.service.url("/api/v1/logs"))
        .bearer_auth(&case.token)
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(stream));
    if let Ok(response) = request.send().await {
        assert_eq!(response.status(), 413);
    }
    let zeros = vec![b' '; 64 * 1024 * 1024];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&zeros).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&zeros[..], 3).unwrap();
    for path in ["/api/v1/logs", "/api/v1/logs/bulk"] {
        for (encoding, bomb) in [("gzip", &gzip), ("zstd", &zstd)] {
            let answer = case
                .bytes(path, "application/json", encoding, bomb.clone())
                .await;
            assert_eq!(answer.status, 413, "{path} {encoding}: {}", answer.text);
        }
        let broken = case
            .bytes(path, "application/json", "gzip", b"no gzip".to_vec())
            .await;
        broken.problem(400, "#");
        let unknown = case
            .bytes(path, "application/json", "br", b"x".to_vec())
            .await;
        assert_eq!(unknown.status, 415);
    }
    let items = |n: usize| format!("[{}]", vec![event("d"); n].join(","));
    let many = send(
        case.service
            .post("/api/v1/logs/bulk", &case.token, items(1001)),
    )
    .await;
    assert_eq!(many.status, 413);
    assert_eq!(case.size().await, before);
    send(
        case.service
            .post("/api/v1/logs/bulk", &case.token, items(1000)),
    )
    .await
    .expect(201);
}

#[tokio::test]
async fn encoded_bodies_are_read() {
    let case = Case::new().await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(event("gz").as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    case.bytes(
        "/api/v1/logs",
        "application/json; charset=utf-8",
        "gzip",
        gzip,
    )
    .await
    .expect(201);
    let lines = format!("{}\n{}\n", event("z1"), event("z2"));
    let zstd = zstd::encode_all(lines.as_bytes(), 3).unwrap();
    case.bytes("/api/v1/logs/bulk", "application/x-ndjson", "zstd", zstd)
        .await
        .expect(201);
}

#[tokio::test]
async fn a_line_that_is_cut_refuses_the_whole_bulk_and_is_named() {
    let case = Case::new().await;
    let before = case.size().await;
    let lines = format!("{}\n\n{}", event("a"), &event("b")[..20]);
    let answer = case
        .bytes(
            "/api/v1/logs/bulk",
            "application/x-ndjson",
            "",
            lines.into_bytes(),
        )
        .await;
    answer.problem(400, "#@3");
    let array = format!("[{},{}", event("a"), event("b"));
    let answer = send(case.service.post("/api/v1/logs/bulk", &case.token, array)).await;
    answer.problem(400, "#");
    assert_eq!(case.size().await, before);
}

#[tokio::test]
async fn unknown_and_bad_parameters_are_refused_by_name() {
    let case = Case::new().await;
    for (query, name) in [
        ("usr_id=ann", "usr_id"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=+5", "limit"),
        ("from=yesterday", "from"),
        ("severity=info", "severity"),
        ("ip_address=10.0.0.0/8", "ip_address"),
        ("q=%22open", "q"),
        ("q=x&sort=occurred_at", "sort"),
        ("order=up", "order"),
        ("user_id=", "user_id"),
        ("limit=1&user_id=%FF", "user_id"),
        ("cursor=abc", "cursor"),
        ("tenant_id=nope", "tenant_id"),
    ] {
        let path = format!("/api/v1/logs?{query}");
        send(case.service.get(&path, &case.token))
            .await
            .problem(400, name);
    }
    let answer = send(case.service.get("/api/v1/logs/not-a-uuid", &case.token)).await;
    answer.problem(400, "id");
    let stats = send(
        case.service
            .get("/api/v1/logs/stats?from=2026-11-24T01:00:00Z", &case.token),
    );
    stats.await.problem(400, "from");
    let post = send(
        case.service
            .post("/api/v1/logs?x=1", &case.token, event("d")),
    )
    .await;
    post.problem(400, "x");
    send(case.service.get("/health/live?x=1", &case.token))
        .await
        .problem(400, "x");
}

#[tokio::test]
async fn a_cursor_is_of_its_tenant_and_list_only() {
    let case = Case::new().await;
    let other = case.service.tenant("other").await;
    for tenant in [case.tenant, other] {
        for n in 0..5 {
            case.service
                .record(tenant, audit_core::Event::view("doc", format!("{n}")))
                .await;
        }
    }
    let page = send(case.service.get("/api/v1/logs?limit=2", &case.token))
        .await
        .expect(200);
    let cursor = page.json()["next_cursor"].as_str().unwrap().to_owned();
    assert!(
        page.header("link")
            .contains(&format!("limit=2&cursor={cursor}>; rel=\"next\""))
    );
    let again = format!("/api/v1/logs?limit=3&cursor={cursor}");
    let next = send(case.service.get(&again, &case.token))
        .await
        .expect(200)
        .json();
    assert_eq!(next["data"].as_array().unwrap().len(), 3);
    // Of another query, of another order, of another tenant, edited.
    let mut edited = cursor.clone().into_bytes();
    edited[5] = if edited[5] == b'A' { b'B' } else { b'A' };
    let edited = String::from_utf8(edited).unwrap();
    for query in [
        format!("cursor={cursor}&user_id=ann"),
        format!("cursor={cursor}&order=asc"),
        format!("cursor={edited}"),
    ] {
        let path = format!("/api/v1/logs?{query}");
        send(case.service.get(&path, &case.token))
            .await
            .problem(400, "cursor");
    }
    let foreign = token(Role::User, other);
    let path = format!("/api/v1/logs?cursor={cursor}");
    send(case.service.get(&path, &foreign))
        .await
        .problem(400, "cursor");
}
