//! `GET/POST /tenants`, `GET/PATCH/DELETE /tenants/{id}`.

use std::sync::Arc;

use audit_core::tlog::json::write_string;
use audit_core::{
    Ending, ErrorKind, Tenant, TenantFilter, TenantId, TenantStatus, TenantUpdate, Tombstone,
};
use poem_openapi::param::Path;
use poem_openapi::{ApiResponse, OpenApi};

use crate::api::PathId;
use crate::api::filter::{limit_parameter, read_limit};
use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::auth::Caller;
use crate::body::JsonText;
use crate::problem::{Problem, ProblemKind, Reading, Refused, Writing};
use crate::query::{Parameter, Parameters, Params, Reader};

/// Tenants.
pub(crate) struct Tenants(pub(crate) Arc<App>);

#[derive(ApiResponse)]
pub(crate) enum TenantAnswer {
    /// The tenant.
    #[oai(status = 200)]
    Tenant(JsonBody<schema::Tenant>),
}

#[derive(ApiResponse)]
pub(crate) enum EndAnswer {
    /// The end is asked for, now or before, and goes on without the caller. `GET /tenants/{id}` shows when
    /// it is done.
    #[oai(status = 202)]
    Ending(JsonBody<schema::Tenant>),
    /// The tenant is deleted.
    #[oai(status = 200)]
    Deleted(JsonBody<schema::Tenant>),
}

#[derive(ApiResponse)]
pub(crate) enum NewTenantAnswer {
    /// The tenant was created.
    #[oai(status = 201)]
    Created(
        JsonBody<schema::Tenant>,
        /// Where it can be read.
        #[oai(header = "Location")]
        String,
    ),
}

#[derive(ApiResponse)]
pub(crate) enum TenantsAnswer {
    /// Some of the tenants.
    #[oai(status = 200)]
    Page(JsonBody<schema::TenantPage>),
}

/// Which tenants are listed.
#[derive(Debug)]
pub(crate) struct Asked {
    filter: TenantFilter,
    after: Option<TenantId>,
    limit: usize,
}

impl Parameters for Asked {
    fn list() -> Vec<Parameter> {
        let statuses = TenantStatus::ALL.map(TenantStatus::as_str);
        vec![
            Parameter::text("name", "Of exactly this name."),
            Parameter::choice("status", &statuses, "Of this status."),
            limit_parameter(),
            Parameter::text("cursor", "`next_cursor` of the page before."),
        ]
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        let mut filter = TenantFilter::all();
        filter.name = reader.text("name");
        filter.status = reader.parsed("status");
        let limit = read_limit(reader);
        Self {
            filter,
            after: reader.parsed("cursor"),
            limit,
        }
    }
}

/// How a tenant ends.
#[derive(Debug)]
pub(crate) struct End {
    without_archive: bool,
    reason: Option<String>,
}

impl Parameters for End {
    fn list() -> Vec<Parameter> {
        let archive = "`none`: nothing is archived, and the evidence goes with the tenant.";
        vec![
            Parameter::choice("archive", &["none"], archive),
            Parameter::text(
                "reason",
                "Why; the tenant's log keeps it, and its archive with it.",
            ),
        ]
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        let archive = reader.text("archive");
        if archive.as_ref().is_some_and(|archive| archive != "none") {
            reader.fault("archive", "none is expected");
        }
        Self {
            without_archive: archive.is_some(),
            reason: reader.text("reason"),
        }
    }
}

fn print(out: &mut String, tenant: &Tenant) {
    put!(out, "{{\"id\":\"{}\",\"name\":", tenant.id);
    write_string(out, &tenant.name);
    put!(
        out,
        ",\"status\":\"{}\",\"created_at\":\"{}\",\"public_log\":{}}}",
        tenant.status.as_str(),
        tenant.created_at,
        tenant.public_log
    );
}

fn printed(tenant: &Tenant) -> JsonBody<schema::Tenant> {
    let mut body = String::with_capacity(256);
    print(&mut body, tenant);
    JsonBody::new(body)
}

