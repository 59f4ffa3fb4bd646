//! Databases of a test's own on the real server, and events for them.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use audit_core::{
    Act, ActionType, Basis, Batch, Clock, Event, EventId, LogStore, ManualClock, Outcome,
    PreparedEvent, Receipt, Result, Severity, TenantId, TenantScope, Timestamp,
};
use audit_store_postgres::{PostgresOptions, PostgresStore, migrate};
use sqlx_core::connection::{ConnectOptions as _, Connection as _};
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::{PgConnectOptions, PgConnection};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use uuid::Uuid;

/// The login of the tests' stores: no superuser, and it makes the roles.
const LOGIN: &str = "audit_it";

/// The password of every login that a test makes.
pub(crate) const PASSWORD: &str = "only-in-tests";

pub(crate) fn server() -> PgConnectOptions {
    let Ok(url) = std::env::var("AUDIT_TEST_POSTGRES_URL") else {
        panic!("no PostgreSQL: run `dev/services up`, then `set -a; . .dev/env; set +a`");
    };
    url.parse().unwrap()
}

/// The address of a database for a login.
pub(crate) fn url_of(login: &str, database: &str) -> String {
    let server = server();
    format!(
        "postgres://{login}:{PASSWORD}@{}:{}/{database}",
        server.get_host(),
        server.get_port()
    )
}

/// A new database that belongs to the tests' login; it goes with this value.
pub(crate) struct Bare {
    name: String,
    url: String,
}

impl Bare {
    pub(crate) async fn create() -> Self {
        let this = Self::unmade();
        let mut admin = admin().await;
        admin
            .execute(&*format!("CREATE DATABASE {} OWNER {LOGIN}", this.name))
            .await
            .unwrap();
        this
    }

    /// A copy of what it holds now. Whoever is connected to it is cut off.
    pub(crate) async fn backup(&self) -> Self {
        let copy = Self::unmade();
        let mut admin = admin().await;
        let cut = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'",
            self.name
        );
        let create = format!(
            "CREATE DATABASE {} TEMPLATE {} OWNER {LOGIN}",
            copy.name, self.name
        );
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            admin.execute(&*cut).await.unwrap();
            match admin.execute(&*create).await {
                Ok(_) => return copy,
                // Somebody who was cut off is still ending.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    fn unmade() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let n = MADE.fetch_add(1, Ordering::Relaxed);
        Self::of(format!("audit_it_{}_{n}", std::process::id()))
    }

    fn of(name: String) -> Self {
        Self {
            url: url_of(LOGIN, &name),
            name,
        }
    }

    /// Its address, for the tests' login.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A connection as the superuser.
    pub(crate) async fn connect(&self) -> PgConnection {
        server().database(&self.name).connect().await.unwrap()
    }

    pub(crate) fn options(&self) -> PostgresOptions {
        PostgresOptions::new(self.url()).connections(4, 4, 2)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        // The test's own runtime may be going down.
        let dropped = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(drop_database(&name));
        });
        // A database that stays is removed by a later run.
        drop(dropped.join());
    }
}

