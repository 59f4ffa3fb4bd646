//! `GET /logs/export`.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_core::{Entry, EvidenceRequest, Filter, Group, Permission, TenantId, Timestamp};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use poem::http::HeaderValue;
use poem::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use poem::{Body, IntoResponse, Response};
use poem_openapi::registry::{
    MetaHeader, MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
};
use poem_openapi::types::Type as _;
use poem_openapi::{ApiResponse, OpenApi};

use crate::api::schema::Tag;
use crate::app::App;
use crate::auth::Caller;
use crate::problem::{Problem, ProblemKind, Reading, Refused};
use crate::query::{Parameter, Parameters, Params, Reader};

/// Exports.
pub(crate) struct Export(pub(crate) Arc<App>);

/// A piece of an export is sent when it has so many bytes.
const PIECE: usize = 64 * 1024;

/// The most exports that run at once. Each holds a snapshot, and some megabytes while its client
/// reads slowly.
pub(crate) const MAX_EXPORTS: usize = 16;
/// The most of them in one tenant, so that no tenant keeps the others from exporting.
const MAX_TENANT_EXPORTS: usize = 4;
/// When to try again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The exports that run, counted by tenant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Running(Arc<Mutex<HashMap<TenantId, usize>>>);

impl Running {
    /// Counts an export of a tenant until what is returned is dropped.
    fn begin(&self, tenant: TenantId) -> Result<Counted, Problem> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = running.values().sum();
        let own = running.get(&tenant).copied().unwrap_or_default();
        let problem = if own >= MAX_TENANT_EXPORTS {
            let detail = format!("{MAX_TENANT_EXPORTS} exports of this tenant are under way");
            Problem::new(ProblemKind::RateLimited, detail)
        } else if all >= MAX_EXPORTS {
            Problem::new(ProblemKind::Unavailable, "too many exports are under way")
        } else {
            running.insert(tenant, own + 1);
            return Ok(Counted {
                running: self.clone(),
                tenant,
            });
        };
        Err(problem.retry_after(RETRY_AFTER))
    }
}

/// One export, until it is dropped.
struct Counted {
    running: Running,
    tenant: TenantId,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut running = self
            .running
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = running.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                running.remove(&self.tenant);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    View(View),
    Evidence,
}

/// Entries as a reader is shown them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Csv,
    Ndjson,
}

impl Default for Format {
    fn default() -> Self {
        Self::CSV
    }
}

impl Format {
    const CSV: Self = Self::View(View::Csv);
    const NDJSON: Self = Self::View(View::Ndjson);

    fn media_type(self) -> &'static str {
        match self {
            Self::CSV => "text/csv",
            Self::NDJSON | Self::Evidence => "application/x-ndjson",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::CSV => "csv",
            Self::NDJSON => "ndjson",
            Self::Evidence => "evidence.ndjson",
        }
    }
}

impl FromStr for Format {
    type Err = NotAFormat;
    fn from_str(text: &str) -> Result<Self, NotAFormat> {
        match text {
            "csv" => Ok(Self::CSV),
            "ndjson" => Ok(Self::NDJSON),
            "evidence" => Ok(Self::Evidence),
            _ => Err(NotAFormat),
        }
    }
}

/// A format that exports don't have.
#[derive(Debug, thiserror::Error)]
#[error("csv, ndjson or evidence is expected")]
struct NotAFormat;

/// What is exported.
#[derive(Debug)]
pub(crate) struct Asked {
    filter: Filter,
    format: Format,
    withhold: Vec<Group>,
}

impl Parameters for Asked {
    fn list() -> Vec<Parameter> {
        let mut list = Filter::list();
        list.push(Parameter::choice(
            "format",
            &["csv", "ndjson", "evidence"],
            "`csv` when absent.",
        ));
        list.push(Parameter::text(
            "withhold",
            "Of `evidence`: groups that are kept back, with a comma between them: `actor`, \
             `resource`, `context`, `reason`, `before_state`, `after_state`, `metadata`.",
        ));
        list
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        let filter = Filter::read(reader);
        let format = reader.parsed("format").unwrap_or_default();
        let mut withhold = Vec::new();
        if let Some(groups) = reader.text("withhold") {
            if format != Format::Evidence {
                reader.fault("withhold", "goes with format=evidence only");
            }
            for name in groups.split(',') {
                match name.parse() {
                    Ok(group) => withhold.push(group),
                    Err(_) => reader.fault("withhold", format!("{name:?} is no group")),
                }
            }
        }
        Self {
            filter,
            format,
            withhold,
        }
    }
}

/// A file that is written while it is sent.
pub(crate) struct File(Response);

impl IntoResponse for File {
    fn into_response(self) -> Response {
        self.0
    }
}

