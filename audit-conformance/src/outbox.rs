//! The contract of [`Outbox`].

use std::future::Future;

use audit_core::{
    Clock as _, Error, ErrorKind, EventId, Outbox, OutboxRow, Redrive, SystemClock, TenantId,
    Verdict,
};

use crate::fixture::{By, event, kind, prepare, tenant_id};

/// Opens an outbox for a contract.
pub trait OutboxHarness: Sized + Send + Sync + 'static {
    /// The outbox, or a wrapper around one.
    type Outbox: Outbox;

    /// Opens an outbox of this contract's own, empty.
    fn open() -> impl Future<Output = Self> + Send;

    /// The outbox.
    fn outbox(&self) -> &Self::Outbox;

    /// Leaves an event as an application does, in a transaction that commits.
    fn leave(&self, tenant: TenantId, id: EventId, event: &str) -> impl Future<Output = ()> + Send;
}

/// Leaves some events, and returns them as they must come out.
async fn left<H: OutboxHarness>(harness: &H, n: usize) -> Vec<(TenantId, EventId, String)> {
    let tenants = [tenant_id(), tenant_id()];
    let mut all = Vec::new();
    for n in 0..n {
        let (tenant, id) = (tenants[n % 2], SystemClock.event_id());
        let text = event(n).id(prepare(tenant, event(n).id(id)).id()).to_json();
        harness.leave(tenant, id, &text).await;
        all.push((tenant, id, text));
    }
    all
}

fn content(rows: &[OutboxRow]) -> Vec<(TenantId, EventId, String)> {
    rows.iter()
        .map(|r| (r.tenant, r.id, r.event.clone()))
        .collect()
}

fn numbers(rows: &[OutboxRow]) -> Vec<i64> {
    rows.iter().map(|r| r.row).collect()
}

/// Whole, as often as asked.
pub async fn rows_are_taken_oldest_first_and_stay<H: OutboxHarness>() {
    let harness = H::open().await;
    let outbox = harness.outbox();
    assert!(outbox.take(10, &[]).await.expect("none").is_empty());
    let all = left(&harness, 5).await;
    let rows = outbox.take(10, &[]).await.expect("rows");
    assert_eq!(content(&rows), all);
    assert!(numbers(&rows).windows(2).all(|w| w[0] < w[1]));
    assert_eq!(outbox.take(10, &[]).await.expect("rows"), rows);
    assert_eq!(outbox.take(2, &[]).await.expect("rows"), rows[..2]);
}

/// And stay gone.
pub async fn rows_that_are_done_are_gone<H: OutboxHarness>() {
    let harness = H::open().await;
    let outbox = harness.outbox();
    left(&harness, 4).await;
    let rows = outbox.take(10, &[]).await.expect("rows");
    outbox
        .done(&[rows[0].row, rows[2].row])
        .await
        .expect("done");
    let rest = outbox.take(10, &[]).await.expect("rows");
    assert_eq!(rest, [rows[1].clone(), rows[3].clone()]);
    outbox
        .done(&[rows[0].row])
        .await
        .expect("done twice is no error");
    outbox.done(&[]).await.expect("nothing is no error");
    assert_eq!(outbox.take(10, &[]).await.expect("rows"), rest);
    outbox.done(&numbers(&rest)).await.expect("done");
    assert!(outbox.take(10, &[]).await.expect("none").is_empty());
}

/// It is never dropped, and holds nobody up.
pub async fn a_parked_row_is_set_aside_with_its_reason<H: OutboxHarness>() {
    let harness = H::open().await;
    let outbox = harness.outbox();
    left(&harness, 3).await;
    let rows = outbox.take(10, &[]).await.expect("rows");
    outbox
        .park(rows[1].row, "action_type: it's not one")
        .await
        .expect("parked");
    outbox.park(rows[0].row, "conflict").await.expect("parked");
    assert_eq!(outbox.take(10, &[]).await.expect("rows"), rows[2..]);
    let parked = outbox.parked(10).await.expect("parked");
    assert_eq!(
        parked.iter().map(|p| p.row.clone()).collect::<Vec<_>>(),
        rows[..2]
    );
    let reasons: Vec<_> = parked.iter().map(|p| p.reason.as_str()).collect();
    assert_eq!(reasons, ["conflict", "action_type: it's not one"]);
    assert_eq!(outbox.parked(1).await.expect("parked"), parked[..1]);
}

