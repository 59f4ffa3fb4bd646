//! Checkpoints and the names of logs.

use audit_tlog::checkpoint::SIZE_END;
use audit_tlog::note;
use audit_tlog::{Checkpoint, CheckpointFault, Cosigner, Hash, Note, NoteFault, Origin};
use proptest::prelude::*;
use uuid::Uuid;

use crate::log::key;

/// C2SP `tlog-checkpoint`'s example.
const TEXT: &str = "example.com/behind-the-sofa\n20852163\n\
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
const LINE: &str = "— example.com/behind-the-sofa \
    Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";
const ROOT: &str = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
const TENANT: &str = "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3";

#[test]
fn the_pages_example_is_read() {
    let note = Note::parse(&format!("{TEXT}\n{LINE}")).unwrap();
    let checkpoint = Checkpoint::parse(note.text()).unwrap();
    assert_eq!(checkpoint.origin(), "example.com/behind-the-sofa");
    assert_eq!(checkpoint.size(), 20_852_163);
    assert_eq!(checkpoint.root().to_base64(), ROOT);
    assert_eq!(checkpoint.encode(), TEXT);
    let theirs = tlog_tiles::Checkpoint::from_bytes(TEXT.as_bytes()).unwrap();
    assert_eq!(theirs.to_bytes(), TEXT.as_bytes());
    assert_eq!(theirs.hash().0, *checkpoint.root().as_bytes());
}

#[test]
fn other_spellings_of_checkpoints_are_refused() {
    use CheckpointFault::{Lines, Root, Size};
    let cases = [
        (String::new(), Lines),
        ("a\n1\n".to_owned(), Lines),
        (format!("a\n1\n{ROOT}"), Lines),
        (format!("\n1\n{ROOT}\n"), Lines),
        (format!("a\n1\n{ROOT}\n\n"), Lines),
        (format!("a\n1\n{ROOT}\nx\n\ny\n"), Lines),
        (format!("a\r\n1\n{ROOT}\n"), Lines),
        (format!("a\n\n{ROOT}\n"), Size),
        (format!("a\n01\n{ROOT}\n"), Size),
        (format!("a\n00\n{ROOT}\n"), Size),
        (format!("a\n+1\n{ROOT}\n"), Size),
        (format!("a\n-1\n{ROOT}\n"), Size),
        (format!("a\n 1\n{ROOT}\n"), Size),
        (format!("a\n1.0\n{ROOT}\n"), Size),
        (format!("a\n0x1\n{ROOT}\n"), Size),
        (format!("a\n١\n{ROOT}\n"), Size),
        (format!("a\n{SIZE_END}\n{ROOT}\n"), Size),
        (format!("a\n18446744073709551616\n{ROOT}\n"), Size),
        (format!("a\n1\n{}\n", &ROOT[..43]), Root),
        (format!("a\n1\n{ROOT} \n"), Root),
        (format!("a\n1\n{}\n", ROOT.replace("2I=", "2J=")), Root),
        (format!("a\n1\n{}\n", ROOT.replace('/', "_")), Root),
        ("a\n1\nAAAA\n".to_owned(), Root),
    ];
    for (text, fault) in cases {
        assert_eq!(Checkpoint::parse(&text), Err(fault), "{text:?}");
    }
    for text in [
        format!("a\n0\n{ROOT}\n"),
        format!("a b+c\n1\n{ROOT}\nextension\nand another\n"),
        format!("a\n{}\n{ROOT}\n", SIZE_END - 1),
    ] {
        assert_eq!(Checkpoint::parse(&text).unwrap().encode(), text);
    }
}

