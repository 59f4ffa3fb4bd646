//! `GET/POST /api-keys`, `DELETE /api-keys/{id}`.

use std::sync::Arc;

use audit_core::tlog::json::write_string;
use audit_core::{ApiKey, KeyPlace, Permission, Permissions, Role, Timestamp};
use poem_openapi::param::Path;
use poem_openapi::{ApiResponse, OpenApi};
use uuid::Uuid;

use crate::api::PathId;
use crate::api::filter::{limit_parameter, read_limit};
use crate::api::schema::{self, JsonBody, Tag};
use crate::app::App;
use crate::auth::{Caller, api_key};
use crate::body::JsonText;
use crate::problem::{Problem, ProblemKind, Reading, Refused, Writing};
use crate::query::{Parameter, Parameters, Params, Reader};

/// API keys.
pub(crate) struct Keys(pub(crate) Arc<App>);

/// The most characters of a key's name.
const MAX_NAME: usize = 256;

#[derive(ApiResponse)]
pub(crate) enum KeysAnswer {
    /// Some of the keys.
    #[oai(status = 200)]
    Keys(JsonBody<schema::ApiKeys>),
}

#[derive(ApiResponse)]
pub(crate) enum MadeAnswer {
    /// The key, with its secret: it is shown this once.
    #[oai(status = 201)]
    Made(JsonBody<schema::MadeApiKey>),
}

#[derive(ApiResponse)]
pub(crate) enum RevokedAnswer {
    /// It is revoked.
    #[oai(status = 204)]
    Revoked,
}

/// Which keys are listed.
#[derive(Debug)]
pub(crate) struct Asked {
    after: Option<KeyPlace>,
    limit: usize,
}

impl Parameters for Asked {
    fn list() -> Vec<Parameter> {
        vec![
            limit_parameter(),
            Parameter::text("cursor", "`next_cursor` of the page before."),
        ]
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            limit: read_limit(reader),
            after: reader.parsed("cursor"),
        }
    }
}

fn write_members(out: &mut String, key: &ApiKey) {
    fn time(at: Option<Timestamp>) -> String {
        at.map_or_else(|| "null".to_owned(), |at| format!("\"{at}\""))
    }
    put!(
        out,
        "\"id\":\"{}\",\"tenant_id\":\"{}\",\"name\":",
        key.id,
        key.tenant
    );
    write_string(out, &key.name);
    put!(
        out,
        ",\"role\":\"{}\",\"scope\":\"{}\",\"created_at\":\"{}\",\"expires_at\":{},\"last_used_at\":{}",
        key.role,
        key.permissions.to_scope(),
        key.created_at,
        time(key.expires_at),
        time(key.last_used_at)
    );
}

