//! How long caches may keep what monitors read: C2SP `tlog-tiles`, as docs/adr/0006 bounds it.

use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::note::Note;
use audit_core::tlog::tile::{Content, Tile};
use audit_core::{Event, Role, TenantId};
use serde_json::json;

use crate::service::{Service, in_seconds, send, token, until};

const YEAR: &str = "max-age=31536000, immutable";
const DAY: &str = "max-age=86400, immutable";
const NEVER: &str = "no-store";

/// Status of the answer at a path, and what it says to caches.
async fn cached(service: &Service, path: &str, token: Option<&str>) -> (u16, String) {
    let request = service.http.get(service.url(path));
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let answer = request.send().await.unwrap();
    let header = answer.headers()["cache-control"].to_str().unwrap();
    (answer.status().as_u16(), header.to_owned())
}

/// The size of the newest checkpoint at a path, once it has `size` leaves or more.
async fn signed(service: &Service, path: &str, token: &str, size: u64) -> u64 {
    let mut found = 0;
    until("a checkpoint", async || {
        let answer = send(service.get(path, token)).await;
        if answer.status == 200 {
            let note = Note::parse(&answer.text).unwrap();
            found = Checkpoint::parse(note.text()).unwrap().size();
        }
        found >= size
    })
    .await;
    found
}

#[tokio::test]
async fn hashes_are_kept_for_a_year_full_bundles_for_a_day_and_nothing_else() {
    let service = Service::start().await;
    let admin = token(Role::Admin, None);
    let body = json!({"name": "open", "public_log": true}).to_string();
    let made = send(service.post("/api/v1/tenants", &admin, body)).await;
    let open: TenantId = made.expect(201).json()["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    // One more than a full bundle.
    for n in 0..257 {
        let event = Event::view("doc", format!("d{n}"));
        service.record(open, event).await;
    }
    let auditor = token(Role::TenantAdmin, open);
    let log = format!("/api/v1/tlog/{open}");
    signed(&service, &format!("{log}/checkpoint"), &auditor, 257).await;
    for (path, expected) in [
        ("checkpoint", NEVER),
        ("key", NEVER),
        ("tile/0/000", YEAR),
        ("tile/0/001.p/1", YEAR),
        ("tile/1/000.p/1", YEAR),
        ("tile/entries/000", DAY),
        ("tile/entries/001.p/1", NEVER),
    ] {
        let path = format!("{log}/{path}");
        for (scope, token) in [("private", Some(&*auditor)), ("public", None)] {
            let expected = match expected {
                NEVER => NEVER.to_owned(),
                bounded => format!("{scope}, {bounded}"),
            };
            let told = cached(&service, &path, token).await;
            assert_eq!(told, (200, expected), "{path}");
        }
    }
    // Neither is one that isn't there yet, or no more.
    let before = json!({"before": in_seconds(0).to_string()}).to_string();
    let pruned = send(service.post("/api/v1/prunes", &auditor, before)).await;
    assert_eq!(pruned.expect(201).json()["below"], 257);
    for (path, status) in [("entries/000", 410), ("0/000", 200), ("0/002", 404)] {
        let (answered, told) = cached(&service, &format!("{log}/tile/{path}"), None).await;
        assert_eq!(answered, status, "{path}");
        assert_eq!(told == NEVER, status != 200, "{path}: {told}");
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn the_deployment_logs_tiles_are_kept_for_a_year() {
    let service = Service::with(&[("AUDIT_DEPLOYMENT_EVERY", "1")]).await;
    let tenant = service.tenant("acme").await;
    let auditor = token(Role::Auditor, tenant);
    let log = "/api/v1/tlog-deployment";
    let size = signed(&service, &format!("{log}/checkpoint"), &auditor, 1).await;
    for content in [Content::Hashes(0), Content::Entries] {
        let tile = Tile::at(content, 0, size).unwrap().path();
        let told = cached(&service, &format!("{log}/{tile}"), Some(&auditor)).await;
        assert_eq!(told, (200, format!("private, {YEAR}")), "{tile}");
    }
    for path in ["checkpoint", "key"] {
        let told = cached(&service, &format!("{log}/{path}"), Some(&auditor)).await;
        assert_eq!(told, (200, NEVER.to_owned()), "{path}");
    }
    service.stop().await.unwrap();
}
