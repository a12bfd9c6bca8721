//! Durations and sizes, as people write them: `10s`, `1m30s`, `500ms`; `8KiB`, `1MB`, `2GiB`.
//!
//! A number without a unit is refused rather than guessed: whether `30` is seconds or milliseconds
//! is exactly the mistake that a unit prevents.

use std::time::Duration;

/// Why a text is not a duration or a size, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError {
    /// What is wrong.
    pub message: String,
    /// What to write.
    pub help: String,
}

impl UnitError {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: help.into(),
        }
    }
}

/// Longest duration that a setting may have. Anything longer is a slip of the keyboard, and the
/// bound keeps every deadline far from the end of the clock.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Milliseconds of each unit, largest first: parts have to come in this order.
const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Bytes of each unit. `KiB` counts by 1024, `kB` by 1000 (IEC 80000-13).
const SIZE_UNITS: [(&str, u64); 10] = [
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// A duration: parts of whole numbers with units `d h m s ms`, largest first, such as `1m30s`. `0`
/// needs no unit. At most [`DURATION_MAX`].
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    const EXAMPLES: &str = r#"write a number and a unit, such as "10s", "1m30s" or "500ms""#;
    let mut rest = text.trim();
    match rest {
        "" => return Err(UnitError::new("the duration is empty", EXAMPLES)),
        "0" => return Ok(Duration::ZERO),
        _ => {}
    }
    let too_long = || UnitError::new("the duration is too long", r#"at most "365d" is possible"#);
    let mut total_ms: u64 = 0;
    let mut units_left: &[(&str, u64)] = &DURATION_UNITS;
    while !rest.is_empty() {
        let (number, unit, tail) = part(rest, "duration", EXAMPLES)?;
        if unit.is_empty() {
            return Err(no_unit(number, "s", "ms"));
        }
        let position = units_left.iter().position(|(name, _)| *name == unit);
        let Some(position) = position else {
            return Err(if DURATION_UNITS.iter().any(|(name, _)| *name == unit) {
                UnitError::new(
                    format!("the unit `{unit}` comes twice or after a smaller one"),
                    r#"write the largest unit first and each once, such as "1h30m""#,
                )
            } else {
                UnitError::new(
                    format!("`{unit}` is not a unit of time"),
                    "the units are d, h, m, s and ms",
                )
            });
        };
        let (_, unit_ms) = units_left[position];
        units_left = &units_left[position + 1..];
        total_ms = parse_number(number)
            .and_then(|n| n.checked_mul(unit_ms))
            .and_then(|ms| total_ms.checked_add(ms))
            .ok_or_else(too_long)?;
        rest = tail;
    }
    let total = Duration::from_millis(total_ms);
    if total > DURATION_MAX {
        return Err(too_long());
    }
    Ok(total)
}

/// A size in bytes: a whole number and a unit, `B kB MB GB TB` by 1000 or `KiB MiB GiB TiB` by 1024.
/// `0` needs no unit.
pub fn size(text: &str) -> Result<u64, UnitError> {
    const EXAMPLES: &str = r#"write a number and a unit, such as "8KiB", "2GiB" or "1MB""#;
    let text = text.trim();
    match text {
        "" => return Err(UnitError::new("the size is empty", EXAMPLES)),
        "0" => return Ok(0),
        _ => {}
    }
    let (number, unit, tail) = part(text, "size", EXAMPLES)?;
    if unit.is_empty() {
        return Err(no_unit(number, "B", "KiB"));
    }
    if !tail.is_empty() {
        return Err(UnitError::new(
            "a size has one number and one unit",
            EXAMPLES,
        ));
    }
    let Some((_, bytes)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
        let meant = SIZE_UNITS
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| name.len() > 1)
            .find(|name| {
                name.eq_ignore_ascii_case(unit) || name[..1].eq_ignore_ascii_case(&unit[..1])
            });
        return Err(UnitError::new(
            format!("`{unit}` is not a unit of size"),
            match meant {
                Some(name) => {
                    let letter = name[..1].to_ascii_uppercase();
                    format!(r#"write "{number}{letter}iB" (by 1024) or "{number}{name}" (by 1000)"#)
                }
                None => "the units are B, kB, MB, GB, TB and KiB, MiB, GiB, TiB".into(),
            },
        ));
    };
    parse_number(number)
        .and_then(|n| n.checked_mul(*bytes))
        .ok_or_else(|| UnitError::new("the size is too large", "sizes end below 16 EiB"))
}

/// A size as [`size`] reads it, in the largest unit of 1024 that needs no fraction.
pub fn write_size(bytes: u64) -> String {
    [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .find(|(_, bits)| bytes > 0 && bytes.trailing_zeros() >= *bits)
        .map_or_else(
            || format!("{bytes}B"),
            |(unit, bits)| format!("{}{unit}", bytes >> bits),
        )
}

/// Splits the first number and its unit off: `1m30s` is `1`, `m` and `30s`.
fn part<'t>(
    text: &'t str,
    what: &str,
    examples: &str,
) -> Result<(&'t str, &'t str, &'t str), UnitError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    if number.is_empty() {
        return Err(UnitError::new(
            format!("`{text}` is not a {what}"),
            examples,
        ));
    }
    if rest.starts_with(['.', ',']) {
        return Err(UnitError::new(
            format!("a {what} is made of whole numbers"),
            "use a smaller unit instead of a fraction, such as \"1500ms\" or \"1536MiB\"",
        ));
    }
    let rest = rest.trim_start();
    let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (unit, tail) = rest.split_at(letters);
    let tail = tail.trim_start();
    if unit.is_empty() && !tail.is_empty() {
        return Err(UnitError::new(
            format!("`{text}` is not a {what}"),
            examples,
        ));
    }
    Ok((number, unit, tail))
}

