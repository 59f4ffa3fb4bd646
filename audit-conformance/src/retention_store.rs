//! The contract of [`RetentionStore`].

use audit_core::retention::{ActionRetention, LegalHold, Retained, Retention, RetentionStore};
use audit_core::tenant::{TenantStore as _, TenantUpdate};
use audit_core::{Clock as _, ErrorKind, Group, SystemClock, TenantId, TenantStatus, Timestamp};
use uuid::Uuid;

use crate::fixture::{
    append, events, everything, hold, kind, new_tenant, release, said, seconds_after, set_status,
    tenant_id, time,
};
use crate::log_store::LogStoreHarness;

fn retention() -> Retention {
    Retention::forever()
        .keep_days(3650)
        .minimum_days(180)
        .action(ActionRetention::new("session.start", 30).groups(&[Group::Context, Group::Actor]))
        .action(ActionRetention::new("invoice.view", 365))
}

fn new_id() -> Uuid {
    SystemClock.event_id().into_uuid()
}

async fn set(store: &dyn RetentionStore, tenant: TenantId, retention: &Retention) -> bool {
    let event = said(tenant);
    let set = store.set_retention(tenant, retention, &event).await;
    set.expect("set")
}

async fn holds(store: &dyn RetentionStore, tenant: TenantId) -> Vec<LegalHold> {
    store.holds(tenant, None, 1_000).await.expect("holds")
}

/// Whole, with an event that says so, and also by a process that comes later.
pub async fn a_retention_is_read_as_it_was_set<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let tenant = new_tenant(tenants).await;
    append(harness.store(), tenant, events(1)).await;
    let none = tenants.retention(tenant).await.expect("an answer");
    assert_eq!(none, Retention::forever());
    let event = said(tenant);
    let wanted = retention();
    let changed = tenants.set_retention(tenant, &wanted, &event).await;
    assert!(changed.expect("set"));
    assert_eq!(tenants.retention(tenant).await.expect("an answer"), wanted);
    let last = everything(harness.store(), tenant).await.pop();
    let last = last.expect("an entry");
    assert_eq!((last.seq, last.id), (1, event.id()));
    // It is replaced, and not merged.
    let other = Retention::forever().minimum_days(1);
    assert!(set(tenants, tenant, &other).await);
    assert_eq!(tenants.retention(tenant).await.expect("an answer"), other);
    let Some(harness) = harness.reopen().await else {
        return;
    };
    let read = harness.tenants().retention(tenant).await;
    assert_eq!(read.expect("an answer"), other);
}

/// So a repeated request says nothing new.
pub async fn a_retention_that_is_set_already_is_no_event<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let tenant = new_tenant(tenants).await;
    assert!(!set(tenants, tenant, &Retention::forever()).await);
    assert!(set(tenants, tenant, &retention()).await);
    assert!(!set(tenants, tenant, &retention()).await);
    assert!(set(tenants, tenant, &Retention::forever()).await);
    assert!(!set(tenants, tenant, &Retention::forever()).await);
    assert_eq!(everything(harness.store(), tenant).await.len(), 2);
}

/// Neither set nor recorded.
pub async fn a_retention_beyond_the_limits_is_refused<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let tenant = new_tenant(tenants).await;
    let wanted = Retention::forever().keep_days(10).minimum_days(11);
    let refused = tenants.set_retention(tenant, &wanted, &said(tenant)).await;
    assert_eq!(kind(refused), Some(ErrorKind::Invalid));
    let none = tenants.retention(tenant).await.expect("an answer");
    assert!(none.is_empty());
    assert!(everything(harness.store(), tenant).await.is_empty());
}

/// Each once, whatever the size of the pages, with whether it is held.
pub async fn tenants_with_a_retention_are_listed_by_id<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let mut ids = Vec::new();
    for n in 0..5 {
        let tenant = new_tenant(tenants).await;
        if n < 4 {
            set(tenants, tenant, &retention()).await;
            ids.push(tenant);
        }
    }
    // This one's is taken back.
    set(tenants, ids[3], &Retention::forever()).await;
    ids.truncate(3);
    let open = hold(tenants, ids[0], "case 7").await;
    let closed = hold(tenants, ids[1], "case 8").await;
    release(tenants, ids[1], &closed).await;
    let held = ids[0];
    ids.sort_unstable();
    for limit in [1, 2, 1_000] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = tenants.retained(after, limit).await.expect("a page");
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.tenant);
            seen.extend(page.into_iter().filter(|r| ids.contains(&r.tenant)));
        }
        let found: Vec<TenantId> = seen.iter().map(|r| r.tenant).collect();
        assert_eq!(found, ids, "by {limit}");
        let is_set = |r: &Retained| r.retention.as_ref().is_ok_and(|r| *r == retention());
        assert!(seen.iter().all(is_set));
        assert!(seen.iter().all(|r| r.is_held == (r.tenant == held)));
    }
    release(tenants, held, &open).await;
}

