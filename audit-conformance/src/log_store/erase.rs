use audit_core::{
    ActionType, Clock as _, Control, Entry, Erasure, ErrorKind, Event, EventId, Filter, Group,
    Kind, LogStore as _, Lookup, Prune, Query, Receipt, SystemClock, Timestamp,
};

use super::LogStoreHarness;
use crate::fixture::{act, append, basis, event, events, everything, listed, new_tenant, trusted};

fn erasure(tenant: audit_core::TenantId, ids: Vec<EventId>) -> Erasure {
    Erasure::new(ids, basis("gdpr-17"), act(tenant))
}

fn ids(receipts: &[Receipt]) -> Vec<EventId> {
    receipts.iter().map(|r| r.id).collect()
}

/// What an erase control entry names.
fn named(entry: &Entry) -> (Vec<Group>, Vec<(u64, u64)>) {
    let ctl = entry.ctl.as_deref().expect("a ctl");
    match Control::parse(entry.kind, ctl).expect("a control") {
        Control::Erase {
            groups,
            entries,
            basis,
        } => {
            assert_eq!(basis.as_str(), "gdpr-17");
            (groups, entries)
        }
        other => panic!("{other:?}"),
    }
}

/// Erased groups show nowhere, are named in `erased`, and the entry still verifies.
pub async fn erased_groups_are_gone_and_named<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let receipts = append(store, tenant, events(2)).await;
    let id = receipts[0].id;
    let some = erasure(tenant, vec![id]).groups(&[Group::Reason, Group::Actor]);
    let erased = store.erase(&scope, &some).await.expect("erased");
    assert_eq!((erased.entries, erased.receipts.len()), (1, 1));
    // `get`, `at` and `list` recompute the leaf.
    let shown = store.get(&scope, &[id]).await.expect("verified").remove(0);
    let entry = shown.into_entry().expect("an entry");
    assert_eq!(entry.erased, [Group::Actor, Group::Reason]);
    assert_eq!(entry.leaf_hash, receipts[0].leaf_hash);
    assert_eq!(
        (&entry.fields.user_id, &entry.fields.actor_name),
        (&None, &None)
    );
    assert_eq!(
        (&entry.fields.actor_type, &entry.fields.reason),
        (&None, &None)
    );
    assert_eq!(entry.fields.resource_id.as_deref(), Some("inv-0"));
    assert!(entry.fields.metadata.is_some());
    for shown in [
        store.at(&scope, &[0]).await.expect("verified"),
        store.read(&scope, 0, 1).await.expect("read"),
    ] {
        assert_eq!(shown.as_slice(), std::slice::from_ref(&entry));
    }
    assert_eq!(everything(store, tenant).await[0], entry);
    let query = Query::parse("\"reason 0\"").expect("a query");
    assert!(
        listed(store, tenant, &Filter::new().text(query))
            .await
            .is_empty()
    );
    assert!(
        listed(store, tenant, &Filter::new().user("user-0"))
            .await
            .is_empty()
    );
    assert_eq!(
        listed(store, tenant, &Filter::new().resource_id("inv-0")).await,
        [0]
    );

    let rest = store
        .erase(&scope, &erasure(tenant, vec![id]))
        .await
        .expect("erased");
    assert_eq!(rest.entries, 1);
    let entry = store
        .get(&scope, &[id])
        .await
        .expect("verified")
        .remove(0)
        .into_entry()
        .unwrap();
    assert_eq!(entry.erased, Group::ALL);
    assert_eq!(entry.fields.resource_id, None);
    assert_eq!(entry.fields.action, "invoice.approve");
    let explaining = store
        .at(&scope, &[rest.receipts[0].seq])
        .await
        .expect("verified")
        .remove(0);
    let left = vec![
        Group::Resource,
        Group::Context,
        Group::BeforeState,
        Group::AfterState,
        Group::Metadata,
    ];
    assert_eq!(named(&explaining), (left, vec![(0, 0)]));
}

/// Only what was asked for changes.
pub async fn an_erasure_leaves_other_entries_alone<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let receipts = append(store, tenant, events(5)).await;
    let before = everything(store, tenant).await;
    let one = erasure(tenant, vec![receipts[2].id]);
    store.erase(&trusted(tenant), &one).await.expect("erased");
    let after = store
        .at(&trusted(tenant), &[0, 1, 2, 3, 4])
        .await
        .expect("verified");
    for seq in [0, 1, 3, 4] {
        assert_eq!(after[seq], before[seq]);
    }
    assert_ne!(after[2], before[2]);
    assert_eq!(after[2].leaf_hash, before[2].leaf_hash);
}

