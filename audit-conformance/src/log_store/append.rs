use std::collections::HashSet;
use std::sync::Arc;

use audit_core::{
    ActorType, Batch, Clock, Control, ErrorKind, Event, EventId, LogStore as _, Lookup, Outcome,
    RelatedResource, Severity, SystemClock, TenantStore as _,
};

use super::LogStoreHarness;
use crate::fixture::{
    act, append, basis, batch, event, events, everything, kind, new_tenant, prepare, tenant_id,
    time, trusted, try_append,
};

/// Many appenders to two tenants at once: every position is given once, none is left out.
pub async fn positions_are_gap_free_under_concurrent_appenders<H: LogStoreHarness>() {
    let harness = Arc::new(H::open().await);
    let tenants = [
        new_tenant(harness.tenants()).await,
        new_tenant(harness.tenants()).await,
    ];
    let mut appenders = Vec::new();
    for appender in 0..16 {
        let harness = harness.clone();
        let tenant = tenants[appender % 2];
        appenders.push(tokio::spawn(async move {
            let mut seqs = Vec::new();
            for round in 0..10 {
                let events = events(1 + round % 3);
                let receipts = append(harness.store(), tenant, events).await;
                let own: Vec<u64> = receipts.iter().map(|r| r.seq).collect();
                assert!(
                    own.windows(2).all(|w| w[0] < w[1]),
                    "in the order of the batch: {own:?}"
                );
                assert!(receipts.iter().all(|r| r.tree_size > r.seq && !r.duplicate));
                seqs.extend(own);
            }
            (tenant, seqs)
        }));
    }
    let mut seqs = Vec::new();
    for appender in appenders {
        seqs.push(appender.await.expect("an appender"));
    }
    for tenant in tenants {
        let mut own: Vec<u64> = seqs
            .iter()
            .filter(|(t, _)| *t == tenant)
            .flat_map(|(_, s)| s.clone())
            .collect();
        own.sort_unstable();
        assert_eq!(own, (0..own.len() as u64).collect::<Vec<_>>());
        let entries = everything(harness.store(), tenant).await;
        assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), own);
        assert!(
            entries
                .windows(2)
                .all(|w| w[0].created_at <= w[1].created_at)
        );
    }
}

/// A batch with one bad event leaves nothing behind.
pub async fn a_batch_is_stored_whole_or_not_at_all<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let taken = append(store, tenant, vec![event(0)]).await[0].id;
    let mut mixed = events(3);
    mixed.push(Event::delete("invoice", "other").id(taken));
    mixed.extend(events(2));
    assert_eq!(
        kind(try_append(store, &batch(tenant, mixed)).await),
        Some(ErrorKind::Conflict)
    );
    assert_eq!(everything(store, tenant).await.len(), 1);
    assert_eq!(store.head(&trusted(tenant)).await.unwrap().size(), 1);
    let receipts = append(store, tenant, events(4)).await;
    assert_eq!(
        receipts.iter().map(|r| r.seq).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
}

/// Batches of one call are independent: those beside a conflict are stored.
pub async fn a_conflict_fails_only_its_own_batch<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, other) = (
        new_tenant(harness.tenants()).await,
        new_tenant(harness.tenants()).await,
    );
    let taken = append(store, tenant, vec![event(0)]).await[0].id;
    let batches = [
        batch(tenant, events(2)),
        batch(tenant, vec![event(7), event(1).id(taken)]),
        batch(other, events(1)),
        batch(tenant, events(1)),
    ];
    let outcomes = store.append(&batches).await.expect("outcomes");
    assert_eq!(outcomes.len(), 4);
    let error = outcomes[1].as_ref().unwrap_err();
    assert_eq!(
        (error.kind(), error.event_id()),
        (ErrorKind::Conflict, Some(taken))
    );
    assert!(!error.is_retryable());
    for i in [0, 2, 3] {
        assert!(outcomes[i].is_ok(), "{i}: {:?}", outcomes[i]);
    }
    let mut seqs: Vec<u64> = [0, 3]
        .iter()
        .flat_map(|&i| outcomes[i].as_ref().unwrap())
        .map(|r| r.seq)
        .collect();
    seqs.sort_unstable();
    assert_eq!(seqs, [1, 2, 3]);
    assert_eq!(everything(store, tenant).await.len(), 4);
    assert_eq!(everything(store, other).await.len(), 1);
}

