//! `audit tenants`.

use audit_client::{Client, LegalHold, RetentionDue, Tenant};
use audit_core::{Retention, TenantFilter, TenantUpdate};
use futures_util::StreamExt as _;

use crate::args::{LogArg, TenantsCommand};
use crate::failure::{Failure, Outcome};
use crate::present::Out;
use crate::removal::agreed;

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
                out.table(&["ID", "NAME", "STATUS", "CREATED AT", "LOG"], rows)?;
            }
        }
        TenantsCommand::Create {
            name,
            id,
            public_log,
        } => {
            let created = match public_log {
                true => client.create_public_tenant(id, &name).await?,
                false => client.create_tenant(id, &name).await?,
            };
            show(&mut out, &created)?;
        }
        TenantsCommand::Get { id } => show(&mut out, &client.get_tenant(id).await?)?,
        TenantsCommand::SetStatus { id, status, reason } => {
            let update = TenantUpdate::default().status(status);
            show(
                &mut out,
                &client.update_tenant(id, &update, reason.as_deref()).await?,
            )?;
        }
        TenantsCommand::SetLog { id, log, reason } => {
            let update = TenantUpdate::default().public_log(log == LogArg::Public);
            show(
                &mut out,
                &client.update_tenant(id, &update, reason.as_deref()).await?,
            )?;
        }
        TenantsCommand::Retention { id } => {
            show_retention(&mut out, &client.retention(id).await?)?;
        }
        TenantsCommand::SetRetention {
            id,
            keep_days,
            minimum_days,
            erase,
            dry_run,
            reason,
        } => {
            let mut retention = Retention::forever();
            retention.keep_days = keep_days;
            retention.minimum_days = minimum_days;
            retention.actions = erase;
            if dry_run {
                let due = client.retention_due(id, &retention).await?;
                show_due(&mut out, &retention, &due)?;
            } else {
                client
                    .set_retention(id, &retention, reason.as_deref())
                    .await?;
                show_retention(&mut out, &retention)?;
            }
        }
        TenantsCommand::Holds { id } => {
            let (mut holds, mut cursor) = (Vec::new(), None);
            loop {
                let page = client.legal_holds(id, cursor.as_deref()).await?;
                holds.extend(page.items);
                cursor = page.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
            if out.json {
                for hold in &holds {
                    out.value(hold)?;
                }
            } else {
                let header = ["ID", "NAME", "PLACED AT", "PLACED BY", "RELEASED AT"];
                out.table(&header, holds.iter().map(hold_row).collect())?;
            }
        }
        TenantsCommand::Hold { id, name, reason } => {
            let placed = client.place_hold(id, None, &name, reason.as_deref());
            show_hold(&mut out, &placed.await?)?;
        }
        TenantsCommand::Release { id, hold, reason } => {
            let released = client.release_hold(id, hold, reason.as_deref());
            show_hold(&mut out, &released.await?)?;
        }
        TenantsCommand::Delete {
            id,
            no_archive,
            reason,
            yes,
        } => {
            if !yes {
                let tenant = client.get_tenant(id).await?;
                let question = format!(
                    "Delete {} ({id}) and everything of it, for ever? [y/N] ",
                    tenant.name
                );
                if !agreed(&question).await? {
                    out.hint("nothing was deleted");
                    return Ok(Outcome::Partial);
                }
            }
            let ended = client.end_tenant(id, !no_archive, reason.as_deref());
            show(&mut out, &ended.await?)?;
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

fn show_retention(out: &mut Out, retention: &Retention) -> Result<(), Failure> {
    if out.json {
        return out.text(&retention.to_json());
    }
    let mut lines = Vec::new();
    match retention.keep_days {
        Some(days) => lines.push(format!("pruned after {days} days")),
        None => lines.push("kept for ever".to_owned()),
    }
    if let Some(days) = retention.minimum_days {
        lines.push(format!("not pruned before {days} days"));
    }
    for rule in &retention.actions {
        let groups: Vec<&str> = rule.groups.iter().map(|group| group.as_str()).collect();
        let groups = groups.join(", ");
        lines.push(format!(
            "{}: {groups} erased after {} days",
            rule.action, rule.days
        ));
    }
    lines.iter().try_for_each(|line| out.text(line))
}

fn show_due(out: &mut Out, retention: &Retention, due: &RetentionDue) -> Result<(), Failure> {
    if out.json {
        return out.value(due);
    }
    let mut lines = Vec::new();
    if let Some(pruned) = &due.pruned {
        lines.push(format!(
            "{} entries would be pruned, up to position {}",
            pruned.entries, pruned.below
        ));
    }
    for (rule, count) in retention.actions.iter().zip(&due.erased) {
        lines.push(format!(
            "{}: {count} entries would lose groups",
            rule.action
        ));
    }
    if let Some(refused) = &due.refused {
        lines.push(format!("nothing goes now: {refused}"));
    }
    if lines.is_empty() {
        lines.push("nothing goes".to_owned());
    }
    lines.iter().try_for_each(|line| out.text(line))
}

fn show_hold(out: &mut Out, hold: &LegalHold) -> Result<(), Failure> {
    if out.json {
        return out.value(hold);
    }
    out.text(&hold_row(hold).join("  "))
}

fn hold_row(hold: &LegalHold) -> Vec<String> {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    vec![
        hold.id.to_string(),
        hold.name.clone(),
        hold.placed_at.clone(),
        or_dash(&hold.placed_by),
        or_dash(&hold.released_at),
    ]
}

fn row(tenant: &Tenant) -> Vec<String> {
    let status = match &tenant.ending {
        Some(_) => "ending".to_owned(),
        None => tenant.status.to_string(),
    };
    vec![
        tenant.id.to_string(),
        tenant.name.clone(),
        status,
        tenant.created_at.clone(),
        if tenant.public_log {
            "public"
        } else {
            "private"
        }
        .to_owned(),
    ]
}
