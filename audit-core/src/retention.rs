//! How long a tenant's entries are kept, and what keeps them from being destroyed before.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use audit_tlog::json::{items, members, string, write_string};
use audit_tlog::{Basis, Group, Timestamp};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, FieldFault, Result};
use crate::event::{Event, check_action};
use crate::filter::{Filter, TimeRange};
use crate::id::TenantId;
use crate::json::Json;
use crate::log::AuditLog;
use crate::offboarding::admit_removal;
use crate::page::PageRequest;
use crate::prepare::{Act, PreparedEvent};
use crate::scope::TenantScope;
use crate::store::{Erasure, Prune, Pruned};
use crate::tenant::{TenantStatus, TenantUpdate, check_name};

const DAY_MICROS: i64 = 86_400_000_000;

/// `days` days of 24 hours before `now`.
pub(crate) fn days_before(now: Timestamp, days: u32) -> Timestamp {
    let micros = now.as_micros().saturating_sub(i64::from(days) * DAY_MICROS);
    Timestamp::saturating_from_micros(micros)
}

/// How long a tenant's entries are kept. The default keeps all of them for ever.
///
/// Days are of 24 hours and count from `created_at`, when the log accepted the entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Retention {
    /// Entries that are older are pruned.
    pub keep_days: Option<u32>,
    /// Nobody prunes what is younger. An erasure is not bound by it, be it asked for or of a rule for
    /// an action: what demands one is the law.
    pub minimum_days: Option<u32>,
    /// Actions whose entries lose groups earlier.
    pub actions: Vec<ActionRetention>,
}

/// Entries of one action lose groups after so many days. They keep their place in the log, which loses
/// only its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ActionRetention {
    /// The action, whole.
    pub action: String,
    /// The age from which on the groups are erased.
    pub days: u32,
    /// The groups, in the leaf format's order.
    pub groups: Vec<Group>,
}

impl ActionRetention {
    /// Erases all groups after so many days.
    pub fn new(action: impl Into<String>, days: u32) -> Self {
        Self {
            action: action.into(),
            days,
            groups: Group::ALL.to_vec(),
        }
    }

    /// Erases only these groups.
    #[must_use]
    pub fn groups(mut self, groups: &[Group]) -> Self {
        self.groups = Group::ordered(groups);
        self
    }

    /// The entries that are old enough by `now`.
    pub(crate) fn due(&self, now: Timestamp) -> Filter {
        Filter::new()
            .action(self.action.as_str())
            .created(TimeRange {
                from: None,
                to: Some(days_before(now, self.days)),
            })
    }

    fn to_json(&self) -> String {
        let mut action = String::new();
        write_string(&mut action, &self.action);
        let names = self.groups.iter().map(|g| format!("\"{}\"", g.as_str()));
        let groups = names.collect::<Vec<_>>().join(",");
        let days = self.days;
        format!("{{\"action\":{action},\"days\":{days},\"groups\":[{groups}]}}")
    }
}

impl Retention {
    /// The most days of each setting: a hundred years.
    pub const MAX_DAYS: u32 = 36_500;
    /// The most rules for actions.
    pub const MAX_ACTIONS: usize = 64;

    /// Keeps everything for ever.
    pub fn forever() -> Self {
        Self::default()
    }

    /// Prunes what is older than so many days.
    #[must_use]
    pub fn keep_days(mut self, days: u32) -> Self {
        self.keep_days = Some(days);
        self
    }

    /// Refuses to prune what is younger than so many days.
    #[must_use]
    pub fn minimum_days(mut self, days: u32) -> Self {
        self.minimum_days = Some(days);
        self
    }

