//! Times as arguments.

use audit_core::{Clock as _, SystemClock, Timestamp};

/// Reads RFC 3339, a UTC day (`2026-11-24`, its midnight), or how long ago (`90s`, `15m`, `24h`, `7d`,
/// `2w`).
pub(crate) fn parse(text: &str) -> Result<Timestamp, String> {
    parse_at(text, SystemClock.now())
}

fn parse_at(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Some(micros) = duration(text) {
        return Ok(Timestamp::saturating_from_micros(
            now.as_micros().saturating_sub(micros),
        ));
    }
    if text.len() == 10
        && let Ok(midnight) = Timestamp::parse(&format!("{text}T00:00:00Z"))
    {
        return Ok(midnight);
    }
    Timestamp::parse(text)
        .map_err(|e| format!("{e}; 2026-11-24T14:00:00Z, 2026-11-24 and 24h (ago) are times"))
}

fn duration(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number
        .parse::<i64>()
        .ok()?
        .checked_mul(seconds)?
        .checked_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_days_and_durations_are_times() {
        let now = Timestamp::parse("2026-11-24T12:00:00Z").unwrap();
        for (text, wanted) in [
            ("2026-11-24T13:00:00+01:00", "2026-11-24T12:00:00Z"),
            ("2026-11-24", "2026-11-24T00:00:00Z"),
            ("90s", "2026-11-24T11:58:30Z"),
            ("7d", "2026-11-17T12:00:00Z"),
        ] {
            assert_eq!(
                parse_at(text, now),
                Ok(Timestamp::parse(wanted).unwrap()),
                "{text}"
            );
        }
        for text in ["", "d", "-1d", "1y", "2026-13-01", "yesterday"] {
            assert!(parse_at(text, now).is_err(), "{text}");
        }
    }
}
