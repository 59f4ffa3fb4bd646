//! `audit verify --live`: a monitor that follows a server.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use audit_core::Role;
use audit_server::signing;
use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;

use crate::server::{Server, audit, settings};
use crate::{json_lines, text};

/// Everything here that is waited for takes a few seconds.
const SOON: Duration = Duration::from_secs(30);

/// A monitor's folder and the data of the server that it follows, which may be stopped and changed.
struct World {
    data: TempDir,
    state: TempDir,
}

impl World {
    fn new() -> Self {
        Self {
            data: TempDir::new().unwrap(),
            state: TempDir::new().unwrap(),
        }
    }

    fn server(&self) -> Server {
        Server::on(self.data.path())
    }

    fn state(&self) -> String {
        self.state.path().join("state").display().to_string()
    }

    fn database(&self) -> Connection {
        Connection::open(self.data.path().join("audit.db")).unwrap()
    }

    /// Looks once; the exit code and the line.
    fn look(&self, server: &Server, more: &[&str]) -> (i32, Value) {
        look(server, &self.state(), more)
    }

    /// Looks until the log is verified up to a size.
    fn follow(&self, server: &Server, size: u64) -> Value {
        follow(server, &self.state(), size)
    }

    /// Looks until something is found; its code.
    fn finding(&self, server: &Server) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let (code, line) = self.look(server, &[]);
            if code == 1 {
                return line["findings"][0]["code"].as_str().unwrap().to_owned();
            }
            assert_eq!(code, 0, "{line}");
            assert!(Instant::now() < deadline, "nothing is found: {line}");
        }
    }
}

fn look(server: &Server, state: &str, more: &[&str]) -> (i32, Value) {
    let log = format!("{}/api/v1/tlog/{}", server.url, server.tenant);
    let mut arguments = vec![
        "verify", "--live", &log, "--state", state, "--once", "--json",
    ];
    arguments.extend(more);
    let output = audit(&arguments)
        .env("AUDIT_TOKEN", server.token(Role::Auditor))
        .output()
        .unwrap();
    let line = json_lines(&output)
        .pop()
        .unwrap_or_else(|| text(&output.stderr).into());
    (output.status.code().unwrap(), line)
}

fn follow(server: &Server, state: &str, size: u64) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        let (code, line) = look(server, state, &[]);
        match code {
            0 if line["size"].as_u64().unwrap() >= size => return line,
            // Nothing is signed yet.
            0 | 2 => assert!(Instant::now() < deadline, "{line}"),
            _ => panic!("{line}"),
        }
    }
}

/// Records so many events.
fn record(server: &Server, count: usize) {
    let file = server.folder.path().join("events");
    let mut events = fs::File::create(&file).unwrap();
    for n in 0..count {
        let event = format!(
            r#"{{"action_type":"VIEW","resource_type":"page","resource_id":"{n}","user_id":"ann"}}"#
        );
        writeln!(events, "{event}").unwrap();
    }
    drop(events);
    let events = file.to_str().unwrap();
    server.run(&["import", "--format", "ndjson", events]);
}

/// Copies what is in a folder, in place of what is there.
fn copy(from: &Path, to: &Path) {
    for file in fs::read_dir(to).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_dir() {
            fs::remove_dir_all(file.path()).unwrap();
        } else {
            fs::remove_file(file.path()).unwrap();
        }
    }
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let to = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&file.path(), &to);
        } else {
            fs::copy(file.path(), to).unwrap();
        }
    }
}

