//! Lists and scans: one statement that follows an index in its order, with every condition that SQL
//! can compare; what it can't (full text, related resources) is compared on the entries themselves,
//! batch by batch.

use std::ops::Range;

use audit_core::filter::FilterField;
use audit_core::tlog::Kind;
use audit_core::{
    Filter, Head, Order, Page, PageRequest, Position, Result, Sort, StoredEntry, TenantId,
};
use futures_util::TryStreamExt as _;
use sqlx_core::executor::Executor as _;
use sqlx_core::query_builder::QueryBuilder;
use sqlx_postgres::{PgConnection, PgRow, Postgres};

use crate::fault::from_sqlx;
use crate::row;

/// Entries that are compared in one batch where SQL can't compare them.
const BATCH: usize = 256;

/// What raw JSON there is in an entry, without reading it.
const RAW_BYTES: &str = "coalesce(octet_length(before_state), 0) \
    + coalesce(octet_length(after_state), 0) + coalesce(octet_length(metadata), 0)";

/// One page of the tenant that the transaction named, of which `head` was read in it.
pub(crate) async fn list(
    conn: &mut PgConnection,
    head: &Head,
    filter: &Filter,
    page: &PageRequest,
) -> Result<Page<StoredEntry>> {
    let mut page = *page;
    page.limit = page.limit.clamp(1, PageRequest::MAX_LIMIT);
    let wanted = page.limit + 1;
    let batch = if is_compared_in_sql(filter) {
        wanted
    } else {
        BATCH
    };
    let seqs = head.positions(filter);
    if may_sort(filter, page.sort) {
        conn.execute("SET LOCAL enable_sort = on; SET LOCAL enable_bitmapscan = on")
            .await
            .map_err(from_sqlx)?;
    }
    let mut found: Vec<StoredEntry> = Vec::new();
    let mut after = page.after;
    while !seqs.is_empty() && found.len() < wanted {
        let mut sql = QueryBuilder::new("SELECT ");
        sql.push(row::COLUMNS).push(" FROM audit.tenant_events");
        push_range(&mut sql, head, &seqs);
        push_filter(&mut sql, filter);
        push_place(&mut sql, page.sort, page.order, after);
        push_order(&mut sql, page.sort, page.order);
        sql.push(" LIMIT ").push_bind(batch as i64);
        let rows = sql.build().fetch_all(&mut *conn).await.map_err(from_sqlx)?;
        for r in &rows {
            let stored = row::stored_entry(r, 0, head.tenant)?;
            after = Some(stored.entry.position());
            if found.len() < wanted && filter.matches(&stored.entry) {
                found.push(stored);
            }
        }
        if rows.len() < batch {
            break;
        }
    }
    Ok(Page::cut(found, &page, |stored| stored.entry.position()))
}

/// Which entries are looked at, oldest first.
pub(crate) struct Window {
    /// Their positions.
    pub(crate) seqs: Range<u64>,
    /// The most that are read.
    pub(crate) entries: usize,
    /// No further one is kept when so much raw JSON was read.
    pub(crate) bytes: usize,
    pub(crate) counted_by: CountedBy,
}

/// Who counts a window's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum CountedBy {
    /// The server, which sends nothing beyond them.
    Server,
    /// The reader: the server counts none, which takes it as long as half of the rest. What it sends beyond
    /// them is read, and not kept: for windows that seldom have more.
    Reader,
}

/// What a window holds.
pub(crate) struct Found {
    tenant: TenantId,
    filter: Filter,
    window: Window,
    rows: Vec<PgRow>,
    bytes: usize,
}

impl Found {
    /// Takes a row. Whether there is room for another one.
    fn take(&mut self, row: PgRow) -> Result<bool> {
        self.bytes += row::raw_bytes(&row, 0)?;
        self.rows.push(row);
        Ok(self.bytes < self.window.bytes)
    }

    /// The first position that was not looked at.
    pub(crate) fn next(&self) -> Result<u64> {
        let is_full = self.rows.len() == self.window.entries || self.bytes >= self.window.bytes;
        match self.rows.last() {
            Some(last) if is_full => {
                let last = row::position(last, 0).map_err(|e| e.with_tenant(self.tenant))?;
                Ok(last + 1)
            }
            _ => Ok(self.window.seqs.start.max(self.window.seqs.end)),
        }
    }

    /// How much raw JSON an entry has on average; none where nothing was found.
    pub(crate) fn average(&self) -> Option<usize> {
        self.bytes.checked_div(self.rows.len())
    }

    /// The entries that match, each decoded, and compared where SQL couldn't, when it is taken.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = Result<StoredEntry>> {
        let everything = self.filter.is_empty();
        self.rows.into_iter().filter_map(move |r| {
            let stored = row::stored_entry(&r, 0, self.tenant);
            match stored {
                Ok(stored) if !everything && !self.filter.matches(&stored.entry) => None,
                stored => Some(stored),
            }
        })
    }
}

