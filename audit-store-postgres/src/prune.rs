//! Pruning: a short transaction that makes a prefix invisible, and steps that remove it.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use audit_core::tlog::{Hash, Timestamp};
use audit_core::{
    Batch, Control, Counter, Error, ErrorKind, Head, Prune, Pruned, Result, TenantId, TenantScope,
    only_receipt,
};
use sqlx_core::executor::Executor as _;
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_postgres::{PgConnection, PgRow};
use tokio::time::Instant;

use crate::append::{is_gone_next_time, lock_head};
use crate::fault::from_sqlx;
use crate::head::{TILE, readable_head, tree_at, unknown_tenant};
use crate::pool::{Role, begin, begin_statement};
use crate::row;
use crate::store::PostgresStore;

/// How often a prune is worked out again because another came first.
const ATTEMPTS: usize = 5;

/// Rows that one step removes at most: appends to that tenant wait for its commit.
const STEP_ROWS: i64 = 100;

/// So that these appends don't wait for the disk as well. A step that a crash undoes is done again: nothing
/// outside the database may follow from its commit.
const UNFLUSHED: &str = "SET LOCAL synchronous_commit = off";

/// Rows of deleted tenants that one step removes at most: nobody waits for them.
const DELETED_ROWS: i64 = 500;

/// What a prune will do, worked out without the head's lock. Nothing of it changes later: entries
/// below a position are never added, and an erasure changes no leaf and no counter.
#[derive(Debug)]
struct Plan {
    /// Where the earlier prune ended.
    was: u64,
    before: Timestamp,
    below: u64,
    root: Hash,
    counters: Vec<Counter>,
    kept: Kept,
}

/// Leaf data that must stay, by columns.
#[derive(Debug, Default)]
struct Kept {
    seqs: Vec<i64>,
    kinds: Vec<&'static str>,
    data: Vec<String>,
}

/// When partitions are looked at that may have become free.
///
/// While a reader, an export say, holds the table, a partition can't be dropped, and whoever waits for
/// it has all appends wait behind: so it is tried again after a while that doubles each time.
#[derive(Debug, Default)]
pub(crate) struct Drops {
    is_idle: bool,
    not_before: Option<Instant>,
    wait: Duration,
}

/// The first and the longest while.
const WAITS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);

impl Drops {
    /// Something was pruned, or a tenant was deleted.
    pub(crate) fn look(&mut self) {
        self.is_idle = false;
    }

    fn is_due(&self, now: Instant) -> bool {
        !self.is_idle && self.not_before.is_none_or(|then| now >= then)
    }

    /// Whether one was dropped, which says that there may be more; none within when the table wasn't
    /// to be had, none at all when it failed.
    fn tried(&mut self, now: Instant, dropped: Option<&Option<bool>>) {
        if let Some(Some(dropped)) = dropped {
            *self = Self {
                is_idle: !dropped,
                ..Self::default()
            };
        } else {
            self.wait = (2 * self.wait).clamp(*WAITS.start(), *WAITS.end());
            self.not_before = Some(now + self.wait);
        }
    }
}

impl PostgresStore {
    pub(crate) async fn prune_prefix(&self, scope: &TenantScope, prune: &Prune) -> Result<Pruned> {
        for _ in 0..ATTEMPTS {
            let plan = self.plan_prune(scope, prune).await?;
            let entries = plan.below - plan.was;
            if entries == 0 || prune.dry_run {
                return Ok(Pruned::new(plan.below, entries, None));
            }
            match self.try_prune(scope, prune, &plan).await {
                Ok(Some(done)) => {
                    self.drops().look();
                    return Ok(done);
                }
                Ok(None) => {}
                Err(error) if is_gone_next_time(&error) => self.months().clear(),
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "other prunes of the log always came first",
        )
        .with_tenant(scope.tenant()))
    }

