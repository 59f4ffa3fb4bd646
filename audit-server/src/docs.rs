//! The OpenAPI document, in JSON and YAML, and the page that shows it.

use std::collections::HashMap;
use std::marker::PhantomData;

use poem::endpoint::BoxEndpoint;
use poem::http::Method;
use poem_openapi::registry::{
    MetaApi, MetaOperationParam, MetaParamIn, MetaSchema, MetaSchemaRef, Registry,
};
use poem_openapi::{LicenseObject, OpenApi, OpenApiService, ServerObject};
use serde_json::{Map, Value, json};

use crate::api::Api;
use crate::auth::TENANT_PARAMETER;
use crate::problem::ProblemKind;
use crate::routes;

const TITLE: &str = "Audit log";

const ABOUT: &str = "Multi-tenant audit logging: who did what to which resource, when, from where, \
with what outcome, and what changed. Each tenant has one append-only, tamper-evident log.\n\n\
Errors are problem details (RFC 9457) with a stable `type`, which is explained at its address. \
A parameter or field that is not known is refused by name. Times are RFC 3339 and UTC. \
Lists are newest first. Every response has an `X-Request-Id`, the request's own where it sent one.";

/// The properties of responses that are null instead of absent.
const NULLABLE: [(&str, &str); 17] = [
    ("EntryPage", "next_cursor"),
    ("TenantPage", "next_cursor"),
    ("ApiKeys", "next_cursor"),
    ("LegalHoldPage", "next_cursor"),
    ("LegalHold", "reason"),
    ("LegalHold", "placed_by"),
    ("LegalHold", "released_at"),
    ("Pruned", "id"),
    ("Retention", "keep_days"),
    ("Retention", "minimum_days"),
    ("RetentionDue", "refused"),
    ("SetRetention", "keep_days"),
    ("SetRetention", "minimum_days"),
    ("ApiKey", "expires_at"),
    ("ApiKey", "last_used_at"),
    ("MadeApiKey", "expires_at"),
    ("MadeApiKey", "last_used_at"),
];

/// The bodies of requests: a name that isn't listed is refused, and null is the same as absent.
const REQUESTS: [&str; 12] = [
    "ActionRetention",
    "ErasureFilter",
    "Event",
    "NewApiKey",
    "NewErasure",
    "NewLegalHold",
    "NewPrune",
    "NewRetention",
    "NewTenant",
    "Redrive",
    "RelatedResource",
    "TenantChange",
];

/// The parameters that every tenant route has besides its own.
pub(crate) fn tenant_parameters() -> [MetaOperationParam; 2] {
    let parameter = |name: &str, in_type, about: &str| MetaOperationParam {
        name: name.to_owned(),
        schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new_with_format("string", "uuid"))),
        in_type,
        description: Some(about.to_owned()),
        required: false,
        deprecated: false,
        explode: true,
        style: None,
    };
    [
        parameter(
            "X-Tenant-Id",
            MetaParamIn::Header,
            "The tenant, for a caller who may act in several. For any other it must be its own.",
        ),
        parameter(
            TENANT_PARAMETER,
            MetaParamIn::Query,
            "The same as `X-Tenant-Id`.",
        ),
    ]
}

/// The operations with all their parameters, for the document only.
struct Described<T>(PhantomData<T>);

