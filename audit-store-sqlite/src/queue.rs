//! A durable queue in a SQLite file of its own.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use audit_core::queue::removed;
use audit_core::{
    Clock, DeadLetter, Delivery, Error, ErrorKind, EventQueue, Message, MessageKind, QueueDepth,
    Redrive, Result, RowHandle, Sieve, SystemClock, TenantId, Timestamp,
};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::fault::{from_sqlite, gone};
use crate::private::make_private;
use crate::row;
use crate::wal::Wal;

/// The version of the tables, in `user_version`.
const VERSION: i64 = 1;

/// `ready_at` is 0 for a message that may be received, else the time when its lease or its delay
/// ends. Numbers are never used again, so that an old handle can't name a later message.
const TABLES: &str = "
CREATE TABLE messages (
    n        INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant   BLOB    NOT NULL,
    kind     TEXT    NOT NULL,
    id       BLOB    NOT NULL,
    ready_at INTEGER NOT NULL,
    leased   INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    body     TEXT    NOT NULL
) STRICT;
CREATE INDEX messages_ready_at ON messages (ready_at);

CREATE TABLE dead_letters (
    n       INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant  BLOB    NOT NULL,
    kind    TEXT    NOT NULL,
    id      BLOB    NOT NULL,
    died_at INTEGER NOT NULL,
    reason  TEXT    NOT NULL,
    body    TEXT    NOT NULL
) STRICT;
";

/// Calls that may wait before callers do.
const WAITING: usize = 1_024;
/// No further call joins a transaction that has this many.
const GROUP: usize = 256;
/// Other processes send no notification: their messages are looked for this often.
const POLL: Duration = Duration::from_millis(100);
/// Messages of a deleted tenant that are removed at once: others wait for it.
const FORGOTTEN: usize = 500;
/// Dead letters that a sieve is shown at once.
const SIFTED: i64 = 100;
/// The most messages of one call of `receive`.
const MAX_RECEIVED: usize = 1_000;
/// No further message joins a delivery, nor a dead letter what a sieve is shown, whose bodies have this
/// many bytes.
const MAX_BYTES: usize = 8 << 20;
/// The longest wait, lease and delay.
const LONGEST: Duration = Duration::from_secs(12 * 3_600);

/// Messages in a SQLite file, in WAL mode with `synchronous=FULL`: what was sent survives a crash of
/// the machine. One thread writes, and commits all calls that wait in one transaction. Cheap to
/// clone.
///
/// Messages are delivered in the order in which they were sent, save that one whose lease ran out,
/// or that was given back, comes late. Several processes may open one file.
#[derive(Debug, Clone)]
pub struct SqliteQueue {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    arrived: Arc<Notify>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteQueue").finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // It ended by a panic that its caller was told of.
            drop(thread.join());
        }
    }
}

/// Does its work within the transaction, where there is one, and says whether that worked. What it
/// returns is told the outcome of the commit.
type Job = Box<dyn FnOnce(Result<(&Connection, Timestamp)>) -> (bool, Tell) + Send>;
type Tell = Box<dyn FnOnce(Result<()>)>;

