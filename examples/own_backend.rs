//! A backend of one's own: a search index that keeps the positions of each word, and the ten lines
//! that run the contract on it (`cargo test -p examples`).
#![allow(clippy::print_stdout)] // an example shows what it does

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::memory::MemoryStore;
use audit_core::rebuild::rebuild_in_place;
use audit_core::text::{Token, each_word};
use audit_core::{
    AuditLog, Entry, Event, Filter, Hits, LogStore, Order, PageRequest, Permission, Query,
    Recorder, Result, SearchIndex, SearchRequest, TenantId, TenantScope,
};

#[derive(Debug, Default)]
struct WordIndex(Mutex<HashMap<TenantId, Words>>);

#[derive(Debug, Default)]
struct Words {
    positions: HashMap<String, BTreeSet<u64>>,
    held: BTreeSet<u64>,
    through: u64,
}

impl Words {
    fn add(&mut self, entry: &Entry) {
        self.held.insert(entry.seq);
        each_word(&entry.fields, |token| {
            if let Token::Word(word) = token {
                self.positions
                    .entry(word.to_owned())
                    .or_default()
                    .insert(entry.seq);
            }
        });
    }
}

impl Words {
    fn take_out(&mut self, seq: u64) {
        self.held.remove(&seq);
        for positions in self.positions.values_mut() {
            positions.remove(&seq);
        }
    }
}

impl WordIndex {
    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Words>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl SearchIndex for WordIndex {
    async fn index(&self, entries: &[Entry]) -> Result<()> {
        let mut tenants = self.lock();
        for entry in entries {
            let words = tenants.entry(entry.tenant_id).or_default();
            if entry.seq >= words.through {
                words.add(entry);
                words.through = entry.seq + 1;
            }
        }
        Ok(())
    }

    /// Phrases are taken for their words: too many hits are fine, the caller checks each.
    async fn search(&self, scope: &TenantScope, request: &SearchRequest) -> Result<Hits> {
        scope.require(Permission::Read)?;
        let tenants = self.lock();
        let Some(words) = tenants.get(&scope.tenant()) else {
            return Ok(Hits::default());
        };
        let query = request.filter.q.as_ref().map_or(&[][..], Query::phrases);
        let mut common: Option<BTreeSet<u64>> = None;
        for word in query.iter().flatten() {
            let found = words.positions.get(word).cloned().unwrap_or_default();
            common = Some(match common {
                None => found,
                Some(common) => &common & &found,
            });
        }
        let behind = |seq: &u64| match (request.order, request.after) {
            (_, None) => true,
            (Order::Descending, Some(after)) => *seq < after,
            (Order::Ascending, Some(after)) => *seq > after,
        };
        let mut seqs: Vec<u64> = common.into_iter().flatten().filter(behind).collect();
        if request.order == Order::Descending {
            seqs.reverse();
        }
        let more = seqs.len() > request.limit;
        seqs.truncate(request.limit);
        Ok(Hits::new(seqs, more, words.through))
    }

    async fn remove(&self, scope: &TenantScope, current: &[Entry]) -> Result<()> {
        scope.require(Permission::Erase)?;
        if let Some(words) = self.lock().get_mut(&scope.tenant()) {
            for entry in current {
                words.take_out(entry.seq);
                words.add(entry);
            }
        }
        Ok(())
    }

    async fn indexed_through(&self, scope: &TenantScope) -> Result<u64> {
        scope.require(Permission::Read)?;
        Ok(self
            .lock()
            .get(&scope.tenant())
            .map_or(0, |words| words.through))
    }

    async fn held(&self, scope: &TenantScope, seqs: Range<u64>) -> Result<Vec<u64>> {
        scope.require(Permission::Read)?;
        let tenants = self.lock();
        let words = tenants.get(&scope.tenant());
        Ok(words.map_or_else(Vec::new, |words| words.held.range(seqs).copied().collect()))
    }

    async fn mend(&self, scope: &TenantScope, missing: &[Entry], surplus: &[u64]) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        if let Some(words) = self.lock().get_mut(&scope.tenant()) {
            for seq in missing
                .iter()
                .map(|entry| entry.seq)
                .chain(surplus.iter().copied())
            {
                words.take_out(seq);
            }
            for entry in missing {
                words.add(entry);
            }
        }
        Ok(())
    }

    async fn forget(&self, scope: &TenantScope) -> Result<()> {
        scope.require(Permission::Cleanup)?;
        self.lock().remove(&scope.tenant());
        Ok(())
    }

    async fn rebuild(&self, store: &Arc<dyn LogStore>) -> Result<()> {
        rebuild_in_place(self, &**store).await
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let index = Arc::new(WordIndex::default());
    let log = AuditLog::builder(Arc::new(MemoryStore::new()))
        .search(index.clone())
        .build();
    let workers = log.start();
    let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse()?;
    let event = Event::view("report", "r-7").reason("the quarterly close");
    log.recorder(tenant).record(event).await?;

    let scope = TenantScope::trusted(tenant, "example");
    while index.indexed_through(&scope).await? < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let filter = Filter::new().text(Query::parse("quarterly")?);
    let page = log
        .tenant(scope)
        .list(&filter, &PageRequest::first())
        .await?;
    println!("{}", page.items[0].to_json());
    workers.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

#[cfg(test)]
mod contract {
    use super::WordIndex;

    struct Harness(WordIndex);

    impl audit_conformance::SearchIndexHarness for Harness {
        type Index = WordIndex;

        async fn open() -> Self {
            Self(WordIndex::default())
        }

        fn index(&self) -> &WordIndex {
            &self.0
        }
    }

    audit_conformance::search_index!(Harness);
}
