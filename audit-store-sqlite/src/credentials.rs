//! API keys and stream tickets.

use async_trait::async_trait;
use audit_core::credential::{ApiKey, CredentialStore, KeyPlace, SecretHash, Ticket};
use audit_core::scope::Permissions;
use audit_core::tlog::Timestamp;
use audit_core::{Error, ErrorKind, Permission, Result, TenantScope};
use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

use crate::fault::from_sqlite;
use crate::retention::existing_tenant;
use crate::{SqliteStore, row};

const COLUMNS: &str = "id, tenant, name, role, permissions, created_at, expires_at, last_used_at";

fn decode(r: &Row<'_>) -> rusqlite::Result<ApiKey> {
    let id = Uuid::from_bytes(row::bytes(r, 0)?);
    let name: String = r.get(2)?;
    let mut key = ApiKey::new(
        id,
        row::tenant_id(r, 1)?,
        name,
        row::name(r, 3)?,
        row::time(r, 5)?,
    );
    key.permissions = Permissions::from_scope(&r.get::<_, String>(4)?);
    key.expires_at = row::optional_time(r, 6)?;
    key.last_used_at = row::optional_time(r, 7)?;
    Ok(key)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CredentialStore for SqliteStore {
    async fn add_key(&self, scope: &TenantScope, key: &ApiKey, secret: &SecretHash) -> Result<()> {
        scope.require(Permission::Keys)?;
        if key.tenant != scope.tenant() {
            return Err(Error::new(
                ErrorKind::Forbidden,
                "the key is another tenant's",
            ));
        }
        let (key, secret) = (key.clone(), *secret);
        self.write(move |conn| {
            existing_tenant(conn, key.tenant)?;
            let added = conn
                .execute(
                    "INSERT INTO api_keys (id, tenant, secret, name, role, permissions, created_at,
                        expires_at, last_used_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING",
                    params![
                        key.id.as_bytes(),
                        key.tenant.as_uuid().as_bytes(),
                        secret,
                        key.name,
                        key.role.as_str(),
                        key.permissions.to_scope(),
                        key.created_at.as_micros(),
                        key.expires_at.map(Timestamp::as_micros),
                        key.last_used_at.map(Timestamp::as_micros),
                    ],
                )
                .map_err(from_sqlite)?;
            if added == 0 {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "there is such a key already",
                ));
            }
            Ok(())
        })
        .await
    }

    async fn find_key(&self, secret: &SecretHash) -> Result<Option<ApiKey>> {
        let secret = *secret;
        self.read(move |reader| {
            reader
                .conn
                .prepare_cached(&format!("SELECT {COLUMNS} FROM api_keys WHERE secret = ?1"))
                .and_then(|mut statement| statement.query_row([secret], decode).optional())
                .map_err(from_sqlite)
        })
        .await
    }

    async fn keys(
        &self,
        scope: &TenantScope,
        after: Option<KeyPlace>,
        limit: usize,
    ) -> Result<Vec<ApiKey>> {
        scope.require(Permission::Keys)?;
        let tenant = scope.tenant();
        // Before every key there is.
        let (since, id) = after.map_or((i64::MIN, Uuid::nil()), |after| {
            (after.created_at.as_micros(), after.id)
        });
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(move |reader| {
            reader
                .conn
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM api_keys
                     WHERE tenant = ?1 AND (created_at, id) > (?2, ?3)
                     ORDER BY created_at, id LIMIT ?4"
                ))
                .and_then(|mut statement| {
                    statement
                        .query_map(
                            params![tenant.as_uuid().as_bytes(), since, id.as_bytes(), limit],
                            decode,
                        )?
                        .collect()
                })
                .map_err(from_sqlite)
        })
        .await
    }

    async fn revoke_key(&self, scope: &TenantScope, id: Uuid) -> Result<bool> {
        scope.require(Permission::Keys)?;
        let tenant = scope.tenant();
        self.write(move |conn| {
            conn.execute(
                "DELETE FROM api_keys WHERE tenant = ?1 AND id = ?2",
                params![tenant.as_uuid().as_bytes(), id.as_bytes()],
            )
            .map(|gone| gone > 0)
            .map_err(from_sqlite)
        })
        .await
    }

    async fn touch_key(&self, id: Uuid, at: Timestamp) -> Result<()> {
        self.write(move |conn| {
            conn.execute(
                "UPDATE api_keys SET last_used_at = max(coalesce(last_used_at, ?2), ?2)
                 WHERE id = ?1",
                params![id.as_bytes(), at.as_micros()],
            )
            .map(drop)
            .map_err(from_sqlite)
        })
        .await
    }

    async fn put_ticket(&self, secret: &SecretHash, ticket: &Ticket, now: Timestamp) -> Result<()> {
        let (secret, ticket) = (*secret, ticket.clone());
        self.write(move |conn| {
            conn.execute(
                "DELETE FROM tickets WHERE expires_at <= ?1",
                [now.as_micros()],
            )
            .map_err(from_sqlite)?;
            conn.execute(
                "INSERT OR REPLACE INTO tickets (secret, tenant, subject, expires_at,
                    session_expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    secret,
                    ticket.tenant.as_uuid().as_bytes(),
                    ticket.subject,
                    ticket.expires_at.as_micros(),
                    ticket.session_expires_at.map(Timestamp::as_micros),
                ],
            )
            .map(drop)
            .map_err(from_sqlite)
        })
        .await
    }

    async fn take_ticket(&self, secret: &SecretHash, now: Timestamp) -> Result<Option<Ticket>> {
        let secret = *secret;
        let ticket = self
            .write(move |conn| {
                conn.query_row(
                    "DELETE FROM tickets WHERE secret = ?1
                     RETURNING tenant, subject, expires_at, session_expires_at",
                    [secret],
                    |r| {
                        let subject: String = r.get(1)?;
                        let mut ticket =
                            Ticket::new(row::tenant_id(r, 0)?, subject, row::time(r, 2)?);
                        ticket.session_expires_at = row::optional_time(r, 3)?;
                        Ok(ticket)
                    },
                )
                .optional()
                .map_err(from_sqlite)
            })
            .await?;
        Ok(ticket.filter(|ticket| ticket.expires_at > now))
    }
}