impl SqliteQueue {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] for a file of another version; [`ErrorKind::Unavailable`],
    /// [`ErrorKind::StorageFull`] and [`ErrorKind::Corrupt`] when it can't be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::with_clock(path, Arc::new(SystemClock))
    }

    /// Opens the file with a clock that leases and delays go by.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn with_clock(path: impl AsRef<Path>, clock: Arc<dyn Clock>) -> Result<Self> {
        let conn = open(path.as_ref())?;
        let arrived = Arc::new(Notify::new());
        let (jobs, receiver) = mpsc::channel(WAITING);
        let thread = std::thread::Builder::new()
            .name("audit-queue".into())
            .spawn(move || serve(conn, receiver, clock.as_ref()))
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "no thread can be had").with_source(error)
            })?;
        let shared = Shared {
            path: path.as_ref().to_owned(),
            jobs: Some(jobs),
            thread: Some(thread),
            arrived,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Writes the file anew, without the messages that are gone. Sends wait meanwhile.
    pub(crate) async fn vacuum(&self) -> Result<()> {
        let path = self.shared.path.clone();
        // On a connection of its own: the thread's is always in a transaction.
        tokio::task::spawn_blocking(move || {
            let conn = open(&path)?;
            conn.execute_batch("VACUUM").map_err(from_sqlite)?;
            Wal::new(&conn).drain(&conn)
        })
        .await
        .map_err(|_| gone())?
    }

    /// How many messages and dead letters a tenant has.
    pub(crate) async fn count(&self, tenant: TenantId) -> Result<usize> {
        self.run(move |conn, _| {
            let id = tenant.as_uuid().as_bytes();
            conn.query_row(
                "SELECT (SELECT count(*) FROM messages WHERE tenant = ?1)
                     + (SELECT count(*) FROM dead_letters WHERE tenant = ?1)",
                [id],
                |r| r.get::<_, i64>(0),
            )
        })
        .await
        .map(|count| usize::try_from(count).unwrap_or(0))
    }

    /// Removes a deleted tenant's messages and dead letters. Returns how many.
    pub(crate) async fn forget(&self, tenant: TenantId) -> Result<usize> {
        let mut removed = 0;
        for table in ["messages", "dead_letters"] {
            let forget = move |conn: &Connection, _| {
                conn.prepare_cached(&format!(
                    "DELETE FROM {table} WHERE n IN
                        (SELECT n FROM {table} WHERE tenant = ?1 LIMIT {FORGOTTEN})"
                ))?
                .execute([tenant.as_uuid().as_bytes()])
            };
            loop {
                let some = self.run(forget).await?;
                removed += some;
                if some < FORGOTTEN {
                    break;
                }
            }
        }
        Ok(removed)
    }

    /// Runs `f` in a transaction that may hold other calls too. When this returns `Ok`, it is
    /// durable. It runs to its end even when the caller goes away.
    async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Connection, Timestamp) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |within| {
            let outcome = within.and_then(|(conn, now)| f(conn, now).map_err(from_sqlite));
            let sound = outcome.is_ok();
            let tell: Tell = Box::new(move |committed| {
                // Nobody may be waiting any more.
                drop(reply.send(outcome.and_then(|answer| committed.map(|()| answer))));
            });
            (sound, tell)
        });
        let jobs = self.shared.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    async fn take(&self, max: usize, lease: Duration) -> Result<Vec<Delivery>> {
        self.run(move |conn, now| {
            conn.prepare_cached(
                "UPDATE messages SET ready_at = 0, leased = 0 WHERE ready_at > 0 AND ready_at <= ?1",
            )?
            .execute([now.as_micros()])?;
            let mut select = conn.prepare_cached(
                "SELECT tenant, kind, id, body, n, attempts + 1 FROM messages
                 WHERE ready_at = 0 ORDER BY n LIMIT ?1",
            )?;
            let mut update = conn.prepare_cached(
                "UPDATE messages SET ready_at = ?2, leased = 1, attempts = ?3 WHERE n = ?1",
            )?;
            let mut bytes = 0;
            let mut taken: Vec<(i64, u32, Message)> = Vec::new();
            let mut rows = select.query([max as i64])?;
            while bytes < MAX_BYTES
                && let Some(row) = rows.next()?
            {
                let message = message(row)?;
                bytes += message.body.len();
                taken.push((row.get(4)?, row.get(5)?, message));
            }
            drop(rows);
            let until = later(now, lease);
            taken
                .into_iter()
                .map(|(n, attempts, message)| {
                    update.execute(params![n, until, attempts])?;
                    let handle = RowHandle { row: n, attempts };
                    Ok(Delivery::new(handle.to_string(), message, attempts))
                })
                .collect()
        })
        .await
    }

    /// The oldest dead letters behind a number, with theirs: at most so many that a sieve may be shown them
    /// at once.
    async fn letters_behind(&self, n: i64) -> Result<(Vec<i64>, Vec<DeadLetter>)> {
        self.run(move |conn, _| {
            let mut select = conn.prepare_cached(
                "SELECT tenant, kind, id, body, n, reason, died_at FROM dead_letters
                 WHERE n > ?1 ORDER BY n LIMIT ?2",
            )?;
            let (mut numbers, mut letters, mut bytes) = (Vec::new(), Vec::new(), 0);
            let mut rows = select.query([n, SIFTED])?;
            while bytes < MAX_BYTES
                && let Some(row) = rows.next()?
            {
                let letter = letter(row)?;
                bytes += letter.message.body.len();
                numbers.push(row.get(4)?);
                letters.push(letter);
            }
            Ok((numbers, letters))
        })
        .await
    }

    /// Does something to each message whose lease is held still.
    async fn settle<T: Send + 'static>(
        &self,
        items: Vec<(Result<RowHandle>, T)>,
        each: impl Fn(&Connection, Timestamp, RowHandle, T) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<Vec<Result<()>>> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        self.run(move |conn, now| {
            items
                .into_iter()
                .map(|(lease, item)| match lease {
                    Ok(lease) => each(conn, now, lease, item).map(Ok),
                    Err(error) => Ok(Err(error)),
                })
                .collect()
        })
        .await
    }
}

#[async_trait]
impl EventQueue for SqliteQueue {
    fn is_durable(&self) -> bool {
        true
    }

