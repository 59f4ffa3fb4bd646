//! What a call does to each of its messages when SQS fails for some of them.

use audit_core::{ErrorKind, EventQueue as _, Message, QueueDepth, Result};

use crate::fixture::{
    BOTH, LONG, NONE, all_ok, handles, ids, make, message, new_queue, number, options, receive,
    send, tenant,
};
use crate::proxy::{Fault, Proxy};

fn messages(n: usize) -> Vec<Message> {
    (0..n).map(|n| message(tenant(0), n)).collect()
}

/// The places that failed, and how.
fn failures(outcomes: &[Result<()>]) -> Vec<(usize, ErrorKind)> {
    let failed =
        |(place, outcome): (usize, &Result<()>)| Some((place, outcome.as_ref().err()?.kind()));
    outcomes.iter().enumerate().filter_map(failed).collect()
}

#[tokio::test]
async fn a_send_is_answered_item_by_item() {
    let cases = [
        ("InternalError", false, ErrorKind::Unavailable),
        ("RequestThrottled", true, ErrorKind::Unavailable),
        ("InvalidMessageContents", true, ErrorKind::Invalid),
    ];
    for (code, sender, kind) in cases {
        for fifo in BOTH {
            let proxy = Proxy::start(move |call| match (&*call.operation, call.nth) {
                ("SendMessageBatch", 0) => Fault::Items(vec![2, 5], code, sender),
                _ => Fault::None,
            })
            .await;
            let queue = make(options(fifo).sends_in_flight(1).endpoint(&proxy.endpoint)).await;
            let sent = messages(7);
            let outcomes = queue.send(&sent).await.unwrap();
            assert_eq!(failures(&outcomes), [(2, kind), (5, kind)], "{code}");
            for place in [2, 5] {
                let error = outcomes[place].as_ref().unwrap_err();
                assert_eq!(error.event_id(), Some(sent[place].id));
                assert!(error.to_string().contains(code), "{error}");
            }
            let mut received: Vec<usize> = receive(&queue, 5, LONG)
                .await
                .iter()
                .map(|d| number(&d.message))
                .collect();
            received.sort_unstable();
            assert_eq!(received, [0, 1, 3, 4, 6]);
        }
    }
}

#[tokio::test]
async fn a_message_that_the_server_itself_refuses_fails_alone() {
    for fifo in BOTH {
        let (_, queue) = new_queue(fifo).await;
        let mut sent = messages(12);
        sent[3].body.push('\u{1}');
        sent[4].body.clear();
        sent[5].body.push('é');
        let outcomes = queue.send(&sent).await.unwrap();
        let kind = ErrorKind::Invalid;
        assert_eq!(failures(&outcomes), [(3, kind), (4, kind), (5, kind)]);
        let received = receive(&queue, 9, LONG).await;
        assert!(ids(&received).iter().all(|id| {
            let place = sent.iter().position(|m| m.id == *id).unwrap();
            !(3..=5).contains(&place)
        }));
    }
}

#[tokio::test]
async fn a_call_that_is_refused_for_the_sake_of_one_message_is_sent_in_parts() {
    let proxy = Proxy::start(|call| match &*call.operation {
        "SendMessageBatch" if call.body.to_string().contains("poison") => {
            Fault::Whole(400, "InvalidMessageContents")
        }
        "SendMessageBatch" if call.entries() > 4 => Fault::Whole(400, "BatchRequestTooLong"),
        _ => Fault::None,
    })
    .await;
    for fifo in BOTH {
        let queue = make(options(fifo).endpoint(&proxy.endpoint)).await;
        let mut sent = messages(10);
        sent[6].body = "{\"poison\":6}".into();
        let outcomes = queue.send(&sent).await.unwrap();
        assert_eq!(failures(&outcomes), [(6, ErrorKind::Invalid)]);
        let mut received: Vec<usize> = receive(&queue, 9, LONG)
            .await
            .iter()
            .map(|d| number(&d.message))
            .collect();
        if !fifo {
            received.sort_unstable();
        }
        assert_eq!(received, [0, 1, 2, 3, 4, 5, 7, 8, 9]);
    }
}

#[tokio::test]
async fn acknowledging_is_answered_item_by_item_and_what_failed_comes_again() {
    let proxy = Proxy::start(|call| match (&*call.operation, call.nth) {
        ("DeleteMessageBatch", 0) => Fault::Items(vec![1], "InternalError", false),
        ("ChangeMessageVisibilityBatch", 0) => Fault::Items(vec![0], "InternalError", false),
        _ => Fault::None,
    })
    .await;
    let queue = make(options(false).endpoint(&proxy.endpoint)).await;
    send(&queue, &messages(3)).await;
    let received = receive(&queue, 3, LONG).await;
    let outcomes = queue.ack(&handles(&received)).await.unwrap();
    assert_eq!(failures(&outcomes), [(1, ErrorKind::Unavailable)]);
    let left = handles(&received[1..2]);
    let outcomes = queue.retry(&left, NONE).await.unwrap();
    assert_eq!(failures(&outcomes), [(0, ErrorKind::Unavailable)]);
    all_ok(queue.retry(&left, NONE).await);
    let again = receive(&queue, 1, LONG).await;
    assert_eq!(ids(&again), ids(&received[1..2]));
    all_ok(queue.ack(&handles(&again)).await);
    assert_eq!(queue.depth().await.unwrap(), QueueDepth::default());
}

#[tokio::test]
async fn burying_is_answered_item_by_item_and_what_failed_stays_in_the_queue() {
    for fifo in BOTH {
        let proxy = Proxy::start(|call| match (&*call.operation, call.nth) {
            // The second call is the one to the dead-letter queue.
            ("SendMessageBatch", 1) => Fault::Items(vec![1], "InternalError", false),
            _ => Fault::None,
        })
        .await;
        let queue = make(options(fifo).endpoint(&proxy.endpoint)).await;
        send(&queue, &messages(3)).await;
        let received = receive(&queue, 3, LONG).await;
        let letters: Vec<_> = handles(&received)
            .into_iter()
            .map(|handle| (handle, "bad".to_owned()))
            .collect();
        let outcomes = queue.bury(&letters).await.unwrap();
        assert_eq!(failures(&outcomes), [(1, ErrorKind::Unavailable)]);
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.waiting, depth.leased, depth.dead), (0, 1, 2));
        all_ok(queue.bury(&letters[1..2]).await);
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.waiting, depth.leased, depth.dead), (0, 0, 3));
    }
}
