//! Signed notes: a text and the signatures under it, as C2SP `signed-note` writes them.
//!
//! Two of that page's signature types are known here: Ed25519 over the text (`0x01`, section
//! *Ed25519 signatures*), which a log signs its checkpoints with, and the timestamped cosignature
//! of a witness (`0x04`, C2SP `tlog-cosignature`, section *Ed25519 signed message*). Lines of other
//! types are kept as they are and ignored.
//!
//! Where the page leaves a choice, this reads one spelling only: base64 is canonical, and a note
//! that [`Note::parse`] accepts is the one that [`Note::encode`] writes.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer;
use sha2::{Digest, Sha256};

use crate::control::Vkey;

/// The most signatures that a note may have. The page asks for 16 at least.
pub const MAX_SIGNATURES: usize = 100;

/// The longest note, in bytes. It leaves room for [`MAX_SIGNATURES`] post-quantum signatures of
/// nearly 5 kB each.
pub const MAX_LEN: usize = 1_000_000;

/// The latest time of a cosignature, in seconds since the epoch (C2SP `tlog-cosignature`, *Format*).
pub const MAX_TIME: u64 = (1 << 63) - 1;

const SIGNATURE_START: &str = "— ";
const PRIVATE_KEY_START: &str = "PRIVATE+KEY+";
const COSIGNATURE_HEADER: &str = "cosignature/v1\n";

/// Why something is not a note or a key, or isn't signed as it has to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoteFault {
    /// Longer than [`MAX_LEN`].
    #[error("a note has at most {MAX_LEN} bytes")]
    TooLong,
    /// The text doesn't end in a newline, or has a control character other than newline.
    #[error("a note's text ends in a newline and has no other control characters")]
    Text,
    /// There is no blank line with signature lines after it.
    #[error("a note has a blank line and at least one signature line after its text")]
    Unsigned,
    /// More than [`MAX_SIGNATURES`].
    #[error("a note has at most {MAX_SIGNATURES} signatures")]
    TooManySignatures,
    /// Not an em dash, a space, a key name, a space and the base64 of more than four bytes.
    #[error("not a signature line")]
    SignatureLine,
    /// A key's name is empty, or has white space, a control character or a plus sign.
    #[error("a key's name is not empty and has neither white space nor control characters nor +")]
    Name,
    /// Not a verifier key of a known type, or its key id isn't that of its name and key.
    #[error("not a vkey of Ed25519 or of an Ed25519 cosigner")]
    Vkey,
    /// Not a signing key, or its key id isn't that of its name and key. The text isn't repeated.
    #[error("not an Ed25519 signing key of the form PRIVATE+KEY+name+id+key")]
    SigningKey,
    /// A cosignature's time is 0, or above [`MAX_TIME`].
    #[error("a cosignature's time is 1 to 2^63 - 1 seconds")]
    Time,
    /// A signature that has a known key's name and id isn't that key's.
    #[error("the signature of {0} is wrong")]
    BadSignature(String),
    /// No signature is a known key's.
    #[error("no signature is by a known key")]
    NoKnownKey,
}

/// What a key signs, and how: C2SP `signed-note`, section *Signature types*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Ed25519 (RFC 8032) over the note's text, type `0x01`.
    Ed25519,
    /// Ed25519 over `cosignature/v1`, a time and the note's text, type `0x04`.
    Cosignature,
}

impl Algorithm {
    /// The signature type identifier byte.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Ed25519 => 0x01,
            Self::Cosignature => 0x04,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::Ed25519),
            0x04 => Some(Self::Cosignature),
            _ => None,
        }
    }
}

/// Who may have signed: a name, an algorithm and an Ed25519 public key.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    name: String,
    algorithm: Algorithm,
    id: [u8; 4],
    key: ed25519_dalek::VerifyingKey,
}

impl VerifyingKey {
    /// The key of a name.
    ///
    /// # Errors
    ///
    /// [`NoteFault::Name`], or [`NoteFault::Vkey`] for 32 bytes that aren't a point on the curve.
    pub fn new(name: &str, algorithm: Algorithm, key: &[u8; 32]) -> Result<Self, NoteFault> {
        let point = ed25519_dalek::VerifyingKey::from_bytes(key).map_err(|_| NoteFault::Vkey)?;
        Self::of_point(name, algorithm, point)
    }

