//! `GET /admin/dead-letters`, `POST /admin/dead-letters/redrive`, `POST /admin/reindex`,
//! `GET /admin/reindex`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use audit_core::tlog::json::write_string;
use audit_core::{Error, ErrorKind, EventId, Redrive, TenantId, Timestamp};
use poem_openapi::{ApiResponse, OpenApi};

use crate::api::filter::{limit_parameter, read_limit};
use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::auth::Caller;
use crate::body::JsonText;
use crate::problem::{Problem, ProblemKind, Reading, Refused, Writing};
use crate::query::{Parameter, Parameters, Params, Reader};

/// Operating the deployment.
pub(crate) struct Admin(pub(crate) Arc<App>);

#[derive(ApiResponse)]
pub(crate) enum LettersAnswer {
    /// The dead letters.
    #[oai(status = 200)]
    Letters(JsonBody<schema::DeadLetters>),
}

#[derive(ApiResponse)]
pub(crate) enum RedriveAnswer {
    /// They are tried again.
    #[oai(status = 200)]
    Redriven(JsonBody<schema::Redriven>),
}

#[derive(ApiResponse)]
pub(crate) enum ReindexAnswer {
    /// How it goes.
    #[oai(status = 200)]
    Asked(JsonBody<schema::Reindex>),
}

#[derive(ApiResponse)]
pub(crate) enum StartAnswer {
    /// It is under way.
    #[oai(status = 202)]
    Started(
        JsonBody<schema::Reindex>,
        /// Where to ask how it goes.
        #[oai(header = "Location")]
        String,
    ),
}

/// The rebuild of the search index that this server does, or did last.
#[derive(Debug, Default)]
pub(crate) struct Reindex(Mutex<Rebuild>);

#[derive(Debug, Default, Clone)]
enum Rebuild {
    #[default]
    None,
    Running(Timestamp),
    Done(Timestamp, Timestamp),
    Failed(Timestamp, Timestamp, Error),
}

impl Reindex {
    fn lock(&self) -> MutexGuard<'_, Rebuild> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn body(&self) -> JsonBody<schema::Reindex> {
        let now = self.lock().clone();
        let (status, times, error) = match &now {
            Rebuild::None => ("none", [None, None], None),
            Rebuild::Running(began) => ("running", [Some(began), None], None),
            Rebuild::Done(began, ended) => ("done", [Some(began), Some(ended)], None),
            Rebuild::Failed(began, ended, error) => {
                ("failed", [Some(began), Some(ended)], Some(error))
            }
        };
        let mut body = format!("{{\"status\":\"{status}\"");
        for (name, time) in ["started_at", "finished_at"].into_iter().zip(times) {
            if let Some(time) = time {
                put!(body, ",\"{name}\":\"{time}\"");
            }
        }
        if let Some(error) = error {
            body.push_str(",\"error\":");
            write_string(&mut body, &error.to_string());
        }
        body.push('}');
        JsonBody::new(body)
    }
}

/// Rebuilds the index unless that is under way.
fn start_reindex(app: &Arc<App>) -> Result<(), Problem> {
    let Some(index) = app.log().search().cloned() else {
        let detail = "this server has no search index";
        return Err(Problem::new(ProblemKind::NotFound, detail));
    };
    let began = app.log().clock().now();
    {
        let mut now = app.reindex.lock();
        if matches!(*now, Rebuild::Running(_)) {
            return Ok(());
        }
        *now = Rebuild::Running(began);
    }
    let (app, store) = (Arc::clone(app), Arc::clone(app.log().log_store()));
    tokio::spawn(async move {
        // In a task of its own, so that a panic ends in an answer, too.
        let mut rebuilding = tokio::spawn(async move { index.rebuild(&store).await });
        let outcome = tokio::select! {
            () = app.stopping.cancelled() => return rebuilding.abort(),
            outcome = &mut rebuilding => outcome.unwrap_or_else(|panic| {
                Err(Error::new(ErrorKind::Internal, "the rebuild panicked").with_source(panic))
            }),
        };
        let ended = app.log().clock().now();
        *app.reindex.lock() = match outcome {
            Ok(()) => Rebuild::Done(began, ended),
            Err(error) => {
                tracing::warn!(%error, "the search index was not rebuilt");
                Rebuild::Failed(began, ended, error)
            }
        };
    });
    Ok(())
}

/// How many letters are shown.
#[derive(Debug)]
pub(crate) struct Asked {
    limit: usize,
}

impl Parameters for Asked {
    fn list() -> Vec<Parameter> {
        vec![limit_parameter()]
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            limit: read_limit(reader),
        }
    }
}

struct Letters {
    body: String,
    count: usize,
}

