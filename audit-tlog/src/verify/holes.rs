//! What is absent from a bundle, and why. The entries that explain a hole stand behind it, so all is
//! kept until the end: two bytes for each entry in the bundle, and the gaps.

use std::collections::BTreeMap;
use std::ops::Range;

use super::report::{EntryCounts, Explanation, GroupCounts, Hole};
use super::{Code, Findings};
use crate::leaf::Group;

/// Which groups each entry in the bundle shows, and which it has a digest of but doesn't show.
#[derive(Debug, Default)]
pub(super) struct Shown {
    runs: Vec<Run>,
}

#[derive(Debug)]
struct Run {
    start: u64,
    /// Shown and dark groups, a bit each.
    masks: Vec<[u8; 2]>,
}

impl Shown {
    /// Takes the next entry; positions ascend.
    pub(super) fn push(&mut self, seq: u64, shown: u8, dark: u8) {
        match self.runs.last_mut() {
            Some(run) if run.start + run.masks.len() as u64 == seq => {
                run.masks.push([shown, dark]);
            }
            _ => self.runs.push(Run {
                start: seq,
                masks: vec![[shown, dark]],
            }),
        }
    }
}

/// What an `erase` entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erase {
    /// Its position.
    pub seq: u64,
    /// Which groups it destroyed, in their order.
    pub groups: Vec<Group>,
    /// Of which entries: the first and the last position of each run, ascending.
    pub entries: Vec<(u64, u64)>,
}

impl Erase {
    /// Whether it names one of these positions. It says nothing of what is not below itself.
    #[must_use]
    pub fn touches(&self, positions: &Range<u64>) -> bool {
        let end = positions.end.min(self.seq);
        let next = self
            .entries
            .partition_point(|(_, to)| *to < positions.start);
        let first = self.entries.get(next);
        first.is_some_and(|(from, _)| positions.start.max(*from) < end)
    }

    /// Whether it says that this group of the entry at a position was destroyed.
    #[must_use]
    pub fn names(&self, group: Group, seq: u64) -> bool {
        self.groups.contains(&group) && self.touches(&(seq..seq.saturating_add(1)))
    }
}

/// What explains holes, and what the caller allows.
#[derive(Debug)]
pub(super) struct Reasons<'a> {
    pub(super) erases: &'a [Erase],
    /// The largest `below` of the log's prunes, and the entry that says so.
    pub(super) pruned: Option<(u64, u64)>,
    /// Which groups the export may withhold.
    pub(super) withheld: u8,
    /// Whether the export may withhold entries.
    pub(super) filtered: bool,
}

/// The outcome of a [`sweep`].
#[derive(Debug, Default)]
pub(super) struct Swept {
    pub(super) absent: EntryCounts,
    pub(super) groups: GroupCounts,
    pub(super) erased_by: BTreeMap<u64, u64>,
    pub(super) holes: Vec<Hole>,
    pub(super) holes_total: u64,
}

/// Names each hole's reason, in the order of positions.
pub(super) fn sweep(
    shown: &Shown,
    gaps: &[(u64, u64)],
    reasons: &Reasons<'_>,
    max_holes: usize,
    findings: &mut Findings,
) -> Swept {
    let mut sweep = Sweep {
        erased: Group::ALL.map(|group| Erased::new(reasons.erases, group)),
        reasons,
        open: Vec::new(),
        max_holes,
        findings,
        swept: Swept::default(),
    };
    let mut gaps = gaps.iter().copied().peekable();
    for run in &shown.runs {
        while let Some(gap) = gaps.next_if(|gap| gap.0 < run.start) {
            sweep.gap(gap);
        }
        for (seq, masks) in (run.start..).zip(&run.masks) {
            sweep.entry(seq, *masks);
        }
    }
    gaps.for_each(|gap| sweep.gap(gap));
    sweep.close(u64::MAX);
    sweep.swept
}

struct Sweep<'a> {
    reasons: &'a Reasons<'a>,
    erased: [Erased; 7],
    /// The holes that the last position was in: first, last, groups (0 for whole entries), why.
    open: Vec<(u64, u64, u8, Explanation)>,
    max_holes: usize,
    findings: &'a mut Findings,
    swept: Swept,
}

