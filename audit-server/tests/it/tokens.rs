//! Tokens of public keys and key sets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use audit_core::TenantId;
use audit_server::auth::jwt::{Demands, Verifiers};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use poem::listener::{Acceptor as _, Listener as _, TcpListener};
use serde_json::{Value, json};

use crate::service::{Service, in_seconds, send};

struct Pair {
    algorithm: Algorithm,
    private: EncodingKey,
    public: &'static [u8],
}

macro_rules! pair {
    ($name:literal, $from:ident, $algorithm:ident) => {
        Pair {
            algorithm: Algorithm::$algorithm,
            private: EncodingKey::$from(include_bytes!(concat!("keys/", $name, ".private.pem")))
                .unwrap(),
            public: include_bytes!(concat!("keys/", $name, ".public.pem")),
        }
    };
}

fn pairs() -> [Pair; 3] {
    [
        pair!("rsa", from_rsa_pem, RS256),
        pair!("ec", from_ec_pem, ES256),
        pair!("ed", from_ed_pem, EdDSA),
    ]
}

fn claims(tenant: TenantId, more: Value) -> Value {
    let mut claims = json!({
        "sub": "s", "role": "auditor", "tenant_id": tenant,
        "exp": in_seconds(60).as_micros() / 1_000_000,
    });
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

async fn status(service: &Service, token: &str) -> u16 {
    send(service.get("/api/v1/logs", token)).await.status
}

#[tokio::test]
async fn a_public_key_admits_its_own_algorithm_only() {
    let pairs = pairs();
    for pair in &pairs {
        let tokens = Verifiers::none()
            .public_key(pair.public, &Demands::default(), false)
            .unwrap();
        let service = Service::trusting(tokens, &[]).await;
        let tenant = service.tenant("t").await;
        for other in &pairs {
            let header = Header::new(other.algorithm);
            let token = encode(&header, &claims(tenant, json!({})), &other.private).unwrap();
            let expected = if other.algorithm == pair.algorithm {
                200
            } else {
                401
            };
            assert_eq!(status(&service, &token).await, expected);
        }
        // The public key taken for a shared secret.
        let confused = EncodingKey::from_secret(pair.public);
        let token = encode(&Header::default(), &claims(tenant, json!({})), &confused).unwrap();
        assert_eq!(status(&service, &token).await, 401);
        // An admin of an issuer that may not act across tenants is one of its own tenant.
        let header = Header::new(pair.algorithm);
        let admin = claims(tenant, json!({"role": "admin"}));
        let token = encode(&header, &admin, &pair.private).unwrap();
        assert_eq!(status(&service, &token).await, 200);
        let elsewhere = service.tenant("elsewhere").await;
        let request = service
            .get("/api/v1/logs", &token)
            .header("x-tenant-id", elsewhere.to_string());
        send(request).await.expect(403);
        send(service.get("/api/v1/tenants", &token))
            .await
            .expect(403);
        let own = format!("/api/v1/tenants/{tenant}");
        send(service.get(&own, &token)).await.expect(200);
        send(service.get(&format!("/api/v1/tenants/{elsewhere}"), &token))
            .await
            .expect(404);
    }
}

#[tokio::test]
async fn issuer_and_audience_are_required_where_they_are_configured() {
    let [_, _, pair] = pairs();
    let demands = Demands {
        issuer: Some("https://issuer".into()),
        audience: Some("audit".into()),
    };
    let tokens = Verifiers::none()
        .public_key(pair.public, &demands, false)
        .unwrap();
    let service = Service::trusting(tokens, &[]).await;
    let tenant = service.tenant("t").await;
    for (more, expected) in [
        (json!({"iss": "https://issuer", "aud": "audit"}), 200),
        (json!({"iss": "https://issuer", "aud": ["x", "audit"]}), 200),
        (json!({"iss": "https://issuer"}), 401),
        (json!({"aud": "audit"}), 401),
        (json!({"iss": "https://other", "aud": "audit"}), 401),
        (json!({"iss": "https://issuer", "aud": "other"}), 401),
        (
            json!({
                "iss": "https://issuer", "aud": "audit",
                "nbf": in_seconds(60).as_micros() / 1_000_000,
            }),
            401,
        ),
    ] {
        let header = Header::new(pair.algorithm);
        let token = encode(&header, &claims(tenant, more.clone()), &pair.private).unwrap();
        assert_eq!(status(&service, &token).await, expected, "{more}");
    }
}

/// Serves a key set and counts how often it is asked for.
async fn key_set(set: Value) -> (String, Arc<AtomicUsize>) {
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fetched);
    let acceptor = TcpListener::bind("127.0.0.1:0")
        .into_acceptor()
        .await
        .unwrap();
    let address = acceptor.local_addr()[0].as_socket_addr().copied().unwrap();
    let page = poem::endpoint::make_sync(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        set.to_string()
    });
    tokio::spawn(poem::Server::new_with_acceptor(acceptor).run(page));
    (format!("http://{address}/keys"), fetched)
}

