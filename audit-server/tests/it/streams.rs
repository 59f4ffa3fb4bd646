//! Streams: server-sent events and WebSockets.

use std::time::Duration;

use audit_core::{Event, Role};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::service::{Service, in_seconds, send, token, token_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// Reads events from a response until one satisfies `until`; each with its id.
struct Events {
    response: reqwest::Response,
    buffer: String,
}

impl Events {
    async fn open(request: reqwest::RequestBuilder) -> Self {
        let response = request
            .header("accept", "text/event-stream")
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            response,
            buffer: String::new(),
        }
    }

    /// The next event; none at the end.
    async fn next(&mut self) -> Option<(Option<u64>, Value)> {
        loop {
            if let Some(at) = self.buffer.find("\n\n") {
                let event: String = self.buffer.drain(..at + 2).collect();
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|l| l.strip_prefix(name))
                        .map(|v| v.trim().to_owned())
                };
                let data = field("data:").expect("an event has data");
                let id = field("id:").map(|id| id.parse().unwrap());
                return Some((id, serde_json::from_str(&data).unwrap()));
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk())
                .await
                .unwrap();
            match chunk.unwrap() {
                Some(chunk) => self.buffer.push_str(std::str::from_utf8(&chunk).unwrap()),
                None => return None,
            }
        }
    }

    async fn next_of(&mut self, kind: &str) -> (Option<u64>, Value) {
        loop {
            let (id, frame) = self.next().await.expect("the stream goes on");
            if frame["type"] == kind {
                return (id, frame);
            }
        }
    }
}

#[tokio::test]
async fn events_come_in_order_and_resume_where_they_stopped() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Auditor, tenant);
    for n in 0..50 {
        service
            .record(tenant, Event::view("doc", format!("{n}")))
            .await;
    }
    let mut last = None;
    let mut seen = Vec::new();
    while seen.len() < 51 {
        let mut request = service.get("/api/v1/logs/stream?from_seq=0", &token);
        if let Some(last) = last {
            request = request.header("last-event-id", format!("{last}"));
        }
        // A connection that is cut after some events goes on behind the last one.
        let mut events = Events::open(request).await;
        for _ in 0..20.min(51 - seen.len()) {
            let (id, frame) = events.next_of("entry").await;
            assert_eq!(frame["seq"], frame["entry"]["seq"]);
            last = id;
            seen.push(id.unwrap());
        }
    }
    assert_eq!(seen, (0..51).collect::<Vec<u64>>());
}

#[tokio::test]
async fn a_stream_starts_now_filters_and_tells_how_far_it_is() {
    let service = Service::with(&[("AUDIT_STREAM_HEARTBEAT", "1")]).await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Auditor, tenant);
    service
        .record(tenant, Event::view("doc", "before").user("ann"))
        .await;
    let mut events = Events::open(service.get("/api/v1/logs/stream?user_id=ann", &token)).await;
    let (id, first) = events.next().await.unwrap();
    assert_eq!((id, &first["type"]), (Some(1), &"heartbeat".into()));
    service
        .record(tenant, Event::view("doc", "other").user("bob"))
        .await;
    service
        .record(tenant, Event::view("doc", "after").user("ann"))
        .await;
    let (id, frame) = events.next_of("entry").await;
    assert_eq!(frame["entry"]["resource_id"], "after");
    assert_eq!(id, Some(3));
    service
        .record(tenant, Event::view("doc", "unseen").user("bob"))
        .await;
    loop {
        let (id, _) = events.next_of("heartbeat").await;
        if id == Some(4) {
            break;
        }
    }
}

#[tokio::test]
async fn a_pruned_start_is_told() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let admin = token(Role::TenantAdmin, tenant);
    service.record(tenant, Event::view("doc", "1")).await;
    let body = r#"{"before":"2999-01-01T00:00:00Z"}"#;
    send(service.post("/api/v1/prunes", &admin, body))
        .await
        .expect(201);
    let mut events = Events::open(service.get("/api/v1/logs/stream?from_seq=0", &admin)).await;
    let (id, pruned) = events.next_of("pruned").await;
    assert_eq!((id, &pruned["below"]), (Some(1), &2.into()));
    let (id, entry) = events.next().await.unwrap();
    assert_eq!((id, &entry["entry"]["kind"]), (Some(2), &"prune".into()));
}

#[tokio::test]
async fn what_is_no_stream_is_refused() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Auditor, tenant);
    let html = service
        .get("/api/v1/logs/stream", &token)
        .header("accept", "text/html");
    send(html).await.expect(406);
    let bad = service
        .get("/api/v1/logs/stream", &token)
        .header("last-event-id", "x");
    send(bad).await.problem(400, "Last-Event-ID");
}

