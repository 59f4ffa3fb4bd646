//! Erases what was asked for, step by step, and what is appended late although it should be gone; at the end of
//! an erasure, and now and then, what was given up on its way to the log.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use audit_tlog::{Group, Timestamp};
use tokio::time::Instant;

use super::followed::Paused;
use super::{POLL, Worker, aside, is_closed, pause_after};
use crate::archive::{Archiver, CONSUMER, ERASURES, Wanted};
use crate::erasure::{
    ErasureJob, ErasureMark, ErasureRequest, ErasureStep, ErasureStore, LATE_MICROS, Selection,
};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::id::{ErasureId, EventId, TenantId};
use crate::log::{AuditLog, Inner, TenantLog};
use crate::page::PageRequest;
use crate::prepare::{Act, Batch, PreparedEvent};
use crate::scope::{Permission, Permissions, TenantScope};
use crate::store::{Erased, Erasure, Lookup};

/// How often the eraser looks when nothing woke it.
const ERASE_POLL: Duration = Duration::from_secs(5);
/// How often it is looked for what an engine gave up by itself and was erased before.
const SIFT: Duration = Duration::from_secs(3600);
/// Tenants whose jobs are read at once.
const TENANTS: usize = 100;
/// Entries of one step, and about their bytes: how long appends of the tenant wait for it.
const STEP_ENTRIES: usize = 500;
const STEP_BYTES: usize = 4 << 20;
/// Ids of one step, of whose entries' sizes nothing is known.
const STEP_IDS: usize = 100;
/// Positions that one step looks through for entries that match, and fewer where each is read for
/// its words.
const STEP_POSITIONS: u64 = 100_000;
const STEP_POSITIONS_OF_TEXT: u64 = 5_000;

pub(super) async fn run(mut worker: Worker, erasures: Arc<dyn ErasureStore>) {
    let mut failures = 0;
    let mut paused = Paused::default();
    let mut sift_at = Instant::now();
    let mut sifts_failed = 0;
    loop {
        worker.bell.borrow_and_update();
        if Instant::now() >= sift_at {
            let again = match aside::sift(&worker.log).await {
                Ok(()) => {
                    sifts_failed = 0;
                    SIFT
                }
                Err(error) => {
                    worker.failed(&error);
                    sifts_failed += 1;
                    pause_after(sifts_failed)
                }
            };
            sift_at = Instant::now() + again;
        }
        let went_on = match round(&worker, &*erasures, &mut paused).await {
            Ok(went_on) => {
                failures = 0;
                if paused.is_empty() {
                    worker.worked();
                }
                went_on
            }
            Err(error) => {
                worker.failed(&error);
                failures += 1;
                if !worker.pause(pause_after(failures)).await {
                    return;
                }
                continue;
            }
        };
        if worker.stop.is_cancelled() {
            return;
        }
        if went_on {
            tokio::task::yield_now().await;
            continue;
        }
        let poll = if paused.is_empty() { ERASE_POLL } else { POLL };
        if !worker.pause(POLL).await || !worker.rest(poll).await {
            return;
        }
    }
}

/// One step for each tenant that has a job, and whether any was taken. A tenant whose step fails is
/// passed over for a while.
async fn round(worker: &Worker, erasures: &dyn ErasureStore, paused: &mut Paused) -> Result<bool> {
    let (mut after, mut went_on, mut left) = (None, false, 0);
    let mut seen = HashSet::new();
    loop {
        let jobs = erasures.open_erasures(after, TENANTS).await?;
        after = jobs.last().map(|job| job.tenant);
        for job in &jobs {
            if worker.stop.is_cancelled() {
                return Ok(false);
            }
            seen.insert(job.tenant);
            left += job.end.saturating_sub(job.next);
            if paused.passes_over(job.tenant) || is_pursued(&worker.log, job.id) {
                continue;
            }
            match step(&worker.log, job).await {
                Ok(taken) => {
                    went_on |= taken.is_some();
                    paused.forgive(job.tenant);
                }
                // It was closed a moment ago, and is told again once it is open.
                Err(error) if is_closed(&error) => {}
                Err(error) => {
                    worker.failed(&error);
                    paused.fail(job.tenant);
                    let note = error.to_string();
                    erasures.note_erasure(job.tenant, job.id, &note).await?;
                }
            }
        }
        if jobs.len() < TENANTS {
            break;
        }
    }
    // Another worker may have ended what failed here.
    for tenant in paused.due() {
        if !seen.contains(&tenant) {
            paused.forgive(tenant);
        }
    }
    worker.lag(left);
    Ok(went_on)
}

