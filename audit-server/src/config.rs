//! Settings: a TOML file, overridden by environment variables `AUDIT_…`.
//!
//! A name in the file is that of the variable in lower case without `AUDIT_`: `bind`, `store_url`.
//! A name that isn't known is refused, so that a misspelt setting doesn't stay without effect.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::note::{Algorithm, VerifyingKey};
use ipnet::IpNet;
use serde::Deserialize;

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file or a value can't be read.
    #[error("the configuration can't be read: {0}")]
    Read(String),
    /// A value is not one of those that are known.
    #[error("{name}: {detail}")]
    Value {
        /// The environment variable.
        name: &'static str,
        /// What is wrong.
        detail: String,
    },
}

fn refuse(name: &'static str, detail: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        name,
        detail: detail.into(),
    }
}

/// What stands in the file and the environment, before it is checked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    bind: Option<String>,
    store_url: Option<Secret>,
    store_reader_url: Option<Secret>,
    store_writer_url: Option<Secret>,
    store_maintainer_url: Option<Secret>,
    allow_superuser: Option<bool>,
    queue_url: Option<String>,
    sqs_endpoint: Option<String>,
    search_url: Option<Secret>,
    search_prefix: Option<String>,
    search_layout: Option<String>,
    archive_url: Option<String>,
    ca_file: Option<PathBuf>,
    tlog_origin: Option<String>,
    tlog_key: Option<Secret>,
    tlog_old_keys: Option<Secret>,
    tlog_old_origin: Option<String>,
    witnesses: Option<String>,
    deployment_every: Option<u64>,
    tlog_guard: Option<String>,
    jwt_secret: Option<Secret>,
    jwt_public_key: Option<String>,
    jwks_url: Option<String>,
    jwt_issuer: Option<String>,
    jwt_audience: Option<String>,
    jwt_across_tenants: Option<bool>,
    auto_create_tenants: Option<bool>,
    roles: Option<String>,
    metrics_bind: Option<String>,
    cors_origins: Option<String>,
    trusted_proxies: Option<String>,
    rate_limit: Option<String>,
    stream_heartbeat: Option<u64>,
    stream_send_timeout: Option<u64>,
    receive_timeout: Option<u64>,
    shutdown_grace: Option<u64>,
    log: Option<String>,
    log_format: Option<String>,
}

