//! The Range field and the framing of its answer.
//!
//! The first eight bytes of the input are the size of the representation, the rest is the field.

use crate::Target;
use beltway::http::semantics::range::{Multipart, RANGES_MAX, Selection, select_value};

/// The target.
pub const TARGET: Target = Target {
    name: "range",
    run,
    corpus: CORPUS,
    tokens: &[
        b"bytes=",
        b"-",
        b",",
        b"0-",
        b"18446744073709551615",
        b", ",
        b"99999999999999999999",
    ],
};

/// Inputs to start from.
const CORPUS: &[&[u8]] = &[
    b"\x00\x00\x00\x00\x00\x00\x27\x10bytes=0-499",
    b"\x00\x00\x00\x00\x00\x00\x27\x10bytes=-500",
    b"\x00\x00\x00\x00\x00\x00\x27\x10bytes=9500-",
    b"\x00\x00\x00\x00\x00\x00\x27\x10bytes=0-0,-1",
    b"\x00\x00\x00\x00\x00\x00\x27\x10bytes= 0-999, 4500-5499, -1000",
    b"\x00\x00\x00\x00\x00\x00\x00\x64bytes=0-,0-,0-,5-4,,99999999999999999999-",
    b"\x7f\xff\xff\xff\xff\xff\xff\xffbytes=0-18446744073709551615,-18446744073709551616",
    b"\x00\x00\x00\x00\x00\x00\x00\x00bytes=0-0",
    b"\x00\x00\x00\x00\x00\x00\x00\x00bytes=-1",
];

/// Heads of parts and the end, per part, for the media type below.
const OVERHEAD_MAX: u64 = 256;

/// Whatever is asked for: ranges lie within the representation, are disjoint and few, so no more
/// than the representation and some framing is sent, and the announced length is the real one.
fn run(input: &[u8]) {
    let Some((size, value)) = input.split_first_chunk() else {
        return;
    };
    // The size of a file is at most 2^63 - 1.
    let size = u64::from_be_bytes(*size) >> 1;
    let ranges = match select_value(value, size, RANGES_MAX) {
        Selection::Whole | Selection::Unsatisfiable => return,
        Selection::Single(range) => {
            assert!(range.first <= range.last && range.last < size);
            assert!(range.length() <= size);
            return;
        }
        Selection::Multiple(ranges) => ranges,
    };
    assert!((2..=RANGES_MAX).contains(&ranges.len()));
    for (at, range) in ranges.iter().enumerate() {
        assert!(range.first <= range.last && range.last < size);
        for other in &ranges[at + 1..] {
            assert!(range.last < other.first || other.last < range.first);
        }
    }
    let multipart = Multipart::new(&ranges, size, Some("text/html; charset=utf-8"), 0);
    let mut sent = multipart.end().len() as u64;
    for (head, range) in multipart.parts() {
        assert!(head.ends_with("\r\n\r\n"));
        sent += head.len() as u64 + range.length();
    }
    assert_eq!(sent, multipart.content_length());
    assert!(sent <= size + (ranges.len() as u64 + 1) * OVERHEAD_MAX);
}
