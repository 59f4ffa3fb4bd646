//! `audit head`.

use audit_client::{Client, ListRequest};
use audit_core::Filter;

use crate::args::HeadArgs;
use crate::failure::{Failure, Outcome};
use crate::present::Out;

/// The text is printed as it was signed, with `--json` too: it verifies byte by byte.
pub(crate) async fn run(client: &Client, mut out: Out, args: HeadArgs) -> Result<Outcome, Failure> {
    let tenant = match client.tenant() {
        Some(tenant) => tenant,
        // A credential of one tenant's doesn't have to name it; each of its entries does.
        None => {
            let request = ListRequest::new(Filter::new()).limit(1);
            match client.list(&request).await?.items.first() {
                Some(entry) => entry.tenant_id,
                None => return Err(Failure::Usage("the log is empty, and has no head".into())),
            }
        }
    };
    let text = match args.cosigned {
        true => client.head_proof(tenant).await?.encode(),
        false => client.checkpoint(tenant).await?.encode(),
    };
    out.bytes(text.as_bytes())?;
    out.flush()?;
    Ok(Outcome::Complete)
}
