//! The steps of archiving, in the order that makes each of them safe to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use audit_tlog::folder::{CHECKPOINT, MANIFEST, SegmentName};
use audit_tlog::{Checkpoint, Hash, Note};

use super::segment::{Demands, Source, check, erases, pack};
use super::shelf::Shelf;
use super::{Archive, CONSUMER, MAX_ENTRIES};
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{not_yet, root_of};
use crate::filter::Filter;
use crate::id::TenantId;
use crate::log::TenantLog;
use crate::store::Snapshot;

/// Segments that one prune waits for, and that one snapshot lives for.
const AT_ONCE: usize = 8;

/// What was archived since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ArchiveStatus {
    /// Segments that were written, read back and verified.
    pub segments: u64,
    /// The entries in them.
    pub entries: u64,
    /// The bytes of their files.
    pub bytes: u64,
    /// How often archiving failed; nothing was pruned then.
    pub failures: u64,
    /// Segments that were written anew, without what was erased.
    pub renewed: u64,
}

/// How far a log is archived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Archived {
    /// Entries below this position may be pruned.
    pub(crate) below: u64,
    /// No entry below this position says that one of them was erased meanwhile.
    pub(crate) looked: u64,
}

/// The checkpoint of a segment.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    pub(super) size: u64,
    pub(super) note: String,
}

/// What a try has written so far.
#[derive(Debug, Default)]
struct Tried {
    pruned_below: u64,
    start: u64,
    /// Of the log, when it was begun.
    size: u64,
    written: Vec<SegmentName>,
}

/// What a try goes by: one moment of the log, and what lies in the archive.
struct Plan<'a> {
    snapshot: Box<dyn Snapshot>,
    source: Source<'a>,
    pruned_below: u64,
    /// What is to be archived.
    positions: Range<u64>,
    shelf: Shelf,
    /// What lies there already, at the first position or behind it.
    leftovers: Vec<SegmentName>,
    /// Those of them that a try before has archived to its end.
    finished: Vec<SegmentName>,
}

/// Where the next segment has to end.
struct Next {
    to: u64,
    /// Whether that is the end of another one, in the midst of which the last one ended.
    is_over: bool,
}

impl Plan<'_> {
    /// Where the segment that begins at a position has to end, behind so many others; none when they are as
    /// many as one snapshot lives for, or all is archived.
    fn next(&self, at: u64, segments: usize) -> Option<Next> {
        // A segment that straddles what is pruned would never be removed.
        let over = self.leftovers.iter().filter(|name| name.from < at);
        let over = over.map(|name| name.to.min(self.source.size()));
        if let Some(to) = over.filter(|to| *to > at).max() {
            return Some(Next { to, is_over: true });
        }
        if at >= self.positions.end || segments >= AT_ONCE {
            return None;
        }
        let next = self.finished.iter().map(|name| name.from);
        let next = next.filter(|from| *from > at).min();
        Some(Next {
            to: next.unwrap_or(self.positions.end),
            is_over: false,
        })
    }
}

/// What a try has brought about before it removes anything.
struct Written {
    /// The position behind the last segment.
    to: u64,
    /// What a try before has archived and stays as it is.
    stay: BTreeSet<SegmentName>,
}

/// Archives what is about to be pruned, and takes from the archive what is erased later.
///
/// Nothing but this process waits for `turn`; others may do the same at the same time, the clocks of
/// which differ. So a segment is removed, by whoever may have written it, only behind another of the same
/// positions that the remover has written itself, read back and verified; and what is removed was listed
/// before that one was begun. Of two that are each written in place of the other, the later one to be
/// begun is not in the other's list, and stays. Until it removes something, a process may take back what it
/// wrote itself: nobody relies on that.
#[derive(Debug)]
pub(crate) struct Archiver {
    pub(super) archive: Arc<dyn Archive>,
    /// One segment's memory at a time.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// The most entries of a segment.
    entries: u64,
    status: Mutex<ArchiveStatus>,
}

impl Archiver {
    /// `entries` is the most that a segment has.
    pub(crate) fn new(archive: Arc<dyn Archive>, entries: u64) -> Self {
        Self {
            archive,
            turn: tokio::sync::Mutex::default(),
            entries: entries.clamp(1, MAX_ENTRIES),
            status: Mutex::default(),
        }
    }

