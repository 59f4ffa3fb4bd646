//! What is erased leaves the archive too: found there, named by the log's `erase` entries, and then
//! taken out of the segments that still show it.
//!
//! A segment is never changed. One without what was erased is written beside it, under a newer head and
//! with the entries that explain its new holes, read back and verified; only then what was there before
//! goes, manifests first. Wherever that is cut off, the positions are in a whole segment, and what is left
//! over goes with the next try: the cursor of the required consumer [`ERASURES`] moves behind all that. It
//! passes nothing that this process is archiving meanwhile.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use audit_tlog::Group;
use audit_tlog::folder::{CHECKPOINT, LOG_ZST, SegmentName};
use audit_tlog::verify::Erase;

use super::archiver::{Archiver, Signed, blocking, checkpoint_of, path_of};
use super::segment::{Gone, Kept, Source, erases};
use super::shelf::Shelf;
use super::{ERASURES, MAX_ENTRIES};
use crate::entry::Entry;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::not_yet;
use crate::filter::Filter;
use crate::id::{EventId, TenantId};
use crate::log::TenantLog;
use crate::page::PageRequest;
use crate::store::loses;

/// What was erased since the archive was last brought to it.
struct Pending {
    /// The log's size.
    size: u64,
    pruned_below: u64,
    erases: Vec<Erase>,
}

impl Pending {
    async fn of(log: &TenantLog) -> Result<Self> {
        let (store, scope) = (log.log.log_store(), log.scope());
        let from = store.cursor(scope.tenant(), ERASURES).await?;
        let head = store.head(scope).await?;
        let mut pending = Self {
            size: head.size(),
            pruned_below: head.pruned_below,
            erases: Vec::new(),
        };
        if from < pending.size {
            let filter = Filter::new().from_seq(from).to_seq(pending.size);
            pending.erases = erases(&**store, scope, filter).await?;
        }
        Ok(pending)
    }

    fn touches(&self, positions: &Range<u64>) -> bool {
        self.touch_since(0, positions)
    }

    /// Whether one of these positions lost anything since the log had a size.
    fn touch_since(&self, size: u64, positions: &Range<u64>) -> bool {
        let mut since = self.erases.iter().filter(|erase| erase.seq >= size);
        since.any(|erase| erase.touches(positions))
    }
}

/// Who follows erasures through the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Worker,
    Prune,
    DryRun,
}

/// Which archived entries an erasure is about.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// These.
    Ids(HashSet<EventId>),
    /// All that match.
    Matching(Box<Filter>),
}

impl Wanted {
    fn takes(&self, entry: &Entry) -> bool {
        match self {
            Self::Ids(ids) => ids.contains(&entry.id),
            Self::Matching(filter) => filter.matches(entry),
        }
    }
}

/// The checkpoints of the segments that lie in the archive.
type Heads = BTreeMap<SegmentName, Signed>;

impl Archiver {
    /// Takes from the archive what was erased since the last time, and moves the cursor behind the entries
    /// that say so. Returns the position that it reached. `log` may do anything in its tenant.
    ///
    /// A segment that shows nothing of it stays as it is. With nothing erased the archive isn't asked.
    ///
    /// # Errors
    /// What archive and store answer, and [`ErrorKind::Refused`] while a legal hold is open;
    /// [`ErrorKind::Corrupt`] when the log doesn't continue what was archived of it;
    /// [`ErrorKind::Unavailable`] when a segment is damaged: nothing of it is removed, and all others are
    /// done.
    pub(crate) async fn follow(&self, log: &TenantLog) -> Result<u64> {
        let followed = self.follow_erasures(log, Caller::Worker).await;
        followed.map_err(|error| error.with_tenant(log.scope().tenant()))
    }

