//! Who may do what, for every operation of the document: each refused cell leaves everything as it
//! was and tells nothing of the other tenant, and has a twin that differs in one thing and succeeds.

use std::time::Duration;

use audit_core::{Event, EventId, Permission, Role, TenantFilter, TenantId, TenantScope};
use serde_json::Value;

use crate::service::{SECRET, Service, event, in_seconds, token, token_until};

const MARKER: &str = "marker-c0ffee-of-the-other-tenant";

/// What an operation asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Tenant(Permission),
    Operator,
    /// An admin; of one tenant, where the credential acts in no other.
    Admin,
}

fn needs(operation: &str) -> Option<Needs> {
    use Permission::{Cleanup, Erase, Export, Keys, Read, Record, Stream};
    Some(match operation {
        "get /health/live" | "get /health/ready" => Needs::Nothing,
        "post /api/v1/logs" | "post /api/v1/logs/bulk" => Needs::Tenant(Record),
        "get /api/v1/logs"
        | "get /api/v1/logs/{id}"
        | "get /api/v1/logs/{id}/proof"
        | "get /api/v1/logs/stats"
        | "get /api/v1/tlog/{tenant_id}/checkpoint"
        | "get /api/v1/tlog/{tenant_id}/key"
        | "get /api/v1/tlog/{tenant_id}/tile/{tile}"
        | "get /api/v1/tlog/{tenant_id}/deployment"
        | "get /api/v1/tlog-deployment/checkpoint"
        | "get /api/v1/tlog-deployment/key"
        | "get /api/v1/tlog-deployment/tile/{tile}" => Needs::Tenant(Read),
        "get /api/v1/logs/export" => Needs::Tenant(Export),
        "get /api/v1/logs/stream" | "post /api/v1/logs/stream/ticket" => Needs::Tenant(Stream),
        "post /api/v1/prunes" | "get /api/v1/prunes/{id}" | "delete /api/v1/logs/cleanup" => {
            Needs::Tenant(Cleanup)
        }
        "post /api/v1/erasures"
        | "get /api/v1/erasures/{id}"
        | "delete /api/v1/logs/cleanup/{id}" => Needs::Tenant(Erase),
        "get /api/v1/api-keys" | "post /api/v1/api-keys" | "delete /api/v1/api-keys/{id}" => {
            Needs::Tenant(Keys)
        }
        "get /api/v1/tenants/{id}"
        | "get /api/v1/tenants/{id}/retention"
        | "get /api/v1/tenants/{id}/legal-holds" => Needs::Admin,
        "get /api/v1/tenants"
        | "post /api/v1/tenants"
        | "patch /api/v1/tenants/{id}"
        | "delete /api/v1/tenants/{id}"
        | "put /api/v1/tenants/{id}/retention"
        | "post /api/v1/tenants/{id}/legal-holds"
        | "delete /api/v1/tenants/{id}/legal-holds/{hold_id}"
        | "get /api/v1/admin/dead-letters"
        | "get /api/v1/admin/reindex"
        | "post /api/v1/admin/reindex"
        | "post /api/v1/admin/dead-letters/redrive" => Needs::Operator,
        _ => return None,
    })
}

/// A request for an operation.
#[derive(Debug, Clone)]
struct Call {
    method: &'static str,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(&'static str, String)>,
    body: Option<String>,
}

