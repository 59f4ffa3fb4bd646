//! The HTTP API of Amazon API Gateway has the routes of the document, and each leads to its own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

const DEFINITION: &str = include_str!("../../../deploy/api-gateway/openapi.json");
const TEMPLATE: &str = include_str!("../../../deploy/api-gateway/template.json");
const ABOUT: &str = include_str!("../../../deploy/api-gateway/README.md");

/// Routes that the document doesn't have: the server's pages.
const PAGES: [&str; 5] = [
    "/",
    "/docs",
    "/openapi.json",
    "/openapi.yaml",
    "/problems/{name}",
];
/// The route that is refused there, and the one that ends early: the README says how to go past.
const PAST: [&str; 2] = ["/api/v1/logs/stream", "/api/v1/logs/export"];

/// Where each route of a definition leads, by method and path.
fn routes(definition: &Value) -> BTreeMap<(String, String), Value> {
    let paths = definition["paths"].as_object().unwrap();
    let methods = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap();
        methods.iter().map(move |(method, operation)| {
            let path = path.replace("+}", "}");
            ((method.clone(), path), operation.clone())
        })
    });
    methods.collect()
}

/// Every operation of the document that is served, and the pages.
fn expected() -> BTreeSet<(String, String)> {
    let described = audit_server::docs::document();
    let mut expected: BTreeSet<_> = routes(&described).into_keys().collect();
    expected.extend(PAGES.map(|path| ("get".to_owned(), path.to_owned())));
    expected
}

/// What CloudFormation makes of the template's definition with these parameters.
fn resolved(value: &Value, parameters: &Value) -> Option<Value> {
    let set = |name: &str| parameters[name] != "";
    let Value::Object(map) = value else {
        return match value {
            Value::Array(items) => Some(
                items
                    .iter()
                    .filter_map(|v| resolved(v, parameters))
                    .collect(),
            ),
            other => Some(other.clone()),
        };
    };
    if let Some(name) = map.get("Ref").and_then(Value::as_str) {
        return (name != "AWS::NoValue").then(|| parameters[name].clone());
    }
    if let Some(text) = map.get("Fn::Sub").and_then(Value::as_str) {
        let url = parameters["BackendUrl"].as_str().unwrap();
        return Some(text.replace("${BackendUrl}", url).into());
    }
    if let Some(choice) = map.get("Fn::If") {
        let holds = match choice[0].as_str().unwrap() {
            "ViaVpcLink" => set("VpcLinkId"),
            "WithServerName" => set("VpcLinkId") && set("ListenerServerName"),
            "WithJwt" => set("JwtIssuer"),
            other => panic!("an unknown condition {other}"),
        };
        return resolved(&choice[if holds { 1 } else { 2 }], parameters);
    }
    Some(
        map.iter()
            .filter_map(|(name, value)| Some((name.clone(), resolved(value, parameters)?)))
            .collect(),
    )
}

/// The definition within the template, and the same with parameters filled in.
fn with(parameters: Value) -> Value {
    let template: Value = serde_json::from_str(TEMPLATE).unwrap();
    let mut all = json!({});
    for name in template["Parameters"].as_object().unwrap().keys() {
        all[name] = template["Parameters"][name]["Default"].clone();
    }
    for (name, value) in parameters.as_object().unwrap() {
        assert!(all.get(name).is_some(), "{name} is no parameter");
        all[name] = value.clone();
    }
    resolved(&template["Resources"]["Api"]["Properties"]["Body"], &all).unwrap()
}

#[test]
fn the_gateway_has_every_route_of_the_document_and_no_other() {
    let public = with(json!({"BackendUrl": "https://audit.example.com"}));
    let private =
        with(json!({"VpcLinkId": "abc123", "ListenerArn": "arn:aws:elasticloadbalancing:x"}));
    let alone: Value = serde_json::from_str(DEFINITION).unwrap();
    for (definition, backend) in [
        (&public, Some("https://audit.example.com")),
        (&private, None),
        (&alone, Some("https://${stageVariables.backend}")),
    ] {
        let routes = routes(definition);
        let found: BTreeSet<_> = routes.keys().cloned().collect();
        assert_eq!(found, expected());
        for ((method, path), operation) in &routes {
            let integration = &operation["x-amazon-apigateway-integration"];
            assert_eq!(integration["type"], "http_proxy", "{path}");
            assert_eq!(integration["httpMethod"], method.to_uppercase(), "{path}");
            // An HTTP API waits for at most 30 s.
            assert_eq!(integration["timeoutInMillis"], 30_000, "{path}");
            match backend {
                Some(backend) => {
                    assert_eq!(integration["connectionType"], "INTERNET", "{path}");
                    assert_eq!(integration["uri"], format!("{backend}{path}"));
                    assert!(integration.get("connectionId").is_none(), "{path}");
                }
                None => {
                    assert_eq!(integration["connectionType"], "VPC_LINK", "{path}");
                    assert_eq!(integration["connectionId"], "abc123", "{path}");
                    assert_eq!(
                        integration["uri"], "arn:aws:elasticloadbalancing:x",
                        "{path}"
                    );
                }
            }
            // Nothing touches Authorization, so that it arrives as it was sent.
            let changes = integration.get("requestParameters");
            let refused = json!({"overwrite:header.accept": "application/problem+json"});
            assert_eq!(changes, (path == PAST[0]).then_some(&refused), "{path}");
            assert!(operation.get("security").is_none(), "{path}");
        }
    }
}

#[test]
fn with_an_issuer_the_gateway_checks_what_the_server_checks() {
    let definition = with(json!({
        "BackendUrl": "https://audit.example.com",
        "JwtIssuer": "https://issuer.example.com",
        "JwtAudience": "audit",
    }));
    let authorizer =
        &definition["components"]["securitySchemes"]["jwt"]["x-amazon-apigateway-authorizer"];
    assert_eq!(
        authorizer["identitySource"],
        "$request.header.Authorization"
    );
    assert_eq!(
        authorizer["jwtConfiguration"],
        json!({"issuer": "https://issuer.example.com", "audience": ["audit"]})
    );
    let described = routes(&audit_server::docs::document());
    for (route, operation) in routes(&definition) {
        let secured = described
            .get(&route)
            .and_then(|o| o.get("security")?.as_array())
            .is_some_and(|security| !security.contains(&json!({})));
        assert_eq!(
            operation.get("security"),
            secured.then_some(&json!([{"jwt": []}])),
            "{route:?}"
        );
    }
}

#[test]
fn what_must_not_go_through_the_gateway_is_told() {
    for path in PAST {
        assert!(audit_server::docs::document()["paths"].get(path).is_some());
        assert!(ABOUT.contains(path), "README.md doesn't name {path}");
    }
}
