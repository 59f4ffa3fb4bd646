//! The command against a real server with a store on disk.

#![allow(clippy::unwrap_used)] // a test fails by it

mod archive;
mod commands;
mod evidence;
mod exit_codes;
mod export;
mod import;
mod live;
mod server;
mod verify;
mod witness;

use std::path::PathBuf;

/// The folder of real CloudTrail files.
fn cloudtrail() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../testdata/cloudtrail"
    ))
}

/// The lines of an output as JSON.
fn json_lines(output: &std::process::Output) -> Vec<serde_json::Value> {
    text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
