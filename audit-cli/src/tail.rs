//! `audit tail`.

use audit_client::{Client, StreamRequest};
use audit_core::Delivered;
use futures_util::StreamExt as _;

use crate::args::TailArgs;
use crate::failure::{Failure, Outcome};
use crate::present::{Out, actor, resource, second};

pub(crate) async fn run(client: &Client, mut out: Out, args: TailArgs) -> Result<Outcome, Failure> {
    let mut request = StreamRequest::new().filter(args.filter.filter());
    if let Some(seq) = args.start {
        request = request.from(seq);
    }
    let mut left = args.limit;
    let mut followed = client.stream(&request).await?;
    while left != Some(0)
        && let Some(delivered) = followed.next().await
    {
        match delivered? {
            Delivered::Entry(entry) => {
                if out.json {
                    out.line(&entry.to_json())?;
                } else {
                    let fields = &entry.fields;
                    out.text(&format!(
                        "{} {:>8}  {}  {}  {}  {}",
                        second(entry.occurred_at),
                        entry.seq,
                        actor(&entry),
                        fields.action,
                        resource(&entry),
                        fields.outcome
                    ))?;
                }
                out.flush()?;
                left = left.map(|n| n - 1);
            }
            Delivered::Pruned { below } => {
                out.hint(&format!("what was before entry {below} is pruned"));
            }
            _ => {}
        }
    }
    Ok(Outcome::Complete)
}
