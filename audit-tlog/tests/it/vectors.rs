//! Leaf format v1 against test vectors that another implementation made.

use std::collections::HashMap;

use audit_tlog::leaf::{self, Disclosed, open_disclosure};
use audit_tlog::{
    Actor, Context, Control, Group, Hash, Kind, Leaf, Related, Resource, Seed, Timestamp, json,
};
use serde_json::Value;

fn cases() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/leaf-v1.ndjson");
    let text = std::fs::read_to_string(path).unwrap();
    let cases: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(cases.len(), 266);
    cases
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap()
}

fn seed(case: &Value) -> Seed {
    Seed::new(Hash::from_hex(text(case, "seed")).unwrap().0)
}

/// The value of a group, written anew from its own strings.
fn rewritten(group: Group, value: &str) -> String {
    let object = || {
        let members = json::members(value).unwrap();
        members
            .into_iter()
            .map(|m| (m.name.into_owned(), m.raw))
            .collect::<HashMap<_, _>>()
    };
    let decode = |raw: &str| json::string(raw).unwrap().into_owned();
    let strings = |object: &HashMap<String, &str>| {
        let texts = object.iter().filter(|(_, raw)| raw.starts_with('"'));
        texts
            .map(|(name, raw)| (name.clone(), decode(raw)))
            .collect::<HashMap<_, _>>()
    };
    match group {
        Group::Actor => {
            let all = strings(&object());
            let get = |name: &str| all.get(name).map(String::as_str);
            let actor = Actor {
                user_id: get("user_id"),
                actor_type: get("actor_type"),
                actor_name: get("actor_name"),
                on_behalf_of: get("on_behalf_of"),
            };
            actor.value().unwrap()
        }
        Group::Resource => {
            let object = object();
            let all = strings(&object);
            let get = |name: &str| all.get(name).map(String::as_str);
            let related: Vec<_> = object
                .get("related_resources")
                .map(|raw| json::items(raw).unwrap())
                .unwrap_or_default()
                .into_iter()
                .map(|one| {
                    let members = json::members(one).unwrap();
                    members
                        .into_iter()
                        .map(|m| (m.name.into_owned(), decode(m.raw)))
                        .collect()
                })
                .collect::<Vec<HashMap<String, String>>>();
            let related: Vec<_> = related
                .iter()
                .map(|one| Related {
                    kind: &one["type"],
                    id: &one["id"],
                    name: one.get("name").map(String::as_str),
                })
                .collect();
            let resource = Resource {
                resource_type: get("resource_type"),
                resource_id: get("resource_id"),
                resource_name: get("resource_name"),
                related: &related,
            };
            resource.value().unwrap()
        }
        Group::Context => {
            let all = strings(&object());
            let get = |name: &str| all.get(name).map(String::as_str);
            let context = Context {
                session_id: get("session_id"),
                request_id: get("request_id"),
                trace_id: get("trace_id"),
                user_agent: get("user_agent"),
                ip_address: get("ip_address"),
            };
            context.value().unwrap()
        }
        Group::Reason => {
            let mut out = String::new();
            json::write_string(&mut out, &decode(value));
            out
        }
        Group::BeforeState | Group::AfterState | Group::Metadata => value.to_owned(),
    }
}

