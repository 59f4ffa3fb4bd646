//! A monitor from one look to the next.

use audit_tlog::leaf::leaf_hash;
use audit_tlog::verify::{Code, Finding, Handover, Monitor, StateFault};
use audit_tlog::{Basis, Checkpoint, Control, Kind, Leaf, Note, SigningKey, Timestamp};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::log::{Log, ORIGIN, key};

const TENANT: Uuid = Uuid::from_u128(0x0192_f0c1_2d3e_7a4b_8c5d_6e7f_8091_a2b3);

/// Appends an entry that was accepted so many seconds after the first.
fn push(log: &mut Log, second: i64, control: Option<&Control>) {
    let at = Timestamp::from_micros(1_764_000_000_000_000 + second * 1_000_000).unwrap();
    let kind = match control {
        None => Kind::Event,
        Some(Control::Prune { .. }) => Kind::Prune,
        Some(Control::Key { .. }) => Kind::Key,
        Some(Control::Epoch { .. }) => Kind::Epoch,
        Some(Control::Erase { .. }) => Kind::Erase,
    };
    let ctl = control.map(Control::to_json);
    let action = format!("log.{kind}");
    let leaf = Leaf {
        kind,
        tenant_id: TENANT,
        id: Uuid::from_u128(log.leaves.len() as u128 + 1),
        created_at: at,
        occurred_at: at,
        action_type: if ctl.is_some() { "OTHER" } else { "VIEW" },
        action: if ctl.is_some() { &action } else { "page.view" },
        outcome: "success",
        severity: "INFO",
        ctl: ctl.as_deref(),
        digests: &[None; 7],
    };
    let data = leaf.encode().into_bytes();
    log.leaves.push(leaf_hash(&data));
    log.entries.push(data);
}

/// A log of so many entries, a second apart.
fn log(size: u64) -> Log {
    let mut log = Log::of(0);
    (0..size).for_each(|n| push(&mut log, n as i64, None));
    log
}

fn monitor(key: &SigningKey) -> Monitor {
    Monitor::new(vec![key.verifying_key().clone()]).unwrap()
}

/// One look at a head, whose entries are served but for those below `gone`. The state goes through its
/// text after each step.
fn look(
    monitor: &mut Monitor,
    log: &Log,
    note: &Note,
    gone: u64,
    handovers: &[Note],
) -> Result<(), Vec<Finding>> {
    let one = |finding| vec![finding];
    let candidate = monitor.meet(note.clone()).map_err(one)?;
    let size = candidate.checkpoint().size();
    let proof = log.consistency(monitor.size(), size);
    monitor
        .accept(&candidate, log.root(size), &proof)
        .map_err(one)?;
    while monitor.position() < size {
        let kept = Monitor::parse(&monitor.encode());
        if monitor.position() <= monitor.size() {
            assert_eq!(kept.as_ref(), Ok(&*monitor));
        }
        let from = monitor.position();
        let to = size.min((from / 4 + 1) * 4);
        let run = from as usize..to as usize;
        let leaves: Vec<&[u8]> = log.entries[run.clone()].iter().map(Vec::as_slice).collect();
        let leaves = (to > gone).then_some(&leaves[..]);
        let proof = log.consistency(to, size);
        monitor.take(&candidate, &log.leaves[run], leaves, &proof)?;
    }
    let handovers = handovers.iter().map(|note| {
        let size_of = Checkpoint::parse(note.text()).unwrap().size();
        Handover {
            note: note.clone(),
            proof: log.consistency(size_of, size),
        }
    });
    let handovers: Vec<_> = handovers.collect();
    let asked = monitor.handovers(&candidate);
    assert_eq!(asked.len(), handovers.len());
    monitor.settle(&candidate, &handovers)
}

fn codes(outcome: Result<(), Vec<Finding>>) -> Vec<Code> {
    outcome
        .err()
        .unwrap_or_default()
        .iter()
        .map(|finding| finding.code)
        .collect()
}

