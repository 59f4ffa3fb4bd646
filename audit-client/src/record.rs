//! Recording over HTTP.

use async_trait::async_trait;
use audit_core::{Error, ErrorKind, Event, EventId, Receipt, Recorder, Result};
use reqwest::Method;
use reqwest::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::client::Client;
use crate::problem;
use crate::transport::{Call, Repeat, parse, unexpected};

/// What the server's bulk route takes at once.
const MAX_ITEMS: usize = Client::MAX_BULK_ITEMS;
/// Where lenient recording cuts, below the server's limit on a body.
const CUT_ITEMS: usize = 500;
const CUT_BYTES: usize = 8 * 1024 * 1024;

#[derive(Deserialize)]
struct Single<'a> {
    #[serde(borrow)]
    receipt: &'a RawValue,
}

#[derive(Deserialize)]
struct Bulk<'a> {
    #[serde(borrow)]
    results: Vec<Item<'a>>,
}

#[derive(Deserialize)]
struct Item<'a> {
    index: usize,
    status: u16,
    #[serde(borrow, default)]
    receipt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

impl Client {
    /// The most events that [`record_all`](Recorder::record_all) takes: they are one request, because
    /// only one request is stored whole or not at all.
    pub const MAX_BULK_ITEMS: usize = 1_000;

    /// Gives an event an id, so that it can be sent more than once.
    fn identified(&self, event: Event) -> (EventId, Event) {
        match event.given_id() {
            Some(id) => (id, event),
            None => {
                let id = self.shared.clock.event_id();
                (id, event.id(id))
            }
        }
    }

    /// Records each event by itself: one that is refused leaves the others stored. Any number is
    /// taken; requests are cut at 500 events and 8 MiB. The results are in the order of the events,
    /// and each error names its event's id.
    ///
    /// Items that the server could not take for now are sent again, within the bounds of
    /// [`Retry`](crate::Retry) for each request. After a request that failed as a whole, what follows
    /// is not sent, and has the same error.
    pub async fn record_each(&self, events: Vec<Event>) -> Vec<Result<Receipt>> {
        let mut results: Vec<Option<Result<Receipt>>> = Vec::with_capacity(events.len());
        let mut waiting = Vec::with_capacity(events.len().min(CUT_ITEMS));
        let mut bytes = 0;
        let mut failed = None;
        for (index, event) in events.into_iter().enumerate() {
            let (id, event) = self.identified(event);
            if let Err(error) = event.check() {
                results.push(Some(Err(error.with_event_id(id))));
                continue;
            }
            results.push(None);
            let body = event.to_json();
            if !waiting.is_empty() && (waiting.len() == CUT_ITEMS || bytes + body.len() > CUT_BYTES)
            {
                self.send_each(std::mem::take(&mut waiting), &mut failed, &mut results)
                    .await;
                bytes = 0;
            }
            bytes += body.len() + 1;
            waiting.push(Waiting { index, id, body });
        }
        if !waiting.is_empty() {
            self.send_each(waiting, &mut failed, &mut results).await;
        }
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(unexpected())))
            .collect()
    }

    async fn send_each(
        &self,
        mut waiting: Vec<Waiting>,
        failed: &mut Option<Error>,
        results: &mut [Option<Result<Receipt>>],
    ) {
        let mut pace = self.pace();
        while !waiting.is_empty() {
            let attempt = match failed {
                Some(error) => Err(error.clone()),
                None => self.bulk(&waiting, true).await,
            };
            let items = match attempt {
                Ok(items) => items,
                Err(error) => {
                    for item in waiting {
                        results[item.index] = Some(Err(error.clone().with_event_id(item.id)));
                    }
                    *failed = Some(error);
                    return;
                }
            };
            let mut again = Vec::new();
            let mut reason = None;
            for (item, result) in waiting.into_iter().zip(items) {
                if let Err(error) = &result
                    && error.is_retryable()
                {
                    reason = Some(error.clone());
                    again.push(item);
                    continue;
                }
                let id = item.id;
                results[item.index] = Some(result.map_err(|e| e.with_event_id(id)));
            }
            waiting = again;
            if let Some(reason) = reason
                && let Err(error) = pace.wait(reason).await
            {
                *failed = Some(error);
            }
        }
    }

    async fn bulk(&self, items: &[Waiting], lenient: bool) -> Result<Vec<Result<Receipt>>> {
        let length: usize = items.iter().map(|i| i.body.len() + 1).sum();
        let mut body = String::with_capacity(length + 2);
        for (i, item) in items.iter().enumerate() {
            body.push(if i == 0 { '[' } else { ',' });
            body.push_str(&item.body);
        }
        body.push(']');
        let mut call = Call::new(Method::POST, "api/v1/logs/bulk")
            .repeat(Repeat::Safe)
            .json(body);
        if lenient {
            let prefer = HeaderValue::from_static("handling=lenient");
            call = call.header(HeaderName::from_static("prefer"), prefer);
        }
        let answer = self.answer(&call).await?;
        let bulk: Bulk<'_> = parse(&answer.body)?;
        if bulk.results.len() != items.len() {
            return Err(unexpected());
        }
        bulk.results
            .iter()
            .enumerate()
            .map(|(i, item)| {
                if item.index != i {
                    return Err(unexpected());
                }
                Ok(match (item.receipt, item.error) {
                    (Some(receipt), None) => Receipt::from_json(receipt.get()),
                    (None, Some(error)) => Err(problem::error(item.status, error.get(), None)),
                    _ => return Err(unexpected()),
                })
            })
            .collect()
    }
}

struct Waiting {
    index: usize,
    id: EventId,
    body: String,
}

#[async_trait]
impl Recorder for Client {
    async fn record(&self, event: Event) -> Result<Receipt> {
        let (id, event) = self.identified(event);
        let named = |error: Error| error.with_event_id(id);
        event.check().map_err(named)?;
        let call = Call::new(Method::POST, "api/v1/logs")
            .repeat(Repeat::Safe)
            .json(event.to_json());
        let answer = self.answer(&call).await.map_err(named)?;
        let single: Single<'_> = parse(&answer.body).map_err(named)?;
        Receipt::from_json(single.receipt.get()).map_err(named)
    }

    async fn record_all(&self, events: Vec<Event>) -> Result<Vec<Receipt>> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        if events.len() > MAX_ITEMS {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{} events are too many to be stored whole or not at all: the limit is \
                     {MAX_ITEMS}; record_each takes any number, each by itself",
                    events.len()
                ),
            ));
        }
        let mut faults = Vec::new();
        let mut waiting = Vec::with_capacity(events.len());
        for (index, event) in events.into_iter().enumerate() {
            let (id, event) = self.identified(event);
            match event.check() {
                Ok(()) => waiting.push(Waiting {
                    index,
                    id,
                    body: event.to_json(),
                }),
                Err(error) => faults.extend_from_slice(error.at_index(index).fields()),
            }
        }
        if !faults.is_empty() {
            return Err(Error::invalid(faults));
        }
        self.bulk(&waiting, false).await?.into_iter().collect()
    }
}
