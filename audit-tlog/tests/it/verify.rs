//! What a verifier says of bundles: of untouched ones, and of those that somebody changed.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use audit_tlog::evidence::{Gap, Record};
use audit_tlog::leaf::leaf_hash;
use audit_tlog::verify::{
    Code, Erase, Explanation, Finding, MAX_HEAD_BYTES, MAX_HEAD_LINES, Options, Report,
    verify_blocks, verify_lines,
};
use audit_tlog::{
    Checkpoint, Cosigner, Group, HeadOpening, InclusionProof, Note, Origin, Salt, SigningKey, Tree,
    VerifyingKey,
};
use uuid::Uuid;

use crate::sample::{ALL, Expected, Export, Log, Rng, mask, sized};

fn judge(lines: &[impl AsRef<[u8]>], options: Options) -> Report {
    verify_lines(lines, options)
}

fn full() -> Options {
    Options::default()
}

fn partial() -> Options {
    Options {
        partial: true,
        ..Options::default()
    }
}

fn known(note: &Note) -> Options {
    Options {
        known: vec![note.clone()],
        ..Options::default()
    }
}

fn codes(report: &Report) -> Vec<Code> {
    report.findings.iter().map(|finding| finding.code).collect()
}

fn counts(report: &Report) -> Expected {
    Expected {
        entries: report.entries,
        shown: report.groups.shown,
        never: report.groups.never,
        erased: report.groups.erased,
        pruned: report.groups.pruned,
        withheld: report.groups.withheld,
        absent_pruned: report.absent.pruned,
        absent_withheld: report.absent.withheld,
    }
}

/// An export of a random log, whole or not, and the options with which it holds.
fn random(seed: u64, steps: u64) -> (Log, Export, Options) {
    let log = Log::random(seed, steps);
    let mut rng = Rng(seed ^ 0x5eed);
    let mut export = Export {
        bare: rng.one_in(3),
        ..Export::default()
    };
    if rng.one_in(3) {
        export.withheld = rng.next() as u8 & ALL;
        export.one_in = rng.one_in(2).then(|| 1 + rng.below(5));
    }
    let whole = export.withheld == 0 && export.one_in.is_none();
    let options = if whole { full() } else { partial() };
    (log, export, options)
}

#[test]
fn an_untouched_bundle_raises_no_alarm_and_every_hole_is_named() {
    for seed in 0..sized(1_000) {
        let steps = 1 + Rng(seed).below(if seed % 10 == 0 { 1_200 } else { 250 });
        let (log, export, mut options) = random(seed, steps);
        let (size, note) = log.checkpoints.last().unwrap();
        options.known.push(note.clone());
        options.keys.push(log.key.verifying_key().clone());
        let (lines, expected) = log.bundle(&export);
        let report = judge(&lines, options);
        assert_eq!(report.findings, [], "seed {seed}");
        assert!(report.is_verified() && report.key_trusted);
        assert_eq!(report.known_size(), Some(*size));
        assert_eq!(counts(&report), expected, "seed {seed}");
        assert_eq!((report.size, report.known), (*size, vec![*size]));
        assert_eq!(report.root, Some(log.tree.root()));
        assert_eq!(report.tenant_id, Some(log.tenant));
        assert_eq!(report.warnings, Vec::<String>::new());
        assert!(report.holes_total >= report.holes.len() as u64);
        let by: u64 = report.erased_by.iter().map(|(_, groups)| groups).sum();
        assert_eq!(by, expected.erased);
    }
}

#[test]
fn blocks_and_threads_make_no_difference() {
    for seed in 0..20 {
        let (log, export, options) = random(seed, 600);
        let (lines, _) = log.bundle(&export);
        let mut text = lines.join("\n\n");
        if seed % 2 == 0 {
            text.push('\n');
        }
        let expected = judge(&lines, options.clone());
        for workers in [0, 1, 2, 5] {
            let blocks = text
                .split_inclusive("\n\n")
                .map(|block| Ok::<_, Infallible>(block.as_bytes().to_vec()));
            let mut told = Vec::new();
            let report = verify_blocks(blocks, options.clone(), workers, |p| told.push(p)).unwrap();
            assert_eq!(report, expected, "seed {seed}, {workers} workers");
            assert!(told.is_sorted_by_key(|p| (p.bytes, p.positions)));
            let last = told.last().unwrap();
            assert_eq!((last.positions, last.size), (log.size(), log.size()));
            assert_eq!(last.bytes, text.len() as u64);
        }
    }
    let cut = [Ok(b"{}\n".to_vec()), Err("gone")].into_iter();
    assert_eq!(verify_blocks(cut, full(), 2, |_| ()), Err("gone"));
}

