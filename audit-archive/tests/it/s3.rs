//! An archive in a bucket, on a real server of the protocol, whose address is in the environment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use audit_archive::{ObjectArchive, ObjectOptions};
use audit_conformance::ArchiveHarness;
use audit_core::archive::MAX_LISTED;
use audit_core::{Archive as _, Clock as _, Error, ErrorKind, SystemClock};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

fn environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `dev/services up`, then `set -a; . .dev/env; set +a`")
    })
}

pub(crate) fn endpoint() -> String {
    environment("AUDIT_TEST_S3_ENDPOINT")
}

/// A name that no other test's bucket has.
pub(crate) fn new_name() -> String {
    format!("it-{}", SystemClock.event_id())
}

/// What the server answers to anybody who asks with nothing but HTTP.
async fn raw(method: &str, path: &str) -> String {
    let address = endpoint().replace("http://", "");
    let server = TcpStream::connect(&address).await;
    let mut server = server.expect("S3 answers: is it running? `dev/services up` starts it");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nx-amz-acl: public-read\r\nConnection: close\r\n\
         Content-Length: 0\r\n\r\n"
    );
    server.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    server.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer
}

/// Makes a bucket that anybody may read, for other programs' sake.
pub(crate) async fn make_bucket(name: &str) {
    raw("PUT", &format!("/{name}")).await;
}

pub(crate) fn options(bucket: &str, prefix: &str, endpoint: &str) -> ObjectOptions {
    ObjectOptions::new(&format!("s3://{bucket}/{prefix}"))
        .unwrap()
        .variable("AWS_ENDPOINT_URL", endpoint)
        .variable("AWS_ALLOW_HTTP", "true")
        .variable("AWS_ACCESS_KEY_ID", "test")
        .variable("AWS_SECRET_ACCESS_KEY", "test")
}

fn open(bucket: &str, prefix: &str, endpoint: &str) -> ObjectArchive {
    ObjectArchive::open_with(&options(bucket, prefix, endpoint)).unwrap()
}

struct Bucket(Arc<ObjectArchive>);

impl ArchiveHarness for Bucket {
    type Archive = ObjectArchive;

    async fn open() -> Self {
        let name = new_name();
        make_bucket(&name).await;
        Self(Arc::new(open(&name, "logs/of.here", &endpoint())))
    }

    fn archive(&self) -> Arc<ObjectArchive> {
        self.0.clone()
    }
}

mod conformance {
    audit_conformance::archive!(super::Bucket);
}

/// What each operation fails with.
async fn errors(archive: &ObjectArchive) -> Vec<Error> {
    vec![
        archive.put("t/a", b"x".to_vec()).await.unwrap_err(),
        archive.get("t/a").await.unwrap_err(),
        archive.list("t", "").await.unwrap_err(),
        archive.remove("t/a").await.unwrap_err(),
    ]
}

#[tokio::test]
async fn an_object_lies_below_the_prefix_for_other_programs_to_read() {
    let bucket = new_name();
    make_bucket(&bucket).await;
    let [own, whole] = ["logs/here/", ""].map(|prefix| open(&bucket, prefix, &endpoint()));
    own.put("t/a.zst", b"the bytes".to_vec()).await.unwrap();
    let answer = raw("GET", &format!("/{bucket}/logs/here/t/a.zst")).await;
    assert!(answer.ends_with("\r\n\r\nthe bytes"), "{answer}");
    // The archive of the whole bucket has it under another path.
    assert_eq!(whole.list("t", "").await.unwrap(), [""; 0]);
    let path = "logs/here/t/a.zst";
    assert_eq!(whole.list("logs", "").await.unwrap(), [path]);
    whole.remove(path).await.unwrap();
    assert_eq!(own.get("t/a.zst").await.unwrap(), None);
}

#[tokio::test]
async fn a_missing_bucket_is_no_empty_archive() {
    let bucket = new_name();
    let archive = open(&bucket, "", &endpoint());
    for error in errors(&archive).await {
        assert!(error.is_retryable());
        assert!(error.to_string().contains("is missing"), "{error}");
    }
    make_bucket(&bucket).await;
    assert_eq!(archive.get("t/a").await.unwrap(), None);
}

#[tokio::test]
async fn s3_that_is_away_is_told_soon() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let archive = open("bucket", "", &nobody);
    let began = Instant::now();
    let error = archive.put("t/a", b"x".to_vec()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // One try, and repeats within ten seconds.
    assert!(began.elapsed() < Duration::from_secs(25), "{began:?}");
}

