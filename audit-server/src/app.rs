//! What every handler shares.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use audit_core::{AuditLog, Workers};
use ipnet::IpNet;
use metrics_exporter_prometheus::PrometheusHandle;
use poem::Request;
use poem::http::HeaderMap;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::admin::Reindex;
use crate::api::export::Running;
use crate::api::health::Away;
use crate::auth::Gate;

/// What every handler shares.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) gate: Gate,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) heartbeat: Duration,
    pub(crate) send_timeout: Duration,
    /// How long a request may take to arrive.
    pub(crate) receive_timeout: Duration,
    /// Cancelled when the server stops: streams close then.
    pub(crate) stopping: CancellationToken,
    /// The rebuild of the search index.
    pub(crate) reindex: Reindex,
    /// What readiness last found away.
    pub(crate) away: Away,
    /// The exports that run.
    pub(crate) exports: Running,
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
        Some(client_address(
            peer,
            &self.trusted_proxies,
            request.headers(),
        ))
    }
}

/// The address that the nearest untrusted hop came from; the peer's where the hops don't say.
///
/// A proxy keeps one of the two headers and passes the other on as its client sent it, so that two
/// which disagree say nothing. Neither does a hop that hides its address.
fn client_address(peer: IpAddr, proxies: &[IpNet], headers: &HeaderMap) -> IpAddr {
    let trusted = |ip: IpAddr| proxies.iter().any(|net| net.contains(&ip.to_canonical()));
    if !trusted(peer) {
        return peer;
    }
    let nearest = |name: &str, read: fn(&str) -> Option<IpAddr>| {
        let values = headers.get_all(name).iter();
        let hops: Vec<Option<IpAddr>> = values
            .flat_map(|value| value.to_str().unwrap_or("unknown").split(','))
            .map(str::trim)
            .filter(|hop| !hop.is_empty())
            .map(read)
            .collect();
        let untrusted = hops.iter().rev().find(|hop| !hop.is_some_and(trusted));
        untrusted.or(hops.first()).copied()
    };
    let forwarded = nearest("forwarded", forwarded_for);
    let x_forwarded_for = nearest("x-forwarded-for", address);
    match (forwarded, x_forwarded_for) {
        (Some(hop), None) | (None, Some(hop)) => hop,
        (one, other) if one == other => one.flatten(),
        _ => None,
    }
    .unwrap_or(peer)
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

    #[test]
    fn a_client_does_not_choose_its_address() {
        let proxies = ["10.0.0.0/8".parse().unwrap()];
        let of = |peer: &str, headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            client_address(peer.parse().unwrap(), &proxies, &map).to_string()
        };
        let x = |value| ("x-forwarded-for", value);
        let f = |value| ("forwarded", value);
        assert_eq!(of("192.0.2.1", &[x("192.0.2.9")]), "192.0.2.1");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(
            of("10.0.0.1", &[x("192.0.2.8, 192.0.2.9, 10.0.0.2")]),
            "192.0.2.9"
        );
        assert_eq!(
            of("10.0.0.1", &[x("192.0.2.8"), x("192.0.2.9")]),
            "192.0.2.9"
        );
        assert_eq!(
            of("10.0.0.1", &[f("for=192.0.2.8, for=192.0.2.9")]),
            "192.0.2.9"
        );
        assert_eq!(of("10.0.0.1", &[x("10.0.0.3, 10.0.0.2")]), "10.0.0.3");
        // The other header is the client's own.
        let both = [f("for=192.0.2.8"), x("192.0.2.9")];
        assert_eq!(of("10.0.0.1", &both), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &[x("192.0.2.8, unknown")]), "10.0.0.1");
    }
}
