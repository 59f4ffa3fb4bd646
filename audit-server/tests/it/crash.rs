//! What survives a `kill -9`, and what a full disk does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Mutex;

use crate::child::{Server, command, free_port, progressed, recompute_root, settings, sized};
use crate::stack::Stack;

const WRITERS: u64 = 16;

fn event(id: &str, writer: u64, n: u64) -> String {
    format!(
        r#"{{"id":"{id}","action_type":"UPDATE","resource_type":"invoice","resource_id":"inv-{n}","user_id":"writer-{writer}","metadata":{{"n":{n}}}}}"#
    )
}

fn id_of(writer: u64, n: u64) -> String {
    format!("0190a000-0000-7000-8{writer:03x}-{n:012x}")
}

/// Every entry of the log, by `seq`.
async fn export(server: &Server) -> BTreeMap<u64, Value> {
    let url = format!("{}/api/v1/logs/export?format=ndjson", server.url);
    let text = server
        .client()
        .get(url)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    text.lines()
        .map(|line| {
            let entry: Value = serde_json::from_str(line).unwrap();
            (entry["seq"].as_u64().unwrap(), entry)
        })
        .collect()
}

#[derive(Default)]
struct Promises {
    /// id → seq of each receipt.
    receipts: HashMap<String, u64>,
    /// ids that were answered 202.
    accepted: BTreeSet<String>,
}

