//! An archive verified from its folder alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use audit_tlog::evidence::Record;
use audit_tlog::folder::SegmentName;
use audit_tlog::leaf::open_disclosure;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::server::{Server, audit};
use crate::{cloudtrail, text};

fn record(server: &Server, event: &Value) {
    let file = server.folder.path().join("event.json");
    fs::write(&file, event.to_string()).unwrap();
    server.run(&["record", "--file", file.to_str().unwrap()]);
}

/// Archives and prunes all that there is.
fn prune(server: &Server) {
    server.run(&["prune", "--yes", "--before", "2999-01-01T00:00:00Z"]);
}

/// The part of an archive that a server wrote, in three segments, with groups that were erased before.
/// The server is gone.
fn archived() -> (TempDir, PathBuf) {
    let server = Server::archiving();
    let files = cloudtrail();
    server.run(&["import", "--format", "cloudtrail", files.to_str().unwrap()]);
    let found = server.run(&["search", "--limit", "1", "--json"]);
    let entry: Value = serde_json::from_str(text(&found.stdout).lines().next().unwrap()).unwrap();
    server.run(&["erase", entry["id"].as_str().unwrap()]);
    for n in 0..3 {
        let resource = format!("doc-{n}");
        server.run(&["record", "VIEW", "doc", &resource]);
        prune(&server);
    }
    let within = TempDir::new().unwrap();
    let at = within.path().join(server.tenant.to_string());
    let from = server
        .folder
        .path()
        .join("archive")
        .join(server.tenant.to_string());
    copy(&from, &at);
    drop(server);
    (within, at)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn names(at: &Path) -> Vec<SegmentName> {
    let entries = fs::read_dir(at).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .map(|name| SegmentName::parse(&name).unwrap())
        .collect();
    names.sort();
    names
}

fn verify(at: &Path, code: i32, more: &[&str]) -> Value {
    let mut arguments = vec!["verify", at.to_str().unwrap(), "--json"];
    arguments.extend(more);
    let done = audit(&arguments).assert().code(code);
    let report: Value = serde_json::from_str(text(&done.get_output().stdout)).unwrap();
    assert_eq!(report["verified"], code == 0, "{report}");
    report
}

/// The findings about a segment, or about the archive.
fn about<'a>(report: &'a Value, segment: &str) -> Vec<&'a Value> {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .filter(|one| one["segment"] == segment)
        .collect()
}

