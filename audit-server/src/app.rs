//! What every handler shares.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use audit_core::{AuditLog, Workers};
use ipnet::IpNet;
use metrics_exporter_prometheus::PrometheusHandle;
use poem::Request;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Gate;

/// What every handler shares.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) gate: Gate,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) heartbeat: Duration,
    pub(crate) send_timeout: Duration,
    /// Cancelled when the server stops: streams close then.
    pub(crate) stopping: CancellationToken,
    /// The streams that are open.
    pub(crate) streams: TaskTracker,
    /// While they run.
    pub(crate) workers: Mutex<Option<Arc<Workers>>>,
    /// Whether this process should have workers.
    pub(crate) runs_workers: bool,
    pub(crate) metrics: Option<PrometheusHandle>,
}

impl App {
    pub(crate) fn log(&self) -> &AuditLog {
        self.gate.log()
    }

    /// The workers, while they run.
    pub(crate) fn workers(&self) -> Option<Arc<Workers>> {
        self.workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The client's address: the peer's, or, behind proxies that are trusted, the one that the
    /// nearest untrusted hop came from.
    pub(crate) fn address_of(&self, request: &Request) -> Option<IpAddr> {
        let peer = request.remote_addr().as_socket_addr()?.ip();
        let trusted = |ip: IpAddr| {
            self.trusted_proxies
                .iter()
                .any(|net| net.contains(&ip.to_canonical()))
        };
        if self.trusted_proxies.is_empty() || !trusted(peer) {
            return Some(peer);
        }
        let mut hops: Vec<IpAddr> = Vec::new();
        for value in request.headers().get_all("forwarded") {
            let text = value.to_str().unwrap_or_default();
            hops.extend(text.split(',').filter_map(forwarded_for));
        }
        if hops.is_empty() {
            for value in request.headers().get_all("x-forwarded-for") {
                let text = value.to_str().unwrap_or_default();
                hops.extend(text.split(',').filter_map(|hop| address(hop.trim())));
            }
        }
        let nearest = hops.iter().rev().copied().find(|hop| !trusted(*hop));
        Some(nearest.or(hops.first().copied()).unwrap_or(peer))
    }
}

/// The `for` of one element of `Forwarded` (RFC 7239 §4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("for")
            .then(|| address(value.trim().trim_matches('"')))?
    })
}

/// An address with an optional port; IPv6 in brackets where there is one (RFC 7239 §6).
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split(']').next()?.parse().ok();
    }
    text.rsplit_once(':')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_are_read_in_all_their_forms() {
        let ip = |text: &str| text.parse::<IpAddr>().ok();
        assert_eq!(address("192.0.2.1"), ip("192.0.2.1"));
        assert_eq!(address("192.0.2.1:80"), ip("192.0.2.1"));
        assert_eq!(address("[2001:db8::1]:80"), ip("2001:db8::1"));
        assert_eq!(address("2001:db8::1"), ip("2001:db8::1"));
        assert_eq!(address("unknown"), None);
        assert_eq!(
            forwarded_for("proto=https; For=\"[2001:db8::1]\""),
            ip("2001:db8::1")
        );
    }
}
