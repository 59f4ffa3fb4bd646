//! Dead letters, and the queue that keeps them.

use std::sync::Arc;
use std::time::Duration;

use audit_core::{EventQueue as _, Message, QueueDepth, Redrive};
use audit_queue_sqs::SqsQueue;
use futures_util::future::join_all;

use aws_sdk_sqs::types::MessageAttributeValue;

use crate::fixture::{
    BOTH, LONG, NONE, all_ok, handles, make, message, new_queue, new_url, options, options_of, raw,
    receive, send, tenant, until,
};
use crate::proxy::{Fault, Proxy};

#[tokio::test]
async fn a_message_that_is_never_settled_becomes_a_dead_letter_and_can_be_sent_again() {
    for fifo in BOTH {
        let queue = make(options(fifo).max_receives(3)).await;
        let poison = message(tenant(0), 0);
        send(&queue, std::slice::from_ref(&poison)).await;
        for attempt in 1..=3 {
            let received = receive(&queue, 1, LONG).await;
            assert_eq!(received[0].attempts, attempt);
            all_ok(queue.retry(&handles(&received), NONE).await);
        }
        until("it is a dead letter", async || {
            let received = queue.receive(1, NONE, LONG).await.unwrap();
            assert!(received.is_empty(), "{received:?}");
            queue.depth().await.unwrap().dead == 1
        })
        .await;
        let dead = queue.dead_letters(10).await.unwrap();
        assert_eq!(dead[0].message, poison);
        assert!(dead[0].reason.contains("delivered too often"), "{dead:?}");
        assert_eq!(queue.redrive(&Redrive::All).await.unwrap(), 1);
        let again = receive(&queue, 1, LONG).await;
        assert_eq!(again[0].message, poison);
        all_ok(queue.ack(&handles(&again)).await);
        assert_eq!(queue.depth().await.unwrap(), QueueDepth::default());
    }
}

#[tokio::test]
async fn many_dead_letters_of_one_tenant_are_listed_and_redriven() {
    for fifo in BOTH {
        let (_, queue) = new_queue(fifo).await;
        let sent: Vec<Message> = (0..25).map(|n| message(tenant(0), n)).collect();
        send(&queue, &sent).await;
        let mut buried = 0;
        while buried < sent.len() {
            let received = receive(&queue, 1, LONG).await;
            let letters: Vec<_> = handles(&received)
                .into_iter()
                .map(|handle| (handle, "bad".to_owned()))
                .collect();
            buried += letters.len();
            all_ok(queue.bury(&letters).await);
        }
        // Looking at them changes nothing, however often.
        let dead = queue.dead_letters(100).await.unwrap();
        assert_eq!(dead.len(), 25);
        assert_eq!(queue.dead_letters(100).await.unwrap(), dead);
        if fifo {
            let messages: Vec<_> = dead.iter().map(|letter| letter.message.clone()).collect();
            assert_eq!(messages, sent);
        }
        let named = Redrive::Only(dead[5..20].iter().map(|l| l.handle.clone()).collect());
        assert_eq!(queue.redrive(&named).await.unwrap(), 15);
        assert_eq!(queue.redrive(&named).await.unwrap(), 0);
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.waiting, depth.leased, depth.dead), (15, 0, 10));
    }
}

#[tokio::test]
async fn a_redriven_message_can_die_again() {
    for fifo in BOTH {
        let (_, queue) = new_queue(fifo).await;
        let sent = message(tenant(0), 0);
        send(&queue, std::slice::from_ref(&sent)).await;
        for round in 0..3 {
            let received = receive(&queue, 1, LONG).await;
            assert_eq!(received[0].message, sent, "round {round}");
            let letter = (received[0].handle.clone(), format!("round {round}"));
            all_ok(queue.bury(&[letter]).await);
            let dead = queue.dead_letters(10).await.unwrap();
            assert_eq!(dead.len(), 1);
            assert_eq!(dead[0].reason, format!("round {round}"));
            assert_eq!(queue.redrive(&Redrive::All).await.unwrap(), 1);
        }
        assert_eq!(receive(&queue, 1, LONG).await[0].message, sent);
    }
}

#[tokio::test]
async fn queues_are_made_by_several_at_once_and_left_alone_afterwards() {
    for fifo in BOTH {
        let options = options(fifo).max_receives(7);
        let queues: Vec<_> = join_all((0..4).map(|_| SqsQueue::open(options.clone())))
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        for made in join_all(queues.iter().map(SqsQueue::create)).await {
            made.unwrap();
        }
        let queue = Arc::new(SqsQueue::open(options.max_receives(1)).await.unwrap());
        queue.create().await.unwrap();
        // Seven deliveries as its maker said, and not one.
        send(&queue, &[message(tenant(0), 0)]).await;
        for _ in 0..3 {
            let received = receive(&queue, 1, Duration::from_secs(60)).await;
            all_ok(queue.retry(&handles(&received), NONE).await);
        }
        assert_eq!(receive(&queue, 1, LONG).await[0].attempts, 4);
    }
}

#[tokio::test]
async fn a_message_as_large_as_the_queue_takes_becomes_a_dead_letter_and_is_redriven() {
    const MOST: usize = 2_048;
    let proxy = Proxy::start(|call| match &*call.operation {
        "GetQueueAttributes" => Fault::Attributes(vec![("MaximumMessageSize", "2048")]),
        "SendMessageBatch" if call.sizes().iter().any(|size| *size > MOST) => {
            Fault::Whole(400, "InvalidParameterValue")
        }
        _ => Fault::None,
    })
    .await;
    let url = new_url(false);
    let queue = make(options_of(&url).endpoint(&proxy.endpoint)).await;
    // As large as this queue sends, and as large as SQS takes from anybody.
    let mut ours = message(tenant(0), 0);
    let mut theirs = message(tenant(0), 1);
    let attributes = [
        ("tenant", theirs.tenant.to_string()),
        ("kind", "ingest".to_owned()),
        ("id", theirs.id.to_string()),
    ];
    let bytes = |(name, value): &(&str, String)| name.len() + "String".len() + value.len();
    let overhead: usize = attributes.iter().map(bytes).sum();
    theirs.body = "x".repeat(MOST - overhead);
    let mut sqs = raw()
        .await
        .send_message()
        .queue_url(&url)
        .message_body(&theirs.body);
    for (name, value) in attributes {
        let value = MessageAttributeValue::builder()
            .data_type("String")
            .string_value(value);
        sqs = sqs.message_attributes(name, value.build().unwrap());
    }
    sqs.send().await.unwrap();
    ours.body = "x".repeat(MOST - overhead);
    let refused = queue.send(std::slice::from_ref(&ours)).await.unwrap();
    assert!(refused[0].is_err());
    ours.body.truncate(MOST - overhead - 256);
    send(&queue, std::slice::from_ref(&ours)).await;
    let received = receive(&queue, 2, LONG).await;
    let letters: Vec<_> = handles(&received)
        .into_iter()
        .map(|handle| (handle, "too bad, ".repeat(200)))
        .collect();
    all_ok(queue.bury(&letters).await);
    let dead = queue.dead_letters(10).await.unwrap();
    let letter = |of: &Message| dead.iter().find(|letter| letter.message == *of).unwrap();
    assert!(letter(&ours).reason.starts_with("too bad, too bad"));
    letter(&theirs);
    assert_eq!(queue.redrive(&Redrive::All).await.unwrap(), 2);
    let again = receive(&queue, 2, LONG).await;
    all_ok(queue.ack(&handles(&again)).await);
    assert_eq!(queue.depth().await.unwrap(), QueueDepth::default());
}
