//! A log's files, checked by a Go program on Go's `sumdb/note` and `sumdb/tlog`, which share no line
//! with this crate: `dev/tlog-check`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use audit_tlog::{
    Cosigner, Hash, HeadOpening, HeadPolicy, InclusionProof, Origin, Salt, SigningKey, verify_head,
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::log::{Log, ORIGIN, key};

const SIZES: [u64; 9] = [1, 2, 255, 256, 257, 512, 1000, 2999, 3000];

/// The program, built once for all tests. Go keeps its modules and builds in its own folders.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/tlog-check");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tlog-check");
    let built = Command::new("go")
        .args(["build", "-buildvcs=false", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(source)
        .output()
        .unwrap_or_else(|error| panic!("go is needed to build dev/tlog-check: {error}"));
    let errors = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "go build dev/tlog-check: {errors}");
    program
});

/// Runs the program; its exit status and what it printed.
fn check(folder: &Path) -> (Option<i32>, String) {
    let output = Command::new(&*PROGRAM).arg(folder).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text)
}

/// A log of 3,000 entries with a checkpoint at each of the sizes, and proofs. Below 2,999 the first key
/// signs, at 2,999 both do, and the last head is one of a second epoch.
fn written() -> (TempDir, Log) {
    let log = Log::of(3000);
    let (old, new) = (key(ORIGIN, 1), key(ORIGIN, 2));
    let (origin, tenant, _) = Origin::of_tenant(ORIGIN).unwrap();
    let again = new.renamed(&origin.for_tenant(tenant, 2)).unwrap();
    let witness = Cosigner::from(key("witness.example.com/w1", 3));
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, bytes: &[u8]| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let vkey = |key: &SigningKey| format!("{}\n", key.verifying_key());
    let keys = [&old, &new, &again].map(vkey).concat();
    write("keys", keys.as_bytes());
    write(
        "witnesses",
        format!("{}\n", witness.verifying_key()).as_bytes(),
    );
    for (tile, bytes) in log
        .hash_tiles(&SIZES)
        .into_iter()
        .chain(log.entry_tiles(3000))
    {
        write(&tile.path(), &bytes);
    }
    for size in SIZES {
        let keys: &[&SigningKey] = match size {
            3000 => &[&again],
            2999 => &[&old, &new],
            _ => &[&old],
        };
        let mut head = log.checkpoint(size, keys);
        head.add(witness.cosign(head.text(), 1_700_000_000 + size).unwrap())
            .unwrap();
        write(&format!("checkpoints/{size}"), head.encode().as_bytes());
        if size == 3000 {
            write("checkpoint", head.encode().as_bytes());
        }
        for index in [0, size / 3, size - 1] {
            let proof = InclusionProof::new(index, log.inclusion(index, size), head.clone());
            let proof = proof.unwrap().with_extra(b"extra".to_vec()).unwrap();
            let path = format!("inclusion/{index}-{size}.tlog-proof");
            write(&path, proof.encode().as_bytes());
        }
        for older in SIZES.into_iter().filter(|older| *older <= size) {
            let proof = log.consistency(older, size);
            let lines: String = proof.iter().map(|hash| hash.to_base64() + "\n").collect();
            write(&format!("consistency/{older}-{size}"), lines.as_bytes());
        }
    }
    (folder, log)
}

#[test]
fn gos_libraries_accept_checkpoints_tiles_and_proofs() {
    let (folder, _) = written();
    let (status, report) = check(folder.path());
    assert_eq!(status, Some(0), "{report}");
    for line in [
        "ok   checkpoint checkpoint: size 3000, cosigned by 1",
        "ok   tiles at size 257",
        "ok   tree of 3000 continues that of 255",
        "ok   entries below 3000",
        "ok   inclusion inclusion/2999-3000.tlog-proof",
        "ok   consistency consistency/256-2999",
    ] {
        assert!(
            report.lines().any(|found| found == line),
            "{line}\n{report}"
        );
    }
    // Ten checkpoints; tiles and continuation at nine sizes; the entries; proofs.
    let inclusions = fs::read_dir(folder.path().join("inclusion"))
        .unwrap()
        .count();
    let expected = 10 + 2 * 9 + 1 + inclusions + 9 * 10 / 2;
    assert!(
        report.ends_with(&format!("{expected} checks\n")),
        "{report}"
    );
}

