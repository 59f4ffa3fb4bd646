//! `GET/PUT /tenants/{id}/retention`, `GET/POST /tenants/{id}/legal-holds`,
//! `DELETE /tenants/{id}/legal-holds/{hold_id}`.

use std::sync::Arc;

use audit_core::retention::{LegalHold, Retention, RetentionDue};
use audit_core::tlog::json::write_string;
use audit_core::{Act, Error, ErrorKind, EventId, TenantId};
use poem_openapi::param::Path;
use poem_openapi::{ApiResponse, OpenApi};
use uuid::Uuid;

use crate::api::PathId;
use crate::api::filter::{limit_parameter, read_limit};
use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::auth::Caller;
use crate::body::JsonText;
use crate::problem::{Problem, ProblemKind, Reading, Refused, Writing};
use crate::query::{Parameter, Parameters, Params, Reader};

/// How long entries are kept, and legal holds.
pub(crate) struct RetentionApi(pub(crate) Arc<App>);

#[derive(ApiResponse)]
pub(crate) enum RetentionAnswer {
    /// The tenant's retention.
    #[oai(status = 200)]
    Retention(JsonBody<schema::Retention>),
}

#[derive(ApiResponse)]
pub(crate) enum SetRetentionAnswer {
    /// The retention that was set, or that would be.
    #[oai(status = 200)]
    Retention(JsonBody<schema::SetRetention>),
}

#[derive(ApiResponse)]
pub(crate) enum HoldsAnswer {
    /// Some of the holds.
    #[oai(status = 200)]
    Page(JsonBody<schema::LegalHoldPage>),
}

#[derive(ApiResponse)]
pub(crate) enum PlacedAnswer {
    /// The hold was placed.
    #[oai(status = 201)]
    Placed(JsonBody<schema::LegalHold>),
}

#[derive(ApiResponse)]
pub(crate) enum ReleasedAnswer {
    /// The hold is released.
    #[oai(status = 200)]
    Released(JsonBody<schema::LegalHold>),
}

/// Whether anything is set.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    dry_run: bool,
}

impl Parameters for Rehearsal {
    fn list() -> Vec<Parameter> {
        vec![Parameter::choice(
            "dry_run",
            &["true", "false"],
            "Only says what the retention would take now.",
        )]
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            dry_run: reader.parsed("dry_run").unwrap_or(false),
        }
    }
}

/// Which holds are listed.
#[derive(Debug)]
pub(crate) struct Listed {
    limit: usize,
    after: Option<EventId>,
}

impl Parameters for Listed {
    fn list() -> Vec<Parameter> {
        vec![
            limit_parameter(),
            Parameter::text("cursor", "`next_cursor` of the page before."),
        ]
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            limit: read_limit(reader),
            after: reader.parsed("cursor"),
        }
    }
}

/// Why a hold is released.
#[derive(Debug)]
pub(crate) struct Release {
    reason: Option<String>,
}

impl Parameters for Release {
    fn list() -> Vec<Parameter> {
        vec![Parameter::text(
            "reason",
            "Why; it stays in the tenant's log.",
        )]
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            reason: reader.text("reason"),
        }
    }
}

fn print_due(out: &mut String, due: &RetentionDue) {
    out.push('{');
    if let Some(pruned) = &due.pruned {
        put!(
            out,
            "\"pruned\":{{\"below\":{},\"entries\":{}}},",
            pruned.below,
            pruned.entries
        );
    }
    out.push_str("\"erased\":[");
    for (i, count) in due.erased.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        put!(out, "{comma}{count}");
    }
    out.push_str("],\"refused\":");
    print_text(out, due.refused.as_deref());
    out.push('}');
}

fn print_text(out: &mut String, text: Option<&str>) {
    match text {
        Some(text) => write_string(out, text),
        None => out.push_str("null"),
    }
}

