//! A server for one test, and a client for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_core::tlog::note::SigningKey;
use audit_core::{
    AuditLog, Clock as _, EventId, EventQueue, Head, Role, SystemClock, TenantId, TenantScope,
    Timestamp,
};
use audit_server::auth::jwt::{self, Demands, Verifiers};
use audit_server::config::Settings;
use audit_server::server::{Bound, ServeError};
use audit_server::signing;
use audit_server::storage::Storage;
use audit_store_sqlite::{SqliteOptions, SqliteStore};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::stack::Stack;

pub(crate) const SECRET: &str = "a secret for tests, of at least 32 bytes";
const DEADLINE: Duration = Duration::from_secs(20);

/// A running server. Dropping it stops it.
pub(crate) struct Service {
    pub(crate) base: String,
    pub(crate) storage: Storage,
    pub(crate) http: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Result<(), ServeError>>>,
    _stack: Stack,
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) async fn of(response: reqwest::Response) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.text().await.unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// A problem of this status whose errors name this place.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, place: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let body = self.json();
        assert_eq!(body["status"], status);
        let places: Vec<String> = body["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|e| {
                let parts = [&e["pointer"], &e["parameter"], &e["line"]];
                parts
                    .iter()
                    .filter(|p| !p.is_null())
                    .map(|p| match p {
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    })
                    .collect::<Vec<_>>()
                    .join("@")
            })
            .collect();
        assert!(
            places.iter().any(|p| p == place),
            "{place} is not among {places:?}"
        );
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