/// Whole, with an event that says so, and also by a process that comes later.
pub async fn a_hold_is_read_as_it_was_placed<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let tenant = new_tenant(tenants).await;
    let name = "Åkta ./. \"Söhne\" \u{1F600}";
    let placed_at = time("2026-11-24T03:00:00.123456Z");
    let mut placed = LegalHold::new(new_id(), name, placed_at).expect("a hold");
    placed.reason = Some("a court's order".into());
    placed.placed_by = Some("counsel".into());
    let event = said(tenant);
    let done = tenants.place_hold(tenant, &placed, &event).await;
    done.expect("placed");
    assert_eq!(holds(tenants, tenant).await, [placed.clone()]);
    let last = everything(harness.store(), tenant).await.pop();
    assert_eq!(last.expect("an entry").id, event.id());
    let Some(harness) = harness.reopen().await else {
        return;
    };
    assert_eq!(holds(harness.tenants(), tenant).await, [placed]);
}

/// Open and released ones, in pages.
pub async fn holds_are_listed_newest_first<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let tenant = new_tenant(tenants).await;
    let start = time("2026-11-24T03:00:00Z");
    let mut placed = Vec::new();
    // Two in the same microsecond.
    for seconds in [0, 7, 3, 7, 5] {
        let at = seconds_after(start, seconds);
        let hold = LegalHold::new(new_id(), "case", at).expect("a hold");
        let done = tenants.place_hold(tenant, &hold, &said(tenant)).await;
        done.expect("placed");
        placed.push(hold);
    }
    release(tenants, tenant, &placed[2]).await;
    placed.sort_by_key(|hold| std::cmp::Reverse((hold.placed_at, hold.id)));
    let expected: Vec<Uuid> = placed.iter().map(|hold| hold.id).collect();
    for limit in [1, 2, 100] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = tenants.holds(tenant, after, limit).await.expect("a page");
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            seen.extend(page.iter().map(|hold| hold.id));
        }
        assert_eq!(seen, expected, "by {limit}");
    }
    let unknown = tenants.holds(tenant, Some(new_id()), 10).await;
    assert_eq!(unknown.expect("a page"), []);
}

/// The first release counts; another one changes and records nothing.
pub async fn a_hold_is_released_once<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let tenant = new_tenant(tenants).await;
    let placed = hold(tenants, tenant, "case 7").await;
    let at = |seconds| -> Timestamp { seconds_after(placed.placed_at, seconds) };
    let mut expected = placed.clone();
    expected.released_at = Some(at(60));
    for seconds in [60, 120] {
        let released = tenants
            .release_hold(tenant, placed.id, at(seconds), &said(tenant))
            .await;
        assert_eq!(released.expect("released"), expected);
    }
    assert_eq!(holds(tenants, tenant).await, [expected]);
    assert_eq!(everything(harness.store(), tenant).await.len(), 2);
    let unknown = tenants
        .release_hold(tenant, new_id(), at(180), &said(tenant))
        .await;
    assert_eq!(kind(unknown), Some(ErrorKind::NotFound));
    assert_eq!(everything(harness.store(), tenant).await.len(), 2);
}

/// Released ones don't count.
pub async fn open_holds_are_limited<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let tenant = new_tenant(tenants).await;
    let first = hold(tenants, tenant, "case 0").await;
    for n in 1..LegalHold::MAX_OPEN {
        hold(tenants, tenant, &format!("case {n}")).await;
    }
    let one_more = LegalHold::new(new_id(), "too many", SystemClock.now()).expect("a hold");
    let refused = tenants.place_hold(tenant, &one_more, &said(tenant)).await;
    assert_eq!(kind(refused), Some(ErrorKind::Refused));
    let entries = everything(harness.store(), tenant).await.len();
    assert_eq!(entries, LegalHold::MAX_OPEN);
    release(tenants, tenant, &first).await;
    let placed = tenants.place_hold(tenant, &one_more, &said(tenant)).await;
    placed.expect("placed");
}

