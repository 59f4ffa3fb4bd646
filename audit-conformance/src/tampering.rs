//! What somebody with the database changes in the tables of a store is found, and nothing else is.
//!
//! A log with all that a log can have is signed, and its largest checkpoint kept. Then one seeded change
//! after the other is made behind the store's back, looked for as an auditor or a client would, and
//! undone.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use audit_core::tlog::Tree;
use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::leaf::leaf_hash;
use audit_core::tlog::merkle::{root, subtree_root};
use audit_core::tlog::note::{Note, SigningKey};
use audit_core::tlog::tile::{Content, FULL_WIDTH, Tile, parse_entries};
use audit_core::tlog::verify::{Code, Options, Report, verify_lines};
use audit_core::{
    AuditLog, CheckpointStore, Clock as _, ErasureStore, Error, ErrorKind, Event, EventId,
    EvidenceRequest, Filter, Group, Hash, LogStore, Lookup, ManualClock, Recorder as _,
    RetentionStore, Severity, Signer, TenantId, TenantLog, TenantStore,
};
use futures_util::TryStreamExt as _;
use tokio::time::{Instant, timeout};

use crate::fixture::{DEADLINE, basis, tenant_id, trusted};
use crate::random::Random;

/// What every change follows from.
const SEED: u64 = 20_261_124;

const ORIGIN: &str = "audit.example/log";

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
}

