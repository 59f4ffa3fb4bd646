//! A message as SQS carries it.

use std::collections::HashMap;

use audit_core::{DeadLetter, Error, Message, MessageKind, Result, Timestamp};
use aws_sdk_sqs::types::{
    Message as Received, MessageAttributeValue, MessageSystemAttributeName,
    SendMessageBatchRequestEntry,
};
use sha2::{Digest, Sha256};

const TENANT: &str = "tenant";
const KIND: &str = "kind";
const ID: &str = "id";
/// Of a dead letter: why, and when.
const REASON: &str = "reason";
const DIED_AT: &str = "died_at";

/// The type of every attribute.
const TYPE: &str = "String";

/// The most characters of a reason.
const REASON_LENGTH: usize = 1_000;

/// Bytes that a message leaves free when it is sent, for what its dead letter has besides.
pub(crate) const ROOM: usize = 256;

/// A message on its way out.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    body: String,
    attributes: Vec<(&'static str, String)>,
    order: Option<Order>,
}

/// What a FIFO queue wants to know.
#[derive(Debug, Clone)]
struct Order {
    group: String,
    deduplication: String,
}

impl Outgoing {
    /// A message to the queue. On a FIFO queue the tenant's messages keep their order, and the same
    /// id with the same body within five minutes is one message.
    pub(crate) fn new(message: &Message, fifo: bool) -> Self {
        Self::ordered(message, fifo, message.tenant.to_string(), || {
            deduplication(&[&message.id.to_string(), &message.body])
        })
    }

    /// A dead letter that is sent again. It differs from the first one, which SQS may remember
    /// still; and the same dead letter, after a crash between its sending and its removal, doesn't.
    pub(crate) fn redriven(message: &Message, letter: &str, fifo: bool) -> Self {
        Self::ordered(message, fifo, message.tenant.to_string(), || {
            deduplication(&["redriven", letter])
        })
    }

    /// A dead letter of at most so many bytes, for which its reason is cut, and the time of its death
    /// left out: the message matters more. Each is a group of its own, for a FIFO queue shows a
    /// group's next message only when the one before is done with.
    pub(crate) fn dead(
        message: &Message,
        delivered: &str,
        fifo: bool,
        reason: &str,
        died_at: Timestamp,
        most: usize,
    ) -> Self {
        let mut outgoing = Self::ordered(message, fifo, message.id.to_string(), || {
            deduplication(&["dead", delivered])
        });
        outgoing.attributes.push((DIED_AT, died_at.to_string()));
        if outgoing.size() > most {
            outgoing.attributes.pop();
        }
        let left = most.saturating_sub(outgoing.size() + REASON.len() + TYPE.len());
        let reason = reason.chars().take(REASON_LENGTH).map(allowed);
        let reason = reason.scan(0, |bytes, c| {
            *bytes += c.len_utf8();
            (*bytes <= left).then_some(c)
        });
        let reason: String = reason.collect();
        if !reason.is_empty() {
            outgoing.attributes.push((REASON, reason));
        }
        outgoing
    }

    fn ordered(
        message: &Message,
        fifo: bool,
        group: String,
        deduplication: impl FnOnce() -> String,
    ) -> Self {
        Self {
            body: message.body.clone(),
            attributes: vec![
                (TENANT, message.tenant.to_string()),
                (KIND, message.kind.as_str().to_owned()),
                (ID, message.id.to_string()),
            ],
            order: fifo.then(|| Order {
                group,
                deduplication: deduplication(),
            }),
        }
    }

    /// Bytes as SQS counts them: the body, and each attribute's name, type and value.
    pub(crate) fn size(&self) -> usize {
        let attribute = |(name, value): &(&str, String)| name.len() + TYPE.len() + value.len();
        self.body.len() + self.attributes.iter().map(attribute).sum::<usize>()
    }

    /// The entry of a batch, named by its place in it.
    pub(crate) fn entry(&self, place: usize) -> Result<SendMessageBatchRequestEntry> {
        let mut attributes = HashMap::with_capacity(self.attributes.len());
        for (name, value) in &self.attributes {
            let value = MessageAttributeValue::builder()
                .data_type(TYPE)
                .string_value(value)
                .build()
                .map_err(unbuilt)?;
            attributes.insert((*name).to_owned(), value);
        }
        let order = self.order.as_ref();
        SendMessageBatchRequestEntry::builder()
            .id(place.to_string())
            .message_body(&self.body)
            .set_message_attributes(Some(attributes))
            .set_message_group_id(order.map(|o| o.group.clone()))
            .set_message_deduplication_id(order.map(|o| o.deduplication.clone()))
            .build()
            .map_err(unbuilt)
    }
}

/// A request that lacks something: a bug of this crate.
pub(crate) fn unbuilt(error: aws_sdk_sqs::error::BuildError) -> Error {
    Error::new(
        audit_core::ErrorKind::Internal,
        "the request to SQS lacks something",
    )
    .with_source(error)
}

