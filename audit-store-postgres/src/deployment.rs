//! The log over all tenants' heads, beside the logs.

use std::ops::Range;

use async_trait::async_trait;
use audit_core::checkpoint::admit_checkpoint;
use audit_core::deployment::{admit_commit, all_of, edge_of, grow, is_uncommitted};
use audit_core::tlog::{Hash, HeadOpening, Salt};
use audit_core::{
    DeploymentStore, Fence, Permission, Result, SignedCheckpoint, TenantHead, TenantId,
    TenantScope, Uncommitted,
};
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_postgres::PgConnection;
use uuid::Uuid;

use crate::checkpoints::signer;
use crate::fault::from_sqlx;
use crate::head::unknown_tenant;
use crate::pool::{Role, to_its_end};
use crate::row;
use crate::store::PostgresStore;

/// The size of the log, which nobody else changes once the signer's row is locked.
async fn size(conn: &mut PgConnection) -> Result<u64> {
    let (size,): (i64,) = query_as("SELECT coalesce(max(idx) + 1, 0) FROM audit.deployment_leaves")
        .fetch_one(conn)
        .await
        .map_err(from_sqlx)?;
    row::unsigned(size)
}

async fn hashes(conn: &mut PgConnection, level: u8, range: &Range<u64>) -> Result<Vec<Hash>> {
    let found = query(
        "SELECT hash FROM audit.deployment_hashes WHERE level = $1 AND idx >= $2 AND idx < $3
         ORDER BY idx",
    )
    .bind(i16::from(level))
    .bind(row::signed(range.start))
    .bind(row::signed(range.end))
    .fetch_all(conn)
    .await
    .map_err(from_sqlx)?;
    let found = found.iter().map(|r| row::hash(r, 0));
    all_of(found.collect::<Result<_>>()?, range)
}

