//! Record from a poem handler, and answer with the faults when an event is refused.
#![allow(clippy::print_stdout)] // an example shows what it does

use std::sync::Arc;

use audit_core::memory::MemoryStore;
use audit_core::{
    AuditLog, ErrorKind, Event, Filter, PageRequest, Recorder, TenantId, TenantScope,
};
use poem::http::StatusCode;
use poem::web::{Data, Path};
use poem::{Endpoint, EndpointExt, Request, Route, handler, post};

const TENANT: &str = "0190a000-0000-7000-8000-000000000001";

#[handler]
async fn approve(
    Path(invoice): Path<String>,
    request: &Request,
    Data(log): Data<&AuditLog>,
) -> poem::Result<String> {
    // Stands for the application's own session: whose request this is, and in which tenant.
    let user = request.header("x-user").unwrap_or("nobody");
    let tenant: TenantId = TENANT
        .parse()
        .map_err(|_| poem::Error::from_status(StatusCode::UNAUTHORIZED))?;

    let event = Event::update("invoice", invoice)
        .action("invoice.approve")
        .user(user);
    let receipt = log.recorder(tenant).record(event).await.map_err(|error| {
        let status = match error.kind() {
            ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            _ if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        poem::Error::from_string(error.to_string(), status)
    })?;
    Ok(receipt.to_json())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let log = AuditLog::builder(Arc::new(MemoryStore::new())).build();
    let app = Route::new()
        .at("/invoices/:id/approve", post(approve))
        .data(log.clone());

    let good = Request::builder()
        .method(poem::http::Method::POST)
        .uri_str("/invoices/inv-1/approve")
        .header("x-user", "ann")
        .finish();
    println!(
        "{}",
        app.get_response(good)
            .await
            .into_body()
            .into_string()
            .await?
    );

    let long = Request::builder()
        .method(poem::http::Method::POST)
        .uri_str(format!("/invoices/{}/approve", "x".repeat(600)))
        .finish();
    let refused = app.get_response(long).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    println!("{}", refused.into_body().into_string().await?);

    let scope = TenantScope::trusted(TENANT.parse()?, "example");
    let page = log
        .tenant(scope)
        .list(&Filter::new(), &PageRequest::first())
        .await?;
    assert_eq!(page.items.len(), 1);
    Ok(())
}
