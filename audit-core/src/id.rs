//! Identifiers: tenants, events and erasures.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not a UUID in its hyphenated form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a UUID: 36 characters with hyphens are expected, as 0190a000-0000-7000-8000-000000000001"
)]
pub struct NotAUuid;

/// Parses the hyphenated form of RFC 9562 §4 only, in any case and of any version: no braces, no URN.
fn parse(text: &str) -> Result<Uuid, NotAUuid> {
    if text.len() != 36 {
        return Err(NotAUuid);
    }
    Uuid::try_parse(text).map_err(|_| NotAUuid)
}

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID of any version.
            pub const fn new(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID itself.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }

            /// Appends it in lower case.
            pub fn write(&self, out: &mut String) {
                out.push_str(self.0.as_hyphenated().encode_lower(&mut [0; 36]));
            }

            /// The UUID itself, by value.
            pub const fn into_uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotAUuid;
            fn try_from(text: String) -> Result<Self, NotAUuid> {
                text.parse()
            }
        }

        impl FromStr for $name {
            type Err = NotAUuid;
            /// The hyphenated form of RFC 9562 §4, in either case; nothing else.
            fn from_str(text: &str) -> Result<Self, NotAUuid> {
                parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

uuid_newtype! {
    /// Whose log it is. Every read and write is within one tenant.
    TenantId
}

uuid_newtype! {
    /// An event's identity and idempotency key, unique within its tenant.
    ///
    /// Ids that the log makes are UUIDv7 (RFC 9562 §5.7): time-ordered ids keep the id index of a
    /// store dense, where random ones cost it a page a row.
    EventId
}

uuid_newtype! {
    /// An erasure that was asked for. UUIDv7: later ones are larger.
    ErasureId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hyphenated_form_is_a_uuid() {
        assert!(
            "0190A000-0000-7000-8000-000000000001"
                .parse::<TenantId>()
                .is_ok()
        );
        for text in [
            "",
            "0190a000000070008000000000000001",
            "{0190a000-0000-7000-8000-000000000001}",
            "urn:uuid:0190a000-0000-7000-8000-000000000001",
            "0190a000-0000-7000-8000-00000000000g",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(NotAUuid), "{text}");
        }
    }
}