    /// As [`follow`](Self::follow), for a prune, which waits for no more than what earlier tries left; for a dry
    /// run, which leaves the archive as it is, for nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when more is to be done, which the worker does.
    pub(crate) async fn follow_for_prune(&self, log: &TenantLog, dry_run: bool) -> Result<()> {
        let caller = match dry_run {
            true => Caller::DryRun,
            false => Caller::Prune,
        };
        self.follow_erasures(log, caller).await.map(drop)
    }

    async fn follow_erasures(&self, log: &TenantLog, caller: Caller) -> Result<u64> {
        let tenant = log.scope().tenant();
        let store = log.log.log_store();
        let pending = Pending::of(log).await?;
        if !pending.erases.is_empty() {
            let shelf = {
                // What is being archived lies there behind that; what is archived later lacks what was
                // erased.
                let _turn = self.turn.lock().await;
                Shelf::list(&*self.archive, tenant, 0, |_| false).await?
            };
            let touched: Vec<_> = shelf.runs().filter(|run| pending.touches(run)).collect();
            let parts = self.parts(tenant, &shelf, &pending).await?;
            let is_left_to_worker = match caller {
                Caller::Worker => false,
                Caller::Prune => touched.iter().any(|run| run.start < pending.pruned_below),
                Caller::DryRun => !touched.is_empty() || !parts.is_empty(),
            };
            if is_left_to_worker {
                return Err(not_yet(
                    "what was erased is still being taken from the archive",
                ));
            }
            if !parts.is_empty() {
                if let Some(refusal) = log.hold_refusal().await? {
                    return Err(refusal);
                }
                self.discard_all(tenant, parts).await?;
            }
            if !touched.is_empty() {
                self.renew_all(log, &shelf, touched).await?;
            }
        }
        // The worker has no need to write this for every log that grows.
        if caller != Caller::Worker || !pending.erases.is_empty() {
            store.advance(tenant, ERASURES, true, pending.size).await?;
        }
        if !pending.erases.is_empty() {
            // An erasure may wait for that.
            log.log.inner.bell.ring(tenant);
        }
        Ok(pending.size)
    }

    /// Of what was not written to its end, at positions that no whole segment has, that which shows what was
    /// erased. Who writes it will find that, too, and take it back.
    async fn parts(
        &self,
        tenant: TenantId,
        shelf: &Shelf,
        pending: &Pending,
    ) -> Result<Vec<SegmentName>> {
        let mut parts = Vec::new();
        for name in shelf.names() {
            let positions = name.positions();
            let is_log = |path: &String| path.ends_with(LOG_ZST);
            if !shelf.versions(&positions).is_empty()
                || !shelf.paths(name).iter().any(is_log)
                || !pending.touches(&positions)
            {
                continue;
            }
            // It is the first to be removed, and put before the log.
            let checkpoint = self.archive.get(&path_of(tenant, name, CHECKPOINT)).await?;
            let signed = checkpoint.and_then(|bytes| checkpoint_of(&bytes));
            let size = signed.map_or(0, |(signed, _)| signed.size);
            if pending.touch_since(size, &positions) {
                parts.push(name);
            }
        }
        Ok(parts)
    }

    /// Whether everything that is erased has left the archive.
    pub(crate) async fn has_followed(&self, log: &TenantLog) -> Result<bool> {
        let (store, scope) = (log.log.log_store(), log.scope());
        let from = store.cursor(scope.tenant(), ERASURES).await?;
        let filter = Filter::new().action("log.erase").from_seq(from);
        let page = PageRequest::first().ascending().limit(1);
        Ok(store.list(scope, &filter, &page).await?.items.is_empty())
    }

