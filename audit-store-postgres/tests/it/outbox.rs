//! Capture in a caller's own transaction, and the relay.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use audit_conformance::is_full;
use audit_core::{
    AuditLog, Clock as _, ErasureRequest, ErrorKind, Event, EventId, Fields, Group, LogStore,
    Outbox, Redact, Redrive, Selection, SystemClock, TenantId, Workers,
};
use audit_store_postgres::{PostgresOutbox, PostgresStore, outbox};
use sqlx_core::connection::Connection as _;
use sqlx_core::executor::Executor as _;
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::PgConnection;
use uuid::Uuid;

use crate::fixture::{Database, basis, eventually, scope, tenant};

const TENANT: &str = "00000000-0000-0000-0000-000000000001";

/// A caller's database, with the outbox and the log.
struct Application {
    database: Database,
    outbox: PostgresOutbox,
    store: PostgresStore,
    caller: tokio::sync::Mutex<PgConnection>,
}

impl Application {
    async fn new() -> Self {
        let database = Database::open().await;
        let mut caller = database.connect().await;
        caller
            .execute("CREATE TABLE invoices (id uuid PRIMARY KEY)")
            .await
            .unwrap();
        let store = database.named("log").await;
        Self {
            outbox: store.outbox(),
            store,
            caller: caller.into(),
            database,
        }
    }

    /// Starts a relay, as a process of its own would.
    async fn relay(&self, name: &str) -> Workers {
        let store = Arc::new(self.database.named(name).await);
        let outbox = Arc::new(store.outbox());
        AuditLog::builder(store).outbox(outbox).build().start()
    }

    async fn record(&self, owner: u128, event: &str) -> Result<EventId, sqlx_core::Error> {
        let mut caller = self.caller.lock().await;
        let id: Uuid = query_scalar("SELECT audit.record($1, $2)")
            .bind(tenant(owner).into_uuid())
            .bind(event)
            .fetch_one(&mut *caller)
            .await?;
        Ok(EventId::new(id))
    }

    /// The ids in a tenant's log, each of which must be there once.
    async fn entries(&self, owner: u128) -> BTreeSet<EventId> {
        let mut ids = BTreeSet::new();
        loop {
            let next = ids.len() as u64;
            let entries = match self.store.read(&scope(owner), next, 5_000).await {
                Err(error) if error.kind() == ErrorKind::UnknownTenant => Vec::new(),
                entries => entries.unwrap(),
            };
            let Some(last) = entries.last() else {
                return ids;
            };
            ids.extend(entries.iter().map(|entry| entry.id));
            assert_eq!(
                ids.len() as u64,
                last.seq + 1,
                "an event was appended twice"
            );
        }
    }

    async fn waiting(&self) -> i64 {
        let mut caller = self.caller.lock().await;
        query_scalar("SELECT count(*) FROM audit.outbox")
            .fetch_one(&mut *caller)
            .await
            .unwrap()
    }

    /// Waits until the outbox is empty.
    async fn drained(&self) {
        eventually("the outbox is empty", async || self.waiting().await == 0).await;
    }
}

impl audit_conformance::OutboxHarness for Application {
    type Outbox = PostgresOutbox;

    async fn open() -> Self {
        Self::new().await
    }

    fn outbox(&self) -> &PostgresOutbox {
        &self.outbox
    }

    async fn leave(&self, tenant: TenantId, id: EventId, event: &str) {
        let event = Event::from_json(event).unwrap();
        let mut caller = self.caller.lock().await;
        let mut transaction = caller.begin().await.unwrap();
        let recorded = outbox::record_in(&mut transaction, tenant, event, &SystemClock).await;
        assert_eq!(recorded.unwrap(), id);
        transaction.commit().await.unwrap();
    }
}

mod contract {
    audit_conformance::outbox!(super::Application);
}

fn event() -> Event {
    Event::update("invoice", "inv-1")
        .user("ann")
        .after(&serde_json::json!([1e2]))
}

fn sqlstate(error: &sqlx_core::Error) -> String {
    let told = error.as_database_error().expect("an answer of the engine");
    told.code().unwrap().into_owned()
}

