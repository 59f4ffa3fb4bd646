//! Exports: many entries as one body that is never held whole.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use audit_core::{Error, ErrorKind, Filter, Result};
use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt as _};
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderValue};

use crate::client::Client;
use crate::list::filter_query;
use crate::transport::{Call, lost};

/// The form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExportFormat {
    /// Comma-separated values with a header line; formulas of spreadsheets are neutralised.
    Csv,
    /// One JSON object a line.
    Ndjson,
}

impl ExportFormat {
    /// Its name in the API, and a file's ending.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
        }
    }
}

/// The bytes of an export, in the order of positions. A connection that is cut ends it with an error:
/// what came until then is right, and a new export with `from_seq` goes on from there.
pub struct Export(BoxStream<'static, Result<Bytes>>);

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Export")
    }
}

impl Stream for Export {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl Client {
    /// Begins an export. The first bytes are waited for under the bounds of
    /// [`Retry`](crate::Retry); what follows has no limit but the
    /// [longest silence](crate::Builder::longest_silence).
    ///
    /// # Errors
    /// A filter that the server refuses, by name.
    pub async fn export(&self, filter: &Filter, format: ExportFormat) -> Result<Export> {
        self.begin_export(format.as_str(), filter, None).await
    }

    /// Begins an export in any form, with one more parameter.
    pub(crate) async fn begin_export(
        &self,
        format: &str,
        filter: &Filter,
        more: Option<(&'static str, String)>,
    ) -> Result<Export> {
        let mut query = vec![("format", format.to_owned())];
        query.extend(filter_query(filter));
        query.extend(more);
        let call = Call::new(Method::GET, "api/v1/logs/export")
            .query(query)
            .header(ACCEPT, HeaderValue::from_static("*/*"));
        let response = self.body(&call).await?;
        Ok(Export(chunks(response, self.shared.silence)))
    }
}

/// A body's bytes; a silence that is too long, or a cut, is an error and the end.
pub(crate) fn chunks(
    response: reqwest::Response,
    silence: Duration,
) -> BoxStream<'static, Result<Bytes>> {
    let body = response.bytes_stream().boxed();
    futures_util::stream::unfold(Some(body), move |body| async move {
        let mut body = body?;
        match tokio::time::timeout(silence, body.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(bytes))) => Some((Ok(bytes), Some(body))),
            Ok(Some(Err(error))) => Some((Err(lost(error).error), None)),
            Err(_) => {
                let message = "the server has been silent for too long";
                Some((Err(Error::new(ErrorKind::Unavailable, message)), None))
            }
        }
    })
    .boxed()
}
