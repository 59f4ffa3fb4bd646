//! `audit tenants`.

use audit_client::{Client, Tenant};
use audit_core::{TenantFilter, TenantUpdate};
use futures_util::StreamExt as _;

use crate::args::TenantsCommand;
use crate::failure::{Failure, Outcome};
use crate::present::Out;

pub(crate) async fn run(
    client: &Client,
    mut out: Out,
    command: TenantsCommand,
) -> Result<Outcome, Failure> {
    match command {
        TenantsCommand::List { name, status } => {
            let mut filter = TenantFilter::all();
            filter.name = name;
            filter.status = status;
            let mut tenants = client.all_tenants(filter);
            let mut rows = Vec::new();
            while let Some(tenant) = tenants.next().await {
                let tenant = tenant?;
                if out.json {
                    out.value(&tenant)?;
                } else {
                    rows.push(row(&tenant));
                }
            }
            if !out.json {
                out.table(&["ID", "NAME", "STATUS", "CREATED AT"], rows)?;
            }
        }
        TenantsCommand::Create { name, id } => {
            show(&mut out, &client.create_tenant(id, &name).await?)?;
        }
        TenantsCommand::Get { id } => show(&mut out, &client.get_tenant(id).await?)?,
        TenantsCommand::SetStatus { id, status, reason } => {
            let update = TenantUpdate::default().status(status);
            show(
                &mut out,
                &client.update_tenant(id, &update, reason.as_deref()).await?,
            )?;
        }
        TenantsCommand::Rename { id, name, reason } => {
            let update = TenantUpdate::default().name(name);
            show(
                &mut out,
                &client.update_tenant(id, &update, reason.as_deref()).await?,
            )?;
        }
    }
    out.flush()?;
    Ok(Outcome::Complete)
}

fn show(out: &mut Out, tenant: &Tenant) -> Result<(), Failure> {
    if out.json {
        return out.value(tenant);
    }
    out.text(&row(tenant).join("  "))
}

fn row(tenant: &Tenant) -> Vec<String> {
    vec![
        tenant.id.to_string(),
        tenant.name.clone(),
        tenant.status.to_string(),
        tenant.created_at.clone(),
    ]
}
