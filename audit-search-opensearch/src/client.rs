//! Requests and answers.

use std::time::Duration;

use audit_core::{Error, ErrorKind, Result};
use bytes::Bytes;
use opensearch::auth::Credentials;
use opensearch::cert::{Certificate, CertificateValidation};
use opensearch::http::Method;
use opensearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use opensearch::http::transport::{SingleNodeConnectionPool, Transport, TransportBuilder};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::fault::{Fault, away, nonsense};
use crate::options::OpenSearchOptions;

/// Sends requests, each within a time.
pub(crate) struct Client {
    transport: Transport,
}

/// An answer with a status that the caller may have reckoned with: success, 400, 404, 409.
#[derive(Debug)]
pub(crate) struct Answer {
    status: u16,
    body: Bytes,
}

impl Client {
    pub(crate) fn new(options: &OpenSearchOptions) -> Result<Self> {
        let refuse = |message: &'static str| Error::new(ErrorKind::Refused, message);
        let pool = SingleNodeConnectionPool::new(options.url.clone());
        let mut builder = TransportBuilder::new(pool).timeout(options.timeout);
        if let Some((name, password)) = &options.credentials {
            builder = builder.auth(Credentials::Basic(name.clone(), password.clone()));
        }
        if let Some(pem) = &options.ca {
            let authorities = Certificate::from_pem(pem).map_err(|error| {
                refuse("the search authorities are not certificates in PEM").with_source(error)
            })?;
            builder = builder.cert_validation(CertificateValidation::Full(authorities));
        }
        let transport = builder.build().map_err(|error| {
            refuse("no connection to OpenSearch can be made").with_source(error)
        })?;
        Ok(Self { transport })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::Get, path, &[], None, HeaderMap::new())
            .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(Method::Delete, path, &[], None, HeaderMap::new())
            .await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        let body = Bytes::from(body.to_string());
        self.send(Method::Put, path, &[], Some(body), HeaderMap::new())
            .await
    }

    pub(crate) async fn post(
        &self,
        path: &str,
        query: &[(&str, &str)],
        body: &Value,
    ) -> Result<Answer> {
        let body = Bytes::from(body.to_string());
        self.send(Method::Post, path, query, Some(body), HeaderMap::new())
            .await
    }

    /// Posts lines of JSON.
    pub(crate) async fn post_lines(
        &self,
        path: &str,
        query: &[(&str, &str)],
        lines: Bytes,
    ) -> Result<Answer> {
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-ndjson"),
        );
        self.send(Method::Post, path, query, Some(lines), headers)
            .await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Bytes>,
        headers: HeaderMap,
    ) -> Result<Answer> {
        let response = self
            .transport
            .send(method, path, headers, Some(query), body, None)
            .await
            .map_err(away)?;
        let status = response.status_code().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|seconds| seconds.parse().ok())
            .map(Duration::from_secs);
        let body = response.bytes().await.map_err(away)?;
        if (200..300).contains(&status) || matches!(status, 400 | 404 | 409) {
            return Ok(Answer { status, body });
        }
        Err(Fault::read(status, &body).into_error(retry_after))
    }
}

impl Answer {
    /// Reads a success.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        if !(200..300).contains(&self.status) {
            return Err(self.fault().into_error(None));
        }
        self.read()
    }

    /// Reads the body, whatever the status.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(nonsense)
    }

    /// A success without a look at what it says.
    pub(crate) fn ok(&self) -> Result<()> {
        match self.status {
            200..300 => Ok(()),
            _ => Err(self.fault().into_error(None)),
        }
    }

    pub(crate) fn fault(&self) -> Fault {
        Fault::read(self.status, &self.body)
    }

    pub(crate) fn is_missing_index(&self) -> bool {
        self.status == 404 && self.fault().is_missing_index()
    }
}
