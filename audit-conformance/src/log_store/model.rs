use std::collections::BTreeMap;

use audit_core::tlog::merkle;
use audit_core::{
    Entry, Erasure, ErrorKind, Event, EventId, Filter, Group, Hash, Kind, LogStore, Lookup,
    PageRequest, Prune, Receipt, TenantId, Timestamp,
};
use uuid::Uuid;

use super::LogStoreHarness;
use crate::fixture::{
    act, basis, batch, everything, new_tenant, seconds_after, trusted, try_append,
};
use crate::size::sized;

/// What the store must hold of one entry.
#[derive(Debug, Clone)]
struct Kept {
    id: EventId,
    user: Option<usize>,
    created_at: Timestamp,
    leaf_hash: Hash,
    kind: Kind,
    erased: bool,
}

#[derive(Debug)]
struct Model {
    tenant: TenantId,
    /// In every text of this tenant, and in none of the other's.
    marker: &'static str,
    entries: Vec<Kept>,
    positions: BTreeMap<EventId, u64>,
    pruned_below: u64,
}

/// xorshift64*: the same operations in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

const USERS: u64 = 5;

impl Model {
    fn event(&self, id: EventId, user: usize) -> Event {
        Event::update("invoice", format!("{}-{user}", self.marker))
            .id(id)
            .user(format!("user-{user}"))
            .reason(self.marker)
            .metadata(&[self.marker])
    }

    fn visible(&self) -> impl DoubleEndedIterator<Item = (u64, &Kept)> {
        let from = self.pruned_below;
        self.entries
            .iter()
            .enumerate()
            .map(|(i, k)| (i as u64, k))
            .skip(from as usize)
    }

    fn take(&mut self, receipt: &Receipt, user: Option<usize>, kind: Kind) {
        assert_eq!(receipt.seq, self.entries.len() as u64, "gap-free");
        self.positions.insert(receipt.id, receipt.seq);
        self.entries.push(Kept {
            id: receipt.id,
            user,
            created_at: receipt.created_at,
            leaf_hash: receipt.leaf_hash,
            kind,
            erased: false,
        });
    }

    /// An entry that the store shows must be the model's, and must show nothing of the other tenant.
    fn check(&self, entry: &Entry, foreign: &str) {
        let kept = &self.entries[entry.seq as usize];
        assert_eq!((entry.tenant_id, entry.id), (self.tenant, kept.id));
        assert_eq!((entry.leaf_hash, entry.kind), (kept.leaf_hash, kept.kind));
        assert!(entry.seq >= self.pruned_below, "a pruned entry is shown");
        let text = entry.to_json();
        assert!(!text.contains(foreign), "another tenant's text: {text}");
        if kept.kind == Kind::Event {
            assert_eq!(kept.erased, entry.fields.user_id.is_none());
            assert_eq!(kept.erased, !text.contains(self.marker));
        }
    }
}

/// Random operations of two tenants, which use the same ids, end as a model says: what is stored, what
/// is shown, and in whose log. `AUDIT_TEST_FULL=1` runs 100,000 of them, else 10,000.
pub async fn random_operations_of_two_tenants_match_a_model<H: LogStoreHarness>() {
    let operations = sized(100_000);
    let harness = H::open().await;
    let store: &dyn LogStore = harness.store();
    let mut models = Vec::new();
    for marker in ["markeralpha", "markerbeta"] {
        models.push(Model {
            tenant: new_tenant(harness.tenants()).await,
            marker,
            entries: Vec::new(),
            positions: BTreeMap::new(),
            pruned_below: 0,
        });
    }
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut fresh: u128 = 1;
    for operation in 0..operations {
        let which = random.below(2) as usize;
        let foreign = models[1 - which].marker;
        let model = &mut models[which];
        // Both tenants take their ids from one line of numbers.
        let any_id = EventId::new(Uuid::from_u128(
            1 + u128::from(random.below(fresh as u64 + 1)),
        ));
        match random.below(1_000) {
            0..600 => record(store, model, &mut random, &mut fresh).await,
            600..700 => repeat(store, model, any_id, true).await,
            700..750 => repeat(store, model, any_id, false).await,
            750..850 => look_up(store, model, any_id, foreign).await,
            850..950 => list(store, model, &mut random, foreign).await,
            950..980 => read(store, model, &mut random, foreign).await,
            980..997 => erase(store, model, any_id).await,
            _ if operation > operations / 10 => prune(store, model, &mut random).await,
            _ => {}
        }
    }
    for (which, model) in models.iter().enumerate() {
        let foreign = models[1 - which].marker;
        let entries = everything(store, model.tenant).await;
        let seqs: Vec<u64> = entries.iter().map(|e| e.seq).collect();
        assert_eq!(
            seqs,
            model.visible().map(|(seq, _)| seq).collect::<Vec<_>>()
        );
        for entry in &entries {
            model.check(entry, foreign);
        }
        let leaves: Vec<Hash> = model.entries.iter().map(|k| k.leaf_hash).collect();
        let head = store.head(&trusted(model.tenant)).await.expect("a head");
        assert_eq!(head.tree.root(), merkle::root(&leaves));
        let counters = store
            .counters(&trusted(model.tenant), i32::MIN..i32::MAX)
            .await
            .expect("counters");
        assert_eq!(
            counters.iter().map(|c| c.count).sum::<u64>(),
            entries.len() as u64
        );
    }
}

