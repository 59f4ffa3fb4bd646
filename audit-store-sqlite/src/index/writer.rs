//! The thread that writes the index.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use audit_core::{Entry, Error, ErrorKind, Result, TenantId};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::document::Tokens;
use super::file;
use super::view::{SEQ_BITS, ZONE, doc, seq_of};
use crate::fault::{from_sqlite, gone};
use crate::wal::Wal;

/// Bytes of documents that are held before they are written.
const PIECE: usize = 4 << 20;
/// Documents after which others may run.
const YIELD: usize = 64;

type Reply<T> = oneshot::Sender<Result<T>>;

#[derive(Debug)]
enum Job {
    Index {
        chunks: mpsc::Receiver<Vec<Entry>>,
        reply: Reply<()>,
    },
    Remove {
        tenant: TenantId,
        current: Vec<Entry>,
        reply: Reply<()>,
    },
    DropBelow {
        tenant: TenantId,
        below: u64,
        limit: usize,
        reply: Reply<bool>,
    },
    DropTenant {
        tenant: TenantId,
        limit: usize,
        reply: Reply<bool>,
    },
    Mend {
        tenant: TenantId,
        missing: Vec<Entry>,
        surplus: Vec<u64>,
        reply: Reply<()>,
    },
    Vacuum {
        reply: Reply<()>,
    },
    Condemn,
}

/// The writer's thread. It ends when this is dropped, after what it was given.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(conn: Connection) -> Result<Self> {
        let mut work = Work::new(conn)?;
        let (jobs, mut receiver) = mpsc::channel(4);
        let thread = std::thread::Builder::new()
            .name("audit-index".into())
            .spawn(move || {
                give_way();
                while let Some(job) = receiver.blocking_recv() {
                    // Whoever asked is told by the reply that never comes.
                    if catch_unwind(AssertUnwindSafe(|| work.run(job))).is_err() {
                        work.state.forget();
                    }
                    work.wal.tidy(&work.conn);
                }
            })
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "no thread can be had").with_source(error)
            })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    async fn send(&self, job: Job) -> Result<()> {
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).await.map_err(|_| gone())
    }

    /// Begins a batch: its entries are sent in pieces, and it is committed when the sender is
    /// dropped.
    pub(super) async fn begin(
        &self,
    ) -> Result<(mpsc::Sender<Vec<Entry>>, oneshot::Receiver<Result<()>>)> {
        let (chunks, receiver) = mpsc::channel(2);
        let (reply, done) = oneshot::channel();
        self.send(Job::Index {
            chunks: receiver,
            reply,
        })
        .await?;
        Ok((chunks, done))
    }

    pub(super) async fn remove(&self, tenant: TenantId, current: Vec<Entry>) -> Result<()> {
        let (reply, done) = oneshot::channel();
        self.send(Job::Remove {
            tenant,
            current,
            reply,
        })
        .await?;
        done.await.map_err(|_| gone())?
    }

    pub(super) async fn mend(
        &self,
        tenant: TenantId,
        missing: Vec<Entry>,
        surplus: Vec<u64>,
    ) -> Result<()> {
        let (reply, done) = oneshot::channel();
        self.send(Job::Mend {
            tenant,
            missing,
            surplus,
            reply,
        })
        .await?;
        done.await.map_err(|_| gone())?
    }

    pub(super) async fn drop_below(
        &self,
        tenant: TenantId,
        below: u64,
        limit: usize,
    ) -> Result<bool> {
        let (reply, done) = oneshot::channel();
        self.send(Job::DropBelow {
            tenant,
            below,
            limit,
            reply,
        })
        .await?;
        done.await.map_err(|_| gone())?
    }

    pub(super) async fn drop_tenant(&self, tenant: TenantId, limit: usize) -> Result<bool> {
        let (reply, done) = oneshot::channel();
        self.send(Job::DropTenant {
            tenant,
            limit,
            reply,
        })
        .await?;
        done.await.map_err(|_| gone())?
    }

    /// Merges the words into one segment, without those of documents that were removed, and writes
    /// the file anew.
    pub(super) async fn vacuum(&self) -> Result<()> {
        let (reply, done) = oneshot::channel();
        self.send(Job::Vacuum { reply }).await?;
        done.await.map_err(|_| gone())?
    }
}

