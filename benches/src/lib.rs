//! What the benchmarks and the load generator share: the event that they record, about 1 KB with both
//! states and metadata, and how a machine's fsync is timed.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use audit_core::{Event, PreparedEvent, SystemClock, TenantId};

/// The user of 10 entries in each million.
pub const RARE_USER: &str = "rare-user";
/// The user of one entry in 100.
pub const FREQUENT_USER: &str = "frequent-user";
/// A word in 5 entries of each million.
pub const RARE_WORD: &str = "xylophone";
/// A word in half of all entries.
pub const COMMON_WORD: &str = "halfway";
/// The resource of one entry in 1,000.
pub const HOT_RESOURCE: &str = "inv-hot";
/// The time of entry `n`: this many microseconds since 1970, and one second later for each entry.
pub const START_MICROS: i64 = 1_700_000_000_000_000;

/// The `n`th event as a client sends it: about 1 KB, the same for the same `n`.
pub fn event(n: u64) -> String {
    let user = if n % 100_000 == 7 {
        RARE_USER.to_owned()
    } else if n % 100 == 42 {
        FREQUENT_USER.to_owned()
    } else {
        format!("user-{}", n % 5_000)
    };
    let resource = if n % 1_000 == 3 {
        HOT_RESOURCE.to_owned()
    } else {
        format!("inv-{}", n % 200_000)
    };
    let word = if n % 200_000 == 11 {
        RARE_WORD
    } else if n.is_multiple_of(2) {
        COMMON_WORD
    } else {
        "elsewhere"
    };
    let action_type = ["CREATE", "UPDATE", "VIEW", "EXECUTE"][(n % 4) as usize];
    let severity = if n.is_multiple_of(50) {
        "WARNING"
    } else {
        "INFO"
    };
    let at = START_MICROS + n as i64 * 1_000_000;
    let occurred_at = audit_core::Timestamp::from_micros(at)
        .map_or_else(String::new, |at| format!("\"occurred_at\":\"{at}\","));
    format!(
        concat!(
            "{{{occurred_at}\"action_type\":\"{action_type}\",\"action\":\"invoice.change\",",
            "\"severity\":\"{severity}\",\"user_id\":\"{user}\",\"actor_name\":\"Ann Example\",",
            "\"resource_type\":\"invoice\",\"resource_id\":\"{resource}\",",
            "\"resource_name\":\"Invoice {n}\",\"session_id\":\"session-{session}\",",
            "\"request_id\":\"request-{n}\",\"user_agent\":\"Mozilla/5.0 (X11; Linux x86_64)\",",
            "\"ip_address\":\"10.{a}.{b}.{c}\",\"reason\":\"quarterly close {word}\",",
            "\"before_state\":{{\"state\":\"draft\",\"total\":{n},\"currency\":\"EUR\",\"lines\":[",
            "{{\"sku\":\"A-{line}\",\"quantity\":3,\"price\":19.99}},{{\"sku\":\"B-7\",\"quantity\":1,\"price\":5.00}}],",
            "\"customer\":{{\"id\":\"c-{session}\",\"name\":\"Example Trading\"}}}},",
            "\"after_state\":{{\"state\":\"approved\",\"total\":{n},\"currency\":\"EUR\",\"lines\":[",
            "{{\"sku\":\"A-{line}\",\"quantity\":3,\"price\":19.99}},{{\"sku\":\"B-7\",\"quantity\":1,\"price\":5.00}}],",
            "\"customer\":{{\"id\":\"c-{session}\",\"name\":\"Example Trading\"}}}},",
            "\"metadata\":{{\"service\":\"billing\",\"version\":\"4.2.1\",\"region\":\"eu-west-1\",",
            "\"trace\":[1,2,3],\"flags\":{{\"beta\":false,\"bulk\":true}}}}}}"
        ),
        occurred_at = occurred_at,
        action_type = action_type,
        severity = severity,
        user = user,
        resource = resource,
        n = n,
        session = n % 20_000,
        a = n % 200,
        b = n / 200 % 200,
        c = n % 250,
        word = word,
        line = n % 300,
    )
}

/// A setting of the environment; the default where there is none that can be read.
pub fn setting<T: FromStr>(name: &str, default: T) -> T {
    env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// The `n`th tenant.
#[allow(clippy::expect_used)] // it is one
pub fn tenant(n: u64) -> TenantId {
    format!("00000000-0000-7000-8000-{n:012x}")
        .parse()
        .expect("a UUID")
}

/// The `n`th event, as a store takes it.
#[allow(clippy::expect_used)] // it is one
pub fn prepared(tenant: TenantId, n: u64) -> PreparedEvent {
    let event = Event::from_json(&event(n)).expect("a valid event");
    PreparedEvent::new(tenant, event, &SystemClock, &[]).expect("a valid event")
}

/// The median of values, of which there is one at least.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median time of a 4 KiB write with its `fdatasync` in `folder`.
///
/// # Errors
/// When the folder can't be written.
pub fn fsync_time(folder: &Path) -> io::Result<Duration> {
    let path = folder.join("fsync-probe");
    let mut file = File::create(&path)?;
    let mut times = Vec::with_capacity(200);
    for _ in 0..200 {
        file.write_all(&[0; 4096])?;
        let began = Instant::now();
        file.sync_data()?;
        times.push(began.elapsed());
    }
    drop(file);
    std::fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
