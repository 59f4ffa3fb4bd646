//! Logs of random content, and their evidence streams.

use std::borrow::Cow;
use std::collections::BTreeSet;

use audit_tlog::evidence::{Composer, EvidenceLine, MARK_EVERY, Manifest};
use audit_tlog::leaf::{disclosure, disclosure_digest, leaf_hash, salts};
use audit_tlog::merkle::{subtree_root, subtrees};
use audit_tlog::{
    Actor, Basis, Checkpoint, Context, Control, Group, Hash, Kind, Leaf, Note, Origin, Resource,
    Seed, SigningKey, Timestamp, Tree, json, note,
};
use uuid::Uuid;

pub(crate) const ALL: u8 = 0x7f;

/// SplitMix64: small, seeded, and the same on every machine.
#[derive(Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) kind: Kind,
    pub(crate) leaf: String,
    pub(crate) disclosures: [Option<String>; 7],
    /// The `erase` entry that named each group.
    pub(crate) named: [Option<u64>; 7],
}

impl Stored {
    /// Groups that an `erase` entry named.
    pub(crate) fn gone(&self) -> u8 {
        mask(
            Group::ALL
                .into_iter()
                .filter(|g| self.named[g.index()].is_some()),
        )
    }

    pub(crate) fn has(&self) -> u8 {
        mask(
            Group::ALL
                .into_iter()
                .filter(|g| self.disclosures[g.index()].is_some()),
        )
    }
}

pub(crate) fn mask(groups: impl IntoIterator<Item = Group>) -> u8 {
    groups.into_iter().fold(0, |mask, g| mask | 1 << g.index())
}

pub(crate) fn groups(mask: u8) -> Vec<Group> {
    Group::ALL
        .into_iter()
        .filter(|g| mask >> g.index() & 1 == 1)
        .collect()
}

/// A log as a store would have it.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) rng: Rng,
    pub(crate) tenant: Uuid,
    pub(crate) origin: Origin,
    epoch: u64,
    pub(crate) key: SigningKey,
    /// Keys that the next checkpoint is signed with too.
    leaving: Vec<SigningKey>,
    pub(crate) entries: Vec<Stored>,
    pub(crate) hashes: Vec<Hash>,
    pub(crate) tree: Tree,
    at: i64,
    pub(crate) pruned: u64,
    pub(crate) checkpoints: Vec<(u64, Note)>,
    /// Sizes whose first checkpoint every export holds.
    changed: Vec<u64>,
}

/// What an export shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Export {
    pub(crate) withheld: u8,
    /// `Some`: one entry in so many is shown, and all control entries.
    pub(crate) one_in: Option<u64>,
    /// Whether the leaf data of a straddling tile is left out.
    pub(crate) bare: bool,
    /// Further sizes to mark.
    pub(crate) marks: Vec<u64>,
}

/// What a verifier has to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) entries: u64,
    pub(crate) shown: u64,
    pub(crate) never: u64,
    pub(crate) erased: u64,
    pub(crate) pruned: u64,
    pub(crate) withheld: u64,
    pub(crate) absent_pruned: u64,
    pub(crate) absent_withheld: u64,
}

