//! A durable queue in PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use audit_core::queue::removed;
use audit_core::{
    DeadLetter, Delivery, Error, ErrorKind, EventId, EventQueue, Message, MessageKind, QueueDepth,
    Redrive, Result, RowHandle, Sieve, TenantId,
};
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_postgres::PgPool;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use crate::PostgresStore;
use crate::fault::from_sqlx;
use crate::pool::begin;
use crate::row;

/// Other processes send no notification: their messages are looked for this often.
const POLL: Duration = Duration::from_millis(100);
/// Dead letters, or parked rows, that a sieve is shown at once.
pub(crate) const SIFTED: i64 = 100;
/// The most messages of one call of `receive`.
const MAX_RECEIVED: usize = 1_000;
/// No further message joins a delivery, or a statement that sends, whose bodies have this many bytes.
const MAX_BYTES: usize = 8 << 20;
/// The longest wait, lease and delay.
const LONGEST: Duration = Duration::from_secs(12 * 3_600);

/// Messages in a table of the store's database; [`PostgresStore::queue`](crate::PostgresStore::queue)
/// gives it. Cheap to clone.
///
/// What was sent survives a crash of the machine. Messages are delivered in the order in which they
/// were sent, save that one whose lease ran out, or that was given back, comes when it is due again,
/// and that senders on several connections are told apart by the database's clock. Any number of
/// processes may receive at once. Leases and delays go by the database's clock.
///
/// A worker that dies over a message would meet it again for ever: a message whose lease has run out
/// [`max_lapses`](Self::max_lapses) times, without a word from who held it, becomes a dead letter. One
/// that was given back isn't counted, however often.
#[derive(Debug, Clone)]
pub struct PostgresQueue {
    pool: PgPool,
    arrived: Arc<Notify>,
    max_lapses: i32,
}

type Item = (i64, i32, Uuid, String, Uuid, String, i64);
type Letter = (i64, Uuid, String, Uuid, String, String, row::Micros);

impl PostgresQueue {
    /// After so many lapsed leases a message is given up, unless another number is set.
    pub const MAX_LAPSES: u32 = 20;

    pub(crate) fn new(store: &PostgresStore) -> Self {
        Self {
            pool: store.writer_pool().clone(),
            arrived: Arc::default(),
            max_lapses: Self::MAX_LAPSES as i32,
        }
    }

    /// Gives a message up after so many lapsed leases, at least 1.
    #[must_use]
    pub fn max_lapses(mut self, times: u32) -> Self {
        self.max_lapses = i32::try_from(times.max(1)).unwrap_or(i32::MAX);
        self
    }

