//! JSON Web Tokens: who signed, with which algorithm, and what they say.
//!
//! The algorithm follows from the key that is configured, never from the token. `exp` is required;
//! issuer and audience are checked where they are configured.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use audit_core::{Permission, Permissions, Principal, Role, TenantId, Timestamp};
use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::problem::{Problem, ProblemKind};

/// The fewest bytes of a shared secret (RFC 7518 §3.2 for HS256).
pub const MIN_SECRET: usize = 32;
/// How often, at most, a key set is fetched anew because a token names a key that it lacks.
const REFETCH: Duration = Duration::from_secs(60);
/// How long a key set counts before it is fetched anew: at most so long does a key that its issuer
/// has withdrawn admit tokens, while the issuer can be asked.
const KEPT: Duration = Duration::from_secs(600);
/// How long a fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of a key set.
const MAX_KEY_SET: usize = 1024 * 1024;
/// The clocks of an issuer and of this server may differ by so much, in microseconds.
const LEEWAY: i64 = 2_000_000;

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// The shared secret is too short.
    #[error("the JWT secret has {0} bytes, fewer than {MIN_SECRET}")]
    ShortSecret(usize),
    /// The public key is none of the kinds that are known.
    #[error("the JWT public key is no PEM of an RSA, P-256 or Ed25519 public key")]
    PublicKey,
    /// The HTTP client for key sets can't be made.
    #[error("the HTTP client for the key set can't be made")]
    Client(#[source] reqwest::Error),
}

/// What must be true of a token besides its signature.
#[derive(Debug, Clone, Default)]
pub struct Demands {
    /// The `iss` that is required.
    pub issuer: Option<String>,
    /// The `aud` that is required.
    pub audience: Option<String>,
}

/// A key that tokens may be signed with.
struct Verifier {
    key: Key,
    /// Whether `role=admin` of this issuer acts across tenants.
    across_tenants: bool,
}

enum Key {
    Fixed(Box<(DecodingKey, Validation)>),
    Set(Arc<KeySet>),
}

/// The keys that tokens may be signed with.
#[derive(Default)]
pub struct Verifiers(Vec<Verifier>);

impl std::fmt::Debug for Verifiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifiers({})", self.0.len())
    }
}

/// The claims that are looked at.
#[derive(Debug, Deserialize, Serialize)]
struct Claims {
    sub: String,
    exp: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

fn validation(algorithm: Algorithm, demands: &Demands) -> Validation {
    let mut validation = Validation::new(algorithm);
    // `exp` and `nbf` are compared with the log's clock below.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.set_required_spec_claims(&["exp", "sub"]);
    if let Some(issuer) = &demands.issuer {
        validation.set_issuer(&[issuer]);
        validation.required_spec_claims.insert("iss".into());
    }
    match &demands.audience {
        Some(audience) => {
            validation.set_audience(&[audience]);
            validation.required_spec_claims.insert("aud".into());
        }
        None => validation.validate_aud = false,
    }
    validation
}

impl Verifiers {
    /// No key: every token is refused.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Admits HS256 under a shared secret.
    ///
    /// # Errors
    /// [`KeyFault::ShortSecret`].
    pub fn secret(
        mut self,
        secret: &[u8],
        demands: &Demands,
        across_tenants: bool,
    ) -> Result<Self, KeyFault> {
        if secret.len() < MIN_SECRET {
            return Err(KeyFault::ShortSecret(secret.len()));
        }
        let key = DecodingKey::from_secret(secret);
        let validation = validation(Algorithm::HS256, demands);
        self.0.push(Verifier {
            key: Key::Fixed(Box::new((key, validation))),
            across_tenants,
        });
        Ok(self)
    }

    /// Admits RS256, ES256 or EdDSA, whichever the public key in PEM is for.
    ///
    /// # Errors
    /// [`KeyFault::PublicKey`].
    pub fn public_key(
        mut self,
        pem: &[u8],
        demands: &Demands,
        across_tenants: bool,
    ) -> Result<Self, KeyFault> {
        let (key, algorithm) = DecodingKey::from_rsa_pem(pem)
            .map(|key| (key, Algorithm::RS256))
            .or_else(|_| DecodingKey::from_ec_pem(pem).map(|key| (key, Algorithm::ES256)))
            .or_else(|_| DecodingKey::from_ed_pem(pem).map(|key| (key, Algorithm::EdDSA)))
            .map_err(|_| KeyFault::PublicKey)?;
        let validation = validation(algorithm, demands);
        self.0.push(Verifier {
            key: Key::Fixed(Box::new((key, validation))),
            across_tenants,
        });
        Ok(self)
    }

