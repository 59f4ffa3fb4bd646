//! Streams that are cut go on from where they were; pages are followed to their end.

use audit_client::{ListRequest, StreamRequest};
use audit_core::{Delivered, ErrorKind, Filter};
use futures_util::{StreamExt as _, TryStreamExt as _};
use wiremock::matchers::{header, method, path, query_param, query_param_is_missing};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::{client, entry};

fn frame(seq: u64) -> String {
    format!(
        "id: {seq}\ndata: {{\"type\":\"entry\",\"seq\":{seq},\"entry\":{}}}\n\n",
        entry(seq)
    )
}

fn stream(body: String) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_raw(body, "text/event-stream")
}

#[tokio::test]
async fn a_stream_resumes_by_the_last_id_and_shows_each_entry_once_in_order() {
    let server = MockServer::start().await;
    let route = || Mock::given(method("GET")).and(path("/api/v1/logs/stream"));
    route()
        .and(header("accept", "text/event-stream"))
        .and(|r: &Request| !r.headers.contains_key("last-event-id"))
        .respond_with(stream(format!(
            "{}{}id: 9\ndata: {{\"type\":\"ent",
            frame(4),
            frame(5)
        )))
        .expect(1)
        .mount(&server)
        .await;
    // Begins with what was seen already.
    let heartbeat = "id: 8\ndata: {\"type\":\"heartbeat\",\"seq\":8}\n\n";
    route()
        .and(header("last-event-id", "5"))
        .respond_with(stream(format!("{}{}{heartbeat}", frame(5), frame(6))))
        .expect(1)
        .mount(&server)
        .await;
    let pruned = "id: 19\ndata: {\"type\":\"pruned\",\"seq\":19,\"below\":20}\n\n";
    let closing = "data: {\"type\":\"closing\",\"code\":4403,\"reason\":\"suspended\"}\n\n";
    route()
        .and(header("last-event-id", "8"))
        .respond_with(stream(format!("{pruned}{}{closing}", frame(20))))
        .expect(1)
        .mount(&server)
        .await;

    let request = StreamRequest::new().from(4);
    let mut followed = client(&server.uri()).stream(&request).await.unwrap();
    let mut seen = Vec::new();
    let error = loop {
        match followed.next().await.unwrap() {
            Ok(Delivered::Entry(entry)) => seen.push(format!("{}", entry.seq)),
            Ok(Delivered::Heartbeat { seq }) => seen.push(format!("heartbeat {seq:?}")),
            Ok(Delivered::Pruned { below }) => seen.push(format!("pruned {below}")),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(
        seen,
        ["4", "5", "6", "heartbeat Some(8)", "pruned 20", "20"]
    );
    assert_eq!(error.kind(), ErrorKind::TenantClosed);
    assert!(followed.next().await.is_none());
}

#[tokio::test]
async fn a_stream_from_now_on_that_is_cut_before_its_first_entry_goes_on_from_then() {
    let server = MockServer::start().await;
    Mock::given(header("last-event-id", "41"))
        .respond_with(stream(frame(42)))
        .mount(&server)
        .await;
    Mock::given(method("GET"))
        .respond_with(stream("id: 41\n\n".into()))
        .up_to_n_times(1)
        .with_priority(9)
        .mount(&server)
        .await;
    let mut followed = client(&server.uri())
        .stream(&StreamRequest::new())
        .await
        .unwrap();
    match followed.next().await {
        Some(Ok(Delivered::Entry(entry))) => assert_eq!(entry.seq, 42),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stream_of_an_empty_log_that_is_cut_goes_on_with_its_first_entry() {
    let server = MockServer::start().await;
    Mock::given(query_param("from_seq", "0"))
        .respond_with(stream(frame(0)))
        .mount(&server)
        .await;
    let heartbeat = "data: {\"type\":\"heartbeat\",\"seq\":null}\n\n";
    Mock::given(query_param_is_missing("from_seq"))
        .respond_with(stream(heartbeat.into()))
        .expect(1)
        .mount(&server)
        .await;
    let mut followed = client(&server.uri())
        .stream(&StreamRequest::new())
        .await
        .unwrap();
    assert!(matches!(
        followed.next().await,
        Some(Ok(Delivered::Heartbeat { seq: None }))
    ));
    assert!(matches!(followed.next().await, Some(Ok(Delivered::Entry(entry))) if entry.seq == 0));
}

#[tokio::test]
async fn a_stream_that_can_not_be_opened_again_ends_with_an_error() {
    let server = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(stream(frame(0)))
        .up_to_n_times(1)
        .mount(&server)
        .await;
    Mock::given(method("GET"))
        .respond_with(ResponseTemplate::new(503))
        .mount(&server)
        .await;
    let mut followed = client(&server.uri())
        .stream(&StreamRequest::new())
        .await
        .unwrap();
    assert!(matches!(
        followed.next().await,
        Some(Ok(Delivered::Entry(_)))
    ));
    let error = followed.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_stream_that_is_too_slow_goes_on_and_an_expired_credential_ends_it() {
    let server = MockServer::start().await;
    let slow = "data: {\"type\":\"closing\",\"code\":4408,\"reason\":\"too slow\"}\n\n";
    let expired = "data: {\"type\":\"closing\",\"code\":4401,\"reason\":\"expired\"}\n\n";
    Mock::given(header("last-event-id", "0"))
        .respond_with(stream(format!("{}{expired}", frame(1))))
        .mount(&server)
        .await;
    Mock::given(method("GET"))
        .respond_with(stream(format!("{}{slow}", frame(0))))
        .up_to_n_times(1)
        .with_priority(9)
        .mount(&server)
        .await;
    let followed = client(&server.uri())
        .stream(&StreamRequest::new())
        .await
        .unwrap();
    let seen: Vec<_> = followed.collect().await;
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[2].as_ref().unwrap_err().kind(), ErrorKind::Forbidden);
}

#[tokio::test]
async fn pages_are_followed_until_the_cursor_is_null() {
    let server = MockServer::start().await;
    let page = |seqs: &[u64], next: &str| {
        let data: Vec<_> = seqs.iter().map(|seq| entry(*seq)).collect();
        let body = format!("{{\"data\":[{}],\"next_cursor\":{next}}}", data.join(","));
        ResponseTemplate::new(200).set_body_string(body)
    };
    let route = || {
        Mock::given(method("GET"))
            .and(path("/api/v1/logs"))
            .and(query_param("user_id", "ann & bob"))
            .and(query_param("limit", "2"))
    };
    route()
        .and(query_param_is_missing("cursor"))
        .respond_with(page(&[9, 8], "\"c+/=\""))
        .expect(1)
        .mount(&server)
        .await;
    route()
        .and(query_param("cursor", "c+/="))
        .respond_with(page(&[7], "null"))
        .expect(1)
        .mount(&server)
        .await;
    let request = ListRequest::new(Filter::new().user("ann & bob")).limit(2);
    let entries: Vec<_> = client(&server.uri())
        .list_all(request)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [9, 8, 7]);
}

#[tokio::test]
async fn an_ascending_list_ends_with_an_empty_page() {
    let server = MockServer::start().await;
    let last = format!("{{\"data\":[{}],\"next_cursor\":\"a\"}}", entry(0));
    Mock::given(query_param_is_missing("cursor"))
        .and(query_param("order", "asc"))
        .respond_with(ResponseTemplate::new(200).set_body_string(last))
        .mount(&server)
        .await;
    Mock::given(query_param("cursor", "a"))
        .respond_with(
            ResponseTemplate::new(200).set_body_string("{\"data\":[],\"next_cursor\":\"a\"}"),
        )
        .expect(1)
        .mount(&server)
        .await;
    let request = ListRequest::new(Filter::new()).ascending();
    let entries: Vec<_> = client(&server.uri())
        .list_all(request)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(entries.len(), 1);
}
