//! The server as a child process, to be killed.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A running `audit-server`, killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    pub(crate) token: String,
    folder: PathBuf,
    engines: Vec<(&'static str, String)>,
    port: u16,
}

/// `whole` with `dev/test --full`, else about a tenth of it.
pub(crate) fn sized(whole: usize) -> u64 {
    audit_conformance::sized(whole) as u64
}

/// Waits until writers have made so much more progress.
pub(crate) async fn progressed(progress: &AtomicU64, by: u64) {
    let target = progress.load(Ordering::Relaxed) + by;
    let deadline = Instant::now() + Duration::from_secs(60);
    while progress.load(Ordering::Relaxed) < target {
        assert!(
            Instant::now() < deadline,
            "the writers stand still before {target}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The environment of a server in `folder`, also for a command that starts it through another one.
pub(crate) fn settings(command: &mut Command, folder: &Path, port: u16) {
    command
        .env("AUDIT_BIND", format!("127.0.0.1:{port}"))
        .env(
            "AUDIT_STORE_URL",
            format!("sqlite://{}/audit.db", folder.display()),
        )
        // Where a server on other engines keeps its token.
        .current_dir(folder)
        .env("AUDIT_RATE_LIMIT", "off")
        .env("AUDIT_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
}

pub(crate) fn command(folder: &Path, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_audit-server"));
    settings(&mut command, folder, port);
    command.arg("serve");
    command
}

async fn ready(child: &mut Child, url: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let url = format!("{url}/health/ready");
    while !reqwest::get(&url)
        .await
        .is_ok_and(|answer| answer.status().is_success())
    {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the server ended with {status}");
        }
        assert!(
            Instant::now() < deadline,
            "the server is not ready after 60 s"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Server {
    /// Starts a server on the data in `folder` and waits until it is ready.
    pub(crate) async fn start(folder: &Path) -> Self {
        let port = free_port();
        Self::wait(command(folder, port).spawn().unwrap(), folder, port).await
    }

    /// Starts a server on these engines, as a stack's settings name them, with its own files in
    /// `folder`.
    pub(crate) async fn start_on(folder: &Path, engines: Vec<(&'static str, String)>) -> Self {
        let port = free_port();
        let mut child = command(folder, port)
            .envs(engines.iter().cloned())
            .spawn()
            .unwrap();
        let url = format!("http://127.0.0.1:{port}");
        ready(&mut child, &url).await;
        let elsewhere = engines.iter().any(|(name, _)| *name == "AUDIT_STORE_URL");
        let token = match elsewhere {
            false => folder.join("token"),
            true => folder.join("audit-data/token"),
        };
        let token = std::fs::read_to_string(token).unwrap().trim().to_owned();
        Self {
            child,
            url,
            token,
            folder: folder.to_owned(),
            engines,
            port,
        }
    }

    /// Takes over a child that was started with [`settings`], and waits until it is ready.
    pub(crate) async fn wait(mut child: Child, folder: &Path, port: u16) -> Self {
        let url = format!("http://127.0.0.1:{port}");
        ready(&mut child, &url).await;
        let token = std::fs::read_to_string(folder.join("token"))
            .unwrap()
            .trim()
            .to_owned();
        Self {
            child,
            url,
            token,
            folder: folder.to_owned(),
            engines: Vec::new(),
            port,
        }
    }

    /// `kill -9`, then a new process on the same port and data.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.kill_and_restart_with(&[]).await;
    }

    /// As [`kill_and_restart`](Self::kill_and_restart), with these settings besides its own.
    pub(crate) async fn kill_and_restart_with(&mut self, settings: &[(&str, &str)]) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = command(&self.folder, self.port)
            .envs(self.engines.iter().cloned())
            .envs(settings.iter().copied())
            .spawn()
            .unwrap();
        ready(&mut self.child, &self.url).await;
    }

    /// Ends it by SIGTERM, and demands that it ends well.
    pub(crate) fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the server ended with {status}");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A client with the server's token.
    pub(crate) fn client(&self) -> reqwest::Client {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert(
            "authorization",
            format!("Bearer {}", self.token).parse().unwrap(),
        );
        reqwest::Client::builder()
            .default_headers(headers)
            .build()
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already ended in a test that stopped it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Recomputes every leaf and root of a stopped server's file with a program that shares no code with
/// it.
pub(crate) fn recompute_root(folder: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/recompute_root.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(folder.join("audit.db"))
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{report}");
    assert!(
        output.status.success(),
        "{report}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
