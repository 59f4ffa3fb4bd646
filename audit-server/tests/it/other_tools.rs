//! What a server shows of its log after kills, a change of the key and an epoch, checked by tools that
//! share no line with the project: Go's `sumdb/note` and `sumdb/tlog` (`dev/tlog-check`, and the witness
//! `dev/tlog-witness`), and the crates `signed_note` and `tlog_tiles`.

#[path = "../../../dev/tlog-witness/process.rs"]
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use audit_client::Client;
use audit_core::TenantId;
use audit_core::tlog::HeadOpening;
use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::note::Note;
use audit_core::tlog::proof::InclusionProof;
use audit_core::tlog::tile::{Content, Tile};
use serde_json::{Value, json};
use sqlx_core::connection::ConnectOptions as _;
use sqlx_core::executor::Executor as _;
use sqlx_postgres::PgConnectOptions;

use crate::child::{Server, free_port, progressed, settings, sized};
use crate::guard::{checkpoint, copy, get, recorded};
use crate::stack::{Stack, needed};
use process::GoWitness;

const WRITERS: u64 = 4;
/// Events in one call: the log is to have many tiles.
const BULK: u64 = 20;
/// Entries whose proofs are fetched in the end.
const SAMPLE: u64 = 100;

const DEPLOYMENT: &str = "localhost/audit/deployment";

/// What was fetched of one tenant's log, at moments that went by.
struct Collected {
    tenant: String,
    checkpoints: BTreeSet<String>,
    keys: BTreeSet<String>,
    /// Proofs that the server made, each under the head of its moment.
    proofs: BTreeSet<String>,
}

impl Collected {
    /// Keeps the server's present head, if it has one, the key that it names, and proofs of two entries
    /// that the head covers.
    async fn look(&mut self, server: &Server) {
        let (status, text) = get(server, &format!("/api/v1/tlog/{}/checkpoint", self.tenant)).await;
        if status == 200 {
            let size = size_of(&text);
            self.checkpoints.insert(text);
            for seq in [size / 2, size - 1] {
                self.prove(server, seq).await;
            }
        }
        let (status, keys) = get(server, &format!("/api/v1/tlog/{}/key", self.tenant)).await;
        assert_eq!(status, 200, "{keys}");
        self.keys.extend(keys.lines().map(str::to_owned));
    }

    /// Keeps the proof that the server makes of the entry at a position.
    async fn prove(&mut self, server: &Server, seq: u64) {
        let path = format!("/api/v1/logs?from_seq={seq}&order=asc&limit=1");
        let (status, page) = get(server, &path).await;
        assert_eq!(status, 200, "{page}");
        let page: Value = serde_json::from_str(&page).unwrap();
        assert_eq!(page["data"][0]["seq"], seq, "{page}");
        let id = page["data"][0]["id"].as_str().unwrap();
        let (status, proof) = get(server, &format!("/api/v1/logs/{id}/proof")).await;
        assert_eq!(status, 200, "{proof}");
        self.proofs.insert(proof);
    }

    fn notes(&self) -> impl Iterator<Item = (Note, Checkpoint)> {
        self.checkpoints.iter().map(|text| {
            let note = Note::parse(text).unwrap();
            let checkpoint = Checkpoint::parse(note.text()).unwrap();
            (note, checkpoint)
        })
    }
}

fn size_of(checkpoint: &str) -> u64 {
    let note = Note::parse(checkpoint).unwrap();
    Checkpoint::parse(note.text()).unwrap().size()
}

