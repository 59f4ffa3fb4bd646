//! Building an index anew from the logs while it is used.

use audit_core::rebuild::{fill, sizes};
use audit_core::{ErrorKind, LogStore, Result, SearchIndex as _, TenantId, TenantScope};

use crate::index::OpenSearchIndex;
use crate::options::Layout;

/// A pass that found no more entries than this is the last one before the swap.
const FEW: usize = 1_000;
/// The most passes before the swap; what is left then is caught up after it.
const PASSES: usize = 10;

impl OpenSearchIndex {
    /// Builds every index anew from the logs, into a new one, and puts that in the place of the old
    /// one, which is deleted: after a change of the cluster's settings, for documents that it refused
    /// before, and so that nothing of what was erased is left on its disks.
    ///
    /// Recording, indexing and searching go on meanwhile:
    /// - Searches are answered by the old index until the swap, then by the new one. At the swap
    ///   `indexed_through` may fall back by what was recorded last; it has caught up when this
    ///   returns.
    /// - Nothing is lost: an indexer that was writing to the old index gets a retryable error, asks
    ///   how far the new one is and goes on from there. What was erased or pruned meanwhile is out of
    ///   the new index too, since the log says so.
    /// - One that fails or is broken off changes nothing that a search sees. The next one goes on
    ///   where it ended, and several at once do the same work.
    ///
    /// A tenant whose log can't be read, because it is suspended or deleted, is left out, and is
    /// indexed from the beginning when it can be read again. Without an index one is made and filled.
    ///
    /// # Errors
    /// What the store and the cluster answer; [`Refused`](audit_core::ErrorKind::Refused) when the
    /// names of the indexes are taken by something else.
    pub async fn reindex(&self, store: &dyn LogStore) -> Result<()> {
        let generations = &self.shared.generations;
        if generations.layout() == Layout::Shared {
            return self.rebuild(store, None).await;
        }
        for (tenant, _) in sizes(store, None).await? {
            self.rebuild(store, Some(tenant)).await?;
        }
        Ok(())
    }

    /// Rebuilds the shared index, or one tenant's.
    async fn rebuild(&self, store: &dyn LogStore, only: Option<TenantId>) -> Result<()> {
        let generations = &self.shared.generations;
        let before = sizes(store, only).await?;
        let live = only.map_or_else(|| generations.shared(), |tenant| generations.live(tenant));
        if let Some(old) = generations.look(&live, &live).await? {
            let new = generations.successor(&live, &old).await?;
            let target = self.on(new.generation.clone());
            for _ in 0..PASSES {
                if fill(&target, store, only).await? <= FEW {
                    break;
                }
            }
            generations.replace(&live, &old, &new).await?;
        }
        generations.tidy(&live).await?;
        // Its entries of the last moment were told to the old index only, and nobody speaks of a
        // tenant again that has nothing new.
        fill(&self.another(), store, only).await?;
        self.leave_out_deleted(store, before).await
    }

    /// Takes out tenants that were deleted meanwhile: out of the old index they were taken already.
    async fn leave_out_deleted(
        &self,
        store: &dyn LogStore,
        tenants: Vec<(TenantId, u64)>,
    ) -> Result<()> {
        for (tenant, _) in tenants {
            let scope = TenantScope::trusted(tenant, "rebuild");
            match store.head(&scope).await {
                Err(error) if error.kind() == ErrorKind::TenantDeleted => {
                    self.forget(&scope).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}
