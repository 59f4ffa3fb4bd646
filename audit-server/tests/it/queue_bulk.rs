//! Bulks with `Prefer: respond-async` on a queue that takes only some of their events; and the queue
//! that other tests put before a real one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use audit_core::{
    DeadLetter, Delivery, Error, ErrorKind, EventQueue, Message, QueueDepth, Redrive, Result, Role,
    Sieve, TenantId,
};
use serde_json::Value;

use crate::service::{Answer, Service, send, token};

/// A queue before another one: it delivers what it is told twice, and refuses some.
#[derive(Debug)]
pub(crate) struct Between {
    pub(crate) queue: Arc<dyn EventQueue>,
    pub(crate) twice: bool,
    pub(crate) refuse: fn(&Message) -> Option<Error>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl EventQueue for Between {
    fn is_durable(&self) -> bool {
        self.queue.is_durable()
    }

    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        let taken: Vec<Message> = messages
            .iter()
            .filter(|message| (self.refuse)(message).is_none())
            .cloned()
            .collect();
        if self.twice {
            for outcome in self.queue.send(&taken).await? {
                outcome?;
            }
        }
        let mut outcomes = self.queue.send(&taken).await?.into_iter();
        let outcome = |message| match (self.refuse)(message) {
            Some(error) => Err(error),
            None => outcomes.next().unwrap(),
        };
        Ok(messages.iter().map(outcome).collect())
    }

    async fn receive(&self, max: usize, wait: Duration, lease: Duration) -> Result<Vec<Delivery>> {
        let received = self.queue.receive(max, wait, lease).await?;
        let times = if self.twice { 2 } else { 1 };
        let each = |delivery| std::iter::repeat_n(delivery, times);
        Ok(received.into_iter().flat_map(each).collect())
    }

    async fn ack(&self, handles: &[String]) -> Result<Vec<Result<()>>> {
        self.queue.ack(handles).await
    }

    async fn retry(&self, handles: &[String], delay: Duration) -> Result<Vec<Result<()>>> {
        self.queue.retry(handles, delay).await
    }

    async fn extend(&self, handles: &[String], lease: Duration) -> Result<Vec<Result<()>>> {
        self.queue.extend(handles, lease).await
    }

    async fn bury(&self, letters: &[(String, String)]) -> Result<Vec<Result<()>>> {
        self.queue.bury(letters).await
    }

    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        self.queue.dead_letters(limit).await
    }

    async fn redrive(&self, letters: &Redrive<String>) -> Result<u64> {
        self.queue.redrive(letters).await
    }

    async fn sift(&self, sieve: Arc<dyn Sieve<DeadLetter>>) -> Result<u64> {
        self.queue.sift(sieve).await
    }

    fn dropped(&self) -> u64 {
        self.queue.dropped()
    }

    async fn depth(&self) -> Result<QueueDepth> {
        self.queue.depth().await
    }
}

/// The id of an event that the queue can't take now.
const UNLUCKY: &str = "0190a000-0000-7000-8000-0000000000dd";

fn refuse(message: &Message) -> Option<Error> {
    if message.id.to_string() == UNLUCKY {
        return Some(Error::new(ErrorKind::Unavailable, "away for this one"));
    }
    (message.body.len() > 4_000).then(|| Error::field("body", "larger than the queue takes"))
}

