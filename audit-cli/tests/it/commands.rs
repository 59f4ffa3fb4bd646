//! Each command, once through.

use serde_json::json;

use crate::server::Server;
use crate::{json_lines, text};

#[test]
fn what_is_recorded_is_found_shown_counted_and_followed() {
    let server = Server::start();
    let recorded = server.run(&[
        "--json",
        "record",
        "UPDATE",
        "invoice",
        "inv-1",
        "--user-id",
        "ann",
        "--action",
        "invoice.approve",
        "--outcome",
        "denied",
        "--severity",
        "WARNING",
        "--related",
        "order=o-7",
        "--ip-address",
        "192.0.2.7",
        "--reason",
        "quarterly close",
        "--metadata",
        "{ \"n\": 9007199254740993, \"e\":1e2 }",
    ]);
    let receipt = &json_lines(&recorded)[0];
    let id = receipt["id"].as_str().unwrap();
    server
        .audit(&["--quiet", "record"])
        .write_stdin(
            r#"{"action_type":"VIEW","resource_type":"page","resource_id":"p","user_id":"bob"}"#,
        )
        .assert()
        .success();

    let shown = server.run(&["get", id, "--json"]);
    assert!(text(&shown.stdout).contains("\"metadata\":{ \"n\": 9007199254740993, \"e\":1e2 }"));
    let shown = server.run(&["get", id]);
    assert!(text(&shown.stdout).contains("\nreason             quarterly close\n"));

    for filter in [
        &["--user-id", "ann"][..],
        &["--action", "invoice.approve"],
        &["--related-id", "o-7"],
        &[
            "--outcome",
            "denied",
            "--severity",
            "WARNING",
            "--severity",
            "ERROR",
        ],
        &["--ip-address", "192.0.2.7"],
        &["quarterly", "close"],
        &["--from", "1h", "--resource-id", "inv-1"],
    ] {
        let found = server.run(&[&["--json", "search"], filter].concat());
        let found = json_lines(&found);
        assert_eq!(found.len(), 1, "{filter:?}");
        assert_eq!(found[0]["id"], id);
    }
    let table = server.run(&["search", "--user-id", "ann"]);
    let table = text(&table.stdout);
    assert!(
        table.starts_with("SEQ") && table.contains("invoice/inv-1"),
        "{table}"
    );
    let nothing = server.run(&["search", "--user-id", "nobody"]);
    assert_eq!(
        (text(&nothing.stdout), text(&nothing.stderr)),
        ("", "nothing matches\n")
    );

    let stats = &json_lines(&server.run(&["stats", "--json", "--group-by", "outcome"]))[0];
    assert_eq!(stats["by_action"]["VIEW"], 1);
    assert_eq!(stats["by_outcome"]["denied"], 1);
    let all = server.run(&["stats"]);
    let all = text(&all.stdout);
    assert!(all.contains(" entries, 0 pruned"), "{all}");
    assert!(all.contains("DAY"), "{all}");

    let from = receipt["seq"].to_string();
    let followed = server.run(&["tail", "--from", &from, "-n", "2", "--json"]);
    let followed: Vec<_> = json_lines(&followed)
        .iter()
        .map(|e| e["user_id"].clone())
        .collect();
    assert_eq!(followed, [json!("ann"), json!("bob")]);
}

/// And nothing else.
#[test]
fn stats_are_split_as_asked() {
    let server = Server::start();
    for (kind, outcome) in [
        ("VIEW", "denied"),
        ("VIEW", "failure"),
        ("LOGIN", "failure"),
    ] {
        server.run(&["record", kind, "page", "p", "--outcome", outcome]);
    }
    let table = |arguments: &[&str]| {
        let output = server.run(&[&["stats"], arguments].concat());
        let lines = text(&output.stdout).lines();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        lines.map(words).collect::<Vec<Vec<String>>>()
    };
    let by_outcome = table(&["--group-by", "outcome"]);
    assert_eq!(by_outcome[0], ["OUTCOME", "ENTRIES"]);
    assert!(
        by_outcome.contains(&vec!["denied".into(), "1".into()]),
        "{by_outcome:?}"
    );
    assert!(
        by_outcome.contains(&vec!["failure".into(), "2".into()]),
        "{by_outcome:?}"
    );
    assert!(
        by_outcome.iter().all(|row| row.len() == 2),
        "{by_outcome:?}"
    );
    let by_day = table(&["--interval", "day"]);
    assert_eq!(by_day[0], ["FROM", "ENTRIES"]);
    assert!(by_day.iter().all(|row| row.len() == 2), "{by_day:?}");
    let both = table(&["--group-by", "severity", "--interval", "month"]);
    assert_eq!(both[0], ["FROM", "SEVERITY", "ENTRIES"]);
    assert_eq!(both.len(), 2, "{both:?}");
    let nothing = server.run(&["stats", "--group-by", "outcome", "--to", "2000-01-01"]);
    assert_eq!(
        (text(&nothing.stdout), text(&nothing.stderr)),
        ("", "nothing matches\n")
    );
}

