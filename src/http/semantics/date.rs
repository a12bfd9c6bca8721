//! Dates: HTTP's three forms (RFC 9110 §5.6.7), the access log's and RFC 3339, in UTC and without
//! allocation.

/// Seconds in a day.
const DAY_S: i64 = 86_400;
/// 0000-01-01T00:00:00Z: the first second that four digits of a year can show.
const FIRST_S: i64 = -62_167_219_200;
/// 9999-12-31T23:59:59Z: the last one.
const LAST_S: i64 = 253_402_300_799;

const WEEKDAYS: [&[u8]; 7] = [
    b"Sunday",
    b"Monday",
    b"Tuesday",
    b"Wednesday",
    b"Thursday",
    b"Friday",
    b"Saturday",
];
const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

/// A moment in the proleptic Gregorian calendar, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// 0 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// Days since Sunday, 0 to 6.
    pub weekday: u8,
}

impl Civil {
    /// The calendar date of a time in seconds since 1970-01-01. Times before the year 0 or after
    /// the year 9999 become the first or last second of these years.
    pub fn from_unix(unix_s: i64) -> Self {
        let unix_s = unix_s.clamp(FIRST_S, LAST_S);
        let (days, second) = (unix_s.div_euclid(DAY_S), unix_s.rem_euclid(DAY_S));
        // Days are counted in eras of 400 years that begin on the first of March, so that the leap
        // day is the last of its year (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
        let shifted = days + 719_468;
        let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let march_month = (5 * day + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        // Every value is within the bounds of its field, so nothing is cut off.
        Self {
            year: (era * 400 + year + i64::from(month <= 2)) as u16,
            month: month as u8,
            day: (day - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
            weekday: (days + 4).rem_euclid(7) as u8,
        }
    }

    fn month_name(self) -> &'static [u8; 3] {
        MONTHS[usize::from(self.month - 1)]
    }
}

/// Seconds since 1970-01-01 of a date and a time of day, or `None` for one that does not exist.
/// A leap second (60) is the first second of the next minute.
fn to_unix(year: u16, month: u8, day: u8, [hour, minute, second]: [u8; 3]) -> Option<i64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 => 28 + u8::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (month, day) = (i64::from(month), i64::from(day));
    let year = i64::from(year) - i64::from(month <= 2);
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let march_month = (month + 9) % 12;
    let day = (153 * march_month + 2) / 5 + day - 1;
    let day = year * 365 + year / 4 - year / 100 + day;
    let days = era * 146_097 + day - 719_468;
    Some(days * DAY_S + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second))
}

/// IMF-fixdate, the only form that is generated: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn imf_fixdate(unix_s: i64) -> [u8; 29] {
    let civil = Civil::from_unix(unix_s);
    let mut out = *b"Sun, 00 Nov 0000 00:00:00 GMT";
    out[..3].copy_from_slice(&WEEKDAYS[usize::from(civil.weekday)][..3]);
    put_two(&mut out[5..7], civil.day);
    out[8..11].copy_from_slice(civil.month_name());
    put_year(&mut out[12..16], civil.year);
    put_time(&mut out[17..25], civil);
    out
}

/// The time of the Common Log Format: `10/Oct/2000:13:55:36 +0000`.
pub fn common_log(unix_s: i64) -> [u8; 26] {
    let civil = Civil::from_unix(unix_s);
    let mut out = *b"00/Oct/0000:00:00:00 +0000";
    put_two(&mut out[..2], civil.day);
    out[3..6].copy_from_slice(civil.month_name());
    put_year(&mut out[7..11], civil.year);
    put_time(&mut out[12..20], civil);
    out
}

/// RFC 3339 in UTC: `2000-10-10T13:55:36Z`.
pub fn rfc3339(unix_s: i64) -> [u8; 20] {
    let civil = Civil::from_unix(unix_s);
    let mut out = *b"0000-00-00T00:00:00Z";
    put_year(&mut out[..4], civil.year);
    put_two(&mut out[5..7], civil.month);
    put_two(&mut out[8..10], civil.day);
    put_time(&mut out[11..19], civil);
    out
}