impl Sweep<'_> {
    fn entry(&mut self, seq: u64, [shown, dark]: [u8; 2]) {
        self.swept.groups.shown += u64::from(shown.count_ones());
        self.swept.groups.never += u64::from(7 - (shown | dark).count_ones());
        let pruned = self.reasons.pruned.filter(|(below, _)| seq < *below);
        // For each reason the groups; there are few reasons at one position.
        let mut absent: [(u8, Explanation); 7] = [(0, Explanation::Unexplained); 7];
        let mut reasons = 0;
        let mut still = 0;
        for group in Group::ALL {
            let bit = 1 << group.index();
            if (shown | dark) & bit == 0 {
                continue;
            }
            let erased = self.erased[group.index()].by(seq);
            if shown & bit != 0 {
                if let Some(by) = erased {
                    let detail = format!("{group} is shown, although seq {by} says it was erased");
                    self.findings.at(Code::ErasedShown, seq, detail);
                }
                still |= bit;
                continue;
            }
            let counts = &mut self.swept.groups;
            let why = match (erased, pruned) {
                (Some(by), _) => {
                    counts.erased += 1;
                    *self.swept.erased_by.entry(by).or_default() += 1;
                    Explanation::Erased(by)
                }
                (None, Some((_, by))) => {
                    counts.pruned += 1;
                    Explanation::Pruned(by)
                }
                (None, None) if self.reasons.withheld & bit != 0 => {
                    counts.withheld += 1;
                    Explanation::Withheld
                }
                (None, None) => {
                    counts.unexplained += 1;
                    Explanation::Unexplained
                }
            };
            match absent[..reasons].iter_mut().find(|one| one.1 == why) {
                Some(one) => one.0 |= bit,
                None => {
                    absent[reasons] = (bit, why);
                    reasons += 1;
                }
            }
        }
        if let (Some((_, by)), true) = (pruned, still != 0) {
            let groups = names(still);
            let detail = format!("{groups} shown, although seq {by} says it was pruned");
            self.findings.at(Code::PrunedShown, seq, detail);
        }
        for (groups, why) in &absent[..reasons] {
            self.add(seq, seq, *groups, *why);
        }
        self.close(seq);
    }

    fn gap(&mut self, (from, to): (u64, u64)) {
        let (below, by) = self.reasons.pruned.unwrap_or_default();
        let pruned = to.min(below).saturating_sub(from);
        if pruned > 0 {
            self.swept.absent.pruned += pruned;
            let last = from + pruned - 1;
            self.add(from, last, 0, Explanation::Pruned(by));
            self.close(last);
        }
        let rest = to - from - pruned;
        if rest > 0 {
            let (count, why) = if self.reasons.filtered {
                (&mut self.swept.absent.withheld, Explanation::Withheld)
            } else {
                (&mut self.swept.absent.unexplained, Explanation::Unexplained)
            };
            *count += rest;
            self.add(from + pruned, to - 1, 0, why);
            self.close(to - 1);
        }
    }

    /// Notes a hole, or that the same goes on.
    fn add(&mut self, from: u64, to: u64, groups: u8, why: Explanation) {
        let same = self
            .open
            .iter_mut()
            .find(|hole| hole.1 + 1 == from && hole.2 == groups && hole.3 == why);
        match same {
            Some(hole) => hole.1 = to,
            None => self.open.push((from, to, groups, why)),
        }
    }

    /// Ends the holes that don't reach a position.
    fn close(&mut self, seq: u64) {
        let mut i = 0;
        while let Some(&(from, to, groups, why)) = self.open.get(i) {
            if to >= seq {
                i += 1;
                continue;
            }
            self.open.remove(i);
            if why == Explanation::Unexplained {
                let detail = if groups == 0 {
                    "not in the bundle, and no prune explains it".to_owned()
                } else {
                    format!("{} gone, and nothing says why", names(groups))
                };
                self.findings.span(Code::Unexplained, (from, to), detail);
            }
            self.swept.holes_total += 1;
            if self.swept.holes.len() < self.max_holes {
                let groups = Group::ALL
                    .into_iter()
                    .filter(|g| groups >> g.index() & 1 == 1);
                self.swept.holes.push(Hole {
                    from,
                    to,
                    groups: groups.collect(),
                    why,
                });
            }
        }
    }
}

fn names(groups: u8) -> String {
    let names = Group::ALL
        .into_iter()
        .filter(|g| groups >> g.index() & 1 == 1);
    names.map(Group::as_str).collect::<Vec<_>>().join(", ")
}

