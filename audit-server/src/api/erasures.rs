//! `POST /erasures`, `GET /erasures/{id}`, and the short form for one entry, `DELETE /logs/cleanup/{id}`.

use std::sync::Arc;
use std::time::Duration;

use audit_core::tlog::json::write_string;
use audit_core::{
    Basis, EntryErased, ErasureId, ErasureJob, ErasureRequest, ErrorKind, EventId, Filter, Group,
    Permission, Permissions, Selection,
};
use poem_openapi::param::Path;
use poem_openapi::{ApiResponse, OpenApi};

use crate::api::PathId;
use crate::api::prunes::basis;
use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::auth::Caller;
use crate::body::{JsonText, Object};
use crate::problem::{Problem, Reading, Refused, Writing};

/// Erasing, by request and by single entries.
pub(crate) struct Erasures(pub(crate) Arc<App>);

#[derive(ApiResponse)]
pub(crate) enum ErasureAnswer {
    /// It is kept, and a worker takes it on.
    #[oai(status = 202)]
    Begun(
        JsonBody<schema::Erasure>,
        /// Where to ask how it goes.
        #[oai(header = "Location")]
        String,
    ),
    /// What a dry run found.
    #[oai(status = 200)]
    Counted(JsonBody<schema::ErasureCount>),
}

#[derive(ApiResponse)]
pub(crate) enum OneErasure {
    /// The erasure.
    #[oai(status = 200)]
    Erasure(JsonBody<schema::Erasure>),
}

#[derive(ApiResponse)]
pub(crate) enum EraseAnswer {
    /// What was destroyed; a repeat finds nothing left.
    #[oai(status = 200)]
    Erased(JsonBody<schema::Erased>),
    /// It is kept and goes on: an archive has still to follow, or the entry isn't in the log and may be on
    /// its way to it.
    #[oai(status = 202)]
    Begun(
        JsonBody<schema::Erasure>,
        /// Where to ask how it goes.
        #[oai(header = "Location")]
        String,
    ),
}

/// For how long the answer to an erasure of one entry waits for its end.
const PATIENCE: Duration = Duration::from_secs(10);

const FIELDS: [&str; 7] = [
    "ids", "user_id", "filter", "groups", "basis", "reason", "dry_run",
];

/// Which entries: by exactly one of three.
fn selection(asked: &Object<'_>) -> Result<Selection, Problem> {
    let given: Vec<&str> = FIELDS[..3]
        .iter()
        .copied()
        .filter(|name| asked.raw(name).is_some())
        .collect();
    match given[..] {
        ["ids"] => {
            let ids = asked.strings("ids")?.unwrap_or_default();
            let ids = ids.iter().enumerate().map(|(i, id)| {
                let bad = |e| Problem::field("ids", format!("item {i}: {e}"));
                id.parse::<EventId>().map_err(bad)
            });
            Ok(Selection::ids(ids.collect::<Result<_, _>>()?))
        }
        ["user_id"] => Ok(Selection::user(
            asked.string("user_id")?.unwrap_or_default(),
        )),
        ["filter"] => {
            let filter = Filter::from_json(asked.raw("filter").unwrap_or_default());
            filter
                .map(Selection::matching)
                .map_err(|error| match error.kind() {
                    ErrorKind::Malformed => Problem::field("filter", "an object is expected"),
                    _ => Problem::from(error).within("filter"),
                })
        }
        [] => Err(Problem::field(
            "ids",
            "one of ids, user_id and filter is required",
        )),
        [first, second, ..] => Err(Problem::field(second, format!("stands beside {first}"))),
        [_] => Err(Problem::field("ids", "not a selection")),
    }
}

fn groups(asked: &Object<'_>) -> Result<Option<Vec<Group>>, Problem> {
    let Some(names) = asked.strings("groups")? else {
        return Ok(None);
    };
    let parse = |name: String| {
        name.parse::<Group>()
            .map_err(|_| Problem::field("groups", format!("{name} is no group")))
    };
    names
        .into_iter()
        .map(parse)
        .collect::<Result<_, _>>()
        .map(Some)
}

/// What is erased on whose behalf and how far it is; never whom it is about.
fn write_job(job: &ErasureJob) -> String {
    let mut body = String::with_capacity(512);
    put!(
        body,
        "{{\"id\":\"{}\",\"state\":\"{}\",\"requested_at\":\"{}\",\"below\":{},\"next\":{},\
         \"end\":{},\"entries\":{},\"groups\":[",
        job.id,
        job.state.as_str(),
        job.requested_at,
        job.below,
        job.next,
        job.end,
        job.entries
    );
    for (i, group) in job.groups.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        put!(body, "{comma}\"{group}\"");
    }
    put!(body, "],\"basis\":\"{}\",\"user_id\":", job.basis);
    write_string(&mut body, &job.subject);
    for (name, value) in [("reason", &job.reason), ("last_error", &job.last_error)] {
        if let Some(value) = value {
            put!(body, ",\"{name}\":");
            write_string(&mut body, value);
        }
    }
    body.push('}');
    body
}

