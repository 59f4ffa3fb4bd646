//! What a segment holds: composed from a snapshot, packed into files, read back and checked; and
//! composed anew, without what was erased since.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::ops::Range;

use audit_tlog::evidence::{Composer, EvidenceLine, FolderManifest, LeafData, Record};
use audit_tlog::folder::{self, CHECKPOINTS, LOG_ZST, MANIFEST, SegmentName, SplitFault, Splitter};
use audit_tlog::leaf::leaf_hash;
use audit_tlog::note::VerifyingKey;
use audit_tlog::verify::{Erase, Finding, Options, verify_lines};
use audit_tlog::{Control, Group, Hash};
use futures_util::StreamExt as _;
use uuid::Uuid;

use super::{MAX_ENTRIES, MAX_TEXT};
use crate::entry::Evidence;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{self, Exported, broken, each_control_entry, gap};
use crate::filter::Filter;
use crate::scope::TenantScope;
use crate::store::{LogStore, Snapshot};

/// The most bytes of a segment's lines that are unpacked. Those of [`MAX_TEXT`] have no more than twice
/// as many, and what explains their holes some.
const MAX_LINES: u64 = 8 * MAX_TEXT as u64;

/// A line and the leaf hash that the log has kept of it.
type Line = (EvidenceLine<'static>, Hash);

/// The `erase` entries that match and are left, oldest first.
pub(super) async fn erases(
    store: &dyn LogStore,
    scope: &TenantScope,
    filter: Filter,
) -> Result<Vec<Erase>> {
    let mut erases = Vec::new();
    let filter = filter.action("log.erase");
    each_control_entry(store, scope, &filter, |entry| {
        if let Some(Control::Erase {
            groups, entries, ..
        }) = entry.control()
        {
            erases.push(Erase {
                seq: entry.seq,
                groups,
                entries,
            });
        }
    })
    .await?;
    Ok(erases)
}

/// Which groups of the entries at some positions are gone.
#[derive(Debug)]
pub(super) struct Gone {
    from: u64,
    /// Of each position the groups, a bit each.
    masks: Vec<u8>,
}

impl Gone {
    /// What these entries say of positions, which are those of a segment at most.
    pub(super) fn of(erases: &[Erase], positions: &Range<u64>) -> Self {
        let from = positions.start;
        let mut masks = vec![0; usize::try_from(positions.end - from).unwrap_or(0)];
        for erase in erases {
            let bits = erase.groups.iter();
            let bits = bits.fold(0, |bits, group| bits | 1_u8 << group.index());
            for (first, last) in &erase.entries {
                // An entry explains only what is below itself.
                let end = (last + 1).min(erase.seq).min(positions.end);
                for seq in (*first).max(from)..end {
                    masks[(seq - from) as usize] |= bits;
                }
            }
        }
        Self { from, masks }
    }

    /// Takes from a line what is gone. Whether it showed any of that.
    pub(super) fn take_from(&self, line: &mut EvidenceLine<'_>) -> bool {
        let at = line.seq.checked_sub(self.from);
        let at = at.and_then(|at| usize::try_from(at).ok());
        let mask = at.and_then(|at| self.masks.get(at)).copied().unwrap_or(0);
        let mut is_changed = false;
        for group in Group::ALL {
            if mask >> group.index() & 1 == 1 {
                is_changed |= line.disclosures[group.index()].take().is_some();
            }
        }
        is_changed
    }
}

/// What segments are made of: one moment of a log, under one checkpoint.
pub(super) struct Source<'a> {
    store: &'a dyn LogStore,
    scope: &'a TenantScope,
    begun: Exported,
    /// Positions outside the archived ones whose leaf data belongs into every segment: those that say
    /// that the key or the epoch changed, and of new ones what explains what is pruned.
    always: BTreeSet<u64>,
    /// What explains the holes in the archived ones.
    erases: Vec<Erase>,
}

