//! Takes what was erased out of what was given up: dead letters of the queue and parked rows of the outbox.
//!
//! They are neither in the log, where an erasure finds them, nor on their way to it, where they would be
//! erased as they arrive. An erasure looks through them before it is done; whoever gives something up
//! looks whether an erasure was asked for meanwhile. What an engine gives up by itself is found by a look
//! of the eraser's own, at its start and now and then.
//!
//! What would lose all that it holds goes. What would lose a part stays as it is: without that part it would be another
//! event, of which no entry of the log said so. Sent again while the mark is kept, it is erased as it arrives.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Debug};
use std::sync::Arc;

use async_trait::async_trait;
use audit_tlog::{Group, Timestamp, json};

use super::is_closed;
use crate::erasure::{ErasureJob, ErasureMark};
use crate::error::{ErrorKind, Result};
use crate::event::{Event, Fields};
use crate::id::{ErasureId, EventId, TenantId};
use crate::ingest::open_message;
use crate::log::{AuditLog, Inner};
use crate::outbox::ParkedRow;
use crate::prepare::PreparedEvent;
use crate::queue::{DeadLetter, MessageKind, Sieve, Verdict};
use crate::scope::TenantScope;
use crate::tenant::{TenantSecret, TenantStatus};

/// Looks through what was given up, of all tenants, for what was erased.
pub(crate) async fn sift(log: &Arc<Inner>) -> Result<()> {
    sift_by(log, Forgetting::new(log, None)).await
}

/// Looks through what was given up by the tenant of a job for the job's subject, whose marks may be forgotten by
/// now; for what was erased otherwise as well.
pub(super) async fn sift_for(
    log: &Arc<Inner>,
    job: &ErasureJob,
    marks: Vec<ErasureMark>,
) -> Result<()> {
    sift_by(log, Forgetting::new(log, Some((job.clone(), marks)))).await
}

async fn sift_by(log: &Inner, forgetting: Forgetting) -> Result<()> {
    let forgetting = Arc::new(forgetting);
    if let Some(queue) = &log.queue {
        let sieve: Arc<dyn Sieve<DeadLetter>> = forgetting.clone();
        told("dead letters", queue.sift(sieve).await?);
    }
    if let Some(outbox) = &log.outbox {
        told("parked rows", outbox.sift(forgetting).await?);
    }
    Ok(())
}

fn told(what: &str, count: u64) {
    if count > 0 {
        tracing::info!(count, "{what} lost what was erased");
    }
}

/// By what the subject of a job is told among what was given up; nothing where that can't be, or where
/// this process knows of no place that has any.
pub(super) async fn marks_of(log: &Inner, job: &ErasureJob) -> Result<Vec<ErasureMark>> {
    let (Some(selection), true) = (&job.selection, log.queue.is_some() || log.outbox.is_some())
    else {
        return Ok(Vec::new());
    };
    let tenant = log.cached_tenant(job.tenant).await?;
    Ok(selection.marks(&tenant.secret))
}

/// Whether something of these was erased before they were given up.
pub(super) async fn is_erased<T: GivenUp>(log: &Arc<Inner>, given_up: &[T]) -> Result<bool> {
    let named = Forgetting::new(log, None).named(given_up).await?;
    Ok(named.into_iter().flatten().any(|(_, goes)| goes))
}

/// What was given up on its way to the log.
pub(super) trait GivenUp: Debug + Send + Sync + 'static {
    /// What it is called.
    const NAME: &str;

    fn tenant(&self) -> TenantId;

    /// What is known of it; none where that can't be an event's.
    fn aside(&self, log: &Inner, secret: &TenantSecret) -> Option<Aside>;
}

impl GivenUp for DeadLetter {
    const NAME: &str = "a dead letter";

    fn tenant(&self) -> TenantId {
        self.message.tenant
    }

    fn aside(&self, _: &Inner, secret: &TenantSecret) -> Option<Aside> {
        Aside::of_letter(secret, self)
    }
}

impl GivenUp for ParkedRow {
    const NAME: &str = "a parked row";

    fn tenant(&self) -> TenantId {
        self.row.tenant
    }

    fn aside(&self, log: &Inner, secret: &TenantSecret) -> Option<Aside> {
        Some(Aside::of_row(log, secret, self))
    }
}

/// Judges by the erasures that were asked for.
pub(super) struct Forgetting {
    log: Arc<Inner>,
    /// A job that runs, with its marks.
    job: Option<(ErasureJob, Vec<ErasureMark>)>,
}

impl Debug for Forgetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Forgetting")
    }
}

/// What is known of something that was given up.
pub(super) struct Aside {
    tenant: TenantId,
    id: EventId,
    accepted_at: Timestamp,
    /// None when it can't be read: then it is told by its id alone.
    event: Option<String>,
    marks: Vec<ErasureMark>,
}