    async fn plan_prune(&self, scope: &TenantScope, prune: &Prune) -> Result<Plan> {
        let tenant = scope.tenant();
        // It reads all of the prefix, which may be the most of a large log.
        let start = begin_statement(Role::Reader, Some(tenant));
        let mut tx = begin(
            self.pools().pool(Role::Reader),
            format!("{start}SET LOCAL statement_timeout = '10min'"),
        )
        .await?;
        let head = readable_head(&mut tx, tenant).await?;
        let (protection, now) = self.protection(&mut tx).await?;
        let before = protection.admit_prune(tenant, prune, now)?;
        let was = head.pruned_below;
        let required = required_from(&mut tx, &head, prune.but_for).await?;
        let bound = required.min(prune.below_at_most).max(was);
        let first: Option<(i64,)> = query_as(
            "SELECT seq FROM audit.tenant_events
             WHERE created_at >= $1 AND seq >= $2 ORDER BY created_at, seq LIMIT 1",
        )
        .bind(row::instant(before))
        .bind(row::signed(was))
        .fetch_optional(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        let below = match first {
            Some((first,)) => row::unsigned(first)?.min(bound),
            None => bound,
        };
        let mut plan = Plan {
            was,
            before,
            below,
            root: Hash([0; 32]),
            counters: Vec::new(),
            kept: Kept::default(),
        };
        if below == was || prune.dry_run {
            return Ok(plan);
        }
        plan.root = tree_at(&mut tx, &head, below).await?.root();
        plan.counters = count(&mut tx, was..below).await?;
        let straddling = was.max(below / TILE * TILE);
        let earlier = "AND kind <> 'event' AND kind IN ('key', 'epoch')";
        for (seqs, only) in [(was..straddling, earlier), (straddling..below, "")] {
            plan.kept.add(&select(&mut tx, seqs, only).await?, &head)?;
        }
        Ok(plan)
    }

    /// Whether an `erase` entry stands at a position or behind it. Whoever asks holds the head's lock,
    /// so that none is on its way; the login that prunes reads no entry.
    async fn is_erased_since(&self, tenant: TenantId, position: u64) -> Result<bool> {
        let start = begin_statement(Role::Reader, Some(tenant));
        let mut tx = begin(self.pools().pool(Role::Reader), start).await?;
        let (is_erased,): (bool,) = query_as(
            "SELECT EXISTS (SELECT FROM audit.tenant_events WHERE seq >= $1 AND kind = 'erase'
             AND created_at >= (SELECT created_at FROM audit.tenant_ids WHERE seq = $1 - 1))",
        )
        .bind(row::signed(position))
        .fetch_one(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        Ok(is_erased)
    }

    /// None when the log has changed since the plan was made.
    async fn try_prune(
        &self,
        scope: &TenantScope,
        prune: &Prune,
        plan: &Plan,
    ) -> Result<Option<Pruned>> {
        let tenant = scope.tenant();
        let patience = self.options().lock_timeout;
        let mut tx = self
            .begin_append(Role::Maintainer, Some(tenant), patience)
            .await?;
        let (status, head) = lock_head(&mut tx, tenant)
            .await?
            .ok_or_else(|| unknown_tenant(tenant))?;
        status.admit_read(tenant)?;
        let (protection, now) = self.protection(&mut tx).await?;
        let before = protection.admit_prune(tenant, prune, now)?;
        // A clock that was set back, too.
        if head.pruned_below != plan.was
            || before < plan.before
            || required_from(&mut tx, &head, None).await? < plan.below
        {
            return Ok(None);
        }
        if let Some(since) = prune.unless_erased_since {
            prune.admit_erasure(self.is_erased_since(tenant, since).await?)?;
        }
        let control = Control::Prune {
            below: plan.below,
            root: plan.root,
            before: plan.before,
            basis: prune.basis.clone(),
        };
        let batch = Batch::new(scope.clone(), vec![prune.act.prepare(tenant, &control)]);
        let sealed = self.seal_all(&mut tx, &[(head, vec![&batch])]).await?;
        let months = sealed.months.clone();
        let receipt = only_receipt(sealed.into_receipts()?)?;

        let names = |name: fn(&Counter) -> &'static str| -> Vec<&'static str> {
            plan.counters.iter().map(name).collect()
        };
        query("SELECT audit.prune_below($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
            .bind(tenant.into_uuid())
            .bind(row::signed(plan.below))
            .bind(row::signed(receipt.seq))
            .bind(plan.counters.iter().map(|c| c.day).collect::<Vec<_>>())
            .bind(names(|c| c.action_type.as_str()))
            .bind(names(|c| c.severity.as_str()))
            .bind(names(|c| c.outcome.as_str()))
            .bind(
                plan.counters
                    .iter()
                    .map(|c| row::signed(c.count))
                    .collect::<Vec<_>>(),
            )
            .bind(&plan.kept.seqs)
            .bind(&plan.kept.kinds)
            .bind(&plan.kept.data)
            .execute(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        self.months().extend(months);
        Ok(Some(Pruned::new(
            plan.below,
            plan.below - plan.was,
            Some(receipt),
        )))
    }

    /// One step of [`LogStore::sweep`](audit_core::LogStore::sweep): whole partitions first, whose
    /// rows then need not be removed one by one, then what is pruned, then what deleted tenants left.
    pub(crate) async fn sweep_step(&self) -> Result<bool> {
        let is_due = self.drops().is_due(Instant::now());
        if is_due {
            let dropped = self
                .maintain("SELECT audit.drop_pruned_partition()", "")
                .await;
            self.drops().tried(Instant::now(), dropped.as_ref().ok());
            if dropped? == Some(true) {
                return Ok(true);
            }
        }
        let step = format!("SELECT audit.sweep_step({STEP_ROWS})");
        if self.maintain(&step, UNFLUSHED).await? == Some(true) {
            return Ok(true);
        }
        let step = format!("SELECT audit.sweep_deleted({DELETED_ROWS})");
        Ok(self.maintain(&step, "").await? == Some(true))
    }

    async fn maintain(&self, call: &str, settings: &'static str) -> Result<Option<bool>> {
        let patience = self.options().lock_timeout;
        let mut tx = self.begin_append(Role::Maintainer, None, patience).await?;
        if !settings.is_empty() {
            tx.execute(settings).await.map_err(from_sqlx)?;
        }
        let (done,): (Option<bool>,) = query_as(call)
            .fetch_one(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        Ok(done)
    }
}

/// The first position that a required consumer, other than `but_for`, still needs.
async fn required_from(conn: &mut PgConnection, head: &Head, but_for: Option<&str>) -> Result<u64> {
    let (position,): (Option<i64>,) = query_as(
        "SELECT min(position) FROM audit.tenant_cursors
         WHERE required AND consumer IS DISTINCT FROM $1",
    )
    .bind(but_for)
    .fetch_one(conn)
    .await
    .map_err(from_sqlx)?;
    let position = position.map(row::unsigned).transpose()?;
    Ok(position.unwrap_or(u64::MAX).min(head.size()))
}

/// The times of acceptance that positions have, by which partitions are pruned.
const WITHIN: &str = "seq >= $1 AND seq < $2
    AND created_at >= (SELECT created_at FROM audit.tenant_ids WHERE seq = $1)
    AND created_at <= (SELECT created_at FROM audit.tenant_ids WHERE seq = $2 - 1)";

/// Counts entries as the counters do.
async fn count(conn: &mut PgConnection, seqs: Range<u64>) -> Result<Vec<Counter>> {
    let sql = format!(
        "SELECT floor(extract(epoch FROM created_at) / 86400)::integer, action_type, severity,
             outcome, count(*)
         FROM audit.tenant_events WHERE {WITHIN} GROUP BY 1, 2, 3, 4"
    );
    let rows = query(&sql)
        .bind(row::signed(seqs.start))
        .bind(row::signed(seqs.end))
        .fetch_all(conn)
        .await
        .map_err(from_sqlx)?;
    rows.iter().map(decode_counter).collect()
}

/// Decodes day, operation, severity, outcome and count.
pub(crate) fn decode_counter(r: &PgRow) -> Result<Counter> {
    Ok(Counter {
        day: row::get(r, 0)?,
        action_type: row::name(r, 1)?,
        severity: row::name(r, 2)?,
        outcome: row::name(r, 3)?,
        count: row::position(r, 4)?,
    })
}

async fn select(conn: &mut PgConnection, seqs: Range<u64>, only: &str) -> Result<Vec<PgRow>> {
    if seqs.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT {} FROM audit.tenant_events WHERE {WITHIN} {only} ORDER BY created_at, seq",
        row::COLUMNS
    );
    query(&sql)
        .bind(row::signed(seqs.start))
        .bind(row::signed(seqs.end))
        .fetch_all(conn)
        .await
        .map_err(from_sqlx)
}

impl Kept {
    fn add(&mut self, rows: &[PgRow], head: &Head) -> Result<()> {
        for r in rows {
            let stored = row::stored_entry(r, 0, head.tenant)?;
            self.seqs.push(row::signed(stored.entry.seq));
            self.kinds.push(stored.entry.kind.as_str());
            self.data.push(stored.leaf_data());
        }
        Ok(())
    }
}
