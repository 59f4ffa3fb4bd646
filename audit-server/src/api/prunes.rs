//! `POST /prunes`, `GET /prunes/{id}`, and the short form `DELETE /logs/cleanup`.

use std::sync::Arc;

use audit_core::tlog::json::{members, write_string};
use audit_core::{Basis, EventId, Kind, Permission, PruneBound, TenantLog, TenantScope, Timestamp};
use poem_openapi::param::Path;
use poem_openapi::{ApiResponse, OpenApi};

use crate::api::PathId;
use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::auth::Caller;
use crate::body::JsonText;
use crate::problem::{Problem, ProblemKind, Reading, Refused, Writing};
use crate::query::{Parameter, Parameters, Params, Reader};

/// Pruning.
pub(crate) struct Prunes(pub(crate) Arc<App>);

const MAX_DAYS: u64 = 36_500;
/// On what grounds, when the caller names none.
const DEFAULT_BASIS: &str = "request";

#[derive(ApiResponse)]
pub(crate) enum PruneAnswer {
    /// It is done, and the control entry says so.
    #[oai(status = 201)]
    Done(
        JsonBody<schema::Pruned>,
        /// Where the prune can be read.
        #[oai(header = "Location")]
        String,
    ),
    /// Nothing was there to prune, or it was a dry run.
    #[oai(status = 200)]
    Nothing(JsonBody<schema::Pruned>),
}

#[derive(ApiResponse)]
pub(crate) enum CleanupAnswer {
    /// What went.
    #[oai(status = 200)]
    Pruned(JsonBody<schema::Pruned>),
}

#[derive(ApiResponse)]
pub(crate) enum OnePrune {
    /// The prune.
    #[oai(status = 200)]
    Prune(JsonBody<schema::Prune>),
}

/// Which prefix goes.
#[derive(Debug)]
pub(crate) struct Cleanup {
    before: Option<Timestamp>,
    older_than_days: Option<u64>,
}

impl Parameters for Cleanup {
    fn list() -> Vec<Parameter> {
        vec![
            Parameter::format(
                "before",
                "date-time",
                "Entries accepted before this time go.",
            ),
            Parameter::number(
                "older_than_days",
                1,
                Some(MAX_DAYS),
                "Instead of `before`: entries accepted more than so many days ago go.",
            ),
        ]
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        let asked = Self {
            before: reader.time("before"),
            older_than_days: reader.number("older_than_days", 1..=MAX_DAYS),
        };
        if asked.before.is_some() && asked.older_than_days.is_some() {
            reader.fault("older_than_days", "stands beside before");
        }
        asked
    }
}

/// By the store's clock, as `minimum_days` is.
fn days_ago(days: u64) -> PruneBound {
    PruneBound::OlderThanDays(u32::try_from(days).unwrap_or(u32::MAX))
}

impl Prunes {
    async fn prune(
        &self,
        log: &TenantLog,
        bound: PruneBound,
        basis: Basis,
        reason: Option<String>,
        dry_run: bool,
    ) -> Result<(Option<EventId>, String), Problem> {
        let pruned = log.prune_bounded(bound, basis, reason, dry_run).await?;
        let id = pruned.receipt.as_ref().map(|r| r.id);
        let mut body = String::with_capacity(512);
        match id {
            Some(id) => {
                put!(body, "{{\"id\":\"{id}\"");
            }
            None => body.push_str("{\"id\":null"),
        }
        put!(
            body,
            ",\"below\":{},\"entries\":{},\"dry_run\":{dry_run}",
            pruned.below,
            pruned.entries
        );
        if let Some(receipt) = &pruned.receipt {
            body.push_str(",\"receipt\":{");
            receipt.write_members(&mut body);
            body.push('}');
        }
        body.push('}');
        Ok((id, body))
    }
}

/// The grounds of a prune or an erasure.
pub(crate) fn basis(text: Option<String>) -> Result<Basis, Problem> {
    let text = text.as_deref().unwrap_or(DEFAULT_BASIS);
    Basis::parse(text).map_err(|e| Problem::field("basis", e.to_string()))
}

