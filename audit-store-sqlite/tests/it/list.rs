//! Lists, compared with a filter and a sort over everything.

use audit_conformance::random::Random;
use audit_core::{
    Batch, Entry, Erasure, Filter, LogStore, Order, PageRequest, Position, Prune, SearchIndex,
    Sort, Timestamp,
};

use crate::fixture::{Fixture, basis, scope, tenant};

/// Appends events of the small world, the clock going on in between.
async fn append(fixture: &Fixture, random: &mut Random, n: usize) {
    let mut left = n;
    while left > 0 {
        let size = left.min(1 + random.below(700) as usize);
        left -= size;
        for log in [1, 2] {
            let now = fixture.pass(random.below(60_000_000) as i64);
            let size = if log == 1 { size } else { 3 };
            let events = (0..size)
                .map(|_| fixture.prepare(tenant(log), random.event(now)))
                .collect();
            let batch = Batch::new(scope(log), events).creating_tenant();
            fixture
                .store()
                .append(&[batch])
                .await
                .unwrap()
                .pop()
                .unwrap()
                .unwrap();
        }
    }
}

async fn all(fixture: &Fixture) -> Vec<Entry> {
    fixture
        .store()
        .read(&scope(1), 0, usize::MAX)
        .await
        .unwrap()
}

/// Indexes the first tenant's log up to a position.
async fn index_to(fixture: &Fixture, through: u64) {
    let index = fixture.store().search_index();
    let from = index.indexed_through(&scope(1)).await.unwrap();
    if from < through {
        let entries = fixture
            .store()
            .read(&scope(1), from, (through - from) as usize)
            .await
            .unwrap();
        let entries: Vec<Entry> = entries.into_iter().filter(|e| e.seq < through).collect();
        index.index(&entries).await.unwrap();
    }
    assert!(index.indexed_through(&scope(1)).await.unwrap() >= through);
}

fn key(sort: Sort, position: Position) -> (i64, u64) {
    match sort {
        Sort::Seq => (0, position.seq),
        Sort::OccurredAt => (position.occurred_at.as_micros(), position.seq),
    }
}

fn model(entries: &[Entry], filter: &Filter, page: &PageRequest) -> (Vec<u64>, bool) {
    let mut found: Vec<&Entry> = entries
        .iter()
        .filter(|entry| filter.matches(entry))
        .collect();
    found.sort_by_key(|entry| key(page.sort, entry.position()));
    if page.order == Order::Descending {
        found.reverse();
    }
    if let Some(after) = page.after {
        let after = key(page.sort, after);
        found.retain(|entry| match page.order {
            Order::Ascending => key(page.sort, entry.position()) > after,
            Order::Descending => key(page.sort, entry.position()) < after,
        });
    }
    let more = found.len() > page.limit;
    (
        found
            .into_iter()
            .take(page.limit)
            .map(|entry| entry.seq)
            .collect(),
        more,
    )
}

async fn check(
    fixture: &Fixture,
    entries: &[Entry],
    filter: &Filter,
    page: &PageRequest,
) -> Option<Position> {
    let got = fixture.store().list(&scope(1), filter, page).await.unwrap();
    let seqs: Vec<u64> = got.items.iter().map(|entry| entry.seq).collect();
    let (wanted, more) = model(entries, filter, page);
    assert_eq!(seqs, wanted, "{filter:?} {page:?}");
    let last = got.items.last().map(Entry::position);
    match page.order {
        Order::Descending => assert_eq!(got.next, last.filter(|_| more), "{filter:?} {page:?}"),
        Order::Ascending => assert_eq!(got.next, last.or(page.after), "{filter:?} {page:?}"),
    }
    got.next.filter(|_| more)
}

/// Random lists, each followed over a few pages, and one from a random place.
async fn check_random(fixture: &Fixture, random: &mut Random, entries: &[Entry], lists: usize) {
    let mut times: Vec<Timestamp> = entries
        .iter()
        .step_by(97)
        .flat_map(|entry| [entry.occurred_at, entry.created_at])
        .collect();
    times.extend([random.time(), Timestamp::MIN, Timestamp::MAX]);
    let size = entries.last().map_or(0, |entry| entry.seq + 1);
    for _ in 0..lists {
        let mut filter = random.filter(&times, size);
        if random.one_in(6) {
            filter = filter.text(random.query());
        }
        let mut page = PageRequest::first().limit(1 + random.below(60) as usize);
        if random.one_in(10) {
            page = page.limit(1_000);
        }
        if random.one_in(2) {
            page = page.ascending();
        }
        if random.one_in(2) {
            page = page.sort(Sort::OccurredAt);
        }
        if let (true, false) = (random.one_in(2), entries.is_empty()) {
            let place = &entries[random.below(entries.len() as u64) as usize];
            page = page.after(place.position());
        }
        for _ in 0..3 {
            let Some(next) = check(fixture, entries, &filter, &page).await else {
                break;
            };
            page = page.after(next);
        }
    }
}

#[tokio::test]
async fn a_list_is_what_a_filter_and_a_sort_over_everything_give_at_any_lag() {
    let fixture = Fixture::new();
    let mut random = Random::new(1);
    append(&fixture, &mut random, 3_000).await;
    let entries = all(&fixture).await;
    let size = entries.len() as u64;
    for through in [0, 1, size / 3, size / 2 + random.below(100), size - 1, size] {
        index_to(&fixture, through).await;
        check_random(&fixture, &mut random, &entries, 60).await;
    }
}

