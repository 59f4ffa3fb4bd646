//! Filtered lists: the index up to where it is, and the log's tail behind it.
//!
//! Whatever finds an entry, it is shown only when the filter matches what is stored. Positions below
//! the index's `through` come from its posting lists; those behind are read one by one, with the
//! conditions that SQL can compare. So a list finds what has a receipt, however far the index lags.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

use audit_core::filter::FilterField;
use audit_core::{
    ErrorKind, Filter, Head, Order, Page, PageRequest, Position, Result, Sort, StoredEntry,
    TenantId, Timestamp,
};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use crate::fault::from_sqlite;
use crate::head::first_accepted_at;
use crate::index::{SqliteIndex, View};
use crate::row;

/// In the order of `occurred_at`, a filter with at most so many hits in the index is answered by
/// sorting them; one with more by walking that order and comparing entry by entry. At a million
/// entries both take about as long.
const SORTED: usize = 8_000;
/// Values of one condition that are compared in SQL; with more, only `Filter::matches` compares.
const COMPARED: usize = 256;

/// One page of a tenant's entries. `conn` is within a read transaction in which `head` was read.
pub(crate) fn list(
    conn: &Connection,
    index: &SqliteIndex,
    tenant: TenantId,
    no: i64,
    head: &Head,
    filter: &Filter,
    page: &PageRequest,
) -> Result<Page<StoredEntry>> {
    let mut page = *page;
    page.limit = page.limit.clamp(1, PageRequest::MAX_LIMIT);
    let page = &page;
    let log = Log {
        conn,
        tenant,
        no,
        filter,
        comparison: Comparison::of(filter),
    };
    let seqs = log.positions(head, page)?;
    let mut found = Collected {
        entries: Vec::new(),
        wanted: page.limit + 1,
    };
    let everything = filter.conditions().is_empty()
        && filter.occurred.is_unbounded()
        && filter.q.is_none()
        && page.sort == Sort::Seq;
    if seqs.is_empty() {
        // Nothing to look for.
    } else if everything {
        log.scan(seqs, page.order, &mut found)?;
    } else {
        let outcome = index.view(tenant, |view| {
            if !view.holds_from(seqs.start) {
                return log.without_index(seqs.clone(), page, &mut found);
            }
            let through = view.through().clamp(seqs.start, seqs.end);
            let (indexed, tail) = (seqs.start..through, through..seqs.end);
            match (page.sort, page.order) {
                (Sort::Seq, Order::Ascending) => {
                    log.indexed(view, indexed, page.order, &mut found)?;
                    log.scan(tail, page.order, &mut found)
                }
                (Sort::Seq, Order::Descending) => {
                    log.scan(tail, page.order, &mut found)?;
                    log.indexed(view, indexed, page.order, &mut found)
                }
                (Sort::OccurredAt, _) => log.by_time(view, indexed, tail, page, &mut found),
            }
        });
        match outcome {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::warn!(%error, "the index is damaged: the log itself is read");
                index.condemn();
                found.entries.clear();
                log.without_index(seqs, page, &mut found)?;
            }
            outcome => outcome?,
        }
    }
    Ok(found.into_page(page))
}

/// The entries of a page, and one behind it, which says that there is a next one.
struct Collected {
    entries: Vec<StoredEntry>,
    wanted: usize,
}

impl Collected {
    /// Takes an entry, if it is one; returns whether more are wanted.
    fn take(&mut self, entry: Option<StoredEntry>) -> bool {
        self.entries.extend(entry);
        self.entries.len() < self.wanted
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.wanted
    }

    fn into_page(self, page: &PageRequest) -> Page<StoredEntry> {
        Page::cut(self.entries, page, |stored| stored.entry.position())
    }
}

/// The filter's conditions as far as SQL can compare them, to be added to a WHERE clause that has
/// three parameters of its own.
struct Comparison {
    sql: String,
    values: Vec<Value>,
}

impl Comparison {
    fn of(filter: &Filter) -> Self {
        let mut this = Self {
            sql: String::new(),
            values: Vec::new(),
        };
        for condition in filter.conditions() {
            let column = match condition.field {
                FilterField::UserId => "user_id",
                FilterField::SessionId => "session_id",
                FilterField::ActionType => "action_type",
                FilterField::Action => "action",
                FilterField::ResourceType => "resource_type",
                FilterField::ResourceId => "resource_id",
                FilterField::Severity => "severity",
                FilterField::Outcome => "outcome",
                FilterField::RequestId => "request_id",
                FilterField::TraceId => "trace_id",
                FilterField::RelatedId => {
                    this.sql.push_str(" AND related_resources IS NOT NULL");
                    continue;
                }
                FilterField::IpAddress => {
                    this.sql.push_str(" AND ip_address IS NOT NULL");
                    continue;
                }
            };
            if condition.values.len() <= COMPARED {
                this.any_of(column, condition.values);
            }
        }
        if let Some(from) = filter.occurred.from {
            this.bound("occurred_at >=", from);
        }
        if let Some(to) = filter.occurred.to {
            this.bound("occurred_at <", to);
        }
        this
    }

