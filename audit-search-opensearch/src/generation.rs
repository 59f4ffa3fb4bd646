//! Which index is in use, and how one takes another's place.
//!
//! A generation is one index from when it is made to when it is deleted. It has an alias of its own
//! with a random name, and everything is read and written by that name only. Once a generation was
//! replaced or deleted its name leads nowhere: nobody can write the second half of his work into
//! another index than the first. The alias that people know, the live one, only says which
//! generation that is.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use audit_core::{Clock, Error, ErrorKind, Result, SystemClock, TenantId};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::Client;
use crate::fault::moved;
use crate::options::{Layout, OpenSearchOptions};
use crate::schema::{self, FORM};

/// Makes and finds generations.
pub(crate) struct Generations {
    client: Arc<Client>,
    options: OpenSearchOptions,
    /// By live alias. What is known may be out of date; then it leads nowhere.
    known: Mutex<HashMap<String, Arc<str>>>,
}

/// An index as it stands in the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    /// The concrete name.
    pub(crate) name: String,
    /// The alias of its own.
    pub(crate) generation: Arc<str>,
}

#[derive(Deserialize)]
struct Aliases {
    aliases: BTreeMap<String, Value>,
}

impl Generations {
    pub(crate) fn new(client: Arc<Client>, options: OpenSearchOptions) -> Self {
        Self {
            client,
            options,
            known: Mutex::default(),
        }
    }

    /// The live alias of a tenant's index.
    pub(crate) fn live(&self, tenant: TenantId) -> String {
        match self.options.layout {
            Layout::Shared => self.shared(),
            Layout::PerTenant => format!("{}-{tenant}", self.shared()),
        }
    }

    /// The live alias of the shared index.
    pub(crate) fn shared(&self) -> String {
        format!("{}-{FORM}", self.options.prefix)
    }

    pub(crate) fn layout(&self) -> Layout {
        self.options.layout
    }

