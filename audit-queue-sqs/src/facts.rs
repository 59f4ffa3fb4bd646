//! What a queue says of itself, and whether events can be trusted to it.

use audit_core::{Error, ErrorKind, Result};
use aws_sdk_sqs::types::QueueAttributeName as Attribute;

use crate::api::Api;
use crate::create::dead_queue_name;
use crate::fault::from_call;
use crate::options::{SqsOptions, name};

/// A queue that keeps messages for less than this, a day, is not trusted with events, in seconds.
const LEAST_RETENTION: u64 = 86_400;
/// One that keeps them for less than this is warned about: SQS's own default of four days.
const SHORT_RETENTION: u64 = 345_600;
/// SQS keeps a message for this long at most: 14 days, in seconds.
pub(crate) const RETENTION: &str = "1209600";

/// What a queue says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// The dead-letter queue of its redrive policy.
    pub(crate) dead: Option<String>,
    /// The most bytes of a message.
    pub(crate) message_bytes: usize,
    /// For how long it keeps a message, in seconds, where it says so.
    retention: Option<u64>,
}

/// Asks a queue about itself.
pub(crate) async fn facts(api: &Api, options: &SqsOptions, url: &str) -> Result<Facts> {
    let answer = api
        .client()
        .get_queue_attributes()
        .queue_url(url)
        .attribute_names(Attribute::All)
        .send()
        .await
        .map_err(|error| from_call("GetQueueAttributes", url, error))?;
    let attribute = |name| answer.attributes()?.get(&name).map(String::as_str);
    Ok(Facts {
        dead: attribute(Attribute::RedrivePolicy)
            .and_then(dead_name)
            .map(|name| options.sibling(&name)),
        message_bytes: attribute(Attribute::MaximumMessageSize)
            .and_then(|bytes| bytes.parse().ok())
            .unwrap_or(1 << 20),
        retention: attribute(Attribute::MessageRetentionPeriod).and_then(|s| s.parse().ok()),
    })
}

/// The name of the dead-letter queue in a redrive policy, which is of the same account and region.
fn dead_name(policy: &str) -> Option<String> {
    let policy: serde_json::Value = serde_json::from_str(policy).ok()?;
    let arn = policy.get("deadLetterTargetArn")?.as_str()?;
    arn.rsplit(':').next().map(str::to_owned)
}

/// A queue and its dead-letter queue.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) queue: Facts,
    pub(crate) dead: Facts,
    pub(crate) dead_url: String,
}

impl Pair {
    /// Asks both.
    pub(crate) async fn ask(api: &Api, options: &SqsOptions) -> Result<Self> {
        let queue = facts(api, options, &options.url).await?;
        let dead_url = queue
            .dead
            .clone()
            .ok_or_else(|| without_dead_letters(&options.url))?;
        let dead = facts(api, options, &dead_url).await?;
        Ok(Self {
            queue,
            dead,
            dead_url,
        })
    }

    /// Whether what is sent to `url` stays until it is appended or looked at.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable): an operator can change it.
    pub(crate) fn check_retention(&self, url: &str) -> Result<()> {
        let refuse = |(of, text): (&str, String)| {
            let message = format!(
                "{text}; change it (aws sqs set-queue-attributes --queue-url {of} --attributes \
                 MessageRetentionPeriod={RETENTION})"
            );
            Err(Error::new(ErrorKind::Unavailable, message))
        };
        let kept = self.queue.retention.unwrap_or(u64::MAX);
        if kept < LEAST_RETENTION {
            let text = format!(
                "the queue {url} keeps messages for {kept} s, and events are not trusted to one \
                 that does so for less than {LEAST_RETENTION} s"
            );
            return refuse((url, text));
        }
        let dead = &self.dead_url;
        match (self.queue.retention, self.dead.retention) {
            (Some(queue), Some(kept)) if kept < queue => {
                let text = format!(
                    "the dead-letter queue {dead} keeps messages for {kept} s, less than the \
                     {queue} s of {url}, and SQS counts from when a message was first sent: a dead \
                     letter could be gone before anybody sees it"
                );
                refuse((dead, text))
            }
            _ => Ok(()),
        }
    }

    /// Says when the queue keeps messages for so short a time that an outage may outlast it.
    pub(crate) fn warn(&self, url: &str) {
        if let Err(error) = self.check_retention(url) {
            tracing::warn!(%error, "no event is sent to this queue");
        } else if let Some(retention) = self.queue.retention.filter(|s| *s < SHORT_RETENTION) {
            tracing::warn!(
                queue = url,
                retention,
                sensible = SHORT_RETENTION,
                "the queue keeps messages for a short time, in seconds: events that no worker has \
                 appended by then are lost"
            );
        }
    }
}

/// A queue without a dead-letter queue is not one that events can be trusted to.
fn without_dead_letters(url: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "the queue {url} has no dead-letter queue: give it a redrive policy (SqsQueue::create \
             does, with a queue {})",
            dead_queue_name(name(url))
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_redrive_policy_names_the_dead_letter_queue() {
        let policy = r#"{"deadLetterTargetArn":"arn:aws:sqs:eu-central-1:123456789012:a-dead.fifo","maxReceiveCount":"7"}"#;
        assert_eq!(dead_name(policy).as_deref(), Some("a-dead.fifo"));
        assert_eq!(dead_name("{}"), None);
        assert_eq!(dead_name("nonsense"), None);
    }

    #[test]
    fn events_are_trusted_to_queues_that_keep_them_long_enough() {
        const DAY: u64 = 86_400;
        let facts = |retention| Facts {
            dead: None,
            message_bytes: 1 << 20,
            retention,
        };
        let cases = [
            (None, None, None),
            (Some(14 * DAY), Some(14 * DAY), None),
            (Some(DAY), Some(14 * DAY), None),
            (Some(4 * DAY), None, None),
            (None, Some(DAY), None),
            (Some(DAY - 1), Some(14 * DAY), Some("https://host/1/a ")),
            (Some(60), None, Some("https://host/1/a ")),
            (
                Some(4 * DAY),
                Some(4 * DAY - 1),
                Some("https://host/1/a-dead "),
            ),
        ];
        for (queue, dead, refused) in cases {
            let pair = Pair {
                queue: facts(queue),
                dead: facts(dead),
                dead_url: "https://host/1/a-dead".into(),
            };
            let outcome = pair.check_retention("https://host/1/a");
            match refused {
                None => outcome.unwrap(),
                Some(url) => {
                    let error = outcome.unwrap_err();
                    assert!(error.is_retryable());
                    let text = error.to_string();
                    assert!(text.contains(&format!("--queue-url {url}")), "{text}");
                }
            }
        }
    }
}
