//! Changes of an exported bundle.

use audit_core::tlog::evidence::{Composer, EvidenceLine, LeafData, Manifest, Record};
use audit_core::tlog::tile::FULL_WIDTH;
use audit_core::tlog::verify::{Code, Finding};
use audit_core::{Group, Hash, Timestamp};

use super::trial::Trial;
use super::{TamperingHarness, Times, Verdict};
use crate::random::Random;

/// A kind of change.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// One byte.
    Byte,
    /// A line goes that isn't a mark.
    Dropped,
    /// The lines of two entries change places.
    Swapped,
    /// An entry comes once more, as one at another position.
    Inserted,
    /// An entry takes another one's place.
    Replaced,
    /// The last lines go.
    Cut,
    /// An export of some time before.
    Old,
    /// Entries are left out of an export that calls itself a part, and says nothing of it otherwise.
    PartOfEntries,
    /// Groups are left out of an export that calls itself a part.
    PartOfGroups,
    /// The whole export calls itself a part, and hides nothing.
    Relabelled,
    /// A disclosure of another entry, or of another group of the same one.
    Disclosure,
}

pub(super) const KINDS: &[Times<Kind>] = &[
    (Kind::Byte, 60, 600),
    (Kind::Dropped, 10, 60),
    (Kind::Swapped, 10, 60),
    (Kind::Inserted, 10, 60),
    (Kind::Replaced, 10, 60),
    (Kind::Cut, 5, 30),
    (Kind::Old, 3, 3),
    (Kind::PartOfEntries, 5, 30),
    (Kind::PartOfGroups, 5, 30),
    (Kind::Relabelled, 5, 30),
    (Kind::Disclosure, 10, 60),
];

/// Why a changed bundle counts as what it was.
pub(super) const EQUAL: &str = "the lines hold the strings that they held";

/// The records that a text holds, as far as it holds any.
pub(super) fn records(text: &[u8]) -> Vec<Option<Record<'_>>> {
    text.split(|b| *b == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .map(|line| Record::parse(std::str::from_utf8(line).ok()?).ok())
        .collect()
}

/// Whether two texts hold the same records, and nothing else.
pub(super) fn is_equal(one: &[u8], two: &[u8]) -> bool {
    let one = records(one);
    one.iter().all(Option::is_some) && one == records(two)
}

/// Another byte at some place of a text, and the number of its line, from 0.
pub(super) fn another_byte(text: &[u8], random: &mut Random) -> Option<(Vec<u8>, usize)> {
    let at = random.below(text.len() as u64) as usize;
    let mut changed = text.to_vec();
    changed[at] = match random.below(3) {
        0 => random.below(256) as u8,
        1 => changed[at] ^ 1 << random.below(8),
        _ => b" \"0129aAzZ_-,:{}[]\\n"[random.below(19) as usize],
    };
    let line = text[..at].iter().filter(|b| **b == b'\n').count();
    (changed[at] != text[at]).then_some((changed, line))
}

/// The places of the lines that are entries.
pub(super) fn entries(lines: &[&str]) -> Vec<usize> {
    (0..lines.len())
        .filter(|i| matches!(Record::parse(lines[*i]), Ok(Record::Entry(_))))
        .collect()
}

/// The entry of a line that is one.
pub(super) fn entry<'a>(line: &'a str) -> EvidenceLine<'a> {
    match Record::parse(line) {
        Ok(Record::Entry(entry)) => entry,
        other => panic!("no entry: {other:?}"),
    }
}

fn is_control(entry: &EvidenceLine<'_>) -> bool {
    LeafData::parse(&entry.leaf).is_ok_and(|leaf| leaf.control.is_some())
}

/// A filter that has a condition.
fn another_filter(random: &mut Random, size: u64) -> String {
    loop {
        let filter = random.filter(&[Timestamp::MIN, Timestamp::MAX], size);
        if !filter.is_empty() {
            return filter.to_json();
        }
    }
}

