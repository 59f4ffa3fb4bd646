//! The index: what it finds, what it forgets, and how it comes back.

use audit_conformance::random::Random;
use audit_core::text::Query;
use audit_core::{
    Entry, ErrorKind, EventId, Fields, Filter, Order, SearchIndex, SearchRequest, TenantScope,
    Timestamp,
};
use audit_store_sqlite::SqliteIndex;
use uuid::Uuid;

use crate::fixture::{scope, tenant};

/// A log of the small world, without a store.
fn log(random: &mut Random, owner: u128, n: u64) -> Vec<Entry> {
    let clock = audit_core::ManualClock::new(Timestamp::parse("2026-06-01T00:00:00Z").unwrap());
    (0..n)
        .map(|seq| {
            clock.advance_micros(random.below(100_000_000) as i64);
            let now = audit_core::Clock::now(&clock);
            let event = random.event(now);
            let event = audit_core::PreparedEvent::new(tenant(owner), event, &clock, &[]).unwrap();
            let id = EventId::new(Uuid::from_u128(seq.into()));
            let mut entry = Entry::new(tenant(owner), id, seq, now, event.fields().clone());
            entry.occurred_at = event.occurred_at(now);
            entry
        })
        .collect()
}

async fn find(index: &SqliteIndex, scope: &TenantScope, q: &str) -> Vec<u64> {
    let request = SearchRequest::new(Filter::new().text(Query::parse(q).unwrap()), 1_000);
    index.search(scope, &request).await.unwrap().seqs
}

fn words(entry: &Entry, reason: &str) -> Entry {
    let mut fields = Fields::new(entry.fields.action_type);
    fields.reason = Some(reason.into());
    let mut entry = entry.clone();
    *entry.fields_mut() = fields;
    entry
}

#[tokio::test]
async fn a_search_finds_what_the_query_matches_in_every_entry() {
    let folder = tempfile::tempdir().unwrap();
    let index = SqliteIndex::open(folder.path().join("index.db"), false).unwrap();
    let mut random = Random::new(11);
    let logs = [log(&mut random, 1, 2_500), log(&mut random, 2, 40)];
    for part in logs[0].chunks(911) {
        index.index(part).await.unwrap();
    }
    index.index(&logs[1]).await.unwrap();
    let times: Vec<Timestamp> = logs[0]
        .iter()
        .step_by(50)
        .flat_map(|e| [e.created_at, e.occurred_at])
        .collect();
    for round in 0..300 {
        let owner = usize::from(round % 10 == 0);
        let entries = &logs[owner];
        let filter = random
            .filter(&times, entries.len() as u64)
            .text(random.query());
        let limit = 1 + random.below(40) as usize;
        let order = if random.one_in(2) {
            Order::Ascending
        } else {
            Order::Descending
        };
        let after = random.one_in(2).then(|| random.below(entries.len() as u64));
        let request = SearchRequest::new(filter.clone(), limit)
            .order(order)
            .after(after);
        let hits = index
            .search(&scope(owner as u128 + 1), &request)
            .await
            .unwrap();
        let mut wanted: Vec<u64> = entries
            .iter()
            .filter(|e| filter.matches(e))
            .map(|e| e.seq)
            .collect();
        match (order, after) {
            (Order::Ascending, Some(after)) => wanted.retain(|seq| *seq > after),
            (Order::Descending, Some(after)) => wanted.retain(|seq| *seq < after),
            _ => {}
        }
        if order == Order::Descending {
            wanted.reverse();
        }
        assert_eq!(hits.more, wanted.len() > limit, "{request:?}");
        wanted.truncate(limit);
        assert_eq!(hits.seqs, wanted, "{request:?}");
        assert_eq!(hits.indexed_through, entries.len() as u64);
    }
}

#[tokio::test]
async fn entries_that_are_indexed_already_are_passed_over_and_a_gap_was_pruned() {
    let folder = tempfile::tempdir().unwrap();
    let index = SqliteIndex::open(folder.path().join("index.db"), false).unwrap();
    let entries = log(&mut Random::new(12), 1, 30);
    index.index(&[]).await.unwrap();
    index.index(&entries[..10]).await.unwrap();
    index.index(&entries[5..20]).await.unwrap();
    assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 20);
    index.index(&entries[22..]).await.unwrap();
    index.index(&entries).await.unwrap();
    assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 30);
    let request = SearchRequest::new(Filter::new().severity(entries[7].fields.severity), 1_000);
    let found = index.search(&scope(1), &request).await.unwrap().seqs;
    assert_eq!(found.iter().filter(|seq| **seq == 7).count(), 1);
}

