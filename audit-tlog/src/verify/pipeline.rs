//! Verification on several threads: lines are checked side by side and judged in their order.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use memchr::memchr_iter;

use super::{Checked, Options, Report, Verifier};

/// How many blocks wait before and after each worker.
const WAITING: usize = 2;

/// What the blocks and the checked lines in memory may take together, in bytes; one block may take
/// more.
const MAX_IN_FLIGHT: usize = 64 << 20;

/// How much of [`MAX_IN_FLIGHT`] is taken; `None` when the calling thread takes no more blocks.
struct InFlight {
    taken: Mutex<Option<usize>>,
    freed: Condvar,
}

impl InFlight {
    const fn new() -> Self {
        Self {
            taken: Mutex::new(Some(0)),
            freed: Condvar::new(),
        }
    }

    /// Waits until there is room. Whether anybody still wants it.
    fn take(&self, cost: usize) -> bool {
        let full = |taken: &mut Option<usize>| {
            taken.is_some_and(|taken| taken > 0 && taken.saturating_add(cost) > MAX_IN_FLIGHT)
        };
        // A number is whole even where a thread panicked.
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.freed.wait_while(taken, full);
        match &mut *taken.unwrap_or_else(PoisonError::into_inner) {
            Some(taken) => {
                *taken += cost;
                true
            }
            None => false,
        }
    }

    fn change(&self, to: impl FnOnce(usize) -> Option<usize>) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.and_then(to);
        self.freed.notify_all();
    }
}

/// Lets the reader go when the calling thread ends, by a panic too.
struct Taking<'a>(&'a InFlight);

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.0.change(|_| None);
    }
}

/// What a block may take: itself, and each of its lines when it was checked.
fn cost(block: &[u8]) -> usize {
    let lines = memchr_iter(b'\n', block).count();
    block.len() + lines * size_of::<Checked>()
}

/// The lines of a block, without their breaks.
fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = memchr_iter(b'\n', block).chain([block.len()]);
    let mut from = 0;
    ends.map(move |end| &block[std::mem::replace(&mut from, end + 1)..end])
}

/// What was read until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the stream.
    pub bytes: u64,
    /// Positions of the log.
    pub positions: u64,
    /// The size of the snapshot, as far as the manifest tells.
    pub size: u64,
}

/// Verifies an evidence stream that comes in blocks of whole lines. Blocks of some 256 KiB are large
/// enough; about 5 for each worker are in memory at a time, and less where that would be more than
/// 64 MiB. The last line may lack its line break, empty lines are passed over.
///
/// `workers` threads check lines (one at least), another reads the blocks, and the calling thread
/// puts the results together and is told of the progress after each block.
///
/// # Errors
///
/// The first error that the blocks end with.
pub fn verify_blocks<E: Send>(
    blocks: impl Iterator<Item = Result<Vec<u8>, E>> + Send,
    options: Options,
    workers: usize,
    mut progress: impl FnMut(Progress),
) -> Result<Report, E> {
    let mut verifier = Verifier::new(options);
    let in_flight = &InFlight::new();
    thread::scope(|scope| {
        let mut inputs: Vec<SyncSender<(Vec<u8>, usize)>> = Vec::new();
        let mut outputs: Vec<Receiver<(u64, usize, Vec<Checked>)>> = Vec::new();
        for _ in 0..workers.max(1) {
            let (input, blocks) = sync_channel::<(Vec<u8>, usize)>(WAITING);
            let (checked, output) = sync_channel(WAITING);
            inputs.push(input);
            outputs.push(output);
            scope.spawn(move || {
                let mut buf = Vec::new();
                for (block, cost) in blocks {
                    let lines = lines(&block)
                        .filter(|line| !line.trim_ascii().is_empty())
                        .map(|line| Checked::line(line, &mut buf))
                        .collect();
                    if checked.send((block.len() as u64, cost, lines)).is_err() {
                        // The caller's thread is gone: it panicked.
                        break;
                    }
                }
            });
        }
        // Block k goes to worker k modulo their number, and is asked of it again in that order.
        let reader = scope.spawn(move || {
            for (block, input) in blocks.zip(inputs.iter().cycle()) {
                let block = block?;
                let cost = cost(&block);
                if !in_flight.take(cost) || input.send((block, cost)).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let taking = Taking(in_flight);
        let mut bytes = 0;
        for output in outputs.iter().cycle() {
            let Ok((len, cost, lines)) = output.recv() else {
                break;
            };
            for line in lines {
                verifier.push(line);
            }
            in_flight.change(|taken| Some(taken.saturating_sub(cost)));
            bytes += len;
            progress(Progress {
                bytes,
                positions: verifier.position(),
                size: verifier.size(),
            });
        }
        drop(taking);
        match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    Ok(verifier.finish())
}
