//! The contract of [`ErasureStore`], and of the steps that a log store's erasures take.

use std::future::Future;

use audit_core::erasure::LATE_MICROS;
use audit_core::{
    Clock as _, Erased, Erasure, ErasureId, ErasureJob, ErasureMark, ErasureRequest, ErasureState,
    ErasureStep, ErasureStore, ErrorKind, EventId, Filter, Group, Kind, LogStore, Permissions,
    Prune, Selection, SystemClock, TenantId, TenantScope, TenantStatus, TenantStore, Timestamp,
};

use crate::fixture::{
    act, append, basis, events, everything, kind, new_tenant, set_status, time, trusted,
};

/// Opens a store of erasures for a contract.
pub trait ErasureStoreHarness: Sized + Send + Sync + 'static {
    /// The store of logs and erasures.
    type Store: ErasureStore + LogStore + TenantStore;

    /// Opens a store, which other contracts may use at the same time.
    fn open() -> impl Future<Output = Self> + Send;

    /// The store.
    fn store(&self) -> &Self::Store;
}

fn asked_at() -> Timestamp {
    time("2026-11-24T03:00:00.123456Z")
}

fn new_id() -> ErasureId {
    ErasureId::new(SystemClock.event_id().into_uuid())
}

/// A job that asks for everything of a user, in a tenant's name.
fn job_of(tenant: TenantId, selection: Selection) -> ErasureJob {
    let request = ErasureRequest::new(selection, basis("gdpr-17")).reason("request 7");
    ErasureJob::new(new_id(), &trusted(tenant), request, asked_at())
}

async fn begin(store: &dyn ErasureStore, job: &ErasureJob) -> ErasureJob {
    store
        .begin_erasure(&trusted(job.tenant), job, &[])
        .await
        .expect("begun")
}

async fn find(store: &dyn ErasureStore, job: &ErasureJob) -> ErasureJob {
    let found = store.find_erasure(&trusted(job.tenant), job.id).await;
    found.expect("an answer").expect("the job")
}

/// Erases `ids` as a step of a job from `from` to `next`.
async fn step(
    store: &dyn LogStore,
    job: &ErasureJob,
    ids: Vec<EventId>,
    (from, next): (u64, u64),
    done: bool,
) -> Erased {
    let step = ErasureStep {
        id: job.id,
        from,
        next,
        done,
    };
    let erasure = Erasure::new(ids, job.basis.clone(), act(job.tenant)).step(step);
    let erased = store.erase(&trusted(job.tenant), &erasure).await;
    erased.expect("an answer")
}

async fn size(store: &dyn LogStore, tenant: TenantId) -> u64 {
    store.head(&trusted(tenant)).await.expect("a head").size()
}

/// With every condition of its filter, and with the log's size.
pub async fn an_erasure_is_read_as_it_was_begun<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let receipts = append(store, tenant, events(3)).await;
    let ids: Vec<EventId> = receipts.iter().map(|r| r.id).collect();
    let filter = Filter::new().user("ann \"the\u{1f600} user\"").to_seq(2);
    for (selection, end) in [
        (Selection::matching(filter), 3),
        (Selection::ids(ids[..2].to_vec()), 2),
    ] {
        let request = ErasureRequest::new(selection, basis("gdpr-17"))
            .groups(&[Group::Metadata, Group::Actor]);
        let job = ErasureJob::new(new_id(), &trusted(tenant), request, asked_at());
        let begun = begin(store, &job).await;
        assert_eq!(begun, job.clone().begun_at(3));
        assert_eq!(begun.end, end);
        assert_eq!(begun.groups, [Group::Actor, Group::Metadata]);
        assert_eq!(find(store, &job).await, begun);
    }
    let none = store.find_erasure(&trusted(tenant), new_id()).await;
    assert_eq!(none.expect("an answer"), None);
}

