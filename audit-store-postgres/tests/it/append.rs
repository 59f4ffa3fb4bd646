//! Appends of several processes, and what happens when the database is in the way.

use std::sync::Arc;
use std::time::Duration;

use audit_conformance::sized;
use audit_core::{
    Batch, ErrorKind, Event, GroupCommit, LogStore, Mark, PreparedEvent, SystemClock, Timestamp,
};
use audit_store_postgres::PostgresStore;
use sqlx_core::connection::Connection as _;
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::PgConnection;

use crate::fixture::{Database, eventually, ids, scope, tenant, until_one_waits};

/// Makes the server refuse entries of a resource, with an SQLSTATE.
async fn refuse(admin: &mut PgConnection, resource: &str, sqlstate: &str) {
    let refuses = format!(
        "CREATE FUNCTION public.refuse_{resource}() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END $$;
         CREATE TRIGGER refuse_{resource} BEFORE INSERT ON audit.events FOR EACH ROW
             WHEN (NEW.resource_id = '{resource}') EXECUTE FUNCTION public.refuse_{resource}()"
    );
    admin.execute(&*refuses).await.unwrap();
}

/// Holds tenants' heads until the connection's transaction ends.
async fn hold(holder: &mut PgConnection, tenants: &[u128]) {
    let tenants: Vec<String> = tenants
        .iter()
        .map(|n| format!("'{}'", tenant(*n)))
        .collect();
    let held = format!(
        "BEGIN; SELECT FROM audit.heads WHERE tenant_id IN ({}) FOR UPDATE",
        tenants.join(", ")
    );
    holder.execute(&*held).await.unwrap();
}

/// How many transactions appended to tenants from the first to the last.
async fn transactions_of(admin: &mut PgConnection, first: u128, last: u128) -> i64 {
    query_scalar(
        "SELECT count(DISTINCT changed) FROM audit.heads
         WHERE tenant_id BETWEEN $1 AND $2 AND size > 0",
    )
    .bind(tenant(first).into_uuid())
    .bind(tenant(last).into_uuid())
    .fetch_one(admin)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_busy_tenant_does_not_stall_the_others_of_a_call() {
    let database = Database::with(|options| options.lock_timeout(Duration::from_millis(700))).await;
    for n in 1..=3 {
        database.append(&scope(n), 1).await;
    }
    let mut holder = database.connect().await;
    hold(&mut holder, &[2]).await;
    let batches: Vec<_> = (1..=3).map(|n| database.batch(&scope(n), 2)).collect();
    let outcomes = database.store.append(&batches).await.unwrap();
    assert_eq!(outcomes[0].as_ref().unwrap()[1].seq, 2);
    let busy = outcomes[1].as_ref().unwrap_err();
    assert!(busy.is_retryable(), "{busy:?}");
    assert_eq!(busy.tenant(), Some(tenant(2)));
    assert_eq!(outcomes[2].as_ref().unwrap()[1].seq, 2);

    let alone = database.store.append(&batches[1..2]).await.unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::Unavailable);
    holder.execute("ROLLBACK").await.unwrap();
    for outcome in database.store.append(&batches).await.unwrap() {
        assert_eq!(outcome.unwrap()[0].seq, 1);
    }
}

