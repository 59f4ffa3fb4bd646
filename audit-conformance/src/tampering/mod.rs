//! What somebody changes in the tables of a store, in a bundle that was exported from it or in its
//! archive is found, and nothing else is.
//!
//! The changes follow from a seed. Entries, ids and their seeds are the same in each run of a store whose clock
//! begins at a fixed time; which checkpoints are kept goes by when the signer came by. What isn't found is told
//! with the whole row, the byte, and what stands there instead.
//!
//! A log with all that a log can have is signed, and its largest checkpoint kept. Then one seeded change
//! after the other is made behind the store's back, or in a copy of a bundle or of a segment, looked for
//! as an auditor or a client would, and undone.
//!
//! Each change is found, but for those after which the evidence is what it was, string by string: these
//! are counted apart, each with its reason, and what is counted so is checked to be so. Of the tables
//! those are targets that hold evidence; a harness lists their columns and says of each that is no target
//! what it is for ([`Shown::Nobody`]). No targets are what is derived from the entries or is not about
//! them: counters, the search index, cursors, leases, queued erasures, tenants, retention and holds.

mod archive;
mod bundle;
mod change;
mod trial;
mod untouched;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use audit_core::{
    CheckpointStore, ErasureStore, LogStore, ManualClock, OffboardingStore, RetentionStore,
    TenantStore,
};

use crate::fixture::DEADLINE;
use crate::random::Random;
use crate::size::is_full;
use trial::Trial;

/// What every change follows from.
const SEED: u64 = 20_261_124;

/// A value, as the database has it. Times are microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Cell {
    /// No value.
    Null,
    /// A number, a time or a truth value.
    Integer(i64),
    /// A text.
    Text(String),
    /// Bytes, or a UUID.
    Bytes(Vec<u8>),
}

/// A row, in the order of its table's columns.
pub type Row = Vec<Cell>;

/// What the rows of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// The log's entries, by `seq`.
    Entries,
    /// What ids became.
    Ids,
    /// The log's head.
    Head,
    /// Hashes of complete subtrees, by `level` and `idx`; the lowest level that there is covers 256
    /// entries.
    Subtrees,
    /// Leaf data that outlives prunes.
    KeptLeaves,
    /// Signed checkpoints, by `size`.
    Checkpoints,
    /// Changes of the key, by `seq`.
    KeyChanges,
    /// Beginnings of epochs, by `seq`.
    Epochs,
}

/// Who is shown at the latest that a value of a column was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Who exports evidence: the export fails as corrupt, or does not verify.
    Export,
    /// Who reads the entry: it fails as corrupt, with its position.
    Reading,
    /// Who looks an entry up by its id: it fails as corrupt, or the entry isn't there.
    Lookup,
    /// Who reads the tiles, and computes the root from them.
    Tiles,
    /// Nobody: it proves nothing, and the harness says what it is for.
    Nobody,
}

/// A table of the store.
#[derive(Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// What is in it.
    pub holds: Holds,
    /// The columns that tell its rows apart.
    pub key: &'static [&'static str],
    /// All columns.
    pub columns: &'static [(&'static str, Shown)],
}

impl Table {
    pub(crate) fn place(&self, column: &str) -> usize {
        let found = self.columns.iter().position(|(name, _)| *name == column);
        found.unwrap_or_else(|| panic!("{} has no {column}", self.name))
    }

    pub(crate) fn number(&self, row: &[Cell], column: &str) -> u64 {
        match row[self.place(column)] {
            Cell::Integer(n) => n.unsigned_abs(),
            ref other => panic!("{}.{column} is {other:?}", self.name),
        }
    }
}

/// Rows that go from a table, and rows that come into it.
#[derive(Debug, Clone)]
pub struct Replacement {
    /// The table's place in [`TamperingHarness::TABLES`].
    pub table: usize,
    /// Rows that are there.
    pub gone: Vec<Row>,
    /// Rows that are put there.
    pub come: Vec<Row>,
}