/// Whether whoever asked for a job takes its steps.
fn is_pursued(log: &Inner, id: ErasureId) -> bool {
    let pursued = log.pursued.lock().unwrap_or_else(PoisonError::into_inner);
    pursued.contains(&id)
}

/// What the next step of a job takes.
#[derive(Default)]
struct Share {
    ids: Vec<EventId>,
    /// Pruned positions, and what their archived copies lose.
    archived: Vec<(u64, Vec<Group>)>,
    next: u64,
}

/// Takes the next step of a job. None when it waits for the archive to follow, and nothing else is left
/// to do.
pub(crate) async fn step(log: &Arc<Inner>, job: &ErasureJob) -> Result<Option<Erased>> {
    let scope = scope_of(job);
    let shelved = Shelved::of(log, job).await?;
    let marks = aside::marks_of(log, job).await?;
    let is_through = job.next >= job.end;
    if let Some(shelved) = &shelved
        && is_through
        && !shelved.archiver.has_followed(&shelved.log).await?
    {
        return match &log.signing {
            Some(_) => Ok(None),
            None => {
                let waits = "it waits for the process that signs to take it out of the archive";
                Err(Error::new(ErrorKind::Unavailable, waits))
            }
        };
    }
    if is_through && !marks.is_empty() {
        // A hold keeps what was given up as it keeps the log.
        log.store
            .erase(&scope, &erasure_of(log, &scope, job, Vec::new())?)
            .await?;
        aside::sift_for(log, job, marks.clone()).await?;
    }
    let share = match &job.selection {
        Some(Selection::Ids(ids)) => match &shelved {
            Some(shelved) => shelved.share_of_ids(log, &scope, job, ids).await?,
            None => share_of_ids(ids, job.next),
        },
        Some(Selection::Matching(filter)) => match &shelved {
            Some(shelved) if job.next < shelved.positions.end => {
                shelved.share_by_filter(job, filter).await?
            }
            _ => match share_by_list(log, &scope, job, filter).await {
                // One damaged entry doesn't stop an erasure: it is matched as it stands.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    share_by_read(log, &scope, job, filter).await?
                }
                share => share?,
            },
        },
        None => {
            let unread = "what is to be erased can't be read: a newer program has to do it";
            return Err(Error::new(ErrorKind::Unavailable, unread));
        }
    };
    let taken = ErasureStep {
        id: job.id,
        from: job.next,
        next: share.next,
        // What lies elsewhere is looked through a step later, when the log has lost it.
        done: share.next >= job.end && (is_through || (shelved.is_none() && marks.is_empty())),
    };
    let mut erasure = erasure_of(log, &scope, job, share.ids)?.step(taken);
    if let Some(shelved) = &shelved {
        // What is pruned meanwhile would be found neither in the log nor, before, in the archive.
        erasure = erasure
            .archived(share.archived)
            .pruned_below(shelved.pruned_below);
    }
    let erased = log.store.erase(&scope, &erasure).await?;
    if erased.entries > 0 {
        log.bell.ring(job.tenant);
    }
    Ok(Some(erased))
}

/// What a job looks through in the archive.
struct Shelved<'a> {
    archiver: &'a Archiver,
    log: TenantLog,
    pruned_below: u64,
    /// Those that are the job's subject.
    positions: Range<u64>,
}

impl<'a> Shelved<'a> {
    /// None where nothing is archived.
    ///
    /// # Errors
    /// As [`Inner::archiver`].
    async fn of(log: &'a Arc<Inner>, job: &ErasureJob) -> Result<Option<Self>> {
        let Some(archiver) = log.archiver(job.tenant).await? else {
            return Ok(None);
        };
        // What nobody signs isn't archived either, or was by another process.
        if log.signing.is_none() && log.store.cursor(job.tenant, CONSUMER).await? == 0 {
            return Ok(None);
        }
        let trusted = TenantScope::trusted(job.tenant, ERASURES);
        let pruned_below = log.store.head(&trusted).await?.pruned_below;
        let inner = Arc::clone(log);
        Ok(Some(Self {
            archiver,
            log: AuditLog { inner }.tenant(trusted),
            pruned_below,
            positions: 0..pruned_below.min(job.below),
        }))
    }