async fn record(store: &dyn LogStore, model: &mut Model, random: &mut Random, fresh: &mut u128) {
    let size = 1 + random.below(3);
    let mut events = Vec::new();
    let mut users = Vec::new();
    for _ in 0..size {
        let id = EventId::new(Uuid::from_u128(*fresh));
        // Half of the time the number stays for the other tenant to take, too.
        *fresh += 1 + u128::from(random.below(2));
        let user = random.below(USERS) as usize;
        if !model.positions.contains_key(&id) {
            events.push(model.event(id, user));
            users.push(user);
        }
    }
    let receipts = try_append(store, &batch(model.tenant, events))
        .await
        .expect("appended");
    for (receipt, user) in receipts.iter().zip(users) {
        assert!(!receipt.duplicate, "an id that only the other tenant has");
        model.take(receipt, Some(user), Kind::Event);
    }
}

/// Records under an id again: the same content, or another.
async fn repeat(store: &dyn LogStore, model: &mut Model, id: EventId, same: bool) {
    let known = model
        .positions
        .get(&id)
        .map(|seq| (*seq, model.entries[*seq as usize].clone()));
    if known.is_none() && !same {
        return;
    }
    let user = known.as_ref().and_then(|(_, k)| k.user).unwrap_or(0);
    let mut event = model.event(id, user);
    if !same {
        event = event.resource_name("another");
    }
    let outcome = try_append(store, &batch(model.tenant, vec![event])).await;
    match known {
        None => {
            let receipt = &outcome.expect("appended")[0];
            assert!(!receipt.duplicate);
            model.take(receipt, Some(user), Kind::Event);
        }
        Some((seq, kept)) if same || kept.erased || seq < model.pruned_below => {
            let receipt = &outcome.expect("a duplicate")[0];
            assert!(receipt.duplicate);
            assert_eq!((receipt.seq, receipt.leaf_hash), (seq, kept.leaf_hash));
        }
        Some(_) => assert_eq!(outcome.expect_err("a conflict").kind(), ErrorKind::Conflict),
    }
}

async fn look_up(store: &dyn LogStore, model: &Model, id: EventId, foreign: &str) {
    let found = store
        .get(&trusted(model.tenant), &[id])
        .await
        .expect("an answer")
        .remove(0);
    match (model.positions.get(&id), found) {
        (Some(seq), Lookup::Found(entry)) => {
            assert_eq!(entry.seq, *seq);
            model.check(&entry, foreign);
        }
        (Some(seq), Lookup::Pruned { by }) => {
            assert!(*seq < model.pruned_below);
            assert_eq!(model.entries[by as usize].kind, Kind::Prune);
        }
        (None, Lookup::Missing) => {}
        (known, found) => panic!("{found:?} where the model has {known:?}"),
    }
}

async fn list(store: &dyn LogStore, model: &Model, random: &mut Random, foreign: &str) {
    let user = format!("user-{}", random.below(USERS));
    let filter = Filter::new().user(user.clone());
    let page = store
        .list(
            &trusted(model.tenant),
            &filter,
            &PageRequest::first().limit(10),
        )
        .await
        .expect("a page");
    for entry in &page.items {
        model.check(entry, foreign);
        assert_eq!(entry.fields.user_id.as_deref(), Some(user.as_str()));
    }
    let seqs: Vec<u64> = page.items.iter().map(|e| e.seq).collect();
    let of_user = |k: &Kept| !k.erased && k.user.is_some_and(|u| format!("user-{u}") == user);
    let wanted: Vec<u64> = model
        .visible()
        .rev()
        .filter(|(_, k)| of_user(k))
        .map(|(seq, _)| seq)
        .take(10)
        .collect();
    assert_eq!(seqs, wanted);
}

async fn read(store: &dyn LogStore, model: &Model, random: &mut Random, foreign: &str) {
    let from = random.below(model.entries.len() as u64 + 1);
    let entries = store
        .read(&trusted(model.tenant), from, 20)
        .await
        .expect("entries");
    let seqs: Vec<u64> = entries.iter().map(|e| e.seq).collect();
    let first = from.max(model.pruned_below);
    assert_eq!(
        seqs,
        (first..(first + 20).min(model.entries.len() as u64)).collect::<Vec<_>>()
    );
    for entry in &entries {
        model.check(entry, foreign);
    }
}

async fn erase(store: &dyn LogStore, model: &mut Model, id: EventId) {
    let request = Erasure::new(vec![id], basis("gdpr-17"), act(model.tenant)).groups(&Group::ALL);
    let erased = store
        .erase(&trusted(model.tenant), &request)
        .await
        .expect("erased");
    let target = model.positions.get(&id).copied();
    let target =
        target.filter(|seq| *seq >= model.pruned_below && !model.entries[*seq as usize].erased);
    assert_eq!(erased.entries, u64::from(target.is_some()));
    if let Some(seq) = target {
        model.entries[seq as usize].erased = true;
    }
    for receipt in &erased.receipts {
        model.take(receipt, None, Kind::Erase);
    }
}

async fn prune(store: &dyn LogStore, model: &mut Model, random: &mut Random) {
    // Never more than a tenth of what is left.
    let left = model.entries.len() as u64 - model.pruned_below;
    let at = model.pruned_below + random.below(left / 10 + 1);
    let Some(kept) = model.entries.get(at as usize) else {
        return;
    };
    let before = seconds_after(kept.created_at, 0);
    let below = model
        .entries
        .iter()
        .take_while(|k| k.created_at < before)
        .count() as u64;
    let request = Prune::new(before, basis("retention"), act(model.tenant));
    let pruned = store
        .prune(&trusted(model.tenant), &request)
        .await
        .expect("pruned");
    match pruned.receipt {
        Some(receipt) => {
            assert_eq!(pruned.below, below);
            assert_eq!(pruned.entries, below - model.pruned_below);
            model.pruned_below = below;
            model.take(&receipt, None, Kind::Prune);
        }
        None => assert!(below <= model.pruned_below),
    }
    store.sweep().await.expect("swept");
}