/// A second one of its id is refused.
pub async fn an_id_is_one_erasure<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let job = job_of(tenant, Selection::user("user-1"));
    begin(store, &job).await;
    let again = store.begin_erasure(&trusted(tenant), &job, &[]).await;
    assert_eq!(kind(again), Some(ErrorKind::Conflict));
}

/// Progress and erasing are one transaction; the end forgets whom it was about.
pub async fn a_step_moves_its_erasure<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let receipts = append(store, tenant, events(4)).await;
    let job = begin(store, &job_of(tenant, Selection::user("user-1"))).await;
    let erased = step(store, &job, vec![receipts[1].id], (0, 2), false).await;
    assert_eq!((erased.entries, erased.receipts.len()), (1, 1));
    let moved = find(store, &job).await;
    assert_eq!((moved.next, moved.entries), (2, 1));
    assert_eq!(moved.state, ErasureState::Running);
    assert_eq!(moved.selection, job.selection);
    let erased = step(store, &job, vec![receipts[2].id], (2, 4), true).await;
    assert_eq!(erased.entries, 1);
    let done = find(store, &job).await;
    assert_eq!((done.next, done.entries), (4, 2));
    assert_eq!(done.state, ErasureState::Done);
    assert_eq!(done.selection, None);
    let entries = everything(store, tenant).await;
    let whole = |n: usize| entries[n].erased.is_empty();
    assert_eq!(
        [whole(0), whole(1), whole(2), whole(3)],
        [true, false, false, true]
    );
}

/// Whether it has no ids, or only such as were erased before.
pub async fn a_step_that_erases_nothing_moves_on<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let receipts = append(store, tenant, events(3)).await;
    let job = begin(store, &job_of(tenant, Selection::user("user-1"))).await;
    let id = receipts[1].id;
    for (ids, steps, entries) in [
        (vec![], (0, 1), 0),
        (vec![id], (1, 2), 1),
        (vec![id], (2, 3), 0),
    ] {
        let erased = step(store, &job, ids, steps, false).await;
        assert_eq!(erased.entries, entries);
        assert_eq!(find(store, &job).await.next, steps.1);
    }
    assert_eq!(size(store, tenant).await, 4, "one control entry");
}

/// What is named of the archive counts as what is erased in the log.
pub async fn a_step_counts_what_pruned_entries_lose<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let scope = trusted(tenant);
    append(store, tenant, events(3)).await;
    let prune = Prune::new(Timestamp::MAX, basis("retention"), act(tenant));
    store.prune(&scope, &prune).await.expect("pruned");
    let job = begin(store, &job_of(tenant, Selection::user("user-1"))).await;
    let archived = [0, 2].map(|seq| (seq, vec![Group::Actor])).to_vec();
    let taken = ErasureStep {
        id: job.id,
        from: 0,
        next: 3,
        done: false,
    };
    let erasure = Erasure::new(Vec::new(), job.basis.clone(), act(tenant));
    let erasure = erasure.archived(archived).step(taken);
    for entries in [2, 0] {
        let erased = store.erase(&scope, &erasure).await.expect("an answer");
        assert_eq!(erased.entries, entries);
        let job = find(store, &job).await;
        assert_eq!((job.next, job.entries), (3, 2));
    }
}

/// Another worker was faster, or the job is done, or there is none.
pub async fn a_step_from_elsewhere_does_nothing<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let receipts = append(store, tenant, events(3)).await;
    let ids = |n: usize| vec![receipts[n].id];
    let job = begin(store, &job_of(tenant, Selection::user("user-1"))).await;
    step(store, &job, vec![], (0, 2), false).await;
    let stray = job_of(tenant, Selection::user("user-1"));
    for (job, steps) in [(&job, (0, 2)), (&job, (3, 4)), (&stray, (0, 1))] {
        let erased = step(store, job, ids(0), steps, true).await;
        assert_eq!(erased, Erased::default());
    }
    assert_eq!(find(store, &job).await.next, 2);
    step(store, &job, vec![], (2, 3), true).await;
    let erased = step(store, &job, ids(0), (3, 4), true).await;
    assert_eq!(erased, Erased::default(), "it is done");
    assert_eq!(size(store, tenant).await, 3);
    let entries = everything(store, tenant).await;
    assert!(entries.iter().all(|entry| entry.erased.is_empty()));
}