/// A server that answers alike to everything, and how often it did.
struct Answering {
    endpoint: String,
    answered: Arc<AtomicUsize>,
}

impl Answering {
    async fn start(status: u16, body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let answered = Arc::new(AtomicUsize::new(0));
        let count = answered.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut client = BufReader::new(client);
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    client.read_line(&mut line).await.unwrap();
                    let line = line.trim_end().to_ascii_lowercase();
                    if let Some(value) = line.strip_prefix("content-length: ") {
                        length = value.parse().unwrap();
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                client.read_exact(&mut vec![0; length]).await.unwrap();
                let head = format!(
                    "HTTP/1.1 {status} so\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                count.fetch_add(1, Ordering::SeqCst);
                client.write_all((head + &body).as_bytes()).await.unwrap();
            }
        });
        Self { endpoint, answered }
    }

    /// Each time a list of the same paths, with more behind them.
    async fn listing(paths: impl Iterator<Item = String>) -> Self {
        let object = |path| {
            format!(
                "<Contents><Key>{path}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                 <ETag>e</ETag><Size>1</Size></Contents>"
            )
        };
        let objects: String = paths.map(object).collect();
        let body = format!(
            "<ListBucketResult><IsTruncated>true</IsTruncated>{objects}\
             <NextContinuationToken>more</NextContinuationToken></ListBucketResult>"
        );
        Self::start(200, body).await
    }
}

#[tokio::test]
async fn a_bucket_is_asked_for_no_more_than_a_list_takes() {
    let paths = |n: usize| (0..n).map(|n| format!("t/{n:05}"));
    let server = Answering::listing(paths(MAX_LISTED)).await;
    let archive = open("bucket", "", &server.endpoint);
    let listed = archive.list("t", "").await.unwrap();
    assert_eq!(listed, paths(MAX_LISTED).collect::<Vec<_>>());
    assert_eq!(server.answered.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_bucket_whose_list_is_not_in_order_is_not_believed() {
    let paths = ["t/2", "t/10"].map(str::to_owned);
    let server = Answering::listing(paths.into_iter()).await;
    let archive = open("bucket", "", &server.endpoint);
    let error = archive.list("t", "").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("in order"), "{error}");
}

/// As credentials may be renewed, and rights given.
#[tokio::test]
async fn who_is_refused_by_s3_may_try_again() {
    let body = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
    let server = Answering::start(403, body.to_owned()).await;
    let archive = open("bucket", "", &server.endpoint);
    for error in errors(&archive).await {
        assert!(error.is_retryable());
        assert!(error.to_string().contains("refuses"), "{error}");
    }
}

#[tokio::test]
async fn an_authority_that_is_named_is_trusted_and_no_other() {
    let bucket = new_name();
    make_bucket(&bucket).await;
    let options = options(&bucket, "", &environment("AUDIT_TEST_S3_TLS_ENDPOINT"))
        .variable("AWS_ALLOW_HTTP", "false");
    let archive = ObjectArchive::open_with(&options).unwrap();
    let error = archive.get("t/a").await.unwrap_err();
    assert!(error.is_retryable());
    let options = options.ca_file(environment("AUDIT_TEST_CA"));
    let archive = ObjectArchive::open_with(&options).unwrap();
    archive.put("t/a", b"x".to_vec()).await.unwrap();
    assert_eq!(archive.get("t/a").await.unwrap().unwrap(), b"x");
}

#[test]
fn a_file_of_certificates_that_cannot_be_used_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (name, content) in [
        ("missing.pem", None),
        ("empty.pem", Some("")),
        ("broken.pem", Some(broken)),
    ] {
        let path = folder.path().join(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let options = options("bucket", "", "https://localhost:1").ca_file(&path);
        let error = ObjectArchive::open_with(&options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn options_show_no_secret_and_an_unknown_variable_is_refused() {
    let options = options("bucket", "", "http://localhost:1");
    let secret = options.variable("AWS_SECRET_ACCESS_KEY", "sesame");
    let archive = ObjectArchive::open_with(&secret).unwrap();
    assert!(!format!("{secret:?} {archive:?}").contains("sesame"));
    let unknown = secret.variable("AWS_ENDPOINT_URI", "http://localhost:1");
    let error = ObjectArchive::open_with(&unknown).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