#[tokio::test]
async fn a_key_set_is_fetched_when_needed_and_at_most_once_a_minute() {
    let [rsa, ec, ed] = pairs();
    let mut keys: Vec<Value> = [&rsa, &ec, &ed]
        .into_iter()
        .map(|pair| {
            let jwk = Jwk::from_encoding_key(&pair.private, pair.algorithm).unwrap();
            let mut jwk = serde_json::to_value(jwk).unwrap();
            jwk["kid"] = format!("{:?}", pair.algorithm).into();
            jwk
        })
        .collect();
    // A shared secret has no place in a public set.
    keys.push(json!({"kty": "oct", "kid": "HS256", "alg": "HS256", "k": "c2VjcmV0"}));
    let (url, fetched) = key_set(json!({"keys": keys})).await;
    let tokens = Verifiers::none()
        .key_set(url, &Demands::default(), false)
        .unwrap();
    let service = Service::trusting(tokens, &[]).await;
    let tenant = service.tenant("t").await;
    assert_eq!(fetched.load(Ordering::SeqCst), 0);
    let token = |pair: &Pair, kid: &str| {
        let mut header = Header::new(pair.algorithm);
        header.kid = Some(kid.to_owned());
        encode(&header, &claims(tenant, json!({})), &pair.private).unwrap()
    };
    for pair in [&rsa, &ec, &ed] {
        let own = token(pair, &format!("{:?}", pair.algorithm));
        assert_eq!(status(&service, &own).await, 200, "{:?}", pair.algorithm);
    }
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
    for bad in [
        token(&ed, "unknown"),
        token(&ed, "RS256"),
        token(&rsa, "EdDSA"),
    ] {
        assert_eq!(status(&service, &bad).await, 401);
    }
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("HS256".into());
    let secret = EncodingKey::from_secret(b"secret");
    let shared = encode(&header, &claims(tenant, json!({})), &secret).unwrap();
    assert_eq!(status(&service, &shared).await, 401);
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_issuer_that_is_away_is_not_the_callers_fault() {
    let tokens = Verifiers::none()
        .key_set("http://127.0.0.1:9/keys".into(), &Demands::default(), false)
        .unwrap();
    let service = Service::trusting(tokens, &[]).await;
    let tenant = service.tenant("t").await;
    let [_, _, pair] = pairs();
    let header = Header::new(pair.algorithm);
    let token = encode(&header, &claims(tenant, json!({})), &pair.private).unwrap();
    // The second is not tried again at once, and its token is not to blame either.
    for _ in 0..2 {
        assert_eq!(status(&service, &token).await, 503);
    }
}

#[tokio::test]
async fn api_keys_are_listed_page_by_page_oldest_first() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let admin = crate::service::token(audit_core::Role::TenantAdmin, tenant);
    for n in 0..5 {
        let body = format!(r#"{{"name":"{n}","role":"writer"}}"#);
        send(service.post("/api/v1/api-keys", &admin, &body))
            .await
            .expect(201);
    }
    let mut names = Vec::new();
    let mut path = "/api/v1/api-keys?limit=2".to_owned();
    loop {
        let page = send(service.get(&path, &admin)).await.expect(200).json();
        let keys = page["data"].as_array().unwrap();
        assert!(keys.len() <= 2);
        names.extend(
            keys.iter()
                .map(|key| key["name"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/api/v1/api-keys?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(names, ["0", "1", "2", "3", "4"]);
    for bad in ["limit=0", "limit=1001", "cursor=x", "cursor=1.x"] {
        let refused = send(service.get(&format!("/api/v1/api-keys?{bad}"), &admin)).await;
        refused.problem(400, bad.split('=').next().unwrap());
    }
}
