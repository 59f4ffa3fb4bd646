//! The key that signs is lost, and nobody has it: what still holds, what stops, and what another key is
//! good for. `docs/evidence.md` says it in words.

use std::fs;
use std::path::PathBuf;

use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::note::VerifyingKey;
use audit_core::tlog::proof::InclusionProof;
use audit_core::tlog::verify::{Code, Options, Report, verify_lines};
use audit_core::tlog::{Hash, note::Note};
use serde_json::{Value, json};

use crate::child::Server;
use crate::guard::{checkpoint, get, post, read, record, recorded};
use crate::stack::Stack;

const EXPORT: &str = "/api/v1/logs/export?format=evidence";

async fn key(server: &Server, tenant: &str) -> VerifyingKey {
    let (status, vkey) = get(server, &format!("/api/v1/tlog/{tenant}/key")).await;
    assert_eq!(status, 200, "{vkey}");
    VerifyingKey::parse(vkey.trim_end()).unwrap()
}

async fn proof(server: &Server, entry: &Value) -> (u16, String) {
    let id = entry["id"].as_str().unwrap();
    get(server, &format!("/api/v1/logs/{id}/proof")).await
}

/// What an auditor is told who had the key before, and perhaps a checkpoint.
fn judged(export: &str, key: &VerifyingKey, known: &[&Note]) -> Report {
    let options = Options {
        keys: vec![key.clone()],
        known: known.iter().copied().cloned().collect(),
        ..Options::default()
    };
    verify_lines(export.lines(), options)
}

#[tokio::test]
async fn without_its_key_a_log_is_not_signed_on_and_what_was_signed_still_verifies() {
    let stack = Stack::make().await;
    let folder = tempfile::tempdir().unwrap();
    let start = || Server::start_on(folder.path(), stack.engines());
    let server = start().await;
    let entries = recorded(&server, 3).await;
    let tenant = entries[0]["tenant_id"].as_str().unwrap().to_owned();
    let signed = checkpoint(&server, &tenant, 3).await;
    let old = key(&server, &tenant).await;
    let (status, export) = get(&server, EXPORT).await;
    assert_eq!(status, 200);
    server.stop();

    let places = [PathBuf::from("tlog.key"), "audit-data/tlog.key".into()];
    let kept = places.map(|place| folder.path().join(place));
    let kept = kept.into_iter().find(|path| path.exists()).unwrap();
    let secret = fs::read_to_string(&kept).unwrap();
    fs::remove_file(&kept).unwrap();

    // The first start without it makes another one.
    let server = start().await;
    let new = key(&server, &tenant).await;
    assert_ne!(new, old);
    assert_eq!(record(&server, 4).await.status(), 201, "entries are taken");
    let (status, problem) = get(&server, EXPORT).await;
    assert_eq!(status, 503);
    assert!(problem.contains("signed by another key"), "{problem}");
    let now = checkpoint(&server, &tenant, 0).await;
    assert_eq!(now.encode(), signed.encode());
    // What the old key vouched for, it vouches for; of the rest nothing is proved.
    let (status, text) = proof(&server, &entries[1]).await;
    assert_eq!(status, 200, "{text}");
    let leaf = entries[1]["receipt"]["leaf_hash"].as_str().unwrap();
    let leaf = Hash::from_base64(leaf).unwrap();
    let held = InclusionProof::parse(&text).unwrap();
    held.verify(&leaf, std::slice::from_ref(&old)).unwrap();
    assert!(held.verify(&leaf, std::slice::from_ref(&new)).is_err());
    let behind = recorded(&server, 1).await;
    assert_eq!(proof(&server, &behind[0]).await.0, 503);
    assert!(judged(&export, &old, &[&signed]).is_verified());

    // A tenant that begins now is signed for with the new key.
    let made = post(&server, "/api/v1/tenants", &json!({"name": "after"})).await;
    assert_eq!(made.status(), 201);
    let after = read(made).await["id"].as_str().unwrap().to_owned();
    let event = json!({"action_type": "VIEW", "resource_type": "doc", "resource_id": "d1"});
    let path = format!("/api/v1/logs?tenant_id={after}");
    assert_eq!(post(&server, &path, &event).await.status(), 201);
    let head = checkpoint(&server, &after, 1).await;
    Checkpoint::open(&head, &[key(&server, &after).await]).unwrap();
    server.stop();

    // Where a copy of the old one is found, nothing is missing, and it takes over what the other one began.
    let made = fs::read_to_string(&kept).unwrap();
    fs::write(kept.with_file_name("tlog.old.keys"), made).unwrap();
    fs::write(&kept, secret).unwrap();
    let server = start().await;
    checkpoint(&server, &tenant, 5).await;
    // With the entry that says so.
    checkpoint(&server, &after, 2).await;
    let (status, export) = get(&server, EXPORT).await;
    assert_eq!(status, 200, "{export}");
    let report = judged(&export, &old, &[&signed]);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert_eq!((report.size, report.known_size()), (5, Some(3)));
    // Who takes the other one for the log's is told.
    let report = judged(&export, &new, &[]);
    let codes: Vec<_> = report.findings.iter().map(|one| one.code).collect();
    assert_eq!(codes, [Code::ForeignKey]);
    server.stop();
}
