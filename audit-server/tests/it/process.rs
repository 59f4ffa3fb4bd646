//! The program: what it prints, how it starts and ends.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use audit_conformance::person::Person;
use audit_core::tlog::note::{SigningKey, VerifyingKey};
use audit_core::tlog::verify::{Options, verify_lines};

fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_audit-server"));
    command
        .current_dir(folder)
        .env_clear()
        .env("AUDIT_BIND", "127.0.0.1:0");
    command
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// The files in a folder and its subfolders.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// A server that was started, and what it printed.
struct Started {
    child: Child,
    lines: Vec<String>,
}

impl Started {
    fn new(folder: &Path) -> Self {
        let mut child = program(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = Vec::new();
        for line in BufReader::new(child.stdout.as_mut().unwrap()).lines() {
            let line = line.unwrap();
            let last = line.starts_with("curl") && line.contains("user_id=ann'");
            lines.push(line);
            if last {
                break;
            }
        }
        Self { child, lines }
    }

    fn commands(&self) -> Vec<&String> {
        self.lines
            .iter()
            .filter(|l| l.starts_with("curl"))
            .collect()
    }

    /// Ends it as an init system does.
    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn the_printed_commands_work_and_a_second_start_keeps_data_and_token() {
    let folder = tempfile::tempdir().unwrap();
    let started = Started::new(folder.path());
    let token = std::fs::read_to_string(folder.path().join("audit-data/token")).unwrap();
    assert!(
        !started.lines.iter().any(|l| l.contains(token.trim())),
        "a token is for a terminal only"
    );
    for command in started.commands() {
        let output = run(Command::new("sh")
            .args(["-c", command])
            .current_dir(folder.path()));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("\"resource_id\":\"inv-1\""),
            "{command}: {text}"
        );
    }
    let told = |started: &Started| {
        let line = started.lines.iter().find(|l| l.starts_with("token"));
        line.unwrap().clone()
    };
    assert!(told(&started).ends_with("(24 h)"), "{}", told(&started));
    started.stop();
    let again = Started::new(folder.path());
    let kept = told(&again);
    assert!(
        kept.contains("(kept, ") && kept.ends_with(" left)"),
        "{kept}"
    );
    let kept = std::fs::read_to_string(folder.path().join("audit-data/token")).unwrap();
    assert_eq!(token, kept);
    let read = again.commands()[1].clone();
    let output = run(Command::new("sh")
        .args(["-c", &read])
        .current_dir(folder.path()));
    assert!(String::from_utf8(output.stdout).unwrap().contains("inv-1"));
    again.stop();
}

/// With the quotes that some tools keep.
const SPOILT_KEY: &str = "\"PRIVATE+KEY+audit+00000000+c2VjcmV0\"";

#[test]
fn what_prevents_a_start_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    std::fs::write(folder.path().join("file"), "").unwrap();
    std::fs::write(folder.path().join("bad.toml"), "bnid = \"x\"\n").unwrap();
    let unsigned = "store_url = \"postgres://audit@127.0.0.1:1/audit\"\n\
        jwt_secret = \"0123456789abcdef0123456789abcdef\"\narchive_url = \"file:///nowhere\"\n";
    std::fs::write(folder.path().join("unsigned.toml"), unsigned).unwrap();
    let key = crate::service::tlog_key().encode();
    let unguarded = format!(
        "store_url = \"postgres://audit@127.0.0.1:1/audit\"\n\
         jwt_secret = \"0123456789abcdef0123456789abcdef\"\ntlog_key = \"{key}\"\n"
    );
    std::fs::write(folder.path().join("unguarded.toml"), unguarded).unwrap();
    let cases: [(&str, &str, &[&str], i32, &str); 12] = [
        ("AUDIT_BIND", &address, &[], 1, "AUDIT_BIND: "),
        (
            "AUDIT_METRICS_BIND",
            &address,
            &[],
            1,
            "AUDIT_METRICS_BIND: ",
        ),
        ("AUDIT_STORE_URL", "sqlite://file/audit.db", &[], 1, "file"),
        ("AUDIT_BIND", "0.0.0.0:0", &[], 2, "AUDIT_JWT_SECRET"),
        ("AUDIT_JWT_SECRET", "short", &[], 2, "32"),
        ("AUDIT_RATE_LIMIT", "many", &[], 2, "AUDIT_RATE_LIMIT"),
        (
            "AUDIT_TLOG_ORIGIN",
            "https://x",
            &[],
            2,
            "AUDIT_TLOG_ORIGIN",
        ),
        (
            "AUDIT_TLOG_KEY",
            "nowhere",
            &[],
            2,
            "AUDIT_TLOG_KEY: nowhere",
        ),
        (
            "AUDIT_TLOG_KEY",
            SPOILT_KEY,
            &[],
            2,
            "AUDIT_TLOG_KEY: not a",
        ),
        ("AUDIT_LOG", "off", &["--config", "bad.toml"], 2, "bnid"),
        (
            "AUDIT_LOG",
            "off",
            &["--config", "unsigned.toml"],
            2,
            "AUDIT_ARCHIVE_URL: what is archived is signed",
        ),
        (
            "AUDIT_LOG",
            "off",
            &["--config", "unguarded.toml"],
            2,
            "AUDIT_TLOG_GUARD: where servers share a database",
        ),
    ];
    for (name, value, args, code, part) in cases {
        let output = run(program(folder.path())
            .env("AUDIT_LOG", "off")
            .env(name, value)
            .args(args));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}={value}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{name}={value}: {stderr}");
        assert!(stderr.contains(part), "{name}={value}: {stderr}");
        assert!(!stderr.contains("c2VjcmV0"), "a secret is shown: {stderr}");
        let made = folder.path().join("audit-data");
        assert!(!made.exists(), "{name}={value} leaves a data folder");
    }
}