    fn of_point(
        name: &str,
        algorithm: Algorithm,
        key: ed25519_dalek::VerifyingKey,
    ) -> Result<Self, NoteFault> {
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            algorithm,
            id: key_id(name, algorithm, key.as_bytes()),
            key,
        })
    }

    /// Reads a vkey, `<name>+<key id, 8 hexadecimal digits>+<base64 of type and key>` (section
    /// *Verifier keys*); accepts only what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new), and [`NoteFault::Vkey`] for a wrong form, an unknown type or a key
    /// id that isn't that of the name and key.
    pub fn parse(text: &str) -> Result<Self, NoteFault> {
        let (name, algorithm, key) = read_vkey(text).ok_or(NoteFault::Vkey)?;
        Self::new(name, algorithm, &key)
    }

    /// The text form.
    #[must_use]
    pub fn encode(&self) -> String {
        write_vkey(&self.name, self.algorithm, self.key.as_bytes())
    }

    /// The name, which of a log's own key is the origin of its checkpoints.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it signs.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key id, `SHA-256(name ‖ LF ‖ type ‖ key)[0..4]`: short, to tell keys apart, no hash to
    /// rely on.
    #[must_use]
    pub const fn id(&self) -> [u8; 4] {
        self.id
    }

    /// The public key as RFC 8032 encodes it.
    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// The same key under another name.
    ///
    /// # Errors
    ///
    /// [`NoteFault::Name`].
    pub fn renamed(&self, name: &str) -> Result<Self, NoteFault> {
        Self::of_point(name, self.algorithm, self.key)
    }

    /// Whether a signature line bears this key's name and id, so that it has to be this key's.
    #[must_use]
    pub fn is_named_in(&self, signature: &Signature) -> bool {
        self.id == signature.id && self.name == signature.name
    }

    /// The signature's time, where it has one, if the signature is this key's over the text.
    fn check(&self, text: &str, signature: &[u8]) -> Option<Option<u64>> {
        // The strict check also refuses keys of small order, under which one signature fits many
        // texts.
        let holds = |message: &[u8], bytes: &[u8]| {
            ed25519_dalek::Signature::from_slice(bytes)
                .and_then(|signature| self.key.verify_strict(message, &signature))
                .ok()
        };
        match self.algorithm {
            Algorithm::Ed25519 => holds(text.as_bytes(), signature).map(|()| None),
            Algorithm::Cosignature => {
                let (time, bytes) = signature.split_first_chunk::<8>()?;
                let time = u64::from_be_bytes(*time);
                if time > MAX_TIME {
                    return None;
                }
                holds(cosigned(text, time).as_bytes(), bytes).map(|()| Some(time))
            }
        }
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.encode())
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VerifyingKey {
    type Err = NoteFault;

    fn from_str(text: &str) -> Result<Self, NoteFault> {
        Self::parse(text)
    }
}

/// Fails with [`NoteFault::Vkey`] where the 32 bytes aren't a point on the curve.
impl TryFrom<Vkey<'_>> for VerifyingKey {
    type Error = NoteFault;

    fn try_from(vkey: Vkey<'_>) -> Result<Self, NoteFault> {
        Self::new(vkey.name, Algorithm::Ed25519, &vkey.key)
    }
}

/// Signs notes with Ed25519 under a name. `Debug` doesn't show the secret, and it is wiped from
/// memory on drop.
#[derive(Clone)]
pub struct SigningKey {
    public: VerifyingKey,
    key: ed25519_dalek::SigningKey,
}

impl SigningKey {
    /// The key that RFC 8032 §5.1.5 makes of 32 bytes, which the caller draws at random.
    ///
    /// # Errors
    ///
    /// [`NoteFault::Name`].
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteFault> {
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        let public = VerifyingKey::of_point(name, Algorithm::Ed25519, key.verifying_key())?;
        Ok(Self { public, key })
    }

    /// Reads the text form of Go's `golang.org/x/mod/sumdb/note`,
    /// `PRIVATE+KEY+<name>+<key id, 8 hexadecimal digits>+<base64 of 0x01 and the 32 bytes>`;
    /// accepts only what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    ///
    /// [`NoteFault::SigningKey`].
    pub fn parse(text: &str) -> Result<Self, NoteFault> {
        let read = || {
            let (name, algorithm, seed) = key_parts(text.strip_prefix(PRIVATE_KEY_START)?)?;
            let key = Self::from_seed(name, &seed).ok()?;
            (algorithm == Algorithm::Ed25519 && key.encode() == text).then_some(key)
        };
        read().ok_or(NoteFault::SigningKey)
    }

