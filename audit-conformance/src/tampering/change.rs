//! Changes in the tables of a store.

use audit_core::tlog::Tree;
use audit_core::tlog::tile::FULL_WIDTH;
use audit_core::tlog::verify::{Code, Finding};

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
    (Kind::Swapped(Holds::KeptLeaves), 1, 10),
    (Kind::SwappedWhole, 1, 10),
    (Kind::Replaced, 2, 20),
    (Kind::Inserted, 1, 10),
    (Kind::EntriesCut, 1, 10),
    (Kind::AllCut, 2, 20),
    (Kind::RolledBack, 1, 3),
    (Kind::RolledBackOne(Holds::Entries), 1, 3),
    (Kind::RolledBackOne(Holds::Head), 1, 3),
    (Kind::RolledBackOne(Holds::Ids), 1, 3),
];

/// A change behind the store's back.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) what: String,
    pub(super) replacements: Vec<Replacement>,
    pub(super) shown: Shown,
    /// Where it is wrong first, and of two rows that changed places the other place too: what is found
    /// names a position within a bundle's width of one.
    pub(super) near: Vec<u64>,
    /// How many positions the run that is named may have.
    pub(super) run: u64,
    /// The position that is told to who reads just this entry.
    pub(super) exactly: Option<u64>,
    /// What else must be told.
    pub(super) code: Option<Code>,
    /// Why what is exported may be what it was, string by string, and nothing is to be found then.
    pub(super) spare: Option<&'static str>,
    /// The tenant may be gone.
    pub(super) hides_tenant: bool,
}

impl Change {
    fn new(what: String, shown: Shown, replacements: Vec<Replacement>) -> Self {
        Self {
            what,
            replacements,
            shown,
            near: Vec::new(),
            run: u64::from(FULL_WIDTH),
            exactly: None,
            code: None,
            spare: None,
            hides_tenant: false,
        }
    }

    fn near(mut self, seq: u64) -> Self {
        self.near = vec![seq];
        self
    }

    /// Whether the findings name the first position that is wrong, and tell what they have to.
    pub(super) fn is_named(&self, findings: &[Finding]) -> bool {
        let has = |code| findings.iter().any(|finding| finding.code == code);
        let is_near = self.near.is_empty() || findings.iter().any(|finding| self.is_near(finding));
        is_near && self.code.is_none_or(has)
    }

