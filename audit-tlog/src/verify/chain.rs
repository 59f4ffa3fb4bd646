//! Which key and which name a log had at each size: what its own `key` and `epoch` entries say.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::{Code, Findings};
use crate::checkpoint::{FIRST_EPOCH, Origin};
use crate::note::{Algorithm, Note, VerifyingKey};
use crate::proof::InclusionProof;

/// A control entry that concerns the log's key or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Key { old: String, new: String },
    Epoch { epoch: u64 },
}

/// The name and the key of the checkpoints from a size on.
#[derive(Debug)]
struct State {
    from: u64,
    name: String,
    /// `None` while nothing in the log says which.
    key: Option<VerifyingKey>,
}

/// The states of a log, from its first size on.
#[derive(Debug)]
pub(super) struct Chain {
    tenant: Uuid,
    origin: Origin,
    epoch: u64,
    states: Vec<State>,
    /// The old key of each `key` entry, and the entry's position.
    handovers: Vec<(u64, VerifyingKey)>,
}

impl Chain {
    /// Follows a log's changes from its beginning, in their order. `origin` is what it began with where
    /// no `key` entry says so.
    pub(super) fn new(
        tenant: Uuid,
        origin: &Origin,
        changes: &[(u64, Change)],
        findings: &mut Findings,
    ) -> Self {
        let first = changes.iter().find_map(|(_, change)| match change {
            Change::Key { old, .. } => VerifyingKey::parse(old).ok(),
            Change::Epoch { .. } => None,
        });
        let origin = first
            .as_ref()
            .and_then(|key| Origin::of_tenant(key.name()))
            .map_or_else(|| origin.clone(), |(origin, _, _)| origin);
        let name = origin.for_tenant(tenant, FIRST_EPOCH);
        let mut chain = Self {
            tenant,
            origin,
            epoch: FIRST_EPOCH,
            states: vec![State {
                from: 0,
                key: first.and_then(|key| key.renamed(&name).ok()),
                name,
            }],
            handovers: Vec::new(),
        };
        chain.follow(changes, findings);
        chain
    }

    /// Follows a log's changes from where its key was this one; what it had before isn't told. `None`
    /// for a key that isn't named after a tenant's log.
    pub(super) fn resume(
        key: VerifyingKey,
        changes: &[(u64, Change)],
        findings: &mut Findings,
    ) -> Option<Self> {
        let (origin, tenant, epoch) = Origin::of_tenant(key.name())?;
        let mut chain = Self {
            tenant,
            origin,
            epoch,
            states: vec![State {
                from: 0,
                name: key.name().to_owned(),
                key: Some(key),
            }],
            handovers: Vec::new(),
        };
        chain.follow(changes, findings);
        Some(chain)
    }

    fn follow(&mut self, changes: &[(u64, Change)], findings: &mut Findings) {
        for (seq, change) in changes {
            let (name, key) = match change {
                // Numbers may be missing: a restore can take back the entries of epochs that were signed in.
                Change::Epoch { epoch: next } => {
                    let epoch = self.epoch;
                    if *next <= epoch {
                        let detail = format!("epoch {next} after epoch {epoch}");
                        findings.at(Code::EpochEntry, *seq, detail);
                    }
                    self.epoch = *next;
                    let name = self.origin.for_tenant(self.tenant, self.epoch);
                    let key = self.last().key.as_ref();
                    let key = key.and_then(|key| key.renamed(&name).ok());
                    (name, key)
                }
                Change::Key { old, new } => match self.handover(old, new) {
                    Ok((old, new, of_new)) => {
                        self.handovers.push((*seq, old));
                        self.origin = of_new;
                        (new.name().to_owned(), Some(new))
                    }
                    Err(detail) => {
                        findings.at(Code::KeyEntry, *seq, detail);
                        continue;
                    }
                },
            };
            self.states.push(State {
                from: seq + 1,
                name,
                key,
            });
        }
    }

    /// The origin that the log's last name is made of.
    pub(super) const fn origin(&self) -> &Origin {
        &self.origin
    }