    /// Admits the keys of a key set (RFC 7517) that is fetched when it is first needed.
    ///
    /// # Errors
    /// [`KeyFault::Client`].
    pub fn key_set(
        mut self,
        url: String,
        demands: &Demands,
        across_tenants: bool,
    ) -> Result<Self, KeyFault> {
        let set = KeySet::new(url, demands.clone())?;
        self.0.push(Verifier {
            key: Key::Set(Arc::new(set)),
            across_tenants,
        });
        Ok(self)
    }

    /// Who a token says is asking, and until when it holds.
    pub(crate) async fn principal(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<(Principal, Option<Timestamp>), Problem> {
        let refuse = |detail: &str| Problem::new(ProblemKind::Unauthorized, detail);
        for verifier in &self.0 {
            let claims = match &verifier.key {
                Key::Fixed(key) => jsonwebtoken::decode::<Claims>(token, &key.0, &key.1).ok(),
                Key::Set(set) => set.decode(token).await?,
            };
            let Some(claims) = claims.map(|data| data.claims) else {
                continue;
            };
            let Some(expires_at) = instant(claims.exp) else {
                return Err(refuse("the token's exp is not a time"));
            };
            if expires_at.as_micros() + LEEWAY <= now.as_micros() {
                return Err(refuse("the token has expired"));
            }
            let early =
                |nbf| instant(nbf).is_none_or(|at| at.as_micros() > now.as_micros() + LEEWAY);
            if claims.nbf.is_some_and(early) {
                return Err(refuse("the token is not valid yet"));
            }
            return Ok((
                principal(claims, verifier.across_tenants)?,
                Some(expires_at),
            ));
        }
        Err(refuse(
            "the token is signed with another key or algorithm, or lacks a claim",
        ))
    }
}

/// Seconds since 1970 (RFC 7519 §2 NumericDate), cut to the range of the log's times.
fn instant(seconds: f64) -> Option<Timestamp> {
    if !seconds.is_finite() || seconds < 0.0 {
        return None;
    }
    // A float that is too large saturates, and so does the timestamp.
    #[allow(clippy::cast_possible_truncation)]
    Some(Timestamp::saturating_from_micros((seconds * 1e6) as i64))
}

fn principal(claims: Claims, across_tenants: bool) -> Result<Principal, Problem> {
    let refuse = |detail: &str| Problem::new(ProblemKind::Unauthorized, detail);
    let tenant = match claims.tenant_id.as_deref() {
        None => None,
        Some(text) => Some(
            text.parse::<TenantId>()
                .map_err(|_| refuse("the token's tenant_id is not a UUID"))?,
        ),
    };
    let role = match claims.role.as_deref() {
        None => None,
        Some(name) => Some(
            name.parse::<Role>()
                .map_err(|_| refuse("the token's role is not a role"))?,
        ),
    };
    let permissions = match (role, claims.scope.as_deref()) {
        (Some(role), None) => role.permissions(),
        (None, Some(scope)) => Permissions::from_scope(scope),
        (Some(role), Some(scope)) => role
            .permissions()
            .intersection(Permissions::from_scope(scope)),
        (None, None) => Permissions::NONE,
    };
    if claims.sub.is_empty() {
        return Err(refuse("the token's sub is empty"));
    }
    let mut principal = Principal::across_tenants(claims.sub, permissions);
    principal.tenant = tenant;
    principal.across_tenants = across_tenants && role == Some(Role::Admin);
    if !principal.across_tenants && tenant.is_none() && permissions.contains(Permission::Admin) {
        return Err(refuse(
            "the token names no tenant, and its issuer may not act across tenants",
        ));
    }
    Ok(principal)
}

/// Signs a token with a shared secret.
///
/// # Errors
/// None with a secret of any length; what the signing library answers.
pub fn sign(
    secret: &[u8],
    subject: &str,
    tenant: Option<TenantId>,
    role: Role,
    issuer: &Demands,
    expires_at: Timestamp,
) -> Result<String, jsonwebtoken::errors::Error> {
    #[derive(Serialize)]
    struct Issued<'a> {
        sub: &'a str,
        exp: i64,
        role: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        tenant_id: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        iss: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        aud: Option<&'a str>,
    }
    let claims = Issued {
        sub: subject,
        exp: expires_at.as_micros() / 1_000_000,
        role: role.as_str(),
        tenant_id: tenant.map(|t| t.to_string()),
        iss: issuer.issuer.as_deref(),
        aud: issuer.audience.as_deref(),
    };
    jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims,
        &EncodingKey::from_secret(secret),
    )
}

