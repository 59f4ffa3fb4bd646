//! The lines of evidence streams, leaf data and disclosures: what is read, and what is refused.

use audit_tlog::evidence::{
    ComposeFault, Composer, DisclosureFault, EvidenceLine, FolderManifest, LeafData, LeafFault,
    LineFault, ListedFile, Record, check_disclosure,
};
use audit_tlog::leaf::{Disclosed, disclosure, disclosure_digest, open_disclosure};
use audit_tlog::merkle::{subtree_root, subtrees};
use audit_tlog::{Group, Hash, Leaf, Salt, Tree};
use serde_json::Value;

use crate::sample::{Export, Log};

fn vectors() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/leaf-v1.ndjson");
    let text = std::fs::read_to_string(path).unwrap();
    let cases: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|case: &Value| case["expect"]["error"].is_null())
        .collect();
    assert!(cases.len() > 100);
    cases
}

#[test]
fn leaf_data_and_disclosures_of_the_vectors_are_read_and_write_back() {
    let mut buf = Vec::new();
    for case in vectors() {
        let name = &case["name"];
        let text = case["expect"]["leaf"].as_str().unwrap();
        let leaf = LeafData::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let ctl = leaf.control.as_ref().map(audit_tlog::Control::to_json);
        let again = Leaf {
            kind: leaf.kind,
            tenant_id: leaf.tenant_id,
            id: leaf.id,
            created_at: leaf.created_at,
            occurred_at: leaf.occurred_at,
            action_type: leaf.action_type,
            action: leaf.action,
            outcome: leaf.outcome,
            severity: leaf.severity,
            ctl: ctl.as_deref(),
            digests: &leaf.digests,
        };
        assert_eq!(again.encode(), text, "{name}");
        for (group, digest) in Group::ALL.into_iter().zip(leaf.digests) {
            let text = case["expect"]["disclosures"][group.index()].as_str();
            let found = text.map(|text| check_disclosure(&mut buf, group, text));
            assert_eq!(found, digest.map(Ok), "{name}, {group}");
        }
    }
}

#[test]
fn leaf_data_in_another_spelling_is_refused() {
    let mut log = Log::new(1);
    log.event();
    log.prune(1);
    for stored in &log.entries {
        let leaf = stored.leaf.as_str();
        assert!(LeafData::parse(leaf).is_ok());
        for (from, to) in [
            ("{\"v\":1", "{\"v\":2"),
            ("{\"v\":1,", "{ \"v\":1,"),
            ("\"kind\":\"", "\"kind\":\"un"),
            ("\"tenant_id\":\"", "\"tenant_id\":\"{"),
            ("\"id\":\"", "\"id\":\"0"),
            (".", ","),
            ("Z\"", "z\""),
            ("Z\"", "+00:00\""),
            ("UPDATE", "MOVE"),
            ("OTHER", "UPDATE"),
            ("invoice.approve", "invoice approve"),
            ("invoice.approve", ""),
            ("log.prune", "log.erase"),
            ("success", "Success"),
            ("INFO", "\\u0049NFO"),
            ("\"sd\":[\"", "\"sd\":[null,\""),
            ("\"sd\":[\"", "\"sd\":[ \""),
            ("]}", "]} "),
            ("]}", ",null]}"),
            (",\"sd\"", ",\"ctl\":{},\"sd\""),
            ("\"action\":", "\"extra\":1,\"action\":"),
            ("\"below\":1", "\"below\":01"),
        ] {
            let changed = leaf.replacen(from, to, 1);
            assert!(
                changed == leaf || LeafData::parse(&changed).is_err(),
                "{changed}"
            );
        }
        for end in 0..leaf.len() {
            assert!(LeafData::parse(&leaf[..end]).is_err());
        }
    }
    assert_eq!(
        LeafData::parse(&"x".repeat(65_536)),
        Err(LeafFault::TooLong)
    );
}