/// A retry is answered with the first receipt, under the present head.
pub async fn the_same_event_again_is_a_duplicate_with_the_first_receipt<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let id = SystemClock.event_id();
    let first = append(store, tenant, vec![event(0).id(id)]).await.remove(0);
    append(store, tenant, events(2)).await;
    let head = store.head(&trusted(tenant)).await.unwrap();
    if let Some(clock) = harness.clock() {
        clock.advance_micros(1_000_000);
    }
    let again = append(store, tenant, vec![event(0).id(id)]).await.remove(0);
    assert!(!first.duplicate && again.duplicate);
    assert_eq!(store.head(&trusted(tenant)).await.unwrap(), head);
    assert_eq!(
        (again.id, again.seq, again.leaf_hash, again.created_at),
        (first.id, first.seq, first.leaf_hash, first.created_at)
    );
    assert_eq!(again.tree_size, 3);
    assert_eq!(
        again.root,
        store.head(&trusted(tenant)).await.unwrap().tree.root()
    );
    assert_eq!(everything(store, tenant).await.len(), 3);
}

/// A retry that serialises a map in another order is the same event.
pub async fn reordered_keys_of_raw_json_are_the_same_event<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let id = SystemClock.event_id();
    let body = |metadata: &str| {
        Event::from_json(&format!(
            r#"{{"id":"{id}","action_type":"VIEW","resource_type":"doc","resource_id":"d","metadata":{metadata}}}"#
        ))
        .expect("an event")
    };
    append(
        store,
        tenant,
        vec![body(r#"{"a":1,"b":[1e2,{"y":0,"x":"\u0061"}]}"#)],
    )
    .await;
    let again = append(
        store,
        tenant,
        vec![body(r#"{ "b": [1e2,{"x":"a","y":0}], "a": 1 }"#)],
    )
    .await;
    assert!(again[0].duplicate);
    for other in [r#"{"a":1,"b":[100,{"y":0,"x":"a"}]}"#, r#"{"a":1}"#, "null"] {
        let outcome = try_append(store, &batch(tenant, vec![body(other)])).await;
        assert_eq!(kind(outcome), Some(ErrorKind::Conflict), "{other}");
    }
}

/// An id is never given to a second event.
pub async fn other_content_under_an_id_is_a_conflict<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let id = SystemClock.event_id();
    append(store, tenant, vec![event(0).id(id)]).await;
    for other in [
        event(1),
        event(0).reason("another"),
        event(0).outcome(Outcome::Failure),
        event(0).occurred_at(time("2026-01-01T00:00:00Z")),
    ] {
        let outcome = try_append(store, &batch(tenant, vec![other.id(id)])).await;
        assert_eq!(kind(outcome), Some(ErrorKind::Conflict));
    }
    let entries = everything(store, tenant).await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].fields.reason.as_deref(), Some("reason 0"));
}

/// Equal ids in one batch, and in batches of one call.
pub async fn equal_ids_within_a_call_are_resolved<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let (a, b) = (SystemClock.event_id(), SystemClock.event_id());
    let receipts = append(
        store,
        tenant,
        vec![event(0).id(a), event(1), event(0).id(a)],
    )
    .await;
    assert_eq!(
        receipts.iter().map(|r| r.seq).collect::<Vec<_>>(),
        [0, 1, 0]
    );
    assert_eq!(
        receipts.iter().map(|r| r.duplicate).collect::<Vec<_>>(),
        [false, false, true]
    );

    let twice = vec![event(0).id(b), event(1).id(b)];
    assert_eq!(
        kind(try_append(store, &batch(tenant, twice)).await),
        Some(ErrorKind::Conflict)
    );

    let batches = [
        batch(tenant, vec![event(2).id(b)]),
        batch(tenant, vec![event(2).id(b)]),
        batch(tenant, vec![event(3).id(b)]),
    ];
    let outcomes = store.append(&batches).await.expect("outcomes");
    let stored: Vec<_> = outcomes.iter().flatten().flatten().collect();
    assert_eq!(stored.len(), 2);
    assert!(stored.iter().all(|r| r.seq == 2));
    assert_eq!(stored.iter().filter(|r| r.duplicate).count(), 1);
    assert_eq!(
        kind(outcomes.into_iter().nth(2).expect("a third")),
        Some(ErrorKind::Conflict)
    );
    assert_eq!(everything(store, tenant).await.len(), 3);
}

/// A global key would let one tenant make another's event vanish.
pub async fn ids_are_taken_per_tenant<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let id = SystemClock.event_id();
    for n in 0..2 {
        let tenant = new_tenant(harness.tenants()).await;
        let receipt = append(store, tenant, vec![event(n).id(id)]).await.remove(0);
        assert_eq!((receipt.seq, receipt.duplicate), (0, false));
        let found = store
            .get(&trusted(tenant), &[id])
            .await
            .expect("found")
            .remove(0);
        let Lookup::Found(entry) = found else {
            panic!("{found:?}")
        };
        assert_eq!(entry.tenant_id, tenant);
        assert_eq!(entry.fields.resource_id, Some(format!("inv-{n}")));
    }
}

