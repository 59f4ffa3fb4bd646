//! What the engine's errors mean to a caller.

use audit_core::{Error, ErrorKind};
use sqlx_core::error::{DatabaseError, Error as SqlxError};

/// SQLSTATE of a row that violates a constraint, which a missing partition is told as.
pub(crate) const CHECK_VIOLATION: &str = "23514";
/// Another transaction made the table meanwhile. An advisory lock doesn't renew what a session knows of the
/// catalog, so that it may look for the table, wait for the lock, and look in vain again.
pub(crate) const DUPLICATE_TABLE: &str = "42P07";
/// SQLSTATE of a key that is taken.
pub(crate) const UNIQUE_VIOLATION: &str = "23505";
/// SQLSTATE of a lock that was not had in time.
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";

/// SQLSTATE of an erasure or a prune while a legal hold is open: the database refuses what a program
/// that doesn't know of holds asks for.
const HELD: &str = "AU001";

/// The error that a caller is shown for one of the engine's or the driver's. By SQLSTATE, never by
/// the message: on TimescaleDB that has chunks' names in it.
///
/// A connection that is lost at a commit is [`ErrorKind::Unavailable`]: whether it came through is
/// not known, and recording again by the same ids is safe.
///
/// Also [`ErrorKind::Unavailable`] is what an operator has to set right, a login or a right that was
/// taken away: a queue's messages are kept until then. Where a store is opened it is
/// [`ErrorKind::Refused`]: see [`at_start`].
pub(crate) fn from_sqlx(error: SqlxError) -> Error {
    let (kind, message) = match &error {
        SqlxError::Database(error) => told(error.as_ref()),
        SqlxError::Io(_) | SqlxError::PoolTimedOut | SqlxError::WorkerCrashed => {
            (ErrorKind::Unavailable, "the database is away")
        }
        SqlxError::PoolClosed => (ErrorKind::Unavailable, "the store is closed"),
        // A server that goes down in the middle of an answer, too.
        SqlxError::Protocol(_) | SqlxError::BeginFailed => (
            ErrorKind::Unavailable,
            "the connection to the database broke",
        ),
        SqlxError::Tls(_) => (
            ErrorKind::Unavailable,
            "no secure connection to the database",
        ),
        SqlxError::Configuration(_) => (ErrorKind::Refused, "the database's address can't be read"),
        SqlxError::ColumnDecode { .. } | SqlxError::Decode(_) => {
            (ErrorKind::Corrupt, "a stored value can't be read")
        }
        _ => (ErrorKind::Internal, "the database refused a statement"),
    };
    let shown = Error::new(kind, message);
    match error {
        SqlxError::Database(told) => shown.with_source(Told::of(told.as_ref())),
        other => shown.with_source(other),
    }
}

/// As when a store is opened or a database migrated: what has to be set right first is refused.
pub(crate) fn at_start(error: Error) -> Error {
    match sqlstate(&error).map(class_of) {
        Some(Class::Setup(message)) => Error::new(ErrorKind::Refused, message).with_source(error),
        _ => error,
    }
}

/// What the engine said, without the values of rows: those are in its detail and its context, and for
/// faulty data in the message itself.
#[derive(Debug)]
struct Told {
    code: String,
    message: String,
}

impl Told {
    fn of(error: &dyn DatabaseError) -> Self {
        let code = error.code().unwrap_or_default().into_owned();
        let message = match code.get(..2) {
            Some("22" | "23" | "P0") => String::new(),
            _ => error.message().to_owned(),
        };
        Self { code, message }
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SQLSTATE {}", self.code)?;
        match &*self.message {
            "" => Ok(()),
            message => write!(f, ": {message}"),
        }
    }
}

impl std::error::Error for Told {}

/// What an SQLSTATE means.
enum Class {
    Kind(ErrorKind, &'static str),
    /// For an operator to set right.
    Setup(&'static str),
}

fn told(error: &dyn DatabaseError) -> (ErrorKind, &'static str) {
    match class_of(&error.code().unwrap_or_default()) {
        Class::Kind(kind, message) => (kind, message),
        Class::Setup(message) => (ErrorKind::Unavailable, message),
    }
}

fn class_of(code: &str) -> Class {
    let class = code.get(..2).unwrap_or_default();
    let (kind, message) = match (code, class) {
        (HELD, _) => (ErrorKind::Refused, "a legal hold protects the log"),
        ("53100", _) => (ErrorKind::StorageFull, "the storage is full"),
        ("57014" | LOCK_NOT_AVAILABLE, _) => (ErrorKind::Unavailable, "the database is busy"),
        // Deadlocks and serialization failures.
        (_, "40") => (ErrorKind::Unavailable, "the database is busy"),
        ("25006", _) => (ErrorKind::Unavailable, "the database is read-only"),
        // A transaction that was broken off, and plans from before a migration: another connection,
        // or the next try, has neither.
        ("25P02" | "0A000" | "26000", _) => (
            ErrorKind::Unavailable,
            "the connection to the database broke",
        ),
        ("25P03" | "25P04", _) => (
            ErrorKind::Unavailable,
            "the database gave the transaction up",
        ),
        (_, "08" | "53" | "57" | "58") => (ErrorKind::Unavailable, "the database is away"),
        ("XX001" | "XX002", _) => (ErrorKind::Corrupt, "the database is damaged"),
        (_, "28") | ("3D000", _) => return Class::Setup("the database refuses the login"),
        ("42501", _) => {
            return Class::Setup(
                "the login lacks a right: was the database migrated, and are its roles granted?",
            );
        }
        ("42P01" | "3F000" | "42883" | "42703", _) => {
            return Class::Setup("the database is not migrated to what this program needs");
        }
        _ => (ErrorKind::Internal, "the database refused a statement"),
    };
    Class::Kind(kind, message)
}

/// The SQLSTATE of an error that came from the engine.
pub(crate) fn sqlstate(error: &Error) -> Option<&str> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<Told>().map(|told| &*told.code)
}

/// A value that the engine gave and this program doesn't know.
#[derive(Debug)]
pub(crate) struct Unreadable(pub(crate) &'static str);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} can't be read", self.0)
    }
}

impl std::error::Error for Unreadable {}