#[tokio::test]
async fn streams_end_with_a_closing_frame_when_the_server_stops() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Auditor, tenant);
    let mut events = Events::open(service.get("/api/v1/logs/stream", &token)).await;
    let mut socket = connect(&service, "/api/v1/logs/stream", Some(&token))
        .await
        .unwrap();
    assert_eq!(text(&mut socket).await.unwrap()["type"], "heartbeat");
    let stopping = tokio::spawn(service.stop());
    let (_, closing) = events.next_of("closing").await;
    assert_eq!(closing["code"], 1001);
    assert!(events.next().await.is_none());
    assert_eq!(close_code(&mut socket).await, 1001);
    stopping.await.unwrap().unwrap();
}

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn connect(
    service: &Service,
    path: &str,
    token: Option<&str>,
) -> Result<Socket, tungstenite::Error> {
    let url = service.url(path).replace("http://", "ws://");
    let mut request = url.into_client_request().unwrap();
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.headers_mut().insert("authorization", value);
    }
    let connecting = tokio_tungstenite::connect_async(request);
    Ok(tokio::time::timeout(PATIENCE, connecting).await.unwrap()?.0)
}

/// The next text frame; none when the socket closes.
async fn text(socket: &mut Socket) -> Option<Value> {
    loop {
        match tokio::time::timeout(PATIENCE, socket.next())
            .await
            .unwrap()?
            .unwrap()
        {
            Message::Text(text) => return Some(serde_json::from_str(&text).unwrap()),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

async fn close_code(socket: &mut Socket) -> u16 {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
        match message.expect("a close frame comes first").unwrap() {
            Message::Close(frame) => return frame.unwrap().code.into(),
            _ => continue,
        }
    }
}

#[tokio::test]
async fn a_websocket_shows_the_same_frames() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Auditor, tenant);
    let mut socket = connect(&service, "/api/v1/logs/stream?from_seq=1", Some(&token))
        .await
        .unwrap();
    assert_eq!(text(&mut socket).await.unwrap()["seq"], 0);
    service.record(tenant, Event::view("doc", "a")).await;
    let frame = text(&mut socket).await.unwrap();
    assert_eq!(frame["type"], "entry");
    assert_eq!(
        (&frame["seq"], &frame["entry"]["resource_id"]),
        (&1.into(), &"a".into())
    );
    socket
        .send(Message::Ping(b"x".to_vec().into()))
        .await
        .unwrap();
    socket.close(None).await.unwrap();
}

#[tokio::test]
async fn a_suspended_tenants_streams_close_with_4403() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Admin, tenant);
    let mut socket = connect(&service, "/api/v1/logs/stream", Some(&token))
        .await
        .unwrap();
    let mut events = Events::open(service.get("/api/v1/logs/stream", &token)).await;
    let path = service.url(&format!("/api/v1/tenants/{tenant}"));
    let patch = service.http.patch(path).bearer_auth(&token);
    let patch = patch
        .header("content-type", "application/json")
        .body(r#"{"status":"suspended"}"#);
    send(patch).await.expect(200);
    assert_eq!(close_code(&mut socket).await, 4403);
    let (_, closing) = events.next_of("closing").await;
    assert_eq!(closing["code"], 4403);
    let refused = connect(&service, "/api/v1/logs/stream", Some(&token))
        .await
        .unwrap_err();
    let tungstenite::Error::Http(response) = refused else {
        panic!("{refused}")
    };
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn a_stream_ends_with_its_credential() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token_until(Role::Auditor, tenant, in_seconds(2));
    let mut socket = connect(&service, "/api/v1/logs/stream", Some(&token))
        .await
        .unwrap();
    assert_eq!(close_code(&mut socket).await, 4401);
}

#[tokio::test]
async fn what_waits_already_is_not_sent_to_an_expired_credential() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    for n in 0..20 {
        service
            .record(tenant, Event::view("doc", format!("{n}")))
            .await;
    }
    // The clocks of issuer and server may differ by two seconds, so that it still opens a stream.
    let token = token_until(Role::Auditor, tenant, in_seconds(0));
    let mut events = Events::open(service.get("/api/v1/logs/stream?from_seq=0", &token)).await;
    assert_eq!(events.next().await.unwrap().1["type"], "heartbeat");
    let (_, closing) = events.next().await.unwrap();
    assert_eq!(closing["type"], "closing", "{closing}");
    assert_eq!(closing["code"], 4401);
}

#[tokio::test]
async fn a_revoked_api_keys_streams_close_with_4401() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let admin = token(Role::TenantAdmin, tenant);
    let body = r#"{"name":"k","role":"auditor"}"#;
    let made = send(service.post("/api/v1/api-keys", &admin, body)).await;
    let made = made.expect(201).json();
    let key = made["key"].as_str().unwrap();
    let mut socket = connect(&service, "/api/v1/logs/stream", Some(key))
        .await
        .unwrap();
    let mut events = Events::open(service.get("/api/v1/logs/stream", key)).await;
    let path = format!("/api/v1/api-keys/{}", made["id"].as_str().unwrap());
    let revoke = service.http.delete(service.url(&path)).bearer_auth(&admin);
    send(revoke).await.expect(204);
    assert_eq!(close_code(&mut socket).await, 4401);
    assert_eq!(events.next_of("closing").await.1["code"], 4401);
}

