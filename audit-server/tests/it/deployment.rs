//! The deployment log over HTTP: head proofs, what monitors read, and a witness that cosigns.

#[path = "../../../examples/witness/service.rs"]
mod witness;

use std::time::Duration;

use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::merkle;
use audit_core::tlog::note::{Cosigner, Note, SigningKey, VerifyingKey};
use audit_core::tlog::proof::InclusionProof;
use audit_core::tlog::tile::{Content, Tile, parse_entries, parse_hashes};
use audit_core::tlog::verify::{Options, verify_lines};
use audit_core::tlog::witness::{SIZE_CONTENT_TYPE, monitoring_path};
use audit_core::tlog::{HeadPolicy, WitnessedHead, leaf, verify_head};
use audit_core::{Event, Role, TenantId};
use poem::Server;
use poem::listener::{Acceptor as _, Listener as _, TcpListener};
use tokio::task::JoinHandle;

use crate::service::{Service, send, tlog_key, token, until};
use witness::Witness;

const ORIGIN: &str = "localhost/audit/deployment";

fn log_key() -> VerifyingKey {
    tlog_key().renamed(ORIGIN).unwrap().verifying_key().clone()
}

/// A witness on a port of its own, for the log of the tests' servers. Its state outlives it.
struct Running {
    key: VerifyingKey,
    url: String,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(folder: &tempfile::TempDir) -> Self {
        let key = SigningKey::from_seed("witness.example.com/w1", &[3; 32]).unwrap();
        let witness = Witness::new(Cosigner::from(key), vec![log_key()], folder.path());
        let listener = TcpListener::bind("127.0.0.1:0");
        let acceptor = listener.into_acceptor().await.unwrap();
        let address = acceptor.local_addr().remove(0);
        let address = address.as_socket_addr().unwrap().to_string();
        let (key, routes) = (witness.key().clone(), witness.routes());
        let task = tokio::spawn(async move {
            Server::new_with_acceptor(acceptor)
                .run(routes)
                .await
                .unwrap();
        });
        Self {
            key,
            url: format!("http://{address}"),
            task,
        }
    }

    async fn serve(&self) -> Service {
        let setting = format!("{} {}/", self.key, self.url);
        Service::with(&[
            ("AUDIT_WITNESSES", &*setting),
            ("AUDIT_DEPLOYMENT_EVERY", "1"),
        ])
        .await
    }
}

