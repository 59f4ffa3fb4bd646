//! Problem details (RFC 9457) as errors.
//!
//! The kind follows the problem's `type`, whose last part is a kind's name, and otherwise the status:
//! 400 malformed, 401 and 403 forbidden, 404 not found, 409 conflict, 410 pruned, 413, 415 and 422
//! invalid, 429 and 502 to 504 unavailable, 507 storage full, others internal. Each of `errors` is one
//! of [`Error::fields`]: its pointer's index and name, its parameter, or its line.

use std::time::Duration;

use audit_core::{Error, ErrorKind, FieldFault};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Problem {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<Item>,
    #[serde(default)]
    seq: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Item {
    #[serde(default)]
    pointer: Option<String>,
    #[serde(default)]
    parameter: Option<String>,
    #[serde(default)]
    line: Option<u64>,
    #[serde(default)]
    detail: String,
}

/// The error for an answer of a status that is no success. A body that is no problem document counts
/// for nothing; the status alone decides then.
pub fn error(status: u16, body: &str, retry_after: Option<Duration>) -> Error {
    let problem = serde_json::from_str::<Problem>(body).ok();
    let kind = problem
        .as_ref()
        .and_then(|p| kind_of_type(&p.kind))
        .unwrap_or_else(|| kind_of_status(status));
    let Some(problem) = problem else {
        let error = Error::new(kind, format!("the server answered with status {status}"));
        return with_retry(error, retry_after);
    };
    let faults: Vec<FieldFault> = problem.errors.into_iter().map(fault).collect();
    let message = match (problem.detail, problem.title) {
        (detail, _) if !detail.is_empty() => detail,
        (_, title) if !title.is_empty() => title,
        _ => format!("the server answered with status {status}"),
    };
    let mut error = Error::new(kind, message).with_fields(faults);
    if let Some(seq) = problem.seq {
        error = error.with_position(seq);
    }
    with_retry(error, retry_after)
}

fn with_retry(error: Error, after: Option<Duration>) -> Error {
    match after {
        Some(after) => error.with_retry_after(after),
        None => error,
    }
}

fn fault(item: Item) -> FieldFault {
    let mut index = None;
    let mut field = None;
    if let Some(pointer) = &item.pointer {
        let mut parts = pointer
            .trim_start_matches('#')
            .split('/')
            .filter(|p| !p.is_empty());
        let mut next = parts.next();
        if let Some(i) = next.and_then(|p| p.parse().ok()) {
            index = Some(i);
            next = parts.next();
        }
        field = next.map(|name| name.replace("~1", "/").replace("~0", "~"));
    }
    let field = field.or(item.parameter).unwrap_or_else(|| "body".into());
    let detail = match item.line {
        Some(line) => format!("{} (line {line})", item.detail),
        None => item.detail,
    };
    let fault = FieldFault::new(field, detail);
    match index {
        Some(index) => fault.at(index),
        None => fault,
    }
}

fn kind_of_type(uri: &str) -> Option<ErrorKind> {
    let name = uri.rsplit(['/', ':', '#']).next()?;
    Some(match name {
        "malformed" | "tenant-required" | "method-not-allowed" | "not-acceptable" => {
            ErrorKind::Malformed
        }
        "invalid" | "too-large" | "unsupported-media-type" => ErrorKind::Invalid,
        "conflict" => ErrorKind::Conflict,
        "not-found" => ErrorKind::NotFound,
        "pruned" => ErrorKind::Pruned,
        "unauthorized" | "forbidden" => ErrorKind::Forbidden,
        "tenant-unknown" => ErrorKind::UnknownTenant,
        "tenant-closed" => ErrorKind::TenantClosed,
        "tenant-deleted" => ErrorKind::TenantDeleted,
        "refused" => ErrorKind::Refused,
        "rate-limited" | "unavailable" => ErrorKind::Unavailable,
        "storage-full" => ErrorKind::StorageFull,
        "corrupt" => ErrorKind::Corrupt,
        "internal" => ErrorKind::Internal,
        _ => return None,
    })
}

fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        400 | 405 => ErrorKind::Malformed,
        401 | 403 => ErrorKind::Forbidden,
        404 => ErrorKind::NotFound,
        409 => ErrorKind::Conflict,
        410 => ErrorKind::Pruned,
        413 | 415 | 422 => ErrorKind::Invalid,
        429 | 502..=504 => ErrorKind::Unavailable,
        507 => ErrorKind::StorageFull,
        _ => ErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_keep_index_name_and_line() {
        let body = r##"{"type":"about:blank","title":"t","status":422,"detail":"refused","errors":[
            {"pointer":"#/17/ip_address","detail":"not an address"},
            {"pointer":"#/user_id","detail":"too long"},
            {"parameter":"from","detail":"not a time"},
            {"line":3,"pointer":"#","detail":"not JSON"}]}"##;
        let error = error(422, body, None);
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let shown: Vec<String> = error.fields().iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "[17] ip_address: not an address",
                "user_id: too long",
                "from: not a time",
                "body: not JSON (line 3)"
            ]
        );
    }

    #[test]
    fn the_type_decides_before_the_status_and_the_status_without_a_body() {
        let body = r#"{"type":"/problems/tenant-closed","title":"closed"}"#;
        assert_eq!(error(403, body, None).kind(), ErrorKind::TenantClosed);
        assert_eq!(error(403, "<html>", None).kind(), ErrorKind::Forbidden);
        let busy = error(429, "", Some(Duration::from_secs(3)));
        assert!(busy.is_retryable());
        assert_eq!(busy.retry_after(), Some(Duration::from_secs(3)));
    }
}