/// The positions that a line is about.
fn positions(line: &str) -> Option<(u64, u64)> {
    match Record::parse(line).unwrap() {
        Record::Entry(entry) => Some((entry.seq, entry.seq)),
        Record::Gap(gap) => Some((gap.from, gap.to - 1)),
        _ => None,
    }
}

fn names(finding: &Finding, line: u64, (from, to): (u64, u64)) -> bool {
    let at = finding.positions;
    finding.line == Some(line) || at.is_some_and(|(first, last)| first <= to && from <= last)
}

/// The records that a text holds, as far as it holds any.
fn parsed(text: &[u8]) -> Vec<Option<Record<'_>>> {
    text.split(|b| *b == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .map(|line| Record::parse(std::str::from_utf8(line).ok()?).ok())
        .collect()
}

#[test]
fn every_changed_byte_is_found_and_its_position_named() {
    let (mut found, mut same) = (0, 0);
    let mut seed = 0;
    while found < sized(5_000).max(500) {
        seed += 1;
        let (log, export, options) = random(seed, 120);
        let (lines, _) = log.bundle(&export);
        let text = lines.join("\n").into_bytes();
        for _ in 0..25 {
            let mut rng = Rng(seed << 32 ^ found ^ same << 16);
            let at = rng.below(text.len() as u64) as usize;
            let mut changed = text.clone();
            changed[at] = match rng.below(3) {
                0 => rng.next() as u8,
                1 => changed[at] ^ 1 << rng.below(8),
                _ => b" \"0129aAzZ_-,:{}[]\\n"[rng.below(19) as usize],
            };
            if changed[at] == text[at] {
                continue;
            }
            if parsed(&changed) == parsed(&text) {
                same += 1;
                continue;
            }
            let line = text[..at].iter().filter(|b| **b == b'\n').count();
            let changed: Vec<_> = changed
                .split(|b| *b == b'\n')
                .filter(|line| !line.trim_ascii().is_empty())
                .collect();
            let report = judge(&changed, options.clone());
            let told = format!(
                "seed {seed}, byte {at} of line {}: {:#?}",
                line + 1,
                report.findings
            );
            assert!(!report.is_verified(), "{told}");
            if let Some(positions) = lines.get(line).and_then(|line| positions(line)) {
                let first = &report.findings[0];
                assert!(names(first, line as u64 + 1, positions), "{told}");
            }
            found += 1;
        }
    }
    assert!(
        same < found / 10,
        "{same} changes left the records equal, {found} didn't"
    );
}

/// A full export of a random log with at least so many lines of entries, and where these are.
fn whole(seed: u64) -> (Log, Vec<String>, Vec<usize>) {
    let log = Log::random(seed, 150);
    let (lines, _) = log.bundle(&Export::default());
    let entries = (0..lines.len())
        .filter(|i| lines[*i].starts_with("{\"seq\""))
        .collect::<Vec<_>>();
    (log, lines, entries)
}

#[test]
fn lines_that_are_dropped_swapped_repeated_or_inserted_are_found_and_named() {
    for seed in 0..sized(500) {
        let (_, lines, entries) = whole(seed);
        let mut rng = Rng(seed);
        let i = entries[rng.below(entries.len() as u64) as usize];
        let at = positions(&lines[i]).unwrap();
        let mut dropped = lines.clone();
        dropped.remove(i);
        let mut repeated = lines.clone();
        repeated.insert(
            i + 1 + rng.below((lines.len() - i) as u64) as usize,
            lines[i].clone(),
        );
        let mut inserted = lines.clone();
        let other = whole(seed + 1_000).1;
        inserted.insert(i, other[other.len() - 2].clone());
        let mut replaced = lines.clone();
        let forged = Record::parse(&other[other.len() - 2]).unwrap();
        if let Record::Entry(mut line) = forged {
            line.seq = at.0;
            replaced[i] = Record::Entry(line).encode();
        }
        for (changed, what) in [
            (dropped, "dropped"),
            (repeated, "repeated"),
            (inserted, "inserted"),
            (replaced, "replaced"),
        ] {
            let report = judge(&changed, full());
            assert!(!report.is_verified(), "seed {seed}: {what}");
            let first = &report.findings[0];
            let named = first.positions.is_some() || first.line.is_some();
            assert!(named, "seed {seed}, {what}: {first:?}");
        }
        if let Some(j) = entries.iter().copied().find(|j| *j > i) {
            let mut swapped = lines.clone();
            swapped.swap(i, j);
            let report = judge(&swapped, full());
            assert!(
                names(&report.findings[0], 0, at),
                "seed {seed}: {:#?}",
                report.findings
            );
            // The positions exchanged too: what is left is that the hashes are at other places.
            let relabel = |line: &str, seq: u64| match Record::parse(line).unwrap() {
                Record::Entry(mut line) => {
                    line.seq = seq;
                    Record::Entry(line).encode()
                }
                _ => unreachable!(),
            };
            let mut moved = lines.clone();
            moved[i] = relabel(&lines[j], at.0);
            moved[j] = relabel(&lines[i], positions(&lines[j]).unwrap().0);
            assert!(!judge(&moved, full()).is_verified(), "seed {seed}");
        }
        // Not one line but the marks may be missing.
        for (i, line) in lines.iter().enumerate() {
            let mut changed = lines.clone();
            changed.remove(i);
            let mark = matches!(Record::parse(line).unwrap(), Record::Mark(_));
            let report = judge(&changed, full());
            assert!(mark || !report.is_verified(), "seed {seed}: {line}");
            if let Some(gone) = positions(line) {
                let told = report.findings[0].positions;
                assert_eq!(told, Some(gone), "seed {seed}: {:#?}", report.findings);
            }
        }
    }
}

