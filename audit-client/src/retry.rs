//! When a call is made again, and for how long.

use std::time::Duration;

/// How often and how long a call is tried.
///
/// A call ends with its last error when either bound is reached, or at once when the server asks to
/// wait for longer than is left. The wait doubles from `first_wait` to `longest_wait`, each shortened
/// by a random part of up to a half; a longer `Retry-After` of the server's wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// The most attempts, the first one included; 0 counts as 1.
    pub attempts: u32,
    /// The wait after the first attempt.
    pub first_wait: Duration,
    /// The longest wait that is chosen here.
    pub longest_wait: Duration,
    /// The most time for all attempts and the waits between them.
    pub deadline: Duration,
}

impl Default for Retry {
    /// 8 attempts within 60 seconds, with waits of 100 milliseconds to 5 seconds.
    fn default() -> Self {
        Self {
            attempts: 8,
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
        }
    }
}

impl Retry {
    /// One attempt, with the default deadline.
    pub fn never() -> Self {
        Self {
            attempts: 1,
            ..Self::default()
        }
    }

    /// The most attempts, the first one included.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// The wait after the first attempt.
    #[must_use]
    pub fn first_wait(mut self, wait: Duration) -> Self {
        self.first_wait = wait;
        self
    }

    /// The longest wait that is chosen here.
    #[must_use]
    pub fn longest_wait(mut self, wait: Duration) -> Self {
        self.longest_wait = wait;
        self
    }

    /// The most time for all attempts and the waits between them.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The wait after attempt number `attempt`, counted from 1; `noise` is random.
    pub(crate) fn wait(&self, attempt: u32, asked: Option<Duration>, noise: u8) -> Duration {
        let doublings = attempt.saturating_sub(1).min(16);
        let full = self
            .first_wait
            .saturating_mul(1 << doublings)
            .min(self.longest_wait);
        let chosen = full - full.mul_f64(f64::from(noise) / 512.0);
        asked.unwrap_or_default().max(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_a_longer_retry_after_wins() {
        let retry = Retry::default();
        assert_eq!(retry.wait(1, None, 0), Duration::from_millis(100));
        assert_eq!(retry.wait(3, None, 0), Duration::from_millis(400));
        assert_eq!(retry.wait(60, None, 0), Duration::from_secs(5));
        assert!(retry.wait(1, None, 255) > Duration::from_millis(50));
        let asked = Some(Duration::from_secs(7));
        assert_eq!(retry.wait(1, asked, 255), Duration::from_secs(7));
    }
}