#[test]
fn vacuum_leaves_nothing_of_what_was_erased_and_wants_the_server_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("audit-data");
    let started = Started::new(folder.path());
    let shell = |command: &str| {
        let output = run(Command::new("sh")
            .args(["-c", command])
            .current_dir(folder.path()));
        String::from_utf8(output.stdout).unwrap()
    };
    let person = Person::random();
    let record = started.commands()[0].replace("inv-1", person.name());
    let recorded: serde_json::Value = serde_json::from_str(&shell(&record)).unwrap();
    let read = started.commands()[1].clone();
    let at = read.find("?user_id=ann").unwrap();
    let id = recorded["id"].as_str().unwrap();
    let erase = format!(
        "{}/cleanup/{id}' -X DELETE{}",
        &read[..at],
        &read[at + 13..]
    );
    assert!(!person.files_with(&data).unwrap().is_empty());
    assert!(shell(&erase).contains("\"entries\":1"), "{erase}");
    let refused = run(program(folder.path()).env("AUDIT_LOG", "off").arg("vacuum"));
    let line = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), line.lines().count()), (Some(1), 1));
    assert!(line.contains(&started.child.id().to_string()), "{line}");
    started.stop();
    let done = run(program(folder.path()).env("AUDIT_LOG", "off").arg("vacuum"));
    assert!(done.status.success());
    assert!(done.stderr.is_empty());
    let told = String::from_utf8(done.stdout).unwrap();
    assert_eq!(told, "the files hold nothing that was erased or pruned\n");
    assert_eq!(person.files_with(&data).unwrap(), BTreeSet::new());
    let again = Started::new(folder.path());
    let read = again.commands()[1].replace("?user_id=ann", &format!("/{id}"));
    assert!(shell(&read).contains("\"erased\":[\"actor\""), "{read}");
    again.stop();
}

