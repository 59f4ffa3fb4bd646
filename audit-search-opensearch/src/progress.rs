//! How far each tenant's log is indexed, as the index itself says.

use std::collections::BTreeMap;
use std::sync::Arc;

use audit_core::{Result, TenantId};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::Client;
use crate::fault::{Fault, moved};

/// Where a tenant's documents are.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The generation's name.
    pub(crate) index: Arc<str>,
    /// Whether documents are routed by the tenant.
    pub(crate) routed: bool,
}

/// A tenant's progress, and the write that it stems from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) through: u64,
    pub(crate) seq_no: u64,
    pub(crate) primary_term: u64,
}

#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    found: bool,
    #[serde(rename = "_seq_no", default)]
    seq_no: u64,
    #[serde(rename = "_primary_term", default)]
    primary_term: u64,
    #[serde(rename = "_source")]
    source: Option<Source>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Source {
    through: Option<u64>,
}

#[derive(Deserialize)]
struct Many {
    docs: Vec<Found>,
}

impl Found {
    fn progress(&self) -> Option<Progress> {
        let through = self.source.as_ref()?.through?;
        self.found.then_some(Progress {
            through,
            seq_no: self.seq_no,
            primary_term: self.primary_term,
        })
    }
}

/// A tenant's progress; the outer none when the generation is gone.
pub(crate) async fn of(
    client: &Client,
    place: &Place,
    tenant: TenantId,
) -> Result<Option<Option<Progress>>> {
    let mut path = format!("/{}/_doc/{tenant}", place.index);
    if place.routed {
        path.push_str(&format!("?routing={tenant}"));
    }
    let answer = client.get(&path).await?;
    if answer.is_missing_index() {
        return Ok(None);
    }
    let found: Found = answer.read()?;
    match found.error {
        None => Ok(Some(found.progress())),
        Some(_) => Err(answer.fault().into_error(None)),
    }
}

/// The progress of many; the outer none when a generation is gone.
pub(crate) async fn of_all(
    client: &Client,
    places: &BTreeMap<TenantId, Place>,
) -> Result<Option<BTreeMap<TenantId, Option<Progress>>>> {
    let names = places.iter().map(|(tenant, place)| {
        let id = tenant.to_string();
        (id, *tenant, place)
    });
    let Some(found) = get(client, names, &json!(["through"])).await? else {
        return Ok(None);
    };
    let progress = found.iter().map(Found::progress);
    Ok(Some(places.keys().copied().zip(progress).collect()))
}

/// Whether each of these documents is there.
pub(crate) async fn exist(
    client: &Client,
    documents: impl Iterator<Item = (String, TenantId, &Place)>,
) -> Result<Vec<bool>> {
    let found = get(client, documents, &json!(false)).await?;
    let found = found.ok_or_else(moved)?;
    Ok(found.iter().map(|found| found.found).collect())
}

async fn get(
    client: &Client,
    documents: impl Iterator<Item = (String, TenantId, &Place)>,
    source: &Value,
) -> Result<Option<Vec<Found>>> {
    let mut tenants = Vec::new();
    let wanted: Vec<Value> = documents
        .map(|(id, tenant, place)| {
            tenants.push(tenant);
            let mut wanted = json!({ "_index": &*place.index, "_id": id, "_source": source });
            if place.routed {
                wanted["routing"] = tenant.to_string().into();
            }
            wanted
        })
        .collect();
    let expected = wanted.len();
    if expected == 0 {
        return Ok(Some(Vec::new()));
    }
    let answer = client
        .post("/_mget", &[], &json!({ "docs": wanted }))
        .await?;
    let Many { docs } = answer.json()?;
    let failed = docs.iter().zip(&tenants);
    let mut failed = failed.filter_map(|(found, tenant)| Some((found.error.as_ref()?, *tenant)));
    if let Some((error, tenant)) = failed.next() {
        let fault = Fault::new(404, error["type"].as_str().map(str::to_owned));
        return match fault.is_missing_index() {
            true => Ok(None),
            // One shard that is away, say.
            false => Err(fault.with_status(503).into_error(None).with_tenant(tenant)),
        };
    }
    if docs.len() != expected {
        return Err(Fault::new(500, None).into_error(None));
    }
    Ok(Some(docs))
}