impl Call {
    fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
        }
    }

    fn body(mut self, body: impl Into<String>) -> Self {
        self.body = Some(body.into());
        self
    }

    fn query(mut self, name: &str, value: impl Into<String>) -> Self {
        self.query.push((name.into(), value.into()));
        self
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

struct World {
    service: Service,
    home: TenantId,
    other: TenantId,
    held: TenantId,
    /// Entries of these two that a checkpoint covers.
    proved: [EventId; 2],
}

impl World {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        let settings = [&[("AUDIT_DEPLOYMENT_EVERY", "1")][..], settings].concat();
        let service = Service::with(&settings).await;
        let home = service.tenant("home").await;
        let other = service.tenant(MARKER).await;
        for n in 0..5 {
            let resource = format!("{MARKER}-{n}");
            let event = Event::update(MARKER, resource).user(MARKER).reason(MARKER);
            service.record(other, event).await;
            service
                .record(home, Event::view("doc", format!("d{n}")).user("ann"))
                .await;
        }
        let world = Self {
            proved: [proved(&service, home).await, proved(&service, other).await],
            held: service.tenant("held").await,
            service,
            home,
            other,
        };
        world.make_key(other, MARKER).await;
        world
    }

    async fn make_key(&self, tenant: TenantId, name: &str) -> String {
        let body = format!(r#"{{"name":"{name}","role":"writer"}}"#);
        let call = Call::new("POST", "/api/v1/api-keys").body(body);
        let answer = self
            .send(&call, Some(&token(Role::TenantAdmin, tenant)))
            .await;
        let made: Value = serde_json::from_str(&answer.1).unwrap();
        made["id"].as_str().unwrap().to_owned()
    }

    async fn prune(&self, tenant: TenantId) -> String {
        // Something newer than the last prune has to be there.
        self.service
            .record(tenant, Event::view("doc", MARKER_FREE))
            .await;
        let scope = TenantScope::trusted(tenant, "test");
        let basis = audit_core::Basis::parse("test").unwrap();
        let log = self.service.storage.log.tenant(scope);
        let pruned = log.prune(in_seconds(5), basis, None, false).await.unwrap();
        pruned.receipt.unwrap().id.to_string()
    }

    /// An erasure of nothing.
    async fn erasure(&self, tenant: TenantId) -> String {
        let log = TenantScope::trusted(tenant, "test");
        let log = self.service.storage.log.tenant(log);
        let basis = audit_core::Basis::parse("test").unwrap();
        let nobody = audit_core::Selection::user("nobody");
        let request = audit_core::ErasureRequest::new(nobody, basis);
        log.request_erasure(request).await.unwrap().id.to_string()
    }

    /// A request that would succeed, with the objects of `tenant` in its path.
    async fn call(&self, operation: &str, tenant: TenantId) -> Option<Call> {
        let marked = if tenant == self.other {
            MARKER
        } else {
            MARKER_FREE
        };
        let entry = async || {
            let event = Event::view("doc", marked).user(marked);
            self.service.record(tenant, event).await
        };
        Some(match operation {
            "get /health/live" => Call::new("GET", "/health/live"),
            "get /health/ready" => Call::new("GET", "/health/ready"),
            "post /api/v1/logs" => Call::new("POST", "/api/v1/logs").body(event("m")),
            "post /api/v1/logs/bulk" => {
                let items = format!("[{},{}]", event("m1"), event("m2"));
                Call::new("POST", "/api/v1/logs/bulk").body(items)
            }
            "get /api/v1/logs" => Call::new("GET", "/api/v1/logs"),
            "get /api/v1/logs/{id}" => Call::new("GET", format!("/api/v1/logs/{}", entry().await)),
            "get /api/v1/logs/{id}/proof" => {
                let id = if tenant == self.other {
                    self.proved[1]
                } else {
                    self.proved[0]
                };
                Call::new("GET", format!("/api/v1/logs/{id}/proof"))
            }
            "get /api/v1/tlog/{tenant_id}/checkpoint" => {
                Call::new("GET", format!("/api/v1/tlog/{tenant}/checkpoint"))
            }
            "get /api/v1/tlog/{tenant_id}/key" => {
                Call::new("GET", format!("/api/v1/tlog/{tenant}/key"))
            }
            "get /api/v1/tlog/{tenant_id}/tile/{tile}" => {
                Call::new("GET", format!("/api/v1/tlog/{tenant}/tile/0/000.p/1"))
            }
            "get /api/v1/tlog/{tenant_id}/deployment" => {
                Call::new("GET", format!("/api/v1/tlog/{tenant}/deployment"))
            }
            "get /api/v1/tlog-deployment/checkpoint" => {
                Call::new("GET", "/api/v1/tlog-deployment/checkpoint")
            }
            "get /api/v1/tlog-deployment/key" => Call::new("GET", "/api/v1/tlog-deployment/key"),
            "get /api/v1/tlog-deployment/tile/{tile}" => {
                Call::new("GET", "/api/v1/tlog-deployment/tile/0/000.p/1")
            }
            "get /api/v1/logs/stats" => Call::new("GET", "/api/v1/logs/stats"),
            "get /api/v1/logs/export" => {
                Call::new("GET", "/api/v1/logs/export").query("format", "ndjson")
            }
            "get /api/v1/logs/stream" => {
                Call::new("GET", "/api/v1/logs/stream").query("from_seq", "0")
            }
            "post /api/v1/logs/stream/ticket" => Call::new("POST", "/api/v1/logs/stream/ticket"),
            "post /api/v1/prunes" => {
                Call::new("POST", "/api/v1/prunes").body(r#"{"older_than_days":1}"#)
            }
            "get /api/v1/prunes/{id}" => Call::new(
                "GET",
                format!("/api/v1/prunes/{}", self.prune(tenant).await),
            ),
            "post /api/v1/erasures" => {
                Call::new("POST", "/api/v1/erasures").body(r#"{"user_id":"nobody"}"#)
            }
            "get /api/v1/erasures/{id}" => Call::new(
                "GET",
                format!("/api/v1/erasures/{}", self.erasure(tenant).await),
            ),
            "delete /api/v1/logs/cleanup" => {
                Call::new("DELETE", "/api/v1/logs/cleanup").query("older_than_days", "1")
            }
            "delete /api/v1/logs/cleanup/{id}" => {
                Call::new("DELETE", format!("/api/v1/logs/cleanup/{}", entry().await))
            }
            "get /api/v1/api-keys" => Call::new("GET", "/api/v1/api-keys"),
            "post /api/v1/api-keys" => {
                Call::new("POST", "/api/v1/api-keys").body(r#"{"name":"k","role":"writer"}"#)
            }
            "delete /api/v1/api-keys/{id}" => {
                let key = self.make_key(tenant, marked).await;
                Call::new("DELETE", format!("/api/v1/api-keys/{key}"))
            }
            "get /api/v1/tenants" => Call::new("GET", "/api/v1/tenants"),
            "post /api/v1/tenants" => {
                Call::new("POST", "/api/v1/tenants").body(r#"{"name":"new"}"#)
            }
            "get /api/v1/tenants/{id}" => Call::new("GET", format!("/api/v1/tenants/{tenant}")),
            "patch /api/v1/tenants/{id}" => Call::new("PATCH", format!("/api/v1/tenants/{tenant}"))
                .body(format!(r#"{{"name":"{marked}"}}"#)),
            // One that the other operations don't need.
            "delete /api/v1/tenants/{id}" => {
                let ended = self.service.tenant(marked).await;
                Call::new("DELETE", format!("/api/v1/tenants/{ended}")).query("archive", "none")
            }
            "get /api/v1/tenants/{id}/retention" => {
                Call::new("GET", format!("/api/v1/tenants/{tenant}/retention"))
            }
            "put /api/v1/tenants/{id}/retention" => {
                Call::new("PUT", format!("/api/v1/tenants/{tenant}/retention"))
                    .body(r#"{"keep_days":36500}"#)
            }
            "get /api/v1/tenants/{id}/legal-holds" => {
                Call::new("GET", format!("/api/v1/tenants/{tenant}/legal-holds"))
            }
            // Nothing of the other operations' tenants is held.
            "post /api/v1/tenants/{id}/legal-holds" => {
                Call::new("POST", format!("/api/v1/tenants/{}/legal-holds", self.held))
                    .body(format!(r#"{{"name":"{marked}"}}"#))
            }
            "delete /api/v1/tenants/{id}/legal-holds/{hold_id}" => {
                let log = &self.service.storage.log;
                let hold = log.place_hold(self.held, None, marked, "test", None);
                let hold = hold.await.unwrap().id;
                let path = format!("/api/v1/tenants/{}/legal-holds/{hold}", self.held);
                Call::new("DELETE", path)
            }
            "get /api/v1/admin/dead-letters" => Call::new("GET", "/api/v1/admin/dead-letters"),
            "get /api/v1/admin/reindex" => Call::new("GET", "/api/v1/admin/reindex"),
            "post /api/v1/admin/reindex" => Call::new("POST", "/api/v1/admin/reindex"),
            "post /api/v1/admin/dead-letters/redrive" => {
                Call::new("POST", "/api/v1/admin/dead-letters/redrive").body("{}")
            }
            _ => return None,
        })
    }

    /// Status and body; of a stream that opened, no body.
    async fn send(&self, call: &Call, token: Option<&str>) -> (u16, String) {
        let method = call.method.parse().unwrap();
        let url = {
            let mut url = reqwest::Url::parse(&self.service.url(&call.path)).unwrap();
            if !call.query.is_empty() {
                url.query_pairs_mut().extend_pairs(&call.query);
            }
            url
        };
        let mut request = self.service.http.request(method, url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        if let Some(body) = &call.body {
            request = request
                .header("content-type", "application/json")
                .body(body.clone());
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let streams = response
            .headers()
            .get("content-type")
            .is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"));
        let body = if streams {
            String::new()
        } else {
            response.text().await.unwrap()
        };
        (status, body)
    }

    /// Everything that a refused call must leave alone.
    async fn fingerprint(&self) -> String {
        let log = &self.service.storage.log;
        let mut parts = Vec::new();
        for tenant in log
            .tenants()
            .tenants(&TenantFilter::all(), None, 1000)
            .await
            .unwrap()
        {
            // One that ends goes on changing.
            let is_ending = log.ending(tenant.id).await.unwrap().is_some();
            if is_ending || log.tombstone(tenant.id).await.unwrap().is_some() {
                continue;
            }
            let scope = TenantScope::trusted(tenant.id, "test");
            let mut head = log.tenant(scope.clone()).head().await.unwrap();
            // Rows of what is pruned go in their own time.
            head.swept_below = 0;
            let mut keys = self
                .service
                .storage
                .credentials
                .keys(&scope, None, 1_000)
                .await
                .unwrap();
            // That a key was used may be noted at any time.
            keys.iter_mut().for_each(|key| key.last_used_at = None);
            let retention = log.retention(tenant.id).await.unwrap();
            let holds = log.holds(tenant.id, None, 1_000).await.unwrap();
            parts.push(format!(
                "{tenant:?} {head:?} {keys:?} {retention:?} {holds:?}"
            ));
        }
        parts.join("\n")
    }

    async fn refused(&self, cell: &str, call: &Call, token: Option<&str>, statuses: &[u16]) {
        let before = self.fingerprint().await;
        let (status, body) = self.send(call, token).await;
        assert!(statuses.contains(&status), "{cell}: {status} {body}");
        assert!(!body.contains(MARKER), "{cell}: {body}");
        assert_eq!(before, self.fingerprint().await, "{cell} changed something");
    }

    async fn succeeds(&self, cell: &str, call: &Call, token: Option<&str>, marker_may_show: bool) {
        let (status, body) = self.send(call, token).await;
        assert!((200..300).contains(&status), "{cell}: {status} {body}");
        assert!(marker_may_show || !body.contains(MARKER), "{cell}: {body}");
    }
}

const MARKER_FREE: &str = "harmless";

/// An entry that a checkpoint covers, of a log whose head is in the deployment log.
async fn proved(service: &Service, tenant: TenantId) -> EventId {
    let id = service
        .record(tenant, Event::view("doc", MARKER_FREE))
        .await;
    let log = service
        .storage
        .log
        .tenant(TenantScope::trusted(tenant, "test"));
    tokio::time::timeout(Duration::from_secs(20), async {
        while let Err(error) = log.proof(id).await {
            assert!(error.is_retryable(), "{error}");
            tokio::task::yield_now().await;
        }
        while let Err(error) = log.head_proof().await {
            assert!(error.is_retryable(), "{error}");
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    id
}

/// A token of the same claims as `good`, with another header and signature.
fn forged(good: &str, header: &str, signature: &str) -> String {
    use base64::Engine as _;
    let claims = good.split('.').nth(1).unwrap();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header);
    format!("{header}.{claims}.{signature}")
}

fn operations() -> Vec<String> {
    let document = audit_server::docs::document();
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, methods)| {
            methods
                .as_object()
                .unwrap()
                .keys()
                .map(move |method| format!("{method} {path}"))
        })
        .collect()
}

#[tokio::test]
async fn every_operation_refuses_who_may_not_and_serves_who_may() {
    let world = World::new().await;
    let (home, other) = (world.home, world.other);
    let operations = operations();
    assert!(operations.len() >= 20);
    for operation in &operations {
        let Some(needs) = needs(operation) else {
            panic!("{operation} has no entry in the matrix");
        };
        let build = async |tenant| {
            world
                .call(operation, tenant)
                .await
                .unwrap_or_else(|| panic!("{operation} has no request in the matrix"))
        };
        if needs == Needs::Nothing {
            world
                .succeeds(operation, &build(home).await, None, false)
                .await;
            continue;
        }
        let operator = matches!(needs, Needs::Operator | Needs::Admin);
        let role = if operator {
            Role::Admin
        } else {
            Role::TenantAdmin
        };
        let good = token(role, home);
        let shows = operator;

        // Credentials.
        let expired = token_until(role, home, in_seconds(-60));
        let none = forged(&good, r#"{"alg":"none","typ":"JWT"}"#, "");
        let unsigned = forged(&good, r#"{"alg":"HS256","typ":"JWT"}"#, "");
        let relabelled = forged(
            &good,
            r#"{"alg":"HS512","typ":"JWT"}"#,
            good.rsplit('.').next().unwrap(),
        );
        let stranger = audit_server::auth::jwt::sign(
            SECRET.replace('a', "b").as_bytes(),
            "tester",
            Some(home),
            role,
            &Default::default(),
            in_seconds(60),
        )
        .unwrap();
        let bad = [
            ("no token", None),
            ("an expired token", Some(expired.as_str())),
            ("alg none", Some(none.as_str())),
            ("no signature", Some(unsigned.as_str())),
            ("another algorithm", Some(relabelled.as_str())),
            ("another key", Some(stranger.as_str())),
            (
                "an unknown API key",
                Some("audit_0000000000000000000000000000000000000000000000000"),
            ),
        ];
        for (what, credential) in bad {
            let cell = format!("{operation}, {what}");
            world
                .refused(&cell, &build(home).await, credential, &[401])
                .await;
        }
        world
            .succeeds(operation, &build(home).await, Some(&good), shows)
            .await;

        // Roles.
        for role in Role::ALL {
            let cell = format!("{operation}, role {role}");
            let allowed = match needs {
                Needs::Tenant(permission) => role.permissions().contains(permission),
                _ => role == Role::Admin,
            };
            let call = build(home).await;
            let token = token(role, home);
            if allowed {
                world.succeeds(&cell, &call, Some(&token), shows).await;
            } else {
                world.refused(&cell, &call, Some(&token), &[403]).await;
            }
        }

        // The other tenant in path, query, header and body.
        if operator {
            let cell = format!("{operation}, an admin of no other tenant");
            world
                .refused(
                    &cell,
                    &build(other).await,
                    Some(&token(Role::TenantAdmin, home)),
                    &[403],
                )
                .await;
            continue;
        }
        if operation.contains("{id}") || operation.contains("{tenant_id}") {
            let cell = format!("{operation}, the other tenant's in the path");
            world
                .refused(&cell, &build(other).await, Some(&good), &[404])
                .await;
            world
                .succeeds(&cell, &build(home).await, Some(&good), false)
                .await;
        }
        for (tenant, mine) in [(other, false), (home, true)] {
            let named = tenant.to_string();
            for place in ["query", "header"] {
                let call = build(home).await;
                let call = match place {
                    "query" => call.query("tenant_id", &named),
                    _ => call.header("X-Tenant-Id", &named),
                };
                let cell = format!(
                    "{operation}, {place} names {}",
                    if mine { "mine" } else { "other" }
                );
                if mine {
                    world.succeeds(&cell, &call, Some(&good), false).await;
                } else {
                    world.refused(&cell, &call, Some(&good), &[403]).await;
                }
            }
            if needs == Needs::Tenant(Permission::Record) {
                let mut call = build(home).await;
                let body = call.body.take().unwrap();
                // The last event of the body names a tenant.
                let at = body.rfind('{').unwrap() + 1;
                let body = format!("{}\"tenant_id\":\"{named}\",{}", &body[..at], &body[at..]);
                let call = call.body(body);
                let cell = format!("{operation}, the body names a tenant");
                if mine {
                    world.succeeds(&cell, &call, Some(&good), false).await;
                } else {
                    world.refused(&cell, &call, Some(&good), &[403]).await;
                }
            }
        }

        // An admin acts elsewhere only where it says so.
        let nowhere = token(Role::Admin, None);
        if !operation.contains("{id}") && !operation.contains("{tenant_id}") {
            let cell = format!("{operation}, an admin who names no tenant");
            world
                .refused(&cell, &build(home).await, Some(&nowhere), &[400])
                .await;
        }
        let call = build(home).await.header("X-Tenant-Id", home.to_string());
        world
            .succeeds(operation, &call, Some(&nowhere), false)
            .await;
        let unknown = "00000000-0000-7000-8000-00000000dead";
        let call = build(home).await.header("X-Tenant-Id", unknown);
        let cell = format!("{operation}, an admin in a tenant that isn't there");
        // A path that names the tenant is contradicted.
        let status = if operation.contains("{tenant_id}") {
            400
        } else {
            404
        };
        world.refused(&cell, &call, Some(&nowhere), &[status]).await;

        // A token for a tenant that isn't there.
        let lost = token(Role::TenantAdmin, unknown.parse::<TenantId>().unwrap());
        let cell = format!("{operation}, a token of an unknown tenant");
        // In its path, the tenant that is there is a foreign one.
        let status = if operation.contains("{tenant_id}") {
            404
        } else {
            403
        };
        world
            .refused(&cell, &build(home).await, Some(&lost), &[status])
            .await;
    }
}

/// The operations that serve a public log without a credential.
const OPEN: [&str; 3] = [
    "get /api/v1/tlog/{tenant_id}/checkpoint",
    "get /api/v1/tlog/{tenant_id}/key",
    "get /api/v1/tlog/{tenant_id}/tile/{tile}",
];

#[tokio::test]
async fn without_a_credential_a_public_log_shows_its_tiles_and_a_private_one_not_that_it_is_there()
{
    let world = World::new().await;
    let (home, other) = (world.home, world.other);
    let nobody: TenantId = "00000000-0000-7000-8000-00000000dead".parse().unwrap();
    let admin = token(Role::Admin, home);
    let set = async |tenant: TenantId, change: &str| {
        let call = Call::new("PATCH", format!("/api/v1/tenants/{tenant}")).body(change);
        world.succeeds("patch", &call, Some(&admin), true).await;
    };
    let build = async |operation: &str, tenant| world.call(operation, tenant).await.unwrap();
    set(
        home,
        r#"{"public_log":true,"reason":"anyone may verify it"}"#,
    )
    .await;

    // What the document says is open is what is here.
    let document = audit_server::docs::document();
    for operation in operations() {
        let (method, path) = operation.split_once(' ').unwrap();
        let security = document["paths"][path][method]["security"].as_array();
        let open = security.is_some_and(|all| all.contains(&serde_json::json!({})));
        assert_eq!(open, OPEN.contains(&&*operation), "{operation}");
        if !open && needs(&operation) != Some(Needs::Nothing) {
            let call = build(&operation, home).await;
            world.refused(&operation, &call, None, &[401]).await;
        }
    }
    let refusals = async |cell: &str, operation: &str, tenants: &[TenantId]| {
        let mut answers = Vec::new();
        for tenant in tenants {
            let call = build(operation, *tenant).await;
            answers.push(world.send(&call, None).await);
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{cell}: {answers:?}");
        assert_eq!(answers[0].0, 401, "{cell}: {answers:?}");
        assert!(!answers[0].1.contains(MARKER), "{cell}: {answers:?}");
    };
    for operation in OPEN {
        world
            .succeeds(operation, &build(operation, home).await, None, false)
            .await;
        let cell = format!("{operation}, private or not there");
        refusals(&cell, operation, &[other, nobody]).await;
        // Whoever has a credential of another tenant's may read what everyone may.
        let foreign = token(Role::Writer, other);
        let cell = format!("{operation}, a foreign credential");
        world
            .succeeds(&cell, &build(operation, home).await, Some(&foreign), false)
            .await;
        let expired = token_until(Role::Auditor, home, in_seconds(-60));
        let cell = format!("{operation}, an expired credential");
        world
            .refused(&cell, &build(operation, home).await, Some(&expired), &[401])
            .await;
    }
    for closed in [
        r#"{"status":"suspended"}"#,
        r#"{"status":"active","public_log":false}"#,
    ] {
        set(home, closed).await;
        for operation in OPEN {
            let cell = format!("{operation}, {closed}");
            refusals(&cell, operation, &[home, other, nobody]).await;
        }
        set(home, r#"{"status":"active","public_log":true}"#).await;
    }
}

/// A request for an operation in a tenant that is closed: the objects in its path need not be there, since
/// it is refused before they are looked for.
fn bare(operation: &str, tenant: TenantId) -> Call {
    let (method, path) = operation.split_once(' ').unwrap();
    let method = match method {
        "get" => "GET",
        "post" => "POST",
        _ => "DELETE",
    };
    let path = path
        .replace("{id}", &tenant.to_string())
        .replace("{tenant_id}", &tenant.to_string())
        .replace("{tile}", "0/000.p/1");
    let mut call = Call::new(method, path.as_str());
    if path.ends_with("/cleanup") {
        call = call.query("older_than_days", "1");
    }
    call.body = match operation {
        "post /api/v1/logs" => Some(event("m")),
        "post /api/v1/logs/bulk" => Some(format!("[{}]", event("m"))),
        o if o.starts_with("post") && !o.ends_with("ticket") => Some("{}".into()),
        _ => None,
    };
    call
}

#[tokio::test]
async fn a_suspended_tenant_is_closed_and_an_inactive_one_takes_no_writes() {
    let world = World::new().await;
    let user = token(Role::TenantAdmin, world.home);
    let admin = token(Role::Admin, world.home);
    let set = async |status: &str| {
        let call = Call::new("PATCH", format!("/api/v1/tenants/{}", world.home))
            .body(format!(r#"{{"status":"{status}","reason":"test"}}"#));
        world.succeeds("patch", &call, Some(&admin), true).await;
    };
    let operations = operations();
    set("suspended").await;
    for operation in &operations {
        if !matches!(needs(operation), Some(Needs::Tenant(_))) {
            continue;
        }
        let call = bare(operation, world.home);
        let (status, body) = world.send(&call, Some(&user)).await;
        assert_eq!(status, 403, "{operation}: {body}");
        assert!(body.contains("tenant-closed"), "{operation}: {body}");
    }
    set("inactive").await;
    let (status, _) = world
        .send(&Call::new("GET", "/api/v1/logs"), Some(&user))
        .await;
    assert_eq!(status, 200);
    for headers in [Vec::new(), vec![("Prefer", "respond-async".to_owned())]] {
        let mut call = Call::new("POST", "/api/v1/logs").body(event("m"));
        call.headers = headers;
        let (status, body) = world.send(&call, Some(&user)).await;
        assert_eq!(status, 403, "{body}");
    }
    set("active").await;
    let call = Call::new("POST", "/api/v1/logs").body(event("m"));
    world
        .succeeds("active again", &call, Some(&user), false)
        .await;
}

/// Whatever its status was before. Its end waits for an archive that is away.
#[tokio::test]
async fn a_tenant_that_is_about_to_be_deleted_is_so_to_its_own_and_open_to_operators() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive");
    let url = format!("file://{}", archive.display());
    let world = World::with(&[("AUDIT_ARCHIVE_URL", &url)]).await;
    if archive.exists() {
        std::fs::remove_dir_all(&archive).unwrap();
    }
    std::fs::write(&archive, "no folder").unwrap();
    let home = world.home;
    let admin = token(Role::Admin, home);
    let make = Call::new("POST", "/api/v1/api-keys").body(r#"{"name":"k","role":"tenant_admin"}"#);
    let own = token(Role::TenantAdmin, home);
    let (_, made) = world.send(&make, Some(&own)).await;
    let made: Value = serde_json::from_str(&made).unwrap();
    let key = made["key"].as_str().unwrap();
    let path = format!("/api/v1/tenants/{home}");
    let change = r#"{"public_log":true,"status":"suspended"}"#;
    let suspend = Call::new("PATCH", &path).body(change);
    world
        .succeeds("suspend", &suspend, Some(&admin), true)
        .await;
    let end = Call::new("DELETE", &path);
    let (status, body) = world.send(&end, Some(&admin)).await;
    assert_eq!(status, 202, "{body}");

    for operation in &operations() {
        let Some(Needs::Tenant(permission)) = needs(operation) else {
            continue;
        };
        let call = bare(operation, home);
        for credential in [&own, key] {
            let (status, body) = world.send(&call, Some(credential)).await;
            assert_eq!(status, 410, "{operation}: {body}");
            assert!(body.contains("tenant-deleted"), "{operation}: {body}");
        }
        if OPEN.contains(&&**operation) {
            let (status, body) = world.send(&call, None).await;
            assert_eq!(status, 401, "{operation}: {body}");
        }
        let begins = matches!(permission, Permission::Cleanup | Permission::Erase);
        if begins && !operation.starts_with("get") {
            let call = match &**operation {
                "post /api/v1/erasures" => call.body(r#"{"user_id":"ann"}"#),
                "post /api/v1/prunes" => call.body(r#"{"older_than_days":1}"#),
                _ => call,
            };
            let (status, body) = world.send(&call, Some(&admin)).await;
            assert_eq!(status, 409, "{operation}: {body}");
            assert!(body.contains("about to be deleted"), "{operation}: {body}");
        }
    }
    let list = Call::new("GET", "/api/v1/logs");
    world.succeeds("list", &list, Some(&admin), false).await;
    let (_, shown) = world.send(&Call::new("GET", path), Some(&admin)).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["ending"]["archived"], true, "{shown}");
    assert_eq!(shown["status"], "inactive");
}

#[tokio::test]
async fn an_api_key_works_until_it_is_revoked_and_grants_no_more_than_its_maker_has() {
    let world = World::new().await;
    let admin = token(Role::TenantAdmin, world.home);
    let make = |body: &str| Call::new("POST", "/api/v1/api-keys").body(body);
    let (status, body) = world
        .send(
            &make(r#"{"name":"ci","role":"user","scope":"audit:read"}"#),
            Some(&admin),
        )
        .await;
    assert_eq!(status, 201, "{body}");
    let made: Value = serde_json::from_str(&body).unwrap();
    let key = made["key"].as_str().unwrap();
    assert_eq!(made["scope"], "audit:read");
    world
        .succeeds(
            "read by key",
            &Call::new("GET", "/api/v1/logs"),
            Some(key),
            false,
        )
        .await;
    let record = Call::new("POST", "/api/v1/logs").body(event("m"));
    world
        .refused("record by key", &record, Some(key), &[403])
        .await;
    let elsewhere = Call::new("GET", "/api/v1/logs").header("X-Tenant-Id", world.other.to_string());
    world
        .refused("elsewhere by key", &elsewhere, Some(key), &[403])
        .await;
    let admin_key = make(r#"{"name":"x","role":"admin"}"#);
    world
        .refused("an admin key", &admin_key, Some(&admin), &[403])
        .await;
    let misspelt = make(r#"{"name":"x","role":"user","scope":"audit:raed"}"#);
    world
        .refused("a misspelt scope", &misspelt, Some(&admin), &[422])
        .await;
    let revoke = Call::new(
        "DELETE",
        format!("/api/v1/api-keys/{}", made["id"].as_str().unwrap()),
    );
    world.succeeds("revoke", &revoke, Some(&admin), false).await;
    let read = Call::new("GET", "/api/v1/logs");
    world
        .refused("read by a revoked key", &read, Some(key), &[401])
        .await;
    world
        .refused("revoke again", &revoke, Some(&admin), &[404])
        .await;
}

#[tokio::test]
async fn a_tenant_that_is_named_twice_is_refused() {
    let world = World::new().await;
    let call = Call::new("GET", "/api/v1/logs").header("X-Tenant-Id", world.home.to_string());
    let auditor = token(Role::Auditor, world.home);
    world.succeeds("once", &call, Some(&auditor), false).await;
    let twice = call.header("X-Tenant-Id", world.other.to_string());
    let auditor = Some(auditor.as_str());
    world.refused("twice", &twice, auditor, &[400]).await;
}

#[tokio::test]
async fn an_item_of_a_bulk_does_not_take_the_others_to_its_tenant() {
    let world = World::new().await;
    let admin = token(Role::Admin, world.home);
    let named =
        |tenant: TenantId| event("m").replacen('{', &format!("{{\"tenant_id\":\"{tenant}\","), 1);
    let bulk = |items: String| Call::new("POST", "/api/v1/logs/bulk").body(format!("[{items}]"));
    let mixed = bulk(format!("{},{}", event("m"), named(world.other)));
    let admin = Some(admin.as_str());
    world.refused("one of two", &mixed, admin, &[422]).await;
    let nowhere = token(Role::Admin, None);
    world
        .refused("one of two", &mixed, Some(&nowhere), &[400])
        .await;
    let all = bulk(format!("{},{}", named(world.other), named(world.other)));
    world.succeeds("both", &all, admin, false).await;
}

#[tokio::test]
async fn role_and_scope_intersect() {
    let world = World::new().await;
    // Signed here, since the server never makes such a token.
    let sign = |claims: Value| {
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    };
    let until = in_seconds(60).as_micros() / 1_000_000;
    let claims = |role: Option<&str>, scope: Option<&str>| {
        serde_json::json!({
            "sub": "s", "exp": until, "tenant_id": world.home, "role": role, "scope": scope,
        })
    };
    let list = Call::new("GET", "/api/v1/logs");
    for (role, scope, allowed) in [
        (None, Some("openid audit:read"), true),
        (Some("writer"), Some("audit:read"), false),
        (Some("auditor"), Some("audit:read audit:export"), true),
        (Some("auditor"), Some("audit:export"), false),
        (None, None, false),
    ] {
        let token = sign(claims(role, scope));
        let cell = format!("{role:?} {scope:?}");
        if allowed {
            world.succeeds(&cell, &list, Some(&token), false).await;
        } else {
            world.refused(&cell, &list, Some(&token), &[403]).await;
        }
    }
    let mut endless = claims(Some("auditor"), None);
    endless.as_object_mut().unwrap().remove("exp");
    world
        .refused("no exp", &list, Some(&sign(endless)), &[401])
        .await;
}
