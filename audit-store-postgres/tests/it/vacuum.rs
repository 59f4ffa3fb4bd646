//! What is left on disk of a person who was erased.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use audit_conformance::person::{self, Person};
use audit_conformance::sized;
use audit_core::{
    AuditLog, ErasureRequest, ErasureState, LogStore as _, Lookup, SearchIndex as _, Selection,
    SystemClock, Vacuum as _,
};
use audit_store_postgres::{PostgresStore, outbox};
use sqlx_core::executor::Executor as _;
use sqlx_core::query_as::query_as;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::PgConnection;
use tokio::time::Instant;

use crate::engine::Engine;
use crate::fixture::{Database, basis, eventually, scope, tenant};

/// No value is compressed, so that it can be read in the pages: in those of rows that are dead, no SQL
/// reads it. Rows are written and written anew alike either way.
const UNCOMPRESSED: &str = "
    DO $do$
    DECLARE
        place record;
    BEGIN
        FOR place IN
            SELECT c.oid::regclass AS name, a.attname FROM pg_attribute a
            JOIN pg_class c ON c.oid = a.attrelid
            WHERE c.relnamespace = 'audit'::regnamespace AND c.relkind IN ('r', 'p')
                AND a.attnum > 0 AND a.attstorage = 'x'
        LOOP
            EXECUTE format(
                'ALTER TABLE %s ALTER %I SET STORAGE EXTERNAL', place.name, place.attname
            );
        END LOOP;
    END
    $do$";

/// Every relation by the name of its file, without the month of a partition. Values that are longer than
/// a page have a table of their own.
const RELATIONS: &str = r"
    SELECT pg_relation_filenode(c.oid)::text, regexp_replace(coalesce(
        (SELECT o.relname || ' (long values)' FROM pg_class o WHERE o.reltoastrelid = c.oid),
        c.relname
    )::text, '^events_\d{6}', 'events')
    FROM pg_class c WHERE pg_relation_filenode(c.oid) IS NOT NULL";

/// What the index has in the place of words and values that are the person's: the documents at 0 and at
/// `$1` differ in nothing else.
const LEXEMES: &str = "
    (SELECT lexeme FROM unnest((SELECT words FROM audit.index_documents WHERE seq = 0))
    EXCEPT
    SELECT lexeme FROM unnest((SELECT words FROM audit.index_documents WHERE seq = $1)))
    INTERSECT
    SELECT lexeme FROM unnest((SELECT words FROM audit.index_documents WHERE seq = 100))
    LIMIT 4";