    /// The text form. It holds the secret.
    #[must_use]
    pub fn encode(&self) -> String {
        let id = self.public.id();
        let secret = key_text(
            &self.public.name,
            id,
            Algorithm::Ed25519,
            self.key.as_bytes(),
        );
        format!("{PRIVATE_KEY_START}{secret}")
    }

    /// Whose signatures this makes.
    #[must_use]
    pub const fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.public.name
    }

    /// The same key pair under another name: one pair signs for many logs.
    ///
    /// # Errors
    ///
    /// [`NoteFault::Name`].
    pub fn renamed(&self, name: &str) -> Result<Self, NoteFault> {
        Ok(Self {
            public: self.public.renamed(name)?,
            key: self.key.clone(),
        })
    }

    fn sign(&self, text: &str) -> Signature {
        Signature {
            name: self.public.name.clone(),
            id: self.public.id,
            bytes: self.key.sign(text.as_bytes()).to_bytes().to_vec(),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public).finish()
    }
}

/// Signs as a witness: Ed25519 cosignatures with a time, C2SP `tlog-cosignature`.
///
/// It is made of a [`SigningKey`], whose text form is that of its key file too. The page asks that
/// one pair isn't used for two cosigners, since what is signed doesn't hold the cosigner's name.
#[derive(Clone)]
pub struct Cosigner {
    public: VerifyingKey,
    key: ed25519_dalek::SigningKey,
}

impl From<SigningKey> for Cosigner {
    fn from(signer: SigningKey) -> Self {
        let SigningKey { public, key } = signer;
        let id = key_id(&public.name, Algorithm::Cosignature, public.key.as_bytes());
        let public = VerifyingKey {
            algorithm: Algorithm::Cosignature,
            id,
            ..public
        };
        Self { public, key }
    }
}

impl Cosigner {
    /// Whose cosignatures this makes.
    #[must_use]
    pub const fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.public.name
    }

    /// States that at `time`, in seconds since the epoch, this text was the checkpoint of the
    /// largest tree of its log that the cosigner had seen. That the text is a checkpoint, and that
    /// the statement is true, is for [`witness`](crate::witness) to see to.
    ///
    /// # Errors
    ///
    /// [`NoteFault::Text`] or [`NoteFault::Time`].
    pub fn cosign(&self, text: &str, time: u64) -> Result<Signature, NoteFault> {
        check_text(text)?;
        if !(1..=MAX_TIME).contains(&time) {
            return Err(NoteFault::Time);
        }
        let signature = self.key.sign(cosigned(text, time).as_bytes());
        let mut bytes = time.to_be_bytes().to_vec();
        bytes.extend(signature.to_bytes());
        Ok(Signature {
            name: self.public.name.clone(),
            id: self.public.id,
            bytes,
        })
    }
}

impl fmt::Debug for Cosigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cosigner").field(&self.public).finish()
    }
}

/// One signature line of a note, by whatever key and of whatever type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    name: String,
    id: [u8; 4],
    bytes: Vec<u8>,
}

impl Signature {
    /// Reads a line, with or without its newline; accepts only what [`encode`](Self::encode)
    /// writes.
    ///
    /// # Errors
    ///
    /// [`NoteFault::SignatureLine`] or [`NoteFault::Name`].
    pub fn parse(line: &str) -> Result<Self, NoteFault> {
        let read = || {
            let line = line.strip_suffix('\n').unwrap_or(line);
            let (name, bytes) = line.strip_prefix(SIGNATURE_START)?.split_once(' ')?;
            let bytes = STANDARD.decode(bytes).ok()?;
            let (id, bytes) = bytes.split_first_chunk::<4>()?;
            (!bytes.is_empty()).then(|| (name, *id, bytes.to_vec()))
        };
        let (name, id, bytes) = read().ok_or(NoteFault::SignatureLine)?;
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            id,
            bytes,
        })
    }

    /// The line with its newline: em dash, space, name, space, base64 of key id and signature.
    #[must_use]
    pub fn encode(&self) -> String {
        let bytes = [&self.id, self.bytes.as_slice()].concat();
        format!(
            "{SIGNATURE_START}{} {}\n",
            self.name,
            STANDARD.encode(bytes)
        )
    }

    /// The name of the key that is said to have signed.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of the key that is said to have signed.
    #[must_use]
    pub const fn id(&self) -> [u8; 4] {
        self.id
    }

    /// The signature itself, without the key id; of a cosignature, 8 bytes of time come first.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A known key whose signature under a note holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The key.
    pub key: VerifyingKey,
    /// When a cosigner says that it signed, in seconds since the epoch; `None` from other keys.
    pub time: Option<u64>,
}

