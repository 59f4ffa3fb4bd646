//! Sealing: what every store does with a batch under the head lock, as a pure function.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use audit_tlog::leaf::leaf_hash;
use audit_tlog::{Hash, Leaf, Timestamp, Tree};

use crate::entry::Receipt;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::id::{EventId, TenantId};
use crate::prepare::{Batch, Content, PreparedEvent};

/// A head may be ahead of the clock by this much; beyond it, appends are refused.
pub const MAX_CLOCK_LAG: Duration = Duration::from_secs(5);

/// The state of a tenant's log: what an append locks and advances.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Head {
    /// Whose.
    pub tenant: TenantId,
    /// The tree; its size is the next `seq`.
    pub tree: Tree,
    /// The newest entry's `created_at`; the beginning of time in an empty log.
    pub created_at: Timestamp,
    /// Entries below this position are pruned: no read shows them.
    pub pruned_below: u64,
    /// The position of the control entry that says so.
    pub pruned_by: Option<u64>,
    /// Rows below this position are also gone from the storage.
    pub swept_below: u64,
}

impl Head {
    /// The head of an empty log.
    pub fn empty(tenant: TenantId) -> Self {
        Self {
            tenant,
            tree: Tree::new(),
            created_at: Timestamp::MIN,
            pruned_below: 0,
            pruned_by: None,
            swept_below: 0,
        }
    }

    /// The positions of what is left that a filter leaves; an empty range when it leaves none.
    pub fn positions(&self, filter: &Filter) -> Range<u64> {
        let start = self.pruned_below.max(filter.from_seq.unwrap_or(0));
        let end = self.size().min(filter.to_seq.unwrap_or(u64::MAX));
        start..end.max(start)
    }

    /// The number of entries ever appended, which is the next `seq`.
    pub fn size(&self) -> u64 {
        self.tree.size()
    }
}

/// What a store's `ids` say of an id that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The entry's position.
    pub seq: u64,
    /// The entry's acceptance.
    pub created_at: Timestamp,
    /// The entry's leaf hash.
    pub leaf_hash: Hash,
    /// What repeats are compared by; none after an erasure or a prune, when any repeat is a duplicate.
    pub content: Option<Content>,
}

/// One row to be written.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Row<'a> {
    /// The position.
    pub seq: u64,
    /// When the log accepted it.
    pub created_at: Timestamp,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// The leaf hash.
    pub leaf_hash: Hash,
    /// Everything else.
    pub event: &'a PreparedEvent,
}

/// The outcome of [`seal`]: rows to write, the advanced head, and the receipts to give out once the
/// transaction is durable.
#[derive(Debug)]
pub struct Sealing<'a> {
    /// The rows, in the order of their positions.
    pub rows: Vec<Row<'a>>,
    /// The head to be written with them.
    pub head: Head,
    /// A result for each batch, in order.
    pub outcomes: Vec<Result<Vec<Receipt>>>,
}

