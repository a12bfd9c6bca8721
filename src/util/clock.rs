//! The wall clock, asked at most once a second.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Whole seconds since 1970, for what is reckoned with times of certificates.
pub fn unix_s() -> i64 {
    i64::try_from(since_epoch().as_secs()).unwrap_or(i64::MAX)
}

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

#[cfg(test)]
mod tests {
    use super::*;

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
