//! API keys: `audit_`, base62 of 32 random bytes, and a checksum of 6 characters.
//!
//! The store keeps a SHA-256: over 256 random bits a slow hash would add nothing but a way to be
//! taken down. The checksum tells a mistyped key from a revoked one without asking the store, and
//! lets scanners recognise a leaked key.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use audit_core::{ApiKey, Clock, CredentialStore, Principal, SecretHash, Timestamp};
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::problem::{Problem, ProblemKind};

/// What every key begins with.
pub const PREFIX: &str = "audit_";
const SECRET: usize = 43;
const CHECKSUM: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// For how long an answer of the store is trusted: at most so long does another process take to
/// notice that a key was revoked.
const TRUSTED_FOR: Duration = Duration::from_secs(5);
/// How often the last use of a key is noted.
const NOTED_EVERY: Duration = Duration::from_secs(60);

/// Writes a key of 32 random bytes.
pub(crate) fn print(secret: &[u8; 32]) -> String {
    let mut digits = [b'0'; SECRET];
    let mut number = *secret;
    for digit in digits.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            // A quotient of a value below 62 * 256 fits into a byte.
            *byte = (value / 62) as u8;
            rest = value % 62;
        }
        *digit = ALPHABET[rest as usize];
    }
    let mut key = String::with_capacity(PREFIX.len() + SECRET + CHECKSUM);
    key.push_str(PREFIX);
    key.extend(digits.map(char::from));
    let sum = checksum(&key);
    key.extend(sum.map(char::from));
    key
}

/// The checksum of prefix and secret: base62 of the first four bytes of their SHA-256.
fn checksum(body: &str) -> [u8; CHECKSUM] {
    let hash = Sha256::digest(body.as_bytes());
    let mut number = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(number % 62) as usize];
        number /= 62;
    }
    digits
}

/// Whether a text has the form of a key and its checksum is right.
pub(crate) fn is_well_formed(key: &str) -> bool {
    key.is_ascii()
        && key.len() == PREFIX.len() + SECRET + CHECKSUM
        && key.starts_with(PREFIX)
        && checksum(&key[..PREFIX.len() + SECRET]) == key.as_bytes()[PREFIX.len() + SECRET..]
}

/// What a store looks a key up by.
pub(crate) fn hash(key: &str) -> SecretHash {
    Sha256::digest(key.as_bytes()).into()
}

/// Looks keys up, with a short memory.
#[derive(Debug)]
pub(crate) struct ApiKeys {
    store: Arc<dyn CredentialStore>,
    clock: Arc<dyn Clock>,
    known: Cache<SecretHash, Option<Arc<ApiKey>>>,
    /// How often everything was forgotten.
    forgotten: AtomicU64,
    noted: Cache<Uuid, ()>,
}

impl ApiKeys {
    pub(crate) fn new(store: Arc<dyn CredentialStore>, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            clock,
            known: Cache::builder()
                .max_capacity(10_000)
                .time_to_live(TRUSTED_FOR)
                .build(),
            forgotten: AtomicU64::new(0),
            noted: Cache::builder()
                .max_capacity(10_000)
                .time_to_live(NOTED_EVERY)
                .build(),
        }
    }

    /// The key of this secret, as the store or the short memory knows it.
    pub(crate) async fn find(&self, hash: &SecretHash) -> audit_core::Result<Option<Arc<ApiKey>>> {
        if let Some(found) = self.known.get(hash) {
            return Ok(found);
        }
        let before = self.forgotten.load(Ordering::SeqCst);
        let found = self.store.find_key(hash).await?.map(Arc::new);
        self.known.insert(*hash, found.clone());
        // What was read before a revocation must not be remembered after it.
        if self.forgotten.load(Ordering::SeqCst) != before {
            self.known.invalidate(hash);
        }
        Ok(found)
    }

    /// Who asks with this key, until when, and what the key is looked up by.
    pub(crate) async fn principal(
        &self,
        key: &str,
    ) -> Result<(Principal, Option<Timestamp>, SecretHash), Problem> {
        let refuse = |detail: &str| Problem::new(ProblemKind::Unauthorized, detail);
        if !is_well_formed(key) {
            return Err(refuse("not an API key: its form or its checksum is wrong"));
        }
        let hash = hash(key);
        let found = self.find(&hash).await?;
        let key = found.ok_or_else(|| refuse("the API key is unknown or was revoked"))?;
        let now = self.clock.now();
        if key.expires_at.is_some_and(|at| at <= now) {
            return Err(refuse("the API key has expired"));
        }
        if !self.noted.contains_key(&key.id) {
            self.noted.insert(key.id, ());
            if let Err(error) = self.store.touch_key(key.id, now).await {
                tracing::warn!(%error, key = %key.id, "the use of an API key could not be noted");
            }
        }
        Ok((key.principal(), key.expires_at, hash))
    }

    /// Forgets everything, so that a revocation counts at once in this process.
    pub(crate) fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.known.invalidate_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_form_and_notices_a_typo() {
        for secret in [[0; 32], [0xff; 32], [7; 32]] {
            let key = print(&secret);
            assert_eq!(key.len(), 55);
            assert!(is_well_formed(&key), "{key}");
            let mut typo = key.clone().into_bytes();
            typo[20] = if typo[20] == b'a' { b'b' } else { b'a' };
            assert!(!is_well_formed(std::str::from_utf8(&typo).unwrap()));
        }
        assert_ne!(print(&[1; 32]), print(&[2; 32]));
        assert!(!is_well_formed("audit_"));
        assert!(!is_well_formed(&format!("audit_{}", "é".repeat(30))));
    }
}