/// The control entry says what, on what grounds, by whom and why, and is an entry like any other.
pub async fn an_erasure_is_explained_by_a_control_entry<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let receipts = append(store, tenant, events(3)).await;
    let erased = store
        .erase(&scope, &erasure(tenant, vec![receipts[1].id]))
        .await
        .expect("erased");
    let receipt = &erased.receipts[0];
    assert_eq!(
        (receipt.seq, receipt.tree_size, receipt.duplicate),
        (3, 4, false)
    );
    assert_eq!(
        receipt.root,
        store.head(&scope).await.expect("a head").tree.root()
    );
    let found = store
        .get(&scope, &[receipt.id])
        .await
        .expect("verified")
        .remove(0);
    let Lookup::Found(entry) = found else {
        panic!("{found:?}")
    };
    assert_eq!((entry.seq, entry.kind), (3, Kind::Erase));
    assert_eq!(named(&entry), (Group::ALL.to_vec(), vec![(1, 1)]));
    let f = &entry.fields;
    assert_eq!(
        (f.action_type, f.action.as_str()),
        (ActionType::Other, "log.erase")
    );
    assert_eq!(f.resource_type.as_deref(), Some("audit_log"));
    assert_eq!(f.resource_id, Some(tenant.to_string()));
    assert_eq!(
        (f.user_id.as_deref(), f.reason.as_deref()),
        (Some("conformance"), Some("request 7"))
    );
    // Its actor can be erased like anyone's, its `ctl` can't.
    store
        .erase(&scope, &erasure(tenant, vec![receipt.id]))
        .await
        .expect("erased");
    let entry = store.at(&scope, &[3]).await.expect("verified").remove(0);
    assert_eq!(entry.fields.user_id, None);
    assert_eq!(named(&entry), (Group::ALL.to_vec(), vec![(1, 1)]));
}

/// Neighbours share a range; entries that had other groups have a control entry of their own.
pub async fn an_erasure_of_many_entries_names_ranges<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let mut all = events(8);
    all[4] = Event::view("doc", "d-1");
    let receipts = append(store, tenant, all).await;
    let asked = [7, 0, 2, 1, 4, 2]
        .map(|seq: usize| receipts[seq].id)
        .to_vec();
    let erased = store
        .erase(&trusted(tenant), &erasure(tenant, asked))
        .await
        .expect("erased");
    assert_eq!((erased.entries, erased.receipts.len()), (5, 2));
    let seqs: Vec<u64> = erased.receipts.iter().map(|r| r.seq).collect();
    assert_eq!(seqs, [8, 9]);
    let entries = store.at(&trusted(tenant), &seqs).await.expect("verified");
    let mut said: Vec<_> = entries.iter().map(named).collect();
    said.sort_by_key(|(groups, _)| groups.len());
    let expected = [
        (vec![Group::Resource], vec![(4, 4)]),
        (Group::ALL.to_vec(), vec![(0, 2), (7, 7)]),
    ];
    assert_eq!(said, expected);
}

/// A control entry holds a thousand ranges: one act may take several.
pub async fn an_erasure_of_more_than_a_thousand_ranges_takes_several_entries<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let all = (0..2_002)
        .map(|n| Event::view("doc", n.to_string()))
        .collect();
    let receipts = append(store, tenant, all).await;
    let every_other = receipts.iter().step_by(2).map(|r| r.id).collect();
    let erased = store
        .erase(&trusted(tenant), &erasure(tenant, every_other))
        .await
        .expect("erased");
    assert_eq!(erased.entries, 1_001);
    let seqs: Vec<u64> = erased.receipts.iter().map(|r| r.seq).collect();
    assert_eq!(seqs, [2_002, 2_003]);
    let entries = store.at(&trusted(tenant), &seqs).await.expect("verified");
    let mut ranges: Vec<_> = entries.iter().flat_map(|entry| named(entry).1).collect();
    ranges.sort_unstable();
    assert_eq!(
        ranges,
        (0..1_001).map(|n| (2 * n, 2 * n)).collect::<Vec<_>>()
    );
}

/// What is gone already isn't explained twice.
pub async fn a_repeated_erasure_writes_nothing<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let receipts = append(store, tenant, events(2)).await;
    store
        .erase(&scope, &erasure(tenant, ids(&receipts)))
        .await
        .expect("erased");
    let head = store.head(&scope).await.expect("a head");
    let again = store
        .erase(&scope, &erasure(tenant, ids(&receipts)))
        .await
        .expect("erased");
    assert_eq!((again.entries, again.receipts.len()), (0, 0));
    // Nor is what an entry never had.
    let bare = append(store, tenant, vec![Event::view("d", "1")]).await;
    let absent = erasure(tenant, ids(&bare)).groups(&[Group::Metadata, Group::Reason]);
    assert_eq!(
        store.erase(&scope, &absent).await.expect("erased").entries,
        0
    );
    assert_eq!(
        store.head(&scope).await.expect("a head").size(),
        head.size() + 1
    );
}

