//! Strict JSON as text.
//!
//! An audit log may not alter what it was given, and a value tree does: it rounds numbers, drops
//! repeated keys and forgets the spelling. So JSON is handled here as text. `serde_json`'s
//! `RawValue` checks RFC 8259 syntax; what syntax lets through and the log refuses (NUL, lone
//! surrogates, repeated keys, deep nesting) is found by a walker over the valid text.
//!
//! Nothing here recurses. Time is linear in the text; only [`write_canonical`] adds the sorting of
//! keys and, for objects that aren't sorted, a copy at each level.

use std::borrow::Cow;
use std::collections::HashSet;

use memchr::memchr;
use serde_json::value::RawValue;

/// How many objects and arrays may be open at once within a raw JSON value. With what the log puts
/// around it, a whole entry stays under the 64 levels that common parsers allow.
pub const MAX_DEPTH: usize = 60;

/// Objects of up to so many keys are searched for repeats pair by pair, which needs no hashing.
const PAIRWISE_KEYS: usize = 12;

/// Why a text is not JSON that the log admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not RFC 8259 JSON, or not of the type that was asked for.
    #[error("not valid JSON")]
    Syntax,
    /// A key or a string holds U+0000.
    #[error("holds a NUL character")]
    Nul,
    /// A key or a string holds half of a surrogate pair, which no UTF-8 text can represent.
    #[error("holds a lone surrogate")]
    LoneSurrogate,
    /// An object has the same key twice, compared after unescaping.
    #[error("holds the same key twice in an object")]
    DuplicateKey,
    /// More objects and arrays are open at once than allowed.
    #[error("nested too deeply")]
    TooDeep,
}

/// A member of an object, as [`members`] lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// The name, unescaped; borrowed where it was written without escapes.
    pub name: Cow<'a, str>,
    /// The exact text of the value, without white space around it.
    pub raw: &'a str,
}

/// Checks a text that is already known to be valid JSON for what the log additionally refuses: NUL
/// and lone surrogates in keys and strings, repeated keys, and more than `max_depth` objects and
/// arrays open at once (a scalar has depth 0).
///
/// The result for a text that is not valid JSON is unspecified; it doesn't panic.
///
/// # Errors
///
/// The first of [`Fault::Nul`], [`Fault::LoneSurrogate`], [`Fault::TooDeep`] and
/// [`Fault::DuplicateKey`] that the walk meets; repeats are found where their object ends.
pub fn admit(valid_json: &str, max_depth: usize) -> Result<(), Fault> {
    let bytes = valid_json.as_bytes();
    // For each open container: where its keys start in `keys`, or `None` for an array.
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut keys: Vec<Cow<'_, str>> = Vec::new();
    let mut key_next = false;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => {
                let start = at;
                let (end, escaped) = scan_string(bytes, start)?;
                at = end + 1;
                if key_next {
                    key_next = false;
                    let raw = valid_json.get(start..end).ok_or(Fault::Syntax)?;
                    keys.push(if escaped {
                        Cow::Owned(unescape(raw)?)
                    } else {
                        Cow::Borrowed(raw)
                    });
                }
            }
            b'{' | b'[' => {
                if open.len() >= max_depth {
                    return Err(Fault::TooDeep);
                }
                key_next = byte == b'{';
                open.push(key_next.then_some(keys.len()));
            }
            b'}' | b']' => {
                if let Some(Some(first)) = open.pop() {
                    if repeats(&keys[first..]) {
                        return Err(Fault::DuplicateKey);
                    }
                    keys.truncate(first);
                }
                key_next = false;
            }
            b',' => key_next = matches!(open.last(), Some(Some(_))),
            _ => {}
        }
    }
    Ok(())
}

/// Checks that a text is one JSON value (RFC 8259) that the log admits, white space around it
/// allowed.
///
/// # Errors
///
/// [`Fault::Syntax`], which an empty text is too; else as [`admit`].
pub fn check(text: &str, max_depth: usize) -> Result<(), Fault> {
    admit(syntax(text)?, max_depth)
}

