//! Timestamps: microseconds of UTC, read and written as RFC 3339 text.
//!
//! The log's times are hashed, so each instant has one spelling, that of [`Display`](fmt::Display);
//! [`Timestamp::parse`] accepts every RFC 3339 spelling that names a real instant.

use std::fmt;
use std::str::FromStr;

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
const MICROS_PER_DAY: i64 = SECONDS_PER_DAY * MICROS_PER_SECOND;

/// An instant in UTC: microseconds since 1970-01-01T00:00:00Z, up to the end of the year 9999.
///
/// Leap seconds don't exist here, as in POSIX time. `Display` and `Debug` print the log's only
/// spelling, `2026-11-24T03:00:00.123456Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Why a text is not a [`Timestamp`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimeFault {
    /// The text does not have the shape of RFC 3339's `date-time`.
    #[error("not an RFC 3339 time, such as 2026-11-24T03:00:00Z")]
    NotRfc3339,
    /// The shape is right, but the calendar or the clock has no such day, hour, minute or second.
    #[error("no such day or time of day")]
    NotATime,
    /// The offset from UTC is beyond ±23:59.
    #[error("offset beyond ±23:59")]
    BadOffset,
    /// The instant, converted to UTC, lies outside the years 1970 to 9999.
    #[error("outside the years 1970 to 9999 (UTC)")]
    OutOfRange,
}

impl Timestamp {
    /// 1970-01-01T00:00:00.000000Z.
    pub const MIN: Self = Self(0);
    /// 9999-12-31T23:59:59.999999Z.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// The instant so many microseconds after the Unix epoch; `None` outside [`MIN`](Self::MIN) to
    /// [`MAX`](Self::MAX).
    #[must_use]
    pub const fn from_micros(micros: i64) -> Option<Self> {
        if micros >= Self::MIN.0 && micros <= Self::MAX.0 {
            Some(Self(micros))
        } else {
            None
        }
    }

