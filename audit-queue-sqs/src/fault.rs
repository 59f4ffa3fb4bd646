//! What SQS answers, in the terms of the log's errors.

use std::error::Error as StdError;

use audit_core::{Error, ErrorKind};
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};

use crate::options::name;

/// A call that failed as a whole.
///
/// All of these are worth a later try: SQS is away, too busy, or set up in a way that an operator
/// can change. What is a message's own fault is told apart before, by [`is_the_messages`].
pub(crate) fn from_call<E, R>(call: &'static str, url: &str, error: SdkError<E, R>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let code = error.code().map(str::to_owned);
    let message = match (&error, code) {
        (SdkError::ServiceError(_), Some(code)) if is_missing(&code) => missing(url),
        (SdkError::ServiceError(_), Some(code)) => {
            format!("SQS answered {code} to {call} on {url}")
        }
        (SdkError::ServiceError(_) | SdkError::ResponseError(_), None) => {
            format!("SQS gave no answer that can be read to {call} on {url}")
        }
        (SdkError::TimeoutError(_), _) => format!("SQS was too slow to answer {call} on {url}"),
        _ => format!("SQS can't be reached for {call} on {url}"),
    };
    Error::new(ErrorKind::Unavailable, message).with_source(error)
}

fn missing(url: &str) -> String {
    format!(
        "the queue {url} does not exist: create it with its dead-letter queue \
         (SqsQueue::create), or by hand (aws sqs create-queue --queue-name {})",
        name(url)
    )
}

/// AWS's name for a queue that isn't there, and that of the JSON protocol, which other servers use.
pub(crate) fn is_missing(code: &str) -> bool {
    matches!(
        code,
        "AWS.SimpleQueueService.NonExistentQueue" | "QueueDoesNotExist"
    )
}

/// A lease that was lost: somebody else may have the message, or it is gone. FIFO queues of AWS say
/// so as a wrong value of the parameter.
pub(crate) fn is_lost_lease(code: &str, message: Option<&str>) -> bool {
    match code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code) {
        "ReceiptHandleIsInvalid" | "MessageNotInflight" => true,
        "InvalidParameterValue" => message.is_some_and(|m| {
            m.contains("ReceiptHandle") && m.contains("expired") || m.contains("not available")
        }),
        _ => false,
    }
}

/// A refusal of what was sent, and not of the sender: without that message the call would succeed.
pub(crate) fn is_the_messages(code: &str) -> bool {
    matches!(
        code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code),
        "BatchRequestTooLong"
            | "InvalidAttributeValue"
            | "InvalidMessageContents"
            | "InvalidParameterValue"
            | "MessageTooLong"
    )
}

/// One message of a batch that SQS refused.
pub(crate) fn from_item(code: &str, detail: Option<&str>, sender_fault: bool) -> Error {
    if sender_fault && is_the_messages(code) {
        let detail = detail.unwrap_or("no reason given");
        return Error::field("body", format!("SQS refused it with {code}: {detail}"));
    }
    Error::new(
        ErrorKind::Unavailable,
        format!("SQS answered {code} for this message"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_queue_is_known_by_both_names_and_named_by_its_url() {
        assert!(is_missing("AWS.SimpleQueueService.NonExistentQueue"));
        assert!(is_missing("QueueDoesNotExist"));
        assert!(!is_missing("AccessDenied"));
        let text = missing("https://sqs.eu-central-1.amazonaws.com/1/audit");
        assert!(text.contains("https://sqs.eu-central-1.amazonaws.com/1/audit"));
        assert!(text.contains("--queue-name audit)"));
    }

    #[test]
    fn a_lost_lease_is_known_by_every_name_it_has() {
        let expired = "Value AQEB for parameter ReceiptHandle is invalid. Reason: The receipt \
                       handle has expired.";
        assert!(is_lost_lease("ReceiptHandleIsInvalid", None));
        assert!(is_lost_lease(
            "AWS.SimpleQueueService.MessageNotInflight",
            None
        ));
        assert!(is_lost_lease("InvalidParameterValue", Some(expired)));
        assert!(!is_lost_lease(
            "InvalidParameterValue",
            Some("VisibilityTimeout is invalid")
        ));
        assert!(!is_lost_lease("InternalError", None));
    }

    #[test]
    fn only_what_is_wrong_with_the_message_itself_is_final() {
        let refused = from_item("InvalidMessageContents", Some("no"), true);
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        for (code, sender_fault) in [
            ("InternalError", false),
            ("RequestThrottled", true),
            ("InvalidMessageContents", false),
        ] {
            let error = from_item(code, None, sender_fault);
            assert!(error.is_retryable(), "{code}");
        }
    }
}
