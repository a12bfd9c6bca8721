//! Range requests (RFC 9110 §14): which bytes are asked for, and the framing of several parts.

use std::fmt::Write;

use smallvec::SmallVec;

use crate::http::types::Fields;

/// Ranges of one request that are obeyed unless the caller says otherwise; a request for more gets
/// the whole representation (RFC 9110 §14.2).
pub const RANGES_MAX: usize = 16;
/// Ranges with at most this many bytes between them become one: a part of its own would cost more
/// (RFC 9110 §15.3.7.2).
pub const GAP_BYTES_MAX: u64 = 80;

/// Some bytes of a representation; never empty. Invariant: `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub first: u64,
    /// Offset of the last byte, itself included; below the size of the representation.
    pub last: u64,
}

impl ByteRange {
    /// How many bytes there are, at least 1. A range ends below the size of a file, which is at
    /// most 2^63, so this does not overflow.
    pub const fn length(self) -> u64 {
        self.last - self.first + 1
    }

    /// The value of Content-Range: `bytes 0-499/1234`.
    pub fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.first, self.last)
    }
}

/// The ranges of a multipart response, in the order in which they were asked for.
pub type Ranges = SmallVec<[ByteRange; 4]>;

/// What the Range field leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// 200 with everything: no field, or one that is ignored.
    Whole,
    /// 206 with one range.
    Single(ByteRange),
    /// 206 with `multipart/byteranges`: at least two ranges, disjoint and within the size.
    Multiple(Ranges),
    /// 416 with [`unsatisfied_content_range`].
    Unsatisfiable,
}

/// The value of Content-Range in a 416: `bytes */1234`.
pub fn unsatisfied_content_range(size: u64) -> String {
    format!("bytes */{size}")
}

/// Selects from a representation of `size` bytes.
///
/// The caller has checked the method and the conditions. Ignored are: an unknown unit, a malformed
/// set, a field that stands twice, more than `ranges_max` ranges. Ranges that overlap, or that a
/// gap of at most 80 bytes separates, become one, at the place of the first of them; so no byte is
/// sent twice, and what is sent is at most the representation and the heads of its parts.
pub fn select(fields: &Fields<'_>, size: u64, ranges_max: usize) -> Selection {
    let mut lines = fields.get_all("range");
    match (lines.next(), lines.next()) {
        (Some(value), None) => select_value(value, size, ranges_max),
        _ => Selection::Whole,
    }
}

/// [`select`] for the value of the field.
pub fn select_value(value: &[u8], size: u64, ranges_max: usize) -> Selection {
    // Names of range units are case-insensitive (RFC 9110 §14.1).
    let set = match value.split_at_checked(6) {
        Some((unit, set)) if unit.eq_ignore_ascii_case(b"bytes=") => set,
        _ => return Selection::Whole,
    };
    let (mut count, mut ranges) = (0, Ranges::new());
    for spec in set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if spec.is_empty() {
            // An empty member of a list is nothing (RFC 9110 §5.6.1.2).
            continue;
        }
        count += 1;
        match parse_spec(spec, size) {
            _ if count > ranges_max => return Selection::Whole,
            Spec::Malformed | Spec::Everything => return Selection::Whole,
            Spec::Unsatisfiable => {}
            Spec::Range(range) => merge(&mut ranges, range),
        }
    }
    match ranges[..] {
        [] if count == 0 => Selection::Whole,
        [] => Selection::Unsatisfiable,
        [only] => Selection::Single(only),
        _ => Selection::Multiple(ranges),
    }
}

/// One member of the set.
enum Spec {
    Malformed,
    Unsatisfiable,
    Range(ByteRange),
    /// The last bytes of an empty representation: satisfiable (RFC 9110 §14.1.2), but there is no
    /// way to write down a range of no bytes.
    Everything,
}

