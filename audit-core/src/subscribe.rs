//! Following one tenant's log as it grows.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::entry::Entry;
use crate::error::Result;
use crate::filter::Filter;
use crate::id::TenantId;
use crate::scope::TenantScope;
use crate::store::LogStore;

/// How often a subscription looks for what another process appended.
const POLL: Duration = Duration::from_millis(250);
/// Entries that are read at once.
const CHUNK: usize = 256;
/// The shortest and the longest silence that may be asked for.
const HEARTBEAT: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(24 * 3_600);

/// Wakes those who follow a log when this process has appended to it. Only a hint: followers poll too.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    tenants: RwLock<HashMap<TenantId, watch::Sender<()>>>,
    any: watch::Sender<()>,
}

impl Bell {
    pub(crate) fn ring(&self, tenant: TenantId) {
        self.any.send_replace(());
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = tenants.get(&tenant) {
            sender.send_replace(());
        }
    }

    /// For workers, which follow all tenants.
    pub(crate) fn any(&self) -> watch::Receiver<()> {
        self.any.subscribe()
    }

    fn of(&self, tenant: TenantId) -> watch::Receiver<()> {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        tenants.retain(|_, sender| sender.receiver_count() > 0);
        tenants.entry(tenant).or_default().subscribe()
    }
}

/// What a subscription asks for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SubscribeRequest {
    /// Which entries.
    pub filter: Filter,
    /// The first position; none starts with what is appended from now on.
    pub from: Option<u64>,
    /// How long it may be silent: from a millisecond to a day, clamped.
    pub heartbeat: Duration,
}

impl SubscribeRequest {
    /// Everything from now on, with a heartbeat each 15 seconds.
    pub fn new() -> Self {
        Self {
            filter: Filter::new(),
            from: None,
            heartbeat: Duration::from_secs(15),
        }
    }

    /// Only what matches.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// From this position on.
    #[must_use]
    pub fn from(mut self, seq: u64) -> Self {
        self.from = Some(seq);
        self
    }

    /// Silent for no longer than this.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat;
        self
    }
}

impl Default for SubscribeRequest {
    fn default() -> Self {
        Self::new()
    }
}

/// What a subscription delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivered {
    /// An entry that matches.
    Entry(Arc<Entry>),
    /// Nothing matched for a while. Everything up to `seq` was looked at; none when nothing was yet.
    Heartbeat {
        /// The last position that was looked at.
        seq: Option<u64>,
    },
    /// Positions from the one that was due up to `below` (exclusive) are pruned.
    Pruned {
        /// The first position that is left.
        below: u64,
    },
}

/// A stream of what happens in one tenant's log, in the order of positions and without a gap.
///
/// It ends with an error when the tenant is suspended or the store fails; a new subscription from
/// the last position goes on.
pub struct Subscription(BoxStream<'static, Result<Delivered>>);

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
    }
}

impl Stream for Subscription {
    type Item = Result<Delivered>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

struct Follower {
    store: Arc<dyn LogStore>,
    scope: TenantScope,
    filter: Filter,
    next: u64,
    read: VecDeque<Entry>,
    bell: watch::Receiver<()>,
    heartbeat: Duration,
    silent_until: Instant,
    over: bool,
}

impl Follower {
    async fn next(&mut self) -> Result<Delivered> {
        // It looks before it says that there is nothing, so that a reader that takes longer than a
        // heartbeat for each item still gets on.
        let mut looked = false;
        loop {
            while let Some(entry) = self.read.pop_front() {
                if entry.seq > self.next {
                    let below = entry.seq;
                    self.next = below;
                    self.read.push_front(entry);
                    return Ok(Delivered::Pruned { below });
                }
                self.next = entry.seq + 1;
                if self.filter.matches(&entry) {
                    return Ok(Delivered::Entry(Arc::new(entry)));
                }
            }
            if looked && Instant::now() >= self.silent_until {
                return Ok(Delivered::Heartbeat {
                    seq: self.next.checked_sub(1),
                });
            }
            // Marked as seen before reading, so that an append during the read rings again.
            self.bell.borrow_and_update();
            self.read = self.store.read(&self.scope, self.next, CHUNK).await?.into();
            looked = true;
            if self.read.is_empty() {
                let pause = Instant::now() + POLL;
                tokio::select! {
                    _ = self.bell.changed() => {}
                    () = tokio::time::sleep_until(pause.min(self.silent_until)) => {}
                }
            }
        }
    }
}

pub(crate) async fn subscribe(
    store: Arc<dyn LogStore>,
    bell: &Bell,
    scope: TenantScope,
    request: SubscribeRequest,
) -> Result<Subscription> {
    scope.require(crate::Permission::Stream)?;
    let next = match request.from {
        Some(seq) => seq,
        None => {
            let reader = TenantScope::trusted(scope.tenant(), "subscription");
            store.head(&reader).await?.size()
        }
    };
    let heartbeat = request
        .heartbeat
        .clamp(*HEARTBEAT.start(), *HEARTBEAT.end());
    let follower = Follower {
        bell: bell.of(scope.tenant()),
        store,
        scope,
        filter: request.filter,
        next,
        read: VecDeque::new(),
        heartbeat,
        silent_until: Instant::now() + heartbeat,
        over: false,
    };
    Ok(Subscription(Box::pin(stream::unfold(
        follower,
        |mut follower| async move {
            if follower.over {
                return None;
            }
            let item = follower.next().await;
            follower.silent_until = Instant::now() + follower.heartbeat;
            follower.over = item.is_err();
            Some((item, follower))
        },
    ))))
}