/// Nothing in, nothing out.
pub async fn an_empty_batch_has_no_receipts<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    assert!(append(store, tenant, Vec::new()).await.is_empty());
    assert!(store.append(&[]).await.expect("outcomes").is_empty());
    assert_eq!(store.head(&trusted(tenant)).await.unwrap().size(), 0);
}

/// A clock that was set back a little is outrun, one that lags more than five seconds refuses.
pub async fn created_at_never_decreases_and_a_lagging_clock_refuses<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let Some(clock) = harness.clock() else { return };
    let start = clock.now();
    let first = append(store, tenant, events(2)).await;
    assert!(first.iter().all(|r| r.created_at == start));
    for back in [1, 4_999_999] {
        clock.advance_micros(-back);
        let receipts = append(store, tenant, events(1)).await;
        assert_eq!(
            receipts[0].created_at, start,
            "the clock is {back} µs behind"
        );
    }
    assert_eq!(clock.now().as_micros(), start.as_micros() - 5_000_000);
    clock.advance_micros(-1);
    let error = try_append(store, &batch(tenant, events(1)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
    assert!(error.to_string().contains("clock"), "{error}");
    clock.set(start);
    clock.advance_micros(7);
    let receipts = append(store, tenant, events(1)).await;
    assert_eq!(receipts[0].created_at.as_micros(), start.as_micros() + 7);
    assert_eq!(receipts[0].seq, 4);
}

/// As the client says, else when a queue or outbox accepted it, else when the log did.
pub async fn occurred_at_defaults_to_the_time_of_acceptance<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let (said, accepted) = (
        time("2001-02-03T04:05:06.789Z"),
        time("2026-01-01T00:00:00Z"),
    );
    let events = vec![
        prepare(tenant, event(0).occurred_at(said)).accepted_at(accepted),
        prepare(tenant, event(1)).accepted_at(accepted),
        prepare(tenant, event(2)),
    ];
    try_append(store, &Batch::new(trusted(tenant), events))
        .await
        .expect("appended");
    let entries = everything(store, tenant).await;
    let occurred: Vec<_> = entries.iter().map(|e| e.occurred_at).collect();
    assert_eq!(occurred, [said, accepted, entries[2].created_at]);
}

/// Only an embedder's recorder makes tenants on the way.
pub async fn an_unknown_tenant_is_refused_unless_the_batch_creates_it<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = tenant_id();
    let refused = try_append(store, &batch(tenant, events(1))).await;
    assert_eq!(kind(refused), Some(ErrorKind::UnknownTenant));
    assert_eq!(harness.tenants().tenant(tenant).await.unwrap(), None);
    let creating = batch(tenant, events(2)).creating_tenant();
    let receipts = try_append(store, &creating).await.expect("appended");
    assert_eq!(receipts.len(), 2);
    let created = harness
        .tenants()
        .tenant(tenant)
        .await
        .unwrap()
        .expect("a tenant");
    assert_eq!(
        (created.id, created.status),
        (tenant, audit_core::TenantStatus::Active)
    );
    // From then on it is a tenant like any other.
    assert_eq!(append(store, tenant, events(1)).await[0].seq, 2);
}

/// What explains a hole is written by the act that makes it, and by nothing else.
pub async fn a_control_entry_is_not_appended_by_callers<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    append(store, tenant, events(2)).await;
    let control = Control::Erase {
        groups: audit_core::Group::ALL.to_vec(),
        entries: vec![(0, 1)],
        basis: basis("gdpr-17"),
    };
    let forged = act(tenant).prepare(tenant, &control);
    let outcome = try_append(store, &Batch::new(trusted(tenant), vec![forged])).await;
    assert!(outcome.is_err());
    assert_eq!(everything(store, tenant).await.len(), 2);
}

/// It fails its own batch, and reaches neither log.
pub async fn an_event_prepared_for_another_tenant_is_refused<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (ann, bob) = (
        new_tenant(harness.tenants()).await,
        new_tenant(harness.tenants()).await,
    );
    let own = || prepare(bob, event(0));
    let foreign = prepare(ann, event(1));
    let batches = [
        Batch::new(trusted(bob), vec![own(), foreign]),
        Batch::new(trusted(bob), vec![own()]),
    ];
    let outcomes = store.append(&batches).await.expect("outcomes");
    let kinds: Vec<_> = outcomes.into_iter().map(kind).collect();
    assert_eq!(kinds, [Some(ErrorKind::Forbidden), None]);
    assert_eq!(everything(store, bob).await.len(), 1);
    assert_eq!(everything(store, ann).await.len(), 0);
}

