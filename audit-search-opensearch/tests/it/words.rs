//! What is found, and what the mapping is left with.

use audit_core::text::Query;
use audit_core::{Event, Group, SearchIndex};
use audit_search_opensearch::Layout;
use opensearch::http::Method;
use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, entry, find, request, scope, tenant};

#[tokio::test]
async fn a_query_finds_what_it_matches() {
    let cluster = Cluster::new(Layout::Shared);
    let index = cluster.index();
    let long = "x".repeat(400);
    let all = [
        Event::view("doc", "d-1")
            .reason("Quarterly close of books")
            .metadata(&json!({"ip": "10.8.8.10", "n": [12.5], "größe": "a\u{301}b"})),
        Event::view("doc", "d-2")
            .reason("Straße 10.8.8.10, ΣΑΣ_x ŉ İstanbul ﬃ ΐ")
            .metadata(&json!([-7, 1e300, true, null, {"": {"k": "v w"}}, "日本語 ١٢٣"])),
        Event::view("Ⅷ ½ ǆ \u{1F150} 𝟙 𐐀", &long).user("ann@example.org"),
        Event::view("doc", "\u{0}x".trim_start_matches('\u{0}'))
            .metadata(&json!({"a": ["b", "c"]})),
    ]
    .into_iter()
    .enumerate()
    .map(|(seq, event)| entry(1, seq as u64, event))
    .collect::<Vec<_>>();
    index.index(&all).await.unwrap();
    let nearly = format!("{}y", "x".repeat(399));
    let mut found = 0;
    for q in [
        "quarterly books",
        "\"close of\"",
        "10.8.8.10",
        "ip",
        "12.5",
        "D-1 QUARTERLY",
        "\"of close\"",
        "10.8.10",
        "quarter",
        "\"1 quarterly\"",
        "close missing",
        "strasse",
        "STRASSE",
        "σασ",
        "ΣΑΣ",
        "x",
        "\"σασ x\"",
        "größe",
        "GRÖSSE",
        "ŉ",
        "ʼN",
        "istanbul",
        "İSTANBUL",
        "ffi",
        "FFI",
        "ΐ",
        "7",
        "\"-7\"",
        "1e300",
        "300",
        "true",
        "null",
        "\"v w\"",
        "\"k v\"",
        "日本語",
        "日本",
        "١٢٣",
        "123",
        "ⅷ",
        "½",
        "Ǆ",
        "𝟙",
        "𐐨",
        "𐐀",
        &long,
        &nearly,
        "ann@example.org",
        "\"example ann\"",
        "\"b c\"",
        "b c",
        "a.b",
        "doc",
        "action_type",
        "doc.view",
        "view",
    ] {
        let query = Query::parse(q).unwrap();
        let mut expected: Vec<u64> = all
            .iter()
            .filter(|entry| query.matches(&entry.fields))
            .map(|entry| entry.seq)
            .collect();
        expected.reverse();
        found += expected.len();
        // Exactly these, before anyone has checked them.
        assert_eq!(find(&index, 1, q).await, expected, "{q}");
    }
    assert!(found > 40, "{found}");
}

#[tokio::test]
async fn ten_thousand_keys_make_no_new_field() {
    for layout in [Layout::Shared, Layout::PerTenant] {
        let cluster = Cluster::new(layout);
        let index = cluster.index();
        index
            .index(&[entry(1, 0, Event::view("doc", "d"))])
            .await
            .unwrap();
        let mapping = format!("/{}/_mapping", cluster.live(tenant(1)));
        let before = request(Method::Get, &mapping, None).await;
        let keys: Map<String, Value> = (0..10_000).map(|n| (format!("key{n}"), json!(n))).collect();
        let event = Event::view("doc", "d").metadata(&keys);
        index.index(&[entry(1, 1, event)]).await.unwrap();
        assert_eq!(find(&index, 1, "key9999").await, [1]);
        assert_eq!(find(&index, 1, "\"key77 77\"").await, [0; 0]);
        assert_eq!(request(Method::Get, &mapping, None).await, before);
    }
}

#[tokio::test]
async fn the_largest_entries_are_indexed_whole() {
    let cluster = Cluster::new(Layout::Shared);
    let index = cluster.index();
    // 256 KiB of the words that take most space, and of the most words.
    let wide = "ΐ".repeat(128 * 1024 - 20);
    let many = vec![7; 128 * 1024 - 20];
    let all = [
        entry(1, 0, Event::view("doc", "d").metadata(&wide)),
        entry(1, 1, Event::view("doc", "d").metadata(&many)),
        entry(
            1,
            2,
            Event::view("doc", "d").metadata(&"ab ".repeat(80_000)),
        ),
    ];
    for part in all.chunks(1) {
        index.index(part).await.unwrap();
    }
    assert_eq!(find(&index, 1, &"ΐ".repeat(256)).await, [0]);
    assert_eq!(find(&index, 1, "7").await, [1]);
    assert_eq!(find(&index, 1, "\"ab ab ab\"").await, [2]);
    let again: Vec<_> = (3..60)
        .map(|seq| entry(1, seq, Event::view("doc", "d").metadata(&many)))
        .collect();
    index.index(&again).await.unwrap();
    assert_eq!(index.indexed_through(&scope(1)).await.unwrap(), 60);
    assert_eq!(find(&index, 1, "7").await.len(), 58);
}

#[tokio::test]
async fn what_is_erased_is_not_kept_as_a_value_either() {
    let cluster = Cluster::new(Layout::Shared);
    let index = cluster.index();
    let mut all = [entry(1, 0, Event::view("doc", "d").user("ann").reason("r"))];
    index.index(&all).await.unwrap();
    all[0].fields_mut().clear(Group::Actor);
    all[0].erased = vec![Group::Actor];
    index.remove(&scope(1), &all).await.unwrap();
    let live = cluster.live(tenant(1));
    let path = format!("/{live}/_count");
    for (field, count) in [("user_id", 0), ("text", 0), ("resource_type", 1)] {
        let value = if field == "resource_type" {
            "doc"
        } else {
            "ann"
        };
        let body = json!({"query": {"term": {field: value}}});
        let counted = request(Method::Post, &path, Some(body)).await;
        assert_eq!(counted["count"], count, "{field}");
    }
    // Nor is there a source to read it from.
    let path = format!("/{live}/_search");
    let found = request(Method::Get, &path, None).await;
    for hit in found["hits"]["hits"].as_array().unwrap() {
        let kept = hit["_source"].as_object().unwrap();
        assert!(kept.keys().all(|key| key == "through"), "{hit}");
    }
}