#[test]
fn a_disclosure_of_another_entry_or_group_is_found_and_named() {
    for seed in 0..sized(500) {
        let (_, lines, entries) = whole(seed);
        let mut rng = Rng(seed);
        let mut pick = || entries[rng.below(entries.len() as u64) as usize];
        let (i, j) = (pick(), pick());
        let (Record::Entry(mut line), Record::Entry(other)) = (
            Record::parse(&lines[i]).unwrap(),
            Record::parse(&lines[j]).unwrap(),
        ) else {
            unreachable!()
        };
        if line.disclosures[0] == other.disclosures[0] {
            continue;
        }
        let mut moved = line.clone();
        line.disclosures[0] = other.disclosures[0].clone();
        moved.disclosures.rotate_right(1);
        for record in [line, moved] {
            let mut changed = lines.clone();
            let seq = record.seq;
            changed[i] = Record::Entry(record).encode();
            if changed[i] == lines[i] {
                // Nothing of this entry is shown.
                continue;
            }
            let report = judge(&changed, full());
            let named = report
                .findings
                .iter()
                .any(|f| f.positions == Some((seq, seq)));
            assert!(named, "seed {seed}: {:#?}", report.findings);
        }
    }
}

#[test]
fn a_cut_or_rolled_back_log_is_found_against_a_known_checkpoint_only() {
    for seed in 0..sized(500) {
        let log = Log::random(seed, 80);
        let (old, _) = log.bundle(&Export::default());
        let mut grown = log.clone();
        for _ in 0..=grown.rng.below(300) {
            grown.event();
        }
        let later = grown.checkpoint();
        // By itself the older bundle is what the log signed then.
        assert!(judge(&old, full()).is_verified());
        let report = judge(&old, known(&later));
        assert_eq!(codes(&report), [Code::Rollback]);
        let cut = (log.size(), grown.size() - 1);
        assert_eq!(report.findings[0].positions, Some(cut));

        // The other way round the log continues what was known.
        let (size, earlier) = log.checkpoints.last().unwrap();
        let marked = Export {
            marks: vec![*size],
            ..Export::default()
        };
        let (new, _) = grown.bundle(&marked);
        let report = judge(&new, known(earlier));
        assert_eq!((report.findings, report.known), (vec![], vec![*size]));

        // A log that its own key signed twice.
        let mut forked = log.clone();
        forked.entries.truncate(0);
        let mut fork = Log::new(seed);
        fork.rng = Rng(!seed);
        while fork.size() < grown.size() {
            fork.event();
        }
        fork.checkpoint();
        let (fork, _) = fork.bundle(&Export::default());
        let report = judge(&fork, known(&later));
        assert!(!report.is_verified(), "seed {seed}");

        // The tail cut off the lines alone.
        let shorter = &new[..new.len() - 1 - grown.rng.below(50) as usize];
        let report = judge(shorter, full());
        assert_eq!(report.findings[0].code, Code::Cut);
    }
}

#[test]
fn an_export_that_calls_itself_partial_passes_only_where_that_is_allowed() {
    let mut log = Log::new(1);
    for _ in 0..600 {
        log.append(ALL, None);
    }
    log.checkpoint();
    let filtered = Export {
        one_in: Some(3),
        ..Export::default()
    };
    let withheld = Export {
        withheld: mask([Group::Context]),
        ..Export::default()
    };
    for (export, hole) in [(filtered, "entries"), (withheld, "groups")] {
        let (lines, _) = log.bundle(&export);
        let report = judge(&lines, partial());
        assert!(report.is_verified() && report.partial, "{hole}");
        assert!(report.holes.iter().all(|h| h.why == Explanation::Withheld));
        let report = judge(&lines, full());
        assert_eq!(report.findings[0].code, Code::Partial, "{hole}");
        assert!(codes(&report)[1..].iter().all(|c| *c == Code::Unexplained));
        assert!(report.findings_total > 1);

        // The same holes in an export that says that it is whole.
        let Record::Manifest(mut manifest) = Record::parse(&lines[0]).unwrap() else {
            unreachable!()
        };
        (manifest.filter, manifest.withheld) = (None, Vec::new());
        let mut relabelled = lines.clone();
        relabelled[0] = Record::Manifest(manifest).encode();
        for options in [full(), partial()] {
            assert!(codes(&judge(&relabelled, options)).contains(&Code::Unexplained));
        }
    }
    // A whole log that calls itself partial has no holes, and still isn't what was demanded.
    let (lines, _) = log.bundle(&Export {
        one_in: Some(1),
        ..Export::default()
    });
    assert_eq!(codes(&judge(&lines, full())), [Code::Partial]);
    assert!(judge(&lines, partial()).is_verified());
}

