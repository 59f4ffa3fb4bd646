//! Changes in the tables of a store.

use std::ops::Range;

use audit_core::EventId;
use audit_core::tlog::leaf::leaf_hash;
use audit_core::tlog::tile::FULL_WIDTH;
use audit_core::tlog::verify::{Code, Finding};
use audit_core::tlog::{Hash, Tree};

use super::trial::Trial;
use super::{Cell, Holds, Replacement, Row, Shown, Table, TamperingHarness, Times};
use crate::random::Random;

/// A kind of change.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// One byte of one value of one row.
    Byte(Holds),
    /// One byte of this column of an entry.
    ByteOf(&'static str),
    /// One byte of an entry, and its own hash with it, which is then that of what it holds.
    ByteAndHash,
    /// A row goes.
    Dropped(Holds),
    /// Two rows change places.
    Swapped(Holds),
    /// Two entries of one moment change places, each with a hash that is its own: only the tree tells.
    SwappedWhole,
    /// An entry takes another one's place.
    Replaced,
    /// An entry comes before another one, which moves on with all behind it.
    Inserted,
    /// A row comes that says what another one says, of something else.
    Forged(Holds),
    /// The newest entries go, and all that tells of them stays.
    EntriesCut,
    /// The newest entries go, with all that tells of them.
    AllCut,
    /// An old copy of everything.
    RolledBack,
    /// An old copy of one table.
    RolledBackOne(Holds),
}

pub(super) const KINDS: &[Times<Kind>] = &[
    (Kind::Byte(Holds::Entries), 14, 110),
    (Kind::ByteOf("opening"), 6, 50),
    (Kind::ByteOf("leaf_hash"), 4, 30),
    (Kind::ByteAndHash, 3, 30),
    (Kind::Byte(Holds::Ids), 5, 40),
    (Kind::Byte(Holds::Head), 5, 40),
    (Kind::Byte(Holds::Subtrees), 6, 40),
    (Kind::Byte(Holds::KeptLeaves), 4, 30),
    (Kind::Byte(Holds::Checkpoints), 5, 40),
    (Kind::Byte(Holds::KeyChanges), 3, 20),
    (Kind::Byte(Holds::Epochs), 2, 10),
    (Kind::Dropped(Holds::Entries), 2, 20),
    (Kind::Dropped(Holds::Ids), 1, 10),
    (Kind::Dropped(Holds::Head), 1, 1),
    (Kind::Dropped(Holds::Subtrees), 1, 3),
    (Kind::Dropped(Holds::KeptLeaves), 1, 10),
    (Kind::Dropped(Holds::Checkpoints), 1, 5),
    (Kind::Dropped(Holds::KeyChanges), 1, 3),
    (Kind::Dropped(Holds::Epochs), 1, 1),
    (Kind::Swapped(Holds::Entries), 2, 20),
    (Kind::Swapped(Holds::Ids), 1, 10),
    (Kind::Swapped(Holds::Subtrees), 1, 1),
    (Kind::Swapped(Holds::KeptLeaves), 1, 10),
    (Kind::Swapped(Holds::Checkpoints), 1, 3),
    (Kind::SwappedWhole, 1, 10),
    (Kind::Replaced, 2, 20),
    (Kind::Inserted, 1, 10),
    (Kind::Forged(Holds::Ids), 1, 5),
    (Kind::Forged(Holds::KeyChanges), 1, 5),
    (Kind::Forged(Holds::Epochs), 1, 5),
    (Kind::EntriesCut, 1, 10),
    (Kind::AllCut, 2, 20),
    (Kind::RolledBack, 1, 3),
    (Kind::RolledBackOne(Holds::Entries), 1, 3),
    (Kind::RolledBackOne(Holds::Head), 1, 3),
    (Kind::RolledBackOne(Holds::Ids), 1, 3),
    (Kind::RolledBackOne(Holds::Subtrees), 1, 1),
];

/// How many entries a bundle has.
const WIDTH: u64 = FULL_WIDTH as u64;

/// What a store says of a head that an old copy has, beside a newer checkpoint.
const SMALLER: &str = "the log is smaller than its newest checkpoint";

