//! Archives in a folder or, with the feature `s3`, in Amazon S3 and whatever speaks its protocol.
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
//! `s3://bucket/prefix` is a bucket. Credentials, region and endpoint come from the variables that
//! AWS's own tools read (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
//! web identities, the instance's role). It needs to list, get, put and delete objects below the prefix.
//! Where the bucket keeps versions, as an object lock demands, what is deleted is only listed no more.
//! S3 compares a checksum of what it is sent.
//!
//! Calls are repeated by the client for three minutes at most; then the error is retryable.

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

/// An [`Archive`] in a folder or a bucket.
pub struct ObjectArchive {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
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
    /// [`ErrorKind::Invalid`] naming `url` when it is neither, or has a user or a query;
    /// [`ErrorKind::Refused`] when it is of S3 and this build has none; [`ErrorKind::Unavailable`] when
    /// the folder can't be made.
    pub fn open(url: &str) -> Result<Self> {
        let invalid = |detail: &'static str| Error::field("url", detail);
        let read = Url::parse(url);
        let url = read.map_err(|_| invalid("file:///path or s3://bucket/prefix is expected"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(
                "credentials come from the environment, not from the URL",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("has neither a query nor a fragment"));
        }
        match url.scheme() {
            "file" => Self::folder(&url),
            "s3" => Self::bucket(&url),
            _ => Err(invalid("file:///path or s3://bucket/prefix is expected")),
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
        })
    }

    #[cfg(feature = "s3")]
    fn bucket(url: &Url) -> Result<Self> {
        use object_store::aws::{AmazonS3Builder, Checksum};

        let bucket = url.host_str().unwrap_or_default();
        let prefix = Path::from_url_path(url.path());
        let prefix = prefix.map_err(|_| Error::field("url", "the prefix is no path of objects"))?;
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_checksum_algorithm(Checksum::SHA256)
            .build()
            .map_err(|e| Error::new(ErrorKind::Invalid, "S3 can't be used so").with_source(e))?;
        Ok(Self {
            store: Arc::new(store),
            prefix,
        })
    }

    #[cfg(not(feature = "s3"))]
    fn bucket(_: &Url) -> Result<Self> {
        Err(Error::new(ErrorKind::Refused, "this build has no S3"))
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

fn failed(error: object_store::Error) -> Error {
    use object_store::Error as Fault;
    let (kind, message) = match &error {
        Fault::PermissionDenied { .. } | Fault::Unauthenticated { .. } => {
            (ErrorKind::Refused, "the archive refuses this program")
        }
        Fault::NotSupported { .. } | Fault::NotImplemented { .. } => {
            (ErrorKind::Internal, "the archive can't do this")
        }
        _ => (ErrorKind::Unavailable, "the archive doesn't answer"),
    };
    Error::new(kind, message).with_source(error)
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
            Err(object_store::Error::NotFound { .. }) => Ok(None),
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
        // A folder's files come in any order, a bucket's in theirs.
        let mut found = self.store.list_with_offset(Some(&place), &behind);
        let mut paths = BTreeSet::new();
        while let Some(object) = found.try_next().await.map_err(failed)? {
            let path = object.location.as_ref().get(within..).unwrap_or_default();
            if path <= after {
                continue;
            }
            paths.insert(path.to_owned());
            if paths.len() > MAX_LISTED {
                paths.pop_last();
            }
        }
        Ok(paths.into_iter().collect())
    }

    async fn remove(&self, path: &str) -> Result<()> {
        match self.store.delete(&self.place(path)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}
