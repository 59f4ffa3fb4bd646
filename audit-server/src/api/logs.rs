//! `POST /logs`, `GET /logs`, `GET /logs/{id}`.

use std::sync::Arc;

use audit_core::page::{mint_cursor, read_cursor};
use audit_core::{Event, EventId, Permission, PreparedEvent, TenantLog};
use poem::Request;
use poem_openapi::param::Path;
use poem_openapi::{ApiResponse, OpenApi};

use crate::api::PathId;
use crate::api::filter::Listing;
use crate::api::preferences::{Preferences, idempotency_key};
use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::auth::Caller;
use crate::body::JsonText;
use crate::problem::{Problem, Reading, Refused, Writing};
use crate::query::{Pairs, Params};

/// Recording and reading single events.
pub(crate) struct Logs(pub(crate) Arc<App>);

#[derive(ApiResponse)]
pub(crate) enum RecordAnswer {
    /// It is recorded and durable.
    #[oai(status = 201)]
    Created(
        JsonBody<schema::Recorded>,
        /// Where it can be read.
        #[oai(header = "Location")]
        String,
    ),
    /// The same event was recorded before.
    #[oai(status = 200)]
    Repeated(JsonBody<schema::Repeated>),
    /// The queue has it; it is not in the log yet.
    #[oai(status = 202)]
    Accepted(
        JsonBody<schema::Accepted>,
        /// Where it can be read later.
        #[oai(header = "Location")]
        String,
        /// `respond-async`.
        #[oai(header = "Preference-Applied")]
        String,
    ),
}

#[derive(ApiResponse)]
pub(crate) enum ListAnswer {
    /// One page.
    #[oai(status = 200)]
    Page(
        JsonBody<schema::EntryPage>,
        /// The next page, `rel="next"` (RFC 8288).
        #[oai(header = "Link")]
        Option<String>,
    ),
}

#[derive(ApiResponse)]
pub(crate) enum EntryAnswer {
    /// The entry.
    #[oai(status = 200)]
    Entry(JsonBody<schema::Entry>),
}

/// Where an entry can be read.
pub(crate) fn location(id: EventId) -> String {
    format!("/api/v1/logs/{id}")
}