/// A change behind the store's back.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) what: String,
    /// The column of which a value was changed.
    pub(super) column: Option<String>,
    pub(super) replacements: Vec<Replacement>,
    pub(super) shown: Shown,
    /// Which positions are wrong first; of an entry that stands in another one's place, both. None where
    /// it is about no position.
    pub(super) places: Vec<Range<u64>>,
    /// The position that a moved entry says it has: an error may tell that one.
    pub(super) stands_at: Option<u64>,
    /// How many positions the run that is named may have.
    pub(super) run: u64,
    /// The position that is told to who reads just this entry.
    pub(super) exactly: Option<u64>,
    /// All from the first place on is gone: the run that is named begins just there.
    is_gone: bool,
    /// An error may tell no position: of hashes of whole subtrees, and of rows whose own can't be read.
    has_no_position: bool,
    /// Where the tree has no hash but the rows' own: the sizes of signed heads, of which one bounds the run
    /// then, and the log's own.
    heads: Vec<u64>,
    /// What may be told without a position.
    unplaced: Option<Code>,
    /// What must be told; then no error will do.
    pub(super) code: Option<Code>,
    /// What an error must say.
    pub(super) says: Option<&'static str>,
    /// What the changed entry said of others isn't said any more.
    explains: bool,
    /// Ids that the store never gave out.
    pub(super) forged: Vec<EventId>,
    /// Why what is exported may be what it was, string by string, and nothing is to be found then.
    pub(super) spare: Option<&'static str>,
    /// The tenant may be gone.
    pub(super) hides_tenant: bool,
}

/// Why a change of a hash that is kept beside the tree's own may not be found.
pub(super) const OF_THE_TREE: &str = "the hash of kept leaf data is the tree's";

impl Change {
    fn new(what: String, shown: Shown, replacements: Vec<Replacement>) -> Self {
        Self {
            what,
            column: None,
            replacements,
            shown,
            places: Vec::new(),
            stands_at: None,
            run: WIDTH,
            exactly: None,
            is_gone: false,
            has_no_position: false,
            heads: Vec::new(),
            unplaced: None,
            code: None,
            says: None,
            explains: false,
            forged: Vec::new(),
            spare: None,
            hides_tenant: false,
        }
    }

    fn at(mut self, seqs: impl IntoIterator<Item = u64>) -> Self {
        self.places = seqs.into_iter().map(|seq| seq..seq + 1).collect();
        self
    }

    /// The finding that names what is wrong, if it is the first one. Before it may come only what follows
    /// from an entry's saying no more what it said: holes that it explained, and checkpoints of a key or
    /// a name that it gave.
    pub(super) fn named<'f>(&self, findings: &'f [Finding]) -> Option<&'f Finding> {
        let follows = |finding: &Finding| match finding.positions {
            None => true,
            Some((_, to)) => {
                finding.code == Code::Unexplained
                    && self.places.iter().all(|place| to < place.start)
            }
        };
        let mut findings = findings
            .iter()
            .filter(|finding| !(self.explains && follows(finding)));
        findings.next().filter(|first| self.is_it(first))
    }

    /// Whether a finding says what it must, of a run that has one of the places in it and is no longer than
    /// it may be.
    fn is_it(&self, finding: &Finding) -> bool {
        if self.code.is_some_and(|code| code != finding.code) {
            return false;
        }
        match finding.positions {
            _ if self.places.is_empty() => true,
            None => self.unplaced == Some(finding.code),
            Some((from, _)) if self.is_gone => self.places[0].start == from,
            // A mark of hashes that the entries don't have is told where it stands, behind them.
            Some((_, at)) if finding.code == Code::Mark => {
                let is_behind =
                    |place: &Range<u64>| place.start <= at && at < place.end - 1 + WIDTH;
                self.places.iter().any(is_behind)
            }
            Some((from, to)) => {
                let is_in = |place: &Range<u64>| from < place.end && place.start <= to;
                let is_bounded = to - from < self.run
                    || (self.heads.contains(&from) && self.heads.contains(&(to + 1)));
                is_bounded && self.places.iter().any(is_in)
            }
        }
    }

    /// Whether an error's position, or where something else than before is read, is one that is wrong.
    pub(super) fn is_there(&self, position: Option<u64>) -> bool {
        match position {
            None => self.has_no_position || self.places.is_empty(),
            Some(_) if self.places.is_empty() => true,
            Some(seq) => self.places.iter().any(|place| place.contains(&seq)),
        }
    }
}