/// Where a cluster has a person: relations by their names, folders of other files, and the dump.
async fn places(engine: &Engine, person: &Person, admin: &mut PgConnection) -> BTreeSet<String> {
    let relations: Vec<(String, String)> = query_as(RELATIONS).fetch_all(admin).await.unwrap();
    let relations: BTreeMap<String, String> = relations.into_iter().collect();
    let name_of = |path: &Path| {
        let file = path.file_name()?.to_str()?;
        relations.get(file.split(['.', '_']).next()?).cloned()
    };
    let mut found: BTreeSet<String> = BTreeSet::new();
    for path in person.files_with(&engine.data()).unwrap() {
        let place = match path.starts_with("base") {
            true => name_of(&path),
            false => path.parent().map(|folder| folder.display().to_string()),
        };
        found.insert(place.unwrap_or_else(|| path.display().to_string()));
    }
    if person.is_in(&engine.dump()) {
        found.insert("the dump".to_owned());
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erased_person_is_in_no_page_and_no_dump_after_vacuum() {
    let (engine, mut person) = (Engine::start().await, Person::random());
    let mut admin = engine.connect().await;
    admin.execute(UNCOMPRESSED).await.unwrap();
    let store = Arc::new(PostgresStore::connect(engine.options()).await.unwrap());
    let log = AuditLog::builder(Arc::clone(&store))
        .queue(Arc::new(store.queue()))
        .outbox(Arc::new(store.outbox()))
        .search(Arc::new(store.search_index()))
        .build();
    let workers = log.start();
    let reader = log.tenant(scope(1));
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    for _ in 0..sized(200_000) / 1_000 {
        let events = (0..1_000).map(|n| match n % 100 {
            0 => person::event(n, person.name()),
            _ => person::event(n, "ann"),
        });
        reader.record_all(events.collect()).await.unwrap();
    }
    let other = reader
        .record_all(vec![person::event(0, "ann")])
        .await
        .unwrap()[0]
        .seq;
    let is_indexed = async || {
        let size = store.head(&scope(1)).await.unwrap().size();
        let index = store.search_index();
        index.indexed_through(&scope(1)).await.unwrap() == size
    };
    eventually("all is indexed", is_indexed).await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    let lexemes: Vec<String> = query_scalar(LEXEMES)
        .bind(other as i64)
        .fetch_all(&mut admin)
        .await
        .unwrap();
    assert_eq!(lexemes.len(), 4);
    for lexeme in lexemes {
        person.also(lexeme);
    }
    // These wait in queue and outbox, since nobody works them off.
    let queued = (1..11).map(|n| person::event(n, person.name())).collect();
    let mut late = reader.enqueue(queued).await.unwrap().expect("durable");
    for n in 1..11 {
        let captured = person::event(n, person.name());
        let recorded = outbox::record_in(&mut admin, tenant(1), captured, &SystemClock);
        late.push(recorded.await.unwrap());
    }
    admin.execute("ANALYZE; CHECKPOINT").await.unwrap();
    let found = places(&engine, &person, &mut admin).await;
    for place in [
        "events",
        "events (long values)",
        "events_tenant_id_user_id_created_at_seq_idx",
        "index_documents",
        "index_documents_words",
        "outbox",
        "pg_statistic",
        "pg_wal",
        "queue_messages",
        "the dump",
    ] {
        assert!(found.contains(place), "{place} is not among {found:?}");
    }

    let request = ErasureRequest::new(Selection::user(person.name()), basis("gdpr-17"));
    let job = reader.request_erasure(request).await.unwrap();
    let workers = log.start();
    eventually("the erasure is done", || async {
        reader.erasure(job.id).await.unwrap().state == ErasureState::Done
    })
    .await;
    eventually("the late ones arrive, and are erased", || async {
        let arrived = store.get(&scope(1), &late).await.unwrap();
        let is_erased =
            |found: &Lookup| matches!(found, Lookup::Found(entry) if entry.erased.len() == 7);
        arrived.len() == 20 && arrived.iter().all(is_erased)
    })
    .await;
    eventually("the erasures are indexed", is_indexed).await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    for _ in 0..2 {
        let left = store.vacuum().await.unwrap();
        // This login owns the database.
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].contains("pg_wal"), "{left:?}");
    }
    let found = places(&engine, &person, &mut admin).await;
    assert_eq!(found, ["pg_wal".to_owned()].into());

    // What the docs leave to a superuser. The setting takes a moment to reach whoever removes files.
    admin
        .execute("ALTER SYSTEM SET wal_recycle = off")
        .await
        .unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
    let mut found = places(&engine, &person, &mut admin).await;
    for _ in 0..5 {
        admin
            .execute(
                "SELECT pg_logical_emit_message(false, 'audit', ''), pg_switch_wal()
                 FROM pg_ls_waldir()",
            )
            .await
            .unwrap();
        admin.execute("CHECKPOINT").await.unwrap();
        found = places(&engine, &person, &mut admin).await;
        if found.is_empty() {
            break;
        }
    }
    assert_eq!(found, BTreeSet::new());
    let left = store.read(&scope(1), 0, 200).await.unwrap();
    assert_eq!(left[0].erased.len(), 7);
    assert_eq!(left[1].fields.user_id.as_deref(), Some("ann"));
}

#[tokio::test]
async fn an_older_transaction_holds_vacuum_up_until_it_ends() {
    let database = Database::open().await;
    database.append(&scope(1), 3).await;
    let (mut reader, mut admin) = (database.connect().await, database.connect().await);
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM audit.heads";
    reader.execute(begin).await.unwrap();
    // Makes a row dead that the reader sees.
    database.append(&scope(1), 3).await;
    let mut ask = async |question: &str| -> String {
        let answer = query_scalar(question).fetch_one(&mut admin).await;
        answer.unwrap()
    };
    let file = "SELECT pg_relation_filenode('audit.heads')::text";
    let before = ask(file).await;
    let store = database.store.clone();
    let vacuum = tokio::spawn(async move { store.vacuum().await });
    // It asks again and again.
    let asked = "SELECT coalesce(max(state_change), now())::text FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE '% maintainer'";
    let (mut seen, deadline) = (BTreeSet::new(), Instant::now() + Duration::from_secs(60));
    while seen.len() < 20 {
        seen.insert(ask(asked).await);
        assert!(Instant::now() < deadline, "it asks no more");
    }
    assert!(!vacuum.is_finished());
    assert_eq!(ask(file).await, before);
    reader.execute("COMMIT").await.unwrap();
    vacuum.await.unwrap().unwrap();
    assert_ne!(ask(file).await, before);
}
