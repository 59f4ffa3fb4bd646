//! From a server to an auditor's verdict, with real data and no server at the end.

use std::time::{Duration, Instant};

use audit_tlog::{HeadOpening, InclusionProof};

use crate::server::{Server, audit};
use crate::{cloudtrail, text};

#[test]
fn an_export_of_real_data_verifies_without_the_server_and_names_what_was_erased() {
    let server = Server::start();
    let files = cloudtrail();
    server.run(&["import", "--format", "cloudtrail", files.to_str().unwrap()]);
    let found = server.run(&["search", "--limit", "1", "--json"]);
    let entry: serde_json::Value =
        serde_json::from_str(text(&found.stdout).lines().next().unwrap()).unwrap();
    let id = entry["id"].as_str().unwrap();
    server.run(&["erase", id]);

    let whole = server.folder.path().join("whole");
    let part = server.folder.path().join("part");
    let (whole, part) = (whole.to_str().unwrap(), part.to_str().unwrap());
    server.run(&["export", "--evidence", whole]);
    server.run(&[
        "export",
        "--evidence",
        part,
        "--action",
        "sts.AssumeRole",
        "--withhold",
        "context,metadata",
    ]);
    // What is there already is left alone.
    server
        .audit(&["export", "--evidence", whole])
        .assert()
        .failure();

    let verified = audit(&["verify", whole, "--json"]).assert().code(0);
    let report: serde_json::Value =
        serde_json::from_str(text(&verified.get_output().stdout)).unwrap();
    assert_eq!(report["findings_total"], 0, "{report}");
    let shown = audit(&["verify", whole]).assert().code(0);
    assert!(text(&shown.get_output().stdout).contains("erased by seq"));
    audit(&["verify", part, "--partial"]).assert().code(0);
    let demanded = audit(&["verify", part]).assert().code(1);
    assert!(text(&demanded.get_output().stdout).contains("UNEXPLAINED"));
    // It shows nothing of what it withholds.
    let log = std::fs::read_to_string(format!("{part}/log.ndjson")).unwrap();
    assert!(!log.contains("userAgent"));

    let file = format!("{whole}/log.ndjson");
    let log = std::fs::read_to_string(&file).unwrap();
    let changed = log.replacen("sts.AssumeRole", "sts.AssumeRule", 1);
    assert_ne!(log, changed);
    std::fs::write(&file, changed).unwrap();
    audit(&["verify", whole]).assert().code(1);
}

/// Asks for the log's head until there is one over so many entries.
fn head(server: &Server, arguments: &[&str], size: u64) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let asked = server.audit(&[&["head"], arguments].concat()).output();
        let asked = asked.unwrap();
        let told = text(&asked.stdout);
        let is_there = match InclusionProof::parse(told) {
            Ok(proof) => HeadOpening::of(&proof).unwrap().size == size,
            Err(_) => told.lines().nth(1) == Some(&*size.to_string()),
        };
        if asked.status.success() && is_there {
            return told.to_owned();
        }
        assert!(Instant::now() < deadline, "{asked:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_head_that_was_kept_is_compared_with_a_later_export() {
    let server = Server::start();
    let folder = server.folder.path();
    // Of an empty log there is no head.
    server.audit(&["head"]).assert().failure();
    server.run(&["record", "VIEW", "doc", "d1"]);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (signed, cosigned, bundle) = (path("signed"), path("cosigned"), path("bundle"));
    std::fs::write(&signed, head(&server, &[], 1)).unwrap();
    let proof = head(&server, &["--cosigned"], 1);
    let told = server.audit(&["head", "--cosigned"]).assert().success();
    let told = text(&told.get_output().stderr).to_owned();
    assert!(told.contains("no witness has cosigned"), "{told}");
    let key = server.run(&["head", "--key"]);
    let key = text(&key.stdout).trim_end().to_owned();
    std::fs::write(&cosigned, &proof).unwrap();
    server.run(&["record", "VIEW", "doc", "d2"]);
    server.run(&["export", "--evidence", &bundle]);
    let arguments = [
        "verify", &bundle, "--key", &key, "--known", &signed, "--known", &cosigned,
    ];
    let verified = audit(&arguments).assert().code(0);
    let shown = text(&verified.get_output().stdout).to_owned();
    assert!(shown.contains("complete at least up to size 1"), "{shown}");
    assert_eq!(shown.matches("Continues the known head").count(), 2);

    server.run(&["record", "VIEW", "doc", "d3"]);
    // This bundle doesn't reach it.
    std::fs::write(&cosigned, head(&server, &["--cosigned"], 3)).unwrap();
    let refused = audit(&arguments).assert().code(1);
    let told = text(&refused.get_output().stdout).to_owned();
    assert!(
        told.contains("(rollback)") && told.contains("export again"),
        "{told}"
    );
    std::fs::write(&cosigned, proof.replacen("extra ", "extra A", 1)).unwrap();
    audit(&arguments).assert().code(2);
}