/// A text with signatures under it. Until [`verify`](Self::verify) has said who signed, the text is
/// anyone's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

impl Note {
    /// Reads a note without looking at who signed it.
    ///
    /// # Errors
    ///
    /// [`NoteFault::TooLong`], [`NoteFault::Text`], [`NoteFault::Unsigned`],
    /// [`NoteFault::TooManySignatures`], [`NoteFault::SignatureLine`] or [`NoteFault::Name`].
    pub fn parse(note: &str) -> Result<Self, NoteFault> {
        if note.len() > MAX_LEN {
            return Err(NoteFault::TooLong);
        }
        check_text(note)?;
        // The text may have blank lines of its own: the last one counts.
        let (text, lines) = note.rsplit_once("\n\n").ok_or(NoteFault::Unsigned)?;
        if lines.is_empty() {
            return Err(NoteFault::Unsigned);
        }
        let count = lines.split_inclusive('\n').count();
        if count > MAX_SIGNATURES {
            return Err(NoteFault::TooManySignatures);
        }
        Ok(Self {
            text: format!("{text}\n"),
            signatures: lines
                .split_inclusive('\n')
                .map(Signature::parse)
                .collect::<Result<_, _>>()?,
        })
    }

    /// The note as it is served and stored.
    #[must_use]
    pub fn encode(&self) -> String {
        let lines = self.signatures.iter().map(Signature::encode);
        format!("{}\n{}", self.text, lines.collect::<String>())
    }

    /// What is signed, with its final newline.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signature lines in their order, at least one.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Adds a signature line at the end, such as a witness's. A line that is there already isn't
    /// added again. Whether the signature holds is not looked at.
    ///
    /// # Errors
    ///
    /// [`NoteFault::TooManySignatures`] or [`NoteFault::TooLong`]; the note is then as it was.
    pub fn add(&mut self, signature: Signature) -> Result<(), NoteFault> {
        if self.signatures.contains(&signature) {
            return Ok(());
        }
        self.signatures.push(signature);
        let checked = check_limits(self);
        if checked.is_err() {
            self.signatures.pop();
        }
        checked
    }

    /// Adds a signature in place of those by the same key, where there are some: what a cosigner states
    /// later.
    ///
    /// # Errors
    ///
    /// As for [`add`](Self::add).
    pub fn replace(&mut self, signature: Signature) -> Result<(), NoteFault> {
        let mut replaced = self.clone();
        let is_by_other = |old: &Signature| (&old.name, old.id) != (&signature.name, signature.id);
        replaced.signatures.retain(is_by_other);
        replaced.add(signature)?;
        *self = replaced;
        Ok(())
    }

    /// The same text with one signature line in place of all others.
    pub(crate) fn with_only(&self, signature: Signature) -> Self {
        Self {
            text: self.text.clone(),
            signatures: vec![signature],
        }
    }

    /// Which of these keys signed, in the order of the lines. Lines of unknown keys are ignored,
    /// and so are those that share only a name or only an id with a known key. A key that signed
    /// more than once is listed once, by its first line; all its lines have to hold.
    ///
    /// # Errors
    ///
    /// [`NoteFault::BadSignature`] when a line with a known key's name and id isn't that key's,
    /// [`NoteFault::NoKnownKey`] when none of the keys signed.
    pub fn verify(&self, keys: &[VerifyingKey]) -> Result<Vec<Verified>, NoteFault> {
        let mut verified: Vec<Verified> = Vec::new();
        for signature in &self.signatures {
            let mut named = keys
                .iter()
                .filter(|key| key.is_named_in(signature))
                .peekable();
            if named.peek().is_none() {
                continue;
            }
            let signer = named.find_map(|key| {
                let time = key.check(&self.text, &signature.bytes)?;
                Some(Verified {
                    key: key.clone(),
                    time,
                })
            });
            let signer = signer.ok_or_else(|| NoteFault::BadSignature(signature.name.clone()))?;
            if verified.iter().all(|before| before.key != signer.key) {
                verified.push(signer);
            }
        }
        if verified.is_empty() {
            Err(NoteFault::NoKnownKey)
        } else {
            Ok(verified)
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encode())
    }
}

