//! The calls to SQS, in batches that it takes.

use std::path::Path;
use std::time::Duration;

use audit_core::{Error, ErrorKind, Result};
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{Builder as ConfigBuilder, SharedHttpClient};
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry,
    DeleteMessageBatchRequestEntry, Message as Received, MessageSystemAttributeName,
};
use aws_smithy_http_client::tls;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::fault::{from_call, from_item, is_lost_lease, is_the_messages};
use crate::message::{Outgoing, unbuilt};
use crate::options::{HAS_USER, SqsOptions};

/// The most messages of a call.
pub(crate) const BATCH: usize = 10;
/// The longest wait of a receive, in seconds.
pub(crate) const LONGEST_WAIT: u64 = 20;
/// The longest that a message is hidden, in seconds, counted from when it was received.
pub(crate) const LONGEST_LEASE: u64 = 12 * 3_600;
/// Calls of one operation that are under way at once, where it takes several.
const CALLS: usize = 8;

/// A client of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    client: Client,
    timeout: Duration,
}

impl Api {
    pub(crate) async fn open(options: &SqsOptions) -> Result<Self> {
        if options.endpoint.contains('@') {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the endpoint {HAS_USER}"),
            ));
        }
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .endpoint_url(&options.endpoint)
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(3)
                    .with_initial_backoff(Duration::from_millis(100))
                    .with_max_backoff(Duration::from_secs(1)),
            )
            .timeout_config(timeouts(options.timeout, Duration::ZERO));
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(path) = &options.ca_file {
            let path = path.clone();
            let trusting = tokio::task::spawn_blocking(move || trusting(&path))
                .await
                .map_err(|error| {
                    Error::new(ErrorKind::Internal, "reading the certificates panicked")
                        .with_source(error)
                })??;
            loader = loader.http_client(trusting);
        }
        let config = loader.load().await;
        if config.region().is_none() {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the region of {} is not known: set AWS_REGION or SqsOptions::region",
                    options.url
                ),
            ));
        }
        Ok(Self {
            client: Client::new(&config),
            timeout: options.timeout,
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Sends at most [`BATCH`] messages, which fit into one call, in their order.
    ///
    /// Where SQS refuses the call for the sake of one message, the halves are sent by themselves, so
    /// that this one alone fails. When a half then fails for other reasons, what follows it is not
    /// sent any more, lest it overtake it.
    pub(crate) async fn send(&self, url: &str, messages: &[&Outgoing]) -> Vec<Result<()>> {
        let mut outcomes: Vec<Result<()>> = Vec::with_capacity(messages.len());
        // What is still to be sent, the next part last.
        let mut parts = Vec::new();
        if !messages.is_empty() {
            parts.push(0..messages.len());
        }
        while let Some(part) = parts.pop() {
            let size = part.len();
            match self.send_call(url, &messages[part.clone()]).await {
                Ok(sent) => outcomes.extend(sent),
                Err(Whole::Final(_)) if size > 1 => {
                    let middle = part.start + size / 2;
                    parts.push(middle..part.end);
                    parts.push(part.start..middle);
                }
                Err(Whole::Final(error)) => outcomes.push(Err(error)),
                Err(Whole::Later(error)) => {
                    let rest = messages.len() - outcomes.len();
                    outcomes.extend((0..rest).map(|_| Err(error.clone())));
                    break;
                }
            }
        }
        outcomes
    }

    async fn send_call(&self, url: &str, messages: &[&Outgoing]) -> Result<Vec<Result<()>>, Whole> {
        let entries = messages
            .iter()
            .enumerate()
            .map(|(place, message)| message.entry(place))
            .collect::<Result<Vec<_>>>()
            .map_err(Whole::Later)?;
        let answer = self
            .client
            .send_message_batch()
            .queue_url(url)
            .set_entries(Some(entries))
            .send()
            .await;
        match answer {
            Ok(answer) => {
                let sent = answer.successful().iter().map(|item| item.id());
                Ok(by_place(messages.len(), sent, answer.failed(), |_| false))
            }
            Err(error) if error.code().is_some_and(is_the_messages) => {
                let code = error.code().unwrap_or_default();
                Err(Whole::Final(from_item(code, error.message(), true)))
            }
            Err(error) => Err(Whole::Later(from_call("SendMessageBatch", url, error))),
        }
    }

    /// Receives at most [`BATCH`] messages.
    pub(crate) async fn receive(&self, url: &str, receive: &Receive) -> Result<Vec<Received>> {
        let answer = self
            .client
            .receive_message()
            .queue_url(url)
            .max_number_of_messages(receive.max.clamp(1, BATCH) as i32)
            .wait_time_seconds(receive.wait.min(LONGEST_WAIT) as i32)
            .visibility_timeout(receive.lease.min(LONGEST_LEASE) as i32)
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
            .set_receive_request_attempt_id(receive.attempt.clone())
            .customize()
            .config_override(ConfigBuilder::default().timeout_config(timeouts(
                self.timeout,
                Duration::from_secs(receive.wait.min(LONGEST_WAIT)),
            )))
            .send()
            .await
            .map_err(|error| from_call("ReceiveMessage", url, error))?;
        // AWS leaves the list out when it is empty, other servers don't.
        Ok(answer.messages.unwrap_or_default())
    }

    /// Removes messages by their receipts. A lost lease is no error.
    pub(crate) async fn delete(&self, url: &str, receipts: &[String]) -> Vec<Result<()>> {
        let batches = receipts.chunks(BATCH);
        settled(batches.map(|b| (b.len(), self.delete_call(url, b).boxed()))).await
    }

    async fn delete_call(&self, url: &str, receipts: &[String]) -> Result<Vec<Result<()>>> {
        let entries = receipts
            .iter()
            .enumerate()
            .map(|(place, receipt)| {
                DeleteMessageBatchRequestEntry::builder()
                    .id(place.to_string())
                    .receipt_handle(receipt)
                    .build()
                    .map_err(unbuilt)
            })
            .collect::<Result<_>>()?;
        let answer = self
            .client
            .delete_message_batch()
            .queue_url(url)
            .set_entries(Some(entries))
            .send()
            .await
            .map_err(|error| from_call("DeleteMessageBatch", url, error))?;
        let done = answer.successful().iter().map(|item| item.id());
        Ok(by_place(receipts.len(), done, answer.failed(), is_lost))
    }

    /// Hides messages for so many seconds from now on. A lost lease is no error.
    pub(crate) async fn hide(&self, url: &str, receipts: &[(String, u64)]) -> Vec<Result<()>> {
        let batches = receipts.chunks(BATCH);
        settled(batches.map(|b| (b.len(), self.hide_call(url, b).boxed()))).await
    }

    async fn hide_call(&self, url: &str, receipts: &[(String, u64)]) -> Result<Vec<Result<()>>> {
        let entries = receipts
            .iter()
            .enumerate()
            .map(|(place, (receipt, seconds))| {
                ChangeMessageVisibilityBatchRequestEntry::builder()
                    .id(place.to_string())
                    .receipt_handle(receipt)
                    .visibility_timeout((*seconds).min(LONGEST_LEASE) as i32)
                    .build()
                    .map_err(unbuilt)
            })
            .collect::<Result<_>>()?;
        let answer = self
            .client
            .change_message_visibility_batch()
            .queue_url(url)
            .set_entries(Some(entries))
            .send()
            .await
            .map_err(|error| from_call("ChangeMessageVisibilityBatch", url, error))?;
        let done = answer.successful().iter().map(|item| item.id());
        Ok(by_place(receipts.len(), done, answer.failed(), is_lost))
    }
}

/// A call that failed for all of its messages.
enum Whole {
    /// For the sake of one of them.
    Final(Error),
    /// For other reasons.
    Later(Error),
}

/// What one receive asks for.
#[derive(Debug, Clone)]
pub(crate) struct Receive {
    pub(crate) max: usize,
    /// In seconds.
    pub(crate) wait: u64,
    /// In seconds.
    pub(crate) lease: u64,
    /// On a FIFO queue: a try after a lost answer gets the same messages again, not the next ones.
    pub(crate) attempt: Option<String>,
}

/// Cuts messages that go in this order into batches, by count and by bytes. A message that is larger
/// than a batch is one by itself.
pub(crate) fn cut(messages: &[Outgoing], bytes: usize) -> Vec<Vec<&Outgoing>> {
    let mut batches: Vec<Vec<&Outgoing>> = Vec::new();
    let mut total = 0;
    for message in messages {
        total += message.size();
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH && total <= bytes => batch.push(message),
            _ => {
                total = message.size();
                batches.push(vec![message]);
            }
        }
    }
    batches
}