/// Another value of which one byte differs; none where there is none, or none that stays a text.
fn with_another_byte(cell: &Cell, random: &mut Random) -> Option<(Cell, usize)> {
    let flip = 1 + random.below(255) as u8;
    match cell {
        Cell::Null => None,
        Cell::Integer(n) => {
            let mut bytes = n.to_be_bytes();
            let at = random.below(8) as usize;
            bytes[at] ^= flip;
            Some((Cell::Integer(i64::from_be_bytes(bytes)), at))
        }
        Cell::Bytes(bytes) if bytes.is_empty() => None,
        Cell::Bytes(bytes) => {
            let mut bytes = bytes.clone();
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= flip;
            Some((Cell::Bytes(bytes), at))
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
            let text = String::from_utf8(bytes).expect("ASCII for ASCII");
            is_other.then_some((Cell::Text(text), at))
        }
    }
}

/// Whether a byte of an entry's stored opening is of the digest of a group that was not erased, which is
/// computed anew whenever it is needed.
fn is_computed(opening: &Cell, at: usize) -> bool {
    let Cell::Bytes(bytes) = opening else {
        return false;
    };
    let mut next = 1;
    while bytes[0] == 2 && next < bytes.len() {
        let (flags, digest) = (bytes[next], next + 1);
        let salt = digest + 32 * usize::from(flags & 1);
        if flags == 3 && (digest..salt).contains(&at) {
            return true;
        }
        next = salt + 16 * usize::from(flags >> 1);
    }
    false
}

impl<H: TamperingHarness> Trial<H> {
    /// A change of a kind; none where the seed leads to none.
    /// Which column of a row it is goes by `turn`.
    pub(super) fn change(&self, kind: Kind, turn: u64, random: &mut Random) -> Option<Change> {
        match kind {
            Kind::Byte(holds) => {
                let columns = self.rows_of(holds).0.columns;
                // A prime, so that the first few are none of those that the table begins with.
                let (column, _) = columns[turn as usize * 11 % columns.len()];
                self.another_byte(holds, column, random)
            }
            Kind::ByteOf(column) => self.another_byte(Holds::Entries, column, random),
            Kind::ByteAndHash => {
                let columns = self.rows_of(Holds::Entries).0.columns;
                let (column, _) = columns[random.below(columns.len() as u64) as usize];
                // Where a row stands isn't of its own; nor is its hash.
                let is_place = ["n", "tenant", "tenant_id", "seq", "created_at"].contains(&column);
                match is_place || column == "leaf_hash" {
                    true => None,
                    false => self.another_byte(Holds::Entries, column, random),
                }
            }
            Kind::Forged(holds) => self.forged(holds, random),
            Kind::Dropped(holds) => Some(self.dropped(holds, random)),
            Kind::Swapped(holds) => self.swapped(holds, false, random),
            Kind::SwappedWhole => self.swapped(Holds::Entries, true, random),
            Kind::Replaced => self.inserted(false, random),
            Kind::Inserted => self.inserted(true, random),
            Kind::EntriesCut => Some(self.cut(false, random)),
            Kind::AllCut => Some(self.cut(true, random)),
            Kind::RolledBack => self.rolled_back(None, random),
            Kind::RolledBackOne(holds) => self.rolled_back(Some(holds), random),
        }
    }