#[test]
fn tenants_are_made_renamed_and_closed() {
    let server = Server::start();
    let made = &json_lines(&server.run(&["--json", "tenants", "create", "Example Ltd"]))[0];
    let id = made["id"].as_str().unwrap();
    assert_eq!(made["status"], "active");
    server.run(&["tenants", "rename", id, "Example plc"]);
    server.run(&[
        "tenants",
        "set-status",
        id,
        "suspended",
        "--reason",
        "unpaid",
    ]);
    let listed = server.run(&["--json", "tenants", "list", "--name", "Example plc"]);
    assert_eq!(json_lines(&listed)[0]["status"], "suspended");
    server
        .audit(&["--tenant", id, "record", "VIEW", "a", "b"])
        .assert()
        .code(1);
    server.run(&["tenants", "set-status", id, "active"]);
    server.run(&["--tenant", id, "record", "VIEW", "a", "b"]);
    let all = server.run(&["tenants", "list"]);
    assert!(text(&all.stdout).contains("Example plc"));
}

#[test]
fn a_retention_is_set_and_shown_and_a_hold_refuses_what_it_must() {
    let server = Server::start();
    let made = &json_lines(&server.run(&["--json", "tenants", "create", "Example Ltd"]))[0];
    let tenant = made["id"].as_str().unwrap();
    let shown = |args: &[&str]| text(&server.run(args).stdout).to_owned();
    let retention = || shown(&["tenants", "retention", tenant]);
    assert_eq!(retention(), "kept for ever\n");
    let set = |more: &[&str]| {
        let first = ["tenants", "set-retention", tenant, "--keep-days", "365"];
        shown(&[&first[..], more].concat())
    };
    let rule = [
        "--erase",
        "page.view=30:context,actor",
        "--erase",
        "page.edit=40",
    ];
    let due = set(&[&["--dry-run"], &rule[..]].concat());
    assert!(due.starts_with("0 entries would be pruned"), "{due}");
    assert!(
        due.contains("page.view: 0 entries would lose groups"),
        "{due}"
    );
    assert_eq!(retention(), "kept for ever\n");
    set(&[&["--minimum-days", "30"], &rule[..]].concat());
    let told = retention();
    assert!(
        told.contains("page.view: actor, context erased after 30 days"),
        "{told}"
    );
    assert!(told.contains("not pruned before 30 days"), "{told}");
    server
        .audit(&["tenants", "set-retention", tenant, "--erase", "page.view"])
        .assert()
        .code(2);
    server
        .audit(&["tenants", "set-retention", tenant, "--keep-days", "0"])
        .assert()
        .code(1);

    let recorded = server.run(&["--json", "--tenant", tenant, "record", "VIEW", "a", "b"]);
    let id = json_lines(&recorded)[0]["id"].as_str().unwrap().to_owned();
    let placed = server.run(&["--json", "tenants", "hold", tenant, "Case 7/2026"]);
    let hold = json_lines(&placed)[0]["id"].as_str().unwrap().to_owned();
    let refused = server.audit(&["--tenant", tenant, "erase", &id]).assert();
    let refused = refused.code(1);
    let said = text(&refused.get_output().stderr).to_owned();
    assert!(
        said.contains("Case 7/2026") && said.contains(&hold),
        "{said}"
    );
    let table = shown(&["tenants", "holds", tenant]);
    assert!(
        table.contains("Case 7/2026") && table.trim_end().ends_with(" -"),
        "{table}"
    );
    let release = ["tenants", "release", tenant, &hold, "--reason", "settled"];
    server.run(&release);
    server.run(&release);
    let holds = json_lines(&server.run(&["--json", "tenants", "holds", tenant]));
    assert!(holds.len() == 1 && !holds[0]["released_at"].is_null());
    server.run(&["--tenant", tenant, "erase", &id]);
}

