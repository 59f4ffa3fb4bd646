//! The contract of [`OffboardingStore`], and of what a log store answers of a deleted tenant.

use std::future::Future;

use audit_core::{
    ApiKey, Clock as _, CredentialStore, Ending, Erasure, ErasureId, ErasureJob, ErasureRequest,
    ErasureStep, ErasureStore, ErrorKind, Filter, LegalHold, LogStore, Mark, OffboardingStore,
    PageRequest, Prune, Retention, RetentionStore, Role, Selection, SystemClock, TenantId,
    TenantSecret, TenantStatus, TenantStore, TenantUpdate, Timestamp, Tombstone,
};

use crate::fixture::{
    act, append, basis, batch, event, events, everything, hold, kind, new_tenant, release, said,
    seconds_after, set_status, tenant, tenant_id, time, trusted, try_append,
};

/// Opens a store of logs, tenants and their ends for a contract.
pub trait OffboardingStoreHarness: Sized + Send + Sync + 'static {
    /// The store.
    type Store: OffboardingStore
        + LogStore
        + TenantStore
        + RetentionStore
        + ErasureStore
        + CredentialStore;

    /// Opens a store, which other contracts may use at the same time.
    fn open() -> impl Future<Output = Self> + Send;

    /// The store.
    fn store(&self) -> &Self::Store;

    /// Closes the store as a crash would and opens it again; none when it keeps nothing. Then
    /// contracts about durability pass unchecked.
    fn reopen(self) -> impl Future<Output = Option<Self>> + Send {
        async { None }
    }
}

fn asked_at() -> Timestamp {
    time("2026-11-24T03:00:00.123456Z")
}

fn asked(tenant: TenantId) -> Ending {
    Ending::new(tenant, "admin", Some("contract 7 ended".into()), asked_at())
}

async fn begin<S: OffboardingStore>(store: &S, tenant: TenantId) -> Ending {
    let begun = store.begin_ending(&asked(tenant), &said(tenant)).await;
    begun.expect("begun")
}

/// What would be left of a tenant as it is now.
async fn tombstone<S: LogStore>(store: &S, tenant: TenantId) -> Tombstone {
    let head = store.head(&trusted(tenant)).await.expect("a head");
    Tombstone::of(&head, asked_at()).signed("audit.example/log/x", "the note\n")
}

/// Ends a tenant, and returns what is left of it.
async fn end<S: OffboardingStore + LogStore>(store: &S, tenant: TenantId) -> Tombstone {
    begin(store, tenant).await;
    let tombstone = tombstone(store, tenant).await;
    store.end(&tombstone).await.expect("ended");
    tombstone
}

async fn status<S: TenantStore>(store: &S, tenant: TenantId) -> TenantStatus {
    let found = store.tenant(tenant).await.expect("an answer");
    found.expect("a tenant").status
}

/// Sweeps until nothing is left to sweep.
async fn sweep<S: LogStore>(store: &S) {
    while store.sweep().await.expect("swept") {}
}

/// It takes no more, and is read still.
pub async fn an_ending_closes_the_tenant_and_is_an_event_of_it<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    for before in [TenantStatus::Active, TenantStatus::Suspended] {
        let id = new_tenant(store).await;
        append(store, id, events(2)).await;
        assert_eq!(store.ending(id).await.expect("an answer"), None);
        set_status(store, id, before).await;
        let event = said(id);
        let begun = store.begin_ending(&asked(id), &event).await.expect("begun");
        assert_eq!(begun, asked(id));
        assert_eq!(store.ending(id).await.expect("an answer"), Some(begun));
        assert_eq!(status(store, id).await, TenantStatus::Inactive);
        let refused = try_append(store, &batch(id, events(1))).await;
        assert_eq!(kind(refused), Some(ErrorKind::TenantClosed));
        let entries = everything(store, id).await;
        assert_eq!(entries.len(), 4);
        assert_eq!(entries[3].id, event.id());
        assert_eq!(store.tombstone(id).await.expect("an answer"), None);
    }
    let unknown = tenant_id();
    let refused = store.begin_ending(&asked(unknown), &said(unknown)).await;
    assert_eq!(kind(refused), Some(ErrorKind::UnknownTenant));
    assert_eq!(store.ending(unknown).await.expect("an answer"), None);
}

