//! API keys and stream tickets.

use async_trait::async_trait;
use audit_core::credential::{ApiKey, CredentialStore, KeyPlace, SecretHash, Ticket};
use audit_core::scope::Permissions;
use audit_core::tlog::Timestamp;
use audit_core::{Error, ErrorKind, Permission, Result, TenantScope};
use sqlx_core::query::query;
use sqlx_postgres::PgRow;
use uuid::Uuid;

use crate::fault::from_sqlx;
use crate::pool::Role;
use crate::retention::exists;
use crate::row;
use crate::store::PostgresStore;

const COLUMNS: &str =
    "id, tenant_id, name, role, permissions, created_at, expires_at, last_used_at";

fn decode(r: &PgRow) -> Result<ApiKey> {
    let mut key = ApiKey::new(
        row::get(r, 0)?,
        row::tenant_id(r, 1)?,
        row::get::<String>(r, 2)?,
        row::name(r, 3)?,
        row::time(row::get(r, 5)?)?,
    );
    key.permissions = Permissions::from_scope(row::get(r, 4)?);
    key.expires_at = row::optional_time(r, 6)?;
    key.last_used_at = row::optional_time(r, 7)?;
    Ok(key)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CredentialStore for PostgresStore {
    async fn add_key(&self, scope: &TenantScope, key: &ApiKey, secret: &SecretHash) -> Result<()> {
        scope.require(Permission::Keys)?;
        if key.tenant != scope.tenant() {
            return Err(Error::new(
                ErrorKind::Forbidden,
                "the key is another tenant's",
            ));
        }
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        exists(&mut tx, key.tenant).await?;
        let added = query(
            "INSERT INTO audit.api_keys (id, tenant_id, secret, name, role, permissions,
                 created_at, expires_at, last_used_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
        )
        .bind(key.id)
        .bind(key.tenant.into_uuid())
        .bind(secret.as_slice())
        .bind(&key.name)
        .bind(key.role.as_str())
        .bind(key.permissions.to_scope())
        .bind(row::instant(key.created_at))
        .bind(key.expires_at.map(row::instant))
        .bind(key.last_used_at.map(row::instant))
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        if added.rows_affected() == 0 {
            return Err(Error::new(
                ErrorKind::Conflict,
                "there is such a key already",
            ));
        }
        tx.commit().await.map_err(from_sqlx)
    }

    async fn find_key(&self, secret: &SecretHash) -> Result<Option<ApiKey>> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let found = query(&format!(
            "SELECT {COLUMNS} FROM audit.api_keys WHERE secret = $1"
        ))
        .bind(secret.as_slice())
        .fetch_optional(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        found.as_ref().map(decode).transpose()
    }

    async fn keys(
        &self,
        scope: &TenantScope,
        after: Option<KeyPlace>,
        limit: usize,
    ) -> Result<Vec<ApiKey>> {
        scope.require(Permission::Keys)?;
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let sql = format!(
            "SELECT {COLUMNS} FROM audit.api_keys
             WHERE tenant_id = $1 AND ($2::timestamptz IS NULL OR (created_at, id) > ($2, $3))
             ORDER BY created_at, id LIMIT $4"
        );
        let found = query(&sql)
            .bind(scope.tenant().into_uuid())
            .bind(after.map(|after| row::instant(after.created_at)))
            .bind(after.map(|after| after.id))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        found.iter().map(decode).collect()
    }

    async fn revoke_key(&self, scope: &TenantScope, id: Uuid) -> Result<bool> {
        scope.require(Permission::Keys)?;
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let gone = query("DELETE FROM audit.api_keys WHERE tenant_id = $1 AND id = $2")
            .bind(scope.tenant().into_uuid())
            .bind(id)
            .execute(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        Ok(gone.rows_affected() > 0)
    }

    async fn touch_key(&self, id: Uuid, at: Timestamp) -> Result<()> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        query("UPDATE audit.api_keys SET last_used_at = greatest(last_used_at, $2) WHERE id = $1")
            .bind(id)
            .bind(row::instant(at))
            .execute(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)
    }

    async fn put_ticket(&self, secret: &SecretHash, ticket: &Ticket, now: Timestamp) -> Result<()> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        query("DELETE FROM audit.tickets WHERE expires_at <= $1")
            .bind(row::instant(now))
            .execute(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        query(
            "INSERT INTO audit.tickets (secret, tenant_id, subject, expires_at, session_expires_at)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (secret) DO UPDATE SET tenant_id = excluded.tenant_id,
                 subject = excluded.subject, expires_at = excluded.expires_at,
                 session_expires_at = excluded.session_expires_at",
        )
        .bind(secret.as_slice())
        .bind(ticket.tenant.into_uuid())
        .bind(&ticket.subject)
        .bind(row::instant(ticket.expires_at))
        .bind(ticket.session_expires_at.map(row::instant))
        .execute(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)
    }

    async fn take_ticket(&self, secret: &SecretHash, now: Timestamp) -> Result<Option<Ticket>> {
        let mut tx = self.pools().begin(Role::Writer, None).await?;
        let taken = query(
            "DELETE FROM audit.tickets WHERE secret = $1
             RETURNING tenant_id, subject, expires_at, session_expires_at",
        )
        .bind(secret.as_slice())
        .fetch_optional(&mut *tx)
        .await
        .map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)?;
        let Some(r) = taken else { return Ok(None) };
        let subject: String = row::get(&r, 1)?;
        let expires_at = row::time(row::get(&r, 2)?)?;
        let mut ticket = Ticket::new(row::tenant_id(&r, 0)?, subject, expires_at);
        ticket.session_expires_at = row::optional_time(&r, 3)?;
        Ok(Some(ticket).filter(|ticket| ticket.expires_at > now))
    }
}