/// Opens a store for the contract, and reaches behind it.
pub trait TamperingHarness: Sized + Send + Sync + 'static {
    /// The store.
    type Store: LogStore
        + CheckpointStore
        + TenantStore
        + RetentionStore
        + ErasureStore
        + OffboardingStore
        + Clone;

    /// All tables in which evidence is kept, with all of their columns: [`rows`](Self::rows) holds that
    /// against the database.
    const TABLES: &'static [Table];

    /// Opens a store of the contract's own, whose clock stands at the present.
    fn open() -> impl Future<Output = Self> + Send;

    /// The store.
    fn store(&self) -> &Self::Store;

    /// Its clock.
    fn clock(&self) -> Arc<ManualClock>;

    /// All rows of a table, in the order of its key.
    fn rows(&self, table: &'static Table) -> impl Future<Output = Vec<Row>> + Send;

    /// Replaces rows in one transaction. False when the database itself refuses one, by a constraint or
    /// since its type has no such value: then nothing is changed. Whatever else goes wrong is a panic.
    fn replace(&self, replacements: &[Replacement]) -> impl Future<Output = bool> + Send;
}

/// What became of a change.
enum Verdict {
    /// It was found, and named: by what.
    Found(String),
    /// The evidence is what it was, string by string.
    Apart(&'static str),
    /// There is no such change.
    None,
    /// The database refused it: nobody has changed anything.
    Refused,
    /// It was not found, or told as something else.
    Wrong(String),
}

/// What became of all changes of a contract.
#[derive(Debug, Default)]
struct Tally {
    /// By kind, and by what found it.
    found: BTreeMap<String, BTreeMap<String, u64>>,
    apart: BTreeMap<&'static str, u64>,
    refused: BTreeMap<String, u64>,
    wrong: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.found.values().flat_map(BTreeMap::values);
        let found: u64 = all.sum();
        write!(f, "{found} changes of seed {SEED} found")?;
        for (kind, how) in &self.found {
            write!(f, "\n  {kind}: {}, by {how:?}", how.values().sum::<u64>())?;
        }
        write!(f, "\n  counted apart: {:?}", self.apart)?;
        write!(f, "\n  refused by the database: {:?}", self.refused)
    }
}

/// How often a kind of change is found, and how often with `AUDIT_TEST_FULL=1`.
type Times<K> = (K, u64, u64);

/// A kind of which so many were refused and none was made is one that the database itself rules out.
const REFUSALS: u64 = 20;

/// Makes changes of each kind until so many were found, and tells how many there were. An attempt is told
/// how many of its kind there were before.
///
/// # Panics
/// When one was not found.
#[expect(
    clippy::print_stdout,
    reason = "the figures of a full run are its result"
)]
async fn each<K: Copy + fmt::Debug>(
    of: &str,
    kinds: &[Times<K>],
    mut attempt: impl AsyncFnMut(K, u64, &mut Random) -> Verdict,
) {
    let mut tally = Tally::default();
    let mut n = 0;
    for (kind, few, many) in kinds {
        let wanted = if is_full() { *many } else { *few };
        let (mut made, mut tries, mut refused) = (0, 0, 0);
        while made < wanted {
            if made == 0 && refused >= REFUSALS {
                break;
            }
            (n, tries) = (n + 1, tries + 1);
            assert!(tries <= 200 * wanted, "{kind:?} can be changed");
            let mut random = Random::new(SEED.wrapping_mul(31).wrapping_add(n));
            match attempt(*kind, tries - 1, &mut random).await {
                Verdict::Found(how) => {
                    let by_kind = tally.found.entry(format!("{kind:?}")).or_default();
                    *by_kind.entry(how).or_default() += 1;
                    made += 1;
                }
                Verdict::Apart(why) => *tally.apart.entry(why).or_default() += 1,
                Verdict::None => {}
                Verdict::Refused => {
                    *tally.refused.entry(format!("{kind:?}")).or_default() += 1;
                    refused += 1;
                }
                Verdict::Wrong(why) => {
                    tally.wrong.push(format!("change {n}, {kind:?}: {why}"));
                    made += 1;
                }
            }
        }
    }
    println!("{of}: {tally}");
    assert!(tally.wrong.is_empty(), "{of}: {:#?}", tally.wrong);
}

