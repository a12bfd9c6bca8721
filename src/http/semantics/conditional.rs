//! Conditional requests: which condition counts, and what it leads to (RFC 9110 §13.2.2).

use super::date;
use crate::http::types::{Fields, Method};

/// What is known of the representation that would be sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Validators<'a> {
    /// The entity tag as it would be sent, with quotes, and `W/` before them if it is weak.
    pub entity_tag: Option<&'a [u8]>,
    /// Last-Modified as it would be sent, in seconds since 1970-01-01.
    pub last_modified: Option<i64>,
}

/// What a request's conditions lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The method is performed.
    Proceed {
        /// Whether a Range field may be obeyed: the method is GET, and there is no If-Range or it
        /// names just this representation.
        range_applies: bool,
    },
    /// 304: the client has it already.
    NotModified,
    /// 412.
    PreconditionFailed,
}

/// Evaluates the conditions on a representation that exists, in the order of RFC 9110 §13.2.2.
///
/// Several lines of If-Match or If-None-Match are one list. A list that is malformed counts up to
/// the fault. A date that is malformed, or given twice, is ignored (§13.1.3, §13.1.4).
pub fn evaluate(
    method: Method<'_>,
    fields: &Fields<'_>,
    validators: Validators<'_>,
    now_unix_s: i64,
) -> Outcome {
    let read = matches!(method, Method::Get | Method::Head);
    let current = validators.entity_tag;
    if let Some(matched) = any_tag(fields, "if-match", current, strong_match) {
        if !matched {
            return Outcome::PreconditionFailed;
        }
    } else if let Some(modified) = validators.last_modified
        && let Some(since) = single_date(fields, "if-unmodified-since", now_unix_s)
        && modified > since
    {
        return Outcome::PreconditionFailed;
    }
    if let Some(matched) = any_tag(fields, "if-none-match", current, weak_match) {
        if matched {
            return if read {
                Outcome::NotModified
            } else {
                Outcome::PreconditionFailed
            };
        }
    } else if read
        && let Some(modified) = validators.last_modified
        && let Some(since) = single_date(fields, "if-modified-since", now_unix_s)
        && modified <= since
    {
        return Outcome::NotModified;
    }
    Outcome::Proceed {
        range_applies: method == Method::Get && if_range(fields, validators, now_unix_s),
    }
}

/// The value of Last-Modified for a time of modification: never later than now, because a client
/// would keep such a date for a version that is still to come (RFC 9110 §8.8.2.1).
pub fn last_modified(mtime_s: i64, now_unix_s: i64) -> i64 {
    mtime_s.min(now_unix_s)
}

/// Whether If-Range is absent or names this representation (RFC 9110 §13.1.5).
fn if_range(fields: &Fields<'_>, validators: Validators<'_>, now_unix_s: i64) -> bool {
    let mut lines = fields.get_all("if-range");
    let Some(value) = lines.next() else {
        return true;
    };
    if lines.next().is_some() {
        return false;
    }
    if let Some((tag, b"")) = take_tag(value) {
        return validators
            .entity_tag
            .is_some_and(|current| strong_match(tag, current));
    }
    // A date is exact, and strong only when the second it names is over (§8.8.2.2): until then the
    // file may have changed twice in it.
    validators.last_modified.is_some_and(|modified| {
        modified < now_unix_s && date::parse(value, now_unix_s) == Some(modified)
    })
}

/// The date of a field that must stand once.
fn single_date(fields: &Fields<'_>, name: &str, now_unix_s: i64) -> Option<i64> {
    let mut lines = fields.get_all(name);
    let value = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    date::parse(value, now_unix_s)
}

/// Whether a list of entity tags has the current one; `None` if the field is absent. `*` stands for
/// any representation, and there is one.
fn any_tag(
    fields: &Fields<'_>,
    name: &str,
    current: Option<&[u8]>,
    same: impl Fn(&[u8], &[u8]) -> bool,
) -> Option<bool> {
    let mut present = false;
    for value in fields.get_all(name) {
        present = true;
        if value == b"*" {
            return Some(true);
        }
        if let Some(current) = current
            && tags(value).any(|tag| same(tag, current))
        {
            return Some(true);
        }
    }
    present.then_some(false)
}

/// The entity tags of one line, up to the end or the first fault; empty members are skipped.
fn tags(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = value;
    std::iter::from_fn(move || {
        while let [b',' | b' ' | b'\t', tail @ ..] = rest {
            rest = tail;
        }
        let (tag, tail) = take_tag(rest)?;
        let tail = tail.trim_ascii_start();
        // What follows must be another member.
        rest = match tail {
            [] | [b',', ..] => tail,
            _ => &[],
        };
        Some(tag)
    })
}

