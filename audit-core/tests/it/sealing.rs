use std::collections::HashMap;
use std::sync::Arc;

use audit_core::{
    Batch, Entry, ErrorKind, Event, Fields, Group, Head, Json, Known, ManualClock, Opening,
    PreparedEvent, Redact, StoredEntry, TenantId, TenantScope, Timestamp, seal,
};

fn tenant() -> TenantId {
    "0190a000-0000-7000-8000-000000000001"
        .parse()
        .expect("a tenant")
}

fn clock() -> ManualClock {
    ManualClock::new(Timestamp::parse("2026-11-24T03:00:00Z").expect("a time"))
}

fn stored(prepared: &PreparedEvent) -> StoredEntry {
    let batch = Batch::new(
        TenantScope::trusted(tenant(), "test"),
        vec![prepared.clone()],
    );
    let sealing = seal(
        &[&batch],
        &Head::empty(tenant()),
        Timestamp::MIN,
        &HashMap::new(),
    )
    .expect("sealed");
    let row = sealing.rows[0];
    let fields = prepared.fields().clone();
    let mut entry = Entry::new(tenant(), prepared.id(), row.seq, row.created_at, fields);
    entry.leaf_hash = row.leaf_hash;
    StoredEntry {
        entry,
        opening: Opening::Seed(prepared.seed().clone()),
    }
}

fn prepared(redactors: &[Arc<dyn Redact>]) -> PreparedEvent {
    let event = Event::update("invoice", "inv-1")
        .user("ann")
        .reason("why")
        .metadata(&[1])
        .ip_address("192.0.2.1".parse().expect("an address"));
    PreparedEvent::new(tenant(), event, &clock(), redactors).expect("prepared")
}

#[test]
fn content_that_vanished_is_corrupt_unless_it_was_erased() {
    for erased in [&[][..], &[Group::Reason]] {
        for vanished in [
            Group::Actor,
            Group::Resource,
            Group::Context,
            Group::Metadata,
        ] {
            let mut row = stored(&prepared(&[]));
            row.erase(erased);
            assert!(row.clone().verify().is_ok());
            row.entry.fields_mut().clear(vanished);
            let error = row.verify().expect_err("a group without an explanation");
            assert_eq!(
                error.kind(),
                ErrorKind::Corrupt,
                "{vanished:?} after {erased:?}"
            );
        }
    }
}

#[test]
fn content_that_reappeared_or_changed_is_corrupt() {
    let mut row = stored(&prepared(&[]));
    row.erase(&[Group::Reason]);
    let mut forged = row.clone();
    forged.entry.fields_mut().reason = Some("why".into());
    assert_eq!(
        forged.verify().expect_err("forged").kind(),
        ErrorKind::Corrupt
    );
    let mut forged = row.clone();
    forged.entry.fields_mut().user_id = Some("bob".into());
    assert_eq!(
        forged.verify().expect_err("forged").kind(),
        ErrorKind::Corrupt
    );
    let mut forged = row;
    forged.entry.fields_mut().before_state = Some(Json::parse("{}").expect("json"));
    assert_eq!(
        forged.verify().expect_err("forged").kind(),
        ErrorKind::Corrupt
    );
}

#[test]
fn an_opening_survives_its_stored_form() {
    let mut row = stored(&prepared(&[]));
    for groups in [&[][..], &[Group::Reason], &Group::ALL] {
        row.erase(groups);
        let opening = Opening::from_bytes(&row.opening.to_bytes()).expect("an opening");
        let read = StoredEntry {
            entry: row.entry.clone(),
            opening,
        };
        assert_eq!(read.verify().expect("verified"), row.clone().into_entry());
    }
}

#[test]
fn repeats_and_conflicts_alone_leave_the_head_as_it_was() {
    let event = prepared(&[]);
    let batch =
        |event: PreparedEvent| Batch::new(TenantScope::trusted(tenant(), "test"), vec![event]);
    let first = batch(event.clone());
    let start = Timestamp::MIN;
    let sealing = seal(&[&first], &Head::empty(tenant()), start, &HashMap::new()).expect("sealed");
    let row = sealing.rows[0];
    let known = Known {
        seq: row.seq,
        created_at: row.created_at,
        leaf_hash: row.leaf_hash,
        content: Some(event.content()),
    };
    let known = HashMap::from([(event.id(), known)]);
    let conflicting = Event::view("other", "thing").id(event.id());
    let conflicting = PreparedEvent::new(tenant(), conflicting, &clock(), &[]).expect("prepared");
    let (first, second) = (batch(event), batch(conflicting));
    let later = Timestamp::parse("2026-11-24T03:00:00Z").expect("a time");
    let again = seal(&[&first, &second], &sealing.head, later, &known).expect("sealed");
    assert!(again.rows.is_empty());
    assert!(again.outcomes[0].is_ok() && again.outcomes[1].is_err());
    assert_eq!(again.head, sealing.head);
}

#[derive(Debug)]
struct Careless;

impl Redact for Careless {
    fn redact(&self, _: TenantId, fields: &mut Fields) {
        fields.ip_address = Some("::ffff:192.0.2.9".parse().expect("an address"));
        fields.metadata = Some(Json::parse("null").expect("json"));
    }
}

#[test]
fn what_a_redaction_leaves_is_normalised() {
    let prepared = prepared(&[Arc::new(Careless)]);
    let fields = prepared.fields();
    assert_eq!(
        fields.ip_address,
        Some("192.0.2.9".parse().expect("an address"))
    );
    assert_eq!(fields.metadata, None);
}