#[test]
fn a_log_is_followed_from_one_look_to_the_next_across_bundles_and_restarts() {
    let world = World::new();
    let server = world.server();
    record(&server, 300);
    let first = world.follow(&server, 300);
    assert_eq!(first["verified"], true);
    let (code, again) = world.look(&server, &[]);
    assert_eq!((code, &again["new"]), (0, &0.into()));
    assert_eq!(again["root"], first["root"]);
    let log = format!("{}/api/v1/tlog/{}", server.url, server.tenant);
    let state = world.state();
    let quiet = [
        "verify", "--live", &log, "--state", &state, "--once", "--quiet",
    ];
    let quiet = audit(&quiet)
        .env("AUDIT_TOKEN", server.token(Role::Auditor))
        .output();
    let quiet = quiet.unwrap();
    assert_eq!(quiet.status.code(), Some(0));
    assert_eq!((text(&quiet.stdout), text(&quiet.stderr)), ("", ""));
    record(&server, 1);
    let grown = world.follow(&server, 301);
    assert_eq!(grown["new"], 1);
    drop(server);
    let server = world.server();
    record(&server, 300);
    let grown = world.follow(&server, 601);
    assert_eq!(grown["key_changed"], false);

    // Its last checkpoint is one that an export has to continue.
    let bundle = server.folder.path().join("bundle");
    let bundle = bundle.to_str().unwrap();
    server.run(&["export", "--evidence", bundle]);
    let known = format!("{}/checkpoint", world.state());
    audit(&["verify", bundle, "--known", &known])
        .assert()
        .code(0);
}

