//! Snapshots: one transaction on a connection of its own, from which scans are served.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use audit_core::scan::{self, Piece, crowded, expired};
use audit_core::{Entry, Evidence, Filter, Head, Result, Snapshot, StoredEntry, TenantId};
use futures_util::stream::{BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use sqlx_core::connection::Connection as _;
use sqlx_core::executor::Executor as _;
use sqlx_postgres::PgConnection;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::PostgresOptions;
use crate::fault::from_sqlx;
use crate::head::readable_head;
use crate::list::{self, CountedBy, Found, Window};
use crate::pool::{Role, begin_statement, snapshot_options};

/// The most entries in one answer, and in the first of a scan.
const CHUNK: usize = 2_500;
const FIRST_CHUNK: usize = 16;

/// Positions that are looked at for one answer: a filter that few match must not hold up other scans
/// of the same snapshot.
const LOOK: u64 = 50_000;

/// No further entry joins an answer that has so much raw JSON.
const CHUNK_BYTES: usize = 4 << 20;

/// Scans that may wait for the connection at once.
const WAITING: usize = 64;

struct Request {
    range: Range<u64>,
    filter: Arc<Filter>,
    size: usize,
    reply: oneshot::Sender<Result<Found>>,
}

/// A snapshot of one tenant's log.
pub(crate) struct PostgresSnapshot {
    head: Head,
    requests: mpsc::Sender<Request>,
}

impl fmt::Debug for PostgresSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSnapshot")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

impl PostgresSnapshot {
    /// Connects, and takes the snapshot. The connection ends with the snapshot's last stream, and at
    /// the maximum age.
    pub(crate) async fn take(
        options: &PostgresOptions,
        tenant: TenantId,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self> {
        let deadline = Instant::now() + options.max_snapshot_age;
        let connect = snapshot_options(options)?;
        let mut conn = PgConnection::connect_with(&connect)
            .await
            .map_err(from_sqlx)?;
        let begin = begin_statement(Role::Reader, Some(tenant));
        conn.execute(begin.as_str()).await.map_err(from_sqlx)?;
        // Locks the events' table to the end: a partition that is dropped would be gone from a
        // snapshot that hasn't read it yet.
        conn.execute("SELECT FROM audit.tenant_events LIMIT 0")
            .await
            .map_err(from_sqlx)?;
        let head = readable_head(&mut conn, tenant).await?;
        let (requests, receiver) = mpsc::channel(WAITING);
        tokio::spawn(serve(conn, head.clone(), deadline, receiver, permit));
        Ok(Self { head, requests })
    }
}

async fn serve(
    mut conn: PgConnection,
    head: Head,
    deadline: Instant,
    mut requests: mpsc::Receiver<Request>,
    permit: OwnedSemaphorePermit,
) {
    while let Ok(Some(request)) = timeout_at(deadline, requests.recv()).await {
        let chunk = chunk(
            &mut conn,
            &head,
            request.range,
            &request.filter,
            request.size,
        );
        let answer = timeout_at(deadline, chunk).await;
        let is_over = answer.is_err();
        // Nobody may be waiting any more.
        drop(
            request
                .reply
                .send(answer.unwrap_or_else(|_| Err(expired()))),
        );
        if is_over {
            break;
        }
    }
    // Without a word to the server when a statement is still under way: it notices.
    drop(conn);
    drop(permit);
}

/// The next rows of `range` that may match, oldest first, at most so many.
async fn chunk(
    conn: &mut PgConnection,
    head: &Head,
    range: Range<u64>,
    filter: &Filter,
    entries: usize,
) -> Result<Found> {
    let window = Window {
        seqs: range.start..range.end.min(range.start.saturating_add(LOOK)),
        entries,
        bytes: CHUNK_BYTES,
        counted_by: CountedBy::Reader,
    };
    list::window(conn, head, filter, window).await
}

/// How many entries to ask for next: as many as there is room for when they are like those that were
/// found, since what the server sends beyond that is in vain; and at most twice as many as before, since
/// they may be larger.
fn next_size(asked: usize, found: &Found) -> usize {
    match found.average() {
        None => asked,
        Some(average) => (CHUNK_BYTES / average.max(1))
            .clamp(1, CHUNK)
            .min(2 * asked),
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Snapshot for PostgresSnapshot {
    fn head(&self) -> &Head {
        &self.head
    }

    async fn scan(&self, filter: &Filter) -> Result<BoxStream<'static, Result<Entry>>> {
        let entries = self.stored(filter)?;
        Ok(entries.map_ok(StoredEntry::into_entry).boxed())
    }

    async fn evidence(&self, filter: &Filter) -> Result<BoxStream<'static, Result<Evidence>>> {
        let entries = self.stored(filter)?;
        Ok(entries.map_ok(StoredEntry::into_evidence).boxed())
    }
}

impl PostgresSnapshot {
    /// The rows that match, oldest first.
    fn stored(
        &self,
        filter: &Filter,
    ) -> Result<impl Stream<Item = Result<StoredEntry>> + Send + use<>> {
        let range = self.head.positions(filter);
        let (requests, filter) = (self.requests.clone(), Arc::new(filter.clone()));
        let size = Arc::new(AtomicUsize::new(FIRST_CHUNK));
        scan::pieces(range, move |range| {
            let (reply, answer) = oneshot::channel();
            let (end, size) = (range.end, Arc::clone(&size));
            let asked = size.load(Ordering::Relaxed);
            let request = Request {
                range,
                filter: Arc::clone(&filter),
                size: asked,
                reply,
            };
            match requests.try_send(request) {
                Ok(()) => Ok(async move {
                    let found = answer.await.unwrap_or_else(|_| Err(expired()))?;
                    size.store(next_size(asked, &found), Ordering::Relaxed);
                    let rest = found.next()?..end;
                    // Decoded where the stream is read, while the connection fetches the next ones.
                    let entries = found.into_entries();
                    Ok(Piece { entries, rest })
                }),
                Err(TrySendError::Full(_)) => Err(crowded()),
                Err(TrySendError::Closed(_)) => Err(expired()),
            }
        })
    }
}
