//! How a command ends, and the exit code for it.

use std::fmt;
use std::io;

use audit_core::{Error, ErrorKind};

use crate::connect::DEFAULT_TOKEN;

/// A command that came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything was done: exit code 0.
    Complete,
    /// Some items were refused or in conflict, and were named: exit code 1.
    Partial,
}

/// A command that did not.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments can't be meant so.
    Usage(String),
    /// The server at this address wants a credential, and nothing names one.
    NoCredential(String),
    /// A file of the user's can't be read or written.
    Local(String, io::Error),
    /// Standard output can't be written.
    Output(io::Error),
    /// The log or the connection to it.
    Log(Error),
    /// The same, with what was done until then.
    Halted(String, Error),
    /// What was to be verified couldn't be read: exit code 2, whatever the reason.
    Unread(Box<Self>),
}

impl Failure {
    /// The documented exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Output(_) => 1,
            Self::Usage(_) | Self::Local(..) | Self::Unread(_) => 2,
            Self::NoCredential(_) => 4,
            Self::Log(error) | Self::Halted(_, error) => match error.kind() {
                ErrorKind::Unavailable
                | ErrorKind::StorageFull
                | ErrorKind::Corrupt
                | ErrorKind::Internal => 3,
                ErrorKind::Forbidden | ErrorKind::UnknownTenant => 4,
                _ => 1,
            },
        }
    }

    pub(crate) fn is_closed_pipe(&self) -> bool {
        match self {
            Self::Output(error) => error.kind() == io::ErrorKind::BrokenPipe,
            Self::Unread(failure) => failure.is_closed_pipe(),
            _ => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) => f.write_str(message),
            Self::NoCredential(url) => write!(
                f,
                "{url} wants a credential, and none is named: set AUDIT_TOKEN, or give --token or --token-file, and \
                 name another server with AUDIT_URL or --url (a server that was started in this folder \
                 keeps a token in {DEFAULT_TOKEN})"
            ),
            Self::Local(what, error) => write!(f, "{what}: {error}"),
            Self::Output(error) => write!(f, "the output can't be written: {error}"),
            Self::Log(error) => f.write_str(&one_line(error)),
            Self::Halted(what, error) => write!(f, "{}; {what}", one_line(error)),
            Self::Unread(failure) => failure.fmt(f),
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn one_line(error: &Error) -> String {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Log(error)
    }
}
