//! `GET /logs/stream` over a WebSocket or as server-sent events, and `POST /logs/stream/ticket`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_core::{
    Delivered, Entry, Error, ErrorKind, Filter, Permission, Principal, SecretHash,
    SubscribeRequest, Subscription, TenantId, TenantScope, Ticket, Timestamp,
};
use futures_util::{SinkExt as _, StreamExt as _};
use poem::http::HeaderValue;
use poem::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, UPGRADE};
use poem::web::websocket::{Message, WebSocket, WebSocketConfig, WebSocketStream};
use poem::{Body, FromRequest as _, IntoResponse, Request, Response};
use poem_openapi::registry::{
    MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
};
use poem_openapi::{ApiResponse, OpenApi};
use tokio::sync::mpsc;

use crate::api::filter::MAX_SEQ;
use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::auth::{Caller, ticket};
use crate::problem::{Problem, ProblemKind, Reading, Refused, Streaming};
use crate::query::{Parameter, Parameters, Params, Reader};

/// Following a log.
pub(crate) struct Streams(pub(crate) Arc<App>);

/// Frames that wait for a subscriber to server-sent events. Each is one entry, so memory is bounded;
/// a subscriber that leaves them there for the send timeout is too slow.
const FRAMES: usize = 16;

/// How often a stream looks whether its API key was revoked, or its tenant closed to it.
const CHECK: Duration = Duration::from_secs(1);

/// Which entries a stream shows, and from where on.
#[derive(Debug)]
pub(crate) struct Asked(Filter);

impl Parameters for Asked {
    fn list() -> Vec<Parameter> {
        let mut list = Filter::list();
        list.push(Parameter::text(
            "ticket",
            "A one-use ticket instead of the header Authorization, for browsers.",
        ));
        list
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        Self(Filter::read(reader))
    }
}

/// An open stream.
pub(crate) struct StreamAnswer(Response);

impl IntoResponse for StreamAnswer {
    fn into_response(self) -> Response {
        self.0
    }
}

impl ApiResponse for StreamAnswer {
    fn meta() -> MetaResponses {
        let frames = MetaSchema {
            description: Some(
                "Frames, each a JSON object with `type` and `seq`: `entry` has the entry in \
                 `entry`; `heartbeat` says up to which position was looked at; `pruned` has the \
                 first position that is left in `below`; `closing` has `code` and `reason`. \
                 The `id` of an event is the last position.",
            ),
            ..MetaSchema::new("string")
        };
        MetaResponses {
            responses: vec![
                MetaResponse {
                    description: "A WebSocket with the same frames as text messages. Close codes: \
                                  1001 the server stops, 1011 it failed, 4401 the credential has \
                                  expired or was revoked, 4403 the tenant is suspended, 4408 the \
                                  subscriber is too slow.",
                    status: Some(101),
                    status_range: None,
                    content: Vec::new(),
                    headers: Vec::new(),
                },
                MetaResponse {
                    description: "Server-sent events.",
                    status: Some(200),
                    status_range: None,
                    content: vec![MetaMediaType {
                        content_type: "text/event-stream",
                        schema: MetaSchemaRef::Inline(Box::new(frames)),
                    }],
                    headers: Vec::new(),
                },
            ],
        }
    }

    fn register(_: &mut Registry) {}
}

#[derive(ApiResponse)]
pub(crate) enum TicketAnswer {
    /// A ticket that works once, for a minute.
    #[oai(status = 201)]
    Ticket(JsonBody<schema::StreamTicket>),
}