#[test]
fn an_archive_verifies_from_its_folder_alone_and_what_was_done_to_it_is_named() {
    let (within, at) = archived();
    let names = names(&at);
    let last = names.last().unwrap().to;
    let report = verify(&at, 0, &[]);
    assert_eq!(report["segments"], 3);
    assert_eq!(report["from"], 0);
    assert_eq!(report["to"], last);
    assert_eq!(report["entries"], last);
    assert!(report["groups_erased"].as_u64().unwrap() > 0);
    assert_eq!(report["warnings"], Value::Array(Vec::new()));
    let shown = audit(&["verify", at.to_str().unwrap()]).assert().code(0);
    assert!(text(&shown.get_output().stdout).starts_with("Verified: positions 0 to"));
    let quiet = ["verify", at.to_str().unwrap(), "--quiet"];
    let quiet = audit(&quiet).assert().code(0).get_output().clone();
    assert_eq!((text(&quiet.stdout), text(&quiet.stderr)), ("", ""));
    // The key that was handed over is the log's, another isn't.
    let key = report["signed_by"].as_str().unwrap();
    assert_eq!(verify(&at, 0, &["--key", key])["key_trusted"], true);

    // One segment is a part of a log like any other.
    let middle = at.join(names[1].to_string());
    audit(&["verify", middle.to_str().unwrap(), "--partial"])
        .assert()
        .code(0);
    audit(&["verify", middle.to_str().unwrap()])
        .assert()
        .code(1);

    // A later checkpoint than the archive's is told of, an earlier one compared.
    let known = at.join(names[0].to_string()).join("checkpoint");
    let report = verify(&at, 0, &["--known", known.to_str().unwrap()]);
    assert_eq!(report["warnings"], Value::Array(Vec::new()));

    // A byte of any file.
    let changed = within.path().join("changed");
    for file in ["manifest.json", "checkpoint", "keys", "log.ndjson.zst"] {
        copy(&at, &changed);
        let path = changed.join(names[1].to_string()).join(file);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        let report = verify(&changed, 1, &[]);
        assert!(
            !about(&report, &names[1].to_string()).is_empty(),
            "{file}: {report}"
        );
        assert!(
            about(&report, &names[0].to_string()).is_empty(),
            "{file}: {report}"
        );
        fs::remove_dir_all(&changed).unwrap();
    }

    // A segment is gone.
    for gone in [0, 1] {
        copy(&at, &changed);
        fs::remove_dir_all(changed.join(names[gone].to_string())).unwrap();
        let report = verify(&changed, 1, &[]);
        let finding = about(&report, "archive")[0];
        assert_eq!(finding["code"], "missing");
        let quiet = ["verify", changed.to_str().unwrap(), "--quiet"];
        let quiet = audit(&quiet).assert().code(1).get_output().clone();
        let lines = text(&quiet.stdout).lines();
        assert_eq!(report["findings_total"], lines.count());
        assert_eq!(finding["from"], names[gone].from);
        assert_eq!(finding["to"], names[gone].to - 1);
        let report = verify(&changed, 0, &["--partial"]);
        // Across the gap nothing shows that one continues the other.
        let warnings = report["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), 1 + gone, "{report}");
        fs::remove_dir_all(&changed).unwrap();
    }

    // Two are in each other's place.
    copy(&at, &changed);
    let [first, second] = [&names[1], &names[2]].map(|name| changed.join(name.to_string()));
    let aside = within.path().join("aside");
    fs::rename(&first, &aside).unwrap();
    fs::rename(&second, &first).unwrap();
    fs::rename(&aside, &second).unwrap();
    let report = verify(&changed, 1, &[]);
    for name in &names[1..] {
        let findings = about(&report, &name.to_string());
        assert!(
            findings.iter().any(|one| one["code"] == "manifest"),
            "{report}"
        );
    }
    fs::remove_dir_all(&changed).unwrap();

    // What was not written to the end is no segment.
    copy(&at, &changed);
    fs::remove_file(changed.join(names[2].to_string()).join("manifest.json")).unwrap();
    let report = verify(&changed, 0, &[]);
    assert_eq!(report["to"], names[1].to);
    assert_eq!(report["warnings"].as_array().unwrap().len(), 1);
    fs::remove_dir_all(&changed).unwrap();
}

/// What the log's file of a segment holds, if it can be unpacked.
fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    zstd::decode_all(bytes).ok()
}

/// Seeded: 60 bytes, or 500 with `AUDIT_TEST_FULL=1`.
#[test]
fn every_changed_byte_of_an_archive_is_found_and_its_segment_and_file_named() {
    let full = std::env::var_os("AUDIT_TEST_FULL").is_some_and(|v| v == "1");
    let wanted = if full { 500 } else { 60 };
    let (_within, at) = archived();
    let names = names(&at);
    let mut files = Vec::new();
    for name in &names {
        for entry in fs::read_dir(at.join(name.to_string())).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                let within = fs::read_dir(path).unwrap();
                files.extend(within.map(|entry| (*name, entry.unwrap().path())));
            } else {
                files.push((*name, path));
            }
        }
    }
    files.sort();
    // An xorshift generator.
    let mut state = 20_261_124_u64;
    let mut below = move |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n
    };
    let (mut found, mut equal) = (0, 0);
    while found < wanted {
        let (name, path) = &files[below(files.len())];
        let before = fs::read(path).unwrap();
        let mut changed = before.clone();
        changed[below(before.len())] ^= 1 + below(255) as u8;
        let is_log = path.ends_with("log.ndjson.zst");
        if is_log && unpacked(&changed) == unpacked(&before) {
            equal += 1;
            continue;
        }
        fs::write(path, changed).unwrap();
        let report = verify(&at, 1, &[]);
        let file = path.file_name().unwrap().to_str().unwrap();
        // A checkpoint of another size may be told of the segment beside it first.
        let named = about(&report, &name.to_string());
        assert!(
            named.iter().any(|one| {
                let told = format!("{} {}", one["file"], one["detail"]);
                let is_placed = !one["from"].is_null() || !one["line"].is_null();
                // The log's end tells what the small files were: which was changed, it can't tell.
                told.contains(file) || one["code"] == "damaged" || (is_log && is_placed)
            }),
            "{file}: {report}"
        );
        fs::write(path, before).unwrap();
        found += 1;
    }
    assert!(equal <= wanted / 5, "{equal} changed nothing that is read");
    println!("{found} changed bytes of an archive found, {equal} changed nothing that is read");
    verify(&at, 0, &[]);
}

