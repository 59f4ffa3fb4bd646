//! Snapshots: one read transaction on a thread of its own, which scans are served from.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use audit_core::scan::{self, Piece, crowded, expired};
use audit_core::{
    Entry, Error, ErrorKind, Evidence, Filter, Head, Result, Snapshot, StoredEntry, TenantId,
};
use futures_util::stream::{BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use crate::fault::from_sqlite;
use crate::reader::{Reader, readable_tenant};
use crate::{head, row};

/// Entries in one answer of the thread.
const CHUNK: usize = 256;

/// Rows that are looked at for one answer: a filter that few match must not hold up other scans of
/// the same snapshot.
const LOOK: u64 = 4_096;

/// No further entry joins an answer that has so much raw JSON.
const CHUNK_BYTES: usize = 2 << 20;

/// Scans that may wait for the thread at once.
const WAITING: usize = 256;

type Found = Piece<Vec<Result<StoredEntry>>>;

struct Request {
    range: Range<u64>,
    filter: Arc<Filter>,
    reply: oneshot::Sender<Result<Found>>,
}

/// A snapshot of one tenant's log.
pub(crate) struct SqliteSnapshot {
    head: Head,
    requests: SyncSender<Request>,
}

impl fmt::Debug for SqliteSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteSnapshot")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

impl SqliteSnapshot {
    /// Starts the thread on a connection of its own and takes the snapshot there. It ends with the
    /// snapshot's last stream, and the transaction at `max_age`.
    pub(crate) async fn take(
        open: impl FnOnce() -> Result<Reader> + Send + 'static,
        tenant: TenantId,
        max_age: Duration,
    ) -> Result<Self> {
        let (requests, receiver) = sync_channel(WAITING);
        let (reply, head) = oneshot::channel();
        std::thread::Builder::new()
            .name("audit-snapshot".into())
            .spawn(move || serve(open, tenant, max_age, reply, &receiver))
            .map_err(|e| {
                Error::new(ErrorKind::Unavailable, "no thread for a snapshot").with_source(e)
            })?;
        let head = head.await.map_err(|_| expired())??;
        Ok(Self { head, requests })
    }
}

fn serve(
    open: impl FnOnce() -> Result<Reader>,
    tenant: TenantId,
    max_age: Duration,
    reply: oneshot::Sender<Result<Head>>,
    requests: &Receiver<Request>,
) {
    let deadline = Instant::now() + max_age;
    let started = open().and_then(|mut reader| {
        let (no, head) = begin(&mut reader.conn, tenant)?;
        Ok((reader.conn, no, head))
    });
    let (conn, no) = match started {
        Err(error) => {
            // Nobody may be waiting any more.
            drop(reply.send(Err(error)));
            return;
        }
        Ok((conn, no, head)) => {
            if reply.send(Ok(head)).is_err() {
                return;
            }
            (conn, no)
        }
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match requests.recv_timeout(left) {
            Ok(request) if Instant::now() < deadline => {
                let chunk = chunk(&conn, no, tenant, request.range, &request.filter);
                drop(request.reply.send(chunk));
            }
            Ok(request) => {
                drop(request.reply.send(Err(expired())));
                break;
            }
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn begin(conn: &mut Connection, tenant: TenantId) -> Result<(i64, Head)> {
    // It ends when the connection is closed.
    conn.execute_batch("BEGIN").map_err(from_sqlite)?;
    let no = readable_tenant(conn, tenant)?;
    Ok((no, head::head(conn, no, tenant)?))
}

/// The next entries of `range` that match, oldest first.
fn chunk(
    conn: &Connection,
    no: i64,
    tenant: TenantId,
    range: Range<u64>,
    filter: &Filter,
) -> Result<Found> {
    let everything = filter.is_empty();
    let mut range = range;
    if let Some(from) = filter.created.from {
        range.start = head::first_accepted_at(conn, no, range.clone(), from)?;
    }
    if let Some(to) = filter.created.to {
        range.end = head::first_accepted_at(conn, no, range.clone(), to)?;
    }
    let mut statement = conn
        .prepare_cached(&format!(
            "SELECT {} FROM entries WHERE tenant = ?1 AND seq >= ?2 AND seq < ?3 ORDER BY seq",
            row::COLUMNS
        ))
        .map_err(from_sqlite)?;
    let end = range.end.min(range.start.saturating_add(LOOK));
    let mut rows = statement
        .query(params![no, range.start as i64, end as i64])
        .map_err(from_sqlite)?;
    let mut entries = Vec::with_capacity(CHUNK.min(end.saturating_sub(range.start) as usize));
    let mut next = end;
    let mut bytes = 0;
    while let Some(row) = rows.next().map_err(from_sqlite)? {
        let stored = row::stored_entry(row, tenant).map_err(from_sqlite)?;
        if everything || filter.matches(&stored.entry) {
            let seq = stored.entry.seq;
            bytes += stored.entry.fields.raw_len();
            entries.push(Ok(stored));
            if entries.len() == CHUNK || bytes >= CHUNK_BYTES {
                next = seq + 1;
                break;
            }
        }
    }
    Ok(Piece {
        entries,
        rest: next..range.end,
    })
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Snapshot for SqliteSnapshot {
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

impl SqliteSnapshot {
    /// The rows that match, oldest first.
    fn stored(
        &self,
        filter: &Filter,
    ) -> Result<impl Stream<Item = Result<StoredEntry>> + Send + use<>> {
        let range = self.head.positions(filter);
        let (requests, filter) = (self.requests.clone(), Arc::new(filter.clone()));
        scan::pieces(range, move |range| {
            let (reply, answer) = oneshot::channel();
            let request = Request {
                range,
                filter: Arc::clone(&filter),
                reply,
            };
            match requests.try_send(request) {
                Ok(()) => Ok(async move { answer.await.unwrap_or_else(|_| Err(expired())) }),
                Err(TrySendError::Full(_)) => Err(crowded()),
                Err(TrySendError::Disconnected(_)) => Err(expired()),
            }
        })
    }
}
