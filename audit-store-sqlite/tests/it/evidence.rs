//! What somebody with the file changes, the evidence shows.

use std::sync::Arc;
use std::time::Duration;

use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::note::SigningKey;
use audit_core::tlog::verify::{Options, Report, verify_lines};
use audit_core::{AuditLog, Event, EvidenceRequest, Recorder as _, Signer, TenantId, TenantScope};
use audit_store_sqlite::{SqliteOptions, SqliteStore, rusqlite};
use futures_util::TryStreamExt as _;
use uuid::Uuid;

fn open(path: &std::path::Path) -> AuditLog {
    let store = Arc::new(SqliteStore::open(path, SqliteOptions::new()).unwrap());
    let key = SigningKey::from_seed("test", &[7; 32]).unwrap();
    let signer = Signer::new(Origin::parse("audit.example/log").unwrap(), key);
    AuditLog::builder(store.clone())
        .signer(signer, store)
        .build()
}

fn verify(text: &str) -> Report {
    verify_lines(text.lines(), Options::default())
}

async fn export(log: &AuditLog, tenant: TenantId) -> String {
    let reader = log.tenant(TenantScope::trusted(tenant, "test"));
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match reader.evidence(EvidenceRequest::new()).await {
                Ok(lines) => return lines.try_collect().await.unwrap(),
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap()
}

/// The rows take their leaf hashes with them: that something is wrong is found, and not where.
const SWAP: &str = "UPDATE entries SET seq = -seq WHERE seq IN (300, 301);
    UPDATE entries SET seq = 301 WHERE seq = -300;
    UPDATE entries SET seq = 300 WHERE seq = -301";

/// The export is made all the same, and the report names where.
#[tokio::test]
async fn a_changed_or_removed_row_is_found_where_it_stood() {
    let changes = [
        "UPDATE entries SET user_id = 'eve' WHERE seq = 300",
        "UPDATE entries SET after_state = '[301]' WHERE seq = 300",
        "UPDATE entries SET created_at = created_at - 1 WHERE seq = 300",
        "UPDATE entries SET outcome = 'denied' WHERE seq = 300",
        "DELETE FROM entries WHERE seq = 300",
        SWAP,
    ];
    for change in changes {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.db");
        let tenant = TenantId::new(Uuid::from_u128(1));
        let log = open(&path);
        let workers = log.start();
        let events = (0..600).map(|n| {
            Event::update("invoice", format!("inv-{n}"))
                .user("ann")
                .after(&[n])
        });
        log.recorder(tenant)
            .record_all(events.collect())
            .await
            .unwrap();
        let before = verify(&export(&log, tenant).await);
        assert!(before.is_verified(), "{:#?}", before.findings);
        assert_eq!(before.size, 600);

        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.execute_batch(change).unwrap();
        drop(conn);
        let report = verify(&export(&log, tenant).await);
        assert!(!report.is_verified(), "{change}");
        let named = report.findings.iter().any(|finding| {
            finding
                .positions
                .is_some_and(|(from, to)| (256..=300).contains(&from) && (300..512).contains(&to))
        });
        assert!(named || change == SWAP, "{change}: {:#?}", report.findings);
        workers.shutdown(Duration::from_secs(5)).await;
    }
}
