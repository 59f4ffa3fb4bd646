//! Commitments of the deployment log.

use audit_tlog::deployment::{OpeningFault, leaf_data};
use audit_tlog::leaf::leaf_hash;
use audit_tlog::{
    Cosigner, Hash, HeadFault, HeadOpening, HeadPolicy, InclusionProof, NoteFault, Salt,
    verify_head,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::log::{Log, key};

fn opening() -> HeadOpening {
    HeadOpening {
        salt: Salt([1; 16]),
        tenant: "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3".parse().unwrap(),
        size: 1000,
        root: Hash([2; 32]),
    }
}

/// The bytes that the documentation names, spelt out; the commitment computed with Python's hashlib.
#[test]
fn the_commitment_is_over_the_documented_bytes() {
    let opening = opening();
    let mut bytes = b"audit-log/v1/deployment/".to_vec();
    bytes.extend([1; 16]);
    bytes.extend(0x0192_f0c1_2d3e_7a4b_8c5d_6e7f_8091_a2b3_u128.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0, 0, 3, 0xe8]);
    bytes.extend([2; 32]);
    assert_eq!(bytes.len(), 96);
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    assert_eq!(opening.commitment(), Hash(digest));
    let leaf = r#"{"v":1,"commitment":"TiBif7DQ5YOmCYn9V00nBNX4W2UX7vgJ65dXg4V-dZ0"}"#;
    assert_eq!(opening.leaf_data(), leaf);
    assert_eq!(opening.leaf_hash(), leaf_hash(leaf.as_bytes()));
    assert_eq!(opening.check(leaf.as_bytes()), Ok(()));
}

#[test]
fn a_leaf_commits_to_one_head_only() {
    let good = opening();
    let leaf = good.leaf_data();
    for other in [
        HeadOpening {
            salt: Salt([0; 16]),
            ..good
        },
        HeadOpening {
            tenant: Uuid::nil(),
            ..good
        },
        HeadOpening { size: 1001, ..good },
        HeadOpening {
            root: Hash([3; 32]),
            ..good
        },
    ] {
        assert_eq!(other.check(leaf.as_bytes()), Err(OpeningFault::OtherLeaf));
    }
    for text in ["", "{}", &leaf.replace(':', ": "), &format!("{leaf}\n")] {
        assert_eq!(good.check(text.as_bytes()), Err(OpeningFault::OtherLeaf));
    }
}

#[test]
fn other_spellings_of_openings_are_refused() {
    let good = opening().to_json();
    assert_eq!(
        good,
        "{\"v\":1,\"salt\":\"AQEBAQEBAQEBAQEBAQEBAQ\",\
         \"tenant_id\":\"0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3\",\"size\":1000,\
         \"root\":\"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\"}"
    );
    assert_eq!(HeadOpening::parse(&good), Ok(opening()));
    for text in [
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
        good.replace("\"v\":1", "\"v\":2"),
        good.replace("\"v\":1", "\"v\":1.0"),
        good.replace("\"v\":1,", ""),
        good.replace("1000", "01000"),
        good.replace("1000", "1e3"),
        good.replace("1000", "\"1000\""),
        good.replace("1000", "9223372036854775808"),
        good.replace("0192f0c1", "0192F0C1"),
        good.replace("0192f0c1-", "0192f0c1"),
        good.replace("AQEBAQEBAQEBAQEBAQEBAQ", "AQEBAQEBAQEBAQEBAQEBAR"),
        good.replace("AQEBAQEBAQEBAQEBAQEBAQ", "AQEBAQEBAQEBAQEBAQEB"),
        good.replace("gI=", "gI"),
        good.replace("salt", "s\\u0061lt"),
        good.replace(',', ", "),
        good.replace('}', ",\"more\":1}"),
        format!("{good}\n"),
    ] {
        assert_eq!(
            HeadOpening::parse(&text),
            Err(OpeningFault::Shape),
            "{text}"
        );
    }
}

const ORIGIN: &str = "logs.example.com/audit/deployment";

/// Openings of so many tenants' heads, and the log of their leaves.
fn openings(n: u8) -> (Vec<HeadOpening>, Log) {
    let of = |n: u8| HeadOpening {
        salt: Salt([n; 16]),
        tenant: Uuid::from_u128(n.into()),
        size: n.into(),
        root: Hash([n; 32]),
    };
    let openings: Vec<_> = (0..n).map(of).collect();
    let leaves = openings.iter().map(|o| o.leaf_data().into_bytes());
    let log = Log::with(leaves.collect());
    (openings, log)
}

