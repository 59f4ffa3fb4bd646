//! The operations, one file for each group: request, answers and handler together.

pub(crate) mod admin;
pub(crate) mod api_keys;
pub(crate) mod bulk;
pub(crate) mod erasures;
pub(crate) mod export;
pub(crate) mod filter;
pub(crate) mod health;
pub(crate) mod logs;
pub(crate) mod preferences;
pub(crate) mod prunes;
pub(crate) mod retention;
pub(crate) mod schema;
pub(crate) mod stats;
pub(crate) mod stream;
pub(crate) mod tenants;
pub(crate) mod tlog;

use std::sync::Arc;

use poem_openapi::registry::MetaSchema;
use poem_openapi::registry::MetaSchemaRef;
use poem_openapi::types::{ParseFromParameter, ParseResult, Type};
use std::borrow::Cow;

use crate::app::App;
use crate::problem::Problem;

/// All groups of operations.
pub(crate) type Api = (
    logs::Logs,
    bulk::BulkLogs,
    export::Export,
    stats::StatsApi,
    stream::Streams,
    prunes::Prunes,
    erasures::Erasures,
    tlog::Tlog,
    tenants::Tenants,
    retention::RetentionApi,
    api_keys::Keys,
    admin::Admin,
    health::HealthApi,
);

/// All groups of operations, on one application.
pub(crate) fn api(app: &Arc<App>) -> Api {
    let app = || Arc::clone(app);
    (
        logs::Logs(app()),
        bulk::BulkLogs(app()),
        export::Export(app()),
        stats::StatsApi(app()),
        stream::Streams(app()),
        prunes::Prunes(app()),
        erasures::Erasures(app()),
        tlog::Tlog(app()),
        tenants::Tenants(app()),
        retention::RetentionApi(app()),
        api_keys::Keys(app()),
        admin::Admin(app()),
        health::HealthApi(app()),
    )
}

/// An id in a path: documented as a UUID, taken as text, so that a bad one is refused as a problem.
#[derive(Debug)]
pub(crate) struct PathId(String);

impl PathId {
    /// Reads it.
    pub(crate) fn parse<T: std::str::FromStr>(&self) -> Result<T, Problem>
    where
        T::Err: std::fmt::Display,
    {
        self.parse_as("id")
    }

    /// Reads it; the parameter has another name than `id`.
    pub(crate) fn parse_as<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, Problem>
    where
        T::Err: std::fmt::Display,
    {
        self.0
            .parse()
            .map_err(|e: T::Err| Problem::parameter(name, e.to_string()))
    }
}

impl Type for PathId {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "string_uuid".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new_with_format("string", "uuid")))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ParseFromParameter for PathId {
    fn parse_from_parameter(value: &str) -> ParseResult<Self> {
        Ok(Self(value.to_owned()))
    }
}