#[test]
fn a_look_at_a_large_log_that_is_killed_goes_on_where_it_was() {
    let world = World::new();
    let server = world.server();
    record(&server, 2_000);
    let other = world.state.path().join("other").display().to_string();
    let whole = follow(&server, &other, 2_000);
    let log = format!("{}/api/v1/tlog/{}", server.url, server.tenant);
    let state = world.state();
    let position = || {
        let state = fs::read_to_string(format!("{state}/state.json")).ok()?;
        serde_json::from_str::<Value>(&state).unwrap()["state"]["position"].as_u64()
    };
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_audit"))
        .args(["verify", "--live", &log, "--state", &state, "--once"])
        .env("AUDIT_TOKEN", server.token(Role::Auditor))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + SOON;
    while position().is_none_or(|position| position == 0) {
        assert!(Instant::now() < deadline);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = position().unwrap();
    // What is given to others is a head whose entries were all read.
    let checkpoint = format!("{state}/checkpoint");
    let read_all = kept == whole["size"].as_u64().unwrap();
    assert!(read_all || !Path::new(&checkpoint).exists());
    let (code, line) = look(&server, &state, &[]);
    assert_eq!((code, &line["root"]), (0, &whole["root"]), "{line}");
    assert_eq!(line["new"], whole["size"].as_u64().unwrap() - kept);
    assert!(Path::new(&checkpoint).exists());
}

#[test]
fn a_leaf_hash_that_was_changed_is_found() {
    let world = World::new();
    let server = world.server();
    record(&server, 10);
    world.follow(&server, 10);
    let changed = "UPDATE entries SET leaf_hash = zeroblob(32) WHERE seq = 3";
    world.database().execute(changed, []).unwrap();
    assert_eq!(world.finding(&server), "root");
    // It is found again: nothing of it was taken for granted.
    assert_eq!(world.look(&server, &[]).0, 1);
}

#[test]
fn an_entry_that_was_changed_before_it_was_seen_is_named() {
    let world = World::new();
    let server = world.server();
    record(&server, 10);
    world.follow(&server, 10);
    record(&server, 10);
    // Another monitor waits until they are signed.
    let other = world.state.path().join("other").display().to_string();
    follow(&server, &other, 20);
    let changed = "UPDATE entries SET action = 'page.edit' WHERE seq = 15";
    world.database().execute(changed, []).unwrap();
    let (code, line) = world.look(&server, &[]);
    assert_eq!(code, 1, "{line}");
    assert_eq!(line["findings"][0]["code"], "leaf_hash");
    assert_eq!(line["findings"][0]["from"], 15);
}

#[test]
fn an_older_copy_is_a_rollback_and_a_rewritten_tail_no_continuation() {
    let world = World::new();
    let older = TempDir::new().unwrap();
    let server = world.server();
    record(&server, 300);
    world.follow(&server, 300);
    drop(server);
    copy(world.data.path(), older.path());
    let server = world.server();
    record(&server, 20);
    world.follow(&server, 320);
    drop(server);

    copy(older.path(), world.data.path());
    let server = world.server();
    assert_eq!(world.finding(&server), "rollback");
    record(&server, 40);
    let deadline = Instant::now() + SOON;
    loop {
        let found = world.finding(&server);
        if found != "rollback" {
            assert_eq!(found, "known");
            break;
        }
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn a_log_that_has_no_checkpoint_any_more_is_a_rollback() {
    let world = World::new();
    let server = world.server();
    record(&server, 3);
    world.follow(&server, 3);
    let cut = "DELETE FROM checkpoints";
    world.database().execute(cut, []).unwrap();
    assert_eq!(world.finding(&server), "rollback");
}

#[test]
fn entries_that_are_gone_below_a_signed_head_are_missing() {
    let world = World::new();
    let server = world.server();
    record(&server, 10);
    world.follow(&server, 10);
    let cut = "DELETE FROM entries WHERE seq = 9";
    world.database().execute(cut, []).unwrap();
    assert_eq!(world.finding(&server), "missing");
}

#[test]
fn a_change_of_the_key_counts_when_the_log_and_both_keys_say_so() {
    let world = World::new();
    let server = world.server();
    record(&server, 5);
    let old = world.follow(&server, 5)["key"].as_str().unwrap().to_owned();
    drop(server);
    let before = world.state.path().join("before");
    fs::create_dir(&before).unwrap();
    copy(Path::new(&world.state()), &before);
    signing::rotate(&settings(world.data.path())).unwrap();
    let server = world.server();
    record(&server, 5);
    // The entry that says so is one more.
    let changed = world.follow(&server, 11);
    let (code, at_once) = look(&server, before.to_str().unwrap(), &[]);
    assert_eq!((code, &at_once["key_changed"]), (0, &true.into()));
    assert_eq!(at_once["key"], changed["key"]);
    let new = changed["key"].as_str().unwrap();
    assert_ne!(new, old);
    for key in [old.as_str(), new] {
        assert_eq!(world.look(&server, &["--key", key]).0, 0);
    }

    // A monitor that begins with the old key is led to the new one.
    let late = world.state.path().join("late").display().to_string();
    let (code, line) = look(&server, &late, &["--key", &old]);
    assert_eq!((code, &line["key"]), (0, &changed["key"]), "{line}");
    drop(server);

    // The whole log signed by another key, which nothing leads to.
    let database = world.database();
    for forget in ["checkpoints", "key_changes"] {
        database
            .execute(&format!("DELETE FROM {forget}"), [])
            .unwrap();
    }
    drop(database);
    let key = signing::new_key().unwrap();
    fs::write(world.data.path().join(signing::KEY_FILE), key).unwrap();
    let server = world.server();
    record(&server, 1);
    assert_eq!(world.finding(&server), "signature");
}

#[test]
fn a_key_that_is_none_of_the_logs_is_found() {
    let world = World::new();
    let server = world.server();
    record(&server, 1);
    let key = world.follow(&server, 1)["key"].as_str().unwrap().to_owned();
    let stranger = audit_tlog::SigningKey::from_seed(key.split('+').next().unwrap(), &[9; 32]);
    let stranger = stranger.unwrap().verifying_key().encode();
    let (code, line) = world.look(&server, &["--key", &stranger]);
    assert_eq!(
        (code, &line["findings"][0]["code"]),
        (1, &"foreign_key".into())
    );
    let fresh = world.state.path().join("fresh").display().to_string();
    let (code, line) = look(&server, &fresh, &["--key", &stranger]);
    assert_eq!(
        (code, &line["findings"][0]["code"]),
        (1, &"foreign_key".into())
    );
}

#[test]
fn what_was_pruned_is_no_finding() {
    let world = World::new();
    let server = world.server();
    record(&server, 600);
    world.follow(&server, 600);
    server.run(&["prune", "--yes", "--before", "2100-01-01"]);
    record(&server, 1);
    let after = world.follow(&server, 602);
    assert_eq!(after["unexplained"], Value::Null);
    // One that never saw it.
    let late = world.state.path().join("late").display().to_string();
    let late = follow(&server, &late, 602);
    assert_eq!(
        (&late["root"], &late["unexplained"]),
        (&after["root"], &Value::Null)
    );
}

#[test]
fn a_state_that_is_damaged_is_named_and_never_taken_for_none() {
    let world = World::new();
    let server = world.server();
    record(&server, 3);
    world.follow(&server, 3);
    let path = format!("{}/state.json", world.state());
    let whole = fs::read_to_string(&path).unwrap();
    let damaged = [
        whole[..whole.len() / 2].to_owned(),
        whole.replacen("\"position\":3", "\"position\":2", 1),
        String::new(),
    ];
    for text in damaged {
        fs::write(&path, &text).unwrap();
        let (code, line) = world.look(&server, &[]);
        assert_eq!(code, 2, "{text}");
        assert!(line.as_str().unwrap().contains("state.json"), "{line}");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(world.look(&server, &[]).0, 2);
    fs::write(&path, whole).unwrap();
    assert_eq!(world.look(&server, &[]).0, 0);
}

#[test]
fn a_server_that_can_not_be_read_is_2() {
    let world = World::new();
    let log = "http://127.0.0.1:1/api/v1/tlog/0190a000-0000-7000-8000-000000000001";
    let state = world.state();
    let arguments = [
        "verify",
        "--live",
        log,
        "--state",
        &state,
        "--once",
        "--patience",
        "1",
    ];
    audit(&arguments).assert().code(2);
    let server = world.server();
    let named = format!("{}/api/v1/tlog/{}", server.url, server.tenant);
    let arguments = ["verify", "--live", &named, "--state", &state, "--once"];
    audit(&arguments).assert().code(2);
    // Nothing is signed in an empty log.
    assert_eq!(world.look(&server, &[]).0, 2);
}

#[test]
fn a_public_log_is_followed_without_a_token() {
    let world = World::new();
    let server = world.server();
    record(&server, 5);
    world.follow(&server, 5);
    let tenant = server.tenant.to_string();
    let state = world.state.path().join("anyone").display().to_string();
    let anyone = || {
        let live = ["verify", "--live", &server.url, "--tenant", &tenant];
        let mut command = audit(&live);
        command.args(["--once", "--state", &state]);
        command.current_dir(&server.folder);
        command.assert()
    };
    anyone().code(2);
    let opened = server.run(&[
        "tenants", "set-log", &tenant, "public", "--reason", "why not",
    ]);
    assert!(text(&opened.stdout).trim_end().ends_with("public"));
    anyone().code(0);
    let closed = server.run(&["tenants", "set-log", &tenant, "private", "--json"]);
    assert_eq!(json_lines(&closed)[0]["public_log"], false);
    anyone().code(2);
    let made = server.run(&["tenants", "create", "open", "--public-log", "--json"]);
    assert_eq!(json_lines(&made)[0]["public_log"], true);
}

#[test]
fn without_once_it_looks_until_something_is_found() {
    let world = World::new();
    let server = world.server();
    record(&server, 5);
    let log = format!("{}/api/v1/tlog/{}", server.url, server.tenant);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_audit"))
        .args(["verify", "--live", &log, "--state", &world.state()])
        .args(["--every", "1", "--json"])
        .env("AUDIT_TOKEN", server.token(Role::Auditor))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    while line()["verified"] != true {}
    let changed = "UPDATE entries SET leaf_hash = zeroblob(32) WHERE seq = 3";
    world.database().execute(changed, []).unwrap();
    while line()["verified"] != false {}
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
