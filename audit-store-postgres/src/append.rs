//! Appending: the heads of a call's tenants are locked, and the sealed rows written, in one
//! transaction with few round trips and none for each event; where there are many tenants, in some beside
//! each other.
//!
//! A head that another transaction holds is passed over, so that one busy tenant doesn't stall the
//! others of the call: the rest is tried again, waiting for one tenant at a time. A transaction waits
//! for at most one head, and only while it holds none, so that no two wait for each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use audit_core::prepare::Content;
use audit_core::tenant::TenantStatus;
use audit_core::tlog::{Hash, Timestamp};
use audit_core::{
    Batch, Error, ErrorKind, EventId, Head, Known, Permission, Receipt, Result, Row, Sealing,
    Tally, TenantId, seal,
};
use chrono::{DateTime, Datelike as _, Utc};
use futures_util::future::join_all;
use sqlx_core::query::query;
use sqlx_postgres::{PgConnection, PgRow};
use tokio::time::Instant;
use uuid::Uuid;

use crate::copy::{COPY_EVENTS, Rows};
use crate::fault::{
    CHECK_VIOLATION, DUPLICATE_TABLE, LOCK_NOT_AVAILABLE, UNIQUE_VIOLATION, from_sqlx, sqlstate,
};
use crate::head::{self, completed, unknown_tenant};
use crate::pool::{Role, Tx, begin, begin_statement};
use crate::store::PostgresStore;
use crate::{TimeSource, row, tenants};

/// How long a transaction waits for one head before another tenant's is looked at.
const SLICE: Duration = Duration::from_millis(100);

/// How often a transaction is made again that failed for a reason that is gone the next time: a
/// partition that was missing, a tenant that another process created.
const ATTEMPTS: usize = 3;

/// Transactions of one call that run beside each other, each over tenants of its own: what an append
/// costs by tenant is spread over the server's processors. They take at most half of the connections that
/// append: group commit has two calls under way.
const SHARDS: usize = 4;

/// The fewest tenants that are worth a transaction of their own.
const SHARD: usize = 32;

/// Results of batches, by their places in the call's list.
type Outcomes = BTreeMap<usize, Result<Vec<Receipt>>>;

/// Batches that are still to be appended, by tenant, as places in the call's list.
type Pending = BTreeMap<TenantId, Vec<usize>>;

impl PostgresStore {
    pub(crate) async fn append_all(&self, batches: &[Batch]) -> Result<Vec<Result<Vec<Receipt>>>> {
        let mut outcomes = Outcomes::new();
        let mut pending = Pending::new();
        for (i, batch) in batches.iter().enumerate() {
            match admit(batch) {
                Ok(()) => pending.entry(batch.tenant()).or_default().push(i),
                Err(refusal) => drop(outcomes.insert(i, Err(refusal))),
            }
        }
        let most = (self.options().writers as usize / 2).clamp(1, SHARDS);
        let shards = shards(pending, most).into_iter().map(async |mut pending| {
            let mut outcomes = Outcomes::new();
            let end = self.append_pending(batches, &mut pending, &mut outcomes);
            (end.await, pending, outcomes)
        });
        let mut failed = Vec::new();
        for (end, pending, done) in join_all(shards).await {
            outcomes.extend(done);
            failed.extend(end.err().map(|error| (error, pending)));
        }
        let nothing_is_appended = !outcomes.values().any(Result::is_ok);
        // One that is permanent first: it is the caller's to be parted from the others.
        failed.sort_by_key(|(error, _)| error.is_retryable());
        for (error, pending) in failed {
            if nothing_is_appended {
                return Err(error);
            }
            // Others of the call are committed and have their receipts.
            if error.is_retryable() {
                for i in pending.into_values().flatten() {
                    outcomes.insert(i, Err(error.clone()));
                }
            } else {
                self.append_apart(batches, pending, &mut outcomes).await;
            }
        }
        (0..batches.len())
            .map(|i| {
                outcomes
                    .remove(&i)
                    .ok_or_else(|| Error::new(ErrorKind::Internal, "a batch was not answered"))
            })
            .collect()
    }

