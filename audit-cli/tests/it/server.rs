//! A server in this process, on a folder of its own.

use std::path::Path;
use std::process::Output;
use std::thread::JoinHandle;

use assert_cmd::Command;
use audit_core::{Clock as _, Role, SystemClock, TenantId, Timestamp};
use audit_server::auth::jwt::{self, Demands, Verifiers};
use audit_server::config::Settings;
use audit_server::first_start;
use audit_server::server::Bound;
use audit_server::signing;
use audit_server::storage::Storage;
use tempfile::TempDir;
use tokio::sync::oneshot;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// The settings of a server whose data is in this folder.
pub(crate) fn settings(data: &Path) -> Settings {
    settings_with(data, None)
}

/// With one more setting, named as an environment variable.
fn settings_with(data: &Path, more: Option<(&str, String)>) -> Settings {
    let store = format!("sqlite://{}/audit.db", data.display());
    Settings::read(None, |name| match (name, &more) {
        ("AUDIT_BIND", _) => Some("127.0.0.1:0".into()),
        ("AUDIT_STORE_URL", _) => Some(store.clone()),
        // Within an hour no test would see a head in the deployment log.
        ("AUDIT_DEPLOYMENT_EVERY", _) => Some("1".into()),
        (_, Some((other, value))) if name == *other => Some(value.clone()),
        _ => None,
    })
    .unwrap()
}

/// A running server; it ends when it is dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) tenant: TenantId,
    /// An empty folder for the command to run in.
    pub(crate) folder: TempDir,
    /// Its data, where nobody else keeps it.
    _data: Option<TempDir>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let data = TempDir::new().unwrap();
        let mut server = Self::on(data.path());
        server._data = Some(data);
        server
    }

    /// One that archives what it prunes, in the folder `archive` of the command's.
    pub(crate) fn archiving() -> Self {
        let (data, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let archive = format!("file://{}/archive", folder.path().display());
        let more = Some(("AUDIT_ARCHIVE_URL", archive));
        let mut server = Self::with(settings_with(data.path(), more));
        server._data = Some(data);
        server.folder = folder;
        server
    }

    /// One whose data is in this folder.
    pub(crate) fn on(data: &Path) -> Self {
        Self::with(settings(data))
    }

    /// One whose data is in this folder, and whose deployment log a witness cosigns.
    pub(crate) fn witnessed(data: &Path, witness: &str) -> Self {
        let more = Some(("AUDIT_WITNESSES", witness.to_owned()));
        Self::with(settings_with(data, more))
    }

    fn with(settings: Settings) -> Self {
        let (started, address) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let storage = Storage::open(&settings, signing::signer(&settings).unwrap())
                    .await
                    .unwrap();
                let tenant = first_start::tenant(&storage.log).await.unwrap();
                let tokens = Verifiers::none()
                    .secret(SECRET, &Demands::default(), true)
                    .unwrap();
                let bound = Bound::bind(settings, storage, tokens).await.unwrap();
                started.send((bound.address(), tenant)).unwrap();
                bound
                    .serve(async move { drop(stopped.await) })
                    .await
                    .unwrap();
            });
        });
        let (address, tenant) = address.recv().unwrap();
        Self {
            url: format!("http://{address}"),
            tenant,
            folder: TempDir::new().unwrap(),
            _data: None,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// A token of the server's, for an hour.
    pub(crate) fn token(&self, role: Role) -> String {
        let until =
            Timestamp::saturating_from_micros(SystemClock.now().as_micros() + 3_600_000_000);
        jwt::sign(
            SECRET,
            "test",
            Some(self.tenant),
            role,
            &Demands::default(),
            until,
        )
        .unwrap()
    }

    /// The command, as an administrator of this server.
    pub(crate) fn audit(&self, arguments: &[&str]) -> Command {
        let mut command = audit(arguments);
        command
            .current_dir(&self.folder)
            .env("AUDIT_URL", &self.url)
            .env("AUDIT_TOKEN", self.token(Role::Admin));
        command
    }

    /// Runs the command and demands that it succeeds.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.audit(arguments)
            .assert()
            .success()
            .get_output()
            .clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                std::thread::panicking() || ended.is_ok(),
                "the server failed"
            );
        }
    }
}

/// The command, with nothing from the environment of the tests.
pub(crate) fn audit(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_audit"));
    for name in ["AUDIT_URL", "AUDIT_TOKEN", "AUDIT_TENANT"] {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}