#[OpenApi(prefix_path = "/api/v1")]
impl Streams {
    /// Follow the log
    ///
    /// Needs `stream`. A WebSocket when the request asks for an upgrade, else server-sent events.
    /// Starts at `from_seq`, else with what is recorded from now on; `Last-Event-ID` beats it and
    /// starts behind that position.
    #[oai(
        path = "/logs/stream",
        method = "get",
        operation_id = "stream",
        tag = "Tag::Streams",
        request_header(
            name = "Last-Event-ID",
            ty = "Option<u64>",
            description = "The last position that was seen."
        )
    )]
    async fn stream(
        &self,
        request: &Request,
        caller: Caller,
        asked: Params<Asked>,
    ) -> Result<StreamAnswer, Refused<Streaming>> {
        let mut filter = asked.0.0;
        let websocket = request.headers().contains_key(UPGRADE);
        let mut from = filter.from_seq.take();
        if let Some(last) = last_event_id(request)? {
            from = Some(last + 1);
        }
        let log = self.0.gate.enter(&caller, Permission::Stream, &[]).await?;
        if !websocket && !accepts_events(request) {
            return Err(Problem::new(
                ProblemKind::NotAcceptable,
                "a stream is text/event-stream or a WebSocket",
            )
            .into());
        }
        let from = match from {
            Some(seq) => seq,
            // Now is a position too: a client that is cut off before it sees anything resumes there.
            None => {
                let tenant = log.scope().tenant();
                let reader = TenantScope::trusted(tenant, "stream").only(Permission::Read);
                self.0.log().tenant(reader).head().await?.size()
            }
        };
        let asked = SubscribeRequest::new()
            .filter(filter)
            .heartbeat(self.0.heartbeat)
            .from(from);
        // Upgrading comes before subscribing: a request that can't be upgraded is refused.
        let socket = if websocket {
            let socket = WebSocket::from_request_without_body(request).await;
            Some(socket.map_err(|e| Problem::new(ProblemKind::Malformed, e.to_string()))?)
        } else {
            None
        };
        let subscription = log.subscribe(asked).await?;
        let follower = Follower {
            app: Arc::clone(&self.0),
            subscription,
            tenant: log.scope().tenant(),
            principal: caller.principal,
            expires_at: caller.expires_at,
            key: caller.key,
            checks: checks(),
            last: from.checked_sub(1),
        };
        let response = match socket {
            Some(socket) => over_websocket(socket, follower),
            None => as_events(follower),
        };
        Ok(StreamAnswer(response))
    }

    /// Make a ticket for a stream
    ///
    /// Needs `stream`. For browsers, which can't send a header with a WebSocket: the ticket is the
    /// query parameter `ticket` of one stream, within a minute.
    #[oai(
        path = "/logs/stream/ticket",
        method = "post",
        operation_id = "stream_ticket",
        tag = "Tag::Streams"
    )]
    async fn ticket(&self, caller: Caller) -> Result<TicketAnswer, Refused<Reading>> {
        let log = self.0.gate.enter(&caller, Permission::Stream, &[]).await?;
        let clock = self.0.log().clock();
        let now = clock.now();
        let lifetime = i64::from(ticket::LIFETIME_SECONDS) * 1_000_000;
        let expires_at = Timestamp::saturating_from_micros(now.as_micros() + lifetime);
        let mut kept = Ticket::new(log.scope().tenant(), log.scope().subject(), expires_at);
        kept.session_expires_at = caller.expires_at;
        let store = self.0.gate.credentials();
        let text = ticket::issue(&**store, clock.secret(), caller.key, &kept, now).await?;
        let body = format!("{{\"ticket\":\"{text}\",\"expires_at\":\"{expires_at}\"}}");
        Ok(TicketAnswer::Ticket(JsonBody::new(body)))
    }
}

fn accepts_events(request: &Request) -> bool {
    let mut values = request.headers().get_all(ACCEPT).iter().peekable();
    values.peek().is_none()
        || values
            .flat_map(|value| value.to_str().unwrap_or_default().split(','))
            .map(|range| {
                range
                    .split(';')
                    .next()
                    .unwrap_or_default()
                    .trim()
                    .to_ascii_lowercase()
            })
            .any(|range| matches!(range.as_str(), "" | "*/*" | "text/*" | "text/event-stream"))
}

fn last_event_id(request: &Request) -> Result<Option<u64>, Problem> {
    const NAME: &str = "Last-Event-ID";
    match request
        .headers()
        .get(NAME)
        .map(|v| v.to_str().unwrap_or("?").trim())
    {
        None | Some("") => Ok(None),
        Some(text) => match text.parse() {
            Ok(seq) if seq < MAX_SEQ => Ok(Some(seq)),
            _ => Err(Problem::parameter(NAME, "not a position")),
        },
    }
}

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    Stopping,
    Failed,
    Expired,
    Suspended,
    TooSlow,
}

impl Closing {
    /// The close code (RFC 6455 §7.4; from 4000 on they are the application's).
    fn code(self) -> u16 {
        match self {
            Self::Stopping => 1001,
            Self::Failed => 1011,
            Self::Expired => 4401,
            Self::Suspended => 4403,
            Self::TooSlow => 4408,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Stopping => "the server stops",
            Self::Failed => "the server failed",
            Self::Expired => "the credential has expired or was revoked",
            Self::Suspended => "the tenant is suspended",
            Self::TooSlow => "the subscriber is too slow",
        }
    }
}

impl From<&Error> for Closing {
    fn from(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::TenantClosed
            | ErrorKind::TenantDeleted
            | ErrorKind::UnknownTenant
            | ErrorKind::Forbidden => Self::Suspended,
            _ => Self::Failed,
        }
    }
}

/// What is sent: a frame and the last position that it tells of.
struct Frame {
    seq: Option<u64>,
    text: String,
}

/// Turns what is delivered into frames, until something ends the stream.
struct Follower {
    app: Arc<App>,
    subscription: Subscription,
    tenant: TenantId,
    principal: Principal,
    expires_at: Option<Timestamp>,
    key: Option<SecretHash>,
    checks: tokio::time::Interval,
    last: Option<u64>,
}