    /// Appends what together failed for good in halves, until the failure is alone with its own batch.
    async fn append_apart(&self, batches: &[Batch], pending: Pending, outcomes: &mut Outcomes) {
        // The next ones on top.
        let mut parts: Vec<Pending> = halves(pending).into_iter().rev().collect();
        while let Some(mut part) = parts.pop() {
            let Err(error) = self.append_pending(batches, &mut part, outcomes).await else {
                continue;
            };
            if !error.is_retryable() && part.values().map(Vec::len).sum::<usize>() > 1 {
                parts.extend(halves(part).into_iter().rev());
                continue;
            }
            let tenants: Vec<TenantId> = part.keys().copied().collect();
            let mut given_up: Vec<usize> = part.into_values().flatten().collect();
            if error.is_retryable() {
                // What a tenant's caller will send again must not be overtaken; and a database that is
                // away is waited for once.
                let concerns_these_alone = error.tenant().is_some();
                for part in &mut parts {
                    part.retain(|tenant, members| {
                        let stays = concerns_these_alone && !tenants.contains(tenant);
                        if !stays {
                            given_up.append(members);
                        }
                        stays
                    });
                }
            }
            outcomes.extend(given_up.into_iter().map(|i| (i, Err(error.clone()))));
        }
    }

    /// Appends all that is pending, and takes out of it what is answered.
    async fn append_pending(
        &self,
        batches: &[Batch],
        pending: &mut Pending,
        outcomes: &mut Outcomes,
    ) -> Result<()> {
        let deadline = Instant::now() + self.options().lock_timeout;
        let mut failed = 0;
        let mut waits_for = match pending.keys().next() {
            Some(only) if pending.len() == 1 => Some(*only),
            _ => None,
        };
        while !pending.is_empty() {
            let round = self.append_round(batches, pending, waits_for).await;
            match round {
                Ok(done) => {
                    outcomes.extend(done);
                    pending.retain(|_, members| {
                        members.retain(|i| !outcomes.contains_key(i));
                        !members.is_empty()
                    });
                }
                Err(error) if sqlstate(&error) == Some(LOCK_NOT_AVAILABLE) => {}
                Err(error) if is_gone_next_time(&error) && failed < ATTEMPTS => {
                    failed += 1;
                    self.months().clear();
                }
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                break;
            }
            // The next one after the tenant that was waited for, in turn.
            waits_for = match waits_for {
                None => pending.keys().next(),
                Some(last) => pending
                    .range(last..)
                    .map(|(tenant, _)| tenant)
                    .find(|tenant| **tenant != last)
                    .or_else(|| pending.keys().next()),
            }
            .copied();
        }
        match pending.keys().next() {
            None => Ok(()),
            Some(tenant) => Err(Error::new(
                ErrorKind::Unavailable,
                "other transactions hold the tenant's log",
            )
            .with_tenant(*tenant)),
        }
    }

