//! `audit head`.

use audit_client::{Client, ListRequest};
use audit_core::Filter;
use audit_tlog::{Checkpoint, HeadOpening, InclusionProof};

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
    let text = if args.key {
        client.verifying_key(tenant).await?.encode() + "\n"
    } else if args.cosigned {
        let proof = client.head_proof(tenant).await?;
        tell(&out, &proof);
        proof.encode()
    } else {
        client.checkpoint(tenant).await?.encode()
    };
    out.bytes(text.as_bytes())?;
    out.flush()?;
    Ok(Outcome::Complete)
}

/// Says of which size a head is, and who claims to have cosigned it: a proof without a cosignature says
/// nothing about when.
fn tell(out: &Out, proof: &InclusionProof) {
    let note = proof.checkpoint();
    let (Ok(opening), Ok(head)) = (HeadOpening::of(proof), Checkpoint::parse(note.text())) else {
        return;
    };
    let signers = note.signatures().iter().map(|signature| signature.name());
    let witnesses: Vec<&str> = signers.filter(|name| *name != head.origin()).collect();
    let by = match &witnesses[..] {
        [] => "which no witness has cosigned".to_owned(),
        names => format!("cosigned by {}", names.join(", ")),
    };
    out.hint(&format!("the log's head of size {}, {by}", opening.size));
}
