use audit_core::{
    Batch, Erasure, ErrorKind, Event, Filter, Group, LogStore, Lookup, PageRequest, Permission,
    Permissions, Prune, Result, TenantScope, TenantStatus, Timestamp,
};

use super::LogStoreHarness;
use crate::fixture::{
    act, append, basis, event, events, everything, kind, listed, new_tenant, prepare, scan,
    set_status, tenant_id, trusted, try_append,
};

/// Every read within a scope: its name, the permission that it needs, and its outcome.
async fn reads(
    store: &dyn LogStore,
    scope: &TenantScope,
) -> Vec<(&'static str, Permission, Result<()>)> {
    let ids = [audit_core::EventId::new(tenant_id().into_uuid())];
    let page = PageRequest::first();
    vec![
        (
            "get",
            Permission::Read,
            store.get(scope, &ids).await.map(drop),
        ),
        (
            "at",
            Permission::Read,
            store.at(scope, &[0]).await.map(drop),
        ),
        (
            "list",
            Permission::Read,
            store.list(scope, &Filter::new(), &page).await.map(drop),
        ),
        (
            "read",
            Permission::Stream,
            store.read(scope, 0, 10).await.map(drop),
        ),
        (
            "snapshot",
            Permission::Export,
            store.snapshot(scope).await.map(drop),
        ),
        (
            "counters",
            Permission::Read,
            store.counters(scope, 0..100_000).await.map(drop),
        ),
        ("head", Permission::Read, store.head(scope).await.map(drop)),
        (
            "hashes",
            Permission::Read,
            store.hashes(scope, 0, 0..0).await.map(drop),
        ),
    ]
}

/// And every write, none of which finds anything to do but the append.
async fn writes(
    store: &dyn LogStore,
    scope: &TenantScope,
) -> Vec<(&'static str, Permission, Result<()>)> {
    let tenant = scope.tenant();
    let erasure = Erasure::new(Vec::new(), basis("gdpr-17"), act(tenant));
    let prune = Prune::new(Timestamp::MIN, basis("retention"), act(tenant));
    let batch = Batch::new(scope.clone(), vec![prepare(tenant, event(0))]);
    vec![
        (
            "append",
            Permission::Record,
            try_append(store, &batch).await.map(drop),
        ),
        (
            "erase",
            Permission::Erase,
            store.erase(scope, &erasure).await.map(drop),
        ),
        (
            "prune",
            Permission::Cleanup,
            store.prune(scope, &prune).await.map(drop),
        ),
    ]
}

/// Each permission is taken away in turn: exactly the methods that need it are forbidden.
pub async fn every_method_requires_its_permission<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    append(store, tenant, events(2)).await;
    for removed in Permission::ALL {
        let left: Vec<_> = Permission::ALL
            .into_iter()
            .filter(|p| *p != removed)
            .collect();
        let without = trusted(tenant).only(Permissions::of(&left));
        let only = trusted(tenant).only(removed);
        for scope in [without, only] {
            let mut calls = reads(store, &scope).await;
            calls.extend(writes(store, &scope).await);
            for (method, needed, outcome) in calls {
                let expected =
                    (!scope.permissions().contains(needed)).then_some(ErrorKind::Forbidden);
                assert_eq!(
                    kind(outcome),
                    expected,
                    "{method} with {:?}",
                    scope.permissions()
                );
            }
        }
    }
}

/// An inactive tenant's log is closed for new events, and open for reading.
pub async fn an_inactive_tenant_takes_no_writes_and_is_read<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    append(store, tenant, events(1)).await;
    set_status(harness.tenants(), tenant, TenantStatus::Inactive).await;
    let refused = try_append(store, &crate::fixture::batch(tenant, events(1))).await;
    assert_eq!(kind(refused), Some(ErrorKind::TenantClosed));
    for (method, _, outcome) in reads(store, &trusted(tenant)).await {
        assert_eq!(kind(outcome), None, "{method}");
    }
    set_status(harness.tenants(), tenant, TenantStatus::Active).await;
    // The event, and one for each change of status.
    assert_eq!(append(store, tenant, events(1)).await[0].seq, 3);
}

/// Who has left still has a right to be forgotten.
pub async fn an_inactive_tenant_is_still_erased_and_pruned<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let receipts = append(store, tenant, events(2)).await;
    set_status(harness.tenants(), tenant, TenantStatus::Inactive).await;
    let erasure = Erasure::new(vec![receipts[0].id], basis("gdpr-17"), act(tenant));
    assert_eq!(
        store
            .erase(&trusted(tenant), &erasure)
            .await
            .expect("erased")
            .entries,
        1
    );
    let prune = Prune::new(Timestamp::MAX, basis("retention"), act(tenant));
    assert_eq!(
        store
            .prune(&trusted(tenant), &prune)
            .await
            .expect("pruned")
            .entries,
        4
    );
}