    /// Lets messages whose lease is held still come again after `time`: under the lease, or without it.
    async fn hide(
        &self,
        handles: &[String],
        time: Duration,
        leased: bool,
    ) -> Result<Vec<Result<()>>> {
        let (leases, answers) = Leases::parse(handles);
        if !leases.rows.is_empty() {
            query(
                "WITH held AS (
                     SELECT m.n FROM audit.queue_messages m
                     JOIN unnest($1::bigint[], $2::integer[]) AS h (n, attempts) USING (n, attempts)
                     WHERE m.leased ORDER BY m.n FOR UPDATE OF m
                 )
                 UPDATE audit.queue_messages m
                 SET ready_at = now() + $3 * interval '1 microsecond', leased = $4
                 FROM held WHERE m.n = held.n",
            )
            .bind(&leases.rows)
            .bind(&leases.attempts)
            .bind(micros(time))
            .bind(leased)
            .execute(&self.pool)
            .await
            .map_err(from_sqlx)?;
        }
        Ok(answers)
    }

    /// The oldest dead letters behind a number: at most so many that a sieve may be shown them at once.
    async fn letters_behind(&self, n: i64) -> Result<Vec<Letter>> {
        query_as(
            "SELECT n, tenant_id, kind, id, body, reason, died_at FROM (
                 SELECT *, sum(octet_length(body)) OVER (ORDER BY n) - octet_length(body) AS before
                 FROM (SELECT * FROM audit.queue_dead_letters WHERE n > $1 ORDER BY n LIMIT $2) oldest
             ) placed
             WHERE before < $3 ORDER BY n",
        )
        .bind(n)
        .bind(SIFTED)
        .bind(MAX_BYTES as i64)
        .fetch_all(&self.pool)
        .await
        .map_err(from_sqlx)
    }

    async fn take(&self, max: usize, lease: Duration) -> Result<Vec<Delivery>> {
        // What others look at is passed over. What would be too large together stays.
        let mut taken: Vec<Item> = query_as(
            "WITH due AS (
                 SELECT n, leased AND lapses + 1 >= $4 AS spent, ready_at, octet_length(body) AS bytes
                 FROM audit.queue_messages WHERE ready_at <= now()
                 ORDER BY ready_at, n LIMIT $1 FOR UPDATE SKIP LOCKED
             ),
             placed AS (
                 SELECT n, spent, row_number() OVER earlier AS place,
                        sum(bytes) OVER earlier - bytes AS before
                 FROM due WINDOW earlier AS (ORDER BY ready_at, n)
             ),
             given_up AS (
                 DELETE FROM audit.queue_messages m USING placed p WHERE m.n = p.n AND p.spent
                 RETURNING m.*
             ),
             buried AS (
                 INSERT INTO audit.queue_dead_letters (tenant_id, kind, id, died_at, reason, body)
                 SELECT tenant_id, kind, id, now(), 'its lease ran out ' || lapses + 1 || ' times', body
                 FROM given_up ORDER BY n
             )
             UPDATE audit.queue_messages m
             SET ready_at = now() + $2 * interval '1 microsecond', leased = true,
                 attempts = m.attempts + 1, lapses = m.lapses + m.leased::integer
             FROM placed p WHERE m.n = p.n AND NOT p.spent AND p.before < $3
             RETURNING m.n, m.attempts, m.tenant_id, m.kind, m.id, m.body, p.place",
        )
        .bind(max as i64)
        .bind(micros(lease))
        .bind(MAX_BYTES as i64)
        .bind(self.max_lapses)
        .fetch_all(&self.pool)
        .await
        .map_err(from_sqlx)?;
        taken.sort_unstable_by_key(|item| item.6);
        taken
            .into_iter()
            .map(|(row, attempts, tenant, kind, id, body, _)| {
                let attempts = attempts.unsigned_abs();
                let handle = RowHandle { row, attempts };
                let message = message(tenant, &kind, id, body)?;
                Ok(Delivery::new(handle.to_string(), message, attempts))
            })
            .collect()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl EventQueue for PostgresQueue {
    fn is_durable(&self) -> bool {
        true
    }

    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        let answers: Vec<Result<()>> = messages.iter().map(check).collect();
        let good: Vec<&Message> = messages
            .iter()
            .zip(&answers)
            .filter_map(|(message, answer)| answer.is_ok().then_some(message))
            .collect();
        if good.is_empty() {
            return Ok(answers);
        }
        let mut transaction = begin(&self.pool, "BEGIN".into()).await?;
        let mut rest = &good[..];
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(fitting(rest));
            rest = later;
            query(
                "INSERT INTO audit.queue_messages (tenant_id, kind, id, ready_at, body)
                 SELECT tenant_id, kind, id, now(), body
                 FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[])
                     WITH ORDINALITY AS sent (tenant_id, kind, id, body, place)
                 ORDER BY place",
            )
            .bind(
                piece
                    .iter()
                    .map(|m| m.tenant.into_uuid())
                    .collect::<Vec<_>>(),
            )
            .bind(piece.iter().map(|m| m.kind.as_str()).collect::<Vec<_>>())
            .bind(piece.iter().map(|m| m.id.into_uuid()).collect::<Vec<_>>())
            .bind(piece.iter().map(|m| &*m.body).collect::<Vec<_>>())
            .execute(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        }
        transaction.commit().await.map_err(from_sqlx)?;
        self.arrived.notify_waiters();
        Ok(answers)
    }

    /// `max` is at most 1,000 and at least 1, with 8 MiB of bodies (or one); the lease at least a
    /// millisecond. The lease and the wait are at most 12 hours.
    async fn receive(&self, max: usize, wait: Duration, lease: Duration) -> Result<Vec<Delivery>> {
        let max = max.clamp(1, MAX_RECEIVED);
        let lease = lease.clamp(Duration::from_millis(1), LONGEST);
        let deadline = Instant::now() + wait.min(LONGEST);
        loop {
            // Asked for before looking, so that what arrives in between is not missed.
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let taken = self.take(max, lease).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !taken.is_empty() || left.is_zero() {
                return Ok(taken);
            }
            // Either way it looks again.
            let _elapsed = tokio::time::timeout(left.min(POLL), arrived).await;
        }
    }

    async fn ack(&self, handles: &[String]) -> Result<Vec<Result<()>>> {
        let (leases, answers) = Leases::parse(handles);
        if !leases.rows.is_empty() {
            // Locked in the order of their numbers: two calls with the same handles can't wait for
            // each other.
            query(
                "WITH held AS (
                     SELECT m.n FROM audit.queue_messages m
                     JOIN unnest($1::bigint[], $2::integer[]) AS h (n, attempts) USING (n, attempts)
                     ORDER BY m.n FOR UPDATE OF m
                 )
                 DELETE FROM audit.queue_messages m USING held WHERE m.n = held.n",
            )
            .bind(&leases.rows)
            .bind(&leases.attempts)
            .execute(&self.pool)
            .await
            .map_err(from_sqlx)?;
        }
        Ok(answers)
    }

    /// The lease is clamped as that of [`receive`](Self::receive).
    async fn extend(&self, handles: &[String], lease: Duration) -> Result<Vec<Result<()>>> {
        let lease = lease.clamp(Duration::from_millis(1), LONGEST);
        self.hide(handles, lease, true).await
    }

    async fn retry(&self, handles: &[String], delay: Duration) -> Result<Vec<Result<()>>> {
        let answers = self.hide(handles, delay.min(LONGEST), false).await?;
        self.arrived.notify_waiters();
        Ok(answers)
    }

    async fn bury(&self, letters: &[(String, String)]) -> Result<Vec<Result<()>>> {
        let (handles, reasons): (Vec<_>, Vec<_>) = letters.iter().cloned().unzip();
        let (leases, answers) = Leases::parse(&handles);
        if !leases.rows.is_empty() {
            // A reason may quote what it refuses; text has no NUL.
            let reasons: Vec<String> = reasons
                .iter()
                .zip(&answers)
                .filter(|(_, answer)| answer.is_ok())
                .map(|(reason, _)| reason.replace('\0', "\u{FFFD}"))
                .collect();
            query(
                "WITH held AS (
                     SELECT m.*, h.reason FROM audit.queue_messages m
                     JOIN unnest($1::bigint[], $2::integer[], $3::text[]) AS h (n, attempts, reason)
                         USING (n, attempts)
                     ORDER BY m.n FOR UPDATE OF m
                 ),
                 buried AS (
                     INSERT INTO audit.queue_dead_letters (tenant_id, kind, id, died_at, reason, body)
                     SELECT tenant_id, kind, id, now(), reason, body FROM held ORDER BY n
                 )
                 DELETE FROM audit.queue_messages m USING held WHERE m.n = held.n",
            )
            .bind(&leases.rows)
            .bind(&leases.attempts)
            .bind(reasons)
            .execute(&self.pool)
            .await
            .map_err(from_sqlx)?;
        }
        Ok(answers)
    }

    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        let letters: Vec<Letter> = query_as(
            "SELECT n, tenant_id, kind, id, body, reason, died_at FROM audit.queue_dead_letters
             ORDER BY n LIMIT $1",
        )
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(from_sqlx)?;
        letters.into_iter().map(letter).collect()
    }

    async fn redrive(&self, letters: &Redrive<String>) -> Result<u64> {
        let named: Option<Vec<i64>> = match letters {
            Redrive::All => None,
            Redrive::Only(handles) => Some(handles.iter().filter_map(|h| h.parse().ok()).collect()),
        };
        let sent = query(
            "WITH named AS (
                 DELETE FROM audit.queue_dead_letters WHERE $1::bigint[] IS NULL OR n = ANY ($1)
                 RETURNING n, tenant_id, kind, id, body
             )
             INSERT INTO audit.queue_messages (tenant_id, kind, id, ready_at, body)
             SELECT tenant_id, kind, id, now(), body FROM named ORDER BY n",
        )
        .bind(named)
        .execute(&self.pool)
        .await
        .map_err(from_sqlx)?
        .rows_affected();
        self.arrived.notify_waiters();
        Ok(sent)
    }

    async fn sift(&self, sieve: Arc<dyn Sieve<DeadLetter>>) -> Result<u64> {
        let (mut behind, mut count) = (0, 0);
        loop {
            let rows = self.letters_behind(behind).await?;
            let numbers: Vec<i64> = rows.iter().map(|row| row.0).collect();
            let Some(last) = numbers.last() else {
                return Ok(count);
            };
            behind = *last;
            let letters = rows.into_iter().map(letter).collect::<Result<Vec<_>>>()?;
            let gone = removed(&*sieve, &letters, numbers).await?;
            count += query("DELETE FROM audit.queue_dead_letters WHERE n = ANY ($1)")
                .bind(gone)
                .execute(&self.pool)
                .await
                .map_err(from_sqlx)?
                .rows_affected();
        }
    }

    fn dropped(&self) -> u64 {
        0
    }

    async fn depth(&self) -> Result<QueueDepth> {
        let (all, leased, dead): (i64, i64, i64) = query_as(
            "SELECT count(*), count(*) FILTER (WHERE leased AND ready_at > now()),
                    (SELECT count(*) FROM audit.queue_dead_letters)
             FROM audit.queue_messages",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(from_sqlx)?;
        Ok(QueueDepth {
            waiting: (all - leased).unsigned_abs(),
            leased: leased.unsigned_abs(),
            dead: dead.unsigned_abs(),
        })
    }
}

