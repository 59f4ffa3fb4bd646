//! Pruning: a short transaction that makes a prefix invisible, and steps that remove it.

use std::ops::Range;
use std::time::{Duration, Instant};

use audit_core::tlog::{Hash, Kind, Timestamp};
use audit_core::{
    Batch, Control, Counter, Error, ErrorKind, EventId, Prune, Pruned, Result, Tally, TenantId,
    TenantScope, only_receipt,
};
use rusqlite::{Connection, params};

use crate::erase::forget_content;
use crate::fault::from_sqlite;
use crate::reader::{Reader, readable_tenant, unknown_tenant};
use crate::retention::protection;
use crate::schema::TILE;
use crate::writer::{Ledger, Writer};
use crate::{SqliteStore, head, row};

/// How often a prune is worked out again because another came first.
const ATTEMPTS: usize = 5;

/// How long one sweep step may hold the writer.
const STEP: Duration = Duration::from_millis(20);

/// Rows that one step removes at most: its commit takes time, too.
const STEP_ROWS: u64 = 500;

/// Rows that are removed between two looks at the clock.
const LOOK_ROWS: u64 = 100;

/// Pages that are given back to the file system between two looks at the clock.
const STEP_PAGES: u32 = 64;

/// Free pages that stay in the file: what is appended next fills them.
const SPARE_PAGES: u64 = 256;

/// What a prune will do, worked out beside the writer. Nothing of it changes later: entries below a
/// position are never added, and an erasure changes no leaf and no counter.
#[derive(Debug)]
struct Plan {
    /// Where the earlier prune ended.
    was: u64,
    before: Timestamp,
    below: u64,
    root: Hash,
    counters: Vec<Counter>,
    kept: Vec<KeptLeaf>,
}

#[derive(Debug)]
struct KeptLeaf {
    seq: u64,
    kind: Kind,
    hash: Hash,
    data: String,
}

impl SqliteStore {
    pub(crate) async fn prune_prefix(&self, scope: &TenantScope, prune: &Prune) -> Result<Pruned> {
        let tenant = scope.tenant();
        for _ in 0..ATTEMPTS {
            let (wanted, now) = (prune.clone(), self.time().now());
            let plan = self
                .read(move |reader| plan(reader, tenant, &wanted, now))
                .await?;
            let entries = plan.below - plan.was;
            if entries == 0 || prune.dry_run {
                return Ok(Pruned::new(plan.below, entries, None));
            }
            let (scope, prune) = (scope.clone(), prune.clone());
            let done = self
                .writer()?
                .run(move |writer: &mut Writer| {
                    writer.transact(|conn, ledger| ledger.prune(conn, &scope, &prune, &plan))
                })
                .await?;
            if let Some(done) = done {
                return Ok(done);
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "other prunes of the log always came first",
        )
        .with_tenant(tenant))
    }
}

/// The first position that a required consumer, other than `but_for`, still needs, in a log of `size`
/// entries.
fn required_from(conn: &Connection, no: i64, size: u64, but_for: Option<&str>) -> Result<u64> {
    conn.prepare_cached(
        "SELECT coalesce(min(position), ?2) FROM cursors
         WHERE tenant = ?1 AND required = 1 AND consumer IS NOT ?3",
    )
    .and_then(|mut statement| {
        statement.query_row(params![no, size as i64, but_for], |r| row::position(r, 0))
    })
    .map(|position| position.min(size))
    .map_err(from_sqlite)
}

/// Whether an `erase` entry stands at a position or behind it.
fn is_erased_since(conn: &Connection, no: i64, position: u64) -> Result<bool> {
    conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM entries WHERE tenant = ?1 AND seq >= ?2 AND kind = 'erase')",
    )
    .and_then(|mut statement| {
        statement.query_row(params![no, position as i64], |r| r.get::<_, bool>(0))
    })
    .map_err(from_sqlite)
}

