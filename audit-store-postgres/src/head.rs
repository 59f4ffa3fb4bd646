//! Heads, and the hashes below them.

use std::ops::Range;

use audit_core::tenant::TenantStatus;
use audit_core::tlog::merkle::{peak_runs, subtree_root};
use audit_core::tlog::{Hash, Tree};
use audit_core::{Error, ErrorKind, Head, Result, TenantId};
use sqlx_core::query::query;
use sqlx_postgres::{PgConnection, PgRow};

use crate::fault::from_sqlx;
use crate::row;

/// Hashes in one tile (C2SP tlog-tiles).
pub(crate) const TILE: u64 = 256;

/// The columns that [`decode`] reads, in its order.
pub(crate) const COLUMNS: &str =
    "tenant_id, status, size, peaks, created_at, pruned_below, pruned_by, swept_below";

/// Decodes [`COLUMNS`].
pub(crate) fn decode(r: &PgRow) -> Result<(TenantStatus, Head)> {
    let tenant = row::tenant_id(r, 0)?;
    decode_of(r, tenant).map_err(|e| e.with_tenant(tenant))
}

fn decode_of(r: &PgRow, tenant: TenantId) -> Result<(TenantStatus, Head)> {
    let mut head = Head::empty(tenant);
    let size = row::position(r, 2)?;
    head.tree = Tree::from_bytes(size, row::get(r, 3)?)
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "the head's peaks don't fit its size"))?;
    head.created_at = row::time(row::get(r, 4)?)?;
    head.pruned_below = row::position(r, 5)?;
    head.pruned_by = row::get::<Option<i64>>(r, 6)?
        .map(row::unsigned)
        .transpose()?;
    head.swept_below = row::position(r, 7)?;
    Ok((row::name(r, 1)?, head))
}

pub(crate) fn unknown_tenant(tenant: TenantId) -> Error {
    Error::new(ErrorKind::UnknownTenant, "the tenant does not exist").with_tenant(tenant)
}

/// The head of the tenant that a reader's transaction named.
///
/// # Errors
/// [`ErrorKind::UnknownTenant`], and what [`TenantStatus::admit_read`] refuses.
pub(crate) async fn readable_head(conn: &mut PgConnection, tenant: TenantId) -> Result<Head> {
    let sql = format!("SELECT {COLUMNS} FROM audit.tenant_head");
    let found = query(&sql).fetch_optional(conn).await.map_err(from_sqlx)?;
    let (status, head) = decode(&found.ok_or_else(|| unknown_tenant(tenant))?)?;
    status.admit_read(tenant)?;
    Ok(head)
}

/// Hashes of complete subtrees of 256^`level` leaves of the tenant's log, of `head`.
///
/// # Errors
/// [`ErrorKind::NotFound`] when the range reaches beyond the tree.
pub(crate) async fn hashes(
    conn: &mut PgConnection,
    head: &Head,
    level: u8,
    range: Range<u64>,
) -> Result<Vec<Hash>> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let complete = TILE
        .checked_pow(level.into())
        .map_or(0, |leaves| head.size() / leaves);
    if range.end > complete {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the tree has {complete} complete subtrees of level {level}"),
        ));
    }
    let (start, end) = (row::signed(range.start), row::signed(range.end));
    let rows = match level {
        0 => query(
            "SELECT seq, leaf_hash FROM audit.tenant_ids WHERE seq >= $1 AND seq < $2 ORDER BY seq",
        )
        .bind(start)
        .bind(end),
        _ => query(
            "SELECT idx, root FROM audit.tenant_subtrees
             WHERE idx >= $1 AND idx < $2 AND level = $3 ORDER BY idx",
        )
        .bind(start)
        .bind(end)
        .bind(i16::from(level)),
    }
    .fetch_all(conn)
    .await
    .map_err(from_sqlx)?;
    let mut found = Vec::with_capacity(rows.len());
    let mut rows = rows.iter();
    for expected in range {
        let hash = match rows.next() {
            Some(r) if row::position(r, 0).is_ok_and(|at| at == expected) => row::hash(r, 1),
            _ => Err(Error::new(
                ErrorKind::Corrupt,
                "hashes of the tree are missing",
            )),
        };
        found.push(hash.map_err(|e| match level {
            0 => e.with_tenant(head.tenant).with_position(expected),
            _ => e.with_tenant(head.tenant),
        })?);
    }
    Ok(found)
}

/// The tree of the first `size` leaves of a log that has at least as many.
pub(crate) async fn tree_at(conn: &mut PgConnection, head: &Head, size: u64) -> Result<Tree> {
    let mut peaks = Vec::new();
    for (level, nodes) in peak_runs(size) {
        let nodes = hashes(conn, head, level, nodes).await?;
        peaks.push(subtree_root(&nodes));
    }
    Tree::from_parts(size, peaks).ok_or_else(|| Error::new(ErrorKind::Internal, "peaks don't fit"))
}

/// A subtree that an append completed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Subtree {
    pub(crate) level: u8,
    pub(crate) idx: u64,
    pub(crate) root: Hash,
}

/// The complete subtrees of 256, 256², … leaves that new leaves add to a tree. What lies to their
/// left in the last, incomplete one of each level is in the tree's own peaks, so that nothing has to
/// be read.
pub(crate) fn completed(tree: &Tree, leaves: &[Hash]) -> Vec<Subtree> {
    let mut found = Vec::new();
    let (mut size, mut nodes) = (tree.size(), leaves.to_vec());
    // Of a level's nodes, the peaks of the last incomplete tile follow those of all larger ones and
    // precede those of the levels below.
    let mut peaks = tree.peaks();
    for level in 1_u8.. {
        let own = (size % TILE).count_ones() as usize;
        let (rest, partial) = peaks.split_at(peaks.len() - own);
        peaks = rest;
        #[allow(clippy::expect_used)] // they were counted by the very bits of that size
        let mut tile = Tree::from_parts(size % TILE, partial.to_vec()).expect("a tile's peaks");
        let mut idx = size / TILE;
        let mut above = Vec::new();
        for node in nodes {
            tile.push(node);
            if tile.size() == TILE {
                let root = tile.root();
                found.push(Subtree { level, idx, root });
                above.push(root);
                idx += 1;
                tile = Tree::new();
            }
        }
        if above.is_empty() {
            break;
        }
        size /= TILE;
        nodes = above;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(n: u64) -> Hash {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        Hash(bytes)
    }

    #[test]
    fn subtrees_are_completed_from_the_peaks_alone() {
        let total = 256 * 256 + 300;
        let all: Vec<Hash> = (0..total).map(leaf).collect();
        let mut tree = Tree::new();
        let mut found = Vec::new();
        let mut at = 0;
        for step in [1, 254, 1, 255, 257, 1_000, 63_000, 768, 200, 300]
            .iter()
            .cycle()
        {
            let to = (at + step).min(all.len());
            found.extend(completed(&tree, &all[at..to]));
            tree.extend(all[at..to].iter().copied());
            at = to;
            if at == all.len() {
                break;
            }
        }
        let roots = |level: u8, leaves: usize| {
            let subtrees = all.chunks_exact(leaves).enumerate();
            subtrees.map(move |(idx, leaves)| Subtree {
                level,
                idx: idx as u64,
                root: leaves.iter().copied().collect::<Tree>().root(),
            })
        };
        let mut expected: Vec<Subtree> = roots(1, 256).chain(roots(2, 65_536)).collect();
        expected.sort_by_key(|s| (s.level, s.idx));
        found.sort_by_key(|s| (s.level, s.idx));
        assert_eq!(found, expected);
    }
}
