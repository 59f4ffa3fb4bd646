use audit_core::{
    ActionType, Event, Filter, LogStore, Order, Outcome, Page, PageRequest, Query, RelatedResource,
    Severity, Sort, TenantId, TimeRange, Timestamp,
};

use super::LogStoreHarness;
use crate::fixture::{
    append, event, events, everything, listed, new_tenant, seconds_after, time, trusted,
};

/// Follows `next` to the end.
async fn walk(
    store: &dyn LogStore,
    tenant: TenantId,
    filter: &Filter,
    first: PageRequest,
) -> Vec<u64> {
    let mut seqs = Vec::new();
    let mut request = first;
    loop {
        let page = store
            .list(&trusted(tenant), filter, &request)
            .await
            .expect("a page");
        assert!(page.items.len() <= request.limit);
        if page.items.is_empty() {
            return seqs;
        }
        seqs.extend(page.items.iter().map(|e| e.seq));
        match page.next {
            Some(next) => request = request.after(next),
            None => return seqs,
        }
        assert!(seqs.len() <= 10_000, "pages go round in circles");
    }
}

/// Both sorts, both orders, several page sizes, with times that repeat and go backwards.
pub async fn pages_cover_everything_once_in_every_order<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let base = time("2026-01-01T00:00:00Z");
    let minutes = |n: usize| seconds_after(base, 60 * ((n * 7) % 5) as i64);
    let count = 23;
    let all: Vec<Event> = (0..count)
        .map(|n| event(n).user(["ann", "bob"][n % 2]).occurred_at(minutes(n)))
        .collect();
    for part in all.chunks(5) {
        append(store, tenant, part.to_vec()).await;
    }
    let filters = [
        (Filter::new(), (0..count).collect::<Vec<_>>()),
        (
            Filter::new().user("bob"),
            (0..count).filter(|n| n % 2 == 1).collect(),
        ),
    ];
    for (filter, matching) in filters {
        for sort in [Sort::Seq, Sort::OccurredAt] {
            for order in [Order::Ascending, Order::Descending] {
                let mut expected = matching.clone();
                if sort == Sort::OccurredAt {
                    expected.sort_by_key(|&n| (minutes(n), n));
                }
                if order == Order::Descending {
                    expected.reverse();
                }
                let expected: Vec<u64> = expected.into_iter().map(|n| n as u64).collect();
                for limit in [1, 4, count, 1_000] {
                    let mut first = PageRequest::first().sort(sort).limit(limit);
                    first.order = order;
                    let seqs = walk(store, tenant, &filter, first).await;
                    assert_eq!(seqs, expected, "{sort:?} {order:?} by {limit}");
                }
            }
        }
    }
}

fn seqs(page: &Page<audit_core::Entry>) -> Vec<u64> {
    page.items.iter().map(|e| e.seq).collect()
}

/// A descending list ends with `next` none, also when its last page is full.
pub async fn a_page_says_whether_there_is_more<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    for sort in [Sort::Seq, Sort::OccurredAt] {
        let request = PageRequest::first().limit(3).sort(sort);
        let none = store
            .list(&scope, &Filter::new().user("nobody"), &request)
            .await
            .expect("a page");
        assert_eq!((none.items.len(), none.next), (0, None));
    }
    append(store, tenant, events(6)).await;
    for sort in [Sort::Seq, Sort::OccurredAt] {
        let request = PageRequest::first().limit(3).sort(sort);
        let first = store
            .list(&scope, &Filter::new(), &request)
            .await
            .expect("a page");
        assert_eq!(seqs(&first), [5, 4, 3]);
        assert_eq!(first.next, Some(first.items[2].position()));
        let request = request.after(first.next.expect("more"));
        let last = store
            .list(&scope, &Filter::new(), &request)
            .await
            .expect("a page");
        assert_eq!(seqs(&last), [2, 1, 0]);
        assert_eq!(last.next, None);
    }
}

/// Whoever follows the log upwards always has a place to go on from.
pub async fn an_ascending_list_goes_on_when_the_log_has_grown<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let scope = trusted(tenant);
    append(store, tenant, events(3)).await;
    let filter = Filter::new().action_type(ActionType::Update);
    let mut request = PageRequest::first().ascending().limit(10);
    let page = store.list(&scope, &filter, &request).await.expect("a page");
    assert_eq!(seqs(&page), [0, 1, 2]);
    request = request.after(page.next.expect("an ascending list always goes on"));
    let page = store.list(&scope, &filter, &request).await.expect("a page");
    assert!(page.items.is_empty());
    request = request.after(page.next.expect("an ascending list always goes on"));
    append(store, tenant, vec![Event::view("d", "1"), event(4)]).await;
    let page = store.list(&scope, &filter, &request).await.expect("a page");
    assert_eq!(seqs(&page), [4]);
}