    /// Like [`from_micros`](Self::from_micros), but what is outside the range becomes its nearest
    /// end.
    #[must_use]
    pub const fn saturating_from_micros(micros: i64) -> Self {
        if micros < Self::MIN.0 {
            Self::MIN
        } else if micros > Self::MAX.0 {
            Self::MAX
        } else {
            Self(micros)
        }
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339 §5.6 `date-time`: `T` and `Z` in either case, `.` and any number of digits
    /// (cut, not rounded, to microseconds), offsets to ±23:59, real calendar days.
    ///
    /// A space instead of `T`, hour 24, second 60, digits other than ASCII's and white space around
    /// the text are refused. The range applies after conversion to UTC.
    ///
    /// # Errors
    ///
    /// See [`TimeFault`]; an empty text is [`TimeFault::NotRfc3339`].
    pub fn parse(text: &str) -> Result<Self, TimeFault> {
        const SHAPE: TimeFault = TimeFault::NotRfc3339;
        let bytes = text.as_bytes();
        // `2026-11-24T03:00:00Z` is the shortest.
        let Some((head, rest)) = bytes.split_at_checked(19) else {
            return Err(SHAPE);
        };
        if head[4] != b'-'
            || head[7] != b'-'
            || !matches!(head[10], b'T' | b't')
            || head[13] != b':'
            || head[16] != b':'
        {
            return Err(SHAPE);
        }
        let pair = |at: usize| two_digits(head[at], head[at + 1]).ok_or(SHAPE);
        let year = pair(0)? * 100 + pair(2)?;
        let (month, day) = (pair(5)?, pair(8)?);
        let (hour, minute, second) = (pair(11)?, pair(14)?, pair(17)?);

        let (micros, zone) = match rest.split_first() {
            Some((b'.', fraction)) => {
                let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
                if digits == 0 {
                    return Err(SHAPE);
                }
                let mut micros = 0;
                for place in 0..6 {
                    let digit = fraction[..digits].get(place).map_or(0, |b| b - b'0');
                    micros = micros * 10 + i64::from(digit);
                }
                (micros, &fraction[digits..])
            }
            _ => (0, rest),
        };
        let offset = match *zone {
            [b'Z' | b'z'] => 0,
            [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
                let hours = two_digits(h1, h2).ok_or(SHAPE)?;
                let minutes = two_digits(m1, m2).ok_or(SHAPE)?;
                if hours > 23 || minutes > 59 {
                    return Err(TimeFault::BadOffset);
                }
                let seconds = (hours * 60 + minutes) * 60;
                if sign == b'-' { -seconds } else { seconds }
            }
            _ => return Err(SHAPE),
        };

        if !(1..=12).contains(&month)
            || day < 1
            || day > days_in_month(year, month)
            || hour > 23
            || minute > 59
            || second > 59
        {
            return Err(TimeFault::NotATime);
        }
        let seconds = days_from_civil(year, month, day) * SECONDS_PER_DAY
            + (hour * 60 + minute) * 60
            + second
            - offset;
        Self::from_micros(seconds * MICROS_PER_SECOND + micros).ok_or(TimeFault::OutOfRange)
    }

    /// Appends the text that `Display` prints, always 27 bytes.
    pub fn write(self, out: &mut String) {
        let text = self.text();
        #[allow(
            clippy::expect_used,
            reason = "the text is made of ASCII digits and punctuation"
        )]
        out.push_str(std::str::from_utf8(&text).expect("ASCII"));
    }

    /// Days between the Unix epoch and this instant's day in UTC; 0 is 1970-01-01.
    #[must_use]
    pub const fn utc_day(self) -> i32 {
        // At most 2,932,896, the last day of 9999.
        (self.0 / MICROS_PER_DAY) as i32
    }

    /// The first instant of a day, counted as by [`utc_day`](Self::utc_day); `None` outside 1970
    /// to 9999.
    #[must_use]
    pub const fn day_start(day: i32) -> Option<Self> {
        match (day as i64).checked_mul(MICROS_PER_DAY) {
            Some(micros) => Self::from_micros(micros),
            None => None,
        }
    }

    fn text(self) -> [u8; 27] {
        let (year, month, day) = civil_from_days(i64::from(self.utc_day()));
        let within = self.0 % MICROS_PER_DAY;
        let (seconds, micros) = (within / MICROS_PER_SECOND, within % MICROS_PER_SECOND);
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let mut pair = |at: usize, n: i64| {
            // Each `n` is below 100.
            text[at] += (n / 10) as u8;
            text[at + 1] += (n % 10) as u8;
        };
        pair(0, year / 100);
        pair(2, year % 100);
        pair(5, month);
        pair(8, day);
        pair(11, seconds / 3600);
        pair(14, seconds / 60 % 60);
        pair(17, seconds % 60);
        pair(20, micros / 10_000);
        pair(22, micros / 100 % 100);
        pair(24, micros % 100);
        text
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        #[allow(
            clippy::expect_used,
            reason = "the text is made of ASCII digits and punctuation"
        )]
        f.pad(std::str::from_utf8(&text).expect("ASCII"))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = TimeFault;

    fn from_str(text: &str) -> Result<Self, TimeFault> {
        Self::parse(text)
    }
}

fn two_digits(tens: u8, ones: u8) -> Option<i64> {
    (tens.is_ascii_digit() && ones.is_ascii_digit())
        .then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
}

const fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a day of the proleptic Gregorian calendar. Years are counted from March,
/// so that the leap day is a year's last, in eras of 400 years, which all have 146,097 days.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`]: year, month and day.
const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_conversions_are_inverse_over_the_whole_range() {
        let mut expected = (1970, 1, 1);
        for day in 0..=Timestamp::MAX.utc_day() {
            let civil = civil_from_days(i64::from(day));
            assert_eq!(civil, expected);
            assert_eq!(days_from_civil(civil.0, civil.1, civil.2), i64::from(day));
            let (year, month, date) = expected;
            expected = if date < days_in_month(year, month) {
                (year, month, date + 1)
            } else if month < 12 {
                (year, month + 1, 1)
            } else {
                (year + 1, 1, 1)
            };
        }
        assert_eq!(expected, (10_000, 1, 1));
    }
}
