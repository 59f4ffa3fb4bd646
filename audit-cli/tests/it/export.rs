//! Exports, and importing them again.

use serde_json::Value;

use crate::server::Server;
use crate::{cloudtrail, json_lines, text};

fn filled() -> Server {
    let server = Server::start();
    let folder = cloudtrail();
    server.run(&["import", "--format", "cloudtrail", folder.to_str().unwrap()]);
    server
}

/// What a client sent of each entry, in order.
fn sent(output: &[u8]) -> Vec<Value> {
    text(output)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|entry| !entry["action"].as_str().unwrap().starts_with("log."))
        .map(|mut entry| {
            for assigned in ["seq", "created_at", "leaf_hash", "tenant_id"] {
                entry.as_object_mut().unwrap().remove(assigned);
            }
            entry
        })
        .collect()
}

#[test]
fn an_export_is_imported_into_another_tenant_and_is_the_same_there() {
    let server = filled();
    server.run(&["--quiet", "export", "-o", "all.ndjson"]);
    let file = std::fs::read(server.folder.path().join("all.ndjson")).unwrap();
    let made = json_lines(&server.run(&["--json", "tenants", "create", "copy"]));
    let copy = made[0]["id"].as_str().unwrap();
    let import = [
        "--json",
        "--tenant",
        copy,
        "import",
        "--format",
        "ndjson",
        "all.ndjson",
    ];
    let summary = &json_lines(&server.run(&import))[0];
    assert_eq!(
        (&summary["stored"], &summary["refused"]),
        (&1_233.into(), &0.into())
    );
    assert_eq!(
        summary["passed_over"].as_u64().unwrap() + 1_233,
        text(&file).lines().count() as u64
    );
    let exported = server.run(&["--tenant", copy, "export"]);
    assert_eq!(sent(&exported.stdout), sent(&file));
    assert_eq!(json_lines(&server.run(&import))[0]["duplicates"], 1_233);
}

#[test]
fn an_export_goes_on_where_a_file_ends() {
    let server = filled();
    for format in ["ndjson", "csv"] {
        let whole = server.run(&["export", "--format", format]).stdout;
        let mut ends = text(&whole).match_indices('\n').map(|(at, _)| at + 1);
        // Up to an entry in the middle; no record of these files has a line break in it.
        let cut = ends.nth(12).unwrap();
        std::fs::write(server.folder.path().join(format), &whole[..cut]).unwrap();
        let next = match format {
            "csv" => text(&whole[cut..]).split(',').nth(2).unwrap().to_owned(),
            _ => serde_json::from_str::<Value>(text(&whole[cut..]).lines().next().unwrap())
                .unwrap()["seq"]
                .to_string(),
        };
        let arguments = [
            "export",
            "--format",
            format,
            "-o",
            format,
            "--append",
            "--from-seq",
            &next,
        ];
        server.run(&arguments);
        let file = std::fs::read(server.folder.path().join(format)).unwrap();
        assert_eq!(text(&file), text(&whole), "{format}");
    }
}

#[test]
fn a_file_that_exists_is_not_replaced_unasked() {
    let server = filled();
    std::fs::write(server.folder.path().join("kept"), "mine").unwrap();
    let refused = server
        .audit(&["export", "-o", "kept"])
        .assert()
        .code(2)
        .get_output()
        .clone();
    assert!(
        text(&refused.stderr).contains("--force"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(
        std::fs::read(server.folder.path().join("kept")).unwrap(),
        b"mine"
    );
    server.run(&["export", "-o", "kept", "--force", "--outcome", "denied"]);
    let file = std::fs::read(server.folder.path().join("kept")).unwrap();
    assert_eq!(text(&file).lines().count(), 30);
}

#[test]
fn an_export_that_is_cut_leaves_whole_entries_and_says_how_to_go_on() {
    use std::io::{Read as _, Write as _};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let piece = "{\"id\":\"a\",\"seq\":7}\n{\"id\":\"b\",\"se";
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{piece}\r\n",
            piece.len()
        )
        .unwrap();
    });
    let folder = tempfile::TempDir::new().unwrap();
    let mut command = crate::server::audit(&["--url", &url, "export", "-o", "cut"]);
    let output = command
        .current_dir(&folder)
        .assert()
        .code(3)
        .get_output()
        .clone();
    server.join().unwrap();
    let line = text(&output.stderr);
    assert!(
        line.contains("complete up to entry 7: go on with --from-seq 8 --append"),
        "{line}"
    );
    let file = std::fs::read(folder.path().join("cut")).unwrap();
    assert_eq!(text(&file), "{\"id\":\"a\",\"seq\":7}\n");
}