/// Seals batches of one tenant: assigns positions and times, compares repeats, hashes the leaves and
/// advances the tree.
///
/// `known` holds what the store's `ids` say of the batches' ids; ids that it lacks are new. `now` is
/// the store's clock. A conflict, or an event that was prepared for another tenant, fails its own
/// batch, of which nothing is stored; equal ids within the batches are resolved here.
///
/// # Errors
/// [`ErrorKind::Unavailable`], naming the clock, when the head is more than [`MAX_CLOCK_LAG`] ahead
/// of `now`: then no batch is stored.
pub fn seal<'a>(
    batches: &[&'a Batch],
    head: &Head,
    now: Timestamp,
    known: &HashMap<EventId, Known>,
) -> Result<Sealing<'a>> {
    let ahead = head.created_at.as_micros().saturating_sub(now.as_micros());
    if ahead > MAX_CLOCK_LAG.as_micros() as i64 {
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "the clock is {} ms behind the newest entry of the log: appends wait until it has caught up",
                ahead / 1_000
            ),
        )
        .with_tenant(head.tenant)
        .with_retry_after(Duration::from_micros(ahead.unsigned_abs())));
    }
    let created_at = now.max(head.created_at);
    let mut head = head.clone();

    let mut rows: Vec<Row<'a>> = Vec::with_capacity(batches.iter().map(|b| b.events().len()).sum());
    let mut fresh: HashMap<EventId, usize> = HashMap::with_capacity(rows.capacity());
    let mut outcomes = Vec::with_capacity(batches.len());
    let mut leaf = String::with_capacity(1024);
    for batch in batches {
        if let Some(foreign) = batch
            .events()
            .iter()
            .find(|event| event.tenant() != head.tenant)
        {
            outcomes.push(Err(Error::new(
                ErrorKind::Forbidden,
                "the event was prepared for another tenant",
            )
            .with_event_id(foreign.id())));
            continue;
        }
        let start = rows.len();
        let tree = head.tree.clone();
        let mut receipts = Vec::with_capacity(batch.events().len());
        let mut conflict = None;
        for event in batch.events() {
            let earlier = match (fresh.get(&event.id()), known.get(&event.id())) {
                (Some(&row), _) => {
                    let row: &Row<'_> = &rows[row];
                    Some(Known {
                        seq: row.seq,
                        created_at: row.created_at,
                        leaf_hash: row.leaf_hash,
                        content: Some(row.event.content()),
                    })
                }
                (None, known) => known.copied(),
            };
            if let Some(earlier) = earlier {
                if earlier
                    .content
                    .is_some_and(|content| !event.same_content(&content))
                {
                    conflict = Some(
                        Error::new(
                            ErrorKind::Conflict,
                            "the id was recorded before with other content",
                        )
                        .with_event_id(event.id())
                        .with_position(earlier.seq),
                    );
                    break;
                }
                receipts.push(
                    Receipt::new(
                        event.id(),
                        earlier.seq,
                        earlier.leaf_hash,
                        earlier.created_at,
                    )
                    .repeated(),
                );
                continue;
            }
            let occurred_at = event.occurred_at(created_at);
            leaf.clear();
            let data = Leaf {
                kind: event.kind(),
                tenant_id: head.tenant.into_uuid(),
                id: event.id().into_uuid(),
                created_at,
                occurred_at,
                action_type: event.fields().action_type.as_str(),
                action: &event.fields().action,
                outcome: event.fields().outcome.as_str(),
                severity: event.fields().severity.as_str(),
                ctl: event.ctl(),
                digests: event.digests(),
            };
            #[cfg(audit_unhashed)]
            let is_written = !audit_tlog::unhashed::is_on();
            #[cfg(not(audit_unhashed))]
            let is_written = true;
            if is_written {
                data.write(&mut leaf);
            }
            let leaf_hash = leaf_hash(leaf.as_bytes());
            let seq = head.tree.size();
            head.tree.push(leaf_hash);
            fresh.insert(event.id(), rows.len());
            rows.push(Row {
                seq,
                created_at,
                occurred_at,
                leaf_hash,
                event,
            });
            receipts.push(Receipt::new(event.id(), seq, leaf_hash, created_at));
        }
        match conflict {
            None => outcomes.push(Ok(receipts)),
            Some(error) => {
                for row in rows.drain(start..) {
                    fresh.remove(&row.event.id());
                }
                head.tree = tree;
                outcomes.push(Err(error));
            }
        }
    }
    if !rows.is_empty() {
        head.created_at = created_at;
    }
    let (size, root) = (head.tree.size(), head.tree.root());
    for receipt in outcomes.iter_mut().flatten().flatten() {
        receipt.tree_size = size;
        receipt.root = root;
    }
    Ok(Sealing {
        rows,
        head,
        outcomes,
    })
}

/// The receipt of a control entry, which a store appends by itself.
///
/// # Errors
/// [`ErrorKind::Internal`] when there is none.
pub fn only_receipt(mut receipts: Vec<Receipt>) -> Result<Receipt> {
    receipts
        .pop()
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a control entry has no receipt"))
}
