//! For how long, and how many servers may be put out on suspicion.
//!
//! Requests that fail may be the fault of requests (a deploy that breaks one path everywhere), and an
//! upstream whose servers are all put out serves nobody. So suspicion takes a share of them at most,
//! never the last one that works, and for a short time first.

use std::time::Duration;

/// Bounds on putting servers out.
#[derive(Clone, Copy, Debug)]
pub struct EjectionLimits {
    /// How long the first time; doubles with each time after.
    pub first: Duration,
    /// How long at most. As long well takes one time back.
    pub longest: Duration,
    /// Percent of the servers that may be out by suspicion at once, one of them always. 0: none.
    pub percent_max: u32,
}

/// The servers of an upstream that the administrator has up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::upstream) struct Census {
    /// All of them.
    pub(in crate::upstream) all: usize,
    /// Out by suspicion at this moment.
    pub(in crate::upstream) ejected: usize,
    /// Taking requests.
    pub(in crate::upstream) usable: usize,
}

impl EjectionLimits {
    /// Whether one more that is usable now may be put out.
    pub(in crate::upstream) fn allow(&self, census: Census) -> bool {
        let share = census.all as u64 * u64::from(self.percent_max.min(100)) / 100;
        let most = if self.percent_max == 0 {
            0
        } else {
            share.max(1)
        };
        census.usable > 1 && (census.ejected as u64) < most
    }

    /// How long a server is out that was out `times` times before, in milliseconds. At least 1.
    pub(in crate::upstream) fn time_ms(&self, times: u64) -> u64 {
        let (first, longest) = (millis(self.first), millis(self.longest));
        let factor = 1_u64.checked_shl(u32::try_from(times).unwrap_or(u32::MAX));
        let time = factor.map_or(longest, |factor| first.saturating_mul(factor));
        time.min(longest.max(first)).max(1)
    }

    /// How many of `times` remain after `well_ms` without another one.
    pub(in crate::upstream) fn remaining(&self, times: u64, well_ms: u64) -> u64 {
        times.saturating_sub(well_ms / millis(self.longest).max(1))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: EjectionLimits = EjectionLimits {
        first: Duration::from_secs(10),
        longest: Duration::from_secs(300),
        percent_max: 50,
    };

    #[test]
    fn a_share_goes_out_and_the_last_one_stays() {
        for (all, ejected, usable, allowed) in [
            (1, 0, 1, false),
            (2, 0, 2, true),
            (2, 0, 1, false),
            (2, 1, 1, false),
            (3, 0, 3, true),
            (3, 1, 2, false),
            (10, 4, 6, true),
            (10, 5, 5, false),
            (10, 2, 1, false),
        ] {
            let census = Census {
                all,
                ejected,
                usable,
            };
            assert_eq!(LIMITS.allow(census), allowed, "{census:?}");
        }
    }

    #[test]
    fn a_small_share_is_one_and_none_is_none() {
        let census = Census {
            all: 3,
            ejected: 0,
            usable: 3,
        };
        for (percent_max, allowed) in [(0, false), (1, true), (1_000, true)] {
            let limits = EjectionLimits {
                percent_max,
                ..LIMITS
            };
            assert_eq!(limits.allow(census), allowed, "{percent_max} %");
        }
    }

    #[test]
    fn times_grow_to_the_bound_and_are_forgiven() {
        for (times, seconds) in [
            (0, 10),
            (1, 20),
            (4, 160),
            (5, 300),
            (63, 300),
            (1_000, 300),
        ] {
            assert_eq!(
                LIMITS.time_ms(times),
                seconds * 1_000,
                "after {times} times"
            );
        }
        for (times, well_s, left) in [(3, 299, 3), (3, 300, 2), (3, 5_000, 0)] {
            assert_eq!(LIMITS.remaining(times, well_s * 1_000), left);
        }
    }
}