/// Who is shown that a value of a column was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Who exports evidence: the export fails as corrupt, or does not verify.
    Export,
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
    fn place(&self, column: &str) -> usize {
        let found = self.columns.iter().position(|(name, _)| *name == column);
        found.unwrap_or_else(|| panic!("{} has no {column}", self.name))
    }

    fn number(&self, row: &[Cell], column: &str) -> u64 {
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
    type Store: LogStore + CheckpointStore + TenantStore + RetentionStore + ErasureStore + Clone;

    /// All tables in which evidence is kept, with all of their columns.
    const TABLES: &'static [Table];

    /// Opens a store of the contract's own, whose clock stands at the present.
    fn open() -> impl Future<Output = Self> + Send;

    /// The store.
    fn store(&self) -> &Self::Store;

    /// Its clock.
    fn clock(&self) -> Arc<ManualClock>;

    /// All rows of a table, in the order of its key.
    fn rows(&self, table: &'static Table) -> impl Future<Output = Vec<Row>> + Send;

    /// Replaces rows in one transaction. False when the database itself refuses one: then nothing is
    /// changed.
    fn replace(&self, replacements: &[Replacement]) -> impl Future<Output = bool> + Send;
}

/// All rows of all tables.
type Tables = Vec<Vec<Row>>;

/// A change behind the store's back.
#[derive(Debug)]
struct Change {
    what: String,
    replacements: Vec<Replacement>,
    shown: Shown,
    /// The entry whose row was changed and kept its leaf hash, or whose leaf hash alone was changed:
    /// what is found names a place near it.
    near: Option<u64>,
    /// What else must be told.
    code: Option<Code>,
    /// The signer may make good what is missing: then nothing is lost, and nothing to be found.
    may_heal: bool,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Found,
    /// What is exported is what was exported before.
    Equal,
}

struct Trial<H> {
    harness: H,
    log: AuditLog,
    tenant: TenantId,
    /// What an auditor has from elsewhere: the key that the log began with, and its largest checkpoint.
    options: Options,
    root: Hash,
    hashes: Vec<Hash>,
    ids: Vec<EventId>,
    lookups: Vec<Lookup>,
    untouched: Tables,
    /// The tables some time before the last checkpoint was signed.
    old: Tables,
    text: String,
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(ORIGIN, &[n; 32]).expect("a key")
}

fn origin() -> Origin {
    Origin::parse(ORIGIN).expect("an origin")
}

/// A log that is signed with the `n`th key, and knows the earlier ones.
fn signed_with<H: TamperingHarness>(harness: &H, n: u8) -> AuditLog {
    let store = Arc::new(harness.store().clone());
    let signer = (0..n).fold(Signer::new(origin(), key(n)), |signer, earlier| {
        signer.succeeding(origin(), key(earlier))
    });
    AuditLog::builder(store.clone())
        .clock(harness.clock())
        .signer(signer, store)
        .build()
}

/// An event that may have any field.
fn event(random: &mut Random, clock: &ManualClock, n: usize) -> Event {
    let mut event = random.event(clock.now());
    if !random.one_in(3) {
        event = event
            .actor_name("Ann Ö. O'Neil")
            .on_behalf_of(format!("board {n}"))
            .resource_name("\"Größe\"")
            .trace_id(format!("trace {n}"))
            .user_agent("agent/1.0 (test)");
    }
    if !random.one_in(3) {
        event = event
            .before(&serde_json::json!({"n": n, "text": "vorher"}))
            .after(&serde_json::json!([n, null, {"k": 1.5}]));
    }
    event
}

/// Records so many events, and erases some groups of some entries now and then.
async fn grow(
    log: &AuditLog,
    tenant: TenantId,
    random: &mut Random,
    clock: &ManualClock,
    n: usize,
) {
    let reader = log.tenant(trusted(tenant));
    let mut done = 0;
    while done < n {
        let some = (1 + random.below(12) as usize).min(n - done);
        let events = (done..done + some)
            .map(|n| event(random, clock, n))
            .collect();
        let receipts = log.recorder(tenant).record_all(events).await;
        let mut ids: Vec<EventId> = receipts.expect("recorded").iter().map(|r| r.id).collect();
        clock.advance_micros(1_000);
        done += some;
        if random.one_in(6) {
            let mut groups = Group::ALL.to_vec();
            groups.retain(|_| random.one_in(2));
            ids.retain(|_| random.one_in(2));
            let groups = (!groups.is_empty()).then_some(groups);
            let erased = reader.erase(ids, groups, basis("gdpr-17"), None).await;
            erased.expect("erased");
            clock.advance_micros(1_000);
        }
    }
}

/// Prunes the entries below a position.
async fn prune_below(log: &AuditLog, tenant: TenantId, seq: u64) {
    let scope = trusted(tenant);
    let store = log.log_store();
    let first = store.at(&scope, &[seq]).await.expect("an entry");
    let pruned = log
        .tenant(scope)
        .prune(first[0].created_at, basis("retention"), None, false)
        .await;
    assert!(pruned.expect("pruned").below > 0);
    while store.sweep().await.expect("swept") {}
}

/// An export to its end, once somebody signs.
async fn exported(reader: &TenantLog, request: &EvidenceRequest) -> Result<String, Error> {
    let export = async || {
        let lines = reader.evidence(request.clone()).await?;
        lines.try_collect::<String>().await
    };
    let deadline = Instant::now() + DEADLINE;
    loop {
        match export().await {
            Err(error) if error.is_retryable() && Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            done => return done,
        }
    }
}

async fn tables<H: TamperingHarness>(harness: &H) -> Tables {
    let mut tables = Vec::new();
    for table in H::TABLES {
        tables.push(harness.rows(table).await);
    }
    tables
}

/// Another value of which one byte differs; none where there is none, or none that stays a text.
fn with_another_byte(cell: &Cell, random: &mut Random) -> Option<Cell> {
    let flip = 1 + random.below(255) as u8;
    match cell {
        Cell::Null => None,
        Cell::Integer(n) => {
            let mut bytes = n.to_be_bytes();
            bytes[random.below(8) as usize] ^= flip;
            Some(Cell::Integer(i64::from_be_bytes(bytes)))
        }
        Cell::Bytes(bytes) if bytes.is_empty() => None,
        Cell::Bytes(bytes) => {
            let mut bytes = bytes.clone();
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= flip;
            Some(Cell::Bytes(bytes))
        }
        Cell::Text(text) => {
            let mut bytes = text.clone().into_bytes();
            let ascii: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i].is_ascii()).collect();
            if ascii.is_empty() {
                return None;
            }
            let at = ascii[random.below(ascii.len() as u64) as usize];
            let other = b' ' + random.below(95) as u8;
            let is_other = other != bytes[at];
            bytes[at] = other;
            is_other.then(|| Cell::Text(String::from_utf8(bytes).expect("ASCII for ASCII")))
        }
    }
}