    /// Adds a rule for an action.
    #[must_use]
    pub fn action(mut self, rule: ActionRetention) -> Self {
        self.actions.push(rule);
        self
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it makes anything go by itself.
    pub fn removes(&self) -> bool {
        self.keep_days.is_some() || !self.actions.is_empty()
    }

    /// Checks the limits: days are 1 to [`MAX_DAYS`](Self::MAX_DAYS); the minimum is at most
    /// `keep_days`, and a rule's days are less; there are at most [`MAX_ACTIONS`](Self::MAX_ACTIONS)
    /// rules, each with an action that an event may have and with a group at least. The log's own
    /// entries, of actions that begin with `log.`, have no rules.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with every fault.
    pub fn check(&self) -> Result<()> {
        let faults = self.faults();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Error::invalid(faults))
        }
    }

    fn faults(&self) -> Vec<FieldFault> {
        let mut faults = Vec::new();
        let is_out = |days: u32| !(1..=Self::MAX_DAYS).contains(&days);
        let range = format!("1 to {} days", Self::MAX_DAYS);
        for (field, days) in [
            ("keep_days", self.keep_days),
            ("minimum_days", self.minimum_days),
        ] {
            if days.is_some_and(is_out) {
                faults.push(FieldFault::new(field, range.as_str()));
            }
        }
        let keep = self.keep_days.unwrap_or(u32::MAX);
        if self.minimum_days.is_some_and(|minimum| minimum > keep) {
            faults.push(FieldFault::new("minimum_days", "more than keep_days"));
        }
        if self.actions.len() > Self::MAX_ACTIONS {
            let detail = format!("more than {} rules", Self::MAX_ACTIONS);
            faults.push(FieldFault::new("actions", detail));
        }
        for (i, rule) in self.actions.iter().enumerate() {
            let mut fault = |detail: &str| {
                faults.push(FieldFault::new("actions", format!("rule {i}: {detail}")));
            };
            let mut of_action = Vec::new();
            check_action(&rule.action, false, &mut of_action);
            for of_action in of_action {
                fault(&format!("action: {}", of_action.detail));
            }
            if is_out(rule.days) {
                fault(&format!("days: {range}"));
            } else if rule.days >= keep {
                fault("days: not less than keep_days");
            }
            if rule.groups.is_empty() {
                fault("groups: one at least");
            }
        }
        faults
    }

    /// Its JSON form, with every member.
    pub fn to_json(&self) -> String {
        let days = |days: Option<u32>| days.map_or_else(|| "null".to_owned(), |n| n.to_string());
        let (keep, minimum) = (days(self.keep_days), days(self.minimum_days));
        let rules = self.actions.iter().map(ActionRetention::to_json);
        let actions = rules.collect::<Vec<_>>().join(",");
        format!("{{\"keep_days\":{keep},\"minimum_days\":{minimum},\"actions\":[{actions}]}}")
    }

    /// Reads the JSON form, and checks it. A member that is absent or null says nothing; a rule without
    /// `groups` names all of them.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with every fault; the field is `body` when it is no JSON object.
    pub fn parse(json: &str) -> Result<Self> {
        let mut faults = Vec::new();
        let retention = Self::read(json, &mut faults);
        faults.extend(retention.faults());
        if faults.is_empty() {
            Ok(retention)
        } else {
            Err(Error::invalid(faults))
        }
    }

    /// Reads what a store has kept: limits that have changed since don't count.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for any other text.
    pub fn from_stored(json: &str) -> Result<Self> {
        let mut faults = Vec::new();
        let retention = Self::read(json, &mut faults);
        if faults.is_empty() {
            return Ok(retention);
        }
        Err(
            Error::new(ErrorKind::Internal, "the stored retention can't be read")
                .with_fields(faults),
        )
    }

    fn read(json: &str, faults: &mut Vec<FieldFault>) -> Self {
        let mut retention = Self::default();
        let fields = match members(json) {
            Ok(fields) => fields,
            Err(fault) => {
                faults.push(FieldFault::new("body", fault.to_string()));
                return retention;
            }
        };
        for field in fields.iter().filter(|field| field.raw != "null") {
            let days = |faults: &mut Vec<FieldFault>, name: &'static str| {
                let days = field.raw.parse().ok();
                if days.is_none() {
                    faults.push(FieldFault::new(name, "a number of days is expected"));
                }
                days
            };
            match &*field.name {
                "keep_days" => retention.keep_days = days(faults, "keep_days"),
                "minimum_days" => retention.minimum_days = days(faults, "minimum_days"),
                "actions" => match items(field.raw) {
                    Ok(rules) => {
                        for (i, rule) in rules.into_iter().enumerate() {
                            retention.actions.extend(read_rule(i, rule, faults));
                        }
                    }
                    Err(_) => {
                        faults.push(FieldFault::new("actions", "a list of rules is expected"));
                    }
                },
                other => faults.push(FieldFault::new(
                    other.to_owned(),
                    "not a field of this request",
                )),
            }
        }
        retention
    }
}

