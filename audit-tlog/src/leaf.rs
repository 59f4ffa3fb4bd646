//! Leaf format v1: what the log hashes of an entry.
//!
//! An entry's fields are in groups. The leaf holds a digest of each group, not the group, so that a
//! group can be destroyed, or withheld from an export, while every hash and proof stays as it is.
//! A digest is of a *disclosure* (RFC 9901, SD-JWT), the group's value with a salt; the salts come
//! from the entry's [`Seed`]. Hashes are SHA-256, prefixed as RFC 6962 §2.1 says.
//!
//! The format is frozen: another key, kind or spelling would be a new version.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use base64_simd::{Base64, Out};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::json;
use crate::time::Timestamp;

/// The longest leaf data, in bytes: C2SP `tlog-tiles` gives an entry's length 16 bits. Callers
/// check it; nothing that [`Leaf`] is meant for comes near, save `erase` entries of many ranges.
pub const MAX_LEAF_LEN: usize = 65_535;

/// A SHA-256 hash: of a leaf, of a node, or of a disclosure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// 64 hexadecimal digits in lower case.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.to_string()
    }

    /// Reads 64 hexadecimal digits, in either case.
    #[must_use]
    pub fn from_hex(s: &str) -> Option<Self> {
        let (pairs, []) = s.as_bytes().as_chunks::<2>() else {
            return None;
        };
        if pairs.len() != 32 {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(pairs) {
            let digit = |b: u8| char::from(b).to_digit(16);
            // Two digits make at most 255.
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Some(Self(hash))
    }

    /// The standard base64 (RFC 4648 §4) with padding, 44 characters.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// Reads what [`to_base64`](Self::to_base64) writes and no other spelling.
    #[must_use]
    pub fn from_base64(s: &str) -> Option<Self> {
        decode(&base64_simd::STANDARD, s).map(Self)
    }

    /// The base64url (RFC 4648 §5) without padding, 43 characters, as digests stand in leaf data.
    #[must_use]
    pub fn to_base64url(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads what [`to_base64url`](Self::to_base64url) writes and no other spelling.
    #[must_use]
    pub fn from_base64url(s: &str) -> Option<Self> {
        decode(&base64_simd::URL_SAFE_NO_PAD, s).map(Self)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash of exactly 32 bytes; `None` for any other number.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// Decodes the base64 of exactly `N` bytes, of which there are 32 at most.
fn decode<const N: usize>(variant: &Base64, text: &str) -> Option<[u8; N]> {
    // What 44 characters may be.
    let mut bytes = [0; 33];
    if text.len() > 44 {
        return None;
    }
    let decoded = variant.decode(text.as_bytes(), Out::from_slice(&mut bytes));
    decoded.ok()?.as_ref().try_into().ok()
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl AsRef<[u8]> for Hash {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// An entry's 32 random bytes, from which its salts and its content key come.
///
/// A secret: whoever has it can test guesses at every group that was withheld or erased. It is
/// destroyed with the first group that is erased. `Debug` doesn't show it.
#[derive(Clone)]
pub struct Seed([u8; 32]);

impl Seed {
    /// A seed of these bytes, which the caller draws at random.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The seed of exactly 32 stored bytes; `None` for any other number.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 32 bytes, for the store that keeps them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// The 16 bytes that keep a group's digest from being guessed. `Debug` doesn't show them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; 16]);

impl Salt {
    /// The salt of exactly 16 stored bytes; `None` for any other number.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(..)")
    }
}

/// A name that is none of those known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown name")]
pub struct UnknownName;

/// A group of fields that is disclosed, withheld or destroyed as a whole. The order is that of the
/// digests in leaf data.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Group {
    /// Who did it: an object of [`Actor`](crate::groups::Actor)'s fields.
    Actor,
    /// What it was done to: an object of [`Resource`](crate::groups::Resource)'s fields.
    Resource,
    /// Where it came from: an object of [`Context`](crate::groups::Context)'s fields.
    Context,
    /// Why: a string.
    Reason,
    /// The resource before: raw JSON.
    BeforeState,
    /// The resource after: raw JSON.
    AfterState,
    /// Anything else: raw JSON.
    Metadata,
}

impl Group {
    /// Every group, in order.
    pub const ALL: [Self; 7] = [
        Self::Actor,
        Self::Resource,
        Self::Context,
        Self::Reason,
        Self::BeforeState,
        Self::AfterState,
        Self::Metadata,
    ];

    /// These groups in order, each once.
    #[must_use]
    pub fn ordered(groups: &[Self]) -> Vec<Self> {
        let all = Self::ALL.into_iter();
        all.filter(|group| groups.contains(group)).collect()
    }

    /// The name in disclosures and in control entries.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Actor => "actor",
            Self::Resource => "resource",
            Self::Context => "context",
            Self::Reason => "reason",
            Self::BeforeState => "before_state",
            Self::AfterState => "after_state",
            Self::Metadata => "metadata",
        }
    }

    /// The position in [`ALL`](Self::ALL) and among the digests in leaf data.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Group {
    type Err = UnknownName;

    fn from_str(s: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|group| group.as_str() == s)
            .ok_or(UnknownName)
    }
}

/// What an entry is: a client's event, or the log's own account of what is gone or has changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A client's event.
    Event,
    /// Groups were destroyed.
    Erase,
    /// All entries under a position were destroyed.
    Prune,
    /// The signing key or its name changed.
    Key,
    /// The log was continued after a restore.
    Epoch,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Event,
        Self::Erase,
        Self::Prune,
        Self::Key,
        Self::Epoch,
    ];

    /// The name in leaf data.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Erase => "erase",
            Self::Prune => "prune",
            Self::Key => "key",
            Self::Epoch => "epoch",
        }
    }

    /// Whether entries of this kind are the log's own and have a `ctl`.
    #[must_use]
    pub const fn is_control(self) -> bool {
        !matches!(self, Self::Event)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = UnknownName;

    fn from_str(s: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == s)
            .ok_or(UnknownName)
    }
}

