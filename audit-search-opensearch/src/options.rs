//! How an index is reached and laid out.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use audit_core::{Error, ErrorKind, Result};
use url::Url;

/// The longest prefix, in characters.
const MAX_PREFIX: usize = 64;

/// How tenants share indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Layout {
    /// One index for all. Each tenant's documents lie in one shard, and every search names the
    /// tenant. For many tenants, also small ones.
    #[default]
    Shared,
    /// An index for each tenant, made with its first entry. For some hundred tenants that are large,
    /// or whose data has to lie apart: each index costs the cluster memory.
    PerTenant,
}

/// How an [`OpenSearchIndex`](crate::OpenSearchIndex) is opened.
#[derive(Clone)]
pub struct OpenSearchOptions {
    pub(crate) url: Url,
    pub(crate) credentials: Option<(String, String)>,
    pub(crate) ca: Option<Vec<u8>>,
    pub(crate) layout: Layout,
    pub(crate) prefix: String,
    pub(crate) timeout: Duration,
    pub(crate) shards: Option<u32>,
    pub(crate) replicas: Option<u32>,
}

impl OpenSearchOptions {
    /// The index at this `http` or `https` URL; its user info, if any, are the name and the password
    /// of HTTP basic authentication, percent-encoded as RFC 3986 says. The rest are the defaults: the
    /// shared layout, the prefix `audit`, answers within 30 s, shards and replicas as the cluster
    /// has them.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] for what is no such URL.
    pub fn new(url: &str) -> Result<Self> {
        let refuse = || {
            Error::new(
                ErrorKind::Refused,
                "the search URL is not an http or https URL of a host",
            )
        };
        let mut url = Url::parse(url).map_err(|error| refuse().with_source(error))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(refuse());
        }
        let decode = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8()
                .map(String::from)
                .map_err(|error| refuse().with_source(error))
        };
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            (name, password) => Some((decode(name)?, decode(password.unwrap_or(""))?)),
        };
        // Errors and debug output show the URL.
        url.set_username("")
            .and_then(|()| url.set_password(None))
            .map_err(|()| refuse())?;
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self {
            url,
            credentials,
            ca: None,
            layout: Layout::default(),
            prefix: "audit".into(),
            timeout: Duration::from_secs(30),
            shards: None,
            replicas: None,
        })
    }

    /// HTTP basic authentication, instead of what the URL has.
    #[must_use]
    pub fn credentials(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some((name.into(), password.into()));
        self
    }

    /// Trusts the authorities in this PEM file too, besides those of the system.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when the file can't be read. Whether it holds certificates is seen
    /// when the index is opened.
    pub fn ca_file(mut self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let pem = std::fs::read(path).map_err(|error| {
            let message = format!("the authorities in {} can't be read", path.display());
            Error::new(ErrorKind::Refused, message).with_source(error)
        })?;
        self.ca = Some(pem);
        Ok(self)
    }

    /// How tenants share indexes. Another layout starts empty.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// What the names of all indexes begin with: 1 to 64 of `a-z 0-9 - _`, a letter or digit first.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] for any other text.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Result<Self> {
        self.prefix = prefix.into();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let admitted = self.prefix.chars().all(|c| plain(c) || "-_".contains(c));
        if !admitted || !self.prefix.starts_with(plain) || self.prefix.len() > MAX_PREFIX {
            return Err(Error::new(
                ErrorKind::Refused,
                "the prefix of search indexes is 1 to 64 of a-z 0-9 - _, a letter or digit first",
            ));
        }
        Ok(self)
    }

    /// How long one request may take, from connecting to the end of the answer. A call makes a few.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The shards of an index, from when it is made next. With the shared layout a tenant lies in
    /// one of them.
    #[must_use]
    pub fn shards(mut self, shards: u32) -> Self {
        self.shards = Some(shards);
        self
    }

    /// The copies of each shard, from when an index is made next.
    #[must_use]
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = Some(replicas);
        self
    }
}

impl fmt::Debug for OpenSearchOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenSearchOptions")
            .field("url", &self.url.as_str())
            .field("user", &self.credentials.as_ref().map(|(name, _)| name))
            .field("layout", &self.layout)
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("shards", &self.shards)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_taken_out_of_the_url() {
        let options = OpenSearchOptions::new("https://ann:p%40ss@search.example:9200/os").unwrap();
        let credentials = options.credentials.clone().unwrap();
        assert_eq!(credentials, ("ann".to_owned(), "p@ss".to_owned()));
        assert_eq!(options.url.as_str(), "https://search.example:9200/os");
        assert!(!format!("{options:?}").contains("p@ss"));
        let open = OpenSearchOptions::new("http://127.0.0.1:9200").unwrap();
        assert!(open.credentials.is_none());
    }

    #[test]
    fn other_urls_and_prefixes_are_refused() {
        for url in ["", "search:9200", "ftp://search", "/var/run/search"] {
            let error = OpenSearchOptions::new(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{url}");
        }
        for prefix in ["", "Audit", "_audit", "a b", "a*", "a.b"] {
            let options = OpenSearchOptions::new("http://search").unwrap();
            assert!(options.prefix(prefix).is_err(), "{prefix}");
        }
    }
}
