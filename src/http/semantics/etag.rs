//! Entity tags (RFC 9110 §8.8.3): strong validators from what is known of a file.

use super::negotiate::Coding;

/// Longest tag: quotes, size and time with a dash, or a hash, and a coding with a dash.
const LENGTH_MAX: usize = 2 + 16 + 1 + 16 + 2;

/// A strong entity tag with its quotes, as it stands in a field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EntityTag {
    /// Invariant: the first `length` bytes are a quote, printable ASCII, and a quote.
    bytes: [u8; LENGTH_MAX],
    length: u8,
}

impl EntityTag {
    /// A tag from size and time of modification.
    ///
    /// `None` where the time says nothing (see [`is_epoch_like`]): then only the content can tell
    /// two versions apart. `mtime_ns` is the part below a second. The coding is part of the tag,
    /// because a compressed form is another representation (RFC 9110 §8.8.3.3).
    pub fn from_metadata(
        size: u64,
        mtime_s: i64,
        mtime_ns: u32,
        coding: Option<Coding>,
    ) -> Option<Self> {
        if is_epoch_like(mtime_s) {
            return None;
        }
        // Nanoseconds are below 2^30, and seconds below 2^34 until the year 2514.
        let time = (mtime_s as u64) << 30 | u64::from(mtime_ns);
        let mut tag = Self::open();
        tag.push_hex(u128::from(size));
        tag.push(b'-');
        tag.push_hex(u128::from(time));
        Some(tag.close(coding))
    }

    /// A tag from a hash of the uncoded content, of 64 bits or more.
    pub fn from_hash(hash: u128, coding: Option<Coding>) -> Self {
        let mut tag = Self::open();
        tag.push_hex(hash);
        tag.close(coding)
    }

    /// The tag with its quotes.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or("")
    }

    /// The tag with its quotes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    fn open() -> Self {
        let mut tag = Self {
            bytes: [0; LENGTH_MAX],
            length: 0,
        };
        tag.push(b'"');
        tag
    }

    fn close(mut self, coding: Option<Coding>) -> Self {
        if let Some(coding) = coding {
            self.push(b'-');
            self.push(match coding {
                Coding::Zstd => b'z',
                Coding::Brotli => b'b',
                Coding::Gzip => b'g',
            });
        }
        self.push(b'"');
        self
    }

    fn push(&mut self, byte: u8) {
        self.bytes[usize::from(self.length)] = byte;
        self.length += 1;
    }

    /// Appends a number in hexadecimal without leading zeros.
    fn push_hex(&mut self, value: u128) {
        let digits = (128 - value.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            self.push(b"0123456789abcdef"[(value >> (4 * digit) & 15) as usize]);
        }
    }
}

impl std::fmt::Debug for EntityTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Display for EntityTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a time of modification is one that tools write in place of the real one, so that a
/// change of content need not change it: anything before 1980-01-03 (the Unix epoch, Nix's 1, the
/// first day of ZIP's and DOS's calendar in any time zone), and the constants of npm and Yarn.
pub fn is_epoch_like(mtime_s: i64) -> bool {
    /// 1980-01-03T00:00:00Z.
    const EARLIEST_S: i64 = 315_705_600;
    /// 1984-06-22T21:50:00Z.
    const YARN_S: i64 = 456_789_000;
    /// 1985-10-26T08:15:00Z.
    const NPM_S: i64 = 499_162_500;
    mtime_s < EARLIEST_S || mtime_s == YARN_S || mtime_s == NPM_S
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn size_time_and_coding_make_the_tag() {
        let tag = |size, s, ns, coding| EntityTag::from_metadata(size, s, ns, coding).unwrap();
        let plain = tag(1024, 1_700_000_000, 5, None);
        assert_eq!(plain.as_str(), "\"400-1954fc4000000005\"");
        let others = [
            tag(1025, 1_700_000_000, 5, None),
            tag(1024, 1_700_000_001, 5, None),
            tag(1024, 1_700_000_000, 6, None),
            tag(1024, 1_700_000_000, 5, Some(Coding::Gzip)),
            tag(1024, 1_700_000_000, 5, Some(Coding::Brotli)),
            tag(1024, 1_700_000_000, 5, Some(Coding::Zstd)),
        ];
        for (at, other) in others.iter().enumerate() {
            assert_ne!(plain, *other);
            assert!(!others[..at].contains(other));
        }
    }

    #[test]
    fn a_time_that_says_nothing_makes_no_tag() {
        for mtime_s in [
            i64::MIN,
            -1,
            0,
            1,
            315_532_800,
            315_532_801,
            315_619_200,
            456_789_000,
            499_162_500,
        ] {
            assert_eq!(
                EntityTag::from_metadata(1, mtime_s, 0, None),
                None,
                "{mtime_s}"
            );
        }
        for mtime_s in [315_705_600, 499_162_501, 1_700_000_000, i64::MAX] {
            assert!(
                EntityTag::from_metadata(1, mtime_s, 0, None).is_some(),
                "{mtime_s}"
            );
        }
    }

    #[test]
    fn a_hash_makes_a_tag() {
        assert_eq!(EntityTag::from_hash(0, None).as_str(), "\"0\"");
        assert_eq!(
            EntityTag::from_hash(u128::MAX, Some(Coding::Zstd)).as_str(),
            format!("\"{}-z\"", "f".repeat(32))
        );
    }

    proptest! {
        #[test]
        fn every_tag_is_quoted_and_printable(
            size: u64, mtime_s: i64, mtime_ns: u32, hash: u128
        ) {
            let tags = EntityTag::from_metadata(size, mtime_s, mtime_ns, Some(Coding::Gzip));
            for tag in tags.into_iter().chain([EntityTag::from_hash(hash, None)]) {
                let inner = tag.as_str().strip_prefix('"').and_then(|t| t.strip_suffix('"'));
                prop_assert!(inner.unwrap().bytes().all(|b| b.is_ascii_hexdigit() || b"-zbg".contains(&b)));
            }
        }
    }
}