#[test]
fn a_head_proof_holds_for_its_opening_its_log_and_enough_witnesses() {
    let (openings, log) = openings(9);
    let own = key(ORIGIN, 1);
    let cosigners = [2, 3].map(|n| Cosigner::from(key(&format!("w{n}"), n)));
    let witnesses = cosigners.each_ref().map(|w| w.verifying_key().clone());
    let mut head = log.checkpoint(9, &[&own]);
    head.add(cosigners[0].cosign(head.text(), 1000).unwrap())
        .unwrap();
    let proof = |opening: &HeadOpening, index: u64| {
        InclusionProof::new(index, log.inclusion(index, 9), head.clone())
            .and_then(|proof| proof.with_extra(opening.to_json().into_bytes()))
            .unwrap()
    };
    let log_key = &[own.verifying_key().clone()];
    let policy = HeadPolicy {
        log: log_key,
        witnesses: &witnesses,
        least: 1,
    };
    for (index, opening) in (0..).zip(&openings) {
        let text = proof(opening, index).encode();
        let read = InclusionProof::parse(&text).unwrap();
        let found = verify_head(&read, &policy).unwrap();
        assert_eq!((found.opening, found.index), (*opening, index));
        assert_eq!(found.checkpoint.origin(), ORIGIN);
        assert_eq!(found.cosigned, [(witnesses[0].clone(), 1000)]);
        assert_eq!(leaf_data(&opening.commitment()), opening.leaf_data());
    }
    let good = proof(&openings[4], 4);
    let none = HeadFault::Witnesses { found: 0, least: 1 };
    for (witnesses, least, expected) in [
        (
            &witnesses[..],
            2,
            Err(HeadFault::Witnesses { found: 1, least: 2 }),
        ),
        (&witnesses[1..], 1, Err(none.clone())),
        (&[], 0, Ok(())),
        // A log's own key doesn't count as a witness.
        (log_key, 1, Err(none)),
    ] {
        let policy = HeadPolicy {
            witnesses,
            least,
            ..policy
        };
        assert_eq!(verify_head(&good, &policy).map(drop), expected);
    }

    for (bad, why) in [
        (proof(&openings[3], 4), "another opening"),
        (proof(&openings[4], 3), "another place"),
    ] {
        let refused = verify_head(&bad, &policy);
        assert!(matches!(refused, Err(HeadFault::Proof(_))), "{why}");
    }
    let bare = InclusionProof::new(4, log.inclusion(4, 9), head.clone()).unwrap();
    for bad in [bare.clone(), bare.with_extra(b"{}".to_vec()).unwrap()] {
        let refused = verify_head(&bad, &policy);
        assert_eq!(refused, Err(OpeningFault::Shape.into()));
    }
    let stranger = key(ORIGIN, 7);
    let stranger = stranger.verifying_key().clone();
    let trusting = |log| HeadPolicy { log, ..policy };
    let refused = verify_head(&good, &trusting(std::slice::from_ref(&stranger)));
    assert!(matches!(refused, Err(HeadFault::Proof(_))));
    // Over a change of keys one of the two will do.
    let both = [stranger, own.verifying_key().clone()];
    let found = verify_head(
        &good,
        &HeadPolicy {
            log: &both,
            ..policy
        },
    );
    assert!(found.is_ok());
    // A line in a known witness's name that isn't its own.
    head.replace(cosigners[0].cosign("another\n", 1000).unwrap())
        .unwrap();
    let forged = InclusionProof::new(4, log.inclusion(4, 9), head).unwrap();
    let forged = forged
        .with_extra(openings[4].to_json().into_bytes())
        .unwrap();
    let refused = verify_head(&forged, &policy);
    let bad = NoteFault::BadSignature("w2".into());
    assert_eq!(refused, Err(HeadFault::Proof(bad.into())));
}

proptest! {
    #[test]
    fn openings_read_back(
        salt in any::<[u8; 16]>(),
        tenant in any::<u128>(),
        size in 0u64..1 << 63,
        root in any::<[u8; 32]>(),
    ) {
        let tenant = Uuid::from_u128(tenant);
        let opening = HeadOpening { salt: Salt(salt), tenant, size, root: Hash(root) };
        prop_assert_eq!(HeadOpening::parse(&opening.to_json()), Ok(opening));
    }
}
