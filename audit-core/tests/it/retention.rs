//! What retention is, and the worker that looks after it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_core::memory::MemoryStore;
use audit_core::retention::{ActionRetention, LegalHold, Retention};
use audit_core::{
    ActorType, AuditLog, Clock as _, Consumer, Entry, ErrorKind, Event, Filter, Group, Kind,
    ManualClock, PageRequest, Recorder as _, Result, RetentionStatus, TenantId, TenantScope,
    TenantStatus, TenantUpdate, Timestamp, Workers,
};
use uuid::Uuid;

const DAY: i64 = 86_400_000_000;

fn tenant(n: u128) -> TenantId {
    TenantId::new(Uuid::from_u128(n))
}

struct Stage {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
    log: AuditLog,
}

impl Stage {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(consumer: Option<Arc<dyn Consumer>>) -> Self {
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let clock = Arc::new(ManualClock::new(start));
        let store = Arc::new(MemoryStore::with_clock(clock.clone()));
        let mut log = AuditLog::builder(store.clone())
            .clock(clock.clone())
            .retention_every(Duration::from_millis(10));
        if let Some(consumer) = consumer {
            log = log.consumer(consumer);
        }
        Self {
            clock,
            store,
            log: log.build(),
        }
    }

    async fn record(&self, n: u128, action: &str) {
        let event = Event::view("doc", "d").action(action).user("ann");
        let event = event.session_id("s").metadata(&1);
        self.log.recorder(tenant(n)).record(event).await.unwrap();
    }

    async fn retain(&self, n: u128, retention: Retention) {
        let set = self.log.set_retention(tenant(n), &retention, "admin", None);
        set.await.unwrap();
    }

    async fn hold(&self, n: u128) -> LegalHold {
        let placed = self
            .log
            .place_hold(tenant(n), None, "case 7", "counsel", None);
        placed.await.unwrap()
    }

    async fn release(&self, n: u128, hold: &LegalHold) {
        let released = self.log.release_hold(tenant(n), hold.id, "counsel", None);
        released.await.unwrap();
    }

