//! Signed notes, against the examples of C2SP's pages and of Go's `sumdb/note`, and another Rust
//! implementation.

use audit_tlog::note::{self, Algorithm, MAX_LEN, MAX_SIGNATURES, MAX_TIME};
use audit_tlog::{Cosigner, Note, NoteFault, Signature, SigningKey, VerifyingKey, Vkey};
use proptest::prelude::*;

use crate::log::key;

/// C2SP `signed-note`, section *Verifier keys*, *Example*.
const VKEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const NOTE: &str = "This is an example message.\n\n— example.com/foo \
    Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

/// The examples in the documentation of `golang.org/x/mod/sumdb/note`.
const GO_SKEY: &str =
    "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const GO_VKEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const GO_TEXT: &str = "If you think cryptography is the answer to your problem,\n\
    then you don't know what your problem is.\n";
const GO_LINE: &str = "— PeterNeumann \
    x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

fn vkey(text: &str) -> VerifyingKey {
    VerifyingKey::parse(text).unwrap()
}

fn lines(signers: &[&SigningKey]) -> String {
    let note = note::sign("x\n", signers).unwrap();
    note.signatures().iter().map(Signature::encode).collect()
}

#[test]
fn the_pages_example_verifies() {
    let note = Note::parse(NOTE).unwrap();
    assert_eq!(note.text(), "This is an example message.\n");
    let signers = note.verify(&[vkey(VKEY)]).unwrap();
    assert_eq!(signers.len(), 1);
    assert_eq!(signers[0].key.encode(), VKEY);
    assert_eq!(signers[0].time, None);
    assert_eq!(note.encode(), NOTE);
}

#[test]
fn gos_signing_key_makes_gos_note() {
    let key = SigningKey::parse(GO_SKEY).unwrap();
    assert_eq!(key.encode(), GO_SKEY);
    assert_eq!(key.verifying_key().encode(), GO_VKEY);
    let note = note::sign(GO_TEXT, &[&key]).unwrap();
    assert_eq!(note.encode(), format!("{GO_TEXT}\n{GO_LINE}"));
    assert!(note.verify(&[vkey(GO_VKEY)]).is_ok());
}

#[test]
fn what_can_be_printed_of_a_key_is_not_its_secret() {
    let key = SigningKey::parse(GO_SKEY).unwrap();
    let secret = GO_SKEY.rsplit('+').next().unwrap();
    for shown in [
        format!("{key:?}"),
        format!("{:?}", Cosigner::from(key.clone())),
        SigningKey::parse(&GO_SKEY[..60]).unwrap_err().to_string(),
    ] {
        assert!(!shown.contains(&secret[..8]), "{shown}");
    }
}

#[test]
fn one_pair_signs_under_many_names() {
    let first = key("example.com/a", 1);
    let second = first.renamed("example.com/b").unwrap();
    let keys = [first.verifying_key(), second.verifying_key()];
    assert_eq!(keys[0].public_key(), keys[1].public_key());
    assert_ne!(keys[0].id(), keys[1].id());
    assert_eq!(second.encode(), key("example.com/b", 1).encode());
    let note = note::sign("x\n", &[&second]).unwrap();
    assert_eq!(note.verify(&[keys[0].clone()]), Err(NoteFault::NoKnownKey));
    assert!(note.verify(&[keys[1].clone()]).is_ok());
    assert_eq!(first.renamed("a b").unwrap_err(), NoteFault::Name);
}

#[test]
fn a_vkey_of_a_control_entry_is_the_same_text() {
    let key = key("example.com/log", 1);
    let text = key.verifying_key().encode();
    let control = Vkey::parse(&text).unwrap();
    assert_eq!(control.encode(), text);
    assert_eq!(control.id(), key.verifying_key().id());
    assert_eq!(
        VerifyingKey::try_from(control).as_ref(),
        Ok(key.verifying_key())
    );
    // Not the y of a point: 2 (RFC 8032 §5.1.3 finds no square root for it).
    let mut bytes = [0; 32];
    bytes[0] = 2;
    let control = Vkey {
        name: "x",
        key: bytes,
    };
    assert_eq!(VerifyingKey::try_from(control), Err(NoteFault::Vkey));
}

