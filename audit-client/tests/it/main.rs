//! The client against a server that misbehaves on purpose.

#![allow(clippy::unwrap_used)] // a test fails by it

mod bulk;
mod recording;
mod resuming;
mod trees;

use std::time::Duration;

use audit_client::{Client, Retry};

const TENANT: &str = "0190a000-0000-7000-8000-0000000000ff";

/// A client that waits a little between attempts, and not for long.
fn client(url: &str) -> Client {
    let retry = Retry::default()
        .attempts(4)
        .first_wait(Duration::from_millis(1))
        .deadline(Duration::from_secs(20));
    Client::builder(url)
        .token("secret")
        .retry(retry)
        .build()
        .unwrap()
}

fn receipt(id: &str, seq: u64) -> String {
    let hash = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    format!(
        "{{\"id\":\"{id}\",\"seq\":{seq},\"leaf_hash\":\"{hash}\",\
         \"created_at\":\"2026-11-24T03:00:00.000000Z\",\"tree_size\":{},\"root\":\"{hash}\",\
         \"duplicate\":false}}",
        seq + 1
    )
}

fn entry(seq: u64) -> String {
    format!(
        "{{\"id\":\"0190a000-0000-7000-8000-{seq:012}\",\"tenant_id\":\"{TENANT}\",\"seq\":{seq},\
         \"created_at\":\"2026-11-24T03:00:00.000000Z\",\
         \"occurred_at\":\"2026-11-24T03:00:00.000000Z\",\"action_type\":\"VIEW\",\
         \"action\":\"view\",\"outcome\":\"success\",\"severity\":\"INFO\",\
         \"resource_type\":\"r\",\"resource_id\":\"1\",\"reason\":\"why\",\
         \"leaf_hash\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"}}"
    )
}

/// The id in a request's body.
fn id_of(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    body["id"].as_str().unwrap().to_owned()
}
