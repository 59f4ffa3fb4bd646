//! The signer: how its key changes. What it leaves when a write of it fails is a contract of every store, in
//! `audit-conformance`.

use std::sync::Arc;
use std::time::Duration;

use audit_core::memory::MemoryStore;
use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::note::{Note, SigningKey, VerifyingKey};
use audit_core::tlog::verify::{Options, Report, verify_lines};
use audit_core::{
    AuditLog, Basis, CheckpointStore, Control, Event, EvidenceRequest, Filter, LogStore as _,
    Recorder, Signer, TenantId, TenantLog, TenantScope, Workers,
};
use futures_util::TryStreamExt as _;
use uuid::Uuid;

use crate::faulty::Faulty;

pub(crate) fn tenant() -> TenantId {
    TenantId::new(Uuid::from_u128(9))
}

pub(crate) fn scope() -> TenantScope {
    TenantScope::trusted(tenant(), "test")
}

pub(crate) fn origin(name: &str) -> Origin {
    Origin::parse(name).unwrap()
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed("audit", &[seed; 32]).unwrap()
}

/// The key of the tenant's log in its first epoch.
fn vkey(seed: u8, name: &str) -> VerifyingKey {
    vkey_in(seed, name, 1)
}

/// The key of the tenant's log in an epoch.
pub(crate) fn vkey_in(seed: u8, name: &str, epoch: u64) -> VerifyingKey {
    let name = origin(name).for_tenant(tenant().into_uuid(), epoch);
    key(seed).renamed(&name).unwrap().verifying_key().clone()
}

/// One process after another on one store.
pub(crate) fn process(store: &Arc<Faulty>, signer: Signer) -> (AuditLog, TenantLog, Workers) {
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .log_store(store.clone())
        .signer(signer, store.clone())
        .build();
    let (reader, workers) = (log.tenant(scope()), log.start());
    (log, reader, workers)
}

pub(crate) async fn record(log: &AuditLog, n: usize) {
    let event = |n: usize| Event::update("invoice", format!("inv-{n}")).user("ann");
    let recorder = log.recorder(tenant());
    recorder
        .record_all((0..n).map(event).collect())
        .await
        .unwrap();
}

pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(20), looking).await;
    found.unwrap_or_else(|_| panic!("waited for too long: {what}"))
}

/// Waits for the newest head's checkpoint, by this key.
pub(crate) async fn signed(store: &Faulty, key: &VerifyingKey) {
    until("the head is signed", async || {
        let latest = store.latest(&scope()).await.unwrap()?;
        let head = store.head(&scope()).await.unwrap();
        let is_signed = latest.size == head.size();
        let note = Note::parse(&latest.note).unwrap();
        (is_signed && note.verify(std::slice::from_ref(key)).is_ok()).then_some(())
    })
    .await;
}

