//! What the engine's errors mean to a caller.

use audit_core::{Error, ErrorKind};
use sqlx_core::error::{DatabaseError, Error as SqlxError};
use sqlx_postgres::PgDatabaseError;

/// SQLSTATE of a row that violates a constraint, which a missing partition is told as.
pub(crate) const CHECK_VIOLATION: &str = "23514";
/// SQLSTATE of a key that is taken.
pub(crate) const UNIQUE_VIOLATION: &str = "23505";
/// SQLSTATE of a lock that was not had in time.
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The error that a caller is shown for one of the engine's or the driver's. By SQLSTATE, never by
/// the message: on TimescaleDB that has chunks' names in it.
///
/// A connection that is lost at a commit is [`ErrorKind::Unavailable`]: whether it came through is
/// not known, and recording again by the same ids is safe.
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
    Error::new(kind, message).with_source(error)
}

fn told(error: &dyn DatabaseError) -> (ErrorKind, &'static str) {
    let code = error.code().unwrap_or_default();
    let class = code.get(..2).unwrap_or_default();
    match (&*code, class) {
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
        (_, "28") | ("3D000", _) => (ErrorKind::Refused, "the database refuses the login"),
        ("42501", _) => (
            ErrorKind::Refused,
            "the login lacks a right: was the database migrated, and are its roles granted?",
        ),
        ("42P01" | "3F000" | "42883" | "42703", _) => (
            ErrorKind::Refused,
            "the database is not migrated to what this program needs",
        ),
        _ => (ErrorKind::Internal, "the database refused a statement"),
    }
}

/// The SQLSTATE of an error that came from the engine.
pub(crate) fn sqlstate(error: &Error) -> Option<&str> {
    let source = std::error::Error::source(error)?;
    match source.downcast_ref::<SqlxError>()? {
        SqlxError::Database(told) => told
            .try_downcast_ref::<PgDatabaseError>()
            .map(PgDatabaseError::code),
        _ => None,
    }
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
