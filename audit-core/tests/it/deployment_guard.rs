//! The guard and the deployment log: that an old copy of it, or a guard that forgot it, keeps it from being
//! signed, and how it goes on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use audit_core::memory::MemoryStore;
use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::merkle;
use audit_core::tlog::note::Note;
use audit_core::{
    AuditLog, CheckpointStore as _, DeploymentStore as _, ErrorKind, Guard as _, GuardAdvance,
    GuardedHead, Hash, SignedCheckpoint, TenantId, TenantScope, Workers,
};

use crate::deployment::{
    self, Notary, SHORT, log_key_in, proved_in, reader, record, signer, status, tenant, until,
};
use crate::faulty::Faulty;
use crate::guard::Unsteady;

/// A process on a store, whose workers don't run yet.
fn built(store: &Arc<Faulty>, guard: &Arc<Unsteady>, witnesses: &[Arc<Notary>]) -> AuditLog {
    let mut log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .signer(signer(), store.clone())
        .deployment(store.clone())
        .deployment_every(SHORT)
        .guard(guard.clone(), store.clone());
    for witness in witnesses {
        log = log.witness(witness.clone());
    }
    log.build()
}

fn process(
    store: &Arc<Faulty>,
    guard: &Arc<Unsteady>,
    witnesses: &[Arc<Notary>],
) -> (AuditLog, Workers) {
    let log = built(store, guard, witnesses);
    let workers = log.start();
    (log, workers)
}

