//! Record from an axum handler. The handler is given a recorder for the tenant that its own
//! authentication found; it can't name another one.
#![allow(clippy::print_stdout)] // an example shows what it does

use std::sync::Arc;

use audit_core::memory::MemoryStore;
use audit_core::{
    AuditLog, ErrorKind, Event, Filter, PageRequest, Recorder, TenantId, TenantScope,
};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn approve(
    State(log): State<AuditLog>,
    Path(invoice): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, (StatusCode, String)> {
    // Stands for the application's own session: whose request this is, and in which tenant.
    let user = headers
        .get("x-user")
        .and_then(|v| v.to_str().ok())
        .unwrap_or("nobody");
    let tenant = TENANT
        .parse::<TenantId>()
        .map_err(|e| (StatusCode::UNAUTHORIZED, e.to_string()))?;

    let event = Event::update("invoice", invoice)
        .action("invoice.approve")
        .user(user);
    let receipt = log.recorder(tenant).record(event).await.map_err(|error| {
        let status = match error.kind() {
            ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            _ if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, error.to_string())
    })?;
    Ok(Json(
        json!({"approved": true, "audit": {"id": receipt.id, "seq": receipt.seq}}),
    ))
}

const TENANT: &str = "0190a000-0000-7000-8000-000000000001";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let log = AuditLog::builder(Arc::new(MemoryStore::new())).build();
    let app = Router::new()
        .route("/invoices/{id}/approve", post(approve))
        .with_state(log.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let mut client = tokio::net::TcpStream::connect(address).await?;
    client
        .write_all(
            b"POST /invoices/inv-1/approve HTTP/1.1\r\nhost: localhost\r\nx-user: ann\r\n\
              content-length: 0\r\nconnection: close\r\n\r\n",
        )
        .await?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    println!("{answer}");

    let scope = TenantScope::trusted(TENANT.parse()?, "example");
    let page = log
        .tenant(scope)
        .list(&Filter::new(), &PageRequest::first())
        .await?;
    assert_eq!(page.items[0].fields.user_id.as_deref(), Some("ann"));
    server.abort();
    Ok(())
}