impl<H: TamperingHarness> Trial<H> {
    /// A log with changes of keys, erasures and prunes, and no workers.
    async fn begin() -> (Self, audit_core::Workers) {
        let harness = H::open().await;
        let (tenant, clock) = (tenant_id(), harness.clock());
        let mut random = Random::new(SEED);
        for n in 0..2 {
            let log = signed_with(&harness, n);
            let workers = log.start();
            grow(&log, tenant, &mut random, &clock, 150).await;
            if n == 1 {
                // The first change of keys goes with it.
                prune_below(&log, tenant, 200).await;
            }
            let reader = log.tenant(trusted(tenant));
            let signed = exported(&reader, &EvidenceRequest::new()).await;
            signed.expect("an export");
            workers.shutdown(DEADLINE).await;
        }
        let log = signed_with(&harness, 2);
        let workers = log.start();
        let reader = log.tenant(trusted(tenant));
        grow(&log, tenant, &mut random, &clock, 120).await;
        exported(&reader, &EvidenceRequest::new())
            .await
            .expect("an export");
        prune_below(&log, tenant, 290).await;
        grow(&log, tenant, &mut random, &clock, 60).await;
        exported(&reader, &EvidenceRequest::new())
            .await
            .expect("an export");
        let old = tables(&harness).await;
        grow(&log, tenant, &mut random, &clock, 90).await;

        let text = exported(&reader, &EvidenceRequest::new())
            .await
            .expect("an export");
        let latest = reader.checkpoint().await.expect("an answer");
        let latest = latest.expect("a checkpoint");
        let name = origin().for_tenant(tenant.into_uuid(), 1);
        let first = key(0).renamed(&name).expect("a key");
        let options = Options {
            keys: vec![first.verifying_key().clone()],
            known: vec![Note::parse(&latest.note).expect("a note")],
            ..Options::default()
        };
        let untouched = tables(&harness).await;
        let entries = H::TABLES.iter().zip(&untouched);
        let ids = entries
            .filter(|(table, _)| table.holds == Holds::Ids)
            .flat_map(|(table, rows)| rows.iter().map(|row| row[table.place("id")].clone()))
            .map(|id| match id {
                Cell::Bytes(bytes) => uuid::Uuid::from_slice(&bytes).expect("an id"),
                other => panic!("an id is {other:?}"),
            })
            .map(EventId::new)
            .collect::<Vec<_>>();
        let store = harness.store();
        let scope = trusted(tenant);
        let hashes = store.hashes(&scope, 0, 0..latest.size).await;
        let lookups = store.get(&scope, &ids).await.expect("entries");
        let trial = Self {
            log,
            tenant,
            options,
            root: latest.root,
            hashes: hashes.expect("hashes"),
            ids,
            lookups,
            untouched,
            old,
            text,
            harness,
        };
        (trial, workers)
    }

    fn size(&self) -> u64 {
        self.hashes.len() as u64
    }

    fn reader(&self) -> TenantLog {
        self.log.tenant(trusted(self.tenant))
    }

    fn table_of(&self, holds: Holds) -> usize {
        let found = H::TABLES.iter().position(|table| table.holds == holds);
        found.expect("a table of each")
    }

    fn rows_of(&self, holds: Holds) -> (&'static Table, &[Row]) {
        let table = self.table_of(holds);
        (&H::TABLES[table], &self.untouched[table])
    }

