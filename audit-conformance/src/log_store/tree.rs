use audit_core::tlog::leaf::{disclosure_digest, leaf_hash, open_disclosure};
use audit_core::tlog::merkle;
use audit_core::{
    Batch, Erasure, ErrorKind, Evidence, Filter, Group, LogStore as _, Lookup, Opening, Prune,
    StoredEntry, Timestamp,
};
use futures_util::TryStreamExt as _;

use super::LogStoreHarness;
use crate::fixture::{
    act, append, basis, event, events, everything, kind, new_tenant, prepare, scan, trusted,
    try_append,
};

/// At every size, and in every receipt: RFC 6962's tree over the leaf hashes.
pub async fn the_head_is_the_merkle_root_of_the_leaf_hashes<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let empty = store.head(&scope).await.expect("a head");
    assert_eq!((empty.size(), empty.created_at), (0, Timestamp::MIN));
    assert_eq!(empty.tree.root(), merkle::root(&[]));
    for n in 1..=9 {
        let receipts = append(store, tenant, events(n % 3 + 1)).await;
        let head = store.head(&scope).await.expect("a head");
        let hashes = store
            .hashes(&scope, 0, 0..head.size())
            .await
            .expect("hashes");
        assert_eq!(hashes.len() as u64, head.size());
        assert_eq!(head.tree.root(), merkle::root(&hashes));
        for receipt in receipts {
            assert_eq!(hashes[receipt.seq as usize], receipt.leaf_hash);
            assert_eq!(
                (receipt.tree_size, receipt.root),
                (head.size(), head.tree.root())
            );
            assert_eq!(head.created_at, receipt.created_at);
        }
    }
    let shown: Vec<_> = everything(store, tenant)
        .await
        .iter()
        .map(|e| e.leaf_hash)
        .collect();
    assert_eq!(
        store
            .hashes(&scope, 0, 0..shown.len() as u64)
            .await
            .expect("hashes"),
        shown
    );
}

/// Level 1 hashes stand for 256 leaves each, and an incomplete subtree has none.
pub async fn subtree_hashes_are_those_of_complete_subtrees<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    append(store, tenant, events(255)).await;
    assert_eq!(
        kind(store.hashes(&scope, 1, 0..1).await),
        Some(ErrorKind::NotFound)
    );
    append(store, tenant, events(45)).await;
    let leaves = store.hashes(&scope, 0, 0..300).await.expect("hashes");
    let subtree = store.hashes(&scope, 1, 0..1).await.expect("hashes");
    assert_eq!(subtree, [merkle::root(&leaves[..256])]);
    assert_eq!(
        store.hashes(&scope, 0, 100..103).await.expect("hashes"),
        leaves[100..103]
    );
    assert!(
        store
            .hashes(&scope, 0, 7..7)
            .await
            .expect("none")
            .is_empty()
    );
    for (level, range) in [
        (0, 299..301),
        (0, 300..301),
        (1, 0..2),
        (1, 1..2),
        (2, 0..1),
        (9, 0..1),
    ] {
        let outcome = store.hashes(&scope, level, range.clone()).await;
        assert_eq!(
            kind(outcome),
            Some(ErrorKind::NotFound),
            "level {level}, {range:?}"
        );
    }
}

/// What is shown is what is hashed.
pub async fn the_leaf_is_recomputed_from_what_is_shown<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let prepared: Vec<_> = (0..5).map(|n| prepare(tenant, event(n))).collect();
    let batch = Batch::new(trusted(tenant), prepared.clone());
    try_append(store, &batch).await.expect("appended");
    for prepared in prepared {
        let found = store
            .get(&trusted(tenant), &[prepared.id()])
            .await
            .expect("found")
            .remove(0);
        let Lookup::Found(entry) = found else {
            panic!("{found:?}")
        };
        let opening = Opening::Seed(prepared.seed().clone());
        let stored = StoredEntry {
            entry: *entry.clone(),
            opening: opening.clone(),
        };
        assert_eq!(stored.verify().expect("the leaf that was sealed"), *entry);
        let mut altered = *entry;
        altered.fields_mut().reason = Some("altered".into());
        let stored = StoredEntry {
            entry: altered,
            opening,
        };
        assert_eq!(kind(stored.verify()), Some(ErrorKind::Corrupt));
    }
}