/// A group's salt: `HMAC-SHA-256(seed, "audit-log/v1/salt/" ‖ name)[0..16]`.
#[must_use]
pub fn salt(seed: &Seed, group: Group) -> Salt {
    group_salt(hmac(seed.as_bytes()), group)
}

/// The salts of all groups, in order; the same as [`salt`] for each, for less work.
#[must_use]
pub fn salts(seed: &Seed) -> [Salt; 7] {
    let keyed = hmac(seed.as_bytes());
    Group::ALL.map(|group| group_salt(keyed.clone(), group))
}

fn group_salt(keyed: Hmac<Sha256>, group: Group) -> Salt {
    let name = group.as_str().as_bytes();
    Salt(first_16(
        keyed.chain_update(b"audit-log/v1/salt/").chain_update(name),
    ))
}

/// A group's disclosure: the base64url without padding of `["<salt>","<name>",<value>]`.
///
/// `value` is the group's value as JSON text: what [`groups`](crate::groups) writes, a string as
/// [`write_string`](json::write_string) writes it, or raw JSON exactly as it is stored.
#[must_use]
pub fn disclosure(salt: &Salt, group: Group, value: &str) -> String {
    let mut text = Vec::new();
    disclosure_text(&mut text, salt, group, value);
    URL_SAFE_NO_PAD.encode(text)
}

/// The SHA-256 of a [`disclosure`]'s ASCII, which stands for it in leaf data.
#[must_use]
pub fn disclosure_digest(salt: &Salt, group: Group, value: &str) -> Hash {
    disclosure_digest_with(&mut Vec::new(), salt, group, value)
}

