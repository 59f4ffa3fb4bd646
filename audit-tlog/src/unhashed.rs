//! What a benchmark measures the cost of hashing against. Only a program that was itself built with
//! `--cfg audit_unhashed` has this: no dependency and no feature can bring it in.

use std::sync::atomic::{AtomicBool, Ordering};

static ON: AtomicBool = AtomicBool::new(false);

/// Leaves hashes out from now on, in the whole process, or no longer does. What is written meanwhile
/// proves nothing.
pub fn set(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// Whether hashes are left out.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}