impl<'a> Source<'a> {
    /// Looks for what explains holes at these positions.
    pub(super) async fn open(
        store: &'a dyn LogStore,
        scope: &'a TenantScope,
        begun: Exported,
        positions: &Range<u64>,
    ) -> Result<Self> {
        let keys = begun.handovers.iter().map(|(seq, _)| *seq);
        // Without the epochs a verifier doesn't know the checkpoint's name.
        let epochs = begun.epochs.iter().copied();
        let always = keys.chain(epochs).collect();
        let filter = Filter::new().to_seq(begun.manifest.size);
        let mut erases = erases(store, scope, filter).await?;
        erases.retain(|erase| erase.touches(positions));
        Ok(Self {
            store,
            scope,
            begun,
            always,
            erases,
        })
    }

    /// The size of the checkpoint.
    pub(super) fn size(&self) -> u64 {
        self.begun.manifest.size
    }

    /// The root at that size.
    pub(super) fn root(&self) -> Hash {
        self.begun.manifest.root
    }

    /// What the checkpoint says.
    pub(super) fn note(&self) -> &str {
        &self.begun.checkpoint.note
    }

    /// The evidence stream of a segment of the positions from `from` on: up to `end`, or as many as a
    /// segment has. `earlier` are checkpoints that it is shown to continue, notes by their size.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when a position has no entry, or one that differs from its hash.
    pub(super) async fn compose(
        &self,
        snapshot: &dyn Snapshot,
        from: u64,
        end: u64,
        id: Uuid,
        earlier: &BTreeMap<u64, String>,
    ) -> Result<(SegmentName, String)> {
        let lines = self.lines(snapshot, from..end).await?;
        let to = from + lines.len() as u64;
        let name = SegmentName { from, to, id };
        let mut others = self.others(&name);
        others.extend(snapshot.head().pruned_by);
        let others = self.leaves(&name, others, BTreeMap::new()).await?;
        let text = self.write(&name, lines, others, earlier).await?;
        Ok((name, text))
    }

    /// The evidence stream of a segment in place of one: the same positions, without what was erased
    /// since.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the log's hashes are others.
    pub(super) async fn renew(
        &self,
        old: &Kept,
        id: Uuid,
        earlier: &BTreeMap<u64, String>,
    ) -> Result<(SegmentName, String)> {
        let name = SegmentName { id, ..old.name };
        let gone = self.gone(&name.positions());
        let (mut lines, mut known) = (Vec::new(), BTreeMap::new());
        for mut line in old.lines() {
            if !name.positions().contains(&line.seq) {
                known.insert(line.seq, line.leaf.into_owned());
                continue;
            }
            gone.take_from(&mut line);
            let hash = leaf_hash(line.leaf.as_bytes());
            lines.push((line.into_owned(), hash));
        }
        let mut others = self.others(&name);
        others.extend(known.keys());
        let others = self.leaves(&name, others, known).await?;
        let text = self.write(&name, lines, others, earlier).await?;
        Ok((name, text))
    }

    /// What is gone of these positions.
    pub(super) fn gone(&self, positions: &Range<u64>) -> Gone {
        Gone::of(&self.erases, positions)
    }

    /// Writes the lines of a segment, in their order, and what stands for the rest of the log.
    async fn write(
        &self,
        name: &SegmentName,
        lines: Vec<Line>,
        others: Vec<Line>,
        earlier: &BTreeMap<u64, String>,
    ) -> Result<String> {
        let mut cuts: BTreeSet<u64> = earlier.keys().copied().collect();
        for (line, _) in lines.iter().chain(&others) {
            cuts.extend(pruned_end(line));
        }
        let behind = others.partition_point(|(line, _)| line.seq < name.from);
        let mut before = others;
        let after = before.split_off(behind);

        let mut begun = self.begun.clone();
        begun.manifest.filter = Some(name.filter());
        // Of the entries around it a segment has leaf data alone, lest a person outlive an erasure there.
        begun.manifest.withheld = Group::ALL.to_vec();
        let mut text = String::new();
        let composer = begun.write_head(earlier, &mut text);
        let mut composer = composer.map_err(|fault| broken(self.scope, fault))?;
        let mut at = 0;
        for (line, hash) in before.into_iter().chain(lines).chain(after) {
            let seq = line.seq;
            self.pass(&mut composer, at..seq, &cuts, &mut text).await?;
            composer
                .sealed_entry(line, hash, &mut text)
                .map_err(|fault| broken(self.scope, fault))?;
            at = seq + 1;
        }
        let rest = at..begun.manifest.size;
        self.pass(&mut composer, rest, &cuts, &mut text).await?;
        composer
            .finish(&mut text)
            .map_err(|fault| broken(self.scope, fault))?;
        Ok(text)
    }