/// Splits an entity tag off the start: `[W/]"etagc…"` (RFC 9110 §8.8.3).
fn take_tag(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let weak = if value.starts_with(b"W/") { 2 } else { 0 };
    let inner = value[weak..].strip_prefix(b"\"")?;
    let length = inner
        .iter()
        .position(|byte| !matches!(byte, 0x21 | 0x23..=0x7e | 0x80..=0xff))?;
    (inner[length] == b'"').then(|| value.split_at(weak + length + 2))
}

/// RFC 9110 §8.8.3.2: equal, and neither is weak.
fn strong_match(a: &[u8], b: &[u8]) -> bool {
    a == b && !a.starts_with(b"W/")
}

/// RFC 9110 §8.8.3.2: equal whether weak or not.
fn weak_match(a: &[u8], b: &[u8]) -> bool {
    a.strip_prefix(b"W/").unwrap_or(a) == b.strip_prefix(b"W/").unwrap_or(b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const EXACT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
    const MODIFIED: i64 = 784_111_777;
    const NOW: i64 = 1_767_225_600;
    const CURRENT: Validators<'_> = Validators {
        entity_tag: Some(b"\"a\""),
        last_modified: Some(MODIFIED),
    };

    fn outcome(method: &str, lines: &[(&'static str, &'static str)], now: i64) -> &'static str {
        let mut fields = Fields::default();
        for (name, value) in lines {
            fields.push(name, value.as_bytes());
        }
        match evaluate(Method::from_token(method), &fields, CURRENT, now) {
            Outcome::Proceed {
                range_applies: true,
            } => "range",
            Outcome::Proceed {
                range_applies: false,
            } => "whole",
            Outcome::NotModified => "304",
            Outcome::PreconditionFailed => "412",
        }
    }

    #[test]
    fn each_condition_alone() {
        for (method, name, value, expected) in [
            ("GET", "If-Match", "\"a\"", "range"),
            ("GET", "If-Match", "*", "range"),
            ("GET", "If-Match", "\"b\", \"a\"", "range"),
            ("GET", "If-Match", "\"b\"", "412"),
            ("GET", "If-Match", "W/\"a\"", "412"),
            ("GET", "If-Match", "", "412"),
            ("GET", "If-Match", "a", "412"),
            ("PUT", "If-Match", "\"b\"", "412"),
            ("GET", "If-Unmodified-Since", EXACT, "range"),
            ("GET", "If-Unmodified-Since", AFTER, "range"),
            ("GET", "If-Unmodified-Since", BEFORE, "412"),
            ("GET", "If-Unmodified-Since", "yesterday", "range"),
            ("GET", "If-None-Match", "\"a\"", "304"),
            ("HEAD", "If-None-Match", "W/\"a\"", "304"),
            ("GET", "If-None-Match", "*", "304"),
            ("GET", "If-None-Match", "\"x,y\" , ,\"a\"", "304"),
            ("GET", "If-None-Match", "\"b\"", "range"),
            ("GET", "If-None-Match", "a", "range"),
            ("GET", "If-None-Match", "\"b\" \"a\"", "range"),
            ("GET", "If-None-Match", "w/\"a\"", "range"),
            ("PUT", "If-None-Match", "*", "412"),
            ("POST", "If-None-Match", "\"b\"", "whole"),
            ("GET", "If-Modified-Since", EXACT, "304"),
            ("GET", "If-Modified-Since", AFTER, "304"),
            ("HEAD", "If-Modified-Since", EXACT, "304"),
            ("GET", "If-Modified-Since", BEFORE, "range"),
            (
                "GET",
                "If-Modified-Since",
                "Sunday, 06-Nov-94 08:49:37 GMT",
                "304",
            ),
            ("GET", "If-Modified-Since", "0", "range"),
            ("POST", "If-Modified-Since", EXACT, "whole"),
            ("HEAD", "Accept", "*/*", "whole"),
            ("GET", "If-Range", "\"a\"", "range"),
            ("GET", "If-Range", "\"b\"", "whole"),
            ("GET", "If-Range", "W/\"a\"", "whole"),
            ("GET", "If-Range", "\"a\", \"b\"", "whole"),
            ("GET", "If-Range", EXACT, "range"),
            ("GET", "If-Range", AFTER, "whole"),
            ("GET", "If-Range", BEFORE, "whole"),
            ("GET", "If-Range", "*", "whole"),
            ("GET", "If-Range", "", "whole"),
        ] {
            let found = outcome(method, &[(name, value)], NOW);
            assert_eq!(found, expected, "{method} {name}: {value}");
        }
    }

    #[test]
    fn the_order_of_precedence() {
        let cases: [(&[(&str, &str)], &str); 8] = [
            // A tag makes the date beside it count for nothing.
            (
                &[("If-Match", "\"a\""), ("If-Unmodified-Since", BEFORE)],
                "range",
            ),
            (
                &[("If-None-Match", "\"b\""), ("If-Modified-Since", EXACT)],
                "range",
            ),
            (
                &[("If-None-Match", "\"a\""), ("If-Modified-Since", BEFORE)],
                "304",
            ),
            // 412 comes before 304.
            (&[("If-None-Match", "\"a\""), ("If-Match", "\"b\"")], "412"),
            (
                &[
                    ("If-Modified-Since", EXACT),
                    ("If-Unmodified-Since", BEFORE),
                ],
                "412",
            ),
            (&[("If-Match", "\"a\""), ("If-None-Match", "\"a\"")], "304"),
            (&[("If-Range", "\"b\""), ("If-None-Match", "\"a\"")], "304"),
            (&[("If-Range", "\"b\""), ("If-Match", "\"a\"")], "whole"),
        ];
        for (lines, expected) in cases {
            assert_eq!(outcome("GET", lines, NOW), expected, "{lines:?}");
        }
    }

    #[test]
    fn lists_may_span_lines_and_dates_may_not() {
        let cases: [(&[(&str, &str)], &str); 4] = [
            (
                &[("If-None-Match", "\"b\""), ("if-none-match", "\"a\"")],
                "304",
            ),
            (&[("If-Match", "bad"), ("If-Match", "\"a\"")], "range"),
            (
                &[("If-Modified-Since", EXACT), ("If-Modified-Since", EXACT)],
                "range",
            ),
            (&[("If-Range", "\"a\""), ("If-Range", "\"a\"")], "whole"),
        ];
        for (lines, expected) in cases {
            assert_eq!(outcome("GET", lines, NOW), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_date_is_no_strong_validator_in_its_own_second() {
        assert_eq!(outcome("GET", &[("If-Range", EXACT)], MODIFIED), "whole");
        assert_eq!(
            outcome("GET", &[("If-Range", EXACT)], MODIFIED + 1),
            "range"
        );
    }

    #[test]
    fn without_validators_only_a_star_matches() {
        for (name, value, expected) in [
            ("If-Match", "\"a\"", Outcome::PreconditionFailed),
            (
                "If-Match",
                "*",
                Outcome::Proceed {
                    range_applies: true,
                },
            ),
            ("If-None-Match", "*", Outcome::NotModified),
            (
                "If-None-Match",
                "\"a\"",
                Outcome::Proceed {
                    range_applies: true,
                },
            ),
            (
                "If-Modified-Since",
                AFTER,
                Outcome::Proceed {
                    range_applies: true,
                },
            ),
            (
                "If-Unmodified-Since",
                BEFORE,
                Outcome::Proceed {
                    range_applies: true,
                },
            ),
            (
                "If-Range",
                "\"a\"",
                Outcome::Proceed {
                    range_applies: false,
                },
            ),
            (
                "If-Range",
                EXACT,
                Outcome::Proceed {
                    range_applies: false,
                },
            ),
        ] {
            let mut fields = Fields::default();
            fields.push(name, value.as_bytes());
            let found = evaluate(Method::Get, &fields, Validators::default(), NOW);
            assert_eq!(found, expected, "{name}: {value}");
        }
    }

    #[test]
    fn a_file_from_the_future_is_shown_as_modified_now() {
        assert_eq!(last_modified(NOW + 9, NOW), NOW);
        assert_eq!(last_modified(NOW - 9, NOW), NOW - 9);
    }

    proptest! {
        #[test]
        fn a_weak_tag_never_matches_strongly(value in "[W/\"a, ]{0,24}") {
            let mut fields = Fields::default();
            fields.push("if-match", value.as_bytes());
            let weak = Validators { entity_tag: Some(b"W/\"a\""), last_modified: None };
            let found = evaluate(Method::Get, &fields, weak, NOW);
            prop_assert_eq!(found, Outcome::PreconditionFailed);
        }

        #[test]
        fn a_list_finds_each_of_its_members(list in proptest::collection::vec("[a-z,]{0,4}", 1..6), pick: usize) {
            let value = list.iter().map(|t| format!("\"{t}\"")).collect::<Vec<_>>().join(" ,");
            let mut fields = Fields::default();
            fields.push("if-none-match", value.as_bytes());
            let tag = format!("\"{}\"", list[pick % list.len()]);
            let current = Validators { entity_tag: Some(tag.as_bytes()), last_modified: None };
            prop_assert_eq!(evaluate(Method::Get, &fields, current, NOW), Outcome::NotModified);
        }
    }
}
