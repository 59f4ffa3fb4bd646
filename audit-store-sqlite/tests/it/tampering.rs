//! What somebody with the file changes in its tables, behind the store's back.

use std::sync::Arc;
use std::time::Duration;

use audit_conformance::tampering::Shown::{Export, Lookup, Nobody, Reading, Tiles};
use audit_conformance::tampering::{Cell, Holds, Replacement, Row, Table};
use audit_conformance::{LogStoreHarness, TamperingHarness};
use audit_core::ManualClock;
use audit_store_sqlite::SqliteStore;
use audit_store_sqlite::rusqlite::ffi::ErrorCode;
use audit_store_sqlite::rusqlite::types::{Value, ValueRef};
use audit_store_sqlite::rusqlite::{self, Connection, params_from_iter};

use crate::conformance::Files;

fn connect(files: &Files) -> Connection {
    let conn = Connection::open(files.folder.path().join("audit.db")).unwrap();
    conn.busy_timeout(Duration::from_secs(20)).unwrap();
    // Only the store's writer does this.
    conn.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    conn
}

fn columns(table: &Table) -> String {
    let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

fn replaced(
    conn: &mut Connection,
    tables: &[Table],
    replacements: &[Replacement],
) -> rusqlite::Result<()> {
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for Replacement { table, gone, come } in replacements {
        let table = &tables[*table];
        let key: Vec<String> = table.key.iter().map(|name| format!("{name} = ?")).collect();
        let mut delete = tx.prepare(&format!(
            "DELETE FROM {} WHERE {}",
            table.name,
            key.join(" AND ")
        ))?;
        for row in gone {
            let place = |name: &&str| table.columns.iter().position(|(n, _)| n == name).unwrap();
            let values = table.key.iter().map(|name| value(&row[place(name)]));
            delete.execute(params_from_iter(values))?;
        }
        let mut insert = tx.prepare(&format!(
            "INSERT INTO {} ({}) VALUES ({})",
            table.name,
            columns(table),
            vec!["?"; table.columns.len()].join(", ")
        ))?;
        for row in come {
            insert.execute(params_from_iter(row.iter().map(value)))?;
        }
    }
    tx.commit()
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Integer(n) => Value::Integer(*n),
        Cell::Text(text) => Value::Text(text.clone()),
        Cell::Bytes(bytes) => Value::Blob(bytes.clone()),
    }
}

fn cell(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(n) => Cell::Integer(n),
        ValueRef::Text(text) => Cell::Text(String::from_utf8(text.to_vec()).unwrap()),
        ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
        ValueRef::Real(_) => unreachable!("no column has one"),
    }
}

impl TamperingHarness for Files {
    type Store = SqliteStore;

    const TABLES: &'static [Table] = &[
        Table {
            name: "entries",
            holds: Holds::Entries,
            key: &["n"],
            columns: &[
                // The order of commits, by which workers find what has grown.
                ("n", Nobody),
                ("tenant", Export),
                ("seq", Export),
                ("created_at", Export),
                ("occurred_at", Export),
                ("action_type", Export),
                ("severity", Export),
                ("outcome", Export),
                ("kind", Export),
                // The tree has it once more.
                ("leaf_hash", Reading),
                ("id", Export),
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
            name: "ids",
            holds: Holds::Ids,
            key: &["tenant", "id"],
            columns: &[
                ("tenant", Lookup),
                ("id", Lookup),
                ("seq", Lookup),
                ("created_at", Lookup),
                ("leaf_hash", Lookup),
                // What repeats are compared by.
                ("content_key", Nobody),
                ("content_tag", Nobody),
            ],
        },
        Table {
            name: "heads",
            holds: Holds::Head,
            key: &["tenant"],
            columns: &[
                ("tenant", Export),
                ("size", Export),
                ("peaks", Export),
                ("created_at", Export),
                ("pruned_below", Export),
                // Where to read why an entry is gone; the entry there is what says it.
                ("pruned_by", Nobody),
                // How far pruned rows were removed, and the newest row.
                ("swept_below", Nobody),
                ("last_n", Nobody),
            ],
        },
        Table {
            name: "tiles",
            holds: Holds::Subtrees,
            key: &["tenant", "level", "idx"],
            columns: &[
                ("tenant", Tiles),
                ("level", Tiles),
                ("idx", Tiles),
                ("root", Tiles),
                ("hashes", Tiles),
            ],
        },
        Table {
            name: "kept_leaves",
            holds: Holds::KeptLeaves,
            key: &["tenant", "seq"],
            columns: &[
                ("tenant", Tiles),
                ("seq", Tiles),
                // Whether the next prune keeps it.
                ("kind", Nobody),
                ("leaf_hash", Tiles),
                ("leaf_data", Tiles),
            ],
        },
        Table {
            name: "checkpoints",
            holds: Holds::Checkpoints,
            key: &["tenant", "size"],
            columns: &[
                ("tenant", Export),
                ("size", Export),
                ("root", Export),
                ("note", Export),
                // Which ones a later one takes the place of.
                ("signed_at", Nobody),
                ("handover", Nobody),
            ],
        },
        Table {
            name: "key_changes",
            holds: Holds::KeyChanges,
            key: &["tenant", "seq"],
            columns: &[
                ("tenant", Export),
                ("seq", Export),
                ("old_vkey", Export),
                ("new_vkey", Export),
            ],
        },
        Table {
            name: "epochs",
            holds: Holds::Epochs,
            key: &["tenant", "seq"],
            columns: &[("tenant", Export), ("seq", Export), ("epoch", Export)],
        },
    ];

    async fn open() -> Self {
        <Self as LogStoreHarness>::open().await
    }

    fn store(&self) -> &SqliteStore {
        &self.store
    }

    fn clock(&self) -> Arc<ManualClock> {
        self.clock.clone()
    }

    async fn rows(&self, table: &'static Table) -> Vec<Row> {
        let conn = connect(self);
        let mut listed: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
        listed.sort_unstable();
        let found = conn
            .prepare("SELECT name FROM pragma_table_info(?1) ORDER BY name")
            .unwrap()
            .query_map([table.name], |r| r.get(0))
            .unwrap()
            .collect::<rusqlite::Result<Vec<String>>>()
            .unwrap();
        assert_eq!(found, listed, "the columns of {}", table.name);
        let sql = format!(
            "SELECT {} FROM {} ORDER BY {}",
            columns(table),
            table.name,
            table.key.join(", ")
        );
        let mut statement = conn.prepare(&sql).unwrap();
        let rows = statement.query_map([], |r| {
            (0..table.columns.len())
                .map(|i| r.get_ref(i).map(cell))
                .collect()
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    async fn replace(&self, replacements: &[Replacement]) -> bool {
        let mut conn = connect(self);
        match replaced(&mut conn, Self::TABLES, replacements) {
            Ok(()) => true,
            Err(error) => match error.sqlite_error_code() {
                Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => false,
                _ => panic!("{error}"),
            },
        }
    }
}

audit_conformance::tampering!(Files);
audit_conformance::tiles!(Files);
