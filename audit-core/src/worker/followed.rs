//! How far logs were followed, and which tenants are passed over for a while.

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::pause_after;
use crate::error::Result;
use crate::id::TenantId;
use crate::store::{LogStore, Mark};

/// Tenants with which something failed, each with a pause of its own: they hold up no others.
#[derive(Debug, Default)]
pub(super) struct Paused(HashMap<TenantId, (u32, Instant)>);

impl Paused {
    /// It failed, again perhaps: it is passed over for twice as long as the last time.
    pub(super) fn fail(&mut self, tenant: TenantId) {
        let failures = self.0.get(&tenant).map_or(0, |(n, _)| *n);
        let until = Instant::now() + pause_after(failures);
        self.0.insert(tenant, (failures.saturating_add(1), until));
    }

    /// It worked, or there is nothing left to do for it.
    pub(super) fn forgive(&mut self, tenant: TenantId) {
        self.0.remove(&tenant);
    }

    pub(super) fn forgive_all(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it failed and has not worked since.
    pub(super) fn has_failed(&self, tenant: TenantId) -> bool {
        self.0.contains_key(&tenant)
    }

    /// Whether it is passed over now.
    pub(super) fn passes_over(&self, tenant: TenantId) -> bool {
        let now = Instant::now();
        self.0.get(&tenant).is_some_and(|(_, until)| *until > now)
    }

    /// Those that are passed over now.
    pub(super) fn now(&self) -> Vec<TenantId> {
        let now = Instant::now();
        let paused = self.0.iter().filter(|(_, (_, until))| *until > now);
        paused.map(|(tenant, _)| *tenant).collect()
    }

    /// Those that failed and are not passed over any more.
    pub(super) fn due(&self) -> Vec<TenantId> {
        let now = Instant::now();
        let due = self.0.iter().filter(|(_, (_, until))| *until <= now);
        due.map(|(tenant, _)| *tenant).collect()
    }
}

/// The tenants that have grown and were not followed to their end yet.
#[derive(Debug, Default)]
pub(super) struct Followed {
    mark: Mark,
    sizes: BTreeMap<TenantId, u64>,
    /// Where each tenant's log goes on, of those that were met.
    cursors: HashMap<TenantId, u64>,
    pub(super) paused: Paused,
}

impl Followed {
    /// Asks which tenants grew, and returns by how many entries. One that is told again, and was
    /// followed that far, is passed over; one that is new counts for nothing.
    pub(super) async fn look(&mut self, store: &dyn LogStore) -> Result<u64> {
        let grown = store.grown_since(self.mark).await?;
        self.mark = grown.mark;
        let mut entries = 0;
        for (tenant, size) in grown.tenants {
            let cursor = self.cursors.get(&tenant).copied();
            if cursor.is_none_or(|cursor| cursor < size) {
                let known = self.sizes.insert(tenant, size).or(cursor);
                entries += size.saturating_sub(known.unwrap_or(size));
            }
        }
        Ok(entries)
    }

    /// Tenants with more to follow, that aren't passed over.
    pub(super) fn due(&self) -> impl Iterator<Item = TenantId> + '_ {
        let tenants = self.sizes.keys().copied();
        tenants.filter(|tenant| !self.paused.passes_over(*tenant))
    }

    /// How many entries are not followed yet.
    pub(super) fn lag(&self) -> u64 {
        let behind = |(tenant, size): (&TenantId, &u64)| {
            size.saturating_sub(self.cursor(*tenant).unwrap_or(0))
        };
        self.sizes.iter().map(behind).sum()
    }

    pub(super) fn cursor(&self, tenant: TenantId) -> Option<u64> {
        self.cursors.get(&tenant).copied()
    }

    pub(super) fn set_cursor(&mut self, tenant: TenantId, cursor: u64) {
        self.cursors.insert(tenant, cursor);
    }

    /// The tenant behind this one, of those that were met; the first one behind the last.
    pub(super) fn after(&self, tenant: Option<TenantId>) -> Option<TenantId> {
        let behind = self.cursors.keys().filter(|t| Some(**t) > tenant).min();
        behind.or_else(|| self.cursors.keys().min()).copied()
    }

    /// A tenant was followed to this position.
    pub(super) fn reached(&mut self, tenant: TenantId, position: u64) {
        self.paused.forgive(tenant);
        if self
            .sizes
            .get(&tenant)
            .is_some_and(|size| position >= *size)
        {
            self.sizes.remove(&tenant);
        }
    }

    /// A tenant's log can't be followed now, or has nothing more.
    pub(super) fn ended(&mut self, tenant: TenantId) {
        self.paused.forgive(tenant);
        self.sizes.remove(&tenant);
    }

    /// A tenant's log could not be followed: it is passed over for a while.
    pub(super) fn fail(&mut self, tenant: TenantId) {
        self.paused.fail(tenant);
    }

    /// Nothing is known any more of how far the logs were followed: all are looked at again.
    pub(super) fn restart(&mut self) {
        self.cursors.clear();
        self.mark = Mark::default();
    }

    pub(super) fn forget_cursor(&mut self, tenant: TenantId) {
        self.cursors.remove(&tenant);
    }
}
