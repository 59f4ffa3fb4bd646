//! Capture in a caller's own file and transaction.

use audit_core::{
    Clock, ErrorKind, Event, EventId, ManualClock, Outbox, OutboxRow, Redrive, Timestamp,
};
use audit_store_sqlite::{SqliteOutbox, outbox, rusqlite::Connection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::fixture::tenant;

fn caller() -> (TempDir, Connection, SqliteOutbox, ManualClock) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE invoices (id TEXT)")
        .unwrap();
    outbox::create_table(&conn).unwrap();
    outbox::create_table(&conn).unwrap();
    let relay = SqliteOutbox::open(&path).unwrap();
    let clock = ManualClock::new(Timestamp::parse("2026-11-24T03:00:00Z").unwrap());
    (folder, conn, relay, clock)
}

fn numbers(rows: &[OutboxRow]) -> Vec<i64> {
    rows.iter().map(|row| row.row).collect()
}

#[tokio::test]
async fn an_event_is_in_the_outbox_exactly_when_the_callers_transaction_commits() {
    let (_folder, mut conn, relay, clock) = caller();
    let event = || {
        Event::update("invoice", "inv-1")
            .user("ann")
            .after(&serde_json::json!([1e2]))
    };

    let tx = conn.transaction().unwrap();
    tx.execute("INSERT INTO invoices VALUES ('rolled back')", [])
        .unwrap();
    outbox::record_in(&tx, tenant(1), event(), &clock).unwrap();
    drop(tx);
    assert!(relay.take(10, &[]).await.unwrap().is_empty());

    let tx = conn.transaction().unwrap();
    tx.execute("INSERT INTO invoices VALUES ('kept')", [])
        .unwrap();
    let id = outbox::record_in(&tx, tenant(1), event(), &clock).unwrap();
    assert!(relay.take(10, &[]).await.unwrap().is_empty());
    tx.commit().unwrap();
    let rows = relay.take(10, &[]).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].tenant, rows[0].id, rows[0].recorded_at),
        (tenant(1), id, clock.now())
    );
    let relayed = Event::from_json(&rows[0].event).unwrap();
    assert_eq!(relayed.given_id(), Some(id));
    assert_eq!(relayed.to_json(), event().id(id).action("update").to_json());
}

#[tokio::test]
async fn a_refused_event_leaves_the_callers_transaction_alone() {
    let (_folder, mut conn, relay, clock) = caller();
    let tx = conn.transaction().unwrap();
    tx.execute("INSERT INTO invoices VALUES ('kept')", [])
        .unwrap();
    let error = outbox::record_in(&tx, tenant(1), Event::update("", ""), &clock).unwrap_err();
    assert_eq!(
        (error.kind(), error.fields().len()),
        (ErrorKind::Invalid, 2)
    );
    tx.commit().unwrap();
    assert!(relay.take(10, &[]).await.unwrap().is_empty());
    let kept: i64 = conn
        .query_row("SELECT count(*) FROM invoices", [], |r| r.get(0))
        .unwrap();
    assert_eq!(kept, 1);
}

