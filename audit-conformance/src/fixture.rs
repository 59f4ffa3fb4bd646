//! What contracts start from: tenants, events, acts.

use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use audit_core::tlog::note::SigningKey;
use audit_core::{
    Act, Basis, Batch, Clock, DeadLetter, Declaration, Entry, Error, ErrorKind, Event, EventId,
    Fence, Filter, LegalHold, LogStore, Outcome, PageRequest, ParkedRow, PreparedEvent, Receipt,
    Result, RetentionStore, Severity, Sieve, Snapshot, SystemClock, Tenant, TenantId, TenantScope,
    TenantSecret, TenantStatus, TenantStore, TenantUpdate, Timestamp, Verdict,
};
use futures_util::TryStreamExt as _;

/// How long a contract waits for what must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn time(text: &str) -> Timestamp {
    Timestamp::parse(text).expect("a time")
}

/// `base` and some seconds.
pub(crate) fn seconds_after(base: Timestamp, seconds: i64) -> Timestamp {
    Timestamp::from_micros(base.as_micros() + seconds * 1_000_000).expect("in range")
}

/// An id that no other contract has.
pub(crate) fn tenant_id() -> TenantId {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&SystemClock.secret()[..16]);
    TenantId::new(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

pub(crate) fn tenant(id: TenantId, name: &str) -> Tenant {
    let created_at = time("2026-11-24T03:00:00Z");
    Tenant::new(
        id,
        name,
        created_at,
        TenantSecret::new(SystemClock.secret()),
    )
    .expect("a tenant")
}

pub(crate) async fn new_tenant(store: &dyn TenantStore) -> TenantId {
    let id = tenant_id();
    store
        .create_tenant(&tenant(id, "acme"))
        .await
        .expect("created");
    id
}

pub(crate) fn trusted(tenant: TenantId) -> TenantScope {
    TenantScope::trusted(tenant, "conformance")
}

pub(crate) fn prepare(tenant: TenantId, event: Event) -> PreparedEvent {
    PreparedEvent::new(tenant, event, &SystemClock, &[]).expect("a valid event")
}

pub(crate) fn batch(tenant: TenantId, events: Vec<Event>) -> Batch {
    let events = events
        .into_iter()
        .map(|event| prepare(tenant, event))
        .collect();
    Batch::new(trusted(tenant), events)
}

/// The same event each time, but for its resource and user.
pub(crate) fn event(n: usize) -> Event {
    Event::update("invoice", format!("inv-{n}"))
        .action("invoice.approve")
        .user(format!("user-{n}"))
        .actor_name("Ann Example")
        .session_id(format!("session-{n}"))
        .ip_address("192.0.2.7".parse().expect("an address"))
        .reason(format!("reason {n}"))
        .before(&serde_value(n))
        .after(&serde_value(n + 1))
        .metadata(&[n, n])
}

fn serde_value(n: usize) -> std::collections::BTreeMap<&'static str, usize> {
    [("state", n)].into()
}

pub(crate) fn events(n: usize) -> Vec<Event> {
    (0..n).map(event).collect()
}

/// One of each severity and outcome in turn.
pub(crate) fn varied(n: usize) -> Event {
    event(n)
        .severity(Severity::ALL[n % Severity::ALL.len()])
        .outcome(Outcome::ALL[n % Outcome::ALL.len()])
}

/// Appends one batch, which must succeed.
pub(crate) async fn append(
    store: &dyn LogStore,
    tenant: TenantId,
    events: Vec<Event>,
) -> Vec<Receipt> {
    try_append(store, &batch(tenant, events))
        .await
        .expect("appended")
}

pub(crate) async fn try_append(store: &dyn LogStore, batch: &Batch) -> Result<Vec<Receipt>> {
    let mut outcomes = store.append(std::slice::from_ref(batch)).await?;
    assert_eq!(outcomes.len(), 1, "a result for each batch");
    outcomes.remove(0)
}

pub(crate) fn act(tenant: TenantId) -> Act {
    Act::new(
        &trusted(tenant),
        Some("request 7".into()),
        Arc::new(SystemClock),
    )
    .expect("an act")
}

/// That a log's key changed.
pub(crate) fn key_change(tenant: TenantId, fence: Fence, id: EventId) -> Declaration {
    let vkey = |seed: u8| {
        let key = SigningKey::from_seed(&format!("audit.example/log/{tenant}"), &[seed; 32]);
        key.expect("a key").verifying_key().encode()
    };
    Declaration::key(fence, id, vkey(1), vkey(2), act(tenant)).expect("two keys")
}

