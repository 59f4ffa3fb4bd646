//! The queue in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::queue::{
    DeadLetter, Delivery, EventQueue, Message, QueueDepth, Redrive, Sieve, removed,
};

/// A queue in memory, first in, first out but for redeliveries.
///
/// It is not durable: whoever puts an event here must not tell that it was accepted. Leases and
/// delays go by tokio's clock, which a test may pause.
#[derive(Debug)]
pub struct MemoryQueue {
    clock: Arc<dyn Clock>,
    capacity: usize,
    state: Mutex<State>,
    arrived: Notify,
}

/// Dead letters that a sieve is shown at once.
const SIFTED: usize = 100;
/// The longest wait, lease and delay.
const LONGEST: Duration = Duration::from_secs(12 * 3_600);

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    dead: VecDeque<DeadLetter>,
    /// Makes handles.
    counter: u64,
}

#[derive(Debug)]
struct Item {
    message: Message,
    attempts: u32,
    /// Of the last delivery; empty before the first, and once it was given back.
    handle: String,
    hidden_until: Option<Instant>,
}

impl Item {
    fn new(message: Message) -> Self {
        Self {
            message,
            attempts: 0,
            handle: String::new(),
            hidden_until: None,
        }
    }

    fn is_hidden(&self, now: Instant) -> bool {
        self.hidden_until.is_some_and(|until| until > now)
    }
}

impl Default for MemoryQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryQueue {
    /// The most messages that a queue holds unless [`with_capacity`](Self::with_capacity) says
    /// otherwise, dead letters included.
    pub const CAPACITY: usize = 100_000;

    /// An empty queue on the system's clock.
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// An empty queue, whose dead letters take their time from `clock`.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            capacity: Self::CAPACITY,
            state: Mutex::default(),
            arrived: Notify::new(),
        }
    }

    /// Holds at most `capacity` messages; what is sent beyond is refused as unavailable.
    #[must_use]
    pub fn with_capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases what may be delivered now; else says when the next may be.
    fn lease(&self, max: usize, lease: Duration) -> Result<Vec<Delivery>, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.lock();
        let State { items, counter, .. } = &mut *state;
        let mut deliveries = Vec::new();
        for item in items
            .iter_mut()
            .filter(|item| !item.is_hidden(now))
            .take(max)
        {
            *counter += 1;
            item.handle = counter.to_string();
            item.attempts += 1;
            item.hidden_until = Some(now + lease);
            deliveries.push(Delivery::new(
                &*item.handle,
                item.message.clone(),
                item.attempts,
            ));
        }
        if deliveries.is_empty() {
            return Err(items.iter().filter_map(|item| item.hidden_until).min());
        }
        Ok(deliveries)
    }
}

impl State {
    fn find(&self, handle: &str) -> Option<usize> {
        self.items
            .iter()
            .position(|item| item.handle == handle && !handle.is_empty())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl EventQueue for MemoryQueue {
    fn is_durable(&self) -> bool {
        false
    }

    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        let mut state = self.lock();
        let outcomes = messages
            .iter()
            .map(|message| {
                message.check()?;
                if state.items.len() + state.dead.len() >= self.capacity {
                    return Err(Error::new(ErrorKind::Unavailable, "the queue is full")
                        .with_event_id(message.id));
                }
                state.items.push_back(Item::new(message.clone()));
                Ok(())
            })
            .collect();
        drop(state);
        self.arrived.notify_waiters();
        Ok(outcomes)
    }

    async fn receive(&self, max: usize, wait: Duration, lease: Duration) -> Result<Vec<Delivery>> {
        let (wait, lease) = (wait.min(LONGEST), lease.min(LONGEST));
        let deadline = Instant::now() + wait;
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            // Enlisted before looking, so that what arrives in between still wakes it.
            arrived.as_mut().enable();
            let next = match self.lease(max, lease) {
                Ok(deliveries) => return Ok(deliveries),
                Err(next) => next,
            };
            if max == 0 || Instant::now() >= deadline {
                return Ok(Vec::new());
            }
            let until = next.map_or(deadline, |next| next.min(deadline));
            // Either way the queue is looked at again.
            timeout_at(until, arrived).await.unwrap_or(());
        }
    }

    async fn ack(&self, handles: &[String]) -> Result<Vec<Result<()>>> {
        let mut state = self.lock();
        for handle in handles {
            if let Some(i) = state.find(handle) {
                state.items.remove(i);
            }
        }
        Ok(vec![Ok(()); handles.len()])
    }

    async fn retry(&self, handles: &[String], delay: Duration) -> Result<Vec<Result<()>>> {
        let until = (!delay.is_zero()).then(|| Instant::now() + delay.min(LONGEST));
        let mut state = self.lock();
        for handle in handles {
            if let Some(i) = state.find(handle) {
                let item = &mut state.items[i];
                item.handle.clear();
                item.hidden_until = until;
            }
        }
        drop(state);
        self.arrived.notify_waiters();
        Ok(vec![Ok(()); handles.len()])
    }

    async fn extend(&self, handles: &[String], lease: Duration) -> Result<Vec<Result<()>>> {
        let until = Some(Instant::now() + lease.min(LONGEST));
        let mut state = self.lock();
        for handle in handles {
            if let Some(i) = state.find(handle) {
                state.items[i].hidden_until = until;
            }
        }
        Ok(vec![Ok(()); handles.len()])
    }

    async fn bury(&self, letters: &[(String, String)]) -> Result<Vec<Result<()>>> {
        let died_at = self.clock.now();
        let mut state = self.lock();
        for (handle, reason) in letters {
            let Some(item) = state.find(handle).and_then(|i| state.items.remove(i)) else {
                continue;
            };
            state
                .dead
                .push_back(DeadLetter::new(item.handle, item.message, reason, died_at));
        }
        Ok(vec![Ok(()); letters.len()])
    }

    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        Ok(self.lock().dead.iter().take(limit).cloned().collect())
    }

    async fn redrive(&self, letters: &Redrive<String>) -> Result<u64> {
        let mut state = self.lock();
        let State { items, dead, .. } = &mut *state;
        let before = dead.len();
        dead.retain(|letter| {
            let named = letters.names(&letter.handle);
            if named {
                items.push_back(Item::new(letter.message.clone()));
            }
            !named
        });
        let sent = before - dead.len();
        drop(state);
        self.arrived.notify_waiters();
        Ok(sent as u64)
    }

    async fn sift(&self, sieve: Arc<dyn Sieve<DeadLetter>>) -> Result<u64> {
        let letters: Vec<DeadLetter> = self.lock().dead.iter().cloned().collect();
        let mut count = 0;
        for part in letters.chunks(SIFTED) {
            let handles = part.iter().map(|letter| &letter.handle).collect();
            let gone = removed(&*sieve, part, handles).await?;
            let mut state = self.lock();
            let before = state.dead.len();
            state.dead.retain(|letter| !gone.contains(&&letter.handle));
            count += (before - state.dead.len()) as u64;
        }
        Ok(count)
    }

    fn dropped(&self) -> u64 {
        0
    }

    async fn depth(&self) -> Result<QueueDepth> {
        let now = Instant::now();
        let state = self.lock();
        let leased = state
            .items
            .iter()
            .filter(|item| !item.handle.is_empty() && item.is_hidden(now))
            .count();
        Ok(QueueDepth {
            waiting: (state.items.len() - leased) as u64,
            leased: leased as u64,
            dead: state.dead.len() as u64,
        })
    }
}
