//! What the PostgreSQL store does, without HTTP: `cargo bench -p benches --bench postgres`.
//!
//! Appends by size of a call, of one tenant and of 1,000, each beside a bare `COPY` of the same rows;
//! appends of many callers at once through group commit; the text index; `record_in` beside the same
//! transaction without it; a first page and an export. What is compared runs in turns, so that both
//! meet the same machine, and of each the median is given.
//!
//! `AUDIT_TEST_POSTGRES_URL` is the address of a superuser; the database `audit_bench` is made anew.
//! `PARTS=append,index` runs some parts, `SECONDS_EACH` says how long each round takes, `ROUNDS` how
//! many there are, `ENTRIES` how many entries are read.

// A benchmark that can't set up measures nothing; what it found is its output.
#![allow(clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use audit_core::{
    AuditLog, Batch, Event, Filter, GroupCommit, LogStore, PageRequest, SearchIndex, SystemClock,
    TenantScope,
};
use audit_store_postgres::{PostgresOptions, PostgresStore, migrate, outbox};
use benches::{event, median, prepared, setting, tenant};
use futures_util::{StreamExt, TryStreamExt};
use sqlx_core::connection::{ConnectOptions, Connection};
use sqlx_core::executor::Executor;
use sqlx_core::query::query;
use sqlx_postgres::{PgConnectOptions, PgConnection, PgPoolCopyExt as _};

const LOGIN: &str = "audit_bench";
const DATABASE: &str = "audit_bench";

/// An event's number; never the same again in one run.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn scope(n: u64) -> TenantScope {
    TenantScope::trusted(tenant(n), "bench")
}

/// A call of `size` events of one tenant, or of as many tenants in turn, one event each.
fn call(tenants: u64, size: u64) -> Vec<Batch> {
    let first = NEXT.fetch_add(size, Ordering::Relaxed);
    let numbers = first..first + size;
    if tenants == 1 {
        let events = numbers.map(|i| prepared(tenant(1), i)).collect();
        return vec![Batch::new(scope(1), events).creating_tenant()];
    }
    numbers
        .map(|i| {
            let n = 1_000 + i % tenants;
            Batch::new(scope(n), vec![prepared(tenant(n), i)]).creating_tenant()
        })
        .collect()
}

struct Bench {
    store: PostgresStore,
    admin: PgConnectOptions,
    each: Duration,
    rounds: usize,
}

impl Bench {
    async fn open() -> Self {
        let url = env::var("AUDIT_TEST_POSTGRES_URL").expect(
            "AUDIT_TEST_POSTGRES_URL: run `dev/services up`, then `set -a; . .dev/env; set +a`",
        );
        let server: PgConnectOptions = url.parse().expect("an address");
        let mut admin = server.connect().await.expect("PostgreSQL");
        for sql in [
            "DROP DATABASE IF EXISTS audit_bench WITH (FORCE)",
            "DO $do$ BEGIN
                 IF to_regrole('audit_bench') IS NULL THEN
                     CREATE ROLE audit_bench LOGIN CREATEROLE PASSWORD 'only-in-benches';
                 END IF;
             END $do$",
            "CREATE DATABASE audit_bench OWNER audit_bench",
        ] {
            admin.execute(sql).await.expect("a database");
        }
        admin.close().await.expect("closed");
        let options = PostgresOptions::new(format!(
            "postgres://{LOGIN}:only-in-benches@{}:{}/{DATABASE}",
            server.get_host(),
            server.get_port()
        ));
        migrate(&options).await.expect("migrated");
        Self {
            store: PostgresStore::connect(options).await.expect("a store"),
            admin: server.database(DATABASE),
            each: Duration::from_secs_f64(setting("SECONDS_EACH", 3.0)),
            rounds: setting("ROUNDS", 3),
        }
    }

    async fn connect(&self) -> PgConnection {
        self.admin.connect().await.expect("a connection")
    }

    /// Appends by one caller, one call after the other, for one round. The calls are made beforehand,
    /// so that only the store is timed. Events a second.
    async fn append_round(&self, tenants: u64, size: u64) -> f64 {
        let mut events = 0;
        let mut busy = Duration::ZERO;
        while busy < self.each {
            let calls: Vec<_> = (0..(512 / size).max(2))
                .map(|_| call(tenants, size))
                .collect();
            let began = Instant::now();
            for batches in &calls {
                for outcome in self.store.append(batches).await.expect("appended") {
                    events += outcome.expect("appended").len();
                }
            }
            busy += began.elapsed();
        }
        events as f64 / busy.as_secs_f64()
    }

