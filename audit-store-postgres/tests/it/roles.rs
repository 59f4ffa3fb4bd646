//! Isolation in the database: what each role can do with SQL of its own.

use std::time::Duration;

use audit_core::{
    CheckpointStore as _, DeploymentStore as _, ErasureStore as _, LogStore, OffboardingStore as _,
    PageRequest, Selection, TenantStatus, TenantStore as _, TenantUpdate, Vacuum as _,
};
use audit_store_postgres::{PostgresStore, login_statements};
use sqlx_core::error::Error;
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::PgConnection;

use crate::fixture::{Database, PASSWORD, basis, ids, scope, tenant, url_of};

const DENIED: &str = "42501";
const CHECK: &str = "23514";

async fn as_role(database: &Database, role: &str) -> PgConnection {
    let mut conn = database.connect().await;
    conn.execute(&*format!("SET ROLE {role}")).await.unwrap();
    conn
}

async fn refused(conn: &mut PgConnection, sql: &str, code: &str) {
    let error = conn.execute(sql).await.expect_err(sql);
    let Error::Database(error) = error else {
        panic!("{sql}: {error}")
    };
    assert_eq!(error.code().unwrap(), code, "{sql}: {error}");
}

async fn count(conn: &mut PgConnection, sql: &str) -> i64 {
    query_scalar(sql).fetch_one(conn).await.unwrap()
}

async fn partition(conn: &mut PgConnection) -> String {
    query_scalar("SELECT min(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'audit.events'::regclass")
        .fetch_one(conn)
        .await
        .unwrap()
}

const VIEWS: [&str; 6] = [
    "tenant_events",
    "tenant_ids",
    "tenant_head",
    "tenant_counters",
    "tenant_subtrees",
    "tenant_cursors",
];

#[tokio::test]
async fn a_reader_sees_the_tenant_that_it_named_and_nothing_without_one() {
    let database = Database::open().await;
    for n in [1, 2] {
        database.append(&scope(n), 300).await;
        database
            .store
            .advance(tenant(n), "c", true, 3)
            .await
            .unwrap();
    }
    let mut reader = as_role(&database, "audit_reader").await;
    for view in VIEWS {
        let all = format!("SELECT count(*) FROM audit.{view}");
        assert_eq!(count(&mut reader, &all).await, 0, "{view}, unset");
        reader.execute("BEGIN").await.unwrap();
        reader
            .execute(&*format!("SET LOCAL audit.tenant_id = '{}'", tenant(1)))
            .await
            .unwrap();
        assert!(count(&mut reader, &all).await > 0, "{view}");
        let foreign = format!("{all} WHERE tenant_id <> '{}'", tenant(1));
        assert_eq!(count(&mut reader, &foreign).await, 0, "{view}");
        reader.execute("ROLLBACK").await.unwrap();
        assert_eq!(
            count(&mut reader, &all).await,
            0,
            "{view}, after the transaction"
        );
    }
}

#[tokio::test]
async fn nobody_but_the_owner_reads_events_or_their_partitions() {
    let database = Database::open().await;
    database.append(&scope(1), 3).await;
    for role in ["audit_reader", "audit_writer", "audit_maintainer"] {
        let mut conn = as_role(&database, role).await;
        let partition = partition(&mut conn).await;
        for table in ["audit.events", partition.as_str()] {
            refused(&mut conn, &format!("SELECT count(*) FROM {table}"), DENIED).await;
            refused(&mut conn, &format!("COPY {table} TO STDOUT"), DENIED).await;
            refused(&mut conn, &format!("DELETE FROM {table}"), DENIED).await;
            refused(
                &mut conn,
                &format!("UPDATE {table} SET action = 'x'"),
                DENIED,
            )
            .await;
            refused(&mut conn, &format!("TRUNCATE {table}"), DENIED).await;
            refused(&mut conn, &format!("DROP TABLE {table}"), DENIED).await;
        }
    }
    let mut reader = as_role(&database, "audit_reader").await;
    for table in [
        "ids",
        "heads",
        "counters",
        "subtrees",
        "kept_leaves",
        "checkpoints",
        "epochs",
        "retention",
        "legal_holds",
        "erasures",
        "erasure_marks",
        "deployment_leaves",
        "signer",
        "tenants",
        "api_keys",
        "endings",
        "tombstones",
    ] {
        refused(&mut reader, &format!("SELECT FROM audit.{table}"), DENIED).await;
    }
    refused(&mut reader, "SELECT audit.make_partition(now())", DENIED).await;
}

