//! Checkpoints: a log's head, signed, as C2SP `tlog-checkpoint` writes it; and how this project's
//! logs are named.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::leaf::Hash;
use crate::note::{self, Algorithm, Note, NoteFault, SigningKey, Verified, VerifyingKey};

/// Trees have fewer leaves than this.
pub const SIZE_END: u64 = 1 << 63;

/// The longest configured origin, in characters.
pub const MAX_ORIGIN_LEN: usize = 200;

/// The epoch that a log begins with; its name doesn't tell it.
pub const FIRST_EPOCH: u64 = 1;

/// The last part of the deployment log's name.
const DEPLOYMENT: &str = "deployment";

/// Not an origin that can be configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an origin is 1 to {MAX_ORIGIN_LEN} of A-Z a-z 0-9 . _ - / : without scheme or trailing slash, \
     and its last part is not e and a number"
)]
pub struct OriginFault;

/// What a deployment's logs are named after, such as `logs.example.com/audit`: a URL without its
/// scheme, as C2SP `tlog-checkpoint` (*Note text*) recommends.
///
/// 1 to [`MAX_ORIGIN_LEN`] of `A-Z a-z 0-9 . _ - / :`, without `://` and without a trailing slash.
/// A last part of the form of an epoch (`e2`) is refused: the first epoch of one origin's logs would
/// have the names of a later epoch of another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin(String);

impl Origin {
    /// Reads a configured origin.
    ///
    /// # Errors
    ///
    /// [`OriginFault`] for whatever breaks the rules above.
    pub fn parse(text: &str) -> Result<Self, OriginFault> {
        let known = |b| matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/' | b':');
        let last = text.rsplit('/').next().unwrap_or(text);
        let fits = (1..=MAX_ORIGIN_LEN).contains(&text.len())
            && text.bytes().all(known)
            && !text.contains("://")
            && !text.ends_with('/')
            && epoch_part(last).is_none();
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(OriginFault)
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The origin of a tenant's log, which is the name of its key too: `<origin>/<tenant>` in the
    /// [`FIRST_EPOCH`] (and for 0, which no log has), `<origin>/e<epoch>/<tenant>` from epoch 2 on.
    #[must_use]
    pub fn for_tenant(&self, tenant: Uuid, epoch: u64) -> String {
        self.named(epoch, tenant.as_hyphenated())
    }

    /// The origin of the deployment log, which is the name of its key too: `<origin>/deployment` in the
    /// [`FIRST_EPOCH`] (and for 0, which no log has), `<origin>/e<epoch>/deployment` from epoch 2 on.
    /// It is no tenant's log's, of this origin or another one: those names end in a UUID.
    #[must_use]
    pub fn for_deployment(&self, epoch: u64) -> String {
        self.named(epoch, DEPLOYMENT)
    }

    /// Which origin, tenant and epoch a log's name is made of: the inverse of
    /// [`for_tenant`](Self::for_tenant). `None` for a name that it doesn't write.
    #[must_use]
    pub fn of_tenant(name: &str) -> Option<(Self, Uuid, u64)> {
        let (origin, epoch, tenant) = Self::parts(name)?;
        let tenant = Uuid::try_parse(tenant).ok()?;
        // Other spellings of the tenant, and an epoch 1 that is written out.
        (origin.for_tenant(tenant, epoch) == name).then_some((origin, tenant, epoch))
    }

    /// Which origin and epoch a deployment log's name is made of: the inverse of
    /// [`for_deployment`](Self::for_deployment). `None` for a name that it doesn't write.
    #[must_use]
    pub fn of_deployment(name: &str) -> Option<(Self, u64)> {
        let (origin, epoch, _) = Self::parts(name)?;
        // What ends in another part, and an epoch 1 that is written out.
        (origin.for_deployment(epoch) == name).then_some((origin, epoch))
    }

    fn named(&self, epoch: u64, last: impl fmt::Display) -> String {
        let Self(origin) = self;
        if epoch <= FIRST_EPOCH {
            format!("{origin}/{last}")
        } else {
            format!("{origin}/e{epoch}/{last}")
        }
    }

    /// Takes a name apart: origin, epoch and last part.
    fn parts(name: &str) -> Option<(Self, u64, &str)> {
        let (origin, last) = name.rsplit_once('/')?;
        let (origin, epoch) = match origin.rsplit_once('/') {
            Some((rest, part)) => match epoch_part(part) {
                Some(epoch) => (rest, epoch),
                None => (origin, FIRST_EPOCH),
            },
            None => (origin, FIRST_EPOCH),
        };
        Some((Self::parse(origin).ok()?, epoch, last))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Origin {
    type Err = OriginFault;

    fn from_str(text: &str) -> Result<Self, OriginFault> {
        Self::parse(text)
    }
}

/// The number of a part such as `e2`.
fn epoch_part(part: &str) -> Option<u64> {
    decimal(part.strip_prefix('e')?)
}

/// A number in ASCII digits without leading zeros, as C2SP's pages write sizes and positions.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// Why something is not a checkpoint, or not one of the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointFault {
    /// Fewer than three lines, an empty line or one with a control character, or no newline at the
    /// end.
    #[error("a checkpoint is three or more lines, none of them empty")]
    Lines,
    /// The size is not a number without leading zeros, or not below 2⁶³.
    #[error("a checkpoint's size is a number below 2^63 without leading zeros")]
    Size,
    /// The root is not the base64 of 32 bytes.
    #[error("a checkpoint's root is the padded base64 of 32 bytes")]
    Root,
    /// The note around it is at fault.
    #[error(transparent)]
    Note(#[from] NoteFault),
    /// The keys that signed are not the log's: none has the origin's name.
    #[error("no key of the log named {0} signed")]
    NotTheLog(String),
}

/// A log's head: its name, its size and its root; the text of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    origin: String,
    size: u64,
    root: Hash,
    extensions: Vec<String>,
}

impl Checkpoint {
    /// The head of the log of this name.
    ///
    /// # Errors
    ///
    /// [`CheckpointFault::Lines`] for an origin that is empty or has a control character,
    /// [`CheckpointFault::Size`] from [`SIZE_END`] on.
    pub fn new(origin: &str, size: u64, root: Hash) -> Result<Self, CheckpointFault> {
        check_line(origin)?;
        if size >= SIZE_END {
            return Err(CheckpointFault::Size);
        }
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
            extensions: Vec::new(),
        })
    }