/// What is answered of an erasure that goes on, and where to ask about it.
fn begun(job: &ErasureJob) -> (JsonBody<schema::Erasure>, String) {
    let place = format!("/api/v1/erasures/{}", job.id);
    (JsonBody::new(write_job(job)), place)
}

#[OpenApi(prefix_path = "/api/v1")]
impl Erasures {
    /// Erase entries by id, by user or by filter
    ///
    /// Needs `erase`. Destroys groups of the selected entries' fields. The leaves stay, so that proofs
    /// still hold, and control entries say what was destroyed. A worker does it step by step; entries
    /// that are recorded later are not touched. By `ids` or `user_id` it reaches events that were
    /// accepted before and still wait in a queue or an outbox, or were given up there, too. With an archive
    /// it reaches entries that were pruned and archived. Refused (409), a dry run too, while a legal hold is
    /// open, and once the end of the tenant was asked for. A dry run by `user_id` or `filter` needs `read`
    /// as well.
    #[oai(
        path = "/erasures",
        method = "post",
        operation_id = "erase",
        tag = "Tag::Cleanup"
    )]
    async fn create(
        &self,
        caller: Caller,
        body: JsonText<schema::NewErasure>,
    ) -> Result<ErasureAnswer, Refused<Writing>> {
        let log = self.0.gate.enter(&caller, Permission::Erase, &[]).await?;
        let asked = body.object(&FIELDS)?;
        let basis: Basis = basis(asked.string("basis")?)?;
        let mut request = ErasureRequest::new(selection(&asked)?, basis);
        if let Some(groups) = groups(&asked)? {
            request = request.groups(&groups);
        }
        request.reason = asked.string("reason")?;
        if asked.flag("dry_run")? {
            let mut log = log;
            // The count tells what entries hold.
            if matches!(request.selection, Selection::Matching(_)) {
                let needed = Permissions::of(&[Permission::Erase, Permission::Read]);
                let tenant = log.scope().tenant();
                let scope = self.0.log().authorize(&caller.principal, tenant, needed);
                log = self.0.log().tenant(scope.await?);
            }
            let count = log.count_erasure(&request).await?;
            return Ok(ErasureAnswer::Counted(JsonBody::new(format!(
                "{{\"dry_run\":true,\"matching\":{},\"erasable\":{}}}",
                count.matching, count.erasable
            ))));
        }
        let job = log.request_erasure(request).await?;
        let (body, place) = begun(&job);
        Ok(ErasureAnswer::Begun(body, place))
    }

    /// Read an erasure
    ///
    /// Needs `erase`. How far it is, on what grounds and on whose behalf it is done; never whom it is
    /// about. With an archive it is `done` when what was erased has left that as well.
    #[oai(
        path = "/erasures/:id",
        method = "get",
        operation_id = "get_erasure",
        tag = "Tag::Cleanup"
    )]
    async fn get(
        &self,
        caller: Caller,
        /// Its id.
        id: Path<PathId>,
    ) -> Result<OneErasure, Refused<Reading>> {
        let id: ErasureId = id.0.parse()?;
        let log = self.0.gate.enter(&caller, Permission::Erase, &[]).await?;
        let job = log.erasure(id).await?;
        Ok(OneErasure::Erasure(JsonBody::new(write_job(&job))))
    }

    /// Erase one entry
    ///
    /// Needs `erase`. Destroys all groups of the entry's fields, as `POST /erasures` by `ids` does: in the log,
    /// in an archive, and of an event that was accepted and is still in a queue or an outbox, as soon as it
    /// arrives. The leaf stays, so that proofs still hold, and a control entry says what was destroyed.
    /// Answers when that is done, or after ten seconds with the erasure that goes on. An id that isn't in
    /// the log is 404 only while queue and outbox are empty; what was accepted under it before is
    /// erased all the same. Refused (409) as `POST /erasures` is.
    #[oai(
        path = "/logs/cleanup/:id",
        method = "delete",
        operation_id = "erase_entry",
        tag = "Tag::Cleanup"
    )]
    async fn erase(
        &self,
        caller: Caller,
        /// The entry's id.
        id: Path<PathId>,
    ) -> Result<EraseAnswer, Refused<Writing>> {
        let id: EventId = id.0.parse()?;
        let log = self.0.gate.enter(&caller, Permission::Erase, &[]).await?;
        let erased = match log.erase_entry(id, basis(None)?, PATIENCE).await? {
            EntryErased::Done(erased) => erased,
            EntryErased::Begun(job) => {
                let (body, place) = begun(&job);
                return Ok(EraseAnswer::Begun(body, place));
            }
        };
        let mut body = format!("{{\"entries\":{},\"receipts\":[", erased.entries);
        for (i, receipt) in erased.receipts.iter().enumerate() {
            if i > 0 {
                body.push(',');
            }
            body.push_str(&receipt.to_json());
        }
        body.push_str("]}");
        Ok(EraseAnswer::Erased(JsonBody::new(body)))
    }
}
