//! Rows, decoded.

use std::str::FromStr;

use audit_core::tlog::{Hash, Kind, Timestamp};
use audit_core::{
    Entry, Error, ErrorKind, EventId, Fields, Json, Opening, Result, StoredEntry, TenantId,
};
use chrono::{DateTime, Utc};
use sqlx_core::decode::Decode;
use sqlx_core::error::BoxDynError;
use sqlx_core::row::Row as _;
use sqlx_core::types::Type;
use sqlx_core::value::ValueRef as _;
use sqlx_postgres::{PgRow, PgTypeInfo, PgValueRef, Postgres};
use uuid::Uuid;

use crate::fault::{Unreadable, from_sqlx};

/// The start of 2000, from which PostgreSQL counts, in microseconds since 1970.
pub(crate) const EPOCH: i64 = 946_684_800_000_000;

/// The columns that [`stored_entry`] reads, in its order.
pub(crate) const COLUMNS: &str = "seq, created_at, occurred_at, action_type, severity, outcome, \
    kind, leaf_hash, id, opening, action, ctl, user_id, actor_type, actor_name, on_behalf_of, \
    resource_type, resource_id, resource_name, related_resources, session_id, request_id, \
    trace_id, user_agent, host(ip_address), reason, before_state, after_state, metadata";

/// Where [`COLUMNS`] has raw JSON.
const RAW: [usize; 3] = [26, 27, 28];

/// Decodes [`COLUMNS`] by position, the first of them at `at`. The leaf is not recomputed.
///
/// # Errors
/// [`ErrorKind::Corrupt`] with tenant and position when a value can't be read.
pub(crate) fn stored_entry(row: &PgRow, at: usize, tenant: TenantId) -> Result<StoredEntry> {
    let seq = position(row, at).map_err(|e| e.with_tenant(tenant))?;
    decode(row, at, tenant, seq).map_err(|e| match e.kind() {
        ErrorKind::Corrupt => Error::corrupt(tenant, seq).with_source(e),
        _ => e,
    })
}

fn decode(row: &PgRow, at: usize, tenant: TenantId, seq: u64) -> Result<StoredEntry> {
    let mut fields = Fields::new(name(row, at + 3)?);
    fields.severity = name(row, at + 4)?;
    fields.outcome = name(row, at + 5)?;
    fields.action = text(row, at + 10)?.to_owned();
    let owned = |column: usize| -> Result<Option<String>> {
        Ok(optional_text(row, at + column)?.map(str::to_owned))
    };
    fields.user_id = owned(12)?;
    fields.actor_type = optional_name(row, at + 13)?;
    fields.actor_name = owned(14)?;
    fields.on_behalf_of = owned(15)?;
    fields.resource_type = owned(16)?;
    fields.resource_id = owned(17)?;
    fields.resource_name = owned(18)?;
    if let Some(related) = optional_text(row, at + 19)? {
        fields.related_resources = Fields::parse_related(related)
            .map_err(|e| bad("the list of resources").with_source(e))?;
    }
    fields.session_id = owned(20)?;
    fields.request_id = owned(21)?;
    fields.trace_id = owned(22)?;
    fields.user_agent = owned(23)?;
    fields.ip_address = optional_name(row, at + 24)?;
    fields.reason = owned(25)?;
    let json = |column: usize| -> Result<Option<Json>> {
        Ok(optional_text(row, at + column)?.map(Json::from_stored))
    };
    let [before, after, metadata] = RAW;
    fields.before_state = json(before)?;
    fields.after_state = json(after)?;
    fields.metadata = json(metadata)?;

    let id = EventId::new(get(row, at + 8)?);
    let created_at = time(get(row, at + 1)?)?;
    let mut entry = Entry::new(tenant, id, seq, created_at, fields);
    entry.occurred_at = time(get(row, at + 2)?)?;
    entry.kind = name::<Kind>(row, at + 6)?;
    entry.leaf_hash = hash(row, at + 7)?;
    entry.ctl = owned(11)?;
    let opening = Opening::from_bytes(get(row, at + 9)?).ok_or_else(|| bad("the opening"))?;
    Ok(StoredEntry { entry, opening })
}

/// A stored value that can't be what was written.
pub(crate) fn bad(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, "a stored value can't be read").with_source(Unreadable(what))
}

/// The value of a column.
pub(crate) fn get<'r, T>(row: &'r PgRow, column: usize) -> Result<T>
where
    T: Decode<'r, Postgres> + Type<Postgres>,
{
    row.try_get(column).map_err(from_sqlx)
}

