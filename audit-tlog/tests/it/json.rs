//! Strict JSON text.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use audit_tlog::json::{self, Fault, MAX_DEPTH};
use proptest::prelude::*;
use serde_json::Value;

fn canonical(text: &str) -> String {
    let mut out = String::new();
    json::write_canonical(&mut out, text);
    out
}

fn quoted(text: &str) -> String {
    let mut out = String::new();
    json::write_string(&mut out, text);
    out
}

#[test]
fn check_names_the_fault() {
    use Fault::{DuplicateKey, LoneSurrogate, Nul, Syntax};
    for (text, expected) in [
        ("null", Ok(())),
        (
            " \t\r\n{ \"a\" : [ 1 , 2e5 , -0.1 , true , \"\" ] } \n",
            Ok(()),
        ),
        (r#""\ud83d\ude00 \uD83D\uDE00 \u00e9 \\u0000 \/""#, Ok(())),
        (r#"{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}"#, Ok(())),
        (r#"{"a":"a","b":"a"}"#, Ok(())),
        (r#"{"a":["a","a"],"b":"b"}"#, Ok(())),
        (r#"{"é":1,"e\u0301":2}"#, Ok(())),
        (r#"{"":1," ":2}"#, Ok(())),
        ("9007199254740993e99999", Ok(())),
        ("", Err(Syntax)),
        ("  ", Err(Syntax)),
        ("{}{}", Err(Syntax)),
        ("[1,]", Err(Syntax)),
        ("{a:1}", Err(Syntax)),
        ("01", Err(Syntax)),
        ("1.", Err(Syntax)),
        ("NaN", Err(Syntax)),
        ("'a'", Err(Syntax)),
        ("\"\t\"", Err(Syntax)),
        ("\"\0\"", Err(Syntax)),
        ("\0", Err(Syntax)),
        ("\u{feff}1", Err(Syntax)),
        ("\u{a0}1", Err(Syntax)),
        (r#""\x""#, Err(Syntax)),
        (r#""\u12g4""#, Err(Syntax)),
        (r#""\""#, Err(Syntax)),
        (r#""\u0000""#, Err(Nul)),
        (r#"{"a\u0000":1}"#, Err(Nul)),
        (
            r#"[{"a":"long enough for eight bytes at a time \u0000"}]"#,
            Err(Nul),
        ),
        (r#""\ud800""#, Err(LoneSurrogate)),
        (r#""\udc00""#, Err(LoneSurrogate)),
        (r#""\ude00\ud83d""#, Err(LoneSurrogate)),
        (r#""\ud83d\ud83d\ude00""#, Err(LoneSurrogate)),
        (r#""\ud83d \ude00""#, Err(LoneSurrogate)),
        (r#""\ud83d\n""#, Err(LoneSurrogate)),
        (r#""\ud83d\\ude00""#, Err(LoneSurrogate)),
        (r#"{"\ud800":1}"#, Err(LoneSurrogate)),
        (r#"{"a":{"b":[{"\uDFFF":1}]}}"#, Err(LoneSurrogate)),
        (r#"{"a":1,"a":1}"#, Err(DuplicateKey)),
        (r#"{"a":1,"\u0061":2}"#, Err(DuplicateKey)),
        (r#"{"\u0061":1,"a":2}"#, Err(DuplicateKey)),
        (r#"{"\/":1,"/":2}"#, Err(DuplicateKey)),
        (r#"{"\ud83d\ude00":1,"😀":2}"#, Err(DuplicateKey)),
        (r#"{"":1,"":2}"#, Err(DuplicateKey)),
        (r#"[{"x":{"a":1,"b":{"a":1},"a":3}}]"#, Err(DuplicateKey)),
        (r#"{"a":{"b":1},"c":[{}],"a":[]}"#, Err(DuplicateKey)),
    ] {
        assert_eq!(json::check(text, MAX_DEPTH), expected, "{text}");
    }
}

#[test]
fn depth_counts_open_objects_and_arrays() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    for text in [
        nested(60),
        objects(60),
        format!("[{},{}]", nested(59), objects(59)),
    ] {
        assert_eq!(json::check(&text, MAX_DEPTH), Ok(()));
    }
    for text in [
        nested(61),
        objects(61),
        format!("[{},{}]", nested(59), objects(60)),
    ] {
        assert_eq!(json::check(&text, MAX_DEPTH), Err(Fault::TooDeep));
    }
    assert_eq!(json::check("1", 0), Ok(()));
    assert_eq!(json::check("{}", 0), Err(Fault::TooDeep));
    // Brackets in strings open nothing.
    assert_eq!(json::check(&format!("\"{}\"", "[{".repeat(99)), 0), Ok(()));
}

#[test]
fn nothing_recurses() {
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(json::check(&deep, MAX_DEPTH), Err(Fault::TooDeep));
    assert_eq!(json::check(&deep, usize::MAX), Ok(()));
    assert_eq!(json::items(&deep).unwrap().len(), 1);
    assert_eq!(canonical(&deep), deep);
}

#[test]
fn many_keys_take_no_quadratic_time() {
    // Keys of one length and a long common beginning, so that no comparison ends early. Pair by
    // pair these would be 5 * 10^9 comparisons.
    let body = |keys: &mut dyn Iterator<Item = usize>| {
        let members: Vec<_> = keys
            .map(|i| format!("\"a common beginning {i:09}\":{i}"))
            .collect();
        format!("{{{}}}", members.join(","))
    };
    let start = Instant::now();
    let text = body(&mut (0..100_000).rev());
    assert_eq!(json::check(&text, MAX_DEPTH), Ok(()));
    assert_eq!(json::members(&text).unwrap().len(), 100_000);
    assert_eq!(canonical(&text), body(&mut (0..100_000)));
    let twice = body(&mut (0..100_000).chain([50_000]));
    assert_eq!(json::check(&twice, MAX_DEPTH), Err(Fault::DuplicateKey));
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn repeats_are_found_among_any_number_of_keys() {
    for count in 1..40 {
        let keys: Vec<_> = (0..count).map(|i| format!("\"k{i}\":0")).collect();
        assert_eq!(
            json::check(&format!("{{{}}}", keys.join(",")), MAX_DEPTH),
            Ok(())
        );
        for i in 0..count {
            let text = format!("{{{},\"\\u006b{i}\":0}}", keys.join(","));
            assert_eq!(
                json::check(&text, MAX_DEPTH),
                Err(Fault::DuplicateKey),
                "{text}"
            );
        }
    }
}

#[test]
fn members_are_exact_texts() {
    let text = " {\"a\" : 1e2 , \"b\\u0063\":{ \"x\" : [ \"}\\\"\" ] } ,\n\"a\":\"\\ud800\",\"\":[],\"n\":null} ";
    let members = json::members(text).unwrap();
    let found: Vec<_> = members.iter().map(|m| (m.name.as_ref(), m.raw)).collect();
    assert_eq!(
        found,
        [
            ("a", "1e2"),
            ("bc", "{ \"x\" : [ \"}\\\"\" ] }"),
            ("a", "\"\\ud800\""),
            ("", "[]"),
            ("n", "null"),
        ]
    );
    assert!(matches!(members[0].name, Cow::Borrowed(_)));
    assert_eq!(json::members("{}"), Ok(vec![]));
    assert_eq!(json::members(" { \n } "), Ok(vec![]));
    for text in [
        "",
        "[]",
        "\"a\"",
        "null",
        "{} {}",
        "{\"a\":1,}",
        "{\"a\":}",
        "{\"a\":1",
        "{1:1}",
    ] {
        assert_eq!(json::members(text), Err(Fault::Syntax), "{text}");
    }
    assert_eq!(json::members(r#"{"a\u0000":1}"#), Err(Fault::Nul));
    assert_eq!(json::members(r#"{"a\udc00":1}"#), Err(Fault::LoneSurrogate));
}

#[test]
fn items_are_exact_texts() {
    let items = json::items(" [ 1 , \"a,]\" ,[ 2,3 ],{\"a\":[]}\n, null ] ").unwrap();
    assert_eq!(items, ["1", "\"a,]\"", "[ 2,3 ]", "{\"a\":[]}", "null"]);
    assert_eq!(json::items("[ ]"), Ok(vec![]));
    for text in ["", "{}", "1", "[1,]", "[1", "[]]", "[,]"] {
        assert_eq!(json::items(text), Err(Fault::Syntax), "{text}");
    }
}

#[test]
fn string_decodes_one_literal() {
    assert!(matches!(
        json::string("\"pläin\""),
        Ok(Cow::Borrowed("pläin"))
    ));
    let all = r#""\"\\\/\b\f\n\r\t\u00E9\ud83d\ude00""#;
    assert_eq!(json::string(all).unwrap(), "\"\\/\u{8}\u{c}\n\r\té😀");
    assert_eq!(json::string("\"\""), Ok(Cow::Borrowed("")));
    for raw in [
        "",
        "\"",
        "a",
        "1",
        " \"a\"",
        "\"a\" ",
        "\"a\"b\"",
        "\"\\\"",
        "\"\\",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u+123\"",
        "\"tab\there\"",
        "\"escape \\n then\ttab\"",
        "\"escape \\n then \"quote\"",
        "null",
        "[]",
    ] {
        assert_eq!(json::string(raw), Err(Fault::Syntax), "{raw}");
    }
    assert_eq!(json::string(r#""\u0000""#), Err(Fault::Nul));
    assert_eq!(json::string(r#""\ud800""#), Err(Fault::LoneSurrogate));
    assert_eq!(json::string(r#""\ud800\u0041""#), Err(Fault::LoneSurrogate));
}

#[test]
fn write_string_escapes_as_rfc_8785_says() {
    assert_eq!(
        quoted("\0\u{1}\u{8}\t\n\u{b}\u{c}\r\u{1f} \"\\/\u{7f}\u{2028}é😀"),
        "\"\\u0000\\u0001\\b\\t\\n\\u000b\\f\\r\\u001f \\\"\\\\/\u{7f}\u{2028}é😀\""
    );
    assert_eq!(quoted(""), "\"\"");
}

#[test]
fn canonical_form_drops_spelling_and_keeps_numbers() {
    for (text, expected) in [
        (" null ", "null"),
        (
            "[ 1e2 , 1E+2,100.0, -0 , 9007199254740993 ]",
            "[1e2,1E+2,100.0,-0,9007199254740993]",
        ),
        (
            "{ \"b\" : 1 , \"a\" : { \"d\":[ ] , \"c\" : {} } }",
            r#"{"a":{"c":{},"d":[]},"b":1}"#,
        ),
        (
            r#"{"\u0062":"\u0041\/","a\n":"\u000A"}"#,
            r#"{"a\n":"\n","b":"A/"}"#,
        ),
        // By code point: U+FFFF before U+10000, unlike by UTF-16 units.
        (
            "{\"\u{10000}\":1,\"\u{ffff}\":2,\"\":3}",
            "{\"\":3,\"\u{ffff}\":2,\"\u{10000}\":1}",
        ),
        // By the decoded key, not by its escape.
        (
            r#"{"a\\":1,"a\"":2,"a\u0001":3,"a]":4}"#,
            r#"{"a\u0001":3,"a\"":2,"a\\":1,"a]":4}"#,
        ),
        (
            r#"[{"b":1,"a":[{"d":1,"c":2}]},{}]"#,
            r#"[{"a":[{"c":2,"d":1}],"b":1},{}]"#,
        ),
    ] {
        assert_eq!(canonical(text), expected);
    }
}

#[test]
fn canonical_is_appended() {
    let mut out = String::from("before:");
    json::write_canonical(&mut out, "{\"b\":1,\"a\":2}");
    assert_eq!(out, "before:{\"a\":2,\"b\":1}");
}

#[test]
fn compact_line_keeps_everything_but_line_breaks() {
    let mut out = String::new();
    json::write_compact_line(&mut out, "{\r\n\"a\":\t\"\\n\",\n\n\"b\" : 1\r}");
    assert_eq!(out, "{  \"a\":\t\"\\n\",  \"b\" : 1 }");
}

/// JSON text with spelling that varies: white space, escapes, key order. Keys repeat now and then,
/// unless they are to be `unique`.
fn any_json(unique: bool) -> impl Strategy<Value = String> {
    let space = prop_oneof![Just(""), Just(" "), Just("\n\t")];
    let text = prop_oneof![
        "[a-c]{0,3}",
        "\\PC{0,12}",
        "[\"\\\\/\u{1}-\u{1f}\u{1f600}]{0,5}"
    ];
    let literal = (text, any::<bool>()).prop_map(|(text, escape)| {
        if escape {
            let units: Vec<_> = text.encode_utf16().map(|u| format!("\\u{u:04X}")).collect();
            format!("\"{}\"", units.concat())
        } else {
            serde_json::to_string(&text).unwrap()
        }
    });
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
        literal.clone(),
    ];
    (scalar, space)
        .prop_map(|(s, pad)| format!("{s}{pad}"))
        .prop_recursive(5, 60, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6)
                    .prop_map(|v| format!("[ {}]", v.join(", "))),
                prop::collection::vec((literal.clone(), inner), 0..20)
                    .prop_map(move |members| object(&members, unique)),
            ]
        })
}

fn object(members: &[(String, String)], unique: bool) -> String {
    let mut out = String::from("{");
    for (i, (key, value)) in members.iter().enumerate() {
        let key = key.strip_suffix('"').unwrap();
        let comma = if i > 0 { "," } else { "" };
        let number = if unique {
            format!("#{i}")
        } else {
            String::new()
        };
        out.push_str(&format!("{comma}{key}{number}\": {value}"));
    }
    out + "\n}"
}

/// Whether an object has a key twice, found by another way than the crate's.
fn has_repeats(text: &str) -> bool {
    let raw = |text: &str| text.trim_matches([' ', '\n', '\t']).to_owned();
    let text = raw(text);
    if text.starts_with('{') {
        let members = json::members(&text).unwrap();
        let map: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        map.len() != members.len() || members.iter().any(|m| has_repeats(m.raw))
    } else if text.starts_with('[') {
        json::items(&text).unwrap().into_iter().any(has_repeats)
    } else {
        false
    }
}

proptest! {
    #[test]
    fn check_agrees_with_serde_json_on_syntax(text in "[\\[\\]{}:,\"\\\\a0-9eE.+ \n-]{0,12}") {
        let valid = serde_json::from_str::<Box<serde_json::value::RawValue>>(&text).is_ok();
        prop_assert_eq!(valid, json::check(&text, 99) != Err(Fault::Syntax));
        let object = valid && text.trim_start().starts_with('{');
        prop_assert_eq!(object, json::members(&text).is_ok());
        let array = valid && text.trim_start().starts_with('[');
        prop_assert_eq!(array, json::items(&text).is_ok());
    }

    #[test]
    fn text_that_is_not_json_panics_nowhere(text in "\\PC{0,30}", cut in "[\\[\\]{}:,\"\\\\ud8é0 ]{0,16}") {
        for text in [text, cut] {
            let object = text.contains('{');
            prop_assert!(object || json::admit(&text, 5) != Err(Fault::DuplicateKey));
            prop_assert!(!canonical(&text).starts_with(' '));
            prop_assert!(json::string(&text).is_err() || text.starts_with('"'));
        }
    }

    #[test]
    fn admit_finds_repeats_and_nothing_else(text in any_json(false)) {
        prop_assume!(serde_json::from_str::<Value>(&text).is_ok() && !text.contains("\\u0000"));
        let expected = if has_repeats(&text) { Err(Fault::DuplicateKey) } else { Ok(()) };
        prop_assert_eq!(json::check(&text, MAX_DEPTH), expected);
    }

    #[test]
    fn canonical_form_means_the_same_and_is_its_own(text in any_json(true)) {
        prop_assert_eq!(json::check(&text, MAX_DEPTH), Ok(()));
        let form = canonical(&text);
        // Numbers beyond a double's range are no values to serde_json.
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            prop_assert_eq!(serde_json::from_str::<Value>(&form).unwrap(), value);
        }
        prop_assert_eq!(json::check(&form, MAX_DEPTH), Ok(()));
        prop_assert_eq!(canonical(&form), form);
    }

    #[test]
    fn canonical_form_ignores_the_order_of_members(text in any_json(true)) {
        prop_assert_eq!(json::check(&text, MAX_DEPTH), Ok(()));
        let text = format!("{{\"b\":{text},\"c\":{text},\"a\":{text}}}");
        let mut members = json::members(&text).unwrap();
        members.reverse();
        let members: Vec<_> = members.iter().map(|m| format!("{}:{}", quoted(&m.name), m.raw)).collect();
        prop_assert_eq!(canonical(&format!("{{{}}}", members.join(" , "))), canonical(&text));
    }

    #[test]
    fn written_strings_read_back(text in any::<String>()) {
        prop_assume!(!text.contains('\0'));
        let literal = quoted(&text);
        prop_assert_eq!(json::string(&literal).unwrap(), text.as_str());
        prop_assert_eq!(serde_json::from_str::<String>(&literal).unwrap(), text);
    }
}
