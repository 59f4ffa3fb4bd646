//! A server of a test's own, for what the shared one must not go through: it is killed, its clock is
//! set, and each of its files is read.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use audit_store_postgres::{PostgresOptions, migrate};
use sqlx_core::connection::ConnectOptions as _;
use sqlx_core::executor::Executor as _;
use sqlx_postgres::{PgConnectOptions, PgConnection};
use tempfile::TempDir;

use crate::fixture::eventually;

pub(crate) struct Engine {
    folder: TempDir,
    port: u16,
    server: Option<Child>,
}

impl Engine {
    /// A new cluster with a migrated log, on a port of its own. Its clock follows
    /// [`set_clock_back`](Self::set_clock_back).
    pub(crate) async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .unwrap()
            .port();
        let mut this = Self {
            folder: tempfile::Builder::new()
                .prefix("audit-pg")
                .tempdir()
                .unwrap(),
            port,
            server: None,
        };
        this.set_clock_back(0);
        if is_root() {
            run(Command::new("chown")
                .args(["-R", "postgres"])
                .arg(this.folder.path()));
        }
        run(as_owner(&bin().join("initdb"))
            .args([
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "-D",
            ])
            .arg(this.data()));
        this.launch().await;
        let mut admin = this.admin().connect().await.unwrap();
        for sql in [
            "CREATE ROLE audit_it LOGIN CREATEROLE",
            "CREATE DATABASE log OWNER audit_it",
        ] {
            admin.execute(sql).await.unwrap();
        }
        migrate(&this.options()).await.unwrap();
        this
    }

    pub(crate) fn options(&self) -> PostgresOptions {
        let url = format!("postgres://audit_it@127.0.0.1:{}/log", self.port);
        PostgresOptions::new(url).connections(4, 4, 1)
    }

    /// Sets its clock back by so many seconds against the machine's.
    pub(crate) fn set_clock_back(&self, seconds: u32) {
        // Moved into place, so that no process reads half of it.
        let new = self.folder.path().join("clock.new");
        fs::write(&new, format!("-{seconds}\n")).unwrap();
        fs::rename(new, self.clock()).unwrap();
    }

    /// Ends it as `pg_ctl stop -m immediate` does: no transaction comes to its end, nothing is written
    /// out; then starts it again.
    pub(crate) async fn restart_immediately(&mut self) {
        self.stop("QUIT");
        self.launch().await;
    }

    fn stop(&mut self, signal: &str) {
        if let Some(mut server) = self.server.take() {
            run(Command::new("kill").args(["-s", signal, &server.id().to_string()]));
            server.wait().unwrap();
        }
    }

    async fn launch(&mut self) {
        let library = libfaketime();
        let mut command = as_owner(Path::new("env"));
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        command
            .arg(format!("LD_PRELOAD={}", library.display()))
            .arg(format!(
                "FAKETIME_TIMESTAMP_FILE={}",
                self.clock().display()
            ))
            .args(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"])
            .arg(bin().join("postgres"))
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k", ""])
            .stdout(Stdio::null())
            .stderr(log);
        self.server = Some(command.spawn().unwrap());
        let admin = self.admin();
        eventually("the server starts", || async {
            admin.connect().await.is_ok()
        })
        .await;
    }

    fn admin(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("postgres")
            .database("postgres")
    }

    /// A connection to the log's database as the superuser.
    pub(crate) async fn connect(&self) -> PgConnection {
        self.admin().database("log").connect().await.unwrap()
    }

    /// What `pg_dump` makes of the log's database.
    pub(crate) fn dump(&self) -> Vec<u8> {
        let port = self.port.to_string();
        let mut command = Command::new(bin().join("pg_dump"));
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "log"]);
        let dump = command.output().unwrap();
        let told = String::from_utf8_lossy(&dump.stderr);
        assert!(dump.status.success(), "{told}");
        dump.stdout
    }

    /// The cluster's folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn clock(&self) -> PathBuf {
        self.folder.path().join("clock")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop("QUIT");
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A command as somebody who may own a cluster, which root may not.
fn as_owner(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(program);
    command.current_dir("/");
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
}

/// The folder of PostgreSQL's programs: version 15 where it is, otherwise the newest.
fn bin() -> PathBuf {
    let version = |folder: &Path| {
        let name = folder.file_name()?.to_str()?;
        name.parse::<u32>().ok()
    };
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    versions
        .flatten()
        .map(|version| version.path())
        .filter(|folder| folder.join("bin/initdb").exists())
        .max_by_key(|folder| version(folder).map(|version| (version == 15, version)))
        .map(|folder| folder.join("bin"))
        .expect("no PostgreSQL under /usr/lib/postgresql: run `dev/services up`")
}

fn libfaketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten();
    folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketime.so.1"))
        .find(|library| library.exists())
        .expect("no libfaketime under /usr/lib: run `dev/services up`")
}
