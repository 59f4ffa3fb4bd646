//! From an event to a prepared one: all the work that needs no lock.

use std::fmt::Debug;
use std::sync::Arc;

use audit_tlog::leaf::{content_key, content_tag, disclosure_digest_with, salts};
use audit_tlog::{Control, Group, Hash, Kind, Seed, Timestamp, json as text};

use crate::clock::Clock;
use crate::error::{Error, FieldFault, Result};
use crate::event::{ActionType, ActorType, Event, Fields, limits, text_fault};
use crate::id::{EventId, TenantId};
use crate::scope::TenantScope;

/// Takes data out of events before they are stored, queued or put into an outbox.
///
/// A changed rule changes the content that later events are compared by: a retry, under the new
/// rule, of an event that was recorded under the old one is a conflict.
#[cfg_attr(feature = "mock", mockall::automock)]
pub trait Redact: Debug + Send + Sync + 'static {
    /// Changes the fields in place. Limits are checked again afterwards.
    fn redact(&self, tenant: TenantId, fields: &mut Fields);
}

/// A validated, redacted event with its id, seed and digests: all that needs no lock.
///
/// It can't be serialised: the seed never leaves the store. Queue and outbox carry the request, and
/// whoever appends prepares it.
#[derive(Debug, Clone)]
pub struct PreparedEvent {
    tenant: TenantId,
    id: EventId,
    kind: Kind,
    ctl: Option<String>,
    fields: Arc<Fields>,
    occurred_at: Option<Timestamp>,
    accepted_at: Option<Timestamp>,
    seed: Seed,
    digests: [Option<Hash>; 7],
    content: Content,
}

/// By which two requests under one id are told to be the same: a keyed tag over the canonical
/// request, with the key that it was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// The key, from the first entry's seed.
    pub key: [u8; 16],
    /// The tag of the first request under that key.
    pub tag: [u8; 16],
}

impl PreparedEvent {
    /// Validates and redacts an event for `tenant`, gives it an id when it has none, and computes
    /// all digests.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with every bad field.
    pub fn new(
        tenant: TenantId,
        event: Event,
        clock: &dyn Clock,
        redactors: &[Arc<dyn Redact>],
    ) -> Result<Self> {
        let Event {
            id,
            tenant_id,
            occurred_at,
            action_is_default,
            mut fields,
            mut faults,
            reserved_action,
        } = event;
        if tenant_id.is_some_and(|t| t != tenant) {
            faults.push(FieldFault::new(
                "tenant_id",
                "differs from the tenant that is recorded for",
            ));
        }
        if action_is_default {
            fields.action = fields.action_type.as_str().to_ascii_lowercase();
        }
        if fields.actor_type.is_none() && fields.user_id.is_some() {
            fields.actor_type = Some(ActorType::User);
        }
        fields.validate(reserved_action, &mut faults);
        if faults.is_empty() && !redactors.is_empty() {
            for redactor in redactors {
                redactor.redact(tenant, &mut fields);
            }
            // As everywhere else on the way in: what is hashed is what is read back.
            fields.ip_address = fields.ip_address.map(|ip| ip.to_canonical());
            for raw in [
                &mut fields.before_state,
                &mut fields.after_state,
                &mut fields.metadata,
            ] {
                raw.take_if(|json| json.is_null());
            }
            fields.validate(reserved_action, &mut faults);
        }
        let id = id.unwrap_or_else(|| clock.event_id());
        if !faults.is_empty() {
            return Err(Error::invalid(faults).with_event_id(id));
        }
        Ok(Self::finish(
            tenant,
            id,
            Kind::Event,
            None,
            fields,
            occurred_at,
            clock.seed(),
        ))
    }

