//! What a log and its witness say to each other.

use audit_tlog::checkpoint::SIZE_END;
use audit_tlog::proof::MAX_HASHES;
use audit_tlog::witness::{
    RequestFault, accept_cosignatures, decide, monitoring_path, parse_conflict,
};
use audit_tlog::{
    AddCheckpoint, Checkpoint, CheckpointFault, Cosigner, Hash, NoteFault, Refusal, Signature,
    WitnessedLog, note,
};
use proptest::prelude::*;

use crate::log::{Log, ORIGIN, key};

/// C2SP `tlog-witness`, section *add-checkpoint*, *Example request body*.
const BODY: &str = "old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
";

/// The same section's *Example response body*.
const ANSWER: &str = "— witness.example/w1 CMp+6LWBU0anHGH5aNDTJkH/gj79sG+T6+iP2ThYN5krrDJbR1HDnucjL39QsZTSvVjyQLrdk3DXDqI5G2HgLatVs0pWh6Up69HVOw==
— witness.example/w1 I7rEps0pvK2UqkS2gSpVUDhrhVtQV9lgF6pRrWAvjJHjyWpW7VcE3SiOlVlbQNt64vWhO+DlkL0+UfzuOBMh9ChdMkP1vi/lCAsmlw==
— witness.example/w2 AWui8Sk55XjYLOijihBjhqEH6nS1ndDymE0a+6idX7pLcnoB+dhnz0854aLZgrrKbYKA7nC3HNJhm/kWl7oJlqU3rXXvpysAdyP3wQ==
";

#[test]
fn the_pages_examples_are_read() {
    let request = AddCheckpoint::parse(BODY).unwrap();
    assert_eq!(request.old(), 20_852_014);
    assert_eq!(request.proof().len(), 4);
    assert_eq!(request.origin(), "example.com/behind-the-sofa");
    assert_eq!(request.note().signatures().len(), 2);
    assert_eq!(request.encode(), BODY);

    let unknown = accept_cosignatures(request.note(), ANSWER, &[]);
    assert_eq!(unknown, Err(NoteFault::NoKnownKey));
}

#[test]
fn other_spellings_of_requests_are_refused() {
    use RequestFault::{Hashes, OldSize};
    let hash = "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n";
    let cases = [
        (String::new(), OldSize),
        ("old 1".to_owned(), OldSize),
        (BODY.replace("old 2", "old 02"), OldSize),
        (BODY.replace("old 2", "old  2"), OldSize),
        (BODY.replace("old 2", "Old 2"), OldSize),
        (BODY.replace("old 20852014", "old"), OldSize),
        (BODY.replace("old 20852014", "old -1"), OldSize),
        (BODY.replace("20852014", &SIZE_END.to_string()), OldSize),
        (format!("\n{BODY}"), OldSize),
        (BODY.replace(hash, &hash.replace('=', "")), Hashes),
        (BODY.replace(hash, &hash.replace("kaw=", "kax=")), Hashes),
        (BODY.replace(hash, &hash.repeat(MAX_HASHES)), Hashes),
        (BODY.replace("/0=\n\n", "/0=\n"), Hashes),
        (
            BODY.replace("20852163", "020852163"),
            CheckpointFault::Size.into(),
        ),
        (
            BODY[..BODY.find("\n— ").unwrap()].to_owned(),
            NoteFault::Unsigned.into(),
        ),
        (BODY.trim_end().to_owned(), NoteFault::Text.into()),
    ];
    for (body, fault) in cases {
        let refused = AddCheckpoint::parse(&body).unwrap_err();
        assert_eq!(refused, fault, "{body}");
        assert_eq!(Refusal::from(refused).status(), 400);
    }
    let longest = BODY.replace(hash, &hash.repeat(MAX_HASHES - 3));
    assert_eq!(AddCheckpoint::parse(&longest).unwrap().encode(), longest);
}