fn put_two(out: &mut [u8], value: u8) {
    out[0] = b'0' + value / 10;
    out[1] = b'0' + value % 10;
}

fn put_year(out: &mut [u8], year: u16) {
    // At most 9999, so both halves are below 100.
    put_two(&mut out[..2], (year / 100) as u8);
    put_two(&mut out[2..], (year % 100) as u8);
}

/// Writes `HH:MM:SS`; the colons are there.
fn put_time(out: &mut [u8], civil: Civil) {
    put_two(&mut out[..2], civil.hour);
    put_two(&mut out[3..5], civil.minute);
    put_two(&mut out[6..], civil.second);
}

/// Reads an HTTP date in any of its three forms (RFC 9110 §5.6.7): seconds since 1970-01-01.
///
/// The year of the RFC 850 form has two digits: one that would lie more than 50 years after
/// `now_unix_s` is the latest year before it with these digits. The name of the weekday must be
/// one, but is not compared with the date. `None` for everything else.
pub fn parse(value: &[u8], now_unix_s: i64) -> Option<i64> {
    parse_imf_fixdate(value)
        .or_else(|| parse_rfc850(value, now_unix_s))
        .or_else(|| parse_asctime(value))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn parse_imf_fixdate(value: &[u8]) -> Option<i64> {
    let value: &[u8; 29] = value.try_into().ok()?;
    let [_, _, _, b',', b' ', ..] = value else {
        return None;
    };
    if value[7] != b' ' || value[11] != b' ' || value[16] != b' ' || &value[25..] != b" GMT" {
        return None;
    }
    if !WEEKDAYS.iter().any(|name| name[..3] == value[..3]) {
        return None;
    }
    to_unix(
        year(&value[12..16])?,
        month(&value[8..11])?,
        two(&value[5..7])?,
        time(&value[17..25])?,
    )
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn parse_rfc850(value: &[u8], now_unix_s: i64) -> Option<i64> {
    let comma = value.iter().position(|byte| *byte == b',')?;
    let (weekday, rest) = value.split_at(comma);
    let rest: &[u8; 24] = rest.try_into().ok()?;
    if !WEEKDAYS.contains(&weekday) || !rest.starts_with(b", ") || !rest.ends_with(b" GMT") {
        return None;
    }
    if rest[4] != b'-' || rest[8] != b'-' || rest[11] != b' ' {
        return None;
    }
    to_unix(
        full_year(two(&rest[9..11])?, now_unix_s),
        month(&rest[5..8])?,
        two(&rest[2..4])?,
        time(&rest[12..20])?,
    )
}

/// `Sun Nov  6 08:49:37 1994`
fn parse_asctime(value: &[u8]) -> Option<i64> {
    let value: &[u8; 24] = value.try_into().ok()?;
    if !WEEKDAYS.iter().any(|name| name[..3] == value[..3]) {
        return None;
    }
    if [3, 7, 10, 19].iter().any(|at| value[*at] != b' ') {
        return None;
    }
    let day = match &value[8..10] {
        [b' ', digit] => two(&[b'0', *digit])?,
        day => two(day)?,
    };
    to_unix(
        year(&value[20..])?,
        month(&value[4..7])?,
        day,
        time(&value[11..19])?,
    )
}

/// Puts the century before a year of two digits (RFC 9110 §5.6.7).
fn full_year(two_digits: u8, now_unix_s: i64) -> u16 {
    let latest = (Civil::from_unix(now_unix_s).year + 50).min(9999);
    let year = latest - latest % 100 + u16::from(two_digits);
    if year > latest {
        year.saturating_sub(100)
    } else {
        year
    }
}

fn two(digits: &[u8]) -> Option<u8> {
    match digits {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some((tens - b'0') * 10 + (ones - b'0')),
        _ => None,
    }
}

fn year(digits: &[u8]) -> Option<u16> {
    let (century, year) = digits.split_at_checked(2)?;
    Some(u16::from(two(century)?) * 100 + u16::from(two(year)?))
}

fn month(name: &[u8]) -> Option<u8> {
    let index = MONTHS.iter().position(|month| *month == name)?;
    Some(index as u8 + 1)
}

/// Reads `HH:MM:SS`.
fn time(text: &[u8]) -> Option<[u8; 3]> {
    match text {
        [h1, h2, b':', m1, m2, b':', s1, s2] => {
            Some([two(&[*h1, *h2])?, two(&[*m1, *m2])?, two(&[*s1, *s2])?])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-01-01T00:00:00Z.
    const NOW: i64 = 1_767_225_600;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_examples_of_the_rfcs() {
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse(date.as_bytes(), NOW), Some(784_111_777), "{date}");
        }
        assert_eq!(
            text(&imf_fixdate(784_111_777)),
            "Sun, 06 Nov 1994 08:49:37 GMT"
        );
        assert_eq!(text(&common_log(971_186_136)), "10/Oct/2000:13:55:36 +0000");
        assert_eq!(text(&rfc3339(971_186_136)), "2000-10-10T13:55:36Z");
    }

    #[test]
    fn calendar_corners() {
        for (unix_s, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (FIRST_S, "0000-01-01T00:00:00Z"),
            (LAST_S, "9999-12-31T23:59:59Z"),
            (i64::MIN, "0000-01-01T00:00:00Z"),
            (i64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(text(&rfc3339(unix_s)), expected);
        }
        for (unix_s, expected) in [
            (0, "01/Jan/1970:00:00:00 +0000"),
            (951_782_400, "29/Feb/2000:00:00:00 +0000"),
            (1_795_168_800, "20/Nov/2026:10:00:00 +0000"),
            (4_107_542_399, "28/Feb/2100:23:59:59 +0000"),
            (4_107_542_400, "01/Mar/2100:00:00:00 +0000"),
            (i64::MAX, "31/Dec/9999:23:59:59 +0000"),
        ] {
            assert_eq!(text(&common_log(unix_s)), expected);
        }
        assert_eq!(text(&rfc3339(1_795_168_800)), "2026-11-20T10:00:00Z");
    }

    #[test]
    fn a_year_of_two_digits_is_at_most_fifty_years_ahead() {
        for (date, year) in [
            ("Sunday, 06-Nov-94 08:49:37 GMT", 1994),
            ("Sunday, 06-Nov-76 08:49:37 GMT", 2076),
            ("Sunday, 06-Nov-77 08:49:37 GMT", 1977),
            ("Sunday, 06-Nov-00 08:49:37 GMT", 2000),
        ] {
            let unix_s = parse(date.as_bytes(), NOW).unwrap();
            assert_eq!(Civil::from_unix(unix_s).year, year, "{date}");
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for date in [
            "",
            "0",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 GMT ",
            "Sun, 06 nov 1994 08:49:37 GMT",
            "sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 29 Feb 1900 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov 1994 08:60:37 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Sun, 06 Nov 1994 +8:49:37 GMT",
            "Sun, 06 Nov -994 08:49:37 GMT",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sun Nov 06 08:49:37 94  ",
            "1994-11-06T08:49:37Z",
        ] {
            assert_eq!(parse(date.as_bytes(), NOW), None, "{date}");
        }
    }

    #[test]
    fn a_leap_second_is_read() {
        let leap = parse(b"Sat, 31 Dec 2016 23:59:60 GMT", NOW);
        assert_eq!(leap, parse(b"Sun, 01 Jan 2017 00:00:00 GMT", NOW));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(unix_s in FIRST_S..=LAST_S) {
            prop_assert_eq!(parse(&imf_fixdate(unix_s), NOW), Some(unix_s));
        }

        #[test]
        fn httpdate_agrees(unix_s in 0..=LAST_S) {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_s as u64);
            let written = imf_fixdate(unix_s);
            prop_assert_eq!(text(&written), httpdate::fmt_http_date(time));
        }

        #[test]
        fn no_bytes_panic(value in proptest::collection::vec(any::<u8>(), 0..40), now in any::<i64>()) {
            parse(&value, now);
        }
    }
}
