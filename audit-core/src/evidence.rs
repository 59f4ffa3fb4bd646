//! What a tenant's log proves: inclusion, consistency, tiles, and the export that an auditor verifies
//! without us.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use audit_tlog::evidence::{ComposeFault, Composer, EvidenceLine, LeafData, Manifest};
use audit_tlog::leaf::{leaf_hash, node_hash};
use audit_tlog::merkle::{self, subtrees};
use audit_tlog::note::{Note, VerifyingKey};
use audit_tlog::proof::InclusionProof;
use audit_tlog::tile::{self, Content, FULL_WIDTH, Tile};
use audit_tlog::{Control, Group, Hash, Timestamp};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::time::Instant;

use crate::checkpoint::{EpochStart, KeyChange, SignedCheckpoint};
use crate::entry::{Entry, Evidence};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::id::{EventId, TenantId};
use crate::log::TenantLog;
use crate::page::PageRequest;
use crate::scope::TenantScope;
use crate::signing::{Signing, not_signed};
use crate::store::{LogStore, Lookup, Snapshot};

/// Hashes that are asked for at once.
const HASHES: u64 = 1_024;
/// Text after which an export is given out piece by piece, in bytes.
const PIECE: usize = 64 * 1024;

/// What an evidence export is asked for. The default is the whole log.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct EvidenceRequest {
    /// Which entries. Control entries are always in it.
    pub filter: Filter,
    /// Groups that are kept back, of all entries.
    pub withheld: Vec<Group>,
}

impl EvidenceRequest {
    /// The whole log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only these entries, and the control entries.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Keeps these groups back: their digests are shown, and not what they hold.
    #[must_use]
    pub fn withhold(mut self, groups: &[Group]) -> Self {
        self.withheld = Group::ordered(groups);
        self
    }

    /// A filter is told in the manifest: it must not say what is withheld.
    fn check(&self) -> Result<()> {
        let told = |group: &Group| {
            self.filter.q.is_some()
                || self
                    .filter
                    .conditions()
                    .iter()
                    .any(|condition| condition.field.group() == Some(*group))
        };
        match self.withheld.iter().find(|group| told(group)) {
            None => Ok(()),
            Some(group) => Err(Error::field(
                "withhold",
                format!("the filter, which the export tells, says what {group} holds"),
            )),
        }
    }
}

/// The stored hashes over a perfect subtree of leaves: the highest level that fits it, and their places.
pub(crate) fn run_of(subtree: &Range<u64>) -> (u8, Range<u64>) {
    let height = (subtree.end - subtree.start).ilog2();
    let level = height / FULL_WIDTH.ilog2();
    let width = u64::from(FULL_WIDTH).pow(level);
    (
        u8::try_from(level).unwrap_or(u8::MAX),
        subtree.start / width..subtree.end / width,
    )
}

/// The hash over a perfect subtree of leaves, from the stored hashes of the level below it.
pub(crate) async fn node(
    store: &dyn LogStore,
    scope: &TenantScope,
    range: Range<u64>,
) -> Result<Hash> {
    let (level, run) = run_of(&range);
    let hashes = store.hashes(scope, level, run).await?;
    Ok(merkle::subtree_root(&hashes))
}

/// The `MTH` of any range that a proof asks for: a perfect subtree, or what a tree ends in.
pub(crate) async fn root_of(
    store: &dyn LogStore,
    scope: &TenantScope,
    range: Range<u64>,
) -> Result<Hash> {
    let mut peaks = Vec::new();
    for subtree in subtrees(range) {
        peaks.push(node(store, scope, subtree).await?);
    }
    Ok(merkle::join_peaks(&peaks))
}

pub(crate) async fn roots_of(
    store: &dyn LogStore,
    scope: &TenantScope,
    nodes: Option<Vec<Range<u64>>>,
) -> Result<Vec<Hash>> {
    let mut hashes = Vec::new();
    for range in nodes.unwrap_or_default() {
        hashes.push(root_of(store, scope, range).await?);
    }
    Ok(hashes)
}

