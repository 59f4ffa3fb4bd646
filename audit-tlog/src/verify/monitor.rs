//! Following a log that grows: each head continues the last one, and the new entries keep the rules.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::chain::{Chain, Change};
use super::check::CheckedLeaf;
use super::rules::Rules;
use super::{Code, Finding, Findings};
use crate::checkpoint::{Checkpoint, Origin};
use crate::control::Control;
use crate::evidence::LeafData;
use crate::json;
use crate::leaf::{Hash, leaf_hash};
use crate::merkle::{self, Tree};
use crate::note::{Algorithm, Note, NoteFault, VerifyingKey};
use crate::time::Timestamp;

/// The version of the state's text.
const VERSION: u64 = 1;

/// How many findings of one step are listed.
const LISTED: usize = 100;

/// How far behind what is known the entry may stand that leads to a key that isn't known yet. Whoever has
/// no key can make a monitor read no more than that.
const MAX_UNSIGNED: u64 = 1 << 20;

/// Why a text is not a monitor's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateFault {
    /// Not the text that a monitor writes, or not whole.
    #[error("not the state of a monitor")]
    Form,
    /// The digest under it is another: the text was changed or cut.
    #[error("its digest is another: it was changed since it was written")]
    Digest,
    /// A version that isn't known here.
    #[error("version {0} is not known")]
    Version(u64),
    /// The checkpoint in it is not signed by the key in it, or the tree in it leads to another root.
    #[error("its checkpoint, key and tree don't belong together")]
    Parts,
}

/// What is known of one log from one look at it to the next.
///
/// A look at a newer head goes through [`meet`](Self::meet), [`accept`](Self::accept), then
/// [`take`](Self::take) for each run of new positions, and [`settle`](Self::settle). Each changes
/// nothing when it has findings, so that what is found is found again. In between, [`encode`](Self::encode)
/// gives what has to be kept to go on from there; that is of a fixed size but for the keys and for changes
/// of them that are not settled.
///
/// What is taken under a head that [no known key signed](Candidate::is_signed) may be anybody's: when such a
/// look ends before it is settled, go on with the monitor as it was before.
///
/// That ids don't repeat, and what disclosures hold, is for a [`Verifier`](super::Verifier) to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    tenant: Uuid,
    /// Not empty. Once a head was accepted, the last one is the log's, and those before it were.
    keys: Vec<VerifyingKey>,
    head: Option<Head>,
    /// Changes of the key below it were before the key was known.
    trusted_from: u64,
    /// The tree of the positions that were taken.
    tree: Tree,
    rules: Rules,
    /// What is not settled yet.
    changes: Vec<(u64, Change)>,
    /// Few: those of this look, and those of earlier ones that no prune explained yet.
    gone: Vec<Gone>,
}

/// A signed head.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Head {
    note: Note,
    checkpoint: Checkpoint,
}

/// Positions of one look, from the first to the last whose leaf data isn't served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gone {
    from: u64,
    to: u64,
    /// The first head that was met after that. The entry that explains the run may stand behind it, and
    /// is below any larger one.
    at: Option<u64>,
}

/// A head that the server shows, and that may continue what is known.
#[derive(Clone, Debug)]
pub struct Candidate {
    head: Head,
    /// The known key that signed it.
    signer: Option<VerifyingKey>,
}

impl Candidate {
    /// What it says.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.head.checkpoint
    }

    /// As the server shows it.
    #[must_use]
    pub const fn note(&self) -> &Note {
        &self.head.note
    }

    /// Whether a known key signed it, in the name that the key is known by.
    #[must_use]
    pub const fn is_signed(&self) -> bool {
        self.signer.is_some()
    }
}

/// The first checkpoint over a change of keys, and that the candidate continues it.
#[derive(Clone, Debug)]
pub struct Handover {
    /// The checkpoint.
    pub note: Note,
    /// The consistency proof from its size to the candidate's.
    pub proof: Vec<Hash>,
}

