//! What the engine's errors mean to a caller.

use audit_core::{Error, ErrorKind};
use rusqlite::Error as SqliteError;
use rusqlite::ffi::{ErrorCode, SQLITE_IOERR_SHMSIZE};

use crate::row::UnreadableEntry;

/// The error that a caller is shown for one of the engine's.
pub(crate) fn from_sqlite(error: SqliteError) -> Error {
    if let Some(entry) = UnreadableEntry::of(&error) {
        return Error::corrupt(entry.tenant, entry.seq).with_source(error);
    }
    // Most full disks are told as such; this one, of the memory that connections share, is not.
    let is_full = error
        .sqlite_error()
        .is_some_and(|e| e.extended_code == SQLITE_IOERR_SHMSIZE);
    let (kind, message) = match error.sqlite_error_code() {
        _ if is_full => (ErrorKind::StorageFull, "the storage is full"),
        Some(ErrorCode::DiskFull) => (ErrorKind::StorageFull, "the storage is full"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (ErrorKind::Unavailable, "the database is busy")
        }
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::OutOfMemory) => (
            ErrorKind::Unavailable,
            "the database can't be read or written",
        ),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            (ErrorKind::Corrupt, "the database file is damaged")
        }
        _ if is_unreadable(&error) => (ErrorKind::Corrupt, "a stored value can't be read"),
        _ => (ErrorKind::Internal, "the database refused a statement"),
    };
    Error::new(kind, message).with_source(error)
}

/// Whether a value is there, and not one that this program writes.
pub(crate) const fn is_unreadable(error: &SqliteError) -> bool {
    matches!(
        error,
        SqliteError::FromSqlConversionFailure(..)
            | SqliteError::IntegralValueOutOfRange(..)
            | SqliteError::InvalidColumnType(..)
            | SqliteError::Utf8Error(..)
    )
}

/// A part that is gone: the store was closed, or its thread died.
pub(crate) fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is closed")
}