    /// One transaction over the tenants whose heads are to be had. Answers what it decided.
    async fn append_round(
        &self,
        batches: &[Batch],
        pending: &Pending,
        waits_for: Option<TenantId>,
    ) -> Result<Vec<(usize, Result<Vec<Receipt>>)>> {
        let mut done = Vec::new();
        let patience = match pending.len() {
            1 => self.options().lock_timeout,
            _ => SLICE,
        };
        let mut tx = self.pools().begin_append(patience).await?;
        let members = pending.values().flatten().map(|i| &batches[*i]);
        let others = pending.keys().filter(|tenant| waits_for != Some(**tenant));
        let others = others.map(|tenant| tenant.into_uuid()).collect();
        let (mut heads, mut found) =
            lock_heads(&mut tx, waits_for, others, wanted(members)).await?;
        let missing: Vec<TenantId> = pending
            .keys()
            .filter(|tenant| !heads.contains_key(tenant))
            .copied()
            .collect();
        if !missing.is_empty() {
            let unknown = unknown_of(&mut tx, &missing).await?;
            let creates =
                |tenant: &TenantId| pending[tenant].iter().any(|i| batches[*i].creates_tenant());
            let (create, refuse): (Vec<_>, Vec<_>) = unknown.into_iter().partition(creates);
            for tenant in refuse {
                let refused = pending[&tenant].iter();
                done.extend(refused.map(|i| (*i, Err(unknown_tenant(tenant)))));
            }
            let creates = !create.is_empty();
            // In the order of their ids: a process waits for one that creates the same tenant, and
            // never for one that waits for it. A head that another process has made is its own to
            // hold: it is had, or waited for, the next time.
            for tenant in create {
                let members = &pending[&tenant];
                let first = members.iter().position(|i| batches[*i].creates_tenant());
                let too_early = &members[..first.unwrap_or(members.len())];
                done.extend(too_early.iter().map(|i| (*i, Err(unknown_tenant(tenant)))));
                let created =
                    tenants::create_unnamed(&mut tx, tenant, &self.options().time).await?;
                if created && let Some(found) = lock_head(&mut tx, tenant).await? {
                    heads.insert(tenant, found);
                }
            }
            if creates {
                // Another process may have created them meanwhile, and appended.
                let members = pending.values().flatten().map(|i| &batches[*i]);
                found = look_up(&mut tx, wanted(members)).await?;
            }
        }

        let mut work = Vec::with_capacity(heads.len());
        let mut places = Vec::with_capacity(heads.len());
        for (tenant, (status, head)) in heads {
            let mut chosen = Vec::new();
            for &i in &pending[&tenant] {
                if done.iter().any(|(answered, _)| *answered == i) {
                    continue;
                }
                match status.admit_write(tenant) {
                    Ok(()) => chosen.push(i),
                    Err(refusal) => done.push((i, Err(refusal))),
                }
            }
            if !chosen.is_empty() {
                work.push((head, chosen.iter().map(|i| &batches[*i]).collect()));
                places.push(chosen);
            }
        }
        if work.is_empty() {
            tx.rollback().await.map_err(from_sqlx)?;
            return Ok(done);
        }
        let sealed = self.seal_found(&mut tx, &work, found).await?;
        let months = sealed.months.clone();
        tx.commit().await.map_err(from_sqlx)?;
        self.months().extend(months);
        for (chosen, outcomes) in places.into_iter().zip(sealed.outcomes) {
            done.extend(chosen.into_iter().zip(outcomes));
        }
        Ok(done)
    }

    /// Begins a transaction that locks heads. Statements that look ids up run over index scans, also
    /// before the tables have statistics and for any number of ids; since their plans don't depend on
    /// values, they are made once.
    pub(crate) async fn begin_append(
        &self,
        role: Role,
        tenant: Option<TenantId>,
        lock_timeout: Duration,
    ) -> Result<Tx> {
        let start = begin_statement(role, tenant);
        let sql = format!(
            "{start}SET LOCAL lock_timeout = {}; SET LOCAL enable_seqscan = off; \
             SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
             SET LOCAL plan_cache_mode = force_generic_plan",
            lock_timeout.as_millis().max(1)
        );
        begin(self.pools().pool(role), sql).await
    }

    /// Seals batches, by tenant, under the locks of their heads and writes the rows, whatever the
    /// tenants' status. The inner errors are those of single batches; after the outer one the
    /// transaction must not commit.
    pub(crate) async fn seal_all(
        &self,
        conn: &mut PgConnection,
        work: &[(Head, Vec<&Batch>)],
    ) -> Result<Sealed> {
        let batches = work.iter().flat_map(|(_, batches)| batches.iter().copied());
        let found = look_up(conn, wanted(batches)).await?;
        self.seal_found(conn, work, found).await
    }

    /// As [`seal_all`](Self::seal_all), where the ids have been looked up under the locks.
    async fn seal_found(
        &self,
        conn: &mut PgConnection,
        work: &[(Head, Vec<&Batch>)],
        found: Found,
    ) -> Result<Sealed> {
        let now = match &self.options().time {
            TimeSource::Database => found.now()?,
            TimeSource::Clock(clock) => clock.now(),
        };
        let mut found = found;
        found.forget_pruned(work);
        let mut sealed = Sealed::default();
        let mut written = Written::default();
        let bytes = work
            .iter()
            .flat_map(|(_, batches)| batches)
            .map(|batch| batch.size_hint() + 256 * batch.events().len())
            .sum();
        let mut rows = Rows::with_capacity(bytes);
        let nothing = HashMap::new();
        for (head, batches) in work {
            let known = found.known.get(&head.tenant).unwrap_or(&nothing);
            match seal(batches, head, now, known) {
                Ok(sealing) => {
                    written.add(head, &sealing, &mut rows);
                    sealed.heads.push(sealing.head);
                    sealed.outcomes.push(sealing.outcomes);
                }
                Err(refusal) => {
                    let refused = batches.iter().map(|_| Err(refusal.clone()));
                    sealed.outcomes.push(refused.collect());
                }
            }
        }
        if written.ids.seqs.is_empty() {
            return Ok(sealed);
        }
        for (month, at) in &written.months {
            if !self.months().contains(month) {
                make_partitions(conn, *at).await?;
            }
        }
        sealed.months = written.months.keys().copied().collect();
        copy(conn, rows).await?;
        written.write(conn).await?;
        Ok(sealed)
    }
}