/// A key set at a URL. The last one that could be fetched counts.
struct KeySet {
    url: String,
    demands: Demands,
    client: reqwest::Client,
    keys: RwLock<Arc<Fetched>>,
    /// When a fetch was last begun; held while it is under way.
    begun: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

/// The keys of a set, and when they were fetched; never, at first.
#[derive(Default)]
struct Fetched {
    keys: Vec<Known>,
    at: Option<Instant>,
}

struct Known {
    kid: Option<String>,
    key: DecodingKey,
    validation: Validation,
}

impl KeySet {
    fn new(url: String, demands: Demands) -> Result<Self, KeyFault> {
        let client = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(KeyFault::Client)?;
        Ok(Self {
            url,
            demands,
            client,
            keys: RwLock::default(),
            begun: Arc::default(),
        })
    }

    fn fetched(&self) -> Arc<Fetched> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The token, when a key of the set has signed it; none when none has.
    async fn decode(
        self: &Arc<Self>,
        token: &str,
    ) -> Result<Option<jsonwebtoken::TokenData<Claims>>, Problem> {
        let Ok(header) = jsonwebtoken::decode_header(token) else {
            return Ok(None);
        };
        let named = |keys: &[Known]| match &header.kid {
            Some(kid) => keys.iter().any(|k| k.kid.as_ref() == Some(kid)),
            None => !keys.is_empty(),
        };
        let fetched = self.fetched();
        let fresh = fetched.at.is_some_and(|at| at.elapsed() < KEPT);
        if !fresh || !named(&fetched.keys) {
            self.refetch().await?;
        }
        Ok(self
            .fetched()
            .keys
            .iter()
            .filter(|k| header.kid.is_none() || k.kid == header.kid)
            .find_map(|k| jsonwebtoken::decode::<Claims>(token, &k.key, &k.validation).ok()))
    }

    /// Fetches the set, unless that was tried less than a minute ago. Callers that come meanwhile
    /// wait for the same fetch. It has a task of its own: a caller that hangs up would otherwise
    /// use up the minute without a fetch.
    ///
    /// An error when there has been no set yet: whether the token is good is not known then.
    async fn refetch(self: &Arc<Self>) -> Result<(), Problem> {
        let mut begun = Arc::clone(&self.begun).lock_owned().await;
        if begun.is_none_or(|at| at.elapsed() >= REFETCH) {
            *begun = Some(Instant::now());
            let set = Arc::clone(self);
            let fetching = tokio::spawn(async move {
                match set.fetch().await {
                    Ok(keys) => {
                        let at = Some(Instant::now());
                        *set.keys.write().unwrap_or_else(PoisonError::into_inner) =
                            Arc::new(Fetched { keys, at });
                    }
                    Err(reason) => {
                        tracing::warn!(url = %set.url, reason, "the key set could not be fetched");
                    }
                }
                drop(begun);
            });
            fetching
                .await
                .map_err(|_| Problem::new(ProblemKind::Internal, ProblemKind::Internal.title()))?;
        }
        if self.fetched().at.is_none() {
            return Err(Problem::new(
                ProblemKind::Unavailable,
                "the keys of the token's issuer can't be fetched",
            )
            .retry_after(REFETCH));
        }
        Ok(())
    }

