//! Judges evidence: what a bundle proves, what is absent from it and why, and what doesn't hold.
//!
//! A [`Verifier`] takes the lines of an evidence stream ([`evidence`](crate::evidence)) in their
//! order and once. It trusts nothing but the keys, checkpoints and witnesses that the caller names
//! in its [`Options`]; whether a bundle is the whole log is the caller's to demand, whatever the
//! bundle says of itself.
//!
//! - *Form*: every line, leaf and disclosure is in its only spelling, and each disclosure is the one
//!   that the leaf has the digest of.
//! - *Log*: positions are complete and in order, ids don't repeat, time doesn't go back, the tenant
//!   is one, and the entries lead to the root that the log signed.
//! - *Keys*: a change of the key counts only under a checkpoint that the old key signed.
//! - *Holes*: each is erased or pruned by an entry of the same log, or withheld by an export that may
//!   do so, or unexplained, which is a finding.
//!
//! [`Monitor`] keeps the same rules while it follows a log that grows, on what a server shows of it as
//! tiles.
//!
//! What a bundle can't show by itself is a tail that was cut off, or a log that was rolled back to
//! an older signed head: a known checkpoint or head proof finds both, a witness's cosignature bounds
//! when.
//!
//! Memory: about 40 bytes for each entry in the bundle (ids, and which groups are shown), 40 for each
//! mark, 16 for each gap, and the `entries` of the log's `erase` entries; and before the first
//! position no more than [`MAX_HEAD_LINES`] and [`MAX_HEAD_BYTES`] allow.

mod chain;
mod check;
mod holes;
mod monitor;
mod pipeline;
mod report;
mod rules;

use std::collections::HashSet;

pub use check::Checked;
pub use holes::Erase;
pub use monitor::{Candidate, Handover, Monitor, StateFault};
pub use pipeline::{Progress, verify_blocks};
pub use report::{
    Code, Cosigned, EntryCounts, Epoch, Explanation, Finding, GroupCounts, Hole, Report,
};

use crate::checkpoint::Checkpoint;
use crate::control::Control;
use crate::deployment::{HeadOpening, HeadPolicy, verify_head};
use crate::evidence::{End, Gap, Manifest, Mark, Record, grow, head_digest};
use crate::leaf::{Group, Hash};
use crate::merkle::Tree;
use crate::note::{self, Note, VerifyingKey};
use crate::proof::InclusionProof;
use crate::time::Timestamp;

use chain::{Chain, Change};
use check::{CheckedEntry, CheckedLeaf, Item};
use holes::{Reasons, Shown, sweep};
use rules::Rules;

/// How many checkpoints and keys a bundle may have. An export has one checkpoint, one more for each
/// change of keys or of the epoch, and the keys that the server knows.
pub const MAX_HEAD_LINES: usize = 4_096;

/// How long the lines of these checkpoints and keys may be together, in bytes.
pub const MAX_HEAD_BYTES: usize = 16 << 20;

/// The longest vkey, in bytes: an origin and a few fields of fixed length.
const MAX_VKEY_LEN: usize = 1_024;

/// What the caller demands and trusts.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether an export that isn't the whole log will do: one that shows only some entries, or
    /// withholds groups. What it says that it withholds is then no finding.
    pub partial: bool,
    /// Checkpoints that the caller has from elsewhere. The log has to continue each of them. One whose
    /// size lies within a gap is not compared, and the report warns of it.
    pub known: Vec<Note>,
    /// Keys of which one has to be the log's, or to lead to it through its `key` entries.
    pub keys: Vec<VerifyingKey>,
    /// Head proofs ([`deployment`](crate::deployment)) that the caller has. The log has to have each
    /// one's root at its size, and its deployment log to be signed by a key that the log had or by one of
    /// `keys`. What lies within a gap is not compared, as with `known`.
    pub head_proofs: Vec<InclusionProof>,
    /// Witnesses that have to have cosigned: the checkpoint of the snapshot, or one of the head proofs
    /// that were compared.
    pub witnesses: Vec<VerifyingKey>,
    /// How many findings the report lists; it counts all.
    pub max_findings: usize,
    /// How many holes the report lists; it counts all.
    pub max_holes: usize,
}