/// 16 writers that retry, some of them asynchronously, under `kill -9`: no acknowledged event is
/// missing, none is there twice, each 202 is in the log or among the dead letters, positions are
/// gap-free, and with the embedded store the root recomputed from the file equals the head's.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let stack = Stack::make().await;
    let mut server = Server::start_on(folder.path(), stack.engines()).await;
    let promises = Arc::new(Mutex::new(Promises::default()));
    let over = Arc::new(AtomicBool::new(false));
    let progress = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (client, url) = (server.client(), format!("{}/api/v1/logs", server.url));
        let (promises, over, progress) = (
            Arc::clone(&promises),
            Arc::clone(&over),
            Arc::clone(&progress),
        );
        writers.push(tokio::spawn(async move {
            let mut n = 0;
            while !over.load(Ordering::Relaxed) {
                let id = id_of(writer, n);
                let body = event(&id, writer, n);
                // Until it is answered: the same event, again and again.
                loop {
                    let mut request = client
                        .post(&url)
                        .header("content-type", "application/json")
                        .body(body.clone());
                    if writer % 4 == 0 {
                        request = request.header("prefer", "respond-async");
                    }
                    let Ok(answer) = request.send().await else {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    };
                    let status = answer.status().as_u16();
                    let Ok(text) = answer.text().await else {
                        continue;
                    };
                    match status {
                        200 | 201 => {
                            let answer: Value = serde_json::from_str(&text).unwrap();
                            let seq = answer["receipt"]["seq"].as_u64().unwrap();
                            promises.lock().await.receipts.insert(id, seq);
                        }
                        202 => {
                            promises.lock().await.accepted.insert(id);
                        }
                        503 => continue,
                        other => panic!("{other}: {text}"),
                    }
                    break;
                }
                progress.fetch_add(1, Ordering::Relaxed);
                n += 1;
            }
        }));
    }
    for round in 0..sized(20).max(3) {
        // Killed in the middle of work: after some more events, at a moment that varies.
        progressed(&progress, 100 + 37 * (round % 7)).await;
        server.kill_and_restart().await;
    }
    over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let promises = promises.lock().await;

    // What was queued is worked off, or given up where an operator sees it.
    let deadline = Instant::now() + Duration::from_secs(120);
    let entries = loop {
        let entries = export(&server).await;
        let ids: BTreeSet<&str> = entries.values().filter_map(|e| e["id"].as_str()).collect();
        let url = format!("{}/api/v1/admin/dead-letters", server.url);
        let dead = server
            .client()
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        let missing: Vec<&String> = promises
            .accepted
            .iter()
            .filter(|id| !ids.contains(id.as_str()) && !dead.contains(id.as_str()))
            .collect();
        if missing.is_empty() {
            break entries;
        }
        assert!(
            Instant::now() < deadline,
            "accepted, and nowhere: {missing:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    };

    let positions: Vec<u64> = entries.keys().copied().collect();
    assert_eq!(
        positions,
        (0..entries.len() as u64).collect::<Vec<_>>(),
        "gap-free positions"
    );
    let ids: Vec<&str> = entries
        .values()
        .map(|e| e["id"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids.iter().collect::<BTreeSet<_>>().len(),
        ids.len(),
        "an id is there twice"
    );
    for (id, seq) in &promises.receipts {
        let entry = entries
            .get(seq)
            .unwrap_or_else(|| panic!("the receipt for {seq} is broken"));
        assert_eq!(
            entry["id"].as_str(),
            Some(id.as_str()),
            "another event has seq {seq}"
        );
    }
    println!(
        "{} receipts and {} events accepted for later, {} entries",
        promises.receipts.len(),
        promises.accepted.len(),
        entries.len()
    );
    assert!(!promises.receipts.is_empty() && !promises.accepted.is_empty());
    server.stop();
    if let Stack::Embedded(_) = stack {
        recompute_root(folder.path());
    }
}

/// A killed process proves no fsync: under `strace`, each answered write has an `fdatasync` or
/// `fsync` of the log's file between its last write to it and its response.
#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_commit_is_synced_before_its_response() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let port = free_port();
    let mut strace = Command::new("strace");
    settings(&mut strace, folder.path(), port);
    // Nothing but appends writes to the log's file then: no signer keeps its checkpoints there.
    strace.env("AUDIT_ROLES", "api");
    strace
        .args([
            "-f",
            "-y",
            "-s",
            "64",
            "-e",
            "trace=pwrite64,write,writev,sendto,sendmsg,fsync,fdatasync",
        ])
        .arg("-o")
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_audit-server"))
        .arg("serve");
    let server = Server::wait(strace.spawn().unwrap(), folder.path(), port).await;
    let client = server.client();
    for n in 0..20 {
        let answer = client
            .post(format!("{}/api/v1/logs", server.url))
            .header("content-type", "application/json")
            .body(event(&id_of(0, n), 0, n))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 201);
    }
    let pid = server.pid();
    assert!(
        Command::new("pkill")
            .args(["-TERM", "-P", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
    let deadline = Instant::now() + Duration::from_secs(30);
    let text = loop {
        let text = std::fs::read_to_string(&trace).unwrap();
        if text.contains("+++ exited with 0 +++") {
            break text;
        }
        assert!(Instant::now() < deadline, "the traced server did not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };

    let (mut unsynced, mut synced, mut answers) = (false, 0, 0);
    // Threads whose sync of the log was cut in two lines, of which only the first names the file.
    let mut syncing = BTreeSet::new();
    for line in text.lines() {
        let thread = line.split(' ').next().unwrap();
        let on_log = line.contains("/audit.db-wal>") || line.contains("/audit.db>");
        let is_sync = line.contains("fdatasync(") || line.contains("fsync(");
        let resumed = line.contains("fdatasync resumed>") || line.contains("fsync resumed>");
        if on_log && line.contains("pwrite64(") {
            unsynced = true;
        } else if on_log && is_sync && line.contains("<unfinished ...>") {
            syncing.insert(thread);
        } else if (on_log && is_sync) || (resumed && syncing.remove(thread)) {
            assert!(line.ends_with("= 0"), "{line}");
            synced += 1;
            unsynced = false;
        } else if line.contains("HTTP/1.1 201") {
            assert!(!unsynced, "answered before the sync: {line}");
            answers += 1;
        }
    }
    assert_eq!(answers, 20, "answers in the trace");
    assert!(
        synced >= 20,
        "{synced} syncs of the log's file for 20 commits"
    );
}

/// A server whose files may not grow: an error, and everything that was acknowledged is still there.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_and_keeps_what_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    // Makes the files, so that the limit meets the appends and not the start.
    Server::start(folder.path()).await.stop();
    let port = free_port();
    let mut limited = Command::new("bash");
    settings(&mut limited, folder.path(), port);
    // In KiB; a file-size signal is ignored, so that the write fails as on a full disk.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" serve"]);
    limited.arg(env!("CARGO_BIN_EXE_audit-server"));
    let server = Server::wait(limited.spawn().unwrap(), folder.path(), port).await;
    let client = server.client();
    let mut acknowledged = Vec::new();
    let mut refused = None;
    for n in 0..5_000 {
        let body = event(&id_of(1, n), 1, n).replace(
            "\"metadata\":{",
            &format!("\"metadata\":{{\"pad\":\"{}\",", "x".repeat(20_000)),
        );
        let answer = client
            .post(format!("{}/api/v1/logs", server.url))
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .unwrap();
        match answer.status().as_u16() {
            201 => acknowledged.push(id_of(1, n)),
            status => {
                refused = Some((status, answer.text().await.unwrap()));
                break;
            }
        }
    }
    let (status, problem) = refused.expect("the limit was reached");
    assert_eq!(status, 503, "{problem}");
    // A file that may not grow is told as a full disk or as one that fails.
    let full = problem.contains("the storage is full");
    assert!(
        full || problem.contains("the database can't be read or written"),
        "{problem}"
    );
    assert!(!acknowledged.is_empty());
    drop(server);

    let mut server = Server::wait(
        command(folder.path(), port).spawn().unwrap(),
        folder.path(),
        port,
    )
    .await;
    server.kill_and_restart().await;
    let entries = export(&server).await;
    let ids: BTreeSet<&str> = entries.values().filter_map(|e| e["id"].as_str()).collect();
    for id in &acknowledged {
        assert!(ids.contains(id.as_str()), "{id} was acknowledged");
    }
    server.stop();
    recompute_root(folder.path());
}
