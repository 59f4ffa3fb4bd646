//! Many writes in one request, each with an outcome of its own.

use audit_core::tlog::json::write_string;
use audit_core::{Entry, Result, TenantId};
use bytes::Bytes;
use serde::Deserialize;

use crate::client::Client;
use crate::document;
use crate::fault::Fault;
use crate::progress::{Place, Progress};

/// What became of one write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    /// A document of this version, or a later one, was there, or is just deleted.
    Conflict,
    /// The cluster won't take this document, now or ever.
    Refused(Option<String>),
    /// The generation is gone.
    Moved,
    /// It may work later.
    Later(Option<String>),
}

/// What an entry's document takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// Only a document of an earlier version.
    Earlier,
    /// One of the same version as well.
    Same,
}

impl Over {
    fn version(self, version: u64) -> String {
        let kind = match self {
            Self::Earlier => "external",
            Self::Same => "external_gte",
        };
        format!(",\"version\":{version},\"version_type\":\"{kind}\"")
    }
}

/// Writes on their way.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    text: String,
    writes: usize,
}

impl Lines {
    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }

    pub(crate) fn writes(&self) -> usize {
        self.writes
    }

    /// An entry's document, under its version.
    pub(crate) fn entry(&mut self, place: &Place, entry: &Entry, over: Over) {
        self.entry_head(place, entry, over);
        document::write(&mut self.text, entry);
    }

    /// The document of an entry that the cluster refuses as it is.
    pub(crate) fn unindexed(&mut self, place: &Place, entry: &Entry, over: Over) {
        self.entry_head(place, entry, over);
        document::write_unindexed(&mut self.text, entry);
    }

    fn entry_head(&mut self, place: &Place, entry: &Entry, over: Over) {
        let id = document::id(entry.tenant_id, entry.seq);
        let version = over.version(document::version(entry));
        self.head("index", place, entry.tenant_id, &id, &version);
        self.text.push('\n');
    }

    /// Deletes a document, unless a later version of it is there by then.
    pub(crate) fn delete(&mut self, place: &Place, tenant: TenantId, id: &str, version: u64) {
        let version = Over::Same.version(version);
        self.head("delete", place, tenant, id, &version);
        self.text.push('\n');
    }

    /// A tenant's progress, if nobody has changed it since it was read.
    pub(crate) fn progress(
        &mut self,
        place: &Place,
        tenant: TenantId,
        through: u64,
        was: Option<Progress>,
    ) {
        let id = tenant.to_string();
        match was {
            None => self.head("create", place, tenant, &id, ""),
            Some(was) => {
                let condition = format!(
                    ",\"if_seq_no\":{},\"if_primary_term\":{}",
                    was.seq_no, was.primary_term
                );
                self.head("index", place, tenant, &id, &condition);
            }
        }
        self.text.push_str("\n{\"tenant\":\"");
        self.text.push_str(&id);
        self.text.push_str("\",\"through\":");
        self.text.push_str(&through.to_string());
        self.text.push_str("}\n");
    }

    fn head(&mut self, act: &str, place: &Place, tenant: TenantId, id: &str, more: &str) {
        self.writes += 1;
        for part in ["{\"", act, "\":{\"_index\":\"", &place.index] {
            self.text.push_str(part);
        }
        self.text.push_str("\",\"_id\":");
        write_string(&mut self.text, id);
        if place.routed {
            self.text.push_str(",\"routing\":\"");
            tenant.write(&mut self.text);
            self.text.push('"');
        }
        self.text.push_str(more);
        self.text.push_str("}}");
    }

    /// Sends them all and reads what became of each, in order.
    ///
    /// # Errors
    /// Nothing is known of any of them.
    pub(crate) async fn send(self, client: &Client) -> Result<Vec<Fate>> {
        if self.writes == 0 {
            return Ok(Vec::new());
        }
        let query = [
            // A generation that is gone must not come back as an index without a mapping.
            ("require_alias", "true"),
            // A shard that is away fails its own writes; the others don't wait for it.
            ("timeout", "5s"),
            ("filter_path", "items.*.status,items.*.error.type"),
        ];
        let lines = Bytes::from(self.text);
        let answer = client.post_lines("/_bulk", &query, lines).await?;
        let Items { items } = answer.json()?;
        if items.len() != self.writes {
            // Which of them is missing can't be told.
            return Err(Fault::new(500, None).into_error(None));
        }
        Ok(items.into_iter().map(Item::fate).collect())
    }
}

#[derive(Deserialize)]
struct Items {
    #[serde(default)]
    items: Vec<Item>,
}

/// Named after the action.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Item {
    Index(Outcome),
    Create(Outcome),
    Delete(Outcome),
}

#[derive(Deserialize)]
struct Outcome {
    status: u16,
    error: Option<Cause>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl Item {
    fn fate(self) -> Fate {
        let (Self::Index(outcome) | Self::Create(outcome) | Self::Delete(outcome)) = self;
        let kind = outcome.error.and_then(|cause| cause.kind);
        match outcome.status {
            200..300 => Fate::Done,
            409 => Fate::Conflict,
            400 => Fate::Refused(kind),
            // Of a document that is to be deleted.
            404 if kind.is_none() => Fate::Done,
            404 => Fate::Moved,
            _ => Fate::Later(kind),
        }
    }
}
