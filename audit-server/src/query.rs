//! Query parameters: read by name, documented from the same list, unknown ones refused.

use std::str::FromStr;

use audit_core::Timestamp;
use percent_encoding::percent_decode_str;
use poem::{Request, RequestBody};
use poem_openapi::registry::{
    MetaApi, MetaOperationParam, MetaParamIn, MetaSchema, MetaSchemaRef, Registry,
};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};

use crate::problem::{Problem, ProblemKind};

/// The decoded pairs of a query string, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pairs(Vec<(String, String)>);

impl Pairs {
    /// Reads the request's query string. Percent-encoded bytes that are not UTF-8 are refused.
    pub(crate) fn of(request: &Request) -> Result<Self, Problem> {
        let query = request.uri().query().unwrap_or_default();
        // A form's decoder would replace such bytes, and a filter match nothing.
        let not_text = |part: &&str| percent_decode_str(part).decode_utf8().is_err();
        if let Some(pair) = query.split('&').find(not_text) {
            let name = pair.split('=').next().unwrap_or_default();
            let name = percent_decode_str(name).decode_utf8_lossy();
            return Err(Problem::parameter(name.into_owned(), "not UTF-8"));
        }
        if query.is_empty() {
            return Ok(Self::default());
        }
        request
            .params()
            .map(Self)
            .map_err(|_| Problem::new(ProblemKind::Malformed, "the query string can't be read"))
    }

    /// Refuses the first name that is not among `known`.
    pub(crate) fn admit_only(&self, known: &[String]) -> Result<(), Problem> {
        match self
            .0
            .iter()
            .find(|(name, _)| !known.iter().any(|k| k == name))
        {
            None => Ok(()),
            Some((name, _)) => Err(Problem::parameter(
                name.clone(),
                if known.is_empty() {
                    "this route has no query parameters".to_owned()
                } else {
                    format!(
                        "not a parameter of this route, which has {}",
                        known.join(", ")
                    )
                },
            )),
        }
    }

    /// The values of a name, in order.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The value of a name that may stand once.
    pub(crate) fn one(&self, name: &'static str) -> Result<Option<&str>, Problem> {
        let mut values = self
            .0
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str());
        let first = values.next();
        if values.next().is_some() {
            return Err(Problem::parameter(name, "stands more than once"));
        }
        Ok(first)
    }

    /// The pairs, but those of `name`.
    pub(crate) fn without<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .iter()
            .filter(move |(n, _)| n != name)
            .map(|(n, v)| (n.as_str(), v.as_str()))
    }
}

/// Reads parameters one by one and keeps every fault, so that all are reported at once.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pairs: &'a Pairs,
    problem: Option<Problem>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(pairs: &'a Pairs) -> Self {
        Self {
            pairs,
            problem: None,
        }
    }

    fn refuse(&mut self, problem: Problem) {
        match &mut self.problem {
            None => self.problem = Some(problem),
            Some(first) => first.absorb(problem),
        }
    }

    /// Notes a fault of a parameter.
    pub(crate) fn fault(&mut self, name: &'static str, detail: impl Into<String>) {
        self.refuse(Problem::parameter(name, detail));
    }

    /// A text; an empty one is refused, since a form's empty field would match nothing.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<String> {
        match self.pairs.one(name) {
            Ok(Some("")) => {
                self.fault(name, "empty");
                None
            }
            Ok(value) => value.map(str::to_owned),
            Err(problem) => {
                self.refuse(problem);
                None
            }
        }
    }

    /// A value of a type with its own spelling.
    pub(crate) fn parsed<T: FromStr>(&mut self, name: &'static str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.text(name)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(e) => {
                self.fault(name, e.to_string());
                None
            }
        }
    }

    /// Any number of values.
    pub(crate) fn every<T: FromStr>(&mut self, name: &'static str) -> Vec<T>
    where
        T::Err: std::fmt::Display,
    {
        const MOST: usize = 100;
        let mut values = Vec::new();
        let texts: Vec<&str> = self.pairs.all(name).take(MOST + 1).collect();
        if texts.len() > MOST {
            self.fault(name, format!("stands more than {MOST} times"));
            return values;
        }
        for text in texts {
            if text.is_empty() {
                self.fault(name, "empty");
                continue;
            }
            match text.parse() {
                Ok(value) => values.push(value),
                Err(e) => self.fault(name, e.to_string()),
            }
        }
        values
    }

    /// An instant, RFC 3339.
    pub(crate) fn time(&mut self, name: &'static str) -> Option<Timestamp> {
        let text = self.text(name)?;
        match Timestamp::parse(&text) {
            Ok(at) => Some(at),
            Err(e) => {
                self.fault(name, e.to_string());
                None
            }
        }
    }

    /// An integer within bounds.
    pub(crate) fn number(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let text = self.text(name)?;
        match text.parse::<u64>() {
            Ok(n) if range.contains(&n) && text.bytes().all(|b| b.is_ascii_digit()) => Some(n),
            _ => {
                self.fault(
                    name,
                    format!(
                        "an integer from {} to {} is expected",
                        range.start(),
                        range.end()
                    ),
                );
                None
            }
        }
    }

    /// Whether every parameter could be read.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        self.problem.map_or(Ok(()), Err)
    }
}