/// The ones that are named, or all.
pub async fn parked_rows_are_redriven<H: OutboxHarness>() {
    let harness = H::open().await;
    let outbox = harness.outbox();
    left(&harness, 3).await;
    let rows = outbox.take(10, &[]).await.expect("rows");
    for row in &rows {
        outbox.park(row.row, "conflict").await.expect("parked");
    }
    assert_eq!(
        outbox
            .redrive(&Redrive::Only(vec![]))
            .await
            .expect("redriven"),
        0
    );
    assert_eq!(
        outbox
            .redrive(&Redrive::Only(vec![rows[1].row]))
            .await
            .expect("redriven"),
        1
    );
    assert_eq!(
        content(&outbox.take(10, &[]).await.expect("rows")),
        content(&rows[1..2])
    );
    assert_eq!(outbox.parked(10).await.expect("parked").len(), 2);
    assert_eq!(outbox.redrive(&Redrive::All).await.expect("redriven"), 2);
    assert!(outbox.parked(10).await.expect("parked").is_empty());
    assert_eq!(outbox.take(10, &[]).await.expect("rows").len(), 3);
    assert_eq!(outbox.redrive(&Redrive::All).await.expect("redriven"), 0);
}

/// Removed or left alone, as the sieve says.
pub async fn parked_rows_are_sifted<H: OutboxHarness>() {
    let harness = H::open().await;
    let outbox = harness.outbox();
    left(&harness, 4).await;
    let rows = outbox.take(10, &[]).await.expect("rows");
    for row in &rows[..3] {
        outbox.park(row.row, "conflict").await.expect("parked");
    }
    let removed = rows[0].id;
    let sieve = By::new(move |id| match id == removed {
        true => Ok(Verdict::Remove),
        false => Ok(Verdict::Keep),
    });
    assert_eq!(outbox.sift(sieve.clone()).await.expect("sifted"), 1);
    // What waits is on its way.
    let shown = sieve.shown.lock().expect("no panic").clone();
    assert_eq!(shown, [removed, rows[1].id, rows[2].id]);
    let parked = outbox.parked(10).await.expect("parked");
    let expected = [(&rows[1], "conflict"), (&rows[2], "conflict")];
    let parked: Vec<_> = parked.iter().map(|p| (&p.row, &*p.reason)).collect();
    assert_eq!(parked, expected);
    assert_eq!(outbox.redrive(&Redrive::All).await.expect("redriven"), 2);
    let taken = outbox.take(10, &[]).await.expect("rows");
    assert_eq!(taken, rows[1..]);
    assert_eq!(outbox.sift(sieve).await.expect("sifted"), 0);
}

/// However many they are; and a sieve that fails leaves them as they are.
pub async fn every_parked_row_is_sifted<H: OutboxHarness>() {
    const ROWS: usize = 230;
    let harness = H::open().await;
    let outbox = harness.outbox();
    left(&harness, ROWS).await;
    let rows = outbox.take(ROWS, &[]).await.expect("rows");
    for row in &rows {
        outbox.park(row.row, "conflict").await.expect("parked");
    }
    let failing = By::new(|_| Err(Error::new(ErrorKind::Unavailable, "not now")));
    assert_eq!(
        kind(outbox.sift(failing).await),
        Some(ErrorKind::Unavailable)
    );
    assert_eq!(outbox.parked(ROWS).await.expect("parked").len(), ROWS);
    let sieve = By::new(|_| Ok(Verdict::Remove));
    let count = outbox.sift(sieve.clone()).await.expect("sifted");
    assert_eq!(count, ROWS as u64);
    let shown = sieve.shown.lock().expect("no panic").clone();
    assert_eq!(shown, rows.iter().map(|row| row.id).collect::<Vec<_>>());
    assert!(outbox.parked(10).await.expect("none").is_empty());
}

/// A second relay may have been faster.
pub async fn unknown_rows_are_passed_over<H: OutboxHarness>() {
    let harness = H::open().await;
    let outbox = harness.outbox();
    left(&harness, 1).await;
    outbox.done(&[i64::MAX, -1]).await.expect("done");
    outbox.park(i64::MAX, "unknown").await.expect("no error");
    assert_eq!(
        outbox
            .redrive(&Redrive::Only(vec![i64::MAX]))
            .await
            .expect("redriven"),
        0
    );
    assert!(outbox.parked(10).await.expect("parked").is_empty());
    assert_eq!(outbox.take(10, &[]).await.expect("rows").len(), 1);
}

/// However many rows they have, and however old these are.
pub async fn tenants_are_passed_over<H: OutboxHarness>() {
    let harness = H::open().await;
    let outbox = harness.outbox();
    let all = left(&harness, 12).await;
    let (first, second) = (all[0].0, all[1].0);
    let others: Vec<_> = all.iter().filter(|row| row.0 == second).cloned().collect();
    for limit in [3, 6, 100] {
        let rows = outbox.take(limit, &[first]).await.expect("rows");
        assert_eq!(content(&rows), others[..limit.min(6)]);
    }
    let rows = outbox.take(100, &[first, second]).await.expect("rows");
    assert!(rows.is_empty());
    let rows = outbox.take(100, &[tenant_id()]).await.expect("rows");
    assert_eq!(content(&rows), all);
}