/// The key that signs heads.
pub(crate) fn tlog_key() -> SigningKey {
    SigningKey::from_seed("test", &[7; 32]).unwrap()
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With these settings, named as environment variables.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        let tokens = Verifiers::none()
            .secret(SECRET.as_bytes(), &Demands::default(), true)
            .unwrap();
        Self::trusting(tokens, settings).await
    }

    /// That admits tokens of these keys.
    pub(crate) async fn trusting(tokens: Verifiers, settings: &[(&str, &str)]) -> Self {
        // Who names a store brings its own engines.
        let stack = match settings.iter().any(|(name, _)| *name == "AUDIT_STORE_URL") {
            true => Stack::embedded(),
            false => Stack::make().await,
        };
        let settings = Settings::read(None, |name| {
            let given = settings
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned());
            given.or_else(|| match name {
                "AUDIT_BIND" => Some("127.0.0.1:0".into()),
                "AUDIT_TLOG_KEY" => Some(tlog_key().encode()),
                _ => stack.setting(name),
            })
        })
        .unwrap();
        let storage = Storage::open(&settings, signing::signer(&settings).unwrap())
            .await
            .unwrap();
        Self::on(storage, stack, settings, tokens).await
    }

    /// On a store whose file can't grow past so many pages.
    pub(crate) async fn on_pages(pages: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("audit.db");
        let options = SqliteOptions::new().max_pages(pages);
        let store = Arc::new(SqliteStore::open(&file, options).unwrap());
        let storage = Storage {
            log: AuditLog::builder(Arc::clone(&store)).build(),
            credentials: store,
            guard: None,
            engines: Vec::new(),
        };
        let settings = Settings::read(None, |name| {
            (name == "AUDIT_BIND").then(|| "127.0.0.1:0".into())
        });
        let tokens = Verifiers::none()
            .secret(SECRET.as_bytes(), &Demands::default(), true)
            .unwrap();
        Self::on(storage, Stack::Embedded(folder), settings.unwrap(), tokens).await
    }

    /// On a new SQLite store, and a queue made of the store's own.
    pub(crate) async fn on_queue(
        queue: impl FnOnce(Arc<dyn EventQueue>) -> Arc<dyn EventQueue>,
    ) -> Self {
        Self::on_log(|store| {
            let queue = queue(Arc::new(store.queue().unwrap()));
            AuditLog::builder(store).queue(queue).build()
        })
        .await
    }

    /// On a log made of a new SQLite store.
    pub(crate) async fn on_log(build: impl FnOnce(Arc<SqliteStore>) -> AuditLog) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("audit.db");
        let store = Arc::new(SqliteStore::open(&file, SqliteOptions::new()).unwrap());
        let storage = Storage {
            log: build(Arc::clone(&store)),
            credentials: store,
            guard: None,
            engines: Vec::new(),
        };
        let settings = Settings::read(None, |name| {
            (name == "AUDIT_BIND").then(|| "127.0.0.1:0".into())
        });
        let tokens = Verifiers::none()
            .secret(SECRET.as_bytes(), &Demands::default(), true)
            .unwrap();
        Self::on(storage, Stack::Embedded(folder), settings.unwrap(), tokens).await
    }

    async fn on(storage: Storage, stack: Stack, settings: Settings, tokens: Verifiers) -> Self {
        let bound = Bound::bind(settings, storage.clone(), tokens)
            .await
            .unwrap();
        let base = format!("http://{}", bound.address());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(bound.serve(async move {
            stopped.await.ok();
        }));
        Self {
            base,
            storage,
            http: reqwest::Client::builder()
                .timeout(DEADLINE)
                .build()
                .unwrap(),
            stop: Some(stop),
            task: Some(task),
            _stack: stack,
        }
    }

    /// Stops it and waits for its end.
    pub(crate) async fn stop(mut self) -> Result<(), ServeError> {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(DEADLINE, self.task.take().unwrap())
            .await
            .unwrap()
            .unwrap()
    }

    /// A new tenant with one entry, so that positions and counts are not the same by chance.
    pub(crate) async fn tenant(&self, name: &str) -> TenantId {
        let tenant = self.storage.log.create_tenant(None, name).await.unwrap().id;
        self.record(tenant, audit_core::Event::create("tenant", "first"))
            .await;
        tenant
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(crate) fn get(&self, path: &str, token: &str) -> reqwest::RequestBuilder {
        self.http.get(self.url(path)).bearer_auth(token)
    }

    pub(crate) fn post(
        &self,
        path: &str,
        token: &str,
        body: impl Into<String>,
    ) -> reqwest::RequestBuilder {
        self.http
            .post(self.url(path))
            .bearer_auth(token)
            .header("content-type", "application/json")
            .body(body.into())
    }

    pub(crate) async fn head(&self, tenant: TenantId) -> Head {
        let scope = TenantScope::trusted(tenant, "test");
        self.storage.log.tenant(scope).head().await.unwrap()
    }

    /// Records an event in-process.
    pub(crate) async fn record(&self, tenant: TenantId, event: audit_core::Event) -> EventId {
        let scope = TenantScope::trusted(tenant, "test");
        self.storage
            .log
            .tenant(scope)
            .record(event)
            .await
            .unwrap()
            .id
    }
}

/// Sends a request and reads the answer.
pub(crate) async fn send(request: reqwest::RequestBuilder) -> Answer {
    Answer::of(request.send().await.unwrap()).await
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A time so many seconds from now.
pub(crate) fn in_seconds(seconds: i64) -> Timestamp {
    Timestamp::from_micros(SystemClock.now().as_micros() + seconds * 1_000_000).unwrap()
}

/// A token that is valid for an hour.
pub(crate) fn token(role: Role, tenant: impl Into<Option<TenantId>>) -> String {
    token_until(role, tenant, in_seconds(3600))
}

pub(crate) fn token_until(
    role: Role,
    tenant: impl Into<Option<TenantId>>,
    until: Timestamp,
) -> String {
    let none = Demands::default();
    jwt::sign(
        SECRET.as_bytes(),
        "tester",
        tenant.into(),
        role,
        &none,
        until,
    )
    .unwrap()
}

/// An event's body.
pub(crate) fn event(resource_id: &str) -> String {
    format!(r#"{{"action_type":"VIEW","resource_type":"doc","resource_id":"{resource_id}"}}"#)
}
