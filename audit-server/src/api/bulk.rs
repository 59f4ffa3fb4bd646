//! `POST /logs/bulk`.

use std::sync::Arc;

use audit_core::{Event, EventId, Permission, Receipt, TenantId, TenantLog};
use poem::Request;
use poem_openapi::{ApiResponse, OpenApi};

use crate::api::logs::location;
use crate::api::preferences::{Preferences, idempotency_key};
use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::auth::Caller;
use crate::body::Bulk;
use crate::problem::{Problem, Refused, Writing};

/// Recording many events at once.
pub(crate) struct BulkLogs(pub(crate) Arc<App>);

#[derive(ApiResponse)]
pub(crate) enum BulkAnswer {
    /// All are recorded and durable.
    #[oai(status = 201)]
    Recorded(JsonBody<schema::BulkResults>),
    /// The queue has those without an error; they are not in the log yet.
    #[oai(status = 202)]
    Accepted(
        JsonBody<schema::BulkResults>,
        /// What of `Prefer` was done.
        #[oai(header = "Preference-Applied")]
        Option<String>,
    ),
    /// Each item has its own result.
    #[oai(status = 207)]
    Each(
        JsonBody<schema::BulkResults>,
        /// `handling=lenient`.
        #[oai(header = "Preference-Applied")]
        Option<String>,
    ),
}

/// Writes the results of a bulk, one by one.
struct Results {
    body: String,
    lines: Option<Vec<usize>>,
}

impl Results {
    fn new(items: usize, lines: Option<Vec<usize>>) -> Self {
        let mut body = String::with_capacity(items * 400 + 16);
        body.push_str("{\"results\":[");
        Self { body, lines }
    }

    fn open(&mut self, index: usize, status: u16) {
        if index > 0 {
            self.body.push(',');
        }
        put!(self.body, "{{\"index\":{index},\"status\":{status}");
    }

    fn receipt(&mut self, index: usize, receipt: &Receipt) {
        self.open(index, if receipt.duplicate { 200 } else { 201 });
        self.body.push_str(",\"receipt\":{");
        receipt.write_members(&mut self.body);
        self.body.push_str("}}");
    }

    fn accepted(&mut self, index: usize, id: EventId) {
        self.open(index, 202);
        put!(
            self.body,
            ",\"id\":\"{id}\",\"status_url\":\"{}\"}}",
            location(id)
        );
    }

    fn error(&mut self, index: usize, problem: Problem) {
        let problem = match &self.lines {
            Some(lines) => problem.of_lines(lines),
            None => problem,
        };
        self.open(index, problem.status());
        self.body.push_str(",\"error\":");
        problem.write_json(&mut self.body);
        self.body.push('}');
    }

    fn close(mut self) -> JsonBody<schema::BulkResults> {
        self.body.push_str("]}");
        JsonBody::new(self.body)
    }
}

/// One item, read or refused.
type Item = Result<Event, audit_core::Error>;

#[OpenApi(prefix_path = "/api/v1")]
impl BulkLogs {
    /// Record many events
    ///
    /// Needs `record`. A JSON array, or NDJSON with one event a line; at most 1,000 items and 16 MiB,
    /// sent and after inflation; `Content-Encoding` gzip or zstd. All are stored or none, unless
    /// `Prefer: handling=lenient` asks for each by itself; then each has its own result, and the
    /// answer is 207. A refusal of the whole names every fault of every item.
    #[oai(
        path = "/logs/bulk",
        method = "post",
        operation_id = "record_bulk",
        tag = "Tag::Logs",
        request_header(
            name = "Prefer",
            ty = "Option<String>",
            description = "`handling=lenient`: each item by itself; `respond-async`: an answer as soon as the queue has them."
        ),
        request_header(
            name = "Idempotency-Key",
            ty = "Option<String>",
            description = "Makes the id where the body has none; at most 255 characters."
        )
    )]
    async fn record_bulk(
        &self,
        request: &Request,
        caller: Caller,
        body: Bulk<schema::Event>,
    ) -> Result<BulkAnswer, Refused<Writing>> {
        let items = body.items()?;
        let preferences = Preferences::of(request);
        let key = idempotency_key(request)?;
        let mut events: Vec<Item> = items
            .texts
            .iter()
            .map(|text| Event::from_json(text))
            .collect();
        let readable = events.iter().flatten();
        let mut named: Vec<TenantId> = readable
            .clone()
            .filter_map(Event::given_tenant_id)
            .collect();
        // An item must not take others, which name no tenant, to its own.
        if caller.principal.across_tenants && named.len() < readable.count() {
            named.clear();
        }
        let log = self
            .0
            .gate
            .enter(&caller, Permission::Record, &named)
            .await?;
        if let Some(key) = key {
            let secret = log.cursor_secret().await?;
            events = events
                .into_iter()
                .enumerate()
                .map(|(index, event)| {
                    event.map(|event| match event.given_id() {
                        Some(_) => event,
                        None => event.id(secret.idempotent_id(key, index as u64)),
                    })
                })
                .collect();
        }
        if preferences.lenient {
            let results = Results::new(events.len(), items.lines);
            return Ok(self.each(&log, events, preferences, results).await?);
        }
        match self.atomic(&log, events, preferences).await {
            Ok((outcomes, queued)) => {
                let mut results = Results::new(outcomes.len(), None);
                for (index, outcome) in outcomes.iter().enumerate() {
                    match outcome {
                        Outcome::Receipt(receipt) => results.receipt(index, receipt),
                        Outcome::Queued(id) => results.accepted(index, *id),
                    }
                }
                if queued {
                    let applied = Preferences {
                        respond_async: true,
                        lenient: false,
                    }
                    .applied();
                    return Ok(BulkAnswer::Accepted(results.close(), applied));
                }
                Ok(BulkAnswer::Recorded(results.close()))
            }
            Err(problem) => Err(match items.lines {
                Some(lines) => problem.of_lines(&lines),
                None => problem,
            }
            .into()),
        }
    }
}

