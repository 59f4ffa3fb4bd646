//! Writes an evidence stream into a folder.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use audit_tlog::Hash;
use audit_tlog::evidence::{ListedFile, MAX_LINE_LEN};
use audit_tlog::folder::{CHECKPOINTS, LOG, MANIFEST, SplitFault, Splitter};
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;

/// Splits an evidence stream, which comes in pieces of any size, into a folder. The folder appears
/// when the stream has come to its end line, whole or not at all.
pub(crate) struct Folder {
    at: PathBuf,
    /// A folder of this run's own, and whether it is still there.
    temporary: PathBuf,
    began: bool,
    rest: Vec<u8>,
    files: Splitter,
    log: io::BufWriter<File>,
    written: (u64, Sha256),
}

impl Folder {
    /// Begins a folder that isn't there yet, in a temporary one beside it.
    pub(crate) fn create(at: &Path) -> Result<Self, Failure> {
        if at.exists() {
            let error = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(unwritable(at, error));
        }
        let temporary = temporary(at)?;
        let log = temporary.join(LOG);
        let log = File::create_new(&log).map_err(|e| unwritable(&log, e))?;
        Ok(Self {
            at: at.to_owned(),
            temporary,
            began: true,
            rest: Vec::new(),
            files: Splitter::default(),
            log: io::BufWriter::new(log),
            written: (0, Sha256::new()),
        })
    }

    /// Takes the next piece of the stream.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), Failure> {
        self.rest.extend_from_slice(piece);
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else {
            if self.rest.len() > MAX_LINE_LEN {
                return Err(self.unusable(&"a line is too long"));
            }
            return Ok(());
        };
        let rest = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, rest);
        for line in lines.split_inclusive(|b| *b == b'\n') {
            self.line(line)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
        let of_the_log = self.files.line(line);
        if of_the_log.map_err(|fault| self.unusable(&fault))? {
            let log = self.temporary.join(LOG);
            self.log.write_all(line).map_err(|e| unwritable(&log, e))?;
            self.written.0 += line.len() as u64;
            self.written.1.update(line);
        }
        Ok(())
    }

    /// Lets the folder appear.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        if !self.rest.is_empty() {
            return Err(self.unusable(&SplitFault::Cut));
        }
        let log = self.temporary.join(LOG);
        self.log
            .flush()
            .and_then(|()| self.log.get_ref().sync_all())
            .map_err(|e| unwritable(&log, e))?;
        let log = ListedFile {
            name: LOG.to_owned(),
            bytes: self.written.0,
            sha256: Hash(std::mem::take(&mut self.written.1).finalize().into()),
        };
        let files = std::mem::take(&mut self.files).finish(log);
        let (listing, small) = files.map_err(|fault| self.unusable(&fault))?;
        if small.iter().any(|(name, _)| name.contains('/')) {
            let folder = self.temporary.join(CHECKPOINTS);
            fs::create_dir(&folder).map_err(|e| unwritable(&folder, e))?;
        }
        for (name, text) in small {
            self.write(&name, &text)?;
        }
        self.write(MANIFEST, &listing.encode())?;
        let sync = |path: &Path| File::open(path).and_then(|folder| folder.sync_all());
        sync(&self.temporary)
            .and_then(|()| fs::rename(&self.temporary, &self.at))
            .map_err(|e| unwritable(&self.at, e))?;
        self.began = false;
        // A name is on disk with the folder that it is in.
        let parent = self.at.parent().filter(|path| *path != Path::new(""));
        sync(parent.unwrap_or(Path::new("."))).map_err(|e| unwritable(&self.at, e))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.temporary.join(name);
        File::create_new(&path)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .map_err(|e| unwritable(&path, e))
    }

    fn unusable(&self, why: &dyn fmt::Display) -> Failure {
        Failure::Local(
            format!("{} can't be made of this stream", self.at.display()),
            io::Error::new(io::ErrorKind::InvalidData, why.to_string()),
        )
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Of a folder that didn't appear nothing is left.
        if self.began {
            drop(fs::remove_dir_all(&self.temporary));
        }
    }
}

/// Makes a folder beside this one, under a name that nothing has: what is there already may be the
/// user's, or of another run.
fn temporary(at: &Path) -> Result<PathBuf, Failure> {
    let mut taken = io::Error::from(io::ErrorKind::AlreadyExists);
    for n in 0..1_000 {
        let mut name = at.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}-{n}.part", std::process::id()));
        let path = at.with_file_name(name);
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => taken = e,
            Err(e) => return Err(unwritable(&path, e)),
        }
    }
    Err(unwritable(at, taken))
}

