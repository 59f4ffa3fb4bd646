//! Erasures that take longer than a request: jobs that are kept in the store and outlive a process.

use std::fmt;
use std::fmt::Debug;

use async_trait::async_trait;
use audit_tlog::{Basis, Group, Timestamp, json};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::{Error, ErrorKind, FieldFault, Result};
use crate::filter::Filter;
use crate::id::{ErasureId, EventId, TenantId};
use crate::prepare::{Act, PreparedEvent};
use crate::scope::TenantScope;
use crate::tenant::TenantSecret;

/// For how long an event that was accepted before an erasure and is appended late is still erased:
/// as long as the longest retention of a queue, 14 days.
pub const LATE_MICROS: i64 = 14 * 86_400 * 1_000_000;

/// Which entries an erasure is about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// These, 1 to [`Selection::MAX_IDS`].
    Ids(Vec<EventId>),
    /// All that match. Everything of one user is a filter with that `user_id`.
    Matching(Box<Filter>),
}

impl Selection {
    /// The most ids of one request.
    pub const MAX_IDS: usize = 1_000;

    /// Entries by id; of equal ids one.
    pub fn ids(ids: Vec<EventId>) -> Self {
        let mut seen = std::collections::HashSet::with_capacity(ids.len());
        Self::Ids(ids.into_iter().filter(|id| seen.insert(*id)).collect())
    }

    /// Entries that match.
    pub fn matching(filter: Filter) -> Self {
        Self::Matching(Box::new(filter))
    }

    /// Everything of one user.
    pub fn user(user_id: impl Into<String>) -> Self {
        Self::matching(Filter::new().user(user_id))
    }

    /// Refuses what would erase nothing, or everything by a slip.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] naming `ids` when there are none or too many, `filter` when it has no
    /// condition, or the condition that no entry can satisfy: text with NUL, a position of 2⁵³ or more.
    pub fn check(&self) -> Result<()> {
        let fault = match self {
            Self::Ids(ids) if ids.is_empty() || ids.len() > Self::MAX_IDS => {
                FieldFault::new("ids", format!("1 to {} ids are expected", Self::MAX_IDS))
            }
            Self::Matching(filter) if filter.is_empty() => {
                FieldFault::new("filter", "has no condition: it would erase the whole log")
            }
            // What can't be kept can't be carried out: NUL, a position that no log has.
            Self::Matching(filter) => return Filter::from_json(&filter.to_json()).map(drop),
            Self::Ids(_) => return Ok(()),
        };
        Err(Error::invalid(vec![fault]))
    }

    /// Its stored form.
    pub fn to_json(&self) -> String {
        match self {
            Self::Ids(ids) => {
                let ids: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
                format!("{{\"ids\":[{}]}}", ids.join(","))
            }
            Self::Matching(filter) => format!("{{\"filter\":{}}}", filter.to_json()),
        }
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for any other text.
    pub fn from_json(text: &str) -> Result<Self> {
        let bad = || Error::new(ErrorKind::Internal, "a stored selection can't be read");
        let members = json::members(text).map_err(|_| bad())?;
        match members.as_slice() {
            [one] if one.name == "ids" => {
                let ids = json::items(one.raw).map_err(|_| bad())?;
                let ids = ids.into_iter().map(|raw| {
                    let id = json::string(raw).map_err(|_| bad())?;
                    id.parse().map_err(|_| bad())
                });
                Ok(Self::Ids(ids.collect::<Result<_>>()?))
            }
            [one] if one.name == "filter" => Filter::from_json(one.raw)
                .map(Self::matching)
                .map_err(|e| bad().with_source(e)),
            _ => Err(bad()),
        }
    }

    /// By what an event that is appended late is known to be its subject. A filter with other
    /// conditions than `user_id` has no marks: it is about what is in the log.
    pub(crate) fn marks(&self, secret: &TenantSecret) -> Vec<ErasureMark> {
        match self {
            Self::Ids(ids) => ids
                .iter()
                .map(|id| ErasureMark::of_id(secret, *id))
                .collect(),
            Self::Matching(filter) => {
                let users = Filter {
                    user_id: filter.user_id.clone(),
                    ..Filter::new()
                };
                match **filter == users {
                    true => users
                        .user_id
                        .iter()
                        .map(|user| ErasureMark::of_user(secret, user))
                        .collect(),
                    false => Vec::new(),
                }
            }
        }
    }
}

/// An id or a user under a key of the tenant's: it tells whether an event is the subject of an
/// erasure, and doesn't name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErasureMark([u8; 32]);

impl ErasureMark {
    /// Wraps a stored mark.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the store.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn of_id(secret: &TenantSecret, id: EventId) -> Self {
        Self::of(secret, b"id", id.as_uuid().as_bytes())
    }

