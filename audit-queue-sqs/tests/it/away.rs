//! SQS away, too slow, or without the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use audit_core::{Error, ErrorKind, EventQueue as _};
use audit_queue_sqs::SqsQueue;
use tokio::net::TcpListener;
use tokio::time::Instant;

use futures_util::future::join_all;

use crate::fixture::{
    LONG, NONE, endpoint, make, message, new_url, options, options_of, raw, send, tenant,
};
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

#[tokio::test]
async fn nothing_is_sent_to_a_queue_that_forgets_too_soon_until_it_is_mended() {
    let cases = [
        ("3600", "1209600", "--queue-url"),
        ("345600", "86400", "-dead"),
    ];
    for (kept, dead, part) in cases {
        let mended = Arc::new(AtomicBool::new(false));
        let is_mended = Arc::clone(&mended);
        let proxy = Proxy::start(move |call| {
            let seconds = match is_mended.load(Ordering::Relaxed) {
                true => "1209600",
                false if call.is_of_dead_letters() => dead,
                false => kept,
            };
            match &*call.operation {
                "GetQueueAttributes" => {
                    Fault::Attributes(vec![("MessageRetentionPeriod", seconds)])
                }
                _ => Fault::None,
            }
        })
        .await;
        let queue = make(options(false).endpoint(&proxy.endpoint)).await;
        for error in [
            queue.send(&[message(tenant(0), 0)]).await.unwrap_err(),
            queue.check().await.unwrap_err(),
        ] {
            assert!(error.is_retryable());
            let text = error.to_string();
            for part in [part, "MessageRetentionPeriod=1209600"] {
                assert!(text.contains(part), "{text}");
            }
        }
        // What is in it is worked on.
        assert!(queue.receive(1, NONE, LONG).await.unwrap().is_empty());
        queue.depth().await.unwrap();
        mended.store(true, Ordering::Relaxed);
        send(&queue, &[message(tenant(0), 0)]).await;
        queue.check().await.unwrap();
    }
}

#[tokio::test]
async fn a_send_that_has_no_turn_in_time_is_given_up() {
    let proxy = Proxy::start(|call| match &*call.operation {
        "SendMessageBatch" => Fault::Silence,
        _ => Fault::None,
    })
    .await;
    let timeout = Duration::from_secs(1);
    let options = options(false).timeout(timeout).sends_in_flight(1);
    let queue = make(options.endpoint(&proxy.endpoint)).await;
    let began = Instant::now();
    let message = message(tenant(0), 0);
    let sends = (0..40).map(|_| queue.send(std::slice::from_ref(&message)));
    let outcomes = join_all(sends).await;
    let took = began.elapsed();
    assert!(took < timeout * 3, "{took:?}");
    let mut without_turn = 0;
    for outcome in outcomes {
        let error = outcome.unwrap().remove(0).unwrap_err();
        assert!(error.is_retryable());
        without_turn += usize::from(error.to_string().contains("not sent: too many"));
    }
    assert!(without_turn >= 20, "{without_turn}");
}

#[tokio::test]
async fn an_endpoint_with_a_user_is_refused_and_not_shown() {
    let options = options(false).endpoint("http://ann:sesame@127.0.0.1:1");
    let error = SqsQueue::open(options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        !format!("{error} {error:?}").contains("sesame"),
        "{error:?}"
    );
}
