//! The cases of `testdata/leaf-v1.ndjson`, made by an independent implementation of the leaf format:
//! from the JSON text that a client sent to leaf data, disclosures and content tag.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use audit_core::tlog::leaf::{disclosure, leaf_hash, salts};
use audit_core::{
    Act, Batch, Clock, Control, Entry, Event, EventId, Group, Hash, Head, Kind, Opening,
    PreparedEvent, StoredEntry, TenantId, TenantScope, Timestamp, seal,
};
use serde::Deserialize;

const CASES: &str = include_str!("../../../testdata/leaf-v1.ndjson");

#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    kind: String,
    tenant_id: TenantId,
    id: EventId,
    created_at: String,
    seed: String,
    ctl: Option<String>,
    event: String,
    expect: Expect,
}

#[derive(Debug, Deserialize)]
struct Expect {
    leaf: Option<String>,
    leaf_hash: Option<String>,
    disclosures: Option<[Option<String>; 7]>,
    sd: Option<[Option<String>; 7]>,
    content_tag: Option<String>,
    error: Option<String>,
}

/// Yields one case's id, seed and time.
#[derive(Debug)]
struct CaseClock {
    id: EventId,
    seed: [u8; 32],
    now: Timestamp,
}

impl Clock for CaseClock {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn event_id(&self) -> EventId {
        self.id
    }

    fn secret(&self) -> [u8; 32] {
        self.seed
    }
}

fn cases() -> Vec<Case> {
    CASES
        .lines()
        .map(|line| serde_json::from_str(line).expect("a case"))
        .collect()
}

fn clock(case: &Case) -> CaseClock {
    CaseClock {
        id: case.id,
        seed: Hash::from_hex(&case.seed).expect("a seed").0,
        now: Timestamp::parse(&case.created_at).expect("a time"),
    }
}

/// The prepared event, or the name of a field that is refused.
fn prepare(case: &Case) -> Result<PreparedEvent, Vec<String>> {
    let clock = clock(case);
    if case.kind == "event" && case.ctl.is_none() {
        let named = |e: audit_core::Error| {
            e.fields()
                .iter()
                .map(|f| f.field.clone().into_owned())
                .collect::<Vec<_>>()
        };
        let event = Event::from_json(&case.event).map_err(named)?;
        return PreparedEvent::new(case.tenant_id, event, &clock, &[]).map_err(named);
    }
    let kind: Kind = case.kind.parse().map_err(|_| vec!["kind".to_owned()])?;
    let ctl = case.ctl.as_deref().unwrap_or_default();
    let control = Control::parse(kind, ctl).map_err(|_| vec!["ctl".to_owned()])?;
    let sent: HashMap<String, String> = serde_json::from_str(&case.event).expect("a flat event");
    // The log itself fills in a control entry's action: another one can't even be asked for.
    if sent["action_type"] != "OTHER" {
        return Err(vec!["action_type".to_owned()]);
    }
    let scope = TenantScope::trusted(case.tenant_id, &sent["user_id"]);
    let act = Act::new(&scope, sent.get("reason").cloned(), Arc::new(clock)).expect("an act");
    Ok(act.prepare(case.tenant_id, &control))
}

fn stored(case: &Case, prepared: &PreparedEvent) -> StoredEntry {
    let batch = Batch::new(
        TenantScope::trusted(case.tenant_id, "test"),
        vec![prepared.clone()],
    );
    let now = clock(case).now;
    let sealing = seal(
        &[&batch],
        &Head::empty(case.tenant_id),
        now,
        &HashMap::new(),
    )
    .expect("sealed");
    let row = sealing.rows[0];
    let mut entry = Entry::new(
        case.tenant_id,
        row.event.id(),
        row.seq,
        row.created_at,
        row.event.fields().clone(),
    );
    entry.occurred_at = row.occurred_at;
    entry.kind = row.event.kind();
    entry.ctl = row.event.ctl().map(str::to_owned);
    entry.leaf_hash = row.leaf_hash;
    StoredEntry {
        entry,
        opening: Opening::Seed(row.event.seed().clone()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn every_case_has_the_expected_leaf_disclosures_and_tag() {
    let cases = cases();
    assert_eq!(cases.len(), 266);
    let mut failures = Vec::new();
    for case in &cases {
        let Some(leaf) = &case.expect.leaf else {
            continue;
        };
        let mut check = |what: &str, got: &dyn Debug, want: &dyn Debug| {
            let (got, want) = (format!("{got:?}"), format!("{want:?}"));
            if got != want {
                failures.push(format!("{}: {what}: {got}, expected {want}", case.name));
            }
        };
        let prepared = match prepare(case) {
            Ok(prepared) => prepared,
            Err(fields) => {
                check("refused", &fields, &"accepted");
                continue;
            }
        };
        let stored = stored(case, &prepared);
        check("leaf", &stored.leaf_data(), leaf);
        check(
            "leaf hash",
            &Some(leaf_hash(stored.leaf_data().as_bytes()).to_hex()),
            &case.expect.leaf_hash,
        );
        check(
            "sealed hash",
            &Some(stored.entry.leaf_hash.to_hex()),
            &case.expect.leaf_hash,
        );
        let salts = salts(prepared.seed());
        let disclosures = Group::ALL.map(|group| {
            let value = prepared.fields().group_value(group)?;
            Some(disclosure(&salts[group.index()], group, &value))
        });
        check("disclosures", &Some(disclosures), &case.expect.disclosures);
        let sd = prepared.digests().map(|d| d.map(|d| d.to_base64url()));
        check("sd", &Some(sd), &case.expect.sd);
        check(
            "content tag",
            &Some(hex(&prepared.content().tag)),
            &case.expect.content_tag,
        );
        check("verified", &stored.verify().is_ok(), &true);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_refused_case_names_the_field() {
    let mut failures = Vec::new();
    for case in &cases() {
        let Some(error) = &case.expect.error else {
            continue;
        };
        let field = error.split(':').next().expect("a field");
        match prepare(case) {
            Ok(_) => failures.push(format!("{}: accepted, expected {error}", case.name)),
            Err(fields) if !fields.iter().any(|f| f == field) => {
                failures.push(format!("{}: {fields:?}, expected {error}", case.name));
            }
            Err(_) => {}
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
