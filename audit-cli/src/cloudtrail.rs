//! AWS CloudTrail records as events.
//!
//! | field | from the record |
//! |---|---|
//! | `id` | `eventID`, so that importing again records nothing twice |
//! | `occurred_at` | `eventTime` |
//! | `action` | `eventSource` without `.amazonaws.com`, a dot, `eventName` |
//! | `action_type` | `ConsoleLogin` LOGIN, else `readOnly` VIEW, else by the verb of `eventName`, else EXECUTE |
//! | `outcome` | `errorCode` with AccessDenied or Unauthorized in it denied, another failure, none success |
//! | `user_id` | `userIdentity.arn`, or `principalId`, or `invokedBy` |
//! | `actor_type` | `userIdentity.type` AWSService service, else user |
//! | `actor_name`, `on_behalf_of` | `userIdentity.userName`, `sessionContext.sessionIssuer.arn` |
//! | `session_id`, `request_id`, `user_agent` | `userIdentity.accessKeyId`, `requestID`, `userAgent` |
//! | `ip_address` | `sourceIPAddress`, where it is one |
//! | `resource_type`, `resource_id` | type and ARN of `resources[0]`, else the service and the account |
//! | `related_resources` | the other `resources` |
//! | `metadata` | the record, its exact text |
//!
//! A value over a limit stays in `metadata` only, and is counted.

use audit_core::event::limits;
use audit_core::tlog::json;
use audit_core::{
    ActionType, ActorType, Event, EventId, Json, Outcome, RelatedResource, Timestamp,
};

/// A record as an event.
#[derive(Debug)]
pub(crate) struct Mapped {
    /// The event.
    pub(crate) event: Event,
    /// `recipientAccountId`.
    pub(crate) account: Option<String>,
    /// The event's fields that a value of the record did not fit into.
    pub(crate) dropped: Vec<&'static str>,
}

/// The verbs that `eventName` may start with.
const VERBS: [(ActionType, &[&str]); 5] = [
    (
        ActionType::Create,
        &["Create", "Run", "Register", "Allocate"],
    ),
    (
        ActionType::Delete,
        &["Delete", "Terminate", "Remove", "Deregister", "Release"],
    ),
    (
        ActionType::Update,
        &[
            "Put", "Update", "Modify", "Set", "Add", "Attach", "Detach", "Start", "Stop", "Enable",
            "Disable",
        ],
    ),
    (ActionType::Grant, &["Authorize", "Share"]),
    (ActionType::Revoke, &["Revoke"]),
];

/// The records of a file: the exact text of each item of its `Records`.
pub(crate) fn records(file: &str) -> Result<Vec<&str>, String> {
    let not_one =
        || "not a CloudTrail file: an object with an array Records is expected".to_owned();
    let members = json::members(file).map_err(|e| format!("{}: {e}", not_one()))?;
    let records = members
        .iter()
        .find(|m| m.name == "Records")
        .ok_or_else(not_one)?;
    json::items(records.raw).map_err(|_| not_one())
}