/// Writes the stream anew, with another manifest, and the hashes for some entries in their place.
fn recomposed(
    lines: &[&str],
    edit: impl FnOnce(&mut Manifest),
    hidden: &[u64],
    hashes: &[Hash],
    withheld: &[Group],
) -> String {
    let Ok(Record::Manifest(mut manifest)) = Record::parse(lines[0]) else {
        panic!("no manifest: {}", lines[0]);
    };
    edit(&mut manifest);
    let mut text = String::new();
    let mut composer = Composer::new(&manifest, &mut text);
    for line in &lines[1..] {
        match Record::parse(line).expect("a record") {
            Record::Checkpoint(note) => composer.checkpoint(&note, &mut text),
            Record::Vkey(vkey) => composer.vkey(&vkey, &mut text),
            Record::Entry(entry) if hidden.contains(&entry.seq) => {
                let hash = hashes[entry.seq as usize];
                composer.gap(entry.seq..entry.seq + 1, vec![hash], &mut text)
            }
            Record::Entry(mut entry) => {
                for group in withheld {
                    entry.disclosures[group.index()] = None;
                }
                composer.entry(entry, &mut text)
            }
            Record::Gap(gap) => composer.gap(gap.from..gap.to, gap.hashes, &mut text),
            Record::Mark(_) => {
                composer.mark(&mut text);
                Ok(())
            }
            Record::Manifest(_) | Record::End(_) => Ok(()),
        }
        .expect("composed");
    }
    composer.finish(&mut text).expect("finished");
    text
}

