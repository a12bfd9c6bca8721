//! HTTP dates.
//!
//! The first eight bytes of the input are the current time, the rest is the field.

use crate::Target;
use beltway::http::semantics::date::{common_log, imf_fixdate, parse, rfc3339};

/// The target.
pub const TARGET: Target = Target {
    name: "date",
    run,
    corpus: CORPUS,
    tokens: &[
        b" GMT",
        b"Sun, ",
        b"Sunday, ",
        b"Feb",
        b"29",
        b"1994",
        b":",
        b"-",
    ],
};

/// Inputs to start from.
const CORPUS: &[&[u8]] = &[
    b"\x00\x00\x00\x00\x69\x55\xb9\x00Sun, 06 Nov 1994 08:49:37 GMT",
    b"\x00\x00\x00\x00\x69\x55\xb9\x00Sunday, 06-Nov-94 08:49:37 GMT",
    b"\x00\x00\x00\x00\x69\x55\xb9\x00Sun Nov  6 08:49:37 1994",
    b"\x00\x00\x00\x00\x69\x55\xb9\x00Sat, 31 Dec 2016 23:59:60 GMT",
    b"\x00\x00\x00\x00\x69\x55\xb9\x00Tue, 29 Feb 0000 00:00:00 GMT",
    b"\x7f\xff\xff\xff\xff\xff\xff\xffWednesday, 31-Dec-99 23:59:59 GMT",
    b"\x80\x00\x00\x00\x00\x00\x00\x00Wednesday, 31-Dec-99 23:59:59 GMT",
];

/// What is read as a date can be written and read again as the same second, and the form that is
/// generated is read back byte for byte; every time can be written.
fn run(input: &[u8]) {
    let Some((now, value)) = input.split_first_chunk() else {
        return;
    };
    let now = i64::from_be_bytes(*now);
    for written in [&imf_fixdate(now)[..], &common_log(now), &rfc3339(now)] {
        assert!(written.iter().all(|byte| matches!(byte, b' '..=b'~')));
    }
    let Some(unix_s) = parse(value, now) else {
        return;
    };
    let written = imf_fixdate(unix_s);
    let again = parse(&written, now);
    // A leap second at the very end of the year 9999 is the only one that can't be written.
    assert!(again == Some(unix_s) || again == Some(unix_s - 1));
    assert_eq!(imf_fixdate(again.unwrap_or(0)), written);
}
