//! The schema: its roles, and what has to be run to bring a database up to it.

use audit_core::{Error, ErrorKind, Result};
use sqlx_core::connection::Connection as _;
use sqlx_core::executor::Executor as _;
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_postgres::PgConnection;

use crate::PostgresOptions;
use crate::fault::{at_start, from_sqlx};
use crate::pool::{check_version, connect_options};

/// What has to be run, once each and in this order.
const MIGRATIONS: [&str; 17] = [
    include_str!("../migrations/0001_log.sql"),
    include_str!("../migrations/0002_outbox.sql"),
    include_str!("../migrations/0003_queue.sql"),
    include_str!("../migrations/0004_index.sql"),
    include_str!("../migrations/0005_append.sql"),
    include_str!("../migrations/0006_checkpoints.sql"),
    include_str!("../migrations/0007_checkpoints_stay.sql"),
    include_str!("../migrations/0008_vacuum.sql"),
    include_str!("../migrations/0009_retention.sql"),
    include_str!("../migrations/0010_erasures.sql"),
    include_str!("../migrations/0011_deployment.sql"),
    include_str!("../migrations/0012_epochs.sql"),
    include_str!("../migrations/0013_public_logs.sql"),
    include_str!("../migrations/0014_offboarding.sql"),
    include_str!("../migrations/0015_endings.sql"),
    include_str!("../migrations/0016_guarded.sql"),
    include_str!("../migrations/0017_ended_tenants.sql"),
];

/// What this program works with.
pub(crate) const VERSION: i32 = MIGRATIONS.len() as i32;

/// Months that have their partition before they begin.
const MONTHS_AHEAD: i32 = 2;

/// Any number that nobody else locks: "audit" in ASCII.
const LOCK: i64 = 0x61_75_64_69_74;

/// Brings the database at [`PostgresOptions::url`] up to what this program needs: makes the schema
/// `audit`, the four roles, tables, functions and this and the next two months' partitions, and
/// grants the login the roles that a store uses, unless it is a superuser, who needs none.
///
/// May be repeated, and run by several processes at once: each migration runs once, in a transaction
/// of its own. The login needs the right to create roles, unless they are there and it is a member
/// of `audit_owner`, and to create a schema, unless that is there.
///
/// # Errors
/// [`ErrorKind::Refused`] when the server is too old, when the login lacks a right, or when a newer
/// program has migrated the database; [`ErrorKind::Unavailable`] when it is away.
pub async fn migrate(options: &PostgresOptions) -> Result<()> {
    bring_up(options).await.map_err(at_start)
}

async fn bring_up(options: &PostgresOptions) -> Result<()> {
    let connect = connect_options(&options.url, options)?;
    let mut conn = PgConnection::connect_with(&connect)
        .await
        .map_err(from_sqlx)?;
    let (version,): (i32,) = query_as("SELECT current_setting('server_version_num')::integer")
        .fetch_one(&mut conn)
        .await
        .map_err(from_sqlx)?;
    check_version(version)?;
    // Roles belong to the cluster, locks to a database: making a role that another database's
    // migration makes at the same time is tolerated below.
    query("SELECT pg_advisory_lock($1)")
        .bind(LOCK)
        .execute(&mut conn)
        .await
        .map_err(from_sqlx)?;
    // The lock ends with the connection.
    let done = locked(&mut conn, version).await;
    conn.close().await.map_err(from_sqlx)?;
    done
}

async fn locked(conn: &mut PgConnection, server: i32) -> Result<()> {
    make_roles(conn).await?;
    grant_roles(conn).await?;
    let owner = Owner::of(conn, server).await?;
    owner.run(conn, "", MAKE_MIGRATIONS).await?;
    let (applied,): (i32,) = query_as("SELECT coalesce(max(version), 0) FROM audit.migrations")
        .fetch_one(&mut *conn)
        .await
        .map_err(from_sqlx)?;
    check_schema(applied, false)?;
    for (version, migration) in (1..).zip(MIGRATIONS).skip(applied.unsigned_abs() as usize) {
        let note = format!("INSERT INTO audit.migrations (version) VALUES ({version})");
        owner.run(conn, migration, &note).await?;
    }
    let ahead = format!(
        "SELECT audit.make_partition(now() + n * interval '1 month')
         FROM generate_series(0, {MONTHS_AHEAD}) AS n"
    );
    owner.run(conn, "", &ahead).await
}

