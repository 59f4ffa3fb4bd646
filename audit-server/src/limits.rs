//! Rate limits: for each address before authentication, for each principal, for each tenant.
//!
//! They are kept in this process: several servers behind a balancer each grant the whole rate.

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use audit_core::{Principal, TenantId};
use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};
use poem::http::{HeaderMap, HeaderName, HeaderValue};

use crate::problem::{Problem, ProblemKind};

type Limiter =
    RateLimiter<u64, DefaultKeyedStateStore<u64>, DefaultClock, StateInformationMiddleware>;

/// How many keys a limiter may hold before those at rest are dropped ahead of the next sweep.
const MOST_KEYS: usize = 100_000;

/// What a request may still use of its principal's limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    remaining: u32,
    rate: u32,
    burst: u32,
}

/// The limits of a server.
#[derive(Debug)]
pub(crate) struct Limits {
    rate: u32,
    burst: u32,
    hasher: RandomState,
    address: Limiter,
    principal: Limiter,
    tenant: Limiter,
}

impl Limits {
    /// A principal may make `rate` requests a second, and twice as many at once; an address and a
    /// tenant, which may stand for several principals, four times that.
    pub(crate) fn new(rate: NonZeroU32) -> Self {
        let times = |n: u32| {
            let rate = rate.saturating_mul(NonZeroU32::MIN.saturating_add(n - 1));
            let quota = Quota::per_second(rate).allow_burst(rate.saturating_add(rate.get()));
            RateLimiter::keyed(quota).with_middleware()
        };
        Self {
            rate: rate.get(),
            burst: rate.get().saturating_mul(2),
            hasher: RandomState::new(),
            address: times(4),
            principal: times(1),
            tenant: times(4),
        }
    }

    /// Counts a request of an address.
    pub(crate) fn address(&self, ip: IpAddr) -> Result<(), Problem> {
        // Whoever has one IPv6 address has its whole /64.
        let key = match ip.to_canonical() {
            IpAddr::V4(v4) => self.key(v4),
            IpAddr::V6(v6) => self.key(&v6.octets()[..8]),
        };
        self.check(&self.address, key, "address").map(|_| ())
    }

    /// Counts a request of a principal.
    pub(crate) fn principal(&self, principal: &Principal) -> Result<Left, Problem> {
        let key = self.key((&principal.subject, principal.tenant));
        let remaining = self.check(&self.principal, key, "principal")?;
        Ok(Left {
            remaining,
            rate: self.rate,
            burst: self.burst,
        })
    }

    /// Counts a request in a tenant.
    pub(crate) fn tenant(&self, tenant: TenantId) -> Result<(), Problem> {
        self.check(&self.tenant, self.key(tenant), "tenant")
            .map(|_| ())
    }

    /// Forgets keys that are at rest.
    pub(crate) fn sweep(&self) {
        for limiter in [&self.address, &self.principal, &self.tenant] {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }

    fn key(&self, value: impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }

    fn check(&self, limiter: &Limiter, key: u64, whose: &'static str) -> Result<u32, Problem> {
        match limiter.check_key(&key) {
            Ok(state) => Ok(state.remaining_burst_capacity()),
            Err(not_until) => {
                if limiter.len() > MOST_KEYS {
                    limiter.retain_recent();
                }
                metrics::counter!("audit_http_rate_limited_total", "limit" => whose).increment(1);
                let wait = not_until.wait_time_from(DefaultClock::default().now());
                Err(Problem::new(
                    ProblemKind::RateLimited,
                    format!("the limit of this {whose} is used up"),
                )
                .retry_after(wait.max(Duration::from_secs(1))))
            }
        }
    }

    /// Adds `RateLimit-Policy`, as the IETF's draft-ietf-httpapi-ratelimit-headers names it.
    pub(crate) fn write_policy(&self, headers: &mut HeaderMap) {
        write(
            headers,
            "ratelimit-policy",
            format_args!("\"principal\";q={};w=2", self.burst),
        );
    }
}

impl Left {
    /// Adds `RateLimit`.
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        let missing = self.burst.saturating_sub(self.remaining);
        let full_in = missing.div_ceil(self.rate.max(1));
        write(
            headers,
            "ratelimit",
            format_args!("\"principal\";r={};t={full_in}", self.remaining),
        );
    }
}

fn write(headers: &mut HeaderMap, name: &'static str, value: std::fmt::Arguments<'_>) {
    let mut text = String::with_capacity(40);
    text.write_fmt(value).ok();
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_granted_and_no_more() {
        let limits = Limits::new(NonZeroU32::new(5).unwrap());
        let principal = Principal::new(
            "ann",
            TenantId::new(uuid::Uuid::from_u128(1)),
            Default::default(),
        );
        let granted = (0..100)
            .filter(|_| limits.principal(&principal).is_ok())
            .count();
        assert!((10..12).contains(&granted), "{granted}");
        let refused = limits.principal(&principal).unwrap_err();
        assert_eq!(refused.status(), 429);
        let mut other = principal;
        other.subject = "bob".into();
        assert!(limits.principal(&other).is_ok());
    }
}
