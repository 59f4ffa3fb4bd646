//! `audit record`.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use audit_client::Client;
use audit_core::{Event, Json, Recorder as _, RelatedResource};

use crate::args::{FieldArgs, RecordArgs};
use crate::failure::{Failure, Outcome};
use crate::present::Out;

pub(crate) async fn run(
    client: &Client,
    mut out: Out,
    args: RecordArgs,
) -> Result<Outcome, Failure> {
    let event = match (args.action_type, args.resource_type, args.resource_id) {
        (Some(action_type), Some(kind), Some(id)) => {
            with_fields(Event::new(action_type, kind, id), args.fields)?
        }
        _ => Event::from_json(&read(args.file.as_deref())?)?,
    };
    let receipt = client.record(event).await?;
    if out.json {
        out.line(&receipt.to_json())?;
    } else {
        let before = if receipt.duplicate {
            ", recorded before"
        } else {
            ""
        };
        out.text(&format!(
            "{} is entry {}, accepted at {}{before}",
            receipt.id, receipt.seq, receipt.created_at
        ))?;
    }
    out.flush()?;
    Ok(Outcome::Complete)
}

fn read(file: Option<&Path>) -> Result<String, Failure> {
    let mut text = String::new();
    match file {
        Some(path) if path != Path::new("-") => {
            text = std::fs::read_to_string(path)
                .map_err(|e| Failure::Local(format!("{} can't be read", path.display()), e))?;
        }
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::Usage(
                "what was done to which resource? As in: audit record UPDATE invoice inv-1 \
                 --user-id ann; or give the event as JSON with --file or on standard input"
                    .into(),
            ));
        }
        _ => {
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Failure::Local("standard input can't be read".into(), e))?;
        }
    }
    Ok(text)
}

fn with_fields(mut event: Event, fields: FieldArgs) -> Result<Event, Failure> {
    macro_rules! set {
        ($($field:ident => $method:ident),* $(,)?) => {
            $(if let Some(value) = fields.$field {
                event = event.$method(value);
            })*
        };
    }
    set! {
        id => id, occurred_at => occurred_at, action => action, outcome => outcome,
        severity => severity, user_id => user, actor_type => actor_type, actor_name => actor_name,
        on_behalf_of => on_behalf_of, resource_name => resource_name, session_id => session_id,
        request_id => request_id, trace_id => trace_id, user_agent => user_agent,
        ip_address => ip_address, reason => reason,
    }
    for (kind, id) in fields.related {
        event = event.related(RelatedResource::new(kind, id));
    }
    let json = |name: &str, text: Option<String>| {
        text.map(|t| Json::parse(&t).map_err(|e| Failure::Usage(format!("{name}: {e}"))))
            .transpose()
    };
    if let Some(before) = json("before_state", fields.before_state)? {
        event = event.before(&before);
    }
    if let Some(after) = json("after_state", fields.after_state)? {
        event = event.after(&after);
    }
    if let Some(metadata) = json("metadata", fields.metadata)? {
        event = event.metadata(&metadata);
    }
    Ok(event)
}