#[test]
fn other_spellings_of_keys_are_refused() {
    let id = |text: &str| text.replace("530d903a", "530d903b");
    let cosigner = Cosigner::from(key("example.com/foo", 1));
    let cosigner = cosigner.verifying_key().encode();
    for text in [
        String::new(),
        "example.com/foo".to_owned(),
        id(VKEY),
        VKEY.replace("530d903a", "530D903A"),
        VKEY.replace("530d903a", "0530d903a"),
        VKEY.replace("example.com/foo", "example.com/fop"),
        VKEY.replace("example.com/foo", ""),
        // Not zero in the bits that base64 doesn't use; no padding is left to drop.
        format!("{VKEY}="),
        format!("{VKEY}\n"),
        format!(" {VKEY}"),
        // Type 2, ECDSA.
        VKEY.replace("+Aeky", "+Aky"),
        VKEY.replace("+Aeky", "+Auky"),
    ] {
        assert!(VerifyingKey::parse(&text).is_err(), "{text}");
    }
    assert!(VerifyingKey::parse(&cosigner).is_ok());
    assert!(Vkey::parse(&cosigner).is_err());

    for text in [
        GO_SKEY.replace("PRIVATE+KEY+", ""),
        GO_SKEY.replace("c74f20a3", "c74f20a4"),
        GO_SKEY.replace("PeterNeumann", "Peter Neumann"),
        GO_SKEY.replace("+AYEK", "+BIEK"),
        format!("{GO_SKEY}\n"),
        GO_SKEY[..GO_SKEY.len() - 4].to_owned(),
    ] {
        assert_eq!(
            SigningKey::parse(&text).unwrap_err(),
            NoteFault::SigningKey,
            "{text}"
        );
    }
}

#[test]
fn key_names_have_no_space_plus_or_control_character() {
    for name in [
        "",
        "a b",
        "a+b",
        "a\tb",
        "a\nb",
        "a\u{a0}b",
        "a\u{2003}b",
        "a\u{1}b",
    ] {
        let key = SigningKey::from_seed(name, &[1; 32]);
        assert_eq!(key.unwrap_err(), NoteFault::Name, "{name:?}");
    }
    let name = "zoë.example/ключ:1_~";
    let key = key(name, 1);
    let note = note::sign("x\n", &[&key]).unwrap();
    assert_eq!(Note::parse(&note.encode()).as_ref(), Ok(&note));
    assert_eq!(
        VerifyingKey::parse(&key.verifying_key().encode()).as_ref(),
        Ok(key.verifying_key())
    );
}

#[test]
fn texts_that_are_no_note_are_refused() {
    let (one, two) = (key("one", 1), key("two", 2));
    let line = lines(&[&one]);
    let many: String = (0..=MAX_SIGNATURES)
        .map(|i| lines(&[&key(&format!("k{i}"), 1)]))
        .collect();
    let cases = [
        ("", NoteFault::Text),
        ("x\n", NoteFault::Unsigned),
        ("x\n\n", NoteFault::Unsigned),
        ("\n\n", NoteFault::Unsigned),
        (&format!("x\n{line}"), NoteFault::Unsigned),
        (&line, NoteFault::Unsigned),
        (&format!("x\n\n{line}\n"), NoteFault::Unsigned),
        (&format!("x\n\n{}", line.trim_end()), NoteFault::Text),
        (&format!("x\r\n\n{line}"), NoteFault::Text),
        (&format!("x\0\n\n{line}"), NoteFault::Text),
        (&format!("x\n\n{line}more\n"), NoteFault::SignatureLine),
        (&format!("x\n\n {line}"), NoteFault::SignatureLine),
        (
            &format!("x\n\n{}", line.replace('—', "-")),
            NoteFault::SignatureLine,
        ),
        (
            &format!("x\n\n{}", line.replace("one ", "one  ")),
            NoteFault::SignatureLine,
        ),
        (
            &format!("x\n\n{}", line.replace("one", "o+e")),
            NoteFault::Name,
        ),
        (
            &format!("x\n\n{}", line.replace("one", "o\u{a0}e")),
            NoteFault::Name,
        ),
        (
            &format!("x\n\n{}", line.replace("one ", " ")),
            NoteFault::Name,
        ),
        ("x\n\n— one \n", NoteFault::SignatureLine),
        ("x\n\n— one\n", NoteFault::SignatureLine),
        // Four bytes are a key id without a signature.
        ("x\n\n— one AAAAAA==\n", NoteFault::SignatureLine),
        // Bits that base64 doesn't use.
        ("x\n\n— one AAAAAAF=\n", NoteFault::SignatureLine),
        ("x\n\n— one AAAAAAE\n", NoteFault::SignatureLine),
        (&format!("x\n\n{many}"), NoteFault::TooManySignatures),
        (
            &format!("{}\n\n{line}", "x".repeat(MAX_LEN)),
            NoteFault::TooLong,
        ),
    ];
    for (text, fault) in cases {
        assert_eq!(Note::parse(text), Err(fault), "{text:.80}");
    }
    let blank = format!("x\n\ny\n\n{line}");
    assert_eq!(Note::parse(&blank).unwrap().text(), "x\n\ny\n");
    // A signature line of another note is text, once more lines follow.
    let nested = format!("x\n\n{line}\n{}", lines(&[&two]));
    assert_eq!(Note::parse(&nested).unwrap().text(), format!("x\n\n{line}"));
    assert!(Note::parse("x\n\n— one AAAAAAE=\n").is_ok());
}

