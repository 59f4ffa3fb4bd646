//! Logs that nobody has altered.

use std::collections::HashSet;
use std::sync::Arc;

use audit_core::tlog::verify::{Options, verify_lines};
use audit_core::{AuditLog, Clock as _, EventId, EvidenceRequest, Group, Signer, TenantId};
use uuid::Uuid;

use super::trial::{exported, grow, key, known, origin, part, prune_below, whole};
use super::{SEED, TamperingHarness};
use crate::fixture::{DEADLINE, basis, trusted};
use crate::random::Random;

/// How many exports are made of a log.
const EXPORTS: usize = 5;

/// Makes logs and so many exports of them, no two alike. How many there were, and of how many logs.
///
/// # Panics
/// When one is told to be anything else than what it is.
pub(super) async fn untouched<H: TamperingHarness>(wanted: usize) -> (usize, u64) {
    let harness = H::open().await;
    let (store, clock) = (Arc::new(harness.store().clone()), harness.clock());
    let log = AuditLog::builder(store.clone())
        .clock(clock.clone())
        .signer(Signer::new(origin(), key(0)), store)
        .build();
    let workers = log.start();
    let mut exports = HashSet::new();
    let mut logs = 0;
    while exports.len() < wanted {
        logs += 1;
        let mut random = Random::new(SEED.wrapping_add(logs));
        let tenant = TenantId::new(Uuid::from_u128(u128::from(logs) << 64 | u128::from(SEED)));
        let reader = log.tenant(trusted(tenant));
        let mut ids = Vec::new();
        for _ in 0..random.below(3) {
            let n = 1 + random.below(60) as usize;
            let new = grow(&log, tenant, &mut random, &clock, n).await;
            ids.extend(new);
            erase(&log, tenant, &mut random, &ids).await;
            clock.advance_micros(1_000);
            if random.one_in(2) {
                let head = reader.head().await.expect("a head");
                let left = head.size() - head.pruned_below;
                prune_below(&log, tenant, head.pruned_below + random.below(left)).await;
                clock.advance_micros(1_000);
                ids.clear();
            }
        }
        let n = 1 + random.below(40) as usize;
        let new = grow(&log, tenant, &mut random, &clock, n).await;
        erase(&log, tenant, &mut random, &new).await;

        let text = whole(&reader).await;
        let latest = reader.checkpoint().await.expect("an answer");
        let latest = latest.expect("a checkpoint");
        let options = known(tenant, &latest.note);
        is_verified(&text, &options, false, &EvidenceRequest::new());
        exports.insert(text);
        for _ in 1..EXPORTS {
            let request = part(&mut random, clock.now(), latest.size);
            let text = exported(&reader, &request, DEADLINE).await;
            let text = text.expect("an export");
            is_verified(&text, &options, true, &request);
            exports.insert(text);
        }
    }
    workers.shutdown(DEADLINE).await;
    (exports.len(), logs)
}

/// Erases some groups of some of these entries.
async fn erase(log: &AuditLog, tenant: TenantId, random: &mut Random, ids: &[EventId]) {
    let mut ids = ids.to_vec();
    ids.retain(|_| random.one_in(8));
    let mut groups = Group::ALL.to_vec();
    groups.retain(|_| random.one_in(2));
    let groups = (!groups.is_empty()).then_some(groups);
    let reader = log.tenant(trusted(tenant));
    let erased = reader.erase(ids, groups, basis("gdpr-17"), None).await;
    erased.expect("erased");
}

fn is_verified(text: &str, options: &Options, partial: bool, request: &EvidenceRequest) {
    let lines: Vec<&str> = text.lines().collect();
    let options = Options {
        partial,
        ..options.clone()
    };
    let report = verify_lines(&lines, options);
    assert_eq!(report.findings, [], "{request:?}");
}