/// One byte of a value, by itself or with its row's own hash; rows that are dropped, swapped, forged, put in
/// another's place or in between; a tail that is cut off, everywhere or in the entries alone; an old copy, of
/// everything or of one table: each is shown to who exports evidence, looks an id up or reads the tiles, as
/// the table's column says. A changed entry is named by its position to who reads it; to who verifies an
/// export, the first finding is of a run that has it in it and lies between two marks, or between two signed
/// heads where the tree has no hash but the row's own. Only of hashes of whole subtrees, of the head and of
/// checkpoints an error may tell no position, and of a change of keys that is pruned, a finding. Old copies
/// of everything are told as a rollback. Between any two changes the log's own exports, whole and partial,
/// raise no alarm.
pub async fn what_is_changed_in_the_tables_is_found<H: TamperingHarness>() {
    let (trial, workers) = Trial::<H>::begin().await;
    // Columns of which a change was found, and those of which one needn't be.
    let (mut found, mut excused) = (BTreeSet::new(), BTreeSet::new());
    each("tables", change::KINDS, async |kind, turn, random| {
        let Some(mut change) = trial.change(kind, turn, random) else {
            return Verdict::None;
        };
        let mut is_made = trial.harness.replace(&change.replacements).await;
        if is_made && matches!(kind, change::Kind::ByteAndHash) {
            let leaf = match change.exactly {
                Some(seq) => trial.leaf_of(seq).await,
                None => None,
            };
            trial.undo().await;
            let Some(leaf) = leaf else {
                return Verdict::None;
            };
            change = trial.with_hash(change, &leaf);
            is_made = trial.harness.replace(&change.replacements).await;
        }
        if !is_made {
            excused.extend(change.column);
            return Verdict::Refused;
        }
        let verdict = trial.look(&change).await;
        trial.undo().await;
        trial.is_no_alarm(random).await;
        match verdict {
            Verdict::Found(_) => found.extend(change.column),
            // Of a log of which the tree has all hashes, each of these.
            Verdict::Apart(change::OF_THE_TREE) => excused.extend(change.column),
            _ => {}
        }
        verdict
    })
    .await;
    let columns = H::TABLES.iter().flat_map(|table| {
        let targets = table.columns.iter();
        let targets = targets.filter(|(_, shown)| *shown != Shown::Nobody);
        targets.map(|(column, _)| format!("{}.{column}", table.name))
    });
    let untried: Vec<String> = columns
        .filter(|column| !found.contains(column) && !excused.contains(column))
        .collect();
    // A tenth of the changes doesn't come to every column.
    assert!(!is_full() || untried.is_empty(), "not found: {untried:?}");
    workers.shutdown(DEADLINE).await;
}

/// One byte of an export; lines that are dropped, swapped, repeated at another position or cut from its
/// end; an older export; one that leaves entries or groups out and calls itself partial; disclosures of
/// another entry: each is a finding, which names the first wrong position or line.
pub async fn what_is_changed_in_a_bundle_is_found<H: TamperingHarness>() {
    let (trial, workers) = Trial::<H>::begin().await;
    each("bundles", bundle::KINDS, async |kind, _, random| {
        trial.change_bundle(kind, random)
    })
    .await;
    workers.shutdown(DEADLINE).await;
}

/// One byte of any file of an archived segment; files that are dropped or another segment's; entries that
/// are dropped from it, or have disclosures of another: each is a finding, or makes the segment
/// unreadable, and names the file, a position or a line. What segments say of each other is the command's
/// to verify, and is tested there.
pub async fn what_is_changed_in_an_archive_is_found<H: TamperingHarness>() {
    let (trial, workers) = Trial::<H>::begin().await;
    let segments = trial.segments().await;
    each("archives", archive::KINDS, async |kind, _, random| {
        trial.change_segment(&segments, kind, random)
    })
    .await;
    workers.shutdown(DEADLINE).await;
}

/// Of logs that grow at random, with erasures of what is new and what is old, and prunes, neither the whole
/// export nor parts with random conditions and withheld groups raise an alarm: 100 exports, 1,000 with
/// `AUDIT_TEST_FULL=1`, no two of them alike.
#[expect(
    clippy::print_stdout,
    reason = "the figures of a full run are its result"
)]
pub async fn an_untouched_export_raises_no_alarm<H: TamperingHarness>() {
    let wanted = if is_full() { 1_000 } else { 100 };
    let (exports, logs) = untouched::untouched::<H>(wanted).await;
    println!("{exports} untouched exports of {logs} logs: no alarm");
}