#[test]
fn texts_that_no_note_can_have_are_not_signed() {
    let key = key("one", 1);
    for text in ["", "x", "x\ry\n", "x\ty\n", "x\u{1f}\n"] {
        assert_eq!(note::sign(text, &[&key]), Err(NoteFault::Text), "{text:?}");
        let cosigner = Cosigner::from(key.clone());
        assert_eq!(cosigner.cosign(text, 1), Err(NoteFault::Text), "{text:?}");
    }
    assert_eq!(note::sign("x\n", &[]), Err(NoteFault::Unsigned));
    let long = format!("{}\n", "x".repeat(MAX_LEN));
    assert_eq!(note::sign(&long, &[&key]), Err(NoteFault::TooLong));
    let many = vec![&key; MAX_SIGNATURES + 1];
    assert_eq!(note::sign("x\n", &many), Err(NoteFault::TooManySignatures));
    assert!(note::sign("\n", &[&key]).is_ok());
}

#[test]
fn unknown_signatures_are_ignored_and_wrong_ones_of_known_keys_refused() {
    let (one, two, three) = (key("one", 1), key("two", 2), key("three", 3));
    let known = [one.verifying_key().clone(), two.verifying_key().clone()];
    let names = |note: &str| -> Result<Vec<String>, NoteFault> {
        let signers = Note::parse(note).unwrap().verify(&known)?;
        Ok(signers.iter().map(|s| s.key.name().to_owned()).collect())
    };
    let wrong = |key: &SigningKey| {
        let other = note::sign("y\n", &[key]).unwrap();
        other.signatures()[0].encode()
    };
    let note = |lines: &[String]| format!("x\n\n{}", lines.concat());
    let [a, b, c] = [&one, &two, &three].map(|key| lines(&[key]));
    // Another key of the same name, and the same id under another name.
    let namesake = lines(&[&key("one", 9)]);
    let same_id = a.replace("one", "eno");

    assert_eq!(
        names(&note(&[a.clone(), b.clone()])).unwrap(),
        ["one", "two"]
    );
    assert_eq!(
        names(&note(&[c.clone(), b.clone(), a.clone()])).unwrap(),
        ["two", "one"]
    );
    assert_eq!(
        names(&note(&[
            wrong(&three),
            namesake.clone(),
            same_id.clone(),
            a.clone()
        ]))
        .unwrap(),
        ["one"]
    );
    assert_eq!(names(&note(&[a.clone(), a.clone()])).unwrap(), ["one"]);
    let bad = |name: &str| Err(NoteFault::BadSignature(name.to_owned()));
    assert_eq!(names(&note(&[a.clone(), wrong(&two)])), bad("two"));
    assert_eq!(names(&note(&[a.clone(), wrong(&one)])), bad("one"));
    assert_eq!(names(&note(&[wrong(&one), a])), bad("one"));
    assert_eq!(
        names(&note(&[c, namesake, same_id])),
        Err(NoteFault::NoKnownKey)
    );
}

