use std::sync::Arc;
use std::time::Duration;

use audit_conformance::LogStoreHarness;
use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::note::SigningKey;
use audit_core::{
    AuditLog, ErrorKind, GroupCommit, LogStore, ManualClock, MemoryGuard, MemoryStore, Observed,
    Observer, Retry, Signer,
};

#[derive(Debug)]
struct Deaf;

impl Observer for Deaf {
    fn called(&self, _: &'static str, _: Duration, _: Option<ErrorKind>) {}

    fn appended(&self, _: u64, _: u64) {}
}

/// Runs the contract on a wrapper around a store in memory.
macro_rules! wrapped {
    ($module:ident, $wrapper:ty, $wrap:expr) => {
        mod $module {
            use super::*;

            struct Wrapped {
                store: $wrapper,
                tenants: Arc<MemoryStore>,
                clock: Arc<ManualClock>,
            }

            impl LogStoreHarness for Wrapped {
                type Store = $wrapper;
                type Tenants = MemoryStore;

                async fn open() -> Self {
                    let clock = audit_conformance::clock();
                    let tenants = Arc::new(MemoryStore::with_clock(clock.clone()));
                    let wrap: fn(Arc<MemoryStore>) -> $wrapper = $wrap;
                    Self {
                        store: wrap(tenants.clone()),
                        tenants,
                        clock,
                    }
                }

                fn store(&self) -> &$wrapper {
                    &self.store
                }

                fn tenants(&self) -> &MemoryStore {
                    &self.tenants
                }

                fn clock(&self) -> Option<Arc<ManualClock>> {
                    Some(self.clock.clone())
                }
            }

            audit_conformance::log_store!(Wrapped);
        }
    };
}

wrapped!(shared, Arc<MemoryStore>, |store| store);
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
wrapped!(guarded, Arc<dyn LogStore>, |store| {
    let origin = Origin::parse("audit.example/log").unwrap();
    let key = SigningKey::from_seed("audit", &[7; 32]).unwrap();
    let log = AuditLog::builder(store.clone())
        .signer(Signer::new(origin, key), store.clone())
        .guard(Arc::new(MemoryGuard::new()), store)
        .build();
    log.log_store().clone()
});
