//! An old copy of the log's file: the server stops that log, and the deployment log's signing, and `tlog
//! recover` lets both go on.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use audit_core::tlog::HeadOpening;
use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::note::Note;
use audit_core::tlog::proof::InclusionProof;
use audit_core::tlog::verify::{Code, Options, Report, verify_lines};
use audit_core::{ErrorKind, Event, Recorder as _, TenantId};
use audit_server::config::Settings;
use audit_server::signing;
use audit_server::storage::Storage;
use serde_json::{Value, json};

use crate::child::{Server, free_port, recompute_root, settings};

pub(crate) async fn post(server: &Server, path: &str, body: &Value) -> reqwest::Response {
    let request = server.client().post(format!("{}{path}", server.url));
    let request = request.header("content-type", "application/json");
    request.body(body.to_string()).send().await.unwrap()
}

pub(crate) async fn read(answer: reqwest::Response) -> Value {
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

pub(crate) async fn record(server: &Server, n: u64) -> reqwest::Response {
    let event = json!({
        "action_type": "UPDATE",
        "resource_type": "invoice",
        "resource_id": format!("inv-{n}"),
        "user_id": "ann",
    });
    post(server, "/api/v1/logs", &event).await
}

pub(crate) async fn recorded(server: &Server, n: u64) -> Vec<Value> {
    let mut entries = Vec::new();
    for n in 0..n {
        let answer = record(server, n).await;
        assert_eq!(answer.status(), 201);
        entries.push(read(answer).await);
    }
    entries
}

pub(crate) async fn get(server: &Server, path: &str) -> (u16, String) {
    let url = format!("{}{path}", server.url);
    let answer = server.client().get(url).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Waits for the checkpoint of so many entries.
pub(crate) async fn checkpoint(server: &Server, tenant: &str, size: u64) -> Note {
    tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let (status, text) = get(server, &format!("/api/v1/tlog/{tenant}/checkpoint")).await;
            if status == 200 {
                let note = Note::parse(&text).unwrap();
                if Checkpoint::parse(note.text()).unwrap().size() >= size {
                    return note;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap()
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in ["audit.db", "audit.db-wal", "audit.db-shm"] {
        // What a stopped server left of them.
        drop(std::fs::remove_file(to.join(file)));
        if from.join(file).exists() {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
}

pub(crate) fn recover(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_audit-server"));
    settings(&mut command, folder, free_port());
    command.stdout(std::process::Stdio::piped());
    command.args(["tlog", "recover"]).args(args);
    command.output().unwrap()
}

fn judged(text: &str, known: &Note) -> Report {
    let options = Options {
        known: vec![known.clone()],
        ..Options::default()
    };
    verify_lines(text.lines(), options)
}

/// That a process without a signer adds nothing to a log that its guard stops.
async fn unsigned(folder: &Path, tenant: TenantId) {
    let store = format!("sqlite://{}", folder.join("audit.db").display());
    let settings = Settings::read(None, |name| {
        (name == "AUDIT_STORE_URL").then(|| store.clone())
    });
    let storage = Storage::open(&settings.unwrap(), None).await.unwrap();
    let event = Event::view("invoice", "inv-1");
    let refused = storage
        .log
        .recorder(tenant)
        .record(event)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.to_string().contains("tlog.guard"), "{refused}");
}

/// An empty one in its place would stop every log that was signed.
#[tokio::test]
async fn who_does_not_sign_makes_no_guard_that_is_named_and_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let (store, guard) = (folder.path().join("audit.db"), folder.path().join("mount"));
    let settings = Settings::read(None, |name| match name {
        "AUDIT_STORE_URL" => Some(format!("sqlite://{}", store.display())),
        "AUDIT_TLOG_GUARD" => Some(guard.display().to_string()),
        _ => None,
    });
    let settings = settings.unwrap();
    let refused = Storage::open(&settings, None).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(
        refused.to_string().contains("AUDIT_TLOG_GUARD"),
        "{refused}"
    );
    assert!(!guard.exists());
    let signer = signing::signer(&settings).unwrap();
    Storage::open(&settings, signer).await.unwrap();
    assert!(guard.exists());
}

/// A server whose deployment log a test can wait for.
async fn start(folder: &Path) -> Server {
    let every = ("AUDIT_DEPLOYMENT_EVERY", "1".to_owned());
    Server::start_on(folder, vec![every]).await
}

/// Waits for the proof that a head of so many entries is in the deployment log.
async fn head_proof(server: &Server, tenant: &str, size: u64) -> InclusionProof {
    let path = format!("/api/v1/tlog/{tenant}/deployment");
    tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let (status, text) = get(server, &path).await;
            if status == 200 {
                let proof = InclusionProof::parse(&text).unwrap();
                if HeadOpening::of(&proof).unwrap().size >= size {
                    return proof;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn an_old_copy_of_the_file_is_stopped_and_recovered() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, backup) = (parent.path().join("data"), parent.path().join("backup"));
    std::fs::create_dir(&folder).unwrap();
    let server = start(&folder).await;
    let entries = recorded(&server, 20).await;
    let tenant = entries[0]["tenant_id"].as_str().unwrap().to_owned();
    let then = checkpoint(&server, &tenant, 20).await;
    let then_proved = head_proof(&server, &tenant, 20).await;
    server.stop();
    copy(&folder, &backup);

    let server = start(&folder).await;
    recorded(&server, 10).await;
    let id = entries[3]["id"].as_str().unwrap();
    let erasure = json!({"ids": [id], "basis": "gdpr-17"});
    let asked = post(&server, "/api/v1/erasures", &erasure).await;
    assert_eq!(asked.status(), 202);
    let lost = checkpoint(&server, &tenant, 31).await;
    head_proof(&server, &tenant, 31).await;
    server.stop();
    copy(&backup, &folder);
    // Who doesn't sign is stopped as well: `vacuum` does an erasure's work, and relays and appends.
    unsigned(&folder, tenant.parse().unwrap()).await;

    let server = start(&folder).await;
    let refused = record(&server, 99).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let problem = read(refused).await;
    let detail = problem["detail"].as_str().unwrap();
    for named in ["tlog.guard", "31 entries", "audit-server tlog recover"] {
        assert!(detail.contains(named), "{detail}");
    }
    let (status, entry) = get(&server, &format!("/api/v1/logs/{id}")).await;
    assert_eq!(status, 200);
    assert!(
        entry.contains("\"user_id\":\"ann\""),
        "it came back: {entry}"
    );
    let (status, ready) = get(&server, "/health/ready").await;
    assert_eq!(status, 200);
    let ready: Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(ready, json!({"status": "degraded", "missing": ["guard"]}));
    // The deployment log's worker looks by itself.
    tokio::time::timeout(Duration::from_secs(30), async {
        while !get(&server, "/metrics")
            .await
            .1
            .contains("\naudit_guard_stopped 2\n")
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    // Another tenant's log goes on meanwhile.
    let other = post(&server, "/api/v1/tenants", &json!({"name": "other"})).await;
    let other = read(other).await["id"].as_str().unwrap().to_owned();
    let event = json!({"action_type": "VIEW", "resource_type": "a", "resource_id": "b"});
    let request = server.client().post(format!("{}/api/v1/logs", server.url));
    let request = request.header("content-type", "application/json");
    let request = request.header("x-tenant-id", &other);
    let recorded_there = request.body(event.to_string()).send().await.unwrap();
    assert_eq!(recorded_there.status(), 201);
    checkpoint(&server, &other, 1).await;
    let signed = checkpoint(&server, &tenant, 0).await;
    assert_eq!(signed.text(), then.text());
    server.stop();

    let key = "the key for its witnesses: localhost/audit/e2/deployment+";
    let (planned, begun) = (
        format!("; epoch 2 would begin; {key}"),
        format!("; epoch 2 begins; {key}"),
    );
    for (args, expected) in [
        (
            vec!["--dry-run"],
            vec![
                "11 entries are lost, positions 20 to 30; 1 entries to be erased again; epoch 2 would begin\n",
                "the deployment log: ",
                " leaves are lost, positions ",
                &*planned,
                "2 logs would go on\n",
            ],
        ),
        (
            vec!["--tenant", &tenant],
            vec![
                "11 entries are lost, positions 20 to 30; 1 entries erased again; epoch 2 begins at position 21\n",
                "1 logs go on\n",
            ],
        ),
        (vec![], vec![&*begun, "1 logs go on\n"]),
        (vec![], vec!["the guard stops no log\n"]),
    ] {
        let output = recover(&folder, &args);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{errors}");
        for expected in expected {
            assert!(text.contains(expected), "{text}{errors}");
        }
    }

    let server = start(&folder).await;
    let entries = recorded(&server, 20).await;
    assert_eq!(entries[0]["seq"], 22);
    let (_, entry) = get(&server, &format!("/api/v1/logs/{id}")).await;
    assert!(!entry.contains("ann"), "{entry}");
    let head = checkpoint(&server, &tenant, 42).await;
    let head = Checkpoint::parse(head.text()).unwrap();
    assert_eq!(head.origin(), format!("localhost/audit/e2/{tenant}"));
    let (status, key) = get(&server, &format!("/api/v1/tlog/{tenant}/key")).await;
    assert_eq!(status, 200);
    assert!(key.starts_with(&format!("{}+", head.origin())), "{key}");
    let (_, key) = get(&server, "/api/v1/tlog-deployment/key").await;
    assert!(key.starts_with("localhost/audit/e2/deployment+"), "{key}");
    let proved = head_proof(&server, &tenant, 42).await;
    let (status, text) = get(&server, "/api/v1/logs/export?format=evidence").await;
    assert_eq!(status, 200);
    let report = judged(&text, &then);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert_eq!((report.epochs.len(), report.epochs[0].seq), (1, 21));
    // A proof under the new name of the deployment log, and one under the old: both are continued.
    let size = HeadOpening::of(&proved).unwrap().size;
    let options = Options {
        head_proofs: vec![then_proved, proved],
        ..Options::default()
    };
    let report = verify_lines(text.lines(), options);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert_eq!(report.known, [20, size]);
    let report = judged(&text, &lost);
    let codes: Vec<_> = report.findings.iter().map(|one| one.code).collect();
    assert_eq!(codes, [Code::Rollback]);
    server.stop();
    recompute_root(&folder);
}
