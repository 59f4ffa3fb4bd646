//! Rows of `entries`, decoded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use audit_core::tlog::{Hash, Kind, Timestamp};
use audit_core::{Entry, EventId, Fields, Json, Opening, StoredEntry, TenantId};
use rusqlite::Row;
use rusqlite::types::{FromSqlError, Type, ValueRef};
use uuid::Uuid;

use crate::fault::is_unreadable;

/// The columns that [`stored_entry`] reads, in its order.
pub(crate) const COLUMNS: &str = "seq, created_at, occurred_at, action_type, severity, outcome, \
    kind, leaf_hash, id, opening, action, ctl, user_id, actor_type, actor_name, on_behalf_of, \
    resource_type, resource_id, resource_name, related_resources, session_id, request_id, \
    trace_id, user_agent, ip_address, reason, before_state, after_state, metadata";

/// Decodes a row of [`COLUMNS`] by position. Its leaf is not recomputed. What can't be read is an
/// [`UnreadableEntry`].
pub(crate) fn stored_entry(row: &Row<'_>, tenant: TenantId) -> rusqlite::Result<StoredEntry> {
    let seq = position(row, 0)?;
    about(tenant, seq, decode(row, tenant, seq))
}

/// What a row says of an entry: that it can't be read is told of the entry, as an [`UnreadableEntry`].
pub(crate) fn about<T>(
    tenant: TenantId,
    seq: u64,
    read: rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    read.map_err(|cause| match is_unreadable(&cause) {
        true => bad(0, Type::Null, UnreadableEntry { tenant, seq, cause }),
        false => cause,
    })
}

fn decode(row: &Row<'_>, tenant: TenantId, seq: u64) -> rusqlite::Result<StoredEntry> {
    let mut fields = Fields::new(name(row, 3)?);
    fields.severity = name(row, 4)?;
    fields.outcome = name(row, 5)?;
    fields.action = row.get(10)?;
    fields.user_id = row.get(12)?;
    fields.actor_type = optional_name(row, 13)?;
    fields.actor_name = row.get(14)?;
    fields.on_behalf_of = row.get(15)?;
    fields.resource_type = row.get(16)?;
    fields.resource_id = row.get(17)?;
    fields.resource_name = row.get(18)?;
    if let Some(related) = optional(row, 19)? {
        fields.related_resources =
            Fields::parse_related(related).map_err(|e| bad(19, Type::Text, e))?;
    }
    fields.session_id = row.get(20)?;
    fields.request_id = row.get(21)?;
    fields.trace_id = row.get(22)?;
    fields.user_agent = row.get(23)?;
    fields.ip_address = address(row, 24)?;
    fields.reason = row.get(25)?;
    fields.before_state = optional(row, 26)?.map(Json::from_stored);
    fields.after_state = optional(row, 27)?.map(Json::from_stored);
    fields.metadata = optional(row, 28)?.map(Json::from_stored);

    let mut entry = Entry::new(tenant, event_id(row, 8)?, seq, time(row, 1)?, fields);
    entry.occurred_at = time(row, 2)?;
    entry.kind = name::<Kind>(row, 6)?;
    entry.leaf_hash = hash(row, 7)?;
    entry.ctl = row.get(11)?;
    let opening = Opening::from_bytes(blob(row, 9)?)
        .ok_or_else(|| bad(9, Type::Blob, Unreadable("the opening")))?;
    Ok(StoredEntry { entry, opening })
}

/// The row of an entry, of which a value can't be what was written.
#[derive(Debug)]
pub(crate) struct UnreadableEntry {
    pub(crate) tenant: TenantId,
    pub(crate) seq: u64,
    cause: rusqlite::Error,
}

impl UnreadableEntry {
    /// The one that an error is about.
    pub(crate) fn of(error: &rusqlite::Error) -> Option<&Self> {
        match error {
            rusqlite::Error::FromSqlConversionFailure(_, _, cause) => cause.downcast_ref(),
            _ => None,
        }
    }
}

