//! The shapes of bodies, as the document shows them.
//!
//! Requests are read and responses written as text, so that raw JSON keeps its bytes; these types
//! only describe.

use std::collections::HashMap;
use std::marker::PhantomData;

use chrono::{DateTime, NaiveDate, Utc};
use poem::http::HeaderValue;
use poem::http::header::CONTENT_TYPE;
use poem::{IntoResponse, Response};
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaSchemaRef, Registry};
use poem_openapi::types::{Any, Type};
use poem_openapi::{Enum, Object, Tags};
use serde_json::Value;
use uuid::Uuid;

use crate::problem::ProblemDetails;

/// A JSON response that is written as text; `T` documents its shape.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(String, PhantomData<fn() -> T>);

impl<T> JsonBody<T> {
    pub(crate) fn new(text: String) -> Self {
        Self(text, PhantomData)
    }
}

impl<T: Type> Payload for JsonBody<T> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Type> IntoResponse for JsonBody<T> {
    fn into_response(self) -> Response {
        let mut response = Response::builder().body(self.0);
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// The groups of routes.
#[derive(Debug, Tags)]
pub(crate) enum Tag {
    /// Recording and reading events.
    Logs,
    /// Following a log as it grows.
    Streams,
    /// Checkpoints, tiles and proofs in open formats, which other people's tools verify.
    Evidence,
    /// Pruning and erasing.
    Cleanup,
    /// Tenants.
    Tenants,
    /// API keys.
    #[oai(rename = "API keys")]
    ApiKeys,
    /// Operating the deployment.
    Operations,
}

macro_rules! vocabulary {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Enum)]
        pub(crate) enum $name { $(#[oai(rename = $text)] $variant),* }
    };
}

vocabulary! {
    /// The coarse operation.
    ActionType {
        Create = "CREATE", Update = "UPDATE", Delete = "DELETE", View = "VIEW", Login = "LOGIN",
        Logout = "LOGOUT", Grant = "GRANT", Revoke = "REVOKE", Execute = "EXECUTE",
        Export = "EXPORT", Other = "OTHER",
    }
}
vocabulary! {
    /// How the operation ended.
    Outcome { Success = "success", Failure = "failure", Denied = "denied", Unknown = "unknown" }
}
vocabulary! {
    /// How much attention it deserves.
    Severity { Info = "INFO", Warning = "WARNING", Error = "ERROR", Critical = "CRITICAL" }
}
vocabulary! {
    /// What kind of actor it was.
    ActorType {
        User = "user", Service = "service", System = "system", Agent = "agent",
        Anonymous = "anonymous",
    }
}
vocabulary! {
    /// A group of fields that is erased together.
    Group {
        Actor = "actor", Resource = "resource", Context = "context", Reason = "reason",
        BeforeState = "before_state", AfterState = "after_state", Metadata = "metadata",
    }
}
vocabulary! {
    /// What kind of control entry it is.
    ControlKind { Erase = "erase", Prune = "prune", Key = "key", Epoch = "epoch" }
}
vocabulary! {
    /// A named set of permissions.
    Role {
        Writer = "writer", Auditor = "auditor", User = "user", TenantAdmin = "tenant_admin",
        Admin = "admin",
    }
}
vocabulary! {
    /// Whether a tenant's log may be written and read.
    TenantStatus {
        Active = "active", Inactive = "inactive", Suspended = "suspended", Deleted = "deleted",
    }
}
vocabulary! {
    /// A status that can be set.
    NewTenantStatus { Active = "active", Inactive = "inactive", Suspended = "suspended" }
}

/// Another target of the operation.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
pub(crate) struct RelatedResource {
    /// Its type.
    #[oai(rename = "type", validator(min_length = 1, max_length = 128))]
    kind: String,
    /// Its id.
    #[oai(validator(min_length = 1, max_length = 512))]
    id: String,
    /// Its name.
    #[oai(validator(max_length = 512), skip_serializing_if_is_none)]
    name: Option<String>,
}

/// An event to be recorded. Limits are in characters; an explicit null is the same as absent; a name
/// that isn't listed is refused.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields, example)]
pub(crate) struct Event {
    /// Identity and idempotency key, unique within the tenant; a UUIDv7 is made when it is absent.
    #[oai(skip_serializing_if_is_none)]
    id: Option<Uuid>,
    /// Must be the tenant that is recorded for.
    #[oai(skip_serializing_if_is_none)]
    tenant_id: Option<Uuid>,
    /// When it happened (RFC 3339); the time of acceptance when absent.
    #[oai(skip_serializing_if_is_none)]
    occurred_at: Option<DateTime<Utc>>,
    /// The coarse operation.
    action_type: ActionType,
    /// The fine name, `noun.verb` by convention. It can't be erased: no personal data in it. `log.`
    /// at its start is the log's own.
    #[oai(
        validator(min_length = 1, max_length = 160, pattern = "^[A-Za-z0-9._:/-]+$"),
        skip_serializing_if_is_none
    )]
    action: Option<String>,
    /// How it ended; `success` when absent.
    #[oai(skip_serializing_if_is_none)]
    outcome: Option<Outcome>,
    /// How much attention it deserves; `INFO` when absent.
    #[oai(skip_serializing_if_is_none)]
    severity: Option<Severity>,
    /// The actor.
    #[oai(validator(max_length = 256), skip_serializing_if_is_none)]
    user_id: Option<String>,
    /// What kind of actor; `user` when `user_id` is present.
    #[oai(skip_serializing_if_is_none)]
    actor_type: Option<ActorType>,
    /// The actor's display name.
    #[oai(validator(max_length = 256), skip_serializing_if_is_none)]
    actor_name: Option<String>,
    /// The impersonated or delegating principal.
    #[oai(validator(max_length = 256), skip_serializing_if_is_none)]
    on_behalf_of: Option<String>,
    /// What was acted on: its type.
    #[oai(validator(min_length = 1, max_length = 128))]
    resource_type: String,
    /// What was acted on: its id.
    #[oai(validator(min_length = 1, max_length = 512))]
    resource_id: String,
    /// What was acted on: its name.
    #[oai(validator(max_length = 512), skip_serializing_if_is_none)]
    resource_name: Option<String>,
    /// Other targets; order kept.
    #[oai(validator(max_items = 16), skip_serializing_if_is_none)]
    related_resources: Option<Vec<RelatedResource>>,
    /// The session.
    #[oai(validator(max_length = 256), skip_serializing_if_is_none)]
    session_id: Option<String>,
    /// The request of the application.
    #[oai(validator(max_length = 256), skip_serializing_if_is_none)]
    request_id: Option<String>,
    /// The trace, W3C's by convention.
    #[oai(validator(max_length = 64), skip_serializing_if_is_none)]
    trace_id: Option<String>,
    /// The user agent.
    #[oai(validator(max_length = 1024), skip_serializing_if_is_none)]
    user_agent: Option<String>,
    /// IPv4 or IPv6, no prefix, no zone.
    #[oai(skip_serializing_if_is_none)]
    ip_address: Option<String>,
    /// Why.
    #[oai(validator(max_length = 1024), skip_serializing_if_is_none)]
    reason: Option<String>,
    /// The resource before; any JSON, kept byte for byte. The three together have at most 256 KiB.
    #[oai(skip_serializing_if_is_none)]
    before_state: Option<Any<Value>>,
    /// The resource after; any JSON, kept byte for byte.
    #[oai(skip_serializing_if_is_none)]
    after_state: Option<Any<Value>>,
    /// Anything else; any JSON, kept byte for byte.
    #[oai(skip_serializing_if_is_none)]
    metadata: Option<Any<Value>>,
}