    async fn append(&self) {
        let kinds: Vec<(u64, u64)> = [1, 1_000]
            .into_iter()
            .flat_map(|tenants| [1, 64, 500].map(|size| (tenants, size)))
            .collect();
        let mut found = vec![Vec::new(); kinds.len()];
        let mut bare = [Vec::new(), Vec::new()];
        self.append_round(1_000, 1_000).await;
        for _ in 0..self.rounds {
            for (i, (tenants, size)) in kinds.iter().enumerate() {
                found[i].push(self.append_round(*tenants, *size).await);
                if (*tenants, *size) == (1, 500) {
                    for (i, like) in ["", "INCLUDING ALL"].into_iter().enumerate() {
                        bare[i].push(self.bare_copy(500, like).await);
                    }
                }
            }
        }
        for ((tenants, size), rates) in kinds.iter().zip(found) {
            println!(
                "append, {tenants} tenants, calls of {size}: {:.0} events/s",
                median(rates)
            );
        }
        let [without, with] = bare.map(median);
        println!(
            "bare COPY of 500 of the same rows: {without:.0}/s without an index, {with:.0}/s with the log's"
        );
    }

    /// Copies the newest rows, in transactions of `size`, into a table of the same columns. Rows a
    /// second.
    async fn bare_copy(&self, size: usize, like: &str) -> f64 {
        let mut admin = self.connect().await;
        admin
            .execute(&*format!(
                "DROP TABLE IF EXISTS bare; CREATE TABLE bare (LIKE audit.events {like})"
            ))
            .await
            .expect("a table");
        let pool = sqlx_postgres::PgPoolOptions::new()
            .max_connections(1)
            .connect_with(self.admin.clone())
            .await
            .expect("a pool");
        let mut pieces = Vec::new();
        for n in 0..20 {
            let select = format!(
                "COPY (SELECT e.* FROM audit.events e, audit.heads h
                       WHERE e.tenant_id = '{t}' AND h.tenant_id = '{t}'
                         AND e.seq >= h.size - {} AND e.seq < h.size - {})
                 TO STDOUT (FORMAT binary)",
                (n + 1) * size,
                n * size,
                t = tenant(1)
            );
            let piece: Vec<u8> = pool
                .copy_out_raw(&select)
                .await
                .expect("rows")
                .try_fold(Vec::new(), |mut all, bytes| async move {
                    all.extend_from_slice(&bytes);
                    Ok(all)
                })
                .await
                .expect("rows");
            pieces.push(piece);
        }
        let mut rows = 0;
        let mut busy = Duration::ZERO;
        while busy < self.each {
            for piece in &pieces {
                let began = Instant::now();
                admin.execute("BEGIN").await.expect("begun");
                let mut copy = admin
                    .copy_in_raw("COPY bare FROM STDIN (FORMAT binary)")
                    .await
                    .expect("a copy");
                copy.send(&piece[..]).await.expect("sent");
                rows += copy.finish().await.expect("copied");
                admin.execute("COMMIT").await.expect("committed");
                busy += began.elapsed();
            }
            admin.execute("TRUNCATE bare").await.expect("emptied");
        }
        rows as f64 / busy.as_secs_f64()
    }

    /// Appends of one event by each of so many callers, as requests are served: through group commit,
    /// each caller making its next event when it has its receipt.
    async fn callers(&self) {
        for (callers, tenants) in [(64, 1), (64, 1_000)] {
            let store: Arc<dyn LogStore> = Arc::new(GroupCommit::new(Arc::new(self.store.clone())));
            let mut rates = Vec::new();
            for _ in 0..self.rounds {
                let began = Instant::now();
                let until = began + self.each;
                let tasks: Vec<_> = (0..callers)
                    .map(|_| {
                        let store = Arc::clone(&store);
                        tokio::spawn(async move {
                            let mut events = 0;
                            while Instant::now() < until {
                                let outcomes = match tenants {
                                    1 => store.append(&call(1, 1)).await,
                                    _ => store.append(&call(tenants, 1)).await,
                                };
                                for outcome in outcomes.expect("appended") {
                                    events += outcome.expect("appended").len();
                                }
                            }
                            events
                        })
                    })
                    .collect();
                let mut events = 0;
                for task in tasks {
                    events += task.await.expect("a caller");
                }
                rates.push(events as f64 / began.elapsed().as_secs_f64());
            }
            println!(
                "append, {callers} callers of one event, {tenants} tenants: {:.0} events/s",
                median(rates)
            );
        }
    }

    /// Fills the text index with what one tenant has.
    async fn index(&self) {
        while self.size(1).await < 20_000 {
            self.append_calls(40, 500).await;
        }
        for at_once in [1_000, 4_000] {
            let index = self.store.search_index();
            let mut admin = self.connect().await;
            admin
                .execute("TRUNCATE audit.index_progress, audit.index_documents")
                .await
                .expect("emptied");
            let (mut from, mut busy) = (0, Duration::ZERO);
            while from < 20_000 {
                let entries = self
                    .store
                    .read(&scope(1), from, at_once)
                    .await
                    .expect("entries");
                from += entries.len() as u64;
                let began = Instant::now();
                index.index(&entries).await.expect("indexed");
                busy += began.elapsed();
            }
            println!(
                "text index, {at_once} entries at once: {:.0} entries/s",
                from as f64 / busy.as_secs_f64()
            );
        }
    }

    async fn size(&self, n: u64) -> u64 {
        match self.store.head(&scope(n)).await {
            Ok(head) => head.size(),
            Err(_) => 0,
        }
    }

    async fn append_calls(&self, calls: usize, size: u64) {
        for _ in 0..calls {
            for outcome in self.store.append(&call(1, size)).await.expect("appended") {
                outcome.expect("appended");
            }
        }
    }

    /// A caller's transaction of some statements, in turns with nothing more, with one more statement
    /// that only takes the event's text to the server, with the event recorded in it, and with the event
    /// recorded by its last statement.
    async fn record_in(&self) {
        let mut caller = self.connect().await;
        caller
            .execute("CREATE TABLE orders (n bigserial PRIMARY KEY, customer text, total numeric, note text)")
            .await
            .expect("a table");
        let mut times = [const { Vec::new() }; 4];
        let statements = setting("STATEMENTS", 4);
        let insert = "INSERT INTO orders (customer, total, note) VALUES ($1, $2::bigint, $3)";
        let recording = format!("{insert} RETURNING audit.record($4, $5)");
        for i in 0..setting("TRANSACTIONS", 2_000_u64) {
            for (variant, times) in times.iter_mut().enumerate() {
                let event = Event::from_json(&event(i)).expect("an event");
                let began = Instant::now();
                let mut tx = caller.begin().await.expect("begun");
                for n in 0..statements {
                    let records = variant == 3 && n + 1 == statements;
                    let mut statement = query(if records { &recording } else { insert })
                        .bind(format!("customer {n}"))
                        .bind(i as i64)
                        .bind("a note of some length, as an order has one");
                    if records {
                        statement = statement.bind(tenant(1).into_uuid()).bind(event.to_json());
                    }
                    statement.execute(&mut *tx).await.expect("inserted");
                }
                match variant {
                    0 | 3 => {}
                    1 => {
                        query("SELECT length($1)")
                            .bind(event.to_json())
                            .execute(&mut *tx)
                            .await
                            .expect("a statement");
                    }
                    _ => {
                        outbox::record_in(&mut tx, tenant(1), event, &SystemClock)
                            .await
                            .expect("recorded");
                    }
                }
                tx.commit().await.expect("committed");
                times.push(began.elapsed().as_secs_f64() * 1e6);
            }
        }
        let [without, rest @ ..] = times.map(median);
        println!("a caller's transaction of {statements} inserts: {without:.0} us");
        let how = [
            "with one more statement",
            "with record_in",
            "with audit.record in its last statement",
        ];
        for (how, time) in how.iter().zip(rest) {
            println!(
                "{how}: {time:.0} us: {:+.1} %",
                (time / without - 1.0) * 100.0
            );
        }
    }

    async fn read(&self) {
        let wanted = setting("ENTRIES", 100_000);
        while self.size(1).await < wanted {
            self.append_calls(20, 500).await;
        }
        let log = AuditLog::builder(Arc::new(self.store.clone())).build();
        let reader = log.tenant(scope(1));
        let mut times = Vec::new();
        for _ in 0..500 {
            let began = Instant::now();
            let page = reader.list(&Filter::new(), &PageRequest::first()).await;
            times.push(began.elapsed().as_secs_f64() * 1e3);
            assert_eq!(page.expect("a page").items.len(), 50);
        }
        times.sort_unstable_by(f64::total_cmp);
        println!(
            "first page at {} entries: median {:.2} ms, p99 {:.2} ms",
            self.size(1).await,
            times[250],
            times[495]
        );
        let mut rates = Vec::new();
        for _ in 0..self.rounds {
            let began = Instant::now();
            let mut entries = reader.scan(&Filter::new()).await.expect("a stream");
            let mut count = 0;
            while let Some(entry) = entries.next().await {
                entry.expect("an entry");
                count += 1;
            }
            rates.push(f64::from(count) / began.elapsed().as_secs_f64());
        }
        println!("export: {:.0} entries/s", median(rates));
    }
}

#[tokio::main]
async fn main() {
    let parts = setting("PARTS", "append,callers,index,record,read".to_owned());
    // `cargo test` runs benches too: nothing is measured then.
    if env::args().any(|argument| argument == "--test") {
        return;
    }
    let bench = Bench::open().await;
    for part in parts.split(',') {
        match part {
            "append" => bench.append().await,
            "callers" => bench.callers().await,
            "index" => bench.index().await,
            "record" => bench.record_in().await,
            "read" => bench.read().await,
            other => panic!("no such part: {other}"),
        }
    }
}
