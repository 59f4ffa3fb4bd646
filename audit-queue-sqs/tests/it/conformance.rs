//! The contract of the trait, on either kind of queue.

use audit_conformance::EventQueueHarness;
use audit_queue_sqs::{SqsOptions, SqsQueue};

use crate::fixture::{Removed, make, new_url, options_of};

struct Sqs<const FIFO: bool> {
    options: SqsOptions,
    queue: SqsQueue,
    _removed: Removed,
}

impl<const FIFO: bool> EventQueueHarness for Sqs<FIFO> {
    type Queue = SqsQueue;

    async fn open() -> Self {
        let url = new_url(FIFO);
        let options = options_of(&url);
        Self {
            queue: make(options.clone()).await,
            options,
            _removed: Removed(url),
        }
    }

    fn queue(&self) -> &SqsQueue {
        &self.queue
    }

    async fn reopen(self) -> Option<Self> {
        let queue = SqsQueue::open(self.options.clone()).await.ok()?;
        Some(Self { queue, ..self })
    }
}

mod standard {
    audit_conformance::event_queue!(super::Sqs<false>);
}

mod fifo {
    audit_conformance::event_queue!(super::Sqs<true>);
}