/// The names of [`Raw`], each also a variable `AUDIT_…`, with the default and what it is.
const VARIABLES: &[(&str, &str, &str)] = &[
    ("bind", "127.0.0.1:8000", "where the API is served"),
    (
        "store_url",
        "sqlite://audit-data/audit.db",
        "where the log is kept; postgres://…, or memory:, for tests, with a secret of your own",
    ),
    (
        "store_reader_url",
        "",
        "PostgreSQL: the login that reads one tenant",
    ),
    ("store_writer_url", "", "PostgreSQL: the login that appends"),
    (
        "store_maintainer_url",
        "",
        "PostgreSQL: the login that erases and prunes",
    ),
    (
        "allow_superuser",
        "false",
        "PostgreSQL: admit a login that no permission binds",
    ),
    (
        "queue_url",
        "store:",
        "where events wait that were acknowledged early; an SQS queue's URL, memory: for none",
    ),
    (
        "sqs_endpoint",
        "",
        "where SQS is asked, when that isn't the queue URL's host",
    ),
    (
        "search_url",
        "store:",
        "the full-text index; http(s)://… of OpenSearch",
    ),
    (
        "search_prefix",
        "audit",
        "what the names of OpenSearch's indexes begin with",
    ),
    (
        "search_layout",
        "shared",
        "one index of OpenSearch, or per-tenant",
    ),
    (
        "archive_url",
        "",
        "where entries are archived before they are pruned; file:///path or s3://bucket/prefix",
    ),
    (
        "ca_file",
        "",
        "authorities (PEM) that vouch for store, queue, search and archive",
    ),
    (
        "tlog_origin",
        "localhost/audit, on loopback",
        "the name that heads are signed under, before each tenant's id",
    ),
    (
        "tlog_key",
        "tlog.key in the data folder",
        "the key that signs heads: PRIVATE+KEY+…, or the file that holds it",
    ),
    (
        "tlog_old_keys",
        "tlog.old.keys in the data folder",
        "the keys that signed before, with spaces, or the file that holds them",
    ),
    (
        "tlog_old_origin",
        "",
        "the name that heads were signed under before",
    ),
    (
        "witnesses",
        "",
        "who cosigns the deployment log's head: <vkey> <url>, with commas",
    ),
    (
        "deployment_every",
        "3600",
        "seconds between two heads of the deployment log",
    ),
    (
        "tlog_guard",
        "tlog.guard in the data folder",
        "the folder that remembers what was signed, on another disk than the log",
    ),
    (
        "jwt_secret",
        "",
        "the shared secret of tokens (HS256), at least 32 bytes",
    ),
    (
        "jwt_public_key",
        "",
        "the public key of tokens, PEM or a file (RS256, ES256, EdDSA)",
    ),
    ("jwks_url", "", "where the key set of tokens is fetched"),
    ("jwt_issuer", "", "the iss that tokens must have"),
    ("jwt_audience", "", "the aud that tokens must have"),
    (
        "jwt_across_tenants",
        "with a secret",
        "whether role=admin acts across tenants",
    ),
    (
        "auto_create_tenants",
        "false",
        "create a token's tenant when it is first used",
    ),
    ("roles", "api,worker", "which work this process does"),
    (
        "metrics_bind",
        "",
        "where /metrics is served; on loopback with the API",
    ),
    (
        "cors_origins",
        "",
        "origins of pages that may call the API, with commas",
    ),
    (
        "trusted_proxies",
        "",
        "networks whose Forwarded and X-Forwarded-For count, with commas",
    ),
    (
        "rate_limit",
        "50000",
        "requests a second for each principal, or off",
    ),
    (
        "stream_heartbeat",
        "15",
        "seconds that a stream may be silent",
    ),
    (
        "stream_send_timeout",
        "10",
        "seconds until a subscriber is too slow",
    ),
    (
        "receive_timeout",
        "30",
        "seconds that the head of a request may take, and a pause in its body",
    ),
    ("shutdown_grace", "20", "seconds that a shutdown waits"),
    ("log", "info", "what is logged, to stderr"),
    ("log_format", "", "json or compact; compact on a terminal"),
];

/// Variables of the environment that begin as settings do and are none, so that a misspelt one is told
/// of. Those of other programs (the command line's, an orchestrator's) may be among them.
pub fn unknown_variables() -> Vec<String> {
    let known = |name: &str| {
        let own = name.strip_prefix("AUDIT_").unwrap_or(name);
        VARIABLES.iter().any(|(n, ..)| own.eq_ignore_ascii_case(n))
            || ["CONFIG", "URL", "TOKEN"].contains(&own)
            || own.starts_with("TEST_")
    };
    std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("AUDIT_") && !known(name))
        .collect()
}

/// The settings, their defaults and what they are, one a line, for `--help`.
pub fn help() -> String {
    let mut out = String::from("Settings, in the environment or in lower case in the file:\n");
    for (name, default, about) in VARIABLES {
        let name = format!("AUDIT_{}", name.to_ascii_uppercase());
        put!(out, "  {name:27} {about}");
        if !default.is_empty() {
            put!(out, " [{default}]");
        }
        out.push('\n');
    }
    out
}

/// Where the log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreUrl {
    /// An SQLite file; everything else of the embedded set-up lies beside it.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres(Postgres),
    /// In memory: gone with the process. For trying things out.
    Memory,
}

/// What remembers outside the database what was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuardPlace {
    /// A folder.
    Folder(PathBuf),
    /// A bucket, `s3://bucket/prefix`.
    Bucket(String),
    /// Nothing does.
    Off,
}