#[test]
fn a_segment_of_another_log_doesnt_continue_an_archive() {
    let (_within, at) = archived();
    let (_another, other) = archived();
    let (names, others) = (names(&at), names(&other));
    // The same positions, of another tenant.
    fs::remove_dir_all(at.join(names[1].to_string())).unwrap();
    copy(
        &other.join(others[1].to_string()),
        &at.join(others[1].to_string()),
    );
    let report = verify(&at, 1, &[]);
    let findings = about(&report, &others[1].to_string());
    assert!(
        findings.iter().any(|one| one["code"] == "tenant"),
        "{report}"
    );
}

/// What nothing but one person's own content holds.
const PERSON: &str = "tq7XkV3mZp0cRw9sLd2YhB5n";

/// The files below a folder that hold a text, also within what is packed and encoded there.
fn holding(at: &Path, text: &str) -> Vec<PathBuf> {
    let has = |bytes: &[u8]| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    let mut found = Vec::new();
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(holding(&path, text));
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        if path.extension().is_some_and(|extension| extension == "zst") {
            bytes = zstd::decode_all(bytes.as_slice()).unwrap();
        }
        let lines = std::str::from_utf8(&bytes).unwrap().lines();
        let lines = lines.filter_map(|line| match Record::parse(line) {
            Ok(Record::Entry(line)) => Some(line),
            _ => None,
        });
        let shown = lines.flat_map(|line| line.disclosures.into_iter().flatten());
        let mut shown = shown.map(|shown| open_disclosure(&shown).unwrap().value);
        if has(&bytes) || shown.any(|value| has(value.as_bytes())) {
            found.push(path);
        }
    }
    found
}

#[test]
fn an_erased_person_is_nowhere_in_an_archive_that_verifies_and_says_by_which_entry() {
    let server = Server::archiving();
    for n in 0..3 {
        for user in [PERSON, "bob"] {
            let body = json!({
                "action_type": "UPDATE", "resource_type": "doc", "resource_id": n.to_string(),
                "resource_name": format!("of {user}"), "user_id": user, "user_agent": user,
                "reason": user, "before_state": {"of": user}, "after_state": [user],
                "metadata": user,
            });
            record(&server, &body);
        }
        prune(&server);
    }
    let archive = server.folder.path().join("archive");
    let at = archive.join(server.tenant.to_string());
    assert_eq!(holding(&at, PERSON).len(), 3);
    let before = server.folder.path().join("before");
    copy(&at, &before);

    let reason = ["--basis", "gdpr-17", "--yes"];
    server.run(&[&["erase", "--user", PERSON][..], &reason].concat());
    assert_eq!(holding(&archive, PERSON), Vec::<PathBuf>::new());
    let report = verify(&at, 0, &[]);
    assert_eq!(report["segments"], 3);
    assert_eq!(report["groups_erased"], 21);
    assert_eq!(report["warnings"], Value::Array(Vec::new()));
    let erased_by = report["erased_by"].as_array().unwrap();
    let groups = erased_by.iter().map(|one| one["groups"].as_u64().unwrap());
    assert_eq!(groups.sum::<u64>(), 21);
    let shown = audit(&["verify", at.to_str().unwrap()]).assert().code(0);
    let shown = text(&shown.get_output().stdout).to_owned();
    for one in erased_by {
        let named = format!("erased by seq {}", one["seq"]);
        assert!(shown.contains(&named), "{named}: {shown}");
    }

    // A segment beside the one that comes in its place, as a kill leaves them, still shows the person.
    for name in names(&before) {
        let [old, again] = [&before, &at].map(|folder| folder.join(name.to_string()));
        copy(&old, &again);
        let report = verify(&at, 1, &[]);
        let findings = about(&report, &name.to_string());
        assert!(!findings.is_empty(), "{report}");
        assert_eq!(report["findings_total"], findings.len(), "{report}");
        assert!(findings.iter().all(|one| one["code"] == "erased_shown"));
        assert_eq!(report["warnings"].as_array().unwrap().len(), 1, "{report}");
        fs::remove_dir_all(again).unwrap();
    }

    // What is archived later continues all of them.
    server.run(&["record", "VIEW", "doc", "last"]);
    prune(&server);
    let report = verify(&at, 0, &[]);
    assert_eq!(report["segments"], 4);
    assert_eq!(report["warnings"], Value::Array(Vec::new()));
}

