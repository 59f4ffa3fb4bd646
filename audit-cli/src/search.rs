//! `audit get` and `audit search`.

use audit_client::{Client, ListRequest};
use audit_core::{Entry, Group, PageRequest, Query, Sort};
use futures_util::StreamExt as _;

use crate::args::{GetArgs, SearchArgs};
use crate::failure::{Failure, Outcome};
use crate::present::{Out, actor, cut, resource, second};

/// Rows that are laid out together.
const ROWS: usize = 500;
const HEAD: [&str; 7] = [
    "SEQ",
    "OCCURRED AT",
    "ACTOR",
    "ACTION",
    "RESOURCE",
    "OUTCOME",
    "ID",
];

pub(crate) async fn get(client: &Client, mut out: Out, args: GetArgs) -> Result<Outcome, Failure> {
    let entry = client.get(args.id).await?;
    if out.json {
        out.line(&entry.to_json())?;
    } else {
        for (name, value) in shown(&entry) {
            out.text(&format!("{name:<18} {value}"))?;
        }
    }
    out.flush()?;
    Ok(Outcome::Complete)
}

pub(crate) async fn run(
    client: &Client,
    mut out: Out,
    args: SearchArgs,
) -> Result<Outcome, Failure> {
    let mut filter = args.filter.filter().map_err(Failure::Usage)?;
    if !args.words.is_empty() {
        let q = Query::parse(&args.words.join(" ")).map_err(|e| Failure::Usage(e.to_string()))?;
        filter.q = Some(q);
    }
    let most = if args.all { usize::MAX } else { args.limit };
    // One more than is shown tells whether there are more.
    let page = most.saturating_add(1).min(PageRequest::MAX_LIMIT);
    let mut request = ListRequest::new(filter).limit(page);
    if args.oldest_first {
        request = request.ascending();
    }
    if args.by_time {
        request = request.sort(Sort::OccurredAt);
    }
    let mut entries = client.list_all(request);
    let mut rows = Vec::new();
    let mut shown = 0;
    let mut more = false;
    let mut head: &[&str] = &HEAD;
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        if shown == most {
            more = true;
            break;
        }
        shown += 1;
        if out.json {
            out.line(&entry.to_json())?;
            continue;
        }
        rows.push(row(&entry));
        if rows.len() == ROWS {
            out.table(std::mem::take(&mut head), std::mem::take(&mut rows))?;
        }
    }
    out.table(head, rows)?;
    out.flush()?;
    if shown == 0 {
        out.hint("nothing matches");
    } else if more {
        out.hint(&format!("the first {shown}; --limit or --all shows more"));
    }
    Ok(Outcome::Complete)
}

fn row(entry: &Entry) -> Vec<String> {
    vec![
        entry.seq.to_string(),
        second(entry.occurred_at),
        cut(actor(entry), 40),
        cut(&entry.fields.action, 40),
        cut(&resource(entry), 60),
        entry.fields.outcome.to_string(),
        entry.id.to_string(),
    ]
}

/// What of an entry is there, in the order of its fields.
fn shown(entry: &Entry) -> Vec<(&'static str, String)> {
    let fields = &entry.fields;
    let mut shown = vec![
        ("id", entry.id.to_string()),
        ("tenant_id", entry.tenant_id.to_string()),
        ("seq", entry.seq.to_string()),
        ("created_at", entry.created_at.to_string()),
        ("occurred_at", entry.occurred_at.to_string()),
    ];
    if let Some(ctl) = &entry.ctl {
        shown.push(("kind", entry.kind.as_str().to_owned()));
        shown.push(("ctl", ctl.clone()));
    }
    shown.extend([
        ("action_type", fields.action_type.to_string()),
        ("action", fields.action.clone()),
        ("outcome", fields.outcome.to_string()),
        ("severity", fields.severity.to_string()),
    ]);
    let mut add = |name, value: Option<String>| shown.extend(value.map(|value| (name, value)));
    add("user_id", fields.user_id.clone());
    add("actor_type", fields.actor_type.map(|t| t.to_string()));
    add("actor_name", fields.actor_name.clone());
    add("on_behalf_of", fields.on_behalf_of.clone());
    add("resource_type", fields.resource_type.clone());
    add("resource_id", fields.resource_id.clone());
    add("resource_name", fields.resource_name.clone());
    for related in &fields.related_resources {
        let name = related
            .name
            .as_ref()
            .map(|name| format!(" ({name})"))
            .unwrap_or_default();
        add(
            "related_resources",
            Some(format!("{}/{}{name}", related.kind, related.id)),
        );
    }
    add("session_id", fields.session_id.clone());
    add("request_id", fields.request_id.clone());
    add("trace_id", fields.trace_id.clone());
    add("user_agent", fields.user_agent.clone());
    add("ip_address", fields.ip_address.map(|ip| ip.to_string()));
    add("reason", fields.reason.clone());
    add(
        "before_state",
        fields.before_state.as_ref().map(ToString::to_string),
    );
    add(
        "after_state",
        fields.after_state.as_ref().map(ToString::to_string),
    );
    add(
        "metadata",
        fields.metadata.as_ref().map(ToString::to_string),
    );
    add("leaf_hash", Some(entry.leaf_hash.to_base64()));
    if !entry.erased.is_empty() {
        let names: Vec<&str> = entry
            .erased
            .iter()
            .map(|group: &Group| group.as_str())
            .collect();
        add("erased", Some(names.join(" ")));
    }
    shown
}
