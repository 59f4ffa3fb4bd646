//! Connections, by what they are for, and transactions that take the role for it.

use std::ops::{Deref, DerefMut};
use std::str::FromStr as _;
use std::time::Duration;

use audit_core::{Error, ErrorKind, Result, TenantId};
use sqlx_core::connection::{ConnectOptions as _, Connection as _};
use sqlx_core::error::Error as SqlxError;
use sqlx_core::executor::Executor as _;
use sqlx_core::pool::PoolConnection;
use sqlx_core::query_as::query_as;
use sqlx_core::transaction::TransactionManager as _;
use sqlx_postgres::{
    PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgSslMode, PgTransactionManager,
    Postgres,
};

use crate::PostgresOptions;
use crate::fault::from_sqlx;

/// The oldest server that is supported, as in `server_version_num`.
pub(crate) const OLDEST_SERVER: i32 = 150_000;

/// A transaction that ends with a rollback unless it is committed.
///
/// Not the driver's own: that gives a connection back whose begin failed, be it in the middle of a
/// transaction. A statement that begins one and takes a role can fail there.
#[derive(Debug)]
pub(crate) struct Tx(PoolConnection<Postgres>);

impl Tx {
    async fn begin(pool: &PgPool, sql: String) -> Result<Self, SqlxError> {
        let mut connection = pool.acquire().await?;
        match PgTransactionManager::begin(&mut connection, Some(sql.into())).await {
            Ok(()) => Ok(Self(connection)),
            Err(error) => {
                connection.close_on_drop();
                Err(error)
            }
        }
    }

    pub(crate) async fn commit(mut self) -> Result<(), SqlxError> {
        PgTransactionManager::commit(&mut self.0).await
    }

    pub(crate) async fn rollback(mut self) -> Result<(), SqlxError> {
        PgTransactionManager::rollback(&mut self.0).await
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl Drop for Tx {
    /// Before anything else is asked of the connection; nothing, when it is over.
    fn drop(&mut self) {
        PgTransactionManager::start_rollback(&mut self.0);
    }
}

/// What a transaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Reads one tenant's log.
    Reader,
    /// Appends, and keeps what belongs to no tenant.
    Writer,
    /// What the writer may, and erases and prunes.
    Maintainer,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Reader, Self::Writer, Self::Maintainer];

    /// The role's name in the database.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Reader => "audit_reader",
            Self::Writer => "audit_writer",
            Self::Maintainer => "audit_maintainer",
        }
    }

    const fn purpose(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Maintainer => "maintainer",
        }
    }

    fn url(self, options: &PostgresOptions) -> &str {
        let own = match self {
            Self::Reader => &options.reader_url,
            Self::Writer => &options.writer_url,
            Self::Maintainer => &options.maintainer_url,
        };
        own.as_ref().unwrap_or(&options.url)
    }
}

/// How a reader's transaction is planned: a list follows an index in its order, or is wrong. Without
/// statistics of a tenant, the planner may think that sorting is cheaper.
const ORDERED: &str = "SET LOCAL enable_sort = off; SET LOCAL enable_incremental_sort = off; \
    SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; ";

/// How a connection to the database is made.
pub(crate) fn connect_options(url: &str, options: &PostgresOptions) -> Result<PgConnectOptions> {
    let mut connect = PgConnectOptions::from_str(url).map_err(from_sqlx)?;
    if let Some(file) = &options.root_certificate {
        connect = connect.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(file);
    }
    Ok(connect
        .application_name(&options.application_name)
        .disable_statement_logging())
}

/// Milliseconds, as the server's settings take them: 0 would be no limit.
fn millis(timeout: Duration) -> String {
    timeout.as_millis().clamp(1, i32::MAX as u128).to_string()
}

/// A connection that was used so recently is not asked first whether it is alive: that would be a
/// round trip for each transaction. One that has broken since is found out when a transaction begins.
const FRESH: Duration = Duration::from_secs(1);

