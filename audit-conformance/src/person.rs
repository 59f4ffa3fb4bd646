//! Somebody whose bytes are looked for: what an erasure has to take out of an engine's files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use audit_core::{Clock as _, Event, RelatedResource, SystemClock};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use memchr::memmem;

use crate::random::Random;

/// What a name is made of: 32 letters and digits, so that it is one word, the same in both alphabets of
/// base64, and never folded.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// Characters of a name.
const LENGTH: usize = 24;

/// So many of them, the last ones, are looked for. A sorted page leaves out what a word shares with the
/// word before it; these stand nowhere by chance either.
const TAIL: usize = 16;

/// The variable that names a seed, to see again what failed.
const SEED: &str = "AUDIT_TEST_PERSON";

/// Somebody with a random name, and how it may be written.
#[derive(Debug)]
pub struct Person {
    name: String,
    traces: Vec<Vec<u8>>,
}

impl Person {
    /// Somebody new, unless the environment has the seed of somebody, `AUDIT_TEST_PERSON`. Prints the
    /// seed, which a test shows when it fails.
    #[expect(clippy::print_stdout, reason = "for whoever reads why a test failed")]
    pub fn random() -> Self {
        let given = std::env::var(SEED).ok().map(|seed| seed.parse());
        let seed = given.unwrap_or_else(|| {
            let secret = SystemClock.secret();
            Ok(secret.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b)))
        });
        let seed = seed.expect("a number");
        println!("{SEED}={seed}");
        Self::of_seed(seed)
    }

    /// The same for the same seed.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let letter = |_| char::from(LETTERS[random.below(32) as usize]);
        let name: String = (0..LENGTH).map(letter).collect();
        let tail = &name.as_bytes()[LENGTH - TAIL..];
        let mut traces = vec![tail.to_vec()];
        traces.extend(in_base64(tail));
        Self { name, traces }
    }

    /// The name: 24 letters and digits, one word.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// From now on this is looked for as well: what an engine puts in the place of the name.
    pub fn also(&mut self, trace: impl Into<Vec<u8>>) {
        self.traces.push(trace.into());
    }

    /// Whether some bytes have the name, as it is or in base64 of either alphabet, wherever it begins
    /// there.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        let has = |trace: &Vec<u8>| memmem::find(bytes, trace).is_some();
        self.traces.iter().any(has)
    }

    /// The files that have the name in a folder and in those below it, by their paths from there; of a
    /// file `….zst` what is packed in it counts, too. One that goes meanwhile has nothing.
    ///
    /// # Errors
    /// A folder or file that can't be read.
    pub fn files_with(&self, folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(below) = folders.pop() {
            let Some(files) = unless_gone(fs::read_dir(folder.join(&below)))? else {
                continue;
            };
            for file in files {
                let path = below.join(file?.file_name());
                let at = folder.join(&path);
                let Some(kind) = unless_gone(fs::symlink_metadata(&at))? else {
                    continue;
                };
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file()
                    && let Some(bytes) = unless_gone(fs::read(&at))?
                    && self.is_in_file(&path, &bytes)?
                {
                    found.insert(path);
                }
            }
        }
        Ok(found)
    }

    fn is_in_file(&self, path: &Path, bytes: &[u8]) -> io::Result<bool> {
        let is_packed = path.extension().is_some_and(|end| end == "zst");
        Ok(self.is_in(bytes) || is_packed && self.is_in(&zstd::decode_all(bytes)?))
    }
}

/// An event that has `who` in every field that an erasure destroys and that takes any text. Each
/// hundredth, the first one too, has it within a value that is longer than a page, and that engines
/// compress.
pub fn event(n: usize, who: &str) -> Event {
    let before = match n % 100 {
        0 => {
            let around = "as it was before; ".repeat(300);
            format!("{around}{who} {around}")
        }
        _ => who.to_owned(),
    };
    Event::update("account", format!("{who}-{n}"))
        .user(who)
        .actor_name(who)
        .on_behalf_of(who)
        .resource_name(who)
        .related(RelatedResource::new("account", who).named(who))
        .session_id(who)
        .request_id(who)
        .trace_id(who)
        .user_agent(who)
        .reason(format!("asked by {who}"))
        .before(&[before])
        .after(&[who, "changed"])
        .metadata(&[("by", who)])
}

/// What stands for a text within longer ones in base64: one run of characters for each place where it
/// may begin in three bytes.
fn in_base64(text: &[u8]) -> [Vec<u8>; 3] {
    [0, 1, 2].map(|before: usize| {
        let mut whole = vec![0; before];
        whole.extend_from_slice(text);
        let encoded = STANDARD_NO_PAD.encode(&whole);
        // Without the characters that have bits of what stands around it.
        let inner = (8 * before).div_ceil(6)..8 * whole.len() / 6;
        encoded.as_bytes()[inner].to_vec()
    })
}

/// Nothing of what isn't there any more.
fn unless_gone<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
