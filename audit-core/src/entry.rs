//! What the log holds: entries as they are read, and the receipts for them.

use std::sync::Arc;

use audit_tlog::evidence::{EvidenceLine, LeafData};
use audit_tlog::leaf::{
    disclosure, disclosure_digest_with, leaf_hash, open_disclosure_with, salts,
};
use audit_tlog::{Control, Group, Hash, Kind, Leaf, Salt, Seed, Timestamp, json as text};

use crate::error::{Error, ErrorKind, FieldFault, Result};
use crate::event::{Fields, parse_ip, parse_related};
use crate::filter::Filter;
use crate::id::{EventId, TenantId};
use crate::json::Json;
use crate::page::Position;
use crate::prepare::PreparedEvent;

/// One entry of a tenant's log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Whose log.
    pub tenant_id: TenantId,
    /// Identity and idempotency key.
    pub id: EventId,
    /// Gap-free position in the tenant's log, from 0; the leaf's index in its Merkle tree.
    pub seq: u64,
    /// When the log accepted it. Never goes backwards within a tenant.
    pub created_at: Timestamp,
    /// When it happened, as the client says.
    pub occurred_at: Timestamp,
    /// An event, or which kind of control entry.
    pub kind: Kind,
    /// What a control entry says, as exact JSON text.
    pub ctl: Option<String>,
    /// The content, shared between copies of the entry. The fields of erased groups are absent.
    pub fields: Arc<Fields>,
    /// The hash that it was sealed with.
    pub leaf_hash: Hash,
    /// The groups that were destroyed.
    pub erased: Vec<Group>,
}

impl Entry {
    /// An event's entry; for a third-party store, which sets the rest of the fields itself.
    pub fn new(
        tenant_id: TenantId,
        id: EventId,
        seq: u64,
        created_at: Timestamp,
        fields: Fields,
    ) -> Self {
        Self {
            tenant_id,
            id,
            seq,
            created_at,
            occurred_at: created_at,
            kind: Kind::Event,
            ctl: None,
            fields: Arc::new(fields),
            leaf_hash: Hash([0; 32]),
            erased: Vec::new(),
        }
    }

    /// The entry that a prepared event became, as its receipt says.
    pub(crate) fn sealed(tenant_id: TenantId, event: &PreparedEvent, receipt: &Receipt) -> Self {
        Self {
            tenant_id,
            id: receipt.id,
            seq: receipt.seq,
            created_at: receipt.created_at,
            occurred_at: event.occurred_at(receipt.created_at),
            kind: event.kind(),
            ctl: event.ctl().map(str::to_owned),
            fields: event.shared_fields(),
            leaf_hash: receipt.leaf_hash,
            erased: Vec::new(),
        }
    }

    /// The content, to be changed: in this copy only.
    pub fn fields_mut(&mut self) -> &mut Fields {
        Arc::make_mut(&mut self.fields)
    }

    /// What a control entry says; none of an event, and of what this program can't read.
    pub fn control(&self) -> Option<Control> {
        Control::parse(self.kind, self.ctl.as_deref()?).ok()
    }

    /// Its place in a list.
    pub fn position(&self) -> Position {
        Position {
            seq: self.seq,
            created_at: self.created_at,
            occurred_at: self.occurred_at,
        }
    }

