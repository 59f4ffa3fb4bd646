//! What becomes of accepted events when SQS, a worker or an event fails: each case with what was lost
//! and what is there twice. Against a real server of the protocol.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use audit_core::{
    AuditLog, Clock as _, Event, EventQueue, PageRequest, QueueDepth, Role, SystemClock, TenantId,
    TenantScope,
};
use audit_queue_sqs::{SqsOptions, SqsQueue};
use audit_server::config::Settings;
use audit_server::storage;
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::child::{Server, sized};
use crate::queue_bulk::Between;
use crate::service::{Service, event, send, token, until};
use crate::stack::{Stack, needed};

/// What passes between a server and SQS.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Passes {
    All,
    /// Connections are cut, and none is taken.
    Nothing,
    /// What removes messages gets no answer and does nothing.
    AllButAcks,
}

/// A queue of the test's own, behind a proxy.
struct Sqs {
    queue_url: String,
    endpoint: String,
    passes: watch::Sender<Passes>,
    withheld: Arc<AtomicUsize>,
}

impl Sqs {
    async fn start(fifo: bool) -> Self {
        let real = needed("AUDIT_TEST_SQS_ENDPOINT");
        let suffix = if fifo { ".fifo" } else { "" };
        let name = SystemClock.event_id();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            queue_url: format!("{real}/000000000000/faults-{name}{suffix}"),
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            passes: watch::Sender::new(Passes::All),
            withheld: Arc::default(),
        };
        let address = real.replace("http://", "");
        let (passes, withheld) = (this.passes.subscribe(), Arc::clone(&this.withheld));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (passes, withheld) = (passes.clone(), Arc::clone(&withheld));
                tokio::spawn(pass(client, address.clone(), passes, withheld));
            }
        });
        let settings = Settings::read(None, |name| {
            let [queue, endpoint] = this.settings();
            [queue, endpoint]
                .into_iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| value)
        });
        storage::make_queues(&settings.unwrap()).await.unwrap();
        this
    }

    fn settings(&self) -> [(&'static str, String); 2] {
        [
            ("AUDIT_QUEUE_URL", self.queue_url.clone()),
            ("AUDIT_SQS_ENDPOINT", self.endpoint.clone()),
        ]
    }

    /// A server on this queue.
    async fn service(&self, more: &[(&str, &str)]) -> Service {
        let own = self.settings();
        let own = own.iter().map(|(name, value)| (*name, &**value));
        let settings: Vec<_> = own.chain(more.iter().copied()).collect();
        Service::with(&settings).await
    }

    /// The queue itself, past the proxy.
    async fn queue(&self) -> SqsQueue {
        let options = SqsOptions::new(&*self.queue_url).unwrap();
        SqsQueue::open(options.region("us-east-1")).await.unwrap()
    }
}

/// Passes a connection on for as long as that is allowed.
async fn pass(
    mut client: TcpStream,
    address: String,
    mut passes: watch::Receiver<Passes>,
    withheld: Arc<AtomicUsize>,
) {
    let mode = passes.clone();
    let (mut from_client, mut to_client) = client.split();
    let relay = async {
        let mut server = TcpStream::connect(address).await?;
        let (mut from_server, mut to_server) = server.split();
        let requests = async {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let read = from_client.read(&mut buffer).await?;
                let part = &buffer[..read];
                let is_ack = part
                    .windows(28)
                    .any(|w| w == b"AmazonSQS.DeleteMessageBatch");
                if *mode.borrow() == Passes::AllButAcks && is_ack {
                    withheld.fetch_add(1, Ordering::Relaxed);
                    std::future::pending::<()>().await;
                }
                to_server.write_all(part).await?;
                if read == 0 {
                    return Ok::<_, std::io::Error>(());
                }
            }
        };
        tokio::select! {
            done = requests => done,
            done = tokio::io::copy(&mut from_server, &mut to_client) => done.map(|_| ()),
        }
    };
    tokio::select! {
        biased;
        _ = passes.wait_for(|passes| *passes == Passes::Nothing) => {}
        // Either side hung up.
        _ = relay => {}
    }
}