/// What is recorded while somebody pages back neither shifts nor repeats anything.
pub async fn appends_between_pages_do_not_disturb_a_descending_list<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    append(store, tenant, events(9)).await;
    let mut request = PageRequest::first().limit(2);
    let mut all = Vec::new();
    loop {
        let page = store
            .list(&trusted(tenant), &Filter::new(), &request)
            .await
            .expect("a page");
        all.extend(seqs(&page));
        append(store, tenant, events(2)).await;
        match page.next {
            Some(next) => request = request.after(next),
            None => break,
        }
    }
    assert_eq!(all, (0..9).rev().collect::<Vec<_>>());
}

/// Eight entries in which every field that a filter knows takes two values.
async fn alternating(store: &dyn LogStore, tenant: TenantId) {
    let mut all = Vec::new();
    for n in 0..8 {
        let even = n % 2 == 0;
        let pick = |a: &'static str, b: &'static str| if even { a } else { b };
        let kind = if even {
            ActionType::Create
        } else {
            ActionType::Delete
        };
        let event = Event::new(kind, pick("invoice", "order"), pick("a'1", "b%_"))
            .action(pick("invoice.create", "order.delete"))
            .outcome(if even {
                Outcome::Success
            } else {
                Outcome::Denied
            })
            .severity(if even {
                Severity::Info
            } else {
                Severity::Critical
            })
            .user(pick("ann", "Ann"))
            .session_id(pick("s1", "s 2"))
            .request_id(pick("r1", "r2"))
            .trace_id(pick("t1", "t2"))
            .ip_address(
                pick("192.0.2.1", "2001:db8::1")
                    .parse()
                    .expect("an address"),
            )
            .related(RelatedResource::new("group", "shared"))
            .related(RelatedResource::new("group", pick("g1", "g2")))
            .reason(pick("first light", "second light"));
        all.push(event);
    }
    append(store, tenant, all).await;
}

/// Equality is exact: case, wildcards and quotes count.
pub async fn each_filter_field_selects_its_entries<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    alternating(store, tenant).await;
    let odd = [1, 3, 5, 7];
    let address: std::net::IpAddr = "2001:0db8:0::1".parse().expect("an address");
    for filter in [
        Filter::new().user("Ann"),
        Filter::new().session("s 2"),
        Filter::new().action_type(ActionType::Delete),
        Filter::new().action("order.delete"),
        Filter::new().resource_type("order"),
        Filter::new().resource_id("b%_"),
        Filter::new().related_id("g2"),
        Filter::new().severity(Severity::Critical),
        Filter::new().outcome(Outcome::Denied),
        Filter::new().ip_address(address),
        Filter::new().request("r2"),
        Filter::new().trace("t2"),
        Filter::new().text(Query::parse("SECOND").expect("a query")),
    ] {
        assert_eq!(listed(store, tenant, &filter).await, odd, "{filter:?}");
    }
    let mapped: std::net::IpAddr = "::ffff:192.0.2.1".parse().expect("an address");
    let filter = Filter::new().ip_address(mapped);
    assert_eq!(listed(store, tenant, &filter).await, [0, 2, 4, 6]);
    for filter in [
        Filter::new().user("ANN"),
        Filter::new().user(""),
        Filter::new().resource_id("b%"),
        Filter::new().resource_id("a1"),
        Filter::new().action("order"),
        Filter::new().related_id("group"),
        Filter::new().severity(Severity::Warning),
    ] {
        assert!(
            listed(store, tenant, &filter).await.is_empty(),
            "{filter:?}"
        );
    }
}

/// Values of one field are alternatives, fields are all needed.
pub async fn conditions_are_anded_and_values_are_ored<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    alternating(store, tenant).await;
    let all: Vec<u64> = (0..8).collect();
    for (filter, expected) in [
        (Filter::new().user("ann").user("Ann"), &all[..]),
        (Filter::new().user("ann").user("nobody"), &[0, 2, 4, 6]),
        (Filter::new().related_id("shared"), &all),
        (Filter::new().related_id("shared").related_id("g1"), &all),
        (Filter::new().user("ann").request("r2"), &[]),
        (
            Filter::new().user("ann").user("Ann").request("r2"),
            &[1, 3, 5, 7],
        ),
        (Filter::new().user("Ann").from_seq(3).to_seq(7), &[3, 5]),
        (
            Filter::new()
                .text(Query::parse("light").expect("a query"))
                .user("ann"),
            &[0, 2, 4, 6],
        ),
    ] {
        assert_eq!(listed(store, tenant, &filter).await, expected, "{filter:?}");
    }
}

