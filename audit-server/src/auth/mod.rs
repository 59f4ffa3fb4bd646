//! Who asks: from a credential to a principal, and from a principal to a tenant's log.

pub mod api_key;
pub mod jwt;
pub mod ticket;

use std::sync::Arc;
use std::time::Duration;

use audit_core::{
    AuditLog, CredentialStore, ErrorKind, Permission, Permissions, Principal, SecretHash, TenantId,
    TenantLog, TiledLog, Timestamp,
};
use moka::sync::Cache;
use poem::http::header::AUTHORIZATION;
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaSecurityScheme, Registry};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};

use crate::limits::Limits;
use crate::problem::{Problem, ProblemKind};
use crate::query::Pairs;
use api_key::ApiKeys;
use jwt::Verifiers;

/// The header that names the tenant of a caller who may act in several.
pub const TENANT_HEADER: &str = "x-tenant-id";
/// The query parameter that every tenant route knows.
pub const TENANT_PARAMETER: &str = "tenant_id";
/// The name of the security scheme in the document.
pub(crate) const SCHEME: &str = "bearer";

/// Tokens that were verified and are remembered.
const VERIFIED_TOKENS: u64 = 4_096;
/// For how long: once a key set no longer has a key, its tokens are admitted no longer than this.
const VERIFIED_FOR: Duration = Duration::from_secs(30);

/// Authenticates requests and opens tenants' logs for them.
#[derive(Debug)]
pub(crate) struct Gate {
    log: AuditLog,
    credentials: Arc<dyn CredentialStore>,
    keys: ApiKeys,
    tokens: Verifiers,
    verified: Cache<String, (Principal, Option<Timestamp>)>,
    auto_create: bool,
    pub(crate) limits: Option<Limits>,
}

/// Who made a request, what for, and until when its credential holds.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) principal: Principal,
    pub(crate) expires_at: Option<Timestamp>,
    /// The API key, where the credential is one.
    pub(crate) key: Option<SecretHash>,
    header: Option<TenantId>,
    query: Option<TenantId>,
}

/// Who made a request to a route that serves some things to everyone: a caller, where there is a
/// credential.
#[derive(Debug)]
pub(crate) struct Visitor(pub(crate) Option<Caller>);

fn unauthorized(detail: &str) -> Problem {
    Problem::new(ProblemKind::Unauthorized, detail)
}

fn no_credential() -> Problem {
    unauthorized("there is no credential")
}

/// Whether a request tries to say who makes it.
pub(crate) fn names_credential(request: &Request, pairs: &Pairs) -> bool {
    request.headers().contains_key(AUTHORIZATION) || pairs.all("ticket").next().is_some()
}

impl Gate {
    /// A gate. With `auto_create` a token's tenant is created when it is first used.
    pub(crate) fn new(
        log: AuditLog,
        credentials: Arc<dyn CredentialStore>,
        tokens: Verifiers,
        limits: Option<Limits>,
        auto_create: bool,
    ) -> Self {
        let keys = ApiKeys::new(Arc::clone(&credentials), Arc::clone(log.clock()));
        Self {
            log,
            credentials,
            keys,
            tokens,
            verified: Cache::builder()
                .max_capacity(VERIFIED_TOKENS)
                .time_to_live(VERIFIED_FOR)
                .build(),
            auto_create,
            limits,
        }
    }

    pub(crate) fn log(&self) -> &AuditLog {
        &self.log
    }

    pub(crate) fn credentials(&self) -> &Arc<dyn CredentialStore> {
        &self.credentials
    }

    pub(crate) fn keys(&self) -> &ApiKeys {
        &self.keys
    }

    /// Who a token says is asking. What was verified a moment ago is not verified again; its expiry
    /// is compared each time.
    async fn token(&self, token: &str) -> Result<(Principal, Option<Timestamp>), Problem> {
        let now = self.log.clock().now();
        if let Some(verified) = self.verified.get(token)
            && verified.1.is_some_and(|expires_at| now < expires_at)
        {
            return Ok(verified);
        }
        let verified = self.tokens.principal(token, now).await?;
        self.verified.insert(token.to_owned(), verified.clone());
        Ok(verified)
    }