#[test]
fn heads_that_continue_each_other_are_followed() {
    let key = key(ORIGIN, 1);
    let log = log(20);
    let mut monitor = monitor(&key);
    for size in [1, 1, 2, 7, 8, 8, 20] {
        let note = log.checkpoint(size, &[&key]);
        look(&mut monitor, &log, &note, 0, &[]).unwrap();
        assert_eq!((monitor.size(), monitor.position()), (size, size));
        monitor = Monitor::parse(&monitor.encode()).unwrap();
    }
}

#[test]
fn a_head_that_does_not_continue_the_last_is_found_and_changes_nothing() {
    let key = key(ORIGIN, 1);
    let whole = log(12);
    let mut rewritten = log(6);
    (6..16).for_each(|n| push(&mut rewritten, n + 100, None));
    let mut monitor = monitor(&key);
    let eight = whole.checkpoint(8, &[&key]);
    look(&mut monitor, &whole, &eight, 0, &[]).unwrap();
    let known = monitor.clone();
    for (log, size, code) in [
        (&whole, 7, Code::Rollback),
        (&rewritten, 8, Code::Known),
        (&rewritten, 16, Code::Known),
    ] {
        let note = log.checkpoint(size, &[&key]);
        let found = codes(look(&mut monitor, log, &note, 0, &[]));
        assert_eq!(found, [code], "{size}");
        assert_eq!(monitor, known);
    }
    let stranger = crate::log::key(ORIGIN, 2);
    let note = whole.checkpoint(12, &[&stranger]);
    let found = codes(look(&mut monitor, &whole, &note, 0, &[]));
    assert_eq!(found, [Code::Signature]);
    let other = ORIGIN.replace('b', "c");
    let note = whole.checkpoint(12, &[&crate::log::key(&other, 1)]);
    let found = codes(look(&mut monitor, &whole, &note, 0, &[]));
    assert_eq!(found, [Code::Checkpoint]);
}

#[test]
fn entries_that_break_the_rules_are_found_at_their_positions() {
    let key = key(ORIGIN, 1);
    let mut early = log(6);
    push(&mut early, 2, None);
    let mut forward = log(6);
    let prune = Control::Prune {
        below: 9,
        root: forward.root(2),
        before: Timestamp::MAX,
        basis: Basis::parse("retention").unwrap(),
    };
    push(&mut forward, 7, Some(&prune));
    let mut garbage = log(6);
    garbage.entries.push(b"{}".to_vec());
    garbage.leaves.push(leaf_hash(b"{}"));
    let mut changed = log(7);
    changed.entries[6].push(b' ');
    for (log, code) in [
        (&early, Code::Time),
        (&forward, Code::PruneEntry),
        (&garbage, Code::Leaf),
        (&changed, Code::LeafHash),
    ] {
        let mut monitor = monitor(&key);
        let note = log.checkpoint(7, &[&key]);
        let findings = look(&mut monitor, log, &note, 0, &[]).unwrap_err();
        assert_eq!((findings.len(), findings[0].code), (1, code));
        assert_eq!(findings[0].positions.unwrap().1, 6);
    }
}

