//! Many events: whole or not at all, and each by itself.

use audit_core::{ErrorKind, Event, Recorder as _};
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::{client, receipt};

fn events(n: usize) -> Vec<Event> {
    (0..n).map(|i| Event::view("page", i.to_string())).collect()
}

fn items(request: &Request) -> Vec<serde_json::Value> {
    serde_json::from_slice(&request.body).unwrap()
}

/// Answers an item that has been sent `n` times with what `result` says.
fn results(
    request: &Request,
    result: impl Fn(usize, &serde_json::Value) -> (u16, String),
) -> String {
    let results: Vec<String> = items(request)
        .iter()
        .enumerate()
        .map(|(i, item)| {
            let (status, rest) = result(i, item);
            format!("{{\"index\":{i},\"status\":{status},{rest}}}")
        })
        .collect();
    format!("{{\"results\":[{}]}}", results.join(","))
}

fn stored(item: &serde_json::Value) -> (u16, String) {
    (
        201,
        format!("\"receipt\":{}", receipt(item["id"].as_str().unwrap(), 0)),
    )
}

#[tokio::test]
async fn more_than_one_request_holds_is_refused_before_anything_is_sent() {
    let server = MockServer::start().await;
    let error = client(&server.uri())
        .record_all(events(1_001))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("the limit is 1000"), "{error}");
    assert!(
        client(&server.uri())
            .record_all(vec![])
            .await
            .unwrap()
            .is_empty()
    );
    assert!(server.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn faults_of_a_whole_bulk_carry_the_index() {
    let server = MockServer::start().await;
    let mut events = events(3);
    events[2] = Event::view("", "1");
    let error = client(&server.uri()).record_all(events).await.unwrap_err();
    assert_eq!(
        (error.fields()[0].index, &*error.fields()[0].field),
        (Some(2), "resource_type")
    );
    assert!(server.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn lenient_recording_is_cut_and_keeps_the_order() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/api/v1/logs/bulk"))
        .and(header("prefer", "handling=lenient"))
        .respond_with(|request: &Request| {
            let body = results(request, |_, item| {
                if item["resource_id"] == "700" {
                    (
                        409,
                        "\"error\":{\"type\":\"/problems/conflict\",\"detail\":\"taken\"}".into(),
                    )
                } else {
                    stored(item)
                }
            });
            ResponseTemplate::new(207).set_body_string(body)
        })
        .mount(&server)
        .await;
    let mut events = events(1_201);
    events[3] = Event::view("page", "");
    let outcomes = client(&server.uri()).record_each(events).await;
    assert_eq!(outcomes.len(), 1_201);
    for (i, outcome) in outcomes.iter().enumerate() {
        match (i, outcome) {
            (3, Err(error)) => assert_eq!(error.kind(), ErrorKind::Invalid),
            (700, Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::Conflict);
                assert!(error.event_id().is_some());
            }
            (_, outcome) => assert!(outcome.is_ok(), "{i}: {outcome:?}"),
        }
    }
    let requests = server.received_requests().await.unwrap();
    let sizes: Vec<usize> = requests.iter().map(|r| items(r).len()).collect();
    assert_eq!(sizes, [500, 500, 200]);
}

#[tokio::test]
async fn large_events_are_cut_by_bytes() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .respond_with(|request: &Request| {
            ResponseTemplate::new(207).set_body_string(results(request, |_, item| stored(item)))
        })
        .mount(&server)
        .await;
    let large = "x".repeat(250 * 1024);
    let events: Vec<_> = events(70).into_iter().map(|e| e.metadata(&large)).collect();
    assert!(
        client(&server.uri())
            .record_each(events)
            .await
            .iter()
            .all(Result::is_ok)
    );
    let requests = server.received_requests().await.unwrap();
    assert!(requests.len() == 3 && requests.iter().all(|r| r.body.len() <= 8 * 1024 * 1024 + 2));
}

#[tokio::test]
async fn items_that_could_not_be_taken_for_now_are_sent_again_under_their_ids() {
    let server = MockServer::start().await;
    let unavailable = |request: &Request| {
        let body = results(request, |i, item| {
            if i == 1 {
                (503, "\"error\":{\"type\":\"/problems/unavailable\"}".into())
            } else {
                stored(item)
            }
        });
        ResponseTemplate::new(207).set_body_string(body)
    };
    Mock::given(method("POST"))
        .respond_with(unavailable)
        .up_to_n_times(1)
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .respond_with(|request: &Request| {
            ResponseTemplate::new(207).set_body_string(results(request, |_, item| stored(item)))
        })
        .mount(&server)
        .await;
    let outcomes = client(&server.uri()).record_each(events(3)).await;
    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests.len(), 2);
    assert_eq!(items(&requests[1])[0]["id"], items(&requests[0])[1]["id"]);
    let first: Vec<_> = items(&requests[0])
        .iter()
        .map(|i| i["id"].clone())
        .collect();
    let got: Vec<_> = outcomes
        .iter()
        .map(|o| o.as_ref().unwrap().id.to_string())
        .collect();
    assert_eq!(first, got);
}
