//! Archives in a folder or, with the feature `s3`, in Amazon S3 and whatever speaks its protocol; and there
//! a guard as well.
//!
//! ```
//! # fn main() -> audit_core::Result<()> {
//! use std::sync::Arc;
//! use audit_archive::ObjectArchive;
//! use audit_core::{AuditLog, MemoryStore};
//!
//! let folder = std::env::temp_dir().join("audit-archive-example");
//! let url = format!("file://{}", folder.display());
//! let archive = ObjectArchive::open(&url)?;
//! let builder = AuditLog::builder(Arc::new(MemoryStore::new()))
//!     .archive(Arc::new(archive));
//! # drop(builder);
//! # Ok(())
//! # }
//! ```
//!
//! # Where
//!
//! `file:///path` is a folder, which is made when it is missing. Each object is written to a file of
//! another name, synced, and renamed. A folder that another machine serves has to keep to that.
//!
//! `s3://bucket/prefix` is a bucket, which has to be there. How it is reached is in the environment:
//!
//! | variables | |
//! |---|---|
//! | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` | credentials |
//! | `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`, `AWS_ROLE_SESSION_NAME`, `AWS_ENDPOINT_URL_STS` | a web identity in their place |
//! | `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`, `AWS_CONTAINER_CREDENTIALS_FULL_URI`, `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE` | a container's role; without any of these the instance's |
//! | `AWS_REGION`, or `AWS_DEFAULT_REGION` | us-east-1 without one |
//! | `AWS_ENDPOINT_URL_S3`, or `AWS_ENDPOINT_URL` | another server than AWS's |
//! | `AWS_ALLOW_HTTP=true`, `AWS_VIRTUAL_HOSTED_STYLE_REQUEST=true` | without TLS; with the bucket's name in the host's |
//! | `AWS_S3_EXPRESS=true` | a directory bucket |
//!
//! No other variable is read, nor are profiles and configuration files of AWS's own tools. An archive needs to
//! list, get, put and delete objects below the prefix, and no more: no conditional put, no deletion of many at once. A
//! guard needs to list, get and put, with `If-Match` and `If-None-Match`, and deletes nothing. Where the bucket keeps
//! versions, as an object lock demands, what is deleted is only listed no more. Each object is sent with its SHA-256,
//! which S3 compares.
//!
//! A call that fails is repeated five times at most, and not after ten seconds any more; one try takes
//! thirty at most. Then the error is retryable.

mod guard;
mod options;
#[cfg(feature = "s3")]
mod s3;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use audit_core::archive::{Archive, MAX_LISTED, check_path};
use audit_core::{Error, ErrorKind, Result};
use futures_util::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use url::Url;

pub use guard::ObjectGuard;
pub use options::ObjectOptions;

/// An [`Archive`] in a folder or a bucket.
pub struct ObjectArchive {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Whether a list comes in the order of its paths' bytes.
    in_order: bool,
}

impl fmt::Debug for ObjectArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store's own may tell how it signs in.
        f.debug_struct("ObjectArchive")
            .field("store", &self.store.to_string())
            .field("prefix", &self.prefix)
            .finish()
    }
}

impl ObjectArchive {
    /// Opens the archive at a URL, `file:///path` or `s3://bucket/prefix`. A folder is made when it is
    /// missing; a bucket is not asked for before the first call.
    ///
    /// # Errors
    /// Those of [`ObjectOptions::new`] and [`open_with`](Self::open_with).
    pub fn open(url: &str) -> Result<Self> {
        Self::open_with(&ObjectOptions::new(url)?)
    }

    /// Opens an archive, as [`open`](Self::open) does.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the URL's path or a variable can't be used; [`ErrorKind::Refused`] when
    /// it is of S3 and this build has none, or naming the file of authorities when that can't be used;
    /// [`ErrorKind::Unavailable`] when the folder can't be made.
    pub fn open_with(options: &ObjectOptions) -> Result<Self> {
        match options.url.scheme() {
            "file" => Self::folder(&options.url),
            _ => {
                let (store, prefix, in_order) = bucket(options)?;
                Ok(Self {
                    store,
                    prefix,
                    in_order,
                })
            }
        }
    }