impl poem_openapi::types::Example for Event {
    fn example() -> Self {
        Self {
            id: None,
            tenant_id: None,
            occurred_at: None,
            action_type: ActionType::Update,
            action: Some("invoice.approve".into()),
            outcome: None,
            severity: None,
            user_id: Some("ann".into()),
            actor_type: None,
            actor_name: Some("Ann Example".into()),
            on_behalf_of: None,
            resource_type: "invoice".into(),
            resource_id: "inv-1".into(),
            resource_name: None,
            related_resources: None,
            session_id: None,
            request_id: None,
            trace_id: None,
            user_agent: None,
            ip_address: Some("192.0.2.7".into()),
            reason: Some("quarterly close".into()),
            before_state: Some(Any(serde_json::json!({"state": "draft"}))),
            after_state: Some(Any(serde_json::json!({"state": "approved"}))),
            metadata: None,
        }
    }
}

macro_rules! entry {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Object)]
        pub(crate) struct $name {
            /// Identity and idempotency key.
            id: Uuid,
            /// Whose log.
            tenant_id: Uuid,
            /// Gap-free position in the tenant's log, from 0.
            seq: u64,
            /// When the log accepted it.
            created_at: DateTime<Utc>,
            /// When it happened.
            occurred_at: DateTime<Utc>,
            /// Of a control entry: which kind.
            #[oai(skip_serializing_if_is_none)]
            kind: Option<ControlKind>,
            /// Of a control entry: what it says.
            #[oai(skip_serializing_if_is_none)]
            ctl: Option<Any<Value>>,
            /// The coarse operation.
            action_type: ActionType,
            /// The fine name.
            action: String,
            /// How it ended.
            outcome: Outcome,
            /// How much attention it deserves.
            severity: Severity,
            /// The actor.
            #[oai(skip_serializing_if_is_none)]
            user_id: Option<String>,
            /// What kind of actor.
            #[oai(skip_serializing_if_is_none)]
            actor_type: Option<ActorType>,
            /// The actor's display name.
            #[oai(skip_serializing_if_is_none)]
            actor_name: Option<String>,
            /// The impersonated or delegating principal.
            #[oai(skip_serializing_if_is_none)]
            on_behalf_of: Option<String>,
            /// What was acted on: its type. Absent once erased.
            #[oai(skip_serializing_if_is_none)]
            resource_type: Option<String>,
            /// What was acted on: its id. Absent once erased.
            #[oai(skip_serializing_if_is_none)]
            resource_id: Option<String>,
            /// What was acted on: its name.
            #[oai(skip_serializing_if_is_none)]
            resource_name: Option<String>,
            /// Other targets.
            #[oai(skip_serializing_if_is_none)]
            related_resources: Option<Vec<RelatedResource>>,
            /// The session.
            #[oai(skip_serializing_if_is_none)]
            session_id: Option<String>,
            /// The request of the application.
            #[oai(skip_serializing_if_is_none)]
            request_id: Option<String>,
            /// The trace.
            #[oai(skip_serializing_if_is_none)]
            trace_id: Option<String>,
            /// The user agent.
            #[oai(skip_serializing_if_is_none)]
            user_agent: Option<String>,
            /// From where.
            #[oai(skip_serializing_if_is_none)]
            ip_address: Option<String>,
            /// Why.
            #[oai(skip_serializing_if_is_none)]
            reason: Option<String>,
            /// The resource before.
            #[oai(skip_serializing_if_is_none)]
            before_state: Option<Any<Value>>,
            /// The resource after.
            #[oai(skip_serializing_if_is_none)]
            after_state: Option<Any<Value>>,
            /// Anything else.
            #[oai(skip_serializing_if_is_none)]
            metadata: Option<Any<Value>>,
            /// The hash that it was sealed with (RFC 6962 §2.1), base64.
            leaf_hash: String,
            /// The groups that were destroyed.
            #[oai(skip_serializing_if_is_none)]
            erased: Option<Vec<Group>>,
            $($(#[$fdoc])* $field: $type),*
        }
    };
}

