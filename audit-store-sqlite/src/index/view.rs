//! One moment of the index, as one tenant sees it.

use std::ops::Range;

use audit_core::{Filter, Order, Position, Result, TenantId, TimeRange, Timestamp};
use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension, Params, params};

use super::document::Tokens;
use crate::fault::from_sqlite;

/// Positions in one zone, as a power of two.
pub(super) const ZONE: u32 = 10;
/// Zones that a range of time doesn't touch are scanned with their neighbours when there are only so
/// many between two that it does: starting another scan costs as much.
const GAP: u64 = 4;
/// A range of time with at most so many entries in it is read whole and sorted.
const FEW: usize = 5_000;

/// At most so many hits are compared one by one.
const RARE: usize = 200;

pub(super) const SEQ_BITS: u32 = 40;

/// The number of a document.
pub(super) fn doc(tenant: i64, seq: u64) -> i64 {
    // A tenant never reaches 2^40 entries: 20 years at 1,700 a second.
    tenant << SEQ_BITS | seq.min((1 << SEQ_BITS) - 1) as i64
}

pub(super) fn seq_of(doc: i64) -> u64 {
    (doc & ((1 << SEQ_BITS) - 1)) as u64
}

/// An entry that the index knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) seq: u64,
    pub(crate) occurred_at: i64,
}

/// Is handed what is found, and says whether it wants more.
pub(crate) type Each<'f> = &'f mut dyn FnMut(Found) -> Result<bool>;

/// One moment of the index, as one tenant sees it.
#[derive(Debug)]
pub(crate) struct View<'c> {
    conn: &'c Connection,
    tokens: Tokens,
    tenant: i64,
    first: u64,
    through: u64,
}