    fn last(&self) -> &State {
        #[allow(
            clippy::expect_used,
            reason = "`new` and `resume` put the first in, and none is removed"
        )]
        self.states.last().expect("never empty")
    }

    fn handover(
        &self,
        old: &str,
        new: &str,
    ) -> Result<(VerifyingKey, VerifyingKey, Origin), String> {
        let read = |text: &str| VerifyingKey::parse(text).map_err(|fault| fault.to_string());
        let (old, new) = (read(old)?, read(new)?);
        let now = self.last();
        if old.name() != now.name || now.key.as_ref().is_some_and(|key| *key != old) {
            return Err("the old key is not the one that the log has here".into());
        }
        match Origin::of_tenant(new.name()) {
            Some((origin, of, at)) if of == self.tenant && at == self.epoch => {
                Ok((old, new, origin))
            }
            _ => Err("the new key has the name of another log".into()),
        }
    }

    /// Takes the key of the log from those offered, where the log itself doesn't say: the one that
    /// signed this checkpoint of the given size.
    pub(super) fn settle<'k>(
        &mut self,
        size: u64,
        note: &Note,
        mut offered: impl Iterator<Item = &'k VerifyingKey>,
    ) {
        let state = self.at(size);
        if state.key.is_some() {
            return;
        }
        let signer = offered.find(|key| {
            key.algorithm() == Algorithm::Ed25519
                && key
                    .renamed(&state.name)
                    .is_ok_and(|key| note.verify(std::slice::from_ref(&key)).is_ok())
        });
        if let Some(signer) = signer {
            // Without `key` entries one key pair signs under all of the log's names.
            for state in &mut self.states {
                state.key = signer.renamed(&state.name).ok();
            }
        }
    }

    fn at(&self, size: u64) -> &State {
        let behind = self.states.partition_point(|state| state.from <= size);
        // The first state is from size 0 on.
        &self.states[behind.saturating_sub(1)]
    }

    /// The log's name at a size.
    pub(super) fn name(&self, size: u64) -> &str {
        &self.at(size).name
    }

    /// The size, below `size`, at which an epoch ended in which the log had this name: from there on its
    /// heads have the name of a later one.
    pub(super) fn left(&self, name: &str, size: u64) -> Option<u64> {
        let named = self.states.iter().rposition(|state| state.name == name)?;
        let (_, rest) = self.states.split_at(named + 1);
        let next = rest.iter().find(|state| state.from <= size)?;
        let epoch = |name: &str| Origin::of_tenant(name).map(|(_, _, epoch)| epoch);
        // The entry itself is the first that the earlier history doesn't have.
        (epoch(&next.name) > epoch(name)).then_some(next.from - 1)
    }

    /// The log's key at a size, if it is known.
    pub(super) fn key(&self, size: u64) -> Option<&VerifyingKey> {
        self.at(size).key.as_ref()
    }

    /// Whether the log's key at a size signed this note.
    pub(super) fn signed(&self, size: u64, note: &Note) -> bool {
        self.key(size)
            .is_some_and(|key| note.verify(std::slice::from_ref(key)).is_ok())
    }

    /// Whether one of these keys is, or was, the log's.
    pub(super) fn knows(&self, keys: &[VerifyingKey]) -> bool {
        let has = |key: &VerifyingKey| self.states.iter().any(|s| s.key.as_ref() == Some(key));
        keys.iter().any(has)
    }

    /// The keys of the deployment logs that a head of this log may be in by this proof: those that the
    /// log has or had, and those that are trusted besides, under the names that their deployment logs
    /// have. Its epoch is the proof's to tell: it is no tenant log's.
    pub(super) fn deployment_keys(
        &self,
        proof: &InclusionProof,
        trusted: &[VerifyingKey],
    ) -> Vec<VerifyingKey> {
        let name = proof.checkpoint().text().lines().next();
        let of_proof = name.and_then(Origin::of_deployment);
        let epoch = of_proof.map_or(FIRST_EPOCH, |(_, epoch)| epoch);
        let own = self.states.iter().filter_map(|state| {
            let (origin, _, _) = Origin::of_tenant(&state.name)?;
            let name = origin.for_deployment(epoch);
            state.key.as_ref()?.renamed(&name).ok()
        });
        let name = self.origin.for_deployment(epoch);
        let trusted = trusted.iter().filter_map(|key| key.renamed(&name).ok());
        let mut seen = HashSet::new();
        own.chain(trusted)
            .filter(|key| key.algorithm() == Algorithm::Ed25519 && seen.insert(key.encode()))
            .collect()
    }

    /// The first checkpoint over each `key` entry must be signed by the old key as well. The
    /// checkpoints come with their sizes, in their order.
    pub(super) fn check_handovers(&self, checkpoints: &[(u64, &Note)], findings: &mut Findings) {
        // One checkpoint may lie over many entries that hand back and forth between few keys.
        let mut judged = HashMap::new();
        for (seq, old) in &self.handovers {
            let first = checkpoints.partition_point(|(size, _)| size <= seq);
            let signed = checkpoints.get(first).is_some_and(|&(size, note)| {
                *judged.entry((first, old.encode())).or_insert_with(|| {
                    // Over a change of the name it may sign under the new one.
                    let names = [old.name(), self.name(size)];
                    names.into_iter().any(|name| {
                        old.renamed(name)
                            .is_ok_and(|key| note.verify(std::slice::from_ref(&key)).is_ok())
                    })
                })
            });
            if !signed {
                let detail =
                    "the first checkpoint over this change of keys is not signed by the old key";
                findings.at(Code::KeyUnsigned, *seq, detail.into());
            }
        }
    }
}