#[tokio::test]
async fn a_writer_changes_nothing_that_is_recorded() {
    let database = Database::open().await;
    database.append(&scope(1), 3).await;
    let mut writer = as_role(&database, "audit_writer").await;
    for view in VIEWS {
        refused(&mut writer, &format!("SELECT FROM audit.{view}"), DENIED).await;
    }
    for denied in [
        "SELECT FROM audit.erasures",
        "SELECT FROM audit.erasure_marks",
        "UPDATE audit.ids SET seq = seq + 1",
        "DELETE FROM audit.ids",
        "DELETE FROM audit.heads",
        "DELETE FROM audit.tenants",
        "UPDATE audit.heads SET pruned_below = 3",
        "UPDATE audit.heads SET swept_below = 3",
        "UPDATE audit.subtrees SET root = ''",
        "UPDATE audit.tenants SET secret = ''",
        "UPDATE audit.tenants SET name = 'x'",
        "UPDATE audit.tenants SET public_log = true",
        "SELECT audit.update_tenant(NULL, NULL, NULL, NULL)",
        "SELECT audit.erase_entries(NULL, NULL, NULL, NULL, NULL)",
        "DELETE FROM audit.epochs",
        "UPDATE audit.epochs SET epoch = 9",
        "DELETE FROM audit.checkpoints",
        "UPDATE audit.checkpoints SET root = ''",
        "SELECT salt FROM audit.deployment_leaves",
        "SELECT FROM audit.tenant_deployment_leaves",
        "UPDATE audit.deployment_leaves SET root = ''",
        "DELETE FROM audit.deployment_leaves",
        "UPDATE audit.deployment_hashes SET hash = ''",
        "DELETE FROM audit.deployment_hashes",
        "UPDATE audit.deployment_checkpoints SET note = ''",
        "UPDATE audit.deployment_checkpoints SET guarded = false",
        "DELETE FROM audit.deployment_checkpoints",
        "DELETE FROM audit.legal_holds",
        "INSERT INTO audit.legal_holds SELECT * FROM audit.legal_holds",
        "UPDATE audit.legal_holds SET released_at = now()",
        "INSERT INTO audit.retention SELECT * FROM audit.retention",
        "UPDATE audit.retention SET retention = '{}'",
        "DELETE FROM audit.retention",
        "SELECT audit.refuse_while_held(NULL)",
        "SELECT audit.sweep_step(1)",
        "SELECT audit.drop_pruned_partition()",
        "INSERT INTO audit.endings SELECT * FROM audit.endings",
        "UPDATE audit.endings SET archived = false",
        "DELETE FROM audit.endings",
        "SELECT audit.begin_ending(NULL, NULL, NULL, NULL, NULL, NULL)",
        "INSERT INTO audit.tombstones SELECT * FROM audit.tombstones",
        "UPDATE audit.tombstones SET size = 0",
        "UPDATE audit.tombstones SET settled = true",
        "DELETE FROM audit.tombstones",
        "SELECT audit.end_tenant(NULL, NULL, NULL, NULL, NULL, NULL)",
        "SELECT audit.sweep_deleted(1)",
        "CREATE TABLE audit.mine ()",
        "ALTER TABLE audit.heads DISABLE TRIGGER ALL",
    ] {
        refused(&mut writer, denied, DENIED).await;
    }
}

/// A program that doesn't know of holds, or somebody with SQL of their own.
#[tokio::test]
async fn a_maintainer_destroys_nothing_of_a_held_tenant() {
    let database = Database::open().await;
    for n in [1, 2] {
        database.append(&scope(n), 3).await;
    }
    let mut maintainer = as_role(&database, "audit_maintainer").await;
    let place = format!(
        "INSERT INTO audit.legal_holds (tenant_id, id, name, placed_at)
         VALUES ('{}', gen_random_uuid(), 'case 7', now())",
        tenant(1)
    );
    maintainer.execute(&*place).await.unwrap();
    let calls = |n| {
        [
            format!(
                "SELECT audit.erase_entries('{}', '{{}}', '{{}}', '{{}}', '{{}}')",
                tenant(n)
            ),
            format!(
                "SELECT audit.prune_below('{}', 2, 2, '{{}}', '{{}}', '{{}}', '{{}}', '{{}}',
                     '{{}}', '{{}}', '{{}}')",
                tenant(n)
            ),
        ]
    };
    for call in calls(1) {
        refused(&mut maintainer, &call, "AU001").await;
    }
    assert_eq!(
        database.store.head(&scope(1)).await.unwrap().pruned_below,
        0
    );
    for call in calls(2) {
        maintainer.execute(&*call).await.unwrap();
    }
    assert_eq!(
        database.store.head(&scope(2)).await.unwrap().pruned_below,
        2
    );
}

