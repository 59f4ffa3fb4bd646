//! Events on their way through a queue: the message's form and its authentication.

use audit_tlog::{Timestamp, json as text};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::id::{EventId, TenantId};
use crate::queue::{Message, MessageKind};
use crate::tenant::TenantSecret;

/// An event that was accepted and is still to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) event: Event,
    pub(crate) subject: String,
    pub(crate) accepted_at: Timestamp,
}

/// The form of messages that this program writes, and the only one that it reads.
const VERSION: u32 = 1;

/// Writes a message: ASCII JSON with the event as base64, since some queues refuse characters that
/// an event may hold, and a MAC under a key of the tenant's.
pub(crate) fn seal_message(
    tenant: TenantId,
    secret: &TenantSecret,
    id: EventId,
    accepted: &Accepted,
) -> Message {
    let event = STANDARD.encode(accepted.event.to_json());
    let subject = STANDARD.encode(&accepted.subject);
    let at = accepted.accepted_at.to_string();
    let mac = STANDARD.encode(
        tag(secret, tenant, id, &event, &subject, &at)
            .finalize()
            .into_bytes(),
    );
    let body = format!(
        "{{\"v\":{VERSION},\"event\":\"{event}\",\"subject\":\"{subject}\",\"accepted_at\":\"{at}\",\"mac\":\"{mac}\"}}"
    );
    Message::new(tenant, MessageKind::Ingest, id, body)
}

/// Reads a message that [`seal_message`] wrote for this tenant.
///
/// # Errors
/// [`ErrorKind::Forbidden`] for a message that this log did not write; [`ErrorKind::Unavailable`] for
/// one of another version, which a newer program may have written: it is kept until such a one reads
/// it.
pub(crate) fn open_message(secret: &TenantSecret, message: &Message) -> Result<Accepted> {
    let refuse = || {
        Error::new(
            ErrorKind::Forbidden,
            "the message was not written by this log",
        )
    };
    let members = text::members(&message.body).map_err(|_| refuse())?;
    let version = members.iter().find(|m| m.name == "v").ok_or_else(refuse)?;
    if version.raw.parse::<u32>().map_err(|_| refuse())? != VERSION {
        return Err(Error::new(
            ErrorKind::Unavailable,
            "the message has a form that this program doesn't know: a newer one has to read it",
        ));
    }
    let string = |name: &str| {
        members
            .iter()
            .find(|m| m.name == name)
            .and_then(|m| text::string(m.raw).ok())
            .ok_or_else(refuse)
    };
    let (event, subject, at) = (string("event")?, string("subject")?, string("accepted_at")?);
    let mac = STANDARD
        .decode(string("mac")?.as_bytes())
        .map_err(|_| refuse())?;
    tag(secret, message.tenant, message.id, &event, &subject, &at)
        .verify_slice(&mac)
        .map_err(|_| refuse())?;
    let decode = |value: &str| {
        STANDARD
            .decode(value)
            .ok()
            .and_then(|b| String::from_utf8(b).ok())
            .ok_or_else(refuse)
    };
    Ok(Accepted {
        event: Event::from_json(&decode(&event)?)?.id(message.id),
        subject: decode(&subject)?,
        accepted_at: Timestamp::parse(&at).map_err(|_| refuse())?,
    })
}

fn tag(
    secret: &TenantSecret,
    tenant: TenantId,
    id: EventId,
    event: &str,
    subject: &str,
    at: &str,
) -> Hmac<Sha256> {
    #[allow(clippy::expect_used)] // HMAC takes keys of any length
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&secret.derive("audit-log/v1/ingest"))
        .expect("any key length");
    mac.update(tenant.as_uuid().as_bytes());
    mac.update(id.as_uuid().as_bytes());
    for part in [event, subject, at] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part.as_bytes());
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_the_log_did_not_write_is_refused() {
        let tenant = TenantId::new(uuid::Uuid::from_u128(1));
        let id = EventId::new(uuid::Uuid::from_u128(2));
        let secret = TenantSecret::new([7; 32]);
        let accepted = Accepted {
            event: Event::view("doc", "d").reason("grüße").id(id),
            subject: "ann".into(),
            accepted_at: Timestamp::MIN,
        };
        let message = seal_message(tenant, &secret, id, &accepted);
        assert!(message.body.is_ascii());
        assert_eq!(
            open_message(&secret, &message).unwrap().event.to_json(),
            accepted.event.to_json()
        );

        let mut edited = message.clone();
        edited.body = edited.body.replace("1970", "1971");
        let mut moved = message.clone();
        moved.tenant = TenantId::new(uuid::Uuid::from_u128(3));
        for message in [&edited, &moved] {
            let error = open_message(&secret, message).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Forbidden);
        }
        assert!(open_message(&TenantSecret::new([8; 32]), &message).is_err());
    }

    #[test]
    fn a_message_of_a_newer_form_is_left_for_a_newer_program() {
        let tenant = TenantId::new(uuid::Uuid::from_u128(1));
        let id = EventId::new(uuid::Uuid::from_u128(2));
        let body = r#"{"v":2,"sealed":"x"}"#.to_owned();
        let message = Message::new(tenant, MessageKind::Ingest, id, body);
        let error = open_message(&TenantSecret::new([7; 32]), &message).unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
    }
}
