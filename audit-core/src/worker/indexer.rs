//! Feeds the index from the logs.

use std::sync::Arc;
use std::time::Duration;

use audit_tlog::{Control, Group, Kind};
use tokio::time::Instant;

use super::followed::Followed;
use super::{POLL, Worker, is_closed, pause_after};
use crate::entry::Entry;
use crate::error::{Error, Result};
use crate::id::TenantId;
use crate::rebuild::{AT, Intact, tell_damaged};
use crate::scope::TenantScope;
use crate::search::SearchIndex;
use crate::store::LogStore;

/// The worker's name.
pub(super) const NAME: &str = "indexer";

/// Entries that are read from one tenant at once.
const READ: usize = 2_000;
/// Entries that are indexed at once, at most.
const INDEX: usize = 5_000;
/// Bytes, roughly, that are indexed at once, at most.
const INDEX_BYTES: usize = 4 * 1024 * 1024;
/// So many entries since the last batch say that the log is busy: the indexer then lets entries
/// gather, since few large batches cost less than many small ones.
const BUSY: u64 = 64;
/// For how long it lets them gather, at least. It is as long as the last batch took, so that an index
/// that takes the log's own engine or machine has it for half of the time at most.
const GATHER: Duration = Duration::from_millis(250);
/// With more entries than this to catch up with, it lets nothing gather.
const FAR_BEHIND: u64 = 100_000;
/// When so many tenants failed, and none went on, the fault is taken for the whole index's.
const MANY: usize = 16;
/// How often it asks whether the index still has what it was given.
const CHECK: Duration = Duration::from_secs(1);

pub(super) async fn run(worker: Worker, index: Arc<dyn SearchIndex>) {
    let mut indexer = Indexer {
        worker,
        index,
        followed: Followed::default(),
        tenants: usize::MAX,
        failed: 0,
        turn: None,
        checked: None,
        checked_at: Instant::now(),
    };
    indexer.worker.desk.edit(NAME, |s| {
        s.losses.get_or_insert_default();
    });
    let mut failures = 0;
    loop {
        indexer.worker.bell.borrow_and_update();
        let began = Instant::now();
        let outcome = match indexer.round().await {
            Ok(round) => indexer.check().await.map(|()| round),
            Err(error) => Err(error),
        };
        let goes_on = match outcome {
            Ok(round) => {
                if failures > 0 && round.indexed > 0 {
                    // Whatever failed meanwhile may well work now.
                    indexer.followed.paused.forgive_all();
                }
                failures = 0;
                if indexer.followed.paused.is_empty() {
                    indexer.worker.worked();
                }
                indexer.rest(&round, began.elapsed()).await
            }
            Err(error) => {
                indexer.worker.failed(&error);
                // Whatever the index says then is where it goes on, in tenants at rest as well: it
                // may have been emptied.
                indexer.followed.restart();
                failures += 1;
                indexer.worker.pause(pause_after(failures)).await
            }
        };
        if !goes_on || indexer.worker.stop.is_cancelled() {
            return;
        }
    }
}

struct Indexer {
    worker: Worker,
    index: Arc<dyn SearchIndex>,
    followed: Followed,
    /// So many tenants go into one batch. Fewer after a failure that names none.
    tenants: usize,
    /// Tenants that failed since one went on.
    failed: usize,
    /// The last tenant of the last batch.
    turn: Option<TenantId>,
    /// The tenant that was last checked, and when.
    checked: Option<TenantId>,
    checked_at: Instant,
}

/// What was done.
struct Round {
    /// By how much the logs had grown.
    grown: u64,
    indexed: u64,
}

/// A tenant's part of a batch.
struct Part {
    tenant: TenantId,
    start: usize,
    /// Where its log goes on.
    cursor: u64,
    at_end: bool,
}

/// Entries on their way to the index, each tenant's in one run.
#[derive(Default)]
struct Merged {
    parts: Vec<Part>,
    entries: Vec<Entry>,
    bytes: usize,
}

impl Merged {
    fn is_full(&self) -> bool {
        self.entries.len() >= INDEX || self.bytes >= INDEX_BYTES
    }
}

