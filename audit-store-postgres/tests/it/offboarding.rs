//! What a deleted tenant leaves in the database: its tombstone, and in the head its status.

use std::collections::BTreeMap;

use audit_core::{
    Clock as _, Ending, Event, EventQueue as _, LogStore as _, Message, MessageKind,
    OffboardingStore as _, PreparedEvent, SearchIndex as _, TenantId, TenantScope, Tombstone,
};
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::PgConnection;

use crate::fixture::{Database, scope, tenant};

/// What stays, besides the tombstone: the row that its status is in, the one that its id is refused by,
/// and what the deployment log committed to.
const STAYS: [&str; 4] = ["tombstones", "heads", "tenants", "deployment_leaves"];

/// How many rows each table has of a tenant.
async fn rows(conn: &mut PgConnection, tenant: TenantId) -> BTreeMap<String, i64> {
    let tables: Vec<String> = query_scalar(
        "SELECT c.relname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
         WHERE c.relnamespace = 'audit'::regnamespace AND c.relkind IN ('r', 'p')
             AND NOT c.relispartition AND a.attname = 'tenant_id'",
    )
    .fetch_all(&mut *conn)
    .await
    .unwrap();
    let mut found = BTreeMap::new();
    for table in tables {
        let sql = format!("SELECT count(*) FROM audit.{table} WHERE tenant_id = '{tenant}'");
        let count: i64 = query_scalar(&sql).fetch_one(&mut *conn).await.unwrap();
        found.insert(table, count);
    }
    found
}

/// Rows of every table that a tenant can have some in.
async fn fill(database: &Database, conn: &mut PgConnection, scope: &TenantScope) {
    let (store, id) = (&database.store, scope.tenant());
    database.append(scope, 1_200).await;
    store.advance(id, "c", true, 9).await.unwrap();
    let entries = store.read(scope, 0, 1_200).await.unwrap();
    store.search_index().index(&entries).await.unwrap();
    let event = database.clock.event_id();
    let message = Message::new(id, MessageKind::Ingest, event, "body".into());
    let sent = store.queue().send(&[message]).await.unwrap();
    sent.into_iter().for_each(|sent| sent.unwrap());
    conn.execute(&*format!(
        "INSERT INTO audit.checkpoints (tenant_id, size, root, note, signed_at)
             VALUES ('{id}', 7, '', 'note', now());
         INSERT INTO audit.key_changes VALUES ('{id}', 1, 'a', 'b');
         INSERT INTO audit.epochs VALUES ('{id}', 1, 2);
         INSERT INTO audit.kept_leaves VALUES ('{id}', 1, 'key', '{{}}');
         INSERT INTO audit.retention VALUES ('{id}', '{{}}');
         INSERT INTO audit.deployment_leaves
             SELECT count(*), '{id}', 7, '', '', '' FROM audit.deployment_leaves;
         INSERT INTO audit.legal_holds
             VALUES ('{id}', gen_random_uuid(), 'case', NULL, NULL, now(), now());
         INSERT INTO audit.erasures VALUES (gen_random_uuid(), '{id}', NULL, 'actor', 'x', 's',
             NULL, now(), 1, 1, 1, 1, true, NULL);
         INSERT INTO audit.erasure_marks VALUES ('{id}', 'm', gen_random_uuid(), now());
         INSERT INTO audit.api_keys VALUES (gen_random_uuid(), '{id}', uuid_send(gen_random_uuid()),
             'k', 'writer', '', now(), NULL, NULL);
         INSERT INTO audit.tickets VALUES (uuid_send(gen_random_uuid()), '{id}', 's', now(), NULL);
         SELECT audit.record('{id}', '{{}}');
         INSERT INTO audit.outbox_parked
             SELECT 1000 + count(*), '{id}', gen_random_uuid(), now(), '{{}}', 'bad'
             FROM audit.outbox_parked;
         INSERT INTO audit.queue_dead_letters (tenant_id, kind, id, died_at, reason, body)
             VALUES ('{id}', 'ingest', gen_random_uuid(), now(), 'bad', 'body');"
    ))
    .await
    .unwrap();
}

async fn ask(database: &Database, id: TenantId) {
    let event = Event::update("tenant", id.to_string()).user("admin");
    let event = PreparedEvent::new(id, event, &*database.clock, &[]).unwrap();
    let ending = Ending::new(id, "admin", None, database.clock.now());
    database.store.begin_ending(&ending, &event).await.unwrap();
}

async fn end(database: &Database, scope: &TenantScope) {
    ask(database, scope.tenant()).await;
    let head = database.store.head(scope).await.unwrap();
    let tombstone = Tombstone::of(&head, database.clock.now());
    database.store.end(&tombstone).await.unwrap();
}

#[tokio::test]
async fn every_row_of_a_deleted_tenant_goes_and_none_of_another() {
    let database = Database::open().await;
    let mut conn = database.connect().await;
    for n in [1, 2] {
        fill(&database, &mut conn, &scope(n)).await;
    }
    ask(&database, tenant(1)).await;
    for (table, count) in rows(&mut conn, tenant(1)).await {
        let is_filled = count > 0 || table == "tombstones";
        assert!(is_filled, "{table}: there is nothing to remove");
    }
    let others = rows(&mut conn, tenant(2)).await;
    let before = database.store.read(&scope(2), 0, 1_200).await.unwrap();
    end(&database, &scope(1)).await;
    while database.store.sweep().await.unwrap() {}
    for (table, count) in rows(&mut conn, tenant(1)).await {
        let stays = STAYS.contains(&table.as_str());
        assert_eq!(count, i64::from(stays), "{table}");
    }
    assert_eq!(rows(&mut conn, tenant(2)).await, others);
    // A row of the outbox and a parked one, a message and a dead letter.
    let tombstone = database.store.tombstone(tenant(1)).await.unwrap().unwrap();
    assert_eq!((tombstone.is_swept, tombstone.unappended), (true, Some(4)));
    let left = database.store.read(&scope(2), 0, 1_200).await.unwrap();
    assert_eq!(left, before);
    let kept: bool = query_scalar(&format!(
        "SELECT name = tenant_id::text AND secret = decode(repeat('00', 32), 'hex')
         FROM audit.tenants WHERE tenant_id = '{}'",
        tenant(1)
    ))
    .fetch_one(&mut conn)
    .await
    .unwrap();
    assert!(kept);
}

/// An indexer that read the log before.
#[tokio::test]
async fn a_deleted_tenant_does_not_come_back_into_the_index() {
    let database = Database::open().await;
    let mut conn = database.connect().await;
    for n in [1, 2] {
        database.append(&scope(n), 20).await;
    }
    let store = &database.store;
    let mut read = store.read(&scope(1), 0, 20).await.unwrap();
    let index = store.search_index();
    index.index(&read[..10]).await.unwrap();
    end(&database, &scope(1)).await;
    // Before it is out of the index, what comes is passed over; then it is an error of this tenant's.
    index.index(&read).await.unwrap();
    index.forget(&scope(1)).await.unwrap();
    let error = index.index(&read).await.unwrap_err();
    assert_eq!(error.tenant(), Some(tenant(1)));
    read.truncate(1);
    index.remove(&scope(1), &read).await.unwrap();
    index.mend(&scope(1), &read, &[]).await.unwrap();
    let rows = rows(&mut conn, tenant(1)).await;
    assert_eq!((rows["index_documents"], rows["index_progress"]), (0, 0));
    let others = store.read(&scope(2), 0, 20).await.unwrap();
    index.index(&others).await.unwrap();
    assert_eq!(index.indexed_through(&scope(2)).await.unwrap(), 20);
}
