//! Real records, imported.

use std::collections::BTreeMap;
use std::io::Write as _;

use serde_json::json;

use crate::server::Server;
use crate::{cloudtrail, json_lines, text};

/// The exact text of each record of the files, by its id.
fn records() -> BTreeMap<String, String> {
    let mut records = BTreeMap::new();
    for file in std::fs::read_dir(cloudtrail()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        let file: BTreeMap<&str, Vec<&serde_json::value::RawValue>> =
            serde_json::from_str(&text).unwrap();
        for raw in &file["Records"] {
            let parsed: serde_json::Value = serde_json::from_str(raw.get()).unwrap();
            let id = parsed["eventID"].as_str().unwrap().to_owned();
            records.insert(id, raw.get().to_owned());
        }
    }
    records
}

/// What of an entry stands behind `"metadata":` up to the leaf hash, which comes next.
fn metadata(line: &str) -> &str {
    let (_, rest) = line.split_once(",\"metadata\":").unwrap();
    rest.rsplit_once(",\"leaf_hash\":").unwrap().0
}

fn import(server: &Server) -> serde_json::Value {
    let folder = cloudtrail();
    let output = server.run(&[
        "--json",
        "import",
        "--format",
        "cloudtrail",
        folder.to_str().unwrap(),
    ]);
    json_lines(&output)[0].clone()
}

#[test]
fn records_are_imported_once_and_kept_byte_for_byte() {
    let server = Server::start();
    let records = records();
    assert_eq!(records.len(), 1_233);
    let first = import(&server);
    assert_eq!(
        (&first["read"], &first["stored"], &first["duplicates"]),
        (&json!(1_233), &json!(1_233), &json!(0))
    );
    let second = import(&server);
    assert_eq!(
        (&second["stored"], &second["duplicates"]),
        (&json!(0), &json!(1_233))
    );

    let exported = server.run(&["export"]);
    let mut seen = 0;
    for line in text(&exported.stdout).lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        let Some(record) = entry["id"].as_str().and_then(|id| records.get(id)) else {
            continue;
        };
        assert_eq!(metadata(line), record);
        seen += 1;
    }
    assert_eq!(seen, 1_233);

    let with_error = records
        .values()
        .filter(|r| {
            serde_json::from_str::<serde_json::Value>(r)
                .unwrap()
                .get("errorCode")
                .is_some()
        })
        .count();
    let arguments = [
        "--json",
        "search",
        "--all",
        "--outcome",
        "failure",
        "--outcome",
        "denied",
    ];
    assert_eq!(json_lines(&server.run(&arguments)).len(), with_error);
}

#[test]
fn a_search_finds_what_grep_finds() {
    let server = Server::start();
    let records = records();
    import(&server);
    for word in [
        "GetSecretValue",
        "AssumeRole",
        "192.168.10.20",
        "52.45.102.28",
    ] {
        let mut wanted: Vec<&String> = records
            .iter()
            .filter(|(_, r)| has_word(r, word))
            .map(|(id, _)| id)
            .collect();
        wanted.sort();
        assert!(!wanted.is_empty(), "{word}");
        // Full text follows the log; it says how far it is.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let found = json_lines(&server.run(&["--json", "search", "--all", word]));
            let mut found: Vec<&str> = found.iter().map(|e| e["id"].as_str().unwrap()).collect();
            found.sort_unstable();
            if found == wanted {
                break;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{word}: {found:?} and not {wanted:?}"
            );
        }
    }
}

/// Whether the word stands in the text between characters that are no letters or digits.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

#[test]
fn each_account_can_be_a_tenant() {
    let server = Server::start();
    let folder = cloudtrail();
    let import = || {
        server.run(&[
            "--json",
            "import",
            "--format",
            "cloudtrail",
            "--tenant-from",
            "recipientAccountId",
            folder.to_str().unwrap(),
        ])
    };
    assert_eq!(json_lines(&import())[0]["stored"], 1_233);
    assert_eq!(json_lines(&import())[0]["duplicates"], 1_233);
    let tenants = json_lines(&server.run(&["--json", "tenants", "list", "--name", "123837392027"]));
    assert_eq!(tenants.len(), 1);
    let tenant = tenants[0]["id"].as_str().unwrap();
    let found = server.run(&["--json", "--tenant", tenant, "search", "--all"]);
    assert!(json_lines(&found).len() >= 1_233);
}