impl Aside {
    fn of_letter(secret: &TenantSecret, letter: &DeadLetter) -> Option<Self> {
        let message = &letter.message;
        if message.kind != MessageKind::Ingest {
            return None;
        }
        let mut aside = Self {
            tenant: message.tenant,
            id: message.id,
            // Not later than this.
            accepted_at: letter.died_at,
            event: None,
            marks: ErasureMark::of_text(secret, message.id, ""),
        };
        match open_message(secret, message) {
            Ok(accepted) => {
                let event = accepted.event.to_json();
                aside.accepted_at = accepted.accepted_at;
                aside.marks = ErasureMark::of_text(secret, message.id, &event);
                aside.event = Some(event);
            }
            // A newer program's.
            Err(error) if error.kind() == ErrorKind::Unavailable => return None,
            Err(_) => {}
        }
        Some(aside)
    }

    fn of_row(log: &Inner, secret: &TenantSecret, parked: &ParkedRow) -> Self {
        let row = &parked.row;
        let mut marks = ErasureMark::of_text(secret, row.id, &row.event);
        // As it would be in the log, too, where a redactor may have given the user another name.
        let event = Event::from_json(&row.event).map(|event| event.id(row.id));
        let prepared = event
            .and_then(|event| PreparedEvent::new(row.tenant, event, &*log.clock, &log.redactors));
        if let Ok(prepared) = prepared {
            marks.extend(ErasureMark::of_event(secret, &prepared));
        }
        let is_read = json::members(&row.event).is_ok();
        Self {
            tenant: row.tenant,
            id: row.id,
            accepted_at: row.recorded_at,
            event: is_read.then(|| row.event.clone()),
            marks,
        }
    }

    /// Whether nothing is left of it without these groups. Of one that can't be read nobody knows which
    /// groups it has.
    fn goes_with(&self, groups: &[Group]) -> bool {
        let members = self.event.as_ref().map(|event| json::members(event));
        match members {
            Some(Ok(members)) => members
                .iter()
                .filter_map(|member| Fields::group_of(&member.name))
                .all(|group| groups.contains(&group)),
            _ => Group::ALL.iter().all(|group| groups.contains(group)),
        }
    }
}

impl Forgetting {
    fn new(log: &Arc<Inner>, job: Option<(ErasureJob, Vec<ErasureMark>)>) -> Self {
        Self {
            log: Arc::clone(log),
            job,
        }
    }

