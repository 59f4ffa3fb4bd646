//! Verification on several threads: lines are checked side by side and judged in their order.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::{Checked, Options, Report, Verifier};

/// How many blocks wait before and after each worker.
const WAITING: usize = 2;

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
/// enough; about 4 for each worker are in memory at a time. The last line may lack its line break,
/// empty lines are passed over.
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
    thread::scope(|scope| {
        let mut inputs: Vec<SyncSender<Vec<u8>>> = Vec::new();
        let mut outputs: Vec<Receiver<(u64, Vec<Checked>)>> = Vec::new();
        for _ in 0..workers.max(1) {
            let (input, blocks) = sync_channel::<Vec<u8>>(WAITING);
            let (checked, output) = sync_channel(WAITING);
            inputs.push(input);
            outputs.push(output);
            scope.spawn(move || {
                let mut buf = Vec::new();
                for block in blocks {
                    let lines = block
                        .split(|b| *b == b'\n')
                        .filter(|line| !line.trim_ascii().is_empty())
                        .map(|line| Checked::line(line, &mut buf))
                        .collect();
                    if checked.send((block.len() as u64, lines)).is_err() {
                        // The caller's thread is gone: it panicked.
                        break;
                    }
                }
            });
        }
        // Block k goes to worker k modulo their number, and is asked of it again in that order.
        let reader = scope.spawn(move || {
            for (block, input) in blocks.zip(inputs.iter().cycle()) {
                if input.send(block?).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let mut bytes = 0;
        for output in outputs.iter().cycle() {
            let Ok((len, lines)) = output.recv() else {
                break;
            };
            for line in lines {
                verifier.push(line);
            }
            bytes += len;
            progress(Progress {
                bytes,
                positions: verifier.position(),
                size: verifier.size(),
            });
        }
        match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    Ok(verifier.finish())
}
