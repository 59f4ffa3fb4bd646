//! Full-text search: an index that gives positions, never content.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;

use crate::entry::Entry;
use crate::error::Result;
use crate::filter::Filter;
use crate::page::Order;
use crate::scope::TenantScope;
use crate::store::LogStore;

/// What [`SearchIndex::search`] is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SearchRequest {
    /// The conditions; `q` is set.
    pub filter: Filter,
    /// By `seq`, which way.
    pub order: Order,
    /// The most hits.
    pub limit: usize,
    /// Hits behind this position, in the order asked for.
    pub after: Option<u64>,
}

impl SearchRequest {
    /// The newest hits.
    pub fn new(filter: Filter, limit: usize) -> Self {
        Self {
            filter,
            order: Order::Descending,
            limit,
            after: None,
        }
    }

    /// Goes this way.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Goes on behind this position.
    #[must_use]
    pub fn after(mut self, seq: Option<u64>) -> Self {
        self.after = seq;
        self
    }
}

/// The answer of [`SearchIndex::search`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Hits {
    /// Positions, in the order asked for. There may be too many (the caller checks each against the
    /// stored entry), never too few below `indexed_through`.
    pub seqs: Vec<u64>,
    /// Whether there may be more behind the last one.
    pub more: bool,
    /// The index holds the log up to this position (exclusive).
    pub indexed_through: u64,
}

impl Hits {
    /// An answer, for a third-party index.
    pub fn new(seqs: Vec<u64>, more: bool, indexed_through: u64) -> Self {
        Self {
            seqs,
            more,
            indexed_through,
        }
    }
}

/// A full-text index over the logs, fed from them and rebuildable at will.
///
/// It may lag, lose everything or be wrong: whatever it says, entries are read from the store within
/// the scope and checked against the filter before anyone sees them. Words come from
/// [`text`](crate::text), so that all indexes find the same.
///
/// An error that concerns one tenant only should [name it](crate::Error::with_tenant): the indexer
/// then passes that tenant over for a while and goes on with the others. A retryable error that names
/// none holds up all of them.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait SearchIndex: Debug + Send + Sync + 'static {
    /// Adds entries, of any tenants, each tenant's in the order of their positions. Positions that are
    /// skipped were pruned. Entries that it has already are passed over. When this returns, they are
    /// found.
    async fn index(&self, entries: &[Entry]) -> Result<()>;

    /// Positions of the entries that match, in the scope's tenant only. Needs `read`.
    async fn search(&self, scope: &TenantScope, request: &SearchRequest) -> Result<Hits>;

    /// Removes what was indexed of these positions: their groups were erased. `current` holds them
    /// as they are now, to be indexed again with what is left.
    async fn remove(&self, scope: &TenantScope, current: &[Entry]) -> Result<()>;

    /// The position up to which (exclusive) the tenant's log is indexed. Needs `read`.
    async fn indexed_through(&self, scope: &TenantScope) -> Result<u64>;

    /// The positions in a range of which it holds an entry, in ascending order: what the reconciler
    /// compares with the log. Needs `read`.
    ///
    /// A range has [`MAX_HELD`] positions at most. Those above
    /// [`indexed_through`](Self::indexed_through) may be on their way, or be left out.
    async fn held(&self, scope: &TenantScope, seqs: Range<u64>) -> Result<Vec<u64>>;

    /// Writes these entries anew, whatever it holds of them, and takes out these positions: what the
    /// reconciler found to be missing, and to be there although the log has no such entry. Needs
    /// `cleanup`. Safe to repeat; entries of positions that aren't indexed yet may be passed over.
    async fn mend(&self, scope: &TenantScope, missing: &[Entry], surplus: &[u64]) -> Result<()>;

    /// Removes all that it holds of the scope's tenant, which was deleted, and what it knows of its
    /// progress. Needs `cleanup`. Safe to repeat; of a tenant that it doesn't know nothing is removed.
    ///
    /// Who read entries before the tenant was deleted may still index them for a moment: it is asked once
    /// more then.
    async fn forget(&self, scope: &TenantScope) -> Result<()>;

    /// Builds the index anew from the logs while it is used, and returns when it is done: all that
    /// the logs had when it began is indexed, and nothing else. An operator asks for it.
    ///
    /// Recording, indexing and searching go on meanwhile. A tenant whose log can't be read, because it
    /// is suspended or deleted, is left out. Broken off, it leaves an index that can be used; begun
    /// again, it does its work once more. [`rebuild_in_place`](crate::rebuild::rebuild_in_place) does
    /// it for an index that has no better way.
    ///
    /// # Errors
    /// What the store and the index answer.
    async fn rebuild(&self, store: &Arc<dyn LogStore>) -> Result<()>;
}

/// The most positions that [`SearchIndex::held`] is asked for at once.
pub const MAX_HELD: u64 = 2_000;