#[test]
fn a_witness_follows_a_log() {
    let log = Log::of(700);
    let signer = key(ORIGIN, 1);
    let witness = Cosigner::from(key("witness.example.com/w1", 2));
    let mut known = WitnessedLog::new(ORIGIN, vec![signer.verifying_key().clone()]);
    // 0 is the empty log, and a repeat is cosigned again.
    for (time, size) in (1000..).zip([0, 0, 1, 2, 255, 256, 256, 257, 700]) {
        let mut head = log.checkpoint(size, &[&signer]);
        let proof = log.consistency(known.size, size);
        let body = AddCheckpoint::new(known.size, proof, head.clone())
            .unwrap()
            .encode();

        let request = AddCheckpoint::parse(&body).unwrap();
        let checkpoint = decide(&request, Some(&known)).unwrap();
        assert_eq!(
            (checkpoint.size(), checkpoint.root()),
            (size, log.root(size))
        );
        (known.size, known.root) = (checkpoint.size(), checkpoint.root());
        let line = witness.cosign(request.note().text(), time).unwrap();
        let answer = format!("{ANSWER}{}", line.encode());

        let witnesses = [witness.verifying_key().clone()];
        for line in accept_cosignatures(&head, &answer, &witnesses).unwrap() {
            head.add(line).unwrap();
        }
        let keys = [known.keys.clone(), witnesses.to_vec()].concat();
        let opened = Checkpoint::open(&head, &keys).unwrap();
        assert!(opened.cosigners().eq([(witness.verifying_key(), time)]));
    }
}

#[test]
fn a_witness_refuses_as_the_page_says() {
    let log = Log::of(700);
    let fork = Log {
        entries: Vec::new(),
        leaves: log.leaves.iter().rev().copied().collect(),
    };
    let (signer, other) = (key(ORIGIN, 1), key("example.com/other", 2));
    let known = |size| WitnessedLog {
        size,
        root: log.root(size),
        ..WitnessedLog::new(ORIGIN, vec![signer.verifying_key().clone()])
    };
    let ask = |old, proof: Vec<Hash>, head: &audit_tlog::Note, log: Option<&WitnessedLog>| {
        let request = AddCheckpoint::new(old, proof, head.clone()).unwrap();
        decide(&request, log).map(Checkpoint::size)
    };
    let head = |size| log.checkpoint(size, &[&signer]);
    let good = log.consistency(300, 700);

    assert_eq!(
        ask(300, good.clone(), &head(700), Some(&known(300))),
        Ok(700)
    );

    // 404: unknown logs, also when the lookup found another.
    assert_eq!(
        ask(300, good.clone(), &head(700), None),
        Err(Refusal::UnknownLog)
    );
    let foreign = log.checkpoint(700, &[&other]);
    assert_eq!(
        ask(300, good.clone(), &foreign, Some(&known(300))),
        Err(Refusal::UnknownLog)
    );

    // 403: no key of the log, a namesake, a broken line beside a good one, a cosignature.
    let text = head(700).text().to_owned();
    let by_other = note::sign(&text, &[&other]).unwrap();
    let by_namesake = note::sign(&text, &[&key(ORIGIN, 9)]).unwrap();
    let mut broken = head(700);
    broken.add(head(699).signatures()[0].clone()).unwrap();
    let cosigner = Cosigner::from(signer.clone());
    let cosigned = format!("{text}\n{}", cosigner.cosign(&text, 1).unwrap().encode());
    let cosigned = cosigned.parse().unwrap();
    for head in [&by_other, &by_namesake, &broken, &cosigned] {
        let mut known = known(300);
        known.keys.push(cosigner.verifying_key().clone());
        assert_eq!(
            ask(300, good.clone(), head, Some(&known)),
            Err(Refusal::Unsigned)
        );
        // A wrong signature is told before a wrong size.
        assert_eq!(
            ask(800, good.clone(), head, Some(&known)),
            Err(Refusal::Unsigned)
        );
    }

    // 400, and before 409.
    assert_eq!(
        ask(701, good.clone(), &head(700), Some(&known(300))),
        Err(Refusal::Shrunk)
    );

    // 409, whatever the proof.
    for old in [0, 299, 301, 700] {
        assert_eq!(
            ask(old, good.clone(), &head(700), Some(&known(300))),
            Err(Refusal::Conflict(300))
        );
    }
    assert_eq!(
        ask(300, good.clone(), &head(700), Some(&known(0))),
        Err(Refusal::Conflict(0))
    );

    // 422.
    let inconsistent = Err(Refusal::Inconsistent);
    let forked = fork.checkpoint(700, &[&signer]);
    assert_eq!(
        ask(300, good.clone(), &forked, Some(&known(300))),
        inconsistent
    );
    let its_own = fork.consistency(300, 700);
    assert_eq!(ask(300, its_own, &forked, Some(&known(300))), inconsistent);
    assert_eq!(
        ask(300, Vec::new(), &head(700), Some(&known(300))),
        inconsistent
    );
    let short = good[1..].to_vec();
    assert_eq!(ask(300, short, &head(700), Some(&known(300))), inconsistent);
    let long = [good.clone(), vec![Hash([0; 32])]].concat();
    assert_eq!(ask(300, long, &head(700), Some(&known(300))), inconsistent);
    // Another root at the same size, and a proof where none is due.
    let same = fork.checkpoint(300, &[&signer]);
    assert_eq!(ask(300, Vec::new(), &same, Some(&known(300))), inconsistent);
    assert_eq!(
        ask(300, good.clone(), &head(300), Some(&known(300))),
        inconsistent
    );
    assert_eq!(ask(0, good, &head(700), Some(&known(0))), inconsistent);
    // The empty tree has one root.
    let empty = Checkpoint::new(ORIGIN, 0, Hash([0; 32])).unwrap();
    let empty = empty.sign(&[&signer]).unwrap();
    assert_eq!(ask(0, Vec::new(), &empty, Some(&known(0))), inconsistent);
}