pub(crate) async fn exported(reader: &TenantLog) -> String {
    let stream = until("the export", async || {
        match reader.evidence(EvidenceRequest::new()).await {
            Ok(stream) => Some(stream),
            Err(error) if error.is_retryable() => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    stream.try_collect().await.unwrap()
}

fn verified(text: &str, key: VerifyingKey) -> Report {
    let options = Options {
        keys: vec![key],
        ..Options::default()
    };
    let report = verify_lines(text.lines(), options);
    assert!(report.is_verified(), "{:#?}", report.findings);
    report
}

/// The old keys and the new ones of the log's `key` entries.
async fn changes(store: &Faulty) -> Vec<(String, String)> {
    let entries = store.read(&scope(), 0, 1_000).await.unwrap();
    let keys = entries.iter().filter_map(|entry| match entry.control() {
        Some(Control::Key { old, new }) => Some((old, new)),
        _ => None,
    });
    keys.collect()
}

pub(crate) const FIRST: &str = "audit.example/log";
const SECOND: &str = "audit.example/moved";

#[tokio::test]
async fn a_change_of_keys_is_an_entry_and_a_checkpoint_that_both_keys_sign() {
    let store = Arc::new(Faulty::new());
    let (log, _, workers) = process(&store, Signer::new(origin(FIRST), key(1)));
    record(&log, 20).await;
    signed(&store, &vkey(1, FIRST)).await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);

    // Without growth, too; then under another name; then both at once.
    let successors = [
        (2, FIRST, vec![(1, FIRST)]),
        (2, SECOND, vec![(1, FIRST), (2, FIRST)]),
        (3, FIRST, vec![(2, SECOND)]),
    ];
    for (n, (seed, name, earlier)) in successors.into_iter().enumerate() {
        let mut signer = Signer::new(origin(name), key(seed));
        for (seed, name) in &earlier {
            signer = signer.succeeding(origin(name), key(*seed));
        }
        let (log, reader, workers) = process(&store, signer);
        signed(&store, &vkey(seed, name)).await;
        let (last, before) = (changes(&store).await, earlier.last().unwrap());
        assert_eq!(last.len(), n + 1);
        let expected = (vkey(before.0, before.1).encode(), vkey(seed, name).encode());
        assert_eq!(last[n], expected);
        let size = store.head(&scope()).await.unwrap().size();
        let over = store.covering(&scope(), size).await.unwrap().unwrap();
        assert!(over.is_handover);
        // Checkpoints of the same hour don't take its place.
        record(&log, 5).await;
        signed(&store, &vkey(seed, name)).await;
        let kept = store.covering(&scope(), size).await.unwrap().unwrap();
        assert_eq!((kept.size, kept.is_handover), (size, true));
        // Whoever knows any of the log's keys is led to it.
        let text = exported(&reader).await;
        for (seed, name) in [(1, FIRST), *before, (seed, name)] {
            assert!(
                verified(&text, vkey(seed, name)).key_trusted,
                "{seed} {name}"
            );
        }
        assert!(
            !verify_lines(
                text.lines(),
                Options {
                    keys: vec![vkey(9, name)],
                    ..Options::default()
                }
            )
            .key_trusted
        );
        assert!(workers.shutdown(Duration::from_secs(5)).await);
    }
}

#[tokio::test]
async fn a_change_of_keys_that_was_begun_is_ended_by_who_has_both_keys() {
    let store = Arc::new(Faulty::new());
    let (log, _, workers) = process(&store, Signer::new(origin(FIRST), key(1)));
    record(&log, 3).await;
    signed(&store, &vkey(1, FIRST)).await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    // Killed between the entry and its checkpoint.
    *store.once.lock().unwrap() = Some(("publish", false));
    let second = || Signer::new(origin(FIRST), key(2)).succeeding(origin(FIRST), key(1));
    let (_, _, workers) = process(&store, second());
    until("the entry is written", async || {
        (store.head(&scope()).await.unwrap().size() == 4 && store.once.lock().unwrap().is_none())
            .then_some(())
    })
    .await;
    drop(workers);

    // Neither who knows only the old key signs over that entry, nor who has a third one.
    let refused = [
        Signer::new(origin(FIRST), key(1)),
        Signer::new(origin(FIRST), key(3)).succeeding(origin(FIRST), key(1)),
    ];
    for signer in refused {
        store.lease_ends().await;
        let (log, _, workers) = process(&store, signer);
        until("it says why not", async || {
            let status = workers.status();
            let signer = status.iter().find(|status| status.name == "signer")?;
            let error = signer.last_error.as_ref()?;
            error.contains("is not known here").then_some(())
        })
        .await;
        record(&log, 1).await;
        assert!(workers.shutdown(Duration::from_secs(5)).await);
        let latest = store.latest(&scope()).await.unwrap().unwrap();
        assert_eq!(latest.size, 3);
    }
    // With the second among the earlier ones, that change is ended and the next one made.
    let third = Signer::new(origin(FIRST), key(3))
        .succeeding(origin(FIRST), key(2))
        .succeeding(origin(FIRST), key(1));
    let (_, reader, workers) = process(&store, third);
    signed(&store, &vkey(3, FIRST)).await;
    assert_eq!(changes(&store).await.len(), 2);
    let text = exported(&reader).await;
    for seed in [1, 2, 3] {
        assert!(verified(&text, vkey(seed, FIRST)).key_trusted, "{seed}");
    }
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

/// The checkpoint lies right behind the entry, whatever was recorded since, so that a filter's gaps
/// don't hide its root; and the entry outlives a prune.
#[tokio::test]
async fn a_change_of_keys_verifies_in_filtered_exports_and_behind_a_prune() {
    let store = Arc::new(Faulty::new());
    let (log, _, workers) = process(&store, Signer::new(origin(FIRST), key(1)));
    record(&log, 300).await;
    signed(&store, &vkey(1, FIRST)).await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    let known = store.latest(&scope()).await.unwrap().unwrap();
    // The entry is written, and the log grows before its checkpoint is.
    *store.once.lock().unwrap() = Some(("publish", false));
    let second = || Signer::new(origin(FIRST), key(2)).succeeding(origin(FIRST), key(1));
    let (log, _, workers) = process(&store, second());
    until("the entry is written", async || {
        store.once.lock().unwrap().is_none().then_some(())
    })
    .await;
    drop(workers);
    store.lease_ends().await;
    record(&log, 400).await;
    let (_, reader, workers) = process(&store, second());
    signed(&store, &vkey(2, FIRST)).await;
    let handover = store.covering(&scope(), 301).await.unwrap().unwrap();
    assert_eq!((handover.size, handover.is_handover), (301, true));

    let options = |partial| Options {
        partial,
        keys: vec![vkey(1, FIRST)],
        known: vec![Note::parse(&known.note).unwrap()],
        ..Options::default()
    };
    let some = EvidenceRequest::new().filter(Filter::new().resource_id("inv-7"));
    let text = until("the export", async || {
        reader.evidence(some.clone()).await.ok()
    })
    .await;
    let text: String = text.try_collect().await.unwrap();
    let report = verify_lines(text.lines(), options(true));
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert!(report.key_trusted);

    let late = store.at(&scope(), &[650]).await.unwrap().remove(0);
    let basis = Basis::parse("retention").unwrap();
    reader
        .prune(late.created_at, basis, None, false)
        .await
        .unwrap();
    while store.sweep().await.unwrap() {}
    let text = exported(&reader).await;
    let report = verify_lines(text.lines(), options(false));
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert!(report.key_trusted);
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}