    fn folder(url: &Url) -> Result<Self> {
        let path = url.to_file_path();
        let path =
            path.map_err(|()| Error::field("url", "file:// is followed by an absolute path"))?;
        let unusable = |message| Error::new(ErrorKind::Unavailable, message);
        std::fs::create_dir_all(&path)
            .map_err(|e| unusable("the archive's folder can't be made").with_source(e))?;
        let store = LocalFileSystem::new_with_prefix(&path)
            .map_err(|e| unusable("the archive's folder can't be used").with_source(e))?;
        Ok(Self {
            store: Arc::new(store.with_fsync(true).with_automatic_cleanup(true)),
            prefix: Path::default(),
            in_order: false,
        })
    }

    /// The place of an object, or of a folder.
    fn place(&self, path: &str) -> Result<Path> {
        check_path(path)?;
        Ok(self
            .prefix
            .parts()
            .chain(Path::from(path).parts())
            .collect())
    }
}

/// A bucket, the path of the prefix within it, and whether it lists its objects in order.
#[cfg(feature = "s3")]
fn bucket(options: &ObjectOptions) -> Result<(Arc<dyn ObjectStore>, Path, bool)> {
    let prefix = Path::from_url_path(options.url.path());
    let prefix = prefix.map_err(|_| Error::field("url", "the prefix is no path of objects"))?;
    let (store, in_order) = s3::open(options)?;
    Ok((Arc::new(store), prefix, in_order))
}

#[cfg(not(feature = "s3"))]
fn bucket(_: &ObjectOptions) -> Result<(Arc<dyn ObjectStore>, Path, bool)> {
    Err(Error::new(ErrorKind::Refused, "this build has no S3"))
}

/// How S3 names a missing bucket, whose status is that of a missing object.
const NO_BUCKET: &str = "<Code>NoSuchBucket</Code>";
/// How the client tells a refusal of which it kept the text alone, as it does of a list.
const FORBIDDEN: &str = "status code: 403";
const REFUSED: &str = "the archive refuses this program";

fn failed(error: object_store::Error) -> Error {
    use object_store::Error as Fault;
    let says = |part| error.to_string().contains(part);
    let (kind, message) = match &error {
        Fault::NotSupported { .. } | Fault::NotImplemented { .. } => {
            (ErrorKind::Internal, "the archive can't do this")
        }
        // Credentials are renewed, rights given and buckets made: the same call may succeed later.
        Fault::PermissionDenied { .. } | Fault::Unauthenticated { .. } => {
            (ErrorKind::Unavailable, REFUSED)
        }
        Fault::Generic { .. } if says(FORBIDDEN) => (ErrorKind::Unavailable, REFUSED),
        _ if says(NO_BUCKET) => (ErrorKind::Unavailable, "the archive's bucket is missing"),
        _ => (ErrorKind::Unavailable, "the archive doesn't answer"),
    };
    Error::new(kind, message).with_source(error)
}

/// Whether there is no such object in an archive that is there.
fn is_absent(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. }) && !error.to_string().contains(NO_BUCKET)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Archive for ObjectArchive {
    async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let place = self.place(path)?;
        let stored = self.store.put(&place, bytes.into()).await;
        stored.map(drop).map_err(failed)
    }

    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let place = self.place(path)?;
        let found = match self.store.get(&place).await {
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        match found {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    async fn list(&self, folder: &str, after: &str) -> Result<Vec<String>> {
        let place = self.place(folder)?;
        let within = match self.prefix.as_ref() {
            "" => 0,
            prefix => prefix.len() + 1,
        };
        let behind: Path = match after {
            "" => place.clone(),
            after => {
                let parts = Path::from(after);
                self.prefix.parts().chain(parts.parts()).collect()
            }
        };
        // A folder's files come in any order, so that all have to be seen.
        let mut found = self.store.list_with_offset(Some(&place), &behind);
        let mut paths = BTreeSet::new();
        while let Some(object) = found.try_next().await.map_err(failed)? {
            let path = object.location.as_ref().get(within..).unwrap_or_default();
            if path <= after {
                continue;
            }
            let comes_late = |last: &String| path <= last.as_str();
            if self.in_order && paths.last().is_some_and(comes_late) {
                // A list that ends at its first thousand would leave out what comes late.
                let message = "the bucket doesn't list its objects in order";
                return Err(Error::new(ErrorKind::Internal, message));
            }
            paths.insert(path.to_owned());
            if self.in_order && paths.len() == MAX_LISTED {
                break;
            }
            if paths.len() > MAX_LISTED {
                paths.pop_last();
            }
        }
        Ok(paths.into_iter().collect())
    }

    async fn remove(&self, path: &str) -> Result<()> {
        match self.store.delete(&self.place(path)?).await {
            Err(error) if !is_absent(&error) => Err(failed(error)),
            _ => Ok(()),
        }
    }
}