async fn drop_database(name: &str) {
    let mut admin = server().connect().await.unwrap();
    admin
        .execute(&*format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        .await
        .unwrap();
}

/// A connection to the server as the superuser. The first one makes the login, and removes the
/// databases of runs that are over.
async fn admin() -> PgConnection {
    static READY: OnceCell<()> = OnceCell::const_new();
    READY
        .get_or_init(|| async {
            let mut admin = server().connect().await.unwrap();
            admin.execute("SELECT pg_advisory_lock(727)").await.unwrap();
            admin
                .execute(&*format!(
                    "DO $do$ BEGIN
                         IF to_regrole('{LOGIN}') IS NULL THEN
                             CREATE ROLE {LOGIN} LOGIN CREATEROLE PASSWORD '{PASSWORD}';
                         END IF;
                     END $do$"
                ))
                .await
                .unwrap();
            let old: Vec<String> = query_scalar(
                r"SELECT datname::text FROM pg_database WHERE datname LIKE 'audit\_it\_%'",
            )
            .fetch_all(&mut admin)
            .await
            .unwrap();
            for name in old {
                let process = name.split('_').nth(2).unwrap_or_default();
                if !Path::new("/proc").join(process).exists() {
                    drop_database(&name).await;
                }
            }
            admin.close().await.unwrap();
        })
        .await;
    server().connect().await.unwrap()
}

/// A migrated database of its own, and a store in it.
pub(crate) struct Database {
    pub(crate) store: PostgresStore,
    pub(crate) clock: Arc<ManualClock>,
    bare: Bare,
}

impl std::ops::Deref for Database {
    type Target = Bare;

    fn deref(&self) -> &Bare {
        &self.bare
    }
}

impl Database {
    pub(crate) async fn open() -> Self {
        Self::with(|options| options).await
    }

    pub(crate) async fn with(set: impl FnOnce(PostgresOptions) -> PostgresOptions) -> Self {
        let bare = Bare::create().await;
        migrate(&bare.options()).await.unwrap();
        let clock = Arc::new(ManualClock::new(start()));
        let options = set(bare.options().clock(clock.clone()));
        let store = PostgresStore::connect(options).await.unwrap();
        Self { store, clock, bare }
    }

    /// One that is not migrated.
    pub(crate) async fn without_log() -> Bare {
        Bare::create().await
    }

    /// Another store on it, as another process has it.
    pub(crate) async fn again(&self) -> PostgresStore {
        let options = self.options().clock(self.clock.clone());
        PostgresStore::connect(options).await.unwrap()
    }

    /// As another process: nothing of the first one is left.
    pub(crate) async fn reopen(self) -> Self {
        let store = self.again().await;
        Self { store, ..self }
    }

    /// Another store on it whose connections have this name.
    pub(crate) async fn named(&self, name: &str) -> PostgresStore {
        PostgresStore::connect(self.options().application_name(name))
            .await
            .unwrap()
    }

    pub(crate) fn prepare(&self, tenant: TenantId, event: Event) -> PreparedEvent {
        prepare(&*self.clock, tenant, event)
    }

    /// A batch of `n` different events, which creates its tenant.
    pub(crate) fn batch(&self, scope: &TenantScope, n: usize) -> Batch {
        let events = (0..n)
            .map(|i| self.prepare(scope.tenant(), event(i)))
            .collect();
        Batch::new(scope.clone(), events).creating_tenant()
    }

    pub(crate) async fn append(&self, scope: &TenantScope, n: usize) -> Vec<Receipt> {
        self.try_append(scope, n).await.unwrap()
    }

    pub(crate) async fn try_append(&self, scope: &TenantScope, n: usize) -> Result<Vec<Receipt>> {
        let batch = self.batch(scope, n);
        self.store.append(&[batch]).await?.pop().unwrap()
    }

    pub(crate) fn act(&self, scope: &TenantScope) -> Act {
        Act::new(scope, Some("asked for".into()), self.clock.clone()).unwrap()
    }

    pub(crate) async fn sweep_all(&self) {
        while self.store.sweep().await.unwrap() {}
    }
}

/// A database that the contracts share, each with tenants of its own. A later run removes it.
pub(crate) async fn shared() -> PostgresOptions {
    static SHARED: OnceCell<String> = OnceCell::const_new();
    let url = SHARED
        .get_or_init(|| async {
            let bare = Bare::create().await;
            migrate(&bare.options()).await.unwrap();
            let url = bare.url().to_owned();
            std::mem::forget(bare);
            url
        })
        .await;
    PostgresOptions::new(url).connections(4, 4, 2)
}

/// Waits on a condition.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited for too long: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until somebody in the database waits for a lock.
pub(crate) async fn until_one_waits(admin: &mut PgConnection) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let waits = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while query_scalar::<_, i64>(waits)
        .fetch_one(&mut *admin)
        .await
        .unwrap()
        == 0
    {
        assert!(Instant::now() < deadline, "nobody waits for a lock");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn start() -> Timestamp {
    Timestamp::parse("2026-11-24T03:00:00Z").unwrap()
}

pub(crate) fn prepare(clock: &dyn Clock, tenant: TenantId, event: Event) -> PreparedEvent {
    PreparedEvent::new(tenant, event, clock, &[]).unwrap()
}

pub(crate) fn tenant(n: u128) -> TenantId {
    TenantId::new(Uuid::from_u128(n))
}

pub(crate) fn scope(n: u128) -> TenantScope {
    TenantScope::trusted(tenant(n), "test")
}

pub(crate) fn ids(receipts: &[Receipt]) -> Vec<EventId> {
    receipts.iter().map(|receipt| receipt.id).collect()
}

pub(crate) fn basis(text: &str) -> Basis {
    Basis::parse(text).unwrap()
}

pub(crate) fn event(i: usize) -> Event {
    let at = |choices: usize| (i.wrapping_mul(2_654_435_761) >> 7) % choices;
    Event::new(ActionType::ALL[at(11)], "invoice", format!("inv-{i}"))
        .severity(Severity::ALL[at(4)])
        .outcome(Outcome::ALL[at(3)])
        .user(format!("user-{}", at(50)))
        .actor_name("Ann Ö. O'Neil")
        .session_id(format!("s-{}", i / 10))
        .ip_address(if i.is_multiple_of(2) {
            [10, 8, 8, at(250) as u8].into()
        } else {
            std::net::Ipv6Addr::from(i as u128 + (0x2001_0db8_u128 << 96)).into()
        })
        .related(audit_core::RelatedResource::new("group", format!("g-{i}")).named("\"Group\""))
        .before(&serde_json::json!({"n": i, "text": "vorher"}))
        .metadata(&serde_json::json!([i, null, {"k": 1.5}]))
        .reason("quarterly close")
}