/// How a PostgreSQL database is reached. The addresses have passwords in them and are not printed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Postgres {
    /// Of everything that has no address of its own.
    pub url: Secret,
    /// Of the login that reads.
    pub reader_url: Option<Secret>,
    /// Of the login that appends.
    pub writer_url: Option<Secret>,
    /// Of the login that erases and prunes.
    pub maintainer_url: Option<Secret>,
    /// Whether a superuser is admitted.
    pub allow_superuser: bool,
}

/// Where a server that has no folder in its store keeps the secret and token of the first start.
const DATA_FOLDER: &str = "audit-data";

impl StoreUrl {
    fn parse(url: &str) -> Result<Self, ConfigError> {
        if url == "memory:" {
            return Ok(Self::Memory);
        }
        match url.strip_prefix("sqlite://") {
            Some("") => Err(refuse("AUDIT_STORE_URL", "sqlite:// is followed by a path")),
            Some(path) => Ok(Self::Sqlite(PathBuf::from(path))),
            None if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                Ok(Self::Postgres(Postgres {
                    url: Secret::new(url),
                    reader_url: None,
                    writer_url: None,
                    maintainer_url: None,
                    allow_superuser: false,
                }))
            }
            None => Err(refuse(
                "AUDIT_STORE_URL",
                "sqlite://<path>, postgres://… or memory: is expected",
            )),
        }
    }

    /// The folder of the data, which with a database holds only what the first start makes; none in
    /// memory.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Memory => None,
            Self::Postgres(_) => Some(Path::new(DATA_FOLDER)),
            Self::Sqlite(path) => Some(match path.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            }),
        }
    }
}

/// Where events wait that were acknowledged before they were appended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueUrl {
    /// In the store: durable, where the store is.
    Store,
    /// An SQS queue.
    Sqs {
        /// Its URL.
        url: String,
        /// Where SQS is asked, when that isn't the URL's host.
        endpoint: Option<String>,
    },
    /// None: such requests are answered when the event is appended.
    Memory,
}

/// Where full text is found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SearchUrl {
    /// In the store.
    Store,
    /// In OpenSearch.
    OpenSearch {
        /// Its URL, which may have a password in it.
        url: Secret,
        /// What the names of its indexes begin with; by default the crate's own.
        prefix: Option<String>,
        /// Whether each tenant has an index of its own.
        per_tenant: bool,
    },
}

/// A witness, as the settings name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessAddress {
    /// Whose cosignatures it answers with.
    pub key: VerifyingKey,
    /// What `/add-checkpoint` follows.
    pub url: String,
}

/// Which work this process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// It serves the API.
    pub api: bool,
    /// It runs the workers.
    pub worker: bool,
}

/// How lines of the log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Compact,
}