impl Default for Options {
    /// The whole log is demanded, and nothing is known; 100 findings and 10,000 holes are listed.
    fn default() -> Self {
        Self {
            partial: false,
            known: Vec::new(),
            keys: Vec::new(),
            head_proofs: Vec::new(),
            witnesses: Vec::new(),
            max_findings: 100,
            max_holes: 10_000,
        }
    }
}

/// A bounded list of findings.
#[derive(Debug)]
struct Findings {
    list: Vec<Finding>,
    total: u64,
    limit: usize,
}

impl Findings {
    const fn new(limit: usize) -> Self {
        Self {
            list: Vec::new(),
            total: 0,
            limit,
        }
    }

    fn push(
        &mut self,
        code: Code,
        positions: Option<(u64, u64)>,
        line: Option<u64>,
        detail: String,
    ) {
        self.total += 1;
        if self.list.len() < self.limit {
            self.list.push(Finding {
                code,
                positions,
                line,
                file: None,
                detail,
            });
        }
    }

    fn at(&mut self, code: Code, seq: u64, detail: String) {
        self.push(code, Some((seq, seq)), None, detail);
    }

    fn span(&mut self, code: Code, positions: (u64, u64), detail: String) {
        self.push(code, Some(positions), None, detail);
    }

    fn global(&mut self, code: Code, detail: String) {
        self.push(code, None, None, detail);
    }
}

/// A checkpoint of the bundle.
#[derive(Debug)]
struct Head {
    line: u64,
    note: Note,
    checkpoint: Checkpoint,
}

/// The root that the entries lead to at a size, and whether a mark there has the same.
#[derive(Debug)]
struct Passed {
    size: u64,
    root: Hash,
    mark: Option<(u64, bool)>,
}

/// Judges one evidence stream: [`push`](Self::push) each line in order, then
/// [`finish`](Self::finish).
#[derive(Debug)]
pub struct Verifier {
    options: Options,
    findings: Findings,
    line: u64,
    manifest: Option<Manifest>,
    /// The lines before the first position, as [`head_digest`] wants them.
    head: Vec<String>,
    /// The length of its checkpoints and keys.
    head_bytes: usize,
    heads: Vec<Head>,
    hints: Vec<VerifyingKey>,
    end: Option<End>,

    /// The next position.
    next: u64,
    /// The tree up to there, of no use once `broken`.
    tree: Tree,
    /// A line was unreadable, or positions are missing or out of order: roots say nothing more.
    broken: bool,
    /// A line couldn't be read, so that a jump to a later position is no second finding.
    lost: bool,
    /// The sizes at which a checkpoint has to be compared, ascending; those passed are removed from
    /// the end.
    due: Vec<u64>,
    passed: Vec<Passed>,

    ids: HashSet<u128>,
    first: Option<(u64, Timestamp)>,
    rules: Rules,
    entries: u64,
    shown: Shown,
    gaps: Vec<(u64, u64)>,
    erases: Vec<Erase>,
    /// Position, `below` and root of each prune.
    prunes: Vec<(u64, u64, Hash)>,
    changes: Vec<(u64, Change)>,
    epochs: Vec<Epoch>,
    /// The `epoch` entries that continue from another root than the entries before them lead to.
    astray: Vec<u64>,
}

/// Judges a stream of lines, with or without their line breaks, on this thread.
/// [`verify_blocks`] uses several.
pub fn verify_lines<L: AsRef<[u8]>>(
    lines: impl IntoIterator<Item = L>,
    options: Options,
) -> Report {
    let mut verifier = Verifier::new(options);
    let mut buf = Vec::new();
    for line in lines {
        verifier.push(Checked::line(line.as_ref(), &mut buf));
    }
    verifier.finish()
}

