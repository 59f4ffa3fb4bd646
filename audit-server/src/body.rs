//! Request bodies: raw bytes under a cap, before and after inflation, as UTF-8 text.
//!
//! poem's own limits look at `Content-Length` only and its decompression has none, and a value tree
//! would lose the exact text of raw JSON. So bodies are read here.

use std::io::Read;
use std::marker::PhantomData;
use std::time::Duration;

use audit_core::tlog::json;
use futures_util::StreamExt as _;
use poem::http::header::CONTENT_ENCODING;
use poem::{Request, RequestBody};
use poem_openapi::payload::{ParsePayload, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use tokio::time::Instant;

use crate::problem::{Problem, ProblemKind};

/// The most bytes of the body of a single event or of another request, sent and inflated.
pub const MAX_BODY: usize = 1024 * 1024;
/// The most bytes of the body of a bulk, sent and inflated.
pub const MAX_BULK_BODY: usize = 16 * 1024 * 1024;
/// The most items of a bulk.
pub const MAX_BULK_ITEMS: usize = 1_000;
/// Bodies up to so many bytes are inflated where they are; larger ones on a thread for blocking work.
const INFLATE_HERE: usize = 4 * 1024;

/// How the body of a request is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    fn of(request: &Request) -> Result<Self, Problem> {
        let mut values = request.headers().get_all(CONTENT_ENCODING).iter();
        let first = values
            .next()
            .map(|v| v.as_bytes().trim_ascii().to_ascii_lowercase());
        let encoding = match first.as_deref() {
            None | Some(b"" | b"identity") => Self::Identity,
            Some(b"gzip" | b"x-gzip") => Self::Gzip,
            Some(b"zstd") => Self::Zstd,
            Some(_) => {
                return Err(unsupported(
                    "the encoding is none of gzip, zstd and identity",
                ));
            }
        };
        if values.next().is_some() {
            return Err(unsupported("the body is encoded more than once"));
        }
        Ok(encoding)
    }
}

fn unsupported(detail: &str) -> Problem {
    Problem::new(ProblemKind::UnsupportedMediaType, detail)
}

fn too_large(limit: usize) -> Problem {
    Problem::new(
        ProblemKind::TooLarge,
        format!("the body has more than {limit} bytes"),
    )
}

