//! Rows for `COPY … FROM STDIN (FORMAT binary)`: every value with its length before it, so that
//! nothing needs to be escaped.

use std::net::IpAddr;

use audit_core::tlog::Timestamp;
use audit_core::{Opening, Row, TenantId};
use uuid::Uuid;

use crate::row;

/// What [`Rows::finish`] gives is for this statement.
pub(crate) const COPY_EVENTS: &str = "COPY audit.events (tenant_id, seq, created_at, occurred_at, \
    id, action_type, severity, outcome, kind, leaf_hash, opening, action, ctl, user_id, actor_type, \
    actor_name, on_behalf_of, resource_type, resource_id, resource_name, related_resources, \
    session_id, request_id, trace_id, user_agent, ip_address, reason, before_state, after_state, \
    metadata) FROM STDIN (FORMAT binary)";

const COLUMNS: u16 = 30;

/// The signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Families of `inet`, as PostgreSQL numbers them on every platform.
const IPV4: u8 = 2;
const IPV6: u8 = 3;

/// Encodes rows of `events`.
pub(crate) struct Rows {
    out: Vec<u8>,
}

impl Rows {
    /// An empty one, which holds about so many bytes without growing.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        let mut out = Vec::with_capacity(bytes);
        out.extend_from_slice(HEADER);
        Self { out }
    }

    /// Adds a sealed row.
    pub(crate) fn push(&mut self, tenant: TenantId, row: &Row<'_>) {
        let (event, f) = (row.event, row.event.fields());
        self.out.extend(COLUMNS.to_be_bytes());
        self.uuid(tenant.as_uuid());
        self.integer(row.seq as i64);
        self.time(row.created_at);
        self.time(row.occurred_at);
        self.uuid(event.id().as_uuid());
        self.text(f.action_type.as_str());
        self.text(f.severity.as_str());
        self.text(f.outcome.as_str());
        self.text(event.kind().as_str());
        self.bytes(row.leaf_hash.as_bytes());
        self.bytes(&Opening::Seed(event.seed().clone()).to_bytes());
        self.text(&f.action);
        self.optional(event.ctl());
        self.optional(f.user_id.as_deref());
        self.optional(f.actor_type.map(|t| t.as_str()));
        self.optional(f.actor_name.as_deref());
        self.optional(f.on_behalf_of.as_deref());
        self.optional(f.resource_type.as_deref());
        self.optional(f.resource_id.as_deref());
        self.optional(f.resource_name.as_deref());
        if f.related_resources.is_empty() {
            self.null();
        } else {
            let mut related = String::new();
            f.write_related(&mut related);
            self.text(&related);
        }
        self.optional(f.session_id.as_deref());
        self.optional(f.request_id.as_deref());
        self.optional(f.trace_id.as_deref());
        self.optional(f.user_agent.as_deref());
        self.address(f.ip_address);
        self.optional(f.reason.as_deref());
        for json in [&f.before_state, &f.after_state, &f.metadata] {
            self.optional(json.as_ref().map(|j| j.as_str()));
        }
    }

    /// The whole, with its trailer.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.out.extend((-1_i16).to_be_bytes());
        self.out
    }

    fn bytes(&mut self, value: &[u8]) {
        // Of a field's largest value, which is far below the format's limit of 2 GiB.
        self.out.extend((value.len() as u32).to_be_bytes());
        self.out.extend_from_slice(value);
    }

    fn null(&mut self) {
        self.out.extend((-1_i32).to_be_bytes());
    }

    fn uuid(&mut self, value: &Uuid) {
        self.bytes(value.as_bytes());
    }

    fn integer(&mut self, value: i64) {
        self.bytes(&value.to_be_bytes());
    }

    fn time(&mut self, value: Timestamp) {
        self.integer(value.as_micros() - row::EPOCH);
    }

    fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    fn optional(&mut self, value: Option<&str>) {
        match value {
            Some(value) => self.text(value),
            None => self.null(),
        }
    }

    /// Family, bits of the network, whether it is one, octets with their number before them.
    fn address(&mut self, value: Option<IpAddr>) {
        match value {
            None => self.null(),
            Some(IpAddr::V4(address)) => {
                self.bytes(&[&[IPV4, 32, 0, 4], address.octets().as_slice()].concat());
            }
            Some(IpAddr::V6(address)) => {
                self.bytes(&[&[IPV6, 128, 0, 16], address.octets().as_slice()].concat());
            }
        }
    }
}