/// SHA-256 over the parts and their lengths, in hexadecimal: at most 128 characters are allowed.
pub(crate) fn deduplication(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// SQS takes the characters of XML 1.0 §2.2 and refuses a message with any other.
fn allowed(c: char) -> char {
    match c {
        '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{1_0000}'.. => c,
        _ => '\u{FFFD}',
    }
}

/// What was received, when it is a message that this crate sent.
pub(crate) fn read(received: &Received) -> Option<Message> {
    Some(Message::new(
        attribute(received, TENANT)?.parse().ok()?,
        MessageKind::parse(attribute(received, KIND)?)?,
        attribute(received, ID)?.parse().ok()?,
        received.body()?.to_owned(),
    ))
}

/// How often it was delivered.
pub(crate) fn attempts(received: &Received) -> u32 {
    system(
        received,
        &MessageSystemAttributeName::ApproximateReceiveCount,
    )
    .and_then(|count| count.parse().ok())
    .unwrap_or(1)
}

/// A message of the dead-letter queue. What SQS moved there itself has no reason and no time of
/// death, and neither has what left no room for them: then it says so, and has the time when it was
/// sent.
pub(crate) fn read_dead(received: &Received) -> Option<DeadLetter> {
    let message = read(received)?;
    let died_at = match attribute(received, DIED_AT) {
        Some(at) => Timestamp::parse(at).ok()?,
        None => system(received, &MessageSystemAttributeName::SentTimestamp)
            .and_then(|millis| millis.parse::<i64>().ok())
            .and_then(|millis| Timestamp::from_micros(millis.saturating_mul(1_000)))?,
    };
    let reason = match (attribute(received, REASON), attribute(received, DIED_AT)) {
        (Some(reason), _) => reason,
        (None, Some(_)) => "no reason was given",
        (None, None) => {
            "delivered too often without an answer: SQS moved it here (or too large for a reason)"
        }
    };
    let handle = received.message_id()?;
    Some(DeadLetter::new(handle, message, reason, died_at))
}

fn attribute<'a>(received: &'a Received, name: &str) -> Option<&'a str> {
    received.message_attributes()?.get(name)?.string_value()
}

fn system<'a>(received: &'a Received, name: &MessageSystemAttributeName) -> Option<&'a str> {
    received.attributes()?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use audit_core::{EventId, TenantId};

    use super::*;

    fn message(body: &str) -> Message {
        let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse().unwrap();
        let id: EventId = "0190a000-0000-7000-8000-000000000002".parse().unwrap();
        Message::new(tenant, MessageKind::Ingest, id, body.into())
    }

    fn received(outgoing: &Outgoing) -> Received {
        let entry = outgoing.entry(0).unwrap();
        Received::builder()
            .message_id("m")
            .body(entry.message_body())
            .set_message_attributes(entry.message_attributes().cloned())
            .build()
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let message = message("{}");
        let outgoing = Outgoing::new(&message, true);
        assert_eq!(read(&received(&outgoing)), Some(message.clone()));
        let entry = outgoing.entry(3).unwrap();
        assert_eq!(entry.id(), "3");
        assert_eq!(
            entry.message_group_id(),
            Some("0190a000-0000-7000-8000-000000000001")
        );
        assert_eq!(entry.message_deduplication_id().map(str::len), Some(64));
        let standard = Outgoing::new(&message, false).entry(0).unwrap();
        assert_eq!(standard.message_group_id(), None);
        assert_eq!(standard.message_deduplication_id(), None);
    }

    #[test]
    fn the_deduplication_id_depends_on_id_and_body() {
        let of = |m: &Message| {
            let entry = Outgoing::new(m, true).entry(0).unwrap();
            entry.message_deduplication_id().unwrap().to_owned()
        };
        let one = message("{}");
        let mut other = one.clone();
        assert_eq!(of(&one), of(&other));
        other.body.push(' ');
        assert_ne!(of(&one), of(&other));
        let mut other = one.clone();
        other.id = "0190a000-0000-7000-8000-000000000003".parse().unwrap();
        assert_ne!(of(&one), of(&other));
    }

    #[test]
    fn a_reason_that_sqs_would_refuse_is_made_fit() {
        let at = Timestamp::parse("2026-11-24T03:00:00Z").unwrap();
        let reason = format!("a\u{1}b\u{FFFF}{}", "x".repeat(2_000));
        let outgoing = Outgoing::dead(&message("{}"), "m", false, &reason, at, 1 << 20);
        let letter = read_dead(&received(&outgoing)).unwrap();
        assert!(letter.reason.starts_with("a\u{FFFD}b\u{FFFD}xx"));
        assert_eq!(letter.reason.chars().count(), REASON_LENGTH);
        assert_eq!(letter.died_at, at);
        let outgoing = Outgoing::dead(&message("{}"), "m", false, "", at, 1 << 20);
        let letter = read_dead(&received(&outgoing)).unwrap();
        assert_eq!(letter.reason, "no reason was given");
    }

    #[test]
    fn a_message_as_large_as_the_queue_takes_can_be_a_dead_letter() {
        let at = Timestamp::parse("2026-11-24T03:00:00Z").unwrap();
        let reason = "ü".repeat(2_000);
        let message = message(&"x".repeat(5_000));
        let size = Outgoing::new(&message, false).size();
        for left in 0..3_000 {
            let most = size + left;
            let outgoing = Outgoing::dead(&message, "m", false, &reason, at, most);
            assert!(outgoing.size() <= most, "{left}");
            let letter = received(&outgoing);
            assert_eq!(read(&letter).as_ref(), Some(&message), "{left}");
            if left >= ROOM {
                let letter = read_dead(&letter).unwrap();
                assert_eq!(letter.died_at, at);
                let length = letter.reason.chars().count();
                assert!(length >= 100.min(left / 2), "{left}: {length}");
                assert!(reason.starts_with(&letter.reason), "{left}");
            }
        }
    }

    #[test]
    fn what_lacks_an_attribute_is_not_ours() {
        let whole = received(&Outgoing::new(&message("{}"), false));
        for name in [TENANT, KIND, ID] {
            let mut lacking = whole.clone();
            let mut attributes = lacking.message_attributes.take().unwrap();
            attributes.remove(name);
            lacking.message_attributes = Some(attributes);
            assert_eq!(read(&lacking), None, "{name}");
        }
    }
}