/// What the connections that append keep for as long as they live. Ids are looked up over index scans,
/// also before the tables have statistics and for any number of ids; since their plans don't depend on
/// values, they are made once.
const APPENDING: &str = "SET ROLE audit_writer; SET enable_seqscan = off; SET enable_hashjoin = off; \
    SET enable_mergejoin = off; SET plan_cache_mode = force_generic_plan";

/// A pool for each purpose.
#[derive(Debug, Clone)]
pub(crate) struct Pools {
    reader: PgPool,
    writer: PgPool,
    /// The writer's as well, for nothing but appends: settings that suit them stay set.
    appender: PgPool,
    maintainer: PgPool,
}

impl Pools {
    /// Opens a pool for each purpose, and checks the server and each login.
    pub(crate) async fn open(options: &PostgresOptions) -> Result<Self> {
        let [reader, writer, maintainer] = Role::ALL;
        let pools = Self {
            reader: pool(reader, options.readers, options)?,
            writer: pool(writer, options.writers, options)?,
            appender: appender(options)?,
            maintainer: pool(maintainer, options.maintainers, options)?,
        };
        for role in Role::ALL {
            check_login(pools.pool(role), options.allow_superuser).await?;
            pools.begin(role, None).await?;
        }
        Ok(pools)
    }

    /// The connections for a purpose, as the login: its own privileges are those of the roles that
    /// it was granted.
    pub(crate) fn pool(&self, role: Role) -> &PgPool {
        match role {
            Role::Reader => &self.reader,
            Role::Writer => &self.writer,
            Role::Maintainer => &self.maintainer,
        }
    }

    /// Begins a transaction in a role, in one round trip, within a tenant for what a tenant's request
    /// reads.
    pub(crate) async fn begin(&self, role: Role, tenant: Option<TenantId>) -> Result<Tx> {
        begin(self.pool(role), begin_statement(role, tenant)).await
    }

    /// Begins a transaction that appends, as the writer.
    pub(crate) async fn begin_append(&self, lock_timeout: Duration) -> Result<Tx> {
        let sql = format!("BEGIN; SET LOCAL lock_timeout = {}", millis(lock_timeout));
        begin(&self.appender, sql).await
    }

    pub(crate) async fn close(&self) {
        self.appender.close().await;
        for role in Role::ALL {
            self.pool(role).close().await;
        }
    }
}

/// Begins a transaction with this statement. In a task of its own: a caller that goes away before the
/// answer comes would give a connection back to the pool in the middle of a transaction of which the
/// driver doesn't know yet.
pub(crate) async fn begin(pool: &PgPool, sql: String) -> Result<Tx> {
    let pool = pool.clone();
    to_its_end(async move {
        // As many as there may be connections that broke while nobody used them.
        for _ in 0..pool.size() {
            match Tx::begin(&pool, sql.clone()).await {
                Err(error) if is_broken(&error) => {}
                done => return done.map_err(from_sqlx),
            }
        }
        Tx::begin(&pool, sql).await.map_err(from_sqlx)
    })
    .await
}

/// Whether a connection was cut off, or is in a transaction that failed. A server that shuts down says
/// so first.
fn is_broken(error: &SqlxError) -> bool {
    match error {
        SqlxError::Io(_) => true,
        SqlxError::Database(told) => {
            matches!(told.code().as_deref(), Some("57P01" | "57P02" | "25P02"))
        }
        _ => false,
    }
}

/// Runs what must not be cut off in the middle of a protocol exchange in a task of its own, so that it
/// comes to its end although its caller goes away.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.map_err(|error| {
        Error::new(
            ErrorKind::Internal,
            "a call to the database panicked: its outcome is unknown",
        )
        .with_source(error)
    })?
}

/// What a transaction of a role begins with.
pub(crate) fn begin_statement(role: Role, tenant: Option<TenantId>) -> String {
    let (begin, planned) = match role {
        Role::Reader => ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", ORDERED),
        Role::Writer | Role::Maintainer => ("BEGIN", ""),
    };
    let mut sql = format!("{begin}; SET LOCAL ROLE {}; {planned}", role.name());
    if let Some(tenant) = tenant {
        // Nothing needs to be escaped in a UUID.
        sql.push_str(&format!("SET LOCAL audit.tenant_id = '{tenant}'; "));
    }
    sql
}

