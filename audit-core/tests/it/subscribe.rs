//! Following one tenant's log.

use std::sync::Arc;
use std::time::Duration;

use audit_core::memory::MemoryStore;
use audit_core::{
    AuditLog, Basis, Delivered, ErrorKind, Event, Filter, ManualClock, Recorder, SubscribeRequest,
    TenantId, TenantScope, TenantStatus, TenantUpdate, Timestamp,
};
use futures_util::StreamExt;
use uuid::Uuid;

fn setup() -> (AuditLog, TenantId, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(
        Timestamp::parse("2026-01-01T00:00:00Z").unwrap(),
    ));
    let store = Arc::new(MemoryStore::with_clock(clock.clone()));
    let log = AuditLog::builder(store).clock(clock.clone()).build();
    (log, TenantId::new(Uuid::from_u128(9)), clock)
}

async fn record(log: &AuditLog, tenant: TenantId, user: &str) -> u64 {
    log.recorder(tenant)
        .record(Event::view("doc", "d").user(user))
        .await
        .unwrap()
        .seq
}

async fn next(stream: &mut audit_core::Subscription) -> audit_core::Result<Delivered> {
    tokio::time::timeout(Duration::from_secs(10), stream.next())
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn it_starts_now_or_at_a_position() {
    let (log, tenant, _) = setup();
    record(&log, tenant, "ann").await;
    let reader = log.tenant(TenantScope::trusted(tenant, "test"));
    let mut from_now = reader.subscribe(SubscribeRequest::new()).await.unwrap();
    let mut from_start = reader
        .subscribe(SubscribeRequest::new().from(0))
        .await
        .unwrap();
    record(&log, tenant, "ben").await;
    let seq = |delivered| match delivered {
        Ok(Delivered::Entry(entry)) => entry.seq,
        other => panic!("{other:?}"),
    };
    assert_eq!(seq(next(&mut from_now).await), 1);
    assert_eq!(seq(next(&mut from_start).await), 0);
    assert_eq!(seq(next(&mut from_start).await), 1);
}

#[tokio::test]
async fn a_filtered_one_tells_by_heartbeats_how_far_it_looked() {
    let (log, tenant, _) = setup();
    record(&log, tenant, "ann").await;
    record(&log, tenant, "ann").await;
    let reader = log.tenant(TenantScope::trusted(tenant, "test"));
    let request = SubscribeRequest::new()
        .from(0)
        .filter(Filter::new().user("ben"))
        .heartbeat(Duration::from_millis(20));
    let mut stream = reader.subscribe(request).await.unwrap();
    loop {
        match next(&mut stream).await.unwrap() {
            Delivered::Heartbeat { seq: Some(1) } => break,
            Delivered::Heartbeat { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_pruned_start_is_told() {
    let (log, tenant, clock) = setup();
    for _ in 0..5 {
        record(&log, tenant, "ann").await;
        clock.advance_micros(1_000_000);
    }
    let handle = log.tenant(TenantScope::trusted(tenant, "test"));
    let before = Timestamp::parse("2026-01-01T00:00:03Z").unwrap();
    let basis: Basis = "retention".parse().unwrap();
    assert_eq!(
        handle
            .prune(before, basis, None, false)
            .await
            .unwrap()
            .below,
        3
    );
    let mut stream = handle
        .subscribe(SubscribeRequest::new().from(0))
        .await
        .unwrap();
    assert_eq!(
        next(&mut stream).await.unwrap(),
        Delivered::Pruned { below: 3 }
    );
    assert!(matches!(next(&mut stream).await.unwrap(), Delivered::Entry(e) if e.seq == 3));
}

#[tokio::test]
async fn suspension_ends_it() {
    let (log, tenant, _) = setup();
    record(&log, tenant, "ann").await;
    let handle = log.tenant(TenantScope::trusted(tenant, "test"));
    let mut stream = handle.subscribe(SubscribeRequest::new()).await.unwrap();
    let suspend = TenantUpdate::default().status(TenantStatus::Suspended);
    log.update_tenant(tenant, suspend, "admin", None)
        .await
        .unwrap();
    assert_eq!(
        next(&mut stream).await.unwrap_err().kind(),
        ErrorKind::TenantClosed
    );
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_reader_slower_than_the_heartbeat_gets_on() {
    let (log, tenant, _) = setup();
    record(&log, tenant, "ann").await;
    let reader = log.tenant(TenantScope::trusted(tenant, "test"));
    for heartbeat in [Duration::ZERO, Duration::MAX] {
        let request = SubscribeRequest::new().from(0).heartbeat(heartbeat);
        let mut stream = reader.subscribe(request).await.unwrap();
        // Longer than the shortest heartbeat passes before it is read from.
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(matches!(next(&mut stream).await.unwrap(), Delivered::Entry(e) if e.seq == 0));
    }
}