/// Every tile of the tree of `newest` entries of the log served at `log`, and those that earlier sizes end
/// in.
async fn tiles(server: &Server, log: &str, newest: u64, sizes: &[u64]) -> BTreeMap<Tile, Vec<u8>> {
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
        let url = format!("{}/api/v1/{log}/{}", server.url, tile.path());
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

/// Runs a command of the stopped server's.
fn run(folder: &Path, engines: &[(&'static str, String)], arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_audit-server"));
    settings(&mut command, folder, free_port());
    let output = command
        .envs(engines.iter().cloned())
        .args(arguments)
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    succeeded(&output);
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}{errors}");
    report
}

/// What a stopped server's log was at one moment.
enum Backup {
    Files {
        log: PathBuf,
        kept: PathBuf,
    },
    /// A copy beside the database, of the same owner.
    Database {
        log: String,
        kept: String,
    },
}

impl Backup {
    async fn make(stack: &Stack, folder: &Path, kept: &Path) -> Self {
        match stack {
            Stack::Embedded(_) => {
                copy(folder, kept);
                Self::Files {
                    log: folder.to_owned(),
                    kept: kept.to_owned(),
                }
            }
            Stack::Production(_) => {
                let url = stack.setting("AUDIT_STORE_URL").unwrap();
                let url: PgConnectOptions = url.parse().unwrap();
                let log = url.get_database().unwrap().to_owned();
                let kept = format!("{log}_kept");
                let owner = url.get_username();
                let copied = format!("CREATE DATABASE {kept} TEMPLATE {log} OWNER {owner}");
                as_superuser(&copied).await;
                Self::Database { log, kept }
            }
        }
    }

    /// Puts it in the place of what came later.
    async fn restore(self) {
        match self {
            Self::Files { log, kept } => copy(&kept, &log),
            Self::Database { log, kept } => {
                as_superuser(&format!("DROP DATABASE {log} WITH (FORCE)")).await;
                as_superuser(&format!("ALTER DATABASE {kept} RENAME TO {log}")).await;
            }
        }
    }
}

async fn as_superuser(sql: &str) {
    let server: PgConnectOptions = needed("AUDIT_TEST_POSTGRES_URL").parse().unwrap();
    let mut connection = server.connect().await.unwrap();
    connection.execute(sql).await.unwrap();
}

/// Waits until this witness has cosigned the deployment log's newest head and the head proof of the tenant,
/// whose log had so many entries. Returns the proof, then the checkpoint, which is not older.
async fn cosigned(server: &Server, tenant: &str, size: u64) -> (String, String) {
    let is_cosigned = |text: &str| text.contains("\n\u{2014} witness.example.com/go ");
    tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let (_, proof) = get(server, &format!("/api/v1/tlog/{tenant}/deployment")).await;
            let (_, head) = get(server, "/api/v1/tlog-deployment/checkpoint").await;
            if is_cosigned(&proof) && is_cosigned(&head) {
                let opening = InclusionProof::parse(&proof).unwrap();
                if HeadOpening::of(&opening).unwrap().size == size {
                    return (proof, head);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap()
}

/// Go's libraries and Rust's crates accept checkpoints, inclusion, consistency and tiles of a server
/// that was killed 20 times while it wrote, then changed its key, then was put back to an old copy and
/// began an epoch. A witness that is none of ours cosigns meanwhile, and refuses nothing before the old
/// copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn other_tools_accept_the_log_of_a_server_that_was_killed_and_recovered() {
    let stack = Stack::make().await;
    let parent = tempfile::tempdir().unwrap();
    let (folder, backup) = (parent.path().join("data"), parent.path().join("backup"));
    std::fs::create_dir(&folder).unwrap();
    let mut engines = stack.engines();
    let server = Server::start_on(&folder, engines.clone()).await;
    let first = recorded(&server, 1).await;
    let mut seen = Collected {
        tenant: first[0]["tenant_id"].as_str().unwrap().to_owned(),
        checkpoints: BTreeSet::new(),
        keys: BTreeSet::new(),
        proofs: BTreeSet::new(),
    };
    let (_, key) = get(&server, "/api/v1/tlog-deployment/key").await;
    server.stop();
    // The server's first start has made the key that the witness is told of.
    let witness = GoWitness::start(&parent.path().join("witness"), &[key.trim_end()]);
    engines.push(("AUDIT_WITNESSES", witness.address.clone()));
    engines.push(("AUDIT_DEPLOYMENT_EVERY", "1".to_owned()));
    let mut server = Server::start_on(&folder, engines.clone()).await;

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
    run(&folder, &engines, &["tlog", "rotate"]);
    let server = Server::start_on(&folder, engines.clone()).await;
    recorded(&server, 5).await;
    // With the entry that changes the key.
    checkpoint(&server, &seen.tenant, size + 6).await;
    seen.look(&server).await;
    let deployment = deployment(&server, &seen.tenant, size + 6, &key, &witness).await;
    server.stop();
    let kept = Backup::make(&stack, &folder, &backup).await;
    let server = Server::start_on(&folder, engines.clone()).await;
    recorded(&server, 5).await;
    checkpoint(&server, &seen.tenant, size + 11).await;
    server.stop();
    // It was never shown a head that doesn't continue the one before, or that no key of the log signed. A
    // size that is another than the server thought is told once after each start.
    let answers = witness.answers();
    for answer in &answers {
        let is_well = ["200 ", "409 "]
            .iter()
            .any(|status| answer.starts_with(status));
        assert!(is_well && answer.contains(DEPLOYMENT), "{answers:?}");
    }
    kept.restore().await;
    run(&folder, &engines, &["tlog", "recover"]);
    let server = Server::start_on(&folder, engines).await;
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

    for n in 0..SAMPLE {
        seen.prove(&server, n * (newest.size() - 1) / (SAMPLE - 1))
            .await;
    }
    let sizes: Vec<u64> = seen.notes().map(|(_, head)| head.size()).collect();
    let log = format!("tlog/{}", seen.tenant);
    let tiles = tiles(&server, &log, newest.size(), &sizes).await;
    let consistency = consistency(&server, &seen.tenant, &sizes).await;
    let (_, head) = get(&server, &format!("/api/v1/{log}/checkpoint")).await;
    server.stop();

    let tools = tempfile::tempdir().unwrap();
    let keys: Vec<&str> = seen.keys.iter().map(String::as_str).collect();
    write(tools.path(), "keys", (keys.join("\n") + "\n").as_bytes());
    write(tools.path(), "checkpoint", head.as_bytes());
    for (at, text) in seen.checkpoints.iter().enumerate() {
        write(tools.path(), &format!("checkpoints/{at}"), text.as_bytes());
    }
    for (tile, bytes) in &tiles {
        write(tools.path(), &tile.path(), bytes);
    }
    for (at, proof) in seen.proofs.iter().enumerate() {
        let path = format!("inclusion/{at}.tlog-proof");
        write(tools.path(), &path, proof.as_bytes());
    }
    for ((old, new), lines) in &consistency {
        let path = format!("consistency/{old}-{new}");
        write(tools.path(), &path, lines.as_bytes());
    }
    let report = accepted_by_go(tools.path());
    let size = newest.size();
    assert_lines(&report, "ok   checkpoint ", seen.checkpoints.len() + 1);
    assert_lines(&report, "ok   inclusion ", seen.proofs.len());
    assert_lines(&report, "ok   consistency ", consistency.len());
    assert_lines(&report, &format!("ok   entries below {size}\n"), 1);
    let continued = format!("ok   tree of {size} continues that of {size}\n");
    assert_lines(&report, &continued, 1);
    accepted_by_crates(&seen, &tiles, &newest);

    let report = accepted_by_go(deployment.path());
    assert_lines(&report, "ok   checkpoint checkpoint: size ", 1);
    assert_lines(&report, "ok   entries below ", 1);
    assert_lines(&report, "ok   inclusion ", 1);
    assert!(report.contains(", cosigned by 1\n"), "{report}");
    println!(
        "{rounds} kills, {} checkpoints, {} tiles, {} entries, {} proofs of inclusion, {} of consistency, {} \
         requests to the witness",
        seen.checkpoints.len(),
        tiles.len(),
        newest.size(),
        seen.proofs.len(),
        consistency.len(),
        answers.len()
    );
}

/// The proofs that the client makes between neighbouring sizes, and from each to the largest.
async fn consistency(server: &Server, tenant: &str, sizes: &[u64]) -> BTreeMap<(u64, u64), String> {
    let client = Client::builder(&server.url).token(&server.token);
    let client = client.build().unwrap();
    let tenant: TenantId = tenant.parse().unwrap();
    let sizes: Vec<u64> = sizes
        .iter()
        .copied()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let newest = *sizes.last().unwrap();
    let neighbours = sizes.windows(2).map(|pair| (pair[0], pair[1]));
    let mut proofs = BTreeMap::new();
    for (old, new) in neighbours.chain(sizes.iter().map(|size| (*size, newest))) {
        let hashes = client.consistency(tenant, old, new).await.unwrap();
        let lines = hashes.iter().map(|hash| hash.to_base64() + "\n");
        proofs.insert((old, new), lines.collect());
    }
    proofs
}

/// A folder for `dev/tlog-check` with the deployment log, and the proof of the tenant's head in it, cosigned.
async fn deployment(
    server: &Server,
    tenant: &str,
    size: u64,
    first_key: &str,
    witness: &GoWitness,
) -> tempfile::TempDir {
    let (proof, head) = cosigned(server, tenant, size).await;
    let (_, key) = get(server, "/api/v1/tlog-deployment/key").await;
    assert_ne!(key, first_key, "it was changed");
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "keys",
        format!("{first_key}{key}").as_bytes(),
    );
    write(folder.path(), "witnesses", witness.vkey().as_bytes());
    write(folder.path(), "checkpoint", head.as_bytes());
    write(folder.path(), "inclusion/head.tlog-proof", proof.as_bytes());
    let size = size_of(&head);
    for (tile, bytes) in tiles(server, "tlog-deployment", size, &[]).await {
        write(folder.path(), &tile.path(), &bytes);
    }
    folder
}

#[track_caller]
fn assert_lines(report: &str, start: &str, expected: usize) {
    let lines = report.split_inclusive('\n');
    let found = lines.filter(|line| line.starts_with(start)).count();
    assert_eq!(found, expected, "{start}\n{report}");
}

/// What `dev/tlog-check` reports of a folder in which everything holds.
fn accepted_by_go(folder: &Path) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/tlog-check");
    let output = Command::new("go")
        .args(["run", "-buildvcs=false", "."])
        .arg(folder)
        .current_dir(source)
        .output()
        .unwrap_or_else(|error| panic!("go is needed to run dev/tlog-check: {error}"));
    succeeded(&output)
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
    let verifiers = seen.keys.iter().map(|vkey| {
        let verifier = signed_note::StandardVerifier::new(vkey).unwrap();
        Box::new(verifier) as Box<dyn signed_note::Verifier>
    });
    let known = signed_note::VerifierList::new(verifiers.collect());
    let accepted = |note: &str| {
        let theirs = signed_note::Note::from_bytes(note.as_bytes()).unwrap();
        assert!(theirs.verify(&known).is_ok(), "{note}");
    };
    for (note, head) in seen.notes() {
        accepted(&note.encode());
        let own = tlog_tiles::TileHashReader::new(head.size(), hash(&head), &fetched);
        assert_eq!(
            tlog_tiles::tree_hash(head.size(), &own).unwrap(),
            hash(&head)
        );
        let proof = tlog_tiles::prove_tree(size, head.size(), &reader).unwrap();
        tlog_tiles::check_tree(&proof, size, root, head.size(), hash(&head)).unwrap();
    }
    // By proofs that they make of the tiles, and by the server's.
    let leaves = leaves(tiles, size);
    let step = leaves.len().div_ceil(SAMPLE as usize);
    for (n, leaf) in (0..).zip(&leaves).step_by(step) {
        let proof = tlog_tiles::prove_record(size, n, &reader).unwrap();
        tlog_tiles::check_record(&proof, size, root, n, *leaf).unwrap();
    }
    for text in &seen.proofs {
        let (proof, note) = text.split_once("\n\n").unwrap();
        accepted(note);
        let mut lines = proof.lines().skip(1);
        let index = lines.next().and_then(|line| line.strip_prefix("index "));
        let index: u64 = index.unwrap().parse().unwrap();
        let parse = |line| tlog_tiles::Hash::parse_hash(line).unwrap();
        let proof: Vec<_> = lines.map(parse).collect();
        let head: Vec<&str> = note.lines().collect();
        let (size, root) = (head[1].parse().unwrap(), parse(head[2]));
        let leaf = leaves[usize::try_from(index).unwrap()];
        tlog_tiles::check_record(&proof, size, root, index, leaf).unwrap();
    }
}

/// The hash of each entry, of the leaf data that was fetched.
fn leaves(tiles: &BTreeMap<Tile, Vec<u8>>, size: u64) -> Vec<tlog_tiles::Hash> {
    let bundles = (0..).map_while(|index| Tile::at(Content::Entries, index, size));
    let mut leaves = Vec::new();
    for bundle in bundles {
        let mut bytes = &tiles[&bundle][..];
        while let Some((length, rest)) = bytes.split_first_chunk() {
            let (data, rest) = rest.split_at(u16::from_be_bytes(*length).into());
            leaves.push(tlog_tiles::record_hash(data));
            bytes = rest;
        }
    }
    assert_eq!(leaves.len() as u64, size);
    leaves
}
