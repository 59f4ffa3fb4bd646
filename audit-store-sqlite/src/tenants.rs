//! Tenants: rows of `tenants`, and the event that says that one changed.

use async_trait::async_trait;
use audit_core::offboarding::admit_update;
use audit_core::tenant::{Tenant, TenantFilter, TenantSecret, TenantStatus, TenantUpdate};
use audit_core::{Error, ErrorKind, PreparedEvent, Result, TenantId, TenantStore};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::fault::from_sqlite;
use crate::offboarding::ending;
use crate::reader::{tenant_no, unknown_tenant};
use crate::retention::protection;
use crate::writer::{Ledger, Writer};
use crate::{SqliteStore, row};

const COLUMNS: &str = "id, name, status, created_at, secret, public_log";

fn decode(r: &Row<'_>) -> rusqlite::Result<Tenant> {
    let secret = TenantSecret::new(row::bytes(r, 4)?);
    let name: String = r.get(1)?;
    let mut tenant = Tenant::new(row::tenant_id(r, 0)?, name, row::time(r, 3)?, secret)
        .map_err(|e| row::bad(1, Type::Text, e))?;
    tenant.status = row::name(r, 2)?;
    tenant.public_log = r.get(5)?;
    Ok(tenant)
}

/// Writes the row of a new tenant.
pub(crate) fn insert(conn: &Connection, tenant: &Tenant) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO tenants (id, name, status, created_at, secret, public_log)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )
    .and_then(|mut statement| {
        statement.execute(params![
            tenant.id.as_uuid().as_bytes(),
            tenant.name,
            tenant.status.as_str(),
            tenant.created_at.as_micros(),
            tenant.secret.as_bytes(),
            tenant.public_log,
        ])
    })
    .map(drop)
    .map_err(from_sqlite)
}

fn find(conn: &Connection, id: TenantId) -> Result<Option<Tenant>> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM tenants WHERE id = ?1"))
        .and_then(|mut statement| {
            statement
                .query_row([id.as_uuid().as_bytes()], decode)
                .optional()
        })
        .map_err(from_sqlite)
}

impl Ledger<'_> {
    fn update_tenant(
        &mut self,
        conn: &Connection,
        id: TenantId,
        update: &TenantUpdate,
        event: PreparedEvent,
    ) -> Result<Tenant> {
        let mut tenant = find(conn, id)?.ok_or_else(|| unknown_tenant(id))?;
        if tenant.status == TenantStatus::Deleted {
            tenant.status.admit_read(id)?;
        }
        if let Some((no, _)) = tenant_no(conn, id)? {
            admit_update(id, ending(conn, no)?.is_some(), update)?;
            protection(conn, no)?.admit_update(id, update)?;
        }
        self.tell(conn, id, event)?;
        update.apply(&mut tenant);
        conn.prepare_cached(
            "UPDATE tenants SET name = ?2, status = ?3, public_log = ?4 WHERE id = ?1",
        )
        .and_then(|mut statement| {
            let (id, status) = (id.as_uuid().as_bytes(), tenant.status.as_str());
            statement.execute(params![id, tenant.name, status, tenant.public_log])
        })
        .map_err(from_sqlite)?;
        if let Some(sealer) = self.remembered().get_mut(&id) {
            sealer.status = tenant.status;
        }
        Ok(tenant)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl TenantStore for SqliteStore {
    async fn create_tenant(&self, tenant: &Tenant) -> Result<()> {
        let tenant = tenant.clone();
        self.write(move |conn| match tenant_no(conn, tenant.id)? {
            None => insert(conn, &tenant),
            Some((_, status)) => {
                let (kind, message) = match status {
                    TenantStatus::Deleted => {
                        (ErrorKind::TenantDeleted, "the id was a deleted tenant's")
                    }
                    _ => (ErrorKind::Conflict, "the id is another tenant's"),
                };
                Err(Error::new(kind, message).with_tenant(tenant.id))
            }
        })
        .await
    }

    async fn tenant(&self, id: TenantId) -> Result<Option<Tenant>> {
        self.read(move |reader| find(&reader.conn, id)).await
    }

    async fn tenants(
        &self,
        filter: &TenantFilter,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Vec<Tenant>> {
        let filter = filter.clone();
        self.read(move |reader| {
            let mut statement = reader
                .conn
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM tenants
                     WHERE (?1 IS NULL OR id > ?1) AND (?2 IS NULL OR name = ?2)
                       AND (?3 IS NULL OR status = ?3)
                     ORDER BY id LIMIT ?4"
                ))
                .map_err(from_sqlite)?;
            let rows = statement
                .query_map(
                    params![
                        after.map(|id| id.as_uuid().into_bytes()),
                        filter.name,
                        filter.status.map(TenantStatus::as_str),
                        i64::try_from(limit).unwrap_or(i64::MAX),
                    ],
                    decode,
                )
                .map_err(from_sqlite)?;
            rows.collect::<rusqlite::Result<_>>().map_err(from_sqlite)
        })
        .await
    }

    async fn update_tenant(
        &self,
        id: TenantId,
        update: &TenantUpdate,
        event: &PreparedEvent,
    ) -> Result<Tenant> {
        if let Some(name) = &update.name {
            Tenant::check_name(name)?;
        }
        let (update, event) = (update.clone(), event.clone());
        self.writer()?
            .run(move |writer: &mut Writer| {
                writer.transact(|conn, ledger| ledger.update_tenant(conn, id, &update, event))
            })
            .await
    }
}