/// The tenant's proof, once a witness has cosigned it.
async fn proved(
    service: &Service,
    tenant: TenantId,
    witness: &VerifyingKey,
) -> (InclusionProof, WitnessedHead) {
    let auditor = token(Role::Auditor, tenant);
    let path = format!("/api/v1/tlog/{tenant}/deployment");
    tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let answer = send(service.get(&path, &auditor)).await;
            match answer.status {
                200 => {
                    let proof = InclusionProof::parse(&answer.text).unwrap();
                    let witnesses = std::slice::from_ref(witness);
                    let policy = HeadPolicy {
                        log: &[log_key()],
                        witnesses,
                        least: 1,
                    };
                    if let Ok(head) = verify_head(&proof, &policy) {
                        return (proof, head);
                    }
                }
                status => assert_eq!(status, 503, "{}", answer.text),
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_witness_that_follows_the_public_protocol_cosigns_each_tenants_head() {
    let folder = tempfile::tempdir().unwrap();
    let witness = Running::start(&folder).await;
    let service = witness.serve().await;
    let tenants = [
        service.tenant("acme").await,
        service.tenant("umbrella").await,
    ];
    for tenant in tenants {
        service
            .record(tenant, Event::view("doc", "d1").user("ann"))
            .await;
    }
    for tenant in tenants {
        let (proof, head) = proved(&service, tenant, &witness.key).await;
        assert_eq!(head.opening.tenant, tenant.into_uuid());
        assert_eq!(head.checkpoint.origin(), ORIGIN);
        let auditor = token(Role::Auditor, tenant);
        let own = service.get(&format!("/api/v1/tlog/{tenant}/checkpoint"), &auditor);
        let own = Note::parse(&send(own).await.text).unwrap();
        let own = Checkpoint::parse(own.text()).unwrap();
        assert_eq!(
            (head.opening.size, head.opening.root),
            (own.size(), own.root())
        );
        // An auditor is shown up to which size and since when the witness vouches.
        let evidence = service.get("/api/v1/logs/export?format=evidence", &auditor);
        let evidence = send(evidence).await.expect(200);
        let options = Options {
            head_proofs: vec![proof],
            witnesses: vec![witness.key.clone()],
            ..Options::default()
        };
        let report = verify_lines(evidence.text.lines(), options);
        assert_eq!(report.findings, []);
        assert_eq!(report.cosigned_size(), Some(own.size()));
        assert_eq!(report.cosigned_at(), Some(head.cosigned[0].1));
    }
    let [home, other] = tenants;
    let auditor = token(Role::Auditor, home);
    let foreign = service.get(&format!("/api/v1/tlog/{other}/deployment"), &auditor);
    assert_eq!(send(foreign).await.status, 404);
    let empty = service.tenant("empty").await;
    let none = service.get(
        &format!("/api/v1/tlog/{empty}/deployment"),
        &token(Role::Auditor, empty),
    );
    let none = send(none).await;
    assert_eq!(none.status, 503, "{}", none.text);
    assert_eq!(none.header("retry-after"), "60");

    // What a monitor reads, here and at the witness.
    let get = async |path: &str| {
        let request = service.get(&format!("/api/v1/tlog-deployment/{path}"), &auditor);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.bytes().await.unwrap().to_vec()
    };
    let text = async |path: &str| String::from_utf8(get(path).await).unwrap();
    assert_eq!(text("key").await, format!("{}\n", log_key()));
    let note = Note::parse(&text("checkpoint").await).unwrap();
    let keys = [log_key(), witness.key.clone()];
    let opened = Checkpoint::open(&note, &keys).unwrap();
    assert_eq!(opened.cosigners().count(), 1);
    let head = opened.checkpoint;
    let hashes = Tile::at(Content::Hashes(0), 0, head.size()).unwrap();
    let hashes = parse_hashes(&get(&hashes.path()).await, hashes.width()).unwrap();
    assert_eq!(merkle::root(&hashes), head.root());
    let entries = Tile::at(Content::Entries, 0, head.size()).unwrap();
    let bytes = get(&entries.path()).await;
    let leaves = parse_entries(&bytes, entries.width()).unwrap();
    let own: Vec<_> = leaves.iter().map(|data| leaf::leaf_hash(data)).collect();
    assert_eq!(own, hashes);
    for tenant in tenants {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&tenant.to_string()));
    }
    let seen = reqwest::get(format!("{}/{}", witness.url, monitoring_path(ORIGIN))).await;
    let seen = Note::parse(&seen.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(
        Checkpoint::open(&seen, &keys).unwrap().cosigners().count(),
        1
    );
    service.stop().await.unwrap();
    witness.task.abort();
}

#[tokio::test]
async fn a_log_that_was_put_back_is_refused_by_the_witness_and_the_metrics_tell() {
    let folder = tempfile::tempdir().unwrap();
    let witness = Running::start(&folder).await;
    let service = witness.serve().await;
    for name in ["acme", "umbrella"] {
        let tenant = service.tenant(name).await;
        service.record(tenant, Event::view("doc", "d1")).await;
        proved(&service, tenant, &witness.key).await;
    }
    service.stop().await.unwrap();
    witness.task.abort();

    // The witness remembers, after a restart too; the log's files are new.
    let witness = Running::start(&folder).await;
    let service = witness.serve().await;
    let tenant = service.tenant("acme").await;
    service.record(tenant, Event::view("doc", "d1")).await;
    let refuses = "audit_witness_refuses{witness=\"witness.example.com/w1\"} 1";
    let signed = "audit_deployment_signed_timestamp_seconds ";
    until(
        "the refusal is told, and that the head is signed",
        async || {
            let page = send(service.http.get(format!("{}/metrics", service.base))).await;
            let has = |start: &str| page.text.lines().any(|line| line.starts_with(start));
            has(refuses) && has(signed)
        },
    )
    .await;
    // The log's own head is served, without a cosignature: published once the witness has answered.
    let auditor = token(Role::Auditor, tenant);
    let path = "/api/v1/tlog-deployment/checkpoint";
    until("the head is served", async || {
        send(service.get(path, &auditor)).await.status == 200
    })
    .await;
    let note = send(service.get(path, &auditor)).await;
    let opened = Checkpoint::open(&Note::parse(&note.text).unwrap(), &[log_key(), witness.key]);
    assert_eq!(opened.unwrap().cosigners().count(), 0);
    service.stop().await.unwrap();
    witness.task.abort();
}

/// The order of C2SP `tlog-witness`, section *add-checkpoint*: 404, 403, 400, 409, 422.
#[tokio::test]
async fn our_witness_answers_what_the_page_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let witness = Running::start(&folder).await;
    let ask = async |body: String| {
        let request = reqwest::Client::new().post(format!("{}/add-checkpoint", witness.url));
        send(request.body(body)).await
    };
    let hashes: Vec<_> = (0..4_u8).map(|n| leaf::leaf_hash(&[n])).collect();
    let key = tlog_key().renamed(ORIGIN).unwrap();
    let signed = |name: &str, size: usize, key: &SigningKey| {
        let head = Checkpoint::new(name, size as u64, merkle::root(&hashes[..size])).unwrap();
        head.sign(&[&key.renamed(name).unwrap()]).unwrap().encode()
    };
    let request = |old: u64, proof: &str, note: &str| format!("old {old}\n{proof}\n{note}");
    let stranger = SigningKey::from_seed("x", &[9; 32]).unwrap();
    for (body, status) in [
        (request(0, "", &signed("example.com/other", 2, &key)), 404),
        (request(0, "", &signed(ORIGIN, 2, &stranger)), 403),
        (request(3, "", &signed(ORIGIN, 2, &key)), 400),
        ("nonsense".to_owned(), 400),
        (request(0, "", &signed(ORIGIN, 2, &key)), 200),
        // Again, as after an answer that was lost.
        (request(2, "", &signed(ORIGIN, 2, &key)), 200),
        (request(0, "", &signed(ORIGIN, 4, &key)), 409),
        (request(2, "", &signed(ORIGIN, 4, &key)), 422),
    ] {
        let answer = ask(body.clone()).await;
        assert_eq!(answer.status, status, "{body}\n{}", answer.text);
        if status == 409 {
            assert_eq!(answer.header("content-type"), SIZE_CONTENT_TYPE);
            assert_eq!(answer.text, "2\n");
        }
    }
    let proof = merkle::consistency_proof(2, 4, |range| {
        let (start, end) = (range.start as usize, range.end as usize);
        Ok::<_, ()>(merkle::root(&hashes[start..end]))
    });
    let lines: String = proof
        .unwrap()
        .iter()
        .map(|h| h.to_base64() + "\n")
        .collect();
    let answer = ask(request(2, &lines, &signed(ORIGIN, 4, &key))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    witness.task.abort();
}