    /// A control entry. The log fills in `action`, `resource_type` and `resource_id`.
    fn control(tenant: TenantId, control: &Control, id: EventId, act: &Act) -> Self {
        let kind = control.kind();
        let mut fields = Fields::new(ActionType::Other);
        fields.action = format!("log.{}", kind.as_str());
        fields.resource_type = Some("audit_log".into());
        fields.resource_id = Some(tenant.to_string());
        fields.user_id = Some(act.subject.clone());
        fields.actor_type = Some(act.actor_type);
        fields.reason = act.reason.clone();
        Self::finish(
            tenant,
            id,
            kind,
            Some(control.to_json()),
            fields,
            None,
            act.clock.seed(),
        )
    }

    fn finish(
        tenant: TenantId,
        id: EventId,
        kind: Kind,
        ctl: Option<String>,
        fields: Fields,
        occurred_at: Option<Timestamp>,
        seed: Seed,
    ) -> Self {
        let mut buffer = Vec::with_capacity(1024);
        let mut digests = [None; 7];
        let salts = salts(&seed);
        for group in Group::ALL {
            if let Some(value) = fields.group_value(group) {
                let salt = &salts[group.index()];
                digests[group.index()] =
                    Some(disclosure_digest_with(&mut buffer, salt, group, &value));
            }
        }
        let mut prepared = Self {
            tenant,
            id,
            kind,
            ctl,
            fields: Arc::new(fields),
            occurred_at,
            accepted_at: None,
            content: Content {
                key: content_key(&seed),
                tag: [0; 16],
            },
            seed,
            digests,
        };
        prepared.content.tag = prepared.tag_under(&prepared.content.key);
        prepared
    }

    /// States when it was accepted by a queue or an outbox: the default of `occurred_at`, instead of
    /// the time of appending.
    #[must_use]
    pub fn accepted_at(mut self, at: Timestamp) -> Self {
        self.accepted_at = Some(at);
        self
    }

    /// When a queue or an outbox accepted it.
    pub(crate) fn accepted(&self) -> Option<Timestamp> {
        self.accepted_at
    }

    /// The tenant that it was prepared for, in whose log alone it may be.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Its id.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// An event, or which kind of control entry.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A control entry's `ctl`.
    pub fn ctl(&self) -> Option<&str> {
        self.ctl.as_deref()
    }

    /// Its content.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Its content, for the entry that it becomes.
    pub(crate) fn shared_fields(&self) -> Arc<Fields> {
        Arc::clone(&self.fields)
    }

    /// The seed that a store keeps with the entry.
    pub fn seed(&self) -> &Seed {
        &self.seed
    }

    /// The digests of its groups.
    pub fn digests(&self) -> &[Option<Hash>; 7] {
        &self.digests
    }

    /// What a store keeps to compare repeats by.
    pub fn content(&self) -> Content {
        self.content
    }

    /// When it happened, given when the log accepts it.
    pub fn occurred_at(&self, created_at: Timestamp) -> Timestamp {
        self.occurred_at.or(self.accepted_at).unwrap_or(created_at)
    }

    /// Whether this is the same request as the one that `known` was made of.
    pub fn same_content(&self, known: &Content) -> bool {
        use subtle::ConstantTimeEq as _;
        self.tag_under(&known.key).ct_eq(&known.tag).into()
    }

    fn tag_under(&self, key: &[u8; 16]) -> [u8; 16] {
        content_tag(key, self.canonical_request().as_bytes())
    }

    /// The canonical request: one JSON object without white space, in the order of the event's
    /// fields, raw JSON with sorted keys and number tokens as they stand.
    pub fn canonical_request(&self) -> String {
        let mut out = String::with_capacity(self.size_hint());
        if let Some(ctl) = &self.ctl {
            out.push_str(",\"kind\":\"");
            out.push_str(self.kind.as_str());
            out.push_str("\",\"ctl\":");
            out.push_str(ctl);
        }
        if let Some(at) = self.occurred_at {
            out.push_str(",\"occurred_at\":\"");
            at.write(&mut out);
            out.push('"');
        }
        self.fields.write_members(&mut out, text::write_canonical);
        // Each member has a comma before it, and there is one: action_type is never absent.
        out.replace_range(..1, "{");
        out.push('}');
        out
    }

