//! Archives: where the evidence of entries is kept before they are pruned.
//!
//! An archive is a place for whole objects under paths. Below a tenant's id it has *segments*: the
//! evidence of a run of positions each, as the files of an evidence folder
//! ([`audit_tlog::folder`]), so that an auditor verifies it with nothing but the archive:
//!
//! | path | what is in it |
//! |---|---|
//! | `<tenant_id>/<from>-<to>-<id>/log.ndjson.zst` | the entries at these positions, whole but for what was erased; hashes that stand for the rest of the log; the leaf data of the entries that explain what is erased |
//! | `…/checkpoint`, `…/checkpoints/<size>`, `…/keys` | the signed head that all this leads to, earlier ones that other segments have, those over changes of keys, the key |
//! | `…/manifest.json` | the files' digests. It is written last: without one it is no segment |
//!
//! A segment has at most [`MAX_ENTRIES`] entries, or
//! [fewer](crate::AuditLogBuilder::segment_entries), and about [`MAX_TEXT`] bytes of text.
//!
//! With an archive, [`TenantLog::prune`](crate::TenantLog::prune) archives first what would go, reads
//! it back, verifies it as an auditor would, and moves the cursor of the required consumer
//! [`CONSUMER`], which no prune passes. Only then it prunes. Whatever fails or is killed on the way
//! leaves the entries where they are. So does [`AuditLog::end_tenant`](crate::AuditLog::end_tenant), with all
//! that is left of a log.
//!
//! What is erased of an entry that is archived leaves the archive as well: the log's `erase` entry names
//! its position, and the process that signs writes the segment anew without it, before the old one
//! goes. The cursor of the required consumer [`ERASURES`] says how far that is.

mod archiver;
mod erasing;
mod segment;
mod shelf;

use std::fmt::Debug;

use async_trait::async_trait;

use crate::error::Result;

pub use archiver::ArchiveStatus;
pub(crate) use archiver::Archiver;
pub(crate) use erasing::Wanted;

/// The most entries of a segment.
pub const MAX_ENTRIES: u64 = 65_536;
/// The text of entries after which a segment takes no further one, in bytes before it is packed.
pub const MAX_TEXT: usize = 32 << 20;
/// The most paths of one answer of [`Archive::list`].
pub const MAX_LISTED: usize = 1_000;
/// The required consumer whose cursor says how far a log is archived.
pub const CONSUMER: &str = "archive";
/// The required consumer whose cursor says how far erasures have left a log's archive.
pub const ERASURES: &str = "archive-erasures";

/// A place for whole objects: a folder, a bucket.
///
/// Paths are parts of `A-Z a-z 0-9 . _ -`, joined by `/`; no part is empty, `.` or `..`. The contract is
/// executable: `audit-conformance` runs it.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Archive: Debug + Send + Sync + 'static {
    /// Stores an object, whole or not at all, in place of the one at this path, if there is one. When
    /// this returns, it is durable.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for a path that is none. After any other one it may be
    /// stored or not.
    async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()>;

    /// An object as it was stored; none where there is none.
    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>>;

    /// The paths of objects below a folder, in the order of their bytes, that come behind `after`, or all
    /// when that is empty: at most [`MAX_LISTED`], and fewer only when there are no more.
    async fn list(&self, folder: &str, after: &str) -> Result<Vec<String>>;

    /// Removes an object. One that isn't there is no error.
    async fn remove(&self, path: &str) -> Result<()>;
}

/// Refuses what is no path, as every archive does.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) naming `path`.
pub fn check_path(path: &str) -> Result<()> {
    let is_part = |part: &str| {
        let admitted =
            |b| matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        !matches!(part, "" | "." | "..") && part.bytes().all(admitted)
    };
    match path.split('/').all(is_part) {
        true => Ok(()),
        false => Err(crate::Error::field("path", "not a path of an archive")),
    }
}
