//! The contract of [`SearchIndex`].

use std::future::Future;

use audit_core::memory::MemoryStore;
use audit_core::{
    AuditLog, Entry, ErrorKind, Event, Filter, Group, LogStore, Order, Permission, Permissions,
    Query, Recorder, SearchIndex, SearchRequest, TenantId,
};

use crate::fixture::{kind, prepare, seconds_after, tenant_id, time, trusted};
use crate::random::Random;

/// Opens an index for a contract.
pub trait SearchIndexHarness: Sized + Send + Sync + 'static {
    /// The index, or a wrapper around one.
    type Index: SearchIndex;

    /// Opens an index of this contract's own, empty.
    fn open() -> impl Future<Output = Self> + Send;

    /// The index.
    fn index(&self) -> &Self::Index;
}

fn entry(tenant: TenantId, seq: u64, event: Event) -> Entry {
    let prepared = prepare(tenant, event);
    let created_at = seconds_after(time("2026-11-24T03:00:00Z"), seq as i64);
    Entry::new(
        tenant,
        prepared.id(),
        seq,
        created_at,
        prepared.fields().clone(),
    )
}

/// Every third is by ann, all speak of light, each has a number of its own.
fn entries(tenant: TenantId, seqs: std::ops::Range<u64>) -> Vec<Entry> {
    seqs.map(|seq| {
        let user = if seq % 3 == 0 { "ann" } else { "bob" };
        let event = Event::update("lamp", format!("lamp-{seq}"))
            .user(user)
            .reason("More Light in the Straße")
            .metadata(&[("peer", format!("10.8.8.{seq}"))]);
        entry(tenant, seq, event)
    })
    .collect()
}

/// A log of the small world.
fn small_world(random: &mut Random, tenant: TenantId, size: u64) -> Vec<Entry> {
    let mut now = time("2026-06-01T00:00:00Z");
    (0..size)
        .map(|seq| {
            now = seconds_after(now, random.below(100) as i64);
            let prepared = prepare(tenant, random.event(now));
            let fields = prepared.fields().clone();
            let mut entry = Entry::new(tenant, prepared.id(), seq, now, fields);
            entry.occurred_at = prepared.occurred_at(now);
            entry
        })
        .collect()
}

fn request(q: &str, limit: usize) -> SearchRequest {
    SearchRequest::new(Filter::new().text(Query::parse(q).expect("a query")), limit)
}

/// The hits that stand the check that every caller makes, oldest first.
async fn found<I: SearchIndex>(index: &I, all: &[Entry], request: &SearchRequest) -> Vec<u64> {
    let tenant = all[0].tenant_id;
    let hits = index.search(&trusted(tenant), request).await.expect("hits");
    let mut seqs = hits.seqs;
    seqs.retain(|seq| {
        all.iter()
            .any(|e| e.seq == *seq && request.filter.matches(e))
    });
    seqs.sort_unstable();
    seqs
}

/// Words, phrases, numbers, folded letters, and with other conditions.
pub async fn indexed_entries_are_found<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let tenant = tenant_id();
    let all = entries(tenant, 0..20);
    harness.index().index(&all).await.expect("indexed");
    let every: Vec<u64> = (0..20).collect();
    for (q, expected) in [
        ("LIGHT", every.clone()),
        ("\"more light\"", every.clone()),
        ("strasse", every.clone()),
        ("lamp-7", vec![7]),
        ("10.8.8.12", vec![12]),
        ("peer light", every.clone()),
        ("\"light more\"", vec![]),
        ("dark", vec![]),
        ("ann", vec![0, 3, 6, 9, 12, 15, 18]),
    ] {
        assert_eq!(
            found(harness.index(), &all, &request(q, 100)).await,
            expected,
            "{q}"
        );
    }
    let mut narrowed = request("light", 100);
    narrowed.filter = narrowed.filter.user("ann").from_seq(4);
    assert_eq!(
        found(harness.index(), &all, &narrowed).await,
        [6, 9, 12, 15, 18]
    );
}