/// With the end that was asked for, or what is left.
fn printed_whole(
    tenant: &Tenant,
    ending: Option<&Ending>,
    tombstone: Option<&Tombstone>,
) -> JsonBody<schema::Tenant> {
    let mut body = String::with_capacity(1_024);
    print(&mut body, tenant);
    // Its closing brace.
    body.pop();
    if let Some(ending) = ending {
        put!(
            body,
            ",\"ending\":{{\"requested_at\":\"{}\",\"archived\":{}}}",
            ending.requested_at,
            ending.is_archived
        );
    }
    if let Some(tombstone) = tombstone {
        put!(
            body,
            ",\"tombstone\":{{\"ended_at\":\"{}\",\"size\":{},\"root\":\"{}\"",
            tombstone.ended_at,
            tombstone.size,
            tombstone.root.to_base64()
        );
        let signed = [
            ("origin", &tombstone.origin),
            ("checkpoint", &tombstone.checkpoint),
        ];
        for (name, value) in signed {
            if let Some(value) = value {
                put!(body, ",\"{name}\":");
                write_string(&mut body, value);
            }
        }
        // It grows until then.
        if let Some(events) = tombstone.unappended.filter(|_| tombstone.is_swept) {
            put!(body, ",\"unappended\":{events}");
        }
        body.push('}');
    }
    body.push('}');
    JsonBody::new(body)
}

impl Tenants {
    /// A tenant as it is now.
    async fn whole(
        &self,
        id: TenantId,
    ) -> Result<(TenantStatus, JsonBody<schema::Tenant>), Problem> {
        let log = self.0.log();
        let tenant = log.tenants().tenant(id).await?.ok_or_else(missing)?;
        let (ending, tombstone) = match tenant.status {
            TenantStatus::Deleted => (None, log.tombstone(id).await?),
            _ => (log.ending(id).await?, None),
        };
        let whole = printed_whole(&tenant, ending.as_ref(), tombstone.as_ref());
        Ok((tenant.status, whole))
    }
}