#[tokio::test]
async fn a_list_of_many_hits_walks_the_order_it_goes_by() {
    let fixture = Fixture::new();
    let mut random = Random::new(2);
    append(&fixture, &mut random, 22_000).await;
    let entries = all(&fixture).await;
    index_to(&fixture, entries.len() as u64 - 30).await;
    let times: Vec<Timestamp> = entries
        .iter()
        .step_by(1_001)
        .map(|e| e.occurred_at)
        .collect();
    for outcome in audit_core::Outcome::ALL {
        // Two of four outcomes are half of all: more than are sorted.
        let many = Filter::new()
            .outcome(*outcome)
            .outcome(audit_core::Outcome::Success);
        let wide = many.clone().occurred(audit_core::TimeRange {
            from: Some(times[3]),
            to: None,
        });
        let only_time = Filter::new().occurred(wide.occurred);
        for filter in [many, wide, only_time, Filter::new()] {
            for sort in [Sort::Seq, Sort::OccurredAt] {
                for page in [PageRequest::first(), PageRequest::first().ascending()] {
                    let mut page = page.sort(sort).limit(70);
                    for _ in 0..2 {
                        let next = check(&fixture, &entries, &filter, &page).await.unwrap();
                        page = page.after(next);
                    }
                    let place = &entries[random.below(entries.len() as u64) as usize];
                    check(&fixture, &entries, &filter, &page.after(place.position())).await;
                }
            }
        }
    }
    check_random(&fixture, &mut random, &entries, 40).await;
}

#[tokio::test]
async fn what_was_pruned_or_erased_is_in_no_list() {
    let fixture = Fixture::new();
    let mut random = Random::new(3);
    append(&fixture, &mut random, 2_500).await;
    index_to(&fixture, 1_500).await;
    let before = all(&fixture).await;

    let targets: Vec<Entry> = before.iter().step_by(7).cloned().collect();
    let ids = targets.iter().map(|entry| entry.id).collect();
    let erasure = Erasure::new(ids, basis("gdpr-17"), fixture.act(&scope(1)));
    fixture.store().erase(&scope(1), &erasure).await.unwrap();
    // Before the index is told, it still gives the old positions.
    check_random(&fixture, &mut random, &all(&fixture).await, 40).await;
    let seqs: Vec<u64> = targets.iter().map(|entry| entry.seq).collect();
    let current = fixture.store().at(&scope(1), &seqs).await.unwrap();
    fixture
        .store()
        .search_index()
        .remove(&scope(1), &current)
        .await
        .unwrap();
    check_random(&fixture, &mut random, &all(&fixture).await, 40).await;

    let prune = Prune::new(
        before[900].created_at,
        basis("retention"),
        fixture.act(&scope(1)),
    );
    let pruned = fixture.store().prune(&scope(1), &prune).await.unwrap();
    assert!(pruned.below > 0);
    check_random(&fixture, &mut random, &all(&fixture).await, 40).await;
    fixture.sweep_all().await;
    check_random(&fixture, &mut random, &all(&fixture).await, 40).await;
    let index = fixture.store().search_index();
    while index
        .drop_below(tenant(1), pruned.below, 100)
        .await
        .unwrap()
    {}
    check_random(&fixture, &mut random, &all(&fixture).await, 40).await;
    index_to(&fixture, 2_400).await;
    check_random(&fixture, &mut random, &all(&fixture).await, 40).await;
}

#[tokio::test]
async fn a_damaged_index_costs_no_entry() {
    let mut fixture = Fixture::new();
    let mut random = Random::new(4);
    append(&fixture, &mut random, 2_000).await;
    let entries = all(&fixture).await;
    index_to(&fixture, 1_900).await;
    fixture.reopen();
    let path = fixture.folder.path().join("audit.index.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // The first pages, with the tables' names and roots, stay as they are.
    let rest = bytes.len() / 4;
    for (i, byte) in bytes[rest..].iter_mut().enumerate() {
        *byte = (i % 251) as u8;
    }
    std::fs::write(&path, bytes).unwrap();
    check_random(&fixture, &mut random, &entries, 40).await;
    fixture.reopen();
    check_random(&fixture, &mut random, &entries, 10).await;
    index_to(&fixture, 2_000).await;
    check_random(&fixture, &mut random, &entries, 40).await;
}

#[tokio::test]
async fn an_index_that_begins_late_costs_no_entry() {
    let fixture = Fixture::new();
    let mut random = Random::new(5);
    append(&fixture, &mut random, 600).await;
    let entries = all(&fixture).await;
    fixture
        .store()
        .search_index()
        .index(&entries[250..500])
        .await
        .unwrap();
    check_random(&fixture, &mut random, &entries, 60).await;
}

#[tokio::test]
async fn an_index_of_another_log_costs_no_entry() {
    let mut fixture = Fixture::new();
    let mut random = Random::new(6);
    append(&fixture, &mut random, 600).await;
    index_to(&fixture, 500).await;
    // The log is lost, and begins anew.
    fixture.reopen_after(|folder| std::fs::remove_file(folder.join("audit.db")).unwrap());
    append(&fixture, &mut random, 300).await;
    check_random(&fixture, &mut random, &all(&fixture).await, 40).await;

    // It is restored, and longer than what was indexed.
    index_to(&fixture, 300).await;
    let other = Fixture::new();
    append(&other, &mut random, 700).await;
    let other = other.close();
    fixture.reopen_after(|folder| {
        std::fs::copy(other.path().join("audit.db"), folder.join("audit.db")).unwrap();
    });
    let entries = all(&fixture).await;
    assert!(entries.len() >= 700);
    check_random(&fixture, &mut random, &entries, 40).await;

    // One that is this log's is kept.
    index_to(&fixture, 650).await;
    fixture.reopen();
    let index = fixture.store().search_index();
    assert!(index.indexed_through(&scope(1)).await.unwrap() >= 650);
}