/// There may be too many hits, never too few.
pub async fn no_match_below_indexed_through_is_missing<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let tenant = tenant_id();
    let all = entries(tenant, 0..30);
    for part in all.chunks(7) {
        harness.index().index(part).await.expect("indexed");
        let through = part[part.len() - 1].seq + 1;
        let scope = trusted(tenant);
        assert_eq!(
            harness
                .index()
                .indexed_through(&scope)
                .await
                .expect("a position"),
            through
        );
        let hits = harness
            .index()
            .search(&scope, &request("light", 100))
            .await
            .expect("hits");
        assert_eq!(hits.indexed_through, through);
        let seqs = found(harness.index(), &all, &request("light", 100)).await;
        assert_eq!(seqs, (0..through).collect::<Vec<_>>());
    }
}

/// Of words, phrases, and any other conditions, in both orders, from any position on; nor does another
/// tenant's log add to what is found.
pub async fn no_match_of_a_random_query_is_missing<H: SearchIndexHarness>() {
    const SIZE: u64 = 2_500;
    let harness = H::open().await;
    let mut random = Random::new(11);
    let (tenant, other) = (tenant_id(), tenant_id());
    let all = small_world(&mut random, tenant, SIZE);
    for part in all.chunks(911) {
        harness.index().index(part).await.expect("indexed");
    }
    let others = small_world(&mut random, other, 40);
    harness.index().index(&others).await.expect("indexed");
    let times: Vec<_> = all
        .iter()
        .step_by(50)
        .flat_map(|e| [e.created_at, e.occurred_at])
        .collect();
    for _ in 0..300 {
        let filter = random.filter(&times, SIZE).text(random.query());
        let limit = 1 + random.below(40) as usize;
        let (order, after) = (random.one_in(2), random.one_in(2));
        let after = after.then(|| random.below(SIZE));
        let order = match order {
            true => Order::Ascending,
            false => Order::Descending,
        };
        let request = SearchRequest::new(filter.clone(), limit)
            .order(order)
            .after(after);
        let hits = harness
            .index()
            .search(&trusted(tenant), &request)
            .await
            .expect("hits");
        assert!(hits.seqs.len() <= limit, "{request:?}");
        // Whatever it says about more, nothing that matches is left out up to its last hit.
        let mut wanted: Vec<u64> = all
            .iter()
            .filter(|e| filter.matches(e))
            .map(|e| e.seq)
            .filter(|seq| match (order, after) {
                (Order::Ascending, Some(after)) => *seq > after,
                (Order::Descending, Some(after)) => *seq < after,
                (_, None) => true,
            })
            .collect();
        if order == Order::Descending {
            wanted.reverse();
        }
        if hits.more {
            let last = *hits.seqs.last().expect("more behind nothing");
            wanted.retain(|seq| match order {
                Order::Ascending => *seq <= last,
                Order::Descending => *seq >= last,
            });
        }
        let mut found = hits.seqs;
        found.retain(|seq| filter.matches(&all[*seq as usize]));
        assert_eq!(found, wanted, "{request:?}");
    }
}

/// Behind the last hit, until there are no more.
pub async fn hits_are_paged_in_both_orders<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let tenant = tenant_id();
    let all = entries(tenant, 0..25);
    harness.index().index(&all).await.expect("indexed");
    for order in [Order::Ascending, Order::Descending] {
        let mut expected: Vec<u64> = (0..25).collect();
        if order == Order::Descending {
            expected.reverse();
        }
        for limit in [1, 7, 25, 100] {
            let (mut seqs, mut after) = (Vec::<u64>::new(), None);
            loop {
                let page = request("light", limit).order(order).after(after);
                let hits = harness
                    .index()
                    .search(&trusted(tenant), &page)
                    .await
                    .expect("hits");
                assert!(hits.seqs.len() <= limit);
                seqs.extend(&hits.seqs);
                if !hits.more {
                    break;
                }
                after = hits.seqs.last().copied();
                assert!(after.is_some(), "more behind nothing");
                assert!(seqs.len() <= 25, "pages go round in circles");
            }
            assert_eq!(seqs, expected, "{order:?} by {limit}");
        }
    }
}