    /// Waits until the worker has been through all tenants as they are now.
    async fn round(&self, workers: &Workers) -> RetentionStatus {
        self.clock.advance_micros(1);
        let now = self.clock.now();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let statuses = workers.status();
            let status = statuses.iter().find(|s| s.name == "retention").unwrap();
            assert_eq!(status.last_error, None);
            if let Some(status) = &status.retention
                && status.last_run >= Some(now)
            {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "no round: {status:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn entries(&self, n: u128) -> Vec<Entry> {
        let log = self.log.tenant(TenantScope::trusted(tenant(n), "test"));
        let page = PageRequest::first().ascending().limit(1_000);
        log.list(&Filter::new(), &page).await.unwrap().items
    }

    async fn size(&self, n: u128) -> u64 {
        let log = self.log.tenant(TenantScope::trusted(tenant(n), "test"));
        log.head().await.unwrap().size()
    }
}

/// Positions and kinds.
fn shape(entries: &[Entry]) -> Vec<(u64, Kind)> {
    entries
        .iter()
        .map(|entry| (entry.seq, entry.kind))
        .collect()
}

#[tokio::test]
async fn what_is_older_than_it_is_kept_is_pruned_by_the_system() {
    let stage = Stage::new();
    stage.record(1, "a").await;
    stage.record(2, "a").await;
    stage.retain(1, Retention::forever().keep_days(30)).await;
    let workers = stage.log.start();
    stage.clock.advance_micros(20 * DAY);
    stage.record(1, "b").await;
    let status = stage.round(&workers).await;
    assert_eq!((status.pruned, status.erased, status.held), (0, 0, 0));
    // Nothing is written when nothing is due.
    assert_eq!(stage.size(1).await, 3);

    stage.clock.advance_micros(11 * DAY);
    let status = stage.round(&workers).await;
    assert_eq!((status.pruned, status.held), (2, 0));
    let entries = stage.entries(1).await;
    assert_eq!(shape(&entries), [(2, Kind::Event), (3, Kind::Prune)]);
    let said = &entries[1];
    assert_eq!(said.fields.user_id.as_deref(), Some("retention"));
    assert_eq!(said.fields.actor_type, Some(ActorType::System));
    assert!(
        said.ctl
            .as_ref()
            .unwrap()
            .contains(r#""basis":"retention""#)
    );
    stage.round(&workers).await;
    assert_eq!(stage.size(1).await, 4);
    // Another tenant keeps all for ever.
    assert_eq!(stage.entries(2).await.len(), 1);
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn groups_of_an_action_are_erased_after_its_days() {
    let stage = Stage::new();
    for n in 0..1_203 {
        let action = if n % 2 == 0 { "short" } else { "long" };
        stage.record(1, action).await;
    }
    let rule = ActionRetention::new("short", 10).groups(&[Group::Context, Group::Actor]);
    stage.retain(1, Retention::forever().action(rule)).await;
    let workers = stage.log.start();
    stage.clock.advance_micros(9 * DAY);
    stage.round(&workers).await;
    assert_eq!(stage.size(1).await, 1_204);
    stage.clock.advance_micros(DAY + 1);
    stage.record(1, "short").await;
    let status = stage.round(&workers).await;
    assert_eq!((status.pruned, status.erased), (0, 602));
    // Two batches of at most 500.
    assert_eq!(stage.size(1).await, 1_207);
    let log = stage.log.tenant(TenantScope::trusted(tenant(1), "test"));
    for (seq, gone) in [(0, true), (1, false), (1_202, true), (1_204, false)] {
        let page = PageRequest::first().limit(1);
        let filter = Filter::new().from_seq(seq).to_seq(seq + 1);
        let entry = log.list(&filter, &page).await.unwrap().items.remove(0);
        let expected: &[Group] = if gone {
            &[Group::Actor, Group::Context]
        } else {
            &[]
        };
        assert_eq!(entry.erased, expected, "{seq}");
    }
    // What is done is not done again, by a worker that starts anew neither.
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    let workers = stage.log.start();
    let status = stage.round(&workers).await;
    assert_eq!(status.erased, 0);
    assert_eq!(stage.size(1).await, 1_207);
    // What has grown old since is.
    stage.clock.advance_micros(10 * DAY + 1);
    assert_eq!(stage.round(&workers).await.erased, 1);
}

#[tokio::test]
async fn a_changed_rule_takes_from_what_an_earlier_one_left() {
    let stage = Stage::new();
    stage.record(1, "short").await;
    stage.clock.advance_micros(20 * DAY);
    let rule = ActionRetention::new("short", 10);
    let first = rule.clone().groups(&[Group::Context]);
    stage.retain(1, Retention::forever().action(first)).await;
    let workers = stage.log.start();
    assert_eq!(stage.round(&workers).await.erased, 1);
    stage.retain(1, Retention::forever().action(rule)).await;
    assert_eq!(stage.round(&workers).await.erased, 2);
    let gone = &stage.entries(1).await[0].erased;
    assert!(gone.contains(&Group::Metadata) && gone.contains(&Group::Actor));
}

#[tokio::test]
async fn a_hold_is_a_state_that_is_shown_and_ends() {
    let stage = Stage::new();
    for n in [1, 2] {
        stage.record(n, "short").await;
        let rule = ActionRetention::new("short", 10);
        let retention = Retention::forever().keep_days(30).action(rule);
        stage.retain(n, retention).await;
    }
    let hold = stage.hold(1).await;
    let workers = stage.log.start();
    stage.clock.advance_micros(31 * DAY);
    let status = stage.round(&workers).await;
    // Tenant 2 loses its two entries.
    assert_eq!((status.pruned, status.held), (2, 1));
    assert_eq!(stage.size(1).await, 3);
    stage.release(1, &hold).await;
    let status = stage.round(&workers).await;
    assert_eq!((status.pruned, status.held), (5, 0));
    assert_eq!(stage.entries(1).await.len(), 2);
}

#[tokio::test]
async fn the_minimum_may_be_as_long_as_entries_are_kept() {
    let stage = Stage::new();
    stage.record(1, "a").await;
    let retention = Retention::forever().keep_days(30).minimum_days(30);
    stage.retain(1, retention).await;
    let workers = stage.log.start();
    stage.clock.advance_micros(31 * DAY);
    let status = stage.round(&workers).await;
    assert_eq!((status.pruned, status.held), (2, 0));
}

#[tokio::test]
async fn two_processes_that_look_after_it_at_once_do_it_once() {
    let stage = Stage::new();
    for _ in 0..700 {
        stage.record(1, "old").await;
    }
    stage.clock.advance_micros(20 * DAY);
    for _ in 0..700 {
        stage.record(1, "short").await;
    }
    let rule = ActionRetention::new("short", 5);
    let retention = Retention::forever().keep_days(30).action(rule);
    stage.retain(1, retention).await;
    let other = AuditLog::builder(stage.store.clone())
        .clock(stage.clock.clone())
        .retention_every(Duration::from_millis(10))
        .build();
    stage.clock.advance_micros(15 * DAY);
    let (workers, others) = (stage.log.start(), other.start());
    let (one, two) = (stage.round(&workers).await, stage.round(&others).await);
    assert_eq!((one.pruned + two.pruned, one.held, two.held), (700, 0, 0));
    assert_eq!(one.erased + two.erased, 700);
    // Batches of one may meet the other's: an entry is erased once, whoever asks first.
    let said = stage.size(1).await - 1_401;
    assert!((3..=5).contains(&said), "{said} control entries");
    stage.round(&workers).await;
    stage.round(&others).await;
    assert_eq!(stage.size(1).await, 1_401 + said);
}

#[tokio::test]
async fn a_closed_tenant_is_passed_over_until_it_is_opened() {
    let stage = Stage::new();
    for n in [1, 2] {
        stage.record(n, "a").await;
        stage.retain(n, Retention::forever().keep_days(30)).await;
    }
    let status = async |status| {
        let update = TenantUpdate::default().status(status);
        let done = stage.log.update_tenant(tenant(1), update, "admin", None);
        done.await.unwrap();
    };
    status(TenantStatus::Suspended).await;
    let workers = stage.log.start();
    stage.clock.advance_micros(31 * DAY);
    let shown = stage.round(&workers).await;
    assert_eq!((shown.pruned, shown.held), (2, 0));
    // An inactive one's log is looked after.
    status(TenantStatus::Inactive).await;
    assert_eq!(stage.round(&workers).await.pruned, 5);
}

/// Never takes anything.
#[derive(Debug)]
struct Behind;

#[async_trait::async_trait]
impl Consumer for Behind {
    fn name(&self) -> &str {
        "behind"
    }

    fn is_required(&self) -> bool {
        true
    }

    async fn consume(&self, _: TenantId, _: &[Entry]) -> Result<()> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_required_consumer_that_is_behind_keeps_what_it_needs() {
    let stage = Stage::with(Some(Arc::new(Behind)));
    stage.record(1, "a").await;
    stage.retain(1, Retention::forever().keep_days(30)).await;
    let workers = stage.log.start();
    stage.clock.advance_micros(31 * DAY);
    assert_eq!(stage.round(&workers).await.pruned, 0);
    assert_eq!(stage.size(1).await, 2);
}

#[tokio::test]
async fn what_is_due_is_told_beforehand() {
    let stage = Stage::new();
    for _ in 0..3 {
        stage.record(1, "old").await;
    }
    stage.clock.advance_micros(31 * DAY);
    for _ in 0..2 {
        stage.record(1, "short").await;
    }
    stage.clock.advance_micros(15 * DAY);
    let size = stage.size(1).await;
    let retention = Retention::forever()
        .keep_days(30)
        .action(ActionRetention::new("old", 10))
        .action(ActionRetention::new("short", 10));
    let due = stage
        .log
        .retention_due(tenant(1), &retention)
        .await
        .unwrap();
    assert_eq!(due.pruned.as_ref().unwrap().entries, 3);
    // What is pruned needs no erasure.
    assert_eq!((due.erased.as_slice(), &due.refused), (&[0, 2][..], &None));
    let hold = stage.hold(1).await;
    let due = stage
        .log
        .retention_due(tenant(1), &retention)
        .await
        .unwrap();
    assert_eq!(due.pruned, None);
    let refused = due.refused.unwrap();
    assert!(refused.contains(&hold.id.to_string()), "{refused}");
    assert_eq!(stage.size(1).await, size + 1);
}

#[tokio::test]
async fn a_change_is_an_event_in_the_tenants_log() {
    let stage = Stage::new();
    stage.record(1, "a").await;
    let retention = Retention::forever().keep_days(30);
    let set = || async {
        let reason = Some("policy 12".to_owned());
        let set = stage
            .log
            .set_retention(tenant(1), &retention, "admin", reason);
        set.await.unwrap();
    };
    set().await;
    set().await;
    let hold = stage.hold(1).await;
    stage.release(1, &hold).await;
    stage.release(1, &hold).await;
    let entries = stage.entries(1).await;
    let said: Vec<(&str, Option<&str>)> = entries[1..]
        .iter()
        .map(|e| (e.fields.action.as_str(), e.fields.user_id.as_deref()))
        .collect();
    let by = |action, who| (action, Some(who));
    assert_eq!(
        said,
        [
            by("log.retention", "admin"),
            by("log.hold", "counsel"),
            by("log.hold", "counsel"),
        ]
    );
    let after = entries[1].fields.after_state.as_ref().unwrap();
    assert_eq!(Retention::parse(after.as_str()).unwrap(), retention);
    assert_eq!(entries[1].fields.reason.as_deref(), Some("policy 12"));
    for entry in &entries[2..] {
        assert_eq!(entry.fields.resource_id, Some(hold.id.to_string()));
    }
    assert_eq!(entries[2].fields.resource_name.as_deref(), Some("case 7"));
}

#[test]
fn a_retention_is_read_as_it_was_written() {
    let retention = Retention::forever()
        .keep_days(3650)
        .minimum_days(36)
        .action(ActionRetention::new("session.start", 30).groups(&[Group::Context]))
        .action(ActionRetention::new("a:b/c", 1));
    assert_eq!(Retention::parse(&retention.to_json()).unwrap(), retention);
    assert_eq!(
        Retention::from_stored(&retention.to_json()).unwrap(),
        retention
    );
    assert_eq!(Retention::parse("{}").unwrap(), Retention::forever());
    let nulls = r#"{"keep_days":null,"minimum_days":null,"actions":null}"#;
    assert_eq!(Retention::parse(nulls).unwrap(), Retention::forever());
    let short = r#"{"actions":[{"action":"a","days":3}]}"#;
    let expected = Retention::forever().action(ActionRetention::new("a", 3));
    assert_eq!(Retention::parse(short).unwrap(), expected);
}

#[test]
fn every_fault_of_a_retention_is_named_at_once() {
    for (body, fields) in [
        ("[]", &["body"][..]),
        (r#"{"keep_days":0}"#, &["keep_days"]),
        (r#"{"keep_days":36501}"#, &["keep_days"]),
        (
            r#"{"keep_days":1.5,"minimum_days":"x"}"#,
            &["keep_days", "minimum_days"],
        ),
        (r#"{"keep_days":-1}"#, &["keep_days"]),
        (r#"{"keep_days":10,"minimum_days":11}"#, &["minimum_days"]),
        (r#"{"keep":1}"#, &["keep"]),
        (r#"{"actions":{}}"#, &["actions"]),
        (r#"{"actions":[1]}"#, &["actions"]),
        (r#"{"actions":[{"action":"a"}]}"#, &["actions"]),
        (
            r#"{"actions":[{"action":"a","days":1,"more":1}]}"#,
            &["actions"],
        ),
        (
            r#"{"actions":[{"action":"a","days":1,"groups":["all"]}]}"#,
            &["actions"],
        ),
        (
            r#"{"actions":[{"action":"a","days":1,"groups":[]}]}"#,
            &["actions"],
        ),
        (r#"{"actions":[{"action":"a b","days":1}]}"#, &["actions"]),
        (
            r#"{"actions":[{"action":"log.erase","days":1}]}"#,
            &["actions"],
        ),
        (
            r#"{"keep_days":5,"actions":[{"action":"a","days":5}]}"#,
            &["actions"],
        ),
        (
            r#"{"keep_days":0,"minimum_days":0,"actions":[{"action":"","days":0,"groups":[]}]}"#,
            &["keep_days", "minimum_days", "actions", "actions", "actions"],
        ),
    ] {
        let error = Retention::parse(body).expect_err(body);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{body}");
        let named: Vec<&str> = error.fields().iter().map(|f| &*f.field).collect();
        assert_eq!(named, fields, "{body}: {error}");
    }
    let rules = |n| {
        (0..n).fold(Retention::forever(), |r, _| {
            r.action(ActionRetention::new("a", 1))
        })
    };
    rules(Retention::MAX_ACTIONS).check().unwrap();
    rules(Retention::MAX_ACTIONS + 1).check().unwrap_err();
}

#[test]
fn a_holds_name_has_limits() {
    let at = Timestamp::MIN;
    let name = "x".repeat(LegalHold::MAX_NAME);
    LegalHold::new(Uuid::nil(), name.clone(), at).unwrap();
    for name in ["", "a\nb", &format!("{name}x")] {
        let error = LegalHold::new(Uuid::nil(), name, at).unwrap_err();
        assert_eq!(error.fields()[0].field, "name");
    }
}

#[tokio::test]
async fn what_the_log_says_of_itself_outlives_an_erasure() {
    let stage = Stage::new();
    stage.record(1, "a").await;
    let hold = stage.hold(1).await;
    stage.release(1, &hold).await;
    stage.retain(1, Retention::forever().keep_days(30)).await;
    let before = stage.entries(1).await;
    let log = stage.log.tenant(TenantScope::trusted(tenant(1), "test"));
    let ids: Vec<_> = before.iter().map(|entry| entry.id).collect();
    let basis = || audit_core::Basis::parse("gdpr-17").unwrap();
    let request = audit_core::ErasureRequest::new(audit_core::Selection::ids(ids.clone()), basis());
    let of_states = request
        .clone()
        .groups(&[Group::AfterState, Group::Metadata]);
    // Only the event that was recorded has anything of these to lose.
    assert_eq!(log.count_erasure(&of_states).await.unwrap().erasable, 1);
    assert_eq!(log.count_erasure(&request).await.unwrap().erasable, 4);
    log.erase(ids, None, basis(), None).await.unwrap();
    let after = stage.entries(1).await;
    assert!(after[0].erased.contains(&Group::Metadata));
    for (was, is) in before[1..].iter().zip(&after[1..]) {
        assert_eq!(is.erased, [Group::Actor]);
        assert_eq!(is.fields.resource_id, was.fields.resource_id);
        assert_eq!(is.fields.metadata, was.fields.metadata);
        assert_eq!(is.fields.after_state, was.fields.after_state);
    }
}

#[tokio::test]
async fn a_clock_that_is_ahead_destroys_nothing_early() {
    let stage = Stage::new();
    stage.record(1, "short").await;
    let rule = ActionRetention::new("short", 10);
    let retention = Retention::forever().keep_days(30).action(rule);
    stage.retain(1, retention).await;
    let ahead = Arc::new(ManualClock::new(stage.clock.now()));
    ahead.advance_micros(400 * DAY);
    let other = AuditLog::builder(stage.store.clone())
        .clock(ahead.clone())
        .retention_every(Duration::from_millis(10))
        .build();
    let other = Stage {
        clock: ahead,
        store: stage.store.clone(),
        log: other,
    };
    let workers = other.log.start();
    let status = other.round(&workers).await;
    assert_eq!((status.pruned, status.erased), (0, 0));
    assert_eq!(stage.size(1).await, 2);
    // What it passed over goes when it is due.
    stage.clock.advance_micros(10 * DAY + 1);
    assert_eq!(other.round(&workers).await.erased, 1);
    stage.clock.advance_micros(20 * DAY);
    assert_eq!(other.round(&workers).await.pruned, 2);
}

#[tokio::test]
async fn an_erasure_that_was_asked_for_waits_for_a_holds_end() {
    let stage = Stage::new();
    for _ in 0..3 {
        stage.record(1, "a").await;
    }
    let log = stage.log.tenant(TenantScope::trusted(tenant(1), "test"));
    let request = || {
        let basis = audit_core::Basis::parse("gdpr-17").unwrap();
        audit_core::ErasureRequest::new(audit_core::Selection::user("ann"), basis)
    };
    let job = log.request_erasure(request()).await.unwrap();
    let hold = stage.hold(1).await;
    let refused = log.request_erasure(request()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    let refused = log.count_erasure(&request()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    let _workers = stage.log.start();
    let deadline = Instant::now() + Duration::from_secs(60);
    let until = async |is: &dyn Fn(&audit_core::ErasureJob) -> bool| {
        loop {
            let found = log.erasure(job.id).await.unwrap();
            if is(&found) {
                return found;
            }
            assert!(Instant::now() < deadline, "{found:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waits = until(&|job| job.last_error.is_some()).await;
    let told = waits.last_error.unwrap();
    assert!(told.contains(&hold.id.to_string()), "{told}");
    assert_eq!((waits.next, waits.entries), (0, 0));
    assert!(stage.entries(1).await.iter().all(|e| e.erased.is_empty()));
    stage.release(1, &hold).await;
    let done = until(&|job| job.state == audit_core::ErasureState::Done).await;
    assert_eq!(done.entries, 3);
}

#[tokio::test]
async fn a_count_by_what_entries_hold_needs_read() {
    use audit_core::{Permission, Permissions};
    let stage = Stage::new();
    stage.record(1, "a").await;
    let scope = TenantScope::trusted(tenant(1), "test");
    let erase_only = stage
        .log
        .tenant(scope.only(Permissions::of(&[Permission::Erase])));
    let basis = audit_core::Basis::parse("gdpr-17").unwrap();
    let by_user = audit_core::ErasureRequest::new(audit_core::Selection::user("ann"), basis);
    let refused = erase_only.count_erasure(&by_user).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Forbidden);
}

#[tokio::test]
async fn what_is_due_is_judged_by_the_proposed_minimum() {
    let stage = Stage::new();
    stage.record(1, "a").await;
    let set = Retention::forever().minimum_days(365);
    stage.retain(1, set).await;
    stage.clock.advance_micros(31 * DAY);
    let wanted = Retention::forever().keep_days(30);
    let due = stage.log.retention_due(tenant(1), &wanted).await.unwrap();
    assert_eq!((due.pruned.unwrap().entries, due.refused), (2, None));
    // A hold is told also where nothing would be pruned.
    stage.hold(1).await;
    let rule = ActionRetention::new("a", 1);
    let rules = Retention::forever().action(rule);
    let due = stage.log.retention_due(tenant(1), &rules).await.unwrap();
    assert_eq!(due.erased, [0]);
    assert!(due.refused.is_some());
}