#[test]
fn leaves_disclosures_and_digests_are_those_of_the_vectors() {
    let mut accepted = 0;
    let mut seen = [0; 7];
    let mut buf = Vec::new();
    for case in cases()
        .iter()
        .filter(|case| case["expect"]["error"].is_null())
    {
        accepted += 1;
        let name = text(case, "name");
        let seed = seed(case);
        let salts = leaf::salts(&seed);
        let mut digests = [None; 7];
        for group in Group::ALL {
            let i = group.index();
            assert_eq!(leaf::salt(&seed, group), salts[i]);
            let Some(expected) = case["expect"]["disclosures"][i].as_str() else {
                assert!(case["expect"]["sd"][i].is_null());
                continue;
            };
            seen[i] += 1;
            let opened = open_disclosure(expected).unwrap();
            let value = rewritten(group, &opened.value);
            assert_eq!(
                opened,
                Disclosed {
                    salt: salts[i],
                    group,
                    value: value.clone()
                },
                "{name}"
            );
            assert_eq!(
                leaf::disclosure(&salts[i], group, &value),
                expected,
                "{name}"
            );
            let digest = leaf::disclosure_digest_with(&mut buf, &salts[i], group, &value);
            assert_eq!(digest, leaf::disclosure_digest(&salts[i], group, &value));
            assert_eq!(
                digest.to_base64url(),
                case["expect"]["sd"][i].as_str().unwrap(),
                "{name}"
            );
            digests[i] = Some(digest);
        }

        let expected = text(&case["expect"], "leaf");
        let fields: Value = serde_json::from_str(expected).unwrap();
        let kind: Kind = text(case, "kind").parse().unwrap();
        let control = case["ctl"]
            .as_str()
            .map(|ctl| Control::parse(kind, ctl).unwrap().to_json());
        assert_eq!(control.is_some(), kind.is_control());
        let leaf = Leaf {
            kind,
            tenant_id: text(case, "tenant_id").parse().unwrap(),
            id: text(case, "id").parse().unwrap(),
            created_at: Timestamp::parse(text(case, "created_at")).unwrap(),
            occurred_at: Timestamp::parse(text(&fields, "occurred_at")).unwrap(),
            action_type: text(&fields, "action_type"),
            action: text(&fields, "action"),
            outcome: text(&fields, "outcome"),
            severity: text(&fields, "severity"),
            ctl: control.as_deref(),
            digests: &digests,
        };
        assert_eq!(leaf.encode(), expected, "{name}");
        let hash = leaf::leaf_hash(expected.as_bytes());
        assert_eq!(hash.to_hex(), text(&case["expect"], "leaf_hash"), "{name}");
    }
    assert_eq!(accepted, 129);
    assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
}

#[test]
fn control_entries_are_refused_as_in_the_vectors() {
    let mut refused = 0;
    for case in cases() {
        let Some(fault) = case["expect"]["error"].as_str() else {
            continue;
        };
        match text(&case, "kind").parse::<Kind>() {
            Err(_) => assert!(fault.starts_with("kind:"), "{fault}"),
            Ok(kind) if kind.is_control() && fault.starts_with("ctl:") => {
                let ctl = case["ctl"].as_str().unwrap_or_default();
                assert!(
                    Control::parse(kind, ctl).is_err(),
                    "{}",
                    text(&case, "name")
                );
            }
            Ok(_) => continue,
        }
        refused += 1;
    }
    assert_eq!(refused, 24);
}

#[test]
fn times_are_read_and_refused_as_in_the_vectors() {
    let (mut read, mut refused) = (0, 0);
    for case in cases() {
        let Ok(members) = json::members(text(&case, "event")) else {
            continue;
        };
        let mut sent = members.iter().filter(|m| m.name == "occurred_at");
        let (Some(sent), None) = (sent.next(), sent.next()) else {
            continue;
        };
        let Ok(sent) = json::string(sent.raw) else {
            continue;
        };
        match case["expect"]["error"].as_str() {
            None => {
                let fields: Value = serde_json::from_str(text(&case["expect"], "leaf")).unwrap();
                let time = Timestamp::parse(&sent).unwrap();
                assert_eq!(time.to_string(), text(&fields, "occurred_at"), "{sent}");
                read += 1;
            }
            Some(fault) if fault.starts_with("occurred_at") => {
                assert!(Timestamp::parse(&sent).is_err(), "{sent}");
                refused += 1;
            }
            Some(_) => {}
        }
    }
    assert!(read > 5 && refused > 5, "{read} {refused}");
}

#[test]
fn raw_json_is_admitted_and_refused_as_in_the_vectors() {
    let raw = ["before_state", "after_state", "metadata"];
    let (mut admitted, mut refused) = (0, 0);
    for case in cases() {
        let fault = case["expect"]["error"].as_str();
        let Ok(members) = json::members(text(&case, "event")) else {
            continue;
        };
        for member in members.iter().filter(|m| raw.contains(&m.name.as_ref())) {
            // The limit on length is not this crate's.
            if member.raw.len() > 200_000 {
                continue;
            }
            let outcome = json::check(member.raw, json::MAX_DEPTH);
            let once = members.iter().filter(|m| m.name == member.name).count() == 1;
            if fault.is_none() {
                assert_eq!(outcome, Ok(()), "{}", text(&case, "name"));
                admitted += 1;
            } else if once && fault.is_some_and(|f| f.split(':').next() == Some(&member.name)) {
                assert!(outcome.is_err(), "{}: {}", text(&case, "name"), member.raw);
                refused += 1;
            }
        }
    }
    assert!(admitted > 5 && refused > 5, "{admitted} {refused}");
}

