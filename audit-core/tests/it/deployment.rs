//! The deployment log: its heads, its proofs, its witnesses, and what a failed write of it leaves.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::memory::MemoryStore;
use audit_core::tlog::checkpoint::{Checkpoint, Origin};
use audit_core::tlog::merkle;
use audit_core::tlog::note::{Cosigner, Note, SigningKey, VerifyingKey};
use audit_core::tlog::tile::{Content, Tile, parse_entries, parse_hashes};
use audit_core::tlog::witness::{AddCheckpoint, WitnessedLog, decide};
use audit_core::tlog::{HeadFault, HeadPolicy, Refusal, WitnessedHead, leaf, verify_head};
use audit_core::{
    AuditLog, CheckpointStore as _, DeploymentStatus, DeploymentStore as _, Error, ErrorKind,
    Event, Hash, LogStore as _, Permissions, Recorder as _, Result, Signer, TenantId, TenantLog,
    TenantScope, Witness, WitnessAnswer, Workers,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::faulty::Faulty;

const ORIGIN: &str = "audit.example/log";
/// A period that a test can wait for.
pub(crate) const SHORT: Duration = Duration::from_millis(20);

pub(crate) fn tenant(n: u128) -> TenantId {
    TenantId::new(Uuid::from_u128(n))
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed("audit", &[seed; 32]).unwrap()
}

pub(crate) fn signer() -> Signer {
    Signer::new(Origin::parse(ORIGIN).unwrap(), key(1))
}

fn log_key() -> VerifyingKey {
    log_key_in(1)
}

/// The log's key in an epoch.
pub(crate) fn log_key_in(epoch: u64) -> VerifyingKey {
    signer().deployment_key(epoch).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    Away,
    Silent,
}

/// A witness that follows the public protocol, and remembers. Each of its cosignatures is a second later.
#[derive(Debug)]
pub(crate) struct Notary {
    cosigner: Cosigner,
    pub(crate) key: VerifyingKey,
    log: Mutex<WitnessedLog>,
    mood: Mutex<Mood>,
    time: AtomicU64,
}

impl Notary {
    pub(crate) fn new(n: u8) -> Arc<Self> {
        let key = SigningKey::from_seed(&format!("witness.example/w{n}"), &[100 + n; 32]);
        let cosigner = Cosigner::from(key.unwrap());
        Arc::new(Self {
            key: cosigner.verifying_key().clone(),
            cosigner,
            log: Mutex::new(WitnessedLog::new(log_key().name(), vec![log_key()])),
            mood: Mutex::new(Mood::Well),
            time: AtomicU64::new(1_700_000_000),
        })
    }

    /// Its operator gives it another name and key of the log.
    pub(crate) fn follows(&self, log: VerifyingKey) {
        *self.log.lock().unwrap() = WitnessedLog::new(log.name(), vec![log.clone()]);
    }

    /// How much of it the witness has cosigned.
    pub(crate) fn size(&self) -> u64 {
        self.log.lock().unwrap().size
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

#[async_trait]
impl Witness for Notary {
    fn key(&self) -> &VerifyingKey {
        &self.key
    }

    async fn add_checkpoint(&self, request: &AddCheckpoint) -> Result<WitnessAnswer> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Well => {}
            Mood::Away => return Err(Error::new(ErrorKind::Unavailable, "it is away")),
            Mood::Silent => std::future::pending().await,
        }
        let mut log = self.log.lock().unwrap();
        let decided = decide(request, Some(&log)).map(|head| (head.size(), head.root()));
        match decided {
            Ok((size, root)) => {
                (log.size, log.root) = (size, root);
                let time = self.time.fetch_add(1, Ordering::SeqCst);
                let line = self.cosigner.cosign(request.note().text(), time).unwrap();
                Ok(WitnessAnswer::Cosigned(line.encode()))
            }
            Err(Refusal::Conflict(size)) => Ok(WitnessAnswer::Conflict(size)),
            Err(refusal) => Ok(WitnessAnswer::Refused {
                status: refusal.status(),
                detail: refusal.to_string(),
            }),
        }
    }
}

/// One process after another on one store.
pub(crate) fn process(
    store: &Arc<Faulty>,
    signer: Signer,
    every: Duration,
    witnesses: &[Arc<Notary>],
) -> (AuditLog, Workers) {
    let mut log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .signer(signer, store.clone())
        .deployment(store.clone())
        .deployment_every(every);
    for witness in witnesses {
        log = log.witness(witness.clone());
    }
    let log = log.build();
    let workers = log.start();
    (log, workers)
}

pub(crate) async fn record(log: &AuditLog, tenant: TenantId, n: usize) {
    let event = |n: usize| Event::update("invoice", format!("inv-{n}")).user("ann");
    let recorder = log.recorder(tenant);
    recorder
        .record_all((0..n).map(event).collect())
        .await
        .unwrap();
}

pub(crate) fn reader(log: &AuditLog, tenant: TenantId) -> TenantLog {
    log.tenant(TenantScope::trusted(tenant, "test"))
}

pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited for too long: {what}");
        tokio::task::yield_now().await;
    }
}

