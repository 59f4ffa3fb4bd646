//! Making a queue and its dead-letter queue.

use audit_core::{Error, ErrorKind, Result};
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;

use crate::api::Api;
use crate::fault::{from_call, is_missing};
use crate::options::{SqsOptions, name};

/// SQS keeps a message for this long at most: 14 days, in seconds.
const RETENTION: &str = "1209600";
/// The most bytes of a message that AWS takes.
const MESSAGE: &str = "1048576";

/// What a queue says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// The dead-letter queue of its redrive policy.
    pub(crate) dead: Option<String>,
    /// The most bytes of a message.
    pub(crate) message_bytes: usize,
}

/// Asks a queue about itself.
pub(crate) async fn facts(api: &Api, options: &SqsOptions) -> Result<Facts> {
    let answer = api
        .client()
        .get_queue_attributes()
        .queue_url(&options.url)
        .attribute_names(Attribute::All)
        .send()
        .await
        .map_err(|error| from_call("GetQueueAttributes", &options.url, error))?;
    let attribute = |name| answer.attributes()?.get(&name).map(String::as_str);
    Ok(Facts {
        dead: attribute(Attribute::RedrivePolicy)
            .and_then(dead_name)
            .map(|name| options.sibling(&name)),
        message_bytes: attribute(Attribute::MaximumMessageSize)
            .and_then(|bytes| bytes.parse().ok())
            .unwrap_or(1 << 20),
    })
}

/// The name of the dead-letter queue in a redrive policy, which is of the same account and region.
fn dead_name(policy: &str) -> Option<String> {
    let policy: serde_json::Value = serde_json::from_str(policy).ok()?;
    let arn = policy.get("deadLetterTargetArn")?.as_str()?;
    arn.rsplit(':').next().map(str::to_owned)
}

/// Makes the queue and its dead-letter queue, each where it is missing, and gives a queue without a
/// redrive policy one. What is there is left as it is.
pub(crate) async fn create(api: &Api, options: &SqsOptions) -> Result<()> {
    if let Some(facts) = existing(api, options).await?
        && facts.dead.is_some()
    {
        return Ok(());
    }
    let dead = dead_queue_name(options.name());
    let url = make(api, options, &dead, None).await?;
    let policy = serde_json::json!({
        "deadLetterTargetArn": arn(api, &url).await?,
        "maxReceiveCount": options.max_receives,
    })
    .to_string();
    if existing(api, options).await?.is_none() {
        make(api, options, options.name(), Some(&policy)).await?;
        return Ok(());
    }
    api.client()
        .set_queue_attributes()
        .queue_url(&options.url)
        .attributes(Attribute::RedrivePolicy, policy)
        .send()
        .await
        .map_err(|error| from_call("SetQueueAttributes", &options.url, error))?;
    Ok(())
}

async fn existing(api: &Api, options: &SqsOptions) -> Result<Option<Facts>> {
    let answer = api
        .client()
        .get_queue_url()
        .queue_name(options.name())
        .send()
        .await;
    match answer {
        Ok(_) => facts(api, options).await.map(Some),
        Err(error) if error.code().is_some_and(is_missing) => Ok(None),
        Err(error) => Err(from_call("GetQueueUrl", &options.url, error)),
    }
}

/// Makes a queue, unless somebody has meanwhile. Returns its URL.
async fn make(
    api: &Api,
    options: &SqsOptions,
    name: &str,
    redrive_policy: Option<&str>,
) -> Result<String> {
    let url = options.sibling(name);
    let mut call = api
        .client()
        .create_queue()
        .queue_name(name)
        .attributes(Attribute::MessageRetentionPeriod, RETENTION)
        .attributes(Attribute::MaximumMessageSize, MESSAGE)
        .attributes(Attribute::SqsManagedSseEnabled, "true");
    if let Some(policy) = redrive_policy {
        call = call.attributes(Attribute::RedrivePolicy, policy);
    }
    if options.is_fifo() {
        // Order and deduplication by tenant, and with that no limit for all tenants together.
        call = call
            .attributes(Attribute::FifoQueue, "true")
            .attributes(Attribute::DeduplicationScope, "messageGroup")
            .attributes(Attribute::FifoThroughputLimit, "perMessageGroupId");
    }
    match call.send().await {
        Ok(_) => Ok(url),
        // It has other attributes than these, as its maker wanted it.
        Err(error) if error.code().is_some_and(is_there) => Ok(url),
        Err(error) => Err(from_call("CreateQueue", &url, error)),
    }
}

/// AWS's name for a queue that is there with other attributes, and that of the JSON protocol.
fn is_there(code: &str) -> bool {
    matches!(code, "QueueAlreadyExists" | "QueueNameExists")
}

async fn arn(api: &Api, url: &str) -> Result<String> {
    let answer = api
        .client()
        .get_queue_attributes()
        .queue_url(url)
        .attribute_names(Attribute::QueueArn)
        .send()
        .await
        .map_err(|error| from_call("GetQueueAttributes", url, error))?;
    answer
        .attributes()
        .and_then(|attributes| attributes.get(&Attribute::QueueArn).cloned())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Internal,
                format!("SQS did not tell the ARN of {url}"),
            )
        })
}

/// `audit` has `audit-dead`, `audit.fifo` has `audit-dead.fifo`: a FIFO queue's is one, too.
pub(crate) fn dead_queue_name(name: &str) -> String {
    match name.strip_suffix(".fifo") {
        Some(name) => format!("{name}-dead.fifo"),
        None => format!("{name}-dead"),
    }
}

/// A queue without a dead-letter queue is not one that events can be trusted to.
pub(crate) fn without_dead_letters(url: &str) -> Error {
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
        assert_eq!(dead_queue_name("a.fifo"), "a-dead.fifo");
        assert_eq!(dead_queue_name("a"), "a-dead");
    }
}