impl std::fmt::Display for UnreadableEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the row of position {} can't be read", self.seq)
    }
}

impl std::error::Error for UnreadableEntry {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// A stored value that this program doesn't know.
#[derive(Debug)]
struct Unreadable(&'static str);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} can't be read", self.0)
    }
}

impl std::error::Error for Unreadable {}

/// A stored value that can't be what was written.
pub(crate) fn bad(
    column: usize,
    kind: Type,
    cause: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, kind, Box::new(cause))
}

fn wrong_type(column: usize, value: ValueRef<'_>) -> rusqlite::Error {
    bad(column, value.data_type(), FromSqlError::InvalidType)
}

fn text<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<&'a str> {
    let value = row.get_ref(column)?;
    value.as_str().map_err(|_| wrong_type(column, value))
}

fn optional<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<Option<&'a str>> {
    let value = row.get_ref(column)?;
    value
        .as_str_or_null()
        .map_err(|_| wrong_type(column, value))
}

fn blob<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    let value = row.get_ref(column)?;
    value.as_blob().map_err(|_| wrong_type(column, value))
}

/// A value of a vocabulary, by its name.
pub(crate) fn name<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    text(row, column)?
        .parse()
        .map_err(|_| bad(column, Type::Text, Unreadable("the name")))
}

fn optional_name<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    optional(row, column)?
        .map(str::parse)
        .transpose()
        .map_err(|_| bad(column, Type::Text, Unreadable("the name")))
}

/// A position or a size.
pub(crate) fn position(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column)?
        .try_into()
        .map_err(|e| bad(column, Type::Integer, e))
}

/// A position or a size that may be absent.
pub(crate) fn optional_position(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => position(row, column).map(Some),
    }
}

/// A time.
pub(crate) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_micros(row.get(column)?)
        .ok_or_else(|| bad(column, Type::Integer, Unreadable("the time")))
}

/// A time, or none.
pub(crate) fn optional_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => time(row, column).map(Some),
    }
}

/// A hash.
pub(crate) fn hash(row: &Row<'_>, column: usize) -> rusqlite::Result<Hash> {
    Hash::from_slice(blob(row, column)?)
        .ok_or_else(|| bad(column, Type::Blob, Unreadable("the hash")))
}

/// A fixed number of bytes.
pub(crate) fn bytes<const N: usize>(row: &Row<'_>, column: usize) -> rusqlite::Result<[u8; N]> {
    blob(row, column)?
        .try_into()
        .map_err(|e| bad(column, Type::Blob, e))
}

/// A fixed number of bytes, or none.
pub(crate) fn optional_bytes<const N: usize>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<[u8; N]>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => bytes(row, column).map(Some),
    }
}

/// An event's id.
pub(crate) fn event_id(row: &Row<'_>, column: usize) -> rusqlite::Result<EventId> {
    bytes(row, column).map(|b| EventId::new(Uuid::from_bytes(b)))
}

/// A tenant's id.
pub(crate) fn tenant_id(row: &Row<'_>, column: usize) -> rusqlite::Result<TenantId> {
    bytes(row, column).map(|b| TenantId::new(Uuid::from_bytes(b)))
}

fn address(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<IpAddr>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        ValueRef::Blob(octets) => {
            let v4 = <[u8; 4]>::try_from(octets).map(|o| Ipv4Addr::from(o).into());
            v4.or_else(|_| <[u8; 16]>::try_from(octets).map(|o| Ipv6Addr::from(o).into()))
                .map(Some)
                .map_err(|e| bad(column, Type::Blob, e))
        }
        other => Err(wrong_type(column, other)),
    }
}

/// An address as it is stored: its 4 or 16 octets.
pub(crate) fn octets(address: Option<IpAddr>) -> Option<Vec<u8>> {
    address.map(|address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    })
}