/// And nothing else.
pub async fn evidence_is_of_the_positions_asked_for<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    append(store, tenant, events(6)).await;
    let snapshot = store.snapshot(&trusted(tenant)).await.expect("a snapshot");
    for (from, to, expected) in [(0, 6, 0..6), (2, 4, 2..4), (5, 9, 5..6), (3, 3, 3..3)] {
        let filter = Filter::new().from_seq(from).to_seq(to);
        let evidence = snapshot.evidence(&filter).await.expect("a stream");
        let evidence: Vec<Evidence> = evidence.try_collect().await.expect("evidence");
        let found = evidence.iter().map(|found| found.entry.seq);
        assert!(found.eq(expected), "{from}..{to}");
    }
}

/// Leaf data that hashes to the stored leaf, and a disclosure for each digest in it, but those of
/// erased groups.
pub async fn evidence_opens_every_group_that_is_left<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let receipts = append(store, tenant, events(4)).await;
    let erasure = Erasure::new(vec![receipts[2].id], basis("gdpr-17"), act(tenant));
    store
        .erase(&scope, &erasure.groups(&[Group::Actor, Group::Metadata]))
        .await
        .expect("erased");
    let snapshot = store.snapshot(&scope).await.expect("a snapshot");
    append(store, tenant, events(1)).await;
    let evidence: Vec<Evidence> = snapshot
        .evidence(&Filter::new())
        .await
        .expect("a stream")
        .try_collect()
        .await
        .expect("evidence");
    let entries = scan(&*snapshot, &Filter::new()).await;
    assert_eq!(evidence.len(), 5);
    for (found, entry) in evidence.iter().zip(entries) {
        assert_eq!(found.entry, entry);
        assert_eq!(leaf_hash(found.leaf.as_bytes()), entry.leaf_hash);
        for group in Group::ALL {
            let disclosure = &found.disclosures[group.index()];
            let is_there = entry.fields.group_value(group).is_some();
            assert_eq!(disclosure.is_some(), is_there, "{group}");
            if let Some(disclosure) = disclosure {
                let opened = open_disclosure(disclosure).expect("a disclosure");
                assert_eq!(opened.group, group);
                let digest = disclosure_digest(&opened.salt, group, &opened.value);
                assert!(found.leaf.contains(&digest.to_base64url()), "{group}");
            }
        }
    }
    let erased = &evidence[2];
    assert_eq!(erased.disclosures[Group::Actor.index()], None);
    assert!(erased.disclosures[Group::Reason.index()].is_some());
}

/// Of the 256 positions that the prune ended in, all leaf data stays until all of them are pruned.
pub async fn leaf_data_of_the_straddling_bundle_outlives_a_prune<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    append(store, tenant, events(600)).await;
    let prune = Prune::new(Timestamp::MAX, basis("retention"), act(tenant));
    let pruned = store.prune(&scope, &prune).await.expect("pruned");
    assert_eq!(pruned.below, 600);
    for swept in [false, true] {
        while swept && store.sweep().await.expect("a step") {}
        let leaves = store.leaves(&scope, 0..601).await.expect("leaf data");
        let seqs: Vec<u64> = leaves.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(seqs, (512..601).collect::<Vec<_>>());
        let hashes = store.hashes(&scope, 0, 512..601).await.expect("hashes");
        let own = leaves.iter().map(|(_, leaf)| leaf_hash(leaf.as_bytes()));
        assert!(own.eq(hashes));
        let within = store.leaves(&scope, 599..600).await.expect("leaf data");
        assert_eq!(within, leaves[87..88]);
    }
    let beyond = store.leaves(&scope, 601..u64::MAX).await;
    assert_eq!(beyond.expect("none"), []);
}