#[test]
fn a_disclosure_counts_in_its_only_spelling_and_at_its_own_place() {
    let salt = Salt([7; 16]);
    let mut buf = Vec::new();
    let mut check = |group: Group, value: &str| {
        let text = disclosure(&salt, group, value);
        let digest = check_disclosure(&mut buf, group, &text)?;
        assert_eq!(digest, disclosure_digest(&salt, group, value));
        Ok(())
    };
    for (group, value) in [
        (Group::Actor, "{\"user_id\":\"\"}"),
        (
            Group::Actor,
            "{\"user_id\":\"\\u0001\u{e9}\",\"on_behalf_of\":\"x\"}",
        ),
        (
            Group::Resource,
            "{\"resource_id\":\"1\",\"related_resources\":[{\"type\":\"a\",\"id\":\"b\"}]}",
        ),
        (
            Group::Resource,
            "{\"related_resources\":[{\"type\":\"a\",\"id\":\"b\",\"name\":\",\"},{\"type\":\"\",\"id\":\"\"}]}",
        ),
        (
            Group::Context,
            "{\"session_id\":\"s\",\"ip_address\":\"192.0.2.1\"}",
        ),
        (Group::Context, "{\"ip_address\":\"2001:db8::1:0:0:1\"}"),
        (Group::Reason, "\"\""),
        (Group::Reason, "\"\\\"\\\\/\\n\""),
        (Group::Metadata, "{ \"a\" : [1e2, \"\\u0041\"] }"),
        (Group::Metadata, "\"\""),
    ] {
        assert_eq!(check(group, value), Ok(()), "{group} {value}");
    }
    for (group, value) in [
        (Group::Actor, "{}"),
        (Group::Actor, "[]"),
        (Group::Actor, "\"ann\""),
        (Group::Actor, "{\"user_id\":1}"),
        (Group::Actor, "{\"user_id\":null}"),
        (Group::Actor, "{\"user_id\": \"a\"}"),
        (Group::Actor, "{\"user_id\":\"\\u0061\"}"),
        (Group::Actor, "{\"user_id\":\"\\u001F\"}"),
        (Group::Actor, "{\"user\\u005fid\":\"a\"}"),
        (Group::Actor, "{\"name\":\"a\"}"),
        (Group::Actor, "{\"on_behalf_of\":\"a\",\"user_id\":\"a\"}"),
        (
            Group::Resource,
            "{\"resource_id\":\"1\",\"related_resources\":[]}",
        ),
        (
            Group::Resource,
            "{\"related_resources\":[{\"id\":\"b\",\"type\":\"a\"}]}",
        ),
        (
            Group::Resource,
            "{\"related_resources\":[{\"type\":\"a\"}]}",
        ),
        (
            Group::Resource,
            "{\"related_resources\":[{\"type\":\"a\",\"id\":\"b\"} ]}",
        ),
        (Group::Resource, "{\"related_resources\":\"x\"}"),
        (Group::Context, "{\"ip_address\":\"::ffff:192.0.2.1\"}"),
        (Group::Context, "{\"ip_address\":\"2001:DB8::1\"}"),
        (Group::Context, "{\"ip_address\":\"2001:db8:0:0:0:0:0:1\"}"),
        (Group::Context, "{\"ip_address\":\"here\"}"),
        (Group::Reason, "{}"),
        (Group::Reason, "\"\\u0041\""),
        (Group::Reason, "\"\\/\""),
    ] {
        assert_eq!(
            check(group, value),
            Err(DisclosureFault::Value),
            "{group} {value}"
        );
    }
    for value in [
        "null",
        " 1",
        "1 ",
        "",
        "{",
        "1,2",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "{\"a\":1,\"\\u0061\":2}",
        &format!("{}{}", "[".repeat(61), "]".repeat(61)),
    ] {
        assert_eq!(
            check(Group::Metadata, value),
            Err(DisclosureFault::Form),
            "{value}"
        );
    }
    let text = disclosure(&salt, Group::Reason, "\"x\"");
    assert_eq!(
        check_disclosure(&mut buf, Group::Metadata, &text),
        Err(DisclosureFault::Place(Group::Reason))
    );
    let expected = Disclosed {
        salt,
        group: Group::Reason,
        value: "\"x\"".into(),
    };
    assert_eq!(open_disclosure(&text), Some(expected));
    for changed in [
        format!("{text}="),
        format!("{text}A"),
        text.replace('W', "V"),
        text[1..].to_owned(),
        text.replace(&text[..1], "+"),
    ] {
        assert!(
            check_disclosure(&mut buf, Group::Reason, &changed).is_err(),
            "{changed}"
        );
    }
}

#[test]
fn the_strings_of_a_line_count_and_not_its_spelling() {
    let (lines, _) = Log::random(11, 80).bundle(&Export::default());
    for line in &lines {
        let record = Record::parse(line).unwrap();
        assert_eq!(record.encode(), *line);
        // Another library's spelling: other order of keys, spaces, escapes.
        let value: Value = serde_json::from_str(line).unwrap();
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        let escaped = line
            .replace("audit", "\\u0061udit")
            .replace("eyJ", "e\\u0079J");
        for other in [pretty, format!(" {line} \r\n"), escaped] {
            assert_eq!(Record::parse(&other).as_ref(), Ok(&record), "{other}");
        }
        if let Record::Entry(line) = record {
            assert_eq!(line.clone().into_owned(), line);
        }
    }
}