fn plan(reader: &mut Reader, tenant: TenantId, prune: &Prune, now: Timestamp) -> Result<Plan> {
    let conn = reader.conn.transaction().map_err(from_sqlite)?;
    let no = readable_tenant(&conn, tenant)?;
    let before = protection(&conn, no)?.admit_prune(tenant, prune, now)?;
    let head = head::head(&conn, no, tenant)?;
    let was = head.pruned_below;
    let required = required_from(&conn, no, head.size(), prune.but_for)?;
    let bound = required.min(prune.below_at_most).max(was);
    let below = head::first_accepted_at(&conn, no, was..bound, before)?;
    let mut plan = Plan {
        was,
        before,
        below,
        root: Hash([0; 32]),
        counters: Vec::new(),
        kept: Vec::new(),
    };
    if below == was || prune.dry_run {
        return Ok(plan);
    }
    plan.root = head::tree_at(&conn, no, tenant, head.size(), below)?.root();

    let mut tally = Tally::default();
    let mut keep: Vec<u64> = (was.max(below / TILE * TILE)..below).collect();
    let mut statement = conn
        .prepare_cached(
            "SELECT seq, created_at, action_type, severity, outcome, kind
             FROM entries WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3 ORDER BY seq",
        )
        .map_err(from_sqlite)?;
    let mut rows = statement
        .query(params![no, was as i64, below as i64])
        .map_err(from_sqlite)?;
    while let Some(r) = rows.next().map_err(from_sqlite)? {
        let mut read = || -> rusqlite::Result<()> {
            let day = row::time(r, 1)?.utc_day();
            tally.add(day, row::name(r, 2)?, row::name(r, 3)?, row::name(r, 4)?);
            let seq = row::position(r, 0)?;
            if is_never_pruned(row::name(r, 5)?) && seq < below / TILE * TILE {
                keep.push(seq);
            }
            Ok(())
        };
        read().map_err(from_sqlite)?;
    }
    plan.counters = tally.counters().collect();

    let mut entry = conn
        .prepare_cached(&format!(
            "SELECT {} FROM entries WHERE tenant = ?1 AND seq = ?2",
            row::COLUMNS
        ))
        .map_err(from_sqlite)?;
    for seq in keep {
        let stored = entry
            .query_row(params![no, seq as i64], |r| row::stored_entry(r, tenant))
            .map_err(from_sqlite)?;
        plan.kept.push(KeptLeaf {
            seq,
            kind: stored.entry.kind,
            hash: stored.entry.leaf_hash,
            data: stored.leaf_data(),
        });
    }
    Ok(plan)
}

const fn is_never_pruned(kind: Kind) -> bool {
    matches!(kind, Kind::Key | Kind::Epoch)
}

impl Ledger<'_> {
    /// None when the log has changed since the plan was made.
    fn prune(
        &mut self,
        conn: &Connection,
        scope: &TenantScope,
        prune: &Prune,
        plan: &Plan,
    ) -> Result<Option<Pruned>> {
        let tenant = scope.tenant();
        let sealer = self
            .sealer(conn, tenant)?
            .ok_or_else(|| unknown_tenant(tenant))?;
        sealer.status.admit_read(tenant)?;
        let (no, size) = (sealer.no, sealer.head.size());
        let is_changed = sealer.head.pruned_below != plan.was;
        let before = protection(conn, no)?.admit_prune(tenant, prune, self.time.now())?;
        // A clock that was set back, too.
        if is_changed || before < plan.before || required_from(conn, no, size, None)? < plan.below {
            return Ok(None);
        }
        if let Some(since) = prune.unless_erased_since {
            prune.admit_erasure(is_erased_since(conn, no, since)?)?;
        }
        let control = Control::Prune {
            below: plan.below,
            root: plan.root,
            before: plan.before,
            basis: prune.basis.clone(),
        };
        let event = prune.act.prepare(tenant, &control);
        let batch = Batch::new(scope.clone(), vec![event]);
        let receipt = only_receipt(self.seal_own(conn, &batch)?)?;
        conn.execute(
            "UPDATE heads SET pruned_below = ?2, pruned_by = ?3 WHERE tenant = ?1",
            params![no, plan.below as i64, receipt.seq as i64],
        )
        .map_err(from_sqlite)?;
        if let Some(sealer) = self.remembered().get_mut(&tenant) {
            sealer.head.pruned_below = plan.below;
            sealer.head.pruned_by = Some(receipt.seq);
        }
        uncount(conn, no, &plan.counters)?;
        keep(conn, no, plan)?;
        Ok(Some(Pruned::new(
            plan.below,
            plan.below - plan.was,
            Some(receipt),
        )))
    }
}

