//! Decide about access by the application's own rules: support staff may read a tenant's log while
//! that tenant has a ticket open.
#![allow(clippy::print_stdout)] // an example shows what it does

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use audit_core::memory::MemoryStore;
use audit_core::{
    AccessRequest, AuditLog, Decision, ErrorKind, Event, Filter, PageRequest, Permission,
    Permissions, Principal, Recorder, Result, TenantAuthorizer, TenantId,
};

#[derive(Debug, Default)]
struct SupportDesk {
    open_tickets: Mutex<HashSet<TenantId>>,
}

#[async_trait]
impl TenantAuthorizer for SupportDesk {
    async fn authorize(&self, request: &AccessRequest) -> Result<Decision> {
        if request.permissions != Permission::Read.into() {
            return Ok(Decision::deny("support only reads"));
        }
        let tickets = self
            .open_tickets
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(if tickets.contains(&request.tenant) {
            Decision::Allow
        } else {
            Decision::deny("the tenant has no ticket open")
        })
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let desk = Arc::new(SupportDesk::default());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .authorizer(desk.clone())
        .build();
    let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;
    log.recorder(tenant)
        .record(Event::delete("report", "r-7").user("ann"))
        .await?;

    let ben = Principal::across_tenants("ben", Permissions::ALL);
    let refused = log.authorize(&ben, tenant, Permission::Read).await;
    assert_eq!(
        refused.map_err(|e| e.kind()).err(),
        Some(ErrorKind::Forbidden)
    );

    desk.open_tickets
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(tenant);
    let scope = log.authorize(&ben, tenant, Permission::Read).await?;
    let page = log
        .tenant(scope.clone())
        .list(&Filter::new(), &PageRequest::first())
        .await?;
    println!("{}", page.items[0].to_json());

    // The scope reads, and nothing else.
    let denied = log.tenant(scope).record(Event::view("report", "r-7")).await;
    assert_eq!(
        denied.map_err(|e| e.kind()).err(),
        Some(ErrorKind::Forbidden)
    );
    Ok(())
}