impl<T: OpenApi> OpenApi for Described<T> {
    fn meta() -> Vec<MetaApi> {
        routes::described::<T>()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn add_routes(self, _: &mut HashMap<String, HashMap<Method, BoxEndpoint<'static>>>) {}
}

fn service() -> OpenApiService<Described<Api>, ()> {
    OpenApiService::new(
        Described(PhantomData::<Api>),
        TITLE,
        env!("CARGO_PKG_VERSION"),
    )
    .description(ABOUT)
    .license(LicenseObject::new("MIT OR Apache-2.0"))
    .server(ServerObject::new("/"))
}

/// The document.
///
/// # Panics
/// Never: what is parsed was printed by the same library.
pub fn document() -> Value {
    #[allow(clippy::expect_used)] // poem-openapi prints JSON
    let mut document: Value = serde_json::from_str(&service().spec()).expect("JSON");
    normalise(&mut document);
    add_headers(&mut document);
    for (schema, property) in NULLABLE {
        let path = format!("/components/schemas/{schema}/properties/{property}");
        if let Some(property) = document.pointer_mut(&path) {
            property["nullable"] = json!(true);
        }
    }
    for name in REQUESTS {
        let Some(schema) = document.pointer_mut(&format!("/components/schemas/{name}")) else {
            continue;
        };
        schema["additionalProperties"] = json!(false);
        let required = schema["required"].clone();
        for (name, property) in schema["properties"].as_object_mut().into_iter().flatten() {
            let optional = !required
                .as_array()
                .is_some_and(|r| r.iter().any(|r| r == name));
            // Beside a reference, OpenAPI 3.0 ignores everything else.
            if optional && property.get("$ref").is_none() {
                property["nullable"] = json!(true);
            }
        }
    }
    document
}

/// The document as JSON, indented, with a line break at its end.
pub fn json() -> String {
    format!("{:#}\n", document())
}

/// The document as YAML 1.2.
pub fn yaml() -> String {
    let mut out = String::new();
    write_yaml(&mut out, &document(), 0);
    out
}

/// poem-openapi adds a charset to media types, which client generators keep, and writes header names
/// in capitals.
fn normalise(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let renamed: Map<String, Value> = std::mem::take(map)
                .into_iter()
                .map(|(key, mut value)| {
                    normalise(&mut value);
                    if let ("headers", Value::Object(headers)) = (key.as_str(), &mut value) {
                        *headers = std::mem::take(headers)
                            .into_iter()
                            .map(|(name, header)| (title_case(&name), header))
                            .collect();
                    }
                    (key.replace("; charset=utf-8", ""), value)
                })
                .collect();
            *map = renamed;
            if map.get("in").is_some_and(|place| place == "header")
                && let Some(Value::String(name)) = map.get_mut("name")
            {
                *name = title_case(name);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(normalise),
        _ => {}
    }
}

fn title_case(name: &str) -> String {
    let words: Vec<String> = name
        .split('-')
        .map(|word| match word.to_ascii_uppercase().as_str() {
            "ID" if name.to_ascii_uppercase().starts_with("LAST-EVENT") => "ID".to_owned(),
            word => {
                let (first, rest) = word.split_at(word.len().min(1));
                format!("{first}{}", rest.to_ascii_lowercase())
            }
        })
        .collect();
    words.join("-")
}

/// The headers that every response has, or every refusal of its status.
fn add_headers(document: &mut Value) {
    let text = |about: &str| json!({"description": about, "schema": {"type": "string"}});
    let Some(Value::Object(paths)) = document.get_mut("paths") else {
        return;
    };
    let operations = paths
        .values_mut()
        .filter_map(Value::as_object_mut)
        .flat_map(Map::values_mut);
    for operation in operations {
        let secured = operation.get("security").is_some();
        let Some(responses) = operation
            .get_mut("responses")
            .and_then(Value::as_object_mut)
        else {
            continue;
        };
        for (status, response) in responses {
            let Some(response) = response.as_object_mut() else {
                continue;
            };
            let headers = response.entry("headers").or_insert_with(|| json!({}));
            headers["X-Request-Id"] = text("Names this request in the server's log.");
            if secured {
                headers["RateLimit-Policy"] = text("The limit of a principal.");
            }
            if secured && status.starts_with('2') {
                headers["RateLimit"] = text("What is left of it.");
            }
            if status == "429" || (status == "503" && secured) {
                headers["Retry-After"] = json!({
                    "description": "Seconds until a retry may work.",
                    "schema": {"type": "integer"},
                });
            }
        }
    }
}

/// Block style; every string is quoted as in JSON, of which YAML 1.2 is a superset.
fn write_yaml(out: &mut String, value: &Value, depth: usize) {
    let indent = |out: &mut String| out.extend(std::iter::repeat_n("  ", depth));
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                indent(out);
                out.push_str(&yaml_key(key));
                out.push(':');
                write_nested(out, value, depth);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                indent(out);
                out.push('-');
                write_nested(out, item, depth);
            }
        }
        scalar => {
            indent(out);
            put!(out, "{scalar}\n");
        }
    }
}

fn write_nested(out: &mut String, value: &Value, depth: usize) {
    let nested = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        out.push('\n');
        write_yaml(out, value, depth + 1);
    } else {
        put!(out, " {value}\n");
    }
}

/// A plain key where YAML reads it as the same text, else a quoted one.
fn yaml_key(key: &str) -> String {
    let plain = key
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"_-$/{}".contains(&b))
        && key
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'/')
        && !matches!(
            key.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if plain {
        key.to_owned()
    } else {
        Value::from(key).to_string()
    }
}

/// The page that shows the document. It loads nothing from elsewhere.
pub(crate) fn page() -> String {
    let service = service();
    let page = service
        .rapidoc_html()
        .replace(&service.spec(), &document().to_string());
    // The template and its script ask for fonts from other hosts, and the page names itself.
    let page = page
        .replace("<rapi-doc\n", "<rapi-doc load-fonts=\"false\"\n")
        .replace("<title>RapiDoc</title>", &format!("<title>{TITLE}</title>"));
    match (
        page.find("<link href=\"https://fonts."),
        page.find("<title>"),
    ) {
        (Some(from), Some(to)) if from < to => format!("{}{}", &page[..from], &page[to..]),
        _ => page,
    }
}

/// What a kind of problem means: the resource behind its `type`.
pub(crate) fn problem_page(name: &str) -> Option<String> {
    let kind = ProblemKind::ALL.iter().find(|kind| kind.name() == name)?;
    Some(format!(
        "{} ({})\n\n{}\n",
        kind.title(),
        kind.status(),
        kind.about()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_have_no_charset_and_nothing_comes_from_elsewhere() {
        assert!(!json().contains("charset"));
        let page = page();
        assert!(!page.contains("fonts.googleapis"));
        assert!(page.contains("/api/v1/logs/bulk"));
        assert!(
            !page.contains("charset=utf-8\":"),
            "the page shows the normalised document"
        );
    }

    #[test]
    fn yaml_quotes_what_it_would_misread() {
        assert_eq!(yaml_key("200"), "\"200\"");
        assert_eq!(yaml_key("no"), "\"no\"");
        assert_eq!(yaml_key("/api/v1/logs/{id}"), "/api/v1/logs/{id}");
        let mut out = String::new();
        write_yaml(
            &mut out,
            &json!({"a": {"b": [1, {"c": []}]}, "d": "x: y"}),
            0,
        );
        assert_eq!(out, "a:\n  b:\n    - 1\n    -\n      c: []\nd: \"x: y\"\n");
    }
}
