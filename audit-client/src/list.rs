//! Reading single entries and pages of them.

use audit_core::{Entry, EventId, Filter, Order, PageRequest, Result, Sort};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::client::Client;
use crate::transport::{Call, parse, unexpected};

/// Which page of which entries.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListRequest {
    /// Which entries.
    pub filter: Filter,
    /// What the list goes by.
    pub sort: Sort,
    /// Which way.
    pub order: Order,
    /// The most entries of a page, 1 to [`PageRequest::MAX_LIMIT`].
    pub limit: usize,
    /// Where the page begins: [`EntryPage::next_cursor`] of the page before, under the same filter,
    /// sort and order.
    pub cursor: Option<String>,
}

impl ListRequest {
    /// The first page, newest first.
    pub fn new(filter: Filter) -> Self {
        Self {
            filter,
            sort: Sort::Seq,
            order: Order::Descending,
            limit: PageRequest::DEFAULT_LIMIT,
            cursor: None,
        }
    }

    /// Oldest first.
    #[must_use]
    pub fn ascending(mut self) -> Self {
        self.order = Order::Ascending;
        self
    }

    /// Goes by `sort`.
    #[must_use]
    pub fn sort(mut self, sort: Sort) -> Self {
        self.sort = sort;
        self
    }

    /// Pages of `limit` entries, clamped to 1 and [`PageRequest::MAX_LIMIT`].
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit.clamp(1, PageRequest::MAX_LIMIT);
        self
    }

    /// Begins where a page ended.
    #[must_use]
    pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
        self.cursor = Some(cursor.into());
        self
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = filter_query(&self.filter);
        if self.sort == Sort::OccurredAt {
            query.push(("sort", "occurred_at".into()));
        }
        if self.order == Order::Ascending {
            query.push(("order", "asc".into()));
        }
        query.push(("limit", self.limit.to_string()));
        if let Some(cursor) = &self.cursor {
            query.push(("cursor", cursor.clone()));
        }
        query
    }
}

/// One page of entries.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryPage {
    /// The entries, in the order asked for.
    pub items: Vec<Entry>,
    /// Where the next page begins. None at the end of a descending list; an ascending one always has
    /// it, to go on from when the log has grown.
    pub next_cursor: Option<String>,
    /// With full text: the index holds the log up to this position (exclusive).
    pub indexed_through: Option<u64>,
}

#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
    next_cursor: Option<String>,
    #[serde(default)]
    indexed_through: Option<u64>,
}

impl Client {
    /// One entry. The fields of groups that were erased are absent, and named in its `erased`.
    ///
    /// # Errors
    /// [`NotFound`](audit_core::ErrorKind::NotFound), or [`Pruned`](audit_core::ErrorKind::Pruned)
    /// when it was there once.
    pub async fn get(&self, id: EventId) -> Result<Entry> {
        let call = Call::new(Method::GET, format!("api/v1/logs/{id}"));
        Entry::from_json(&self.answer(&call).await?.body)
    }

    /// One page of entries.
    ///
    /// # Errors
    /// A filter or a cursor that the server refuses, by name.
    pub async fn list(&self, request: &ListRequest) -> Result<EntryPage> {
        let call = Call::new(Method::GET, "api/v1/logs").query(request.query());
        let answer = self.answer(&call).await?;
        let listed: Listed<'_> = parse(&answer.body)?;
        let items = listed
            .data
            .iter()
            .map(|raw| Entry::from_json(raw.get()))
            .collect::<Result<_>>();
        Ok(EntryPage {
            items: items.map_err(|e| unexpected().with_source(e))?,
            next_cursor: listed.next_cursor,
            indexed_through: listed.indexed_through,
        })
    }

    /// All entries that the filter shows, page by page; a page is asked for when the one before is
    /// used up. The stream ends after the first error.
    pub fn list_all(&self, request: ListRequest) -> BoxStream<'static, Result<Entry>> {
        let client = self.clone();
        let pages = stream::unfold(Some(request), move |request| {
            let client = client.clone();
            async move {
                let mut request = request?;
                let page = match client.list(&request).await {
                    Ok(page) => page,
                    Err(error) => return Some((vec![Err(error)], None)),
                };
                // An ascending list always has a cursor: it ends with an empty page.
                let next = page
                    .next_cursor
                    .filter(|_| !page.items.is_empty())
                    .map(|cursor| {
                        request.cursor = Some(cursor);
                        request
                    });
                Some((page.items.into_iter().map(Ok).collect::<Vec<_>>(), next))
            }
        });
        pages.flat_map(stream::iter).boxed()
    }
}

/// A filter as the API's query parameters.
pub(crate) fn filter_query(filter: &Filter) -> Vec<(&'static str, String)> {
    let mut query = Vec::new();
    let texts = [
        ("user_id", &filter.user_id),
        ("session_id", &filter.session_id),
        ("action", &filter.action),
        ("resource_type", &filter.resource_type),
        ("resource_id", &filter.resource_id),
        ("related_id", &filter.related_id),
        ("request_id", &filter.request_id),
        ("trace_id", &filter.trace_id),
    ];
    for (name, values) in texts {
        query.extend(values.iter().map(|value| (name, value.clone())));
    }
    query.extend(
        filter
            .action_type
            .iter()
            .map(|v| ("action_type", v.to_string())),
    );
    query.extend(filter.severity.iter().map(|v| ("severity", v.to_string())));
    query.extend(filter.outcome.iter().map(|v| ("outcome", v.to_string())));
    query.extend(
        filter
            .ip_address
            .iter()
            .map(|v| ("ip_address", v.to_string())),
    );
    let times = [
        ("from", filter.occurred.from),
        ("to", filter.occurred.to),
        ("created_from", filter.created.from),
        ("created_to", filter.created.to),
    ];
    query.extend(
        times
            .into_iter()
            .filter_map(|(name, at)| Some((name, at?.to_string()))),
    );
    let positions = [("from_seq", filter.from_seq), ("to_seq", filter.to_seq)];
    query.extend(
        positions
            .into_iter()
            .filter_map(|(name, seq)| Some((name, seq?.to_string()))),
    );
    if let Some(q) = &filter.q {
        query.push(("q", q.as_str().to_owned()));
    }
    query
}
