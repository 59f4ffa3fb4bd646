//! Merging segments, so that the words of removed documents leave the disk.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use audit_core::{Error, ErrorKind, Result, Vacuum};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::fault::Fault;
use crate::index::{OpenSearchIndex, Shards};

/// How often the cluster is asked whether it is done: a merge may take longer than a request may.
const POLL: Duration = Duration::from_millis(250);
/// How long it may take until no copy of a shard asks for what was removed.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
struct Begun {
    task: String,
}

#[derive(Deserialize)]
struct Task {
    completed: bool,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    response: Option<Merged>,
}

#[derive(Deserialize)]
struct Merged {
    #[serde(rename = "_shards")]
    shards: Shards,
}

#[derive(Deserialize)]
struct Stats {
    indices: BTreeMap<String, IndexStats>,
}

#[derive(Deserialize)]
struct IndexStats {
    shards: BTreeMap<String, Vec<Copy>>,
}

#[derive(Deserialize)]
struct Copy {
    seq_no: Numbers,
    retention_leases: Leases,
}

#[derive(Deserialize)]
struct Numbers {
    max_seq_no: i64,
}

#[derive(Deserialize)]
struct Leases {
    leases: Vec<Lease>,
}

#[derive(Deserialize)]
struct Lease {
    retaining_seq_no: i64,
}

impl Stats {
    /// Of each shard: its last write, and the first one whose documents a copy of it keeps.
    fn shards(self) -> BTreeMap<(String, String), (i64, i64)> {
        let mut found = BTreeMap::new();
        for (index, stats) in self.indices {
            for (shard, copies) in stats.shards {
                let last = copies.iter().map(|copy| copy.seq_no.max_seq_no).max();
                let leases = copies.iter().flat_map(|copy| &copy.retention_leases.leases);
                let kept = leases.map(|lease| lease.retaining_seq_no).min();
                let place = (last.unwrap_or(-1), kept.unwrap_or(i64::MAX));
                found.insert((index.clone(), shard), place);
            }
        }
        found
    }
}

/// Merges each index of the prefix into one segment a shard, without what was removed. The cluster
/// works on it in the background, needs the room of a second copy, and keeps on answering.
///
/// A shard keeps what was removed for as long as a copy of it may still ask for its history, and says
/// so every 30 s by default: that is waited for.
#[async_trait]
impl Vacuum for OpenSearchIndex {
    async fn vacuum(&self) -> Result<Vec<String>> {
        let client = &self.shared.client;
        let all = self.shared.generations.all();
        // What isn't in a segment yet can't be merged.
        client
            .post(&format!("/{all}/_flush"), &[], &Value::Null)
            .await?
            .json::<Merged>()?
            .shards
            .all()?;
        let path = format!("/{all}/_stats/docs?level=shards");
        let then = client.get(&path).await?.json::<Stats>()?.shards();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = client.get(&path).await?.json::<Stats>()?.shards();
            // A shard that is gone keeps nothing.
            let is_free = |(shard, (last, _)): (&_, &(i64, i64))| {
                now.get(shard).is_none_or(|(_, kept)| kept > last)
            };
            if then.iter().all(is_free) {
                break;
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "OpenSearch keeps what was removed for a copy of a shard that is away",
                )
                .with_retry_after(PATIENCE));
            }
            tokio::time::sleep(POLL).await;
        }
        let merge = format!("/{all}/_forcemerge");
        let settings = [("max_num_segments", "1"), ("wait_for_completion", "false")];
        let begun: Begun = client.post(&merge, &settings, &Value::Null).await?.json()?;
        let path = format!("/_tasks/{}", begun.task);
        loop {
            let task: Task = client.get(&path).await?.json()?;
            match task {
                Task {
                    completed: false, ..
                } => tokio::time::sleep(POLL).await,
                Task { error: Some(_), .. } => return Err(Fault::new(503, None).into_error(None)),
                Task { response, .. } => {
                    response.map_or(Ok(()), |done| done.shards.all())?;
                    break;
                }
            }
        }
        // Searches read the old segments until then.
        client
            .post(&format!("/{all}/_refresh"), &[], &Value::Null)
            .await?
            .json::<Merged>()?
            .shards
            .all()?;
        Ok(Vec::new())
    }
}
