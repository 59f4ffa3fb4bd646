//! Control entries' content.

use audit_tlog::control::MAX_RANGES;
use audit_tlog::{Basis, Control, ControlFault, Group, Hash, Kind, Timestamp, Vkey};

const ROOT: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

fn erase(entries: Vec<(u64, u64)>) -> Control {
    let basis = Basis::parse("gdpr-17").unwrap();
    Control::Erase {
        groups: vec![Group::Actor, Group::Metadata],
        entries,
        basis,
    }
}

fn vkey(name: &str, key: u8) -> String {
    Vkey {
        name,
        key: [key; 32],
    }
    .encode()
}

#[test]
fn what_is_written_parses_back() {
    let basis = Basis::parse("retention").unwrap();
    let root = Hash::from_base64(ROOT).unwrap();
    for (control, text) in [
        (
            erase(vec![(0, 0), (7, (1 << 53) - 1)]),
            "{\"groups\":[\"actor\",\"metadata\"],\"entries\":[[0,0],[7,9007199254740991]],\"basis\":\"gdpr-17\"}".to_owned(),
        ),
        (
            Control::Prune { below: 1, root, before: Timestamp::MIN, basis: basis.clone() },
            format!("{{\"below\":1,\"root\":\"{ROOT}\",\"before\":\"1970-01-01T00:00:00.000000Z\",\"basis\":\"retention\"}}"),
        ),
        (
            Control::Epoch { epoch: 2, size: 0, root, basis },
            format!("{{\"epoch\":2,\"size\":0,\"root\":\"{ROOT}\",\"basis\":\"retention\"}}"),
        ),
        (
            Control::Key { old: vkey("a.example:80/x_y-Z", 1), new: vkey("b", 2) },
            format!("{{\"old\":\"{}\",\"new\":\"{}\"}}", vkey("a.example:80/x_y-Z", 1), vkey("b", 2)),
        ),
    ] {
        assert_eq!(control.check(), Ok(()));
        assert_eq!(control.to_json(), text);
        assert_eq!(Control::parse(control.kind(), &text), Ok(control.clone()));
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != control.kind()) {
            assert!(Control::parse(kind, &text).is_err(), "{kind}");
        }
        for other in [
            format!(" {text}"),
            format!("{text}\n"),
            text.replacen(':', ": ", 1),
            text.replacen(',', " ,", 1),
            text.replace('}', ",\"more\":1}"),
            text.replace('}', ",\"basis\":\"x\"}"),
            text.replacen("\":\"", "\":\"\\u0061", 1),
            text[..text.len() - 1].to_owned(),
        ] {
            assert!(Control::parse(control.kind(), &other).is_err(), "{other}");
        }
    }
}

#[test]
fn faults_are_told_apart() {
    let erase = |groups: &str, entries: &str, basis: &str| {
        let text = format!("{{\"groups\":{groups},\"entries\":{entries},\"basis\":{basis}}}");
        Control::parse(Kind::Erase, &text).unwrap_err()
    };
    let (one, range, basis) = ("[\"actor\"]", "[[0,0]]", "\"x\"");
    for groups in [
        "[]",
        "[\"who\"]",
        "[\"actor\",\"actor\"]",
        "[\"context\",\"actor\"]",
    ] {
        assert_eq!(
            erase(groups, range, basis),
            ControlFault::Groups,
            "{groups}"
        );
    }
    for groups in ["{}", "[1]", "[ \"actor\"]", "null", "[\"\\u0061ctor\"]"] {
        assert_eq!(
            erase(groups, range, basis),
            ControlFault::Shape(Kind::Erase),
            "{groups}"
        );
    }
    for entries in [
        "[[1,0]]",
        "[[0,1],[2,2]]",
        "[[5,6],[1,2]]",
        "[[0,5],[3,9]]",
        "[[1,1],[1,1]]",
    ] {
        assert_eq!(
            erase(one, entries, basis),
            ControlFault::Ranges,
            "{entries}"
        );
    }
    for entries in ["[[0,9007199254740992]]", "[[0,99999999999999999999999]]"] {
        assert_eq!(
            erase(one, entries, basis),
            ControlFault::Number,
            "{entries}"
        );
    }
    for entries in [
        "[[0]]",
        "[[0,1,2]]",
        "[0,1]",
        "[[0,1.0]]",
        "[[0,1e0]]",
        "[[-0,1]]",
        "[[0,\"1\"]]",
    ] {
        assert_eq!(
            erase(one, entries, basis),
            ControlFault::Shape(Kind::Erase),
            "{entries}"
        );
    }
    assert_eq!(erase(one, "[]", basis), ControlFault::RangeCount);
    assert_eq!(erase(one, range, "\"\""), ControlFault::Basis);
    assert_eq!(erase(one, range, "\"GDPR\""), ControlFault::Basis);
    assert_eq!(erase(one, range, "\"gdpr 17\""), ControlFault::Basis);
    assert_eq!(
        Control::parse(Kind::Event, "{}"),
        Err(ControlFault::NotControl)
    );

    let prune = |below: &str, root: &str, before: &str| {
        let text = format!(
            "{{\"below\":{below},\"root\":\"{root}\",\"before\":\"{before}\",\"basis\":\"x\"}}"
        );
        Control::parse(Kind::Prune, &text).unwrap_err()
    };
    let time = "2026-01-01T00:00:00.000000Z";
    assert_eq!(prune("0", ROOT, time), ControlFault::Below);
    for root in [
        &ROOT[..43],
        "",
        &ROOT.replace("FU=", "FV="),
        &ROOT.replace('/', "_"),
        "AAAA",
    ] {
        assert_eq!(prune("1", root, time), ControlFault::Root, "{root}");
    }
    for before in [
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00.000000z",
        "",
        "2026-02-30T00:00:00.000000Z",
    ] {
        assert_eq!(prune("1", ROOT, before), ControlFault::Before, "{before}");
    }
}

