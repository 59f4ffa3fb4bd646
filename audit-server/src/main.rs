//! `audit-server`: serve the audit log over HTTP, mint local tokens, print the OpenAPI document.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use audit_core::{Clock as _, Role, SystemClock, TenantId, Timestamp};
use audit_server::auth::jwt::{self, Demands, Verifiers};
use audit_server::config::{self, LogFormat, Settings, StoreUrl};
use audit_server::docs;
use audit_server::first_start::{self, LocalToken};
use audit_server::recovery;
use audit_server::server::{Bound, Listening};
use audit_server::signing;
use audit_server::storage::{self, Storage};
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Multi-tenant audit logging over HTTP.
#[derive(Debug, Parser)]
#[command(version, about, after_help = config::help())]
struct Cli {
    /// A TOML file with settings; environment variables AUDIT_… override it.
    #[arg(long, global = true, env = "AUDIT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API (the default).
    Serve,
    /// Print a token that is signed with AUDIT_JWT_SECRET or the data folder's secret.
    Token(TokenArgs),
    /// Print the OpenAPI document.
    Openapi {
        /// As YAML.
        #[arg(long)]
        yaml: bool,
    },
    /// Bring the store's schema up to date, and make the queues that are missing. Safe to repeat, and
    /// for several processes at once.
    Migrate {
        /// Print the SQL that makes a login for each purpose, with which PostgreSQL itself keeps
        /// readers from writing and writers from changing, and change nothing.
        #[arg(long)]
        print_logins: bool,
    },
    /// Take out of files, tables and segments what was erased or pruned, of which engines keep bytes.
    ///
    /// A server on SQLite has to be stopped for it. On PostgreSQL those who read or append wait for a
    /// table while it is written anew. Prints where it doesn't reach; the operations guide says more.
    Vacuum,
    /// The keys that sign the logs' heads, and what to do after a restore.
    Tlog {
        #[command(subcommand)]
        command: TlogCommand,
    },
}

#[derive(Debug, Subcommand)]
enum TlogCommand {
    /// Print a new signing key, for AUDIT_TLOG_KEY.
    NewKey,
    /// Replace the data folder's signing key.
    ///
    /// The next start writes an entry that says so into every log, and signs the first checkpoint over it
    /// with both keys. The old key stays in the folder until you remove it.
    Rotate,
    /// Let the logs go on that the guard stops, after an old copy of the database was restored.
    ///
    /// Erases again what was erased since, as far as the guard knows it, and begins a new epoch in each
    /// such log, and of the deployment log. Prints what was lost. No server may sign meanwhile; it is safe
    /// to repeat.
    Recover {
        /// Only this tenant's log, and not the deployment log.
        #[arg(long)]
        tenant: Option<TenantId>,
        /// Print what would be done, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// The tenant. Without it, only an admin's token is useful.
    #[arg(long)]
    tenant: Option<TenantId>,
    /// writer, auditor, user, tenant_admin or admin.
    #[arg(long, default_value = "user")]
    role: Role,
    /// For how long it is valid: 90s, 15m, 24h, 30d.
    #[arg(long, default_value = "24h", value_parser = lifetime)]
    ttl: i64,
    /// Whom it is for.
    #[arg(long, default_value = first_start::SUBJECT)]
    subject: String,
}

/// A lifetime in microseconds.
fn lifetime(text: &str) -> Result<i64, String> {
    let bad = || "a number and one of s, m, h, d is expected, at most 3650d".to_owned();
    let unit = text.chars().last().ok_or_else(bad)?;
    let seconds: i64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let count: i64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    let total = count
        .checked_mul(seconds)
        .filter(|n| (1..=3650 * 86_400).contains(n));
    Ok(total.ok_or_else(bad)? * 1_000_000)
}

/// One line for whoever started the program, and the exit code.
struct Exit {
    code: u8,
    line: String,
}

impl Exit {
    /// The settings can't be used.
    fn usage(cause: impl std::fmt::Display) -> Self {
        Self {
            code: 2,
            line: cause.to_string(),
        }
    }