#[test]
fn a_key_counts_with_its_entry_and_a_checkpoint_of_both() {
    let (old, new) = (key(ORIGIN, 1), key(ORIGIN, 2));
    let mut log = log(6);
    let change = Control::Key {
        old: old.verifying_key().encode(),
        new: new.verifying_key().encode(),
    };
    push(&mut log, 6, Some(&change));
    push(&mut log, 7, None);
    let mut known = monitor(&old);
    let six = log.checkpoint(6, &[&old]);
    look(&mut known, &log, &six, 0, &[]).unwrap();
    let head = log.checkpoint(8, &[&new]);
    for (signers, found) in [
        (&[&old, &new][..], vec![]),
        (&[&new], vec![Code::KeyUnsigned]),
        (&[&old], vec![Code::Signature, Code::KeyUnsigned]),
    ] {
        let over = log.checkpoint(7, signers);
        let mut monitor = known.clone();
        let outcome = look(&mut monitor, &log, &head, 0, std::slice::from_ref(&over));
        assert_eq!(codes(outcome), found, "{}", signers.len());
        if found.is_empty() {
            assert_eq!(monitor.keys().last(), Some(new.verifying_key()));
            assert_eq!(Monitor::parse(&monitor.encode()).unwrap(), monitor);
        } else {
            assert_eq!(monitor.keys(), known.keys());
        }
    }
    // One that begins with the old key is led to the new one, one that begins with the new one needs
    // no lead.
    let over = log.checkpoint(7, &[&old, &new]);
    let mut late = monitor(&old);
    look(&mut late, &log, &head, 0, &[over]).unwrap();
    assert_eq!(late.keys().last(), Some(new.verifying_key()));
    let mut later = monitor(&new);
    look(&mut later, &log, &head, 0, &[]).unwrap();
    let mut stranger = monitor(&key(ORIGIN, 3));
    let found = codes(look(&mut stranger, &log, &head, 0, &[]));
    assert_eq!(found, [Code::ForeignKey]);
}

#[test]
fn an_epoch_that_continues_this_head_renames_the_log() {
    let key = key(ORIGIN, 1);
    let (origin, tenant) = ORIGIN.rsplit_once('/').unwrap();
    let renamed = key.renamed(&format!("{origin}/e2/{tenant}")).unwrap();
    let whole = log(6);
    for (root, found) in [
        (whole.root(6), vec![]),
        (whole.root(5), vec![Code::EpochEntry]),
    ] {
        let mut log = log(6);
        let epoch = Control::Epoch {
            epoch: 2,
            size: 6,
            root,
            basis: Basis::parse("restore").unwrap(),
        };
        push(&mut log, 6, Some(&epoch));
        let mut monitor = monitor(&key);
        let six = log.checkpoint(6, &[&key]);
        look(&mut monitor, &log, &six, 0, &[]).unwrap();
        let note = log.checkpoint(7, &[&renamed]);
        assert_eq!(codes(look(&mut monitor, &log, &note, 0, &[])), found);
        if found.is_empty() {
            assert_eq!(monitor.keys().last(), Some(renamed.verifying_key()));
        }
    }
}

#[test]
fn a_key_of_an_earlier_epoch_is_led_to_its_present_name() {
    let (old, new) = (key(ORIGIN, 1), key(ORIGIN, 2));
    let (origin, tenant) = ORIGIN.rsplit_once('/').unwrap();
    let named = |key: &SigningKey, epoch| key.renamed(&format!("{origin}/e{epoch}/{tenant}"));
    let (second, third) = (named(&old, 2).unwrap(), named(&old, 3).unwrap());
    let mut log = log(6);
    for (seq, epoch) in [(6, 2), (7, 3)] {
        let epoch = Control::Epoch {
            epoch,
            size: seq,
            root: log.root(seq),
            basis: Basis::parse("restore").unwrap(),
        };
        push(&mut log, seq as i64, Some(&epoch));
    }
    let head = log.checkpoint(8, &[&third]);
    for known in [&old, &second] {
        let mut monitor = monitor(known);
        look(&mut monitor, &log, &head, 0, &[]).unwrap();
        assert_eq!(monitor.keys().first(), Some(known.verifying_key()));
        assert_eq!(monitor.keys().last(), Some(third.verifying_key()));
        assert_eq!(Monitor::parse(&monitor.encode()).unwrap(), monitor);
    }
    // A key with the log's name that isn't the log's, and one of the log's that didn't sign.
    for (known, head) in [
        (&new, &head),
        (&old, &log.checkpoint(8, &[&named(&new, 3).unwrap()])),
    ] {
        let mut monitor = monitor(known);
        let found = codes(look(&mut monitor, &log, head, 0, &[]));
        assert_eq!(found, [Code::ForeignKey]);
    }

    // A change of keys behind them counts as any other does.
    let newest = named(&new, 3).unwrap();
    let change = Control::Key {
        old: third.verifying_key().encode(),
        new: newest.verifying_key().encode(),
    };
    push(&mut log, 8, Some(&change));
    let head = log.checkpoint(9, &[&newest]);
    for (signers, found) in [
        (&[&third, &newest][..], vec![]),
        (&[&newest], vec![Code::KeyUnsigned]),
    ] {
        let over = log.checkpoint(9, signers);
        let mut monitor = monitor(&old);
        let outcome = look(&mut monitor, &log, &head, 0, &[over]);
        assert_eq!(codes(outcome), found);
    }
}

