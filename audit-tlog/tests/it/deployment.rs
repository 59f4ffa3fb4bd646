//! Commitments of the deployment log.

use audit_tlog::deployment::OpeningFault;
use audit_tlog::leaf::leaf_hash;
use audit_tlog::{Hash, HeadOpening, Salt};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use uuid::Uuid;

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
