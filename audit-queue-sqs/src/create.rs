//! Making a queue and its dead-letter queue.

use audit_core::{Error, ErrorKind, Result};
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;

use crate::api::Api;
use crate::facts::{Facts, RETENTION, facts};
use crate::fault::{from_call, is_missing};
use crate::options::SqsOptions;

/// The most bytes of a message that AWS takes.
const MESSAGE: &str = "1048576";

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
        Ok(_) => facts(api, options, &options.url).await.map(Some),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_letter_queue_is_of_its_queues_kind() {
        assert_eq!(dead_queue_name("a.fifo"), "a-dead.fifo");
        assert_eq!(dead_queue_name("a"), "a-dead");
    }
}