    /// The entries of the segment itself.
    async fn lines(&self, snapshot: &dyn Snapshot, positions: Range<u64>) -> Result<Vec<Line>> {
        let corrupt = |seq| Error::corrupt(self.scope.tenant(), seq);
        let end = positions.end.min(positions.start + MAX_ENTRIES);
        let filter = Filter::new().from_seq(positions.start).to_seq(end);
        let mut evidence = snapshot.evidence(&filter).await?;
        let (mut lines, mut length, mut next) = (Vec::new(), 0, positions.start);
        while length < MAX_TEXT
            && let Some(found) = evidence.next().await.transpose()?
        {
            let (seq, hash) = (found.entry.seq, found.entry.leaf_hash);
            if seq != next {
                return Err(corrupt(next));
            }
            if leaf_hash(found.leaf.as_bytes()) != hash {
                return Err(corrupt(seq));
            }
            next += 1;
            let disclosed = found.disclosures.iter().flatten().map(String::len);
            length += found.leaf.len() + disclosed.sum::<usize>();
            lines.push(line(found));
        }
        if lines.is_empty() || (next < end && length < MAX_TEXT) {
            return Err(corrupt(next));
        }
        Ok(lines)
    }

    /// The positions outside a segment that belong into it whenever it is written.
    fn others(&self, name: &SegmentName) -> BTreeSet<u64> {
        let positions = name.positions();
        let erases = self
            .erases
            .iter()
            .filter(|erase| erase.touches(&positions))
            .map(|erase| erase.seq);
        self.always.iter().copied().chain(erases).collect()
    }

    /// The leaf data at positions outside a segment: as it is known, or the store has it. Of what is
    /// pruned the store has that of changes of keys and of the epoch.
    async fn leaves(
        &self,
        name: &SegmentName,
        positions: BTreeSet<u64>,
        mut known: BTreeMap<u64, String>,
    ) -> Result<Vec<Line>> {
        let mut lines = Vec::with_capacity(positions.len());
        for seq in positions {
            if name.positions().contains(&seq) {
                continue;
            }
            let leaf = match known.remove(&seq) {
                Some(leaf) => Some(leaf),
                None => {
                    let found = evidence::leaves(self.store, self.scope, seq..seq + 1).await?;
                    found.into_iter().next().map(|(_, leaf)| leaf)
                }
            };
            let Some(leaf) = leaf else { continue };
            let hash = leaf_hash(leaf.as_bytes());
            let line = EvidenceLine {
                seq,
                leaf: leaf.into(),
                disclosures: Default::default(),
            };
            lines.push((line, hash));
        }
        Ok(lines)
    }

    /// Writes what stands for positions that the segment doesn't have, with a mark at each cut.
    async fn pass(
        &self,
        composer: &mut Composer,
        positions: Range<u64>,
        cuts: &BTreeSet<u64>,
        text: &mut String,
    ) -> Result<()> {
        let mut at = positions.start;
        for cut in cuts.range(positions.start..=positions.end) {
            gap(self.store, self.scope, composer, at..*cut, text).await?;
            composer.mark(text);
            at = *cut;
        }
        gap(self.store, self.scope, composer, at..positions.end, text).await
    }
}

/// Where a prune ended, if the line is one: a verifier compares the root there.
fn pruned_end(line: &EvidenceLine<'_>) -> Option<u64> {
    match LeafData::parse(&line.leaf).ok()?.control {
        Some(Control::Prune { below, .. }) => Some(below),
        _ => None,
    }
}