entry! {
    /// One entry of a tenant's log. A view, not evidence: JSON libraries may change numbers.
    Entry {}
}
entry! {
    /// What was recorded, with its receipt.
    Recorded {
        /// The receipt.
        receipt: Receipt,
    }
}

/// The proof that an event was taken: given out only after it is durable.
#[derive(Debug, Object)]
pub(crate) struct Receipt {
    /// The event.
    id: Uuid,
    /// Its position.
    seq: u64,
    /// The hash that it was sealed with, base64.
    leaf_hash: String,
    /// When the log accepted it; a repeat's is the first one's.
    created_at: DateTime<Utc>,
    /// The number of entries in the log at the time of this receipt.
    tree_size: u64,
    /// The root of the tree of that size, base64.
    root: String,
    /// Whether the same event had been recorded before.
    duplicate: bool,
}

/// An identical repeat of what was recorded before.
#[derive(Debug, Object)]
pub(crate) struct Repeated {
    /// The event.
    id: Uuid,
    /// Its position.
    seq: u64,
    /// The hash that it was sealed with, base64.
    leaf_hash: String,
    /// When the log first accepted it.
    created_at: DateTime<Utc>,
    /// The number of entries in the log now.
    tree_size: u64,
    /// The root of the tree of that size, base64.
    root: String,
    /// True.
    duplicate: bool,
    /// The same as a receipt.
    receipt: Receipt,
}

/// An event that the queue has and that a worker will append.
#[derive(Debug, Object)]
pub(crate) struct Accepted {
    /// The event's id.
    id: Uuid,
    /// Where it can be read once it is appended.
    status_url: String,
}

/// One page of a list of entries.
#[derive(Debug, Object)]
pub(crate) struct EntryPage {
    /// The entries.
    data: Vec<Entry>,
    /// Where the next page begins; null at the end of a descending list.
    next_cursor: Option<String>,
    /// With `q`: the index holds the log up to this position (exclusive).
    #[oai(skip_serializing_if_is_none)]
    indexed_through: Option<u64>,
}