fn parse_spec(spec: &[u8], size: u64) -> Spec {
    let Some(dash) = memchr::memchr(b'-', spec) else {
        return Spec::Malformed;
    };
    match (&spec[..dash], &spec[dash + 1..]) {
        (b"", length) => match parse_number(length) {
            None => Spec::Malformed,
            Some(0) => Spec::Unsatisfiable,
            Some(_) if size == 0 => Spec::Everything,
            Some(length) => Spec::Range(ByteRange {
                first: size - length.min(size),
                last: size - 1,
            }),
        },
        (first, last) => {
            let last = match last {
                b"" => Some(u64::MAX),
                last => parse_number(last),
            };
            match (parse_number(first), last) {
                (Some(first), Some(last)) if first > last => Spec::Malformed,
                (Some(first), Some(_)) if first >= size => Spec::Unsatisfiable,
                (Some(first), Some(last)) => Spec::Range(ByteRange {
                    first,
                    last: last.min(size - 1),
                }),
                _ => Spec::Malformed,
            }
        }
    }
}

/// A number of at least one digit; one beyond 64 bits is beyond every representation.
fn parse_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        digit.is_ascii_digit().then(|| {
            number
                .saturating_mul(10)
                .saturating_add(u64::from(digit - b'0'))
        })
    })
}

/// Adds a range, or widens the first one that it touches by it and by all others that then touch.
///
/// Before and after, more than the gap lies between any two.
fn merge(ranges: &mut Ranges, range: ByteRange) {
    let (mut merged, mut place) = (range, ranges.len());
    let mut at = 0;
    while at < ranges.len() {
        if !touch(ranges[at], merged) {
            at += 1;
            continue;
        }
        let other = ranges.remove(at);
        merged = ByteRange {
            first: merged.first.min(other.first),
            last: merged.last.max(other.last),
        };
        place = place.min(at);
        // The wider range may touch one that was passed.
        at = 0;
    }
    ranges.insert(place.min(ranges.len()), merged);
}

fn touch(a: ByteRange, b: ByteRange) -> bool {
    a.first <= b.last.saturating_add(GAP_BYTES_MAX + 1)
        && b.first <= a.last.saturating_add(GAP_BYTES_MAX + 1)
}

/// The framing of a `multipart/byteranges` response (RFC 9110 §14.6): what stands around the bytes.
///
/// On the wire: for each part its head and its bytes, then the end.
#[derive(Clone, Debug)]
pub struct Multipart {
    heads: SmallVec<[(ByteRange, Box<str>); 4]>,
    boundary: [u8; 32],
}

impl Multipart {
    /// Frames these ranges of a representation of `size` bytes and that media type.
    ///
    /// The boundary is made from `random`, which no one may foresee: content that held the boundary
    /// would otherwise end a part early.
    pub fn new(ranges: &[ByteRange], size: u64, media_type: Option<&str>, random: u128) -> Self {
        let mut boundary = [0; 32];
        for (at, byte) in boundary.iter_mut().enumerate() {
            *byte = b"0123456789abcdef"[(random >> (4 * at) & 15) as usize];
        }
        let mut multipart = Self {
            heads: SmallVec::new(),
            boundary,
        };
        for range in ranges {
            let mut head = String::with_capacity(160);
            if !multipart.heads.is_empty() {
                head.push_str("\r\n");
            }
            let _ = write!(head, "--{}\r\n", multipart.boundary());
            if let Some(media_type) = media_type {
                let _ = write!(head, "Content-Type: {media_type}\r\n");
            }
            let (first, last) = (range.first, range.last);
            let _ = write!(head, "Content-Range: bytes {first}-{last}/{size}\r\n\r\n");
            multipart.heads.push((*range, head.into()));
        }
        multipart
    }

