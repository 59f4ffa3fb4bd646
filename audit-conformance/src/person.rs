//! Somebody whose bytes are looked for: what an erasure has to take out of an engine's files.

use std::path::{Path, PathBuf};
use std::{fs, io};

use audit_core::Event;

/// A word that stands nowhere by chance.
pub const PERSON: &str = "q7xk2mz9wd4vbn8rt5ycp3lh";

/// An event that has `who` in every group.
pub fn event(n: usize, who: &str) -> Event {
    Event::update("account", format!("{who}-{n}"))
        .user(who)
        .session_id(who)
        .reason(format!("asked by {who}"))
        .before(&[who])
        .after(&[who, "changed"])
        .metadata(&[("by", who)])
}

/// Whether some bytes have the person's.
pub fn is_in(bytes: &[u8]) -> bool {
    bytes.windows(PERSON.len()).any(|w| w == PERSON.as_bytes())
}

/// The files of a folder that have the person's bytes, in order.
///
/// # Errors
/// A file that can't be read.
pub fn files_with(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if is_in(&fs::read(&path)?) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