    /// Whether a finding is about a run of positions with the wrong one in it or within a bundle's width of
    /// its beginning, and is no longer than it may be unless all in it are gone.
    pub(super) fn is_near(&self, finding: &Finding) -> bool {
        let Some((from, to)) = finding.positions else {
            return false;
        };
        let width = u64::from(FULL_WIDTH);
        let is_there = |seq: &u64| from.abs_diff(*seq) < width || (from..=to).contains(seq);
        let is_run = to - from < self.run || finding.code == Code::Rollback;
        is_run && self.near.iter().any(is_there)
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
    pub(super) fn change(&self, kind: Kind, random: &mut Random) -> Option<Change> {
        match kind {
            Kind::Byte(holds) => self.another_byte(holds, None, random),
            Kind::ByteOf(column) => self.another_byte(Holds::Entries, Some(column), random),
            Kind::Dropped(holds) => Some(self.dropped(holds, random)),
            Kind::Swapped(holds) => self.swapped(holds, false, random),
            Kind::SwappedWhole => self.swapped(Holds::Entries, true, random),
            Kind::Replaced => self.inserted(false, random),
            Kind::Inserted => self.inserted(true, random),
            Kind::EntriesCut => Some(self.cut(false, random)),
            Kind::AllCut => Some(self.cut(true, random)),
            Kind::RolledBack => Some(self.rolled_back(None, random)),
            Kind::RolledBackOne(holds) => Some(self.rolled_back(Some(holds), random)),
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

    fn another_byte(
        &self,
        holds: Holds,
        column: Option<&str>,
        random: &mut Random,
    ) -> Option<Change> {
        let (table, row) = self.pick(holds, random);
        let at = match column {
            Some(column) => table.place(column),
            None => random.below(table.columns.len() as u64) as usize,
        };
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
        let (cell, byte) = with_another_byte(&row[at], random)?;
        changed[at] = cell;
        let what = format!(
            "{}.{column}: {:?} for {:?}",
            table.name, changed[at], row[at]
        );
        let replacements = vec![self.replacement(holds, vec![row.clone()], vec![changed])];
        let mut change = Change::new(what, shown, replacements);
        let is_tenant = ["tenant", "tenant_id"].contains(&column);
        change.hides_tenant = holds == Holds::Head && is_tenant;
        if holds == Holds::Entries {
            let seq = table.number(row, "seq");
            change.near = vec![seq];
            let is_place = is_tenant || ["seq", "created_at"].contains(&column);
            change.exactly = (!is_place).then_some(seq);
        }
        change.spare = match (holds, column) {
            (Holds::Entries, "opening") => is_computed(&row[at], byte)
                .then_some("the digest of a group that was not erased is computed, not read"),
            (Holds::Checkpoints, "size") => Some("a checkpoint is where it was looked for"),
            _ if is_tenant => self.spare(table, row),
            _ => None,
        };
        Some(change)
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
            near: match holds {
                Holds::Entries => vec![table.number(row, "seq")],
                _ => Vec::new(),
            },
            spare: self.spare(table, row),
            hides_tenant: holds == Holds::Head,
            ..Change::new(what, shown, replacements)
        }
    }

    /// What tells two rows' places stays, and all else is exchanged. Of entries of one moment their hashes
    /// are then still those of their contents.
    fn swapped(&self, holds: Holds, of_one_moment: bool, random: &mut Random) -> Option<Change> {
        let (stay, shown): (&[&str], _) = match holds {
            Holds::Ids => (&["tenant", "tenant_id", "id"], Shown::Lookup),
            Holds::KeptLeaves => (&["tenant", "tenant_id", "seq"], Shown::Tiles),
            _ => (&["n", "seq", "created_at"], Shown::Export),
        };
        let (table, one) = self.pick(holds, random);
        let mut others: Vec<&Row> = self.rows_of(holds).1.iter().collect();
        if of_one_moment {
            let at = table.place("created_at");
            others.retain(|other| other[at] == one[at]);
        }
        let two = others[random.below(others.len() as u64) as usize];
        let (mut first, mut second) = (one.clone(), two.clone());
        for (place, (column, _)) in table.columns.iter().enumerate() {
            if !stay.contains(column) {
                std::mem::swap(&mut first[place], &mut second[place]);
            }
        }
        // Of two ids of pruned entries nobody is told which was which.
        let seqs = [one, two].map(|row| table.number(row, "seq"));
        let are_pruned = holds == Holds::Ids && seqs.iter().all(|seq| *seq < self.pruned_below());
        if first == *one || are_pruned {
            return None;
        }
        let what = format!("rows of {} swapped: {one:?} and {two:?}", table.name);
        let gone = vec![one.clone(), two.clone()];
        let replacements = vec![self.replacement(holds, gone, vec![first, second])];
        let mut change = Change::new(what, shown, replacements);
        if holds == Holds::Entries {
            change.near = seqs.to_vec();
        }
        // Of the newest entries, which fill no bundle, a store may have no hashes but the rows' own: then
        // signed heads alone bound where it is.
        let complete = self.size() / u64::from(FULL_WIDTH) * u64::from(FULL_WIDTH);
        if of_one_moment && seqs.iter().any(|seq| *seq >= complete) {
            change.run = self.size() - self.pruned_below();
        }
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
        Some(Change::new(what, Shown::Export, replacements).near(seq))
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
        let what = format!("cut off at {size}, everywhere: {whole}");
        Change {
            near: vec![size],
            code: whole.then_some(Code::Rollback),
            ..Change::new(what, Shown::Export, replacements)
        }
    }

    fn behind(&self, holds: Holds, is_behind: impl Fn(&Table, &Row) -> bool) -> Replacement {
        let (table, rows) = self.rows_of(holds);
        let gone = rows.iter().filter(|row| is_behind(table, row));
        self.replacement(holds, gone.cloned().collect(), Vec::new())
    }

    /// An old copy of one table, or of all.
    fn rolled_back(&self, holds: Option<Holds>, random: &mut Random) -> Change {
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
        let shown = match holds {
            Some(Holds::Ids) => Shown::Lookup,
            _ => Shown::Export,
        };
        Change {
            code: holds.is_none().then_some(Code::Rollback),
            ..Change::new(format!("an old copy of {holds:?}"), shown, replacements)
        }
    }
}