enum Outcome {
    Receipt(Receipt),
    Queued(EventId),
}

impl BulkLogs {
    /// All or none. The flag says whether the queue took them.
    async fn atomic(
        &self,
        log: &TenantLog,
        events: Vec<Item>,
        preferences: Preferences,
    ) -> Result<(Vec<Outcome>, bool), Problem> {
        let mut read = Vec::with_capacity(events.len());
        let mut refusal: Option<Problem> = None;
        let mut refuse = |problem: Problem| match &mut refusal {
            None => refusal = Some(problem),
            Some(first) => first.absorb(problem),
        };
        for (index, event) in events.into_iter().enumerate() {
            match event {
                Ok(event) => read.push(event),
                Err(error) => refuse(error.at_index(index).into()),
            }
        }
        if let Some(problem) = refusal {
            return Err(problem);
        }
        if preferences.respond_async
            && let Some(ids) = log.enqueue(read.clone()).await?
        {
            metrics::counter!("audit_events_accepted_total").increment(ids.len() as u64);
            return Ok((ids.into_iter().map(Outcome::Queued).collect(), true));
        }
        let receipts = log.record_all(read).await?;
        count(&receipts);
        Ok((receipts.into_iter().map(Outcome::Receipt).collect(), false))
    }

    /// Each by itself.
    async fn each(
        &self,
        log: &TenantLog,
        events: Vec<Item>,
        preferences: Preferences,
        mut results: Results,
    ) -> Result<BulkAnswer, Problem> {
        let prepared: Vec<_> = events
            .into_iter()
            .map(|event| event.and_then(|event| Ok((log.prepare(event.clone())?, event))))
            .collect();
        if preferences.respond_async {
            let sound: Vec<Event> = prepared
                .iter()
                .flatten()
                .map(|(ready, event)| event.clone().id(ready.id()))
                .collect();
            if let Some(ids) = log.enqueue(sound).await? {
                metrics::counter!("audit_events_accepted_total").increment(ids.len() as u64);
                let mut ids = ids.into_iter();
                for (index, item) in prepared.into_iter().enumerate() {
                    match item {
                        Ok((ready, _)) => {
                            results.accepted(index, ids.next().unwrap_or_else(|| ready.id()));
                        }
                        Err(error) => results.error(index, error.at_index(index).into()),
                    }
                }
                return Ok(BulkAnswer::Accepted(results.close(), preferences.applied()));
            }
        }
        let ready = prepared
            .into_iter()
            .map(|item| item.map(|(ready, _)| ready))
            .collect();
        let outcomes = log.append_each(ready).await;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(receipt) => {
                    count(std::slice::from_ref(&receipt));
                    results.receipt(index, &receipt);
                }
                Err(error) => results.error(index, error.at_index(index).into()),
            }
        }
        let applied = Preferences {
            respond_async: false,
            lenient: true,
        }
        .applied();
        Ok(BulkAnswer::Each(results.close(), applied))
    }
}

fn count(receipts: &[Receipt]) {
    let new = receipts.iter().filter(|r| !r.duplicate).count();
    metrics::counter!("audit_events_recorded_total").increment(new as u64);
}
