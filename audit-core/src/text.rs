//! Full text: what a word is, which words an entry has, and the query language of `q`.
//!
//! Every backend takes its words from here, so that a query finds the same entries in all of them.

use audit_tlog::json;

use crate::error::{Error, FieldFault, Result};
use crate::event::{Fields, print_ip};

/// Words longer than this many characters count as several, one behind the other.
pub const MAX_WORD: usize = 128;
/// The most words that a query may have.
pub const MAX_QUERY_WORDS: usize = 32;
/// The most characters that a query may have.
pub const MAX_QUERY_CHARS: usize = 1024;

/// What [`each_word`] hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'a> {
    /// A case-folded word.
    Word(&'a str),
    /// The end of a text: no phrase reaches across it.
    Break,
}

/// Cuts `text` into words: runs of Unicode letters and digits ([`char::is_alphanumeric`]), each
/// case-folded (lower case of the upper case, so that `ß` and `SS` meet).
pub fn words(text: &str, mut each: impl FnMut(&str)) {
    let mut word = String::new();
    let mut chars = 0;
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            word.push(c.to_ascii_lowercase());
            chars += 1;
        } else if !c.is_ascii() && c.is_alphanumeric() {
            for upper in c.to_uppercase() {
                word.extend(upper.to_lowercase());
            }
            chars += 1;
        } else if chars > 0 {
            each(&word);
            word.clear();
            chars = 0;
        }
        if chars == MAX_WORD {
            each(&word);
            word.clear();
            chars = 0;
        }
    }
    if chars > 0 {
        each(&word);
    }
}

/// Hands out the words of all text fields and of the keys, strings and numbers of the raw JSON.
///
/// Enumerations, times and ids are not text: filters find them.
pub fn each_word(fields: &Fields, mut each: impl FnMut(Token<'_>)) {
    let mut text = |value: &str| {
        words(value, |word| each(Token::Word(word)));
        each(Token::Break);
    };
    text(&fields.action);
    let texts = [
        &fields.user_id,
        &fields.actor_name,
        &fields.on_behalf_of,
        &fields.resource_type,
        &fields.resource_id,
        &fields.resource_name,
        &fields.session_id,
        &fields.request_id,
        &fields.trace_id,
        &fields.user_agent,
        &fields.reason,
    ];
    for value in texts.into_iter().flatten() {
        text(value);
    }
    for related in &fields.related_resources {
        text(&related.kind);
        text(&related.id);
        if let Some(name) = &related.name {
            text(name);
        }
    }
    if let Some(ip) = fields.ip_address {
        text(&print_ip(ip));
    }
    for raw in [&fields.before_state, &fields.after_state, &fields.metadata]
        .into_iter()
        .flatten()
    {
        each_json_text(raw.as_str(), &mut text);
    }
}

/// Walks valid JSON text and hands out each key, string and number.
fn each_json_text(raw: &str, each: &mut impl FnMut(&str)) {
    let bytes = raw.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'"' => {
                let start = i;
                i += 1;
                while i < bytes.len() && bytes[i] != b'"' {
                    i += if bytes[i] == b'\\' { 2 } else { 1 };
                }
                i += 1;
                if let Ok(text) = json::string(raw.get(start..i).unwrap_or_default()) {
                    each(&text);
                }
            }
            b'-' | b'0'..=b'9' => {
                let start = i;
                while i < bytes.len()
                    && matches!(bytes[i], b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
                {
                    i += 1;
                }
                each(&raw[start..i]);
            }
            _ => i += 1,
        }
    }
}

/// A full-text query: the AND of phrases, each of one word or more.
///
/// A bare word is a phrase; one with inner punctuation (`10.8.8.10`) is the phrase of its parts; a
/// text in double quotes is a phrase. There are no other operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    text: String,
    phrases: Vec<Vec<String>>,
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) naming `q`: no word in it, a quote that is
    /// not closed, more than [`MAX_QUERY_WORDS`] words or [`MAX_QUERY_CHARS`] characters.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |detail: String| Err(Error::invalid(vec![FieldFault::new("q", detail)]));
        if text.chars().count() > MAX_QUERY_CHARS {
            return refuse(format!("longer than {MAX_QUERY_CHARS} characters"));
        }
        let mut phrases = Vec::new();
        let mut add = |part: &str| {
            let mut phrase = Vec::new();
            words(part, |word| phrase.push(word.to_owned()));
            if !phrase.is_empty() {
                phrases.push(phrase);
            }
        };
        for (i, part) in text.split('"').enumerate() {
            if i % 2 == 1 {
                add(part);
            } else {
                part.split_whitespace().for_each(&mut add);
            }
        }
        if text.matches('"').count() % 2 == 1 {
            return refuse("a double quote is not closed".into());
        }
        if phrases.is_empty() {
            return refuse("has no word: a letter or digit is needed".into());
        }
        if phrases.iter().map(Vec::len).sum::<usize>() > MAX_QUERY_WORDS {
            return refuse(format!("more than {MAX_QUERY_WORDS} words"));
        }
        Ok(Self {
            text: text.to_owned(),
            phrases,
        })
    }

    /// The text that it was read from.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The phrases, each of folded words; all must be found.
    pub fn phrases(&self) -> &[Vec<String>] {
        &self.phrases
    }

    /// Whether the fields have all phrases.
    pub fn matches(&self, fields: &Fields) -> bool {
        let mut tokens: Vec<Option<String>> = Vec::new();
        each_word(fields, |token| {
            tokens.push(match token {
                Token::Word(word) => Some(word.to_owned()),
                Token::Break => None,
            });
        });
        self.phrases.iter().all(|phrase| {
            tokens.windows(phrase.len()).any(|window| {
                window
                    .iter()
                    .zip(phrase)
                    .all(|(token, word)| token.as_ref() == Some(word))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    #[test]
    fn words_are_runs_of_letters_and_digits_case_folded() {
        let mut found = Vec::new();
        words("Straße 10.8.8.10, ΣΑΣ_x", |w| found.push(w.to_owned()));
        assert_eq!(found, ["strasse", "10", "8", "8", "10", "σασ", "x"]);
    }

    #[test]
    fn a_query_is_the_and_of_its_phrases() {
        let event = Event::view("doc", "d-1")
            .reason("Quarterly close of books")
            .metadata(&serde_json::json!({"ip": "10.8.8.10", "n": [12.5]}));
        let hits = |q: &str| Query::parse(q).unwrap().matches(&event.fields);
        for q in [
            "quarterly books",
            "\"close of\"",
            "10.8.8.10",
            "ip",
            "12.5",
            "D-1 QUARTERLY",
        ] {
            assert!(hits(q), "{q}");
        }
        for q in [
            "\"of close\"",
            "10.8.10",
            "quarter",
            "\"1 quarterly\"",
            "close missing",
        ] {
            assert!(!hits(q), "{q}");
        }
        for q in ["", "  ", "...", "\"open"] {
            assert!(Query::parse(q).is_err(), "{q}");
        }
    }
}
