//! The engines behind the servers of the tests: embedded, or those that a company runs. Every case is
//! the same for both; `AUDIT_TEST_STACK=production` chooses.

use std::sync::atomic::{AtomicUsize, Ordering};

use audit_server::config::Settings;
use audit_server::storage;
use sqlx_core::connection::ConnectOptions as _;
use sqlx_core::executor::Executor as _;
use sqlx_postgres::{PgConnectOptions, PgConnection};
use tokio::sync::OnceCell;

/// Parts of a test's own. What was made for it goes with this value.
pub(crate) enum Stack {
    Embedded(tempfile::TempDir),
    Production(Parts),
}

pub(crate) struct Parts {
    name: String,
    guard: tempfile::TempDir,
}

/// The login of the tests' servers: no superuser, and it makes the roles.
const LOGIN: &str = "audit_it_http";
const PASSWORD: &str = "only-in-tests";

const SETTINGS: [&str; 5] = [
    "AUDIT_STORE_URL",
    "AUDIT_QUEUE_URL",
    "AUDIT_SEARCH_URL",
    "AUDIT_SEARCH_PREFIX",
    "AUDIT_TLOG_GUARD",
];

impl Stack {
    pub(crate) async fn make() -> Self {
        match std::env::var("AUDIT_TEST_STACK").as_deref() {
            Ok("production") => Self::Production(Parts::make().await),
            Err(_) | Ok("" | "embedded") => Self::embedded(),
            Ok(other) => panic!("AUDIT_TEST_STACK={other}: embedded or production is expected"),
        }
    }

    pub(crate) async fn production() -> Self {
        Self::Production(Parts::make().await)
    }

    pub(crate) fn embedded() -> Self {
        Self::Embedded(tempfile::tempdir().unwrap())
    }

    /// What leads a process of its own to these parts; nothing where its own folder is all it needs.
    pub(crate) fn engines(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Embedded(_) => Vec::new(),
            Self::Production(parts) => SETTINGS
                .into_iter()
                .filter_map(|name| Some((name, parts.setting(name)?)))
                .collect(),
        }
    }

    /// The address of the database, for the superuser; none where there is no PostgreSQL.
    pub(crate) fn database(&self) -> Option<String> {
        let Self::Production(parts) = self else {
            return None;
        };
        let server = needed("AUDIT_TEST_POSTGRES_URL");
        let (server, _) = server.rsplit_once('/').unwrap();
        Some(format!("{server}/{}", parts.name))
    }

    /// A setting that leads to these parts.
    pub(crate) fn setting(&self, name: &str) -> Option<String> {
        match (self, name) {
            (Self::Embedded(folder), "AUDIT_STORE_URL") => Some(format!(
                "sqlite://{}",
                folder.path().join("audit.db").display()
            )),
            (Self::Embedded(_), _) => None,
            (Self::Production(parts), _) => parts.setting(name),
        }
    }
}

impl Parts {
    async fn make() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let n = MADE.fetch_add(1, Ordering::Relaxed);
        let this = Self {
            name: format!("audit_http_{}_{n}", std::process::id()),
            guard: tempfile::tempdir().unwrap(),
        };
        let template = template().await;
        let mut admin = admin().await;
        // Two copies of a template at once may meet; PostgreSQL then refuses the second.
        admin.execute("SELECT pg_advisory_lock(728)").await.unwrap();
        admin
            .execute(&*format!(
                "CREATE DATABASE {} TEMPLATE {template} OWNER {LOGIN}",
                this.name
            ))
            .await
            .unwrap();
        let settings = Settings::read(None, |name| this.setting(name)).unwrap();
        storage::make_queues(&settings).await.unwrap();
        this
    }

    fn setting(&self, name: &str) -> Option<String> {
        match name {
            "AUDIT_STORE_URL" => Some(address(&self.name)),
            "AUDIT_QUEUE_URL" => Some(format!(
                "{}/000000000000/{}",
                needed("AUDIT_TEST_SQS_ENDPOINT"),
                self.name
            )),
            "AUDIT_SEARCH_URL" => Some(needed("AUDIT_TEST_OPENSEARCH_URL")),
            "AUDIT_SEARCH_PREFIX" => Some(self.name.clone()),
            "AUDIT_TLOG_GUARD" => Some(self.guard.path().display().to_string()),
            _ => None,
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        // The test's own runtime may be going down.
        let gone = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async {
                    let search = needed("AUDIT_TEST_OPENSEARCH_URL");
                    let indexes = reqwest::Client::new()
                        .delete(format!("{search}/{name}-v1-*"))
                        .send();
                    drop(indexes.await);
                    admin()
                        .await
                        .execute(&*format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
                        .await
                        .unwrap();
                });
        });
        // What stays is in nobody's way.
        drop(gone.join());
    }
}

pub(crate) fn needed(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `dev/services up`, then `set -a; . .dev/env; set +a`")
    })
}

fn server() -> PgConnectOptions {
    needed("AUDIT_TEST_POSTGRES_URL").parse().unwrap()
}

async fn admin() -> PgConnection {
    server().connect().await.unwrap()
}

fn address(database: &str) -> String {
    let server = server();
    format!(
        "postgres://{LOGIN}:{PASSWORD}@{}:{}/{database}",
        server.get_host(),
        server.get_port()
    )
}

/// A migrated database that the others are copies of.
async fn template() -> String {
    static READY: OnceCell<String> = OnceCell::const_new();
    let name = READY.get_or_init(|| async {
        let name = format!("audit_http_{}_template", std::process::id());
        let mut admin = admin().await;
        admin
            .execute(&*format!(
                "SELECT pg_advisory_lock(728);
                 DO $$ BEGIN
                   IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{LOGIN}') THEN
                     CREATE ROLE {LOGIN} LOGIN CREATEROLE PASSWORD '{PASSWORD}';
                   END IF;
                 END $$"
            ))
            .await
            .unwrap();
        admin
            .execute(&*format!("CREATE DATABASE {name} OWNER {LOGIN}"))
            .await
            .unwrap();
        let settings = Settings::read(None, |variable| {
            (variable == "AUDIT_STORE_URL").then(|| address(&name))
        })
        .unwrap();
        storage::migrate(&settings).await.unwrap();
        name
    });
    name.await.clone()
}
