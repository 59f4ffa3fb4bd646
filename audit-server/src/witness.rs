//! A witness over HTTP: C2SP `tlog-witness`, section *add-checkpoint*.

use std::time::Duration;

use async_trait::async_trait;
use audit_core::tlog::note::VerifyingKey;
use audit_core::tlog::witness::{AddCheckpoint, SIZE_CONTENT_TYPE, parse_conflict};
use audit_core::{Error, ErrorKind, Result, Witness, WitnessAnswer};
use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;

use crate::config::WitnessAddress;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is read, in bytes: some signature lines.
const MAX_ANSWER: usize = 64 * 1024;
/// Characters of a refusal that are told.
const MAX_DETAIL: usize = 200;

/// A witness that is asked over HTTP. Redirections are not followed.
#[derive(Debug)]
pub struct HttpWitness {
    key: VerifyingKey,
    url: String,
    client: reqwest::Client,
}

impl HttpWitness {
    /// The witness at an address.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when this process can't make HTTP requests at all.
    pub fn new(address: &WitnessAddress) -> Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| {
                Error::new(ErrorKind::Internal, "no HTTP client can be made").with_source(e)
            })?;
        Ok(Self {
            key: address.key.clone(),
            url: format!("{}/add-checkpoint", address.url),
            client,
        })
    }
}

/// The URL isn't told: what went wrong is.
fn away(error: reqwest::Error) -> Error {
    let error = error.without_url();
    Error::new(
        ErrorKind::Unavailable,
        format!("it can't be asked: {error}"),
    )
    .with_source(error)
}

#[async_trait]
impl Witness for HttpWitness {
    fn key(&self) -> &VerifyingKey {
        &self.key
    }

    async fn add_checkpoint(&self, request: &AddCheckpoint) -> Result<WitnessAnswer> {
        let asked = self.client.post(&self.url).body(request.encode());
        let mut response = asked.send().await.map_err(away)?;
        let status = response.status();
        let content_type = response.headers().get(CONTENT_TYPE);
        let is_size = content_type.is_some_and(|found| found == SIZE_CONTENT_TYPE);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                let message = "its answer is too long";
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        }
        // What isn't UTF-8 is neither a signature nor a size.
        let text = String::from_utf8_lossy(&body);
        let detail = || {
            let printable = text.chars().filter(|c| !c.is_control());
            printable.take(MAX_DETAIL).collect::<String>()
        };
        match (status, parse_conflict(&text)) {
            (StatusCode::OK, _) => Ok(WitnessAnswer::Cosigned(text.into_owned())),
            (StatusCode::CONFLICT, Some(size)) if is_size => Ok(WitnessAnswer::Conflict(size)),
            _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                let message = format!("it answers {}: {}", status.as_u16(), detail());
                Err(Error::new(ErrorKind::Unavailable, message))
            }
            _ => Ok(WitnessAnswer::Refused {
                status: status.as_u16(),
                detail: detail(),
            }),
        }
    }
}
