//! Clients that never finish what they began, and slow ones that do. Here waiting is what is tested.

use std::time::{Duration, Instant};

use audit_core::{Event, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::service::{Service, send, token};

const PATIENCE: Duration = Duration::from_secs(20);

async fn impatient() -> Service {
    Service::with(&[("AUDIT_RECEIVE_TIMEOUT", "1")]).await
}

async fn connect(service: &Service) -> TcpStream {
    let address = service.base.strip_prefix("http://").unwrap();
    TcpStream::connect(address).await.unwrap()
}

/// Sends `begin`, then `drip` again and again, until the server has closed; everything that it said.
async fn until_closed(service: &Service, begin: &str, drip: &[u8]) -> String {
    let mut connection = connect(service).await;
    connection.write_all(begin.as_bytes()).await.unwrap();
    let (mut read, mut write) = connection.into_split();
    let drip = drip.to_owned();
    let dripping = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            if write.write_all(&drip).await.is_err() {
                return;
            }
        }
    });
    let mut said = Vec::new();
    let began = Instant::now();
    // A reset is an end too: bytes that came after the answer were not read.
    let ended = tokio::time::timeout(PATIENCE, read.read_to_end(&mut said)).await;
    dripping.abort();
    assert!(
        ended.is_ok(),
        "not closed after {:?}: {begin:?}",
        began.elapsed()
    );
    assert!(began.elapsed() >= Duration::from_millis(900), "{begin:?}");
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn a_head_that_is_never_finished_is_cut_and_the_first_one_answered_408() {
    let service = impatient().await;
    // Silent, and dripping.
    for (begin, drip) in [
        ("GET /health/live HTTP/1.1\r\nHost: t\r\n", &b""[..]),
        ("GET /health/live HTTP/1.1\r\nHost: t\r\nX: ", b"x"),
    ] {
        let said = until_closed(&service, begin, drip).await;
        let last = said
            .rfind("HTTP/1.1")
            .map(|at| &said[at..])
            .unwrap_or_default();
        assert!(last.starts_with("HTTP/1.1 408 "), "{begin:?}: {said}");
        assert!(last.contains("application/problem+json"), "{said}");
        assert!(last.contains("\"type\":\"/problems/too-slow\""), "{said}");
    }
    // After a request that was answered: something of the answer might still be on its way.
    let begin = "GET /health/live HTTP/1.1\r\nHost: t\r\n\r\n";
    let said = until_closed(&service, begin, b"G").await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    assert_eq!(said.matches("HTTP/1.1").count(), 1, "{said}");
    // Nothing, and empty lines without an end.
    assert_eq!(until_closed(&service, "", b"").await, "");
    assert_eq!(until_closed(&service, "\r\n\r\n", b"\r\n").await, "");
}

#[tokio::test]
async fn a_body_that_is_never_finished_is_answered_408_and_stores_nothing() {
    let service = impatient().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Writer, tenant);
    let before = service.head(tenant).await;
    for route in ["logs", "logs/bulk"] {
        for drip in [&b""[..], b" "] {
            let begin = format!(
                "POST /api/v1/{route} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {token}\r\n\
                 Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{{"
            );
            let said = until_closed(&service, &begin, drip).await;
            assert!(said.starts_with("HTTP/1.1 408 "), "{route}: {said}");
            assert!(said.contains("\"type\":\"/problems/too-slow\""), "{said}");
            assert!(
                said.to_ascii_lowercase().contains("connection: close"),
                "{said}"
            );
        }
    }
    assert_eq!(service.head(tenant).await, before);
}

#[tokio::test]
async fn whoever_keeps_the_pace_is_not_cut() {
    let service = impatient().await;
    let tenant = service.tenant("t").await;
    let auditor = token(Role::Auditor, tenant);
    let writer = token(Role::Writer, tenant);
    // Idle between two requests for longer than a head may take, with a head in two pieces.
    let mut connection = connect(&service).await;
    let mut answer = [0; 4096];
    for _ in 0..2 {
        connection
            .write_all(b"GET /health/live HTTP/1.1\r\n")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        connection.write_all(b"Host: t\r\n\r\n").await.unwrap();
        let read = tokio::time::timeout(PATIENCE, connection.read(&mut answer));
        let read = read.await.unwrap().unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    // A body whose sender waits to be asked for it (RFC 9110 §10.1.1), longer than a head may take.
    let body = r#"{"action_type":"VIEW","resource_type":"doc","resource_id":"asked"}"#;
    let head = format!(
        "POST /api/v1/logs HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {writer}\r\n\
         Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len() + 40_000
    );
    let mut connection = connect(&service).await;
    connection.write_all(head.as_bytes()).await.unwrap();
    let read = connection.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 100"));
    let padding = " ".repeat(20_000);
    for piece in [&padding, &padding, body] {
        tokio::time::sleep(Duration::from_millis(600)).await;
        connection.write_all(piece.as_bytes()).await.unwrap();
    }
    let read = tokio::time::timeout(PATIENCE, connection.read(&mut answer));
    let read = read.await.unwrap().unwrap();
    assert!(
        answer[..read].starts_with(b"HTTP/1.1 201"),
        "{}",
        String::from_utf8_lossy(&answer[..read])
    );
    // A body that takes longer than a head may, of a request that was sent ahead of the answer to the
    // one before.
    let ahead = format!(
        "GET /health/live HTTP/1.1\r\nHost: t\r\n\r\n{}",
        head.replace("Expect: 100-continue\r\n", "")
    );
    let mut connection = connect(&service).await;
    connection.write_all(ahead.as_bytes()).await.unwrap();
    let body = body.replace("asked", "ahead");
    for piece in [&padding, &padding, &body] {
        tokio::time::sleep(Duration::from_millis(600)).await;
        connection.write_all(piece.as_bytes()).await.unwrap();
    }
    let mut said = String::new();
    while !said.contains("HTTP/1.1 201") {
        let read = tokio::time::timeout(PATIENCE, connection.read(&mut answer));
        let read = read.await.unwrap().unwrap();
        assert!(read > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&answer[..read]));
    }
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    // A stream, which says nothing for longer.
    let mut stream = service
        .get("/api/v1/logs/stream", &auditor)
        .header("accept", "text/event-stream")
        .send()
        .await
        .unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    service.record(tenant, Event::view("doc", "late")).await;
    let chunk = tokio::time::timeout(PATIENCE, stream.chunk())
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&chunk.unwrap().unwrap()).contains("late"));
    send(service.get("/api/v1/logs", &auditor))
        .await
        .expect(200);
}
