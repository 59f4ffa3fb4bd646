//! The client and how it is built.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use audit_core::{Clock, Error, Result, SystemClock, TenantId};
use reqwest::header::HeaderValue;
use reqwest::{Method, StatusCode, Url};

use crate::retry::Retry;
use crate::transport::{Call, Repeat};

/// A connection to a server, for one credential and at most one tenant. Cheap to clone; clones share
/// the connection pool.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tenant: Option<TenantId>,
}

pub(crate) struct Shared {
    pub(crate) http: reqwest::Client,
    pub(crate) base: Url,
    pub(crate) token: Option<HeaderValue>,
    pub(crate) retry: Retry,
    pub(crate) timeout: Duration,
    pub(crate) silence: Duration,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Builds a [`Client`].
#[must_use]
pub struct Builder {
    url: String,
    token: Option<String>,
    tenant: Option<TenantId>,
    retry: Retry,
    timeout: Duration,
    silence: Duration,
    clock: Arc<dyn Clock>,
}

/// Whether the server can work.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Whether it takes requests.
    pub ready: bool,
    /// What it says about its parts, as JSON text.
    pub detail: String,
}

impl Client {
    /// Begins to build a client for the server at `url`, `http://127.0.0.1:8000` or
    /// `https://audit.example.com/some/prefix`, without `/api/v1`.
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder {
            url: url.into(),
            token: None,
            tenant: None,
            retry: Retry::default(),
            timeout: Duration::from_secs(30),
            silence: Duration::from_secs(60),
            clock: Arc::new(SystemClock),
        }
    }

    /// The same client for another tenant. Needs a credential that may act across tenants.
    #[must_use]
    pub fn with_tenant(&self, tenant: TenantId) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            tenant: Some(tenant),
        }
    }

    /// The tenant that it names to the server; none when the credential's own counts.
    pub fn tenant(&self) -> Option<TenantId> {
        self.tenant
    }

    /// Asks whether the server is ready. One that answers and isn't is no error; it is asked once,
    /// without retries.
    ///
    /// # Errors
    /// [`Unavailable`](audit_core::ErrorKind::Unavailable) when there is no answer.
    pub async fn health(&self) -> Result<Health> {
        let call = Call::new(Method::GET, "health/ready").repeat(Repeat::Never);
        let answer = self.exchange(&call).await?;
        Ok(Health {
            ready: answer.status == StatusCode::OK,
            detail: answer.body,
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("url", &self.shared.base.as_str())
            .field("tenant", &self.tenant)
            .field("retry", &self.shared.retry)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// A JSON Web Token or an API key, sent as `Authorization: Bearer`. It is never shown by `Debug`,
    /// and never follows a redirect: redirects are errors.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The tenant, sent as `X-Tenant-Id`. Without it the credential's own counts.
    pub fn tenant(mut self, tenant: TenantId) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// How often and how long a call is tried.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The most time for one attempt, answer included; 30 seconds when not given. Exports and streams
    /// have no such limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long an export or a stream may be silent before the connection counts as cut; 60 seconds
    /// when not given. A stream's heartbeats must come more often.
    pub fn longest_silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// Where ids and the noise of waiting come from; the system's when not given.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Builds the client. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Invalid`](audit_core::ErrorKind::Invalid) naming `url` or `token`.
    pub fn build(self) -> Result<Client> {
        let bad_url = |detail: &str| Error::field("url", detail.to_owned());
        let mut base = Url::parse(&self.url)
            .map_err(|e| bad_url(&format!("not a URL ({e}); http://127.0.0.1:8000 is one")))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(bad_url("http:// or https:// and a host are expected"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(bad_url(
                "holds a user name or a password; give a token instead",
            ));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(bad_url("holds a query or a fragment"));
        }
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        let token = match &self.token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
                    .map_err(|_| Error::field("token", "holds characters that a header can't"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let http = reqwest::Client::builder()
            .user_agent(concat!("audit-client/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10).min(self.timeout))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| {
                Error::new(
                    audit_core::ErrorKind::Internal,
                    "the HTTP client can't be set up",
                )
                .with_source(e)
            })?;
        Ok(Client {
            shared: Arc::new(Shared {
                http,
                base,
                token,
                retry: self.retry,
                timeout: self.timeout,
                silence: self.silence,
                clock: self.clock,
            }),
            tenant: self.tenant,
        })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("tenant", &self.tenant)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_in_debug_output() {
        let builder = Client::builder("http://127.0.0.1:1").token("audit_topsecret");
        assert!(!format!("{builder:?}").contains("topsecret"));
        let client = builder.build().unwrap();
        assert!(!format!("{client:?}").contains("topsecret"));
    }

    #[test]
    fn urls_that_can_not_work_are_refused_by_name() {
        for url in [
            "",
            "127.0.0.1:8000",
            "ftp://x",
            "http://ann:pw@x",
            "http://x/?a=b",
        ] {
            let error = Client::builder(url).build().unwrap_err();
            assert_eq!(error.fields()[0].field, "url", "{url}");
            assert!(!error.to_string().contains("pw"), "{error}");
        }
    }

    #[test]
    fn a_path_prefix_is_kept() {
        let client = Client::builder("https://example.com/audit")
            .build()
            .unwrap();
        assert_eq!(
            client.shared.base.join("api/v1/logs").unwrap().as_str(),
            "https://example.com/audit/api/v1/logs"
        );
    }
}