    /// Its JSON form on one line: a line break inside raw JSON, only ever insignificant there, is
    /// written as a space. A view, not evidence.
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(1024);
        self.write_json(&mut out);
        out
    }

    /// Appends what [`to_json`](Self::to_json) returns.
    pub fn write_json(&self, out: &mut String) {
        out.push('{');
        self.write_members(out);
        out.push('}');
    }

    /// Writes the members of the JSON form without braces.
    pub fn write_members(&self, out: &mut String) {
        out.push_str("\"id\":\"");
        self.id.write(out);
        out.push_str("\",\"tenant_id\":\"");
        self.tenant_id.write(out);
        out.push_str("\",\"seq\":");
        out.push_str(&self.seq.to_string());
        out.push_str(",\"created_at\":\"");
        self.created_at.write(out);
        out.push_str("\",\"occurred_at\":\"");
        self.occurred_at.write(out);
        out.push('"');
        if let (true, Some(ctl)) = (self.kind.is_control(), &self.ctl) {
            out.push_str(",\"kind\":\"");
            out.push_str(self.kind.as_str());
            out.push_str("\",\"ctl\":");
            out.push_str(ctl);
        }
        self.fields.write_members(out, text::write_compact_line);
        out.push_str(",\"leaf_hash\":\"");
        out.push_str(&self.leaf_hash.to_base64());
        out.push('"');
        if !self.erased.is_empty() {
            out.push_str(",\"erased\":[");
            for (i, group) in self.erased.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push('"');
                out.push_str(group.as_str());
                out.push('"');
            }
            out.push(']');
        }
    }

    /// Reads the JSON form. Names that it doesn't know are ignored, so that an older client reads a
    /// newer server.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] naming the field that can't be read.
    pub fn from_json(json: &str) -> Result<Self> {
        let bad = |field: &'static str| {
            Error::invalid(vec![FieldFault::new(field, "not that of an entry")])
                .with_kind(ErrorKind::Malformed)
        };
        let members = text::members(json).map_err(|_| bad("body"))?;
        let raw = |name: &str| members.iter().find(|m| m.name == name).map(|m| m.raw);
        let string = |name: &'static str| -> Result<Option<String>> {
            match raw(name) {
                None | Some("null") => Ok(None),
                Some(raw) => Ok(Some(text::string(raw).map_err(|_| bad(name))?.into_owned())),
            }
        };
        macro_rules! required {
            ($name:literal) => {
                string($name)?
                    .and_then(|t| t.parse().ok())
                    .ok_or_else(|| bad($name))?
            };
        }
        let time = |name: &'static str| -> Result<Timestamp> {
            string(name)?
                .and_then(|t| Timestamp::parse(&t).ok())
                .ok_or_else(|| bad(name))
        };
        let mut fields = Fields::new(required!("action_type"));
        fields.action = required!("action");
        fields.outcome = required!("outcome");
        fields.severity = required!("severity");
        fields.user_id = string("user_id")?;
        fields.actor_type = match string("actor_type")? {
            None => None,
            Some(t) => Some(t.parse().map_err(|_| bad("actor_type"))?),
        };
        fields.actor_name = string("actor_name")?;
        fields.on_behalf_of = string("on_behalf_of")?;
        fields.resource_type = string("resource_type")?;
        fields.resource_id = string("resource_id")?;
        fields.resource_name = string("resource_name")?;
        if let Some(raw) = raw("related_resources") {
            let mut faults = Vec::new();
            fields.related_resources = parse_related(raw, &mut faults);
            if !faults.is_empty() {
                return Err(bad("related_resources"));
            }
        }
        fields.session_id = string("session_id")?;
        fields.request_id = string("request_id")?;
        fields.trace_id = string("trace_id")?;
        fields.user_agent = string("user_agent")?;
        fields.ip_address = match string("ip_address")? {
            None => None,
            Some(ip) => Some(parse_ip(&ip).ok_or_else(|| bad("ip_address"))?),
        };
        fields.reason = string("reason")?;
        let json = |name: &str| raw(name).filter(|r| *r != "null").map(Json::from_stored);
        fields.before_state = json("before_state");
        fields.after_state = json("after_state");
        fields.metadata = json("metadata");
        let erased = match raw("erased") {
            None => Vec::new(),
            Some(raw) => text::items(raw)
                .map_err(|_| bad("erased"))?
                .into_iter()
                .map(|item| text::string(item).ok().and_then(|name| name.parse().ok()))
                .collect::<Option<Vec<Group>>>()
                .ok_or_else(|| bad("erased"))?,
        };
        Ok(Self {
            tenant_id: required!("tenant_id"),
            id: required!("id"),
            seq: raw("seq")
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| bad("seq"))?,
            created_at: time("created_at")?,
            occurred_at: time("occurred_at")?,
            kind: match string("kind")? {
                None => Kind::Event,
                Some(kind) => kind.parse().map_err(|_| bad("kind"))?,
            },
            ctl: raw("ctl").map(str::to_owned),
            leaf_hash: string("leaf_hash")?
                .and_then(|h| Hash::from_base64(&h))
                .ok_or_else(|| bad("leaf_hash"))?,
            fields: Arc::new(fields),
            erased,
        })
    }

    /// Whether the filter shows it.
    pub fn matches(&self, filter: &Filter) -> bool {
        filter.matches(self)
    }
}

