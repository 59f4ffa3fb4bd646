//! What tenants cost that record nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_conformance::IdleHarness;
use audit_core::{AuditLog, AuditLogBuilder};
use audit_store_sqlite::SqliteStore;
use audit_store_sqlite::rusqlite::{self, Connection};

use crate::fixture::Fixture;

/// The files beside the log's: each counts as a table.
const OTHERS: [&str; 2] = ["audit.index.db", "audit.queue.db"];

struct Counted {
    fixture: Fixture,
    /// Connections to the other files, with the version of the data that they began with.
    others: Mutex<Vec<(Connection, i64)>>,
}

impl Counted {
    fn connect(&self, file: &str) -> Connection {
        let conn = Connection::open(self.fixture.folder.path().join(file)).unwrap();
        conn.busy_timeout(Duration::from_secs(20)).unwrap();
        // Only the store's writer does this.
        conn.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        conn
    }
}

/// Changes when another connection has written to the file.
fn version(conn: &Connection) -> i64 {
    let version = conn.query_row("PRAGMA data_version", [], |r| r.get(0));
    version.unwrap()
}

impl IdleHarness for Counted {
    type Store = SqliteStore;

    async fn open() -> Self {
        Self {
            fixture: Fixture::new(),
            others: Mutex::default(),
        }
    }

    fn store(&self) -> &SqliteStore {
        self.fixture.store()
    }

    fn builder(&self) -> AuditLogBuilder {
        let store = self.fixture.store();
        AuditLog::builder(Arc::new(store.clone()))
            .queue(Arc::new(store.queue().unwrap()))
            .search(store.search_index())
    }

    async fn count_writes(&self) {
        let conn = self.connect("audit.db");
        let tables = conn
            .prepare(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'",
            )
            .unwrap()
            .query_map([], |r| r.get(0))
            .unwrap()
            .collect::<rusqlite::Result<Vec<String>>>()
            .unwrap();
        let mut sql = String::from("BEGIN IMMEDIATE; CREATE TABLE written (name TEXT NOT NULL);");
        for table in tables {
            for change in ["INSERT", "UPDATE", "DELETE"] {
                sql.push_str(&format!(
                    "CREATE TRIGGER {table}_{change} AFTER {change} ON {table}
                     BEGIN INSERT INTO written VALUES ('{table}'); END;"
                ));
            }
        }
        conn.execute_batch(&format!("{sql} COMMIT")).unwrap();
        let others = OTHERS.map(|file| {
            let conn = self.connect(file);
            let version = version(&conn);
            (conn, version)
        });
        self.others.lock().unwrap().extend(others);
    }

    async fn writes(&self) -> BTreeMap<String, u64> {
        let mut written = self
            .connect("audit.db")
            .prepare("SELECT name, count(*) FROM written GROUP BY name")
            .unwrap()
            .query_map([], |r| Ok((r.get(0)?, r.get::<_, i64>(1)?.unsigned_abs())))
            .unwrap()
            .collect::<rusqlite::Result<BTreeMap<String, u64>>>()
            .unwrap();
        let others = self.others.lock().unwrap();
        for (file, (conn, began)) in OTHERS.iter().zip(others.iter()) {
            if version(conn) != *began {
                written.insert((*file).to_owned(), 1);
            }
        }
        written
    }
}

audit_conformance::idle!(Counted);