fn uncount(conn: &Connection, no: i64, counters: &[Counter]) -> Result<()> {
    let mut subtract = conn
        .prepare_cached(
            "UPDATE counters SET count = count - ?6
             WHERE tenant = ?1 AND day = ?2 AND action_type = ?3 AND severity = ?4 AND outcome = ?5",
        )
        .map_err(from_sqlite)?;
    for c in counters {
        subtract
            .execute(params![
                no,
                c.day,
                c.action_type.as_str(),
                c.severity.as_str(),
                c.outcome.as_str(),
                c.count as i64
            ])
            .map_err(from_sqlite)?;
    }
    conn.execute(
        "DELETE FROM counters WHERE tenant = ?1 AND count <= 0",
        [no],
    )
    .map(drop)
    .map_err(from_sqlite)
}

/// Saves the leaf data that must stay, and drops that of bundles that are now wholly pruned.
fn keep(conn: &Connection, no: i64, plan: &Plan) -> Result<()> {
    conn.execute(
        "DELETE FROM kept_leaves WHERE tenant = ?1 AND seq < ?2 AND kind NOT IN ('key', 'epoch')",
        params![no, (plan.below / TILE * TILE) as i64],
    )
    .map_err(from_sqlite)?;
    let mut insert = conn
        .prepare_cached(
            "INSERT INTO kept_leaves (tenant, seq, kind, leaf_hash, leaf_data)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )
        .map_err(from_sqlite)?;
    for leaf in &plan.kept {
        insert
            .execute(params![
                no,
                leaf.seq as i64,
                leaf.kind.as_str(),
                leaf.hash.as_bytes(),
                leaf.data
            ])
            .map_err(from_sqlite)?;
    }
    Ok(())
}

impl Writer {
    /// One step of [`LogStore::sweep`](audit_core::LogStore::sweep).
    pub(crate) fn sweep(&mut self) -> Result<bool> {
        let more = self.transact(|conn, ledger| ledger.sweep(conn))?;
        let Some(more) = more else { return Ok(false) };
        if !more {
            self.wal.purge(&self.conn);
        }
        Ok(more)
    }
}

impl Ledger<'_> {
    /// None when there was nothing to do.
    fn sweep(&mut self, conn: &Connection) -> Result<Option<bool>> {
        let start = Instant::now();
        let mut pending = conn
            .prepare_cached(
                "SELECT h.tenant, t.id, h.swept_below, h.pruned_below
                 FROM heads h JOIN tenants t ON t.no = h.tenant
                 WHERE h.swept_below < h.pruned_below LIMIT 2",
            )
            .map_err(from_sqlite)?;
        let pending = pending
            .query_map([], |r| {
                Ok((
                    r.get::<_, i64>(0)?,
                    row::tenant_id(r, 1)?,
                    row::position(r, 2)?,
                    row::position(r, 3)?,
                ))
            })
            .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
            .map_err(from_sqlite)?;
        let Some(&(no, tenant, mut swept, below)) = pending.first() else {
            if free_pages(conn)? <= SPARE_PAGES {
                return Ok(None);
            }
            return vacuum(conn, start).map(Some);
        };
        let end = below.min(swept + STEP_ROWS);
        while swept < end && start.elapsed() < STEP {
            let next = end.min(swept + LOOK_ROWS);
            remove(conn, no, swept, next)?;
            swept = next;
        }
        conn.execute(
            "UPDATE heads SET swept_below = ?2 WHERE tenant = ?1",
            params![no, swept as i64],
        )
        .map_err(from_sqlite)?;
        if let Some(sealer) = self.remembered().get_mut(&tenant) {
            sealer.head.swept_below = swept;
        }
        Ok(Some(
            swept < below || pending.len() > 1 || vacuum(conn, start)?,
        ))
    }
}

fn remove(conn: &Connection, no: i64, from: u64, to: u64) -> Result<()> {
    let ids: Vec<EventId> = conn
        .prepare_cached("SELECT id FROM entries WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3")
        .and_then(|mut statement| {
            statement
                .query_map(params![no, from as i64, to as i64], |r| row::event_id(r, 0))?
                .collect()
        })
        .map_err(from_sqlite)?;
    for id in ids {
        forget_content(conn, no, id)?;
    }
    conn.prepare_cached("DELETE FROM entries WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3")
        .and_then(|mut statement| statement.execute(params![no, from as i64, to as i64]))
        .map(drop)
        .map_err(from_sqlite)
}

fn free_pages(conn: &Connection) -> Result<u64> {
    conn.query_row("PRAGMA freelist_count", [], |r| row::position(r, 0))
        .map_err(from_sqlite)
}

