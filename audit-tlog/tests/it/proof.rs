//! The text of an inclusion proof.

use audit_tlog::checkpoint::SIZE_END;
use audit_tlog::proof::{InclusionFault, InclusionProof, MAX_HASHES};
use audit_tlog::{CheckpointFault, Cosigner, Hash, Note, NoteFault, ProofFault, note};
use proptest::prelude::*;

use crate::log::{Log, ORIGIN, key};

/// C2SP `tlog-proof`'s example, with the signatures, which it abbreviates, replaced by one.
const TEXT: &str = "c2sp.org/tlog-proof@v1
extra YWdlLXYxLjIuMS1kYXJ3aW4tYXJtNjQudGFyLmd6kYXJ3aW4tYXJ
index 73894
gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=
EKNzoDWG8LGC0Yp9o+sv3qllpMP9uHQ9B20KNL+Q1zs=
RoopEkOdqkYqMB4MJXrbt/hMjOxsVn0IrWjpz1ZMMes=
AHCioX9nLjsrse6YhjRRmk1WUEirVOLLRoOQ6vfO5vk=

example.com/fancylog
109482
sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=

— example.com/fancylog hI2DJwAAAAE=
";

#[test]
fn the_pages_example_is_read() {
    let proof = InclusionProof::parse(TEXT).unwrap();
    assert_eq!(proof.index(), 73_894);
    assert_eq!(proof.hashes().len(), 5);
    assert!(
        proof
            .extra()
            .unwrap()
            .starts_with(b"age-v1.2.1-darwin-arm64.tar.gz")
    );
    assert!(
        proof
            .checkpoint()
            .text()
            .starts_with("example.com/fancylog\n109482\n")
    );
    assert_eq!(proof.encode(), TEXT);
}

#[test]
fn other_spellings_of_proofs_are_refused() {
    use InclusionFault::{Extra, Hashes, Header, Index};
    let good = TEXT;
    let hash = "gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=\n";
    let checkpoint = |fault: CheckpointFault| InclusionFault::Checkpoint(fault);
    let extra = good.lines().nth(1).unwrap().to_owned() + "\n";
    let cases = [
        (String::new(), Header),
        (good.replace("@v1", "@v2"), Header),
        (format!("\n{good}"), Header),
        (good.replace("@v1\n", "@v1\r\n"), Header),
        (good.replace("extra YWdl", "extra  YWdl"), Extra),
        (good.replace(&extra, "extra \n"), Extra),
        (good.replace("tYXJ", "tYXJ="), Extra),
        (good.replace("tYXJ", "tYX="), Extra),
        (good.replace(&extra, "extra\n"), Index),
        (good.replace(&extra, "Extra AAAA\n"), Index),
        (good.replace(&extra, &extra.repeat(2)), Index),
        (good.replace("index 73894\n", ""), Index),
        (good.replace("index 73894", "index 073894"), Index),
        (good.replace("index 73894", "index +73894"), Index),
        (good.replace("index 73894", "index "), Index),
        (good.replace("index 73894", "index 73894 "), Index),
        (good.replace("73894", &SIZE_END.to_string()), Index),
        (
            good.replace("index 73894", "index 18446744073709551616"),
            Index,
        ),
        (good.replace(hash, &hash.replace("lQ=", "lR=")), Hashes),
        (
            good.replace(hash, &hash.to_lowercase().replace('=', "")),
            Hashes,
        ),
        (good.replace(hash, &format!(" {hash}")), Hashes),
        (good.replace(hash, &hash.repeat(MAX_HASHES)), Hashes),
        (good.replace("vk=\n\n", "vk=\n"), Hashes),
        (good[..good.find("\n\n").unwrap() + 1].to_owned(), Hashes),
        (
            good[..good.find("\n\n").unwrap() + 2].to_owned(),
            checkpoint(NoteFault::Text.into()),
        ),
        (
            good.replace("vk=\n\n", "vk=\n\n\n"),
            checkpoint(CheckpointFault::Size),
        ),
        (
            good.replace("109482", "0109482"),
            checkpoint(CheckpointFault::Size),
        ),
        (
            good[..good.find("\n— ").unwrap()].to_owned(),
            checkpoint(NoteFault::Unsigned.into()),
        ),
        (format!("{good}\n"), checkpoint(NoteFault::Unsigned.into())),
    ];
    for (text, fault) in cases {
        assert_eq!(InclusionProof::parse(&text), Err(fault), "{text}");
    }
}

