//! Compares the index with the logs, and puts it right.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Worker, indexer, is_closed, pause_after};
use crate::error::Result;
use crate::id::TenantId;
use crate::rebuild::{Compared, mend};
use crate::scope::TenantScope;
use crate::search::{MAX_HELD, SearchIndex};
use crate::store::Mark;

/// The least time between two steps.
const PAUSE: Duration = Duration::from_millis(100);
/// The least time between two steps while the indexer has something to do.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// The least time between the beginnings of two rounds through all tenants.
const ROUND: Duration = Duration::from_secs(5);
/// It rests for so many times as long as it works.
const SHARE: u32 = 20;

/// One step compares one range of one tenant's log with what the index holds of it, and puts right
/// what differs; the next one compares that range once more. So it goes round all tenants' logs, by
/// turns, and never takes more than a small share of the time.
pub(super) async fn run(worker: Worker, index: Arc<dyn SearchIndex>) {
    let mut reconciler = Reconciler {
        worker,
        index,
        waiting: VecDeque::new(),
        began: None,
        is_complete: false,
        different: BTreeMap::new(),
    };
    let mut failures = 0;
    loop {
        let began = Instant::now();
        let pause = match reconciler.step().await {
            Ok(()) => {
                failures = 0;
                reconciler.worker.worked();
                let least = match reconciler.worker.desk.lag_of(indexer::NAME) {
                    0 => PAUSE,
                    _ => BUSY_PAUSE,
                };
                (began.elapsed() * SHARE).max(least)
            }
            Err(error) => {
                reconciler.worker.failed(&error);
                failures += 1;
                pause_after(failures)
            }
        };
        reconciler.publish();
        if !reconciler.worker.pause(pause).await {
            return;
        }
    }
}

struct Reconciler {
    worker: Worker,
    index: Arc<dyn SearchIndex>,
    /// What is still to be compared in this round, one place of each tenant.
    waiting: VecDeque<Place>,
    /// When this round began.
    began: Option<Instant>,
    /// Whether a round is over: before that nothing is known of the tenants that wait.
    is_complete: bool,
    /// By how many entries the index differs from each tenant's log, of those where it does.
    different: BTreeMap<TenantId, u64>,
}

/// Where it is in a tenant's log.
#[derive(Clone, Copy)]
struct Place {
    tenant: TenantId,
    from: u64,
    /// What differed before `from` and could not be put right.
    left: u64,
    /// Whether this range was put right just now, and is compared again.
    mended: bool,
}

impl Reconciler {
    async fn step(&mut self) -> Result<()> {
        self.begin_round().await?;
        let outcome = match self.waiting.pop_front() {
            Some(place) => match self.compare(place).await {
                // It comes again with the next round.
                Err(error) if is_closed(&error) => {
                    self.different.remove(&place.tenant);
                    Ok(())
                }
                outcome => outcome,
            },
            None => Ok(()),
        };
        self.is_complete |= self.waiting.is_empty();
        outcome
    }

    /// Begins a round when the last one is over, and not too early.
    async fn begin_round(&mut self) -> Result<()> {
        let is_early = self.began.is_some_and(|began| began.elapsed() < ROUND);
        if !self.waiting.is_empty() || is_early {
            return Ok(());
        }
        let all = self.worker.log.store.grown_since(Mark::default()).await?;
        self.began = Some(Instant::now());
        let places = all.tenants.into_iter().map(|(tenant, _)| Place {
            tenant,
            from: 0,
            left: 0,
            mended: false,
        });
        self.waiting = places.collect();
        Ok(())
    }

    async fn compare(&mut self, place: Place) -> Result<()> {
        let store = Arc::clone(&self.worker.log.store);
        let scope = TenantScope::trusted(place.tenant, "reconciler");
        let to = place.from.saturating_add(MAX_HELD);
        let compared = Compared::of(&*self.index, &*store, &scope, place.from..to).await?;
        // What was pruned a moment ago is still on its way out, and so is a deleted tenant's: nobody
        // is shown it, it is taken out, and it counts for nothing.
        let surplus = compared.surplus.iter();
        let beyond = match compared.log.end {
            0 => 0,
            end => surplus.filter(|seq| **seq >= end).count(),
        };
        let found = (compared.missing.len() + beyond) as u64;
        self.tell(place.tenant, place.left + found);
        if place.mended || (compared.missing.is_empty() && compared.surplus.is_empty()) {
            let next = Place {
                tenant: place.tenant,
                from: to.max(compared.log.start),
                left: place.left + found,
                mended: false,
            };
            if next.from < compared.through {
                self.waiting.push_back(next);
            }
            return Ok(());
        }
        if found > 0 {
            tracing::warn!(tenant = %place.tenant, from = place.from, entries = found,
                "the index differs from the log and is put right");
        }
        let damaged = mend(
            &*self.index,
            &*store,
            &scope,
            &compared.missing,
            &compared.surplus,
        )
        .await?;
        self.worker
            .desk
            .edit(&self.worker.name, |s| s.repaired += found - damaged as u64);
        // At once, lest what was put right counts as different until its turn comes.
        self.waiting.push_front(Place {
            mended: true,
            ..place
        });
        Ok(())
    }

    fn tell(&mut self, tenant: TenantId, difference: u64) {
        match difference {
            0 => self.different.remove(&tenant),
            _ => self.different.insert(tenant, difference),
        };
    }

    fn publish(&self) {
        if !self.is_complete {
            return;
        }
        let sum = self.different.values().sum();
        self.worker
            .desk
            .edit(&self.worker.name, |s| s.difference = Some(sum));
    }
}