    async fn send(&self, messages: &[Message]) -> Result<Vec<Result<()>>> {
        let answers: Vec<Result<()>> = messages.iter().map(Message::check).collect();
        let good: Vec<Message> = messages
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| answer.is_ok())
            .map(|(message, _)| message.clone())
            .collect();
        if !good.is_empty() {
            self.run(move |conn, _| good.iter().try_for_each(|message| insert(conn, message)))
                .await?;
            self.shared.arrived.notify_waiters();
        }
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
            let arrived = self.shared.arrived.notified();
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
        let items = handles.iter().map(|handle| (handle.parse(), ())).collect();
        self.settle(items, |conn, _, lease, ()| delete(conn, lease))
            .await
    }

    async fn retry(&self, handles: &[String], delay: Duration) -> Result<Vec<Result<()>>> {
        let delay = delay.min(LONGEST);
        let items = handles.iter().map(|handle| (handle.parse(), ())).collect();
        let answers = self
            .settle(items, move |conn, now, lease, ()| {
                let ready_at = if delay.is_zero() {
                    0
                } else {
                    later(now, delay)
                };
                conn.prepare_cached(
                    "UPDATE messages SET ready_at = ?3, leased = 0 WHERE n = ?1 AND attempts = ?2",
                )?
                .execute(params![lease.row, lease.attempts, ready_at])
                .map(|_| ())
            })
            .await?;
        self.shared.arrived.notify_waiters();
        Ok(answers)
    }

    async fn extend(&self, handles: &[String], lease: Duration) -> Result<Vec<Result<()>>> {
        let length = lease.clamp(Duration::from_millis(1), LONGEST);
        let items = handles.iter().map(|handle| (handle.parse(), ())).collect();
        self.settle(items, move |conn, now, lease, ()| {
            conn.prepare_cached(
                "UPDATE messages SET ready_at = ?3 WHERE n = ?1 AND attempts = ?2 AND leased = 1",
            )?
            .execute(params![lease.row, lease.attempts, later(now, length)])
            .map(|_| ())
        })
        .await
    }

    async fn bury(&self, letters: &[(String, String)]) -> Result<Vec<Result<()>>> {
        let items = letters
            .iter()
            .map(|(handle, reason)| (handle.parse(), reason.clone()))
            .collect();
        self.settle(items, |conn, now, lease, reason| {
            conn.prepare_cached(
                "INSERT INTO dead_letters (tenant, kind, id, died_at, reason, body)
                 SELECT tenant, kind, id, ?3, ?4, body FROM messages WHERE n = ?1 AND attempts = ?2",
            )?
            .execute(params![lease.row, lease.attempts, now.as_micros(), reason])?;
            delete(conn, lease)
        })
        .await
    }

    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>> {
        self.run(move |conn, _| {
            conn.prepare_cached(
                "SELECT tenant, kind, id, body, n, reason, died_at FROM dead_letters
                 ORDER BY n LIMIT ?1",
            )?
            .query_map([limit.min(i64::MAX as usize) as i64], letter)?
            .collect()
        })
        .await
    }

    async fn redrive(&self, letters: &Redrive<String>) -> Result<u64> {
        let named: Option<Vec<i64>> = match letters {
            Redrive::All => None,
            Redrive::Only(handles) => Some(handles.iter().filter_map(|h| h.parse().ok()).collect()),
        };
        let count = self
            .run(move |conn, _| {
                let named = match named {
                    Some(named) => named,
                    None => conn
                        .prepare_cached("SELECT n FROM dead_letters ORDER BY n")?
                        .query_map([], |row| row.get(0))?
                        .collect::<rusqlite::Result<_>>()?,
                };
                let mut take = conn.prepare_cached(
                    "DELETE FROM dead_letters WHERE n = ?1 RETURNING tenant, kind, id, body",
                )?;
                let mut count = 0;
                for n in named {
                    if let Some(message) = take.query_row([n], message).optional()? {
                        insert(conn, &message)?;
                        count += 1;
                    }
                }
                Ok(count)
            })
            .await?;
        self.shared.arrived.notify_waiters();
        Ok(count)
    }

    async fn sift(&self, sieve: Arc<dyn Sieve<DeadLetter>>) -> Result<u64> {
        let (mut behind, mut count) = (0, 0);
        loop {
            let (numbers, letters) = self.letters_behind(behind).await?;
            let Some(last) = numbers.last() else {
                return Ok(count);
            };
            behind = *last;
            let gone = removed(&*sieve, &letters, numbers).await?;
            count += self
                .run(move |conn, _| {
                    let mut remove =
                        conn.prepare_cached("DELETE FROM dead_letters WHERE n = ?1")?;
                    let mut count = 0;
                    for n in gone {
                        count += remove.execute([n])?;
                    }
                    Ok(count as u64)
                })
                .await?;
        }
    }

    fn dropped(&self) -> u64 {
        0
    }

    async fn depth(&self) -> Result<QueueDepth> {
        self.run(|conn, now| {
            let count = |sql, params: &[i64]| -> rusqlite::Result<u64> {
                let count: i64 = conn
                    .prepare_cached(sql)?
                    .query_row(rusqlite::params_from_iter(params), |row| row.get(0))?;
                Ok(count.unsigned_abs())
            };
            let all = count("SELECT count(*) FROM messages", &[])?;
            let leased = count(
                "SELECT count(*) FROM messages WHERE ready_at > ?1 AND leased = 1",
                &[now.as_micros()],
            )?;
            let dead = count("SELECT count(*) FROM dead_letters", &[])?;
            Ok(QueueDepth {
                waiting: all - leased,
                leased,
                dead,
            })
        })
        .await
    }
}