#[test]
fn sixteen_signatures_of_five_kilobytes_fit() {
    let line = |i: u8| {
        let key = Signature::parse("— post-quantum AAAAAAE=\n").unwrap();
        let bytes = "AAAA".repeat(5_000 / 3);
        assert_eq!(key.id(), [0; 4]);
        format!("— post-quantum/{i} {bytes}\n")
    };
    let one = key("one", 1);
    let text = format!(
        "x\n\n{}{}",
        (0..16).map(line).collect::<String>(),
        lines(&[&one])
    );
    let note = Note::parse(&text).unwrap();
    assert_eq!(note.signatures().len(), 17);
    assert!(note.verify(&[one.verifying_key().clone()]).is_ok());
}

#[test]
fn a_line_is_added_once_and_only_while_there_is_room() {
    let mut note = note::sign("x\n", &[&key("one", 1)]).unwrap();
    let second = Signature::parse(&lines(&[&key("two", 2)])).unwrap();
    note.add(second.clone()).unwrap();
    note.add(second).unwrap();
    assert_eq!(note.signatures().len(), 2);
    for i in 3..=MAX_SIGNATURES {
        let line = lines(&[&key(&format!("key{i}"), 1)]);
        note.add(Signature::parse(&line).unwrap()).unwrap();
    }
    let before = note.clone();
    let more = Signature::parse(&lines(&[&key("more", 3)])).unwrap();
    assert_eq!(note.add(more), Err(NoteFault::TooManySignatures));
    assert_eq!(note, before);
}

/// C2SP `tlog-cosignature`, its two examples: the line and the time of what it signs.
#[test]
fn the_time_of_the_pages_cosignature_is_read() {
    let line = "— witness.example.com/w1 \
        jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";
    let signature = Signature::parse(line).unwrap();
    let (time, rest) = signature.bytes().split_first_chunk::<8>().unwrap();
    assert_eq!(u64::from_be_bytes(*time), 1_679_315_147);
    assert_eq!(rest.len(), 64);
    assert_eq!(signature.encode(), line);
}