/// The results of a bulk, in the order of its items.
#[derive(Debug, Object)]
pub(crate) struct BulkResults {
    /// One result for each item.
    results: Vec<BulkResult>,
}

/// The result of one item.
#[derive(Debug, Object)]
pub(crate) struct BulkResult {
    /// Its place in the body, from 0.
    index: u64,
    /// The status that it would have had by itself.
    status: u16,
    /// When it was recorded.
    #[oai(skip_serializing_if_is_none)]
    receipt: Option<Receipt>,
    /// When it was refused.
    #[oai(skip_serializing_if_is_none)]
    error: Option<ProblemDetails>,
    /// When the queue has it: its id.
    #[oai(skip_serializing_if_is_none)]
    id: Option<Uuid>,
    /// When the queue has it: where it can be read once it is appended.
    #[oai(skip_serializing_if_is_none)]
    status_url: Option<String>,
}

/// Statistics over the entries that are present.
#[derive(Debug, Object)]
pub(crate) struct Statistics {
    /// All entries in the range.
    total_logs: u64,
    /// Entries of the whole log that were pruned.
    pruned: u64,
    /// By operation; what has none is left out.
    by_action: HashMap<String, u64>,
    /// By severity.
    by_severity: HashMap<String, u64>,
    /// By outcome.
    by_outcome: HashMap<String, u64>,
    /// The last seven UTC days, today last, whatever the range.
    last_7_days: Vec<DayCount>,
    /// What `group_by` and `interval` asked for.
    #[oai(skip_serializing_if_is_none)]
    buckets: Option<Vec<BucketCount>>,
}

/// The entries of one UTC day.
#[derive(Debug, Object)]
pub(crate) struct DayCount {
    /// The day.
    date: NaiveDate,
    /// How many.
    count: u64,
}

/// The entries of one bucket.
#[derive(Debug, Object)]
pub(crate) struct BucketCount {
    /// The start of the interval.
    #[oai(skip_serializing_if_is_none)]
    start: Option<DateTime<Utc>>,
    /// The value of the field of `group_by`.
    #[oai(skip_serializing_if_is_none)]
    key: Option<String>,
    /// How many.
    count: u64,
}

/// A one-use right to open a stream.
#[derive(Debug, Object)]
pub(crate) struct StreamTicket {
    /// To be sent as the query parameter `ticket`.
    ticket: String,
    /// Until when it may be used.
    expires_at: DateTime<Utc>,
}

/// A prune to be done: `before` or `older_than_days`.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields, example)]
pub(crate) struct NewPrune {
    /// Entries accepted before this go.
    #[oai(skip_serializing_if_is_none)]
    before: Option<DateTime<Utc>>,
    /// Entries accepted more than so many days ago go.
    #[oai(
        validator(minimum(value = "1"), maximum(value = "36500")),
        skip_serializing_if_is_none
    )]
    older_than_days: Option<u64>,
    /// Only says what would go.
    #[oai(skip_serializing_if_is_none)]
    dry_run: Option<bool>,
    /// On what grounds; `request` when absent.
    #[oai(
        validator(min_length = 1, max_length = 64, pattern = "^[a-z0-9._-]+$"),
        skip_serializing_if_is_none
    )]
    basis: Option<String>,
    /// Why; it stays in the log.
    #[oai(validator(max_length = 1024), skip_serializing_if_is_none)]
    reason: Option<String>,
}

impl poem_openapi::types::Example for NewPrune {
    fn example() -> Self {
        Self {
            before: None,
            older_than_days: Some(3650),
            dry_run: Some(true),
            basis: Some("retention".into()),
            reason: None,
        }
    }
}

/// What a prune did, or would do.
#[derive(Debug, Object)]
pub(crate) struct Pruned {
    /// The control entry that says so; null when nothing went.
    id: Option<Uuid>,
    /// Entries below this position are gone.
    below: u64,
    /// How many went with this prune.
    entries: u64,
    /// Whether it only says what would go.
    dry_run: bool,
    /// The receipt of the control entry.
    #[oai(skip_serializing_if_is_none)]
    receipt: Option<Receipt>,
}

/// A prune that was done, as its control entry says.
#[derive(Debug, Object)]
pub(crate) struct Prune {
    /// The control entry.
    id: Uuid,
    /// Its position.
    seq: u64,
    /// When it was done.
    created_at: DateTime<Utc>,
    /// Entries below this position are gone.
    below: u64,
    /// The bound that was asked for.
    before: DateTime<Utc>,
    /// The root of the tree of size `below`, base64.
    root: String,
    /// On what grounds.
    basis: String,
    /// Who asked; absent once erased.
    #[oai(skip_serializing_if_is_none)]
    user_id: Option<String>,
    /// Why; absent once erased.
    #[oai(skip_serializing_if_is_none)]
    reason: Option<String>,
}

