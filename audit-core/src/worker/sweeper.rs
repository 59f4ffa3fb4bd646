//! Removes what is pruned, step by step.

use std::time::Duration;

use tokio::time::Instant;

use super::{POLL, Worker, pause_after};

/// How often the sweeper looks when nothing woke it.
const SWEEP_POLL: Duration = Duration::from_secs(5);

/// A step rests for as long as it took, and no longer than this, since it may have waited for others.
const LONGEST_REST: Duration = Duration::from_millis(50);

pub(super) async fn run(mut worker: Worker) {
    let mut failures = 0;
    loop {
        worker.bell.borrow_and_update();
        let began = Instant::now();
        match worker.log.store.sweep().await {
            Ok(true) => {
                failures = 0;
                worker.worked();
                // The engine is for others, too.
                if !worker.pause(began.elapsed().min(LONGEST_REST)).await {
                    return;
                }
            }
            Ok(false) => {
                failures = 0;
                worker.worked();
                if !worker.pause(POLL).await || !worker.rest(SWEEP_POLL).await {
                    return;
                }
            }
            Err(error) => {
                worker.failed(&error);
                failures += 1;
                if !worker.pause(pause_after(failures)).await {
                    return;
                }
            }
        }
    }
}