    /// Of the archived entries at the first of these positions those that are wanted: each one's position,
    /// and which of the groups it would lose; and the position behind those that were looked at, which are
    /// those of one segment. Entries are as they will be when the archive has followed the log;
    /// positions that are in no segment are passed over.
    ///
    /// # Errors
    /// What archive and store answer; [`ErrorKind::Unavailable`] when a segment is damaged.
    pub(crate) async fn search(
        &self,
        log: &TenantLog,
        positions: Range<u64>,
        wanted: &Arc<Wanted>,
        groups: &[Group],
    ) -> Result<(Vec<(u64, Vec<Group>)>, u64)> {
        if positions.is_empty() {
            return Ok((Vec::new(), positions.end));
        }
        let tenant = log.scope().tenant();
        let _turn = self.turn.lock().await;
        let is_reached = |name: &SegmentName| name.to > positions.start;
        let is_found = |shelf: &Shelf| {
            let first = shelf.whole().find(is_reached);
            first.is_some_and(|first| shelf.names().any(|name| name.from > first.from))
        };
        let first = positions.start.saturating_sub(MAX_ENTRIES);
        let shelf = Shelf::list(&*self.archive, tenant, first, is_found).await?;
        let found = shelf.whole().find(is_reached);
        let Some(found) = found.filter(|name| name.from < positions.end) else {
            return Ok((Vec::new(), positions.end));
        };
        let run = found.positions();
        let pending = Pending::of(log).await?;
        let gone = Gone::of(&pending.erases, &run);
        let kept = self.newest(log, &shelf, &run, None).await??;
        let within = run.start.max(positions.start)..run.end.min(positions.end);
        let end = within.end;
        let (wanted, groups) = (Arc::clone(wanted), groups.to_vec());
        let found = blocking(move || {
            let mut found = Vec::new();
            for mut line in kept.lines().filter(|line| within.contains(&line.seq)) {
                gone.take_from(&mut line);
                let entry = Entry::from_evidence(&line)?;
                if wanted.takes(&entry) {
                    found.push((entry.seq, loses(&entry, &groups)));
                }
            }
            Ok::<_, Error>(found)
        });
        Ok((found.await??, end))
    }