#[test]
fn holes_are_erased_or_pruned_by_the_entry_that_says_so() {
    let mut log = Log::new(2);
    for _ in 0..300 {
        log.append(ALL, None);
    }
    let actor = mask([Group::Actor]);
    let first = log.erase(actor, &BTreeSet::from([280, 281, 282, 290]));
    let second = log.erase(mask([Group::Reason]), &BTreeSet::from([282]));
    let prune = log.prune(270);
    let key = log.rotate(false);
    log.checkpoint();
    let (lines, expected) = log.bundle(&Export::default());
    let report = judge(&lines, full());
    assert_eq!(report.findings, []);
    assert_eq!(counts(&report), expected);
    assert_eq!(report.erased_by, [(first, 4), (second, 1)]);
    assert_eq!(report.pruned_below, 270);
    let erase = |seq, group, entries| Erase {
        seq,
        groups: vec![group],
        entries,
    };
    assert_eq!(
        report.erases,
        [
            erase(first, Group::Actor, vec![(280, 282), (290, 290)]),
            erase(second, Group::Reason, vec![(282, 282)]),
        ]
    );
    // What no signed head covers says nothing.
    let is_unsigned = |line: &&String| !matches!(Record::parse(line), Ok(Record::Checkpoint(_)));
    let unsigned: Vec<_> = lines.iter().filter(is_unsigned).collect();
    assert_eq!(judge(&unsigned, full()).erases, []);
    let holes: Vec<_> = report
        .holes
        .iter()
        .map(|hole| (hole.from, hole.to, hole.groups.len(), hole.why))
        .collect();
    assert_eq!(
        holes,
        [
            (0, 255, 0, Explanation::Pruned(prune)),
            (256, 269, 7, Explanation::Pruned(prune)),
            (280, 282, 1, Explanation::Erased(first)),
            (282, 282, 1, Explanation::Erased(second)),
            (290, 290, 1, Explanation::Erased(first)),
        ]
    );
    assert_eq!(report.span.unwrap().1.0, key);
    assert_eq!(holes[0].3.to_string(), format!("pruned by seq {prune}"));
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["verified"], true);
    assert_eq!(json["holes"][2]["by"], first);
    assert_eq!(json["entries"]["pruned"], 256);
}

/// Makes a log, hands it to `change`, and judges a full export with a checkpoint at its end.
fn after(change: impl FnOnce(&mut Log)) -> Report {
    let mut log = Log::new(3);
    for _ in 0..50 {
        log.append(ALL, None);
    }
    change(&mut log);
    log.checkpoint();
    let (lines, _) = log.bundle(&Export::default());
    judge(&lines, full())
}

#[test]
fn what_an_entry_says_was_destroyed_must_be_gone() {
    // The entry is written, but the store still has the groups.
    let report = after(|log| {
        log.erase(ALL, &BTreeSet::from([7, 8]));
        log.entries[8].named = [None; 7];
    });
    assert_eq!(codes(&report), [Code::ErasedShown; 7]);
    assert_eq!(report.findings[0].positions, Some((8, 8)));
    let report = after(|log| {
        log.prune(20);
        log.pruned = 19;
    });
    assert_eq!(codes(&report), [Code::PrunedShown]);
    assert_eq!(report.findings[0].positions, Some((19, 19)));
    // Gone without an entry, and with one that names others.
    let report = after(|log| log.entries[9].named = [Some(1); 7]);
    assert_eq!(codes(&report), [Code::Unexplained]);
    let report = after(|log| log.pruned = 9);
    assert_eq!(codes(&report), [Code::Unexplained]);
    assert_eq!(report.findings[0].positions, Some((0, 8)));
    let report = after(|log| {
        log.prune(9);
        log.pruned = 11;
    });
    assert_eq!(codes(&report), [Code::Unexplained]);
    assert_eq!(report.findings[0].positions, Some((9, 10)));
}

