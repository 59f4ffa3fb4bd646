//! Retrying what may succeed later.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::decorate::{Wraps, decorate_log_store};
use crate::error::Result;
use crate::store::LogStore;

/// A log store that tries again what failed with a retryable error.
///
/// Appends are retried by the same ids, which makes that safe when their outcome is unknown: what had
/// been stored comes back as a duplicate's receipt. Erasures and prunes are passed on once: a second
/// try would answer that there was nothing left to do.
#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn LogStore>,
    attempts: u32,
    pause: Duration,
}

impl Retry {
    /// Tries at most 4 times, with pauses of 50, 100 and 200 ms, or as long as the error says.
    pub fn new(inner: Arc<dyn LogStore>) -> Self {
        Self {
            inner,
            attempts: 4,
            pause: Duration::from_millis(50),
        }
    }

    /// Tries at most `attempts` times, once at least.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Pauses this long before the second try, and twice as long before each further one.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    async fn repeat<T, F: Future<Output = Result<T>> + Send>(
        &self,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        let mut pause = self.pause;
        for _ in 1..self.attempts {
            match call().await {
                Err(error) if error.is_retryable() => {
                    tokio::time::sleep(error.retry_after().unwrap_or(pause)).await;
                    pause = pause.saturating_mul(2);
                }
                outcome => return outcome,
            }
        }
        call().await
    }
}

impl Wraps for Retry {
    type Store = dyn LogStore;

    fn wrapped(&self) -> &dyn LogStore {
        &*self.inner
    }

    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        method: &'static str,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        match method {
            "erase" | "prune" => call().await,
            _ => self.repeat(call).await,
        }
    }
}

decorate_log_store!([] Retry);