pub(crate) fn status(workers: &Workers) -> Option<DeploymentStatus> {
    let statuses = workers.status().into_iter();
    let mut own = statuses.filter(|status| status.name == "deployment");
    own.next()?.deployment
}

/// The newest checkpoint of the deployment log, and who cosigned it when.
async fn newest(store: &Faulty, witnesses: &[Arc<Notary>]) -> Option<(Checkpoint, Vec<u64>)> {
    let latest = store.latest_deployment().await.unwrap()?;
    let note = Note::parse(&latest.note).unwrap();
    let mut keys = vec![log_key()];
    keys.extend(witnesses.iter().map(|witness| witness.key.clone()));
    let opened = Checkpoint::open(&note, &keys).unwrap();
    let times = opened.cosigners().map(|(_, time)| time).collect();
    Some((opened.checkpoint, times))
}

/// The tenant's proof that its head of this size is there, once so many witnesses have cosigned it.
async fn proved(log: &AuditLog, tenant: TenantId, size: u64, by: &[Arc<Notary>]) -> WitnessedHead {
    proved_in(log, tenant, size, 1, by).await
}

/// The same, under the deployment log's name in an epoch.
pub(crate) async fn proved_in(
    log: &AuditLog,
    tenant: TenantId,
    size: u64,
    epoch: u64,
    by: &[Arc<Notary>],
) -> WitnessedHead {
    let keys: Vec<_> = by.iter().map(|witness| witness.key.clone()).collect();
    let reader = reader(log, tenant);
    until("the head is proved", async || {
        let proof = match reader.head_proof().await {
            Ok(proof) => proof,
            Err(error) if error.is_retryable() => return None,
            Err(error) => panic!("{error}"),
        };
        let policy = HeadPolicy {
            log: &[log_key_in(epoch)],
            witnesses: &keys,
            least: by.len(),
        };
        match verify_head(&proof, &policy) {
            Ok(head) => (head.opening.size == size).then_some(head),
            Err(HeadFault::Witnesses { .. }) => None,
            Err(fault) => panic!("{fault}"),
        }
    })
    .await
}