/// What was sealed and written, to be given out after the commit.
#[derive(Default)]
pub(crate) struct Sealed {
    /// The results of the batches, by tenant, in the order of the work.
    pub(crate) outcomes: Vec<Vec<Result<Vec<Receipt>>>>,
    /// The advanced heads of those tenants whose clock did not refuse.
    pub(crate) heads: Vec<Head>,
    /// The months of which there is a partition once this is committed.
    pub(crate) months: BTreeSet<i32>,
}

impl Sealed {
    /// The receipts of the only tenant's batches.
    ///
    /// # Errors
    /// The first one of a batch.
    pub(crate) fn into_receipts(self) -> Result<Vec<Receipt>> {
        let mut receipts = Vec::new();
        for outcome in self.outcomes.into_iter().flatten() {
            receipts.extend(outcome?);
        }
        Ok(receipts)
    }
}

fn admit(batch: &Batch) -> Result<()> {
    batch.scope().require(Permission::Record)?;
    match batch
        .events()
        .iter()
        .find(|event| event.kind().is_control())
    {
        None => Ok(()),
        Some(event) => Err(Error::new(
            ErrorKind::Refused,
            "control entries are written by the log itself, with the act that they are about",
        )
        .with_event_id(event.id())),
    }
}

/// Whether a transaction failed for a reason that is gone when it is made again: a partition was
/// missing, which is then made, or another process took a key first, or made the partition.
pub(crate) fn is_gone_next_time(error: &Error) -> bool {
    matches!(
        sqlstate(error),
        Some(UNIQUE_VIOLATION | CHECK_VIOLATION | DUPLICATE_TABLE)
    )
}

impl PostgresStore {
    /// Does something in a transaction, and once more where what failed it [is gone the next
    /// time](is_gone_next_time).
    pub(crate) async fn attempt<T, F>(&self, transaction: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        match transaction().await {
            Err(error) if is_gone_next_time(&error) => {
                self.months().clear();
                transaction().await
            }
            outcome => outcome,
        }
    }
}

/// Shares a call's tenants out among as many transactions as it is worth.
fn shards(mut pending: Pending, most: usize) -> Vec<Pending> {
    let count = (pending.len() / SHARD).clamp(1, most);
    let size = pending.len().div_ceil(count).max(1);
    let mut shards = Vec::with_capacity(count);
    while let Some(first_of_next) = pending.keys().nth(size).copied() {
        let rest = pending.split_off(&first_of_next);
        shards.push(std::mem::replace(&mut pending, rest));
    }
    shards.push(pending);
    shards
}

/// The tenants in halves, and the batches of a single one.
fn halves(mut first: Pending) -> [Pending; 2] {
    let middle = first.keys().nth(first.len() / 2).copied();
    let second = match (first.len(), middle) {
        (1, Some(only)) => {
            let members = first.entry(only).or_default();
            let second = members.split_off(members.len() / 2);
            Pending::from([(only, second)])
        }
        (_, Some(middle)) => first.split_off(&middle),
        (_, None) => Pending::new(),
    };
    [first, second]
}

/// Locks a tenant's head, and waits for it. None when there is no such tenant.
///
/// # Errors
/// That the lock was not had in time.
pub(crate) async fn lock_head(
    conn: &mut PgConnection,
    tenant: TenantId,
) -> Result<Option<(TenantStatus, Head)>> {
    let sql = format!(
        "SELECT {} FROM audit.heads WHERE tenant_id = $1 FOR UPDATE",
        head::COLUMNS
    );
    let found = query(&sql)
        .bind(tenant.into_uuid())
        .fetch_optional(conn)
        .await
        .map_err(from_sqlx)?;
    found.as_ref().map(head::decode).transpose()
}