impl Log {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let tenant = Uuid::from_bytes(rng.bytes());
        let origin = Origin::parse("logs.example.com/audit").unwrap();
        let name = origin.for_tenant(tenant, 1);
        let key = SigningKey::from_seed(&name, &rng.bytes()).unwrap();
        Self {
            rng,
            tenant,
            origin,
            epoch: 1,
            key,
            leaving: Vec::new(),
            entries: Vec::new(),
            hashes: Vec::new(),
            tree: Tree::new(),
            at: 1_764_000_000_000_000,
            pruned: 0,
            checkpoints: Vec::new(),
            changed: Vec::new(),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Appends an entry with these groups, and returns its position.
    pub(crate) fn append(&mut self, has: u8, control: Option<&Control>) -> u64 {
        self.at += self.rng.below(3) as i64 * 1_000_003;
        let n = self.rng.below(1_000);
        let user = format!("user-{n}@example.com");
        let value = |group: Group| match group {
            Group::Actor => Actor {
                user_id: Some(&user),
                actor_type: Some("user"),
                actor_name: Some("Zo\u{eb} \"Q\"\n"),
                ..Actor::default()
            }
            .value(),
            Group::Resource => Resource {
                resource_type: Some("invoice"),
                resource_id: Some(&user),
                related: &[audit_tlog::Related {
                    kind: "group",
                    id: "g\\1",
                    name: None,
                }],
                ..Resource::default()
            }
            .value(),
            Group::Context => Context {
                session_id: Some("s"),
                ip_address: Some("2001:db8::1"),
                ..Context::default()
            }
            .value(),
            Group::Reason => {
                let mut text = String::new();
                json::write_string(&mut text, &format!("reason \u{1} {n}"));
                Some(text)
            }
            _ => Some(format!("{{\"n\": {n}, \"x\":[1e2,9007199254740993]}}")),
        };
        let salts = salts(&Seed::new(self.rng.bytes()));
        let mut disclosures = [const { None }; 7];
        let mut digests = [None; 7];
        for group in groups(has) {
            let (i, value) = (group.index(), value(group).unwrap());
            disclosures[i] = Some(disclosure(&salts[i], group, &value));
            digests[i] = Some(disclosure_digest(&salts[i], group, &value));
        }
        let kind = control.map_or(Kind::Event, Control::kind);
        let ctl = control.map(Control::to_json);
        let at = Timestamp::from_micros(self.at).unwrap();
        let leaf = Leaf {
            kind,
            tenant_id: self.tenant,
            id: Uuid::from_bytes(self.rng.bytes()),
            created_at: at,
            occurred_at: at,
            action_type: if control.is_some() { "OTHER" } else { "UPDATE" },
            action: &control.map_or("invoice.approve".into(), |_| format!("log.{kind}")),
            outcome: "success",
            severity: "INFO",
            ctl: ctl.as_deref(),
            digests: &digests,
        }
        .encode();
        let hash = leaf_hash(leaf.as_bytes());
        self.tree.push(hash);
        self.hashes.push(hash);
        self.entries.push(Stored {
            kind,
            leaf,
            disclosures,
            named: [None; 7],
        });
        self.size() - 1
    }

    /// Appends an event with random groups.
    pub(crate) fn event(&mut self) -> u64 {
        let has = self.rng.next() as u8 & ALL | mask([Group::Actor, Group::Resource]);
        self.append(has, None)
    }

    fn control(&mut self, control: &Control) -> u64 {
        self.append(
            mask([Group::Actor, Group::Resource, Group::Reason]),
            Some(control),
        )
    }

    /// Appends an `erase` entry of these positions and destroys the groups.
    pub(crate) fn erase(&mut self, which: u8, positions: &BTreeSet<u64>) -> u64 {
        let mut entries: Vec<(u64, u64)> = Vec::new();
        for &at in positions {
            match entries.last_mut() {
                Some(range) if range.1 + 1 == at => range.1 = at,
                _ => entries.push((at, at)),
            }
            let by = self.size();
            for group in groups(which) {
                self.entries[at as usize].named[group.index()].get_or_insert(by);
            }
        }
        self.control(&Control::Erase {
            groups: groups(which),
            entries,
            basis: Basis::parse("gdpr-17").unwrap(),
        })
    }

    /// Appends a `prune` entry and destroys what lies below.
    pub(crate) fn prune(&mut self, below: u64) -> u64 {
        self.pruned = below;
        self.control(&Control::Prune {
            below,
            root: subtree_root(&self.hashes[..below as usize]),
            before: Timestamp::from_micros(self.at).unwrap(),
            basis: Basis::parse("retention").unwrap(),
        })
    }

    /// Changes the key, or with `rename` the configured origin too.
    pub(crate) fn rotate(&mut self, rename: bool) -> u64 {
        if rename {
            let origin = format!("logs{}.example.org", self.size());
            self.origin = Origin::parse(&origin).unwrap();
        }
        let name = self.origin.for_tenant(self.tenant, self.epoch);
        let new = SigningKey::from_seed(&name, &self.rng.bytes()).unwrap();
        let old = std::mem::replace(&mut self.key, new);
        let seq = self.control(&Control::Key {
            old: old.verifying_key().encode(),
            new: self.key.verifying_key().encode(),
        });
        self.leaving.push(old);
        self.changed.push(seq);
        seq
    }

    /// Continues in a new epoch.
    pub(crate) fn next_epoch(&mut self) -> u64 {
        self.epoch += 1;
        let name = self.origin.for_tenant(self.tenant, self.epoch);
        self.key = self.key.renamed(&name).unwrap();
        let seq = self.control(&Control::Epoch {
            epoch: self.epoch,
            size: self.size(),
            root: self.tree.root(),
            basis: Basis::parse("restore").unwrap(),
        });
        self.changed.push(seq);
        seq
    }

    /// Signs the head; again at the same size it is the same checkpoint.
    pub(crate) fn checkpoint(&mut self) -> Note {
        if let Some((size, note)) = self.checkpoints.last()
            && *size == self.size()
        {
            return note.clone();
        }
        let head = Checkpoint::new(self.key.name(), self.size(), self.tree.root()).unwrap();
        let mut keys = std::mem::take(&mut self.leaving);
        keys.push(self.key.clone());
        let keys: Vec<_> = keys.iter().collect();
        let note = note::sign(&head.encode(), &keys).unwrap();
        self.checkpoints.push((self.size(), note.clone()));
        note
    }

    /// A log of random entries, erasures, prunes, key changes and epochs.
    pub(crate) fn random(seed: u64, steps: u64) -> Self {
        let mut log = Self::new(seed);
        for _ in 0..steps {
            match log.rng.below(40) {
                0 | 1 if log.size() > 0 => log.erase_some(),
                2 if log.size() > log.pruned + 1 && log.rng.one_in(2) => {
                    let below = log.pruned + 1 + log.rng.below(log.size() - log.pruned);
                    log.prune(below.min(log.size()));
                }
                3 if log.rng.one_in(3) => {
                    let rename = log.rng.one_in(4);
                    log.rotate(rename);
                }
                4 if log.rng.one_in(3) => {
                    log.next_epoch();
                }
                5 => {
                    log.checkpoint();
                }
                _ => {
                    log.event();
                }
            }
        }
        log.event();
        log.checkpoint();
        log
    }

    fn erase_some(&mut self) {
        let which = match self.rng.below(3) {
            0 => ALL,
            _ => self.rng.next() as u8 & ALL | 1,
        };
        let density = 1 + self.rng.below(4);
        let positions = (self.pruned..self.size())
            .filter(|at| self.entries[*at as usize].gone() & which == 0)
            .collect::<Vec<_>>();
        let positions: BTreeSet<u64> = positions
            .into_iter()
            .filter(|_| self.rng.one_in(density))
            .take(300)
            .collect();
        if !positions.is_empty() {
            self.erase(which, &positions);
        }
    }

    pub(crate) fn manifest(&self, export: &Export) -> Manifest {
        Manifest {
            tenant_id: self.tenant,
            origin: self.origin.clone(),
            created_at: Timestamp::from_micros(self.at + 5_000_000).unwrap(),
            size: self.size(),
            root: self.tree.root(),
            filter: export.one_in.map(|n| format!("{{\"one_in\":{n}}}")),
            withheld: groups(export.withheld),
        }
    }

    /// Whether the export has an evidence line of this position.
    fn lists(&self, export: &Export, at: u64) -> bool {
        let kind = self.entries[at as usize].kind;
        if at < self.pruned {
            let straddling = at >= self.pruned - self.pruned % MARK_EVERY;
            return (straddling && !export.bare) || matches!(kind, Kind::Key | Kind::Epoch);
        }
        // A fixed choice, so that the same export is the same again.
        kind.is_control() || export.one_in.is_none_or(|n| Rng(at ^ n << 32).one_in(n))
    }

    /// The lines of an export of the log as it is, without line breaks, and what is in it.
    pub(crate) fn bundle(&self, export: &Export) -> (Vec<String>, Expected) {
        let mut out = String::new();
        let mut expected = Expected::default();
        let mut composer = Composer::new(&self.manifest(export), &mut out);
        let first_over = |seq: &u64| self.checkpoints.iter().find(|(size, _)| size > seq);
        let mut heads: Vec<_> = self.changed.iter().filter_map(first_over).collect();
        heads.push(self.checkpoints.last().unwrap());
        heads.sort_by_key(|(size, _)| *size);
        heads.dedup_by_key(|(size, _)| *size);
        for (_, note) in &heads {
            composer.checkpoint(&note.encode(), &mut out).unwrap();
        }
        composer
            .vkey(&self.key.verifying_key().encode(), &mut out)
            .unwrap();

        let pruned_sizes = (0..self.size())
            .filter(|at| self.lists(export, *at))
            .filter_map(|at| {
                let leaf = audit_tlog::evidence::LeafData::parse(&self.entries[at as usize].leaf);
                match leaf.unwrap().control {
                    Some(Control::Prune { below, .. }) => Some(below),
                    _ => None,
                }
            });
        let cuts: BTreeSet<u64> = pruned_sizes
            .chain(heads.iter().map(|(size, _)| *size))
            .chain(export.marks.iter().copied())
            .collect();
        let mut at = 0;
        while at < self.size() {
            if cuts.contains(&at) {
                composer.mark(&mut out);
            }
            if !self.lists(export, at) {
                let from = at;
                while at < self.size()
                    && !self.lists(export, at)
                    && (at == from || !(cuts.contains(&at) || at == self.pruned))
                {
                    if at < self.pruned {
                        expected.absent_pruned += 1;
                    } else {
                        expected.absent_withheld += 1;
                    }
                    at += 1;
                }
                let hashes = subtrees(from..at)
                    .into_iter()
                    .map(|r| subtree_root(&self.hashes[r.start as usize..r.end as usize]))
                    .collect();
                composer.gap(from..at, hashes, &mut out).unwrap();
                continue;
            }
            let stored = &self.entries[at as usize];
            let (has, gone) = (stored.has(), stored.gone());
            let shown = match at < self.pruned {
                true => 0,
                false => has & !gone & !export.withheld,
            };
            let dark = has & !shown;
            expected.entries += 1;
            expected.shown += u64::from(shown.count_ones());
            expected.never += u64::from(7 - has.count_ones());
            // Where the entry that named it was pruned, the prune explains it.
            let told = Group::ALL.into_iter().filter(|g| {
                let by = stored.named[g.index()];
                by.is_some_and(|by| self.lists(export, by))
            });
            let erased = dark & mask(told);
            expected.erased += u64::from(erased.count_ones());
            let rest = u64::from((dark & !erased).count_ones());
            if at < self.pruned {
                expected.pruned += rest;
            } else {
                expected.withheld += rest;
            }
            let disclosures = Group::ALL.map(|g| {
                let text = stored.disclosures[g.index()].as_deref();
                text.filter(|_| shown >> g.index() & 1 == 1)
                    .map(Cow::Borrowed)
            });
            let line = EvidenceLine {
                seq: at,
                leaf: Cow::Borrowed(&stored.leaf),
                disclosures,
            };
            composer.entry(line, &mut out).unwrap();
            at += 1;
        }
        composer.finish(&mut out).unwrap();
        (out.lines().map(str::to_owned).collect(), expected)
    }
}

/// How large a test is: a tenth of what it is with `AUDIT_TEST_FULL=1`.
pub(crate) fn sized(full: u64) -> u64 {
    if std::env::var_os("AUDIT_TEST_FULL").is_some_and(|value| value == "1") {
        full
    } else {
        full / 10
    }
}