#[tokio::test]
async fn several_processes_append_to_the_same_new_tenants_at_once() {
    let database = Database::open().await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let store = database.again().await;
        let batches: Vec<Vec<_>> = (0..5)
            .map(|_| (1..=4).map(|n| database.batch(&scope(n), 3)).collect())
            .collect();
        tasks.push(tokio::spawn(async move {
            for batches in batches {
                for outcome in store.append(&batches).await.unwrap() {
                    outcome.unwrap();
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    for n in 1..=4 {
        let head = database.store.head(&scope(n)).await.unwrap();
        assert_eq!(head.size(), 60);
        let leaves = database.store.hashes(&scope(n), 0, 0..60).await.unwrap();
        assert_eq!(audit_core::tlog::merkle::root(&leaves), head.tree.root());
    }
}

#[tokio::test]
async fn a_missing_partition_is_made_on_demand() {
    let database = Database::open().await;
    for at in [
        "2031-01-31T23:59:59.999999Z",
        "2031-02-01T00:00:00Z",
        "2041-12-01T00:00:00Z",
    ] {
        database.clock.set(Timestamp::parse(at).unwrap());
        database.append(&scope(1), 2).await;
    }
    // One that this process has seen goes, as when another one pruned it.
    let mut admin = database.connect().await;
    admin
        .execute("DROP TABLE audit.events_204112")
        .await
        .unwrap();
    database.append(&scope(2), 2).await;
    let act = database.act(&scope(1));
    admin
        .execute("DROP TABLE audit.events_204112")
        .await
        .unwrap();
    let receipts = database.append(&scope(3), 2).await;
    admin
        .execute("DROP TABLE audit.events_204201")
        .await
        .unwrap();
    database
        .clock
        .set(Timestamp::parse("2042-01-01T00:00:00Z").unwrap());
    let erasure = audit_core::Erasure::new(ids(&receipts), crate::fixture::basis("x"), act);
    assert_eq!(
        database
            .store
            .erase(&scope(3), &erasure)
            .await
            .unwrap()
            .entries,
        2
    );
}

#[tokio::test]
async fn the_next_months_partition_is_made_before_it_begins() {
    let database = Database::open().await;
    database
        .clock
        .set(Timestamp::parse("2031-01-15T00:00:00Z").unwrap());
    database.append(&scope(1), 1).await;
    let mut admin = database.connect().await;
    let next: bool = query_scalar("SELECT to_regclass('audit.events_203102') IS NOT NULL")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert!(next);
}

#[tokio::test]
async fn times_are_the_databases_unless_a_clock_is_given() {
    let database = Database::open().await;
    let store = PostgresStore::connect(database.options()).await.unwrap();
    let mut admin = database.connect().await;
    let micros = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let before: i64 = query_scalar(micros).fetch_one(&mut admin).await.unwrap();
    let event = PreparedEvent::new(tenant(1), Event::view("a", "b"), &SystemClock, &[]).unwrap();
    let batch = audit_core::Batch::new(scope(1), vec![event]).creating_tenant();
    let receipt = store
        .append(&[batch])
        .await
        .unwrap()
        .remove(0)
        .unwrap()
        .remove(0);
    let after: i64 = query_scalar(micros).fetch_one(&mut admin).await.unwrap();
    assert!((before..=after).contains(&receipt.created_at.as_micros()));
}

#[tokio::test]
async fn growth_that_commits_late_is_not_missed() {
    let database = Database::open().await;
    for n in 1..=2 {
        database.append(&scope(n), 1).await;
    }
    // The first takes its number, and commits after the second was told of.
    let mut late = database.connect().await;
    late.execute("BEGIN").await.unwrap();
    let change = format!(
        "UPDATE audit.heads SET changed = pg_current_xact_id() WHERE tenant_id = '{}'",
        tenant(1)
    );
    late.execute(&*change).await.unwrap();
    database.append(&scope(2), 1).await;
    let first = database.store.grown_since(Mark::default()).await.unwrap();
    late.execute("COMMIT").await.unwrap();
    let then = database.store.grown_since(first.mark).await.unwrap();
    assert!(
        then.tenants.iter().any(|(grown, _)| *grown == tenant(1)),
        "{then:?}"
    );
    // What is told again is told for as long as any transaction of the cluster is older.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut last = then;
    while !last.tenants.is_empty() {
        assert!(tokio::time::Instant::now() < deadline);
        last = database.store.grown_since(last.mark).await.unwrap();
    }
}

#[tokio::test]
async fn an_append_whose_connections_are_cut_is_repeated_by_its_ids() {
    let database = Database::open().await;
    database.append(&scope(1), 1).await;
    let batch = database.batch(&scope(1), 3);
    let mut admin = database.connect().await;
    admin
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await
        .unwrap();
    let mut receipts = None;
    for _ in 0..5 {
        match database.store.append(std::slice::from_ref(&batch)).await {
            Ok(mut outcomes) => {
                receipts = Some(outcomes.remove(0).unwrap());
                break;
            }
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
    let receipts = receipts.expect("appended");
    assert_eq!(
        receipts.iter().map(|r| r.seq).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    let again = database
        .store
        .append(&[batch])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert!(again.iter().all(|receipt| receipt.duplicate));
    admin.close().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_escaped_wrongly_is_read_as_it_was_written() {
    let database = Database::open().await;
    let texts = [
        "\\N",
        "\\.",
        "a\tb\nc\rd\\",
        "\u{7f}\u{1}\u{10FFFF}",
        "'\";--",
        "",
    ];
    let events = texts.iter().map(|text| {
        let event = Event::update("t", "r")
            .user(*text)
            .reason(*text)
            .metadata(&serde_json::json!({"text": text, "list": [*text]}));
        database.prepare(tenant(1), event)
    });
    let batch = audit_core::Batch::new(scope(1), events.collect()).creating_tenant();
    let receipts = database
        .store
        .append(&[batch])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let found = database
        .store
        .get(&scope(1), &ids(&receipts))
        .await
        .unwrap();
    for (found, text) in found.into_iter().zip(texts) {
        let entry = found.into_entry().unwrap();
        assert_eq!(entry.fields.user_id.as_deref(), Some(text));
        assert_eq!(entry.fields.reason.as_deref(), Some(text));
        let metadata = serde_json::json!({"text": text, "list": [text]}).to_string();
        assert_eq!(entry.fields.metadata.as_ref().unwrap().as_str(), metadata);
    }
}

#[tokio::test]
async fn a_value_that_only_the_server_refuses_fails_alone() {
    let database = Database::open().await;
    database.append(&scope(1), 1).await;
    let mut admin = database.connect().await;
    admin
        .execute(
            "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 RAISE EXCEPTION 'not this one' USING ERRCODE = '22021';
             END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON audit.events
                 FOR EACH ROW WHEN (NEW.reason = 'bad') EXECUTE FUNCTION public.refuse()",
        )
        .await
        .unwrap();
    let log = GroupCommit::new(Arc::new(database.store.clone()));
    let batches: Vec<Batch> = (0..8)
        .map(|n| {
            let reason = if n == 5 { "bad" } else { "good" };
            let event = Event::view("page", "p").reason(reason);
            Batch::new(
                scope(n % 2 + 1),
                vec![database.prepare(tenant(n % 2 + 1), event)],
            )
            .creating_tenant()
        })
        .collect();
    let outcomes = log.append(&batches).await.unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome.is_err(), n == 5, "{outcome:?}");
    }
    let error = outcomes[5].as_ref().unwrap_err();
    assert!(!error.is_retryable(), "{error:?}");
    assert_eq!(database.store.head(&scope(1)).await.unwrap().size(), 5);
    assert_eq!(database.store.head(&scope(2)).await.unwrap().size(), 3);
}

#[tokio::test]
async fn what_the_engine_refuses_after_others_are_committed_fails_alone() {
    let database = Database::open().await;
    for n in 1..=3 {
        database.append(&scope(n), 1).await;
    }
    let mut holder = database.connect().await;
    refuse(&mut holder, "refused", "22023").await;
    hold(&mut holder, &[2, 3]).await;
    let bad = database.prepare(tenant(2), Event::view("invoice", "refused"));
    let batches = vec![
        database.batch(&scope(1), 2),
        database.batch(&scope(2), 2),
        Batch::new(scope(2), vec![bad]),
        database.batch(&scope(2), 2),
        database.batch(&scope(3), 2),
    ];
    let store = database.store.clone();
    let call = tokio::spawn(async move { store.append(&batches).await });
    eventually("the free tenant's batch is committed", || async {
        database.store.head(&scope(1)).await.unwrap().size() == 3
    })
    .await;
    holder.execute("ROLLBACK").await.unwrap();
    let outcomes = call.await.unwrap().unwrap();
    let is_stored: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(is_stored, [true, true, false, true, true]);
    let refused = outcomes[2].as_ref().unwrap_err();
    assert!(!refused.is_retryable(), "{refused:?}");
    let told = format!("{refused:?}");
    assert!(
        told.contains("22023") && !told.contains("invoice"),
        "{told}"
    );
    assert_eq!(database.store.head(&scope(2)).await.unwrap().size(), 5);
}

#[tokio::test]
async fn a_call_of_many_tenants_runs_beside_itself_and_is_answered_batch_by_batch() {
    const TENANTS: u128 = 200;
    let (busy, refused, unknown) = (10, 60, 180);
    let database = Database::with(|options| options.lock_timeout(Duration::from_secs(25))).await;
    let mut admin = database.connect().await;
    refuse(&mut admin, "refused", "22023").await;
    database.append(&scope(busy), 1).await;
    let mut holder = database.connect().await;
    hold(&mut holder, &[busy]).await;

    let batches: Vec<Batch> = (0..TENANTS)
        // Not in the order of their ids, by which they are shared out.
        .map(|i| i * 7 % TENANTS)
        .map(|n| match n {
            n if n == refused => {
                let event = Event::view("invoice", "refused");
                Batch::new(scope(n), vec![database.prepare(tenant(n), event)]).creating_tenant()
            }
            n if n == unknown => {
                let event = Event::view("invoice", "one");
                Batch::new(scope(n), vec![database.prepare(tenant(n), event)])
            }
            n => database.batch(&scope(n), 2),
        })
        .collect();
    let (store, call) = (database.store.clone(), batches.clone());
    let call = tokio::spawn(async move { store.append(&call).await });
    // The first of four transactions waits.
    for n in [0, 199] {
        eventually("the others' batches are committed", || async {
            let head = database.store.head(&scope(n)).await;
            head.is_ok_and(|head| head.size() == 2)
        })
        .await;
    }
    assert!(!call.is_finished());
    holder.execute("ROLLBACK").await.unwrap();

    let outcomes = call.await.unwrap().unwrap();
    assert_eq!(outcomes.len(), batches.len());
    for (batch, outcome) in batches.iter().zip(&outcomes) {
        let is_one_of = |ns: &[u128]| ns.iter().any(|n| batch.tenant() == tenant(*n));
        assert_eq!(outcome.is_err(), is_one_of(&[refused, unknown]));
        if let Ok(receipts) = outcome {
            let ids = batch.events().iter().map(PreparedEvent::id);
            assert!(ids.eq(receipts.iter().map(|receipt| receipt.id)));
        }
    }
    for n in (0..TENANTS).filter(|n| ![busy, refused, unknown].contains(n)) {
        assert_eq!(database.store.head(&scope(n)).await.unwrap().size(), 2);
    }
    // The refused one's were parted in halves until it was alone; the others' are one for each.
    for (first, last, transactions) in [(0, 49, 2), (100, 149, 1), (150, 199, 1)] {
        let found = transactions_of(&mut admin, first, last).await;
        assert_eq!(found, transactions, "{first}");
    }
    let parted = transactions_of(&mut admin, 50, 99).await;
    assert!(parted <= 6, "{parted}");
}

#[tokio::test]
async fn a_call_takes_half_of_the_connections_at_most_and_its_transactions_make_one_partition() {
    for (writers, transactions) in [(1, 1), (4, 2), (16, 4)] {
        let lock = Duration::from_secs(25);
        let database =
            Database::with(|options| options.connections(4, writers, 1).lock_timeout(lock)).await;
        let mut admin = database.connect().await;
        admin
            .execute(
                "DO $$ BEGIN
                     EXECUTE 'DROP TABLE audit.events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMM');
                 END $$",
            )
            .await
            .unwrap();
        let batches: Vec<Batch> = (0..200).map(|n| database.batch(&scope(n), 1)).collect();
        for outcome in database.store.append(&batches).await.unwrap() {
            assert_eq!(outcome.unwrap()[0].seq, 0);
        }
        let found = transactions_of(&mut admin, 0, 199).await;
        assert_eq!(found, transactions, "{writers}");
    }
}

#[tokio::test]
async fn what_will_be_sent_again_is_not_overtaken_by_what_follows_it() {
    let database = Database::with(|options| options.lock_timeout(Duration::from_secs(20))).await;
    for n in [1, 2] {
        database.append(&scope(n), 1).await;
    }
    let mut holder = database.connect().await;
    refuse(&mut holder, "refused", "22023").await;
    refuse(&mut holder, "away", "57P03").await;
    let one = |n: u128, id: &str| {
        let event = database.prepare(tenant(n), Event::view("invoice", id));
        Batch::new(scope(n), vec![event])
    };
    hold(&mut holder, &[2]).await;
    let batches = vec![
        one(1, "first"),
        one(2, "refused"),
        one(2, "good"),
        one(2, "away"),
        one(2, "behind"),
    ];
    let store = database.store.clone();
    let call = tokio::spawn(async move { store.append(&batches).await });
    eventually("the free tenant's batch is committed", || async {
        database.store.head(&scope(1)).await.unwrap().size() == 2
    })
    .await;
    holder.execute("ROLLBACK").await.unwrap();
    let outcomes = call.await.unwrap().unwrap();
    let is_stored: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(is_stored, [true, false, true, false, false]);
    assert!(!outcomes[1].as_ref().unwrap_err().is_retryable());
    assert!(outcomes[3].as_ref().unwrap_err().is_retryable());
    assert!(outcomes[4].as_ref().unwrap_err().is_retryable());
    assert_eq!(database.store.head(&scope(2)).await.unwrap().size(), 2);
}

#[tokio::test]
async fn processes_that_create_the_same_tenants_at_once_wait_for_each_other_in_one_order() {
    let database = Database::open().await;
    for round in 0..sized(30) {
        let first = 100 * (round as u128 + 1);
        let mut tasks = Vec::new();
        for process in 0..4 {
            let store = database.again().await;
            let mut batches: Vec<_> = (0..20)
                .map(|n| database.batch(&scope(first + n), 1))
                .collect();
            if process % 2 == 1 {
                batches.reverse();
            }
            tasks.push(tokio::spawn(async move { store.append(&batches).await }));
        }
        for task in tasks {
            for outcome in task.await.unwrap().unwrap() {
                outcome.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_retryable_once_a_store_is_open_and_refused_at_its_start() {
    let database = Database::open().await;
    database.append(&scope(1), 1).await;
    let mut admin = database.connect().await;
    admin
        .execute("REVOKE INSERT ON audit.ids FROM audit_writer; REVOKE SELECT ON audit.migrations FROM PUBLIC")
        .await
        .unwrap();
    let error = database.try_append(&scope(1), 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let error = PostgresStore::connect(database.options())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    admin
        .execute("GRANT INSERT ON audit.ids TO audit_writer")
        .await
        .unwrap();
    database.append(&scope(1), 1).await;
}

#[tokio::test]
async fn growth_by_a_server_of_before_the_migration_is_not_missed() {
    let database = Database::open().await;
    database.append(&scope(1), 1).await;
    let mut admin = database.connect().await;
    // Past the head's era.
    admin
        .execute(
            "DO $$ BEGIN
                 FOR n IN 1..300 LOOP
                     PERFORM pg_current_xact_id();
                     COMMIT;
                 END LOOP;
             END $$",
        )
        .await
        .unwrap();
    let mark: i64 = query_scalar("SELECT pg_current_xact_id()::text::bigint")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    let old = format!(
        "SET ROLE audit_writer; UPDATE audit.heads SET changed = pg_current_xact_id()
         WHERE tenant_id = '{}'; RESET ROLE",
        tenant(1)
    );
    admin.execute(&*old).await.unwrap();
    let era_follows = "SELECT era = changed::text::bigint >> 8 AND era > 0 FROM audit.heads";
    let follows: bool = query_scalar(era_follows)
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert!(follows);
    let grown = database.store.grown_since(Mark(mark as u64)).await.unwrap();
    assert_eq!(grown.tenants, [(tenant(1), 1)]);
}

#[tokio::test]
async fn an_append_that_waits_for_a_head_has_the_time_of_after_its_wait() {
    let database = Database::open().await;
    database.append(&scope(1), 1).await;
    let store = PostgresStore::connect(database.options()).await.unwrap();
    let mut holder = database.connect().await;
    holder
        .execute("BEGIN; SELECT FROM audit.heads FOR UPDATE")
        .await
        .unwrap();
    let batch = database.batch(&scope(1), 1);
    let waiting = tokio::spawn(async move { store.append(&[batch]).await });
    let mut admin = database.connect().await;
    until_one_waits(&mut admin).await;
    let micros = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let given_up: i64 = query_scalar(micros).fetch_one(&mut admin).await.unwrap();
    holder.execute("ROLLBACK").await.unwrap();
    let receipt = waiting.await.unwrap().unwrap().remove(0).unwrap().remove(0);
    assert!(receipt.created_at.as_micros() >= given_up, "{receipt:?}");
}