/// Maps one record, given as its exact text.
///
/// Fails for what is no CloudTrail record, or can't be kept as `metadata`.
pub(crate) fn event(record: &str) -> Result<Mapped, String> {
    let metadata = Json::parse(record).map_err(|e| format!("metadata: {e}"))?;
    let record = Object::read(record).ok_or("not an object")?;
    let identity = record.object("userIdentity");
    let required = |name: &str| record.text(name).ok_or_else(|| format!("{name}: required"));

    let id: EventId = required("eventID")?
        .parse()
        .map_err(|e| format!("eventID: {e}"))?;
    let time = Timestamp::parse(&required("eventTime")?).map_err(|e| format!("eventTime: {e}"))?;
    let name = required("eventName")?;
    let source = required("eventSource")?;
    let service = source.strip_suffix(".amazonaws.com").unwrap_or(&source);
    let mut fit = Fit {
        dropped: Vec::new(),
    };

    let account = record.text("recipientAccountId");
    let (resource_type, resource_id, related) =
        resources(&record, service, account.as_deref(), &identity, &mut fit);
    let action_type = action_type(&name, record.flag("readOnly"));
    let mut event = Event::new(action_type, resource_type, resource_id)
        .id(id)
        .occurred_at(time)
        .outcome(outcome(record.text("errorCode").as_deref()))
        .metadata(&metadata);
    for resource in related {
        event = event.related(resource);
    }
    let action = format!("{service}.{name}");
    let admitted = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    if action.len() <= limits::ACTION && action.bytes().all(admitted) && !action.starts_with("log.")
    {
        event = event.action(action);
    } else {
        fit.dropped.push("action");
    }

    let user = identity
        .text("arn")
        .or_else(|| identity.text("principalId"));
    let user = user.or_else(|| identity.text("invokedBy"));
    if let Some(user) = fit.text("user_id", user, limits::USER_ID) {
        event = event.user(user);
    }
    event = event.actor_type(match identity.text("type").as_deref() {
        Some("AWSService") => ActorType::Service,
        _ => ActorType::User,
    });
    if let Some(name) = fit.text("actor_name", identity.text("userName"), limits::ACTOR_NAME) {
        event = event.actor_name(name);
    }
    let issuer = identity
        .object("sessionContext")
        .object("sessionIssuer")
        .text("arn");
    if let Some(issuer) = fit.text("on_behalf_of", issuer, limits::ON_BEHALF_OF) {
        event = event.on_behalf_of(issuer);
    }
    if let Some(key) = fit.text(
        "session_id",
        identity.text("accessKeyId"),
        limits::SESSION_ID,
    ) {
        event = event.session_id(key);
    }
    if let Some(request) = fit.text("request_id", record.text("requestID"), limits::REQUEST_ID) {
        event = event.request_id(request);
    }
    if let Some(agent) = fit.text("user_agent", record.text("userAgent"), limits::USER_AGENT) {
        event = event.user_agent(agent);
    }
    // AWS's own services stand there by name.
    if let Some(ip) = record
        .text("sourceIPAddress")
        .and_then(|ip| ip.parse().ok())
    {
        event = event.ip_address(ip);
    }
    Ok(Mapped {
        event,
        account,
        dropped: fit.dropped,
    })
}

fn action_type(name: &str, read_only: bool) -> ActionType {
    if name == "ConsoleLogin" {
        return ActionType::Login;
    }
    if read_only {
        return ActionType::View;
    }
    // `Set` begins SetTags, and not Settle.
    let begins = |verb: &str| {
        name.strip_prefix(verb)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    VERBS
        .iter()
        .find(|(_, verbs)| verbs.iter().any(|verb| begins(verb)))
        .map_or(ActionType::Execute, |(action_type, _)| *action_type)
}

fn outcome(error: Option<&str>) -> Outcome {
    match error {
        None => Outcome::Success,
        Some(code) if code.contains("AccessDenied") || code.contains("Unauthorized") => {
            Outcome::Denied
        }
        Some(_) => Outcome::Failure,
    }
}

/// The resource that was acted on, and the others.
fn resources(
    record: &Object<'_>,
    service: &str,
    account: Option<&str>,
    identity: &Object<'_>,
    fit: &mut Fit,
) -> (String, String, Vec<RelatedResource>) {
    let service = fit
        .text(
            "resource_type",
            Some(service.to_owned()),
            limits::RESOURCE_TYPE,
        )
        .unwrap_or_else(|| "unknown".into());
    let items = record.items("resources");
    let mut named = items.iter().map(|raw| {
        let resource = Object::read(raw).unwrap_or_default();
        Some((resource.text("type"), resource.text("ARN")?))
    });
    let mut one = |field, kind: Option<String>, arn: String| {
        let kind = fit
            .text(field, kind, limits::RESOURCE_TYPE)
            .unwrap_or_else(|| service.clone());
        Some((kind, fit.text(field, Some(arn), limits::RESOURCE_ID)?))
    };
    let first = named
        .next()
        .flatten()
        .and_then(|(kind, arn)| one("resource_id", kind, arn));
    let mut related: Vec<RelatedResource> = named
        .flatten()
        .filter_map(|(kind, arn)| one("related_resources", kind, arn))
        .map(|(kind, arn)| RelatedResource::new(kind, arn))
        .collect();
    for _ in related.drain(related.len().min(limits::RELATED_RESOURCES)..) {
        fit.dropped.push("related_resources");
    }
    let (kind, id) = first.unwrap_or_else(|| {
        let account = account
            .map(str::to_owned)
            .or_else(|| identity.text("accountId"));
        let account = fit.text("resource_id", account, limits::RESOURCE_ID);
        (service, account.unwrap_or_else(|| "unknown".into()))
    });
    (kind, id, related)
}

/// Counts what doesn't fit.
struct Fit {
    dropped: Vec<&'static str>,
}

impl Fit {
    fn text(&mut self, field: &'static str, value: Option<String>, limit: usize) -> Option<String> {
        let value = value?;
        if value.chars().count() > limit {
            self.dropped.push(field);
            return None;
        }
        Some(value)
    }
}

/// A JSON object that is asked for what it may have; what is of another type is as if absent.
#[derive(Default)]
struct Object<'a>(Vec<json::Member<'a>>);