impl ApiResponse for File {
    fn meta() -> MetaResponses {
        let media = |format: Format, about| MetaMediaType {
            content_type: format.media_type(),
            schema: MetaSchemaRef::Inline(Box::new(MetaSchema {
                description: Some(about),
                ..MetaSchema::new("string")
            })),
        };
        MetaResponses {
            responses: vec![MetaResponse {
                description: "The entries, oldest first. A connection that ends early means that \
                              the export is not complete: go on with `from_seq`.",
                status: Some(200),
                status_range: None,
                content: vec![
                    media(
                        Format::CSV,
                        "The event's fields in their order, then `erased`.",
                    ),
                    media(
                        Format::NDJSON,
                        "One entry a line; of `evidence`, one record.",
                    ),
                ],
                headers: vec![MetaHeader {
                    name: "Content-Disposition".into(),
                    description: Some("The file's name.".into()),
                    required: true,
                    deprecated: false,
                    schema: String::schema_ref(),
                }],
            }],
        }
    }

    fn register(_: &mut Registry) {}
}

#[OpenApi(prefix_path = "/api/v1")]
impl Export {
    /// Export entries
    ///
    /// Needs `export`. One snapshot of the log, oldest first, streamed. In CSV, a text that a
    /// spreadsheet would take for a formula gets a `'` in front. `csv` and `ndjson` are views;
    /// `evidence` is what `audit verify` reads: leaf data, disclosures and a signed checkpoint, a
    /// line each, complete only with its last line, `{"end":…}`. Every control entry is in it,
    /// whatever the filter. At most 4 exports of a tenant run at once.
    #[oai(
        path = "/logs/export",
        method = "get",
        operation_id = "export",
        tag = "Tag::Logs"
    )]
    async fn export(&self, caller: Caller, asked: Params<Asked>) -> Result<File, Refused<Reading>> {
        let Asked {
            filter,
            format,
            withhold,
        } = asked.0;
        let log = self.0.gate.enter(&caller, Permission::Export, &[]).await?;
        let counted = self.0.exports.begin(log.scope().tenant())?;
        let body = match format {
            Format::Evidence => {
                let request = EvidenceRequest::new().filter(filter).withhold(&withhold);
                let lines = log.evidence(request).await;
                let lines = lines.map_err(|e| Problem::from(e).of_parameters())?;
                Body::from_bytes_stream(lines.map(move |piece| {
                    let _counted = &counted;
                    piece.map(String::into_bytes).map_err(cut)
                }))
            }
            Format::View(view) => {
                let entries = log
                    .scan(&filter)
                    .await
                    .map_err(|e| Problem::from(e).of_parameters())?;
                Body::from_bytes_stream(pieces(entries, view, counted))
            }
        };
        let name = file_name(log.scope().tenant(), self.0.log().clock().now(), format);
        let mut response = Response::builder().body(body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
        if let Ok(value) = HeaderValue::try_from(format!("attachment; filename=\"{name}\"")) {
            headers.insert(CONTENT_DISPOSITION, value);
        }
        Ok(File(response))
    }
}

/// Cuts the connection, which tells the client that the export is not complete.
fn cut(error: audit_core::Error) -> std::io::Error {
    tracing::warn!(%error, "an export ended early");
    std::io::Error::other("the export ended early")
}

fn file_name(tenant: TenantId, now: Timestamp, format: Format) -> String {
    let time: String = now
        .to_string()
        .chars()
        .take(19)
        .filter(|c| !matches!(c, ':' | '-'))
        .collect();
    format!("audit-{tenant}-{time}Z.{}", format.suffix())
}

/// Writes entries, one by one, into pieces of about [`PIECE`] bytes.
fn pieces(
    entries: BoxStream<'static, audit_core::Result<Entry>>,
    view: View,
    counted: Counted,
) -> impl futures_util::Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static {
    let first = Writing {
        entries: Some(entries),
        view,
        started: false,
        _counted: counted,
    };
    stream::unfold(first, |mut writing| async move {
        let piece = writing.piece().await?;
        Some((piece, writing))
    })
}

struct Writing {
    entries: Option<BoxStream<'static, audit_core::Result<Entry>>>,
    view: View,
    started: bool,
    _counted: Counted,
}

