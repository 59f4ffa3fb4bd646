//! What a server shows of its log after kills, a change of the key and an epoch, checked by tools that
//! share no line with the project: Go's `sumdb/note` and `sumdb/tlog` (`dev/tlog-check`), and the crates
//! `signed_note` and `tlog_tiles`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::note::Note;
use audit_core::tlog::tile::{Content, Tile};
use serde_json::{Value, json};

use crate::child::{Server, free_port, progressed, settings, sized};
use crate::guard::{checkpoint, copy, get, recorded, recover};

const WRITERS: u64 = 4;
/// Events in one call: the log is to have many tiles.
const BULK: u64 = 20;

/// What was fetched of one tenant's log, at moments that went by.
struct Collected {
    tenant: String,
    checkpoints: BTreeSet<String>,
    keys: BTreeSet<String>,
}

impl Collected {
    /// Keeps the server's present head, if it has one, and the key that it names.
    async fn look(&mut self, server: &Server) {
        let (status, text) = get(server, &format!("/api/v1/tlog/{}/checkpoint", self.tenant)).await;
        if status == 200 {
            self.checkpoints.insert(text);
        }
        let (status, keys) = get(server, &format!("/api/v1/tlog/{}/key", self.tenant)).await;
        assert_eq!(status, 200, "{keys}");
        self.keys.extend(keys.lines().map(str::to_owned));
    }

    fn notes(&self) -> impl Iterator<Item = (Note, Checkpoint)> {
        self.checkpoints.iter().map(|text| {
            let note = Note::parse(text).unwrap();
            let checkpoint = Checkpoint::parse(note.text()).unwrap();
            (note, checkpoint)
        })
    }
}

/// Every tile of the tree of `newest` entries, and those that earlier sizes end in.
async fn tiles(
    server: &Server,
    tenant: &str,
    newest: u64,
    sizes: &[u64],
) -> BTreeMap<Tile, Vec<u8>> {
    let mut wanted = BTreeSet::new();
    for content in (0..8).map(Content::Hashes).chain([Content::Entries]) {
        wanted.extend((0..).map_while(|index| Tile::at(content, index, newest)));
        for size in sizes {
            let last = (0..)
                .map_while(|index| Tile::at(content, index, *size))
                .last();
            wanted.extend(last);
        }
    }
    let client = server.client();
    let mut found = BTreeMap::new();
    for tile in wanted {
        let url = format!("{}/api/v1/tlog/{tenant}/{}", server.url, tile.path());
        let answer = client.get(url).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", tile.path());
        found.insert(tile, answer.bytes().await.unwrap().to_vec());
    }
    found
}

