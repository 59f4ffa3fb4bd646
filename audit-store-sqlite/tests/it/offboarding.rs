//! What a deleted tenant leaves in the files: nothing but its tombstone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use audit_core::{
    AuditLog, Clock as _, Ending, Event, EventQueue as _, LogStore as _, Message, MessageKind,
    OffboardingStore as _, SearchIndex as _, TenantId, TenantScope, Tombstone,
};
use audit_store_sqlite::SqliteStore;
use rusqlite::{Connection, params};

use crate::fixture::{Fixture, scope, tenant};
use crate::reconcile::until;

/// What stays: the tombstone with the tenant's number, and what the deployment log committed to.
const STAYS: [&str; 2] = ["tombstones", "deployment_leaves"];

fn open(folder: &Path, file: &str) -> Connection {
    let conn = Connection::open(folder.join(file)).unwrap();
    conn.busy_timeout(Duration::from_secs(5)).unwrap();
    conn
}

/// How many rows each table has of a tenant, in the three files. The tables that know tenants by number
/// have that of the log's file.
fn rows(folder: &Path, tenant: TenantId) -> BTreeMap<String, i64> {
    let mut found = BTreeMap::new();
    for file in ["audit.db", "audit.index.db", "audit.queue.db"] {
        let conn = open(folder, file);
        let id = tenant.as_uuid().as_bytes();
        let no: Option<i64> = match file {
            "audit.queue.db" => None,
            _ => conn
                .query_row("SELECT no FROM tenants WHERE id = ?1", [id], |r| r.get(0))
                .ok(),
        };
        let tables: Vec<String> = conn
            .prepare(
                "SELECT m.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c
                 WHERE m.type = 'table' AND c.name = 'tenant'",
            )
            .unwrap()
            .query_map([], |r| r.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        for table in tables {
            let sql = format!("SELECT count(*) FROM {table} WHERE tenant = ?1 OR tenant = ?2");
            let count = conn.query_row(&sql, params![no, id], |r| r.get(0)).unwrap();
            found.insert(format!("{file} {table}"), count);
        }
        if file == "audit.index.db" {
            let count = match no {
                Some(no) => conn
                    .query_row(
                        "SELECT count(*) FROM documents WHERE doc >> 40 = ?1",
                        [no],
                        |r| r.get::<_, i64>(0),
                    )
                    .unwrap(),
                None => 0,
            };
            found.insert("audit.index.db documents".into(), count);
            let known = i64::from(no.is_some());
            found.insert("audit.index.db tenants".into(), known);
        }
    }
    found
}

/// Rows of every table that a tenant can have some in.
async fn fill(fixture: &Fixture, scope: &TenantScope) {
    let (store, id) = (fixture.store(), scope.tenant());
    fixture.append(scope, 1_200).await;
    store.advance(id, "c", true, 9).await.unwrap();
    let entries = store.read(scope, 0, 1_200).await.unwrap();
    let index = store.search_index();
    index.index(&entries[..1_199]).await.unwrap();
    index.remove(scope, &entries[1_199..]).await.unwrap();
    let message = |n: u8| {
        let id = fixture.clock.event_id();
        Message::new(scope.tenant(), MessageKind::Ingest, id, format!("body {n}"))
    };
    let queue = store.queue().unwrap();
    queue.send(&[message(1), message(2)]).await.unwrap();
    let (wait, lease) = (Duration::ZERO, Duration::from_secs(60));
    let received = queue.receive(2, wait, lease).await.unwrap();
    let dead = (received[0].handle.clone(), "bad".to_owned());
    queue.bury(&[dead]).await.unwrap();
    let conn = open(fixture.folder.path(), "audit.db");
    let no: i64 = conn
        .query_row(
            "SELECT no FROM tenants WHERE id = ?1",
            [id.as_uuid().as_bytes()],
            |r| r.get(0),
        )
        .unwrap();
    conn.execute_batch(&format!(
        "INSERT INTO checkpoints VALUES ({no}, 7, zeroblob(32), 'note', 1, 0);
         INSERT INTO key_changes VALUES ({no}, 1, 'a', 'b');
         INSERT INTO epochs VALUES ({no}, 1, 2);
         INSERT INTO kept_leaves VALUES ({no}, 1, 'key', zeroblob(32), '{{}}');
         INSERT INTO retention VALUES ({no}, '{{}}');
         INSERT INTO deployment_leaves
             SELECT count(*), {no}, 7, zeroblob(32), zeroblob(16) FROM deployment_leaves;
         INSERT INTO legal_holds VALUES ({no}, randomblob(16), 'case', NULL, NULL, 1, 2);
         INSERT INTO erasures VALUES
             (randomblob(16), {no}, NULL, 'actor', 'x', 's', NULL, 1, 1, 1, 1, 1, 1, NULL);
         INSERT INTO erasure_marks VALUES ({no}, zeroblob(32), zeroblob(16), 1);",
    ))
    .unwrap();
    for sql in [
        "INSERT INTO api_keys VALUES (randomblob(16), ?1, randomblob(32), 'k', 'writer', '', 1,
            NULL, NULL)",
        "INSERT INTO tickets VALUES (randomblob(32), ?1, 's', 1, NULL)",
    ] {
        conn.execute(sql, [id.as_uuid().as_bytes()]).unwrap();
    }
}