/// Whether the API key that opened a stream is gone. A store that is away doesn't say so.
async fn was_revoked(app: &App, key: Option<SecretHash>) -> bool {
    let Some(key) = key else { return false };
    match app.gate.keys().find(&key).await {
        Ok(found) => found.is_none(),
        Err(error) => {
            tracing::warn!(%error, "whether a stream's API key was revoked is not known");
            false
        }
    }
}

/// Whether the tenant is closed by now to whoever follows its log: the log is read still while its end is
/// under way. A store that is away doesn't say so.
async fn was_closed(app: &App, principal: &Principal, tenant: TenantId) -> bool {
    let entered = app.log().authorize(principal, tenant, Permission::Stream);
    let closed = |error: Error| {
        matches!(
            error.kind(),
            ErrorKind::TenantClosed | ErrorKind::TenantDeleted
        )
    };
    entered.await.is_err_and(closed)
}

fn checks() -> tokio::time::Interval {
    let mut checks = tokio::time::interval(CHECK);
    checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    checks
}

impl Follower {
    /// The next frame, or why there is none.
    async fn next(&mut self) -> Result<Frame, Closing> {
        let delivered = loop {
            let now = self.app.log().clock().now();
            // A timer that has just been set may fire later than an entry that waits already.
            if self.expires_at.is_some_and(|at| at <= now) {
                return Err(Closing::Expired);
            }
            tokio::select! {
                biased;
                () = self.app.stopping.cancelled() => return Err(Closing::Stopping),
                () = until(self.expires_at, now) => return Err(Closing::Expired),
                _ = self.checks.tick() => {
                    if was_revoked(&self.app, self.key).await {
                        return Err(Closing::Expired);
                    }
                    if was_closed(&self.app, &self.principal, self.tenant).await {
                        return Err(Closing::Suspended);
                    }
                }
                delivered = self.subscription.next() => break delivered,
            }
        };
        match delivered {
            None => Err(Closing::Failed),
            Some(Err(error)) => {
                let closing = Closing::from(&error);
                if closing == Closing::Failed {
                    tracing::warn!(%error, "a stream ended");
                }
                Err(closing)
            }
            Some(Ok(delivered)) => Ok(self.frame(&delivered)),
        }
    }

    fn frame(&mut self, delivered: &Delivered) -> Frame {
        let mut text = String::with_capacity(1024);
        match delivered {
            Delivered::Entry(entry) => {
                self.last = Some(entry.seq);
                write_entry(&mut text, entry);
            }
            Delivered::Pruned { below, .. } => {
                self.last = below.checked_sub(1).or(self.last);
                text.push_str("{\"type\":\"pruned\",\"seq\":");
                write_seq(&mut text, self.last);
                put!(text, ",\"below\":{below}}}");
            }
            other => {
                if let Delivered::Heartbeat { seq, .. } = other {
                    self.last = (*seq).max(self.last);
                }
                return self.heartbeat();
            }
        }
        Frame {
            seq: self.last,
            text,
        }
    }

    /// Says how far the stream is. The first frame is one, so that a client that is cut off before
    /// it sees an entry knows where to go on.
    fn heartbeat(&self) -> Frame {
        let mut text = String::from("{\"type\":\"heartbeat\",\"seq\":");
        write_seq(&mut text, self.last);
        text.push('}');
        Frame {
            seq: self.last,
            text,
        }
    }

    fn closing(&self, why: Closing) -> Frame {
        let mut text = String::from("{\"type\":\"closing\",\"seq\":");
        write_seq(&mut text, self.last);
        put!(
            text,
            ",\"code\":{},\"reason\":\"{}\"}}",
            why.code(),
            why.reason()
        );
        Frame {
            seq: self.last,
            text,
        }
    }
}

fn write_entry(text: &mut String, entry: &Entry) {
    put!(
        text,
        "{{\"type\":\"entry\",\"seq\":{},\"entry\":",
        entry.seq
    );
    entry.write_json(text);
    text.push('}');
}

fn write_seq(text: &mut String, seq: Option<u64>) {
    match seq {
        Some(seq) => {
            put!(text, "{seq}");
        }
        None => text.push_str("null"),
    }
}

/// Ends when the credential does; never, when it doesn't.
async fn until(expires_at: Option<Timestamp>, now: Timestamp) {
    match expires_at {
        None => std::future::pending().await,
        Some(at) => {
            let left = u64::try_from(at.as_micros() - now.as_micros()).unwrap_or(0);
            tokio::time::sleep(Duration::from_micros(left)).await;
        }
    }
}

