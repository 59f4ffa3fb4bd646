//! The sidecar file that makes one process the writer.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use audit_core::{Error, ErrorKind, Result};

use crate::private::open_private;

/// The writer's lock on `<file>.lock`. The operating system releases it when the process ends,
/// however it ends; the file stays.
#[derive(Debug)]
pub(crate) struct WriterLock {
    _file: File,
}

impl WriterLock {
    /// Takes the lock of the database at `path`.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`], naming the process that has it.
    pub(crate) fn take(path: &Path) -> Result<Self> {
        let lock = lock_path(path);
        let unusable = |e: std::io::Error| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the lock file {} can't be used", lock.display()),
            )
            .with_source(e)
        };
        let mut file = open_private(&lock).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(unusable)?;
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "process {} writes {}, and only one may: stop it, or open the file for reading \
                         only (SqliteOptions::read_only)",
                        holder.trim(),
                        path.display()
                    ),
                ));
            }
            Err(TryLockError::Error(e)) => return Err(unusable(e)),
        }
        file.set_len(0).map_err(unusable)?;
        writeln!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}