/// Where an erasure has reached the archive, its segments are under heads that don't follow each other.
#[test]
fn of_an_archive_with_an_erased_entry_a_dropped_and_an_exchanged_segment_are_told() {
    let server = Server::archiving();
    for n in 0..3 {
        // The person's is in the middle one.
        let user = if n == 1 { PERSON } else { "bob" };
        let body = json!({
            "action_type": "UPDATE", "resource_type": "doc", "resource_id": n.to_string(),
            "user_id": user,
        });
        record(&server, &body);
        prune(&server);
    }
    let at = server.folder.path().join("archive");
    let at = at.join(server.tenant.to_string());
    let before = names(&at);
    server.run(&["erase", "--user", PERSON, "--basis", "gdpr-17", "--yes"]);
    let names = names(&at);
    assert_ne!(before[1], names[1]);
    assert_eq!((before[0], before[2]), (names[0], names[2]));
    verify(&at, 0, &[]);

    let changed = server.folder.path().join("changed");
    copy(&at, &changed);
    fs::remove_dir_all(changed.join(names[1].to_string())).unwrap();
    let report = verify(&changed, 1, &[]);
    let finding = about(&report, "archive")[0];
    assert_eq!(finding["code"], "missing");
    assert_eq!(finding["from"], names[1].from);
    assert_eq!(finding["to"], names[1].to - 1);
    fs::remove_dir_all(&changed).unwrap();

    copy(&at, &changed);
    let [first, second] = [&names[1], &names[2]].map(|name| changed.join(name.to_string()));
    let aside = server.folder.path().join("aside");
    fs::rename(&first, &aside).unwrap();
    fs::rename(&second, &first).unwrap();
    fs::rename(&aside, &second).unwrap();
    let report = verify(&changed, 1, &[]);
    for name in &names[1..] {
        let findings = about(&report, &name.to_string());
        let is_named = findings.iter().any(|one| one["code"] == "manifest");
        assert!(is_named, "{report}");
    }
    fs::remove_dir_all(&changed).unwrap();
}

/// A log of which three segments are archived, a person in the middle one, who was erased then: its archive, a
/// copy of before, and the middle one's name there and now.
fn erased_in_the_middle() -> (Server, PathBuf, PathBuf, [SegmentName; 2]) {
    let server = Server::archiving();
    for user in ["bob", PERSON, "bob"] {
        let body = json!({
            "action_type": "UPDATE", "resource_type": "doc", "resource_id": "d", "user_id": user,
            "reason": user,
        });
        record(&server, &body);
        prune(&server);
    }
    let archive = server.folder.path().join("archive");
    let at = archive.join(server.tenant.to_string());
    let before = server.folder.path().join("before");
    copy(&at, &before);
    server.run(&["erase", "--user", PERSON, "--basis", "gdpr-17", "--yes"]);
    let both = [&before, &at].map(|folder| names(folder)[1]);
    assert_ne!(both[0], both[1]);
    (server, at, before, both)
}

/// Puts a segment's old copy in place of the one that was written anew.
fn put_back(at: &Path, before: &Path, [old, new]: [SegmentName; 2]) {
    fs::remove_dir_all(at.join(new.to_string())).unwrap();
    let name = old.to_string();
    copy(&before.join(&name), &at.join(&name));
}

/// That of all segments the old copy is found, by the one position at which it shows what was erased.
fn assert_shown(report: &Value, old: SegmentName) {
    let findings = about(report, &old.to_string());
    assert_eq!(report["findings_total"], findings.len(), "{report}");
    let [finding] = findings[..] else {
        panic!("{report}")
    };
    assert_eq!(finding["code"], "erased_shown");
    assert_eq!(finding["from"], finding["to"]);
    let at = finding["from"].as_u64().unwrap();
    assert!(old.positions().contains(&at), "{report}");
    let detail = finding["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("actor, resource, reason shown"),
        "{detail}"
    );
}