#[tokio::test]
async fn a_stream_of_a_ticket_ends_with_the_api_key_that_made_it() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let admin = token(Role::TenantAdmin, tenant);
    let body = r#"{"name":"k","role":"auditor"}"#;
    let made = send(service.post("/api/v1/api-keys", &admin, body)).await;
    let made = made.expect(201).json();
    let key = made["key"].as_str().unwrap();
    let ticket = async || {
        let request = service.http.post(service.url("/api/v1/logs/stream/ticket"));
        let made = send(request.bearer_auth(key)).await.expect(201).json();
        format!(
            "/api/v1/logs/stream?ticket={}",
            made["ticket"].as_str().unwrap()
        )
    };
    let mut socket = connect(&service, &ticket().await, None).await.unwrap();
    assert_eq!(text(&mut socket).await.unwrap()["type"], "heartbeat");
    let unused = ticket().await;
    let path = format!("/api/v1/api-keys/{}", made["id"].as_str().unwrap());
    let revoke = service.http.delete(service.url(&path)).bearer_auth(&admin);
    send(revoke).await.expect(204);
    assert_eq!(close_code(&mut socket).await, 4401);
    let refused = connect(&service, &unused, None).await.unwrap_err();
    let tungstenite::Error::Http(response) = refused else {
        panic!("{refused}")
    };
    assert_eq!(response.status(), 401);
}

#[tokio::test]
async fn a_connection_that_takes_nothing_ends() {
    use tokio::io::AsyncWriteExt as _;
    let service = Service::with(&[("AUDIT_STREAM_SEND_TIMEOUT", "1")]).await;
    let tenant = service.tenant("t").await;
    let state = serde_json::json!("x".repeat(200 * 1024));
    for _ in 0..100 {
        service
            .record(tenant, Event::view("doc", "large").after(&state))
            .await;
    }
    let address = service.base.strip_prefix("http://").unwrap();
    let token = token(Role::Auditor, tenant);
    for path in ["stream?from_seq=0", "export?format=ndjson"] {
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /api/v1/logs/{path} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        // It reads nothing. Once the server has closed, what is sent to it is refused.
        let refused = async { while connection.write_all(b"\r\n").await.is_ok() {} };
        tokio::time::timeout(PATIENCE, refused).await.unwrap();
    }
}

#[tokio::test]
async fn a_ticket_opens_one_stream() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Auditor, tenant);
    let make = async || {
        let request = service.http.post(service.url("/api/v1/logs/stream/ticket"));
        let made = send(request.bearer_auth(&token)).await.expect(201).json();
        made["ticket"].as_str().unwrap().to_owned()
    };
    let path = format!("/api/v1/logs/stream?ticket={}", make().await);
    let mut socket = connect(&service, &path, None).await.unwrap();
    assert_eq!(text(&mut socket).await.unwrap()["type"], "heartbeat");
    let again = connect(&service, &path, None).await.unwrap_err();
    let tungstenite::Error::Http(response) = again else {
        panic!("{again}")
    };
    assert_eq!(response.status(), 401);
    // It opens nothing else.
    let elsewhere = format!("/api/v1/logs?ticket={}", make().await);
    send(service.http.get(service.url(&elsewhere)))
        .await
        .problem(400, "ticket");
}

#[tokio::test]
async fn a_subscriber_that_stops_reading_is_closed_with_4408() {
    let service = Service::with(&[("AUDIT_STREAM_SEND_TIMEOUT", "1")]).await;
    let tenant = service.tenant("t").await;
    let token = token(Role::User, tenant);
    // More than the buffers of two sockets hold.
    let entries = 100;
    let state = serde_json::json!("x".repeat(200 * 1024));
    for _ in 0..entries {
        service
            .record(tenant, Event::view("doc", "large").after(&state))
            .await;
    }
    // The metrics are the whole process's, so that another test's slow subscriber may be the one that
    // they tell of. Then this one was not closed yet, reads everything, and tries again.
    for _ in 0..20 {
        let before = closed_as_too_slow(&service).await;
        let mut socket = connect(&service, "/api/v1/logs/stream?from_seq=0", Some(&token))
            .await
            .unwrap();
        let closed = async {
            while closed_as_too_slow(&service).await == before {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.unwrap();
        // What was on its way is still read; then comes the code, where there was room for it.
        let mut read = 0;
        while read < entries {
            match tokio::time::timeout(PATIENCE, socket.next()).await.unwrap() {
                Some(Ok(Message::Close(Some(frame)))) => {
                    assert_eq!(u16::from(frame.code), 4408);
                    return;
                }
                Some(Ok(_)) => read += 1,
                Some(Err(_)) | None => return,
            }
        }
    }
    panic!("it was never closed");
}

/// The metric's line, which changes when a stream is closed for that reason.
async fn closed_as_too_slow(service: &Service) -> Option<String> {
    let wanted = "audit_streams_closed_total{reason=\"the subscriber is too slow\"}";
    let metrics = send(service.http.get(service.url("/metrics"))).await.text;
    metrics
        .lines()
        .find(|line| line.starts_with(wanted))
        .map(str::to_owned)
}
