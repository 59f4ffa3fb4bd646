//! What a log proves, to the verifier that an auditor runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use audit_core::memory::MemoryStore;
use audit_core::tlog::checkpoint::{Checkpoint, Origin};
use audit_core::tlog::evidence::{Record, Record::Entry, Record::Gap};
use audit_core::tlog::leaf::{leaf_hash, open_disclosure};
use audit_core::tlog::merkle::verify_consistency;
use audit_core::tlog::note::{Note, SigningKey};
use audit_core::tlog::tile::{Content, Tile, TileReader, parse_entries, parse_hashes};
use audit_core::tlog::verify::{Code, Options, Report, verify_lines};
use audit_core::{
    AuditLog, Basis, Error, ErrorKind, Event, EventId, EvidenceRequest, Filter, Group,
    LogStore as _, Query, Recorder, Signer, TenantId, TenantLog, TenantScope, TenantStatus,
    TenantUpdate, Timestamp,
};
use futures_util::TryStreamExt as _;
use uuid::Uuid;

use crate::faulty::Faulty;
use crate::signer;

const ORIGIN: &str = "audit.example/log";

fn tenant() -> TenantId {
    TenantId::new(Uuid::from_u128(9))
}

fn key() -> SigningKey {
    SigningKey::from_seed(ORIGIN, &[7; 32]).unwrap()
}

fn signed_log() -> AuditLog {
    let store = Arc::new(MemoryStore::new());
    let signer = Signer::new(Origin::parse(ORIGIN).unwrap(), key());
    AuditLog::builder(store.clone())
        .signer(signer, store)
        .build()
}

fn reader(log: &AuditLog) -> TenantLog {
    log.tenant(TenantScope::trusted(tenant(), "test"))
}

async fn record(log: &AuditLog, n: usize) -> Vec<EventId> {
    let event = |n: usize| {
        Event::update("invoice", format!("inv-{n}"))
            .user(if n.is_multiple_of(3) { "ann" } else { "ben" })
            .reason("as agreed")
            .after(&[n])
    };
    let receipts = log
        .recorder(tenant())
        .record_all((0..n).map(event).collect())
        .await
        .unwrap();
    receipts.iter().map(|receipt| receipt.id).collect()
}

/// Until the condition holds.
async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap()
}

async fn exported(log: &AuditLog, request: EvidenceRequest) -> String {
    let reader = reader(log);
    let stream = eventually(async || match reader.evidence(request.clone()).await {
        Ok(stream) => Some(stream),
        Err(error) if error.is_retryable() => None,
        Err(error) => panic!("{error}"),
    })
    .await;
    stream.try_collect().await.unwrap()
}

fn verify(text: &str, partial: bool) -> Report {
    let name = Origin::parse(ORIGIN)
        .unwrap()
        .for_tenant(tenant().into_uuid(), 1);
    let options = Options {
        partial,
        keys: vec![key().renamed(&name).unwrap().verifying_key().clone()],
        ..Options::default()
    };
    verify_lines(text.lines(), options)
}

fn basis(text: &str) -> Basis {
    Basis::parse(text).unwrap()
}

#[tokio::test]
async fn a_full_export_verifies_after_erasures_and_prunes() {
    let log = signed_log();
    let workers = log.start();
    let reader = reader(&log);
    let first = record(&log, 300).await;
    reader
        .erase(
            first[280..290].to_vec(),
            Some(vec![Group::Actor, Group::Reason]),
            basis("gdpr-17"),
            None,
        )
        .await
        .unwrap();
    let later = record(&log, 50).await;
    let middle = reader.get(later[0]).await.unwrap().created_at;
    let pruned = reader
        .prune(middle, basis("retention"), None, false)
        .await
        .unwrap();
    let last = record(&log, 10).await;
    let report = verify(&exported(&log, EvidenceRequest::new()).await, false);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert!(report.key_trusted);
    assert_eq!((report.size, pruned.below), (362, 301));
    assert_eq!(report.absent.pruned, 301);

    // Of an earlier prune the root is compared too.
    let late = reader.get(last[0]).await.unwrap().created_at;
    let pruned = reader
        .prune(late, basis("retention"), None, false)
        .await
        .unwrap();
    let text = exported(&log, EvidenceRequest::new()).await;
    let report = verify(&text, false);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert_eq!(report.absent.pruned, pruned.below);
    workers.shutdown(Duration::from_secs(5)).await;
}

