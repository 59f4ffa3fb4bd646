//! What a segment holds: composed from a snapshot, packed into files, checked when it was read back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::ops::Range;

use audit_tlog::evidence::{Composer, EvidenceLine, FolderManifest};
use audit_tlog::folder::{self, LOG_ZST, MANIFEST, SegmentName, SplitFault, Splitter};
use audit_tlog::leaf::leaf_hash;
use audit_tlog::note::VerifyingKey;
use audit_tlog::verify::{Options, verify_lines};
use audit_tlog::{Control, Hash};
use futures_util::StreamExt as _;
use uuid::Uuid;

use super::{MAX_ENTRIES, MAX_TEXT};
use crate::entry::Evidence;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{Exported, broken, each_control_entry, gap};
use crate::filter::Filter;
use crate::scope::TenantScope;
use crate::store::{LogStore, Snapshot};

/// A line and the leaf hash that the log has kept of it.
type Line = (EvidenceLine<'static>, Hash);

/// An `erase` entry: its position, and the ranges of positions that it names, both ends inclusive.
type Erase = (u64, Vec<(u64, u64)>);

/// Whether an `erase` entry names one of these positions.
pub(super) fn touches(ranges: &[(u64, u64)], positions: &Range<u64>) -> bool {
    ranges
        .iter()
        .any(|(from, to)| *from < positions.end && *to >= positions.start)
}

/// The checkpoint of the segment before.
#[derive(Debug, Clone)]
pub(super) struct Previous {
    pub(super) size: u64,
    pub(super) note: String,
}

/// What segments are made of: one moment of a log, under one checkpoint.
pub(super) struct Source<'a> {
    store: &'a dyn LogStore,
    scope: &'a TenantScope,
    snapshot: &'a dyn Snapshot,
    begun: Exported,
    /// Positions outside the archived ones whose entries belong into every segment: those that say
    /// that the key or the epoch changed, and the one that explains what is pruned.
    always: BTreeSet<u64>,
    /// What explains the holes in the archived ones.
    erases: Vec<Erase>,
}

impl<'a> Source<'a> {
    /// Looks for what explains holes at these positions.
    pub(super) async fn open(
        store: &'a dyn LogStore,
        scope: &'a TenantScope,
        snapshot: &'a dyn Snapshot,
        begun: Exported,
        positions: &Range<u64>,
    ) -> Result<Self> {
        let head = snapshot.head();
        let keys = begun.handovers.iter().map(|(seq, _)| *seq);
        // Without the epochs a verifier doesn't know the checkpoint's name.
        let epochs = begun.epochs.iter().copied();
        let always: BTreeSet<u64> = keys.chain(epochs).chain(head.pruned_by).collect();
        let mut explained = always.clone();
        let mut erases = Vec::new();
        let filter = Filter::new().action("log.erase").to_seq(head.size());
        each_control_entry(store, scope, &filter, |entry| {
            if let Some(Control::Erase { entries, .. }) = entry.control()
                && (touches(&entries, positions) || touch_any(&entries, &explained))
            {
                explained.insert(entry.seq);
                erases.push((entry.seq, entries));
            }
        })
        .await?;
        Ok(Self {
            store,
            scope,
            snapshot,
            begun,
            always,
            erases,
        })
    }

    /// The evidence stream of a segment of the positions from `from` on: up to `end`, or as many as a
    /// segment has.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when a position has no entry, or one that differs from its hash.
    pub(super) async fn compose(
        &self,
        from: u64,
        end: u64,
        id: Uuid,
        previous: Option<&Previous>,
    ) -> Result<(SegmentName, String)> {
        let lines = self.lines(from..end).await?;
        let to = from + lines.len() as u64;
        let name = SegmentName { from, to, id };
        let mut cuts: BTreeSet<u64> = previous.map(|previous| previous.size).into_iter().collect();
        for (line, _) in &lines {
            cuts.extend(pruned_end(line));
        }
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for seq in self.others(&name) {
            let Some(line) = self.other(seq).await? else {
                continue;
            };
            cuts.extend(pruned_end(&line.0));
            match seq < from {
                true => before.push(line),
                false => after.push(line),
            }
        }

        let mut begun = self.begun.clone();
        begun.manifest.filter = Some(name.filter());
        let mut text = String::new();
        let previous = previous.map(|previous| (previous.size, previous.note.as_str()));
        let composer = begun.write_head(previous, &mut text);
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
        Ok((name, text))
    }