/// The media type without its parameters, in lower case.
fn media_type(request: &Request) -> String {
    let full = request.content_type().unwrap_or_default();
    full.split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Bytes of a body for which it may take a second longer.
const SLOWEST: u32 = 16 * 1024;

/// How fast a body has to arrive: it may pause for so long, and take as long all in all, and a second
/// more for each [`SLOWEST`] bytes that have come. The route tells it to who reads the body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace(pub(crate) Duration);

impl Pace {
    /// Until when the next piece has to come of a body that is read since `began`, of which `arrived`
    /// bytes have come.
    fn until(self, began: Instant, arrived: usize) -> Instant {
        let earned = Duration::from_secs(1) * u32::try_from(arrived).unwrap_or(u32::MAX) / SLOWEST;
        (began + self.0 + earned).min(Instant::now() + self.0)
    }
}

/// Reads the body of a request as text of at most `limit` bytes.
///
/// A longer body is refused as soon as that is known, by its `Content-Length` or on the way.
pub(crate) async fn read_text(
    request: &Request,
    body: &mut RequestBody,
    limit: usize,
) -> Result<String, Problem> {
    let encoding = Encoding::of(request)?;
    let announced = request
        .header("content-length")
        .and_then(|n| n.parse::<usize>().ok());
    if announced.is_some_and(|n| n > limit) {
        return Err(too_large(limit));
    }
    let body = body.take().map_err(|_| Problem::body("there is no body"))?;
    let mut stream = Box::pin(body.into_bytes_stream());
    let mut bytes: Vec<u8> = Vec::with_capacity(announced.unwrap_or(0).min(limit));
    let pace = *request
        .data::<Pace>()
        .ok_or_else(|| Problem::new(ProblemKind::Internal, ProblemKind::Internal.title()))?;
    let began = Instant::now();
    loop {
        let until = pace.until(began, bytes.len());
        let Ok(piece) = tokio::time::timeout_at(until, stream.next()).await else {
            return Err(Problem::new(
                ProblemKind::TooSlow,
                "the body of the request was not complete in time",
            ));
        };
        let Some(chunk) = piece else { break };
        let chunk = chunk.map_err(|_| Problem::body("the body ended early"))?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    let bytes = match encoding {
        Encoding::Identity => bytes,
        _ if bytes.len() <= INFLATE_HERE => inflate(encoding, &bytes, limit)?,
        _ => tokio::task::spawn_blocking(move || inflate(encoding, &bytes, limit))
            .await
            .map_err(|_| Problem::new(ProblemKind::Internal, "the body could not be inflated"))??,
    };
    String::from_utf8(bytes).map_err(|e| {
        Problem::body(format!(
            "not UTF-8 from byte {}",
            e.utf8_error().valid_up_to()
        ))
    })
}

/// Inflates piece by piece, and stops at the limit: a bomb costs what an honest body may.
fn inflate(encoding: Encoding, bytes: &[u8], limit: usize) -> Result<Vec<u8>, Problem> {
    let mut out = Vec::with_capacity(bytes.len().saturating_mul(4).min(limit));
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let bad = |_| Problem::body("the encoding of the body is broken");
    match encoding {
        Encoding::Identity => out.extend_from_slice(bytes),
        Encoding::Gzip => {
            flate2::read::MultiGzDecoder::new(bytes)
                .take(most)
                .read_to_end(&mut out)
                .map_err(bad)?;
        }
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(bad)?;
            // RFC 8878 §3.1.1.1.2: a window of 8 MiB is what every decoder supports.
            decoder.window_log_max(23).map_err(bad)?;
            decoder.take(most).read_to_end(&mut out).map_err(bad)?;
        }
    }
    if out.len() > limit {
        return Err(too_large(limit));
    }
    Ok(out)
}

/// A JSON body of at most [`MAX_BODY`] bytes as its exact text; `T` documents its shape.
#[derive(Debug)]
pub(crate) struct JsonText<T> {
    pub(crate) text: String,
    shape: PhantomData<fn() -> T>,
}

impl<T: Type> Payload for JsonText<T> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Type> ParsePayload for JsonText<T> {
    const IS_REQUIRED: bool = true;

    async fn from_request(request: &Request, body: &mut RequestBody) -> poem::Result<Self> {
        if media_type(request) != Self::CONTENT_TYPE {
            return Err(unsupported("application/json is expected").into());
        }
        let text = read_text(request, body, MAX_BODY).await?;
        Ok(Self {
            text,
            shape: PhantomData,
        })
    }
}

impl<'a, T: Type> ApiExtractor<'a> for JsonText<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        <Self as Payload>::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: Self::CONTENT_TYPE,
                schema: Self::schema_ref(),
            }],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        <Self as ParsePayload>::from_request(request, body).await
    }
}

impl<T> JsonText<T> {
    /// The members of the body, an object; names other than `known` are refused by name, so that
    /// nothing that a client meant is dropped in silence.
    pub(crate) fn object(&self, known: &[&str]) -> Result<Object<'_>, Problem> {
        json::check(self.text.trim(), json::MAX_DEPTH).map_err(|f| Problem::body(f.to_string()))?;
        let members = json::members(&self.text).map_err(|f| Problem::body(f.to_string()))?;
        for member in &members {
            if !known.contains(&&*member.name) {
                return Err(Problem::field(&member.name, "not a field of this request"));
            }
        }
        Ok(Object { members })
    }
}

/// A small JSON object, read member by member.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    members: Vec<json::Member<'a>>,
}

