//! The contract of [`CredentialStore`].

use std::future::Future;
use std::sync::Arc;

use audit_core::{
    ApiKey, Clock as _, CredentialStore, ErrorKind, Permission, Permissions, Role, SecretHash,
    SystemClock, TenantId, TenantStore, Ticket, Timestamp,
};
use uuid::Uuid;

use crate::fixture::{kind, new_tenant, seconds_after, time, trusted};

/// Opens a credential store for a contract.
pub trait CredentialStoreHarness: Sized + Send + Sync + 'static {
    /// The store, or a wrapper around one.
    type Store: CredentialStore + TenantStore;

    /// Opens a store. It may hold other contracts' tenants.
    fn open() -> impl Future<Output = Self> + Send;

    /// The store.
    fn store(&self) -> &Self::Store;
}

fn secret() -> SecretHash {
    SystemClock.secret()
}

fn now() -> Timestamp {
    time("2026-11-24T03:00:00Z")
}

fn key(tenant: TenantId, name: &str) -> ApiKey {
    ApiKey::new(
        SystemClock.event_id().into_uuid(),
        tenant,
        name,
        Role::User,
        now(),
    )
}

async fn added<S: CredentialStore>(store: &S, key: &ApiKey) -> SecretHash {
    let hash = secret();
    store
        .add_key(&trusted(key.tenant), key, &hash)
        .await
        .expect("added");
    hash
}

/// Whole, and by no other secret.
pub async fn a_key_is_found_by_its_secret<H: CredentialStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let mut made = key(tenant, "CI é");
    made.role = Role::TenantAdmin;
    made.permissions = Permissions::of(&[Permission::Read, Permission::Erase]);
    made.expires_at = Some(seconds_after(now(), 3_600));
    let hash = added(store, &made).await;
    assert_eq!(store.find_key(&hash).await.expect("an answer"), Some(made));
    assert_eq!(store.find_key(&secret()).await.expect("an answer"), None);
    assert_eq!(store.find_key(&[0; 32]).await.expect("an answer"), None);
}

/// Whoever authenticates says "expired" instead of "unknown".
pub async fn an_expired_key_is_still_found<H: CredentialStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let mut made = key(tenant, "old");
    made.expires_at = Some(Timestamp::MIN);
    let hash = added(store, &made).await;
    assert_eq!(store.find_key(&hash).await.expect("an answer"), Some(made));
}

/// At once, and for ever.
pub async fn a_revoked_key_is_gone<H: CredentialStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let scope = trusted(tenant);
    let (gone, kept) = (key(tenant, "gone"), key(tenant, "kept"));
    let (gone_hash, kept_hash) = (added(store, &gone).await, added(store, &kept).await);
    assert!(store.revoke_key(&scope, gone.id).await.expect("an answer"));
    assert_eq!(store.find_key(&gone_hash).await.expect("an answer"), None);
    assert_eq!(
        store.find_key(&kept_hash).await.expect("an answer"),
        Some(kept.clone())
    );
    assert_eq!(store.keys(&scope, None, 100).await.expect("keys"), [kept]);
    assert!(!store.revoke_key(&scope, gone.id).await.expect("an answer"));
}

/// Not listed, not revoked, not added.
pub async fn keys_of_another_tenant_are_invisible<H: CredentialStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (ann, bob) = (new_tenant(store).await, new_tenant(store).await);
    let made = key(bob, "bob's");
    let hash = added(store, &made).await;
    assert!(
        store
            .keys(&trusted(ann), None, 100)
            .await
            .expect("keys")
            .is_empty()
    );
    assert!(
        !store
            .revoke_key(&trusted(ann), made.id)
            .await
            .expect("an answer")
    );
    assert_eq!(store.find_key(&hash).await.expect("an answer"), Some(made));
    let foreign = key(bob, "smuggled");
    let refused = store.add_key(&trusted(ann), &foreign, &secret()).await;
    assert_eq!(kind(refused), Some(ErrorKind::Forbidden));
    assert_eq!(
        store
            .keys(&trusted(bob), None, 100)
            .await
            .expect("keys")
            .len(),
        1
    );
}