#[test]
fn an_old_segment_in_place_of_a_renewed_one_is_found_by_the_entry_in_a_later_segment() {
    let (server, at, before, names) = erased_in_the_middle();
    // The entry that says what was erased comes into the archive itself.
    server.run(&["record", "VIEW", "doc", "last"]);
    prune(&server);
    let report = verify(&at, 0, &[]);
    assert_eq!(report["erasures_below"], report["to"]);
    put_back(&at, &before, names);
    assert_shown(&verify(&at, 1, &[]), names[0]);
    let shown = audit(&["verify", at.to_str().unwrap()]).assert().code(1);
    let shown = text(&shown.get_output().stdout).to_owned();
    let named = format!("{}: position", names[0]);
    assert!(
        shown.contains(&named) && shown.contains("says it was erased"),
        "{shown}"
    );
}

#[test]
fn an_old_segment_in_place_of_a_renewed_one_is_found_by_another_that_lost_something_too() {
    let server = Server::archiving();
    let ids = [1, 2].map(|n| Uuid::from_u128(n).to_string());
    for id in &ids {
        let body = json!({
            "id": id, "action_type": "UPDATE", "resource_type": "doc", "resource_id": "d",
            "user_id": PERSON, "reason": PERSON,
        });
        record(&server, &body);
        prune(&server);
    }
    let archive = server.folder.path().join("archive");
    let at = archive.join(server.tenant.to_string());
    let before = server.folder.path().join("before");
    copy(&at, &before);
    // Both by one entry, which lies above all segments.
    server.run(&["erase", &ids[0], &ids[1]]);
    let both = [&before, &at].map(|folder| names(folder)[0]);
    verify(&at, 0, &[]);
    put_back(&at, &before, both);
    assert_shown(&verify(&at, 1, &[]), both[0]);
}

#[test]
fn an_old_segment_in_place_of_a_renewed_one_is_found_by_an_export_beside_the_archive() {
    let (server, at, before, names) = erased_in_the_middle();
    server.run(&["record", "VIEW", "doc", "last"]);
    let export = |name: &str, more: &[&str]| {
        let path = server.folder.path().join(name);
        let path = path.to_str().unwrap().to_owned();
        server.run(&[&["export", "--evidence", path.as_str()][..], more].concat());
        path
    };
    let whole = export("whole", &[]);
    let report = verify(&at, 0, &["--known", &whole]);
    let size = report["erasures_below"].as_u64().unwrap();
    assert!(size > report["to"].as_u64().unwrap(), "{report}");
    assert_eq!(report["known"], json!([size]));
    assert_eq!(report["warnings"], json!([]));
    // All control entries are in every export, but what else is left out could be one.
    let part = export("part", &["--user", "nobody"]);
    let to = report["to"].clone();
    assert_eq!(verify(&at, 0, &["--known", &part])["erasures_below"], to);

    put_back(&at, &before, names);
    assert_shown(&verify(&at, 1, &["--known", &whole]), names[0]);
    assert_shown(&verify(&at, 1, &["--known", &part]), names[0]);

    // A last segment that is missing is found by it, too: what was pruned isn't there.
    fs::remove_dir_all(&at).unwrap();
    copy(&before, &at);
    let last = *self::names(&at).last().unwrap();
    fs::remove_dir_all(at.join(last.to_string())).unwrap();
    verify(&at, 0, &[]);
    let report = verify(&at, 1, &["--known", &whole]);
    let missing = &about(&report, "archive")[0];
    assert_eq!(missing["code"], "missing");
    assert_eq!(
        (&missing["from"], &missing["to"]),
        (&last.from.into(), &(last.to - 1).into())
    );
}

