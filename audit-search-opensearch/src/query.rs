//! What is asked of an index.

use audit_core::{Filter, Order, SearchRequest, TenantId, TimeRange};
use serde_json::{Value, json};

use crate::schema;

/// The most hits that one request may give: OpenSearch's `index.max_result_window`, less the one
/// that tells whether there are more.
pub(crate) const MAX_HITS: usize = 9_999;

/// The hits of a tenant below `through`, which is what the index vouches for: an entry above it may
/// be there before its neighbours are, and a reader that goes on behind it would miss these.
pub(crate) fn search(tenant: TenantId, request: &SearchRequest, through: u64) -> Value {
    let filter = &request.filter;
    let mut content = Vec::new();
    for condition in filter.conditions() {
        content.push(json!({ "terms": { schema::name(condition.field): condition.values } }));
    }
    for phrase in filter.q.iter().flat_map(|q| q.phrases()) {
        content.push(match phrase.as_slice() {
            [word] => json!({ "term": { "text": word } }),
            words => json!({ "match_phrase": { "text": words.join(" ") } }),
        });
    }
    times(&mut content, "created_at", filter.created);
    times(&mut content, "occurred_at", filter.occurred);
    let mut required = vec![positions(tenant, filter, through)];
    if !content.is_empty() {
        required.push(json!({ "bool": {
            "should": [
                { "bool": { "filter": content } },
                { "term": { "unindexed": true } },
            ],
        }}));
    }
    let mut body = json!({
        "size": request.limit.min(MAX_HITS) + 1,
        "query": { "bool": { "filter": required } },
        "sort": [{ "seq": match request.order {
            Order::Ascending => "asc",
            Order::Descending => "desc",
        }}],
        "track_total_hits": false,
        "_source": false,
        "stored_fields": "_none_",
    });
    if let Some(after) = request.after {
        // Numbers beyond a `long` lie behind every position, or before none.
        body["search_after"] = json!([after.min(i64::MAX as u64)]);
    }
    body
}

/// The names and versions of the documents of a tenant at these positions.
pub(crate) fn documents(tenant: TenantId, seqs: &[u64]) -> Value {
    json!({
        "size": MAX_HITS,
        "query": { "bool": { "filter": [
            { "term": { "tenant": tenant.to_string() } },
            { "terms": { "seq": seqs } },
        ]}},
        "version": true,
        "track_total_hits": false,
        "_source": false,
    })
}

/// The documents of a tenant in the filter's range of positions, and below one.
pub(crate) fn positions(tenant: TenantId, filter: &Filter, below: u64) -> Value {
    let from = filter.from_seq.unwrap_or(0).min(i64::MAX as u64);
    let to = filter
        .to_seq
        .unwrap_or(u64::MAX)
        .min(below)
        .min(i64::MAX as u64);
    json!({ "bool": { "filter": [
        { "term": { "tenant": tenant.to_string() } },
        { "range": { "seq": { "gte": from, "lt": to } } },
    ]}})
}

/// All documents of a tenant, and the one that says how far it is.
pub(crate) fn all_of(tenant: TenantId) -> Value {
    json!({ "term": { "tenant": tenant.to_string() } })
}

fn times(content: &mut Vec<Value>, field: &str, range: TimeRange) {
    if range.is_unbounded() {
        return;
    }
    let mut bounds = serde_json::Map::new();
    if let Some(from) = range.from {
        bounds.insert("gte".into(), from.as_micros().into());
    }
    if let Some(to) = range.to {
        bounds.insert("lt".into(), to.as_micros().into());
    }
    content.push(json!({ "range": { field: bounds } }));
}
