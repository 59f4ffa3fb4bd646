//! What somebody with the database changes in its tables, behind the store's back: as the superuser, since
//! no role of the store may.

use std::collections::BTreeSet;
use std::sync::Arc;

use audit_conformance::TamperingHarness;
use audit_conformance::tampering::Shown::{Export, Lookup, Nobody, Reading, Tiles};
use audit_conformance::tampering::{Cell, Holds, Replacement, Row, Table};
use audit_core::{Clock as _, ManualClock, SystemClock};
use audit_store_postgres::PostgresStore;
use sqlx_core::connection::Connection as _;
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_core::row::Row as _;
use sqlx_postgres::{PgConnection, PgRow};
use tokio::sync::Mutex;

use crate::fixture::Database;

struct Behind {
    database: Database,
    superuser: Mutex<PgConnection>,
}

/// The type of each of a table's columns, which are those that it is listed with.
async fn types(conn: &mut PgConnection, table: &Table) -> Vec<String> {
    let found: Vec<(String, String)> = query_as(
        "SELECT attname::text, atttypid::regtype::text FROM pg_attribute
         WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
    )
    .bind(table.name)
    .fetch_all(conn)
    .await
    .unwrap();
    let columns = table.columns.iter().map(|(column, _)| *column);
    let listed: BTreeSet<&str> = columns.collect();
    let stored: BTreeSet<&str> = found.iter().map(|(name, _)| &**name).collect();
    assert_eq!(stored, listed, "the columns of {}", table.name);
    let of = |column: &str| found.iter().find(|(name, _)| name == column).unwrap();
    let columns = table.columns.iter();
    columns.map(|(column, _)| of(column).1.clone()).collect()
}

/// A column as what a [`Cell`] holds.
fn read_as(column: &str, kind: &str) -> String {
    match kind {
        "uuid" => format!("uuid_send({column})"),
        "timestamp with time zone" => {
            format!("(extract(epoch FROM {column}) * 1000000)::bigint")
        }
        "bigint" | "smallint" => format!("{column}::bigint"),
        "boolean" => format!("{column}::int::bigint"),
        "xid8" => format!("{column}::text"),
        "inet" => format!("host({column})"),
        _ => column.to_owned(),
    }
}

/// The column's value from what a [`Cell`] holds.
fn written_as(parameter: usize, kind: &str) -> String {
    match kind {
        "uuid" => format!("encode(${parameter}::bytea, 'hex')::uuid"),
        "timestamp with time zone" => {
            format!("'epoch'::timestamptz + ${parameter}::bigint * interval '1 microsecond'")
        }
        "bigint" => format!("${parameter}::bigint"),
        "smallint" => format!("${parameter}::bigint::smallint"),
        "boolean" => format!("${parameter}::bigint::int::boolean"),
        "bytea" => format!("${parameter}::bytea"),
        "text" => format!("${parameter}::text"),
        other => format!("${parameter}::text::{other}"),
    }
}

fn cell(row: &PgRow, at: usize, kind: &str) -> Cell {
    match kind {
        "uuid" | "bytea" => {
            let bytes: Option<Vec<u8>> = row.get(at);
            bytes.map_or(Cell::Null, Cell::Bytes)
        }
        "timestamp with time zone" | "bigint" | "smallint" | "boolean" => {
            let n: Option<i64> = row.get(at);
            n.map_or(Cell::Null, Cell::Integer)
        }
        _ => {
            let text: Option<String> = row.get(at);
            text.map_or(Cell::Null, Cell::Text)
        }
    }
}

async fn run(
    conn: &mut PgConnection,
    sql: &str,
    cells: Vec<(&Cell, &str)>,
) -> Result<(), sqlx_core::error::Error> {
    let mut statement = query(sql);
    for (cell, kind) in cells {
        statement = match (cell, kind) {
            (Cell::Integer(n), _) => statement.bind(*n),
            (Cell::Text(text), _) => statement.bind(text.clone()),
            (Cell::Bytes(bytes), _) => statement.bind(bytes.clone()),
            (Cell::Null, "uuid" | "bytea") => statement.bind(None::<Vec<u8>>),
            (Cell::Null, "timestamp with time zone" | "bigint" | "smallint" | "boolean") => {
                statement.bind(None::<i64>)
            }
            (Cell::Null, _) => statement.bind(None::<String>),
        };
    }
    statement.execute(conn).await.map(drop)
}

async fn replaced(
    conn: &mut PgConnection,
    replacements: &[Replacement],
) -> Result<(), sqlx_core::error::Error> {
    let mut tx = conn.begin().await?;
    for Replacement { table, gone, come } in replacements {
        let table = &Behind::TABLES[*table];
        let types = types(&mut tx, table).await;
        let place = |name: &&str| table.columns.iter().position(|(n, _)| n == name).unwrap();
        let key: Vec<usize> = table.key.iter().map(place).collect();
        let conditions = key.iter().enumerate().map(|(n, at)| {
            let column = table.columns[*at].0;
            format!("{column} = {}", written_as(n + 1, &types[*at]))
        });
        let delete = format!(
            "DELETE FROM {} WHERE {}",
            table.name,
            conditions.collect::<Vec<_>>().join(" AND ")
        );
        for row in gone {
            let cells = key.iter().map(|at| (&row[*at], &*types[*at])).collect();
            run(&mut tx, &delete, cells).await?;
        }
        let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
        let values = types.iter().enumerate();
        let values = values.map(|(n, kind)| written_as(n + 1, kind));
        let insert = format!(
            "INSERT INTO {} ({}) VALUES ({})",
            table.name,
            names.join(", "),
            values.collect::<Vec<_>>().join(", ")
        );
        for row in come {
            let cells = row.iter().zip(types.iter().map(|kind| &**kind)).collect();
            run(&mut tx, &insert, cells).await?;
        }
    }
    tx.commit().await
}

