//! Tickets: one-use rights to open a stream, for browsers, which can't send a header with a
//! WebSocket.
//!
//! The text of a ticket that was made with an API key ends with a dot and what that key is looked up by,
//! so that its stream ends when the key is revoked. A store looks up the whole text by its hash: nobody
//! can change a part of it.

use audit_core::{CredentialStore, SecretHash, Ticket, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::problem::{Problem, ProblemKind};

/// For how long a ticket may be used, in seconds.
pub const LIFETIME_SECONDS: u32 = 60;

/// Makes a ticket of 32 secret bytes, of an API key where the caller has one, and keeps it; the text is
/// what opens the stream.
pub(crate) async fn issue(
    store: &dyn CredentialStore,
    secret: [u8; 32],
    key: Option<SecretHash>,
    ticket: &Ticket,
    now: Timestamp,
) -> audit_core::Result<String> {
    let mut text = URL_SAFE_NO_PAD.encode(secret);
    if let Some(key) = key {
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(key, &mut text);
    }
    store
        .put_ticket(&Sha256::digest(text.as_bytes()).into(), ticket, now)
        .await?;
    Ok(text)
}

/// Takes a ticket: it never works again. With it comes what the API key is looked up by that made it.
pub(crate) async fn take(
    store: &dyn CredentialStore,
    text: &str,
    now: Timestamp,
) -> Result<(Ticket, Option<SecretHash>), Problem> {
    let ticket = store
        .take_ticket(&Sha256::digest(text.as_bytes()).into(), now)
        .await?
        .ok_or_else(|| {
            Problem::new(
                ProblemKind::Unauthorized,
                "the ticket is unknown, was used, or has expired",
            )
        })?;
    let key = match text.split_once('.') {
        None => None,
        Some((_, key)) => {
            let bytes = URL_SAFE_NO_PAD.decode(key).ok();
            let key = bytes.and_then(|bytes| SecretHash::try_from(bytes).ok());
            let bad = || Problem::new(ProblemKind::Internal, ProblemKind::Internal.title());
            Some(key.ok_or_else(bad)?)
        }
    };
    Ok((ticket, key))
}
