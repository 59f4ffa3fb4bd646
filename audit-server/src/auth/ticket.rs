//! Tickets: one-use rights to open a stream, for browsers, which can't send a header with a
//! WebSocket.

use audit_core::{CredentialStore, Ticket, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::problem::{Problem, ProblemKind};

/// For how long a ticket may be used, in seconds.
pub const LIFETIME_SECONDS: u32 = 60;

/// Makes a ticket of 32 secret bytes and keeps it; the text is what opens the stream.
pub(crate) async fn issue(
    store: &dyn CredentialStore,
    secret: [u8; 32],
    ticket: &Ticket,
    now: Timestamp,
) -> audit_core::Result<String> {
    let text = URL_SAFE_NO_PAD.encode(secret);
    store
        .put_ticket(&Sha256::digest(text.as_bytes()).into(), ticket, now)
        .await?;
    Ok(text)
}

/// Takes a ticket: it never works again.
pub(crate) async fn take(
    store: &dyn CredentialStore,
    text: &str,
    now: Timestamp,
) -> Result<Ticket, Problem> {
    store
        .take_ticket(&Sha256::digest(text.as_bytes()).into(), now)
        .await?
        .ok_or_else(|| {
            Problem::new(
                ProblemKind::Unauthorized,
                "the ticket is unknown, was used, or has expired",
            )
        })
}