#[OpenApi(prefix_path = "/api/v1")]
impl Tenants {
    /// List tenants
    ///
    /// Needs `admin` across tenants. In the order of their ids.
    #[oai(
        path = "/tenants",
        method = "get",
        operation_id = "list_tenants",
        tag = "Tag::Tenants"
    )]
    async fn list(
        &self,
        caller: Caller,
        asked: Params<Asked>,
    ) -> Result<TenantsAnswer, Refused<Reading>> {
        self.0.gate.admit_operator(&caller)?;
        let Asked {
            filter,
            after,
            limit,
        } = asked.0;
        let store = self.0.log().tenants();
        // One more than the page, to know whether there is another.
        let mut tenants = store.tenants(&filter, after, limit + 1).await?;
        let more = tenants.len() > limit;
        tenants.truncate(limit);
        let mut body = String::from("{\"data\":[");
        for (i, tenant) in tenants.iter().enumerate() {
            if i > 0 {
                body.push(',');
            }
            print(&mut body, tenant);
        }
        match tenants.last().filter(|_| more) {
            Some(last) => {
                put!(body, "],\"next_cursor\":\"{}\"}}", last.id);
            }
            None => body.push_str("],\"next_cursor\":null}"),
        }
        Ok(TenantsAnswer::Page(JsonBody::new(body)))
    }

    /// Create a tenant
    ///
    /// Needs `admin` across tenants.
    #[oai(
        path = "/tenants",
        method = "post",
        operation_id = "create_tenant",
        tag = "Tag::Tenants"
    )]
    async fn create(
        &self,
        caller: Caller,
        body: JsonText<schema::NewTenant>,
    ) -> Result<NewTenantAnswer, Refused<Writing>> {
        self.0.gate.admit_operator(&caller)?;
        let asked = body.object(&["id", "name", "public_log"])?;
        let id = asked.parsed::<TenantId>("id")?;
        let name = asked.string("name")?.unwrap_or_default();
        let log = self.0.log();
        let tenant = match asked.flag("public_log")? {
            true => log.create_public_tenant(id, &name).await?,
            false => log.create_tenant(id, &name).await?,
        };
        let location = format!("/api/v1/tenants/{}", tenant.id);
        Ok(NewTenantAnswer::Created(printed(&tenant), location))
    }

    /// Read a tenant
    ///
    /// Needs `admin`. `ending` is there while the tenant is about to be deleted; of a deleted tenant there is
    /// a `tombstone`, and its id in place of its name.
    #[oai(
        path = "/tenants/:id",
        method = "get",
        operation_id = "get_tenant",
        tag = "Tag::Tenants"
    )]
    async fn get(
        &self,
        caller: Caller,
        /// The tenant's id.
        id: Path<PathId>,
    ) -> Result<TenantAnswer, Refused<Reading>> {
        let id: TenantId = id.0.parse()?;
        self.0.gate.admit_admin(&caller, id)?;
        let (_, tenant) = self.whole(id).await?;
        Ok(TenantAnswer::Tenant(tenant))
    }

    /// Change a tenant
    ///
    /// Needs `admin` across tenants. `inactive` takes no writes, `suspended` nothing at all. With
    /// `public_log` everyone may read the log's checkpoints, key and tiles. The change is an entry of its
    /// log.
    #[oai(
        path = "/tenants/:id",
        method = "patch",
        operation_id = "update_tenant",
        tag = "Tag::Tenants"
    )]
    async fn update(
        &self,
        caller: Caller,
        /// The tenant's id.
        id: Path<PathId>,
        body: JsonText<schema::TenantChange>,
    ) -> Result<TenantAnswer, Refused<Writing>> {
        let id: TenantId = id.0.parse()?;
        self.0.gate.admit_admin(&caller, id)?;
        // A tenant's own admin could open what an operator closed.
        self.0.gate.admit_operator(&caller)?;
        let asked = body.object(&["name", "status", "public_log", "reason"])?;
        let mut update = TenantUpdate::default();
        update.name = asked.string("name")?;
        update.status = match asked.string("status")? {
            None => None,
            Some(text) => Some(
                TenantStatus::ALL
                    .into_iter()
                    .find(|s| s.as_str() == text)
                    .ok_or_else(|| {
                        Problem::field("status", "active, inactive or suspended is expected")
                    })?,
            ),
        };
        update.public_log = asked.choice("public_log")?;
        let reason = asked.string("reason")?;
        let subject = &caller.principal.subject;
        let tenant = match self
            .0
            .log()
            .update_tenant(id, update, subject, reason)
            .await
        {
            Err(e) if e.kind() == ErrorKind::UnknownTenant => {
                return Err(missing().into());
            }
            outcome => outcome?,
        };
        Ok(TenantAnswer::Tenant(printed(&tenant)))
    }

    /// Delete a tenant
    ///
    /// Needs `admin` across tenants. The tenant takes no more at once. Then, in the background, what is left
    /// of its log goes to the archive as evidence, and everything of it is removed but a tombstone: its id is
    /// refused for ever. It can't be taken back, and asking again changes nothing, `archive` neither. Refused
    /// while a legal hold is open, and without an archive unless `archive=none` says that the evidence may
    /// go. The days for which the tenant's entries are kept at least refuse no end. From then on no erasure and
    /// no prune of the tenant's is begun (409), and to its own credentials it is as if it were deleted (410).
    #[oai(
        path = "/tenants/:id",
        method = "delete",
        operation_id = "delete_tenant",
        tag = "Tag::Tenants"
    )]
    async fn end(
        &self,
        caller: Caller,
        /// The tenant's id.
        id: Path<PathId>,
        asked: Params<End>,
    ) -> Result<EndAnswer, Refused<Writing>> {
        let id: TenantId = id.0.parse()?;
        self.0.gate.admit_admin(&caller, id)?;
        self.0.gate.admit_operator(&caller)?;
        let log = self.0.log();
        let tenant = log.tenants().tenant(id).await?.ok_or_else(missing)?;
        if tenant.status != TenantStatus::Deleted && log.ending(id).await?.is_none() {
            let End {
                without_archive,
                reason,
            } = asked.0;
            if !without_archive && log.archived().is_none() {
                return Err(Problem::new(ProblemKind::Refused, NO_ARCHIVE).into());
            }
            let subject = &caller.principal.subject;
            match log.end_tenant(id, subject, reason, !without_archive).await {
                Ok(_) => {}
                // By another request, a moment ago.
                Err(e) if e.kind() == ErrorKind::TenantDeleted => {}
                Err(e) if e.kind() == ErrorKind::Invalid => {
                    return Err(Problem::from(e).of_parameters().into());
                }
                Err(e) => return Err(e.into()),
            }
        }
        let (status, tenant) = self.whole(id).await?;
        Ok(match status {
            TenantStatus::Deleted => EndAnswer::Deleted(tenant),
            _ => EndAnswer::Ending(tenant),
        })
    }
}

/// Why a tenant is not deleted where nothing is archived.
const NO_ARCHIVE: &str = "no archive is configured (AUDIT_ARCHIVE_URL) to keep the tenant's evidence in; with \
    archive=none it goes without it";

fn missing() -> Problem {
    Problem::new(ProblemKind::NotFound, "there is no such tenant")
}