    async fn fetch(&self) -> Result<Vec<Known>, String> {
        let mut response = self
            .client
            .get(&self.url)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(|e| e.to_string())?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| e.to_string())? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_KEY_SET {
                return Err("the key set is too large".into());
            }
        }
        let set: JwkSet = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        Ok(set.keys.iter().filter_map(|jwk| self.known(jwk)).collect())
    }

    /// A key for signatures, with the algorithm that it is for. Keys of other kinds are passed over,
    /// shared secrets too: they have no place in a public set.
    fn known(&self, jwk: &Jwk) -> Option<Known> {
        use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve};
        if !matches!(
            jwk.common.public_key_use,
            None | Some(PublicKeyUse::Signature)
        ) {
            return None;
        }
        let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
            (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
            (AlgorithmParameters::EllipticCurve(p), None | Some(KeyAlgorithm::ES256))
                if p.curve == EllipticCurve::P256 =>
            {
                Algorithm::ES256
            }
            (AlgorithmParameters::OctetKeyPair(_), None | Some(KeyAlgorithm::EdDSA)) => {
                Algorithm::EdDSA
            }
            _ => return None,
        };
        Some(Known {
            kid: jwk.common.key_id.clone(),
            key: DecodingKey::from_jwk(jwk).ok()?,
            validation: validation(algorithm, &self.demands),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use poem::listener::{Acceptor as _, Listener as _, TcpListener};
    use tokio::sync::Semaphore;

    use super::*;

    const PRIVATE: &[u8] = include_bytes!("../../tests/it/keys/ed.private.pem");

    /// An issuer whose key set waits for leave to be sent.
    struct Issuer {
        set: Arc<KeySet>,
        asked: Arc<AtomicUsize>,
        /// Permits come with requests.
        came: Arc<Semaphore>,
        leave: Arc<Semaphore>,
    }

    async fn issuer() -> Issuer {
        let jwk = Jwk::from_encoding_key(
            &EncodingKey::from_ed_pem(PRIVATE).unwrap(),
            Algorithm::EdDSA,
        );
        let page = format!(
            "{{\"keys\":[{}]}}",
            serde_json::to_string(&jwk.unwrap()).unwrap()
        );
        let asked = Arc::new(AtomicUsize::new(0));
        let (came, leave) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let acceptor = TcpListener::bind("127.0.0.1:0")
            .into_acceptor()
            .await
            .unwrap();
        let address = acceptor.local_addr()[0].as_socket_addr().copied().unwrap();
        let shared = (Arc::clone(&asked), Arc::clone(&came), Arc::clone(&leave));
        let endpoint = poem::endpoint::make(move |_| {
            let (asked, came, leave) = shared.clone();
            let page = page.clone();
            async move {
                asked.fetch_add(1, Ordering::SeqCst);
                came.add_permits(1);
                leave.acquire().await.unwrap().forget();
                page
            }
        });
        tokio::spawn(poem::Server::new_with_acceptor(acceptor).run(endpoint));
        let set = KeySet::new(format!("http://{address}/keys"), Demands::default()).unwrap();
        Issuer {
            set: Arc::new(set),
            asked,
            came,
            leave,
        }
    }

    fn token() -> String {
        let claims = Claims {
            sub: "s".into(),
            exp: 4_000_000_000.0,
            nbf: None,
            tenant_id: None,
            role: None,
            scope: None,
        };
        let key = EncodingKey::from_ed_pem(PRIVATE).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &key).unwrap()
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_does_not_end_the_fetch() {
        let issuer = issuer().await;
        let token = token();
        tokio::select! {
            biased;
            _ = issuer.set.decode(&token) => panic!("the issuer has not answered"),
            came = issuer.came.acquire() => came.unwrap().forget(),
        }
        issuer.leave.add_permits(1);
        assert!(issuer.set.decode(&token).await.unwrap().is_some());
        assert_eq!(issuer.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_key_set_is_fetched_anew_when_it_is_old() {
        let issuer = issuer().await;
        issuer.leave.add_permits(2);
        let token = token();
        assert!(issuer.set.decode(&token).await.unwrap().is_some());
        assert!(issuer.set.decode(&token).await.unwrap().is_some());
        assert_eq!(issuer.asked.load(Ordering::SeqCst), 1);
        let old = Instant::now().checked_sub(KEPT).unwrap();
        *issuer.set.begun.lock().await = Some(old);
        // The key is still there, so that its age alone decides.
        let keys = std::mem::take(&mut *issuer.set.keys.write().unwrap());
        let keys = Arc::into_inner(keys).unwrap().keys;
        let at = Some(old);
        *issuer.set.keys.write().unwrap() = Arc::new(Fetched { keys, at });
        assert!(issuer.set.decode(&token).await.unwrap().is_some());
        assert_eq!(issuer.asked.load(Ordering::SeqCst), 2);
    }
}