/// The ids of a tenant's entries in their order, without those that [`Service::tenant`] made.
async fn ids(log: &AuditLog, tenant: TenantId) -> Vec<String> {
    let log = log.tenant(TenantScope::trusted(tenant, "test"));
    let mut ids = Vec::new();
    let mut page = PageRequest::default();
    loop {
        let found = log
            .list(&audit_core::Filter::default(), &page)
            .await
            .unwrap();
        let entries = found.items.iter();
        ids.extend(
            entries
                .filter(|e| e.fields.resource_id.as_deref() != Some("first"))
                .map(|e| e.id.to_string()),
        );
        match found.next {
            Some(next) => page = page.after(next),
            None => break,
        }
    }
    ids.reverse();
    ids
}

/// Demands that what was accepted is in the log, all of it and each once, and says so.
fn account(what: &str, accepted: &[String], stored: &[String]) {
    let (accepted, distinct) = (
        accepted.iter().collect::<BTreeSet<_>>(),
        stored.iter().collect::<BTreeSet<_>>(),
    );
    let lost = accepted.difference(&distinct).count();
    let duplicated = stored.len() - distinct.len();
    println!(
        "{what}: {} accepted, {lost} lost, {duplicated} duplicated",
        accepted.len()
    );
    assert_eq!((lost, duplicated), (0, 0), "{what}");
    assert_eq!(
        stored.len(),
        accepted.len(),
        "{what}: entries that nobody was promised"
    );
}

fn with_id(id: &str, resource: &str) -> String {
    event(resource).replace('}', &format!(",\"id\":\"{id}\"}}"))
}

/// Sends an event to be appended later, and says with which status it was answered.
async fn post(service: &Service, token: &str, id: &str) -> u16 {
    let request = service.post("/api/v1/logs", token, with_id(id, "later"));
    let answer = send(request.header("prefer", "respond-async")).await;
    if !matches!(answer.status, 202 | 503) {
        panic!("{answer:?}");
    }
    answer.status
}

/// One request: when it began, when it was answered, and how.
type Request = (Instant, Instant, u16);