#[test]
fn a_cosignature_holds_for_its_text_and_its_time() {
    let text = "example.com/behind-the-sofa\n20852163\n\
        CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
    let log = key("example.com/behind-the-sofa", 1);
    let witness = Cosigner::from(key("witness.example.com/w1", 2));
    let known = [witness.verifying_key().clone()];
    assert_eq!(known[0].algorithm(), Algorithm::Cosignature);
    let mut note = note::sign(text, &[&log]).unwrap();
    note.add(witness.cosign(text, 1_679_315_147).unwrap())
        .unwrap();

    let signers = note.verify(&known).unwrap();
    assert_eq!(signers[0].time, Some(1_679_315_147));

    // What is signed, spelt out and signed as a plain text.
    let plain = key("witness.example.com/w1", 2);
    let message = format!("cosignature/v1\ntime 1679315147\n{text}");
    let plain = note::sign(&message, &[&plain]).unwrap();
    let cosignature = &note.signatures()[1];
    assert_eq!(cosignature.bytes()[8..], *plain.signatures()[0].bytes());
    assert_ne!(cosignature.id(), plain.signatures()[0].id());

    let bad = Err(NoteFault::BadSignature(witness.name().to_owned()));
    for (what, other) in [
        ("another time", witness.cosign(text, 1_679_315_148).unwrap()),
        (
            "another text",
            witness.cosign("x\n", 1_679_315_147).unwrap(),
        ),
    ] {
        // The time of the good one before the signature of the other.
        let mut bytes = other.id().to_vec();
        bytes.extend(&cosignature.bytes()[..8]);
        bytes.extend(&other.bytes()[8..]);
        let line = format!("— {} {}\n", witness.name(), base64(&bytes));
        let note = format!("{text}\n{line}");
        assert_eq!(Note::parse(&note).unwrap().verify(&known), bad, "{what}");
    }
    for time in [0, MAX_TIME + 1, u64::MAX] {
        assert_eq!(witness.cosign(text, time), Err(NoteFault::Time));
    }
    assert!(witness.cosign(text, MAX_TIME).is_ok());
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn another_implementation_signs_the_same_and_verifies() {
    let other = signed_note::StandardSigner::new(GO_SKEY).unwrap();
    let mut theirs = signed_note::Note::new(GO_TEXT.as_bytes(), &[]).unwrap();
    theirs.add_sigs(&[&other]).unwrap();
    let ours = note::sign(GO_TEXT, &[&SigningKey::parse(GO_SKEY).unwrap()]).unwrap();
    assert_eq!(theirs.to_bytes(), ours.encode().into_bytes());
    assert!(verified_by_other(&ours.encode(), GO_VKEY));
}

fn verified_by_other(note: &str, vkey: &str) -> bool {
    let verifier = signed_note::StandardVerifier::new(vkey).unwrap();
    let known = signed_note::VerifierList::new(vec![Box::new(verifier)]);
    signed_note::Note::from_bytes(note.as_bytes()).is_ok_and(|note| note.verify(&known).is_ok())
}

proptest! {
    /// Ours may be stricter (base64, small orders), and never laxer.
    #[test]
    fn a_changed_note_that_verifies_does_so_elsewhere(
        at in 0usize..NOTE.len(),
        to in "[ -~—\n]",
    ) {
        prop_assume!(NOTE.is_char_boundary(at));
        let rest = &NOTE[at..];
        let skipped = rest.chars().next().map_or(0, char::len_utf8);
        let changed = format!("{}{to}{}", &NOTE[..at], &rest[skipped..]);
        let ours = Note::parse(&changed).and_then(|note| {
            assert_eq!(note.encode(), changed);
            note.verify(&[vkey(VKEY)])
        });
        prop_assert_eq!(ours.is_ok(), changed == NOTE);
        if ours.is_ok() {
            prop_assert!(verified_by_other(&changed, VKEY));
        }
    }

    #[test]
    fn what_is_signed_reads_back(
        text in "[^\x00-\x1f]{0,40}(\n[^\x00-\x1f]{0,40}){0,5}",
        seed in any::<[u8; 32]>(),
        name in "[a-z./0-9é-]{1,20}",
    ) {
        let text = format!("{text}\n");
        let key = SigningKey::from_seed(&name, &seed).unwrap();
        prop_assert_eq!(SigningKey::parse(&key.encode()).unwrap().encode(), key.encode());
        let note = note::sign(&text, &[&key]).unwrap();
        prop_assert_eq!(Note::parse(&note.encode()), Ok(note.clone()));
        prop_assert_eq!(note.text(), &text);
        prop_assert!(note.verify(&[key.verifying_key().clone()]).is_ok());
        prop_assert!(verified_by_other(&note.encode(), &key.verifying_key().encode()));
    }

    #[test]
    fn no_text_makes_the_readers_panic(text in "[ -~—\n]{0,200}", bytes in ".*") {
        for text in [text, bytes] {
            if let Ok(note) = Note::parse(&text) {
                prop_assert_eq!(note.encode(), text.clone());
            }
            if let Ok(key) = VerifyingKey::parse(&text) {
                prop_assert_eq!(key.encode(), text);
            }
        }
    }
}

#[test]
fn a_cosigners_later_statement_takes_the_place_of_its_earlier_one() {
    let text = "example.com/foo\n1\nAAAA\n";
    let mut note = note::sign(text, &[&key("example.com/foo", 1)]).unwrap();
    let witnesses = [2, 3].map(|n| Cosigner::from(key("witness.example.com/w", n)));
    for (witness, time) in [(0, 10), (1, 11), (0, 12), (0, 12)] {
        let line = witnesses[witness].cosign(text, time).unwrap();
        note.replace(line).unwrap();
    }
    // One name, two keys.
    let keys = witnesses.map(|witness| witness.verifying_key().clone());
    let times = note
        .verify(&keys)
        .unwrap()
        .into_iter()
        .map(|signer| signer.time);
    assert_eq!(times.collect::<Vec<_>>(), [Some(11), Some(12)]);
    assert_eq!(note.signatures().len(), 3);
    assert!(
        note.verify(&[key("example.com/foo", 1).verifying_key().clone()])
            .is_ok()
    );
}