fn no_unit(number: &str, unit: &str, other: &str) -> UnitError {
    UnitError::new(
        format!("`{number}` has no unit"),
        format!(r#"write "{number}{unit}" or "{number}{other}""#),
    )
}

fn parse_number(digits: &str) -> Option<u64> {
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_that_people_write() {
        for (text, ms) in [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("2h", 7_200_000),
            ("1d 12h", 129_600_000),
            ("0", 0),
            ("0s", 0),
            ("365d", 31_536_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn sizes_that_people_write() {
        for (text, bytes) in [
            ("8KiB", 8192),
            ("1MB", 1_000_000),
            ("2 GiB", 2 << 30),
            ("500B", 500),
            ("0", 0),
            ("64kB", 64_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_refused_says_what_to_write() {
        for (error, message, help) in [
            (
                duration("30").unwrap_err(),
                "`30` has no unit",
                r#"write "30s" or "30ms""#,
            ),
            (
                duration("10 sec").unwrap_err(),
                "`sec` is not a unit of time",
                "the units are d, h, m, s and ms",
            ),
            (
                duration("30s1m").unwrap_err(),
                "the unit `m` comes twice or after a smaller one",
                r#"write the largest unit first and each once, such as "1h30m""#,
            ),
            (
                duration("1000d").unwrap_err(),
                "the duration is too long",
                r#"at most "365d" is possible"#,
            ),
            (
                size("8").unwrap_err(),
                "`8` has no unit",
                r#"write "8B" or "8KiB""#,
            ),
            (
                size("8K").unwrap_err(),
                "`K` is not a unit of size",
                r#"write "8KiB" (by 1024) or "8kB" (by 1000)"#,
            ),
            (
                size("2g").unwrap_err(),
                "`g` is not a unit of size",
                r#"write "2GiB" (by 1024) or "2GB" (by 1000)"#,
            ),
            (
                size("99999999999999999999TiB").unwrap_err(),
                "the size is too large",
                "sizes end below 16 EiB",
            ),
        ] {
            assert_eq!(
                (error.message.as_str(), error.help.as_str()),
                (message, help)
            );
        }
        for text in ["", "s", "-1s", "1.5s", "1s!", "ten", "1,5h", "é"] {
            assert!(duration(text).is_err(), "{text}");
            assert!(size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,24}") {
            let _ = duration(&text);
            let _ = size(&text);
        }

        #[test]
        fn a_size_reads_as_it_was_written(bytes in any::<u64>(), bits in 0u32..64) {
            let bytes = bytes >> bits << (bits / 2);
            prop_assert_eq!(size(&write_size(bytes)), Ok(bytes));
        }

        #[test]
        fn parts_add_up(h in 0u64..1000, m in 0u64..1000, s in 0u64..1000, ms in 0u64..1000) {
            let total = ((h * 60 + m) * 60 + s) * 1000 + ms;
            prop_assert_eq!(
                duration(&format!("{h}h{m}m{s}s{ms}ms")),
                Ok(Duration::from_millis(total))
            );
        }
    }
}