fn letter((n, tenant, kind, id, body, reason, died_at): Letter) -> Result<DeadLetter> {
    Ok(DeadLetter::new(
        n.to_string(),
        message(tenant, &kind, id, body)?,
        reason,
        row::time(died_at)?,
    ))
}

/// Rows and deliveries that handles name, as the columns of a statement.
struct Leases {
    rows: Vec<i64>,
    attempts: Vec<i32>,
}

impl Leases {
    /// Those that are handles, and an answer for each.
    fn parse(handles: &[String]) -> (Self, Vec<Result<()>>) {
        let mut leases = Self {
            rows: Vec::with_capacity(handles.len()),
            attempts: Vec::with_capacity(handles.len()),
        };
        let answers = handles
            .iter()
            .map(|handle| {
                let handle: RowHandle = handle.parse()?;
                leases.rows.push(handle.row);
                // More deliveries than a row can count are nobody's.
                leases
                    .attempts
                    .push(i32::try_from(handle.attempts).unwrap_or(-1));
                Ok(())
            })
            .collect();
        (leases, answers)
    }
}

fn check(message: &Message) -> Result<()> {
    message.check()?;
    if message.body.contains('\0') {
        return Err(Error::field("body", "has a NUL").with_event_id(message.id));
    }
    Ok(())
}

/// How many of these, of which there is one at least, go into one statement.
fn fitting(messages: &[&Message]) -> usize {
    let mut bytes = 0;
    messages
        .iter()
        .take_while(|message| {
            let fits = bytes < MAX_BYTES;
            bytes += message.body.len();
            fits
        })
        .count()
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

fn message(tenant: Uuid, kind: &str, id: Uuid, body: String) -> Result<Message> {
    let kind = MessageKind::parse(kind).ok_or_else(|| {
        Error::new(
            ErrorKind::Internal,
            "a message of a kind that this program doesn't know",
        )
    })?;
    Ok(Message::new(
        TenantId::new(tenant),
        kind,
        EventId::new(id),
        body,
    ))
}