/// Makes the calls, each for so many messages, several at once; puts their outcomes in order.
async fn settled<'a>(
    calls: impl Iterator<Item = (usize, BoxFuture<'a, Result<Vec<Result<()>>>>)>,
) -> Vec<Result<()>> {
    let calls: Vec<_> = calls
        .map(|(size, call)| async move {
            call.await
                .unwrap_or_else(|error| (0..size).map(|_| Err(error.clone())).collect())
        })
        .collect();
    stream::iter(calls).buffered(CALLS).concat().await
}

/// The outcome of each entry, by its place. What the answer doesn't mention has failed.
fn by_place<'a>(
    entries: usize,
    done: impl Iterator<Item = &'a str>,
    failed: &[BatchResultErrorEntry],
    passes: impl Fn(&BatchResultErrorEntry) -> bool,
) -> Vec<Result<()>> {
    let unknown = || {
        Error::new(
            ErrorKind::Unavailable,
            "SQS did not say what became of this message",
        )
    };
    let mut outcomes: Vec<Result<()>> = (0..entries).map(|_| Err(unknown())).collect();
    let mut settle = |id: &str, outcome: Result<()>| {
        let place = id.parse::<usize>().ok();
        if let Some(place) = place.and_then(|place| outcomes.get_mut(place)) {
            *place = outcome;
        }
    };
    for id in done {
        settle(id, Ok(()));
    }
    for item in failed {
        let outcome = if passes(item) {
            Ok(())
        } else {
            Err(from_item(item.code(), item.message(), item.sender_fault()))
        };
        settle(item.id(), outcome);
    }
    outcomes
}