#[test]
fn what_was_taken_under_a_head_of_nobodys_is_not_taken_for_the_logs() {
    let (key, stranger) = (key(ORIGIN, 1), key(ORIGIN, 2));
    let real = log(256);
    let mut forged = log(200);
    (200..512).for_each(|n| push(&mut forged, n + 100, None));
    let mut monitor = monitor(&key);
    let known = real.checkpoint(200, &[&key]);
    look(&mut monitor, &real, &known, 0, &[]).unwrap();
    let before = monitor.clone();

    let note = forged.checkpoint(512, &[&stranger]);
    let candidate = monitor.meet(note).unwrap();
    assert!(!candidate.is_signed());
    let proof = forged.consistency(200, 512);
    monitor
        .accept(&candidate, forged.root(512), &proof)
        .unwrap();
    let entries: Vec<&[u8]> = forged.entries[200..256].iter().map(Vec::as_slice).collect();
    let proof = forged.consistency(256, 512);
    monitor
        .take(&candidate, &forged.leaves[200..256], Some(&entries), &proof)
        .unwrap();

    // The look ends here, and the next one shows the log's own head.
    let head = real.checkpoint(256, &[&key]);
    let candidate = monitor.meet(head.clone()).unwrap();
    assert!(candidate.is_signed());
    let found = codes(monitor.settle(&candidate, &[]));
    assert_eq!(found, [Code::Root]);
    let proof = real.consistency(200, 256);
    let finding = monitor.accept(&candidate, real.root(256), &proof);
    assert_eq!(finding.unwrap_err().code, Code::Root);
    assert_eq!(monitor.size(), 200);

    let mut monitor = before;
    look(&mut monitor, &real, &head, 0, &[]).unwrap();
    assert_eq!(monitor.position(), 256);
}

#[test]
fn a_head_of_nobodys_is_followed_only_so_far() {
    let (key, stranger) = (key(ORIGIN, 1), key(ORIGIN, 2));
    let (origin, tenant) = ORIGIN.rsplit_once('/').unwrap();
    let renamed = key.renamed(&format!("{origin}/e2/{tenant}")).unwrap();
    let log = log(6);
    let fresh = monitor(&key);
    let mut known = fresh.clone();
    look(&mut known, &log, &log.checkpoint(6, &[&key]), 0, &[]).unwrap();
    for (monitor, size) in [(&fresh, 0), (&known, 6)] {
        for (signer, ahead, met) in [
            (&stranger, 1 << 20, true),
            (&stranger, (1 << 20) + 1, false),
            (&stranger, 1 << 60, false),
            (&renamed, 1 << 40, true),
            (&key, 1 << 40, true),
        ] {
            let head = Checkpoint::new(signer.name(), size + ahead, log.root(6)).unwrap();
            let outcome = monitor.meet(head.sign(&[signer]).unwrap());
            let found = outcome.err().map(|finding| finding.code);
            assert_eq!(found, (!met).then_some(Code::Signature), "{ahead}");
        }
    }
}

