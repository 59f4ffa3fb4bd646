//! The OpenAPI document and the pages around it.

use crate::service::{Service, send};

#[tokio::test]
async fn the_committed_document_is_what_is_served() {
    let committed = include_str!("../../../openapi.yaml");
    assert!(
        committed == audit_server::docs::yaml(),
        "openapi.yaml is not that of this code: cargo run -p audit-server -- openapi --yaml > openapi.yaml"
    );
    let service = Service::start().await;
    let yaml = send(service.http.get(service.url("/openapi.yaml")))
        .await
        .expect(200);
    assert!(yaml.text == committed);
    let json = send(service.http.get(service.url("/openapi.json")))
        .await
        .expect(200);
    assert_eq!(json.json(), audit_server::docs::document());
}

#[tokio::test]
async fn the_root_leads_to_the_docs_and_each_problem_is_explained() {
    let service = Service::start().await;
    let docs = send(service.http.get(service.url("/"))).await.expect(200);
    assert!(docs.text.contains("rapi-doc"));
    for kind in audit_server::problem::ProblemKind::ALL {
        let page = send(service.http.get(service.url(&kind.uri())))
            .await
            .expect(200);
        assert!(page.text.contains(kind.about()));
    }
    send(service.http.get(service.url("/problems/none")))
        .await
        .expect(404);
}

#[tokio::test]
async fn an_unknown_address_or_method_is_a_problem() {
    let service = Service::start().await;
    let nowhere = send(service.http.get(service.url("/api/v2/logs")))
        .await
        .expect(404);
    assert_eq!(nowhere.json()["type"], "/problems/not-found");
    let method = send(service.http.put(service.url("/api/v1/logs")))
        .await
        .expect(405);
    assert_eq!(method.json()["type"], "/problems/method-not-allowed");
    assert_eq!(method.header("allow"), "GET, HEAD, OPTIONS, POST");
}

#[tokio::test]
async fn the_request_id_is_taken_or_made_and_answered() {
    let service = Service::start().await;
    let taken = service
        .http
        .get(service.url("/health/live"))
        .header("x-request-id", "abc");
    assert_eq!(send(taken).await.expect(200).header("x-request-id"), "abc");
    let made = send(service.http.get(service.url("/nowhere"))).await;
    assert_eq!(made.header("x-request-id").len(), 36);
}

#[tokio::test]
async fn health_and_metrics_need_no_credential() {
    let service = Service::start().await;
    for path in ["/health/live", "/health/ready", "/health/ready/"] {
        let answer = send(service.http.get(service.url(path))).await.expect(200);
        assert_eq!(answer.json()["status"], "ok");
    }
    let metrics = send(service.http.get(service.url("/metrics")))
        .await
        .expect(200);
    assert!(metrics.text.contains("audit_http_requests_total"));
}

#[tokio::test]
async fn pages_of_other_origins_may_call_only_where_they_are_named() {
    let preflight = |service: &Service| {
        service
            .http
            .request(reqwest::Method::OPTIONS, service.url("/api/v1/logs"))
            .header("origin", "https://app.example")
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type",
            )
    };
    let closed = Service::start().await;
    let answer = send(preflight(&closed)).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    let open = Service::with(&[("AUDIT_CORS_ORIGINS", "https://app.example")]).await;
    let answer = send(preflight(&open)).await.expect(200);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        "https://app.example"
    );
    let other = preflight(&open).header("origin", "https://evil.example");
    let mut other = other.build().unwrap();
    other
        .headers_mut()
        .insert("origin", "https://evil.example".parse().unwrap());
    let answer = crate::service::Answer::of(open.http.execute(other).await.unwrap()).await;
    assert_ne!(
        answer.header("access-control-allow-origin"),
        "https://evil.example"
    );
    // An error can be read by the page too.
    let request = open
        .http
        .get(open.url("/api/v1/logs"))
        .header("origin", "https://app.example");
    let refused = send(request).await.expect(401);
    assert_eq!(
        refused.header("access-control-allow-origin"),
        "https://app.example"
    );
}