fn is_lost(item: &BatchResultErrorEntry) -> bool {
    is_lost_lease(item.code(), item.message())
}

fn timeouts(timeout: Duration, wait: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout((timeout / 4).min(Duration::from_secs(3)))
        .operation_attempt_timeout(timeout * 2 / 3 + wait)
        .operation_timeout(timeout + wait)
        .build()
}

/// An HTTP client that trusts the authorities of this file besides the system's.
fn trusting(path: &Path) -> Result<SharedHttpClient> {
    let refuse = |what: &str| {
        Error::new(
            ErrorKind::Refused,
            format!("the certificates in {} {what}", path.display()),
        )
    };
    let pem = std::fs::read(path).map_err(|e| refuse("can't be read").with_source(e))?;
    // The client would panic on what it can't read.
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| refuse("are not PEM").with_source(e))?;
        roots
            .add(certificate)
            .map_err(|e| refuse("are not an authority's").with_source(e))?;
    }
    if roots.is_empty() {
        return Err(refuse("are missing: the file has none"));
    }
    let context = tls::TlsContext::builder()
        .with_trust_store(tls::TrustStore::default().with_pem_certificate(pem))
        .build()
        .map_err(|e| refuse("can't be used").with_source(e))?;
    let client = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(
            tls::rustls_provider::CryptoMode::AwsLc,
        ))
        .tls_context(context)
        .build_https();
    Ok(client)
}

#[cfg(test)]
mod tests {
    use audit_core::{Message, MessageKind};

    use super::*;

    fn outgoing(bytes: usize) -> Outgoing {
        let id = "0190a000-0000-7000-8000-000000000001";
        let message = Message::new(
            id.parse().unwrap(),
            MessageKind::Ingest,
            id.parse().unwrap(),
            "x".repeat(bytes),
        );
        Outgoing::new(&message, false)
    }

    #[test]
    fn batches_are_cut_by_count_and_by_bytes() {
        let overhead = outgoing(0).size();
        let cases: [(&[usize], &[usize]); 5] = [
            (&[], &[]),
            (&[1; 25], &[10, 10, 5]),
            (&[4_000, 4_000, 4_000, 1], &[2, 2]),
            (&[1, 20_000, 1], &[1, 1, 1]),
            (&[20_000, 1, 1], &[1, 2]),
        ];
        for (sizes, expected) in cases {
            let messages: Vec<Outgoing> = sizes.iter().map(|n| outgoing(*n)).collect();
            let batches = cut(&messages, 2 * (4_000 + overhead));
            let lengths: Vec<usize> = batches.iter().map(Vec::len).collect();
            assert_eq!(lengths, expected);
        }
    }

    #[test]
    fn every_item_of_an_answer_is_read_and_what_it_leaves_out_has_failed() {
        let failed = |id: &str, code: &str| {
            BatchResultErrorEntry::builder()
                .id(id)
                .code(code)
                .sender_fault(true)
                .build()
                .unwrap()
        };
        let failed = [
            failed("1", "InvalidMessageContents"),
            failed("3", "ReceiptHandleIsInvalid"),
            failed("99", "InternalError"),
        ];
        let outcomes = by_place(5, ["0", "nonsense", "2"].into_iter(), &failed, is_lost);
        let kinds: Vec<_> = outcomes
            .into_iter()
            .map(|o| o.map_err(|e| e.kind()))
            .collect();
        assert_eq!(
            kinds,
            [
                Ok(()),
                Err(ErrorKind::Invalid),
                Ok(()),
                Ok(()),
                Err(ErrorKind::Unavailable)
            ]
        );
    }
}