type Heads = BTreeMap<TenantId, (TenantStatus, Head)>;

/// Locks heads, and looks the batches' ids up under the locks. `waits_for` is waited for; of the
/// others those are locked that nobody holds.
async fn lock_heads(
    conn: &mut PgConnection,
    waits_for: Option<TenantId>,
    others: Vec<Uuid>,
    (tenants, ids): (Vec<Uuid>, Vec<Uuid>),
) -> Result<(Heads, Found)> {
    let rows = query("SELECT * FROM audit.lock_heads($1, $2, $3, $4)")
        .bind(waits_for.map(TenantId::into_uuid))
        .bind(&others)
        .bind(&tenants)
        .bind(&ids)
        .fetch_all(conn)
        .await
        .map_err(from_sqlx)?;
    let (mut heads, mut found) = (Heads::new(), Found::default());
    for r in &rows {
        if let Some(now) = row::get(r, 13)? {
            found.now = Some(row::time(now)?);
        } else if row::get::<Option<Uuid>>(r, 8)?.is_some() {
            found.add(r, [0, 8, 9, 4, 10, 11, 12])?;
        } else {
            let (status, head) = head::decode(r)?;
            heads.insert(head.tenant, (status, head));
        }
    }
    Ok((heads, found))
}

/// Which of the tenants don't exist.
async fn unknown_of(conn: &mut PgConnection, tenants: &[TenantId]) -> Result<Vec<TenantId>> {
    let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.into_uuid()).collect();
    let found = query("SELECT tenant_id FROM audit.heads WHERE tenant_id = ANY ($1)")
        .bind(&ids)
        .fetch_all(conn)
        .await
        .map_err(from_sqlx)?;
    let existing = found
        .iter()
        .map(|r| row::tenant_id(r, 0))
        .collect::<Result<BTreeSet<_>>>()?;
    Ok(tenants
        .iter()
        .filter(|tenant| !existing.contains(tenant))
        .copied()
        .collect())
}

/// What `ids` says of batches' ids, and the database's clock, both under the heads' locks.
#[derive(Default)]
struct Found {
    now: Option<Timestamp>,
    known: HashMap<TenantId, HashMap<EventId, Known>>,
}

impl Found {
    fn now(&self) -> Result<Timestamp> {
        self.now
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the database told no time"))
    }

    /// Adds a row of `ids`: tenant, id, position, time, leaf hash, content key and tag, by these
    /// columns.
    fn add(
        &mut self,
        r: &PgRow,
        [tenant, id, seq, time, hash, key, tag]: [usize; 7],
    ) -> Result<()> {
        let content = row::optional_bytes(r, key)?.zip(row::optional_bytes(r, tag)?);
        let known = Known {
            seq: row::position(r, seq)?,
            created_at: row::time(row::get(r, time)?)?,
            leaf_hash: row::hash(r, hash)?,
            content: content.map(|(key, tag)| Content { key, tag }),
        };
        self.known
            .entry(row::tenant_id(r, tenant)?)
            .or_default()
            .insert(EventId::new(row::get(r, id)?), known);
        Ok(())
    }

    /// What is pruned has nothing to compare by, whether it is swept yet or not.
    fn forget_pruned(&mut self, work: &[(Head, Vec<&Batch>)]) {
        for (head, _) in work.iter().filter(|(head, _)| head.pruned_below > 0) {
            for known in self.known.get_mut(&head.tenant).into_iter().flatten() {
                if known.1.seq < head.pruned_below {
                    known.1.content = None;
                }
            }
        }
    }
}

/// The tenants and the ids of batches' events.
fn wanted<'b>(batches: impl Iterator<Item = &'b Batch>) -> (Vec<Uuid>, Vec<Uuid>) {
    batches
        .flat_map(|batch| {
            let tenant = batch.tenant().into_uuid();
            batch
                .events()
                .iter()
                .map(move |event| (tenant, event.id().into_uuid()))
        })
        .unzip()
}

