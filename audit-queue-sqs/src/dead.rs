//! The dead-letter queue: looked through, and sent again.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use audit_core::queue::removed;
use audit_core::{DeadLetter, Error, ErrorKind, Redrive, Result, Sieve, Timestamp};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::api::{Api, BATCH, Receive, cut};
use crate::message::{Outgoing, read_dead};

/// For how long, in seconds, a letter that is looked at is hidden from others.
const LOOK: u64 = 60;
/// The same, less the time that an answer takes.
const LOOKED_IN: Duration = Duration::from_secs(LOOK - 5);
/// How long, in seconds, SQS looks for a letter: with any wait at all it asks all of its servers.
const WAIT: u64 = 1;
/// The fewest letters that are looked through for the oldest, and the most.
const LOOKED_AT: std::ops::Range<usize> = 1_000..10_000;

/// The dead-letter queue of a queue.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    api: Api,
    pub(crate) url: Arc<str>,
    /// One at a time looks through it: what it looks at is hidden from others.
    looking: Mutex<()>,
}

/// A letter under a lease.
struct Letter {
    receipt: String,
    letter: DeadLetter,
}

impl DeadLetters {
    pub(crate) fn new(api: Api, url: Arc<str>) -> Self {
        Self {
            api,
            url,
            looking: Mutex::default(),
        }
    }

    /// The oldest `limit` of those that are looked through.
    pub(crate) async fn oldest(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        let _alone = self.looking.lock().await;
        let mut look = Look::default();
        let mut oldest: Vec<DeadLetter> = Vec::new();
        let most = limit.clamp(LOOKED_AT.start, LOOKED_AT.end);
        let outcome = loop {
            match look.next(self).await {
                Ok(letters) if letters.is_empty() => break Ok(()),
                Ok(letters) => oldest.extend(letters.into_iter().map(|l| l.letter)),
                Err(error) => break Err(error),
            }
            oldest.sort_by(by_age);
            oldest.truncate(limit);
            if look.seen.len() >= most {
                break Ok(());
            }
        };
        look.give_back(self).await;
        outcome.map(|()| oldest)
    }

    /// Sends letters to `queue` again, those that had died by `now`.
    pub(crate) async fn redrive(
        &self,
        queue: &str,
        which: &Redrive<String>,
        now: Timestamp,
        fifo: bool,
        batch_bytes: usize,
    ) -> Result<u64> {
        let mut left = match which {
            Redrive::All => None,
            Redrive::Only(handles) => Some(handles.iter().collect::<HashSet<_>>().len()),
        };
        let _alone = self.looking.lock().await;
        let mut look = Look::default();
        let mut count = 0;
        let outcome = loop {
            if left == Some(0) {
                break Ok(());
            }
            let mut letters = match look.next(self).await {
                Ok(letters) if letters.is_empty() => break Ok(()),
                Ok(letters) => letters,
                Err(error) => break Err(error),
            };
            letters.retain(|l| which.names(&l.letter.handle) && l.letter.died_at <= now);
            letters.sort_by(|a, b| by_age(&a.letter, &b.letter));
            let (sent, outcome) = self.send_again(queue, &letters, fifo, batch_bytes).await;
            count += sent.len() as u64;
            left = left.map(|left| left.saturating_sub(sent.len()));
            look.settled(&sent);
            if let Err(error) = outcome {
                break Err(error);
            }
        };
        look.give_back(self).await;
        outcome.map(|()| count)
    }