impl Writer {
    /// Has the file replaced when it is opened the next time.
    pub(super) fn condemn(&self) {
        // With too much to do it isn't told this time.
        if let Some(jobs) = &self.jobs {
            drop(jobs.try_send(Job::Condemn));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // It ended by a panic that its caller was told of.
            drop(thread.join());
        }
    }
}

/// Lets every other thread run first: appends and reads wait for nothing here, and the index may lag.
fn give_way() {
    // On Linux the priority is the calling thread's own; elsewhere it would be the whole process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!(%error, "the index's thread keeps its priority");
    }
}

/// What the file says of a tenant.
#[derive(Debug, Clone, Copy)]
struct Progress {
    no: i64,
    first: u64,
    through: u64,
    changed: bool,
}

struct Document {
    doc: i64,
    occurred_at: i64,
    created_at: i64,
    text: String,
}

struct Work {
    conn: Connection,
    state: State,
    wal: Wal,
}

struct State {
    tokens: Tokens,
    /// As of the last commit; what a batch changes is marked until then.
    tenants: HashMap<TenantId, Progress>,
    any_superseded: bool,
}

impl Work {
    fn new(conn: Connection) -> Result<Self> {
        let key = conn
            .query_row("SELECT key FROM secret", [], |row| {
                row.get::<_, [u8; 16]>(0)
            })
            .map_err(from_sqlite)?;
        let any_superseded = conn
            .query_row("SELECT EXISTS (SELECT 1 FROM superseded)", [], |row| {
                row.get(0)
            })
            .map_err(from_sqlite)?;
        let state = State {
            tokens: Tokens::new(&key),
            tenants: HashMap::new(),
            any_superseded,
        };
        let wal = Wal::new(&conn);
        Ok(Self { conn, state, wal })
    }

    fn vacuum(&mut self) -> Result<()> {
        self.conn
            .execute_batch("INSERT INTO words (words) VALUES ('optimize'); VACUUM;")
            .map_err(from_sqlite)?;
        self.wal.drain(&self.conn)
    }

    fn run(&mut self, job: Job) {
        // Whoever asked may not be waiting any more.
        match job {
            Job::Condemn => file::condemn(&self.conn),
            Job::Vacuum { reply } => drop(reply.send(self.vacuum())),
            Job::Index { chunks, reply } => {
                drop(reply.send(self.transact(|state, tx| state.index(tx, chunks))));
            }
            Job::Remove {
                tenant,
                current,
                reply,
            } => {
                drop(reply.send(self.transact(|state, tx| state.remove(tx, tenant, &current))));
            }
            Job::DropBelow {
                tenant,
                below,
                limit,
                reply,
            } => {
                let outcome = self.transact(|state, tx| state.drop_below(tx, tenant, below, limit));
                drop(reply.send(outcome));
            }
            Job::DropTenant {
                tenant,
                limit,
                reply,
            } => {
                let outcome = self.transact(|state, tx| state.drop_tenant(tx, tenant, limit));
                drop(reply.send(outcome));
            }
            Job::Mend {
                tenant,
                missing,
                surplus,
                reply,
            } => {
                let outcome = self.transact(|state, tx| state.mend(tx, tenant, &missing, &surplus));
                drop(reply.send(outcome));
            }
        }
    }

    fn transact<T>(&mut self, f: impl FnOnce(&mut State, &Connection) -> Result<T>) -> Result<T> {
        let Self { conn, state, .. } = self;
        let outcome = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(from_sqlite)
            .and_then(|tx| {
                let answer = f(state, &tx)?;
                state.save_progress(&tx)?;
                tx.commit().map_err(from_sqlite)?;
                Ok(answer)
            });
        if let Err(error) = &outcome {
            state.forget();
            if error.kind() == ErrorKind::Corrupt {
                file::condemn(conn);
            }
        }
        outcome
    }
}

