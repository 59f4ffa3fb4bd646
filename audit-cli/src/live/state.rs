//! The folder in which `audit verify --live` keeps what it knows of a log.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use audit_tlog::Note;
use audit_tlog::verify::Monitor;

use crate::bundle;
use crate::failure::Failure;

/// What is known; replaced as a whole.
const STATE: &str = "state.json";
/// The last checkpoint that was verified with all entries below it, for `audit verify --known`. A copy:
/// nothing reads it here.
const CHECKPOINT: &str = "checkpoint";
/// Locked while a process uses the folder.
const LOCK: &str = "lock";
/// The longest state: a note, keys, and changes of them.
const MAX_STATE: u64 = 8 << 20;

/// The folder, which no other process uses meanwhile.
pub(crate) struct StateFolder {
    at: PathBuf,
    _lock: File,
}

impl StateFolder {
    /// Opens the folder, and makes it when there is none.
    pub(crate) fn open(at: &Path) -> Result<Self, Failure> {
        let unusable = |e| Failure::Local(format!("{} can't be used", at.display()), e);
        fs::create_dir_all(at).map_err(unusable)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(at.join(LOCK))
            .map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                at: at.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => {
                let held = "another process follows a log with this folder";
                Err(unusable(io::Error::new(io::ErrorKind::ResourceBusy, held)))
            }
            Err(TryLockError::Error(e)) => Err(unusable(e)),
        }
    }

    /// What is known; `None` in a new folder. A state that isn't whole is never taken for none.
    pub(crate) fn load(&self) -> Result<Option<Monitor>, Failure> {
        let path = self.at.join(STATE);
        if !path.try_exists().is_ok_and(|exists| !exists) {
            let text = bundle::text(&path, MAX_STATE)?;
            return Monitor::parse(&text).map(Some).map_err(|fault| {
                let error = io::Error::new(io::ErrorKind::InvalidData, fault.to_string());
                Failure::Local(format!("{} can't be read", path.display()), error)
            });
        }
        // The copy is there and what it is a copy of isn't: somebody took that away.
        if self.at.join(CHECKPOINT).exists() {
            let gone = io::Error::from(io::ErrorKind::NotFound);
            return Err(Failure::Local(
                format!("{} can't be read", path.display()),
                gone,
            ));
        }
        Ok(None)
    }

    /// Replaces what is known.
    pub(crate) fn save(&self, monitor: &Monitor) -> Result<(), Failure> {
        self.replace(STATE, &monitor.encode())
    }

    /// Replaces the copy of the head below which every entry was verified.
    pub(crate) fn save_verified(&self, head: &Note) -> Result<(), Failure> {
        self.replace(CHECKPOINT, &head.encode())
    }

    /// Replaces a file with a text, at once and durably; killed in between, it is the one before.
    fn replace(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.at.join(name);
        let new = self.at.join(format!("{name}.new"));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.at)?.sync_all()
        };
        write().map_err(|e| Failure::Local(format!("{} can't be written", path.display()), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_serves_one_process_at_a_time() {
        let within = tempfile::TempDir::new().unwrap();
        let at = within.path().join("a/b");
        let first = StateFolder::open(&at).unwrap();
        assert!(first.load().unwrap().is_none());
        assert!(StateFolder::open(&at).is_err());
        drop(first);
        StateFolder::open(&at).unwrap();
    }
}
