//! The wall clock, asked at most once a second.

use std::num::NonZeroU32;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The wall clock now, since 1970-01-01T00:00:00Z: to compare with the times of files, which the
/// kernel sets by it. For looks at the disk, not for each request.
pub fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Seconds since 1970, renewed when the monotonic clock says that a second has passed.
#[derive(Debug, Default)]
pub struct WallClock {
    unix_s: u64,
    renew_at: Option<Instant>,
}

impl WallClock {
    /// The wall clock at the monotonic time `now`, in whole seconds since 1970-01-01T00:00:00Z.
    pub fn unix_seconds(&mut self, now: Instant) -> u64 {
        if self.renew_at.is_none_or(|at| now >= at) {
            let since = since_epoch();
            self.unix_s = since.as_secs();
            let rest = Duration::from_secs(1) - Duration::from_nanos(since.subsec_nanos().into());
            self.renew_at = Some(now + rest);
        }
        self.unix_s
    }
}

/// A moment as the time since another one, up to 136 years of it: half as large as an `Instant`, `None` needs
/// no room, and it is made without a division.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Since {
    secs: u32,
    /// A nanosecond more than there were, so that it is never 0.
    nanos: NonZeroU32,
}

impl From<Duration> for Since {
    fn from(since: Duration) -> Self {
        Self {
            secs: u32::try_from(since.as_secs()).unwrap_or(u32::MAX),
            nanos: NonZeroU32::MIN.saturating_add(since.subsec_nanos()),
        }
    }
}

impl From<Since> for Duration {
    fn from(since: Since) -> Self {
        Self::new(since.secs.into(), since.nanos.get() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_keeps_its_time_and_order() {
        let times = [0, 1, 999_999_999, 1_000_000_000, 5_000_000_001].map(Duration::from_nanos);
        let moments = times.map(Since::from);
        assert!(moments.is_sorted());
        assert_eq!(moments.map(Duration::from), times);
        let late = Since::from(Duration::MAX);
        assert_eq!(Duration::from(late).as_secs(), u64::from(u32::MAX));
        assert_eq!(size_of::<Option<Since>>(), 8);
    }

    #[test]
    fn is_asked_again_after_a_second_and_not_before() {
        let (mut clock, now) = (WallClock::default(), Instant::now());
        let first = clock.unix_seconds(now);
        assert!(first > 1_700_000_000);
        clock.unix_s = 5;
        assert_eq!(clock.unix_seconds(now), 5);
        assert!(clock.unix_seconds(now + Duration::from_secs(1)) >= first);
    }
}