    /// It did not work.
    fn failure(cause: impl std::fmt::Display) -> Self {
        Self {
            code: 1,
            line: cause.to_string(),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Exit::failure)
        .and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            // With stderr gone there is nobody left to tell.
            writeln!(
                std::io::stderr(),
                "audit-server: {}",
                exit.line.replace('\n', " ")
            )
            .ok();
            ExitCode::from(exit.code)
        }
    }
}

async fn run(cli: Cli) -> Result<(), Exit> {
    match cli.command {
        Some(Command::Openapi { yaml }) => print(&if yaml { docs::yaml() } else { docs::json() }),
        Some(Command::Token(args)) => token(&load(cli.config.as_deref())?, &args),
        Some(Command::Migrate { print_logins: true }) => {
            print(&format!("{}\n", storage::login_statements().trim_end()))
        }
        Some(Command::Migrate { .. }) => {
            let settings = load(cli.config.as_deref())?;
            make_data_folder(&settings)?;
            storage::migrate(&settings)
                .await
                .map_err(|error| Exit::failure(with_cause(&error)))?;
            print("store and queue are up to date\n")
        }
        Some(Command::Tlog { command }) => {
            let done = match command {
                TlogCommand::NewKey => signing::new_key().map_err(Exit::failure)?,
                TlogCommand::Rotate => {
                    let path =
                        signing::rotate(&load(cli.config.as_deref())?).map_err(Exit::failure)?;
                    format!("{} is new: restart the server", path.display())
                }
                TlogCommand::Recover { tenant, dry_run } => {
                    recover(&load(cli.config.as_deref())?, tenant, dry_run).await?
                }
            };
            print(&format!("{done}\n"))
        }
        Some(Command::Vacuum) => {
            let settings = load(cli.config.as_deref())?;
            start_log(&settings)?;
            let left = storage::vacuum(&settings)
                .await
                .map_err(|error| Exit::failure(with_cause(&error)))?;
            let mut told = "the files hold nothing that was erased or pruned".to_owned();
            if !left.is_empty() {
                told.push_str(", but where this doesn't reach:");
            }
            for place in left {
                told.push_str("\n- ");
                told.push_str(&place);
            }
            print(&format!("{told}\n"))
        }
        Some(Command::Serve) | None => serve(load(cli.config.as_deref())?).await,
    }
}

fn load(file: Option<&Path>) -> Result<Settings, Exit> {
    Settings::load(file).map_err(Exit::usage)
}

fn print(text: &str) -> Result<(), Exit> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has had enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(Exit::failure),
    }
}

fn demands(settings: &Settings) -> Demands {
    Demands {
        issuer: settings.jwt_issuer.clone(),
        audience: settings.jwt_audience.clone(),
    }
}

/// The shared secret of the settings, or the data folder's, which is made when there is none.
fn shared_secret(settings: &Settings) -> Result<String, Exit> {
    if let Some(secret) = &settings.jwt_secret {
        return Ok(secret.reveal().to_owned());
    }
    let fresh = SystemClock.secret();
    match settings.store.folder() {
        Some(folder) => first_start::secret(folder, fresh).map_err(Exit::failure),
        None => Err(Exit::usage(
            "a store in memory has no folder for a secret: set AUDIT_JWT_SECRET",
        )),
    }
}

fn token(settings: &Settings, args: &TokenArgs) -> Result<(), Exit> {
    if settings.jwt_secret.is_none() {
        if settings.names_token_keys() {
            return Err(Exit::usage(
                "tokens are signed elsewhere: AUDIT_JWT_SECRET is not set",
            ));
        }
        if let Some(folder) = settings.store.folder()
            && !folder.join(first_start::SECRET_FILE).exists()
        {
            return Err(Exit::usage(format!(
                "{} has no secret of a server: start one there first, or set AUDIT_JWT_SECRET",
                std::path::absolute(folder)
                    .unwrap_or_else(|_| folder.to_owned())
                    .display()
            )));
        }
    }
    if args.tenant.is_none() && args.role != Role::Admin {
        return Err(Exit::usage(
            "only an admin's token works without a tenant: name one with --tenant",
        ));
    }
    let secret = shared_secret(settings)?;
    // Checks its length.
    Verifiers::none()
        .secret(secret.as_bytes(), &Demands::default(), false)
        .map_err(Exit::usage)?;
    let until = Timestamp::saturating_from_micros(SystemClock.now().as_micros() + args.ttl);
    let token = jwt::sign(
        secret.as_bytes(),
        &args.subject,
        args.tenant,
        args.role,
        &demands(settings),
        until,
    )
    .map_err(Exit::failure)?;
    print(&format!("{token}\n"))
}

