//! The content of control entries: what they say is gone, or has changed.
//!
//! A `ctl` stands in leaf data in the clear and can't be erased, so each statement has one text,
//! and [`Control::parse`] takes no other. What needs the log to be judged (whether targets lie
//! below the entry, whether a key is this tenant's) is not checked here.

use crate::json;
use crate::leaf::{Group, Hash, Kind};
use crate::note::{self, Algorithm};
use crate::time::Timestamp;

/// The most ranges that one `erase` entry lists.
pub const MAX_RANGES: usize = 1000;

/// Numbers in a `ctl` are below this, so that every JSON reader has them exactly (RFC 8259 §6).
const NUMBER_END: u64 = 1 << 53;

/// Why something is not a control entry's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlFault {
    /// An event has no control content.
    #[error("an event has no ctl")]
    NotControl,
    /// Not the kind's keys in their order, without white space and with every value in its only
    /// spelling.
    #[error("not that of a control entry of kind {0}")]
    Shape(Kind),
    /// The groups are none, unknown, repeated or out of order.
    #[error("groups: at least one, known, in order, without repeats")]
    Groups,
    /// There is no range, or more than [`MAX_RANGES`].
    #[error("entries: 1 to {MAX_RANGES} ranges")]
    RangeCount,
    /// A range is upside down, or doesn't leave a gap after the one before.
    #[error("entries: ranges ascend, with a gap between them")]
    Ranges,
    /// A number is 2⁵³ or more.
    #[error("a number is 2^53 or more")]
    Number,
    /// Not 1 to 64 of `a-z 0-9 . _ -`.
    #[error("basis: 1 to 64 of a-z 0-9 . _ -")]
    Basis,
    /// A prune below position 0 would take nothing.
    #[error("below: at least 1")]
    Below,
    /// Not the standard base64 of 32 bytes.
    #[error("root: not the padded base64 of 32 bytes")]
    Root,
    /// Not a time in the log's spelling.
    #[error("before: not a time with six decimals and Z")]
    Before,
    /// Epochs are counted from 2: the first needs no entry.
    #[error("epoch: at least 2")]
    Epoch,
    /// Not an Ed25519 verifier key as C2SP `signed-note` writes it.
    #[error("not an Ed25519 vkey")]
    Vkey,
}

/// Why something was destroyed or restored, in a word such as `gdpr-17`: 1 to 64 of
/// `a-z 0-9 . _ -`. It is in the clear for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Basis(String);

impl Basis {
    /// Reads a basis.
    ///
    /// # Errors
    ///
    /// [`ControlFault::Basis`] for an empty text, one over 64 characters, or with another
    /// character.
    pub fn parse(text: &str) -> Result<Self, ControlFault> {
        let known = |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if (1..=64).contains(&text.len()) && text.bytes().all(known) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ControlFault::Basis)
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Basis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

impl std::str::FromStr for Basis {
    type Err = ControlFault;

    fn from_str(text: &str) -> Result<Self, ControlFault> {
        Self::parse(text)
    }
}

/// A control entry's content. Values built by hand may break the rules; [`check`](Self::check)
/// tells, and [`parse`](Self::parse) never returns such a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// These groups of these entries were destroyed.
    Erase {
        /// Which groups: not empty, in order, without repeats. Some of the entries may never have
        /// had some of them.
        groups: Vec<Group>,
        /// Ranges of positions, both ends included; 1 to [`MAX_RANGES`], ascending, with a gap
        /// between them.
        entries: Vec<(u64, u64)>,
        /// Why.
        basis: Basis,
    },
    /// All entries under a position were destroyed.
    Prune {
        /// The first position that is left, at least 1.
        below: u64,
        /// The tree's root at that size.
        root: Hash,
        /// The bound that was asked for, on the time of acceptance.
        before: Timestamp,
        /// Why.
        basis: Basis,
    },
    /// The signing key or its name changed.
    Key {
        /// The vkey before.
        old: String,
        /// The vkey from here on.
        new: String,
    },
    /// The log was continued after a restore.
    Epoch {
        /// Counted from 2.
        epoch: u64,
        /// The size that was restored, which is this entry's own position.
        size: u64,
        /// The root at that size.
        root: Hash,
        /// Why.
        basis: Basis,
    },
}

