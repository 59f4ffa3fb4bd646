//! Erasures that their caller waits for. They are jobs as all others are, kept and marked before anything
//! is erased; only their steps are taken here and now, beside the workers.

use std::sync::PoisonError;
use std::time::Duration;

use audit_tlog::{Basis, Control, Group};
use tokio::time::Instant;

use crate::entry::{Entry, Receipt};
use crate::erasure::{ErasureJob, ErasureRequest, ErasureState, Selection};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::id::{ErasureId, EventId};
use crate::log::TenantLog;
use crate::page::PageRequest;
use crate::scope::{Permission, Permissions, TenantScope};
use crate::store::{Erased, Lookup, loses};
use crate::worker::erasure_step;

/// How soon it is looked whether others have done what is waited for, and how often at the least.
const LOOK: Duration = Duration::from_millis(100);
const RARELY: Duration = Duration::from_secs(2);
/// How much of its caller's time the look through what was given up may take; a worker does it otherwise.
const SIFTING: Duration = Duration::from_secs(10);

/// How far [`TenantLog::erase_entry`] came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryErased {
    /// It is done; nothing was left to erase where no entry lost anything.
    Done(Erased),
    /// It is kept, and goes on: something waits for others, or the entry isn't in the log and may be on
    /// its way to it.
    Begun(ErasureJob),
}

/// What is under an id.
enum Place {
    /// At this position, with or without something left to erase.
    At(u64, bool),
    /// It was pruned, as this error says.
    Pruned(Error),
    /// The log never had it, as this error says.
    Missing(Error),
}

/// An erasure whose steps its caller takes. The workers of this process take it on when this is dropped.
struct Pursuit<'a> {
    log: &'a TenantLog,
    id: ErasureId,
}

impl<'a> Pursuit<'a> {
    /// Of an erasure that isn't there yet.
    fn of(log: &'a TenantLog) -> Self {
        let id = log.new_erasure_id();
        let pursued = &log.log.inner.pursued;
        let mut pursued = pursued.lock().unwrap_or_else(PoisonError::into_inner);
        pursued.insert(id);
        Self { log, id }
    }
}

impl Drop for Pursuit<'_> {
    fn drop(&mut self) {
        let inner = &self.log.log.inner;
        let mut pursued = inner.pursued.lock().unwrap_or_else(PoisonError::into_inner);
        pursued.remove(&self.id);
        drop(pursued);
        inner.bell.ring(self.log.scope.tenant());
    }
}

impl TenantLog {
    /// Destroys groups of entries, all groups when none are named. Needs `erase`.
    ///
    /// It is an erasure like one that is [asked for](Self::request_erasure), with the same reach; its steps
    /// are taken here rather than left to a worker. When this returns, what it selects has lost these groups
    /// in the log. What others have to do goes on behind it: the process that signs takes the rest out
    /// of an archive, and queues and outboxes that are away are looked through later. The receipts are
    /// those of the steps that were taken here: another process may have been faster. Without ids nothing is
    /// done.
    ///
    /// The reason stays in the log: it must not repeat whom the erasure is about.
    ///
    /// # Errors
    /// Those of [`request_erasure`](Self::request_erasure), and what a step answers: then the erasure is
    /// kept, and a worker goes on with it.
    pub async fn erase(
        &self,
        ids: Vec<EventId>,
        groups: Option<Vec<Group>>,
        basis: Basis,
        reason: Option<String>,
    ) -> Result<Erased> {
        if ids.is_empty() {
            self.scope.require(Permission::Erase)?;
            return match self.hold_refusal().await? {
                Some(refusal) => Err(refusal),
                None => Ok(Erased::default()),
            };
        }
        let mut request = ErasureRequest::new(Selection::ids(ids), basis);
        request.reason = reason;
        if let Some(groups) = groups {
            request = request.groups(&groups);
        }
        let pursuit = Pursuit::of(self);
        let job = self.begin_erasure(pursuit.id, request).await?;
        let (job, receipts) = self.pursue(&job, Instant::now()).await?;
        Ok(Erased::new(job.entries, receipts))
    }