/// Whichever store keeps it: the tree has its hash.
#[tokio::test]
async fn leaf_data_that_outlives_a_prune_and_is_another_is_told_with_its_position() {
    let store = Arc::new(Faulty::new());
    let name = || Origin::parse(ORIGIN).unwrap();
    let (log, _, workers) = signer::process(&store, Signer::new(name(), signer::key(1)));
    record(&log, 10).await;
    signer::signed(&store, &signer::vkey_in(1, ORIGIN, 1)).await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    let second = Signer::new(name(), signer::key(2)).succeeding(name(), signer::key(1));
    let (log, reader, workers) = signer::process(&store, second);
    let newest = signer::vkey_in(2, ORIGIN, 1);
    signer::signed(&store, &newest).await;
    record(&log, 280).await;
    let left = record(&log, 20).await;
    let left = reader.get(left[0]).await.unwrap();
    let pruned = reader
        .prune(left.created_at, basis("retention"), None, false)
        .await
        .unwrap();
    assert_eq!(pruned.below, 291);
    while store.sweep().await.unwrap() {}
    signer::signed(&store, &newest).await;

    // The change of keys, and the bundle that the prune ended in.
    let corrupt = |error: Error, seq| {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(
            (error.tenant(), error.position()),
            (Some(tenant()), Some(seq))
        );
    };
    signer::exported(&reader).await;
    let bundle = Tile::at(Content::Entries, 1, 312).unwrap();
    let tile = reader.tile(&bundle).await.unwrap();
    let leaves = parse_entries(&tile, bundle.width()).unwrap();
    assert_eq!(leaves.len(), 56);
    store.altered_leaves.lock().unwrap().extend([10, 270, 300]);
    let error = eventually(
        async || match reader.evidence(EvidenceRequest::new()).await {
            Err(error) if error.is_retryable() => None,
            told => told.err(),
        },
    )
    .await;
    corrupt(error, 10);
    corrupt(reader.tile(&bundle).await.unwrap_err(), 270);
    // What is left of the log is for who reads it to compare.
    store.altered_leaves.lock().unwrap().remove(&270);
    assert_ne!(reader.tile(&bundle).await.unwrap(), tile);
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn an_erased_group_is_named_with_the_entry_that_erased_it() {
    let log = signed_log();
    let workers = log.start();
    let ids = record(&log, 20).await;
    let erased = reader(&log)
        .erase(
            ids[3..5].to_vec(),
            Some(vec![Group::Actor]),
            basis("gdpr-17"),
            None,
        )
        .await
        .unwrap();
    let report = verify(&exported(&log, EvidenceRequest::new()).await, false);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert_eq!(report.erased_by, [(erased.receipts[0].seq, 2)]);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_filtered_export_proves_each_entry_and_is_not_the_whole_log() {
    let log = signed_log();
    let workers = log.start();
    record(&log, 100).await;
    let request = EvidenceRequest::new()
        .filter(Filter::new().user("ann"))
        .withhold(&[Group::Reason]);
    let text = exported(&log, request).await;
    let report = verify(&text, true);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert_eq!((report.entries, report.absent.withheld), (34, 66));
    assert_eq!(report.groups.withheld, 34);
    let mut users = BTreeSet::new();
    for line in text.lines() {
        let Ok(Entry(entry)) = Record::parse(line) else {
            continue;
        };
        let actor = open_disclosure(entry.disclosures[0].as_deref().unwrap()).unwrap();
        users.insert(actor.value.to_owned());
    }
    let ann = r#"{"user_id":"ann","actor_type":"user"}"#;
    assert_eq!(users.into_iter().collect::<Vec<_>>(), [ann]);
    let gaps = text
        .lines()
        .filter(|line| matches!(Record::parse(line), Ok(Gap(_))));
    assert_eq!(gaps.count(), 33);
    let demanded = verify(&text, false);
    assert!(
        demanded
            .findings
            .iter()
            .any(|finding| finding.code == Code::Unexplained),
        "{:#?}",
        demanded.findings
    );
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_filter_must_not_say_what_is_withheld() {
    let log = signed_log();
    record(&log, 3).await;
    let reader = reader(&log);
    for (filter, group) in [
        (Filter::new().user("ann"), Group::Actor),
        (Filter::new().resource_id("inv-1"), Group::Resource),
        (Filter::new().session("s"), Group::Context),
        (
            Filter::new().text(Query::parse("agreed").unwrap()),
            Group::Reason,
        ),
    ] {
        let request = EvidenceRequest::new().filter(filter).withhold(&[group]);
        let refused = reader.evidence(request).await.err().unwrap();
        assert_eq!(refused.fields()[0].field, "withhold", "{group}");
    }
}

#[tokio::test]
async fn heads_are_signed_by_turns() {
    let log = signed_log();
    let workers = log.start();
    let tenants: Vec<TenantId> = (1..=100)
        .map(|n| TenantId::new(Uuid::from_u128(n)))
        .collect();
    // All of them grow all the time.
    let busy = async {
        loop {
            for tenant in &tenants {
                log.recorder(*tenant)
                    .record(Event::view("doc", "d"))
                    .await
                    .unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    let signed = eventually(async || {
        for tenant in &tenants {
            let reader = log.tenant(TenantScope::trusted(*tenant, "test"));
            reader.checkpoint().await.ok()??;
        }
        Some(())
    });
    tokio::select! {
        () = busy => {}
        () = signed => {}
    }
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_cut_or_altered_export_does_not_verify() {
    let log = signed_log();
    let workers = log.start();
    record(&log, 40).await;
    let text = exported(&log, EvidenceRequest::new()).await;
    assert!(verify(&text, false).is_verified());
    let lines: Vec<&str> = text.lines().collect();
    for cut in 0..lines.len() {
        let mut fewer = lines.clone();
        fewer.remove(cut);
        // A mark only says where to look.
        let is_mark = matches!(Record::parse(lines[cut]), Ok(Record::Mark(_)));
        let report = verify(&fewer.join("\n"), false);
        assert_eq!(report.is_verified(), is_mark, "{cut}");
    }
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_proof_holds_under_a_signed_checkpoint() {
    let log = signed_log();
    let workers = log.start();
    let reader = reader(&log);
    let ids = record(&log, 300).await;
    for seq in [0, 255, 256, 299] {
        let proof = eventually(async || match reader.proof(ids[seq]).await {
            Ok(proof) => Some(proof),
            Err(error) if error.is_retryable() => None,
            Err(error) => panic!("{error}"),
        })
        .await;
        let leaf = reader.get(ids[seq]).await.unwrap().leaf_hash;
        let keys = [reader.verifying_key().await.unwrap()];
        let opened = proof.verify(&leaf, &keys).unwrap();
        assert_eq!(opened.checkpoint.size(), 300);
        let other = leaf_hash(b"other");
        assert!(proof.verify(&other, &keys).is_err());
    }
    let missing = reader.proof(EventId::new(Uuid::from_u128(1))).await;
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_log_that_grows_stays_consistent_with_its_checkpoints() {
    let log = signed_log();
    let workers = log.start();
    let reader = reader(&log);
    let mut heads: Vec<Checkpoint> = Vec::new();
    for size in [1, 7, 256, 300] {
        let have = heads.last().map_or(0, Checkpoint::size);
        record(&log, (size - have) as usize).await;
        let checkpoint = eventually(async || {
            let checkpoint = reader.checkpoint().await.unwrap()?;
            (checkpoint.size == size).then_some(checkpoint)
        })
        .await;
        let note = Note::parse(&checkpoint.note).unwrap();
        let opened = Checkpoint::open(&note, &[reader.verifying_key().await.unwrap()]).unwrap();
        heads.push(opened.checkpoint);
    }
    for old in &heads {
        for new in heads.iter().filter(|new| new.size() >= old.size()) {
            let proof = reader.consistency(old.size(), new.size()).await.unwrap();
            verify_consistency(old.size(), &old.root(), new.size(), &new.root(), &proof).unwrap();
        }
    }
    for (from, to) in [(2, 1), (0, 301), (302, 302)] {
        let refused = reader.consistency(from, to).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    }
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn tiles_lead_to_the_signed_root() {
    let log = signed_log();
    let reader = reader(&log);
    record(&log, 700).await;
    let head = reader.head().await.unwrap();
    let mut tiles = std::collections::HashMap::new();
    for (level, count) in [(0, 3), (1, 1)] {
        for index in 0..count {
            let tile = Tile::at(Content::Hashes(level), index, 700).unwrap();
            let bytes = reader.tile(&tile).await.unwrap();
            parse_hashes(&bytes, tile.width()).unwrap();
            tiles.insert(tile.path(), bytes);
        }
    }
    let mut tiles = TileReader::new(700, |tile: Tile| {
        Ok::<_, audit_core::tlog::tile::TileFault>(tiles[&tile.path()].clone())
    });
    assert_eq!(tiles.root().unwrap(), head.tree.root());
    let bundle = Tile::at(Content::Entries, 2, 700).unwrap();
    let bytes = reader.tile(&bundle).await.unwrap();
    let leaves = parse_entries(&bytes, bundle.width()).unwrap();
    let hash = tiles.node(512..513).unwrap();
    assert_eq!(leaf_hash(leaves[0]), hash);
    let beyond = Tile::new(Content::Hashes(0), 2, 200).unwrap();
    let missing = reader.tile(&beyond).await;
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn one_of_two_processes_signs() {
    let store = Arc::new(MemoryStore::new());
    let open = || {
        let signer = Signer::new(Origin::parse(ORIGIN).unwrap(), key());
        AuditLog::builder(store.clone())
            .signer(signer, store.clone())
            .build()
    };
    let (one, two) = (open(), open());
    let workers = [one.start(), two.start()];
    record(&one, 10).await;
    // Whichever signs: both find the checkpoint, and export with it.
    for log in [&one, &two] {
        let text = exported(log, EvidenceRequest::new()).await;
        assert!(verify(&text, false).is_verified());
    }
    for workers in workers {
        workers.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn another_key_signs_nothing_over_what_the_first_one_signed() {
    let store = Arc::new(MemoryStore::new());
    let open = |seed: u8| {
        let key = SigningKey::from_seed(ORIGIN, &[seed; 32]).unwrap();
        let signer = Signer::new(Origin::parse(ORIGIN).unwrap(), key);
        AuditLog::builder(store.clone())
            .signer(signer, store.clone())
            .build()
    };
    let first = open(7);
    record(&first, 3).await;
    let workers = first.start();
    let signed = eventually(async || reader(&first).checkpoint().await.unwrap()).await;
    workers.shutdown(Duration::from_secs(5)).await;

    let second = open(8);
    record(&second, 3).await;
    let workers = second.start();
    eventually(async || {
        let status = workers.status();
        let signer = status.iter().find(|status| status.name == "signer")?;
        let error = signer.last_error.as_ref()?;
        error.contains("another key").then_some(())
    })
    .await;
    let latest = reader(&second).checkpoint().await.unwrap();
    assert_eq!(latest, Some(signed));
    workers.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn without_a_signer_there_is_no_evidence() {
    let log = AuditLog::builder(Arc::new(MemoryStore::new())).build();
    let ids = record(&log, 1).await;
    let reader = reader(&log);
    let refused = Some(ErrorKind::NotFound);
    assert_eq!(reader.checkpoint().await.err().map(|e| e.kind()), refused);
    assert_eq!(reader.proof(ids[0]).await.err().map(|e| e.kind()), refused);
    let export = reader.evidence(EvidenceRequest::new()).await;
    assert_eq!(export.err().map(|e| e.kind()), refused);
    // What is not signed is there all the same.
    assert!(
        reader
            .prune(Timestamp::MIN, basis("none"), None, true)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_log_is_public_only_while_its_tenant_is_open_and_says_so() {
    let log = signed_log();
    let workers = log.start();
    record(&log, 3).await;
    let refused = async |what: &str| {
        let error = log.public_log(tenant()).await.err();
        let kind = error.map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::UnknownTenant), "{what}");
    };
    refused("private").await;
    let set = async |update: TenantUpdate| {
        let set = log.update_tenant(tenant(), update, "ann", None);
        set.await.unwrap();
    };
    set(TenantUpdate::default().public_log(true)).await;
    let public = log.public_log(tenant()).await.unwrap();
    let head = eventually(async || {
        // The entry that says so is the fourth.
        public.checkpoint_covering(4).await.unwrap()
    })
    .await;
    let bundle = Tile::at(Content::Entries, 0, head.size).unwrap();
    let bytes = public.tile(&bundle).await.unwrap();
    let leaves = parse_entries(&bytes, bundle.width()).unwrap();
    assert!(
        leaves
            .iter()
            .all(|leaf| !leaf.windows(3).any(|text| text == b"ann"))
    );
    set(TenantUpdate::default().status(TenantStatus::Suspended)).await;
    refused("suspended").await;
    set(TenantUpdate::default().status(TenantStatus::Inactive)).await;
    log.public_log(tenant()).await.unwrap();
    set(TenantUpdate::default().public_log(false)).await;
    refused("private again").await;
    assert!(workers.shutdown(Duration::from_secs(10)).await);
}
