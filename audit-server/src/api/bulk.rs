//! `POST /logs/bulk`.

use std::sync::Arc;

use audit_core::{Error, Event, EventId, Permission, PreparedEvent, Receipt, TenantId, TenantLog};
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
    /// The queue has those of status 202, which are not in the log yet; what it has no room for is
    /// recorded already, with its receipt. With `handling=lenient`, others have their errors.
    #[oai(status = 202)]
    Accepted(
        JsonBody<schema::BulkResults>,
        /// What of `Prefer` was done.
        #[oai(header = "Preference-Applied")]
        Option<String>,
    ),
    /// Each item has its own result: as `handling=lenient` asks, or because the queue took only some.
    #[oai(status = 207)]
    Each(
        JsonBody<schema::BulkResults>,
        /// What of `Prefer` was done.
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

    fn outcome(&mut self, index: usize, outcome: Result<Outcome, Error>) {
        match outcome {
            Ok(Outcome::Receipt(receipt)) => self.receipt(index, &receipt),
            Ok(Outcome::Queued(id)) => self.accepted(index, id),
            Err(error) => self.error(index, error.at_index(index).into()),
        }
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
type Item = Result<Event, Error>;

#[OpenApi(prefix_path = "/api/v1")]
impl BulkLogs {
    /// Record many events
    ///
    /// Needs `record`. A JSON array, or NDJSON with one event a line; at most 1,000 items and 16 MiB,
    /// sent and after inflation; `Content-Encoding` gzip or zstd. All are stored or none, unless
    /// `Prefer: handling=lenient` asks for each by itself; then each has its own result, and the
    /// answer is 207. A refusal of the whole names every fault of every item.
    ///
    /// With `Prefer: respond-async` a bulk with a bad item is refused whole, too, and nothing is
    /// queued (with `handling=lenient` the others are). The queue then takes the events one by one:
    /// 202 says that it has all of them, 207 that it has some, and each item's status says which; 503
    /// that it is not known to have any. What it has no room for is recorded at once, with status 201
    /// or 200. An item of status 503 is sent again under the `id` of its error. Since a worker appends
    /// each by itself, an event that the log refuses later, for a conflict, is a dead letter and keeps
    /// none of the others out: whoever needs all or none in the log leaves `respond-async` out. After
    /// a 503 for the whole, ids in the body or an `Idempotency-Key` make it harmless to send again.
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
            Ok(Atomic::Recorded(receipts)) => {
                let mut results = Results::new(receipts.len(), None);
                for (index, receipt) in receipts.iter().enumerate() {
                    results.receipt(index, receipt);
                }
                Ok(BulkAnswer::Recorded(results.close()))
            }
            Ok(Atomic::Queued(outcomes)) => {
                let whole = outcomes.iter().all(Result::is_ok);
                let mut results = Results::new(outcomes.len(), items.lines);
                for (index, outcome) in outcomes.into_iter().enumerate() {
                    results.outcome(index, outcome);
                }
                let applied = Preferences {
                    respond_async: true,
                    lenient: false,
                }
                .applied();
                Ok(match whole {
                    true => BulkAnswer::Accepted(results.close(), applied),
                    false => BulkAnswer::Each(results.close(), applied),
                })
            }
            Err(problem) => Err(match items.lines {
                Some(lines) => problem.of_lines(&lines),
                None => problem,
            }
            .into()),
        }
    }
}

/// What became of one event.
enum Outcome {
    Receipt(Receipt),
    Queued(EventId),
}

/// What became of a bulk that is not lenient.
enum Atomic {
    Recorded(Vec<Receipt>),
    /// By the queue, one by one.
    Queued(Vec<Result<Outcome, Error>>),
}

impl BulkLogs {
    /// Refused whole, or recorded whole, or put into the queue.
    async fn atomic(
        &self,
        log: &TenantLog,
        events: Vec<Item>,
        preferences: Preferences,
    ) -> Result<Atomic, Problem> {
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
            && let Some(outcomes) = queue(log, log.prepare_all(read.clone())?).await?
        {
            return Ok(Atomic::Queued(outcomes));
        }
        let receipts = log.record_all(read).await?;
        count(&receipts);
        Ok(Atomic::Recorded(receipts))
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
            .map(|event| event.and_then(|event| log.prepare(event)))
            .collect();
        if preferences.respond_async {
            let sound: Vec<PreparedEvent> = prepared.iter().flatten().cloned().collect();
            if let Some(outcomes) = queue(log, sound).await? {
                let mut outcomes = outcomes.into_iter();
                for (index, item) in prepared.into_iter().enumerate() {
                    match item {
                        Ok(_) => {
                            if let Some(outcome) = outcomes.next() {
                                results.outcome(index, outcome);
                            }
                        }
                        Err(error) => results.outcome(index, Err(error)),
                    }
                }
                return Ok(BulkAnswer::Accepted(results.close(), preferences.applied()));
            }
        }
        let outcomes = log.append_each(prepared).await;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            if let Ok(receipt) = &outcome {
                count(std::slice::from_ref(receipt));
            }
            results.outcome(index, outcome.map(Outcome::Receipt));
        }
        let applied = Preferences {
            respond_async: false,
            lenient: true,
        }
        .applied();
        Ok(BulkAnswer::Each(results.close(), applied))
    }
}

/// Puts each into the queue, with a result for each; what it has no room for is recorded at once. None
/// where it takes none of them: there is no queue, or it has no room for any.
async fn queue(
    log: &TenantLog,
    prepared: Vec<PreparedEvent>,
) -> Result<Option<Vec<Result<Outcome, Error>>>, Error> {
    let Some(queued) = log.enqueue_each(&prepared).await? else {
        return Ok(None);
    };
    let accepted = queued.iter().filter(|outcome| outcome.is_ok()).count();
    metrics::counter!("audit_events_accepted_total").increment(accepted as u64);
    if accepted == 0 && !queued.is_empty() {
        let mut errors = queued.into_iter().filter_map(Result::err);
        return match errors.find(Error::is_retryable) {
            Some(error) => Err(error),
            None => Ok(None),
        };
    }
    let without_room = |outcome: &Result<EventId, Error>| match outcome {
        Ok(_) => false,
        Err(error) => !error.is_retryable(),
    };
    let large = queued.iter().zip(prepared);
    let large = large.filter(|(outcome, _)| without_room(outcome));
    let large = large.map(|(_, event)| Ok(event)).collect();
    let mut recorded = log.append_each(large).await.into_iter();
    let outcomes = queued.into_iter().map(|outcome| {
        if without_room(&outcome)
            && let Some(recorded) = recorded.next()
        {
            let receipt = recorded?;
            count(std::slice::from_ref(&receipt));
            return Ok(Outcome::Receipt(receipt));
        }
        outcome.map(Outcome::Queued)
    });
    Ok(Some(outcomes.collect()))
}

fn count(receipts: &[Receipt]) {
    let new = receipts.iter().filter(|r| !r.duplicate).count();
    metrics::counter!("audit_events_recorded_total").increment(new as u64);
}