impl Control {
    /// The kind of entry that this is the content of.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Erase { .. } => Kind::Erase,
            Self::Prune { .. } => Kind::Prune,
            Self::Key { .. } => Kind::Key,
            Self::Epoch { .. } => Kind::Epoch,
        }
    }

    /// Reads the `ctl` of an entry of this kind. Whatever it accepts, [`to_json`](Self::to_json)
    /// writes back byte for byte.
    ///
    /// # Errors
    ///
    /// [`ControlFault::NotControl`] for an event, [`ControlFault::Shape`] for a text that isn't the
    /// kind's, else the first broken rule.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, ControlFault> {
        let shape = ControlFault::Shape(kind);
        let control = match kind {
            Kind::Event => return Err(ControlFault::NotControl),
            Kind::Erase => {
                let [groups, entries, basis] = values(kind, text, ["groups", "entries", "basis"])?;
                Self::Erase {
                    groups: json::items(groups)
                        .map_err(|_| shape)?
                        .into_iter()
                        .map(|name| {
                            quoted(kind, name)?
                                .parse()
                                .map_err(|_| ControlFault::Groups)
                        })
                        .collect::<Result<_, _>>()?,
                    entries: json::items(entries)
                        .map_err(|_| shape)?
                        .into_iter()
                        .map(|range| match json::items(range).as_deref() {
                            Ok(&[from, to]) => Ok((number(kind, from)?, number(kind, to)?)),
                            _ => Err(shape),
                        })
                        .collect::<Result<_, _>>()?,
                    basis: Basis::parse(quoted(kind, basis)?)?,
                }
            }
            Kind::Prune => {
                let [below, root, before, basis] =
                    values(kind, text, ["below", "root", "before", "basis"])?;
                Self::Prune {
                    below: number(kind, below)?,
                    root: hash(kind, root)?,
                    before: time(kind, before)?,
                    basis: Basis::parse(quoted(kind, basis)?)?,
                }
            }
            Kind::Key => {
                let [old, new] = values(kind, text, ["old", "new"])?;
                Self::Key {
                    old: quoted(kind, old)?.to_owned(),
                    new: quoted(kind, new)?.to_owned(),
                }
            }
            Kind::Epoch => {
                let [epoch, size, root, basis] =
                    values(kind, text, ["epoch", "size", "root", "basis"])?;
                Self::Epoch {
                    epoch: number(kind, epoch)?,
                    size: number(kind, size)?,
                    root: hash(kind, root)?,
                    basis: Basis::parse(quoted(kind, basis)?)?,
                }
            }
        };
        control.check()?;
        // White space between tokens is what is left to refuse.
        if control.to_json() == text {
            Ok(control)
        } else {
            Err(shape)
        }
    }

    /// Whether every rule that concerns the content alone is kept.
    ///
    /// # Errors
    ///
    /// The first broken rule.
    pub fn check(&self) -> Result<(), ControlFault> {
        match self {
            Self::Erase {
                groups,
                entries,
                basis: _,
            } => {
                if groups.is_empty() || !groups.is_sorted_by(|a, b| a < b) {
                    return Err(ControlFault::Groups);
                }
                if !(1..=MAX_RANGES).contains(&entries.len()) {
                    return Err(ControlFault::RangeCount);
                }
                for &(from, to) in entries {
                    check_number(from)?;
                    check_number(to)?;
                    if from > to {
                        return Err(ControlFault::Ranges);
                    }
                }
                // No overflow: the numbers are below 2^53.
                if !entries.is_sorted_by(|before, after| before.1 + 1 < after.0) {
                    return Err(ControlFault::Ranges);
                }
                Ok(())
            }
            Self::Prune { below, .. } => {
                check_number(*below)?;
                if *below == 0 {
                    Err(ControlFault::Below)
                } else {
                    Ok(())
                }
            }
            Self::Key { old, new } => {
                Vkey::parse(old)?;
                Vkey::parse(new)?;
                Ok(())
            }
            Self::Epoch { epoch, size, .. } => {
                check_number(*epoch)?;
                check_number(*size)?;
                if *epoch < 2 {
                    Err(ControlFault::Epoch)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// The `ctl` as it stands in leaf data: keys in the kind's order, no white space.
    #[must_use]
    pub fn to_json(&self) -> String {
        match self {
            Self::Erase {
                groups,
                entries,
                basis,
            } => {
                let groups = groups
                    .iter()
                    .map(|group| format!("\"{group}\""))
                    .collect::<Vec<_>>();
                let entries = entries
                    .iter()
                    .map(|(from, to)| format!("[{from},{to}]"))
                    .collect::<Vec<_>>();
                format!(
                    "{{\"groups\":[{}],\"entries\":[{}],\"basis\":\"{basis}\"}}",
                    groups.join(","),
                    entries.join(",")
                )
            }
            Self::Prune {
                below,
                root,
                before,
                basis,
            } => {
                let root = root.to_base64();
                format!(
                    "{{\"below\":{below},\"root\":\"{root}\",\"before\":\"{before}\",\"basis\":\"{basis}\"}}"
                )
            }
            Self::Key { old, new } => {
                let mut out = String::from("{\"old\":");
                json::write_string(&mut out, old);
                out.push_str(",\"new\":");
                json::write_string(&mut out, new);
                out.push('}');
                out
            }
            Self::Epoch {
                epoch,
                size,
                root,
                basis,
            } => {
                let root = root.to_base64();
                format!(
                    "{{\"epoch\":{epoch},\"size\":{size},\"root\":\"{root}\",\"basis\":\"{basis}\"}}"
                )
            }
        }
    }
}

/// An Ed25519 verifier key in C2SP `signed-note`'s text form,
/// `<name>+<key id, 8 hexadecimal digits>+<base64 of 0x01 and the key>`.
///
/// Names are narrower than C2SP's: `A-Z a-z 0-9 . _ - / :`, which is what a log's origin is made
/// of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vkey<'a> {
    /// The key's name, which is the log's origin.
    pub name: &'a str,
    /// The Ed25519 public key. Whether it is a point on the curve is checked only when it becomes a
    /// [`VerifyingKey`](crate::note::VerifyingKey).
    pub key: [u8; 32],
}

impl<'a> Vkey<'a> {
    /// Reads a vkey; accepts only what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    ///
    /// [`ControlFault::Vkey`] for a wrong form, an empty name, another algorithm than Ed25519 or a
    /// key id that isn't that of the name and key.
    pub fn parse(text: &'a str) -> Result<Self, ControlFault> {
        Self::read(text).ok_or(ControlFault::Vkey)
    }

    fn read(text: &'a str) -> Option<Self> {
        let (name, Algorithm::Ed25519, key) = note::read_vkey(text)? else {
            return None;
        };
        let known = |b| matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/' | b':');
        (!name.is_empty() && name.bytes().all(known)).then_some(Self { name, key })
    }

    /// The key id, `SHA-256(name ‖ LF ‖ 0x01 ‖ key)[0..4]`.
    #[must_use]
    pub fn id(&self) -> [u8; 4] {
        note::key_id(self.name, Algorithm::Ed25519, &self.key)
    }

    /// The text form.
    #[must_use]
    pub fn encode(&self) -> String {
        note::write_vkey(self.name, Algorithm::Ed25519, &self.key)
    }
}

fn check_number(number: u64) -> Result<(), ControlFault> {
    if number < NUMBER_END {
        Ok(())
    } else {
        Err(ControlFault::Number)
    }
}

/// The values of an object that has exactly these keys, in this order.
fn values<'a, const N: usize>(
    kind: Kind,
    text: &'a str,
    keys: [&str; N],
) -> Result<[&'a str; N], ControlFault> {
    let shape = ControlFault::Shape(kind);
    let members = json::members(text).map_err(|_| shape)?;
    if !members.iter().map(|member| member.name.as_ref()).eq(keys) {
        return Err(shape);
    }
    let mut values = [""; N];
    for (value, member) in values.iter_mut().zip(members) {
        *value = member.raw;
    }
    Ok(values)
}

/// The text of a string. None of a `ctl`'s strings needs an escape, so one with an escape is not in
/// its only spelling.
fn quoted(kind: Kind, raw: &str) -> Result<&str, ControlFault> {
    match json::string(raw) {
        Ok(std::borrow::Cow::Borrowed(text)) => Ok(text),
        _ => Err(ControlFault::Shape(kind)),
    }
}

/// A number in plain decimal digits; `raw` is a valid JSON value.
fn number(kind: Kind, raw: &str) -> Result<u64, ControlFault> {
    if !raw.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ControlFault::Shape(kind));
    }
    // Digits that don't fit are far beyond 2^53 too.
    raw.parse().map_err(|_| ControlFault::Number)
}

fn hash(kind: Kind, raw: &str) -> Result<Hash, ControlFault> {
    Hash::from_base64(quoted(kind, raw)?).ok_or(ControlFault::Root)
}

fn time(kind: Kind, raw: &str) -> Result<Timestamp, ControlFault> {
    let text = quoted(kind, raw)?;
    match Timestamp::parse(text) {
        Ok(time) if time.to_string() == text => Ok(time),
        _ => Err(ControlFault::Before),
    }
}