/// Gives free pages back until the step's time is over; true when there are more.
fn vacuum(conn: &Connection, start: Instant) -> Result<bool> {
    let mut free = free_pages(conn)?;
    while free > SPARE_PAGES && start.elapsed() < STEP {
        // The pragma takes a step for each page, so it has to be run to its end.
        conn.prepare_cached(&format!("PRAGMA incremental_vacuum({STEP_PAGES})"))
            .and_then(|mut statement| {
                let mut rows = statement.query([])?;
                while rows.next()?.is_some() {}
                Ok(())
            })
            .map_err(from_sqlite)?;
        let left = free_pages(conn)?;
        if left == free {
            return Ok(false);
        }
        free = left;
    }
    Ok(free > SPARE_PAGES)
}

/// The leaf data that prunes have kept, of the positions in `range`.
pub(crate) fn kept_leaves(
    conn: &Connection,
    no: i64,
    tenant: TenantId,
    range: Range<u64>,
) -> Result<Vec<(u64, String)>> {
    let end = i64::try_from(range.end).unwrap_or(i64::MAX);
    let start = i64::try_from(range.start).unwrap_or(i64::MAX);
    conn.prepare_cached(
        "SELECT seq, leaf_data FROM kept_leaves
         WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3 ORDER BY seq",
    )
    .and_then(|mut statement| {
        statement
            .query_map(params![no, start, end], |r| {
                Ok((row::position(r, 0)?, r.get(1)?))
            })?
            .collect()
    })
    .map_err(|e| from_sqlite(e).with_tenant(tenant))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use audit_core::tlog::leaf::leaf_hash;
    use audit_core::{Act, Basis, Clock as _, Event, LogStore as _, PreparedEvent, SystemClock};
    use uuid::Uuid;

    use super::*;
    use crate::SqliteOptions;

    fn events(tenant: TenantId, n: usize) -> Vec<PreparedEvent> {
        (0..n)
            .map(|i| {
                let event = Event::view("page", i.to_string()).user("ann");
                PreparedEvent::new(tenant, event, &SystemClock, &[]).unwrap()
            })
            .collect()
    }

    #[tokio::test]
    async fn leaf_data_of_epochs_and_of_the_straddling_bundle_outlives_a_prune() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.db");
        let store = SqliteStore::open(path, SqliteOptions::new()).unwrap();
        let tenant = TenantId::new(Uuid::from_u128(1));
        let scope = TenantScope::trusted(tenant, "test");
        let act = Act::new(&scope, None, Arc::new(SystemClock)).unwrap();
        let basis = Basis::parse("restore").unwrap();
        store
            .append(&[Batch::new(scope.clone(), events(tenant, 5)).creating_tenant()])
            .await
            .unwrap();
        let root = store.head(&scope).await.unwrap().tree.root();
        let epoch = Control::Epoch {
            epoch: 2,
            size: 5,
            root,
            basis: basis.clone(),
        };
        let mut all = vec![act.prepare(tenant, &epoch)];
        all.extend(events(tenant, 594));
        let batch = Batch::new(scope.clone(), all);
        store
            .writer()
            .unwrap()
            .run(move |writer| {
                writer.transact(|conn, ledger| {
                    ledger
                        .seal(conn, tenant, SystemClock.now(), &[&batch])
                        .map(drop)
                })
            })
            .await
            .unwrap();

        let before = Timestamp::MAX;
        let done = store
            .prune(&scope, &Prune::new(before, basis.clone(), act.clone()))
            .await;
        assert_eq!(done.unwrap().below, 600);
        while store.sweep().await.unwrap() {}

        let kept = store.leaves(&scope, 0..600).await.unwrap();
        let seqs: Vec<u64> = kept.iter().map(|(seq, _)| *seq).collect();
        let expected: Vec<u64> = std::iter::once(5).chain(512..600).collect();
        assert_eq!(seqs, expected);
        for (seq, data) in kept {
            let hash = store.hashes(&scope, 0, seq..seq + 1).await.unwrap();
            assert_eq!(hash, [leaf_hash(data.as_bytes())], "{seq}");
        }

        // The next prune frees the bundle, and keeps the epoch.
        let batch = Batch::new(scope.clone(), events(tenant, 300));
        store.append(&[batch]).await.unwrap();
        store
            .prune(&scope, &Prune::new(before, basis, act))
            .await
            .unwrap();
        let kept = store.leaves(&scope, 0..768).await.unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].0, 5);
    }
}
