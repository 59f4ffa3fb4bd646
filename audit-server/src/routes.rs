//! From the described operations to routes: what every route does before and after its handler.
//!
//! Each operation's own description says which query parameters it knows and whether it needs a
//! credential, so that a route can't be served without the check that it documents.

use std::collections::HashMap;
use std::sync::Arc;

use poem::endpoint::BoxEndpoint;
use poem::http::header::ALLOW;
use poem::http::{HeaderValue, Method, StatusCode};
use poem::{Endpoint, IntoResponse, Request, Response, Route};
use poem_openapi::OpenApi;
use poem_openapi::registry::{MetaApi, MetaParamIn};

use crate::app::App;
use crate::auth;
use crate::body::Pace;
use crate::problem::{Problem, ProblemKind};
use crate::query::{self, Pairs};

/// What the metrics and the log call a route.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(pub(crate) Arc<str>);

/// The tags of operations that are not within one tenant.
const DEPLOYMENT: [&str; 2] = ["Tenants", "Operations"];

/// The operations as the document shows them.
pub(crate) fn described<T: OpenApi>() -> Vec<MetaApi> {
    let mut apis = T::meta();
    query::expand(&mut apis);
    for operation in apis
        .iter_mut()
        .flat_map(|a| &mut a.paths)
        .flat_map(|p| &mut p.operations)
    {
        let of_tenant = !DEPLOYMENT.iter().any(|tag| operation.tags.contains(tag));
        if of_tenant && !operation.security.is_empty() {
            operation.params.extend(crate::docs::tenant_parameters());
        }
    }
    apis
}

/// One operation: the checks that its description asks for, then its handler.
struct Operation {
    app: Arc<App>,
    parameters: Vec<String>,
    secured: bool,
    /// Whether it serves some things without a credential.
    open: bool,
    handler: BoxEndpoint<'static>,
}

impl Operation {
    async fn call(&self, mut request: Request) -> Result<Response, Problem> {
        let pairs = Pairs::of(&request)?;
        pairs.admit_only(&self.parameters)?;
        if *request.method() != Method::GET {
            request.set_data(Pace(self.app.receive_timeout));
        }
        let mut left = None;
        if self.secured {
            let limits = self.app.gate.limits.as_ref();
            if let (Some(limits), Some(ip)) = (limits, self.app.address_of(&request)) {
                limits.address(ip)?;
            }
            if !self.open || auth::names_credential(&request, &pairs) {
                let caller = self.app.gate.authenticate(&request, &pairs).await?;
                left = limits
                    .map(|limits| limits.principal(&caller.principal))
                    .transpose()?;
                request.set_data(caller);
            }
        }
        let mut response = match self.handler.call(request).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        };
        if let Some(left) = left {
            left.write(response.headers_mut());
        }
        Ok(response)
    }
}

/// All operations of one path.
struct PathEndpoint {
    app: Arc<App>,
    pattern: Pattern,
    allow: String,
    operations: HashMap<Method, Operation>,
}

impl Endpoint for PathEndpoint {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let method = request.method();
        // RFC 9110 §9.3.2: HEAD is GET without the content, which hyper leaves out.
        let known = if *method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        let mut response = match self.operations.get(known) {
            Some(operation) => operation
                .call(request)
                .await
                .unwrap_or_else(Problem::into_response),
            None if *method == Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
            None => Problem::new(
                ProblemKind::MethodNotAllowed,
                format!("this address knows {}", self.allow),
            )
            .allow(self.allow.clone())
            .into_response(),
        };
        if response.status() == StatusCode::NO_CONTENT
            && let Ok(allow) = HeaderValue::try_from(&self.allow)
        {
            response.headers_mut().insert(ALLOW, allow);
        }
        if let Some(limits) = &self.app.gate.limits {
            limits.write_policy(response.headers_mut());
        }
        response.set_data(self.pattern.clone());
        Ok(response)
    }
}

/// Routes for all operations of `api`.
pub(crate) fn routes<T: OpenApi>(app: &Arc<App>, api: T) -> Route {
    let mut handlers = HashMap::new();
    api.add_routes(&mut handlers);
    let mut route = Route::new();
    let mut paths: HashMap<String, HashMap<Method, Operation>> = HashMap::new();
    for path in described::<T>().into_iter().flat_map(|api| api.paths) {
        let served = served_path(&path.path);
        for operation in path.operations {
            let Some(handler) = handlers
                .get_mut(&served)
                .and_then(|methods| methods.remove(&operation.method))
            else {
                continue;
            };
            let operation_of_path = Operation {
                app: Arc::clone(app),
                parameters: operation
                    .params
                    .iter()
                    .filter(|p| p.in_type == MetaParamIn::Query)
                    .map(|p| p.name.clone())
                    .collect(),
                secured: !operation.security.is_empty(),
                open: operation.security.iter().any(HashMap::is_empty),
                handler,
            };
            paths
                .entry(path.path.clone())
                .or_default()
                .insert(operation.method, operation_of_path);
        }
    }
    for (described, operations) in paths {
        let mut methods: Vec<&str> = operations.keys().map(Method::as_str).collect();
        if operations.contains_key(&Method::GET) {
            methods.push("HEAD");
        }
        methods.push("OPTIONS");
        methods.sort_unstable();
        let allow = methods.join(", ");
        let endpoint = PathEndpoint {
            app: Arc::clone(app),
            allow,
            pattern: Pattern(described.as_str().into()),
            operations,
        };
        route = route.at(matched_path(&described), endpoint);
    }
    route
}

/// The last parameters that take the rest of a path, with its slashes.
const RESTS: [&str; 1] = ["/{tile}"];

/// The pattern that requests are matched with.
fn matched_path(described: &str) -> String {
    let served = served_path(described);
    match served.rsplit_once("/:") {
        Some((before, last)) if RESTS.iter().any(|rest| described.ends_with(rest)) => {
            format!("{before}/*{last}")
        }
        _ => served,
    }
}

/// The path as the handlers are known by: `/a/{id}` is `/a/:param0`.
fn served_path(described: &str) -> String {
    let mut count = 0;
    described
        .split('/')
        .map(|part| {
            if part.starts_with('{') {
                count += 1;
                format!(":param{}", count - 1)
            } else {
                part.to_owned()
            }
        })
        .collect::<Vec<_>>()
        .join("/")
}
