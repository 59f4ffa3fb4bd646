//! A guard in a folder: for each tenant a file with its head, and one with its erasures; and one with the
//! deployment log's head.

use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use audit_tlog::{Hash, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::guard::{Guard, GuardAdvance, GuardedErasure, GuardedHead, admit_advance};
use crate::id::TenantId;

/// What a tenant's two files end in.
const HEAD: &str = "head";
const ERASURES: &str = "erasures";
/// What the deployment log's file has in place of a tenant's id.
const DEPLOYMENT: &str = "deployment";
/// Who advances holds a lock on this one.
const LOCK_FILE: &str = "lock";
/// The version of both files.
const VERSION: u32 = 1;
/// More than a head's file holds.
const MAX_HEAD: u64 = 4 * 1024;

/// A guard in a folder. It protects from what it doesn't share a fate with: put it on another disk than
/// the database, or another machine's, and never restore it together with the database.
///
/// `<tenant>.head` is one JSON object, and is replaced whole; `<tenant>.erasures` has one object a line,
/// and only grows: what lies behind the length that the head tells was being written when a process
/// ended, and doesn't count. Both are synced before [`advance`](Guard::advance) returns. `deployment.head`
/// is the deployment log's. Processes that share the folder take turns by a lock on a file.
#[derive(Debug, Clone)]
pub struct FolderGuard {
    folder: PathBuf,
}

/// What a head's file holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct HeadFile {
    v: u32,
    epoch: u64,
    size: u64,
    /// In base64.
    root: String,
    /// The length of the erasures, in bytes.
    erasures: u64,
}

/// What a line of the erasures holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ErasureLine {
    seq: u64,
    accepted_at: String,
    ctl: String,
}

impl FolderGuard {
    /// A guard in this folder, which is made, for its owner only, when it isn't there. It blocks.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it can't be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder).map_err(|e| away(&folder, e))?;
        Ok(Self { folder })
    }

    fn path(&self, log: impl Display, ending: &str) -> PathBuf {
        self.folder.join(format!("{log}.{ending}"))
    }

    /// The head of a tenant's log, or the deployment log's, and the length of the erasures.
    fn read_head(&self, log: impl Display) -> Result<Option<(GuardedHead, u64)>> {
        let path = self.path(log, HEAD);
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => file.take(MAX_HEAD).read_to_string(&mut text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => Err(e),
        }
        .map_err(|e| away(&path, e))?;
        let file: HeadFile = serde_json::from_str(&text).map_err(|e| damaged(&path, Some(e)))?;
        let root = Hash::from_base64(&file.root).filter(|_| file.v == VERSION);
        let head = GuardedHead {
            epoch: file.epoch,
            size: file.size,
            root: root.ok_or_else(|| damaged(&path, None))?,
        };
        Ok(Some((head, file.erasures)))
    }

    fn read_erasures(
        &self,
        tenant: TenantId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GuardedErasure>> {
        let Some((_, length)) = self.read_head(tenant)?.filter(|(_, length)| *length > 0) else {
            return Ok(Vec::new());
        };
        let path = self.path(tenant, ERASURES);
        let file = File::open(&path).map_err(|e| away(&path, e))?;
        if file.metadata().map_err(|e| away(&path, e))?.len() < length {
            return Err(damaged(&path, None));
        }
        let lines = BufReader::new(file.take(length)).lines();
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        lines
            .skip(from)
            .take(limit)
            .map(|line| {
                let line = line.map_err(|e| away(&path, e))?;
                let line: ErasureLine =
                    serde_json::from_str(&line).map_err(|e| damaged(&path, Some(e)))?;
                let accepted_at = Timestamp::parse(&line.accepted_at);
                Ok(GuardedErasure {
                    seq: line.seq,
                    accepted_at: accepted_at.map_err(|_| damaged(&path, None))?,
                    ctl: line.ctl,
                })
            })
            .collect()
    }

    fn read_tenants(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<TenantId>> {
        let mut tenants = Vec::new();
        for file in fs::read_dir(&self.folder).map_err(|e| away(&self.folder, e))? {
            let name = file.map_err(|e| away(&self.folder, e))?.file_name();
            let tenant = name
                .to_str()
                .and_then(|name| name.strip_suffix(HEAD)?.strip_suffix('.'));
            tenants.extend(tenant.and_then(|tenant| tenant.parse::<TenantId>().ok()));
        }
        tenants.retain(|tenant| Some(*tenant) > after);
        tenants.sort_unstable();
        tenants.truncate(limit);
        Ok(tenants)
    }

    fn write(&self, log: impl Display, advance: &GuardAdvance) -> Result<()> {
        let lock = self.folder.join(LOCK_FILE);
        let lock_file = private(&lock).map_err(|e| away(&lock, e))?;
        // Until it is closed.
        lock_file.lock().map_err(|e| away(&lock, e))?;
        let present = self.read_head(&log)?;
        if !admit_advance(present.as_ref().map(|(head, _)| head), advance)? {
            return Ok(());
        }
        let mut length = present.map_or(0, |(_, length)| length);
        if !advance.erasures.is_empty() {
            let path = self.path(&log, ERASURES);
            length = append(&path, length, &advance.erasures).map_err(|e| away(&path, e))?;
        }
        let file = HeadFile {
            v: VERSION,
            epoch: advance.to.epoch,
            size: advance.to.size,
            root: advance.to.root.to_base64(),
            erasures: length,
        };
        let path = self.path(&log, HEAD);
        replace(&path, &file).map_err(|e| away(&path, e))?;
        sync_folder(&self.folder).map_err(|e| away(&self.folder, e))
    }

    /// Does what blocks on a thread that may.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let guard = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&guard)).await;
        done.map_err(|e| Error::new(ErrorKind::Internal, "the guard panicked").with_source(e))?
    }
}

