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
/// what differs; the next one compares that range once more. So it goes round all tenants' logs, and
/// never takes more than a small share of the time.
pub(super) async fn run(worker: Worker, index: Arc<dyn SearchIndex>) {
    let mut reconciler = Reconciler {
        worker,
        index,
        waiting: VecDeque::new(),
        began: None,
        current: None,
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
    /// Tenants that are still to be compared in this round.
    waiting: VecDeque<TenantId>,
    /// When this round began.
    began: Option<Instant>,
    current: Option<Place>,
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
        let Some(place) = self.next_place().await? else {
            return Ok(());
        };
        let outcome = self.compare(place).await;
        if let Err(error) = outcome {
            // The next one is compared instead; this one comes again with the next round.
            self.current = None;
            return match is_closed(&error) {
                true => {
                    self.different.remove(&place.tenant);
                    Ok(())
                }
                false => Err(error),
            };
        }
        Ok(())
    }

    async fn next_place(&mut self) -> Result<Option<Place>> {
        if let Some(place) = self.current {
            return Ok(Some(place));
        }
        if self.waiting.is_empty() {
            if self.began.is_some_and(|began| began.elapsed() < ROUND) {
                return Ok(None);
            }
            self.began = Some(Instant::now());
            let all = self.worker.log.store.grown_since(Mark::default()).await?;
            self.waiting = all.tenants.into_iter().map(|(tenant, _)| tenant).collect();
        }
        let place = self.waiting.pop_front().map(|tenant| Place {
            tenant,
            from: 0,
            left: 0,
            mended: false,
        });
        self.current = place;
        Ok(place)
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
            self.current = (next.from < compared.through).then_some(next);
            return Ok(());
        }
        if found > 0 {
            tracing::warn!(tenant = %place.tenant, from = place.from, entries = found,
                "the index differs from the log and is put right");
        }
        mend(
            &*self.index,
            &*store,
            &scope,
            &compared.missing,
            &compared.surplus,
        )
        .await?;
        self.worker
            .desk
            .edit(&self.worker.name, |s| s.repaired += found);
        self.current = Some(Place {
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
        let sum = self.different.values().sum();
        self.worker
            .desk
            .edit(&self.worker.name, |s| s.difference = Some(sum));
    }
}