const MAKE_MIGRATIONS: &str = "
    CREATE TABLE IF NOT EXISTS audit.migrations (
        version    integer     PRIMARY KEY,
        applied_at timestamptz NOT NULL DEFAULT now()
    );
    GRANT USAGE ON SCHEMA audit TO audit_reader, audit_writer, audit_maintainer;
    GRANT SELECT ON audit.migrations TO PUBLIC";

/// How the login comes to act as the owner: it is a member only within each transaction, unless it is
/// one anyway. The lock of a migration is of one database, and another one's may run at the same
/// time: until a transaction ends, the other waits for this membership.
struct Owner {
    take: &'static str,
    give_back: &'static str,
}

impl Owner {
    async fn of(conn: &mut PgConnection, server: i32) -> Result<Self> {
        // From 16 on, who made a role is a member of it without the right to take it.
        let right = if server >= 160_000 { "SET" } else { "MEMBER" };
        let (is_member,): (bool,) = query_as("SELECT pg_has_role(current_user, 'audit_owner', $1)")
            .bind(right)
            .fetch_one(conn)
            .await
            .map_err(from_sqlx)?;
        let (take, give_back) = match is_member {
            true => ("", ""),
            false => (
                "GRANT audit_owner TO CURRENT_USER;",
                "REVOKE audit_owner FROM CURRENT_USER;",
            ),
        };
        Ok(Self { take, give_back })
    }

    /// Runs two texts of statements as the owner, in one transaction.
    async fn run(&self, conn: &mut PgConnection, first: &str, second: &str) -> Result<()> {
        let Self { take, give_back } = self;
        let sql = format!(
            "BEGIN; {take}
             DO $do$
             BEGIN
                 IF to_regnamespace('audit') IS NULL THEN
                     CREATE SCHEMA audit AUTHORIZATION audit_owner;
                 END IF;
             END
             $do$;
             SET LOCAL ROLE audit_owner; {first}; {second}; RESET ROLE; {give_back} COMMIT"
        );
        run(conn, &sql).await
    }
}

async fn make_roles(conn: &mut PgConnection) -> Result<()> {
    run(
        conn,
        "DO $do$
         DECLARE
             role text;
         BEGIN
             FOREACH role IN ARRAY
                 ARRAY['audit_owner', 'audit_reader', 'audit_writer', 'audit_maintainer']
             LOOP
                 IF to_regrole(role) IS NULL THEN
                     BEGIN
                         EXECUTE format('CREATE ROLE %I NOLOGIN', role);
                     EXCEPTION WHEN duplicate_object OR unique_violation THEN
                         NULL;
                     END;
                 END IF;
             END LOOP;
         END
         $do$",
    )
    .await
}

async fn grant_roles(conn: &mut PgConnection) -> Result<()> {
    run(
        conn,
        "DO $do$
         DECLARE
             role text;
         BEGIN
             FOREACH role IN ARRAY ARRAY['audit_reader', 'audit_writer', 'audit_maintainer']
             LOOP
                 IF NOT pg_has_role(current_user, role, 'USAGE') THEN
                     BEGIN
                         EXECUTE format('GRANT %I TO CURRENT_USER', role);
                     EXCEPTION WHEN unique_violation THEN
                         NULL;
                     END;
                 END IF;
             END LOOP;
         END
         $do$",
    )
    .await
}

/// Refuses a schema that this program can't work with.
pub(crate) fn check_schema(version: i32, must_be_complete: bool) -> Result<()> {
    if version > VERSION {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the database has schema version {version}, this program knows up to {VERSION}: \
                 use a newer program"
            ),
        ));
    }
    if must_be_complete && version < VERSION {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the database has schema version {version}, this program needs {VERSION}: \
                 migrate it first"
            ),
        ));
    }
    Ok(())
}

async fn run(conn: &mut PgConnection, sql: &str) -> Result<()> {
    // As text, without parameters, so that it may be several statements.
    conn.execute(sql).await.map(drop).map_err(from_sqlx)
}

/// The SQL that makes a login for each purpose, none of them a member of two roles: what
/// [`PostgresOptions::reader_url`] and the other two are given. Passwords are for the operator to
/// set.
pub fn login_statements() -> String {
    let mut sql = String::new();
    for (purpose, may) in [
        ("reader", "reads one tenant's log"),
        ("writer", "appends"),
        ("maintainer", "erases and prunes"),
    ] {
        sql.push_str(&format!(
            "-- {may}\n\
             CREATE ROLE audit_{purpose}_login LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE\n    \
             PASSWORD 'change me' IN ROLE audit_{purpose};\n"
        ));
    }
    sql
}