#[tokio::test(flavor = "multi_thread")]
async fn while_sqs_is_away_nothing_is_accepted_and_what_was_is_not_lost() {
    let sqs = Sqs::start(false).await;
    let service = Arc::new(sqs.service(&[]).await);
    let tenant = service.tenant("t").await;
    let token = token(Role::User, tenant);
    let over = Arc::new(AtomicBool::new(false));
    let progress = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let (service, token) = (Arc::clone(&service), token.clone());
            let (over, progress) = (Arc::clone(&over), Arc::clone(&progress));
            tokio::spawn(async move {
                let (mut accepted, mut requests) = (Vec::new(), Vec::<Request>::new());
                while !over.load(Ordering::Relaxed) {
                    let id = SystemClock.event_id().to_string();
                    loop {
                        let began = Instant::now();
                        let status = post(&service, &token, &id).await;
                        requests.push((began, Instant::now(), status));
                        if status == 202 {
                            break;
                        }
                    }
                    accepted.push(id);
                    progress.fetch_add(1, Ordering::Relaxed);
                }
                (accepted, requests)
            })
        })
        .collect();
    let go_on = async |n: usize| {
        let target = progress.load(Ordering::Relaxed) + n;
        until("writers go on", async || {
            progress.load(Ordering::Relaxed) >= target
        })
        .await;
    };
    go_on(100).await;
    sqs.passes.send_replace(Passes::Nothing);
    // The listener alone is left.
    until("all connections are cut", async || {
        sqs.passes.receiver_count() == 1
    })
    .await;
    let away = Instant::now();
    tokio::time::sleep(Duration::from_secs(sized(30))).await;
    // All but the queue works, and it is said what is missing.
    let ready = send(service.get("/health/ready", &token)).await.expect(200);
    assert_eq!(
        ready.json(),
        json!({"status": "degraded", "missing": ["queue"]})
    );
    let direct = SystemClock.event_id().to_string();
    let request = service.post("/api/v1/logs", &token, with_id(&direct, "now"));
    send(request).await.expect(201);
    let back = Instant::now();
    sqs.passes.send_replace(Passes::All);
    go_on(100).await;
    over.store(true, Ordering::Relaxed);
    let (mut accepted, mut refused) = (vec![direct], 0);
    for writer in writers {
        let (ids, requests) = writer.await.unwrap();
        accepted.extend(ids);
        for (began, ended, status) in requests {
            if began > away && ended < back {
                assert_eq!(status, 503, "accepted while SQS was away");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    until("all are appended", async || {
        service.head(tenant).await.size() > accepted.len() as u64
    })
    .await;
    let stored = ids(&service.storage.log, tenant).await;
    let seconds = back.duration_since(away).as_secs_f32();
    let what = format!("SQS away for {seconds:.0} s, {refused} answers of 503");
    account(&what, &accepted, &stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_delivered_twice_is_appended_once() {
    for fifo in [false, true] {
        let sqs = Sqs::start(fifo).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("audit.db");
        let store = Arc::new(SqliteStore::open(&file, SqliteOptions::new()).unwrap());
        let queue: Arc<dyn EventQueue> = Arc::new(Between {
            queue: Arc::new(sqs.queue().await),
            twice: true,
            refuse: |_| None,
        });
        let log = AuditLog::builder(store).queue(Arc::clone(&queue)).build();
        let tenant = log.create_tenant(None, "t").await.unwrap().id;
        let handle = log.tenant(TenantScope::trusted(tenant, "test"));
        let mut accepted = Vec::new();
        let workers = [log.start(), log.start()];
        for n in 0..sized(1_000) {
            let event = Event::view("doc", n.to_string());
            let ids = handle.enqueue(vec![event]).await.unwrap().unwrap();
            accepted.extend(ids.iter().map(ToString::to_string));
        }
        until("the queue is empty", async || {
            queue.depth().await.unwrap() == QueueDepth::default()
        })
        .await;
        let stored = ids(&log, tenant).await;
        let kind = if fifo { "FIFO" } else { "standard" };
        account(&format!("each message twice, {kind}"), &accepted, &stored);
        if fifo {
            assert_eq!(stored, accepted, "in their order");
        }
        for workers in workers {
            workers.shutdown(Duration::from_secs(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_is_a_dead_letter_until_its_cause_is_gone() {
    let sqs = Sqs::start(false).await;
    let service = sqs.service(&[("AUDIT_ROLES", "api")]).await;
    let (poisoned, sound) = (service.tenant("p").await, service.tenant("s").await);
    let admin = token(Role::Admin, None);
    let id = || SystemClock.event_id().to_string();
    let (bad, good) = (id(), id());
    assert_eq!(
        post(&service, &token(Role::User, poisoned), &bad).await,
        202
    );
    assert_eq!(post(&service, &token(Role::User, sound), &good).await, 202);
    let set_status = async |status: &str| {
        let request = service
            .http
            .patch(service.url(&format!("/api/v1/tenants/{poisoned}")))
            .bearer_auth(&admin)
            .header("content-type", "application/json")
            .body(json!({"status": status}).to_string());
        send(request).await.expect(200);
    };
    set_status("inactive").await;
    let workers = service.storage.log.start();
    let letters = async || {
        let answer = send(service.get("/api/v1/admin/dead-letters", &admin)).await;
        answer.expect(200).json()["data"]
            .as_array()
            .unwrap()
            .clone()
    };
    let mut found: Vec<Value> = Vec::new();
    until("it is a dead letter", async || {
        found = letters().await;
        !found.is_empty()
    })
    .await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["id"], bad);
    assert_eq!(found[0]["tenant_id"], poisoned.to_string());
    let reason = found[0]["reason"].as_str().unwrap();
    assert!(reason.contains("inactive"), "{reason}");
    until("others are appended", async || {
        service.head(sound).await.size() == 2
    })
    .await;
    set_status("active").await;
    let request = service.post(
        "/api/v1/admin/dead-letters/redrive",
        &admin,
        json!({"source": "queue", "handles": [found[0]["handle"]]}).to_string(),
    );
    assert_eq!(send(request).await.expect(200).json()["redriven"], 1);
    until("it is appended", async || {
        ids(&service.storage.log, poisoned).await.contains(&bad)
    })
    .await;
    assert!(letters().await.is_empty());
    let log = &service.storage.log;
    let (poisoned, sound) = (ids(log, poisoned).await, ids(log, sound).await);
    // A change of status is an entry, too.
    let poisoned = poisoned.into_iter().filter(|id| *id == bad);
    let stored: Vec<String> = sound.into_iter().chain(poisoned).collect();
    account("a poison message", &[bad, good], &stored);
    workers.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_between_append_and_ack_appends_nothing_twice() {
    let sqs = Sqs::start(false).await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("audit-data");
    std::fs::create_dir(&data).unwrap();
    let mut engines = vec![(
        "AUDIT_STORE_URL",
        format!("sqlite://{}/audit.db", data.display()),
    )];
    engines.extend(sqs.settings());
    let mut server = Server::start_on(folder.path(), engines).await;
    sqs.passes.send_replace(Passes::AllButAcks);
    let client = server.client();
    let mut accepted = Vec::new();
    for _ in 0..sized(200) {
        let id = SystemClock.event_id().to_string();
        let answer = client
            .post(format!("{}/api/v1/logs", server.url))
            .header("content-type", "application/json")
            .header("prefer", "respond-async")
            .body(with_id(&id, "later"));
        assert_eq!(answer.send().await.unwrap().status(), 202);
        accepted.push(id);
    }
    until("some are appended and not acknowledged", async || {
        sqs.withheld.load(Ordering::Relaxed) > 0
    })
    .await;
    sqs.passes.send_replace(Passes::All);
    server.kill_and_restart().await;
    let queue = sqs.queue().await;
    until("the queue is empty", async || {
        queue.depth().await.unwrap() == QueueDepth::default()
    })
    .await;
    let url = format!("{}/api/v1/logs/export?format=ndjson", server.url);
    let export = client.get(url).send().await.unwrap().text().await.unwrap();
    let stored: Vec<String> = export
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|entry| entry["id"].as_str().unwrap().to_owned())
        .collect();
    account("a worker killed between append and ack", &accepted, &stored);
    server.stop();
}

/// Two servers with their workers on one queue and one PostgreSQL database; each tenant's events go to
/// them in turn.
async fn by_two(fifo: bool) {
    let (sqs, stack) = (Sqs::start(fifo).await, Stack::production().await);
    let store = stack.setting("AUDIT_STORE_URL").unwrap();
    let guard = stack.setting("AUDIT_TLOG_GUARD").unwrap();
    let settings = [("AUDIT_STORE_URL", &*store), ("AUDIT_TLOG_GUARD", &*guard)];
    let servers = Arc::new([sqs.service(&settings).await, sqs.service(&settings).await]);
    let mut writers = Vec::new();
    for t in 0..4 {
        let tenant = servers[0].tenant(&format!("t{t}")).await;
        let (servers, token) = (Arc::clone(&servers), token(Role::User, tenant));
        writers.push(tokio::spawn(async move {
            let mut accepted = Vec::new();
            for n in 0..sized(500) as usize {
                let id = SystemClock.event_id().to_string();
                while post(&servers[n % 2], &token, &id).await != 202 {}
                accepted.push(id);
            }
            (tenant, accepted)
        }));
    }
    for writer in writers {
        let (tenant, accepted) = writer.await.unwrap();
        until("all are appended", async || {
            servers[0].head(tenant).await.size() > accepted.len() as u64
        })
        .await;
        let stored = ids(&servers[0].storage.log, tenant).await;
        let kind = if fifo { "FIFO" } else { "standard" };
        account(
            &format!("two servers and two workers, {kind}"),
            &accepted,
            &stored,
        );
        if fifo {
            assert_eq!(stored, accepted, "the order of the 202s");
        }
    }
    let queue = sqs.queue().await;
    until("the queue is empty", async || {
        queue.depth().await.unwrap() == QueueDepth::default()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_and_two_workers_at_once_append_each_event_once() {
    by_two(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_fifo_with_two_workers_each_tenants_entries_follow_the_order_of_its_202s() {
    by_two(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_did_not_enqueue_is_dropped_and_counted_in_the_metrics() {
    let sqs = Sqs::start(false).await;
    let service = sqs.service(&[]).await;
    let token = token(Role::Admin, None);
    let body = json!({"QueueUrl": sqs.queue_url, "MessageBody": "hello"});
    let request = service
        .http
        .post(&sqs.endpoint)
        .header("x-amz-target", "AmazonSQS.SendMessage")
        .header("content-type", "application/x-amz-json-1.0")
        .body(body.to_string());
    send(request).await.expect(200);
    until("the metric shows it", async || {
        let page = send(service.get("/metrics", &token)).await.expect(200);
        let of_ingest = |line: &&str| line.starts_with("audit_worker_dropped{worker=\"ingest\"}");
        page.text
            .lines()
            .find(of_ingest)
            .is_some_and(|line| line.ends_with(" 1"))
    })
    .await;
}