pub(crate) async fn inclusion(
    store: &dyn LogStore,
    scope: &TenantScope,
    seq: u64,
    checkpoint: &SignedCheckpoint,
) -> Result<InclusionProof> {
    let nodes = merkle::inclusion_nodes(seq, checkpoint.size);
    let hashes = roots_of(store, scope, nodes).await?;
    Note::parse(&checkpoint.note)
        .map_err(|fault| broken(scope, fault))
        .and_then(|note| {
            InclusionProof::new(seq, hashes, note).map_err(|fault| broken(scope, fault))
        })
}

pub(crate) async fn consistency(
    store: &dyn LogStore,
    scope: &TenantScope,
    sizes: Range<u64>,
) -> Result<Vec<Hash>> {
    let head = store.head(scope).await?;
    if sizes.start > sizes.end || sizes.end > head.size() {
        return Err(Error::field(
            "to",
            format!("not from `from` to the log's size, {}", head.size()),
        ));
    }
    let nodes = merkle::consistency_nodes(sizes.start, sizes.end);
    roots_of(store, scope, nodes).await
}

pub(crate) async fn tile(
    store: &dyn LogStore,
    scope: &TenantScope,
    tile: &Tile,
) -> Result<Vec<u8>> {
    let none = || Error::new(ErrorKind::NotFound, "the log has no such tile");
    let start = tile
        .index()
        .checked_mul(u64::from(FULL_WIDTH))
        .ok_or_else(none)?;
    let range = start..start + u64::from(tile.width());
    match tile.content() {
        Content::Hashes(level) => {
            let hashes = store.hashes(scope, level, range).await?;
            Ok(tile::encode_hashes(&hashes))
        }
        Content::Entries => {
            if store.head(scope).await?.size() < range.end {
                return Err(none());
            }
            let leaves = leaves(store, scope, range.clone()).await?;
            if !leaves.iter().map(|(seq, _)| *seq).eq(range) {
                // What a prune leaves of a bundle is all of it, until it ends behind the bundle.
                let pruned = store.head(scope).await?.pruned_below;
                return Err(match start + u64::from(FULL_WIDTH) <= pruned {
                    true => Error::new(ErrorKind::Pruned, "entries of the bundle were pruned"),
                    false => Error::new(ErrorKind::Corrupt, "leaf data of the bundle is missing")
                        .with_tenant(scope.tenant()),
                });
            }
            tile::encode_entries(leaves.iter().map(|(_, leaf)| leaf.as_bytes()))
                .map_err(|fault| broken(scope, fault))
        }
    }
}

/// Leaf data by position, as [`LogStore::leaves`] has it. What outlives a prune is compared with the tree:
/// there is no row any more that it is made of.
///
/// # Errors
/// [`ErrorKind::Corrupt`] with the position when a pruned entry's has another hash than the tree has there.
pub(crate) async fn leaves(
    store: &dyn LogStore,
    scope: &TenantScope,
    range: Range<u64>,
) -> Result<Vec<(u64, String)>> {
    let leaves = store.leaves(scope, range).await?;
    // Asked for behind them: whatever was pruned when they were read is pruned now.
    let below = store.head(scope).await?.pruned_below;
    let kept = leaves.iter().filter(|(seq, _)| *seq < below);
    let seqs = kept.clone().map(|(seq, _)| *seq);
    let (Some(first), Some(last)) = (seqs.clone().min(), seqs.max()) else {
        return Ok(leaves);
    };
    let hashes = store.hashes(scope, 0, first..last + 1).await?;
    for (seq, leaf) in kept {
        let at = usize::try_from(seq - first).unwrap_or(usize::MAX);
        if hashes.get(at) != Some(&leaf_hash(leaf.as_bytes())) {
            return Err(Error::corrupt(scope.tenant(), *seq));
        }
    }
    Ok(leaves)
}

pub(crate) fn broken(
    scope: &TenantScope,
    fault: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::new(ErrorKind::Corrupt, "what is stored is not what was signed")
        .with_tenant(scope.tenant())
        .with_source(fault)
}

/// How long an export or a proof waits for its checkpoint.
const SIGNED_WITHIN: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(200);

/// A log as C2SP tlog-tiles serves it: checkpoints, the key that verifies them, and tiles. Nothing else of
/// the tenant is read through it.
#[derive(Debug, Clone)]
pub struct TiledLog(TenantLog);