fn line(evidence: Evidence) -> Line {
    let line = EvidenceLine {
        seq: evidence.entry.seq,
        leaf: evidence.leaf.into(),
        disclosures: evidence.disclosures.map(|text| text.map(Into::into)),
    };
    (line, evidence.entry.leaf_hash)
}

/// A segment's files, the manifest last.
pub(super) type Files = Vec<(String, Vec<u8>)>;

/// Packs an evidence stream into files. It takes its time.
pub(super) fn pack(text: &str) -> Result<Files> {
    let fault = |fault: SplitFault| {
        Error::new(ErrorKind::Internal, "the segment can't be packed").with_source(fault)
    };
    let mut splitter = Splitter::default();
    let mut head = 0;
    for line in text.split_inclusive('\n') {
        // The log's lines come last.
        if !splitter.line(line.as_bytes()).map_err(fault)? {
            head += line.len();
        }
    }
    let packed = zstd::encode_all(&text.as_bytes()[head..], zstd::DEFAULT_COMPRESSION_LEVEL)
        .map_err(|e| {
            Error::new(ErrorKind::Internal, "the segment can't be packed").with_source(e)
        })?;
    let log = folder::listed(LOG_ZST, &packed);
    let (manifest, small) = splitter.finish(log).map_err(fault)?;
    let small = small
        .into_iter()
        .map(|(name, text)| (name, text.into_bytes()));
    let mut files: Files = small.collect();
    files.push((LOG_ZST.to_owned(), packed));
    files.push((MANIFEST.to_owned(), manifest.encode().into_bytes()));
    Ok(files)
}

/// What was read of a segment's file is not what was written there.
fn altered(name: SegmentName, what: &str) -> Error {
    let message = format!("the archive doesn't give back what it was given: {what} of {name}");
    Error::new(ErrorKind::Unavailable, message)
}

/// A segment that was read from an archive: its files are those that its manifest lists.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) name: SegmentName,
    listing: FolderManifest,
    /// The lines before the first position.
    head: String,
    findings: Vec<Finding>,
    /// The others.
    text: String,
}

impl Kept {
    /// Opens what was read of a segment. It takes its time.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when it is not what its manifest lists.
    pub(super) fn open(name: SegmentName, mut files: BTreeMap<String, Vec<u8>>) -> Result<Self> {
        let altered = |what: &str| altered(name, what);
        let listing = files.get(MANIFEST);
        let listing = listing.and_then(|bytes| std::str::from_utf8(bytes).ok());
        let listing = listing.and_then(|text| FolderManifest::parse(text).ok());
        let listing = listing.ok_or_else(|| altered(MANIFEST))?;
        for file in &listing.files {
            let bytes = files.get(&file.name);
            if bytes.is_none_or(|bytes| folder::listed(&file.name, bytes) != *file) {
                return Err(altered(&file.name));
            }
        }
        let packed = files.remove(LOG_ZST).unwrap_or_default();
        let opened = folder::open(&listing, |name| {
            let bytes = files.remove(name).unwrap_or_default();
            String::from_utf8(bytes)
        });
        let unreadable = |_| altered(LOG_ZST);
        let decoder = zstd::Decoder::new(packed.as_slice()).map_err(unreadable)?;
        let mut text = String::new();
        let mut lines = decoder.take(MAX_LINES);
        lines.read_to_string(&mut text).map_err(unreadable)?;
        if lines.limit() == 0 {
            return Err(altered(LOG_ZST));
        }
        Ok(Self {
            name,
            listing,
            head: opened.head,
            findings: opened.findings,
            text,
        })
    }

    /// The size of its checkpoint.
    pub(super) fn size(&self) -> u64 {
        self.listing.manifest.size
    }

    /// The sizes of the earlier checkpoints that it has.
    pub(super) fn earlier(&self) -> BTreeSet<u64> {
        let names = self.listing.files.iter().map(|file| file.name.as_str());
        let sizes = names.filter_map(|name| name.strip_prefix(CHECKPOINTS)?.strip_prefix('/'));
        sizes.filter_map(|size| size.parse().ok()).collect()
    }

