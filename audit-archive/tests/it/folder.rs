//! An archive in a folder.

use std::sync::Arc;

use audit_archive::ObjectArchive;
use audit_conformance::ArchiveHarness;
use audit_core::{Archive as _, ErrorKind};
use tempfile::TempDir;

fn open(folder: &TempDir) -> ObjectArchive {
    let url = format!("file://{}/made/here", folder.path().display());
    ObjectArchive::open(&url).expect("an archive")
}

struct Folder {
    archive: Arc<ObjectArchive>,
    _folder: TempDir,
}

impl ArchiveHarness for Folder {
    type Archive = ObjectArchive;

    async fn open() -> Self {
        let folder = TempDir::new().expect("a folder");
        Self {
            archive: Arc::new(open(&folder)),
            _folder: folder,
        }
    }

    fn archive(&self) -> Arc<ObjectArchive> {
        self.archive.clone()
    }
}

mod conformance {
    audit_conformance::archive!(super::Folder);
}

#[tokio::test]
async fn what_was_stored_is_a_file_that_another_process_reads() {
    let folder = TempDir::new().unwrap();
    open(&folder)
        .put("t/a.zst", b"bytes".to_vec())
        .await
        .unwrap();
    let path = folder.path().join("made/here/t/a.zst");
    assert_eq!(std::fs::read(path).unwrap(), b"bytes");
    let again = open(&folder);
    assert_eq!(again.get("t/a.zst").await.unwrap().unwrap(), b"bytes");
}

#[tokio::test]
async fn an_archive_that_is_away_is_told_and_stores_nothing() {
    let folder = TempDir::new().unwrap();
    let archive = open(&folder);
    let here = folder.path().join("made/here");
    std::fs::remove_dir_all(&here).unwrap();
    std::fs::write(&here, "a file in its place").unwrap();
    let refused = archive.put("t/a", b"bytes".to_vec()).await.unwrap_err();
    assert!(refused.is_retryable());
    std::fs::remove_file(&here).unwrap();
    std::fs::create_dir(&here).unwrap();
    assert_eq!(archive.get("t/a").await.unwrap(), None);
}

#[test]
fn what_names_no_archive_is_refused() {
    for url in [
        "",
        "/path",
        "memory:",
        "http://host/x",
        "file://host/x?y",
        "s3://user:word@b/x",
        "s3:///prefix",
        "s3://127.0.0.1:9000/bucket",
    ] {
        let refused = ObjectArchive::open(url).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{url}");
    }
    if cfg!(not(feature = "s3")) {
        let refused = ObjectArchive::open("s3://bucket/prefix").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
    }
}