fn delete(conn: &Connection, lease: RowHandle) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM messages WHERE n = ?1 AND attempts = ?2")?
        .execute(params![lease.row, lease.attempts])
        .map(|_| ())
}

fn later(now: Timestamp, by: Duration) -> i64 {
    now.as_micros()
        .saturating_add(by.as_micros().min(i64::MAX as u128) as i64)
}

fn insert(conn: &Connection, message: &Message) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO messages (tenant, kind, id, ready_at, leased, attempts, body)
         VALUES (?1, ?2, ?3, 0, 0, 0, ?4)",
    )?
    .execute(params![
        message.tenant.as_uuid().as_bytes(),
        message.kind.as_str(),
        message.id.as_uuid().as_bytes(),
        message.body
    ])
    .map(|_| ())
}

/// Reads tenant, kind, id and body from the first four columns.
fn message(row: &Row<'_>) -> rusqlite::Result<Message> {
    let kind: String = row.get(1)?;
    let kind = MessageKind::parse(&kind).ok_or(rusqlite::Error::InvalidQuery)?;
    Ok(Message::new(
        row::tenant_id(row, 0)?,
        kind,
        row::event_id(row, 2)?,
        row.get(3)?,
    ))
}

/// Reads a dead letter: its message's columns, then its number, reason and time.
fn letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    let handle = row.get::<_, i64>(4)?.to_string();
    Ok(DeadLetter::new(
        handle,
        message(row)?,
        row.get::<_, String>(5)?,
        row::time(row, 6)?,
    ))
}

fn open(path: &Path) -> Result<Connection> {
    make_private(path)?;
    let conn = Connection::open(path).map_err(from_sqlite)?;
    conn.busy_timeout(Duration::from_secs(5))
        .map_err(from_sqlite)?;
    conn.execute_batch(
        "PRAGMA secure_delete = ON;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;",
    )
    .map_err(from_sqlite)?;
    let version = conn
        .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        .map_err(from_sqlite)?;
    match version {
        VERSION => {}
        0 => create(&conn).map_err(from_sqlite)?,
        other => {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the queue's file has version {other}, this program knows {VERSION}"),
            ));
        }
    }
    Ok(conn)
}

fn create(conn: &Connection) -> rusqlite::Result<()> {
    let tx = rusqlite::Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    let version: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == 0 {
        tx.execute_batch(TABLES)?;
        tx.pragma_update(None, "user_version", VERSION)?;
    }
    tx.commit()
}

fn serve(mut conn: Connection, mut jobs: mpsc::Receiver<Job>, clock: &dyn Clock) {
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(job) = jobs.try_recv()
        {
            group.push(job);
        }
        let mut group = group.into_iter();
        let mut tells = Vec::with_capacity(group.len());
        let now = clock.now();
        let committed = catch_unwind(AssertUnwindSafe(|| {
            commit(&mut conn, &mut group, now, &mut tells).map_err(from_sqlite)
        }))
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a call panicked")));
        if let Err(error) = &committed {
            tells.extend(group.map(|job| job(Err(error.clone())).1));
        }
        for tell in tells {
            tell(committed.clone());
        }
    }
}

fn commit(
    conn: &mut Connection,
    group: &mut impl Iterator<Item = Job>,
    now: Timestamp,
    tells: &mut Vec<Tell>,
) -> rusqlite::Result<()> {
    let mut tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for job in group {
        let mut alone = tx.savepoint()?;
        let (sound, tell) = job(Ok((&alone, now)));
        tells.push(tell);
        if !sound {
            alone.rollback()?;
        }
        alone.commit()?;
    }
    tx.commit()
}