/// The members of one JSON object, in their order, white space around the object allowed.
///
/// Values are checked for syntax only, and repeated names are listed as they stand: the caller
/// knows the field to blame for them.
///
/// # Errors
///
/// [`Fault::Syntax`] for what isn't one JSON object; [`Fault::Nul`] and [`Fault::LoneSurrogate`]
/// for a name that holds one.
pub fn members(text: &str) -> Result<Vec<Member<'_>>, Fault> {
    members_of(syntax(text)?)
}

/// [`members`] of a text that is already known to be valid JSON, without white space around it. The
/// result for another one is unspecified; it doesn't panic.
pub(crate) fn members_of(text: &str) -> Result<Vec<Member<'_>>, Fault> {
    let bytes = text.as_bytes();
    if bytes.first() != Some(&b'{') {
        return Err(Fault::Syntax);
    }
    let mut members = Vec::new();
    let mut at = skip_space(bytes, 1);
    while bytes.get(at) == Some(&b'"') {
        let (end, escaped) = scan_string(bytes, at + 1)?;
        let raw = text.get(at + 1..end).ok_or(Fault::Syntax)?;
        let name = if escaped {
            Cow::Owned(unescape(raw)?)
        } else {
            Cow::Borrowed(raw)
        };
        // Past the colon.
        let start = skip_space(bytes, skip_space(bytes, end + 1) + 1);
        let end = skip_value(bytes, start);
        members.push(Member {
            name,
            raw: text.get(start..end).ok_or(Fault::Syntax)?,
        });
        // Past the comma, or past the end.
        at = skip_space(bytes, skip_space(bytes, end) + 1);
    }
    Ok(members)
}

/// The items of one JSON array, as their exact texts without white space around them; white space
/// around the array is allowed. Items are checked for syntax only.
///
/// # Errors
///
/// [`Fault::Syntax`] for what isn't one JSON array.
pub fn items(text: &str) -> Result<Vec<&str>, Fault> {
    let text = syntax(text)?;
    let bytes = text.as_bytes();
    if bytes.first() != Some(&b'[') {
        return Err(Fault::Syntax);
    }
    let mut items = Vec::new();
    let mut at = skip_space(bytes, 1);
    while at < bytes.len() && bytes[at] != b']' {
        let end = skip_value(bytes, at);
        items.push(text.get(at..end).ok_or(Fault::Syntax)?);
        at = skip_space(bytes, end);
        if bytes.get(at) == Some(&b',') {
            at = skip_space(bytes, at + 1);
        }
    }
    Ok(items)
}

/// Decodes one JSON string literal, quotes included and nothing around them; borrows where there is
/// no escape.
///
/// # Errors
///
/// [`Fault::Syntax`] for what isn't a JSON string, [`Fault::Nul`] and [`Fault::LoneSurrogate`] for
/// a string that the log refuses.
pub fn string(raw: &str) -> Result<Cow<'_, str>, Fault> {
    let inner = raw
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .ok_or(Fault::Syntax)?;
    let bytes = inner.as_bytes();
    match find(bytes, 0, Stop::Special) {
        at if at == bytes.len() => Ok(Cow::Borrowed(inner)),
        at if bytes[at] == b'\\' => unescape(inner).map(Cow::Owned),
        // A quote ends the string before its end; a control character must be escaped.
        _ => Err(Fault::Syntax),
    }
}

/// Takes the JSON string literal that a text begins with, decoded as by [`string`], and what follows
/// it; `None` where there is none that the log admits.
pub(crate) fn take_string(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let inner = text.strip_prefix('"')?;
    if let Some((plain, rest)) = take_plain(inner) {
        return Some((Cow::Borrowed(plain), rest));
    }
    // Leaf data with its quotes escaped is rarely longer.
    let (decoded, end) = unescape_to_quote(inner, inner.len().min(1_024)).ok()?;
    Some((Cow::Owned(decoded), inner.get(end + 1..)?))
}

