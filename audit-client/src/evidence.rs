//! What the log proves: checkpoints, proofs and evidence exports, to be verified with
//! [`audit_core::tlog`] or any other tool of these formats.

use audit_core::tlog::note::{MAX_LEN, Note, VerifyingKey};
use audit_core::tlog::proof::InclusionProof;
use audit_core::{Error, ErrorKind, EventId, EvidenceRequest, Result, TenantId};
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderValue};

use crate::client::Client;
use crate::export::Export;
use crate::transport::Call;

/// The longest note, proof or key, in bytes: a note and the hashes of a proof.
const MAX_TEXT: usize = MAX_LEN + (16 << 10);

impl Client {
    /// The proof that an entry is in the log: its position, hashes, and the signed checkpoint that
    /// they lead to. [`InclusionProof::verify`] says whether it holds for the entry's leaf hash.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and [`ErrorKind::Pruned`] as for [`get`](Self::get);
    /// [`ErrorKind::Unavailable`] when no checkpoint covers the entry within the bounds of
    /// [`Retry`](crate::Retry), and [`ErrorKind::Malformed`] for what is no proof.
    pub async fn proof(&self, id: EventId) -> Result<InclusionProof> {
        let text = self.text(format!("api/v1/logs/{id}/proof")).await?;
        InclusionProof::parse(&text).map_err(not_the_format)
    }

    /// A tenant's newest checkpoint, a C2SP signed note.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] before the first one; [`ErrorKind::Malformed`] for what is no note.
    pub async fn checkpoint(&self, tenant: TenantId) -> Result<Note> {
        let text = self
            .text(format!("api/v1/tlog/{tenant}/checkpoint"))
            .await?;
        Note::parse(&text).map_err(not_the_format)
    }

    /// The smallest checkpoint that covers so many entries at least, of those that the server has kept.
    /// Over a change of keys at position `seq`, that is for `seq + 1`, both keys sign it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when none covers them; [`ErrorKind::Malformed`] for what is no note.
    pub async fn checkpoint_covering(&self, tenant: TenantId, size: u64) -> Result<Note> {
        let path = format!("api/v1/tlog/{tenant}/checkpoint?covers={size}");
        Note::parse(&self.text(path).await?).map_err(not_the_format)
    }

    /// The key of a tenant's checkpoints, as the server says. Compare it with one from elsewhere.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] for what is no key.
    pub async fn verifying_key(&self, tenant: TenantId) -> Result<VerifyingKey> {
        let text = self.text(format!("api/v1/tlog/{tenant}/key")).await?;
        VerifyingKey::parse(text.trim_end()).map_err(not_the_format)
    }

    /// The proof that a tenant's head is in the deployment log, with the cosignatures that there are.
    /// [`verify_head`](audit_core::tlog::verify_head) says whether it holds, and who cosigned.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no head of the tenant's log came to be in it within the bounds of
    /// [`Retry`](crate::Retry): it takes up to an hour; [`ErrorKind::Malformed`] for what is no proof.
    pub async fn head_proof(&self, tenant: TenantId) -> Result<InclusionProof> {
        let text = self
            .text(format!("api/v1/tlog/{tenant}/deployment"))
            .await?;
        InclusionProof::parse(&text).map_err(not_the_format)
    }

    /// The key of the deployment log's checkpoints, as the server says. Compare it with one from
    /// elsewhere.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] for what is no key.
    pub async fn deployment_key(&self) -> Result<VerifyingKey> {
        let text = self.text("api/v1/tlog-deployment/key".into()).await?;
        VerifyingKey::parse(text.trim_end()).map_err(not_the_format)
    }

    /// Begins an evidence export: the lines of [`audit_core::tlog::evidence`]. It is evidence only
    /// with its last line.
    ///
    /// # Errors
    /// A filter that the server refuses, by name.
    pub async fn evidence(&self, request: &EvidenceRequest) -> Result<Export> {
        let withheld: Vec<&str> = request.withheld.iter().map(|g| g.as_str()).collect();
        let withhold = (!withheld.is_empty()).then(|| ("withhold", withheld.join(",")));
        self.begin_export("evidence", &request.filter, withhold)
            .await
    }

    async fn text(&self, path: String) -> Result<String> {
        let call = Call::new(Method::GET, path)
            .header(ACCEPT, HeaderValue::from_static("text/plain, */*"));
        let bytes = self.bytes(&call, MAX_TEXT).await?;
        String::from_utf8(bytes.into()).map_err(not_the_format)
    }
}

pub(crate) fn not_the_format(fault: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(
        ErrorKind::Malformed,
        "the server's answer is not in the format that was asked for",
    )
    .with_source(fault)
}