#[test]
fn refusals_have_the_pages_status_and_body() {
    for (refusal, status) in [
        (Refusal::Malformed(RequestFault::OldSize), 400),
        (Refusal::Shrunk, 400),
        (Refusal::Unsigned, 403),
        (Refusal::UnknownLog, 404),
        (Refusal::Conflict(300), 409),
        (Refusal::Inconsistent, 422),
    ] {
        assert_eq!(refusal.status(), status);
        assert!(refusal.body().ends_with('\n'));
        let size = matches!(refusal, Refusal::Conflict(_)).then_some(300);
        assert_eq!(parse_conflict(&refusal.body()), size);
    }
    for body in [
        "",
        "300",
        "0300\n",
        "300\n\n",
        "-1\n",
        "18446744073709551616\n",
    ] {
        assert_eq!(parse_conflict(body), None, "{body:?}");
    }
    assert_eq!(parse_conflict("0\n"), Some(0));
}

#[test]
fn answers_that_do_not_cosign_are_refused() {
    let signer = key(ORIGIN, 1);
    let head = Log::of(5).checkpoint(5, &[&signer]);
    let later = Log::of(6).checkpoint(6, &[&signer]);
    let witness = Cosigner::from(key("witness.example.com", 2));
    let known = [witness.verifying_key().clone()];
    let line = |note: &audit_tlog::Note| witness.cosign(note.text(), 1000).unwrap();
    let good = line(&head);
    let accept = |answer: &str| accept_cosignatures(&head, answer, &known);
    assert_eq!(accept(&good.encode()), Ok(vec![good.clone()]));
    assert_eq!(accept(""), Err(NoteFault::NoKnownKey));
    assert_eq!(accept(ANSWER), Err(NoteFault::NoKnownKey));
    assert_eq!(accept("\n"), Err(NoteFault::SignatureLine));
    assert_eq!(accept("<html>\n"), Err(NoteFault::SignatureLine));
    let bad = NoteFault::BadSignature("witness.example.com".to_owned());
    assert_eq!(accept(&line(&later).encode()), Err(bad));
    // The log's own signature given back is no cosignature, whoever is taken for a witness.
    let own = head.signatures()[0].encode();
    let taken = accept_cosignatures(&head, &own, &[signer.verifying_key().clone()]);
    assert_eq!(taken, Err(NoteFault::Time));
    assert_eq!(accept(&own), Err(NoteFault::NoKnownKey));
    assert_eq!(Signature::parse(&good.encode()), Ok(good));
}

#[test]
fn the_monitoring_path_is_the_hash_of_the_origin() {
    assert_eq!(
        monitoring_path("abc"),
        // FIPS 180-4's example of SHA-256.
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad/checkpoint"
    );
}

proptest! {
    #[test]
    fn whatever_is_accepted_is_written_back(at in 0..BODY.len(), to in "[ -~\n]") {
        prop_assume!(BODY.is_char_boundary(at) && BODY.is_char_boundary(at + 1));
        let changed = format!("{}{to}{}", &BODY[..at], &BODY[at + 1..]);
        if let Ok(request) = AddCheckpoint::parse(&changed) {
            prop_assert_eq!(request.encode(), changed);
        }
    }
}
