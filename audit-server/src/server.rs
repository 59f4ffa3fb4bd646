//! Serving: what surrounds every request, and from start to a clean end.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use metrics_exporter_prometheus::PrometheusHandle;
use poem::endpoint::BoxEndpoint;
use poem::http::header::{CACHE_CONTROL, LOCATION};
use poem::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use poem::listener::{Acceptor as _, AcceptorExt as _, BoxAcceptor, Listener as _, TcpListener};
use poem::middleware::Cors;
use poem::{Endpoint, EndpointExt as _, IntoResponse, Request, Response, Route, Server, get};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api;
use crate::app::App;
use crate::auth::Gate;
use crate::auth::jwt::Verifiers;
use crate::config::Settings;
use crate::docs;
use crate::limits::Limits;
use crate::metrics;
use crate::problem::{MEDIA_TYPE, Problem, ProblemKind};
use crate::routes::{self, Pattern};
use crate::stall::{Patience, Unstalled};
use crate::storage::Storage;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How often limits forget keys at rest, and the gauges are set.
const UPKEEP: Duration = Duration::from_secs(10);
/// A connection that takes nothing for so many times the send timeout of streams ends, so that a
/// stream's own goodbye comes first.
const STALLED: u32 = 3;

/// The addresses of the settings, listened on: the first thing that a start needs, so that one which
/// can't have them leaves nothing behind. Who connects waits until a server [serves](Bound::serve).
pub struct Listening {
    acceptor: BoxAcceptor,
    address: SocketAddr,
    metrics: Option<BoxAcceptor>,
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listening")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Listening {
    /// Listens on the addresses of the settings.
    ///
    /// # Errors
    /// [`ServeError::Bind`].
    pub async fn on(settings: &Settings) -> Result<Self, ServeError> {
        let patience = Patience {
            write: settings.stream_send_timeout.saturating_mul(STALLED),
            head: settings.receive_timeout,
        };
        let (acceptor, address) = listen("AUDIT_BIND", settings.bind, patience).await?;
        let metrics = match settings.metrics_bind {
            Some(bind) => Some(listen("AUDIT_METRICS_BIND", bind, patience).await?.0),
            None => None,
        };
        Ok(Self {
            acceptor,
            address,
            metrics,
        })
    }
}

/// A server that is bound to its address and not yet serving.
pub struct Bound {
    app: Arc<App>,
    settings: Settings,
    acceptor: BoxAcceptor,
    metrics: Option<(BoxAcceptor, PrometheusHandle)>,
    address: SocketAddr,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Why a server can't start or ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address can't be listened on.
    #[error("{setting}: {address} can't be listened on: {source}")]
    Bind {
        /// The setting that names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// A worker died.
    #[error("the worker {0} died")]
    Worker(String),
    /// Accepting connections failed.
    #[error("connections can't be accepted: {0}")]
    Accept(std::io::Error),
}

impl Bound {
    /// Binds the addresses of the settings.
    ///
    /// # Errors
    /// [`ServeError::Bind`].
    pub async fn bind(
        settings: Settings,
        storage: Storage,
        tokens: Verifiers,
    ) -> Result<Self, ServeError> {
        let listening = Listening::on(&settings).await?;
        Ok(Self::new(listening, settings, storage, tokens))
    }

    /// A server on addresses that are listened on already, those of `settings`.
    pub fn new(
        listening: Listening,
        settings: Settings,
        storage: Storage,
        tokens: Verifiers,
    ) -> Self {
        let Listening {
            acceptor,
            address,
            metrics: metrics_listener,
        } = listening;
        let handle = metrics::install();
        let metrics_listener = metrics_listener.zip(handle.clone());
        let with_api = settings.metrics_bind.is_none() && address.ip().is_loopback();
        let limits = settings.rate_limit.map(Limits::new);
        let gate = Gate::new(
            storage.log,
            storage.credentials,
            tokens,
            limits,
            settings.auto_create_tenants,
        );
        let app = Arc::new(App {
            gate,
            trusted_proxies: settings.trusted_proxies.clone(),
            heartbeat: settings.stream_heartbeat,
            send_timeout: settings.stream_send_timeout,
            receive_timeout: settings.receive_timeout,
            stopping: CancellationToken::new(),
            reindex: api::admin::Reindex::default(),
            away: api::health::Away::default(),
            exports: api::export::Running::default(),
            streams: TaskTracker::new(),
            workers: Mutex::new(None),
            runs_workers: settings.roles.worker,
            metrics: handle.filter(|_| with_api),
        });
        Self {
            app,
            settings,
            acceptor,
            metrics: metrics_listener,
            address,
        }
    }

