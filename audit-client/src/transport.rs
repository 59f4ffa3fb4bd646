//! One request and its answer, and the attempts at it.

use std::error::Error as StdError;
use std::time::Duration;

use audit_core::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use tokio::time::Instant;

use crate::client::Client;
use crate::problem;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Which failures allow another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// All that pass: doing it twice is the same as doing it once.
    Safe,
    /// Those after which it is known that nothing was done: no connection, or turned away by a
    /// rate limit.
    IfNotDone,
    /// None.
    Never,
}

/// A request that can be sent any number of times.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Option<Bytes>,
    repeat: Repeat,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

/// Why an attempt failed, and whether anything may have been done.
pub(crate) struct Failure {
    pub(crate) error: Error,
    done: Done,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Certainly not, and it may work later.
    No,
    /// Nobody knows, and it may work later.
    Perhaps,
    /// The server has decided.
    Final,
}

impl Call {
    /// `path` is relative to the server's address. GET calls are safe to repeat, others are only
    /// repeated when nothing was done, unless [`repeat`](Self::repeat) says otherwise.
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        let repeat = if method == Method::GET {
            Repeat::Safe
        } else {
            Repeat::IfNotDone
        };
        Self {
            method,
            path: path.into(),
            query: vec![],
            headers: vec![],
            body: None,
            repeat,
        }
    }

    pub(crate) fn query(mut self, query: Vec<(&'static str, String)>) -> Self {
        self.query.extend(query);
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn json(mut self, body: impl Into<Bytes>) -> Self {
        self.headers.push((CONTENT_TYPE, JSON));
        self.body = Some(body.into());
        self
    }

    pub(crate) fn repeat(mut self, repeat: Repeat) -> Self {
        self.repeat = repeat;
        self
    }
}

impl Client {
    /// Sends until there is an answer of a successful status, and returns it whole.
    pub(crate) async fn answer(&self, call: &Call) -> Result<Answer> {
        let mut pace = self.pace();
        loop {
            match pace.within(self.answer_once(call)).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => pace.again(call.repeat, failure).await?,
            }
        }
    }

    async fn answer_once(&self, call: &Call) -> Result<Answer, Failure> {
        let (answer, after) = self.exchange_once(call).await?;
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(refusal(answer.status, &answer.body, after))
        }
    }

    /// Sends once and returns the answer, whatever its status.
    pub(crate) async fn exchange(&self, call: &Call) -> Result<Answer> {
        self.exchange_once(call)
            .await
            .map(|a| a.0)
            .map_err(|f| f.error)
    }

    /// Sends until a body of a successful status begins, and returns it unread.
    pub(crate) async fn body(&self, call: &Call) -> Result<reqwest::Response> {
        let mut pace = self.pace();
        loop {
            match pace.within(self.body_once(call)).await {
                Ok(response) => return Ok(response),
                Err(failure) => pace.again(call.repeat, failure).await?,
            }
        }
    }

    async fn body_once(&self, call: &Call) -> Result<reqwest::Response, Failure> {
        let response = tokio::time::timeout(self.shared.timeout, self.request(call)?.send())
            .await
            .map_err(|_| late(self.shared.timeout))?
            .map_err(lost)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (answer, after) = self.read(response).await?;
        Err(refusal(answer.status, &answer.body, after))
    }

    /// Sends until there is an answer of a successful status, and returns its bytes, at most `longest`.
    pub(crate) async fn bytes(&self, call: &Call, longest: usize) -> Result<Bytes> {
        let mut pace = self.pace();
        loop {
            match pace.within(self.bytes_once(call, longest)).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => pace.again(call.repeat, failure).await?,
            }
        }
    }

    async fn bytes_once(&self, call: &Call, longest: usize) -> Result<Bytes, Failure> {
        let mut response = self.body_once(call).await?;
        let collected = async {
            let mut bytes = BytesMut::new();
            while let Some(piece) = response.chunk().await.map_err(lost)? {
                if bytes.len() + piece.len() > longest {
                    let error = Error::new(ErrorKind::Malformed, "the server's answer is too long");
                    let done = Done::Final;
                    return Err(Failure { error, done });
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes.freeze())
        };
        tokio::time::timeout(self.shared.timeout, collected)
            .await
            .map_err(|_| late(self.shared.timeout))?
    }

    async fn exchange_once(&self, call: &Call) -> Result<(Answer, Option<Duration>), Failure> {
        let request = self.request(call)?.timeout(self.shared.timeout);
        let response = request.send().await.map_err(lost)?;
        self.read(response).await
    }

    async fn read(
        &self,
        response: reqwest::Response,
    ) -> Result<(Answer, Option<Duration>), Failure> {
        let status = response.status();
        let after = retry_after(&response);
        let bytes = tokio::time::timeout(self.shared.timeout, response.bytes())
            .await
            .map_err(|_| late(self.shared.timeout))?
            .map_err(lost)?;
        let body = String::from_utf8(bytes.into()).map_err(|e| Failure {
            error: Error::new(ErrorKind::Internal, "the server's answer is not UTF-8")
                .with_source(e),
            done: Done::Final,
        })?;
        Ok((Answer { status, body }, after))
    }

    fn request(&self, call: &Call) -> Result<reqwest::RequestBuilder, Failure> {
        let mut url = self.shared.base.join(&call.path).map_err(|e| Failure {
            error: Error::new(ErrorKind::Internal, "no URL can be made").with_source(e),
            done: Done::Final,
        })?;
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let mut request = self.shared.http.request(call.method.clone(), url);
        if let Some(token) = &self.shared.token {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some(tenant) = self.tenant {
            request = request.header("x-tenant-id", tenant.to_string());
        }
        if !call.headers.iter().any(|(name, _)| name == ACCEPT) {
            request = request.header(ACCEPT, JSON);
        }
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let Some(body) = &call.body {
            request = request.body(body.clone());
        }
        Ok(request)
    }

    /// The bounds of one call, from now on.
    pub(crate) fn pace(&self) -> Pace<'_> {
        Pace {
            client: self,
            attempt: 0,
            end: Instant::now() + self.shared.retry.deadline,
        }
    }
}

