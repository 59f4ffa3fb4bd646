//! `GET/POST /tenants`, `GET/PATCH /tenants/{id}`.

use std::sync::Arc;

use audit_core::tlog::json::write_string;
use audit_core::{Tenant, TenantFilter, TenantId, TenantStatus, TenantUpdate};
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
    /// Needs `admin`.
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
        let tenant = self
            .0
            .log()
            .tenants()
            .tenant(id)
            .await?
            .ok_or_else(missing)?;
        Ok(TenantAnswer::Tenant(printed(&tenant)))
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
            Err(e) if e.kind() == audit_core::ErrorKind::UnknownTenant => {
                return Err(missing().into());
            }
            outcome => outcome?,
        };
        Ok(TenantAnswer::Tenant(printed(&tenant)))
    }
}

fn missing() -> Problem {
    Problem::new(ProblemKind::NotFound, "there is no such tenant")
}