impl Monitor {
    /// Knows nothing of a log but keys, of which one is its present one, or leads to that through the
    /// log's `key` entries. `None` unless there is one, and all are Ed25519 keys with names of one tenant's
    /// log.
    #[must_use]
    pub fn new(keys: Vec<VerifyingKey>) -> Option<Self> {
        let tenant = |key: &VerifyingKey| {
            let (_, tenant, _) = Origin::of_tenant(key.name())?;
            (key.algorithm() == Algorithm::Ed25519).then_some(tenant)
        };
        let of = tenant(keys.first()?)?;
        keys.iter()
            .all(|key| tenant(key) == Some(of))
            .then(|| Self {
                tenant: of,
                keys,
                head: None,
                trusted_from: 0,
                tree: Tree::new(),
                rules: Rules::default(),
                changes: Vec::new(),
                gone: Vec::new(),
            })
    }

    /// Whose log it is.
    #[must_use]
    pub const fn tenant(&self) -> Uuid {
        self.tenant
    }

    /// The keys that are trusted. Once a head was accepted, the last one is the log's, and those before it
    /// were.
    #[must_use]
    pub fn keys(&self) -> &[VerifyingKey] {
        &self.keys
    }

    /// The largest head that was accepted, as it was signed.
    #[must_use]
    pub fn note(&self) -> Option<&Note> {
        self.head.as_ref().map(|head| &head.note)
    }

