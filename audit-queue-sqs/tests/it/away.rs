//! SQS away, too slow, or without the queue.

use std::time::Duration;

use audit_core::{Error, ErrorKind, EventQueue as _};
use audit_queue_sqs::SqsQueue;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::fixture::{LONG, NONE, endpoint, message, new_url, options, options_of, raw, tenant};
use crate::proxy::{Fault, Proxy};

/// What each operation fails with, and within which time.
async fn errors(queue: &SqsQueue) -> Vec<(Error, Duration)> {
    let handles = ["h".to_owned()];
    let letters = [("h".to_owned(), "r".to_owned())];
    let mut errors = Vec::new();
    let mut began = Instant::now();
    let mut failed = |error: Error| {
        errors.push((error, began.elapsed()));
        began = Instant::now();
    };
    failed(queue.send(&[message(tenant(0), 0)]).await.unwrap_err());
    failed(queue.receive(1, NONE, LONG).await.unwrap_err());
    failed(queue.ack(&handles).await.unwrap().remove(0).unwrap_err());
    let given_back = queue.retry(&handles, NONE).await.unwrap().remove(0);
    failed(given_back.unwrap_err());
    failed(queue.bury(&letters).await.unwrap_err());
    failed(queue.dead_letters(1).await.unwrap_err());
    failed(queue.check().await.unwrap_err());
    errors
}

#[tokio::test]
async fn every_operation_says_soon_that_sqs_is_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let queue = SqsQueue::open(options(false).endpoint(nobody))
        .await
        .unwrap();
    for (error, took) in errors(&queue).await {
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.is_retryable());
        assert!(error.to_string().contains("can't be reached"), "{error}");
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up_in_time() {
    let proxy = Proxy::start(|_| Fault::Silence).await;
    let timeout = Duration::from_secs(1);
    let options = options(false).endpoint(&proxy.endpoint).timeout(timeout);
    let queue = SqsQueue::open(options).await.unwrap();
    for (error, took) in errors(&queue).await {
        assert!(error.is_retryable());
        assert!(took < timeout * 2, "{took:?}");
    }
}

#[tokio::test]
async fn a_missing_queue_is_named_with_what_to_do_about_it() {
    let aws = Proxy::start(|_| Fault::Whole(400, "AWS.SimpleQueueService.NonExistentQueue")).await;
    for at in [endpoint(), aws.endpoint.clone()] {
        let url = new_url(false);
        let queue = SqsQueue::open(options_of(&url).endpoint(at)).await.unwrap();
        for (error, _) in errors(&queue).await {
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(text.contains(&url), "{text}");
            assert!(text.contains("does not exist: create it"), "{text}");
            assert!(
                text.contains("aws sqs create-queue --queue-name it-"),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn a_queue_without_a_dead_letter_queue_is_not_used_until_it_has_one() {
    let url = new_url(false);
    let name = url.rsplit('/').next().unwrap();
    let queue = SqsQueue::open(options_of(&url)).await.unwrap();
    raw()
        .await
        .create_queue()
        .queue_name(name)
        .send()
        .await
        .unwrap();
    let error = queue.send(&[message(tenant(0), 0)]).await.unwrap_err();
    assert!(error.is_retryable());
    assert!(
        error.to_string().contains("has no dead-letter queue"),
        "{error}"
    );
    queue.create().await.unwrap();
    queue.send(&[message(tenant(0), 0)]).await.unwrap()[0]
        .clone()
        .unwrap();
    queue.check().await.unwrap();
}