async fn stop(workers: Workers) {
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

async fn newest(store: &Faulty) -> Option<SignedCheckpoint> {
    store.latest_deployment().await.unwrap()
}

async fn signed(store: &Faulty, tenant: TenantId, size: u64) {
    let scope = TenantScope::trusted(tenant, "test");
    until("the tenant's head is signed", async || {
        let latest = store.latest(&scope).await.unwrap()?;
        (latest.size == size).then_some(())
    })
    .await;
}

/// Waits until the worker says that the guard stops it, and why.
async fn stopped(log: &AuditLog, workers: &Workers, why: &str) {
    until(why, async || {
        let status = workers.status();
        let own = status.iter().find(|status| status.name == "deployment")?;
        let error = own.last_error.as_ref()?;
        let named = ["a guard of a test", "audit-server tlog recover", why];
        named.iter().all(|part| error.contains(part)).then_some(())
    })
    .await;
    assert!(log.stopped_by_guard() > 0);
}

/// Under each name there is one history: what these stores published.
fn no_name_has_two_histories(stores: &[&Faulty]) {
    let mut roots: HashMap<(String, u64), Hash> = HashMap::new();
    for store in stores {
        for kept in store.deployed.lock().unwrap().iter() {
            let note = Note::parse(&kept.note).unwrap();
            let head = Checkpoint::parse(note.text()).unwrap();
            let place = (head.origin().to_owned(), head.size());
            let root = *roots.entry(place).or_insert(head.root());
            assert_eq!(root, head.root(), "{} {}", head.origin(), head.size());
        }
    }
}

/// A deployment log that grew from three leaves to six after a backup; the tenants of the first three are as
/// they were.
struct Restored {
    store: Arc<Faulty>,
    before: Arc<Faulty>,
    guard: Arc<Unsteady>,
    notaries: [Arc<Notary>; 1],
    then: SignedCheckpoint,
    lost: GuardedHead,
}

async fn restored() -> Restored {
    let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
    let notaries = [Notary::new(1)];
    let (log, workers) = process(&store, &guard, &notaries);
    for n in 1..=3 {
        record(&log, tenant(n), 1).await;
        proved_in(&log, tenant(n), 1, 1, &notaries).await;
    }
    stop(workers).await;
    let (backup, then) = (store.inner.backup(), newest(&store).await.unwrap());
    let (log, workers) = process(&store, &guard, &notaries);
    for n in 4..=6 {
        record(&log, tenant(n), 1).await;
        proved_in(&log, tenant(n), 1, 1, &notaries).await;
    }
    stop(workers).await;
    let lost = guard.deployment_head().await.unwrap().unwrap();
    assert_eq!((then.size, lost.epoch, lost.size), (3, 1, 6));
    assert!(then.is_guarded);
    Restored {
        store: Arc::new(Faulty::around(backup)),
        before: store,
        guard,
        notaries,
        then,
        lost,
    }
}

#[tokio::test]
async fn an_old_copy_of_the_deployment_log_is_not_signed_and_tenants_go_on_until_it_is_recovered() {
    let Restored {
        store,
        before,
        guard,
        notaries,
        then,
        lost,
    } = restored().await;
    let (log, workers) = process(&store, &guard, &notaries);
    let why = "knows a signed head of 6 leaves that the deployment log doesn't continue";
    stopped(&log, &workers, why).await;
    assert_eq!(log.stopped_by_guard(), 1);
    // Nothing of a tenant waits for it, and what it proved it proves.
    record(&log, tenant(1), 2).await;
    signed(&store, tenant(1), 3).await;
    proved_in(&log, tenant(1), 1, 1, &notaries).await;
    stop(workers).await;
    assert_eq!(newest(&store).await.as_ref(), Some(&then));
    assert_eq!(store.deployment_size().await.unwrap(), 3);

    let log = built(&store, &guard, &[]);
    let planned = log.recover_deployment(true).await.unwrap().unwrap();
    assert_eq!((planned.guarded, planned.size), (Some(lost), 3));
    assert_eq!((planned.lost(), planned.epoch), (3, 2));
    assert_eq!(planned.key, log_key_in(2));
    assert_eq!(newest(&store).await, Some(then));
    assert_eq!(guard.deployment_head().await.unwrap(), Some(lost));
    let done = log.recover_deployment(false).await.unwrap();
    assert_eq!(done, Some(planned));
    assert_eq!(log.recover_deployment(false).await.unwrap(), None);

    let (log, workers) = process(&store, &guard, &notaries);
    proved_in(&log, tenant(1), 3, 2, &[]).await;
    // A witness cosigns under the new name once its operator knows it.
    until("the witness refuses", async || {
        let witness = status(&workers)?.witnesses.remove(0);
        let error = witness.last_error?;
        (witness.refuses && error.contains("404")).then_some(())
    })
    .await;
    notaries[0].follows(log_key_in(2));
    let head = proved_in(&log, tenant(1), 3, 2, &notaries).await;
    assert_eq!(head.checkpoint.origin(), "audit.example/log/e2/deployment");
    let key = reader(&log, tenant(1)).deployment_key().await.unwrap();
    assert_eq!(key, log_key_in(2));
    assert_eq!(log.stopped_by_guard(), 0);
    stop(workers).await;
    let known = guard.deployment_head().await.unwrap().unwrap();
    assert_eq!((known.epoch, known.size), (2, 4));
    no_name_has_two_histories(&[&before, &store]);
}

/// The second restore takes the first one's epoch back.
#[tokio::test]
async fn no_name_of_the_deployment_log_is_signed_under_again_after_a_second_restore() {
    let Restored {
        store,
        before,
        guard,
        ..
    } = restored().await;
    let mut stores = vec![before, store.clone()];
    let backup = store.inner.backup();
    let mut store = store;
    for epoch in [2, 3] {
        let log = built(&store, &guard, &[]);
        let done = log.recover_deployment(false).await.unwrap().unwrap();
        assert_eq!((done.size, done.epoch), (3, epoch));
        let (log, workers) = process(&store, &guard, &[]);
        let n = 10 + u128::from(epoch);
        record(&log, tenant(n), 1).await;
        proved_in(&log, tenant(n), 1, epoch, &[]).await;
        stop(workers).await;
        store = Arc::new(Faulty::around(backup.backup()));
        stores.push(store.clone());
    }
    let stores: Vec<&Faulty> = stores.iter().map(|store| &**store).collect();
    no_name_has_two_histories(&stores);
}

/// All that it knew, or the deployment log's head alone.
#[tokio::test]
async fn a_guard_that_forgot_the_deployment_log_stops_it() {
    for knows_tenants in [false, true] {
        let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
        let (log, workers) = process(&store, &guard, &[]);
        for n in 1..=2 {
            record(&log, tenant(n), 1).await;
            proved_in(&log, tenant(n), 1, 1, &[]).await;
        }
        stop(workers).await;
        let forgetful = Arc::new(Unsteady::default());
        for n in 1..=2 {
            let known = guard.head(tenant(n)).await.unwrap().unwrap();
            let advance = GuardAdvance::plain(None, known);
            if knows_tenants {
                forgetful.advance(tenant(n), &advance).await.unwrap();
            }
        }
        let (log, workers) = process(&store, &forgetful, &[]);
        stopped(&log, &workers, "knows nothing of the deployment log").await;
        stop(workers).await;
        let done = log.recover_deployment(false).await.unwrap().unwrap();
        assert_eq!((done.guarded, done.epoch, done.lost()), (None, 2, 0));
        let (log, workers) = process(&store, &forgetful, &[]);
        proved_in(&log, tenant(1), 1, 2, &[]).await;
        if knows_tenants {
            record(&log, tenant(1), 1).await;
            proved_in(&log, tenant(1), 2, 2, &[]).await;
        }
        stop(workers).await;
        no_name_has_two_histories(&[&store]);
    }
}

/// It knows the tenants' heads, and no checkpoint of the deployment log says that a guard knew of it.
#[tokio::test]
async fn a_guard_from_before_it_knew_the_deployment_log_learns_of_it() {
    let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
    let tenants_only = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .signer(signer(), store.clone())
        .guard(guard.clone(), store.clone())
        .build();
    let workers = tenants_only.start();
    record(&tenants_only, tenant(1), 1).await;
    signed(&store, tenant(1), 1).await;
    stop(workers).await;
    let (log, workers) = deployment::process(&store, signer(), SHORT, &[]);
    proved_in(&log, tenant(1), 1, 1, &[]).await;
    stop(workers).await;
    assert!(!newest(&store).await.unwrap().is_guarded);
    let backup = store.inner.backup();

    let (log, workers) = process(&store, &guard, &[]);
    record(&log, tenant(1), 1).await;
    proved_in(&log, tenant(1), 2, 1, &[]).await;
    assert_eq!(log.stopped_by_guard(), 0);
    stop(workers).await;
    let (known, kept) = (guard.deployment_head().await.unwrap(), newest(&store).await);
    let (known, kept) = (known.unwrap(), kept.unwrap());
    assert_eq!((known.epoch, known.size, known.root), (1, 2, kept.root));
    assert!(kept.is_guarded);
    assert_eq!(log.recover_deployment(false).await.unwrap(), None);

    // One that knows no tenant either isn't from before: it has lost all, or is a new one.
    let (store, empty) = (Arc::new(Faulty::around(backup)), Arc::default());
    let (log, workers) = process(&store, &empty, &[]);
    stopped(&log, &workers, "knows nothing of the deployment log").await;
    stop(workers).await;
}

/// Each of the two writes fails once as not stored and once as stored, and the process goes on, or is killed
/// behind it.
#[tokio::test]
async fn no_deployment_head_is_published_that_the_guard_does_not_know() {
    for write in ["advance_deployment", "publish_deployment"] {
        for stored in [false, true] {
            for is_killed in [false, true] {
                let case = format!("{write}, stored: {stored}, killed: {is_killed}");
                let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
                let notaries = [Notary::new(1)];
                let (log, workers) = process(&store, &guard, &notaries);
                for n in 1..=3 {
                    record(&log, tenant(n), 1).await;
                    proved_in(&log, tenant(n), 1, 1, &notaries).await;
                }
                stop(workers).await;

                fail_once(&store, &guard, write, stored);
                let (log, workers) = process(&store, &guard, &notaries);
                record(&log, tenant(1), 1).await;
                record(&log, tenant(4), 1).await;
                until(&case, async || {
                    let guarded = guard.once_deployment.lock().unwrap().is_none();
                    (guarded && store.once.lock().unwrap().is_none()).then_some(())
                })
                .await;
                let (log, workers) = match is_killed {
                    false => (log, workers),
                    true => {
                        drop(workers);
                        store.lease_ends().await;
                        process(&store, &guard, &notaries)
                    }
                };
                record(&log, tenant(2), 1).await;
                for (n, size) in [(1, 2), (2, 2), (3, 1), (4, 1)] {
                    proved_in(&log, tenant(n), size, 1, &notaries).await;
                }
                assert_eq!(log.stopped_by_guard(), 0, "{case}");
                stop(workers).await;
                let size = store.deployment_size().await.unwrap();
                let leaves = store.deployment_hashes(0, 0..size).await.unwrap();
                let known = guard.deployment_head().await.unwrap().unwrap();
                assert_eq!((known.epoch, known.size), (1, size), "{case}");
                assert_eq!(known.root, merkle::root(&leaves), "{case}");
                for kept in store.deployed.lock().unwrap().iter() {
                    let root = merkle::root(&leaves[..kept.size as usize]);
                    assert_eq!((kept.root, kept.is_guarded), (root, true), "{case}");
                }
                let recovered = log.recover_deployment(false).await.unwrap();
                assert_eq!(recovered, None, "{case}");
            }
        }
    }
    // While it is away neither readers nor witnesses are shown anything, and everything is recorded.
    let (store, guard) = (Arc::new(Faulty::new()), Arc::new(Unsteady::default()));
    let notaries = [Notary::new(1)];
    guard.deployment_away.store(true, Ordering::SeqCst);
    let (log, workers) = process(&store, &guard, &notaries);
    record(&log, tenant(1), 1).await;
    until("the worker tried", async || {
        let status = workers.status();
        let own = status.iter().find(|status| status.name == "deployment")?;
        own.last_error.as_ref().map(drop)
    })
    .await;
    record(&log, tenant(1), 1).await;
    signed(&store, tenant(1), 2).await;
    assert_eq!(newest(&store).await, None);
    assert_eq!(notaries[0].size(), 0);
    guard.deployment_away.store(false, Ordering::SeqCst);
    proved_in(&log, tenant(1), 2, 1, &notaries).await;
    stop(workers).await;
}

/// Lets this write fail the next time.
fn fail_once(store: &Faulty, guard: &Unsteady, write: &'static str, stored: bool) {
    match write {
        "advance_deployment" => *guard.once_deployment.lock().unwrap() = Some(stored),
        write => *store.once.lock().unwrap() = Some((write, stored)),
    }
}

/// It is killed behind any of its writes, whether that was stored or not.
#[tokio::test]
async fn a_recovery_of_the_deployment_log_that_was_cut_short_is_repeated() {
    for (write, stored, epoch) in [
        ("lease", false, 2),
        ("lease", true, 2),
        ("advance_deployment", false, 2),
        // The guard knows the epoch, and the log doesn't: that number is left out.
        ("advance_deployment", true, 3),
        ("publish_deployment", false, 3),
        ("publish_deployment", true, 2),
    ] {
        let case = format!("{write}, stored: {stored}");
        let Restored {
            store,
            before,
            guard,
            ..
        } = restored().await;
        fail_once(&store, &guard, write, stored);
        let log = built(&store, &guard, &[]);
        let failed = log.recover_deployment(false).await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Unavailable, "{case}");
        store.lease_ends().await;

        let log = built(&store, &guard, &[]);
        let again = log.recover_deployment(false).await.unwrap();
        let is_done = (write, stored) == ("publish_deployment", true);
        assert_eq!(again.is_none(), is_done, "{case}");
        let (log, workers) = process(&store, &guard, &[]);
        record(&log, tenant(1), 1).await;
        proved_in(&log, tenant(1), 2, epoch, &[]).await;
        assert_eq!(log.stopped_by_guard(), 0, "{case}");
        stop(workers).await;
        let known = guard.deployment_head().await.unwrap().unwrap();
        assert_eq!((known.epoch, known.size), (epoch, 4), "{case}");
        no_name_has_two_histories(&[&before, &store]);
    }
}