#[tokio::test]
async fn rows_stay_until_they_are_done_and_their_numbers_are_never_used_again() {
    let (_folder, conn, relay, clock) = caller();
    let given = EventId::new(Uuid::from_u128(7));
    assert_eq!(
        outbox::record_in(&conn, tenant(1), Event::view("doc", "d").id(given), &clock).unwrap(),
        given
    );
    for _ in 0..3 {
        outbox::record_in(&conn, tenant(2), Event::view("doc", "d"), &clock).unwrap();
    }
    let rows = relay.take(3, &[]).await.unwrap();
    assert_eq!(rows, relay.take(3, &[]).await.unwrap());
    assert_eq!(rows[0].id, given);
    let last = numbers(&relay.take(10, &[]).await.unwrap());
    relay.done(&last).await.unwrap();
    relay.done(&last).await.unwrap();
    relay.done(&[]).await.unwrap();
    assert!(relay.take(10, &[]).await.unwrap().is_empty());
    outbox::record_in(&conn, tenant(2), Event::view("doc", "d"), &clock).unwrap();
    relay.done(&last).await.unwrap();
    assert_eq!(relay.take(10, &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn parked_rows_are_kept_with_their_reason_until_they_are_tried_again() {
    let (_folder, conn, relay, clock) = caller();
    for _ in 0..3 {
        outbox::record_in(&conn, tenant(1), Event::view("doc", "d"), &clock).unwrap();
    }
    let rows = relay.take(3, &[]).await.unwrap();
    for row in [rows[2].row, rows[0].row, rows[0].row] {
        relay.park(row, &format!("refused {row}")).await.unwrap();
    }
    assert_eq!(relay.take(10, &[]).await.unwrap(), rows[1..2]);
    let parked = relay.parked(10).await.unwrap();
    assert_eq!(
        parked.iter().map(|p| &p.row).collect::<Vec<_>>(),
        [&rows[0], &rows[2]]
    );
    assert_eq!(parked[0].reason, format!("refused {}", rows[0].row));
    assert_eq!(relay.parked(1).await.unwrap().len(), 1);
    assert_eq!(
        relay
            .redrive(&Redrive::Only(vec![rows[2].row, 99]))
            .await
            .unwrap(),
        1
    );
    assert_eq!(relay.redrive(&Redrive::All).await.unwrap(), 1);
    assert_eq!(relay.take(10, &[]).await.unwrap(), rows);
    assert!(relay.parked(10).await.unwrap().is_empty());
}

#[test]
fn a_file_that_is_not_there_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("typo.db");
    assert_eq!(
        SqliteOutbox::open(&path).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert!(!path.exists());
}

struct Application {
    _folder: TempDir,
    conn: std::sync::Mutex<Connection>,
    outbox: SqliteOutbox,
}

impl audit_conformance::OutboxHarness for Application {
    type Outbox = SqliteOutbox;

    async fn open() -> Self {
        let (folder, conn, outbox, _) = caller();
        Self {
            _folder: folder,
            conn: conn.into(),
            outbox,
        }
    }

    fn outbox(&self) -> &SqliteOutbox {
        &self.outbox
    }

    async fn leave(&self, tenant: audit_core::TenantId, id: EventId, event: &str) {
        let event = Event::from_json(event).unwrap();
        let mut conn = self.conn.lock().unwrap();
        let tx = conn.transaction().unwrap();
        assert_eq!(
            outbox::record_in(&tx, tenant, event, &audit_core::SystemClock).unwrap(),
            id
        );
        tx.commit().unwrap();
    }
}

mod contract {
    audit_conformance::outbox!(super::Application);
}

#[tokio::test]
async fn a_row_that_the_relay_could_not_read_is_refused_where_it_is_made() {
    let (_folder, conn, relay, clock) = caller();
    let insert = |values: &str| {
        conn.execute_batch(&format!(
            "INSERT INTO audit_outbox (tenant, id, recorded_at, event) VALUES ({values})"
        ))
    };
    let uuid = "x'0190a000000070008000000000000001'";
    for values in [
        format!("'0190a000-0000-7000-8000-000000000001', {uuid}, 0, '{{}}'"),
        format!("{uuid}, x'01', 0, '{{}}'"),
        format!("{uuid}, {uuid}, -1, '{{}}'"),
        format!("{uuid}, {uuid}, 253402300800000000, '{{}}'"),
        format!("{uuid}, {uuid}, 'now', '{{}}'"),
        format!("{uuid}, {uuid}, 0, x'7b7d'"),
    ] {
        assert!(insert(&values).is_err(), "{values}");
    }
    insert(&format!("{uuid}, {uuid}, 0, 'not an event'")).unwrap();
    outbox::record_in(&conn, tenant(1), Event::view("doc", "d"), &clock).unwrap();
    assert_eq!(relay.take(10, &[]).await.unwrap().len(), 2);
}