/// The proof that an event was taken: given out only after it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The event.
    pub id: EventId,
    /// Its position.
    pub seq: u64,
    /// The hash that it was sealed with (RFC 6962 §2.1 leaf hash).
    pub leaf_hash: Hash,
    /// When the log accepted it; a repeat's is the first one's.
    pub created_at: Timestamp,
    /// The number of entries in the log at the time of this receipt.
    pub tree_size: u64,
    /// The root of the tree of that size.
    pub root: Hash,
    /// Whether the same event had been recorded before.
    pub duplicate: bool,
}

impl Receipt {
    /// A receipt, for a third-party store.
    pub fn new(id: EventId, seq: u64, leaf_hash: Hash, created_at: Timestamp) -> Self {
        Self {
            id,
            seq,
            leaf_hash,
            created_at,
            tree_size: seq + 1,
            root: leaf_hash,
            duplicate: false,
        }
    }

    /// States the head that it is given under.
    #[must_use]
    pub fn under(mut self, tree_size: u64, root: Hash) -> Self {
        self.tree_size = tree_size;
        self.root = root;
        self
    }

    /// Marks it as a repeat's.
    #[must_use]
    pub fn repeated(mut self) -> Self {
        self.duplicate = true;
        self
    }

    /// Appends its members as JSON, without braces.
    pub fn write_members(&self, out: &mut String) {
        out.push_str("\"id\":\"");
        self.id.write(out);
        out.push_str("\",\"seq\":");
        out.push_str(&self.seq.to_string());
        out.push_str(",\"leaf_hash\":\"");
        out.push_str(&self.leaf_hash.to_base64());
        out.push_str("\",\"created_at\":\"");
        self.created_at.write(out);
        out.push_str("\",\"tree_size\":");
        out.push_str(&self.tree_size.to_string());
        out.push_str(",\"root\":\"");
        out.push_str(&self.root.to_base64());
        out.push_str("\",\"duplicate\":");
        out.push_str(if self.duplicate { "true" } else { "false" });
    }

    /// Its JSON form.
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(256);
        out.push('{');
        self.write_members(&mut out);
        out.push('}');
        out
    }

    /// Reads the JSON form; names that it doesn't know are ignored.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] for any other text.
    pub fn from_json(json: &str) -> Result<Self> {
        let bad = || Error::new(ErrorKind::Malformed, "not a receipt");
        let members = text::members(json).map_err(|_| bad())?;
        let raw = |name: &str| {
            members
                .iter()
                .find(|m| m.name == name)
                .map(|m| m.raw)
                .ok_or_else(bad)
        };
        let string = |name: &str| text::string(raw(name)?).map_err(|_| bad());
        let hash = |name: &str| Hash::from_base64(&string(name)?).ok_or_else(bad);
        Ok(Self {
            id: string("id")?.parse().map_err(|_| bad())?,
            seq: raw("seq")?.parse().map_err(|_| bad())?,
            leaf_hash: hash("leaf_hash")?,
            created_at: Timestamp::parse(&string("created_at")?).map_err(|_| bad())?,
            tree_size: raw("tree_size")?.parse().map_err(|_| bad())?,
            root: hash("root")?,
            duplicate: raw("duplicate")? == "true",
        })
    }
}

/// What opens an entry's digests: kept beside the columns, never shown to a reader.
#[derive(Debug, Clone)]
pub enum Opening {
    /// Nothing was erased: all salts follow from the seed.
    Seed(Seed),
    /// Something was erased, so the seed is gone: the digests of all groups, and the salts of those
    /// that are left.
    Salts {
        /// As they stand in the leaf.
        digests: Box<[Option<Hash>; 7]>,
        /// Absent where the group is, or was erased.
        salts: Box<[Option<Salt>; 7]>,
    },
}

impl Opening {
    /// The salts of the groups that it opens.
    fn salts(&self) -> [Option<Salt>; 7] {
        match self {
            Self::Seed(seed) => salts(seed).map(Some),
            Self::Salts { salts, .. } => **salts,
        }
    }