    /// The request again, as it is put into a queue: redacted, with its id, and with `occurred_at`
    /// only when it was sent.
    pub(crate) fn to_event(&self) -> Event {
        Event {
            id: Some(self.id),
            tenant_id: None,
            occurred_at: self.occurred_at,
            action_is_default: false,
            fields: Fields::clone(&self.fields),
            faults: Vec::new(),
            reserved_action: false,
        }
    }

    /// Its size in bytes, roughly: what batches are bounded by.
    pub fn size_hint(&self) -> usize {
        let texts = [
            &self.fields.user_agent,
            &self.fields.reason,
            &self.fields.resource_name,
        ];
        512 + self.fields.raw_len()
            + texts.into_iter().flatten().map(String::len).sum::<usize>()
            + self.ctl.as_ref().map_or(0, String::len)
    }
}

/// Who asked for an erasure, a prune or another act on the log itself, and why: what the control
/// entries about it say.
#[derive(Debug, Clone)]
pub struct Act {
    subject: String,
    actor_type: ActorType,
    reason: Option<String>,
    clock: Arc<dyn Clock>,
}

impl Act {
    /// An act of whoever holds the scope.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when the reason is longer than an event's may be.
    pub fn new(scope: &TenantScope, reason: Option<String>, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::check_reason(reason.as_deref())?;
        Ok(Self {
            subject: Self::subject_of(scope),
            actor_type: ActorType::User,
            reason,
            clock,
        })
    }

    /// Refuses a reason that no event may have: also for what is asked only to see what it would do.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) naming `reason`.
    pub fn check_reason(reason: Option<&str>) -> Result<()> {
        match reason.and_then(|reason| text_fault(reason, limits::REASON)) {
            Some(fault) => Err(Error::field("reason", fault)),
            None => Ok(()),
        }
    }

    /// An act that nobody asked for at the time: a setting did.
    #[must_use]
    pub fn by_system(mut self) -> Self {
        self.actor_type = ActorType::System;
        self
    }

    /// Who acts, as an entry's `user_id` takes it.
    pub(crate) fn subject_of(scope: &TenantScope) -> String {
        scope
            .subject()
            .chars()
            .filter(|c| *c != '\0')
            .take(crate::event::limits::USER_ID)
            .collect()
    }

    /// The prepared control entry that says `control`.
    pub fn prepare(&self, tenant: TenantId, control: &Control) -> PreparedEvent {
        self.prepare_as(tenant, control, self.clock.event_id())
    }

    pub(crate) fn prepare_as(
        &self,
        tenant: TenantId,
        control: &Control,
        id: EventId,
    ) -> PreparedEvent {
        PreparedEvent::control(tenant, control, id, self)
    }
}

/// Events of one tenant that are stored whole or not at all. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Batch {
    scope: TenantScope,
    events: Arc<[PreparedEvent]>,
    creates_tenant: bool,
}

impl Batch {
    /// A batch. An empty one is answered with no receipts.
    pub fn new(scope: TenantScope, events: Vec<PreparedEvent>) -> Self {
        Self {
            scope,
            events: events.into(),
            creates_tenant: false,
        }
    }

    /// Lets the append create the tenant when it does not exist: in-process, an embedder has
    /// authorized its request already.
    #[must_use]
    pub fn creating_tenant(mut self) -> Self {
        self.creates_tenant = true;
        self
    }

    /// Whether the append creates the tenant when it does not exist.
    pub fn creates_tenant(&self) -> bool {
        self.creates_tenant
    }

    /// In whose name, and in which tenant.
    pub fn scope(&self) -> &TenantScope {
        &self.scope
    }

    /// The tenant.
    pub fn tenant(&self) -> TenantId {
        self.scope.tenant()
    }

    /// The events, in order.
    pub fn events(&self) -> &[PreparedEvent] {
        &self.events
    }

    /// Its size in bytes, roughly.
    pub fn size_hint(&self) -> usize {
        self.events.iter().map(PreparedEvent::size_hint).sum()
    }
}