/// A worker that crashed before its cursor moved indexes again.
pub async fn entries_indexed_twice_are_found_once<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let tenant = tenant_id();
    let all = entries(tenant, 0..10);
    harness.index().index(&all[..6]).await.expect("indexed");
    harness.index().index(&all[..6]).await.expect("indexed");
    harness.index().index(&all[3..]).await.expect("indexed");
    let hits = harness
        .index()
        .search(&trusted(tenant), &request("light", 100))
        .await
        .expect("hits");
    let mut seqs = hits.seqs;
    seqs.sort_unstable();
    assert_eq!((seqs, hits.indexed_through), ((0..10).collect(), 10));
}

/// A rebuild starts with the first entry that is left.
pub async fn the_index_of_a_pruned_log_starts_later<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let tenant = tenant_id();
    let all = entries(tenant, 1_000..1_010);
    harness.index().index(&all).await.expect("indexed");
    let seqs = found(harness.index(), &all, &request("light", 100)).await;
    assert_eq!(seqs, (1_000..1_010).collect::<Vec<_>>());
    let through = harness
        .index()
        .indexed_through(&trusted(tenant))
        .await
        .expect("a position");
    assert_eq!(through, 1_010);
}

/// An erased word leads nowhere, what is left of the entry is still found.
pub async fn removed_content_is_not_found<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let tenant = tenant_id();
    let scope = trusted(tenant);
    let mut all = entries(tenant, 0..5);
    all[2].fields_mut().reason = Some("unmentionable".into());
    harness.index().index(&all).await.expect("indexed");
    let request_raw = |q: &str| request(q, 100);
    let before = harness
        .index()
        .search(&scope, &request_raw("unmentionable"))
        .await
        .expect("hits");
    assert_eq!(before.seqs, [2]);
    all[2].fields_mut().clear(Group::Reason);
    all[2].erased = vec![Group::Reason];
    harness
        .index()
        .remove(&scope, &all[2..3])
        .await
        .expect("removed");
    harness
        .index()
        .remove(&scope, &all[2..3])
        .await
        .expect("removed twice is no error");
    harness
        .index()
        .remove(&scope, &[])
        .await
        .expect("nothing to remove");
    // Not even as a hit that the caller would discard: the index must not keep the word.
    let after = harness
        .index()
        .search(&scope, &request_raw("unmentionable"))
        .await
        .expect("hits");
    assert!(after.seqs.is_empty());
    assert_eq!(
        found(harness.index(), &all, &request_raw("lamp-2")).await,
        [2]
    );
    assert_eq!(
        found(harness.index(), &all, &request_raw("light")).await,
        [0, 1, 3, 4]
    );
    assert_eq!(
        harness
            .index()
            .indexed_through(&scope)
            .await
            .expect("a position"),
        5
    );
}

/// Not even its positions.
pub async fn no_tenant_finds_anothers_entries<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let (ann, bob, nobody) = (tenant_id(), tenant_id(), tenant_id());
    let mut mixed = entries(ann, 0..4);
    mixed.extend(entries(bob, 0..9));
    harness.index().index(&mixed).await.expect("indexed");
    for (tenant, n) in [(ann, 4), (bob, 9), (nobody, 0)] {
        let scope = trusted(tenant);
        let hits = harness
            .index()
            .search(&scope, &request("light", 100))
            .await
            .expect("hits");
        assert_eq!((hits.seqs.len() as u64, hits.indexed_through), (n, n));
    }
    // Whether it is refused or passed over, it reaches nothing.
    let foreign = entries(ann, 0..1);
    drop(harness.index().remove(&trusted(bob), &foreign).await);
    let hits = harness
        .index()
        .search(&trusted(ann), &request("light", 100))
        .await
        .expect("hits");
    assert_eq!(hits.seqs.len(), 4);
}