    /// [`search`](Self::search), of all these positions.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn search_all(
        &self,
        log: &TenantLog,
        mut positions: Range<u64>,
        wanted: Wanted,
        groups: &[Group],
    ) -> Result<Vec<(u64, Vec<Group>)>> {
        let wanted = Arc::new(wanted);
        let mut all = Vec::new();
        while !positions.is_empty() {
            let (found, next) = self.search(log, positions.clone(), &wanted, groups).await?;
            all.extend(found);
            positions.start = next;
        }
        Ok(all)
    }

    /// Writes the segments at these positions anew that show what was erased. One that is damaged holds up no
    /// other.
    async fn renew_all(
        &self,
        log: &TenantLog,
        shelf: &Shelf,
        touched: Vec<Range<u64>>,
    ) -> Result<()> {
        let store = log.log.log_store();
        let (_, checkpoint) = log.signed_snapshot().await?;
        let size = checkpoint.size;
        let begun = log.begin(checkpoint, None, Vec::new()).await?;
        let source = Source::open(&**store, log.scope(), begun, &(0..size)).await?;
        let mut heads = Heads::new();
        let mut first = Ok(());
        for name in shelf.whole() {
            match self.checkpoint(log, name, size).await {
                Ok(Some(signed)) => drop(heads.insert(name, signed)),
                // It may have been removed since it was listed.
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Corrupt => first = first.and(Err(error)),
                Err(error) => return Err(error),
            }
        }
        for run in touched {
            first = first.and(self.renew(log, &source, &run, &mut heads).await?);
        }
        first
    }

    /// Leaves one segment of these positions, and that one without what was erased. At each moment one that
    /// was verified is there, whatever other processes do: see [`Archiver`]. The inner error is what is wrong
    /// with what lies there.
    async fn renew(
        &self,
        log: &TenantLog,
        source: &Source<'_>,
        run: &Range<u64>,
        heads: &mut Heads,
    ) -> Result<Result<()>> {
        let _turn = self.turn.lock().await;
        let tenant = log.scope().tenant();
        let shelf = Shelf::at(&*self.archive, tenant, run).await?;
        if shelf.versions(run).is_empty() {
            return Ok(Ok(()));
        }
        let kept = match self.newest(log, &shelf, run, Some(source.size())).await? {
            Ok(kept) => kept,
            Err(error) => return Ok(Err(error)),
        };
        let gone = source.gone(run);
        let (kept, is_shown) = blocking(move || {
            let is_shown = kept.lines().any(|mut line| gone.take_from(&mut line));
            (kept, is_shown)
        })
        .await?;
        // Which of several another process is about to remove, or has not written to its end, can't be
        // seen: they go behind one of this process's own.
        if !is_shown && shelf.names().count() == 1 {
            return Ok(Ok(()));
        }
        if let Some(refusal) = log.hold_refusal().await? {
            return Err(refusal);
        }
        // It continues the old one and all that that one continues, the newest, and those beside it.
        let mut sizes = kept.earlier();
        sizes.insert(kept.size());
        sizes.extend(heads.values().map(|signed| signed.size).max());
        let beside = |name: &SegmentName| name.to == run.start || name.from == run.end;
        let beside = heads.iter().filter(|(name, _)| beside(name));
        sizes.extend(beside.map(|(_, signed)| signed.size));
        let earlier = heads.values().filter(|signed| sizes.contains(&signed.size));
        let earlier = earlier
            .map(|signed| (signed.size, signed.note.clone()))
            .collect();
        let id = log.log.clock().event_id().into_uuid();
        let composed = source.renew(&kept, id, &earlier).await?;
        drop(kept);
        let name = composed.0;
        let bytes = self.store(log, source.root(), composed).await?;
        self.discard_all(tenant, shelf.names().collect()).await?;
        heads.retain(|name, _| name.positions() != *run);
        let note = source.note().to_owned();
        let size = source.size();
        heads.insert(name, Signed { size, note });
        self.count(|status| status.renewed += 1);
        let (from, to) = (run.start, run.end);
        tracing::info!(%tenant, from, to, bytes, "what was erased left the archive");
        Ok(Ok(()))
    }

    /// The newest segment of these positions whose files are all there; of a log of which `known` entries
    /// are signed, one that proves what it has. The inner error is what is wrong with the oldest one, when
    /// none is intact: [`ErrorKind::Unavailable`], or [`ErrorKind::Corrupt`] for one of another log.
    pub(super) async fn newest(
        &self,
        log: &TenantLog,
        shelf: &Shelf,
        run: &Range<u64>,
        known: Option<u64>,
    ) -> Result<Result<Kept>> {
        let mut damaged = None;
        for name in shelf.versions(run) {
            let files = self.read(shelf.paths(name)).await?;
            let kept = match blocking(move || Kept::open(name, files)).await? {
                Ok(kept) => match known {
                    Some(known) => self.judged(log, kept, known).await?,
                    None => Ok(kept),
                },
                Err(error) => Err(error),
            };
            match kept {
                Ok(kept) => return Ok(Ok(kept)),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    tracing::warn!(%name, %error, "a segment is damaged");
                    damaged = Some(error);
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Err(damaged.unwrap_or_else(|| {
            not_yet("the archive has changed meanwhile")
        })))
    }

    /// A segment that proves all that it has, under a head of this log, of which `known` entries are
    /// signed; else what is wrong.
    async fn judged(&self, log: &TenantLog, kept: Kept, known: u64) -> Result<Result<Kept>> {
        let (kept, judged) = blocking(move || {
            let judged = kept.judge(Vec::new());
            (kept, judged)
        })
        .await?;
        let root = match judged {
            Ok(root) => root,
            Err(wrong) => {
                let message = format!("{} is not verified: {wrong}", kept.name);
                return Ok(Err(Error::new(ErrorKind::Unavailable, message)));
            }
        };
        let continues = self.continues(log, kept.name, kept.size(), root, known);
        match continues.await {
            Ok(()) => Ok(Ok(kept)),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Err(error)),
            Err(error) => Err(error),
        }
    }
}
