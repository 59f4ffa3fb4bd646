//! What was delivered and isn't settled yet.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use audit_core::Message;
use tokio::time::Instant;

use crate::api::LONGEST_LEASE;

/// The messages under leases of this process, by their receipts, and the ends of the delays of those
/// that it gave back. SQS bounds both: no more than 120,000 messages are hidden at a time.
#[derive(Debug, Default)]
pub(crate) struct Held {
    leases: HashMap<String, Lease>,
    delays: BinaryHeap<Reverse<Instant>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Lease {
    /// SQS's own id of the message.
    pub(crate) id: String,
    pub(crate) message: Message,
    received: Instant,
    until: Instant,
}

impl Lease {
    /// So many seconds from now on, as far as SQS allows it for this message.
    fn allowed(&self, seconds: u64, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.received).as_secs() + 1;
        match seconds + passed {
            total if total <= LONGEST_LEASE => seconds,
            _ => LONGEST_LEASE.saturating_sub(passed),
        }
    }
}

impl Held {
    /// Keeps what was received just now, and forgets what came to its end.
    pub(crate) fn add(&mut self, received: Vec<(String, String, Message)>, seconds: u64) {
        let now = Instant::now();
        self.leases.retain(|_, lease| lease.until > now);
        for (receipt, id, message) in received {
            let until = now + Duration::from_secs(seconds);
            let lease = Lease {
                id,
                message,
                received: now,
                until,
            };
            self.leases.insert(receipt, lease);
        }
    }

    /// The lease of this receipt, unless it came to its end.
    pub(crate) fn get(&self, receipt: &str) -> Option<Lease> {
        let lease = self.leases.get(receipt)?;
        (lease.until > Instant::now()).then(|| lease.clone())
    }

    /// Makes a lease longer, and says by how many seconds from now on it may be.
    pub(crate) fn extend(&mut self, receipt: &str, seconds: u64) -> u64 {
        let now = Instant::now();
        let Some(lease) = self.leases.get_mut(receipt) else {
            return seconds;
        };
        let seconds = lease.allowed(seconds, now);
        lease.until = now + Duration::from_secs(seconds);
        seconds
    }

    /// Ends a lease.
    pub(crate) fn remove(&mut self, receipt: &str) {
        self.leases.remove(receipt);
    }

    /// Ends a lease for a message that is given back, and says after how many seconds it may come
    /// again.
    pub(crate) fn give_back(&mut self, receipt: &str, seconds: u64) -> u64 {
        let now = Instant::now();
        let lease = self.leases.remove(receipt);
        let seconds = lease.map_or(seconds, |lease| lease.allowed(seconds, now));
        if seconds > 0 {
            self.expire(now);
            self.delays
                .push(Reverse(now + Duration::from_secs(seconds)));
        }
        seconds
    }

    /// How many were given back and wait for the end of their delay.
    pub(crate) fn delayed(&mut self) -> u64 {
        self.expire(Instant::now());
        self.delays.len() as u64
    }

    fn expire(&mut self, now: Instant) {
        while self.delays.peek().is_some_and(|Reverse(end)| *end <= now) {
            self.delays.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use audit_core::MessageKind;

    use super::*;

    fn message() -> Message {
        let id = "0190a000-0000-7000-8000-000000000001";
        let (tenant, id) = (id.parse().unwrap(), id.parse().unwrap());
        Message::new(tenant, MessageKind::Ingest, id, "{}".into())
    }

    #[test]
    fn no_message_is_hidden_for_more_than_twelve_hours_in_all() {
        let mut held = Held::default();
        held.add(vec![("r".into(), "m".into(), message())], LONGEST_LEASE);
        assert_eq!(held.extend("r", 60), 60);
        assert!(held.extend("r", LONGEST_LEASE) < LONGEST_LEASE);
        assert!(held.give_back("r", LONGEST_LEASE) < LONGEST_LEASE);
        assert_eq!(held.delayed(), 1);
        assert!(held.get("r").is_none());
    }

    #[test]
    fn a_lease_that_ended_is_forgotten() {
        let mut held = Held::default();
        held.add(vec![("r".into(), "m".into(), message())], 0);
        assert!(held.get("r").is_none());
        held.add(Vec::new(), 1);
        assert!(held.leases.is_empty());
    }
}