#[OpenApi(prefix_path = "/api/v1")]
impl Prunes {
    /// Prune the beginning of the log
    ///
    /// Needs `cleanup`. Takes the entries accepted before a time, exact to the entry, and writes a
    /// control entry that says so. Ids and leaf hashes stay: a repeat of a pruned event is still
    /// known, and proofs still hold. Never goes past what a required consumer has not seen. Refused
    /// (409) while a legal hold is open, once the end of the tenant was asked for, and where it could take
    /// what is younger than the tenant's `minimum_days`.
    ///
    /// With an archive, what goes is archived first, at most eight segments in one request: `below`
    /// says how far it came, and the next request goes on from there.
    #[oai(
        path = "/prunes",
        method = "post",
        operation_id = "prune",
        tag = "Tag::Cleanup"
    )]
    async fn create(
        &self,
        caller: Caller,
        body: JsonText<schema::NewPrune>,
    ) -> Result<PruneAnswer, Refused<Writing>> {
        let log = self.0.gate.enter(&caller, Permission::Cleanup, &[]).await?;
        let asked = body.object(&["before", "older_than_days", "dry_run", "basis", "reason"])?;
        let before = match (
            asked.time("before")?,
            asked.number("older_than_days", 1..=MAX_DAYS)?,
        ) {
            (Some(before), None) => PruneBound::Before(before),
            (None, Some(days)) => days_ago(days),
            (None, None) => {
                return Err(
                    Problem::field("before", "before or older_than_days is required").into(),
                );
            }
            (Some(_), Some(_)) => {
                return Err(Problem::field("older_than_days", "stands beside before").into());
            }
        };
        let dry_run = asked.flag("dry_run")?;
        let basis = basis(asked.string("basis")?)?;
        let reason = asked.string("reason")?;
        let (id, body) = self.prune(&log, before, basis, reason, dry_run).await?;
        Ok(match id {
            Some(id) => PruneAnswer::Done(JsonBody::new(body), format!("/api/v1/prunes/{id}")),
            None => PruneAnswer::Nothing(JsonBody::new(body)),
        })
    }

    /// Read a prune
    ///
    /// Needs `cleanup`.
    #[oai(
        path = "/prunes/:id",
        method = "get",
        operation_id = "get_prune",
        tag = "Tag::Cleanup"
    )]
    async fn get(
        &self,
        caller: Caller,
        /// The id of its control entry.
        id: Path<PathId>,
    ) -> Result<OnePrune, Refused<Reading>> {
        let id: EventId = id.0.parse()?;
        let log = self.0.gate.enter(&caller, Permission::Cleanup, &[]).await?;
        // Whoever may prune may read what a prune says, and nothing else.
        let reader = self
            .0
            .log()
            .tenant(TenantScope::trusted(log.scope().tenant(), "prunes").only(Permission::Read));
        let entry = reader.get(id).await?;
        let none = || Problem::new(ProblemKind::NotFound, "there is no such prune");
        let (Kind::Prune, Some(ctl)) = (entry.kind, &entry.ctl) else {
            return Err(none().into());
        };
        let said = members(ctl).map_err(|_| none())?;
        let mut body = format!(
            "{{\"id\":\"{id}\",\"seq\":{},\"created_at\":\"{}\"",
            entry.seq, entry.created_at
        );
        for member in &said {
            body.push(',');
            write_string(&mut body, &member.name);
            body.push(':');
            body.push_str(member.raw);
        }
        for (name, value) in [
            ("user_id", &entry.fields.user_id),
            ("reason", &entry.fields.reason),
        ] {
            if let Some(value) = value {
                put!(body, ",\"{name}\":");
                write_string(&mut body, value);
            }
        }
        body.push('}');
        Ok(OnePrune::Prune(JsonBody::new(body)))
    }

    /// Prune, in short
    ///
    /// Needs `cleanup`. The same as `POST /prunes` without its other settings.
    #[oai(
        path = "/logs/cleanup",
        method = "delete",
        operation_id = "cleanup",
        tag = "Tag::Cleanup"
    )]
    async fn cleanup(
        &self,
        caller: Caller,
        asked: Params<Cleanup>,
    ) -> Result<CleanupAnswer, Refused<Writing>> {
        let log = self.0.gate.enter(&caller, Permission::Cleanup, &[]).await?;
        let before = match (asked.0.before, asked.0.older_than_days) {
            (Some(before), _) => PruneBound::Before(before),
            (None, Some(days)) => days_ago(days),
            (None, None) => {
                return Err(
                    Problem::parameter("before", "before or older_than_days is required").into(),
                );
            }
        };
        let (_, body) = self.prune(&log, before, basis(None)?, None, false).await?;
        Ok(CleanupAnswer::Pruned(JsonBody::new(body)))
    }
}