/// What entries have to satisfy: all conditions that are given, and of several values of one any.
/// At least one condition is required.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
pub(crate) struct ErasureFilter {
    /// The actor.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    user_id: Option<Vec<String>>,
    /// The session.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    session_id: Option<Vec<String>>,
    /// The coarse operation.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    action_type: Option<Vec<ActionType>>,
    /// The fine name, whole.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    action: Option<Vec<String>>,
    /// How it ended.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    outcome: Option<Vec<Outcome>>,
    /// How much attention it deserves.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    severity: Option<Vec<Severity>>,
    /// The resource's type.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    resource_type: Option<Vec<String>>,
    /// The resource's id.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    resource_id: Option<Vec<String>>,
    /// The id of a related resource.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    related_id: Option<Vec<String>>,
    /// From where; IPv4 or IPv6.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    ip_address: Option<Vec<String>>,
    /// The request of the application.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    request_id: Option<Vec<String>>,
    /// The trace.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    trace_id: Option<Vec<String>>,
    /// Happened at this time or later.
    #[oai(skip_serializing_if_is_none)]
    from: Option<DateTime<Utc>>,
    /// Happened before this time.
    #[oai(skip_serializing_if_is_none)]
    to: Option<DateTime<Utc>>,
    /// Accepted at this time or later.
    #[oai(skip_serializing_if_is_none)]
    created_from: Option<DateTime<Utc>>,
    /// Accepted before this time.
    #[oai(skip_serializing_if_is_none)]
    created_to: Option<DateTime<Utc>>,
    /// At this position or later.
    #[oai(validator(minimum(value = "0")), skip_serializing_if_is_none)]
    from_seq: Option<u64>,
    /// Before this position.
    #[oai(validator(minimum(value = "0")), skip_serializing_if_is_none)]
    to_seq: Option<u64>,
    /// Full text: all words must occur; "…" is a phrase.
    #[oai(skip_serializing_if_is_none)]
    q: Option<String>,
}

/// An erasure to be done: exactly one of `ids`, `user_id` and `filter` says of what.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields, example)]
pub(crate) struct NewErasure {
    /// Entries by id; those that the log never had are passed over.
    #[oai(
        validator(min_items = 1, max_items = 1000),
        skip_serializing_if_is_none
    )]
    ids: Option<Vec<Uuid>>,
    /// Everything that this actor did.
    #[oai(skip_serializing_if_is_none)]
    user_id: Option<String>,
    /// Entries that match.
    #[oai(skip_serializing_if_is_none)]
    filter: Option<ErasureFilter>,
    /// Which groups; all when absent.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    groups: Option<Vec<Group>>,
    /// On what grounds; `request` when absent.
    #[oai(
        validator(min_length = 1, max_length = 64, pattern = "^[a-z0-9._-]+$"),
        skip_serializing_if_is_none
    )]
    basis: Option<String>,
    /// Why; it stays in the log, and must not say whom it is about.
    #[oai(validator(max_length = 1024), skip_serializing_if_is_none)]
    reason: Option<String>,
    /// Only counts what is selected.
    #[oai(skip_serializing_if_is_none)]
    dry_run: Option<bool>,
}

impl poem_openapi::types::Example for NewErasure {
    fn example() -> Self {
        Self {
            ids: None,
            user_id: Some("ann@example.com".into()),
            filter: None,
            groups: None,
            basis: Some("gdpr-17".into()),
            reason: Some("request 4711".into()),
            dry_run: Some(true),
        }
    }
}

/// What an erasure would do.
#[derive(Debug, Object)]
pub(crate) struct ErasureCount {
    /// True: nothing was done.
    dry_run: bool,
    /// Entries that are selected.
    matching: u64,
    /// Those of them that still have one of the groups.
    erasable: u64,
}

vocabulary! {
    /// How far an erasure is.
    ErasureState { Running = "running", Done = "done" }
}

/// An erasure that was asked for, and how far it is.
#[derive(Debug, Object)]
pub(crate) struct Erasure {
    /// Its id.
    id: Uuid,
    /// How far it is.
    state: ErasureState,
    /// When it was asked for.
    requested_at: DateTime<Utc>,
    /// The size of the log then: entries at this position and later are not touched.
    below: u64,
    /// Where it goes on: a position of the log, or how many of the ids it is through with.
    next: u64,
    /// Where `next` ends.
    end: u64,
    /// Entries that lost something so far.
    entries: u64,
    /// The groups that are destroyed.
    groups: Vec<Group>,
    /// On what grounds.
    basis: String,
    /// Who asked.
    user_id: String,
    /// Why.
    #[oai(skip_serializing_if_is_none)]
    reason: Option<String>,
    /// What it last failed with; it is tried again.
    #[oai(skip_serializing_if_is_none)]
    last_error: Option<String>,
}

