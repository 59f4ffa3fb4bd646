//! Capture in the caller's own PostgreSQL database and transaction.
//!
//! The contract is one SQL function, which any driver in any language can call:
//!
//! ```sql
//! audit.record(tenant uuid, event text) RETURNS uuid
//! ```
//!
//! It leaves a row in the table `audit.outbox`, in the transaction that it is called in, and returns
//! the event's id: its own where the text has one, else a new one (UUIDv7, RFC 9562). The row exists
//! when the transaction commits, and not otherwise; a relay then appends the event to the log, at most
//! 100 ms later when nothing stands in its way. `event` is what a client would send to `POST
//! /api/v1/logs`.
//!
//! - It refuses, with SQLSTATE `22023`, a null, and a text that is no JSON object or has more than 512
//!   KiB. It checks nothing else, since a refusal aborts the caller's transaction. What the log refuses
//!   later is parked with its reason, shown with the dead letters, and can be tried again: it is never
//!   dropped.
//! - It takes no lock that another caller waits for, and sends no notification.
//! - Nobody may call it until its owner says so. Whoever may can name any tenant:
//!
//!   ```sql
//!   GRANT USAGE ON SCHEMA audit TO app;
//!   GRANT EXECUTE ON FUNCTION audit.record(uuid, text) TO app;
//!   ```
//!
//! - Redaction is the relay's: until then the row holds what the caller gave.
//!
//! The function is in every migrated log; [`install`] puts it into another database, whose relay is
//! then given a [`PostgresOutbox`] on that one.
//!
//! # From Rust, with sqlx
//!
//! [`record_in`] is the same with the event checked first, so that one with a bad field is an error
//! that leaves the caller's transaction as it was.
//!
//! ```no_run
//! use audit_core::{Event, SystemClock, TenantId};
//! use audit_store_postgres::outbox;
//! use sqlx_core::{connection::Connection, query::query};
//! use sqlx_postgres::PgConnection;
//!
//! # async fn approve() -> Result<(), Box<dyn std::error::Error>> {
//! let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;
//! let mut connection = PgConnection::connect("postgres://app@localhost/app").await?;
//!
//! let mut transaction = connection.begin().await?;
//! query("UPDATE invoices SET state = 'approved' WHERE id = 'inv-1'")
//!     .execute(&mut *transaction)
//!     .await?;
//! let event = Event::update("invoice", "inv-1").user("ann").reason("quarterly close");
//! outbox::record_in(&mut transaction, tenant, event, &SystemClock).await?;
//! transaction.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! An application that has the `sqlx` facade in version 0.8.6 passes its `sqlx::PgConnection`, which is
//! the same type.
//!
//! # From Rust, with tokio-postgres
//!
//! Parameters are text, so that no feature of that crate is needed.
//!
//! ```text
//! let transaction = client.transaction().await?;
//! transaction
//!     .execute("UPDATE invoices SET state = 'approved' WHERE id = $1", &[&"inv-1"])
//!     .await?;
//! let event = r#"{"action_type": "UPDATE", "resource_type": "invoice", "resource_id": "inv-1"}"#;
//! let row = transaction
//!     .query_one("SELECT audit.record($1::text::uuid, $2)::text", &[&tenant, &event])
//!     .await?;
//! let id: String = row.get(0);
//! transaction.commit().await?;
//! ```
//!
//! # From Python, with psycopg
//!
//! ```python
//! with psycopg.connect(url) as connection, connection.transaction():
//!     connection.execute("UPDATE invoices SET state = 'approved' WHERE id = %s", ("inv-1",))
//!     event = {"action_type": "UPDATE", "resource_type": "invoice", "resource_id": "inv-1"}
//!     (id,) = connection.execute(
//!         "SELECT audit.record(%s, %s)", (tenant, json.dumps(event))
//!     ).fetchone()
//! ```
//!
//! # In a statement of the caller's own
//!
//! By itself the call is one more round trip to the database. A statement that is sent anyway can make it,
//! once for each row that it changes, and not where it changes none:
//!
//! ```sql
//! UPDATE invoices SET state = 'approved' WHERE id = $1 AND state = 'open'
//! RETURNING audit.record($2, $3)
//! ```
//!
//! An event without an id gets one for each row. With an id, all rows that the statement changes are one
//! entry: give one only where no more than one row can change. [`PreparedEvent::new`] checks an event
//! beforehand, as [`record_in`] does.