#[test]
fn a_proof_holds_for_its_leaf_position_and_log() {
    let log = Log::of(600);
    let (signer, other) = (key(ORIGIN, 1), key("example.com/other", 2));
    let witness = Cosigner::from(key("witness.example.com", 3));
    let keys = [
        signer.verifying_key().clone(),
        witness.verifying_key().clone(),
    ];
    for size in [1, 2, 255, 256, 257, 600] {
        let mut head = log.checkpoint(size, &[&signer]);
        head.add(witness.cosign(head.text(), 1000).unwrap())
            .unwrap();
        for index in [0, size / 2, size - 1] {
            let leaf = &log.leaves[index as usize];
            let hashes = log.inclusion(index, size);
            let proof = InclusionProof::new(index, hashes.clone(), head.clone()).unwrap();
            let read = InclusionProof::parse(&proof.encode()).unwrap();
            assert_eq!(read, proof);
            let opened = read.verify(leaf, &keys).unwrap();
            assert_eq!(opened.checkpoint.size(), size);
            assert_eq!(opened.cosigners().count(), 1);

            let mismatch = Err(InclusionFault::Inclusion(ProofFault::RootMismatch));
            assert_eq!(read.verify(&Hash([0; 32]), &keys), mismatch);
            let elsewhere = InclusionProof::new(size, hashes.clone(), head.clone()).unwrap();
            assert_eq!(
                elsewhere.verify(leaf, &keys),
                Err(InclusionFault::Inclusion(ProofFault::BadIndex))
            );
            let longer = [hashes, vec![Hash([0; 32])]].concat();
            let longer = InclusionProof::new(index, longer, head.clone()).unwrap();
            assert_eq!(
                longer.verify(leaf, &keys),
                Err(InclusionFault::Inclusion(ProofFault::BadLength))
            );
            assert_eq!(
                read.verify(leaf, &[other.verifying_key().clone()]),
                Err(NoteFault::NoKnownKey.into())
            );
            let cosigned_only = read.verify(leaf, &keys[1..]);
            let not_the_log = CheckpointFault::NotTheLog(ORIGIN.to_owned());
            assert_eq!(cosigned_only, Err(not_the_log.into()));
        }
    }
}

#[test]
fn values_that_no_proof_has_are_refused() {
    let signer = key(ORIGIN, 1);
    let head = Log::of(1).checkpoint(1, &[&signer]);
    let hashes = vec![Hash([0; 32]); MAX_HASHES + 1];
    assert_eq!(
        InclusionProof::new(0, hashes, head.clone()),
        Err(InclusionFault::Hashes)
    );
    assert_eq!(
        InclusionProof::new(SIZE_END, Vec::new(), head.clone()),
        Err(InclusionFault::Index)
    );
    let no_head = note::sign("x\n", &[&signer]).unwrap();
    assert_eq!(
        InclusionProof::new(0, Vec::new(), no_head),
        Err(CheckpointFault::Lines.into())
    );
    let proof = InclusionProof::new(0, Vec::new(), head).unwrap();
    assert_eq!(proof.with_extra(Vec::new()), Err(InclusionFault::Extra));
}

proptest! {
    #[test]
    fn proofs_read_back(
        index in 0..SIZE_END,
        hashes in proptest::collection::vec(any::<[u8; 32]>(), 0..=MAX_HASHES),
        extra in any::<Vec<u8>>(),
    ) {
        let head = Note::parse(TEXT.split_once("\n\n").unwrap().1).unwrap();
        let hashes = hashes.into_iter().map(Hash).collect();
        let mut proof = InclusionProof::new(index, hashes, head).unwrap();
        if !extra.is_empty() {
            proof = proof.with_extra(extra).unwrap();
        }
        prop_assert_eq!(InclusionProof::parse(&proof.encode()), Ok(proof));
    }

    /// One character changed anywhere: whatever is read still is written back as it was.
    #[test]
    fn whatever_is_accepted_is_written_back(at in 0usize..1000, to in "[ -~\n]") {
        let good = TEXT;
        let at = at % good.len();
        prop_assume!(good.is_char_boundary(at) && good.is_char_boundary(at + 1));
        let changed = format!("{}{to}{}", &good[..at], &good[at + 1..]);
        if let Ok(proof) = InclusionProof::parse(&changed) {
            prop_assert_eq!(proof.encode(), changed);
        }
    }
}