    /// Of one segment all that matches: no row changes for it.
    async fn share_by_filter(&self, job: &ErasureJob, filter: &Filter) -> Result<Share> {
        let end = self.positions.end;
        let from = filter.from_seq.unwrap_or(0).clamp(job.next, end);
        let to = filter.to_seq.map_or(end, |to| to.clamp(from, end));
        let wanted = Arc::new(Wanted::Matching(Box::new(filter.clone())));
        let (archived, next) = self
            .archiver
            .search(&self.log, from..to, &wanted, &job.groups)
            .await?;
        Ok(Share {
            archived,
            next: if next < to { next } else { end },
            ..Share::default()
        })
    }

    /// As many ids as a step takes of the log; those that are pruned before or among them are looked for
    /// in the archive, all at once.
    async fn share_of_ids(
        &self,
        log: &Inner,
        scope: &TenantScope,
        job: &ErasureJob,
        ids: &[EventId],
    ) -> Result<Share> {
        let from = usize::try_from(job.next).unwrap_or(usize::MAX);
        let mut share = Share {
            next: job.next,
            ..Share::default()
        };
        let mut pruned = HashSet::new();
        for id in ids.iter().skip(from) {
            if share.ids.len() == STEP_IDS {
                break;
            }
            match log.store.get(scope, std::slice::from_ref(id)).await {
                Ok(found) if matches!(found[..], [Lookup::Pruned { .. }]) => {
                    pruned.insert(*id);
                }
                Ok(_) => share.ids.push(*id),
                // It is there, and can be erased all the same.
                Err(error) if error.kind() == ErrorKind::Corrupt => share.ids.push(*id),
                Err(error) => return Err(error),
            }
            share.next += 1;
        }
        if pruned.is_empty() {
            return Ok(share);
        }
        let (positions, wanted) = (self.positions.clone(), Wanted::Ids(pruned));
        share.archived = self
            .archiver
            .search_all(&self.log, positions, wanted, &job.groups)
            .await?;
        Ok(share)
    }
}

/// What the worker may do in the name of whoever asked.
fn scope_of(job: &ErasureJob) -> TenantScope {
    const NEEDED: Permissions =
        Permissions::of(&[Permission::Read, Permission::Stream, Permission::Erase]);
    TenantScope::granted(job.tenant, &job.subject, NEEDED)
}

fn erasure_of(
    log: &Inner,
    scope: &TenantScope,
    job: &ErasureJob,
    ids: Vec<EventId>,
) -> Result<Erasure> {
    let act = Act::new(scope, job.reason.clone(), Arc::clone(&log.clock))?;
    Ok(Erasure::new(ids, job.basis.clone(), act).groups(&job.groups))
}

fn share_of_ids(ids: &[EventId], from: u64) -> Share {
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(ids.len());
    let ids = &ids[from..ids.len().min(from + STEP_IDS)];
    Share {
        ids: ids.to_vec(),
        next: (from + ids.len()) as u64,
        ..Share::default()
    }
}

async fn share_by_list(
    log: &Inner,
    scope: &TenantScope,
    job: &ErasureJob,
    filter: &Filter,
) -> Result<Share> {
    let positions = match filter.q {
        Some(_) => STEP_POSITIONS_OF_TEXT,
        None => STEP_POSITIONS,
    };
    let to = job.end.min(job.next.saturating_add(positions));
    let mut within = filter.clone();
    within.from_seq = within.from_seq.max(Some(job.next));
    within.to_seq = Some(within.to_seq.map_or(to, |end| end.min(to)));
    let page = PageRequest::first().ascending().limit(STEP_ENTRIES);
    let found = log.store.list(scope, &within, &page).await?.items;
    let mut share = Share {
        next: to,
        ..Share::default()
    };
    let mut bytes = 0;
    for entry in &found {
        if bytes >= STEP_BYTES {
            break;
        }
        bytes += 512 + entry.fields.raw_len();
        share.ids.push(entry.id);
        share.next = entry.seq + 1;
    }
    Ok(share)
}

