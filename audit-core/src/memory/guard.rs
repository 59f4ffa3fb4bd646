//! A guard in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::error::Result;
use crate::guard::{Guard, GuardAdvance, GuardedErasure, GuardedHead, admit_advance};
use crate::id::TenantId;

/// A guard in memory, for tests: it remembers until it is dropped.
#[derive(Debug, Default)]
pub struct MemoryGuard {
    tenants: Mutex<BTreeMap<TenantId, (GuardedHead, Vec<GuardedErasure>)>>,
    deployment: Mutex<Option<GuardedHead>>,
}

impl MemoryGuard {
    /// A guard that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    // A panic of another thread leaves the map whole.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TenantId, (GuardedHead, Vec<GuardedErasure>)>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Guard for MemoryGuard {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    async fn head(&self, tenant: TenantId) -> Result<Option<GuardedHead>> {
        Ok(self.lock().get(&tenant).map(|(head, _)| *head))
    }

    async fn erasures(
        &self,
        tenant: TenantId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GuardedErasure>> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let tenants = self.lock();
        let known = tenants.get(&tenant).map_or(&[][..], |(_, known)| known);
        Ok(known.iter().skip(from).take(limit).cloned().collect())
    }

    async fn tenants(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<TenantId>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let tenants = self.lock();
        let behind = tenants.range((from, Bound::Unbounded));
        Ok(behind.map(|(tenant, _)| *tenant).take(limit).collect())
    }

    async fn advance(&self, tenant: TenantId, advance: &GuardAdvance) -> Result<()> {
        let mut tenants = self.lock();
        let present = tenants.get(&tenant).map(|(head, _)| head);
        if admit_advance(present, advance)? {
            let (head, erasures) = tenants
                .entry(tenant)
                .or_insert_with(|| (advance.to, Vec::new()));
            *head = advance.to;
            erasures.extend_from_slice(&advance.erasures);
        }
        Ok(())
    }

    async fn deployment_head(&self) -> Result<Option<GuardedHead>> {
        let head = self.deployment.lock();
        Ok(*head.unwrap_or_else(PoisonError::into_inner))
    }

    async fn advance_deployment(&self, known: Option<GuardedHead>, to: GuardedHead) -> Result<()> {
        let head = self.deployment.lock();
        let mut head = head.unwrap_or_else(PoisonError::into_inner);
        if admit_advance(head.as_ref(), &GuardAdvance::plain(known, to))? {
            *head = Some(to);
        }
        Ok(())
    }
}