#[test]
fn what_is_no_record_is_refused() {
    let sevens = "[null,null,null,null,null,null,null]";
    for (line, fault) in [
        ("", LineFault::Json),
        ("[]", LineFault::Json),
        ("{}x", LineFault::Json),
        ("{}", LineFault::Keys),
        ("{\"other\":1}", LineFault::Keys),
        ("{\"seq\":1,\"leaf\":\"\"}", LineFault::Keys),
        ("{\"seq\":1,\"seq\":1,\"leaf\":\"\"}", LineFault::Keys),
        ("{\"vkey\":1}", LineFault::Value("vkey")),
        ("{\"size\":1,\"root\":\"AAAA\"}", LineFault::Value("root")),
        ("{\"manifest\":{\"version\":1}}", LineFault::Keys),
        ("{\"end\":{}}", LineFault::Keys),
        (
            "{\"from\":0,\"to\":1,\"hashes\":[1]}",
            LineFault::Value("hashes"),
        ),
    ] {
        assert_eq!(Record::parse(line), Err(fault), "{line}");
    }
    for seq in ["-1", "1.0", "1e0", "\"1\"", "9223372036854775808", "null"] {
        let line = format!("{{\"seq\":{seq},\"leaf\":\"\",\"disclosures\":{sevens}}}");
        assert_eq!(Record::parse(&line), Err(LineFault::Value("seq")), "{seq}");
    }
    for disclosures in [
        "[]",
        "null",
        &sevens.replace("null]", "1]"),
        &sevens.replace("]", ",null]"),
    ] {
        let line = format!("{{\"seq\":1,\"leaf\":\"\",\"disclosures\":{disclosures}}}");
        assert_eq!(
            Record::parse(&line),
            Err(LineFault::Value("disclosures")),
            "{disclosures}"
        );
    }
    let (lines, _) = Log::random(12, 5).bundle(&Export::default());
    for (from, to) in [
        ("\"version\":1", "\"version\":2"),
        ("\"filter\":null", "\"filter\":[]"),
        ("\"withheld\":[]", "\"withheld\":[\"who\"]"),
        ("\"withheld\":[]", "\"withheld\":[\"context\",\"actor\"]"),
        ("\"origin\":\"", "\"origin\":\"https://"),
    ] {
        assert!(
            Record::parse(&lines[0].replacen(from, to, 1)).is_err(),
            "{to}"
        );
    }
}

#[test]
fn a_folders_manifest_reads_back_and_shows_damage() {
    let log = Log::random(13, 5);
    let folder = FolderManifest {
        manifest: log.manifest(&Export {
            withheld: 5,
            one_in: Some(2),
            ..Export::default()
        }),
        files: vec![ListedFile {
            name: "log.ndjson".into(),
            bytes: 17,
            sha256: Hash([7; 32]),
        }],
    };
    let text = folder.encode();
    assert_eq!(FolderManifest::parse(&text), Ok(folder));
    for (at, byte) in text.bytes().enumerate() {
        let mut changed = text.clone().into_bytes();
        changed[at] = if byte == b'1' { b'2' } else { b'1' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(FolderManifest::parse(&changed).is_err(), "{at}");
    }
}

#[test]
fn a_composer_writes_every_position_once_and_in_order_whatever_the_root() {
    let log = Log::random(14, 30);
    let size = log.size();
    let mut out = String::new();
    let line = |seq: u64| EvidenceLine {
        seq,
        leaf: log.entries[seq as usize].leaf.as_str().into(),
        disclosures: [const { None }; 7],
    };
    let mut composer = Composer::new(&log.manifest(&Export::default()), &mut out);
    assert!(matches!(
        composer.entry(line(1), &mut out),
        Err(ComposeFault::Position {
            expected: 0,
            found: 1,
            ..
        })
    ));
    composer.entry(line(0), &mut out).unwrap();
    assert_eq!(composer.checkpoint("", &mut out), Err(ComposeFault::Late));
    assert_eq!(composer.gap(1..1, vec![], &mut out), Err(ComposeFault::Gap));
    assert!(composer.gap(1..size + 1, vec![], &mut out).is_err());
    let mut short = Composer::new(&log.manifest(&Export::default()), &mut out);
    short.entry(line(0), &mut out).unwrap();
    assert!(matches!(
        short.finish(&mut out),
        Err(ComposeFault::Position { .. })
    ));
    let mut other = Composer::new(&log.manifest(&Export::default()), &mut out);
    let hashes = subtrees(0..size).iter().map(|_| Hash([0; 32])).collect();
    other.gap(0..size, hashes, &mut out).unwrap();
    other.finish(&mut out).unwrap();
    assert!(out.lines().last().unwrap().starts_with("{\"end\""));
}

#[test]
fn a_tree_grows_by_the_subtrees_of_any_range() {
    let leaves: Vec<_> = (0..70_u8).map(|i| Hash([i; 32])).collect();
    for from in 0..70_usize {
        for to in from..=70 {
            let mut tree: Tree = leaves[..from].iter().copied().collect();
            for run in subtrees(from as u64..to as u64) {
                let len = run.end - run.start;
                assert!(len.is_power_of_two() && run.start % len == 0);
                let root = subtree_root(&leaves[run.start as usize..run.end as usize]);
                assert!(tree.push_subtree(len.ilog2(), root));
            }
            assert_eq!(tree, leaves[..to].iter().copied().collect(), "{from}..{to}");
        }
    }
    let mut tree: Tree = leaves[..3].iter().copied().collect();
    assert!(!tree.push_subtree(1, leaves[0]) && !tree.push_subtree(64, leaves[0]));
    assert_eq!(tree.size(), 3);
    let mut tree = Tree::new();
    assert!(tree.push_subtree(62, leaves[0]) && !tree.push_subtree(62, leaves[0]));
}