/// The log over tenants' heads is one like any other to them, a witness's cosignature included.
#[test]
fn gos_libraries_accept_a_deployment_log_and_its_head_proofs() {
    const SIZE: u64 = 300;
    let name = Origin::parse("logs.example.com/audit")
        .unwrap()
        .for_deployment(1);
    let opening = |n: u64| HeadOpening {
        salt: Salt([n as u8; 16]),
        tenant: Uuid::from_u128(n.into()),
        size: n,
        root: Hash([n as u8; 32]),
    };
    let leaves = (0..SIZE).map(|n| opening(n).leaf_data().into_bytes());
    let log = Log::with(leaves.collect());
    let (own, witness) = (
        key(&name, 1),
        Cosigner::from(key("witness.example.com/w1", 3)),
    );
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, bytes: &[u8]| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    write("keys", format!("{}\n", own.verifying_key()).as_bytes());
    write(
        "witnesses",
        format!("{}\n", witness.verifying_key()).as_bytes(),
    );
    for (tile, bytes) in log
        .hash_tiles(&[SIZE])
        .into_iter()
        .chain(log.entry_tiles(SIZE))
    {
        write(&tile.path(), &bytes);
    }
    let mut head = log.checkpoint(SIZE, &[&own]);
    head.add(witness.cosign(head.text(), 1_700_000_000).unwrap())
        .unwrap();
    write("checkpoint", head.encode().as_bytes());
    write(&format!("checkpoints/{SIZE}"), head.encode().as_bytes());
    for index in [0, 7, SIZE - 1] {
        let proof = InclusionProof::new(index, log.inclusion(index, SIZE), head.clone());
        let extra = opening(index).to_json().into_bytes();
        let proof = proof.unwrap().with_extra(extra).unwrap();
        let path = format!("inclusion/{index}-{SIZE}.tlog-proof");
        write(&path, proof.encode().as_bytes());
        let witnesses = [witness.verifying_key().clone()];
        let policy = HeadPolicy {
            log: &[own.verifying_key().clone()],
            witnesses: &witnesses,
            least: 1,
        };
        let read = verify_head(&proof, &policy).unwrap();
        assert_eq!(read.opening, opening(index));
    }
    let (status, report) = check(folder.path());
    assert_eq!(status, Some(0), "{report}");
    for line in [
        "ok   checkpoint checkpoint: size 300, cosigned by 1",
        "ok   entries below 300",
        "ok   inclusion inclusion/7-300.tlog-proof",
    ] {
        assert!(
            report.lines().any(|found| found == line),
            "{line}\n{report}"
        );
    }
}

#[test]
fn gos_libraries_refuse_what_was_changed() {
    for path in [
        "checkpoint",
        "checkpoints/257",
        "tile/0/000",
        "tile/0/011.p/184",
        "tile/1/000.p/11",
        "tile/entries/003",
        "tile/entries/011.p/184",
        "inclusion/0-3000.tlog-proof",
        "consistency/257-3000",
        "keys",
        "witnesses",
    ] {
        let (folder, _) = written();
        let path = folder.path().join(path);
        let mut bytes = fs::read(&path).unwrap();
        // Near the end: within a hash, an entry, a signature or a key.
        let at = bytes.len() - 10;
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        fs::write(&path, bytes).unwrap();
        let (status, report) = check(folder.path());
        assert_eq!(status, Some(1), "{}\n{report}", path.display());
        assert!(
            report.lines().any(|line| line.starts_with("FAIL ")),
            "{report}"
        );
    }
}