    fn any_of(&mut self, column: &str, values: Vec<String>) {
        self.sql.push_str(" AND ");
        self.sql.push_str(column);
        self.sql.push_str(" IN (?");
        self.sql.push_str(&",?".repeat(values.len() - 1));
        self.sql.push(')');
        self.values.extend(values.into_iter().map(Value::Text));
    }

    fn bound(&mut self, comparison: &str, time: Timestamp) {
        self.sql.push_str(" AND ");
        self.sql.push_str(comparison);
        self.sql.push_str(" ?");
        self.values.push(Value::Integer(time.as_micros()));
    }

    fn params(&self, own: [i64; 3]) -> impl Iterator<Item = Value> + '_ {
        own.into_iter()
            .map(Value::Integer)
            .chain(self.values.iter().cloned())
    }
}

/// A tenant's entries in the log's file, and what is asked of them.
struct Log<'a> {
    conn: &'a Connection,
    tenant: TenantId,
    no: i64,
    filter: &'a Filter,
    comparison: Comparison,
}

impl Log<'_> {
    /// The positions in which the page lies, as far as the log's own order says.
    fn positions(&self, head: &Head, page: &PageRequest) -> Result<Range<u64>> {
        let present = head.pruned_below..head.size();
        let mut lower = present.start.max(self.filter.from_seq.unwrap_or(0));
        let mut upper = present.end.min(self.filter.to_seq.unwrap_or(u64::MAX));
        if let Some(from) = self.filter.created.from {
            lower = lower.max(first_accepted_at(
                self.conn,
                self.no,
                present.clone(),
                from,
            )?);
        }
        if let Some(to) = self.filter.created.to {
            upper = upper.min(first_accepted_at(self.conn, self.no, present, to)?);
        }
        match (page.sort, page.order, page.after) {
            (Sort::Seq, Order::Ascending, Some(after)) => {
                lower = lower.max(after.seq.saturating_add(1));
            }
            (Sort::Seq, Order::Descending, Some(after)) => upper = upper.min(after.seq),
            _ => {}
        }
        Ok(lower..upper.max(lower))
    }

    /// Reads the entries at these positions, in order, and collects those that match.
    fn scan(&self, seqs: Range<u64>, order: Order, found: &mut Collected) -> Result<()> {
        if found.is_full() {
            return Ok(());
        }
        self.each_in(seqs, order, |entry| found.take(Some(entry)))
    }

    fn each_in(
        &self,
        seqs: Range<u64>,
        order: Order,
        mut each: impl FnMut(StoredEntry) -> bool,
    ) -> Result<()> {
        if seqs.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "SELECT {} FROM entries WHERE tenant = ? AND seq >= ? AND seq < ?{} ORDER BY seq{}",
            row::COLUMNS,
            self.comparison.sql,
            if order == Order::Descending {
                " DESC"
            } else {
                ""
            },
        );
        let mut statement = self.conn.prepare_cached(&sql).map_err(from_sqlite)?;
        let params = self
            .comparison
            .params([self.no, seqs.start as i64, seqs.end as i64]);
        let mut rows = statement
            .query(params_from_iter(params))
            .map_err(from_sqlite)?;
        while let Some(row) = rows.next().map_err(from_sqlite)? {
            let stored = row::stored_entry(row, self.tenant).map_err(from_sqlite)?;
            if self.filter.matches(&stored.entry) && !each(stored) {
                break;
            }
        }
        Ok(())
    }

    /// The entry at a position, when it matches.
    fn matching(&self, seq: u64) -> Result<Option<StoredEntry>> {
        let sql = format!(
            "SELECT {} FROM entries WHERE tenant = ? AND seq >= ? AND seq <= ?{}",
            row::COLUMNS,
            self.comparison.sql,
        );
        let params = self.comparison.params([self.no, seq as i64, seq as i64]);
        let stored = self
            .conn
            .prepare_cached(&sql)
            .and_then(|mut statement| {
                statement
                    .query_row(params_from_iter(params), |row| {
                        row::stored_entry(row, self.tenant)
                    })
                    .optional()
            })
            .map_err(from_sqlite)?;
        Ok(stored.filter(|stored| self.filter.matches(&stored.entry)))
    }

    /// What [`list`] does when the index can't be read.
    fn without_index(
        &self,
        seqs: Range<u64>,
        page: &PageRequest,
        found: &mut Collected,
    ) -> Result<()> {
        match page.sort {
            Sort::Seq => self.scan(seqs, page.order, found),
            Sort::OccurredAt => {
                found.entries = self.best_of(seqs, page, found.wanted)?;
                Ok(())
            }
        }
    }

    /// Collects what the index finds at these positions, in the log's order.
    fn indexed(
        &self,
        view: &View<'_>,
        seqs: Range<u64>,
        order: Order,
        found: &mut Collected,
    ) -> Result<()> {
        if found.is_full() {
            return Ok(());
        }
        view.each_candidate(self.filter, seqs, order, &mut |hit| {
            Ok(found.take(self.matching(hit.seq)?))
        })
    }

    /// Collects in the order of `occurred_at`: the best of the tail, merged with what the index
    /// gives in that order.
    fn by_time(
        &self,
        view: &View<'_>,
        indexed: Range<u64>,
        tail: Range<u64>,
        page: &PageRequest,
        found: &mut Collected,
    ) -> Result<()> {
        let mut tail = self
            .best_of(tail, page, found.wanted)?
            .into_iter()
            .peekable();
        let order = page.order;
        let mut merge = |(occurred_at, seq): (i64, u64)| {
            let earlier = |entry: &StoredEntry| {
                let place = (entry.entry.occurred_at.as_micros(), entry.entry.seq);
                before(order, place, (occurred_at, seq))
            };
            while let Some(entry) = tail.next_if(earlier) {
                if !found.take(Some(entry)) {
                    return Ok(false);
                }
            }
            Ok(found.take(self.matching(seq)?))
        };
        match self.few_hits(view, indexed.clone(), page)? {
            Some(hits) => {
                for hit in hits {
                    if !merge(hit)? {
                        break;
                    }
                }
            }
            None => {
                view.each_occurred(
                    self.filter.occurred,
                    page.after,
                    indexed,
                    order,
                    &mut |hit| merge((hit.occurred_at, hit.seq)),
                )?;
            }
        }
        while !found.is_full()
            && let Some(entry) = tail.next()
        {
            found.take(Some(entry));
        }
        Ok(())
    }

    /// All hits of the filter's conditions behind the page's place, in the order of `occurred_at`;
    /// none when there are no conditions, or too many hits.
    fn few_hits(
        &self,
        view: &View<'_>,
        indexed: Range<u64>,
        page: &PageRequest,
    ) -> Result<Option<Vec<(i64, u64)>>> {
        if self.filter.conditions().is_empty() && self.filter.q.is_none() {
            return Ok(None);
        }
        let mut hits = Vec::new();
        view.each_candidate(self.filter, indexed, page.order, &mut |hit| {
            hits.push((hit.occurred_at, hit.seq));
            Ok(hits.len() <= SORTED)
        })?;
        if hits.len() > SORTED {
            return Ok(None);
        }
        if let Some(after) = page.after.map(place) {
            hits.retain(|hit| before(page.order, after, *hit));
        }
        hits.sort_unstable();
        if page.order == Order::Descending {
            hits.reverse();
        }
        Ok(Some(hits))
    }

    /// The first `wanted` matching entries at these positions in the order of `occurred_at`, behind
    /// the page's place.
    fn best_of(
        &self,
        seqs: Range<u64>,
        page: &PageRequest,
        wanted: usize,
    ) -> Result<Vec<StoredEntry>> {
        // The worst of those kept is on top, and goes when there are too many.
        let mut best = BinaryHeap::with_capacity(wanted.min(1024) + 1);
        let after = page.after.map(place);
        self.each_in(seqs, Order::Ascending, |stored| {
            let own = place(stored.entry.position());
            if after.is_none_or(|after| before(page.order, after, own)) {
                let rank = match page.order {
                    Order::Ascending => own,
                    Order::Descending => (-own.0, u64::MAX - own.1),
                };
                best.push(Ranked { rank, stored });
                if best.len() > wanted {
                    best.pop();
                }
            }
            true
        })?;
        Ok(best
            .into_sorted_vec()
            .into_iter()
            .map(|ranked| ranked.stored)
            .collect())
    }
}

/// An entry by its rank on a page, the first one lowest.
struct Ranked {
    rank: (i64, u64),
    stored: StoredEntry,
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank)
    }
}

/// The place of an entry in the order of `occurred_at`.
fn place(position: Position) -> (i64, u64) {
    (position.occurred_at.as_micros(), position.seq)
}

/// Whether `a` comes before `b`.
fn before<T: PartialOrd>(order: Order, a: T, b: T) -> bool {
    match order {
        Order::Ascending => a < b,
        Order::Descending => a > b,
    }
}
