//! Connections: TLS, and who is refused.

use audit_core::{ErrorKind, LogStore, Mark};
use audit_store_postgres::{PostgresOptions, PostgresStore};
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;

use crate::fixture::{Database, PASSWORD, scope, server, url_of};

#[tokio::test]
async fn a_superuser_is_refused_unless_allowed() {
    let database = Database::open().await;
    let server = server();
    let url = format!(
        "postgres://{}@{}:{}/{}",
        server.get_username(),
        server.get_host(),
        server.get_port(),
        database.name()
    );
    let password = std::env::var("AUDIT_TEST_POSTGRES_URL").unwrap();
    let password = password
        .split('@')
        .next()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    let url = url.replacen('@', &format!(":{password}@"), 1);
    let options = PostgresOptions::new(url).connections(1, 1, 1);
    let error = PostgresStore::connect(options.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("superuser"), "{error}");
    let store = PostgresStore::connect(options.allow_superuser(true))
        .await
        .unwrap();
    store
        .append(&[database.batch(&scope(1), 1)])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
}

#[tokio::test]
async fn an_unreachable_server_is_a_retryable_error() {
    let options = PostgresOptions::new("postgres://nobody:x@127.0.0.1:1/none")
        .acquire_timeout(std::time::Duration::from_millis(100));
    let error = PostgresStore::connect(options).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("nobody:x"));
}

#[tokio::test]
async fn a_server_without_a_trusted_certificate_is_refused() {
    let database = Database::open().await;
    let Ok(authority) = std::env::var("AUDIT_TEST_POSTGRES_TLS_CA") else {
        panic!("no test CA: run `dev/services up`, then `set -a; . .dev/env; set +a`");
    };
    let by_name = database.url().replace("127.0.0.1", "localhost");
    let options = |url: String| PostgresOptions::new(url).connections(1, 1, 1);

    let trusting = options(by_name.clone())
        .root_certificate(&authority)
        .application_name("tls");
    let store = PostgresStore::connect(trusting).await.unwrap();
    store
        .append(&[database.batch(&scope(1), 1)])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let mut admin = database.connect().await;
    let (all, secure): (i64, i64) = sqlx_core::query_as::query_as(
        "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
         WHERE application_name LIKE 'tls %' AND datname = current_database()",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    assert!(all > 0 && all == secure, "{secure} of {all}");
    store.snapshot(&scope(1)).await.unwrap();

    let quick = std::time::Duration::from_secs(2);
    let by_public_authorities = options(format!("{by_name}?sslmode=verify-full"));
    let error = PostgresStore::connect(by_public_authorities.acquire_timeout(quick)).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn an_append_is_durable_whatever_the_databases_default() {
    let database = Database::open().await;
    let mut admin = database.connect().await;
    let off = format!(
        "ALTER DATABASE {} SET synchronous_commit = off",
        database.name()
    );
    admin.execute(&*off).await.unwrap();
    admin
        .execute(
            "CREATE FUNCTION public.check_durable() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF current_setting('synchronous_commit') <> 'on' THEN
                     RAISE EXCEPTION 'synchronous_commit is off';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER check_durable BEFORE INSERT OR UPDATE ON audit.heads
                 FOR EACH ROW EXECUTE FUNCTION public.check_durable()",
        )
        .await
        .unwrap();
    let store = database.again().await;
    store
        .append(&[database.batch(&scope(1), 1)])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    // Where nothing is appended, the default is left.
    let mut other = database.connect().await;
    let left: String = query_scalar("SHOW synchronous_commit")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(left, "off");
}

#[tokio::test]
async fn a_role_that_is_taken_away_and_given_back_leaves_no_connection_in_a_broken_transaction() {
    let database = Database::open().await;
    let mut admin = database.connect().await;
    let login = format!("{}_taken", database.name());
    admin
        .execute(&*format!(
            "CREATE ROLE {login} LOGIN PASSWORD '{PASSWORD}'
                 IN ROLE audit_reader, audit_writer, audit_maintainer"
        ))
        .await
        .unwrap();
    let options = PostgresOptions::new(url_of(&login, database.name())).connections(1, 1, 1);
    let store = PostgresStore::connect(options).await.unwrap();
    for _ in 0..3 {
        admin
            .execute(&*format!("REVOKE audit_writer FROM {login}"))
            .await
            .unwrap();
        let error = store.grown_since(Mark::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        admin
            .execute(&*format!("GRANT audit_writer TO {login}"))
            .await
            .unwrap();
        // As the login and as the role, both over the writer's one connection.
        store.ping().await.unwrap();
        store.grown_since(Mark::default()).await.unwrap();
    }
    store.close().await;
    admin.execute(&*format!("DROP ROLE {login}")).await.unwrap();
}
