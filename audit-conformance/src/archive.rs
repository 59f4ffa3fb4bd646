//! The contract of [`Archive`].

use std::future::Future;
use std::sync::Arc;

use audit_core::archive::MAX_LISTED;
use audit_core::{Archive, ErrorKind};

use crate::fixture::kind;

/// Opens an archive for a contract.
pub trait ArchiveHarness: Sized + Send + Sync + 'static {
    /// The archive.
    type Archive: Archive;

    /// Opens an archive of this contract's own, which is empty.
    fn open() -> impl Future<Output = Self> + Send;

    /// The archive.
    fn archive(&self) -> Arc<Self::Archive>;
}

async fn put(archive: &impl Archive, path: &str, bytes: &[u8]) {
    let stored = archive.put(path, bytes.to_vec()).await;
    stored.expect("stored");
}

/// Every byte of it, none and many.
pub async fn an_object_is_read_as_it_was_stored<H: ArchiveHarness>() {
    let harness = H::open().await;
    let archive = harness.archive();
    let many: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for (path, bytes) in [
        ("one", &b"\x00\xff\r\n"[..]),
        ("a/none", b""),
        ("a/b/many.zst", &many),
    ] {
        put(&*archive, path, bytes).await;
        let found = archive.get(path).await.expect("an answer");
        assert!(found.as_deref() == Some(bytes), "{path}");
    }
}

/// A shorter one, too.
pub async fn a_later_object_takes_the_place_of_an_earlier_one<H: ArchiveHarness>() {
    let harness = H::open().await;
    let archive = harness.archive();
    for bytes in [&b"the first"[..], b"2nd", b""] {
        put(&*archive, "a/b", bytes).await;
        let found = archive.get("a/b").await.expect("an answer");
        assert_eq!(found.as_deref(), Some(bytes));
    }
    assert_eq!(archive.list("a", "").await.expect("a list"), ["a/b"]);
}

/// Before it was stored, after it was removed, and of a folder.
pub async fn what_is_not_there_is_none_and_removed_without_an_error<H: ArchiveHarness>() {
    let harness = H::open().await;
    let archive = harness.archive();
    assert_eq!(archive.get("a/b").await.expect("an answer"), None);
    assert!(archive.list("a", "").await.expect("a list").is_empty());
    archive.remove("a/b").await.expect("nothing to remove");
    put(&*archive, "a/b", b"x").await;
    put(&*archive, "a/c", b"y").await;
    assert_eq!(archive.get("a").await.expect("an answer"), None);
    for _ in 0..2 {
        archive.remove("a/b").await.expect("removed");
        assert_eq!(archive.get("a/b").await.expect("an answer"), None);
    }
    assert_eq!(archive.list("a", "").await.expect("a list"), ["a/c"]);
}

/// By bytes, of folders within it too, and of no other folder that begins alike.
pub async fn a_list_has_what_is_below_a_folder_in_order<H: ArchiveHarness>() {
    let harness = H::open().await;
    let archive = harness.archive();
    for path in [
        "t/2/log",
        "t/10/log",
        "t/10-1/x",
        "t/10/checkpoints/7",
        "t/B",
        "t/a",
        "t2/x",
        "u",
    ] {
        put(&*archive, path, path.as_bytes()).await;
    }
    let all = [
        "t/10-1/x",
        "t/10/checkpoints/7",
        "t/10/log",
        "t/2/log",
        "t/B",
        "t/a",
    ];
    assert_eq!(archive.list("t", "").await.expect("a list"), all);
    for (n, path) in all.iter().enumerate() {
        let behind = archive.list("t", path).await.expect("a list");
        assert_eq!(behind, all[n + 1..]);
    }
    // What it begins behind need not be there.
    let behind = archive.list("t", "t/10/d").await.expect("a list");
    assert_eq!(behind, all[2..]);
    assert_eq!(archive.list("t/10", "").await.expect("a list"), all[1..3]);
}

/// Each full, up to the last.
pub async fn a_long_list_comes_in_parts<H: ArchiveHarness>() {
    let harness = H::open().await;
    let archive = harness.archive();
    let paths: Vec<String> = (0..MAX_LISTED + 2).map(|n| format!("t/{n:05}/x")).collect();
    for path in paths.iter().rev() {
        put(&*archive, path, b"x").await;
    }
    let first = archive.list("t", "").await.expect("a list");
    assert_eq!(first, paths[..MAX_LISTED]);
    let second = archive.list("t", &first[MAX_LISTED - 1]).await;
    let second = second.expect("a list");
    assert_eq!(second, paths[MAX_LISTED..]);
}

/// In every method.
pub async fn what_is_no_path_is_refused<H: ArchiveHarness>() {
    let harness = H::open().await;
    let archive = harness.archive();
    for path in [
        "", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "a b", "a\\b", "ä", "a\0",
    ] {
        let answers = [
            kind(archive.put(path, Vec::new()).await),
            kind(archive.get(path).await),
            kind(archive.list(path, "").await),
            kind(archive.remove(path).await),
        ];
        assert_eq!(answers, [Some(ErrorKind::Invalid); 4], "{path:?}");
    }
}

/// The earlier or the later one, and no mixture.
pub async fn objects_are_read_whole_while_they_are_replaced<H: ArchiveHarness>() {
    let harness = H::open().await;
    let archive = harness.archive();
    let object = |n: u8| vec![n; 100_000 + usize::from(n)];
    put(&*archive, "a", &object(0)).await;
    let writer = {
        let archive = harness.archive();
        tokio::spawn(async move {
            for n in 1..20 {
                put(&*archive, "a", &object(n)).await;
            }
        })
    };
    while !writer.is_finished() {
        let found = archive.get("a").await.expect("an answer").expect("there");
        assert!(found == object(found[0]));
    }
    writer.await.expect("written");
    assert!(archive.get("a").await.expect("an answer") == Some(object(19)));
}