    /// Finds out who makes this request.
    pub(crate) async fn authenticate(
        &self,
        request: &Request,
        pairs: &Pairs,
    ) -> Result<Caller, Problem> {
        let mut headers = request.headers().get_all(AUTHORIZATION).iter();
        let header = headers.next();
        if headers.next().is_some() {
            return Err(unauthorized(
                "the header Authorization stands more than once",
            ));
        }
        let mut key = None;
        let (principal, expires_at) = match (header, pairs.one("ticket")?) {
            (Some(_), Some(_)) => {
                return Err(unauthorized(
                    "there are two credentials: a ticket and Authorization",
                ));
            }
            (None, None) => return Err(no_credential()),
            (None, Some(secret)) => {
                let (ticket, of_key) =
                    ticket::take(&*self.credentials, secret, self.log.clock().now()).await?;
                if let Some(hash) = &of_key
                    && self.keys.find(hash).await?.is_none()
                {
                    return Err(unauthorized("the ticket's API key was revoked"));
                }
                key = of_key;
                let permissions = Permissions::of(&[Permission::Stream]);
                let principal = Principal::new(ticket.subject, ticket.tenant, permissions);
                (principal, ticket.session_expires_at)
            }
            (Some(value), None) => {
                let token = bearer(value.as_bytes()).ok_or_else(|| {
                    unauthorized("the header Authorization is not Bearer and a token")
                })?;
                if token.starts_with(api_key::PREFIX) {
                    let (principal, expires_at, hash) = self.keys.principal(token).await?;
                    key = Some(hash);
                    (principal, expires_at)
                } else {
                    self.token(token).await?
                }
            }
        };
        let mut headers = request.headers().get_all(TENANT_HEADER).iter();
        let header = match headers.next() {
            None => None,
            Some(_) if headers.next().is_some() => {
                return Err(Problem::parameter("X-Tenant-Id", "stands more than once"));
            }
            Some(value) => {
                let text = value.to_str().unwrap_or_default();
                Some(text.parse().map_err(|e: audit_core::NotAUuid| {
                    Problem::parameter("X-Tenant-Id", e.to_string())
                })?)
            }
        };
        let query = match pairs.one(TENANT_PARAMETER)? {
            None => None,
            Some(text) => Some(text.parse().map_err(|e: audit_core::NotAUuid| {
                Problem::parameter(TENANT_PARAMETER, e.to_string())
            })?),
        };
        Ok(Caller {
            principal,
            expires_at,
            key,
            header,
            query,
        })
    }

    /// Opens what a path shows of a tenant's log: to a caller who may read it, and to anyone where it is
    /// public. Without a credential one that isn't is as one that isn't there.
    pub(crate) async fn enter_tiles(
        &self,
        visitor: &Visitor,
        tenant: TenantId,
    ) -> Result<TiledLog, Problem> {
        let refused = match &visitor.0 {
            None => no_credential(),
            Some(caller) => match self.enter_path(caller, tenant, Permission::Read).await {
                Ok(log) => return Ok(log.tiled()),
                // A credential of another tenant's takes away nothing that everyone may read.
                Err(problem)
                    if matches!(
                        problem.kind(),
                        ProblemKind::NotFound | ProblemKind::Forbidden
                    ) =>
                {
                    problem
                }
                Err(problem) => return Err(problem),
            },
        };
        match self.log.public_log(tenant).await {
            Err(e) if e.kind() == ErrorKind::UnknownTenant => Err(refused),
            outcome => Ok(outcome?),
        }
    }

    /// Opens the log of the tenant that the path names. Another one than the caller's own is as one
    /// that isn't there.
    pub(crate) async fn enter_path(
        &self,
        caller: &Caller,
        tenant: TenantId,
        permissions: impl Into<Permissions>,
    ) -> Result<TenantLog, Problem> {
        let principal = &caller.principal;
        if !principal.across_tenants && principal.tenant != Some(tenant) {
            return Err(Problem::new(
                ProblemKind::NotFound,
                "there is no such tenant",
            ));
        }
        let named = [caller.header, caller.query];
        if principal.across_tenants && named.iter().flatten().any(|t| *t != tenant) {
            return Err(Problem::parameter(
                TENANT_PARAMETER,
                "differs from the tenant in the path",
            ));
        }
        self.enter(caller, permissions, &[tenant]).await
    }