/// The text of a column that is declared as one, or none. Asks the driver for no more than the bytes: an
/// entry has two dozen such columns, and to have the types compared takes as long as all else.
fn optional_text(row: &PgRow, column: usize) -> Result<Option<&str>> {
    let value = row.try_get_raw(column).map_err(from_sqlx)?;
    if value.is_null() {
        return Ok(None);
    }
    value.as_str().map(Some).map_err(|_| bad("the text"))
}

fn text(row: &PgRow, column: usize) -> Result<&str> {
    optional_text(row, column)?.ok_or_else(|| bad("the text"))
}

/// How much raw JSON there is in an entry whose first column is at `at`, whether it can be read or not.
pub(crate) fn raw_bytes(row: &PgRow, at: usize) -> Result<usize> {
    let mut bytes = 0;
    for column in RAW {
        let value = row.try_get_raw(at + column).map_err(from_sqlx)?;
        // A null has none.
        bytes += value.as_bytes().map_or(0, <[u8]>::len);
    }
    Ok(bytes)
}

/// A value of a vocabulary, by its name.
pub(crate) fn name<T: FromStr>(row: &PgRow, column: usize) -> Result<T> {
    text(row, column)?.parse().map_err(|_| bad("the name"))
}

fn optional_name<T: FromStr>(row: &PgRow, column: usize) -> Result<Option<T>> {
    optional_text(row, column)?
        .map(str::parse)
        .transpose()
        .map_err(|_| bad("the name"))
}

/// A position or a size.
pub(crate) fn position(row: &PgRow, column: usize) -> Result<u64> {
    unsigned(get(row, column)?)
}

/// A position or a size, as it is stored.
pub(crate) fn unsigned(stored: i64) -> Result<u64> {
    stored.try_into().map_err(|_| bad("the position"))
}

/// A position for a statement. Beyond what the database can count there is nothing.
pub(crate) fn signed(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

/// A hash.
pub(crate) fn hash(row: &PgRow, column: usize) -> Result<Hash> {
    Hash::from_slice(get(row, column)?).ok_or_else(|| bad("the hash"))
}

/// A fixed number of bytes.
pub(crate) fn bytes<const N: usize>(row: &PgRow, column: usize) -> Result<[u8; N]> {
    get::<&[u8]>(row, column)?
        .try_into()
        .map_err(|_| bad("the bytes"))
}

/// A fixed number of bytes, or none.
pub(crate) fn optional_bytes<const N: usize>(
    row: &PgRow,
    column: usize,
) -> Result<Option<[u8; N]>> {
    get::<Option<&[u8]>>(row, column)?
        .map(TryInto::try_into)
        .transpose()
        .map_err(|_| bad("the bytes"))
}

/// A tenant's id.
pub(crate) fn tenant_id(row: &PgRow, column: usize) -> Result<TenantId> {
    get::<Uuid>(row, column).map(TenantId::new)
}

/// A time, or none.
pub(crate) fn optional_time(row: &PgRow, column: usize) -> Result<Option<Timestamp>> {
    get::<Option<Micros>>(row, column)?.map(time).transpose()
}

/// A `timestamptz` as it is stored, microseconds from the start of 2000. One that somebody set beyond
/// the years that a library's own type can hold is read like any other, and refused by [`time`].
#[derive(Debug)]
pub(crate) struct Micros(i64);

impl Type<Postgres> for Micros {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl Decode<'_, Postgres> for Micros {
    fn decode(value: PgValueRef<'_>) -> std::result::Result<Self, BoxDynError> {
        <i64 as Decode<'_, Postgres>>::decode(value).map(Self)
    }
}

/// A time as it is read.
pub(crate) fn time(stored: Micros) -> Result<Timestamp> {
    stored
        .0
        .checked_add(EPOCH)
        .and_then(Timestamp::from_micros)
        .ok_or_else(|| bad("the time"))
}

/// A time for a statement.
pub(crate) fn instant(time: Timestamp) -> DateTime<Utc> {
    #[allow(clippy::expect_used)] // 1970 to 9999 is within chrono's range
    DateTime::from_timestamp_micros(time.as_micros()).expect("a time within range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_beyond_the_calendar_is_told_as_corrupt() {
        let second = 1_000_000;
        assert_eq!(
            time(Micros(-EPOCH + second)).unwrap(),
            Timestamp::from_micros(second).unwrap()
        );
        // The years 4714 BC and 294276, which the engine holds, and its two infinities.
        for stored in [
            -211_813_488_000_000_000,
            9_223_371_331_199_999_999,
            i64::MIN,
            i64::MAX,
        ] {
            assert_eq!(time(Micros(stored)).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
}
