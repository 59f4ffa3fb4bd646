//! `GET /health/live`, `GET /health/ready`.

use std::sync::Arc;
use std::time::Duration;

use audit_core::tlog::json::write_string;
use poem_openapi::{ApiResponse, OpenApi};

use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::problem::{Probing, Refused};

/// Whether the server is up.
pub(crate) struct HealthApi(pub(crate) Arc<App>);

/// How long the store may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(ApiResponse)]
pub(crate) enum LiveAnswer {
    /// The process answers.
    #[oai(status = 200)]
    Live(JsonBody<schema::Health>),
}

#[derive(ApiResponse)]
pub(crate) enum ReadyAnswer {
    /// Everything is there.
    #[oai(status = 200)]
    Ready(JsonBody<schema::Health>),
    /// Something is away; `missing` names it.
    #[oai(status = 503)]
    Missing(JsonBody<schema::Health>),
}

impl HealthApi {
    async fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let ping = tokio::time::timeout(PING_TIMEOUT, self.0.log().log_store().ping()).await;
        if !matches!(ping, Ok(Ok(()))) {
            missing.push("store".to_owned());
        }
        match self.0.workers() {
            Some(workers) => missing.extend(
                workers
                    .status()
                    .into_iter()
                    .filter(|worker| !worker.running)
                    .map(|worker| format!("worker {}", worker.name)),
            ),
            None if self.0.runs_workers => missing.push("workers".to_owned()),
            None => {}
        }
        if self.0.stopping.is_cancelled() {
            missing.push("the server stops".to_owned());
        }
        missing
    }
}

#[OpenApi]
impl HealthApi {
    /// Whether the process answers
    #[oai(
        path = "/health/live",
        method = "get",
        operation_id = "live",
        tag = "Tag::Operations"
    )]
    async fn live(&self) -> Result<LiveAnswer, Refused<Probing>> {
        Ok(LiveAnswer::Live(JsonBody::new(
            "{\"status\":\"ok\"}".into(),
        )))
    }

    /// Whether everything is there
    ///
    /// Asks the store and looks at the workers.
    #[oai(
        path = "/health/ready",
        method = "get",
        operation_id = "ready",
        tag = "Tag::Operations"
    )]
    async fn ready(&self) -> Result<ReadyAnswer, Refused<Probing>> {
        let missing = self.missing().await;
        if missing.is_empty() {
            return Ok(ReadyAnswer::Ready(JsonBody::new(
                "{\"status\":\"ok\"}".into(),
            )));
        }
        let mut body = String::from("{\"status\":\"unavailable\",\"missing\":[");
        for (i, part) in missing.iter().enumerate() {
            if i > 0 {
                body.push(',');
            }
            write_string(&mut body, part);
        }
        body.push_str("]}");
        Ok(ReadyAnswer::Missing(JsonBody::new(body)))
    }
}
