//! Scans of a snapshot that lives elsewhere, on a thread or a connection of its own, and is asked
//! for one piece after the other.

use std::future::Future;
use std::ops::Range;

use futures_util::stream::{self, Stream, StreamExt as _};

use crate::entry::StoredEntry;
use crate::error::{Error, ErrorKind, Result};

/// A piece of a scan.
#[derive(Debug)]
pub struct Piece {
    /// What was found, oldest first.
    pub entries: Vec<StoredEntry>,
    /// The positions that are still to be looked at.
    pub rest: Range<u64>,
}

/// The entries at `range`, oldest first. `ask` asks for a piece at once and returns its answer to
/// wait for: one piece is worked through while the next is made. Nothing is asked of an empty range.
///
/// # Errors
/// That of the first question. A later error, or one of an answer, is the stream's last item.
pub fn pieces<A>(
    range: Range<u64>,
    mut ask: impl FnMut(Range<u64>) -> Result<A> + Send + 'static,
) -> Result<impl Stream<Item = Result<StoredEntry>> + Send>
where
    A: Future<Output = Result<Piece>> + Send + 'static,
{
    let mut next = move |range: Range<u64>| match range.is_empty() {
        true => Ok(None),
        false => ask(range).map(Some),
    };
    let first = next(range)?;
    let pieces = stream::unfold((first, next), |(answer, mut next)| async move {
        let piece = match answer?.await {
            Ok(Piece { entries, rest }) => next(rest).map(|answer| (entries, answer)),
            Err(error) => Err(error),
        };
        Some(match piece {
            Ok((entries, answer)) => (Ok(entries), (answer, next)),
            Err(error) => (Err(error), (None, next)),
        })
    });
    Ok(pieces.flat_map(|piece| match piece {
        Ok(entries) => stream::iter(entries).map(Ok).left_stream(),
        Err(error) => stream::iter([Err(error)]).right_stream(),
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