/// That a log is continued from its present head in an epoch.
pub(crate) async fn epoch<S: LogStore>(
    store: &S,
    tenant: TenantId,
    fence: Fence,
    number: u64,
) -> Declaration {
    let head = store.head(&trusted(tenant)).await.expect("a head");
    let (id, basis) = (SystemClock.event_id(), basis("restore"));
    Declaration::epoch(fence, id, number, &head, basis, act(tenant)).expect("an epoch")
}

pub(crate) fn basis(text: &str) -> Basis {
    Basis::parse(text).expect("a basis")
}

pub(crate) async fn everything(store: &dyn LogStore, tenant: TenantId) -> Vec<Entry> {
    let snapshot = store.snapshot(&trusted(tenant)).await.expect("a snapshot");
    scan(&*snapshot, &Filter::new()).await
}

pub(crate) async fn scan(snapshot: &dyn Snapshot, filter: &Filter) -> Vec<Entry> {
    snapshot
        .scan(filter)
        .await
        .expect("a stream")
        .try_collect()
        .await
        .expect("entries")
}

/// The positions that a filter lists, oldest first.
pub(crate) async fn listed(store: &dyn LogStore, tenant: TenantId, filter: &Filter) -> Vec<u64> {
    let page = PageRequest::first()
        .ascending()
        .limit(PageRequest::MAX_LIMIT);
    let page = store
        .list(&trusted(tenant), filter, &page)
        .await
        .expect("a page");
    page.items.iter().map(|entry| entry.seq).collect()
}

pub(crate) async fn set_status(store: &dyn TenantStore, tenant: TenantId, status: TenantStatus) {
    let said = prepare(tenant, Event::update("tenant", tenant.to_string()));
    let update = TenantUpdate::default().status(status);
    store
        .update_tenant(tenant, &update, &said)
        .await
        .expect("updated");
}

/// An administrator's event.
pub(crate) fn said(tenant: TenantId) -> PreparedEvent {
    let event = Event::update("tenant", tenant.to_string());
    prepare(tenant, event.user("admin").reason("asked to"))
}

/// Places a hold, and returns it.
pub(crate) async fn hold(store: &dyn RetentionStore, tenant: TenantId, name: &str) -> LegalHold {
    let id = SystemClock.event_id().into_uuid();
    let hold = LegalHold::new(id, name, SystemClock.now()).expect("a hold");
    store
        .place_hold(tenant, &hold, &said(tenant))
        .await
        .expect("placed");
    hold
}

pub(crate) async fn release(store: &dyn RetentionStore, tenant: TenantId, hold: &LegalHold) {
    store
        .release_hold(tenant, hold.id, SystemClock.now(), &said(tenant))
        .await
        .expect("released");
}

pub(crate) fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().as_ref().map(Error::kind)
}

/// A sieve that says what a function does, and keeps what it was shown.
pub(crate) struct By<F> {
    verdict: F,
    pub(crate) shown: Mutex<Vec<EventId>>,
}

impl<F: Fn(EventId) -> Result<Verdict>> By<F> {
    pub(crate) fn new(verdict: F) -> Arc<Self> {
        Arc::new(Self {
            verdict,
            shown: Mutex::default(),
        })
    }

    fn say(&self, ids: Vec<EventId>) -> Result<Vec<Verdict>> {
        self.shown.lock().expect("no panic").extend(&ids);
        ids.into_iter().map(&self.verdict).collect()
    }
}

impl<F> Debug for By<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("By")
    }
}

#[async_trait]
impl<F: Fn(EventId) -> Result<Verdict> + Send + Sync> Sieve<DeadLetter> for By<F> {
    async fn judge(&self, letters: &[DeadLetter]) -> Result<Vec<Verdict>> {
        self.say(letters.iter().map(|letter| letter.message.id).collect())
    }
}

#[async_trait]
impl<F: Fn(EventId) -> Result<Verdict> + Send + Sync> Sieve<ParkedRow> for By<F> {
    async fn judge(&self, rows: &[ParkedRow]) -> Result<Vec<Verdict>> {
        self.say(rows.iter().map(|parked| parked.row.id).collect())
    }
}