    fn of_user(secret: &TenantSecret, user_id: &str) -> Self {
        Self::of(secret, b"user_id", user_id.as_bytes())
    }

    fn of(secret: &TenantSecret, what: &[u8], value: &[u8]) -> Self {
        let key = secret.derive("audit-log/v1/erasure");
        #[allow(clippy::expect_used)] // HMAC takes keys of any length
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&key).expect("any key length");
        mac.update(what);
        mac.update(&[0]);
        mac.update(value);
        Self(mac.finalize().into_bytes().into())
    }

    /// The marks of an event by its text, which may be none that the log takes: of every user that it may
    /// mean.
    pub(crate) fn of_text(secret: &TenantSecret, id: EventId, text: &str) -> Vec<Self> {
        let mut marks = vec![Self::of_id(secret, id)];
        // Nothing but the id is told of what can't be read.
        let members = json::members(text).into_iter().flatten();
        for member in members.filter(|member| member.name == "user_id") {
            // What isn't a string may still be whom it means: a number, for one.
            let user = json::string(member.raw).unwrap_or(member.raw.into());
            marks.push(Self::of_user(secret, &user));
        }
        marks
    }

    /// The marks that an event has.
    pub(crate) fn of_event(secret: &TenantSecret, event: &PreparedEvent) -> Vec<Self> {
        let user = event.fields().user_id.as_ref();
        let mut marks = vec![Self::of_id(secret, event.id())];
        marks.extend(user.map(|user| Self::of_user(secret, user)));
        marks
    }
}

impl Debug for ErasureMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ErasureMark(…)")
    }
}

/// What [`TenantLog::request_erasure`](crate::TenantLog::request_erasure) is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ErasureRequest {
    /// Which entries.
    pub selection: Selection,
    /// Which of their groups, in the leaf format's order; all by default.
    pub groups: Vec<Group>,
    /// On what grounds.
    pub basis: Basis,
    /// Why. It stays in the log: it must not repeat whom the erasure is about.
    pub reason: Option<String>,
}

impl ErasureRequest {
    /// Erases all groups of what is selected.
    pub fn new(selection: Selection, basis: Basis) -> Self {
        Self {
            selection,
            groups: Group::ALL.to_vec(),
            basis,
            reason: None,
        }
    }

    /// Erases only these groups.
    #[must_use]
    pub fn groups(mut self, groups: &[Group]) -> Self {
        self.groups = Group::ordered(groups);
        self
    }

    /// Says why.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Refuses what would erase nothing, or everything by a slip.
    ///
    /// # Errors
    /// Those of [`Selection::check`]; [`ErrorKind::Invalid`] naming `groups` when there are none.
    pub fn check(&self) -> Result<()> {
        self.selection.check()?;
        if self.groups.is_empty() {
            return Err(Error::field("groups", "at least one group is expected"));
        }
        Ok(())
    }
}

/// What an erasure would do: the answer of a dry run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ErasureCount {
    /// Entries that are selected.
    pub matching: u64,
    /// Those of them that still have one of the groups.
    pub erasable: u64,
}

impl ErasureCount {
    /// A count.
    pub const fn new(matching: u64, erasable: u64) -> Self {
        Self { matching, erasable }
    }
}

/// How far an erasure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErasureState {
    /// A worker is at it, or will be.
    Running,
    /// All that was selected is erased.
    Done,
}

impl ErasureState {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
        }
    }
}

/// An erasure that was asked for, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErasureJob {
    /// Its id.
    pub id: ErasureId,
    /// The tenant.
    pub tenant: TenantId,
    /// Which entries; none once it is done, for it names whom it was about. None while it runs says
    /// that this program can't read what a newer one wrote: it is not carried out here.
    pub selection: Option<Selection>,
    /// Which of their groups.
    pub groups: Vec<Group>,
    /// On what grounds.
    pub basis: Basis,
    /// Who asked.
    pub subject: String,
    /// Why.
    pub reason: Option<String>,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// The log's size then: entries at this position and later are not its subject.
    pub below: u64,
    /// Where it goes on: a position of the log, or the number of ids that it is through with.
    pub next: u64,
    /// Where `next` ends: `below`, or the number of ids.
    pub end: u64,
    /// Entries that lost something so far.
    pub entries: u64,
    /// How far it is.
    pub state: ErasureState,
    /// What it last failed with, until it goes on.
    pub last_error: Option<String>,
}