    /// The size of that head; 0 when there is none.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.checkpoint.size())
    }

    /// The next position to be taken.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.tree.size()
    }

    /// Positions that were not served and that no `prune` entry explains yet, the first and the last.
    #[must_use]
    pub fn unexplained(&self) -> Option<(u64, u64)> {
        let gone = self.gone.iter().find(|gone| !self.explains(gone))?;
        Some((gone.from, gone.to))
    }

    /// Whether a prune says that these positions are gone.
    fn explains(&self, gone: &Gone) -> bool {
        self.rules
            .pruned()
            .is_some_and(|(below, _)| gone.to < below)
    }

    /// Looks at a head that the server shows.
    ///
    /// # Errors
    ///
    /// [`Code::Checkpoint`] for what is no checkpoint of this tenant's log, [`Code::Rollback`] for one that
    /// is smaller than what is known, [`Code::Known`] for another root at the same size,
    /// [`Code::Signature`] for a signature in the key's name that isn't its, and for a head that none of the
    /// known key pairs signed and that is more than 2^20 entries ahead of what is known.
    pub fn meet(&self, note: Note) -> Result<Candidate, Finding> {
        let checkpoint = Checkpoint::parse(note.text())
            .map_err(|fault| Finding::at(Code::Checkpoint, None, fault.to_string()))?;
        let (size, origin) = (checkpoint.size(), checkpoint.origin());
        if Origin::of_tenant(origin).is_none_or(|(_, tenant, _)| tenant != self.tenant) {
            let detail = format!("{origin} is no name of the log of tenant {}", self.tenant);
            return Err(Finding::at(Code::Checkpoint, None, detail));
        }
        let known = self.size().max(self.position());
        if size < known {
            let detail = format!("the log had {known} entries, and its head is of size {size} now");
            return Err(Finding::at(Code::Rollback, Some((size, known - 1)), detail));
        }
        if let Some(head) = &self.head
            && size == head.checkpoint.size()
            && checkpoint.root() != head.checkpoint.root()
        {
            let detail = format!("another root at size {size} than the last head had");
            return Err(Finding::at(Code::Known, None, detail));
        }
        let present = match (&self.head, self.keys.split_last()) {
            (Some(_), Some((last, _))) => std::slice::from_ref(last),
            _ => &self.keys[..],
        };
        let mut candidates = present.iter();
        let signer = loop {
            let Some(key) = candidates.next() else {
                break None;
            };
            match note.verify(std::slice::from_ref(key)) {
                Ok(_) if key.name() == origin => break Some(key.clone()),
                Err(NoteFault::BadSignature(_)) => {
                    let detail = format!("the head of size {size} is not signed by {key}");
                    return Err(Finding::at(Code::Signature, None, detail));
                }
                _ => {}
            }
        };
        let paired = || present.iter().any(|key| signs_as(key, origin, &note));
        if size - known > MAX_UNSIGNED && signer.is_none() && !paired() {
            let detail = format!(
                "no known key signed the head of size {size}, and an entry that leads to its key is looked \
                 for no further than {MAX_UNSIGNED} entries ahead"
            );
            return Err(Finding::at(Code::Signature, None, detail));
        }
        Ok(Candidate {
            head: Head { note, checkpoint },
            signer,
        })
    }

    /// Takes a head that continues the last one. `root` is what the log's tiles lead to at its size,
    /// `proof` the consistency proof from [`size`](Self::size). A head that the log's key didn't sign is
    /// known only once it is [settled](Self::settle).
    ///
    /// # Errors
    ///
    /// [`Code::Root`] for another root than the head's, also of the positions that were taken where these
    /// are all; [`Code::Known`] for no continuation.
    pub fn accept(
        &mut self,
        candidate: &Candidate,
        root: Hash,
        proof: &[Hash],
    ) -> Result<(), Finding> {
        let new = candidate.checkpoint();
        let size = new.size();
        if root != new.root() {
            let detail = format!("the tiles lead to another root than was signed at size {size}");
            let positions = (size > 0).then(|| (0, size - 1));
            return Err(Finding::at(Code::Root, positions, detail));
        }
        self.rooted(new)?;
        if let Some(Head { checkpoint, .. }) = &self.head {
            let (old, old_root) = (checkpoint.size(), checkpoint.root());
            merkle::verify_consistency(old, &old_root, size, &root, proof).map_err(|_| {
                let detail = format!("the head of size {size} doesn't continue that of size {old}");
                Finding::at(Code::Known, None, detail)
            })?;
        }
        for gone in &mut self.gone {
            gone.at.get_or_insert(size);
        }
        if let Some(signer) = &candidate.signer {
            if self.head.is_none() {
                self.trusted_from = size;
                self.keys = vec![signer.clone()];
                self.changes.clear();
            }
            self.head = Some(candidate.head.clone());
        }
        Ok(())
    }

    /// That what was taken has the root of a head of the same size.
    fn rooted(&self, head: &Checkpoint) -> Result<(), Finding> {
        let size = head.size();
        if self.position() != size || self.tree.root() == head.root() {
            return Ok(());
        }
        let detail = format!("the positions that were taken have another root at size {size}");
        let positions = (size > 0).then(|| (0, size - 1));
        Err(Finding::at(Code::Root, positions, detail))
    }

    /// Takes the next positions: their leaf hashes as the tiles have them, the leaf data of each, or `None`
    /// where the bundle is gone, and the consistency proof from behind them to the candidate.
    ///
    /// # Errors
    ///
    /// [`Code::Root`] when the hashes don't lead to the candidate's root; [`Code::Missing`] unless there is
    /// leaf data for each hash; [`Code::LeafHash`], [`Code::Leaf`] and what breaks the rules of a log.
    pub fn take(
        &mut self,
        candidate: &Candidate,
        hashes: &[Hash],
        leaves: Option<&[&[u8]]>,
        proof: &[Hash],
    ) -> Result<(), Vec<Finding>> {
        let mut findings = Findings::new(LISTED);
        let mut next = self.clone();
        let from = next.position();
        for (i, hash) in hashes.iter().enumerate() {
            match leaves.map(|leaves| leaves.get(i)) {
                Some(Some(leaf)) => next.entry(*hash, leaf, &mut findings),
                Some(None) => {
                    let detail = "the bundle has no leaf data of it".into();
                    findings.at(Code::Missing, next.position(), detail);
                }
                None => next.lose(),
            }
            next.tree.push(*hash);
        }
        let new = candidate.checkpoint();
        let (to, root) = (next.position(), next.tree.root());
        if merkle::verify_consistency(to, &root, new.size(), &new.root(), proof).is_err() {
            let detail = format!(
                "the leaf hashes lead to another root than was signed at size {}",
                new.size()
            );
            findings.span(Code::Root, (from, to.max(1) - 1), detail);
        }
        if findings.total > 0 {
            return Err(findings.list);
        }
        *self = next;
        Ok(())
    }

    /// Notes that the next position has no leaf data.
    fn lose(&mut self) {
        let seq = self.position();
        match self.gone.last_mut() {
            Some(gone) if gone.at.is_none() => gone.to = seq,
            _ => self.gone.push(Gone {
                from: seq,
                to: seq,
                at: None,
            }),
        }
    }

    /// Checks the entry at the next position.
    fn entry(&mut self, hash: Hash, data: &[u8], findings: &mut Findings) {
        let seq = self.position();
        if leaf_hash(data) != hash {
            let detail = "its leaf data doesn't have the hash that the tree has here".into();
            findings.at(Code::LeafHash, seq, detail);
            return;
        }
        let read = std::str::from_utf8(data)
            .map_err(|fault| fault.to_string())
            .and_then(|text| LeafData::parse(text).map_err(|fault| fault.to_string()));
        let leaf = match read {
            Ok(leaf) => CheckedLeaf::from(leaf),
            Err(fault) => {
                let detail = format!("leaf data that the log doesn't write: {fault}");
                findings.at(Code::Leaf, seq, detail);
                return;
            }
        };
        for (code, positions, detail) in self.rules.check(Some(self.tenant), seq, &leaf) {
            findings.span(code, positions, detail);
        }
        match leaf.control.map(|control| *control) {
            Some(Control::Epoch { size, root, .. }) if size == seq && root != self.tree.root() => {
                let detail = "continues from another head than the log's here".into();
                findings.at(Code::EpochEntry, seq, detail);
            }
            Some(Control::Key { old, new }) if seq >= self.trusted_from => {
                self.changes.push((seq, Change::Key { old, new }));
            }
            Some(Control::Epoch { epoch, .. }) if seq >= self.trusted_from => {
                self.changes.push((seq, Change::Epoch { epoch }));
            }
            _ => {}
        }
    }

    /// How many entries each [`Handover`] has to cover that [`settle`](Self::settle) needs, in their order.
    #[must_use]
    pub fn handovers(&self, candidate: &Candidate) -> Vec<u64> {
        let (_, changes) = self.basis(candidate);
        changes
            .iter()
            .filter_map(|(seq, change)| matches!(change, Change::Key { .. }).then_some(seq + 1))
            .collect()
    }

    /// The key to begin with, and what changed since it was the log's.
    fn basis<'a>(
        &'a self,
        candidate: &'a Candidate,
    ) -> (Option<&'a VerifyingKey>, &'a [(u64, Change)]) {
        if self.head.is_some() {
            return (self.keys.last(), &self.changes);
        }
        // Trust begins where one of the given keys was the log's.
        let begins = self
            .changes
            .iter()
            .enumerate()
            .find_map(|(i, (_, change))| {
                let mut keys = self.keys.iter();
                let key = match change {
                    Change::Key { old, .. } => keys.find(|key| key.encode() == *old),
                    Change::Epoch { epoch } => keys.find(|key| {
                        Origin::of_tenant(key.name()).is_some_and(|(_, _, at)| at < *epoch)
                            && Self::keeps(key, &self.changes[i..], candidate)
                    }),
                };
                Some((Some(key?), &self.changes[i..]))
            });
        begins.unwrap_or((candidate.signer.as_ref(), &[]))
    }

    /// Whether the log has this key pair, under the names that epochs give it, until the next `key` entry
    /// or the candidate.
    fn keeps(key: &VerifyingKey, changes: &[(u64, Change)], candidate: &Candidate) -> bool {
        let next = changes.iter().find_map(|(_, change)| match change {
            Change::Key { old, .. } => Some(VerifyingKey::parse(old)),
            Change::Epoch { .. } => None,
        });
        match next {
            Some(old) => old.is_ok_and(|old| key.renamed(old.name()).as_ref() == Ok(&old)),
            None => {
                let head = &candidate.head;
                signs_as(key, head.checkpoint.origin(), &head.note)
            }
        }
    }

    /// Judges a candidate once all positions below its size are taken: that it is signed by the key that
    /// the log has there, and each change of keys by both. Then it is the last head.
    ///
    /// # Errors
    ///
    /// [`Code::ForeignKey`] when no given key is the log's, [`Code::Signature`], [`Code::KeyUnsigned`],
    /// [`Code::KeyEntry`], [`Code::EpochEntry`], [`Code::Checkpoint`]; [`Code::Missing`] when positions are
    /// not taken yet; [`Code::Root`] when those that were have another root; [`Code::Unexplained`] when leaf data was gone at a smaller head and no `prune` entry
    /// says why.
    pub fn settle(
        &mut self,
        candidate: &Candidate,
        handovers: &[Handover],
    ) -> Result<(), Vec<Finding>> {
        let mut findings = Findings::new(LISTED);
        let size = candidate.checkpoint().size();
        if self.position() != size {
            let detail = "not taken yet".into();
            findings.span(Code::Missing, (self.position(), size.max(1) - 1), detail);
        }
        self.rooted(candidate.checkpoint())
            .map_err(|finding| vec![finding])?;
        let (key, changes) = self.basis(candidate);
        let first = key.cloned();
        let chain = key.and_then(|key| Chain::resume(key.clone(), changes, &mut findings));
        let Some(chain) = chain else {
            let detail = format!(
                "the head of size {size} is signed by none of the given keys, and no entry that is served \
                 leads from one of them to its key"
            );
            return Err(vec![Finding::at(Code::ForeignKey, None, detail)]);
        };
        let mut heads = Vec::new();
        for handover in handovers {
            match self.judge_handover(candidate, &chain, handover) {
                Ok(at) => heads.push((at, &handover.note)),
                Err((code, detail)) => findings.global(code, detail),
            }
        }
        heads.push((size, &candidate.head.note));
        heads.sort_by_key(|(at, _)| *at);
        chain.check_handovers(&heads, &mut findings);
        let origin = candidate.checkpoint().origin();
        if origin != chain.name(size) {
            let detail = format!(
                "the head of size {size} is of {origin}, the log's name is {}",
                chain.name(size)
            );
            findings.global(Code::Checkpoint, detail);
        } else if !chain.signed(size, &candidate.head.note) {
            let detail = format!("the head of size {size} is not signed by the log's key");
            findings.global(Code::Signature, detail);
        }
        for gone in &self.gone {
            if gone.at.is_some_and(|at| at < size) && !self.explains(gone) {
                let detail = "leaf data here is not served, and no prune entry says why".into();
                findings.span(Code::Unexplained, (gone.from, gone.to), detail);
            }
        }
        if findings.total > 0 {
            return Err(findings.list);
        }
        let key = chain.key(size).cloned();
        let news = changes.iter().filter_map(|(_, change)| match change {
            Change::Key { new, .. } => VerifyingKey::parse(new).ok(),
            Change::Epoch { .. } => None,
        });
        let news: Vec<_> = news.chain(key).collect();
        if self.head.is_none() {
            self.keys = first.into_iter().collect();
        }
        for key in news {
            self.keys.retain(|known| *known != key);
            self.keys.push(key);
        }
        self.head = Some(candidate.head.clone());
        self.trusted_from = size;
        self.changes.clear();
        let explained = self.rules.pruned().map_or(0, |(below, _)| below);
        self.gone.retain(|gone| gone.to >= explained);
        Ok(())
    }

    /// The size of a handover that is one of the log's heads.
    fn judge_handover(
        &self,
        candidate: &Candidate,
        chain: &Chain,
        handover: &Handover,
    ) -> Result<u64, (Code, String)> {
        let new = candidate.checkpoint();
        let read = Checkpoint::parse(handover.note.text());
        let old = read.map_err(|fault| (Code::Checkpoint, fault.to_string()))?;
        let at = old.size();
        let (old_root, new_root) = (old.root(), new.root());
        merkle::verify_consistency(at, &old_root, new.size(), &new_root, &handover.proof).map_err(
            |_| {
                let detail = format!("the log doesn't continue its own checkpoint of size {at}");
                (Code::Root, detail)
            },
        )?;
        if old.origin() != chain.name(at) || !chain.signed(at, &handover.note) {
            let detail = format!("the checkpoint of size {at} is not signed by the log's key");
            return Err((Code::Signature, detail));
        }
        Ok(at)
    }

    /// What has to be kept, one line of JSON with its line break, with a digest against damage. Nobody
    /// signs it: whoever can write it can make the monitor trust another key.
    #[must_use]
    pub fn encode(&self) -> String {
        let keys: Vec<_> = self.keys.iter().map(VerifyingKey::encode).collect();
        let peaks: Vec<_> = self.tree.peaks().iter().map(Hash::to_base64).collect();
        let last = self.rules.last();
        let changes = self.changes.iter().map(|(seq, change)| match change {
            Change::Key { old, new } => json!({"seq": seq, "old": old, "new": new}),
            Change::Epoch { epoch } => json!({"seq": seq, "epoch": epoch}),
        });
        let gone = self.gone.iter();
        let gone = gone.map(|gone| json!({"from": gone.from, "to": gone.to, "at": gone.at}));
        let state = json!({
            "version": VERSION,
            "keys": keys,
            "checkpoint": self.note().map(Note::encode),
            "trusted_from": self.trusted_from,
            "position": self.position(),
            "peaks": peaks,
            "last": last.map(|(seq, at)| json!({"seq": seq, "at": at.to_string()})),
            "pruned": self.rules.pruned().map(|(below, by)| json!({"below": below, "by": by})),
            "gone": gone.collect::<Vec<_>>(),
            "changes": changes.collect::<Vec<_>>(),
        })
        .to_string();
        let digest = digest(&state);
        format!("{{\"state\":{state},\"sha256\":\"{digest}\"}}\n")
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    ///
    /// See [`StateFault`].
    pub fn parse(text: &str) -> Result<Self, StateFault> {
        let members = json::members(text).map_err(|_| StateFault::Form)?;
        let [state, sha256] = &members[..] else {
            return Err(StateFault::Form);
        };
        if (state.name.as_ref(), sha256.name.as_ref()) != ("state", "sha256") {
            return Err(StateFault::Form);
        }
        if sha256.raw != format!("\"{}\"", digest(state.raw)) {
            return Err(StateFault::Digest);
        }
        let value: Value = serde_json::from_str(state.raw).map_err(|_| StateFault::Form)?;
        match value["version"].as_u64() {
            Some(VERSION) => {}
            Some(other) => return Err(StateFault::Version(other)),
            None => return Err(StateFault::Form),
        }
        let monitor = Self::read(&value).ok_or(StateFault::Form)?;
        if monitor.holds_together() {
            Ok(monitor)
        } else {
            Err(StateFault::Parts)
        }
    }

    fn read(value: &Value) -> Option<Self> {
        let number = |value: &Value| value.as_u64();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let optional = |value: &Value| (!value.is_null()).then(|| value.clone());
        let keys = value["keys"].as_array()?.iter();
        let keys = keys.map(|key| VerifyingKey::parse(key.as_str()?).ok());
        let mut monitor = Self::new(keys.collect::<Option<_>>()?)?;
        if let Some(note) = optional(&value["checkpoint"]) {
            let note = Note::parse(note.as_str()?).ok()?;
            let checkpoint = Checkpoint::parse(note.text()).ok()?;
            monitor.head = Some(Head { note, checkpoint });
        }
        monitor.trusted_from = number(&value["trusted_from"])?;
        let peaks = value["peaks"].as_array()?.iter();
        let peaks = peaks.map(|peak| Hash::from_base64(peak.as_str()?));
        monitor.tree =
            Tree::from_parts(number(&value["position"])?, peaks.collect::<Option<_>>()?)?;
        let last = match optional(&value["last"]) {
            Some(last) => Some((
                number(&last["seq"])?,
                Timestamp::parse(last["at"].as_str()?).ok()?,
            )),
            None => None,
        };
        let pruned = match optional(&value["pruned"]) {
            Some(pruned) => Some((number(&pruned["below"])?, number(&pruned["by"])?)),
            None => None,
        };
        monitor.rules = Rules::after(last, pruned);
        let gone = value["gone"].as_array()?.iter().map(|gone| {
            Some(Gone {
                from: number(&gone["from"])?,
                to: number(&gone["to"])?,
                at: match gone.get("at")? {
                    Value::Null => None,
                    at => Some(number(at)?),
                },
            })
        });
        monitor.gone = gone.collect::<Option<_>>()?;
        let changes = value["changes"].as_array()?.iter().map(|change| {
            let seq = number(&change["seq"])?;
            let change = match number(&change["epoch"]) {
                Some(epoch) => Change::Epoch { epoch },
                None => Change::Key {
                    old: text(&change["old"])?,
                    new: text(&change["new"])?,
                },
            };
            Some((seq, change))
        });
        monitor.changes = changes.collect::<Option<_>>()?;
        Some(monitor)
    }

    /// Whether the last head is signed by the last key, and the tree has its root where it has its size.
    fn holds_together(&self) -> bool {
        let Some(Head { note, checkpoint }) = &self.head else {
            return true;
        };
        let signed = self.keys.last().is_some_and(|key| {
            key.name() == checkpoint.origin() && note.verify(std::slice::from_ref(key)).is_ok()
        });
        let rooted = self.position() != checkpoint.size() || self.tree.root() == checkpoint.root();
        signed && rooted && self.position() <= checkpoint.size()
    }
}

/// Whether a key pair signed a note under this name.
fn signs_as(key: &VerifyingKey, name: &str, note: &Note) -> bool {
    key.renamed(name)
        .is_ok_and(|key| note.verify(std::slice::from_ref(&key)).is_ok())
}

fn digest(text: &str) -> Hash {
    Hash(Sha256::digest(text).into())
}
