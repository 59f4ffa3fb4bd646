//! Checkpoints, tiles, proofs and evidence exports over HTTP, read by the formats' own rules.

use std::time::Duration;

use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::evidence::Record;
use audit_core::tlog::note::{Note, VerifyingKey};
use audit_core::tlog::proof::InclusionProof;
use audit_core::tlog::tile::{Content, Tile, parse_entries, parse_hashes};
use audit_core::tlog::verify::{Options, Report, verify_lines};
use audit_core::tlog::{leaf, merkle};
use audit_core::{Event, EventId, Role, TenantId};

use crate::service::{Service, send, token};

async fn recorded(service: &Service, tenant: TenantId, n: usize) -> Vec<EventId> {
    let mut ids = Vec::new();
    for n in 0..n {
        let event = Event::view("doc", format!("d{n}"))
            .user("ann")
            .reason("why");
        ids.push(service.record(tenant, event).await);
    }
    ids
}

/// The newest checkpoint, once it covers so many entries.
async fn checkpoint(service: &Service, tenant: TenantId, size: u64) -> Checkpoint {
    let auditor = token(Role::Auditor, tenant);
    let key = service.get(&format!("/api/v1/tlog/{tenant}/key"), &auditor);
    let key = send(key).await.text;
    let key = VerifyingKey::parse(key.trim_end()).unwrap();
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let asked = service.get(&format!("/api/v1/tlog/{tenant}/checkpoint"), &auditor);
            let answer = send(asked).await;
            if answer.status == 200 {
                let note = Note::parse(&answer.text).unwrap();
                let opened = Checkpoint::open(&note, std::slice::from_ref(&key)).unwrap();
                if opened.checkpoint.size() >= size {
                    return opened.checkpoint;
                }
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap()
}

fn verify(text: &str, partial: bool) -> Report {
    let options = Options {
        partial,
        ..Options::default()
    };
    verify_lines(text.lines(), options)
}

#[tokio::test]
async fn a_proof_leads_to_a_checkpoint_of_the_tenants_own_origin() {
    let service = Service::start().await;
    let tenant = service.tenant("acme").await;
    let ids = recorded(&service, tenant, 5).await;
    let head = checkpoint(&service, tenant, 5).await;
    assert_eq!(head.origin(), format!("localhost/audit/{tenant}"));
    let auditor = token(Role::Auditor, tenant);
    let key = service.get(&format!("/api/v1/tlog/{tenant}/key"), &auditor);
    let key = VerifyingKey::parse(send(key).await.text.trim_end()).unwrap();
    for id in ids {
        let entry = send(service.get(&format!("/api/v1/logs/{id}"), &auditor)).await;
        let leaf_hash = entry.json()["leaf_hash"].as_str().unwrap().to_owned();
        let answer = send(service.get(&format!("/api/v1/logs/{id}/proof"), &auditor)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let proof = InclusionProof::parse(&answer.text).unwrap();
        let leaf = leaf::Hash::from_base64(&leaf_hash).unwrap();
        proof.verify(&leaf, std::slice::from_ref(&key)).unwrap();
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn tiles_are_served_by_their_paths() {
    let service = Service::start().await;
    let tenant = service.tenant("acme").await;
    recorded(&service, tenant, 3).await;
    let head = checkpoint(&service, tenant, 3).await;
    let auditor = token(Role::Auditor, tenant);
    let get = async |path: &str| {
        let request = service.get(&format!("/api/v1/tlog/{tenant}/{path}"), &auditor);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.bytes().await.unwrap().to_vec())
    };
    let size = head.size();
    let hashes = Tile::at(Content::Hashes(0), 0, size).unwrap();
    let (status, bytes) = get(&hashes.path()).await;
    assert_eq!(status, 200);
    let hashes = parse_hashes(&bytes, hashes.width()).unwrap();
    assert_eq!(merkle::root(&hashes), head.root());
    let entries = Tile::at(Content::Entries, 0, size).unwrap();
    let (status, bytes) = get(&entries.path()).await;
    assert_eq!(status, 200);
    let leaves = parse_entries(&bytes, entries.width()).unwrap();
    let own: Vec<_> = leaves.iter().map(|leaf| leaf::leaf_hash(leaf)).collect();
    assert_eq!(own, hashes);
    for missing in [
        "tile/0/001",
        "tile/1/000",
        "tile/0/0",
        "tile/x",
        "tile/0/000.p/0",
    ] {
        assert_eq!(get(missing).await.0, 404, "{missing}");
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn an_evidence_export_verifies_and_withholds_what_it_is_told_to() {
    let service = Service::start().await;
    let tenant = service.tenant("acme").await;
    recorded(&service, tenant, 20).await;
    let auditor = token(Role::Auditor, tenant);
    let export = async |query: &str| {
        let path = format!("/api/v1/logs/export?format=evidence{query}");
        send(service.get(&path, &auditor)).await
    };
    checkpoint(&service, tenant, 20).await;
    let whole = export("").await;
    assert_eq!(whole.status, 200, "{}", whole.text);
    let report = verify(&whole.text, false);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert!(report.entries >= 20);
    let partial = export("&resource_id=d7&withhold=actor,reason").await;
    let report = verify(&partial.text, true);
    assert!(report.is_verified(), "{:#?}", report.findings);
    assert_eq!(report.groups.withheld, 2);
    let last = partial.text.lines().last().unwrap();
    assert!(matches!(Record::parse(last), Ok(Record::End(_))), "{last}");
    for bad in ["&withhold=nothing", "&withhold="] {
        let refused = export(bad).await;
        assert_eq!(refused.status, 400, "{}", refused.text);
        assert_eq!(refused.json()["errors"][0]["parameter"], "withhold");
    }
    let idle = send(service.get("/api/v1/logs/export?withhold=actor", &auditor)).await;
    assert_eq!(idle.status, 400, "{}", idle.text);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_log_is_public_when_its_tenant_says_so_and_the_log_tells() {
    let service = Service::start().await;
    let admin = token(Role::Admin, None);
    let body = r#"{"name":"open","public_log":true}"#;
    let request = service.http.post(service.url("/api/v1/tenants"));
    let made = send(
        request
            .bearer_auth(&admin)
            .body(body)
            .header("content-type", "application/json"),
    );
    let made = made.await.expect(201).json();
    assert_eq!(made["public_log"], true);
    let open: TenantId = made["id"].as_str().unwrap().parse().unwrap();
    recorded(&service, open, 3).await;
    checkpoint(&service, open, 3).await;
    let get = |path: &str| {
        service
            .http
            .get(service.url(&format!("/api/v1/tlog/{open}/{path}")))
    };
    for path in ["checkpoint", "key", "tile/entries/000.p/3"] {
        assert_eq!(
            send(get(path)).await.expect(200).header("cache-control"),
            "no-store"
        );
    }
    let tile = get("tile/0/000.p/3").send().await.unwrap();
    assert_eq!(tile.status(), 200);
    let cache = tile.headers()["cache-control"].to_str().unwrap();
    assert!(cache.starts_with("public, "), "{cache}");
    let auditor = token(Role::Auditor, open);
    let tile = get("tile/0/000.p/3")
        .bearer_auth(auditor)
        .send()
        .await
        .unwrap();
    let cache = tile.headers()["cache-control"].to_str().unwrap();
    assert!(cache.starts_with("private, "), "{cache}");

    let path = format!("/api/v1/tenants/{open}");
    let shut = service
        .http
        .patch(service.url(&path))
        .bearer_auth(&admin)
        .header("content-type", "application/json")
        .body(r#"{"public_log":false,"reason":"enough was seen"}"#);
    assert_eq!(send(shut).await.expect(200).json()["public_log"], false);
    send(get("checkpoint")).await.expect(401);
    let read = service.get(
        "/api/v1/logs?action=log.tenant",
        &token(Role::Auditor, open),
    );
    let told = send(read).await.json();
    assert_eq!(told["data"][0]["metadata"]["public_log"], false, "{told}");
    assert_eq!(told["data"][0]["reason"], "enough was seen");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_slowed_down_without_a_credential_too() {
    let service = Service::with(&[("AUDIT_RATE_LIMIT", "1")]).await;
    let tenant = service.tenant("acme").await;
    let path = format!("/api/v1/tlog/{tenant}/checkpoint");
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(send(service.http.get(service.url(&path))).await.status);
    }
    assert_eq!(statuses.first(), Some(&401));
    assert_eq!(statuses.last(), Some(&429));
    service.stop().await.unwrap();
}

#[tokio::test]
async fn the_checkpoint_that_covers_a_size_is_the_smallest_that_was_kept() {
    let service = Service::start().await;
    let tenant = service.tenant("acme").await;
    recorded(&service, tenant, 3).await;
    let head = checkpoint(&service, tenant, 3).await;
    let auditor = token(Role::Auditor, tenant);
    let covering = async |size: &str| {
        let path = format!("/api/v1/tlog/{tenant}/checkpoint?covers={size}");
        send(service.get(&path, &auditor)).await
    };
    let found = Note::parse(&covering("1").await.expect(200).text).unwrap();
    assert!(Checkpoint::parse(found.text()).unwrap().size() <= head.size());
    covering("1000").await.expect(404);
    covering("0").await.problem(400, "covers");
    service.stop().await.unwrap();
}