#[tokio::test]
async fn a_commit_gives_exactly_one_entry_and_a_rollback_none() {
    let app = Application::new().await;
    let relay = app.relay("relay").await;
    let mut expected = BTreeSet::new();
    for commits in [true, false, true] {
        let mut caller = app.caller.lock().await;
        let mut transaction = caller.begin().await.unwrap();
        let id = outbox::record_in(&mut transaction, tenant(1), event(), &SystemClock)
            .await
            .unwrap();
        if commits {
            transaction.commit().await.unwrap();
            expected.insert(id);
        } else {
            transaction.rollback().await.unwrap();
        }
    }
    app.drained().await;
    assert_eq!(app.entries(1).await, expected);
    assert!(relay.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn an_event_is_relayed_as_it_was_recorded() {
    let app = Application::new().await;
    let before = SystemClock.now();
    let id = outbox::record_in(
        &mut *app.caller.lock().await,
        tenant(1),
        event(),
        &SystemClock,
    )
    .await
    .unwrap();
    let rows = app.outbox.take(10, &[]).await.unwrap();
    assert_eq!((rows.len(), rows[0].tenant, rows[0].id), (1, tenant(1), id));
    assert!(rows[0].recorded_at >= before);
    let relay = app.relay("relay").await;
    app.drained().await;
    let entries = app.store.read(&scope(1), 0, 10).await.unwrap();
    assert_eq!(
        entries[0].fields.after_state.as_ref().unwrap().as_str(),
        "[100.0]"
    );
    assert_eq!(entries[0].occurred_at, rows[0].recorded_at);
    assert!(relay.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn the_relay_redacts_what_was_recorded() {
    #[derive(Debug)]
    struct NoNames;
    impl Redact for NoNames {
        fn redact(&self, _: TenantId, fields: &mut Fields) {
            fields.user_id = None;
        }
    }
    let app = Application::new().await;
    app.record(1, &event().to_json()).await.unwrap();
    let relay = AuditLog::builder(Arc::new(app.store.clone()))
        .outbox(Arc::new(app.outbox.clone()))
        .redact(Arc::new(NoNames))
        .build()
        .start();
    app.drained().await;
    let entries = app.store.read(&scope(1), 0, 10).await.unwrap();
    assert_eq!(entries[0].fields.user_id, None);
    assert!(relay.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn what_was_recorded_before_an_erasure_is_erased_when_it_is_relayed() {
    let app = Application::new().await;
    let log = AuditLog::builder(Arc::new(app.store.clone())).build();
    log.create_tenant(Some(tenant(1)), "one").await.unwrap();
    let handle = log.tenant(scope(1));
    let event = r#"{"action_type":"VIEW","resource_type":"doc","resource_id":"d","user_id":"ann"}"#;
    let before = app.record(1, event).await.unwrap();
    let request = ErasureRequest::new(Selection::user("ann"), basis("gdpr-17"));
    handle.request_erasure(request).await.unwrap();
    let after = app.record(1, event).await.unwrap();
    let workers = app.relay("relay").await;
    app.drained().await;
    let erased = handle.get(before).await.unwrap();
    assert_eq!(erased.erased, [Group::Actor, Group::Resource]);
    let whole = handle.get(after).await.unwrap();
    assert_eq!(whole.fields.user_id.as_deref(), Some("ann"));
    workers.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_refused_event_leaves_the_callers_transaction_alone() {
    let app = Application::new().await;
    let mut caller = app.caller.lock().await;
    let mut transaction = caller.begin().await.unwrap();
    transaction
        .execute("INSERT INTO invoices VALUES (gen_random_uuid())")
        .await
        .unwrap();
    let bad = Event::update("", "");
    let error = outbox::record_in(&mut transaction, tenant(1), bad, &SystemClock)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.fields().len()),
        (ErrorKind::Invalid, 2)
    );
    transaction.commit().await.unwrap();
    let kept: i64 = query_scalar("SELECT count(*) FROM invoices")
        .fetch_one(&mut *caller)
        .await
        .unwrap();
    assert_eq!(kept, 1);
    assert!(app.outbox.take(10, &[]).await.unwrap().is_empty());
}

/// The caller's row and the event share its fate, whenever its connection is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_caller_that_is_killed_leaves_its_row_and_its_event_or_neither() {
    let app = Application::new().await;
    let relay = app.relay("relay").await;
    let rounds = if is_full() { 200 } else { 24 };
    let mut committed = 0;
    for round in 0..rounds {
        let mut victim = app.database.connect().await;
        let mut killer = app.database.connect().await;
        let pid: i32 = query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&mut victim)
            .await
            .unwrap();
        let mut transaction = victim.begin().await.unwrap();
        let id = outbox::record_in(&mut transaction, tenant(1), event(), &SystemClock)
            .await
            .unwrap();
        query("INSERT INTO invoices VALUES ($1)")
            .bind(id.into_uuid())
            .execute(&mut *transaction)
            .await
            .unwrap();
        let kill = async {
            query("SELECT pg_terminate_backend($1)")
                .bind(pid)
                .execute(&mut killer)
                .await
                .unwrap();
        };
        // Before it asks to commit, at the same time, or just behind.
        let outcome = match round % 4 {
            0 => {
                kill.await;
                transaction.commit().await
            }
            1 => tokio::join!(biased; transaction.commit(), kill).0,
            _ => tokio::join!(biased; kill, transaction.commit()).1,
        };
        committed += u32::from(outcome.is_ok());
        drop(victim);
        let killer = tokio::sync::Mutex::new(killer);
        eventually("the caller's session is over", async || {
            query_scalar::<_, bool>(
                "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)",
            )
            .bind(pid)
            .fetch_one(&mut *killer.lock().await)
            .await
            .unwrap()
        })
        .await;
    }
    app.drained().await;
    let kept: Vec<(Uuid,)> = query_as("SELECT id FROM invoices")
        .fetch_all(&mut *app.caller.lock().await)
        .await
        .unwrap();
    let kept: BTreeSet<EventId> = kept.into_iter().map(|(id,)| EventId::new(id)).collect();
    assert_eq!(app.entries(1).await, kept);
    // A caller that was told of its commit is among them; one that wasn't may be, too.
    assert!((committed as usize..=rounds - rounds / 4).contains(&kept.len()));
    assert!(relay.shutdown(Duration::from_secs(10)).await);
}

/// Each caller's commits, over four tenants, until it is told to stop.
async fn call(
    mut caller: PgConnection,
    n: u128,
    stop: Arc<AtomicBool>,
) -> (u128, BTreeSet<EventId>) {
    let owner = 1 + n % 4;
    let mut committed = BTreeSet::new();
    let mut turn = n;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let mut transaction = caller.begin().await.unwrap();
        let id = outbox::record_in(&mut transaction, tenant(owner), event(), &SystemClock)
            .await
            .unwrap();
        if turn.is_multiple_of(5) {
            transaction.rollback().await.unwrap();
        } else {
            transaction.commit().await.unwrap();
            committed.insert(id);
        }
    }
    (owner, committed)
}

/// Two relays run at a time, and each is killed in turn: its task is dropped, or its sessions are cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_committed_row_becomes_one_entry_though_relays_are_killed() {
    let app = Application::new().await;
    let kills = if is_full() { 20 } else { 3 };
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for n in 0..32 {
        let caller = app.database.connect().await;
        callers.push(tokio::spawn(call(caller, n, stop.clone())));
    }
    let other = app.relay("other relay").await;
    let mut relay = app.relay("relay").await;
    for kill in 0..kills {
        let before = app.entries(1).await.len();
        eventually("the log grows", async || {
            app.entries(1).await.len() > before
        })
        .await;
        if kill % 2 == 0 {
            drop(relay);
        } else {
            let cut: i64 = query_scalar(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE application_name LIKE 'relay%' AND datname = current_database()",
            )
            .fetch_one(&mut *app.caller.lock().await)
            .await
            .unwrap();
            assert!(cut > 0, "the relay has a session");
            assert!(relay.is_healthy());
            drop(relay);
        }
        relay = app.relay("relay").await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut committed = vec![BTreeSet::new(); 5];
    for caller in callers {
        let (owner, ids) = caller.await.unwrap();
        committed[owner as usize].extend(ids);
    }
    app.drained().await;
    assert!(relay.shutdown(Duration::from_secs(10)).await);
    assert!(other.shutdown(Duration::from_secs(10)).await);
    for owner in 1..=4 {
        assert_eq!(app.entries(owner).await, committed[owner as usize]);
    }
    assert!(app.outbox.parked(1).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_relay_whose_sessions_are_cut_goes_on() {
    let app = Application::new().await;
    let relay = app.relay("relay").await;
    for _ in 0..2 {
        app.record(1, &event().to_json()).await.unwrap();
        app.drained().await;
        query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name LIKE 'relay%' AND datname = current_database()",
        )
        .execute(&mut *app.caller.lock().await)
        .await
        .unwrap();
    }
    app.record(1, &event().to_json()).await.unwrap();
    app.drained().await;
    assert_eq!(app.entries(1).await.len(), 3);
    assert!(relay.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn record_refuses_what_is_no_object_or_too_large_and_nothing_else() {
    let app = Application::new().await;
    let longest = 512 * 1024;
    let text = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    for refused in [
        "",
        " ",
        "null",
        "[]",
        "\"{}\"",
        "1",
        "{",
        "{} {}",
        "{'a': 1}",
        "{\"a\": NaN}",
        &text(longest + 1),
        &format!("{{\"a\":{}", "[".repeat(200_000)),
    ] {
        let error = app.record(1, refused).await.unwrap_err();
        assert_eq!(
            sqlstate(&error),
            "22023",
            "{}",
            &refused[..refused.len().min(40)]
        );
    }
    let mut caller = app.caller.lock().await;
    for nulls in ["NULL, '{}'", &format!("'{TENANT}', NULL")] {
        let error = caller
            .execute(&*format!("SELECT audit.record({nulls})"))
            .await
            .unwrap_err();
        assert_eq!(sqlstate(&error), "22023", "{nulls}");
    }
    drop(caller);
    let accepted = [
        "{}",
        " {\"unknown\": [1, {\"id\": 2}]} ",
        "{\"a\": \"\\u0000 \\ud800\"}",
        "{\"id\": 7, \"id\": null}",
        &text(longest),
    ];
    for accepted in accepted {
        app.record(1, accepted).await.unwrap();
    }
    assert_eq!(app.waiting().await, accepted.len() as i64);
}

#[tokio::test]
async fn record_returns_the_events_id_or_a_new_one_of_version_7() {
    let app = Application::new().await;
    let given = "0190a000-0000-7000-8000-00000000000a";
    for spelt in [given.to_owned(), given.to_uppercase()] {
        let id = app
            .record(1, &format!("{{\"id\": \"{spelt}\"}}"))
            .await
            .unwrap();
        assert_eq!(id.to_string(), given);
    }
    let mut last = None;
    for text in [
        "{}",
        "{\"id\": null}",
        "{\"id\": \"{0190a000-0000-7000-8000-00000000000a}\"}",
        "{\"id\": \"0190a000000070008000000000000000a\"}",
        "{\"id\": {}}",
        "{\"id\": \"0190a000-0000-7000-8000-00000000000a\", \"nul\": \"\\u0000\"}",
    ] {
        let before = SystemClock.now().as_micros() / 1_000;
        let id = app.record(1, text).await.unwrap().into_uuid();
        let after = SystemClock.now().as_micros() / 1_000;
        assert_eq!(id.get_version_num(), 7, "{text}");
        assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
        let millis = i64::try_from(id.as_u128() >> 80).unwrap();
        assert!(
            (before..=after).contains(&millis),
            "{before} {millis} {after}"
        );
        assert!(last.replace(id) != Some(id));
    }
}

#[tokio::test]
async fn a_plain_sql_client_records_in_its_transaction() {
    let app = Application::new().await;
    let relay = app.relay("relay").await;
    app.caller
        .lock()
        .await
        .execute(
            "BEGIN;
             INSERT INTO invoices VALUES (gen_random_uuid());
             SELECT audit.record('00000000-0000-0000-0000-000000000001',
                 '{\"action_type\": \"UPDATE\", \"resource_type\": \"invoice\",
                   \"resource_id\": \"inv-1\", \"reason\": \"grüße\"}');
             COMMIT",
        )
        .await
        .unwrap();
    app.drained().await;
    let entries = app.store.read(&scope(1), 0, 10).await.unwrap();
    assert_eq!(entries[0].fields.reason.as_deref(), Some("grüße"));
    assert!(relay.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn a_statement_records_each_row_that_it_changes() {
    let app = Application::new().await;
    let mut caller = app.caller.lock().await;
    let invoices: [Uuid; 2] = [1, 2].map(Uuid::from_u128);
    let mut record = async |ids: &[Uuid]| -> Vec<Uuid> {
        query_scalar(
            "INSERT INTO invoices SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING
             RETURNING audit.record($2, $3)",
        )
        .bind(ids)
        .bind(tenant(1).into_uuid())
        .bind(r#"{"action_type": "CREATE", "resource_type": "invoice"}"#)
        .fetch_all(&mut *caller)
        .await
        .unwrap()
    };
    let mut recorded = record(&invoices[..1]).await;
    // The first is there already, and isn't recorded again.
    recorded.extend(record(&invoices).await);
    assert_eq!(recorded.len(), 2);
    let rows = app.outbox.take(10, &[]).await.unwrap();
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id.into_uuid()).collect();
    assert_eq!(ids, recorded);
}

#[tokio::test]
async fn a_role_records_once_it_may_and_never_reads_the_outbox() {
    let app = Application::new().await;
    let role = format!("app_{}", SystemClock.event_id().into_uuid().simple());
    let mut admin = app.database.connect().await;
    let mut caller = app.database.connect().await;
    admin
        .execute(&*format!(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA audit TO {role}"
        ))
        .await
        .unwrap();
    caller.execute(&*format!("SET ROLE {role}")).await.unwrap();
    let record = format!("SELECT audit.record('{TENANT}', '{{}}')");
    let error = caller.execute(&*record).await.unwrap_err();
    assert_eq!(sqlstate(&error), "42501");
    admin
        .execute(&*format!(
            "GRANT EXECUTE ON FUNCTION audit.record(uuid, text) TO {role}"
        ))
        .await
        .unwrap();
    caller.execute(&*record).await.unwrap();
    for sql in [
        "SELECT FROM audit.outbox",
        "DELETE FROM audit.outbox",
        "INSERT INTO audit.outbox (tenant_id, id, recorded_at, event)
         VALUES (gen_random_uuid(), gen_random_uuid(), now(), '{}')",
        "SELECT FROM audit.outbox_parked",
    ] {
        let error = caller.execute(sql).await.unwrap_err();
        assert_eq!(sqlstate(&error), "42501", "{sql}");
    }
    // Nothing that it puts before the function's own names is looked at.
    caller
        .execute(
            "CREATE TEMP TABLE outbox (LIKE pg_class);
             CREATE FUNCTION pg_temp.octet_length(text) RETURNS integer LANGUAGE sql
                 AS 'SELECT 1 / 0';
             SET search_path = pg_temp, audit, pg_catalog",
        )
        .await
        .unwrap();
    caller.execute(&*record).await.unwrap();
    assert_eq!(app.waiting().await, 2);
    caller.close().await.unwrap();
    admin
        .execute(&*format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_event_that_the_log_refuses_is_parked_with_its_reason_and_redriven() {
    let app = Application::new().await;
    let relay = app.relay("relay").await;
    let good = app.record(1, &event().to_json()).await.unwrap();
    let foreign = format!(
        "{{\"tenant_id\": \"{}\", \"action_type\": \"VIEW\", \"resource_type\": \"doc\",
           \"resource_id\": \"d\"}}",
        tenant(2)
    );
    for (text, reason) in [
        ("{\"action_type\": \"VIEW\"}", "resource_type"),
        ("{\"actor\": \"ann\"}", "actor"),
        ("{\"id\": \"0190A000\"}", "id"),
        ("{\"a\": \"\\u0000\"}", "a"),
        (&*foreign, "tenant_id"),
    ] {
        let id = app.record(1, text).await.unwrap();
        app.drained().await;
        let parked = app.outbox.parked(10).await.unwrap();
        assert_eq!(parked.len(), 1);
        assert_eq!((parked[0].row.id, &*parked[0].row.event), (id, text));
        assert!(parked[0].reason.contains(reason), "{}", parked[0].reason);
        // The same happens when nothing has changed.
        let number = parked[0].row.row;
        assert_eq!(
            app.outbox
                .redrive(&Redrive::Only(vec![number]))
                .await
                .unwrap(),
            1
        );
        app.drained().await;
        assert_eq!(app.outbox.parked(10).await.unwrap(), parked);
        // An operator mends it.
        let mended = event().id(id).to_json();
        query("UPDATE audit.outbox_parked SET event = $1")
            .bind(&mended)
            .execute(&mut *app.caller.lock().await)
            .await
            .unwrap();
        assert_eq!(app.outbox.redrive(&Redrive::All).await.unwrap(), 1);
        app.drained().await;
        assert!(app.entries(1).await.contains(&id));
    }
    let entries = app.entries(1).await;
    assert!(entries.contains(&good));
    assert_eq!(entries.len(), 6);
    assert!(relay.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn callers_wait_neither_for_each_other_nor_for_the_relay() {
    let app = Application::new().await;
    let relay = app.relay("relay").await;
    let id = "0190a000-0000-7000-8000-00000000000a";
    let text = event().id(id.parse().unwrap()).to_json();
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut caller = app.database.connect().await;
        caller
            .execute("BEGIN; SET LOCAL lock_timeout = '2s'")
            .await
            .unwrap();
        query("SELECT audit.record($1, $2)")
            .bind(tenant(1).into_uuid())
            .bind(&text)
            .execute(&mut caller)
            .await
            .unwrap();
        open.push(caller);
    }
    // What is committed is relayed though others, that began before, still go on.
    open.pop().unwrap().execute("COMMIT").await.unwrap();
    app.drained().await;
    assert_eq!(app.entries(1).await.len(), 1);
    for mut caller in open {
        caller.execute("COMMIT").await.unwrap();
    }
    app.drained().await;
    assert_eq!(app.entries(1).await.len(), 1);
    assert!(relay.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn a_tenant_whose_rows_stay_keeps_no_other_from_being_taken() {
    let app = Application::new().await;
    let mut caller = app.caller.lock().await;
    caller
        .execute(
            "SELECT audit.record('00000000-0000-0000-0000-000000000001', '{}')
                 FROM generate_series(1, 200);
             SELECT audit.record(lpad(n::text, 32, '0')::uuid, '{}')
                 FROM generate_series(2, 6) AS n, generate_series(1, 3)",
        )
        .await
        .unwrap();
    drop(caller);
    let rows = app.outbox.take(60, &[]).await.unwrap();
    assert_eq!(rows.len(), 60);
    assert!(rows.windows(2).all(|w| w[0].row < w[1].row));
    let of = |owner: u128| {
        rows.iter()
            .filter(|row| row.tenant == tenant(owner))
            .count()
    };
    assert_eq!((1..=6).map(of).collect::<Vec<_>>(), [45, 3, 3, 3, 3, 3]);
    // More tenants than rows are asked for: the oldest row of each of the first.
    let rows = app.outbox.take(4, &[]).await.unwrap();
    let tenants: Vec<TenantId> = rows.iter().map(|row| row.tenant).collect();
    assert_eq!(tenants, [1, 2, 3, 4].map(tenant));
}

#[tokio::test]
async fn rows_that_are_large_together_are_taken_in_parts() {
    let app = Application::new().await;
    app.caller
        .lock()
        .await
        .execute(
            "SELECT audit.record('00000000-0000-0000-0000-000000000001',
                 '{\"a\":\"' || repeat('x', 500000) || '\"}') FROM generate_series(1, 40)",
        )
        .await
        .unwrap();
    let mut taken = 0;
    while taken < 40 {
        let rows = app.outbox.take(500, &[]).await.unwrap();
        assert!((1..=34).contains(&rows.len()), "{}", rows.len());
        taken += rows.len();
        let numbers: Vec<i64> = rows.iter().map(|row| row.row).collect();
        app.outbox.done(&numbers).await.unwrap();
    }
    assert!(app.outbox.take(1, &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_outbox_is_installed_where_no_log_is_once_by_several_processes() {
    let database = Database::without_log().await;
    let installers: Vec<_> = (0..4)
        .map(|_| {
            let connect = database.url().to_owned();
            tokio::spawn(async move {
                let mut connection = PgConnection::connect(&connect).await.unwrap();
                outbox::install(&mut connection).await.unwrap();
                outbox::install(&mut connection).await.unwrap();
            })
        })
        .collect();
    for installer in installers {
        installer.await.unwrap();
    }
    let mut caller = database.connect().await;
    let id = outbox::record_in(&mut caller, tenant(1), event(), &SystemClock)
        .await
        .unwrap();
    outbox::install(&mut caller).await.unwrap();
    let pool = sqlx_postgres::PgPool::connect(database.url())
        .await
        .unwrap();
    let outbox = PostgresOutbox::in_database(pool);
    let rows = outbox.take(10, &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [id]);
    outbox.park(rows[0].row, "a\0b").await.unwrap();
    assert_eq!(outbox.parked(1).await.unwrap()[0].reason, "a\u{FFFD}b");
}
