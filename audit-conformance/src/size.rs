//! How much of a thing a test does.

/// Whether the full sizes were asked for, with `AUDIT_TEST_FULL=1`: any other value asks for nothing.
pub fn is_full() -> bool {
    std::env::var_os("AUDIT_TEST_FULL").is_some_and(|value| value == "1")
}

/// The full size where that was [asked for](is_full), else a tenth of it, rounded up.
pub fn sized(full: usize) -> usize {
    match is_full() {
        true => full,
        false => full.div_ceil(10),
    }
}