/// Opens a file for writing that only its owner may read, and makes it when it isn't there.
fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Writes erasures behind the first `length` bytes of a file, in place of whatever is there, and returns
/// the length with them.
fn append(path: &Path, length: u64, erasures: &[GuardedErasure]) -> io::Result<u64> {
    let mut text = String::new();
    for erasure in erasures {
        let line = ErasureLine {
            seq: erasure.seq,
            accepted_at: erasure.accepted_at.to_string(),
            ctl: erasure.ctl.clone(),
        };
        text.push_str(&serde_json::to_string(&line)?);
        text.push('\n');
    }
    let mut file = private(path)?;
    if file.metadata()?.len() < length {
        let message = "it is shorter than the guard's head says";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(length + text.len() as u64)
}

/// Writes a file whole: a crash leaves the old one or the new one.
fn replace(path: &Path, head: &HeadFile) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = private(&temporary)?;
    file.set_len(0)?;
    file.write_all(format!("{}\n", serde_json::to_string(head)?).as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A folder can't be opened as a file there.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

fn away(path: &Path, cause: io::Error) -> Error {
    let message = format!("the guard can't be used: {}: {cause}", path.display());
    Error::new(ErrorKind::Unavailable, message).with_source(cause)
}

fn damaged(path: &Path, cause: Option<serde_json::Error>) -> Error {
    let message = format!("the guard's file {} is damaged", path.display());
    let error = Error::new(ErrorKind::Unavailable, message);
    match cause {
        Some(cause) => error.with_source(cause),
        None => error,
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Guard for FolderGuard {
    fn place(&self) -> String {
        self.folder.display().to_string()
    }

    async fn head(&self, tenant: TenantId) -> Result<Option<GuardedHead>> {
        let found = self.run(move |guard| guard.read_head(tenant)).await?;
        Ok(found.map(|(head, _)| head))
    }

    async fn erasures(
        &self,
        tenant: TenantId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GuardedErasure>> {
        self.run(move |guard| guard.read_erasures(tenant, from, limit))
            .await
    }

    async fn tenants(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<TenantId>> {
        self.run(move |guard| guard.read_tenants(after, limit))
            .await
    }

    async fn advance(&self, tenant: TenantId, advance: &GuardAdvance) -> Result<()> {
        let advance = advance.clone();
        self.run(move |guard| guard.write(tenant, &advance)).await
    }

    async fn deployment_head(&self) -> Result<Option<GuardedHead>> {
        let found = self.run(|guard| guard.read_head(DEPLOYMENT)).await?;
        Ok(found.map(|(head, _)| head))
    }

    async fn advance_deployment(&self, known: Option<GuardedHead>, to: GuardedHead) -> Result<()> {
        let advance = GuardAdvance::plain(known, to);
        self.run(move |guard| guard.write(DEPLOYMENT, &advance))
            .await
    }
}