#[test]
fn an_erase_entry_explains_only_what_lies_below_it() {
    let report = after(|log| {
        let mut named = BTreeSet::from([50]);
        log.append(ALL, None);
        log.erase(ALL, &named);
        named = BTreeSet::from([3]);
        // Positions 53 and later don't exist yet.
        let seq = log.erase(ALL, &named);
        assert_eq!(seq, 52);
    });
    assert!(report.is_verified());
    let report = after(|log| {
        use audit_tlog::{Basis, Control};
        let control = Control::Erase {
            groups: vec![Group::Actor],
            entries: vec![(4, 4), (50, 51)],
            basis: Basis::parse("gdpr-17").unwrap(),
        };
        log.append(0, Some(&control));
        log.append(ALL, None);
        log.entries[4].named[0] = Some(50);
        log.entries[51].named[0] = Some(50);
    });
    assert_eq!(codes(&report), [Code::EraseEntry, Code::Unexplained]);
    assert_eq!(report.findings[1].positions, Some((51, 51)));
}

#[test]
fn prunes_grow_and_name_the_root_that_the_tree_had() {
    use audit_tlog::{Basis, Control, Hash, Timestamp};
    let prune = |below, root| Control::Prune {
        below,
        root,
        before: Timestamp::MAX,
        basis: Basis::parse("retention").unwrap(),
    };
    let report = after(|log| {
        log.append(0, Some(&prune(10, Hash([1; 32]))));
        log.pruned = 10;
    });
    assert_eq!(codes(&report), [Code::PruneRoot]);
    for below in [10, 9, 100] {
        let report = after(|log| {
            log.prune(10);
            log.append(0, Some(&prune(below, Hash([1; 32]))));
        });
        assert_eq!(codes(&report), [Code::PruneEntry], "{below}");
    }
    // Without its mark the root can't be compared.
    let mut log = Log::new(3);
    for _ in 0..600 {
        log.append(1, None);
    }
    log.prune(300);
    log.checkpoint();
    for bare in [false, true] {
        let export = Export {
            bare,
            ..Export::default()
        };
        let (mut lines, _) = log.bundle(&export);
        assert!(judge(&lines, full()).is_verified());
        lines.retain(|line| !line.starts_with("{\"size\":300,"));
        assert_eq!(codes(&judge(&lines, full())), [Code::PruneRoot]);
    }
}

#[test]
fn a_key_counts_only_under_a_checkpoint_that_the_old_key_signed() {
    let mut log = Log::new(4);
    log.event();
    let first = log.key.verifying_key().clone();
    log.checkpoint();
    let seq = log.rotate(false);
    log.event();
    // Only the new key signs.
    let mut stolen = log.clone();
    let head =
        audit_tlog::Checkpoint::new(stolen.key.name(), stolen.size(), stolen.tree.root()).unwrap();
    let note = head.sign(&[&stolen.key]).unwrap();
    stolen.checkpoints.push((stolen.size(), note));
    let (lines, _) = stolen.bundle(&Export::default());
    let report = judge(&lines, full());
    assert_eq!(codes(&report), [Code::KeyUnsigned]);
    assert_eq!(report.findings[0].positions, Some((seq, seq)));
    // Both do, and then the new one alone.
    log.checkpoint();
    log.rotate(true);
    log.next_epoch();
    log.checkpoint();
    log.event();
    log.checkpoint();
    let (lines, _) = log.bundle(&Export::default());
    let trusting = |key: &VerifyingKey| Options {
        keys: vec![key.clone()],
        ..Options::default()
    };
    for key in [&first, log.key.verifying_key()] {
        let report = judge(&lines, trusting(key));
        assert!(report.is_verified() && report.key_trusted, "{report:#?}");
        assert_eq!(report.signed_by, Some(log.key.verifying_key().encode()));
    }
    let foreign = SigningKey::from_seed(first.name(), &[9; 32]).unwrap();
    let report = judge(&lines, trusting(foreign.verifying_key()));
    assert_eq!(codes(&report), [Code::ForeignKey]);
    let report = judge(&lines, full());
    assert!(report.is_verified() && !report.key_trusted && report.warnings.len() == 1);
    // A head that somebody else signed.
    let mut forged = log.clone();
    forged.key = foreign.renamed(log.key.name()).unwrap();
    forged.event();
    forged.checkpoint();
    let (lines, _) = forged.bundle(&Export::default());
    assert_eq!(codes(&judge(&lines, full())), [Code::Signature]);
}