#[test]
fn a_checkpoint_counts_only_with_the_logs_own_signature() {
    let log = key("example.com/log", 1);
    let newer = key("example.com/log", 2);
    let other = key("example.com/other", 3);
    let witness = Cosigner::from(key("example.com/log", 4));
    let checkpoint = Checkpoint::new("example.com/log", 5, Hash([7; 32])).unwrap();
    let all = [&log, &newer, &other]
        .map(|key| key.verifying_key().clone())
        .to_vec();
    let all = [all, vec![witness.verifying_key().clone()]].concat();

    let mut note = checkpoint.sign(&[&log]).unwrap();
    note.add(witness.cosign(note.text(), 1000).unwrap())
        .unwrap();
    let opened = Checkpoint::open(&note, &all).unwrap();
    assert_eq!(opened.checkpoint, checkpoint);
    assert!(opened.log_keys().eq([log.verifying_key()]));
    assert!(opened.cosigners().eq([(witness.verifying_key(), 1000)]));

    // Over a change of keys both sign.
    let both = checkpoint.sign(&[&log, &newer]).unwrap();
    let opened = Checkpoint::open(&both, &all).unwrap();
    assert!(
        opened
            .log_keys()
            .eq([log.verifying_key(), newer.verifying_key()])
    );
    let opened = Checkpoint::open(&both, &all[1..2]).unwrap();
    assert!(opened.log_keys().eq([newer.verifying_key()]));

    let not_the_log = CheckpointFault::NotTheLog("example.com/log".to_owned());
    assert_eq!(checkpoint.sign(&[&other]), Err(not_the_log.clone()));
    let text = checkpoint.encode();
    let foreign = note::sign(&text, &[&other]).unwrap();
    assert_eq!(Checkpoint::open(&foreign, &all), Err(not_the_log.clone()));
    let line = witness.cosign(&text, 1).unwrap().encode();
    let cosigned = Note::parse(&format!("{text}\n{line}")).unwrap();
    assert_eq!(Checkpoint::open(&cosigned, &all), Err(not_the_log));
    assert_eq!(
        Checkpoint::open(&foreign, &all[..1]),
        Err(NoteFault::NoKnownKey.into())
    );
    let no_head = note::sign("x\n", &[&log]).unwrap();
    assert_eq!(
        Checkpoint::open(&no_head, &all),
        Err(CheckpointFault::Lines)
    );
}

#[test]
fn values_that_no_checkpoint_has_are_refused() {
    let root = Hash([0; 32]);
    assert_eq!(Checkpoint::new("", 1, root), Err(CheckpointFault::Lines));
    assert_eq!(
        Checkpoint::new("a\nb", 1, root),
        Err(CheckpointFault::Lines)
    );
    assert_eq!(
        Checkpoint::new("a", SIZE_END, root),
        Err(CheckpointFault::Size)
    );
    for line in ["", "a\nb", "\t"] {
        let checkpoint = Checkpoint::new("a", 1, root).unwrap();
        assert_eq!(
            checkpoint.with_extensions(vec![line.to_owned()]),
            Err(CheckpointFault::Lines)
        );
    }
}