/// `from` is in, `to` is not, either may be missing.
pub async fn ranges_are_half_open<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let base = time("2026-01-01T00:00:00Z");
    let at = |n: i64| seconds_after(base, n);
    for n in 0..6 {
        append(store, tenant, vec![event(n).occurred_at(at(n as i64))]).await;
        if let Some(clock) = harness.clock() {
            clock.advance_micros(1);
        }
    }
    let created: Vec<Timestamp> = everything(store, tenant)
        .await
        .iter()
        .map(|e| e.created_at)
        .collect();
    let range = |from: Option<Timestamp>, to: Option<Timestamp>| TimeRange { from, to };
    for (from, to) in [
        (Some(2), Some(4)),
        (None, Some(4)),
        (Some(2), None),
        (None, None),
        (Some(3), Some(3)),
        (Some(4), Some(2)),
    ] {
        let inside = |times: &dyn Fn(usize) -> Timestamp| -> Vec<u64> {
            let (from, to) = (from.map(times), to.map(times));
            (0..6)
                .filter(|&n| from.is_none_or(|f| times(n) >= f) && to.is_none_or(|t| times(n) < t))
                .map(|n| n as u64)
                .collect()
        };
        let by_occurred = |n: usize| at(n as i64);
        let filter = Filter::new().occurred(range(from.map(by_occurred), to.map(by_occurred)));
        assert_eq!(
            listed(store, tenant, &filter).await,
            inside(&by_occurred),
            "{filter:?}"
        );
        let by_created = |n: usize| created[n];
        let filter = Filter::new().created(range(from.map(by_created), to.map(by_created)));
        assert_eq!(
            listed(store, tenant, &filter).await,
            inside(&by_created),
            "{filter:?}"
        );
        let mut filter = Filter::new();
        filter.from_seq = from.map(|n| n as u64);
        filter.to_seq = to.map(|n| n as u64);
        let expected: Vec<u64> = (from.unwrap_or(0) as u64..to.unwrap_or(6) as u64).collect();
        assert_eq!(listed(store, tenant, &filter).await, expected, "{filter:?}");
    }
    let far = Filter::new().from_seq(u64::MAX);
    assert!(listed(store, tenant, &far).await.is_empty());
}

/// `list` evaluates `q` on the entries themselves, however far an index lags.
pub async fn full_text_finds_what_was_just_recorded<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    append(store, tenant, events(3)).await;
    for n in 3..6 {
        let event = event(n)
            .reason("Fußball im Freien")
            .metadata(&[("peer", "10.8.8.10"), ("n", "x-ray")]);
        append(store, tenant, vec![event]).await;
        for q in [
            "FUSSBALL",
            "\"im freien\"",
            "10.8.8.10",
            "peer x-ray",
            "inv",
        ] {
            let filter = Filter::new()
                .text(Query::parse(q).expect("a query"))
                .from_seq(3);
            let expected: Vec<u64> = (3..=n as u64).collect();
            assert_eq!(listed(store, tenant, &filter).await, expected, "{q}");
        }
    }
    for q in ["\"freien im\"", "fuss", "10.8.10"] {
        let filter = Filter::new().text(Query::parse(q).expect("a query"));
        assert!(listed(store, tenant, &filter).await.is_empty(), "{q}");
    }
}

/// A limit of 0 is one entry, and one beyond every number is the largest page.
pub async fn a_pages_limit_is_clamped<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenant = new_tenant(harness.tenants()).await;
    append(harness.store(), tenant, (0..3).map(event).collect()).await;
    for filter in [Filter::new(), Filter::new().outcome(Outcome::Success)] {
        let all = harness
            .store()
            .list(&trusted(tenant), &filter, &PageRequest::first())
            .await
            .expect("a page")
            .items
            .len();
        for (limit, expected) in [(0, 1), (usize::MAX, all)] {
            let mut request = PageRequest::first();
            request.limit = limit;
            let page = harness
                .store()
                .list(&trusted(tenant), &filter, &request)
                .await
                .expect("a page");
            assert_eq!(page.items.len(), expected, "{filter:?} by {limit}");
            assert_eq!(page.next.is_some(), expected < all);
        }
    }
}