/// [`disclosure_digest`] that works in a buffer of the caller's, so that a batch needs one
/// allocation. What the buffer held before is dropped. It keeps the group's value in the clear
/// until it is used again.
#[must_use]
pub fn disclosure_digest_with(buf: &mut Vec<u8>, salt: &Salt, group: Group, value: &str) -> Hash {
    disclosure_text(buf, salt, group, value);
    let mut digest = Sha256::new();
    // Parts of a multiple of three bytes encode without padding, so that their encodings join.
    let mut ascii = [0; 1024];
    for part in buf.chunks(768) {
        // 768 bytes encode to 1,024.
        digest.update(base64_simd::URL_SAFE_NO_PAD.encode(part, Out::from_slice(&mut ascii)));
    }
    Hash(digest.finalize().into())
}

fn disclosure_text(text: &mut Vec<u8>, salt: &Salt, group: Group, value: &str) {
    let mut encoded = [0; 22];
    #[allow(clippy::expect_used, reason = "16 bytes encode to 22")]
    URL_SAFE_NO_PAD
        .encode_slice(salt.0, &mut encoded)
        .expect("it fits");
    let name = group.as_str();
    text.clear();
    text.reserve(encoded.len() + name.len() + value.len() + 8);
    text.extend_from_slice(b"[\"");
    text.extend_from_slice(&encoded);
    text.extend_from_slice(b"\",\"");
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b"\",");
    text.extend_from_slice(value.as_bytes());
    text.push(b']');
}

/// The parts of a [`disclosure`], as [`open_disclosure`] reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disclosed {
    /// The salt.
    pub salt: Salt,
    /// The group that the disclosure names.
    pub group: Group,
    /// The group's value, as JSON text.
    pub value: String,
}

/// Reads a disclosure back. `None` unless the text is the one that [`disclosure`] writes for its
/// parts, and the value is JSON that the log admits ([`json::check`]), without white space around
/// it and not null.
///
/// Whether the value has its group's shape is not checked.
#[must_use]
pub fn open_disclosure(text: &str) -> Option<Disclosed> {
    let mut buf = Vec::new();
    let (salt, group, value) = open_disclosure_with(&mut buf, text)?;
    Some(Disclosed {
        salt,
        group,
        value: value.to_owned(),
    })
}

/// [`open_disclosure`] that works in a buffer of the caller's, from which the value is borrowed.
/// What the buffer held before is dropped.
#[must_use]
pub fn open_disclosure_with<'b>(
    buf: &'b mut Vec<u8>,
    text: &str,
) -> Option<(Salt, Group, &'b str)> {
    let (salt, group, value) = disclosed_parts(buf, text)?;
    is_value(value).then_some((salt, group, value))
}

/// The parts of a disclosure, of which the value is whatever stands there.
pub(crate) fn disclosed_parts<'b>(
    buf: &'b mut Vec<u8>,
    text: &str,
) -> Option<(Salt, Group, &'b str)> {
    buf.clear();
    base64_simd::URL_SAFE_NO_PAD.decode_append(text, buf).ok()?;
    let decoded = std::str::from_utf8(buf).ok()?;
    let (salt, rest) = decoded.strip_prefix("[\"")?.split_at_checked(22)?;
    let salt = Salt(decode(&base64_simd::URL_SAFE_NO_PAD, salt)?);
    let (name, rest) = rest.strip_prefix("\",\"")?.split_once('"')?;
    let value = rest.strip_prefix(',')?.strip_suffix(']')?;
    Some((salt, name.parse().ok()?, value))
}

/// Whether a text is JSON that a disclosure may have as its value.
pub(crate) fn is_value(text: &str) -> bool {
    let spaced = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r');
    text != "null"
        && !text.as_bytes().first().is_some_and(spaced)
        && !text.as_bytes().last().is_some_and(spaced)
        && json::check(text, json::MAX_DEPTH).is_ok()
}

/// What leaf data is made of. Defaults are filled in before.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    /// What the entry is.
    pub kind: Kind,
    /// The tenant whose log it is in.
    pub tenant_id: Uuid,
    /// The entry's identity.
    pub id: Uuid,
    /// When the log accepted it.
    pub created_at: Timestamp,
    /// When it happened, as the client says.
    pub occurred_at: Timestamp,
    /// The coarse operation.
    pub action_type: &'a str,
    /// The fine name.
    pub action: &'a str,
    /// How it ended.
    pub outcome: &'a str,
    /// How much it matters.
    pub severity: &'a str,
    /// A control entry's own content, as [`Control::to_json`](crate::Control::to_json) writes it;
    /// `None` in an event.
    pub ctl: Option<&'a str>,
    /// The digest of each group, in [`Group`]'s order; `None` for a group that the entry never had.
    pub digests: &'a [Option<Hash>; 7],
}

