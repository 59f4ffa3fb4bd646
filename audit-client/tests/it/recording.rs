//! Single events: retries are under one id.

use std::time::{Duration, Instant};

use audit_core::{ErrorKind, Event, Recorder as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::{client, id_of, receipt};

fn event() -> Event {
    Event::update("invoice", "inv-1").user("ann")
}

fn accept(request: &Request) -> ResponseTemplate {
    let receipt = receipt(&id_of(&request.body), 3);
    ResponseTemplate::new(201).set_body_string(format!("{{\"receipt\":{receipt}}}"))
}

async fn fails_first(status: u16, times: u64) -> MockServer {
    let server = MockServer::start().await;
    let refusal = ResponseTemplate::new(status).insert_header("retry-after", "1");
    Mock::given(method("POST"))
        .and(path("/api/v1/logs"))
        .respond_with(refusal)
        .up_to_n_times(times)
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .and(path("/api/v1/logs"))
        .and(header("authorization", "Bearer secret"))
        .respond_with(accept)
        .mount(&server)
        .await;
    server
}

async fn ids(server: &MockServer) -> Vec<String> {
    server
        .received_requests()
        .await
        .unwrap()
        .iter()
        .map(|r| id_of(&r.body))
        .collect()
}

#[tokio::test]
async fn a_rate_limit_is_waited_out_and_the_id_stays() {
    let server = fails_first(429, 1).await;
    let begun = Instant::now();
    let receipt = client(&server.uri()).record(event()).await.unwrap();
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "Retry-After was not waited for"
    );
    let ids = ids(&server).await;
    assert_eq!(ids, [receipt.id.to_string(), receipt.id.to_string()]);
    assert_eq!(receipt.seq, 3);
}

#[tokio::test]
async fn a_part_that_is_away_is_waited_for_under_the_same_id() {
    let server = fails_first(503, 2).await;
    let receipt = client(&server.uri()).record(event()).await.unwrap();
    assert_eq!(ids(&server).await, vec![receipt.id.to_string(); 3]);
}

#[tokio::test]
async fn attempts_are_bounded_and_the_error_names_the_id_for_a_retry() {
    let server = fails_first(503, 1_000).await;
    let error = client(&server.uri()).record(event()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
    let ids = ids(&server).await;
    assert_eq!(ids, vec![error.event_id().unwrap().to_string(); 4]);
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_not_begun() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(429).insert_header("retry-after", "3600"))
        .expect(1)
        .mount(&server)
        .await;
    let error = client(&server.uri()).record(event()).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
}

#[tokio::test]
async fn a_conflict_and_a_refused_field_are_final() {
    for (status, kind, body) in [
        (
            409,
            ErrorKind::Conflict,
            r#"{"type":"/problems/conflict","detail":"taken"}"#,
        ),
        (
            422,
            ErrorKind::Invalid,
            r##"{"errors":[{"pointer":"#/user_id","detail":"too long"}]}"##,
        ),
        (
            403,
            ErrorKind::TenantClosed,
            r#"{"type":"/problems/tenant-closed","detail":"closed"}"#,
        ),
    ] {
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .respond_with(ResponseTemplate::new(status).set_body_string(body))
            .expect(1)
            .mount(&server)
            .await;
        let error = client(&server.uri()).record(event()).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.event_id().is_some());
    }
}

#[tokio::test]
async fn an_event_that_can_not_be_taken_is_refused_before_it_is_sent() {
    let server = MockServer::start().await;
    let event = event().user("x".repeat(257)).metadata(&f64::NAN);
    let error = client(&server.uri()).record(event).await.unwrap_err();
    let mut fields: Vec<_> = error.fields().iter().map(|f| f.field.to_string()).collect();
    fields.sort();
    assert_eq!(fields, ["metadata", "user_id"]);
    assert!(server.received_requests().await.unwrap().is_empty());
}

/// Reads one request and returns its body.
async fn read(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).await.unwrap();
        read.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&read);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| {
                    l.to_ascii_lowercase()
                        .strip_prefix("content-length: ")?
                        .parse()
                        .ok()
                })
                .unwrap_or(0);
            if body.len() >= length {
                return body.as_bytes().to_vec();
            }
        }
        assert_ne!(n, 0, "the request was cut");
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_before_the_answer_is_retried_under_the_same_id() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut seen = Vec::new();
        // Cut after the request, then in the middle of the answer, then answered.
        for cut in [
            Some(""),
            Some("HTTP/1.1 201 Created\r\ncontent-length: 500\r\n\r\n{"),
            None,
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let id = id_of(&read(&mut stream).await);
            let answer = match cut {
                Some(text) => text.to_owned(),
                None => {
                    let body = format!("{{\"receipt\":{}}}", receipt(&id, 0));
                    let length = body.len();
                    format!("HTTP/1.1 201 Created\r\ncontent-length: {length}\r\n\r\n{body}")
                }
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            seen.push(id);
        }
        seen
    });
    let receipt = client(&url).record(event()).await.unwrap();
    assert_eq!(server.await.unwrap(), vec![receipt.id.to_string(); 3]);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    // Bound and dropped: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let error = client(&format!("http://{address}"))
        .record(event())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_redirect_is_an_error_and_the_token_stays() {
    let other = MockServer::start().await;
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(307).insert_header("location", other.uri().as_str()))
        .mount(&server)
        .await;
    assert!(client(&server.uri()).record(event()).await.is_err());
    assert!(other.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn making_a_key_is_not_repeated_when_it_may_have_been_done() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(503))
        .expect(1)
        .mount(&server)
        .await;
    let key = audit_client::NewKey::new("billing", audit_core::Role::Writer);
    let error = client(&server.uri()).create_key(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
