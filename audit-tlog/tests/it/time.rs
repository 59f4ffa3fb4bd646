//! Timestamps.

use audit_tlog::{TimeFault, Timestamp};
use proptest::prelude::*;

#[test]
fn parse_accepts_every_rfc_3339_spelling_and_cuts_to_microseconds() {
    for (text, printed) in [
        ("2026-11-24T03:00:00Z", "2026-11-24T03:00:00.000000Z"),
        ("2026-11-24t03:00:00z", "2026-11-24T03:00:00.000000Z"),
        ("2026-11-24T03:00:00.1Z", "2026-11-24T03:00:00.100000Z"),
        (
            "2026-11-24T03:00:00.1234569999999999999999Z",
            "2026-11-24T03:00:00.123456Z",
        ),
        (
            "2026-11-24T03:00:00.000001+00:00",
            "2026-11-24T03:00:00.000001Z",
        ),
        ("2026-11-24T03:00:00-00:00", "2026-11-24T03:00:00.000000Z"),
        ("2026-11-24T03:00:00+23:59", "2026-11-23T03:01:00.000000Z"),
        ("2026-11-24T03:00:00-23:59", "2026-11-25T02:59:00.000000Z"),
        ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000000Z"),
        ("2000-02-29T23:59:59Z", "2000-02-29T23:59:59.000000Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000Z"),
        ("1969-12-31T23:00:00-01:00", "1970-01-01T00:00:00.000000Z"),
        (
            "9999-12-31T23:59:59.9999999Z",
            "9999-12-31T23:59:59.999999Z",
        ),
    ] {
        assert_eq!(
            Timestamp::parse(text).unwrap().to_string(),
            printed,
            "{text}"
        );
    }
}

#[test]
fn parse_refuses_what_is_no_time() {
    use TimeFault::{BadOffset, NotATime, NotRfc3339, OutOfRange};
    for (text, fault) in [
        ("", NotRfc3339),
        ("2026-11-24", NotRfc3339),
        ("2026-11-24T03:00:00", NotRfc3339),
        ("2026-11-24 03:00:00Z", NotRfc3339),
        ("2026-11-24T03:00Z", NotRfc3339),
        ("2026-11-24T03:00:00.Z", NotRfc3339),
        ("2026-11-24T03:00:00,5Z", NotRfc3339),
        ("2026-11-24T03:00:00ZZ", NotRfc3339),
        (" 2026-11-24T03:00:00Z", NotRfc3339),
        ("2026-11-24T03:00:00Z ", NotRfc3339),
        ("2026-11-24T03:00:00+0100", NotRfc3339),
        ("2026-11-24T03:00:00+01", NotRfc3339),
        ("2026-11-24T03:00:00+1:00", NotRfc3339),
        ("2026-1-24T03:00:00Z", NotRfc3339),
        ("26-11-24T03:00:00Z", NotRfc3339),
        ("+2026-11-24T03:00:00Z", NotRfc3339),
        ("12026-11-24T03:00:00Z", NotRfc3339),
        ("2026-11-24T03:00:0\u{0665}Z", NotRfc3339),
        ("2026-11-24T03:00:00.\u{0665}Z", NotRfc3339),
        ("2026-11-24T03:00:00\u{2212}01:00", NotRfc3339),
        ("2026-W48-2T03:00:00Z", NotRfc3339),
        ("2026-11-24T24:00:00Z", NotATime),
        ("2026-11-24T03:60:00Z", NotATime),
        ("2026-12-31T23:59:60Z", NotATime),
        ("2026-00-24T03:00:00Z", NotATime),
        ("2026-13-24T03:00:00Z", NotATime),
        ("2026-11-00T03:00:00Z", NotATime),
        ("2026-11-31T03:00:00Z", NotATime),
        ("2026-02-29T03:00:00Z", NotATime),
        ("2100-02-29T03:00:00Z", NotATime),
        ("2026-11-24T03:00:00+24:00", BadOffset),
        ("2026-11-24T03:00:00-00:60", BadOffset),
        ("1969-12-31T23:59:59.9999999Z", OutOfRange),
        ("1970-01-01T00:00:00+00:01", OutOfRange),
        ("9999-12-31T23:59:59-00:01", OutOfRange),
        ("0000-01-01T00:00:00Z", OutOfRange),
    ] {
        assert_eq!(Timestamp::parse(text), Err(fault), "{text}");
    }
}

#[test]
fn the_range_ends_where_documented() {
    assert_eq!(Timestamp::MIN.to_string(), "1970-01-01T00:00:00.000000Z");
    assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999999Z");
    assert_eq!(Timestamp::from_micros(-1), None);
    assert_eq!(Timestamp::from_micros(Timestamp::MAX.as_micros() + 1), None);
    assert_eq!(Timestamp::saturating_from_micros(i64::MIN), Timestamp::MIN);
    assert_eq!(Timestamp::saturating_from_micros(i64::MAX), Timestamp::MAX);
    assert_eq!(Timestamp::saturating_from_micros(7).as_micros(), 7);
}

#[test]
fn days_are_utc_days() {
    let noon = Timestamp::parse("2026-11-24T23:30:00-01:00").unwrap();
    let start = Timestamp::day_start(noon.utc_day()).unwrap();
    assert_eq!(start.to_string(), "2026-11-25T00:00:00.000000Z");
    assert_eq!(Timestamp::MIN.utc_day(), 0);
    assert_eq!(Timestamp::day_start(-1), None);
    assert_eq!(Timestamp::day_start(Timestamp::MAX.utc_day() + 1), None);
    assert_eq!(Timestamp::day_start(i32::MAX), None);
}

proptest! {
    #[test]
    fn display_parses_back(micros in 0..=Timestamp::MAX.as_micros()) {
        let time = Timestamp::from_micros(micros).unwrap();
        let mut written = String::new();
        time.write(&mut written);
        prop_assert_eq!(written.len(), 27);
        prop_assert_eq!(&written, &time.to_string());
        prop_assert_eq!(&written, &format!("{time:?}"));
        prop_assert_eq!(Timestamp::parse(&written), Ok(time));
        prop_assert_eq!(written.parse(), Ok(time));
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,40}") {
        if let Ok(time) = Timestamp::parse(&text) {
            prop_assert!(time <= Timestamp::MAX);
        }
    }

    #[test]
    fn text_order_is_time_order(a in 0..=Timestamp::MAX.as_micros(), b in 0..=Timestamp::MAX.as_micros()) {
        let (a, b) = (Timestamp::from_micros(a).unwrap(), Timestamp::from_micros(b).unwrap());
        prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
    }
}