/// Takes what stands up to the closing quote of a string whose opening quote is gone, and what follows
/// that; `None` where the string has an escape or isn't one.
pub(crate) fn take_plain(text: &str) -> Option<(&str, &str)> {
    let end = memchr(b'"', text.as_bytes())?;
    let (inner, rest) = text.split_at(end);
    // No way out of the loop: so it is done many bytes at a time.
    let special = |found, byte| found | u8::from(byte == b'\\') | u8::from(byte < b' ');
    (inner.bytes().fold(0, special) == 0).then(|| (inner, &rest[1..]))
}

/// Appends a JSON string literal, quotes included, escaped as RFC 8785 §3.2.2.2 says: `\b \t \n \f
/// \r \" \\`, the other characters below U+0020 as `\u00xx` in lower case, all else as it is.
pub fn write_string(out: &mut String, s: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = s.as_bytes();
    out.reserve(s.len() + 2);
    out.push('"');
    let mut from = 0;
    loop {
        let at = find(bytes, from, Stop::Special);
        out.push_str(&s[from..at]);
        let Some(&byte) = bytes.get(at) else { break };
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            0x08 => out.push_str("\\b"),
            0x09 => out.push_str("\\t"),
            0x0a => out.push_str("\\n"),
            0x0c => out.push_str("\\f"),
            0x0d => out.push_str("\\r"),
            _ => {
                out.push_str("\\u00");
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
        from = at + 1;
    }
    out.push('"');
}

/// Appends the canonical form of a JSON text that [`admit`] accepts: no white space, keys sorted by
/// code point, strings escaped as by [`write_string`], number tokens as they stand.
///
/// This is not RFC 8785: numbers keep their spelling (`1e2` stays), and keys go by code points, not
/// by UTF-16 units. Two texts with the same canonical form say the same. For a text that is not
/// admitted what is appended is unspecified; it doesn't panic.
pub fn write_canonical(out: &mut String, valid_json: &str) {
    struct Written<'a> {
        name: Cow<'a, str>,
        start: usize,
        end: usize,
    }
    let bytes = valid_json.as_bytes();
    // For each open container: where its members start in `members`, or `None` for an array.
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut members: Vec<Written<'_>> = Vec::new();
    let mut scratch = String::new();
    let mut key_next = false;
    let mut at = 0;
    out.reserve(valid_json.len());
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            b'"' => {
                let end = skip_string(bytes, at + 1);
                let raw = valid_json.get(at + 1..end).unwrap_or_default();
                // What is written without escapes is canonical as it stands.
                let text = if raw.contains('\\') {
                    unescape(raw).map_or(Cow::Borrowed(raw), Cow::Owned)
                } else {
                    Cow::Borrowed(raw)
                };
                let start = out.len();
                match &text {
                    Cow::Borrowed(plain) => {
                        out.push('"');
                        out.push_str(plain);
                        out.push('"');
                    }
                    Cow::Owned(decoded) => write_string(out, decoded),
                }
                if key_next {
                    key_next = false;
                    members.push(Written {
                        name: text,
                        start,
                        end: start,
                    });
                }
                at = end + 1;
            }
            b'{' | b'[' => {
                key_next = byte == b'{';
                open.push(key_next.then_some(members.len()));
                out.push(char::from(byte));
                at += 1;
            }
            b',' => {
                if let Some(Some(first)) = open.last() {
                    if let Some(last) = members[*first..].last_mut() {
                        last.end = out.len();
                    }
                    key_next = true;
                }
                out.push(',');
                at += 1;
            }
            b'}' | b']' => {
                if let Some(Some(first)) = open.pop() {
                    let object = &mut members[first..];
                    if let Some(last) = object.last_mut() {
                        last.end = out.len();
                    }
                    if !object.is_sorted_by(|a, b| a.name <= b.name) {
                        let body = object[0].start;
                        scratch.clear();
                        scratch.push_str(&out[body..]);
                        out.truncate(body);
                        object.sort_by(|a, b| a.name.cmp(&b.name));
                        for (i, member) in object.iter().enumerate() {
                            if i > 0 {
                                out.push(',');
                            }
                            out.push_str(&scratch[member.start - body..member.end - body]);
                        }
                    }
                    members.truncate(first);
                }
                key_next = false;
                out.push(char::from(byte));
                at += 1;
            }
            b':' => {
                out.push(':');
                at += 1;
            }
            _ => {
                let end = skip_token(bytes, at);
                out.push_str(valid_json.get(at..end).unwrap_or_default());
                at = end;
            }
        }
    }
}