fn pool(role: Role, connections: u32, options: &PostgresOptions) -> Result<PgPool> {
    pool_with(role, role.purpose(), "", connections, options)
}

fn appender(options: &PostgresOptions) -> Result<PgPool> {
    let connections = options.writers;
    pool_with(Role::Writer, "appender", APPENDING, connections, options)
}

fn pool_with(
    role: Role,
    purpose: &str,
    settings: &'static str,
    connections: u32,
    options: &PostgresOptions,
) -> Result<PgPool> {
    let name = format!("{} {purpose}", options.application_name);
    let statement_timeout = millis(options.statement_timeout);
    let connect = connect_options(role.url(options), options)?
        .application_name(&name)
        .options([
            ("statement_timeout", statement_timeout.as_str()),
            // A transaction that this program forgot would hold a tenant's head.
            ("idle_in_transaction_session_timeout", "60000"),
            // Plans are made for the values at hand only while that pays.
            ("plan_cache_mode", "auto"),
            // What a plan is told to avoid has a cost that would have it compiled.
            ("jit", "off"),
            ("timezone", "UTC"),
        ]);
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(options.acquire_timeout)
        .test_before_acquire(false)
        .before_acquire(|conn, kept| {
            Box::pin(async move {
                if kept.idle_for >= FRESH {
                    conn.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(move |conn, _| {
            Box::pin(async move {
                if role == Role::Reader {
                    return Ok(());
                }
                conn.execute(settings).await?;
                // A receipt is for what is durable. What is stricter stays.
                let (kept,): (String,) = query_as(
                    "SELECT CASE WHEN current_setting('synchronous_commit') = 'remote_apply'
                         THEN 'remote_apply' ELSE set_config('synchronous_commit', 'on', false) END",
                )
                .fetch_one(conn)
                .await?;
                if matches!(kept.as_str(), "on" | "remote_apply") {
                    Ok(())
                } else {
                    Err(SqlxError::Configuration(
                        "the server doesn't take synchronous_commit = on".into(),
                    ))
                }
            })
        })
        .connect_lazy_with(connect))
}

/// How a snapshot's connection is made: as the reader, and idle for as long as a slow client takes.
pub(crate) fn snapshot_options(options: &PostgresOptions) -> Result<PgConnectOptions> {
    let name = format!("{} snapshot", options.application_name);
    // The server ends what outlives its age, should this process hang.
    let max_age = millis(options.max_snapshot_age + Duration::from_secs(60));
    Ok(connect_options(Role::Reader.url(options), options)?
        .application_name(&name)
        .options([
            (
                "statement_timeout",
                millis(options.statement_timeout).as_str(),
            ),
            ("idle_in_transaction_session_timeout", max_age.as_str()),
            ("jit", "off"),
            ("timezone", "UTC"),
        ]))
}

async fn check_login(pool: &PgPool, allow_superuser: bool) -> Result<()> {
    let (version, login, unbound): (i32, String, bool) = query_as(
        "SELECT current_setting('server_version_num')::integer, rolname::text,
            rolsuper OR rolbypassrls
         FROM pg_roles WHERE rolname = session_user",
    )
    .fetch_one(pool)
    .await
    .map_err(from_sqlx)?;
    check_version(version)?;
    if unbound && !allow_superuser {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the login {login} is a superuser or bypasses row security: no permission binds it. \
                 Use another one, or allow it (AUDIT_ALLOW_SUPERUSER=true)"
            ),
        ));
    }
    Ok(())
}

pub(crate) fn check_version(version: i32) -> Result<()> {
    if version >= OLDEST_SERVER {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Refused,
        format!(
            "the server is PostgreSQL {}: 15 or later is needed",
            version / 10_000
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_before_15_is_refused() {
        for (version, admitted) in [(140_012, false), (150_000, true), (180_001, true)] {
            assert_eq!(check_version(version).is_ok(), admitted, "{version}");
        }
    }
}
