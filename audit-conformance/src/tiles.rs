//! Tiles are written with the entries that complete them, and not by a consumer of the log: whoever makes
//! them again of the rows gets the same bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use audit_core::tlog::leaf::leaf_hash;
use audit_core::tlog::merkle;
use audit_core::tlog::tile::{Content, FULL_WIDTH, Tile, encode_entries, encode_hashes};
use audit_core::{
    AuditLog, Clock as _, Erasure, ErrorKind, Group, Hash, LogStore as _, Prune, Receipt, TenantId,
    TenantLog,
};

use crate::fixture::{act, append, basis, events, kind, new_tenant, trusted};
use crate::size::is_full;
use crate::tampering::{Cell, Holds, TamperingHarness};

const WIDTH: usize = FULL_WIDTH as usize;

/// After appends, erasures and prunes into the middle of a tile, with rows that are swept and rows that
/// aren't yet, every stored row of hashes is what the leaves make of it, none is missing and none too many;
/// and so is every tile that is served, full or partial. With `AUDIT_TEST_FULL=1` the tree has a level more.
pub async fn stored_tiles_are_made_again_of_the_rows_byte_for_byte<H: TamperingHarness>() {
    let harness = H::open().await;
    let (store, clock) = (harness.store(), harness.clock());
    let tenant = new_tenant(store).await;
    let log = AuditLog::builder(Arc::new(store.clone())).build();
    let mut remade = Remade {
        harness: &harness,
        reader: log.tenant(trusted(tenant)),
        tenant,
        leaves: Vec::new(),
    };
    let entries = if is_full() { 23_000 } else { 400 };
    for round in 0..3 {
        clock.advance_micros(1_000);
        let began = clock.now();
        let mut receipts: Vec<Receipt> = Vec::new();
        while receipts.len() < entries {
            let some = (entries - receipts.len()).min(1_000);
            receipts.extend(append(store, tenant, events(some)).await);
        }
        remade.compare().await;

        let ids = receipts.iter().step_by(entries / 50).map(|r| r.id);
        let erasure = Erasure::new(ids.collect(), basis("gdpr-17"), act(tenant));
        let groups = [Group::Actor, Group::Reason, Group::Metadata];
        let erased = store
            .erase(&trusted(tenant), &erasure.groups(&groups))
            .await;
        assert!(erased.expect("erased").entries >= 50);
        remade.compare().await;

        // All of the rounds before.
        let prune = Prune::new(began, basis("retention"), act(tenant));
        let pruned = store.prune(&trusted(tenant), &prune).await.expect("pruned");
        assert_eq!(pruned.entries > 0, round > 0);
        remade.compare().await;
        while store.sweep().await.expect("swept") {}
        remade.compare().await;
    }
}

struct Remade<'h, H> {
    harness: &'h H,
    reader: TenantLog,
    tenant: TenantId,
    /// What the rows hash to; of pruned ones, what they did when they were there.
    leaves: Vec<Hash>,
}

impl<H: TamperingHarness> Remade<'_, H> {
    async fn compare(&mut self) {
        let (store, scope) = (self.harness.store(), trusted(self.tenant));
        let head = store.head(&scope).await.expect("a head");
        let rows = store.leaves(&scope, 0..head.size()).await;
        let rows: BTreeMap<u64, String> = rows.expect("leaf data").into_iter().collect();
        for (seq, data) in &rows {
            let leaf = leaf_hash(data.as_bytes());
            match self.leaves.get(*seq as usize) {
                Some(known) => assert_eq!(*known, leaf, "{seq}"),
                None => {
                    assert_eq!(self.leaves.len() as u64, *seq);
                    self.leaves.push(leaf);
                }
            }
        }
        assert_eq!(self.leaves.len() as u64, head.size());
        assert_eq!(merkle::root(&self.leaves), head.tree.root());
        self.compare_stored().await;
        self.compare_served(&rows).await;
    }

    /// The nodes of each level that has any, from the leaves up.
    fn levels(&self) -> Vec<Vec<Hash>> {
        let above = |nodes: &Vec<Hash>| {
            let roots = nodes.chunks_exact(WIDTH).map(merkle::root);
            Some(roots.collect()).filter(|roots: &Vec<Hash>| !roots.is_empty())
        };
        std::iter::successors(Some(self.leaves.clone()), above).collect()
    }

    async fn compare_stored(&self) {
        let table = H::TABLES
            .iter()
            .find(|table| table.holds == Holds::Subtrees);
        let table = table.expect("a table of hashes");
        let rows = self.harness.rows(table).await;
        // The lowest level that is stored is of subtrees of 256 leaves.
        let lowest = rows.iter().map(|row| table.number(row, "level")).min();
        let mut expected = BTreeMap::new();
        for (level, nodes) in (lowest.unwrap_or(0)..).zip(self.levels()) {
            for (idx, some) in (0..).zip(nodes.chunks_exact(WIDTH)) {
                expected.insert((level, idx), some.to_vec());
            }
        }
        let has_hashes = table.columns.iter().any(|(name, _)| *name == "hashes");
        assert_eq!(rows.len(), expected.len());
        for row in &rows {
            let place = (table.number(row, "level"), table.number(row, "idx"));
            let nodes = &expected[&place];
            let root = Cell::Bytes(merkle::root(nodes).0.to_vec());
            assert_eq!(row[table.place("root")], root, "{place:?}");
            if has_hashes {
                let hashes = Cell::Bytes(nodes.iter().flat_map(|hash| hash.0).collect());
                assert_eq!(row[table.place("hashes")], hashes, "{place:?}");
            }
        }
    }

    /// As C2SP tlog-tiles serves them.
    async fn compare_served(&self, rows: &BTreeMap<u64, String>) {
        let size = self.leaves.len() as u64;
        for (level, nodes) in (0..).zip(self.levels()) {
            for (index, some) in (0..).zip(nodes.chunks(WIDTH)) {
                let tile = Tile::at(Content::Hashes(level), index, size).expect("a tile");
                let served = self.reader.tile(&tile).await.expect("a tile");
                assert_eq!(served, encode_hashes(some), "{}", tile.path());
            }
        }
        for index in 0..size.div_ceil(u64::from(FULL_WIDTH)) {
            let bundle = Tile::at(Content::Entries, index, size).expect("a bundle");
            let data: Vec<&String> = bundle.leaves().filter_map(|seq| rows.get(&seq)).collect();
            let served = self.reader.tile(&bundle).await;
            if data.len() < usize::from(bundle.width()) {
                assert_eq!(kind(served), Some(ErrorKind::Pruned), "{}", bundle.path());
                continue;
            }
            let expected = encode_entries(data).expect("a bundle");
            assert_eq!(served.expect("a bundle"), expected, "{}", bundle.path());
        }
    }
}