    /// Its stored form, one blob.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Seed(seed) => [&[1], seed.as_bytes().as_slice()].concat(),
            Self::Salts { digests, salts } => {
                let mut out = vec![2];
                for (digest, salt) in digests.iter().zip(salts.iter()) {
                    out.push(u8::from(digest.is_some()) | u8::from(salt.is_some()) << 1);
                    out.extend(digest.iter().flat_map(|d| d.0));
                    out.extend(salt.iter().flat_map(|s| s.0));
                }
                out
            }
        }
    }

    /// Reads the stored form; none for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tag, mut rest) = bytes.split_first()?;
        match tag {
            1 => Some(Self::Seed(Seed::new(rest.try_into().ok()?))),
            2 => {
                let mut digests = Box::new([None; 7]);
                let mut salts = Box::new([None; 7]);
                for i in 0..7 {
                    let (flags, tail) = rest.split_first()?;
                    rest = tail;
                    if flags & !3 != 0 {
                        return None;
                    }
                    if flags & 1 != 0 {
                        let (digest, tail) = rest.split_at_checked(32)?;
                        digests[i] = Hash::from_slice(digest);
                        rest = tail;
                    }
                    if flags & 2 != 0 {
                        let (salt, tail) = rest.split_at_checked(16)?;
                        salts[i] = Some(Salt(salt.try_into().ok()?));
                        rest = tail;
                    }
                }
                rest.is_empty().then_some(Self::Salts { digests, salts })
            }
            _ => None,
        }
    }
}

/// An entry with what proves it: its leaf data, and what opens each of its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evidence {
    /// The entry, as readers are shown it.
    pub entry: Entry,
    /// The leaf data, in format v1.
    pub leaf: String,
    /// The disclosures (RFC 9901 §4.2) of the groups that it still has, in the leaf format's order.
    pub disclosures: [Option<String>; 7],
}

/// An entry with what opens it: what a store reads from its columns.
#[derive(Debug, Clone)]
pub struct StoredEntry {
    /// The columns. `erased` need not be filled.
    pub entry: Entry,
    /// What opens it.
    pub opening: Opening,
}

impl StoredEntry {
    /// The digests as they stand in the leaf: computed from what is left of the content, taken as
    /// stored where a group was erased.
    pub fn digests(&self) -> [Option<Hash>; 7] {
        let mut buffer = Vec::with_capacity(1024);
        let salts = self.opening.salts();
        let stored = match &self.opening {
            Opening::Seed(_) => None,
            Opening::Salts { digests, .. } => Some(digests),
        };
        let mut digests = [None; 7];
        for group in Group::ALL {
            let i = group.index();
            digests[i] = match (self.entry.fields.group_value(group), salts[i]) {
                (Some(value), salt) => {
                    // Content without a salt can't be what was sealed: under a salt that no seed
                    // gives, its digest differs from any, and from none.
                    let salt = salt.unwrap_or(Salt([0; 16]));
                    Some(disclosure_digest_with(&mut buffer, &salt, group, &value))
                }
                // Nor can nothing be, where there is a salt for something.
                (None, Some(_)) => None,
                (None, None) => stored.and_then(|digests| digests[i]),
            };
        }
        digests
    }

    /// The leaf data (RFC 6962 `leaf_input` of this log's format), from the very columns that a
    /// reader is shown.
    pub fn leaf_data(&self) -> String {
        leaf_data(&self.entry, &self.digests())
    }

    /// The entry with the groups that are gone named in `erased`, without checking it.
    pub fn into_entry(self) -> Entry {
        let mut entry = self.entry;
        if let Opening::Salts { digests, salts } = &self.opening {
            entry.erased = Group::ALL
                .into_iter()
                .filter(|g| digests[g.index()].is_some() && salts[g.index()].is_none())
                .collect();
        }
        entry
    }

    /// The entry, after recomputing its leaf from the columns.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] with tenant and position when it differs from the hash it was sealed
    /// with.
    pub fn verify(self) -> Result<Entry> {
        if leaf_hash(self.leaf_data().as_bytes()) == self.entry.leaf_hash {
            Ok(self.into_entry())
        } else {
            Err(Error::corrupt(self.entry.tenant_id, self.entry.seq))
        }
    }