impl ErasureJob {
    /// A job that has not begun. The store fills in `below`, and `end` of a filter's.
    pub fn new(
        id: ErasureId,
        scope: &TenantScope,
        request: ErasureRequest,
        requested_at: Timestamp,
    ) -> Self {
        let end = match &request.selection {
            Selection::Ids(ids) => ids.len() as u64,
            Selection::Matching(_) => 0,
        };
        Self {
            id,
            tenant: scope.tenant(),
            selection: Some(request.selection),
            groups: request.groups,
            basis: request.basis,
            subject: Act::subject_of(scope),
            reason: request.reason,
            requested_at,
            below: 0,
            next: 0,
            end,
            entries: 0,
            state: ErasureState::Running,
            last_error: None,
        }
    }

    /// The job as a store begins it, with the log's size under the head's lock.
    #[must_use]
    pub fn begun_at(mut self, size: u64) -> Self {
        self.below = size;
        if matches!(self.selection, Some(Selection::Matching(_))) {
            self.end = size;
        }
        self
    }

    /// Whether a step goes on from where the job is.
    pub fn admits(&self, step: &ErasureStep) -> bool {
        self.state == ErasureState::Running && self.next == step.from
    }

    /// The job behind a step that took something from so many entries.
    pub fn advance(&mut self, step: &ErasureStep, entries: u64) {
        self.next = step.next;
        self.entries += entries;
        self.last_error = None;
        if step.done {
            self.state = ErasureState::Done;
            self.selection = None;
        }
    }

    /// The groups' names with commas between them: their stored form.
    pub fn group_names(&self) -> String {
        let names: Vec<&str> = self.groups.iter().map(|g| g.as_str()).collect();
        names.join(",")
    }

    /// Reads the stored form of the groups.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for any other text.
    pub fn parse_groups(names: &str) -> Result<Vec<Group>> {
        let bad = |_| Error::new(ErrorKind::Internal, "a stored group can't be read");
        names.split(',').map(|g| g.parse().map_err(bad)).collect()
    }
}

/// One step of a job, which [`LogStore::erase`](crate::LogStore::erase) takes in the transaction in
/// which it erases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErasureStep {
    /// The job.
    pub id: ErasureId,
    /// Where the job has to be.
    pub from: u64,
    /// Where it goes on.
    pub next: u64,
    /// Whether that was all.
    pub done: bool,
}

/// Where erasures are kept: in the log store's own database, since `erase` moves them in its
/// transaction.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait ErasureStore: Debug + Send + Sync + 'static {
    /// Keeps a new job and its marks, under the lock of the head, whose size is the job's `below`:
    /// what is appended later finds the marks. Answers the job as it is kept. Needs `erase`.
    ///
    /// Marks of the tenant that are [`LATE_MICROS`] older than the job go.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when there is a job of this id, [`ErrorKind::Forbidden`] for another
    /// tenant's, [`ErrorKind::Refused`] of a tenant whose end was asked for, and what a closed tenant answers.
    async fn begin_erasure(
        &self,
        scope: &TenantScope,
        job: &ErasureJob,
        marks: &[ErasureMark],
    ) -> Result<ErasureJob>;

    /// One job of the scope's tenant. Needs `erase`.
    async fn find_erasure(&self, scope: &TenantScope, id: ErasureId) -> Result<Option<ErasureJob>>;

    /// The oldest running job of each tenant that is neither suspended nor deleted, in the order of
    /// the tenants' ids, behind `after`, at most `limit`.
    async fn open_erasures(&self, after: Option<TenantId>, limit: usize)
    -> Result<Vec<ErasureJob>>;

    /// Says what a running job failed with. Another one is passed over.
    async fn note_erasure(&self, tenant: TenantId, id: ErasureId, error: &str) -> Result<()>;

    /// The jobs of a tenant, done or not, that have one of these marks and were asked for at `since`
    /// or later, each with the mark, in any order. The tenant's status doesn't matter, nor whether there is one.
    async fn marked_erasures(
        &self,
        tenant: TenantId,
        marks: &[ErasureMark],
        since: Timestamp,
    ) -> Result<Vec<(ErasureMark, ErasureJob)>>;
}

/// The refusals of [`ErasureStore::begin_erasure`], which every store words alike.
///
/// # Errors
/// [`ErrorKind::Forbidden`] without the permission, and for another tenant's job.
pub fn admit_erasure(scope: &TenantScope, job: &ErasureJob) -> Result<()> {
    scope.require(crate::Permission::Erase)?;
    if job.tenant != scope.tenant() {
        return Err(Error::new(
            ErrorKind::Forbidden,
            "the erasure is another tenant's",
        ));
    }
    Ok(())
}