/// As [`share_by_list`], entry by entry and without recomputing leaves.
async fn share_by_read(
    log: &Inner,
    scope: &TenantScope,
    job: &ErasureJob,
    filter: &Filter,
) -> Result<Share> {
    let found = log.store.read(scope, job.next, STEP_ENTRIES).await?;
    let mut share = Share {
        next: job.end,
        ..Share::default()
    };
    for entry in found.iter().take_while(|entry| entry.seq < job.end) {
        if filter.matches(entry) {
            share.ids.push(entry.id);
        }
        share.next = entry.seq + 1;
    }
    Ok(share)
}

/// Erases what was just appended, had been accepted before an erasure was asked for, and is its
/// subject. Where that fails, what the tenant's batches came from is not done either: it comes again.
pub(super) async fn erase_late<T>(log: &Inner, batches: &[Batch], outcomes: &mut [Result<T>]) {
    let mut appended: BTreeMap<TenantId, Vec<usize>> = BTreeMap::new();
    for (i, (batch, outcome)) in batches.iter().zip(&*outcomes).enumerate() {
        if outcome.is_ok() {
            appended.entry(batch.tenant()).or_default().push(i);
        }
    }
    for (tenant, places) in appended {
        let events = places.iter().flat_map(|i| batches[*i].events()).collect();
        if let Err(error) = erase_late_of(log, tenant, events).await {
            for i in places {
                let again = "appended, and still to be erased";
                let again = Error::new(ErrorKind::Unavailable, again);
                outcomes[i] = Err(again.with_tenant(tenant).with_source(error.clone()));
            }
        }
    }
}

async fn erase_late_of(log: &Inner, tenant: TenantId, events: Vec<&PreparedEvent>) -> Result<()> {
    let secret = match log.cached_tenant(tenant).await {
        Ok(row) => row.secret.clone(),
        // Nobody can have asked for anything in it.
        Err(error) if error.kind() == ErrorKind::UnknownTenant => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut by_mark: HashMap<ErasureMark, Vec<&PreparedEvent>> = HashMap::new();
    for event in events {
        for mark in ErasureMark::of_event(&secret, event) {
            by_mark.entry(mark).or_default().push(event);
        }
    }
    let marks: Vec<ErasureMark> = by_mark.keys().copied().collect();
    let now = log.clock.now().as_micros();
    let since = Timestamp::saturating_from_micros(now - LATE_MICROS);
    let marked = log.erasures.marked_erasures(tenant, &marks, since).await?;
    let mut jobs: BTreeMap<ErasureId, (ErasureJob, Vec<EventId>)> = BTreeMap::new();
    for (mark, job) in marked {
        let events = by_mark.get(&mark).into_iter().flatten();
        let earlier = events.filter(|event| {
            let accepted = event.accepted();
            accepted.is_some_and(|accepted| accepted <= job.requested_at)
        });
        let ids: Vec<EventId> = earlier.map(|event| event.id()).collect();
        if !ids.is_empty() {
            let (_, all) = jobs.entry(job.id).or_insert((job, Vec::new()));
            all.extend(ids);
        }
    }
    for (job, ids) in jobs.into_values() {
        let scope = scope_of(&job);
        let erasure = erasure_of(log, &scope, &job, ids)?;
        match log.store.erase(&scope, &erasure).await {
            Ok(erased) if erased.entries == 0 => {}
            Ok(_) => log.bell.ring(tenant),
            // A hold was placed since: what comes behind it in the queue doesn't wait for its end.
            Err(error) if error.kind() == ErrorKind::Refused => {
                let mut request =
                    ErasureRequest::new(Selection::ids(erasure.ids), job.basis).groups(&job.groups);
                request.reason = job.reason;
                let id = ErasureId::new(log.clock.event_id().into_uuid());
                let job = ErasureJob::new(id, &scope, request, log.clock.now());
                log.erasures.begin_erasure(&scope, &job, &[]).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
