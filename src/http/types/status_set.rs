//! A set of status codes, as a configuration names it: `502`, `200-399`.
//!
//! Asked once per probe or failed try; it says nothing of what a status means.

use std::fmt;

use super::Status;

/// Lowest and highest status that a set can hold (RFC 9110 §15: three digits).
const STATUS: std::ops::RangeInclusive<u16> = 100..=599;
const WORDS: usize = 8;

/// Any subset of the status codes 100 to 599; one bit for each. Codes outside are never in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusSet([u64; WORDS]);

impl StatusSet {
    /// The set without a member.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// Adds all codes from `first` to `last`, both included, but for those that no set can hold.
    pub fn insert(&mut self, first: Status, last: Status) {
        for status in first.0.max(*STATUS.start())..=last.0.min(*STATUS.end()) {
            let bit = usize::from(status - STATUS.start());
            self.0[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// The set of these ranges, both ends included.
    pub fn new(ranges: impl IntoIterator<Item = (Status, Status)>) -> Self {
        let mut set = Self::EMPTY;
        for (first, last) in ranges {
            set.insert(first, last);
        }
        set
    }

    /// Whether `status` is a member.
    pub fn contains(&self, status: Status) -> bool {
        STATUS.contains(&status.0) && {
            let bit = usize::from(status.0 - STATUS.start());
            self.0[bit / 64] & (1 << (bit % 64)) != 0
        }
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }
}

/// Ranges as a configuration would write them: `200-399, 404`.
impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut status, mut separator) = (*STATUS.start(), "");
        while status <= *STATUS.end() {
            let first = status;
            while self.contains(Status(status)) {
                status += 1;
            }
            match status - first {
                0 => {
                    status += 1;
                    continue;
                }
                1 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{}", status - 1)?,
            }
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(u16, u16)]) -> StatusSet {
        StatusSet::new(
            ranges
                .iter()
                .map(|&(first, last)| (Status(first), Status(last))),
        )
    }

    #[test]
    fn holds_what_was_put_in_and_nothing_else() {
        let set = set(&[(200, 399), (404, 404), (599, 700), (0, 100)]);
        for status in 0..=1_000 {
            let expected = matches!(status, 100 | 200..=399 | 404 | 599);
            assert_eq!(set.contains(Status(status)), expected, "{status}");
        }
        assert!(StatusSet::EMPTY.is_empty() && !set.is_empty());
    }

    #[test]
    fn is_written_as_a_configuration_writes_it() {
        let set = set(&[(502, 504), (404, 404), (599, 599)]);
        assert_eq!(set.to_string(), "404, 502-504, 599");
        assert_eq!(StatusSet::EMPTY.to_string(), "");
    }
}
