//! The audit log over HTTP: REST under `/api/v1`, streams, exports, an OpenAPI document.
//!
//! [`config::Settings`] say what to serve, [`storage::Storage`] opens what is behind it,
//! [`server::Bound`] serves it. The binary `audit-server` is a thin shell around these.

/// Appends formatted text to a `String`, which takes everything: there is no failure to handle.
macro_rules! put {
    ($out:expr, $($text:tt)*) => {{
        use std::fmt::Write as _;
        $out.write_fmt(format_args!($($text)*)).ok();
    }};
}

mod api;
mod app;
pub mod auth;
pub mod body;
pub mod config;
pub mod docs;
pub mod first_start;
mod limits;
mod metrics;
pub mod problem;
mod query;
pub mod recovery;
mod routes;
pub mod server;
pub mod signing;
mod stall;
pub mod storage;
pub mod witness;
