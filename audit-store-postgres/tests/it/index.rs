//! The text index: what it finds, what it forgets, and who may see it.

use audit_core::text::Query;
use audit_core::{
    Clock as _, Entry, ErrorKind, Event, EventId, Filter, Group, LogStore as _, Order,
    PreparedEvent, Prune, SearchIndex, SearchRequest, SystemClock, TimeRange, Timestamp,
};
use audit_store_postgres::PostgresIndex;
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;
use uuid::Uuid;

use crate::fixture::{Database, basis, scope, tenant};

struct Fixture {
    database: Database,
    index: PostgresIndex,
}

impl Fixture {
    async fn new() -> Self {
        let database = Database::open().await;
        let index = database.store.search_index();
        Self { database, index }
    }

    async fn find(&self, owner: u128, q: &str) -> Vec<u64> {
        let request = SearchRequest::new(Filter::new().text(query(q)), 10_000);
        self.hits(owner, &request).await
    }

    async fn hits(&self, owner: u128, request: &SearchRequest) -> Vec<u64> {
        self.index
            .search(&scope(owner), request)
            .await
            .unwrap()
            .seqs
    }
}

impl audit_conformance::SearchIndexHarness for Fixture {
    type Index = PostgresIndex;

    async fn open() -> Self {
        Self::new().await
    }

    fn index(&self) -> &PostgresIndex {
        &self.index
    }
}

mod contract {
    audit_conformance::search_index!(super::Fixture);
}

fn query(q: &str) -> Query {
    Query::parse(q).unwrap()
}

fn entry(owner: u128, seq: u64, event: Event) -> Entry {
    let prepared = PreparedEvent::new(tenant(owner), event, &SystemClock, &[]).unwrap();
    let id = EventId::new(Uuid::from_u128(seq.into()));
    let at = Timestamp::from_micros(1_700_000_000_000_000 + seq as i64 * 1_000_000).unwrap();
    let mut entry = Entry::new(tenant(owner), id, seq, at, prepared.fields().clone());
    entry.occurred_at = at;
    entry
}

/// An entry with these words.
fn speaking(owner: u128, seq: u64, reason: &str) -> Entry {
    entry(
        owner,
        seq,
        Event::view("doc", format!("d{seq}")).reason(reason),
    )
}

/// What is left of it when its reason is gone.
fn silenced(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    entry.fields_mut().clear(Group::Reason);
    entry.erased = vec![Group::Reason];
    entry
}

#[tokio::test]
async fn a_phrase_is_found_wherever_it_stands_and_across_no_boundary() {
    let fixture = Fixture::new().await;
    // Positions of words beyond 16,383, and words that stand more than 255 times.
    let filler = "lorem ipsum ".repeat(10_000);
    let late = entry(
        1,
        0,
        Event::view("doc", "d0").metadata(&serde_json::json!([format!("{filler} needle eye")])),
    );
    let apart = entry(
        1,
        1,
        Event::view("doc", "d1").metadata(&serde_json::json!(["needle", "eye"])),
    );
    fixture.index.index(&[late, apart]).await.unwrap();
    assert_eq!(fixture.find(1, "\"needle eye\"").await, [0]);
    assert_eq!(fixture.find(1, "\"ipsum lorem ipsum\"").await, [0]);
    assert_eq!(fixture.find(1, "needle eye").await, [1, 0]);
    assert_eq!(fixture.find(1, "\"eye needle\"").await, [0; 0]);
}

#[tokio::test]
async fn a_word_of_any_length_and_script_is_found() {
    let fixture = Fixture::new().await;
    let words = [
        "x".repeat(1_000),
        "\u{10428}".repeat(600),
        "Straße".into(),
        "日本語".into(),
        "a'b\\c&d|e!(f):g*<->".into(),
    ];
    for (seq, word) in (0..).zip(&words) {
        let entry = speaking(1, seq, &format!("before {word} after"));
        fixture.index.index(&[entry]).await.unwrap();
    }
    for (seq, word) in (0..).zip(&words) {
        assert_eq!(fixture.find(1, word).await, [seq], "{word}");
    }
    assert_eq!(fixture.find(1, "STRASSE").await, [2]);
    assert_eq!(fixture.find(1, &"x".repeat(999)).await, [0; 0]);
}

