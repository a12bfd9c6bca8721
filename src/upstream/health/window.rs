//! How many of the requests of the last time failed.
//!
//! Ten buckets that go round: memory doesn't grow with traffic, and what is older than the window (up
//! to a tenth of it) doesn't count.

use std::time::{Duration, Instant};

const BUCKETS: usize = 10;

/// Counts over a sliding window of time.
#[derive(Debug)]
pub(super) struct ErrorWindow {
    bucket: Duration,
    counts: [Counts; BUCKETS],
    /// The bucket of now, and when it began; `None` before the first request.
    at: usize,
    begun: Option<Instant>,
}

/// Requests of a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) all: u32,
    pub(super) failed: u32,
}

impl Counts {
    /// Whether there were `all_min` requests and `percent` of them failed.
    pub(super) fn exceed(self, percent: u32, all_min: u32) -> bool {
        self.all >= all_min.max(1)
            && u64::from(self.failed) * 100 >= u64::from(percent) * u64::from(self.all)
    }
}

impl ErrorWindow {
    /// An empty window of this length; below 10 ms it is that.
    pub(super) fn new(length: Duration) -> Self {
        Self {
            bucket: (length / BUCKETS as u32).max(Duration::from_millis(1)),
            counts: [Counts::default(); BUCKETS],
            at: 0,
            begun: None,
        }
    }

    /// Counts a request that ended at `now`, and gives the counts of the window.
    pub(super) fn record(&mut self, has_failed: bool, now: Instant) -> Counts {
        self.turn(now);
        let counts = &mut self.counts[self.at];
        counts.all = counts.all.saturating_add(1);
        counts.failed = counts.failed.saturating_add(u32::from(has_failed));
        let mut sum = Counts::default();
        for counts in &self.counts {
            sum.all = sum.all.saturating_add(counts.all);
            sum.failed = sum.failed.saturating_add(counts.failed);
        }
        sum
    }

    pub(super) fn clear(&mut self) {
        self.counts = [Counts::default(); BUCKETS];
        self.begun = None;
    }

    fn turn(&mut self, now: Instant) {
        let begun = *self.begun.get_or_insert(now);
        let passed = now.saturating_duration_since(begun);
        if passed >= self.bucket * BUCKETS as u32 {
            self.clear();
            self.begun = Some(now);
            return;
        }
        // Below ten.
        let turns = (passed.as_nanos() / self.bucket.as_nanos()) as u32;
        for _ in 0..turns {
            self.at = (self.at + 1) % BUCKETS;
            self.counts[self.at] = Counts::default();
        }
        self.begun = Some(begun + self.bucket * turns);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn forgets_what_is_older_than_the_window() {
        let (mut window, now) = (ErrorWindow::new(1_000 * MS), Instant::now());
        let counts = |all, failed| Counts { all, failed };
        assert_eq!(window.record(true, now), counts(1, 1));
        assert_eq!(window.record(false, now + 899 * MS), counts(2, 1));
        assert_eq!(window.record(false, now + 1_000 * MS), counts(2, 0));
        assert_eq!(window.record(true, now + 90_000 * MS), counts(1, 1));
    }

    #[test]
    fn a_share_needs_enough_requests() {
        for (all, failed, exceeds) in [(10, 5, true), (10, 4, false), (9, 9, false), (0, 0, false)]
        {
            assert_eq!(
                Counts { all, failed }.exceed(50, 10),
                exceeds,
                "{failed}/{all}"
            );
        }
        assert!(
            !Counts::default().exceed(0, 0),
            "nothing asked, nothing wrong"
        );
    }

    proptest! {
        #[test]
        fn counts_what_lies_between_nine_and_ten_tenths(
            steps in prop::collection::vec((0..400_u32, any::<bool>()), 1..200),
        ) {
            let (mut window, mut now) = (ErrorWindow::new(1_000 * MS), Instant::now());
            let mut history = Vec::new();
            for (millis, has_failed) in steps {
                now += millis * MS;
                history.push((now, has_failed));
                let counts = window.record(has_failed, now);
                let within = |age: Duration| {
                    let recent = history.iter().filter(|(at, _)| now - *at < age);
                    let failed = recent.clone().filter(|(_, failed)| *failed).count();
                    (recent.count() as u32, failed as u32)
                };
                let (least, most) = (within(900 * MS), within(1_000 * MS + MS));
                prop_assert!((least.0..=most.0).contains(&counts.all), "{:?} {:?} {:?}", least, counts, most);
                prop_assert!((least.1..=most.1).contains(&counts.failed));
            }
        }
    }
}
