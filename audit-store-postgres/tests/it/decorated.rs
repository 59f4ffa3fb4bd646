//! The contract of the log store, behind every decorator.

use std::sync::Arc;
use std::time::Duration;

use audit_conformance::LogStoreHarness;
use audit_core::{ErrorKind, GroupCommit, LogStore, ManualClock, Observed, Observer, Retry};
use audit_store_postgres::PostgresStore;

use crate::fixture::shared;

#[derive(Debug)]
struct Deaf;

impl Observer for Deaf {
    fn called(&self, _: &'static str, _: Duration, _: Option<ErrorKind>) {}

    fn appended(&self, _: u64, _: u64) {}
}

macro_rules! wrapped {
    ($module:ident, $wrapper:ty, $wrap:expr) => {
        mod $module {
            use super::*;

            struct Wrapped {
                store: $wrapper,
                tenants: Arc<PostgresStore>,
                clock: Arc<ManualClock>,
            }

            impl Wrapped {
                async fn with(clock: Arc<ManualClock>) -> Self {
                    let options = shared().await.clock(clock.clone());
                    let tenants = Arc::new(PostgresStore::connect(options).await.unwrap());
                    let wrap: fn(Arc<PostgresStore>) -> $wrapper = $wrap;
                    Self {
                        store: wrap(tenants.clone()),
                        tenants,
                        clock,
                    }
                }
            }

            impl LogStoreHarness for Wrapped {
                type Store = $wrapper;
                type Tenants = PostgresStore;

                async fn open() -> Self {
                    Self::with(audit_conformance::clock()).await
                }

                fn store(&self) -> &$wrapper {
                    &self.store
                }

                fn tenants(&self) -> &PostgresStore {
                    &self.tenants
                }

                fn clock(&self) -> Option<Arc<ManualClock>> {
                    Some(self.clock.clone())
                }

                async fn reopen(self) -> Option<Self> {
                    Some(Self::with(self.clock).await)
                }
            }

            audit_conformance::log_store!(Wrapped);
        }
    };
}

wrapped!(shared_dyn, Arc<dyn LogStore>, |store| store);
wrapped!(group_commit, GroupCommit, |store| GroupCommit::new(store));
wrapped!(observed, Observed, |store| Observed::new(
    store,
    Arc::new(Deaf)
));
wrapped!(retry, Retry, |store| Retry::new(store));
wrapped!(stacked, Observed, |store| {
    let retried = Arc::new(Retry::new(store));
    Observed::new(Arc::new(GroupCommit::new(retried)), Arc::new(Deaf))
});
