//! Heads, and the hashes below them.

use std::ops::Range;

use audit_core::tlog::merkle::{peak_runs, subtree_root};
use audit_core::tlog::{Hash, Tree};
use audit_core::{Error, ErrorKind, Head, Result, TenantId};
use rusqlite::{Connection, OptionalExtension, params};

use crate::fault::from_sqlite;
use crate::row;
use crate::schema::TILE;

/// The head of a tenant's log; an empty one when nothing was appended.
pub(crate) fn head(conn: &Connection, no: i64, tenant: TenantId) -> Result<Head> {
    let found = conn
        .prepare_cached(
            "SELECT size, peaks, created_at, pruned_below, pruned_by, swept_below
             FROM heads WHERE tenant = ?1",
        )
        .and_then(|mut statement| {
            statement
                .query_row([no], |r| {
                    let mut head = Head::empty(tenant);
                    let tree = Tree::from_bytes(row::position(r, 0)?, &r.get::<_, Vec<u8>>(1)?);
                    head.created_at = row::time(r, 2)?;
                    head.pruned_below = row::position(r, 3)?;
                    head.pruned_by = match r.get::<_, Option<i64>>(4)? {
                        None => None,
                        Some(_) => Some(row::position(r, 4)?),
                    };
                    head.swept_below = row::position(r, 5)?;
                    Ok((tree, head))
                })
                .optional()
        })
        .map_err(|e| from_sqlite(e).with_tenant(tenant))?;
    match found {
        None => Ok(Head::empty(tenant)),
        Some((Some(tree), mut head)) => {
            head.tree = tree;
            Ok(head)
        }
        Some((None, _)) => Err(Error::new(
            ErrorKind::Corrupt,
            "the head's peaks don't fit its size",
        )
        .with_tenant(tenant)),
    }
}

/// Hashes of complete subtrees of 256^`level` leaves.
///
/// # Errors
/// [`ErrorKind::NotFound`] when the range reaches beyond a tree of `size` leaves.
pub(crate) fn hashes(
    conn: &Connection,
    no: i64,
    tenant: TenantId,
    size: u64,
    level: u8,
    range: Range<u64>,
) -> Result<Vec<Hash>> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let complete = TILE
        .checked_pow(level.into())
        .map_or(0, |leaves| size / leaves);
    if range.end > complete {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the tree has {complete} complete subtrees of level {level}"),
        ));
    }
    let found = match level {
        0 => leaf_hashes(conn, no, size, range.clone()),
        _ => tile_roots(conn, no, level - 1, range.clone()),
    }
    .map_err(|e| e.with_tenant(tenant))?;
    let next = range.start + found.len() as u64;
    match (level, next == range.end) {
        (_, true) => Ok(found),
        (0, false) => Err(missing().with_tenant(tenant).with_position(next)),
        (_, false) => Err(missing().with_tenant(tenant)),
    }
}

fn missing() -> Error {
    Error::new(ErrorKind::Corrupt, "hashes of the tree are missing")
}

/// Leaf hashes in the order of their positions: of complete tiles from there, of the last one from
/// the rows and from what a prune kept.
fn leaf_hashes(conn: &Connection, no: i64, size: u64, range: Range<u64>) -> Result<Vec<Hash>> {
    let mut found = Vec::with_capacity((range.end - range.start) as usize);
    let tiled = (size / TILE * TILE).min(range.end);
    if range.start < tiled {
        let first = range.start / TILE;
        let mut statement = conn
            .prepare_cached(
                "SELECT idx, hashes FROM tiles
                 WHERE tenant = ?1 AND level = 0 AND idx >= ?2 AND idx <= ?3 ORDER BY idx",
            )
            .map_err(from_sqlite)?;
        let mut rows = statement
            .query(params![no, first as i64, ((tiled - 1) / TILE) as i64])
            .map_err(from_sqlite)?;
        for begin in (first * TILE..tiled).step_by(TILE as usize) {
            let missing = || missing().with_position(begin.max(range.start));
            let row = rows.next().map_err(from_sqlite)?.ok_or_else(missing)?;
            let blob = row.get_ref(1).map_err(from_sqlite)?;
            let (hashes, rest) = blob.as_blob().unwrap_or_default().as_chunks::<32>();
            let is_it = row::position(row, 0).map_err(from_sqlite)? == begin / TILE;
            if !is_it || hashes.len() as u64 != TILE || !rest.is_empty() {
                return Err(missing());
            }
            for (seq, hash) in (begin..).zip(hashes) {
                if range.contains(&seq) {
                    found.push(Hash(*hash));
                }
            }
        }
    }
    let rest = range.start.max(tiled);
    if rest < range.end {
        let mut statement = conn
            .prepare_cached(
                "SELECT seq, leaf_hash FROM kept_leaves WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3
                 UNION
                 SELECT seq, leaf_hash FROM entries WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3
                 ORDER BY seq",
            )
            .map_err(from_sqlite)?;
        let rows = statement
            .query_map(params![no, rest as i64, range.end as i64], |r| {
                Ok((row::position(r, 0)?, row::hash(r, 1)?))
            })
            .map_err(from_sqlite)?;
        for (expected, stored) in (rest..).zip(rows) {
            let (seq, hash) = stored.map_err(from_sqlite)?;
            if seq != expected {
                return Err(missing().with_position(expected));
            }
            found.push(hash);
        }
    }
    Ok(found)
}

/// The roots of complete tiles of a level, which are the hashes of the level above.
pub(crate) fn tile_roots(
    conn: &Connection,
    no: i64,
    level: u8,
    range: Range<u64>,
) -> Result<Vec<Hash>> {
    conn.prepare_cached(
        "SELECT root FROM tiles
         WHERE tenant = ?1 AND level = ?2 AND idx >= ?3 AND idx < ?4 ORDER BY idx",
    )
    .and_then(|mut statement| {
        statement
            .query_map(
                params![no, level, range.start as i64, range.end as i64],
                |r| row::hash(r, 0),
            )?
            .collect()
    })
    .map_err(from_sqlite)
}

/// The tree of the first `size` leaves of a log that has at least as many.
pub(crate) fn tree_at(
    conn: &Connection,
    no: i64,
    tenant: TenantId,
    log_size: u64,
    size: u64,
) -> Result<Tree> {
    let mut peaks = Vec::new();
    for (level, nodes) in peak_runs(size) {
        let nodes = hashes(conn, no, tenant, log_size, level, nodes)?;
        peaks.push(subtree_root(&nodes));
    }
    Tree::from_parts(size, peaks).ok_or_else(|| Error::new(ErrorKind::Internal, "peaks don't fit"))
}

/// The first position in `range` whose entry was accepted at `at` or later; the range's end when
/// there is none. Times never go backwards within a log, so this is a binary search.
pub(crate) fn first_accepted_at(
    conn: &Connection,
    no: i64,
    range: Range<u64>,
    at: audit_core::Timestamp,
) -> Result<u64> {
    let mut statement = conn
        .prepare_cached("SELECT created_at FROM entries WHERE tenant = ?1 AND seq = ?2")
        .map_err(from_sqlite)?;
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        let created_at = statement
            .query_row(params![no, middle as i64], |r| row::time(r, 0))
            .map_err(from_sqlite)?;
        if created_at < at {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}