#[test]
fn a_key_works_until_it_is_revoked() {
    let server = Server::start();
    let made = &json_lines(&server.run(&["--json", "keys", "create", "ci", "--role", "user"]))[0];
    let secret = made["key"].as_str().unwrap();
    let by_key = || server.audit(&["--token", secret, "record", "VIEW", "page", "1"]);
    by_key().assert().success();
    let listed = json_lines(&server.run(&["--json", "keys", "list"]));
    assert_eq!((listed.len(), &listed[0]["id"]), (1, &made["id"]));
    assert!(!text(&server.run(&["keys", "list"]).stdout).contains(secret));
    server.run(&["keys", "revoke", made["id"].as_str().unwrap()]);
    by_key().assert().code(4);
}

#[test]
fn what_is_erased_or_pruned_is_gone_and_said_to_be() {
    let server = Server::start();
    let made = server.run(&["--json", "record", "VIEW", "page", "1", "--user-id", "ann"]);
    let receipt = &json_lines(&made)[0];
    let id = receipt["id"].as_str().unwrap();
    assert_eq!(text(&server.run(&["erase", id]).stdout), "erased\n");
    assert_eq!(
        text(&server.run(&["erase", id]).stdout),
        "nothing was left to erase\n"
    );
    let left = &json_lines(&server.run(&["--json", "get", id]))[0];
    assert!(left.get("user_id").is_none() && left["erased"].as_array().unwrap().len() >= 2);

    let before = "2999-01-01";
    let tried = &json_lines(&server.run(&["--json", "prune", "--before", before, "--dry-run"]))[0];
    assert_eq!(tried["dry_run"], true);
    // Where nobody can be asked, nothing goes unless that is said.
    let unasked = server
        .audit(&["prune", "--before", before])
        .assert()
        .code(2);
    assert!(text(&unasked.get_output().stderr).contains("--yes"));
    let pruned = &json_lines(&server.run(&["--json", "prune", "--yes", "--before", before]))[0];
    assert_eq!(pruned["entries"], tried["entries"]);
    server.audit(&["get", id]).assert().code(1);
    server.run(&["prune", "--yes", "--older-than-days", "1"]);
}

#[test]
fn everything_of_a_user_is_erased_when_that_is_confirmed() {
    let server = Server::start();
    for n in 0..4 {
        let user = if n < 3 { "ann" } else { "bob" };
        let page = n.to_string();
        server.run(&["record", "VIEW", "page", &page, "--user-id", user]);
    }
    let tried = server.run(&["--json", "erase", "--user", "ann", "--dry-run"]);
    assert_eq!(
        json_lines(&tried),
        [json!({"dry_run": true, "matching": 3, "erasable": 3})]
    );
    // Nobody can be asked.
    let refused = server.audit(&["erase", "--user", "ann"]).assert().code(2);
    assert!(text(&refused.get_output().stderr).contains("--yes"));
    assert_eq!(
        json_lines(&server.run(&["--json", "search", "--user", "ann"])).len(),
        3
    );
    let erased = server.run(&[
        "erase",
        "--user",
        "ann",
        "--yes",
        "--groups",
        "actor",
        "--basis",
        "gdpr-17",
        "--reason",
        "request 7",
    ]);
    assert_eq!(text(&erased.stdout), "erased 3 entries\n");
    assert!(
        server
            .run(&["--json", "search", "--user", "ann"])
            .stdout
            .is_empty()
    );
    let left = json_lines(&server.run(&["--json", "search", "--resource-type", "page"]));
    assert_eq!(left.len(), 4);
    let again = server.run(&["--json", "erase", "--user", "ann", "--yes"]);
    let again = &json_lines(&again)[0];
    assert_eq!(
        (&again["state"], &again["entries"]),
        (&"done".into(), &0.into())
    );
    let ids: Vec<&str> = left.iter().map(|e| e["id"].as_str().unwrap()).collect();
    let begun = server.run(&["erase", ids[0], "--id", ids[1], "--no-wait"]);
    assert!(text(&begun.stdout).starts_with("erasure "));
    for arguments in [
        &["erase"][..],
        &["erase", ids[0], "--user", "ann"],
        &["erase", "--user", "ann", "--groups", "body"],
        &["erase", "--user", "ann", "--basis", "Because"],
    ] {
        server.audit(arguments).assert().code(2);
    }
}

#[test]
fn an_operator_sees_health_and_dead_letters() {
    let server = Server::start();
    assert_eq!(text(&server.run(&["health"]).stdout), "ready\n");
    assert!(
        server
            .run(&["--json", "dead-letters", "list"])
            .stdout
            .is_empty()
    );
    let sent = server.run(&["--json", "dead-letters", "redrive"]);
    assert_eq!(json_lines(&sent), [json!({"redriven": 0})]);
}