    pub(crate) fn status(&self) -> ArchiveStatus {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, edit: impl FnOnce(&mut ArchiveStatus)) {
        edit(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Archives a log's entries below `end`, from the first one left on, or from `from` where this process
    /// has come so far before: so many segments as one snapshot lives for. Moves the consumer's cursor
    /// behind them. A repeat goes on from there. `log` may do anything in its tenant.
    ///
    /// What a try before has archived to its end stays when it is verified once more and shows nothing that
    /// was erased since. Whatever else lies at these positions, or reaches over their end, is archived once
    /// more: it may have been erased since, or written by a process that was killed. What the new segments
    /// cover is then removed.
    ///
    /// # Errors
    /// What archive and store answer, unless some segments came to their end before that;
    /// [`ErrorKind::Corrupt`] when the log is not what it signed, or doesn't continue what was archived of it;
    /// [`ErrorKind::Unavailable`] when entries were erased, or the log pruned, meanwhile.
    pub(crate) async fn archive(&self, log: &TenantLog, from: u64, end: u64) -> Result<Archived> {
        let _turn = self.turn.lock().await;
        let mut tried = Tried::default();
        let archived = self.archive_below(log, from, end, &mut tried).await;
        if archived.is_err() {
            self.count(|status| status.failures += 1);
            self.take_back(log, tried).await;
        }
        archived.map_err(|error| error.with_tenant(log.scope().tenant()))
    }

    /// Removes what a failed try wrote, unless the next one goes on with it: not where something was erased
    /// meanwhile, which another process may have followed already, nor where that is pruned.
    async fn take_back(&self, log: &TenantLog, tried: Tried) {
        let Some(last) = tried.written.last() else {
            return;
        };
        let (tenant, positions) = (log.scope().tenant(), tried.start..last.to);
        let has_changed = async {
            let head = log.log.log_store().head(log.scope()).await?;
            let is_pruned = head.pruned_below != tried.pruned_below;
            Ok::<_, Error>(is_pruned || erased_since(log, tried.size, &positions).await?)
        };
        // A log that can't be asked may have been.
        if has_changed.await.unwrap_or(true)
            && let Err(error) = self.discard_all(tenant, tried.written).await
        {
            tracing::warn!(%tenant, %error, "what a failed try archived could not be removed");
        }
    }

    async fn archive_below(
        &self,
        log: &TenantLog,
        from: u64,
        end: u64,
        tried: &mut Tried,
    ) -> Result<Archived> {
        let plan = self.plan(log, from, end).await?;
        *tried = Tried {
            pruned_below: plan.pruned_below,
            start: plan.positions.start,
            size: plan.source.size(),
            written: Vec::new(),
        };
        let written = self.write(log, &plan, tried).await?;
        self.settle(log, plan, written, tried).await
    }

    /// Looks at the log and at what lies in the archive. Changes nothing but that the log's head is signed.
    async fn plan<'a>(&self, log: &'a TenantLog, from: u64, end: u64) -> Result<Plan<'a>> {
        let tenant = log.scope().tenant();
        let store = log.log.log_store();
        let (snapshot, checkpoint) = log.signed_snapshot().await?;
        let pruned_below = snapshot.head().pruned_below;
        let (start, size) = (pruned_below.max(from), checkpoint.size);
        let end = end.min(size);
        let begun = log.begin(checkpoint, None, Vec::new()).await?;
        let source = Source::open(&**store, log.scope(), begun, &(start..size)).await?;
        let shelf = Shelf::list(&*self.archive, tenant, 0, |_| false).await?;
        let leftovers: Vec<SegmentName> = shelf.names().filter(|name| name.from >= start).collect();
        // Behind the cursor is what no try takes back any more.
        let known = store.cursor(tenant, CONSUMER).await?.min(end);
        let whole: BTreeSet<SegmentName> = shelf.whole().collect();
        let finished = alone(&leftovers).filter(|name| name.to <= known && whole.contains(name));
        Ok(Plan {
            finished: finished.collect(),
            leftovers,
            shelf,
            positions: start..end,
            pruned_below,
            source,
            snapshot,
        })
    }

    /// Writes segments from the first position on, so many as one snapshot lives for, each read back and
    /// verified. An error that may pass ends it short behind the first of them.
    async fn write(&self, log: &TenantLog, plan: &Plan<'_>, tried: &mut Tried) -> Result<Written> {
        let tenant = log.scope().tenant();
        let (start, size) = (plan.positions.start, plan.source.size());
        let mut written = Written {
            to: start,
            stay: BTreeSet::new(),
        };
        let mut earlier = None;
        let mut segments = 0;
        while let Some(next) = plan.next(written.to, segments) {
            segments += 1;
            let at = written.to;
            let found = plan.finished.iter().find(|name| name.from == at);
            if let Some(name) = found
                && self.is_left(log, &plan.shelf, *name, size).await?
            {
                written.stay.insert(*name);
                (written.to, earlier) = (name.to, None);
                continue;
            }
            let to = next.to.min(at + self.entries);
            // What is removed in the end has to be of this log.
            for name in &plan.leftovers {
                if (at..to).contains(&name.from) {
                    self.checkpoint(log, *name, size).await?;
                }
            }
            if earlier.is_none() {
                let before = |name: &SegmentName| name.from < start || written.stay.contains(name);
                let before = plan.shelf.whole().filter(before);
                earlier = Some(self.earlier(log, before, at, size).await?);
            }
            let earlier = earlier.get_or_insert_default();
            match self.write_one(log, plan, at..to, earlier, tried).await {
                // The snapshot has expired, perhaps. What was archived so far is there.
                Err(error) if at > start && !next.is_over && error.is_retryable() => {
                    tracing::warn!(%tenant, at, %error, "archiving stopped short of its end");
                    let failed = tried.written.pop_if(|name| name.from == at);
                    self.discard_all(tenant, failed.into_iter().collect())
                        .await?;
                    break;
                }
                to => written.to = to?,
            }
            let head = log.log.log_store().head(log.scope()).await?;
            if head.pruned_below != plan.pruned_below {
                return Err(not_yet("the log was pruned while it was archived"));
            }
        }
        Ok(written)
    }