impl<H: TamperingHarness> Trial<H> {
    /// Makes a change of the bundle, and judges it.
    pub(super) fn change_bundle(&self, kind: Kind, random: &mut Random) -> Verdict {
        let lines: Vec<&str> = self.text.lines().collect();
        let entries = entries(&lines);
        let mut pick = || entries[random.below(entries.len() as u64) as usize];
        let (i, j) = (pick(), pick());
        let (one, two) = (entry(lines[i]), entry(lines[j]));
        let seq = one.seq;
        let at = |seq: u64| move |finding: &Finding| is_at(finding, None, seq);
        let replaced = |i: usize, entry: EvidenceLine<'_>| {
            let mut changed: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            changed[i] = Record::Entry(entry).encode();
            changed
        };
        match kind {
            Kind::Byte => {
                let Some((changed, line)) = another_byte(self.text.as_bytes(), random) else {
                    return Verdict::None;
                };
                if is_equal(&changed, self.text.as_bytes()) {
                    return Verdict::Apart(EQUAL);
                }
                let changed: Vec<&[u8]> = changed
                    .split(|b| *b == b'\n')
                    .filter(|line| !line.trim_ascii().is_empty())
                    .collect();
                let seqs = lines.get(line).and_then(|line| positions(line));
                self.first(&changed, |finding| match seqs {
                    Some((from, to)) => {
                        (from..=to).any(|seq| is_at(finding, Some(line as u64 + 1), seq))
                    }
                    // It is about none.
                    None => true,
                })
            }
            Kind::Dropped => {
                let line = random.below(lines.len() as u64) as usize;
                if matches!(Record::parse(lines[line]), Ok(Record::Mark(_))) {
                    return Verdict::None;
                }
                let mut changed = lines.clone();
                changed.remove(line);
                let seqs = positions(lines[line]);
                self.first(&changed, |finding| match seqs {
                    Some((from, to)) => finding.positions == Some((from, to)),
                    None => true,
                })
            }
            Kind::Swapped if i != j => {
                let mut changed = lines.clone();
                changed.swap(i, j);
                self.first(&changed, at(seq.min(two.seq)))
            }
            Kind::Inserted => {
                let mut changed = lines.clone();
                let copy = Record::Entry(EvidenceLine { seq, ..two.clone() }).encode();
                changed.insert(i, &copy);
                self.first(&changed, at(seq))
            }
            Kind::Replaced if i != j => {
                let changed = replaced(i, EvidenceLine { seq, ..two.clone() });
                self.first(&changed, |finding| {
                    // That its id comes twice, or that time goes back, is told where it is seen.
                    let seen = [seq, seq + 1, two.seq, two.seq + 1];
                    seen.iter().any(|seq| is_at(finding, None, *seq))
                })
            }
            Kind::Cut => {
                let left = 1 + random.below(lines.len() as u64 - 1) as usize;
                self.first(&lines[..left], |finding| finding.code == Code::Cut)
            }
            Kind::Old => {
                let (_, old) = &self.old[random.below(self.old.len() as u64) as usize];
                let old: Vec<&str> = old.lines().collect();
                self.first(&old, |finding| finding.code == Code::Rollback)
            }
            Kind::PartOfEntries => {
                // Whatever a filter shows, control entries are in it.
                if [&one, &two].iter().any(|entry| is_control(entry)) {
                    return Verdict::None;
                }
                let filter = another_filter(random, self.size());
                let part = |manifest: &mut Manifest| manifest.filter = Some(filter);
                let hidden = [seq, two.seq];
                let changed = recomposed(&lines, part, &hidden, &self.hashes, &[]);
                self.part(&changed)
            }
            Kind::PartOfGroups => {
                let mut groups = Group::ALL.to_vec();
                groups.retain(|_| random.one_in(2));
                if groups.is_empty() {
                    return Verdict::None;
                }
                let part = |manifest: &mut Manifest| manifest.withheld.clone_from(&groups);
                let changed = recomposed(&lines, part, &[], &self.hashes, &groups);
                self.part(&changed)
            }
            Kind::Relabelled => {
                let mut groups = Group::ALL.to_vec();
                groups.retain(|_| random.one_in(3));
                let filter = another_filter(random, self.size());
                let part = |manifest: &mut Manifest| match groups.is_empty() {
                    true => manifest.filter = Some(filter),
                    false => manifest.withheld = groups,
                };
                let changed = recomposed(&lines, part, &[], &self.hashes, &[]);
                self.part(&changed)
            }
            Kind::Disclosure => {
                let mut changed = one.clone();
                match random.one_in(2) {
                    true => changed.disclosures.rotate_right(1),
                    false => {
                        let group = random.below(7) as usize;
                        changed.disclosures[group].clone_from(&two.disclosures[group]);
                    }
                }
                if changed == one {
                    return Verdict::None;
                }
                self.first(&replaced(i, changed), at(seq))
            }
            Kind::Swapped | Kind::Replaced => Verdict::None,
        }
    }

    /// What is told of a changed bundle: the first finding has to be this one.
    fn first(&self, lines: &[impl AsRef<[u8]>], is_it: impl Fn(&Finding) -> bool) -> Verdict {
        let report = self.judge(lines, false);
        match report.findings.first() {
            None => Verdict::Wrong("not found".into()),
            Some(first) if is_it(first) => Verdict::Found(format!("finding {}", first.code)),
            Some(_) => Verdict::Wrong(format!("not where it is: {:#?}", report.findings)),
        }
    }

    /// A part of a log is none for who demands the whole log; and proves what is in it for who doesn't.
    fn part(&self, text: &str) -> Verdict {
        let report = self.verify(text, true);
        if !report.is_verified() {
            return Verdict::Wrong(format!("no part of a log: {:#?}", report.findings));
        }
        let lines: Vec<&str> = text.lines().collect();
        self.first(&lines, |finding| finding.code == Code::Partial)
    }
}

/// The positions that a line is about.
pub(super) fn positions(line: &str) -> Option<(u64, u64)> {
    match Record::parse(line) {
        Ok(Record::Entry(entry)) => Some((entry.seq, entry.seq)),
        Ok(Record::Gap(gap)) => Some((gap.from, gap.to - 1)),
        _ => None,
    }
}

/// Whether a finding is about a line, from 1, or about positions of which one is the first, or is among no
/// more than lie between two marks.
pub(super) fn is_at(finding: &Finding, line: Option<u64>, seq: u64) -> bool {
    let width = u64::from(FULL_WIDTH);
    let is_about =
        |(from, to): (u64, u64)| from == seq || ((from..=to).contains(&seq) && to - from < width);
    (line.is_some() && finding.line == line) || finding.positions.is_some_and(is_about)
}