use std::sync::Arc;

use async_trait::async_trait;
use audit_core::queue::removed;
use audit_core::{
    Clock, Event, EventId, Outbox, OutboxRow, ParkedRow, PreparedEvent, Redrive, Result, Sieve,
    TenantId,
};
use sqlx_core::acquire::Acquire as _;
use sqlx_core::executor::Executor as _;
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::{PgConnection, PgPool};
use uuid::Uuid;

use crate::PostgresStore;
use crate::fault::from_sqlx;
use crate::queue::SIFTED;
use crate::row;

/// The tables and the function; may be run again.
const SQL: &str = include_str!("../migrations/0002_outbox.sql");

/// No further row is taken, or shown to a sieve, when those before it have this many bytes.
const MAX_BYTES: i64 = 16 << 20;

/// Puts the outbox's tables and the function `audit.record` into a database that has no log, where
/// they are not there yet. A migrated log has them.
///
/// Needs the right to make a schema; whoever calls this owns what it makes. Safe to repeat, and for two
/// processes at once.
///
/// # Errors
/// What the engine refuses.
pub async fn install(connection: &mut PgConnection) -> Result<()> {
    let mut transaction = connection.begin().await.map_err(from_sqlx)?;
    for sql in [
        "SELECT pg_advisory_xact_lock(hashtextextended('audit.outbox', 0))",
        "CREATE SCHEMA IF NOT EXISTS audit",
        SQL,
    ] {
        // As text, without parameters, so that it may be several statements.
        transaction.execute(sql).await.map_err(from_sqlx)?;
    }
    transaction.commit().await.map_err(from_sqlx)
}

/// Records an event in the caller's transaction, by `audit.record`. Returns the event's id.
///
/// A transaction is passed as `&mut transaction`; a plain connection commits at once.
///
/// # Errors
/// [`Invalid`](audit_core::ErrorKind::Invalid) with every bad field, before anything is sent: the
/// caller's transaction can go on. Otherwise what the engine refuses, which aborts it.
pub async fn record_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    event: Event,
    clock: &dyn Clock,
) -> Result<EventId> {
    let id = PreparedEvent::new(tenant, event.clone(), clock, &[])?.id();
    query("SELECT audit.record($1, $2)")
        .bind(tenant.into_uuid())
        .bind(event.id(id).to_json())
        .execute(connection)
        .await
        .map_err(|error| from_sqlx(error).with_event_id(id))?;
    Ok(id)
}

/// The outbox of a database, for the relay; that of a log's own is
/// [`PostgresStore::outbox`](crate::PostgresStore::outbox). Cheap to clone.
///
/// Several relays may drain one outbox, in any number of processes: each may append what another has
/// appended, which the events' ids make harmless.
#[derive(Debug, Clone)]
pub struct PostgresOutbox {
    pool: PgPool,
}

type Taken = (i64, Uuid, Uuid, String, row::Micros);
type Parked = (i64, Uuid, Uuid, String, row::Micros, String);

impl PostgresOutbox {
    pub(crate) fn new(store: &PostgresStore) -> Self {
        Self::in_database(store.writer_pool().clone())
    }

