//! A server that archives in a bucket, on a real server of the protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use audit_core::tlog::evidence::{FolderManifest, Record};
use audit_core::tlog::folder::{self, LOG_ZST, MANIFEST, SegmentName};
use audit_core::tlog::leaf::open_disclosure;
use audit_core::tlog::note::VerifyingKey;
use audit_core::tlog::verify::{Options, Report, verify_lines};
use audit_core::{Clock as _, SystemClock};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::child::Server;
use crate::erasures::{Client, is_done, own_tenant, until};
use crate::service::{Answer, send};
use crate::stack::{Stack, needed};

/// What nothing but one person's own content holds.
const PERSON: &str = "tq7XkV3mZp0cRw9sLd2YhB5n";

/// A bucket of the test's own, which anybody may read, and a way to it on which requests are cut when so many have passed.
struct Bucket {
    name: String,
    endpoint: String,
    passes: Arc<AtomicUsize>,
}

impl Bucket {
    async fn make() -> Self {
        let real = needed("AUDIT_TEST_S3_ENDPOINT");
        let name = format!("it-{}", SystemClock.event_id());
        let made = reqwest::Client::new().put(format!("{real}/{name}"));
        let made = made.header("x-amz-acl", "public-read").send().await;
        let made = made.expect("S3 answers: is it running? `dev/services up` starts it");
        assert_eq!(made.status(), 200);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            name,
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            passes: Arc::new(AtomicUsize::new(usize::MAX)),
        };
        let (passes, address) = (this.passes.clone(), real.replace("http://", ""));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let left = |n: usize| n.checked_sub(1);
                let left = passes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
                // The server closes each connection behind its answer.
                let Ok(_) = left else { continue };
                let mut server = TcpStream::connect(&address).await.unwrap();
                tokio::spawn(async move {
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        this
    }

    fn pass(&self, requests: usize) {
        self.passes.store(requests, Ordering::SeqCst);
    }

    /// What leads a server to it.
    fn settings(&self) -> [(&'static str, String); 4] {
        [
            ("AUDIT_ARCHIVE_URL", format!("s3://{}/of/here", self.name)),
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            // Which is not read: nobody is there.
            ("AWS_PROXY_URL", "http://127.0.0.1:1".to_owned()),
        ]
    }

    /// Every object below the archive's prefix, asked for with nothing but HTTP.
    async fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let bucket = format!("{}/{}", needed("AUDIT_TEST_S3_ENDPOINT"), self.name);
        let get = async |url: String| {
            let answer = reqwest::get(url).await.unwrap();
            let answer = answer.error_for_status().unwrap();
            answer.bytes().await.unwrap().to_vec()
        };
        let list = get(format!("{bucket}?list-type=2&max-keys=1000")).await;
        let list = String::from_utf8(list).unwrap();
        assert!(list.contains("<IsTruncated>false<"), "{list}");
        let mut objects = BTreeMap::new();
        for key in list.split("<Key>").skip(1) {
            let key = key.split('<').next().unwrap();
            let path = key.strip_prefix("of/here/").unwrap();
            objects.insert(path.to_owned(), get(format!("{bucket}/{key}")).await);
        }
        objects
    }

    /// The tenants' folders, as `aws s3 sync` brings them.
    async fn sync(&self, to: &Path) {
        for (path, bytes) in self.objects().await {
            let path = to.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
}

/// What was found of a segment in a folder, and what its entries show.
fn judged(at: &Path, key: &VerifyingKey) -> (Report, String) {
    let text = |name: &str| std::fs::read_to_string(at.join(name));
    let listing = FolderManifest::parse(&text(MANIFEST).unwrap()).unwrap();
    for file in &listing.files {
        let bytes = std::fs::read(at.join(&file.name)).unwrap();
        assert_eq!(folder::listed(&file.name, &bytes), *file);
    }
    let opened = folder::open(&listing, text);
    assert!(opened.findings.is_empty());
    let log = std::fs::read(at.join(LOG_ZST)).unwrap();
    let log = String::from_utf8(zstd::decode_all(log.as_slice()).unwrap()).unwrap();
    let options = Options {
        partial: true,
        keys: vec![key.clone()],
        ..Options::default()
    };
    let report = verify_lines(opened.head.lines().chain(log.lines()), options);
    let mut shown = String::new();
    for line in log.lines() {
        let Ok(Record::Entry(line)) = Record::parse(line) else {
            continue;
        };
        for disclosure in line.disclosures.into_iter().flatten() {
            shown.push_str(&open_disclosure(&disclosure).unwrap().value);
        }
    }
    (report, shown)
}

/// The segments of a tenant's folder, which are all positions below this one, verified; and what they
/// show.
fn assert_archived(at: &Path, below: u64, key: &VerifyingKey) -> (Vec<Report>, String) {
    let names = std::fs::read_dir(at).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<_> = names
        .map(|name| SegmentName::parse(&name).unwrap())
        .collect();
    let (mut reports, mut all, mut next) = (Vec::new(), String::new(), 0);
    for name in names {
        let (report, shown) = judged(&at.join(name.to_string()), key);
        assert!(report.is_verified(), "{name}: {:#?}", report.findings);
        assert!(report.key_trusted);
        assert_eq!(report.withheld_within(&name.positions()), None);
        assert_eq!(name.from, next);
        next = name.to;
        all.push_str(&shown);
        reports.push(report);
    }
    assert_eq!(next, below);
    (reports, all)
}

async fn record(client: &Client, user: &str) -> String {
    let event = json!({
        "action_type": "UPDATE", "resource_type": "doc", "resource_id": "d", "user_id": user,
        "reason": format!("as {user} said"),
    });
    let stored = send(client.post("/api/v1/logs", &event)).await.expect(201);
    stored.json()["id"].as_str().unwrap().to_owned()
}

async fn prune(client: &Client) -> Answer {
    send(client.post("/api/v1/prunes", &json!({"before": "2999-01-01T00:00:00Z"}))).await
}

#[tokio::test]
async fn what_is_pruned_is_in_the_bucket_first_and_verifies_from_there() {
    let bucket = Bucket::make().await;
    let (folder, stack) = (tempfile::tempdir().unwrap(), Stack::make().await);
    let mut settings = stack.engines();
    settings.extend(bucket.settings());
    let server = Server::start_on(folder.path(), settings).await;
    let client = Client::of(&server);
    let tenant = own_tenant(&client).await;
    let key = send(client.get(&format!("/api/v1/tlog/{tenant}/key"))).await;
    let key = VerifyingKey::parse(key.text.trim_end()).unwrap();
    let mut ids = Vec::new();
    for user in [PERSON, "bob", PERSON] {
        ids.push(record(&client, user).await);
    }

    // S3 is away once it has a part of the segment.
    bucket.pass(3);
    let failed = prune(&client).await.expect(503).json();
    assert_eq!(failed["type"], "/problems/unavailable", "{failed}");
    let left = bucket.objects().await;
    assert!(!left.is_empty());
    assert!(
        left.keys().all(|path| !path.ends_with(MANIFEST)),
        "{left:?}"
    );
    for id in &ids {
        send(client.get(&format!("/api/v1/logs/{id}")))
            .await
            .expect(200);
    }
    bucket.pass(usize::MAX);
    let pruned = prune(&client).await.expect(201).json();
    assert_eq!(pruned["below"], 4);
    let gone = send(client.get(&format!("/api/v1/logs/{}", ids[0]))).await;
    gone.expect(410);
    // Nothing is left of the first try.
    let kept = bucket.objects().await;
    assert!(left.keys().all(|path| !kept.contains_key(path)));

    record(&client, PERSON).await;
    // The entry of the first prune goes with it.
    assert_eq!(prune(&client).await.expect(201).json()["below"], 6);
    let fetched = tempfile::tempdir().unwrap();
    bucket.sync(fetched.path()).await;
    let (reports, shown) = assert_archived(&fetched.path().join(&tenant), 6, &key);
    assert_eq!(reports.len(), 2);
    assert!(shown.contains(PERSON));

    let body = json!({"user_id": PERSON, "basis": "gdpr-17"});
    let begun = send(client.post("/api/v1/erasures", &body)).await;
    let place = begun.expect(202).header("location").to_owned();
    let done: Value = until(|| client.get(&place), "it is done", is_done)
        .await
        .json();
    assert_eq!(done.get("last_error"), None);
    let fetched = tempfile::tempdir().unwrap();
    bucket.sync(fetched.path()).await;
    let (reports, shown) = assert_archived(&fetched.path().join(&tenant), 6, &key);
    assert!(!shown.contains(PERSON), "{shown}");
    assert!(shown.contains("bob"));
    let erased = reports.iter().map(|report| report.groups.erased);
    // Of each of three entries actor, resource and reason.
    assert_eq!(erased.sum::<u64>(), 9);
    server.stop();
}