/// One index look-up for each id: `OFFSET 0` keeps the planner from making a join of it, which it
/// would plan for as many ids as it thinks that an array has.
async fn look_up(conn: &mut PgConnection, (tenants, ids): (Vec<Uuid>, Vec<Uuid>)) -> Result<Found> {
    let rows = query(
        "SELECT NULL, NULL, NULL, clock_timestamp(), NULL, NULL, NULL
         UNION ALL
         SELECT k.tenant_id, k.id, k.seq, k.created_at, k.leaf_hash, k.content_key, k.content_tag
         FROM unnest($1::uuid[], $2::uuid[]) AS w (tenant_id, id)
         CROSS JOIN LATERAL (
             SELECT * FROM audit.ids i WHERE i.tenant_id = w.tenant_id AND i.id = w.id OFFSET 0
         ) k",
    )
    .bind(&tenants)
    .bind(&ids)
    .fetch_all(conn)
    .await
    .map_err(from_sqlx)?;
    let mut found = Found::default();
    for r in &rows {
        match row::get::<Option<Uuid>>(r, 0)? {
            Some(_) => found.add(r, [0, 1, 2, 3, 4, 5, 6])?,
            None => found.now = Some(row::time(row::get(r, 3)?)?),
        }
    }
    Ok(found)
}

/// Months since year 0.
fn month(at: DateTime<Utc>) -> i32 {
    at.year() * 12 + at.month0() as i32
}

/// Makes the partition of a month and the next one, unless they are there.
async fn make_partitions(conn: &mut PgConnection, at: DateTime<Utc>) -> Result<()> {
    query("SELECT audit.make_partition($1), audit.make_partition($1 + interval '1 month')")
        .bind(at)
        .execute(conn)
        .await
        .map(drop)
        .map_err(from_sqlx)
}

async fn copy(conn: &mut PgConnection, rows: Rows) -> Result<()> {
    let mut copy = conn.copy_in_raw(COPY_EVENTS).await.map_err(from_sqlx)?;
    copy.send(rows.finish()).await.map_err(from_sqlx)?;
    copy.finish().await.map(drop).map_err(from_sqlx)
}

/// What an append writes beside the rows, as columns of one statement.
#[derive(Default)]
struct Written {
    months: BTreeMap<i32, DateTime<Utc>>,
    ids: Ids,
    heads: NewHeads,
    counters: Counters,
    subtrees: Subtrees,
}

#[derive(Default)]
struct Ids {
    tenants: Vec<Uuid>,
    ids: Vec<Uuid>,
    seqs: Vec<i64>,
    created_at: Vec<DateTime<Utc>>,
    leaf_hashes: Vec<Vec<u8>>,
    keys: Vec<Vec<u8>>,
    tags: Vec<Vec<u8>>,
}

#[derive(Default)]
struct NewHeads {
    tenants: Vec<Uuid>,
    sizes: Vec<i64>,
    peaks: Vec<Vec<u8>>,
    created_at: Vec<DateTime<Utc>>,
}

#[derive(Default)]
struct Counters {
    tenants: Vec<Uuid>,
    days: Vec<i32>,
    action_types: Vec<&'static str>,
    severities: Vec<&'static str>,
    outcomes: Vec<&'static str>,
    counts: Vec<i64>,
}

#[derive(Default)]
struct Subtrees {
    tenants: Vec<Uuid>,
    levels: Vec<i16>,
    idxs: Vec<i64>,
    roots: Vec<Vec<u8>>,
}

impl Written {
    /// Adds what was sealed over a head.
    fn add(&mut self, before: &Head, sealing: &Sealing<'_>, rows: &mut Rows) {
        if sealing.rows.is_empty() {
            return;
        }
        let tenant = before.tenant.into_uuid();
        let mut tally = Tally::default();
        for row in &sealing.rows {
            rows.push(before.tenant, row);
            self.add_id(tenant, row);
            let f = row.event.fields();
            tally.add(
                row.created_at.utc_day(),
                f.action_type,
                f.severity,
                f.outcome,
            );
        }
        for c in tally.counters() {
            self.counters.tenants.push(tenant);
            self.counters.days.push(c.day);
            self.counters.action_types.push(c.action_type.as_str());
            self.counters.severities.push(c.severity.as_str());
            self.counters.outcomes.push(c.outcome.as_str());
            self.counters.counts.push(c.count as i64);
        }
        let leaves: Vec<Hash> = sealing.rows.iter().map(|row| row.leaf_hash).collect();
        for subtree in completed(&before.tree, &leaves) {
            self.subtrees.tenants.push(tenant);
            self.subtrees.levels.push(subtree.level.into());
            self.subtrees.idxs.push(row::signed(subtree.idx));
            self.subtrees.roots.push(subtree.root.0.to_vec());
        }
        let head = &sealing.head;
        let created_at = row::instant(head.created_at);
        self.months.insert(month(created_at), created_at);
        self.heads.tenants.push(tenant);
        self.heads.sizes.push(row::signed(head.size()));
        self.heads.peaks.push(head.tree.to_bytes());
        self.heads.created_at.push(created_at);
    }