/// The positions at which a group was erased, each with the first entry that says so; asked for in
/// ascending order.
struct Erased {
    /// First and last position, and the entry. They don't overlap.
    ranges: Vec<(u64, u64, u64)>,
    at: usize,
}

impl Erased {
    fn new(erases: &[Erase], group: Group) -> Self {
        // The first and last positions of the runs that no entry has named yet. Each range removes
        // those it covers and leaves two ends at most, so that overlaps cost nothing again.
        let mut free = BTreeMap::from([(0, u64::MAX)]);
        let mut ranges = Vec::new();
        for erase in erases.iter().filter(|e| e.groups.contains(&group)) {
            for &(from, to) in &erase.entries {
                // An entry explains only what is below itself.
                let Some(last) = erase.seq.checked_sub(1).map(|last| last.min(to)) else {
                    continue;
                };
                while let Some((&start, &end)) = free.range(..=last).next_back()
                    && end >= from
                    && from <= last
                {
                    free.remove(&start);
                    if end > last {
                        free.insert(last + 1, end);
                    }
                    if start < from {
                        free.insert(start, from - 1);
                    }
                    ranges.push((start.max(from), end.min(last), erase.seq));
                }
            }
        }
        ranges.sort_unstable();
        Self { ranges, at: 0 }
    }

    fn by(&mut self, seq: u64) -> Option<u64> {
        while self.ranges.get(self.at).is_some_and(|(_, to, _)| *to < seq) {
            self.at += 1;
        }
        self.ranges
            .get(self.at)
            .filter(|(from, _, _)| *from <= seq)
            .map(|(_, _, by)| *by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn erase(seq: u64, entries: Vec<(u64, u64)>) -> Erase {
        Erase {
            seq,
            groups: vec![Group::ALL[0]],
            entries,
        }
    }

    #[test]
    fn an_entry_names_what_is_in_its_runs_and_below_itself() {
        let erase = erase(14, vec![(3, 10), (13, 20)]);
        let [named, other] = [Group::ALL[0], Group::ALL[1]];
        for seq in 0..30 {
            let is_named = (3..=10).contains(&seq) || seq == 13;
            assert_eq!(erase.names(named, seq), is_named, "{seq}");
            assert!(!erase.names(other, seq), "{seq}");
        }
        for (run, touched) in [
            (0..3, false),
            (0..4, true),
            (5..6, true),
            (10..13, true),
            (11..13, false),
            (14..30, false),
            (5..5, false),
        ] {
            assert_eq!(erase.touches(&run), touched, "{run:?}");
        }
    }

    #[test]
    fn a_position_was_erased_by_the_first_entry_that_names_it() {
        let mut n: u64 = 1;
        let mut below = |end: u64| {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (n >> 33) % end
        };
        for _ in 0..200 {
            let erases: Vec<_> = (0..20)
                .map(|k| {
                    let entries = (0..3).map(|_| {
                        let from = below(50);
                        (from, from + below(8))
                    });
                    erase(k * 4, entries.collect())
                })
                .collect();
            let mut erased = Erased::new(&erases, Group::ALL[0]);
            for seq in 0..60 {
                let names = |e: &&Erase| {
                    seq < e.seq && e.entries.iter().any(|(a, b)| (*a..=*b).contains(&seq))
                };
                let expected = erases.iter().find(names).map(|e| e.seq);
                assert_eq!(erased.by(seq), expected, "{seq}: {erases:?}");
            }
            assert_eq!(Erased::new(&erases, Group::ALL[1]).by(1), None);
        }
    }

    #[test]
    fn entries_that_name_the_same_again_cost_no_more_than_their_own_ranges() {
        // Each of the later ones covers 100,000 runs: stepped over again, they would take hours.
        let runs = (0..100_000).map(|k| (10 * k, 10 * k + 1)).collect();
        let mut erases = vec![erase(2_000_000, runs)];
        erases.extend((1..100_000).map(|k| erase(2_000_000 + k, vec![(0, 1_999_999)])));
        let mut erased = Erased::new(&erases, Group::ALL[0]);
        assert_eq!(erased.by(10), Some(2_000_000));
        assert_eq!(erased.by(12), Some(2_000_001));
    }
}
