//! What of an entry is indexed, and what a filter asks for, as lexemes.

use audit_core::filter::{FilterField, each_value};
use audit_core::text::{Token, each_word};
use audit_core::{Entry, Fields, Filter, TenantId};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// What a lexeme stands for, beside the fields of a filter, whose numbers are smaller.
const WORD: u8 = 0x40;
const PAIR: u8 = 0x41;
const EVERYTHING: u8 = 0x42;

/// An entry with more lexemes than this is a candidate for every query: they wouldn't fit into a
/// `tsvector`, which holds 1 MiB. It takes some 200 KB of text without a repetition.
const MOST: usize = 100_000;

/// Bytes of a hash that make a lexeme.
const BYTES: usize = 6;

/// Makes the lexemes of one tenant.
///
/// A lexeme is 8 characters, 48 bits of SHA-256 over the tenant, what it stands for, and the text: no
/// word is too long for the engine, none needs quoting, and the lists that the engine keeps are each
/// of one tenant. Two texts that collide give a false hit, which is compared with the entry.
///
/// Beside each word stands the pair of each word and its neighbour, so that a phrase is found by its
/// pairs. The engine's own positions end at 16,383, hold 255 places of a word, and aren't in its
/// index.
#[derive(Debug, Clone)]
pub(super) struct Lexemes {
    keyed: Sha256,
}

impl Lexemes {
    pub(super) fn new(tenant: TenantId) -> Self {
        Self {
            keyed: Sha256::new_with_prefix(tenant.as_uuid().as_bytes()),
        }
    }

    fn of(&self, kind: u8, parts: &[&str]) -> [u8; BYTES] {
        let mut hash = self.keyed.clone();
        hash.update([kind]);
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                hash.update(" "); // no word has one
            }
            hash.update(part);
        }
        let mut lexeme = [0; BYTES];
        lexeme.copy_from_slice(&hash.finalize()[..BYTES]);
        lexeme
    }

    /// The document of an entry, as the text of a `tsvector`.
    pub(super) fn document(&self, fields: &Fields) -> String {
        let mut values = Vec::new();
        each_value(fields, |field, value| {
            values.push(self.of(field as u8, &[value]))
        });
        let mut words = Vec::with_capacity(256);
        let mut before = String::new();
        each_word(fields, |token| match token {
            Token::Word(word) => {
                words.push(self.of(WORD, &[word]));
                if !before.is_empty() {
                    words.push(self.of(PAIR, &[&before, word]));
                }
                before.clear();
                before.push_str(word);
            }
            Token::Break => before.clear(),
        });
        words.sort_unstable();
        words.dedup();
        if words.len() > MOST {
            words = vec![self.of(EVERYTHING, &[])];
        }
        let mut out = String::with_capacity((values.len() + words.len()) * 9);
        for lexeme in values.iter().chain(&words) {
            URL_SAFE_NO_PAD.encode_string(lexeme, &mut out);
            out.push(' ');
        }
        out
    }

    /// The `tsquery` that finds what the filter's conditions and its query ask for; none when it has
    /// neither.
    pub(super) fn query(&self, filter: &Filter) -> Option<String> {
        let mut all: Vec<String> = filter
            .conditions()
            .iter()
            .map(|condition| {
                any(condition
                    .values
                    .iter()
                    .map(|v| self.value(condition.field, v)))
            })
            .collect();
        if let Some(q) = &filter.q {
            let mut words = Vec::new();
            for phrase in q.phrases() {
                match &phrase[..] {
                    [word] => words.push(print(self.of(WORD, &[word]))),
                    several => words.extend(
                        several
                            .windows(2)
                            .map(|pair| print(self.of(PAIR, &[&pair[0], &pair[1]]))),
                    ),
                }
            }
            let found = format!("({})", words.join("&"));
            all.push(any([found, print(self.of(EVERYTHING, &[]))].into_iter()));
        }
        (!all.is_empty()).then(|| all.join("&"))
    }

    fn value(&self, field: FilterField, value: &str) -> String {
        print(self.of(field as u8, &[value]))
    }
}

fn print(lexeme: [u8; BYTES]) -> String {
    URL_SAFE_NO_PAD.encode(lexeme)
}

fn any(terms: impl Iterator<Item = String>) -> String {
    format!("({})", terms.collect::<Vec<_>>().join("|"))
}

/// A bit for each group that is gone.
pub(super) fn erased(entry: &Entry) -> i16 {
    entry
        .erased
        .iter()
        .fold(0, |bits, group| bits | 1 << group.index())
}
