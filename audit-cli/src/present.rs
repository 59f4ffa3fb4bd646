//! What is shown on the terminal, and what scripts read.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};

use audit_core::{Entry, Timestamp};
use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::failure::Failure;

/// Standard output and the switches that decide what goes to it.
pub(crate) struct Out {
    /// One JSON value a line instead of text for people.
    pub(crate) json: bool,
    /// No progress, no hints, no summaries.
    pub(crate) quiet: bool,
    stdout: BufWriter<Stdout>,
}

impl Out {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            stdout: BufWriter::new(io::stdout()),
        }
    }

    /// Writes a line as it stands: for JSON, which escapes control characters itself.
    pub(crate) fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.stdout
            .write_all(line.as_bytes())
            .and_then(|()| self.stdout.write_all(b"\n"))
            .map_err(Failure::Output)
    }

    /// Writes a line of text for people.
    pub(crate) fn text(&mut self, line: &str) -> Result<(), Failure> {
        self.line(&clean(line))
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stdout.write_all(bytes).map_err(Failure::Output)
    }

    /// Hands over what is buffered.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.stdout.flush().map_err(Failure::Output)
    }

    /// A remark beside the result, for people only.
    pub(crate) fn hint(&self, hint: &str) {
        if !self.quiet {
            // Nobody is left to be told when standard error is closed.
            drop(writeln!(io::stderr(), "{}", clean(hint)));
        }
    }

    /// Whether progress is to be shown.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// Writes a table for people; nothing when it has no rows.
    pub(crate) fn table(&mut self, head: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(NOTHING);
        if !head.is_empty() {
            table.set_header(head.to_vec());
        }
        for row in rows {
            table.add_row(
                row.iter()
                    .map(|cell| clean(cell).into_owned())
                    .collect::<Vec<_>>(),
            );
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let text = table.to_string();
        text.lines().try_for_each(|line| self.line(line.trim_end()))
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn value(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let line = serde_json::to_string(value).map_err(|e| Failure::Output(e.into()))?;
        self.line(&line)
    }
}

impl fmt::Debug for Out {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Out")
            .field("json", &self.json)
            .field("quiet", &self.quiet)
            .finish()
    }
}

/// Text without what a terminal would obey: control characters, and those that turn the direction of
/// writing. A log shows what attackers sent.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(obeyed) {
        Cow::Owned(
            text.chars()
                .map(|c| if obeyed(c) { '\u{fffd}' } else { c })
                .collect(),
        )
    } else {
        Cow::Borrowed(text)
    }
}

/// At most `width` characters.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// A time to the second.
pub(crate) fn second(at: Timestamp) -> String {
    let text = at.to_string();
    format!(
        "{}Z",
        text.split('.')
            .next()
            .unwrap_or(&text)
            .trim_end_matches('Z')
    )
}

/// The actor: its name or id; a dash when there is none.
pub(crate) fn actor(entry: &Entry) -> &str {
    let fields = &entry.fields;
    fields
        .user_id
        .as_deref()
        .or(fields.actor_name.as_deref())
        .unwrap_or("-")
}

/// The resource, `type/id`; what was erased is said to be.
pub(crate) fn resource(entry: &Entry) -> String {
    match (&entry.fields.resource_type, &entry.fields.resource_id) {
        (Some(kind), Some(id)) => format!("{kind}/{id}"),
        _ => "(erased)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_shown() {
        assert_eq!(
            clean("a\u{1b}[2Jb\u{202e}c\nd\u{9b}"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d\u{fffd}"
        );
        assert!(matches!(clean("Zürich 日本"), Cow::Borrowed(_)));
    }

    #[test]
    fn times_are_cut_to_the_second() {
        assert_eq!(
            second(Timestamp::parse("2026-11-24T14:07:07.5Z").unwrap()),
            "2026-11-24T14:07:07Z"
        );
    }
}
