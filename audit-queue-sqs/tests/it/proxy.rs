//! A proxy before the server that makes it misbehave.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::fixture::endpoint;

/// What becomes of a call.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It is passed on.
    None,
    /// It is passed on twice.
    Twice,
    /// It is passed on, and the connection is cut instead of an answer.
    AnswerLost,
    /// The entries at these places are not passed on, and fail with this code; whether by the
    /// sender's fault.
    Items(Vec<usize>, &'static str, bool),
    /// It is passed on, and its answer says this of the queue.
    Attributes(Vec<(&'static str, &'static str)>),
    /// It isn't passed on, and fails with this status and code.
    Whole(u16, &'static str),
    /// It is never answered.
    Silence,
}

/// A call to the server.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) operation: String,
    pub(crate) body: Value,
    /// How many of this operation came before.
    pub(crate) nth: usize,
}

impl Call {
    /// Whether it is about the dead-letter queue.
    pub(crate) fn is_of_dead_letters(&self) -> bool {
        let url = self.body["QueueUrl"].as_str().unwrap_or_default();
        url.trim_end_matches(".fifo").ends_with("-dead")
    }

    /// The bytes of each entry as SQS counts them.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        let entries = self.body["Entries"].as_array().into_iter().flatten();
        let size = |entry: &Value| {
            let attributes = entry["MessageAttributes"].as_object().into_iter().flatten();
            let attribute = |(name, value): (&String, &Value)| {
                let text = |member: &str| value[member].as_str().map_or(0, str::len);
                name.len() + text("DataType") + text("StringValue")
            };
            entry["MessageBody"].as_str().map_or(0, str::len)
                + attributes.map(attribute).sum::<usize>()
        };
        entries.map(size).collect()
    }

    pub(crate) fn entries(&self) -> usize {
        self.body["Entries"].as_array().map_or(0, Vec::len)
    }
}

type Rule = dyn Fn(&Call) -> Fault + Send + Sync;

pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    calls: Arc<Mutex<Vec<String>>>,
    listening: AbortHandle,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Proxy {
    pub(crate) async fn start(rule: impl Fn(&Call) -> Fault + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let rule: Arc<Rule> = Arc::new(rule);
        let calls = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&calls);
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&rule), Arc::clone(&log)));
            }
        });
        Self {
            endpoint,
            calls,
            listening: listening.abort_handle(),
        }
    }

    /// How many calls of this operation came.
    pub(crate) fn calls(&self, operation: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| *call == operation).count()
    }
}

async fn serve(client: TcpStream, rule: Arc<Rule>, log: Arc<Mutex<Vec<String>>>) {
    let mut client = BufReader::new(client);
    // An error here is the client's hanging up.
    while let Ok(Some((operation, body))) = request(&mut client).await {
        let nth = {
            let mut calls = log.lock().unwrap();
            calls.push(operation.clone());
            calls.iter().filter(|call| **call == operation).count() - 1
        };
        let call = Call {
            operation,
            body: serde_json::from_slice(&body).unwrap(),
            nth,
        };
        let (status, answer, code) = match rule(&call) {
            Fault::None => forward(&call.operation, &call.body).await,
            Fault::Twice => {
                forward(&call.operation, &call.body).await;
                forward(&call.operation, &call.body).await
            }
            Fault::AnswerLost => {
                forward(&call.operation, &call.body).await;
                return;
            }
            Fault::Attributes(attributes) => {
                let (status, mut answer, code) = forward(&call.operation, &call.body).await;
                for (name, value) in attributes {
                    answer["Attributes"][name] = json!(value);
                }
                (status, answer, code)
            }
            Fault::Items(places, code, sender) => fail_items(&call, &places, code, sender).await,
            Fault::Whole(status, code) => {
                (status, json!({"__type": code, "message": "so"}), Some(code))
            }
            Fault::Silence => std::future::pending().await,
        };
        let text = answer.to_string();
        // AWS tells the code of its older protocol in this header.
        let code = code.map_or(String::new(), |code| {
            format!("x-amzn-query-error: {code};Sender\r\n")
        });
        let head = format!(
            "HTTP/1.1 {status} so\r\ncontent-type: application/x-amz-json-1.0\r\n{code}content-length: {}\r\n\r\n",
            text.len()
        );
        if client.write_all((head + &text).as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn fail_items(
    call: &Call,
    places: &[usize],
    code: &str,
    sender: bool,
) -> (u16, Value, Option<&'static str>) {
    let mut body = call.body.clone();
    let entries = body["Entries"].as_array_mut().unwrap();
    let mut failed = Vec::new();
    let mut passed = Vec::new();
    for (place, entry) in std::mem::take(entries).into_iter().enumerate() {
        if places.contains(&place) {
            failed.push(json!({
                "Id": entry["Id"], "Code": code, "SenderFault": sender, "Message": "so"
            }));
        } else {
            passed.push(entry);
        }
    }
    *entries = passed;
    let (status, mut answer, code) = match entries.is_empty() {
        true => (200, json!({"Successful": []}), None),
        false => forward(&call.operation, &body).await,
    };
    answer["Failed"] = Value::Array(failed);
    (status, answer, code)
}

/// The operation and the body of the next request.
async fn request(client: &mut BufReader<TcpStream>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let (mut operation, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if client.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "x-amz-target" => operation = value.rsplit('.').next().unwrap().to_owned(),
                "content-length" => length = value.parse().unwrap(),
                _ => {}
            }
        }
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body).await?;
    Ok(Some((operation, body)))
}

/// The server's own answer: its status and body.
async fn forward(operation: &str, body: &Value) -> (u16, Value, Option<&'static str>) {
    let address = endpoint().replace("http://", "");
    let mut server = TcpStream::connect(&address).await.unwrap();
    let text = body.to_string();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nX-Amz-Target: AmazonSQS.{operation}\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    server.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    server.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        status,
        serde_json::from_str(body).unwrap_or(json!({})),
        None,
    )
}
