//! The guards: in memory, and in a folder.

use std::path::Path;
use std::sync::Arc;

use audit_conformance::GuardHarness;
use audit_core::{ErrorKind, MemoryGuard, Result, TenantId, Timestamp};
use audit_core::{FolderGuard, Guard as _, GuardAdvance, GuardedErasure, GuardedHead, Hash};
use tempfile::TempDir;
use uuid::Uuid;

struct Memory(Arc<MemoryGuard>);

impl GuardHarness for Memory {
    type Guard = MemoryGuard;

    async fn open() -> Self {
        Self(Arc::default())
    }

    fn guard(&self) -> &MemoryGuard {
        &self.0
    }

    async fn reopen(self) -> Self {
        self
    }
}

mod memory {
    audit_conformance::guard!(super::Memory);
}

struct Folder(TempDir, FolderGuard);

impl Folder {
    fn of(folder: TempDir) -> Self {
        let guard = FolderGuard::open(folder.path().join("a/guard")).unwrap();
        Self(folder, guard)
    }

    fn path(&self, ending: &str) -> std::path::PathBuf {
        self.0.path().join(format!("a/guard/{}.{ending}", tenant()))
    }
}

impl GuardHarness for Folder {
    type Guard = FolderGuard;

    async fn open() -> Self {
        Self::of(TempDir::new().unwrap())
    }

    fn guard(&self) -> &FolderGuard {
        &self.1
    }

    async fn reopen(self) -> Self {
        Self::of(self.0)
    }
}

mod folder {
    audit_conformance::guard!(super::Folder);
}

fn tenant() -> TenantId {
    TenantId::new(Uuid::from_u128(9))
}

fn advance(known: Option<u64>, to: u64, erased: u64) -> GuardAdvance {
    let head = |size: u64| GuardedHead {
        epoch: 1,
        size,
        root: Hash([size as u8; 32]),
    };
    GuardAdvance {
        known: known.map(head),
        to: head(to),
        erasures: vec![GuardedErasure {
            seq: erased,
            accepted_at: Timestamp::MIN,
            ctl: "{}".into(),
        }],
    }
}

async fn told() -> Folder {
    let folder = Folder::open().await;
    for step in [advance(None, 5, 3), advance(Some(5), 9, 7)] {
        folder.1.advance(tenant(), &step).await.unwrap();
    }
    folder
}

/// The erasures were written and the head was not.
#[tokio::test]
async fn what_was_being_written_when_a_process_ended_does_not_count() {
    let folder = told().await;
    let whole = std::fs::read(folder.path("erasures")).unwrap();
    for torn in [&b"{\"seq\":8,"[..], &whole] {
        let mut longer = whole.clone();
        longer.extend_from_slice(torn);
        std::fs::write(folder.path("erasures"), longer).unwrap();
        std::fs::write(folder.path("new"), "{\"v\":1,\"epo").unwrap();
        let found = folder.1.erasures(tenant(), 0, 10).await.unwrap();
        assert_eq!(found.len(), 2);
    }
    let step = advance(Some(9), 12, 11);
    folder.1.advance(tenant(), &step).await.unwrap();
    let found = folder.1.erasures(tenant(), 0, 10).await.unwrap();
    let found: Vec<u64> = found.iter().map(|erasure| erasure.seq).collect();
    assert_eq!(found, [3, 7, 11]);
    assert_eq!(folder.1.tenants(None, 10).await.unwrap(), [tenant()]);
}

/// What it can't read it doesn't take for nothing, and doesn't write over.
#[tokio::test]
async fn a_damaged_file_of_a_guard_is_an_error_that_names_it() {
    for ending in ["head", "erasures"] {
        let folder = told().await;
        let path = folder.path(ending);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let read = match ending {
            "head" => folder.1.head(tenant()).await.map(drop),
            _ => folder.1.erasures(tenant(), 0, 10).await.map(drop),
        };
        for outcome in [
            read,
            folder.1.advance(tenant(), &advance(Some(9), 12, 11)).await,
        ] {
            is_named(outcome, &path);
        }
    }
    let folder = told().await;
    let step = advance(None, 5, 3);
    let (guard, path) = (
        &folder.1,
        folder.path("head").with_file_name("deployment.head"),
    );
    guard.advance_deployment(None, step.to).await.unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    is_named(guard.deployment_head().await, &path);
    is_named(
        guard.advance_deployment(Some(step.to), step.to).await,
        &path,
    );
}

fn is_named<T>(outcome: Result<T>, path: &Path) {
    let error = outcome.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains(path.to_str().unwrap()), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_guard_is_the_owners_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = told().await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    for ending in ["head", "erasures"] {
        assert_eq!(mode(&folder.path(ending)) & 0o777, 0o600, "{ending}");
    }
    assert_eq!(mode(folder.path("head").parent().unwrap()) & 0o777, 0o700);
}