impl Verifier {
    /// A verifier that has seen nothing yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            findings: Findings::new(options.max_findings),
            options,
            line: 0,
            manifest: None,
            head: Vec::new(),
            head_bytes: 0,
            heads: Vec::new(),
            hints: Vec::new(),
            end: None,
            next: 0,
            tree: Tree::new(),
            broken: false,
            lost: false,
            due: Vec::new(),
            passed: Vec::new(),
            ids: HashSet::new(),
            first: None,
            rules: Rules::default(),
            entries: 0,
            shown: Shown::default(),
            gaps: Vec::new(),
            erases: Vec::new(),
            prunes: Vec::new(),
            changes: Vec::new(),
            epochs: Vec::new(),
            astray: Vec::new(),
        }
    }

    /// The next position, that is, how many the stream has covered until now.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.next
    }

    /// The size of the snapshot as the manifest tells it; 0 before the manifest.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.manifest.as_ref().map_or(0, |manifest| manifest.size)
    }

    /// Takes the next line.
    pub fn push(&mut self, line: Checked) {
        self.line += 1;
        if self.end.is_some() {
            self.here(Code::Line, None, "behind the end line".into());
            return;
        }
        if self.manifest.is_none() && !matches!(line.0, Item::Manifest(_)) && self.line == 1 {
            self.here(Code::Manifest, None, "the first line is no manifest".into());
        }
        match line.0 {
            Item::Manifest(manifest) => self.manifest(*manifest),
            Item::Checkpoint(note) => self.checkpoint(note),
            Item::Vkey(vkey) => self.vkey(vkey),
            Item::Entry(entry) => self.entry(entry),
            Item::Gap(gap) => self.gap(gap),
            Item::Mark(mark) => self.mark(mark),
            Item::End(end) => self.end = Some(end),
            Item::Fault(fault) => {
                let next = (self.began() && self.next < self.size()).then_some(self.next);
                self.here(Code::Line, next.map(|at| (at, at)), fault.to_string());
                self.broken |= self.began();
                self.lost = true;
            }
        }
    }

    /// A finding about this line.
    fn here(&mut self, code: Code, positions: Option<(u64, u64)>, detail: String) {
        self.findings.push(code, positions, Some(self.line), detail);
    }

    /// Whether the lines before the first position are over.
    fn began(&self) -> bool {
        self.next > 0 || !self.due.is_empty()
    }

    fn manifest(&mut self, manifest: Manifest) {
        if self.manifest.is_some() || self.began() {
            self.here(Code::Line, None, "a manifest is the first line".into());
            return;
        }
        self.head.push(Record::Manifest(manifest.clone()).encode());
        self.manifest = Some(manifest);
    }

    fn checkpoint(&mut self, text: String) {
        if self.began() {
            let detail = "checkpoints come before the first position".into();
            self.here(Code::Line, None, detail);
            return;
        }
        if text.len() > note::MAX_LEN {
            let detail = format!("a checkpoint has at most {} bytes", note::MAX_LEN);
            self.here(Code::Checkpoint, None, detail);
            return;
        }
        if !self.keep(&Record::Checkpoint(text.as_str().into())) {
            return;
        }
        let read = Note::parse(&text)
            .map_err(|fault| fault.to_string())
            .and_then(|note| match Checkpoint::parse(note.text()) {
                Ok(checkpoint) => Ok((note, checkpoint)),
                Err(fault) => Err(fault.to_string()),
            });
        match read {
            Ok((note, checkpoint)) => self.heads.push(Head {
                line: self.line,
                note,
                checkpoint,
            }),
            Err(detail) => self.here(Code::Checkpoint, None, detail),
        }
    }

    /// Keeps a line before the first position for the digest. Whether there was room for it.
    fn keep(&mut self, record: &Record<'_>) -> bool {
        let line = record.encode();
        let bytes = self.head_bytes + line.len();
        if self.head.len() > MAX_HEAD_LINES || bytes > MAX_HEAD_BYTES {
            let detail = format!(
                "a bundle has at most {MAX_HEAD_LINES} checkpoints and keys, of {MAX_HEAD_BYTES} bytes"
            );
            self.here(Code::Line, None, detail);
            return false;
        }
        self.head_bytes = bytes;
        self.head.push(line);
        true
    }

    fn vkey(&mut self, text: String) {
        if self.began() {
            self.here(
                Code::Line,
                None,
                "keys come before the first position".into(),
            );
            return;
        }
        if text.len() > MAX_VKEY_LEN {
            let detail = format!("a key has at most {MAX_VKEY_LEN} bytes");
            self.here(Code::Line, None, detail);
            return;
        }
        if !self.keep(&Record::Vkey(text.as_str().into())) {
            return;
        }
        match VerifyingKey::parse(&text) {
            Ok(key) => self.hints.push(key),
            Err(fault) => self.here(Code::Line, None, fault.to_string()),
        }
    }

    /// Makes the run from `from` to `to` the next positions. Whether they are taken.
    fn advance(&mut self, from: u64, to: u64) -> bool {
        if !self.began() {
            let sizes = self.heads.iter().map(|head| head.checkpoint.size());
            let known = self.options.known.iter();
            let known = known.filter_map(|note| Some(Checkpoint::parse(note.text()).ok()?.size()));
            let proved = self.options.head_proofs.iter();
            let proved = proved.filter_map(|proof| Some(HeadOpening::of(proof).ok()?.size));
            self.due = sizes
                .chain(known)
                .chain(proved)
                .filter(|size| *size > 0)
                .collect();
            // So that the lines before the first position are over in any case.
            self.due.push(u64::MAX);
            self.due.sort_unstable_by(|a, b| b.cmp(a));
        }
        if from < self.next {
            let detail = "comes again, or behind a later one".into();
            self.here(Code::Order, Some((from, to - 1)), detail);
            self.broken = true;
            return false;
        }
        if to > self.size() {
            let detail = format!("not below the snapshot's size, {}", self.size());
            self.here(Code::Order, Some((from.max(self.size()), to - 1)), detail);
            self.broken = true;
            return false;
        }
        if from > self.next {
            // Of a line that couldn't be read it was said which position it should have had, unless
            // it might have been one before the first position.
            if !self.lost || self.next == 0 {
                let detail = "not in the stream, neither as entries nor as a gap".into();
                self.here(Code::Missing, Some((self.next, from - 1)), detail);
            }
            self.broken = true;
        }
        self.lost = false;
        self.next = to;
        true
    }

    /// Keeps the root at this size, if it is asked for.
    fn pass(&mut self) {
        while self.due.last().is_some_and(|size| *size <= self.next) {
            let due = self.due.pop();
            let kept = self
                .passed
                .last()
                .is_some_and(|last| last.size == self.next);
            if due == Some(self.next) && !self.broken && !kept {
                self.passed.push(Passed {
                    size: self.next,
                    root: self.tree.root(),
                    mark: None,
                });
            }
        }
    }

    fn entry(&mut self, entry: CheckedEntry) {
        let seq = entry.seq;
        for (code, detail) in entry.faults {
            self.here(code, Some((seq, seq)), detail);
        }
        if !self.advance(seq, seq + 1) {
            return;
        }
        self.entries += 1;
        self.shown.push(seq, entry.shown, entry.dark);
        if let Some(leaf) = entry.leaf {
            self.leaf(seq, leaf);
        }
        if !self.broken {
            self.tree.push(entry.leaf_hash);
        }
        self.pass();
    }

    fn leaf(&mut self, seq: u64, leaf: CheckedLeaf) {
        if !self.ids.insert(leaf.id.as_u128()) {
            let detail = format!("the id {} comes again", leaf.id);
            self.here(Code::RepeatedId, Some((seq, seq)), detail);
        }
        self.first.get_or_insert((seq, leaf.created_at));
        let tenant = self.manifest.as_ref().map(|manifest| manifest.tenant_id);
        let faults = self.rules.check(tenant, seq, &leaf);
        for (code, positions, detail) in faults {
            self.here(code, Some(positions), detail);
        }
        match leaf.control.map(|control| *control) {
            None => {}
            Some(Control::Erase {
                groups, entries, ..
            }) => {
                self.erases.push(Erase {
                    seq,
                    groups,
                    entries,
                });
            }
            Some(Control::Prune { below, root, .. })
                if self.rules.pruned() == Some((below, seq)) =>
            {
                self.prunes.push((seq, below, root));
            }
            // One that doesn't fit explains nothing.
            Some(Control::Prune { .. }) => {}
            Some(Control::Key { old, new }) => {
                self.changes.push((seq, Change::Key { old, new }));
            }
            Some(Control::Epoch {
                epoch,
                size,
                root,
                basis,
            }) => {
                if size == seq && !self.broken && self.tree.root() != root {
                    self.astray.push(seq);
                }
                self.changes.push((seq, Change::Epoch { epoch }));
                self.epochs.push(Epoch { epoch, seq, basis });
            }
        }
    }

    fn gap(&mut self, gap: Gap) {
        let Gap { from, to, hashes } = gap;
        if from >= to {
            self.here(Code::Gap, None, "a gap is not empty".into());
            self.broken = true;
            self.lost = true;
            return;
        }
        if !self.advance(from, to) {
            return;
        }
        self.gaps.push((from, to));
        if !self.broken && !grow(&mut self.tree, from..to, &hashes) {
            let detail = "the hashes of a gap are not as many as its range has subtrees".into();
            self.here(Code::Gap, Some((from, to - 1)), detail);
            self.broken = true;
        }
        self.pass();
    }

    fn mark(&mut self, mark: Mark) {
        if self.broken {
            return;
        }
        let before = self.passed.last();
        let again = before.is_some_and(|last| last.size == mark.size && last.mark.is_some());
        if mark.size != self.next || self.next == 0 || again {
            let detail = format!("a mark of size {} at size {}", mark.size, self.next);
            // What is missing before a mark is seen here first.
            let between = (mark.size > self.next).then(|| (self.next, mark.size - 1));
            self.here(Code::Mark, between, detail);
            return;
        }
        let root = self.tree.root();
        let verdict = Some((self.line, root == mark.root));
        match self.passed.last_mut() {
            Some(last) if last.size == mark.size => last.mark = verdict,
            _ => self.passed.push(Passed {
                size: mark.size,
                root,
                mark: verdict,
            }),
        }
    }

    /// Judges what was pushed.
    #[must_use]
    pub fn finish(mut self) -> Report {
        let mut report = Report {
            tenant_id: None,
            origin: None,
            size: 0,
            root: None,
            signed_by: None,
            key_trusted: false,
            span: self.first.zip(self.rules.last()),
            entries: self.entries,
            absent: EntryCounts::default(),
            groups: GroupCounts::default(),
            erased_by: Vec::new(),
            erases: Vec::new(),
            pruned_below: 0,
            epochs: std::mem::take(&mut self.epochs),
            holes: Vec::new(),
            holes_total: 0,
            partial: self.options.partial,
            known: Vec::new(),
            known_in_gap: Vec::new(),
            cosigned: Vec::new(),
            findings: Vec::new(),
            findings_total: 0,
            warnings: Vec::new(),
        };
        let mut late = Findings::new(self.options.max_findings);
        match self.manifest.take() {
            None => late.global(Code::Manifest, "there is no manifest".into()),
            Some(manifest) => self.judge(&manifest, &mut report, &mut late),
        }
        report.findings_total = self.findings.total + late.total;
        // What is wrong with a line comes first: holes that nothing explains may follow from it.
        report.findings = self.findings.list;
        report.findings.append(&mut late.list);
        report.findings.truncate(self.options.max_findings);
        report
    }

    fn judge(&mut self, manifest: &Manifest, report: &mut Report, late: &mut Findings) {
        report.tenant_id = Some(manifest.tenant_id);
        report.size = manifest.size;
        self.judge_end(manifest, late);
        if !self.options.partial && (manifest.filter.is_some() || !manifest.withheld.is_empty()) {
            let detail = "the export says that it is not the whole log, which was demanded";
            late.global(Code::Partial, detail.into());
        }
        let signed = self.judge_heads(manifest, report, late);
        self.judge_prunes(late);

        let withheld = manifest.withheld.iter();
        let partial = self.options.partial;
        let reasons = Reasons {
            erases: &self.erases,
            pruned: self.prunes.last().map(|&(seq, below, _)| (below, seq)),
            withheld: withheld
                .filter(|_| partial)
                .fold(0, |mask, group: &Group| mask | 1 << group.index()),
            filtered: partial && manifest.filter.is_some(),
        };
        let max_holes = self.options.max_holes;
        let swept = sweep(&self.shown, &self.gaps, &reasons, max_holes, late);
        report.absent = swept.absent;
        report.groups = swept.groups;
        report.erased_by = swept.erased_by.into_iter().collect();
        report.holes = swept.holes;
        report.holes_total = swept.holes_total;
        report.pruned_below = self.rules.pruned().map_or(0, |(below, _)| below);
        self.erases.retain(|erase| erase.seq < signed);
        report.erases = std::mem::take(&mut self.erases);
    }

    fn judge_end(&self, manifest: &Manifest, late: &mut Findings) {
        let Some(end) = self.end else {
            let rest = (self.next < manifest.size).then(|| (self.next, manifest.size - 1));
            let detail = "the stream ends without its end line".into();
            late.push(Code::Cut, rest, None, detail);
            return;
        };
        if self.next < manifest.size && !self.lost {
            let detail = "the stream ends before the snapshot's size".into();
            late.span(Code::Cut, (self.next, manifest.size - 1), detail);
        }
        if end.head != head_digest(self.head.clone()) {
            let detail = "the manifest, checkpoints or keys are not those that were written";
            late.global(Code::Damaged, detail.into());
        }
        let counted = (self.entries, self.gaps.len() as u64);
        // After another finding a difference says nothing new.
        if (end.entries, end.gaps) != counted && self.findings.total + late.total == 0 {
            let detail = format!(
                "the end line tells of {} entries and {} gaps, there are {} and {}",
                end.entries, end.gaps, counted.0, counted.1
            );
            late.global(Code::Damaged, detail);
        }
    }

    /// The root that the entries lead to at a size, if it was passed with nothing missing before.
    fn root_at(&self, size: u64) -> Option<&Hash> {
        if size == 0 {
            return None;
        }
        let found = self
            .passed
            .binary_search_by_key(&size, |passed| passed.size);
        found.ok().map(|at| &self.passed[at].root)
    }

    /// Between which positions the entries part from a root at a size, as the marks tell; up to
    /// `good` they are right.
    fn parted(&self, size: u64, good: u64) -> (u64, u64) {
        let mut before = good;
        for passed in &self.passed {
            if passed.size <= good || passed.size > size {
                continue;
            }
            match passed.mark {
                Some((_, true)) => before = passed.size,
                // It is of the log as it was, and so are those before it.
                Some((_, false)) => return (before, passed.size - 1),
                None => {}
            }
        }
        // Marks that all agree may have been written over changed entries: they bound nothing.
        (good, size.max(1) - 1)
    }

    /// Judges the checkpoints and keys. Returns the largest size at which the entries lead to a root that
    /// the log signed; 0 when there is none.
    fn judge_heads(
        &mut self,
        manifest: &Manifest,
        report: &mut Report,
        late: &mut Findings,
    ) -> u64 {
        let size = manifest.size;
        let empty = Tree::new().root();
        let mut chain = Chain::new(manifest.tenant_id, &manifest.origin, &self.changes, late);
        if *chain.origin() != manifest.origin {
            let detail = format!(
                "the manifest's origin is {}, the log's own entries make it {}",
                manifest.origin,
                chain.origin()
            );
            late.global(Code::Manifest, detail);
        }
        report.origin = Some(chain.name(size).to_owned());
        let mut heads = std::mem::take(&mut self.heads);
        heads.sort_by_key(|head| head.checkpoint.size());
        let last = heads.iter().rfind(|head| head.checkpoint.size() == size);
        if let Some(last) = last {
            let offered = self.options.keys.iter().chain(&self.hints);
            chain.settle(size, &last.note, offered);
        } else {
            let detail = format!("there is no checkpoint of the snapshot's size, {size}");
            late.global(Code::Checkpoint, detail);
        }

        let mut agreed = None;
        let mut parted = None;
        for head in &heads {
            let at = head.checkpoint.size();
            let here = Some(head.line);
            if at > size {
                let detail = format!("a checkpoint of size {at}, of a snapshot of size {size}");
                late.push(Code::Checkpoint, None, here, detail);
            } else if head.checkpoint.origin() != chain.name(at) {
                let detail = format!(
                    "the checkpoint of size {at} is of {}, the log's name is {}",
                    head.checkpoint.origin(),
                    chain.name(at)
                );
                late.push(Code::Checkpoint, None, here, detail);
            } else if !chain.signed(at, &head.note) {
                let detail = match chain.key(at) {
                    Some(key) => format!("the checkpoint of size {at} is not signed by {key}"),
                    None => {
                        format!("the checkpoint of size {at} is signed by no key in the bundle")
                    }
                };
                late.push(Code::Signature, None, here, detail);
            } else {
                let root = if at == 0 {
                    Some(&empty)
                } else {
                    self.root_at(at)
                };
                match root {
                    Some(root) if *root == head.checkpoint.root() => agreed = Some(at),
                    Some(_) if parted.is_none() => {
                        let positions =
                            self.parted(at, agreed.filter(|good| *good < at).unwrap_or(0));
                        parted = Some(positions);
                        let detail = format!(
                            "the entries lead to another root than the log signed at size {at}"
                        );
                        late.span(Code::Root, positions, detail);
                    }
                    None if !self.broken => {
                        let detail = format!("the size {at} of a checkpoint lies within a gap");
                        // Where the gap should have ended, or the entry been shown.
                        let before = Some((at - 1, at - 1));
                        late.push(Code::Gap, before, here, detail);
                    }
                    _ => {}
                }
            }
        }
        // Behind a position that isn't what the log signed every root is another.
        let astray = self.astray.iter();
        for seq in astray.filter(|seq| parted.is_none_or(|(from, _)| **seq <= from)) {
            let detail = "continues from another head than the log's here".into();
            late.at(Code::EpochEntry, *seq, detail);
        }
        // Where signed roots agree with the entries, a mark that doesn't is itself wrong.
        for passed in &self.passed {
            if let Some((line, false)) = passed.mark
                && (agreed.is_some_and(|agreed| passed.size <= agreed) || last.is_none())
            {
                let detail = "another root than the entries lead to".to_owned();
                let at = passed.size - 1;
                late.push(Code::Mark, Some((at, at)), Some(line), detail);
            }
        }
        if !self.broken && self.next == size {
            let root = self.tree.root();
            if root != manifest.root && parted.is_none() {
                let detail = "the manifest's root is not the one that the entries lead to";
                late.global(Code::Manifest, detail.into());
            }
            report.root = Some(root);
        }
        let sized = heads
            .iter()
            .map(|head| (head.checkpoint.size(), &head.note));
        chain.check_handovers(&sized.collect::<Vec<_>>(), late);
        report.signed_by = chain.key(size).map(VerifyingKey::encode);
        report.key_trusted = chain.knows(&self.options.keys);
        if !self.options.keys.is_empty() && !report.key_trusted {
            let detail = "the given keys are none of this log's";
            late.global(Code::ForeignKey, detail.into());
        }
        if self.options.keys.is_empty() && report.signed_by.is_some() {
            let warning = "only the bundle says whose the signing key is: compare it with the one \
                           that you have from elsewhere";
            report.warnings.push(warning.into());
        }
        self.judge_known(&chain, manifest, report, late);
        let mut cosigned = self.judge_head_proofs(&chain, manifest, report, late);
        if let Some(last) = last {
            let signers = self.options.witnesses.iter().filter_map(|witness| {
                let signers = last.note.verify(std::slice::from_ref(witness)).ok()?;
                let time = signers.first()?.time?;
                Some((witness.clone(), Cosigned::by(witness, time, size)))
            });
            cosigned.extend(signers);
        }
        self.judge_witnesses(&cosigned, report, late);
        agreed.unwrap_or(0)
    }

    /// Keeps of each witness that was asked for the widest of its cosignatures.
    fn judge_witnesses(
        &self,
        cosigned: &[(VerifyingKey, Cosigned)],
        report: &mut Report,
        late: &mut Findings,
    ) {
        for witness in &self.options.witnesses {
            let own = cosigned.iter().filter(|(key, _)| key == witness);
            match Cosigned::widest(own.map(|(_, one)| one)) {
                Some(widest) => report.cosigned.push(widest.clone()),
                None => {
                    let detail = format!(
                        "{} cosigned neither the checkpoint nor a head proof that was compared",
                        witness.name()
                    );
                    late.global(Code::Witness, detail);
                }
            }
        }
    }

    /// Compares the head proofs, and returns who cosigned those that the log continues.
    fn judge_head_proofs(
        &self,
        chain: &Chain,
        manifest: &Manifest,
        report: &mut Report,
        late: &mut Findings,
    ) -> Vec<(VerifyingKey, Cosigned)> {
        let mut cosigned = Vec::new();
        if self.options.head_proofs.is_empty() {
            return cosigned;
        }
        for proof in &self.options.head_proofs {
            let keys = chain.deployment_keys(proof, &self.options.keys);
            let policy = HeadPolicy {
                log: &keys,
                witnesses: &self.options.witnesses,
                least: 0,
            };
            let head = match verify_head(proof, &policy) {
                Ok(head) => head,
                Err(fault) => {
                    late.global(Code::HeadProof, format!("the head proof: {fault}"));
                    continue;
                }
            };
            let (at, root) = (head.opening.size, head.opening.root);
            if head.opening.tenant != manifest.tenant_id {
                let detail = format!("the head proof is of tenant {}", head.opening.tenant);
                late.global(Code::HeadProof, detail);
            } else if at > manifest.size {
                let detail = format!(
                    "the log of the head proof had {at} entries, and has {} here",
                    manifest.size
                );
                late.span(Code::Rollback, (manifest.size, at - 1), detail);
            } else if self.is_continued(at, &root, "head proof", report, late) {
                // Of an empty log nobody vouches for anything.
                let witnesses = head.cosigned.into_iter().filter(|_| at > 0);
                cosigned.extend(witnesses.map(|(key, time)| {
                    let one = Cosigned::by(&key, time, at);
                    (key, one)
                }));
            }
        }
        cosigned
    }

    /// Whether the log has this root at a size, that a known head has. What lies within a gap is not
    /// compared, and the report warns of it.
    fn is_continued(
        &self,
        at: u64,
        root: &Hash,
        what: &str,
        report: &mut Report,
        late: &mut Findings,
    ) -> bool {
        let empty = Tree::new().root();
        let found = if at == 0 {
            Some(&empty)
        } else {
            self.root_at(at)
        };
        match found {
            Some(found) if found == root => {
                report.known.push(at);
                return true;
            }
            Some(_) => {
                let detail = format!("not what the {what} of size {at} has");
                late.span(Code::Known, self.parted(at, 0), detail);
            }
            None if self.broken => {}
            None => {
                report.known_in_gap.push(at);
                let warning = format!(
                    "the {what} of size {at} was not compared: that size lies within a gap"
                );
                report.warnings.push(warning);
            }
        }
        false
    }

    fn judge_known(
        &self,
        chain: &Chain,
        manifest: &Manifest,
        report: &mut Report,
        late: &mut Findings,
    ) {
        for note in &self.options.known {
            let known = match Checkpoint::parse(note.text()) {
                Ok(known) => known,
                Err(fault) => {
                    late.global(Code::Known, format!("the known checkpoint: {fault}"));
                    continue;
                }
            };
            let at = known.size();
            let left = chain.left(known.origin(), at);
            if let Some(from) = left {
                let detail = format!(
                    "the known checkpoint of size {at} is of an earlier epoch: the log was continued \
                     after a restore from size {from}, and what that one had behind it is gone"
                );
                late.span(Code::Rollback, (from, at - 1), detail);
            } else if at > manifest.size {
                let detail = format!(
                    "the log had {at} entries when the known checkpoint was signed, and has {} here",
                    manifest.size
                );
                late.span(Code::Rollback, (manifest.size, at - 1), detail);
            } else if known.origin() != chain.name(at) {
                let detail = format!(
                    "the known checkpoint is of {}, the log's name at its size is {}",
                    known.origin(),
                    chain.name(at)
                );
                late.global(Code::Known, detail);
            } else if !chain.signed(at, note) {
                let detail = "the known checkpoint is not signed by the log's key at its size";
                late.global(Code::Known, detail.into());
            } else {
                self.is_continued(at, &known.root(), "known checkpoint", report, late);
            }
        }
    }

    fn judge_prunes(&self, late: &mut Findings) {
        for &(seq, below, root) in &self.prunes {
            let detail = match self.root_at(below) {
                Some(found) if *found == root => continue,
                None if self.broken => continue,
                Some(_) => format!("the tree had another root at size {below}"),
                None => format!("the stream has no mark at size {below}, which was pruned"),
            };
            late.at(Code::PruneRoot, seq, detail);
        }
    }
}
