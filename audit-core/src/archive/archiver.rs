//! The steps of archiving, in the order that makes each of them safe to fail.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use audit_tlog::folder::{CHECKPOINT, MANIFEST, SegmentName};
use audit_tlog::{Checkpoint, Control, Hash, Note};

use super::segment::{Demands, Files, Previous, Source, check, pack, touches};
use super::{Archive, CONSUMER, MAX_ENTRIES, MAX_LISTED};
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{each_control_entry, not_yet, root_of};
use crate::filter::Filter;
use crate::id::TenantId;
use crate::log::TenantLog;

/// Segments that one prune waits for.
pub(crate) const AT_ONCE: usize = 8;

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
}

/// How far a log is archived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Archived {
    /// Entries below this position may be pruned.
    pub(crate) below: u64,
    /// No entry below this position says that one of them was erased meanwhile.
    pub(crate) looked: u64,
}

/// Archives what is about to be pruned.
#[derive(Debug)]
pub(crate) struct Archiver {
    archive: Arc<dyn Archive>,
    /// One segment's memory at a time.
    turn: tokio::sync::Mutex<()>,
    status: Mutex<ArchiveStatus>,
}

impl Archiver {
    pub(crate) fn new(archive: Arc<dyn Archive>) -> Self {
        Self {
            archive,
            turn: tokio::sync::Mutex::default(),
            status: Mutex::default(),
        }
    }