/// Every permission but `read` is not enough.
pub async fn searching_requires_the_permission<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let tenant = tenant_id();
    let others: Vec<_> = Permission::ALL
        .into_iter()
        .filter(|p| *p != Permission::Read)
        .collect();
    let scope = trusted(tenant).only(Permissions::of(&others));
    let forbidden = Some(ErrorKind::Forbidden);
    assert_eq!(
        kind(harness.index().search(&scope, &request("light", 10)).await),
        forbidden
    );
    assert_eq!(
        kind(harness.index().indexed_through(&scope).await),
        forbidden
    );
    assert_eq!(kind(harness.index().held(&scope, 0..1).await), forbidden);
    let scope = trusted(tenant).only(Permission::Read);
    assert_eq!(
        kind(harness.index().mend(&scope, &[], &[1]).await),
        forbidden
    );
    assert_eq!(
        kind(harness.index().search(&scope, &request("light", 10)).await),
        None
    );
    assert_eq!(kind(harness.index().indexed_through(&scope).await), None);
}

/// So that its reader goes through the log instead.
pub async fn an_empty_index_says_so<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let scope = trusted(tenant_id());
    harness.index().index(&[]).await.expect("nothing to index");
    let hits = harness
        .index()
        .search(&scope, &request("light", 10))
        .await
        .expect("hits");
    assert_eq!(
        (hits.seqs.len(), hits.more, hits.indexed_through),
        (0, false, 0)
    );
    assert_eq!(
        harness
            .index()
            .indexed_through(&scope)
            .await
            .expect("a position"),
        0
    );
}

/// In any range; of another tenant nothing.
pub async fn what_is_held_is_told_by_position<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let index = harness.index();
    let (tenant, other) = (tenant_id(), tenant_id());
    let mut mixed = entries(tenant, 5..25);
    mixed.extend(entries(other, 0..3));
    index.index(&mixed).await.expect("indexed");
    let scope = trusted(tenant);
    for seqs in [0..25, 0..5, 7..9, 20..2_000, 25..30, 9..9] {
        let expected: Vec<u64> = (5..25).filter(|seq| seqs.contains(seq)).collect();
        let held = index.held(&scope, seqs.clone()).await.expect("positions");
        assert_eq!(held, expected, "{seqs:?}");
    }
    let nobody = trusted(tenant_id());
    assert_eq!(index.held(&nobody, 0..100).await.expect("none"), [0; 0]);
}

/// What it lacks comes back, what the log doesn't have goes, and the rest stays as it is.
pub async fn a_damaged_index_is_mended<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let index = harness.index();
    let (tenant, other) = (tenant_id(), tenant_id());
    let all = entries(tenant, 0..20);
    let mut mixed = all.clone();
    mixed.extend(entries(other, 0..20));
    index.index(&mixed).await.expect("indexed");
    let (scope, theirs) = (trusted(tenant), trusted(other));
    index.mend(&scope, &[], &[3, 4, 19]).await.expect("damaged");
    index.mend(&scope, &[], &[]).await.expect("nothing to mend");
    let left: Vec<u64> = (0..19).filter(|seq| ![3, 4].contains(seq)).collect();
    assert_eq!(index.held(&scope, 0..20).await.expect("positions"), left);
    assert_eq!(found(index, &all, &request("light", 100)).await, left);
    assert_eq!(index.indexed_through(&scope).await.expect("a position"), 20);
    let missing = [all[3].clone(), all[4].clone(), all[19].clone()];
    // What is there already takes the place of itself.
    for missing in [&missing[..], &all[2..5]] {
        index.mend(&scope, missing, &[]).await.expect("mended");
    }
    let every: Vec<u64> = (0..20).collect();
    assert_eq!(index.held(&scope, 0..20).await.expect("positions"), every);
    assert_eq!(found(index, &all, &request("light", 100)).await, every);
    assert_eq!(found(index, &all, &request("lamp-3", 100)).await, [3]);
    assert_eq!(index.held(&theirs, 0..20).await.expect("positions"), every);
    // It goes on as before.
    let more = entries(tenant, 20..22);
    index.index(&more).await.expect("indexed");
    assert_eq!(found(index, &more, &request("light", 100)).await, [20, 21]);
    // Whether it is refused or passed over, it reaches nothing.
    drop(index.mend(&theirs, &all[..1], &[]).await);
    assert_eq!(index.held(&scope, 0..2).await.expect("positions"), [0, 1]);
}

