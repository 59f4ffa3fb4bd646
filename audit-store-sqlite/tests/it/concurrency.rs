//! Many writers at once.

use std::collections::BTreeSet;

use audit_core::{ErrorKind, LogStore, Permission};

use crate::fixture::{Fixture, ids, scope};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn positions_have_no_gap_under_16_writers() {
    let fixture = Fixture::new();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let store = fixture.store().clone();
        let batches: Vec<_> = (0..20)
            .map(|n| fixture.batch(&scope(writer % 3), 1 + n % 7))
            .collect();
        writers.spawn(async move {
            let mut receipts = Vec::new();
            for batch in batches {
                receipts.extend(
                    store
                        .append(&[batch])
                        .await
                        .unwrap()
                        .pop()
                        .unwrap()
                        .unwrap(),
                );
            }
            (writer % 3, receipts)
        });
    }
    let mut seqs: [BTreeSet<u64>; 3] = Default::default();
    for (tenant, receipts) in writers.join_all().await {
        for receipt in receipts {
            assert!(
                seqs[tenant as usize].insert(receipt.seq),
                "given twice: {}",
                receipt.seq
            );
            assert!(!receipt.duplicate);
        }
    }
    for (tenant, seqs) in (0..).zip(seqs) {
        let head = fixture.store().head(&scope(tenant)).await.unwrap();
        assert_eq!(seqs, (0..head.size()).collect());
        let hashes = fixture.leaf_hashes(&scope(tenant)).await;
        assert_eq!(head.tree.root(), audit_core::tlog::merkle::root(&hashes));
        let (kept, counted) = fixture.counted_both_ways(&scope(tenant)).await;
        assert_eq!(kept, counted);
        let entries = fixture
            .store()
            .read(&scope(tenant), 0, usize::MAX)
            .await
            .unwrap();
        assert!(entries.is_sorted_by_key(|entry| (entry.seq, entry.created_at)));
    }
}

#[tokio::test]
async fn a_bad_batch_fails_alone() {
    let fixture = Fixture::new();
    let first = fixture.batch(&scope(1), 2);
    let other = audit_core::Event::create("invoice", "x").id(first.events()[1].id());
    let conflicting =
        audit_core::Batch::new(scope(1), vec![fixture.prepare(scope(1).tenant(), other)]);
    let forbidden = audit_core::Batch::new(scope(1).only(Permission::Read), Vec::new());
    let unknown = audit_core::Batch::new(scope(9), Vec::new());
    let act = fixture.act(&scope(1)).prepare(
        scope(1).tenant(),
        &audit_core::Control::Epoch {
            epoch: 2,
            size: 0,
            root: audit_core::Hash([0; 32]),
            basis: crate::fixture::basis("restore"),
        },
    );
    let control = audit_core::Batch::new(scope(1), vec![act]);
    let last = fixture.batch(&scope(2), 1);

    let batches = [
        first.clone(),
        conflicting,
        forbidden,
        unknown,
        control,
        last,
        first.clone(),
    ];
    let outcomes = fixture.store().append(&batches).await.unwrap();

    let kinds: Vec<_> = outcomes
        .iter()
        .map(|o| o.as_ref().err().map(|e| e.kind()))
        .collect();
    assert_eq!(
        kinds,
        [
            None,
            Some(ErrorKind::Conflict),
            Some(ErrorKind::Forbidden),
            Some(ErrorKind::UnknownTenant),
            Some(ErrorKind::Refused),
            None,
            None
        ]
    );
    let again = outcomes[6].as_ref().unwrap();
    assert!(again.iter().all(|receipt| receipt.duplicate));
    assert_eq!(ids(again), ids(outcomes[0].as_ref().unwrap()));
    assert_eq!(fixture.store().head(&scope(1)).await.unwrap().size(), 2);
}