    /// The entry as evidence, without checking it: a verifier does that.
    pub fn into_evidence(self) -> Evidence {
        let digests = self.digests();
        let leaf = leaf_data(&self.entry, &digests);
        let salts = self.opening.salts();
        let disclosures = Group::ALL.map(|group| {
            let salt = salts[group.index()]?;
            let value = self.entry.fields.group_value(group)?;
            Some(disclosure(&salt, group, &value))
        });
        Evidence {
            entry: self.into_entry(),
            leaf,
            disclosures,
        }
    }

    /// Destroys `groups`: clears their fields, and replaces the seed by the digests of all groups
    /// and the salts of those that are left. Returns the groups that went, which may be fewer.
    pub fn erase(&mut self, groups: &[Group]) -> Vec<Group> {
        let digests = self.digests();
        let mut salts = self.opening.salts();
        let mut gone = Vec::new();
        for group in Group::ALL {
            let i = group.index();
            if digests[i].is_none() {
                salts[i] = None;
            } else if groups.contains(&group) && salts[i].take().is_some() {
                self.entry.fields_mut().clear(group);
                gone.push(group);
            }
        }
        if !gone.is_empty() {
            self.opening = Opening::Salts {
                digests: Box::new(digests),
                salts: Box::new(salts),
            };
        }
        gone
    }
}

impl Entry {
    /// The entry of an evidence line, as a reader is shown it: what
    /// [`into_evidence`](StoredEntry::into_evidence) wrote, read back, and as little checked.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a line that no log of this format writes.
    pub(crate) fn from_evidence(line: &EvidenceLine<'_>) -> Result<Self> {
        let bad = || {
            Error::new(ErrorKind::Corrupt, "a line of evidence can't be read")
                .with_position(line.seq)
        };
        let leaf = LeafData::parse(&line.leaf).map_err(|fault| bad().with_source(fault))?;
        let mut fields = Fields::new(leaf.action_type.parse().map_err(|_| bad())?);
        leaf.action.clone_into(&mut fields.action);
        fields.outcome = leaf.outcome.parse().map_err(|_| bad())?;
        fields.severity = leaf.severity.parse().map_err(|_| bad())?;
        let mut buffer = Vec::new();
        let mut erased = Vec::new();
        for group in Group::ALL {
            match &line.disclosures[group.index()] {
                Some(disclosed) => {
                    let (_, named, value) =
                        open_disclosure_with(&mut buffer, disclosed).ok_or_else(bad)?;
                    if named != group {
                        return Err(bad());
                    }
                    fields.set_group(group, value).ok_or_else(bad)?;
                }
                None if leaf.digests[group.index()].is_some() => erased.push(group),
                None => {}
            }
        }
        Ok(Self {
            tenant_id: TenantId::new(leaf.tenant_id),
            id: EventId::new(leaf.id),
            seq: line.seq,
            created_at: leaf.created_at,
            occurred_at: leaf.occurred_at,
            kind: leaf.kind,
            ctl: leaf.control.as_ref().map(Control::to_json),
            fields: Arc::new(fields),
            leaf_hash: leaf_hash(line.leaf.as_bytes()),
            erased,
        })
    }
}