/// The content is gone, so nothing can be compared: any repeat is a duplicate.
pub async fn an_erased_id_is_a_duplicate_without_comparing<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let first = append(store, tenant, events(1)).await.remove(0);
    let one = erasure(tenant, vec![first.id]).groups(&[Group::Actor]);
    store.erase(&scope, &one).await.expect("erased");
    for repeat in [event(0), event(1), Event::delete("other", "thing")] {
        let again = append(store, tenant, vec![repeat.id(first.id)])
            .await
            .remove(0);
        assert!(again.duplicate);
        assert_eq!((again.seq, again.leaf_hash), (first.seq, first.leaf_hash));
    }
    let entry = store
        .get(&scope, &[first.id])
        .await
        .expect("verified")
        .remove(0)
        .into_entry()
        .unwrap();
    assert_eq!(entry.erased, [Group::Actor]);
    assert_eq!(entry.fields.user_id, None);
}

/// An erasure request may name anything.
pub async fn erasing_what_is_missing_or_pruned_is_passed_over<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let gone = append(store, tenant, events(2)).await;
    let prune = Prune::new(Timestamp::MAX, basis("retention"), act(tenant));
    store.prune(&scope, &prune).await.expect("pruned");
    let left = append(store, tenant, events(1)).await;
    let mut asked = ids(&gone);
    asked.push(SystemClock.event_id());
    let nothing = store
        .erase(&scope, &erasure(tenant, asked.clone()))
        .await
        .expect("erased");
    assert_eq!((nothing.entries, nothing.receipts.len()), (0, 0));
    assert_eq!(
        store
            .erase(&scope, &erasure(tenant, Vec::new()))
            .await
            .expect("erased")
            .entries,
        0
    );
    asked.extend(ids(&left));
    let erased = store
        .erase(&scope, &erasure(tenant, asked))
        .await
        .expect("erased");
    assert_eq!(erased.entries, 1);
    let entry = store
        .at(&scope, &[erased.receipts[0].seq])
        .await
        .expect("verified")
        .remove(0);
    assert_eq!(named(&entry).1, [(left[0].seq, left[0].seq)]);
}

/// What is archived of pruned entries is named with the rest, and nothing else of it changes.
pub async fn an_erasure_names_what_pruned_entries_lose_in_the_archive<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    append(store, tenant, events(4)).await;
    let prune = Prune::new(Timestamp::MAX, basis("retention"), act(tenant));
    assert_eq!(store.prune(&scope, &prune).await.expect("pruned").below, 4);
    let left = append(store, tenant, events(2)).await;
    let archived = vec![
        (3, vec![Group::Reason, Group::Actor]),
        (0, vec![Group::Actor]),
        (2, Group::ALL.to_vec()),
        // With nothing of what is asked for, not pruned, and not there.
        (1, vec![Group::Metadata]),
        (left[1].seq, vec![Group::Actor]),
        (1 << 40, vec![Group::Actor]),
    ];
    let both = [Group::Actor, Group::Reason];
    let asked = erasure(tenant, vec![left[0].id]).groups(&both);
    let asked = asked.archived(archived).pruned_below(4);
    let erased = store.erase(&scope, &asked).await.expect("erased");
    assert_eq!((erased.entries, erased.receipts.len()), (4, 2));
    let seqs: Vec<u64> = erased.receipts.iter().map(|r| r.seq).collect();
    let entries = store.at(&scope, &seqs).await.expect("verified");
    let mut said: Vec<_> = entries.iter().map(named).collect();
    said.sort_by_key(|(groups, _)| groups.len());
    let expected = [
        (vec![Group::Actor], vec![(0, 0)]),
        (both.to_vec(), vec![(2, 3), (left[0].seq, left[0].seq)]),
    ];
    assert_eq!(said, expected);
    let other = store.at(&scope, &[left[1].seq]).await.expect("verified");
    assert_eq!(other[0].erased, []);

    // With nothing in the log itself, too.
    let only = erasure(tenant, Vec::new()).archived(vec![(1, vec![Group::Actor])]);
    let erased = store.erase(&scope, &only).await.expect("erased");
    assert_eq!((erased.entries, erased.receipts.len()), (1, 1));
}

/// It would be erased neither in the log nor in the archive.
pub async fn an_erasure_is_refused_when_the_log_was_pruned_since_its_selection<
    H: LogStoreHarness,
>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    let gone = append(store, tenant, events(2)).await;
    let asked = erasure(tenant, ids(&gone)).pruned_below(0);
    let prune = Prune::new(Timestamp::MAX, basis("retention"), act(tenant));
    store.prune(&scope, &prune).await.expect("pruned");
    let refused = store.erase(&scope, &asked).await.expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert_eq!(store.head(&scope).await.expect("a head").size(), 3);
    let selected = erasure(tenant, ids(&gone)).pruned_below(2);
    let passed = store.erase(&scope, &selected).await.expect("erased");
    assert_eq!(passed.entries, 0);
}
