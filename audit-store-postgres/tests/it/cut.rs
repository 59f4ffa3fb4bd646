//! Connections that are cut at COMMIT, by a proxy between the store and the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use audit_core::{GroupCommit, LogStore, Retry};
use audit_store_postgres::PostgresStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{Database, scope, server};

/// What the proxy does with the next COMMIT; then it lets everything through again.
const PASS: u8 = 0;
const CUT_BEFORE: u8 = 1;
const CUT_AFTER: u8 = 2;

#[derive(Clone)]
struct Proxy {
    next: Arc<AtomicU8>,
    port: u16,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            next: Arc::new(AtomicU8::new(PASS)),
            port: listener.local_addr().unwrap().port(),
        };
        let next = this.next.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, next.clone()));
            }
        });
        this
    }

    fn url(&self, database: &Database) -> String {
        let port = format!(":{}/", server().get_port());
        let own = format!(":{}/", self.port);
        format!("{}?sslmode=disable", database.url().replace(&port, &own))
    }
}

async fn forward(mut client: TcpStream, next: Arc<AtomicU8>) {
    let server = server();
    let mut server = TcpStream::connect((server.get_host(), server.get_port()))
        .await
        .unwrap();
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(n @ 1..) = read else { return };
                let commits = up[..n].windows(7).any(|bytes| bytes == b"COMMIT\0");
                let cut = if commits { next.swap(PASS, Ordering::SeqCst) } else { PASS };
                if cut == CUT_BEFORE {
                    return;
                }
                server.write_all(&up[..n]).await.unwrap();
                if cut == CUT_AFTER {
                    // The server has done it once it answers.
                    server.read_exact(&mut down[..1]).await.unwrap();
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(n @ 1..) = read else { return };
                client.write_all(&down[..n]).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn an_append_cut_at_its_commit_is_retryable_and_stored_once() {
    let database = Database::open().await;
    database.append(&scope(1), 1).await;
    let proxy = Proxy::start().await;
    let options = audit_store_postgres::PostgresOptions::new(proxy.url(&database))
        .connections(2, 2, 1)
        .clock(database.clock.clone());
    let store = PostgresStore::connect(options).await.unwrap();
    for (cut, was_stored) in [(CUT_BEFORE, false), (CUT_AFTER, true)] {
        let size = store.head(&scope(1)).await.unwrap().size();
        let batch = database.batch(&scope(1), 3);
        proxy.next.store(cut, Ordering::SeqCst);
        let error = store
            .append(std::slice::from_ref(&batch))
            .await
            .unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
        assert_eq!(proxy.next.load(Ordering::SeqCst), PASS);
        let receipts = store.append(&[batch]).await.unwrap().remove(0).unwrap();
        let seqs: Vec<u64> = receipts.iter().map(|receipt| receipt.seq).collect();
        assert_eq!(seqs, [size, size + 1, size + 2]);
        assert!(
            receipts
                .iter()
                .all(|receipt| receipt.duplicate == was_stored)
        );
        assert_eq!(store.head(&scope(1)).await.unwrap().size(), size + 3);
    }
}

#[tokio::test]
async fn cuts_are_hidden_by_retries_and_lose_and_double_nothing() {
    let database = Database::open().await;
    let proxy = Proxy::start().await;
    let options = audit_store_postgres::PostgresOptions::new(proxy.url(&database))
        .connections(4, 4, 1)
        .clock(database.clock.clone());
    let store = Arc::new(PostgresStore::connect(options).await.unwrap());
    let log = Arc::new(GroupCommit::new(Arc::new(Retry::new(store.clone()))));
    let mut writers = Vec::new();
    for n in 0..4_u128 {
        let (log, proxy) = (log.clone(), proxy.clone());
        let batches: Vec<_> = (0..25)
            .map(|_| database.batch(&scope(n % 2 + 1), 4))
            .collect();
        writers.push(tokio::spawn(async move {
            for (i, batch) in batches.into_iter().enumerate() {
                if i % 5 == 4 {
                    proxy.next.store(1 + (i / 5 % 2) as u8, Ordering::SeqCst);
                }
                log.append(&[batch]).await.unwrap().remove(0).unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    proxy.next.store(PASS, Ordering::SeqCst);
    for n in 1..=2 {
        assert_eq!(database.store.head(&scope(n)).await.unwrap().size(), 200);
    }
}