fn write(folder: &Path, path: &str, bytes: &[u8]) {
    let path = folder.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Four writers until they are told to stop; a call that fails is made again with the same ids.
fn write_on(
    server: &Server,
    over: &Arc<AtomicBool>,
    progress: &Arc<AtomicU64>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let writer = |writer: u64| {
        let (client, url) = (server.client(), format!("{}/api/v1/logs/bulk", server.url));
        let (over, progress) = (Arc::clone(over), Arc::clone(progress));
        tokio::spawn(async move {
            let mut n = 0;
            while !over.load(Ordering::Relaxed) {
                let events: Vec<Value> = (n..n + BULK)
                    .map(|n| {
                        json!({
                            "id": format!("0190b000-0000-7000-8{writer:03x}-{n:012x}"),
                            "action_type": "UPDATE",
                            "resource_type": "invoice",
                            "resource_id": format!("inv-{n}"),
                            "user_id": format!("writer-{writer}"),
                        })
                    })
                    .collect();
                let body = Value::from(events).to_string();
                let request = client.post(&url).header("content-type", "application/json");
                match request.body(body).send().await {
                    Ok(answer) if answer.status().is_success() => {
                        progress.fetch_add(BULK, Ordering::Relaxed);
                        n += BULK;
                    }
                    // Killed, or not ready yet.
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
    };
    (0..WRITERS).map(writer).collect()
}

fn rotate(folder: &Path) {
    let mut rotate = Command::new(env!("CARGO_BIN_EXE_audit-server"));
    settings(&mut rotate, folder, free_port());
    let output = rotate.args(["tlog", "rotate"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

/// Go's libraries and Rust's crates accept checkpoints, inclusion, consistency and tiles of a server
/// that was killed 20 times while it wrote, then changed its key, then was put back to an old copy and
/// began an epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn other_tools_accept_the_log_of_a_server_that_was_killed_and_recovered() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, backup) = (parent.path().join("data"), parent.path().join("backup"));
    std::fs::create_dir(&folder).unwrap();
    let mut server = Server::start(&folder).await;
    let first = recorded(&server, 1).await;
    let mut seen = Collected {
        tenant: first[0]["tenant_id"].as_str().unwrap().to_owned(),
        checkpoints: BTreeSet::new(),
        keys: BTreeSet::new(),
    };

    let over = Arc::new(AtomicBool::new(false));
    let progress = Arc::new(AtomicU64::new(0));
    let writers = write_on(&server, &over, &progress);
    let rounds = sized(20).max(3);
    for round in 0..rounds {
        progressed(&progress, 200 + 70 * (round % 7)).await;
        seen.look(&server).await;
        server.kill_and_restart().await;
        seen.look(&server).await;
    }
    over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }

    // A head over the last entry, before the key changes, after it, and after the epoch.
    let size = recorded(&server, 1).await[0]["seq"].as_u64().unwrap() + 1;
    checkpoint(&server, &seen.tenant, size).await;
    seen.look(&server).await;
    server.stop();
    rotate(&folder);
    let server = Server::start(&folder).await;
    recorded(&server, 5).await;
    // With the entry that changes the key.
    checkpoint(&server, &seen.tenant, size + 6).await;
    seen.look(&server).await;
    server.stop();
    copy(&folder, &backup);
    let server = Server::start(&folder).await;
    recorded(&server, 5).await;
    checkpoint(&server, &seen.tenant, size + 11).await;
    server.stop();
    copy(&backup, &folder);
    let output = recover(&folder, &[]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let server = Server::start(&folder).await;
    let entries = recorded(&server, 5).await;
    let size = entries[4]["seq"].as_u64().unwrap() + 1;
    let newest = checkpoint(&server, &seen.tenant, size).await;
    seen.look(&server).await;
    let newest = Checkpoint::parse(newest.text()).unwrap();
    assert!(newest.origin().contains("/e2/"), "{}", newest.origin());
    assert_eq!(
        seen.keys.len(),
        3,
        "two keys, and the name of the epoch: {:?}",
        seen.keys
    );

    let sizes: Vec<u64> = seen.notes().map(|(_, head)| head.size()).collect();
    let tiles = tiles(&server, &seen.tenant, newest.size(), &sizes).await;
    let tools = tempfile::tempdir().unwrap();
    let keys: Vec<&str> = seen.keys.iter().map(String::as_str).collect();
    write(tools.path(), "keys", (keys.join("\n") + "\n").as_bytes());
    for (at, text) in seen.checkpoints.iter().enumerate() {
        write(tools.path(), &format!("checkpoints/{at}"), text.as_bytes());
    }
    let (_, head) = get(&server, &format!("/api/v1/tlog/{}/checkpoint", seen.tenant)).await;
    write(tools.path(), "checkpoint", head.as_bytes());
    for (tile, bytes) in &tiles {
        write(tools.path(), &tile.path(), bytes);
    }
    for entry in first.iter().chain(&entries) {
        let id = entry["id"].as_str().unwrap();
        let (status, proof) = get(&server, &format!("/api/v1/logs/{id}/proof")).await;
        assert_eq!(status, 200, "{proof}");
        write(
            tools.path(),
            &format!("inclusion/{id}.tlog-proof"),
            proof.as_bytes(),
        );
    }
    server.stop();

    accepted_by_go(tools.path(), newest.size(), seen.checkpoints.len());
    accepted_by_crates(&seen, &tiles, &newest);
    println!(
        "{rounds} kills, {} checkpoints, {} tiles, {} entries",
        seen.checkpoints.len(),
        tiles.len(),
        newest.size()
    );
}

fn accepted_by_go(folder: &Path, size: u64, checkpoints: usize) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/tlog-check");
    let output = Command::new("go")
        .args(["run", "-buildvcs=false", "."])
        .arg(folder)
        .current_dir(source)
        .output()
        .unwrap_or_else(|error| panic!("go is needed to run dev/tlog-check: {error}"));
    let report = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}{errors}");
    let count = |start: &str| {
        report
            .lines()
            .filter(|line| line.starts_with(start))
            .count()
    };
    assert_eq!(count("ok   checkpoint "), checkpoints + 1, "{report}");
    assert_eq!(count("ok   inclusion "), 6, "{report}");
    for line in [
        format!("ok   entries below {size}"),
        format!("ok   tree of {size} continues that of {size}"),
    ] {
        assert!(
            report.lines().any(|found| found == line),
            "{line}\n{report}"
        );
    }
}

/// Tiles as they were fetched, for the other implementation, which names them with their height.
struct Fetched<'a>(&'a BTreeMap<Tile, Vec<u8>>);

impl tlog_tiles::TileReader for Fetched<'_> {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[tlog_tiles::Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        let fetched = |tile: &tlog_tiles::Tile| {
            let path = tile.path().replacen("tile/8/", "tile/", 1);
            self.0.get(&Tile::parse(&path).ok()?).cloned()
        };
        let found: Option<Vec<_>> = tiles.iter().map(fetched).collect();
        found.ok_or(tlog_tiles::Error::InvalidTile)
    }

    fn save_tiles(&self, _: &[tlog_tiles::Tile], _: &[Vec<u8>]) {}
}

fn accepted_by_crates(seen: &Collected, tiles: &BTreeMap<Tile, Vec<u8>>, newest: &Checkpoint) {
    let fetched = Fetched(tiles);
    let hash = |head: &Checkpoint| tlog_tiles::Hash(*head.root().as_bytes());
    let (size, root) = (newest.size(), hash(newest));
    let reader = tlog_tiles::TileHashReader::new(size, root, &fetched);
    for (note, head) in seen.notes() {
        let verifiers = seen.keys.iter().map(|vkey| {
            let verifier = signed_note::StandardVerifier::new(vkey).unwrap();
            Box::new(verifier) as Box<dyn signed_note::Verifier>
        });
        let known = signed_note::VerifierList::new(verifiers.collect());
        let theirs = signed_note::Note::from_bytes(note.encode().as_bytes()).unwrap();
        assert!(theirs.verify(&known).is_ok(), "{}", note.encode());
        let own = tlog_tiles::TileHashReader::new(head.size(), hash(&head), &fetched);
        assert_eq!(
            tlog_tiles::tree_hash(head.size(), &own).unwrap(),
            hash(&head)
        );
        let proof = tlog_tiles::prove_tree(size, head.size(), &reader).unwrap();
        tlog_tiles::check_tree(&proof, size, root, head.size(), hash(&head)).unwrap();
    }
}
