//! Time, ids and randomness as one parameter.

use std::fmt::Debug;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use audit_tlog::{Seed, Timestamp};
use rand::RngCore;
use uuid::Uuid;

use crate::id::EventId;

/// Where time, ids and seeds come from. [`SystemClock`] in production, [`ManualClock`] in tests.
#[cfg_attr(feature = "mock", mockall::automock)]
pub trait Clock: Debug + Send + Sync + 'static {
    /// The time, in UTC and microseconds.
    fn now(&self) -> Timestamp;

    /// A new event id, time-ordered (UUIDv7).
    fn event_id(&self) -> EventId;

    /// 32 unpredictable bytes: an entry's seed, a tenant's secret, an API key.
    fn secret(&self) -> [u8; 32];

    /// A new entry seed.
    fn seed(&self) -> Seed {
        Seed::new(self.secret())
    }
}

/// The operating system's clock and random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one place that asks
    fn now(&self) -> Timestamp {
        let micros = chrono::Utc::now().timestamp_micros();
        // A clock before 1970 or after 9999 is pinned to the range that the log can hold.
        Timestamp::from_micros(micros.clamp(Timestamp::MIN.as_micros(), Timestamp::MAX.as_micros()))
            .unwrap_or(Timestamp::MIN)
    }

    #[allow(clippy::disallowed_methods)] // the one place that asks
    fn event_id(&self) -> EventId {
        EventId::new(Uuid::now_v7())
    }

    fn secret(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        rand::rng().fill_bytes(&mut bytes);
        bytes
    }
}

/// A clock that stands still until it is moved, with ids and seeds that repeat from run to run.
///
/// For tests only: its secrets are predictable.
#[derive(Debug)]
pub struct ManualClock {
    micros: AtomicI64,
    counter: AtomicU64,
}

impl ManualClock {
    /// Starts at `now`.
    pub fn new(now: Timestamp) -> Self {
        Self {
            micros: AtomicI64::new(now.as_micros()),
            counter: AtomicU64::new(0),
        }
    }

    /// Sets the time, backwards too.
    pub fn set(&self, now: Timestamp) {
        self.micros.store(now.as_micros(), Ordering::SeqCst);
    }

    /// Moves the time by `micros` microseconds, backwards with a negative number.
    pub fn advance_micros(&self, micros: i64) {
        self.micros.fetch_add(micros, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let micros = self.micros.load(Ordering::SeqCst);
        Timestamp::from_micros(micros.clamp(Timestamp::MIN.as_micros(), Timestamp::MAX.as_micros()))
            .unwrap_or(Timestamp::MIN)
    }

    fn event_id(&self) -> EventId {
        let n = self.counter.fetch_add(1, Ordering::SeqCst);
        let millis = (self.micros.load(Ordering::SeqCst) / 1_000).unsigned_abs();
        let mut bytes = [0; 10];
        bytes[2..].copy_from_slice(&n.to_be_bytes());
        EventId::new(uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid())
    }

    fn secret(&self) -> [u8; 32] {
        let n = self.counter.fetch_add(1, Ordering::SeqCst);
        let mut bytes = [0xA5; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        bytes
    }
}