impl State {
    /// After a transaction that did not commit, the file is asked again.
    fn forget(&mut self) {
        self.tenants.clear();
        self.any_superseded = true;
    }

    fn index(&mut self, tx: &Connection, mut chunks: mpsc::Receiver<Vec<Entry>>) -> Result<()> {
        let mut documents = Vec::new();
        let mut bytes = 0;
        while let Some(chunk) = chunks.blocking_recv() {
            for entry in &chunk {
                let progress = self.progress(tx, entry.tenant_id)?;
                if entry.seq < progress.through {
                    continue;
                }
                if progress.through == 0 {
                    // What is pruned never comes.
                    progress.first = entry.seq;
                    progress.through = entry.seq;
                }
                // What lies between was pruned before it came here.
                progress.through = entry.seq + 1;
                progress.changed = true;
                let number = progress.no;
                let document = Document {
                    doc: doc(number, entry.seq),
                    occurred_at: entry.occurred_at.as_micros(),
                    created_at: entry.created_at.as_micros(),
                    text: self.text(tx, number, entry)?,
                };
                bytes += document.text.len();
                documents.push(document);
            }
            if bytes >= PIECE {
                write(tx, &mut documents)?;
                bytes = 0;
            }
        }
        write(tx, &mut documents)
    }

    /// What is indexed of an entry that isn't yet: what is left of it, when it lost something since
    /// it was read.
    fn text(&mut self, tx: &Connection, number: i64, entry: &Entry) -> Result<String> {
        if self.any_superseded {
            let later = tx
                .prepare_cached("DELETE FROM superseded WHERE doc = ?1 RETURNING text")
                .and_then(|mut statement| {
                    statement
                        .query_row([doc(number, entry.seq)], |row| row.get(0))
                        .optional()
                })
                .map_err(from_sqlite)?;
            if let Some(later) = later {
                return Ok(later);
            }
        }
        Ok(self.tokens.document(number, &entry.fields))
    }

    fn remove(&mut self, tx: &Connection, tenant: TenantId, current: &[Entry]) -> Result<()> {
        let progress = *self.progress(tx, tenant)?;
        let mut current: Vec<&Entry> = current.iter().collect();
        current.sort_unstable_by_key(|entry| entry.seq);
        for entry in current {
            let number = doc(progress.no, entry.seq);
            let text = self.tokens.document(progress.no, &entry.fields);
            if entry.seq >= progress.through {
                self.any_superseded = true;
                tx.prepare_cached("INSERT OR REPLACE INTO superseded VALUES (?1, ?2)")
                    .and_then(|mut statement| statement.execute(params![number, text]))
                    .map_err(from_sqlite)?;
                continue;
            }
            let removed = tx
                .prepare_cached("SELECT 1 FROM documents WHERE doc = ?1")
                .and_then(|mut statement| statement.exists([number]))
                .and_then(|exists| match exists {
                    true => delete(tx, "words", "rowid", number).map(|()| true),
                    false => Ok(false),
                })
                .map_err(from_sqlite)?;
            if removed {
                tx.prepare_cached(INSERT_WORDS)
                    .and_then(|mut statement| statement.execute(params![number, text]))
                    .map_err(from_sqlite)?;
            }
        }
        Ok(())
    }

    fn drop_below(
        &mut self,
        tx: &Connection,
        tenant: TenantId,
        below: u64,
        limit: usize,
    ) -> Result<bool> {
        let progress = self.progress(tx, tenant)?;
        if progress.through < below {
            progress.through = below;
        }
        progress.first = progress.first.max(below);
        progress.changed = true;
        let number = progress.no;
        let pruned: Vec<(i64, i64)> = tx
            .prepare_cached(
                "SELECT doc, occurred_at FROM documents WHERE doc >= ?1 AND doc < ?2
                 ORDER BY doc LIMIT ?3",
            )
            .and_then(|mut statement| {
                statement
                    .query_map(
                        params![doc(number, 0), doc(number, below), limit as i64],
                        |row| Ok((row.get(0)?, row.get(1)?)),
                    )?
                    .collect()
            })
            .map_err(from_sqlite)?;
        for (doc, occurred_at) in &pruned {
            take_out(tx, *doc, Some(*occurred_at)).map_err(from_sqlite)?;
        }
        let more = pruned.len() == limit;
        if !more {
            tx.prepare_cached("DELETE FROM zones WHERE tenant = ?1 AND zone < ?2")
                .and_then(|mut statement| statement.execute([number, (below >> ZONE) as i64]))
                .map_err(from_sqlite)?;
            tx.prepare_cached("DELETE FROM superseded WHERE doc >= ?1 AND doc < ?2")
                .and_then(|mut statement| statement.execute([doc(number, 0), doc(number, below)]))
                .map_err(from_sqlite)?;
        }
        Ok(more)
    }

