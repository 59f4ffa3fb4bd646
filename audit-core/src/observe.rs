//! Measuring a store from outside.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::decorate::{Wraps, decorate_log_store};
use crate::entry::Receipt;
use crate::error::{Error, ErrorKind, Result};
use crate::prepare::Batch;
use crate::store::LogStore;

/// Where measurements go: a metrics library of the application's choice.
pub trait Observer: Debug + Send + Sync + 'static {
    /// One call: the trait's method, how long it took, and what it failed with. Never content, never
    /// a tenant.
    fn called(&self, method: &'static str, took: Duration, failed: Option<ErrorKind>);

    /// One append: how many events were stored, and how many were repeats.
    fn appended(&self, stored: u64, duplicates: u64);
}

/// A log store that tells an [`Observer`] of each call.
#[derive(Debug)]
pub struct Observed {
    inner: Arc<dyn LogStore>,
    observer: Arc<dyn Observer>,
}

impl Observed {
    /// Wraps a store.
    pub fn new(inner: Arc<dyn LogStore>, observer: Arc<dyn Observer>) -> Self {
        Self { inner, observer }
    }
}

impl Wraps for Observed {
    type Store = dyn LogStore;

    fn wrapped(&self) -> &dyn LogStore {
        &*self.inner
    }

    async fn append_around(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>> {
        let outcomes = self.around("append", || self.inner.append(batches)).await?;
        let receipts = || outcomes.iter().flatten().flatten();
        let duplicates = receipts().filter(|r| r.duplicate).count() as u64;
        self.observer
            .appended(receipts().count() as u64 - duplicates, duplicates);
        Ok(outcomes)
    }

    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        method: &'static str,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        let began = Instant::now();
        let outcome = call().await;
        self.observer.called(
            method,
            began.elapsed(),
            outcome.as_ref().err().map(Error::kind),
        );
        outcome
    }
}

decorate_log_store!([] Observed);