pub(crate) fn leaf_data(entry: &Entry, digests: &[Option<Hash>; 7]) -> String {
    Leaf {
        kind: entry.kind,
        tenant_id: entry.tenant_id.into_uuid(),
        id: entry.id.into_uuid(),
        created_at: entry.created_at,
        occurred_at: entry.occurred_at,
        action_type: entry.fields.action_type.as_str(),
        action: &entry.fields.action,
        outcome: entry.fields.outcome.as_str(),
        severity: entry.fields.severity.as_str(),
        ctl: entry.ctl.as_deref(),
        digests,
    }
    .encode()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;
    use crate::event::{ActionType, ActorType, Outcome, RelatedResource, Severity};

    /// What a text may hold.
    const ANY: &str = r"[^\x00]{0,8}";

    fn related() -> impl Strategy<Value = RelatedResource> {
        (ANY, ANY, of(ANY)).prop_map(|(kind, id, name)| RelatedResource { kind, id, name })
    }

    fn raw_json() -> impl Strategy<Value = Json> {
        prop_oneof![
            Just("{ \"a\" : [1e2, 9007199254740993] }"),
            Just("[]"),
            Just("\"\\u00e9\""),
        ]
        .prop_map(Json::from_stored)
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(|octets| IpAddr::from(octets).to_canonical()),
        ]
    }

    fn fields() -> impl Strategy<Value = Fields> {
        let text = || of(ANY);
        let actor = (text(), of(Just(ActorType::Service)), text(), text());
        let resource = (text(), text(), text(), vec(related(), 0..3));
        let context = (text(), text(), text(), text(), of(address()));
        let rest = (text(), of(raw_json()), of(raw_json()), of(raw_json()));
        (actor, resource, context, rest).prop_map(|(actor, resource, context, rest)| {
            let mut fields = Fields::new(ActionType::Update);
            fields.action = "invoice.approve".to_owned();
            fields.outcome = Outcome::Denied;
            fields.severity = Severity::Critical;
            (
                fields.user_id,
                fields.actor_type,
                fields.actor_name,
                fields.on_behalf_of,
            ) = actor;
            (
                fields.resource_type,
                fields.resource_id,
                fields.resource_name,
                fields.related_resources,
            ) = resource;
            (
                fields.session_id,
                fields.request_id,
                fields.trace_id,
                fields.user_agent,
                fields.ip_address,
            ) = context;
            (
                fields.reason,
                fields.before_state,
                fields.after_state,
                fields.metadata,
            ) = rest;
            fields
        })
    }

    proptest! {
        #[test]
        fn an_entry_is_read_from_its_evidence_as_it_was(
            fields in fields(),
            seed in any::<[u8; 32]>(),
            erased in any::<u8>(),
            seq in 0_u64..1 << 53,
        ) {
            let tenant = TenantId::new(uuid::Uuid::from_u128(1));
            let id = EventId::new(uuid::Uuid::from_u128(2));
            let created_at = Timestamp::saturating_from_micros(1_767_225_600_123_456);
            let mut entry = Entry::new(tenant, id, seq, created_at, fields);
            entry.occurred_at = Timestamp::saturating_from_micros(7);
            let opening = Opening::Seed(Seed::new(seed));
            let mut stored = StoredEntry { entry, opening };
            stored.entry.leaf_hash = leaf_hash(stored.leaf_data().as_bytes());
            let gone = Group::ALL.into_iter().filter(|g| erased >> g.index() & 1 == 1);
            stored.erase(&gone.collect::<Vec<_>>());
            let evidence = stored.into_evidence();
            let line = EvidenceLine {
                seq,
                leaf: evidence.leaf.into(),
                disclosures: evidence.disclosures.map(|text| text.map(Into::into)),
            };
            prop_assert_eq!(Entry::from_evidence(&line).unwrap(), evidence.entry);
        }
    }

    #[test]
    fn a_control_entry_is_read_from_its_evidence_with_what_it_says() {
        let control = Control::Erase {
            groups: vec![Group::Actor],
            entries: vec![(1, 2)],
            basis: audit_tlog::Basis::parse("gdpr-17").unwrap(),
        };
        let mut fields = Fields::new(ActionType::Other);
        fields.action = "log.erase".to_owned();
        fields.reason = Some("request 7".to_owned());
        let tenant = TenantId::new(uuid::Uuid::from_u128(1));
        let id = EventId::new(uuid::Uuid::from_u128(2));
        let mut entry = Entry::new(tenant, id, 3, Timestamp::saturating_from_micros(7), fields);
        entry.kind = Kind::Erase;
        entry.ctl = Some(control.to_json());
        let opening = Opening::Seed(Seed::new([7; 32]));
        let mut stored = StoredEntry { entry, opening };
        stored.entry.leaf_hash = leaf_hash(stored.leaf_data().as_bytes());
        let evidence = stored.into_evidence();
        let mut line = EvidenceLine {
            seq: 3,
            leaf: evidence.leaf.into(),
            disclosures: evidence.disclosures.map(|text| text.map(Into::into)),
        };
        let read = Entry::from_evidence(&line).unwrap();
        assert_eq!(read, evidence.entry);
        assert_eq!(read.control(), Some(control));
        // A disclosure in another's place is none.
        line.disclosures.swap(0, Group::Reason.index());
        let refused = Entry::from_evidence(&line).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
    }
}
