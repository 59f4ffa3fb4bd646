//! Whoever looks for a person finds what is there.

use audit_conformance::person::{Person, event};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

#[test]
fn a_name_is_found_as_it_is_and_in_base64_wherever_it_begins() {
    let (person, other) = (Person::random(), Person::of_seed(7));
    assert_eq!(person.name().len(), 24);
    for around in 0..6 {
        let text = format!(
            "{}{}{}",
            "?".repeat(around),
            person.name(),
            "~".repeat(around)
        );
        for written in [
            text.clone(),
            STANDARD.encode(&text),
            URL_SAFE_NO_PAD.encode(&text),
        ] {
            assert!(person.is_in(written.as_bytes()), "{written}");
            assert!(!other.is_in(written.as_bytes()), "{written}");
        }
    }
    assert!(!person.is_in(b""));
}

#[test]
fn a_name_is_found_in_files_below_a_folder_and_in_what_is_packed_there() {
    let (mut person, folder) = (Person::random(), tempfile::tempdir().unwrap());
    let below = folder.path().join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    let text = "x".repeat(100) + person.name();
    std::fs::write(folder.path().join("plain"), &text).unwrap();
    let packed = zstd::encode_all(text.repeat(3).as_bytes(), 3).unwrap();
    std::fs::write(below.join("packed.zst"), packed).unwrap();
    std::fs::write(below.join("other"), "hash").unwrap();
    let found = person.files_with(folder.path()).unwrap();
    assert!(
        found
            .iter()
            .map(|path| path.to_str().unwrap())
            .eq(["a/b/packed.zst", "plain"])
    );
    person.also("hash");
    assert_eq!(person.files_with(folder.path()).unwrap().len(), 3);
    assert_eq!(
        person
            .files_with(&folder.path().join("nowhere"))
            .unwrap()
            .len(),
        0
    );
}

#[test]
fn an_event_has_the_person_in_each_field_that_takes_any_text() {
    let person = Person::random();
    for n in [0, 1] {
        let json = event(n, person.name()).to_json();
        let fields: serde_json::Value = serde_json::from_str(&json).unwrap();
        let fields = fields.as_object().unwrap().iter();
        let without = fields.filter(|(_, value)| !person.is_in(value.to_string().as_bytes()));
        let without: Vec<&String> = without.map(|(name, _)| name).collect();
        let kept = [
            "action",
            "action_type",
            "outcome",
            "resource_type",
            "severity",
        ];
        assert_eq!(without, kept);
        assert_eq!(json.len() > 8_192, n == 0);
    }
}
