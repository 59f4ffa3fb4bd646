//! Examples, one file each beside this one: `cargo run -p examples --example quickstart`.