#[test]
fn after_tlog_rotate_the_logs_are_signed_by_another_key_that_the_old_one_leads_to() {
    let folder = tempfile::tempdir().unwrap();
    let told = |args: &[&str]| {
        let output = run(program(folder.path()).env("AUDIT_LOG", "off").args(args));
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    // There is nothing to replace yet.
    let (code, line) = told(&["tlog", "rotate"]);
    assert_eq!((code, line.lines().count()), (Some(1), 1), "{line}");
    assert!(line.contains("no key yet"), "{line}");
    let (code, key) = told(&["tlog", "new-key"]);
    assert_eq!(code, Some(0));
    assert!(SigningKey::parse(key.trim()).is_ok(), "{key}");

    let shell = |command: &str| {
        let output = run(Command::new("sh")
            .args(["-c", command])
            .current_dir(folder.path()));
        String::from_utf8(output.stdout).unwrap()
    };
    // What a route answers, once it holds.
    let get = |started: &Started, route: &str, holds: &dyn Fn(&str) -> bool| {
        let read = &started.commands()[1];
        let (start, end) = (
            read.find("/logs").unwrap(),
            read.find("?user_id=ann").unwrap(),
        );
        let ask = format!("{}{route}{}", &read[..start], &read[end + 12..]);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = shell(&ask);
            if holds(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "{ask}: {text}");
        }
    };
    let started = Started::new(folder.path());
    let recorded: serde_json::Value = serde_json::from_str(&shell(started.commands()[0])).unwrap();
    let tlog = format!("/tlog/{}", recorded["tenant_id"].as_str().unwrap());
    let checkpoint = format!("{tlog}/checkpoint");
    let signatures = |text: &str| text.matches("\n\u{2014} ").count();
    get(&started, &checkpoint, &|text| signatures(text) == 1);
    let first = get(&started, &format!("{tlog}/key"), &|text| !text.is_empty());
    started.stop();
    for _ in 0..2 {
        assert_eq!(told(&["tlog", "rotate"]).0, Some(0));
    }
    let again = Started::new(folder.path());
    get(&again, &checkpoint, &|text| signatures(text) == 2);
    let second = get(&again, &format!("{tlog}/key"), &|text| !text.is_empty());
    assert_ne!(first, second);
    let export = get(&again, "/logs/export?format=evidence", &|text| {
        text.contains("log.key")
    });
    for vkey in [first, second] {
        let options = Options {
            keys: vec![VerifyingKey::parse(vkey.trim()).unwrap()],
            ..Options::default()
        };
        let report = verify_lines(export.lines(), options);
        assert!(report.is_verified(), "{:#?}", report.findings);
        assert!(report.key_trusted, "{vkey}");
    }
    again.stop();
}

#[test]
fn a_second_server_on_the_same_data_is_told_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = Started::new(folder.path());
    let second = run(program(folder.path()).env("AUDIT_LOG", "off"));
    let line = String::from_utf8(second.stderr).unwrap();
    assert_eq!((second.status.code(), line.lines().count()), (Some(1), 1));
    for part in [
        &first.child.id().to_string()[..],
        "audit.db",
        "AUDIT_STORE_URL",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    first.stop();
}

#[cfg(unix)]
#[test]
fn every_file_of_the_data_folder_is_its_owners_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    // There already, and open to all: what lies in it must not be.
    let data = folder.path().join("audit-data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let started = Started::new(folder.path());
    for command in started.commands() {
        run(Command::new("sh")
            .args(["-c", command])
            .current_dir(folder.path()));
    }
    let mode = |path: &Path| Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o777);
    let modes: Vec<(PathBuf, u32)> = files(&data)
        .into_iter()
        // One that was being written may have its name by now.
        .filter_map(|path| Some((path.clone(), mode(&path)?)))
        .collect();
    started.stop();
    // The log, its index and its queue, each with its write-ahead log, the lock, secret and token.
    assert!(modes.len() >= 8, "{modes:?}");
    assert!(modes.iter().all(|(_, mode)| *mode == 0o600), "{modes:?}");
    assert_eq!(mode(&data.join("tlog.guard")), Some(0o700));
}

#[test]
fn the_document_and_tokens_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = run(program(folder.path()).args(["openapi", "--yaml"]));
    assert_eq!(
        String::from_utf8(yaml.stdout).unwrap(),
        audit_server::docs::yaml()
    );
    let tenant = "0190a000-0000-7000-8000-000000000001";
    let asked = ["token", "--tenant", tenant, "--role", "writer"];
    // Where no server has been, a token would be signed with a secret that none knows.
    let nowhere = run(program(folder.path()).args(asked));
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(!folder.path().join("audit-data").exists());
    let migrate = run(program(folder.path()).arg("migrate"));
    assert!(migrate.status.success());
    let secret = folder.path().join("audit-data/secret");
    std::fs::write(secret, "a secret of at least 32 bytes, for a test").unwrap();
    let token = run(program(folder.path()).args(asked));
    assert!(token.status.success());
    assert_eq!(
        String::from_utf8(token.stdout)
            .unwrap()
            .trim()
            .split('.')
            .count(),
        3
    );
    for bad in [["token", "--ttl", "soon"], ["token", "--role", "writer"]] {
        let bad = run(program(folder.path()).args(bad));
        assert_eq!(bad.status.code(), Some(2));
    }
    let migrate = run(program(folder.path()).arg("migrate"));
    assert!(migrate.status.success());
    let mut rest = String::new();
    migrate.stderr.as_slice().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}