    pub(crate) fn status(&self) -> ArchiveStatus {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, edit: impl FnOnce(&mut ArchiveStatus)) {
        edit(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Archives a log's entries below `end`, from the first one left on, or the first so many segments of
    /// them, and moves the consumer's cursor behind them. `log` may do anything in its tenant.
    ///
    /// What was archived before and is not pruned is archived once more, behind `end` too: it may have
    /// been erased since, or written by a process that was killed. The segments that are covered by the
    /// new ones are then removed.
    ///
    /// # Errors
    /// What archive and store answer; [`ErrorKind::Corrupt`] when the log is not what it signed, or doesn't
    /// continue what was archived of it;
    /// [`ErrorKind::Unavailable`] when entries were erased, or the log pruned, meanwhile.
    pub(crate) async fn archive(
        &self,
        log: &TenantLog,
        end: u64,
        segments: usize,
    ) -> Result<Archived> {
        let _turn = self.turn.lock().await;
        let archived = self.archive_below(log, end, segments).await;
        if archived.is_err() {
            self.count(|status| status.failures += 1);
        }
        archived.map_err(|error| error.with_tenant(log.scope().tenant()))
    }

    async fn archive_below(&self, log: &TenantLog, end: u64, segments: usize) -> Result<Archived> {
        let tenant = log.scope().tenant();
        let store = log.log.log_store();
        let (snapshot, checkpoint) = log.signed_snapshot().await?;
        let head = snapshot.head();
        let start = head.pruned_below;
        let end = end.min(head.size());
        let root = checkpoint.root;
        let size = checkpoint.size;
        let begun = log.begin(checkpoint, None, Vec::new()).await?;
        let shelf = self.shelf(tenant, start).await?;
        let known = store.cursor(tenant, CONSUMER).await?;
        // What an earlier try left is archived anew, behind `end` too: it may have been erased since, and
        // a segment that straddles what is pruned now would never be removed.
        let left = shelf.leftovers.keys().map(|name| name.to).max();
        let again = left.unwrap_or(0).max(known).min(head.size());
        let positions = start..end.max(again);
        let source = Source::open(&**store, log.scope(), &*snapshot, begun, &positions).await?;
        let mut previous = match shelf.previous {
            Some(name) => self.checkpoint(log, name, size).await?,
            None => None,
        };
        // What is removed below has to be of this log.
        for name in shelf.leftovers.keys() {
            self.checkpoint(log, *name, size).await?;
        }
        let mut at = start;
        let mut written = Vec::new();
        while (at < end && written.len() < segments) || at < again {
            // What is pruned ends with a segment.
            let to = if at < end { end } else { again };
            let id = log.log.clock().event_id().into_uuid();
            let (name, text) = source.compose(at, to, id, previous.as_ref()).await?;
            let length = text.len();
            let files = blocking(move || pack(&text)).await??;
            let demands = Demands {
                name,
                manifest: manifest_of(&files),
                key: log.verifying_key().await?,
                root,
                length,
            };
            previous = own_checkpoint(&files, size).or(previous);
            written.push(name);
            self.store(tenant, demands, files).await?;
            if store.head(log.scope()).await?.pruned_below != start {
                self.discard_all(tenant, written).await?;
                return Err(not_yet("the log was pruned while it was archived"));
            }
            at = name.to;
        }
        let looked = store.head(log.scope()).await?.size();
        // The cursor, which lets others prune, comes behind this, and so do older segments' removals.
        if erased_since(log, size, &(start..at)).await? {
            self.discard_all(tenant, written).await?;
            return Err(not_yet("entries were erased while they were archived"));
        }
        for (name, paths) in shelf.leftovers {
            if name.to <= at {
                self.discard(paths).await?;
            }
        }
        let below = at.min(end);
        store.advance(tenant, CONSUMER, true, below).await?;
        Ok(Archived { below, looked })
    }

    /// Writes a segment, reads it back, and verifies that.
    async fn store(&self, tenant: TenantId, demands: Demands, files: Files) -> Result<()> {
        let name = demands.name;
        let path = |file: &str| format!("{tenant}/{name}/{file}");
        let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut names = Vec::with_capacity(files.len());
        for (file, bytes) in files {
            self.archive.put(&path(&file), bytes).await?;
            names.push(file);
        }
        let mut read = BTreeMap::new();
        for file in names {
            if let Some(bytes) = self.archive.get(&path(&file)).await? {
                read.insert(file, bytes);
            }
        }
        blocking(move || check(&demands, read)).await??;
        self.count(|status| {
            status.segments += 1;
            status.entries += name.to - name.from;
            status.bytes += bytes as u64;
        });
        tracing::info!(%tenant, from = name.from, to = name.to, bytes, "entries were archived");
        Ok(())
    }

    /// What lies in the archive around a position.
    async fn shelf(&self, tenant: TenantId, position: u64) -> Result<Shelf> {
        let mut shelf = Shelf::default();
        let folder = tenant.to_string();
        let first = position.saturating_sub(MAX_ENTRIES);
        let mut after = format!("{folder}/{first:016}");
        loop {
            let page = self.archive.list(&folder, &after).await?;
            for path in &page {
                let mut parts = path.splitn(3, '/').skip(1);
                let name = parts.next().and_then(SegmentName::parse);
                let Some(name) = name else { continue };
                if name.from >= position {
                    shelf.leftovers.entry(name).or_default().push(path.clone());
                } else if name.to == position && parts.next() == Some(MANIFEST) {
                    shelf.previous = shelf.previous.max(Some(name));
                }
            }
            match page.last() {
                Some(last) if page.len() == MAX_LISTED => after.clone_from(last),
                _ => return Ok(shelf),
            }
        }
    }

    /// The checkpoint of a segment, when there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the log, of which `size` entries are signed, doesn't continue it: it was
    /// restored from an older copy.
    async fn checkpoint(
        &self,
        log: &TenantLog,
        name: SegmentName,
        size: u64,
    ) -> Result<Option<Previous>> {
        let path = format!("{}/{name}/{CHECKPOINT}", log.scope().tenant());
        let Some(found) = self.archive.get(&path).await? else {
            return Ok(None);
        };
        let Some((previous, root)) = checkpoint_of(&found) else {
            tracing::warn!(path, "no checkpoint: the next segment doesn't continue it");
            return Ok(None);
        };
        let store = &**log.log.log_store();
        if previous.size > size || root_of(store, log.scope(), 0..previous.size).await? != root {
            let message = format!("the log doesn't continue the one that was archived as {name}");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(Some(previous))
    }

    /// Removes segments that this call wrote. Nobody prunes for their sake before the cursor is behind
    /// them.
    async fn discard_all(&self, tenant: TenantId, written: Vec<SegmentName>) -> Result<()> {
        for name in written {
            let paths = self.paths(tenant, name).await?;
            self.discard(paths).await?;
        }
        Ok(())
    }

    /// The paths of a segment's files.
    async fn paths(&self, tenant: TenantId, name: SegmentName) -> Result<Vec<String>> {
        self.archive.list(&format!("{tenant}/{name}"), "").await
    }

    /// Removes the files of a segment: the manifest first, so that it is none any more.
    async fn discard(&self, mut paths: Vec<String>) -> Result<()> {
        paths.sort_by_key(|path| !path.ends_with(MANIFEST));
        for path in paths {
            self.archive.remove(&path).await?;
        }
        Ok(())
    }
}

/// What lies in an archive around a position.
#[derive(Default)]
struct Shelf {
    /// The segment that ends there.
    previous: Option<SegmentName>,
    /// What an earlier try left behind it, with the paths of their files.
    leftovers: BTreeMap<SegmentName, Vec<String>>,
}

/// Whether one of these positions lost anything since the log had a size.
async fn erased_since(log: &TenantLog, size: u64, positions: &Range<u64>) -> Result<bool> {
    let mut is_erased = false;
    let filter = Filter::new().action("log.erase").from_seq(size);
    each_control_entry(&**log.log.log_store(), log.scope(), &filter, |entry| {
        if let Some(Control::Erase { entries, .. }) = entry.control() {
            is_erased |= touches(&entries, positions);
        }
    })
    .await?;
    Ok(is_erased)
}

fn manifest_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files
        .last()
        .map(|(_, bytes)| bytes.clone())
        .unwrap_or_default()
}

fn own_checkpoint(files: &[(String, Vec<u8>)], size: u64) -> Option<Previous> {
    let (_, bytes) = files.iter().find(|(name, _)| name == CHECKPOINT)?;
    let note = String::from_utf8(bytes.clone()).ok()?;
    Some(Previous { size, note })
}

fn checkpoint_of(bytes: &[u8]) -> Option<(Previous, Hash)> {
    let note = std::str::from_utf8(bytes).ok()?.to_owned();
    let read = Note::parse(&note).ok()?;
    let checkpoint = Checkpoint::parse(read.text()).ok()?;
    let size = checkpoint.size();
    Some((Previous { size, note }, checkpoint.root()))
}

/// Does what takes its time on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::new(ErrorKind::Internal, "archiving panicked").with_source(e))
}