/// What an erasure did.
#[derive(Debug, Object)]
pub(crate) struct Erased {
    /// How many entries lost something.
    entries: u64,
    /// The control entries that say so; none when everything was gone before.
    receipts: Vec<Receipt>,
}

/// A tenant.
#[derive(Debug, Object)]
pub(crate) struct Tenant {
    /// Its id.
    id: Uuid,
    /// Its name.
    name: String,
    /// Its status.
    status: TenantStatus,
    /// When it was created.
    created_at: DateTime<Utc>,
    /// Whether its log's checkpoints, key and tiles are served without a credential.
    public_log: bool,
    /// That it is about to be deleted; not in lists.
    #[oai(skip_serializing_if_is_none)]
    ending: Option<TenantEnding>,
    /// What is left of it, of a deleted one; not in lists.
    #[oai(skip_serializing_if_is_none)]
    tombstone: Option<Tombstone>,
}

/// The end of a tenant that was asked for.
#[derive(Debug, Object)]
pub(crate) struct TenantEnding {
    /// When it was asked for.
    requested_at: DateTime<Utc>,
    /// Whether what is left of the log is archived first.
    archived: bool,
}

/// What is left of a deleted tenant.
#[derive(Debug, Object)]
pub(crate) struct Tombstone {
    /// When it was deleted.
    ended_at: DateTime<Utc>,
    /// How many entries its log had.
    size: u64,
    /// The root of the tree over all of them, base64.
    root: String,
    /// Under which name its checkpoints were signed. Absent where nothing was.
    #[oai(skip_serializing_if_is_none)]
    origin: Option<String>,
    /// The last checkpoint, which covers the whole log: a C2SP signed note. Absent where nothing was signed.
    #[oai(skip_serializing_if_is_none)]
    checkpoint: Option<String>,
    /// How many events went with it that had been accepted and were never appended: from the store's own
    /// queue, outbox and dead letters. Absent until its rows are gone, and where nobody counted.
    #[oai(skip_serializing_if_is_none)]
    unappended: Option<u64>,
}

/// Some of the tenants, by id.
#[derive(Debug, Object)]
pub(crate) struct TenantPage {
    /// The tenants.
    data: Vec<Tenant>,
    /// Where the next page begins; null at the end.
    next_cursor: Option<String>,
}

/// A tenant to be created.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields, example)]
pub(crate) struct NewTenant {
    /// Its id; made when it is absent.
    #[oai(skip_serializing_if_is_none)]
    id: Option<Uuid>,
    /// Its name; need not be unique.
    #[oai(validator(min_length = 1, max_length = 256))]
    name: String,
    /// Whether its log's checkpoints, key and tiles are served without a credential; false when absent.
    #[oai(skip_serializing_if_is_none)]
    public_log: Option<bool>,
}

impl poem_openapi::types::Example for NewTenant {
    fn example() -> Self {
        Self {
            id: None,
            name: "Example Ltd".into(),
            public_log: None,
        }
    }
}

/// What of a tenant is changed. What is absent stays.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields, example)]
pub(crate) struct TenantChange {
    /// A new name.
    #[oai(
        validator(min_length = 1, max_length = 256),
        skip_serializing_if_is_none
    )]
    name: Option<String>,
    /// A new status.
    #[oai(skip_serializing_if_is_none)]
    status: Option<NewTenantStatus>,
    /// Whether its log's checkpoints, key and tiles are served without a credential.
    #[oai(skip_serializing_if_is_none)]
    public_log: Option<bool>,
    /// Why; it stays in the tenant's log.
    #[oai(validator(max_length = 1024), skip_serializing_if_is_none)]
    reason: Option<String>,
}

impl poem_openapi::types::Example for TenantChange {
    fn example() -> Self {
        Self {
            name: None,
            status: Some(NewTenantStatus::Active),
            public_log: None,
            reason: Some("paid".into()),
        }
    }
}

/// How long a tenant's entries are kept. What is null is not set.
#[derive(Debug, Object)]
pub(crate) struct Retention {
    /// Entries that are older are pruned.
    keep_days: Option<u32>,
    /// Nobody prunes what is younger. An erasure is not bound by it.
    minimum_days: Option<u32>,
    /// Actions whose entries lose groups earlier.
    actions: Vec<ActionRetention>,
}