/// A rule; none when that can't be told.
fn read_rule(i: usize, json: &str, faults: &mut Vec<FieldFault>) -> Option<ActionRetention> {
    let before = faults.len();
    let mut fault = |detail: &str| {
        faults.push(FieldFault::new("actions", format!("rule {i}: {detail}")));
    };
    let Ok(fields) = members(json) else {
        fault("an object is expected");
        return None;
    };
    let text = |raw: &str| {
        let text = raw.starts_with('"').then(|| string(raw).ok()).flatten();
        text.map(std::borrow::Cow::into_owned)
    };
    let (mut action, mut days, mut groups) = (None, None, Some(Group::ALL.to_vec()));
    for field in fields.iter().filter(|field| field.raw != "null") {
        match &*field.name {
            "action" => action = text(field.raw),
            "days" => days = field.raw.parse().ok(),
            "groups" => {
                groups = items(field.raw).ok().and_then(|names| {
                    let names = names.into_iter().map(|name| text(name)?.parse().ok());
                    names.collect::<Option<Vec<Group>>>()
                });
            }
            other => fault(&format!("{other}: not a field of a rule")),
        }
    }
    if action.is_none() {
        fault("action: a string is expected");
    }
    if days.is_none() {
        fault("days: a number of days is expected");
    }
    if groups.is_none() {
        fault("groups: a list of groups is expected");
    }
    let rule = ActionRetention::new(action?, days?).groups(&groups?);
    (faults.len() == before).then_some(rule)
}

/// What keeps a tenant's entries from being destroyed, for as long as it is not released.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LegalHold {
    /// Its id, unique within the tenant.
    pub id: Uuid,
    /// Its name, 1 to [`LegalHold::MAX_NAME`] characters: a case number, say. Whoever is refused by it
    /// is shown it.
    pub name: String,
    /// Why it was placed; limits as an event's reason.
    pub reason: Option<String>,
    /// Who placed it.
    pub placed_by: Option<String>,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// When it was released; none while it holds.
    pub released_at: Option<Timestamp>,
}

impl LegalHold {
    /// The most characters of a name.
    pub const MAX_NAME: usize = 256;
    /// The most holds of a tenant that are open at one time.
    pub const MAX_OPEN: usize = 100;

    /// An open hold.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] naming `name` when it is empty, longer than
    /// [`MAX_NAME`](Self::MAX_NAME) characters or holds a control character.
    pub fn new(id: Uuid, name: impl Into<String>, placed_at: Timestamp) -> Result<Self> {
        let name = name.into();
        check_name(&name, Self::MAX_NAME)?;
        Ok(Self {
            id,
            name,
            reason: None,
            placed_by: None,
            placed_at,
            released_at: None,
        })
    }

    /// Whether it holds.
    pub fn is_open(&self) -> bool {
        self.released_at.is_none()
    }
}

/// The refusals of [`RetentionStore::place_hold`], which every store words alike: `open` holds are
/// open, and `is_known` tells whether there is one of this id.
///
/// # Errors
/// See [`RetentionStore::place_hold`].
pub fn admit_hold(tenant: TenantId, open: usize, is_known: bool) -> Result<()> {
    let (kind, message) = if is_known {
        (
            ErrorKind::Conflict,
            "there is a legal hold of this id already".to_owned(),
        )
    } else if open >= LegalHold::MAX_OPEN {
        let message = format!(
            "{} legal holds are open, which is the most",
            LegalHold::MAX_OPEN
        );
        (ErrorKind::Refused, message)
    } else {
        return Ok(());
    };
    Err(Error::new(kind, message).with_tenant(tenant))
}