    /// The address that it listens on; with port 0 in the settings, the one that was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready; then accepts nothing more, finishes requests, closes streams and
    /// drains the workers, within the grace of the settings.
    ///
    /// # Errors
    /// [`ServeError::Worker`] when a worker dies: the process should be started anew.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let Self {
            app,
            settings,
            acceptor,
            metrics,
            ..
        } = self;
        let grace = settings.shutdown_grace;
        if settings.roles.worker {
            let workers = Arc::new(app.log().start());
            *app.workers.lock().unwrap_or_else(PoisonError::into_inner) = Some(workers);
        }
        let upkeep = tokio::spawn(keep_up(Arc::clone(&app)));
        let metrics_server = metrics.map(|(acceptor, handle)| {
            let stopping = app.stopping.clone();
            tokio::spawn(
                Server::new_with_acceptor(acceptor).run_with_graceful_shutdown(
                    Route::new().at("/metrics", metrics_page(Arc::clone(&app), handle)),
                    async move { stopping.cancelled().await },
                    Some(grace),
                ),
            )
        });
        let endpoint = endpoint(&app, &settings);
        let stopping = app.stopping.clone();
        let serving = Server::new_with_acceptor(acceptor).run_with_graceful_shutdown(
            endpoint,
            async move { stopping.cancelled().await },
            Some(grace),
        );
        tokio::pin!(serving);
        let watched = app.workers();
        let died = async move {
            match watched {
                Some(workers) => workers.failed().await,
                None => std::future::pending().await,
            }
        };
        let mut outcome = Ok(());
        tokio::select! {
            ended = &mut serving => return ended.map_err(ServeError::Accept),
            () = stop => {}
            name = died => outcome = Err(ServeError::Worker(name)),
        }
        tracing::info!("stopping");
        let began = Instant::now();
        app.stopping.cancel();
        app.streams.close();
        if let Err(error) = serving.await {
            tracing::warn!(%error, "connections were cut");
        }
        let left = || grace.saturating_sub(began.elapsed());
        if tokio::time::timeout(left(), app.streams.wait())
            .await
            .is_err()
        {
            tracing::warn!(streams = app.streams.len(), "streams were cut");
        }
        upkeep.abort();
        if let Some(server) = metrics_server {
            server.abort();
        }
        let workers = app
            .workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(workers) = workers.and_then(Arc::into_inner)
            && !workers.shutdown(left().max(Duration::from_secs(1))).await
        {
            tracing::warn!(
                "workers were cut; what they had begun is done again after the next start"
            );
        }
        tracing::info!("stopped");
        outcome
    }
}

/// Listens; connections whose peers take longer than `patience` end.
async fn listen(
    setting: &'static str,
    address: SocketAddr,
    patience: Patience,
) -> Result<(BoxAcceptor, SocketAddr), ServeError> {
    let refuse = |source| ServeError::Bind {
        setting,
        address,
        source,
    };
    let acceptor = TcpListener::bind(address)
        .into_acceptor()
        .await
        .map_err(refuse)?;
    let bound = acceptor
        .local_addr()
        .first()
        .and_then(|local| local.as_socket_addr().copied())
        .unwrap_or(address);
    Ok((Unstalled::new(acceptor, patience).boxed(), bound))
}