    /// The entries in it, in the order of their positions: its own, and of others what is left.
    pub(super) fn lines(&self) -> impl Iterator<Item = EvidenceLine<'_>> {
        self.text.lines().filter_map(|line| {
            let Ok(Record::Entry(line)) = Record::parse(line) else {
                return None;
            };
            Some(line)
        })
    }

    /// Judges it as an auditor would, and returns the root that its lines lead to; else what is wrong.
    /// Without keys it is for the caller to know whose the root is. It takes its time.
    pub(super) fn judge(&self, keys: Vec<VerifyingKey>) -> Result<Hash, String> {
        let options = Options {
            partial: true,
            keys,
            // As many as a segment can have.
            max_holes: usize::MAX,
            ..Options::default()
        };
        let report = verify_lines(self.head.lines().chain(self.text.lines()), options);
        if let Some(finding) = self.findings.first().or(report.findings.first()) {
            return Err(finding.to_string());
        }
        if let Some(hole) = report.withheld_within(&self.name.positions()) {
            return Err(format!(
                "positions {} to {} are not in it",
                hole.from, hole.to
            ));
        }
        report.root.ok_or_else(|| "it leads to no root".to_owned())
    }
}

/// What a segment that was read back has to prove.
#[derive(Debug, Clone)]
pub(super) struct Demands {
    pub(super) name: SegmentName,
    /// The text of its manifest.
    pub(super) manifest: Vec<u8>,
    /// The key that signs the log.
    pub(super) key: VerifyingKey,
    /// The root that its lines lead to.
    pub(super) root: Hash,
}

/// Judges a segment that was read back as an auditor would. It takes its time.
///
/// # Errors
/// [`ErrorKind::Unavailable`] when it is not what was written; [`ErrorKind::Corrupt`] when it is, and
/// proves less than was demanded: what the log holds is not what it signed.
pub(super) fn check(demands: &Demands, files: BTreeMap<String, Vec<u8>>) -> Result<()> {
    let name = demands.name;
    if files.get(MANIFEST) != Some(&demands.manifest) {
        return Err(altered(name, MANIFEST));
    }
    let kept = Kept::open(name, files)?;
    let wrong = match kept.judge(vec![demands.key.clone()]) {
        Ok(root) if root == demands.root => return Ok(()),
        Ok(_) => "it leads to another root".to_owned(),
        Err(wrong) => wrong,
    };
    let message = format!("what would be archived as {name} is not verified: {wrong}");
    Err(Error::new(ErrorKind::Corrupt, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(seq: u64) -> EvidenceLine<'static> {
        EvidenceLine {
            seq,
            leaf: "".into(),
            disclosures: [const { Some(std::borrow::Cow::Borrowed("d")) }; 7],
        }
    }

    #[test]
    fn a_line_loses_what_a_later_entry_names_and_nothing_else() {
        let erase = |seq, groups: &[Group], ranges: &[(u64, u64)]| Erase {
            seq,
            groups: groups.to_vec(),
            entries: ranges.to_vec(),
        };
        let erases = [
            // An entry says nothing of what is not below itself.
            erase(14, &[Group::Reason], &[(3, 10), (13, 20)]),
            erase(30, &[Group::Actor], &[(0, 3), (12, 12), (19, 40)]),
        ];
        let gone = Gone::of(&erases, &(10..20));
        for seq in 0..40 {
            let mut line = shown(seq);
            let lost: &[Group] = match seq {
                10 | 13 => &[Group::Reason],
                12 | 19 => &[Group::Actor],
                _ => &[],
            };
            assert_eq!(gone.take_from(&mut line), !lost.is_empty(), "{seq}");
            for group in Group::ALL {
                let is_shown = line.disclosures[group.index()].is_some();
                assert_eq!(is_shown, !lost.contains(&group), "{seq} {group}");
            }
            assert!(!gone.take_from(&mut line), "{seq}: once");
        }
    }
}