impl Letters {
    fn add(
        &mut self,
        source: &str,
        handle: &str,
        of: (TenantId, EventId),
        reason: &str,
        at: Timestamp,
    ) {
        self.body.push_str(if self.count > 0 { ",{" } else { "{" });
        self.count += 1;
        put!(self.body, "\"source\":\"{source}\",\"handle\":");
        write_string(&mut self.body, handle);
        put!(
            self.body,
            ",\"tenant_id\":\"{}\",\"id\":\"{}\",\"reason\":",
            of.0,
            of.1
        );
        write_string(&mut self.body, reason);
        put!(self.body, ",\"at\":\"{at}\"}}");
    }
}

#[OpenApi(prefix_path = "/api/v1")]
impl Admin {
    /// List dead letters
    ///
    /// Needs `admin` across tenants. Events that were accepted and that the log refused: of the
    /// queue, and parked rows of the outbox. They stay until they are redriven.
    #[oai(
        path = "/admin/dead-letters",
        method = "get",
        operation_id = "dead_letters",
        tag = "Tag::Operations"
    )]
    async fn letters(
        &self,
        caller: Caller,
        asked: Params<Asked>,
    ) -> Result<LettersAnswer, Refused<Reading>> {
        self.0.gate.admit_operator(&caller)?;
        let limit = asked.0.limit;
        let mut letters = Letters {
            body: String::from("{\"data\":["),
            count: 0,
        };
        if let Some(queue) = self.0.log().queue() {
            for letter in queue.dead_letters(limit).await? {
                let of = (letter.message.tenant, letter.message.id);
                letters.add("queue", &letter.handle, of, &letter.reason, letter.died_at);
            }
        }
        if let Some(outbox) = self.0.log().outbox()
            && letters.count < limit
        {
            for parked in outbox.parked(limit - letters.count).await? {
                let row = &parked.row;
                let of = (row.tenant, row.id);
                letters.add(
                    "outbox",
                    &row.row.to_string(),
                    of,
                    &parked.reason,
                    row.recorded_at,
                );
            }
        }
        letters.body.push_str("]}");
        Ok(LettersAnswer::Letters(JsonBody::new(letters.body)))
    }

    /// Try dead letters again
    ///
    /// Needs `admin` across tenants. All of them, those of one source, or those named.
    #[oai(
        path = "/admin/dead-letters/redrive",
        method = "post",
        operation_id = "redrive",
        tag = "Tag::Operations"
    )]
    async fn redrive(
        &self,
        caller: Caller,
        body: JsonText<schema::Redrive>,
    ) -> Result<RedriveAnswer, Refused<Writing>> {
        self.0.gate.admit_operator(&caller)?;
        let asked = body.object(&["source", "handles"])?;
        let handles = asked.strings("handles")?;
        let (queued, parked) = match asked.string("source")?.as_deref() {
            None if handles.is_some() => {
                return Err(Problem::field("source", "required with handles").into());
            }
            None => (Some(Redrive::All), Some(Redrive::All)),
            Some("queue") => (Some(handles.map_or(Redrive::All, Redrive::Only)), None),
            Some("outbox") => {
                let rows = handles
                    .map(|handles| handles.iter().map(|h| h.parse::<i64>()).collect())
                    .transpose()
                    .map_err(|_| Problem::field("handles", "an outbox's handles are numbers"))?;
                (None, Some(rows.map_or(Redrive::All, Redrive::Only)))
            }
            Some(_) => return Err(Problem::field("source", "queue or outbox is expected").into()),
        };
        let mut redriven = 0;
        if let (Some(letters), Some(queue)) = (queued, self.0.log().queue()) {
            redriven += queue.redrive(&letters).await?;
        }
        if let (Some(rows), Some(outbox)) = (parked, self.0.log().outbox()) {
            redriven += outbox.redrive(&rows).await?;
        }
        Ok(RedriveAnswer::Redriven(JsonBody::new(format!(
            "{{\"redriven\":{redriven}}}"
        ))))
    }

    /// Rebuild the search index
    ///
    /// Needs `admin` across tenants. The index is built anew from the logs of all tenants while
    /// recording and searching go on. With one under way in this server nothing more is begun; where
    /// several servers do so at once they do the same work, which is safe. What a server had begun when
    /// it stopped is asked for again.
    #[oai(
        path = "/admin/reindex",
        method = "post",
        operation_id = "start_reindex",
        tag = "Tag::Operations"
    )]
    async fn start_reindex(&self, caller: Caller) -> Result<StartAnswer, Refused<Writing>> {
        self.0.gate.admit_operator(&caller)?;
        start_reindex(&self.0)?;
        Ok(StartAnswer::Started(
            self.0.reindex.body(),
            "/api/v1/admin/reindex".into(),
        ))
    }

    /// Ask how the rebuild of the search index goes
    ///
    /// Needs `admin` across tenants. The last one that was begun in this server since its start.
    #[oai(
        path = "/admin/reindex",
        method = "get",
        operation_id = "reindex",
        tag = "Tag::Operations"
    )]
    async fn reindex(&self, caller: Caller) -> Result<ReindexAnswer, Refused<Reading>> {
        self.0.gate.admit_operator(&caller)?;
        Ok(ReindexAnswer::Asked(self.0.reindex.body()))
    }
}