/// Nor of one whose end nobody asked for, or whose log has grown since it was archived.
#[tokio::test]
async fn a_maintainer_deletes_no_tenant_by_itself() {
    let database = Database::open().await;
    database.append(&scope(1), 3).await;
    let mut maintainer = as_role(&database, "audit_maintainer").await;
    let end = |size| {
        format!(
            "SELECT audit.end_tenant('{}', NULL, {size}, '', NULL, now())",
            tenant(1)
        )
    };
    refused(&mut maintainer, &end(3), CHECK).await;
    let insert = format!(
        "INSERT INTO audit.endings VALUES ('{}', 'admin', NULL, now(), false, false)",
        tenant(1)
    );
    refused(&mut maintainer, &insert, DENIED).await;
    let ask = |n| {
        format!(
            "SELECT audit.begin_ending('{}', 'admin', NULL, now(), false, false)",
            tenant(n)
        )
    };
    refused(&mut maintainer, &ask(2), CHECK).await;
    let place = format!(
        "INSERT INTO audit.legal_holds (tenant_id, id, name, placed_at)
         VALUES ('{}', gen_random_uuid(), 'case 7', now())",
        tenant(1)
    );
    maintainer.execute(&*place).await.unwrap();
    refused(&mut maintainer, &ask(1), "AU001").await;
    let release = "UPDATE audit.legal_holds SET released_at = now()";
    maintainer.execute(release).await.unwrap();
    maintainer.execute(&*ask(1)).await.unwrap();
    refused(&mut maintainer, &end(2), CHECK).await;
    let again = place.replace("case 7", "case 8");
    maintainer.execute(&*again).await.unwrap();
    refused(&mut maintainer, &end(3), "AU001").await;
    maintainer.execute(release).await.unwrap();
    maintainer.execute(&*end(3)).await.unwrap();
    for denied in [
        "UPDATE audit.tombstones SET size = 0",
        "DELETE FROM audit.tombstones",
        "DELETE FROM audit.endings",
    ] {
        refused(&mut maintainer, denied, DENIED).await;
    }
}

/// Nor opens what an operator has closed.
#[tokio::test]
async fn a_writer_has_no_tenant_deleted() {
    let database = Database::open().await;
    // Of a month whose partition would go.
    let then = audit_core::Timestamp::parse("2021-01-10T00:00:00Z").unwrap();
    database.clock.set(then);
    database.append(&scope(1), 3).await;
    let mut writer = as_role(&database, "audit_writer").await;
    for denied in [
        format!(
            "INSERT INTO audit.endings VALUES ('{}', 'x', NULL, now(), false, false)",
            tenant(1)
        ),
        format!(
            "SELECT audit.begin_ending('{}', 'x', NULL, now(), false, false)",
            tenant(1)
        ),
    ] {
        refused(&mut writer, &denied, DENIED).await;
    }
    for status in TenantStatus::ALL {
        let set = format!("UPDATE audit.heads SET status = '{status}'");
        refused(&mut writer, &set, DENIED).await;
    }
    let left = database.store.read(&scope(1), 0, 10).await.unwrap();
    assert_eq!(left.len(), 3);
}

/// The status says that a tenant takes no more, and nothing else: what is removed is what a tombstone is left
/// of.
#[tokio::test]
async fn a_maintainer_sets_a_status_and_no_row_goes_by_it() {
    let database = Database::open().await;
    // Of a month whose partition would go.
    let then = audit_core::Timestamp::parse("2021-01-10T00:00:00Z").unwrap();
    database.clock.set(then);
    for n in [1, 2] {
        database.append(&scope(n), 3).await;
    }
    let mut maintainer = as_role(&database, "audit_maintainer").await;
    let set = |n, status| {
        let tenant = tenant(n);
        format!("SELECT audit.update_tenant('{tenant}', NULL, NULL, '{status}')")
    };
    for status in ["suspended", "inactive", "active", "deleted"] {
        maintainer.execute(&*set(1, status)).await.unwrap();
        let now = database.store.tenant(tenant(1)).await.unwrap().unwrap();
        assert_eq!(now.status.as_str(), status);
    }
    refused(&mut maintainer, &set(1, "active"), CHECK).await;
    refused(&mut maintainer, &set(3, "active"), CHECK).await;
    let denied = "UPDATE audit.heads SET status = 'active'";
    refused(&mut maintainer, denied, DENIED).await;
    let ask = format!(
        "SELECT audit.begin_ending('{}', 'admin', NULL, now(), false, false)",
        tenant(2)
    );
    maintainer.execute(&*ask).await.unwrap();
    refused(&mut maintainer, &set(2, "active"), CHECK).await;
    let rename = set(2, "x").replace("NULL, NULL, 'x'", "'renamed', true, NULL");
    maintainer.execute(&*rename).await.unwrap();
    let renamed = database.store.tenant(tenant(2)).await.unwrap().unwrap();
    assert_eq!((&*renamed.name, renamed.public_log), ("renamed", true));
    assert_eq!(renamed.status, TenantStatus::Inactive);
    database.sweep_all().await;
    let sweep = "SELECT audit.drop_pruned_partition()";
    maintainer.execute(sweep).await.unwrap();
    let mut owner = database.connect().await;
    let left = "SELECT count(*) FROM audit.events";
    assert_eq!(count(&mut owner, left).await, 6);
}