/// Of several that take the same step at once, one does.
pub async fn a_step_is_taken_once<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let receipts = append(store, tenant, events(2)).await;
    let job = begin(store, &job_of(tenant, Selection::user("user-1"))).await;
    let ids = || vec![receipts[0].id, receipts[1].id];
    let (one, two, three) = tokio::join!(
        step(store, &job, ids(), (0, 2), true),
        step(store, &job, ids(), (0, 2), true),
        step(store, &job, ids(), (0, 2), true),
    );
    assert_eq!(one.entries + two.entries + three.entries, 2);
    assert_eq!(find(store, &job).await.entries, 2);
    let entries = everything(store, tenant).await;
    let controls = entries.iter().filter(|e| e.kind == Kind::Erase).count();
    assert_eq!(controls, 1);
}

/// Not even by id.
pub async fn entries_recorded_later_are_not_its_subject<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let earlier = append(store, tenant, events(1)).await;
    let job = begin(store, &job_of(tenant, Selection::user("user-0"))).await;
    let later = append(store, tenant, events(1)).await;
    let ids = vec![later[0].id, earlier[0].id];
    let erased = step(store, &job, ids, (0, 1), true).await;
    assert_eq!(erased.entries, 1);
    let entries = everything(store, tenant).await;
    assert!(!entries[0].erased.is_empty());
    assert!(entries[1].erased.is_empty());
}

/// One of each tenant, in the order of their ids, and none of a closed one.
pub async fn the_oldest_open_erasure_of_each_tenant_is_told<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let mut tenants = Vec::new();
    for _ in 0..5 {
        tenants.push(new_tenant(store).await);
    }
    tenants.sort_unstable();
    let mut first = Vec::new();
    for tenant in &tenants {
        let jobs = [(); 3].map(|()| job_of(*tenant, Selection::user("ann")));
        for job in jobs.iter().rev() {
            begin(store, job).await;
        }
        first.push(jobs.into_iter().min_by_key(|job| job.id).expect("a job"));
    }
    let open = async || {
        let (mut own, mut after) = (Vec::new(), None);
        loop {
            let page = store.open_erasures(after, 2).await.expect("jobs");
            assert!(page.len() <= 2);
            let Some(last) = page.last() else { return own };
            after = Some(last.tenant);
            let ours = page.iter().filter(|job| tenants.contains(&job.tenant));
            own.extend(ours.map(|job| (job.tenant, job.id)));
        }
    };
    let all: Vec<_> = first.iter().map(|job| (job.tenant, job.id)).collect();
    assert_eq!(open().await, all);
    set_status(store, tenants[0], TenantStatus::Suspended).await;
    set_status(store, tenants[1], TenantStatus::Inactive).await;
    step(store, &first[2], vec![], (0, 0), true).await;
    let now = open().await;
    assert_eq!(now.len(), 4);
    assert_eq!(now[0], all[1]);
    assert_ne!(now[1], all[2], "its next one");
    assert_eq!(now[2..], all[3..]);
    set_status(store, tenants[0], TenantStatus::Active).await;
    assert_eq!(open().await[0], all[0]);
}

