//! The contract of [`TenantStore`](audit_core::TenantStore).

use std::sync::Arc;

use audit_core::{
    Clock as _, ErrorKind, LogStore as _, SystemClock, TenantFilter, TenantStatus,
    TenantStore as _, TenantUpdate,
};

use crate::fixture::{
    append, event, events, everything, kind, new_tenant, prepare, said, set_status, tenant,
    tenant_id, trusted,
};
use crate::log_store::LogStoreHarness;

/// With its secret, from which other keys follow.
pub async fn a_tenant_is_read_as_it_was_created<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let mut made = tenant(tenant_id(), "Ångström & Söhne 'GmbH' \u{1F600}");
    made.public_log = true;
    assert_eq!(
        harness.tenants().tenant(made.id).await.expect("an answer"),
        None
    );
    harness
        .tenants()
        .create_tenant(&made)
        .await
        .expect("created");
    assert_eq!(
        harness.tenants().tenant(made.id).await.expect("an answer"),
        Some(made.clone())
    );
    assert_eq!(
        store.head(&trusted(made.id)).await.expect("a head").size(),
        0
    );
    let Some(harness) = harness.reopen().await else {
        return;
    };
    assert_eq!(
        harness.tenants().tenant(made.id).await.expect("an answer"),
        Some(made)
    );
}

/// Creating again changes nothing.
pub async fn a_taken_id_is_a_conflict<H: LogStoreHarness>() {
    let harness = H::open().await;
    let id = new_tenant(harness.tenants()).await;
    let before = harness.tenants().tenant(id).await.expect("an answer");
    let again = harness.tenants().create_tenant(&tenant(id, "other")).await;
    assert_eq!(kind(again), Some(ErrorKind::Conflict));
    assert_eq!(
        harness.tenants().tenant(id).await.expect("an answer"),
        before
    );
    // Names may repeat.
    harness
        .tenants()
        .create_tenant(&tenant(tenant_id(), "acme"))
        .await
        .expect("created");
}

/// The change and the event that says so are one transaction.
pub async fn an_update_is_an_event_of_the_tenant<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let id = new_tenant(harness.tenants()).await;
    append(store, id, events(1)).await;
    let event = said(id);
    let update = TenantUpdate::default().name("renamed");
    let updated = harness
        .tenants()
        .update_tenant(id, &update, &event)
        .await
        .expect("updated");
    assert_eq!(updated.name, "renamed");
    assert_eq!(
        harness.tenants().tenant(id).await.expect("an answer"),
        Some(updated)
    );
    let entries = everything(store, id).await;
    assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(
        (entries[1].id, &*entries[1].fields),
        (event.id(), event.fields())
    );
    assert_eq!(append(store, id, events(1)).await[0].seq, 2);
}

/// What is none stays.
pub async fn an_update_changes_only_what_it_names<H: LogStoreHarness>() {
    let harness = H::open().await;
    let id = new_tenant(harness.tenants()).await;
    let first = harness
        .tenants()
        .tenant(id)
        .await
        .expect("an answer")
        .expect("a tenant");
    let inactive = TenantUpdate::default().status(TenantStatus::Inactive);
    let updated = harness
        .tenants()
        .update_tenant(id, &inactive, &said(id))
        .await
        .expect("updated");
    let mut expected = first;
    expected.status = TenantStatus::Inactive;
    assert_eq!(updated, expected);
    let renamed = TenantUpdate::default().name("renamed");
    expected.name = "renamed".into();
    assert_eq!(
        harness
            .tenants()
            .update_tenant(id, &renamed, &said(id))
            .await
            .expect("updated"),
        expected
    );
    for public in [true, false, true] {
        let update = TenantUpdate::default().public_log(public);
        expected.public_log = public;
        assert_eq!(
            harness
                .tenants()
                .update_tenant(id, &update, &said(id))
                .await
                .expect("updated"),
            expected
        );
    }
    assert_eq!(
        harness.tenants().tenant(id).await.expect("an answer"),
        Some(expected)
    );
}

/// Neither the tenant nor its log.
pub async fn a_refused_update_changes_nothing<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let id = new_tenant(harness.tenants()).await;
    let taken = append(store, id, vec![event(0)]).await[0].id;
    let before = harness.tenants().tenant(id).await.expect("an answer");
    let update = TenantUpdate::default()
        .name("renamed")
        .status(TenantStatus::Inactive);
    let conflicting = prepare(id, event(1).id(taken));
    let refused = harness
        .tenants()
        .update_tenant(id, &update, &conflicting)
        .await;
    assert_eq!(kind(refused), Some(ErrorKind::Conflict));
    let refused = harness
        .tenants()
        .update_tenant(id, &TenantUpdate::default().name(""), &said(id))
        .await;
    assert_eq!(kind(refused), Some(ErrorKind::Invalid));
    assert_eq!(
        harness.tenants().tenant(id).await.expect("an answer"),
        before
    );
    assert_eq!(everything(store, id).await.len(), 1);
    let unknown = tenant_id();
    let refused = harness
        .tenants()
        .update_tenant(unknown, &update, &said(unknown))
        .await;
    assert_eq!(kind(refused), Some(ErrorKind::UnknownTenant));
    assert_eq!(
        harness.tenants().tenant(unknown).await.expect("an answer"),
        None
    );
}

