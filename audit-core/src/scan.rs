//! Scans of a snapshot that lives elsewhere, on a thread or a connection of its own, and is asked
//! for one piece after the other.

use std::future::Future;
use std::ops::Range;

use futures_util::stream::{self, Stream, StreamExt as _, TryStreamExt as _};

use crate::entry::StoredEntry;
use crate::error::{Error, ErrorKind, Result};

/// A piece of a scan.
#[derive(Debug)]
pub struct Piece<E> {
    /// What was found, oldest first. May be read, or compared, only when it is taken: the next piece is
    /// asked for before that.
    pub entries: E,
    /// The positions that are still to be looked at.
    pub rest: Range<u64>,
}

/// The entries at `range`, oldest first. `ask` asks for a piece at once and returns its answer to
/// wait for: one piece is worked through while the next is made. Nothing is asked of an empty range.
///
/// # Errors
/// That of the first question. A later error, one of an answer, or one of an entry is the stream's last
/// item.
pub fn pieces<A, E>(
    range: Range<u64>,
    mut ask: impl FnMut(Range<u64>) -> Result<A> + Send + 'static,
) -> Result<impl Stream<Item = Result<StoredEntry>> + Send>
where
    A: Future<Output = Result<Piece<E>>> + Send + 'static,
    E: IntoIterator<Item = Result<StoredEntry>> + Send,
    E::IntoIter: Send,
{
    let mut next = move |range: Range<u64>| match range.is_empty() {
        true => Ok(None),
        false => ask(range).map(Some),
    };
    let first = next(range)?;
    let pieces = stream::try_unfold((first, next), async |(answer, mut next)| {
        let Some(answer) = answer else {
            return Ok(None);
        };
        let piece: Piece<E> = answer.await?;
        let answer = next(piece.rest)?;
        Ok(Some((stream::iter(piece.entries), (answer, next))))
    });
    // Ends with an entry that can't be read: nothing more is asked for.
    let entries = Box::pin(pieces.try_flatten());
    Ok(stream::unfold(Some(entries), async |entries| {
        let mut entries = entries?;
        let entry = entries.next().await?;
        let rest = entry.is_ok().then_some(entries);
        Some((entry, rest))
    }))
}

/// The retryable error of a snapshot that is too old.
pub fn expired() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the snapshot has reached its maximum age: go on from the last position with a new one",
    )
}

/// The retryable error of a snapshot from which too many scans are served.
pub fn crowded() -> Error {
    Error::new(ErrorKind::Unavailable, "too many scans of one snapshot")
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::entry::{Entry, Opening};
    use crate::event::{ActionType, Fields};
    use crate::id::{EventId, TenantId};

    fn entry(seq: u64) -> StoredEntry {
        let fields = Fields::new(ActionType::View);
        let id = EventId::new(uuid::Uuid::from_u128(seq.into()));
        let at = audit_tlog::Timestamp::MIN;
        StoredEntry {
            entry: Entry::new(TenantId::new(uuid::Uuid::nil()), id, seq, at, fields),
            opening: Opening::Seed(audit_tlog::leaf::Seed::new([0; 32])),
        }
    }

    /// What a scan of `0..9` in pieces of three gives, where one of these positions can't be read, and how
    /// many pieces were asked for.
    async fn scan(unreadable: Option<u64>) -> (Vec<Option<u64>>, usize) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let found = pieces(0..9, move |range: Range<u64>| {
            count.fetch_add(1, Ordering::Relaxed);
            let entries: Vec<_> = (range.start..range.start + 3)
                .map(|seq| match unreadable == Some(seq) {
                    true => Err(expired()),
                    false => Ok(entry(seq)),
                })
                .collect();
            let rest = range.start + 3..range.end;
            Ok(ready(Ok(Piece { entries, rest })))
        });
        let entries = found.unwrap();
        let entries = entries
            .map(|entry| entry.ok().map(|stored| stored.entry.seq))
            .collect()
            .await;
        (entries, asked.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn an_entry_that_cant_be_read_is_the_last_item_and_nothing_more_is_read() {
        let all: Vec<Option<u64>> = (0..9).map(Some).collect();
        assert_eq!(scan(None).await, (all.clone(), 3));
        for unreadable in 0..9 {
            let mut expected = all[..unreadable as usize].to_vec();
            expected.push(None);
            // Its piece and the next, which is fetched meanwhile.
            let asked = (unreadable as usize / 3 + 2).min(3);
            assert_eq!(scan(Some(unreadable)).await, (expected, asked));
        }
    }

    #[tokio::test]
    async fn an_answer_that_fails_is_the_last_item() {
        let found = pieces(0..9, |range: Range<u64>| {
            let piece = match range.start {
                0 => Ok(Piece {
                    entries: vec![Ok(entry(0))],
                    rest: 3..9,
                }),
                _ => Err(expired()),
            };
            Ok(ready(piece))
        });
        let entries: Vec<_> = found.unwrap().collect().await;
        assert_eq!(entries.len(), 2);
        assert!(entries[0].is_ok() && entries[1].is_err());
    }
}
