//! `audit dead-letters` and `audit health`: what an operator looks after.

use audit_client::{Client, Source};
use audit_core::{Error, ErrorKind};

use crate::args::{DeadLettersCommand, SourceArg};
use crate::failure::{Failure, Outcome};
use crate::present::{Out, cut};

pub(crate) async fn run(
    client: &Client,
    mut out: Out,
    command: DeadLettersCommand,
) -> Result<Outcome, Failure> {
    match command {
        DeadLettersCommand::List => {
            let letters = client.dead_letters().await?;
            if out.json {
                letters.iter().try_for_each(|letter| out.value(letter))?;
            } else {
                let rows = letters.iter().map(|letter| {
                    vec![
                        source(letter.source).to_owned(),
                        letter.handle.clone(),
                        letter.tenant_id.to_string(),
                        letter.id.to_string(),
                        letter.at.clone(),
                        cut(&letter.reason, 80),
                    ]
                });
                let head = [
                    "SOURCE",
                    "HANDLE",
                    "TENANT",
                    "EVENT",
                    "GIVEN UP AT",
                    "REASON",
                ];
                if letters.is_empty() {
                    out.hint("no message was given up");
                }
                out.table(&head, rows.collect())?;
            }
        }
        DeadLettersCommand::Redrive { source, handles } => {
            let source = source.map(|source| match source {
                SourceArg::Queue => Source::Queue,
                SourceArg::Outbox => Source::Outbox,
            });
            let which = (!handles.is_empty()).then_some(handles.as_slice());
            let count = client.redrive(source, which).await?;
            if out.json {
                out.line(&format!("{{\"redriven\":{count}}}"))?;
            } else {
                out.text(&format!("{count} sent again"))?;
            }
        }
    }
    out.flush()?;
    Ok(Outcome::Complete)
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Queue => "queue",
        Source::Outbox => "outbox",
        _ => "another",
    }
}

pub(crate) async fn health(client: &Client, mut out: Out) -> Result<Outcome, Failure> {
    let health = client.health().await?;
    if out.json {
        out.line(health.detail.trim())?;
    } else {
        out.text(if health.ready { "ready" } else { "not ready" })?;
    }
    out.flush()?;
    if health.ready {
        Ok(Outcome::Complete)
    } else {
        Err(Error::new(ErrorKind::Unavailable, "the server is not ready").into())
    }
}