/// Appends raw JSON with each CR and each LF written as a space, so that it stays on one line. In
/// valid JSON these stand only between tokens, so the value is the same.
pub fn write_compact_line(out: &mut String, valid_json: &str) {
    let mut runs = valid_json.split(['\r', '\n']);
    out.reserve(valid_json.len());
    out.push_str(runs.next().unwrap_or_default());
    for run in runs {
        out.push(' ');
        out.push_str(run);
    }
}

/// The value's text without white space around it, after RFC 8259's syntax was checked. serde_json
/// skips a raw value without recursion and without a limit on depth.
fn syntax(text: &str) -> Result<&str, Fault> {
    serde_json::from_str::<&RawValue>(text)
        .map(RawValue::get)
        .map_err(|_| Fault::Syntax)
}

fn repeats(keys: &[Cow<'_, str>]) -> bool {
    if keys.len() <= PAIRWISE_KEYS {
        return keys
            .iter()
            .enumerate()
            .any(|(i, key)| keys[..i].contains(key));
    }
    // The standard hasher is keyed at random, so that chosen keys can't be made to collide.
    let mut seen = HashSet::with_capacity(keys.len());
    !keys.iter().all(|key| seen.insert(key.as_ref()))
}

/// What [`find`] stops at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// `"` and `\`.
    Quote,
    /// These, and the control characters below U+0020.
    Special,
}

/// The first position from `from` on that holds what `stop` names, or the length. Eight bytes at a
/// time: a byte is zero where `(x - 0x01…) & !x & 0x80…` has its high bit, and the lowest such bit
/// is exact, because borrows only travel upwards.
#[inline]
fn find(bytes: &[u8], from: usize, stop: Stop) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let zeros = |x: u64| x.wrapping_sub(ONES) & !x;
    let rest = bytes.get(from..).unwrap_or_default();
    let (chunks, tail) = rest.as_chunks::<8>();
    for (i, chunk) in chunks.iter().enumerate() {
        let word = u64::from_le_bytes(*chunk);
        let mut hit = zeros(word ^ (ONES * b'"' as u64)) | zeros(word ^ (ONES * b'\\' as u64));
        if stop == Stop::Special {
            // Below 0x20, found in the same way.
            hit |= word.wrapping_sub(ONES * 0x20) & !word;
        }
        let hit = hit & HIGHS;
        if hit != 0 {
            return from + i * 8 + hit.trailing_zeros() as usize / 8;
        }
    }
    let start = bytes.len() - tail.len();
    tail.iter()
        .position(|&b| matches!(b, b'"' | b'\\') || (stop == Stop::Special && b < 0x20))
        .map_or(bytes.len(), |i| start + i)
}

/// From behind a string's opening quote: where its closing quote is, and whether there are escapes.
/// Refuses NUL and lone surrogates.
#[inline]
fn scan_string(bytes: &[u8], from: usize) -> Result<(usize, bool), Fault> {
    let mut at = find(bytes, from, Stop::Quote);
    let mut escaped = false;
    while bytes.get(at) == Some(&b'\\') {
        escaped = true;
        at = if bytes.get(at + 1) == Some(&b'u') {
            code_point(bytes, at)?.1
        } else {
            at + 2
        };
        at = find(bytes, at, Stop::Quote);
    }
    // Only invalid JSON ends within a string.
    if at < bytes.len() {
        Ok((at, escaped))
    } else {
        Err(Fault::Syntax)
    }
}

