//! A proxy before OpenSearch that makes faults.

use std::sync::{Arc, Mutex};

use opensearch::http::Method;
use opensearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue};
use opensearch::http::transport::Transport;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::cluster::url;

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Act {
    Pass,
    /// It is answered with this status, and never reaches OpenSearch.
    Answer(u16, Value),
    /// Of the writes in a `_bulk`, this one does not reach OpenSearch, and is answered with this.
    FailWrite(usize, u16, &'static str),
    /// The connection is cut at once.
    Refuse,
    /// The connection is cut when OpenSearch has answered.
    Cut,
}

/// A request, as a rule sees it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: String,
}

impl Request {
    /// The names of the documents that a `_bulk` writes.
    pub(crate) fn written(&self) -> Vec<String> {
        if !self.path.starts_with("/_bulk") {
            return Vec::new();
        }
        let heads = self.body.lines().step_by(2);
        heads
            .map(|head| {
                let head: Value = serde_json::from_str(head).unwrap();
                let act = head.as_object().unwrap().values().next().unwrap();
                act["_id"].as_str().unwrap().to_owned()
            })
            .collect()
    }
}

type Rule = Box<dyn FnMut(&Request) -> Act + Send>;

pub(crate) struct Proxy {
    pub(crate) url: String,
    rule: Arc<Mutex<Rule>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(|_| Act::Pass)));
        let shared = Arc::clone(&rule);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { url, rule, task }
    }

    /// Treats requests so from now on.
    pub(crate) fn rule(&self, rule: impl FnMut(&Request) -> Act + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    pub(crate) fn pass(&self) {
        self.rule(|_| Act::Pass);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, rule: Arc<Mutex<Rule>>) {
    let upstream = Transport::single_node(&url()).unwrap();
    let mut read = Vec::new();
    while let Some(mut request) = receive(&mut stream, &mut read).await {
        let act = (rule.lock().unwrap())(&request);
        let (status, body) = match &act {
            Act::Refuse => return,
            Act::Pass | Act::Cut => forward(&upstream, &request).await,
            Act::Answer(status, body) => (*status, body.to_string()),
            Act::FailWrite(at, status, kind) => {
                let lines = request.body.lines().enumerate();
                let kept = lines.filter(|(line, _)| line / 2 != *at);
                request.body = kept.map(|(_, line)| format!("{line}\n")).collect();
                let (all, answer) = match request.body.is_empty() {
                    true => (200, json!({"items": []}).to_string()),
                    false => forward(&upstream, &request).await,
                };
                let mut answer: Value = serde_json::from_str(&answer).unwrap();
                let failure = json!({"index": {"status": status, "error": {"type": kind}}});
                answer["items"].as_array_mut().unwrap().insert(*at, failure);
                (all, answer.to_string())
            }
        };
        if matches!(act, Act::Cut) {
            return;
        }
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nretry-after: 7\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        if stream.write_all(head.as_bytes()).await.is_err()
            || stream.write_all(body.as_bytes()).await.is_err()
        {
            return;
        }
    }
}

async fn receive(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(read[..end].to_vec()).unwrap();
    let length: usize = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap());
    while read.len() < end + length {
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8(read[end..end + length].to_vec()).unwrap();
    read.drain(..end + length);
    let mut words = head.split(' ');
    Some(Request {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        body,
    })
}

async fn forward(upstream: &Transport, request: &Request) -> (u16, String) {
    let method = match request.method.as_str() {
        "GET" => Method::Get,
        "PUT" => Method::Put,
        "POST" => Method::Post,
        "DELETE" => Method::Delete,
        other => panic!("{other} {}", request.path),
    };
    let mut headers = HeaderMap::new();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    if !request.path.starts_with("/_bulk") {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let body = (!request.body.is_empty()).then(|| request.body.clone());
    let response = upstream
        .send(method, &request.path, headers, None::<&()>, body, None)
        .await
        .unwrap();
    let status = response.status_code().as_u16();
    (status, response.text().await.unwrap())
}
