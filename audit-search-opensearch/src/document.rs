//! What is sent of an entry.

use audit_core::Entry;
use audit_core::TenantId;
use audit_core::filter::each_value;
use audit_core::text::{Token, each_word};
use audit_core::tlog::json::write_string;

use crate::schema;

/// The name of an entry's document.
pub(crate) fn id(tenant: TenantId, seq: u64) -> String {
    format!("{tenant}-{seq}")
}

/// Grows with each erasure, since what was erased never comes back: what was read before one can't
/// replace what was read after it.
pub(crate) fn version(entry: &Entry) -> u64 {
    1 + entry.erased.len() as u64
}

/// Writes an entry's document: its words, text by text, and the values that a filter asks for.
pub(crate) fn write(out: &mut String, entry: &Entry) {
    write_place(out, entry);
    out.push_str(",\"created_at\":");
    out.push_str(&entry.created_at.as_micros().to_string());
    out.push_str(",\"occurred_at\":");
    out.push_str(&entry.occurred_at.as_micros().to_string());
    let mut last = None;
    each_value(&entry.fields, |field, value| {
        // The values of one field come one behind the other.
        if last == Some(field) {
            out.push(',');
        } else {
            out.push_str(if last.is_some() { "],\"" } else { ",\"" });
            out.push_str(schema::name(field));
            out.push_str("\":[");
            last = Some(field);
        }
        write_string(out, value);
    });
    out.push_str(if last.is_some() {
        "],\"text\":["
    } else {
        ",\"text\":["
    });
    // Words are letters and digits: nothing in them is escaped.
    let (mut first, mut within) = (true, false);
    each_word(&entry.fields, |token| match token {
        Token::Word(word) => {
            out.push_str(match (within, first) {
                (true, _) => " ",
                (false, true) => "\"",
                (false, false) => ",\"",
            });
            (first, within) = (false, true);
            out.push_str(word);
        }
        Token::Break => {
            if within {
                out.push('"');
                within = false;
            }
        }
    });
    if within {
        out.push('"');
    }
    out.push_str("]}\n");
}

/// Writes the document of an entry whose words or values the cluster refuses.
pub(crate) fn write_unindexed(out: &mut String, entry: &Entry) {
    write_place(out, entry);
    out.push_str(",\"unindexed\":true}\n");
}

fn write_place(out: &mut String, entry: &Entry) {
    out.push_str("{\"tenant\":\"");
    entry.tenant_id.write(out);
    out.push_str("\",\"seq\":");
    out.push_str(&entry.seq.to_string());
}

#[cfg(test)]
mod tests {
    use audit_core::{Event, EventId, PreparedEvent, RelatedResource, SystemClock, Timestamp};
    use serde_json::json;

    use super::*;

    fn entry(event: Event) -> Entry {
        let tenant = TenantId::new(uuid::Uuid::from_u128(7));
        let event = PreparedEvent::new(tenant, event, &SystemClock, &[]).unwrap();
        let at = Timestamp::parse("2026-11-24T03:00:00Z").unwrap();
        let id = EventId::new(uuid::Uuid::from_u128(1));
        Entry::new(tenant, id, 5, at, event.fields().clone())
    }

    #[test]
    fn a_document_has_words_by_text_and_values_by_field() {
        let event = Event::view("doc", "D-1 \"x\"")
            .reason("Close of Straße")
            .related(RelatedResource::new("doc", "r-1"))
            .related(RelatedResource::new("doc", "r-2").named("Zwei"))
            .metadata(&json!({"a\"b": ["10.8", {}], "": -1.5}));
        let mut out = String::new();
        write(&mut out, &entry(event));
        let document: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(document["related_id"], json!(["r-1", "r-2"]));
        assert_eq!(document["resource_id"], json!(["D-1 \"x\""]));
        assert_eq!(document["seq"], 5);
        let texts = document["text"].as_array().unwrap();
        for text in ["d 1 x", "close of strasse", "a b", "10 8", "1 5", "zwei"] {
            assert!(texts.contains(&json!(text)), "{text} in {texts:?}");
        }
        let fields = schema::mappings();
        for field in document.as_object().unwrap().keys() {
            assert!(fields["properties"].get(field).is_some(), "{field}");
        }
    }
}