/// What was erased before it was indexed, too; and nothing of another tenant.
pub async fn a_forgotten_tenant_has_nothing_left<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let index = harness.index();
    let (tenant, other) = (tenant_id(), tenant_id());
    let (scope, theirs) = (trusted(tenant), trusted(other));
    let (all, others) = (entries(tenant, 0..601), entries(other, 0..5));
    index.index(&all[..600]).await.expect("indexed");
    index.index(&others).await.expect("indexed");
    index.remove(&scope, &all[600..]).await.expect("removed");
    let refused = index.forget(&scope.only(Permission::Read)).await;
    assert_eq!(kind(refused), Some(ErrorKind::Forbidden));
    assert_eq!(
        index.indexed_through(&scope).await.expect("a position"),
        600
    );
    for tenant in [&scope, &scope, &trusted(tenant_id())] {
        index.forget(tenant).await.expect("forgotten");
        let through = index.indexed_through(tenant).await;
        assert_eq!(through.expect("a position"), 0);
        let held = index.held(tenant, 0..1_000).await;
        assert_eq!(held.expect("positions"), [0; 0]);
        let hits = index.search(tenant, &request("light", 10)).await;
        assert_eq!(hits.expect("hits").seqs, [0; 0]);
    }
    assert_eq!(index.indexed_through(&theirs).await.expect("a position"), 5);
    assert_eq!(
        found(index, &others, &request("light", 10)).await,
        [0, 1, 2, 3, 4]
    );
}

/// Also what lost a group meanwhile, and what the index has too much.
pub async fn an_index_is_rebuilt_from_the_logs<H: SearchIndexHarness>() {
    let harness = H::open().await;
    let index = harness.index();
    let store = std::sync::Arc::new(MemoryStore::new());
    let log = AuditLog::builder(std::sync::Arc::clone(&store)).build();
    let (tenant, other) = (tenant_id(), tenant_id());
    for (owner, n) in [(tenant, 9), (other, 4)] {
        let events = entries(owner, 0..n).into_iter().map(|entry| {
            let reason = entry.fields.reason.clone().unwrap_or_default();
            Event::view("doc", format!("d{}", entry.seq)).reason(reason)
        });
        let events = events.collect();
        log.recorder(owner)
            .record_all(events)
            .await
            .expect("stored");
    }
    let scope = trusted(tenant);
    let all = store.read(&scope, 0, 100).await.expect("entries");
    // An index that was led astray.
    let mut wrong = all[..5].to_vec();
    wrong[2].fields_mut().reason = Some("dark".into());
    index.index(&wrong).await.expect("indexed");
    for _ in 0..2 {
        index.rebuild(log.log_store()).await.expect("rebuilt");
        let through = index.indexed_through(&scope).await.expect("a position");
        assert_eq!(through, 9);
        let held = index.held(&scope, 0..100).await.expect("positions");
        assert_eq!(held, (0..9).collect::<Vec<_>>());
        assert_eq!(found(index, &all, &request("light", 100)).await.len(), 9);
        let dark = index.search(&scope, &request("dark", 100)).await;
        assert_eq!(dark.expect("hits").seqs, [0; 0]);
        let theirs = index.indexed_through(&trusted(other)).await;
        assert_eq!(theirs.expect("a position"), 4);
    }
}