/// The settings of a server, checked.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// Where the API is served.
    pub bind: SocketAddr,
    /// Where the log is kept.
    pub store: StoreUrl,
    /// Where acknowledged events wait.
    pub queue: QueueUrl,
    /// Where full text is found.
    pub search: SearchUrl,
    /// Where entries are archived before they are pruned; none prunes without an archive.
    pub archive_url: Option<String>,
    /// Authorities that vouch for store, queue, search and archive.
    pub ca_file: Option<PathBuf>,
    /// The name that heads are signed under; none where only this machine reaches the server.
    pub tlog_origin: Option<Origin>,
    /// The key that signs them, or the path of its file; none for the data folder's.
    pub tlog_key: Option<Secret>,
    /// The keys that signed them before, or the path of their file; none for the data folder's.
    pub tlog_old_keys: Option<Secret>,
    /// The name that heads were signed under before.
    pub tlog_old_origin: Option<Origin>,
    /// Who is asked to cosign the deployment log's head.
    pub witnesses: Vec<WitnessAddress>,
    /// How often the deployment log takes in what has grown and is signed.
    pub deployment_every: Duration,
    /// The guard; none for the data folder's.
    pub tlog_guard: Option<GuardPlace>,
    /// The shared secret of tokens.
    pub jwt_secret: Option<Secret>,
    /// The public key of tokens, PEM, or the path of a file with it.
    pub jwt_public_key: Option<String>,
    /// Where the key set of tokens is fetched.
    pub jwks_url: Option<String>,
    /// The `iss` that tokens must have.
    pub jwt_issuer: Option<String>,
    /// The `aud` that tokens must have.
    pub jwt_audience: Option<String>,
    /// Whether `role=admin` acts across tenants. By default with a shared secret only.
    pub jwt_across_tenants: Option<bool>,
    /// Whether a token's tenant is created when it is first used.
    pub auto_create_tenants: bool,
    /// Which work this process does.
    pub roles: Roles,
    /// Where metrics are served; by default with the API when that is on a loopback address.
    pub metrics_bind: Option<SocketAddr>,
    /// The origins of browsers' pages that may call the API; none by default.
    pub cors_origins: Vec<String>,
    /// The networks of proxies whose `Forwarded` and `X-Forwarded-For` count.
    pub trusted_proxies: Vec<IpNet>,
    /// Requests a second for each principal; none is no limit.
    pub rate_limit: Option<NonZeroU32>,
    /// How long a stream may be silent.
    pub stream_heartbeat: Duration,
    /// How long a subscriber may take to receive a frame, before it is told to be too slow.
    pub stream_send_timeout: Duration,
    /// How long the head of a request may take to arrive, and its body may pause. A body may take as
    /// long in all, and a second more for each 16 KiB that have come.
    pub receive_timeout: Duration,
    /// How long a shutdown waits for requests, streams and workers.
    pub shutdown_grace: Duration,
    /// What is logged, as `tracing-subscriber` spells it.
    pub log: String,
    /// How it is logged; by default compact on a terminal, else JSON.
    pub log_format: Option<LogFormat>,
}

/// The default limit of a principal: above what one busy machine asks for.
const RATE_LIMIT: u32 = 50_000;

