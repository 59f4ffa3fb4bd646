//! The outbox in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::clock::{Clock, SystemClock};
use crate::error::Result;
use crate::event::Event;
use crate::id::{EventId, TenantId};
use crate::outbox::{Outbox, OutboxRow, ParkedRow};
use crate::prepare::PreparedEvent;
use crate::queue::{Redrive, Sieve, removed};

/// Parked rows that a sieve is shown at once.
const SIFTED: usize = 100;

/// An outbox in memory, filled by [`push`](Self::push) in the place of a transaction.
#[derive(Debug)]
pub struct MemoryOutbox {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: i64,
    waiting: BTreeMap<i64, OutboxRow>,
    parked: BTreeMap<i64, ParkedRow>,
}

impl Default for MemoryOutbox {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryOutbox {
    /// An empty outbox on the system's clock.
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// An empty outbox on a clock that a test may control.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            state: Mutex::default(),
        }
    }

    /// Leaves an event, gives it an id when it has none, and returns the id.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with every bad field; then nothing is left.
    pub fn push(&self, tenant: TenantId, mut event: Event) -> Result<EventId> {
        let id = PreparedEvent::new(tenant, event.clone(), &*self.clock, &[])?.id();
        event.id = Some(id);
        self.push_unchecked(tenant, id, event.to_json());
        Ok(id)
    }

    /// Leaves any text in an event's place, as SQL that writes to an outbox table can.
    pub fn push_unchecked(&self, tenant: TenantId, id: EventId, event: String) {
        let recorded_at = self.clock.now();
        let mut state = self.lock();
        state.last += 1;
        let row = state.last;
        state
            .waiting
            .insert(row, OutboxRow::new(row, tenant, id, event, recorded_at));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Outbox for MemoryOutbox {
    async fn take(&self, limit: usize, passing_over: &[TenantId]) -> Result<Vec<OutboxRow>> {
        let state = self.lock();
        let rows = state.waiting.values();
        let taken = rows.filter(|row| !passing_over.contains(&row.tenant));
        Ok(taken.take(limit).cloned().collect())
    }

    async fn done(&self, rows: &[i64]) -> Result<()> {
        let mut state = self.lock();
        for row in rows {
            state.waiting.remove(row);
        }
        Ok(())
    }

    async fn park(&self, row: i64, reason: &str) -> Result<()> {
        let mut state = self.lock();
        if let Some(parked) = state.waiting.remove(&row) {
            state.parked.insert(row, ParkedRow::new(parked, reason));
        }
        Ok(())
    }

    async fn parked(&self, limit: usize) -> Result<Vec<ParkedRow>> {
        Ok(self.lock().parked.values().take(limit).cloned().collect())
    }

    async fn redrive(&self, rows: &Redrive<i64>) -> Result<u64> {
        let mut state = self.lock();
        let State {
            waiting, parked, ..
        } = &mut *state;
        let before = parked.len();
        parked.retain(|row, parked| {
            let named = rows.names(row);
            if named {
                waiting.insert(*row, parked.row.clone());
            }
            !named
        });
        Ok((before - parked.len()) as u64)
    }

    async fn sift(&self, sieve: Arc<dyn Sieve<ParkedRow>>) -> Result<u64> {
        let rows: Vec<ParkedRow> = self.lock().parked.values().cloned().collect();
        let mut count = 0;
        for part in rows.chunks(SIFTED) {
            let numbers = part.iter().map(|parked| parked.row.row).collect();
            let gone = removed(&*sieve, part, numbers).await?;
            let mut state = self.lock();
            for row in gone {
                count += u64::from(state.parked.remove(&row).is_some());
            }
        }
        Ok(count)
    }
}