impl PostgresStore {
    async fn append_heads(
        &self,
        fence: Fence,
        expected: u64,
        openings: &[HeadOpening],
    ) -> Result<()> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let signer = signer(&mut tx).await?.map(|lease| lease.fence);
        admit_commit(fence, signer, size(&mut tx).await?, expected)?;
        let mut edge = Vec::new();
        for (level, range) in edge_of(expected) {
            edge.push(hashes(&mut tx, level, &range).await?);
        }
        let added = grow(expected, &edge, openings)?;
        let tenants: Vec<Uuid> = openings.iter().map(|opening| opening.tenant).collect();
        let unknown: Option<(Uuid,)> = query_as(
            "SELECT u.id FROM unnest($1::uuid[]) AS u (id)
             WHERE NOT EXISTS (SELECT FROM audit.tenants t WHERE t.tenant_id = u.id) LIMIT 1",
        )
        .bind(&tenants)
        .fetch_optional(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        if let Some((unknown,)) = unknown {
            return Err(unknown_tenant(TenantId::new(unknown)));
        }
        let of = |part: fn(&HeadOpening) -> Vec<u8>| openings.iter().map(part).collect::<Vec<_>>();
        let sizes: Vec<i64> = openings.iter().map(|o| row::signed(o.size)).collect();
        query(
            "INSERT INTO audit.deployment_leaves (idx, tenant_id, size, root, salt, commitment)
             SELECT $1 + n - 1, tenant_id, size, root, salt, commitment
             FROM unnest($2::uuid[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bytea[])
                WITH ORDINALITY AS l (tenant_id, size, root, salt, commitment, n)",
        )
        .bind(row::signed(expected))
        .bind(&tenants)
        .bind(&sizes)
        .bind(of(|o| o.root.as_bytes().to_vec()))
        .bind(of(|o| o.salt.as_bytes().to_vec()))
        .bind(of(|o| o.commitment().as_bytes().to_vec()))
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        let levels: Vec<i16> = added.iter().map(|(level, ..)| i16::from(*level)).collect();
        let places: Vec<i64> = added.iter().map(|(_, at, _)| row::signed(*at)).collect();
        let values = added.iter().map(|(.., hash)| hash.as_bytes().to_vec());
        query(
            "INSERT INTO audit.deployment_hashes (level, idx, hash)
             SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bytea[])",
        )
        .bind(&levels)
        .bind(&places)
        .bind(values.collect::<Vec<_>>())
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)
    }

    async fn keep_deployment(&self, fence: Fence, checkpoint: &SignedCheckpoint) -> Result<()> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let signer = signer(&mut tx).await?.map(|lease| lease.fence);
        let known = query("SELECT root FROM audit.deployment_checkpoints WHERE size = $1 LIMIT 1")
            .bind(row::signed(checkpoint.size))
            .fetch_optional(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        let known = known.map(|r| row::hash(&r, 0)).transpose()?;
        admit_checkpoint(checkpoint, fence, signer, size(&mut tx).await?, known)?;
        query(
            "INSERT INTO audit.deployment_checkpoints (size, root, note, signed_at, guarded)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(row::signed(checkpoint.size))
        .bind(checkpoint.root.as_bytes().as_slice())
        .bind(&checkpoint.note)
        .bind(row::instant(checkpoint.signed_at))
        .bind(checkpoint.is_guarded)
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DeploymentStore for PostgresStore {
    async fn uncommitted_heads(
        &self,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Uncommitted> {
        let sql = "SELECT t.tenant_id, c.size, c.root, l.size
             FROM (
                 SELECT tenant_id FROM audit.tenants WHERE $1::uuid IS NULL OR tenant_id > $1
                 ORDER BY tenant_id LIMIT $2
             ) t
             LEFT JOIN LATERAL (
                 SELECT size, root FROM audit.checkpoints WHERE tenant_id = t.tenant_id
                 ORDER BY size DESC LIMIT 1
             ) c ON true
             LEFT JOIN LATERAL (
                 SELECT size FROM audit.deployment_leaves WHERE tenant_id = t.tenant_id
                 ORDER BY size DESC LIMIT 1
             ) l ON true
             ORDER BY t.tenant_id";
        let found = self.rows_behind(Role::Writer, sql, after, limit).await?;
        let mut uncommitted = Uncommitted::default();
        for r in &found {
            let tenant = row::tenant_id(r, 0)?;
            uncommitted.next = (found.len() == limit).then_some(tenant);
            let number = |column| {
                row::get::<Option<i64>>(r, column)?
                    .map(row::unsigned)
                    .transpose()
            };
            let Some(size) = number(1)? else {
                continue;
            };
            if is_uncommitted(size, number(3)?) {
                let root = row::hash(r, 2)?;
                uncommitted.heads.push(TenantHead { tenant, size, root });
            }
        }
        Ok(uncommitted)
    }

    async fn commit_heads(
        &self,
        fence: Fence,
        expected: u64,
        openings: &[HeadOpening],
    ) -> Result<()> {
        let (store, openings) = (self.clone(), openings.to_vec());
        to_its_end(async move { store.append_heads(fence, expected, &openings).await }).await
    }

    async fn deployment_size(&self) -> Result<u64> {
        size(&mut *self.pools().begin(Role::Writer, None).await?).await
    }

    async fn deployment_hashes(&self, level: u8, range: Range<u64>) -> Result<Vec<Hash>> {
        let mut tx = self.pools().begin(Role::Reader, None).await?;
        hashes(&mut tx, level, &range).await
    }

    async fn commitments(&self, range: Range<u64>) -> Result<Vec<Hash>> {
        let mut tx = self.pools().begin(Role::Reader, None).await?;
        let found = query(
            "SELECT commitment FROM audit.deployment_commitments
             WHERE idx >= $1 AND idx < $2 ORDER BY idx",
        )
        .bind(row::signed(range.start))
        .bind(row::signed(range.end))
        .fetch_all(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        let found = found.iter().map(|r| row::hash(r, 0));
        all_of(found.collect::<Result<_>>()?, &range)
    }

    async fn head_opening(
        &self,
        scope: &TenantScope,
        below: u64,
    ) -> Result<Option<(u64, HeadOpening)>> {
        let (mut tx, _) = self.begin_read(scope, Permission::Read).await?;
        let found = query(
            "SELECT idx, size, root, salt FROM audit.tenant_deployment_leaves
             WHERE idx < $1 ORDER BY size DESC, idx DESC LIMIT 1",
        )
        .bind(row::signed(below))
        .fetch_optional(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        let Some(r) = found else {
            return Ok(None);
        };
        let head = TenantHead {
            tenant: scope.tenant(),
            size: row::position(&r, 1)?,
            root: row::hash(&r, 2)?,
        };
        let salt = Salt(row::bytes(&r, 3)?);
        Ok(Some((row::position(&r, 0)?, head.salted(salt))))
    }

    async fn publish_deployment(&self, fence: Fence, checkpoint: &SignedCheckpoint) -> Result<()> {
        let (store, checkpoint) = (self.clone(), checkpoint.clone());
        to_its_end(async move { store.keep_deployment(fence, &checkpoint).await }).await
    }

    async fn latest_deployment(&self) -> Result<Option<SignedCheckpoint>> {
        let mut tx = self.pools().begin(Role::Reader, None).await?;
        let found = query(
            "SELECT size, root, note, signed_at, guarded FROM audit.deployment_checkpoints
             ORDER BY size DESC, n DESC LIMIT 1",
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        let decode = |r| {
            Ok(SignedCheckpoint::new(
                row::position(&r, 0)?,
                row::hash(&r, 1)?,
                row::get(&r, 2)?,
                row::time(row::get(&r, 3)?)?,
            )
            .guarded(row::get(&r, 4)?))
        };
        found.map(decode).transpose()
    }
}