impl<'a> Object<'a> {
    fn read(raw: &'a str) -> Option<Self> {
        json::members(raw).ok().map(Self)
    }

    fn raw(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|m| m.name == name).map(|m| m.raw)
    }

    /// A text that is not empty.
    fn text(&self, name: &str) -> Option<String> {
        let raw = self.raw(name).filter(|raw| raw.starts_with('"'))?;
        json::string(raw)
            .ok()
            .filter(|text| !text.is_empty())
            .map(std::borrow::Cow::into_owned)
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.raw(name), Some("true" | "\"true\""))
    }

    fn object(&self, name: &str) -> Self {
        self.raw(name).and_then(Self::read).unwrap_or_default()
    }

    fn items(&self, name: &str) -> Vec<&'a str> {
        self.raw(name)
            .and_then(|raw| json::items(raw).ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The event as the API would be sent it, to look at.
    fn sent(mapped: &Mapped) -> serde_json::Value {
        mapped.event.check().unwrap();
        serde_json::from_str(&mapped.event.to_json()).unwrap()
    }

    fn real(file: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/cloudtrail/");
        std::fs::read_to_string(format!(
            "{folder}218007301253_CloudTrail_us-east-1_{file}.json"
        ))
        .unwrap()
    }

    const REAL: [&str; 4] = [
        "20230710T1210Z_bXGZYqBeCCsqWq1U",
        "20230710T1220Z_WMiHxZgr5Hdd6UDc",
        "20230710T1230Z_OU6Ha25B4GGhUIMr",
        "20230710T1230Z_soULWstxp7lqsODg",
    ];

    #[test]
    fn real_records_are_kept_byte_for_byte() {
        let mut count = 0;
        for file in REAL {
            let text = real(file);
            for record in records(&text).unwrap() {
                let mapped = event(record).unwrap();
                assert!(mapped.dropped.is_empty(), "{:?}", mapped.dropped);
                mapped.event.check().unwrap();
                assert!(
                    mapped
                        .event
                        .to_json()
                        .ends_with(&format!(",\"metadata\":{record}}}")),
                    "{record}"
                );
                count += 1;
            }
        }
        assert_eq!(count, 27);
    }

    #[test]
    fn real_records_with_an_error_code_are_no_success() {
        let mut outcomes = Vec::new();
        for file in REAL {
            for record in records(&real(file)).unwrap() {
                let raw: serde_json::Value = serde_json::from_str(record).unwrap();
                let outcome = sent(&event(record).unwrap())["outcome"].clone();
                assert_eq!(
                    raw.get("errorCode").is_some(),
                    outcome != "success",
                    "{record}"
                );
                outcomes.push(outcome);
            }
        }
        let of = |wanted: &str| outcomes.iter().filter(|o| **o == wanted).count();
        assert_eq!((of("denied"), of("failure"), of("success")), (1, 1, 25));
    }

    #[test]
    fn a_role_that_was_assumed_by_a_service_is_mapped_field_by_field() {
        let text = real("20230710T1230Z_soULWstxp7lqsODg");
        let record = records(&text)
            .unwrap()
            .into_iter()
            .find(|r| r.contains("\"eventName\":\"AssumeRole\""))
            .unwrap();
        let raw: serde_json::Value = serde_json::from_str(record).unwrap();
        let mapped = event(record).unwrap();
        let sent = sent(&mapped);
        assert_eq!(sent["id"], raw["eventID"]);
        assert_eq!(sent["action"], "sts.AssumeRole");
        assert_eq!(sent["action_type"], "VIEW");
        assert_eq!(sent["actor_type"], "service");
        assert_eq!(sent["user_id"], raw["userIdentity"]["invokedBy"]);
        assert_eq!(sent["request_id"], raw["requestID"]);
        assert_eq!(sent["resource_type"], "AWS::IAM::Role");
        assert_eq!(sent["resource_id"], raw["resources"][0]["ARN"]);
        assert_eq!(
            mapped.account.as_deref(),
            raw["recipientAccountId"].as_str()
        );
    }

    #[test]
    fn a_record_without_resources_is_about_the_service_and_the_account() {
        let record = r#"{"eventID":"6c0b4a7e-9d6c-4a51-8ad5-3fbd2a3c6f01","eventTime":"2023-07-10T12:00:00Z",
            "eventSource":"signin.amazonaws.com","eventName":"ConsoleLogin","readOnly":true,
            "sourceIPAddress":"cloudtrail.amazonaws.com","recipientAccountId":"1234"}"#;
        let sent = sent(&event(record).unwrap());
        assert_eq!(sent["action_type"], "LOGIN");
        assert_eq!(sent["resource_type"], "signin");
        assert_eq!(sent["resource_id"], "1234");
        assert!(sent.get("ip_address").is_none() && sent.get("user_id").is_none());
        assert_eq!(sent["occurred_at"], "2023-07-10T12:00:00.000000Z");
    }

    #[test]
    fn the_verb_decides_what_was_done() {
        for (name, wanted) in [
            ("RunInstances", ActionType::Create),
            ("AllocateAddress", ActionType::Create),
            ("TerminateInstances", ActionType::Delete),
            ("DeregisterImage", ActionType::Delete),
            ("ReleaseAddress", ActionType::Delete),
            ("PutObject", ActionType::Update),
            ("SetDefaultPolicyVersion", ActionType::Update),
            ("AttachUserPolicy", ActionType::Update),
            ("DetachVolume", ActionType::Update),
            ("AuthorizeSecurityGroupIngress", ActionType::Grant),
            ("ShareDirectory", ActionType::Grant),
            ("RevokeSecurityGroupEgress", ActionType::Revoke),
            ("AssumeRole", ActionType::Execute),
            ("SettleAccount", ActionType::Execute),
            ("Runaway", ActionType::Execute),
        ] {
            assert_eq!(action_type(name, false), wanted, "{name}");
        }
        assert_eq!(action_type("DeleteX", true), ActionType::View);
    }

    #[test]
    fn a_value_over_a_limit_stays_in_metadata_only_and_is_counted() {
        let long = "x".repeat(600);
        let resources: Vec<String> = (0..19)
            .map(|i| format!("{{\"ARN\":\"arn:{i}\",\"type\":\"T\"}}"))
            .collect();
        let record = format!(
            r#"{{"eventID":"6c0b4a7e-9d6c-4a51-8ad5-3fbd2a3c6f01","eventTime":"2023-07-10T12:00:00Z",
            "eventSource":"s3.amazonaws.com","eventName":"Put Object","requestID":"{long}",
            "userIdentity":{{"arn":"{long}","accountId":"77"}},
            "resources":[{{"ARN":"{long}"}},{}]}}"#,
            resources.join(",")
        );
        let mapped = event(&record).unwrap();
        let sent = sent(&mapped);
        let mut dropped = mapped.dropped.clone();
        dropped.sort_unstable();
        let wanted = [
            "action",
            "related_resources",
            "related_resources",
            "related_resources",
            "request_id",
            "resource_id",
            "user_id",
        ];
        assert_eq!(dropped, wanted);
        assert_eq!(sent["resource_id"], "77");
        assert_eq!(sent["related_resources"].as_array().unwrap().len(), 16);
        assert_eq!(sent["action"], "update");
        assert!(mapped.event.to_json().contains(&record));
    }

    #[test]
    fn what_is_no_record_is_refused_by_name() {
        for (record, wanted) in [
            ("{}", "eventID: required"),
            (r#"{"eventID":"x"}"#, "eventID: not a UUID"),
            (
                r#"{"eventID":"6c0b4a7e-9d6c-4a51-8ad5-3fbd2a3c6f01","eventTime":"yesterday"}"#,
                "eventTime: ",
            ),
            (r#"{"a":1,"a":2}"#, "metadata: holds the same key twice"),
            ("[]", "not an object"),
        ] {
            let error = event(record).unwrap_err();
            assert!(error.starts_with(wanted), "{error}");
        }
        assert!(
            records("[]").is_err() && records("{}").is_err() && records("{\"Records\":1}").is_err()
        );
    }
}