#[test]
fn an_erase_lists_at_most_max_ranges() {
    let ranges = |count| (0..count as u64).map(|i| (2 * i, 2 * i)).collect();
    let full = erase(ranges(MAX_RANGES));
    assert_eq!(full.check(), Ok(()));
    assert_eq!(Control::parse(Kind::Erase, &full.to_json()), Ok(full));
    let more = erase(ranges(MAX_RANGES + 1));
    assert_eq!(more.check(), Err(ControlFault::RangeCount));
    assert_eq!(
        Control::parse(Kind::Erase, &more.to_json()),
        Err(ControlFault::RangeCount)
    );
}

#[test]
fn an_erase_of_the_most_ranges_fits_into_leaf_data() {
    // The largest numbers there are.
    let last = (1 << 53) - 1;
    let ranges = (0..MAX_RANGES as u64)
        .rev()
        .map(|i| (last - 2 * i, last - 2 * i))
        .collect();
    let control = erase(ranges);
    assert_eq!(control.check(), Ok(()));
    assert!(control.to_json().len() + 2_000 < audit_tlog::leaf::MAX_LEAF_LEN);
}

#[test]
fn vkeys_are_those_of_c2sp() {
    let text = "audit.example.com/0190a000-0000-7000-8000-000000000001+cbea78c9+AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";
    let vkey = Vkey::parse(text).unwrap();
    assert_eq!(
        vkey.name,
        "audit.example.com/0190a000-0000-7000-8000-000000000001"
    );
    assert_eq!(vkey.key, [1; 32]);
    assert_eq!(vkey.id(), [0xcb, 0xea, 0x78, 0xc9]);
    assert_eq!(vkey.encode(), text);
    for wrong in [
        "",
        "x",
        "x+y+z",
        &text.replace("cbea78c9", "cbea78c8"),
        &text.replace("cbea78c9", "CBEA78C9"),
        &text.replace("cbea78c9", "cbea78c"),
        &text.replace("audit.", "Audit."),
        &text.replace("+AQEB", "+AgEB"),
        &text[..text.len() - 4],
        &format!("{text}AQEB"),
        &format!("{text}="),
        &Vkey {
            name: "",
            key: [1; 32],
        }
        .encode(),
        &Vkey {
            name: "a b",
            key: [1; 32],
        }
        .encode(),
        &Vkey {
            name: "a+b",
            key: [1; 32],
        }
        .encode(),
        &Vkey {
            name: "\u{e4}",
            key: [1; 32],
        }
        .encode(),
        &Vkey {
            name: "a\"",
            key: [1; 32],
        }
        .encode(),
    ] {
        assert_eq!(Vkey::parse(wrong), Err(ControlFault::Vkey), "{wrong}");
        let control = Control::Key {
            old: text.to_owned(),
            new: wrong.to_owned(),
        };
        assert_eq!(control.check(), Err(ControlFault::Vkey));
    }
    // A key whose base64 has plus signs.
    let plus = Vkey {
        name: "a",
        key: [0xfb; 32],
    }
    .encode();
    assert!(plus.matches('+').count() > 2);
    assert_eq!(Vkey::parse(&plus).unwrap().key, [0xfb; 32]);
}
