//! Lines of an export, or events as a client sends them, as events.
//!
//! An export names the time of every entry. Imported into the log that it came from, an entry whose
//! client had named none is therefore another content under the same id: a conflict.

use audit_core::Event;
use audit_core::tlog::json::{self, write_string};

/// What the log assigns: an exported entry has it, a client may not send it.
const ASSIGNED: [&str; 8] = [
    "tenant_id",
    "seq",
    "created_at",
    "leaf_hash",
    "erased",
    "kind",
    "ctl",
    "receipt",
];

/// What a line is.
#[derive(Debug)]
pub(crate) enum Line {
    /// An event.
    Event(Box<Event>),
    /// An entry that a log writes about itself: another log can't take it.
    OwnEntry,
}

/// Reads one line. Fields that the log assigned are left out; everything else is kept as it stands.
pub(crate) fn line(text: &str) -> Result<Line, String> {
    let members = json::members(text).map_err(|e| format!("body: {e}"))?;
    let raw = |name: &str| members.iter().find(|m| m.name == name).map(|m| m.raw);
    let is_control = raw("kind").is_some_and(|kind| kind != "\"event\"" && kind != "null");
    let is_own = raw("action").is_some_and(|action| action.starts_with("\"log."));
    if is_control || is_own {
        return Ok(Line::OwnEntry);
    }
    let erased = raw("erased")
        .and_then(|raw| json::items(raw).ok())
        .unwrap_or_default();
    if erased.contains(&"\"resource\"") {
        return Err("resource_type: erased, and without it nothing can be recorded".into());
    }
    let mut body = String::with_capacity(text.len());
    for member in members.iter().filter(|m| !ASSIGNED.contains(&&*m.name)) {
        body.push(if body.is_empty() { '{' } else { ',' });
        write_string(&mut body, &member.name);
        body.push(':');
        body.push_str(member.raw);
    }
    body.push_str(if body.is_empty() { "{}" } else { "}" });
    Event::from_json(&body)
        .map(|event| Line::Event(Box::new(event)))
        .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"id":"0190a000-0000-7000-8000-000000000001","tenant_id":"0190a000-0000-7000-8000-0000000000ff","seq":7,"created_at":"2026-11-24T03:00:00.000000Z","occurred_at":"2026-11-24T02:00:00.000000Z","action_type":"UPDATE","action":"invoice.approve","outcome":"success","severity":"INFO","resource_type":"invoice","resource_id":"1","metadata":{ "n": 9007199254740993, "e":1e2 },"leaf_hash":"AAAA"}"#;

    #[test]
    fn an_exported_entry_loses_what_the_log_assigned_and_nothing_else() {
        let Ok(Line::Event(event)) = line(ENTRY) else {
            panic!("an event")
        };
        let sent = event.to_json();
        assert!(
            sent.contains(r#""metadata":{ "n": 9007199254740993, "e":1e2 }"#),
            "{sent}"
        );
        assert!(sent.contains("\"occurred_at\":\"2026-11-24T02:00:00.000000Z\""));
        for gone in ["tenant_id", "seq", "created_at", "leaf_hash"] {
            assert!(!sent.contains(gone), "{sent}");
        }
    }

    #[test]
    fn what_a_log_writes_about_itself_is_passed_over() {
        let control = r#"{"kind":"prune","ctl":{},"action":"log.prune"}"#;
        assert!(matches!(line(control), Ok(Line::OwnEntry)));
        assert!(matches!(
            line(r#"{"action":"log.tenant"}"#),
            Ok(Line::OwnEntry)
        ));
    }

    #[test]
    fn every_other_fault_is_named() {
        assert!(line("{").unwrap_err().starts_with("body: "));
        assert!(line("{}").unwrap_err().contains("action_type: required"));
        let misspelt = ENTRY.replace("\"outcome\"", "\"outcom\"");
        assert!(line(&misspelt).unwrap_err().contains("outcom: not a field"));
        let erased = ENTRY.replace("\"seq\":7", "\"erased\":[\"actor\",\"resource\"]");
        assert!(
            line(&erased)
                .unwrap_err()
                .starts_with("resource_type: erased")
        );
    }
}