    /// Opens the log of the tenant that the request names, for `permissions`.
    ///
    /// `bodies` are the tenants that events in the body name. A caller who may not act across
    /// tenants is refused when any of header, query and body differs from its credential.
    pub(crate) async fn enter(
        &self,
        caller: &Caller,
        permissions: impl Into<Permissions>,
        bodies: &[TenantId],
    ) -> Result<TenantLog, Problem> {
        let principal = &caller.principal;
        let named = [caller.header, caller.query];
        let tenant = if principal.across_tenants {
            let tenant = caller
                .header
                .or(caller.query)
                .or(bodies.first().copied())
                .or(principal.tenant)
                .ok_or_else(|| {
                    Problem::new(
                        ProblemKind::TenantRequired,
                        "the credential belongs to no tenant: name one with the header X-Tenant-Id",
                    )
                })?;
            if named.iter().flatten().any(|t| *t != tenant) {
                return Err(Problem::parameter(
                    TENANT_PARAMETER,
                    "differs from X-Tenant-Id",
                ));
            }
            tenant
        } else {
            let tenant = principal.tenant.ok_or_else(|| {
                Problem::new(
                    ProblemKind::Forbidden,
                    "the credential belongs to no tenant",
                )
            })?;
            if named.iter().flatten().chain(bodies).any(|t| *t != tenant) {
                return Err(Problem::new(
                    ProblemKind::Forbidden,
                    "the credential belongs to another tenant than the one that is named",
                ));
            }
            tenant
        };
        if let Some(limits) = &self.limits {
            limits.tenant(tenant)?;
        }
        let permissions = permissions.into();
        let scope = match self.log.authorize(principal, tenant, permissions).await {
            Err(e) if e.kind() == ErrorKind::UnknownTenant && principal.tenant != Some(tenant) => {
                return Err(Problem::new(
                    ProblemKind::NotFound,
                    "there is no such tenant",
                ));
            }
            Err(e) if e.kind() == ErrorKind::UnknownTenant && self.auto_create => {
                match self
                    .log
                    .create_tenant(Some(tenant), &tenant.to_string())
                    .await
                {
                    Ok(_) => {}
                    // Another request was first.
                    Err(e) if e.kind() == ErrorKind::Conflict => {}
                    Err(e) => return Err(e.into()),
                }
                self.log.authorize(principal, tenant, permissions).await?
            }
            outcome => outcome?,
        };
        Ok(self.log.tenant(scope))
    }

    /// Admits a caller to what concerns the deployment as a whole.
    pub(crate) fn admit_operator(&self, caller: &Caller) -> Result<(), Problem> {
        let principal = &caller.principal;
        if principal.across_tenants && principal.permissions.contains(Permission::Admin) {
            return Ok(());
        }
        Err(Problem::new(
            ProblemKind::Forbidden,
            "the role admin across tenants is needed",
        ))
    }

    /// Admits a caller to administer `tenant`: an operator to any, a tenant's own admin to its own.
    /// For anyone else a foreign tenant doesn't exist.
    pub(crate) fn admit_admin(&self, caller: &Caller, tenant: TenantId) -> Result<(), Problem> {
        let principal = &caller.principal;
        if !principal.permissions.contains(Permission::Admin) {
            return Err(Problem::new(
                ProblemKind::Forbidden,
                "the permission admin is needed",
            ));
        }
        if !principal.across_tenants && principal.tenant != Some(tenant) {
            return Err(Problem::new(
                ProblemKind::NotFound,
                "there is no such tenant",
            ));
        }
        if [caller.header, caller.query]
            .iter()
            .flatten()
            .all(|t| *t == tenant)
        {
            return Ok(());
        }
        if principal.across_tenants {
            return Err(Problem::parameter(
                TENANT_PARAMETER,
                "differs from the tenant in the path",
            ));
        }
        Err(Problem::new(
            ProblemKind::Forbidden,
            "the credential belongs to another tenant than the one that is named",
        ))
    }
}

/// The token of `Bearer <token>` (RFC 6750 §2.1); the scheme in any case.
fn bearer(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

impl<'a> ApiExtractor<'a> for Caller {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        registry.create_security_scheme(
            SCHEME,
            MetaSecurityScheme {
                ty: "http",
                description: Some(
                    "A JWT with `exp`, `sub`, `tenant_id` and `role` or `scope`, or an API key.",
                ),
                name: None,
                key_in: None,
                scheme: Some("bearer"),
                bearer_format: Some("JWT or audit_ API key"),
                flows: None,
                openid_connect_url: None,
            },
        );
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![SCHEME]
    }

    /// The route has authenticated the request before its handler is called.
    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let caller = request.data::<Self>().cloned();
        Ok(caller.ok_or_else(no_credential)?)
    }
}

impl<'a> ApiExtractor<'a> for Visitor {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        Caller::register(registry);
    }

    fn security_schemes() -> Vec<&'static str> {
        Caller::security_schemes()
    }

    /// The route lets pass whoever names no credential.
    fn has_security_fallback() -> bool {
        true
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(Self(request.data::<Caller>().cloned()))
    }
}
