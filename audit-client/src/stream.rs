//! Following a log live, over server-sent events.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use audit_core::{Delivered, Entry, Error, ErrorKind, Filter, Result};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::client::Client;
use crate::export::chunks;
use crate::list::filter_query;
use crate::sse::Parser;
use crate::transport::{Call, Repeat, parse, unexpected};

/// What is to be followed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StreamRequest {
    /// Which entries. Its `from_seq` is the first position; none starts with what is appended from
    /// now on.
    pub filter: Filter,
}

impl StreamRequest {
    /// Everything from now on.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only what matches.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// From this position on, which the filter keeps.
    #[must_use]
    pub fn from(mut self, seq: u64) -> Self {
        self.filter.from_seq = Some(seq);
        self
    }
}

/// A tenant's log as it grows: entries in the order of positions, each once, heartbeats, and what
/// pruning took before it was read.
///
/// A connection that is cut is made again from the last position, within the bounds of
/// [`Retry`](crate::Retry), which begin anew with everything that arrives. The stream ends with an
/// error when they are used up, when the credential expires, or when the tenant is suspended.
///
/// Without a first position the server's first frame names one, and nothing is missed from then on.
/// A connection that is cut before it begins anew with what is appended from then on.
pub struct Subscription(BoxStream<'static, Result<Delivered>>);

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subscription")
    }
}

impl Stream for Subscription {
    type Item = Result<Delivered>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(borrow, default)]
    entry: Option<&'a RawValue>,
    #[serde(default)]
    below: Option<u64>,
    #[serde(default)]
    code: Option<u16>,
    #[serde(default)]
    reason: Option<String>,
}

/// What a frame makes of the stream.
enum Step {
    Deliver(Delivered),
    /// Nothing to tell.
    Pass,
    /// The server closes the connection; a new one may go on.
    Reconnect(Error),
    /// The server closes the stream for good.
    End(Error),
}

struct Follower {
    client: Client,
    query: Vec<(&'static str, String)>,
    body: Option<BoxStream<'static, Result<Bytes>>>,
    parser: Parser,
    ready: VecDeque<Step>,
    /// What `Last-Event-ID` says when the connection is made again.
    last_id: Option<String>,
    /// The first position that was not delivered.
    next: u64,
    over: bool,
}

impl Client {
    /// Follows the tenant's log. The connection is made before this returns.
    ///
    /// # Errors
    /// A filter that the server refuses, by name; a credential without the permission.
    pub async fn stream(&self, request: &StreamRequest) -> Result<Subscription> {
        let mut follower = Follower {
            client: self.clone(),
            query: filter_query(&request.filter),
            body: None,
            parser: Parser::default(),
            ready: VecDeque::new(),
            last_id: None,
            next: request.filter.from_seq.unwrap_or(0),
            over: false,
        };
        let response = self.body(&follower.call()).await?;
        follower.body = Some(chunks(response, self.shared.silence));
        Ok(Subscription(
            stream::unfold(follower, |mut follower| async move {
                if follower.over {
                    return None;
                }
                let item = follower.next().await;
                follower.over = item.is_err();
                Some((item, follower))
            })
            .boxed(),
        ))
    }
}

impl Follower {
    fn call(&self) -> Call {
        let mut call = Call::new(Method::GET, "api/v1/logs/stream")
            .query(self.query.clone())
            .header(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = self
            .last_id
            .as_deref()
            .and_then(|id| HeaderValue::from_str(id).ok())
        {
            call = call.header(HeaderName::from_static("last-event-id"), id);
        }
        call
    }

    async fn next(&mut self) -> Result<Delivered> {
        let client = self.client.clone();
        // The bounds begin with the first failure, and not with a wait for something to happen.
        let mut pace = None;
        loop {
            while let Some(step) = self.ready.pop_front() {
                match step {
                    Step::Deliver(delivered) => return Ok(delivered),
                    Step::Pass => {}
                    Step::Reconnect(error) => {
                        self.body = None;
                        self.ready.clear();
                        pace.get_or_insert_with(|| client.pace())
                            .wait(error)
                            .await?;
                    }
                    Step::End(error) => return Err(error),
                }
            }
            if self.body.is_none() {
                self.parser = Parser::default();
                let call = self.call().repeat(Repeat::Safe);
                self.body = Some(chunks(client.body(&call).await?, client.shared.silence));
            }
            let Some(body) = &mut self.body else { continue };
            let cut = match body.next().await {
                Some(Ok(piece)) => {
                    self.take(&piece)?;
                    continue;
                }
                Some(Err(error)) => error,
                None => Error::new(ErrorKind::Unavailable, "the server ended the stream"),
            };
            self.body = None;
            pace.get_or_insert_with(|| client.pace()).wait(cut).await?;
        }
    }

    fn take(&mut self, piece: &[u8]) -> Result<()> {
        for message in self.parser.push(piece).map_err(|_| unexpected())? {
            let step = match message.data.as_str() {
                "" => Step::Pass,
                data => self.step(data)?,
            };
            if message.id.is_some() {
                self.last_id = message.id;
            }
            self.ready.push_back(step);
        }
        Ok(())
    }

    fn step(&mut self, data: &str) -> Result<Step> {
        let frame: Frame<'_> = parse(data)?;
        Ok(match frame.kind {
            "entry" => {
                let raw = frame.entry.ok_or_else(unexpected)?;
                let entry = Entry::from_json(raw.get()).map_err(|e| unexpected().with_source(e))?;
                // A server may begin a resumed stream with what was seen already.
                if entry.seq < self.next {
                    return Ok(Step::Pass);
                }
                self.next = entry.seq + 1;
                Step::Deliver(Delivered::Entry(Arc::new(entry)))
            }
            "heartbeat" => {
                // An empty log has no last position to name: what comes begins with the first.
                if frame.seq.is_none()
                    && self.last_id.is_none()
                    && self.query.iter().all(|(name, _)| *name != "from_seq")
                {
                    self.query.push(("from_seq", "0".into()));
                }
                Step::Deliver(Delivered::Heartbeat { seq: frame.seq })
            }
            "pruned" => {
                let below = frame.below.ok_or_else(unexpected)?;
                self.next = self.next.max(below);
                Step::Deliver(Delivered::Pruned { below })
            }
            "closing" => {
                let error = |kind, plain: &'static str| match frame.reason {
                    Some(reason) => Error::new(kind, reason),
                    None => Error::new(kind, plain),
                };
                match frame.code {
                    Some(4401) => {
                        Step::End(error(ErrorKind::Forbidden, "the credential has expired"))
                    }
                    Some(4403) => {
                        Step::End(error(ErrorKind::TenantClosed, "the tenant was suspended"))
                    }
                    _ => Step::Reconnect(error(
                        ErrorKind::Unavailable,
                        "the server closed the stream",
                    )),
                }
            }
            // A newer server's.
            _ => Step::Pass,
        })
    }
}