    /// The outbox in a database in which [`install`] has run. The pool's login is the one that
    /// installed it, or has SELECT, INSERT, UPDATE and DELETE on `audit.outbox` and
    /// `audit.outbox_parked`, and USAGE on the schema.
    pub fn in_database(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The oldest parked rows behind a number: at most so many that a sieve may be shown them at once.
    async fn parked_behind(&self, n: i64) -> Result<Vec<Parked>> {
        query_as(
            "SELECT n, tenant_id, id, event, recorded_at, reason FROM (
                 SELECT *, sum(octet_length(event)) OVER (ORDER BY n) - octet_length(event) AS before
                 FROM (SELECT * FROM audit.outbox_parked WHERE n > $1 ORDER BY n LIMIT $2) oldest
             ) placed
             WHERE before < $3 ORDER BY n",
        )
        .bind(n)
        .bind(SIFTED)
        .bind(MAX_BYTES)
        .fetch_all(&self.pool)
        .await
        .map_err(from_sqlx)
    }

    /// The numbers of the rows to take: the oldest, or, where there are more than `limit`, of each
    /// tenant its share of the oldest, so that one whose rows stay can't keep others from being taken.
    async fn choose(&self, limit: i64, passing_over: &[Uuid]) -> Result<Vec<i64>> {
        let mut oldest: Vec<i64> = Vec::new();
        // Where tenants are passed over, the oldest rows may be theirs, and many.
        if passing_over.is_empty() {
            oldest = query_scalar("SELECT n FROM audit.outbox ORDER BY n LIMIT $1")
                .bind(limit)
                .fetch_all(&self.pool)
                .await
                .map_err(from_sqlx)?;
            if (oldest.len() as i64) < limit {
                return Ok(oldest);
            }
        }
        // The tenants by a skip through the index; then what is left of the limit by age.
        query_scalar(
            "WITH RECURSIVE tenants (tenant_id) AS (
                 (SELECT tenant_id FROM audit.outbox ORDER BY tenant_id LIMIT 1)
                 UNION ALL
                 SELECT (SELECT o.tenant_id FROM audit.outbox o WHERE o.tenant_id > t.tenant_id
                         ORDER BY o.tenant_id LIMIT 1)
                 FROM tenants t WHERE t.tenant_id IS NOT NULL
             ),
             present AS (
                 SELECT tenant_id FROM tenants
                 WHERE tenant_id IS NOT NULL AND tenant_id <> ALL ($3)
             ),
             shares AS (
                 SELECT o.n FROM present t CROSS JOIN LATERAL (
                     SELECT n FROM audit.outbox WHERE tenant_id = t.tenant_id ORDER BY n
                     LIMIT (SELECT ceil($1::float8 / greatest(count(*), 1))::bigint FROM present)
                 ) o ORDER BY n LIMIT $1
             ),
             rest AS (
                 SELECT n FROM unnest($2::bigint[]) AS oldest (n)
                 WHERE n NOT IN (SELECT n FROM shares)
                 ORDER BY n LIMIT greatest(0, $1 - (SELECT count(*) FROM shares))
             )
             SELECT n FROM shares UNION ALL SELECT n FROM rest",
        )
        .bind(limit)
        .bind(oldest)
        .bind(passing_over)
        .fetch_all(&self.pool)
        .await
        .map_err(from_sqlx)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Outbox for PostgresOutbox {
    /// With a backlog of more than `limit` rows, and where tenants are passed over, each tenant gets its
    /// share of them, oldest first. Rows
    /// of more than 16 MiB together are not taken at once.
    async fn take(&self, limit: usize, passing_over: &[TenantId]) -> Result<Vec<OutboxRow>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let passing_over: Vec<Uuid> = passing_over.iter().map(|t| t.into_uuid()).collect();
        let chosen = self.choose(limit, &passing_over).await?;
        let rows: Vec<Taken> = query_as(
            "SELECT n, tenant_id, id, event, recorded_at FROM audit.outbox JOIN (
                 SELECT n, sum(octet_length(event)) OVER (ORDER BY n) - octet_length(event) AS before
                 FROM audit.outbox WHERE n = ANY ($1)
             ) AS chosen USING (n)
             WHERE before < $2 ORDER BY n",
        )
        .bind(chosen)
        .bind(MAX_BYTES)
        .fetch_all(&self.pool)
        .await
        .map_err(from_sqlx)?;
        rows.into_iter().map(outbox_row).collect()
    }

    async fn done(&self, rows: &[i64]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        // Locked in the order of their numbers: another relay that is done with the same rows waits,
        // and no two wait for each other.
        query(
            "WITH held AS (
                 SELECT n FROM audit.outbox WHERE n = ANY ($1) ORDER BY n FOR UPDATE
             )
             DELETE FROM audit.outbox o USING held WHERE o.n = held.n",
        )
        .bind(rows)
        .execute(&self.pool)
        .await
        .map(|_| ())
        .map_err(from_sqlx)
    }

    /// A row that is parked already, or done, is passed over.
    async fn park(&self, row: i64, reason: &str) -> Result<()> {
        query(
            "WITH refused AS (
                 DELETE FROM audit.outbox WHERE n = $1
                 RETURNING n, tenant_id, id, recorded_at, event
             )
             INSERT INTO audit.outbox_parked (n, tenant_id, id, recorded_at, event, reason)
             SELECT n, tenant_id, id, recorded_at, event, $2 FROM refused",
        )
        .bind(row)
        // A reason may quote what it refuses; text has no NUL.
        .bind(reason.replace('\0', "\u{FFFD}"))
        .execute(&self.pool)
        .await
        .map(|_| ())
        .map_err(from_sqlx)
    }

    async fn parked(&self, limit: usize) -> Result<Vec<ParkedRow>> {
        let rows: Vec<Parked> = query_as(
            "SELECT n, tenant_id, id, event, recorded_at, reason FROM audit.outbox_parked
             ORDER BY n LIMIT $1",
        )
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(from_sqlx)?;
        rows.into_iter().map(parked_row).collect()
    }

    /// They keep their numbers, and so come before all that was recorded later.
    async fn redrive(&self, rows: &Redrive<i64>) -> Result<u64> {
        let named = match rows {
            Redrive::All => None,
            Redrive::Only(rows) => Some(rows),
        };
        query(
            "WITH named AS (
                 DELETE FROM audit.outbox_parked WHERE $1::bigint[] IS NULL OR n = ANY ($1)
                 RETURNING n, tenant_id, id, recorded_at, event
             )
             INSERT INTO audit.outbox (n, tenant_id, id, recorded_at, event) OVERRIDING SYSTEM VALUE
             SELECT n, tenant_id, id, recorded_at, event FROM named",
        )
        .bind(named)
        .execute(&self.pool)
        .await
        .map(|answer| answer.rows_affected())
        .map_err(from_sqlx)
    }

    async fn sift(&self, sieve: Arc<dyn Sieve<ParkedRow>>) -> Result<u64> {
        let (mut behind, mut count) = (0, 0);
        loop {
            let rows = self.parked_behind(behind).await?;
            let numbers: Vec<i64> = rows.iter().map(|row| row.0).collect();
            let Some(last) = numbers.last() else {
                return Ok(count);
            };
            behind = *last;
            let rows = rows
                .into_iter()
                .map(parked_row)
                .collect::<Result<Vec<_>>>()?;
            let gone = removed(&*sieve, &rows, numbers).await?;
            count += query("DELETE FROM audit.outbox_parked WHERE n = ANY ($1)")
                .bind(gone)
                .execute(&self.pool)
                .await
                .map_err(from_sqlx)?
                .rows_affected();
        }
    }
}

fn parked_row((n, tenant, id, event, recorded_at, reason): Parked) -> Result<ParkedRow> {
    let row = outbox_row((n, tenant, id, event, recorded_at))?;
    Ok(ParkedRow::new(row, reason))
}

fn outbox_row((n, tenant, id, event, recorded_at): Taken) -> Result<OutboxRow> {
    Ok(OutboxRow::new(
        n,
        TenantId::new(tenant),
        EventId::new(id),
        event,
        row::time(recorded_at)?,
    ))
}
