//! `GET /health/live`, `GET /health/ready`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_core::tlog::json::write_string;
use audit_core::{TenantId, TenantScope};
use poem_openapi::{ApiResponse, OpenApi};
use tokio::sync::Mutex;

use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::problem::{Probing, Refused};

/// Whether the server is up.
pub(crate) struct HealthApi(pub(crate) Arc<App>);

/// What queue and index answered is told again for so long: they are asked over a network, and may
/// cost something each time.
const FRESH: Duration = Duration::from_secs(1);

/// What of queue and index was away when they were last asked, and when that was. Whoever asks
/// meanwhile waits for the same answer.
#[derive(Debug, Default)]
pub(crate) struct Away(Mutex<Option<(Instant, Vec<String>)>>);

/// How long each part may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(ApiResponse)]
pub(crate) enum LiveAnswer {
    /// The process answers.
    #[oai(status = 200)]
    Live(JsonBody<schema::Health>),
}

#[derive(ApiResponse)]
pub(crate) enum ReadyAnswer {
    /// Events are recorded and entries read. `degraded` when the queue or the index is away, or the
    /// guard stops a log, which `missing` then names.
    #[oai(status = 200)]
    Ready(JsonBody<schema::Health>),
    /// The store or a worker is away; `missing` names what.
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

    /// What is away without keeping an event from being recorded or an entry from being read.
    async fn degraded(&self) -> Vec<String> {
        let mut asked = self.0.away.0.lock().await;
        if let Some((at, away)) = &*asked
            && at.elapsed() < FRESH
        {
            return away.clone();
        }
        let away = self.ask().await;
        *asked = Some((Instant::now(), away.clone()));
        away
    }

    async fn ask(&self) -> Vec<String> {
        let queue = async {
            match self.0.log().queue() {
                Some(queue) => queue.depth().await.is_ok(),
                None => true,
            }
        };
        // Nobody's tenant: the answer says only that there is one.
        let nobody = TenantScope::trusted(TenantId::new(uuid::Uuid::nil()), "readiness");
        let search = async {
            match self.0.log().search() {
                Some(index) => index.indexed_through(&nobody).await.is_ok(),
                None => true,
            }
        };
        let (queue, search) = futures_util::join!(
            tokio::time::timeout(PING_TIMEOUT, queue),
            tokio::time::timeout(PING_TIMEOUT, search),
        );
        let mut missing = Vec::new();
        if !queue.unwrap_or(false) {
            missing.push("queue".to_owned());
        }
        if !search.unwrap_or(false) {
            missing.push("search".to_owned());
        }
        missing
    }
}

fn body(status: &str, missing: &[String]) -> JsonBody<schema::Health> {
    let mut body = format!("{{\"status\":\"{status}\"");
    if !missing.is_empty() {
        body.push_str(",\"missing\":[");
        for (i, part) in missing.iter().enumerate() {
            if i > 0 {
                body.push(',');
            }
            write_string(&mut body, part);
        }
        body.push(']');
    }
    body.push('}');
    JsonBody::new(body)
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
    /// Asks the store, the queue and the index, and looks at the workers. What the queue and the index
    /// answer counts for a second. `guard` is missing while a log takes nothing, or the deployment log is
    /// not signed, because an old copy of it was restored; everything can be read.
    #[oai(
        path = "/health/ready",
        method = "get",
        operation_id = "ready",
        tag = "Tag::Operations"
    )]
    async fn ready(&self) -> Result<ReadyAnswer, Refused<Probing>> {
        let (mut missing, degraded) = futures_util::join!(self.missing(), self.degraded());
        let is_ready = missing.is_empty();
        missing.extend(degraded);
        if self.0.log().stopped_by_guard() > 0 {
            missing.push("guard".to_owned());
        }
        let status = match (is_ready, missing.is_empty()) {
            (true, true) => "ok",
            (true, false) => "degraded",
            (false, _) => "unavailable",
        };
        let body = body(status, &missing);
        Ok(match is_ready {
            true => ReadyAnswer::Ready(body),
            false => ReadyAnswer::Missing(body),
        })
    }
}