/// Also when it was released.
pub async fn a_taken_hold_id_is_a_conflict<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let tenant = new_tenant(tenants).await;
    let placed = hold(tenants, tenant, "case 7").await;
    for _ in 0..2 {
        let again = tenants.place_hold(tenant, &placed, &said(tenant)).await;
        assert_eq!(kind(again), Some(ErrorKind::Conflict));
        release(tenants, tenant, &placed).await;
    }
    assert_eq!(everything(harness.store(), tenant).await.len(), 2);
    // Ids are taken per tenant.
    let other = new_tenant(tenants).await;
    let placed = tenants.place_hold(other, &placed, &said(other)).await;
    placed.expect("placed");
}

/// Neither shows nor releases them.
pub async fn no_tenant_has_anothers_holds<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let (one, other) = (new_tenant(tenants).await, new_tenant(tenants).await);
    set(tenants, one, &retention()).await;
    let placed = hold(tenants, one, "case 7").await;
    assert_eq!(holds(tenants, other).await, []);
    let none = tenants.retention(other).await.expect("an answer");
    assert!(none.is_empty());
    let released = tenants
        .release_hold(other, placed.id, SystemClock.now(), &said(other))
        .await;
    assert_eq!(kind(released), Some(ErrorKind::NotFound));
    assert_eq!(holds(tenants, one).await, [placed]);
}

/// A closed tenant's log is protected, too.
pub async fn retention_and_holds_change_whatever_the_status<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    for status in [TenantStatus::Inactive, TenantStatus::Suspended] {
        let tenant = new_tenant(tenants).await;
        set_status(tenants, tenant, status).await;
        assert!(set(tenants, tenant, &retention()).await, "{status}");
        let placed = hold(tenants, tenant, "case 7").await;
        release(tenants, tenant, &placed).await;
        assert!(!holds(tenants, tenant).await[0].is_open());
        let listed = tenants.retention(tenant).await.expect("an answer");
        assert_eq!(listed, retention());
    }
}

/// Until it is released; other changes of the tenant go on.
pub async fn a_held_tenant_is_not_deleted<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let tenant = new_tenant(tenants).await;
    let placed = hold(tenants, tenant, "case 7").await;
    let delete = TenantUpdate::default().status(TenantStatus::Deleted);
    let refused = tenants.update_tenant(tenant, &delete, &said(tenant)).await;
    let refused = refused.expect_err("a refusal");
    assert_eq!(refused.kind(), ErrorKind::Refused);
    let id = placed.id.to_string();
    assert!(refused.message().contains(&id), "{refused}");
    assert_eq!(everything(harness.store(), tenant).await.len(), 1);
    set_status(tenants, tenant, TenantStatus::Inactive).await;
    release(tenants, tenant, &placed).await;
    set_status(tenants, tenant, TenantStatus::Deleted).await;
}

/// Nor has one that never was.
pub async fn a_deleted_tenant_has_neither_retention_nor_holds<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenants = harness.tenants();
    let deleted = new_tenant(tenants).await;
    set(tenants, deleted, &retention()).await;
    let placed = hold(tenants, deleted, "case 7").await;
    release(tenants, deleted, &placed).await;
    set_status(tenants, deleted, TenantStatus::Deleted).await;
    for (tenant, expected) in [
        (deleted, ErrorKind::TenantDeleted),
        (tenant_id(), ErrorKind::UnknownTenant),
    ] {
        let event = said(tenant);
        let other = Retention::forever().keep_days(1);
        let hold = LegalHold::new(new_id(), "case", SystemClock.now()).expect("a hold");
        let refusals = [
            kind(tenants.retention(tenant).await),
            kind(tenants.set_retention(tenant, &other, &event).await),
            kind(tenants.holds(tenant, None, 10).await),
            kind(tenants.place_hold(tenant, &hold, &event).await),
            kind(
                tenants
                    .release_hold(tenant, placed.id, SystemClock.now(), &event)
                    .await,
            ),
        ];
        assert_eq!(refusals, [Some(expected); 5]);
    }
    let listed = tenants.retained(None, 100_000).await.expect("a page");
    assert!(listed.iter().all(|r| r.tenant != deleted));
}