impl Settings {
    /// Reads the file, if one is named, and the environment.
    ///
    /// # Errors
    /// A file that can't be read, an unknown name, a value that can't be.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::read(file, |name| std::env::var(name).ok())
    }

    /// Reads the file and the variables that `variable` knows.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn read(
        file: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let unreadable = |e: config::ConfigError| ConfigError::Read(e.to_string());
        let mut builder = config::Config::builder();
        if let Some(file) = file {
            builder = builder.add_source(
                config::File::from(file)
                    .format(config::FileFormat::Toml)
                    .required(true),
            );
        }
        for (name, ..) in VARIABLES {
            let upper = format!("AUDIT_{}", name.to_ascii_uppercase());
            if let Some(value) = variable(&upper).filter(|v| !v.is_empty()) {
                builder = builder.set_override(*name, value).map_err(unreadable)?;
            }
        }
        let raw: Raw = builder
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(unreadable)?;
        Self::check(raw)
    }

    fn check(raw: Raw) -> Result<Self, ConfigError> {
        fn list(text: Option<String>) -> Vec<String> {
            text.iter()
                .flat_map(|t| t.split(','))
                .map(str::trim)
                .filter(|t| !t.is_empty())
                .map(str::to_owned)
                .collect()
        }
        fn origin(name: &'static str, text: Option<String>) -> Result<Option<Origin>, ConfigError> {
            let read = |text: String| Origin::parse(&text).map_err(|e| refuse(name, e.to_string()));
            text.map(read).transpose()
        }
        fn address(name: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
            text.parse().map_err(|_| {
                refuse(
                    name,
                    format!("{text:?} is not an address and a port, as 127.0.0.1:8000"),
                )
            })
        }
        let (store, queue, search) = (store(&raw)?, queue(&raw)?, search(&raw)?);
        let tlog_guard = guard(&raw, &store)?;
        let roles = match raw.roles {
            None => Roles {
                api: true,
                worker: true,
            },
            text => {
                let mut roles = Roles {
                    api: false,
                    worker: false,
                };
                for role in list(text) {
                    match role.as_str() {
                        "api" => roles.api = true,
                        "worker" => roles.worker = true,
                        _ => {
                            return Err(refuse("AUDIT_ROLES", "api, worker, or both are expected"));
                        }
                    }
                }
                roles
            }
        };
        let rate_limit = match raw.rate_limit.as_deref() {
            None => NonZeroU32::new(RATE_LIMIT),
            Some("off") => None,
            Some(text) => Some(text.parse().map_err(|_| {
                refuse("AUDIT_RATE_LIMIT", "requests a second, or off, is expected")
            })?),
        };
        Ok(Self {
            bind: address(
                "AUDIT_BIND",
                raw.bind.as_deref().unwrap_or("127.0.0.1:8000"),
            )?,
            store,
            queue,
            search,
            archive_url: archive(raw.archive_url)?,
            ca_file: raw.ca_file,
            jwt_secret: raw.jwt_secret,
            jwt_public_key: raw.jwt_public_key,
            jwks_url: raw.jwks_url,
            tlog_origin: origin("AUDIT_TLOG_ORIGIN", raw.tlog_origin)?,
            tlog_key: raw.tlog_key,
            tlog_old_keys: raw.tlog_old_keys,
            tlog_old_origin: origin("AUDIT_TLOG_OLD_ORIGIN", raw.tlog_old_origin)?,
            witnesses: list(raw.witnesses)
                .iter()
                .map(|text| witness(text))
                .collect::<Result<_, _>>()?,
            deployment_every: seconds("AUDIT_DEPLOYMENT_EVERY", raw.deployment_every, 3600)?,
            tlog_guard,
            jwt_issuer: raw.jwt_issuer,
            jwt_audience: raw.jwt_audience,
            jwt_across_tenants: raw.jwt_across_tenants,
            auto_create_tenants: raw.auto_create_tenants.unwrap_or(false),
            roles,
            metrics_bind: raw
                .metrics_bind
                .as_deref()
                .map(|text| address("AUDIT_METRICS_BIND", text))
                .transpose()?,
            cors_origins: list(raw.cors_origins),
            trusted_proxies: list(raw.trusted_proxies)
                .iter()
                .map(|text| {
                    text.parse::<IpNet>()
                        .or_else(|e| {
                            text.parse::<std::net::IpAddr>()
                                .map(IpNet::from)
                                .map_err(|_| e)
                        })
                        .map_err(|_| {
                            refuse(
                                "AUDIT_TRUSTED_PROXIES",
                                format!("{text:?} is not a network"),
                            )
                        })
                })
                .collect::<Result<_, _>>()?,
            rate_limit,
            stream_heartbeat: seconds("AUDIT_STREAM_HEARTBEAT", raw.stream_heartbeat, 15)?,
            stream_send_timeout: seconds("AUDIT_STREAM_SEND_TIMEOUT", raw.stream_send_timeout, 10)?,
            receive_timeout: seconds("AUDIT_RECEIVE_TIMEOUT", raw.receive_timeout, 30)?,
            shutdown_grace: seconds("AUDIT_SHUTDOWN_GRACE", raw.shutdown_grace, 20)?,
            log: raw.log.unwrap_or_else(|| "info".into()),
            log_format: match raw.log_format.as_deref() {
                None => None,
                Some("json") => Some(LogFormat::Json),
                Some("compact") => Some(LogFormat::Compact),
                Some(_) => return Err(refuse("AUDIT_LOG_FORMAT", "json or compact is expected")),
            },
        })
    }

    /// Whether keys for tokens are configured. Without any, a secret is made in the data folder.
    pub fn names_token_keys(&self) -> bool {
        self.jwt_secret.is_some() || self.jwt_public_key.is_some() || self.jwks_url.is_some()
    }
}

