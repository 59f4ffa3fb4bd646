//! What tenants cost that record nothing.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::note::SigningKey;
use audit_core::{
    AuditLogBuilder, CheckpointStore, Clock as _, DeploymentStore, LogStore, Signer, SystemClock,
    TenantId, Workers,
};
use tokio::time::Instant;

use crate::fixture::{batch, events, tenant_id, trusted};
use crate::size::sized;

/// How often the deployment log is signed here. An hour is as much work, and longer to wait for.
const PERIOD: Duration = Duration::from_millis(200);
/// How many periods are looked at.
const PERIODS: u64 = 10;
/// How often the signer renews its lease, whoever there is to sign for.
const RENEWAL: Duration = Duration::from_secs(5);
/// How long the workers may take to have gone over all tenants once: the signer looks at 100 in a second.
const SETTLED: Duration = Duration::from_secs(600);

/// Opens a store whose writes are counted.
pub trait IdleHarness: Sized + Send + Sync + 'static {
    /// The store.
    type Store: LogStore + CheckpointStore + DeploymentStore + Clone;

    /// Opens a store of the contract's own.
    fn open() -> impl Future<Output = Self> + Send;

    /// The store.
    fn store(&self) -> &Self::Store;

    /// A log with all that the store has: its index, its queue, its outbox.
    fn builder(&self) -> AuditLogBuilder;

    /// Begins to count the rows that are written, by whomever.
    fn count_writes(&self) -> impl Future<Output = ()> + Send;

    /// How many rows were inserted, changed or removed since, by the name of the table; tables without any
    /// are left out.
    fn writes(&self) -> impl Future<Output = BTreeMap<String, u64>> + Send;
}

fn signer() -> Signer {
    let origin = Origin::parse("audit.example/log").expect("an origin");
    let key = SigningKey::from_seed("audit", &[7; 32]).expect("a key");
    Signer::new(origin, key)
}

/// Tenants with an entry each, whose heads are signed. The signer would take its time for that.
async fn signed_tenants<S: LogStore + CheckpointStore>(store: &S, n: usize) {
    let lease = |ttl| store.lease("the first", ttl);
    let fence = lease(Duration::from_secs(15)).await.expect("a lease");
    let fence = fence.expect("the only signer");
    let ids: Vec<TenantId> = (0..n).map(|_| tenant_id()).collect();
    for some in ids.chunks(500) {
        let batches = some
            .iter()
            .map(|id| batch(*id, events(1)).creating_tenant());
        let batches: Vec<_> = batches.collect();
        for outcome in store.append(&batches).await.expect("an answer") {
            outcome.expect("appended");
        }
    }
    for id in ids {
        let head = store.head(&trusted(id)).await.expect("a head");
        let signed = signer().sign(&head, 1, SystemClock.now()).expect("signed");
        store.publish(fence, id, &signed).await.expect("published");
    }
    lease(Duration::ZERO).await.expect("given back");
}

async fn until(what: &str, within: Duration, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + within;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited for too long: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether they have nothing to catch up with.
fn are_settled(workers: &Workers) -> bool {
    let lag = |name: &str| {
        let mut statuses = workers.status().into_iter();
        statuses.find(|status| status.name == name)?.lag
    };
    ["signer", "indexer"].map(lag) == [Some(0); 2]
}

/// Of 1,000 tenants that record nothing, 10,000 with `AUDIT_TEST_FULL=1`, all workers of a process together
/// write one row in each period, the deployment log's checkpoint. The signer's lease, which is renewed
/// every five seconds without any tenant too, counts apart.
#[expect(
    clippy::print_stdout,
    reason = "the figures of a full run are its result"
)]
pub async fn idle_tenants_cost_one_deployment_checkpoint_a_period<H: IdleHarness>() {
    let tenants = sized(10_000);
    let harness = H::open().await;
    let store = Arc::new(harness.store().clone());
    signed_tenants(&*store, tenants).await;
    let log = harness
        .builder()
        .signer(signer(), store.clone())
        .deployment(store.clone())
        .deployment_every(PERIOD)
        .build();
    let workers = log.start();
    until("all heads are committed to", SETTLED, async || {
        let size = store.deployment_size().await.expect("a size");
        size == tenants as u64 && are_settled(&workers)
    })
    .await;

    harness.count_writes().await;
    let began = Instant::now();
    until("the periods have passed", SETTLED, async || {
        let written = harness.writes().await;
        written.get("deployment_checkpoints") >= Some(&PERIODS)
    })
    .await;
    let mut written = harness.writes().await;
    let took = began.elapsed();
    // One at its beginning, and one that was under way by then.
    let within = |every: Duration| (took.as_millis() / every.as_millis()) as u64 + 2;
    let signed = written.remove("deployment_checkpoints").unwrap_or(0);
    assert!(signed <= within(PERIOD), "{signed} in {took:?}");
    let renewed = written.remove("signer").unwrap_or(0);
    assert!(renewed <= within(RENEWAL), "{renewed} in {took:?}");
    assert_eq!(written, BTreeMap::new());
    assert_eq!(
        store.deployment_size().await.expect("a size"),
        tenants as u64
    );

    let looked = look_at_all(&*store, tenants).await;
    println!(
        "{tenants} idle tenants, {took:.1?}: {signed} deployment checkpoints of a period of {PERIOD:?}, \
         {renewed} renewals of the lease, nothing else written; a look at all heads takes {looked:.1?}"
    );
    assert!(workers.shutdown(Duration::from_secs(10)).await);
}

/// How long it takes to ask for what isn't committed to, in steps as the worker does it in each period.
async fn look_at_all<S: DeploymentStore>(store: &S, tenants: usize) -> Duration {
    let (began, mut after, mut looks) = (Instant::now(), None, 0);
    loop {
        let found = store.uncommitted_heads(after, 1_000).await.expect("heads");
        assert_eq!(found.heads, []);
        looks += 1;
        after = found.next;
        if after.is_none() {
            break;
        }
    }
    assert!(looks <= tenants / 1_000 + 1);
    began.elapsed()
}