/// One documented query parameter. None is required: where one of several is, the handler says so.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    name: &'static str,
    about: &'static str,
    schema: MetaSchema,
}

impl Parameter {
    /// A text.
    pub(crate) fn text(name: &'static str, about: &'static str) -> Self {
        Self {
            name,
            about,
            schema: MetaSchema {
                min_length: Some(1),
                ..MetaSchema::new("string")
            },
        }
    }

    /// A text of a format.
    pub(crate) fn format(name: &'static str, format: &'static str, about: &'static str) -> Self {
        Self {
            name,
            about,
            schema: MetaSchema::new_with_format("string", format),
        }
    }

    /// One of several values.
    pub(crate) fn choice(name: &'static str, values: &[&str], about: &'static str) -> Self {
        let schema = MetaSchema {
            enum_items: values.iter().map(|v| (*v).into()).collect(),
            ..MetaSchema::new("string")
        };
        Self {
            name,
            about,
            schema,
        }
    }

    /// An integer within bounds.
    #[allow(clippy::cast_precision_loss)] // a document's bounds
    pub(crate) fn number(
        name: &'static str,
        from: u64,
        to: Option<u64>,
        about: &'static str,
    ) -> Self {
        let schema = MetaSchema {
            minimum: Some(from as f64),
            maximum: to.map(|to| to as f64),
            ..MetaSchema::new_with_format("integer", "int64")
        };
        Self {
            name,
            about,
            schema,
        }
    }

    /// May stand several times; any of the values matches.
    pub(crate) fn repeated(mut self) -> Self {
        self.schema = MetaSchema {
            items: Some(Box::new(MetaSchemaRef::Inline(Box::new(self.schema)))),
            max_items: Some(100),
            ..MetaSchema::new("array")
        };
        self
    }

    fn document(self) -> MetaOperationParam {
        MetaOperationParam {
            name: self.name.to_owned(),
            schema: MetaSchemaRef::Inline(Box::new(self.schema)),
            in_type: MetaParamIn::Query,
            description: Some(self.about.to_owned()),
            required: false,
            deprecated: false,
            explode: true,
            style: None,
        }
    }
}

/// A set of query parameters that a route reads together.
pub(crate) trait Parameters: Sized + Send + 'static {
    /// The parameters, as they are documented.
    fn list() -> Vec<Parameter>;

    /// Reads them.
    fn read(reader: &mut Reader<'_>) -> Self;
}

/// Extracts a set of query parameters.
///
/// `poem-openapi` knows one parameter for each argument; this one stands for several, and
/// [`expand`] writes them out in the document.
#[derive(Debug)]
pub(crate) struct Params<T>(pub(crate) T);

impl<'a, T: Parameters> ApiExtractor<'a> for Params<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];
    type ParamType = ();
    type ParamRawType = ();

    fn register(_: &mut Registry) {}

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Query)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        let list = T::list();
        let properties = list
            .into_iter()
            .map(|p| {
                let schema = MetaSchema {
                    description: Some(p.about),
                    ..p.schema
                };
                (p.name, MetaSchemaRef::Inline(Box::new(schema)))
            })
            .collect();
        Some(MetaSchemaRef::Inline(Box::new(MetaSchema {
            properties,
            ..MetaSchema::new("object")
        })))
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let pairs = Pairs::of(request)?;
        let mut reader = Reader::new(&pairs);
        let value = T::read(&mut reader);
        reader.finish()?;
        Ok(Self(value))
    }
}

/// Writes out, in a document, the parameters that [`Params`] stands for.
pub(crate) fn expand(apis: &mut [MetaApi]) {
    let operations = apis
        .iter_mut()
        .flat_map(|a| &mut a.paths)
        .flat_map(|p| &mut p.operations);
    for operation in operations {
        let params = std::mem::take(&mut operation.params);
        for param in params {
            match param.schema {
                MetaSchemaRef::Inline(set)
                    if set.ty == "object" && param.in_type == MetaParamIn::Query =>
                {
                    for (name, schema) in set.properties {
                        let MetaSchemaRef::Inline(mut schema) = schema else {
                            continue;
                        };
                        let about = schema.description.take().unwrap_or_default();
                        operation.params.push(
                            Parameter {
                                name,
                                about,
                                schema: *schema,
                            }
                            .document(),
                        );
                    }
                }
                _ => operation.params.push(param),
            }
        }
    }
}