/// There is no such hold.
pub fn no_hold(tenant: TenantId) -> Error {
    Error::new(ErrorKind::NotFound, "there is no such legal hold").with_tenant(tenant)
}

/// What a hold refuses.
const HELD: &str = "nothing is erased or pruned";

/// What stands in the way of destroying a tenant's entries: each store reads it under the head's lock,
/// in the transaction of the erasure or the prune.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Protection {
    /// Id and name of the open hold that was placed first.
    pub hold: Option<(Uuid, String)>,
    /// [`Retention::minimum_days`].
    pub minimum_days: Option<u32>,
    /// Whether the tenant's [end](crate::Ending) was asked for: its log would grow, and be archived again, for
    /// what goes with the tenant.
    pub is_ending: bool,
}

impl Protection {
    fn admit(&self, tenant: TenantId, refused: &str) -> Result<()> {
        let Some((id, name)) = &self.hold else {
            return Ok(());
        };
        let message = format!(
            "the legal hold \"{name}\" ({id}) protects the log: {refused} before it is released"
        );
        Err(Error::new(ErrorKind::Refused, message).with_tenant(tenant))
    }

    /// Refuses an erasure while a hold is open, and [one that begins](Erasure::unless_ending) once the tenant's
    /// end was asked for.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`], naming the hold where there is one.
    pub fn admit_erasure(&self, tenant: TenantId, erasure: &Erasure) -> Result<()> {
        self.admit(tenant, HELD)?;
        admit_removal(tenant, self.is_ending && erasure.unless_ending)
    }

    /// Refuses to delete a tenant while a hold is open.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] naming the hold.
    pub fn admit_end(&self, tenant: TenantId) -> Result<()> {
        self.admit(tenant, "the tenant is not deleted")
    }

    /// Refuses to change a tenant so that its log can go, while a hold is open.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] naming the hold.
    pub fn admit_update(&self, tenant: TenantId, update: &TenantUpdate) -> Result<()> {
        match update.status {
            Some(TenantStatus::Deleted) => self.admit_end(tenant),
            _ => Ok(()),
        }
    }

    /// Refuses a prune while a hold is open, when the tenant's end was asked for, or when it would take what
    /// is younger than the minimum. The answer is the time before which entries go.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] naming the hold, the end, or the setting and the latest time that it allows.
    pub fn admit_prune(
        &self,
        tenant: TenantId,
        prune: &Prune,
        now: Timestamp,
    ) -> Result<Timestamp> {
        self.admit(tenant, HELD)?;
        admit_removal(tenant, self.is_ending)?;
        let before = prune.bound.before(now);
        let is_rehearsal = prune.dry_run && prune.under_other_settings;
        let Some(days) = self.minimum_days.filter(|_| !is_rehearsal) else {
            return Ok(before);
        };
        let latest = days_before(now, days);
        if before <= latest {
            return Ok(before);
        }
        let message = format!(
            "minimum_days is {days}: what was accepted since {latest} is not pruned, before is \
             {before}"
        );
        Err(Error::new(ErrorKind::Refused, message).with_tenant(tenant))
    }
}

/// A tenant whose entries go by themselves.
#[derive(Debug, Clone)]
pub struct Retained {
    /// The tenant.
    pub tenant: TenantId,
    /// Its settings, or why they can't be read: that concerns no other tenant.
    pub retention: Result<Retention>,
    /// Whether a hold is open.
    pub is_held: bool,
}