#[tokio::test]
async fn a_signer_removes_a_checkpoint_only_behind_the_largest_of_its_hour() {
    let database = Database::open().await;
    database.append(&scope(1), 9).await;
    let mut writer = as_role(&database, "audit_writer").await;
    for (size, at) in [(2, "03:10"), (4, "03:50"), (6, "04:10"), (8, "04:20")] {
        let sql = format!(
            "INSERT INTO audit.checkpoints (tenant_id, size, root, note, signed_at)
             VALUES ('{}', {size}, '', '', '2026-11-24 {at}Z')",
            tenant(1)
        );
        writer.execute(&*sql).await.unwrap();
    }
    let all = "SELECT string_agg(size::text, ',' ORDER BY size) FROM audit.checkpoints";
    // There is none of size 9, and all others but 8 have a larger one.
    for newest in [9, 6, 4, 2, 8, 8] {
        let sql = format!("SELECT audit.thin_checkpoints('{}', {newest})", tenant(1));
        writer.execute(&*sql).await.unwrap();
        let left: String = query_scalar(all).fetch_one(&mut writer).await.unwrap();
        let expected = if newest == 8 { "2,4,8" } else { "2,4,6,8" };
        assert_eq!(left, expected, "after {newest}");
    }
    // One that has stood for hours stays, whatever time the next one says; and when it was published
    // is for the database to say.
    let mut owner = database.connect().await;
    owner
        .execute("UPDATE audit.checkpoints SET published_at = published_at - interval '3 hours'")
        .await
        .unwrap();
    let next = |columns: &str, values: &str| {
        format!(
            "INSERT INTO audit.checkpoints (tenant_id, size, root, note, signed_at{columns})
             VALUES ('{}', 9, '', '', '2026-11-24 04:30Z'{values})",
            tenant(1)
        )
    };
    refused(&mut writer, &next(", published_at", ", now()"), DENIED).await;
    writer.execute(&*next("", "")).await.unwrap();
    let sql = format!("SELECT audit.thin_checkpoints('{}', 9)", tenant(1));
    writer.execute(&*sql).await.unwrap();
    let left: String = query_scalar(all).fetch_one(&mut writer).await.unwrap();
    assert_eq!(left, "2,4,8,9");
}

#[tokio::test]
async fn no_role_can_shrink_a_head() {
    let database = Database::open().await;
    database.append(&scope(1), 3).await;
    let mut owner = database.connect().await;
    for (role, column) in [
        ("audit_writer", "size = size - 1"),
        (
            "audit_writer",
            "created_at = created_at - interval '1 second'",
        ),
        ("audit_maintainer", "size = 0"),
        ("audit_owner", "pruned_below = -1"),
    ] {
        owner.execute(&*format!("SET ROLE {role}")).await.unwrap();
        let sql = format!("UPDATE audit.heads SET {column}");
        refused(&mut owner, &sql, CHECK).await;
        owner.execute("RESET ROLE").await.unwrap();
    }
    assert_eq!(database.store.head(&scope(1)).await.unwrap().size(), 3);
}

