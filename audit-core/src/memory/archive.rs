//! An archive in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use crate::archive::{Archive, MAX_LISTED, check_path};
use crate::error::Result;

/// An [`Archive`] that is gone with the process.
#[derive(Debug, Default)]
pub struct MemoryArchive {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl MemoryArchive {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Archive for MemoryArchive {
    async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        check_path(path)?;
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.insert(path.to_owned(), bytes);
        Ok(())
    }

    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        check_path(path)?;
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(objects.get(path).cloned())
    }

    async fn list(&self, folder: &str, after: &str) -> Result<Vec<String>> {
        check_path(folder)?;
        let within = format!("{folder}/");
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = objects.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let paths = behind.map(|(path, _)| path);
        let below = paths.filter(|path| path.starts_with(&within));
        Ok(below.take(MAX_LISTED).cloned().collect())
    }

    async fn remove(&self, path: &str) -> Result<()> {
        check_path(path)?;
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.remove(path);
        Ok(())
    }
}