/// Asking again changes nothing, whoever asks for what.
pub async fn an_ending_is_asked_for_once<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let id = new_tenant(store).await;
    let first = begin(store, id).await;
    let again = Ending::new(id, "other", None, SystemClock.now());
    let again = again.archived(false).signed(false);
    let answered = store.begin_ending(&again, &said(id)).await;
    assert_eq!(answered.expect("an answer"), first);
    assert_eq!(everything(store, id).await.len(), 1);
    let Some(harness) = harness.reopen().await else {
        return;
    };
    let kept = harness.store().ending(id).await.expect("an answer");
    assert_eq!(kept, Some(first));
}

/// What is not its status does.
pub async fn the_status_of_a_tenant_that_ends_does_not_change<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let id = new_tenant(store).await;
    begin(store, id).await;
    for status in TenantStatus::ALL {
        let update = TenantUpdate::default().status(status);
        let refused = store.update_tenant(id, &update, &said(id)).await;
        assert_eq!(kind(refused), Some(ErrorKind::Refused), "{status}");
    }
    assert_eq!(everything(store, id).await.len(), 1);
    let update = TenantUpdate::default().name("renamed");
    let renamed = store.update_tenant(id, &update, &said(id)).await;
    assert_eq!(renamed.expect("renamed").status, TenantStatus::Inactive);
}

/// A hold that was placed after the end was asked for counts, too.
pub async fn a_held_tenant_does_not_end<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let id = new_tenant(store).await;
    let placed: LegalHold = hold(store, id, "case 7").await;
    let refused = store.begin_ending(&asked(id), &said(id)).await;
    let refusal = refused.expect_err("refused");
    assert_eq!(refusal.kind(), ErrorKind::Refused);
    assert!(refusal.message().contains("case 7"), "{refusal}");
    assert_eq!(status(store, id).await, TenantStatus::Active);
    release(store, id, &placed).await;
    begin(store, id).await;
    let placed = hold(store, id, "case 8").await;
    let refused = store.end(&tombstone(store, id).await).await;
    assert_eq!(kind(refused), Some(ErrorKind::Refused));
    assert_eq!(status(store, id).await, TenantStatus::Inactive);
    release(store, id, &placed).await;
    store.end(&tombstone(store, id).await).await.expect("ended");
}

/// Whoever archived less than there is has to archive again.
pub async fn only_a_log_that_was_asked_to_end_and_did_not_grow_ends<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let id = new_tenant(store).await;
    append(store, id, events(3)).await;
    let unasked = store.end(&tombstone(store, id).await).await;
    assert_eq!(kind(unasked), Some(ErrorKind::Refused));
    let early = tombstone(store, id).await;
    begin(store, id).await;
    assert_eq!(kind(store.end(&early).await), Some(ErrorKind::Unavailable));
    let mut other = tombstone(store, id).await;
    other.root = early.root;
    assert_eq!(kind(store.end(&other).await), Some(ErrorKind::Unavailable));
    assert_eq!(status(store, id).await, TenantStatus::Inactive);
    assert_eq!(everything(store, id).await.len(), 4);
    assert!(store.ending(id).await.expect("an answer").is_some());
    let unknown = tenant_id();
    other.tenant = unknown;
    assert_eq!(
        kind(store.end(&other).await),
        Some(ErrorKind::UnknownTenant)
    );
}