    /// Takes out at most `limit` entries of a tenant, and the tenant with the last one. Returns whether
    /// there are more.
    fn drop_tenant(&mut self, tx: &Connection, tenant: TenantId, limit: usize) -> Result<bool> {
        let more = remove_tenant(tx, tenant, limit).map_err(from_sqlite)?;
        if !more {
            self.tenants.remove(&tenant);
        }
        Ok(more)
    }

    fn mend(
        &mut self,
        tx: &Connection,
        tenant: TenantId,
        missing: &[Entry],
        surplus: &[u64],
    ) -> Result<()> {
        let progress = *self.progress(tx, tenant)?;
        let mut documents = Vec::with_capacity(missing.len());
        for entry in missing.iter().filter(|e| e.seq < progress.through) {
            documents.push(Document {
                doc: doc(progress.no, entry.seq),
                occurred_at: entry.occurred_at.as_micros(),
                created_at: entry.created_at.as_micros(),
                text: self.tokens.document(progress.no, &entry.fields),
            });
        }
        let surplus = surplus.iter().map(|seq| doc(progress.no, *seq));
        let numbers: Vec<i64> = documents.iter().map(|d| d.doc).chain(surplus).collect();
        for number in numbers {
            let occurred_at = tx
                .prepare_cached("SELECT occurred_at FROM documents WHERE doc = ?1")
                .and_then(|mut statement| {
                    statement.query_row([number], |row| row.get(0)).optional()
                })
                .map_err(from_sqlite)?;
            take_out(tx, number, occurred_at).map_err(from_sqlite)?;
        }
        write(tx, &mut documents)
    }

    /// How far a tenant is; a new one gets its number.
    fn progress(&mut self, tx: &Connection, tenant: TenantId) -> Result<&mut Progress> {
        match self.tenants.entry(tenant) {
            Slot::Occupied(known) => Ok(known.into_mut()),
            Slot::Vacant(slot) => {
                let id = tenant.as_uuid().as_bytes();
                let (no, first, through) = tx
                    .prepare_cached(
                        "INSERT INTO tenants (id, first, through) VALUES (?1, 0, 0)
                         ON CONFLICT (id) DO UPDATE SET through = through
                         RETURNING no, first, through",
                    )
                    .and_then(|mut statement| {
                        statement.query_row([id], |row| {
                            Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
                        })
                    })
                    .map_err(from_sqlite)?;
                Ok(slot.insert(Progress {
                    no,
                    first: first as u64,
                    through: through as u64,
                    changed: false,
                }))
            }
        }
    }

    fn save_progress(&mut self, tx: &Connection) -> Result<()> {
        for progress in self
            .tenants
            .values_mut()
            .filter(|progress| progress.changed)
        {
            tx.prepare_cached("UPDATE tenants SET first = ?2, through = ?3 WHERE no = ?1")
                .and_then(|mut statement| {
                    statement.execute([progress.no, progress.first as i64, progress.through as i64])
                })
                .map_err(from_sqlite)?;
            progress.changed = false;
        }
        Ok(())
    }
}

const INSERT_WORDS: &str = "INSERT INTO words (rowid, text) VALUES (?1, ?2)";