impl TiledLog {
    /// As [`TenantLog::verifying_key`].
    ///
    /// # Errors
    /// As there.
    pub async fn verifying_key(&self) -> Result<VerifyingKey> {
        self.0.verifying_key().await
    }

    /// As [`TenantLog::checkpoint`].
    ///
    /// # Errors
    /// As there.
    pub async fn checkpoint(&self) -> Result<Option<SignedCheckpoint>> {
        self.0.checkpoint().await
    }

    /// As [`TenantLog::checkpoint_covering`].
    ///
    /// # Errors
    /// As there.
    pub async fn checkpoint_covering(&self, size: u64) -> Result<Option<SignedCheckpoint>> {
        self.0.checkpoint_covering(size).await
    }

    /// As [`TenantLog::tile`].
    ///
    /// # Errors
    /// As there.
    pub async fn tile(&self, wanted: &Tile) -> Result<Vec<u8>> {
        self.0.tile(wanted).await
    }
}

/// What the log proves.
impl TenantLog {
    /// The log's checkpoints, key and tiles, and nothing else of it.
    #[must_use]
    pub fn tiled(&self) -> TiledLog {
        TiledLog(self.clone())
    }

    pub(crate) fn signing(&self) -> Result<&Signing> {
        self.log.inner.signing.as_deref().ok_or_else(not_signed)
    }

    /// The key that verifies this log's checkpoints, under the name of the epoch that it is in. Needs no
    /// permission: it is public.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without a signer; what a closed tenant answers.
    pub async fn verifying_key(&self) -> Result<VerifyingKey> {
        self.signing()?.verifying_key(self.scope.tenant()).await
    }

    /// The largest signed checkpoint; none before the signer came to this log. Needs `read`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without a signer; what the store answers.
    pub async fn checkpoint(&self) -> Result<Option<SignedCheckpoint>> {
        self.signing()?.checkpoints().latest(&self.scope).await
    }

    /// The smallest kept checkpoint that covers so many entries at least; none when the largest doesn't.
    /// For the `seq` of a `key` entry and one more that is the first over the change, which both keys
    /// sign. Needs `read`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without a signer; what the store answers.
    pub async fn checkpoint_covering(&self, size: u64) -> Result<Option<SignedCheckpoint>> {
        let checkpoints = self.signing()?.checkpoints();
        checkpoints.covering(&self.scope, size).await
    }