fn unwritable(path: &Path, error: io::Error) -> Failure {
    Failure::Local(format!("{} can't be written", path.display()), error)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use audit_tlog::evidence::{Composer, EvidenceLine, FolderManifest, Manifest};
    use audit_tlog::folder::listed;
    use audit_tlog::verify::{Options, verify_blocks};
    use audit_tlog::{Checkpoint, Kind, Leaf, Origin, SigningKey, Timestamp, Tree};
    use uuid::Uuid;

    use super::*;
    use crate::bundle;

    /// A stream of a log of two entries, with a checkpoint over each.
    fn stream() -> String {
        let tenant = Uuid::from_u128(7);
        let origin = Origin::parse("logs.example.com").unwrap();
        let key = SigningKey::from_seed(&origin.for_tenant(tenant, 1), &[1; 32]).unwrap();
        let mut tree = Tree::new();
        let mut notes = Vec::new();
        let leaves = [1, 2].map(|id| {
            let leaf = Leaf {
                kind: Kind::Event,
                tenant_id: tenant,
                id: Uuid::from_u128(id),
                created_at: Timestamp::MIN,
                occurred_at: Timestamp::MIN,
                action_type: "VIEW",
                action: "page.view",
                outcome: "success",
                severity: "INFO",
                ctl: None,
                digests: &[None; 7],
            };
            let leaf = leaf.encode();
            tree.push(audit_tlog::leaf::leaf_hash(leaf.as_bytes()));
            let head = Checkpoint::new(key.name(), tree.size(), tree.root()).unwrap();
            notes.push(head.sign(&[&key]).unwrap().encode());
            leaf
        });
        let manifest = Manifest {
            tenant_id: tenant,
            origin,
            created_at: Timestamp::MIN,
            size: 2,
            root: tree.root(),
            filter: None,
            withheld: Vec::new(),
        };
        let mut out = String::new();
        let mut composer = Composer::new(&manifest, &mut out);
        for note in notes.iter().rev() {
            composer.checkpoint(note, &mut out).unwrap();
        }
        composer
            .vkey(&key.verifying_key().encode(), &mut out)
            .unwrap();
        for (seq, leaf) in (0..).zip(&leaves) {
            let line = EvidenceLine {
                seq,
                leaf: leaf.into(),
                disclosures: [const { None }; 7],
            };
            composer.entry(line, &mut out).unwrap();
        }
        composer.finish(&mut out).unwrap();
        out
    }

    fn judged(at: &Path) -> (bool, Vec<String>) {
        let opened = bundle::open(at).unwrap();
        let report = verify_blocks(opened.blocks, Options::default(), 2, |_| ()).unwrap();
        let verified = report.is_verified() && opened.findings.is_empty();
        (verified, opened.warnings)
    }

    #[test]
    fn a_stream_becomes_a_folder_however_it_is_cut() {
        let stream = stream();
        let within = tempfile::TempDir::new().unwrap();
        for size in [1, 7, 1_000, stream.len()] {
            let at = within.path().join(size.to_string());
            let mut folder = Folder::create(&at).unwrap();
            for piece in stream.as_bytes().chunks(size) {
                folder.push(piece).unwrap();
                assert!(!at.exists());
            }
            folder.finish().unwrap();
            assert_eq!(
                bundle::present(&at).unwrap(),
                [
                    "checkpoint",
                    "checkpoints/1",
                    "keys",
                    "log.ndjson",
                    "manifest.json"
                ]
            );
            assert_eq!(judged(&at), (true, Vec::new()));
            assert!(Folder::create(&at).is_err());
        }
        assert_eq!(fs::read_dir(within.path()).unwrap().count(), 4);
    }

    #[test]
    fn two_exports_to_one_target_leave_each_other_and_what_was_there_alone() {
        let within = tempfile::TempDir::new().unwrap();
        let at = within.path().join("bundle");
        let own = within.path().join("bundle.part");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("mine"), "x").unwrap();
        let stale = format!("bundle.{}-0.part", std::process::id());
        fs::create_dir(within.path().join(&stale)).unwrap();
        let (mut first, mut second) = (Folder::create(&at).unwrap(), Folder::create(&at).unwrap());
        first.push(stream().as_bytes()).unwrap();
        second.push(stream().as_bytes()).unwrap();
        drop(Folder::create(&at).unwrap());
        first.finish().unwrap();
        assert!(second.finish().is_err());
        assert_eq!(judged(&at), (true, Vec::new()));
        assert_eq!(fs::read(own.join("mine")).unwrap(), b"x");
        let mut names: Vec<_> = fs::read_dir(within.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expected = ["bundle", "bundle.part", &stale];
        expected.sort_unstable();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_manifest_of_very_many_files_is_read_once_and_within_bounds() {
        let within = tempfile::TempDir::new().unwrap();
        let at = within.path().join("bundle");
        let mut folder = Folder::create(&at).unwrap();
        folder.push(stream().as_bytes()).unwrap();
        folder.finish().unwrap();
        let path = at.join(MANIFEST);
        let mut listing = FolderManifest::parse(&fs::read_to_string(&path).unwrap()).unwrap();
        let file = listing.files[0].clone();
        listing.files.extend((0..100_000).map(|n| ListedFile {
            name: n.to_string(),
            ..file.clone()
        }));
        fs::write(&path, listing.encode()).unwrap();
        // Each looked for among all before it would take minutes.
        assert_eq!(bundle::open(&at).unwrap().findings.len(), 100_000);
        // Small files are read up to what a bundle may have.
        listing.files.truncate(1);
        let big = "x".repeat(1 << 20);
        for size in 100..120 {
            let name = format!("checkpoints/{size}");
            fs::write(at.join(&name), &big).unwrap();
            listing.files.push(listed(&name, big.as_bytes()));
        }
        fs::write(&path, listing.encode()).unwrap();
        let findings = bundle::open(&at).unwrap().findings;
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].file.as_deref(), Some("checkpoints/116"));
    }

    #[test]
    fn of_a_stream_that_is_cut_or_no_evidence_nothing_is_left() {
        let stream = stream();
        let within = tempfile::TempDir::new().unwrap();
        let at = within.path().join("cut");
        for end in 0..stream.len() {
            let mut folder = Folder::create(&at).unwrap();
            folder.push(&stream.as_bytes()[..end]).unwrap();
            assert!(folder.finish().is_err(), "{end}");
        }
        let mut folder = Folder::create(&at).unwrap();
        assert!(folder.push(b"{\"error\":1}\n").is_err());
        drop(folder);
        assert_eq!(fs::read_dir(within.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_changed_file_is_named_and_a_packed_log_is_read() {
        let within = tempfile::TempDir::new().unwrap();
        let at = within.path().join("bundle");
        let mut folder = Folder::create(&at).unwrap();
        folder.push(stream().as_bytes()).unwrap();
        folder.finish().unwrap();
        for name in ["checkpoint", "checkpoints/1", "keys"] {
            let path = at.join(name);
            let before = fs::read(&path).unwrap();
            let mut changed = before.clone();
            changed.push(b'\n');
            fs::write(&path, changed).unwrap();
            let opened = bundle::open(&at).unwrap();
            assert_eq!(opened.findings[0].file.as_deref(), Some(name));
            fs::remove_file(&path).unwrap();
            let opened = bundle::open(&at).unwrap();
            assert_eq!(opened.findings[0].file.as_deref(), Some(name));
            fs::write(&path, before).unwrap();
        }
        // A manifest that isn't the one that was written can't be read.
        let path = at.join(MANIFEST);
        let manifest = fs::read_to_string(&path).unwrap();
        for changed in [
            manifest.replacen("1970", "1971", 1),
            manifest.replacen("\"bytes\":1", "\"bytes\":2", 1),
            String::new(),
        ] {
            fs::write(&path, changed).unwrap();
            assert!(bundle::open(&at).is_err());
        }
        let mut listing = FolderManifest::parse(&manifest).unwrap();
        let mut log = Vec::new();
        File::open(at.join(LOG))
            .unwrap()
            .read_to_end(&mut log)
            .unwrap();
        fs::remove_file(at.join(LOG)).unwrap();
        fs::write(
            at.join("log.ndjson.zst"),
            zstd::encode_all(&*log, 3).unwrap(),
        )
        .unwrap();
        listing.files[0].name = "log.ndjson.zst".into();
        fs::write(&path, listing.encode()).unwrap();
        let (verified, warnings) = judged(&at);
        assert!(verified && warnings.len() == 1);
        fs::write(at.join("more"), "x").unwrap();
        assert_eq!(judged(&at).1.len(), 2);
    }
}
