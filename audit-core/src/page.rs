//! Pages and cursors.

use audit_tlog::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::{Error, ErrorKind, FieldFault, Result};
use crate::filter::Filter;
use crate::tenant::TenantSecret;

/// What a list goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sort {
    /// The position in the log.
    #[default]
    Seq,
    /// When it happened; entries of the same instant by position.
    OccurredAt,
}

/// Which way a list goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// Newest first.
    #[default]
    Descending,
    /// Oldest first.
    Ascending,
}

/// Where a page ended: the place of its last entry in both orders. Stores see this; clients see an
/// opaque cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The position in the log.
    pub seq: u64,
    /// When the log accepted it.
    pub created_at: Timestamp,
    /// When it happened.
    pub occurred_at: Timestamp,
}

/// Which page of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageRequest {
    /// What the list goes by.
    pub sort: Sort,
    /// Which way.
    pub order: Order,
    /// The most entries, 1 to [`PageRequest::MAX_LIMIT`]; anything else is clamped to these.
    pub limit: usize,
    /// The page begins behind this place.
    pub after: Option<Position>,
}

impl PageRequest {
    /// The largest page.
    pub const MAX_LIMIT: usize = 1_000;
    /// The size of a page when nothing is said.
    pub const DEFAULT_LIMIT: usize = 50;

    /// The first page, newest first, of [`Self::DEFAULT_LIMIT`] entries.
    pub fn first() -> Self {
        Self {
            sort: Sort::Seq,
            order: Order::Descending,
            limit: Self::DEFAULT_LIMIT,
            after: None,
        }
    }

    /// Pages of `limit` entries, clamped to 1 and [`Self::MAX_LIMIT`].
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit.clamp(1, Self::MAX_LIMIT);
        self
    }

    /// Oldest first.
    #[must_use]
    pub fn ascending(mut self) -> Self {
        self.order = Order::Ascending;
        self
    }

    /// Goes by `sort`.
    #[must_use]
    pub fn sort(mut self, sort: Sort) -> Self {
        self.sort = sort;
        self
    }

    /// Begins behind `position`.
    #[must_use]
    pub fn after(mut self, position: Position) -> Self {
        self.after = Some(position);
        self
    }
}

impl Default for PageRequest {
    fn default() -> Self {
        Self::first()
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page<T> {
    /// Its items, in the order asked for.
    pub items: Vec<T>,
    /// Where the next page begins. None at the end of a descending list; an ascending one always
    /// has it, to go on from when the log has grown.
    pub next: Option<Position>,
    /// With full text: the index holds the log up to this position (exclusive).
    pub indexed_through: Option<u64>,
}

impl<T> Page<T> {
    /// A page.
    pub fn new(items: Vec<T>, next: Option<Position>) -> Self {
        Self {
            items,
            next,
            indexed_through: None,
        }
    }

    /// The page that `request` asks for, of what was found for it: in its order, and one item more
    /// than its limit when there are as many. Says where the next page begins.
    pub fn cut(
        mut found: Vec<T>,
        request: &PageRequest,
        position: impl FnOnce(&T) -> Position,
    ) -> Self {
        let more = found.len() > request.limit;
        found.truncate(request.limit);
        let last = found.last().map(position);
        let next = match request.order {
            Order::Ascending => last.or(request.after),
            Order::Descending => last.filter(|_| more),
        };
        Self::new(found, next)
    }
}

const VERSION: u8 = 1;
const BODY: usize = 1 + 1 + 1 + 8 + 8 + 8;
const TAG: usize = 16;

/// Writes a cursor: base64url of version, sort, order, the three places and a MAC over these, the
/// tenant (whose secret is the key) and the filter.
pub fn mint_cursor(
    secret: &TenantSecret,
    filter: &Filter,
    sort: Sort,
    order: Order,
    position: &Position,
) -> String {
    let mut bytes = [0; BODY + TAG];
    bytes[0] = VERSION;
    bytes[1] = u8::from(sort == Sort::OccurredAt);
    bytes[2] = u8::from(order == Order::Ascending);
    bytes[3..11].copy_from_slice(&position.seq.to_be_bytes());
    bytes[11..19].copy_from_slice(&position.created_at.as_micros().to_be_bytes());
    bytes[19..27].copy_from_slice(&position.occurred_at.as_micros().to_be_bytes());
    let tag = mac(secret, filter, &bytes[..BODY]).finalize().into_bytes();
    bytes[BODY..].copy_from_slice(&tag[..TAG]);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a cursor that this tenant was given for this filter, sort and order.
///
/// # Errors
/// [`ErrorKind::Malformed`] naming `cursor` for any other text: another tenant's, an edited one, one
/// of another query.
pub fn read_cursor(
    secret: &TenantSecret,
    filter: &Filter,
    sort: Sort,
    order: Order,
    cursor: &str,
) -> Result<Position> {
    let refuse = || {
        Error::invalid(vec![FieldFault::new(
            "cursor",
            "not a cursor of this list: repeat the parameters of the page that gave it",
        )])
        .with_kind(ErrorKind::Malformed)
    };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| refuse())?;
    let bytes: [u8; BODY + TAG] = bytes.try_into().map_err(|_| refuse())?;
    mac(secret, filter, &bytes[..BODY])
        .verify_truncated_left(&bytes[BODY..])
        .map_err(|_| refuse())?;
    let number = |at: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&bytes[at..at + 8]);
        eight
    };
    let same = bytes[0] == VERSION
        && bytes[1] == u8::from(sort == Sort::OccurredAt)
        && bytes[2] == u8::from(order == Order::Ascending);
    let time = |at| Timestamp::from_micros(i64::from_be_bytes(number(at)));
    match (same, time(11), time(19)) {
        (true, Some(created_at), Some(occurred_at)) => Ok(Position {
            seq: u64::from_be_bytes(number(3)),
            created_at,
            occurred_at,
        }),
        _ => Err(refuse()),
    }
}

fn mac(secret: &TenantSecret, filter: &Filter, body: &[u8]) -> Hmac<Sha256> {
    #[allow(clippy::expect_used)] // HMAC takes keys of any length
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&secret.derive("audit-log/v1/cursor"))
        .expect("any key length");
    mac.update(body);
    for condition in filter.conditions() {
        let mut values = condition.values;
        values.sort_unstable();
        mac.update(&[condition.field as u8]);
        mac.update(&(values.len() as u64).to_be_bytes());
        for value in values {
            mac.update(&(value.len() as u64).to_be_bytes());
            mac.update(value.as_bytes());
        }
    }
    let times = [
        filter.occurred.from,
        filter.occurred.to,
        filter.created.from,
        filter.created.to,
    ];
    let numbers = times
        .map(|t| t.map(|t| t.as_micros() as u64))
        .into_iter()
        .chain([filter.from_seq, filter.to_seq]);
    for number in numbers {
        mac.update(&[u8::from(number.is_some())]);
        mac.update(&number.unwrap_or(0).to_be_bytes());
    }
    if let Some(q) = &filter.q {
        mac.update(q.as_str().as_bytes());
    }
    mac
}