#[test]
fn a_witness_must_have_cosigned_the_checkpoint() {
    let mut log = Log::new(5);
    log.event();
    let mut note = log.checkpoint();
    let key = |seed| SigningKey::from_seed("witness.example", &[seed; 32]).unwrap();
    let (witness, other) = (Cosigner::from(key(1)), Cosigner::from(key(2)));
    let line = witness.cosign(note.text(), 1_764_000_000).unwrap();
    note.add(line).unwrap();
    log.checkpoints[0].1 = note;
    let (lines, _) = log.bundle(&Export::default());
    let asking = |cosigner: &Cosigner| Options {
        witnesses: vec![cosigner.verifying_key().clone()],
        ..Options::default()
    };
    let report = judge(&lines, asking(&witness));
    assert!(report.is_verified());
    assert_eq!(report.cosigned_at(), Some(1_764_000_000));
    let report = judge(&lines, asking(&other));
    assert_eq!(codes(&report), [Code::Witness]);
}

#[test]
fn a_witness_may_have_cosigned_a_head_proof_that_the_log_continues() {
    let mut log = Log::new(7);
    for _ in 0..40 {
        log.event();
    }
    let early = Checkpoint::parse(log.checkpoint().text()).unwrap();
    for _ in 0..500 {
        log.event();
    }
    log.checkpoint();
    let (lines, _) = log.bundle(&Export::default());
    let (origin, _, _) = Origin::of_tenant(log.key.name()).unwrap();
    let key = log.key.renamed(&origin.for_deployment(1)).unwrap();
    let other = SigningKey::from_seed(key.name(), &[9; 32]).unwrap();
    let witness = SigningKey::from_seed("witness.example", &[1; 32]).unwrap();
    let witness = Cosigner::from(witness);
    let honest = HeadOpening {
        salt: Salt([3; 16]),
        tenant: log.tenant,
        size: early.size(),
        root: early.root(),
    };
    // The second of two leaves: the first one's hash leads to the root.
    let proof = |opening: HeadOpening, key: &SigningKey, is_cosigned: bool| {
        let first = leaf_hash(b"another tenant's");
        let mut tree = Tree::new();
        tree.push(first);
        tree.push(opening.leaf_hash());
        let head = Checkpoint::new(key.name(), 2, tree.root()).unwrap();
        let mut note = head.sign(&[key]).unwrap();
        if is_cosigned {
            note.add(witness.cosign(note.text(), 1_764_000_000).unwrap())
                .unwrap();
        }
        InclusionProof::new(1, vec![first], note)
            .and_then(|proof| proof.with_extra(opening.to_json().into_bytes()))
            .unwrap()
    };
    let asking = |proof: InclusionProof, is_witnessed: bool| Options {
        head_proofs: vec![proof],
        witnesses: match is_witnessed {
            true => vec![witness.verifying_key().clone()],
            false => Vec::new(),
        },
        ..Options::default()
    };
    let report = judge(&lines, asking(proof(honest, &key, true), true));
    assert_eq!(report.findings, []);
    assert_eq!(
        (
            report.known_size(),
            report.cosigned_size(),
            report.cosigned_at()
        ),
        (Some(early.size()), Some(early.size()), Some(1_764_000_000))
    );
    let report = judge(&lines, asking(proof(honest, &key, false), false));
    assert_eq!(
        (report.findings.len(), report.known_size()),
        (0, Some(early.size()))
    );
    // A deployment log that was recovered goes on under the name of a later epoch, this log or not.
    let later = log.key.renamed(&origin.for_deployment(3)).unwrap();
    let report = judge(&lines, asking(proof(honest, &later, true), true));
    assert_eq!(
        (report.findings.len(), report.cosigned_size()),
        (0, Some(early.size()))
    );
    // The key may be one that is known of the deployment log alone.
    let mut options = asking(proof(honest, &other, true), true);
    options.keys = vec![log.key.verifying_key().clone()];
    assert_eq!(
        codes(&judge(&lines, options.clone())),
        [Code::HeadProof, Code::Witness]
    );
    options.keys.push(other.verifying_key().clone());
    assert_eq!(judge(&lines, options).findings, []);

    let bad = |opening: HeadOpening| proof(opening, &key, true);
    for (proof, code) in [
        (proof(honest, &key, false), vec![Code::Witness]),
        (
            bad(HeadOpening {
                tenant: Uuid::from_u128(1),
                ..honest
            }),
            vec![Code::HeadProof, Code::Witness],
        ),
        (
            bad(HeadOpening {
                root: Tree::new().root(),
                ..honest
            }),
            vec![Code::Known, Code::Witness],
        ),
        (
            bad(HeadOpening {
                size: log.size() + 5,
                ..honest
            }),
            vec![Code::Rollback, Code::Witness],
        ),
    ] {
        let report = judge(&lines, asking(proof, true));
        assert_eq!(codes(&report), code, "{:?}", report.findings);
    }
    // A head of a size within a gap is not compared, so that nobody vouches for it.
    log.prune(400);
    log.checkpoint();
    let (pruned, _) = log.bundle(&Export::default());
    let report = judge(&pruned, asking(proof(honest, &key, true), true));
    assert_eq!(codes(&report), [Code::Witness]);
    assert_eq!(report.known_in_gap, [early.size()]);
}