#[tokio::test]
async fn a_login_for_each_purpose_is_enough_for_it() {
    let database = Database::open().await;
    let mut admin = database.connect().await;
    // Logins belong to the cluster, and other tests run in it.
    let own = format!("{}_login", database.name());
    let sql = login_statements()
        .replace("_login", &format!("_{own}"))
        .replace("change me", PASSWORD);
    admin.execute(&*sql).await.unwrap();
    let url = |purpose: &str| url_of(&format!("audit_{purpose}_{own}"), database.name());
    let options = audit_store_postgres::PostgresOptions::new("postgres://nobody@127.0.0.1:1/none")
        .reader_url(url("reader"))
        .writer_url(url("writer"))
        .maintainer_url(url("maintainer"))
        .connections(2, 2, 1)
        .clock(database.clock.clone());
    let store = PostgresStore::connect(options).await.unwrap();

    let batch = database.batch(&scope(1), 5);
    let receipts = store.append(&[batch]).await.unwrap().remove(0).unwrap();
    let page = store
        .list(&scope(1), &audit_core::Filter::new(), &PageRequest::first())
        .await
        .unwrap();
    assert_eq!(page.items.len(), 5);
    store.snapshot(&scope(1)).await.unwrap();
    let erasure = audit_core::Erasure::new(
        ids(&receipts[..1]),
        basis("gdpr-17"),
        database.act(&scope(1)),
    );
    assert_eq!(store.erase(&scope(1), &erasure).await.unwrap().entries, 1);
    let asked = audit_core::ErasureJob::new(
        audit_core::ErasureId::new(receipts[0].id.into_uuid()),
        &scope(1),
        audit_core::ErasureRequest::new(Selection::user("ann"), basis("gdpr-17")),
        audit_core::Clock::now(&*database.clock),
    );
    let begun = store.begin_erasure(&scope(1), &asked, &[]).await.unwrap();
    let found = store.find_erasure(&scope(1), asked.id).await.unwrap();
    assert_eq!(found.as_ref(), Some(&begun));
    let step = audit_core::ErasureStep {
        id: asked.id,
        from: begun.next,
        next: begun.end,
        done: true,
    };
    assert_eq!(store.open_erasures(None, 10).await.unwrap(), [begun]);
    let last = audit_core::Erasure::new(Vec::new(), basis("gdpr-17"), database.act(&scope(1)));
    let done = store.erase(&scope(1), &last.step(step)).await.unwrap();
    assert_eq!(done.entries, 0);
    let fence = store.lease("test", Duration::from_secs(15)).await;
    let root = audit_core::tlog::merkle::root(&[]);
    let now = audit_core::Clock::now(&*database.clock);
    let head = audit_core::SignedCheckpoint::new(0, root, "a note\n".into(), now).guarded(true);
    let fence = fence.unwrap().unwrap();
    store.publish_deployment(fence, &head).await.unwrap();
    assert_eq!(store.latest_deployment().await.unwrap(), Some(head));
    database.clock.advance_micros(1_000_000);
    let before = audit_core::Clock::now(&*database.clock);
    let prune = audit_core::Prune::new(before, basis("retention"), database.act(&scope(1)));
    assert_eq!(store.prune(&scope(1), &prune).await.unwrap().below, 6);
    while store.sweep().await.unwrap() {}
    let said = || {
        let event = audit_core::Event::update("tenant", "t").user("admin");
        audit_core::PreparedEvent::new(tenant(1), event, &*database.clock, &[]).unwrap()
    };
    let update = TenantUpdate::default().name("renamed").public_log(true);
    let update = update.status(TenantStatus::Suspended);
    let updated = store.update_tenant(tenant(1), &update, &said()).await;
    let found = store.tenant(tenant(1)).await.unwrap();
    assert_eq!(found, Some(updated.unwrap()));
    let now = audit_core::Clock::now(&*database.clock);
    let ending = audit_core::Ending::new(tenant(1), "admin", None, now);
    store.begin_ending(&ending, &said()).await.unwrap();
    let head = store.head(&scope(1)).await.unwrap();
    store
        .end(&audit_core::Tombstone::of(&head, now))
        .await
        .unwrap();
    while store.sweep().await.unwrap() {}
    store.settle(scope(1).tenant()).await.unwrap();
    store.ping().await.unwrap();
    // It owns no database, and says what it leaves to whoever does.
    let left = store.vacuum().await.unwrap();
    let is_left = |what: &str| left.iter().any(|place| place.contains(what));
    assert!(is_left("VACUUM FULL pg_statistic"), "{left:?}");

    store.close().await;
    for purpose in ["reader", "writer", "maintainer"] {
        let login = format!("audit_{purpose}_{own}");
        let roles =
            format!("SELECT count(*) FROM pg_auth_members WHERE member = '{login}'::regrole");
        assert_eq!(count(&mut admin, &roles).await, 1, "{login}");
        admin.execute(&*format!("DROP ROLE {login}")).await.unwrap();
    }
}