    /// Shows the sieve each letter, and removes those that it says.
    ///
    /// Fails as retryable when it took longer than a letter is hidden: those that come again then are not told from
    /// the end. Some ten thousand letters are too many.
    pub(crate) async fn sift(&self, sieve: &dyn Sieve<DeadLetter>) -> Result<u64> {
        let _alone = self.looking.lock().await;
        let mut look = Look::default();
        let mut count = 0;
        let began = Instant::now();
        let outcome = loop {
            let letters = match look.next(self).await {
                Ok(letters) if letters.is_empty() && began.elapsed() >= LOOKED_IN => {
                    let message = "there are more dead letters than can be looked through in a minute: \
                        redrive or remove them";
                    break Err(Error::new(ErrorKind::Unavailable, message));
                }
                Ok(letters) if letters.is_empty() => break Ok(()),
                Ok(letters) => letters,
                Err(error) => break Err(error),
            };
            let (receipts, letters): (Vec<_>, Vec<_>) =
                letters.into_iter().map(|l| (l.receipt, l.letter)).unzip();
            let gone = match removed(sieve, &letters, receipts).await {
                Ok(gone) => gone,
                Err(error) => break Err(error),
            };
            let mut outcome = Ok(());
            for deleted in self.api.delete(&self.url, &gone).await {
                match deleted {
                    Ok(()) => count += 1,
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
            look.settled(&gone);
            if let Err(error) = outcome {
                break Err(error);
            }
        };
        look.give_back(self).await;
        outcome.map(|()| count)
    }

    /// Sends these to `queue`, and removes those that were. Returns the receipts of these, and what
    /// failed first.
    async fn send_again(
        &self,
        queue: &str,
        letters: &[Letter],
        fifo: bool,
        batch_bytes: usize,
    ) -> (Vec<String>, Result<()>) {
        let messages: Vec<Outgoing> = letters
            .iter()
            .map(|l| Outgoing::redriven(&l.letter.message, &l.letter.handle, fifo))
            .collect();
        let mut outcomes = Vec::with_capacity(letters.len());
        for batch in cut(&messages, batch_bytes) {
            outcomes.extend(self.api.send(queue, &batch).await);
        }
        let mut sent = Vec::new();
        let mut outcome = Ok(());
        for (letter, answer) in letters.iter().zip(outcomes) {
            match answer {
                Ok(()) => sent.push(letter.receipt.clone()),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        for removed in self.api.delete(&self.url, &sent).await {
            outcome = outcome.and(removed);
        }
        (sent, outcome)
    }
}

/// One pass through the letters.
#[derive(Default)]
struct Look {
    seen: HashSet<String>,
    /// The receipts of what is to stay.
    staying: Vec<String>,
}

impl Look {
    /// The next few letters; none at the end, which is also where letters that were looked at come
    /// again.
    async fn next(&mut self, letters: &DeadLetters) -> Result<Vec<Letter>> {
        loop {
            let receive = Receive {
                max: BATCH,
                wait: WAIT,
                lease: LOOK,
                attempt: None,
            };
            let received = letters.api.receive(&letters.url, &receive).await?;
            let mut new = false;
            let mut found = Vec::new();
            for message in &received {
                let Some(receipt) = message.receipt_handle() else {
                    continue;
                };
                self.staying.push(receipt.to_owned());
                if let Some(id) = message.message_id() {
                    new |= self.seen.insert(id.to_owned());
                }
                match read_dead(message) {
                    Some(letter) => found.push(Letter {
                        receipt: receipt.to_owned(),
                        letter,
                    }),
                    None => tracing::warn!(
                        queue = &*letters.url,
                        "a message in the dead-letter queue is none of this log's; it stays there"
                    ),
                }
            }
            if !found.is_empty() || !new {
                return Ok(if new { found } else { Vec::new() });
            }
        }
    }

    fn settled(&mut self, receipts: &[String]) {
        self.staying.retain(|receipt| !receipts.contains(receipt));
    }

    async fn give_back(self, letters: &DeadLetters) {
        let now: Vec<_> = self.staying.into_iter().map(|r| (r, 0)).collect();
        for outcome in letters.api.hide(&letters.url, &now).await {
            if let Err(error) = outcome {
                tracing::debug!(%error, "a dead letter stays hidden for up to a minute");
            }
        }
    }
}

fn by_age(a: &DeadLetter, b: &DeadLetter) -> Ordering {
    (a.died_at, &a.message.id, &a.handle).cmp(&(b.died_at, &b.message.id, &b.handle))
}