#[tokio::test]
async fn the_largest_entry_is_found_by_each_of_its_words() {
    let fixture = Fixture::new().await;
    // As many different words, and pairs of them, as 256 KiB of JSON can hold.
    let mut text = String::new();
    for n in 0_u32.. {
        let word: String = [n / 1296 % 36, n / 36 % 36, n % 36]
            .iter()
            .map(|digit| char::from_digit(*digit, 36).unwrap())
            .collect();
        let word = if n < 46_656 {
            word
        } else {
            format!("{word}{}", n / 46_656)
        };
        if text.len() + word.len() + 10 > 256 * 1024 {
            break;
        }
        text.push_str(&word);
        text.push(' ');
    }
    let event = Event::view("doc", "d0").metadata(&serde_json::json!([text]));
    fixture
        .index
        .index(&[entry(1, 0, event), speaking(1, 1, "small")])
        .await
        .unwrap();
    for q in ["000", "zzz", "0a0", "\"000 001\"", "\"zzy zzz\""] {
        assert_eq!(fixture.find(1, q).await, [0], "{q}");
    }
    assert_eq!(fixture.find(1, "small").await.first(), Some(&1));
    let of_another_user = SearchRequest::new(Filter::new().text(query("000")).user("ann"), 10);
    assert_eq!(fixture.hits(1, &of_another_user).await, [0; 0]);
}

#[tokio::test]
async fn rare_and_common_words_are_found_far_from_the_end_in_both_orders() {
    let fixture = Fixture::new().await;
    let all: Vec<Entry> = (0..6_000)
        .map(|seq| match seq {
            3 | 2_999 | 5_999 => speaking(1, seq, "common rare"),
            _ => speaking(1, seq, "common"),
        })
        .collect();
    fixture.index.index(&all).await.unwrap();
    assert_eq!(fixture.find(1, "rare").await, [5_999, 2_999, 3]);
    let upwards = SearchRequest::new(Filter::new().text(query("rare")), 2).order(Order::Ascending);
    let hits = fixture.index.search(&scope(1), &upwards).await.unwrap();
    assert_eq!((hits.seqs, hits.more), (vec![3, 2_999], true));
    let hits = fixture
        .index
        .search(&scope(1), &upwards.after(Some(2_999)))
        .await
        .unwrap();
    assert_eq!((hits.seqs, hits.more), (vec![5_999], false));
    assert_eq!(fixture.find(1, "common").await.len(), 6_000);
    let range = TimeRange {
        from: Some(all[10].created_at),
        to: Some(all[12].created_at),
    };
    let early = SearchRequest::new(Filter::new().text(query("common")).created(range), 10);
    assert_eq!(fixture.hits(1, &early).await, [11, 10]);
    let occurred = SearchRequest::new(Filter::new().text(query("common")).occurred(range), 10);
    assert_eq!(fixture.hits(1, &occurred).await, [11, 10]);
    let without_words = SearchRequest::new(Filter::new().from_seq(5_990).to_seq(5_993), 10);
    assert_eq!(fixture.hits(1, &without_words).await, [5_992, 5_991, 5_990]);
}

