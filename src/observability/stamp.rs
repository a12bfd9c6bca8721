//! Times as text: UTC, to the second.

use std::fmt;

/// The last second that has a year of four digits: 9999-12-31T23:59:59Z.
const SECOND_MAX: u64 = 253_402_300_799;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// A second of the Gregorian calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Civil {
    /// The date and time so many seconds after 1970-01-01T00:00:00Z. Everything beyond the year
    /// 9999 is the last second of it: both formats have four digits.
    pub fn from_unix(seconds: u64) -> Self {
        let seconds = seconds.min(SECOND_MAX);
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        // Years that begin in March put the leap day last, and an era of 400 years has always
        // 146 097 days. The first era here begins at 0000-03-01, 719 468 days before 1970.
        let days = days + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: of_year - (153 * month_from_march + 2) / 5 + 1,
            hour: of_day / 3_600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// `10/Oct/2000:13:55:36 +0000`, as the Common Log Format has it.
    pub fn common_log(self) -> impl fmt::Display {
        struct CommonLog(Civil);
        impl fmt::Display for CommonLog {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Civil {
                    year,
                    month,
                    day,
                    hour,
                    minute,
                    second,
                } = self.0;
                let month = MONTHS[month as usize - 1];
                write!(
                    f,
                    "{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000"
                )
            }
        }
        CommonLog(self)
    }

    /// `2000-10-10T13:55:36Z` (RFC 3339).
    pub fn rfc3339(self) -> impl fmt::Display {
        struct Rfc3339(Civil);
        impl fmt::Display for Rfc3339 {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Civil {
                    year,
                    month,
                    day,
                    hour,
                    minute,
                    second,
                } = self.0;
                write!(
                    f,
                    "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
                )
            }
        }
        Rfc3339(self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments() {
        for (seconds, common, rfc3339) in [
            (0, "01/Jan/1970:00:00:00 +0000", "1970-01-01T00:00:00Z"),
            (
                951_782_400,
                "29/Feb/2000:00:00:00 +0000",
                "2000-02-29T00:00:00Z",
            ),
            (
                971_186_136,
                "10/Oct/2000:13:55:36 +0000",
                "2000-10-10T13:55:36Z",
            ),
            (
                1_795_168_800,
                "20/Nov/2026:10:00:00 +0000",
                "2026-11-20T10:00:00Z",
            ),
            (
                4_107_542_399,
                "28/Feb/2100:23:59:59 +0000",
                "2100-02-28T23:59:59Z",
            ),
            (
                4_107_542_400,
                "01/Mar/2100:00:00:00 +0000",
                "2100-03-01T00:00:00Z",
            ),
            (
                u64::MAX,
                "31/Dec/9999:23:59:59 +0000",
                "9999-12-31T23:59:59Z",
            ),
        ] {
            let civil = Civil::from_unix(seconds);
            assert_eq!(civil.common_log().to_string(), common);
            assert_eq!(civil.rfc3339().to_string(), rfc3339);
        }
    }

    proptest! {
        #[test]
        fn agrees_with_httpdate(seconds in 0..SECOND_MAX) {
            let Civil { year, month, day, hour, minute, second } = Civil::from_unix(seconds);
            let month = MONTHS[month as usize - 1];
            let ours = format!("{day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT");
            let theirs = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            prop_assert_eq!(&theirs[5..], ours);
        }
    }
}