#[tokio::test]
async fn each_tenant_proves_that_its_head_is_in_a_cosigned_deployment_head() {
    let (store, notaries) = (Arc::new(Faulty::new()), [Notary::new(1), Notary::new(2)]);
    let (log, workers) = process(&store, signer(), SHORT, &notaries);
    for n in 1..=3 {
        record(&log, tenant(n), n as usize).await;
    }
    for n in 1..=3 {
        let head = proved(&log, tenant(n), n as u64, &notaries).await;
        let own = reader(&log, tenant(n)).checkpoint().await.unwrap().unwrap();
        assert_eq!(head.opening.tenant, tenant(n).into_uuid());
        assert_eq!((head.opening.size, head.opening.root), (own.size, own.root));
        assert_eq!(head.checkpoint.origin(), format!("{ORIGIN}/deployment"));
        assert_eq!(head.cosigned.len(), 2);
    }
    // It grows, and so does the log.
    let before = proved(&log, tenant(2), 2, &notaries).await;
    record(&log, tenant(2), 5).await;
    let after = proved(&log, tenant(2), 7, &notaries).await;
    assert!(after.checkpoint.size() > before.checkpoint.size());
    assert_ne!(after.opening.salt, before.opening.salt);

    let proof = reader(&log, tenant(2)).head_proof().await.unwrap();
    let keys: Vec<_> = notaries.iter().map(|witness| witness.key.clone()).collect();
    let policy = HeadPolicy {
        log: &[log_key()],
        witnesses: &keys,
        least: 2,
    };
    let of_one = HeadPolicy {
        witnesses: &keys[..1],
        ..policy
    };
    let too_few = HeadFault::Witnesses { found: 1, least: 2 };
    assert_eq!(verify_head(&proof, &of_one), Err(too_few));
    let other = key(9).renamed(log_key().name()).unwrap();
    let strangers = HeadPolicy {
        log: &[other.verifying_key().clone()],
        ..policy
    };
    assert!(verify_head(&proof, &strangers).is_err());
    let mut forged = after.opening;
    forged.size += 1;
    let forged = proof.with_extra(forged.to_json().into_bytes()).unwrap();
    assert!(verify_head(&forged, &policy).is_err());

    let nothing = TenantScope::trusted(tenant(2), "test").only(Permissions::NONE);
    let nothing = log.tenant(nothing);
    let forbidden = ErrorKind::Forbidden;
    assert_eq!(nothing.head_proof().await.unwrap_err().kind(), forbidden);
    let refused = nothing.deployment_checkpoint().await.unwrap_err();
    assert_eq!(refused.kind(), forbidden);
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn the_deployment_head_is_cosigned_anew_every_period_also_when_idle() {
    let (store, notaries) = (Arc::new(Faulty::new()), [Notary::new(1)]);
    let (log, workers) = process(&store, signer(), SHORT, &notaries);
    record(&log, tenant(1), 3).await;
    let head = proved(&log, tenant(1), 3, &notaries).await;
    let (first, time) = (head.checkpoint, head.cosigned[0].1);
    let signed_at = store.latest_deployment().await.unwrap().unwrap().signed_at;
    until("two periods later", async || {
        let (next, times) = newest(&store, &notaries).await?;
        assert_eq!(next, first);
        (times[0] >= time + 2).then_some(())
    })
    .await;
    let latest = store.latest_deployment().await.unwrap().unwrap();
    assert!(latest.signed_at > signed_at);
    let status = status(&workers).unwrap();
    assert_eq!(status.size, 1);
    assert!(status.witnesses[0].cosigned_at > Some(time));
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn an_empty_deployment_log_is_not_signed() {
    let store = Arc::new(Faulty::new());
    let (log, workers) = process(&store, signer(), SHORT, &[]);
    let none = reader(&log, tenant(1));
    record(&log, tenant(2), 1).await;
    proved(&log, tenant(2), 1, &[]).await;
    let not_known = none.head_proof().await.unwrap_err();
    assert_eq!(not_known.kind(), ErrorKind::UnknownTenant);
    assert!(store.deployed.lock().unwrap().iter().all(|c| c.size > 0));
    assert!(workers.shutdown(Duration::from_secs(5)).await);

    let unsigned = AuditLog::builder(Arc::new(MemoryStore::new())).build();
    let missing = reader(&unsigned, tenant(1)).head_proof().await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

/// Neither one that was committed to nor one that is unsigned; and where a leaf stands doesn't say whose it
/// is.
#[tokio::test]
async fn a_thousand_idle_tenants_add_no_leaf() {
    const TENANTS: u128 = 1_000;
    let (store, notaries) = (Arc::new(Faulty::new()), [Notary::new(1)]);
    // Signed at once, which takes the worker some seconds.
    let fence = store.lease("test", Duration::from_secs(15)).await;
    let fence = fence.unwrap().unwrap();
    let quiet = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .build();
    for n in 1..=TENANTS {
        record(&quiet, tenant(n), 1).await;
        let scope = TenantScope::trusted(tenant(n), "test");
        let head = store.head(&scope).await.unwrap();
        let signed = signer().sign(&head, 1, quiet.clock().now()).unwrap();
        store.publish(fence, tenant(n), &signed).await.unwrap();
    }
    store.lease_ends().await;

    let (log, workers) = process(&store, signer(), SHORT, &notaries);
    let all = u64::try_from(TENANTS).unwrap();
    until("all are committed to", async || {
        let (newest, times) = newest(&store, &notaries).await?;
        (newest.size() == all && times.len() == 1).then_some(())
    })
    .await;
    for n in 1..=TENANTS {
        proved(&log, tenant(n), 1, &notaries).await;
    }
    let commitments = store.commitments(0..all).await.unwrap();
    assert!(commitments.is_sorted());

    let (_, times) = newest(&store, &notaries).await.unwrap();
    until("five periods later", async || {
        let (_, later) = newest(&store, &notaries).await?;
        (later[0] >= times[0] + 5).then_some(())
    })
    .await;
    assert_eq!(store.deployment_size().await.unwrap(), all);
    // One of them wakes up.
    record(&log, tenant(500), 1).await;
    proved(&log, tenant(500), 2, &notaries).await;
    assert_eq!(store.deployment_size().await.unwrap(), all + 1);
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_monitor_reads_the_deployment_log_by_its_tiles() {
    let store = Arc::new(Faulty::new());
    let (log, workers) = process(&store, signer(), SHORT, &[]);
    for n in 1..=5 {
        record(&log, tenant(n), 1).await;
    }
    for n in 1..=5 {
        proved(&log, tenant(n), 1, &[]).await;
    }
    let monitor = reader(&log, tenant(3));
    assert_eq!(monitor.deployment_key().await.unwrap(), log_key());
    let checkpoint = monitor.deployment_checkpoint().await.unwrap().unwrap();
    let tile = |content| Tile::at(content, 0, checkpoint.size).unwrap();
    let hashes = monitor.deployment_tile(&tile(Content::Hashes(0))).await;
    let hashes = parse_hashes(&hashes.unwrap(), 5).unwrap();
    assert_eq!(merkle::root(&hashes), checkpoint.root);
    let entries = monitor
        .deployment_tile(&tile(Content::Entries))
        .await
        .unwrap();
    let leaves = parse_entries(&entries, 5).unwrap();
    let own: Vec<Hash> = leaves.iter().map(|data| leaf::leaf_hash(data)).collect();
    assert_eq!(own, hashes);
    for missing in [
        "tile/0/000.p/6",
        "tile/0/000",
        "tile/0/001",
        "tile/1/000.p/1",
        "tile/2/000.p/1",
    ] {
        let missing = monitor
            .deployment_tile(&Tile::parse(missing).unwrap())
            .await;
        assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

/// As [`until`], while the paused clock goes on.
async fn later<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    const STEP: Duration = Duration::from_millis(100);
    let mut waited = Duration::ZERO;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(waited < within, "waited for too long: {what}");
        tokio::time::advance(STEP).await;
        waited += STEP;
    }
}

#[tokio::test(start_paused = true)]
async fn a_witness_that_is_away_fails_only_itself_and_is_asked_again() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (store, notaries) = (Arc::new(Faulty::new()), [Notary::new(1), Notary::new(2)]);
    notaries[1].is(Mood::Away);
    let (log, workers) = process(&store, signer(), HOUR, &notaries);
    record(&log, tenant(1), 1).await;
    let cosigned_by = async |n: usize| {
        let (_, times) = newest(&store, &notaries).await?;
        (times.len() == n).then_some(())
    };
    // The first head doesn't wait for the whole hour.
    let within = Duration::from_secs(90);
    later("one cosigns", within, async || cosigned_by(1).await).await;
    let told = status(&workers).unwrap().witnesses;
    assert_eq!(told[0].last_error, None);
    assert_eq!(told[1].last_error.as_deref(), Some("it is away"));
    assert_eq!((told[1].refuses, told[1].cosigned_at), (false, None));
    tokio::time::advance(Duration::from_secs(600)).await;
    cosigned_by(1).await.unwrap();
    // Long before the next head is due.
    notaries[1].is(Mood::Well);
    later("both cosign", HOUR / 2, async || cosigned_by(2).await).await;
    let told = status(&workers).unwrap().witnesses;
    assert_eq!(told[1].last_error, None);
    assert!(told[1].cosigned_at.is_some());
    let heads = store.deployed.lock().unwrap().clone();
    assert!(
        heads
            .iter()
            .all(|head| head.signed_at == heads[0].signed_at)
    );
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test(start_paused = true)]
async fn a_witness_that_never_answers_holds_up_no_head() {
    let (store, notaries) = (Arc::new(Faulty::new()), [Notary::new(1), Notary::new(2)]);
    notaries[0].is(Mood::Silent);
    let (log, workers) = process(&store, signer(), Duration::from_secs(60), &notaries);
    record(&log, tenant(1), 1).await;
    later("the other cosigns", Duration::from_secs(30), async || {
        let (_, times) = newest(&store, &notaries).await?;
        (times.len() == 1).then_some(())
    })
    .await;
    let silent = status(&workers).unwrap().witnesses.remove(0);
    assert!(silent.last_error.unwrap().contains("within 10 seconds"));
    // Nor the end of the process.
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

/// As a database is from a backup: smaller than what the witness saw, and then grown to another tree.
#[tokio::test]
async fn a_log_that_was_put_back_is_refused_by_its_witness_and_that_is_told() {
    let notaries = [Notary::new(1)];
    let store = Arc::new(Faulty::new());
    let (log, workers) = process(&store, signer(), SHORT, &notaries);
    for n in 1..=4 {
        record(&log, tenant(n), 1).await;
    }
    for n in 1..=4 {
        proved(&log, tenant(n), 1, &notaries).await;
    }
    assert!(workers.shutdown(Duration::from_secs(5)).await);

    let store = Arc::new(Faulty::new());
    let (log, workers) = process(&store, signer(), SHORT, &notaries);
    let mut seen = Vec::new();
    for (n, told) in [
        (1, "the log was put back"),
        (2, ""),
        (3, ""),
        (4, ""),
        (5, "doesn't continue"),
    ] {
        record(&log, tenant(n), 1).await;
        // Its own head is there all the same.
        proved(&log, tenant(n), 1, &[]).await;
        let refusal = until(told, async || {
            let status = status(&workers)?.witnesses.remove(0);
            let error = status.last_error.filter(|error| error.contains(told))?;
            status.refuses.then_some(error)
        })
        .await;
        seen.push(refusal);
        let (_, times) = newest(&store, &notaries).await.unwrap();
        assert!(times.is_empty(), "{times:?}");
    }
    assert!(
        seen[0].contains("has cosigned 4 leaves and this log has 1"),
        "{seen:?}"
    );
    assert!(seen[4].contains("422"), "{seen:?}");
    assert_eq!(notaries[0].size(), 4);
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn while_the_key_changes_both_sign_the_deployment_head() {
    let (store, notaries) = (Arc::new(Faulty::new()), [Notary::new(1)]);
    let (log, workers) = process(&store, signer(), SHORT, &notaries);
    record(&log, tenant(1), 1).await;
    proved(&log, tenant(1), 1, &notaries).await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);

    let origin = || Origin::parse(ORIGIN).unwrap();
    let second = Signer::new(origin(), key(2)).succeeding(origin(), key(1));
    let new = second.deployment_key(1).unwrap();
    let (log, workers) = process(&store, second, SHORT, &notaries);
    record(&log, tenant(1), 1).await;
    // The witness knows the old key; the new one's holder needs no other. An entry says that it changed.
    let head = proved(&log, tenant(1), 3, &notaries).await;
    let proof = reader(&log, tenant(1)).head_proof().await.unwrap();
    let keys = [notaries[0].key.clone()];
    let policy = HeadPolicy {
        log: &[new],
        witnesses: &keys,
        least: 1,
    };
    let by_new = verify_head(&proof, &policy).unwrap();
    assert_eq!(by_new.checkpoint.origin(), head.checkpoint.origin());
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

/// Each write of the worker fails once as not stored and once as stored, and the process goes on, or is killed
/// behind it.
#[tokio::test]
async fn no_failed_write_leaves_two_deployment_heads_of_one_size_or_one_that_the_log_lacks() {
    for write in ["lease", "commit_heads", "publish_deployment"] {
        for stored in [false, true] {
            for is_killed in [false, true] {
                let case = format!("{write}, stored: {stored}, killed: {is_killed}");
                let (store, notaries) = (Arc::new(Faulty::new()), [Notary::new(1)]);
                let (log, workers) = process(&store, signer(), SHORT, &notaries);
                for n in 1..=3 {
                    record(&log, tenant(n), 1).await;
                    proved(&log, tenant(n), 1, &notaries).await;
                }
                assert!(workers.shutdown(Duration::from_secs(5)).await);

                *store.once.lock().unwrap() = Some((write, stored));
                let (log, workers) = process(&store, signer(), SHORT, &notaries);
                record(&log, tenant(1), 1).await;
                record(&log, tenant(4), 1).await;
                until(&case, async || {
                    store.once.lock().unwrap().is_none().then_some(())
                })
                .await;
                let (log, workers) = match is_killed {
                    false => (log, workers),
                    true => {
                        drop(workers);
                        store.lease_ends().await;
                        process(&store, signer(), SHORT, &notaries)
                    }
                };
                record(&log, tenant(2), 1).await;
                for (n, size) in [(1, 2), (2, 2), (3, 1), (4, 1)] {
                    proved(&log, tenant(n), size, &notaries).await;
                }
                assert!(workers.shutdown(Duration::from_secs(5)).await);
                // Every checkpoint that there ever was is one of the log's own heads.
                let size = store.deployment_size().await.unwrap();
                let leaves = store.deployment_hashes(0, 0..size).await.unwrap();
                for kept in store.deployed.lock().unwrap().iter() {
                    let root = merkle::root(&leaves[..kept.size as usize]);
                    assert_eq!(kept.root, root, "{case}");
                }
                // No head was committed to twice: three, then two, then one.
                assert_eq!(size, 6, "{case}");
                let commitments = store.commitments(0..size).await.unwrap();
                let distinct: HashSet<_> = commitments.iter().collect();
                assert_eq!(distinct.len(), 6, "{case}");
            }
        }
    }
}