    /// All indexes of this prefix and form, as the cluster is asked for them.
    pub(crate) fn all(&self) -> String {
        format!("{}-{FORM}-*", self.options.prefix)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<str>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation in use; none when there is no index.
    pub(crate) async fn find(&self, live: &str) -> Result<Option<Arc<str>>> {
        if let Some(known) = self.lock().get(live) {
            return Ok(Some(Arc::clone(known)));
        }
        let found = self.look(live, live).await?;
        if let Some(index) = &found {
            self.lock()
                .insert(live.to_owned(), Arc::clone(&index.generation));
        }
        Ok(found.map(|index| index.generation))
    }

    /// The generation in use, which is made when there is none.
    pub(crate) async fn find_or_make(&self, live: &str) -> Result<Arc<str>> {
        if let Some(found) = self.find(live).await? {
            return Ok(found);
        }
        let first = format!("{live}-000001");
        self.make(live, &first).await?;
        let actions = json!({ "actions": [{ "add": { "index": first, "alias": live } }] });
        let answer = self.client.post("/_aliases", &[], &actions).await?;
        if answer.is_missing_index() {
            return Err(moved());
        }
        answer.ok()?;
        self.find(live).await?.ok_or_else(moved)
    }

    /// Asks the cluster the next time.
    pub(crate) fn forget(&self, live: &str) {
        self.lock().remove(live);
    }

    /// Asks the cluster for the index behind a name, an alias or its own.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] for a name that others have given to an index or to several.
    pub(crate) async fn look(&self, live: &str, name: &str) -> Result<Option<Index>> {
        let answer = self.client.get(&format!("/{name}/_alias")).await?;
        if answer.is_missing_index() {
            return Ok(None);
        }
        let mut indexes: BTreeMap<String, Aliases> = answer.json()?;
        let own = format!("{live}.");
        let found = indexes.pop_first().and_then(|(name, found)| {
            let generation = found.aliases.into_keys().find(|n| n.starts_with(&own))?;
            Some(Index {
                name,
                generation: generation.into(),
            })
        });
        match found {
            Some(index) if indexes.is_empty() => Ok(Some(index)),
            _ => {
                let message = format!("{name} is not one index that was made for audit logs");
                Err(Error::new(ErrorKind::Refused, message))
            }
        }
    }

    /// Makes an index, if nobody else does so at the same time.
    async fn make(&self, live: &str, name: &str) -> Result<()> {
        let template = format!("/_index_template/{}-{FORM}", self.options.prefix);
        self.client
            .put(&template, &schema::template(&self.options))
            .await?
            .ok()?;
        let random = SystemClock.secret();
        let random = random[..8].iter().map(|byte| format!("{byte:02x}"));
        let generation = format!("{live}.{}", random.collect::<String>());
        // The mapping, again: an index without it would guess one.
        let body = json!({
            "settings": schema::analysis(),
            "mappings": schema::mappings(),
            "aliases": { generation: {} },
        });
        let answer = self.client.put(&format!("/{name}"), &body).await?;
        match answer.ok() {
            Err(_) if answer.fault().is_taken() => {}
            made => made?,
        }
        // A shard takes a while to start, and can't be read before; of a new index that counts as
        // yellow. It may be somebody else's that was just made.
        let health = format!(
            "/_cluster/health/{name}?wait_for_status=yellow&wait_for_active_shards=1\
             &wait_for_no_initializing_shards=true&timeout=10s"
        );
        self.client.get(&health).await?.ok()
    }

    /// The index that is to replace one: made, or left by a rebuild that was broken off.
    pub(crate) async fn successor(&self, live: &str, index: &Index) -> Result<Index> {
        let number: u32 = index
            .name
            .rsplit_once('-')
            .and_then(|(_, number)| number.parse().ok())
            .ok_or_else(|| {
                let message = format!("{} has no number to count on from", index.name);
                Error::new(ErrorKind::Refused, message)
            })?;
        let name = format!("{live}-{:06}", number.wrapping_add(1));
        self.make(live, &name).await?;
        self.look(live, &name).await?.ok_or_else(moved)
    }

    /// Puts an index in the place of another, in one step.
    pub(crate) async fn replace(&self, live: &str, old: &Index, new: &Index) -> Result<()> {
        let actions = json!({ "actions": [
            { "remove": { "index": old.name, "alias": live, "must_exist": true } },
            // Nobody who knows it writes or reads there any more.
            { "remove": { "index": old.name, "alias": &*old.generation, "must_exist": true } },
            { "add": { "index": new.name, "alias": live } },
        ]});
        let answer = self.client.post("/_aliases", &[], &actions).await?;
        self.forget(live);
        if let Err(error) = answer.ok() {
            // Another rebuild may have done the same just before.
            let live_now = self.look(live, live).await?;
            if live_now.is_none_or(|index| index.name != new.name) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Deletes what the live index has replaced. That is a step of its own: for a moment a deleted
    /// index can't be read and is still what its aliases lead to.
    pub(crate) async fn tidy(&self, live: &str) -> Result<()> {
        let Some(current) = self.look(live, live).await? else {
            return Ok(());
        };
        let now = number_of(live, &current.name);
        self.delete(live, |number| Some(number) < now).await
    }

    /// Deletes all indexes of a live alias, those that were on their way too.
    pub(crate) async fn remove(&self, live: &str) -> Result<()> {
        let removed = self.delete(live, |_| true).await;
        self.forget(live);
        removed
    }

    /// Deletes indexes of a live alias by their numbers.
    async fn delete(&self, live: &str, is_meant: impl Fn(u32) -> bool) -> Result<()> {
        let answer = self.client.get(&format!("/{live}-*/_alias")).await?;
        let indexes: BTreeMap<String, Aliases> = answer.json()?;
        for name in indexes.keys() {
            if number_of(live, name).is_some_and(&is_meant) {
                let answer = self.client.delete(&format!("/{name}")).await?;
                if !answer.is_missing_index() {
                    answer.ok()?;
                }
            }
        }
        Ok(())
    }
}

/// The number of an index of a live alias; none of another's.
fn number_of(live: &str, name: &str) -> Option<u32> {
    let number = name.strip_prefix(live)?.strip_prefix('-')?;
    number.parse().ok()
}