impl Object<'_> {
    /// The raw text of a member; none when it is absent or null.
    pub(crate) fn raw(&self, name: &str) -> Option<&str> {
        self.members
            .iter()
            .find(|m| m.name == name)
            .map(|m| m.raw)
            .filter(|raw| *raw != "null")
    }

    /// A string.
    pub(crate) fn string(&self, name: &str) -> Result<Option<String>, Problem> {
        let Some(raw) = self.raw(name) else {
            return Ok(None);
        };
        if !raw.starts_with('"') {
            return Err(Problem::field(name, "a string is expected"));
        }
        let text = json::string(raw).map_err(|f| Problem::field(name, f.to_string()))?;
        Ok(Some(text.into_owned()))
    }

    /// A string with a form of its own.
    pub(crate) fn parsed<V: std::str::FromStr>(&self, name: &str) -> Result<Option<V>, Problem>
    where
        V::Err: std::fmt::Display,
    {
        self.string(name)?
            .map(|text| {
                text.parse()
                    .map_err(|e: V::Err| Problem::field(name, e.to_string()))
            })
            .transpose()
    }

    /// An instant, RFC 3339.
    pub(crate) fn time(&self, name: &str) -> Result<Option<audit_core::Timestamp>, Problem> {
        self.string(name)?
            .map(|text| {
                audit_core::Timestamp::parse(&text).map_err(|e| Problem::field(name, e.to_string()))
            })
            .transpose()
    }

    /// True or false; false when absent.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Problem> {
        Ok(self.choice(name)?.unwrap_or(false))
    }

    /// True or false.
    pub(crate) fn choice(&self, name: &str) -> Result<Option<bool>, Problem> {
        match self.raw(name) {
            None => Ok(None),
            Some("false") => Ok(Some(false)),
            Some("true") => Ok(Some(true)),
            Some(_) => Err(Problem::field(name, "true or false is expected")),
        }
    }

    /// An integer within bounds.
    pub(crate) fn number(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Problem> {
        let Some(raw) = self.raw(name) else {
            return Ok(None);
        };
        match raw.parse::<u64>() {
            Ok(n) if range.contains(&n) => Ok(Some(n)),
            _ => Err(Problem::field(
                name,
                format!(
                    "an integer from {} to {} is expected",
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    /// A list of strings.
    pub(crate) fn strings(&self, name: &str) -> Result<Option<Vec<String>>, Problem> {
        let Some(raw) = self.raw(name) else {
            return Ok(None);
        };
        let bad = || Problem::field(name, "a list of strings is expected");
        let items = json::items(raw).map_err(|_| bad())?;
        items
            .into_iter()
            .map(|item| {
                if item.starts_with('"') {
                    json::string(item).ok()
                } else {
                    None
                }
                .map(std::borrow::Cow::into_owned)
                .ok_or_else(bad)
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }
}

/// The body of a bulk: a JSON array, or NDJSON with one event a line.
#[derive(Debug)]
pub(crate) struct Bulk<T> {
    text: String,
    ndjson: bool,
    shape: PhantomData<fn() -> T>,
}

/// The items of a bulk, each as its exact text.
#[derive(Debug)]
pub(crate) struct Items<'a> {
    /// The items.
    pub(crate) texts: Vec<&'a str>,
    /// Of NDJSON: the line of each, from 1.
    pub(crate) lines: Option<Vec<usize>>,
}

impl<T> Bulk<T> {
    /// Splits the body. Blank lines of NDJSON are passed over.
    pub(crate) fn items(&self) -> Result<Items<'_>, Problem> {
        let too_many = || {
            Problem::new(
                ProblemKind::TooLarge,
                format!("a bulk has at most {MAX_BULK_ITEMS} items"),
            )
        };
        if self.ndjson {
            let mut items = Items {
                texts: Vec::new(),
                lines: Some(Vec::new()),
            };
            for (i, line) in self.text.split('\n').enumerate() {
                let line = line.trim_matches([' ', '\t', '\r']);
                if line.is_empty() {
                    continue;
                }
                if items.texts.len() == MAX_BULK_ITEMS {
                    return Err(too_many());
                }
                items.texts.push(line);
                items.lines.get_or_insert_default().push(i + 1);
            }
            return Ok(items);
        }
        let texts = json::items(self.text.trim_matches([' ', '\t', '\n', '\r'])).map_err(|_| {
            match serde_json::from_str::<serde::de::IgnoredAny>(&self.text) {
                Err(e) => Problem::body(format!("not one JSON array: {e}")),
                Ok(_) => Problem::body("not one JSON array"),
            }
        })?;
        if texts.len() > MAX_BULK_ITEMS {
            return Err(too_many());
        }
        Ok(Items { texts, lines: None })
    }
}

impl<'a, T: Type> ApiExtractor<'a> for Bulk<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let array = MetaSchema {
            items: Some(Box::new(T::schema_ref())),
            max_items: Some(MAX_BULK_ITEMS),
            ..MetaSchema::new("array")
        };
        let lines = MetaSchema {
            description: Some("One event a line, at most 1,000."),
            ..MetaSchema::new("string")
        };
        Some(MetaRequest {
            description: None,
            content: vec![
                MetaMediaType {
                    content_type: "application/json",
                    schema: MetaSchemaRef::Inline(Box::new(array)),
                },
                MetaMediaType {
                    content_type: "application/x-ndjson",
                    schema: MetaSchemaRef::Inline(Box::new(lines)),
                },
            ],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let ndjson = match media_type(request).as_str() {
            "application/json" => false,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => true,
            _ => {
                return Err(
                    unsupported("application/json or application/x-ndjson is expected").into(),
                );
            }
        };
        let text = read_text(request, body, MAX_BULK_BODY).await?;
        Ok(Self {
            text,
            ndjson,
            shape: PhantomData,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn inflation_stops_at_the_limit() {
        let zeros = vec![0_u8; 4 * 1024 * 1024];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&zeros).unwrap();
        let bomb = gzip.finish().unwrap();
        assert_eq!(
            inflate(Encoding::Gzip, &bomb, MAX_BODY)
                .unwrap_err()
                .status(),
            413
        );
        assert_eq!(inflate(Encoding::Gzip, &bomb, zeros.len()).unwrap(), zeros);
        let bomb = zstd::encode_all(&zeros[..], 19).unwrap();
        assert_eq!(
            inflate(Encoding::Zstd, &bomb, zeros.len() - 1)
                .unwrap_err()
                .status(),
            413
        );
        assert_eq!(inflate(Encoding::Zstd, &bomb, zeros.len()).unwrap(), zeros);
        assert_eq!(
            inflate(Encoding::Gzip, b"no gzip", 10)
                .unwrap_err()
                .status(),
            400
        );
    }

    #[test]
    fn a_body_may_pause_for_as_long_as_its_head_and_not_drip_for_ever() {
        let pace = Pace(Duration::from_secs(30));
        let long_ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        let left = |began, arrived| {
            pace.until(began, arrived)
                .saturating_duration_since(Instant::now())
                .as_secs_f64()
                .round()
        };
        assert!((left(long_ago(0), 0) - 30.0).abs() < 1.0);
        assert!((left(long_ago(20), 0) - 10.0).abs() < 1.0);
        assert!(left(long_ago(31), 1000) < 1.0);
        // 1 MiB earns 64 s, and no pause is longer than 30.
        assert!((left(long_ago(80), MAX_BODY) - 14.0).abs() < 1.0);
        assert!((left(long_ago(1), MAX_BODY) - 30.0).abs() < 1.0);
    }

    #[test]
    fn lines_are_numbered_as_they_stand() {
        let bulk = Bulk::<String> {
            text: "{}\n\n {} \r\n{}".into(),
            ndjson: true,
            shape: PhantomData,
        };
        let items = bulk.items().unwrap();
        assert_eq!(items.texts, ["{}", "{}", "{}"]);
        assert_eq!(items.lines.unwrap(), [1, 3, 4]);
    }
}