    /// The same with extension lines, which C2SP advises against: monitors can't audit them. This
    /// project's logs write none.
    ///
    /// # Errors
    ///
    /// [`CheckpointFault::Lines`] for a line that is empty or has a control character.
    pub fn with_extensions(self, extensions: Vec<String>) -> Result<Self, CheckpointFault> {
        extensions.iter().try_for_each(|line| check_line(line))?;
        Ok(Self { extensions, ..self })
    }

    /// Reads the text of a checkpoint's note; accepts only what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    ///
    /// [`CheckpointFault::Lines`], [`CheckpointFault::Size`] or [`CheckpointFault::Root`].
    pub fn parse(text: &str) -> Result<Self, CheckpointFault> {
        let lines = text.strip_suffix('\n').ok_or(CheckpointFault::Lines)?;
        let mut lines = lines.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(CheckpointFault::Lines);
        };
        let size = decimal(size).ok_or(CheckpointFault::Size)?;
        let root = Hash::from_base64(root).ok_or(CheckpointFault::Root)?;
        Self::new(origin, size, root)?.with_extensions(lines.map(str::to_owned).collect())
    }

    /// The text: origin, size, root and extensions, a line each.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            self.root.to_base64()
        );
        for line in &self.extensions {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// The log's name.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// How many leaves the tree has.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The tree's root.
    #[must_use]
    pub const fn root(&self) -> Hash {
        self.root
    }

    /// The lines after the root.
    #[must_use]
    pub fn extensions(&self) -> &[String] {
        &self.extensions
    }

    /// Signs it, with one key or, over a change of keys, with both. Each key bears the origin's
    /// name.
    ///
    /// # Errors
    ///
    /// [`CheckpointFault::NotTheLog`] for a key of another name, else what [`note::sign`] returns.
    pub fn sign(&self, keys: &[&SigningKey]) -> Result<Note, CheckpointFault> {
        if keys.iter().any(|key| key.name() != self.origin) {
            return Err(CheckpointFault::NotTheLog(self.origin.clone()));
        }
        Ok(note::sign(&self.encode(), keys)?)
    }

    /// Reads a signed checkpoint and says who of the known keys signed it. At least one of them is
    /// the log's own, that is, an Ed25519 key with the origin's name: cosignatures alone aren't
    /// enough. Whether the origin is the expected one is for the caller to compare, where `keys`
    /// are those of several logs.
    ///
    /// # Errors
    ///
    /// What [`Note::verify`] and [`parse`](Self::parse) return, and [`CheckpointFault::NotTheLog`].
    pub fn open(note: &Note, keys: &[VerifyingKey]) -> Result<Opened, CheckpointFault> {
        let signers = note.verify(keys)?;
        let opened = Opened {
            checkpoint: Self::parse(note.text())?,
            signers,
        };
        if opened.log_keys().next().is_none() {
            return Err(CheckpointFault::NotTheLog(opened.checkpoint.origin));
        }
        Ok(opened)
    }
}

/// A checkpoint and the known keys whose signatures under it hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The head.
    pub checkpoint: Checkpoint,
    /// Who signed, each key once; not empty.
    pub signers: Vec<Verified>,
}

impl Opened {
    /// The log's own keys among the signers; over a change of keys there are two.
    pub fn log_keys(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.signers.iter().map(|signer| &signer.key).filter(|key| {
            key.algorithm() == Algorithm::Ed25519 && key.name() == self.checkpoint.origin
        })
    }

    /// The witnesses among the signers, with the time that each states, in seconds since the epoch.
    pub fn cosigners(&self) -> impl Iterator<Item = (&VerifyingKey, u64)> {
        self.signers
            .iter()
            .filter_map(|signer| Some((&signer.key, signer.time?)))
    }
}

fn check_line(line: &str) -> Result<(), CheckpointFault> {
    if line.is_empty() || line.contains(|c| c < ' ') {
        Err(CheckpointFault::Lines)
    } else {
        Ok(())
    }
}