/// Entries of one action lose groups after so many days.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
pub(crate) struct ActionRetention {
    /// The action, whole; none of the log's own, which begin with `log.`.
    #[oai(validator(min_length = 1, max_length = 160, pattern = "^[A-Za-z0-9._:/-]+$"))]
    action: String,
    /// The age from which on the groups are erased; less than `keep_days`.
    #[oai(validator(minimum(value = "1"), maximum(value = "36500")))]
    days: u32,
    /// The groups; all when absent.
    #[oai(validator(min_items = 1), skip_serializing_if_is_none)]
    groups: Option<Vec<Group>>,
}

/// A retention to be set. What is absent is not set.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields, example)]
pub(crate) struct NewRetention {
    /// Entries that are older are pruned.
    #[oai(
        validator(minimum(value = "1"), maximum(value = "36500")),
        skip_serializing_if_is_none
    )]
    keep_days: Option<u32>,
    /// Nobody prunes what is younger; at most `keep_days`. An erasure is not bound by it.
    #[oai(
        validator(minimum(value = "1"), maximum(value = "36500")),
        skip_serializing_if_is_none
    )]
    minimum_days: Option<u32>,
    /// Actions whose entries lose groups earlier.
    #[oai(validator(max_items = 64), skip_serializing_if_is_none)]
    actions: Option<Vec<ActionRetention>>,
    /// Why; it stays in the tenant's log.
    #[oai(validator(max_length = 1024), skip_serializing_if_is_none)]
    reason: Option<String>,
}

impl poem_openapi::types::Example for NewRetention {
    fn example() -> Self {
        Self {
            keep_days: Some(3650),
            minimum_days: Some(365),
            actions: Some(vec![ActionRetention {
                action: "session.start".into(),
                days: 90,
                groups: Some(vec![Group::Actor, Group::Context]),
            }]),
            reason: Some("Policy of 2026".into()),
        }
    }
}

/// A retention that was set, or would be.
#[derive(Debug, Object)]
pub(crate) struct SetRetention {
    /// Entries that are older are pruned.
    keep_days: Option<u32>,
    /// Nobody prunes what is younger.
    minimum_days: Option<u32>,
    /// Actions whose entries lose groups earlier.
    actions: Vec<ActionRetention>,
    /// Whether it only says what would go.
    dry_run: bool,
    /// What it would take now; of a dry run only.
    #[oai(skip_serializing_if_is_none)]
    due: Option<RetentionDue>,
}

/// What a retention would take now.
#[derive(Debug, Object)]
pub(crate) struct RetentionDue {
    /// What would be pruned; absent without `keep_days`, or when it is refused.
    #[oai(skip_serializing_if_is_none)]
    pruned: Option<PrefixDue>,
    /// How many entries would lose groups, for each of `actions`; counting ends after 10,000.
    erased: Vec<u64>,
    /// Why nothing goes now: a legal hold. Null when nothing is in the way.
    refused: Option<String>,
}

/// What would be pruned.
#[derive(Debug, Object)]
pub(crate) struct PrefixDue {
    /// Entries below this position would be gone.
    below: u64,
    /// How many would go.
    entries: u64,
}

/// What keeps a tenant's entries from being erased and pruned.
#[derive(Debug, Object)]
pub(crate) struct LegalHold {
    /// Its id.
    id: Uuid,
    /// Its name, which whoever is refused by it is shown.
    name: String,
    /// Why it was placed.
    reason: Option<String>,
    /// Who placed it.
    placed_by: Option<String>,
    /// When it was placed.
    placed_at: DateTime<Utc>,
    /// When it was released; null while it holds.
    released_at: Option<DateTime<Utc>>,
}

/// Some of a tenant's legal holds, newest first.
#[derive(Debug, Object)]
pub(crate) struct LegalHoldPage {
    /// The holds.
    data: Vec<LegalHold>,
    /// Where the next page begins; null at the end.
    next_cursor: Option<String>,
}

/// A legal hold to be placed.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields, example)]
pub(crate) struct NewLegalHold {
    /// Its id; made when it is absent.
    #[oai(skip_serializing_if_is_none)]
    id: Option<Uuid>,
    /// Its name, a case number say. Whoever is refused by it is shown it.
    #[oai(validator(min_length = 1, max_length = 256))]
    name: String,
    /// Why; it stays in the tenant's log.
    #[oai(validator(max_length = 1024), skip_serializing_if_is_none)]
    reason: Option<String>,
}

