use audit_core::{Control, ErrorKind, Event, EventId, Filter, Kind, LogStore as _};

use super::LogStoreHarness;
use crate::fixture::{
    append, batch, event, events, everything, key_change, kind, listed, new_tenant, tenant_id,
    trusted, try_append,
};

/// However often it is made; the log goes on behind it, and other logs don't know.
pub async fn a_declaration_is_one_control_entry<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let other = new_tenant(harness.tenants()).await;
    append(store, tenant, events(2)).await;
    append(store, other, events(1)).await;
    let (scope, id) = (trusted(tenant), EventId::new(tenant_id().into_uuid()));
    let declaration = key_change(tenant, id);
    let first = store.declare(&scope, &declaration).await.expect("declared");
    assert_eq!((first.id, first.seq, first.duplicate), (id, 2, false));
    let again = key_change(tenant, id);
    let again = store
        .declare(&scope, &again)
        .await
        .expect("declared before");
    assert!(again.duplicate);
    assert_eq!((again.seq, again.leaf_hash), (2, first.leaf_hash));
    assert_eq!(append(store, tenant, vec![event(9)]).await[0].seq, 3);
    let found = listed(store, tenant, &Filter::new().action("log.key")).await;
    assert_eq!(found, [2]);
    let entry = &everything(store, tenant).await[2];
    assert_eq!(entry.kind, Kind::Key);
    assert!(matches!(entry.control(), Some(Control::Key { .. })));
    assert_eq!(everything(store, other).await.len(), 1);
}

/// And nothing of it is stored.
pub async fn a_declaration_under_a_taken_id_is_a_conflict<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let id = EventId::new(tenant_id().into_uuid());
    let taken = batch(tenant, vec![Event::view("a", "b").id(id)]);
    try_append(store, &taken).await.expect("appended");
    let declaration = key_change(tenant, id);
    let refused = store.declare(&trusted(tenant), &declaration).await;
    assert_eq!(kind(refused), Some(ErrorKind::Conflict));
    assert_eq!(everything(store, tenant).await.len(), 1);
}
