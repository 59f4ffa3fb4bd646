//! The contract of [`Guard`].

use std::future::Future;

use audit_core::{
    Error, ErrorKind, Guard, GuardAdvance, GuardedErasure, GuardedHead, Hash, TenantId,
};

use crate::fixture::{kind, seconds_after, tenant_id, time};

/// Opens a guard for a contract.
pub trait GuardHarness: Sized + Send + Sync + 'static {
    /// The guard, or a wrapper around one.
    type Guard: Guard;

    /// Opens a guard that knows nothing.
    fn open() -> impl Future<Output = Self> + Send;

    /// The guard.
    fn guard(&self) -> &Self::Guard;

    /// The same guard after its process ended. One that doesn't outlive it stays as it is.
    fn reopen(self) -> impl Future<Output = Self> + Send;
}

fn head(epoch: u64, size: u64) -> GuardedHead {
    let root = Hash([size as u8; 32]);
    GuardedHead { epoch, size, root }
}

fn erasure(seq: u64) -> GuardedErasure {
    let start = time("2026-11-24T03:00:00.000001Z");
    GuardedErasure {
        seq,
        accepted_at: seconds_after(start, seq as i64),
        ctl: format!("{{\"groups\":[\"actor\"],\"entries\":[[0,{seq}]],\"basis\":\"gdpr-17\"}}"),
    }
}

fn step(known: Option<GuardedHead>, to: GuardedHead, erased: &[u64]) -> GuardAdvance {
    GuardAdvance {
        known,
        to,
        erasures: erased.iter().map(|seq| erasure(*seq)).collect(),
    }
}

async fn erased<G: Guard>(guard: &G, tenant: TenantId) -> Vec<u64> {
    let found = guard.erasures(tenant, 0, 1_000).await.expect("an answer");
    found.iter().map(|erasure| erasure.seq).collect()
}

/// Head and erasures, each as it was told, and nothing of a tenant that it was told nothing of.
pub async fn what_a_guard_was_told_it_remembers<H: GuardHarness>() {
    let harness = H::open().await;
    let (tenant, other) = (tenant_id(), tenant_id());
    let guard = harness.guard();
    assert!(!guard.place().is_empty());
    assert_eq!(guard.head(tenant).await.expect("an answer"), None);
    assert_eq!(guard.erasures(tenant, 0, 10).await.expect("an answer"), []);
    let steps = [
        step(None, head(1, 10), &[]),
        step(Some(head(1, 10)), head(1, 30), &[12, 29]),
        step(Some(head(1, 30)), head(1, 31), &[]),
        // A later epoch's is the larger one, whatever its size.
        step(Some(head(1, 31)), head(2, 11), &[10]),
    ];
    for step in &steps {
        guard.advance(tenant, step).await.expect("advanced");
        let found = guard.head(tenant).await.expect("an answer");
        assert_eq!(found, Some(step.to));
    }
    let harness = harness.reopen().await;
    let guard = harness.guard();
    let found = guard.head(tenant).await.expect("an answer");
    assert_eq!(found, Some(head(2, 11)));
    let all = [12, 29, 10].map(erasure);
    for (from, limit) in [(0, 1), (0, 2), (1, 2), (2, 9), (3, 9), (9, 9)] {
        let found = guard.erasures(tenant, from, limit).await;
        let end = all.len().min(from as usize + limit);
        let expected = all.get(from as usize..end).unwrap_or_default();
        assert_eq!(found.expect("an answer"), expected, "{from} {limit}");
    }
    assert_eq!(guard.head(other).await.expect("an answer"), None);
    assert!(erased(guard, other).await.is_empty());
}

/// In the order of their ids, page by page.
pub async fn a_guard_lists_the_tenants_that_it_knows<H: GuardHarness>() {
    let harness = H::open().await;
    let guard = harness.guard();
    assert_eq!(guard.tenants(None, 10).await.expect("an answer"), []);
    let mut tenants: Vec<TenantId> = (0..5).map(|_| tenant_id()).collect();
    for tenant in &tenants {
        let first = step(None, head(1, 1), &[0]);
        guard.advance(*tenant, &first).await.expect("advanced");
    }
    tenants.sort_unstable();
    let mut found: Vec<TenantId> = Vec::new();
    loop {
        let after = found.last().copied();
        let page = guard.tenants(after, 2).await.expect("an answer");
        assert!(page.len() <= 2);
        match page.is_empty() {
            true => break,
            false => found.extend(page),
        }
    }
    assert_eq!(found, tenants);
}

/// Neither to a smaller head, nor to an earlier epoch, nor to another root.
pub async fn a_guard_never_goes_back<H: GuardHarness>() {
    let harness = H::open().await;
    let (guard, tenant) = (harness.guard(), tenant_id());
    let present = head(2, 20);
    let first = step(None, present, &[3]);
    guard.advance(tenant, &first).await.expect("advanced");
    let mut other = present;
    other.root = Hash([99; 32]);
    let refused = [
        (step(Some(present), head(2, 19), &[4]), ErrorKind::Refused),
        (step(Some(present), head(1, 90), &[4]), ErrorKind::Refused),
        (step(Some(present), other, &[4]), ErrorKind::Conflict),
        // What it was known to remember, it doesn't.
        (step(None, head(2, 21), &[4]), ErrorKind::Refused),
        (step(Some(other), head(2, 21), &[4]), ErrorKind::Refused),
        (
            step(Some(head(2, 19)), head(2, 21), &[4]),
            ErrorKind::Refused,
        ),
    ];
    for (step, expected) in refused {
        let outcome = guard.advance(tenant, &step).await;
        assert_eq!(kind(outcome), Some(expected), "{step:?}");
        let found = guard.head(tenant).await.expect("an answer");
        assert_eq!(found, Some(present));
        assert_eq!(erased(guard, tenant).await, [3]);
    }
    let unknown = step(Some(present), head(2, 21), &[]);
    let outcome = guard.advance(tenant_id(), &unknown).await;
    assert_eq!(kind(outcome), Some(ErrorKind::Refused));
}

