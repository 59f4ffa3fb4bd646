//! The one thread that writes. It takes everything that waits, and commits it in one transaction.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use audit_core::tenant::TenantStatus;
use audit_core::tlog::Hash;
use audit_core::{Batch, Error, ErrorKind, Head, Receipt, Result, TenantId};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use crate::TimeSource;
use crate::fault::{from_sqlite, gone};
use crate::wal::Wal;

/// A result for each batch of a call; the outer error says that nothing is known of any.
pub(crate) type Outcomes = Result<Vec<Result<Vec<Receipt>>>>;

/// Calls that may wait before callers do.
const WAITING: usize = 1_024;

/// No further call joins a transaction that has this many events.
const GROUP_EVENTS: usize = 1_000;

/// No further call joins a transaction that has this many bytes.
const GROUP_BYTES: usize = 8 << 20;

/// Tenants whose heads are remembered; when there are more, all are forgotten.
const CACHED_TENANTS: usize = 4_096;

pub(crate) enum Job {
    Append(Append),
    Alone(Box<dyn FnOnce(&mut Writer) + Send>),
}

/// One call of `append`.
pub(crate) struct Append {
    pub(crate) batches: Vec<Batch>,
    pub(crate) reply: oneshot::Sender<Outcomes>,
}

/// What the thread owns.
pub(crate) struct Writer {
    pub(crate) conn: Connection,
    pub(crate) time: TimeSource,
    pub(crate) wal: Wal,
    /// Nobody else writes, so what was committed is what is there.
    tenants: HashMap<TenantId, Sealer>,
}

/// A tenant's place in the file, and the state that its next entry continues.
#[derive(Debug, Clone)]
pub(crate) struct Sealer {
    pub(crate) no: i64,
    pub(crate) status: TenantStatus,
    pub(crate) head: Head,
    /// The leaf hashes behind the last complete tile.
    pub(crate) partial: Vec<Hash>,
}

impl Writer {
    pub(crate) fn new(conn: Connection, time: TimeSource) -> Self {
        Self {
            wal: Wal::new(&conn),
            conn,
            time,
            tenants: HashMap::new(),
        }
    }

    /// Runs `f` in a transaction, and commits when it is `Ok`. When this returns `Ok`, it is
    /// durable.
    pub(crate) fn transact<T>(
        &mut self,
        f: impl FnOnce(&Transaction<'_>, &mut Ledger<'_>) -> Result<T>,
    ) -> Result<T> {
        let Self {
            conn,
            time,
            tenants,
            ..
        } = self;
        if tenants.len() > CACHED_TENANTS {
            tenants.clear();
        }
        if !conn.is_autocommit() {
            // An earlier rollback failed.
            conn.execute_batch("ROLLBACK").map_err(from_sqlite)?;
        }
        let transaction = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(from_sqlite)?;
        let mut ledger = Ledger {
            time,
            tenants,
            touched: false,
        };
        // Dropped uncommitted, it rolls back.
        let done = f(&transaction, &mut ledger)
            .and_then(|value| transaction.commit().map_err(from_sqlite).map(|()| value));
        if done.is_err() && ledger.touched {
            ledger.tenants.clear();
        }
        done
    }

    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| jobs.blocking_recv()) {
            let done = match job {
                Job::Alone(job) => catch_unwind(AssertUnwindSafe(|| job(&mut self))),
                Job::Append(first) => {
                    let group = gather(first, &mut jobs, &mut next);
                    catch_unwind(AssertUnwindSafe(|| self.append(group)))
                }
            };
            if done.is_err() {
                self.tenants.clear();
            }
            self.wal.tidy(&self.conn);
        }
    }
}

/// The calls that wait behind this one, up to the size of a transaction. A job of another sort ends
/// them and comes `next`.
fn gather(first: Append, jobs: &mut mpsc::Receiver<Job>, next: &mut Option<Job>) -> Vec<Append> {
    let mut group = vec![];
    let (mut events, mut bytes) = (0, 0);
    let mut waiting = Some(first);
    while let Some(append) = waiting.take() {
        events += append
            .batches
            .iter()
            .map(|batch| batch.events().len())
            .sum::<usize>();
        bytes += append.batches.iter().map(Batch::size_hint).sum::<usize>();
        group.push(append);
        if events < GROUP_EVENTS && bytes < GROUP_BYTES {
            match jobs.try_recv() {
                Ok(Job::Append(append)) => waiting = Some(append),
                Ok(other) => *next = Some(other),
                Err(_) => {}
            }
        }
    }
    group
}

/// What a transaction knows beside the tables.
pub(crate) struct Ledger<'w> {
    pub(crate) time: &'w TimeSource,
    tenants: &'w mut HashMap<TenantId, Sealer>,
    /// Whether any of `tenants` was looked at, and so may be changed.
    touched: bool,
}

impl Ledger<'_> {
    /// What is remembered of tenants; forgotten when the transaction doesn't commit.
    pub(crate) fn remembered(&mut self) -> &mut HashMap<TenantId, Sealer> {
        self.touched = true;
        self.tenants
    }
}

/// The way to the writer's thread, which starts with the first write and ends with the last handle.
pub(crate) struct WriterHandle {
    idle: Mutex<Option<Writer>>,
    running: OnceLock<Option<Running>>,
}

struct Running {
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

impl fmt::Debug for WriterHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriterHandle").finish_non_exhaustive()
    }
}

impl WriterHandle {
    pub(crate) fn new(writer: Writer) -> Self {
        Self {
            idle: Mutex::new(Some(writer)),
            running: OnceLock::new(),
        }
    }

    fn jobs(&self) -> Result<&mpsc::Sender<Job>> {
        let running = self.running.get_or_init(|| {
            let writer = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()?;
            let (jobs, receiver) = mpsc::channel(WAITING);
            let thread = std::thread::Builder::new()
                .name("audit-write".into())
                .spawn(move || writer.run(receiver))
                .ok()?;
            Some(Running { jobs, thread })
        });
        running
            .as_ref()
            .map(|running| &running.jobs)
            .ok_or_else(gone)
    }

    /// Appends. The commit goes on even when the caller goes away.
    pub(crate) async fn append(&self, batches: Vec<Batch>) -> Outcomes {
        let (reply, answer) = oneshot::channel();
        let append = Job::Append(Append { batches, reply });
        self.jobs()?.send(append).await.map_err(|_| gone())?;
        answer.await.map_err(|_| panicked())?
    }

    /// Runs `f` on the writer's thread, between other transactions. It runs to its end even when
    /// the caller goes away.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Writer) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job = Job::Alone(Box::new(move |writer: &mut Writer| {
            // Nobody may be waiting any more.
            drop(reply.send(f(writer)));
        }));
        self.jobs()?.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| panicked())?
    }
}

fn panicked() -> Error {
    Error::new(
        ErrorKind::Internal,
        "a write panicked: its outcome is unknown",
    )
}

impl Drop for WriterHandle {
    fn drop(&mut self) {
        if let Some(Some(Running { jobs, thread })) = self.running.take() {
            drop(jobs);
            // Panics within a job are caught; any other was shown to its caller.
            drop(thread.join());
        }
    }
}