/// What it erases may have to leave the archive, and only the log says what that is.
pub async fn a_tenant_does_not_end_while_an_erasure_runs<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let id = new_tenant(store).await;
    append(store, id, events(3)).await;
    let request = ErasureRequest::new(Selection::user("ann"), basis("gdpr-17"));
    let job = ErasureId::new(SystemClock.event_id().into_uuid());
    let job = ErasureJob::new(job, &trusted(id), request, asked_at());
    let begun = store.begin_erasure(&trusted(id), &job, &[]).await;
    let begun = begun.expect("begun");
    begin(store, id).await;
    let waits = store.end(&tombstone(store, id).await).await;
    assert_eq!(kind(waits), Some(ErrorKind::Unavailable));
    let step = ErasureStep {
        id: begun.id,
        from: begun.next,
        next: begun.end,
        done: true,
    };
    let erasure = Erasure::new(Vec::new(), basis("gdpr-17"), act(id)).step(step);
    store.erase(&trusted(id), &erasure).await.expect("done");
    let ended = store.end(&tombstone(store, id).await).await;
    ended.expect("ended");
}

/// It would make the log grow, again and again.
pub async fn no_erasure_is_begun_once_the_end_is_asked_for<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (id, other) = (new_tenant(store).await, new_tenant(store).await);
    begin(store, id).await;
    for (tenant, expected) in [(id, Some(ErrorKind::Refused)), (other, None)] {
        let request = ErasureRequest::new(Selection::user("ann"), basis("gdpr-17"));
        let job = ErasureId::new(SystemClock.event_id().into_uuid());
        let job = ErasureJob::new(job, &trusted(tenant), request, asked_at());
        let begun = store.begin_erasure(&trusted(tenant), &job, &[]).await;
        assert_eq!(kind(begun), expected);
    }
}

/// Neither in a dry run; what was begun before goes on.
pub async fn nothing_is_erased_or_pruned_once_the_end_is_asked_for<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (id, other) = (new_tenant(store).await, new_tenant(store).await);
    for tenant in [id, other] {
        let receipts = append(store, tenant, events(3)).await;
        let keeps = Retention::forever().keep_days(30);
        let set = store.set_retention(tenant, &keeps, &said(tenant)).await;
        assert!(set.expect("set"));
        let expected = (tenant == id).then_some(ErrorKind::Refused);
        if tenant == id {
            begin(store, id).await;
        }
        let before = everything(store, tenant).await;
        let scope = trusted(tenant);
        let ids = vec![receipts[0].id];
        let erasure = Erasure::new(ids, basis("gdpr-17"), act(tenant));
        let refused = store.erase(&scope, &erasure.clone().unless_ending()).await;
        assert_eq!(kind(refused), expected);
        let now = seconds_after(before[2].created_at, 1);
        for is_dry in [true, false] {
            let prune = Prune::new(now, basis("retention"), act(tenant)).dry_run(is_dry);
            assert_eq!(kind(store.prune(&scope, &prune).await), expected);
        }
        let is_same = everything(store, tenant).await == before;
        assert_eq!(is_same, tenant == id);
        if tenant == id {
            let erased = store.erase(&scope, &erasure).await.expect("erased");
            assert_eq!(erased.entries, 1);
        }
    }
    // Other contracts' are told too.
    let retained = store.retained(None, usize::MAX).await.expect("an answer");
    let told = |tenant| retained.iter().any(|one| one.tenant == tenant);
    assert_eq!((told(id), told(other)), (false, true));
}