#[test]
fn secrets_are_not_in_debug_output() {
    let seed = Seed::new([0xab; 32]);
    let salt = leaf::salt(&seed, Group::Actor);
    assert_eq!(format!("{seed:?} {salt:?}"), "Seed(..) Salt(..)");
}

#[test]
fn a_digest_is_that_of_the_disclosure_at_any_length() {
    let salt = leaf::salt(&Seed::new([1; 32]), Group::Metadata);
    let mut buf = b"left from before".to_vec();
    for len in (0..40).chain(700..800).chain(1500..1560).chain([300_000]) {
        let value = format!("\"{}\"", "x".repeat(len));
        let disclosure = leaf::disclosure(&salt, Group::Metadata, &value);
        // A leaf hash of the text, less its prefix, would be another hash: hash it plainly.
        let expected: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(&disclosure).into();
        let digest = leaf::disclosure_digest_with(&mut buf, &salt, Group::Metadata, &value);
        assert_eq!(digest, Hash(expected), "{len}");
    }
}

#[test]
fn a_disclosure_has_one_spelling() {
    use base64::Engine;
    let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let salt = "AAAAAAAAAAAAAAAAAAAAAA";
    assert!(open_disclosure(&encode(&format!("[\"{salt}\",\"reason\",\"x\"]"))).is_some());
    for text in [
        format!("[\"{salt}\",\"reason\",null]"),
        format!("[\"{salt}\",\"reason\", 1]"),
        format!("[\"{salt}\",\"reason\",1 ]"),
        format!("[\"{salt}\",\"reason\",]"),
        format!("[\"{salt}\",\"reason\",1,2]"),
        format!("[\"{salt}\",\"reason\",{{\"a\":1,\"a\":1}}]"),
        format!("[\"{salt}\",\"reason\",1]\n"),
        format!("[\"{salt}\", \"reason\",1]"),
        format!("[\"{salt}\",\"who\",1]"),
        format!("[\"{salt}A\",\"reason\",1]"),
        "[\"AAAAAAAAAAAAAAAAAAAAAB\",\"reason\",1]".to_owned(),
        "[\"AAAAAAAAAAAAAAAAAAAAA+\",\"reason\",1]".to_owned(),
        "[]".to_owned(),
        String::new(),
    ] {
        assert_eq!(open_disclosure(&encode(&text)), None, "{text}");
    }
    let good = encode(&format!("[\"{salt}\",\"reason\",1]"));
    assert_eq!(open_disclosure(&format!("{good}=")), None);
    assert_eq!(open_disclosure(&format!("{good}\n")), None);
}

#[test]
fn groups_with_nothing_in_them_are_absent() {
    let mut out = String::from("kept");
    assert!(!Actor::default().write(&mut out));
    assert!(!Resource::default().write(&mut out));
    assert!(!Context::default().write(&mut out));
    assert_eq!(out, "kept");
    assert_eq!(Actor::default().value(), None);
    let blank = Actor {
        actor_name: Some(""),
        ..Actor::default()
    };
    assert_eq!(blank.value().unwrap(), "{\"actor_name\":\"\"}");
}

#[test]
fn content_tags_depend_on_key_and_content() {
    let (one, two) = (
        leaf::content_key(&Seed::new([1; 32])),
        leaf::content_key(&Seed::new([2; 32])),
    );
    assert_ne!(one, two);
    assert_eq!(
        leaf::content_tag(&one, b"{}"),
        leaf::content_tag(&one, b"{}")
    );
    assert_ne!(
        leaf::content_tag(&one, b"{}"),
        leaf::content_tag(&two, b"{}")
    );
    assert_ne!(
        leaf::content_tag(&one, b"{}"),
        leaf::content_tag(&one, b"[]")
    );
}

#[test]
fn hashes_are_read_as_they_are_written() {
    let hash = leaf::leaf_hash(b"x");
    assert_eq!(Hash::from_hex(&hash.to_hex()), Some(hash));
    assert_eq!(Hash::from_hex(&hash.to_hex().to_uppercase()), Some(hash));
    assert_eq!(Hash::from_base64(&hash.to_base64()), Some(hash));
    assert_eq!(Hash::from_base64url(&hash.to_base64url()), Some(hash));
    assert_eq!(format!("{hash:?}"), hash.to_hex());
    for wrong in [
        "",
        "0",
        &"0".repeat(63),
        &"0".repeat(65),
        &"0".repeat(66),
        &"g".repeat(64),
    ] {
        assert_eq!(Hash::from_hex(wrong), None, "{wrong}");
    }
    assert_eq!(Hash::from_slice(&[0; 31]), None);
}
