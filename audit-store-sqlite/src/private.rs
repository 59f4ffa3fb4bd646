//! Files that only their owner may read: a log is personal data, whatever the process's umask is.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use audit_core::{Error, ErrorKind, Result};

/// Opens a file for reading and writing; one that is missing is made for its owner alone (0600). One
/// that is there keeps its mode.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Makes the file of a database where it is missing, before SQLite does. SQLite gives the files beside
/// it, `-wal` and `-shm`, the same mode.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    open_private(path).map(drop).map_err(|e| {
        Error::new(
            ErrorKind::Unavailable,
            format!("the file {} can't be opened", path.display()),
        )
        .with_source(e)
    })
}
