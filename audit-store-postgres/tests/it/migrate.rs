//! Bringing a database up to what the program needs.

use audit_core::{ErrorKind, LogStore};
use audit_store_postgres::{PostgresOptions, PostgresStore, migrate};
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;

use crate::fixture::{Database, PASSWORD, scope, url_of};

#[tokio::test]
async fn several_processes_migrate_at_once_and_again() {
    let bare = Database::without_log().await;
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let options = bare.options();
            tokio::spawn(async move {
                migrate(&options).await.unwrap();
                migrate(&options).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    PostgresStore::connect(bare.options()).await.unwrap();
}

#[tokio::test]
async fn databases_of_one_cluster_are_migrated_at_once() {
    let (one, two) = (Database::without_log().await, Database::without_log().await);
    let (one, two) = (one.options(), two.options());
    let (one, two) = tokio::join!(migrate(&one), migrate(&two));
    one.unwrap();
    two.unwrap();
}

#[tokio::test]
async fn the_login_does_not_stay_a_member_of_the_owner() {
    let database = Database::open().await;
    let mut admin = database.connect().await;
    let is_member: bool = query_scalar("SELECT pg_has_role('audit_it', 'audit_owner', 'MEMBER')")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert!(!is_member);
    let strangers: i64 = query_scalar(
        "SELECT count(*) FROM pg_class
         WHERE relnamespace = 'audit'::regnamespace AND relowner <> 'audit_owner'::regrole",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    assert_eq!(strangers, 0);
}

#[tokio::test]
async fn a_schema_of_another_version_is_refused() {
    let bare = Database::without_log().await;
    let error = PostgresStore::connect(bare.options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");

    migrate(&bare.options()).await.unwrap();
    let mut admin = bare.connect().await;
    for (sql, word) in [
        (
            "DELETE FROM audit.migrations
             WHERE version = (SELECT max(version) FROM audit.migrations)",
            "migrate it first",
        ),
        ("INSERT INTO audit.migrations VALUES (99)", "newer program"),
    ] {
        admin.execute(sql).await.unwrap();
        let error = PostgresStore::connect(bare.options()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(
        migrate(&bare.options()).await.unwrap_err().kind(),
        ErrorKind::Refused
    );
}

#[tokio::test]
async fn a_login_without_the_right_to_make_roles_uses_those_that_are_there() {
    let database = Database::open().await;
    let mut admin = database.connect().await;
    let login = format!("{}_plain", database.name());
    admin
        .execute(&*format!(
            "CREATE ROLE {login} LOGIN PASSWORD '{PASSWORD}'
                 IN ROLE audit_owner, audit_reader, audit_writer, audit_maintainer"
        ))
        .await
        .unwrap();
    let options = PostgresOptions::new(url_of(&login, database.name())).connections(1, 1, 1);
    migrate(&options).await.unwrap();
    let store = PostgresStore::connect(options).await.unwrap();
    let batch = database.batch(&scope(1), 1);
    store.append(&[batch]).await.unwrap().remove(0).unwrap();
    store.close().await;
    admin.execute(&*format!("DROP ROLE {login}")).await.unwrap();
}
