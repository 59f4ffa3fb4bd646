//! Connections that only read, each on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use audit_core::tenant::TenantStatus;
use audit_core::{Error, ErrorKind, Result, TenantId};
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::{mpsc, oneshot};

use crate::fault::{from_sqlite, gone};
use crate::{row, schema};

/// A connection that only reads.
pub(crate) struct Reader {
    pub(crate) conn: Connection,
}

type Job = Box<dyn FnOnce(Result<&mut Reader>) + Send>;

/// Reads that may wait before callers do.
const WAITING: usize = 256;

/// A fixed number of readers. Their threads start with the first read.
#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    count: usize,
    running: OnceLock<Running>,
}

#[derive(Debug)]
struct Running {
    jobs: mpsc::Sender<Job>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(crate) fn new(path: PathBuf, count: usize) -> Self {
        Self {
            path,
            count: count.max(1),
            running: OnceLock::new(),
        }
    }

    fn jobs(&self) -> &mpsc::Sender<Job> {
        let running = self.running.get_or_init(|| {
            let (jobs, receiver) = mpsc::channel(WAITING);
            let receiver = Arc::new(Mutex::new(receiver));
            let threads = (0..self.count)
                .filter_map(|i| {
                    let (path, receiver) = (self.path.clone(), Arc::clone(&receiver));
                    // A thread that can't be had is missed by nobody as long as one runs; with
                    // none, the receiver is gone and every read says so.
                    std::thread::Builder::new()
                        .name(format!("audit-read-{i}"))
                        .spawn(move || serve(path, &receiver))
                        .ok()
                })
                .collect();
            Running { jobs, threads }
        });
        &running.jobs
    }

    /// Runs `f` on one of the connections. It runs to its end even when the caller goes away.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Reader) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |reader| {
            // Nobody may be waiting any more.
            drop(reply.send(reader.and_then(f)));
        });
        self.jobs().send(job).await.map_err(|_| gone())?;
        answer
            .await
            .map_err(|_| Error::new(ErrorKind::Internal, "a read panicked"))?
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        if let Some(Running { jobs, threads }) = self.running.take() {
            drop(jobs);
            for thread in threads {
                // It ended by a panic that its caller was told of.
                drop(thread.join());
            }
        }
    }
}

fn serve(path: PathBuf, jobs: &Mutex<mpsc::Receiver<Job>>) {
    let mut reader: Option<Reader> = None;
    loop {
        let job = jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .blocking_recv();
        let Some(job) = job else { return };
        if reader.is_none() {
            match schema::open_reader(&path) {
                Ok(conn) => reader = Some(Reader { conn }),
                Err(error) => {
                    job(Err(error));
                    continue;
                }
            }
        }
        if let Some(open) = &mut reader
            && catch_unwind(AssertUnwindSafe(|| job(Ok(open)))).is_err()
        {
            // It may have been left within a transaction.
            reader = None;
        }
    }
}

/// A tenant's number within the file, and its status; none when there never was one.
pub(crate) fn tenant_no(
    conn: &Connection,
    tenant: TenantId,
) -> Result<Option<(i64, TenantStatus)>> {
    conn.prepare_cached("SELECT no, status FROM tenants WHERE id = ?1")
        .and_then(|mut statement| {
            statement
                .query_row([tenant.as_uuid().as_bytes()], |r| {
                    Ok((r.get(0)?, row::name(r, 1)?))
                })
                .optional()
        })
        .map_err(from_sqlite)
}

/// The number of a tenant that may be read.
///
/// # Errors
/// [`ErrorKind::UnknownTenant`], and what [`TenantStatus::admit_read`] refuses.
pub(crate) fn readable_tenant(conn: &Connection, tenant: TenantId) -> Result<i64> {
    let (no, status) = tenant_no(conn, tenant)?.ok_or_else(|| unknown_tenant(tenant))?;
    status.admit_read(tenant)?;
    Ok(no)
}

pub(crate) fn unknown_tenant(tenant: TenantId) -> Error {
    Error::new(ErrorKind::UnknownTenant, "the tenant does not exist").with_tenant(tenant)
}