impl Indexer {
    /// Indexes what comes next, of as many tenants as have grown, in one call. One that failed before
    /// has a call of its own.
    async fn round(&mut self) -> Result<Round> {
        let grown = self.followed.look(&*self.worker.log.store).await?;
        let mut merged = Merged::default();
        let due: Vec<TenantId> = self.followed.due().collect();
        let (suspects, mut others): (Vec<TenantId>, Vec<TenantId>) = due
            .into_iter()
            .partition(|tenant| self.followed.paused.has_failed(*tenant));
        // By turns: one that always has enough for a batch doesn't keep the others waiting.
        let behind = others.partition_point(|tenant| Some(*tenant) <= self.turn);
        others.rotate_left(behind);
        for tenant in others {
            self.read(tenant, &mut merged).await?;
            if merged.is_full() || merged.parts.len() >= self.tenants {
                break;
            }
        }
        if let Some(part) = merged.parts.last() {
            self.turn = Some(part.tenant);
        }
        let mut indexed = self.give(merged).await?;
        if let Some(tenant) = suspects.first() {
            let mut alone = Merged::default();
            self.read(*tenant, &mut alone).await?;
            indexed += self.give(alone).await?;
        }
        self.worker.lag(self.followed.lag());
        Ok(Round { grown, indexed })
    }

    /// Lets entries gather, or waits for some. False at the end.
    async fn rest(&mut self, round: &Round, took: Duration) -> bool {
        let far_behind = self.followed.lag() > FAR_BEHIND;
        if self.followed.due().next().is_some() {
            let gives_way = round.grown >= BUSY && took >= GATHER && !far_behind;
            return !gives_way || self.worker.pause(took).await;
        }
        match round.indexed >= BUSY {
            true => self.worker.pause(GATHER.max(took)).await,
            false => self.worker.rest(POLL).await,
        }
    }

    /// Adds what comes next in a tenant's log, until there is enough.
    async fn read(&mut self, tenant: TenantId, merged: &mut Merged) -> Result<()> {
        let (start, bytes) = (merged.entries.len(), merged.bytes);
        match self.read_ahead(tenant, merged).await {
            Ok((cursor, at_end)) => {
                merged.parts.push(Part {
                    tenant,
                    start,
                    cursor,
                    at_end,
                });
                Ok(())
            }
            Err(error) => {
                merged.entries.truncate(start);
                merged.bytes = bytes;
                self.blame(tenant, error)
            }
        }
    }

    /// Returns where the log goes on, and whether that is its end.
    async fn read_ahead(&self, tenant: TenantId, merged: &mut Merged) -> Result<(u64, bool)> {
        let (store, index) = (&self.worker.log.store, &self.index);
        let scope = TenantScope::trusted(tenant, NAME);
        let mut cursor = match self.followed.cursor(tenant) {
            Some(cursor) => cursor,
            None => index.indexed_through(&scope).await?,
        };
        let start = merged.entries.len();
        loop {
            let entries = store.read(&scope, cursor, READ).await?;
            let Some(last) = entries.last() else {
                return Ok((cursor, true));
            };
            let earlier = &mut merged.entries[start..];
            remove_erased(&**store, &**index, &scope, cursor, &entries, earlier).await?;
            cursor = last.seq + 1;
            merged.bytes += entries.iter().map(weight).sum::<usize>();
            merged.entries.extend(entries);
            if merged.is_full() {
                return Ok((cursor, false));
            }
        }
    }

    /// Gives entries to the index, and returns how many it took. When they fail for a reason that is
    /// one tenant's, the others' are read again and given without that one's; the index passes over
    /// what it has of them.
    async fn give(&mut self, merged: Merged) -> Result<u64> {
        let Merged { parts, entries, .. } = merged;
        let given = entries.len() as u64;
        if given > 0
            && let Err(error) = self.index.index(&entries).await
        {
            let involved = parts.iter().enumerate().filter(|(at, part)| {
                let end = parts.get(at + 1).map_or(entries.len(), |next| next.start);
                part.start < end
            });
            let involved: Vec<TenantId> = involved.map(|(_, part)| part.tenant).collect();
            return self.find_fault(&involved, error).map(|()| 0);
        }
        for part in parts {
            self.followed.set_cursor(part.tenant, part.cursor);
            match part.at_end {
                true => self.followed.ended(part.tenant),
                false => self.followed.reached(part.tenant, part.cursor),
            }
        }
        if given > 0 {
            self.failed = 0;
            self.tenants = self.tenants.saturating_mul(2);
        }
        Ok(given)
    }