#[tokio::test]
async fn a_search_never_gives_another_tenants_positions() {
    let folder = tempfile::tempdir().unwrap();
    let index = SqliteIndex::open(folder.path().join("index.db"), false).unwrap();
    let entries = log(&mut Random::new(13), 1, 3);
    index
        .index(&[
            words(&entries[0], "shared secret"),
            words(&entries[1], "other"),
        ])
        .await
        .unwrap();
    assert_eq!(find(&index, &scope(1), "secret").await, [0]);
    assert_eq!(find(&index, &scope(2), "secret").await, [0; 0]);
    let blind = scope(1).only(audit_core::Permission::Record);
    let request = SearchRequest::new(Filter::new(), 1);
    assert_eq!(
        index.search(&blind, &request).await.unwrap_err().kind(),
        ErrorKind::Forbidden
    );
    let error = index.remove(&scope(2), &entries).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
}

#[tokio::test]
async fn what_was_removed_is_not_found_and_what_is_left_is() {
    let folder = tempfile::tempdir().unwrap();
    let index = SqliteIndex::open(folder.path().join("index.db"), false).unwrap();
    let entries: Vec<Entry> = log(&mut Random::new(14), 1, 6)
        .iter()
        .map(|entry| words(entry, &format!("personal n{}", entry.seq)))
        .collect();
    index.index(&entries[..4]).await.unwrap();
    let left = |seq: usize| words(&entries[seq], "left over");
    // One of them was read before it lost its words, and comes to the index afterwards.
    index
        .remove(&scope(1), &[left(5), left(2), left(0)])
        .await
        .unwrap();
    index.remove(&scope(1), &[left(2)]).await.unwrap();
    assert_eq!(find(&index, &scope(1), "personal").await, [3, 1]);
    index.index(&entries[4..]).await.unwrap();
    assert_eq!(find(&index, &scope(1), "personal").await, [4, 3, 1]);
    assert_eq!(find(&index, &scope(1), "\"left over\"").await, [5, 2, 0]);
}

#[tokio::test]
async fn what_is_dropped_is_gone_and_its_positions_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let index = SqliteIndex::open(folder.path().join("index.db"), false).unwrap();
    let entries: Vec<Entry> = log(&mut Random::new(15), 1, 60)
        .iter()
        .map(|entry| words(entry, "all"))
        .collect();
    index.index(&entries[..40]).await.unwrap();
    assert!(index.drop_below(tenant(1), 30, 20).await.unwrap());
    assert!(!index.drop_below(tenant(1), 30, 20).await.unwrap());
    assert_eq!(find(&index, &scope(1), "all").await.last(), Some(&30));
    assert!(!index.drop_below(tenant(1), 50, 20).await.unwrap());
    assert_eq!(find(&index, &scope(1), "all").await, [0; 0]);
    index.index(&entries[50..]).await.unwrap();
    assert_eq!(find(&index, &scope(1), "all").await.len(), 10);
}

#[tokio::test]
async fn a_file_that_is_damaged_or_of_another_version_is_built_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.db");
    let entries = log(&mut Random::new(16), 1, 5);
    let damage: [&dyn Fn(); 3] = [
        &|| std::fs::write(&path, "not a database, though long enough to be read").unwrap(),
        &|| {
            let conn = rusqlite::Connection::open(&path).unwrap();
            conn.pragma_update(None, "user_version", 77).unwrap();
        },
        &|| std::fs::remove_file(&path).unwrap(),
    ];
    for damage in damage {
        let index = SqliteIndex::open(&path, false).unwrap();
        index.index(&entries).await.unwrap();
        drop(index);
        let index = SqliteIndex::open(&path, false).unwrap();
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 5);
        drop(index);
        damage();
        // A reader makes do with nothing, and leaves the file alone.
        let reader = SqliteIndex::open(&path, true).unwrap();
        assert_eq!(reader.indexed_through(&scope(1)).await.unwrap(), 0);
        assert_eq!(
            reader.index(&entries).await.unwrap_err().kind(),
            ErrorKind::Refused
        );
        let index = SqliteIndex::open(&path, false).unwrap();
        assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 0);
        index.index(&entries).await.unwrap();
        assert_eq!(reader.indexed_through(&scope(1)).await.unwrap(), 5);
    }
}

struct InFile {
    _folder: tempfile::TempDir,
    index: SqliteIndex,
}

impl audit_conformance::SearchIndexHarness for InFile {
    type Index = SqliteIndex;

    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let index = SqliteIndex::open(folder.path().join("index.db"), false).unwrap();
        Self {
            _folder: folder,
            index,
        }
    }

    fn index(&self) -> &SqliteIndex {
        &self.index
    }
}

mod contract {
    audit_conformance::search_index!(super::InFile);
}