/// As from a backup of before the first leaf.
#[tokio::test]
async fn an_empty_deployment_log_that_was_restored_begins_an_epoch_too() {
    let Restored {
        guard, notaries, ..
    } = restored().await;
    let store = Arc::new(Faulty::new());
    let (log, workers) = process(&store, &guard, &notaries);
    stopped(&log, &workers, "6 leaves").await;
    record(&log, tenant(9), 1).await;
    signed(&store, tenant(9), 1).await;
    stop(workers).await;
    assert_eq!(store.deployment_size().await.unwrap(), 0);

    let done = log.recover_deployment(false).await.unwrap().unwrap();
    assert_eq!((done.size, done.lost(), done.epoch), (0, 6, 2));
    assert_eq!(log.recover_deployment(false).await.unwrap(), None);
    let not_yet = reader(&log, tenant(9)).head_proof().await.unwrap_err();
    assert!(not_yet.is_retryable());
    notaries[0].follows(log_key_in(2));
    let (log, workers) = process(&store, &guard, &notaries);
    proved_in(&log, tenant(9), 1, 2, &notaries).await;
    stop(workers).await;
}

#[tokio::test]
async fn without_a_guard_or_a_deployment_log_there_is_nothing_to_recover() {
    let store = Arc::new(Faulty::new());
    let (log, workers) = deployment::process(&store, signer(), SHORT, &[]);
    stop(workers).await;
    let refused = log.recover_deployment(true).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    let unsigned = AuditLog::builder(Arc::new(MemoryStore::new())).build();
    let refused = unsigned.recover_deployment(true).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
}