    /// Destroys all groups of one entry, wherever it is, and waits for that for at most `patience`. Needs
    /// `erase`.
    ///
    /// An entry that is pruned loses them in the archive. One that isn't in the log loses them when it
    /// arrives, if it was accepted before: with something in the queue or the outbox that is waited for,
    /// too, since nobody can tell what. A repeat finds nothing left.
    ///
    /// # Errors
    /// Those of [`request_erasure`](Self::request_erasure). [`NotFound`](ErrorKind::NotFound) when the log
    /// never had it and nothing is on its way that may be it, [`Pruned`](ErrorKind::Pruned) when it was
    /// pruned and is in no archive: even then what is accepted under this id before now, and comes late,
    /// is erased.
    pub async fn erase_entry(
        &self,
        id: EventId,
        basis: Basis,
        patience: Duration,
    ) -> Result<EntryErased> {
        let deadline = Instant::now() + patience;
        let request = ErasureRequest::new(Selection::ids(vec![id]), basis);
        let pursuit = Pursuit::of(self);
        let job = self.begin_erasure(pursuit.id, request.clone()).await?;
        let (job, receipts) = match self.pursue(&job, deadline).await {
            Ok(pursued) => pursued,
            // It is kept, and a worker goes on.
            Err(error) if error.is_retryable() || error.kind() == ErrorKind::Refused => {
                return Ok(EntryErased::Begun(self.erasure(job.id).await?));
            }
            Err(error) => return Err(error),
        };
        if job.state == ErasureState::Running {
            return Ok(EntryErased::Begun(job));
        }
        if job.entries > 0 {
            // Another process was faster.
            let receipts = match (receipts.is_empty(), self.place_of(id).await?) {
                (true, Place::At(seq, _)) => self.receipts_since(job.below, seq).await?,
                _ => receipts,
            };
            return Ok(EntryErased::Done(Erased::new(job.entries, receipts)));
        }
        let mut may_come = true;
        let mut look = LOOK;
        loop {
            match self.place_of(id).await? {
                // Erased before, or just now by whoever appended it and found the mark.
                Place::At(seq, false) => {
                    let receipts = self.receipts_since(job.below, seq).await?;
                    let entries = u64::from(!receipts.is_empty());
                    return Ok(EntryErased::Done(Erased::new(entries, receipts)));
                }
                // It has come, and goes in a moment, or was recorded after the request.
                Place::At(_, true) => {}
                Place::Pruned(error) => {
                    // Nothing but the archive tells one that lies there from one that is nowhere.
                    return match self.count_erasure(&request).await?.matching {
                        0 => Err(error),
                        _ => Ok(EntryErased::Done(Erased::default())),
                    };
                }
                Place::Missing(error) if !may_come => return Err(error),
                Place::Missing(_) => {
                    may_come = self.is_anything_on_its_way().await?;
                    // It may have come since it was looked for.
                    if !may_come {
                        continue;
                    }
                }
            }
            if Instant::now() >= deadline {
                return Ok(EntryErased::Begun(job));
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + look)).await;
            look = RARELY.min(look * 2);
        }
    }

    /// Takes the steps of an erasure that are left, and waits until `deadline` for what others have to do.
    /// Returns it as it is then, with the control entries of the steps that were taken here.
    ///
    /// # Errors
    /// What the last step answered, when that failed; what was taken before stays taken.
    async fn pursue(
        &self,
        job: &ErasureJob,
        deadline: Instant,
    ) -> Result<(ErasureJob, Vec<Receipt>)> {
        let inner = &self.log.inner;
        let mut receipts = Vec::new();
        let sifted_by = deadline.max(Instant::now() + SIFTING);
        loop {
            let job = self.erasure(job.id).await?;
            if job.state == ErasureState::Done {
                return Ok((job, receipts));
            }
            let is_through = job.next >= job.end;
            // What was given up is looked through as a whole.
            let taken = match is_through {
                true => tokio::time::timeout_at(sifted_by, erasure_step(inner, &job)).await,
                false => Ok(erasure_step(inner, &job).await),
            };
            let Ok(taken) = taken else {
                return Ok((self.erasure(job.id).await?, receipts));
            };
            let outcome = match taken {
                Ok(Some(erased)) => {
                    receipts.extend(erased.receipts);
                    continue;
                }
                // The log has lost it; what is left is others' to do.
                Err(_) if is_through => Ok(job),
                outcome => outcome.map(|_| job),
            };
            if Instant::now() >= deadline {
                return Ok((outcome?, receipts));
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + LOOK)).await;
        }
    }

    async fn place_of(&self, id: EventId) -> Result<Place> {
        let found = self.log.inner.store.get(&self.reading(), &[id]).await;
        let found = found.and_then(|found| {
            let found = found.into_iter().next();
            found.unwrap_or(Lookup::Missing).into_entry()
        });
        match found {
            Ok(entry) => {
                let is_left = !loses(&entry, &Group::ALL).is_empty();
                Ok(Place::At(entry.seq, is_left))
            }
            Err(error) => match error.kind() {
                ErrorKind::Pruned => Ok(Place::Pruned(error)),
                ErrorKind::NotFound => Ok(Place::Missing(error)),
                // It is there, and was erased all the same.
                ErrorKind::Corrupt => Ok(Place::At(error.position().unwrap_or(0), false)),
                _ => Err(error),
            },
        }
    }

    /// The control entries from a position on that name another one, as receipts.
    async fn receipts_since(&self, from: u64, seq: u64) -> Result<Vec<Receipt>> {
        let (store, scope) = (&self.log.inner.store, self.reading());
        let filter = Filter::new().action("log.erase").from_seq(from);
        let mut page = PageRequest::first()
            .ascending()
            .limit(PageRequest::MAX_LIMIT);
        let mut naming = Vec::new();
        loop {
            let found = store.list(&scope, &filter, &page).await?;
            let is_last = found.items.len() < PageRequest::MAX_LIMIT;
            naming.extend(found.items.into_iter().filter(|entry| names(entry, seq)));
            match found.next {
                Some(next) if !is_last => page = page.after(next),
                _ => break,
            }
        }
        let head = store.head(&scope).await?;
        let receipt = |entry: Entry| {
            Receipt::new(entry.id, entry.seq, entry.leaf_hash, entry.created_at)
                .under(head.size(), head.tree.root())
        };
        Ok(naming.into_iter().map(receipt).collect())
    }

    /// Whether the queue or the outbox has anything, of whatever tenant, that was not appended yet.
    async fn is_anything_on_its_way(&self) -> Result<bool> {
        let inner = &self.log.inner;
        if let Some(queue) = &inner.queue {
            let depth = queue.depth().await?;
            if depth.waiting + depth.leased > 0 {
                return Ok(true);
            }
        }
        match &inner.outbox {
            Some(outbox) => Ok(!outbox.take(1, &[]).await?.is_empty()),
            None => Ok(false),
        }
    }

    /// Whoever may destroy may know what is left.
    fn reading(&self) -> TenantScope {
        let permissions = Permissions::of(&[Permission::Read]);
        TenantScope::granted(self.scope.tenant(), self.scope.subject(), permissions)
    }
}

/// Whether a control entry says that something of the entry at a position was erased.
fn names(entry: &Entry, seq: u64) -> bool {
    match entry.control() {
        Some(Control::Erase { entries, .. }) => entries
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&seq)),
        _ => false,
    }
}
