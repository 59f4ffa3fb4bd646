//! Filling an index from the logs, and putting it right, beside the worker that feeds it.

use std::ops::Range;

use crate::entry::Entry;
use crate::error::{ErrorKind, Result};
use crate::id::TenantId;
use crate::scope::TenantScope;
use crate::search::{MAX_HELD, SearchIndex};
use crate::store::{LogStore, Mark};
use crate::worker::{is_closed, remove_erased};

/// Entries that are read at once.
const READ: usize = 2_000;
/// Entries that are read by their positions at once: the largest ones are some MB each while they are
/// verified, and a read by position knows no bound of bytes.
pub(crate) const AT: usize = 64;
/// How often what is written is compared with what the log has by then.
const ATTEMPTS: usize = 3;

/// Indexes what the logs have by now and the index hasn't, of all tenants or of one, and returns how
/// many entries that was. Tenants whose logs can't be read are left out.
///
/// # Errors
/// What the store and the index answer.
pub async fn fill<I: SearchIndex>(
    index: &I,
    store: &dyn LogStore,
    only: Option<TenantId>,
) -> Result<usize> {
    let mut indexed = 0;
    for (tenant, size) in sizes(store, only).await? {
        let scope = TenantScope::trusted(tenant, "rebuild");
        match fill_to(index, store, &scope, size).await {
            Ok(entries) => indexed += entries,
            Err(error) if is_closed(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(indexed)
}

/// Every tenant that has an entry, or this one, with the size of its log.
///
/// # Errors
/// What the store answers.
pub async fn sizes(store: &dyn LogStore, only: Option<TenantId>) -> Result<Vec<(TenantId, u64)>> {
    let Some(tenant) = only else {
        return Ok(store.grown_since(Mark::default()).await?.tenants);
    };
    match store.head(&TenantScope::trusted(tenant, "rebuild")).await {
        Ok(head) => Ok(vec![(tenant, head.size())]),
        Err(error) if is_closed(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Up to a size: a log that goes on growing has no end.
async fn fill_to<I: SearchIndex>(
    index: &I,
    store: &dyn LogStore,
    scope: &TenantScope,
    size: u64,
) -> Result<usize> {
    let mut cursor = index.indexed_through(scope).await?;
    let mut indexed = 0;
    while cursor < size {
        let entries = store.read(scope, cursor, READ).await?;
        let Some(last) = entries.last() else {
            break;
        };
        remove_erased(store, index, scope, cursor, &entries, &mut []).await?;
        cursor = last.seq + 1;
        indexed += entries.len();
        index.index(&entries).await?;
    }
    Ok(indexed)
}

/// Writes every entry anew that the index should hold, takes out what the logs don't have, and indexes
/// the rest, tenant by tenant: [`SearchIndex::rebuild`] for an index that isn't built beside the old
/// one. Searches find everything meanwhile.
///
/// # Errors
/// What the store and the index answer.
pub async fn rebuild_in_place<I: SearchIndex>(index: &I, store: &dyn LogStore) -> Result<()> {
    for (tenant, _) in sizes(store, None).await? {
        let scope = TenantScope::trusted(tenant, "rebuild");
        match rewrite(index, store, &scope).await {
            Ok(()) => {}
            Err(error) if is_closed(&error) => {}
            Err(error) => return Err(error),
        }
    }
    fill(index, store, None).await.map(|_| ())
}

async fn rewrite<I: SearchIndex>(
    index: &I,
    store: &dyn LogStore,
    scope: &TenantScope,
) -> Result<()> {
    let through = index.indexed_through(scope).await?;
    let mut from = 0;
    while from < through {
        let to = (from + MAX_HELD).min(through);
        let surplus = Compared::of(index, store, scope, from..to).await?.surplus;
        let all: Vec<u64> = (from..to).collect();
        // What is damaged is logged; the rest of the log is to be found all the same.
        mend(index, store, scope, &all, &surplus).await?;
        from = to;
    }
    Ok(())
}

/// How the index differs from the log in a range of positions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Entries of the log that the index should hold by now, and doesn't.
    pub(crate) missing: Vec<u64>,
    /// Positions that it holds an entry of, and that the log has no entry at.
    pub(crate) surplus: Vec<u64>,
    /// How far the index was.
    pub(crate) through: u64,
    /// Where the log begins and ends; nowhere, of a deleted tenant's.
    pub(crate) log: Range<u64>,
}

impl Compared {
    /// Compares a range of at most [`MAX_HELD`] positions. Positions that aren't indexed yet are never
    /// missing.
    pub(crate) async fn of<I: SearchIndex + ?Sized>(
        index: &I,
        store: &dyn LogStore,
        scope: &TenantScope,
        seqs: Range<u64>,
    ) -> Result<Self> {
        // In this order: what the index has by now is in the log, and what the log has pruned by now
        // need not be in the index.
        let through = index.indexed_through(scope).await?;
        let held = index.held(scope, seqs.clone()).await?;
        let log = match store.head(scope).await {
            Ok(head) => head.pruned_below..head.size(),
            // Nothing of it is left to be found.
            Err(error) if error.kind() == ErrorKind::TenantDeleted => 0..0,
            Err(error) => return Err(error),
        };
        let expected = seqs.start.max(log.start)..seqs.end.min(through).min(log.end);
        let missing = expected.filter(|seq| held.binary_search(seq).is_err());
        let surplus = held.iter().copied().filter(|seq| !log.contains(seq));
        Ok(Self {
            missing: missing.collect(),
            surplus: surplus.collect(),
            through,
            log,
        })
    }
}

/// Writes these positions anew as they are in the log now, and takes the others out. Returns how many
/// could not be written since their entries are damaged.
pub(crate) async fn mend<I: SearchIndex + ?Sized>(
    index: &I,
    store: &dyn LogStore,
    scope: &TenantScope,
    missing: &[u64],
    surplus: &[u64],
) -> Result<usize> {
    if !surplus.is_empty() {
        index.mend(scope, &[], surplus).await?;
    }
    let mut damaged = 0;
    for seqs in missing.chunks(AT) {
        damaged += write_anew(index, store, scope, seqs).await?;
    }
    Ok(damaged)
}

async fn write_anew<I: SearchIndex + ?Sized>(
    index: &I,
    store: &dyn LogStore,
    scope: &TenantScope,
    seqs: &[u64],
) -> Result<usize> {
    let mut written: Option<Intact> = None;
    for _ in 0..ATTEMPTS {
        let current = Intact::at(store, scope, seqs).await?;
        // What was erased since it was read must not come back.
        if written.as_ref() == Some(&current) {
            break;
        }
        index.mend(scope, &current.entries, &[]).await?;
        written = Some(current);
    }
    let damaged = written.map(|written| written.damaged).unwrap_or_default();
    tell_damaged(scope, &damaged);
    Ok(damaged.len())
}

/// Logs which entries the index lacks for good.
pub(crate) fn tell_damaged(scope: &TenantScope, seqs: &[u64]) {
    if !seqs.is_empty() {
        tracing::error!(tenant = %scope.tenant(), ?seqs,
            "damaged entries are left out of the index");
    }
}

/// Entries at some positions. A damaged one doesn't keep those beside it from being read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Intact {
    pub(crate) entries: Vec<Entry>,
    /// Positions whose entries are damaged.
    pub(crate) damaged: Vec<u64>,
}

impl Intact {
    /// Reads at most [`AT`] positions, and each by itself once one of them is damaged.
    pub(crate) async fn at(
        store: &dyn LogStore,
        scope: &TenantScope,
        seqs: &[u64],
    ) -> Result<Self> {
        let mut found = Self::default();
        match store.at(scope, seqs).await {
            Ok(entries) => {
                found.entries = entries;
                return Ok(found);
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            Err(error) => return Err(error),
        }
        for seq in seqs {
            match store.at(scope, &[*seq]).await {
                Ok(entries) => found.entries.extend(entries),
                Err(error) if error.kind() == ErrorKind::Corrupt => found.damaged.push(*seq),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}