#[test]
fn what_is_erased_above_all_segments_cant_be_told_and_the_report_says_up_to_where_it_vouches() {
    let (server, at, before, names) = erased_in_the_middle();
    let known = at.join(names[1].to_string()).join("checkpoint");
    let kept = server.folder.path().join("kept");
    fs::copy(known, &kept).unwrap();
    let kept = kept.to_str().unwrap();
    verify(&at, 0, &["--known", kept]);
    put_back(&at, &before, names);

    // It is the archive of before.
    let report = verify(&at, 0, &[]);
    assert_eq!(report["erasures_below"], report["to"]);
    let shown = audit(&["verify", at.to_str().unwrap()]).assert().code(0);
    let shown = text(&shown.get_output().stdout).to_owned();
    let says = format!(
        "shows nothing that was erased up to size {}, and what was erased later can't be seen",
        report["to"]
    );
    assert!(shown.lines().next().unwrap().contains(&says), "{shown}");

    // A head that it doesn't reach is not as if all were well.
    let report = verify(&at, 1, &["--known", kept]);
    let finding = about(&report, "archive")[0];
    assert_eq!(finding["code"], "rollback");
    let size = finding["to"].as_u64().unwrap() + 1;
    assert_eq!(report["not_compared"], json!([size]));
    let report = verify(&at, 0, &["--known", kept, "--partial"]);
    let warnings = report["warnings"].as_array().unwrap();
    let tells = |one: &Value| one.as_str().unwrap().contains("was not compared");
    assert!(warnings.iter().any(tells), "{report}");
    let partial = ["verify", at.to_str().unwrap(), "--known", kept, "--partial"];
    let shown = audit(&partial).assert().code(0);
    let shown = text(&shown.get_output().stdout).to_owned();
    let says = format!("NOT compared with the known head of size {size}");
    assert!(shown.lines().next().unwrap().contains(&says), "{shown}");
}

#[test]
fn an_export_of_another_log_or_beside_an_export_says_nothing() {
    let (server, at, ..) = erased_in_the_middle();
    let other = Server::archiving();
    other.run(&["record", "VIEW", "doc", "one"]);
    let path = server.folder.path().join("other");
    let path = path.to_str().unwrap();
    other.run(&["export", "--evidence", path]);
    let report = verify(&at, 1, &["--known", path]);
    let findings = about(&report, path);
    assert_eq!(findings.last().unwrap()["code"], "tenant", "{report}");
    audit(&["verify", path, "--known", path]).assert().code(2);
}

/// With nothing but the folder: the tenant and its log are gone.
#[test]
fn a_deleted_tenants_whole_log_is_verified_from_its_archive() {
    let server = Server::archiving();
    for n in 0..3 {
        server.run(&["record", "VIEW", "doc", &format!("doc-{n}")]);
    }
    prune(&server);
    server.run(&["record", "VIEW", "doc", "doc-3"]);
    let tenant = server.tenant.to_string();
    let refused = server.audit(&["tenants", "delete", &tenant]).assert();
    refused.code(2);
    let delete = [
        "tenants",
        "delete",
        &tenant,
        "--yes",
        "--reason",
        "contract 7",
    ];
    server.run(&delete);
    let deadline = Instant::now() + Duration::from_secs(60);
    let tombstone = loop {
        let shown = server.run(&["--json", "tenants", "get", &tenant]);
        let shown: Value = serde_json::from_str(text(&shown.stdout)).unwrap();
        if shown["status"] == "deleted" {
            break shown["tombstone"].clone();
        }
        assert!(Instant::now() < deadline, "{shown}");
        std::thread::sleep(Duration::from_millis(50));
    };
    server.run(&delete);
    let within = TempDir::new().unwrap();
    let at = within.path().join(&tenant);
    copy(&server.folder.path().join("archive").join(&tenant), &at);
    drop(server);
    // Four entries, that of the prune, that of the end.
    let report = verify(&at, 0, &[]);
    assert_eq!((&report["from"], &report["to"]), (&0.into(), &6.into()));
    assert_eq!(tombstone["size"], 6);
    let known = within.path().join("known");
    fs::write(&known, tombstone["checkpoint"].as_str().unwrap()).unwrap();
    let known = ["--known", known.to_str().unwrap()];
    let report = verify(&at, 0, &known);
    assert_eq!(report["warnings"], Value::Array(Vec::new()));
    assert_eq!(report["erasures_below"], 6);
    // Without its last segment it doesn't reach the log's end.
    let last = *names(&at).last().unwrap();
    fs::remove_dir_all(at.join(last.to_string())).unwrap();
    verify(&at, 0, &[]);
    let report = verify(&at, 1, &known);
    assert_eq!(about(&report, "archive")[0]["code"], "rollback", "{report}");
}