/// Counts the attempts at one call and waits between them.
pub(crate) struct Pace<'a> {
    client: &'a Client,
    attempt: u32,
    end: Instant,
}

impl Pace<'_> {
    /// Ends an attempt at the deadline.
    async fn within<T>(
        &self,
        attempt: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout_at(self.end, attempt).await {
            Ok(result) => result,
            Err(_) => Err(late(self.client.shared.retry.deadline)),
        }
    }

    /// Waits until the next attempt is due; gives the error back when there is none.
    async fn again(&mut self, repeat: Repeat, failure: Failure) -> Result<()> {
        let again = match (repeat, failure.done) {
            (Repeat::Never, _) | (_, Done::Final) => false,
            (Repeat::Safe, _) | (Repeat::IfNotDone, Done::No) => true,
            (Repeat::IfNotDone, Done::Perhaps) => false,
        };
        if again {
            self.wait(failure.error).await
        } else {
            Err(failure.error)
        }
    }

    /// Waits until the next attempt is due; gives `error` back when there is none.
    pub(crate) async fn wait(&mut self, error: Error) -> Result<()> {
        self.attempt += 1;
        let retry = &self.client.shared.retry;
        let noise = self.client.shared.clock.secret()[0];
        let wait = retry.wait(self.attempt, error.retry_after(), noise);
        if self.attempt >= retry.attempts || Instant::now() + wait >= self.end {
            return Err(error);
        }
        tracing::debug!(attempt = self.attempt, ?wait, %error, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The failure for an answer of a status that is no success.
fn refusal(status: StatusCode, body: &str, after: Option<Duration>) -> Failure {
    let error = problem::error(status.as_u16(), body, after);
    let done = match status.as_u16() {
        429 => Done::No,
        502..=504 => Done::Perhaps,
        _ if error.is_retryable() => Done::Perhaps,
        _ => Done::Final,
    };
    Failure { error, done }
}

/// The failure for a connection that could not be made or was cut.
pub(crate) fn lost(error: reqwest::Error) -> Failure {
    let done = if error.is_connect() {
        Done::No
    } else {
        Done::Perhaps
    };
    // Of the URL no more than this: it may hold a secret, or what was searched for.
    let server = error.url().map_or_else(
        || "the server".to_owned(),
        |url| format!("the server at {}", url.origin().ascii_serialization()),
    );
    let message = if error.is_connect() {
        format!("{server} can't be reached")
    } else if error.is_timeout() {
        format!("{server} did not answer in time")
    } else {
        format!("the connection to {server} was cut")
    };
    Failure {
        error: unavailable(message, &error),
        done,
    }
}

fn unavailable(message: String, cause: &reqwest::Error) -> Error {
    // The innermost cause says what happened, and names no URL.
    let mut reason: &dyn StdError = cause;
    while let Some(inner) = reason.source() {
        reason = inner;
    }
    Error::new(ErrorKind::Unavailable, message).with_source(Cause(reason.to_string()))
}

fn late(limit: Duration) -> Failure {
    let error = Error::new(
        ErrorKind::Unavailable,
        format!("the server did not answer within {} s", limit.as_secs_f64()),
    );
    Failure {
        error,
        done: Done::Perhaps,
    }
}

#[derive(Debug)]
struct Cause(String);

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Cause {}

/// `Retry-After` in its form of seconds (RFC 9110 §10.2.3), which this server sends.
fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response
        .headers()
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// Reads an answer's JSON into `T`.
pub(crate) fn parse<'a, T: serde::Deserialize<'a>>(body: &'a str) -> Result<T> {
    serde_json::from_str(body).map_err(|e| unexpected().with_source(e))
}

/// The answer is not what the API says.
pub(crate) fn unexpected() -> Error {
    Error::new(
        ErrorKind::Internal,
        "the server's answer is not the one that the API describes",
    )
}