fn witness(text: &str) -> Result<WitnessAddress, ConfigError> {
    let refused = |why: &str| refuse("AUDIT_WITNESSES", format!("{text:?}: {why}"));
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [vkey, url] = parts.as_slice() else {
        return Err(refused("a vkey, a space and a URL are expected"));
    };
    let key = VerifyingKey::parse(vkey).map_err(|fault| refused(&fault.to_string()))?;
    if key.algorithm() != Algorithm::Cosignature {
        return Err(refused("the key is a log's, not one that cosigns"));
    }
    if !is_web(url) {
        return Err(refused("the URL begins with neither https:// nor http://"));
    }
    Ok(WitnessAddress {
        key,
        url: url.trim_end_matches('/').to_owned(),
    })
}

fn store(raw: &Raw) -> Result<StoreUrl, ConfigError> {
    let url = raw.store_url.as_ref().map(Secret::reveal);
    let mut store = StoreUrl::parse(url.unwrap_or("sqlite://audit-data/audit.db"))?;
    if let StoreUrl::Postgres(postgres) = &mut store {
        postgres.reader_url = raw.store_reader_url.clone();
        postgres.writer_url = raw.store_writer_url.clone();
        postgres.maintainer_url = raw.store_maintainer_url.clone();
        postgres.allow_superuser = raw.allow_superuser.unwrap_or(false);
        return Ok(store);
    }
    let idle = [
        ("AUDIT_STORE_READER_URL", raw.store_reader_url.is_some()),
        ("AUDIT_STORE_WRITER_URL", raw.store_writer_url.is_some()),
        (
            "AUDIT_STORE_MAINTAINER_URL",
            raw.store_maintainer_url.is_some(),
        ),
        ("AUDIT_ALLOW_SUPERUSER", raw.allow_superuser == Some(true)),
    ];
    refuse_idle(&idle, "postgres:// in AUDIT_STORE_URL")?;
    Ok(store)
}

fn guard(raw: &Raw, store: &StoreUrl) -> Result<Option<GuardPlace>, ConfigError> {
    let refused = |why: &'static str| Err(refuse("AUDIT_TLOG_GUARD", why));
    match raw.tlog_guard.as_deref() {
        None => Ok(None),
        Some("off") => Ok(Some(GuardPlace::Off)),
        Some(_) if *store == StoreUrl::Memory => {
            refused("a store in memory has nothing to restore")
        }
        Some(url) if url.starts_with("s3://") => match cfg!(feature = "s3") {
            false => refused("this build has no S3: build it with --features s3"),
            true if url.contains('@') => refused(HAS_USER),
            true => Ok(Some(GuardPlace::Bucket(url.to_owned()))),
        },
        Some(folder) if folder.is_empty() || folder.contains("://") => {
            refused("the path of a folder, s3://bucket/prefix or off is expected")
        }
        Some(folder) => Ok(Some(GuardPlace::Folder(PathBuf::from(folder)))),
    }
}