/// A tenant that takes no events still takes the one that opens it again.
pub async fn an_update_works_whatever_the_status<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let id = new_tenant(harness.tenants()).await;
    use TenantStatus::{Active, Inactive, Suspended};
    for status in [Inactive, Suspended, Inactive, Active, Suspended, Active] {
        set_status(harness.tenants(), id, status).await;
        let now = harness
            .tenants()
            .tenant(id)
            .await
            .expect("an answer")
            .expect("a tenant");
        assert_eq!(now.status, status);
    }
    assert_eq!(everything(store, id).await.len(), 6);
}

/// Its id is never free again.
pub async fn a_deleted_tenant_is_a_tombstone_for_ever<H: LogStoreHarness>() {
    let harness = H::open().await;
    let id = new_tenant(harness.tenants()).await;
    set_status(harness.tenants(), id, TenantStatus::Deleted).await;
    let update = TenantUpdate::default().status(TenantStatus::Active);
    let refused = harness
        .tenants()
        .update_tenant(id, &update, &said(id))
        .await;
    assert_eq!(kind(refused), Some(ErrorKind::TenantDeleted));
    let refused = harness.tenants().create_tenant(&tenant(id, "again")).await;
    assert_eq!(kind(refused), Some(ErrorKind::TenantDeleted));
    let tombstone = harness
        .tenants()
        .tenant(id)
        .await
        .expect("an answer")
        .expect("a tombstone");
    assert_eq!(tombstone.status, TenantStatus::Deleted);
}

/// Each once, in the order of their ids.
pub async fn tenants_are_listed_in_pages_by_id<H: LogStoreHarness>() {
    let harness = H::open().await;
    let name = format!("pages {}", SystemClock.event_id());
    let mut ids = Vec::new();
    for _ in 0..7 {
        let made = tenant(tenant_id(), &name);
        harness
            .tenants()
            .create_tenant(&made)
            .await
            .expect("created");
        ids.push(made.id);
    }
    ids.sort_unstable();
    let filter = TenantFilter::all().name(&name);
    for limit in [1, 3, 7, 100] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = harness
                .tenants()
                .tenants(&filter, after, limit)
                .await
                .expect("a page");
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            seen.extend(page.iter().map(|t| t.id));
        }
        assert_eq!(seen, ids, "by {limit}");
    }
}

/// Names are exact.
pub async fn tenants_are_found_by_name_and_status<H: LogStoreHarness>() {
    let harness = H::open().await;
    let name = format!("Found {}", SystemClock.event_id());
    let (open, closed) = (tenant(tenant_id(), &name), tenant(tenant_id(), &name));
    let other = tenant(tenant_id(), &name.to_lowercase());
    for made in [&open, &closed, &other] {
        harness
            .tenants()
            .create_tenant(made)
            .await
            .expect("created");
    }
    set_status(harness.tenants(), closed.id, TenantStatus::Inactive).await;
    let both = harness
        .tenants()
        .tenants(&TenantFilter::all().name(&name), None, 10)
        .await
        .expect("a page");
    assert_eq!(both.len(), 2);
    for (status, expected) in [
        (TenantStatus::Active, vec![open.id]),
        (TenantStatus::Inactive, vec![closed.id]),
        (TenantStatus::Suspended, vec![]),
    ] {
        let filter = TenantFilter::all().name(&name).status(status);
        let found = harness
            .tenants()
            .tenants(&filter, None, 10)
            .await
            .expect("a page");
        assert_eq!(
            found.iter().map(|t| t.id).collect::<Vec<_>>(),
            expected,
            "{status}"
        );
    }
}

/// Two that make the same tenant don't both think that its secret is theirs.
pub async fn one_of_several_creators_wins<H: LogStoreHarness>() {
    let harness = Arc::new(H::open().await);
    let id = tenant_id();
    let creators: Vec<_> = (0..8)
        .map(|n| {
            let harness = harness.clone();
            let made = tenant(id, &format!("creator {n}"));
            tokio::spawn(async move { (harness.tenants().create_tenant(&made).await, made) })
        })
        .collect();
    let mut winners = Vec::new();
    for creator in creators {
        match creator.await.expect("a creator") {
            (Ok(()), made) => winners.push(made),
            (Err(error), _) => assert_eq!(error.kind(), ErrorKind::Conflict),
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(
        harness.tenants().tenant(id).await.expect("an answer"),
        winners.pop()
    );
}