    /// The proof that an entry stands in the log, under the largest checkpoint. Needs `read`. Waits for
    /// a checkpoint that covers the entry, which takes about a second after it was recorded.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and [`ErrorKind::Pruned`] as for [`get`](Self::get);
    /// [`ErrorKind::Unavailable`] when no such checkpoint came within five seconds;
    /// [`ErrorKind::NotFound`] without a signer.
    pub async fn proof(&self, id: EventId) -> Result<InclusionProof> {
        let signing = self.signing()?;
        let store = &*self.log.inner.store;
        let mut found = store.get(&self.scope, &[id]).await?;
        let entry = found.pop().unwrap_or(Lookup::Missing).into_entry()?;
        let deadline = Instant::now() + SIGNED_WITHIN;
        loop {
            match signing.checkpoints().latest(&self.scope).await? {
                Some(checkpoint) if checkpoint.size > entry.seq => {
                    return inclusion(store, &self.scope, entry.seq, &checkpoint).await;
                }
                _ if Instant::now() >= deadline => {
                    return Err(not_yet("no checkpoint covers the entry yet"));
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// The proof (RFC 6962 §2.1.2) that the log of `to` entries continues the one of `from`. Needs
    /// `read`. Empty when they are equal, and from 0.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless `from` ≤ `to` ≤ the log's size; what the store answers.
    pub async fn consistency(&self, from: u64, to: u64) -> Result<Vec<Hash>> {
        consistency(&*self.log.inner.store, &self.scope, from..to).await
    }

    /// A tile, as C2SP tlog-tiles serves it: of hashes, or of the leaf data of entries. Needs `read`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the log isn't so large; [`ErrorKind::Pruned`] when leaf data of
    /// the bundle is gone.
    pub async fn tile(&self, wanted: &Tile) -> Result<Vec<u8>> {
        tile(&*self.log.inner.store, &self.scope, wanted).await
    }

    /// An evidence export: the lines of [`audit_tlog::evidence`], in pieces of whole lines, from one
    /// snapshot and in constant memory. Needs `export`. The stream is evidence only when its last
    /// line is there.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the filter names what is withheld;
    /// [`ErrorKind::NotFound`] without a signer; [`ErrorKind::Unavailable`] when another process signs
    /// and did not come to the snapshot's size, as on a log that grows all the time; what the store
    /// answers.
    pub async fn evidence(
        &self,
        request: EvidenceRequest,
    ) -> Result<BoxStream<'static, Result<String>>> {
        request.check()?;
        let inner = &self.log.inner;
        // Who may export may see what the export begins with.
        let reader = TenantScope::trusted(self.scope.tenant(), "evidence");
        let (snapshot, checkpoint) = self.signed_snapshot().await?;
        let withheld = request.withheld.clone();
        let filter = (!request.filter.is_empty()).then(|| request.filter.to_json());
        let export = self.begin(checkpoint, filter, withheld).await?;
        export
            .stream(Arc::clone(&inner.store), reader, request, snapshot)
            .await
    }

    /// A snapshot, and a checkpoint of its size.
    ///
    /// # Errors
    /// As [`evidence`](Self::evidence).
    pub(crate) async fn signed_snapshot(&self) -> Result<(Box<dyn Snapshot>, SignedCheckpoint)> {
        let signing = self.signing()?;
        let inner = &self.log.inner;
        let reader = TenantScope::trusted(self.scope.tenant(), "evidence");
        let deadline = Instant::now() + SIGNED_WITHIN;
        loop {
            let snapshot = inner.store.snapshot(&self.scope).await?;
            let head = snapshot.head();
            let known = signing.checkpoints().covering(&reader, head.size()).await?;
            match (known, signing.fence()) {
                // Of one that an earlier key signed, the signer makes another.
                (Some(known), fence)
                    if known.size == head.size()
                        && (fence.is_none() || signing.is_ours(head.tenant, &known).await?) =>
                {
                    signing.check(&*inner.store, head, &known).await?;
                    return Ok((snapshot, known));
                }
                (_, Some(fence)) => {
                    let now = inner.clock.now();
                    match signing.publish(&*inner.store, fence, head, now).await {
                        Ok(checkpoint) if checkpoint.size == head.size() => {
                            return Ok((snapshot, checkpoint));
                        }
                        // The key has just changed: the log has grown by the entry that says so.
                        Ok(_) => {}
                        // Another process has just taken over, and will sign; or the key changed
                        // behind the snapshot.
                        Err(error)
                            if matches!(
                                error.kind(),
                                ErrorKind::Refused | ErrorKind::Unavailable
                            ) && Instant::now() < deadline =>
                        {
                            tokio::time::sleep(LOOK).await;
                        }
                        Err(error) => return Err(error),
                    }
                }
                _ if Instant::now() >= deadline => {
                    return Err(not_yet("no checkpoint has the size of the export yet"));
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// What an export of a checkpoint's size begins with.
    pub(crate) async fn begin(
        &self,
        checkpoint: SignedCheckpoint,
        filter: Option<String>,
        withheld: Vec<Group>,
    ) -> Result<Exported> {
        let signing = self.signing()?;
        let reader = TenantScope::trusted(self.scope.tenant(), "evidence");
        let manifest = Manifest {
            tenant_id: self.scope.tenant().into_uuid(),
            origin: signing.signer().origin().clone(),
            created_at: self.log.inner.clock.now(),
            size: checkpoint.size,
            root: checkpoint.root,
            filter,
            withheld,
        };
        let vkey = self.verifying_key().await?.encode();
        let store = &*self.log.inner.store;
        Ok(Exported {
            manifest,
            handovers: handovers(signing, store, &reader, checkpoint.size).await?,
            epochs: epochs(signing, store, &reader, checkpoint.size).await?,
            checkpoint,
            vkey,
        })
    }
}

pub(crate) fn not_yet(message: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, message).with_retry_after(Duration::from_secs(1))
}

/// What an export begins with.
#[derive(Clone)]
pub(crate) struct Exported {
    pub(crate) manifest: Manifest,
    /// Changes of keys by position, with the first checkpoints over them.
    pub(crate) handovers: Vec<(u64, SignedCheckpoint)>,
    /// The positions of the entries that epochs begin with.
    pub(crate) epochs: Vec<u64>,
    pub(crate) checkpoint: SignedCheckpoint,
    vkey: String,
}

/// An export under way.
struct Export {
    store: Arc<dyn LogStore>,
    scope: TenantScope,
    request: EvidenceRequest,
    entries: BoxStream<'static, Result<Evidence>>,
    size: u64,
    /// When the newest entry was accepted, as the head says.
    accepted: Timestamp,
    composer: Composer,
    /// Positions that are left out, up to the next entry that isn't.
    gap: Run,
    /// The tree's leaf hashes from a position on; none where they can't be read.
    kept: (u64, Vec<Option<Hash>>),
    /// An entry behind missing ones that is not what was sealed at its position.
    astray: Option<u64>,
    text: String,
}

/// The changes of keys below `size`, each with the first checkpoint over it, which lies right behind it.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for one that is not what the log's entry says.
async fn handovers(
    signing: &Signing,
    store: &dyn LogStore,
    scope: &TenantScope,
    size: u64,
) -> Result<Vec<(u64, SignedCheckpoint)>> {
    let mut found = Vec::new();
    for change in signing.checkpoints().key_changes(scope).await? {
        if change.seq >= size {
            break;
        }
        check_change(store, scope, &change).await?;
        let checkpoints = signing.checkpoints();
        let first = checkpoints.covering(scope, change.seq + 1).await?;
        found.extend(first.map(|first| (change.seq, first)));
    }
    Ok(found)
}

/// The positions below `size` of the entries that epochs begin with.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for one that is not what the log's entry says.
async fn epochs(
    signing: &Signing,
    store: &dyn LogStore,
    scope: &TenantScope,
    size: u64,
) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for start in signing.checkpoints().epochs(scope).await? {
        if start.seq >= size {
            break;
        }
        check_epoch(store, scope, &start).await?;
        found.push(start.seq);
    }
    Ok(found)
}

/// Checks that a change of keys is what the log's entry says.
///
/// # Errors
/// As [`check_said`].
pub(crate) async fn check_change(
    store: &dyn LogStore,
    scope: &TenantScope,
    change: &KeyChange,
) -> Result<()> {
    let is_so = |control: &Control| match control {
        Control::Key { old, new } => (old, new) == (&change.old, &change.new),
        _ => false,
    };
    check_said(store, scope, change.seq, is_so).await
}

/// Checks that an epoch is what the log's entry says.
///
/// # Errors
/// As [`check_said`].
pub(crate) async fn check_epoch(
    store: &dyn LogStore,
    scope: &TenantScope,
    start: &EpochStart,
) -> Result<()> {
    let is_so = |control: &Control| match control {
        Control::Epoch { epoch, .. } => *epoch == start.epoch,
        _ => false,
    };
    check_said(store, scope, start.seq, is_so).await
}

/// Checks that what is kept beside the log of a control entry is what the entry says. Of one that can't
/// be read the verifier tells.
///
/// # Errors
/// [`ErrorKind::Corrupt`] with the position when it isn't.
async fn check_said(
    store: &dyn LogStore,
    scope: &TenantScope,
    seq: u64,
    is_so: impl Fn(&Control) -> bool,
) -> Result<()> {
    let leaf = leaves(store, scope, seq..seq + 1).await?.pop();
    let said = leaf.as_ref().map(|(_, leaf)| LeafData::parse(leaf));
    match said {
        Some(Ok(said)) if !said.control.as_ref().is_some_and(is_so) => {
            let message = "a change of the key or the epoch is not what its entry says";
            Err(Error::new(ErrorKind::Corrupt, message)
                .with_tenant(scope.tenant())
                .with_position(seq))
        }
        _ => Ok(()),
    }
}

/// Shows the control entries that match and are left, oldest first.
pub(crate) async fn each_control_entry(
    store: &dyn LogStore,
    scope: &TenantScope,
    filter: &Filter,
    mut show: impl FnMut(Entry),
) -> Result<()> {
    let mut page = PageRequest::first()
        .ascending()
        .limit(PageRequest::MAX_LIMIT);
    loop {
        let found = store.list(scope, filter, &page).await?;
        let next = found.next.filter(|_| !found.items.is_empty());
        found.items.into_iter().for_each(&mut show);
        match next {
            Some(next) => page = page.after(next),
            None => return Ok(()),
        }
    }
}

/// Writes the hashes that stand for a range of positions, unless it is empty.
pub(crate) async fn gap(
    store: &dyn LogStore,
    scope: &TenantScope,
    composer: &mut Composer,
    range: Range<u64>,
    text: &mut String,
) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let mut hashes = Vec::new();
    for subtree in subtrees(range.clone()) {
        hashes.push(node(store, scope, subtree).await?);
    }
    composer
        .gap(range, hashes, text)
        .map_err(|fault| broken(scope, fault))
}

/// Where prunes of what is absent ended, up to and with `below`: a verifier compares the roots there.
async fn prunes(store: &dyn LogStore, tenant: TenantId, below: u64) -> Result<Vec<u64>> {
    if below == 0 {
        return Ok(Vec::new());
    }
    let scope = TenantScope::trusted(tenant, "evidence");
    let mut ends = vec![below];
    let filter = Filter::new().action("log.prune");
    each_control_entry(store, &scope, &filter, |entry| {
        if let Some(Control::Prune { below: end, .. }) = entry.control()
            && end < below
        {
            ends.push(end);
        }
    })
    .await?;
    // A prune that came since may have taken entries that were looked for.
    if store.head(&scope).await?.pruned_below != below {
        return Err(not_yet("the log was pruned while the export began"));
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

impl Exported {
    /// Writes the lines before the first position, with these earlier checkpoints too: notes by size.
    pub(crate) fn write_head(
        &self,
        earlier: &BTreeMap<u64, String>,
        text: &mut String,
    ) -> Result<Composer, ComposeFault> {
        let mut composer = Composer::new(&self.manifest, text);
        let handovers = self.handovers.iter().map(|(_, first)| first);
        let mut notes: BTreeMap<u64, &str> = handovers
            .map(|first| (first.size, first.note.as_str()))
            .collect();
        for (size, note) in earlier {
            notes.entry(*size).or_insert(note);
        }
        // The export's own is there anyway.
        notes.retain(|size, _| *size < self.checkpoint.size);
        let notes = notes.into_values().chain([self.checkpoint.note.as_str()]);
        for note in notes {
            composer.checkpoint(note, text)?;
        }
        composer.vkey(&self.vkey, text)?;
        Ok(composer)
    }

    /// The lines of the stream.
    async fn stream(
        self,
        store: Arc<dyn LogStore>,
        scope: TenantScope,
        request: EvidenceRequest,
        snapshot: Box<dyn Snapshot>,
    ) -> Result<BoxStream<'static, Result<String>>> {
        let mut text = String::with_capacity(PIECE);
        let begun = self.write_head(&BTreeMap::new(), &mut text);
        let mut composer = begun.map_err(|fault| broken(&scope, fault))?;
        let below = snapshot.head().pruned_below;
        if below > self.checkpoint.size {
            let message = "the head says that more was pruned than the log has";
            return Err(Error::new(ErrorKind::Corrupt, message).with_tenant(scope.tenant()));
        }
        let keys = self.handovers.iter().map(|(seq, _)| *seq);
        let told = keys.chain(self.epochs.iter().copied());
        let mut told: Vec<u64> = told.filter(|seq| *seq < below).collect();
        told.sort_unstable();
        let mut from = 0;
        for to in prunes(&*store, scope.tenant(), below).await? {
            // Leaf data of changes of keys and of the epoch outlives every prune.
            let pruned = from..to;
            for seq in told.iter().filter(|seq| pruned.contains(*seq)) {
                let data = leaves(&*store, &scope, *seq..seq + 1).await?.pop();
                let Some((seq, leaf)) = data else { continue };
                let hash = node(&*store, &scope, seq..seq + 1).await?;
                gap(&*store, &scope, &mut composer, from..seq, &mut text).await?;
                let line = EvidenceLine {
                    seq,
                    leaf: leaf.into(),
                    disclosures: Default::default(),
                };
                composer
                    .sealed_entry(line, hash, &mut text)
                    .map_err(|fault| broken(&scope, fault))?;
                from = seq + 1;
            }
            gap(&*store, &scope, &mut composer, from..to, &mut text).await?;
            composer.mark(&mut text);
            from = to;
        }
        let export = Export {
            entries: snapshot.evidence(&Filter::new()).await?,
            store,
            scope,
            request,
            size: self.manifest.size,
            accepted: snapshot.head().created_at,
            composer,
            gap: Run::starting_at(below),
            kept: (below, Vec::new()),
            astray: None,
            text,
        };
        drop(snapshot);
        let pieces = stream::unfold(Some(export), |export| async move {
            let mut export = export?;
            match export.piece().await {
                Ok(true) => Some((Ok(std::mem::take(&mut export.text)), Some(export))),
                Ok(false) => {
                    let Export {
                        composer,
                        mut text,
                        scope,
                        ..
                    } = export;
                    let done = composer
                        .finish(&mut text)
                        .map_err(|fault| broken(&scope, fault));
                    Some((done.map(|()| text), None))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(pieces.boxed())
    }
}

impl Export {
    /// Fills the text. False when everything was written.
    async fn piece(&mut self) -> Result<bool> {
        while self.text.len() < PIECE {
            let Some(evidence) = self.entries.next().await.transpose()? else {
                self.fill(self.size).await?;
                self.close_gap()?;
                // What was changed behind the last mark is found behind it.
                self.composer.mark(&mut self.text);
                return Ok(false);
            };
            let entry = &evidence.entry;
            self.check_head(&evidence)?;
            let next = self.gap.end();
            if entry.seq < next {
                return Err(self.out_of_order(entry.seq));
            }
            self.fill(entry.seq).await?;
            let sealed = self.sealed(entry).await?;
            if entry.seq > next && leaf_hash(evidence.leaf.as_bytes()) != sealed {
                self.astray = Some(entry.seq);
            }
            if entry.kind.is_control() || self.request.filter.matches(entry) {
                self.close_gap()?;
                self.gap = Run::starting_at(entry.seq + 1);
                self.write(evidence, sealed)?;
            } else {
                self.gap.push(sealed);
            }
        }
        Ok(true)
    }

    /// An entry that comes behind a later one: where that one is not what was sealed at its position, it
    /// came too early.
    fn out_of_order(&self, seq: u64) -> Error {
        let before = self.astray.filter(|astray| astray + 1 == self.gap.end());
        Error::new(ErrorKind::Corrupt, "an entry is out of its order")
            .with_tenant(self.scope.tenant())
            .with_position(before.unwrap_or(seq))
    }

    /// A head whose time isn't its newest entry's would let later entries seem older, or refuse them.
    /// Where the entry itself was changed, that is for the verifier to find.
    fn check_head(&self, evidence: &Evidence) -> Result<()> {
        let entry = &evidence.entry;
        let is_newest = entry.seq + 1 == self.size;
        if is_newest
            && entry.created_at != self.accepted
            && leaf_hash(evidence.leaf.as_bytes()) == entry.leaf_hash
        {
            let message = "the head's time is not its newest entry's";
            return Err(Error::new(ErrorKind::Corrupt, message).with_tenant(entry.tenant_id));
        }
        Ok(())
    }

    /// Where rows are missing up to a position, their leaf hashes stand for them: that nothing
    /// explains it is for the verifier to find.
    async fn fill(&mut self, to: u64) -> Result<()> {
        let first = self.gap.end();
        while self.gap.end() < to {
            let from = self.gap.end();
            let range = from..to.min(from + HASHES);
            let hashes = self.store.hashes(&self.scope, 0, range).await;
            let hashes = hashes.map_err(|error| match error.kind() {
                // Of some of them the tree may have hashes.
                ErrorKind::Corrupt => error.with_position(first),
                _ => error,
            })?;
            for hash in hashes {
                self.gap.push(hash);
            }
        }
        Ok(())
    }

    /// The leaf hash that the tree has at an entry's position, of which the marks are made: so a row that
    /// was changed together with its own hash is found between two of them. Its own where the tree's can't
    /// be read.
    async fn sealed(&mut self, entry: &Entry) -> Result<Hash> {
        let (start, hashes) = &self.kept;
        if !(*start..start + hashes.len() as u64).contains(&entry.seq) {
            let range = entry.seq..self.size.min(entry.seq + HASHES).max(entry.seq + 1);
            let hashes = match self.store.hashes(&self.scope, 0, range.clone()).await {
                Ok(hashes) => hashes.into_iter().map(Some).collect(),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    range.clone().map(|_| None).collect()
                }
                Err(error) => return Err(error),
            };
            self.kept = (range.start, hashes);
        }
        let (start, hashes) = &self.kept;
        let at = usize::try_from(entry.seq - start).unwrap_or(usize::MAX);
        Ok(hashes.get(at).copied().flatten().unwrap_or(entry.leaf_hash))
    }

    fn write(&mut self, evidence: Evidence, sealed: Hash) -> Result<()> {
        let mut disclosures = evidence.disclosures.map(|text| text.map(Into::into));
        for group in &self.request.withheld {
            disclosures[group.index()] = None;
        }
        let line = EvidenceLine {
            seq: evidence.entry.seq,
            leaf: evidence.leaf.into(),
            disclosures,
        };
        self.composer
            .sealed_entry(line, sealed, &mut self.text)
            .map_err(|fault| self.fault(fault))
    }

    fn close_gap(&mut self) -> Result<()> {
        if self.gap.is_empty() {
            return Ok(());
        }
        let next = Run::starting_at(self.gap.end());
        let (range, hashes) = std::mem::replace(&mut self.gap, next).finish();
        self.composer
            .gap(range, hashes, &mut self.text)
            .map_err(|fault| self.fault(fault))
    }

    fn fault(&self, fault: ComposeFault) -> Error {
        let error = broken(&self.scope, fault);
        match fault {
            ComposeFault::Position { expected, .. } => error.with_position(expected),
            _ => error,
        }
    }
}

/// Leaf hashes of consecutive positions, joined into the largest perfect subtrees as they come: what
/// [`subtrees`] of the run are the roots of.
#[derive(Debug, Default)]
struct Run {
    start: u64,
    len: u64,
    /// Each subtree's height and root; their sizes go up, then down.
    roots: VecDeque<(u32, Hash)>,
}

impl Run {
    fn starting_at(start: u64) -> Self {
        Self {
            start,
            ..Self::default()
        }
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The position behind it.
    fn end(&self) -> u64 {
        self.start + self.len
    }

    fn push(&mut self, leaf: Hash) {
        let end = self.start + self.len + 1;
        self.len += 1;
        let (mut height, mut root) = (0, leaf);
        // The subtree that ends here is a right half when its left one is there, and aligned.
        while let Some((left, sibling)) = self.roots.back().copied() {
            if left != height || !end.is_multiple_of(2 << height) {
                break;
            }
            self.roots.pop_back();
            root = node_hash(&sibling, &root);
            height += 1;
        }
        self.roots.push_back((height, root));
    }

    fn finish(self) -> (Range<u64>, Vec<Hash>) {
        let range = self.start..self.start + self.len;
        (
            range,
            self.roots.into_iter().map(|(_, root)| root).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_the_roots_of_its_subtrees() {
        let leaf = |seq: u64| leaf_hash(&seq.to_be_bytes());
        for start in 0..70 {
            let mut run = Run::starting_at(start);
            for end in start + 1..140 {
                run.push(leaf(end - 1));
                let (range, roots) = (start..end, run.roots.iter().map(|(_, root)| *root));
                let expected = subtrees(range)
                    .into_iter()
                    .map(|subtree| merkle::subtree_root(&subtree.map(leaf).collect::<Vec<_>>()));
                assert!(roots.eq(expected), "{start}..{end}");
            }
        }
    }
}
