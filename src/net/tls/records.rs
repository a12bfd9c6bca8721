//! How large records are: small ones first, so that a client can begin to use what has come before a
//! whole record has, then the largest, which cost the least.

use std::time::{Duration, Instant};

/// Most bytes of content in a record (RFC 8446 §5.1).
pub const RECORD_MAX: usize = 1 << 14;

/// Content of a small record: with its header and tag it fits into three segments of 1460 B.
const SMALL: usize = 4229;

/// What leaves in one flight of a new connection (RFC 6928: ten segments) gains nothing by small records.
const FLIGHT: usize = 14_000;

/// After so many bytes the congestion window is open enough for large records.
const WARM: u32 = 128 << 10;

/// After so long without a byte the kernel begins with a small window again (RFC 5681 §4.1).
const COLD_AFTER: Duration = Duration::from_secs(1);

/// Chooses the size of records of one connection.
#[derive(Debug, Default)]
pub struct RecordSizer {
    /// Bytes since the connection was idle, at most [`WARM`].
    sent: u32,
    last: Option<Instant>,
}

impl RecordSizer {
    /// How many of the `left` bytes of a message the next record takes; 0 only of 0.
    pub fn next(&mut self, left: usize, now: Instant) -> usize {
        let idle = |last| now.saturating_duration_since(last) >= COLD_AFTER;
        if self.last.is_none_or(idle) {
            self.sent = 0;
        }
        self.last = Some(now);
        let in_one_flight = left <= FLIGHT && self.sent == 0;
        let size = match in_one_flight || self.sent >= WARM {
            true => left.min(RECORD_MAX),
            false => left.min(SMALL),
        };
        self.sent = self.sent.saturating_add(size as u32).min(WARM);
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_begins_small_and_becomes_large() {
        let now = Instant::now();
        let mut sizer = RecordSizer::default();
        let mut left = 1 << 20;
        let mut sizes = Vec::new();
        while left > 0 {
            let size = sizer.next(left, now);
            sizes.push(size);
            left -= size;
        }
        assert_eq!(sizes[..3], [SMALL; 3]);
        assert_eq!(sizes.iter().filter(|size| **size == SMALL).count(), 31);
        assert_eq!(sizes[40], RECORD_MAX);
        assert_eq!(sizer.next(1 << 20, now + COLD_AFTER), SMALL, "it has idled");
    }

    #[test]
    fn what_fits_into_one_flight_is_one_record() {
        let now = Instant::now();
        let mut sizer = RecordSizer::default();
        assert_eq!(sizer.next(1024, now), 1024);
        assert_eq!(
            sizer.next(5000, now),
            SMALL,
            "behind others it is not alone"
        );
        let mut sizer = RecordSizer::default();
        assert_eq!(sizer.next(FLIGHT, now), FLIGHT);
        assert_eq!(RecordSizer::default().next(0, now), 0);
    }
}