    /// The entries of the segment itself.
    async fn lines(&self, positions: Range<u64>) -> Result<Vec<Line>> {
        let corrupt = |seq| Error::corrupt(self.scope.tenant(), seq);
        let end = positions.end.min(positions.start + MAX_ENTRIES);
        let filter = Filter::new().from_seq(positions.start).to_seq(end);
        let mut evidence = self.snapshot.evidence(&filter).await?;
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

    /// The positions outside a segment of which it has the entries, in order.
    fn others(&self, name: &SegmentName) -> BTreeSet<u64> {
        let positions = name.positions();
        let mut others = self.always.clone();
        for (seq, ranges) in &self.erases {
            if touches(ranges, &positions) || touch_any(ranges, &others) {
                others.insert(*seq);
            }
        }
        others.retain(|seq| !positions.contains(seq));
        others
    }

    /// An entry from outside the segment: of one that is pruned, what is left.
    async fn other(&self, seq: u64) -> Result<Option<Line>> {
        if seq < self.snapshot.head().pruned_below {
            let left = self.store.leaves(self.scope, seq..seq + 1).await?.pop();
            return Ok(left.map(|(seq, leaf)| {
                let hash = leaf_hash(leaf.as_bytes());
                let line = EvidenceLine {
                    seq,
                    leaf: leaf.into(),
                    disclosures: Default::default(),
                };
                (line, hash)
            }));
        }
        let filter = Filter::new().from_seq(seq).to_seq(seq + 1);
        let found = self.snapshot.evidence(&filter).await?.next().await;
        Ok(found.transpose()?.map(line))
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

fn touch_any(ranges: &[(u64, u64)], positions: &BTreeSet<u64>) -> bool {
    ranges
        .iter()
        .any(|(from, to)| positions.range(from..=to).next().is_some())
}

/// Where a prune ended, if the line is one: a verifier compares the root there.
fn pruned_end(line: &EvidenceLine<'_>) -> Option<u64> {
    let leaf = audit_tlog::evidence::LeafData::parse(&line.leaf).ok()?;
    match leaf.control {
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
    /// The length of its lines.
    pub(super) length: usize,
}

/// Judges a segment that was read back as an auditor would. It takes its time.
///
/// # Errors
/// [`ErrorKind::Unavailable`] when it is not what was written; [`ErrorKind::Corrupt`] when it is, and
/// proves less than was demanded: what the log holds is not what it signed.
pub(super) fn check(demands: &Demands, mut files: BTreeMap<String, Vec<u8>>) -> Result<()> {
    let name = demands.name;
    let altered = |what: &str| {
        let message = format!("the archive doesn't give back what it was given: {what} of {name}");
        Error::new(ErrorKind::Unavailable, message)
    };
    if files.get(MANIFEST) != Some(&demands.manifest) {
        return Err(altered(MANIFEST));
    }
    let listing = std::str::from_utf8(&demands.manifest).ok();
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
    let mut broken = None;
    let limit = demands.length as u64;
    let lines = BufReader::new(decoder.take(limit)).split(b'\n');
    let lines = lines.map_while(|line| line.map_err(|e| broken = Some(e)).ok());
    let head = opened.head.lines().map(|line| line.as_bytes().to_vec());
    let options = Options {
        partial: true,
        keys: vec![demands.key.clone()],
        // As many as a segment can have.
        max_holes: usize::MAX,
        ..Options::default()
    };
    let report = verify_lines(head.chain(lines), options);
    if broken.is_some() {
        return Err(altered(LOG_ZST));
    }
    let finding = opened.findings.first().or(report.findings.first());
    let wrong = match finding {
        Some(finding) => Some(finding.to_string()),
        None if report.root != Some(demands.root) => Some("it leads to another root".to_owned()),
        None => report
            .withheld_within(&name.positions())
            .map(|hole| format!("positions {} to {} are not in it", hole.from, hole.to)),
    };
    match wrong {
        None => Ok(()),
        Some(wrong) => {
            let message = format!("what would be archived as {name} is not verified: {wrong}");
            Err(Error::new(ErrorKind::Corrupt, message))
        }
    }
}