/// Neither read nor write, with an event that was on its way too.
pub async fn a_suspended_tenant_refuses_everything<H: LogStoreHarness>() {
    refuses_everything::<H>(TenantStatus::Suspended, ErrorKind::TenantClosed).await;
}

/// Its id is refused for ever, by appends that create tenants too.
pub async fn a_deleted_tenant_refuses_everything<H: LogStoreHarness>() {
    refuses_everything::<H>(TenantStatus::Deleted, ErrorKind::TenantDeleted).await;
}

async fn refuses_everything<H: LogStoreHarness>(status: TenantStatus, expected: ErrorKind) {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    append(store, tenant, events(1)).await;
    set_status(harness.tenants(), tenant, status).await;
    let mut calls = reads(store, &trusted(tenant)).await;
    calls.extend(writes(store, &trusted(tenant)).await);
    for (method, _, outcome) in calls {
        assert_eq!(kind(outcome), Some(expected), "{method}");
    }
    let creating = crate::fixture::batch(tenant, events(1)).creating_tenant();
    assert_eq!(kind(try_append(store, &creating).await), Some(expected));
}

/// A read never makes a tenant.
pub async fn an_unknown_tenant_is_not_read<H: LogStoreHarness>() {
    let harness = H::open().await;
    let scope = trusted(tenant_id());
    let mut calls = reads(harness.store(), &scope).await;
    calls.extend(writes(harness.store(), &scope).await);
    for (method, _, outcome) in calls {
        assert_eq!(kind(outcome), Some(ErrorKind::UnknownTenant), "{method}");
    }
}

/// Two tenants whose logs hold the same ids and contents: each sees its own, by every method.
pub async fn no_method_reads_another_tenant<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (ann, bob) = (
        new_tenant(harness.tenants()).await,
        new_tenant(harness.tenants()).await,
    );
    let shared: Vec<Event> = (0..3)
        .map(|n| event(n).id(audit_core::Clock::event_id(&audit_core::SystemClock)))
        .collect();
    let mut ids = Vec::new();
    for tenant in [ann, bob] {
        ids = append(store, tenant, shared.clone())
            .await
            .iter()
            .map(|r| r.id)
            .collect();
    }
    let only_bob = append(store, bob, vec![event(9).reason("secret")]).await[0].id;
    let scope = trusted(ann);

    let mut found = store.get(&scope, &ids).await.expect("found");
    found.extend(store.get(&scope, &[only_bob]).await.expect("an answer"));
    assert_eq!(found.pop(), Some(Lookup::Missing));
    for lookup in found {
        assert_eq!(lookup.into_entry().expect("an entry").tenant_id, ann);
    }
    let at = store.at(&scope, &[0, 1, 2, 3]).await.expect("entries");
    let read = store.read(&scope, 0, 100).await.expect("entries");
    let list = store
        .list(&scope, &Filter::new(), &PageRequest::first())
        .await
        .expect("a page");
    let scanned = everything(store, ann).await;
    for entries in [at, read, list.items, scanned] {
        assert_eq!(entries.len(), 3);
        assert!(entries.iter().all(|e| e.tenant_id == ann));
    }
    let secret = Filter::new().text(audit_core::Query::parse("secret").expect("a query"));
    assert!(listed(store, ann, &secret).await.is_empty());
    assert!(
        listed(store, ann, &Filter::new().user("user-9"))
            .await
            .is_empty()
    );
    let snapshot = store.snapshot(&scope).await.expect("a snapshot");
    assert!(scan(&*snapshot, &secret).await.is_empty());
    assert_eq!((snapshot.head().tenant, snapshot.head().size()), (ann, 3));
    let counted: u64 = store
        .counters(&scope, 0..100_000)
        .await
        .expect("counters")
        .iter()
        .map(|c| c.count)
        .sum();
    assert_eq!(counted, 3);
    assert_eq!(
        kind(store.hashes(&scope, 0, 0..4).await),
        Some(ErrorKind::NotFound)
    );

    // Nor does a write reach across.
    let erasure = Erasure::new(vec![only_bob, ids[0]], basis("gdpr-17"), act(ann));
    let erased = store
        .erase(&scope, &erasure.groups(&[Group::Reason]))
        .await
        .expect("erased");
    assert_eq!(erased.entries, 1);
    store
        .prune(
            &scope,
            &Prune::new(Timestamp::MAX, basis("retention"), act(ann)),
        )
        .await
        .expect("pruned");
    let kept = everything(store, bob).await;
    assert_eq!(kept.len(), 4);
    assert!(
        kept.iter()
            .all(|e| e.erased.is_empty() && e.fields.reason.is_some())
    );
}