/// Sets gauges, and forgets what limits need not remember.
async fn keep_up(app: Arc<App>) {
    let mut ticks = tokio::time::interval(UPKEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(limits) = &app.gate.limits {
            limits.sweep();
        }
        show_work(&app);
        if let Some(queue) = app.log().queue() {
            match queue.depth().await {
                Ok(depth) => metrics::queue(depth),
                Err(error) => tracing::warn!(%error, "the depth of the queue is not known"),
            }
        }
        metrics::upkeep();
    }
}

/// Sets what tells of the workers, of the guard and of the archive.
fn show_work(app: &App) {
    metrics::guard(app.log().stopped_by_guard());
    if let Some(workers) = app.workers() {
        metrics::workers(&workers.status());
    }
    if let Some(status) = app.log().archived() {
        metrics::archive(status);
    }
}

/// The metrics, with the workers' gauges as they are now.
fn metrics_page(app: Arc<App>, handle: PrometheusHandle) -> impl Endpoint + 'static {
    get(poem::endpoint::make_sync(move |_| {
        show_work(&app);
        metrics::page(&handle)
    }))
}

/// Everything that is served, with what surrounds every request.
fn endpoint(app: &Arc<App>, settings: &Settings) -> BoxEndpoint<'static> {
    let mut route = if settings.roles.api {
        routes::routes(app, api::api(app))
    } else {
        routes::routes(app, api::health::HealthApi(Arc::clone(app)))
    };
    if settings.roles.api {
        route = document_routes(route);
    }
    if let Some(handle) = app.metrics.clone() {
        route = route.at("/metrics", metrics_page(Arc::clone(app), handle));
    }
    let every = Every {
        app: Arc::clone(app),
        inner: route.boxed(),
    };
    if settings.cors_origins.is_empty() {
        return every.boxed();
    }
    let cors = Cors::new()
        .allow_origins(settings.cors_origins.iter().map(String::as_str))
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers([
            "authorization",
            "content-type",
            "content-encoding",
            "prefer",
            "idempotency-key",
            "x-tenant-id",
            "x-request-id",
            "last-event-id",
        ])
        .expose_headers([
            "link",
            "location",
            "preference-applied",
            "ratelimit",
            "retry-after",
            "x-request-id",
        ])
        .allow_credentials(false);
    every
        .with(cors)
        .map_to_response()
        .after(|answer: poem::Result<Response>| async move {
            let mut response = answer.unwrap_or_else(poem::Error::into_response);
            as_problem(&mut response);
            Ok::<_, poem::Error>(response)
        })
        .boxed()
}

fn document_routes(route: Route) -> Route {
    fn fixed(media_type: &'static str, text: String) -> impl Endpoint + 'static {
        get(poem::endpoint::make_sync(move |_| {
            Response::builder()
                .content_type(media_type)
                .body(text.clone())
        }))
    }
    route
        .at("/openapi.json", fixed("application/json", docs::json()))
        .at("/openapi.yaml", fixed("application/yaml", docs::yaml()))
        .at("/docs", fixed("text/html; charset=utf-8", docs::page()))
        .at(
            "/",
            get(poem::endpoint::make_sync(|_| {
                Response::builder()
                    .status(StatusCode::FOUND)
                    .header(LOCATION, "/docs")
                    .finish()
            })),
        )
        .at(
            "/problems/:name",
            get(poem::endpoint::make_sync(|request| {
                match request.raw_path_param("name").and_then(docs::problem_page) {
                    Some(text) => Response::builder()
                        .content_type("text/plain; charset=utf-8")
                        .body(text),
                    None => Problem::new(ProblemKind::NotFound, "there is no such problem")
                        .into_response(),
                }
            })),
        )
}

/// What the metrics and the log call an address that no operation has.
static OTHER: LazyLock<Arc<str>> = LazyLock::new(|| "other".into());

/// What surrounds every request: its id, one line in the log, the metrics, and an answer that is a
/// problem whatever went wrong.
struct Every {
    app: Arc<App>,
    inner: BoxEndpoint<'static>,
}

impl Endpoint for Every {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let began = Instant::now();
        let id =
            request_id(&request).unwrap_or_else(|| self.app.log().clock().event_id().to_string());
        let method = request.method().clone();
        strip_trailing_slash(&mut request);
        let outcome = AssertUnwindSafe(self.inner.call(request))
            .catch_unwind()
            .await;
        let mut response = match outcome {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => error.into_response(),
            Err(_) => {
                // The panic's own message went to the log with its place.
                tracing::error!(request_id = id, "a request panicked");
                Problem::new(ProblemKind::Internal, ProblemKind::Internal.title()).into_response()
            }
        };
        as_problem(&mut response);
        let status = response.status();
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::try_from(&id) {
            headers.insert(REQUEST_ID, value);
        }
        headers.insert(
            "x-content-type-options",
            HeaderValue::from_static("nosniff"),
        );
        headers
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
        let elapsed = began.elapsed();
        let pattern = response
            .data::<Pattern>()
            .map_or_else(|| Arc::clone(&OTHER), |pattern| Arc::clone(&pattern.0));
        metrics::request(&method, Arc::clone(&pattern), status, elapsed);
        tracing::info!(
            target: "audit_server::request",
            request_id = id,
            method = method.as_str(),
            route = &*pattern,
            status = status.as_u16(),
            micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            "request"
        );
        Ok(response)
    }
}