async fn ask(fixture: &Fixture, store: &SqliteStore, id: TenantId) {
    let event = Event::update("tenant", id.to_string());
    let event = fixture.prepare(id, event.user("admin"));
    let ending = Ending::new(id, "admin", None, fixture.clock.now());
    store.begin_ending(&ending, &event).await.unwrap();
}

async fn end(fixture: &Fixture, store: &SqliteStore, scope: &TenantScope) {
    ask(fixture, store, scope.tenant()).await;
    let head = store.head(scope).await.unwrap();
    let tombstone = Tombstone::of(&head, fixture.clock.now());
    store.end(&tombstone).await.unwrap();
}

#[tokio::test]
async fn every_row_of_a_deleted_tenant_goes_and_none_of_another() {
    let mut fixture = Fixture::new();
    for n in [1, 2] {
        fill(&fixture, &scope(n)).await;
    }
    let folder = fixture.folder.path().to_owned();
    ask(&fixture, fixture.store(), tenant(1)).await;
    for (table, count) in rows(&folder, tenant(1)) {
        let is_filled = count > 0 || table.ends_with(" tombstones");
        assert!(is_filled, "{table}: there is nothing to remove");
    }
    let others = rows(&folder, tenant(2));
    end(&fixture, fixture.store(), &scope(1)).await;
    // As many steps as it takes, each by a process that is killed.
    let mut steps = 0;
    while fixture.store().sweep().await.unwrap() {
        fixture.reopen();
        steps += 1;
    }
    assert!(steps > 5, "{steps}");
    for (table, count) in rows(&folder, tenant(1)) {
        let stays = STAYS
            .iter()
            .any(|name| table.ends_with(&format!(" {name}")));
        assert_eq!(count, i64::from(stays), "{table}");
    }
    assert_eq!(rows(&folder, tenant(2)), others);
    // One waited in the queue, and one was a dead letter.
    let left = fixture.store().tombstone(tenant(1)).await.unwrap().unwrap();
    assert_eq!((left.is_swept, left.unappended), (true, Some(2)));
    let conn = open(&folder, "audit.db");
    let kept: (String, Vec<u8>) = conn
        .query_row(
            "SELECT name, secret FROM tenants WHERE id = ?1",
            [tenant(1).as_uuid().as_bytes()],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .unwrap();
    assert_eq!(kept, (tenant(1).to_string(), vec![0; 32]));
    let index = open(&folder, "audit.index.db");
    for (table, left) in [("documents", 1_199), ("occurred", 1_199), ("superseded", 1)] {
        let sql = format!("SELECT count(*) FROM {table}");
        let count: i64 = index.query_row(&sql, [], |r| r.get(0)).unwrap();
        assert_eq!(count, left, "{table}");
    }
    // The index was not thrown away for it.
    let index = fixture.store().search_index();
    assert_eq!(index.indexed_through(&scope(2)).await.unwrap(), 1_199);
}

/// What was accepted and never appended.
#[tokio::test]
async fn what_goes_with_a_tenant_unappended_is_counted_and_told() {
    let fixture = Fixture::new();
    fixture.append(&scope(1), 3).await;
    let (store, clock) = (fixture.store(), &fixture.clock);
    let queue = Arc::new(store.queue().unwrap());
    let message = |n: u128, kind| {
        let id = clock.event_id();
        Message::new(tenant(n), kind, id, "{}".to_owned())
    };
    let log = AuditLog::builder(Arc::new(store.clone()))
        .clock(clock.clone())
        .queue(queue.clone())
        .build();
    let workers = log.start();
    // Nobody does this kind of work: a dead letter. That of a tenant that stays is counted nowhere.
    for n in [1, 1, 2] {
        queue.send(&[message(n, MessageKind::Work)]).await.unwrap();
    }
    let dead = async || queue.depth().await.unwrap().dead;
    until("they are dead letters", async || dead().await == 3).await;
    log.end_tenant(tenant(1), "admin", None, false)
        .await
        .unwrap();
    let tombstone = async || store.tombstone(tenant(1)).await.unwrap();
    until("its rows are gone", async || {
        tombstone().await.is_some_and(|left| left.is_swept)
    })
    .await;
    assert_eq!(tombstone().await.unwrap().unappended, Some(2));
    assert_eq!(dead().await, 1);
    // What comes later stays where the operator is shown it.
    queue
        .send(&[message(1, MessageKind::Ingest)])
        .await
        .unwrap();
    until("it is a dead letter", async || dead().await == 2).await;
    let letters = queue.dead_letters(10).await.unwrap();
    let late = letters.iter().find(|dead| dead.message.tenant == tenant(1));
    assert!(late.unwrap().reason.contains("was deleted"));
    let told = || {
        let mut statuses = workers.status().into_iter();
        let status = statuses.find(|status| status.name == "offboarding");
        status.unwrap().offboarding.unwrap().unappended
    };
    assert_eq!(told(), 0);
    clock.advance_micros(61_000_000);
    until("it is told", async || told() == 2).await;
    assert_eq!(tombstone().await.unwrap().unappended, Some(2));
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}