/// An audit log may not alter what it was given.
pub async fn raw_json_is_kept_byte_for_byte<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let texts = [
        "9007199254740993",
        "1e2",
        "-0",
        "1.0E+400",
        "{ \"b\" : 1 ,\r\n\t\"a\":[ ] }",
        r#""\u0061\/\ud83d\ude00 é""#,
        "{\"é\":\"\u{10ffff}\",\"\":{}}",
        "false",
        "\"\"",
    ];
    for text in texts {
        let event = Event::from_json(&format!(
            r#"{{"action_type":"VIEW","resource_type":"d","resource_id":"1","before_state":{text},"after_state":{text},"metadata":{text}}}"#
        ))
        .expect("an event");
        let receipts = append(store, tenant, vec![event]).await;
        let found = store
            .get(&trusted(tenant), &[receipts[0].id])
            .await
            .expect("found")
            .remove(0);
        let fields = found.into_entry().expect("an entry").fields;
        for kept in [&fields.before_state, &fields.after_state, &fields.metadata] {
            assert_eq!(kept.as_ref().map(|j| j.as_str()), Some(text));
        }
    }
}

/// Each field comes back, and absent, empty and awkward ones stay what they were.
pub async fn every_field_is_read_as_it_was_recorded<H: LogStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(harness.tenants()).await;
    let awkward = "it's \"q\" \\ \u{1} \u{7f} é \u{1F600} %_ \r\n\t\u{2028}";
    let full = Event::grant("ro'le", "r-1")
        .action("role.grant:x/y")
        .occurred_at(time("1970-01-01T00:00:00Z"))
        .outcome(Outcome::Denied)
        .severity(Severity::Critical)
        .user(awkward)
        .actor_type(ActorType::Agent)
        .actor_name(awkward)
        .on_behalf_of(awkward)
        .resource_name(awkward)
        .related(RelatedResource::new("group", "g-2").named(awkward))
        .related(RelatedResource::new("user", "u-1"))
        .session_id(awkward)
        .request_id("r")
        .trace_id("4bf92f3577b34da6a3ce929d0e0e4736")
        .user_agent(awkward)
        .ip_address("2001:db8::1".parse().expect("an address"))
        .reason(awkward)
        .metadata(&awkward);
    let minimal = Event::view("d", "1");
    let empty = Event::view("d", "2")
        .user("")
        .reason("")
        .session_id("")
        .resource_name("");
    let last = Event::view("d", "3").occurred_at(time("9999-12-31T23:59:59.999999Z"));
    let prepared: Vec<_> = [full, minimal, empty, last]
        .into_iter()
        .map(|e| prepare(tenant, e))
        .collect();
    let receipts = try_append(store, &Batch::new(trusted(tenant), prepared.clone()))
        .await
        .expect("appended");
    let ids: Vec<EventId> = receipts.iter().map(|r| r.id).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 4);
    let found = store.get(&trusted(tenant), &ids).await.expect("found");
    for ((found, prepared), receipt) in found.into_iter().zip(&prepared).zip(&receipts) {
        let entry = found.into_entry().expect("an entry");
        assert_eq!(*entry.fields, *prepared.fields());
        assert_eq!(entry.occurred_at, prepared.occurred_at(entry.created_at));
        assert_eq!(
            (
                entry.tenant_id,
                entry.id,
                entry.seq,
                entry.created_at,
                entry.leaf_hash
            ),
            (
                tenant,
                receipt.id,
                receipt.seq,
                receipt.created_at,
                receipt.leaf_hash
            )
        );
        assert_eq!((entry.kind, &entry.ctl), (audit_core::Kind::Event, &None));
        assert!(entry.erased.is_empty());
    }
}

/// A receipt is given only for what is durable.
pub async fn what_was_appended_survives_a_reopen<H: LogStoreHarness>() {
    let harness = H::open().await;
    let tenant = new_tenant(harness.tenants()).await;
    let id = SystemClock.event_id();
    let first = append(harness.store(), tenant, vec![event(0).id(id), event(1)]).await;
    let head = harness
        .store()
        .head(&trusted(tenant))
        .await
        .expect("a head");
    let before = everything(harness.store(), tenant).await;
    harness
        .store()
        .advance(tenant, "archive", true, 1)
        .await
        .expect("advanced");
    let Some(harness) = harness.reopen().await else {
        return;
    };
    let store = harness.store();
    assert_eq!(everything(store, tenant).await, before);
    assert_eq!(store.head(&trusted(tenant)).await.expect("a head"), head);
    assert_eq!(store.cursor(tenant, "archive").await.expect("a cursor"), 1);
    let again = append(store, tenant, vec![event(0).id(id), event(2)]).await;
    assert!(again[0].duplicate);
    assert_eq!(
        (again[0].seq, again[0].leaf_hash),
        (first[0].seq, first[0].leaf_hash)
    );
    assert_eq!(again[1].seq, 2);
}