    /// Whose fault it is that a batch failed: that of the tenant that the error names, or of the only
    /// one. An error that may pass and names none is the whole index's. Any other is looked for in
    /// batches of half as many tenants.
    fn find_fault(&mut self, tenants: &[TenantId], error: Error) -> Result<()> {
        let named = error.tenant().filter(|named| tenants.contains(named));
        match (named, tenants) {
            (Some(tenant), _) | (None, &[tenant]) => self.blame(tenant, error),
            (None, _) if error.is_retryable() => Err(error),
            (None, _) => {
                tracing::debug!(%error, tenants = tenants.len(), "a batch failed and is halved");
                self.tenants = (tenants.len() / 2).max(1);
                Ok(())
            }
        }
    }

    /// A failure that is one tenant's makes it passed over for a while; one that isn't is returned.
    fn blame(&mut self, tenant: TenantId, error: Error) -> Result<()> {
        self.followed.forget_cursor(tenant);
        if is_closed(&error) {
            self.followed.ended(tenant);
            return Ok(());
        }
        if error.is_retryable() && error.tenant() != Some(tenant) {
            return Err(error);
        }
        self.followed.fail(tenant);
        self.failed += 1;
        if self.failed >= MANY {
            self.failed = 0;
            return Err(error);
        }
        self.worker.failed(&error);
        Ok(())
    }

    /// Asks the index, one tenant a second, whether it still has what it was given: it may have been
    /// emptied while nothing was appended.
    async fn check(&mut self) -> Result<()> {
        if self.checked_at.elapsed() < CHECK {
            return Ok(());
        }
        self.checked_at = Instant::now();
        self.checked = self.followed.after(self.checked);
        let Some(tenant) = self.checked else {
            return Ok(());
        };
        let scope = TenantScope::trusted(tenant, NAME);
        let through = match self.index.indexed_through(&scope).await {
            Ok(through) => through,
            Err(error) => return self.blame(tenant, error),
        };
        if let Some(given) = self.followed.cursor(tenant)
            && through < given
        {
            // What a deleted tenant had in it was taken out.
            if let Err(error) = self.worker.log.store.head(&scope).await {
                return self.blame(tenant, error);
            }
            tracing::warn!(%tenant, through, given, "the index lost entries: it is asked for what it has of all");
            self.worker
                .desk
                .edit(NAME, |s| *s.losses.get_or_insert_default() += 1);
            self.followed.restart();
        }
        Ok(())
    }
}

fn weight(entry: &Entry) -> usize {
    512 + entry.fields.raw_len()
}

/// What an `erase` entry names and the index had before goes from it first, and from the `earlier`
/// entries that are still on their way to it: those that are read together with that entry were
/// erased when they were read. For whatever feeds an index: `entries` come next in the scope's log,
/// and `indexed` is the position up to which (exclusive) the index was given it or will be.
///
/// Nothing is left in the index of an entry that is named and is damaged.
///
/// # Errors
/// What the store and the index answer; some may be removed by then, and it is safe to repeat.
pub async fn remove_erased(
    store: &dyn LogStore,
    index: &dyn SearchIndex,
    scope: &TenantScope,
    indexed: u64,
    entries: &[Entry],
    earlier: &mut [Entry],
) -> Result<()> {
    for entry in entries.iter().filter(|e| e.kind == Kind::Erase) {
        let Some(Control::Erase {
            entries: ranges, ..
        }) = entry.control()
        else {
            continue;
        };
        // Of a person's entries each is a range: the index is asked once for many.
        let mut seqs = ranges
            .into_iter()
            .flat_map(|(from, to)| from..(to + 1).min(indexed))
            .peekable();
        while seqs.peek().is_some() {
            let some: Vec<u64> = seqs.by_ref().take(AT).collect();
            let current = Intact::at(store, scope, &some).await?;
            index.remove(scope, &current.entries).await?;
            if !current.damaged.is_empty() {
                tell_damaged(scope, &current.damaged);
                index.mend(scope, &[], &current.damaged).await?;
            }
            for entry in current.entries {
                if let Some(earlier) = entry_of(earlier, entry.seq) {
                    *earlier = entry;
                }
            }
            for seq in current.damaged {
                if let Some(earlier) = entry_of(earlier, seq) {
                    for group in Group::ALL {
                        earlier.fields_mut().clear(group);
                    }
                }
            }
        }
    }
    Ok(())
}

fn entry_of(entries: &mut [Entry], seq: u64) -> Option<&mut Entry> {
    let at = entries.binary_search_by_key(&seq, |e| e.seq).ok()?;
    entries.get_mut(at)
}
