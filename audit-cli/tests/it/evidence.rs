//! From a server to an auditor's verdict, with real data and no server at the end.

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