fn plain(name: &str) -> String {
    format!(r#"{{"action_type":"VIEW","resource_type":"doc","resource_id":"{name}"}}"#)
}

fn large(name: &str) -> String {
    let state = "x".repeat(4_000);
    plain(name).replace('}', &format!(",\"after_state\":\"{state}\"}}"))
}

fn unlucky() -> String {
    plain("unlucky").replace('}', &format!(",\"id\":\"{UNLUCKY}\"}}"))
}

async fn setup() -> (Service, TenantId, String) {
    let service = Service::on_queue(|queue| {
        Arc::new(Between {
            queue,
            twice: false,
            refuse,
        })
    })
    .await;
    let tenant = service.tenant("t").await;
    let token = token(Role::User, tenant);
    (service, tenant, token)
}

async fn bulk(service: &Service, token: &str, items: &[String], prefer: &str) -> Answer {
    let body = format!("[{}]", items.join(","));
    let request = service.post("/api/v1/logs/bulk", token, body);
    send(request.header("prefer", prefer)).await
}

fn statuses(answer: &Answer) -> Vec<Value> {
    let json = answer.json();
    let results = json["results"].as_array().unwrap();
    results.iter().map(|r| r["status"].clone()).collect()
}

/// Waits until the log has so many entries, and no more.
async fn grows_to(service: &Service, tenant: TenantId, size: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while service.head(tenant).await.size() < size {
        assert!(Instant::now() < deadline, "the log has not {size} entries");
        tokio::task::yield_now().await;
    }
    assert_eq!(service.head(tenant).await.size(), size);
}

#[tokio::test]
async fn what_the_queue_has_no_room_for_is_recorded_at_once() {
    let (service, tenant, token) = setup().await;
    let request = service.post("/api/v1/logs", &token, large("one"));
    let one = send(request.header("prefer", "respond-async")).await;
    let one = one.expect(201);
    assert_eq!(one.header("preference-applied"), "");
    for prefer in ["respond-async", "respond-async, handling=lenient"] {
        let before = service.head(tenant).await.size();
        let items = [plain("a"), large("b"), plain("c")];
        let answer = bulk(&service, &token, &items, prefer).await.expect(202);
        assert_eq!(statuses(&answer), [202, 201, 202], "{prefer}");
        assert_eq!(answer.header("preference-applied"), prefer);
        grows_to(&service, tenant, before + 3).await;
    }
    let items = [large("d"), large("e")];
    let answer = bulk(&service, &token, &items, "respond-async").await;
    assert_eq!(statuses(&answer.expect(201)), [201, 201]);
}

#[tokio::test]
async fn a_bulk_of_which_the_queue_took_some_says_which_and_by_what_ids_to_send_the_others() {
    let (service, tenant, token) = setup().await;
    let items = [plain("a"), unlucky(), large("c"), plain("d")];
    for (prefer, status) in [
        ("respond-async", 207),
        ("respond-async, handling=lenient", 202),
    ] {
        let before = service.head(tenant).await.size();
        let answer = bulk(&service, &token, &items, prefer).await.expect(status);
        assert_eq!(statuses(&answer), [202, 503, 201, 202]);
        assert_eq!(answer.header("preference-applied"), prefer);
        let results = answer.json();
        assert_eq!(results["results"][1]["error"]["id"], UNLUCKY);
        assert!(results["results"][0]["id"].is_string());
        grows_to(&service, tenant, before + 3).await;
    }
    let before = service.head(tenant).await.size();
    send(service.post("/api/v1/logs", &token, unlucky()))
        .await
        .expect(201);
    grows_to(&service, tenant, before + 1).await;
}

#[tokio::test]
async fn a_bulk_that_is_refused_or_that_the_queue_has_none_of_leaves_nothing() {
    let (service, tenant, token) = setup().await;
    let before = service.head(tenant).await.size();
    let bad = r#"{"action_type":"VIEW","resource_type":"d"}"#.to_owned();
    let items = [plain("a"), bad, plain("c")];
    let answer = bulk(&service, &token, &items, "respond-async").await;
    answer.problem(422, "#/1/resource_id");
    for prefer in ["respond-async", "respond-async, handling=lenient"] {
        let answer = bulk(&service, &token, &[unlucky(), large("x")], prefer).await;
        assert_eq!(answer.expect(503).json()["id"], UNLUCKY);
    }
    let depth = service.storage.log.queue().unwrap().depth().await.unwrap();
    assert_eq!(depth, QueueDepth::default());
    assert_eq!(service.head(tenant).await.size(), before);
}