impl TamperingHarness for Behind {
    type Store = PostgresStore;

    const TABLES: &'static [Table] = &[
        Table {
            name: "audit.events",
            holds: Holds::Entries,
            key: &["tenant_id", "created_at", "seq"],
            columns: &[
                ("tenant_id", Export),
                ("seq", Export),
                ("created_at", Export),
                ("occurred_at", Export),
                ("id", Export),
                ("action_type", Export),
                ("severity", Export),
                ("outcome", Export),
                ("kind", Export),
                // The tree has it once more.
                ("leaf_hash", Reading),
                ("opening", Export),
                ("action", Export),
                ("ctl", Export),
                ("user_id", Export),
                ("actor_type", Export),
                ("actor_name", Export),
                ("on_behalf_of", Export),
                ("resource_type", Export),
                ("resource_id", Export),
                ("resource_name", Export),
                ("related_resources", Export),
                ("session_id", Export),
                ("request_id", Export),
                ("trace_id", Export),
                ("user_agent", Export),
                ("ip_address", Export),
                ("reason", Export),
                ("before_state", Export),
                ("after_state", Export),
                ("metadata", Export),
            ],
        },
        Table {
            name: "audit.ids",
            holds: Holds::Ids,
            key: &["tenant_id", "id"],
            columns: &[
                ("tenant_id", Lookup),
                ("id", Lookup),
                ("seq", Lookup),
                ("created_at", Lookup),
                // The lowest hashes of the tree.
                ("leaf_hash", Tiles),
                // What repeats are compared by.
                ("content_key", Nobody),
                ("content_tag", Nobody),
            ],
        },
        Table {
            name: "audit.heads",
            holds: Holds::Head,
            key: &["tenant_id"],
            columns: &[
                ("tenant_id", Export),
                // Whether the tenant is served.
                ("status", Nobody),
                ("size", Export),
                ("peaks", Export),
                ("created_at", Export),
                ("pruned_below", Export),
                // Where to read why an entry is gone; the entry there is what says it.
                ("pruned_by", Nobody),
                // How far pruned rows were removed, and by what workers find what has grown.
                ("swept_below", Nobody),
                ("changed", Nobody),
                ("era", Nobody),
            ],
        },
        Table {
            name: "audit.subtrees",
            holds: Holds::Subtrees,
            key: &["tenant_id", "level", "idx"],
            columns: &[
                ("tenant_id", Tiles),
                ("level", Tiles),
                ("idx", Tiles),
                ("root", Tiles),
            ],
        },
        Table {
            name: "audit.kept_leaves",
            holds: Holds::KeptLeaves,
            key: &["tenant_id", "seq"],
            columns: &[
                ("tenant_id", Tiles),
                ("seq", Tiles),
                // Whether the next prune keeps it.
                ("kind", Nobody),
                ("leaf_data", Tiles),
            ],
        },
        Table {
            name: "audit.checkpoints",
            holds: Holds::Checkpoints,
            key: &["tenant_id", "size"],
            columns: &[
                ("tenant_id", Export),
                ("size", Export),
                ("root", Export),
                ("note", Export),
                // Which ones a later one takes the place of.
                ("signed_at", Nobody),
                ("handover", Nobody),
                ("published_at", Nobody),
            ],
        },
        Table {
            name: "audit.key_changes",
            holds: Holds::KeyChanges,
            key: &["tenant_id", "seq"],
            columns: &[
                ("tenant_id", Export),
                ("seq", Export),
                ("old_vkey", Export),
                ("new_vkey", Export),
            ],
        },
        Table {
            name: "audit.epochs",
            holds: Holds::Epochs,
            key: &["tenant_id", "seq"],
            columns: &[("tenant_id", Export), ("seq", Export), ("epoch", Export)],
        },
    ];

    async fn open() -> Self {
        let database = Database::open().await;
        // Partitions of months that are over may be dropped while a head says that all is pruned.
        database.clock.set(SystemClock.now());
        let superuser = Mutex::new(database.connect().await);
        Self {
            database,
            superuser,
        }
    }

    fn store(&self) -> &PostgresStore {
        &self.database.store
    }

    fn clock(&self) -> Arc<ManualClock> {
        self.database.clock.clone()
    }

    async fn rows(&self, table: &'static Table) -> Vec<Row> {
        let mut conn = self.superuser.lock().await;
        let types = types(&mut conn, table).await;
        let columns = table.columns.iter().zip(&types);
        let columns = columns.map(|((name, _), kind)| read_as(name, kind));
        let sql = format!(
            "SELECT {} FROM {} ORDER BY {}",
            columns.collect::<Vec<_>>().join(", "),
            table.name,
            table.key.join(", ")
        );
        let rows = query(&sql).fetch_all(&mut *conn).await.unwrap();
        let rows = rows.iter().map(|row| {
            let cells = types.iter().enumerate();
            cells.map(|(at, kind)| cell(row, at, kind)).collect()
        });
        rows.collect()
    }

    async fn replace(&self, replacements: &[Replacement]) -> bool {
        let mut conn = self.superuser.lock().await;
        match replaced(&mut conn, replacements).await {
            Ok(()) => true,
            // A value that the type doesn't have, and a constraint.
            Err(error) => match error.as_database_error().and_then(|told| told.code()) {
                Some(code) if code.starts_with("22") || code.starts_with("23") => false,
                _ => panic!("{error}"),
            },
        }
    }
}

audit_conformance::tampering!(Behind);
audit_conformance::tiles!(Behind);