    fn pick<'a>(&'a self, holds: Holds, random: &mut Random) -> (&'static Table, &'a Row) {
        let (table, rows) = self.rows_of(holds);
        (table, &rows[random.below(rows.len() as u64) as usize])
    }

    fn replacement(&self, holds: Holds, gone: Vec<Row>, come: Vec<Row>) -> Replacement {
        let table = self.table_of(holds);
        Replacement { table, gone, come }
    }

    fn verify(&self, text: &str, partial: bool) -> Report {
        let options = Options {
            partial,
            ..self.options.clone()
        };
        verify_lines(text.lines(), options)
    }

    /// One byte of one value of one row.
    fn another_byte(&self, random: &mut Random) -> Option<Change> {
        // Most evidence is in the entries.
        let holds = match random.below(16) {
            0..9 => Holds::Entries,
            9 | 10 => Holds::Ids,
            11 => Holds::Head,
            12 => Holds::Subtrees,
            13 => Holds::KeptLeaves,
            14 => Holds::Checkpoints,
            _ => Holds::KeyChanges,
        };
        let (table, row) = self.pick(holds, random);
        let at = random.below(table.columns.len() as u64) as usize;
        let (column, shown) = table.columns[at];
        // Of an id whose entry was pruned a look-up says only that, and the rest where it is recorded
        // again. Of an earlier checkpoint the note counts, which is exported.
        let says_nothing = match (holds, column) {
            (Holds::Ids, "seq" | "created_at" | "leaf_hash") if shown == Shown::Lookup => {
                table.number(row, "seq") < self.pruned_below()
            }
            (Holds::Checkpoints, "root") => table.number(row, "size") < self.size(),
            _ => shown == Shown::Nobody,
        };
        if says_nothing {
            return None;
        }
        let mut changed = row.clone();
        changed[at] = with_another_byte(&row[at], random)?;
        let moved = ["tenant", "tenant_id", "seq", "created_at"].contains(&column);
        let near = (holds == Holds::Entries && !moved).then(|| table.number(row, "seq"));
        let what = format!(
            "{}.{column}: {:?} for {:?}",
            table.name, changed[at], row[at]
        );
        Some(Change {
            what,
            replacements: vec![self.replacement(holds, vec![row.clone()], vec![changed])],
            shown,
            near,
            code: None,
            // Of an opening, the digests count only of groups that were erased. A checkpoint that
            // lies elsewhere is signed again where it lay.
            may_heal: column == "opening" || (holds == Holds::Checkpoints && column == "size"),
        })
    }

    fn pruned_below(&self) -> u64 {
        let (heads, rows) = self.rows_of(Holds::Head);
        heads.number(&rows[0], "pruned_below")
    }

    fn dropped(&self, holds: Holds, shown: Shown, random: &mut Random) -> Change {
        let (table, row) = self.pick(holds, random);
        Change {
            what: format!("a row of {} dropped: {row:?}", table.name),
            replacements: vec![self.replacement(holds, vec![row.clone()], Vec::new())],
            shown,
            near: None,
            code: None,
            may_heal: holds == Holds::Checkpoints,
        }
    }

    /// Two rows change places: what tells their place stays, and all else is exchanged.
    fn swapped(
        &self,
        holds: Holds,
        stay: &[&str],
        shown: Shown,
        random: &mut Random,
    ) -> Option<Change> {
        let (table, one) = self.pick(holds, random);
        let (_, two) = self.pick(holds, random);
        let (mut first, mut second) = (one.clone(), two.clone());
        for (place, (column, _)) in table.columns.iter().enumerate() {
            if !stay.contains(column) {
                std::mem::swap(&mut first[place], &mut second[place]);
            }
        }
        // Of two ids of pruned entries nobody is told which was which.
        let are_pruned = holds == Holds::Ids
            && [one, two].map(|row| table.number(row, "seq") < self.pruned_below()) == [true; 2];
        if first == *one || are_pruned {
            return None;
        }
        let gone = vec![one.clone(), two.clone()];
        Some(Change {
            what: format!("rows of {} swapped: {one:?} and {two:?}", table.name),
            replacements: vec![self.replacement(holds, gone, vec![first, second])],
            shown,
            near: None,
            code: None,
            may_heal: false,
        })
    }

    /// An entry in the place of another one, or before it: then those behind it move on.
    fn inserted(&self, moves: bool, random: &mut Random) -> Option<Change> {
        let (table, rows) = self.rows_of(Holds::Entries);
        let (_, at) = self.pick(Holds::Entries, random);
        let (_, from) = self.pick(Holds::Entries, random);
        let place = table.place("seq");
        let seq = table.number(at, "seq");
        if seq == table.number(from, "seq") {
            return None;
        }
        let mut copy = from.clone();
        copy[place] = at[place].clone();
        copy[table.place("created_at")] = at[table.place("created_at")].clone();
        if !table.key.contains(&"seq") {
            // Rows are numbered.
            let number = table.place(table.key[0]);
            let last = rows.iter().map(|row| table.number(row, table.key[0])).max();
            copy[number] = Cell::Integer(last.expect("rows") as i64 + 1);
        }
        let (gone, mut come) = match moves {
            false => (vec![at.clone()], Vec::new()),
            true => {
                let behind = rows.iter().filter(|row| table.number(row, "seq") >= seq);
                let gone: Vec<Row> = behind.cloned().collect();
                let moved = gone.iter().cloned().map(|mut row| {
                    row[place] = Cell::Integer(table.number(&row, "seq") as i64 + 1);
                    row
                });
                let come = moved.collect();
                (gone, come)
            }
        };
        come.push(copy);
        Some(Change {
            what: format!("{from:?} put at {seq}, moving others: {moves}"),
            replacements: vec![self.replacement(Holds::Entries, gone, come)],
            shown: Shown::Export,
            near: None,
            code: None,
            may_heal: false,
        })
    }

    /// The newest entries are cut off, and everything that tells of them.
    fn cut(&self, whole: bool, random: &mut Random) -> Change {
        let (changes, rows) = self.rows_of(Holds::KeyChanges);
        let last_key = rows.iter().map(|row| changes.number(row, "seq")).max();
        let (heads, rows) = self.rows_of(Holds::Head);
        let head = &rows[0];
        let floor = 2 + last_key.unwrap_or(0).max(heads.number(head, "pruned_by"));
        let size = floor + random.below(self.size() - floor);
        let mut replacements = vec![self.behind(Holds::Entries, |table, row| {
            table.number(row, "seq") >= size
        })];
        if whole {
            replacements
                .push(self.behind(Holds::Ids, |table, row| table.number(row, "seq") >= size));
            replacements.push(self.behind(Holds::Checkpoints, |table, row| {
                table.number(row, "size") > size
            }));
            let (subtrees, rows) = self.rows_of(Holds::Subtrees);
            let lowest = rows.iter().map(|row| subtrees.number(row, "level")).min();
            let lowest = lowest.unwrap_or(0);
            replacements.push(self.behind(Holds::Subtrees, |table, row| {
                let level = table.number(row, "level") - lowest + 1;
                let width = u64::from(FULL_WIDTH).pow(level as u32);
                (table.number(row, "idx") + 1) * width > size
            }));
            let tree: Tree = self.hashes[..size as usize].iter().copied().collect();
            let (entries, rows) = self.rows_of(Holds::Entries);
            let newest = rows
                .iter()
                .find(|row| entries.number(row, "seq") + 1 == size);
            let newest = newest.expect("an entry");
            let mut cut = head.clone();
            cut[heads.place("size")] = Cell::Integer(size as i64);
            cut[heads.place("peaks")] = Cell::Bytes(tree.to_bytes());
            cut[heads.place("created_at")] = newest[entries.place("created_at")].clone();
            replacements.push(self.replacement(Holds::Head, vec![head.clone()], vec![cut]));
        }
        Change {
            what: format!("cut off at {size}, everywhere: {whole}"),
            replacements,
            shown: Shown::Export,
            near: None,
            code: whole.then_some(Code::Rollback),
            may_heal: false,
        }
    }

    fn behind(&self, holds: Holds, is_behind: impl Fn(&Table, &Row) -> bool) -> Replacement {
        let (table, rows) = self.rows_of(holds);
        let gone = rows.iter().filter(|row| is_behind(table, row));
        self.replacement(holds, gone.cloned().collect(), Vec::new())
    }

    /// An old copy of one table, or of all.
    fn rolled_back(&self, holds: Option<Holds>) -> Change {
        let of = |table: usize| Replacement {
            table,
            gone: self.untouched[table].clone(),
            come: self.old[table].clone(),
        };
        Change {
            what: format!("an old copy of {holds:?}"),
            replacements: match holds {
                Some(holds) => vec![of(self.table_of(holds))],
                None => (0..H::TABLES.len()).map(of).collect(),
            },
            shown: match holds {
                Some(Holds::Ids) => Shown::Lookup,
                _ => Shown::Export,
            },
            near: None,
            code: holds.is_none().then_some(Code::Rollback),
            may_heal: false,
        }
    }

    fn change(&self, random: &mut Random) -> Option<Change> {
        use Holds::{Checkpoints, Entries, Head, Ids, KeptLeaves, KeyChanges, Subtrees};
        Some(match random.below(50) {
            0..30 => return self.another_byte(random),
            30 | 31 => self.dropped(Entries, Shown::Export, random),
            32 => self.dropped(Ids, Shown::Lookup, random),
            33 => self.dropped(Subtrees, Shown::Tiles, random),
            34 => self.dropped(KeptLeaves, Shown::Tiles, random),
            35 => self.dropped(Checkpoints, Shown::Export, random),
            36 => self.dropped(KeyChanges, Shown::Export, random),
            37 => self.dropped(Head, Shown::Export, random),
            38 | 39 => {
                let stay = ["n", "seq", "created_at"];
                return self.swapped(Entries, &stay, Shown::Export, random);
            }
            40 => {
                let stay = ["tenant", "tenant_id", "id"];
                return self.swapped(Ids, &stay, Shown::Lookup, random);
            }
            41 => {
                let stay = ["tenant", "tenant_id", "seq"];
                return self.swapped(KeptLeaves, &stay, Shown::Tiles, random);
            }
            42 | 43 => return self.inserted(false, random),
            44 => return self.inserted(true, random),
            45 => self.cut(false, random),
            46 | 47 => self.cut(true, random),
            48 => self.rolled_back(None),
            _ => self.rolled_back(Some([Entries, Head, Ids][random.below(3) as usize])),
        })
    }

    /// What somebody is shown who looks as the change says.
    async fn look(&self, change: &Change) -> Result<Outcome, String> {
        let text = match exported(&self.reader(), &EvidenceRequest::new()).await {
            Err(error) => return self.is_told(&error, change).map(|()| Outcome::Found),
            Ok(text) => text,
        };
        let report = self.verify(&text, false);
        if !report.is_verified() {
            return match self.is_named(&report, change) {
                true => Ok(Outcome::Found),
                false => Err(format!("not where it is: {:#?}", report.findings)),
            };
        }
        if text != self.text {
            return Err("exported otherwise, and verified".into());
        }
        let shown = match change.shown {
            Shown::Lookup => self.look_ids_up(change).await?,
            Shown::Tiles => self.read_tiles(change).await?,
            Shown::Export | Shown::Nobody => false,
        };
        match shown {
            true => Ok(Outcome::Found),
            false if change.may_heal => Ok(Outcome::Equal),
            false => Err("not found".into()),
        }
    }

    fn is_told(&self, error: &Error, change: &Change) -> Result<(), String> {
        // Where the head is gone, the tenant may be.
        let is_gone = change.what.contains("dropped") && error.kind() == ErrorKind::UnknownTenant;
        let is_corrupt = error.kind() == ErrorKind::Corrupt;
        match (is_corrupt || is_gone) && error.tenant() == Some(self.tenant) {
            true => Ok(()),
            false => Err(format!("told as {error:?}")),
        }
    }

    fn is_named(&self, report: &Report, change: &Change) -> bool {
        let width = u64::from(FULL_WIDTH);
        let is_near = |seq: u64| {
            report.findings.iter().any(|finding| {
                finding.positions.is_some_and(|(from, to)| {
                    to - from < width && from <= seq + width && seq <= to + width
                })
            })
        };
        let has = |code| report.findings.iter().any(|finding| finding.code == code);
        change.near.is_none_or(is_near) && change.code.is_none_or(has)
    }

    /// Whether an id says that its entry is corrupt, or isn't there.
    async fn look_ids_up(&self, change: &Change) -> Result<bool, String> {
        let scope = trusted(self.tenant);
        match self.harness.store().get(&scope, &self.ids).await {
            Err(error) => self.is_told(&error, change).map(|()| true),
            Ok(found) => {
                let mut differ = self.lookups.iter().zip(&found).filter(|(a, b)| a != b);
                match differ.find(|(_, found)| matches!(found, Lookup::Found(_))) {
                    Some((_, wrong)) => Err(format!("another entry: {wrong:?}")),
                    None => Ok(found != self.lookups),
                }
            }
        }
    }

    /// Whether the tiles, or the bundles of entries, lead to another root than was signed.
    async fn read_tiles(&self, change: &Change) -> Result<bool, String> {
        let width = u64::from(FULL_WIDTH);
        let (scope, size) = (trusted(self.tenant), self.size());
        let told = |error: Error| self.is_told(&error, change).map(|()| true);
        let store = self.harness.store();
        let hashes = match store.hashes(&scope, 0, 0..size).await {
            Err(error) => return told(error),
            Ok(hashes) => hashes,
        };
        let above = match store.hashes(&scope, 1, 0..size / width).await {
            Err(error) => return told(error),
            Ok(hashes) => hashes,
        };
        let complete = hashes.chunks_exact(FULL_WIDTH as usize);
        if root(&hashes) != self.root || !complete.map(subtree_root).eq(above) {
            return Ok(true);
        }
        for index in self.pruned_below() / width..=(size - 1) / width {
            let tile = Tile::at(Content::Entries, index, size).expect("a tile");
            let bundle = match self.reader().tile(&tile).await {
                Err(error) => return told(error),
                Ok(bundle) => bundle,
            };
            let leaves = parse_entries(&bundle, tile.width()).expect("a bundle");
            let expected = hashes[(index * width) as usize..].iter().copied();
            let leaves = leaves.into_iter().map(leaf_hash);
            if !leaves
                .zip(expected)
                .all(|(leaf, expected)| leaf == expected)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts every row back, whatever workers made of the change meanwhile.
    async fn undo(&self) {
        let restored = timeout(DEADLINE, async {
            loop {
                let now = tables(&self.harness).await;
                let mut replacements = Vec::new();
                for (table, (now, then)) in now.iter().zip(&self.untouched).enumerate() {
                    let (have, want): (HashSet<&Row>, HashSet<&Row>) =
                        (now.iter().collect(), then.iter().collect());
                    let gone: Vec<Row> = have.difference(&want).map(|r| (*r).clone()).collect();
                    let come: Vec<Row> = want.difference(&have).map(|r| (*r).clone()).collect();
                    if !gone.is_empty() || !come.is_empty() {
                        replacements.push(Replacement { table, gone, come });
                    }
                }
                if replacements.is_empty() {
                    return;
                }
                assert!(self.harness.replace(&replacements).await, "put back");
            }
        });
        restored.await.expect("put back in time");
    }

    /// An export of the untouched log, whole or with groups and entries withheld.
    async fn is_no_alarm(&self, random: &mut Random) {
        let mut groups = Group::ALL.to_vec();
        groups.retain(|_| random.one_in(3));
        let mut request = EvidenceRequest::new().withhold(&groups);
        if random.one_in(3) {
            request = request.filter(Filter::new().severity(Severity::ALL[0]));
        }
        let partial = exported(&self.reader(), &request).await.expect("an export");
        assert_eq!(self.verify(&partial, true).findings, [], "{request:?}");
        let whole = exported(&self.reader(), &EvidenceRequest::new()).await;
        let whole = whole.expect("an export");
        assert_eq!(self.verify(&whole, false).findings, []);
        assert_eq!(whole, self.text);
    }
}

/// One byte of a value; rows that are dropped, swapped, put in another's place or in between; a tail that
/// is cut off, everywhere or in the entries alone; an old copy, of everything or of one table: each is
/// shown to who exports evidence, looks an id up or reads the tiles, as the table's column says. What
/// leaves the export as it was is counted apart. The log's own exports, whole and partial, never raise an
/// alarm. `AUDIT_TEST_FULL=1` makes 500 changes, else 50.
pub async fn what_is_changed_in_the_tables_is_found<H: TamperingHarness>() {
    let full = std::env::var_os("AUDIT_TEST_FULL").is_some_and(|v| v == "1");
    let wanted = if full { 500 } else { 50 };
    let (trial, workers) = Trial::<H>::begin().await;
    assert_eq!(trial.verify(&trial.text, false).findings, []);
    let (mut found, mut equal, mut n) = (0, 0, 0);
    while found < wanted {
        n += 1;
        let mut random = Random::new(SEED.wrapping_mul(31).wrapping_add(n));
        let Some(change) = trial.change(&mut random) else {
            continue;
        };
        // What the database refuses, nobody has changed.
        if !trial.harness.replace(&change.replacements).await {
            continue;
        }
        match trial.look(&change).await {
            Ok(Outcome::Found) => found += 1,
            Ok(Outcome::Equal) => equal += 1,
            Err(why) => panic!("change {n} of seed {SEED}: {}\n{why}", change.what),
        }
        trial.undo().await;
        trial.is_no_alarm(&mut random).await;
    }
    assert!(
        equal <= wanted / 5,
        "{equal} changes left the export as it was, {found} were found"
    );
    workers.shutdown(DEADLINE).await;
}