/// Where retention and legal holds are kept: in the log store's own database, since
/// [`LogStore::erase`](crate::LogStore::erase) and [`LogStore::prune`](crate::LogStore::prune) look
/// for them under the head's lock.
///
/// A change and the event that says so are one transaction, whatever the tenant's status. A tenant
/// that is deleted refuses everything with [`TenantDeleted`](ErrorKind::TenantDeleted), one that never
/// was with [`UnknownTenant`](ErrorKind::UnknownTenant).
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait RetentionStore: fmt::Debug + Send + Sync + 'static {
    /// A tenant's retention; the default when none was set.
    async fn retention(&self, tenant: TenantId) -> Result<Retention>;

    /// Replaces a tenant's retention, and appends `event`. What is set already is not set again: then
    /// nothing is appended, and the answer is false.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) as [`Retention::check`].
    async fn set_retention(
        &self,
        tenant: TenantId,
        retention: &Retention,
        event: &PreparedEvent,
    ) -> Result<bool>;

    /// Tenants whose retention is set, in the order of their ids, behind `after`, at most `limit`;
    /// none that are deleted, or whose end was asked for.
    async fn retained(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Retained>>;

    /// A tenant's holds, open and released, newest first, behind the one with the id `after`, at most
    /// `limit`. Behind an id that it doesn't have there is nothing.
    async fn holds(
        &self,
        tenant: TenantId,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<LegalHold>>;

    /// Places a hold, and appends `event`. From then on erasures and prunes are refused; what was
    /// pruned before is swept all the same.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) when the tenant has a hold of this id,
    /// [`Refused`](ErrorKind::Refused) when [`LegalHold::MAX_OPEN`] are open.
    async fn place_hold(
        &self,
        tenant: TenantId,
        hold: &LegalHold,
        event: &PreparedEvent,
    ) -> Result<()>;

    /// Releases a hold, and appends `event`. One that is released already stays as it is, and nothing
    /// is appended. Returns the hold as it is then.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when the tenant has no such hold.
    async fn release_hold(
        &self,
        tenant: TenantId,
        id: Uuid,
        at: Timestamp,
        event: &PreparedEvent,
    ) -> Result<LegalHold>;
}

/// What a retention would take now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionDue {
    /// What would be pruned; none without `keep_days`, or when it is refused.
    pub pruned: Option<Pruned>,
    /// Of each rule, how many entries would lose groups, counted up to [`RetentionDue::MAX_COUNT`];
    /// none when it is refused.
    pub erased: Vec<u64>,
    /// Why nothing goes now: a hold, or that the tenant's end was asked for. The minimum that counts is the
    /// retention's own.
    pub refused: Option<String>,
}

impl RetentionDue {
    /// Entries of one rule that are looked at to count them.
    pub const MAX_COUNT: u64 = 10_000;
}

/// The scope in which retention works.
pub(crate) fn retention_scope(tenant: TenantId) -> TenantScope {
    TenantScope::trusted(tenant, "retention")
}

/// What retention is done on the grounds of.
pub(crate) fn retention_basis() -> Result<Basis> {
    Basis::parse("retention")
        .map_err(|fault| Error::new(ErrorKind::Internal, "no basis").with_source(fault))
}

impl AuditLog {
    /// A tenant's retention.
    ///
    /// # Errors
    /// As [`RetentionStore::retention`].
    pub async fn retention(&self, tenant: TenantId) -> Result<Retention> {
        self.inner.retention.retention(tenant).await
    }

    /// Replaces a tenant's retention and records that in its log, in one transaction. Setting what is
    /// set already records nothing.
    ///
    /// # Errors
    /// [`UnknownTenant`](ErrorKind::UnknownTenant), [`TenantDeleted`](ErrorKind::TenantDeleted),
    /// [`Invalid`](ErrorKind::Invalid) with every fault, also of a reason that is too long.
    pub async fn set_retention(
        &self,
        tenant: TenantId,
        retention: &Retention,
        subject: &str,
        reason: Option<String>,
    ) -> Result<()> {
        retention.check()?;
        let event = Event::update("tenant", tenant.to_string())
            .after(&Json::from_stored(retention.to_json()));
        let event = self.admin_event(tenant, event, "log.retention", subject, reason)?;
        self.inner.admit(tenant).await?;
        let store = &self.inner.retention;
        if store.set_retention(tenant, retention, &event).await? {
            self.inner.bell.ring(tenant);
        }
        Ok(())
    }

