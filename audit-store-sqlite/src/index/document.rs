//! What of an entry is indexed, and what a filter asks for, in the words of the full-text table.

use audit_core::filter::{FilterField, each_value};
use audit_core::text::{Token, each_word};
use audit_core::{Fields, Filter};
use sha2::{Digest, Sha256};

/// Stands between two texts, so that no phrase reaches across. Neither of these characters is a
/// letter or a digit, so no word has them.
const BREAK: char = '\u{E000}';
/// The first character of a value's token.
const VALUE: char = '\u{E001}';

/// Makes the tokens of values: 60 bits of SHA-256 under a key of the file's own, so that nobody can
/// choose values that collide. Two that do are harmless: what is found is compared with the entry.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    keyed: Sha256,
}

impl Tokens {
    pub(super) fn new(key: &[u8; 16]) -> Self {
        Self {
            keyed: Sha256::new_with_prefix(key),
        }
    }

    fn write(&self, out: &mut String, tenant: i64, field: FilterField, value: &str) {
        let mut hash = self.keyed.clone();
        hash.update((tenant as u32).to_be_bytes());
        hash.update([field as u8]);
        hash.update(value);
        let hash = hash.finalize();
        out.push(VALUE);
        let bits = hash
            .iter()
            .take(8)
            .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        for i in 0..12 {
            let five = (bits >> (59 - 5 * i)) & 31;
            out.push(char::from(
                b"abcdefghijklmnopqrstuvwxyz234567"[five as usize],
            ));
        }
    }

    /// The document of an entry: its words, and the tokens of its values. These also stand between
    /// the texts for as long as there are any: a third of all tokens are breaks otherwise.
    pub(super) fn document(&self, tenant: i64, fields: &Fields) -> String {
        let mut values = String::with_capacity(256);
        each_value(fields, |field, value| {
            self.write(&mut values, tenant, field, value);
            values.push(' ');
        });
        let mut values = values.split_inclusive(' ');
        let mut out = String::with_capacity(1024);
        each_word(fields, |token| match token {
            Token::Word(word) => {
                out.push_str(word);
                out.push(' ');
            }
            Token::Break => match values.next() {
                Some(value) => out.push_str(value),
                None => out.extend([BREAK, ' ']),
            },
        });
        out.extend(values);
        out
    }

    /// The full-text expression that finds what the filter's conditions and its query ask for; none
    /// when it has neither.
    pub(super) fn expression(&self, tenant: i64, filter: &Filter) -> Option<String> {
        let mut out = String::new();
        for condition in filter.conditions() {
            out.push_str(if out.is_empty() { "(" } else { " AND (" });
            for (i, value) in condition.values.iter().enumerate() {
                out.push_str(if i == 0 { "\"" } else { " OR \"" });
                self.write(&mut out, tenant, condition.field, value);
                out.push('"');
            }
            out.push(')');
        }
        for phrase in filter.q.iter().flat_map(|q| q.phrases()) {
            out.push_str(if out.is_empty() { "\"" } else { " AND \"" });
            // Words are letters and digits only: there is nothing to escape.
            out.push_str(&phrase.join(" "));
            out.push('"');
        }
        (!out.is_empty()).then_some(out)
    }
}
