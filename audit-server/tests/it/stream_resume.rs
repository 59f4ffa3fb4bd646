//! Subscribers that are cut, on a server that is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;

use crate::child::{Server, sized};

const SUBSCRIBERS: u64 = 20;
const WRITERS: u64 = 16;
const KILLS: u64 = 5;

/// The events of a stream of server-sent events, as (id, data) pairs, for as long as it lasts.
struct Events {
    bytes:
        std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    buffer: Vec<u8>,
}

impl Events {
    async fn open(client: &reqwest::Client, url: &str, last: Option<u64>) -> Option<Self> {
        let mut request = client.get(url).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last.to_string());
        }
        let answer = request.send().await.ok()?;
        answer.status().is_success().then(|| Self {
            bytes: Box::pin(answer.bytes_stream()),
            buffer: Vec::new(),
        })
    }

    async fn next(&mut self) -> Option<(Option<u64>, Value)> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let text = String::from_utf8(block).unwrap();
                let field = |name: &str| {
                    text.lines()
                        .find_map(|l| l.strip_prefix(name))
                        .map(|value| value.trim_start().to_owned())
                };
                if let Some(data) = field("data:") {
                    let id = field("id:").and_then(|id| id.parse().ok());
                    return Some((id, serde_json::from_str(&data).unwrap()));
                }
                continue;
            }
            self.buffer.extend(self.bytes.next().await?.ok()?);
        }
    }
}

/// 20 subscribers, cut at random, resume by `Last-Event-ID` while 16 writers write and the server is
/// killed: each sees every seq once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_subscriber_sees_every_seq_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path()).await;
    let over = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (client, url) = (server.client(), format!("{}/api/v1/logs", server.url));
        let (over, written) = (Arc::clone(&over), Arc::clone(&written));
        writers.push(tokio::spawn(async move {
            let mut n = 0;
            while !over.load(Ordering::Relaxed) {
                let body = format!(
                    r#"{{"id":"0190a000-0000-7000-8{writer:03x}-{n:012x}","action_type":"VIEW","resource_type":"doc","resource_id":"d-{n}"}}"#
                );
                let answer = client
                    .post(&url)
                    .header("content-type", "application/json")
                    .body(body)
                    .send()
                    .await;
                if answer.is_ok_and(|a| a.status().is_success()) {
                    written.fetch_add(1, Ordering::Relaxed);
                    n += 1;
                } else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }));
    }
    // Unknown until the writers have stopped.
    let end = Arc::new(AtomicU64::new(u64::MAX));
    let mut subscribers = Vec::new();
    for subscriber in 0..SUBSCRIBERS {
        let client = server.client();
        let url = format!("{}/api/v1/logs/stream?from_seq=0", server.url);
        let end = Arc::clone(&end);
        subscribers.push(tokio::spawn(async move {
            let mut random = subscriber.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let (mut next, mut cuts) = (0_u64, 0_u64);
            let deadline = Instant::now() + Duration::from_secs(300);
            while next < end.load(Ordering::Relaxed) {
                assert!(
                    Instant::now() < deadline,
                    "subscriber {subscriber} stands at {next}"
                );
                let last = next.checked_sub(1);
                let Some(mut events) = Events::open(&client, &url, last).await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let mut left = 1 + (random >> 33) % 300;
                while left > 0 && next < end.load(Ordering::Relaxed) {
                    let pause = Duration::from_secs(2);
                    let Ok(Some((id, data))) = tokio::time::timeout(pause, events.next()).await
                    else {
                        break;
                    };
                    if data["type"] != "entry" {
                        continue;
                    }
                    assert_eq!(data["seq"].as_u64(), Some(next), "subscriber {subscriber}");
                    assert_eq!(id, Some(next), "the event's id is its seq");
                    next += 1;
                    left -= 1;
                }
                cuts += 1;
            }
            cuts
        }));
    }
    let step = sized(1_000);
    for kill in 1..=KILLS {
        let deadline = Instant::now() + Duration::from_secs(60);
        while written.load(Ordering::Relaxed) < kill * step {
            assert!(Instant::now() < deadline, "the writers stand still");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        server.kill_and_restart().await;
    }
    over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let export = format!("{}/api/v1/logs/export?format=ndjson", server.url);
    let text = server
        .client()
        .get(export)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let size = text.lines().count() as u64;
    end.store(size, Ordering::Relaxed);
    let mut cuts = 0;
    for subscriber in subscribers {
        cuts += subscriber.await.unwrap();
    }
    println!("{size} entries, {SUBSCRIBERS} subscribers, {cuts} connections, {KILLS} kills");
    server.stop();
}