    fn pick<'a>(&'a self, holds: Holds, random: &mut Random) -> (&'static Table, &'a Row) {
        let (table, rows) = self.rows_of(holds);
        (table, &rows[random.below(rows.len() as u64) as usize])
    }

    fn replacement(&self, holds: Holds, gone: Vec<Row>, come: Vec<Row>) -> Replacement {
        let table = self.table_of(holds);
        Replacement { table, gone, come }
    }

    /// Why nothing may be missing when a row goes.
    fn spare(&self, table: &Table, row: &Row) -> Option<&'static str> {
        let is_newest =
            table.holds == Holds::Checkpoints && table.number(row, "size") == self.size();
        is_newest.then_some("the newest checkpoint is signed again, byte for byte")
    }

    /// The positions below a row of the tree's hashes.
    fn covered(&self, table: &Table, row: &Row) -> Range<u64> {
        let rows = self.rows_of(Holds::Subtrees).1;
        let lowest = rows.iter().map(|row| table.number(row, "level")).min();
        let level = table.number(row, "level") - lowest.unwrap_or(0) + 1;
        let width = WIDTH.pow(level as u32);
        let idx = table.number(row, "idx");
        idx * width..(idx + 1) * width
    }

    /// The positions that a row is about.
    fn places(&self, holds: Holds, table: &Table, row: &Row) -> Vec<Range<u64>> {
        let place = match holds {
            Holds::Head | Holds::Checkpoints => None,
            Holds::Subtrees => Some(self.covered(table, row)),
            _ => {
                let seq = table.number(row, "seq");
                Some(seq..seq + 1)
            }
        };
        place.into_iter().collect()
    }

    /// The signed heads that bound where an entry is wrong of which the tree has no hash but the row's own:
    /// of the newest entries, which fill no bundle, in a store that keeps the hashes of bundles.
    fn heads(&self, places: &[Range<u64>]) -> Vec<u64> {
        let (ids, _) = self.rows_of(Holds::Ids);
        let has_hashes = ids.columns[ids.place("leaf_hash")].1 == Shown::Tiles;
        let complete = self.size() / WIDTH * WIDTH;
        if has_hashes || places.iter().all(|place| place.end <= complete) {
            return Vec::new();
        }
        let (table, rows) = self.rows_of(Holds::Checkpoints);
        rows.iter().map(|row| table.number(row, "size")).collect()
    }

    /// Without a change of keys that is pruned nothing says where the log got its later key.
    fn unplaced(&self, holds: Holds, table: &Table, row: &Row) -> Option<Code> {
        let is_pruned =
            holds == Holds::KeyChanges && table.number(row, "seq") < self.pruned_below();
        is_pruned.then_some(Code::ForeignKey)
    }

    /// Whether a row of entries says something of others.
    fn says(&self, table: &Table, row: &Row) -> bool {
        table.holds == Holds::Entries && row[table.place("ctl")] != Cell::Null
    }

    fn another_byte(&self, holds: Holds, column: &str, random: &mut Random) -> Option<Change> {
        let (table, rows) = self.rows_of(holds);
        let at = table.place(column);
        let having: Vec<&Row> = rows.iter().filter(|row| row[at] != Cell::Null).collect();
        if having.is_empty() {
            return None;
        }
        let row = having[random.below(having.len() as u64) as usize];
        let (_, shown) = table.columns[at];
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
        let (cell, byte) = with_another_byte(&row[at], random)?;
        changed[at] = cell;
        let what = format!(
            "byte {byte} of {}.{column}: {:?} for {:?} in {row:?}",
            table.name, changed[at], row[at]
        );
        let replacements = vec![self.replacement(holds, vec![row.clone()], vec![changed.clone()])];
        let mut change = Change::new(what, shown, replacements);
        change.column = Some(format!("{}.{column}", table.name));
        let is_tenant = ["tenant", "tenant_id"].contains(&column);
        change.hides_tenant = holds == Holds::Head && is_tenant;
        change.places = self.places(holds, table, row);
        change.explains = self.says(table, row);
        change.has_no_position = holds == Holds::Subtrees;
        change.unplaced = self.unplaced(holds, table, row);
        if column == "seq" && matches!(changed[at], Cell::Integer(..0)) {
            change.has_no_position = true;
        }
        if column == "leaf_hash" {
            change.heads = self.heads(&change.places);
        }
        if holds == Holds::Entries {
            let seq = table.number(row, "seq");
            let is_place = is_tenant || ["seq", "created_at"].contains(&column);
            change.exactly = (!is_place).then_some(seq);
            // To who reads one after the other, it comes where it now says that it stands.
            change.stands_at = match changed[at] {
                Cell::Integer(seq) if column == "seq" => u64::try_from(seq).ok(),
                _ => None,
            };
        } else if column == "seq" {
            // It says of another entry what that one doesn't.
            change.places.extend(self.places(holds, table, &changed));
        }
        change.spare = match (holds, column) {
            (Holds::Entries, "opening") => is_computed(&row[at], byte)
                .then_some("the digest of a group that was not erased is computed, not read"),
            (Holds::Checkpoints, "size") => Some("a checkpoint is where it was looked for"),
            (Holds::KeptLeaves, "leaf_hash") => {
                let is_in_tree = table.number(row, "seq") < self.size() / WIDTH * WIDTH;
                is_in_tree.then_some(OF_THE_TREE)
            }
            _ if is_tenant => self.spare(table, row),
            _ => None,
        };
        Some(change)
    }

    /// A change of an entry, with the hash of the leaf that it then has.
    pub(super) fn with_hash(&self, mut change: Change, leaf: &str) -> Change {
        let table = self.rows_of(Holds::Entries).0;
        let Hash(hash) = leaf_hash(leaf.as_bytes());
        for row in &mut change.replacements[0].come {
            row[table.place("leaf_hash")] = Cell::Bytes(hash.to_vec());
        }
        change.what.push_str(", with its own hash");
        // The tree's hash, and not the row's own, is what tells.
        change.exactly = None;
        change.heads = self.heads(&change.places);
        change
    }

    fn dropped(&self, holds: Holds, random: &mut Random) -> Change {
        let (table, row) = self.pick(holds, random);
        let what = format!("a row of {} dropped: {row:?}", table.name);
        let shown = match holds {
            Holds::Ids => Shown::Lookup,
            Holds::Subtrees | Holds::KeptLeaves => Shown::Tiles,
            _ => Shown::Export,
        };
        let replacements = vec![self.replacement(holds, vec![row.clone()], Vec::new())];
        Change {
            places: self.places(holds, table, row),
            run: match holds {
                Holds::Entries => 1,
                _ => WIDTH,
            },
            explains: self.says(table, row),
            has_no_position: holds == Holds::Subtrees,
            unplaced: self.unplaced(holds, table, row),
            spare: self.spare(table, row),
            hides_tenant: holds == Holds::Head,
            ..Change::new(what, shown, replacements)
        }
    }

    /// A row that says what another one says, of something that it is not so of.
    fn forged(&self, holds: Holds, random: &mut Random) -> Option<Change> {
        let (table, row) = self.pick(holds, random);
        let rows = self.rows_of(holds).1;
        let mut copy = row.clone();
        let live = self.pruned_below();
        let seq = live + random.below(self.size() - live);
        let mut forged = Vec::new();
        match holds {
            Holds::Ids => {
                if table.number(row, "seq") < live {
                    return None;
                }
                let bytes: [u8; 16] = std::array::from_fn(|_| random.below(256) as u8);
                let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
                copy[table.place("id")] = Cell::Bytes(id.as_bytes().to_vec());
                forged.push(EventId::new(id));
            }
            _ => {
                if rows.iter().any(|row| table.number(row, "seq") == seq) {
                    return None;
                }
                copy[table.place("seq")] = Cell::Integer(seq as i64);
            }
        }
        let what = format!("a row of {} forged: {copy:?}", table.name);
        let places = self.places(holds, table, &copy);
        let shown = match holds {
            Holds::Ids => Shown::Lookup,
            _ => Shown::Export,
        };
        let replacements = vec![self.replacement(holds, Vec::new(), vec![copy])];
        Some(Change {
            places,
            forged,
            ..Change::new(what, shown, replacements)
        })
    }

    /// What tells two rows' places stays, and all else is exchanged. Of entries of one moment their hashes
    /// are then still those of their contents.
    fn swapped(&self, holds: Holds, of_one_moment: bool, random: &mut Random) -> Option<Change> {
        let (stay, shown): (&[&str], _) = match holds {
            Holds::Ids => (&["tenant", "tenant_id", "id"], Shown::Lookup),
            Holds::KeptLeaves => (&["tenant", "tenant_id", "seq"], Shown::Tiles),
            Holds::Subtrees => (&["tenant", "tenant_id", "level", "idx"], Shown::Tiles),
            Holds::Checkpoints => (&["tenant", "tenant_id", "size"], Shown::Export),
            _ => (&["n", "seq", "created_at"], Shown::Export),
        };
        let (table, one) = self.pick(holds, random);
        let mut others: Vec<&Row> = self.rows_of(holds).1.iter().collect();
        if of_one_moment {
            let at = table.place("created_at");
            others.retain(|other| other[at] == one[at]);
        }
        if holds == Holds::Checkpoints {
            // Of earlier ones only those over a change of keys are shown.
            others.retain(|other| table.number(other, "size") == self.size());
        }
        let two = others[random.below(others.len() as u64) as usize];
        let (mut first, mut second) = (one.clone(), two.clone());
        for (place, (column, _)) in table.columns.iter().enumerate() {
            if !stay.contains(column) {
                std::mem::swap(&mut first[place], &mut second[place]);
            }
        }
        // Of two ids of pruned entries nobody is told which was which.
        let places = [one, two]
            .map(|row| self.places(holds, table, row))
            .concat();
        let is_pruned = |place: &Range<u64>| place.start < self.pruned_below();
        let are_pruned = holds == Holds::Ids && places.iter().all(is_pruned);
        if first == *one || are_pruned {
            return None;
        }
        let what = format!("rows of {} swapped: {one:?} and {two:?}", table.name);
        let gone = vec![one.clone(), two.clone()];
        let replacements = vec![self.replacement(holds, gone, vec![first, second])];
        let mut change = Change::new(what, shown, replacements);
        if holds == Holds::Entries {
            change.heads = self.heads(&places);
        }
        change.places = places;
        change.has_no_position = holds == Holds::Subtrees;
        change.explains = self.says(table, one) || self.says(table, two);
        Some(change)
    }

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
        let what = format!("{from:?} put at {seq}, moving others: {moves}");
        let replacements = vec![self.replacement(Holds::Entries, gone, come)];
        // That its id comes twice is told where it is seen.
        let seen = table.number(from, "seq");
        let seen = if moves && seen >= seq { seen + 1 } else { seen };
        let mut named = vec![seq, seq + 1, seen];
        if moves {
            // What an export begins with, changes of keys and of the epoch, is looked at before.
            for holds in [Holds::KeyChanges, Holds::Epochs] {
                let (table, rows) = self.rows_of(holds);
                let seqs = rows.iter().map(|row| table.number(row, "seq"));
                named.extend(seqs.filter(|at| *at > seq));
            }
        }
        let mut change = Change::new(what, Shown::Export, replacements).at(named);
        change.explains = self.says(table, at) || self.says(table, from);
        Some(change)
    }

    fn cut(&self, whole: bool, random: &mut Random) -> Change {
        let last_of = |holds| {
            let (table, rows) = self.rows_of(holds);
            rows.iter().map(|row| table.number(row, "seq")).max()
        };
        let (heads, rows) = self.rows_of(Holds::Head);
        let head = &rows[0];
        // An export below one of these would show a change that isn't there any more.
        let last = last_of(Holds::KeyChanges).max(last_of(Holds::Epochs));
        let floor = 2 + last.unwrap_or(0).max(heads.number(head, "pruned_by"));
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
            replacements.push(self.behind(Holds::Subtrees, |table, row| {
                self.covered(table, row).end > size
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
        let what = format!("cut off at {size}, everywhere: {whole}");
        Change {
            is_gone: true,
            code: whole.then_some(Code::Rollback),
            explains: true,
            ..Change::new(what, Shown::Export, replacements).at([size])
        }
    }

    fn behind(&self, holds: Holds, is_behind: impl Fn(&Table, &Row) -> bool) -> Replacement {
        let (table, rows) = self.rows_of(holds);
        let gone = rows.iter().filter(|row| is_behind(table, row));
        self.replacement(holds, gone.cloned().collect(), Vec::new())
    }

    /// An old copy of one table, or of all; none where it is what is there.
    fn rolled_back(&self, holds: Option<Holds>, random: &mut Random) -> Option<Change> {
        let (old, _) = &self.old[random.below(self.old.len() as u64) as usize];
        let of = |table: usize| Replacement {
            table,
            gone: self.untouched[table].clone(),
            come: old[table].clone(),
        };
        let replacements = match holds {
            Some(holds) => vec![of(self.table_of(holds))],
            None => (0..H::TABLES.len()).map(of).collect(),
        };
        let is_other = |r: &Replacement| r.gone != r.come;
        if !replacements.iter().any(is_other) {
            return None;
        }
        let shown = match holds {
            Some(Holds::Ids) => Shown::Lookup,
            Some(Holds::Subtrees) => Shown::Tiles,
            _ => Shown::Export,
        };
        let (heads, head) = (self.rows_of(Holds::Head).0, self.table_of(Holds::Head));
        let size = heads.number(&old[head][0], "size");
        let what = format!("an old copy of {holds:?}, of {size} entries");
        let change = Change::new(what, shown, replacements);
        Some(match holds {
            None => Change {
                is_gone: true,
                code: Some(Code::Rollback),
                ..change.at([size])
            },
            Some(Holds::Head) => Change {
                says: Some(SMALLER),
                ..change
            },
            Some(Holds::Entries) => Change {
                is_gone: true,
                explains: true,
                ..change.at([size])
            },
            // What has come since isn't there.
            Some(holds) => Change {
                has_no_position: holds == Holds::Subtrees,
                places: std::iter::once(size / WIDTH * WIDTH..self.size()).collect(),
                ..change
            },
        })
    }
}
