//! The guard: that an old copy of a log, or a guard that forgot one, stops it, and how it goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::memory::MemoryGuard;
use audit_core::tlog::merkle::verify_consistency;
use audit_core::tlog::note::Note;
use audit_core::tlog::verify::{Code, Options, Report, verify_lines};
use audit_core::{
    AuditLog, Basis, CheckpointStore as _, Control, Error, ErrorKind, Event, EventId,
    EvidenceRequest, Filter, Group, Guard, GuardAdvance, GuardedErasure, GuardedHead,
    LogStore as _, PageRequest, Recorder, Result, Retention, SignedCheckpoint, Signer, TenantId,
    TenantLog, TenantUpdate, Timestamp, Workers,
};
use futures_util::TryStreamExt as _;
use uuid::Uuid;

use crate::faulty::Faulty;
use crate::signer::{FIRST, exported, key, origin, record, scope, signed, tenant, until, vkey_in};

/// A guard that fails on command, and counts what it is asked.
#[derive(Debug, Default)]
pub(crate) struct Unsteady {
    inner: MemoryGuard,
    /// The next advance fails, and whether it is stored nevertheless.
    once: Mutex<Option<bool>>,
    /// The same of the deployment log's.
    pub(crate) once_deployment: Mutex<Option<bool>>,
    away: AtomicBool,
    pub(crate) deployment_away: AtomicBool,
    asked: AtomicU64,
}