/// The request's own id, where it is one that a log line can hold.
fn request_id(request: &Request) -> Option<String> {
    let text = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    let sound = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    sound.then(|| text.to_owned())
}

/// Routes are known with and without a slash at their end.
fn strip_trailing_slash(request: &mut Request) {
    let path = request.uri().path();
    if path.len() < 2 || !path.ends_with('/') {
        return;
    }
    let mut target = path.trim_end_matches('/').to_owned();
    if target.is_empty() {
        target.push('/');
    }
    if let Some(query) = request.uri().query() {
        target.push('?');
        target.push_str(query);
    }
    if let Ok(uri) = target.parse::<Uri>() {
        *request.uri_mut() = uri;
    }
}

/// Errors that come from below the handlers are problems too.
fn as_problem(response: &mut Response) {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return;
    }
    let json = [MEDIA_TYPE, "application/json"];
    if response
        .content_type()
        .is_some_and(|media_type| json.contains(&media_type))
    {
        return;
    }
    let problem = match status {
        StatusCode::NOT_FOUND => {
            Problem::new(ProblemKind::NotFound, "there is nothing at this address")
        }
        StatusCode::METHOD_NOT_ALLOWED => Problem::new(
            ProblemKind::MethodNotAllowed,
            "this address knows GET, HEAD",
        )
        .allow("GET, HEAD".into()),
        StatusCode::UNAUTHORIZED => Problem::new(ProblemKind::Unauthorized, "no valid credential"),
        StatusCode::FORBIDDEN => Problem::new(ProblemKind::Forbidden, "not allowed"),
        status if status.is_client_error() => {
            Problem::new(ProblemKind::Malformed, "the request can't be read")
        }
        _ => Problem::new(ProblemKind::Internal, ProblemKind::Internal.title()),
    };
    *response = problem.into_response();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_taken_only_when_a_log_line_can_hold_it() {
        let with = |id: &str| request_id(&Request::builder().header(REQUEST_ID, id).finish());
        assert_eq!(with("abc-1").as_deref(), Some("abc-1"));
        assert_eq!(with("a b"), None);
        assert_eq!(with(""), None);
        assert_eq!(with(&"x".repeat(129)), None);
    }

    #[test]
    fn trailing_slashes_go_and_the_query_stays() {
        let strip = |uri: &str| {
            let mut request = Request::builder().uri_str(uri).finish();
            strip_trailing_slash(&mut request);
            request.uri().to_string()
        };
        assert_eq!(strip("/api/v1/logs/?a=b"), "/api/v1/logs?a=b");
        assert_eq!(strip("/"), "/");
        assert_eq!(strip("//"), "/");
    }
}