/// Counts open streams.
struct Open(&'static str);

impl Open {
    fn new(kind: &'static str) -> Self {
        metrics::gauge!("audit_streams_open", "kind" => kind).increment(1.0);
        Self(kind)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("audit_streams_open", "kind" => self.0).decrement(1.0);
    }
}

fn over_websocket(socket: WebSocket, follower: Follower) -> Response {
    let app = Arc::clone(&follower.app);
    // poem asks for a callback that can be shared, which a stream can't be.
    let follower = Mutex::new(follower);
    // A subscriber has nothing to say.
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_HEARD))
        .max_frame_size(Some(MAX_HEARD));
    socket
        .config(config)
        .on_upgrade(move |socket| {
            let streams = app.streams.clone();
            streams.track_future(async move {
                let _open = Open::new("websocket");
                let mut follower = follower
                    .into_inner()
                    .unwrap_or_else(PoisonError::into_inner);
                let timeout = app.send_timeout;
                let (mut sink, mut source) = socket.split();
                let why = tokio::select! {
                    why = send_frames(&mut sink, &mut follower, timeout) => why,
                    () = drain(&mut source) => None,
                };
                let Some(why) = why else { return };
                metrics::counter!("audit_streams_closed_total", "reason" => why.reason())
                    .increment(1);
                // Whoever is too slow for a frame gets its goodbye at most as long again.
                let text = (why != Closing::TooSlow).then(|| follower.closing(why).text);
                let goodbye = async {
                    if let Some(text) = text {
                        sink.feed(Message::text(text)).await?;
                    }
                    sink.send(Message::close_with(why.code(), why.reason()))
                        .await
                };
                if tokio::time::timeout(timeout, goodbye)
                    .await
                    .is_ok_and(|sent| sent.is_ok())
                {
                    // The peer answers with its own close frame (RFC 6455 §5.5.1).
                    tokio::time::timeout(timeout.min(CLOSE_WAIT), drain(&mut source))
                        .await
                        .ok();
                }
            })
        })
        .into_response()
}

/// The most bytes of a message that a subscriber may send.
const MAX_HEARD: usize = 64 * 1024;

/// How long a close frame waits for its answer.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

type Sink = futures_util::stream::SplitSink<WebSocketStream, Message>;
type Source = futures_util::stream::SplitStream<WebSocketStream>;

/// Sends frames until something ends the stream; none when the connection is gone.
async fn send_frames(
    sink: &mut Sink,
    follower: &mut Follower,
    timeout: Duration,
) -> Option<Closing> {
    let mut next = Ok(follower.heartbeat());
    loop {
        match next {
            Ok(frame) => {
                match tokio::time::timeout(timeout, sink.send(Message::text(frame.text))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return None,
                    Err(_) => return Some(Closing::TooSlow),
                }
            }
            Err(why) => return Some(why),
        }
        next = follower.next().await;
    }
}

/// Reads and drops what a subscriber sends, until it closes. Pings are answered on the way.
async fn drain(source: &mut Source) {
    while let Some(Ok(message)) = source.next().await {
        if message.is_close() {
            break;
        }
    }
}

fn as_events(mut follower: Follower) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Vec<u8>, std::io::Error>>(FRAMES);
    let app = Arc::clone(&follower.app);
    let streams = app.streams.clone();
    let stream = async move {
        let _open = Open::new("sse");
        let timeout = app.send_timeout;
        // The headers go out with the first bytes.
        if sender.send(Ok(event(&follower.heartbeat()))).await.is_err() {
            return;
        }
        loop {
            let next = tokio::select! {
                next = follower.next() => next,
                () = sender.closed() => return,
            };
            let why = match next {
                Ok(frame) => {
                    use mpsc::error::SendTimeoutError::{Closed, Timeout};
                    match sender.send_timeout(Ok(event(&frame)), timeout).await {
                        Ok(()) => continue,
                        Err(Closed(_)) => return,
                        Err(Timeout(_)) => Closing::TooSlow,
                    }
                }
                Err(why) => why,
            };
            metrics::counter!("audit_streams_closed_total", "reason" => why.reason()).increment(1);
            let last = if why == Closing::TooSlow {
                // The buffer is full: the connection is cut, which frees it.
                Err(std::io::Error::new(
                    std::io::ErrorKind::TimedOut,
                    why.reason(),
                ))
            } else {
                Ok(event(&follower.closing(why)))
            };
            sender.send_timeout(last, timeout).await.ok();
            return;
        }
    };
    streams.spawn(stream);
    let body = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let mut response = Response::builder().body(Body::from_bytes_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that buffer would hold frames back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn event(frame: &Frame) -> Vec<u8> {
    let mut text = String::with_capacity(frame.text.len() + 32);
    if let Some(seq) = frame.seq {
        put!(text, "id: {seq}\n");
    }
    text.push_str("data: ");
    text.push_str(&frame.text);
    text.push_str("\n\n");
    text.into_bytes()
}