#[test]
fn a_known_checkpoint_within_a_gap_is_a_warning_and_bounds_nothing() {
    let mut log = Log::new(6);
    for _ in 0..100 {
        log.event();
    }
    let early = log.checkpoint();
    for _ in 0..500 {
        log.event();
    }
    log.prune(400);
    log.checkpoint();
    let (lines, _) = log.bundle(&Export::default());
    let report = judge(&lines, known(&early));
    assert!(report.is_verified());
    assert_eq!(
        (report.known_size(), &*report.known_in_gap),
        (None, &[100][..])
    );
    assert!(report.warnings[1].contains("size 100 was not compared"));
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert!(json["known_size"].is_null() && json["cosigned_at"].is_null());
    let (lines, _) = log.bundle(&Export {
        marks: vec![100],
        ..Export::default()
    });
    let report = judge(&lines, known(&early));
    assert!(report.is_verified() && report.warnings.len() == 1);
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["known_size"], 100);
    // That of another log.
    let mut other = Log::new(7);
    other.event();
    let foreign = other.checkpoint();
    assert_eq!(codes(&judge(&lines, known(&foreign))), [Code::Known]);
}

#[test]
fn only_the_first_checkpoint_over_a_change_of_keys_counts_for_it() {
    let mut log = Log::new(10);
    log.event();
    log.checkpoint();
    let old = log.key.clone();
    let seq = log.rotate(false);
    let sign = |log: &mut Log, keys: &[&SigningKey]| {
        let head =
            audit_tlog::Checkpoint::new(log.key.name(), log.size(), log.tree.root()).unwrap();
        log.checkpoints.push((log.size(), head.sign(keys).unwrap()));
    };
    let new = log.key.clone();
    sign(&mut log, &[&new]);
    log.event();
    sign(&mut log, &[&old, &new]);
    let (lines, _) = log.bundle(&Export::default());
    let report = judge(&lines, full());
    assert_eq!(codes(&report), [Code::KeyUnsigned]);
    assert_eq!(report.findings[0].positions, Some((seq, seq)));
}

#[test]
fn a_checkpoint_within_a_gap_names_the_entry_that_it_ends_with() {
    let mut log = Log::new(12);
    log.event();
    let seq = log.rotate(true);
    log.checkpoint();
    log.event();
    log.checkpoint();
    let (mut lines, _) = log.bundle(&Export::default());
    let is_entry = |line: &String| line.starts_with("{\"seq\"");
    let first = lines.iter().position(is_entry).unwrap();
    let missing = Gap {
        from: seq,
        to: seq + 2,
        hashes: log.hashes[seq as usize..].to_vec(),
    };
    let behind = first + 1..lines.len() - 1;
    lines.splice(behind, [Record::Gap(missing).encode()]);
    let report = judge(&lines, partial());
    let gap = report.findings.iter().find(|f| f.code == Code::Gap);
    assert_eq!(gap.unwrap().positions, Some((seq, seq)), "{report:#?}");
}

#[test]
fn an_altered_row_is_found_in_the_export_that_shows_it() {
    let mut log = Log::new(11);
    for _ in 0..700 {
        log.event();
    }
    log.checkpoint();
    let (honest, _) = log.bundle(&Export::default());
    // The store's row is changed: what is exported, marks and all, is of the changed log.
    let leaf = &mut log.entries[300].leaf;
    *leaf = leaf.replace("invoice.approve", "invoice.approvE");
    let (lines, _) = log.bundle(&Export::default());
    assert!(lines.last().unwrap().starts_with("{\"end\""));
    let report = judge(&lines, full());
    assert_eq!(codes(&report), [Code::Root]);
    assert_eq!(report.findings[0].positions, Some((0, 699)));
    // Marks of the log as it was signed name the run between them.
    let marked = lines.iter().zip(&honest);
    let lines: Vec<_> = marked
        .map(|(changed, honest)| match changed.starts_with("{\"size\"") {
            true => honest,
            false => changed,
        })
        .collect();
    let report = judge(&lines, full());
    assert_eq!(report.findings[0].positions, Some((256, 511)));
}