    /// The value of Content-Type.
    pub fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary())
    }

    /// The exact length of the content, parts and framing.
    pub fn content_length(&self) -> u64 {
        let parts: u64 = self
            .parts()
            .map(|(head, range)| head.len() as u64 + range.length())
            .sum();
        parts + self.end().len() as u64
    }

    /// Each part: its head, with the boundary before it, and the bytes that follow.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (&str, ByteRange)> {
        self.heads.iter().map(|(range, head)| (&**head, *range))
    }

    /// What stands behind the last part.
    pub fn end(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary())
    }

    fn boundary(&self) -> &str {
        std::str::from_utf8(&self.boundary).unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(value: &str, size: u64) -> String {
        let join = |ranges: &[ByteRange]| {
            let texts: Vec<_> = ranges
                .iter()
                .map(|range| format!("{}-{}", range.first, range.last))
                .collect();
            texts.join(",")
        };
        match select_value(value.as_bytes(), size, RANGES_MAX) {
            Selection::Whole => "whole".into(),
            Selection::Unsatisfiable => "416".into(),
            Selection::Single(range) => join(&[range]),
            Selection::Multiple(ranges) => format!("multiple {}", join(&ranges)),
        }
    }

    #[test]
    fn the_examples_of_the_rfc() {
        // RFC 9110 §14.1.2, a representation of 10 000 bytes.
        for (value, expected) in [
            ("bytes=0-499", "0-499"),
            ("bytes=500-999", "500-999"),
            ("bytes=-500", "9500-9999"),
            ("bytes=9500-", "9500-9999"),
            ("bytes=0-0,-1", "multiple 0-0,9999-9999"),
            (
                "bytes= 0-999, 4500-5499, -1000",
                "multiple 0-999,4500-5499,9000-9999",
            ),
            ("bytes=500-600,601-999", "500-999"),
            ("bytes=500-700,601-999", "500-999"),
        ] {
            assert_eq!(text(value, 10_000), expected, "{value}");
        }
    }

    #[test]
    fn what_is_malformed_or_unknown_is_ignored() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=5-4",
            "bytes=0-1,5-4",
            "bytes=0 - 1",
            "bytes=+1-2",
            "bytes=0-1-2",
            "bytes=--1",
            "bytes =0-1",
            "bytes:0-1",
            "items=0-1",
            "0-1",
        ] {
            assert_eq!(text(value, 100), "whole", "{value}");
        }
        assert_eq!(text("BYTES=0-1", 100), "0-1");
        assert_eq!(text("bytes=,, 0-1 ,", 100), "0-1");
    }

    #[test]
    fn what_lies_outside_is_unsatisfiable() {
        for (value, size, expected) in [
            ("bytes=100-", 100, "416"),
            ("bytes=100-200,300-", 100, "416"),
            ("bytes=-0", 100, "416"),
            ("bytes=0-", 0, "416"),
            ("bytes=0-0", 0, "416"),
            ("bytes=-5", 0, "whole"),
            ("bytes=100-,0-9", 100, "0-9"),
            ("bytes=-0,0-9", 100, "0-9"),
            ("bytes=99-", 100, "99-99"),
            ("bytes=-1000", 100, "0-99"),
            ("bytes=0-99999999999999999999999", 100, "0-99"),
            ("bytes=99999999999999999999999-", 100, "416"),
            ("bytes=-99999999999999999999999", 100, "0-99"),
            ("bytes=0-", u64::MAX / 2, "0-9223372036854775806"),
        ] {
            assert_eq!(text(value, size), expected, "{value} of {size}");
        }
        assert_eq!(unsatisfied_content_range(47), "bytes */47");
    }

    #[test]
    fn near_ranges_become_one_at_the_place_of_the_first() {
        for (value, expected) in [
            ("bytes=0-9,90-99", "0-99"),
            ("bytes=0-9,91-99", "multiple 0-9,91-99"),
            ("bytes=500-599,0-9,550-650", "multiple 500-650,0-9"),
            ("bytes=0-9,1000-1009,200-209,5-1000", "0-1009"),
            (
                "bytes=900-909,0-9,400-409,100-390",
                "multiple 900-909,0-9,100-409",
            ),
            ("bytes=0-,0-,0-,0-", "0-9999"),
        ] {
            assert_eq!(text(value, 10_000), expected, "{value}");
        }
    }

    #[test]
    fn too_many_ranges_are_ignored() {
        let list = |count: u64| {
            let specs: Vec<_> = (0..count).map(|n| format!("{0}-{0}", n * 1000)).collect();
            format!("bytes={}", specs.join(","))
        };
        assert!(text(&list(16), 100_000).starts_with("multiple"));
        assert_eq!(text(&list(17), 100_000), "whole");
        // Overlapping ranges count too: Apache's CVE-2011-3192.
        assert_eq!(text(&format!("bytes={}", "0-,".repeat(1000)), 100), "whole");
    }

    #[test]
    fn a_field_that_stands_twice_is_ignored() {
        let mut fields = Fields::default();
        assert_eq!(select(&fields, 10, RANGES_MAX), Selection::Whole);
        fields.push("Range", b"bytes=0-0");
        let single = Selection::Single(ByteRange { first: 0, last: 0 });
        assert_eq!(select(&fields, 10, RANGES_MAX), single);
        fields.push("range", b"bytes=1-1");
        assert_eq!(select(&fields, 10, RANGES_MAX), Selection::Whole);
    }

    #[test]
    fn parts_are_framed() {
        let ranges = [
            ByteRange { first: 0, last: 1 },
            ByteRange {
                first: 500,
                last: 500,
            },
        ];
        let multipart = Multipart::new(&ranges, 1000, Some("text/plain"), 0);
        let boundary = "0".repeat(32);
        let mut wire = String::new();
        for (head, range) in multipart.parts() {
            wire.push_str(head);
            wire.push_str(&"x".repeat(range.length() as usize));
        }
        wire.push_str(&multipart.end());
        assert_eq!(
            wire,
            format!(
                "--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/1000\r\n\r\nxx\
                 \r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 500-500/1000\r\n\r\nx\
                 \r\n--{boundary}--\r\n"
            )
        );
        assert_eq!(multipart.content_length(), wire.len() as u64);
        assert_eq!(
            multipart.content_type(),
            format!("multipart/byteranges; boundary={boundary}")
        );
        assert_eq!(ranges[0].content_range(1000), "bytes 0-1/1000");
    }

    proptest! {
        /// Every byte asked for is sent, none twice, and the gaps are the only extra.
        #[test]
        fn a_selection_covers_what_was_asked(
            specs in proptest::collection::vec((0..3000_u64, 0..400_u64), 1..10),
            size in 1..3000_u64,
        ) {
            let texts: Vec<_> = specs.iter().map(|(f, n)| format!("{f}-{}", f + n)).collect();
            let value = format!("bytes={}", texts.join(","));
            let ranges = match select_value(value.as_bytes(), size, RANGES_MAX) {
                Selection::Single(range) => Ranges::from_elem(range, 1),
                Selection::Multiple(ranges) => ranges,
                Selection::Unsatisfiable => Ranges::new(),
                Selection::Whole => return Err(TestCaseError::fail("ignored")),
            };
            for byte in 0..size {
                let asked = specs.iter().any(|(f, n)| (*f..=f + n).contains(&byte));
                let sent = ranges.iter().filter(|r| (r.first..=r.last).contains(&byte)).count();
                prop_assert!(sent <= 1);
                prop_assert!(!asked || sent == 1);
            }
            prop_assert!(ranges.iter().all(|r| r.first <= r.last && r.last < size));
            for (at, a) in ranges.iter().enumerate() {
                prop_assert!(ranges[at + 1..].iter().all(|b| !touch(*a, *b)));
            }
        }

        #[test]
        fn no_bytes_panic(value in "(bytes=)?[-0-9, a]{0,60}", size: u64) {
            select_value(value.as_bytes(), size, RANGES_MAX);
        }
    }
}