/// By when they were made, page by page; of those made at once none is left out or shown twice.
pub async fn keys_are_listed_oldest_first<H: CredentialStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    for minutes in [3, 1, 2, 2, 2] {
        let mut made = key(tenant, &minutes.to_string());
        made.created_at = seconds_after(now(), 60 * minutes);
        added(store, &made).await;
    }
    let scope = trusted(tenant);
    let keys = store.keys(&scope, None, 100).await.expect("keys");
    assert_eq!(
        keys.iter().map(|k| k.name.as_str()).collect::<Vec<_>>(),
        ["1", "2", "2", "2", "3"]
    );
    for size in 1..=5 {
        let mut seen: Vec<ApiKey> = Vec::new();
        loop {
            let after = seen.last().map(ApiKey::place);
            let page = store.keys(&scope, after, size).await.expect("keys");
            assert!(page.len() <= size);
            if page.is_empty() {
                break;
            }
            seen.extend(page);
        }
        assert_eq!(seen, keys, "pages of {size}");
    }
    assert!(store.keys(&scope, None, 0).await.expect("keys").is_empty());
}

/// Every permission but `keys` is not enough.
pub async fn each_method_on_keys_requires_the_permission<H: CredentialStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let others: Vec<_> = Permission::ALL
        .into_iter()
        .filter(|p| *p != Permission::Keys)
        .collect();
    let scope = trusted(tenant).only(Permissions::of(&others));
    let made = key(tenant, "k");
    let hash = secret();
    let forbidden = Some(ErrorKind::Forbidden);
    assert_eq!(kind(store.add_key(&scope, &made, &hash).await), forbidden);
    assert_eq!(kind(store.keys(&scope, None, 100).await), forbidden);
    assert_eq!(kind(store.revoke_key(&scope, made.id).await), forbidden);
    let scope = trusted(tenant).only(Permission::Keys);
    store.add_key(&scope, &made, &hash).await.expect("added");
    assert_eq!(store.keys(&scope, None, 100).await.expect("keys").len(), 1);
    assert!(store.revoke_key(&scope, made.id).await.expect("an answer"));
}

/// So that unused keys can be told and revoked.
pub async fn a_touched_key_says_when<H: CredentialStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let (used, unused) = (key(tenant, "used"), key(tenant, "unused"));
    let (used_hash, unused_hash) = (added(store, &used).await, added(store, &unused).await);
    let at = seconds_after(now(), 60);
    store.touch_key(used.id, at).await.expect("touched");
    store
        .touch_key(Uuid::nil(), at)
        .await
        .expect("a key that is gone is no error");
    let last = |key: Option<ApiKey>| key.expect("a key").last_used_at;
    assert_eq!(
        last(store.find_key(&used_hash).await.expect("an answer")),
        Some(at)
    );
    assert_eq!(
        last(store.find_key(&unused_hash).await.expect("an answer")),
        None
    );
}

/// Of sixteen that try at once, one gets it.
pub async fn a_ticket_is_taken_once_by_concurrent_takers<H: CredentialStoreHarness>() {
    let harness = Arc::new(H::open().await);
    let tenant = new_tenant(harness.store()).await;
    for _ in 0..5 {
        let hash = secret();
        let mut ticket = Ticket::new(tenant, "ann", seconds_after(now(), 60));
        ticket.session_expires_at = Some(seconds_after(now(), 3_600));
        harness
            .store()
            .put_ticket(&hash, &ticket, now())
            .await
            .expect("kept");
        let takers: Vec<_> = (0..16)
            .map(|_| {
                let harness = harness.clone();
                tokio::spawn(async move { harness.store().take_ticket(&hash, now()).await })
            })
            .collect();
        let mut taken = Vec::new();
        for taker in takers {
            taken.extend(taker.await.expect("a taker").expect("an answer"));
        }
        assert_eq!(taken, [ticket]);
    }
}

/// A ticket is good until, and not at, its end.
pub async fn an_expired_or_unknown_ticket_is_not_taken<H: CredentialStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let end = seconds_after(now(), 60);
    let ticket = Ticket::new(tenant, "ann", end);
    let (late, timely, early) = (secret(), secret(), secret());
    for hash in [&late, &timely, &early] {
        store.put_ticket(hash, &ticket, now()).await.expect("kept");
    }
    assert_eq!(
        store
            .take_ticket(&secret(), now())
            .await
            .expect("an answer"),
        None
    );
    assert_eq!(
        store.take_ticket(&late, end).await.expect("an answer"),
        None
    );
    let just = Timestamp::from_micros(end.as_micros() - 1).expect("in range");
    assert_eq!(
        store.take_ticket(&timely, just).await.expect("an answer"),
        Some(ticket.clone())
    );
    // Putting another removes what has expired.
    let later = Ticket::new(tenant, "bob", seconds_after(end, 60));
    let hash = secret();
    store
        .put_ticket(&hash, &later, seconds_after(end, 1))
        .await
        .expect("kept");
    assert_eq!(
        store.take_ticket(&early, now()).await.expect("an answer"),
        None
    );
    assert_eq!(
        store.take_ticket(&hash, end).await.expect("an answer"),
        Some(later)
    );
}