/// The refusal of a second job of the same id.
pub fn taken_erasure(job: &ErasureJob) -> Error {
    Error::new(
        ErrorKind::Conflict,
        "there is an erasure of this id already",
    )
    .with_tenant(job.tenant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ActionType, Severity};
    use crate::filter::TimeRange;
    use crate::text::Query;

    fn a_filter_of_everything() -> Filter {
        let range = |from, to| TimeRange {
            from: Some(Timestamp::from_micros(from).unwrap()),
            to: Some(Timestamp::from_micros(to).unwrap()),
        };
        Filter::new()
            .user("ann \"x\"")
            .user("bob\n")
            .session("s")
            .action_type(ActionType::View)
            .action("doc.view")
            .resource_type("doc")
            .resource_id("d")
            .related_id("r")
            .severity(Severity::Error)
            .outcome(crate::Outcome::Denied)
            .ip_address("192.0.2.7".parse::<std::net::IpAddr>().unwrap())
            .request("q")
            .trace("t")
            .occurred(range(1, 2))
            .created(range(3, 4))
            .from_seq(5)
            .to_seq(6)
            .text(Query::parse("needle \"hay stack\"").unwrap())
    }

    #[test]
    fn a_filter_is_read_as_it_was_written() {
        for filter in [a_filter_of_everything(), Filter::new()] {
            assert_eq!(Filter::from_json(&filter.to_json()).unwrap(), filter);
            let selection = Selection::matching(filter);
            assert_eq!(
                Selection::from_json(&selection.to_json()).unwrap(),
                selection
            );
        }
        let one = Filter::from_json(r#"{"user_id":["ann"],"q":null}"#).unwrap();
        assert_eq!(one, Filter::new().user("ann"));
    }

    #[test]
    fn each_bad_condition_is_named() {
        for (text, field) in [
            (r#"{"user_id":7}"#, "user_id"),
            (r#"{"user_id":"ann"}"#, "user_id"),
            (r#"{"user_id":[]}"#, "user_id"),
            (r#"{"user_id":["a",null]}"#, "user_id"),
            (r#"{"user":"a"}"#, "user"),
            (r#"{"severity":"LOUD"}"#, "severity"),
            (r#"{"ip_address":"10.0.0.0/8"}"#, "ip_address"),
            (r#"{"from":"yesterday"}"#, "from"),
            (r#"{"from_seq":-1}"#, "from_seq"),
            (r#"{"to_seq":9007199254740992}"#, "to_seq"),
            (r#"{"q":"\"open"}"#, "q"),
        ] {
            let error = Filter::from_json(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert_eq!(error.fields()[0].field, field, "{text}");
        }
        assert!(Filter::from_json("[]").is_err());
    }

    #[test]
    fn a_request_that_would_erase_nothing_or_everything_is_refused() {
        let id = |n| EventId::new(uuid::Uuid::from_u128(n));
        let many = (0..=1_000).map(id).collect();
        for (selection, field) in [
            (Selection::ids(Vec::new()), "ids"),
            (Selection::ids(many), "ids"),
            (Selection::matching(Filter::new()), "filter"),
            (Selection::user("a\0b"), "user_id"),
            (Selection::matching(Filter::new().to_seq(1 << 53)), "to_seq"),
        ] {
            assert_eq!(selection.check().unwrap_err().fields()[0].field, field);
        }
        assert!(Selection::ids(vec![id(1), id(1)]).check().is_ok());
        assert_eq!(
            Selection::ids(vec![id(1), id(1)]),
            Selection::Ids(vec![id(1)])
        );
        let request = ErasureRequest::new(Selection::user("ann"), "gdpr-17".parse().unwrap());
        assert!(request.check().is_ok());
        assert!(request.groups(&[]).check().is_err());
    }

    #[test]
    fn marks_are_of_ids_and_of_users_alone() {
        let secret = TenantSecret::new([7; 32]);
        let marks = |filter: Filter| Selection::matching(filter).marks(&secret);
        let ann = marks(Filter::new().user("ann"));
        assert_eq!(ann, [ErasureMark::of_user(&secret, "ann")]);
        assert_eq!(marks(Filter::new().user("ann").user("bob")).len(), 2);
        assert!(marks(Filter::new().user("ann").action("x")).is_empty());
        assert!(marks(Filter::new().user("ann").to_seq(9)).is_empty());
        let other = TenantSecret::new([8; 32]);
        assert_ne!(Selection::user("ann").marks(&other), ann);
        let id = EventId::new(uuid::Uuid::from_u128(7));
        assert_eq!(Selection::ids(vec![id]).marks(&secret).len(), 1);
    }
}