    fn add_id(&mut self, tenant: Uuid, row: &Row<'_>) {
        let content = row.event.content();
        self.ids.tenants.push(tenant);
        self.ids.ids.push(row.event.id().into_uuid());
        self.ids.seqs.push(row::signed(row.seq));
        self.ids.created_at.push(row::instant(row.created_at));
        self.ids.leaf_hashes.push(row.leaf_hash.0.to_vec());
        self.ids.keys.push(content.key.to_vec());
        self.ids.tags.push(content.tag.to_vec());
    }

    async fn write(&self, conn: &mut PgConnection) -> Result<()> {
        query(
            "WITH new_ids AS (
                 INSERT INTO audit.ids
                     (tenant_id, id, seq, created_at, leaf_hash, content_key, content_tag)
                 SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::timestamptz[],
                     $5::bytea[], $6::bytea[], $7::bytea[])
             ),
             new_heads AS (
                 UPDATE audit.heads h SET size = n.size, peaks = n.peaks,
                     created_at = n.created_at, changed = pg_current_xact_id(),
                     era = pg_current_xact_id()::text::bigint >> 8
                 FROM unnest($8::uuid[], $9::bigint[], $10::bytea[], $11::timestamptz[])
                     AS n (tenant_id, size, peaks, created_at)
                 WHERE h.tenant_id = n.tenant_id
             ),
             new_counters AS (
                 INSERT INTO audit.counters AS c
                     (tenant_id, day, action_type, severity, outcome, count)
                 SELECT * FROM unnest($12::uuid[], $13::integer[], $14::text[], $15::text[],
                     $16::text[], $17::bigint[])
                 ON CONFLICT (tenant_id, day, action_type, severity, outcome)
                     DO UPDATE SET count = c.count + excluded.count
             )
             INSERT INTO audit.subtrees (tenant_id, level, idx, root)
             SELECT * FROM unnest($18::uuid[], $19::smallint[], $20::bigint[], $21::bytea[])",
        )
        .bind(&self.ids.tenants)
        .bind(&self.ids.ids)
        .bind(&self.ids.seqs)
        .bind(&self.ids.created_at)
        .bind(&self.ids.leaf_hashes)
        .bind(&self.ids.keys)
        .bind(&self.ids.tags)
        .bind(&self.heads.tenants)
        .bind(&self.heads.sizes)
        .bind(&self.heads.peaks)
        .bind(&self.heads.created_at)
        .bind(&self.counters.tenants)
        .bind(&self.counters.days)
        .bind(&self.counters.action_types)
        .bind(&self.counters.severities)
        .bind(&self.counters.outcomes)
        .bind(&self.counters.counts)
        .bind(&self.subtrees.tenants)
        .bind(&self.subtrees.levels)
        .bind(&self.subtrees.idxs)
        .bind(&self.subtrees.roots)
        .execute(conn)
        .await
        .map(drop)
        .map_err(from_sqlx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenant_is_in_one_shard() {
        for (tenants, shards_of) in [
            (0, vec![0]),
            (1, vec![1]),
            (63, vec![63]),
            (64, vec![32, 32]),
            (100, vec![34, 34, 32]),
            (1_001, vec![251, 251, 251, 248]),
        ] {
            let pending: Pending = (0..tenants)
                .map(|n| (TenantId::new(Uuid::from_u128(n)), vec![n as usize]))
                .collect();
            let shards = shards(pending.clone(), SHARDS);
            let sizes: Vec<usize> = shards.iter().map(Pending::len).collect();
            assert_eq!(sizes, shards_of);
            assert_eq!(shards.into_iter().flatten().collect::<Pending>(), pending);
        }
    }
}