/// And of one that is done nothing is noted any more.
pub async fn a_failure_is_noted_until_the_next_step<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let tenant = new_tenant(store).await;
    let job = begin(store, &job_of(tenant, Selection::user("ann"))).await;
    let note = async |text: &str| {
        let noted = store.note_erasure(tenant, job.id, text).await;
        noted.expect("noted");
        find(store, &job).await.last_error
    };
    assert_eq!(note("away").await.as_deref(), Some("away"));
    assert_eq!(note("still away").await.as_deref(), Some("still away"));
    step(store, &job, vec![], (0, 0), false).await;
    assert_eq!(find(store, &job).await.last_error, None);
    step(store, &job, vec![], (0, 0), true).await;
    assert_eq!(note("too late").await, None);
    let stray = store.note_erasure(tenant, new_id(), "none such").await;
    stray.expect("passed over");
}

/// Also of erasures that are done, and for as long as a queue keeps messages.
pub async fn marks_find_their_erasures<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, other) = (new_tenant(store).await, new_tenant(store).await);
    let mark = |n: u8| ErasureMark::new([n; 32]);
    let begin = async |tenant, marks: &[ErasureMark], at: Timestamp| {
        let mut job = job_of(tenant, Selection::user("ann"));
        job.requested_at = at;
        let begun = store.begin_erasure(&trusted(tenant), &job, marks).await;
        begun.expect("begun")
    };
    let marked = async |marks: &[ErasureMark], since: Timestamp| {
        let found = store.marked_erasures(tenant, marks, since).await;
        let mut found = found.expect("jobs");
        found.sort_by_key(|(mark, job)| (*mark, job.id));
        found
    };
    let later = |micros| Timestamp::from_micros(asked_at().as_micros() + micros).expect("a time");
    let first = begin(tenant, &[mark(1), mark(2)], asked_at()).await;
    begin(other, &[mark(1)], asked_at()).await;
    let second = begin(tenant, &[mark(2), mark(3)], later(1)).await;
    step(store, &first, vec![], (0, 0), true).await;
    let first = find(store, &first).await;
    let mut both = vec![(mark(2), first.clone()), (mark(2), second.clone())];
    both.sort_by_key(|(mark, job)| (*mark, job.id));
    assert_eq!(marked(&[mark(2)], asked_at()).await, both);
    assert_eq!(
        marked(&[mark(1), mark(3), mark(4)], asked_at()).await,
        [(mark(1), first), (mark(3), second.clone())]
    );
    assert_eq!(marked(&[mark(2)], later(1)).await, [(mark(2), second)]);
    assert_eq!(marked(&[], asked_at()).await, []);
    begin(tenant, &[], later(LATE_MICROS + 2)).await;
    assert_eq!(
        marked(&[mark(1), mark(2), mark(3)], Timestamp::MIN).await,
        []
    );
}

/// Nor begins one, nor without the permission, nor in a suspended one.
pub async fn no_tenant_reads_anothers_erasures<H: ErasureStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (tenant, other) = (new_tenant(store).await, new_tenant(store).await);
    let job = begin(store, &job_of(tenant, Selection::user("ann"))).await;
    let found = store.find_erasure(&trusted(other), job.id).await;
    assert_eq!(found.expect("an answer"), None);
    let next = job_of(tenant, Selection::user("ann"));
    let foreign = store.begin_erasure(&trusted(other), &next, &[]).await;
    assert_eq!(kind(foreign), Some(ErrorKind::Forbidden));
    let nothing: TenantScope = trusted(tenant).only(Permissions::NONE);
    let refused = store.begin_erasure(&nothing, &next, &[]).await;
    assert_eq!(kind(refused), Some(ErrorKind::Forbidden));
    let refused = store.find_erasure(&nothing, job.id).await;
    assert_eq!(kind(refused), Some(ErrorKind::Forbidden));
    set_status(store, tenant, TenantStatus::Suspended).await;
    let closed = store.begin_erasure(&trusted(tenant), &next, &[]).await;
    assert_eq!(kind(closed), Some(ErrorKind::TenantClosed));
    let closed = store.find_erasure(&trusted(tenant), job.id).await;
    assert_eq!(kind(closed), Some(ErrorKind::TenantClosed));
}