/// Reads the first entries of a window that match, as far as SQL can compare. Leaves are not recomputed.
pub(crate) async fn window(
    conn: &mut PgConnection,
    head: &Head,
    filter: &Filter,
    window: Window,
) -> Result<Found> {
    let mut found = Found {
        tenant: head.tenant,
        filter: filter.clone(),
        window,
        rows: Vec::new(),
        bytes: 0,
    };
    let window = &found.window;
    if window.seqs.is_empty() || window.entries == 0 {
        return Ok(found);
    }
    let mut sql = QueryBuilder::new("SELECT ");
    sql.push(row::COLUMNS);
    match window.counted_by {
        CountedBy::Reader => push_window(&mut sql, head, filter, window),
        CountedBy::Server => {
            sql.push(" FROM (SELECT *, sum(").push(RAW_BYTES);
            sql.push(") OVER (ORDER BY created_at, seq) - (");
            sql.push(RAW_BYTES).push(") AS bytes_before FROM (SELECT *");
            push_window(&mut sql, head, filter, window);
            sql.push(") first) sized WHERE bytes_before < ")
                .push_bind(window.bytes as i64);
        }
    }
    // To its end, at once: a statement that stood open while the reader takes its time would be timed.
    let query = sql.build();
    let mut rows = query.fetch(conn);
    let mut has_room = true;
    while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
        if has_room {
            has_room = found.take(row)?;
        }
    }
    drop(rows);
    Ok(found)
}

fn push_window(
    sql: &mut QueryBuilder<'_, Postgres>,
    head: &Head,
    filter: &Filter,
    window: &Window,
) {
    sql.push(" FROM audit.tenant_events");
    push_range(sql, head, &window.seqs);
    push_filter(sql, filter);
    push_order(sql, Sort::Seq, Order::Ascending);
    sql.push(" LIMIT ").push_bind(window.entries as i64);
}

fn is_compared_in_sql(filter: &Filter) -> bool {
    filter.q.is_none() && filter.related_id.is_empty()
}

/// Whether only control entries match: no event may have their actions.
fn is_of_control(filter: &Filter) -> bool {
    let is_control = |action: &String| {
        let kind = action.strip_prefix("log.").map(str::parse::<Kind>);
        matches!(kind, Some(Ok(kind)) if kind.is_control())
    };
    !filter.action.is_empty() && filter.action.iter().all(is_control)
}

/// Whether there may be an index for a condition and none for it in the page's order: then what has
/// that user or resource may be sorted, if that is thought to be less than walking the tenant's log
/// in the order.
fn may_sort(filter: &Filter, sort: Sort) -> bool {
    match sort {
        Sort::Seq => filter.user_id.len() > 1 || filter.resource_id.len() > 1,
        Sort::OccurredAt => !filter.user_id.is_empty() || !filter.resource_id.is_empty(),
    }
}

/// The positions, and the times of acceptance that go with them: by these, partitions are pruned.
fn push_range(sql: &mut QueryBuilder<'_, Postgres>, head: &Head, seqs: &Range<u64>) {
    sql.push(" WHERE created_at <= ");
    if seqs.end < head.size() {
        sql.push("(SELECT created_at FROM audit.tenant_ids WHERE seq = ")
            .push_bind(row::signed(seqs.end.saturating_sub(1)))
            .push(") AND seq < ")
            .push_bind(row::signed(seqs.end));
    } else {
        sql.push_bind(row::instant(head.created_at))
            .push(" AND seq < ")
            .push_bind(row::signed(head.size()));
    }
    if seqs.start > 0 {
        sql.push(" AND created_at >= (SELECT created_at FROM audit.tenant_ids WHERE seq = ")
            .push_bind(row::signed(seqs.start))
            .push(") AND seq >= ")
            .push_bind(row::signed(seqs.start));
    }
}

fn push_filter(sql: &mut QueryBuilder<'_, Postgres>, filter: &Filter) {
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
                sql.push(" AND related_resources IS NOT NULL");
                continue;
            }
            FilterField::IpAddress => {
                sql.push(" AND ip_address = ANY (")
                    .push_bind(condition.values)
                    .push("::text[]::inet[])");
                continue;
            }
        };
        sql.push(" AND ").push(column);
        match <[String; 1]>::try_from(condition.values) {
            Ok([value]) => sql.push(" = ").push_bind(value),
            Err(values) => sql.push(" = ANY (").push_bind(values).push(")"),
        };
    }
    if is_of_control(filter) {
        // They have an index of their own.
        sql.push(" AND kind <> 'event'");
    }
    for (column, range) in [
        ("occurred_at", filter.occurred),
        ("created_at", filter.created),
    ] {
        if let Some(from) = range.from {
            sql.push(" AND ")
                .push(column)
                .push(" >= ")
                .push_bind(row::instant(from));
        }
        if let Some(to) = range.to {
            sql.push(" AND ")
                .push(column)
                .push(" < ")
                .push_bind(row::instant(to));
        }
    }
}

/// What lies behind a place. Its time is compared by itself, too, since that prunes partitions.
fn push_place(
    sql: &mut QueryBuilder<'_, Postgres>,
    sort: Sort,
    order: Order,
    after: Option<Position>,
) {
    let Some(after) = after else { return };
    let (column, time) = match sort {
        Sort::Seq => ("created_at", after.created_at),
        Sort::OccurredAt => ("occurred_at", after.occurred_at),
    };
    let comparison = match order {
        Order::Ascending => ">",
        Order::Descending => "<",
    };
    sql.push(format_args!(" AND {column} {comparison}= "))
        .push_bind(row::instant(time))
        .push(format_args!(" AND ({column}, seq) {comparison} ("))
        .push_bind(row::instant(time))
        .push(", ")
        .push_bind(row::signed(after.seq))
        .push(")");
}

fn push_order(sql: &mut QueryBuilder<'_, Postgres>, sort: Sort, order: Order) {
    sql.push(match (sort, order) {
        (Sort::Seq, Order::Ascending) => " ORDER BY created_at, seq",
        (Sort::Seq, Order::Descending) => " ORDER BY created_at DESC, seq DESC",
        (Sort::OccurredAt, Order::Ascending) => " ORDER BY occurred_at, seq",
        (Sort::OccurredAt, Order::Descending) => " ORDER BY occurred_at DESC, seq DESC",
    });
}