#[test]
fn a_gzip_file_and_standard_input_are_read_as_well() {
    let server = Server::start();
    let name = "218007301253_CloudTrail_us-east-1_20230710T1230Z_soULWstxp7lqsODg.json";
    let plain = std::fs::read(cloudtrail().join(name)).unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(&plain).unwrap();
    let file = server.folder.path().join("records.json.gz");
    std::fs::write(&file, packed.finish().unwrap()).unwrap();
    let import = ["--json", "import", "--format", "cloudtrail"];
    let packed = server.run(&[&import[..], &[file.to_str().unwrap()]].concat());
    assert_eq!(json_lines(&packed)[0]["stored"], 3);
    let piped = server
        .audit(&[&import[..], &["-"]].concat())
        .write_stdin(plain)
        .output()
        .unwrap();
    assert_eq!(json_lines(&piped)[0]["duplicates"], 3);
}

#[test]
fn what_is_refused_is_named_with_its_place_and_the_rest_is_stored() {
    let server = Server::start();
    let good = |id: u32, name: &str| {
        format!(
            "{{\"eventID\":\"0190a000-0000-7000-8000-{id:012}\",\
             \"eventTime\":\"2023-07-10T12:00:00Z\",\"eventSource\":\"s3.amazonaws.com\",\
             \"eventName\":\"{name}\"}}"
        )
    };
    let file = server.folder.path().join("mixed.json");
    let deep = format!(
        "{{\"eventID\":\"x\",\"a\":{}1{}}}",
        "[".repeat(61),
        "]".repeat(61)
    );
    let records = [
        good(1, "GetObject"),
        "{\"eventID\":\"x\"}".into(),
        good(1, "PutObject"),
        deep,
        good(2, &"x".repeat(300)),
    ];
    std::fs::write(&file, format!("{{\"Records\":[{}]}}", records.join(","))).unwrap();
    let other = server.folder.path().join("other.json");
    std::fs::write(&other, "{\"digest\":1}").unwrap();
    let output = server
        .audit(&[
            "--json",
            "import",
            "--format",
            "cloudtrail",
            "mixed.json",
            "other.json",
        ])
        .assert()
        .code(1)
        .get_output()
        .clone();
    let summary = &json_lines(&output)[0];
    assert_eq!(
        *summary,
        json!({"files":2,"read":5,"stored":2,"duplicates":0,"conflicts":1,"refused":3,
               "passed_over":0,"dropped":{"action":1}})
    );
    let lines = text(&output.stderr);
    for wanted in [
        "refused: mixed.json: record 2: eventID: not a UUID",
        "conflict: mixed.json: record 3: ",
        "refused: mixed.json: record 4: metadata: nested too deeply",
        "refused: other.json: not a CloudTrail file",
    ] {
        assert!(lines.contains(wanted), "{wanted} is not in {lines}");
    }
}

#[test]
fn lines_of_ndjson_are_named_by_number() {
    let server = Server::start();
    let lines = "{\"action_type\":\"VIEW\",\"resource_type\":\"a\",\"resource_id\":\"1\"}\n\n\
                 {\"action_type\":\"VIEW\",\"resource_type\":\"a\"}\n{\"action_type\":\n";
    let output = server
        .audit(&["import", "--format", "ndjson", "-"])
        .write_stdin(lines)
        .assert()
        .code(1)
        .get_output()
        .clone();
    let told = text(&output.stderr);
    assert!(told.contains("refused: (standard input):3: "), "{told}");
    assert!(told.contains("resource_id: required"), "{told}");
    assert!(
        told.contains("refused: (standard input):4: body: "),
        "{told}"
    );
    assert!(
        text(&output.stdout).contains("       1  stored\n"),
        "{}",
        text(&output.stdout)
    );
}