#[OpenApi(prefix_path = "/api/v1")]
impl Logs {
    /// Record an event
    ///
    /// Needs `record`. A body has at most 1 MiB, sent and after inflation, here and wherever nothing
    /// else is said. The answer comes after the event is durable. The `id` is the idempotency key:
    /// the same event again is answered with the first receipt. With `Prefer: respond-async` the
    /// answer comes as soon as the queue has the event; one that the queue has no room for is recorded
    /// as without it.
    #[oai(
        path = "/logs",
        method = "post",
        operation_id = "record",
        tag = "Tag::Logs",
        request_header(
            name = "Prefer",
            ty = "Option<String>",
            description = "`respond-async`: an answer as soon as the queue has it."
        ),
        request_header(
            name = "Idempotency-Key",
            ty = "Option<String>",
            description = "Makes the id where the body has none; at most 255 characters."
        )
    )]
    async fn record(
        &self,
        request: &Request,
        caller: Caller,
        body: JsonText<schema::Event>,
    ) -> Result<RecordAnswer, Refused<Writing>> {
        let mut event = Event::from_json(&body.text)?;
        let named = event.given_tenant_id();
        let log = self
            .0
            .gate
            .enter(&caller, Permission::Record, named.as_slice())
            .await?;
        if let (None, Some(key)) = (event.given_id(), idempotency_key(request)?) {
            event = event.id(log.cursor_secret().await?.idempotent_id(key, 0));
        }
        // Made here where the client made none, so that every failure can say by which id to retry.
        let id = event
            .given_id()
            .unwrap_or_else(|| self.0.log().clock().event_id());
        event = event.id(id);
        let named = |error: audit_core::Error| match error.event_id() {
            None => error.with_event_id(id),
            Some(_) => error,
        };
        let prepared = log.prepare(event)?;
        if Preferences::of(request).respond_async
            && is_queued(&log, &prepared).await.map_err(named)?
        {
            let url = location(id);
            let body = format!("{{\"id\":\"{id}\",\"status_url\":\"{url}\"}}");
            metrics::counter!("audit_events_accepted_total").increment(1);
            return Ok(RecordAnswer::Accepted(
                JsonBody::new(body),
                url,
                "respond-async".into(),
            ));
        }
        let outcome = log.append(vec![prepared]).await.map_err(named)?.pop();
        let Some((receipt, entry)) = outcome else {
            return Err(
                audit_core::Error::new(audit_core::ErrorKind::Internal, "no receipt").into(),
            );
        };
        let mut body = String::with_capacity(body.text.len() + 1024);
        body.push('{');
        match &entry {
            Some(entry) => entry.write_members(&mut body),
            None => receipt.write_members(&mut body),
        }
        body.push_str(",\"receipt\":{");
        receipt.write_members(&mut body);
        body.push_str("}}");
        Ok(match entry {
            Some(_) => {
                metrics::counter!("audit_events_recorded_total").increment(1);
                RecordAnswer::Created(JsonBody::new(body), location(receipt.id))
            }
            None => RecordAnswer::Repeated(JsonBody::new(body)),
        })
    }

    /// List entries
    ///
    /// Needs `read`. Newest first; all conditions must hold, a repeated parameter means any of its
    /// values. What was just recorded is found at once; only full text may lag, and
    /// `indexed_through` says how far it is.
    #[oai(
        path = "/logs",
        method = "get",
        operation_id = "list",
        tag = "Tag::Logs"
    )]
    async fn list(
        &self,
        request: &Request,
        caller: Caller,
        listing: Params<Listing>,
    ) -> Result<ListAnswer, Refused<Reading>> {
        let Listing {
            filter,
            mut page,
            cursor,
        } = listing.0;
        let log = self.0.gate.enter(&caller, Permission::Read, &[]).await?;
        let secret = log.cursor_secret().await?;
        if let Some(cursor) = cursor {
            let position = read_cursor(&secret, &filter, page.sort, page.order, &cursor)
                .map_err(|e| Problem::from(e).of_parameters())?;
            page = page.after(position);
        }
        let found = log
            .list(&filter, &page)
            .await
            .map_err(|e| Problem::from(e).of_parameters())?;
        let mut body = String::with_capacity(found.items.len() * 1024 + 128);
        body.push_str("{\"data\":[");
        for (i, entry) in found.items.iter().enumerate() {
            if i > 0 {
                body.push(',');
            }
            entry.write_json(&mut body);
        }
        body.push_str("],\"next_cursor\":");
        let next = found
            .next
            .map(|next| mint_cursor(&secret, &filter, page.sort, page.order, &next));
        match &next {
            // A cursor is base64url.
            Some(cursor) => {
                body.push('"');
                body.push_str(cursor);
                body.push('"');
            }
            None => body.push_str("null"),
        }
        if let Some(seq) = found.indexed_through {
            put!(body, ",\"indexed_through\":{seq}");
        }
        body.push('}');
        let link = match next {
            None => None,
            Some(cursor) => Some(next_link(&Pairs::of(request)?, &cursor)),
        };
        Ok(ListAnswer::Page(JsonBody::new(body), link))
    }

    /// Read one entry
    ///
    /// Needs `read`. Groups that were erased are absent and named in `erased`.
    #[oai(
        path = "/logs/:id",
        method = "get",
        operation_id = "get",
        tag = "Tag::Logs"
    )]
    async fn get(
        &self,
        caller: Caller,
        /// The entry's id.
        id: Path<PathId>,
    ) -> Result<EntryAnswer, Refused<Reading>> {
        let id = id.0.parse()?;
        let log = self.0.gate.enter(&caller, Permission::Read, &[]).await?;
        let entry = log.get(id).await?;
        Ok(EntryAnswer::Entry(JsonBody::new(entry.to_json())))
    }
}

/// Whether the queue has it now. False where there is none, and where it has no room for the event.
async fn is_queued(log: &TenantLog, event: &PreparedEvent) -> Result<bool, audit_core::Error> {
    let queued = log.enqueue_each(std::slice::from_ref(event)).await?;
    match queued.and_then(|mut outcomes| outcomes.pop()) {
        Some(Ok(_)) => Ok(true),
        Some(Err(error)) if error.is_retryable() => Err(error),
        Some(Err(_)) | None => Ok(false),
    }
}

/// The link to the next page: the same parameters with another cursor.
fn next_link(pairs: &Pairs, cursor: &str) -> String {
    let mut link = String::from("</api/v1/logs?");
    for (name, value) in pairs.without("cursor") {
        encode(&mut link, name);
        link.push('=');
        encode(&mut link, value);
        link.push('&');
    }
    link.push_str("cursor=");
    link.push_str(cursor);
    link.push_str(">; rel=\"next\"");
    link
}

/// Percent-encodes what is not unreserved (RFC 3986 §2.3).
fn encode(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            put!(out, "%{byte:02X}");
        }
    }
}