    /// Writes the segment at these positions, or at as many of them as one has. Returns the position behind
    /// it.
    async fn write_one(
        &self,
        log: &TenantLog,
        plan: &Plan<'_>,
        positions: Range<u64>,
        earlier: &BTreeMap<u64, String>,
        tried: &mut Tried,
    ) -> Result<u64> {
        let (from, to) = (positions.start, positions.end);
        let id = log.log.clock().event_id().into_uuid();
        let source = &plan.source;
        let composed = source.compose(&*plan.snapshot, from, to, id, earlier);
        let composed = composed.await?;
        let name = composed.0;
        tried.written.push(name);
        let bytes = self.store(log, source.root(), composed).await?;
        let (tenant, to) = (log.scope().tenant(), name.to);
        self.count(|status| {
            status.segments += 1;
            status.entries += to - from;
            status.bytes += bytes;
        });
        tracing::info!(%tenant, from, to, bytes, "entries were archived");
        Ok(to)
    }

    /// Removes what lies beside what was written, and moves the cursor behind that.
    async fn settle(
        &self,
        log: &TenantLog,
        plan: Plan<'_>,
        written: Written,
        tried: &mut Tried,
    ) -> Result<Archived> {
        let tenant = log.scope().tenant();
        let store = log.log.log_store();
        let Written { to, stay } = written;
        let looked = store.head(log.scope()).await?.size();
        // The cursor, which lets others prune, comes behind this, and so do older segments' removals.
        if erased_since(log, plan.source.size(), &(plan.positions.start..to)).await? {
            return Err(not_yet("entries were erased while they were archived"));
        }
        let covered = |name: &SegmentName| name.to <= to && !stay.contains(name);
        let covered = plan.leftovers.into_iter().filter(covered).collect();
        // From here on others may have these alone.
        tried.written.clear();
        self.discard_all(tenant, covered).await?;
        let below = to.min(plan.positions.end);
        store.advance(tenant, CONSUMER, true, below).await?;
        Ok(Archived { below, looked })
    }