/// Reads the escape `\uXXXX` at `at`, or the pair of them that a surrogate begins: the character
/// and the position behind it.
fn code_point(bytes: &[u8], at: usize) -> Result<(char, usize), Fault> {
    let unit = |at: usize| -> Option<u32> {
        let escape = bytes.get(at..at + 6)?;
        if escape[0] != b'\\' || escape[1] != b'u' {
            return None;
        }
        escape[2..].iter().try_fold(0, |unit, &digit| {
            Some(unit * 16 + char::from(digit).to_digit(16)?)
        })
    };
    let first = unit(at).ok_or(Fault::Syntax)?;
    match first {
        0 => Err(Fault::Nul),
        0xd800..0xdc00 => match unit(at + 6) {
            Some(second @ 0xdc00..0xe000) => {
                let scalar = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                char::from_u32(scalar)
                    .map(|c| (c, at + 12))
                    .ok_or(Fault::LoneSurrogate)
            }
            _ => Err(Fault::LoneSurrogate),
        },
        // `from_u32` refuses the low surrogates that are left.
        _ => char::from_u32(first)
            .map(|c| (c, at + 6))
            .ok_or(Fault::LoneSurrogate),
    }
}

/// Decodes what stands between a string's quotes.
fn unescape(inner: &str) -> Result<String, Fault> {
    let (out, end) = unescape_to_quote(inner, inner.len())?;
    if end == inner.len() {
        Ok(out)
    } else {
        Err(Fault::Syntax)
    }
}

/// Decodes what stands behind a string's opening quote, and says where the closing one is: at the end of
/// the text where there is none. `len` is about how long the string will be.
fn unescape_to_quote(text: &str, len: usize) -> Result<(String, usize), Fault> {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(len);
    let mut from = 0;
    loop {
        let at = find(bytes, from, Stop::Special);
        out.push_str(text.get(from..at).ok_or(Fault::Syntax)?);
        match bytes.get(at) {
            None | Some(b'"') => return Ok((out, at)),
            Some(b'\\') => {}
            Some(_) => return Err(Fault::Syntax),
        }
        from = at + 2;
        out.push(match bytes.get(at + 1) {
            Some(&c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let (c, end) = code_point(bytes, at)?;
                from = end;
                c
            }
            _ => return Err(Fault::Syntax),
        });
    }
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = bytes.get(at) {
        at += 1;
    }
    at
}

/// From behind a string's opening quote: where its closing quote is (or the length).
fn skip_string(bytes: &[u8], from: usize) -> usize {
    let mut at = find(bytes, from, Stop::Quote);
    while bytes.get(at) == Some(&b'\\') {
        at = find(bytes, at + 2, Stop::Quote);
    }
    at.min(bytes.len())
}

/// Past a number or a literal; at least one byte on, so that callers always move.
fn skip_token(bytes: &[u8], from: usize) -> usize {
    let end = |b: &u8| {
        matches!(
            b,
            b',' | b':' | b'"' | b'{' | b'}' | b'[' | b']' | b' ' | b'\t' | b'\n' | b'\r'
        )
    };
    bytes[from + 1..]
        .iter()
        .position(end)
        .map_or(bytes.len(), |i| from + 1 + i)
}

/// Past the value that begins at `from`.
fn skip_value(bytes: &[u8], from: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = from;
    while let Some(&byte) = bytes.get(at) {
        at = match byte {
            b'"' => skip_string(bytes, at + 1) + 1,
            b'{' | b'[' => {
                depth += 1;
                at + 1
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at + 1
            }
            _ if depth == 0 => skip_token(bytes, at),
            _ => at + 1,
        };
        if depth == 0 {
            break;
        }
    }
    at.min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_agrees_with_a_byte_loop_at_every_alignment() {
        // Bytes next to the ones searched for, with high bits, and after a hit.
        let seed = b"!\"#[\\]\x1f \x00\x01\xa2\xdc\x9f\x80\xffplain text \"\" \\\\ \x7f\x20\x1e";
        for start in 0..seed.len() {
            for end in start..=seed.len() {
                let bytes = &seed[..end];
                for stop in [Stop::Quote, Stop::Special] {
                    let expected = (start..end)
                        .find(|&i| {
                            matches!(bytes[i], b'"' | b'\\')
                                || (stop == Stop::Special && bytes[i] < 0x20)
                        })
                        .unwrap_or(end);
                    assert_eq!(find(bytes, start, stop), expected, "{start}..{end}");
                }
            }
        }
    }
}
