//! The log over all tenants' heads, in the log's file.

use std::ops::Range;

use async_trait::async_trait;
use audit_core::checkpoint::admit_checkpoint;
use audit_core::deployment::{admit_commit, all_of, edge_of, grow, is_uncommitted};
use audit_core::tlog::{Hash, HeadOpening, Salt};
use audit_core::{
    DeploymentStore, Fence, Permission, Result, SignedCheckpoint, TenantHead, TenantId,
    TenantScope, Uncommitted,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::checkpoints::signer;
use crate::fault::from_sqlite;
use crate::reader::{readable_tenant, tenant_no, unknown_tenant};
use crate::row;
use crate::store::SqliteStore;

fn size(conn: &Connection) -> Result<u64> {
    conn.prepare_cached("SELECT coalesce(max(idx) + 1, 0) FROM deployment_leaves")
        .and_then(|mut statement| statement.query_row([], |r| row::position(r, 0)))
        .map_err(from_sqlite)
}

fn hashes(conn: &Connection, level: u8, range: &Range<u64>) -> Result<Vec<Hash>> {
    let found = conn
        .prepare_cached(
            "SELECT hash FROM deployment_hashes WHERE level = ?1 AND idx >= ?2 AND idx < ?3
             ORDER BY idx",
        )
        .and_then(|mut statement| {
            let places = params![level, place(range.start), place(range.end)];
            let hashes = statement.query_map(places, |r| row::hash(r, 0))?;
            hashes.collect()
        })
        .map_err(from_sqlite)?;
    all_of(found, range)
}

/// A position for a statement. Beyond what the file can count there is nothing.
fn place(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

/// An opening, from the tenant's id, the size, the root and the salt.
fn opening(r: &Row<'_>, first: usize) -> rusqlite::Result<HeadOpening> {
    let head = TenantHead {
        tenant: row::tenant_id(r, first)?,
        size: row::position(r, first + 1)?,
        root: row::hash(r, first + 2)?,
    };
    Ok(head.salted(Salt(row::bytes(r, first + 3)?)))
}

fn insert(conn: &Connection, index: u64, opening: &HeadOpening) -> Result<()> {
    let tenant = TenantId::new(opening.tenant);
    let (no, _) = tenant_no(conn, tenant)?.ok_or_else(|| unknown_tenant(tenant))?;
    conn.prepare_cached("INSERT INTO deployment_leaves VALUES (?1, ?2, ?3, ?4, ?5)")
        .and_then(|mut statement| {
            statement.execute(params![
                place(index),
                no,
                place(opening.size),
                opening.root.as_bytes(),
                opening.salt.as_bytes()
            ])
        })
        .map(drop)
        .map_err(from_sqlite)
}

/// The next tenants by their ids, each with its newest checkpoint and the size that was committed to.
fn uncommitted(
    conn: &Connection,
    after: Option<TenantId>,
    limit: usize,
) -> rusqlite::Result<Uncommitted> {
    let mut statement = conn.prepare_cached(
        "SELECT t.id, c.size, c.root,
            (SELECT size FROM deployment_leaves WHERE tenant = t.no ORDER BY idx DESC LIMIT 1)
         FROM (SELECT no, id FROM tenants WHERE id > ?1 ORDER BY id LIMIT ?2) t
         LEFT JOIN checkpoints c ON c.tenant = t.no
            AND c.size = (SELECT max(size) FROM checkpoints WHERE tenant = t.no)
         ORDER BY t.id",
    )?;
    let after = after.map_or_else(Vec::new, |tenant| tenant.as_uuid().as_bytes().to_vec());
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![after, limit])?;
    let (mut found, mut seen) = (Uncommitted::default(), 0);
    while let Some(r) = rows.next()? {
        let tenant = row::tenant_id(r, 0)?;
        seen += 1;
        found.next = (seen == limit).then_some(tenant);
        let number = |n: i64| n.unsigned_abs();
        let Some(size) = r.get::<_, Option<i64>>(1)?.map(number) else {
            continue;
        };
        if is_uncommitted(size, r.get::<_, Option<i64>>(3)?.map(number)) {
            let root = row::hash(r, 2)?;
            found.heads.push(TenantHead { tenant, size, root });
        }
    }
    Ok(found)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DeploymentStore for SqliteStore {
    async fn uncommitted_heads(
        &self,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Uncommitted> {
        self.read(move |reader| uncommitted(&reader.conn, after, limit).map_err(from_sqlite))
            .await
    }

    async fn commit_heads(
        &self,
        fence: Fence,
        expected: u64,
        openings: &[HeadOpening],
    ) -> Result<()> {
        let openings = openings.to_vec();
        self.write(move |conn| {
            let signer = signer(conn)?.map(|lease| lease.fence);
            admit_commit(fence, signer, size(conn)?, expected)?;
            let edge = edge_of(expected);
            let edge = edge
                .iter()
                .map(|(level, range)| hashes(conn, *level, range));
            let edge = edge.collect::<Result<Vec<_>>>()?;
            for (level, index, hash) in grow(expected, &edge, &openings)? {
                conn.prepare_cached("INSERT INTO deployment_hashes VALUES (?1, ?2, ?3)")
                    .and_then(|mut statement| {
                        statement.execute(params![level, place(index), hash.as_bytes()])
                    })
                    .map_err(from_sqlite)?;
            }
            for (index, opening) in (expected..).zip(&openings) {
                insert(conn, index, opening)?;
            }
            Ok(())
        })
        .await
    }

    async fn deployment_size(&self) -> Result<u64> {
        self.read(|reader| size(&reader.conn)).await
    }

    async fn deployment_hashes(&self, level: u8, range: Range<u64>) -> Result<Vec<Hash>> {
        self.read(move |reader| hashes(&reader.conn, level, &range))
            .await
    }

    async fn commitments(&self, range: Range<u64>) -> Result<Vec<Hash>> {
        self.read(move |reader| {
            let found = reader
                .conn
                .prepare_cached(
                    "SELECT t.id, l.size, l.root, l.salt FROM deployment_leaves l
                     JOIN tenants t ON t.no = l.tenant
                     WHERE l.idx >= ?1 AND l.idx < ?2 ORDER BY l.idx",
                )
                .and_then(|mut statement| {
                    let places = params![place(range.start), place(range.end)];
                    let found = statement.query_map(places, |r| Ok(opening(r, 0)?.commitment()))?;
                    found.collect()
                })
                .map_err(from_sqlite)?;
            all_of(found, &range)
        })
        .await
    }

    async fn head_opening(
        &self,
        scope: &TenantScope,
        below: u64,
    ) -> Result<Option<(u64, HeadOpening)>> {
        scope.require(Permission::Read)?;
        let tenant = scope.tenant();
        self.read(move |reader| {
            let conn = reader.conn.transaction().map_err(from_sqlite)?;
            let no = readable_tenant(&conn, tenant)?;
            conn.prepare_cached(
                "SELECT l.idx, t.id, l.size, l.root, l.salt FROM deployment_leaves l
                 JOIN tenants t ON t.no = l.tenant
                 WHERE l.tenant = ?1 AND l.idx < ?2 ORDER BY l.idx DESC LIMIT 1",
            )
            .and_then(|mut statement| {
                let decode = |r: &Row<'_>| Ok((row::position(r, 0)?, opening(r, 1)?));
                let below = place(below);
                statement.query_row(params![no, below], decode).optional()
            })
            .map_err(from_sqlite)
        })
        .await
    }

    async fn publish_deployment(&self, fence: Fence, checkpoint: &SignedCheckpoint) -> Result<()> {
        let checkpoint = checkpoint.clone();
        self.write(move |conn| {
            let known = conn
                .prepare_cached("SELECT root FROM deployment_checkpoints WHERE size = ?1 LIMIT 1")
                .and_then(|mut statement| {
                    let of_size = [place(checkpoint.size)];
                    statement.query_row(of_size, |r| row::hash(r, 0)).optional()
                })
                .map_err(from_sqlite)?;
            let signer = signer(conn)?.map(|lease| lease.fence);
            admit_checkpoint(&checkpoint, fence, signer, size(conn)?, known)?;
            conn.prepare_cached(
                "INSERT INTO deployment_checkpoints (size, root, note, signed_at, guarded)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )
            .and_then(|mut statement| {
                statement.execute(params![
                    place(checkpoint.size),
                    checkpoint.root.as_bytes(),
                    checkpoint.note,
                    checkpoint.signed_at.as_micros(),
                    checkpoint.is_guarded
                ])
            })
            .map(drop)
            .map_err(from_sqlite)
        })
        .await
    }

    async fn latest_deployment(&self) -> Result<Option<SignedCheckpoint>> {
        self.read(|reader| {
            reader
                .conn
                .prepare_cached(
                    "SELECT size, root, note, signed_at, guarded FROM deployment_checkpoints
                     ORDER BY size DESC, n DESC LIMIT 1",
                )
                .and_then(|mut statement| {
                    let decode = |r: &Row<'_>| {
                        Ok(SignedCheckpoint::new(
                            row::position(r, 0)?,
                            row::hash(r, 1)?,
                            r.get(2)?,
                            row::time(r, 3)?,
                        )
                        .guarded(r.get(4)?))
                    };
                    statement.query_row([], decode).optional()
                })
                .map_err(from_sqlite)
        })
        .await
    }
}