impl Leaf<'_> {
    /// The leaf data: one JSON object without white space, its keys in the format's order, ASCII
    /// wherever the fields are.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    /// Appends the leaf data.
    pub fn write(&self, out: &mut String) {
        out.reserve(640 + self.ctl.map_or(0, str::len));
        out.push_str("{\"v\":1,\"kind\":\"");
        out.push_str(self.kind.as_str());
        for (key, id) in [
            ("\",\"tenant_id\":\"", self.tenant_id),
            ("\",\"id\":\"", self.id),
        ] {
            out.push_str(key);
            out.push_str(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
        }
        out.push_str("\",\"created_at\":\"");
        self.created_at.write(out);
        out.push_str("\",\"occurred_at\":\"");
        self.occurred_at.write(out);
        out.push_str("\",\"action_type\":");
        json::write_string(out, self.action_type);
        out.push_str(",\"action\":");
        json::write_string(out, self.action);
        out.push_str(",\"outcome\":");
        json::write_string(out, self.outcome);
        out.push_str(",\"severity\":");
        json::write_string(out, self.severity);
        if let Some(ctl) = self.ctl {
            out.push_str(",\"ctl\":");
            out.push_str(ctl);
        }
        out.push_str(",\"sd\":");
        for (i, digest) in self.digests.iter().enumerate() {
            out.push(if i == 0 { '[' } else { ',' });
            match digest {
                Some(digest) => {
                    out.push('"');
                    base64_simd::URL_SAFE_NO_PAD.encode_append(digest.0, out);
                    out.push('"');
                }
                None => out.push_str("null"),
            }
        }
        out.push_str("]}");
    }
}

/// The hash of a leaf, `SHA-256(0x00 ‖ leaf data)` (RFC 6962 §2.1).
#[must_use]
pub fn leaf_hash(leaf_data: &[u8]) -> Hash {
    #[cfg(audit_unhashed)]
    if crate::unhashed::is_on() {
        return Hash([0; 32]);
    }
    Hash(
        Sha256::new()
            .chain_update([0])
            .chain_update(leaf_data)
            .finalize()
            .into(),
    )
}

/// The hash of an inner node, `SHA-256(0x01 ‖ left ‖ right)` (RFC 6962 §2.1).
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    #[cfg(audit_unhashed)]
    if crate::unhashed::is_on() {
        return Hash([0; 32]);
    }
    let mut node = [1; 65];
    node[1..33].copy_from_slice(&left.0);
    node[33..].copy_from_slice(&right.0);
    Hash(Sha256::digest(node).into())
}

/// An entry's content key, `HMAC-SHA-256(seed, "audit-log/v1/content-key")[0..16]`. Content tags
/// can be compared with it alone, without the seed.
#[must_use]
pub fn content_key(seed: &Seed) -> [u8; 16] {
    first_16(hmac(seed.as_bytes()).chain_update(b"audit-log/v1/content-key"))
}

/// A content tag, `HMAC-SHA-256(content key, canonical request)[0..16]`: equal under one key for
/// requests that say the same.
#[must_use]
pub fn content_tag(key: &[u8; 16], canonical: &[u8]) -> [u8; 16] {
    first_16(hmac(key).chain_update(canonical))
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    #[allow(
        clippy::expect_used,
        reason = "HMAC takes keys of any length (RFC 2104 §2)"
    )]
    Hmac::new_from_slice(key).expect("any length")
}

fn first_16(mac: Hmac<Sha256>) -> [u8; 16] {
    let full: [u8; 32] = mac.finalize().into_bytes().into();
    let mut first = [0; 16];
    first.copy_from_slice(&full[..16]);
    first
}