    /// Whether a segment of a try before is verified, and nothing of it was erased since it was written.
    async fn is_left(
        &self,
        log: &TenantLog,
        shelf: &Shelf,
        name: SegmentName,
        size: u64,
    ) -> Result<bool> {
        let positions = name.positions();
        match self.newest(log, shelf, &positions, Some(size)).await? {
            Ok(kept) => Ok(!erased_since(log, kept.size(), &positions).await?),
            Err(error) if error.kind() == ErrorKind::Unavailable => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The checkpoints that what begins at a position is shown to continue: of the segment before it, and of
    /// the one that was written last, which is shown to continue all others.
    async fn earlier(
        &self,
        log: &TenantLog,
        before: impl Iterator<Item = SegmentName>,
        at: u64,
        size: u64,
    ) -> Result<BTreeMap<u64, String>> {
        let before: Vec<SegmentName> = before.filter(|name| name.to <= at).collect();
        let previous = before.iter().filter(|name| name.to == at).max();
        let last = before.iter().max_by_key(|name| name.id);
        let mut earlier = BTreeMap::new();
        for name in BTreeSet::from_iter(previous.into_iter().chain(last)) {
            if let Some(signed) = self.checkpoint(log, *name, size).await? {
                earlier.insert(signed.size, signed.note);
            }
        }
        Ok(earlier)
    }

    /// Writes a segment, reads it back, and verifies that, up to a root. Returns the bytes of its files.
    /// One that is not verified is taken back, as far as the archive takes that.
    pub(super) async fn store(
        &self,
        log: &TenantLog,
        root: Hash,
        (name, text): (SegmentName, String),
    ) -> Result<u64> {
        let tenant = log.scope().tenant();
        let files = blocking(move || pack(&text)).await??;
        let demands = Demands {
            name,
            manifest: manifest_of(&files),
            key: log.verifying_key().await?,
            root,
        };
        let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut paths = Vec::with_capacity(files.len());
        for (file, bytes) in files {
            let path = path_of(tenant, name, &file);
            self.archive.put(&path, bytes).await?;
            paths.push(path);
        }
        let read = self.read(&paths).await?;
        if let Err(error) = blocking(move || check(&demands, read)).await? {
            // Another process may have removed some of it while it had no manifest yet.
            if let Err(error) = self.discard_all(tenant, vec![name]).await {
                tracing::warn!(%tenant, %name, %error, "what is not verified could not be removed");
            }
            return Err(error);
        }
        Ok(bytes as u64)
    }

    /// The files of a segment by their names, as far as they are there.
    pub(super) async fn read(&self, paths: &[String]) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        for path in paths {
            let file = path.splitn(3, '/').nth(2);
            if let Some(file) = file
                && let Some(bytes) = self.archive.get(path).await?
            {
                files.insert(file.to_owned(), bytes);
            }
        }
        Ok(files)
    }

    /// The checkpoint of a segment, when there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the log, of which `size` entries are signed, doesn't continue it: it was
    /// restored from an older copy.
    pub(super) async fn checkpoint(
        &self,
        log: &TenantLog,
        name: SegmentName,
        size: u64,
    ) -> Result<Option<Signed>> {
        let path = path_of(log.scope().tenant(), name, CHECKPOINT);
        let Some(found) = self.archive.get(&path).await? else {
            return Ok(None);
        };
        let Some((signed, root)) = checkpoint_of(&found) else {
            tracing::warn!(path, "no checkpoint: the next segment doesn't continue it");
            return Ok(None);
        };
        self.continues(log, name, signed.size, root, size).await?;
        Ok(Some(signed))
    }

    /// Refuses a segment under a head that the log, of which `known` entries are signed, doesn't continue.
    pub(super) async fn continues(
        &self,
        log: &TenantLog,
        name: SegmentName,
        size: u64,
        root: Hash,
        known: u64,
    ) -> Result<()> {
        let store = &**log.log.log_store();
        if size > known || root_of(store, log.scope(), 0..size).await? != root {
            let message = format!("the log doesn't continue the one that was archived as {name}");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(())
    }

    /// Removes segments, until nothing of them is there: a manifest may come meanwhile. Who puts one behind
    /// that reads back that the rest is missing.
    pub(super) async fn discard_all(
        &self,
        tenant: TenantId,
        names: Vec<SegmentName>,
    ) -> Result<()> {
        for name in names {
            let folder = format!("{tenant}/{name}");
            loop {
                let paths = self.archive.list(&folder, "").await?;
                if paths.is_empty() {
                    break;
                }
                self.discard(&paths).await?;
            }
        }
        Ok(())
    }

    /// Removes the files of a segment: the manifest first, so that it is none any more.
    async fn discard(&self, paths: &[String]) -> Result<()> {
        let (manifest, others): (Vec<_>, Vec<_>) =
            paths.iter().partition(|path| path.ends_with(MANIFEST));
        for path in manifest.into_iter().chain(others) {
            self.archive.remove(path).await?;
        }
        Ok(())
    }
}

/// Of segments in the order of their positions those that share none with another one.
fn alone(names: &[SegmentName]) -> impl Iterator<Item = SegmentName> {
    let mut behind = 0;
    let is_alone = move |(i, name): &(usize, &SegmentName)| {
        let is_behind = name.from >= behind;
        behind = behind.max(name.to);
        is_behind && names.get(i + 1).is_none_or(|next| next.from >= name.to)
    };
    names
        .iter()
        .enumerate()
        .filter(is_alone)
        .map(|(_, name)| *name)
}

/// Whether one of these positions lost anything since the log had a size.
async fn erased_since(log: &TenantLog, size: u64, positions: &Range<u64>) -> Result<bool> {
    let filter = Filter::new().from_seq(size);
    let erases = erases(&**log.log.log_store(), log.scope(), filter).await?;
    Ok(erases.iter().any(|erase| erase.touches(positions)))
}

fn manifest_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files
        .last()
        .map(|(_, bytes)| bytes.clone())
        .unwrap_or_default()
}

/// Where a segment has a file.
pub(super) fn path_of(tenant: TenantId, name: SegmentName, file: &str) -> String {
    format!("{tenant}/{name}/{file}")
}

/// What a segment's file `checkpoint` says.
pub(super) fn checkpoint_of(bytes: &[u8]) -> Option<(Signed, Hash)> {
    let note = std::str::from_utf8(bytes).ok()?.to_owned();
    let read = Note::parse(&note).ok()?;
    let checkpoint = Checkpoint::parse(read.text()).ok()?;
    let size = checkpoint.size();
    Some((Signed { size, note }, checkpoint.root()))
}

/// Does what takes its time on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::new(ErrorKind::Internal, "archiving panicked").with_source(e))
}