#[test]
fn origins_have_no_scheme_and_no_trailing_slash() {
    let long = "a".repeat(200);
    for text in [
        "a",
        "localhost:8080",
        "logs.example.com/audit",
        "A-Z_9/e",
        "e2x",
        "e",
        "e02",
        &long,
    ] {
        assert_eq!(Origin::parse(text).unwrap().as_str(), text);
    }
    let too_long = "a".repeat(201);
    for text in [
        "",
        "a/",
        "/",
        "https://logs.example.com",
        "a b",
        "a+b",
        "a\n",
        "é",
        "a?b",
        "a%20",
        "e2",
        "logs.example.com/e2",
        "logs.example.com/e1",
        &too_long,
    ] {
        assert!(Origin::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn logs_are_named_after_tenant_and_epoch() {
    let origin = Origin::parse("logs.example.com/audit").unwrap();
    let tenant: Uuid = TENANT.parse().unwrap();
    let first = format!("logs.example.com/audit/{TENANT}");
    assert_eq!(origin.for_tenant(tenant, 1), first);
    let second = format!("logs.example.com/audit/e2/{TENANT}");
    assert_eq!(origin.for_tenant(tenant, 2), second);
    assert_eq!(Origin::of_tenant(&first), Some((origin.clone(), tenant, 1)));
    assert_eq!(Origin::of_tenant(&second), Some((origin, tenant, 2)));
    for name in [
        "",
        TENANT,
        &format!("/{TENANT}"),
        &format!("e2/{TENANT}"),
        &format!("a/e1/{TENANT}"),
        &format!("a/e2/e3/{TENANT}"),
        &format!("a/{}", TENANT.to_uppercase()),
        &format!("a/{}", TENANT.replace('-', "")),
        &format!("a/{TENANT}/"),
        "a/b",
    ] {
        assert_eq!(Origin::of_tenant(name), None, "{name}");
    }
}

proptest! {
    #[test]
    fn names_of_logs_are_taken_apart_as_they_were_made(
        origin in "[A-Za-z0-9._/:-]{1,40}",
        tenant in any::<u128>(),
        epoch in 1u64..,
    ) {
        let tenant = Uuid::from_u128(tenant);
        if let Ok(origin) = Origin::parse(&origin) {
            let name = origin.for_tenant(tenant, epoch);
            prop_assert_eq!(Origin::of_tenant(&name), Some((origin, tenant, epoch)));
        }
    }

    #[test]
    fn checkpoints_read_back_here_and_elsewhere(
        origin in "[!-~é]{1,40}",
        size in 0..SIZE_END,
        root in any::<[u8; 32]>(),
        extensions in proptest::collection::vec("[ -~]{1,20}", 0..3),
    ) {
        let checkpoint = Checkpoint::new(&origin, size, Hash(root)).unwrap();
        let checkpoint = checkpoint.with_extensions(extensions).unwrap();
        let text = checkpoint.encode();
        prop_assert_eq!(Checkpoint::parse(&text), Ok(checkpoint));
        let theirs = tlog_tiles::Checkpoint::from_bytes(text.as_bytes());
        let theirs = theirs.map(|theirs| (theirs.size(), theirs.hash().0, theirs.to_bytes()));
        prop_assert_eq!(theirs.ok(), Some((size, root, text.into_bytes())));
    }

    #[test]
    fn whatever_is_accepted_is_written_back(text in "[a-z0-9/+=\n]{0,120}") {
        if let Ok(checkpoint) = Checkpoint::parse(&text) {
            prop_assert_eq!(checkpoint.encode(), text);
        }
    }
}

/// Of this origin, of one that ends in its name, and in every epoch.
#[test]
fn the_deployment_logs_name_is_no_tenants() {
    let tenant = Uuid::from_u128(7);
    for origin in [
        "audit.example.com/log",
        "audit.example.com/deployment",
        "deployment",
    ] {
        let origin = Origin::parse(origin).unwrap();
        for (epoch, name) in [
            (1, format!("{origin}/deployment")),
            (2, format!("{origin}/e2/deployment")),
            (10, format!("{origin}/e10/deployment")),
        ] {
            assert_eq!(origin.for_deployment(epoch), name);
            assert_eq!(Origin::of_tenant(&name), None);
            let parts = Some((origin.clone(), epoch));
            assert_eq!(Origin::of_deployment(&name), parts);
            let of_tenant = origin.for_tenant(tenant, epoch);
            assert_ne!(of_tenant, name);
            assert_eq!(Origin::of_deployment(&of_tenant), None);
        }
    }
    for other in [
        "",
        "deployment",
        "/deployment",
        "example.com/log",
        "example.com/log/Deployment",
        "example.com/log/deployment/",
        "example.com/log/e0/deployment",
        "example.com/log/e1/deployment",
        "example.com/log/e2/e3/deployment",
        "e2/deployment",
    ] {
        assert_eq!(Origin::of_deployment(other), None, "{other}");
    }
}