/// What is set for nothing is refused: it looks like a set-up that isn't.
fn refuse_idle(settings: &[(&'static str, bool)], of: &str) -> Result<(), ConfigError> {
    match settings.iter().find(|(_, is_set)| *is_set) {
        Some((name, _)) => Err(refuse(name, format!("has no effect without {of}"))),
        None => Ok(()),
    }
}

/// Why a URL of SQS or S3 is refused, which is shown elsewhere and must hold no secret.
const HAS_USER: &str =
    "holds a user or a password; credentials come from where AWS's own tools take them";

fn queue(raw: &Raw) -> Result<QueueUrl, ConfigError> {
    if !raw.queue_url.as_deref().is_some_and(is_web) {
        let idle = [("AUDIT_SQS_ENDPOINT", raw.sqs_endpoint.is_some())];
        refuse_idle(&idle, "an SQS queue in AUDIT_QUEUE_URL")?;
    }
    match raw.queue_url.as_deref() {
        None | Some("store:") => Ok(QueueUrl::Store),
        Some("memory:") => Ok(QueueUrl::Memory),
        Some(url) if !is_web(url) => Err(refuse(
            "AUDIT_QUEUE_URL",
            "store:, memory: or the http(s) URL of an SQS queue is expected",
        )),
        Some(_) if !cfg!(feature = "sqs") => Err(refuse(
            "AUDIT_QUEUE_URL",
            "this build has no SQS: build it with --features sqs",
        )),
        Some(url) if url.contains('@') => Err(refuse("AUDIT_QUEUE_URL", HAS_USER)),
        Some(_)
            if raw
                .sqs_endpoint
                .as_ref()
                .is_some_and(|url| url.contains('@')) =>
        {
            Err(refuse("AUDIT_SQS_ENDPOINT", HAS_USER))
        }
        Some(url) => Ok(QueueUrl::Sqs {
            url: url.to_owned(),
            endpoint: raw.sqs_endpoint.clone(),
        }),
    }
}

fn search(raw: &Raw) -> Result<SearchUrl, ConfigError> {
    if !raw
        .search_url
        .as_ref()
        .is_some_and(|url| is_web(url.reveal()))
    {
        let idle = [
            ("AUDIT_SEARCH_PREFIX", raw.search_prefix.is_some()),
            ("AUDIT_SEARCH_LAYOUT", raw.search_layout.is_some()),
        ];
        refuse_idle(&idle, "OpenSearch in AUDIT_SEARCH_URL")?;
    }
    let per_tenant = match raw.search_layout.as_deref() {
        None | Some("shared") => false,
        Some("per-tenant") => true,
        Some(_) => {
            return Err(refuse(
                "AUDIT_SEARCH_LAYOUT",
                "shared or per-tenant is expected",
            ));
        }
    };
    match raw.search_url.as_ref().map(Secret::reveal) {
        None | Some("store:") => Ok(SearchUrl::Store),
        Some(url) if !is_web(url) => Err(refuse(
            "AUDIT_SEARCH_URL",
            "store: or the http(s) URL of OpenSearch is expected",
        )),
        Some(_) if !cfg!(feature = "opensearch") => Err(refuse(
            "AUDIT_SEARCH_URL",
            "this build has no OpenSearch: build it with --features opensearch",
        )),
        Some(url) => Ok(SearchUrl::OpenSearch {
            url: Secret::new(url),
            prefix: raw.search_prefix.clone(),
            per_tenant,
        }),
    }
}

fn archive(url: Option<String>) -> Result<Option<String>, ConfigError> {
    let refuse = |detail| refuse("AUDIT_ARCHIVE_URL", detail);
    match url.as_deref() {
        Some(url) if url.contains('@') => Err(refuse(HAS_USER)),
        Some(url) if url.starts_with("s3://") && !cfg!(feature = "s3") => {
            Err(refuse("this build has no S3: build it with --features s3"))
        }
        Some(url) if !url.starts_with("file:///") && !url.starts_with("s3://") => {
            Err(refuse("file:///path or s3://bucket/prefix is expected"))
        }
        _ => Ok(url),
    }
}

fn is_web(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("https://")
}

fn seconds(name: &'static str, value: Option<u64>, default: u64) -> Result<Duration, ConfigError> {
    match value.unwrap_or(default) {
        n @ 1..=3600 => Ok(Duration::from_secs(n)),
        _ => Err(refuse(name, "1 to 3600 seconds are expected")),
    }
}

#[cfg(test)]
mod tests {
    use audit_core::tlog::note::{Cosigner, SigningKey};

    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        Settings::read(None, |name| {
            pairs
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn the_environment_beats_the_file_and_unknown_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("audit.toml");
        std::fs::write(
            &file,
            "bind = \"127.0.0.1:1\"\nrate_limit = \"off\"\nstream_heartbeat = 3\n",
        )
        .unwrap();
        let settings = Settings::read(Some(&file), |name| {
            (name == "AUDIT_BIND").then(|| "127.0.0.1:2".to_owned())
        })
        .unwrap();
        assert_eq!(settings.bind.port(), 2);
        assert_eq!(settings.rate_limit, None);
        assert_eq!(settings.stream_heartbeat, Duration::from_secs(3));
        std::fs::write(&file, "bnid = \"127.0.0.1:1\"\n").unwrap();
        let refused = Settings::read(Some(&file), |_| None)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("bnid"), "{refused}");
    }

    #[test]
    fn every_setting_has_a_variable() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("audit.toml");
        std::fs::write(&file, "nope = 1\n").unwrap();
        let refused = Settings::read(Some(&file), |_| None)
            .unwrap_err()
            .to_string();
        let known: Vec<&str> = refused.split('`').skip(3).step_by(2).collect();
        let variables: Vec<&str> = VARIABLES.iter().map(|(name, ..)| *name).collect();
        assert_eq!(known, variables);
    }

    #[test]
    fn each_witness_is_a_cosigners_key_and_a_url() {
        let key = SigningKey::from_seed("witness.example.com/w1", &[1; 32]).unwrap();
        let log = key.verifying_key().encode();
        let cosigner = Cosigner::from(key).verifying_key().clone();
        let both = format!("{cosigner} https://w.example.com/a/, {cosigner}  http://127.0.0.1:1");
        let settings = with(&[("AUDIT_WITNESSES", &both)]).unwrap();
        let found: Vec<_> = settings
            .witnesses
            .iter()
            .map(|w| (&w.key, &*w.url))
            .collect();
        let expected =
            ["https://w.example.com/a", "http://127.0.0.1:1"].map(|url| (&cosigner, url));
        assert_eq!(found, expected);
        for bad in [
            format!("{log} https://w.example.com"),
            format!("{cosigner}"),
            format!("{cosigner} w.example.com"),
            format!("{cosigner} https://w.example.com https://w.example.com"),
            format!("{}x https://w.example.com", cosigner.encode()),
        ] {
            let refused = with(&[("AUDIT_WITNESSES", &bad)]).unwrap_err().to_string();
            assert!(refused.contains("AUDIT_WITNESSES"), "{refused}");
            assert!(refused.contains("witness.example.com/w1"), "{refused}");
        }
    }

    #[test]
    fn values_are_checked_and_secrets_are_not_printed() {
        for (name, value) in [
            ("AUDIT_BIND", "8000"),
            ("AUDIT_STORE_URL", "mysql://x"),
            ("AUDIT_STORE_READER_URL", "postgres://reader@host/audit"),
            ("AUDIT_QUEUE_URL", "redis://host"),
            ("AUDIT_SEARCH_URL", "search:9200"),
            ("AUDIT_SEARCH_LAYOUT", "own"),
            ("AUDIT_SEARCH_PREFIX", "audit"),
            ("AUDIT_SQS_ENDPOINT", "http://127.0.0.1:9324"),
            ("AUDIT_WITNESSES", "https://witness.example.com"),
            (
                "AUDIT_WITNESSES",
                "witness.example.com+00000000+AAAA https://w",
            ),
            ("AUDIT_DEPLOYMENT_EVERY", "0"),
            ("AUDIT_ARCHIVE_URL", "/var/archive"),
            ("AUDIT_ARCHIVE_URL", "s3://key:secret@bucket"),
            ("AUDIT_TLOG_GUARD", "s3://key:secret@bucket"),
            ("AUDIT_TLOG_GUARD", "https://bucket/guard"),
            ("AUDIT_ROLES", "cook"),
            ("AUDIT_RATE_LIMIT", "0"),
            ("AUDIT_TRUSTED_PROXIES", "10.0.0.0/33"),
            ("AUDIT_STREAM_HEARTBEAT", "0"),
        ] {
            let refused = with(&[(name, value)]).unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
        let settings =
            with(&[("AUDIT_JWT_SECRET", "hunter2hunter2hunter2hunter2hunter2")]).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
        let store = with(&[("AUDIT_STORE_URL", "postgres://audit:hunter2@host/audit")]).unwrap();
        assert!(!format!("{store:?}").contains("hunter2"));
        assert!(settings.names_token_keys());
        assert_eq!(settings.bind, "127.0.0.1:8000".parse().unwrap());
    }
}