impl<'c> View<'c> {
    /// Must be made, and used, within one transaction.
    pub(super) fn new(conn: &'c Connection, tenant: TenantId) -> Result<Self> {
        let key = one::<[u8; 16]>(conn, "SELECT key FROM secret", [])?.unwrap_or_default();
        let (tenant, first, through) = conn
            .prepare_cached("SELECT no, first, through FROM tenants WHERE id = ?1")
            .and_then(|mut statement| {
                statement
                    .query_row([tenant.as_uuid().as_bytes()], |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                    })
                    .optional()
            })
            .map_err(from_sqlite)?
            .unwrap_or((0, 0_i64, 0_i64));
        Ok(Self {
            conn,
            tokens: Tokens::new(&key),
            tenant,
            first: first as u64,
            through: through as u64,
        })
    }

    /// The position up to which the tenant's log is indexed (exclusive).
    pub(crate) fn through(&self) -> u64 {
        self.through
    }

    /// The positions within these of which everything that an entry has here is there.
    pub(crate) fn held(&self, seqs: Range<u64>) -> Result<Vec<u64>> {
        if self.tenant == 0 {
            return Ok(Vec::new());
        }
        self.conn
            .prepare_cached(
                "SELECT d.doc FROM documents d
                 WHERE d.doc >= ?1 AND d.doc < ?2
                   AND EXISTS (SELECT 1 FROM words_docsize w WHERE w.id = d.doc)
                   AND EXISTS (SELECT 1 FROM occurred o WHERE o.tenant = ?3
                               AND o.occurred_at = d.occurred_at AND o.seq = d.doc & ?4)
                 ORDER BY d.doc",
            )
            .and_then(|mut statement| {
                statement
                    .query_map(
                        params![
                            doc(self.tenant, seqs.start),
                            doc(self.tenant, seqs.end),
                            self.tenant,
                            (1_i64 << SEQ_BITS) - 1
                        ],
                        |row| row.get(0).map(seq_of),
                    )?
                    .collect()
            })
            .map_err(from_sqlite)
    }

    /// Whether all positions from `seq` up to [`through`](Self::through) are indexed.
    pub(crate) fn holds_from(&self, seq: u64) -> bool {
        self.first <= seq
    }

    /// The first position, of those that are indexed, that the log accepted at this time or later;
    /// [`through`](Self::through) when there is none.
    pub(crate) fn accepted_since(&self, time: Timestamp) -> Result<u64> {
        let (mut below, mut above) = (0, self.through);
        while below < above {
            let middle = below.midpoint(above);
            // The next one that is there: what was pruned may be missing, and sorts low.
            let next: Option<i64> = one(
                self.conn,
                "SELECT created_at FROM documents WHERE doc BETWEEN ?1 AND ?2 ORDER BY doc LIMIT 1",
                [doc(self.tenant, middle), doc(self.tenant, above)],
            )?;
            match next {
                Some(created_at) if created_at < time.as_micros() => below = middle + 1,
                _ => above = middle,
            }
        }
        Ok(below)
    }

    /// Hands out what the filter's conditions, query and range of `occurred_at` find within these
    /// positions, in their order. May hand out too much, never too little of what is indexed.
    pub(crate) fn each_hit(
        &self,
        filter: &Filter,
        seqs: Range<u64>,
        order: Order,
        each: Each<'_>,
    ) -> Result<()> {
        let seqs = seqs.start..seqs.end.min(self.through);
        let expression = self.tokens.expression(self.tenant, filter);
        let occurred = filter.occurred;
        if expression.is_none() && !occurred.is_unbounded() {
            let mut few = Vec::new();
            let all = self.each_occurred(
                occurred,
                None,
                seqs.clone(),
                Order::Ascending,
                &mut |found| {
                    few.push(found);
                    Ok(few.len() <= FEW)
                },
            )?;
            if all {
                few.sort_unstable_by_key(|found| found.seq);
                if order == Order::Descending {
                    few.reverse();
                }
                for found in few {
                    if !each(found)? {
                        break;
                    }
                }
                return Ok(());
            }
        }
        let mut runs = match occurred.is_unbounded() {
            true => vec![seqs],
            false => self.zones(occurred, seqs)?,
        };
        if order == Order::Descending {
            runs.reverse();
        }
        for run in runs {
            if !self.each_in(expression.as_deref(), occurred, run, order, each)? {
                break;
            }
        }
        Ok(())
    }

    /// As [`each_hit`](Self::each_hit), for callers to whom comparing an entry is cheap: when the
    /// conditions that are often rare have few hits, the others are left to the caller. To skip
    /// through the long posting lists of a severity costs more for each hit.
    pub(crate) fn each_candidate(
        &self,
        filter: &Filter,
        seqs: Range<u64>,
        order: Order,
        each: Each<'_>,
    ) -> Result<()> {
        let mut rare = filter.clone();
        rare.severity.clear();
        rare.outcome.clear();
        rare.action_type.clear();
        rare.action.clear();
        rare.resource_type.clear();
        if rare != *filter && !rare.conditions().is_empty() {
            let mut hits = Vec::new();
            self.each_hit(&rare, seqs.clone(), order, &mut |found| {
                hits.push(found);
                Ok(hits.len() <= RARE)
            })?;
            if hits.len() <= RARE {
                for found in hits {
                    if !each(found)? {
                        break;
                    }
                }
                return Ok(());
            }
        }
        self.each_hit(filter, seqs, order, each)
    }

    fn each_in(
        &self,
        expression: Option<&str>,
        occurred: TimeRange,
        seqs: Range<u64>,
        order: Order,
        each: Each<'_>,
    ) -> Result<bool> {
        if seqs.is_empty() {
            return Ok(true);
        }
        let (from, to) = micros(occurred);
        let (low, high) = (doc(self.tenant, seqs.start), doc(self.tenant, seqs.end - 1));
        // FTS5 gives rowids in order, either way; the times are looked up beside it.
        let sql = match (expression.is_some(), order) {
            (true, Order::Ascending) => {
                "SELECT d.doc, d.occurred_at FROM words w CROSS JOIN documents d ON d.doc = w.rowid
                 WHERE w.words MATCH ?5 AND w.rowid BETWEEN ?1 AND ?2
                 AND d.occurred_at >= ?3 AND d.occurred_at < ?4 ORDER BY w.rowid"
            }
            (true, Order::Descending) => {
                "SELECT d.doc, d.occurred_at FROM words w CROSS JOIN documents d ON d.doc = w.rowid
                 WHERE w.words MATCH ?5 AND w.rowid BETWEEN ?1 AND ?2
                 AND d.occurred_at >= ?3 AND d.occurred_at < ?4 ORDER BY w.rowid DESC"
            }
            (false, Order::Ascending) => {
                "SELECT doc, occurred_at FROM documents WHERE doc BETWEEN ?1 AND ?2
                 AND occurred_at >= ?3 AND occurred_at < ?4 AND ?5 IS NULL ORDER BY doc"
            }
            (false, Order::Descending) => {
                "SELECT doc, occurred_at FROM documents WHERE doc BETWEEN ?1 AND ?2
                 AND occurred_at >= ?3 AND occurred_at < ?4 AND ?5 IS NULL ORDER BY doc DESC"
            }
        };
        self.hand_out(sql, params![low, high, from, to, expression], each)
    }

    /// Hands out entries within these positions in the order of `occurred_at`, ties by position,
    /// behind `after`. Returns whether it came to the end.
    pub(crate) fn each_occurred(
        &self,
        occurred: TimeRange,
        after: Option<Position>,
        seqs: Range<u64>,
        order: Order,
        each: Each<'_>,
    ) -> Result<bool> {
        let (mut from, mut to) = micros(occurred);
        let seqs = seqs.start..seqs.end.min(self.through);
        if seqs.is_empty() {
            return Ok(true);
        }
        let (low, high) = (seqs.start as i64, (seqs.end - 1) as i64);
        let sql = match order {
            Order::Ascending => {
                "SELECT seq, occurred_at FROM occurred WHERE tenant = ?1
                 AND (occurred_at, seq) > (?2, ?3) AND occurred_at < ?4 AND seq BETWEEN ?5 AND ?6
                 ORDER BY occurred_at, seq"
            }
            Order::Descending => {
                "SELECT seq, occurred_at FROM occurred WHERE tenant = ?1
                 AND (occurred_at, seq) < (?2, ?3) AND occurred_at >= ?4 AND seq BETWEEN ?5 AND ?6
                 ORDER BY occurred_at DESC, seq DESC"
            }
        };
        let mut edge = -1;
        if order == Order::Ascending {
            if let Some(after) = after.filter(|after| after.occurred_at.as_micros() >= from) {
                (from, edge) = (after.occurred_at.as_micros(), after.seq as i64);
            }
            self.hand_out(sql, params![self.tenant, from, edge, to, low, high], each)
        } else {
            if let Some(after) = after.filter(|after| after.occurred_at.as_micros() < to) {
                (to, edge) = (after.occurred_at.as_micros(), after.seq as i64);
            }
            self.hand_out(sql, params![self.tenant, to, edge, from, low, high], each)
        }
    }

    fn hand_out(&self, sql: &str, params: impl Params, each: Each<'_>) -> Result<bool> {
        let mut statement = self.conn.prepare_cached(sql).map_err(from_sqlite)?;
        let mut rows = statement.query(params).map_err(from_sqlite)?;
        while let Some(row) = rows.next().map_err(from_sqlite)? {
            let doc: i64 = row.get(0).map_err(from_sqlite)?;
            let occurred_at = row.get(1).map_err(from_sqlite)?;
            if !each(Found {
                seq: seq_of(doc),
                occurred_at,
            })? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The parts of these positions in which the range of time can lie, ascending.
    fn zones(&self, occurred: TimeRange, seqs: Range<u64>) -> Result<Vec<Range<u64>>> {
        let (from, to) = micros(occurred);
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut statement = self
            .conn
            .prepare_cached(
                "SELECT zone FROM zones WHERE tenant = ?1 AND zone BETWEEN ?2 AND ?3
                 AND last >= ?4 AND first < ?5 ORDER BY zone",
            )
            .map_err(from_sqlite)?;
        let (low, high) = ((seqs.start >> ZONE) as i64, (seqs.end >> ZONE) as i64);
        let mut rows = statement
            .query(params![self.tenant, low, high, from, to])
            .map_err(from_sqlite)?;
        while let Some(row) = rows.next().map_err(from_sqlite)? {
            let zone = row.get::<_, i64>(0).map_err(from_sqlite)? as u64;
            let (start, end) = (zone << ZONE, (zone + 1) << ZONE);
            match runs.last_mut() {
                Some(run) if run.end + (GAP << ZONE) >= start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        for run in &mut runs {
            *run = run.start.max(seqs.start)..run.end.min(seqs.end);
        }
        Ok(runs)
    }
}

/// A range of time as half-open numbers.
fn micros(range: TimeRange) -> (i64, i64) {
    (
        range.from.map_or(i64::MIN, Timestamp::as_micros),
        range.to.map_or(i64::MAX, Timestamp::as_micros),
    )
}

fn one<T: FromSql>(conn: &Connection, sql: &str, params: impl Params) -> Result<Option<T>> {
    conn.prepare_cached(sql)
        .and_then(|mut statement| statement.query_row(params, |row| row.get(0)).optional())
        .map_err(from_sqlite)
}