/// Each once, in the order of the tenants' ids.
pub async fn endings_and_tombstones_are_told_in_pages<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let mut ids = Vec::new();
    for _ in 0..5 {
        let id = new_tenant(store).await;
        begin(store, id).await;
        ids.push(id);
    }
    ids.sort_unstable();
    // Other contracts' are told too.
    let (mut told, mut after) = (Vec::new(), None);
    loop {
        let page = store.open_endings(after, 2).await.expect("a page");
        assert!(page.len() <= 2);
        let Some(last) = page.last() else { break };
        after = Some(last.tenant);
        told.extend(page.into_iter().map(|ending| ending.tenant));
    }
    told.retain(|id| ids.contains(id));
    assert_eq!(told, ids);
    for id in &ids {
        let tombstone = tombstone(store, *id).await;
        store.end(&tombstone).await.expect("ended");
    }
    assert!(!all_open(store).await.iter().any(|id| ids.contains(id)));
    let mut unsettled = all_unsettled(store).await;
    unsettled.retain(|id| ids.contains(id));
    assert_eq!(unsettled, ids);
    for _ in 0..2 {
        store.settle(ids[1]).await.expect("settled");
    }
    store.settle(tenant_id()).await.expect("nothing to settle");
    let mut unsettled = all_unsettled(store).await;
    unsettled.retain(|id| ids.contains(id));
    assert_eq!(unsettled, [ids[0], ids[2], ids[3], ids[4]]);
}

async fn all_open<S: OffboardingStore>(store: &S) -> Vec<TenantId> {
    let all = store.open_endings(None, usize::MAX).await;
    let all = all.expect("endings").into_iter();
    all.map(|ending| ending.tenant).collect()
}

async fn all_unsettled<S: OffboardingStore>(store: &S) -> Vec<TenantId> {
    let (mut told, mut after) = (Vec::new(), None);
    loop {
        let page = store.unsettled(after, 2).await.expect("a page");
        assert!(page.len() <= 2);
        let Some(last) = page.last() else {
            return told;
        };
        after = Some(last.tenant);
        told.extend(page.into_iter().map(|tombstone| tombstone.tenant));
    }
}

/// Before and after its rows are swept.
pub async fn an_ended_tenant_refuses_everything<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let id = new_tenant(store).await;
    let receipts = append(store, id, events(300)).await;
    let key = ApiKey::new(
        SystemClock.event_id().into_uuid(),
        id,
        "key",
        Role::Writer,
        asked_at(),
    );
    let (scope, secret) = (trusted(id), SystemClock.secret());
    store.add_key(&scope, &key, &secret).await.expect("added");
    let last = end(store, id).await;
    for _ in 0..2 {
        let deleted = Some(ErrorKind::TenantDeleted);
        let again = batch(id, vec![event(1)]).creating_tenant();
        assert_eq!(kind(try_append(store, &again).await), deleted);
        assert_eq!(kind(store.get(&scope, &[receipts[0].id]).await), deleted);
        assert_eq!(kind(store.at(&scope, &[0]).await), deleted);
        let page = PageRequest::first();
        assert_eq!(
            kind(store.list(&scope, &Filter::new(), &page).await),
            deleted
        );
        assert_eq!(kind(store.read(&scope, 0, 10).await), deleted);
        assert_eq!(kind(store.head(&scope).await), deleted);
        assert_eq!(kind(store.hashes(&scope, 0, 0..1).await), deleted);
        assert_eq!(kind(store.leaves(&scope, 0..1).await), deleted);
        assert_eq!(kind(store.counters(&scope, 0..1).await), deleted);
        assert!(store.snapshot(&scope).await.is_err());
        assert_eq!(kind(store.advance(id, "c", false, 1).await), deleted);
        let prune = Prune::new(SystemClock.now(), basis("retention"), act(id));
        assert_eq!(kind(store.prune(&scope, &prune).await), deleted);
        assert_eq!(kind(store.retention(id).await), deleted);
        let (retention, told) = (Retention::default(), said(id));
        let set = store.set_retention(id, &retention, &told).await;
        assert_eq!(kind(set), deleted);
        assert_eq!(kind(store.holds(id, None, 1).await), deleted);
        assert_eq!(kind(store.add_key(&scope, &key, &secret).await), deleted);
        let create = store.create_tenant(&tenant(id, "again")).await;
        assert_eq!(kind(create), deleted);
        let update = TenantUpdate::default().name("again");
        let update = store.update_tenant(id, &update, &said(id)).await;
        assert_eq!(kind(update), deleted);
        let begin = store.begin_ending(&asked(id), &said(id)).await;
        assert_eq!(kind(begin), deleted);
        assert_eq!(kind(store.end(&last).await), deleted);
        assert_eq!(store.find_key(&secret).await.expect("an answer"), None);
        assert_eq!(store.ending(id).await.expect("an answer"), None);
        sweep(store).await;
    }
}

