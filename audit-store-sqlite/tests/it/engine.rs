//! The engine that is linked, and the files that it makes.

use audit_core::{
    CheckpointStore as _, DeploymentStore as _, ErasureStore as _, ErrorKind, LogStore as _,
    OffboardingStore as _, RetentionStore as _, TenantStore as _,
};
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use rusqlite::Connection;

use crate::fixture::{Fixture, scope};

#[test]
fn the_bundled_sqlite_is_3_51_3_or_newer() {
    assert!(
        rusqlite::version_number() >= 3_051_003,
        "{}",
        rusqlite::version()
    );
}

#[tokio::test]
async fn a_new_file_is_shaped_for_erasing_and_shrinking() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 1).await;
    let conn = Connection::open(fixture.folder.path().join("audit.db")).unwrap();
    let text = |pragma: &str| -> String {
        conn.query_row(
            &format!("SELECT CAST({pragma} AS TEXT) FROM pragma_{pragma}"),
            [],
            |r| r.get(0),
        )
        .unwrap()
    };
    assert_eq!(text("journal_mode"), "wal");
    assert_eq!(text("auto_vacuum"), "2");
    assert_eq!(text("integrity_check"), "ok");
}

#[tokio::test]
async fn a_file_of_a_newer_schema_is_refused() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 1).await;
    let folder = fixture.close();
    let path = folder.path().join("audit.db");
    let conn = Connection::open(&path).unwrap();
    conn.execute(
        "UPDATE meta SET value = 99 WHERE key = 'schema_version'",
        [],
    )
    .unwrap();
    let error = SqliteStore::open(&path, SqliteOptions::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.message().contains("99"), "{error}");
    let error = SqliteStore::open(&path, SqliteOptions::new().read_only()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn a_file_of_an_earlier_schema_is_brought_up_step_by_step() {
    // What each version added, the last one first.
    let added = [
        "ALTER TABLE tombstones DROP COLUMN unappended;",
        "ALTER TABLE deployment_checkpoints DROP COLUMN guarded;",
        "DROP TABLE endings; DROP TABLE tombstones;",
        "ALTER TABLE tenants DROP COLUMN public_log;",
        "DROP TABLE epochs;",
        "DROP TABLE deployment_leaves; DROP TABLE deployment_hashes;
         DROP TABLE deployment_checkpoints;",
        "DROP TABLE erasures; DROP TABLE erasure_marks;",
        "DROP TABLE retention; DROP TABLE legal_holds;",
        "ALTER TABLE checkpoints DROP COLUMN handover; DROP TABLE key_changes;",
        "DROP TABLE checkpoints; DROP TABLE signer;",
    ];
    for steps in 1..=added.len() {
        let mut fixture = Fixture::new();
        fixture.append(&scope(1), 3).await;
        fixture.reopen_after(|folder| {
            let path = folder.join("audit.db");
            let conn = Connection::open(&path).unwrap();
            let undo = added[..steps].concat();
            let version = added.len() + 1 - steps;
            let to = "UPDATE meta SET value = ";
            let sql = format!("{undo} {to} {version} WHERE key = 'schema_version'");
            conn.execute_batch(&sql).unwrap();
            drop(conn);
            let error = SqliteStore::open(&path, SqliteOptions::new().read_only()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
        });
        let (store, tenant) = (fixture.store(), scope(1).tenant());
        assert!(store.retention(tenant).await.unwrap().is_empty());
        assert_eq!(store.latest(&scope(1)).await.unwrap(), None);
        assert_eq!(store.latest_deployment().await.unwrap(), None);
        assert_eq!(store.epochs(&scope(1)).await.unwrap(), []);
        assert_eq!(store.open_erasures(None, 10).await.unwrap(), []);
        assert_eq!(store.open_endings(None, 10).await.unwrap(), []);
        assert_eq!(store.unsettled(None, 10).await.unwrap(), []);
        assert!(!store.tenant(tenant).await.unwrap().unwrap().public_log);
        assert_eq!(store.head(&scope(1)).await.unwrap().size(), 3);
    }
}
