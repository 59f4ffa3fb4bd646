//! What evidence costs an append to the embedded store, beside the same without hashing:
//! `benches/evidence-cost.sh`, which builds this as nothing else is built.
//!
//! One tenant, commits of 500 that were prepared before. The two run in turns, each in a file of its
//! own, and of each the median is given. `ENTRIES` says how many each run appends, `ROUNDS` how many
//! runs of each there are.

// A benchmark that can't set up measures nothing; what it found is its output.
#![allow(clippy::expect_used, clippy::print_stdout, missing_docs)]

#[cfg(not(audit_unhashed))]
fn main() {
    println!("this build can't leave hashes out: benches/evidence-cost.sh");
}

#[cfg(audit_unhashed)]
fn main() {
    measured::run();
}

#[cfg(audit_unhashed)]
mod measured {
    use std::path::Path;
    use std::time::Instant;

    use audit_core::tlog::unhashed;
    use audit_core::{Batch, LogStore, TenantScope};
    use audit_store_sqlite::{SqliteOptions, SqliteStore};
    use benches::{fsync_time, median, prepared, setting, tenant};
    use rusqlite::Connection;
    use tokio::runtime::Runtime;

    /// Events in a commit.
    const COMMIT: u64 = 500;

    pub(super) fn run() {
        let (entries, rounds) = (setting("ENTRIES", 100_000), setting("ROUNDS", 5));
        let folder = tempfile::tempdir().expect("a folder");
        let fsync = fsync_time(folder.path()).expect("a file");
        println!("fsync of 4 KiB: {fsync:?} (median of 200)");
        let runtime = Runtime::new().expect("a runtime");
        let (mut hashed, mut unhashed) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            // Each comes first in half of the rounds.
            for off in [round % 2 == 1, round % 2 == 0] {
                let folder = tempfile::tempdir().expect("a folder");
                let path = folder.path().join("audit.db");
                let rate = runtime.block_on(appended(&path, entries, off));
                println!(
                    "{}: {rate:.0} events/s",
                    if off {
                        "without hashing"
                    } else {
                        "with hashing"
                    }
                );
                if off {
                    unhashed.push(rate);
                } else {
                    hashed.push(rate);
                    if round + 1 == rounds {
                        println!(
                            "{:.1} bytes of evidence an entry",
                            bytes(&path) / entries as f64
                        );
                    }
                }
            }
        }
        let (with, without) = (median(hashed), median(unhashed));
        println!(
            "appends of {COMMIT}, median of {rounds}: {with:.0} events/s with hashing, {without:.0} without: \
             evidence takes {:.1} %",
            100.0 * (1.0 - with / without)
        );
    }

    /// Events a second.
    async fn appended(path: &Path, entries: u64, off: bool) -> f64 {
        let scope = TenantScope::trusted(tenant(1), "bench");
        let batches: Vec<Batch> = (0..entries)
            .step_by(COMMIT as usize)
            .map(|first| {
                let events = (first..first + COMMIT).map(|n| prepared(tenant(1), n));
                Batch::new(scope.clone(), events.collect()).creating_tenant()
            })
            .collect();
        let store = SqliteStore::open(path, SqliteOptions::new()).expect("a store");
        unhashed::set(off);
        let began = Instant::now();
        for batch in batches {
            let outcomes = store.append(&[batch]).await.expect("appended");
            for outcome in outcomes {
                outcome.expect("appended");
            }
        }
        let took = began.elapsed().as_secs_f64();
        unhashed::set(false);
        entries as f64 / took
    }

    /// What the tables hold for proofs alone: seeds, leaf hashes, here and beside the ids, and tiles.
    fn bytes(path: &Path) -> f64 {
        let file = Connection::open(path).expect("the log's file");
        file.query_row(
            "SELECT (SELECT sum(length(leaf_hash) + length(opening)) FROM entries)
                  + (SELECT sum(length(leaf_hash)) FROM ids)
                  + (SELECT sum(length(root) + length(hashes)) FROM tiles)",
            [],
            |row| row.get::<_, i64>(0),
        )
        .expect("sums") as f64
    }
}