/// Takes out all that an entry has here.
fn take_out(tx: &Connection, doc: i64, occurred_at: Option<i64>) -> rusqlite::Result<()> {
    delete(tx, "words", "rowid", doc)?;
    delete(tx, "documents", "doc", doc)?;
    if let Some(occurred_at) = occurred_at {
        tx.prepare_cached(
            "DELETE FROM occurred WHERE tenant = ?1 AND occurred_at = ?2 AND seq = ?3",
        )?
        .execute(params![doc >> SEQ_BITS, occurred_at, seq_of(doc) as i64])?;
    }
    Ok(())
}

fn remove_tenant(tx: &Connection, tenant: TenantId, limit: usize) -> rusqlite::Result<bool> {
    let number = tx
        .prepare_cached("SELECT no FROM tenants WHERE id = ?1")?
        .query_row([tenant.as_uuid().as_bytes()], |row| row.get::<_, i64>(0))
        .optional()?;
    let Some(number) = number else {
        return Ok(false);
    };
    let all = [doc(number, 0), doc(number + 1, 0)];
    let some: Vec<(i64, i64)> = tx
        .prepare_cached(
            "SELECT doc, occurred_at FROM documents WHERE doc >= ?1 AND doc < ?2
             ORDER BY doc LIMIT ?3",
        )?
        .query_map(params![all[0], all[1], limit as i64], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    for (doc, occurred_at) in &some {
        take_out(tx, *doc, Some(*occurred_at))?;
    }
    if some.len() == limit {
        return Ok(true);
    }
    tx.execute("DELETE FROM superseded WHERE doc >= ?1 AND doc < ?2", all)?;
    tx.execute("DELETE FROM zones WHERE tenant = ?1", [number])?;
    tx.execute("DELETE FROM tenants WHERE no = ?1", [number])?;
    Ok(false)
}

fn delete(tx: &Connection, table: &str, column: &str, doc: i64) -> rusqlite::Result<()> {
    tx.prepare_cached(&format!("DELETE FROM {table} WHERE {column} = ?1"))?
        .execute([doc])
        .map(|_| ())
}

/// Writes documents in the order of their numbers, which is what FTS5 and the trees are fast at, and
/// empties the list.
fn write(tx: &Connection, documents: &mut Vec<Document>) -> Result<()> {
    documents.sort_unstable_by_key(|document| document.doc);
    write_sorted(tx, documents).map_err(from_sqlite)?;
    documents.clear();
    Ok(())
}

fn write_sorted(tx: &Connection, documents: &[Document]) -> rusqlite::Result<()> {
    let mut words = tx.prepare_cached(INSERT_WORDS)?;
    let mut times = tx.prepare_cached("INSERT INTO documents VALUES (?1, ?2, ?3)")?;
    for (i, document) in documents.iter().enumerate() {
        if i % YIELD == 0 {
            std::thread::yield_now();
        }
        words.execute(params![document.doc, document.text])?;
        times.execute(params![
            document.doc,
            document.occurred_at,
            document.created_at
        ])?;
    }
    let mut zones = tx.prepare_cached(
        "INSERT INTO zones VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE
         SET first = min(first, excluded.first), last = max(last, excluded.last)",
    )?;
    for zone in documents.chunk_by(|a, b| a.doc >> ZONE == b.doc >> ZONE) {
        let (first, last) = zone
            .iter()
            .fold((i64::MAX, i64::MIN), |(first, last), document| {
                (
                    first.min(document.occurred_at),
                    last.max(document.occurred_at),
                )
            });
        let [document, ..] = zone else { continue };
        zones.execute(params![
            document.doc >> SEQ_BITS,
            (seq_of(document.doc) >> ZONE) as i64,
            first,
            last
        ])?;
    }
    let mut order: Vec<(i64, i64, i64)> = documents
        .iter()
        .map(|d| (d.doc >> SEQ_BITS, d.occurred_at, seq_of(d.doc) as i64))
        .collect();
    order.sort_unstable();
    let mut occurred = tx.prepare_cached("INSERT OR IGNORE INTO occurred VALUES (?1, ?2, ?3)")?;
    for (tenant, at, seq) in order {
        occurred.execute([tenant, at, seq])?;
    }
    Ok(())
}