#[test]
fn the_lines_before_the_first_position_are_bounded() {
    let (log, lines, _) = whole(12);
    let checkpoint = &log.checkpoints.last().unwrap().1.encode();
    let vkey = &log.key.verifying_key().encode();
    let long = "x".repeat(1_000_001);
    let big = &long[..900_000];
    let record = |text: &str| Record::Checkpoint(text.to_owned().into()).encode();
    let key = |text: &str| Record::Vkey(text.to_owned().into()).encode();
    for (line, times, code) in [
        (record(&long), 1, Code::Checkpoint),
        (key(&long[..1_025]), 1, Code::Line),
        (record(checkpoint), MAX_HEAD_LINES + 1, Code::Line),
        (key(vkey), MAX_HEAD_LINES + 1, Code::Line),
        (record(big), MAX_HEAD_BYTES / big.len() + 1, Code::Line),
    ] {
        let mut changed = lines.clone();
        changed.splice(1..1, std::iter::repeat_n(line, times));
        let report = judge(&changed, full());
        assert!(codes(&report).contains(&code), "{times}: {report:#?}");
        // As many as are allowed are no finding of their own.
        if times > MAX_HEAD_LINES {
            let fewer: Vec<_> = lines.iter().take(1).chain(&changed[10..]).collect();
            assert!(!codes(&judge(&fewer, full())).contains(&code));
        }
    }
}

#[test]
fn blocks_in_flight_are_bounded_in_bytes() {
    const BLOCK: usize = 16 << 20;
    let read = AtomicUsize::new(0);
    let blocks = (0..12).map(|_| {
        read.fetch_add(1, Ordering::SeqCst);
        Ok::<_, Infallible>(vec![b' '; BLOCK])
    });
    let mut taken = 0;
    verify_blocks(blocks, full(), 8, |_| {
        taken += 1;
        // Four that were taken up, and one in the reader's hand. At first it gets time for more.
        let deadline = Instant::now() + Duration::from_secs(if taken == 1 { 2 } else { 0 });
        while read.load(Ordering::SeqCst) <= taken + 5 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(read.load(Ordering::SeqCst) <= taken + 5);
    })
    .unwrap();
    assert_eq!(taken, 12);
    // A caller that gives up doesn't leave the reader waiting for room.
    let endless = std::iter::repeat_with(|| Ok::<_, Infallible>(vec![b' '; 5 * BLOCK]));
    let gave_up = std::panic::catch_unwind(|| {
        verify_blocks(endless, full(), 2, |_| panic!("the caller gives up")).unwrap()
    });
    assert!(gave_up.is_err());
}

#[test]
fn ids_times_and_tenants_are_those_of_one_log() {
    let report = after(|log| {
        let copy = log.entries[3].clone();
        let hash = log.hashes[3];
        log.tree.push(hash);
        log.hashes.push(hash);
        log.entries.push(copy);
    });
    // Position 50 repeats an entry that was accepted earlier.
    assert_eq!(codes(&report), [Code::RepeatedId, Code::Time]);
    assert_eq!(report.findings[0].positions, Some((50, 50)));
    let report = after(|log| {
        let tenant = std::mem::replace(&mut log.tenant, Log::new(99).tenant);
        log.append(1, None);
        log.tenant = tenant;
    });
    assert_eq!(codes(&report), [Code::Tenant]);
}

#[test]
fn a_stream_that_is_no_bundle_is_told_so_and_never_panics() {
    assert!(codes(&judge(&[""; 0], full())).contains(&Code::Manifest));
    let (log, lines, _) = whole(8);
    assert!(codes(&judge(&lines[1..], full())).contains(&Code::Manifest));
    let mut doubled = lines.clone();
    doubled.extend(lines.clone());
    assert!(!judge(&doubled, full()).is_verified());
    for line in [
        "",
        "{}",
        "nonsense",
        "{\"seq\":9223372036854775807,\"leaf\":\"\",\"disclosures\":[null,null,null,null,null,null,null]}",
        "{\"from\":0,\"to\":9223372036854775807,\"hashes\":[]}",
        "{\"from\":5,\"to\":5,\"hashes\":[]}",
        "{\"size\":0,\"root\":\"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"}",
        "{\"end\":{\"entries\":0,\"gaps\":0,\"head\":\"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"}}",
        "{\"checkpoint\":\"\"}",
        "{\"vkey\":\"\"}",
    ] {
        for at in 0..lines.len() {
            let mut changed = lines.clone();
            changed.insert(at, line.to_owned());
            assert!(!judge(&changed, full()).is_verified(), "{line} at {at}");
        }
    }
    assert!(log.size() > 0);
}

#[test]
fn findings_and_holes_are_counted_beyond_those_that_are_listed() {
    let report = {
        let mut log = Log::new(9);
        for _ in 0..500 {
            log.append(ALL, None);
        }
        for at in (0..500).step_by(2) {
            log.entries[at].named = [Some(1); 7];
        }
        log.checkpoint();
        let (lines, _) = log.bundle(&Export::default());
        let options = Options {
            max_findings: 7,
            max_holes: 5,
            ..Options::default()
        };
        judge(&lines, options)
    };
    assert_eq!((report.findings.len(), report.findings_total), (7, 250));
    assert_eq!((report.holes.len(), report.holes_total), (5, 250));
}