impl Unsteady {
    async fn advance_or_fail(
        away: &AtomicBool,
        once: &Mutex<Option<bool>>,
        advance: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let fails = match away.load(Ordering::SeqCst) {
            true => Some(false),
            false => once.lock().unwrap().take(),
        };
        if fails.is_none_or(|stored| stored) {
            advance.await?;
        }
        match fails {
            Some(_) => Err(Error::new(ErrorKind::Unavailable, "no answer")),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Guard for Unsteady {
    fn place(&self) -> String {
        "a guard of a test".to_owned()
    }

    async fn head(&self, tenant: TenantId) -> Result<Option<GuardedHead>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.inner.head(tenant).await
    }

    async fn erasures(
        &self,
        tenant: TenantId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GuardedErasure>> {
        self.inner.erasures(tenant, from, limit).await
    }

    async fn tenants(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<TenantId>> {
        self.inner.tenants(after, limit).await
    }

    async fn advance(&self, tenant: TenantId, advance: &GuardAdvance) -> Result<()> {
        let advance = self.inner.advance(tenant, advance);
        Self::advance_or_fail(&self.away, &self.once, advance).await
    }

    async fn deployment_head(&self) -> Result<Option<GuardedHead>> {
        self.inner.deployment_head().await
    }

    async fn advance_deployment(&self, known: Option<GuardedHead>, to: GuardedHead) -> Result<()> {
        let advance = self.inner.advance_deployment(known, to);
        Self::advance_or_fail(&self.deployment_away, &self.once_deployment, advance).await
    }
}

fn signer(seed: u8) -> Signer {
    Signer::new(origin(FIRST), key(seed))
}

/// A process on a store, whose workers don't run yet.
fn guarded(store: &Arc<Faulty>, guard: &Arc<Unsteady>, signer: Signer) -> AuditLog {
    AuditLog::builder(store.inner.clone())
        .log_store(store.clone())
        .signer(signer, store.clone())
        .guard(guard.clone(), store.clone())
        .build()
}

/// A process that does work, until its head is signed.
async fn until_signed(log: &AuditLog, store: &Faulty, seed: u8, epoch: u64) {
    let workers = log.start();
    signed(store, &vkey_in(seed, FIRST, epoch)).await;
    stop(workers).await;
}

async fn stop(workers: Workers) {
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

fn reader(log: &AuditLog) -> TenantLog {
    log.tenant(scope())
}

async fn ids(store: &Faulty, seqs: &[u64]) -> Vec<EventId> {
    let entries = store.at(&scope(), seqs).await.unwrap();
    entries.iter().map(|entry| entry.id).collect()
}

async fn erase(log: &AuditLog, store: &Faulty, seqs: &[u64], groups: Option<Vec<Group>>) {
    let (ids, basis) = (ids(store, seqs).await, Basis::parse("gdpr-17").unwrap());
    reader(log).erase(ids, groups, basis, None).await.unwrap();
}

/// The positions, of these, whose entries have lost their actor.
async fn without_actor(store: &Faulty, seqs: &[u64]) -> Vec<u64> {
    let entries = store.at(&scope(), seqs).await.unwrap();
    let without = entries
        .iter()
        .filter(|entry| entry.fields.user_id.is_none());
    without.map(|entry| entry.seq).collect()
}

async fn latest(store: &Faulty) -> Option<SignedCheckpoint> {
    store.latest(&scope()).await.unwrap()
}

async fn size(store: &Faulty) -> u64 {
    store.head(&scope()).await.unwrap().size()
}

fn judged(text: &str, seed: u8, known: &SignedCheckpoint) -> Report {
    let options = Options {
        keys: vec![vkey_in(seed, FIRST, 1)],
        known: vec![Note::parse(&known.note).unwrap()],
        ..Options::default()
    };
    verify_lines(text.lines(), options)
}

/// A log that grew to 60 entries after a backup of its first 40, of which some were erased since. The
/// backup, the guard, and the checkpoints of then and now.
struct Restored {
    store: Arc<Faulty>,
    guard: Arc<Unsteady>,
    then: SignedCheckpoint,
    lost: SignedCheckpoint,
}

const ERASED: [u64; 4] = [3, 4, 5, 39];

async fn restored() -> Restored {
    let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
    let log = guarded(&store, &guard, signer(1));
    record(&log, 40).await;
    until_signed(&log, &store, 1, 1).await;
    let (backup, then) = (store.inner.backup(), latest(&store).await.unwrap());
    record(&log, 10).await;
    erase(&log, &store, &ERASED[..2], None).await;
    erase(&log, &store, &[5, 39, 44], Some(vec![Group::Actor])).await;
    record(&log, 8).await;
    until_signed(&log, &store, 1, 1).await;
    let lost = latest(&store).await.unwrap();
    assert_eq!((then.size, lost.size), (40, 60));
    let store = Arc::new(Faulty::around(backup));
    Restored {
        store,
        guard,
        then,
        lost,
    }
}

fn is_stopped<T>(outcome: Result<T>) {
    let error = outcome.err().expect("it is stopped");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    for named in ["a guard of a test", "audit-server tlog recover"] {
        assert!(error.message().contains(named), "{error}");
    }
}

#[tokio::test]
async fn an_old_copy_takes_nothing_and_signs_nothing_until_it_is_recovered() {
    let Restored {
        store,
        guard,
        then,
        lost,
    } = restored().await;
    let log = guarded(&store, &guard, signer(1));
    let workers = log.start();
    let basis = || Basis::parse("retention").unwrap();
    is_stopped(log.recorder(tenant()).record(Event::view("a", "b")).await);
    is_stopped(reader(&log).record(Event::view("a", "b")).await);
    is_stopped(
        reader(&log)
            .erase(ids(&store, &[1]).await, None, basis(), None)
            .await,
    );
    is_stopped(
        reader(&log)
            .prune(Timestamp::MAX, basis(), None, false)
            .await,
    );
    let named = TenantUpdate::default().name("other".to_owned());
    is_stopped(log.update_tenant(tenant(), named, "admin", None).await);
    let kept = Retention::default();
    is_stopped(log.set_retention(tenant(), &kept, "admin", None).await);
    is_stopped(log.place_hold(tenant(), None, "case", "admin", None).await);
    until("the signer says why not", async || {
        let status = workers.status();
        let signer = status.iter().find(|status| status.name == "signer")?;
        let error = signer.last_error.as_ref()?;
        error.contains("audit-server tlog recover").then_some(())
    })
    .await;
    assert_eq!(log.stopped_by_guard(), 1);
    // Reads go on, and other logs.
    let page = reader(&log)
        .list(&Filter::new(), &PageRequest::first())
        .await;
    assert_eq!(page.unwrap().items.len(), 40);
    let other = log.recorder(TenantId::new(Uuid::from_u128(10)));
    other.record(Event::view("a", "b")).await.unwrap();
    stop(workers).await;
    assert_eq!(
        (size(&store).await, latest(&store).await),
        (40, Some(then.clone()))
    );

    let log = guarded(&store, &guard, signer(1));
    let planned = log.recover(tenant(), true).await.unwrap().unwrap();
    assert_eq!((planned.size, planned.lost()), (40, 20));
    assert_eq!((planned.erased, planned.epoch), (4, 2));
    assert_eq!((planned.receipt.as_ref(), size(&store).await), (None, 40));
    let done = log.recover(tenant(), false).await.unwrap().unwrap();
    assert_eq!((done.erased, done.epoch, done.lost()), (4, 2, 20));
    assert_eq!(done.guarded.map(|head| head.size), Some(60));
    let begun = done.receipt.unwrap().seq;
    assert_eq!(log.recover(tenant(), false).await.unwrap(), None);
    assert_eq!(
        without_actor(&store, &[2, 3, 4, 5, 6, 38, 39]).await,
        ERASED
    );
    let kept = store.at(&scope(), &[3, 5]).await.unwrap();
    assert!(kept[0].fields.resource_id.is_none() && kept[1].fields.resource_id.is_some());

    record(&log, 30).await;
    until_signed(&log, &store, 1, 2).await;
    let head = guard.head(tenant()).await.unwrap().unwrap();
    assert_eq!((head.epoch, head.size), (2, size(&store).await));
    assert_eq!(log.stopped_by_guard(), 0);
    let workers = log.start();
    let text = exported(&reader(&log)).await;
    stop(workers).await;
    let report = judged(&text, 1, &then);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert!(report.key_trusted);
    assert_eq!(report.known, [40]);
    let epochs: Vec<_> = report
        .epochs
        .iter()
        .map(|one| (one.epoch, one.seq))
        .collect();
    assert_eq!(epochs, [(2, begun)]);
    assert_eq!(report.epochs[0].basis.as_str(), "restore");
    // What was handed out of the lost entries tells that they are lost.
    let report = judged(&text, 1, &lost);
    let codes: Vec<_> = report.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::Rollback]);
    assert_eq!(report.findings[0].positions, Some((begun, 59)));
    assert!(report.findings[0].detail.contains("after a restore"));
}

#[tokio::test]
async fn a_guard_that_knows_nothing_of_a_signed_log_stops_it() {
    let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
    let log = guarded(&store, &guard, signer(1));
    record(&log, 20).await;
    until_signed(&log, &store, 1, 1).await;
    let then = latest(&store).await.unwrap();

    let guard = Arc::new(Unsteady::default());
    let log = guarded(&store, &guard, signer(1));
    is_stopped(reader(&log).record(Event::view("a", "b")).await);
    let done = log.recover(tenant(), false).await.unwrap().unwrap();
    assert_eq!((done.guarded, done.epoch, done.lost()), (None, 2, 0));
    record(&log, 5).await;
    until_signed(&log, &store, 1, 2).await;
    let workers = log.start();
    let text = exported(&reader(&log)).await;
    stop(workers).await;
    let report = judged(&text, 1, &then);
    assert!(report.is_verified(), "{:#?}", report.findings);
    // One that was never signed needs no guard that knows it.
    let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
    let log = guarded(&store, &guard, signer(1));
    record(&log, 5).await;
    assert_eq!(log.recover(tenant(), false).await.unwrap(), None);
}

#[tokio::test]
async fn a_log_is_compared_with_the_guard_once_for_all_its_appends() {
    let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
    let log = guarded(&store, &guard, signer(1));
    for _ in 0..50 {
        record(&log, 2).await;
    }
    assert_eq!(guard.asked.load(Ordering::SeqCst), 1);
}

/// Each write to the guard fails once as not stored and once as stored, and the process is killed or
/// goes on.
#[tokio::test]
async fn no_checkpoint_is_published_that_the_guard_does_not_know() {
    for stored in [false, true] {
        for killed in [false, true] {
            let case = format!("stored: {stored}, killed: {killed}");
            let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
            let log = guarded(&store, &guard, signer(1));
            record(&log, 7).await;
            *guard.once.lock().unwrap() = Some(stored);
            let workers = log.start();
            until(&case, async || {
                guard.once.lock().unwrap().is_none().then_some(())
            })
            .await;
            if killed {
                drop(workers);
                store.lease_ends().await;
                record(&guarded(&store, &guard, signer(1)), 2).await;
                until_signed(&guarded(&store, &guard, signer(1)), &store, 1, 1).await;
            } else {
                record(&log, 2).await;
                signed(&store, &vkey_in(1, FIRST, 1)).await;
                stop(workers).await;
            }
            let head = guard.head(tenant()).await.unwrap().unwrap();
            let reader = reader(&log);
            let (mut size, mut found) = (0, 0);
            while let Some(kept) = store.covering(&scope(), size).await.unwrap() {
                let proof = reader.consistency(kept.size, head.size).await.expect(&case);
                let (then, now) = ((kept.size, &kept.root), (head.size, &head.root));
                verify_consistency(then.0, then.1, now.0, now.1, &proof).expect(&case);
                (size, found) = (kept.size + 1, found + 1);
            }
            assert!(found > 0);
        }
    }
    // While it is away nothing is published at all, and everything is recorded.
    let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
    guard.away.store(true, Ordering::SeqCst);
    let log = guarded(&store, &guard, signer(1));
    let workers = log.start();
    record(&log, 7).await;
    until("the signer tried", async || {
        let status = workers.status();
        let signer = status.iter().find(|status| status.name == "signer")?;
        signer.last_error.as_ref().map(drop)
    })
    .await;
    record(&log, 7).await;
    assert_eq!(latest(&store).await, None);
    guard.away.store(false, Ordering::SeqCst);
    signed(&store, &vkey_in(1, FIRST, 1)).await;
    stop(workers).await;
}

/// It is killed behind any of its writes, whether that was stored or not.
#[tokio::test]
async fn a_recovery_that_was_cut_short_is_repeated() {
    for cut in [
        "erase, not stored",
        "erase",
        "declare, not stored",
        "declare",
    ] {
        let Restored {
            store, guard, then, ..
        } = restored().await;
        match cut {
            // Its even turns fail before anything is erased.
            "erase, not stored" => store.failing_erasures.store(2, Ordering::SeqCst),
            "erase" => store.failing_erasures.store(1, Ordering::SeqCst),
            "declare" => *store.once.lock().unwrap() = Some(("declare", true)),
            _ => *store.once.lock().unwrap() = Some(("declare", false)),
        }
        let log = guarded(&store, &guard, signer(1));
        let failed = log.recover(tenant(), false).await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Unavailable, "{cut}");
        store.failing_erasures.store(0, Ordering::SeqCst);
        store.lease_ends().await;

        let log = guarded(&store, &guard, signer(1));
        let again = log.recover(tenant(), false).await.unwrap();
        assert_eq!(again.is_none(), cut == "declare");
        assert_eq!(without_actor(&store, &ERASED).await, ERASED, "{cut}");
        record(&log, 30).await;
        until_signed(&log, &store, 1, 2).await;
        let entries = store.read(&scope(), 0, 1_000).await.unwrap();
        let controls = entries.iter().filter_map(|entry| entry.control());
        let (erasures, epochs): (Vec<_>, Vec<_>) =
            controls.partition(|control| matches!(control, Control::Erase { .. }));
        assert_eq!((erasures.len(), epochs.len()), (2, 1), "{cut}");
        let workers = log.start();
        let text = exported(&reader(&log)).await;
        stop(workers).await;
        let report = judged(&text, 1, &then);
        assert!(report.is_verified(), "{cut}: {:#?}", report.findings);
    }
}

/// Somebody recorded for a while without the guard: other entries stand where the erased ones were.
#[tokio::test]
async fn what_was_recorded_after_a_restore_is_not_erased_again() {
    let Restored { store, guard, .. } = restored().await;
    let unguarded = AuditLog::builder(store.inner.clone())
        .log_store(store.clone())
        .build();
    record(&unguarded, 50).await;
    let log = guarded(&store, &guard, signer(1));
    is_stopped(reader(&log).record(Event::view("a", "b")).await);
    let done = log.recover(tenant(), false).await.unwrap().unwrap();
    assert_eq!((done.size, done.erased, done.lost()), (90, 4, 0));
    assert_eq!(without_actor(&store, &ERASED).await, ERASED);
    assert!(without_actor(&store, &[44]).await.is_empty());
}

#[tokio::test]
async fn an_open_hold_refuses_a_recovery_until_it_is_released() {
    let Restored { store, guard, .. } = restored().await;
    let held = AuditLog::builder(store.inner.clone()).build();
    let hold = held
        .place_hold(tenant(), None, "case 1", "admin", None)
        .await
        .unwrap();
    let log = AuditLog::builder(store.inner.clone())
        .signer(signer(1), store.clone())
        .guard(guard.clone(), store.clone())
        .build();
    let refused = log.recover(tenant(), false).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Refused);
    is_stopped(reader(&log).record(Event::view("a", "b")).await);
    log.release_hold(tenant(), hold.id, "admin", None)
        .await
        .unwrap();
    let done = log.recover(tenant(), false).await.unwrap().unwrap();
    assert_eq!((done.erased, done.epoch), (4, 2));
}

/// The second restore takes the first one's epoch back: its name is not signed under again.
#[tokio::test]
async fn no_name_is_signed_under_again_after_a_second_restore() {
    let Restored {
        store, guard, then, ..
    } = restored().await;
    let backup = store.inner.backup();
    let log = guarded(&store, &guard, signer(1));
    log.recover(tenant(), false).await.unwrap().unwrap();
    record(&log, 5).await;
    until_signed(&log, &store, 1, 2).await;
    let second = latest(&store).await.unwrap();

    let store = Arc::new(Faulty::around(backup));
    let log = guarded(&store, &guard, signer(1));
    is_stopped(reader(&log).record(Event::view("a", "b")).await);
    let done = log.recover(tenant(), false).await.unwrap().unwrap();
    assert_eq!((done.epoch, done.erased), (3, 4));
    record(&log, 50).await;
    until_signed(&log, &store, 1, 3).await;
    let workers = log.start();
    let text = exported(&reader(&log)).await;
    stop(workers).await;
    let report = judged(&text, 1, &then);
    assert!(report.is_verified(), "{:#?}", report.findings);
    let report = judged(&text, 1, &second);
    let codes: Vec<_> = report.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::Known]);
}

