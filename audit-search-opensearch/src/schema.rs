//! What an index is made of: settings and mapping.

use audit_core::filter::FilterField;
use serde_json::{Map, Value, json};

use crate::options::OpenSearchOptions;

/// The form of the documents. Another form is another number, and so another index.
pub(crate) const FORM: &str = "v1";

/// Every field that is compared for equality.
const FILTERED: [FilterField; 12] = [
    FilterField::UserId,
    FilterField::SessionId,
    FilterField::ActionType,
    FilterField::Action,
    FilterField::ResourceType,
    FilterField::ResourceId,
    FilterField::RelatedId,
    FilterField::Severity,
    FilterField::Outcome,
    FilterField::IpAddress,
    FilterField::RequestId,
    FilterField::TraceId,
];

/// The name of a field in documents: the event's.
pub(crate) fn name(field: FilterField) -> &'static str {
    match field {
        FilterField::UserId => "user_id",
        FilterField::SessionId => "session_id",
        FilterField::ActionType => "action_type",
        FilterField::Action => "action",
        FilterField::ResourceType => "resource_type",
        FilterField::ResourceId => "resource_id",
        FilterField::RelatedId => "related_id",
        FilterField::Severity => "severity",
        FilterField::Outcome => "outcome",
        FilterField::IpAddress => "ip_address",
        FilterField::RequestId => "request_id",
        FilterField::TraceId => "trace_id",
    }
}

/// The index template of all indexes with this prefix.
pub(crate) fn template(options: &OpenSearchOptions) -> Value {
    let mut settings = analysis();
    if let Some(shards) = options.shards {
        settings["number_of_shards"] = shards.into();
    }
    if let Some(replicas) = options.replicas {
        settings["number_of_replicas"] = replicas.into();
    }
    json!({
        "index_patterns": [format!("{}-{FORM}-*", options.prefix)],
        "priority": 200,
        "template": { "settings": settings, "mappings": mappings() },
    })
}

/// Words come ready-made, joined by spaces. The longest that Lucene takes has 32,766 bytes; a word
/// has at most 128 characters before it is folded, which makes at most 3 of each.
pub(crate) fn analysis() -> Value {
    json!({ "analysis": {
        "tokenizer": { "words": { "type": "whitespace", "max_token_length": 4096 } },
        "analyzer": { "words": { "type": "custom", "tokenizer": "words" } },
    }})
}

pub(crate) fn mappings() -> Value {
    let keyword = json!({ "type": "keyword", "doc_values": false });
    let mut properties: Map<String, Value> = FILTERED
        .iter()
        .map(|field| (name(*field).to_owned(), keyword.clone()))
        .collect();
    let more = json!({
        "tenant": keyword,
        "seq": { "type": "long" },
        "created_at": { "type": "long", "doc_values": false },
        "occurred_at": { "type": "long", "doc_values": false },
        // A list of texts; no phrase reaches from one into the next.
        "text": {
            "type": "text",
            "analyzer": "words",
            "norms": false,
            "position_increment_gap": 1,
        },
        // Set where the cluster refused the words and values: found by every search, for the reader
        // of the log to judge.
        "unindexed": { "type": "boolean", "doc_values": false },
        // How far a tenant's log is indexed.
        "through": { "type": "long", "index": false, "doc_values": false },
    });
    if let Value::Object(more) = more {
        properties.extend(more);
    }
    json!({
        "dynamic": "strict",
        "_source": { "includes": ["through"] },
        "properties": properties,
    })
}
