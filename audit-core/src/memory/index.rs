//! The full-text index in memory.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::entry::Entry;
use crate::error::Result;
use crate::id::TenantId;
use crate::page::Order;
use crate::rebuild::rebuild_in_place;
use crate::scope::{Permission, TenantScope};
use crate::search::{Hits, SearchIndex, SearchRequest};
use crate::store::LogStore;

/// An index in memory that keeps the entries themselves and looks through them: exact, and slow
/// beyond some ten thousand.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    tenants: Mutex<HashMap<TenantId, Indexed>>,
}

#[derive(Debug, Default)]
struct Indexed {
    through: u64,
    entries: BTreeMap<u64, Entry>,
}

impl MemoryIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Indexed>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SearchIndex for MemoryIndex {
    async fn index(&self, entries: &[Entry]) -> Result<()> {
        let mut tenants = self.lock();
        for entry in entries {
            let indexed = tenants.entry(entry.tenant_id).or_default();
            if entry.seq >= indexed.through {
                indexed.through = entry.seq + 1;
                indexed.entries.insert(entry.seq, entry.clone());
            }
        }
        Ok(())
    }

    async fn search(&self, scope: &TenantScope, request: &SearchRequest) -> Result<Hits> {
        scope.require(Permission::Read)?;
        let tenants = self.lock();
        let Some(indexed) = tenants.get(&scope.tenant()) else {
            return Ok(Hits::default());
        };
        let behind = request.after.map_or(Bound::Unbounded, Bound::Excluded);
        let matches = |(seq, entry): (&u64, &Entry)| request.filter.matches(entry).then_some(*seq);
        let take = request.limit.saturating_add(1);
        let mut seqs: Vec<u64> = match request.order {
            Order::Ascending => {
                let range = indexed.entries.range((behind, Bound::Unbounded));
                range.filter_map(matches).take(take).collect()
            }
            Order::Descending => {
                let range = indexed.entries.range((Bound::Unbounded, behind));
                range.rev().filter_map(matches).take(take).collect()
            }
        };
        let more = seqs.len() > request.limit;
        seqs.truncate(request.limit);
        Ok(Hits::new(seqs, more, indexed.through))
    }

    async fn remove(&self, scope: &TenantScope, current: &[Entry]) -> Result<()> {
        scope.require(Permission::Erase)?;
        let mut tenants = self.lock();
        let Some(indexed) = tenants.get_mut(&scope.tenant()) else {
            return Ok(());
        };
        for entry in current
            .iter()
            .filter(|entry| entry.tenant_id == scope.tenant())
        {
            if let Some(stale) = indexed.entries.get_mut(&entry.seq) {
                *stale = entry.clone();
            }
        }
        Ok(())
    }

    async fn indexed_through(&self, scope: &TenantScope) -> Result<u64> {
        scope.require(Permission::Read)?;
        Ok(self
            .lock()
            .get(&scope.tenant())
            .map_or(0, |indexed| indexed.through))
    }

    async fn held(&self, scope: &TenantScope, seqs: Range<u64>) -> Result<Vec<u64>> {
        scope.require(Permission::Read)?;
        let tenants = self.lock();
        let indexed = tenants.get(&scope.tenant());
        Ok(indexed.map_or_else(Vec::new, |indexed| {
            indexed.entries.range(seqs).map(|(seq, _)| *seq).collect()
        }))
    }

    async fn mend(&self, scope: &TenantScope, missing: &[Entry], surplus: &[u64]) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        let mut tenants = self.lock();
        let Some(indexed) = tenants.get_mut(&scope.tenant()) else {
            return Ok(());
        };
        for seq in surplus {
            indexed.entries.remove(seq);
        }
        for entry in missing {
            if entry.tenant_id == scope.tenant() && entry.seq < indexed.through {
                indexed.entries.insert(entry.seq, entry.clone());
            }
        }
        Ok(())
    }

    async fn forget(&self, scope: &TenantScope) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        self.lock().remove(&scope.tenant());
        Ok(())
    }

    async fn rebuild(&self, store: &Arc<dyn LogStore>) -> Result<()> {
        rebuild_in_place(self, &**store).await
    }
}