    /// What a retention would take now, were it the tenant's. Changes nothing.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) as [`Retention::check`], and what the store answers: a suspended
    /// tenant's log is not read.
    pub async fn retention_due(
        &self,
        tenant: TenantId,
        retention: &Retention,
    ) -> Result<RetentionDue> {
        retention.check()?;
        let log = self.tenant(retention_scope(tenant));
        let now = self.inner.clock.now();
        let mut due = RetentionDue {
            pruned: None,
            erased: Vec::with_capacity(retention.actions.len()),
            refused: None,
        };
        let mut from = log.head().await?.pruned_below;
        if let Some(refusal) = log.removal_refusal().await? {
            due.refused = Some(refusal.message().to_owned());
            due.erased.resize(retention.actions.len(), 0);
            return Ok(due);
        }
        if let Some(days) = retention.keep_days {
            let act = Act::new(log.scope(), None, Arc::clone(&self.inner.clock))?;
            let prune = Prune::older_than_days(days, retention_basis()?, act);
            let pruned = log.prune_by(prune.under_other_settings()).await?;
            from = pruned.below;
            due.pruned = Some(pruned);
        }
        for rule in &retention.actions {
            let mut filter = rule.due(now).from_seq(from);
            let (mut looked_at, mut count) = (0, 0);
            while looked_at < RetentionDue::MAX_COUNT {
                let page = PageRequest::first()
                    .ascending()
                    .limit(PageRequest::MAX_LIMIT);
                let page = self.inner.store.list(log.scope(), &filter, &page).await?;
                let Some(last) = page.items.last() else { break };
                filter = filter.from_seq(last.seq + 1);
                looked_at += page.items.len() as u64;
                let loses = page
                    .items
                    .iter()
                    .filter(|e| e.fields.has_any_of(&rule.groups));
                count += loses.count() as u64;
            }
            due.erased.push(count);
        }
        Ok(due)
    }

    /// A tenant's holds.
    ///
    /// # Errors
    /// As [`RetentionStore::holds`].
    pub async fn holds(
        &self,
        tenant: TenantId,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<LegalHold>> {
        self.inner.retention.holds(tenant, after, limit).await
    }

    /// Places a hold and records that in the tenant's log, in one transaction. The id is made (UUIDv7)
    /// when none is given.
    ///
    /// # Errors
    /// As [`RetentionStore::place_hold`], and [`Invalid`](ErrorKind::Invalid) for a bad name or a reason
    /// that is too long.
    pub async fn place_hold(
        &self,
        tenant: TenantId,
        id: Option<Uuid>,
        name: &str,
        subject: &str,
        reason: Option<String>,
    ) -> Result<LegalHold> {
        let clock = &self.inner.clock;
        let id = id.unwrap_or_else(|| clock.event_id().into_uuid());
        let mut hold = LegalHold::new(id, name, clock.now())?;
        hold.reason.clone_from(&reason);
        hold.placed_by = Some(subject.to_owned());
        let event = Event::create("legal_hold", id.to_string())
            .resource_name(name)
            .metadata(&serde_json::json!({"released": false}));
        let event = self.admin_event(tenant, event, "log.hold", subject, reason)?;
        self.inner.admit(tenant).await?;
        let store = &self.inner.retention;
        store.place_hold(tenant, &hold, &event).await?;
        self.inner.bell.ring(tenant);
        Ok(hold)
    }

    /// Releases a hold and records that in the tenant's log, in one transaction. Releasing it again
    /// changes and records nothing. It works on a log that the guard stops, too: a hold that a restore
    /// brought back would refuse its [recovery](Self::recover).
    ///
    /// # Errors
    /// As [`RetentionStore::release_hold`], and [`Invalid`](ErrorKind::Invalid) for a reason that is too
    /// long.
    pub async fn release_hold(
        &self,
        tenant: TenantId,
        id: Uuid,
        subject: &str,
        reason: Option<String>,
    ) -> Result<LegalHold> {
        let event = Event::update("legal_hold", id.to_string())
            .metadata(&serde_json::json!({"released": true}));
        let event = self.admin_event(tenant, event, "log.hold", subject, reason)?;
        let now = self.inner.clock.now();
        let store = &self.inner.retention;
        let hold = store.release_hold(tenant, id, now, &event).await?;
        self.inner.bell.ring(tenant);
        Ok(hold)
    }
}