    /// The secret of a tenant whose erasures count; none of one that has gone, nor, when a job asks, of
    /// another one than the job's.
    async fn secret(&self, tenant: TenantId) -> Result<Option<TenantSecret>> {
        if self
            .job
            .as_ref()
            .is_some_and(|(job, _)| job.tenant != tenant)
        {
            return Ok(None);
        }
        match self.log.cached_tenant(tenant).await {
            Ok(row) if row.status == TenantStatus::Deleted => Ok(None),
            Ok(row) => Ok(Some(row.secret.clone())),
            Err(error) if error.kind() == ErrorKind::UnknownTenant => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn secrets(
        &self,
        tenants: impl Iterator<Item = TenantId>,
    ) -> Result<HashMap<TenantId, TenantSecret>> {
        let mut secrets = HashMap::new();
        for tenant in tenants {
            if !secrets.contains_key(&tenant)
                && let Some(secret) = self.secret(tenant).await?
            {
                secrets.insert(tenant, secret);
            }
        }
        Ok(secrets)
    }

    /// Of each that an erasure names, what is known of it, and whether it goes as a whole.
    async fn named<T: GivenUp>(&self, given_up: &[T]) -> Result<Vec<Option<(Aside, bool)>>> {
        let secrets = self.secrets(given_up.iter().map(T::tenant)).await?;
        let aside = |one: &T| one.aside(&self.log, secrets.get(&one.tenant())?);
        let asides: Vec<Option<Aside>> = given_up.iter().map(aside).collect();
        let lost = self.lost(&asides).await?;
        let named = |(aside, groups): (Option<Aside>, Vec<Group>)| {
            let aside = aside.filter(|_| !groups.is_empty())?;
            let goes = aside.goes_with(&groups);
            Some((aside, goes))
        };
        Ok(asides.into_iter().zip(lost).map(named).collect())
    }

    /// Of each the groups that it loses.
    async fn lost(&self, asides: &[Option<Aside>]) -> Result<Vec<Vec<Group>>> {
        let mut lost = vec![Vec::new(); asides.len()];
        let mut by_tenant: BTreeMap<TenantId, Vec<usize>> = BTreeMap::new();
        for (place, aside) in asides.iter().enumerate() {
            if let Some(aside) = aside {
                by_tenant.entry(aside.tenant).or_default().push(place);
            }
        }
        for (tenant, places) in by_tenant {
            let asides = places
                .iter()
                .filter_map(|place| Some((*place, asides[*place].as_ref()?)));
            let asides: Vec<(usize, &Aside)> = asides.collect();
            let mut marks: Vec<ErasureMark> = asides
                .iter()
                .flat_map(|(_, aside)| aside.marks.clone())
                .collect();
            marks.sort_unstable();
            marks.dedup();
            let known = self
                .log
                .erasures
                .marked_erasures(tenant, &marks, Timestamp::MIN);
            let mut jobs: BTreeMap<ErasureId, (ErasureJob, Vec<ErasureMark>)> = BTreeMap::new();
            for (mark, job) in known.await? {
                let (_, marks) = jobs.entry(job.id).or_insert((job, Vec::new()));
                marks.push(mark);
            }
            if let Some((job, marks)) = self.job.as_ref().filter(|(job, _)| job.tenant == tenant) {
                jobs.insert(job.id, (job.clone(), marks.clone()));
            }
            for (job, marks) in jobs.into_values() {
                for (place, aside) in &asides {
                    let is_subject = aside.marks.iter().any(|mark| marks.contains(mark));
                    if is_subject && aside.accepted_at <= job.requested_at {
                        lost[*place].extend(&job.groups);
                    }
                }
            }
            // A hold keeps what was given up as it keeps the log.
            let is_any_lost = places.iter().any(|place| !lost[*place].is_empty());
            if is_any_lost && self.is_held(tenant).await? {
                places.iter().for_each(|place| lost[*place].clear());
            }
        }
        Ok(lost)
    }

    /// Whether nothing of a tenant may be erased now.
    async fn is_held(&self, tenant: TenantId) -> Result<bool> {
        let inner = Arc::clone(&self.log);
        let log = AuditLog { inner }.tenant(TenantScope::trusted(tenant, "eraser"));
        match log.hold_refusal().await {
            Ok(refusal) => Ok(refusal.is_some()),
            Err(error) if is_closed(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl<T: GivenUp> Sieve<T> for Forgetting {
    async fn judge(&self, given_up: &[T]) -> Result<Vec<Verdict>> {
        let what = T::NAME;
        let verdict = |named: Option<(Aside, bool)>| match named {
            None => Verdict::Keep,
            Some((Aside { tenant, id, .. }, true)) => {
                tracing::warn!(
                    %tenant, %id,
                    "{what} goes with an erasure: its event was never appended"
                );
                Verdict::Remove
            }
            Some((Aside { tenant, id, .. }, false)) => {
                tracing::warn!(
                    %tenant, %id,
                    "{what} holds what an erasure names a part of, and stays: send it again or remove it"
                );
                Verdict::Keep
            }
        };
        let named = self.named(given_up).await?;
        Ok(named.into_iter().map(verdict).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"action_type":"VIEW","user_id":"ann","actor_type":"user","actor_name":"a",
        "on_behalf_of":"b","resource_type":"doc","resource_id":"d","resource_name":"n",
        "related_resources":[{"type":"doc","id":"e"}],"session_id":"s","request_id":"r","trace_id":"t",
        "user_agent":"u","ip_address":"192.0.2.7","reason":"why","before_state":1,"after_state":2,
        "metadata":{"a":1e2}}"#;

    fn aside(event: Option<&str>) -> Aside {
        Aside {
            tenant: TenantId::new(uuid::Uuid::from_u128(1)),
            id: EventId::new(uuid::Uuid::from_u128(2)),
            accepted_at: Timestamp::MIN,
            event: event.map(str::to_owned),
            marks: Vec::new(),
        }
    }

    #[test]
    fn what_would_lose_a_part_of_what_it_holds_stays() {
        let all = Group::ALL;
        assert!(aside(Some(EVENT)).goes_with(&all));
        assert!(aside(None).goes_with(&all));
        for group in all {
            let rest: Vec<Group> = all.into_iter().filter(|other| *other != group).collect();
            assert!(!aside(Some(EVENT)).goes_with(&rest), "{group}");
            assert!(!aside(None).goes_with(&rest), "{group}");
        }
        let short = r#"{"action_type":"VIEW","user_id":"ann","resource_type":"doc"}"#;
        assert!(aside(Some(short)).goes_with(&[Group::Actor, Group::Resource]));
        assert!(!aside(Some(short)).goes_with(&[Group::Actor]));
    }

    #[test]
    fn a_text_that_the_log_refuses_still_tells_whose_it_is() {
        let secret = TenantSecret::new([7; 32]);
        let id = EventId::new(uuid::Uuid::from_u128(2));
        let marks = |text: &str| ErasureMark::of_text(&secret, id, text);
        let ann = marks(r#"{"user_id":"ann"}"#);
        assert_eq!(ann.len(), 2);
        assert_eq!(marks(r#"{"user_id":"\u0061nn","nonsense":{}}"#), ann);
        assert_eq!(marks(r#"{"user_id":"bob","user_id":"ann"}"#)[2], ann[1]);
        assert_eq!(marks(r#"{"user_id":7}"#), marks(r#"{"user_id":"7"}"#));
        assert_eq!(marks("nonsense"), ann[..1]);
    }
}