fn print_hold(out: &mut String, hold: &LegalHold) {
    put!(out, "{{\"id\":\"{}\",\"name\":", hold.id);
    write_string(out, &hold.name);
    out.push_str(",\"reason\":");
    print_text(out, hold.reason.as_deref());
    out.push_str(",\"placed_by\":");
    print_text(out, hold.placed_by.as_deref());
    put!(
        out,
        ",\"placed_at\":\"{}\",\"released_at\":",
        hold.placed_at
    );
    match hold.released_at {
        Some(at) => put!(out, "\"{at}\"}}"),
        None => out.push_str("null}"),
    }
}

fn printed(hold: &LegalHold) -> JsonBody<schema::LegalHold> {
    let mut body = String::with_capacity(256);
    print_hold(&mut body, hold);
    JsonBody::new(body)
}

/// A tenant in a path that isn't there is a thing that isn't there.
fn problem(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::UnknownTenant => Problem::new(ProblemKind::NotFound, "there is no such tenant"),
        _ => error.into(),
    }
}

impl RetentionApi {
    /// Admits an operator to change what protects a tenant's log, of which its own admin may not rid
    /// it.
    fn admit_operator(&self, caller: &Caller, tenant: TenantId) -> Result<(), Problem> {
        self.0.gate.admit_admin(caller, tenant)?;
        self.0.gate.admit_operator(caller)
    }
}