fn make_data_folder(settings: &Settings) -> Result<(), Exit> {
    match (&settings.store, settings.store.folder()) {
        // With tokens that are signed elsewhere, a database leaves nothing to be kept here.
        (StoreUrl::Postgres(_), _) if settings.names_token_keys() => Ok(()),
        (_, Some(folder)) => first_start::make_folder(folder).map_err(Exit::failure),
        (_, None) => Ok(()),
    }
}

fn with_cause(error: &audit_core::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

async fn open(settings: &Settings) -> Result<Storage, Exit> {
    // Before anything is made.
    signing::check(settings).map_err(Exit::usage)?;
    make_data_folder(settings)?;
    let signer = signing::signer(settings).map_err(Exit::failure)?;
    Storage::open(settings, signer).await.map_err(|error| {
        let setting = "AUDIT_STORE_URL names another";
        Exit::failure(format!(
            "the store can't be opened: {}; {setting}",
            with_cause(&error)
        ))
    })
}

/// Lets the logs go on that the guard stops. Returns the last line.
async fn recover(
    settings: &Settings,
    tenant: Option<TenantId>,
    dry_run: bool,
) -> Result<String, Exit> {
    start_log(settings)?;
    let storage = open(settings).await?;
    let mut printed = Ok(());
    let outcome = recovery::recover(&storage, tenant, dry_run, |line| {
        // What is done is done, whether or not somebody reads of it.
        let line = print(&format!("{line}\n"));
        printed = std::mem::replace(&mut printed, Ok(())).and(line);
    })
    .await
    .map_err(|error| Exit::failure(with_cause(&error)))?;
    printed?;
    match (outcome.failed, outcome.logs) {
        (0, 0) => Ok("the guard stops no log".to_owned()),
        (0, logs) if dry_run => Ok(format!("{logs} logs would go on")),
        (0, logs) => Ok(format!("{logs} logs go on")),
        (failed, logs) => Err(Exit::failure(format!(
            "{failed} logs don't go on, {logs} do: the lines above say why"
        ))),
    }
}

/// The keys that tokens may be signed with.
fn verifiers(settings: &Settings) -> Result<Verifiers, Exit> {
    let demands = demands(settings);
    let mut verifiers = Verifiers::none();
    if let Some(secret) = &settings.jwt_secret {
        let across = settings.jwt_across_tenants.unwrap_or(true);
        verifiers = verifiers
            .secret(secret.reveal().as_bytes(), &demands, across)
            .map_err(|e| Exit::usage(format!("AUDIT_JWT_SECRET: {e}")))?;
    }
    let across = settings.jwt_across_tenants.unwrap_or(false);
    if let Some(key) = &settings.jwt_public_key {
        let named = |e: &dyn std::fmt::Display| Exit::usage(format!("AUDIT_JWT_PUBLIC_KEY: {e}"));
        let pem = if key.contains("-----BEGIN") {
            key.clone().into_bytes()
        } else {
            std::fs::read(key).map_err(|e| named(&e))?
        };
        verifiers = verifiers
            .public_key(&pem, &demands, across)
            .map_err(|e| named(&e))?;
    }
    if let Some(url) = &settings.jwks_url {
        verifiers = verifiers
            .key_set(url.clone(), &demands, across)
            .map_err(|e| Exit::usage(format!("AUDIT_JWKS_URL: {e}")))?;
    }
    Ok(verifiers)
}

async fn serve(settings: Settings) -> Result<(), Exit> {
    start_log(&settings)?;
    for name in config::unknown_variables() {
        tracing::warn!(name, "no setting has this name");
    }
    let mut tokens = verifiers(&settings)?;
    let local = tokens.is_empty();
    if local && !settings.bind.ip().is_loopback() {
        return Err(Exit::usage(format!(
            "{} is not a loopback address: set AUDIT_JWT_SECRET, AUDIT_JWT_PUBLIC_KEY or AUDIT_JWKS_URL",
            settings.bind
        )));
    }
    if local && settings.store == StoreUrl::Memory {
        return Err(Exit::usage(
            "a store in memory has no folder for a secret: set AUDIT_JWT_SECRET",
        ));
    }
    // Before anything is made: a server that can't have its address leaves no data folder behind.
    let listening = Listening::on(&settings).await.map_err(Exit::failure)?;
    let storage = open(&settings).await?;
    let mut welcome = None;
    if let (true, Some(folder)) = (local, settings.store.folder()) {
        let secret = shared_secret(&settings)?;
        let demands = demands(&settings);
        let across = settings.jwt_across_tenants.unwrap_or(true);
        tokens = tokens
            .secret(secret.as_bytes(), &demands, across)
            .map_err(Exit::failure)?;
        let tenant = first_start::tenant(&storage.log)
            .await
            .map_err(Exit::failure)?;
        let now = SystemClock.now();
        let token = first_start::token(folder, &secret, &demands, tenant, now)
            .await
            .map_err(Exit::failure)?;
        welcome = Some((folder.to_owned(), token));
    }
    // Listened for before anything is announced, so that whoever reads it may stop the server.
    let stop = stop_signal()?;
    let serves_api = settings.roles.api;
    let bound = Bound::new(listening, settings, storage, tokens);
    let url = format!("http://{}", bound.address());
    let lines = match &welcome {
        Some((folder, token)) => {
            let terminal = std::io::stdout().is_terminal();
            greeting(&url, folder, token, SystemClock.now(), terminal)
        }
        None if serves_api => format!("docs    {url}/docs\n"),
        None => format!("health  {url}/health/ready\n"),
    };
    print(&lines)?;
    bound.serve(stop).await.map_err(Exit::failure)
}

/// What a newcomer needs: where the data is, the docs, and two commands that work as they stand.
fn greeting(
    url: &str,
    folder: &Path,
    token: &LocalToken,
    now: Timestamp,
    terminal: bool,
) -> String {
    let shown = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let file = folder.join(first_start::TOKEN_FILE);
    // A token is printed to a terminal only: elsewhere it would end in some log.
    let header = if terminal {
        format!("-H 'Authorization: Bearer {}'", token.text)
    } else {
        let file = file.display().to_string().replace('\'', "'\\''");
        format!("-H \"Authorization: Bearer $(cat '{file}')\"")
    };
    format!(
        "data    {data}
docs    {url}/docs
token   {token_file} ({validity})

Record an event:

curl -sS {url}/api/v1/logs {header} -H 'Content-Type: application/json' -d '{event}'

Read it back:

curl -sS '{url}/api/v1/logs?user_id=ann' {header}

",
        data = shown.display(),
        token_file = file.display(),
        validity = token.validity(now),
        event = r#"{"action_type":"UPDATE","action":"invoice.approve","resource_type":"invoice","resource_id":"inv-1","user_id":"ann"}"#,
    )
}

fn start_log(settings: &Settings) -> Result<(), Exit> {
    let filter =
        EnvFilter::try_new(&settings.log).map_err(|e| Exit::usage(format!("AUDIT_LOG: {e}")))?;
    let terminal = std::io::stderr().is_terminal();
    let format = settings.log_format.unwrap_or(if terminal {
        LogFormat::Compact
    } else {
        LogFormat::Json
    });
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let outcome = match format {
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
        LogFormat::Compact => subscriber.compact().with_ansi(terminal).try_init(),
    };
    outcome.map_err(Exit::failure)
}

/// Ready when the process is told to stop.
#[cfg(unix)]
fn stop_signal() -> Result<impl Future<Output = ()> + Send, Exit> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Exit::failure)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Exit::failure)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Ready when the process is told to stop.
#[cfg(not(unix))]
fn stop_signal() -> Result<impl Future<Output = ()> + Send, Exit> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
