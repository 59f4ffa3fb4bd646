//! What is left on disk of a person who was erased.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use audit_conformance::person::{self, PERSON};
use audit_conformance::sized;
use audit_core::{AuditLog, EventId, LogStore as _, SearchIndex as _, Vacuum as _};
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;

use crate::fixture::{Database, basis, eventually, scope, server, tenant};

/// Whether a dump of the database has the person.
fn is_dumped(database: &str) -> bool {
    let server = server();
    let dump = Command::new("pg_dump")
        .args([
            "-h",
            server.get_host(),
            "-p",
            &server.get_port().to_string(),
        ])
        .args(["-U", server.get_username(), "-n", "audit", database])
        .env(
            "PGPASSWORD",
            std::env::var("AUDIT_TEST_POSTGRES_URL")
                .map(|url| {
                    let login = url.split_once("://").expect("a URL").1;
                    let secret = login.split_once(':').expect("a password").1;
                    secret.split_once('@').expect("a host").0.to_owned()
                })
                .unwrap(),
        )
        .output()
        .expect("pg_dump runs");
    assert!(
        dump.status.success(),
        "{}",
        String::from_utf8_lossy(&dump.stderr)
    );
    let bytes = dump.stdout;
    assert!(bytes.len() > 10_000);
    person::is_in(&bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erased_person_is_in_no_page_and_no_dump_after_vacuum() {
    let database = Database::open().await;
    let store = Arc::new(database.again().await);
    let log = AuditLog::builder(Arc::clone(&store))
        .queue(Arc::new(store.queue()))
        .outbox(Arc::new(store.outbox()))
        .search(Arc::new(store.search_index()))
        .build();
    let workers = log.start();
    let reader = log.tenant(scope(1));
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let mut ids: Vec<EventId> = Vec::new();
    for _ in 0..sized(200_000) / 1_000 {
        let events = (0..1_000).map(|n| match n % 100 {
            0 => person::event(n, PERSON),
            _ => person::event(n, "ann"),
        });
        let receipts = reader.record_all(events.collect()).await.unwrap();
        ids.extend(receipts.iter().step_by(100).map(|r| r.id));
    }
    // Through the queue and through the outbox, which it leaves when it is worked off.
    let queued = reader
        .enqueue(vec![person::event(0, PERSON)])
        .await
        .unwrap();
    ids.extend(queued.expect("the queue is durable"));
    let mut admin = database.connect().await;
    let captured = person::event(1, PERSON);
    let recorded =
        audit_store_postgres::outbox::record_in(&mut admin, tenant(1), captured, &*database.clock);
    ids.push(recorded.await.unwrap());
    let size = sized(200_000) as u64 + 2;
    eventually("all is in the log", async || {
        store.head(&scope(1)).await.unwrap().size() == size
    })
    .await;
    let is_indexed = async || {
        let size = store.head(&scope(1)).await.unwrap().size();
        store
            .search_index()
            .indexed_through(&scope(1))
            .await
            .unwrap()
            == size
    };
    eventually("all is indexed", is_indexed).await;
    let data: String = query_scalar("SHOW data_directory")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    let number: String =
        query_scalar("SELECT oid::text FROM pg_database WHERE datname = current_database()")
            .fetch_one(&mut admin)
            .await
            .unwrap();
    let folder = Path::new(&data).join("base").join(number);
    admin.execute("ANALYZE; CHECKPOINT").await.unwrap();
    assert!(
        !person::files_with(&folder)
            .expect("the server's files can be read")
            .is_empty()
    );
    assert!(is_dumped(database.name()));

    for some in ids.chunks(500) {
        let erased = reader
            .erase(some.to_vec(), None, basis("gdpr-17"), None)
            .await;
        assert_eq!(erased.unwrap().entries, some.len() as u64);
    }
    eventually("the erasures are indexed", is_indexed).await;
    assert!(!is_dumped(database.name()));
    for _ in 0..2 {
        store.vacuum().await.unwrap();
    }
    // What the docs leave to a superuser, and what the server does by itself within minutes.
    admin.execute("VACUUM FULL pg_statistic").await.unwrap();
    admin.execute("CHECKPOINT").await.unwrap();
    let mut relations = Vec::new();
    for file in person::files_with(&folder).expect("the server's files can be read") {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let sql = format!(
            "SELECT coalesce(min(relname), 'nothing any more')::text FROM pg_class
             WHERE pg_relation_filenode(oid) = {}",
            name.split(['.', '_']).next().unwrap()
        );
        relations.push((
            name,
            query_scalar::<_, String>(&sql)
                .fetch_one(&mut admin)
                .await
                .unwrap(),
        ));
    }
    assert_eq!(relations, []);
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    let left = store.read(&scope(1), 0, 200).await.unwrap();
    assert_eq!(left[0].erased.len(), 7);
    assert_eq!(left[1].fields.user_id.as_deref(), Some("ann"));
}
