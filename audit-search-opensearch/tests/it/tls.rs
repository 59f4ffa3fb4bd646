//! Through TLS, and with a name and a password.

use audit_core::{ErrorKind, SearchIndex};
use audit_search_opensearch::{Layout, OpenSearchIndex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::cluster::{Cluster, entries, find, variable};

#[tokio::test]
async fn a_server_with_the_operators_own_authority_is_trusted_with_its_file_only() {
    let (url, ca) = (
        variable("AUDIT_TEST_OPENSEARCH_TLS_URL"),
        variable("AUDIT_TEST_CA"),
    );
    let cluster = Cluster::new(Layout::Shared);
    let stranger = OpenSearchIndex::open(cluster.options(&url)).unwrap();
    let error = stranger.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let options = cluster.options(&url).ca_file(ca).unwrap();
    let index = OpenSearchIndex::open(options).unwrap();
    index.ping().await.unwrap();
    index.index(&entries(1, 0..3, "common")).await.unwrap();
    assert_eq!(find(&index, 1, "common").await, [2, 1, 0]);
}

#[tokio::test]
async fn what_is_no_authority_is_refused() {
    let cluster = Cluster::new(Layout::Shared);
    let missing = cluster
        .options("https://localhost")
        .ca_file("/nowhere/ca.pem");
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::Refused);
    let text = cluster
        .options("https://localhost")
        .ca_file("/proc/self/status")
        .unwrap();
    let error = OpenSearchIndex::open(text).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn the_name_and_the_password_of_the_url_are_sent_and_a_refusal_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://ann:p%40ss@{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        while !read.windows(4).any(|four| four == b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
        }
        let answer = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        String::from_utf8(read).unwrap().to_ascii_lowercase()
    });
    let cluster = Cluster::new(Layout::Shared);
    let index = OpenSearchIndex::open(cluster.options(&url)).unwrap();
    let error = index.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!format!("{error:?} {index:?}").contains("p@ss"));
    // RFC 7617: base64 of `ann:p@ss`.
    let request = server.await.unwrap();
    assert!(
        request.contains("authorization: basic yw5uonbac3m="),
        "{request}"
    );
}