impl Writing {
    /// The next piece; none at the end.
    async fn piece(&mut self) -> Option<std::io::Result<Vec<u8>>> {
        let mut entries = self.entries.take()?;
        let mut sheet = Sheet::new();
        let mut lines = String::new();
        if !std::mem::replace(&mut self.started, true) && self.view == View::Csv {
            sheet.header();
        }
        loop {
            match entries.next().await {
                Some(Ok(entry)) => {
                    match self.view {
                        View::Csv => sheet.entry(&entry),
                        View::Ndjson => {
                            entry.write_json(&mut lines);
                            lines.push('\n');
                        }
                    }
                    if sheet.len() + lines.len() >= PIECE {
                        self.entries = Some(entries);
                        break;
                    }
                }
                Some(Err(error)) => return Some(Err(cut(error))),
                None => break,
            }
        }
        let piece = match self.view {
            View::Csv => sheet.finish(),
            View::Ndjson => lines.into_bytes(),
        };
        (!piece.is_empty()).then_some(Ok(piece))
    }
}

/// The columns of a CSV export.
pub(crate) const COLUMNS: [&str; 27] = [
    "id",
    "tenant_id",
    "seq",
    "created_at",
    "occurred_at",
    "action_type",
    "action",
    "outcome",
    "severity",
    "user_id",
    "actor_type",
    "actor_name",
    "on_behalf_of",
    "resource_type",
    "resource_id",
    "resource_name",
    "related_resources",
    "session_id",
    "request_id",
    "trace_id",
    "user_agent",
    "ip_address",
    "reason",
    "before_state",
    "after_state",
    "metadata",
    "erased",
];

/// Rows of CSV (RFC 4180).
struct Sheet {
    csv: csv::Writer<Vec<u8>>,
    bytes: usize,
    cell: String,
}

impl Sheet {
    fn new() -> Self {
        let csv = csv::WriterBuilder::new()
            .terminator(csv::Terminator::CRLF)
            .from_writer(Vec::new());
        Self {
            csv,
            bytes: 0,
            cell: String::new(),
        }
    }

    fn len(&self) -> usize {
        self.bytes
    }

    /// Adds a field as it is. Writing to a vector can't fail.
    fn plain(&mut self, text: &str) {
        self.bytes += text.len() + 1;
        self.csv
            .write_field(text)
            .unwrap_or_else(|e| tracing::error!(error = %e, "CSV"));
    }

    /// Adds a field that a client chose: one that a spreadsheet would take for a formula gets a `'`
    /// in front (OWASP, CSV injection).
    fn text(&mut self, text: Option<&str>) {
        let text = text.unwrap_or_default();
        if !text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']) {
            return self.plain(text);
        }
        let mut cell = std::mem::take(&mut self.cell);
        cell.clear();
        cell.push('\'');
        cell.push_str(text);
        self.plain(&cell);
        self.cell = cell;
    }

    fn end_row(&mut self) {
        self.bytes += 2;
        self.csv
            .write_record(None::<&[u8]>)
            .unwrap_or_else(|e| tracing::error!(error = %e, "CSV"));
    }

    fn header(&mut self) {
        for column in COLUMNS {
            self.plain(column);
        }
        self.end_row();
    }

    fn entry(&mut self, entry: &Entry) {
        let f = &entry.fields;
        self.plain(&entry.id.to_string());
        self.plain(&entry.tenant_id.to_string());
        self.plain(&entry.seq.to_string());
        self.plain(&entry.created_at.to_string());
        self.plain(&entry.occurred_at.to_string());
        self.plain(f.action_type.as_str());
        self.text(Some(&f.action));
        self.plain(f.outcome.as_str());
        self.plain(f.severity.as_str());
        self.text(f.user_id.as_deref());
        self.plain(f.actor_type.map_or("", audit_core::ActorType::as_str));
        self.text(f.actor_name.as_deref());
        self.text(f.on_behalf_of.as_deref());
        self.text(f.resource_type.as_deref());
        self.text(f.resource_id.as_deref());
        self.text(f.resource_name.as_deref());
        let mut related = String::new();
        if !f.related_resources.is_empty() {
            f.write_related(&mut related);
        }
        self.plain(&related);
        self.text(f.session_id.as_deref());
        self.text(f.request_id.as_deref());
        self.text(f.trace_id.as_deref());
        self.text(f.user_agent.as_deref());
        self.plain(&f.ip_address.map(|ip| ip.to_string()).unwrap_or_default());
        self.text(f.reason.as_deref());
        self.text(f.before_state.as_ref().map(audit_core::Json::as_str));
        self.text(f.after_state.as_ref().map(audit_core::Json::as_str));
        self.text(f.metadata.as_ref().map(audit_core::Json::as_str));
        let erased: Vec<&str> = entry.erased.iter().map(|g| g.as_str()).collect();
        self.plain(&erased.join(" "));
        self.end_row();
    }

    fn finish(self) -> Vec<u8> {
        self.csv.into_inner().unwrap_or_else(|e| {
            tracing::error!(error = %e, "CSV");
            Vec::new()
        })
    }
}
