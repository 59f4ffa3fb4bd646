//! A witness that is none of ours: `dev/tlog-witness`, a Go program that follows C2SP `tlog-witness` and
//! `tlog-cosignature` on Go's own libraries.

#[path = "../../../dev/tlog-witness/process.rs"]
mod process;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use audit_tlog::VerifyingKey;
use tempfile::TempDir;

use crate::server::{Server, audit};
use crate::text;
use process::GoWitness;

/// The key of the deployment log, which is that of the tenants' logs under its own name.
fn deployment_key(server: &Server) -> String {
    let key = server.run(&["head", "--key"]);
    let key = VerifyingKey::parse(text(&key.stdout).trim_end()).unwrap();
    key.renamed("localhost/audit/deployment").unwrap().encode()
}

/// Waits for a head proof of so many entries that the witness has cosigned.
fn cosigned(server: &Server, size: u64) -> String {
    let expected = format!("head of size {size}, cosigned by witness.example.com/go");
    until(|| {
        let asked = server.audit(&["head", "--cosigned"]).output().unwrap();
        let is_there = text(&asked.stderr).contains(&expected);
        is_there.then(|| text(&asked.stdout).to_owned())
    })
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within a minute");
        std::thread::yield_now();
    }
}

/// A data folder with one entry, and the key that a witness of its deployment log is told.
fn begun(data: &Path) -> String {
    let server = Server::on(data);
    server.run(&["record", "VIEW", "doc", "d1"]);
    deployment_key(&server)
}

#[test]
fn a_witness_in_go_cosigns_and_an_auditor_is_told_since_when_the_log_stood_there() {
    let (data, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let key = begun(data.path());
    let witness = GoWitness::start(&folder.path().join("witness"), &[&key]);
    for size in [2, 3] {
        // Each server is a new process as far as the witness is concerned: what it cosigned it has to tell.
        let server = Server::witnessed(data.path(), &witness.address);
        server.run(&["record", "VIEW", "doc", "d2"]);
        let proof = folder.path().join("proof");
        fs::write(&proof, cosigned(&server, size)).unwrap();
        let bundle = folder.path().join(size.to_string());
        let (proof, bundle) = (proof.to_str().unwrap(), bundle.to_str().unwrap());
        server.run(&["export", "--evidence", bundle]);
        drop(server);
        let arguments = [
            "verify",
            bundle,
            "--known",
            proof,
            "--witness",
            witness.vkey(),
        ];
        let verified = audit(&arguments).assert().code(0);
        let shown = text(&verified.get_output().stdout).to_owned();
        let first = shown.lines().next().unwrap();
        let told = format!("up to size {size}");
        assert!(first.contains("as of") && first.contains(&told), "{shown}");
    }
    // No head was shown to it that it refused: not even one without a proof, but to ask for its size.
    let answers = witness.answers();
    for answer in &answers {
        let is_well = answer.starts_with("200 ") || answer.starts_with("409 ");
        assert!(is_well, "{answers:?}");
    }
    let asked = answers.iter().filter(|answer| answer.starts_with("409 "));
    assert!(asked.count() <= 1, "{answers:?}");
}

#[test]
fn a_witness_in_go_does_not_cosign_a_log_that_was_put_back() {
    let (data, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let key = begun(data.path());
    let witness = GoWitness::start(&folder.path().join("witness"), &[&key]);
    let server = Server::witnessed(data.path(), &witness.address);
    server.run(&["record", "VIEW", "doc", "d2"]);
    cosigned(&server, 2);
    drop(server);

    // Another log under the same name, by the same key.
    let other = TempDir::new().unwrap();
    fs::copy(data.path().join("tlog.key"), other.path().join("tlog.key")).unwrap();
    let before = witness.answers().len();
    let server = Server::witnessed(other.path(), &witness.address);
    server.run(&["record", "VIEW", "doc", "d3"]);
    until(|| (witness.answers().len() > before + 1).then_some(()));
    drop(server);
    let refused = witness.answers().split_off(before);
    for answer in &refused {
        let is_refused = answer.starts_with("409 ") || answer.starts_with("422 ");
        assert!(is_refused, "{refused:?}");
    }
}