#[OpenApi(prefix_path = "/api/v1")]
impl Keys {
    /// List the API keys
    ///
    /// Needs `keys`. Oldest first.
    #[oai(
        path = "/api-keys",
        method = "get",
        operation_id = "list_api_keys",
        tag = "Tag::ApiKeys"
    )]
    async fn list(
        &self,
        caller: Caller,
        asked: Params<Asked>,
    ) -> Result<KeysAnswer, Refused<Reading>> {
        let Asked { after, limit } = asked.0;
        let log = self.0.gate.enter(&caller, Permission::Keys, &[]).await?;
        let store = self.0.gate.credentials();
        // One more than the page, to know whether there is another.
        let mut keys = store.keys(log.scope(), after, limit + 1).await?;
        let more = keys.len() > limit;
        keys.truncate(limit);
        let mut body = String::from("{\"data\":[");
        for (i, key) in keys.iter().enumerate() {
            body.push_str(if i > 0 { ",{" } else { "{" });
            write_members(&mut body, key);
            body.push('}');
        }
        match keys.last().filter(|_| more) {
            Some(last) => {
                put!(body, "],\"next_cursor\":\"{}\"}}", last.place());
            }
            None => body.push_str("],\"next_cursor\":null}"),
        }
        Ok(KeysAnswer::Keys(JsonBody::new(body)))
    }

    /// Make an API key
    ///
    /// Needs `keys`. Its permissions are a subset of its maker's, and only an admin makes admin
    /// keys. The secret is shown once and stored as a hash.
    #[oai(
        path = "/api-keys",
        method = "post",
        operation_id = "make_api_key",
        tag = "Tag::ApiKeys"
    )]
    async fn make(
        &self,
        caller: Caller,
        body: JsonText<schema::NewApiKey>,
    ) -> Result<MadeAnswer, Refused<Writing>> {
        let log = self.0.gate.enter(&caller, Permission::Keys, &[]).await?;
        let asked = body.object(&["name", "role", "scope", "expires_at"])?;
        let name = asked.string("name")?.unwrap_or_default();
        if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control)
        {
            return Err(Problem::field(
                "name",
                format!(
                    "1 to {MAX_NAME} characters are required, none of them a control character"
                ),
            )
            .into());
        }
        let role = asked
            .parsed::<Role>("role")?
            .ok_or_else(|| Problem::field("role", "required"))?;
        let clock = self.0.log().clock();
        let now = clock.now();
        let id = clock.event_id().into_uuid();
        let mut key = ApiKey::new(id, log.scope().tenant(), name, role, now);
        if let Some(scope) = asked.string("scope")? {
            key.permissions = scope_of(&scope)?.intersection(role.permissions());
        }
        key.expires_at = asked.time("expires_at")?;
        if key.expires_at.is_some_and(|at| at <= now) {
            return Err(Problem::field("expires_at", "lies in the past").into());
        }
        let maker = &caller.principal;
        if role == Role::Admin && !maker.across_tenants {
            return Err(
                Problem::new(ProblemKind::Forbidden, "only an admin makes admin keys").into(),
            );
        }
        if !maker.permissions.contains_all(key.permissions) {
            return Err(Problem::new(
                ProblemKind::Forbidden,
                "a key's permissions are a subset of its maker's",
            )
            .into());
        }
        let secret = api_key::print(&clock.secret());
        let store = self.0.gate.credentials();
        store
            .add_key(log.scope(), &key, &api_key::hash(&secret))
            .await?;
        let mut body = String::from("{");
        write_members(&mut body, &key);
        // A key is ASCII letters, digits and one underscore.
        put!(body, ",\"key\":\"{secret}\"}}");
        Ok(MadeAnswer::Made(JsonBody::new(body)))
    }

    /// Revoke an API key
    ///
    /// Needs `keys`. It is refused at once in this process, and within seconds in others.
    #[oai(
        path = "/api-keys/:id",
        method = "delete",
        operation_id = "revoke_api_key",
        tag = "Tag::ApiKeys"
    )]
    async fn revoke(
        &self,
        caller: Caller,
        /// The key's id, not the key.
        id: Path<PathId>,
    ) -> Result<RevokedAnswer, Refused<Reading>> {
        let id: audit_core::EventId = id.0.parse()?;
        let id: Uuid = id.into_uuid();
        let log = self.0.gate.enter(&caller, Permission::Keys, &[]).await?;
        if !self
            .0
            .gate
            .credentials()
            .revoke_key(log.scope(), id)
            .await?
        {
            return Err(Problem::new(ProblemKind::NotFound, "there is no such key").into());
        }
        self.0.gate.keys().forget();
        Ok(RevokedAnswer::Revoked)
    }
}

/// A scope in which every word is a permission of ours: a misspelt one must not be dropped.
fn scope_of(text: &str) -> Result<Permissions, Problem> {
    let words = text.split(' ').filter(|w| !w.is_empty());
    let all_known = words.clone().all(|word| {
        word.strip_prefix("audit:")
            .is_some_and(|name| name.parse::<Permission>().is_ok())
    });
    if !all_known || words.count() == 0 {
        return Err(Problem::field(
            "scope",
            "permissions with audit: in front are expected, as audit:read audit:export",
        ));
    }
    Ok(Permissions::from_scope(text))
}
