//! Server-sent events (the WHATWG HTML standard, section "Interpreting an event stream").

/// The longest line that is kept; an entry is well below it.
const MAX_LINE: usize = 8 * 1024 * 1024;

/// One dispatched message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Message {
    /// The last id that the stream named, this message's included.
    pub(crate) id: Option<String>,
    /// The data lines, joined by line feeds; empty where an id stands alone.
    pub(crate) data: String,
}

/// Reads messages from bytes that arrive in pieces.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    after_return: bool,
    id: Option<String>,
    named: bool,
    data: Option<String>,
}

/// The stream is not one of server-sent events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

impl Parser {
    /// Takes the next piece and returns the messages that it completes.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<Vec<Message>, Unreadable> {
        let mut messages = Vec::new();
        for &byte in piece {
            let follows_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if follows_return => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    messages.extend(self.line(&line)?);
                }
                _ if self.line.len() == MAX_LINE => return Err(Unreadable),
                _ => self.line.push(byte),
            }
        }
        Ok(messages)
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Message>, Unreadable> {
        let line = std::str::from_utf8(line).map_err(|_| Unreadable)?;
        if line.is_empty() {
            // An id without data is kept: a stream begins with one that says where.
            let named = std::mem::take(&mut self.named);
            let data = self.data.take();
            return Ok((named || data.is_some()).then(|| Message {
                id: self.id.clone(),
                data: data.unwrap_or_default(),
            }));
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "id" if !value.contains('\0') => {
                self.id = Some(value.to_owned());
                self.named = true;
            }
            // Comments, `event`, `retry` and what is unknown.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_same_however_the_bytes_are_cut() {
        let text = "id: 3\n\n: hello\r\n\r\nid: 4\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\nevent: x\nid:5\ndata:b\n\n\ndata: cut";
        let wanted = [
            Message {
                id: Some("3".into()),
                data: String::new(),
            },
            Message {
                id: Some("4".into()),
                data: "{\"a\":\n1}".into(),
            },
            Message {
                id: Some("5".into()),
                data: "b".into(),
            },
        ];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let mut messages = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                messages.extend(parser.push(piece).unwrap());
            }
            assert_eq!(messages, wanted, "pieces of {size}");
        }
    }
}