#[test]
fn leaf_data_that_is_gone_is_explained_by_a_prune_or_found() {
    let key = key(ORIGIN, 1);
    let mut plain = log(8);
    let prune = Control::Prune {
        below: 8,
        root: plain.root(8),
        before: Timestamp::MAX,
        basis: Basis::parse("retention").unwrap(),
    };
    let mut pruned = log(8);
    push(&mut pruned, 8, Some(&prune));
    (9..12).for_each(|n| push(&mut pruned, n, None));
    (8..12).for_each(|n| push(&mut plain, n, None));

    let mut monitor = monitor(&key);
    let at = |log: &Log, monitor: &mut Monitor, size| {
        let note = log.checkpoint(size, &[&key]);
        codes(look(monitor, log, &note, 8, &[]))
    };
    assert_eq!(at(&plain, &mut monitor, 8), []);
    assert_eq!(monitor.unexplained(), Some((0, 7)));
    let mut explained = monitor.clone();
    assert_eq!(at(&pruned, &mut explained, 10), []);
    assert_eq!(explained.unexplained(), None);
    assert_eq!(at(&pruned, &mut explained, 12), []);
    // The entry that explains it may stand behind the head that the next look shows, whichever that is.
    for next in [8, 9] {
        let mut monitor = monitor.clone();
        assert_eq!(at(&plain, &mut monitor, next), []);
        assert_eq!(monitor.unexplained(), Some((0, 7)));
        let found = at(&plain, &mut monitor, next + 1);
        assert_eq!(found, [Code::Unexplained]);
    }
}

#[test]
fn a_state_that_was_changed_is_refused() {
    let key = key(ORIGIN, 1);
    let log = log(5);
    let mut monitor = monitor(&key);
    let note = log.checkpoint(5, &[&key]);
    look(&mut monitor, &log, &note, 0, &[]).unwrap();
    let text = monitor.encode();
    assert_eq!(Monitor::parse(&text).unwrap(), monitor);
    for (end, _) in text.trim_end().char_indices() {
        assert!(Monitor::parse(&text[..end]).is_err(), "{end}");
    }
    let changed = text.replacen("\"position\":5", "\"position\":4", 1);
    assert_eq!(Monitor::parse(&changed), Err(StateFault::Digest));
}

#[test]
fn a_state_in_another_form_is_refused_whatever_its_digest() {
    let key = key(ORIGIN, 1);
    let log = log(8);
    let mut monitor = monitor(&key);
    let note = log.checkpoint(8, &[&key]);
    look(&mut monitor, &log, &note, 8, &[]).unwrap();
    let text = monitor.encode();
    let with = |from: &str, to: &str| {
        let (state, _) = text[r#"{"state":"#.len()..].rsplit_once(',').unwrap();
        assert_eq!(state.matches(from).count(), 1, "{from}");
        let state = state.replacen(from, to, 1);
        let digest: String = Sha256::digest(&state)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Monitor::parse(&format!("{{\"state\":{state},\"sha256\":\"{digest}\"}}\n"))
    };
    let at = "\"at\":null,\"from\":0";
    assert_eq!(with(at, at).unwrap(), monitor);
    assert_ne!(with(at, "\"at\":9,\"from\":0").unwrap(), monitor);
    for other in ["\"at\":\"8\",", "\"at\":-8,", "\"at\":8.5,", ""] {
        let found = with(at, &format!("{other}\"from\":0"));
        assert_eq!(found, Err(StateFault::Form), "{other}");
    }
}

#[test]
fn keys_are_of_one_tenants_log() {
    let named = |name: &str| key(name, 1).verifying_key().clone();
    let other = ORIGIN.replace('b', "c");
    assert!(Monitor::new(vec![]).is_none());
    assert!(Monitor::new(vec![named("logs.example.com")]).is_none());
    assert!(Monitor::new(vec![named(ORIGIN), named(&other)]).is_none());
    assert_eq!(Monitor::new(vec![named(ORIGIN)]).unwrap().tenant(), TENANT);
}