/// With its root and its checkpoint, after its rows are gone too; of its name and its secret nothing.
pub async fn a_tombstone_is_read_as_it_was_kept<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let (id, unsigned) = (new_tenant(store).await, new_tenant(store).await);
    append(store, id, events(3)).await;
    let mut kept = end(store, id).await;
    assert_eq!((kept.size, kept.ended_at), (4, asked_at()));
    begin(store, unsigned).await;
    let head = store.head(&trusted(unsigned)).await.expect("a head");
    let mut other = Tombstone::of(&head, asked_at());
    store.end(&other).await.expect("ended");
    sweep(store).await;
    for swept in [&mut kept, &mut other] {
        assert!(!swept.is_swept);
        swept.is_swept = true;
        assert_eq!(swept.unappended, Some(0));
    }
    let is_kept = async |store: &H::Store| {
        assert_eq!(
            store.tombstone(id).await.expect("an answer"),
            Some(kept.clone())
        );
        assert_eq!(
            store.tombstone(unsigned).await.expect("an answer"),
            Some(other.clone())
        );
        let tenant = store.tenant(id).await.expect("an answer");
        let tenant = tenant.expect("a tenant");
        assert_eq!(tenant.status, TenantStatus::Deleted);
        assert_eq!(tenant.name, id.to_string());
        assert_eq!(tenant.secret, TenantSecret::NONE);
    };
    is_kept(store).await;
    if let Some(harness) = harness.reopen().await {
        is_kept(harness.store()).await;
    }
}

/// Rows of all sorts, of more than one step.
pub async fn what_an_ended_tenant_left_is_swept_and_nothing_of_another<
    H: OffboardingStoreHarness,
>() {
    let harness = H::open().await;
    let store = harness.store();
    let (id, other) = (new_tenant(store).await, new_tenant(store).await);
    for tenant in [id, other] {
        append(store, tenant, events(700)).await;
        append(store, tenant, events(500)).await;
        store.advance(tenant, "c", true, 9).await.expect("moved");
    }
    let before = everything(store, other).await;
    end(store, id).await;
    sweep(store).await;
    assert_eq!(store.cursor(id, "c").await.expect("a position"), 0);
    assert_eq!(store.cursor(other, "c").await.expect("a position"), 9);
    assert_eq!(everything(store, other).await, before);
    let hashes = store.hashes(&trusted(other), 0, 0..1_200).await;
    assert_eq!(hashes.expect("hashes").len(), 1_200);
    assert_eq!(append(store, other, events(1)).await[0].seq, 1_200);
    let grown = store.grown_since(Mark::default()).await.expect("grown");
    assert!(!grown.tenants.iter().any(|(tenant, _)| *tenant == id));
    assert!(grown.tenants.contains(&(other, 1_201)));
}

/// Although the newest rows of all are gone.
pub async fn what_is_appended_behind_a_swept_tenant_is_told<H: OffboardingStoreHarness>() {
    let harness = H::open().await;
    let store = harness.store();
    let other = new_tenant(store).await;
    append(store, other, events(2)).await;
    for n in 1..4 {
        let id = new_tenant(store).await;
        append(store, id, events(20)).await;
        end(store, id).await;
        let mark = store
            .grown_since(Mark::default())
            .await
            .expect("grown")
            .mark;
        sweep(store).await;
        let swept = store.grown_since(mark).await.expect("grown").mark;
        append(store, other, events(1)).await;
        for since in [mark, swept] {
            let grown = store.grown_since(since).await.expect("grown");
            assert!(grown.tenants.contains(&(other, 2 + n)), "{n}: {grown:?}");
        }
    }
}