/// Before the restore, with the entry written and not handed over, and after it; and behind a prune.
#[tokio::test]
async fn keys_change_across_an_epoch() {
    for begun_before in [false, true] {
        let Restored {
            store, guard, then, ..
        } = restored().await;
        let second = || signer(2).succeeding(origin(FIRST), key(1));
        if begun_before {
            // As the backup would have it: the entry, and no checkpoint over it.
            *store.once.lock().unwrap() = Some(("publish", false));
            let unguarded = AuditLog::builder(store.inner.clone())
                .log_store(store.clone())
                .signer(second(), store.clone())
                .build();
            let workers = unguarded.start();
            until("the entry is written", async || {
                store.once.lock().unwrap().is_none().then_some(())
            })
            .await;
            drop(workers);
            store.lease_ends().await;
            assert_eq!(size(&store).await, 41);
        }
        let log = guarded(&store, &guard, second());
        log.recover(tenant(), false).await.unwrap().unwrap();
        record(&log, 300).await;
        until_signed(&log, &store, 2, 2).await;
        assert_eq!(store.key_changes(&scope()).await.unwrap().len(), 1);
        record(&log, 300).await;
        let late = store.at(&scope(), &[500]).await.unwrap().remove(0);
        for pruned in [false, true] {
            if pruned {
                let basis = Basis::parse("retention").unwrap();
                let before = late.created_at;
                reader(&log)
                    .prune(before, basis, None, false)
                    .await
                    .unwrap();
                while store.sweep().await.unwrap() {}
            }
            until_signed(&log, &store, 2, 2).await;
            let workers = log.start();
            let text = exported(&reader(&log)).await;
            let some = EvidenceRequest::new().filter(Filter::new().resource_id("inv-7"));
            let part = until("the export", async || {
                reader(&log).evidence(some.clone()).await.ok()
            });
            let part: String = part.await.try_collect().await.unwrap();
            stop(workers).await;
            let report = judged(&text, 1, &then);
            assert!(
                report.is_verified(),
                "{begun_before}: {:#?}",
                report.findings
            );
            assert!(report.key_trusted);
            let options = Options {
                partial: true,
                keys: vec![vkey_in(1, FIRST, 1)],
                ..Options::default()
            };
            let report = verify_lines(part.lines(), options);
            assert!(
                report.is_verified(),
                "{begun_before}: {:#?}",
                report.findings
            );
            assert_eq!(report.epochs.len(), 1);
        }
    }
}