#[tokio::test]
async fn what_was_read_before_an_erasure_does_not_come_back() {
    let fixture = Fixture::new().await;
    let all: Vec<Entry> = (0..10)
        .map(|seq| speaking(1, seq, &format!("secret s{seq}")))
        .collect();
    let left: Vec<Entry> = all.iter().map(silenced).collect();
    let other = fixture.database.again().await.search_index();
    fixture.index.index(&all[..4]).await.unwrap();
    // One process reads on, then 2 and 7 lose their reason.
    let stale = &all[4..];
    fixture
        .index
        .remove(&scope(1), &[left[2].clone(), left[7].clone()])
        .await
        .unwrap();
    other.index(stale).await.unwrap();
    assert_eq!(fixture.find(1, "s7").await, [0; 0]);
    assert_eq!(fixture.find(1, "d7").await, [7]);
    // A process that reads later finds them indexed, and knows better about 8.
    let mut late = all[..].to_vec();
    late[8] = left[8].clone();
    other.index(&late).await.unwrap();
    assert_eq!(fixture.find(1, "secret").await, [9, 6, 5, 4, 3, 1, 0]);
    // Nor does an erasure that was less.
    let mut more = left[8].clone();
    more.fields_mut().clear(Group::Resource);
    more.erased.insert(0, Group::Resource);
    fixture.index.remove(&scope(1), &[more]).await.unwrap();
    fixture
        .index
        .remove(&scope(1), &[left[8].clone()])
        .await
        .unwrap();
    other.index(&late).await.unwrap();
    assert_eq!(fixture.find(1, "d8").await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_indexers_at_once_index_each_entry_once() {
    let fixture = Fixture::new().await;
    let other = fixture.database.again().await.search_index();
    let entries: Vec<Entry> = (0..300)
        .flat_map(|seq| (1..=4).map(move |owner| speaking(owner, seq, &format!("w{seq}"))))
        .collect();
    let indexers: Vec<_> = (0..6)
        .map(|i| {
            let index = [&fixture.index, &other][i % 2].clone();
            let mut entries = entries.clone();
            if i >= 3 {
                entries.sort_by_key(|e| (std::cmp::Reverse(e.tenant_id), e.seq));
            } else {
                entries.sort_by_key(|e| (e.tenant_id, e.seq));
            }
            tokio::spawn(async move {
                for part in entries.chunks(100 + 37 * i) {
                    index.index(part).await.unwrap();
                }
            })
        })
        .collect();
    for indexer in indexers {
        indexer.await.unwrap();
    }
    for owner in 1..=4 {
        assert_eq!(fixture.find(owner, "doc").await.len(), 300);
        assert_eq!(fixture.find(owner, "w299").await, [299]);
        assert_eq!(
            fixture.index.indexed_through(&scope(owner)).await.unwrap(),
            300
        );
    }
}

#[tokio::test]
async fn what_is_swept_from_the_log_leaves_the_index() {
    let fixture = Fixture::new().await;
    let database = &fixture.database;
    for owner in [1, 2] {
        database.append(&scope(owner), 5).await;
    }
    database.clock.advance_micros(1_000_000);
    let before = database.clock.now();
    for owner in [1, 2] {
        database.append(&scope(owner), 5).await;
        let entries = database.store.read(&scope(owner), 0, 10).await.unwrap();
        fixture.index.index(&entries).await.unwrap();
    }
    let prune = Prune::new(before, basis("retention"), database.act(&scope(1)));
    database.store.prune(&scope(1), &prune).await.unwrap();
    database.sweep_all().await;
    assert_eq!(fixture.find(1, "quarterly").await, [9, 8, 7, 6, 5]);
    assert_eq!(fixture.find(2, "quarterly").await.len(), 10);
}

#[tokio::test]
async fn another_tenants_entry_is_not_removed() {
    let fixture = Fixture::new().await;
    let entry = speaking(1, 0, "word");
    fixture
        .index
        .index(std::slice::from_ref(&entry))
        .await
        .unwrap();
    let error = fixture
        .index
        .remove(&scope(2), &[silenced(&entry)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    assert_eq!(fixture.find(1, "word").await, [0]);
}

#[tokio::test]
async fn a_reader_sees_the_documents_of_the_tenant_it_named_and_no_table() {
    let fixture = Fixture::new().await;
    for owner in [1, 2, 2] {
        let seq = fixture.index.indexed_through(&scope(owner)).await.unwrap();
        fixture
            .index
            .index(&[speaking(owner, seq, "same words")])
            .await
            .unwrap();
    }
    let mut reader = fixture.database.connect().await;
    reader.execute("SET ROLE audit_reader").await.unwrap();
    for (named, n) in [
        ("", 0),
        (&*tenant(1).to_string(), 1),
        (&*tenant(2).to_string(), 2),
    ] {
        query_scalar::<_, String>("SELECT set_config('audit.tenant_id', $1, false)")
            .bind(named)
            .fetch_one(&mut reader)
            .await
            .unwrap();
        let seen: i64 = query_scalar("SELECT count(*) FROM audit.tenant_index_documents")
            .fetch_one(&mut reader)
            .await
            .unwrap();
        assert_eq!(seen, n, "{named}");
    }
    for table in [
        "SELECT FROM audit.index_documents",
        "SELECT FROM audit.index_progress",
    ] {
        let error = reader.execute(table).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501");
    }
}

#[tokio::test]
async fn the_tables_may_be_emptied_while_they_are_filled() {
    let fixture = Fixture::new().await;
    let database = &fixture.database;
    database.append(&scope(1), 5).await;
    let all = database.store.read(&scope(1), 0, 10).await.unwrap();
    fixture.index.index(&all[..3]).await.unwrap();
    let mut owner = database.connect().await;
    owner
        .execute("TRUNCATE audit.index_documents, audit.index_progress")
        .await
        .unwrap();
    assert_eq!(fixture.index.indexed_through(&scope(1)).await.unwrap(), 0);
    assert_eq!(fixture.find(1, "quarterly").await, [0; 0]);
    // An indexer that thinks it is at 3 is told to look again.
    let error = fixture.index.index(&all[3..]).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(fixture.index.indexed_through(&scope(1)).await.unwrap(), 0);
    fixture.index.index(&all).await.unwrap();
    assert_eq!(fixture.find(1, "quarterly").await.len(), 5);
}
