//! What scripts rely on.

use audit_core::Role;

use crate::server::{Server, audit};
use crate::text;

#[test]
fn arguments_that_can_not_be_meant_so_are_2() {
    for arguments in [
        &["search", "--severity", "loud"][..],
        &["search", "--q", "\"open"],
        &["search", "--from", "yesterday"],
        &["record", "MOVE", "a", "b"],
        &["record", "UPDATE", "a", "b", "--metadata", "{"],
        &["import", "--format", "cloudtrail", "/no/such/file"],
        &["--url", "ftp://x", "stats"],
        &["prune"],
        &["nothing"],
    ] {
        let output = audit(arguments).assert().code(2).get_output().clone();
        assert!(
            !output.stderr.is_empty() && output.stdout.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_server_that_is_not_there_is_3_with_one_line() {
    // A port that nobody is given, so that no other test listens on it.
    let arguments = [
        "--url",
        "http://127.0.0.1:1/behind/secret-path",
        "--patience",
        "1",
        "--token",
        "secret-token",
        "search",
        "secret-words",
    ];
    let output = audit(&arguments).assert().code(3).get_output().clone();
    let line = text(&output.stderr);
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(
        line.starts_with("audit: the server at http://127.0.0.1:1 can't be reached: "),
        "{line}"
    );
    assert!(!line.contains("secret"), "{line}");
}

#[test]
fn a_credential_that_is_missing_wrong_or_too_weak_is_4() {
    let server = Server::start();
    let missing = server
        .audit(&["stats"])
        .env_remove("AUDIT_TOKEN")
        .assert()
        .code(4)
        .get_output()
        .clone();
    let line = text(&missing.stderr);
    assert_eq!(line.lines().count(), 1, "{line}");
    for name in ["AUDIT_TOKEN", "--token", "AUDIT_URL", &server.url] {
        assert!(line.contains(name), "{name}: {line}");
    }
    server
        .audit(&["stats", "--token", "nonsense"])
        .assert()
        .code(4);
    server
        .audit(&["stats", "--token", &server.token(Role::Writer)])
        .assert()
        .code(4);
    server
        .audit(&["stats", "--token", &server.token(Role::Auditor)])
        .assert()
        .code(0);
    let weak = server.audit(&["tenants", "list", "--token", &server.token(Role::User)]);
    let mut weak = weak;
    weak.assert().code(4);
}

#[test]
fn what_is_refused_in_conflict_or_not_found_is_1_and_names_field_and_limit() {
    let server = Server::start();
    let id = "0190a000-0000-7000-8000-000000000001";
    server.audit(&["get", id]).assert().code(1);
    server.run(&["record", "UPDATE", "invoice", "1", "--id", id]);
    server.run(&["record", "UPDATE", "invoice", "1", "--id", id]);
    server
        .audit(&["record", "UPDATE", "invoice", "2", "--id", id])
        .assert()
        .code(1);
    let long = "x".repeat(257);
    let output = server
        .audit(&["record", "UPDATE", "invoice", "1", "--user-id", &long])
        .assert()
        .code(1)
        .get_output()
        .clone();
    let line = text(&output.stderr);
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(
        line.contains("user_id: longer than 256 characters"),
        "{line}"
    );
}

#[test]
fn a_token_in_the_data_folder_is_taken_when_nothing_is_said() {
    let server = Server::start();
    let data = server.folder.path().join("audit-data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(
        data.join("token"),
        format!("{}\n", server.token(Role::Auditor)),
    )
    .unwrap();
    server
        .audit(&["stats"])
        .env_remove("AUDIT_TOKEN")
        .assert()
        .success();
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    let server = Server::start();
    server.run(&["record", "VIEW", "page", "1"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_audit"))
        .args(["tail", "--from", "0", "--url", &server.url])
        .env("AUDIT_TOKEN", server.token(Role::Admin))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    server.run(&["record", "VIEW", "page", "2"]);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}
