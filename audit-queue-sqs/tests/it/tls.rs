//! Over TLS, with an authority of the test's own.

use audit_core::{ErrorKind, EventQueue as _};
use audit_queue_sqs::{SqsOptions, SqsQueue};

use crate::fixture::{LONG, environment, make, message, options, receive, send, tenant};

fn over_tls() -> SqsOptions {
    options(false).endpoint(environment("AUDIT_TEST_SQS_TLS_ENDPOINT"))
}

#[tokio::test]
async fn an_authority_that_is_named_is_trusted() {
    let queue = make(over_tls().ca_file(environment("AUDIT_TEST_CA"))).await;
    let sent = message(tenant(0), 0);
    send(&queue, std::slice::from_ref(&sent)).await;
    assert_eq!(receive(&queue, 1, LONG).await[0].message, sent);
}

#[tokio::test]
async fn an_authority_that_is_not_named_is_not_trusted() {
    let queue = SqsQueue::open(over_tls()).await.unwrap();
    let error = queue.send(&[message(tenant(0), 0)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_file_of_certificates_that_cannot_be_used_is_refused_by_name() {
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (name, content) in [
        ("missing.pem", None),
        ("empty.pem", Some("")),
        ("broken.pem", Some(broken)),
    ] {
        let folder = std::env::temp_dir();
        let path = folder.join(format!("audit-queue-sqs-{}-{name}", std::process::id()));
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = SqsQueue::open(over_tls().ca_file(&path)).await.unwrap_err();
        if content.is_some() {
            std::fs::remove_file(&path).unwrap();
        }
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(name), "{error}");
    }
}
