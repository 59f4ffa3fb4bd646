//! Raw JSON that is kept byte for byte.

use std::fmt;

use audit_tlog::json as text;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::finite;

/// One JSON value (RFC 8259) as its exact text, without white space around it.
///
/// A value tree would turn `9007199254740993` into `…992` and `1e2` into `100.0`; an audit log may
/// not alter what it was given. Two values are equal when their texts are.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Box<str>);

/// Why a text or a value can't be kept as [`Json`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonFault {
    /// The text is not admitted: not JSON, or with NUL, lone surrogates, duplicate keys, too deep.
    #[error(transparent)]
    Text(#[from] text::Fault),
    /// The value holds a number that is not finite, or refuses to be serialised.
    #[error("{0}")]
    Value(String),
}

impl Json {
    /// The most characters of raw JSON that one event may have over its three fields, in UTF-8 bytes.
    pub const MAX_BYTES: usize = 256 * 1024;

    /// Keeps `text`, white space around it cut off.
    ///
    /// # Errors
    /// Text that is not one JSON value, NUL and lone surrogates (escaped ones too, in keys and
    /// values), duplicate keys after unescaping, and nesting deeper than
    /// [`MAX_DEPTH`](audit_tlog::json::MAX_DEPTH).
    pub fn parse(text: &str) -> Result<Self, JsonFault> {
        let trimmed = text.trim_matches([' ', '\t', '\n', '\r']);
        text::check(trimmed, text::MAX_DEPTH)?;
        Ok(Self(trimmed.into()))
    }

    /// Serialises `value`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and for a NaN or an infinity, which `serde_json` would write as null.
    pub fn from_value<T: Serialize + ?Sized>(value: &T) -> Result<Self, JsonFault> {
        finite::check(value).map_err(|e| JsonFault::Value(e.to_string()))?;
        let text = serde_json::to_string(value).map_err(|e| JsonFault::Value(e.to_string()))?;
        text::admit(&text, text::MAX_DEPTH)?;
        Ok(Self(text.into()))
    }

    /// Wraps text that a store kept, and that was admitted when it came in.
    pub fn from_stored(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The exact text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the literal `null`.
    pub fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    /// Reads the value into a type of the caller's.
    ///
    /// # Errors
    /// When the value has not the shape of `T`.
    pub fn deserialize<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0)
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_kept_byte_for_byte() {
        let text = "{ \"n\": 9007199254740993, \"e\":1e2 }";
        assert_eq!(Json::parse(&format!("  {text}\n")).unwrap().as_str(), text);
        let json: Json = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), text);
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let nested = std::collections::BTreeMap::from([("a", vec![Some(value)])]);
            assert!(matches!(
                Json::from_value(&nested),
                Err(JsonFault::Value(_))
            ));
        }
        assert_eq!(
            Json::from_value(&(1.5, None::<f64>)).unwrap().as_str(),
            "[1.5,null]"
        );
    }
}