impl poem_openapi::types::Example for NewLegalHold {
    fn example() -> Self {
        Self {
            id: None,
            name: "Case 7/2026".into(),
            reason: None,
        }
    }
}

/// An API key without its secret.
#[derive(Debug, Object)]
pub(crate) struct ApiKey {
    /// Its id.
    id: Uuid,
    /// The tenant that it belongs to.
    tenant_id: Uuid,
    /// What it is for.
    name: String,
    /// Its role.
    role: Role,
    /// What it may do, as a scope.
    scope: String,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// From when on it is refused; null is never.
    expires_at: Option<DateTime<Utc>>,
    /// When it was last used, to about a minute.
    last_used_at: Option<DateTime<Utc>>,
}

/// A new API key.
#[derive(Debug, Object)]
pub(crate) struct MadeApiKey {
    /// Its id.
    id: Uuid,
    /// The tenant that it belongs to.
    tenant_id: Uuid,
    /// What it is for.
    name: String,
    /// Its role.
    role: Role,
    /// What it may do, as a scope.
    scope: String,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// From when on it is refused; null is never.
    expires_at: Option<DateTime<Utc>>,
    /// Null.
    last_used_at: Option<DateTime<Utc>>,
    /// The key itself, shown this once.
    key: String,
}

/// The tenant's API keys, oldest first.
#[derive(Debug, Object)]
pub(crate) struct ApiKeys {
    /// The keys.
    data: Vec<ApiKey>,
    /// Where the next page begins; null at the end.
    next_cursor: Option<String>,
}

/// An API key to be made.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields, example)]
pub(crate) struct NewApiKey {
    /// What it is for.
    #[oai(validator(min_length = 1, max_length = 256))]
    name: String,
    /// Its role.
    role: Role,
    /// Fewer permissions than the role's, as a scope: `audit:read audit:export`.
    #[oai(skip_serializing_if_is_none)]
    scope: Option<String>,
    /// From when on it is refused; absent is never.
    #[oai(skip_serializing_if_is_none)]
    expires_at: Option<DateTime<Utc>>,
}

impl poem_openapi::types::Example for NewApiKey {
    fn example() -> Self {
        Self {
            name: "billing".into(),
            role: Role::Writer,
            scope: None,
            expires_at: None,
        }
    }
}

/// Events that could not be appended.
#[derive(Debug, Object)]
pub(crate) struct DeadLetters {
    /// The letters, oldest first: those of the queue, then parked rows of the outbox.
    data: Vec<DeadLetter>,
}

/// An event that could not be appended. Its content is not shown: an operator is not a reader.
#[derive(Debug, Object)]
pub(crate) struct DeadLetter {
    /// Where it waits: `queue` or `outbox`.
    source: LetterSource,
    /// What to redrive it by.
    handle: String,
    /// Whose it is.
    tenant_id: Uuid,
    /// The event's id.
    id: Uuid,
    /// Why it was given up.
    reason: String,
    /// When it was given up, or, of the outbox, recorded.
    at: DateTime<Utc>,
}

vocabulary! {
    /// Where a dead letter waits.
    LetterSource { Queue = "queue", Outbox = "outbox" }
}

/// Which dead letters are tried again.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
pub(crate) struct Redrive {
    /// Those of one source; both when absent.
    #[oai(skip_serializing_if_is_none)]
    source: Option<LetterSource>,
    /// Their handles, which need `source`; all when absent.
    #[oai(skip_serializing_if_is_none)]
    handles: Option<Vec<String>>,
}

/// How many dead letters are tried again.
#[derive(Debug, Object)]
pub(crate) struct Redriven {
    /// How many.
    redriven: u64,
}

/// How the last rebuild of the search index that this server was asked for goes.
#[derive(Debug, Object)]
pub(crate) struct Reindex {
    /// `none` before the first.
    status: ReindexStatus,
    /// When it began.
    #[oai(skip_serializing_if_is_none)]
    started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[oai(skip_serializing_if_is_none)]
    finished_at: Option<DateTime<Utc>>,
    /// Why it failed.
    #[oai(skip_serializing_if_is_none)]
    error: Option<String>,
}

vocabulary! {
    /// How a rebuild goes.
    ReindexStatus { None = "none", Running = "running", Done = "done", Failed = "failed" }
}

/// How the server is.
#[derive(Debug, Object)]
pub(crate) struct Health {
    /// `ok`, `degraded` or `unavailable`.
    status: String,
    /// What is away; absent when nothing is.
    #[oai(skip_serializing_if_is_none)]
    missing: Option<Vec<String>>,
}