#[OpenApi(prefix_path = "/api/v1")]
impl RetentionApi {
    /// Read a tenant's retention
    ///
    /// Needs `admin`. Without one, entries are kept for ever.
    #[oai(
        path = "/tenants/:id/retention",
        method = "get",
        operation_id = "get_retention",
        tag = "Tag::Tenants"
    )]
    async fn retention(
        &self,
        caller: Caller,
        /// The tenant's id.
        id: Path<PathId>,
    ) -> Result<RetentionAnswer, Refused<Reading>> {
        let id: TenantId = id.0.parse()?;
        self.0.gate.admit_admin(&caller, id)?;
        let retention = self.0.log().retention(id).await.map_err(problem)?;
        Ok(RetentionAnswer::Retention(JsonBody::new(
            retention.to_json(),
        )))
    }

    /// Set a tenant's retention
    ///
    /// Needs `admin` across tenants. Replaces it whole: what is absent is no longer set. Days count
    /// from `created_at`. The change is an entry of the tenant's log; setting what is set already is
    /// not. What is due goes within the hour. A rule for an action erases, and is not bound by
    /// `minimum_days`.
    #[oai(
        path = "/tenants/:id/retention",
        method = "put",
        operation_id = "set_retention",
        tag = "Tag::Tenants"
    )]
    async fn set_retention(
        &self,
        caller: Caller,
        /// The tenant's id.
        id: Path<PathId>,
        asked: Params<Rehearsal>,
        body: JsonText<schema::NewRetention>,
    ) -> Result<SetRetentionAnswer, Refused<Writing>> {
        let id: TenantId = id.0.parse()?;
        self.admit_operator(&caller, id)?;
        let fields = body.object(&["keep_days", "minimum_days", "actions", "reason"])?;
        let raw = |name| fields.raw(name).unwrap_or("null");
        let retention = Retention::parse(&format!(
            "{{\"keep_days\":{},\"minimum_days\":{},\"actions\":{}}}",
            raw("keep_days"),
            raw("minimum_days"),
            raw("actions")
        ))?;
        let reason = fields.string("reason")?;
        let mut out = retention.to_json();
        // Its end, to which more comes.
        out.pop();
        put!(out, ",\"dry_run\":{}", asked.0.dry_run);
        if asked.0.dry_run {
            // What setting it would refuse is refused here too.
            Act::check_reason(reason.as_deref())?;
            let due = self.0.log().retention_due(id, &retention).await;
            out.push_str(",\"due\":");
            print_due(&mut out, &due.map_err(problem)?);
        } else {
            let subject = &caller.principal.subject;
            let set = self.0.log().set_retention(id, &retention, subject, reason);
            set.await.map_err(problem)?;
        }
        out.push('}');
        Ok(SetRetentionAnswer::Retention(JsonBody::new(out)))
    }

    /// List a tenant's legal holds
    ///
    /// Needs `admin`. Open and released ones, newest first.
    #[oai(
        path = "/tenants/:id/legal-holds",
        method = "get",
        operation_id = "list_legal_holds",
        tag = "Tag::Tenants"
    )]
    async fn holds(
        &self,
        caller: Caller,
        /// The tenant's id.
        id: Path<PathId>,
        asked: Params<Listed>,
    ) -> Result<HoldsAnswer, Refused<Reading>> {
        let id: TenantId = id.0.parse()?;
        self.0.gate.admit_admin(&caller, id)?;
        let Listed { limit, after } = asked.0;
        let after = after.map(EventId::into_uuid);
        // One more than the page, to know whether there is another.
        let holds = self.0.log().holds(id, after, limit + 1).await;
        let mut holds = holds.map_err(problem)?;
        let more = holds.len() > limit;
        holds.truncate(limit);
        let mut body = String::from("{\"data\":[");
        for (i, hold) in holds.iter().enumerate() {
            if i > 0 {
                body.push(',');
            }
            print_hold(&mut body, hold);
        }
        match holds.last().filter(|_| more) {
            Some(last) => {
                put!(body, "],\"next_cursor\":\"{}\"}}", last.id);
            }
            None => body.push_str("],\"next_cursor\":null}"),
        }
        Ok(HoldsAnswer::Page(JsonBody::new(body)))
    }

    /// Place a legal hold
    ///
    /// Needs `admin` across tenants. From then on erasures and prunes of the tenant's log are refused
    /// (409), whoever asks, until every hold is released; recording and reading go on. It is an entry
    /// of the log.
    #[oai(
        path = "/tenants/:id/legal-holds",
        method = "post",
        operation_id = "place_legal_hold",
        tag = "Tag::Tenants"
    )]
    async fn place(
        &self,
        caller: Caller,
        /// The tenant's id.
        id: Path<PathId>,
        body: JsonText<schema::NewLegalHold>,
    ) -> Result<PlacedAnswer, Refused<Writing>> {
        let tenant: TenantId = id.0.parse()?;
        self.admit_operator(&caller, tenant)?;
        let asked = body.object(&["id", "name", "reason"])?;
        let id = asked.parsed::<EventId>("id")?.map(EventId::into_uuid);
        let name = asked.string("name")?.unwrap_or_default();
        let reason = asked.string("reason")?;
        let subject = &caller.principal.subject;
        let placed = self.0.log().place_hold(tenant, id, &name, subject, reason);
        Ok(PlacedAnswer::Placed(printed(
            &placed.await.map_err(problem)?,
        )))
    }

    /// Release a legal hold
    ///
    /// Needs `admin` across tenants. It stays in the list, and its release is an entry of the log.
    /// Releasing it again changes nothing.
    #[oai(
        path = "/tenants/:id/legal-holds/:hold_id",
        method = "delete",
        operation_id = "release_legal_hold",
        tag = "Tag::Tenants"
    )]
    async fn release(
        &self,
        caller: Caller,
        /// The tenant's id.
        id: Path<PathId>,
        /// The hold's id.
        hold_id: Path<PathId>,
        asked: Params<Release>,
    ) -> Result<ReleasedAnswer, Refused<Writing>> {
        let tenant: TenantId = id.0.parse()?;
        let hold: EventId = hold_id.0.parse_as("hold_id")?;
        self.admit_operator(&caller, tenant)?;
        let hold: Uuid = hold.into_uuid();
        let subject = &caller.principal.subject;
        let reason = asked.0.reason;
        let released = self.0.log().release_hold(tenant, hold, subject, reason);
        let hold = released.await.map_err(|e| match e.kind() {
            ErrorKind::Invalid => Problem::from(e).of_parameters(),
            _ => problem(e),
        })?;
        Ok(ReleasedAnswer::Released(printed(&hold)))
    }
}