/// As after a lost answer.
pub async fn what_a_guard_knows_already_changes_nothing<H: GuardHarness>() {
    let harness = H::open().await;
    let (guard, tenant) = (harness.guard(), tenant_id());
    for _ in 0..2 {
        let first = step(None, head(1, 5), &[3]);
        guard.advance(tenant, &first).await.expect("advanced");
    }
    for _ in 0..2 {
        let second = step(Some(head(1, 5)), head(1, 9), &[7]);
        guard.advance(tenant, &second).await.expect("advanced");
    }
    assert_eq!(erased(guard, tenant).await, [3, 7]);
}

/// So that a signer that lost its turn can't take back what another one told.
pub async fn of_several_who_know_the_same_one_advances<H: GuardHarness>() {
    let harness = H::open().await;
    let (guard, tenant) = (harness.guard(), tenant_id());
    let mut known = None;
    for round in 1..=5 {
        let heads = (0..8).map(|n| head(1, round * 10 + n));
        let steps: Vec<GuardAdvance> = heads.map(|to| step(known, to, &[to.size - 1])).collect();
        let told = steps.iter().map(|step| guard.advance(tenant, step));
        let outcomes = futures_util::future::join_all(told).await;
        let found = guard.head(tenant).await.expect("an answer");
        let mut advanced = 0;
        for (step, outcome) in steps.iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    advanced += 1;
                    assert_eq!(found, Some(step.to));
                }
                Err(error) => assert_eq!(Error::kind(&error), ErrorKind::Refused),
            }
        }
        assert_eq!(advanced, 1);
        assert_eq!(erased(guard, tenant).await.len() as u64, round);
        known = found;
    }
}

/// Its largest head, beside the tenants' and by the same rules; it is none of the tenants.
pub async fn a_guard_remembers_the_deployment_log_by_the_same_rules<H: GuardHarness>() {
    let harness = H::open().await;
    let (guard, tenant) = (harness.guard(), tenant_id());
    assert_eq!(guard.deployment_head().await.expect("an answer"), None);
    let first = step(None, head(1, 30), &[3]);
    guard.advance(tenant, &first).await.expect("advanced");
    assert_eq!(guard.deployment_head().await.expect("an answer"), None);
    let mut known = None;
    // A new epoch may begin with an empty log.
    for to in [head(1, 4), head(1, 9), head(2, 0), head(2, 4)] {
        // Again, as after a lost answer.
        for _ in 0..2 {
            let advanced = guard.advance_deployment(known, to).await;
            advanced.expect("advanced");
        }
        let found = guard.deployment_head().await.expect("an answer");
        assert_eq!(found, Some(to));
        known = Some(to);
    }
    let mut other = head(2, 4);
    other.root = Hash([99; 32]);
    for (known, to, expected) in [
        (known, head(2, 3), ErrorKind::Refused),
        (known, head(1, 90), ErrorKind::Refused),
        (known, other, ErrorKind::Conflict),
        (None, head(2, 5), ErrorKind::Refused),
        (Some(other), head(2, 5), ErrorKind::Refused),
        (Some(head(1, 9)), head(2, 5), ErrorKind::Refused),
    ] {
        let outcome = guard.advance_deployment(known, to).await;
        assert_eq!(kind(outcome), Some(expected), "{to:?}");
    }
    let harness = harness.reopen().await;
    let guard = harness.guard();
    let found = guard.deployment_head().await.expect("an answer");
    assert_eq!(found, Some(head(2, 4)));
    let found = guard.head(tenant).await.expect("an answer");
    assert_eq!(found, Some(head(1, 30)));
    assert_eq!(guard.tenants(None, 10).await.expect("tenants"), [tenant]);
}

/// As a tenant's head: a signer that lost its turn takes nothing back.
pub async fn of_several_who_know_the_same_deployment_head_one_advances<H: GuardHarness>() {
    let harness = H::open().await;
    let guard = harness.guard();
    let mut known = None;
    for round in 1..=5 {
        let heads: Vec<GuardedHead> = (0..8).map(|n| head(1, round * 10 + n)).collect();
        let told = heads.iter().map(|to| guard.advance_deployment(known, *to));
        let outcomes = futures_util::future::join_all(told).await;
        let advanced: Vec<GuardedHead> = (heads.iter().zip(&outcomes))
            .filter_map(|(to, outcome)| outcome.is_ok().then_some(*to))
            .collect();
        known = guard.deployment_head().await.expect("an answer");
        assert_eq!(advanced, Vec::from_iter(known));
    }
}