impl FromStr for Note {
    type Err = NoteFault;

    fn from_str(text: &str) -> Result<Self, NoteFault> {
        Self::parse(text)
    }
}

/// Signs a text with each of the keys, in their order. The same text and keys give the same note
/// again: Ed25519 has no randomness.
///
/// # Errors
///
/// [`NoteFault::Text`] for a text that doesn't end in a newline or has another control character,
/// [`NoteFault::Unsigned`] without a key, [`NoteFault::TooManySignatures`] or
/// [`NoteFault::TooLong`].
pub fn sign(text: &str, signers: &[&SigningKey]) -> Result<Note, NoteFault> {
    check_text(text)?;
    if signers.is_empty() {
        return Err(NoteFault::Unsigned);
    }
    let note = Note {
        text: text.to_owned(),
        signatures: signers.iter().map(|key| key.sign(text)).collect(),
    };
    check_limits(&note)?;
    Ok(note)
}

fn check_limits(note: &Note) -> Result<(), NoteFault> {
    if note.signatures.len() > MAX_SIGNATURES {
        Err(NoteFault::TooManySignatures)
    } else if note.encode().len() > MAX_LEN {
        Err(NoteFault::TooLong)
    } else {
        Ok(())
    }
}

fn check_text(text: &str) -> Result<(), NoteFault> {
    let control = |b: u8| b < b' ' && b != b'\n';
    if text.ends_with('\n') && !text.bytes().any(control) {
        Ok(())
    } else {
        Err(NoteFault::Text)
    }
}

fn check_name(name: &str) -> Result<(), NoteFault> {
    let excluded = |c: char| c == '+' || c < ' ' || c.is_whitespace();
    if name.is_empty() || name.contains(excluded) {
        Err(NoteFault::Name)
    } else {
        Ok(())
    }
}

/// What a cosigner signs: C2SP `tlog-cosignature`, section *Ed25519 signed message*.
fn cosigned(text: &str, time: u64) -> String {
    format!("{COSIGNATURE_HEADER}time {time}\n{text}")
}

/// The key id that C2SP `signed-note` recommends: `SHA-256(name ‖ LF ‖ type ‖ key)[0..4]`.
pub(crate) fn key_id(name: &str, algorithm: Algorithm, key: &[u8; 32]) -> [u8; 4] {
    let digest = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', algorithm.byte()])
        .chain_update(key)
        .finalize();
    [digest[0], digest[1], digest[2], digest[3]]
}

/// The text form of a vkey.
pub(crate) fn write_vkey(name: &str, algorithm: Algorithm, key: &[u8; 32]) -> String {
    key_text(name, key_id(name, algorithm, key), algorithm, key)
}

/// The parts of a vkey's text form, if that is its only spelling. Whether the name is a key name
/// and the key a point on the curve is left open.
pub(crate) fn read_vkey(text: &str) -> Option<(&str, Algorithm, [u8; 32])> {
    let (name, algorithm, key) = key_parts(text)?;
    (write_vkey(name, algorithm, &key) == text).then_some((name, algorithm, key))
}

/// `<name>+<key id>+<base64 of type and 32 bytes>`.
fn key_text(name: &str, id: [u8; 4], algorithm: Algorithm, key: &[u8; 32]) -> String {
    let id = u32::from_be_bytes(id);
    let mut bytes = [algorithm.byte(); 33];
    bytes[1..].copy_from_slice(key);
    format!("{name}+{id:08x}+{}", STANDARD.encode(bytes))
}

/// Takes a [`key_text`] apart, without looking at the key id.
fn key_parts(text: &str) -> Option<(&str, Algorithm, [u8; 32])> {
    let (name, rest) = text.split_once('+')?;
    // The base64 alphabet has a plus sign of its own.
    let (_, key) = rest.split_once('+')?;
    let bytes = STANDARD.decode(key).ok()?;
    let (&algorithm, key) = bytes.split_first()?;
    Some((name, Algorithm::from_byte(algorithm)?, key.try_into().ok()?))
}
