//! Where an archive or a guard is, and how it is reached.

use std::fmt;
use std::path::PathBuf;

use audit_core::{Error, Result};
use url::Url;

/// Where an archive or a guard is, and how it is reached.
#[derive(Clone)]
pub struct ObjectOptions {
    pub(crate) url: Url,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) variables: Vec<(String, String)>,
}

impl ObjectOptions {
    /// The place at a URL, `file:///path` or `s3://bucket/prefix`.
    ///
    /// # Errors
    /// [`Invalid`](audit_core::ErrorKind::Invalid) naming `url` when it is neither; when it has a user,
    /// which errors would show, or a query; and when it has a port, which no bucket has.
    pub fn new(url: &str) -> Result<Self> {
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
            "file" => {}
            "s3" if url.host_str().unwrap_or_default().is_empty() => {
                return Err(invalid("s3:// is followed by the name of a bucket"));
            }
            "s3" if url.port().is_some() => {
                return Err(invalid(
                    "has no port: AWS_ENDPOINT_URL says where a server is",
                ));
            }
            "s3" => {}
            _ => return Err(invalid("file:///path or s3://bucket/prefix is expected")),
        }
        Ok(Self {
            url,
            ca_file: None,
            variables: Vec::new(),
        })
    }

    /// A PEM file with the certificates of authorities that are trusted besides the system's. A folder
    /// needs none.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// A variable in place of the environment's, one of [those that are read](crate#where). The last one of a
    /// name counts. [`ObjectArchive::open_with`](crate::ObjectArchive::open_with) refuses any other. A folder
    /// needs none.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }
}

impl fmt::Debug for ObjectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A variable may be a secret.
        let names = self.variables.iter().map(|(name, _)| name);
        f.debug_struct("ObjectOptions")
            .field("url", &self.url.as_str())
            .field("ca_file", &self.ca_file)
            .field("variables", &names.collect::<Vec<_>>())
            .finish()
    }
}
